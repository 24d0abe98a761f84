# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Relaxed and straight-through discrete distributions for Pyro."""

from pyro_gumbel import constraints, divergences, estimators, links
from pyro_gumbel.distributions import (
    BernoulliStraightThrough,
    BetaBinomialStraightThrough,
    BinomialStraightThrough,
    CategoricalStraightThrough,
    DirichletMultinomialStraightThrough,
    ExpRelaxedCategorical,
    GammaPoissonStraightThrough,
    GeometricStraightThrough,
    HardConcrete,
    IndexStraightThrough,
    LogitHardConcrete,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    MultinomialStraightThrough,
    NegativeBinomialStraightThrough,
    PlackettLuce,
    PlackettLuceStraightThrough,
    PoissonStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    SelectedComponent,
    Subset,
    SubsetStraightThrough,
)
from pyro_gumbel.distributions.plackett_luce import m_hot
from pyro_gumbel.distributions.registration import register, unregister
from pyro_gumbel.distributions.relaxation import harden, relax
from pyro_gumbel.distributions.unimix import unimix
from pyro_gumbel.estimators import (
    LearnedCurvature,
    gapped,
    gumbel_rao,
    gumbel_softmax,
    mve,
    reinmax,
    reinmax_rao,
    straight_through,
)
from pyro_gumbel.infer.autoguide import AutoRelaxed
from pyro_gumbel.infer.gradient_rows import GradientRow
from pyro_gumbel.infer.gradients import gradient_report
from pyro_gumbel.infer.handlers import relaxed
from pyro_gumbel.infer.reparam import NoiseReparam
from pyro_gumbel.infer.report import GradientReport
from pyro_gumbel.kernels.compiling import compiled
from pyro_gumbel.temperature import (
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    GeometricTemperature,
    LearnableTemperature,
    LinearTemperature,
    TemperatureSchedule,
)
from pyro_gumbel.tensors.index_tensor import IndexTensor

__version__ = "0.2.0"

__all__ = [
    "AutoRelaxed",
    "BernoulliStraightThrough",
    "BetaBinomialStraightThrough",
    "BinomialStraightThrough",
    "CategoricalStraightThrough",
    "ConstantTemperature",
    "CosineTemperature",
    "DirichletMultinomialStraightThrough",
    "ExpRelaxedCategorical",
    "ExponentialTemperature",
    "GammaPoissonStraightThrough",
    "GeometricStraightThrough",
    "GeometricTemperature",
    "GradientReport",
    "GradientRow",
    "HardConcrete",
    "IndexStraightThrough",
    "IndexTensor",
    "LearnableTemperature",
    "LearnedCurvature",
    "LinearTemperature",
    "LogitHardConcrete",
    "LogitRelaxedBernoulli",
    "LogitRelaxedSubset",
    "MultinomialStraightThrough",
    "NegativeBinomialStraightThrough",
    "NoiseReparam",
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
    "TemperatureSchedule",
    "compiled",
    "constraints",
    "divergences",
    "estimators",
    "gapped",
    "gradient_report",
    "gumbel_rao",
    "gumbel_softmax",
    "harden",
    "links",
    "m_hot",
    "mve",
    "register",
    "reinmax",
    "reinmax_rao",
    "relax",
    "relaxed",
    "straight_through",
    "unimix",
    "unregister",
]
