# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""What a tensor would have been for every category of the draws that it was made of.

Let D be the one-hot vectors of a categorical draw, in the graph of its parameters, and let a number
v be made of element e of the draw: v = t(i), where i is the drawn category. Its *outcomes* are the
numbers t(0), ..., t(K - 1). They give v a gradient:

.. math:: v = t(i) + \sum_j (D_{ej} - \bar D_{ej}) \, t(j),

with :math:`\bar D` equal to D and held constant. The sum is 0. Its derivative in D is the table of
outcomes, as that of the product :math:`\langle D_e, t \rangle`, which has the same value.

**Why it is exact.** The sum :math:`\sum_j D_{ej} \, t(j)` is linear in D, whatever function led
from the category to t. The expectation of D is p, the probabilities, so the expectation of v is
:math:`\sum_j p_j \, t(j)`, and its derivative in p is the table.

Let :math:`z_1, \dots, z_n` be independent draws and f a loss. Its expectation has the derivative

.. math:: \frac{\partial}{\partial p_{ij}} E f = E f(z_1, \dots, z_i = j, \dots, z_n)

in the probability of category j of draw i, with the expectation over the *other* draws. The outcome
of f for this category is f with draw i set to j and the others as they were drawn. As the draws are
independent, its expectation is the derivative. The outcomes of a draw depend on the other draws
only. Where these are not in its factors, as in a mixture, the gradient has no noise.

A tensor may depend on several draws, and on several elements of one. It has one `Outcomes` for each
set of elements that varies on its own, the others held at what was drawn.

**Shapes.** Of a tensor of shape S, the elements have a shape that broadcasts to S: 1 along the
dimensions on which the element does not depend. The table has a shape that broadcasts to (K,) + S.
Both have as many dimensions as these.

An outcome of -inf or NaN counts as 100 less than the least finite outcome of its element, so that
the gradient points away from an impossible category. One of inf counts as 100 more than the
greatest.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_gumbel._tracing import in_eager_mode, without_hooks
from pyro_gumbel.ops.autograd import zero_with_gradient

__all__ = [
    "NO_ELEMENT",
    "CategoricalDraw",
    "Outcomes",
    "are_same",
    "of_every_category",
    "with_gradient",
    "without_gradient",
]

NO_ELEMENT = -1  # where a tensor does not depend on a draw
BELOW = 100.0  # nats from the least finite outcome to one that is impossible

_numbers = itertools.count()  # of draws


class CategoricalDraw:
    """One draw of a categorical distribution.

    :ivar one_hot: its one-hot vectors, over a last dimension, with the gradient of an estimator.
    :ivar keeps_outcomes: whether floats that are made of the draw have outcomes. If not, they have
        the derivative in the one-hot vectors.
    :ivar first: the number of its first element; no two elements of a process have the same.
    :ivar elements: the numbers of all elements.
    """

    def __init__(self, one_hot: Tensor, probs: Callable[[], Tensor] | None = None) -> None:
        self.one_hot = one_hot
        self._probs = probs
        self.keeps_outcomes = probs is not None
        batch = one_hot.shape[:-1]
        self.size = batch.numel()
        self.first = (next(_numbers) & 0x7FFFFFFF) << 32
        ends = self.first, self.first + self.size
        self.elements = torch.arange(*ends, device=one_hot.device).reshape(batch)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same draw, with outcomes of floats or without."""
        return isinstance(other, CategoricalDraw) and other.first == self.first

    def __hash__(self) -> int:
        return hash(self.first)

    @functools.cached_property
    def probs(self) -> Tensor:
        """The probabilities of the categories, of the shape of the one-hot vectors."""
        if self._probs is None:
            return self.one_hot
        with without_hooks():  # they are kept
            return self._probs().expand(self.one_hot.shape)

    def as_derivative(self) -> "CategoricalDraw":
        """The same draw, without outcomes of floats."""
        new = copy.copy(self)
        new.keeps_outcomes = False
        return new

    @property
    def outcomes(self) -> "Outcomes":
        """Those of the drawn categories themselves."""
        one_hot = self.one_hot
        shape = one_hot.shape[-1:] + (1,) * (one_hot.dim() - 1)
        table = torch.arange(one_hot.shape[-1], device=one_hot.device).reshape(shape)
        return Outcomes((self,), self.elements, table, is_category=True)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What a tensor would have been for every category of some elements.

    :ivar draws: that have these elements, all of K categories.
    :ivar elements: the element on which each entry depends; `NO_ELEMENT` for none.
    :ivar table: the value for each category, over a first dimension of size K.
    :ivar is_category: whether the value of a category is its number, for all elements.
    """

    draws: tuple[CategoricalDraw, ...]
    elements: Tensor
    table: Tensor
    is_category: bool = False

    @property
    def num_categories(self) -> int:
        return self.table.shape[0]

    @property
    def is_uniform(self) -> bool:
        """Whether the value of a category is the same for all elements."""
        return self.table.numel() == self.table.shape[0]

    @property
    def is_whole(self) -> bool:
        """Whether the elements are those of one draw, each once and in order."""
        mine, theirs = self.elements, self.draws[0].elements
        if len(self.draws) > 1 or mine.numel() != theirs.numel() or not mine.is_contiguous():
            return False
        return mine.data_ptr() == theirs.data_ptr()

    def aligned(self, rank: int) -> "Outcomes":
        """The same for a tensor of more dimensions, on the left."""
        missing = rank - self.elements.dim()
        if not missing:
            return self
        elements = self.elements.reshape((1,) * missing + self.elements.shape)
        table = self.table
        table = table.reshape(table.shape[:1] + (1,) * missing + table.shape[1:])
        return Outcomes(self.draws, elements, table, self.is_category)


def are_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors name the same elements."""
    if a is b:
        return True
    if a.shape != b.shape:
        return False
    try:
        return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)
    except RuntimeError:  # under vmap
        return False


def without_gradient() -> Any:
    """The mode in which outcomes are computed: without a graph, but for functorch transforms."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and not in_eager_mode())


def of_every_category(function: Callable[..., Any], *tables: Any) -> Any:
    """What a function of some tensors would have been, for every category.

    :param function: of tensors, or of dicts of tensors; returns a tensor or a tuple of tensors.
    :param tables: what these would have been, over a first dimension.
    """
    if not torch.jit.is_tracing():
        with _slow_batching_allowed():
            return torch.vmap(function)(*tables)
    # A trace does not see what `torch.vmap` does.
    first = tables[0] if isinstance(tables[0], Tensor) else next(iter(tables[0].values()))
    results = [function(*(_of_category(each, k) for each in tables)) for k in range(len(first))]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(map(torch.stack, zip(*results, strict=True)))


@contextmanager
def _slow_batching_allowed() -> Iterator[None]:
    """`torch.vmap` does not warn of operations that it applies one by one."""
    torch_: Any = torch._C
    before = torch_._debug_only_are_vmap_fallback_warnings_enabled()
    torch_._functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        torch_._functorch._set_vmap_fallback_warning_enabled(before)


def _of_category(table: Any, category: int) -> Any:
    if isinstance(table, dict):
        return {name: each[category] for name, each in table.items()}
    return table[category]


def with_gradient(value: Tensor, outcomes: Sequence[Outcomes], *, linear: bool) -> Tensor:
    """The same numbers, with the gradient of the outcomes in the draws.

    :param linear: whether the loss is linear in the numbers, as a log density is: the gradient then
        goes to the probabilities, and else to the one-hot vectors, with that of the estimator.
    """
    if not in_eager_mode():
        return _with_operations(value, outcomes, linear)
    one_hots = [one_hot for each in outcomes for one_hot in _sources(each, linear)]
    if not torch.is_grad_enabled() or not any(each.requires_grad for each in one_hots):
        return value
    tables = [each.table for each in outcomes]
    return _WithGradient.apply(value, outcomes, *tables, *one_hots)


def _sources(outcomes: Outcomes, linear: bool) -> list[Tensor]:
    """What has the gradient of outcomes, one tensor a draw."""
    return [draw.probs if linear else draw.one_hot for draw in outcomes.draws]


def _with_operations(value: Tensor, outcomes: Sequence[Outcomes], linear: bool) -> Tensor:
    """The formula of this module, literally."""
    for each in outcomes:
        zeros = [zero_with_gradient(one_hot) for one_hot in _sources(each, linear)]
        rows = torch.cat([zero.reshape(-1, each.num_categories) for zero in zeros])
        rows = torch.cat([rows, torch.zeros_like(rows[:1])])
        of_element = rows[_rows_of(each.elements, each.draws)].movedim(-1, 0)
        table = _finite(each.table.to(rows.dtype))
        value = value + (of_element * table).sum(0).to(value.dtype)
    return value


def _rows_of(elements: Tensor, draws: Sequence[CategoricalDraw]) -> Tensor:
    """Where each element is among the rows of all draws, and one row more for no element."""
    end = sum(draw.size for draw in draws)
    rows, before = torch.full_like(elements, end), 0
    for draw in draws:
        own = (elements >= draw.first) & (elements < draw.first + draw.size)
        rows = torch.where(own, elements - draw.first + before, rows)
        before += draw.size
    return rows


def _finite(table: Tensor) -> Tensor:
    """The outcomes, with those that are -inf or NaN below the finite ones, and inf above."""
    if not table.numel() or (in_eager_mode() and table.device.type == "cpu" and _is_finite(table)):
        return table
    finite = table.isfinite()
    least = torch.where(finite, table, math.inf).amin(0)
    below = torch.where(least.isfinite(), least - BELOW, 0.0)
    greatest = torch.where(finite, table, -math.inf).amax(0)
    above = torch.where(greatest.isfinite(), greatest + BELOW, 1.0)
    return torch.where(finite, table, torch.where(table == math.inf, above, below))


def _is_finite(table: Tensor) -> bool:
    return math.isfinite(table.sum().item())


class _WithGradient(Function):
    """The numbers of a tensor, with the gradient of outcomes in the draws."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, outcomes: Sequence[Outcomes], *tensors: Tensor) -> Tensor:
        count = len(outcomes)
        ctx.save_for_backward(*tensors[:count])
        ctx.sources = value, *tensors[count:]  # which the user may change in place
        ctx.parts = [(each.elements, each.is_whole, each.draws) for each in outcomes]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        tables = ctx.saved_tensors
        with torch.no_grad(), _without_autocast(gradient.device.type):
            of_draws = _WithGradient._of_draws(ctx, tables, gradient)
        if torch.is_grad_enabled():
            sources = (gradient, *ctx.sources)
            of_draws = [None if each is None else _Once.apply(each, *sources) for each in of_draws]
        return gradient, None, *[None] * len(tables), *of_draws

    @staticmethod
    def _of_draws(ctx: Any, tables: Sequence[Tensor], gradient: Tensor) -> list[Tensor | None]:
        wanted = iter(ctx.needs_input_grad[2 + len(tables) :])
        of_draws: list[Tensor | None] = []
        for (elements, is_whole, draws), table in zip(ctx.parts, tables, strict=True):
            needs = [next(wanted) for _ in draws]
            if not any(needs):
                of_draws += [None] * len(draws)
                continue
            one_hot = draws[0].one_hot
            rows = _of_elements(gradient, elements, table, one_hot.dtype)
            if is_whole:
                of_draws.append(rows.reshape(one_hot.shape).to(one_hot.device, one_hot.dtype))
            else:
                of_draws += _of_draws(rows, elements, draws)
        return of_draws


class _Once(Function):
    """A derivative that cannot be taken again, since outcomes are constants in it.

    It depends on the sources: torch would pass over an error that is on the way to no parameter.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise RuntimeError(
            "expected a first derivative of what an index tensor was used for, got a second one; "
            "draw one-hot vectors instead, and write one_hot @ table for table[z]"
        )


def _without_autocast(device: str) -> Any:
    """Products in the dtype of their arguments."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _of_elements(gradient: Tensor, elements: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient in the one-hot vectors: of shape elements.shape + (K,).

    .. math:: u_{ej} = \\sum_{s: e(s) = e} u_s \\, t_s(j)
    """
    dtype = torch.promote_types(dtype, torch.float32)
    table, gradient = _finite(table.to(dtype)), gradient.to(dtype)
    shape = *elements.shape, table.shape[0]
    kept = [
        size != 1 or full == 1 for size, full in zip(elements.shape, gradient.shape, strict=True)
    ]
    summed = [d for d, keep in enumerate(kept) if not keep]
    if not summed:
        rows = gradient * table
    elif all(table.shape[1 + d] == 1 for d, keep in enumerate(kept) if keep):
        rest = [d for d, keep in enumerate(kept) if keep]
        u = gradient.permute(*rest, *summed).flatten(len(rest))
        sizes = [1 if keep else n for keep, n in zip(kept, gradient.shape, strict=True)]
        t = table.expand(-1, *sizes)
        return (u @ t.flatten(1).T).reshape(shape)
    else:
        letters = "abcdefghijklmnopqrstuvwxy"[: gradient.dim()]
        result = "".join(letters[d] for d, keep in enumerate(kept) if keep)
        rows = torch.einsum(f"{letters},z{letters}->z{result}", gradient, table)
    return rows.movedim(0, -1).reshape(shape)


def _of_draws(rows: Tensor, elements: Tensor, draws: Sequence[CategoricalDraw]) -> list[Tensor]:
    """The gradient in the one-hot vectors of each draw."""
    k = rows.shape[-1]
    rows, elements = rows.reshape(-1, k), elements.flatten().to(rows.device)
    result = []
    for draw in draws:
        total = rows.new_zeros(draw.size + 1, k)
        at = elements - draw.first
        at = torch.where((at >= 0) & (at < draw.size), at, draw.size)
        total = total.index_add_(0, at, rows)[: draw.size]
        one_hot = draw.one_hot
        result.append(total.reshape(one_hot.shape).to(one_hot.device, one_hot.dtype))
    return result
