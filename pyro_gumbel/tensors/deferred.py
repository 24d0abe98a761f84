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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import in_transform
from pyro_gumbel.tensors.index_tensor import OutcomeTensor, changes_of, collapsed, draws_in
from pyro_gumbel.tensors.later import Later
from pyro_gumbel.tensors.outcomes import CategoricalDraw
from pyro_gumbel.tensors.subclass import without_rule

__all__ = ["DeferredTensor", "Settled", "deferred", "settled"]


class DeferredTensor(OutcomeTensor):
    """A tensor with the gradient for a loss that is linear in it, see this module."""

    requires_grad = without_rule("requires_grad")

    _later: Later  # the same numbers for a loss that is not

    def defer(self, later: Later) -> None:
        """Take what is made later for the tensor of a loss that is not linear."""
        self._later, self._made_version = later, changes_of(self)

    @property
    def later(self) -> Any:
        """What makes the tensor of other losses; the tensor as it is if it was changed in place."""
        return self._later if changes_of(self) == self._made_version else self.plain

    @property
    def draws(self) -> set[CategoricalDraw]:
        """Those of what it is made of."""
        return draws_in(self._later.given())

    @property
    def settled(self) -> Tensor:
        """The same numbers for a loss that is not linear in them."""
        made: Tensor = settled(self.later)
        return made

    def register_hook(self, hook: Callable[..., Any]) -> Any:
        """On the gradient of a linear loss."""
        with torch._C.DisableTorchFunctionSubclass():
            return super().register_hook(hook)

    def collapsed(self, *, linear: bool) -> Tensor:
        made: Tensor = self.plain if linear else collapsed(self.settled)
        return made


class Settled(Later):
    """What another loss needs. Deferred tensors among the arguments are taken as they are now."""

    __slots__ = ()

    def _taken(self, argument: Any) -> Any:
        return argument.later if type(argument) is DeferredTensor else argument

    def arguments_of(self, function: Callable[..., Any]) -> Any:
        """What this function is called with; nothing if it is another one, or they have changed."""
        if self._function is not function or self._has_changed():
            return ()
        return settled(self._arguments)


def deferred(value: Tensor, function: Callable[..., Any], *arguments: Any) -> Tensor:
    """The same numbers and graph, which remember what makes them for a loss that is not linear.

    :param value: a plain tensor, with the gradient for a loss that is linear in it.
    :param function: makes the same numbers for other losses, of these arguments, see `Settled`.
    """
    if in_transform() or torch.compiler.is_compiling():
        return value
    new = value.as_subclass(DeferredTensor)
    new.defer(Settled(value, function, *arguments))
    return new


def settled(arguments: Any) -> Any:
    """The arguments of an operation that is not linear in them."""
    if isinstance(arguments, DeferredTensor):
        return arguments.settled if torch.is_grad_enabled() else arguments.plain
    if isinstance(arguments, dict):
        return {name: settled(each) for name, each in arguments.items()}
    if type(arguments) in (tuple, list):
        return type(arguments)(map(settled, arguments))
    return settled(arguments.made()) if isinstance(arguments, Later) else arguments
