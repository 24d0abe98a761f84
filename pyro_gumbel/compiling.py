# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Programs of `torch.compile` in the place of functions, where a user wants them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TypeVar

import torch
from torch.distributions import Distribution

__all__ = ["compiled", "is_compiled", "program"]

Result = TypeVar("Result")

_is_on = ContextVar("pyro_gumbel.compiled", default=False)


@contextmanager
def compiled() -> Iterator[None]:
    """Within it large draws, densities and their gradients are computed by `torch.compile`.

    .. code-block:: python

        with pyro_gumbel.compiled():
            svi.step(data)

    It is for tensors of 65,536 elements and more on a CPU; smaller ones, and GPUs, are as without
    it. The first draw of a kind (a law, a dtype, a number of categories) takes seconds, in which
    a C++ compiler works. From a seed rows of fewer than 32 come out as others than without it, of
    the same law. Not for functions that you compile yourself: there a draw is a part of your own
    program.

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


def is_compiled() -> bool:
    """Whether `program` compiles, or is at it."""
    return torch.compiler.is_compiling() or _is_on.get()


def program(function: Callable[..., Result]) -> Callable[..., Result]:
    """The function, or within `compiled` the program that does the same."""
    return _compile(function) if _is_on.get() else function


@cache
def _compile(function: Callable[..., Result]) -> Callable[..., Result]:
    default = Distribution._validate_args
    try:
        return torch.compile(function)
    finally:
        Distribution.set_default_validate_args(default)


@cache
def _failure() -> str:
    """What `torch.compile` fails with, on one line; empty if it works."""
    try:
        _compile(torch.sin)(torch.zeros(64))
    except Exception as error:  # whatever the reason, there is another way
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""
