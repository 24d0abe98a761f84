# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Our names in Pyro's module, and Pyro's module as it was."""

import copy
import importlib
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import relaxed_straight_through
from pyro.distributions import torch as relaxed_soft

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


HOMES = (dist, relaxed_soft, relaxed_straight_through)
BUILT_IN_PLACES = [(home, name) for home in HOMES for name in BUILT_IN if hasattr(home, name)]


@pytest.fixture(autouse=True)
def _as_it_was():
    names, listed = [dict(vars(home)) for home in HOMES], list(dist.__all__)
    yield
    unregister()
    for home, before in zip(HOMES, names, strict=True):
        assert vars(home) == before
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
    assert len(LAWS) == 25
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


def test_every_place_that_a_program_imports_from_has_ours():
    """Also of the classes that Pyro's straight-through module imports for itself."""
    assert len(BUILT_IN_PLACES) == 10
    register()  # alone replaces nothing
    for home, name in BUILT_IN_PLACES:
        assert getattr(home, name).__module__.startswith("pyro.distributions")
    for _ in range(2):  # twice is once
        register(replace=True)
        for home, name in BUILT_IN_PLACES:
            assert getattr(home, name) is getattr(pyro_gumbel, BUILT_IN[name])
    unregister()
    for home, name in BUILT_IN_PLACES:
        assert getattr(home, name).__module__.startswith("pyro.distributions")
        assert not issubclass(getattr(home, name), pyro_gumbel.distributions.relaxation.Relaxed)


def test_modules_imported_after_the_call_get_ours(tmp_path, monkeypatch):
    """And those imported before keep Pyro's, as the docstring says."""
    monkeypatch.syspath_prepend(tmp_path)
    lines = [f"from {home.__name__} import {name} as _{i}"
             for i, (home, name) in enumerate(BUILT_IN_PLACES)]  # fmt: skip
    for program in ("imported_before", "imported_after"):
        (tmp_path / f"{program}.py").write_text("\n".join(lines))
    before = importlib.import_module("imported_before")
    register(replace=True)
    after = importlib.import_module("imported_after")
    for i, (_, name) in enumerate(BUILT_IN_PLACES):
        assert getattr(after, f"_{i}") is getattr(pyro_gumbel, BUILT_IN[name])
        assert getattr(before, f"_{i}").__module__.startswith("pyro.distributions")


def test_what_pyro_made_before_goes_on_working():
    """But for its pickles, which look the class up by its name."""
    tau, logits = torch.tensor(0.5), torch.zeros(3)
    distributions = [getattr(dist, name)(tau, logits=logits) for name in BUILT_IN]
    register(replace=True)
    for d in (d.expand((2, *d.batch_shape)) for d in distributions):
        assert d.log_prob(d.rsample()).isfinite().all()
        assert type(copy.deepcopy(d)) is type(d)
        with pytest.raises(pickle.PicklingError, match="not the same object"):
            pickle.dumps(d)
    unregister()
    for d in distributions:
        assert type(pickle.loads(pickle.dumps(d))) is type(d)


def test_ours_can_be_pickled_before_and_after_the_call():
    d = pyro_gumbel.RelaxedBernoulli(0.5, logits=torch.zeros(3))
    for replace in (False, True):
        register(replace=replace)
        assert type(pickle.loads(pickle.dumps(d))) is pyro_gumbel.RelaxedBernoulli


def test_a_name_of_somebody_else_is_left_alone():
    dist.Subset = mark = object()
    try:
        register()
        assert dist.Subset is mark
        unregister()
        assert dist.Subset is mark
    finally:
        del dist.Subset


@pytest.mark.parametrize("home", [dist, relaxed_soft, relaxed_straight_through])
def test_a_built_in_name_that_somebody_else_has_taken_is_left_alone(home, monkeypatch):
    mark = object()
    monkeypatch.setattr(home, "RelaxedOneHotCategorical", mark)
    register(replace=True)
    assert home.RelaxedOneHotCategorical is mark
    unregister()
    assert home.RelaxedOneHotCategorical is mark


def test_a_built_in_name_that_is_taken_again_is_left_alone():
    before, dist.RelaxedOneHotCategorical = dist.RelaxedOneHotCategorical, object()
    try:
        mark = dist.RelaxedOneHotCategorical
        unregister()
        assert dist.RelaxedOneHotCategorical is mark
    finally:
        dist.RelaxedOneHotCategorical = before
