# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Logarithms of values and probabilities that may be 0, or subnormal numbers."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_gumbel._tracing import ends, in_eager_mode

__all__ = [
    "NOTHING",
    "are_regular",
    "clamped_log",
    "exact_log",
    "exact_log1m",
    "finite_log",
    "log_of_positive",
    "log_rising",
    "minus_p_log_p",
]

NOTHING = -1e4  # a logarithm of which the exponential is 0 in every dtype, as of all below it
_LARGE = 50.0  # from here on the first terms of Stirling's series are exact in float64


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


def minus_p_log_p(log_p: Tensor) -> Tensor:
    """-p log p; 0 without a gradient where p is 0 in its dtype, however low its logarithm is."""
    log_p = log_p.clamp(min=NOTHING)
    return -(log_p.exp() * log_p)


def finite_log(log: Tensor) -> Tensor:
    """A logarithm, with that of the smallest normal number for -inf, where no gradient passes."""
    return torch.where(log.isneginf(), math.log(torch.finfo(log.dtype).tiny), log)


def _log(value: Tensor, least: float) -> Tensor:
    if are_regular(value):
        return value.log()
    if in_eager_mode():
        return _Log.apply(value, least)
    floor = _linear_below(value)
    above = value.clamp(min=floor).log()
    extended = torch.where(value < floor, (value - floor) / floor + math.log(floor), above)
    exact = value.detach().clamp(min=least).log()
    return extended + (exact - extended.detach())


def are_regular(value: Tensor) -> bool:
    """Whether the plain logarithm does, as it takes little to see on a CPU: no number is tiny."""
    return value.device.type == "cpu" and ends(value)[0] >= _linear_below(value)


def _linear_below(value: Tensor) -> float:
    """In float16, whose smallest numbers are not that small, the smallest normal number."""
    tiny = torch.finfo(value.dtype).tiny
    return tiny if value.dtype == torch.float16 else tiny * 2.0**24


class _Log(Function):
    """The same as one operation."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, least: float) -> Tensor:
        ctx.save_for_backward(value)
        return value.clamp(min=least).log()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return gradient / value.clamp(min=_linear_below(value)), None


def log_rising(start: Tensor, count: Tensor) -> Tensor:
    r"""log of Gamma(start + count) / Gamma(start), for start > 0 and count >= 0.

    The difference of two values of `lgamma` loses its digits where both are large. There it is that
    of Stirling's series, with s = start + count,

    .. math::
        (start - \tfrac{1}{2}) \log(1 + count / start) + count (\log s - 1) + R(s) - R(start).
    """
    is_large = start >= _LARGE
    a = torch.where(is_large, start, _LARGE)
    s = a + count
    series = (a - 0.5) * torch.log1p(count / a) + count * (s.log() - 1)
    series = series + _stirling_rest(s) - _stirling_rest(a)
    return torch.where(is_large, series, torch.lgamma(start + count) - torch.lgamma(start))


def _stirling_rest(x: Tensor) -> Tensor:
    """R(x) = 1 / (12 x) - 1 / (360 x^3) + 1 / (1260 x^5)."""
    y = 1 / x
    return y * (1 / 12 - y * y * (1 / 360 - y * y / 1260))
