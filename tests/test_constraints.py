# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

import math

import pytest
import torch
from torch.distributions import biject_to, transform_to

from pyro_gumbel import ExpRelaxedCategorical, RelaxedCategorical
from pyro_gumbel.constraints import LogRatioTransform, log_simplex, simplex

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 10, 1000, 100_000])
def test_rounded_points_are_inside_and_wrong_ones_outside(k, dtype):
    v = (3 * torch.randn(50, k, dtype=torch.float64)).log_softmax(-1)
    assert simplex.check(v.exp().to(dtype)).all()
    assert log_simplex.check(v.to(dtype)).all()
    off = 1.5 if dtype in (torch.float16, torch.bfloat16) else 1.01
    assert not simplex.check((off * v.exp()).to(dtype)).any()
    assert not log_simplex.check((v + math.log(off)).to(dtype)).any()


def test_entries_must_not_be_negative_or_nan():
    assert not simplex.check(torch.tensor([-0.1, 1.1]))
    assert not simplex.check(torch.tensor([math.nan, 1.0]))
    assert not log_simplex.check(torch.tensor([math.nan, 0.0]))
    assert simplex.check(torch.tensor([0.0, 1.0]))
    assert log_simplex.check(torch.tensor([-math.inf, 0.0]))


@pytest.mark.parametrize("registry", [biject_to, transform_to])
@pytest.mark.parametrize("cls", [RelaxedCategorical, ExpRelaxedCategorical])
def test_supports_have_transforms(registry, cls):
    law = cls(0.8, logits=torch.randn(5, 4, dtype=torch.float64))
    transform = registry(law.support)
    value = law.sample()
    free = transform.inv(value)
    torch.testing.assert_close(transform(free), value)
    assert law.support.check(transform(torch.randn(*free.shape, dtype=torch.float64))).all()
    if registry is biject_to:
        assert free.shape == (5, 3)
        assert transform.forward_shape(free.shape) == value.shape
        assert transform.inverse_shape(value.shape) == free.shape


def test_log_ratios_are_the_measure_of_the_log_simplex():
    """det ds/dy = prod(s), by autograd; the density of v carries that prod(s) already."""
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
