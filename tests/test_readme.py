# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The README's example and the examples in docstrings run and do what they say."""

import doctest
import functools
import importlib
import re
import statistics
from pathlib import Path

import pyro
import pytest
import torch

import pyro_gumbel

ROOT = Path(__file__).parent.parent


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def readme_example():
    (block,) = python_blocks(ROOT / "README.md")
    return block


def test_the_example_has_twelve_lines():
    assert len([line for line in readme_example().splitlines() if line.strip()]) <= 12


SELECTED = "SelectedComponent(z, dist.Normal(means, scales))"
LIKELIHOODS = {"as it is": SELECTED, "curved": "dist.Normal(z @ means, z @ scales)"}


def stated_errors(likelihood):
    """What the README says of the errors of its example: the largest, and the median over seeds."""
    text = (ROOT / "README.md").read_text()
    first, second = re.findall(r"([\d.]+\d)\s+or less, and ([\d.]+\d)", text)
    return [float(number) for number in (first if likelihood == "as it is" else second)]


@functools.cache
def example_after_training(likelihood, seed):
    """The probabilities that the example finds, the exact ones by enumeration, and the losses."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    assert SELECTED in readme_example()
    scope = {}
    code = readme_example().replace(SELECTED, LIKELIHOODS[likelihood])
    exec(compile(code, "README.md", "exec"), scope)
    x = torch.tensor([[-2.1], [0.1], [1.8]])
    log_joint = torch.distributions.Normal(scope["means"], scope["scales"]).log_prob(x)
    exact = log_joint.softmax(-1)  # of equal prior probabilities
    return scope["guide"].distribution("z").probs.detach(), exact, scope["losses"]


def error_of_the_example(likelihood, seed):
    """The largest of the nine probabilities' errors."""
    found, exact, _ = example_after_training(likelihood, seed)
    return (found - exact).abs().max().item()


def test_the_example_finds_the_clusters():
    found, _, losses = example_after_training("as it is", 0)
    assert found.argmax(-1).tolist() == [0, 1, 2]
    assert sum(losses[-50:]) < sum(losses[:50])


def test_the_example_is_as_near_to_the_posterior_as_it_says():
    most, _ = stated_errors("as it is")
    assert most <= 0.02
    assert error_of_the_example("as it is", 0) <= most


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_errors_of_the_example_over_seeds(likelihood):
    most, median = stated_errors(likelihood)
    errors = [error_of_the_example(likelihood, seed) for seed in range(20)]
    assert max(errors) <= most
    assert statistics.median(errors) == pytest.approx(median, abs=0.005)


def test_the_example_of_relaxing_finds_the_clusters():
    scope = {}
    (block,) = python_blocks(ROOT / "docs" / "relaxing.md")
    exec(compile(block, "relaxing.md", "exec"), scope)
    assert scope["guide"].distribution("z").probs.argmax(-1).tolist() == [0, 1, 2]


def test_the_example_of_a_report_prints_its_table(capsys):
    (block,) = python_blocks(ROOT / "docs" / "estimators.md")
    exec(compile(block.replace("(x,),", "(x,), num_samples=5,"), "estimators.md", "exec"), {})
    output = capsys.readouterr().out
    assert "by enumeration of 27 states" in output
    assert len(output.splitlines()) == 3 + 10


def test_every_linked_file_exists():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), target


def modules_with_examples():
    for path in sorted((ROOT / "pyro_gumbel").rglob("*.py")):
        if ">>>" in path.read_text():
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_docstring_examples(name):
    module = importlib.import_module(name)
    names = {name: getattr(pyro_gumbel, name) for name in pyro_gumbel.__all__}
    result = doctest.testmod(module, extraglobs={**names, "pyro": pyro, "torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


def test_public_names_are_sorted_and_there():
    assert sorted(pyro_gumbel.__all__) == pyro_gumbel.__all__
    assert all(hasattr(pyro_gumbel, name) for name in pyro_gumbel.__all__)
