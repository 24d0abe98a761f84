# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws and densities for every link, device and mode: the choice of the kernels is made here.

In all functions `logits` are x in float32 or float64, not expanded, with -inf for an impossible
outcome (for bits also inf). `temperature` broadcasts with a draw: for vectors it has a last
dimension of 1, or no dimensions.
"""

from collections.abc import Callable
from types import ModuleType

from torch import Size, Tensor
from torch.nn import Parameter

from pyro_gumbel._tracing import in_eager_mode
from pyro_gumbel.kernels import cpu, reference
from pyro_gumbel.kernels.formulas import FORMULAS
from pyro_gumbel.kernels.reference import Draw
from pyro_gumbel.links import Link
from pyro_gumbel.tensors.one_hot_sample import OneHotSample

__all__ = ["BY_DEVICE", "Draw", "draw", "log_density", "straight_through_draw"]

BY_DEVICE: dict[str, ModuleType] = {"cpu": cpu}  # what runs the formulas on which type of device

_WITH_TORCH_OPERATIONS = (Tensor, Parameter, OneHotSample)


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
    """A relaxed draw over sample_shape + batch_shape.

    :param noise: the sampler of the noise, called as noise(shape, dtype=..., device=...). The
        formulas are for one noise each, and draw it themselves.
    :param keep: whether v must be returned. Otherwise it is None where `link.inverse_inside` finds
        it from the value to rounding.
    :param log_prob: whether log p(s) is of use. It is returned where it is cheap and finite.
    """
    kernels = _kernels(link, noise, logits, temperature)
    return kernels.draw(
        logits, temperature, link, noise, sample_shape, batch_shape, keep=keep, log_prob=log_prob
    )


def straight_through_draw(
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    noise: Callable[..., Tensor],
    sample_shape: Size,
    batch_shape: Size,
) -> Tensor:
    """The hard value that perturbed logits choose, with the gradient of their relaxed value.

    :param noise: as in `draw`.
    """
    kernels = _kernels(link, noise, logits, temperature)
    return kernels.straight_through_draw(
        logits, temperature, link, noise, sample_shape, batch_shape
    )


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
    """log p(s) if `of_values`, else log p(v); -inf where `value` is an impossible outcome.

    :param value: s if `of_values`, else v, as the user gave it.
    :param unconstrained: v, in the dtype of the computation.
    """
    kernels = _kernels(link, None, logits, temperature, unconstrained)
    return kernels.log_density(
        value, unconstrained, logits, temperature, link, batch_shape, of_values=of_values
    )


def _kernels(link: Link, noise: Callable[..., Tensor] | None, *tensors: Tensor) -> ModuleType:
    """The module whose functions compute.

    The formulas are for the links that have them, with the noise that belongs to them, and for
    plain numbers. Transforms, compilers and tracers need the operations of the reference.
    """
    formulas = FORMULAS.get(type(link))
    if formulas is None or not in_eager_mode():
        return reference
    if noise is not None and noise is not formulas.noise:
        return reference
    device = tensors[0].device
    for tensor in tensors:
        if type(tensor) not in _WITH_TORCH_OPERATIONS or tensor.device != device:
            return reference
    return BY_DEVICE.get(device.type, reference)
