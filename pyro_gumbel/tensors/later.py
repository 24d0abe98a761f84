# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Values that are made when they are needed, as what the other kind of gradient needs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass

from pyro_gumbel._tracing import autocast_dtypes, version_of, with_autocast, without_hooks

__all__ = ["Later"]

# The types of most arguments that are no tensors.
_CONSTANTS = {int, float, bool, type(None), slice, torch.dtype, type(torch.add), type(Tensor.add)}


class Later:
    """What a function makes of its arguments, when it is needed, once.

    If a tensor among the arguments is changed in place meanwhile, other numbers would come of it.
    Then a value is taken in place of what the function makes. Autocast is what it was.

    :param value: that is taken then.
    :param function: of the arguments. Those that are made later are made before it is called.
    :ivar steps: at most how many functions are called to make it.
    """

    __slots__ = (
        *("_arguments", "_autocast", "_before", "_function", "_made", "_needed", "_value"),
        "steps",
    )

    def __init__(self, value: Any, function: Callable[..., Any], *arguments: Any) -> None:
        self._value, self._function, self._made = value, function, None
        self._before: list[tuple[Tensor, int]] = []
        self._needed: list[Later] = []  # among the arguments
        self._autocast = autocast_dtypes()
        with DisableTorchFunctionSubclass():
            self._arguments = self._noted(arguments)
        self.steps: int = 1 + sum(each.steps for each in self._needed)

    def _noted(self, arguments: Any) -> Any:
        """The arguments as they are now."""
        kind = type(arguments)
        if kind in _CONSTANTS:
            return arguments
        if kind is not Tensor:
            if isinstance(arguments, tuple | list):
                kind = tuple if isinstance(arguments, tuple) else list  # of a named tuple too
                return kind([self._noted(each) for each in arguments])
            if isinstance(arguments, dict):
                return {name: self._noted(each) for name, each in arguments.items()}
            arguments = self._taken(arguments)
        if isinstance(arguments, Tensor):
            self._before.append((arguments, version_of(arguments)))
        elif isinstance(arguments, Later):
            self._needed.append(arguments)
        return arguments

    def _taken(self, argument: Any) -> Any:
        """What is taken for an argument that is no plain tensor."""
        return argument

    def given(self) -> list[Any]:
        """The arguments, and those of all values that are made for it."""
        found, waiting, seen = [], [self], {self}
        while waiting:
            last = waiting.pop()
            found.append(last._arguments)
            new = [each for each in last._needed if each not in seen]
            waiting += new
            seen.update(new)
        return found

    def made(self) -> Any:
        """It. What it needs is made first, not within: a sum may have thousands of terms."""
        results: dict[Later, Any] = {}
        waiting = [self]
        while waiting:
            last = waiting[-1]
            if last._made is not None:
                results[last] = last._made
            needed = [] if last in results else [n for n in last._needed if n not in results]
            if needed:
                waiting += needed
                continue
            if last not in results:
                results[last] = last._result(results)
            waiting.pop()
        return results[self]

    def _has_changed(self) -> bool:
        """Whether a tensor among the arguments was changed in place."""
        with DisableTorchFunctionSubclass():
            return any(version_of(each) != version for each, version in self._before)

    def _result(self, results: dict["Later", Any]) -> Any:
        """It, given those that it needs."""
        if any(results[each] is None for each in self._needed) or self._has_changed():
            return self._value
        given = _with_results(self._arguments, results)
        with (
            torch._C._EnableTorchFunction(),
            torch.enable_grad(),
            without_hooks(),
            with_autocast(self._autocast),
        ):
            self._made = self._function(*given)
        return self._made


def _with_results(arguments: Any, results: dict[Later, Any]) -> Any:
    """The arguments, with what was made in place of what is made later."""
    kind = type(arguments)
    if kind is tuple or kind is list:
        return kind([_with_results(each, results) for each in arguments])
    if kind is dict:
        return {name: _with_results(each, results) for name, each in arguments.items()}
    return results[arguments] if isinstance(arguments, Later) else arguments
