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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_gumbel.tensors.index_tensor import IndexTensor, OutcomeTensor, carrying, outcomes_of
from pyro_gumbel.tensors.lookups import covers, gathered, looked_up
from pyro_gumbel.tensors.lost_gradient import warn_of_lost_gradient
from pyro_gumbel.tensors.outcomes import NO_ELEMENT, Outcomes, are_same, without_gradient

__all__: list[str] = []

Rule = Callable[[Any, Any, Any, Any], Any]  # of the function, its arguments and its result


def _apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation, with the outcomes that it has."""
    rule = _rule_of(func)
    if rule is _ask:
        return func(*args, **kwargs)
    if rule is _elementwise and _is_in_place(func):
        return _changed_in_place(func, args, kwargs)
    result = _selected(*args) if rule is _getitem else func(*args, **kwargs)
    if rule is not None and "out" not in kwargs:
        try:
            with without_gradient():
                made = rule(func, args, kwargs, result)
        except NotImplementedError:
            made = None
        if made is not None:
            return _carrying(result, made)
    warn_of_lost_gradient(getattr(func, "__name__", repr(func)))
    return result


OutcomeTensor._rule = staticmethod(_apply)


def _selected(table: Tensor, index: Any) -> Tensor:
    """``table[index]``. torch is many times faster where the index selects whole rows."""
    if isinstance(index, IndexTensor) and index.dim() and not isinstance(table, OutcomeTensor):
        outcomes = outcomes_of(index)
        if len(outcomes) == 1 and covers(outcomes[0], table):
            shape = index.shape + table.shape[1:]
            return table.index_select(0, index.flatten()).reshape(shape)
    return table[index]


def _carrying(result: Any, outcomes: Any) -> Any:
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
    if not _is_elementwise(stem):
        return None
    return _elementwise


@functools.cache
def _is_elementwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    tags = set().union(*(getattr(packet, each).tags for each in packet.overloads()))
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


# Grouping: which outcomes belong together.


def _groups(arguments: Sequence[Any], rank: int) -> Iterator[tuple[Outcomes, dict[int, Outcomes]]]:
    """For each set of elements one of its outcomes, and all by the position of the argument.

    :param rank: of the result. The outcomes are those of tensors of so many dimensions.
    """
    groups: list[tuple[Outcomes, dict[int, Outcomes]]] = []
    for position, argument in enumerate(arguments):
        for each in outcomes_of(argument):
            own = each.aligned(rank)
            for first, members in groups:
                if position not in members and are_same(first.elements, own.elements):
                    members[position] = own
                    break
            else:
                groups.append((own, {position: own}))
    return iter(groups)


# Elementwise.


def _elementwise(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    if not isinstance(result, Tensor):
        return None
    names = list(kwargs)
    arguments = [*args, *kwargs.values()]
    count = len(args)
    made = []
    for first, members in _groups(arguments, result.dim()):
        each = [members[i].table if i in members else a for i, a in enumerate(arguments)]
        table = func(*each[:count], **dict(zip(names, each[count:], strict=True)))
        made.append(Outcomes(first.draws, first.elements, _as(table, result)))
    return made


def _as(table: Tensor, result: Tensor) -> Tensor:
    return table if table.dtype == result.dtype else table.to(result.dtype)


def _is_in_place(func: Any) -> bool:
    return func.__name__.endswith("_") and not func.__name__.endswith("__")


def _changed_in_place(func: Any, args: Any, kwargs: Any) -> Any:
    """The change of a value of the draw itself. Into another tensor the gradient is lost."""
    if not isinstance(args[0], OutcomeTensor):
        warn_of_lost_gradient(func.__name__)
        return func(*args, **kwargs)
    made = outcomes_of(_apply(getattr(Tensor, func.__name__[:-1]), args, kwargs))
    return carrying(func(*args, **kwargs), made)


# Moving elements.


def _moving(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    value, *rest = args
    if any(map(_varies, rest)):
        return None
    made: list[Any] = [[] for _ in result] if not isinstance(result, Tensor) else []
    for each in outcomes_of(value):
        elements = func(each.elements.expand(value.shape), *rest, **kwargs)
        if isinstance(result, Tensor):
            made.append(_moved(func, each, value, rest, kwargs, elements, 0))
        else:
            for i, own in enumerate(elements):
                made[i].append(_moved(func, each, value, rest, kwargs, own, i))
    return made


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
    """To another dtype or device."""
    if result is args[0]:
        return outcomes_of(result)
    if not isinstance(args[0], OutcomeTensor):
        return None
    made = []
    for each in outcomes_of(args[0]):
        elements = each.elements.to(result.device)
        table = each.table.to(result.device, result.dtype)
        made.append(Outcomes(each.draws, elements, table, each.is_category))
    return made


def _joined(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """`stack` and `cat`."""
    parts, *rest = args
    per_part = [_parts_by_size(part) for part in parts]
    made = []
    for k in dict.fromkeys(k for each in per_part for k in each):
        made.append(_joined_outcomes(func, parts, [each.get(k) for each in per_part], rest, kwargs))
    return made


def _parts_by_size(part: Any) -> dict[int, Outcomes]:
    """The outcomes of a part by the number of categories."""
    found: dict[int, Outcomes] = {}
    for each in outcomes_of(part):
        if each.num_categories in found:
            raise NotImplementedError  # two elements at one place
        found[each.num_categories] = each
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
    if _varies(table):
        return None
    indices = [each for each in (index if isinstance(index, tuple) else (index,))]
    if any(isinstance(each, list) and _varies(each) for each in indices):
        return None
    if any(_varies(each) and each.dtype == torch.bool for each in indices):
        return None
    rank = max((each.dim() for each in indices if isinstance(each, Tensor)), default=0)
    made = []
    for first, members in _groups(indices, rank):
        of_index = {id(indices[i]): each for i, each in members.items()}
        made.append(
            looked_up(table, index, lambda each, known=of_index: known.get(id(each)), first)
        )
    return made


def _by_getitem(args: Any, result: Any, table: Any, index: Any) -> Any:
    return _getitem(Tensor.__getitem__, (table, index), {}, result)


def _gather(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, dim, index = _named(args, kwargs, "input", "dim", "index")
    if _varies(table):
        return None
    return [gathered(table, dim, index, each) for each in outcomes_of(index)]


def _take_along_dim(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, index, dim = _named(args, kwargs, "input", "indices", "dim")
    if _varies(table):
        return None
    if dim is None:
        return [gathered(table.flatten(), 0, index, each) for each in outcomes_of(index)]
    shape = list(torch.broadcast_shapes(*(_without(each, dim) for each in (table, index))))
    whole = table.expand(*_with(shape, dim, table.shape[dim]))
    at = index.expand(*_with(shape, dim, index.shape[dim]))
    return [gathered(whole, dim, at, each) for each in outcomes_of(index)]


def _without(tensor: Tensor, dim: int) -> list[int]:
    shape = list(tensor.shape)
    shape[dim] = 1
    return shape


def _with(shape: list[int], dim: int, size: int) -> list[int]:
    shape = list(shape)
    shape[dim] = size
    return shape


def _take(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, index = _named(args, kwargs, "input", "index")
    return None if _varies(table) else _by_getitem(args, result, table.flatten(), index)


def _index_select(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    table, dim, index = _named(args, kwargs, "input", "dim", "index")
    if not _varies(index):
        return _moving(func, args, kwargs, result)
    if not index.dim():
        index = index.unsqueeze(0)
    dim = dim % max(table.dim(), 1)
    return _by_getitem(args, result, table, (*[slice(None)] * dim, index))


def _embedding(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    first, second = args[:2] if len(args) > 1 else (args[0], kwargs["weight"])
    index, table = (first, second) if func is F.embedding else (second, first)
    return _by_getitem(args, result, table, (index,))


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


_MOVING_PROPERTIES: dict[Any, Rule] = dict.fromkeys(_properties("T", "mT", "H", "mH"), _moving)

_BY_NAME: dict[str, Rule | None] = {
    **dict.fromkeys(
        [
            "reshape",
            "view",
            "expand",
            "expand_as",
            "view_as",
            "reshape_as",
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
            "is_nonzero_",
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
            "__format__",
            "__dir__",
            "__set__",
            "__delete__",
            "broadcast_shapes",
            "is_same_size",
            "_is_view",
            "is_pinned",
            "untyped_storage",
            "is_shared",
            "share_memory_",
            "as_subclass",
        ],
        _ask,
    ),
    **dict.fromkeys(("stack", "cat", "concat", "concatenate"), _joined),
    **dict.fromkeys(("broadcast_tensors",), _broadcast),
    "__getitem__": _getitem,
    "gather": _gather,
    "take_along_dim": _take_along_dim,
    "take": _take,
    "index_select": _index_select,
    "embedding": _embedding,
    "one_hot": _of_one_hot,
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
