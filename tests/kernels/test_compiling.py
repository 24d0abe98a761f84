# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws and densities by programs of `torch.compile`, against those without."""

import os
import subprocess
import sys

import pytest
import torch

from pyro_gumbel import RelaxedCategorical, RelaxedPlackettLuce, compiled
from pyro_gumbel.kernels import compiling
from pyro_gumbel.ops.noise import MANY
from tests.common import RANKINGS, RELAXED, STRAIGHT_THROUGH, build, param_shape

pytestmark = pytest.mark.cpu(reason="what is compiled on the CPU")

K = 64  # from 32 on the noise lies alike, compiled or not
CLASSES = [
    cls
    for cls in [*RELAXED, *STRAIGHT_THROUGH]
    if cls not in RANKINGS and cls is not RelaxedCategorical
]


@pytest.fixture
def made(monkeypatch):
    """The names of the functions that have been compiled for."""
    names = []
    compile_ = compiling._compile

    def noting(function, kind):
        names.append(function.__name__)
        return compile_(function, kind)

    monkeypatch.setattr(compiling, "_compile", noting)
    torch.compiler.reset()
    return names


def results(cls, rows=MANY // K):
    """A draw, the log_prob of it and of a copy of it, and their gradients."""
    torch.manual_seed(0)
    logits = torch.randn((rows, *param_shape(cls, K)), requires_grad=True)
    temperature = torch.tensor(0.5, requires_grad=True)
    d = build(cls, temperature, logits=logits, validate_args=False)  # some bits are saturated
    value = d.rsample((1 if logits.dim() > 1 else K,))
    found, total = [value.detach()], (value * torch.randn(value.shape)).sum()
    if cls in RELAXED:
        copy = value.detach().clone()
        found += [d.log_prob(value), d.log_prob(copy)]
        total = total + sum(score.sum() for score in found[1:])
    return [*found, *torch.autograd.grad(total, [logits, temperature])]


def assert_same_results(cls):
    with compiled():
        found = results(cls)
    for one, other in zip(found, results(cls), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_program_does_the_same(made):
    assert_same_results(RelaxedCategorical)
    assert {"draw", "pull_draw", "log_density", "pull_log_density"} <= set(made)


@pytest.mark.slow
@pytest.mark.parametrize("cls", CLASSES)
def test_a_program_of_each_class_does_the_same(cls, made):
    assert_same_results(cls)
    assert ("pull_straight_through" if cls in STRAIGHT_THROUGH else "pull_log_density") in made


def test_what_is_not_compiled(made):
    """Few draws, and rankings."""
    with compiled():
        results(RelaxedCategorical, 4)
        RelaxedPlackettLuce(0.5, 2, logits=torch.zeros(MANY // 4, 4)).rsample()
    assert not {*made} - {"_sin"}  # which is compiled to see whether it works


def test_it_is_undone(made):
    def function(x):
        return x.sin()

    assert compiling.program(function, "any") is function
    with compiled():
        assert compiling.program(function, "any") is not function
        with compiled():
            pass
        assert compiling.program(function, "any") is not function
    with pytest.raises(KeyError), compiled():
        raise KeyError
    assert compiling.program(function, "any") is function
    assert not compiling.is_on()


SCRIPT = """
import sys, warnings
import torch
import pyro_gumbel
assert "torch._dynamo" not in sys.modules  # at import nothing is compiled, nor got ready for it
from torch.distributions import Distribution

def draw():
    torch.manual_seed(0)
    return pyro_gumbel.RelaxedCategorical(0.5, logits=torch.zeros(2000, 50)).rsample()

Distribution.set_default_validate_args({default})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with pyro_gumbel.compiled():
        assert pyro_gumbel.kernels.compiling.is_on() is {works}
        torch.testing.assert_close(draw(), draw())
        value = draw()
assert Distribution._validate_args is {default}
torch.testing.assert_close(value, draw())
own = [str(w.message) for w in caught if w.category is RuntimeWarning]
print(*own)
"""


def run(default, works, **environment):
    """What the script prints in a process of its own."""
    script = SCRIPT.format(default=default, works=works)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("default", [True, False])
def test_validation_is_as_it_was(default):
    assert run(default, works=True) == ""


@pytest.mark.slow
def test_without_a_compiler(tmp_path):
    """Nothing is compiled, and a warning says why and what to do."""
    printed = run(True, works=False, CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert printed.startswith("pyro_gumbel.compiled: goes on without compiling")
    assert "no-such-compiler" in printed
    assert "install a C++ compiler" in printed
