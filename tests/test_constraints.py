# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalMessenger, AutoRegressiveMessenger
from torch.distributions import ComposeTransform, biject_to, transform_to

from pyro_gumbel import ExpRelaxedCategorical, RelaxedCategorical, RelaxedPlackettLuce
from pyro_gumbel.constraints import (
    LogRatioTransform,
    hypersimplex,
    log_simplex,
    logit_hypersimplex,
    padded_simplex_rows,
    ranking,
    simplex,
    simplex_rows,
    subset,
)
from tests.common import BERNOULLI, RELAXED, build, first_fast, smooth

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 10, 1000, 100_000])
def test_rounded_points_are_inside_and_wrong_ones_outside(k, dtype):
    v = (3 * torch.randn(50, k, dtype=torch.float64)).log_softmax(-1)
    assert simplex.check(v.exp().to(dtype)).all()
    assert log_simplex.check(v.to(dtype)).all()
    off = 1.5 if dtype in (torch.float16, torch.bfloat16) else 1.01
    for factor in (off, 1 / off):
        assert not simplex.check((factor * v.exp()).to(dtype)).any()
        assert not log_simplex.check((v + math.log(factor)).to(dtype)).any()


def test_entries_must_not_be_negative_or_nan():
    assert not simplex.check(torch.tensor([-0.1, 1.1]))
    assert not simplex.check(torch.tensor([math.nan, 1.0]))
    assert not log_simplex.check(torch.tensor([math.nan, 0.0]))
    assert simplex.check(torch.tensor([0.0, 1.0]))
    assert log_simplex.check(torch.tensor([-math.inf, 0.0]))


@pytest.mark.parametrize("registry", [biject_to, transform_to])
@pytest.mark.parametrize("cls", [RelaxedCategorical, ExpRelaxedCategorical])
def test_supports_have_transforms(registry, cls):
    distribution = cls(0.8, logits=torch.randn(5, 4, dtype=torch.float64))
    transform = registry(distribution.support)
    value = distribution.sample()
    free = transform.inv(value)
    torch.testing.assert_close(transform(free), value)
    assert distribution.support.check(
        transform(torch.randn(*free.shape, dtype=torch.float64))
    ).all()
    if registry is biject_to:
        assert free.shape == (5, 3)
        assert transform.forward_shape(free.shape) == value.shape
        assert transform.inverse_shape(value.shape) == free.shape


def test_log_ratios_are_the_measure_of_the_log_simplex():
    """det ds/dy = prod(s), by autograd. The density of v contains the same factor."""
    y = torch.randn(3, dtype=torch.float64)
    transform = LogRatioTransform()

    def crop(y):
        return transform(y).exp()[:-1]

    log_det = torch.autograd.functional.jacobian(crop, y).det().abs().log()
    v = transform(y)
    torch.testing.assert_close(log_det, v.sum())
    logits = torch.randn(4, dtype=torch.float64)
    value = RelaxedCategorical(0.5, logits=logits).log_prob(v.exp()) + log_det
    in_ratios = ExpRelaxedCategorical(0.5, logits=logits).log_prob(v)
    torch.testing.assert_close(in_ratios + transform.log_abs_det_jacobian(y, v), value)


def test_log_ratios_are_exact_far_below_the_smallest_float():
    v = torch.tensor([-2000.0, -1000.0, 0.0])
    transform = biject_to(log_simplex)
    torch.testing.assert_close(transform(transform.inv(v)), v)
    assert transform == LogRatioTransform()
    assert hash(transform) == hash(LogRatioTransform())


# What a value may be.

INSIDE_AND_OUTSIDE = [  # of integers
    (simplex, [0, 1, 0], [0, 1, 1]),
    (log_simplex, [0], [0, 0]),
    (hypersimplex(2), [1, 1, 0], [1, 1, 1]),
    (logit_hypersimplex(1), [0, 0], [0, 1]),
    (subset(2), [1, 1, 0], [2, 0, 0]),
    (ranking(2), [[0, 1, 0], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]),
    (ranking(2), [[0, 1], [1, 0]], [[0, 1]]),
    (ranking(1), [[0, 1, 0]], [[0, 1, 0], [1, 0, 0]]),
    (ranking(1, rows=2), [[0, 1, 0], [0, 0, 0]], [[0, 1, 0], [1, 0, 0]]),
    (ranking(2, rows=3), [[0, 1], [1, 0], [0, 0]], [[0, 1], [0, 0], [1, 0]]),
    (simplex_rows, [[0, 1, 0], [1, 0, 0]], [[0, 1, 0], [1, 0, 1]]),
    (padded_simplex_rows(1, rows=2), [[0, 1, 0], [0, 0, 0]], [[0, 1, 0], [1, 0, 0]]),
    (padded_simplex_rows(2, rows=3), [[0, 1], [0, 1], [0, 0]], [[0, 1], [0, 0], [1, 0]]),
]


@pytest.mark.parametrize(("support", "inside", "outside"), INSIDE_AND_OUTSIDE)
def test_integers_are_numbers(support, inside, outside):
    for dtype in (torch.int64, torch.uint8, torch.int32, torch.float16, torch.float64):
        assert support.check(torch.tensor(inside, dtype=dtype)).tolist() is True
        assert support.check(torch.tensor(outside, dtype=dtype)).tolist() is False
    if support not in (log_simplex, logit_hypersimplex(1)):
        assert support.check(torch.tensor(inside, dtype=torch.bool)).tolist() is True
    batch = torch.tensor([[inside, inside]])
    assert support.check(batch).tolist() == [[True, True]]


OF_SIZE = [hypersimplex(2), logit_hypersimplex(2), subset(2), ranking(2), padded_simplex_rows(2)]
SUPPORTS = [simplex, log_simplex, simplex_rows, *OF_SIZE]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("support", SUPPORTS, ids=repr)
def test_empty_values_can_be_checked(support, dtype):
    """An empty batch has an empty answer. Without categories, or a dimension for them: False."""
    event = (3,) if support.event_dim == 1 else (2, 3)
    for batch in ((0,), (4, 0)):
        assert support.check(torch.zeros(*batch, *event, dtype=dtype)).shape == batch
    none = torch.zeros(5, *event[:-1], 0, dtype=dtype)
    assert support.check(none).tolist() == [False] * 5
    assert support.check(torch.zeros((), dtype=dtype)).tolist() is False
    if support.event_dim == 1:
        assert support.check(torch.zeros(0, dtype=dtype)).tolist() is False


# Caches, empty batches, and the guides that need them.


def relaxed_distribution(cls, batch=()):
    shape = batch if cls in BERNOULLI else (*batch, 4)
    return build(cls, 1.5, logits=torch.zeros(shape))


@pytest.mark.parametrize("registry", [biject_to, transform_to])
@pytest.mark.parametrize("cls", smooth(RELAXED))
def test_every_transform_keeps_a_cache_where_one_is_wanted(cls, registry):
    distribution = relaxed_distribution(cls, (3,))
    plain = registry(distribution.support)
    value = distribution.sample()
    for transform in (plain.with_cache(1), ComposeTransform([plain]).with_cache(1)):
        free = transform.inv(value)
        assert transform(free) is value
        again = transform(free.clone())
        assert transform.inv(again) is not free
        torch.testing.assert_close(again, value)
    cached = plain.with_cache(1)
    assert cached.with_cache(1) is cached
    assert type(cached) is type(plain)
    assert cached.codomain.event_dim == plain.codomain.event_dim
    assert copy.deepcopy(cached).with_cache(0)(free).equal(plain(free))


@pytest.mark.parametrize(
    "support", [log_simplex, simplex_rows, hypersimplex(2), logit_hypersimplex(2)], ids=repr
)
def test_transforms_are_equal_whatever_their_cache(support):
    for registry in (biject_to, transform_to):
        transform = registry(support)
        assert transform == registry(support) == transform.with_cache(1)
        assert hash(transform) == hash(transform.with_cache(1))
        assert transform != registry(simplex)
    if support is simplex_rows:
        assert biject_to(support) != transform_to(support)


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
@pytest.mark.parametrize("cls", smooth(RELAXED))
def test_transforms_of_an_empty_batch(cls, batch):
    distribution = relaxed_distribution(cls, batch)
    transform = biject_to(distribution.support)
    free = torch.zeros(transform.inverse_shape(distribution.shape()))
    value = transform(free)
    assert value.shape == distribution.shape()
    assert transform.inv(value).shape == free.shape
    assert transform.log_abs_det_jacobian(free, value).shape == batch
    assert distribution.support.check(value).shape == distribution.log_prob(value).shape == batch


def test_the_log_determinant_of_rows_is_the_sum_over_the_rows():
    free = torch.randn(5, 3, 3, dtype=torch.float64)
    rows, one = biject_to(simplex_rows), biject_to(simplex)
    found = rows.log_abs_det_jacobian(free, rows(free))
    torch.testing.assert_close(found, one.log_abs_det_jacobian(free, one(free)).sum(-1))


@pytest.mark.parametrize("guide_class", first_fast([AutoNormalMessenger, AutoRegressiveMessenger]))
@pytest.mark.parametrize("cls", [cls for cls in smooth(RELAXED) if cls is not RelaxedPlackettLuce])
def test_messenger_guides_of_every_support(cls, guide_class):
    """They ask each transform for a cache, and fit a posterior that differs from the prior."""

    def model():
        with pyro.plate("plate", 3):
            value = pyro.sample("z", relaxed_distribution(cls))
            first = value if cls in BERNOULLI else value[..., 0]
            pyro.factor("utility", -2 * first)

    guide = guide_class(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step() for _ in range(60)]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-15:]) < sum(losses[:15])
    value = pyro.poutine.trace(guide).get_trace().nodes["z"]["value"]
    assert relaxed_distribution(cls).support.check(value).all()
