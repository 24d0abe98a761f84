# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Blocks of a large draw, and scratch memory that is used again.

A few tensors of one block stay in the processor's cache. Scratch memory is the same in every call
of a thread, because first-touch page faults are expensive.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Size, Tensor

from pyro_gumbel.kernels.compiling import is_on
from pyro_gumbel.kernels.formulas import SHORT

__all__ = ["BLOCK", "Blocks", "scratch"]

BLOCK = 2**19  # elements

At = tuple[slice, slice]
"""Which samples and which rows of the batch a block has."""


class Blocks:
    """The tensors of a draw, seen as (samples, rows, *event) and cut into blocks.

    A row is one element of the batch, here with all its samples.

    :param shape: the sample shape, the batch shape and the event shape of the draw.
    :param batch: the batch shape.
    :param event_dim: the number of dimensions of an event.
    """

    def __init__(self, shape: Size, batch: Size, event_dim: int) -> None:
        self.cut = len(shape) - event_dim
        self.batch, self.event_dim = batch, event_dim
        self.size = math.prod(shape[self.cut :])
        self.samples = math.prod(shape[: self.cut - len(batch)])
        self.rows = math.prod(batch)

    def over_rows(self, parameter: Tensor) -> Tensor:
        """A tensor that broadcasts with the batch, as (rows, *its event); a scalar as it is."""
        if not parameter.dim():
            return parameter
        event = parameter.shape[parameter.dim() - self.event_dim :]
        return parameter.detach().expand(self.batch + event).reshape((self.rows, *event))

    def over_draws(self, tensor: Tensor) -> Tensor:
        """A tensor over samples, batch and maybe an event, as (samples, rows, *its event)."""
        return tensor.detach().reshape((self.samples, self.rows, *tensor.shape[self.cut :]))

    def each(
        self, by_row: Sequence[Tensor | None], draws: Sequence[Tensor | None]
    ) -> Iterator[tuple[At, list[Any], list[Any]]]:
        """For each block where it is, its parts of `by_row`, and its parts of `draws`.

        The parts are views, and can be written to where the tensors are contiguous. Some rows come
        with all their samples before the next rows.

        :param by_row: tensors as `over_rows` returns them.
        :param draws: tensors over samples, batch and maybe an event.
        """
        by_draw = [None if t is None else self.over_draws(t) for t in draws]
        many = max(1, BLOCK // self.size)
        step = max(1, many // self.rows)
        for row in range(0, self.rows, many):
            rows = slice(row, row + many)
            of_rows = [t[rows] if t is not None and t.dim() else t for t in by_row]
            for sample in range(0, self.samples, step):
                at = slice(sample, sample + step), rows
                yield at, of_rows, [None if t is None else t[at] for t in by_draw]


class _Kept(threading.local):
    """Flat memory by name and dtype, for each thread."""

    def __init__(self) -> None:
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}


_kept = _Kept()


def scratch(name: str, shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory that is overwritten by the next call with this name; 2 MiB of float32 a name.

    Rows with few entries lie across it, entry by entry, which makes sums over them fast; but not
    within `compiled`.
    """
    size = math.prod(shape)
    if size > BLOCK:
        return like.new_empty(shape)
    key = name, like.dtype
    if key not in _kept.flat or _kept.flat[key].numel() != BLOCK:
        with torch.inference_mode(False):  # so that it can be used outside of that mode too
            _kept.flat[key] = like.new_empty(BLOCK)
    flat = _kept.flat[key][:size]
    if not 1 < shape[-1] < SHORT or is_on():
        return flat.view(shape)
    return flat.view((shape[-1], *shape[:-1])).movedim(0, -1)
