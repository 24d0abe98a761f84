# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""From one dtype of floats to another, with gradients that do not overflow on the way back.

A derivative of a density can be far beyond 65,504, the largest number of float16. Rounded to
infinity it would be NaN as soon as it met a factor of 0, the slope of a saturated value.
"""

from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import in_forward_mode

__all__ = ["cast"]


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, its gradient clamped to the finite numbers of both dtypes."""
    if tensor.dtype == dtype:
        return tensor
    if not tensor.is_floating_point() or in_forward_mode():
        return tensor.to(dtype)
    result: Tensor = _Cast.apply(tensor, dtype)
    return result


class _Cast(torch.autograd.Function):
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
