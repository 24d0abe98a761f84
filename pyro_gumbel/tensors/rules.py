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

from pyro_gumbel._tracing import in_eager_mode, known
from pyro_gumbel.tensors.index_tensor import IndexTensor, OutcomeTensor, carrying, outcomes_of
from pyro_gumbel.tensors.lookups import Lookup, covers, gathered, of_rows
from pyro_gumbel.tensors.lost_gradient import warn_of_lost_gradient
from pyro_gumbel.tensors.outcomes import (
    NO_ELEMENT,
    Outcomes,
    are_same,
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
    if _is_in_place(func):
        return _changed_in_place(func, args, kwargs)
    if rule is _getitem and _is_row_lookup(*args):
        return _rows(*args)
    result = func(*args, **kwargs)
    if args and result is args[0]:
        return result
    made = _made(rule, func, args, kwargs, result)
    if made is None:
        warn_of_lost_gradient(getattr(func, "__name__", repr(func)))
        return result
    return _carrying(result, made)


OutcomeTensor._rule = staticmethod(_apply)


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
    except (RuntimeError, IndexError):  # not known here, or another category would be an error
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


# Grouping: which outcomes belong together.

# The outcomes of one argument, and the tables of all, by position.
Group = tuple[Outcomes, dict[int, Tensor]]


def _groups(arguments: Sequence[Any], rank: int) -> list[Group]:
    """For each set of elements what the arguments that depend on it would have been.

    :param rank: of the result. The outcomes are those of tensors of so many dimensions.
    """
    groups: list[Group] = []
    for position, argument in enumerate(arguments):
        for each in outcomes_of(argument):
            own = each.aligned(rank)
            for first, tables in groups:
                if position not in tables and _are_alike(first, own):
                    tables[position] = own.table
                    break
            else:
                groups.append((own, {position: own.table}))
    return groups if len(groups) < 2 else _joint(groups, arguments)


def _joint(groups: list[Group], arguments: Sequence[Any]) -> list[Group]:
    """The groups, where places that have an element in common vary together, in the first group."""
    for i, (first, tables) in enumerate(groups):
        for j in range(i + 1, len(groups)):
            other, others = groups[j]
            if not _share(first, other):
                continue
            common = first.elements == other.elements
            if not known(common.any(), otherwise=True):
                continue
            for position, table in others.items():
                otherwise = tables.get(position, arguments[position])
                tables[position] = torch.where(common, table, otherwise)
            rest = torch.where(common, NO_ELEMENT, other.elements)
            groups[j] = replace(other, elements=rest), others
    return groups


def _are_alike(a: Outcomes, b: Outcomes) -> bool:
    """Whether both depend on the same element at each place."""
    return _share(a, b) and are_same(a.elements, b.elements)


def _share(a: Outcomes, b: Outcomes) -> bool:
    """Whether both have elements of a draw in common, maybe."""
    return any(draw in b.draws for draw in a.draws)


# Elementwise.


def _elementwise(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    if not isinstance(result, Tensor):
        return None
    names = list(kwargs)
    arguments = [*args, *kwargs.values()]
    count = len(args)
    made = []
    for first, tables in _groups(arguments, result.dim()):
        each = [tables.get(i, a) for i, a in enumerate(arguments)]
        if not result.dim():
            each = list(map(_with_dimension, each))
        table = func(*each[:count], **dict(zip(names, each[count:], strict=True)))
        if table.dim() != first.table.dim():
            return None  # `max` of one tensor
        made.append(Outcomes(first.draws, first.elements, _as(table, result)))
    return made


def _with_dimension(argument: Any) -> Any:
    """A tensor with a dimension: torch gives the dtype of others more weight in a result."""
    is_number = isinstance(argument, Tensor) and not argument.dim()
    return argument.reshape(1) if is_number else argument


def _as(table: Tensor, result: Tensor) -> Tensor:
    return table if table.dtype == result.dtype else table.to(result.dtype)


# Changes in place.


def _is_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    is_operator = name in _IN_PLACE_OPERATORS or name == "__setitem__"
    return is_operator or (name.endswith("_") and not name.endswith("__"))


def _changed_in_place(func: Any, args: Any, kwargs: Any) -> Any:
    """The change of a value of the draw itself. Into another tensor the gradient is lost."""
    name, value = func.__name__, args[0] if args else None
    other = getattr(Tensor, _IN_PLACE_OPERATORS.get(name, name[:-1]), None)
    made = None
    if isinstance(value, OutcomeTensor) and _rule_of(other) is _elementwise:
        made = _made(_elementwise, other, args, kwargs, value)
    result = func(*args, **kwargs)
    if made is None:
        warn_of_lost_gradient(name)
    if isinstance(value, OutcomeTensor):
        value.keep(made or ())
    return result


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
    elements = _tightened(elements)
    if each.is_uniform:
        table = each.table.reshape(-1, *[1] * elements.dim())
        return Outcomes(each.draws, elements, table, each.is_category)
    whole = each.table.expand(-1, *value.shape)
    table = torch.vmap(lambda t: _part(func(t, *rest, **kwargs), place))(whole)
    return Outcomes(each.draws, elements, _tightened(table))


def _part(result: Any, place: int) -> Any:
    return result if isinstance(result, Tensor) else result[place]


def _tightened(tensor: Tensor) -> Tensor:
    """Of size 1 along the dimensions that repeat the same memory."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _varies(argument: Any) -> bool:
    if isinstance(argument, tuple | list):
        return any(map(_varies, argument))
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
    k = present[0].num_categories
    if all(each.is_category and each.is_uniform for each in present):
        table = present[0].table.reshape(k, *[1] * elements.dim())
        return Outcomes(draws, elements, table, is_category=len(present) == len(parts))
    tables = [
        (part.unsqueeze(0) if each is None else each.table).expand(k, *part.shape)
        for part, each in zip(parts, of_parts, strict=True)
    ]
    table = torch.vmap(lambda *each: func(each, *rest, **kwargs))(*tables)
    return Outcomes(draws, elements, table)


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
    of_table = []
    if _varies(table):
        varying = [each for entry in entries for each in outcomes_of(entry)]
        if any(_share(a, b) for a in outcomes_of(table) for b in varying):
            return None
        of_table = _moving(func, (table, as_plain(index)), kwargs, result)
        table = plain(table)
    lookup = Lookup(table, index)
    groups = _groups(lookup.tensors, lookup.rank)
    return of_table + [lookup.outcomes(*group) for group in groups]


def _cannot_vary(entry: Any) -> bool:
    """Whether an entry selects other numbers of elements for other categories, or is a list."""
    if isinstance(entry, OutcomeTensor):
        return entry.dtype in (torch.bool, torch.uint8)
    return _varies(entry)


def _is_row_lookup(table: Any, index: Any) -> bool:
    """Whether the index is the drawn category itself, and selects rows of a plain table."""
    if type(index) is not IndexTensor or isinstance(table, OutcomeTensor) or not index.dim():
        return False
    outcomes = index.kept
    return len(outcomes) == 1 and covers(outcomes[0], table)


def _rows(table: Tensor, index: IndexTensor) -> Tensor:
    """``table[index]``. torch is many times faster where an index selects whole rows."""
    shape = index.shape + table.shape[1:]
    result = table.index_select(0, index.flatten()).reshape(shape)
    with without_gradient():
        made = of_rows(index, index.kept[0], table)
    return carrying(result, [made])


def _by_getitem(table: Any, index: Any, result: Any) -> Any:
    return _getitem(Tensor.__getitem__, (table, index), {}, result)


def _gather(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, dim, index = _named(args, kwargs, "input", "dim", "index")
    if _varies(table):
        return _moving(func, args, kwargs, result)
    return [gathered(table, dim, index, each) for each in outcomes_of(index)]


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
    return _by_getitem(table, (*[slice(None)] * (dim % max(table.dim(), 1)), index), result)


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
            "register_hook",
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
    **dict.fromkeys(("stack", "cat", "concat", "concatenate"), _joined),
    **dict.fromkeys(("hstack", "vstack", "dstack", "column_stack", "row_stack"), _joined),
    **dict.fromkeys(("broadcast_tensors",), _broadcast),
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
_ALSO_ELEMENTWISE = {"floor_divide", "isclose", "isreal"}

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
