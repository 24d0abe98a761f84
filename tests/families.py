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


# Of each family: the discrete, the straight-through and the relaxed distribution.
FAMILIES = {
    "bernoulli": (dist.Bernoulli, BernoulliStraightThrough, RelaxedBernoulli),
    "categorical": (dist.OneHotCategorical, CategoricalStraightThrough, RelaxedCategorical),
    "subset": (
        lambda **given: Subset(2, **given),
        lambda t, **given: SubsetStraightThrough(t, 2, **given),
        lambda t, **given: RelaxedSubset(t, 2, **given),
    ),
    "ranking": (
        lambda **given: PlackettLuce(2, **given),
        lambda t, **given: PlackettLuceStraightThrough(t, 2, **given),
        lambda t, **given: RelaxedPlackettLuce(t, 2, **given),
    ),
    "ranking with lengths": (
        lambda **given: PlackettLuce(torch.tensor(2), **given, rows=3),
        lambda t, **given: PlackettLuceStraightThrough(t, torch.tensor(2), **given, rows=3),
        lambda t, **given: RelaxedPlackettLuce(t, torch.tensor(2), **given, rows=3),
    ),
}


def counterpart(family, hard, **given):
    return FAMILIES[family][1 if hard else 2](T, **given)


def assert_same_distribution(distribution, expected):
    """Wrapped alike around equal classes, batch shapes and parameters, under equal names."""
    assert type(distribution) is type(expected)
    assert (distribution.batch_shape, distribution.event_shape) == (
        expected.batch_shape,
        expected.event_shape,
    )
    if hasattr(distribution, "base_dist"):
        masks = (torch.as_tensor(getattr(d, "_mask", True)) for d in (distribution, expected))
        assert torch.equal(*masks)
        return assert_same_distribution(distribution.base_dist, expected.base_dist)
    assert distribution._parameter_name == expected._parameter_name
    sizes = (torch.as_tensor(getattr(d, "size", 1)) for d in (distribution, expected))
    assert torch.equal(*sizes)
    parameters = (d._parameter.expand(d._parameter_shape) for d in (distribution, expected))
    torch.testing.assert_close(*parameters)
    assert torch.equal(distribution.temperature, expected.temperature)
    assert getattr(distribution, "estimator", None) is getattr(expected, "estimator", None)
