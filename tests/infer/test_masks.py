# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The guide of masked sites in subsampled plates: sequences of different length."""

import copy
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoGuideList, AutoNormal

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    IndexStraightThrough,
    relaxed,
)
from pyro_gumbel.infer import autoguide
from pyro_gumbel.infer.traces import OneSubsample

LENGTHS = torch.tensor([1, 3, 2, 3, 1])
DATA = torch.tensor(
    [[0.2, 0.0, 0.0], [1.3, -0.4, 0.8], [0.1, 1.1, 0.0], [2.0, 1.5, -0.3], [-1, 0, 0]]
)
START, TABLE = torch.tensor([0.7, 0.3]), torch.tensor([[0.8, 0.2], [0.4, 0.6]])
LOCS = torch.tensor([-0.5, 1.0])
SUBSAMPLES = [(0, 4), (1, 3), (2, 0), (4, 3), (2, 1)]


def chain(last=None, subsample=None):
    """Hidden Markov chains of different length, up to the longest one of the subsample."""
    size = 2 if subsample is None else None
    with pyro.plate("sequences", len(LENGTHS), size, subsample) as batch:
        lengths, probs = LENGTHS[batch], START
        for t in range(int(lengths.max()) if last is None else last):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{t}", dist.Normal(LOCS[z], 1.0), obs=DATA[batch, t])
            probs = TABLE[z]


def chain_by_hand(logits):
    def guide(last=None):
        with pyro.plate("sequences", len(LENGTHS), 2) as batch:
            for t in range(int(LENGTHS[batch].max()) if last is None else last):
                with poutine.mask(mask=t < LENGTHS[batch]):
                    pyro.sample(f"z_{t}", IndexStraightThrough(logits=logits[f"z_{t}"][batch]))

    return guide


KEPT = torch.tensor([True, False, True, True, False])


def masked_clusters(by_distribution=False):
    with pyro.plate("sequences", 5, 2) as batch:
        prior = dist.OneHotCategorical(START)
        if by_distribution:
            z = pyro.sample("z", prior.mask(KEPT[batch]))
        else:
            with poutine.mask(mask=KEPT[batch]):
                z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z @ LOCS, 1.0), obs=DATA[batch, 0])


def clusters_by_hand(logits):
    def guide(by_distribution=False):
        with pyro.plate("sequences", 5, 2) as batch, poutine.mask(mask=KEPT[batch]):
            pyro.sample("z", dist.OneHotCategorical(logits=logits["z"][batch]))

    return guide


CASES = {
    "to the longest of the subsample": (chain, chain_by_hand, {}),
    "to the longest of all": (chain, chain_by_hand, {"last": 3}),
    "by the handler": (masked_clusters, clusters_by_hand, {}),
    "by the distribution": (masked_clusters, clusters_by_hand, {"by_distribution": True}),
}


def moved(guide, **kwargs):
    """The guide after its first call, away from its start."""
    for _ in range(5):
        guide(**kwargs)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += torch.randn_like(parameter)
    return guide


def loss_and_gradients(model, guide, subsample, parameters, **kwargs):
    """Exact in the guide's sites, by enumeration."""
    with OneSubsample({"sequences": torch.tensor(subsample)}):
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        loss = elbo.differentiable_loss(model, config_enumerate(guide), **kwargs)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return [loss.detach(), *gradients]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_elbo_is_that_of_a_guide_with_the_masks_written_by_hand(case, wrapped):
    model, by_hand, kwargs = CASES[case]
    model = relaxed(model) if wrapped else model
    guide = moved(AutoRelaxed(model), **kwargs)
    logits = {name: getattr(guide.logits, name) for name in guide._sites}
    own = by_hand({name: each + 0.0 for name, each in logits.items()})
    for subsample in SUBSAMPLES:
        found = loss_and_gradients(model, guide, subsample, list(logits.values()), **kwargs)
        expected = loss_and_gradients(model, own, subsample, list(logits.values()), **kwargs)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        assert any(gradient.any() for gradient in found[1:])


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_at_the_prior_without_data_the_divergence_is_zero(objective):
    """Without noise, whatever the subsample: each log q has the mask of its log p."""
    model = poutine.block(masked_clusters, hide=["x"])
    guide = AutoRelaxed(model)
    for _ in range(5):
        assert objective().loss(model, guide) == pytest.approx(0, abs=1e-6)


def given(batch):
    """Chains of a subsample that the caller chooses."""
    chain(subsample=torch.tensor(batch))


def guide_of_given():
    def create_plates(batch):
        return pyro.plate("sequences", len(LENGTHS), subsample=torch.tensor(batch), dim=-1)

    return AutoRelaxed(given, create_plates=create_plates)


def test_a_call_has_the_sites_of_its_subsample():
    guide = guide_of_given()
    assert list(guide([0, 4])) == ["z_0"]
    assert list(guide([1, 2])) == ["z_0", "z_1", "z_2"]
    assert list(guide([0, 2])) == ["z_0", "z_1"]
    assert list(guide([4, 0])) == ["z_0"]
    assert [name for name, _ in guide.named_parameters()] == [
        f"logits.z_{t}_unconstrained" for t in range(3)
    ]
    assert {name: value.shape for name, value in guide.median().items()} == dict.fromkeys(
        ["z_0", "z_1", "z_2"], (5,)
    )
    assert repr(guide).count("batch_shape: (5,)") == 3
    torch.testing.assert_close(guide.distribution("z_0").probs.detach(), START.expand(5, 2))


def test_a_site_that_was_not_in_the_first_call_starts_at_its_mean_prior():
    """One draw of the state before it would give one row of the table."""
    guide = guide_of_given()
    guide([0, 4])
    for _ in range(2):
        guide([1, 2])
        probs = guide.distribution("z_1").probs.detach()
        assert probs.shape == (5, 2)
        assert ((probs[:, 0] > 0.45) & (probs[:, 0] < 0.78)).all()


def test_a_site_that_was_not_in_the_first_call_is_trained():
    guide = guide_of_given()
    svi = SVI(given, guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
    svi.step([0, 4])
    svi.step([1, 3])
    before = copy.deepcopy(guide.state_dict())
    svi.step([1, 2])
    after = guide.state_dict()
    changed = [(after[name] != before[name]).any(1).tolist() for name in before]
    assert changed == [[False, True, t < 2, False, False] for t in range(3)]


@pytest.mark.parametrize("first", ["load", "run"])
def test_a_state_may_have_sites_that_the_first_call_lacks(first):
    guide = guide_of_given()
    for batch in ([0, 4], [1, 2]):
        guide(batch)
    state = {name: torch.randn_like(each) for name, each in guide.state_dict().items()}
    pyro.clear_param_store()
    fresh = guide_of_given()
    if first == "run":
        fresh([0, 2])
    fresh.load_state_dict(state)
    for batch in ([0, 2], [1, 2]):
        fresh(batch)
    torch.testing.assert_close(dict(fresh.state_dict()), state, rtol=0, atol=0)
    pyro.clear_param_store()
    other = guide_of_given()
    other.load_state_dict({"logits.z_0_unconstrained": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"must have logits of z_0 \(5, 2\), got z_0 \(3, 2\)"):
        other([1, 2])


def test_without_its_model_a_guide_does_not_know_the_masks_of_a_subsample():
    guide = AutoRelaxed(masked_clusters)
    guide()
    loaded = pickle.loads(pickle.dumps(guide))
    with pytest.raises(ValueError, match=r"expected a model, for the masks.*guide.load_state_dict"):
        loaded()
    assert loaded.median()["z"].shape == (5, 2)


# Beside other guides.


def with_means():
    locs = pyro.sample("locs", dist.Normal(LOCS, 1.0).to_event(1))
    with pyro.plate("sequences", len(LENGTHS), 2) as batch:
        lengths, probs = LENGTHS[batch], START
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=DATA[batch, t])
            probs = TABLE[z]


NAMES = [f"z_{t}" for t in range(3)]


@pytest.mark.parametrize("part", [{"hide": ["locs"]}, {"expose": [*NAMES, "sequences"]}])
def test_in_a_list_of_guides(part):
    guide = AutoGuideList(with_means)
    guide.append(AutoNormal(poutine.block(with_means, expose=["locs"])))
    guide.append(AutoRelaxed(poutine.block(with_means, **part)))
    svi = SVI(with_means, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(6):
        svi.step()
    assert set(guide.median()) == {"locs", *NAMES}


def test_the_first_run_of_a_list_may_be_on_shorter_sequences(monkeypatch):
    monkeypatch.setattr(autoguide, "RUNS", 1)
    later = set()
    for seed in range(30):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = AutoGuideList(chain)
        guide.append(AutoRelaxed(chain))
        drawn = guide()
        later |= drawn.keys() - guide.prototype_trace.nodes
    assert later == {"z_1", "z_2"}


def test_a_part_that_hides_the_subsample_says_what_to_write():
    guide = AutoGuideList(with_means)
    guide.append(AutoRelaxed(poutine.block(with_means, expose=NAMES)))
    with pytest.raises(
        ValueError, match=r"hides that of \['sequences'\]; write.*, 'sequences'\]\)"
    ):
        guide()


def test_another_plate_than_those_of_the_first_call():
    def model(more):
        with pyro.plate("a", 2), poutine.mask(mask=KEPT[:2]):
            pyro.sample("z", dist.Bernoulli(0.5))
        if more:
            with pyro.plate("b", 3):
                pyro.sample("w", dist.Bernoulli(0.5))

    guide = AutoRelaxed(model)
    guide(False)
    with pytest.raises(
        ValueError, match=r"plates of the first run of the guide, \['a'\], got 'b'; write"
    ) as raised:
        guide(True)
    (plates,) = re.findall(r"create_plates=(lambda.*)$", str(raised.value))
    guide = AutoRelaxed(model, create_plates=eval(plates))
    guide(False)
    assert list(guide(True)) == ["z", "w"]


# Masks that a guide cannot know.


def counted():
    n = pyro.sample("n", dist.Poisson(2.0))
    with pyro.plate("steps", 4), poutine.mask(mask=torch.arange(4) < n):
        pyro.sample("z", dist.Bernoulli(0.5))


def looped():
    n = pyro.sample("n", dist.Poisson(2.0))
    with pyro.plate("steps", 4), poutine.mask(mask=KEPT[:4]):
        for t in range(1 + int(n)):
            pyro.sample(f"z_{t}", dist.Bernoulli(0.5))


@pytest.mark.parametrize(
    ("model", "what"), [(counted, "the mask of the site"), (looped, "the site")]
)
def test_a_mask_of_a_latent_value_is_refused(model, what):
    for seed in range(5):
        pyro.set_rng_seed(seed)
        with pytest.raises(ValueError, match=rf"\"z.*{what} must be the same.*guide.append\(own\)"):
            AutoRelaxed(model)()


def test_the_guide_that_the_refusal_shows():
    def own():
        n = pyro.sample("n", dist.Poisson(pyro.param("rate", torch.tensor(2.0))))
        with guide.plates["steps"], poutine.mask(mask=torch.arange(4) < n):
            logits = pyro.param("z_logits", torch.zeros(4))
            pyro.sample("z", BernoulliStraightThrough(logits=logits))

    def model():
        counted()
        pyro.sample("b", dist.Bernoulli(0.5))

    guide = AutoGuideList(model)
    guide.append(AutoRelaxed(poutine.block(model, hide=["z", "n"])))
    guide.append(own)
    for _ in range(3):
        assert Trace_ELBO().loss(model, guide) == pytest.approx(0, abs=1e-6)


def test_the_first_call_compares_runs_on_one_subsample(monkeypatch):
    """Not those of different subsamples, whose masks differ."""
    seen = []
    monkeypatch.setattr(autoguide, "require_known", seen.append)
    AutoRelaxed(chain)()
    (runs,) = seen
    assert len(runs) == autoguide.RUNS
    assert len({tuple(run["z_0"].mask.tolist()) for run in runs}) == 1
