# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The rules of operations over the dimensions of an event, along which elements do not differ.

Reductions, products with matrices, functions of matrices and losses are applied to the outcomes.
The rules are functions as those in `pyro_gumbel.tensors.rules`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_gumbel.tensors.batching import batched
from pyro_gumbel.tensors.grouping import Group, grouped
from pyro_gumbel.tensors.index_tensor import outcomes_of, varies
from pyro_gumbel.tensors.outcomes import Outcomes, of_every_category
from pyro_gumbel.tensors.rules import by_name, in_dtype_of
from pyro_gumbel.tensors.subclass import as_plain, plain

__all__ = [
    "class_loss_rule",
    "einsum_rule",
    "is_plain_mean",
    "loss_rule",
    "matrix_rule",
    "pair_rule",
    "product_rule",
    "reduced_dims",
    "reduced_outcomes",
    "single_outcomes",
]


# Reductions.


def reduced_dims(args: Any, kwargs: Any) -> list[int]:
    """The dimensions of a reduction."""
    given = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    dims = [given] if isinstance(given, int) else given
    rank = args[0].dim()
    return [d % rank for d in dims] if rank and dims else list(range(rank))


def reduced_outcomes(
    func: Any, args: Any, kwargs: Any, each: Outcomes, dims: list[int], result: Any
) -> Any:
    """The outcomes of each tensor of a result, for one set of elements that varies on its own."""
    value = args[0]
    sizes = [n if d in dims else each.table.shape[1 + d] for d, n in enumerate(value.shape)]
    whole = each.table.expand(-1, *sizes)
    tables = _parts(batched(func, whole, args[1:], kwargs))
    parts = _parts(result)
    is_kept = parts[0].dim() == value.dim()
    elements = each.elements if is_kept else each.elements.squeeze(dims)
    made = [
        Outcomes(each.draws, elements, in_dtype_of(table, part))
        for table, part in zip(tables, parts, strict=True)
    ]
    return made[0] if isinstance(result, Tensor) else made


def _parts(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


# Matrices.


def matrix_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """A function of each matrix, over the last two dimensions, as `cholesky`."""
    value, *rest = args
    if varies(rest) or varies(kwargs):
        return None
    made = []
    for each in outcomes_of(value):
        *batch, rows, columns = each.elements.shape
        if rows != 1 or columns != 1:
            return None
        table = func(each.table.expand(-1, *batch, *value.shape[-2:]), *rest, **kwargs)
        tail = (1,) * (result.dim() - len(batch))
        made.append(Outcomes(each.draws, each.elements.reshape((*batch, *tail)), table))
    return made


def product_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """``x @ y``."""
    first, second = by_name(args, kwargs, "input", "mat2" if "mat2" in kwargs else "other")
    if not varies(second) and second.dim() <= 2:
        return _product_with_plain(first, second)
    return pair_rule(torch.matmul, (first, second), {}, result)


def pair_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """A function of pairs of matrices, over the last two dimensions, as a product."""
    if min(each.dim() for each in args) < 2 or varies(kwargs):
        return None
    is_system = func.__name__ == "linalg_solve_triangular" and kwargs.get("left", True)
    if is_system and not varies(args[0]):
        return _of_columns(func, args, kwargs, result)
    made = []
    for group in grouped(args, result.dim() - 2, (2, 2)):
        tables = [_matrices(group, place, each) for place, each in enumerate(args)]
        elements = group.first.elements[..., None, None]
        made.append(Outcomes(group.first.draws, elements, func(*tables, **kwargs)))
    return made


def _product_with_plain(value: Tensor, second: Tensor) -> Any:
    """With one vector or matrix, over the last dimension of the value; its rows may differ."""
    made = []
    for each in outcomes_of(value):
        if each.elements.shape[-1] != 1:
            return None
        table = each.table.expand(*each.table.shape[:-1], value.shape[-1])
        elements = each.elements if second.dim() == 2 else each.elements.squeeze(-1)
        made.append(Outcomes(each.draws, elements, torch.matmul(table, second)))
    return made


def _of_columns(func: Any, args: Any, kwargs: Any, result: Tensor) -> Any:
    """Linear systems with plain matrices on their left; the columns on the right may differ."""
    made = []
    for each in outcomes_of(args[1]):
        each = each.aligned(result.dim())
        if each.elements.shape[-2] != 1:
            return None
        table = each.table.expand(*each.table.shape[:-2], *args[1].shape[-2:])
        made.append(Outcomes(each.draws, each.elements, func(args[0], table, **kwargs)))
    return made


def _matrices(group: Group, place: int, value: Tensor) -> Tensor:
    """The matrices of each category, or those of a value that does not vary with the group."""
    if place not in group.tables:
        return plain(value)
    return group.tables[place].expand(*[-1] * (group.first.elements.dim() + 1), *value.shape[-2:])


def einsum_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """`einsum`. Elements may differ along the dimensions that the result has too."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    letters, output = _letters(equation)
    with torch._C._EnableTorchFunction(), torch.enable_grad():  # so that they keep outcomes
        operands = [
            _arranged(each, own, output) for each, own in zip(operands, letters, strict=True)
        ]
    summed = ["".join(each for each in own if each not in output) for own in letters]
    tails = [len(each) for each in summed]
    made = []
    for group in grouped(operands, len(output), tails):
        inputs, tables = [], []
        for place, operand in enumerate(operands):
            varies_here = place in group.tables
            inputs.append("Z" * varies_here + output + summed[place])
            tables.append(
                _with_tail(group.tables[place], operand, tails[place])
                if varies_here
                else plain(operand)
            )
        table = func(f"{','.join(inputs)}->Z{output}", *tables)
        made.append(group.outcomes(table))
    return made


def _letters(equation: Any) -> tuple[list[str], str]:
    """The letters of the operands and of the result.

    :raises NotImplementedError: unless it names each dimension once, and those of the result.
    """
    if not isinstance(equation, str) or "->" not in equation or "." in equation or "Z" in equation:
        raise NotImplementedError
    operands, output = equation.replace(" ", "").split("->")
    letters = operands.split(",")
    if any(len(set(own)) < len(own) for own in [*letters, output]):
        raise NotImplementedError
    return letters, output


def _arranged(operand: Tensor, letters: str, output: str) -> Tensor:
    """An operand with the dimensions of the result first, of size 1 where it has none of them."""
    rest = [each for each in letters if each not in output]
    order = [letters.index(each) for each in [*output, *rest] if each in letters]
    operand = operand.permute(order) if order else operand
    for place, each in enumerate(output):
        operand = operand if each in letters else operand.unsqueeze(place)
    return operand


def _with_tail(table: Tensor, value: Tensor, tail: int) -> Tensor:
    """A table, expanded to the sizes of the last dimensions of the value."""
    sizes = value.shape[value.dim() - tail :]
    return table.expand(*table.shape[: table.dim() - tail], *sizes)


# Any function of one element.


def single_outcomes(func: Any, args: Any, kwargs: Any) -> Any:
    """The outcomes of any function of values that have one element of each draw.

    So has every value in a model with a loop, where each site is one number. The function is
    applied to the outcomes of each element, the others held at what was drawn.

    :returns: those of the result, or of several results a tuple of those of each.
    """
    leaves, spec = tree_flatten((args, kwargs))
    by_element: dict[int, tuple[Outcomes, dict[int, Tensor]]] = {}
    for place, leaf in enumerate(leaves):
        for each in outcomes_of(leaf):
            if each.elements.numel() != 1 or torch.jit.is_tracing():
                raise NotImplementedError
            _, tables = by_element.setdefault(int(each.elements), (each, {}))
            tables[place] = each.table.expand(-1, *leaf.shape)
    plain_leaves = as_plain(leaves)

    def of_category(tables: dict[int, Tensor]) -> Any:
        own = [tables.get(place, leaf) for place, leaf in enumerate(plain_leaves)]
        arguments, named = tree_unflatten(own, spec)
        result = func(*arguments, **named)
        return result if isinstance(result, Tensor) else tuple(result)

    made: list[Any] = []
    for each, tables in by_element.values():
        results = of_every_category(of_category, tables)
        if isinstance(results, Tensor):
            made.append(_single(each, results))
        else:
            made.append(tuple(_single(each, table) for table in results))
    return made if isinstance(made[0], Outcomes) else tuple(map(list, zip(*made, strict=True)))


def _single(outcomes: Outcomes, table: Tensor) -> Outcomes:
    return Outcomes(outcomes.draws, outcomes.elements.reshape((1,) * (table.dim() - 1)), table)


# Losses.


def loss_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """A loss of each element, without a reduction."""
    if kwargs.get("reduction") != "none" or varies(kwargs):
        return None
    made = []
    for group in grouped(args, result.dim()):
        shape = group.first.num_categories, *result.shape
        whole = [
            group.tables.get(i, plain(each)).expand(shape) if isinstance(each, Tensor) else each
            for i, each in enumerate(args)
        ]
        made.append(group.outcomes(func(*whole, **kwargs)))
    return made


def class_loss_rule(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """A loss of each vector of class scores, without a reduction."""
    scores, *rest = args
    if kwargs.get("reduction") != "none" or varies(rest) or varies(kwargs):
        return None
    dim = min(1, scores.dim() - 1)
    made = []
    for each in outcomes_of(scores):
        if each.elements.shape[dim] != 1:
            return None
        table = of_every_category(
            lambda scores: func(scores, *rest, **kwargs), each.table.expand(-1, *scores.shape)
        )
        made.append(Outcomes(each.draws, each.elements.squeeze(dim), table))
    return made


def is_plain_mean(args: Any, kwargs: Any) -> bool:
    """Whether the mean of a loss of classes gives all of them the same weight."""
    target, ignored = args[1], kwargs.get("ignore_index", -100)
    return kwargs.get("weight") is None and not (target == ignored).any()
