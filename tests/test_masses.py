# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Set masses and inclusion probabilities: enumeration, mpmath, and closed forms."""

import itertools
import math

import mpmath
import pytest
import torch

from pyro_gumbel import Subset
from pyro_gumbel.masses import inclusion_probabilities, log_subset_mass

SPREADS = [0.0, 0.1, 1.0, 3.0, 10.0, 50.0]


def log_mass_over_orders(x, chosen):
    """log P(S) as the sum over the m! orders of successive draws, at 50 digits."""
    with mpmath.workdps(50):
        weights, total = [mpmath.exp(i) for i in x], mpmath.mpf(0)
        for order in itertools.permutations(chosen):
            left, product = mpmath.fsum(weights), mpmath.mpf(1)
            for i in order:
                product *= weights[i] / left
                left -= weights[i]
            total += product
        return float(mpmath.log(total))


def log_mass(x, chosen):
    value = torch.zeros(len(x), dtype=torch.float64)
    value[list(chosen)] = 1
    return Subset(len(chosen), logits=x).log_prob(value).item()


def subsets(k, m):
    return list(itertools.combinations(range(k), m))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("k", [2, 3, 4, 6, 8])
def test_the_set_mass_is_the_sum_over_orders(k, spread):
    for m in range(1, min(k, 6)):
        x = spread * torch.randn(k, dtype=torch.float64)
        chosen = torch.randperm(k)[:m].tolist()
        exact = log_mass_over_orders(x.tolist(), chosen)
        assert log_mass(x, chosen) == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("k", "m"), [(4, 1), (4, 2), (8, 3), (12, 6), (12, 11), (5, 5)])
def test_masses_of_all_subsets_sum_to_one(k, m, spread):
    law = Subset(m, logits=spread * torch.randn(k, dtype=torch.float64))
    log_masses = law.log_prob(law.enumerate_support())
    assert log_masses.logsumexp(0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [10, 1000, 100_000])
def test_of_equal_logits_all_subsets_are_equally_likely(k):
    for m in {1, 5, 50, 500, k // 2, k - 1}:
        if m < k:
            advantages = torch.full((m,), -math.log(k - m), dtype=torch.float64)
            exact = -float(mpmath.log(mpmath.binomial(k, m)))
            assert log_subset_mass(advantages).item() == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("count", [1, 10, 1000, 30_000])
@pytest.mark.parametrize("advantage", [-10.0, 0.0, 3.0, 8.0, 13.0, 20.0])
def test_the_mass_where_the_integrand_has_a_sharp_edge(count, advantage):
    """Of n equal advantages d: of n waiting times with rate e^d and one with rate 1 the latter is
    the last with probability prod_j j e^d / (j e^d + 1), j = 1, ..., n.
    """
    d = torch.full((count,), advantage, dtype=torch.float64)
    j = torch.arange(1, count + 1, dtype=torch.float64)
    exact = -torch.log1p(1 / (j * math.exp(advantage))).sum().item()
    assert log_subset_mass(d).item() == pytest.approx(exact, rel=1e-10, abs=1e-11)


def test_advantages_that_overflow_are_certain_or_impossible():
    d = torch.tensor([[1000.0, 1e300], [-1000.0, 3.0]], dtype=torch.float64, requires_grad=True)
    found = log_subset_mass(d)
    assert found[0].item() == pytest.approx(0, abs=1e-12)
    assert found[1].item() == pytest.approx(-1000, abs=1)
    (slopes,) = torch.autograd.grad(found.sum(), d)
    torch.testing.assert_close(slopes[0], torch.zeros(2, dtype=torch.float64))
    assert slopes[1, 0].item() == pytest.approx(1)


def test_derivatives_of_the_set_mass():
    d = (2 * torch.randn(3, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(log_subset_mass, d, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(log_subset_mass, d)
    batched = torch.vmap(torch.func.grad(log_subset_mass))(d.detach())
    torch.testing.assert_close(batched, torch.autograd.grad(log_subset_mass(d).sum(), d)[0])


def test_the_derivative_of_a_large_set_is_found_in_blocks():
    d = torch.linspace(-9, -5, 20_000, dtype=torch.float64)
    whole = d.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(log_subset_mass(whole), whole)
    step = torch.zeros_like(d)
    step[777] = 1e-4
    difference = (log_subset_mass(d + step) - log_subset_mass(d - step)) / 2e-4
    assert slopes[777].item() == pytest.approx(difference.item(), rel=1e-5)


# Inclusion.


def test_the_inclusion_probabilities_of_four():
    found = Subset(2, probs=torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)).mean
    expected = torch.tensor([0.7159, 0.6083, 0.4413, 0.2345], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("k", "m"), [(2, 1), (3, 2), (5, 1), (6, 3), (12, 6), (13, 9), (14, 13)])
def test_inclusion_is_the_mean_of_all_subsets(k, m, spread):
    law = Subset(m, logits=spread * torch.randn(k, dtype=torch.float64))
    values = law.enumerate_support()
    exact = (law.log_prob(values).exp().unsqueeze(-1) * values).sum(0)
    torch.testing.assert_close(law.mean, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("k", "m"), [(1000, 10), (1000, 900), (500, 250)])
def test_inclusion_of_many(k, m):
    """Equal ones are included alike; unequal ones sum to m."""
    zeros = torch.zeros(k, dtype=torch.float64)
    torch.testing.assert_close(
        inclusion_probabilities(zeros, m), torch.full_like(zeros, m / k), rtol=0, atol=1e-12
    )
    found = inclusion_probabilities(3 * torch.randn(k, dtype=torch.float64), m)
    assert found.sum().item() == pytest.approx(m, abs=1e-10)
    assert (found >= 0).all()
    assert (found <= 1 + 1e-12).all()


def test_inclusion_leaves_out_what_cannot_occur():
    x = torch.tensor([0.3, -math.inf, 1.0, -2.0, -math.inf], dtype=torch.float64)
    alive = x.isfinite()
    found = inclusion_probabilities(x, 2)
    torch.testing.assert_close(found[alive], inclusion_probabilities(x[alive], 2))
    assert (found[~alive] == 0).all()
    assert (inclusion_probabilities(x, 3)[alive] - 1).abs().max() < 1e-12


def test_the_gradient_of_inclusion():
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: inclusion_probabilities(x, 2), x)
    assert torch.autograd.gradcheck(lambda x: inclusion_probabilities(x, 4), x)
