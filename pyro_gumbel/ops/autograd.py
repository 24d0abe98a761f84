# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How the functions of this package define gradients of their own."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_gumbel._tracing import in_forward_mode

__all__ = ["square_root", "with_own_gradient", "zero_with_gradient"]


def with_own_gradient(function: type[Function], operations: Any, *arguments: Any) -> Any:
    """The result of an autograd `Function`, or in forward mode that of torch's operations.

    torch does not differentiate the `jvp` of a `Function` a second time, so our functions have
    none. In forward mode the derivatives of `operations` are used, which torch can take again.

    :param function: a subclass of `torch.autograd.Function` with a `backward`.
    :param operations: a function with the same arguments and results, made of torch's operations.
    :param arguments: what both are called with.
    """
    return operations(*arguments) if in_forward_mode() else function.apply(*arguments)


def square_root(variance: Tensor) -> Tensor:
    """The square root; an entry of 0 passes no gradient."""
    sure = variance <= 0
    return torch.where(sure, 0.0, torch.where(sure, 1.0, variance).sqrt())


def zero_with_gradient(x: Tensor) -> Tensor:
    """0 where x is finite, with the gradient of x."""
    return x - x.detach()
