# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws and densities as operations of a link, which autograd differentiates.

They are right for every link, device and mode, and are what the formulas are tested against. The
arguments are those of `pyro_gumbel.kernels.dispatch`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_gumbel._tracing import in_forward_mode
from pyro_gumbel.links import Link

__all__ = ["Draw", "draw", "log_density", "straight_through_draw"]


class Draw(NamedTuple):
    """A relaxed draw."""

    value: Tensor
    """s, in the dtype of the logits."""
    unconstrained: Tensor | Callable[[Tensor], Tensor] | None
    """v. Only if it need not be kept may it be a function that finds it from the value, or None for
    `link.inverse_inside`."""
    log_prob: Tensor | None
    """log p(s) under the drawn distribution; None unless asked for, cheap and finite."""


def draw(
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    noise: Callable[..., Tensor],
    sample_shape: Size,
    batch_shape: Size,
    *,
    keep: bool,
    log_prob: bool,
) -> Draw:
    """A relaxed draw, always with v and without log p(s)."""
    perturbed = _perturbed(logits, link, noise, sample_shape + batch_shape)
    v = link.unconstrained(perturbed, temperature)
    return Draw(link.value(v), v, None)


def straight_through_draw(
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    noise: Callable[..., Tensor],
    sample_shape: Size,
    batch_shape: Size,
) -> Tensor:
    """A hard draw. No gradient passes where the relaxed value is infinite or NaN."""
    perturbed = _perturbed(logits, link, noise, sample_shape + batch_shape)
    hard = link.hard(perturbed.detach())
    if not torch.is_grad_enabled() and not in_forward_mode():
        return hard
    relaxed = link(perturbed, temperature)
    return hard + (relaxed - relaxed.detach()).nan_to_num(nan=0.0)


def log_density(
    value: Tensor,
    unconstrained: Tensor,
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    batch_shape: Size,
    *,
    of_values: bool,
) -> Tensor:
    """log p(s) or log p(v), over the batch shape or one that broadcasts with it."""
    x, v = link.centred(logits), link.finite(unconstrained)
    log_prob = link.log_density(v, x, temperature, of_values=of_values)
    low, high = (0.0, 1.0) if of_values else (-math.inf, math.inf)
    return torch.where(link.is_impossible(value, x, low, high), -math.inf, log_prob)


def _perturbed(
    logits: Tensor, link: Link, noise: Callable[..., Tensor], shape: tuple[int, ...]
) -> Tensor:
    """z = x + noise, of the shape of a draw."""
    event = logits.shape[logits.dim() - link.event_dim :]
    variates = noise(Size(shape + event), dtype=logits.dtype, device=logits.device)
    return link.centred(logits) + variates
