# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""One-hot samples whose index remembers them, so that a plain prior passes its gradient on.

The `log_prob` of torch's and Pyro's `OneHotCategorical` takes the index of a one-hot vector D by
``D.max(-1)[1]`` and looks up its log probability:

.. math:: \log P(D) = \log p_{i}, \qquad i = \operatorname{argmax}_j D_j.

The lookup passes no gradient to D. The same number is linear in D,

.. math:: \log P(D) = \sum_j D_j \log p_j,

with the gradient log p. So a sample that has a gradient is a `OneHotSample`: a tensor whose
`max(-1)` gives a `OneHotIndex`, an integer tensor that carries D through what
`Categorical.log_prob` does with it (`long`, `unsqueeze(-1)`, `broadcast_tensors`, `[..., :1]`) to
`gather`, whose result has the gradient of the sum. An entry of -inf passes 0. Every other
operation on either of the two is that of a plain tensor and returns one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["OneHotIndex", "OneHotSample", "as_one_hot_sample", "is_plain"]


def as_one_hot_sample(value: Tensor) -> Tensor:
    """A one-hot `value` that has a gradient, as one whose index remembers it.

    Not within a program: `torch.compile` and `torch.jit.trace` would have to look through it.
    """
    if not value.requires_grad or torch.compiler.is_compiling():
        return value
    return value.as_subclass(OneHotSample)


def is_plain(tensor: Tensor) -> bool:
    """Whether operations on a tensor are torch's own."""
    return type(tensor) in (Tensor, torch.nn.Parameter, OneHotSample)


class _Plain(Tensor):
    """A tensor whose operations return plain tensors, but for those in `_rules`."""

    _rules: Mapping[Callable[..., Any], Callable[..., Any]]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            rule = cls._rules.get(func)
            return result if rule is None else rule(result, *args, **(kwargs or {}))

    @property
    def plain(self) -> Tensor:
        """The same numbers and graph as a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Any:
        return self.plain.__deepcopy__(memo)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.plain)


class OneHotSample(_Plain):
    """A one-hot vector that has a gradient, over the last dimension."""


class OneHotIndex(_Plain):
    """The index of a one-hot vector."""

    one_hot: Tensor
    is_column: bool  # whether a last dimension of 1 stands for the categories


def _carrying(index: Tensor, one_hot: Tensor, is_column: bool) -> Tensor:
    carrier = index.as_subclass(OneHotIndex)
    carrier.one_hot, carrier.is_column = one_hot, is_column
    return carrier


def _of_max(result: Any, value: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if not isinstance(value, OneHotSample) or isinstance(dim, Tensor | None):
        return result
    if keepdim or dim not in (-1, value.dim() - 1):
        return result
    index = _carrying(result.indices, value.plain, False)
    return torch.return_types.max((result.values, index))


def _of_long(result: Tensor, index: Any, **options: Any) -> Tensor:
    return _carrying(result, index.one_hot, index.is_column)


def _of_unsqueeze(result: Tensor, index: Any, dim: int) -> Tensor:
    if index.is_column or dim not in (-1, index.dim()):
        return result
    return _carrying(result, index.one_hot, True)


def _of_broadcast(result: Any, *tensors: Any) -> Any:
    def carried(tensor: Any, expanded: Tensor) -> Tensor:
        if isinstance(tensor, OneHotIndex) and tensor.is_column:
            return _carrying(expanded, tensor.one_hot, True)
        return expanded

    return type(result)(map(carried, tensors, result))


def _of_getitem(result: Tensor, index: Any, at: Any) -> Tensor:
    if not isinstance(index, OneHotIndex) or not index.is_column or at != (..., slice(None, 1)):
        return result
    return _carrying(result, index.one_hot, True)


def _of_gather(result: Tensor, table: Tensor, dim: int, index: Any, **options: Any) -> Tensor:
    if not isinstance(index, OneHotIndex) or not index.is_column or index.shape[-1] != 1:
        return result
    if dim not in (-1, table.dim() - 1) or index.one_hot.shape[-1] != table.shape[-1]:
        return result
    finite = torch.where(table == -torch.inf, 0.0, table)
    step = index.one_hot - index.one_hot.detach()  # 0, with the gradient of the one-hot vector
    return result + (step * finite).sum(-1, keepdim=True)


OneHotSample._rules = {Tensor.max: _of_max, torch.max: _of_max}
OneHotIndex._rules = {
    Tensor.long: _of_long,
    Tensor.unsqueeze: _of_unsqueeze,
    torch.unsqueeze: _of_unsqueeze,
    torch.functional.broadcast_tensors: _of_broadcast,
    torch.broadcast_tensors: _of_broadcast,
    Tensor.__getitem__: _of_getitem,
    Tensor.gather: _of_gather,
    torch.gather: _of_gather,
}
