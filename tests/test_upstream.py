# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The scripts of docs/upstream.md print what the page says, with Pyro as it is and as changed."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.special import expit, log_expit

from tests.common import z_bound

pytestmark = [
    pytest.mark.cpu(reason="the scripts run on the CPU"),
    pytest.mark.skipif(pyro.__version__ != "1.9.2", reason="the diffs are against Pyro 1.9.2"),
]

PAGE = Path(__file__).parent.parent / "docs" / "upstream.md"


class Section(NamedTuple):
    """Of the page: a script, what it prints, what it prints with the change, and the change."""

    script: str
    before: str
    after: str
    diff: str | None


def sections():
    """By what is before the dot of the title."""
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        name = re.split(r"\.|\n", section, maxsplit=1)[0]
        blocks = dict.fromkeys(("python", "text", "diff"))
        for kind in blocks:
            blocks[kind] = re.findall(rf"^```{kind}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        yield name, Section(*blocks["python"], *blocks["text"], *(blocks["diff"] or [None]))


SECTIONS = dict(sections())
CHANGES = {"3 and 4 together": ["3", "4"], "5": ["3", "5"]}  # of others it is the own diff
NUMBER = re.compile(r"-?(?:\d+\.?\d*(?:e-?\d+)?|\bnan\b|\binf\b)")

each_section = pytest.mark.parametrize("name", SECTIONS)


def assert_same_output(found, stated):
    """The words are equal, and the numbers nearly: other versions of torch round otherwise."""
    assert NUMBER.sub("#", found) == NUMBER.sub("#", stated)
    numbers = [list(map(float, NUMBER.findall(text))) for text in (found, stated)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.1, nan_ok=True)


def changed_pyro(folder, name):
    """A copy of the installed Pyro in a folder, with the change of a section."""
    shutil.copytree(Path(pyro.__file__).parent, folder / "pyro")
    for change in CHANGES.get(name, [name]):
        subprocess.run(
            ["git", "apply", "-"],
            cwd=folder, input=SECTIONS[change].diff, text=True, check=True,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        )  # fmt: skip


def test_there_are_ten_and_one():
    assert list(SECTIONS) == ["1", "2", "3", "4", "3 and 4 together", *map(str, range(5, 11))]
    for section in SECTIONS.values():
        assert section.before != section.after


@each_section
def test_scripts_are_short(name):
    lines = [line for line in SECTIONS[name].script.splitlines() if line.strip()]
    assert 3 <= len(lines) <= 12


@pytest.mark.slow
@each_section
def test_pyro_prints_what_the_page_says(name, capsys):
    exec(compile(SECTIONS[name].script, PAGE.name, "exec"), {})
    assert_same_output(capsys.readouterr().out, SECTIONS[name].before)


@pytest.mark.slow
@each_section
def test_changed_pyro_prints_what_the_page_says(name, tmp_path):
    changed_pyro(tmp_path, name)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SECTIONS[name].script],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same_output(done.stdout, SECTIONS[name].after)


# The expected values, each by other means: its mean and its standard error in the script.


def over_logistic_noise(function):
    """The mean of a function of L, and its standard deviation."""

    def mean(f):
        return quad(lambda x: f(x) * stats.logistic.pdf(x), -60, 60, limit=500, epsabs=1e-12)[0]

    m = mean(function)
    return m, math.sqrt(mean(lambda x: (function(x) - m) ** 2))


def concrete_log_density(s, temperature, alpha):
    """Maddison et al., eq. 10, of one value."""
    k = len(s)
    powers = [a * y**-temperature for a, y in zip(alpha, s, strict=True)]
    product = math.prod(power / y for power, y in zip(powers, s, strict=True))
    return math.log(math.factorial(k - 1) * temperature ** (k - 1) * product / sum(powers) ** k)


def mean_densities_of_categories():
    """The formula on log s in float64, with noise of its own."""
    torch.manual_seed(0)
    x = (2 * torch.randn(2000, 10)).double()
    for tau in (0.1, 0.05, 0.01):
        z = x - torch.empty_like(x).exponential_().log()
        log_s = (z / tau).log_softmax(-1)
        score = (x - tau * log_s).log_softmax(-1).sum(-1)
        found = math.lgamma(10) + 9 * math.log(tau) + score - log_s.sum(-1)
        yield found.mean().item(), found.std().item() * math.sqrt(2 / len(found))


def elbo_without_data():
    """Over the four categories."""
    q = np.exp([0.5, -0.5, 0.0, 0.3]) / np.exp([0.5, -0.5, 0.0, 0.3]).sum()
    ratio = np.log([0.7, 0.1, 0.1, 0.1]) - np.log(q)
    mean = (q * ratio).sum()
    return 3 * [(mean, math.sqrt((q * (ratio - mean) ** 2).sum() / 20_000))]


def largest_entries():
    """Over a grid of the two differences of three Gumbel variates."""
    grid = np.arange(-40, 40, 0.1)
    a, b = np.meshgrid(grid, grid)
    top = np.maximum(np.maximum(a, b), 0)
    density = np.exp(-a - b - 3 * np.logaddexp(0, np.logaddexp(-a, -b)))
    density /= density.sum()
    for tau in (0.1, 1.0, 10.0):
        largest = 1 / sum(np.exp((each - top) / tau) for each in (a, b, 0 * a))
        mean = (density * largest).sum()
        yield mean, math.sqrt((density * (largest - mean) ** 2).sum() / 20_000)
    yield concrete_log_density([0.2, 0.3, 0.5], 0.5, [1, 1, 1]), 0


def bits_of_large_logits():
    for x in (-20, 20):
        for function in (
            lambda noise, x=x: expit((x + noise) / 4),
            lambda noise, x=x: expit((x + noise) / 4) * expit(-(x + noise) / 4) / 4,
        ):
            mean, deviation = over_logistic_noise(function)
            yield mean, deviation / math.sqrt(200_000)

    def log_density(x, s=1e-30):
        d = x - 10 * math.log(s / (1 - s))
        return math.log(10) + d - 2 * np.logaddexp(0, d) - math.log(s) - math.log1p(-s)

    yield log_density(1.0), 0
    yield (log_density(1.1) - log_density(0.9)) / 0.2, 0


def rare_categories():
    """With the rounding of the normalised logits to bfloat16, of up to 1 %."""
    logits = torch.tensor([2.0, 1.0, 1.5, 0.0, -3.0, 0.5])
    for p in (logits.double().softmax(-1), logits.softmax(-1).bfloat16().double()):
        p = (p / p.sum())[4].item()
        yield p, math.sqrt(p * (1 - p) / 400_000) + 0.01 * p / z_bound()


def entropies_of_bits():
    for tau in (1.0, 0.5, 0.1):

        def log_density(noise, tau=tau):
            v = (1 + noise) / tau
            jacobian = log_expit(v) + log_expit(-v)
            return math.log(tau) + log_expit(noise) + log_expit(-noise) - jacobian

        mean, deviation = over_logistic_noise(log_density)
        yield mean, deviation / math.sqrt(100_000)


def divergence_of_bits():
    def log_ratio(noise):
        """Of densities of T v with locations 1.5 and -0.5, where it is 1.5 + noise."""
        return stats.logistic.logpdf(noise) - stats.logistic.logpdf(noise + 2)

    return [(over_logistic_noise(log_ratio)[0], 0)]


EXPECTED = {  # what to look for in the output, and the values
    "1": (r"mean (\S+)", mean_densities_of_categories),
    "2": (r"(\d+) of", lambda: 3 * [(0, 0)]),
    "3": (r": (\S+)", elbo_without_data),
    "4": (r"-\d\.\d+", lambda: [(math.log(p), 0) for p in (0.2, 0.7, 0.2, 0.1)]),
    "3 and 4 together": (r"0\.\d", lambda: [(p, 0) for p in (0.7, 0.1, 0.1, 0.1)]),
    "5": (r"log_prob (\S+)", lambda: 4 * [(math.log(math.e / (1 + math.e)), 0)]),
    "6": (r"-?\d\.\d{4}", largest_entries),
    "7": (r"-?\d+\.\d{4,}|^-\d+\.\d+|-1(?=\.\))", bits_of_large_logits),
    "8": (r"0\.\d+", rare_categories),
    "9": (r"= (\S+)", entropies_of_bits),
    "10": (r"\d\.\d+", divergence_of_bits),
}


@each_section
def test_what_is_expected(name):
    pattern, values = EXPECTED[name]
    stated = re.findall(pattern, SECTIONS[name].after, re.MULTILINE)
    expected = list(values())
    assert len(stated) == len(expected)
    for text, (mean, error) in zip(stated, expected, strict=True):
        rounding = 0.51 * 10 ** -len(text.partition(".")[2])
        assert float(text) == pytest.approx(mean, rel=1e-6, abs=rounding + z_bound() * error)
