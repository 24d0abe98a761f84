# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The kernels against the operations of the links, in float64 at the same noise."""

import itertools
import math

import pytest
import torch
import triton
import triton.language as tl

from pyro_gumbel.estimators import gapped, gumbel_rao, reinmax, straight_through
from pyro_gumbel.kernels import cuda, reference, triton_rows
from pyro_gumbel.links import Hypersimplex, interval, simplex
from pyro_gumbel.ops.second_order import with_bit_gradient, with_one_hot_gradient
from tests.kernels.triton.common import (
    LINKS,
    NAMES,
    assert_near,
    event_of,
    in_double,
    noise_of,
    parameters,
    placed,
    smooth_total,
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


def totals(outputs, weights, pairs=False):
    """Weighted sums of each output, of all, and of pairs; what is infinite has no part in them."""
    for n in range(1, len(outputs) + 1):
        if n == 2 < len(outputs) and not pairs:
            continue
        for used in itertools.combinations(range(len(outputs)), n):
            yield sum((weights[i].to(outputs[i].dtype) * finite(outputs[i])).sum() for i in used)


def finite(y):
    return torch.where(y.isfinite(), y, 0.0)


def gradients_of(total, leaves):
    found = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)
    ]


def assert_same(found, expected, leaves, others, digits=2e-6, pairs=False):
    """Outputs and gradients; `others` are the leaves of what is expected."""
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, digits)
    weights = [torch.randn_like(one) for one in found]
    sums = (totals(outputs, weights, pairs) for outputs in (found, expected))
    for mine, theirs in zip(*sums, strict=True):
        for one, other in zip(
            gradients_of(mine, leaves), gradients_of(theirs, others), strict=True
        ):
            assert one.dtype in (torch.float32, torch.float16, torch.bfloat16)
            assert_near(one, other, 4 * digits)


def assert_draws_are_those_of_the_link(x, tau, link, *places, digits=2e-6, pairs=False):
    """A relaxed draw, and a hard one with the gradient of the relaxed one."""
    arguments = placed(x, tau, link, *places)
    found = cuda._FusedDraw.apply(*arguments, True, True, True)
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    others = in_double(x, tau)
    expected = graph(arguments, *others)
    assert_same(found, expected, [x, tau], others, digits, pairs)
    # Without a gradient in tau the kernel of one-hot vectors reads s, and draws no noise.
    fixed = cuda._FusedDraw.apply(x, tau.detach(), *arguments[2:], True, True, True)
    assert_same(fixed, expected, [x], others[:1], digits, pairs)
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
    pairs = batch == (3,) and not sample
    assert_draws_are_those_of_the_link(x, tau.requires_grad_(), link, sample, batch, pairs=pairs)


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_temperature_may_be_a_number(link, again):
    """With the value and the gradients of a tensor, and derivatives of those."""

    def found_with(tau):
        arguments = placed(x, tau, link, (2,))
        drawn = cuda._FusedDraw.apply(*arguments, True, True, True)
        hard = [cuda._FusedStraightThroughDraw.apply(*arguments)]
        if not isinstance(link, Hypersimplex):
            hard += [
                cuda._FusedEstimatedDraw.apply(*arguments, each)
                for each in (gapped(), reinmax, straight_through, gumbel_rao(3))
            ]
        v = drawn[1].detach()
        value = link.value(v)
        density = [
            cuda._FusedLogDensity.apply(value, v, x, tau, link, batch, of_values)
            for of_values in (True, False)
        ]
        outputs = *drawn, *hard, *density
        (gradient,) = torch.autograd.grad(smooth_total(outputs), x, create_graph=again)
        if not again:
            return *outputs, gradient
        return *outputs, gradient, *torch.autograd.grad(gradient.sin().sum(), x)

    x, _ = parameters(link)
    batch = torch.Size(x.shape[: x.dim() - link.event_dim])
    for one, other in zip(found_with(0.6), found_with(torch.tensor(0.6)), strict=True):
        assert_near(one, other, 1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("x_shape", "sample"), [((3,), (2,)), ((), (4,)), ((3,), ())])
@pytest.mark.parametrize("link", [interval, simplex], ids=NAMES[:2])
def test_second_order(link, x_shape, sample, dtype, short_blocks):
    """Against the operations, with impossible outcomes, and in rows of several blocks."""
    x, _ = parameters(link, 20, x_shape, dtype=dtype)
    with torch.no_grad():
        x.view(-1)[::7] = -math.inf
    arguments = placed(x, torch.tensor(1.0), link, sample)
    hard = cuda._FusedSecondOrderDraw.apply(x, *arguments[2:])
    assert hard.equal(cuda._FusedStraightThroughDraw.apply(*arguments))
    attach = with_one_hot_gradient if link.event_dim else with_bit_gradient
    (other,) = in_double(x)
    expected = attach(hard.double(), other.expand(hard.shape))
    for grad in (torch.randn(hard.shape), torch.tensor(0.7).expand(hard.shape)):
        (found,) = torch.autograd.grad(hard, x, grad.to(dtype), retain_graph=True)
        (right,) = torch.autograd.grad(expected, other, grad.to(dtype).double(), retain_graph=True)
        assert found.dtype == dtype
        assert_near(found, right, 4e-6 if dtype == torch.float32 else 0.01)


# Densities.


def density(kernels, value, v, x, tau, link, batch, of_values):
    return kernels.log_density(value, v, x, tau, link, torch.Size(batch), of_values=of_values)


def assert_density_is_that_of_the_link(v, x, tau, link, batch, of_values, digits=2e-6):
    v = v.requires_grad_()
    value = (link.value(v) if of_values else v).detach()
    found = density(cuda, value, v, x, tau, link, batch, of_values)
    others = in_double(v, x, tau)
    expected = density(reference, value.double(), *others, link, batch, of_values)
    assert_same([found], [expected.expand(found.shape)], [v, x, tau], others, digits)


@pytest.mark.parametrize("of_values", [True, False])
@pytest.mark.parametrize(("sample", "batch", "x_shape", "tau_shape"), SHAPES)
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_densities_of_all_shapes(link, sample, batch, x_shape, tau_shape, of_values):
    x, _ = parameters(link, batch=x_shape)
    tau = torch.rand((*tau_shape, *(1 for _ in event_of(link, 1) if tau_shape))) + 0.3
    v = link.unconstrained(torch.randn((*sample, *batch, *event_of(link, 5))), torch.ones(()))
    assert_density_is_that_of_the_link(v, x, tau.requires_grad_(), link, batch, of_values)


@pytest.mark.parametrize("of_values", [True, False])
@pytest.mark.parametrize(("link", "k"), [*SIZES, *((Hypersimplex(m), k) for m, k in SUBSETS)])
def test_densities_of_all_sizes(link, k, of_values):
    x, tau = parameters(link, k)
    v = link.unconstrained(torch.randn(4, k), torch.ones(()))
    digits = 2e-6 * max(1, k / 100)
    assert_density_is_that_of_the_link(v, x, tau, link, (4,), of_values, digits)


@pytest.mark.parametrize("link", [simplex, Hypersimplex(3)])
def test_densities_of_several_blocks(link, short_blocks):
    x, tau = parameters(link, 20)
    v = link.unconstrained(torch.randn(4, 20), torch.ones(()))
    assert_density_is_that_of_the_link(v, x, tau, link, (4,), True)


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_density_of_one_value_for_several_rows_and_of_several_for_one(link):
    x, tau = parameters(link)
    v = link.unconstrained(torch.randn(event_of(link, 5) or (1,)), torch.ones(()))
    assert_density_is_that_of_the_link(v, x, tau, link, (4,), True)
    x, tau = parameters(link, batch=(1,))
    v = link.unconstrained(torch.randn(6, *event_of(link, 5)), torch.ones(()))
    assert_density_is_that_of_the_link(v, x, tau, link, (1,), True)


# Infinite logits and values.

FACE = torch.tensor([[0.4, -math.inf, 1.0, -0.3, -math.inf], [0.0, 0.1, 0.2, 0.3, -math.inf]])
BITS = torch.tensor([0.4, -math.inf, math.inf, -1.3, 0.0])


def on_a_face(link):
    x = (FACE if link.event_dim else BITS).clone().requires_grad_()
    return x, torch.tensor(0.6, requires_grad=True)


@pytest.mark.parametrize("size", [None, *range(1, 4)])
def test_draws_where_outcomes_are_impossible(size):
    """At size 3 the first row has a single value."""
    link = Hypersimplex(size) if size else simplex
    x, tau = on_a_face(link)
    arguments = placed(x, tau, link, (3,))
    found = cuda._FusedDraw.apply(*arguments, True, True, True)
    others = in_double(x, tau)
    expected = graph(arguments, *others)
    single = torch.tensor([size == 3, False])
    assert (found[0][..., x.isinf()] == 0).all()
    assert found[1][..., x.isinf()].isneginf().all()
    assert_near(found[0], expected[0])
    assert_near(found[2], expected[2])
    weights = [torch.randn_like(y) for y in found]
    weights[1][:, single] = 0.0  # v is infinite there, and its gradient means nothing
    for mine, theirs in zip(totals(found, weights), totals(expected, weights), strict=True):
        for one, other in zip(
            gradients_of(mine, [x, tau]), gradients_of(theirs, others), strict=True
        ):
            assert_near(one, other, 1e-5)
    fixed = cuda._FusedDraw.apply(x, tau.detach(), *arguments[2:], True, True, True)
    for mine, theirs in zip(totals(fixed, weights), totals(expected, weights), strict=True):
        assert_near(gradients_of(mine, [x])[0], gradients_of(theirs, others[:1])[0], 1e-5)
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    assert hard.equal(link.hard(x.detach() + noise_of(arguments)).float())
    assert gradients_of((hard * weights[0]).sum(), [x, tau])[0].isfinite().all()


def test_draws_of_bits_that_are_certain():
    x, tau = on_a_face(interval)
    arguments = placed(x, tau, interval, (3,))
    found = cuda._FusedDraw.apply(*arguments, True, True, True)
    others = in_double(x, tau)
    assert_same(found, graph(arguments, *others), [x, tau], others)
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    assert (hard[:, 1:3] == torch.tensor([0.0, 1.0])).all()
    assert gradients_of(hard.sum(), [x, tau])[0][1:3].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("of_values", [True, False])
@pytest.mark.parametrize("link", [*LINKS, Hypersimplex(3)], ids=[*NAMES, "single value"])
def test_densities_where_outcomes_are_impossible(link, of_values):
    """Of possible values, of impossible ones, and of some whose v is infinite elsewhere too."""
    x, tau = on_a_face(link)
    batch = x.shape[: x.dim() - link.event_dim]
    z = torch.where(x.isinf(), 0.0, x).detach() + torch.randn(6, *x.shape)
    z = torch.where(x.isinf(), x, z).detach()
    v = link.unconstrained(z, tau).detach()
    v[1, ..., 1] = 0.3  # impossible, in a first row
    v[2, ..., 2], v[3, ..., 3] = -math.inf, math.inf
    v = v.requires_grad_()
    value = (link.value(v) if of_values else v).detach()
    found = density(cuda, value, v, x, tau, link, batch, of_values)
    others = in_double(v, x, tau)
    # In float64 an infinite v stands for another finite one.
    narrow = torch.where(v.isneginf(), math.log(torch.finfo(torch.float32).tiny), v.detach())
    narrow = torch.where(v.isposinf(), -math.log(torch.finfo(torch.float32).eps / 2), narrow)
    others[0] = narrow.double().requires_grad_()
    expected = density(reference, value.double(), *others, link, batch, of_values)
    assert found.isneginf().any()
    assert_near(found, expected)
    weight = torch.randn_like(found)
    mine = gradients_of((finite(found) * weight).sum(), [v, x, tau])
    theirs = gradients_of((finite(expected) * weight).sum(), others)
    theirs[0] = torch.where(v.isinf(), 0.0, theirs[0])
    for one, other in zip(mine, theirs, strict=True):
        assert_near(one, other, 1e-5)


@pytest.mark.parametrize("shift", [1e6, -3e37, 3e38])
@pytest.mark.parametrize("link", LINKS[1:], ids=NAMES[1:])
def test_no_noise_is_lost_to_logits_far_from_0(link, shift):
    results = []
    for x in (torch.zeros(4, 5), torch.full((4, 5), shift)):
        leaves = x.requires_grad_(), torch.tensor(0.5, requires_grad=True)
        arguments = placed(*leaves, link, (2,))
        s, v, log_p = cuda._FusedDraw.apply(*arguments, True, True, True)
        hard = cuda._FusedStraightThroughDraw.apply(*arguments)
        found = density(cuda, s.detach(), v.detach(), *leaves, link, (4,), True)
        total = s.square().sum() + log_p.sum() + (hard * torch.ones(5)).sum() + found.sum()
        results.append([s, v, log_p, hard, found, *torch.autograd.grad(total, leaves)])
    for one, other in zip(*results, strict=True):
        assert one.equal(other)


@pytest.mark.filterwarnings("ignore:overflow encountered in multiply")
def test_logits_of_any_spread():
    """Sums do not overflow, and quotients do so to -inf."""
    x = torch.tensor([[3e38, -3e38, 3e38, 0.0, -math.inf]], requires_grad=True)
    tau = torch.tensor(0.01, requires_grad=True)
    for link in LINKS[1:]:
        arguments = placed(x, tau, link, (20,))
        s, _, log_p = cuda._FusedDraw.apply(*arguments, True, False, True)
        assert s[..., [1, 3, 4]].max() < 1e-30 or link is not simplex
        assert_near(s.sum(-1), torch.full((20, 1), float(link.size)))
        assert log_p.isfinite().all()
        found = torch.autograd.grad(s.square().sum() + log_p.sum(), [x, tau])
        assert all(g.isfinite().all() for g in found)


# The interpreter of Triton 3.4 lets NumPy warn of log(0), here in the row that is NaN.
@pytest.mark.filterwarnings("ignore:divide by zero encountered in log")
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_nan_is_not_passed_over(link):
    """Without validation a logit that is NaN shows in its row, and in no other."""
    x, tau = parameters(link)
    with torch.no_grad():
        x[1, ...] = (
            torch.where(torch.arange(5) == 2, math.nan, x[1]) if link.event_dim else math.nan
        )
    s, _, log_p = cuda._FusedDraw.apply(*placed(x, tau, link, (3,)), True, True, True)
    found = density(
        cuda, s.detach(), link.inverse(s.detach().nan_to_num(0.5)), x, tau, link, (4,), True
    )
    is_nan = torch.tensor([False, True, False, False])
    for each in (s.sum(-1) if link.event_dim else s, log_p, found):
        assert each.isnan().equal(is_nan.expand(each.shape))


# Low and high temperatures.


@pytest.mark.parametrize("tau", [1e-3, 0.05, 3.0, 100.0])
@pytest.mark.parametrize("link", [*LINKS, Hypersimplex(7)])
def test_temperatures(link, tau):
    """To the digits that float32 has of z / tau."""
    x, tau_ = parameters(link, 30, scale=2.0, tau=tau)
    arguments = placed(x, tau_, link, (4,))
    found = cuda._FusedDraw.apply(*arguments, True, True, True)
    expected = graph(arguments, *in_double(x, tau_))
    error = 4e-6 * max(1.0, 1 / tau)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=error)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=3e-7, atol=error)
    torch.testing.assert_close(found[2].double(), expected[2], rtol=3e-6, atol=30 * error)
    if link.event_dim:
        size = 1 if link is simplex else link.size
        assert_near(found[0].sum(-1), torch.full(found[0].shape[:-1], float(size)))


# Equal perturbed logits.


@triton.jit
def no_noise(seed, row, start, K: tl.constexpr, BLOCK: tl.constexpr):
    return tl.full((row.shape[0], BLOCK), 1.0, tl.float32)


@pytest.mark.interpreter  # a compiled kernel keeps its noise
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("size", [1, 3, 6])
def test_of_equal_entries_the_first_are_chosen(size, blocks, monkeypatch, request):
    """The relaxed value treats them alike."""
    if blocks:
        request.getfixturevalue("short_blocks")
    monkeypatch.setattr(triton_rows, "_exponential_of_rows", no_noise)
    x = torch.tensor([[0.0, 1, 0, 1, 1, 1, 1, -1, 1, 0, 1, 1]])
    links = [simplex, Hypersimplex(1)] if size == 1 else [Hypersimplex(size)]
    for link in links:
        arguments = placed(x, torch.tensor(0.5), link)
        hard = cuda._FusedStraightThroughDraw.apply(*arguments)
        ones = (x[0] == 1).nonzero().flatten()[:size]
        assert hard[0].nonzero().flatten().equal(ones)
        s, _, _ = cuda._FusedDraw.apply(*arguments, True, True, False)
        assert_near(s, link(x.double(), torch.tensor(0.5).double()))


# Precision, strides, nothing at all.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_half_precision(link, dtype):
    """Read and written as they are, computed in float32. (The interpreter rounds towards 0.)"""
    x, tau = parameters(link, dtype=dtype)
    tau = tau.detach()
    arguments = placed(x, tau, link, (3,))
    half = cuda._FusedDraw.apply(*arguments, True, True, True)
    wide = x.detach().float().requires_grad_()
    single = cuda._FusedDraw.apply(*placed(wide, tau, link, (3,)), True, True, True)
    finfo = torch.finfo(dtype)
    error = {"rtol": finfo.eps, "atol": finfo.smallest_normal * finfo.eps}
    torch.testing.assert_close(half[0].float(), single[0], **error)
    assert half[1].equal(single[1])
    assert half[2].equal(single[2])
    weights = [torch.randn_like(y) for y in half]
    for mine, theirs in zip(totals(half, weights), totals(single, weights), strict=True):
        (one,), (other,) = gradients_of(mine, [x]), gradients_of(theirs, [wide])
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), other, rtol=finfo.eps, atol=error["atol"] + 2e-6)
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    other = cuda._FusedStraightThroughDraw.apply(*placed(wide, tau, link, (3,)))
    assert hard.equal(other.to(dtype))
    batch = arguments[-1]
    found = density(cuda, half[0], half[1].detach(), x, tau, link, batch, True)
    assert found.dtype == torch.float32
    assert_near(found, density(reference, half[0], half[1].detach(), wide, tau, link, batch, True))


def gradients_with_strides(shape):
    """The same numbers in several layouts, and expanded ones."""
    numbers = torch.randn(shape)
    yield numbers.transpose(0, -1).contiguous().transpose(0, -1), numbers
    yield torch.stack([numbers, -numbers], -1)[..., 0], numbers
    yield numbers[:1].expand(shape), numbers[:1].expand(shape).contiguous()
    one = torch.tensor(0.7).expand(shape)
    yield one, one.contiguous()


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_gradients_of_any_strides(link):
    x, tau = parameters(link)
    arguments = placed(x, tau, link, (3,))
    found = cuda._FusedDraw.apply(*arguments, True, True, True)
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    v = found[1].detach().requires_grad_()
    log_p = density(cuda, link.value(v), v, x, tau, link, arguments[-1], True)
    for y, leaves in (*((y, [x, tau]) for y in (*found, hard)), (log_p, [v, x, tau])):
        for given, contiguous in gradients_with_strides(y.shape):
            mine, right = (
                torch.autograd.grad(y, leaves, grad, retain_graph=True)
                for grad in (given, contiguous)
            )
            for one, other in zip(mine, right, strict=True):
                assert_near(one, other, 1e-6)


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_parameters_and_values_of_any_strides(link):
    x, tau = parameters(link, batch=(4, 3))
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    arguments, others = placed(x, tau, link), placed(strided, tau, link)
    found = cuda._FusedDraw.apply(*arguments, True, True, True)
    same = cuda._FusedDraw.apply(*others, True, True, True)
    for one, other in zip(found, same, strict=True):
        assert one.equal(other)
    v = found[1].detach()
    turned = v.transpose(0, 1).contiguous().transpose(0, 1)
    for each in (v, turned):
        log_p = density(cuda, link.value(each), each, strided, tau, link, (4, 3), True)
        assert_near(log_p, found[2], 1e-5)


def with_opposite_signs(t):
    """The same numbers, of which torch knows that the memory has them with the opposite sign.

    The imaginary part of a conjugate is held so.
    """
    return torch._neg_view(-t.detach()).requires_grad_(t.requires_grad)


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_numbers_that_are_held_with_the_opposite_sign(link):
    def found_with(held):
        arguments = placed(held(x), held(tau), link, (3,))
        drawn = cuda._FusedDraw.apply(*arguments, True, True, True)
        hard = [cuda._FusedStraightThroughDraw.apply(*arguments)]
        if not isinstance(link, Hypersimplex):
            hard.append(cuda._FusedSecondOrderDraw.apply(arguments[0], *arguments[2:]))
            hard += [
                cuda._FusedEstimatedDraw.apply(*arguments, each)
                for each in (straight_through, gumbel_rao(3))
            ]
        leaves, place = [*arguments[:2], held(v)], arguments[-1]
        value = held(link.value(v).detach())
        log_ps = [
            density(cuda, value, leaves[2], *leaves[:2], link, place, o) for o in (True, False)
        ]
        outputs = [*drawn, *hard, *log_ps]
        grads = [held(torch.linspace(0.5, 1.5, y.numel()).view(y.shape)) for y in outputs]
        return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]

    x, tau = parameters(link)
    v = torch.randn_like(x, requires_grad=True)
    for one, other in zip(found_with(with_opposite_signs), found_with(copy), strict=True):
        assert_near(one, other, 1e-6)


def copy(t):
    return t.detach().clone().requires_grad_(t.requires_grad)


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_empty_draws(link):
    x, tau = parameters(link)
    arguments = placed(x, tau, link, (0,))
    s, v, log_p = cuda._FusedDraw.apply(*arguments, True, True, True)
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    assert s.shape == v.shape == hard.shape == (0, *x.shape)
    found = density(cuda, s, v, x, tau, link, arguments[-1], True)
    assert found.shape == log_p.shape == (0, *arguments[-1])
    total = s.sum() + v.sum() + log_p.sum() + hard.sum() + found.sum()
    assert [g.abs().max() for g in torch.autograd.grad(total, [x, tau])] == [0, 0]
