# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Numbers in which a loss may be linear, or not.

Let v be a sum over many elements of a draw, or a log density. Its gradient in the one-hot vectors
is its table of outcomes. If the loss is linear in v, this gradient may go to the probabilities,
which is exact on average and varies least. If the loss is not, as ``exp(v)``, it needs the outcomes
of v, or an estimator where these would be too many.

What follows is not known when v is made. So a `DeferredTensor` is the tensor for a linear loss, and
remembers how to make the other one. A linear operation, as ``v + w``, ``2 * v`` or ``v.sum()``,
gives such a tensor again. Every other operation takes the other one.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import in_transform
from pyro_gumbel.tensors.index_tensor import OutcomeTensor, changes_of, collapsed

__all__ = ["DeferredTensor", "deferred", "remade", "settled"]


class DeferredTensor(OutcomeTensor):
    """A tensor with the gradient for a loss that is linear in it, see this module."""

    _make: Callable[[], Tensor]

    @torch._disable_dynamo
    def defer(self, make: Callable[[], Tensor]) -> None:
        """Take what a function makes for the tensor of a loss that is not linear."""
        self._make = functools.cache(functools.partial(_called_outside, make))
        self._made_version = changes_of(self)

    @property
    def settled(self) -> Tensor:
        """The same numbers for a loss that is not linear in them."""
        return self._make() if changes_of(self) == self._made_version else self.plain

    def collapsed(self, *, linear: bool) -> Tensor:
        made: Tensor = self.plain if linear else collapsed(self.settled)
        return made


def _called_outside(make: Callable[[], Tensor]) -> Any:
    """What a function makes, called as from outside of an operation."""
    with torch._C._EnableTorchFunction(), torch.enable_grad():
        return settled(make())


def deferred(value: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """The same numbers and graph, which remember what to make for a loss that is not linear.

    :param value: a plain tensor, with the gradient for a loss that is linear in it.
    :param make: makes the same numbers for other losses.
    """
    if not value.requires_grad or in_transform() or torch.compiler.is_compiling():
        return value
    new = value.as_subclass(DeferredTensor)
    new.defer(make)
    return new


def settled(arguments: Any) -> Any:
    """The arguments of an operation that is not linear in them."""
    if isinstance(arguments, DeferredTensor):
        return arguments.settled if torch.is_grad_enabled() else arguments.plain
    if isinstance(arguments, _Later):
        return arguments.make()
    if isinstance(arguments, dict):
        return {name: settled(each) for name, each in arguments.items()}
    if type(arguments) in (tuple, list):
        return type(arguments)(map(settled, arguments))
    return arguments


def remade(result: Any, make: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """What makes a result again; the result itself if an argument has been changed in place.

    :param make: a function of the arguments, which has `_Later` in place of deferred tensors. It is
        called without the rules of our tensor classes.
    """
    arguments = _later(arguments)
    before = [(each, changes_of(each)) for each in _tensors_in(arguments)]

    def again() -> Any:
        if any(changes_of(each) != version for each, version in before):
            return result
        with torch._C.DisableTorchFunctionSubclass():
            return make(*arguments)

    return again


@dataclass(frozen=True, slots=True)
class _Later:
    """A deferred tensor as it is now, made when it is needed."""

    make: Callable[[], Tensor]


def _later(arguments: Any) -> Any:
    if isinstance(arguments, DeferredTensor):
        if changes_of(arguments) == arguments._made_version:
            return _Later(arguments._make)
        return arguments.plain
    if isinstance(arguments, dict):
        return {name: _later(each) for name, each in arguments.items()}
    if type(arguments) in (tuple, list):
        return type(arguments)(map(_later, arguments))
    return arguments


def _tensors_in(arguments: Any) -> Iterator[Tensor]:
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, dict):
        yield from _tensors_in(tuple(arguments.values()))
    elif isinstance(arguments, tuple | list):
        for each in arguments:
            yield from _tensors_in(each)
