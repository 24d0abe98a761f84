# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Relaxed sites written as functions of their noise, whose density is smooth."""

from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import torch
from pyro import distributions as dist
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor

from pyro_gumbel.distributions.base import OneBit
from pyro_gumbel.distributions.relaxed import Coordinates, RelaxedPlackettLuce, Soft
from pyro_gumbel.distributions.sample_cache import remember
from pyro_gumbel.distributions.wrappers import innermost, rewrapped
from pyro_gumbel.ops import noise

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
    so that the entries of z sum to the size.

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
        distribution = _soft_law(name, msg["fn"])
        if msg["is_observed"]:
            raise ValueError(
                f'NoiseReparam: site "{name}" must be latent, and is observed; write '
                f'poutine.reparam(..., config={{}}) without "{name}"'
            )
        given = None if value is None else _noise_of(distribution, value)
        drawn = pyro.sample(
            f"{name}_noise",
            rewrapped(msg["fn"], _noise_law(distribution)),
            obs=given,
            infer={"is_observed": False},
        )
        if value is None:
            perturbed = distribution._location + drawn
            v = distribution.link.unconstrained(perturbed, distribution._tau)
            value = distribution._value_at(v)
        delta = dist.Delta(value, event_dim=msg["fn"].event_dim).mask(False)
        return {"fn": delta, "value": value, "is_observed": True}


def _noise_of(distribution: Any, value: Tensor) -> Tensor:
    """The noise that makes this value, which then caches its logit-space form as a drawn one."""
    v = distribution.link.finite(distribution._coordinates_of(value))
    if not isinstance(distribution, Coordinates):
        remember(value, distribution.link, v)
    return distribution.link.noise(v, distribution._location, distribution._tau)


class _Standard:
    """Location 0 and scale 1, drawn at full precision in both tails."""

    draw: ClassVar[Callable[..., Tensor]]
    loc: Tensor
    _extended_shape: Callable[[Any], torch.Size]

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return self.draw(shape, dtype=self.loc.dtype, device=self.loc.device)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.rsample(sample_shape)


class StandardLogistic(_Standard, dist.Logistic):
    """The noise of a binary site."""

    draw = staticmethod(noise.logistic)


class StandardGumbel(_Standard, dist.Gumbel):
    """The noise of one category."""

    draw = staticmethod(noise.gumbel)


# What depends on the family of a site.


def _soft_law(name: str, distribution: Any) -> Any:
    """The relaxed distribution of a site, if it is a function of parameter-free noise."""
    base = innermost(distribution)
    if isinstance(base, Soft) and not isinstance(base, RelaxedPlackettLuce):
        return base
    raise TypeError(
        f'NoiseReparam: site "{name}" must have a relaxed Bernoulli, categorical or subset '
        f"distribution, got {type(base).__name__}; write RelaxedBernoulli, RelaxedCategorical or "
        "RelaxedSubset, or relaxed(model, temperature, hard=False)"
    )


def _noise_law(distribution: Any) -> Any:
    """The distribution of the noise of a relaxed one."""
    zeros = torch.zeros((), dtype=distribution._dtype, device=distribution._raw.device)
    like = zeros.expand(distribution.shape())
    if isinstance(distribution, OneBit):
        return StandardLogistic(like, torch.ones_like(like))
    return StandardGumbel(like, torch.ones_like(like)).to_event(1)
