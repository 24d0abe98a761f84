# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which outcomes of several tensors belong together.

Tensors that are made of the same elements of a draw at the same places vary together, as
``locs[z]`` and ``scales[z]``. Different elements, as ``z[:-1]`` and ``z[1:]``, vary on their own.
Where two tensors have the same element at some places only, as ``z[:, None]`` and ``z[None]`` on
the diagonal, they vary together there, and one of the two groups leaves these places out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import known
from pyro_gumbel.tensors.index_tensor import outcomes_of
from pyro_gumbel.tensors.outcomes import NO_ELEMENT, Outcomes, are_same
from pyro_gumbel.tensors.subclass import plain

__all__ = ["Group", "grouped", "share"]


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
    :raises NotImplementedError: for elements that differ along a dimension not of the batch.
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
    shape = outcomes.elements.shape
    if any(size != 1 for size in shape[rank:]):
        raise NotImplementedError
    return replace(outcomes, elements=outcomes.elements.reshape(shape[:rank]))


def _join(groups: list[Group], tensors: Sequence[Any]) -> None:
    """Let places that have an element in common vary together, in the first group."""
    for i, group in enumerate(groups):
        for other in groups[i + 1 :]:
            if not share(group.first, other.first):
                continue
            common = group.first.elements == other.first.elements
            if not known(common.any(), otherwise=True):
                continue
            for place, table in other.tables.items():
                otherwise = group.tables.get(place, plain(tensors[place]))
                tail = table.dim() - 1 - common.dim()
                where = common.reshape(common.shape + (1,) * tail)
                group.tables[place] = torch.where(where, table, otherwise)
            rest = torch.where(common, NO_ELEMENT, other.first.elements)
            other.first = replace(other.first, elements=rest)


def _are_alike(a: Outcomes, b: Outcomes) -> bool:
    """Whether both depend on the same element at each place."""
    return share(a, b) and are_same(a.elements, b.elements)


def share(a: Outcomes, b: Outcomes) -> bool:
    """Whether both have elements of a draw in common, maybe."""
    return any(draw in b.draws for draw in a.draws)
