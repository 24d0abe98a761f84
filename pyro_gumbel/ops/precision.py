# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Casts between floating-point dtypes whose gradients do not overflow.

The derivative of a log density can be far larger than 65,504, the largest number of float16. A
plain cast would round it to infinity. The next factor may be 0, the derivative of a saturated
value, and the product would be NaN.
"""

from typing import Any

import torch
from torch import Tensor

from pyro_gumbel.ops.autograd import with_own_gradient

__all__ = ["cast"]


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, with a gradient that is clamped to the finite range of both dtypes."""
    if tensor.dtype == dtype:
        return tensor
    if not tensor.is_floating_point():
        return tensor.to(dtype)
    result: Tensor = with_own_gradient(_Cast, Tensor.to, tensor, dtype)
    return result


class _Cast(torch.autograd.Function):
    """`tensor.to(dtype)`; the backward pass clamps."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        ctx.dtypes = inputs[0].dtype, inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        largest = min(torch.finfo(dtype).max for dtype in ctx.dtypes)
        return gradient.clamp(-largest, largest).to(ctx.dtypes[0]), None
