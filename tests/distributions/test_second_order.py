# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Straight-through distributions without a temperature, whose gradients are of second order."""

import copy
import functools
import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch.distributions import constraints, kl_divergence

from pyro_gumbel import BernoulliStraightThrough, estimators, links
from pyro_gumbel.distributions.without_replacement import MOST_EXACT
from pyro_gumbel.ops.second_order import surrogate_of_number, surrogate_of_vector
from tests.common import (
    STRAIGHT_THROUGH,
    assert_same_mean,
    build,
    event_shape,
    first_fast,
    leaf_of,
    make,
    param_shape,
    slow_unless,
)
from tests.distributions.probit import ProbitStraightThrough
from tests.distributions.test_straight_through import HARD_ONE, plain_of

BIT, ONE_HOT, SUBSET, RANKING = STRAIGHT_THROUGH
PLACES = {"rtol": 0, "atol": 1e-10}


def by_size(cls, size):
    return lambda **given: cls(None, size, **given)


# The constructor, and the shape of a parameter without batch.
CASES = {
    "bit": (functools.partial(BIT, None), ()),
    "one-hot of 2": (functools.partial(ONE_HOT, None), (2,)),
    "one-hot of 6": (functools.partial(ONE_HOT, None), (6,)),
    **{f"{m} of {k}": (by_size(SUBSET, m), (k,)) for m, k in [(1, 4), (2, 5), (3, 6)]},
    **{
        f"{m} of {k} in order": (by_size(RANKING, m), (k,))
        for m, k in [(1, 4), (2, 4), (2, 6), (4, 4)]
    },
    "probit": (functools.partial(ProbitStraightThrough, None), ()),
}


def parameter_of(shape, parameter="logits", batch_shape=(2,)):
    """A leaf: random logits, or probabilities that need not sum to 1."""
    logits = torch.randn((*batch_shape, *shape), dtype=torch.float64)
    given = logits if parameter == "logits" else logits.sigmoid()
    return given.requires_grad_()


def joint_outcomes(distribution):
    """All outcomes of the whole batch, over the first dimension, and their probabilities."""
    support = distribution.enumerate_support(expand=False).reshape(-1, *distribution.event_shape)
    index = torch.tensor(
        list(itertools.product(range(len(support)), repeat=distribution.batch_shape.numel()))
    )
    values = support[index].reshape(-1, *distribution.batch_shape, *distribution.event_shape)
    probs = distribution.log_prob(values).reshape(len(values), -1).sum(-1).exp()
    return values.detach(), probs


def draw_all(distribution, values):
    """`rsample`, with the outcomes that are given instead of random ones."""
    distribution._hard = lambda sample_shape: values
    return distribution.rsample(values.shape[:1])


def mean_and_exact_gradient(distribution, leaf, loss):
    """The mean of the estimated gradient of E loss(D), and the gradient itself, by enumeration.

    :param loss: of the values of the whole batch, flattened.
    """
    values, probs = joint_outcomes(distribution)
    (exact,) = torch.autograd.grad(
        (probs * loss(values.reshape(len(values), -1))).sum(), leaf, retain_graph=True
    )
    drawn = draw_all(distribution, values)
    assert torch.equal(drawn, values)
    (mean,) = torch.autograd.grad(
        (probs.detach() * loss(drawn.reshape(len(drawn), -1))).sum(), leaf
    )
    return mean, exact


def quadratic(n):
    """A loss that couples all numbers of a batch."""
    square, linear = torch.randn(n, n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    return lambda values: (
        torch.einsum("...i,ij,...j->...", values, square, values) + values @ linear
    )


# Unbiased.


@pytest.mark.parametrize("parameter", ["logits", "probs"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_unbiased_for_quadratic_losses(case, parameter):
    """Losses that couple the elements of a batch included."""
    constructor, shape = CASES[case]
    leaf = parameter_of(shape, parameter)
    distribution = constructor(**{parameter: leaf})
    numbers = distribution.shape().numel()
    mean, exact = mean_and_exact_gradient(distribution, leaf, quadratic(numbers))
    torch.testing.assert_close(mean, exact, **PLACES)
    assert exact.abs().max() > 1e-3
    cube = torch.randn(numbers, dtype=torch.float64)
    mean, exact = mean_and_exact_gradient(distribution, leaf, lambda value: (value @ cube) ** 3)
    assert (mean - exact).abs().max() > 1e-3  # it is not for cubic ones


@pytest.mark.parametrize("case", ["one-hot of 6", "3 of 6", "2 of 4 in order"])
def test_it_is_unbiased_where_a_category_is_impossible(case):
    constructor, shape = CASES[case]
    with torch.no_grad():
        leaf = parameter_of(shape, batch_shape=())
        leaf[1] = -math.inf
    distribution = constructor(logits=leaf)
    possible = distribution.log_prob(distribution.enumerate_support()).isfinite()
    values, probs = joint_outcomes(distribution)
    values, probs = values[possible], probs[possible]
    loss = quadratic(values[0].numel())
    (exact,) = torch.autograd.grad(
        (probs * loss(values.reshape(len(values), -1))).sum(), leaf, retain_graph=True
    )
    drawn = draw_all(distribution, values)
    (mean,) = torch.autograd.grad(
        (probs.detach() * loss(drawn.reshape(len(drawn), -1))).sum(), leaf
    )
    torch.testing.assert_close(mean, exact, **PLACES)
    assert mean[1] == 0


def test_a_cube_of_a_bit_is_half_as_much_again():
    """The derivative at 1 is 3, and 0 at 0: their mean is 3/2, where 1 is right."""
    leaf = parameter_of((), batch_shape=())
    loss = lambda value: value.squeeze(-1) ** 3  # noqa: E731
    mean, exact = mean_and_exact_gradient(BIT(logits=leaf), leaf, loss)
    torch.testing.assert_close(mean, 1.5 * exact)


@pytest.mark.parametrize(("cls", "size"), first_fast([(RANKING, 2), (SUBSET, 3)]))
def test_more_categories_than_ten_are_unbiased_by_extra_draws(cls, size):
    """The loss is linear, so that its gradient is that of the mean."""
    k, draws = MOST_EXACT + 1, 2000
    logits = torch.randn(k, dtype=torch.float64)
    distribution = cls(None, size, logits=logits.requires_grad_())
    weights = torch.randn(distribution.event_shape, dtype=torch.float64)
    square = torch.randn(k, dtype=torch.float64)

    def loss(value):
        """Quadratic, and linear in the pairs of categories of a subset or of a first row."""
        return (value * weights).sum() + (value.reshape(-1, k)[0] @ square) ** 2

    values = distribution.enumerate_support()
    exact_loss = distribution.log_prob(values).exp() @ torch.stack([loss(v) for v in values])
    (exact,) = torch.autograd.grad(exact_loss, logits)
    batch = logits.detach().expand(draws, k).clone().requires_grad_()
    drawn = cls(None, size, logits=batch).rsample()
    total = (drawn * weights).sum() + ((drawn.reshape(draws, -1, k)[:, 0] @ square) ** 2).sum()
    assert_same_mean(torch.autograd.grad(total, batch)[0], exact)


@pytest.mark.parametrize("k", [4, MOST_EXACT + 2])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_the_draw_is_that_of_sample(cls, k):
    """From one seed, also beyond the number of categories that takes extra draws."""
    distribution = make(cls, None, (5,), k)
    torch.manual_seed(3)
    value = distribution.rsample((7,))
    torch.manual_seed(3)
    assert torch.equal(value, distribution.sample((7,)))
    torch.manual_seed(3)
    with_temperature = build(cls, 0.5, logits=leaf_of(distribution))
    assert torch.equal(value, with_temperature.rsample((7,)))


# Its forms.


def gradient_in(logits, surrogate, u):
    return torch.autograd.grad((surrogate * u).sum(), logits)[0]


@pytest.mark.parametrize("k", [2, 3, 10])
def test_the_vector_form_of_a_one_hot_vector_is_reinmax(k):
    logits = parameter_of((k,), batch_shape=(4,))
    one_hot = torch.eye(k, dtype=torch.float64)[torch.randint(k, (4,))]
    u = torch.randn(4, k, dtype=torch.float64)
    log_prob = (one_hot * logits.log_softmax(-1)).sum(-1)
    tau = torch.ones((), dtype=torch.float64)
    arguments = logits, tau, logits, one_hot, links.simplex
    expected = gradient_in(logits, estimators.reinmax(*arguments), u)
    for surrogate in (
        surrogate_of_vector(one_hot, logits.softmax(-1), log_prob, 1),
        estimators.second_order(*arguments),
    ):
        found = gradient_in(logits, surrogate, u)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_form_of_a_number_of_a_bit_is_reinmax():
    logits = parameter_of((), batch_shape=(5,))
    bits, u = torch.tensor([0.0, 1, 1, 0, 1]).double(), torch.randn(5, dtype=torch.float64)
    p, tau = logits.sigmoid(), torch.ones((), dtype=torch.float64)
    arguments = logits, tau, logits, bits, links.interval
    expected = gradient_in(logits, estimators.reinmax(*arguments), u)
    for surrogate in (
        surrogate_of_number(bits, p, p * (1 - p)),
        estimators.second_order(*arguments),
    ):
        found = gradient_in(logits, surrogate, u)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_its_gradient_is_that_of_the_surrogate(case):
    """At a fixed draw, the constants of the surrogate held: central differences of its formula."""
    constructor, shape = CASES[case]
    leaf = parameter_of(shape, batch_shape=())
    at = constructor(logits=leaf)
    value = at.sample((3,))
    residual = (value - at.mean).detach()

    def surrogate(logits):
        d = constructor(logits=logits)
        weight = d.log_prob(value).reshape(3, *[1] * len(d.event_shape))
        return 0.5 * d.mean + 0.5 * weight * residual

    assert torch.autograd.gradcheck(surrogate, leaf)
    u = torch.randn(value.shape, dtype=torch.float64)
    found = gradient_in(leaf, draw_all(at, value), u)
    torch.testing.assert_close(found, gradient_in(leaf, surrogate(leaf), u), **PLACES)


@pytest.mark.parametrize("case", CASES)
def test_second_derivatives_of_the_loss_pass(case):
    """The derivative of the estimate in what the loss has: the estimate is linear in it."""
    constructor, shape = CASES[case]
    leaf, factor = parameter_of(shape), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    value = constructor(logits=leaf).rsample((3,))
    (gradient,) = torch.autograd.grad(factor**2 * (value**2).sum(), leaf, create_graph=True)
    (found,) = torch.autograd.grad(gradient.sum(), factor)
    torch.testing.assert_close(found, 2 * gradient.sum().detach() / factor.detach())


# Without a temperature.


def made(cls, batch_shape=(2,), k=4, **keywords):
    return make(cls, None, batch_shape, k, **keywords)


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_it_has_no_temperature(cls):
    distribution = made(cls)
    assert distribution.estimator is estimators.second_order
    for each in (
        distribution,
        distribution.expand((3, 2)),
        copy.copy(distribution),
        copy.deepcopy(distribution),
        pickle.loads(pickle.dumps(distribution)),
    ):
        assert each.temperature is None
        assert set(each.arg_constraints) == {"probs", "logits"}
        assert each.estimator is estimators.second_order
        assert "estimator: second_order" in repr(each)
        assert "temperature" not in repr(each)
        assert each.rsample().shape == each.batch_shape + each.event_shape
    assert cls.arg_constraints["temperature"] is constraints.positive
    assert set(make(cls).arg_constraints) == {"temperature", "probs", "logits"}


@pytest.mark.parametrize("parameter", ["logits", "probs"])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_it_is_the_discrete_distribution(cls, parameter):
    distribution = made(cls, dtype=torch.float64, parameter=parameter)
    plain = plain_of(distribution, **{parameter: leaf_of(distribution)})
    for name in ("mean", "variance", "mode", "probs", "logits", "param_shape"):
        torch.testing.assert_close(getattr(distribution, name), getattr(plain, name))
    torch.testing.assert_close(distribution.entropy(), plain.entropy())
    values = plain.enumerate_support()
    torch.testing.assert_close(distribution.log_prob(values), plain.log_prob(values))
    other = made(cls, dtype=torch.float64)
    expected = kl_divergence(plain, plain_of(other, logits=leaf_of(other)))
    for q, p in itertools.product(
        (distribution, plain), (other, plain_of(other, logits=leaf_of(other)))
    ):
        torch.testing.assert_close(kl_divergence(q, p), expected)


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_its_wrappers(cls):
    distribution = made(cls, (2, 3))
    mask = torch.tensor([True, False, True])
    for wrapped, batch_shape in (
        (distribution.to_event(1), (2,)),
        (distribution.mask(mask), (2, 3)),
        (torch.distributions.Independent(distribution, 1), (2,)),
        (distribution.expand((4, 2, 3)).to_event(2).mask(False), (4,)),
    ):
        value = wrapped.rsample((5,))
        assert value.requires_grad
        assert wrapped.batch_shape == batch_shape
        assert wrapped.log_prob(value).shape == (5, *batch_shape)
        (gradient,) = torch.autograd.grad(value.sum(), leaf_of(distribution))
        assert gradient.isfinite().all()


@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 0), (0,)])
@pytest.mark.parametrize("batch_shape", [(), (2,), (0,), (3, 1)])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_its_shapes(cls, batch_shape, sample_shape):
    """Empty ones too."""
    for k in (4, MOST_EXACT + 1):
        distribution = made(cls, batch_shape, k)
        value = distribution.rsample(sample_shape)
        assert value.shape == (*sample_shape, *batch_shape, *event_shape(cls, k))
        (gradient,) = torch.autograd.grad((value**2).sum(), leaf_of(distribution))
        assert gradient.shape == (*batch_shape, *param_shape(cls, k))
        assert gradient.isfinite().all()


# Extremes.

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def extremes(cls, dtype):
    """Logits of which all are legal for every class."""
    b = torch.finfo(dtype).max
    rows = [
        [b, 0.0, 1.0], [-b, 0.0, 1.0], [b, b, 0.0], [b, -b, 0.0], [b, b / 2, -b],
        [20.0, -20.0, 0.0], [-math.inf, b, -b], [-math.inf, 20.0, -20.0], [-20.0, -20.0, 20.0],
    ]  # fmt: skip
    if cls is BIT:
        rows += [[math.inf, -math.inf, 0.0]]
    return torch.tensor(rows, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [3, MOST_EXACT + 1])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_extreme_logits_leave_finite_gradients(cls, k, dtype):
    logits = extremes(cls, dtype)
    if k > 3:
        logits = torch.cat([logits, torch.zeros(len(logits), k - 3, dtype=dtype)], -1)
    raw = logits.requires_grad_()
    distribution = build(cls, None, logits=raw, validate_args=True)
    value = distribution.rsample((20,))
    assert value.dtype == dtype
    assert distribution.support.check(value).all()
    (gradient,) = torch.autograd.grad((value.float() * torch.arange(1.0, k + 1)).sum(), raw)
    assert gradient.isfinite().all()
    assert (gradient[raw.isinf()] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_probabilities_of_zero_and_one_leave_finite_gradients(cls, dtype):
    rows = [[0.0, 0.3, 1.0], [1.0, 0.0, 0.5]] + [[0.0, 0.0, 1.0]] * (cls in HARD_ONE)
    raw = torch.tensor(rows, dtype=dtype, requires_grad=True)
    distribution = build(cls, None, probs=raw, validate_args=True)
    value = distribution.rsample((20,))
    assert distribution.support.check(value).all()
    (gradient,) = torch.autograd.grad((value.float() * torch.arange(1.0, 4)).sum(), raw)
    assert gradient.isfinite().all()
    certain = build(cls, None, probs=torch.zeros_like(raw).requires_grad_()) if cls is BIT else None
    if certain is not None:
        assert (certain.rsample((20,)) == 0).all()


@pytest.mark.parametrize("cls", [SUBSET, RANKING])
def test_all_of_the_categories(cls):
    raw = torch.randn(3, requires_grad=True)
    value = cls(None, 3, logits=raw).rsample((20,))
    (gradient,) = torch.autograd.grad((value * torch.randn(3)).sum(), raw)
    assert gradient.isfinite().all()
    if cls is SUBSET:
        assert (gradient == 0).all()


# Transforms and programs.


def loss_of(cls, draws=()):
    weights = torch.arange(1.0, 4.0)

    def loss(logits):
        distribution = build(cls, None, logits=logits, validate_args=False)
        return ((distribution.rsample(draws) * weights) ** 2).sum()

    return loss


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_under_vmap_and_grad(cls):
    logits = torch.randn(6, 3)
    gradient = torch.func.grad(loss_of(cls))
    assert gradient(logits[0]).isfinite().all()
    mapped = torch.func.vmap(gradient, randomness="different")(logits)
    assert mapped.shape == (6, 3)
    assert mapped.isfinite().all()
    equal = torch.func.vmap(gradient, randomness="different")(torch.zeros(200, 3))
    assert len(equal.unique(dim=0)) > 1


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_forward_mode_is_backward_mode(cls):
    logits, tangent = torch.randn(2, 3, dtype=torch.float64)

    def seeded(logits):
        torch.manual_seed(1)
        return loss_of(cls, (20,))(logits)

    _, found = torch.func.jvp(seeded, (logits,), (tangent,))
    expected = torch.func.grad(seeded)(logits) @ tangent
    torch.testing.assert_close(found, expected)
    assert found != 0


@pytest.mark.parametrize("cls", [BIT, ONE_HOT])
def test_forward_mode_where_an_outcome_is_impossible(cls):
    logits, tangent = torch.tensor([0.3, -torch.inf, -1.0]), torch.tensor([0.2, 1.0, -0.7])

    def draw(logits):
        return build(cls, None, logits=logits).rsample((20,))

    sample, found = torch.func.jvp(draw, (logits,), (tangent,))
    assert ((sample == 0) | (sample == 1)).all()
    assert (sample[:, 1] == 0).all()
    assert found.isfinite().all()
    assert (found[:, 1] == 0).all()
    assert (found[:, 0] != 0).all()


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_sample_has_no_gradient_in_forward_mode(cls, temperature):
    def draw(logits):
        return build(cls, temperature, logits=logits).sample((20,))

    _, found = torch.func.jvp(draw, (torch.randn(3),), (torch.arange(3.0),))
    assert (found == 0).all()


@pytest.mark.parametrize("cls", slow_unless(lambda cls: cls is ONE_HOT, STRAIGHT_THROUGH))
def test_under_compile(cls):
    torch.compiler.reset()
    compiled = torch.compile(loss_of(cls), backend="aot_eager", fullgraph=True)
    leaf = torch.randn(3, requires_grad=True)
    (found,) = torch.autograd.grad(compiled(leaf), leaf)
    assert found.isfinite().all()
    assert cls is SUBSET or found.abs().sum() > 0


# In guides.


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_only_what_rsample_returned_is_pathwise(cls):
    distribution = made(cls)
    assert distribution.score_parts(distribution.rsample()).score_function == 0
    for value in (distribution.sample(), distribution.enumerate_support()):
        scored = distribution.score_parts(value)
        assert torch.equal(scored.score_function, scored.log_prob)


@pytest.mark.parametrize("how", ["parallel", "sequential"])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_an_enumerated_guide_is_exact(cls, how):
    """The ELBO and its gradient, against a sum over all outcomes."""
    prior, start = torch.randn(2, *param_shape(cls), dtype=torch.float64)
    weights = torch.randn(event_shape(cls), dtype=torch.float64)

    def score(value):
        batch_shape = value.shape[: value.dim() - weights.dim()]
        return (value * weights).reshape(*batch_shape, -1).sum(-1) ** 3

    def model():
        pyro.factor("x", score(pyro.sample("z", build(cls, None, logits=prior))))

    def guide():
        pyro.sample("z", build(cls, None, logits=pyro.param("logits", start)))

    with poutine.trace(param_only=True) as parameters:
        loss = TraceEnum_ELBO(max_plate_nesting=0).differentiable_loss(
            model, config_enumerate(guide, how)
        )
    (leaf,) = (node["value"].unconstrained() for node in parameters.trace.nodes.values())
    (found,) = torch.autograd.grad(loss, leaf)
    q, p = build(cls, None, logits=leaf), build(cls, None, logits=prior)
    values = q.enumerate_support()
    log_q = q.log_prob(values)
    expected = -(log_q.exp() * (p.log_prob(values) + score(values) - log_q)).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaf)[0])


def test_a_schedule_or_tensor_is_a_temperature():
    """None from a function is none."""
    assert BernoulliStraightThrough(lambda: 0.5, 0.5).temperature == 0.5
    with pytest.raises(ValueError, match="`temperature` must be None for estimator=second_order"):
        BernoulliStraightThrough(torch.tensor(0.5), 0.5, estimator="second_order")
    with pytest.raises(ValueError, match="`estimator` gumbel_softmax must have a temperature"):
        BernoulliStraightThrough(probs=torch.tensor(0.5), estimator="gumbel_softmax")
    assert isinstance(BernoulliStraightThrough(None, 0.5), dist.Bernoulli)
