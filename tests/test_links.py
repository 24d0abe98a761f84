# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The densities, apart from the sampler: quadrature, mpmath at 50 digits, torch in float64."""

import copy
import math

import mpmath
import numpy
import pyro.distributions as dist
import pytest
import torch

from pyro_gumbel import (
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    RelaxedBernoulli,
    RelaxedCategorical,
    links,
)
from tests.common import first_fast


def float64(*numbers):
    """A float64 tensor; of a single number, without dimensions."""
    return torch.tensor(numbers[0] if len(numbers) == 1 else numbers, dtype=torch.float64)


# Quadrature.


def lower_half(logit, temperature):
    """P(s < 1/2), integrated over y = logit(s), which keeps the integrand smooth at s = 0."""
    nodes, weights = (torch.as_tensor(a) for a in numpy.polynomial.legendre.leggauss(400))
    y, weights = 60 * (nodes - 1), 60 * weights
    s = y.sigmoid()
    density = RelaxedBernoulli(temperature, logits=float64(logit)).log_prob(s).exp()
    return (density * s * (1 - s) * weights).sum().item()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("logit", [-2.0, 0.7])
def test_interval_density_integrates_to_one(temperature, logit):
    """The upper half is the mirror image, where float64 has no numbers close to 1."""
    s = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    d, mirror = (RelaxedBernoulli(temperature, logits=float64(x)) for x in (logit, -logit))
    torch.testing.assert_close(d.log_prob(s), mirror.log_prob(1 - s))
    below, above = lower_half(logit, temperature), lower_half(-logit, temperature)
    assert below + above == pytest.approx(1, abs=1e-6)
    assert above == pytest.approx(float64(logit).sigmoid().item(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_density_in_logit_space_integrates_to_one(temperature):
    d = LogitRelaxedBernoulli(temperature, logits=float64(0.7))
    v = torch.linspace(-100, 100, 20_001, dtype=torch.float64)
    assert torch.trapezoid(d.log_prob(v).exp(), v).item() == pytest.approx(1, abs=1e-6)


def log_ratio_grid(k, half_width, steps):
    """Values in logit space on a grid of log-ratios, as rows of a matrix, and the cell's volume."""
    axis = torch.linspace(-half_width, half_width, steps, dtype=torch.float64)
    ratios = torch.cartesian_prod(*[axis] * (k - 1)).reshape(-1, k - 1)
    coordinates = torch.nn.functional.pad(ratios, (0, 1)).log_softmax(-1)
    return coordinates, (axis[1] - axis[0]) ** (k - 1)


@pytest.mark.parametrize("temperature", first_fast([0.3, 1.0, 3.0]))
@pytest.mark.parametrize(("k", "steps"), [(2, 4001), (3, 1501)])
def test_simplex_density_integrates_to_one(k, steps, temperature):
    """The trapezoid rule in log-ratios, whose Jacobian on the simplex is prod(s).

    The rule is exact to rounding once the tails (density exp(-tau |y|)) are covered.
    """
    logits = float64(0.5, -1.0, 0.3)[:k]
    coordinates, cell = log_ratio_grid(k, 30 / min(temperature, 1), steps)
    d = RelaxedCategorical(temperature, logits=logits, validate_args=False)
    log_density = d.log_prob(coordinates.exp().clamp(min=1e-300)) + coordinates.sum(-1)
    assert (log_density.exp().sum() * cell).item() == pytest.approx(1, abs=1e-6)
    d = ExpRelaxedCategorical(temperature, logits=logits)
    assert (d.log_prob(coordinates).exp().sum() * cell).item() == pytest.approx(1, abs=1e-6)


# mpmath, from the formula as the papers print it.


def concrete_log_density(x, tau, s):
    """Maddison, Mnih and Teh (2017), definition 1, at 50 digits."""
    with mpmath.workdps(50):
        x, s = [mpmath.mpf(i) for i in x], [mpmath.mpf(i) for i in s]
        tau, k = mpmath.mpf(tau), len(x)
        alpha = [mpmath.exp(i) for i in x]
        total = mpmath.fsum(a * i ** (-tau) for a, i in zip(alpha, s, strict=True))
        product = mpmath.fprod(a * i ** (-tau - 1) / total for a, i in zip(alpha, s, strict=True))
        return mpmath.log(mpmath.factorial(k - 1) * tau ** (k - 1) * product)


def binary_concrete_log_density(x, tau, s):
    """Maddison, Mnih and Teh (2017), appendix B, eq. 24, at 50 digits."""
    with mpmath.workdps(50):
        alpha, tau, s = mpmath.exp(mpmath.mpf(x)), mpmath.mpf(tau), mpmath.mpf(s)
        top = tau * alpha * s ** (-tau - 1) * (1 - s) ** (-tau - 1)
        return mpmath.log(top / (alpha * s ** (-tau) + (1 - s) ** (-tau)) ** 2)


TEMPERATURES = [0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_simplex_density_equals_mpmath(k, temperature):
    for _ in range(20):
        x = 3 * torch.randn(k, dtype=torch.float64)
        v = ExpRelaxedCategorical(temperature, logits=x).sample().clamp(min=-600)
        s = v.exp()
        exact = float(concrete_log_density(x.tolist(), temperature, s.tolist()))
        found = RelaxedCategorical(temperature, logits=x, validate_args=False).log_prob(s).item()
        assert abs(found - exact) <= 1e-12 * max(1, abs(exact))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_interval_density_equals_mpmath(temperature):
    for _ in range(40):
        x = 3 * torch.randn((), dtype=torch.float64)
        s = (5 * torch.randn((), dtype=torch.float64)).sigmoid()
        exact = float(binary_concrete_log_density(x.item(), temperature, s.item()))
        found = RelaxedBernoulli(temperature, logits=x).log_prob(s).item()
        assert abs(found - exact) <= 1e-12 * max(1, abs(exact))


# torch in float64, where it is finite.


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("k", [2, 5, 50])
def test_simplex_density_equals_torch(k, temperature):
    x = torch.randn(100, k, dtype=torch.float64)
    tau = torch.tensor(temperature, dtype=torch.float64)
    theirs = dist.RelaxedOneHotCategorical(tau, logits=x, validate_args=False)
    ours = RelaxedCategorical(tau, logits=x, validate_args=False)
    value = ours.sample().clone()
    expected = theirs.log_prob(value)
    assert expected.isfinite().sum() > 50
    torch.testing.assert_close(
        ours.log_prob(value)[expected.isfinite()], expected[expected.isfinite()]
    )


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_interval_density_equals_torch(temperature):
    x = torch.randn(1000, dtype=torch.float64)
    tau = torch.tensor(temperature, dtype=torch.float64)
    theirs = dist.RelaxedBernoulli(tau, logits=x, validate_args=False)
    value = (2 * torch.randn(1000, dtype=torch.float64)).sigmoid()
    expected = theirs.log_prob(value)
    torch.testing.assert_close(RelaxedBernoulli(tau, logits=x).log_prob(value), expected)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 10.0])
def test_two_categories_are_a_bernoulli(temperature):
    logits = 3 * torch.randn(500, dtype=torch.float64)
    bit = RelaxedBernoulli(temperature, logits=logits)
    pair = RelaxedCategorical(
        temperature, logits=torch.stack([logits, torch.zeros_like(logits)], -1)
    )
    s = (3 * torch.randn(500, dtype=torch.float64)).sigmoid()
    value = torch.stack([s, 1 - s], -1)
    torch.testing.assert_close(pair.log_prob(value), bit.log_prob(s), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_density_in_logit_space_is_that_of_the_value_times_the_slopes(temperature):
    """In three ways: by autograd of the link, by torch's own, and by the cached v."""
    x = torch.randn(20, 4, dtype=torch.float64)
    v = ExpRelaxedCategorical(temperature, logits=x).sample().clamp(min=-300)
    value_density = RelaxedCategorical(temperature, logits=x, validate_args=False).log_prob(v.exp())
    coordinates = ExpRelaxedCategorical(temperature, logits=x, validate_args=False)
    torch.testing.assert_close(coordinates.log_prob(v), value_density + v.sum(-1))
    theirs = torch.distributions.relaxed_categorical.ExpRelaxedCategorical(
        torch.tensor(temperature, dtype=torch.float64), logits=x, validate_args=False
    )
    torch.testing.assert_close(coordinates.log_prob(v), theirs.log_prob(v))
    bits = x[:, 0]
    u = LogitRelaxedBernoulli(temperature, logits=bits).sample().clamp(-30, 30)
    slope = u.sigmoid() * (1 - u.sigmoid())
    torch.testing.assert_close(
        LogitRelaxedBernoulli(temperature, logits=bits).log_prob(u),
        RelaxedBernoulli(temperature, logits=bits).log_prob(u.sigmoid()) + slope.log(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_categories_that_cannot_occur_are_left_out():
    x = float64(0.3, -math.inf, -1.0, 0.5)
    s = float64(0.2, 0.0, 0.5, 0.3)
    alive = torch.tensor([0, 2, 3])
    expected = RelaxedCategorical(0.7, logits=x[alive]).log_prob(s[alive])
    assert RelaxedCategorical(0.7, logits=x).log_prob(s).item() == pytest.approx(expected.item())
    occupied = float64(0.2, 0.1, 0.4, 0.3)
    assert RelaxedCategorical(0.7, logits=x).log_prob(occupied).item() == -math.inf
    v = ExpRelaxedCategorical(0.7, logits=x)
    assert v.log_prob(s.log()).item() == pytest.approx(
        ExpRelaxedCategorical(0.7, logits=x[alive]).log_prob(s[alive].log()).item()
    )
    assert v.log_prob(occupied.log()).item() == -math.inf


@pytest.mark.parametrize("cls", [RelaxedBernoulli, LogitRelaxedBernoulli])
def test_a_sure_bit_has_a_single_value(cls):
    d = cls(0.5, probs=float64(0.0, 1.0))
    value = d.sample()
    assert d.log_prob(value).tolist() == [0.0, 0.0]
    assert d.log_prob(value.flip(0)).tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("link", [links.interval, links.simplex])
def test_inverse_is_exact_on_normal_numbers_and_clamped_outside(link, dtype):
    finfo = torch.finfo(dtype)
    values = torch.tensor(
        [finfo.tiny, 2 * finfo.tiny, 1e-30, 0.3, 0.999, 1 - finfo.eps / 2], dtype=dtype
    )
    one = values.double()
    exact = one.log() - (torch.log1p(-one) if link is links.interval else 0)
    torch.testing.assert_close(link.inverse(values).double(), exact, rtol=4 * finfo.eps, atol=0)
    boundary = torch.tensor([0.0, finfo.tiny * finfo.eps, 1.0], dtype=dtype, requires_grad=True)
    found = link.inverse(boundary)
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), boundary)[0].isfinite().all()


def test_links_are_values_of_the_same_perturbed_logits():
    z, tau = torch.randn(5, 3, dtype=torch.float64), float64(0.3)
    torch.testing.assert_close(links.simplex(z, tau), (z / tau).softmax(-1))
    torch.testing.assert_close(links.interval(z, tau), (z / tau).sigmoid())


# Derivatives of derivatives in forward mode, which torch does not take through a Function's jvp.


OF_FOUR = [(link, n) for link in (links.simplex, links.Hypersimplex(2)) for n in (2, 3, 4)]


@pytest.mark.parametrize(("link", "possible"), [(links.interval, 4), *OF_FOUR])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_forward_mode_nests(link, possible, temperature):
    """The second and third derivatives are those of reverse mode, also at logits of -inf."""
    z = float64(0.3, -0.2, 0.5, 0.1)
    z[possible:] = -torch.inf
    forward = backward = lambda z: link(z, float64(temperature)).square().sum()
    for order in (1, 2, 3):
        forward, backward = torch.func.jacfwd(forward), torch.func.jacrev(backward)
        assert order == 1 or (backward(z) != 0).any() or possible == getattr(link, "size", 1)
        torch.testing.assert_close(forward(z), backward(z), rtol=1e-9, atol=1e-8)


def test_links_are_equal_if_their_attributes_are():
    class Scaled(links.Interval):
        def __init__(self, *scale):
            self.scale = torch.tensor(scale)

    assert Scaled(1.0, 2.0) == copy.deepcopy(Scaled(1.0, 2.0))
    assert Scaled(1.0, 2.0) != Scaled(1.0, 3.0)
    assert links.Interval() == links.interval != links.simplex
    assert links.Hypersimplex(2) == copy.copy(links.Hypersimplex(2)) != links.Hypersimplex(3)


def test_what_stands_for_an_overflow_is_finite_in_a_program_for_a_gpu():
    """TorchScript writes numbers with 16 digits there, and float64's lowest is infinite then."""
    largest = torch.finfo(torch.float64).max
    x = torch.tensor([largest, -largest], dtype=torch.float64)
    lowest = links.simplex.centred(x)[1].item()
    assert -math.inf < float(f"{lowest:.15e}") < -1.7e308
    below = links.simplex.centred(torch.tensor([3e38, -3e38], dtype=torch.float32))[1]
    assert below == torch.finfo(torch.float32).min
