# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Relaxed and straight-through discrete distributions for Pyro."""

from pyro_gumbel import constraints, divergences, estimators, links
from pyro_gumbel.estimators import gumbel_softmax
from pyro_gumbel.hard import BernoulliStraightThrough, CategoricalStraightThrough
from pyro_gumbel.soft import (
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    RelaxedBernoulli,
    RelaxedCategorical,
)

__version__ = "0.1.0"

__all__ = [
    "BernoulliStraightThrough",
    "CategoricalStraightThrough",
    "ExpRelaxedCategorical",
    "LogitRelaxedBernoulli",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "constraints",
    "divergences",
    "estimators",
    "gumbel_softmax",
    "links",
]
