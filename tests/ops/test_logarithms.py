# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The logarithm of probabilities is one operation of the graph, and equals what it stands for."""

import pytest
import torch

from pyro_gumbel.ops.logarithms import clamped_log, log_of_positive


def values(dtype):
    tiny = torch.finfo(dtype).tiny
    return torch.tensor([0.0, tiny / 8, tiny, 1e3 * tiny, 1e-20, 0.3, 1.0], dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [clamped_log, log_of_positive])
def test_it_equals_operations(dtype, function):
    x = values(dtype).requires_grad_()
    found = function(x)
    (slope,) = torch.autograd.grad(found.sum(), x)
    expected, pull = torch.func.vjp(function, x.detach())
    torch.testing.assert_close(found.detach(), expected)
    torch.testing.assert_close(slope, pull(torch.ones_like(x))[0])


def test_it_has_second_derivatives():
    x = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(log_of_positive, x)
