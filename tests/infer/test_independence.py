# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Plates whose elements are independent, and plates whose elements are not."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gumbel import BernoulliStraightThrough
from pyro_gumbel.infer.exact_gradient import by_enumeration
from pyro_gumbel.infer.objective import Objective
from tests.infer.models import DATA, T, agree, parameter, plated, plated_guide, shared, shared_guide


def meeting():
    """A binary site outside the plate depends on all its elements, and all observations on it."""
    points = pyro.plate("points", 4)
    with points:
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=torch.zeros(4)))
    w = pyro.sample("w", BernoulliStraightThrough(T, logits=z.sum() - 2))
    with points:
        pyro.sample("x", dist.Normal(z + 3 * w, 0.5), obs=DATA)


def meeting_guide():
    with pyro.plate("points", 4):
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=parameter("logits", 4)))
    pyro.sample("w", BernoulliStraightThrough(T, logits=2 * z.sum() - 4))


def normalised():
    """The elements of the plate are normalised over it."""
    with pyro.plate("points", 4):
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=torch.zeros(4)))
        pyro.sample("x", dist.Normal(3 * (z - z.mean()), 0.5), obs=DATA)


def normalised_guide():
    with pyro.plate("points", 4):
        pyro.sample("z", BernoulliStraightThrough(T, logits=parameter("logits", 4)))


@pytest.mark.parametrize(("model", "guide"), [
    (meeting, meeting_guide), (normalised, normalised_guide),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*possibly invalid dependency:RuntimeWarning")
def test_elements_that_are_not_independent_have_one_cost(model, guide):
    pyro.enable_validation(False)
    objective = Objective(model, guide)
    assert objective.independent == set()
    exact = by_enumeration(objective, 2048)
    assert exact.how.startswith("enumeration of")
    agree(objective, exact.gradient)
    assert by_enumeration(Objective(model, guide), 10) is None


def test_independent_elements_are_found_so():
    assert Objective(plated, plated_guide).independent == {("z", -1)}
    assert Objective(shared, shared_guide).independent == {("w", -1)}


def test_data_in_another_plate_are_outside():
    """In a parallel enumeration the sum over the plate would have one term only."""
    n = torch.tensor([4.0, 3.0])

    def model():
        with pyro.plate("bits", 12):
            z = pyro.sample("z", BernoulliStraightThrough(T, torch.full((12,), 1 / 12)))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=n)

    def guide():
        logits = pyro.param("logits", torch.full((12,), -math.log(11.0)))
        with pyro.plate("bits", 12):
            pyro.sample("z", BernoulliStraightThrough(T, logits=logits))

    pyro.enable_validation(False)
    assert by_enumeration(Objective(model, guide), 2048) is None
