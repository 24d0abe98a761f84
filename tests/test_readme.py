# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The README's example and the examples in docstrings run and do what they say."""

import doctest
import re
from pathlib import Path

import pyro
import pytest
import torch

import pyro_gumbel
from pyro_gumbel import (
    diagnostics,
    discrete,
    estimators,
    guides,
    hard,
    registration,
    relaxing,
    reparam,
    soft,
    temperature,
)

ROOT = Path(__file__).parent.parent


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def readme_example():
    (block,) = python_blocks(ROOT / "README.md")
    return block


def test_the_example_has_twelve_lines():
    assert len([line for line in readme_example().splitlines() if line.strip()]) <= 12


def test_the_example_finds_the_clusters():
    scope = {}
    exec(compile(readme_example(), "README.md", "exec"), scope)
    assert scope["guide"].law("z").probs.argmax(-1).tolist() == [0, 1, 2]
    losses = scope["losses"]
    assert sum(losses[-50:]) < sum(losses[:50])


def test_the_example_of_relaxing_finds_the_clusters():
    scope = {}
    (block,) = python_blocks(ROOT / "docs" / "relaxing.md")
    exec(compile(block, "relaxing.md", "exec"), scope)
    assert scope["guide"].law("z").probs.argmax(-1).tolist() == [0, 1, 2]


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


@pytest.mark.parametrize("module", [
    diagnostics, discrete, estimators, guides, hard, registration, relaxing, reparam, soft,
    temperature,
])  # fmt: skip
def test_docstring_examples(module):
    names = {name: getattr(pyro_gumbel, name) for name in pyro_gumbel.__all__}
    result = doctest.testmod(module, extraglobs={**names, "pyro": pyro, "torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


def test_public_names_are_sorted_and_there():
    assert sorted(pyro_gumbel.__all__) == pyro_gumbel.__all__
    assert all(hasattr(pyro_gumbel, name) for name in pyro_gumbel.__all__)
