# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What a drawn value keeps: its form in logit space, and its log_prob.

A relaxed value saturates. At temperature 0.1 a float32 draw of a fair `RelaxedBernoulli` is
exactly 1 in 16 % of the cases, and its density can no longer be computed from it. So the sampler
attaches the unsaturated logits to the very tensor that it returns, and every distribution of the
family that evaluates that tensor uses them. Samples of the straight-through classes carry the mark
of `rsample` in the same way. The cache belongs to one tensor as it was drawn: a copy, a slice, a
tensor read from a file or one that was changed in place has none.

A value also keeps its log_prob under the distribution that drew it, valid as long as that
distribution's parameters have not changed. torch counts in-place changes of the results of
operations (`_version`). It does not see every change of a leaf: fused optimisers, `.data` and
numpy write to leaves unseen. So a leaf, a view of a leaf, and a tensor without a graph are compared
with a copy; all draws of one distribution share that copy.

On a GPU to compare is to wait for it. Without validation nothing waits: then a log_prob is computed
again where parameters would have to be compared. A temperature that was given as a number cannot
change, and is not compared. With validation there is one comparison a log_prob, and each draw has a
copy of its own.

Not detected: writes through `.data`, numpy or the storage to a value, or to parameters that are
results of operations; and any in-place change inside a compiled function.

**Memory.** A relaxed value keeps its logit-space form, unless that can be computed from the value
to rounding; its log_prob, until it is asked for, except for binary values without a gradient; and
the parameters of its distribution, with the shared copy of those that are leaves.
"""

import math
from collections import OrderedDict
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch._C import _is_tracing
from torch.compiler import is_compiling

from pyro_gumbel._tracing import CPU, are_saved_by_hooks, counts_changes

__all__ = ["CacheKey", "cached", "recall", "recall_log_prob", "remember", "share_content"]


class CacheKey:
    """The identity of a distribution's parameters. Copies made by `expand` share it."""

    state: "_State | None" = None  # of the last look
    near: int | None = None  # the version of logits seen to be near 0, if it counts all changes

    def __init__(self, may_wait: bool) -> None:
        self.may_wait = may_wait  # for a GPU, to compare parameters

    def is_near(self, logits: Tensor) -> bool:
        """Whether all logits are known to be near 0: they were seen to be, and are as they were."""
        return self.near is not None and self.near == logits._version and not logits.is_leaf

    def state_of(self, *parameters: Tensor) -> "_State":
        """What the parameters are now: the same object as long as they do not change."""
        state = self.state
        if state is None or state.would_wait or not state.is_that_of(parameters):
            self.state = state = _State(parameters, self.may_wait)
        return state


class _State:
    """What tells whether tensors have changed."""

    def __init__(self, tensors: tuple[Tensor, ...], may_wait: bool) -> None:
        self.marks: list[tuple[Any, ...]] = []
        self.requires_grad = self.would_wait = False
        for t in tensors:
            copy, attributes = None, _attributes(t)
            if not counts_changes(t):
                copy = _copy_of(t, may_wait)
                self.would_wait |= isinstance(copy, Tensor) and copy.device != CPU
            self.marks.append((attributes, copy))
            self.requires_grad |= attributes[0]

    def is_that_of(self, tensors: tuple[Tensor, ...]) -> bool:
        if len(tensors) != len(self.marks):
            return False
        for t, (attributes, copy) in zip(tensors, self.marks, strict=True):
            if _attributes(t) != attributes:
                return False
            is_there = isinstance(copy, Tensor) and copy.device != CPU
            if not (copy is None or is_there or _is_equal(t, copy)):
                return False
        return not self.would_wait or self._has_equal_numbers(tensors)

    def _has_equal_numbers(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether tensors on a GPU have the values of their copies, by one look."""
        pairs = [(t.detach(), c) for t, (_, c) in zip(tensors, self.marks, strict=True)
                 if isinstance(c, Tensor) and c.device != CPU]  # fmt: skip
        if any(c.shape != t.shape for t, c in pairs):
            return False
        equal = [(t == c).all() for t, c in pairs]
        return bool(equal[0] if len(equal) == 1 else torch.stack(equal).all())


def _attributes(tensor: Tensor) -> tuple[Any, ...]:
    """All but the values of a tensor that may change."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.requires_grad, tensor.grad_fn, tensor.dtype, version


def _copy_of(tensor: Tensor, may_wait: bool) -> Tensor | float:
    """The values to compare with later, of a tensor whose changes are not all counted.

    NaN if they must not be compared: then they count as changed.
    """
    if tensor.device != CPU:
        return tensor.detach().clone() if may_wait else math.nan
    return tensor.item() if tensor.dim() == 0 else tensor.detach().clone()


def _is_equal(tensor: Tensor, copy: Tensor | float) -> bool:
    """Whether a tensor still has the values of its copy."""
    if not isinstance(copy, Tensor):
        return tensor.device == CPU and tensor.dim() == 0 and tensor.item() == copy
    if tensor.shape != copy.shape:
        return False
    tensor = tensor.detach()
    whole = tensor.is_contiguous() and copy.is_contiguous() and tensor.storage_offset() % 8 == 0
    whole = whole and not tensor.is_neg()  # which torch reads with the opposite sign
    if whole and tensor.numel() % 8 == 0 and tensor.numel() >= 4096:
        # Eight bytes at a time: twice as fast as float by float.
        return torch.equal(*(each.view(-1).view(torch.int64) for each in (tensor, copy)))
    return torch.equal(tensor, copy)


class _Cache:
    """The content under a key, with what shows that the tensor is still the one drawn."""

    log_prob: Tensor | None = None  # and with it:
    distribution: CacheKey
    parameters: tuple[Tensor, ...]
    state: _State
    copy: Tensor | None = None  # of an inference tensor, which does not count its changes

    def __init__(self, owner: Tensor, key: object, content: Any) -> None:
        self.key, self.content = key, content
        self.attached = owner.requires_grad, owner.is_leaf
        if is_compiling():
            return
        self.traced = _is_tracing()
        self.owner = ref(owner)
        if owner.is_inference():
            self.version, self.copy = 0, owner.clone()
        else:
            self.version = owner._version

    def is_valid_for(self, value: Tensor) -> bool:
        if (value.requires_grad, value.is_leaf) != self.attached:
            return False  # detached, or a leaf whose own gradient is wanted
        if is_compiling():
            return True
        if not hasattr(self, "owner"):
            return not _is_tracing()  # made in a compiled function, which keeps no marks
        if _is_tracing() and not self.traced:
            return False  # what was drawn outside the trace would become a constant of it
        if self.owner() is not value:
            return False
        if self.version != (0 if value.is_inference() else value._version):
            return False
        return self.copy is None or torch.equal(self.copy, value)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copies and pickles carry an empty mapping: torch.load reads it, and it counts as none."""
        return OrderedDict, ()


def remember(
    value: Tensor,
    key: object,
    content: Any,
    log_prob: Tensor | None = None,
    distribution: CacheKey | None = None,
    *parameters: Tensor,
) -> Tensor:
    """Attach `content` to `value` under `key`, and return `value`.

    :param content: the content, or a function of the value that computes it.
    :param log_prob: the log_prob of `value` under the distribution with that key and these
        parameters.
    """
    cache = _Cache(value, key, content)
    if log_prob is not None and distribution is not None:
        cache.log_prob, cache.distribution = log_prob, distribution
        cache.parameters, cache.state = parameters, distribution.state_of(*parameters)
    value._pyro_gumbel_cache = cache  # type: ignore[attr-defined]
    return value


def share_content(value: Tensor, other: Tensor) -> Tensor:
    """Attach the content of `value` to another tensor of the same numbers and graph."""
    cache = getattr(value, "_pyro_gumbel_cache", None)
    if other is not value and isinstance(cache, _Cache) and cache.is_valid_for(value):
        new = _Cache(other, cache.key, cache.content)
        other._pyro_gumbel_cache = new  # type: ignore[attr-defined]
    return other


def recall(value: Tensor, key: object) -> Any | None:
    """The content of `value` under `key`; None if it has none, or is not as it was drawn."""
    found, content = cached(value)
    return content if found is key or found == key else None


def cached(value: Tensor) -> tuple[object, Any]:
    """The key and the content of a value; None and None if it is not as it was drawn."""
    cache = getattr(value, "_pyro_gumbel_cache", None)
    if isinstance(cache, _Cache) and cache.is_valid_for(value):
        content = cache.content
        return cache.key, content(value) if callable(content) else content
    return None, None


def recall_log_prob(value: Tensor, distribution: CacheKey) -> Tensor | None:
    """The log_prob of a value, if this distribution drew it and has not changed.

    It is given away: who asks again gets no other name of the same tensor. A draw without a graph
    has no gradient to pass to parameters that require one.
    """
    if is_compiling() or are_saved_by_hooks():
        return None
    cache = getattr(value, "_pyro_gumbel_cache", None)
    if not isinstance(cache, _Cache):
        return None
    log_prob = cache.log_prob  # which another thread may take meanwhile
    if log_prob is None or not cache.is_valid_for(value):
        return None
    state = cache.state
    if cache.distribution is not distribution or state is not distribution.state:
        return None
    if not state.is_that_of(cache.parameters):
        return None
    if not torch.is_grad_enabled():
        return log_prob.clone()
    if log_prob.requires_grad != state.requires_grad:
        return None
    return vars(cache).pop("log_prob", None)  # of several threads one gets it
