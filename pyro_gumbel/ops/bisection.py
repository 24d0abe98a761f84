# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Roots of decreasing functions."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["bisected"]


def bisected(
    function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, *, steps: int
) -> Tensor:
    """A point at or just above the root of a decreasing function, for each entry.

    :param function: an elementwise function.
    :param low: a point below the root.
    :param high: a point above the root, of the same shape.
    :param steps: how often the interval is halved.
    """
    for _ in range(steps):
        middle = (low + high) / 2
        is_below_root = function(middle) > 0
        low = torch.where(is_below_root, middle, low)
        high = torch.where(is_below_root, high, middle)
    return high
