# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Counts: their gradients by exact enumeration, their edges, and what Pyro and torch do to them."""

import copy
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from scipy import special, stats
from torch.distributions import kl_divergence

from pyro_gumbel import BetaBinomialStraightThrough as BetaBinomial
from pyro_gumbel import BinomialStraightThrough as Binomial
from pyro_gumbel import DirichletMultinomialStraightThrough as DirichletMultinomial
from pyro_gumbel import GammaPoissonStraightThrough as GammaPoisson
from pyro_gumbel import GeometricStraightThrough as Geometric
from pyro_gumbel import MultinomialStraightThrough as Multinomial
from pyro_gumbel import NegativeBinomialStraightThrough as NegativeBinomial
from pyro_gumbel import PoissonStraightThrough as Poisson
from pyro_gumbel import relax
from pyro_gumbel.distributions import poisson, trials
from tests.common import assert_counts, assert_same_mean, first_fast, seeded
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
    return torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)


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
    a, b = (seeded(torch.randn, generator, 3, n, dtype=torch.float64) for n in (3, 1))
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
        weights = np.linalg.lstsq(conditions.cpu().numpy(), moments.cpu().numpy(), rcond=None)[0]
        found = torch.stack([slope(one) for one in sample])
        np.testing.assert_allclose((root * found).cpu().numpy(), weights, rtol=0, atol=1e-9)


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


def test_the_gradient_beside_a_category_that_is_impossible(draw_all):
    found = []
    for probs, value in ((t(0.0, 0.3, 0.7), [0.0, 2.0, 3.0]), (t(0.3, 0.7), [2.0, 3.0])):
        draw_all(Multinomial, torch.tensor(value).double())
        weights = torch.tensor([5.0, 1.0, -2.0]).double()[-len(value) :]
        total = (Multinomial(5, probs).rsample() * weights).sum()
        found.append(torch.autograd.grad(total, probs)[0][-2:])
    torch.testing.assert_close(*found)
    assert found[0].abs().min() > 0.1


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
    return [torch.as_tensor(y) for y in (x, density * slope * (v[1] - v[0]), in_a, in_b)]


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
    [
        ("GammaPoisson", [0.0167, 0.0222], [0.0133, 0.0146]),
        ("BetaBinomial", [0.0270, 0.0180], [0.00805, 0.0036]),
    ],
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


# The distribution.

REFERENCE = {
    "Poisson": lambda z: stats.poisson.logpmf(z, 3),
    "Binomial probs": lambda z: stats.binom.logpmf(z, 5, 0.3),
    "Binomial logits": lambda z: stats.binom.logpmf(z, 5, special.expit(0.3)),
    "NegativeBinomial probs": lambda z: stats.nbinom.logpmf(z, 2.5, 0.6),
    "NegativeBinomial logits": lambda z: stats.nbinom.logpmf(z, 2.5, special.expit(0.4)),
    "Geometric probs": lambda z: stats.geom.logpmf(z + 1, 0.4),
    "Geometric logits": lambda z: stats.geom.logpmf(z + 1, special.expit(-0.4)),
    "Multinomial probs": lambda z: stats.multinomial.logpmf(z, 5, [0.2, 0.3, 0.5]),
    "Multinomial logits": lambda z: stats.multinomial.logpmf(
        z, 5, special.softmax([0.3, -0.4, 1.0])
    ),
    "BetaBinomial": lambda z: stats.betabinom.logpmf(z, 5, 2, 3),
    "GammaPoisson": lambda z: stats.nbinom.logpmf(z, 2, 0.6),
    "DirichletMultinomial": lambda z: stats.dirichlet_multinomial.logpmf(
        z.astype(int), [2, 1.5, 3], 5
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_log_prob_and_moments(name):
    values, leaves = support_of(name), parameters_of(name)
    d = make_count(name, leaves)
    log_prob = d.log_prob(values)
    expected = torch.as_tensor(REFERENCE[name](values.cpu().numpy()))
    torch.testing.assert_close(log_prob.detach(), expected, rtol=1e-7, atol=1e-11)
    weights = log_prob.exp().reshape(-1, *(1,) * len(d.event_shape))
    mean = (weights * values).sum(0)
    variance = (weights * values**2).sum(0) - mean**2
    for found, expected in ((d.mean, mean), (d.variance, variance)):
        torch.testing.assert_close(found, expected)
        pairs = [gradients(total.sum().square(), leaves) for total in (found, expected)]
        torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("name", COUNTS)
def test_samples_are_those_of_the_plain_class(name, dtype):
    leaves = parameters_of(name, (4,), dtype)
    plain, d = make_count(name, leaves, parent=True), make_count(name, leaves)
    draws = []
    for draw in (plain.sample, d.sample, d.rsample):
        pyro.set_rng_seed(1)
        draws.append(draw((500,)))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])
    assert draws[2].dtype is dtype
    assert draws[2].requires_grad
    assert not draws[1].requires_grad


@pytest.mark.parametrize("name", ONE_EACH)
def test_log_prob_is_differentiable_in_the_value(name):
    """The slopes of an analytic extension, by differences; Pyro's have none in some terms."""
    d = make_count(name)
    value = support_of(name)[3:6].clone()
    value[value == 0] += 0.5  # inside, where no value is clamped
    value = value.clamp(max=4.5).requires_grad_()
    d._validate_args = False

    def inside(value):
        return d._log_prob(value)

    assert torch.autograd.gradcheck(inside, value)


@pytest.mark.parametrize("name", ONE_EACH)
def test_what_is_impossible_has_a_finite_slope(name):
    outside = torch.full_like(support_of(name)[:1], -1.0).requires_grad_()
    d = make_count(name, validate_args=False)
    log_prob = d.log_prob(outside)
    assert (log_prob == -INF).all()
    assert torch.autograd.grad(log_prob.sum(), outside)[0].isfinite().all()


def test_unequal_trials_of_dirichlet_multinomials_cannot_be_drawn():
    trials = torch.tensor([3.0, 5.0])
    d = DirichletMultinomial(torch.ones(2), trials)
    assert d.log_prob(torch.tensor([[3.0, 0.0], [0.0, 5.0]])).tolist() == pytest.approx(
        [-np.log(4), -np.log(6)]
    )
    for draw in (d.sample, d.rsample):
        with pytest.raises(NotImplementedError, match=r"`total_count` must be .*, got 3 to 5"):
            draw()


# The edges.

LOGITS = [20.0, -20.0, INF, -INF]
EDGES = {
    "rate 0": (Poisson, {"rate": [0.0, 1e-30]}, {}),
    "binomial probs": (Binomial, {"probs": [0.0, 1.0]}, {"total_count": 5}),
    "binomial logits": (Binomial, {"logits": LOGITS}, {"total_count": 5}),
    "no binomial trials": (Binomial, {"probs": [0.0, 0.3, 1.0]}, {"total_count": 0}),
    "negative binomial probs": (NegativeBinomial, {"probs": [0.0, 1e-20]}, {"total_count": 5.0}),
    "negative binomial logits": (
        NegativeBinomial,
        {"logits": [20.0, -20.0, -INF]},
        {"total_count": 5.0},
    ),
    "no failures": (NegativeBinomial, {"total_count": [0.0, 0.0], "probs": [0.3, 0.0]}, {}),
    "geometric probs": (Geometric, {"probs": [1.0, 1e-6]}, {}),
    "geometric logits": (Geometric, {"logits": [20.0, -20.0, INF]}, {}),
    "multinomial probs": (
        Multinomial,
        {"probs": [[0.0, 0.3, 0.7], [1.0, 0.0, 0.0]]},
        N5 := {"total_count": 5},
    ),
    "multinomial logits": (Multinomial, {"logits": [[-INF, 20.0, -20.0], [0.0, -INF, -INF]]}, N5),
    "no multinomial trials": (Multinomial, {"probs": [0.0, 0.3, 0.7]}, {"total_count": 0}),
}


def at_the_edge(case, dtype):
    cls, parameters, constants = EDGES[case]
    leaves = {key: torch.tensor(v, dtype=dtype).requires_grad_() for key, v in parameters.items()}
    return cls(**leaves, **constants, validate_args=True), leaves


@pytest.mark.parametrize("dtype", WIDE + HALF)
@pytest.mark.parametrize("case", EDGES)
def test_everything_is_finite_at_the_edges(case, dtype):
    d, leaves = at_the_edge(case, dtype)
    sample = d.rsample((20,))
    assert sample.isfinite().all()
    log_prob = d.log_prob(sample)
    wide = torch.promote_types(dtype, torch.float32)
    assert log_prob.dtype is wide
    assert log_prob.isfinite().all()
    total = (log_prob.reshape(20, -1).sum(-1) + sample.to(wide).reshape(20, -1).sum(-1)).mean()
    for gradient in gradients(total, leaves):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", WIDE + HALF)
@pytest.mark.parametrize("case", EDGES)
def test_the_divergence_from_itself_at_the_edges(case, dtype):
    (q, leaves), (p, others) = at_the_edge(case, dtype), at_the_edge(case, dtype)
    if "total_count" in leaves:
        q.total_count, p.total_count = q.total_count.detach(), p.total_count.detach()
    divergence = kl_divergence(q, p)
    assert divergence.abs().max() < 1e-5
    assert divergence.dtype is torch.promote_types(dtype, torch.float32)
    for gradient in (*gradients(divergence.sum(), leaves), *gradients(divergence.sum(), others)):
        assert gradient is None or gradient.isfinite().all()


def test_values_at_the_edges():
    inf = float("inf")
    for d, value, expected in [
        (Poisson(t(0.0)), [0.0, 2.0], [0, -inf]),
        (Binomial(5, t(0.0)), [0.0, 1.0], [0, -inf]),
        (Binomial(5, t(1.0)), [5.0, 4.0], [0, -inf]),
        (Binomial(5, logits=t(-INF)), [0.0, 1.0], [0, -inf]),
        (Binomial(5, logits=t(INF)), [5.0, 4.0], [0, -inf]),
        (NegativeBinomial(0.0, t(0.3)), [0.0, 1.0], [0, -inf]),
        (NegativeBinomial(5.0, t(0.0)), [0.0, 1.0], [0, -inf]),
        (Geometric(t(1.0)), [0.0, 1.0], [0, -inf]),
        (Multinomial(2, t(0.0, 1.0)), [[0.0, 2.0], [1.0, 1.0]], [0, -inf]),
    ]:
        value = t(*value)
        log_prob = d.log_prob(value)
        torch.testing.assert_close(log_prob, t(*expected).detach(), rtol=0, atol=1e-300)
        (slopes,) = torch.autograd.grad(log_prob.sum(), value)
        assert slopes.isfinite().all()
        assert slopes.abs().amax() > 700  # far from what is impossible
        assert (d.sample((50,)) == value[0]).all()


def test_samples_without_trials_are_those_of_the_plain_class():
    """A rate that has underflowed takes as many random numbers as in torch."""
    total_count, logits = torch.tensor([0.0, 1e-3, 2.0]), torch.tensor([-30.0, 0.0, 0.0])
    draws = []
    for cls in (dist.NegativeBinomial, NegativeBinomial):
        pyro.set_rng_seed(1)
        draws.append(cls(total_count, logits=logits).sample((500,)))
    assert torch.equal(*draws)


def test_moments_where_the_odds_overflow():
    d = NegativeBinomial(torch.tensor([0.0, 1.0, 0.0]), logits=torch.tensor([100.0, 100.0, 1e30]))
    assert d.mean[::2].tolist() == d.variance[::2].tolist() == [0, 0]
    assert d.mode.tolist() == [0, 0, 0]
    assert (d.sample((20,))[:, ::2] == 0).all()
    assert kl_divergence(d, d).tolist() == [0, 0, 0]


def test_entropies_and_divergences_where_the_mean_overflows():
    """The count is then exponential with the rate p, and its mean 1 / p no number of float32."""
    logits = torch.tensor([-100.0, -1e4])
    d, other = (Geometric(logits=(logits + shift).requires_grad_()) for shift in (0, 1))
    torch.testing.assert_close(d.entropy(), 1 - logits)
    expected = torch.full((2,), math.e - 2)
    torch.testing.assert_close(kl_divergence(d, other), expected, rtol=1e-3, atol=0)
    assert (torch.autograd.grad(d.entropy().sum(), d.logits)[0] == -1).all()
    assert kl_divergence(d, d).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("case", EDGES)
def test_the_standard_deviation_of_what_is_sure_has_a_finite_gradient(case, dtype):
    d, leaves = at_the_edge(case, dtype)
    deviation = d.stddev
    torch.testing.assert_close(deviation, d.variance.sqrt())
    # Where the variance is no more than the dtype resolves, that of its root overflows.
    (deviation * (d.variance > 1e-6)).sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


@pytest.mark.parametrize("dtype", WIDE + HALF)
def test_the_slope_of_the_log_odds_in_half_types(dtype):
    probs = torch.tensor([0.5, 0.25], dtype=dtype, requires_grad=True)
    for d in (Geometric(probs), Binomial(3, probs)):
        (slope,) = torch.autograd.grad(d.logits.sum(), probs)
        torch.testing.assert_close(slope, 1 / (probs * (1 - probs)).detach())


def test_an_empty_batch_of_binomials():
    d = Binomial(5, torch.zeros(2, 0))
    assert d.entropy().shape == (2, 0)
    assert d.enumerate_support().shape == (1, 2, 0)
    assert d.enumerate_support(expand=False).shape == (1, 1, 1)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_value_of_another_type_or_shape_is_an_error_that_says_so(name, validate):
    d = make_count(name, validate_args=validate).expand([2])
    for value in (None, 1, True, [0.0, 1.0]):
        with pytest.raises(ValueError, match=r"`value` must be a tensor of floats or integers"):
            d.log_prob(value)
    with pytest.raises(ValueError, match="shape of `value`"):
        d.log_prob(torch.zeros(5, 7))


@pytest.mark.parametrize("large", [1e6, 1e8, 1e30])
def test_the_gradient_of_a_large_concentration_beside_a_small_one(large):
    """Where torch's gradient of a Dirichlet variate is too small or NaN."""
    a = torch.tensor([large, 0.5], requires_grad=True)
    for sample in (DirichletMultinomial(a, 5).rsample()[0], BetaBinomial(*a, 5).rsample()):
        (found,) = torch.autograd.grad(sample, a)
        assert found.isfinite().all()
        assert found[1] != 0 or large == 1e30


def test_derivatives_at_the_edges():
    rate, probs = t(0.0), t(0.0)
    assert torch.autograd.grad(Poisson(rate).log_prob(torch.zeros(())), rate)[0] == -1
    assert torch.autograd.grad(Poisson(rate).rsample(), rate)[0] == 1
    assert torch.autograd.grad(Binomial(5, probs).mean, probs)[0] == 5
    assert torch.autograd.grad(NegativeBinomial(5.0, probs).mean, probs)[0] == 5
    log_prob = NegativeBinomial(5.0, probs).log_prob(torch.zeros(()))
    assert torch.autograd.grad(log_prob, probs)[0] == -5
    total_count = t(0.0)
    log_prob = NegativeBinomial(total_count, t(0.3)).log_prob(torch.zeros(()))
    torch.testing.assert_close(
        torch.autograd.grad(log_prob, total_count)[0], torch.log1p(-t(0.3)).detach()
    )


def test_a_count_beyond_the_range_is_the_largest_number():
    sample = Geometric(logits=torch.tensor(-100.0)).sample((50,))
    assert (sample == torch.finfo(sample.dtype).max).all()


def test_probabilities_that_underflow_keep_their_logarithm():
    d = Multinomial(2, logits=torch.tensor([0.0, -200.0]))
    assert d.log_prob(torch.tensor([0.0, 2.0])).item() == pytest.approx(-400)


@pytest.mark.parametrize("name", ONE_EACH)
def test_what_was_given_survives(name):
    """The derived parameter is not kept: `expand` would take it for the given one."""
    for d in (make_count(name), relax(make_count(name, parent=True), 1.0)):
        if hasattr(d, "logits"):
            _ = d.logits, d.probs
        assert d.expand((2, 3)).log_prob(d.sample((2, 3))).isfinite().all()
    plain = dist.Binomial(5, probs=torch.tensor([0.0, 1.0]))
    _ = plain.logits
    d = relax(plain.expand((3, 2)), 1.0)
    assert torch.equal(d.logits, torch.tensor([-INF, INF]).expand(3, 2))


WITH_ENTROPY = (Binomial, Geometric, Multinomial)


@pytest.mark.parametrize("name", [name for name in SIMPLE if COUNTS[name].cls in WITH_ENTROPY])
def test_entropy(name):
    leaves = parameters_of(name)
    d = make_count(name, leaves)
    log_prob = d.log_prob(support_of(name))
    expected = -(log_prob.exp() * log_prob).sum()
    for form in (d, d.expand((2,))):
        torch.testing.assert_close(form.entropy(), expected.expand(form.batch_shape))
    torch.testing.assert_close(gradients(d.entropy(), leaves), gradients(expected, leaves))


@pytest.mark.parametrize("dtype", WIDE + HALF)
@pytest.mark.parametrize("case", [case for case in EDGES if EDGES[case][0] in WITH_ENTROPY])
def test_entropy_at_the_edges(case, dtype):
    d, leaves = at_the_edge(case, dtype)
    entropy = d.entropy()
    assert entropy.dtype is torch.promote_types(dtype, torch.float32)
    assert entropy.isfinite().all()
    assert (entropy > -1e-5).all()
    assert all(gradient.isfinite().all() for gradient in gradients(entropy.sum(), leaves))


# Half types.


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", COUNTS)
def test_half_types_are_drawn_and_evaluated_in_float32(name, dtype):
    leaves = parameters_of(name, (3,), dtype)
    d = make_count(name, leaves)
    as_rounded = {key: leaf.detach().float() for key, leaf in leaves.items()}
    wide = make_count(name, as_rounded, validate_args=False)
    pyro.set_rng_seed(1)
    sample = d.rsample((100,))
    pyro.set_rng_seed(1)
    assert torch.equal(sample, wide.sample((100,)).to(dtype))
    assert sample.dtype is d.sample().dtype is dtype
    log_prob = d.log_prob(sample)
    torch.testing.assert_close(log_prob.detach(), wide.log_prob(sample.float()).detach())
    assert log_prob.dtype is torch.float32
    total = log_prob.mean() + sample.float().mean()
    assert all(gradient.isfinite().all() for gradient in gradients(total, leaves))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("parameter", ["probs", "logits"])
def test_multinomial_parameters_of_half_types_are_valid(parameter, dtype):
    """Rounded, they are not normalised to 1e-6, which torch asks for."""
    logits = 2 * torch.randn(500, 4)
    given = (logits if parameter == "logits" else logits.softmax(-1)).to(dtype)
    d = Multinomial(7, **{parameter: given}, validate_args=True)
    assert d.probs.dtype is d.mean.dtype is dtype
    wide = Multinomial(7, **{parameter: given.float()})
    for name in "probs", "logits":
        assert torch.equal(getattr(d, name), getattr(wide, name).to(dtype))
    sample = d.expand((2, 500)).rsample()
    assert sample.dtype is dtype
    assert torch.equal(d.log_prob(sample), wide.log_prob(sample.float()))
    assert torch.equal(d.entropy(), wide.entropy())
    with pytest.raises(ValueError, match=rf"\b{parameter}\b.*invalid values"):
        Multinomial(7, **{parameter: given * torch.nan}, validate_args=True)


@pytest.mark.parametrize("parameter", ["probs", "logits"])
def test_multinomial_parameters_may_be_integers(parameter):
    """As in Pyro's class, which normalises them to floats."""
    given = torch.tensor([1, 2, 3])
    d = Multinomial(7, **{parameter: given}).expand((2,))
    wide = Multinomial(7, **{parameter: given.float()}).expand((2,))
    sample = d.rsample()
    assert sample.dtype is d.probs.dtype is torch.float32
    torch.testing.assert_close(d.probs, wide.probs)
    torch.testing.assert_close(d.log_prob(sample), wide.log_prob(sample))


@pytest.mark.parametrize("dtype", HALF)
def test_large_counts_in_half_types(dtype):
    """What bfloat16 cannot hold is rounded, and own samples are valid."""
    for d in (
        Poisson(torch.tensor(1000.0, dtype=dtype)),
        Poisson(torch.tensor(65000.0, dtype=dtype)),
        Binomial(300, torch.tensor(0.99, dtype=dtype)),
        Multinomial(1000, torch.tensor([0.2, 0.3, 0.5], dtype=dtype)),
        dist.DirichletMultinomial(torch.tensor([2.0, 3.0, 5.0], dtype=dtype), 1000),
    ):
        sample = relax(d, 1.0).rsample((2000,))
        assert sample.isfinite().all()
        assert relax(d, 1.0).log_prob(sample).isfinite().all()
    probs = torch.tensor(0.3, dtype=dtype)
    counts = Geometric(probs).sample((20_000,)).long().bincount(minlength=8)
    p = probs.double() * (1 - probs.double()) ** torch.arange(8)
    assert_counts(
        torch.cat([counts[:8], counts[8:].sum()[None]]), torch.cat([p, 1 - p.sum()[None]])
    )


# Divergences.

PAIRS = {
    "Poisson": [{"rate": 3.0}, {"rate": 2.0}],
    "Binomial probs": [{"probs": 0.3}, {"probs": 0.6}],
    "Binomial logits": [{"logits": 0.3}, {"logits": -1.0}],
    "NegativeBinomial probs": [
        {"probs": 0.4, "total_count": 2.5},
        {"probs": 0.2, "total_count": 2.5},
    ],
    "NegativeBinomial logits": [
        {"logits": 0.4, "total_count": 2.5},
        {"logits": -1.0, "total_count": 2.5},
    ],
    "Geometric probs": [{"probs": 0.4}, {"probs": 0.3}],
    "Geometric logits": [{"logits": 0.4}, {"logits": -0.3}],
    "Multinomial probs": [{"probs": [0.2, 0.3, 0.5]}, {"probs": [0.1, 0.7, 0.2]}],
    "Multinomial logits": [{"logits": [0.2, 0.3, 0.5]}, {"logits": [1.0, 0.0, -1.0]}],
    "BetaBinomial": [
        {"concentration1": 2.0, "concentration0": 3.0},
        {"concentration1": 1.0, "concentration0": 0.7},
    ],
}


@pytest.mark.parametrize("name", PAIRS)
def test_divergence_by_enumeration(name):
    both = [{key: t(value) for key, value in given.items()} for given in PAIRS[name]]
    for given in both:
        if "total_count" in given:
            given["total_count"] = given["total_count"].detach()
    named = [make_count(name, given) for given in both]
    log_q, log_p = (d.log_prob(support_of(name)) for d in named)
    expected = (log_q.exp() * (log_q - log_p)).sum()
    leaves = {
        i: leaf
        for i, leaf in enumerate([*both[0].values(), *both[1].values()])
        if leaf.requires_grad
    }
    slopes = gradients(expected, leaves)
    plain = [make_count(name, given, parent=True) for given in both]
    for q, p in ((named[0], named[1]), (named[0], plain[1]), (plain[0], named[1])):
        found = kl_divergence(q, p)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(found, leaves), slopes)


def test_divergences_at_the_edges():
    """Infinite exactly where p excludes what q does not, and finite gradients elsewhere."""
    for q, p, expected in [
        (Poisson(t(0.0)), Poisson(t(2.0)), 2.0),
        (Poisson(t(2.0)), Poisson(t(0.0)), INF),
        (Poisson(t(0.0)), Poisson(t(0.0)), 0.0),
        (Binomial(5, t(0.0)), Binomial(5, t(0.5)), 5 * np.log(2)),
        (Binomial(5, t(1.0)), Binomial(5, logits=t(0.0)), 5 * np.log(2)),
        (Binomial(5, logits=t(INF)), Binomial(5, t(0.5)), 5 * np.log(2)),
        (Binomial(5, logits=t(INF)), Binomial(5, logits=t(INF)), 0.0),
        (Binomial(5, t(0.5)), Binomial(5, logits=t(INF)), INF),
        (Binomial(0, t(0.5)), Binomial(0, logits=t(INF)), 0.0),
        (Binomial(5, t(0.5)), Binomial(4, t(0.5)), INF),
        (Binomial(5, t(0.0)), Binomial(4, t(0.5)), 4 * np.log(2)),
        (NegativeBinomial(0.0, t(0.5)), NegativeBinomial(0.0, t(0.0)), 0.0),
        (NegativeBinomial(5.0, t(0.0)), NegativeBinomial(5.0, t(0.5)), 5 * np.log(2)),
        (NegativeBinomial(5.0, t(0.5)), NegativeBinomial(5.0, t(0.0)), INF),
        (NegativeBinomial(5.0, logits=t(-INF)), NegativeBinomial(5.0, t(0.0)), 0.0),
        (Geometric(t(1.0)), Geometric(t(0.5)), np.log(2)),
        (Geometric(t(0.5)), Geometric(t(1.0)), INF),
        (Geometric(logits=t(INF)), Geometric(t(1.0)), 0.0),
        (Multinomial(5, t(0.0, 1.0)), Multinomial(5, t(0.5, 0.5)), 5 * np.log(2)),
        (Multinomial(5, t(0.5, 0.5)), Multinomial(5, logits=t(0.0, -INF)), INF),
        (Multinomial(0, t(0.5, 0.5)), Multinomial(0, logits=t(0.0, -INF)), 0.0),
    ]:
        divergence = kl_divergence(q, p)
        assert divergence.item() == pytest.approx(expected)
        leaves = [v for d in (q, p) for v in leaves_of(d) if v.requires_grad]
        for gradient in torch.autograd.grad(divergence, leaves, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def leaves_of(d):
    inner = getattr(d, "_categorical", d)
    return [v for v in vars(inner).values() if isinstance(v, torch.Tensor)]


def test_divergence_of_unequal_numbers_of_trials():
    n, m = torch.tensor([3.0, 5.0]), torch.tensor([4.0, 7.0])
    q, p = Binomial(n, torch.tensor([0.3, 0.6])), Binomial(m, torch.tensor([0.5, 0.2]))
    for i, found in enumerate(kl_divergence(q, p)):
        values = np.arange(int(n[i]) + 1)
        log_q, log_p = (
            torch.as_tensor(
                stats.binom.logpmf(values, each.total_count[i].item(), each.probs[i].item())
            )
            for each in (q, p)
        )
        expected = (log_q.exp() * (log_q - log_p)).sum()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [Binomial, NegativeBinomial])
def test_where_they_cannot_be_read_their_divergence_is_nan(cls):
    def divergence(n, m, probs):
        q, p = (cls(total, probs, validate_args=False) for total in (n, m))
        return kl_divergence(q, p)

    n, m, probs = t(5.0, 5.0), t(5.0, 7.0), t(0.3, 0.4)
    found = torch.vmap(divergence)(n, m, probs)
    torch.testing.assert_close(found, t(0.0, torch.nan), equal_nan=True)


def test_divergences_that_have_no_formula():
    for q, p in [
        (NegativeBinomial(5.0, t(0.5)), NegativeBinomial(4.0, t(0.5))),
        (NegativeBinomial(t(5.0), t(0.5)), NegativeBinomial(5.0, t(0.5))),
        (Multinomial(5, t(0.5, 0.5)), Multinomial(4, t(0.5, 0.5))),
        (Multinomial(5, t(0.5, 0.5)), Multinomial(5, t(0.5, 0.2, 0.3))),
        (Binomial(10**8, t(0.5)), Binomial(10**8 + 8, t(0.5))),
        (Binomial(10**6, t([0.5] * 20)), Binomial(10**6 + 8, t(0.5))),
    ]:
        with pytest.raises(NotImplementedError, match="kl_divergence"):
            kl_divergence(q, p)


LARGE = {
    "NegativeBinomial": lambda r: NegativeBinomial(r, logits=1.0 - r.log()),
    "GammaPoisson": lambda r: GammaPoisson(3 * r, r),
    "BetaBinomial": lambda r: BetaBinomial(3 * r, r, 8),
    "DirichletMultinomial": lambda r: DirichletMultinomial(
        r.unsqueeze(-1) * torch.tensor([1, 2]), 9
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_parameters_lose_no_digits(name):
    """The differences of the values of lgamma would."""
    value = torch.tensor([4.0, 5.0]) if name == "DirichletMultinomial" else torch.tensor(4.0)
    found = []
    for dtype in (torch.float32, torch.float64):
        log_r = torch.linspace(0, 18, 50, dtype=dtype, requires_grad=True)
        log_prob = LARGE[name](log_r.exp()).log_prob(value.to(dtype))
        (slope,) = torch.autograd.grad(log_prob.sum(), log_r)
        found.append(torch.stack([log_prob.detach(), slope]).double())
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


HUGE = {
    "Poisson": lambda dtype: Poisson(t(1e30, dtype=dtype)),
    "NegativeBinomial": lambda dtype: NegativeBinomial(2.0, logits=t(70.0, dtype=dtype)),
    "all": lambda dtype: NegativeBinomial(t(1e5, dtype=dtype), logits=t(87.0, dtype=dtype)),
    "GammaPoisson": lambda dtype: GammaPoisson(t(2.0, dtype=dtype), t(1e-30, dtype=dtype)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", HUGE)
def test_counts_that_no_integer_can_hold(name, dtype):
    """Where the numbers of torch's Poisson become negative."""
    d = HUGE[name](dtype)
    pyro.set_rng_seed(0)
    sample = d.rsample()
    assert 1e28 < sample <= torch.finfo(dtype).max
    assert d.log_prob(sample.detach()).isfinite()
    pyro.set_rng_seed(0)
    assert torch.equal(d.sample(), sample)


@pytest.mark.parametrize("concentration", [0.003, 0.03])
def test_the_gradient_of_small_concentrations(concentration):
    """Where torch's gradient of a Dirichlet variate is off by a factor, and some variates are 0."""
    a = torch.full((100_000, 2), concentration, dtype=torch.float64, requires_grad=True)
    pyro.set_rng_seed(0)
    counts = DirichletMultinomial(a, 5).rsample()[..., 0]
    for sample in (counts, BetaBinomial(a[:, 0], a[:, 1], 5).rsample()):
        (found,) = torch.autograd.grad(sample.sum(), a)
        mean = concentration * found[:, 0].mean()
        torch.testing.assert_close(mean, t(5 / 4, dtype=torch.float64), rtol=0.03, atol=0)


# What Pyro and torch do to a distribution.


@pytest.mark.parametrize("name", ONE_EACH)
def test_copies(name):
    d = make_count(name, {k: leaf.detach() for k, leaf in parameters_of(name).items()})
    for other in (copy.deepcopy(d), copy.copy(d), pickle.loads(pickle.dumps(d)), d.expand(())):
        assert type(other) is type(d)
        value = d.sample()
        assert torch.equal(other.log_prob(value), d.log_prob(value))
        pyro.set_rng_seed(2)
        sample = d.rsample((3,))
        pyro.set_rng_seed(2)
        assert torch.equal(other.rsample((3,)), sample)
    assert type(d).__name__ in repr(d)


@pytest.mark.parametrize("name", ONE_EACH)
def test_wrappers(name):
    d = make_count(name, parameters_of(name, (3,)))
    mask = torch.tensor([True, False, True])
    for form, batch_shape in (
        (lambda d: d.expand((2, 3)), (2, 3)),
        (lambda d: d.expand((2, 3)).expand((4, 2, 3)), (4, 2, 3)),
        (lambda d: d.to_event(1), ()),
        (lambda d: d.mask(mask), (3,)),
        (lambda d: d.mask(mask).to_event(1), ()),
        (lambda d: d.expand_by([2]).to_event(1), (2,)),
        (lambda d: ExpandedDistribution(d, (2, 3)), (2, 3)),
    ):
        wrapped = form(d)
        assert wrapped.has_rsample
        assert wrapped.batch_shape == batch_shape
        value = wrapped.rsample((5,))
        assert value.shape == wrapped.shape((5,))
        assert value.requires_grad
        assert wrapped.log_prob(value).shape == (5, *batch_shape)
        plain = form(make_count(name, parameters_of(name, (3,)), parent=True))
        made = relax(plain, 1.0)
        torch.testing.assert_close(made.log_prob(value), wrapped.log_prob(value))
        assert made.has_rsample


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ONE_EACH)
def test_vmap(name):
    leaves = parameters_of(name, (3000,))
    keys = list(leaves)

    def function(*given):
        d = make_count(name, dict(zip(keys, given, strict=True)), validate_args=False)
        sample = d.rsample((2,))
        return sample, d.log_prob(sample)

    with pyro.validation_enabled(False):
        draw = torch.vmap(function, randomness="different")
        sample, log_prob = draw(*(leaf.detach() for leaf in leaves.values()))
        d = make_count(name, leaves)
        torch.testing.assert_close(
            log_prob, d.log_prob(sample.movedim(1, 0)).movedim(0, 1).detach()
        )
        assert_same_mean(sample[:, 0] - d.mean.detach(), 0.0)
        whole = sum(part.sum() for part in draw(*leaves.values()))
        assert all(gradient.isfinite().all() for gradient in gradients(whole, leaves))
        assert not torch.equal(sample[:1500], sample[1500:])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile itself
@pytest.mark.parametrize("name", first_fast(ONE_EACH))
def test_compile(name):
    leaves = parameters_of(name, (50,), torch.float32)
    keys = list(leaves)

    def function(*given):
        d = make_count(name, dict(zip(keys, given, strict=True)), validate_args=False)
        sample = d.rsample()
        return sample, d.log_prob(sample)

    torch.compiler.reset()
    whole = name in SIMPLE and name not in VECTORS  # torch's constructors of the others break it
    sample, log_prob = torch.compile(function, fullgraph=whole, backend="aot_eager")(
        *leaves.values()
    )
    expected = make_count(name, leaves).log_prob(sample.detach())
    torch.testing.assert_close(log_prob, expected)
    assert all(gradient.isfinite().all() for gradient in gradients(sample.sum(), leaves))


@pytest.mark.parametrize("cls", CLASSES)
def test_has_rsample_is_an_attribute_of_the_class(cls):
    assert cls.has_rsample is True
    name = next(name for name, count in COUNTS.items() if count.cls is cls)
    d = make_count(name)
    assert "has_rsample" not in vars(d)
    assert d.has_enumerate_support == COUNTS[name].parent.has_enumerate_support
    without = make_count(name).has_rsample_(False)
    assert not without.expand((2,)).has_rsample
    assert not without.to_event(0).has_rsample


ONES = torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize("method", ["sample", "rsample", "log_prob"])
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (Poisson, (ONES,)),
        (Binomial, (ONES, ONES)),
        (NegativeBinomial, (ONES, 0 * ONES)),
        (GammaPoisson, (ONES, ONES)),
        (BetaBinomial, (ONES, ONES, 3)),
        (DirichletMultinomial, (ONES, 3)),
    ],
)
def test_parameters_of_integers_are_refused(cls, arguments, method):
    distribution = cls(*arguments)
    given = (torch.ones(3),) if method == "log_prob" else ()
    with pytest.raises(TypeError, match=r"`.*` must be a tensor of floats, got integers"):
        getattr(distribution, method)(*given)
