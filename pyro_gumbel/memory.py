# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What a value remembers of its making.

A soft value saturates: at temperature 0.1 a fair bit in float32 is exactly 1 in 15 % of its draws
(from logit(s) = 17.3 up), and its density can no longer be told from it. So the sampler attaches
the unsaturated coordinates to the very tensor that it returns, and whoever scores that tensor
uses them; for the law that drew it there is the log density too. Hard samples carry the mark of
`rsample` in the same way. A memory belongs to one tensor as it was drawn: a copy, a slice, a file
or a tensor changed in place has none. (A change in place goes unnoticed where torch keeps no count
of them: `.data`, inference mode and compiled functions.)
"""

import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

__all__ = ["Density", "memory_of", "recall", "recall_density", "remember"]


class Density:
    """The log density of a draw under the very law that drew it, while its parameters last."""

    def __init__(self, log_prob: Tensor, parameters: tuple[Tensor, ...]) -> None:
        self.log_prob = log_prob
        self.parameters = parameters
        self.versions = self._now()

    def of(self, parameters: tuple[Tensor, ...]) -> Tensor | None:
        """log p, if this is the tuple that its law has; None if not, or if they have changed.

        A draw without a graph has no gradient to pass on to parameters that want one.
        """
        if parameters is not self.parameters or self.versions != self._now():
            return None
        if not torch.is_grad_enabled():
            return self.log_prob.detach()
        wanted = any(parameter.requires_grad for parameter in parameters)
        return self.log_prob if self.log_prob.requires_grad == wanted else None

    def _now(self) -> tuple[int, ...]:
        return tuple(map(_version, (self.log_prob, *self.parameters)))


class _Memory:
    """`content` under `key`, with what is needed to see that the tensor is still the one drawn."""

    def __init__(self, owner: Tensor, key: object, content: Any, density: Density | None) -> None:
        self.key = key
        self.content = content
        self.density = density
        self.attached = owner.requires_grad
        self.traced = torch.jit.is_tracing()
        if not torch.compiler.is_compiling():
            self.owner = weakref.ref(owner)
            self.version = _version(owner)

    def still_holds(self, value: Tensor) -> bool:
        if value.requires_grad != self.attached:
            return False  # cut off, or a leaf whose own gradient is wanted
        if torch.compiler.is_compiling():
            return True
        if torch.jit.is_tracing() and not self.traced:
            return False  # coordinates from outside would be baked into the trace as a constant
        if not hasattr(self, "owner"):
            return True  # made inside a compiled function, which keeps neither mark
        return self.owner() is value and self.version == _version(value)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copies and pickles carry an empty mapping: torch.load reads it, nothing recalls it."""
        return OrderedDict, ()


def _version(value: Tensor) -> int:
    """The count of in-place changes, which inference tensors do not keep."""
    return 0 if value.is_inference() else value._version


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


def recall_density(value: Tensor, parameters: tuple[Tensor, ...]) -> Tensor | None:
    """The log density of `value`, if the law that drew it has this very tuple of parameters."""
    if torch.compiler.is_compiling():
        return None  # a compiled function knows equality, not identity, of tuples
    memory = getattr(value, "_pyro_gumbel_memory", None)
    if not isinstance(memory, _Memory) or memory.density is None or not memory.still_holds(value):
        return None
    return memory.density.of(parameters)


def memory_of(value: Tensor) -> tuple[object, Any]:
    """The key and the content of what `value` remembers; None and None if it is not as drawn."""
    memory = getattr(value, "_pyro_gumbel_memory", None)
    if isinstance(memory, _Memory) and memory.still_holds(value):
        content = memory.content
        return memory.key, content(value) if callable(content) else content
    return None, None
