# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The guide of a model's discrete sites, alone and beside the guides of the others."""

import math
import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.nn import PyroModule

from pyro_gumbel import AutoRelaxed, relaxed
from pyro_gumbel.distributions.wrappers import innermost
from tests.common import first_fast, slow_unless, z_bound
from tests.infer.sites import (
    PRIORS,
    PROBS,
    T,
    chain,
    clusters,
    exact_elbo,
    mixture,
    prior_only,
    train,
)

# What it is.


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("family", PRIORS)
def test_it_starts_at_the_prior(family, hard):
    def model():
        with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 2):
            pyro.sample("z", PRIORS[family]())

    model = model if hard else relaxed(model, T, hard=False)
    guide = AutoRelaxed(model, T, hard=hard)
    trace = poutine.trace(guide).get_trace()
    distribution, prior = trace.nodes["z"]["fn"], PRIORS[family]()
    assert distribution.batch_shape == (3, 2)
    assert distribution.event_shape == prior.event_shape
    assert [frame.name for frame in trace.nodes["z"]["cond_indep_stack"]] == ["outer", "inner"]
    torch.testing.assert_close(innermost(distribution).probs[0, 0], innermost(prior).probs)
    assert guide.logits.z.shape == innermost(distribution).logits.shape
    assert [name for name, _ in guide.named_parameters()] == ["logits.z_unconstrained"]


@pytest.mark.parametrize("how", ["a relaxed prior", "an exact divergence"])
@pytest.mark.parametrize("temperature", first_fast([0.5, 0.1, 1.0]))
@pytest.mark.parametrize("family", slow_unless(lambda family: family != "subset", PRIORS))
def test_without_data_it_recovers_the_prior(family, temperature, how):
    model = prior_only(family)
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
    expected = innermost(PRIORS[family]()).probs
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("family", slow_unless(lambda family: family == "subset", PRIORS))
def test_without_data_a_relaxed_guide_recovers_a_relaxed_prior(family):
    model = relaxed(prior_only(family), T, hard=False)
    guide = AutoRelaxed(model, T, hard=False)
    guide()
    with torch.no_grad():
        guide.logits.z += torch.randn_like(guide.logits.z)
    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=0)
    train(model, guide, elbo if family == "ranking" else TraceMeanField_ELBO(), steps=150, rate=0.2)
    found, expected = (
        innermost(distribution).probs
        for distribution in (guide.distribution("z"), PRIORS[family]())
    )
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_a_prior_that_depends_on_other_sites_is_averaged():
    """One draw is not enough: from Beta(.1, .1) it is nearly 0 or 1."""

    def model():
        probability = pyro.sample("probability", dist.Beta(0.1, 0.1))
        pyro.sample("z", dist.Bernoulli(probability))
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


def test_an_outcome_that_no_run_has_met_is_not_excluded():
    """Where the prior differs between runs, a uniform distribution is part of its mean."""

    def model():
        probability = pyro.sample("probability", dist.Uniform(0.2, 0.8))
        probs = torch.stack([probability, 1 - probability, torch.tensor(0.0)])
        pyro.sample("z", dist.OneHotCategorical(probs))

    guide = AutoRelaxed(model, T)
    guide()
    assert guide.distribution("z").probs[2].item() == pytest.approx(1 / 3 / 11)


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


def test_validation_is_as_the_site_has_it():
    for checks in (True, False):
        distribution = dist.Bernoulli(0.5, validate_args=checks)
        guide = AutoRelaxed(lambda distribution=distribution: pyro.sample("z", distribution), T)
        guide()
        assert guide.distribution("z")._validate_args is checks


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


def test_a_temperature_of_each_element_of_the_batch():
    temperature = torch.tensor([0.5, 1.0])

    def model():
        with pyro.plate("batch", 2):
            pyro.sample("z", dist.Bernoulli(logits=torch.zeros(2, 3)).to_event(1))

    guide = AutoRelaxed(model, temperature)
    guide()
    found = guide.distribution("z").base_dist.temperature
    assert torch.equal(found.expand(2, 3), temperature.unsqueeze(-1).expand(2, 3))


def test_errors_of_the_first_run():
    guide = AutoRelaxed(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), T)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"must have a latent discrete.*AutoNormal\(model\)"):
            guide()
    with pytest.raises(ValueError, match="must have a latent discrete site"):
        AutoRelaxed(poutine.condition(chain, {"z": torch.eye(4)[0]}), T)()
    with pytest.raises(TypeError, match=r'pyro.sample\("z", ...\).*OneHotCategorical\(probs=d.pro'):
        AutoRelaxed(lambda: pyro.sample("z", dist.Categorical(PROBS)), T, hard=False)()
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


# Beside other guides, and in plates.


@pytest.mark.parametrize("first", first_fast(["normal", "relaxed"]))
@pytest.mark.parametrize("subsample_size", first_fast([None, 20]))
def test_in_a_list_beside_a_normal_guide(subsample_size, first):
    x, chosen = clusters()
    model = relaxed(partial(mixture, subsample_size=subsample_size), T)
    guide = AutoGuideList(model, create_plates=lambda x: pyro.plate(
        "points", len(x), subsample_size=subsample_size))  # fmt: skip
    parts = [
        AutoNormal(poutine.block(model, hide=["z"])),
        AutoRelaxed(poutine.block(model, expose=["z"]), T),
    ]
    for part in parts if first == "normal" else parts[::-1]:
        guide.append(part)
    steps = 300 if subsample_size is None else 600
    train(model, guide, Trace_ELBO(), steps, rate=0.1, args=(x,))
    median = guide.median(x)
    assert median["z"].shape == (60, 2)
    assert (median["z"][:, 1] == chosen).float().mean() > 0.95
    assert (median["shift"] - 1.5).abs() < 0.5


def test_a_continuous_site_is_left_to_another_guide():
    x, _ = clusters()
    guide = AutoRelaxed(mixture, T)
    assert list(guide(x)) == ["z"]


def test_a_site_that_the_model_enumerates_is_left_to_it():
    def model():
        pyro.sample("y", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Bernoulli(0.3))

    assert list(AutoRelaxed(model, T)()) == ["z"]


def test_the_first_run_fixes_the_plates_and_each_run_its_subsample():
    x, _ = clusters()
    guide = AutoRelaxed(partial(mixture, subsample_size=20), T)
    assert guide(x)["z"].shape == (20, 2)
    assert guide.logits.z.shape == (60, 2)
    with torch.no_grad():  # every point has a sure cluster of its own
        guide.logits.z.copy_(torch.stack([torch.arange(60) % 2, torch.arange(60) % 2 == 0], -1))
        guide.logits.z.mul_(100)
    for _ in range(3):
        trace = poutine.trace(guide).get_trace(x)
        index, z = trace.nodes["points"]["value"], trace.nodes["z"]["value"]
        assert torch.equal(z[:, 0], (index % 2).float())
        assert trace.nodes["z"]["scale"] == 3


def loop(lengths):
    """Two sequences, with a masked site for each step of the longer one."""
    with pyro.plate("sequences", 2):
        for t in range(int(lengths.max())):
            with poutine.mask(mask=t < lengths):
                pyro.sample(f"z_{t}", dist.Bernoulli(pyro.sample(f"p_{t}", dist.Beta(1, 1))))


def next_numbers():
    """Of the generators of torch, Python and NumPy."""
    return torch.rand(()), random.random(), np.random.rand()


def noisy():
    """With random numbers of Python and NumPy."""
    scale = 1 + random.random() + np.random.rand()
    pyro.sample(
        "x", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)), scale), obs=torch.tensor(1.0)
    )


@pytest.mark.parametrize(
    ("model", "calls"),
    [
        (noisy, [()]),
        (mixture, [(torch.arange(9.0),)]),
        (mixture, [(torch.arange(9.0),), (torch.arange(9.0), None)]),  # other arguments
        (loop, [(torch.tensor([2, 1]),), (torch.tensor([1, 3]),)]),  # a site more
    ],
)
def test_what_it_learns_of_the_model_takes_no_random_numbers(model, calls):
    """A training that is resumed learns it a second time, and must go on as it would have."""
    guide = AutoRelaxed(model, T)
    for args in calls:
        pyro.set_rng_seed(1)
        first = guide(*args), next_numbers()
        pyro.set_rng_seed(1)
        torch.testing.assert_close((guide(*args), next_numbers()), first, rtol=0, atol=0)


# The sizes of plates.

DATA = torch.tensor([-1.0, 0.5, 1.0, 7.0])


def of_data(x):
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("sizes", [(4, 1), (4, 3), (1, 4)])
def test_data_of_another_size_than_in_the_first_run_are_refused(sizes, hard):
    """Pyro takes one point for four, and scales the ELBO by a fourth."""
    temperature = None if hard else 0.5
    guide = AutoRelaxed(relaxed(of_data, temperature, hard=hard), temperature, hard=hard)
    first, other = sizes
    guide(DATA[:first])
    words = rf'"z".*plate "points" must have size {first}, .* got {other}; write guide = Auto'
    for _ in range(2):
        with pytest.raises(ValueError, match=words):
            guide(DATA[:other])
    assert guide(DATA[-first:])["z"].shape == (first,)


def test_data_of_another_size_are_refused_beside_a_mask():
    guide = AutoRelaxed(relaxed(poutine.mask(of_data, mask=torch.tensor(True))))
    guide(DATA)
    with pytest.raises(ValueError, match=r'plate "points" must have size 4, .* got 1; write'):
        guide(DATA[:1])


def in_two_plates(x):
    with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, 2, dim=-1):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.deterministic("shared", torch.zeros(1, 1))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(5)).to_event(1), obs=x)


@pytest.mark.parametrize("shape", [(3, 2, 5), (2, 5), (5,)])
def test_data_without_the_dimension_of_a_plate_count_for_all_of_it(shape):
    assert AutoRelaxed(relaxed(in_two_plates))(torch.zeros(shape))["z"].shape == (3, 2)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 1, 5), r'2 elements of the plate "columns" in dimension -2, got shape \(3, 1, 5\)'),
        ((1, 2, 5), r'3 elements of the plate "rows" in dimension -3, got shape \(1, 2, 5\)'),
    ],
)
def test_data_with_a_dimension_of_one_in_a_plate_are_refused(shape, words):
    """In the first call and in later ones. Pyro counts them for each element."""
    guide = AutoRelaxed(relaxed(in_two_plates))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf'"x".*{words}; write obs=x.expand'):
            guide(torch.zeros(shape))
    guide(torch.zeros(3, 2, 5))
    with pytest.raises(ValueError, match=words):
        guide(torch.zeros(shape))


# Masks, and sites that are observed in part.


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("masked_by", ["the handler", "the distribution"])
def test_the_guide_has_the_masks_of_the_model(masked_by, objective):
    """A masked element has no prior term, and must have no entropy term in the objective."""
    probs, kept = torch.tensor([0.2, 0.6, 0.9]), torch.tensor([True, False, True])

    def model():
        with pyro.plate("bits", 3):
            distribution = dist.Bernoulli(probs)
            if masked_by == "the distribution":
                distribution = distribution.mask(kept)
            with poutine.mask(mask=kept if masked_by == "the handler" else True):
                z = pyro.sample("z", distribution)
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


@pytest.mark.parametrize("masked_by", ["the handler", "the distribution"])
def test_a_mask_may_change_from_call_to_call(masked_by):
    """At the prior the divergence is 0 without noise, whatever the mask."""

    @relaxed(temperature=T)
    def model(kept):
        distribution = dist.Bernoulli(torch.tensor([0.2, 0.6, 0.9]))
        by_handler = masked_by == "the handler"
        with pyro.plate("bits", 3), poutine.mask(mask=kept if by_handler else True):
            pyro.sample("z", distribution if by_handler else distribution.mask(kept))

    guide = AutoRelaxed(model, T)
    masks = [torch.tensor(mask) for mask in ([True, True, False], [False] * 3, [True] * 3)]
    for mask in masks:
        assert Trace_ELBO().loss(model, guide, mask) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("sites", [None, ["y"]])
def test_a_partly_observed_site_against_enumeration(sites, objective):
    """The guide has the missing elements, and only they count in the objective."""
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


# Objectives.


@pytest.mark.parametrize("objective", first_fast([
    Trace_ELBO, JitTrace_ELBO, RenyiELBO, TraceMeanField_ELBO, TraceEnum_ELBO, TraceGraph_ELBO,
], 2))  # fmt: skip
def test_every_objective_trains_it(objective):
    """The datum says that the second of three binary elements is 1."""

    def model():
        with pyro.plate("bits", 3):
            z = pyro.sample("z", dist.Bernoulli(0.5))
        mean = z @ torch.tensor([-3.0, 2.0, -3.0])
        pyro.sample("x", dist.Normal(mean, 0.5), obs=torch.tensor(2.0))

    guide = AutoRelaxed(model, T)
    options = {} if objective is RenyiELBO else {"strict_enumeration_warning": False}
    if objective is JitTrace_ELBO:
        options["ignore_jit_warnings"] = True
    train(model, guide, objective(num_particles=5, **options), steps=60, rate=0.2)
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
    """From the same seed the numbers are the same."""
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
