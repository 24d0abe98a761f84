# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Logarithms of values and probabilities that may be 0, or subnormal numbers."""

import math

import torch
from torch import Tensor

__all__ = ["clamped_log", "exact_log", "exact_log1m", "finite_log", "log_of_positive"]


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


def exact_log(p: Tensor) -> Tensor:
    """log(p), -inf at 0, where it passes no gradient."""
    return torch.where(p > 0, log_of_positive(torch.where(p > 0, p, 1.0)), -math.inf)


def exact_log1m(p: Tensor) -> Tensor:
    """log(1 - p), -inf at 1, where it passes no gradient."""
    return torch.where(p < 1, torch.log1p(-torch.where(p < 1, p, 0.0)), -math.inf)


def finite_log(log: Tensor) -> Tensor:
    """A logarithm, with that of the smallest normal number for -inf, where no gradient passes."""
    return torch.where(log.isneginf(), math.log(torch.finfo(log.dtype).tiny), log)


def _log(value: Tensor, least: float) -> Tensor:
    floor = torch.finfo(value.dtype).tiny * 2.0**24
    above = value.clamp(min=floor).log()
    extended = torch.where(value < floor, (value - floor) / floor + math.log(floor), above)
    exact = value.detach().clamp(min=least).log()
    return extended + (exact - extended.detach())
