# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The base of our tensor classes: tensors in every respect, but for the operations with a rule."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo import eval_frame

__all__ = [
    "BACKWARD_PASSES",
    "PlainTensor",
    "as_plain",
    "backward_pass",
    "plain",
    "uncompiled",
    "without_rule",
]

BACKWARD_PASSES = {Tensor.backward, torch.autograd.backward, torch.autograd.grad}


def without_rule(name: str) -> Any:
    """An attribute of torch's tensors that no rule concerns, read without a look for one."""
    attribute = getattr(Tensor, name)

    def get(self: Tensor) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return attribute.__get__(self)

    return property(get, attribute.__set__)


class PlainTensor(Tensor):
    """A tensor that is printed, copied and stored as a plain one."""

    @property
    def plain(self) -> Tensor:
        """The same numbers and graph as a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Any:
        return self.plain.__deepcopy__(memo)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.plain)

    def __format__(self, spec: str) -> str:
        return format(self.plain, spec)


def plain(value: Any) -> Any:
    """The same numbers and graph as a plain tensor, whose operations are faster."""
    return value.plain if isinstance(value, PlainTensor) else value


def as_plain(arguments: Any) -> Any:
    """The arguments of an operation, with plain tensors in place of our classes."""
    if isinstance(arguments, PlainTensor):
        return arguments.plain
    if isinstance(arguments, dict):
        return {name: as_plain(each) for name, each in arguments.items()}
    if type(arguments) in (tuple, list):
        return type(arguments)(map(as_plain, arguments))
    return arguments


def backward_pass(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call one of `BACKWARD_PASSES`, with rules for the operations in it.

    A checkpoint applies operations again there, and so may a function with a gradient of its own.

    :param args: without tensors of our classes.
    """
    with torch._C._EnableTorchFunction():
        return func(*args, **kwargs)


_NAMES_OF_DYNAMO = (
    "_FrameAction",
    "_FrameExecStrategy",
    "get_eval_frame_callback",
    "set_code_exec_strategy",
)


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that `torch.compile` does not look into, nor into what it calls.

    `torch._disable_dynamo` does this, at the cost of microseconds in each call. So it has a part
    only in calls from a compiled function, which does not look into the choice either. A torch that
    lacks one of the private names that this takes has it in every call.
    """
    apart = torch._disable_dynamo(function)
    if not all(hasattr(eval_frame, name) for name in _NAMES_OF_DYNAMO):
        return apart

    def call(*args: Any, **kwargs: Any) -> Any:
        if eval_frame.get_eval_frame_callback() is None:  # nothing is compiled
            return function(*args, **kwargs)
        return apart(*args, **kwargs)

    functools.update_wrapper(call, function)
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    skip = eval_frame._FrameExecStrategy(
        eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
    )
    eval_frame.set_code_exec_strategy(call.__code__, skip)
    return call
