# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Counts: their gradients by exact enumeration, their edges, and what Pyro and torch do to them."""

import copy
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from scipy import special, stats
from torch.distributions import kl_divergence

from pyro_gumbel import BinomialStraightThrough as Binomial
from pyro_gumbel import GeometricStraightThrough as Geometric
from pyro_gumbel import MultinomialStraightThrough as Multinomial
from pyro_gumbel import NegativeBinomialStraightThrough as NegativeBinomial
from pyro_gumbel import PoissonStraightThrough as Poisson
from pyro_gumbel import relax
from pyro_gumbel.distributions import poisson, trials
from tests.common import assert_counts, assert_same_mean
from tests.counts import (
    CLASSES,
    COMPOUNDS,
    COUNTS,
    ONE_EACH,
    SIMPLE,
    VECTORS,
    make_count,
    parameters_of,
    support_of,
)

INF = torch.inf
WIDE = [torch.float32, torch.float64]
HALF = [torch.float16, torch.bfloat16]


def t(*values, dtype=torch.float64):
    """A leaf."""
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=dtype).requires_grad_()


def gradients(total, leaves):
    return torch.autograd.grad(total, list(leaves.values()), allow_unused=True)


# The gradient, by enumeration.


@pytest.fixture
def draw_all(monkeypatch):
    """Instead of samples, every value once: draw_all(cls, values)."""

    def fix(cls, values):
        monkeypatch.setattr(cls, "_drawn", lambda self, sample_shape: values)

    return fix


def expected_gradient(name, leaves, f):
    """The derivatives of E f, by the pmf."""
    values = support_of(name)
    probs = make_count(name, leaves).log_prob(values).exp()
    torch.testing.assert_close(probs.sum().item(), 1.0, rtol=0, atol=1e-13)
    return gradients((probs * f(values)).sum(), leaves)


def estimated_gradient(name, leaves, f):
    """The mean of the estimates, when `rsample` returns every value once."""
    d = make_count(name, leaves)
    sample = d.rsample(support_of(name).shape[:1])
    probs = d.log_prob(sample.detach()).exp().detach()
    return gradients((probs * f(sample)).sum(), leaves)


def quadratic(name):
    """A quadratic loss, with products of different entries."""
    if name not in VECTORS:
        return lambda z: 0.7 * z**2 - 1.3 * z
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(3, n, generator=generator, dtype=torch.float64) for n in (3, 1))
    return lambda z: ((z @ a) * z).sum(-1) + (z @ b).squeeze(-1)


@pytest.mark.parametrize("name", SIMPLE)
def test_unbiased_for_a_quadratic_loss(name, draw_all):
    draw_all(COUNTS[name].cls, support_of(name))
    leaves, f = parameters_of(name), quadratic(name)
    expected = expected_gradient(name, leaves, f)
    assert all(gradient.abs().min() > 0.01 for gradient in expected)
    found = estimated_gradient(name, leaves, f)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in SIMPLE if name not in VECTORS])
def test_the_weights_have_the_least_norm(name, draw_all):
    """Of all w with E w = mean' and 2 E[w D] = (E D^2)', solved for numerically."""
    values, leaves = support_of(name), parameters_of(name)
    draw_all(COUNTS[name].cls, values)
    d = make_count(name, leaves)
    probs, sample = d.log_prob(values).exp(), d.rsample(values.shape)
    root = probs.detach().sqrt()
    for leaf in leaves.values():

        def slope(total, leaf=leaf):
            return torch.autograd.grad(total, leaf, retain_graph=True)[0]

        moments = torch.stack([slope((probs * values**k).sum()) / k for k in (1, 2)])
        conditions = torch.stack([root, root * values])
        weights = np.linalg.lstsq(conditions.numpy(), moments.numpy(), rcond=None)[0]
        found = torch.stack([slope(one) for one in sample])
        np.testing.assert_allclose((root * found).numpy(), weights, rtol=0, atol=1e-9)


def surrogate(name, d, fixed, value):
    """The surrogate of the class's docstring; `fixed` is the distribution in what is constant."""
    if name in VECTORS:
        p, p0, n = d.probs, fixed.probs, 5
        parts = [value[j] * p[j].log() * (torch.eye(3).double()[j] - p0) for j in range(3)]
        return n * p / 2 + sum(parts) / 2
    return d.mean + (value - fixed.mean) / (2 * fixed.variance) * d.variance


@pytest.mark.parametrize("name", SIMPLE)
def test_the_gradient_is_that_of_the_surrogate_by_differences(name, draw_all):
    leaves = parameters_of(name)
    fixed = make_count(name, {key: leaf.detach().clone() for key, leaf in leaves.items()})
    value = support_of(name)[4]
    draw_all(COUNTS[name].cls, value)

    def function(*given):
        d = make_count(name, dict(zip(leaves, given, strict=True)), validate_args=False)
        return surrogate(name, d, fixed, value)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    weights = torch.arange(1.0, value.numel() + 1).double().reshape(value.shape)
    found = gradients((make_count(name, leaves).rsample() * weights).sum(), leaves)
    expected = gradients((function(*leaves.values()) * weights).sum(), leaves)
    torch.testing.assert_close(found, expected)


LOSSES = {
    "cubic": lambda z: 0.05 * z**3,
    "exp": lambda z: torch.exp(-z / 3),
    "log1p": torch.log1p,
    "lgamma": lambda z: torch.lgamma(z + 1),
}
# The bias of the derivative in the rate, the logit and the logit.
BIASES = {
    "Poisson": (lambda x: Poisson(x), 3.0, [0.025, -0.001119, 0.006072, -0.01101]),
    "Binomial": (
        lambda x: Binomial(10, logits=x),
        0.3,
        [0.06111, -0.001294, 0.002137, -0.006766],
    ),
    "NegativeBinomial": (
        lambda x: NegativeBinomial(5.0, logits=x),
        0.2,
        [0.1527, -0.002688, 0.008626, -0.01980],
    ),
}


@pytest.mark.parametrize("name", BIASES)
def test_the_bias_for_other_losses(name, draw_all):
    constructor, number, biases = BIASES[name]
    parameter = t(number)
    d = constructor(parameter)
    values = torch.arange(11 if name == "Binomial" else 300).double()
    draw_all(type(d), values)
    probs, sample = d.log_prob(values).exp(), d.rsample(values.shape)
    for f, bias in zip(LOSSES.values(), biases, strict=True):
        total = (probs.detach() * f(sample)).sum() - (probs * f(values)).sum()
        (found,) = torch.autograd.grad(total, parameter, retain_graph=True)
        assert found.item() == pytest.approx(bias, rel=0.01)


# Compounds: the rate or probability by quadrature, with derivatives of its distribution function.


def quadrature(name, a, b):
    """Nodes of the continuous part, weights, and the derivatives of the nodes in a and b."""
    if name == "GammaPoisson":
        v = np.linspace(-15, 4, 4000)
        x = slope = np.exp(v)
        density = stats.gamma.pdf(x, a, scale=1 / b)
    else:
        v = np.linspace(-20, 20, 4000)
        x, slope = special.expit(v), special.expit(v) * special.expit(-v)
        density = stats.beta.pdf(x, a, b)

    def below(a, b):
        return special.gammainc(a, b * x) if name == "GammaPoisson" else special.betainc(a, b, x)

    h = 1e-5
    in_a = -(below(a + h, b) - below(a - h, b)) / (2 * h) / density
    in_b = -(below(a, b + h) - below(a, b - h)) / (2 * h) / density
    return [torch.from_numpy(y) for y in (x, density * slope * (v[1] - v[0]), in_a, in_b)]


@pytest.fixture
def compound_bias(monkeypatch, draw_all):
    """The bias of the derivatives of E f in the two parameters."""

    def bias(name, losses):
        gamma = name == "GammaPoisson"
        a, b = t(2.0), t(1.5 if gamma else 3.0)
        d = COUNTS[name].cls(a, b) if gamma else COUNTS[name].cls(a, b, 9)
        x, weights, in_a, in_b = quadrature(name, a.item(), b.item())
        node = x + (a - a.detach()) * in_a + (b - b.detach()) * in_b
        values = torch.arange(200 if gamma else 10).double().unsqueeze(-1)
        monkeypatch.setattr(poisson, "gamma_variate", lambda *_: node)
        monkeypatch.setattr(trials, "dirichlet_variate", lambda *_: node.unsqueeze(-1))
        given = Poisson(x) if gamma else Binomial(9, x)
        draw_all(type(given), values.expand(-1, len(x)))
        joint = given.log_prob(values).exp() * weights
        probs, values, sample = d.log_prob(values).exp(), values, d.rsample()
        for f in losses:
            total = (joint * f(sample)).sum() - (probs * f(values)).sum()
            yield torch.stack(torch.autograd.grad(total, (a, b), retain_graph=True))

    return bias


@pytest.mark.parametrize("name", ["GammaPoisson", "BetaBinomial"])
def test_compounds_are_unbiased_for_a_quadratic_loss(name, compound_bias):
    (found,) = compound_bias(name, [lambda z: 0.7 * z**2 - 1.3 * z])
    torch.testing.assert_close(found, torch.zeros(2).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "cubic", "log1p"),
    [("GammaPoisson", [0.0167, 0.0222], [0.0133, 0.0146]), ("BetaBinomial", [0.0270, 0.0180], [0.00805, 0.0036])],
)
def test_the_bias_of_compounds(name, cubic, log1p, compound_bias):
    """In both parameters; several times below that of the whole distribution's own form."""
    found = compound_bias(name, [LOSSES["cubic"], LOSSES["log1p"]])
    for bias, expected in zip(found, (cubic, log1p), strict=True):
        torch.testing.assert_close(bias.abs(), torch.tensor(expected).double(), rtol=0.01, atol=0)


@pytest.mark.parametrize("name", COMPOUNDS)
def test_the_mean_gradient_of_compounds_is_exact_for_a_quadratic_loss(name):
    """With the pathwise derivatives of torch."""
    leaves, f, n = parameters_of(name), quadratic(name), 200_000
    expected = expected_gradient(name, leaves, f)
    many = {
        key: leaf.detach().expand(n, *leaf.shape).clone().requires_grad_()
        for key, leaf in leaves.items()
    }
    found = gradients(f(make_count(name, many).rsample()).sum(), many)
    for one, other in zip(found, expected, strict=True):
        assert_same_mean(one, other)
