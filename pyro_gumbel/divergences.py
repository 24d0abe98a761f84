# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Kullback-Leibler divergences, registered for `torch.distributions.kl_divergence`.

The rules are in `pyro_gumbel.distributions.kl`; importing the package registers them.
"""

from pyro_gumbel.distributions import kl

__all__ = ["kl"]
