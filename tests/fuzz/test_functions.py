# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Random arguments of the public functions, of the schedules and of `SelectedComponent`."""

import math

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_gumbel import (
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    GeometricTemperature,
    LearnableTemperature,
    LearnedCurvature,
    LinearTemperature,
    SelectedComponent,
    gapped,
    gumbel_rao,
    harden,
    m_hot,
    mve,
    reinmax_rao,
    relax,
    unimix,
)
from tests.fuzz.cases import SHAPES, numbers
from tests.fuzz.checks import ERRORS, assert_named, bounded, unchanged

HOSTILE = [
    *(None, True, "1", [0.5], 0, 1, 3, -1, 10**400, 0.0, 0.5, -0.5, 1e-30, 1e30, 1e300),
    *(math.inf, -math.inf, math.nan, torch.tensor(0.5), torch.zeros(2, 0), torch.ones(2, 3).bool()),
    *(torch.ones(3, dtype=torch.cfloat), torch.arange(3), torch.tensor([math.nan, 0.5])),
]

# From a name to a function and to how many of its arguments are random.
FUNCTIONS = {
    "ConstantTemperature": (ConstantTemperature, 1),
    "ExponentialTemperature": (ExponentialTemperature, 4),
    "LinearTemperature": (LinearTemperature, 3),
    "GeometricTemperature": (GeometricTemperature, 3),
    "CosineTemperature": (CosineTemperature, 3),
    "LearnableTemperature": (LearnableTemperature, 1),
    "LearnedCurvature": (lambda *a: LearnedCurvature(a[0], step=a[1], ridge=a[2]), 3),
    "gapped": (gapped, 1),
    "gumbel_rao": (gumbel_rao, 1),
    "mve": (mve, 1),
    "reinmax_rao": (reinmax_rao, 1),
    "unimix": (unimix, 2),
    "harden": (harden, 1),
    "m_hot": (m_hot, 1),
    "relax": (lambda a, b: relax(dist.OneHotCategorical(torch.ones(2, 3)), a, estimator=b), 2),
    "SelectedComponent": (SelectedComponent, 2),
}
COMPONENTS = [
    dist.Normal(torch.tensor([-1.0, 0.0, 1e30]), 0.5),
    dist.Uniform(torch.zeros(2, 3), torch.tensor([1.0, 2.0, 3.0])),
    dist.Poisson(torch.tensor([0.0, 1.0, 2.0])),
    dist.Normal(0.0, 1.0),
]


def answers_of(made):
    """Tensors that a result is or gives."""
    if isinstance(made, Tensor):
        return [made]
    if isinstance(made, SelectedComponent):
        value = made.sample()
        return [value, made.log_prob(value), made.mean, made.variance]
    return [made()] if hasattr(made, "steps") or isinstance(made, LearnableTemperature) else []


def holds(name, arguments):
    """An answer without NaN, or an error with a name."""
    function, number = FUNCTIONS[name]
    given = arguments[:number]
    tensors = [each for each in given if isinstance(each, Tensor)]
    with bounded(), unchanged(*tensors):
        try:
            answers = answers_of(function(*given))
        except ERRORS as error:
            return assert_named(error)
    if not any(each.isnan().any() for each in tensors if each.is_floating_point()):
        assert not any(answer.isnan().any() for answer in answers)
    return None


@st.composite
def arguments_of(draw, name):
    anything = st.sampled_from(HOSTILE)
    tensor = st.sampled_from(SHAPES).flatmap(lambda shape: numbers("logits", (*shape, 3)))
    first = anything | tensor.map(lambda some: some.given(torch.float32)[0])
    arguments = [draw(first), *(draw(anything) for _ in range(3))]
    if name == "SelectedComponent":
        arguments[1] = draw(st.sampled_from(COMPONENTS) | anything)
    return arguments


def run(name, **options):
    @given(arguments_of(name))
    def every_case(arguments):
        holds(name, arguments)

    (settings(**options)(every_case) if options else every_case)()


@pytest.mark.cpu(reason="tensors of the table are made when it is")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_some_arguments(name):
    run(name)


@pytest.mark.slow
@pytest.mark.cpu(reason="as above")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_many_arguments(name):
    run(name, max_examples=100)
