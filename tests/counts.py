# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The table of counts: id -> class, class of Pyro, and arguments."""

import itertools
from typing import NamedTuple

import pyro.distributions as dist
import torch

from pyro_gumbel import (
    BetaBinomialStraightThrough,
    BinomialStraightThrough,
    GammaPoissonStraightThrough,
    GeometricStraightThrough,
    MultinomialStraightThrough,
    NegativeBinomialStraightThrough,
    PoissonStraightThrough,
)
from pyro_gumbel import DirichletMultinomialStraightThrough as DirichletMultinomial


class Count(NamedTuple):
    cls: type
    parent: type
    parameters: dict  # name -> value of one distribution; these carry gradients
    constants: dict  # name -> value


THREE = [0.2, 0.3, 0.5]
N = {"total_count": 5}

COUNTS = {
    "Poisson": Count(PoissonStraightThrough, dist.Poisson, {"rate": 3.0}, {}),
    "Binomial probs": Count(BinomialStraightThrough, dist.Binomial, {"probs": 0.3}, N),
    "Binomial logits": Count(BinomialStraightThrough, dist.Binomial, {"logits": 0.3}, N),
    "NegativeBinomial probs": Count(
        NegativeBinomialStraightThrough,
        dist.NegativeBinomial,
        {"total_count": 2.5, "probs": 0.4},
        {},
    ),
    "NegativeBinomial logits": Count(
        NegativeBinomialStraightThrough,
        dist.NegativeBinomial,
        {"total_count": 2.5, "logits": -0.4},
        {},
    ),
    "Geometric probs": Count(GeometricStraightThrough, dist.Geometric, {"probs": 0.4}, {}),
    "Geometric logits": Count(GeometricStraightThrough, dist.Geometric, {"logits": -0.4}, {}),
    "Multinomial probs": Count(MultinomialStraightThrough, dist.Multinomial, {"probs": THREE}, N),
    "Multinomial logits": Count(
        MultinomialStraightThrough, dist.Multinomial, {"logits": [0.3, -0.4, 1.0]}, N
    ),
    "BetaBinomial": Count(
        BetaBinomialStraightThrough,
        dist.BetaBinomial,
        {"concentration1": 2.0, "concentration0": 3.0},
        N,
    ),
    "GammaPoisson": Count(
        GammaPoissonStraightThrough, dist.GammaPoisson, {"concentration": 2.0, "rate": 1.5}, {}
    ),
    "DirichletMultinomial": Count(
        DirichletMultinomial, dist.DirichletMultinomial, {"concentration": [2.0, 1.5, 3.0]}, N
    ),
}
COMPOUNDS = ["BetaBinomial", "GammaPoisson", "DirichletMultinomial"]
SIMPLE = [name for name in COUNTS if name not in COMPOUNDS]
VECTORS = [name for name in COUNTS if "Multinomial" in name]
CLASSES = sorted({count.cls for count in COUNTS.values()}, key=lambda cls: cls.__name__)
ONE_EACH = list({count.cls: name for name, count in COUNTS.items()}.values())


def parameters_of(name, batch_shape=(), dtype=torch.float64):
    """Leaves of the batch shape: the values of the table, each next one a little larger."""
    leaves = {}
    for key, value in COUNTS[name].parameters.items():
        value = torch.tensor(value, dtype=dtype)
        more = torch.linspace(0, 0.2, max(1, torch.Size(batch_shape).numel()), dtype=dtype)
        more = more.reshape((*batch_shape, *(1,) * value.dim()))
        leaves[key] = (value + more).detach().requires_grad_()
    return leaves


def make_count(name, leaves=None, parent=False, **keywords):
    """A distribution of the table, or the one of Pyro."""
    count = COUNTS[name]
    given = parameters_of(name) if leaves is None else leaves
    return (count.parent if parent else count.cls)(**given, **count.constants, **keywords)


def support_of(name, dtype=torch.float64, most=250):
    """All values of one distribution of the table; of infinite supports all but 1e-14."""
    if name in VECTORS:
        n = N["total_count"]
        values = [v for v in itertools.product(range(n + 1), repeat=3) if sum(v) == n]
        return torch.tensor(values, dtype=dtype)
    finite = COUNTS[name].constants is N
    return torch.arange(N["total_count"] + 1 if finite else most, dtype=dtype)
