# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The table of constructors that every property runs over, and the statistics of the tests."""

import math

import torch
from scipy import stats

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    RelaxedBernoulli,
    RelaxedCategorical,
)

# The chance of a false alarm of one statistical test.
ALPHA = 2e-5

ONE_BIT = [RelaxedBernoulli, LogitRelaxedBernoulli, BernoulliStraightThrough]
ONE_OF_K = [RelaxedCategorical, ExpRelaxedCategorical, CategoricalStraightThrough]
VALUES = [RelaxedBernoulli, RelaxedCategorical]
COORDINATES = [LogitRelaxedBernoulli, ExpRelaxedCategorical]
HARD = [BernoulliStraightThrough, CategoricalStraightThrough]
SOFT = VALUES + COORDINATES
ALL = ONE_BIT + ONE_OF_K


def event_shape(cls, k=3):
    """The event shape of a class, with k categories where it has categories."""
    return (k,) if cls in ONE_OF_K else ()


def make(cls, temperature=0.5, batch_shape=(2,), k=3, dtype=torch.float32, parameter="logits"):
    """A distribution of the class with random parameters, which require a gradient."""
    logits = torch.randn((*batch_shape, *event_shape(cls, k)), dtype=torch.float64)
    if parameter == "probs":
        logits = logits.softmax(-1) if cls in ONE_OF_K else logits.sigmoid()
    given = logits.to(dtype).requires_grad_()
    return cls(temperature, **{parameter: given}, validate_args=True)


def assert_same_mean(samples, expected):
    """The mean of iid `samples` over the first dimension is `expected`, entry by entry."""
    samples = torch.as_tensor(samples).double()
    n = samples.shape[0]
    error = samples.std(0) / math.sqrt(n)
    z = ((samples.mean(0) - expected) / error.clamp(min=1e-12)).abs().max().item()
    assert z < z_bound(samples[0].numel()), f"{z} standard errors from the exact mean"


def z_bound(comparisons=1):
    """How many standard errors are too many, for this many comparisons."""
    return stats.norm.isf(ALPHA / 2 / comparisons)


def assert_counts(counts, probs):
    """Multinomial `counts` have the law `probs` (chi-square)."""
    counts, probs = torch.as_tensor(counts).double(), torch.as_tensor(probs).double()
    p = stats.chisquare(counts.numpy(), (probs / probs.sum() * counts.sum()).numpy()).pvalue
    assert p > ALPHA, f"chi-square p = {p}"
