# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The kernels against the operations of the links, in float64 at the same noise."""

import itertools

import pytest
import torch

from pyro_gumbel.kernels import cuda
from pyro_gumbel.links import Hypersimplex, simplex
from tests.kernels.triton.common import (
    LINKS,
    NAMES,
    assert_near,
    event_of,
    in_double,
    noise_of,
    parameters,
    placed,
)

# sample shape, batch shape, shape of the parameter and of the temperature
SHAPES = [
    ((), (), (), ()),
    ((), (3,), (3,), ()),
    ((4,), (3,), (3,), (3,)),
    ((4, 2), (3, 2), (3, 2), (3, 1)),
    ((2,), (3, 2), (2,), (3, 2)),
    ((2,), (3, 2), (3, 1), (2,)),
    ((5,), (), (), ()),
]


def graph(arguments, x, tau):
    """s, v and log p(s) at the noise of the kernels, as operations that autograd differentiates."""
    link, noise = arguments[3], noise_of(arguments)
    centred = link.centred(x)
    v = link.unconstrained(centred + noise, tau)
    return link.value(v), v, link.log_density(link.finite(v), centred, tau, of_values=True)


def totals(outputs, weights):
    """Weighted sums of every combination of outputs; what is infinite has no part in them."""
    for n in range(1, len(outputs) + 1):
        for used in itertools.combinations(range(len(outputs)), n):
            yield sum((weights[i].to(outputs[i].dtype) * finite(outputs[i])).sum() for i in used)


def finite(y):
    return torch.where(y.isfinite(), y, 0.0)


def gradients_of(total, leaves):
    found = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)
    ]


def assert_same(found, expected, leaves, others, digits=2e-6):
    """Outputs and gradients; `others` are the leaves of what is expected."""
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, digits)
    weights = [torch.randn_like(one) for one in found]
    for mine, theirs in zip(totals(found, weights), totals(expected, weights), strict=True):
        for one, other in zip(
            gradients_of(mine, leaves), gradients_of(theirs, others), strict=True
        ):
            assert one.dtype in (torch.float32, torch.float16, torch.bfloat16)
            assert_near(one, other, 4 * digits)


def assert_draws_are_those_of_the_link(x, tau, link, *places, digits=2e-6):
    """A relaxed draw, and a hard one with the gradient of the relaxed one."""
    arguments = placed(x, tau, link, *places)
    found = cuda._FusedDraw.apply(*arguments, True, True, True)
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    others = in_double(x, tau)
    expected = graph(arguments, *others)
    assert_same(found, expected, [x, tau], others, digits)
    z = link.centred(others[0]) + noise_of(arguments)
    assert hard.equal(link.hard(z).to(x.dtype))
    weight = torch.randn_like(hard)
    for leaves, theirs in (([x, tau], others), ([x], others[:1])):
        mine = gradients_of((hard * weight).sum(), leaves)
        right = gradients_of((expected[0] * weight).sum(), theirs)
        for one, other in zip(mine, right, strict=True):
            assert_near(one, other, 4 * digits)


@pytest.mark.parametrize(("sample", "batch", "x_shape", "tau_shape"), SHAPES)
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_draws_of_all_shapes(link, sample, batch, x_shape, tau_shape):
    x, _ = parameters(link, batch=x_shape)
    tau = torch.rand((*tau_shape, *(1 for _ in event_of(link, 1) if tau_shape))) + 0.3
    assert_draws_are_those_of_the_link(x, tau.requires_grad_(), link, sample, batch)


SIZES = [(simplex, k) for k in (1, 2, 3, 10, 64, 1000)]
SUBSETS = [(1, 2), (2, 3), (3, 10), (9, 10), (10, 64), (50, 1000), (999, 1000)]


@pytest.mark.parametrize(("link", "k"), [*SIZES, *((Hypersimplex(m), k) for m, k in SUBSETS)])
def test_draws_of_all_sizes(link, k):
    x, tau = parameters(link, k)
    assert_draws_are_those_of_the_link(x, tau, link, digits=2e-6 * max(1, k / 100))


@pytest.mark.parametrize(("link", "k"), [(simplex, 8), (simplex, 20), (Hypersimplex(3), 9)])
def test_draws_of_several_blocks(link, k, short_blocks):
    x, tau = parameters(link, k)
    assert_draws_are_those_of_the_link(x, tau, link)
