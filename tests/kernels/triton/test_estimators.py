# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The kernels of the estimators whose gradients are closed forms, and the classes on top."""

import math

import pytest
import torch

from pyro_gumbel import BernoulliStraightThrough, CategoricalStraightThrough
from pyro_gumbel.estimators import (
    gapped,
    gumbel_rao,
    mve,
    reinmax,
    reinmax_rao,
    straight_through,
)
from pyro_gumbel.kernels import cuda
from pyro_gumbel.links import interval, simplex
from tests.kernels.triton.common import (
    assert_near,
    event_of,
    in_double,
    is_by_kernel,
    noise_of,
    parameters,
    placed,
    smooth_total,
)

ESTIMATORS = [straight_through, reinmax, gapped(gap=0.7)]
LINKS = [interval, simplex]
by_link = pytest.mark.parametrize("link", LINKS, ids=["interval", "simplex"])
by_estimator = pytest.mark.parametrize(
    "estimator", ESTIMATORS, ids=["straight_through", "reinmax", "gapped"]
)


def draw(arguments, estimator):
    return cuda._FusedEstimatedDraw.apply(*arguments, estimator)


def gradients(y, leaves, grad, **options):
    """Zeros where there is no gradient."""
    found = torch.autograd.grad(y, leaves, grad, allow_unused=True, **options)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def surrogate(arguments, hard, estimator, x, tau):
    link = arguments[3]
    return estimator(link.centred(x).expand(hard.shape), tau, None, hard.detach().double(), link)


def assert_gradients_are_those_of(estimator, arguments, digits=4e-6):
    """In x and tau, and in x alone."""
    x, tau, _, link = arguments[:4]
    hard, others = draw(arguments, estimator), in_double(x, tau)
    z = link.centred(others[0]) + noise_of(arguments)
    assert hard.equal(link.hard(z).to(x.dtype))
    grad = torch.randn(hard.shape).to(x.dtype)
    right = gradients(surrogate(arguments, hard, estimator, *others), others, grad.double())
    found = gradients(hard, [x, tau], grad)
    alone = draw((x, tau.detach(), *arguments[2:]), estimator)
    found += torch.autograd.grad(alone, x, grad)
    for one, other in zip(found, (*right, right[0]), strict=True):
        assert one.isfinite().all()
        assert_near(one, other, digits)
    assert found[0].dtype == x.dtype


# sample shape, batch shape, shape of the parameter and of the temperature
SHAPES = [
    ((), (), (), ()),
    ((4,), (3,), (3,), (3,)),
    ((2,), (3, 2), (2,), (3, 2)),
    ((2,), (3, 2), (3, 1), (2,)),
]


@pytest.mark.parametrize(("sample", "batch", "x_shape", "tau_shape"), SHAPES)
@by_estimator
@by_link
def test_gradients_of_all_shapes(link, estimator, sample, batch, x_shape, tau_shape):
    x, _ = parameters(link, batch=x_shape)
    tau = torch.rand((*tau_shape, *(1 for _ in event_of(link, 1) if tau_shape))) + 0.3
    arguments = placed(x, tau.requires_grad_(), link, sample, batch)
    assert_gradients_are_those_of(estimator, arguments)


@pytest.mark.parametrize("k", [1, 2, 3, 20])
@by_estimator
def test_gradients_of_all_sizes(k, estimator, short_blocks):
    """Also of rows of several blocks."""
    x, tau = parameters(simplex, k)
    assert_gradients_are_those_of(estimator, placed(x, tau, simplex, (3,)))


@pytest.mark.parametrize("tau", [0.01, 3.0, 100.0])
@by_estimator
@by_link
def test_temperatures(link, estimator, tau):
    x, tau = parameters(link, 10, scale=2.0, tau=tau)
    digits = 4e-6 * max(1.0, 0.1 / tau.item())
    assert_gradients_are_those_of(estimator, placed(x, tau, link, (3,)), digits)


@by_estimator
@by_link
def test_bfloat16(link, estimator):
    x, tau = parameters(link, dtype=torch.bfloat16)
    assert_gradients_are_those_of(estimator, placed(x, tau, link, (3,)), 0.01)


@by_estimator
@by_link
def test_where_outcomes_are_impossible(link, estimator):
    bits = torch.tensor([0.4, -math.inf, math.inf, -1.3, 0.0])
    rows = torch.tensor(
        [[0.4, -math.inf, 1.0, -0.3, -math.inf], [-math.inf, 0.1, *[-math.inf] * 3]]
    )
    x = (rows if link is simplex else bits).requires_grad_()
    arguments = placed(x, torch.tensor(0.6, requires_grad=True), link, (20,))
    assert_gradients_are_those_of(estimator, arguments)
    hard = draw(arguments, estimator)
    (found,) = torch.autograd.grad(hard, x, torch.randn(hard.shape))
    assert (found[x.isinf()] == 0).all()


@by_estimator
@by_link
def test_logits_of_any_spread(link, estimator):
    """Neither sums nor quotients overflow."""
    x = torch.tensor([[3e38, -3e38, 3e38, 0.0, 80.0]], requires_grad=True)
    tau = torch.tensor(1e-3, requires_grad=True)
    hard = draw(placed(x, tau, link, (20,)), estimator)
    found = gradients(hard, [x, tau], torch.randn(hard.shape))
    assert all(grad.isfinite().all() for grad in found)


@by_link
def test_reinmax_at_temperature_1_is_of_second_order(link):
    x, _ = parameters(link)
    arguments = placed(x, torch.tensor(1.0), link, (3,))
    grad = torch.randn(3, *x.shape)
    found = torch.autograd.grad(draw(arguments, reinmax), x, grad)
    right = torch.autograd.grad(cuda._FusedSecondOrderDraw.apply(x, *arguments[2:]), x, grad)
    assert_near(found[0], right[0])


@by_estimator
@by_link
def test_gradients_of_any_strides(link, estimator):
    x, tau = parameters(link)
    hard = draw(placed(x, tau, link, (3,)), estimator)
    numbers = torch.randn(hard.shape)
    for grad in (
        numbers.transpose(0, -1).contiguous().transpose(0, -1),
        torch.stack([numbers, -numbers], -1)[..., 0],
        numbers[:1].expand(hard.shape),
        torch.tensor(0.7).expand(hard.shape),
    ):
        found, right = (
            gradients(hard, [x, tau], each, retain_graph=True) for each in (grad, grad.contiguous())
        )
        for mine, theirs in zip(found, right, strict=True):
            assert_near(mine, theirs, 1e-6)


@by_estimator
@by_link
def test_derivatives_of_gradients(link, estimator):
    """In x, tau and the gradient that comes in; and several gradients at once."""
    x, tau = parameters(link, 4, (3,))
    arguments = placed(x, tau, link, (2,))
    hard, others = draw(arguments, estimator), in_double(x, tau)
    expected = surrogate(arguments, hard, estimator, *others)
    grad, results = torch.randn(hard.shape), []
    for y, leaves in ((hard, [x, tau]), (expected, others)):
        u = grad.to(y.dtype, copy=True).requires_grad_()
        first = torch.autograd.grad(y, leaves, u, create_graph=True, allow_unused=True)
        first = [g for g in first if g is not None]
        total = smooth_total(first)
        results.append([*first, *gradients(total, [*leaves, u], None, retain_graph=True)])
    for one, other in zip(*results, strict=True):
        assert_near(one, other, 2e-5)
    grads = torch.randn(3, *hard.shape)
    (found,) = torch.autograd.grad(hard, x, grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(hard, x, g, retain_graph=True)[0] for g in grads]
    assert_near(found, torch.stack(each), 1e-5)


# The classes.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ["gapped", "gumbel_rao", "reinmax", "straight_through"])
@pytest.mark.parametrize("cls", [BernoulliStraightThrough, CategoricalStraightThrough])
def test_the_classes_have_them(cls, estimator, dtype, on_the_kernels):
    """float64 is computed by operations. `sample` draws what `rsample` draws."""
    leaf = torch.randn(4, 5, dtype=dtype, requires_grad=True)
    tau = torch.tensor(1.0, dtype=dtype, requires_grad=True)
    d = cls(tau * 1.0, logits=leaf * 1.0, estimator=estimator)
    draws = []
    for each in (d.rsample, d.sample):
        torch.manual_seed(3)
        draws.append(each((2,)))
    assert torch.equal(*draws)
    assert not draws[1].requires_grad
    assert draws[0].dtype == dtype
    assert is_by_kernel(draws[0]) == (dtype != torch.float64)
    leaves = [leaf] if estimator == "reinmax" else [leaf, tau]
    for found in torch.autograd.grad(draws[0], leaves, torch.randn_like(draws[1])):
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert found.abs().max() > 0


def test_a_function_of_a_user_is_called(on_the_kernels):
    def mine(logits, temperature, perturbed, hard, link):
        assert perturbed.shape == hard.shape
        return straight_through(logits, temperature, perturbed, hard, link)

    class Wide(gapped):
        """A subclass may do anything."""

    logits = torch.randn(4, 5, requires_grad=True)
    for estimator in (mine, Wide(0.5)):
        value = CategoricalStraightThrough(0.5, logits=logits, estimator=estimator).rsample()
        assert not is_by_kernel(value)
    for estimator in (mve(), reinmax_rao()):
        value = CategoricalStraightThrough(logits=logits, estimator=estimator).rsample()
        assert not is_by_kernel(value)
    value = CategoricalStraightThrough(0.5, logits=logits, estimator=gumbel_rao(2)).rsample()
    assert is_by_kernel(value)
