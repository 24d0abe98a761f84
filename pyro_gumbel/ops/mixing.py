# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of the rates and probabilities of compound distributions, with pathwise gradients.

They are what torch's `Gamma` and `Dirichlet` draw from the same seed. Those do not run under
`torch.vmap`.
"""

import torch
from torch import Tensor
from torch.distributions import Dirichlet

from pyro_gumbel._tracing import in_eager_mode, in_program

__all__ = ["dirichlet_variate", "gamma_variate"]


def gamma_variate(concentration: Tensor, rate: Tensor, sample_shape: torch.Size) -> Tensor:
    """A gamma variate; concentration and rate have the same shape."""
    standard = torch._standard_gamma(concentration.expand(sample_shape + concentration.shape))
    variate = standard / rate
    least = torch.finfo(variate.dtype).tiny
    return variate + (variate.clamp(min=least) - variate).detach()


def dirichlet_variate(concentration: Tensor, sample_shape: torch.Size) -> Tensor:
    """Probabilities over the last dimension; under `torch.vmap` normalised gamma variates."""
    if in_eager_mode() or in_program():
        return Dirichlet(concentration, validate_args=False).rsample(sample_shape)
    variates = gamma_variate(concentration, torch.ones_like(concentration), sample_shape)
    return variates / variates.sum(-1, keepdim=True)
