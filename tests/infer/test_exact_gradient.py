# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Exact gradients against autograd and quadrature."""

import itertools
import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_gumbel import (
    BernoulliStraightThrough,
    BetaBinomialStraightThrough,
    BinomialStraightThrough,
    GammaPoissonStraightThrough,
    GeometricStraightThrough,
    MultinomialStraightThrough,
    NegativeBinomialStraightThrough,
    PoissonStraightThrough,
)
from pyro_gumbel.infer import exact_gradient
from pyro_gumbel.infer.exact_gradient import Moments, by_enumeration, by_score_function
from pyro_gumbel.infer.objective import Objective
from tests.common import slow_unless
from tests.infer.models import (
    DATA,
    MEANS,
    T,
    agree,
    chain,
    chain_guide,
    one_of_three,
    parameter,
    plated,
    plated_guide,
    quadratic,
    quadratic_guide,
    shared,
    shared_guide,
)


def test_mean_and_variance_are_those_of_the_vectors():
    vectors, moments = torch.randn(3, 5, dtype=torch.float64), Moments()
    for vector in vectors:
        moments.add(vector)
    torch.testing.assert_close(moments.mean, vectors.mean(0))
    assert moments.variance == pytest.approx(vectors.var(0).sum().item())


def by_hand(model, guide, supports, **kwargs):
    """The gradient of -sum_z q(z) f(z) by autograd, over a product of supports, by `condition`."""
    guide(**kwargs)
    total = 0.0
    for values in itertools.product(*supports.values()):
        data = dict(zip(supports, values, strict=True))
        q = poutine.trace(poutine.condition(guide, data)).get_trace(**kwargs)
        p = poutine.trace(poutine.condition(model, data)).get_trace(**kwargs)
        log_q = sum(q.nodes[name]["fn"].log_prob(data[name]).sum() for name in data)
        total = total - log_q.exp() * (p.log_prob_sum() - q.log_prob_sum())
    leaves = [pyro.param(name).unconstrained() for name in pyro.get_param_store()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)]).cpu().double()


ONE_HOT = list(torch.eye(3))
ROWS = [torch.stack(rows) for rows in itertools.product(torch.eye(3), repeat=4)]
BITS = [torch.tensor(bits) for bits in itertools.product([0.0, 1.0], repeat=3)]

CASES = {
    "shared": (shared, shared_guide, {"z": ONE_HOT, "w": BITS}, {}),
    "chain": (chain, chain_guide, {"z": ONE_HOT, "w": [torch.tensor(0.0), torch.tensor(1.0)]}, {}),
    "plate": (plated, plated_guide, {"z": ROWS}, {}),
    "scaled": (plated, plated_guide, {"z": ROWS}, {"scale": 3.0}),
    "masked": (
        plated, plated_guide, {"z": ROWS}, {"masked": torch.tensor([True, False, True, True])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", slow_unless(lambda case: case not in ("plate", "scaled"), CASES))
def test_the_enumerated_gradient_is_that_of_the_enumerated_elbo(case):
    model, guide, supports, kwargs = CASES[case]
    expected = by_hand(model, guide, supports, **kwargs)
    found = by_enumeration(Objective(model, guide, (), kwargs), 2048)
    assert found.how == f"enumeration of {math.prod(map(len, supports.values()))} states"
    torch.testing.assert_close(found.gradient, expected, atol=1e-5, rtol=1e-5)
    assert found.error == 0
    if case in ("plate", "scaled", "masked"):
        parallel = by_enumeration(Objective(model, guide, (), kwargs), 3)
        assert parallel.how == "parallel enumeration"
        torch.testing.assert_close(parallel.gradient, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", slow_unless(lambda case: case == "plate", CASES))
def test_the_score_function_agrees_with_enumeration(case):
    model, guide, _, kwargs = CASES[case]
    objective = Objective(model, guide, (), kwargs)
    exact = by_enumeration(objective, 2048).gradient
    found = by_score_function(objective, range(40))
    assert found.how == "leave-one-out score function, 400 draws"
    assert found.error < 0.5 * exact.norm()
    assert (found.gradient - exact).norm() < 3.5 * found.error


def test_the_baseline_of_two_draws_is_the_other_one(monkeypatch):
    """If a draw were in its own baseline, half of the gradient would be lost with two draws."""
    monkeypatch.setattr(exact_gradient, "DRAWS", 2)
    objective = Objective(plated, plated_guide)
    exact = by_enumeration(objective, 2048).gradient
    found = by_score_function(objective, range(150))
    assert found.error < 0.3 * exact.norm()
    assert (found.gradient - exact).norm() < 3.5 * found.error


def test_a_parallel_enumeration_with_another_loss_is_none():
    """The elements of the plate are not independent, and only the loss shows it."""

    def model():
        with pyro.plate("bits", 12):
            z = pyro.sample("z", BernoulliStraightThrough(T, logits=torch.zeros(12)))
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.full((12,), 9.0))

    def guide():
        with pyro.plate("bits", 12):
            pyro.sample("z", BernoulliStraightThrough(T, logits=parameter("logits", 12)))

    assert by_enumeration(Objective(model, guide), 2048) is None


def test_a_site_without_a_plate_has_one_cost_for_all_its_elements():
    """Its elements share one observation. A mask hides its log_prob from the loss, not its draw."""

    def site(mask):
        distribution = BernoulliStraightThrough(T, logits=parameter("logits", 3)).to_event(1)
        return distribution.mask(False) if mask else distribution

    def guide(mask):
        pyro.sample("z", site(mask))

    def model(mask):
        z = pyro.sample("z", site(mask))
        pyro.sample("x", dist.Normal(z.prod(-1) + z.sum(-1), 0.5), obs=DATA[2])

    for mask in (True, False):
        objective = Objective(model, guide, (mask,))
        exact = by_enumeration(objective, 2048)
        assert exact.how == "enumeration of 8 states"
        probs = parameter("logits", 3).sigmoid()
        states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
        probabilities = (states * probs + (1 - states) * (1 - probs)).prod(-1)
        f = dist.Normal(states.prod(-1) + states.sum(-1), 0.5).log_prob(DATA[2])
        leaf = pyro.param("logits").unconstrained()
        (expected,) = torch.autograd.grad(-(probabilities * f).sum(), leaf)
        torch.testing.assert_close(exact.gradient, expected.cpu().double(), atol=1e-5, rtol=1e-5)
        found = by_score_function(objective, range(40))
        assert (found.gradient - exact.gradient).norm() < 3.5 * found.error


def test_continuous_sites_stay_pathwise():
    """Against a quadrature over the continuous site."""

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=w))
        pyro.sample("x", dist.Normal(w + 2 * z, 1.0), obs=DATA[2])

    def guide():
        w = pyro.sample("w", dist.Normal(parameter("loc", 1).squeeze(), 0.7))
        pyro.sample(
            "z", BernoulliStraightThrough(T, logits=w + pyro.param("shift", torch.ones(())))
        )

    objective = Objective(model, guide)
    assert by_enumeration(objective, 2048) is None
    loc, shift = torch.tensor(-0.4, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    nodes, weights = (torch.tensor(part).float() for part in np.polynomial.hermite_e.hermegauss(60))
    w = loc + 0.7 * nodes
    q = (w + shift).sigmoid()
    total = 0.0
    for z, probability in ((0.0, 1 - q), (1.0, q)):
        f = (
            dist.Normal(0.0, 1.0).log_prob(w)
            + dist.Bernoulli(logits=w).log_prob(torch.tensor(z))
            + dist.Normal(w + 2 * z, 1.0).log_prob(DATA[2])
            - dist.Normal(loc, 0.7).log_prob(w)
            - probability.log()
        )
        total = total - (weights * probability * f).sum() / weights.sum()
    expected = torch.stack(torch.autograd.grad(total, [loc, shift])).cpu().double()
    found = by_score_function(objective, range(60))
    assert found.error < 0.3 * expected.norm()
    assert (found.gradient - expected).norm() < 3.5 * found.error


def test_events_in_a_plate_have_costs_of_their_own():
    """Each element is an event of two categorical values, which Pyro does not enumerate."""
    table = torch.tensor([[0.3, -1.0], [1.0, 0.2], [-0.5, 0.7]])

    def model():
        with pyro.plate("points", 4):
            z = pyro.sample("z", one_of_three(torch.zeros(4, 2, 3)).to_event(1))
            pyro.sample("x", dist.Normal((z @ table).flatten(-2).square().sum(-1), 1.0), obs=DATA)

    def guide():
        with pyro.plate("points", 4):
            pyro.sample("z", one_of_three(parameter("logits", 4, 2, 3)).to_event(1))

    objective = Objective(model, guide)
    assert by_enumeration(objective, 2048) is None  # 3^8 states
    pairs = torch.stack([torch.stack(pair) for pair in itertools.product(torch.eye(3), repeat=2)])
    distribution = one_of_three(parameter("logits", 4, 2, 3)).to_event(1)
    log_q = distribution.log_prob(pairs.unsqueeze(1))
    log_p = one_of_three(torch.zeros(4, 2, 3)).to_event(1).log_prob(pairs.unsqueeze(1))
    means = (pairs @ table).flatten(-2).square().sum(-1)
    log_p = log_p + dist.Normal(means.unsqueeze(-1), 1.0).log_prob(DATA)
    loss = -(log_q.exp() * (log_p - log_q)).sum()
    (expected,) = torch.autograd.grad(loss, pyro.param("logits").unconstrained())
    found = by_score_function(objective, range(40))
    assert found.error < 0.5 * expected.norm()
    assert (found.gradient - expected.flatten().cpu().double()).norm() < 3.5 * found.error


# Randomness outside of the discrete sites, and states that cannot be.


def test_a_continuous_site_without_a_pathwise_gradient_has_its_score():
    def model():
        w = pyro.sample("w", dist.VonMises(0.0, 1.0))
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=w))
        pyro.sample("x", dist.Normal(w + z, 0.5), obs=DATA[2])

    def guide():
        loc = pyro.param("loc", torch.tensor(0.3))
        pyro.sample("w", dist.VonMises(loc, 4.0))
        pyro.sample("z", BernoulliStraightThrough(T, 0.4))

    objective = Objective(model, guide)
    assert by_enumeration(objective, 2048) is None
    leaf = torch.tensor(0.3, requires_grad=True)
    w = torch.linspace(-math.pi, math.pi, 2001)[:-1]
    q = dist.VonMises(leaf, 4.0)
    total = 0.0
    for z, probability in ((0.0, 0.6), (1.0, 0.4)):
        f = dist.VonMises(0.0, 1.0).log_prob(w) - q.log_prob(w) - math.log(probability)
        f = f + dist.Bernoulli(logits=w).log_prob(torch.tensor(z))
        f = f + dist.Normal(w + z, 0.5).log_prob(DATA[2])
        total = total - probability * (q.log_prob(w).exp() * f).sum() * 2 * math.pi / 2000
    (expected,) = torch.autograd.grad(total, leaf)
    agree(objective, expected.reshape(1).cpu().double())


def test_states_that_cannot_be_are_left_out():
    """Their loss is not finite; each of three states is impossible in turn."""

    def distribution(logits):
        return one_of_three(torch.where(allowed, logits, -torch.inf))

    def model():
        z = pyro.sample("z", distribution(torch.tensor([0.2, 0.0, -0.2])))
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])

    def guide():
        pyro.sample("z", distribution(parameter("logits", 3)))

    for impossible in range(3):
        allowed = torch.arange(3) != impossible
        found = by_enumeration(Objective(model, guide), 2048)
        leaf = pyro.param("logits").unconstrained()
        q = leaf[allowed].log_softmax(-1)
        log_p = torch.tensor([0.2, 0.0, -0.2])[allowed].log_softmax(-1)
        log_p = log_p + dist.Normal(MEANS[allowed], 1.0).log_prob(DATA[0])
        (expected,) = torch.autograd.grad(-(q.exp() * (log_p - q)).sum(), leaf)
        torch.testing.assert_close(found.gradient, expected.cpu().double(), atol=1e-6, rtol=1e-5)


def test_other_randomness_is_not_enumerated():
    def dropped():
        z = pyro.sample("z", one_of_three(torch.zeros(3)))
        pyro.sample("x", dist.Normal(z @ MEANS * torch.rand(()), 1.0), obs=DATA[0])

    def latent():
        quadratic()
        pyro.sample("w", dist.Normal(0.0, 1.0))

    assert by_enumeration(Objective(dropped, quadratic_guide), 2048) is None
    assert by_enumeration(Objective(latent, quadratic_guide), 2048) is None


def test_sites_and_parameters_of_one_branch():
    def model():
        z = pyro.sample("z", BernoulliStraightThrough(T, 0.1))
        mean = pyro.sample("w", one_of_three(torch.zeros(3))) @ MEANS if z.detach() > 0 else z
        pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[2])

    def guide():
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=parameter("logits", 2)[1]))
        if z.detach() > 0:
            pyro.sample("w", one_of_three(parameter("inner", 3)))

    objective = Objective(model, guide)
    assert sum(leaf.numel() for leaf in objective.parameters.values()) == 5
    exact = by_enumeration(objective, 2048)
    assert exact.how == "enumeration of 4 states"
    agree(objective, exact.gradient)


# Counts.

COUNTS = {
    "Poisson": (lambda x: PoissonStraightThrough(x.exp()), 40),
    "NegativeBinomial": (lambda x: NegativeBinomialStraightThrough(4.0, logits=x - 2), 60),
    "Geometric": (lambda x: GeometricStraightThrough(logits=x + 0.5), 60),
    "GammaPoisson": (lambda x: GammaPoissonStraightThrough(x.exp(), 2.0), 60),
    "Binomial": (lambda x: BinomialStraightThrough(9, logits=x), 9),
    "BetaBinomial": (lambda x: BetaBinomialStraightThrough(x.exp(), 2.0, 9), 9),
}


@pytest.mark.parametrize("family", COUNTS)
def test_counts_are_enumerated(family):
    """Against a sum over more counts, of a loss with a cubic term."""
    make, most = COUNTS[family]

    def model():
        z = pyro.sample("z", make(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(0.02 * z**3 + z, 3.0), obs=DATA[2])

    def guide():
        pyro.sample("z", make(pyro.param("shift", torch.tensor(0.2))))

    found = by_enumeration(Objective(model, guide), 2048)
    leaf = torch.tensor(0.2, requires_grad=True)
    z = torch.arange(most + 1.0)
    q = make(leaf).log_prob(z)
    f = make(torch.tensor(0.5)).log_prob(z) - q
    f = f + dist.Normal(0.02 * z**3 + z, 3.0).log_prob(DATA[2])
    (expected,) = torch.autograd.grad(-(q.exp() * f).sum(), leaf)
    torch.testing.assert_close(
        found.gradient.squeeze(), expected.cpu().double(), rtol=1e-4, atol=1e-5
    )
    if family in ("Binomial", "BetaBinomial"):
        assert found.how == "enumeration of 10 states"
    else:
        assert re.match(r"enumeration of \d\d states, all but tails of less than 1e-12$", found.how)


def test_as_many_counts_as_the_tail_needs():
    """Of a Poisson distribution, against its survival function."""

    def guide(rate):
        pyro.sample("z", PoissonStraightThrough(pyro.param("rate", torch.tensor(rate)).double()))

    for rate in (0.01, 3.0, 300.0):
        pyro.clear_param_store()
        found = by_enumeration(Objective(guide, guide, (rate,)), 2048)
        states = int(re.search(r"\d+", found.how).group())
        assert stats.poisson.sf(states - 1, rate) < 1e-12 <= stats.poisson.sf(states - 2, rate)


def test_too_many_counts_are_sampled():
    """Too large ones, too many sites, a plate, a batch of numbers of trials, and vectors."""

    def of(distribution):
        def guide():
            rate = pyro.param("rate", torch.tensor(0.5))
            pyro.sample("z", distribution(rate))

        return guide

    for distribution in (
        lambda rate: PoissonStraightThrough(10_000 * rate),
        lambda rate: PoissonStraightThrough(rate.expand(4)).to_event(1),
        lambda rate: PoissonStraightThrough(rate.expand(50)).to_event(1),
        lambda rate: BinomialStraightThrough(10_000_000_000, rate),
        lambda rate: BinomialStraightThrough(torch.tensor([2.0, 3.0]), rate).to_event(1),
        lambda rate: MultinomialStraightThrough(2, torch.stack([rate, 1 - rate])),
    ):
        pyro.clear_param_store()
        guide = of(distribution)
        assert by_enumeration(Objective(guide, guide), 2048) is None
    guide = of(lambda rate: PoissonStraightThrough(rate.expand(2)).to_event(1))
    assert by_enumeration(Objective(guide, guide), 2048).how.startswith("enumeration of")


def test_the_score_function_of_counts():
    def model():
        with pyro.plate("points", 2):
            z = pyro.sample("z", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[2:])

    def guide():
        with pyro.plate("points", 2):
            pyro.sample("z", PoissonStraightThrough(parameter("log_rate", 2).exp()))

    objective = Objective(model, guide)
    agree(objective, by_enumeration(objective, 2048).gradient)
