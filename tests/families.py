# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The table of families, and what it means for two distributions to be the same."""

import pyro.distributions as dist
import torch

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    Subset,
    SubsetStraightThrough,
)

T = 0.5


LOGITS = torch.tensor([[0.3, -0.2, 0.1, 1.0], [1.5, 0.0, -0.7, 0.2]])


PROBS = torch.tensor([0.2, 0.3, 0.5])


# Of each row: the discrete law, the hard and the soft one.
ROWS = {
    "bit": (dist.Bernoulli, BernoulliStraightThrough, RelaxedBernoulli),
    "one of k": (dist.OneHotCategorical, CategoricalStraightThrough, RelaxedCategorical),
    "set": (
        lambda **given: Subset(2, **given),
        lambda t, **given: SubsetStraightThrough(t, 2, **given),
        lambda t, **given: RelaxedSubset(t, 2, **given),
    ),
    "order": (
        lambda **given: PlackettLuce(2, **given),
        lambda t, **given: PlackettLuceStraightThrough(t, 2, **given),
        lambda t, **given: RelaxedPlackettLuce(t, 2, **given),
    ),
}


def mate(row, hard, **given):
    return ROWS[row][1 if hard else 2](T, **given)


def assert_same_law(law, expected):
    """Wrapped alike around equal classes, batch shapes and parameters, under equal names."""
    assert type(law) is type(expected)
    assert (law.batch_shape, law.event_shape) == (expected.batch_shape, expected.event_shape)
    if hasattr(law, "base_dist"):
        return assert_same_law(law.base_dist, expected.base_dist)
    assert law._given == expected._given
    torch.testing.assert_close(law._param, expected._param)
    assert torch.equal(law.temperature, expected.temperature)
    assert getattr(law, "estimator", None) is getattr(expected, "estimator", None)
