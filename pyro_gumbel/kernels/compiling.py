# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Functions run by `torch.compile`, where a user asks for it."""

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
    """A context in which `torch.compile` computes large draws, densities and their gradients.

    >>> distribution = RelaxedCategorical(0.5, logits=torch.zeros(10))
    >>> with compiled():
    ...     x = distribution.rsample((10_000,))  # 100,000 elements
    ...     log_prob = distribution.log_prob(x)

    It applies to relaxed draws, to densities, and to the gradients of all draws, for tensors of
    65,536 elements and more on a CPU. Smaller tensors, and those on a GPU, are computed as without
    it. The first draw of a kind (a class, a dtype, a number of categories) takes seconds, while a
    C++ compiler works. After eight programs of one kind `torch.compile` logs that it makes no more.
    With the same seed, rows of fewer than 32 entries differ from the uncompiled ones, with the same
    distribution. Do not use it in functions that you compile yourself: there a draw is a part of
    your own program. It has no effect in threads that are started within.

    `torch.compile` switches off the validation of all distributions of the process. Here it stays
    as it was.

    :warns RuntimeWarning: if nothing can be compiled. Everything then runs without it.
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
    """Whether `compiled` is active here."""
    return _is_on.get()


def program(function: Callable[..., Result], kind: Any) -> Callable[..., Result]:
    """The function; within `compiled` a compiled one, for arguments of this kind."""
    return _compile(function, kind) if _is_on.get() else function


@cache
def _compile(function: Any, kind: Any) -> Any:
    # torch limits the number of programs of a code object. So each kind gets a code object.
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
    """The error of `torch.compile` on one line; empty if it works."""
    try:
        _compile(_sin, "to see whether it works")(torch.zeros(64, device="cpu"))
    except Exception as error:  # for whatever reason: it is not needed
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""
