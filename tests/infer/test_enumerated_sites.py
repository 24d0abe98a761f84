# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Sites marked `infer={"enumerate": ...}`: left to Pyro, or drawn where `sites` names them."""

import itertools
import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)

from pyro_gumbel import AutoRelaxed, IndexStraightThrough, relaxed

START = torch.tensor([0.5, 0.3, 0.2])
TABLE = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
LOCS = torch.tensor([-1.0, 0.5, 2.0])
DATA = torch.tensor([0.3, -1.2, 1.7, 0.9])


def chains(first="parallel", second="parallel", size=None):
    """Two states for each datum, with their marks."""
    with pyro.plate("data", len(DATA), size) as index:
        z = pyro.sample("z", dist.Categorical(START), infer={"enumerate": first})
        w = pyro.sample("w", dist.Categorical(TABLE[z]), infer={"enumerate": second})
        pyro.sample("x", dist.Normal(LOCS[w], 1.0), obs=DATA[index])


def marks(trace):
    return {name: trace.nodes[name]["infer"].get("enumerate") for name in "zw"}


@pytest.mark.parametrize("mark", ["parallel", "sequential"])
def test_a_named_site_loses_its_mark(mark):
    model = partial(chains, mark, mark)
    handled = relaxed(model, sites=["z"])
    for _ in range(2):
        trace = poutine.trace(handled).get_trace()
        assert isinstance(trace.nodes["z"]["fn"], IndexStraightThrough)
        assert not isinstance(trace.nodes["w"]["fn"], IndexStraightThrough)
        assert marks(trace) == {"z": None, "w": mark}
        assert "enumerate" not in trace.nodes["z"]["infer"]
    assert marks(poutine.trace(relaxed(model)).get_trace()) == {"z": mark, "w": mark}
    # a handler outside has the last word
    assert marks(poutine.trace(config_enumerate(handled)).get_trace())["z"] == "parallel"


def test_the_mark_of_another_trace_stays():
    trace = poutine.trace(chains).get_trace()
    poutine.trace(relaxed(poutine.replay(chains, trace=trace), sites=["z", "w"])).get_trace()
    assert marks(trace) == {"z": "parallel", "w": "parallel"}


def exact_elbo(logits):
    """Of a guide of z alone; w is summed out."""
    log_q = logits.log_softmax(-1)
    likelihood = dist.Normal(LOCS, 1.0).log_prob(DATA[:, None]).exp()
    log_p = START.log() + (likelihood @ TABLE.T).log()
    return (log_q.exp() * (log_p - log_q)).sum()


HOW = {
    "named in the guide": lambda: (chains, AutoRelaxed(chains, sites=["z"])),
    "named in both": lambda: (
        model := relaxed(chains, sites=["z"]),
        AutoRelaxed(model, sites=["z"]),
    ),
    "named in the model": lambda: (
        model := relaxed(chains, sites=["z"]),
        AutoRelaxed(model),
    ),
}


@pytest.mark.parametrize("how", HOW)
def test_one_site_is_drawn_and_the_other_summed_out(how):
    """The guide's site enumerated, the ELBO is exact."""
    model, guide = HOW[how]()
    assert list(guide()) == ["z"]
    assert marks_of(guide) == {"z": None}
    logits = torch.randn(4, 3)
    with torch.no_grad():
        guide.logits.z.copy_(logits)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    assert -elbo.loss(model, config_enumerate(guide)) == pytest.approx(exact_elbo(logits).item())
    drawn = TraceEnum_ELBO(
        max_plate_nesting=1,
        num_particles=20_000,
        vectorize_particles=True,
    )
    assert -drawn.loss(model, guide) == pytest.approx(exact_elbo(logits).item(), abs=0.05)
    drawn.loss_and_grads(model, guide)
    assert guide.logits.z_unconstrained.grad.any(-1).all()


def marks_of(guide):
    sites = poutine.trace(guide).get_trace().iter_stochastic_nodes()
    return {name: site["infer"].get("enumerate") for name, site in sites if name != "data"}


OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO,
    "looped": partial(Trace_ELBO, num_particles=3),
    "vectorised": partial(
        Trace_ELBO, num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "TraceEnum_ELBO": partial(
        TraceEnum_ELBO, max_plate_nesting=1, strict_enumeration_warning=False
    ),
    "TraceEnum_ELBO, vectorised": partial(
        TraceEnum_ELBO,
        max_plate_nesting=1,
        strict_enumeration_warning=False,
        num_particles=3,
        vectorize_particles=True,
    ),
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "RenyiELBO": partial(RenyiELBO, num_particles=2),
}


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_mark_of_a_drawn_site_changes_nothing(objective, size):
    """The host does not enumerate in the model what the guide has drawn."""
    found = []
    for mark in (None, "parallel", "sequential"):
        pyro.clear_param_store()
        model = partial(chains, mark, mark, size)
        pyro.set_rng_seed(0)
        guide = AutoRelaxed(model, sites=["z", "w"])
        guide()
        loss = OBJECTIVES[objective]().loss_and_grads(model, guide)
        gradients = [parameter.grad for parameter in guide.parameters()]
        found.append([torch.as_tensor(loss, dtype=torch.float32), *gradients])
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, same)
    assert all(each.any() for each in found[0])


@pytest.mark.parametrize("handled", [chains, relaxed(chains)])
def test_a_marked_model_is_summed_out_as_without_us(handled):
    def guide():
        pass

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    likelihood = dist.Normal(LOCS, 1.0).log_prob(DATA[:, None]).exp()
    expected = -(likelihood @ (START @ TABLE)).log().sum().item()
    assert elbo.loss(handled, guide) == pytest.approx(expected)


# Errors.


def test_a_model_with_marked_sites_alone_says_what_to_write():
    """Both lines work as they are printed."""
    for model in (chains, relaxed(chains)):
        with pytest.raises(ValueError, match="site that it does not enumerate") as raised:
            AutoRelaxed(model)()
        text = str(raised.value)
        (first,) = re.findall(r"write (AutoRelaxed\(.*?\)),", text)
        (second,) = re.findall(r"or (model = .*) for all sites$", text)
        guides = [eval(first)]
        names = {"poutine": poutine, "model": model}
        exec(second, names)
        guides.append(AutoRelaxed(names["model"]))
        for guide in guides:
            assert list(guide()) == ["z", "w"]
            assert Trace_ELBO().loss(guide.model, guide) > 0


def test_a_model_that_must_be_relaxed_says_how():
    def model():
        pyro.sample("n", dist.Binomial(5, 0.3), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.OneHotCategorical(START), infer={"enumerate": "parallel"})

    with pytest.raises(
        ValueError, match=r'write model = relaxed\(model, sites=\["n", ...\]\), then'
    ):
        AutoRelaxed(model, sites=["n"])()
    handled = relaxed(model, sites=["n"])
    assert list(AutoRelaxed(handled)()) == ["n"]
    with pytest.raises(ValueError, match=r'temperature, hard=False, sites=\["z", ...\]\), then'):
        AutoRelaxed(model, 0.5, hard=False, sites=["z"])()
    soft = relaxed(model, 0.5, hard=False, sites=["z"])
    assert list(AutoRelaxed(soft, 0.5, hard=False)()) == ["z"]


def unlike(**keywords):
    def model():
        pyro.sample("z", dist.Bernoulli(0.5), **keywords)
        pyro.sample("n", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Bernoulli(0.5))

    return model


OWNERS = {"relaxed": relaxed, "AutoRelaxed": AutoRelaxed}


@pytest.mark.parametrize("owner", OWNERS)
def test_both_read_the_names_alike(owner):
    make = OWNERS[owner]
    for wrong in ("z", 3, [3], [None]):
        with pytest.raises(TypeError, match=rf'{owner}: `sites` must be a coll.*sites=\["z"\]'):
            make(unlike(), sites=wrong)
    with pytest.raises(ValueError, match=rf"{owner}: .*got \['q'\], which.*it has \['n', 'w', 'z"):
        make(unlike(), sites={"z", "q"})()
    with pytest.raises(TypeError, match=rf'{owner}: at pyro.sample\("n", ...\).*got Normal'):
        make(unlike(), sites=["n"])()
    handled = make(unlike(obs=torch.tensor(1.0)), sites=["z", "w"])
    with pytest.warns(UserWarning, match=rf"{owner}: `sites`.*got \['z'\], which were observed"):
        poutine.trace(handled).get_trace()
    poutine.trace(handled).get_trace()  # once
    for names in ((name for name in "w"), {"w": 1}, ("w",), frozenset("w")):
        trace = poutine.trace(make(unlike(), sites=names)).get_trace()
        assert trace.nodes["w"]["fn"].has_rsample


def test_a_guide_of_named_sites_leaves_the_others():
    assert list(AutoRelaxed(unlike(), sites=["w"])()) == ["w"]
    mask = torch.tensor([True, False])

    def partly():
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Categorical(START), obs=torch.ones(2).long(), obs_mask=mask)
            pyro.sample("w", dist.Bernoulli(0.5))

    for name in ("y", "y_unobserved"):
        assert list(AutoRelaxed(partly, sites=[name])()) == ["y_unobserved"]


def test_all_combinations_of_marks_and_names():
    for first, second in itertools.product([None, "parallel"], repeat=2):
        for names in (None, ["z"], ["w"], ["z", "w"]):
            model = partial(chains, first, second)
            unmarked = [n for n, mark in zip("zw", (first, second), strict=True) if not mark]
            expected = unmarked if names is None else names
            trace = poutine.trace(relaxed(model, sites=names)).get_trace()
            assert [n for n in "zw" if trace.nodes[n]["fn"].has_rsample] == expected
            if expected:
                assert list(AutoRelaxed(model, sites=names)()) == expected
