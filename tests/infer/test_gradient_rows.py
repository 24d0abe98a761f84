# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The rule of the recommendation, on rows made by hand and on gradients with a known bias."""

import math

import pytest
import torch

from pyro_gumbel import GradientReport, GradientRow
from pyro_gumbel.infer.exact_gradient import BlockedMoments, ExactGradient
from pyro_gumbel.infer.gradient_rows import Rule
from pyro_gumbel.infer.gradient_settings import RowSettings
from pyro_gumbel.infer.gradients import _Measured
from tests.common import slow_unless

SAMPLES = 10_000
END = math.inf


def row(name, *, bias=0.0, noise=1.0, projection=1.0, milliseconds=1.0, samples=SAMPLES):
    """A row of a report whose exact gradient has length 1, with 5 directions of noise."""
    error = noise / math.sqrt(samples)
    return GradientRow(
        estimator=name,
        temperature=None,
        bias=bias,
        bias_error=error,
        noise_directions=5.0,
        standard_deviation=noise,
        projection=projection,
        projection_error=error / math.sqrt(5),
        cosine=0.9,
        cosine_error=0.01,
        progress=0.5,
        progress_error=0.01,
        milliseconds=milliseconds,
    )


def report(*rows, samples=SAMPLES, steps=END):
    return GradientReport(list(rows), 1.0, 0.0, "enumeration of 3 states", samples, 5, steps)


def names(rows):
    return [row.estimator for row in rows]


QUIET = row("quiet", bias=0.5, noise=0.1)
NOISY = row("noisy", noise=10.0)


@pytest.mark.parametrize(
    ("rows", "steps", "best"),
    [
        # A bias with little noise against much noise: 100 times the noise, 10,000 times the steps.
        ([QUIET, NOISY], 1, ["quiet"]),
        ([QUIET, NOISY], 10, ["quiet"]),
        ([QUIET, NOISY], 100, ["noisy"]),
        ([QUIET, NOISY], END, ["noisy"]),
        ([NOISY, QUIET], 1, ["quiet"]),
        ([NOISY, QUIET], END, ["noisy"]),
        # The unbiased one makes less progress over N steps, but as much in 4 N.
        ([row("biased", bias=0.1, noise=1.0), row("unbiased", noise=1.5)], 4, ["unbiased"]),
        ([row("biased", bias=0.1, noise=1.0), row("unbiased", noise=3.0)], 4, ["biased"]),
        # No row is without a significant bias: the least counts.
        ([row("more", bias=0.5, noise=0.1), row("less", bias=0.3, noise=0.3)], END, ["less"]),
        ([row("more", bias=0.5, noise=0.1), row("less", bias=0.3, noise=3.0)], 1, ["more"]),
        # Too short a mean gradient makes no progress, however little its noise.
        ([row("none", bias=1.0, noise=1e-3, projection=0.0), NOISY], 1, ["noisy"]),
        ([row("none", bias=1.0, noise=1e-3, projection=0.0), NOISY], END, ["noisy"]),
        # At the end noise does not count, and the samples cannot tell unbiased rows apart.
        ([row("a", noise=1.0), row("b", noise=1.1), QUIET], END, ["a", "b"]),
        ([row("a", noise=1.0), row("b", noise=1.1), QUIET], 1, ["a"]),
        ([row("a", noise=1.0), row("b", noise=1.001), QUIET], 1, ["a", "b"]),
        # Of ties the first leads that costs up to 4 times the least; then comes the cheapest.
        ([NOISY, row("a"), row("b", noise=1.1)], END, ["a", "b", "noisy"]),
        ([row("a", milliseconds=5.0), row("b")], END, ["b", "a"]),
        ([row("a", milliseconds=3.0), row("b")], END, ["a", "b"]),
        ([row("a", noise=1.5), row("b", noise=1.1), row("c")], END, ["a", "c", "b"]),
        ([row("a"), row("short", noise=0.3, projection=0.1)], END, ["a", "short"]),
        # A bias that the noise can hide is not significant.
        ([row("a", bias=0.011, noise=1.0), row("b", noise=1.0)], END, ["a", "b"]),
        ([row("a", bias=0.05, noise=1.0), row("b", noise=1.0)], END, ["b"]),
        # Without any noise only rounding counts, and what is rounding is no bias.
        ([row("a", bias=1e-7, noise=0.0), row("b", bias=1e-3, noise=0.0)], END, ["a"]),
        ([row("a", bias=5e-6, noise=1e-5), row("b")], END, ["a", "b"]),
        # A mean gradient that goes the wrong way comes last, however little its noise.
        (
            [
                row("back", bias=1.003, noise=1e-3, projection=-0.002),
                row("a", bias=1.0, projection=0.1),
            ],
            END,
            ["a", "back"],
        ),
    ],
)
def test_the_rule(rows, steps, best):
    assert names(report(*rows).ties(steps)) == best
    assert names(report(*rows, steps=steps).ties()) == best
    assert report(*rows).best(steps).estimator == best[0]


def test_progress_is_the_decrease_of_a_round_loss():
    """Of |x|^2 / 2 at x = e, by a step of length c along the mean of N gradients of mean m."""
    e, m = torch.tensor([0.6, 0.0, 0.8]).double(), torch.tensor([0.5, 0.7, 1.3]).double()
    noise = 2.0
    made = row("made", bias=(m - e).norm().item(), noise=noise, projection=(m @ e).item())
    for steps in (1, 7, 100, END):
        variance = noise**2 / steps
        c = 1 / (1 + variance)
        left = (e - c * m).square().sum().item() + c**2 * variance
        assert report(made).expected_progress(made, steps) == pytest.approx(1 - left)
        unbiased = row("unbiased", noise=noise)
        assert report(unbiased).expected_progress(unbiased, steps) == pytest.approx(c)
    bias = (m - e).norm().item()
    assert report(made).expected_progress(made) == pytest.approx(1 - bias**2)


def test_the_progress_and_its_error_say_what_another_report_finds():
    """Rows measured on normal gradients, whose lengths vary by chance."""
    torch.manual_seed(0)
    unbiased = torch.ones(6).double()
    exact = ExactGradient(unbiased, 0.0, "")
    biased = torch.tensor([1.3, 0.4, 1.0, 1.0, 0.8, 1.0]).double()
    for mean, scale, steps in (
        (biased, 2, 1),
        (biased, 2, 30),
        (biased, 2, END),
        (unbiased, 0.2, 1),
    ):
        rule = Rule(math.sqrt(6), 50, steps)
        rows = [measured(exact, mean, torch.full((6,), scale), 50) for _ in range(60)]
        found = torch.tensor([rule.progress(each) for each in rows])
        claimed = torch.tensor([rule.error(each) for each in rows])
        assert 0.5 < claimed.mean() / found.std() < 2
        noise = scale**2 / steps
        c = 1 / (1 + noise)
        true = 2 * c * mean.sum() / 6 - c**2 * (mean.square().sum() / 6 + noise)
        assert abs(found.mean() - true) < 5 * found.std() / math.sqrt(60)


def measured(exact, mean, scales, number):
    """The row of normal gradients."""
    found = _Measured(exact)
    for _ in range(number):
        found.add(mean + scales * torch.randn(len(mean), dtype=torch.float64), 1.0)
    return found.row(RowSettings("made", None, None))


SPECTRA = {
    "one direction": torch.tensor([2.0]),
    "equal": torch.full((20,), 0.7),
    "uneven": torch.arange(1.0, 41).rsqrt(),
}


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("spectrum", slow_unless(lambda name: name != "equal", SPECTRA))
def test_a_bias_is_significant_if_noise_does_not_look_so(spectrum, sampled):
    """Without a bias in fewer than 1 of 100 cases, also where the exact gradient is sampled."""
    torch.manual_seed(0)
    scales, number, cases = SPECTRA[spectrum].double(), 40, 80
    e = torch.ones(len(scales)).double()
    variance = scales.square().sum().item() / number
    directions = scales.square().sum() ** 2 / scales.pow(4).sum()
    rule = Rule(e.norm().item(), number, END)
    rows, biased = [], []
    for _ in range(cases):
        exact = ExactGradient(e, 0.0, "")
        if sampled:
            moments = BlockedMoments()
            for _ in range(20):
                moments.add(e + scales * torch.randn(len(scales), dtype=torch.float64) / 3)
            error = math.sqrt(moments.variance / 20)
            exact = ExactGradient(moments.mean, error, "", moments.blocks)
        rows.append(measured(exact, e, scales, number))
        shift = 7 * math.sqrt(variance) * scales / scales.norm()
        biased.append(measured(exact, e + shift, scales, number))
    assert sum(map(rule.is_biased, rows)) <= 4  # 0.8 are expected at most
    assert sum(map(rule.is_biased, biased)) > 0.9 * cases
    found = torch.tensor([each.noise_directions for each in rows]).median()
    assert 0.7 < found / directions < 1.5


def test_two_blocks_know_one_direction():
    exact = ExactGradient(torch.ones(4).double(), 0.0, "")
    assert measured(exact, torch.ones(4), torch.ones(4), 2).noise_directions == 1


@pytest.mark.parametrize("steps", [0, -1, math.nan, "x"])
def test_bad_steps(steps):
    with pytest.raises((ValueError, TypeError), match=r"GradientReport.best: `steps` must be"):
        report(QUIET).best(steps)
