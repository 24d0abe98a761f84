# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Relaxed and straight-through discrete distributions for Pyro."""

from pyro_gumbel import constraints, divergences, estimators, links
from pyro_gumbel.discrete import PlackettLuce, Subset, m_hot
from pyro_gumbel.estimators import gumbel_softmax
from pyro_gumbel.hard import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuceStraightThrough,
    SubsetStraightThrough,
)
from pyro_gumbel.soft import (
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
)

__version__ = "0.1.0"

__all__ = [
    "BernoulliStraightThrough",
    "CategoricalStraightThrough",
    "ExpRelaxedCategorical",
    "LogitRelaxedBernoulli",
    "LogitRelaxedSubset",
    "PlackettLuce",
    "PlackettLuceStraightThrough",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "RelaxedPlackettLuce",
    "RelaxedSubset",
    "Subset",
    "SubsetStraightThrough",
    "constraints",
    "divergences",
    "estimators",
    "gumbel_softmax",
    "links",
    "m_hot",
]
