# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Drawn floats, as a model reads them: bits, one-hot vectors, subsets, rankings and counts.

Their gradient is a derivative. It ends where they become integers or truth values, as in
``table[z.long()]`` and ``torch.where(z == 1, a, b)``. A `DrawnSample` knows its draw, and is
replaced there by the same numbers with outcomes (`pyro_gumbel.tensors.outcomes`), which go on.
A draw without outcomes, as a count, warns instead.

What is made of such a sample, as ``z[:2]`` or ``2 * z - 1``, is one too. It has the derivative of
the operation, and remembers it: where its derivative ends, the operation is applied again, to the
outcomes. Networks, and code of torch and Pyro, make plain tensors.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from operator import getitem
from typing import Any, ClassVar, Protocol

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.compiler import is_compiling

from pyro_gumbel._tracing import in_transform, version_of
from pyro_gumbel.tensors.later import Later
from pyro_gumbel.tensors.lost_gradient import is_asked_by_host, warn_of_lost_derivative
from pyro_gumbel.tensors.subclass import PlainTensor, as_plain, plain, uncompiled, without_rule

__all__ = ["DrawnSample", "Kind", "KnownDraw", "has_draws_among", "watched", "with_outcomes_of"]


class KnownDraw(Protocol):
    """What a sample knows of its draws."""

    is_complete: bool  # whether all draws that the sample is made of are known

    def with_outcomes(self, value: Tensor) -> Tensor:
        """The same numbers with outcomes; as they are if they would be too many."""

    def is_among(self, draws: Any) -> bool:
        """Whether one of them is one of these draws, of outcomes."""


class _EqualToTensor(torch._C._TensorMeta):
    """The metaclass of a tensor class that compares equal to `Tensor`.

    Code from `torch.compile` looks up the types of its arguments in a set of known types. Its first
    call fails for a type that is not in the set. With this metaclass our classes are found there as
    `Tensor`, for which the code was compiled. Functions of torch that are written in Python then
    miss the class beside a plain tensor. None of them has a rule here.
    """

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is Tensor

    def __hash__(cls) -> int:
        return hash(Tensor)


class Kind(Enum):
    """What an operation does with samples."""

    ASKS = "for something that does not depend on the numbers"
    MOVES = "the elements of its first argument"
    JOINS = "the elements of its arguments"
    CONVERTS = "its first argument to another dtype"
    COMPUTES = "other numbers of them"
    WRITES = "into its first argument"
    ENDS = "in a plain tensor"


class DrawnSample(PlainTensor, metaclass=_EqualToTensor):
    """A tensor of drawn floats that may have a gradient, or of what was made of them."""

    shape, dtype = without_rule("shape"), without_rule("dtype")
    requires_grad = without_rule("requires_grad")

    drawn_version: int  # to notice changes in place
    is_watched: bool = False  # whether something is done where the derivative ends
    is_computed: bool = False  # by an operation that does more than move elements
    draw: KnownDraw | None = None  # None for one without outcomes

    # Of functions: each takes the plain result of an operation and its arguments.
    rules: ClassVar[Mapping[Callable[..., Any], Callable[..., Any]]] = {}
    # What a function does with samples.
    kind_of: ClassVar[Callable[[Any], "Kind"]]

    @classmethod
    @uncompiled  # it would reuse the code compiled for one `func` for another
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for each in types:
            if each is Tensor or issubclass(each, DrawnSample):
                continue
            if issubclass(each, PlainTensor):
                return NotImplemented  # their rules are asked next
            return func(*as_plain(args), **as_plain(kwargs or {}))  # the other type decides
        with DisableTorchFunctionSubclass():
            result = func(*args, **kwargs) if kwargs else func(*args)
            kind = DrawnSample.kind_of(func)
            if kind is Kind.ASKS or is_compiling():
                return result
            rule = cls.rules.get(func)
            if rule is not None and (is_asked_by_host() or not _has_known_draw(args)):
                return rule(result, *args, **kwargs or {})
            if not torch.is_grad_enabled() or in_transform():
                return result
            return _followed(kind, func, args, kwargs or {}, result)


def watched(value: Tensor, draw: KnownDraw | None, *, is_computed: bool = False) -> Tensor:
    """Turn a tensor into a sample, in place, if it may have a gradient; and return it."""
    if not value.requires_grad or is_compiling() or in_transform():
        return value
    if type(value) is Tensor:
        # `as_subclass` would return a view, and `detach_` does not accept views.
        value.__class__ = DrawnSample
    if isinstance(value, DrawnSample):
        value.drawn_version, value.is_watched, value.draw = version_of(value), True, draw
        value.is_computed = is_computed
    return value


def _draw_of(value: DrawnSample) -> KnownDraw | None:
    """What an unchanged sample knows of its draws."""
    with DisableTorchFunctionSubclass():
        return value.draw if version_of(value) == value.drawn_version else None


def _has_known_draw(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], DrawnSample) and _draw_of(args[0]) is not None


def _samples_in(arguments: Any) -> list[DrawnSample]:
    if isinstance(arguments, DrawnSample):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = arguments.values()
    elif type(arguments) not in (tuple, list):
        return []
    return [sample for each in arguments for sample in _samples_in(each)]


# What is made of samples.


class _MadeOf(Later):
    """What an operation makes of the outcomes of draws, when it is needed.

    None if a sample was changed in place meanwhile.

    :ivar roots: what is known of the draws.
    """

    __slots__ = ("is_complete", "is_computed", "is_watched", "roots")

    def __init__(self, function: Callable[..., Any], *arguments: Any, computes: bool) -> None:
        self.roots: frozenset[KnownDraw] = frozenset()
        self.is_complete, self.is_watched, self.is_computed = True, False, computes
        super().__init__(None, function, *arguments)

    def _taken(self, argument: Any) -> Any:
        if isinstance(argument, DrawnSample):
            self.is_watched = self.is_watched or argument.is_watched
            self.is_computed = self.is_computed or argument.is_computed
            draw = argument.draw if version_of(argument) == argument.drawn_version else None
            if draw is None:
                self.is_complete = self.is_complete and not argument.is_watched
                return argument.plain
            if not isinstance(draw, _MadeOf):
                self.roots |= {draw}
                return argument
            argument = draw
        if isinstance(argument, _MadeOf):
            self.roots |= argument.roots
            self.is_complete = self.is_complete and argument.is_complete
        return argument

    def sample(self, result: Tensor) -> Tensor:
        """The result of the operation, as a sample, if it is no argument."""
        if type(result) is not Tensor or any(result is each for each, _ in self._before):
            return result
        return watched(result, self if self.roots else None, is_computed=self.is_computed)

    def entry(self, place: int) -> "_MadeOf":
        """One of several results."""
        return _MadeOf(getitem, self, place, computes=self.is_computed)

    def with_outcomes(self, value: Tensor) -> Tensor:
        """The same numbers with outcomes; as they are if a sample was changed."""
        made = self.made()
        return plain(value) if made is None else made

    def is_among(self, draws: Any) -> bool:
        """Whether one of the draws is one of these."""
        return any(root.is_among(draws) for root in self.roots)


def _followed(kind: Kind, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The result of an operation on samples: a sample, or with outcomes, or plain."""
    if func is Tensor.__iter__:
        return iter(_followed(Kind.MOVES, Tensor.unbind, args, {}, tuple(result)))
    if kind is Kind.WRITES or "out" in kwargs:
        _watch_changed(func, args, kwargs)
        return result
    if not _is_differentiable(result):
        return _where_it_ends(kind, func, args, kwargs, result)
    reads_another = kind in _OF_THE_FIRST and args and type(args[0]) is Tensor  # as `x.to(z)`
    if kind is Kind.ENDS or reads_another or is_asked_by_host():
        return result
    made = _MadeOf(_applied, func, args, kwargs, computes=kind is Kind.COMPUTES)
    if not made.is_watched:
        return result
    if isinstance(result, Tensor):
        return made.sample(result)
    return type(result)(made.entry(i).sample(each) for i, each in enumerate(result))


_OF_THE_FIRST = {Kind.MOVES, Kind.CONVERTS}
_WRITE_THE_SAME = {"__setitem__", "copy_", "index_put_", "index_copy_", "scatter_"}


def _watch_changed(func: Any, args: Any, kwargs: Any) -> None:
    """Watch a tensor that samples were written into, without their draws."""
    changed = kwargs.get("out", args[0] if args else None)
    if not isinstance(changed, Tensor) or is_asked_by_host():
        return
    if any(sample.is_watched for sample in _samples_in((args, kwargs))):
        watched(changed, None, is_computed=func.__name__ not in _WRITE_THE_SAME)


def _is_differentiable(result: Any) -> bool:
    """Whether a result may have a gradient, in all of its entries."""
    if isinstance(result, Tensor):
        return result.requires_grad or result.is_floating_point() or result.is_complex()
    if type(result) is torch.Size or not isinstance(result, tuple | list):
        return False
    return all(isinstance(each, Tensor) and _is_differentiable(each) for each in result)


def _applied(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation, on outcomes in place of samples."""
    args, kwargs = with_outcomes_of((args, kwargs))
    return func(*args, **kwargs)


# Where the derivative ends.


def with_outcomes_of(arguments: Any, draws: Any = None) -> Any:
    """The arguments of an operation, with outcomes of samples.

    :param draws: the draws that these samples are made of; None for any.
    """
    if isinstance(arguments, DrawnSample):
        draw = _draw_of(arguments)
        is_meant = draw is not None and (draws is None or draw.is_among(draws))
        return draw.with_outcomes(arguments) if is_meant else arguments
    if isinstance(arguments, dict):
        return {name: with_outcomes_of(each, draws) for name, each in arguments.items()}
    if type(arguments) in (tuple, list):
        return type(arguments)(with_outcomes_of(each, draws) for each in arguments)
    return arguments


def has_draws_among(arguments: Any, draws: Any) -> bool:
    """Whether there are samples among the arguments that are made of these draws."""
    known = map(_draw_of, _samples_in(arguments))
    return any(draw is not None and draw.is_among(draws) for draw in known)


# The names of operations that return Python's numbers, of which torch does not warn itself, and of
# those that only ask. Outside of a Pyro program, where a trace is looked at, the former only ask.
_NUMBERS = {
    *("item", "tolist", "__bool__", "__int__", "__index__", "__contains__", "is_nonzero"),
    *("equal", "allclose"),
}
_QUESTIONS = {
    *("isnan", "isinf", "isfinite", "isposinf", "isneginf", "signbit", "detach"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("randint_like", "new", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
}


def _may_end(name: str, result: Any) -> bool:
    """Whether the result of an operation of this name, or an entry of it, has no derivative."""
    if isinstance(result, Tensor):
        has_derivative = result.is_floating_point() or result.is_complex()
        return not has_derivative and name not in _QUESTIONS
    if name in _NUMBERS:
        return True
    return isinstance(result, tuple | list) and any(_may_end(name, each) for each in result)


def _where_it_ends(kind: Kind, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The result with outcomes, or else with a warning. Floats beside it have their derivative.

    What was computed of a draw may be compared without a warning, as in torch: the numbers in
    ``torch.where(x > 0, x, 0.1 * x)`` have the gradient that is wanted.
    """
    name = getattr(func, "__name__", repr(func))
    if not _may_end(name, result):
        return result
    samples = [each for each in _samples_in((args, kwargs)) if each.is_watched]
    if not samples or is_asked_by_host() or (name in _NUMBERS and not am_i_wrapped()):
        return result
    kept = _kept((args, kwargs))
    if kept is not None and name not in _NUMBERS:
        new = _with_indices(result, _again(func, kept))
        if new is not None:
            return new
    if kind is Kind.CONVERTS or not all(each.is_computed for each in samples):
        warn_of_lost_derivative(name, has_outcomes=kept is not None)
    return result


def _again(func: Any, arguments: Any) -> Any:
    args, kwargs = arguments
    with torch._C._EnableTorchFunction():
        return func(*args, **kwargs)


def _with_indices(result: Any, new: Any) -> Any:
    """A result with the outcomes of its integers and truth values; None if they have none."""
    if isinstance(new, Tensor):
        return new if isinstance(new, PlainTensor) else None
    entries = [old if old.requires_grad else each for old, each in zip(result, new, strict=True)]
    lost = any(type(each) is Tensor and not each.requires_grad for each in entries)
    return None if lost else type(result)(entries)


def _kept(arguments: Any) -> Any:
    """The arguments with outcomes in place of samples; None if one of them has none."""
    if isinstance(arguments, DrawnSample):
        draw = _draw_of(arguments)
        if draw is None or not draw.is_complete:
            return None
        new = draw.with_outcomes(arguments)
        return new if isinstance(new, PlainTensor) and not isinstance(new, DrawnSample) else None
    if isinstance(arguments, dict):
        kept = _kept(tuple(arguments.values()))
        return None if kept is None else dict(zip(arguments, kept, strict=True))
    if type(arguments) in (tuple, list):
        entries = [_kept(each) if _samples_in(each) else each for each in arguments]
        lost = any(k is None and e is not None for k, e in zip(entries, arguments, strict=True))
        return None if lost else type(arguments)(entries)
    return arguments
