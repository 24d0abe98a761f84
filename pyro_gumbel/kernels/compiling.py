# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Programs of `torch.compile` in the place of functions, where a user wants them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch.distributions import Distribution

__all__ = ["compiled", "is_on", "program"]

Result = TypeVar("Result")

_is_on = ContextVar("pyro_gumbel.compiled", default=False)


@contextmanager
def compiled() -> Iterator[None]:
    """Within it `torch.compile` computes large soft draws, densities, and gradients of all draws.

    .. code-block:: python

        with pyro_gumbel.compiled():
            svi.step(data)

    It is for tensors of 65,536 elements and more on a CPU; smaller ones, and GPUs, are as without
    it. The first draw of a kind (a law, a dtype, a number of categories) takes seconds, in which
    a C++ compiler works; after eight programs of one kind `torch.compile` logs that it makes no
    more. From a seed rows of fewer than 32 come out as others than without it, of the same law.
    Not for functions that you compile yourself: there a draw is a part of your own program. Not for
    threads that are started within.

    `torch.compile` switches off the validation of all distributions for the process; here it
    stays as it was.

    :warns RuntimeWarning: where nothing can be compiled; all goes on without.
    """
    failure = _failure()
    if failure:
        warnings.warn(
            f"pyro_gumbel.compiled: goes on without compiling, because torch.compile fails: "
            f"{failure}; install a C++ compiler such as g++, or leave `with compiled():` out",
            RuntimeWarning,
            stacklevel=3,
        )
    token = _is_on.set(not failure)
    try:
        yield
    finally:
        _is_on.reset(token)


def is_on() -> bool:
    """Whether this is within `compiled`."""
    return _is_on.get()


def program(function: Callable[..., Result], kind: Any) -> Callable[..., Result]:
    """The function, or within `compiled` its program for arguments of a kind."""
    return _compile(function, kind) if _is_on.get() else function


@cache
def _compile(function: Any, kind: Any) -> Any:
    # Programs are counted by code object, and there are to be enough for every kind.
    copy = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    default = Distribution._validate_args
    try:
        return torch.compile(copy)
    finally:
        Distribution.set_default_validate_args(default)


def _sin(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


@cache
def _failure() -> str:
    """What `torch.compile` fails with, on one line; empty if it works."""
    try:
        _compile(_sin, "to see whether it works")(torch.zeros(64, device="cpu"))
    except Exception as error:  # whatever the reason, there is another way
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""
