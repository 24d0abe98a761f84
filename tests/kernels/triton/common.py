# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What the tests of the kernels share."""

import math

import numpy
import torch
from scipy import stats

from pyro_gumbel.kernels import cuda
from pyro_gumbel.kernels import triton_functions as kernels
from pyro_gumbel.links import Hypersimplex, interval, simplex
from tests.common import ALPHA
from tests.kernels.triton import INTERPRETED

LARGE = 2**18 if INTERPRETED else kernels.TILE  # elements of a program

LINKS = [interval, simplex, Hypersimplex(2)]
NAMES = ["interval", "simplex", "hypersimplex"]


def seed(number=0):
    """What the kernels are given as a seed."""
    return torch.tensor([number * 0x9E3779B97F4A7C1 + 12345])


def event_of(link, k):
    return (k,) if link.event_dim else ()


def placed(x, tau, link, sample=(), batch=None, number=0):
    """The first arguments of the kernels' autograd functions."""
    batch = torch.Size(x.shape[: x.dim() - link.event_dim] if batch is None else batch)
    return x, tau, seed(number), link, torch.Size(sample) + batch, batch


def noise_of(arguments):
    """The noise of a draw with these arguments, in float64."""
    return cuda._noise_of_draw(*arguments).double()


def parameters(link, k=5, batch=(4,), scale=1.0, dtype=torch.float32, tau=0.6):
    """x and tau, which require a gradient."""
    x = (scale * torch.randn((*batch, *event_of(link, k)))).to(dtype).requires_grad_()
    return x, torch.tensor(tau).requires_grad_()


def in_double(*tensors):
    """The same numbers in float64, as new leaves."""
    return [t.detach().double().requires_grad_() for t in tensors]


def assert_near(found, expected, digits=2e-6):
    """Equal to this many digits of the largest entry; infinities and NaN at the same places."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    odd = ~expected.isfinite()
    assert torch.equal(found[odd].nan_to_num(7.0), expected[odd].nan_to_num(7.0))
    size = expected[~odd].abs().max().clamp(min=1.0) if (~odd).any() else 1.0
    torch.testing.assert_close(found[~odd], expected[~odd], rtol=0, atol=float(digits * size))


def assert_uniform(u):
    """By the statistic of Kolmogorov and Smirnov."""
    u, n = numpy.sort(u), len(u)
    grid = numpy.arange(n + 1) / n
    distance = max((grid[1:] - u).max(), (u - grid[:-1]).max())
    assert stats.kstwobign.sf(distance * math.sqrt(n)) > ALPHA


def is_by_kernel(sample):
    """Whether the sample of an estimator was drawn by the kernels, not by operations."""
    node = sample.grad_fn
    while node is not None and type(node).__name__ != "_FusedEstimatedDrawBackward":
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None


def state_of_generator():
    """That of torch's generator of the device."""
    return (torch if INTERPRETED else torch.cuda).get_rng_state()


def smooth_total(outputs):
    """A sum of functions that are not linear, with other weights for each entry."""
    return sum((y.exp() * torch.linspace(0.5, 1.5, y.numel()).view(y.shape)).sum() for y in outputs)
