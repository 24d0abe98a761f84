# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The tensors that categorical distributions draw, and what is made of them, with outcomes."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import in_eager_mode, in_transform, version_of
from pyro_gumbel.tensors.drawn_sample import DrawnSample, has_draws_among, with_outcomes_of
from pyro_gumbel.tensors.lost_gradient import warn_of_lost_gradient
from pyro_gumbel.tensors.outcomes import CategoricalDraw, Outcomes, with_gradient
from pyro_gumbel.tensors.subclass import (
    BACKWARD_PASSES,
    PlainTensor,
    as_plain,
    backward_pass,
    plain,
    uncompiled,
    without_rule,
)

__all__ = [
    "MOST",
    "IndexTensor",
    "OutcomeTensor",
    "as_derivative",
    "carrying",
    "changes_of",
    "collapsed",
    "drawn_index",
    "draws_in",
    "outcomes_of",
    "varies",
]

MOST = 2**26  # outcomes of a tensor


class OutcomeTensor(PlainTensor):
    """A tensor that knows what it would have been for each category of a draw.

    It is made of an `IndexTensor`, as ``table[z]``, ``z.float()`` and ``z == 1``. `with_gradient`
    in `pyro_gumbel.tensors.outcomes` has the formula of its gradient.
    """

    shape, dtype = without_rule("shape"), without_rule("dtype")

    compares_floats = False  # for truth values: whether they are of floats, and so may end
    _outcomes: Sequence[Outcomes]
    _made_version: int  # to notice changes in place
    _rule: Callable[..., Any]  # gives the result of an operation its outcomes

    @classmethod
    @uncompiled  # it would reuse the code compiled for one `func` for another
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not _are_known(tuple(types)):
            args, kwargs = collapsed((args, kwargs or {}))
            if varies((args, kwargs)):
                warn_of_lost_gradient(getattr(func, "__name__", repr(func)))
            return func(*as_plain(args), **as_plain(kwargs))  # the other type decides
        if len(types) > 1 and any(issubclass(each, DrawnSample) for each in types):
            draws = draws_in((args, kwargs))
            if has_draws_among((args, kwargs), draws):
                args, kwargs = with_outcomes_of((args, kwargs or {}), draws)
                return func(*args, **kwargs)
        if func in BACKWARD_PASSES:  # the loss is linear in what it is called with
            with torch.enable_grad():
                args, kwargs = collapsed((args, kwargs or {}), linear=True)
            return backward_pass(func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return cls._rule(func, args, kwargs or {})

    @property
    @uncompiled
    def kept(self) -> Sequence[Outcomes]:
        """The outcomes; none if the numbers were changed in place."""
        return self._outcomes if changes_of(self) == self._made_version else ()

    @property
    def draws(self) -> set[CategoricalDraw]:
        """Those of all outcomes."""
        return draws_in(list(vars(self).get("_outcomes", ())))

    @uncompiled
    def keep(self, outcomes: Sequence[Outcomes]) -> None:
        """Take these for the outcomes of the present numbers."""
        self._outcomes, self._made_version = outcomes, changes_of(self)

    def collapsed(self, *, linear: bool) -> Tensor:
        """The same numbers with a gradient in place of the outcomes, if they are floats."""
        if not (self.is_floating_point() or self.is_complex()):
            return self
        outcomes = outcomes_of(self)
        return with_gradient(self.plain, outcomes, linear=linear) if outcomes else self.plain


@functools.cache
def _are_known(types: tuple[type, ...]) -> bool:
    """Whether no other class of tensors takes part in an operation."""
    return all(each is Tensor or issubclass(each, PlainTensor) for each in types)


def draws_in(arguments: Any) -> set[CategoricalDraw]:
    """The draws of all outcomes among the arguments of an operation."""
    if isinstance(arguments, OutcomeTensor):
        return arguments.draws
    if isinstance(arguments, Outcomes):
        return set(arguments.draws)
    if isinstance(arguments, dict):
        arguments = arguments.values()
    elif type(arguments) not in (tuple, list):
        return set()
    return {draw for each in arguments for draw in draws_in(each)}


def changes_of(value: Tensor) -> int:
    """How often the numbers were changed in place, not asked of the rules, which takes longer."""
    with torch._C.DisableTorchFunctionSubclass():
        return version_of(value)


class IndexTensor(OutcomeTensor):
    r"""The drawn category of each element, as an integer tensor whose lookups have a gradient.

    `IndexStraightThrough` draws it. Its numbers are those of a plain integer tensor, and so is the
    result of every operation, exactly. What is made of it keeps its outcomes besides: what it would
    have been for every other category. With D the one-hot vectors of the draw and t(j) the outcomes
    of a value, the gradient is that of

    .. math:: \sum_j D_j \, t(j),

    which has the same value. It is linear in D, and so exact on average over draws, whatever led
    from the category to t. The outcomes of ``table[z]`` are the table.

    >>> table = torch.tensor([1.0, 4.0, 9.0])
    >>> logits = torch.zeros(3, requires_grad=True)
    >>> z = IndexStraightThrough(logits=logits).rsample()
    >>> z.dtype, table[z].requires_grad
    (torch.int64, True)

    **What has the gradient.**

    - Every lookup: ``table[z]``, with z alone or among slices, numbers, None, ``...``, masks,
      lists, integer tensors and other index tensors, in any position; `Vindex`; `gather`, `take`,
      `take_along_dim`, `index_select`, `embedding` and `one_hot`.
    - Elementwise operations: ``z == k``, ``z == w``, ``~``, ``&``, `torch.where`; ``z.float()``,
      ``1.5 * z``, ``z / 2``. Integers and truth values, as ``z + 1``, ``K * z + w`` or
      ``int_table[z]``, are again index tensors or such.
    - What moves elements: indices and slices of z itself, iteration, `reshape`, `expand`,
      `unsqueeze`, `stack`, `cat`, `clone`, `to` and their kind.
    - Changes of z in place by an elementwise operation, as ``z += 1``.
    - `log_prob` of Pyro's `Categorical` and of `IndexStraightThrough`; inside of
      `relaxed(model)`, of every distribution whose parameters are made of z.

    **Where floats have the derivative.** `linear`, convolutions and other functions that mix
    elements take a plain tensor, and so does a function of a sum over more than 16 elements of z
    that is not linear in it. Its gradient is the derivative at what was drawn, passed on by the
    estimator of the distribution. The same holds where a tensor would have more than 2^26 outcomes,
    with a warning; under the transforms of `torch.func`; and with
    ``relaxed(model, outcomes=False)``.

    **What warns**, since its result cannot have a gradient: masks made of z, as ``x[z == 1]``;
    writing, as ``t[z] = v``; counting, as `bincount`; sums of integers; ``int(z)``, `item`,
    ``range(z)``, numpy, and ``if z == 1``; and every other operation that is not named here. The
    warning says what to write. ``z.detach()`` is plain and says that no gradient is wanted. Nothing
    warns under `torch.no_grad`, nor where Pyro and torch check their arguments.

    **What torch does not tell us of**, and so does not warn: z as a number among the arguments of
    a function, as in ``t.select(0, z)``, ``torch.full(shape, z)`` and
    ``torch.arange(z)``; ``torch.tensor(z)``; z as a key of a dict; and z as an argument of a
    function under `torch.vmap` (a draw inside of the function is fine).

    It prints, copies and is stored as a plain tensor. A second derivative raises an error; under
    the transforms of `torch.func` it does not, but holds the other draws of each operation
    constant. `torch.compile` breaks its graph at the draw and at each operation above; with
    ``fullgraph=True`` it raises an error.
    """


@uncompiled  # a compiled graph has plain tensors only, without this gradient
def drawn_index(
    one_hot: Tensor, index: Tensor, probs: Callable[[], Tensor] | None = None
) -> Tensor:
    """The index of each one-hot vector, with the gradient of the vectors if they may have one.

    :param probs: computes the probabilities of the categories; None where they are not known.
        Floats then have no outcomes, but the derivative in the one-hot vectors.
    """
    if in_eager_mode() and not one_hot.requires_grad:
        return index
    return carrying(index, [CategoricalDraw(one_hot, probs).outcomes])


def outcomes_of(value: Any) -> Sequence[Outcomes]:
    """The outcomes of a tensor; none for other things, and none where it was changed in place."""
    if not isinstance(value, OutcomeTensor):
        return ()
    if changes_of(value) != value._made_version:
        warn_of_lost_gradient("a change in place")
        return ()
    return value._outcomes


def carrying(value: Tensor, outcomes: Sequence[Outcomes]) -> Tensor:
    """The same numbers with outcomes: as a gradient where they are floats."""
    if not outcomes:
        return value
    is_float = value.is_floating_point() or value.is_complex()
    if is_float and not _are_kept(outcomes):
        return with_gradient(plain(value), outcomes, linear=False)
    if not isinstance(value, OutcomeTensor):
        is_index = not is_float and value.dtype != torch.bool
        value = value.as_subclass(IndexTensor if is_index else OutcomeTensor)
    value.keep(outcomes)
    return value


def _are_kept(outcomes: Sequence[Outcomes]) -> bool:
    """Whether floats keep these outcomes; with a warning if they would be too many.

    A transform of torch reads its results behind our back, so they have the derivative there.
    """
    if in_transform() or not all(draw.keeps_outcomes for each in outcomes for draw in each.draws):
        return False
    most = max(each.table.numel() for each in outcomes)
    if most <= MOST:
        return True
    warnings.warn(
        f"expected at most {MOST:,} outcomes of a tensor made of categorical draws, got {most:,}, "
        "and took the derivative in their place, which is biased; write smaller batches of data, "
        "or relaxed(model, outcomes=False)",
        stacklevel=2,
    )
    return False


def as_derivative(value: Tensor) -> Tensor:
    """The same numbers, of which floats have no outcomes, but the derivative."""
    outcomes = [
        replace(each, draws=tuple(draw.as_derivative() for draw in each.draws))
        for each in outcomes_of(value)
    ]
    return carrying(plain(value), outcomes)


def collapsed(value: Any, *, linear: bool = False) -> Any:
    """The arguments of an operation, with gradients in place of the outcomes of floats.

    :param linear: whether the loss is linear in them.
    """
    if isinstance(value, OutcomeTensor):
        return value.collapsed(linear=linear)
    if isinstance(value, dict):
        return {name: collapsed(each, linear=linear) for name, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(collapsed(each, linear=linear) for each in value)
    return value


def varies(argument: Any) -> bool:
    """Whether there is a tensor with outcomes in an argument."""
    if isinstance(argument, tuple | list):
        return any(map(varies, argument))
    if isinstance(argument, dict):
        return any(map(varies, argument.values()))
    return isinstance(argument, OutcomeTensor)
