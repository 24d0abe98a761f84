# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Drawn floats, as a relaxed model reads them: bits, one-hot vectors, subsets, rankings and counts.

Their gradient is a derivative. It ends where they become integers or truth values, as in
``table[z.long()]`` and ``torch.where(z == 1, a, b)``. A `DrawnSample` knows its draw, and is
replaced there by the same numbers with outcomes (`pyro_gumbel.tensors.outcomes`), which go on.
A draw with too many outcomes, as a count, warns instead. Every other operation behaves as on a
plain tensor and returns one, which knows nothing of the draw: in ``z[:2].long()`` the derivative
ends without a warning, in ``z.long()[:2]`` it does not.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.compiler import is_compiling

from pyro_gumbel._tracing import in_transform, version_of
from pyro_gumbel.tensors.lost_gradient import is_asked_by_host, warn_of_lost_derivative
from pyro_gumbel.tensors.subclass import PlainTensor, as_plain, uncompiled

__all__ = ["DrawnSample", "KnownDraw", "watched", "with_outcomes_of"]


class KnownDraw(Protocol):
    """What a sample knows of its draw."""

    def with_outcomes(self, value: Tensor) -> Tensor:
        """The same numbers with outcomes; as they are if they would be too many."""

    def is_among(self, draws: Any) -> bool:
        """Whether it is one of these draws, of outcomes."""


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


class DrawnSample(PlainTensor, metaclass=_EqualToTensor):
    """A tensor of drawn floats that may have a gradient."""

    drawn_version: int  # to notice changes in place
    is_watched: bool = False  # whether something is done where the derivative ends
    draw: KnownDraw | None = None  # None for one without outcomes

    # Of functions: each takes the plain result of an operation and its arguments.
    rules: ClassVar[Mapping[Callable[..., Any], Callable[..., Any]]] = {}

    @classmethod
    @uncompiled  # it would reuse the code compiled for one `func` for another
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if len(types) > 1:
            others = [each for each in types if not issubclass(each, DrawnSample)]
            if any(issubclass(each, PlainTensor) for each in others):
                return NotImplemented  # their rules are asked next
            if not all(each is Tensor for each in others):
                return func(*as_plain(args), **as_plain(kwargs or {}))  # the other type decides
        with DisableTorchFunctionSubclass():
            result = func(*args, **kwargs) if kwargs else func(*args)
            rule = None if kwargs else cls.rules.get(func)
            if rule is not None:
                return result if is_compiling() else rule(result, *args)
            if not _may_end(func, result):
                return result
        return _where_it_ends(func, args, kwargs or {}, result)


def watched(value: Tensor, draw: KnownDraw | None, cls: type[DrawnSample] = DrawnSample) -> Tensor:
    """The same numbers and graph, as a model reads them."""
    if is_compiling() or in_transform() or not value.requires_grad:
        return value
    with DisableTorchFunctionSubclass():
        new = value.as_subclass(cls)
        new.drawn_version, new.is_watched, new.draw = version_of(new), True, draw
    return new


def with_outcomes_of(arguments: Any, draws: Any) -> Any:
    """The arguments of an operation, with outcomes of samples that are one of these draws."""
    if isinstance(arguments, DrawnSample):
        draw = _draw_of(arguments)
        return draw.with_outcomes(arguments) if draw and draw.is_among(draws) else arguments
    if isinstance(arguments, dict):
        return {name: with_outcomes_of(each, draws) for name, each in arguments.items()}
    if type(arguments) in (tuple, list):
        return type(arguments)(with_outcomes_of(each, draws) for each in arguments)
    return arguments


def _draw_of(value: DrawnSample) -> KnownDraw | None:
    """What an unchanged sample knows of its draw."""
    with DisableTorchFunctionSubclass():
        return value.draw if version_of(value) == value.drawn_version else None


# The names of operations that return Python's numbers, of which torch does not warn itself, and of
# those that only ask.
_NUMBERS = {"item", "tolist", "__bool__", "__int__", "__index__"}
_QUESTIONS = {
    *("isnan", "isinf", "isfinite", "isposinf", "isneginf", "signbit", "detach"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("randint_like", "new", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
}


def _may_end(func: Any, result: Any) -> bool:
    """Whether an operation has a result that has no derivative."""
    if isinstance(result, Tensor):
        has_derivative = result.is_floating_point() or result.is_complex()
        return not has_derivative and getattr(func, "__name__", "") not in _QUESTIONS
    return getattr(func, "__name__", "") in _NUMBERS


def _where_it_ends(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The result with outcomes, or else with a warning."""
    samples = [each for each in _samples_in((args, kwargs)) if each.is_watched]
    if not samples or not torch.is_grad_enabled() or is_asked_by_host():
        return result
    kept = _kept((args, kwargs))
    if kept is None or not isinstance(result, Tensor):
        name = getattr(func, "__name__", repr(func))
        warn_of_lost_derivative(name, has_outcomes=kept is not None)
        return result
    args, kwargs = kept
    return func(*args, **kwargs)


def _samples_in(arguments: Any) -> list[DrawnSample]:
    if isinstance(arguments, DrawnSample):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = arguments.values()
    elif type(arguments) not in (tuple, list):
        return []
    return [sample for each in arguments for sample in _samples_in(each)]


def _kept(arguments: Any) -> Any:
    """The arguments with outcomes in place of samples; None if one of them has none."""
    if isinstance(arguments, DrawnSample):
        draw = _draw_of(arguments)
        new = arguments if draw is None else draw.with_outcomes(arguments)
        return new if isinstance(new, PlainTensor) and not isinstance(new, DrawnSample) else None
    if isinstance(arguments, dict):
        kept = _kept(tuple(arguments.values()))
        return None if kept is None else dict(zip(arguments, kept, strict=True))
    if type(arguments) in (tuple, list):
        entries = [_kept(each) if _samples_in(each) else each for each in arguments]
        lost = any(k is None and e is not None for k, e in zip(entries, arguments, strict=True))
        return None if lost else type(arguments)(entries)
    return arguments
