# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The rules: what each kind of operation does with the outcomes of its arguments.

A rule takes a function of torch, its arguments and its result on the numbers. It returns the
outcomes of the result, or for several results a list of those of each. It returns None, or raises
an error, where they are not known.

- *Elementwise* operations, as ``z == 1`` or ``torch.where``, are applied to the outcomes.
- What *moves* elements, as ``reshape`` or ``stack``, moves the elements of the draw alike.
- *Lookups*, as ``table[z]`` or ``gather``, take the entries of all categories.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_gumbel._tracing import in_transform
from pyro_gumbel.tensors.batching import batched, batched_join
from pyro_gumbel.tensors.grouping import grouped, holds, share
from pyro_gumbel.tensors.index_tensor import (
    IndexTensor,
    OutcomeTensor,
    carrying,
    outcomes_of,
    varies,
)
from pyro_gumbel.tensors.lookups import Lookup, covers, gathered, of_rows
from pyro_gumbel.tensors.outcomes import (
    NO_ELEMENT,
    Outcomes,
    of_every_category,
    without_gradient,
)
from pyro_gumbel.tensors.subclass import as_plain, plain

__all__ = [
    "broadcasting_rule",
    "by_name",
    "converting_rule",
    "elementwise_rule",
    "embedding_rule",
    "gather_rule",
    "getitem_rule",
    "in_dtype_of",
    "index_select_rule",
    "is_row_lookup",
    "joining_rule",
    "moving_like_rule",
    "moving_rule",
    "one_hot_rule",
    "rows_of",
    "take_along_dim_rule",
    "take_rule",
    "writing_rule",
]


# Elementwise.


def elementwise_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The operation, applied to the outcomes."""
    if not isinstance(result, Tensor):
        return None
    names = list(kwargs)
    arguments = [*args, *kwargs.values()]
    count = len(args)
    made = []
    for group in grouped(arguments, result.dim()):
        each = [group.tables.get(i, a) for i, a in enumerate(arguments)]
        if not result.dim():
            each = list(map(_with_dimension, each))
        table = func(*each[:count], **dict(zip(names, each[count:], strict=True)))
        if table.dim() != group.first.table.dim():
            return None  # `max` of one tensor
        made.append(group.outcomes(in_dtype_of(table, result)))
    return made


def _with_dimension(argument: Any) -> Any:
    """A tensor with a dimension: torch gives the dtype of others more weight in a result."""
    is_number = isinstance(argument, Tensor) and not argument.dim()
    return argument.reshape(1) if is_number else argument


def in_dtype_of(table: Tensor, result: Tensor) -> Tensor:
    """The outcomes of a result in its dtype."""
    return table if table.dtype == result.dtype else table.to(result.dtype)


# Moving elements.


def writing_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The outcomes of a value after ``value[index] = new``."""
    value, index, new = args
    if varies(index):
        return None
    made = []
    for each in outcomes_of(value):
        elements = each.elements.expand(value.shape).clone()
        elements[index] = NO_ELEMENT
        made.append(replace(each, elements=elements))
    rank = value.plain[index].dim()
    for each in outcomes_of(new):
        own = each.aligned(rank)
        elements = torch.full_like(value.plain, NO_ELEMENT, dtype=torch.int64)
        elements[index] = own.elements
        zeros = torch.zeros_like(value.plain).expand(own.num_categories, *value.shape).clone()
        table = of_every_category(lambda t, new: _put(t, index, new), zeros, own.table)
        made.append(Outcomes(own.draws, elements, table))
    return made


def _put(tensor: Tensor, index: Any, new: Tensor) -> Tensor:
    tensor[index] = new
    return tensor


def moving_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The operation, applied to the elements and to each part of the table."""
    value, *rest = args
    if any(map(varies, rest)) or any(isinstance(each, torch.dtype) for each in rest):
        return None
    func = _FOR_ANY_STRIDES.get(getattr(func, "__name__", ""), func)
    made: list[Any] = [[] for _ in result] if not isinstance(result, Tensor) else []
    for each in outcomes_of(value):
        elements = func(each.elements.expand(value.shape), *rest, **kwargs)
        if isinstance(result, Tensor):
            made.append(_moved(func, each, value, rest, kwargs, elements, 0))
        else:
            for i, own in enumerate(elements):
                made[i].append(_moved(func, each, value, rest, kwargs, own, i))
    return made


_FOR_ANY_STRIDES = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}


def moving_like_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """To the shape of another tensor, whatever its numbers."""
    value, *rest = args
    return moving_rule(func, (value, *as_plain(rest)), as_plain(kwargs), result)


def _moved(
    func: Any, each: Outcomes, value: Tensor, rest: Any, kwargs: Any, elements: Tensor, place: int
) -> Outcomes:
    elements = _narrowed(_tightened(elements), each.elements, value)
    if each.is_uniform:
        table = each.table.reshape(-1, *[1] * elements.dim())
        return Outcomes(each.draws, elements, table, each.is_category)
    whole = each.table.expand(-1, *value.shape)
    table = _part(batched(func, whole, rest, kwargs), place)
    return Outcomes(each.draws, elements, _tightened(table))


def _part(result: Any, place: int) -> Any:
    return result if isinstance(result, Tensor) else result[place]


def _tightened(tensor: Tensor) -> Tensor:
    """Of size 1 along the dimensions that repeat the same memory."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _narrowed(elements: Tensor, before: Tensor, value: Tensor) -> Tensor:
    """Of size 1 along dimensions along which they do not vary, also where they were copied.

    :param before: the elements of the value before it was moved.
    """
    if before.shape == value.shape or in_transform():
        return elements
    for dim, size in enumerate(elements.shape):
        if size > 1:
            first = elements.narrow(dim, 0, 1)
            elements = first if torch.equal(first.expand_as(elements), elements) else elements
    return elements


def converting_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """To another dtype or device, maybe that of another tensor."""
    if not isinstance(result, Tensor):
        return ()
    made = []
    for each in outcomes_of(args[0]):
        elements = each.elements.to(result.device)
        table = each.table.to(result.device, result.dtype)
        is_category = each.is_category and result.dtype == torch.int64
        made.append(Outcomes(each.draws, elements, table, is_category))
    return made


def joining_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """`stack` and `cat`."""
    parts, *rest = args
    per_part = [_places(part) for part in parts]
    made = []
    for place in dict.fromkeys(place for each in per_part for place in each):
        of_parts = [each.get(place) for each in per_part]
        made.append(_joined_outcomes(func, parts, of_parts, rest, kwargs))
    return made


def _places(part: Any) -> dict[tuple[int, int], Outcomes]:
    """The outcomes of a part by the number of categories, and a count of those that have it."""
    found: dict[tuple[int, int], Outcomes] = {}
    for each in outcomes_of(part):
        k = each.num_categories
        found[k, sum(size == k for size, _ in found)] = each
    return found


def _joined_outcomes(func: Any, parts: Any, of_parts: Any, rest: Any, kwargs: Any) -> Outcomes:
    present = [each for each in of_parts if each is not None]
    draws = tuple(dict.fromkeys(draw for each in present for draw in each.draws))
    elements = func(
        [
            torch.full_like(part, NO_ELEMENT, dtype=torch.int64)
            if each is None
            else each.elements.expand(part.shape)
            for part, each in zip(parts, of_parts, strict=True)
        ],
        *rest,
        **kwargs,
    )
    part, each = next(pair for pair in zip(parts, of_parts, strict=True) if pair[1])
    elements = _narrowed(elements, each.elements, part)
    k = present[0].num_categories
    if all(each.is_category and each.is_uniform for each in present):
        table = present[0].table.reshape(k, *[1] * elements.dim())
        return Outcomes(draws, elements, table, is_category=len(present) == len(parts))
    tables = [
        (plain(part).unsqueeze(0) if each is None else _table_of(part, each)).expand(k, *part.shape)
        for part, each in zip(parts, of_parts, strict=True)
    ]
    table = batched_join(func, tables, rest, kwargs)
    dim = rest[0] if rest else kwargs.get("dim", kwargs.get("axis", 0))
    pairs = zip(parts, of_parts, strict=True)
    if table.is_floating_point() and all(each or not varies(part) for part, each in pairs):
        elements = _common(elements, dim % elements.dim())
    return Outcomes(draws, elements, table)


def _table_of(part: Tensor, outcomes: Outcomes) -> Tensor:
    """The table, with the value itself where a part depends on no element."""
    missing = outcomes.elements == NO_ELEMENT
    if not holds(missing.any(), otherwise=True):
        return outcomes.table
    return torch.where(missing, plain(part).detach(), outcomes.table)


def _common(elements: Tensor, dim: int) -> Tensor:
    """Of size 1 along a dimension, if the parts that were joined depend on the same elements.

    A part that depends on no element may count as one that is the same for all categories.
    """
    if elements.shape[dim] <= 1:
        return elements
    greatest = elements.amax(dim, keepdim=True)
    is_common = (elements == greatest) | (elements == NO_ELEMENT)
    return greatest if holds(is_common.all(), otherwise=False) else elements


def broadcasting_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """`broadcast_tensors`: outcomes broadcast as they are."""
    tensors = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
    return [
        [each.aligned(whole.dim()) for each in outcomes_of(tensor)]
        for tensor, whole in zip(tensors, result, strict=True)
    ]


# Lookups.


def getitem_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """``table[index]``; where only the table has outcomes it moves their elements."""
    table, index = args
    if not varies(index):
        return moving_rule(func, args, kwargs, result)
    entries = index if isinstance(index, tuple) else (index,)
    if any(map(_cannot_vary, entries)):
        return None
    lookup = Lookup(plain(table), index)
    groups = grouped(lookup.tensors, lookup.rank)
    made = [lookup.outcomes(group.first, group.tables) for group in groups]
    if not varies(table):
        return made
    of_table = moving_rule(func, (table, as_plain(index)), kwargs, result)
    for before, own in zip(outcomes_of(table), of_table, strict=True):
        if not lookup.is_constant(before.elements.expand(table.shape)):
            _require_other_draws(before, made)
        whole = before.table.expand(-1, *table.shape)
        _add_joined(
            made,
            own,
            [functools.partial(lookup.in_tables, g.first, g.tables, whole) for g in groups],
        )
    return made


def _require_other_draws(own: Outcomes, others: Sequence[Outcomes]) -> None:
    """Raise where an index may lead to an entry that depends on the same element as the index."""
    if any(share(own, other) for other in others):
        raise NotImplementedError


def _add_joined(made: list[Outcomes], own: Outcomes, both: Sequence[Callable[[], Tensor]]) -> None:
    """Add outcomes to those of a result. Places that have an element in common vary together.

    :param both: for each of the first of those, what makes the table where the own ones vary too.
    """
    for place, (each, table) in enumerate(zip(made, both, strict=False)):
        common = each.elements == own.elements
        if not share(each, own) or not holds(common.any(), otherwise=True):
            continue
        if holds(common.all(), otherwise=False):
            made[place] = replace(each, table=table())
            return
        made[place] = replace(each, table=torch.where(common, table(), each.table))
        own = replace(own, elements=torch.where(common, NO_ELEMENT, own.elements))
    made.append(own)


def _cannot_vary(entry: Any) -> bool:
    """Whether an entry selects other numbers of elements for other categories, or is a list."""
    if isinstance(entry, OutcomeTensor):
        return entry.dtype in (torch.bool, torch.uint8)
    return varies(entry)


def is_row_lookup(table: Any, index: Any) -> bool:
    """Whether the index is the drawn category itself, and selects rows of a plain table."""
    if type(index) is not IndexTensor or isinstance(table, OutcomeTensor):
        return False
    outcomes = index.kept
    return len(outcomes) == 1 and covers(outcomes[0], table)


def rows_of(table: Tensor, index: IndexTensor) -> Tensor:
    """``table[index]``. torch is many times faster where an index selects whole rows."""
    if index.dim():
        shape = index.shape + table.shape[1:]
        result = table.index_select(0, index.flatten().to(table.device)).reshape(shape)
    else:
        result = table[index]  # a view
    with without_gradient():
        made = of_rows(index, index.kept[0], table)
    return carrying(result, [made])


def _by_getitem(table: Any, index: Any, result: Any) -> Any:
    if is_row_lookup(table, index):
        return [of_rows(index, index.kept[0], table)]
    return getitem_rule(Tensor.__getitem__, (table, index), {}, result)


def gather_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """``table.gather(dim, index)``."""
    table, dim, index = by_name(args, kwargs, "input", "dim", "index")
    if not varies(index):
        return moving_rule(func, args, kwargs, result)
    made = [gathered(plain(table), dim, index, each) for each in outcomes_of(index)]
    if not varies(table):
        return made
    codes = [each.table for each in outcomes_of(index)]
    of_table = moving_rule(func, (table, dim, plain(index)), {}, result)
    for before, own in zip(outcomes_of(table), of_table, strict=True):
        if before.elements.shape[dim] != 1:
            _require_other_draws(before, made)
        whole = before.table.expand(-1, *table.shape)
        _add_joined(
            made, own, [functools.partial(_in_gathered, whole, dim, index, each) for each in codes]
        )
    return made


def _in_gathered(whole: Tensor, dim: int, index: Tensor, codes: Tensor) -> Tensor:
    """What ``table.gather(dim, index)`` would have been, for tables and codes of each category."""
    return whole.gather(dim % index.dim() + 1, codes.expand(-1, *index.shape))


def take_along_dim_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """A `gather` of tensors that broadcast."""
    table, index, dim = by_name(args, kwargs, "input", "indices", "dim")
    if varies(table):
        return moving_rule(func, args, kwargs, result)
    if dim is None:
        table, dim = table.flatten(), 0
        flat = index.flatten()
        return [
            gathered(table, 0, flat, _without_shape(each, index.shape))
            for each in outcomes_of(index)
        ]
    shape = list(torch.broadcast_shapes(*(_with(each.shape, dim, 1) for each in (table, index))))
    table = table.expand(*_with(shape, dim, table.shape[dim]))
    at = index.expand(*_with(shape, dim, index.shape[dim]))
    return [gathered(table, dim, at, each) for each in outcomes_of(index)]


def _without_shape(outcomes: Outcomes, shape: torch.Size) -> Outcomes:
    elements = outcomes.elements.expand(shape).flatten()
    table = outcomes.table
    table = table.flatten(1) if outcomes.is_uniform else table.expand(-1, *shape).flatten(1)
    return replace(outcomes, elements=elements, table=table)


def _with(shape: Sequence[int], dim: int, size: int) -> list[int]:
    shape = list(shape)
    shape[dim] = size
    return shape


def take_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """A lookup in a flat table."""
    table, index = by_name(args, kwargs, "input", "index")
    if varies(table):  # `torch.vmap` has no rule for `take`
        return moving_rule(lambda each, index: each.reshape(-1)[index], (table, index), {}, result)
    return _by_getitem(table.flatten(), index, result)


def index_select_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """A lookup along one dimension."""
    table, dim, index = by_name(args, kwargs, "input", "dim", "index")
    if not varies(index):
        return moving_rule(func, args, kwargs, result)
    if not index.dim():
        index = carrying(index.unsqueeze(0), [each.aligned(1) for each in outcomes_of(index)])
    dim = dim % max(table.dim(), 1)
    return _by_getitem(table, (*[slice(None)] * dim, index) if dim else index, result)


def embedding_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """A lookup of rows."""
    names = ("input", "weight") if func is F.embedding else ("weight", "indices")
    first, second = by_name(args, kwargs, *names)
    index, table = (first, second) if func is F.embedding else (second, first)
    return _by_getitem(table, index, result)


def one_hot_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The one-hot vector of each outcome."""
    categories = torch.arange(result.shape[-1], device=result.device)
    made = []
    for each in outcomes_of(args[0]):
        table = (each.table.unsqueeze(-1) == categories).to(result.dtype)
        made.append(Outcomes(each.draws, each.elements.unsqueeze(-1), table))
    return made


def by_name(args: Any, kwargs: Any, *names: str) -> list[Any]:
    """The arguments of a function by name; None for one that was not given."""
    given = dict(zip(names, args, strict=False)) | kwargs
    return [given.get(name) for name in names]
