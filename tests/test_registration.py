# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Our names in Pyro's module, and Pyro's module as it was."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_gumbel
from pyro_gumbel import register, unregister

LAWS = [
    name
    for name in pyro_gumbel.__all__
    if isinstance(getattr(pyro_gumbel, name), type)
    and issubclass(getattr(pyro_gumbel, name), dist.Distribution)
]
BUILT_IN = {
    "RelaxedBernoulli": "RelaxedBernoulli",
    "RelaxedBernoulliStraightThrough": "BernoulliStraightThrough",
    "RelaxedOneHotCategorical": "RelaxedCategorical",
    "RelaxedOneHotCategoricalStraightThrough": "CategoricalStraightThrough",
}


@pytest.fixture(autouse=True)
def _as_it_was():
    names, listed = dict(vars(dist)), list(dist.__all__)
    yield
    unregister()
    assert vars(dist) == names
    assert dist.__all__ == listed


def test_new_names_are_added_and_old_ones_stay():
    before = dict(vars(dist))
    register()
    for name in LAWS:
        if name in before:
            assert getattr(dist, name) is before[name]
        else:
            assert getattr(dist, name) is getattr(pyro_gumbel, name)
            assert dist.__all__.count(name) == 1
    assert len(LAWS) == 13
    assert [name for name in LAWS if name in before] == ["RelaxedBernoulli"]


def test_twice_is_once():
    register()
    register()
    assert dist.__all__.count("RelaxedCategorical") == 1
    unregister()
    unregister()
    assert not hasattr(dist, "RelaxedCategorical")


def test_the_built_in_ones_give_way_where_they_are_told_to():
    register(replace=True)
    for name, ours in BUILT_IN.items():
        assert getattr(dist, name) is getattr(pyro_gumbel, ours)

    def model():  # written for Pyro
        logits = torch.zeros(3)
        pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.01), logits=logits))

    assert poutine.trace(model).get_trace().log_prob_sum().isfinite()
    register()  # gives nothing back
    assert dist.RelaxedOneHotCategorical is pyro_gumbel.RelaxedCategorical


def test_a_name_of_somebody_else_is_left_alone():
    dist.Subset = mark = object()
    try:
        register()
        assert dist.Subset is mark
        unregister()
        assert dist.Subset is mark
    finally:
        del dist.Subset


def test_a_built_in_name_that_is_taken_again_is_left_alone():
    before, dist.RelaxedOneHotCategorical = dist.RelaxedOneHotCategorical, object()
    try:
        mark = dist.RelaxedOneHotCategorical
        unregister()
        assert dist.RelaxedOneHotCategorical is mark
    finally:
        dist.RelaxedOneHotCategorical = before
