# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""`mve` against the problem that defines it, against its formula, and at extremes."""

import pytest
import torch

from pyro_gumbel import CategoricalStraightThrough, GeometricTemperature, links, mve, reinmax
from pyro_gumbel.estimators import straight_through
from pyro_gumbel.ops.minimum_variance import _matrix
from tests.common import seeded, slow_unless
from tests.literal import jacobian, mve_matrix

DOUBLE = torch.float64


def gradient_of(estimator, logits, hard, u, link=links.simplex):
    """The gradient in the logits, where u is the gradient in the sample."""
    logits = logits.clone().requires_grad_()
    surrogate = estimator(logits, torch.ones_like(logits[..., :1]), logits, hard, link)
    assert surrogate.dtype == logits.dtype
    return torch.autograd.grad((surrogate * u).sum(), logits)[0]


def case(k, rows, scale=1.0, dtype=DOUBLE):
    """Logits, the draw of each category in turn, and a gradient."""
    x, u = seeded(torch.randn, 0, 2, rows, k, dtype=dtype)
    return scale * x, torch.eye(k, dtype=dtype)[torch.arange(rows) % k], u


def by_definition(p, tau):
    """The matrices M_i from the quadratic problem, whose unknowns are all their entries.

    Of one row k at a time: the unknowns are X_ij = (M_i)_kj. H is the matrix of the second
    derivatives, C that of the conditions.
    """
    k = len(p)
    unit = torch.eye(k, dtype=DOUBLE)
    sums = torch.einsum("i,ia,jb->ijab", p, unit, unit)  # S = P X + (P X)'
    sums = (sums + sums.transpose(0, 1)).reshape(k * k, k * k)
    h = 2 * torch.diag(p.repeat_interleave(k)) + tau * sums.T @ sums
    c = torch.einsum("a,jb->jab", p, unit).reshape(k, k * k)
    system = torch.cat([torch.cat([h, c.T], 1), torch.cat([c, torch.zeros(k, k)], 1)])
    corners = torch.diag_embed(unit).reshape(k, k * k)  # e_k e_k', one in a row
    right = torch.cat([tau * corners @ sums, unit], 1).T
    rows = torch.linalg.solve(system, right)[: k * k].T.reshape(k, k, k)
    return rows.transpose(0, 1)


@pytest.mark.parametrize("tau", [0.0, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_it_has_the_least_variance_at_a_limited_bias(k, tau):
    x, hard, u = case(k, k)
    matrices = by_definition(x[0].softmax(-1), tau)
    expected = torch.stack([jacobian(x[0].softmax(-1)) @ matrices[i] @ u[i] for i in range(k)])
    found = gradient_of(mve(tau), x[:1].expand(k, k), hard, u)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize(
    ("k", "tau"),
    slow_unless(
        lambda case: case[0] < 64, [(k, tau) for k in (2, 3, 10, 64) for tau in (0, 1, 30, 10**6)]
    ),
)
def test_it_is_its_matrix(k, tau):
    x, hard, u = case(k, 3)
    found = gradient_of(mve(tau), x, hard, u)
    for i in range(1 if k == 64 else 3):
        expected = mve_matrix(x[i], tau, i % k) @ u[i]
        torch.testing.assert_close(found[i], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("link", [links.interval, links.simplex])
def test_at_0_it_is_straight_through(link):
    x, hard, u = case(6, 12, 3.0)
    expected = gradient_of(straight_through, x, hard, u, link)
    torch.testing.assert_close(gradient_of(mve(0), x, hard, u, link), expected)


def test_of_two_categories_it_becomes_reinmax():
    """The difference falls like 1 / tau."""
    x = seeded(torch.rand, 0, 1000, 2, dtype=DOUBLE) * 6 - 3
    u = seeded(torch.rand, 1, 1000, 2, dtype=DOUBLE) * 2 - 1
    hard = torch.eye(2, dtype=DOUBLE)[torch.arange(1000) % 2]
    expected = gradient_of(reinmax, x, hard, u)
    far, near = ((gradient_of(mve(tau), x, hard, u) - expected).abs().max() for tau in (1e7, 1e8))
    assert near < 1e-6
    assert 5 < far / near < 15


@pytest.mark.parametrize("tau", [0.0, 1.0, 30.0, 1e6, 1e8, 1e12])
def test_a_bit_is_one_of_two_categories(tau):
    x, hard, u = seeded(torch.randn, 0, 3, 50, dtype=DOUBLE)
    x, hard = 4 * x, (hard > 0).to(x)
    pair, chosen = torch.stack([0 * x, x], -1), torch.stack([1 - hard, hard], -1)
    expected = gradient_of(mve(tau), pair, chosen, torch.stack([0 * u, u], -1))[:, 1]
    found = gradient_of(mve(tau), x, hard, u, links.interval)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def relative_bias(k, tau):
    """Of random quadratic losses, by enumeration of the categories."""
    x, linear = seeded(torch.randn, 3, 2, 20, k, dtype=DOUBLE)
    square = seeded(torch.randn, 4, 20, k, k, dtype=DOUBLE)
    square = square + square.transpose(-1, -2)
    x.requires_grad_()
    p = x.softmax(-1)
    losses = linear + square.diagonal(dim1=-2, dim2=-1) / 2
    (exact,) = torch.autograd.grad((p * losses).sum(), x)
    found = torch.zeros_like(exact)
    for i, hard in enumerate(torch.eye(k, dtype=DOUBLE)):
        u = linear + square[..., i]
        found += p.detach()[:, i : i + 1] * gradient_of(mve(tau), x.detach(), hard.expand(20, k), u)
    return ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).max().item()


@pytest.mark.parametrize("k", [2, 3, 10])
def test_its_bias_for_quadratics_falls_like_one_by_tau(k):
    biases = [relative_bias(k, tau) for tau in (0.0, 1e4, 1e5, 1e6)]
    assert biases[0] > 0.1
    assert biases[2] <= 1e-3
    assert 8 < biases[1] / biases[2] < 12
    assert 8 < biases[2] / biases[3] < 12


@pytest.mark.parametrize("tau", [1.0, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("k", [2, 3, 10, 64, 256])
def test_float32(k, tau):
    """To rounding for categories as they are drawn, also where others have tiny probabilities."""
    rows = 20 if k < 256 else 4
    for scale in (0.1, 1.0, 5.0, 30.0):
        x, _, u = case(k, rows, scale, torch.float32)
        hard = links.simplex.hard(x + seeded(torch.rand, 1, rows, k).log().neg().log().neg())
        found = gradient_of(mve(tau), x, hard, u)
        expected = gradient_of(mve(tau), x.double(), hard.double(), u.double())
        error = (found - expected).abs().amax(-1) / u.abs().amax(-1)
        assert error.max() < 1e-5


@pytest.mark.parametrize("tau", [0, 30, 1e7, 1e8, 1e16, 1e300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
def test_no_row_fails(dtype, tau):
    """Of every category drawn in turn, however improbable; above 1e7 also in float32."""
    most = torch.finfo(dtype).max
    rows = [
        [0, 0, 0, 0], [0, 1, -20, -40], [0, 0, -16, -16], [0, -9, -18, -1e4], [most, -most, 1, 0],
        [0, -torch.inf, -torch.inf, -torch.inf], [3, -16, -16, -torch.inf],
    ]  # fmt: skip
    x = torch.tensor(rows, dtype=dtype)
    u = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=dtype)
    for i in range(4):
        hard = torch.eye(4, dtype=dtype)[i].expand(7, 4)
        gradient = gradient_of(mve(tau), x, hard, u)
        assert gradient.isfinite().all()
        assert (gradient[x.isneginf()] == 0).all()


def rare_case():
    """Draws of improbable categories, in float32."""
    x = torch.tensor([[0.0, -10.0], [0.0, -14.0], [-12.0, 0.0]])
    return x, torch.eye(2)[[1, 1, 0]], torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, -1.0]])


@pytest.mark.parametrize("tau", [30, 1e3, 1e5, 1e7])
def test_improbable_draws_in_float32(tau):
    x, hard, u = rare_case()
    expected = gradient_of(mve(tau), x.double(), hard.double(), u.double()).float()
    torch.testing.assert_close(gradient_of(mve(tau), x, hard, u), expected)


def test_a_tau_beyond_float32_is_computed_in_float64():
    x, hard, u = rare_case()
    expected = gradient_of(mve(1e9), x.double(), hard.double(), u.double()).float()
    torch.testing.assert_close(gradient_of(mve(1e9), x, hard, u), expected)
    assert not torch.allclose(gradient_of(mve(1e7), x, hard, u), expected)


def test_impossible_categories_are_left_out():
    x, hard, u = case(3, 3)
    expected = gradient_of(mve(30), x, hard, u)
    wide = torch.cat([x, torch.full((3, 2), -torch.inf, dtype=DOUBLE)], -1)
    more = torch.zeros(3, 2, dtype=DOUBLE)
    found = gradient_of(mve(30), wide, torch.cat([hard, more], -1), torch.cat([u, more + 5], -1))
    torch.testing.assert_close(found, torch.cat([expected, more], -1))


def test_a_constant_in_the_gradient_makes_no_difference():
    x, hard, u = case(4, 8)
    for tau in (0.3, 1e6):
        expected = gradient_of(mve(tau), x, hard, u)
        torch.testing.assert_close(gradient_of(mve(tau), x, hard, u + 7), expected)


def test_tau_may_follow_a_schedule():
    """It is read for each draw, and gets no gradient."""
    schedule = GeometricTemperature(160, 1e5, num_steps=2)
    x, hard, u = case(4, 8)
    for tau in (160, 4000, 1e5, 1e5):
        expected = gradient_of(mve(tau), x, hard, u)
        torch.testing.assert_close(
            gradient_of(mve(schedule), x, hard, u), expected, rtol=1e-5, atol=1e-5
        )
        schedule.step()
    learnt = torch.tensor(3.0, requires_grad=True)
    logits = torch.zeros(3, requires_grad=True)
    d = CategoricalStraightThrough(logits=logits, estimator=mve(lambda: learnt))
    d.rsample()[0].backward()
    assert learnt.grad is None
    assert logits.grad is not None


def test_derivatives_of_the_gradient():
    """It is linear in u, so a second derivative is the same matrix again; and in forward mode."""
    x, hard, u = case(4, 4)
    x.requires_grad_()
    surrogate = mve(30)(x, torch.ones(()), x, hard, links.simplex)
    u.requires_grad_()
    (gradient,) = torch.autograd.grad((surrogate * u).sum(), x, create_graph=True)
    weights = torch.randn_like(x)
    (twice,) = torch.autograd.grad((gradient * weights).sum(), u)
    _, forward = torch.func.jvp(
        lambda x: mve(30)(x, torch.ones(()), x, hard, links.simplex), (x.detach(),), (weights,)
    )
    torch.testing.assert_close(twice, forward)
    assert twice.abs().sum() > 0


@pytest.mark.parametrize("k", [2, 3, 10, 64])
def test_the_matrix_is_well_conditioned_at_every_tau(k):
    """Scaled to a diagonal of 1; without the number that is added it would be singular."""
    p = seeded(torch.randn, 0, 20, k, dtype=DOUBLE).softmax(-1)
    for tau in (0.0, 1e3, 1e7, 1e15):
        matrix = _matrix(p, torch.tensor(tau, dtype=DOUBLE))
        scale = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
        scaled = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
        assert torch.linalg.cond(scaled).max() < 10
