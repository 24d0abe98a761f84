# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How an operation of torch is applied to drawn samples.

The result is that of plain tensors, with the derivative. It is a `DrawnSample` too, which remembers
the operation. Where the derivative ends, as in ``(2 * z - 1).long()``, all operations since the
draw are applied again, to its outcomes: these go on.

- What an operation *moves* or *computes*, as ``z[:2]`` and ``2 * z``, is a sample.
- The layers of networks make plain tensors. Their outcomes would be expensive.
- Functions without a rule for outcomes may be random, and are not applied again. What they make is
  a sample without a draw. So is a tensor that samples were written into.
- Where torch and Pyro call an operation, its result is plain, and nothing warns.
"""

import functools
from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.compiler import is_compiling

from pyro_gumbel._tracing import in_transform, version_of
from pyro_gumbel.tensors.deferred import DeferredTensor
from pyro_gumbel.tensors.drawn_sample import (
    DrawnSample,
    KnownDraw,
    draw_of,
    watched,
    with_outcomes_of,
)
from pyro_gumbel.tensors.index_tensor import OutcomeTensor, carrying
from pyro_gumbel.tensors.later import Later
from pyro_gumbel.tensors.lost_gradient import (
    is_distribution,
    is_host,
    warn_of_lost_derivative,
    who_asks,
)
from pyro_gumbel.tensors.operations import asks, is_in_place, is_layer, rule_of
from pyro_gumbel.tensors.rules import (
    broadcasting_rule,
    converting_rule,
    gather_rule,
    getitem_rule,
    index_select_rule,
    joining_rule,
    moving_like_rule,
    moving_rule,
    take_along_dim_rule,
    take_rule,
)
from pyro_gumbel.tensors.subclass import plain

__all__: list[str] = []


def _apply(rule: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation on samples: a sample, or with outcomes, or plain.

    :param rule: of the class, for the result of an operation on a sample without outcomes, and in
        the code of torch and Pyro.
    """
    result = func(*args, **kwargs)
    if rule is None and not _may_be_watched(args, kwargs):
        return result
    kind = _kind_of(func)
    if kind is _Kind.ASKS or is_compiling():
        return result
    if rule is not None and (is_host(who_asks()[0]) or not _has_known_draw(args)):
        return rule(result, *args, **kwargs)
    if kind is _Kind.IS_LAYER or not torch.is_grad_enabled() or in_transform():
        return result
    return _followed(kind, func, args, kwargs, result)


DrawnSample._apply = staticmethod(_apply)


def _may_be_watched(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether one of the arguments is a watched sample, or may hold one."""
    for each in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(each, DrawnSample):
            if each.is_watched:
                return True
        elif isinstance(each, tuple | list | dict):
            return True
    return False


def _has_known_draw(args: tuple[Any, ...]) -> bool:
    draw = draw_of(args[0]) if args and isinstance(args[0], DrawnSample) else None
    return draw is not None and draw.is_complete


def _followed(kind: str, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The plain result of an operation, with what is known of its draws."""
    if kind in _OF_THE_FIRST and args and type(args[0]) is Tensor:
        return result  # as of `x.to(z)`
    name = getattr(func, "__name__", repr(func))
    if kwargs.get("out") is not None:
        kind = _Kind.WRITES
    is_step = name.strip("_") in _STEPS or bool(kwargs.get("rounding_mode"))
    ends = is_step or (kind is not _Kind.JOINS and _may_end(name, result))
    if not (ends or kind is _Kind.WRITES or _may_go_on(result)):
        return result
    module, caller = who_asks()
    by_host = is_host(module)
    if by_host and not _is_followed_in_host(kind, ends, module, caller):
        return result
    made = _MadeOf(_applied, func, args, kwargs, computes=kind not in _THAT_MOVE)
    if not made.is_watched:
        return result
    if kind is _Kind.WRITES:
        _watch_changed(name, args, kwargs, is_step)
        return result
    if ends:
        return _with_integers(kind, name, result, made, warns=not by_host)
    if kind is _Kind.UNKNOWN:
        made.forget()
    if isinstance(result, Tensor):
        return made.sample(result)
    given = args if kind is _Kind.JOINS else None  # as of `broadcast_tensors`
    entries = [
        each if given and not isinstance(given[i], DrawnSample) else made.entry(i).sample(each)
        for i, each in enumerate(result)
    ]
    return type(result)(entries)


def _is_followed_in_host(kind: str, ends: bool, module: str, caller: str) -> bool:
    """Whether what torch or Pyro make of a sample is known to be made of it.

    What they only move may come back to the user, as may a draw of a guide that is made of another
    one. Distributions convert and compare their values.
    """
    if ends:
        return is_distribution(module)
    if kind in _THAT_MOVE or module.startswith(_TRANSFORMS):
        return True
    return caller in _DRAW and is_distribution(module)


_DRAW = {"rsample", "_batch_mv"}
_TRANSFORMS = ("torch.distributions.transforms", "pyro.distributions.transforms")


def _watch_changed(name: str, args: Any, kwargs: Any, is_step: bool) -> None:
    """Watch a tensor that samples were written into, without their draws."""
    changed = kwargs.get("out")
    changed = args[0] if changed is None and args else changed
    if not isinstance(changed, Tensor):
        return
    if is_step or not changed.requires_grad:
        warn_of_lost_derivative(name, has_outcomes=False)
    for each in (changed, changed._base):
        if each is not None:
            watched(each, None, is_computed=name not in _WRITE_THE_SAME)


def _may_go_on(result: Any) -> bool:
    """Whether a result, or one of several, has a gradient."""
    if isinstance(result, Tensor):
        return result.requires_grad
    return isinstance(result, tuple | list) and any(map(_may_go_on, result))


class _MadeOf(Later):
    """What an operation makes of the outcomes of draws, when it is needed.

    None if a sample was changed in place meanwhile.

    :ivar roots: what is known of the draws.
    """

    __slots__ = ("computes", "is_complete", "is_watched", "of_computed", "roots")

    def __init__(self, function: Callable[..., Any], *arguments: Any, computes: bool) -> None:
        self.roots: frozenset[KnownDraw] = frozenset()
        self.is_complete, self.is_watched, self.of_computed = True, False, False
        self.computes = computes
        super().__init__(None, function, *arguments)

    def _taken(self, argument: Any) -> Any:
        if isinstance(argument, DrawnSample):
            if not argument.requires_grad:  # after `detach_`
                return argument.plain
            self.is_watched = self.is_watched or argument.is_watched
            self.of_computed = self.of_computed or argument.is_computed
            draw = argument.draw if version_of(argument) == argument.drawn_version else None
            if draw is None:
                self.is_complete = self.is_complete and not argument.is_watched
                return argument.plain
            if not isinstance(draw, _MadeOf):
                self.is_complete = self.is_complete and draw.is_complete
                self.roots |= {draw}
                return argument
            argument = draw
        if isinstance(argument, _MadeOf):
            self.is_watched = self.is_watched or argument.is_watched
            self.roots |= argument.roots
            self.is_complete = self.is_complete and argument.is_complete
        return argument

    def sample(self, result: Tensor) -> Tensor:
        """The result of the operation, as a sample, if it is no argument."""
        if type(result) is not Tensor or any(result is each for each, _ in self._before):
            return result
        is_computed = self.computes or self.of_computed
        return watched(result, self if self.roots else None, is_computed=is_computed)

    def forget(self) -> None:
        """Take none of the draws for known."""
        self.roots = frozenset()

    def entry(self, place: int) -> "_MadeOf":
        """One of several results."""
        return _MadeOf(getitem, self, place, computes=self.computes or self.of_computed)

    def with_outcomes(self, value: Tensor) -> Tensor:
        """The same numbers with outcomes; as they are if a sample was changed."""
        made = self.made()
        return plain(value) if made is None else made

    def is_among(self, draws: Any) -> bool:
        """Whether one of the draws is one of these."""
        return any(root.is_among(draws) for root in self.roots)


def _applied(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation, on outcomes in place of samples."""
    args, kwargs = with_outcomes_of((args, kwargs))
    return func(*args, **kwargs)


# Where the derivative ends.


def _may_end(name: str, result: Any) -> bool:
    """Whether the result of an operation of this name, or an entry of it, has no derivative."""
    if isinstance(result, Tensor):
        return not result.requires_grad and name not in _QUESTIONS
    if isinstance(result, tuple | list) and name not in _NUMBERS:
        return any(map(_is_integer, result))
    return name in _NUMBERS and am_i_wrapped()


def _is_integer(value: Any) -> bool:
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _with_integers(kind: str, name: str, result: Any, made: _MadeOf, *, warns: bool) -> Any:
    """The result, with the outcomes of its integers and truth values, or else with a warning.

    Floats beside them have their derivative.
    """
    has_outcomes = made.is_complete and bool(made.roots)
    if has_outcomes and kind is not _Kind.UNKNOWN:
        new = made.made()
        if isinstance(result, tuple | list):
            entries = [
                _of_numbers(each, new[i]) if _is_integer(each) else made.entry(i).sample(each)
                for i, each in enumerate(result)
            ]
            if not any(_is_integer(each) and type(each) is Tensor for each in entries):
                return type(result)(entries)
        elif isinstance(new, OutcomeTensor):
            new = _of_numbers(result, new)
            new.compares_floats = made.of_computed
            return new
    is_silent = made.of_computed and name in _NUMBERS - _TO_AN_INTEGER  # as `loss.item()`
    if warns and not is_silent and (am_i_wrapped() or kind is _Kind.CONVERTS):
        warn_of_lost_derivative(name, has_outcomes=has_outcomes)
    if isinstance(result, Tensor):
        watched(result, None, is_computed=True)  # a step, which may be cast yet
    return result


def _of_numbers(result: Tensor, new: Any) -> Any:
    """The outcomes of a tensor that was made again, for the numbers that were there.

    They are the same, except under another autocast or where a tensor was changed unseen by torch.
    """
    if type(new) is DeferredTensor:
        new, later = result.as_subclass(DeferredTensor), new.later
        new.defer(later)
        return new
    is_made = isinstance(new, OutcomeTensor) and not new.is_floating_point()
    return carrying(result, new.kept) if is_made else new


# Which operation does what.


class _Kind:
    """What an operation does with samples."""

    ASKS = "for something that does not depend on the numbers"
    MOVES = "the elements of its first argument"
    JOINS = "the elements of its arguments"
    CONVERTS = "its first argument to another dtype"
    COMPUTES = "other numbers of them"
    WRITES = "into its first argument"
    IS_LAYER = "of a network"
    UNKNOWN = "and perhaps random"


_OF_THE_FIRST = {_Kind.MOVES, _Kind.CONVERTS}
_THAT_MOVE = {_Kind.MOVES, _Kind.CONVERTS, _Kind.JOINS}

_KINDS: dict[Any, str] = {
    **dict.fromkeys((moving_rule, moving_like_rule, getitem_rule), _Kind.MOVES),
    **dict.fromkeys((gather_rule, take_along_dim_rule, take_rule), _Kind.MOVES),
    index_select_rule: _Kind.MOVES,
    **dict.fromkeys((joining_rule, broadcasting_rule), _Kind.JOINS),
    converting_rule: _Kind.CONVERTS,
}


@functools.cache
def _kind_of(func: Any) -> str:
    if asks(func):
        return _Kind.ASKS
    if is_in_place(func):
        return _Kind.WRITES
    rule = rule_of(func)
    if rule is None:
        return _Kind.IS_LAYER if is_layer(func) else _Kind.UNKNOWN
    return _KINDS.get(rule, _Kind.COMPUTES)


# The names of functions.

_WRITE_THE_SAME = {"__setitem__", "copy_", "index_put_", "index_copy_", "scatter_"}

# Those that return Python's numbers, of which torch does not warn itself. Outside of a Pyro
# program, where a trace is looked at, they only ask.
_NUMBERS = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
    *("is_nonzero", "equal", "allclose"),
}

_TO_AN_INTEGER = {"__int__", "__index__"}

# Those that only ask, and have truth values for a result.
_QUESTIONS = {"isnan", "isinf", "isfinite", "isposinf", "isneginf", "signbit", "randint_like"}

# Those with the derivative 0, without underscores.
_STEPS = {
    *("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "bernoulli"),
    *("poisson", "floor_divide", "floordiv", "rfloordiv", "ifloordiv"),
}
