# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Relaxed sites written as functions of their noise, whose density is smooth."""

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor

from pyro_gumbel.distributions.relaxed import Relaxed, RelaxedLogits
from pyro_gumbel.distributions.sample_cache import remember
from pyro_gumbel.distributions.wrappers import innermost, rewrapped

__all__ = ["NoiseReparam"]


class NoiseReparam(Reparam):
    r"""Write a relaxed site as a deterministic function of parameter-free noise.

    The site "z" becomes a deterministic function of its logits x, the temperature :math:`\tau` and
    the noise g, which is sampled at a new site "z_noise":

    .. math::
        z = \operatorname{link}((x + g) / \tau), \qquad
        g_i \sim \operatorname{Gumbel}(0, 1) \text{ independently}

    The link is the sigmoid for `RelaxedBernoulli`, where g is one Logistic(0, 1) variate; the
    softmax for `RelaxedCategorical`; and for `RelaxedSubset` the sigmoid of logits that are shifted
    so that the entries of z sum to the size. For `HardConcrete` the sigmoid is stretched and
    clipped; NUTS then needs ``init_strategy=init_to_sample``.

    Use it for samplers such as NUTS at low temperatures. There the density of a relaxed value has a
    pole at each one-hot vector, and floats round to these points, so that NUTS becomes slow and
    wrong. The density of the noise is smooth and does not depend on the parameters.

    If the site is given a value, such as an initial one, its noise is computed from it. For k
    categories the noise is unique up to one shift of all its entries; of these the most probable is
    taken,

    .. math:: g = -\log(k \operatorname{softmax}(x - \tau v))

    with v the value in logit space.

    Source: Gorinova, Moore and Hoffman, "Automatic reparameterisation of probabilistic programs"
    (2020), https://arxiv.org/abs/1906.03028.

    >>> def model():
    ...     return pyro.sample("z", RelaxedCategorical(0.1, logits=torch.zeros(3)))
    >>> moved = pyro.poutine.reparam(model, config={"z": NoiseReparam()})
    >>> pyro.poutine.trace(moved).get_trace().nodes["z_noise"]["value"].shape
    torch.Size([3])

    :raises TypeError: for a site with any other distribution than the relaxed Bernoulli,
        categorical and subset ones, over values or in logit space.
    :raises ValueError: for an observed site.
    """

    def apply(self, msg: Any) -> Any:
        """The message of the site, with its value computed from the noise."""
        name, value = msg["name"], msg["value"]
        distribution = _relaxed_distribution(name, msg["fn"])
        if msg["is_observed"]:
            raise ValueError(
                f'NoiseReparam: site "{name}" must be latent, and is observed; write '
                f'poutine.reparam(..., config={{}}) without "{name}"'
            )
        given = None if value is None else _noise_of(distribution, value)
        drawn = pyro.sample(
            f"{name}_noise",
            rewrapped(msg["fn"], _noise_distribution(distribution)),
            obs=given,
            infer={"is_observed": False},
        )
        if value is None:
            perturbed = distribution.link.centred(distribution._logits) + drawn
            v = distribution.link.unconstrained(perturbed, distribution._tau)
            value = distribution._to_value(v)
        delta = dist.Delta(value, event_dim=msg["fn"].event_dim).mask(False)
        return {"fn": delta, "value": value, "is_observed": True}


def _noise_of(distribution: Any, value: Tensor) -> Tensor:
    """The noise that makes this value, which then caches its logit-space form as a drawn one."""
    v = distribution.link.finite(distribution._to_unconstrained(value))
    if not isinstance(distribution, RelaxedLogits):
        remember(value, distribution.link, v)
    return distribution.link.noise(
        v, distribution.link.centred(distribution._logits), distribution._tau
    )


def _relaxed_distribution(name: str, distribution: Any) -> Any:
    """The relaxed distribution of a site, if it is a function of parameter-free noise."""
    base = innermost(distribution)
    if isinstance(base, Relaxed) and base.family.noise_distribution is not None:
        return base
    raise TypeError(
        f'NoiseReparam: site "{name}" must have a relaxed Bernoulli, categorical or subset '
        f"distribution, got {type(base).__name__}; write RelaxedBernoulli, RelaxedCategorical or "
        "RelaxedSubset, or relaxed(model, temperature, hard=False)"
    )


def _noise_distribution(distribution: Any) -> Any:
    """The distribution of the noise of a relaxed one."""
    zeros = torch.zeros((), dtype=distribution._dtype, device=distribution._parameter.device)
    like = zeros.expand(distribution.shape())
    noise = distribution.family.noise_distribution(like, torch.ones_like(like))
    return noise.to_event(distribution.family.event_dim)
