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
from pyro_gumbel.distributions.category_index import IndexStraightThrough
from pyro_gumbel.distributions.hard_concrete import HardConcrete, LogitHardConcrete
from pyro_gumbel.distributions.multinomial import (
    DirichletMultinomialStraightThrough,
    MultinomialStraightThrough,
)
from pyro_gumbel.distributions.plackett_luce import (
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedPlackettLuce,
)
from pyro_gumbel.distributions.poisson import (
    GammaPoissonStraightThrough,
    PoissonStraightThrough,
)
from pyro_gumbel.distributions.selected_component import SelectedComponent
from pyro_gumbel.distributions.subset import (
    LogitRelaxedSubset,
    RelaxedSubset,
    Subset,
    SubsetStraightThrough,
)
from pyro_gumbel.distributions.trials import (
    BetaBinomialStraightThrough,
    BinomialStraightThrough,
    GeometricStraightThrough,
    NegativeBinomialStraightThrough,
)

__all__ = [
    "BernoulliStraightThrough",
    "BetaBinomialStraightThrough",
    "BinomialStraightThrough",
    "CategoricalStraightThrough",
    "DirichletMultinomialStraightThrough",
    "ExpRelaxedCategorical",
    "GammaPoissonStraightThrough",
    "GeometricStraightThrough",
    "HardConcrete",
    "IndexStraightThrough",
    "LogitHardConcrete",
    "LogitRelaxedBernoulli",
    "LogitRelaxedSubset",
    "MultinomialStraightThrough",
    "NegativeBinomialStraightThrough",
    "PlackettLuce",
    "PlackettLuceStraightThrough",
    "PoissonStraightThrough",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "RelaxedPlackettLuce",
    "RelaxedSubset",
    "SelectedComponent",
    "Subset",
    "SubsetStraightThrough",
]
