# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Logits mixed with the uniform distribution, against the mixture in float64."""

import math

import numpy as np
import pytest
import torch

from pyro_gumbel import CategoricalStraightThrough, unimix
from tests.common import seeded

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHARES = [0, 1e-6, 0.01, 0.5, 1]
ROWS = [[5.0, 0.0, -30.0, 1.0], [0.3, -torch.inf, 2.0, -torch.inf], [-torch.inf, 0, 0, 1]]


def literally(x, share):
    """The mixture of the probabilities, over the possible categories."""
    possible = x > -torch.inf
    uniform = possible / possible.sum(-1, keepdim=True)
    return ((1 - share) * x.softmax(-1) + share * uniform).log()


def gradient_of(function, x, share):
    """The gradient of a weighted sum of the possible entries."""
    x = x.clone().requires_grad_()
    mixed = function(x, share)
    weights = torch.arange(1.0, x.shape[-1] + 1, dtype=mixed.dtype)
    return torch.autograd.grad((mixed.masked_fill(x.isneginf(), 0.0) * weights).sum(), x)[0]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_mixture(dtype, share):
    x = torch.tensor(ROWS, dtype=dtype)
    mixed = unimix(x, share)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed, literally(x.double(), share).to(dtype))
    assert torch.equal(mixed.isneginf(), x.isneginf())


@pytest.mark.parametrize("share", SHARES)
def test_its_gradient(share):
    x = torch.tensor(ROWS, dtype=torch.float64)[:1]
    expected = gradient_of(literally, x, share)
    torch.testing.assert_close(gradient_of(unimix, x, share), expected)
    found = gradient_of(unimix, x.float(), share)
    torch.testing.assert_close(found, expected.float())


def test_both_ends():
    x = torch.tensor(ROWS)
    assert torch.equal(unimix(x, 0.0), x.log_softmax(-1))
    thirds = torch.full((4,), -math.log(3))
    thirds[0] = -torch.inf
    torch.testing.assert_close(unimix(x, 1.0)[2], thirds)
    assert (gradient_of(unimix, x, 1.0) == 0).all()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_leave_finite_gradients(dtype, share):
    b = torch.finfo(dtype).max
    rows = [
        [b, -b, 0],
        [b, b, 0],
        [-b, 0, -torch.inf],
        [-torch.inf, -b, -torch.inf],
        [1e4, 0, -1e4],
    ]
    x = torch.tensor(rows, dtype=dtype)
    mixed = unimix(x, share)
    assert not mixed.isnan().any()
    assert (mixed <= 1e-6).all()
    gradient = gradient_of(unimix, x, share)
    assert gradient.isfinite().all()
    assert (gradient[x.isneginf()] == 0).all()
    if share:
        possible = ~x.isneginf()
        least = math.log(share) - possible.sum(-1, keepdim=True).to(dtype).log()
        slack = 2 * torch.finfo(dtype).eps * least.abs()
        assert (mixed >= least - slack)[possible].all()


def test_divergences_are_exact_and_bounded():
    """As DreamerV3 has them between its posterior and its prior."""
    x = torch.tensor([30.0, 0.0, -30.0], requires_grad=True)
    y = torch.tensor([-30.0, 0.0, 1.0])
    prior = CategoricalStraightThrough(logits=unimix(x))
    posterior = CategoricalStraightThrough(logits=unimix(y))
    divergence = torch.distributions.kl_divergence(posterior, prior)
    exact = x.detach().double().requires_grad_()
    q = literally(y.double(), 0.01)
    expected = (q.exp() * (q - literally(exact, 0.01))).sum()
    torch.testing.assert_close(divergence, expected.float())
    assert divergence < math.log(3 / 0.01)
    (found,) = torch.autograd.grad(divergence, x)
    torch.testing.assert_close(found, torch.autograd.grad(expected, exact)[0].float())
    assert (prior.rsample((10,)).sum(-1) == 1).all()


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 7), (0, 3)])
def test_shapes(shape):
    x = seeded(torch.randn, 0, *shape)
    assert unimix(x).shape == shape
    torch.testing.assert_close(unimix(x), literally(x, 0.01))


def test_under_vmap_and_compile():
    x = seeded(torch.randn, 0, 5, 4)
    torch.testing.assert_close(torch.func.vmap(unimix)(x), unimix(x))
    compiled = torch.compile(lambda x: unimix(x, 0.1), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), unimix(x, 0.1))


def test_what_may_be_given():
    expected = unimix(torch.tensor([0.0, 1.0]), 0.5)
    assert torch.equal(unimix(torch.tensor([0, 1]), np.float64(0.5)), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.tensor(1.0),), ValueError, r"`logits` must have .* at least one, got shape \(\)"),
        ((torch.zeros(3, 0),), ValueError, r"`logits` must have .* got shape \(3, 0\)"),
        (([0.0, 1.0],), TypeError, "`logits` must be .*, got list; write"),
        ((torch.zeros(2), 1.5), ValueError, "`share` must be from 0 to 1, got 1.5; write"),
        ((torch.zeros(2), -0.1), ValueError, "`share` must be .* at least 0, got -0.1; write"),
        ((torch.zeros(2), torch.nan), ValueError, "`share` must be .*, got nan; write"),
        ((torch.zeros(2), "1"), TypeError, "`share` must be a finite number .*, got str; write"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=f"^unimix: {words}"):
        unimix(*arguments)
