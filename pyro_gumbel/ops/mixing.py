# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of counts, and of the rates and probabilities of compound distributions.

They are what torch's `Poisson`, `Gamma` and `Dirichlet` draw from the same seed. The last two do
not run under `torch.vmap`. Rates and probabilities have pathwise gradients.
"""

import torch
from torch import Tensor
from torch.distributions import Dirichlet

from pyro_gumbel._tracing import in_eager_mode, in_program

__all__ = ["dirichlet_variate", "gamma_variate", "is_without_gradient", "poisson_variate"]

_SMALL, _GREAT = 0.02, 1e4  # concentrations
_LARGEST = 2.0**62  # that torch's Poisson draws; its integers overflow from 2^63 on


def gamma_variate(concentration: Tensor, rate: Tensor, sample_shape: torch.Size) -> Tensor:
    """A gamma variate; concentration and rate have the same shape."""
    standard = torch._standard_gamma(concentration.expand(sample_shape + concentration.shape))
    finfo = torch.finfo(standard.dtype)
    variate = (standard / rate).clamp(max=finfo.max)
    return variate + (variate.clamp(min=finfo.tiny) - variate).detach()


def is_without_gradient(concentration: Tensor) -> Tensor:
    """Where `dirichlet_variate` passes no gradient, as torch's is wrong.

    For small concentrations it is far off. For a large one beside a moderate one it is 20 % too
    small, and NaN from about 1e7 on.
    """
    return ((concentration < _SMALL) | (concentration > _GREAT)).any(-1)


def dirichlet_variate(concentration: Tensor, sample_shape: torch.Size) -> Tensor:
    """Probabilities over the last dimension; under `torch.vmap` normalised gamma variates."""
    fixed = is_without_gradient(concentration).unsqueeze(-1)
    concentration = torch.where(fixed, concentration.detach(), concentration)
    if in_eager_mode() or in_program():
        return Dirichlet(concentration, validate_args=False).rsample(sample_shape)
    variates = gamma_variate(concentration, torch.ones_like(concentration), sample_shape)
    return variates / variates.sum(-1, keepdim=True)


def poisson_variate(rate: Tensor) -> Tensor:
    """A Poisson variate; rates beyond 2^62 stand for it themselves, as far as lgamma is finite."""
    variate = torch.poisson(rate.clamp(max=_LARGEST))
    return torch.where(rate > _LARGEST, rate.clamp(max=torch.finfo(rate.dtype).max / 1024), variate)
