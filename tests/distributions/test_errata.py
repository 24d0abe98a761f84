# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The formulas of docs/errata.md, as they are printed in the notes and as they are."""

import math

import numpy
import pytest
import torch
from scipy import stats

from pyro_gumbel import (
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    m_hot,
)
from pyro_gumbel.links import simplex
from pyro_gumbel.ops import noise
from tests.common import ALPHA, assert_counts, assert_same_mean

DRAWS = 100_000
COLD = 0.001  # a temperature at which a soft bit is as good as hard


def logit_u():
    return torch.rand(DRAWS, dtype=torch.float64).logit()


def counts_of_ones(soft):
    ones = (soft > 0.5).sum().item()
    return [DRAWS - ones, ones]


def test_the_sign_of_the_binary_formula():
    p = 0.8
    noisy = (math.log(p / (1 - p)) + logit_u()) / COLD
    assert_counts(counts_of_ones((-noisy).sigmoid()), [p, 1 - p])  # as printed
    assert_counts(counts_of_ones(noisy.sigmoid()), [1 - p, p])
    assert_counts(counts_of_ones(RelaxedBernoulli(COLD, probs=p).sample((DRAWS,))), [1 - p, p])


def test_the_log_odds_of_unnormalised_weights():
    """Of weights 3 and 1: a probability of 3/7 as printed, with the sign mended, and of 3/4."""
    printed, correct = math.log(3 / 4), math.log(3 / 1)
    assert_counts(counts_of_ones(((printed + logit_u()) / COLD).sigmoid()), [4, 3])
    assert_counts(counts_of_ones(((correct + logit_u()) / COLD).sigmoid()), [1, 3])


def test_the_limit_of_the_softmax():
    weights = torch.tensor([3.0, 1.0, 0.5])
    printed = weights / (weights.sum() - weights)
    assert printed[0] > 1
    winners = RelaxedCategorical(COLD, probs=weights).sample((DRAWS,)).argmax(-1)
    assert_counts(winners.bincount(minlength=3), weights / weights.sum())


def test_repeats_are_equal_winners():
    """Soft columns never repeat; by their winners every second pair of two equal ones does."""
    columns = RelaxedCategorical(0.5, probs=torch.ones(2)).sample((DRAWS, 2))
    assert not (columns[:, 0] == columns[:, 1]).all(-1).any()
    equal = (columns[:, 0].argmax(-1) == columns[:, 1].argmax(-1)).sum().item()
    assert_counts([DRAWS - equal, equal], [0.5, 0.5])


def test_the_maximum_of_columns_does_not_sum_to_their_number():
    d = RelaxedPlackettLuce(0.5, 2, probs=torch.ones(4))
    assert m_hot(d.sample((DRAWS,))).sum(-1).mean().item() == pytest.approx(1.78, abs=0.01)
    sums = RelaxedSubset(0.5, 2, probs=torch.ones(4)).sample((DRAWS,)).sum(-1)
    torch.testing.assert_close(sums, torch.full((DRAWS,), 2.0))


def test_the_sum_runs_over_all_categories():
    """Over d < k of them the entries would not sum to 1."""
    z = torch.randn(5).exp()
    assert (z / z[:3].sum()).sum() > 1
    torch.testing.assert_close(simplex(z.log(), torch.ones(1)), z / z.sum())


def test_the_mean_of_a_gumbel_variate_is_not_its_location():
    draws = 1.7 + noise.gumbel((DRAWS,), dtype=torch.float64, device=torch.get_default_device())
    assert_same_mean(draws, 1.7 + numpy.euler_gamma)
    assert abs(draws.mean() - 1.7) > 0.5


def test_the_shift_integrates_over_the_positive_half_line():
    """Eq. 5 at k = 2, u = 0, equal logits: the integral of v exp(-2 v) is 1/4, as eq. 8 has it."""
    v = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    assert torch.trapezoid(v * (-2 * v).exp(), v).item() == pytest.approx(0.25, abs=1e-8)
    assert (-v * (2 * v).exp()).sum().item() < -1e50  # over the negative one it diverges


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_determinant_and_the_density_that_it_completes(k):
    tau, x = 0.7, torch.randn(k, dtype=torch.float64)
    y = simplex(torch.randn(k, dtype=torch.float64), torch.ones(1, dtype=torch.float64))

    def u_of(free):  # eq. 13
        return tau * (free.log() - torch.log1p(-free.sum()))

    det = torch.autograd.functional.jacobian(u_of, y[:-1]).det().abs()
    torch.testing.assert_close(det, tau ** (k - 1) / y.prod())
    u = torch.cat([u_of(y[:-1]), torch.zeros(1, dtype=torch.float64)])
    eq_8 = math.factorial(k - 1) * (x - u).exp().prod() / (x - u).exp().sum() ** k
    torch.testing.assert_close(
        (eq_8 * det).log(), RelaxedCategorical(tau, logits=x, validate_args=False).log_prob(y)
    )


def test_the_gumbel_density():
    z = torch.linspace(-6, 40, 460_001, dtype=torch.float64)
    assert torch.trapezoid((-z - (-z).exp()).exp(), z).item() == pytest.approx(1, abs=1e-8)
    assert torch.trapezoid((-z + (-z).exp()).exp(), z).item() > 1e100


def test_at_low_temperature_the_distribution_is_categorical_and_not_gumbel():
    draws = RelaxedCategorical(COLD, logits=torch.zeros(2)).sample((DRAWS,))[:, 0].double()
    at_vertices = ((draws < 1e-6) | (draws > 1 - 1e-6)).double().mean()
    assert at_vertices > 0.98
    assert stats.kstest(draws.cpu().numpy(), stats.gumbel_r.cdf).pvalue < ALPHA
