# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Operations that are applied to the values of every category at once.

`torch.vmap` does this for any operation, but takes 100 microseconds. Of many operations, the
dimensions can be counted from the right. Then they act on a tensor with one more dimension on the
left, that of the categories, as on each of its parts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel.tensors.outcomes import of_every_category

__all__ = ["batched", "batched_join"]


def batched(func: Callable[..., Any], table: Tensor, rest: Any, kwargs: Any) -> Any:
    """The result of an operation on one tensor, for each category.

    :param table: the tensor for each category, over a first dimension, without gaps: of all
        dimensions of the tensor.
    :param rest: the other arguments of the operation.
    """
    shifted = _shifted(getattr(func, "__name__", ""), table, tuple(rest), kwargs)
    if shifted is not None:
        return func(table, *shifted[0], **shifted[1])
    return of_every_category(lambda each: _tuple_of(func(each, *rest, **kwargs)), table)


def batched_join(func: Callable[..., Any], tables: list[Tensor], rest: Any, kwargs: Any) -> Tensor:
    """`stack` and `cat` of tensors, for each category."""
    is_plain = func in (torch.stack, torch.cat) and not set(kwargs) - {"dim"}
    if is_plain and len(rest) <= 1:
        dim = rest[0] if rest else kwargs.get("dim", 0)
        joined: Tensor = func(tables, dim=dim + 1 if dim >= 0 else dim)
        return joined
    result: Tensor = of_every_category(lambda *each: func(each, *rest, **kwargs), *tables)
    return result


def _tuple_of(result: Any) -> Any:
    return result if isinstance(result, Tensor) else tuple(result)


def _shifted(name: str, table: Tensor, rest: Any, kwargs: Any) -> Any:
    """The arguments for a tensor with one more dimension on the left; None if not known here."""
    rank = table.dim() - 1
    if name in _OF_DIMS and not rank:
        return None
    if name in _ALONG:
        key = "dim" if "dim" in kwargs else "axis"
        given = rest[0] if rest else kwargs.get(key)
        if given is None or (not isinstance(given, int) and not given):  # all dimensions
            return None
        dims = _from_right(given, rank)
        return ((dims, *rest[1:]), kwargs) if rest else ((), {**kwargs, key: dims})
    if kwargs or not rest:
        return None
    if name == "unsqueeze":
        return (_from_right(rest[0], rank + 1),), {}
    if name in ("transpose", "swapaxes", "swapdims"):
        return _from_right(rest, rank), {}
    if name in ("select", "narrow"):
        return (_from_right(rest[0], rank), *rest[1:]), {}
    if name in ("reshape", "view"):
        return _sizes(table, rest)
    if name == "permute":
        dims = rest[0] if isinstance(rest[0], tuple | list) else rest
        return ((0, *(d % rank + 1 for d in dims)),), {}
    if name == "__getitem__":
        return _basic(rest[0])
    return None


# Those along the dimensions that are the first argument after the tensor.
_ALONG = {
    *("sum", "mean", "prod", "logsumexp", "softmax", "log_softmax", "cumsum", "cumprod"),
    *("amax", "amin", "squeeze"),
}

_OF_DIMS = _ALONG | {"transpose", "swapaxes", "swapdims", "select", "narrow", "permute"}


def _from_right(dims: Any, rank: int) -> Any:
    """Dimensions as negative numbers."""
    if isinstance(dims, int):
        return dims if dims < 0 else dims - rank
    return tuple(d if d < 0 else d - rank for d in dims)


def _sizes(table: Tensor, rest: Any) -> Any:
    sizes = rest[0] if isinstance(rest[0], tuple | list) else rest
    if any(type(n) is not int for n in sizes) or not table.numel():
        return None
    return ((len(table), *sizes),), {}


def _basic(index: Any) -> Any:
    """An index that makes a view, of each category; None for others."""
    entries = index if isinstance(index, tuple) else (index,)
    if all(each is None or each is ... or type(each) in (int, slice) for each in entries):
        return ((slice(None), *entries),), {}
    return None
