# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Relaxed and straight-through discrete distributions for Pyro."""

from pyro_gumbel import constraints, divergences, estimators, links
from pyro_gumbel.compiling import compiled
from pyro_gumbel.diagnostics import GradientReport, GradientRow, gradient_report
from pyro_gumbel.discrete import PlackettLuce, Subset, m_hot
from pyro_gumbel.estimators import (
    gapped,
    gumbel_rao,
    gumbel_softmax,
    reinmax,
    straight_through,
)
from pyro_gumbel.guides import AutoRelaxed
from pyro_gumbel.hard import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuceStraightThrough,
    SubsetStraightThrough,
)
from pyro_gumbel.registration import register, unregister
from pyro_gumbel.relaxing import harden, relax, relaxed
from pyro_gumbel.reparam import NoiseReparam
from pyro_gumbel.soft import (
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
)
from pyro_gumbel.temperature import (
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    LearnableTemperature,
    LinearTemperature,
    TemperatureSchedule,
)

__version__ = "0.1.0"

__all__ = [
    "AutoRelaxed",
    "BernoulliStraightThrough",
    "CategoricalStraightThrough",
    "ConstantTemperature",
    "CosineTemperature",
    "ExpRelaxedCategorical",
    "ExponentialTemperature",
    "GradientReport",
    "GradientRow",
    "LearnableTemperature",
    "LinearTemperature",
    "LogitRelaxedBernoulli",
    "LogitRelaxedSubset",
    "NoiseReparam",
    "PlackettLuce",
    "PlackettLuceStraightThrough",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "RelaxedPlackettLuce",
    "RelaxedSubset",
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
    "register",
    "reinmax",
    "relax",
    "relaxed",
    "straight_through",
    "unregister",
]
