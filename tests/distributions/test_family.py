# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""A family of one file has relax, a KL, a guide, NoiseReparam and a kernel."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch.distributions import kl_divergence

from pyro_gumbel import AutoRelaxed, NoiseReparam, relax, relaxed
from tests.common import ALPHA, assert_same_mean
from tests.distributions.probit import Probit, ProbitStraightThrough, RelaxedProbit

X = torch.tensor([-0.7, 0.2, 1.3], dtype=torch.float64)
PROBS = torch.special.ndtr(X)


def test_relax_knows_it():
    discrete = Probit(probs=PROBS)
    for hard, cls in ((True, ProbitStraightThrough), (False, RelaxedProbit)):
        new = relax(discrete.expand([2, 3]).to_event(1), 0.5, hard=hard)
        assert type(new.base_dist) is cls
        assert new.batch_shape == (2,)
        torch.testing.assert_close(new.base_dist.probs, PROBS.expand(2, 3))
    again = relax(ProbitStraightThrough(0.5, PROBS), 0.5)
    assert isinstance(again, ProbitStraightThrough)
    for each in (again, copy.deepcopy(again), again.expand([2, 3])):
        assert each.temperature == 0.5


@pytest.mark.parametrize("hard", [True, False])
def test_the_reference_kernel_draws_it(hard):
    d = relax(Probit(probs=PROBS), 0.5, hard=hard)
    value = d.rsample((20_000,))
    if hard:
        assert ((value == 0) | (value == 1)).all()
        assert_same_mean(value, PROBS)
        torch.testing.assert_close(
            d.log_prob(value).exp(), torch.where(value > 0, PROBS, 1 - PROBS)
        )
    else:
        v = torch.logit(value)
        for i, x in enumerate(X.tolist()):
            assert stats.kstest(v[:, i].cpu().numpy(), stats.norm(2 * x, 2).cdf).pvalue > ALPHA
        slope = (value * (1 - value)).log()
        expected = dist.Normal(2 * X, 2.0).log_prob(v) - slope
        torch.testing.assert_close(d.log_prob(value), expected)
        torch.testing.assert_close(d.log_prob(value.clone()), expected)


def test_its_gradients_are_pathwise():
    x = X.clone().requires_grad_()
    for cls in (RelaxedProbit, ProbitStraightThrough):
        torch.manual_seed(0)
        value = cls(0.5, logits=x).rsample()
        torch.manual_seed(0)
        s = ((x + torch.randn(3, dtype=torch.float64)) / 0.5).sigmoid()
        (found,), (expected,) = (torch.autograd.grad(each.sum(), x) for each in (value, s))
        torch.testing.assert_close(found, expected)


def test_divergences():
    q, p = (Probit(probs=each) for each in (PROBS, PROBS.flip(0)))
    expected = kl_divergence(q, p)
    hard = [relax(each, 0.5) for each in (q, p)]
    for pair in (hard, (hard[0], p), (q, hard[1])):
        torch.testing.assert_close(kl_divergence(*pair), expected)
    soft = [relax(each, 0.5, hard=False) for each in (q, p)]
    values = soft[0].sample((100_000,))
    assert_same_mean(soft[0].log_prob(values) - soft[1].log_prob(values), kl_divergence(*soft))


@pytest.mark.parametrize("hard", [True, False])
def test_a_guide_finds_the_posterior(hard):
    def model():
        with pyro.plate("points", 3):
            z = pyro.sample("z", Probit(probs=torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor([-1.0, 0.5, 2.0]))

    whole = relaxed(model, 0.5, hard=hard) if not hard else model
    guide = AutoRelaxed(whole, 0.5, hard=hard)
    elbo = TraceMeanField_ELBO(num_particles=2000, vectorize_particles=True)
    svi = SVI(whole, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    for _ in range(200):
        svi.step()
    probs = guide.distribution("z").probs.detach()
    assert probs.diff().min() > 0.1
    if hard:
        odds = 0.4 / 0.6 * torch.exp(torch.tensor([-1.0, 0.5, 2.0]) - 0.5)
        torch.testing.assert_close(probs, odds / (1 + odds), atol=0.1, rtol=0)
    assert guide.median()["z"].tolist() == (probs > 0.5).tolist()


def test_noise_takes_the_place_of_a_relaxed_site():
    def model():
        return pyro.sample("z", RelaxedProbit(0.5, logits=X))

    moved = pyro.poutine.reparam(model, config={"z": NoiseReparam()})
    trace = pyro.poutine.trace(moved).get_trace()
    noise = trace.nodes["z_noise"]["value"]
    torch.testing.assert_close(trace.nodes["z"]["value"], ((X + noise) / 0.5).sigmoid())
    trace.compute_log_prob()
    expected = (-(noise**2) / 2 - math.log(2 * math.pi) / 2).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_it_has_the_exact_elbo_of_the_discrete_model():
    def model():
        pyro.sample("z", Probit(probs=torch.tensor(0.4)))

    def guide():
        pyro.sample("z", ProbitStraightThrough(0.5, torch.tensor(0.7)))

    expected = kl_divergence(Probit(probs=torch.tensor(0.7)), Probit(probs=torch.tensor(0.4)))
    assert TraceMeanField_ELBO().loss(model, guide) == pytest.approx(expected.item(), rel=1e-5)
    losses = torch.tensor([Trace_ELBO().loss(model, guide) for _ in range(400)])
    assert_same_mean(losses, expected)
