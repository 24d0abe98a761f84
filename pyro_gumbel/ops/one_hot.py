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
`gather`, whose result has the gradient of the sum. An infinite entry passes 0. Every other
operation on either of the two is that of a plain tensor and returns one. A sample or an index
that was changed in place is a plain one too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import in_eager_mode, version_of

__all__ = ["OneHotIndex", "OneHotSample", "as_one_hot_sample", "is_plain", "plain"]


def as_one_hot_sample(value: Tensor) -> Tensor:
    """The one-hot `value`, as one whose index remembers it if it may have a gradient.

    An outer transform of torch.func wants a gradient of values that have no `requires_grad` within
    an inner one, and so does forward mode. Not within `torch.compile`, which would have to look
    through it.
    """
    if torch.compiler.is_compiling() or (in_eager_mode() and not value.requires_grad):
        return value
    value.drawn_version = version_of(value)  # type: ignore[attr-defined]
    # Not `as_subclass`, which makes a view, and `detach_` refuses one.
    value.__class__ = OneHotSample
    return value


def plain(value: Any) -> Any:
    """A plain tensor of the same numbers and graph for a sample, whose operations cost more."""
    return value.plain if isinstance(value, OneHotSample) else value


def is_plain(tensor: Tensor) -> bool:
    """Whether operations on a tensor are torch's own."""
    return type(tensor) in (Tensor, torch.nn.Parameter, OneHotSample)


class _EqualToTensor(torch._C._TensorMeta):
    """A class that counts as `Tensor` itself.

    What `torch.compile` has compiled looks its arguments' types up among those it knows, and
    fails at others in its first call. (Its code is that for plain tensors.)
    """

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is Tensor

    def __hash__(cls) -> int:
        return hash(Tensor)


class _Plain(Tensor, metaclass=_EqualToTensor):
    """A tensor whose operations return plain tensors, but for those in `_rules`."""

    _rules: Mapping[Callable[..., Any], Callable[..., Any]]

    @classmethod
    @torch._disable_dynamo  # which would take what it has compiled for one `func` for the next
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not all(each is Tensor or issubclass(each, _Plain) for each in types):
            return func(*_as_plain(args), **_as_plain(kwargs or {}))  # as the other type has it
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            rule = None if kwargs or torch.compiler.is_compiling() else cls._rules.get(func)
            return result if rule is None else rule(result, *args)

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


def _as_plain(arguments: Any) -> Any:
    """The arguments of an operation, with plain tensors for ours."""
    if isinstance(arguments, _Plain):
        return arguments.plain
    if isinstance(arguments, dict):
        return {name: _as_plain(each) for name, each in arguments.items()}
    if type(arguments) in (tuple, list):
        return type(arguments)(map(_as_plain, arguments))
    return arguments


class OneHotSample(_Plain):
    """A one-hot vector that may have a gradient, over the last dimension."""

    drawn_version: int


class OneHotIndex(_Plain):
    """The index of a one-hot vector."""

    one_hot: Tensor
    made_version: int
    is_column: bool  # whether a last dimension of 1 stands for the categories


def _carrying(index: Tensor, one_hot: Tensor, is_column: bool) -> Tensor:
    carrier = index.as_subclass(OneHotIndex)
    carrier.one_hot, carrier.is_column = one_hot, is_column
    carrier.made_version = version_of(carrier)
    return carrier


def _is_column(index: Any) -> bool:
    """Whether this is an index as it was made, with a last dimension for the categories."""
    if not isinstance(index, OneHotIndex) or not index.is_column:
        return False
    return version_of(index) == index.made_version


def _of_max(result: Any, value: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if not isinstance(value, OneHotSample) or isinstance(dim, Tensor | None):
        return result
    if keepdim or dim not in (-1, value.dim() - 1) or version_of(value) != value.drawn_version:
        return result
    index = _carrying(result.indices, value.plain, False)
    return torch.return_types.max((result.values, index))


def _of_long(result: Tensor, index: Any) -> Tensor:
    if version_of(index) != index.made_version:
        return result
    return _carrying(result, index.one_hot, index.is_column)


def _of_unsqueeze(result: Tensor, index: Any, dim: int) -> Tensor:
    if index.is_column or dim not in (-1, index.dim()) or version_of(index) != index.made_version:
        return result
    return _carrying(result, index.one_hot, True)


def _of_broadcast(result: Any, *tensors: Any) -> Any:
    def carried(tensor: Any, expanded: Tensor) -> Tensor:
        return _carrying(expanded, tensor.one_hot, True) if _is_column(tensor) else expanded

    return type(result)(map(carried, tensors, result))


def _of_getitem(result: Tensor, index: Any, at: Any) -> Tensor:
    if not _is_column(index) or not isinstance(at, tuple) or len(at) != 2:
        return result
    if at[0] is not ... or not isinstance(at[1], slice) or at[1] != slice(None, 1):
        return result
    return _carrying(result, index.one_hot, True)


def _of_gather(result: Tensor, table: Tensor, dim: int, index: Any) -> Tensor:
    if not _is_column(index) or dim not in (-1, table.dim() - 1) or not result.is_floating_point():
        return result
    one_hot = index.one_hot
    if index.shape != (*table.shape[:-1], 1) or one_hot.shape[-1] != table.shape[-1]:
        return result
    finite = torch.where(table.isfinite(), table, 0.0)
    step = one_hot - one_hot.detach()  # 0, with the gradient of the one-hot vector
    return result + (step * finite).sum(-1, keepdim=True).to(result.dtype)


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
