# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Logarithms of values and probabilities that may be 0, or subnormal numbers."""

import math

import torch
from torch import Tensor

__all__ = ["clamped_log", "log_of_positive"]


def clamped_log(value: Tensor) -> Tensor:
    """log(s) of s clamped to the normal numbers, with the slope 1 / max(s, floor).

    Below the floor the slope stays constant: that of the smallest numbers, 1 / s, would overflow in
    the next product.
    """
    return _log(value, torch.finfo(value.dtype).tiny)


def log_of_positive(value: Tensor) -> Tensor:
    """log(p) of p > 0, exact down to the smallest subnormal number; its slope is as above."""
    finfo = torch.finfo(value.dtype)
    return _log(value, finfo.tiny * finfo.eps)


def _log(value: Tensor, least: float) -> Tensor:
    floor = torch.finfo(value.dtype).tiny * 2.0**24
    above = value.clamp(min=floor).log()
    extended = torch.where(value < floor, (value - floor) / floor + math.log(floor), above)
    exact = value.detach().clamp(min=least).log()
    return extended + (exact - extended.detach())
