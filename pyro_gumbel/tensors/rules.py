# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What each operation of torch does with the outcomes of its arguments.

An operation acts on the numbers as on those of a plain tensor. Its rule then gives the result its
outcomes. There are rules for four kinds of operation:

- *elementwise*, as ``z == 1`` or ``torch.where``: it is applied to the outcomes;
- *moving* elements, as ``reshape`` or ``stack``: it moves the elements of the draw alike;
- *lookups* with the draw as an index, as ``table[z]`` or ``gather``;
- *questions* that do not depend on the numbers, as ``shape``: the result has no outcomes.

Every other operation loses the gradient, with a warning.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_gumbel._tracing import in_eager_mode, in_transform
from pyro_gumbel.tensors.batching import batched, batched_join
from pyro_gumbel.tensors.grouping import MOST_PARTS, grouped, holds, in_parts, share
from pyro_gumbel.tensors.index_tensor import (
    IndexTensor,
    OutcomeTensor,
    carrying,
    collapsed,
    outcomes_of,
)
from pyro_gumbel.tensors.lookups import Lookup, covers, gathered, of_rows
from pyro_gumbel.tensors.lost_gradient import is_asked_by_pyro, warn_of_lost_gradient
from pyro_gumbel.tensors.outcomes import (
    NO_ELEMENT,
    Outcomes,
    of_every_category,
    without_gradient,
)
from pyro_gumbel.tensors.subclass import as_plain, plain

__all__: list[str] = []

Rule = Callable[[Any, Any, Any, Any], Any]  # of the function, its arguments and its result


def _apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation, with the outcomes that it has."""
    rule = _rule_of(func)
    if (rule is _ask and not _varies(args[1:])) or _is_without_gradient():
        return func(*args, **kwargs)
    if rule is _ask_for_gradient:
        return func(*args) or _has_gradient(args[0])
    if rule is _hook and not args[0].requires_grad:
        return torch.empty(0, requires_grad=True).register_hook(*args[1:], **kwargs)
    if _is_in_place(func):
        return _changed_in_place(func, args, kwargs)
    if rule is None and _has_floats((args, kwargs)):
        return _collapse(func, args, kwargs)
    if rule is _reduced:
        return _reduce(func, args, kwargs)
    if rule is _getitem and _is_row_lookup(*args):
        return _rows(*args)
    result = func(*args, **kwargs)
    if args and result is args[0]:
        return result
    made = _made(rule, func, args, kwargs, result)
    if made is None and _has_floats((args, kwargs)):
        return _collapse(func, args, kwargs)
    compares = _compares_floats(args)
    if made is None:
        if not compares:
            warn_of_lost_gradient(getattr(func, "__name__", repr(func)))
        return result
    result = _carrying(result, made)
    if compares and isinstance(result, OutcomeTensor) and result.dtype == torch.bool:
        result.compares_floats = True
    return result


OutcomeTensor._rule = staticmethod(_apply)


def _compares_floats(args: Any) -> bool:
    """Whether an argument is a float, or the result of comparing floats.

    The gradient of a float ends where it is compared, as in torch, without a warning.
    """
    values = [each for each in args if isinstance(each, OutcomeTensor)]
    return any(each.compares_floats or each.is_floating_point() for each in values)


# The operations that end a computation: the loss is a linear function of what they are called with.
_ENDS = {"backward", "grad"}


def _collapse(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation on plain floats, with gradients in place of their outcomes."""
    name = getattr(func, "__name__", repr(func))
    args, kwargs = collapsed((args, kwargs), linear=name in _ENDS)
    if _varies((args, kwargs)):
        warn_of_lost_gradient(name)
    return func(*args, **kwargs)


def _has_floats(arguments: Any) -> bool:
    """Whether floats with outcomes are among the arguments."""
    if isinstance(arguments, dict):
        return any(map(_has_floats, arguments.values()))
    if isinstance(arguments, tuple | list):
        return any(map(_has_floats, arguments))
    return isinstance(arguments, OutcomeTensor) and arguments.is_floating_point()


def _is_without_gradient() -> bool:
    """Whether torch records no gradient, as under `torch.no_grad`."""
    return not torch.is_grad_enabled() and in_eager_mode()


def _made(rule: Rule | None, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The outcomes of a result, or of each of its tensors; None where they are lost."""
    if kwargs:
        args, kwargs = _regular(rule, args, kwargs)
    if rule is None or "out" in kwargs:
        return None
    try:
        with without_gradient():
            return rule(func, args, kwargs, result)
    except (
        RuntimeError,
        IndexError,
        ValueError,
    ):  # not known here, or another category would be an error
        return None


def _regular(rule: Rule | None, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """The arguments without an `out` of None, and with the first one not by its name."""
    kwargs = {name: value for name, value in kwargs.items() if name != "out" or value is not None}
    first = {"input", "tensors"} & set(kwargs)
    if first and not args and rule is not _elementwise:
        args = (kwargs.pop(first.pop()),)
    return args, kwargs


def _carrying(result: Any, outcomes: Any) -> Any:
    if not outcomes:
        return result
    if isinstance(result, Tensor):
        return carrying(result, outcomes)
    return type(result)(map(carrying, result, outcomes))


# Which rule is for which function.

_RULES: dict[Any, Rule | None] = {}  # found so far


def _rule_of(func: Any) -> Rule | None:
    if func not in _RULES:
        _RULES[func] = _find_rule(func)
    return _RULES[func]


def _find_rule(func: Any) -> Rule | None:
    name = getattr(func, "__name__", "")
    if name == "__get__" and getattr(func, "__self__", None) is Tensor.requires_grad:
        return _ask_for_gradient
    if name == "__get__":
        return _MOVING_PROPERTIES.get(getattr(func, "__self__", None), _ask)
    if name in _BY_NAME:
        return _BY_NAME[name]
    stem = name.strip("_")
    stem = _OPERATORS.get(stem, stem)
    return _elementwise if stem in _ALSO_ELEMENTWISE or _is_elementwise(stem) else None


@functools.cache
def _is_elementwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    tags = set().union(*(getattr(packet, each).tags for each in packet.overloads()))
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


# Elementwise.


def _elementwise(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
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
        made.append(group.outcomes(_as(table, result)))
    return made


def _loss(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For a loss that torch gives element by element, if it is asked to."""
    if kwargs.get("reduction") != "none" or _varies(kwargs):
        return None

    def of_category(tables: dict[int, Tensor]) -> Any:
        return func(*[tables.get(i, plain(each)) for i, each in enumerate(args)], **kwargs)

    made = []
    for group in grouped(args, result.dim()):
        whole = {i: table.expand(-1, *args[i].shape) for i, table in group.tables.items()}
        made.append(group.outcomes(of_every_category(of_category, whole)))
    return made


def _with_dimension(argument: Any) -> Any:
    """A tensor with a dimension: torch gives the dtype of others more weight in a result."""
    is_number = isinstance(argument, Tensor) and not argument.dim()
    return argument.reshape(1) if is_number else argument


def _as(table: Tensor, result: Tensor) -> Tensor:
    return table if table.dtype == result.dtype else table.to(result.dtype)


# Reductions.


def _reduced(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For `sum`, `logsumexp`, `softmax` and their kind, see `_reduce`."""
    raise NotImplementedError


def _reduce(func: Any, args: Any, kwargs: Any) -> Any:
    """A reduction: of outcomes over the dimensions of an event, and over a few elements of a draw.

    Over more of them it is of plain floats. A sum of them is a linear function of each.
    """
    if kwargs:
        args, kwargs = _regular(_reduced, args, kwargs)
    if len(args) > 1 and isinstance(args[1], Tensor):  # `max` and `min` of two tensors
        return _apply({"max": torch.maximum, "min": torch.minimum}[func.__name__], args, kwargs)
    value, dims = args[0], _reduced_dims(args, kwargs)
    if not isinstance(value, OutcomeTensor) or not value.is_floating_point():
        warn_of_lost_gradient(func.__name__)
        return func(*args, **kwargs)
    outcomes = outcomes_of(value)
    vary = {d for d in dims for each in outcomes if each.elements.shape[d] != 1}
    are_many = len(vary) > 1 or any(not 0 < value.shape[d] <= MOST_PARTS for d in vary)
    is_end = func.__name__ == "sum" and len(dims) == value.dim() and _ends(value)
    if not outcomes or are_many or is_end:
        linear = func.__name__ in ("sum", "mean")
        return func(collapsed(value, linear=linear), *args[1:], **kwargs)
    result = func(*args, **kwargs)
    groups = in_parts(value, vary.pop()) if vary else outcomes
    with without_gradient():
        made = [_reduced_outcomes(func, args, kwargs, each, dims, result) for each in groups]
    if isinstance(result, Tensor):
        return carrying(result, made)
    return type(result)(tuple(map(carrying, result, zip(*made, strict=True))))


def _ends(value: Tensor) -> bool:
    """Whether a sum to one number is the end: of one number, or of a log_prob by Pyro.

    Else the sum over all sites of a model would have the outcomes of all of them.
    """
    return not value.dim() or is_asked_by_pyro()


def _reduced_dims(args: Any, kwargs: Any) -> list[int]:
    """The dimensions of a reduction."""
    given = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    dims = [given] if isinstance(given, int) else given
    rank = args[0].dim()
    return [d % rank for d in dims] if rank and dims else list(range(rank))


def _reduced_outcomes(
    func: Any, args: Any, kwargs: Any, each: Outcomes, dims: list[int], result: Any
) -> Any:
    value = args[0]
    sizes = [n if d in dims else each.table.shape[1 + d] for d, n in enumerate(value.shape)]
    whole = each.table.expand(-1, *sizes)
    tables = _parts(batched(func, whole, args[1:], kwargs))
    parts = _parts(result)
    is_kept = parts[0].dim() == value.dim()
    elements = each.elements if is_kept else each.elements.squeeze(dims)
    made = [
        Outcomes(each.draws, elements, _as(table, part))
        for table, part in zip(tables, parts, strict=True)
    ]
    return made[0] if isinstance(result, Tensor) else made


def _parts(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _times_table(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """``x @ table``, which is linear over the last dimension of x, that of an event."""
    value, matrix = _named(args, kwargs, "input", "other")
    if not isinstance(value, OutcomeTensor) or _varies(matrix) or matrix.dim() > 2:
        return None
    made = []
    for each in outcomes_of(value):
        if each.elements.shape[-1] != 1:
            return None
        table = each.table.expand(*each.table.shape[:-1], value.shape[-1])
        elements = each.elements if matrix.dim() == 2 else each.elements.squeeze(-1)
        made.append(Outcomes(each.draws, elements, torch.matmul(table, matrix)))
    return made


# Changes in place.


def _is_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    is_operator = name in _IN_PLACE_OPERATORS or name == "__setitem__"
    return is_operator or (name.endswith("_") and not name.endswith("__"))


def _changed_in_place(func: Any, args: Any, kwargs: Any) -> Any:
    """The change of a value with outcomes. Into another tensor of integers the gradient is lost."""
    name, value = func.__name__, args[0] if args else None
    if not isinstance(value, OutcomeTensor):
        if _has_floats((args, kwargs)):
            return _collapse(func, args, kwargs)
        warn_of_lost_gradient(name)
        return func(*args, **kwargs)
    other = getattr(Tensor, _IN_PLACE_OPERATORS.get(name, name[:-1]), None)
    made = None
    if name == "__setitem__" and value.is_floating_point():
        made = _made(_written, func, args, kwargs, value)
    elif _rule_of(other) is _elementwise:
        made = _made(_elementwise, other, args, kwargs, value)
    if made is None and _has_floats((args, kwargs)):
        return _changed_to_derivative(func, args, kwargs)
    result = func(*args, **kwargs)
    if made is None:
        warn_of_lost_gradient(name)
    value.keep(made or ())
    return result


def _changed_to_derivative(func: Any, args: Any, kwargs: Any) -> Any:
    """A change without a rule: of a copy that has the derivative, which is then the value."""
    value, *rest = args
    new = collapsed(value)
    result = _collapse(func, (new, *rest), kwargs)
    value.copy_(new)
    value.keep(())
    return value if result is new else result


def _written(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The outcomes of a value after ``value[index] = new``."""
    value, index, new = args
    if _varies(index):
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


# Moving elements.


def _moving(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    value, *rest = args
    if any(map(_varies, rest)) or any(isinstance(each, torch.dtype) for each in rest):
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


def _moving_like(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """To the shape of another tensor, whatever its numbers."""
    value, *rest = args
    return _moving(func, (value, *as_plain(rest)), as_plain(kwargs), result)


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


def _varies(argument: Any) -> bool:
    if isinstance(argument, tuple | list):
        return any(map(_varies, argument))
    if isinstance(argument, dict):
        return any(map(_varies, argument.values()))
    return isinstance(argument, OutcomeTensor)


def _converted(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
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


def _joined(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
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
    if table.is_floating_point() and all(each or not _varies(part) for part, each in pairs):
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


def _broadcast(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    tensors = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
    return [
        [each.aligned(whole.dim()) for each in outcomes_of(tensor)]
        for tensor, whole in zip(tensors, result, strict=True)
    ]


# Lookups.


def _getitem(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, index = args
    if not _varies(index):
        return _moving(func, args, kwargs, result)
    entries = index if isinstance(index, tuple) else (index,)
    if any(map(_cannot_vary, entries)):
        return None
    lookup = Lookup(plain(table), index)
    groups = grouped(lookup.tensors, lookup.rank)
    made = [lookup.outcomes(group.first, group.tables) for group in groups]
    if not _varies(table):
        return made
    of_table = _moving(func, (table, as_plain(index)), kwargs, result)
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
    return _varies(entry)


def _is_row_lookup(table: Any, index: Any) -> bool:
    """Whether the index is the drawn category itself, and selects rows of a plain table."""
    if type(index) is not IndexTensor or isinstance(table, OutcomeTensor):
        return False
    outcomes = index.kept
    return len(outcomes) == 1 and covers(outcomes[0], table)


def _rows(table: Tensor, index: IndexTensor) -> Tensor:
    """``table[index]``. torch is many times faster where an index selects whole rows."""
    if index.dim():
        shape = index.shape + table.shape[1:]
        result = table.index_select(0, index.flatten()).reshape(shape)
    else:
        result = table[index]  # a view
    with without_gradient():
        made = of_rows(index, index.kept[0], table)
    return carrying(result, [made])


def _by_getitem(table: Any, index: Any, result: Any) -> Any:
    if _is_row_lookup(table, index):
        return [of_rows(index, index.kept[0], table)]
    return _getitem(Tensor.__getitem__, (table, index), {}, result)


def _gather(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, dim, index = _named(args, kwargs, "input", "dim", "index")
    if not _varies(index):
        return _moving(func, args, kwargs, result)
    made = [gathered(plain(table), dim, index, each) for each in outcomes_of(index)]
    if not _varies(table):
        return made
    codes = [each.table for each in outcomes_of(index)]
    of_table = _moving(func, (table, dim, plain(index)), {}, result)
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


def _take_along_dim(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, index, dim = _named(args, kwargs, "input", "indices", "dim")
    if _varies(table):
        return _moving(func, args, kwargs, result)
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


def _take(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, index = _named(args, kwargs, "input", "index")
    if _varies(table):  # `torch.vmap` has no rule for `take`
        return _moving(lambda each, index: each.reshape(-1)[index], (table, index), {}, result)
    return _by_getitem(table.flatten(), index, result)


def _index_select(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, dim, index = _named(args, kwargs, "input", "dim", "index")
    if not _varies(index):
        return _moving(func, args, kwargs, result)
    if not index.dim():
        index = carrying(index.unsqueeze(0), [each.aligned(1) for each in outcomes_of(index)])
    dim = dim % max(table.dim(), 1)
    return _by_getitem(table, (*[slice(None)] * dim, index) if dim else index, result)


def _embedding(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    names = ("input", "weight") if func is F.embedding else ("weight", "indices")
    first, second = _named(args, kwargs, *names)
    index, table = (first, second) if func is F.embedding else (second, first)
    return _by_getitem(table, index, result)


def _of_one_hot(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    categories = torch.arange(result.shape[-1], device=result.device)
    made = []
    for each in outcomes_of(args[0]):
        table = (each.table.unsqueeze(-1) == categories).to(result.dtype)
        made.append(Outcomes(each.draws, each.elements.unsqueeze(-1), table))
    return made


def _named(args: Any, kwargs: Any, *names: str) -> list[Any]:
    """The arguments of a function by name; None for one that was not given."""
    given = dict(zip(names, args, strict=False)) | kwargs
    return [given.get(name) for name in names]


def _ask(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For what does not depend on the numbers, and for what asks for a plain tensor."""
    return None


def _ask_for_gradient(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For `requires_grad`, see `_has_gradient`."""
    return None


def _hook(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For a hook on a gradient. Outcomes take the place of that of their value: it is not called.

    Pyro's validation has one that looks for NaN.
    """
    return None


def _has_gradient(value: OutcomeTensor) -> bool:
    """Whether floats will have a gradient in a draw."""
    draws = [draw for each in value.kept for draw in each.draws]
    return value.is_floating_point() and any(draw.one_hot.requires_grad for draw in draws)


def _properties(*names: str) -> Iterator[Any]:
    return (getattr(Tensor, name) for name in names)


_MOVING_PROPERTIES: dict[Any, Rule] = dict.fromkeys(
    _properties("T", "mT", "H", "mH", "real"), _moving
)

_BY_NAME: dict[str, Rule | None] = {
    **dict.fromkeys(
        [
            "reshape",
            "view",
            "expand",
            "unsqueeze",
            "squeeze",
            "permute",
            "transpose",
            "t",
            "flatten",
            "unflatten",
            "movedim",
            "moveaxis",
            "swapaxes",
            "swapdims",
            "ravel",
            "narrow",
            "select",
            "flip",
            "__reversed__",
            "fliplr",
            "flipud",
            "rot90",
            "roll",
            "repeat",
            "tile",
            "repeat_interleave",
            "broadcast_to",
            "diagonal",
            "atleast_1d",
            "atleast_2d",
            "atleast_3d",
            "adjoint",
            "chunk",
            "split",
            "tensor_split",
            "hsplit",
            "vsplit",
            "dsplit",
            "unbind",
            "split_with_sizes",
            "contiguous",
            "clone",
        ],
        _moving,
    ),
    **dict.fromkeys(
        [
            "float",
            "double",
            "half",
            "bfloat16",
            "long",
            "int",
            "short",
            "char",
            "byte",
            "bool",
            "to",
            "type",
            "type_as",
            "cpu",
            "cuda",
        ],
        _converted,
    ),
    **dict.fromkeys(
        [
            "size",
            "dim",
            "ndimension",
            "numel",
            "nelement",
            "stride",
            "storage_offset",
            "data_ptr",
            "get_device",
            "element_size",
            "is_floating_point",
            "is_complex",
            "is_signed",
            "is_contiguous",
            "is_inference",
            "result_type",
            "can_cast",
            "__len__",
            "zeros_like",
            "ones_like",
            "empty_like",
            "full_like",
            "rand_like",
            "randn_like",
            "new_zeros",
            "new_ones",
            "new_empty",
            "new_full",
            "new_tensor",
            "detach",
            "requires_grad_",
            "retain_grad",
            "__hash__",
            "__dir__",
            "__array_wrap__",
            "__dlpack_device__",
            "__set__",
            "__delete__",
            "broadcast_shapes",
            "is_same_size",
            "is_conj",
            "is_neg",
            "_is_view",
            "is_pinned",
            "untyped_storage",
            "is_shared",
            "share_memory_",
            "as_subclass",
        ],
        _ask,
    ),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as"), _moving_like),
    **dict.fromkeys(("sum", "mean", "prod", "logsumexp", "softmax", "log_softmax"), _reduced),
    **dict.fromkeys(("amax", "amin", "max", "min", "argmax", "argmin"), _reduced),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp"), _reduced),
    **dict.fromkeys(("matmul", "__matmul__", "mv", "mm"), _times_table),
    **dict.fromkeys(("stack", "cat", "concat", "concatenate"), _joined),
    **dict.fromkeys(("hstack", "vstack", "dstack", "column_stack", "row_stack"), _joined),
    **dict.fromkeys(("broadcast_tensors",), _broadcast),
    **dict.fromkeys(("binary_cross_entropy_with_logits", "binary_cross_entropy"), _loss),
    "register_hook": _hook,
    "__getitem__": _getitem,
    "gather": _gather,
    "take_along_dim": _take_along_dim,
    "take": _take,
    "index_select": _index_select,
    "embedding": _embedding,
    "one_hot": _of_one_hot,
}

_IN_PLACE_OPERATORS = {
    f"__i{name}__": f"__{name}__"
    for name in ("add", "sub", "mul", "pow", "truediv", "floordiv", "mod", "and", "or", "xor")
}

# Those that torch does not tag.
_ALSO_ELEMENTWISE = {
    *("floor_divide", "isclose", "isreal", "special_xlogy"),
    *("logsigmoid", "log_sigmoid", "softsign", "tanhshrink"),
}

_OPERATORS = {
    **{f"r{name}": name for name in ("add", "sub", "mul", "pow")},
    **dict.fromkeys(("truediv", "rtruediv", "div", "rdiv", "true_divide"), "div"),
    **dict.fromkeys(("floordiv", "rfloordiv"), "floor_divide"),
    **dict.fromkeys(("mod", "rmod"), "remainder"),
    **dict.fromkeys(("and", "rand"), "bitwise_and"),
    **dict.fromkeys(("or", "ror"), "bitwise_or"),
    **dict.fromkeys(("xor", "rxor"), "bitwise_xor"),
    "invert": "bitwise_not",
    **dict.fromkeys(("lshift", "rlshift"), "bitwise_left_shift"),
    **dict.fromkeys(("rshift", "rrshift"), "bitwise_right_shift"),
    "pos": "positive",
}
