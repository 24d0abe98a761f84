# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Inside Pyro: every objective, enumeration, autoguides, NUTS, and what importing leaves alone."""

import math
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

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
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    autoguide,
    config_enumerate,
)
from pyro.ops.stats import effective_sample_size
from pyro.optim import ExponentialLR
from scipy import stats
from scipy.optimize import minimize
from torch.distributions.transforms import StickBreakingTransform
from torch.nn.functional import logsigmoid, one_hot, pad

import pyro_gumbel
from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    SubsetStraightThrough,
    m_hot,
)
from pyro_gumbel.links import Hypersimplex
from tests.common import (
    ALL,
    ALPHA,
    COORDINATES,
    HARD,
    ONE_BIT,
    SUBSETS,
    assert_same_mean,
    event_shape,
    law_of,
    make,
    param_shape,
    z_bound,
)

T = 0.5


# One of three and one bit, seen through the mean of a normal variate.

KINDS = {
    "soft": (RelaxedCategorical, RelaxedBernoulli),
    "hard": (CategoricalStraightThrough, BernoulliStraightThrough),
    "discrete": (
        lambda temperature, logits: dist.OneHotCategorical(logits=logits),
        lambda temperature, logits: dist.Bernoulli(logits=logits),
    ),
}
KINDS["soft set"] = (lambda t, logits: RelaxedSubset(t, 2, logits=logits), RelaxedBernoulli)
KINDS["hard set"] = (
    lambda t, logits: SubsetStraightThrough(t, 2, logits=logits),
    BernoulliStraightThrough,
)
KINDS["soft order"] = (lambda t, logits: RelaxedPlackettLuce(t, 2, logits=logits), RelaxedBernoulli)
KINDS["hard order"] = (
    lambda t, logits: PlackettLuceStraightThrough(t, 2, logits=logits),
    BernoulliStraightThrough,
)
KINDS["hard without rsample"] = tuple(
    lambda temperature, logits, cls=cls: cls(temperature, logits=logits).has_rsample_(False)
    for cls in KINDS["hard"]
)
MEANS = torch.tensor([-1.0, 0.5, 2.0])
SHIFT = 1.5
DATA = torch.tensor([0.7, -0.4, 1.9, 3.0])


@contextmanager
def inside(context):
    """The context of a model and of its guide; yields what is observed there."""
    if context == "no plate":
        yield DATA[0]
    elif context == "plate":
        with pyro.plate("data", 4):
            yield DATA
    elif context == "subsampled plate":
        with pyro.plate("data", 4, subsample_size=2) as index:
            yield DATA[0].expand(4)[index]  # alike, so that the loss is that of any subsample
    elif context == "mask":
        with pyro.plate("data", 4), poutine.mask(mask=torch.tensor([True, False, True, True])):
            yield DATA
    elif context == "scale":
        with poutine.scale(scale=2.5):
            yield DATA[0]


CONTEXTS = ["no plate", "plate", "subsampled plate", "mask", "scale"]


def latents(kind, infer, name, z_logits, b_logit):
    one_of_k, bit = KINDS[kind]
    z_logits = pyro.param(f"{name}_z", torch.tensor(z_logits))
    b_logit = pyro.param(f"{name}_b", torch.tensor(b_logit))
    z = pyro.sample("z", one_of_k(T, logits=z_logits), infer=infer.get("z", {}))
    b = pyro.sample("b", bit(T, logits=b_logit), infer=infer.get("b", {}))
    return z, b


def model(kind, context, observed=True, **infer):
    with inside(context) as data:
        z, b = latents(kind, infer, "p", [0.3, -0.2, 0.1], 0.4)
        mean = (m_hot(z) if "order" in kind else z) @ MEANS + b * SHIFT
        pyro.sample("x", dist.Normal(mean, 1.0), obs=data if observed else None)


def guide(kind, context, **infer):
    with inside(context):
        latents(kind, infer, "q", [-0.5, 0.2, 0.6], -0.3)


def no_guide():
    pass


def gradients():
    """By name, of every parameter that has one; and no gradient afterwards."""
    found = {}
    for name, parameter in pyro.get_param_store().named_parameters():
        if parameter.grad is not None:
            found[name], parameter.grad = parameter.grad.clone(), None
    return found


def particle_losses(kind, context, n=20_000):
    """log q - log p of n draws, by hand."""
    with torch.no_grad(), pyro.plate("particles", n, dim=-2):
        q = poutine.trace(guide).get_trace(kind, context)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(kind, context)
    q.compute_log_prob()
    p.compute_log_prob()
    latent = sum(q.nodes[name]["log_prob"].sum(-1) for name in "zb")
    joint = sum(p.nodes[name]["log_prob"].sum(-1) for name in "zbx")
    return latent - joint


def assert_mean_loss(loss, count, particles):
    """`loss`, a mean over `count` particles, is one of the same law as `particles`."""
    error = particles.std() * math.sqrt(1 / count + 1 / len(particles))
    assert abs(loss - particles.mean()) < z_bound() * error


MANY = {"num_particles": 5_000, "vectorize_particles": True, "max_plate_nesting": 1}
OBJECTIVES = {
    "Trace_ELBO": partial(Trace_ELBO, **MANY),
    "Trace_ELBO, one particle": Trace_ELBO,
    "TraceMeanField_ELBO": partial(TraceMeanField_ELBO, **MANY),
    "TraceGraph_ELBO": partial(TraceGraph_ELBO, **MANY),
    "JitTrace_ELBO": partial(JitTrace_ELBO, ignore_jit_warnings=True, **MANY),
    "RenyiELBO, one particle": partial(RenyiELBO, alpha=0.5),  # with one, of any order the ELBO
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_every_objective_has_the_same_mean_and_a_gradient(kind, objective, context):
    assert_objective(OBJECTIVES[objective](), kind, context, 20_000)


def assert_objective(elbo, kind, context, n):
    """The mean loss is that of `n` particles by hand, and all parameters have gradients."""
    evaluations = 100 if elbo.num_particles == 1 else 3
    p, q = partial(model, kind, context), partial(guide, kind, context)
    losses = torch.tensor([elbo.loss_and_grads(p, q) for _ in range(evaluations)])
    assert len(losses.unique()) > 1  # compiled or not, the noise is drawn each time
    found = gradients()
    assert found.keys() == {"p_z", "p_b", "q_z", "q_b"}
    for gradient in found.values():
        assert gradient.isfinite().all()
        assert gradient.any()
    count = evaluations * elbo.num_particles
    assert_mean_loss(losses.mean(), count, particle_losses(kind, context, n))


@pytest.mark.parametrize(
    ("objective", "context"),
    [
        *(("Trace_ELBO", context) for context in CONTEXTS),
        *((objective, "plate") for objective in ("TraceMeanField_ELBO", "TraceGraph_ELBO")),
    ],
)
@pytest.mark.parametrize("kind", ["soft set", "hard set", "soft order", "hard order"])
def test_objectives_with_sets_and_orders(kind, objective, context):
    elbo = OBJECTIVES[objective]()
    elbo.num_particles = 500  # a set's mass is a quadrature
    assert_objective(elbo, kind, context, 5_000)


@pytest.mark.parametrize(
    ("q_law", "p_law"),
    [
        (  # more outcomes than are enumerated
            lambda x: SubsetStraightThrough(0.5, 10, logits=x),
            lambda x: SubsetStraightThrough(0.5, 10, logits=0 * x),
        ),
        (  # temperatures out of reach
            lambda x: RelaxedCategorical(1e-3, logits=x),
            lambda x: RelaxedCategorical(2.0, logits=0 * x),
        ),
        (  # no exact form
            lambda x: RelaxedPlackettLuce(0.5, 3, logits=x),
            lambda x: RelaxedPlackettLuce(0.5, 3, logits=0 * x),
        ),
    ],
    ids=["many sets", "far temperatures", "orders"],
)
def test_without_an_exact_divergence_the_objective_samples_it(q_law, p_law):
    x = torch.randn(40, dtype=torch.float64)

    def q():
        pyro.sample("z", q_law(pyro.param("logits", x)))

    def p():
        pyro.sample("z", p_law(x))

    losses = []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        losses.append(TraceMeanField_ELBO().loss_and_grads(p, q))
        pyro.set_rng_seed(seed)
        assert losses[-1] == pytest.approx(Trace_ELBO().loss(p, q))
    assert losses[0] != losses[1]
    assert gradients()["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("cls", "temperatures"),
    [
        (RelaxedBernoulli, (2 / 3, 0.5)),  # the two of Maddison et al. (2017)
        (RelaxedCategorical, (0.5, 0.5)),
        (LogitRelaxedSubset, (0.1, 1.0)),
    ],
)
def test_the_divergence_of_soft_sites_has_no_monte_carlo_noise(cls, temperatures):
    """A model without data: what is left of the mean-field ELBO is the same at each draw."""
    x_q, x_p = (torch.randn(2, 3, *param_shape(cls, 4), dtype=torch.float64) for _ in range(2))

    def q():
        logits = pyro.param("logits", x_q.clone())
        with pyro.plate("rows", 2):
            pyro.sample("z", law_of(cls, temperatures[0], logits=logits).to_event(1))

    def p():
        with pyro.plate("rows", 2):
            pyro.sample("z", law_of(cls, temperatures[1], logits=x_p).to_event(1))

    losses, gradients_of_draws = [], []
    for _ in range(1000):
        losses.append(TraceMeanField_ELBO().loss_and_grads(p, q))
        gradients_of_draws.append(gradients()["logits"])
    assert torch.stack(gradients_of_draws).std(0).max() < 1e-15
    assert gradients_of_draws[0].abs().max() > 1e-3
    assert max(losses) - min(losses) < 1e-12
    with torch.no_grad(), pyro.plate("particles", 20_000, dim=-2):
        guide_trace = poutine.trace(q).get_trace()
        model_trace = poutine.trace(poutine.replay(p, trace=guide_trace)).get_trace()
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
    ratios = guide_trace.nodes["z"]["log_prob"] - model_trace.nodes["z"]["log_prob"]
    assert_same_mean(ratios.sum(-1), torch.tensor(losses[0]))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_many_particles_of_a_renyi_bound_are_tighter(kind, context):
    """At order 0 it is the log of the mean weight, taken here by hand."""
    elbo = RenyiELBO(alpha=0.0, num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    p, q = partial(model, kind, context), partial(guide, kind, context)
    loss = elbo.loss_and_grads(p, q)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients().values())
    particles = particle_losses(kind, context)
    weights = (-particles - (-particles).max()).exp()
    evidence = weights.mean().log() + (-particles).max()
    error = weights.std() / weights.mean() * math.sqrt(2 / len(weights))
    assert abs(-loss - evidence) < z_bound() * error
    assert loss < particles.mean() - z_bound() * particles.std() / math.sqrt(len(particles))


@pytest.mark.parametrize("context", ["no plate", "plate", "mask"])
def test_many_particles_of_a_hard_guide_find_the_exact_evidence(context):
    elbo = RenyiELBO(alpha=0.0, num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        loss = elbo.loss(partial(model, "hard", context), partial(guide, "hard", context))
        p = config_enumerate(partial(model, "discrete", context))
        exact = TraceEnum_ELBO(max_plate_nesting=1).loss(p, no_guide)
    weights = (-particle_losses("hard", context)).exp()
    error = weights.std() / weights.mean() / math.sqrt(len(weights))
    assert abs(loss - exact) < z_bound() * error


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_predictive(kind, context):
    n = 4_000
    p, q = partial(model, kind, context, observed=False), partial(guide, kind, context)
    batch = {"plate": (4,), "subsampled plate": (2,), "mask": (4,)}.get(context, ())
    predict = Predictive(p, guide=q, num_samples=n, parallel=True, return_sites=("z", "b", "x"))
    drawn = predict()
    assert drawn["z"].shape == (n, *batch, 3)
    assert drawn["b"].shape == drawn["x"].shape == (n, *batch)
    top = one_hot(drawn["z"].argmax(-1), 3).float()
    on = (drawn["b"] > 0.5).float()
    if kind == "hard":
        assert torch.equal(drawn["z"], top)
        assert torch.equal(drawn["b"], on)
    else:
        assert (drawn["z"] != top).any()
        assert (drawn["b"] != on).any()
    # Rounded, a soft value has the discrete law too.
    assert_same_mean(top, pyro.param("q_z").detach().softmax(-1).expand(top.shape[1:]))
    assert_same_mean(on, pyro.param("q_b").detach().sigmoid().expand(on.shape[1:]))
    assert_same_mean(drawn["x"] - drawn["z"] @ MEANS - drawn["b"] * SHIFT, 0.0)


# Enumeration.


def enumerated(kind, context, p_infer, q_infer):
    """The loss and the gradients of one evaluation from fresh parameters."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    q = no_guide if q_infer is None else partial(guide, kind, context, **q_infer)
    loss = elbo.loss_and_grads(partial(model, kind, context, **p_infer), q)
    return torch.tensor(loss), gradients()


PARALLEL, SEQUENTIAL = {"enumerate": "parallel"}, {"enumerate": "sequential"}
STRATEGIES = {  # of the model's two sites and of the guide's
    "model": ({"z": PARALLEL, "b": PARALLEL}, None),
    "guide in parallel": ({}, {"z": PARALLEL, "b": PARALLEL}),
    "guide in sequence": ({}, {"z": SEQUENTIAL, "b": SEQUENTIAL}),
    "guide in both ways": ({}, {"z": SEQUENTIAL, "b": PARALLEL}),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_enumeration_is_that_of_the_plain_classes(strategy, context):
    loss, found = enumerated("hard", context, *STRATEGIES[strategy])
    expected_loss, expected = enumerated("discrete", context, *STRATEGIES[strategy])
    of_the_guide = set() if strategy == "model" else {"q_z", "q_b"}
    assert found.keys() == expected.keys() == {"p_z", "p_b"} | of_the_guide
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        assert gradient.any()
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


SEVERAL = PARALLEL | {"num_samples": 10}


@pytest.mark.parametrize("context", ["no plate", "mask"])
@pytest.mark.parametrize(
    "infer",
    [
        {"b": PARALLEL},
        {"b": SEQUENTIAL},
        {"z": SEVERAL, "b": PARALLEL},
        {"z": SEVERAL, "b": SEVERAL},
    ],
    ids=["beside a parallel one", "beside a sequential one", "several times", "both several times"],
)
def test_a_hard_site_is_sampled_under_trace_enum(infer, context):
    """It is pathwise there too: its gradient is in the mean the one that Trace_ELBO has."""
    sampled = [f"q_{name}" for name in "zb" if infer.get(name, SEVERAL) is SEVERAL]
    few = MANY | {"num_particles": 50}
    p, q = partial(model, "hard", context), partial(guide, "hard", context)
    enum, plain = TraceEnum_ELBO(**few), Trace_ELBO(**few)
    losses, differences = [], []
    for _ in range(200):
        losses.append(enum.loss_and_grads(p, partial(guide, "hard", context, **infer)))
        found = gradients()
        assert all(gradient.isfinite().all() and gradient.any() for gradient in found.values())
        plain.loss_and_grads(p, q)
        expected = gradients()
        differences.append(torch.cat([(found[n] - expected[n]).reshape(-1) for n in sampled]))
    assert_same_mean(torch.stack(differences), 0.0)
    assert_mean_loss(torch.tensor(losses).mean(), 200 * 50, particle_losses("hard", context))


# The objective of a hard guide is that of the discrete model.


class ThreeLatents:
    """Three latents of four categories, coupled by one observation; 64 states in all."""

    def __init__(self, seed):
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
        self.prior, self.weights, self.x = draw(3, 4), draw(3, 4, 5), 2 * draw(5)
        self.logits = draw(3, 4)
        self.states = one_hot(torch.tensor(list(product(range(4), repeat=3))), 4).float()

    def log_likelihood(self):
        mean = torch.einsum("sik,ikd->sd", self.states, self.weights)
        return dist.Normal(mean, 1.0).log_prob(self.x).sum(-1)

    def terms(self, logits):
        """q and log p - log q of each state."""
        log_q = (self.states * logits.log_softmax(-1)).sum((-1, -2))
        log_prior = (self.states * self.prior.log_softmax(-1)).sum((-1, -2))
        return log_q.exp(), self.log_likelihood() + log_prior - log_q

    def model(self, law):
        z = [pyro.sample(f"z{i}", law(logits=self.prior[i])) for i in range(3)]
        mean = sum(z[i] @ self.weights[i] for i in range(3))
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=self.x)

    def guide(self, law):
        logits = pyro.param("logits", self.logits)
        for i in range(3):
            pyro.sample(f"z{i}", law(logits=logits[i]))


SEEDS = [0, 1]  # of the model
PRIORS = {"hard prior": KINDS["hard"][0], "plain prior": KINDS["discrete"][0]}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_hard_guide_reports_the_discrete_elbo(objective, prior, temperature, seed):
    three, n = ThreeLatents(seed), 50_000
    q, log_ratio = three.terms(three.logits)
    exact = (q * log_ratio).sum()
    # The mean-field objective samples the likelihood alone, and has the rest in closed form.
    sampled = log_ratio if objective is Trace_ELBO else three.log_likelihood()
    error = (q * (sampled - (q * sampled).sum()) ** 2).sum().sqrt() / math.sqrt(n)
    elbo = objective(num_particles=n, vectorize_particles=True, max_plate_nesting=0)
    loss = elbo.loss(
        partial(three.model, partial(PRIORS[prior], temperature)),
        partial(three.guide, partial(CategoricalStraightThrough, temperature)),
    )
    assert abs(loss + exact) < z_bound() * error


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
def test_the_built_in_straight_through_guide_reports_another(temperature, seed):
    three, n = ThreeLatents(seed), 50_000
    q, log_ratio = three.terms(three.logits)
    builtin = dist.RelaxedOneHotCategoricalStraightThrough
    loss = Trace_ELBO(num_particles=n, vectorize_particles=True, max_plate_nesting=0).loss(
        partial(three.model, dist.OneHotCategorical),
        partial(three.guide, partial(builtin, torch.tensor(temperature), validate_args=False)),
    )
    assert abs(loss + (q * log_ratio).sum()) > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_of_a_hard_guide_is_near_the_exact_one(seed):
    three = ThreeLatents(seed)
    logits = three.logits.clone().requires_grad_()
    q, log_ratio = three.terms(logits)
    (exact,) = torch.autograd.grad(-(q * log_ratio).sum(), logits)
    law = partial(CategoricalStraightThrough, T)
    elbo = Trace_ELBO(num_particles=50_000, vectorize_particles=True, max_plate_nesting=0)
    elbo.loss_and_grads(partial(three.model, law), partial(three.guide, law))
    cosine = torch.cosine_similarity(gradients()["logits"].flatten(), exact.flatten(), dim=0)
    assert cosine > 0.9


def test_a_guide_without_data_recovers_the_prior():
    probs = torch.tensor([0.7, 0.1, 0.1, 0.1])

    def prior():
        pyro.sample("z", CategoricalStraightThrough(T, probs=probs))

    def posterior():
        logits = pyro.param("logits", torch.zeros(4))
        pyro.sample("z", CategoricalStraightThrough(T, logits=logits))

    elbo = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=0)
    fit(prior, posterior, elbo, rate=0.1, steps=400)
    found = pyro.param("logits").detach().softmax(-1)
    torch.testing.assert_close(found, probs, rtol=0.0, atol=0.02)
    assert abs(elbo.loss(prior, posterior)) < 0.01


def fit(model, guide, elbo, rate, steps):
    """Adam with a rate that decays by a factor of 100."""
    schedule = {
        "optimizer": torch.optim.Adam,
        "optim_args": {"lr": rate},
        "gamma": 0.01 ** (1 / steps),
    }
    optimizer = ExponentialLR(schedule)
    svi = SVI(model, guide, optimizer, elbo)
    for _ in range(steps):
        svi.step()
        optimizer.step()


# Hard sites are discrete for Pyro.


@pytest.mark.parametrize(
    "guide_class",
    [
        autoguide.AutoDelta,
        autoguide.AutoNormal,
        autoguide.AutoDiagonalNormal,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoLaplaceApproximation,
        autoguide.AutoIAFNormal,
        autoguide.AutoStructured,
    ],
)
@pytest.mark.parametrize("cls", HARD)
def test_continuous_autoguides_refuse_hard_sites(cls, guide_class):
    def p():
        pyro.sample("soft", dist.Normal(0.0, 1.0))
        pyro.sample("hard", make(cls).to_event(1))

    with pytest.raises(ValueError, match="cannot handle discrete sample site 'hard'"):
        guide_class(p)()


@pytest.mark.parametrize("cls", ALL)
def test_only_hard_sites_are_discrete(cls):
    def p():
        pyro.sample("v", make(cls, batch_shape=()))

    site = poutine.trace(config_enumerate(p)).get_trace().nodes["v"]
    hard = cls in HARD
    assert site["fn"].support.is_discrete == site["fn"].has_enumerate_support == hard
    assert site["infer"].get("enumerate") == ("parallel" if hard else None)


def test_nuts_marginalises_hard_sites():
    """Beside them a normal mean, conjugate given z: the posterior is a mixture of three normals."""
    logits, x = torch.tensor([0.3, -0.2, 0.1]), torch.tensor(1.0)

    def p():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", CategoricalStraightThrough(T, logits=logits))
        pyro.sample("x", dist.Normal(mean + z @ MEANS, 1.0), obs=x)

    drawn = run_nuts(p)
    assert drawn.keys() == {"mean"}
    weights = (logits + dist.Normal(MEANS, math.sqrt(2)).log_prob(x)).softmax(-1)
    assert_same_mean_of_chain(drawn["mean"].unsqueeze(-1), (weights * (x - MEANS) / 2).sum())


# Soft sites are continuous: NUTS and autoguides find the posterior that quadrature finds.


def run_nuts(p):
    kernel = NUTS(p, max_tree_depth=5)
    chain = MCMC(kernel, num_samples=200, warmup_steps=100, disable_progbar=True)
    chain.run()
    return chain.get_samples()


def assert_same_mean_of_chain(values, expected):
    """The means over a Markov chain of the columns of `values` are `expected`."""
    values = values.double()
    size = effective_sample_size(values.unsqueeze(0)).clamp(max=len(values))
    t = (values.mean(0) - expected).abs() / (values.std(0) / size.sqrt())
    bound = stats.t.isf(ALPHA / 2 / len(t), size.min().item() - 1)
    assert t.max() < bound


class Posterior:
    """One soft site and a noisy sight of its value, in log-ratios y_i = v_i - v_k.

    A bit is one of two: its logit is the one log-ratio, its logits are (x, 0).
    """

    def __init__(self, cls, temperature, dtype=torch.float64):
        self.cls, self.temperature = cls, temperature
        self.logits = [0.6, 0.0] if cls in ONE_BIT else [0.4, -0.3, 0.2]
        self.means = [1.0, 0.0] if cls in ONE_BIT else [0.0, 1.0, 2.0]
        self.dtype, self.x, self.scale = dtype, 0.3, 0.7

    def model(self):
        logits = torch.tensor(self.logits, dtype=self.dtype)
        logits = logits[0] if self.cls in ONE_BIT else logits
        v = pyro.sample("v", law_of(self.cls, self.temperature, logits=logits))
        mean = self.soft(v) @ torch.tensor(self.means, dtype=self.dtype)
        pyro.sample("x", dist.Normal(mean, self.scale), obs=torch.tensor(self.x, dtype=self.dtype))

    def soft(self, v):
        """The value of a site over the outcomes."""
        to_value = {
            LogitRelaxedBernoulli: torch.sigmoid,
            ExpRelaxedCategorical: torch.exp,
            LogitRelaxedSubset: torch.sigmoid,
        }
        s = to_value[self.cls](v) if self.cls in to_value else v
        return torch.stack([s, 1 - s], -1) if self.cls in ONE_BIT else s

    def log_ratios(self, v):
        """The log-ratios of a site's value."""
        if self.cls is LogitRelaxedBernoulli:
            return v.unsqueeze(-1)
        if self.cls is RelaxedSubset:
            v = v.logit()
        elif self.cls not in COORDINATES:
            v = self.soft(v).log()
        return v[..., :-1] - v[..., -1:]

    def log_joint(self, y):
        """By the formula, in float64: the Concrete density of log-ratios, and the normal one.

        The differences of the coordinates of a set have the same law.
        """
        k, tau = y.shape[-1] + 1, self.temperature
        v = pad(y, (0, 1)).log_softmax(-1)
        d = torch.tensor(self.logits, dtype=torch.float64) - tau * v
        prior = math.lgamma(k) + (k - 1) * math.log(tau) + (d - d.logsumexp(-1, True)).sum(-1)
        soft = v.exp()
        if self.cls in SUBSETS:
            soft = Hypersimplex(2)(v, torch.ones(1, dtype=torch.float64))
        mean = soft @ torch.tensor(self.means, dtype=torch.float64)
        residual = (self.x - mean) / self.scale
        return prior - residual**2 / 2 - math.log(self.scale) - math.log(2 * math.pi) / 2

    def log_joint_of_unconstrained(self, u):
        """The same where Pyro works: there a simplex has stick-breaking coordinates."""
        if self.cls is not RelaxedCategorical:
            return self.log_joint(u)
        sticks = StickBreakingTransform()
        s = sticks(u)
        log_s = s.log()
        ds_du = sticks.log_abs_det_jacobian(u, s)
        return self.log_joint(log_s[..., :-1] - log_s[..., -1:]) + ds_du - log_s.sum(-1)

    def features(self, y):
        """Bounded functions of a value: of where it is, and of how far it is saturated."""
        s = pad(y, (0, 1)).softmax(-1)
        return torch.cat([s[..., :-1], (self.temperature * y / 2).tanh()], -1)

    def expected_features(self):
        """By the trapezoidal rule; the noise beyond 35 has a mass of 1e-15."""
        line = torch.linspace(-35, 35, 701, dtype=torch.float64) / self.temperature
        y = torch.cartesian_prod(*[line] * (len(self.logits) - 1)).reshape(-1, len(self.logits) - 1)
        return self.log_joint(y).softmax(0) @ self.features(y)

    def divergence(self, loc, log_scale):
        """KL from a normal law of the unconstrained coordinates, up to the log evidence."""
        n = 801 if len(loc) == 1 else 161
        line = torch.linspace(-7, 7, n, dtype=torch.float64)
        noise = torch.cartesian_prod(*[line] * len(loc)).reshape(-1, len(loc))
        weights = (-(noise**2).sum(-1) / 2).softmax(0)
        entropy = log_scale.sum() + len(loc) * (1 + math.log(2 * math.pi)) / 2
        return -entropy - weights @ self.log_joint_of_unconstrained(loc + log_scale.exp() * noise)

    def smallest_divergence(self):
        size = len(self.logits) - 1

        def objective(point):
            point = torch.tensor(point, requires_grad=True)
            value = self.divergence(point[:size], point[size:])
            return value.item(), torch.autograd.grad(value, point)[0].numpy()

        start = [0.0] * size + [-math.log(self.temperature)] * size
        best = minimize(objective, start, jac=True)
        assert best.success, best.message
        return best.fun


SITES = [  # a class, temperature and dtype that NUTS and autoguides can be used with
    *product([RelaxedBernoulli, RelaxedCategorical], [0.5, 1.0], [torch.float64]),
    *product([LogitRelaxedBernoulli, ExpRelaxedCategorical], [0.1], [torch.float32, torch.float64]),
    (RelaxedSubset, 0.5, torch.float64),
    (LogitRelaxedSubset, 0.1, torch.float32),
]


@pytest.mark.parametrize(("cls", "temperature", "dtype"), SITES)
def test_nuts_agrees_with_quadrature(cls, temperature, dtype):
    posterior = Posterior(cls, temperature, dtype)
    v = run_nuts(posterior.model)["v"]
    assert v.dtype == dtype
    values = posterior.features(posterior.log_ratios(v.double()))
    assert_same_mean_of_chain(values, posterior.expected_features())


@pytest.mark.parametrize(("cls", "temperature", "dtype"), SITES)
def test_auto_normal_finds_the_nearest_normal(cls, temperature, dtype):
    posterior = Posterior(cls, temperature, dtype)
    torch.set_default_dtype(dtype)
    q = autoguide.AutoNormal(posterior.model, init_scale=1.0)
    elbo = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=0)
    fit(posterior.model, q, elbo, rate=0.1 / temperature, steps=400)
    found = [p.detach().double().reshape(-1) for p in (q.locs.v, q.scales.v.log())]
    excess = posterior.divergence(*found).item() - posterior.smallest_divergence()
    assert -1e-6 < excess < 0.003
    losses = torch.tensor([elbo.loss(posterior.model, q) for _ in range(200)])
    assert_same_mean(losses, posterior.divergence(*found))


@pytest.mark.parametrize("cls", [LogitRelaxedBernoulli, ExpRelaxedCategorical])
def test_the_laplace_approximation_is_exact_at_the_mode(cls):
    posterior = Posterior(cls, T)
    torch.set_default_dtype(torch.float64)
    q = autoguide.AutoLaplaceApproximation(posterior.model)
    fit(posterior.model, q, Trace_ELBO(), rate=0.1, steps=300)
    loc = q.loc.detach()
    precision = torch.autograd.functional.hessian(lambda u: -posterior.log_joint(u), loc)
    gradient = torch.autograd.functional.jacobian(posterior.log_joint, loc)
    torch.testing.assert_close(gradient, torch.zeros_like(loc), rtol=0.0, atol=1e-3)
    covariance = q.laplace_approximation().get_posterior().covariance_matrix
    torch.testing.assert_close(covariance, precision.inverse(), rtol=1e-6, atol=1e-6)


# Odds and ends.


@pytest.mark.parametrize("context", ["no plate", "plate"])
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceGraph_ELBO])
def test_without_rsample_a_hard_site_has_the_score_function(objective, context):
    """No gradient in the sample, and an unbiased one in the mean."""
    p, q = partial(model, "hard", context), partial(guide, "hard without rsample", context)
    trace = poutine.trace(q).get_trace()
    trace.compute_score_parts()
    for name in "zb":
        site = trace.nodes[name]
        assert not site["fn"].has_rsample
        assert not site["value"].requires_grad
        assert ((site["value"] == 0) | (site["value"] == 1)).all()
        assert torch.equal(site["score_parts"].score_function, site["log_prob"])
        assert site["log_prob"].all()
        assert not site["fn"].expand_by([2]).has_rsample
    assert all(cls.has_rsample for cls in HARD)

    elbo, found = objective(**MANY | {"num_particles": 100}), []
    for _ in range(200):
        elbo.loss_and_grads(p, q)
        found.append(gradients())
    _, exact = enumerated("discrete", context, *STRATEGIES["guide in parallel"])
    for name, gradient in exact.items():
        assert_same_mean(torch.stack([g[name] for g in found]), gradient)


@pytest.mark.parametrize("cls", ALL)
def test_wrappers_and_handlers_reach_the_law(cls):
    law, mask = make(cls, batch_shape=(3,)), torch.tensor([True, False, True])

    def p():
        with pyro.plate("rows", 4), poutine.scale(scale=2.5):
            return pyro.sample("v", law.mask(mask).expand_by([4]).to_event(1))

    trace = poutine.trace(p).get_trace()
    trace.compute_log_prob()
    value, site = trace.nodes["v"]["value"], trace.nodes["v"]
    assert value.shape == (4, 3, *event_shape(cls))
    assert value.requires_grad
    expected = 2.5 * torch.where(mask, law.log_prob(value), 0.0).sum(-1)
    torch.testing.assert_close(site["log_prob"], expected)


@pytest.mark.parametrize("cls", [RelaxedBernoulli, RelaxedCategorical])
def test_a_compiled_objective_reads_the_data_that_it_is_given(cls):
    """Observed soft values remember their coordinates; the first ones' must not be compiled in."""
    logits = torch.randn(event_shape(cls))

    def p(data):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        # Validated, the copy of a saturated value would warn.
        pyro.sample("s", cls(T, logits=logits + mean, validate_args=False), obs=data)

    def q(data):
        pyro.sample("mean", dist.Delta(pyro.param("guess", torch.tensor(0.3))))

    jit, plain = JitTrace_ELBO(ignore_jit_warnings=True), Trace_ELBO()
    for _ in range(3):
        data = cls(0.1, logits=logits).sample()
        loss = jit.loss_and_grads(p, q, data)
        assert loss == pytest.approx(plain.loss(p, q, data.clone()), rel=1e-5)


@pytest.mark.parametrize("cls", [RelaxedBernoulli, RelaxedCategorical])
def test_a_model_scores_what_the_guide_drew_where_floats_saturate(cls):
    """Replayed, at another temperature; by the formula at the coordinates, in float64."""
    logits = torch.randn(2, 500, *event_shape(cls))
    twin = {RelaxedBernoulli: LogitRelaxedBernoulli, RelaxedCategorical: ExpRelaxedCategorical}[cls]

    def site(law, temperature, logits):
        with pyro.plate("data", 500):
            return pyro.sample("v", law(temperature, logits=logits))

    pyro.set_rng_seed(1)
    q = poutine.trace(site).get_trace(cls, 0.05, logits[0])
    pyro.set_rng_seed(1)
    v = site(twin, 0.05, logits[0]).double()  # the same draw
    p = poutine.trace(poutine.replay(site, trace=q)).get_trace(cls, 0.3, logits[1])
    assert p.nodes["v"]["value"] is q.nodes["v"]["value"]
    assert (p.nodes["v"]["value"] == 1).float().mean() > 0.1
    for trace, temperature, x in ((q, 0.05, logits[0]), (p, 0.3, logits[1])):
        trace.compute_log_prob()
        expected = concrete_log_prob(cls, v, x.double(), temperature)
        found = trace.nodes["v"]["log_prob"].double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def concrete_log_prob(cls, v, x, temperature):
    """The density of the value at coordinates v; a bit is one of two."""
    if cls is RelaxedBernoulli:
        v = torch.stack([logsigmoid(v), logsigmoid(-v)], -1)
        x = torch.stack([x, torch.zeros_like(x)], -1)
    k, d = x.shape[-1], x - temperature * v
    scale = math.lgamma(k) + (k - 1) * math.log(temperature)
    return scale + (d - d.logsumexp(-1, keepdim=True)).sum(-1) - v.sum(-1)


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_masked_impossible_entry_leaves_no_nan(kind, objective):
    one_of_k, bit = KINDS[kind]
    impossible = torch.tensor([[0.2, 0.3, -0.4], [-math.inf, 0.3, -0.4]])
    mask = torch.tensor([True, False])

    def p():
        with pyro.plate("data", 2), poutine.mask(mask=mask):
            z = pyro.sample("z", one_of_k(T, logits=impossible))
            b = pyro.sample("b", bit(T, logits=impossible[:, 0]))
            pyro.sample("x", dist.Normal(z @ MEANS + b, 1.0), obs=DATA[:2])

    def q():
        logits = pyro.param("logits", torch.tensor([[0.1, 0.2, 0.3], [9.0, 0.2, 0.3]]))
        with pyro.plate("data", 2), poutine.mask(mask=mask):
            pyro.sample("z", one_of_k(T, logits=logits))
            pyro.sample("b", bit(T, logits=logits[:, 0]))

    for _ in range(20):
        assert math.isfinite(objective().loss_and_grads(p, q))
        found = gradients()["logits"]
        assert found.isfinite().all()
        assert found[0].any()
        assert not found[1].any()


# Importing.

IMPORT = """
import warnings
import pyro, pyro.infer, torch, torch.distributions as td
from torch.distributions import kl

classes = [td.Distribution, td.Bernoulli, td.OneHotCategorical, td.constraints.Constraint,
           pyro.distributions.TorchDistribution, pyro.distributions.Bernoulli,
           pyro.distributions.OneHotCategorical, torch.Tensor]

def shot():
    return {
        "validation": td.Distribution._validate_args,
        "Pyro's validation": pyro.infer.util.is_validation_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random state": torch.get_rng_state().tolist(),
        "warnings": list(warnings.filters),
        "settings": pyro.settings.get(),
        "parameters": list(pyro.get_param_store().keys()),
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "modules": [dir(m) for m in (pyro, pyro.distributions, torch, td, td.constraints)],
        "classes": [dict(vars(c)) for c in classes],
    }

def registries():
    return dict(kl._KL_REGISTRY), dict(td.biject_to._registry), dict(td.transform_to._registry)

def ours(*types):
    return any(t.__module__.split(".")[0] == "pyro_gumbel" for t in types)

before, registered = shot(), registries()
import pyro_gumbel
after = shot()
for name in before:
    assert before[name] == after[name], name
for old, new in zip(registered, registries()):
    assert old.items() <= new.items()
    added = new.keys() - old.keys()
    assert added
    for key in added:
        assert ours(*key) if isinstance(key, tuple) else ours(key), key
"""


def test_importing_changes_nothing_of_torch_and_pyro():
    root = Path(pyro_gumbel.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", IMPORT], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
