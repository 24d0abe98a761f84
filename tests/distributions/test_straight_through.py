# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedSubset,
    Subset,
    SubsetStraightThrough,
    estimators,
)
from tests.common import (
    ALPHA,
    BERNOULLI,
    STRAIGHT_THROUGH,
    assert_counts,
    assert_same_mean,
    build,
    leaf_of,
    make,
    param_shape,
)

SOFT_OF = {
    BernoulliStraightThrough: RelaxedBernoulli,
    CategoricalStraightThrough: RelaxedCategorical,
    SubsetStraightThrough: RelaxedSubset,
}
PLAIN_OF = {
    BernoulliStraightThrough: dist.Bernoulli,
    CategoricalStraightThrough: dist.OneHotCategorical,
    SubsetStraightThrough: Subset,
    PlackettLuceStraightThrough: PlackettLuce,
}


def plain_of(d, **parameter):
    """The plain discrete distribution of the row, with the same parameter."""
    plain = PLAIN_OF[type(d)]
    return plain(d.size, **parameter) if plain in (Subset, PlackettLuce) else plain(**parameter)


HARD_ONE = [BernoulliStraightThrough, CategoricalStraightThrough]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ZEROS = {
    BernoulliStraightThrough: [0.0, 0.3, 1.0],
    CategoricalStraightThrough: [0.0, 0.3, 0.7],
}
INFINITE = {
    BernoulliStraightThrough: [-math.inf, 0.3, math.inf],
    CategoricalStraightThrough: [-math.inf, 0.3, 0.7],
}


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_it_is_the_discrete_class(cls):
    d = make(cls)
    assert isinstance(d, PLAIN_OF[cls])
    assert d.support == plain_of(d, logits=d.logits).support
    assert d.has_enumerate_support
    assert d.has_rsample


@pytest.mark.parametrize("parameter", ["logits", "probs"])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_it_has_the_discrete_distribution(cls, parameter):
    """Mass, mean, variance, mode, entropy and support, against the plain class."""
    d = make(cls, 0.3, (4, 2), 5, torch.float64, parameter)
    plain = plain_of(d, **{parameter: leaf_of(d)})
    for name in ("mean", "variance", "mode", "probs", "logits", "param_shape"):
        torch.testing.assert_close(getattr(d, name), getattr(plain, name))
    torch.testing.assert_close(d.entropy(), plain.entropy())
    for expand in (True, False):
        values = plain.enumerate_support(expand)
        assert torch.equal(d.enumerate_support(expand), values)
        torch.testing.assert_close(d.log_prob(values), plain.log_prob(values))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.01, 0.5, 10.0])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_samples_are_exactly_hard(cls, temperature, dtype):
    d = make(cls, temperature, (50,), 7, dtype)
    torch.manual_seed(2)
    pathwise = d.rsample((20,))
    torch.manual_seed(2)
    drawn = d.sample((20,))
    assert torch.equal(pathwise, drawn)
    assert pathwise.requires_grad
    assert not drawn.requires_grad
    assert drawn.dtype == dtype
    assert ((drawn == 0) | (drawn == 1)).all()
    if cls not in BERNOULLI:
        assert (drawn.sum(-1) == (d.size if cls is SubsetStraightThrough else 1)).all()
    assert d.support.check(drawn).all()
    assert d.log_prob(pathwise).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parameter", ["logits", "probs"])
def test_categories_are_drawn_as_often_as_they_should_be(parameter, dtype):
    """A class of probability about .0025 among large ones, in bfloat16 too."""
    logits = torch.tensor([2.0, 1.0, 1.5, 0.0, -3.0, 0.5]).to(dtype)
    given = logits if parameter == "logits" else logits.float().softmax(-1).to(dtype)
    d = CategoricalStraightThrough(0.5, **{parameter: given}, validate_args=True)
    exact = given.double().softmax(-1) if parameter == "logits" else given.double()
    counts = d.sample((400_000,)).double().sum(0)
    assert_counts(counts, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bernoulli_values_are_drawn_as_often_as_they_should_be(dtype):
    probs = torch.tensor([0.0025, 0.3, 0.9975]).to(dtype)
    ones = BernoulliStraightThrough(0.5, probs=probs).sample((200_000,)).double().sum(0)
    for count, p in zip(ones, probs.double(), strict=True):
        assert_counts([200_000 - count, count], [1 - p, p])


def test_a_category_of_probability_one_in_a_million():
    d = CategoricalStraightThrough(0.5, probs=torch.tensor([1e-6, 1 - 1e-6]))
    drawn = sum(d.sample((1_000_000,))[:, 0].sum().item() for _ in range(20))
    low, high = stats.poisson.ppf([ALPHA / 2, 1 - ALPHA / 2], 20.0)
    assert low <= drawn <= high


# Gradients.


@pytest.mark.parametrize("parameter", ["logits", "probs"])
@pytest.mark.parametrize("cls", SOFT_OF)
def test_backward_is_that_of_the_relaxed_sample_at_the_same_noise(cls, parameter):
    tau = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    hard = make(cls, tau, (2,), 4, torch.float64, parameter)
    soft = build(SOFT_OF[cls], tau, **{parameter: leaf_of(hard)})
    weight = torch.randn(3, *hard.batch_shape, *hard.event_shape, dtype=torch.float64)
    gradients = []
    for d in (hard, soft):
        torch.manual_seed(4)
        gradients.append(
            torch.autograd.grad((d.rsample((3,)) * weight).sum(), [leaf_of(hard), tau])
        )
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cls", HARD_ONE)
def test_log_prob_is_linear_in_the_value_and_differentiable(cls):
    d = make(cls, 0.5, (3,), 4, torch.float64, validate_args=False)
    a, b = d.sample().requires_grad_(), d.sample()
    blend = d.log_prob(0.3 * a + 0.7 * b)
    torch.testing.assert_close(blend, 0.3 * d.log_prob(a) + 0.7 * d.log_prob(b))
    (slope,) = torch.autograd.grad(d.log_prob(a).sum(), a)
    torch.testing.assert_close(slope, d.logits)  # of a bit, log p - log(1 - p)


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_second_derivatives(cls):
    raw = leaf_of(make(cls, dtype=torch.float64))

    def draw(raw):
        d = build(cls, 0.5, logits=raw)
        value = d.sample()
        return d.log_prob(value) + d.entropy()

    def seeded(raw):
        torch.manual_seed(0)
        return draw(raw)

    assert torch.autograd.gradcheck(seeded, raw)
    assert torch.autograd.gradgradcheck(seeded, raw)


def test_gradient_of_a_linear_function_is_nearly_right():
    """E of the surrogate gradient of <w, D>, against J(p) w: exact as the temperature falls."""
    logits = torch.tensor([0.5, -0.3, 0.1, -1.0], dtype=torch.float64)
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    p = logits.softmax(-1)
    exact = p * (weight - (p * weight).sum())
    batch = logits.expand(400_000, 4).clone().requires_grad_()
    sample = CategoricalStraightThrough(0.1, logits=batch).rsample()
    (gradient,) = torch.autograd.grad((sample * weight).sum(), batch)
    bias = (gradient.mean(0) - exact).norm() / exact.norm()
    assert bias < 0.1


def test_an_estimator_is_any_function_of_the_signature():
    seen = {}

    def mine(logits, temperature, perturbed, hard, link):
        seen.update(
            logits=logits, temperature=temperature, perturbed=perturbed, hard=hard, link=link
        )
        return 3 * logits

    raw = torch.randn(2, 4, requires_grad=True)
    d = CategoricalStraightThrough(torch.tensor([0.5, 2.0]), logits=raw, estimator=mine)
    sample = d.rsample((5,))
    (gradient,) = torch.autograd.grad(sample.sum(), raw)
    torch.testing.assert_close(gradient, torch.full((2, 4), 15.0))
    assert torch.equal(seen["hard"], sample.detach())
    assert torch.equal(seen["perturbed"].argmax(-1), seen["hard"].argmax(-1))
    assert seen["temperature"].shape == (2, 1)
    assert seen["link"](seen["perturbed"], seen["temperature"]).shape == (5, 2, 4)


def test_the_one_place_of_straight_through():
    hard = torch.tensor([0.0, 1.0])
    surrogate = torch.tensor([0.3, 0.7], requires_grad=True)
    sample = estimators.straight_through_of(hard, surrogate)
    assert torch.equal(sample, hard)
    assert torch.autograd.grad(sample @ torch.tensor([2.0, 5.0]), surrogate)[0].tolist() == [2, 5]


# Probabilities of 0 and 1.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("parameter", ["probs", "logits"])
@pytest.mark.parametrize("cls", HARD_ONE)
def test_impossible_outcomes(cls, parameter, dtype):
    """They are never drawn, have the log_prob -inf, and pass finite gradients."""
    numbers = (ZEROS if parameter == "probs" else INFINITE)[cls]
    raw = torch.tensor(numbers, dtype=dtype, requires_grad=True)
    d = build(cls, 0.1, **{parameter: raw}, validate_args=True)
    draws = d.rsample((1000,))
    assert (draws[:, 0] == 0).all()
    log_prob = d.log_prob(draws)
    assert log_prob.isfinite().all()
    entropy = d.entropy()
    for output in (log_prob, entropy, draws):
        (gradient,) = torch.autograd.grad(output.float().sum(), raw, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient[0] == 0
    if cls not in BERNOULLI:
        impossible = torch.tensor([1.0, 0.0, 0.0])
        assert d.logits[0] == -math.inf
        assert d.log_prob(impossible) == -math.inf
        exact = d.probs[1:].double()
        tolerance = 4 * torch.finfo(dtype).eps
        assert entropy.item() == pytest.approx(-(exact * exact.log()).sum().item(), rel=tolerance)
    else:
        assert d.logits.tolist()[::2] == [-math.inf, math.inf]
        assert d.log_prob(torch.tensor([1.0, 0.0, 0.0])).tolist()[::2] == [-math.inf, -math.inf]
        assert entropy.tolist()[::2] == [0.0, 0.0]


@pytest.mark.parametrize("cls", HARD_ONE)
def test_the_gradient_in_the_value_is_zero_at_an_impossible_outcome(cls):
    value = torch.tensor([0.0, 1.0, 1.0] if cls in BERNOULLI else [0.0, 1.0, 0.0])
    value.requires_grad_()
    d = build(cls, 0.5, probs=torch.tensor(ZEROS[cls]))
    (slope,) = torch.autograd.grad(d.log_prob(value).sum(), value)
    assert slope.isfinite().all()
    assert slope[0] == 0


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_the_mode_is_most_probable(cls):
    d = make(cls, batch_shape=(100,), k=6)
    support = d.enumerate_support()
    best = d.log_prob(support).max(0).values
    torch.testing.assert_close(d.log_prob(d.mode), best)
    tie = build(cls, 0.5, logits=torch.zeros(d.param_shape[1:]))
    assert tie.mode.flatten()[0] == 1


# The score function of a guide's site.


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_only_what_rsample_returned_is_pathwise(cls):
    d = make(cls)
    pathwise = d.score_parts(d.rsample())
    assert pathwise.score_function == 0
    assert torch.equal(pathwise.entropy_term, pathwise.log_prob)
    for value in (d.sample(), d.enumerate_support(), d.rsample().detach()):
        scored = d.score_parts(value)
        assert torch.equal(scored.score_function, scored.log_prob)
        assert scored.entropy_term == 0


def test_a_value_that_carries_a_gradient_is_pathwise_too():
    """A slice of a draw, as tensor Monte Carlo takes, or its score function would count twice."""
    d = make(CategoricalStraightThrough, batch_shape=(3,))
    assert d.score_parts(d.rsample((5,))[2]).score_function == 0


def test_rsample_without_a_gradient_is_pathwise_too():
    """Or TraceMeanField_ELBO would refuse to evaluate a loss under no_grad."""
    d = make(CategoricalStraightThrough)
    with torch.no_grad():
        assert d.score_parts(d.rsample()).score_function == 0


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_the_mean_of_samples_is_the_mean(cls):
    d = make(cls, batch_shape=(3,), k=4)
    assert_same_mean(d.sample((50_000,)), d.mean.detach())


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_forward_mode_goes_on_without_gradients(cls):
    """`no_grad` does not switch it off."""

    def draw(logits):
        torch.manual_seed(0)
        return build(cls, 0.5, logits=logits).rsample((20,))

    logits = torch.randn(4 if param_shape(cls) else ())
    tangent = torch.ones_like(logits).cumsum(-1) if logits.dim() else torch.ones(())
    expected = torch.func.jvp(draw, (logits,), (tangent,))[1]
    with torch.no_grad():
        found = torch.func.jvp(draw, (logits,), (tangent,))[1]
    assert (expected != 0).any()
    torch.testing.assert_close(found, expected)
