# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What a lookup in a table would have been for every category: ``table[z]`` and its relatives.

The table of a lookup's outcomes is a lookup in which the index has one dimension more, on the left:
that of the categories. Where the index is the drawn category itself, the outcomes are the table,
with the dimension of the index moved to the front.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import in_eager_mode
from pyro_gumbel.tensors.index_tensor import IndexTensor, OutcomeTensor, carrying, outcomes_of
from pyro_gumbel.tensors.outcomes import Outcomes, without_gradient
from pyro_gumbel.tensors.subclass import plain

__all__ = ["Lookup", "covers", "entries", "gathered", "of_rows"]

_ALL = slice(None)


class Lookup:
    """``table[index]`` as torch reads it: slices and numbers make a view, then come tensors.

    A tensor of one number, without dimensions, counts as a number: it removes a dimension. Those
    that depend on a draw are kept among the tensors.

    :ivar tensors: the indices that are tensors, masks as the indices of what they select.
    :ivar rank: how many dimensions they have together.
    :ivar front: the view, with the dimensions that they index moved to the front.
    :ivar at: before which of the other dimensions the result has those of the indices.
    """

    def __init__(self, table: Tensor, index: Any) -> None:
        entries = index if isinstance(index, tuple) else (index,)
        basic: list[Any] = []
        self.tensors: list[Tensor] = []
        dims: list[int] = []  # of the view, one a tensor
        for entry in _without_ellipsis(table, [_entry(each) for each in entries]):
            if _is_basic(entry):
                basic.append(entry)
                continue
            parts = entry.nonzero(as_tuple=True) if _is_mask(entry) else (entry,)
            start = sum(each is None or isinstance(each, slice) for each in basic)
            dims += range(start, start + len(parts))
            self.tensors += parts
            basic += [_ALL] * len(parts)
        self._basic, self._dims = basic, dims
        self.front = self._front_of(table, 0)
        sizes = [each.dim() for each in self.tensors]
        self.rank = max(sizes)
        self.at = 0 if dims[-1] + 1 == len(dims) else _place(sizes, dims)

    def _front_of(self, table: Tensor, offset: int) -> Tensor:
        """The view of a table that has more dimensions on the left, which stay there."""
        basic, dims = self._basic, self._dims
        if any(each is not _ALL for each in basic):
            table = table[(*[_ALL] * offset, *basic)]
        if dims[-1] + 1 == len(dims):
            return table
        return table.movedim([d + offset for d in dims], [offset + i for i in range(len(dims))])

    def is_constant(self, elements: Tensor) -> bool:
        """Whether elements of the shape of the table do not differ along what a draw indexes."""
        front = self._front_of(elements, 0)
        drawn = [i for i, each in enumerate(self.tensors) if isinstance(each, OutcomeTensor)]
        return all(front.stride(i) == 0 or front.shape[i] == 1 for i in drawn)

    def outcomes(self, elements: Outcomes, tables: Mapping[int, Tensor]) -> Outcomes:
        """Those of the result, for the elements on which some of its indices depend.

        :param elements: the outcomes of one such index.
        :param tables: what these indices would have been, by their positions.
        """
        rest = self.front.dim() - len(self.tensors)
        own = elements.elements
        if rest:
            own = own.reshape((1,) * self.at + own.shape + (1,) * (rest - self.at))
        return Outcomes(elements.draws, own, self._table(elements, tables))

    def in_tables(
        self, elements: Outcomes, tables: Mapping[int, Tensor], of_table: Tensor
    ) -> Tensor:
        """The table of those outcomes, where what is looked into depends on the same elements.

        :param of_table: what the table would have been.
        """
        categories = torch.arange(len(of_table), device=of_table.device)
        codes = self._all_codes(elements, tables)
        front = self._front_of(of_table, 1)
        return self._in_place(front[(categories.reshape(-1, *[1] * self.rank), *codes)])

    def _table(self, elements: Outcomes, tables: Mapping[int, Tensor]) -> Tensor:
        front, rank, at = self.front, self.rank, self.at
        if len(self.tensors) == 1 and covers(elements, front):
            front = front[: elements.num_categories]
            shape = front.shape
            return front.reshape(shape[: at + 1] + (1,) * rank + shape[at + 1 :])
        return self._in_place(front[self._all_codes(elements, tables)])

    def _in_place(self, table: Tensor) -> Tensor:
        """A table with the dimensions of the indices where the result has them."""
        if not self.at:
            return table
        before, after = 1 + self.rank, 1 + self.rank + self.at
        return table.movedim(list(range(1, before)), list(range(1 + self.at, after)))

    def _all_codes(self, elements: Outcomes, tables: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """The indices, of every category where they vary."""
        return tuple(
            self._codes(i, elements, tables[i]) if i in tables else each
            for i, each in enumerate(self.tensors)
        )

    def _codes(self, position: int, elements: Outcomes, table: Tensor) -> Tensor:
        """What an index would have been, as indices that are not out of range."""
        size = self.front.shape[position]
        if elements.is_category and table is elements.table and len(table) <= size:
            return table
        return _within(table, size)


def _place(sizes: list[int], dims: list[int]) -> int:
    """Where torch puts the dimensions of the indices: in their place if it is one, else in front.

    :param sizes: how many dimensions each has. Those of none remove their dimension first.
    :param dims: the dimensions that they index, in ascending order.
    """
    places = [dim - sizes[:i].count(0) for i, dim in enumerate(dims) if sizes[i]]
    together = bool(places) and places[-1] - places[0] + 1 == len(places)
    return places[0] if together else 0


def of_rows(index: Tensor, outcomes: Outcomes, table: Tensor) -> Outcomes:
    """The outcomes of ``table[index]``, for an index that is the drawn category itself."""
    rest = table.dim() - 1
    table = table[: outcomes.num_categories]
    shape, own = table.shape, outcomes.elements
    own = own.reshape(own.shape + (1,) * rest) if rest else own
    table = table.reshape(shape[:1] + (1,) * index.dim() + shape[1:])
    return Outcomes(outcomes.draws, own, table)


def gathered(table: Tensor, dim: int, index: Tensor, outcomes: Outcomes) -> Outcomes:
    """The outcomes of ``table.gather(dim, index)``."""
    if not index.dim():
        codes = table.reshape(-1)[_within(outcomes.table, table.numel())]
        return Outcomes(outcomes.draws, outcomes.elements, codes)
    dim = dim % index.dim()
    if covers(outcomes, table, dim):
        for d, size in enumerate(index.shape):
            if d != dim:
                table = table.narrow(d, 0, size)
        codes = table.movedim(dim, 0)[: outcomes.num_categories].unsqueeze(dim + 1)
    else:
        at = _within(outcomes.table, table.shape[dim])
        at = at.expand(-1, *index.shape)
        codes = table.expand(at.shape[0], *table.shape).gather(dim + 1, at)
    return Outcomes(outcomes.draws, outcomes.elements, codes)


def entries(table: Tensor, index: Tensor) -> Tensor:
    """The entry of the last dimension of a plain table that an index selects, as one operation.

    :param index: integers; their shape broadcasts with that of the table without its last
        dimension.
    """
    if not isinstance(index, IndexTensor) or isinstance(table, OutcomeTensor):
        return _entries_of(table, index)
    result = _entries_of(table, plain(index))
    if in_eager_mode() and not torch.is_grad_enabled():
        return result
    with without_gradient():
        made = [_entries(table, each.aligned(result.dim())) for each in outcomes_of(index)]
    return carrying(result, made)


def _entries_of(table: Tensor, index: Tensor) -> Tensor:
    index = index.to(table.device, torch.long)  # as torch does with an index on the CPU
    if index.shape != table.shape[:-1]:
        whole, table = torch.broadcast_tensors(index.unsqueeze(-1), table)
        index = whole[..., 0]
    return table.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _entries(table: Tensor, outcomes: Outcomes) -> Outcomes:
    rank = outcomes.elements.dim()
    if covers(outcomes, table, -1):
        codes = table.movedim(-1, 0)[: outcomes.num_categories]
        shape = codes.shape
        codes = codes.reshape(shape[:1] + (1,) * (rank + 1 - len(shape)) + shape[1:])
    else:
        codes = _entries_of(table, _within(outcomes.table, table.shape[-1]))
    return Outcomes(outcomes.draws, outcomes.elements, codes)


def covers(outcomes: Outcomes, table: Tensor, dim: int = 0) -> bool:
    """Whether an index is the drawn category, and the table has an entry for each."""
    has_dim = -table.dim() <= dim < table.dim()
    return outcomes.is_category and has_dim and outcomes.num_categories <= table.shape[dim]


def _within(codes: Tensor, size: Any) -> Tensor:
    """Indices of a dimension, those that are out of range at its ends.

    :param size: of the dimension. A trace has tensors for sizes, which are on the CPU.
    """
    if isinstance(size, Tensor):
        size = size.to(codes.device)  # as `clamp` wants it
    return codes.clamp(-size, size - 1)


def _is_basic(entry: Any) -> bool:
    """Whether an entry makes a view that is the same for every category."""
    if not isinstance(entry, Tensor):
        return True
    return not entry.dim() and not isinstance(entry, OutcomeTensor)


def _is_mask(entry: Tensor) -> bool:
    return entry.dtype in (torch.bool, torch.uint8)


def _without_ellipsis(table: Tensor, entries: list[Any]) -> list[Any]:
    for i, each in enumerate(entries):
        if each is ...:
            taken = sum(_dims_of(each) for each in entries)
            return entries[:i] + [_ALL] * (table.dim() - taken) + entries[i + 1 :]
    return entries


def _entry(entry: Any) -> Any:
    """An entry between the brackets, a tensor in place of a list.

    :raises NotImplementedError: for a single truth value, which adds a dimension.
    """
    if type(entry) in (IndexTensor, int) or entry is None or entry is ...:
        return entry
    if isinstance(entry, slice):
        return _ALL if entry == _ALL else entry
    if not isinstance(entry, Tensor):
        entry = torch.as_tensor(entry)
        entry = entry if entry.numel() else entry.long()
    if not entry.dim() and _is_mask(entry):
        raise NotImplementedError
    return entry


def _dims_of(entry: Any) -> int:
    """How many dimensions of the table an entry reads."""
    if entry is None or entry is ...:
        return 0
    return entry.dim() if isinstance(entry, Tensor) and _is_mask(entry) else 1
