# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The parameters of a guide: their names, and their `state_dict`."""

import copy
import io
from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyro_gumbel import AutoRelaxed, LearnableTemperature, relaxed
from pyro_gumbel.distributions.wrappers import innermost
from tests.common import random_state, set_random_state
from tests.infer.sites import DISTRIBUTIONS, GRID, PLATES, PROBS, T, chain, with_guide

# A `state_dict`.


def test_a_state_dict_goes_on_where_it_was():
    """A run that is stopped and resumed in a new guide ends bit for bit as one without a stop."""
    model = relaxed(chain, T)

    def run(steps, saved=None):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoRelaxed(model, T)
        guide()
        if saved is not None:
            guide.load_state_dict(torch.load(saved[0]))
            pyro.set_rng_seed(0)
            set_random_state(saved[1])
        optimiser = torch.optim.SGD(guide.parameters(), 0.1)
        for _ in range(steps):
            optimiser.zero_grad()
            Trace_ELBO().differentiable_loss(model, guide).backward()
            optimiser.step()
        file = io.BytesIO()
        torch.save(guide.state_dict(), file)
        file.seek(0)
        return guide.logits.z.detach(), (file, random_state())

    whole, _ = run(6)
    _, saved = run(3)
    resumed, _ = run(3, saved)
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize(("hard", "family", "plates"), GRID)
def test_a_state_dict_may_come_before_the_first_run(hard, family, plates):
    """The result is that of a run and then the state; an optimiser may be made in between."""
    model, guide = with_guide(hard, family, plates)
    state = copy.deepcopy(guide.state_dict())
    for in_another_process in (True, False):
        if in_another_process:
            pyro.clear_param_store()
        fresh = AutoRelaxed(model, LearnableTemperature(2.0), hard=hard)
        fresh.load_state_dict(state)
        torch.testing.assert_close(fresh.state_dict(), state, rtol=0, atol=0)
        optimiser = torch.optim.SGD(fresh.parameters(), 1.0)
        trace = poutine.trace(fresh).get_trace()
        assert trace.nodes["z"]["value"].shape == guide()["z"].shape
        torch.testing.assert_close(fresh.state_dict(), state, rtol=0, atol=0)
        assert (
            innermost(fresh.distribution("z")).temperature
            == innermost(guide.distribution("z")).temperature
        )
        if in_another_process:
            optimiser.param_groups[0]["params"][0].grad = torch.ones(fresh.logits.z.shape)
            optimiser.step()
            expected = state["logits.z_unconstrained"] - 1
            torch.testing.assert_close(fresh.logits.z.detach(), expected)


def test_the_state_of_a_subsampled_guide_is_found_by_index():
    model, guide = with_guide(True, "bernoulli", "a subsampled plate")
    with torch.no_grad():
        guide.logits.z.copy_(100.0 * torch.tensor([[1, -1], [-1, 1]] * 3))
    fresh = AutoRelaxed(model, T)
    state = copy.deepcopy(guide.state_dict())
    pyro.clear_param_store()
    fresh.load_state_dict({"logits.z_unconstrained": state["logits.z_unconstrained"]})
    for _ in range(3):
        trace = poutine.trace(fresh).get_trace()
        index = trace.nodes["plate-1"]["value"]
        assert torch.equal(trace.nodes["z"]["value"][:, 0], (index % 2 == 0).float())


def test_a_state_dict_of_another_model_is_refused_in_the_first_run():
    states = {
        "another shape": {"logits.z_unconstrained": torch.zeros(3)},
        "another site": {"logits.w_unconstrained": torch.zeros(4)},
        "a site more": {"logits.z_unconstrained": torch.zeros(4), "logits.w_unconstrained":
                        torch.zeros(4)},
    }  # fmt: skip
    guide = AutoRelaxed(chain, T)
    for state in states.values():
        guide.load_state_dict(state)
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"must have logits of z \(4,\), got .*strict=False"
            ):
                guide()
    for wrong in ("logits.z", "logits.type_unconstrained", "logits._unconstrained", "other"):
        with pytest.raises(RuntimeError, match=f"Unexpected key.*{wrong}"):
            AutoRelaxed(chain, T).load_state_dict({wrong: torch.zeros(4)})
    guide.load_state_dict({"logits.z_unconstrained": torch.arange(4.0)})
    guide()
    assert guide.logits.z.tolist() == [0.0, 1.0, 2.0, 3.0]
    pyro.clear_param_store()
    guide = AutoRelaxed(chain, T)
    guide.load_state_dict({})  # of a guide that has not run
    guide()
    torch.testing.assert_close(guide.distribution("z").probs, PROBS)


def test_the_state_of_a_whole_objective_may_come_first():
    model, guide = with_guide(True, "categorical", "plates")
    state = copy.deepcopy(Trace_ELBO()(model, guide).state_dict())
    pyro.clear_param_store()
    fresh = AutoRelaxed(model, LearnableTemperature(2.0))
    objective = Trace_ELBO()(model, fresh)
    objective.load_state_dict(state)
    assert objective().isfinite()
    torch.testing.assert_close(objective.state_dict(), state, rtol=0, atol=0)


def test_a_state_dict_comes_in_the_dtype_of_the_model():
    guide = AutoRelaxed(chain, T)
    guide.load_state_dict({"logits.z_unconstrained": torch.arange(4.0, dtype=torch.float64)})
    assert guide()["z"].dtype == torch.float32
    assert guide.distribution("z").logits.dtype == torch.float32


# Names.


NAMES = [
    "type", "half", "eval", "training", "forward", "logits", "parameters", "a", "a.b", "a.b.c",
    "a_b_site", "b.half", "a_unconstrained", "1a", "a b", "a-b", "z[0]", "__class__",
    "__deepcopy__", "_parameters", "_pyro_name", "of_site", "", ".", "e.", "ä",
]  # fmt: skip


def sites_named(names, family="bernoulli", plates="no plate"):
    """Sites of these names, with a prior each."""
    sizes, subsample_size = PLATES[plates]

    def model():
        with ExitStack() as stack:
            for i, size in enumerate(sizes):
                stack.enter_context(pyro.plate(f"plate{i}", size, subsample_size))
            for i, name in enumerate(names):
                pyro.sample(name, DISTRIBUTIONS[family](PROBS.log() * (i / len(names))))

    return model


SOME_NAMES = ["type", "a", "a.b"]


@pytest.mark.parametrize(
    ("hard", "family", "plates", "names"),
    [(True, "bernoulli", "no plate", NAMES), *((*each, SOME_NAMES) for each in GRID)],
)
def test_a_site_may_have_any_name(hard, family, plates, names):
    model = relaxed(sites_named(names, family, plates), T, hard=hard)
    guide = AutoRelaxed(model, T, hard=hard)
    assert list(guide()) == names
    assert len(list(guide.parameters())) == len(names)
    fresh = AutoRelaxed(model, T, hard=hard)
    fresh.load_state_dict(guide.state_dict())
    fresh()
    for i, name in enumerate(names):
        prior = innermost(DISTRIBUTIONS[family](PROBS.log() * (i / len(names)))).probs
        for each in (guide, copy.deepcopy(guide), fresh):
            distribution = innermost(each.distribution(name))
            torch.testing.assert_close(distribution.probs, prior.expand(distribution.probs.shape))
    assert list(guide.median()) == list(guide.quantiles([0.5])) == names


def test_each_of_the_names_is_trained():
    model = relaxed(sites_named(NAMES), T)
    guide = AutoRelaxed(model, T)
    guide()
    before = {name: guide.distribution(name).base_dist.probs.detach() for name in NAMES}
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO()).step()
    for name in NAMES:
        moved = guide.distribution(name).base_dist.probs.logit() - before[name].logit()
        torch.testing.assert_close(moved, torch.full((2,), 0.9), atol=1e-4, rtol=0)


def test_a_site_has_its_own_name_where_that_is_free():
    guide = AutoRelaxed(relaxed(sites_named(NAMES), T), T)
    guide()
    paths = {name.removesuffix("_unconstrained") for name in guide.logits.state_dict()}
    assert {"a", "1a", "a b", "logits", "ä"} <= paths
    assert {"type_site", "a_b_site", "a_b_site_site", "b_half_site"} <= paths
    model = relaxed(lambda: pyro.sample("a.b", dist.Bernoulli(0.5)), T)
    guide = AutoRelaxed(model, T)
    guide()
    assert guide.logits.a.b.shape == ()
