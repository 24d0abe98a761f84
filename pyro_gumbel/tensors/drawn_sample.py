# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Drawn floats, as a model reads them: bits, one-hot vectors, subsets, rankings and counts.

Their gradient is a derivative. It ends where they become integers or truth values, as in
``table[z.long()]`` and ``torch.where(z == 1, a, b)``. A `DrawnSample` knows its draw, and is
replaced there by the same numbers with outcomes (`pyro_gumbel.tensors.outcomes`), which go on.
A draw without outcomes, as a count, warns instead.

What is made of a sample, as ``z[:2]`` or ``2 * z - 1``, is a sample too, see
`pyro_gumbel.tensors.sample_operations`.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.compiler import is_compiling

from pyro_gumbel._tracing import in_transform, version_of
from pyro_gumbel.tensors.subclass import (
    BACKWARD_PASSES,
    PlainTensor,
    as_plain,
    backward_pass,
    uncompiled,
    without_rule,
)

__all__ = [
    "DrawnSample",
    "KnownDraw",
    "draw_of",
    "has_draws_among",
    "watched",
    "with_outcomes_of",
    "without_draw",
]


class KnownDraw(Protocol):
    """What a sample knows of its draws."""

    @property
    def is_complete(self) -> bool:
        """Whether all draws that the sample is made of are known, and have outcomes."""

    def with_outcomes(self, value: Tensor) -> Tensor:
        """The same numbers with outcomes; as they are if they would be too many."""

    def is_among(self, draws: Any) -> bool:
        """Whether one of them is one of these draws, of outcomes."""


class _EqualToTensor(torch._C._TensorMeta):
    """The metaclass of a tensor class that compares equal to `Tensor`.

    Code from `torch.compile` looks up the types of its arguments in a set of known types. Its first
    call fails for a type that is not in the set. With this metaclass our classes are found there as
    `Tensor`, for which the code was compiled. Functions of torch that are written in Python would
    then miss the class beside a plain tensor, so that it differs from `Tensor` for these.
    """

    def __eq__(cls, other: object) -> bool:
        if other is not Tensor:
            return other is cls
        return sys._getframe(1).f_globals.get("__name__") != "torch.overrides"

    def __hash__(cls) -> int:
        return hash(Tensor)


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
    _apply: ClassVar[Callable[..., Any]]  # applies a function to samples

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
            if each is cls or each is Tensor or issubclass(each, DrawnSample):
                continue
            if issubclass(each, PlainTensor):
                return NotImplemented  # their rules are asked next
            return func(*as_plain(args), **as_plain(kwargs or {}))  # the other type decides
        if func in BACKWARD_PASSES and not _samples_in((args[1:], kwargs or {})):
            return backward_pass(func, as_plain(args), kwargs or {})
        with DisableTorchFunctionSubclass():
            return cls._apply(cls.rules.get(func), func, args, kwargs or {})


def watched(value: Tensor, draw: KnownDraw | None, *, is_computed: bool = False) -> Tensor:
    """Turn a tensor into a sample, in place, if it may have a gradient; and return it."""
    if not value.requires_grad or is_compiling() or in_transform():
        return value
    if type(value) is not Tensor and not isinstance(value, DrawnSample):
        return value
    version = version_of(value)
    if type(value) is Tensor:
        # `as_subclass` would return a view, and `detach_` does not accept views.
        value.__class__ = DrawnSample
    new: Any = value
    new.drawn_version, new.is_watched, new.is_computed, new.draw = version, True, is_computed, draw
    return value


def without_draw(value: Tensor) -> Tensor:
    """The same numbers and graph, as a sample without outcomes if it may have a gradient."""
    if not value.requires_grad:
        return value
    with DisableTorchFunctionSubclass():
        cls = type(value) if isinstance(value, DrawnSample) else Tensor
        return watched(value.as_subclass(cls), None)


def draw_of(value: DrawnSample) -> KnownDraw | None:
    """What an unchanged sample knows of its draws."""
    with DisableTorchFunctionSubclass():
        return value.draw if version_of(value) == value.drawn_version else None


def _samples_in(arguments: Any) -> list[DrawnSample]:
    if isinstance(arguments, DrawnSample):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = arguments.values()
    elif not isinstance(arguments, tuple | list):
        return []
    return [sample for each in arguments for sample in _samples_in(each)]


def with_outcomes_of(arguments: Any, draws: Any = None) -> Any:
    """The arguments of an operation, with outcomes of samples.

    :param draws: the draws that these samples are made of; None for any.
    """
    if isinstance(arguments, DrawnSample):
        draw = draw_of(arguments)
        if draw is None or not (draws is None or draw.is_among(draws)):
            return arguments
        return draw.with_outcomes(arguments)
    if isinstance(arguments, dict):
        return {name: with_outcomes_of(each, draws) for name, each in arguments.items()}
    if isinstance(arguments, tuple | list):
        kind = tuple if isinstance(arguments, tuple) else list  # torch takes either for its own
        return kind(with_outcomes_of(each, draws) for each in arguments)
    return arguments


def has_draws_among(arguments: Any, draws: Any) -> bool:
    """Whether there are samples among the arguments that are made of these draws."""
    known = map(draw_of, _samples_in(arguments))
    return any(draw is not None and draw.is_among(draws) for draw in known)
