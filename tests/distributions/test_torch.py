# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""torch's transformations: vmap, compile, jit.trace."""

import pytest
import torch
from torch.distributions import kl_divergence

from pyro_gumbel import (
    CategoricalStraightThrough,
    HardConcrete,
    LogitRelaxedBernoulli,
    RelaxedBernoulli,
    RelaxedCategorical,
)
from tests.common import (
    ALL,
    CATEGORICAL,
    FEW,
    RANKINGS,
    RELAXED_LOGITS,
    RELAXED_VALUES,
    STRAIGHT_THROUGH,
    SUBSETS,
    WITH_INDICES,
    build,
    event_shape,
    param_shape,
    slow_unless,
    smooth,
)

TRACER = "ignore::torch.jit.TracerWarning"  # of shapes compared as Python numbers


def draw_and_score(cls, temperature=2.0, **keywords):
    def function(logits):
        d = build(cls, temperature, logits=logits, **keywords)
        value = d.rsample()
        return value, d.log_prob(value)

    return function


def assert_scores(cls, logits, value, score, temperature=2.0):
    """The log_prob of an ordinary call, from the values alone, so not at low temperature."""
    d = build(cls, temperature, logits=logits)
    torch.testing.assert_close(score, d.log_prob(value), rtol=1e-4, atol=1e-4)


# vmap.


@pytest.mark.parametrize("cls", smooth(ALL))
def test_vmap_over_the_logits(cls):
    """With validation on; the same noise in no two rows."""
    logits = torch.randn(6, 4, *param_shape(cls))
    function = draw_and_score(cls, validate_args=True)
    value, score = torch.vmap(function, randomness="different")(logits)
    assert value.shape == (6, 4, *event_shape(cls))
    assert score.shape == (6, 4)
    assert_scores(cls, logits, value, score)
    same = torch.vmap(function, randomness="different")(torch.zeros(50, 1, *param_shape(cls)))[0]
    assert same.reshape(50, -1).unique(dim=0).shape[0] >= (2 if cls in STRAIGHT_THROUGH else 50)


@pytest.mark.parametrize("cls", smooth(WITH_INDICES))
def test_vmap_where_the_logits_are_not_batched(cls):
    logits = torch.randn(40, *param_shape(cls))
    function = draw_and_score(cls)
    value, score = torch.vmap(lambda _: function(logits), randomness="different")(torch.zeros(5))
    assert value.shape == (5, 40, *event_shape(cls))
    assert value.reshape(5, -1).unique(dim=0).shape[0] == 5
    assert_scores(cls, logits, value, score)


@pytest.mark.parametrize("cls", ALL)
def test_gradients_under_vmap(cls):
    logits = torch.randn(6, *param_shape(cls))

    def loss(logits):
        value, score = draw_and_score(cls)(logits)
        return score + value.square().sum()

    gradient = torch.vmap(torch.func.grad(loss), randomness="different")(logits)
    assert gradient.shape == logits.shape
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_vmap_over_the_temperature(cls):
    logits = torch.randn(4, *param_shape(cls))
    temperature = torch.tensor([0.3, 1.0, 3.0])

    def score(tau, value):
        return build(cls, tau, logits=logits).log_prob(value)

    value = build(cls, 1.0, logits=logits).sample((3,)).clone()
    found = torch.vmap(score)(temperature, value)
    expected = torch.stack(
        [build(cls, t, logits=logits).log_prob(v) for t, v in zip(temperature, value, strict=True)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def moments_and_divergence(cls, logits, temperature):
    """What is exact of a soft distribution, as one number a batch element."""
    d = build(cls, temperature, logits=logits, validate_args=False)
    p = build(cls, 0.3, logits=torch.zeros_like(logits), validate_args=False)
    total = kl_divergence(d, p)
    if cls not in SUBSETS:
        total = total + d.entropy()
    if cls in (RelaxedBernoulli, RelaxedCategorical, HardConcrete):
        moments = d.mean + d.variance
        total = total + (moments.square().sum(-1) if d.event_shape else moments)
    return total


@pytest.mark.parametrize("cls", [*RELAXED_VALUES[:3], HardConcrete, *RELAXED_LOGITS])
def test_vmap_of_what_is_exact(cls):
    """Over logits and temperatures, and of its gradient."""
    logits = torch.randn(3, *param_shape(cls), dtype=torch.float64)
    temperature = torch.tensor([0.2, 0.3, 2.0], dtype=torch.float64)

    def total(x, tau):
        return moments_and_divergence(cls, x, tau)

    expected = torch.stack([total(x, t) for x, t in zip(logits, temperature, strict=True)])
    torch.testing.assert_close(torch.vmap(total)(logits, temperature), expected)
    found = torch.vmap(torch.func.grad(total, argnums=(0, 1)))(logits, temperature)
    leaves = logits.requires_grad_(), temperature.requires_grad_()
    one_by_one = sum(total(x, t) for x, t in zip(*leaves, strict=True))
    torch.testing.assert_close(found, torch.autograd.grad(one_by_one, leaves))


# torch.compile. It switches torch's validation off for the process; a fixture switches it back.


TWO = [RelaxedBernoulli, CategoricalStraightThrough]  # to compile takes long


def compiled(function, backend="aot_eager"):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize(
    ("cls", "temperature"),
    slow_unless(
        lambda case: case[0] in FEW and case[1] == 0.02,
        [*((cls, 0.02) for cls in ALL), *((cls, 0.5) for cls in RELAXED_VALUES)],
    ),
)
def test_compile_with_a_value_from_inside(cls, temperature):
    """Scored exactly, through the memory, where the values have saturated too."""
    logits = torch.randn(100, *param_shape(cls), requires_grad=True)
    function = draw_and_score(cls, temperature, validate_args=False)
    value, score = compiled(function)(logits)
    expected = build(cls, temperature, logits=logits, validate_args=False).log_prob(value)
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-3)
    if cls in RELAXED_VALUES and temperature == 0.02:
        d = build(cls, temperature, logits=logits, validate_args=False)
        forgotten = d.log_prob(value.clone())
        assert (score - forgotten).abs().max() > 1
    (gradient,) = torch.autograd.grad((score + value.sum()).sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("cls", slow_unless(TWO.__contains__, ALL))
def test_compile_with_a_value_from_outside(cls):
    logits = torch.randn(100, *param_shape(cls))

    def score(logits, value):
        return build(cls, 0.02, logits=logits, validate_args=False).log_prob(value)

    function = compiled(score)
    d = build(cls, 0.02, logits=logits)
    for value in (d.sample(), d.sample().clone()):
        torch.testing.assert_close(function(logits, value), score(logits, value))


@pytest.mark.parametrize("cls", slow_unless(TWO.__contains__, ALL))
def test_compiled_samples_have_their_distribution(cls):
    logits = torch.zeros(5000, *param_shape(cls, 4))
    value, _ = compiled(draw_and_score(cls, validate_args=False))(logits)
    if cls in CATEGORICAL + RANKINGS:
        share = (value.argmax(-1) == 0).float().mean()
        assert abs(share - 0.25) < 0.03
    elif cls in SUBSETS:
        chosen = value.topk(2, -1).indices
        assert abs((chosen == 0).any(-1).float().mean() - 0.5) < 0.03
    elif cls in STRAIGHT_THROUGH or cls in RELAXED_VALUES:
        assert abs((value > 0.5).float().mean() - 0.5) < 0.03
    else:
        assert abs((value > 0).float().mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    "cls",
    slow_unless(
        lambda cls: cls is LogitRelaxedBernoulli,
        [*RELAXED_VALUES[:3], HardConcrete, *RELAXED_LOGITS],
    ),
)
def test_compile_what_is_exact(cls):
    logits = torch.randn(3, *param_shape(cls), dtype=torch.float64, requires_grad=True)

    def function(x):
        return moments_and_divergence(cls, x, 0.7)

    d = build(cls, 0.5, logits=logits.detach())
    kl_divergence(d, d)  # the first of a pair of types is a look-up that torch does not compile
    found, expected = compiled(function)(logits), function(logits)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(value.sum(), logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.slow
@pytest.mark.parametrize("cls", ALL)
def test_inductor(cls):
    logits = torch.randn(100, *param_shape(cls))
    value, score = compiled(draw_and_score(cls, validate_args=False), "inductor")(logits)
    assert_scores(cls, logits, value, score)


# jit.trace, in process.


@pytest.mark.filterwarnings(TRACER)
@pytest.mark.parametrize("cls", smooth(WITH_INDICES))
def test_trace_of_rsample(cls):
    """The traced sampler draws anew at every call, for other logits too."""
    logits = torch.randn(50, *param_shape(cls))
    function = draw_and_score(cls, validate_args=True)
    traced = torch.jit.trace(function, (logits,), check_trace=False)
    other = torch.randn(50, *param_shape(cls))
    draws = [traced(other)[0] for _ in range(3)]
    assert not torch.equal(draws[0], draws[1])
    value, score = traced(other)
    assert_scores(cls, other, value, score)


@pytest.mark.filterwarnings(TRACER)
@pytest.mark.parametrize("cls", WITH_INDICES)
def test_trace_of_log_prob_bakes_in_no_cache(cls):
    """Traced with one own sample, it evaluates any other value as it is."""
    logits = torch.randn(50, *param_shape(cls))
    own = build(cls, 0.5, logits=logits).sample()

    def score(logits, value):
        return build(cls, 0.5, logits=logits).log_prob(value)

    traced = torch.jit.trace(score, (logits, own), check_trace=False)
    other = build(cls, 0.5, logits=logits).sample().clone()
    torch.testing.assert_close(traced(logits, other), score(logits, other))
    assert not torch.equal(traced(logits, other), traced(logits, own))
