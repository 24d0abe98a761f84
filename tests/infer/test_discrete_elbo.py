# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The objective of a straight-through guide is that of the discrete model."""

import math
from functools import partial
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.nn.functional import one_hot

from pyro_gumbel import CategoricalStraightThrough
from tests.common import seeded, z_bound
from tests.infer.latents import KINDS, T, gradients
from tests.infer.sites import train


class ThreeLatents:
    """Three latents of four categories, coupled by one observation; 64 states in all."""

    def __init__(self, seed):
        draw = partial(seeded, torch.randn, torch.Generator().manual_seed(seed))
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

    def model(self, distribution):
        z = [pyro.sample(f"z{i}", distribution(logits=self.prior[i])) for i in range(3)]
        mean = sum(z[i] @ self.weights[i] for i in range(3))
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=self.x)

    def guide(self, distribution):
        logits = pyro.param("logits", self.logits)
        for i in range(3):
            pyro.sample(f"z{i}", distribution(logits=logits[i]))


SEEDS = [0, 1]  # of the model

PRIORS = {
    "straight-through prior": KINDS["straight-through"][0],
    "plain prior": KINDS["discrete"][0],
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_straight_through_guide_reports_the_discrete_elbo(objective, prior, temperature, seed):
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


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="the built-in log_prob is the density of a hidden relaxed value, see pyro #3127",
)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
def test_the_built_in_straight_through_guide_reports_the_discrete_elbo(temperature, seed):
    three, n = ThreeLatents(seed), 50_000
    q, log_ratio = three.terms(three.logits)
    builtin = dist.RelaxedOneHotCategoricalStraightThrough
    loss = Trace_ELBO(num_particles=n, vectorize_particles=True, max_plate_nesting=0).loss(
        partial(three.model, dist.OneHotCategorical),
        partial(three.guide, partial(builtin, torch.tensor(temperature), validate_args=False)),
    )
    assert abs(loss + (q * log_ratio).sum()) <= 5


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_of_a_straight_through_guide_is_near_the_exact_one(seed):
    three = ThreeLatents(seed)
    logits = three.logits.clone().requires_grad_()
    q, log_ratio = three.terms(logits)
    (exact,) = torch.autograd.grad(-(q * log_ratio).sum(), logits)
    distribution = partial(CategoricalStraightThrough, T)
    elbo = Trace_ELBO(num_particles=50_000, vectorize_particles=True, max_plate_nesting=0)
    elbo.loss_and_grads(partial(three.model, distribution), partial(three.guide, distribution))
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
    train(prior, posterior, elbo, rate=0.1, steps=400)
    found = pyro.param("logits").detach().softmax(-1)
    torch.testing.assert_close(found, probs, rtol=0.0, atol=0.02)
    assert abs(elbo.loss(prior, posterior)) < 0.01
