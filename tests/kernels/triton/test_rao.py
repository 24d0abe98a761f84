# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The kernels of `gumbel_rao`: gradients, the noise given the sample, and the classes on top."""

import dataclasses
import math

import numpy
import pytest
import torch
from scipy import integrate, special

from pyro_gumbel import BernoulliStraightThrough, CategoricalStraightThrough, SubsetStraightThrough
from pyro_gumbel.estimators import gumbel_rao, mean_relaxed
from pyro_gumbel.kernels import cuda, dispatch, triton_rao
from pyro_gumbel.links import interval, simplex
from pyro_gumbel.ops.noise import perturbed_given_bit, perturbed_given_ranking
from tests.common import assert_same_mean
from tests.kernels.triton.common import (
    LARGE,
    assert_near,
    assert_uniform,
    event_of,
    in_double,
    is_by_kernel,
    noise_of,
    parameters,
    placed,
    smooth_total,
    state_of_generator,
)

LINKS = [interval, simplex]
NAMES = ["interval", "simplex"]
by_link = pytest.mark.parametrize("link", LINKS, ids=NAMES)


def draw(arguments, samples=4):
    return cuda._FusedEstimatedDraw.apply(*arguments, gumbel_rao(samples))


def noise_of_samples(arguments, samples):
    x, _, seed, link, over, _ = arguments
    return cuda._noise_of_samples(x, seed, link, over, samples).double()


def surrogate(arguments, hard, samples, x, tau):
    """What the hard value has the gradient of, as operations at the noise of the kernels."""
    link, noise = arguments[3], noise_of_samples(arguments, samples)
    x = link.centred(x).expand(hard.shape)
    if link is simplex:
        z = perturbed_given_ranking(x, hard.argmax(-1, keepdim=True), noise)
    else:
        z = perturbed_given_bit(x, hard.double(), noise)
    return mean_relaxed(x, tau, z, link)


def assert_gradients_are_those_of_the_graph(arguments, samples=4, digits=8e-6):
    """In x and tau, and in x alone."""
    x, tau, _, link = arguments[:4]
    hard, others = draw(arguments, samples), in_double(x, tau)
    expected = surrogate(arguments, hard.detach(), samples, *others)
    assert hard.dtype == x.dtype
    z = link.centred(others[0]) + noise_of(arguments)
    assert hard.equal(link.hard(z).to(x.dtype))
    grad = torch.randn(hard.shape).to(x.dtype)
    right = torch.autograd.grad(expected, others, grad.double())
    found = torch.autograd.grad(hard, [x, tau], grad)
    alone = draw((x, tau.detach(), *arguments[2:]), samples)
    found = *found, *torch.autograd.grad(alone, x, grad)
    for one, other in zip(found, (*right, right[0]), strict=True):
        assert one.isfinite().all()
        assert_near(one, other, digits)
    assert found[0].dtype == x.dtype


# sample shape, batch shape, shape of the parameter and of the temperature
SHAPES = [
    ((), (), (), ()),
    ((), (3,), (3,), ()),
    ((4,), (3,), (3,), (3,)),
    ((2,), (3, 2), (2,), (3, 2)),
    ((2,), (3, 2), (3, 1), (2,)),
    ((5,), (), (), ()),
]


@pytest.mark.parametrize(("sample", "batch", "x_shape", "tau_shape"), SHAPES)
@by_link
def test_gradients_of_all_shapes(link, sample, batch, x_shape, tau_shape):
    x, _ = parameters(link, batch=x_shape)
    tau = torch.rand((*tau_shape, *(1 for _ in event_of(link, 1) if tau_shape))) + 0.3
    assert_gradients_are_those_of_the_graph(placed(x, tau.requires_grad_(), link, sample, batch))


@pytest.mark.parametrize("samples", [1, 2, 10])
@pytest.mark.parametrize("k", [1, 2, 3, 10, 64])
def test_gradients_of_all_sizes(k, samples):
    x, tau = parameters(simplex, k)
    assert_gradients_are_those_of_the_graph(placed(x, tau, simplex, (3,)), samples)


@pytest.mark.parametrize("tau", [0.01, 0.1, 3.0, 100.0])
@by_link
def test_temperatures(link, tau):
    x, tau = parameters(link, 10, scale=2.0, tau=tau)
    digits = 8e-6 * max(1.0, 0.1 / tau.item())
    assert_gradients_are_those_of_the_graph(placed(x, tau, link, (3,)), digits=digits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@by_link
def test_half_precision(link, dtype):
    """Read and written as they are, computed in float32."""
    x, tau = parameters(link, dtype=dtype)
    arguments = placed(x, tau, link)
    assert_gradients_are_those_of_the_graph(arguments, digits=2 * torch.finfo(dtype).eps)
    (wide,) = (x.detach().float().requires_grad_(),)
    found, right = draw(arguments), draw((wide, *arguments[1:]))
    grad = torch.randn(found.shape).to(dtype)
    (one,) = torch.autograd.grad(found, x, grad)
    (other,) = torch.autograd.grad(right, wide, grad.float())
    torch.testing.assert_close(one.float(), other, rtol=torch.finfo(dtype).eps, atol=1e-6)


@by_link
def test_gradients_of_any_strides(link):
    x, tau = parameters(link)
    hard = draw(placed(x, tau, link, (3,)))
    numbers = torch.randn(hard.shape)
    one = torch.tensor(0.7).expand(hard.shape)
    for grad in (
        numbers.transpose(0, -1).contiguous().transpose(0, -1),
        torch.stack([numbers, -numbers], -1)[..., 0],
        numbers[:1].expand(hard.shape),
        one,
    ):
        found, right = (
            torch.autograd.grad(hard, [x, tau], each, retain_graph=True)
            for each in (grad, grad.contiguous())
        )
        for mine, theirs in zip(found, right, strict=True):
            assert_near(mine, theirs, 1e-6)


@by_link
def test_empty_draws(link):
    x, tau = parameters(link)
    hard = draw(placed(x, tau, link, (0,)))
    assert hard.shape == (0, *x.shape)
    assert [g.abs().max() for g in torch.autograd.grad(hard.sum(), [x, tau])] == [0, 0]


# Infinite logits, and logits far apart.


@by_link
def test_where_outcomes_are_impossible(link):
    """Those logits get no gradient, and the others that of the distribution without them."""
    bits = torch.tensor([0.4, -math.inf, math.inf, -1.3, 0.0])
    rows = torch.tensor(
        [[0.4, -math.inf, 1.0, -0.3, -math.inf], [-math.inf, 0.1, *(-math.inf,) * 3]]
    )
    x = (rows if link is simplex else bits).requires_grad_()
    tau = torch.tensor(0.6, requires_grad=True)
    arguments = placed(x, tau, link, (20,))
    assert_gradients_are_those_of_the_graph(arguments)
    hard = draw(arguments)
    assert (hard[:, x == -math.inf] == 0).all()
    assert (hard[:, x == math.inf] == 1).all()
    (found,) = torch.autograd.grad(hard, x, torch.randn(hard.shape))
    assert (found[x.isinf()] == 0).all()
    assert (found[x.isfinite()] != 0).any()


@by_link
def test_a_surrogate_that_is_no_number_has_no_gradient(link):
    x, tau = parameters(link)
    with torch.no_grad():
        x.view(-1)[0] = math.nan
    hard = torch.zeros(x.shape)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        dx, _ = pull(hard, torch.ones(x.shape), *placed(x, tau, link))
    bad = x.isnan() if link is interval else x.isnan().any(-1, keepdim=True).expand(x.shape)
    assert (dx[bad] == 0).all()
    assert dx.isfinite().all()


@pytest.mark.parametrize("shift", [1e6, -3e37, 3e38])
def test_nothing_is_lost_to_logits_far_from_0(shift):
    results = []
    for x in (torch.zeros(4, 5), torch.full((4, 5), shift)):
        leaves = x.requires_grad_(), torch.tensor(0.5, requires_grad=True)
        hard = draw(placed(*leaves, simplex, (2,)))
        total = (hard * torch.arange(5.0)).sum()
        results.append([hard, *torch.autograd.grad(total, leaves)])
    for one, other in zip(*results, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("tau", [1e-3, 0.5])
@by_link
def test_logits_of_any_spread(link, tau):
    """Neither sums nor quotients overflow."""
    x = torch.tensor([[3e38, -3e38, 3e38, 0.0, 80.0]], requires_grad=True)
    tau = torch.tensor(tau, requires_grad=True)
    hard = draw(placed(x, tau, link, (20,)), samples=2)
    grads = torch.autograd.grad(hard, [x, tau], torch.randn(hard.shape))
    assert all(grad.isfinite().all() for grad in grads)


# The noise given the sample. The kernels do not store it; gradients of one sample give it away.


def pull(hard, grad, x, tau, seed, link, over, batch, samples=1):
    """The gradients of every row in x and tau, where the draw has a given value."""
    plan = cuda._plan_of(x, tau, link, over, batch)
    dx, dtau = torch.full(plan.shape, math.nan), torch.full(over, math.nan)
    kernel = triton_rao.pull_rao_of_rows if link is simplex else triton_rao.pull_rao_of_bits
    gs, strides = plan.flat(grad, link.event_dim)
    rows = plan.rows_of(x.detach(), tau.detach())
    plan.run(kernel, *rows, seed, hard, gs, dx, dtau, more=strides, SAMPLES=samples)
    return dx, dtau


@pytest.fixture
def large_tiles(monkeypatch):
    monkeypatch.setattr(cuda, "TILE", LARGE)


PROBS = torch.tensor([1e-7, 0.6, 1e-3, 0.2, 0.1989999])
N = 100_000


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_the_noise_of_vectors_given_the_chosen_category(chosen, large_tiles):
    """With the gradient in another category, dx_i / dx_D = S_i / S_D.

    Given D, P(z_D - z_i > t) = 1 / (1 + (e^t - 1) p_i), for every i and independently of D.
    """
    x, tau = PROBS.log(), torch.tensor(5.0)
    hard = torch.zeros(N, 5)
    hard[:, chosen] = 1.0
    arguments = placed(x.expand(N, 5).contiguous(), tau, simplex)
    for probe in (3, 4):
        grad = torch.zeros(5)
        grad[probe] = 1.0
        dx, _ = pull(hard, grad.expand(N, 5), *arguments)
        dx = dx.double()
        for i in {0, 1, 2, 3, 4} - {chosen, probe}:
            t = 5 * (dx[:, chosen] / dx[:, i]).log()
            assert_uniform((1 / (1 + t.expm1() * PROBS[i].double())).cpu().numpy())
    # Both are behind the same E_D, and its distribution is the same whatever D is.
    e = noise_of_samples(arguments, 1)[0].neg().exp()
    i = 4 if chosen != 4 else 3
    exact = (1 + e[:, i] / (e[:, chosen] * PROBS[i].double())).log()
    dx, _ = pull(hard, torch.eye(5)[3 if i == 4 else 4].expand(N, 5), *arguments)
    assert_near(5 * (dx[:, chosen] / dx[:, i]).double().log(), exact, 2e-6)


@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_the_noise_of_bits_given_their_values(bit, large_tiles):
    """The gradients of one sample have the ratio -v. Given z >= 0 its tail is that of x + L."""
    logits = torch.tensor([-16.0, -2.0, 0.0, 3.0, 16.0])
    x, tau = logits.repeat(N, 1), torch.full((N, 5), 3.0)
    dx, dtau = pull(torch.full((N, 5), bit), torch.ones(N, 5), *placed(x, tau, interval))
    z = (-3 * dtau.double() / dx.double()).cpu().numpy()
    assert ((z >= 0) == bool(bit)).all()
    side = 1 if bit else -1
    for column, logit in enumerate(logits.tolist()):
        tail = special.expit(side * (logit - z[:, column])) / special.expit(side * logit)
        assert_uniform(tail)


@pytest.mark.parametrize("k", [4, 5])
@by_link
def test_no_variate_is_used_twice(link, k):
    """Neither that of the draw, which the hard value has used, nor that of another sample."""
    x, tau = parameters(link, k, (7,))
    arguments = placed(x, tau, link, (3,))
    all_of_them = torch.cat([noise_of(arguments)[None], noise_of_samples(arguments, 6)])
    assert all_of_them.shape == (7, 3, *x.shape)
    assert all_of_them.unique().numel() == all_of_them.numel()


# What it estimates.


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_the_mean_gradient_of_bits(tau, large_tiles):
    """It is the mean of S (1 - S) / tau, which is also that of `gumbel_softmax`."""
    logits = torch.tensor([-3.0, 0.4])
    x, tau_ = logits.repeat(20_000, 1).requires_grad_(), torch.tensor(tau)
    hard = draw(placed(x, tau_, interval), samples=5)
    (found,) = torch.autograd.grad(hard.sum(), x)
    for column, logit in enumerate(logits.tolist()):

        def slope(z, logit=logit):
            density = special.expit(z - logit) * special.expit(logit - z)
            return density * special.expit(z / tau) * special.expit(-z / tau) / tau

        exact, _ = integrate.quad(slope, -40, 40, points=[0.0, logit], epsabs=1e-10, limit=200)
        assert_same_mean(found[:, column], exact)


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_the_mean_gradient_of_vectors(tau, large_tiles):
    """It is that of `gumbel_softmax`, with less variance, for a loss that is not linear too."""
    x = torch.tensor([0.5, -1.0, 0.2, -4.0]).repeat(20_000, 1).requires_grad_()
    weight = torch.tensor([1.0, -0.5, 2.0, 3.0])
    gradients = []
    for number, function in ((0, draw), (1, lambda a: cuda._FusedStraightThroughDraw.apply(*a))):
        hard = function(placed(x, torch.tensor(tau), simplex, number=number))
        gradients.append(torch.autograd.grad((weight * hard).sum(-1).sin().sum(), x)[0])
    averaged, plain = gradients
    assert_same_mean(averaged - plain, torch.zeros(4))
    assert (averaged.var(0)[:3] < plain.var(0)[:3]).all()


# Derivatives of gradients.


@by_link
def test_second_derivatives(link):
    """At the same noise, which is held constant."""
    x, tau = parameters(link, 4, (3,))
    arguments = placed(x, tau, link, (3,))
    hard, others = draw(arguments), in_double(x, tau)
    expected = surrogate(arguments, hard.detach(), 4, *others)
    weight = torch.linspace(0.5, 1.5, hard.numel()).view(hard.shape)
    results = []
    for y, leaves in ((hard, [x, tau]), (expected, others)):
        first = torch.autograd.grad((y * weight).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(smooth_total(first), leaves, retain_graph=True)
        results.append([*first, *second])
    for one, other in zip(*results, strict=True):
        assert_near(one, other, 2e-5)


@by_link
def test_several_gradients_at_once(link):
    x, tau = parameters(link, 3, (2,))
    hard = draw(placed(x, tau, link))
    grads = torch.randn(3, *hard.shape)
    options = {"retain_graph": True}
    found = torch.autograd.grad(hard, [x, tau], grads, is_grads_batched=True, **options)
    each = [torch.autograd.grad(hard, [x, tau], g, **options) for g in grads]
    for one, others in zip(found, zip(*each, strict=True), strict=True):
        assert_near(one, torch.stack(others), 1e-5)


# The classes.


CLASSES = [BernoulliStraightThrough, CategoricalStraightThrough]


def test_only_what_it_is_for(on_the_kernels, short_blocks):
    """Not subclasses, other families, and rows longer than a block."""

    @dataclasses.dataclass(frozen=True)
    class Mine(gumbel_rao):
        pass

    def sample(cls, k, estimator, *arguments):
        logits = torch.randn(4, k, requires_grad=True)
        value = cls(0.5, *arguments, logits=logits, estimator=estimator).rsample()
        assert torch.autograd.grad(value, logits, torch.randn(value.shape))[0].isfinite().all()
        return value

    assert is_by_kernel(sample(CategoricalStraightThrough, 8, gumbel_rao(samples=3)))
    assert not is_by_kernel(sample(CategoricalStraightThrough, 9, gumbel_rao(samples=3)))
    assert is_by_kernel(sample(BernoulliStraightThrough, 9, gumbel_rao(samples=3)))
    assert not is_by_kernel(sample(CategoricalStraightThrough, 8, Mine(samples=3)))
    assert not is_by_kernel(sample(SubsetStraightThrough, 8, gumbel_rao(samples=3), 2))


@pytest.mark.parametrize("cls", CLASSES)
def test_no_sample_is_stored(cls, on_the_kernels, monkeypatch):
    """Nothing is larger than the draw, and nothing but the seed is drawn by torch."""
    sizes = []

    def new(shape, like, dtype=torch.float32, *, before=cuda._new):
        sizes.append(math.prod(shape))
        return before(shape, like, dtype)

    monkeypatch.setattr(cuda, "_new", new)
    logits = torch.randn(6, 5, requires_grad=True)
    torch.manual_seed(0)
    d = cls(0.5, logits=logits, estimator=gumbel_rao(samples=50), validate_args=False)
    d.rsample().sum().backward()
    state = state_of_generator()
    torch.manual_seed(0)
    torch.randint(0, 2**63 - 1, (1,))
    assert state_of_generator().equal(state)
    assert max(sizes) == 30


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_is_read_back(cls, on_the_kernels, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a number was read")

    leaf = torch.randn(4, 5, requires_grad=True)
    tau = torch.tensor(0.5, requires_grad=True)
    d = cls(tau, logits=leaf * 1.0, estimator="gumbel_rao", validate_args=False)
    arguments = d._logits, d._tau, d.link, d.family.noise, torch.Size((2,)), d.batch_shape
    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "nonzero", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    dispatch.estimated_draw(*arguments, d.estimator).sum().backward()
    assert leaf.grad.shape == leaf.shape
