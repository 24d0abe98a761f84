# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which numbers Python can read from a tensor, and in which mode torch runs.

Under `torch.vmap`, `torch.compile`, `torch.jit.trace` and forward-mode differentiation a tensor may
hold no number that Python can read. Code that looks at numbers asks here first.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _autograd, _is_tracing
from torch.autograd import forward_ad
from torch.compiler import is_compiling

__all__ = [
    "CPU",
    "are_finite",
    "are_saved_by_hooks",
    "are_seen_finite",
    "autocast_dtypes",
    "brief",
    "counts_changes",
    "ends",
    "in_eager_mode",
    "in_forward_mode",
    "in_program",
    "in_transform",
    "is_batched",
    "is_free_of_nan",
    "is_number",
    "known",
    "moved",
    "version_of",
    "with_autocast",
    "without_hooks",
]

CPU = torch.device("cpu")  # to compare with it is faster than to ask for the name of a type


def known(tensor: Tensor, otherwise: Any) -> Any:
    """The number or truth value of a tensor with one element; `otherwise` if it cannot be read."""
    if in_program():
        return otherwise
    try:
        return tensor.item()
    except RuntimeError:  # under vmap
        return otherwise


def ends(tensor: Tensor | float) -> tuple[float, float]:
    """The smallest and the largest number of a tensor; of a float both are the float.

    Both are NaN if the tensor holds a NaN, is empty or cannot be read.
    """
    if isinstance(tensor, float):
        return tensor, tensor
    if not tensor.numel() or tensor.is_meta or not in_eager_mode():
        return math.nan, math.nan
    if tensor.numel() == 1:
        number = tensor.item()
        return number, number
    least, most = tensor.detach().aminmax()
    return least.item(), most.item()


def are_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are known to be finite: if their sum is, they are."""
    if tensor.is_meta or not in_eager_mode():
        return False
    return math.isfinite(tensor.detach().sum().item())


def is_free_of_nan(tensor: Tensor) -> bool:
    """Whether no number of a tensor is known to be NaN: it equals itself, element by element."""
    try:
        return torch.equal(tensor, tensor)
    except RuntimeError:  # of a tensor that has left `torch.vmap`
        return False


def are_seen_finite(tensor: Tensor) -> bool:
    """Whether all numbers are known to be finite, where it takes little to see: on a CPU."""
    return tensor.device.type == "cpu" and are_finite(tensor)


def brief(tensor: Tensor) -> str:
    """The number of a scalar that can be read; otherwise the shape of the tensor."""
    number = known(tensor, otherwise=None) if tensor.dim() == 0 else None
    return str(tuple(tensor.shape)) if number is None else f"{number:.4g}"


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for inference tensors, which do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def counts_changes(tensor: Tensor) -> bool:
    """Whether torch counts every change in place: of leaves and their views it does not.

    It does not see what fused optimisers, `.data` and numpy write to a leaf.
    """
    if tensor.is_leaf:
        return False
    return not tensor._is_view() or (tensor._base is not None and not tensor._base.is_leaf)


def is_number(tensor: Tensor) -> bool:
    """Whether a tensor is a constant number, which Python can read without waiting."""
    is_plain = type(tensor) is Tensor and tensor.dim() == 0 and tensor.device == CPU
    return is_plain and not tensor.requires_grad and in_eager_mode()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A number on a device. It is written there: a copy would be waited for."""
    if tensor.device == device or in_program() or type(tensor) is not Tensor:
        return tensor.to(device)
    return torch.scalar_tensor(tensor.item(), dtype=tensor.dtype, device=device)


def in_program() -> bool:
    """Whether torch traces or compiles: tensors then stand for the steps of a program."""
    return is_compiling() or _is_tracing()


def in_eager_mode() -> bool:
    """Whether tensors hold plain numbers: no tracing, no functorch transform, no forward mode."""
    if is_compiling() or _is_tracing():
        return False
    return not _are_functorch_transforms_active() and forward_ad._current_level < 0


def are_saved_by_hooks() -> bool:
    """Whether hooks of torch take the tensors that are saved for the backward pass.

    What runs within `torch.utils.checkpoint` runs again, and must save the same tensors then. So
    what is kept from the first run must not be computed there, see `without_hooks`.
    """
    return _autograd._top_saved_tensors_default_hooks(True) is not None


@contextmanager
def without_hooks() -> Iterator[None]:
    """Where tensors are saved for the backward pass as they are, not by hooks."""
    hooks = []
    while are_saved_by_hooks():
        hooks.append(_autograd._top_saved_tensors_default_hooks(True))
        _autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            _autograd._push_saved_tensors_default_hooks(pack, unpack)


def autocast_dtypes() -> dict[str, torch.dtype]:
    """The types of device with autocast, and their dtypes."""
    if not torch._C._is_any_autocast_enabled():
        return {}
    kinds = filter(torch.is_autocast_enabled, ("cpu", "cuda"))
    return {kind: torch.get_autocast_dtype(kind) for kind in kinds}


def with_autocast(dtypes: Mapping[str, torch.dtype]) -> AbstractContextManager[Any]:
    """Autocast as it was when `autocast_dtypes` returned these: from now to the end of a `with`.

    Without the cache of weights, which may hold them in the present dtype.
    """
    present, stack = autocast_dtypes(), ExitStack()
    for kind in present.keys() | dtypes.keys() if present != dtypes else ():
        dtype, is_on = dtypes.get(kind), kind in dtypes
        stack.enter_context(torch.autocast(kind, dtype, enabled=is_on, cache_enabled=False))
    return stack


def in_transform() -> bool:
    """Whether a transform of torch.func or forward mode is active."""
    return _are_functorch_transforms_active() or in_forward_mode()


def in_forward_mode() -> bool:
    """Whether a forward-mode derivative may be asked for."""
    return forward_ad._current_level >= 0


def is_batched(tensor: Tensor | None) -> bool:
    """Whether `is_grads_batched` or `torch.vmap` has put several gradients in one tensor."""
    if tensor is None:
        return False
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(tensor) or functorch.is_batchedtensor(tensor)
