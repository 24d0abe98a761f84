# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What a value remembers of its making.

A relaxed value saturates: at temperature 0.1 a fair bit in float32 is exactly 1 in 15 % of its
draws (from logit(s) = 17.3 up), and its density can no longer be told from it. So the sampler
attaches the unsaturated logits to the very tensor that it returns, and every distribution that
scores that tensor uses them. Samples of the straight-through classes carry the mark of `rsample`
in the same way. A memory belongs to one tensor as it was drawn: a copy, a slice, a file or a tensor
changed in place has none.

For the distribution that drew it, a value has its log density too, as long as the parameters are
what they were. Torch counts changes of results of operations (`_version`). It does not count all
changes of leaves: fused optimisers, `.data` and numpy write to them unseen. So a leaf, a view of a
leaf and whatever has no graph is compared with a copy, one copy for all draws of a distribution.

What stays unseen: `.data`, numpy and storage writes to a value, or to parameters that are results
of operations; and all changes in place within compiled functions.

**Memory.** A kept value of the relaxed classes holds its unsaturated logits, unless they can be
had from the value to rounding; its log density, but not of bits without a gradient; and its
distribution's parameters, with the copy of those that are leaves.
"""

import math
import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import version_of

__all__ = [
    "Density",
    "Parameters",
    "memory_of",
    "recall",
    "recall_density",
    "remember",
]


class Parameters:
    """The tensors that a distribution is made of. Copies made by `expand` share this object."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors
        self._state: _State | None = None

    def state(self) -> "_State":
        """What they are now: the same object as long as they do not change."""
        if self._state is None or not self._state.is_that_of(self.tensors):
            self._state = _State(self.tensors)
        return self._state

    def are_in(self, state: "_State") -> bool:
        """Whether they are what they were when `state` was returned."""
        return state is self._state and state.is_that_of(self.tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        return Parameters, self.tensors


class _State:
    """What tells whether tensors have changed."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._marks = [
            (t.requires_grad, t.grad_fn, t.dtype, version_of(t), _copy_of(t)) for t in tensors
        ]
        self.requires_grad = any(mark[0] for mark in self._marks)

    def is_that_of(self, tensors: tuple[Tensor, ...]) -> bool:
        for tensor, (requires_grad, grad_fn, dtype, version, copy) in zip(
            tensors, self._marks, strict=True
        ):
            if (
                tensor.requires_grad is not requires_grad
                or tensor.grad_fn is not grad_fn
                or tensor.dtype is not dtype
                or version_of(tensor) != version
                or not (copy is None or _is_equal(tensor, copy))
            ):
                return False
        return True


def _copy_of(tensor: Tensor) -> Tensor | float | None:
    """The values, but none of a tensor whose changes torch counts; NaN on a GPU.

    To read values there would wait for it: what cannot be compared counts as changed.
    """
    if tensor.grad_fn is not None and not _is_view_of_a_leaf(tensor):
        return None
    if tensor.device.type != "cpu":
        return math.nan
    return tensor.item() if tensor.dim() == 0 else tensor.detach().clone()


def _is_view_of_a_leaf(tensor: Tensor) -> bool:
    return tensor._is_view() and (tensor._base is None or tensor._base.grad_fn is None)


def _is_equal(tensor: Tensor, copy: Tensor | float) -> bool:
    """Whether a tensor still has the values of its copy."""
    if not isinstance(copy, Tensor):
        return tensor.device.type == "cpu" and tensor.dim() == 0 and tensor.item() == copy
    if tensor.shape != copy.shape:
        return False
    tensor = tensor.detach()
    whole = tensor.is_contiguous() and copy.is_contiguous() and tensor.storage_offset() % 8 == 0
    if whole and tensor.numel() % 8 == 0 and tensor.numel() >= 4096:
        # Eight bytes at a time: twice as fast as float by float.
        return torch.equal(*(each.view(-1).view(torch.int64) for each in (tensor, copy)))
    return torch.equal(tensor, copy)


class Density:
    """The log density of a draw under the distribution that drew it."""

    def __init__(self, log_prob: Tensor, parameters: Parameters) -> None:
        self._log_prob = log_prob
        self._parameters = parameters
        self._state = parameters.state()

    def under(self, parameters: Parameters) -> Tensor | None:
        """log p as a new tensor, if these are the parameters of the draw and have not changed.

        A draw without a graph has no gradient to pass on to parameters that want one.
        """
        if parameters is not self._parameters or not parameters.are_in(self._state):
            return None
        if torch.is_grad_enabled() and self._log_prob.requires_grad != self._state.requires_grad:
            return None
        return self._log_prob.clone()


class _Memory:
    """`content` under `key`, with what is needed to see that the tensor is still the one drawn."""

    def __init__(self, owner: Tensor, key: object, content: Any, density: Density | None) -> None:
        self.key = key
        self.content = content
        self.density = density
        self.attached = owner.requires_grad, owner.is_leaf
        self.traced = torch.jit.is_tracing()
        if not torch.compiler.is_compiling():
            self.owner = weakref.ref(owner)
            self.version = version_of(owner)
            self.copy = owner.clone() if owner.is_inference() else None

    def still_holds(self, value: Tensor) -> bool:
        if (value.requires_grad, value.is_leaf) != self.attached:
            return False  # cut off, or a leaf whose own gradient is wanted
        if torch.compiler.is_compiling():
            return True
        if torch.jit.is_tracing() and not self.traced:
            return False  # coordinates from outside would be baked into the trace as a constant
        if not hasattr(self, "owner"):
            return True  # made inside a compiled function, which keeps neither mark
        if self.owner() is not value or self.version != version_of(value):
            return False
        return self.copy is None or torch.equal(self.copy, value)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copies and pickles carry an empty mapping: torch.load reads it, nothing recalls it."""
        return OrderedDict, ()


def remember(value: Tensor, key: object, content: Any, density: Density | None = None) -> Tensor:
    """Attach `content` to `value` under `key`, and return `value`.

    :param content: or a function of the value that finds it.
    """
    memory = _Memory(value, key, content, density)
    value._pyro_gumbel_memory = memory  # type: ignore[attr-defined]
    return value


def recall(value: Tensor, key: object) -> Any | None:
    """What `value` remembers under `key`; None if nothing, or if it is not what was drawn."""
    kept, content = memory_of(value)
    return content if kept == key else None


def recall_density(value: Tensor, parameters: Parameters) -> Tensor | None:
    """The log density of `value`, if it was drawn from these parameters as they are now."""
    if torch.compiler.is_compiling():
        return None
    memory = getattr(value, "_pyro_gumbel_memory", None)
    if not isinstance(memory, _Memory) or memory.density is None or not memory.still_holds(value):
        return None
    return memory.density.under(parameters)


def memory_of(value: Tensor) -> tuple[object, Any]:
    """The key and the content of what `value` remembers; None and None if it is not as drawn."""
    memory = getattr(value, "_pyro_gumbel_memory", None)
    if isinstance(memory, _Memory) and memory.still_holds(value):
        content = memory.content
        return memory.key, content(value) if callable(content) else content
    return None, None
