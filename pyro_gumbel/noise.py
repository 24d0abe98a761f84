# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Gumbel and logistic noise, right at both ends of the float range.

`torch.rand` gives multiples of 2^-24 in float32: it is 0 once in 17 million draws, and the
distance to 1 is as coarse. A Gumbel variate -log(-log(u)) of such a u is infinite once in 17
million draws, and a category less likely than 6e-8 either never wins or wins far too often. Here
a second variate fills the cell that the first one chose, so that both U and 1 - U are exact to
their last digit, down to 2^-48; what little is left is clamped to the smallest normal number.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["exponential", "gumbel", "logistic", "uniform"]

_CELLS = 2.0**24


def uniform(
    shape: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """U ~ Uniform(0, 1) and its complement 1 - U, each to full relative precision.

    U = (n + f) / 2^24 with n uniform on 0, ..., 2^24 - 1 and f uniform on [0, 1).
    """
    cell = torch.rand(shape, dtype=dtype, device=device).mul(_CELLS).floor()
    place = torch.rand(shape, dtype=dtype, device=device)
    tiny = torch.finfo(dtype).tiny
    lower = (cell + place) / _CELLS
    upper = ((_CELLS - 1 - cell) + (1 - place)) / _CELLS
    return lower.clamp(min=tiny), upper.clamp(min=tiny)


def exponential(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """E ~ Exponential(1), never 0: -log(1 - U) from whichever end of U is the exact one."""
    u, complement = uniform(shape, dtype=dtype, device=device)
    return -torch.where(u < 0.5, torch.log1p(-u.clamp(max=0.5)), complement.log())


def gumbel(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """G = -log E ~ Gumbel(0, 1), the noise whose argmax on top of logits is a categorical draw."""
    return -exponential(shape, dtype=dtype, device=device).log()


def logistic(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """L = log U - log(1 - U) ~ Logistic(0, 1), the difference of two Gumbel variates."""
    u, complement = uniform(shape, dtype=dtype, device=device)
    return u.log() - complement.log()
