# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""E log sum_i exp(b_i) E_i^r: quadratures over the noise, mpmath, the literal integral."""

import itertools
import math

import mpmath
import pytest
import torch

from pyro_gumbel.ops import expectations as integrals
from pyro_gumbel.ops.expectations import expected_log_sum, softmax_mean, softmax_second_moments
from tests.common import NONDETERMINISM, noise_shares, slow_unless

EULER = 0.5772156649015329
EXPONENTS = [0.02, 0.1, 0.5, 0.98, 1.0, 1.02, 3.0, 10.0, 20.0]
EXPONENTS += [-0.33, -0.9, -1.0, -1.1, -2.0, -10.0, -20.0]
SPREADS = [0.0, 0.1, 1.0, 10.0, 50.0]


def tensor(numbers):
    return torch.as_tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("k", "r"),
    slow_unless(
        lambda case: case[0] == 2 or case[1] in (0.02, 1.02, 20.0, -0.33, -1.1, -20.0),
        itertools.product([2, 3], EXPONENTS),
    ),
)
def test_few_terms_equal_the_mean_over_all_noise(k, r):
    """E_i = T U_i, T a Gamma(k) variate and U uniform on the simplex."""
    log_shares, weights = noise_shares(k)
    for spread in SPREADS:
        b = spread * torch.randn(k, dtype=torch.float64)
        exact = (weights * (b + r * log_shares).logsumexp(-1)).sum() + r * torch.digamma(tensor(k))
        assert expected_log_sum(b, tensor(r)).item() == pytest.approx(exact.item(), abs=1e-10)


@pytest.mark.parametrize("spread", [0.5, 5.0, 50.0])
@pytest.mark.parametrize("k", [2, 10, 100])
def test_exponential_variates_have_a_sum_in_closed_form(k, spread):
    """-gamma + sum_i log a_i prod_{j != i} a_i / (a_i - a_j) at r = 1, which cancels in floats."""
    b = spread * torch.randn(k, dtype=torch.float64)
    with mpmath.workdps(400):
        a = [mpmath.exp(number) for number in b.tolist()]
        terms = (
            mpmath.log(a[i]) * mpmath.fprod(a[i] / (a[i] - a[j]) for j in range(k) if j != i)
            for i in range(k)
        )
        exact = float(mpmath.fsum(terms) - mpmath.euler)
    assert expected_log_sum(b, tensor(1.0)).item() == pytest.approx(exact, abs=1e-11)


@pytest.mark.parametrize("k", [1, 2, 10, 1000, 10_000])
def test_equal_exponential_variates_sum_to_a_gamma_variate(k):
    exact = torch.digamma(tensor(k)).item()
    assert expected_log_sum(torch.zeros(k), tensor(1.0)).item() == pytest.approx(exact, abs=1e-12)


def literal(groups, r):
    """The integral as it is defined, of groups (log weight, how many), with no change of variables.

    It is long and fine for large r: psi_r is summed over y = log E in steps of 0.25 / |r|.
    """
    scale = max(1, abs(r))
    b = torch.tensor([log_weight for log_weight, _ in groups], dtype=torch.float64)
    largest = b.max().item()
    low, high = (-40, 45) if r < 1 else (-40 - 5 * r, 45 * r)
    low, high = (45 * -scale, 6 * scale + 10) if r < 0 else (low, high)
    u = torch.arange(low, high, 0.2, dtype=torch.float64)
    y = torch.arange(-44, 4.3, 0.25 / scale, dtype=torch.float64)
    weights = 0.25 / scale * (y - y.exp()).exp()

    def log_psi(u):
        rates = torch.exp(u.unsqueeze(-1) + r * y)
        return torch.where(
            u < 0,
            torch.log1p(-(-torch.expm1(-rates) @ weights).clamp(max=1 - 1e-16)),
            (torch.exp(-rates) @ weights).clamp(min=1e-300).log(),
        )

    survival = sum(n * log_psi(u + log_weight - largest) for log_weight, n in groups).exp()
    return largest - r * EULER + 0.2 * (log_psi(u).exp() - survival).sum().item()


GROUPS = [[(0.0, 10)], [(1.0, 50), (-3.0, 50)], [(0.0, 2), (-6.0, 9998)]]


@pytest.mark.parametrize(
    ("r", "groups"),
    slow_unless(
        lambda case: abs(case[0]) < 20,
        itertools.product([0.02, 0.3, 1.5, 5.0, 20.0, -0.33, -1.0, -3.0, -20.0], GROUPS),
    ),
)
def test_many_terms_equal_the_literal_integral(groups, r):
    b = torch.cat([torch.full((n,), log_weight) for log_weight, n in groups])
    exact = literal(groups, r)
    assert expected_log_sum(b, tensor(r)).item() == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("r", [200.0, 1000.0, -200.0, -1000.0])
def test_two_terms_and_a_large_exponent(r):
    """r psi(2) + E log(a U^r + (1 - U)^r), which is nearly a maximum of two."""
    b = 100.0
    at = 1 / (1 + math.exp(b / r))
    steps = [s * d for d in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4) for s in (-1, 1)]
    cuts = sorted({0, at, 1, *(at + d for d in steps if 0 < at + d < 1)})

    def integrand(u):
        left, right = b + r * mpmath.log(u), r * mpmath.log(1 - u)
        most = max(left, right)
        return most + mpmath.log1p(mpmath.exp(min(left, right) - most))

    exact = float(r * mpmath.digamma(2) + mpmath.quad(integrand, cuts))
    found = expected_log_sum(tensor([b, 0.0]), tensor(r)).item()
    assert found == pytest.approx(exact, abs=1e-12 * abs(r))


@pytest.mark.parametrize("function", [expected_log_sum, softmax_mean, softmax_second_moments])
def test_nan_in_gives_nan_out(function):
    """With validation off a NaN may come this far."""
    b = tensor([[0.0, math.nan, 1.0], [0.0, 0.0, 1.0]])
    found = function(b, tensor(0.5))
    assert found[0].isnan().all()
    assert found[1].isfinite().all()
    assert function(b, tensor(math.nan)).isnan().all()


def test_nothing_random_is_left_at_exponent_0():
    b = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(expected_log_sum(b, tensor(0.0)), b.logsumexp(-1))


@pytest.mark.parametrize("r", [0.3, 1.0, -0.5, -5.0])
def test_terms_of_weight_0_are_left_out(r):
    b = tensor([0.3, -math.inf, 1.0, -math.inf]).requires_grad_()
    r = tensor(r).requires_grad_()
    alive = b.isfinite()
    found = expected_log_sum(b, r)
    torch.testing.assert_close(found, expected_log_sum(b[alive], r))
    slopes = torch.autograd.grad(found, [b, r])
    expected = torch.autograd.grad(expected_log_sum(b[alive], r), [b, r])
    torch.testing.assert_close(slopes, expected)
    assert (slopes[0][~alive] == 0).all()


@pytest.mark.parametrize("r", slow_unless(lambda r: abs(r) < 1, [0.3, 1.0, 2.5, -0.7, -3.0]))
def test_derivatives(r):
    b = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    r = torch.full((2,), r, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(expected_log_sum, (b, r), nondet_tol=NONDETERMINISM)
    assert torch.autograd.gradgradcheck(expected_log_sum, (b, r), nondet_tol=NONDETERMINISM)
    (slopes,) = torch.autograd.grad(expected_log_sum(b, r).sum(), b)
    torch.testing.assert_close(slopes.sum(-1), torch.ones(2, dtype=torch.float64))


def test_moments_are_derivatives():
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    tau = tensor([0.3, 1.7])

    def potential(x):
        return tau * expected_log_sum(x / tau.unsqueeze(-1), -1 / tau)

    (mean,) = torch.autograd.grad(potential(x).sum(), x, create_graph=True)
    torch.testing.assert_close(softmax_mean(x, tau), mean, rtol=0, atol=1e-11)
    rows = [torch.autograd.grad(mean[:, i].sum(), x, retain_graph=True)[0] for i in range(4)]
    hessian = tau.reshape(2, 1, 1) * torch.stack(rows, -2)
    torch.testing.assert_close(
        softmax_second_moments(x, tau), mean.diag_embed() - hessian, rtol=0, atol=1e-10
    )


# Batches.


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3), (1, 1), (2, 1, 1)])
def test_exponents_broadcast_with_the_batch(shape):
    b, r = torch.randn(2, 3, 4, dtype=torch.float64), 3 * torch.rand(shape, dtype=torch.float64)
    found = expected_log_sum(b, r)
    all_b, all_r = torch.broadcast_tensors(b, r.unsqueeze(-1))
    assert found.shape == all_r.shape[:-1]
    for i in itertools.product(*map(range, found.shape)):
        expected = expected_log_sum(all_b[i], all_r[i][0])
        torch.testing.assert_close(found[i], expected, rtol=1e-11, atol=1e-11)


def test_equal_exponents_of_a_batch_share_one_table(monkeypatch):
    b, r = torch.randn(7, 5, dtype=torch.float64), torch.full((7,), 0.4, dtype=torch.float64)
    tables = []
    table = integrals.Mesh.table
    monkeypatch.setattr(integrals.Mesh, "table", lambda *a: tables.append(len(a[1])) or table(*a))
    found = expected_log_sum(b, r)
    torch.testing.assert_close(found, expected_log_sum(b, r[0]))
    (slopes,) = torch.autograd.grad(expected_log_sum(b, r.requires_grad_()).sum(), r)
    assert tables == [1, 1, 7]
    assert len(slopes.unique()) == 7


@pytest.mark.parametrize("shape", [(), (3,)])
def test_blocks_change_nothing(monkeypatch, shape):
    """Each block is computed again in the backward pass, and in that of the gradient."""
    b = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    r = (3 * torch.rand(shape, dtype=torch.float64)).requires_grad_()

    def everything():
        value = expected_log_sum(b, r)
        slopes = torch.autograd.grad(value.square().sum(), [b, r], create_graph=True)
        curvatures = torch.autograd.grad(sum(s.square().sum() for s in slopes), [b, r])
        moments = softmax_second_moments(b, 0.5 + r)
        return value, *slopes, *curvatures, moments, *torch.autograd.grad(moments.sum(), [b, r])

    whole = everything()
    monkeypatch.setattr(integrals, "BLOCK", 2**8)
    calls = []
    checkpoint = integrals.checkpoint
    monkeypatch.setattr(
        integrals, "checkpoint", lambda *args, **keys: calls.append(1) or checkpoint(*args, **keys)
    )
    torch.testing.assert_close(everything(), whole)
    assert len(calls) >= 3


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_an_empty_batch_has_an_empty_answer(batch):
    assert expected_log_sum(torch.zeros(*batch, 3), torch.tensor(0.5)).shape == batch
    assert expected_log_sum(torch.zeros(*batch, 3), torch.ones(batch)).shape == batch


@pytest.mark.parametrize("r", [1020.0, -1020.0])
def test_exponents_out_of_reach_raise(r):
    with pytest.raises(NotImplementedError, match=r"of at most 1000, got .* ratio of 1020"):
        expected_log_sum(torch.zeros(3), torch.tensor([1.0, r]).unsqueeze(-1))
