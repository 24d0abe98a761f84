# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The distributions of the package, one file a family."""

from pyro_gumbel.distributions.bernoulli import (
    BernoulliStraightThrough,
    LogitRelaxedBernoulli,
    RelaxedBernoulli,
)
from pyro_gumbel.distributions.categorical import (
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    RelaxedCategorical,
)
from pyro_gumbel.distributions.plackett_luce import (
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedPlackettLuce,
)
from pyro_gumbel.distributions.selected_component import SelectedComponent
from pyro_gumbel.distributions.subset import (
    LogitRelaxedSubset,
    RelaxedSubset,
    Subset,
    SubsetStraightThrough,
)

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
    "SelectedComponent",
    "Subset",
    "SubsetStraightThrough",
]
