# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What a lookup in a table would have been for every category: ``table[z]`` and its relatives.

The table of a lookup's outcomes is a lookup in which the index has one dimension more, on the left:
that of the categories. Where the index is the drawn category itself, the outcomes are the table,
with the dimension of the index moved to the front.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel.tensors.outcomes import Outcomes

__all__ = ["Lookup", "covers", "gathered", "looked_up"]

Codes = Callable[[Any], "Outcomes | None"]  # the outcomes of an index that varies, else None


class Lookup:
    """An index as torch reads it: first slices and numbers, which make a view; then tensors.

    :param table: the tensor that is indexed.
    :param index: as written between the brackets.
    :param varying: the outcomes of an index that depends on the category; None for any other.
    :raises NotImplementedError: for an index of a kind that is not known here.
    """

    def __init__(self, table: Tensor, index: Any, varying: Codes) -> None:
        self.varying = varying
        self.basic: list[Any] = []
        self.advanced: dict[int, Tensor] = {}  # by dimension of the view
        self.numbers: dict[int, Outcomes] = {}  # 0-d indices that vary
        dim = 0
        for each in _entries(table, index):
            dim += self._add(each, dim)
        self.view = table[tuple(self.basic)]

    def _add(self, entry: Any, dim: int) -> int:
        """Read one entry; returns how many dimensions of the view are its own."""
        if not isinstance(entry, Tensor):
            self.basic.append(entry)
            return 1 if entry is None or isinstance(entry, slice) else 0
        outcomes = self.varying(entry)
        if entry.dim() == 0:
            if outcomes is None:
                self.basic.append(int(entry))
                return 0
            self.numbers[dim] = outcomes
            parts = [entry]
        elif entry.dtype in (torch.bool, torch.uint8):
            parts = list(entry.nonzero(as_tuple=True))
            self.advanced.update({dim + i: part for i, part in enumerate(parts)})
        else:
            self.advanced[dim] = entry
            parts = [entry]
        self.basic += [slice(None)] * len(parts)
        return len(parts)

    def outcomes(self, elements: Outcomes) -> Outcomes:
        """Those of the result.

        :param elements: the outcomes of one of the indices that vary.
        """
        if self.numbers:
            return self._of_numbers(elements)
        rank = max(each.dim() for each in self.advanced.values())
        first, last = min(self.advanced), max(self.advanced)
        at = first if last - first + 1 == len(self.advanced) else 0
        after = self.view.dim() - len(self.advanced) - at
        own = elements.elements.reshape(
            (1,) * (at + rank - elements.elements.dim()) + elements.elements.shape + (1,) * after
        )
        return Outcomes(elements.draws, own, self._table(rank, at))

    def _table(self, rank: int, at: int) -> Tensor:
        index: list[Any] = [slice(None)] * self.view.dim()
        for dim, each in self.advanced.items():
            outcomes = self.varying(each)
            if outcomes is None:
                index[dim] = each
            elif len(self.advanced) == 1 and covers(outcomes, self.view, dim):
                table = self.view.movedim(dim, 0)[: outcomes.num_categories]
                shape = table.shape
                return table.reshape(shape[: at + 1] + (1,) * rank + shape[at + 1 :])
            else:
                index[dim] = _within(outcomes.aligned(rank).table, self.view.shape[dim])
        return self.view[tuple(index)].movedim(at, 0)

    def _of_numbers(self, elements: Outcomes) -> Outcomes:
        """For an index of one number, which removes a dimension."""
        dims = list(self.numbers)
        if any(self.varying(each) is not None for each in self.advanced.values()):
            raise NotImplementedError
        view = self.view.movedim(dims, list(range(len(dims))))
        codes = tuple(
            _within(each.table, size)
            for each, size in zip(self.numbers.values(), view.shape, strict=False)
        )
        table = view[codes]
        if self.advanced:
            index: list[Any] = [slice(None)] * (self.view.dim() + 1)
            for dim, each in self.advanced.items():
                index[dim + 1] = each
            table = table[tuple(index[:1] + [e for d, e in enumerate(index[1:]) if d not in dims])]
        own = elements.elements.reshape((1,) * (table.dim() - 1))
        return Outcomes(elements.draws, own, table)


def looked_up(table: Tensor, index: Any, varying: Codes, elements: Outcomes) -> Outcomes:
    """The outcomes of ``table[index]``, in which some indices vary with the same elements.

    :param varying: the outcomes of an index that varies; None for any other.
    :param elements: the outcomes of one index that varies.
    """
    if isinstance(index, Tensor) and index.dim() and covers(elements, table):
        rest = table.dim() - 1
        of_category = table[: elements.num_categories]
        shape = of_category.shape
        own = elements.elements
        own = own.reshape(own.shape + (1,) * rest) if rest else own
        return Outcomes(
            elements.draws, own, of_category.reshape(shape[:1] + (1,) * index.dim() + shape[1:])
        )
    return Lookup(table, index, varying).outcomes(elements)


def gathered(table: Tensor, dim: int, index: Tensor, outcomes: Outcomes) -> Outcomes:
    """The outcomes of ``table.gather(dim, index)``."""
    dim = dim % max(index.dim(), 1)
    if index.dim() and covers(outcomes, table, dim):
        for d, size in enumerate(index.shape):
            if d != dim:
                table = table.narrow(d, 0, size)
        codes = table.movedim(dim, 0)[: outcomes.num_categories].unsqueeze(dim + 1)
    else:
        at = _within(outcomes.table, table.shape[dim] if index.dim() else 1)
        at = at.expand(-1, *index.shape)
        codes = table.expand(at.shape[0], *table.shape).gather(dim + 1, at)
    return Outcomes(outcomes.draws, outcomes.elements, codes)


def covers(outcomes: Outcomes, table: Tensor, dim: int = 0) -> bool:
    """Whether an index is the drawn category, and the table has an entry for each."""
    has_dim = -table.dim() <= dim < table.dim()
    return outcomes.is_category and has_dim and outcomes.num_categories <= table.shape[dim]


def _within(codes: Tensor, size: int) -> Tensor:
    """Indices of a dimension, those that are out of range at its ends."""
    return codes.clamp(-size, size - 1)


def _entries(table: Tensor, index: Any) -> list[Any]:
    """The entries between the brackets, tensors in place of lists, without an ellipsis."""
    entries = [_entry(each) for each in (index if isinstance(index, tuple) else (index,))]
    places = [i for i, each in enumerate(entries) if each is ...]
    if len(places) > 1:
        raise NotImplementedError
    taken = sum(_dims_of(each) for each in entries)
    rest: list[Any] = [slice(None)] * (table.dim() - taken)
    at = places[0] if places else len(entries)
    return entries[:at] + rest + entries[at + 1 :]


def _entry(entry: Any) -> Any:
    if isinstance(entry, Tensor) or entry is None or entry is ... or isinstance(entry, slice):
        return entry
    if isinstance(entry, bool):
        raise NotImplementedError
    if isinstance(entry, int):
        return entry
    return torch.as_tensor(entry)


def _dims_of(entry: Any) -> int:
    """How many dimensions of the table an entry reads."""
    if entry is None or entry is ...:
        return 0
    if isinstance(entry, Tensor) and entry.dtype in (torch.bool, torch.uint8):
        return entry.dim()
    return 1
