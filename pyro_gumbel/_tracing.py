# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which numbers can be read: not under vmap, compile, trace and forward mode."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["brief", "ends", "in_eager_mode", "in_forward_mode", "in_program", "known", "version_of"]


def known(tensor: Tensor, otherwise: Any) -> Any:
    """The number or truth that a tensor holds; `otherwise` where there is none to read."""
    if in_program():
        return otherwise
    try:
        return tensor.item()
    except RuntimeError:  # under vmap
        return otherwise


def ends(tensor: Tensor) -> tuple[float, float]:
    """The least and the largest number of a tensor; NaN twice if there is one, or none to read."""
    if not tensor.numel() or tensor.is_meta or not in_eager_mode():
        return math.nan, math.nan
    least, most = tensor.detach().aminmax()
    return least.item(), most.item()


def brief(tensor: Tensor) -> str:
    """The number, if this is a scalar that can be read, or else the shape."""
    number = known(tensor, otherwise=None) if tensor.dim() == 0 else None
    return str(tuple(tensor.shape)) if number is None else f"{number:.4g}"


def in_program() -> bool:
    """Whether tensors stand for the steps of a program here, rather than for numbers."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def in_eager_mode() -> bool:
    """Whether tensors are plain numbers here, that no program and no transform looks through."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def in_forward_mode() -> bool:
    """Whether a forward derivative may be asked for."""
    return forward_ad._current_level >= 0


def version_of(value: Tensor) -> int:
    """The count of in-place changes, which inference tensors do not keep."""
    return 0 if value.is_inference() else value._version
