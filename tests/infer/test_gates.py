# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Gates in models and guides: the gradient of every objective, NUTS, autoguides and handlers."""

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
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal, init_to_sample
from torch.distributions import kl_divergence

from pyro_gumbel import AutoRelaxed, HardConcrete, LogitHardConcrete, NoiseReparam, relaxed
from tests.common import assert_same_mean
from tests.distributions.test_hard_concrete import finite_difference, own_divergence

T = 0.5
PRIOR = -1.0
LOGIT = 0.5
DRAWS = 20_000


def utility(s):
    return 2 * s - s**2 / 2


def model(count=DRAWS, cls=HardConcrete):
    with pyro.plate("plate", count):
        s = pyro.sample("s", cls(T, logits=torch.tensor(PRIOR, dtype=torch.float64)))
        pyro.factor("utility", utility(s))


def guide_with(logits, has_rsample=True):
    def guide(count=DRAWS):
        with pyro.plate("plate", count):
            pyro.sample("s", HardConcrete(T, logits=logits).has_rsample_(has_rsample))

    return guide


def objective(x, divergence=None):
    """KL - E utility of one gate, by the quantiles of the noise."""
    q, p = (HardConcrete(T, logits=torch.tensor(y, dtype=torch.float64)) for y in (x, PRIOR))
    levels = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    divergence = kl_divergence(q, p).item() if divergence is None else divergence
    return divergence - utility(q.icdf(levels)).mean().item()


def objective_of_gates(x):
    """The same with the divergence of the gates themselves."""
    return objective(x, own_divergence(x, PRIOR, T))


def gradients(elbo, has_rsample):
    """One for each gate of the plate, which are independent."""
    pyro.clear_param_store()

    def guide():
        logits = pyro.param("logits", torch.full((DRAWS,), LOGIT, dtype=torch.float64))
        guide_with(logits, has_rsample)()

    elbo.loss_and_grads(model, guide)
    return pyro.param("logits").grad


@pytest.mark.parametrize(
    ("elbo", "has_rsample", "expected"),
    [
        (Trace_ELBO, True, objective),
        (Trace_ELBO, False, objective),
        (TraceMeanField_ELBO, True, objective),
        (TraceGraph_ELBO, True, objective),
        (TraceGraph_ELBO, False, objective_of_gates),
    ],
)
def test_the_gradient_is_that_of_the_stretched_value(elbo, has_rsample, expected):
    """By paths, and by the score function where the guide says so.

    For the score function `TraceGraph_ELBO` makes a tensor of its own of each draw, which has no
    memory in the guide nor in the model. Both then evaluate the gate itself, which is as right.
    """
    torch.manual_seed(1)
    exact = finite_difference(expected, LOGIT, 1e-3)
    assert_same_mean(gradients(elbo(max_plate_nesting=1), has_rsample), exact)


def test_the_objective_of_a_mean_field_is_the_exact_divergence():
    """Without a likelihood it has no noise, and neither has its gradient."""

    def divergence(x):
        q, p = (HardConcrete(T, logits=y) for y in (x, torch.tensor(PRIOR, dtype=torch.float64)))
        return kl_divergence(q, p)

    logits = torch.full((5,), LOGIT, dtype=torch.float64, requires_grad=True)
    prior = poutine.block(partial(model, 5), hide=["utility"])
    elbo = TraceMeanField_ELBO()
    loss = elbo.differentiable_loss(prior, partial(guide_with(logits), 5))
    torch.testing.assert_close(loss, divergence(logits).sum())
    (found,) = torch.autograd.grad(loss, logits)
    exact = finite_difference(
        lambda x: divergence(torch.tensor(x, dtype=torch.double)).item(), LOGIT
    )
    torch.testing.assert_close(found, torch.full_like(found, exact), rtol=1e-6, atol=0)


def test_particles_in_parallel_are_those_one_by_one():
    """The memory of the draws serves the model too: no gate is evaluated as an observation."""
    logits = torch.tensor([LOGIT, -0.3], dtype=torch.float64, requires_grad=True)
    options = {"num_particles": 4000, "vectorize_particles": True, "max_plate_nesting": 1}
    loss = Trace_ELBO(**options).loss(partial(model, 2), partial(guide_with(logits), 2))
    exact = sum(objective(x) for x in logits.tolist())
    assert loss == pytest.approx(exact, abs=0.15)


@pytest.mark.parametrize("wrapped", [False, True])
def test_wake_sleep_and_renyi_are_finite(wrapped):
    """Wake-sleep detaches the draws, which are then evaluated as gates on both sides."""
    pyro.clear_param_store()

    def guide():
        logits = pyro.param("logits", torch.zeros(3))
        pyro.sample("s", HardConcrete(T, logits=logits).to_event(1))

    def prior():
        s = pyro.sample("s", HardConcrete(0.4, logits=torch.full((3,), PRIOR)).to_event(1))
        pyro.factor("utility", utility(s).sum())

    elbo = ReweightedWakeSleep(num_particles=5) if wrapped else RenyiELBO(num_particles=5)
    svi = SVI(prior, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    for _ in range(20):
        loss = svi.step()
        assert torch.as_tensor(loss).isfinite().all()
    assert pyro.param("logits").isfinite().all()


# NUTS and autoguides.


@pytest.mark.parametrize("guide", [AutoNormal, AutoDiagonalNormal, AutoDelta])
def test_autoguides_refuse_gates_and_say_what_to_write(guide):
    with pytest.raises(NotImplementedError, match=r"d\.gate\(v\), with d = LogitHardConcrete"):
        guide(model)(3)


def test_nuts_refuses_gates_and_says_what_to_write():
    kernel = NUTS(partial(model, 1))
    with pytest.raises(NotImplementedError, match=r"d\.gate\(v\), with d = LogitHardConcrete"):
        MCMC(kernel, num_samples=1, warmup_steps=1, disable_progbar=True).run()


def in_logit_space(count):
    d = LogitHardConcrete(T, logits=torch.tensor(PRIOR, dtype=torch.float64))
    with pyro.plate("plate", count):
        v = pyro.sample("v", d)
        pyro.factor("utility", utility(d.gate(v)))


def exact_share_of_zeros():
    """P(s = 0) in the posterior of one gate, by the quantiles of the prior."""
    levels = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    s = HardConcrete(T, logits=torch.tensor(PRIOR, dtype=torch.float64)).icdf(levels)
    weights = utility(s).exp()
    return (weights[s == 0].sum() / weights.sum()).item()


MOVED = poutine.reparam(model, config={"s": NoiseReparam()})
FOR_NUTS = {"the class in logit space": in_logit_space, "the noise": MOVED}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOR_NUTS)
def test_nuts_finds_the_posterior_of_gates(name):
    """Of 60 independent gates at once, from their logit-space values or their noise."""
    pyro.set_rng_seed(0)
    kernel = NUTS(FOR_NUTS[name], init_strategy=init_to_sample)
    mcmc = MCMC(kernel, num_samples=100, warmup_steps=40, disable_progbar=True)
    mcmc.run(60)
    d = HardConcrete(T, logits=torch.tensor(PRIOR, dtype=torch.float64))
    (samples,) = mcmc.get_samples().values()
    v = samples if name == "the class in logit space" else (d.logits + samples) / T
    zeros = (d._to_value(v) == 0).double().mean(1)
    assert zeros.mean().item() == pytest.approx(exact_share_of_zeros(), abs=0.04)


def test_an_autoguide_of_the_class_in_logit_space():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    guide = AutoNormal(in_logit_space)
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True)
    svi = SVI(in_logit_space, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    losses = [svi.step(10) for _ in range(120)]
    assert sum(losses[-20:]) < sum(losses[:20])


# Handlers.


def test_relaxed_leaves_gates_alone():
    trace = poutine.trace(relaxed(model)).get_trace(3)
    assert type(trace.nodes["s"]["fn"]) is HardConcrete


def test_the_guide_of_a_relaxed_model_has_gates_with_the_same_ends():
    def with_ends():
        with pyro.plate("plate", 3):
            pyro.sample("s", HardConcrete(T, logits=torch.tensor(PRIOR), low=-0.2, high=1.3))

    guide = AutoRelaxed(with_ends, 2 / 3, hard=False)
    elbo = TraceMeanField_ELBO()
    assert elbo.loss(with_ends, guide) == pytest.approx(3 * different_temperatures(), rel=1e-4)
    d = guide.distribution("s")
    assert (type(d), d.low, d.high) == (HardConcrete, -0.2, 1.3)


def different_temperatures():
    q, p = (HardConcrete(t, logits=torch.tensor(PRIOR)) for t in (2 / 3, T))
    return kl_divergence(q, p).item()


def test_predictions_are_gates():
    draws = Predictive(partial(model, 4), num_samples=200)()["s"]
    assert draws.shape == (200, 4)
    assert (draws == 0).any()
    assert (draws == 1).any()
    assert ((draws > 0) & (draws < 1)).any()


def test_an_observed_copy_is_evaluated_as_a_gate():
    d = HardConcrete(T, logits=torch.zeros(50))
    data = d.sample()
    conditioned = poutine.condition(lambda: pyro.sample("s", d), data={"s": data.clone()})
    trace = poutine.trace(conditioned).get_trace()
    trace.compute_log_prob()
    found = trace.nodes["s"]["log_prob"]
    torch.testing.assert_close(found[data == 0], d.prob_zero[data == 0].log())


def test_gates_in_plates_events_and_masks():
    d = HardConcrete(torch.tensor([0.3, 0.9]), logits=torch.zeros(4, 2))
    value = d.to_event(1).mask(torch.tensor([True, False, True, True])).rsample((3,))
    score = d.to_event(1).mask(torch.tensor([True, False, True, True])).log_prob(value)
    expected = d.log_prob(value).sum(-1)
    expected[:, 1] = 0
    torch.testing.assert_close(score, expected)
    wide = dist.ExpandedDistribution(d, torch.Size([3, 4, 2]))
    assert wide.rsample().shape == (3, 4, 2)
