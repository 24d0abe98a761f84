# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Casts, and the gradients through them."""

import pytest
import torch

from pyro_gumbel.ops.precision import cast
from pyro_gumbel.tensors.index_tensor import as_derivative
from tests.common import (
    RELAXED,
    RELAXED_VALUES,
    STRAIGHT_THROUGH,
    WITH_INDICES,
    build,
    leaf_of,
    make,
    param_shape,
    smooth,
)

HALF = [torch.float16, torch.bfloat16]
DTYPES = [*HALF, torch.float32, torch.float64]
PAIRS = [(a, b) for a in DTYPES for b in DTYPES if a != b]


@pytest.mark.parametrize(("narrow", "wide"), PAIRS)
def test_a_cast_is_that_of_torch(narrow, wide):
    """The value, its gradient and its tangent, where nothing overflows."""
    x = torch.tensor([1.5, -0.0, 1e-3, -torch.inf, torch.inf], dtype=narrow)
    assert cast(x, wide).equal(x.to(wide))
    assert cast(x, narrow) is x
    weights = torch.tensor([1.0, -3.0, 0.1, 100.0, 2.0], dtype=wide)
    found, expected = (
        torch.func.vjp(lambda y, to=to: to(y, wide), x)[1](weights)[0]
        for to in (cast, torch.Tensor.to)
    )
    assert found.equal(expected)
    _, tangent = torch.func.jvp(lambda y: cast(y, wide), (x,), (x.nan_to_num(),))
    assert tangent.equal(x.nan_to_num().to(wide))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("back", [False, True])
def test_a_gradient_beyond_the_range_is_the_largest_number(dtype, back):
    """Whether the wider type is that of the result or that of the argument."""
    types = (torch.float32, dtype) if back else (dtype, torch.float32)
    x = torch.zeros(4, dtype=types[0], requires_grad=True)
    largest = torch.finfo(dtype).max
    weights = torch.tensor([torch.inf, -torch.inf, 3.4e38, -2.0]).to(types[1])
    (gradient,) = torch.autograd.grad(cast(x, types[1]), x, weights)
    assert gradient.tolist() == [largest, -largest, largest, -2.0]


def test_under_vmap_and_compile():
    x = torch.randn(3, 2).half()

    def slope(row):
        return torch.func.grad(lambda y: (cast(y, torch.float32) * 1e6).sum())(row)

    assert torch.vmap(slope)(x).eq(65504).all()
    compiled = torch.compile(lambda y: cast(y, torch.float32), backend="eager", fullgraph=True)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((compiled(leaf) * 1e6).sum(), leaf)
    assert gradient.eq(65504).all()


# Draws in half precision.


@pytest.mark.parametrize("parameter", ["logits", "probs"])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("cls", RELAXED)
def test_log_prob_of_parts_of_a_draw_has_finite_gradients(cls, dtype, parameter):
    """Through the slopes 1 / s of the density, infinite in float16, and the slopes 0 of s."""
    for temperature in (1.0, 0.1):
        tau = torch.full((100,), temperature, dtype=dtype, requires_grad=True)
        distribution = make(
            cls, tau, (100,), 3, dtype, parameter, validate_args=False
        )  # or it would warn
        score = distribution.log_prob(distribution.rsample((4,))[1:3]).sum()
        for gradient in torch.autograd.grad(score, [leaf_of(distribution), tau]):
            assert gradient.isfinite().all()
            assert (gradient != 0).any()


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_a_clamped_gradient_is_that_of_float32_up_to_the_clamp(cls):
    """At values of float16 in the middle and at its edges, where 1 / s overflows."""
    torch.manual_seed(1)
    distribution = make(cls, 0.5, (20,), 3, torch.float16, validate_args=False)
    value = distribution.sample().clone().requires_grad_()
    exact = build(cls, 0.5, logits=leaf_of(distribution).detach().float(), validate_args=False)
    wide = value.detach().float().requires_grad_()
    (found,) = torch.autograd.grad(distribution.log_prob(value).sum(), value)
    (expected,) = torch.autograd.grad(exact.log_prob(wide).sum(), wide)
    expected = expected.clamp(-65504, 65504).half()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("cls", smooth(WITH_INDICES))
def test_a_large_loss_leaves_finite_gradients(cls, dtype):
    """The gradients of a draw, where the gradient in half precision would be infinite."""
    tau = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    distribution = make(cls, tau, (20,), 3, dtype)
    value = as_derivative(distribution.rsample())
    loss = torch.where(value.isfinite(), value, 0.0) * torch.tensor(1e30, dtype=torch.float32)
    for gradient in torch.autograd.grad(loss.sum(), [leaf_of(distribution), tau]):
        assert gradient.isfinite().all()
        assert cls in STRAIGHT_THROUGH or (gradient != 0).any()


@pytest.mark.parametrize("cls", smooth(WITH_INDICES))
def test_parameters_of_which_a_log_prob_is_steep(cls):
    """The derivative in a probability is 1 / prob; that in a low temperature is huge."""
    tau = torch.tensor(0.002, dtype=torch.float16, requires_grad=True)
    probs = torch.tensor([1e-7, 0.25, 0.5], dtype=torch.float16)
    probs = (probs[0] if param_shape(cls) == () else probs).clone().requires_grad_()
    value = build(cls, 0.5, probs=torch.full_like(probs, 0.5)).sample((30,)).clone()
    distribution = build(cls, tau, probs=probs, validate_args=False)
    options = {"materialize_grads": True}
    slopes = torch.autograd.grad(distribution.log_prob(value).sum(), [probs, tau], **options)
    assert all(slope.isfinite().all() for slope in slopes)
    assert any((slope.abs() > 65000).any() for slope in slopes)


def test_forward_mode_nests():
    """torch does not take the derivative of a Function's jvp."""
    x = torch.tensor([0.5, -1.0])

    def function(x):
        return cast(x.exp(), torch.float64).square().sum()

    twice = torch.func.jacfwd(torch.func.jacfwd(function))(x)
    torch.testing.assert_close(twice, (4 * (2 * x.double()).exp()).diag())
