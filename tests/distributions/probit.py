# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""A family in one file: a binary variable with normal noise, P(D = 1) = Phi(x).

It shows what a family needs. Nothing else in the package knows of it.
"""

import math
from typing import ClassVar

import torch
from pyro.distributions import Bernoulli, Normal, TorchDistribution
from torch.distributions import constraints, kl_divergence, register_kl

from pyro_gumbel.distributions import kl
from pyro_gumbel.distributions.base import Family
from pyro_gumbel.distributions.relaxation import register_relaxation
from pyro_gumbel.distributions.relaxed import RelaxedValue
from pyro_gumbel.distributions.straight_through import StraightThroughOutcome
from pyro_gumbel.links import Link
from pyro_gumbel.ops.logarithms import clamped_log


class NormalInterval(Link):
    """s = sigmoid(v), v = (x + e) / tau, e standard normal."""

    event_dim = 0

    def unconstrained(self, perturbed, temperature):
        return perturbed / temperature

    def value(self, unconstrained):
        return unconstrained.sigmoid()

    def inverse(self, value):
        return clamped_log(value) - clamped_log(1 - value)

    def noise(self, unconstrained, logits, temperature):
        return temperature * unconstrained - logits

    def hard(self, perturbed):
        return (perturbed >= 0).to(perturbed.dtype)

    def log_density(self, unconstrained, logits, temperature, *, of_values):
        noise = temperature * unconstrained - logits
        density = temperature.log() - noise**2 / 2 - math.log(2 * math.pi) / 2
        slope = unconstrained.sigmoid() * (-unconstrained).sigmoid()
        return density - slope.log() if of_values else density

    def is_impossible(self, value, logits, low, high):
        return torch.zeros_like(value, dtype=torch.bool)

    def is_point(self, logits):
        return torch.zeros_like(logits, dtype=torch.bool)


class ProbitFamily(Family):
    """`probs` is the probability of 1, `logits` are the x with Phi(x) = probs."""

    link = NormalInterval()
    noise = staticmethod(lambda shape, **kinds: torch.randn(shape, **kinds))
    noise_distribution = Normal
    event_dim = 0
    arg_constraints: ClassVar = {"probs": constraints.unit_interval, "logits": constraints.real}

    def logits_of(self, probs):
        return torch.special.ndtri(probs)

    def normalised_logits(self, logits):
        return logits

    def normalised_probs(self, probs):
        return probs

    def probs_of(self, logits):
        return torch.special.ndtr(logits)

    def log_probs(self, logits):
        return torch.stack([torch.special.log_ndtr(-logits), torch.special.log_ndtr(logits)], -1)

    def one_hot(self, value):
        return torch.stack([1 - value, value], -1)

    def from_one_hot(self, weights):
        return weights[..., 1]

    def number_of_outcomes(self, probs):
        return 2

    def mode(self, logits, size=None):
        return self.link.hard(logits)


probit = ProbitFamily()
ARGUMENTS = {"temperature": constraints.positive, **probit.arg_constraints}


class Probit(Bernoulli):
    """The discrete distribution, given by its probability."""


class RelaxedProbit(RelaxedValue, TorchDistribution):
    """Relaxed to the unit interval."""

    family = probit
    arg_constraints = ARGUMENTS
    support = constraints.unit_interval
    _support_text, _remedy, _exact = "in [0, 1]", "write value.sigmoid()", "keep the value"


class ProbitStraightThrough(StraightThroughOutcome, Probit):
    """Straight-through."""

    family = probit
    arg_constraints = ARGUMENTS
    _support_text, _remedy = "0 or 1", "write value.round()"


@register_kl(RelaxedProbit, RelaxedProbit)
def _(q, p):
    """That of the normal distributions in logit space."""
    return kl_divergence(*(Normal(d.logits / d.temperature, 1 / d.temperature) for d in (q, p)))


register_relaxation(Probit, ProbitStraightThrough, RelaxedProbit)
kl.register_outcomes(ProbitStraightThrough, Probit)
