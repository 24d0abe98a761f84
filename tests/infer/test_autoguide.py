# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The guide of a model's discrete sites, alone and beside the guides of the others."""

import copy
import io
import math
import pickle
import warnings
from contextlib import ExitStack
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.mcmc.util import initialize_model
from pyro.nn import PyroModule
from torch.optim.swa_utils import AveragedModel

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    LearnableTemperature,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    PlackettLuce,
    RelaxedBernoulli,
    RelaxedCategorical,
    Subset,
    harden,
    links,
    relaxed,
)
from pyro_gumbel.distributions.wrappers import innermost
from tests.common import z_bound

T = 0.5
PROBS = torch.tensor([0.5, 0.25, 0.15, 0.1])
PRIORS = {
    "bit": lambda: dist.Bernoulli(PROBS[:2]).to_event(1),
    "one of k": lambda: dist.OneHotCategorical(PROBS),
    "set": lambda: Subset(2, PROBS),
    "order": lambda: PlackettLuce(2, PROBS),
}


def decayed(rate, steps):
    """Adam with a rate that falls a hundredfold over the run."""
    optimiser = {"optimizer": torch.optim.Adam, "optim_args": {"lr": rate}}
    return pyro.optim.ExponentialLR({**optimiser, "gamma": 0.01 ** (1 / steps)})


def train(model, guide, elbo, steps, rate=0.1, args=()):
    optimiser = decayed(rate, steps)
    svi = SVI(model, guide, optimiser, elbo)
    for _ in range(steps):
        svi.step(*args)
        optimiser.step()


def prior_only(row):
    return lambda: pyro.sample("z", PRIORS[row]())


# What it is.


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("row", PRIORS)
def test_it_starts_at_the_prior(row, hard):
    def model():
        with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 2):
            pyro.sample("z", PRIORS[row]())

    model = model if hard else relaxed(model, T, hard=False)
    guide = AutoRelaxed(model, T, hard=hard)
    trace = poutine.trace(guide).get_trace()
    law, prior = trace.nodes["z"]["fn"], PRIORS[row]()
    assert law.batch_shape == (3, 2)
    assert law.event_shape == prior.event_shape
    assert [frame.name for frame in trace.nodes["z"]["cond_indep_stack"]] == ["outer", "inner"]
    torch.testing.assert_close(innermost(law).probs[0, 0], innermost(prior).probs)
    assert guide.logits.z.shape == innermost(law).logits.shape
    assert [name for name, _ in guide.named_parameters()] == ["logits.z_unconstrained"]


@pytest.mark.parametrize("how", ["a relaxed prior", "an exact divergence"])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("row", PRIORS)
def test_without_data_it_recovers_the_prior(row, temperature, how):
    model = prior_only(row)
    elbo = TraceMeanField_ELBO()
    if how == "a relaxed prior":
        model = relaxed(model, temperature)
        elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=0)
    guide = AutoRelaxed(model, temperature)
    guide()
    with torch.no_grad():
        guide.logits.z += torch.randn_like(guide.logits.z)
    train(model, guide, elbo, steps=150, rate=0.2)
    found = innermost(guide.distribution("z")).probs
    expected = innermost(PRIORS[row]()).probs
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("row", PRIORS)
def test_without_data_a_soft_guide_recovers_a_soft_prior(row):
    model = relaxed(prior_only(row), T, hard=False)
    guide = AutoRelaxed(model, T, hard=False)
    guide()
    with torch.no_grad():
        guide.logits.z += torch.randn_like(guide.logits.z)
    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=0)
    train(model, guide, elbo if row == "order" else TraceMeanField_ELBO(), steps=150, rate=0.2)
    found, expected = (innermost(law).probs for law in (guide.distribution("z"), PRIORS[row]()))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_the_median_is_the_most_probable_value():
    expected = {
        "bit": [1.0, 0.0],
        "one of k": [1.0, 0.0, 0.0, 0.0],
        "set": [1.0, 1.0, 0.0, 0.0],
        "order": [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],
    }
    for row in PRIORS:
        for hard in (True, False):
            model = prior_only(row) if hard else relaxed(prior_only(row), T, hard=False)
            guide = AutoRelaxed(model, T, hard=hard)
            assert guide.median()["z"].tolist() == expected[row]
    for law, link in (
        (ExpRelaxedCategorical(T, PROBS), links.simplex),
        (LogitRelaxedSubset(T, 2, PROBS), links.Hypersimplex(2)),
    ):
        guide = AutoRelaxed(lambda law=law: pyro.sample("z", law), T, hard=False)
        median = guide.median()["z"]
        row = "one of k" if link is links.simplex else "set"
        assert link.value(median).tolist() == pytest.approx(expected[row])
        assert law.log_prob(median).isfinite()


# Where there is something to infer.


def mixture(x, subsample_size=None):
    """Two normal clusters with a common unknown shift; which of them, by point."""
    shift = pyro.sample("shift", dist.Normal(0.0, 5.0))
    with pyro.plate("points", len(x), subsample_size=subsample_size) as index:
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.5, 0.5])))
        mean = shift + z @ torch.tensor([0.0, 6.0])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])


def clusters(n=60):
    chosen = torch.arange(n) % 3 == 0
    return torch.randn(n) + 1.5 + 6 * chosen, chosen


@pytest.mark.parametrize("order", ["normal first", "relaxed first"])
@pytest.mark.parametrize("subsample_size", [None, 20])
def test_in_a_list_beside_a_normal_guide(subsample_size, order):
    x, chosen = clusters()
    model = relaxed(partial(mixture, subsample_size=subsample_size), T)
    guide = AutoGuideList(model, create_plates=lambda x: pyro.plate(
        "points", len(x), subsample_size=subsample_size))  # fmt: skip
    parts = [
        AutoNormal(poutine.block(model, hide=["z"])),
        AutoRelaxed(poutine.block(model, expose=["z"]), T),
    ]
    for part in parts if order == "normal first" else parts[::-1]:
        guide.append(part)
    steps = 300 if subsample_size is None else 600
    train(model, guide, Trace_ELBO(), steps, rate=0.1, args=(x,))
    median = guide.median(x)
    assert median["z"].shape == (60, 2)
    assert (median["z"][:, 1] == chosen).float().mean() > 0.95
    assert (median["shift"] - 1.5).abs() < 0.5


def test_validation_is_as_the_site_has_it():
    for checks in (True, False):
        law = dist.Bernoulli(0.5, validate_args=checks)
        guide = AutoRelaxed(lambda law=law: pyro.sample("z", law), T)
        guide()
        assert guide.distribution("z")._validate_args is checks


def test_a_continuous_site_is_left_to_another_guide():
    x, _ = clusters()
    guide = AutoRelaxed(mixture, T)
    assert list(guide(x)) == ["z"]


def test_the_first_run_decides_on_the_plates_and_later_ones_on_their_part():
    x, _ = clusters()
    guide = AutoRelaxed(partial(mixture, subsample_size=20), T)
    assert guide(x)["z"].shape == (20, 2)
    assert guide.logits.z.shape == (60, 2)
    with torch.no_grad():  # every point sure of its own cluster
        guide.logits.z.copy_(torch.stack([torch.arange(60) % 2, torch.arange(60) % 2 == 0], -1))
        guide.logits.z.mul_(100)
    for _ in range(3):
        trace = poutine.trace(guide).get_trace(x)
        index, z = trace.nodes["points"]["value"], trace.nodes["z"]["value"]
        assert torch.equal(z[:, 0], (index % 2).float())
        assert trace.nodes["z"]["scale"] == 3


def exact_elbo(logits, log_joint):
    """The ELBO of independent bits, by enumeration."""
    values = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * len(logits))
    log_q = dist.Bernoulli(logits=logits).log_prob(values).sum(-1)
    return (log_q.exp() * (log_joint(values) - log_q)).sum()


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("masked_by", ["the handler", "the law"])
def test_masks_of_the_model_are_the_guides(masked_by, objective):
    """What is masked has no prior, and must have no entropy in the objective."""
    probs, kept = torch.tensor([0.2, 0.6, 0.9]), torch.tensor([True, False, True])

    def model():
        with pyro.plate("bits", 3):
            law = dist.Bernoulli(probs)
            if masked_by == "the law":
                law = law.mask(kept)
            with poutine.mask(mask=kept if masked_by == "the handler" else True):
                z = pyro.sample("z", law)
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.ones(1))

    guide = AutoRelaxed(model, T)
    guide()
    with torch.no_grad():
        guide.logits.z.copy_(torch.tensor([0.3, -0.5, 1.0]))
    logits = guide.logits.z.detach()

    def log_joint(z):
        prior = dist.Bernoulli(probs).log_prob(z)[:, kept].sum(-1)
        masked = dist.Bernoulli(logits=logits).log_prob(z)[:, 1]  # cancels its log q
        return prior + masked + dist.Normal(z.sum(-1), 1.0).log_prob(torch.tensor(1.0))

    elbo = objective(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    assert -elbo.loss(model, guide) == pytest.approx(exact_elbo(logits, log_joint).item(), abs=0.03)


@pytest.mark.parametrize("masked_by", ["the handler", "the law"])
def test_a_mask_may_change_from_call_to_call(masked_by):
    """At the prior, whatever the mask, there is no divergence and no noise."""

    @relaxed(temperature=T)
    def model(kept):
        law = dist.Bernoulli(torch.tensor([0.2, 0.6, 0.9]))
        by_handler = masked_by == "the handler"
        with pyro.plate("bits", 3), poutine.mask(mask=kept if by_handler else True):
            pyro.sample("z", law if by_handler else law.mask(kept))

    guide = AutoRelaxed(model, T)
    masks = [torch.tensor(mask) for mask in ([True, True, False], [False] * 3, [True] * 3)]
    for mask in masks:
        assert Trace_ELBO().loss(model, guide, mask) == pytest.approx(0, abs=1e-6)


def test_a_mask_in_a_subsampled_plate_is_refused():
    def model():
        mask = torch.tensor([True, False, True])
        with pyro.plate("points", 6, subsample_size=3), poutine.mask(mask=mask):
            pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(NotImplementedError, match=r'pyro.sample\("z", ...\).*hide=\[...\]'):
        AutoRelaxed(model, T)()


@pytest.mark.parametrize("objective", [
    Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, JitTrace_ELBO, RenyiELBO,
])  # fmt: skip
def test_every_objective_trains_it(objective):
    """The second of three bits is what the datum says."""

    def model():
        with pyro.plate("bits", 3):
            z = pyro.sample("z", dist.Bernoulli(0.5))
        mean = z @ torch.tensor([-3.0, 2.0, -3.0])
        pyro.sample("x", dist.Normal(mean, 0.5), obs=torch.tensor(2.0))

    guide = AutoRelaxed(model, T)
    options = {} if objective is RenyiELBO else {"strict_enumeration_warning": False}
    if objective is JitTrace_ELBO:
        options["ignore_jit_warnings"] = True
    train(model, guide, objective(num_particles=5, **options), steps=100, rate=0.2)
    assert guide.median()["z"].tolist() == [0.0, 1.0, 0.0]


def test_enumerated_it_gives_the_exact_elbo():
    probs = torch.tensor([0.2, 0.6, 0.9])

    @relaxed(temperature=T)
    def model():
        z = [pyro.sample(f"z{i}", dist.Bernoulli(p)) for i, p in enumerate(probs)]
        pyro.sample("x", dist.Normal(sum(z), 1.0), obs=torch.tensor(2.0))

    guide = AutoRelaxed(model, T)
    guide()
    logits = torch.tensor([0.3, -0.5, 1.0])
    with torch.no_grad():
        for i, logit in enumerate(logits):
            getattr(guide.logits, f"z{i}").copy_(logit)

    def log_joint(z):
        normal = dist.Normal(z.sum(-1), 1.0).log_prob(torch.tensor(2.0))
        return dist.Bernoulli(probs).log_prob(z).sum(-1) + normal

    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(model, config_enumerate(guide))
    assert -loss == pytest.approx(exact_elbo(logits, log_joint).item(), abs=1e-5)


# What it says.


def chain():
    z = pyro.sample("z", dist.OneHotCategorical(PROBS))
    pyro.sample("x", dist.Normal(z @ torch.arange(4.0), 1.0), obs=torch.tensor(1.0))


# A plain prior and a relaxed one.


OBJECTIVES_OF_A_PLAIN_PRIOR = {
    "Trace_ELBO": Trace_ELBO,
    "looped": partial(Trace_ELBO, num_particles=3),
    "vectorised": partial(
        Trace_ELBO, num_particles=3, vectorize_particles=True, max_plate_nesting=0
    ),
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "RenyiELBO": partial(RenyiELBO, alpha=0.5, num_particles=3),
    "TraceEnum_ELBO": partial(
        TraceEnum_ELBO, max_plate_nesting=0, strict_enumeration_warning=False
    ),
    "JitTrace_ELBO": partial(JitTrace_ELBO, ignore_jit_warnings=True),
}


@pytest.mark.parametrize("objective", OBJECTIVES_OF_A_PLAIN_PRIOR)
def test_a_plain_prior_gives_the_gradient_of_a_relaxed_one(objective):
    """From the same seed they are the same numbers."""
    found = {}
    for name, model in (("plain", chain), ("relaxed", relaxed(chain, T))):
        pyro.clear_param_store()
        guide = AutoRelaxed(model, T)
        guide()
        pyro.set_rng_seed(1)
        loss = OBJECTIVES_OF_A_PLAIN_PRIOR[objective]().loss_and_grads(model, guide)
        (parameter,) = guide.parameters()
        found[name] = torch.cat([torch.as_tensor(loss).reshape(1), parameter.grad])
    torch.testing.assert_close(found["plain"], found["relaxed"])
    assert (found["plain"] != 0).all()


def test_no_part_of_the_gradient_is_lost():
    """Without data the gradient is zero at the prior, and not if a part of it is lost."""
    prior = poutine.block(chain, hide=["x"])
    guide = AutoRelaxed(prior, T)
    guide()
    elbo = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=0)
    elbo.differentiable_loss(prior, guide).backward()
    (parameter,) = guide.parameters()
    assert parameter.grad.abs().max() < z_bound(4) * math.sqrt(0.25 / 20_000)


def test_a_guide_relaxed_by_hand_finds_the_posterior_of_a_plain_model():
    def model():
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.7, 0.1, 0.1, 0.1])))
        pyro.sample("x", dist.Normal(z @ torch.tensor([0.0, 0.5, 1.0, 1.5]), 1.0), obs=x)

    @relaxed(temperature=0.3)
    def guide():
        logits = pyro.param("logits", torch.zeros(4))
        pyro.sample("z", dist.OneHotCategorical(logits=logits))

    x = torch.tensor(0.8)
    elbo = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.02 ** (1 / 300)}), elbo)
    for _ in range(300):
        svi.step()
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1])
    likelihood = dist.Normal(torch.tensor([0.0, 0.5, 1.0, 1.5]), 1.0).log_prob(x)
    exact = (prior.log() + likelihood).softmax(-1)
    assert (pyro.param("logits").softmax(-1) - exact).abs().max() < 0.03


def test_errors_of_the_first_run():
    guide = AutoRelaxed(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), T)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"must have a latent discrete.*AutoNormal\(model\)"):
            guide()
    with pytest.raises(ValueError, match="must have a latent discrete site"):
        AutoRelaxed(poutine.condition(chain, {"z": torch.eye(4)[0]}), T)()
    with pytest.raises(TypeError, match=r'pyro.sample\("z", ...\).*OneHotCategorical\(probs=prob'):
        AutoRelaxed(lambda: pyro.sample("z", dist.Categorical(PROBS)), T)()
    with pytest.raises(
        ValueError, match=r'"z".*relaxed distribution, RelaxedCategorical.*hard=False'
    ):
        AutoRelaxed(relaxed(chain, T, hard=False), T)()
    for model in (chain, relaxed(chain, T)):
        with pytest.raises(ValueError, match=r'"z".*discrete distribution.*soft = relaxed\(model'):
            AutoRelaxed(model, T, hard=False)()
    with pytest.raises(ValueError, match=r"at pyro.sample.*`temperature` must be one number"):
        AutoRelaxed(chain, torch.ones(3))()
    with pytest.raises(ValueError, match="`estimator` must be one of"):
        AutoRelaxed(chain, T, estimator="unknown")
    with pytest.raises(
        ValueError, match=r"that has run.*write guide\(\*args\) once before guide.d"
    ):
        AutoRelaxed(chain, T).distribution("z")
    guide = AutoRelaxed(chain, T)
    guide()
    with pytest.raises(ValueError, match=r"one of \['z'\], got 'x'"):
        guide.distribution("x")


# What is kept.


def test_a_state_dict_goes_on_where_it_was():
    """A run that is stopped and resumed in a new guide ends as one that is not, bit for bit."""
    model = relaxed(chain, T)

    def run(steps, saved=None):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoRelaxed(model, T)
        guide()
        if saved is not None:
            guide.load_state_dict(torch.load(saved[0]))
            pyro.set_rng_seed(0)
            torch.set_rng_state(saved[1])
        optimiser = torch.optim.SGD(guide.parameters(), 0.1)
        for _ in range(steps):
            optimiser.zero_grad()
            Trace_ELBO().differentiable_loss(model, guide).backward()
            optimiser.step()
        file = io.BytesIO()
        torch.save(guide.state_dict(), file)
        file.seek(0)
        return guide.logits.z.detach(), (file, torch.get_rng_state())

    whole, _ = run(6)
    _, saved = run(3)
    resumed, _ = run(3, saved)
    assert torch.equal(resumed, whole)


def test_it_is_copied_and_pickled():
    guide = AutoRelaxed(chain, T)
    guide()
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded.distribution("z").probs, guide.distribution("z").probs)
    assert copy.deepcopy(guide).distribution("z").probs.equal(guide.distribution("z").probs)


def test_copying_and_saving_leave_it_as_it_was():
    """Pyro forgets the model of a guide that is pickled, in the original too."""
    log_temperature = torch.zeros((), requires_grad=True)
    for keep in (copy.deepcopy, lambda guide: torch.save(guide.state_dict(), io.BytesIO())):
        pyro.clear_param_store()
        guide = AutoRelaxed(chain, log_temperature.exp)
        guide()
        copied = keep(guide) or guide
        for each in (guide, copied):
            svi = SVI(chain, each, pyro.optim.Adam({}), TraceMeanField_ELBO())
            assert math.isfinite(svi.step())


def test_a_learnt_temperature_and_a_model_with_modules():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.means = PyroModule[torch.nn.Linear](4, 1, bias=False)

        def forward(self):
            z = pyro.sample("z", dist.OneHotCategorical(PROBS))
            pyro.sample("x", dist.Normal(self.means(z), 1.0), obs=torch.ones(1))

    log_temperature = torch.zeros((), requires_grad=True)
    model = Model()
    guide = AutoRelaxed(model, log_temperature.exp)
    TraceMeanField_ELBO().differentiable_loss(model, guide).backward()
    assert log_temperature.grad != 0
    assert model.means.weight.grad.abs().sum() != 0


def test_a_prior_that_depends_on_other_sites_is_met_in_the_mean():
    """One draw of the parents is no prior: of a chance from Beta(.1, .1) it is next to 0 or 1."""

    def model():
        chance = pyro.sample("chance", dist.Beta(0.1, 0.1))
        pyro.sample("z", dist.Bernoulli(chance))
        parent = pyro.sample("parent", dist.Bernoulli(0.5))
        zeros = torch.stack([1 - parent, torch.tensor(1.0), parent], -1)  # one of them impossible
        pyro.sample("child", dist.OneHotCategorical(zeros))

    for seed in range(5):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = AutoRelaxed(model, T)
        guide()
        assert 0.04 < guide.distribution("z").probs < 0.96
        assert guide.distribution("parent").probs.item() == pytest.approx(0.5)
        assert guide.distribution("child").probs.min() > 0.02


def test_an_impossible_category_stays_impossible():
    def model():
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.5, 0.0, 0.5])))
        b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.0, 1.0, 0.5])).to_event(1))
        mean = z @ torch.tensor([0.0, 1.0, 2.0]) + b.sum()
        pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(1.0))

    for prior, elbo in ((relaxed(model, T), Trace_ELBO()), (model, TraceMeanField_ELBO())):
        pyro.clear_param_store()
        guide = AutoRelaxed(prior, T)
        train(prior, guide, elbo, steps=20)
        assert guide.distribution("z").probs[1] == 0
        assert guide.distribution("b").base_dist.probs[:2].tolist() == [0.0, 1.0]
        assert all(parameter.isnan().sum() == 0 for parameter in guide.parameters())


# Each operation on a guide, over columns, rows and plates.

PLATES = {
    "no plate": ((), None),
    "plates": ((3, 2), None),
    "a subsampled plate": ((6,), 3),
}
GRID = [(hard, row, plates) for hard in (True, False) for row in PRIORS for plates in PLATES]
LAWS = {
    "bit": lambda logits: dist.Bernoulli(logits=logits[..., :2]).to_event(1),
    "one of k": lambda logits: dist.OneHotCategorical(logits=logits),
    "set": lambda logits: Subset(2, logits=logits),
    "order": lambda logits: PlackettLuce(2, logits=logits),
}


class Site(PyroModule):
    """A model of one site, whose prior has a graph: of a network, and of constrained parameters."""

    def __init__(self, row, plates="no plate", name="z"):
        super().__init__()
        self.row, self.name, (self.sizes, self.subsample_size) = row, name, PLATES[plates]
        self.net = PyroModule[torch.nn.Linear](1, 4)

    def forward(self):
        weights = pyro.param("weights", PROBS.clone, constraint=dist.constraints.positive)
        logits = self.net(torch.ones(1)) + weights.log()
        with ExitStack() as stack:
            for dim, size in enumerate(self.sizes, start=-len(self.sizes)):
                plate = pyro.plate(f"plate{dim}", size, self.subsample_size, dim=dim)
                stack.enter_context(plate)
            return pyro.sample(self.name, LAWS[self.row](logits))


def with_guide(hard, row, plates):
    """A relaxed model and its guide, with a temperature that is learnt, after one step."""
    temperature = LearnableTemperature(T)
    model = relaxed(Site(row, plates), temperature, hard=hard)
    guide = AutoRelaxed(model, temperature, hard=hard)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.5}), Trace_ELBO()).step()
    return model, guide


def through_a_file(guide):
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda guide: pickle.loads(pickle.dumps(guide)),
    "torch.save": through_a_file,
    "AveragedModel": lambda guide: AveragedModel(guide).module,
    "an objective": lambda guide: copy.deepcopy(Trace_ELBO()(guide.model, guide)).guide,
}


@pytest.mark.parametrize(("hard", "row", "plates"), GRID)
def test_copies_are_like_it_and_independent(hard, row, plates):
    _, guide = with_guide(hard, row, plates)
    kept = guide.logits.z.detach().clone()
    for how, made in COPIES.items():
        copied = made(guide)
        assert copied is not guide
        torch.testing.assert_close(copied.logits.z, kept, rtol=0, atol=0)
        assert (
            innermost(copied.distribution("z")).temperature
            == innermost(guide.distribution("z")).temperature
        )
        with pyro.get_param_store().scope():  # else it takes the original's from the store
            shape = copied()["z"].shape
        assert shape == guide()["z"].shape, how
        with torch.no_grad():
            copied.logits.z.add_(1.0)
        torch.testing.assert_close(guide.logits.z, kept, rtol=0, atol=0)
        assert guide.model is not None


def test_an_average_of_guides_is_one_of_their_logits():
    _, guide = with_guide(True, "one of k", "plates")
    average = AveragedModel(guide)
    expected = []
    for _ in range(3):
        with torch.no_grad():
            guide.logits.z.add_(torch.randn(3, 2, 4))
        average.update_parameters(guide)
        expected.append(guide.logits.z.detach().clone())
    mean = torch.stack(expected).mean(0)
    torch.testing.assert_close(average.module.logits.z, mean)
    with pyro.get_param_store().scope():
        law = poutine.trace(average).get_trace().nodes["z"]["fn"]
    torch.testing.assert_close(law.logits, mean.log_softmax(-1))
    torch.testing.assert_close(guide.logits.z, expected[-1], rtol=0, atol=0)


@pytest.mark.parametrize(("hard", "row", "plates"), GRID)
def test_the_prototype_keeps_no_graph_and_no_argument(hard, row, plates):
    _, guide = with_guide(hard, row, plates)
    (site,) = guide.prototype_trace.nodes.values()
    law = innermost(site["fn"])
    for tensor in (site["value"], law.logits, law.temperature):
        assert not tensor.requires_grad


def masked_model(kept):
    with pyro.plate("bits", 3), poutine.mask(mask=kept):
        pyro.sample("z", dist.Bernoulli(torch.tensor([0.2, 0.6, 0.9])))


def test_a_copy_and_its_original_have_the_masks_of_each_call():
    """At the prior, whatever the mask, there is no divergence."""
    model = relaxed(masked_model, T)
    guide = AutoRelaxed(model, T)
    masks = [torch.tensor(mask) for mask in ([True, True, False], [False] * 3, [True] * 3)]
    guide(masks[0])
    with torch.no_grad():
        guide.logits.z[2] += 1.0
    for each in (copy.deepcopy(guide), guide):
        found = [Trace_ELBO(50).loss(model, each, mask) for mask in masks]
        assert found[:2] == pytest.approx([0, 0], abs=1e-6)
        assert abs(found[2]) > 1e-2


def test_a_guide_from_a_pickle_has_no_model_and_says_so():
    guide = AutoRelaxed(masked_model, T)
    with pytest.raises(
        ValueError, match=r"expected a model.*write guide = AutoRelaxed\(model, temp"
    ):
        pickle.loads(pickle.dumps(guide))(torch.tensor(True))
    guide(torch.tensor([True, True, False]))
    loaded = pickle.loads(pickle.dumps(guide))
    with pytest.warns(UserWarning, match="expected a model, for the masks of this call"):
        loaded(torch.tensor([True] * 3))
    loaded(torch.tensor([True] * 3))  # once
    assert guide.model is masked_model


@pytest.mark.parametrize(("hard", "row", "plates"), GRID)
def test_a_state_dict_may_come_before_the_first_run(hard, row, plates):
    """It is what a run and then the state give, and an optimiser may be made in between."""
    model, guide = with_guide(hard, row, plates)
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
    model, guide = with_guide(True, "bit", "a subsampled plate")
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
    model, guide = with_guide(True, "one of k", "plates")
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


NAMES = [
    "type", "half", "eval", "training", "forward", "logits", "parameters", "a", "a.b", "a.b.c",
    "a_b_site", "b.half", "a_unconstrained", "1a", "a b", "a-b", "z[0]", "__class__",
    "__deepcopy__", "_parameters", "_pyro_name", "of_site", "", ".", "e.", "ä",
]  # fmt: skip


def sites_named(names, row="bit", plates="no plate"):
    """Sites of these names, with a prior each."""
    sizes, subsample_size = PLATES[plates]

    def model():
        with ExitStack() as stack:
            for i, size in enumerate(sizes):
                stack.enter_context(pyro.plate(f"plate{i}", size, subsample_size))
            for i, name in enumerate(names):
                pyro.sample(name, LAWS[row](PROBS.log() * (i / len(names))))

    return model


SOME_NAMES = ["type", "a", "a.b"]


@pytest.mark.parametrize(
    ("hard", "row", "plates", "names"),
    [(True, "bit", "no plate", NAMES), *((*each, SOME_NAMES) for each in GRID)],
)
def test_a_site_may_have_any_name(hard, row, plates, names):
    model = relaxed(sites_named(names, row, plates), T, hard=hard)
    guide = AutoRelaxed(model, T, hard=hard)
    assert list(guide()) == names
    assert len(list(guide.parameters())) == len(names)
    fresh = AutoRelaxed(model, T, hard=hard)
    fresh.load_state_dict(guide.state_dict())
    fresh()
    for i, name in enumerate(names):
        prior = innermost(LAWS[row](PROBS.log() * (i / len(names)))).probs
        for each in (guide, copy.deepcopy(guide), fresh):
            law = innermost(each.distribution(name))
            torch.testing.assert_close(law.probs, prior.expand(law.probs.shape))
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


# Quantiles.

Q = [0.05, 0.5, 0.95]


def marginals(row, prior):
    """The chance that each entry of a value is 1, by enumeration."""
    values = innermost(prior).enumerate_support(expand=True)
    chances = innermost(prior).log_prob(values).exp()
    return (chances.reshape(*chances.shape, *[1] * (values.dim() - chances.dim())) * values).sum(0)


@pytest.mark.parametrize("plates", PLATES)
@pytest.mark.parametrize("row", PRIORS)
def test_quantiles_of_the_entries_of_a_hard_site(row, plates):
    """The least x with P(entry <= x) >= q, an entry being a bit."""
    guide = AutoRelaxed(relaxed(Site(row, plates), T), T)
    q = torch.linspace(0, 1, 21, dtype=torch.float64)
    found = guide.quantiles(q)["z"]
    chance = marginals(row, LAWS[row](innermost(guide.distribution("z")).logits.detach())).double()
    assert found.shape == (21, *guide.distribution("z").shape())
    expected = torch.stack([(1 - chance < each).float() for each in q])
    assert torch.equal(found, expected)
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("plates", PLATES)
@pytest.mark.parametrize("row", PRIORS)
def test_quantiles_of_the_entries_of_a_soft_site(row, plates):
    guide = AutoRelaxed(relaxed(Site(row, plates), T, hard=False), T, hard=False)
    found = guide.quantiles(Q)["z"]
    law = guide.distribution("z")
    assert found.shape == (3, *law.shape())
    if row == "bit":
        for q, value in zip(Q, found, strict=True):
            torch.testing.assert_close(law.base_dist.cdf(value), torch.full_like(value, q))
        return
    with torch.no_grad():
        draws = law.sample((20_000,))
    for q, value in zip(Q, found, strict=True):
        share = (draws <= value).double().mean(0)
        error = math.sqrt(q * (1 - q) * (1 / 1000 + 1 / 20_000))
        assert ((share - q).abs() / error).max() < z_bound(3 * share.numel())


@pytest.mark.parametrize("law", [
    ExpRelaxedCategorical(T, PROBS), LogitRelaxedSubset(T, 2, PROBS), LogitRelaxedBernoulli(T, 0.3),
])  # fmt: skip
def test_quantiles_of_coordinates(law):
    guide = AutoRelaxed(lambda: pyro.sample("z", law), T, hard=False)
    found = guide.quantiles(Q)["z"]
    share = (law.sample((20_000,)) <= found.unsqueeze(1)).double().mean(1)
    expected = torch.tensor(Q).double().reshape(3, *[1] * len(law.shape())).expand(share.shape)
    torch.testing.assert_close(share, expected, atol=0.035, rtol=0)


def test_quantiles_of_a_list_of_guides():
    x, _ = clusters()
    model = relaxed(mixture, T)
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["z"])))
    guide.append(AutoRelaxed(poutine.block(model, expose=["z"]), T))
    guide(x)
    with torch.no_grad():
        guide[1].logits.z[:, 1] = torch.linspace(-5, 5, 60)
        guide[1].logits.z[:, 0] = 0.0
    found = guide.quantiles(Q, x)
    assert set(found) == {"shift", "z"}
    normal = dist.Normal(guide[0].locs.shift, guide[0].scales.shift)
    torch.testing.assert_close(normal.cdf(found["shift"]).detach(), torch.tensor(Q))
    chance = torch.linspace(-5, 5, 60).sigmoid()
    assert found["z"].shape == (3, 60, 2)
    for q, value in zip(Q, found["z"], strict=True):
        assert torch.equal(value[:, 1], (chance > 1 - q).float())
        assert torch.equal(value[:, 0], (1 - chance > 1 - q).float())


def test_quantiles_at_the_ends_are_outcomes():
    law = dist.Bernoulli(torch.tensor([0.0, 1e-12, 0.5, 1.0]))
    guide = AutoRelaxed(lambda: pyro.sample("z", law.to_event(1)), T)
    assert guide.quantiles([0, 1])["z"].tolist() == [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]]
    for wrong in ([-0.1], [1.5], [math.nan], torch.tensor([2.0])):
        with pytest.raises(ValueError, match=r"must be numbers from 0 to 1, got .*; write guide"):
            guide.quantiles(wrong)
    for wrong in ("median", None, [None]):
        with pytest.raises(TypeError, match=r"must be numbers from 0 to 1, got .*; write guide"):
            guide.quantiles(wrong)


# A site that is observed in part.


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("sites", [None, ["y"]])
def test_a_partly_observed_site_against_enumeration(sites, objective):
    """The guide has the missing bits, and in the objective only they count."""
    probs, mask = torch.tensor([0.2, 0.6, 0.9, 0.4]), torch.tensor([True, False, True, False])
    data = torch.tensor([1.0, 0.0, 1.0, 0.0])

    @relaxed(temperature=T, sites=sites)
    def model():
        with pyro.plate("bits", 4):
            y = pyro.sample("y", dist.Bernoulli(probs), obs=data, obs_mask=mask)
        pyro.sample("x", dist.Normal(y.sum(-1, keepdim=True), 1.0), obs=torch.ones(1))

    guide = AutoRelaxed(model, T)
    assert list(guide()) == ["y_unobserved"]
    logits = torch.tensor([5.0, -0.5, -5.0, 1.0])
    with torch.no_grad():
        guide.logits.y_unobserved.copy_(logits)

    def log_joint(missing):
        y = data.repeat(len(missing), 1)
        y[:, ~mask] = missing
        return dist.Bernoulli(probs).log_prob(y).sum(-1) + dist.Normal(y.sum(-1), 1.0).log_prob(
            torch.tensor(1.0)
        )

    exact = exact_elbo(logits[~mask], log_joint).item()
    elbo = objective(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    assert -elbo.loss(model, guide) == pytest.approx(exact, abs=0.03)
    assert torch.equal(guide.median()["y_unobserved"][~mask], torch.tensor([0.0, 1.0]))


# Other guides, and samplers, of a relaxed model.


def continuous(x, subsample_size=None, z_law=None, b_law=None):
    """A shift, and discrete sites of two rows with the laws that are given."""
    shift = pyro.sample("shift", dist.Normal(0.0, 5.0))
    b = pyro.sample("b", (b_law or dist.Bernoulli)(probs=torch.tensor(0.3)))
    with pyro.plate("points", len(x), subsample_size=subsample_size) as index:
        law = z_law or dist.OneHotCategorical
        z = pyro.sample("z", law(probs=torch.tensor([0.5, 0.5])))
        mean = shift + b + z @ torch.tensor([0.0, 4.0])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])


def by_hand(hard, **keywords):
    columns = (CategoricalStraightThrough, BernoulliStraightThrough)
    z_law, b_law = columns if hard else (RelaxedCategorical, RelaxedBernoulli)
    return partial(continuous, z_law=partial(z_law, T), b_law=partial(b_law, T), **keywords)


def losses(model, make_guide, x, steps=20):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(model, make_guide(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    return [svi.step(x) for _ in range(steps)]


@pytest.mark.parametrize("subsample_size", [None, 3])
def test_a_normal_guide_of_a_soft_model(subsample_size):
    """All sites continuous: step by step as for the model written by hand."""
    x, _ = clusters(6)
    model = relaxed(partial(continuous, subsample_size=subsample_size), T, hard=False)
    expected = losses(by_hand(False, subsample_size=subsample_size), AutoNormal, x)
    assert losses(model, AutoNormal, x) == expected
    assert all(map(math.isfinite, expected))


@pytest.mark.parametrize("subsample_size", [None, 3])
def test_a_normal_guide_of_the_continuous_sites(subsample_size):
    x, _ = clusters(6)

    def guide(model):
        return AutoNormal(poutine.block(model, hide=["z", "b"]))

    model = relaxed(partial(continuous, subsample_size=subsample_size), T)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found vars in model but not guide")
        expected = losses(by_hand(True, subsample_size=subsample_size), guide, x)
        assert losses(model, guide, x) == expected
    with pytest.raises(ValueError, match="cannot handle discrete sample site"):
        AutoNormal(model)(x)


def chain_of(model, x, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    kernel = NUTS(model, step_size=0.1, adapt_step_size=False, max_tree_depth=3, **options)
    sampler = MCMC(kernel, num_samples=5, warmup_steps=2, disable_progbar=True)
    sampler.run(x)
    return sampler.get_samples()


def test_nuts_on_a_soft_model():
    x, _ = clusters(4)
    expected = chain_of(by_hand(False), x)
    found = chain_of(relaxed(continuous, T, hard=False), x)
    assert set(found) == {"shift", "b", "z"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_nuts_beside_enumerated_hard_sites():
    """The energy is that beside the plain sites, which are summed out."""
    x, _ = clusters(4)
    energy = [
        initialize_model(model, model_args=(x,))[1]
        for model in (relaxed(continuous, T), by_hand(True), continuous)
    ]
    for shift in torch.linspace(-3, 5, 7):
        at = [potential({"shift": shift}) for potential in energy]
        torch.testing.assert_close(at[0], at[2])
        assert torch.equal(at[0], at[1])
    assert set(chain_of(relaxed(continuous, T), x)) == {"shift"}


def test_hardened_values_inside_a_soft_model():
    """The data see hard values, whatever the guide."""
    seen = []

    @relaxed(temperature=T, hard=False)
    def model():
        z = pyro.sample("z", dist.OneHotCategorical(PROBS))
        seen.append(harden(z))
        pyro.sample("x", dist.Normal(seen[-1] @ torch.arange(4.0), 1.0), obs=torch.tensor(1.0))

    for guide in (AutoNormal(model), AutoRelaxed(model, T, hard=False)):
        pyro.clear_param_store()
        train(model, guide, Trace_ELBO(), steps=3)
    assert len(seen) >= 6
    assert all(((z == 0) | (z == 1)).all() for z in seen)


# Of two clusters at 0 and 3 with unit variances, the one that each of 200 points is in: the
# mixture of https://github.com/pyro-ppl/pyro/issues/3127.


def assignments(x):
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)


def local_logits(x):
    logits = pyro.param("logits", lambda: torch.zeros(len(x)))
    with pyro.plate("points", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logits))


@pytest.mark.parametrize(
    ("estimator", "temperature", "error"),
    [
        ("gumbel_softmax", 0.1, 0.03),
        ("gumbel_softmax", 0.5, 0.09),
        ("gumbel_softmax", 1.0, 0.12),
        ("reinmax", 1.0, 0.02),
    ],
)
def test_two_clusters_against_enumeration(estimator, temperature, error):
    x = torch.randn(200) + 3 * torch.bernoulli(torch.full((200,), 0.5))
    exact = torch.sigmoid(3 * x - 4.5)
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    model, guide = (
        relaxed(part, temperature, estimator=estimator) for part in (assignments, local_logits)
    )
    train(model, guide, elbo, steps=600, rate=0.3, args=(x,))
    found = pyro.param("logits").detach().sigmoid()
    assert ((found > 0.5) == (exact > 0.5)).float().mean() >= 0.98
    assert (found - exact).abs().mean() <= error
