# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws and densities for every link, device and mode: the choice of the kernels is made here.

In all functions `logits` are x in float32 or float64, not expanded, with -inf for an impossible
outcome (for bits also inf). `temperature` broadcasts with a draw: for vectors it has a last
dimension of 1, or no dimensions. It may be a number on the CPU where the logits are on a GPU.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Size, Tensor
from torch.nn import Parameter

from pyro_gumbel._tracing import CPU, in_eager_mode, is_number, moved
from pyro_gumbel.estimators import Estimator
from pyro_gumbel.kernels import cpu, reference
from pyro_gumbel.kernels.formulas import FORMULAS
from pyro_gumbel.kernels.reference import Draw
from pyro_gumbel.links import Link
from pyro_gumbel.tensors.one_hot_sample import OneHotSample

__all__ = [
    "BY_DEVICE",
    "Draw",
    "backend",
    "draw",
    "estimated_draw",
    "log_density",
    "second_order_draw",
    "straight_through_draw",
]

# What runs the formulas on which type of device. For "cuda" it is looked for if it is not here.
BY_DEVICE: dict[str, ModuleType] = {"cpu": cpu}
_NAMES = {cpu: "blocks", reference: "operations"}
_on_gpu: dict[torch.device, ModuleType] = {}

_WITH_TORCH_OPERATIONS = (Tensor, Parameter, OneHotSample)


def backend(device: torch.device | str) -> str:
    """What computes draws and densities on a device, where nothing asks for torch's operations.

    >>> backend("cpu")
    'blocks'

    :param device: a device or its name, such as "cuda".
    :returns: "triton" for the kernels on a GPU, "blocks" for those on a CPU, and "operations" for
        the operations of torch: on other devices, and on a GPU where Triton is not installed or
        does not run.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        return _NAMES[reference]
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _NAMES.get(_module_for(device), "triton")


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
    near: bool = False,
) -> Draw:
    """A relaxed draw over sample_shape + batch_shape.

    :param noise: the sampler of the noise, called as noise(shape, dtype=..., device=...). The
        formulas are for one noise each, and draw it themselves.
    :param keep: whether v must be returned. Otherwise it is None where `link.inverse_inside` finds
        it from the value to rounding.
    :param log_prob: whether log p(s) is of use. It is returned where it is cheap and finite.
    :param near: whether all logits are known to be near 0.
    """
    kernels = _kernels(link, noise, logits, temperature)
    if kernels is not cpu:
        given = link, noise, sample_shape, batch_shape
        tau = _temperature_for(kernels, temperature, logits)
        return kernels.draw(logits, tau, *given, keep=keep, log_prob=log_prob)
    return cpu.draw(
        logits,
        temperature,
        link,
        noise,
        sample_shape,
        batch_shape,
        keep=keep,
        log_prob=log_prob,
        near=near,
    )


def straight_through_draw(
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    noise: Callable[..., Tensor],
    sample_shape: Size,
    batch_shape: Size,
    near: bool = False,
) -> Tensor:
    """The hard value that perturbed logits choose, with the gradient of their relaxed value.

    :param noise: as in `draw`.
    :param near: as in `draw`.
    """
    kernels = _kernels(link, noise, logits, temperature)
    if kernels is cpu:
        return cpu.straight_through_draw(
            logits, temperature, link, noise, sample_shape, batch_shape, near
        )
    tau = _temperature_for(kernels, temperature, logits)
    return kernels.straight_through_draw(logits, tau, link, noise, sample_shape, batch_shape)


def second_order_draw(
    logits: Tensor,
    link: Link,
    noise: Callable[..., Tensor],
    sample_shape: Size,
    batch_shape: Size,
) -> Tensor | None:
    """The hard value of bits or one-hot vectors with the gradient of the second-order surrogate.

    None where no kernel does it. `pyro_gumbel.ops.second_order` has the same gradient.

    :param noise: as in `draw`.
    """
    kernels = _kernels(link, noise, logits)
    if not hasattr(kernels, "second_order_draw"):
        return None
    hard: Tensor | None = kernels.second_order_draw(logits, link, sample_shape, batch_shape)
    return hard


def estimated_draw(
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    noise: Callable[..., Tensor],
    sample_shape: Size,
    batch_shape: Size,
    estimator: Estimator,
) -> Tensor | None:
    """The hard value of bits or one-hot vectors with the gradient of an estimator.

    None where no kernel does it.

    :param noise: as in `draw`.
    """
    kernels = _kernels(link, noise, logits, temperature)
    if not hasattr(kernels, "estimated_draw"):
        return None
    hard: Tensor | None = kernels.estimated_draw(
        logits, temperature, link, sample_shape, batch_shape, estimator
    )
    return hard


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
    tau = _temperature_for(kernels, temperature, logits)
    return kernels.log_density(
        value, unconstrained, logits, tau, link, batch_shape, of_values=of_values
    )


def _kernels(link: Link, noise: Callable[..., Tensor] | None, *tensors: Tensor) -> ModuleType:
    """The module whose functions compute.

    The formulas are for the links that have them, with the noise that belongs to them, and for
    plain numbers. Transforms, compilers and tracers need the operations of the reference.

    :param tensors: the logits, then the temperature, then others.
    """
    formulas = FORMULAS.get(type(link))
    if formulas is None or not in_eager_mode():
        return reference
    if noise is not None and noise is not formulas.noise:
        return reference
    device = tensors[0].device
    for i, tensor in enumerate(tensors):
        if type(tensor) not in _WITH_TORCH_OPERATIONS:
            return reference
        if tensor.device != device and not (i == 1 and is_number(tensor)):
            return reference
    kernels = BY_DEVICE.get("cpu" if device == CPU else device.type) or _module_for(device)
    if kernels is not cpu and any(tensor.dtype == torch.float64 for tensor in tensors):
        return reference
    return kernels


def _temperature_for(kernels: ModuleType, temperature: Tensor, logits: Tensor) -> Tensor:
    """The temperature for a module: torch's operations take it on the device of the logits."""
    return moved(temperature, logits.device) if kernels is reference else temperature


def _module_for(device: torch.device) -> ModuleType:
    """The module that computes on a device; on a GPU the first call sees whether Triton works."""
    found = BY_DEVICE.get(device.type) or _on_gpu.get(device)
    if found is None:
        found = _triton_for(device) if device.type == "cuda" else reference
        if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            _on_gpu[device] = found
    return found


def _triton_for(device: torch.device) -> ModuleType:
    """The kernels in Triton, if it is installed and runs on this GPU; else the reference."""
    try:
        from pyro_gumbel.kernels import cuda

        cuda.try_on(device)
    except Exception:  # for whatever reason: the reference is right too
        return reference
    return cuda
