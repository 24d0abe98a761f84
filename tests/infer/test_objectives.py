# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Every objective of Pyro: its mean, its gradient, and its exact divergences."""

import math
from functools import partial
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from torch.nn.functional import one_hot

from pyro_gumbel import (
    LogitRelaxedSubset,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    SubsetStraightThrough,
)
from tests.common import (
    NONDETERMINISM,
    assert_same_mean,
    build,
    event_shape,
    param_shape,
    slow_unless,
    z_bound,
)
from tests.infer.latents import (
    CONTEXTS,
    DATA,
    KINDS,
    MANY,
    MEANS,
    SHIFT,
    T,
    assert_mean_loss,
    gradients,
    guide,
    model,
    no_guide,
    particle_losses,
)

OBJECTIVES = {
    "Trace_ELBO": partial(Trace_ELBO, **MANY),
    "Trace_ELBO, one particle": Trace_ELBO,
    "TraceMeanField_ELBO": partial(TraceMeanField_ELBO, **MANY),
    "TraceGraph_ELBO": partial(TraceGraph_ELBO, **MANY),
    "JitTrace_ELBO": partial(JitTrace_ELBO, ignore_jit_warnings=True, **MANY),
    "RenyiELBO, one particle": partial(
        RenyiELBO, alpha=0.5
    ),  # with one particle it is the ELBO, for any alpha
}


@pytest.mark.parametrize(
    ("objective", "context"),
    slow_unless(
        lambda case: case[0] == "Trace_ELBO" or case[1] in ("plate", "mask"),
        product(OBJECTIVES, CONTEXTS),
    ),
)
@pytest.mark.parametrize("kind", ["relaxed", "straight-through"])
def test_every_objective_has_the_same_mean_and_a_gradient(kind, objective, context):
    assert_objective(OBJECTIVES[objective](), kind, context, 20_000)


def assert_objective(elbo, kind, context, n):
    """The mean loss is that of `n` particles by hand, and all parameters have gradients."""
    evaluations = 50 if elbo.num_particles == 1 else 3
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
    slow_unless(
        lambda case: case[0] != "TraceGraph_ELBO" and case[1] == "plate",
        [
            *(("Trace_ELBO", context) for context in CONTEXTS),
            *((objective, "plate") for objective in ("TraceMeanField_ELBO", "TraceGraph_ELBO")),
        ],
    ),
)
@pytest.mark.parametrize(
    "kind",
    ["relaxed subset", "straight-through subset", "relaxed ranking", "straight-through ranking"],
)
def test_objectives_with_subsets_and_rankings(kind, objective, context):
    elbo = OBJECTIVES[objective]()
    elbo.num_particles = 500  # the log_prob of a subset is a quadrature
    assert_objective(elbo, kind, context, 5_000)


@pytest.mark.parametrize(
    ("q_site", "p_site"),
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
    ids=["many subsets", "far temperatures", "rankings"],
)
def test_without_an_exact_divergence_the_objective_samples_it(q_site, p_site):
    x = torch.randn(40, dtype=torch.float64)

    def q():
        pyro.sample("z", q_site(pyro.param("logits", x)))

    def p():
        pyro.sample("z", p_site(x))

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
def test_the_divergence_of_relaxed_sites_has_no_monte_carlo_noise(cls, temperatures):
    """Without data the mean-field ELBO is the divergence alone, the same at each draw."""
    x_q, x_p = (torch.randn(2, 3, *param_shape(cls, 4), dtype=torch.float64) for _ in range(2))

    def q():
        logits = pyro.param("logits", x_q.clone())
        with pyro.plate("rows", 2):
            pyro.sample("z", build(cls, temperatures[0], logits=logits).to_event(1))

    def p():
        with pyro.plate("rows", 2):
            pyro.sample("z", build(cls, temperatures[1], logits=x_p).to_event(1))

    losses, gradients_of_draws = [], []
    for _ in range(30):
        losses.append(TraceMeanField_ELBO().loss_and_grads(p, q))
        gradients_of_draws.append(gradients()["logits"])
    assert torch.stack(gradients_of_draws).std(0).max() <= 1e-15 + NONDETERMINISM
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
@pytest.mark.parametrize("kind", ["relaxed", "straight-through"])
def test_many_particles_of_a_renyi_bound_are_tighter(kind, context):
    """At alpha = 0 it is the log of the mean weight, which is taken here by hand."""
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
def test_many_particles_of_a_straight_through_guide_find_the_exact_evidence(context):
    elbo = RenyiELBO(alpha=0.0, num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        loss = elbo.loss(
            partial(model, "straight-through", context), partial(guide, "straight-through", context)
        )
        p = config_enumerate(partial(model, "discrete", context))
        exact = TraceEnum_ELBO(max_plate_nesting=1).loss(p, no_guide)
    weights = (-particle_losses("straight-through", context)).exp()
    error = weights.std() / weights.mean() / math.sqrt(len(weights))
    assert abs(loss - exact) < z_bound() * error


@pytest.mark.parametrize("cls", [RelaxedBernoulli, RelaxedCategorical])
def test_a_compiled_objective_reads_the_data_that_it_is_given(cls):
    """A drawn value caches its logits; those of the first data must not be compiled in."""
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


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("kind", ["relaxed", "straight-through"])
def test_a_masked_impossible_entry_leaves_no_nan(kind, objective):
    categorical, bernoulli = KINDS[kind]
    impossible = torch.tensor([[0.2, 0.3, -0.4], [-math.inf, 0.3, -0.4]])
    mask = torch.tensor([True, False])

    def p():
        with pyro.plate("data", 2), poutine.mask(mask=mask):
            z = pyro.sample("z", categorical(T, logits=impossible))
            b = pyro.sample("b", bernoulli(T, logits=impossible[:, 0]))
            pyro.sample("x", dist.Normal(z @ MEANS + b, 1.0), obs=DATA[:2])

    def q():
        logits = pyro.param("logits", torch.tensor([[0.1, 0.2, 0.3], [9.0, 0.2, 0.3]]))
        with pyro.plate("data", 2), poutine.mask(mask=mask):
            pyro.sample("z", categorical(T, logits=logits))
            pyro.sample("b", bernoulli(T, logits=logits[:, 0]))

    for _ in range(20):
        assert math.isfinite(objective().loss_and_grads(p, q))
        found = gradients()["logits"]
        assert found.isfinite().all()
        assert found[0].any()
        assert not found[1].any()


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kind", ["relaxed", "straight-through"])
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
    if kind == "straight-through":
        assert torch.equal(drawn["z"], top)
        assert torch.equal(drawn["b"], on)
    else:
        assert (drawn["z"] != top).any()
        assert (drawn["b"] != on).any()
    # Rounded, a relaxed value has the discrete distribution too.
    assert_same_mean(top, pyro.param("q_z").detach().softmax(-1).expand(top.shape[1:]))
    assert_same_mean(on, pyro.param("q_b").detach().sigmoid().expand(on.shape[1:]))
    assert_same_mean(drawn["x"] - drawn["z"] @ MEANS - drawn["b"] * SHIFT, 0.0)
