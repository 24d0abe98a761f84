# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which outcomes of several tensors belong together.

Tensors that are made of the same elements of a draw at the same places vary together, as
``locs[z]`` and ``scales[z]``. Different elements, as ``z[:-1]`` and ``z[1:]``, vary on their own.
Where two tensors have the same element at some places only, as ``z[:, None]`` and ``z[None]`` on
the diagonal, they vary together there, and one of the two groups leaves these places out.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import known
from pyro_gumbel.tensors.index_tensor import OutcomeTensor, carrying, outcomes_of
from pyro_gumbel.tensors.outcomes import NO_ELEMENT, Outcomes, are_same
from pyro_gumbel.tensors.subclass import plain

__all__ = ["MOST_PARTS", "Group", "grouped", "holds", "in_parts", "in_parts_of_events", "share"]

MOST_PARTS = 16  # of a tensor that meet in a result, as in a sum
FEW = 4  # groups: of more it is faster to look at all elements at once


class Group:
    """Tensors that vary together.

    :ivar first: outcomes of one of them, whose elements are over the dimensions of the batch.
    :ivar tables: what each would have been, by its place among the tensors.
    """

    def __init__(self, first: Outcomes, place: int, table: Tensor) -> None:
        self.first = first
        self.tables = {place: table}

    def outcomes(self, table: Tensor) -> Outcomes:
        """Those of a result that is made of the tensors."""
        return Outcomes(self.first.draws, self.first.elements, table)


def grouped(tensors: Sequence[Any], rank: int, tails: Sequence[int] | None = None) -> list[Group]:
    """The sets of elements that vary on their own, with the tables of what varies with each.

    :param tensors: of which some have outcomes.
    :param rank: the number of dimensions of the batch.
    :param tails: how many dimensions of each tensor are not of the batch; None for none.
        The elements do not differ along these, see `in_parts_of_events`.
    """
    groups: list[Group] = []
    for place, tensor in enumerate(tensors):
        tail = tails[place] if tails else 0
        for each in outcomes_of(tensor):
            whole = each.aligned(rank + tail)
            own = _of_batch(whole, rank) if tail else whole
            for group in groups:
                if place not in group.tables and _are_alike(group.first, own):
                    group.tables[place] = whole.table
                    break
            else:
                groups.append(Group(own, place, whole.table))
    if len(groups) > 1:
        _join(groups, tensors)
    return groups


def _of_batch(outcomes: Outcomes, rank: int) -> Outcomes:
    elements = outcomes.elements
    return replace(outcomes, elements=elements.reshape(elements.shape[:rank]))


def _join(groups: list[Group], tensors: Sequence[Any]) -> None:
    """Let places that have an element in common vary together, in the first group."""
    if len(groups) > FEW and _are_disjoint(groups):
        return
    for i, group in enumerate(groups):
        for other in groups[i + 1 :]:
            if not share(group.first, other.first):
                continue
            common = group.first.elements == other.first.elements
            if not holds(common.any(), otherwise=True):
                continue
            for place, table in other.tables.items():
                otherwise = group.tables.get(place, plain(tensors[place]))
                tail = table.dim() - 1 - common.dim()
                where = common.reshape(common.shape + (1,) * tail)
                group.tables[place] = torch.where(where, table, otherwise)
            rest = torch.where(common, NO_ELEMENT, other.first.elements)
            other.first = replace(other.first, elements=rest)


def _are_disjoint(groups: Sequence[Group]) -> bool:
    """Whether no element is in two places, as in a sum over the entries of a loop."""
    elements = torch.cat([group.first.elements.flatten() for group in groups])
    ordered = elements[elements != NO_ELEMENT].sort().values
    return not holds((ordered[1:] == ordered[:-1]).any(), otherwise=True)


def _are_alike(a: Outcomes, b: Outcomes) -> bool:
    """Whether both depend on the same element at each place."""
    return share(a, b) and are_same(a.elements, b.elements)


def holds(truth: Tensor, *, otherwise: bool) -> bool:
    """Whether something holds of elements, whose numbers are the same in each run of a trace."""
    if not torch.jit.is_tracing():
        return bool(known(truth, otherwise))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return bool(truth)


def share(a: Outcomes, b: Outcomes) -> bool:
    """Whether both have elements of a draw in common, maybe."""
    return any(draw in b.draws for draw in a.draws)


def in_parts(value: Tensor, dim: int) -> list[Outcomes]:
    """The outcomes of a tensor as those of its parts along a dimension, which vary on their own."""
    outcomes = outcomes_of(value)
    if _are_distinct([each.elements.expand(value.shape) for each in outcomes], dim):
        places = range(value.shape[dim])
        return [_one_part(value, dim, each, place) for each in outcomes for place in places]
    parts = OutcomeTensor._rule(Tensor.unbind, (value, dim), {})
    made = []
    for group in grouped(parts, value.dim() - 1):
        k = group.first.num_categories
        tables = [
            group.tables.get(i, plain(part).detach().unsqueeze(0)).expand(k, *part.shape)
            for i, part in enumerate(parts)
        ]
        elements = group.first.elements.unsqueeze(dim)
        made.append(Outcomes(group.first.draws, elements, torch.stack(tables, 1 + dim)))
    return made


def _are_distinct(elements: Sequence[Tensor], dim: int) -> bool:
    """Whether no element is at two places along a dimension."""
    ordered = torch.cat(list(elements), dim).sort(dim).values
    size = ordered.shape[dim] - 1
    before, after = ordered.narrow(dim, 0, size), ordered.narrow(dim, 1, size)
    twice = (before == after) & (after != NO_ELEMENT)
    return not holds(twice.any(), otherwise=True)


def _one_part(value: Tensor, dim: int, outcomes: Outcomes, place: int) -> Outcomes:
    """The outcomes at one place along a dimension, with the value at the others."""
    table = plain(value).detach().expand(outcomes.num_categories, *value.shape).clone()
    own = outcomes.table.expand_as(table)
    table.select(1 + dim, place).copy_(own.select(1 + dim, place))
    elements = outcomes.elements
    if elements.shape[dim] != 1:  # else it is no element, at every place
        elements = elements.narrow(dim, place, 1)
    return Outcomes(outcomes.draws, elements, table)


def in_parts_of_events(tensor: Any, tail: int) -> Any:
    """The same tensor. The elements of its outcomes do not differ along dimensions of the event.

    :param tail: the number of these dimensions.
    :raises NotImplementedError: if they would be many.
    """
    if not tail:
        return tensor
    shapes = [each.elements.shape for each in outcomes_of(tensor)]
    vary = {
        d for shape in shapes for d in range(max(len(shape) - tail, 0), len(shape)) if shape[d] != 1
    }
    if not vary:
        return tensor
    if len(vary) > 1 or any(tensor.shape[d] > MOST_PARTS for d in vary):
        raise NotImplementedError
    return carrying(plain(tensor), in_parts(tensor, vary.pop()))
