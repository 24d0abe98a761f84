# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Surrogate gradients against literal slow versions, and against exact gradients by enumeration."""

import pytest
import torch

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuceStraightThrough,
    SubsetStraightThrough,
    gumbel_softmax,
    links,
    reinmax,
    straight_through,
)
from tests.common import make

NAMES = {
    "gumbel_softmax": gumbel_softmax,
    "reinmax": reinmax,
    "straight_through": straight_through,
}


def jacobian(p):
    """Of the softmax: diag(p) - p p'."""
    return torch.diag(p) - torch.outer(p, p)


def literally(name, x, tau, z, hard):
    """The matrix that the gradient in the sample is multiplied by, from the papers."""
    soft = {"gumbel_softmax": z, "straight_through": x}
    if name in soft:
        return jacobian((soft[name] / tau).softmax(-1)) / tau
    middle = ((x / tau).softmax(-1) + hard) / 2
    return 2 * jacobian(middle) - jacobian(x.softmax(-1)) / 2


def backward(name, x, tau, z, hard, gradient, link=links.simplex):
    """The estimator's gradient in x; in z = x + noise the noise is held fixed."""
    x = x.clone().requires_grad_()
    surrogate = NAMES[name](x, torch.tensor(tau, dtype=x.dtype), x + (z - x).detach(), hard, link)
    return torch.autograd.grad((surrogate * gradient).sum(), x)[0]


def case(k, seed=0):
    """Logits, perturbed logits, the sample that they choose, and a gradient in it."""
    generator = torch.Generator().manual_seed(seed)
    x, g, gradient = torch.randn(3, k, dtype=torch.float64, generator=generator)
    return x, x + g, links.simplex.vertex(x + g), gradient


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_an_estimator_is_the_one_of_its_paper(name, tau, k):
    for seed in range(5):
        x, z, hard, gradient = case(k, seed)
        expected = literally(name, x, tau, z, hard) @ gradient
        found = backward(name, x, tau, z, hard, gradient)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_bit_is_one_of_two(name, tau):
    """With the logits (0, x), and the noise of the difference."""
    for seed in range(5):
        x, z, hard, gradient = case(2, seed)
        pair = x - x[0], z - z[0]
        matrix = literally(name, pair[0], tau, pair[1], hard)
        expected = matrix[1, 1] * gradient[1]
        bit = pair[0][1], tau, pair[1][1], hard[1], gradient[1]
        found = backward(name, *bit, link=links.interval)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def bias(name, k, degree):
    """Of the expected gradient of a random polynomial of the sample, all samples enumerated."""
    x, z, _, linear = case(k)
    square = torch.randn(k, k, dtype=torch.float64) if degree == 2 else torch.zeros(k, k)
    square = (square + square.T).to(x)

    def f(d):
        return d @ square @ d + d @ linear

    x.requires_grad_()
    vertices = torch.eye(k, dtype=torch.float64)
    values = torch.stack([f(d) for d in vertices])
    (exact,) = torch.autograd.grad(x.softmax(-1) @ values, x)
    x = x.detach()
    expected = sum(
        p * backward(name, x, 1.0, z, d, 2 * square @ d + linear)
        for p, d in zip(x.softmax(-1), vertices, strict=True)
    )
    return (expected - exact).abs().max().item()


@pytest.mark.parametrize("k", [2, 3, 7])
def test_which_are_unbiased_at_temperature_one(k):
    assert bias("straight_through", k, degree=1) < 1e-12
    assert bias("reinmax", k, degree=1) < 1e-12
    assert bias("reinmax", k, degree=2) < 1e-10
    assert bias("straight_through", k, degree=2) > 0.01


def test_gumbel_softmax_is_unbiased_for_quadratics_in_the_limit():
    """Of a bit, by quadrature over the noise: the bias falls in proportion to the temperature."""
    x, linear, square = torch.tensor([0.7, -0.4, 1.5], dtype=torch.float64)
    p = x.sigmoid()
    exact = (square + linear) * p * (1 - p)
    for tau in (0.1, 0.03, 0.01):
        z = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
        density = torch.sigmoid(z - x) * torch.sigmoid(x - z)
        hard = links.interval.vertex(z)
        gradient = (2 * square * hard + linear) * density * 1e-4
        logits = x.expand(z.shape)
        found = backward("gumbel_softmax", logits, tau, z, hard, gradient, links.interval).sum()
        assert abs(found / exact - 1) < 0.6 * tau


@pytest.mark.parametrize("cls", [
    BernoulliStraightThrough, CategoricalStraightThrough, PlackettLuceStraightThrough,
])  # fmt: skip
@pytest.mark.parametrize("name", ["reinmax", "straight_through"])
def test_a_law_uses_it_by_name(name, cls):
    """For an order row by row, the taken at -inf."""
    law = make(cls, temperature=0.7, k=4, dtype=torch.float64)
    law.estimator = NAMES[name]
    value = law.rsample()
    weights = torch.randn_like(value)
    (found,) = torch.autograd.grad((value * weights).sum(), law._raw)
    logits = law._raw.detach().requires_grad_()
    x = logits
    if cls is PlackettLuceStraightThrough:
        x = torch.where(law._untaken(value.detach()), logits.unsqueeze(-2), -torch.inf)
    surrogate = NAMES[name](x, law._tau, x, value.detach(), law.link)
    (expected,) = torch.autograd.grad((surrogate * weights).sum(), logits)
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0
    by_name = cls(0.7, *([2] if "size" in law.__dict__ else []), logits=logits, estimator=name)
    assert by_name.estimator is NAMES[name]


def test_a_subset_has_no_reinmax():
    law = SubsetStraightThrough(0.5, 2, logits=torch.zeros(4), estimator="reinmax")
    with pytest.raises(ValueError, match=r"got Hypersimplex\(2\); write estimator=.gumbel_softmax"):
        law.rsample()
    law = SubsetStraightThrough(0.5, 2, logits=torch.randn(4).requires_grad_())
    law.estimator = straight_through
    value = law.rsample()
    (found,) = torch.autograd.grad(value[0], law._raw)
    (expected,) = torch.autograd.grad(links.Hypersimplex(2)(law._raw, law.temperature)[0], law._raw)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cls", [BernoulliStraightThrough, CategoricalStraightThrough])
def test_low_temperatures_and_impossible_outcomes_leave_finite_gradients(cls, name, dtype):
    raw = torch.tensor([-torch.inf, 0.3, 20.0, -20.0], dtype=dtype, requires_grad=True)
    value = cls(0.01, logits=raw, estimator=name).rsample((100,))
    (gradient,) = torch.autograd.grad((value * torch.randn(4)).sum(), raw)
    assert gradient.isfinite().all()
    assert gradient[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_under_vmap_and_compile(name):
    def gradient(raw):
        law = CategoricalStraightThrough(0.5, logits=raw, estimator=name, validate_args=False)
        return law.rsample() @ torch.arange(3.0)

    raw = torch.randn(5, 3)
    mapped = torch.func.vmap(torch.func.grad(gradient), randomness="different")(raw)
    assert mapped.shape == (5, 3)
    assert mapped.isfinite().all()
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    leaf = raw[0].clone().requires_grad_()
    (found,) = torch.autograd.grad(compiled(leaf), leaf)
    assert found.isfinite().all()
