# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""NUTS and autoguides find the posterior of a relaxed site that quadrature finds."""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Trace_ELBO, autoguide
from pyro.ops.stats import effective_sample_size
from scipy import stats
from scipy.optimize import minimize
from torch.distributions.transforms import StickBreakingTransform
from torch.nn.functional import pad

from pyro_gumbel import (
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedSubset,
)
from pyro_gumbel.links import Hypersimplex
from tests.common import (
    ALPHA,
    BERNOULLI,
    RELAXED_LOGITS,
    SUBSETS,
    assert_same_mean,
    build,
    slow_unless,
)
from tests.infer.latents import MEANS, T
from tests.infer.sites import train


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


@pytest.mark.slow
def test_nuts_marginalises_straight_through_sites():
    """The posterior of the normal mean is then a mixture of three normal distributions."""
    logits, x = torch.tensor([0.3, -0.2, 0.1]), torch.tensor(1.0)

    def p():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", CategoricalStraightThrough(T, logits=logits))
        pyro.sample("x", dist.Normal(mean + z @ MEANS, 1.0), obs=x)

    drawn = run_nuts(p)
    assert drawn.keys() == {"mean"}
    weights = (logits + dist.Normal(MEANS, math.sqrt(2)).log_prob(x)).softmax(-1)
    assert_same_mean_of_chain(drawn["mean"].unsqueeze(-1), (weights * (x - MEANS) / 2).sum())


class Posterior:
    """One relaxed site and a noisy observation of its value, in log-ratios y_i = v_i - v_k.

    A Bernoulli is a categorical of two: its logits are (x, 0), its logit is the one log-ratio.
    """

    def __init__(self, cls, temperature, dtype=torch.float64):
        self.cls, self.temperature = cls, temperature
        self.logits = [0.6, 0.0] if cls in BERNOULLI else [0.4, -0.3, 0.2]
        self.means = [1.0, 0.0] if cls in BERNOULLI else [0.0, 1.0, 2.0]
        self.dtype, self.x, self.scale = dtype, 0.3, 0.7

    def model(self):
        logits = torch.tensor(self.logits, dtype=self.dtype)
        logits = logits[0] if self.cls in BERNOULLI else logits
        v = pyro.sample("v", build(self.cls, self.temperature, logits=logits))
        mean = self.value(v) @ torch.tensor(self.means, dtype=self.dtype)
        pyro.sample("x", dist.Normal(mean, self.scale), obs=torch.tensor(self.x, dtype=self.dtype))

    def value(self, v):
        """The value of a site over the outcomes."""
        to_value = {
            LogitRelaxedBernoulli: torch.sigmoid,
            ExpRelaxedCategorical: torch.exp,
            LogitRelaxedSubset: torch.sigmoid,
        }
        s = to_value[self.cls](v) if self.cls in to_value else v
        return torch.stack([s, 1 - s], -1) if self.cls in BERNOULLI else s

    def log_ratios(self, v):
        """The log-ratios of a site's value."""
        if self.cls is LogitRelaxedBernoulli:
            return v.unsqueeze(-1)
        if self.cls is RelaxedSubset:
            v = v.logit()
        elif self.cls not in RELAXED_LOGITS:
            v = self.value(v).log()
        return v[..., :-1] - v[..., -1:]

    def log_joint(self, y):
        """By the formula, in float64: the Concrete density of log-ratios, and the normal one.

        The log-ratios of a subset in logit space have the same distribution.
        """
        k, tau = y.shape[-1] + 1, self.temperature
        v = pad(y, (0, 1)).log_softmax(-1)
        d = torch.tensor(self.logits, dtype=torch.float64) - tau * v
        prior = math.lgamma(k) + (k - 1) * math.log(tau) + (d - d.logsumexp(-1, True)).sum(-1)
        value = v.exp()
        if self.cls in SUBSETS:
            value = Hypersimplex(2)(v, torch.ones(1, dtype=torch.float64))
        mean = value @ torch.tensor(self.means, dtype=torch.float64)
        residual = (self.x - mean) / self.scale
        return prior - residual**2 / 2 - math.log(self.scale) - math.log(2 * math.pi) / 2

    def log_joint_of_unconstrained(self, u):
        """The same in the space where Pyro works: for a simplex that of stick-breaking."""
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
        """By the trapezoidal rule; the noise is beyond 35 with probability 1e-15."""
        line = torch.linspace(-35, 35, 701, dtype=torch.float64) / self.temperature
        y = torch.cartesian_prod(*[line] * (len(self.logits) - 1)).reshape(-1, len(self.logits) - 1)
        return self.log_joint(y).softmax(0) @ self.features(y)

    def divergence(self, loc, log_scale):
        """KL from a normal distribution in unconstrained space, up to the log evidence."""
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
            return value.item(), torch.autograd.grad(value, point)[0].cpu().numpy()

        start = [0.0] * size + [-math.log(self.temperature)] * size
        best = minimize(objective, start, jac=True)
        assert best.success, best.message
        return best.fun


SITES = slow_unless(  # a class, temperature and dtype that NUTS and autoguides can be used with
    lambda site: site[0] is RelaxedBernoulli and site[1] != T,
    [
        *product([RelaxedBernoulli, RelaxedCategorical], [T, 1.0], [torch.float64]),
        *product(
            [LogitRelaxedBernoulli, ExpRelaxedCategorical], [0.1], [torch.float32, torch.float64]
        ),
        (RelaxedSubset, T, torch.float64),
        (LogitRelaxedSubset, 0.1, torch.float32),
    ],
)


@pytest.mark.parametrize(("cls", "temperature", "dtype"), SITES)
def test_nuts_agrees_with_quadrature(cls, temperature, dtype):
    posterior = Posterior(cls, temperature, dtype)
    v = run_nuts(posterior.model)["v"]
    assert v.dtype == dtype
    values = posterior.features(posterior.log_ratios(v.double()))
    assert_same_mean_of_chain(values, posterior.expected_features())


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "temperature", "dtype"), SITES)
def test_auto_normal_finds_the_nearest_normal(cls, temperature, dtype):
    posterior = Posterior(cls, temperature, dtype)
    torch.set_default_dtype(dtype)
    q = autoguide.AutoNormal(posterior.model, init_scale=1.0)
    elbo = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=0)
    train(posterior.model, q, elbo, rate=0.1 / temperature, steps=400)
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
    train(posterior.model, q, Trace_ELBO(), rate=0.1, steps=300)
    loc = q.loc.detach()
    precision = torch.autograd.functional.hessian(lambda u: -posterior.log_joint(u), loc)
    gradient = torch.autograd.functional.jacobian(posterior.log_joint, loc)
    torch.testing.assert_close(gradient, torch.zeros_like(loc), rtol=0.0, atol=1e-3)
    covariance = q.laplace_approximation().get_posterior().covariance_matrix
    torch.testing.assert_close(covariance, precision.inverse(), rtol=1e-6, atol=1e-6)
