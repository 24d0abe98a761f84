# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""One-hot samples that keep their gradient where their index is asked for.

`OneHotCategorical.log_prob` of torch and Pyro finds the index of a one-hot vector D by
``D.max(-1)[1]`` and looks up its log probability:

.. math:: \log P(D) = \log p_{i}, \qquad i = \operatorname{argmax}_j D_j.

The lookup in a plain tensor passes no gradient to D. A sample with a gradient is a `OneHotSample`.
Its `max(-1)` and `argmax(-1)` return an `IndexTensor`, and a lookup with that has the gradient of

.. math:: \log P(D) = \sum_j D_j \log p_j

in D. Every other operation behaves as on a plain tensor and returns one. A sample that was changed
in place is treated as a plain tensor too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.compiler import is_compiling

from pyro_gumbel._tracing import in_eager_mode, version_of
from pyro_gumbel.tensors.index_tensor import OutcomeTensor, drawn_index
from pyro_gumbel.tensors.subclass import PlainTensor, as_plain, uncompiled

__all__ = ["OneHotSample", "as_one_hot_sample"]


class _EqualToTensor(torch._C._TensorMeta):
    """The metaclass of a tensor class that compares equal to `Tensor`.

    Code from `torch.compile` looks up the types of its arguments in a set of known types. Its first
    call fails for a type that is not in the set. With this metaclass our classes are found there as
    `Tensor`, for which the code was compiled. Functions of torch that are written in Python then
    miss the class beside a plain tensor. None of them has a rule here.
    """

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is Tensor

    def __hash__(cls) -> int:
        return hash(Tensor)


class OneHotSample(PlainTensor, metaclass=_EqualToTensor):
    """A tensor of one-hot vectors, over the last dimension, that may have a gradient."""

    drawn_version: int  # to notice changes in place

    @classmethod
    @uncompiled  # it would reuse the code compiled for one `func` for another
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if len(types) > 1:
            if any(issubclass(each, OutcomeTensor) for each in types):
                return NotImplemented  # their rules are asked next
            if not all(each is Tensor or issubclass(each, OneHotSample) for each in types):
                return func(*as_plain(args), **as_plain(kwargs or {}))  # the other type decides
        with DisableTorchFunctionSubclass():
            if kwargs:
                return func(*args, **kwargs)
            result, rule = func(*args), _RULES.get(func)
            return result if rule is None or is_compiling() else rule(result, *args)


def as_one_hot_sample(value: Tensor) -> Tensor:
    """Turn `value` into a `OneHotSample`, in place, if it may have a gradient; and return it.

    Outside of eager mode every value may have one: within an inner transform of torch.func, and in
    forward mode, `requires_grad` does not say. Under `torch.compile`, which would have to trace
    through the subclass, the value stays a plain tensor.
    """
    if is_compiling() or (not value.requires_grad and in_eager_mode()):
        return value
    value.drawn_version = version_of(value)  # type: ignore[attr-defined]
    # `as_subclass` would return a view, and `detach_` does not accept views.
    value.__class__ = OneHotSample
    return value


# The rules: each takes the plain result of an operation and its arguments.


def _max(result: Any, value: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if isinstance(dim, Tensor) or keepdim or not _is_over_categories(value, dim):
        return result
    index = drawn_index(value.plain, result.indices)  # type: ignore[attr-defined]
    return torch.return_types.max((result.values, index))


def _argmax(result: Tensor, value: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    if keepdim or not _is_over_categories(value, dim):
        return result
    return drawn_index(value.plain, result)  # type: ignore[attr-defined]


def _is_over_categories(value: Tensor, dim: Any) -> bool:
    """Whether this is an unchanged sample, and the dimension that of the categories."""
    if not isinstance(value, OneHotSample) or dim not in (-1, value.dim() - 1):
        return False
    return version_of(value) == value.drawn_version


_RULES: Mapping[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((Tensor.max, torch.max), _max),
    **dict.fromkeys((Tensor.argmax, torch.argmax), _argmax),
}
