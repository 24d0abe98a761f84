# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""One-hot samples that keep their gradient in the `log_prob` of a plain categorical prior.

`OneHotCategorical.log_prob` of torch and Pyro finds the index of a one-hot vector D by
``D.max(-1)[1]`` and looks up its log probability:

.. math:: \log P(D) = \log p_{i}, \qquad i = \operatorname{argmax}_j D_j.

The lookup passes no gradient to D. The same number is also linear in D,

.. math:: \log P(D) = \sum_j D_j \log p_j,

and this form has the gradient :math:`\log p` in D. The two classes of this module make torch
compute the lookup with the gradient of the sum:

1. A sample with a gradient is a `OneHotSample`. Its `max(-1)` returns a `OneHotIndex`.
2. A `OneHotIndex` is an integer tensor that carries D. It keeps D through the operations that
   `Categorical.log_prob` applies to it: `long`, `unsqueeze(-1)`, `broadcast_tensors`, `[..., :1]`.
3. `gather` with that index returns the looked-up value with the gradient of the sum. Infinite
   entries of the table pass the gradient 0.

Every other operation on either class behaves as on a plain tensor and returns a plain tensor. A
sample or an index that was changed in place is treated as a plain tensor too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import in_eager_mode, version_of
from pyro_gumbel.ops.autograd import zero_with_gradient

__all__ = ["OneHotIndex", "OneHotSample", "as_one_hot_sample", "plain"]


def as_one_hot_sample(value: Tensor) -> Tensor:
    """Turn `value` into a `OneHotSample`, in place, if it may have a gradient; and return it.

    Outside of eager mode every value may have one: within an inner transform of torch.func, and in
    forward mode, `requires_grad` does not say. Under `torch.compile`, which would have to trace
    through the subclass, the value stays a plain tensor.
    """
    if torch.compiler.is_compiling() or (in_eager_mode() and not value.requires_grad):
        return value
    value.drawn_version = version_of(value)  # type: ignore[attr-defined]
    # `as_subclass` would return a view, and `detach_` does not accept views.
    value.__class__ = OneHotSample
    return value


def plain(value: Any) -> Any:
    """The same numbers and graph as a plain tensor, whose operations are faster."""
    return value.plain if isinstance(value, OneHotSample) else value


class _EqualToTensor(torch._C._TensorMeta):
    """The metaclass of a tensor class that compares equal to `Tensor`.

    Code from `torch.compile` looks up the types of its arguments in a set of known types. Its first
    call fails for a type that is not in the set. With this metaclass our classes are found there as
    `Tensor`, for which the code was compiled.
    """

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is Tensor

    def __hash__(cls) -> int:
        return hash(Tensor)


class _Plain(Tensor, metaclass=_EqualToTensor):
    """A tensor whose operations return plain tensors, except for the operations in `_rules`.

    A rule takes the plain result and the arguments, and returns the result to use instead.
    """

    _rules: Mapping[Callable[..., Any], Callable[..., Any]]

    @classmethod
    @torch._disable_dynamo  # it would reuse the code compiled for one `func` for another
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not all(each is Tensor or issubclass(each, _Plain) for each in types):
            return func(*_as_plain(args), **_as_plain(kwargs or {}))  # the other type decides
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
    """The arguments of an operation, with plain tensors in place of our classes."""
    if isinstance(arguments, _Plain):
        return arguments.plain
    if isinstance(arguments, dict):
        return {name: _as_plain(each) for name, each in arguments.items()}
    if type(arguments) in (tuple, list):
        return type(arguments)(map(_as_plain, arguments))
    return arguments


class OneHotSample(_Plain):
    """A tensor of one-hot vectors, over the last dimension, that may have a gradient."""

    drawn_version: int  # to notice changes in place


class OneHotIndex(_Plain):
    """The index of the 1 in each one-hot vector, with the vectors themselves."""

    one_hot: Tensor
    made_version: int  # to notice changes in place
    is_unsqueezed: bool  # whether a last dimension of size 1 stands for the categories


def _with_one_hot(index: Tensor, one_hot: Tensor, *, is_unsqueezed: bool) -> Tensor:
    """`index` as a `OneHotIndex` of the vectors `one_hot`."""
    carrier = index.as_subclass(OneHotIndex)
    carrier.one_hot, carrier.is_unsqueezed = one_hot, is_unsqueezed
    carrier.made_version = version_of(carrier)
    return carrier


def _is_unsqueezed(index: Any) -> bool:
    """Whether this is an unchanged `OneHotIndex` with a last dimension for the categories."""
    if not isinstance(index, OneHotIndex) or not index.is_unsqueezed:
        return False
    return version_of(index) == index.made_version


# The rules: each takes the plain result of an operation and its arguments.


def _max(result: Any, value: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if not isinstance(value, OneHotSample) or isinstance(dim, Tensor | None):
        return result
    if keepdim or dim not in (-1, value.dim() - 1) or version_of(value) != value.drawn_version:
        return result
    index = _with_one_hot(result.indices, value.plain, is_unsqueezed=False)
    return torch.return_types.max((result.values, index))


def _long(result: Tensor, index: Any) -> Tensor:
    if version_of(index) != index.made_version:
        return result
    return _with_one_hot(result, index.one_hot, is_unsqueezed=index.is_unsqueezed)


def _unsqueeze(result: Tensor, index: Any, dim: int) -> Tensor:
    is_last = dim in (-1, index.dim())
    if index.is_unsqueezed or not is_last or version_of(index) != index.made_version:
        return result
    return _with_one_hot(result, index.one_hot, is_unsqueezed=True)


def _broadcast_tensors(result: Any, *tensors: Any) -> Any:
    def carried(tensor: Any, expanded: Tensor) -> Tensor:
        if not _is_unsqueezed(tensor):
            return expanded
        return _with_one_hot(expanded, tensor.one_hot, is_unsqueezed=True)

    return type(result)(map(carried, tensors, result))


def _getitem(result: Tensor, index: Any, at: Any) -> Tensor:
    if not _is_unsqueezed(index) or not isinstance(at, tuple) or len(at) != 2:
        return result
    if at[0] is not ... or not isinstance(at[1], slice) or at[1] != slice(None, 1):
        return result
    return _with_one_hot(result, index.one_hot, is_unsqueezed=True)


def _gather(result: Tensor, table: Tensor, dim: int, index: Any) -> Tensor:
    """The looked-up values, with the gradient of sum(one_hot * table) in the one-hot vectors."""
    is_last = dim in (-1, table.dim() - 1)
    if not _is_unsqueezed(index) or not is_last or not result.is_floating_point():
        return result
    one_hot = index.one_hot
    if index.shape != (*table.shape[:-1], 1) or one_hot.shape[-1] != table.shape[-1]:
        return result
    finite = torch.where(table.isfinite(), table, 0.0)
    zero = (zero_with_gradient(one_hot) * finite).sum(-1, keepdim=True)
    return result + zero.to(result.dtype)


OneHotSample._rules = {Tensor.max: _max, torch.max: _max}
OneHotIndex._rules = {
    Tensor.long: _long,
    Tensor.unsqueeze: _unsqueeze,
    torch.unsqueeze: _unsqueeze,
    torch.functional.broadcast_tensors: _broadcast_tensors,
    torch.broadcast_tensors: _broadcast_tensors,
    Tensor.__getitem__: _getitem,
    Tensor.gather: _gather,
    torch.gather: _gather,
}
