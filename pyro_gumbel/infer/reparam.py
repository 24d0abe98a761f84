# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Soft sites moved to their noise, where a sampler finds no corners."""

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.infer.reparam.reparam import Reparam

from pyro_gumbel.distributions.relaxed import Relaxed, RelaxedLogits
from pyro_gumbel.distributions.sample_cache import remember
from pyro_gumbel.distributions.wrappers import innermost, rewrapped

__all__ = ["NoiseReparam"]


class NoiseReparam(Reparam):
    r"""A soft site as a function of parameter-free noise.

    The site "z" becomes the deterministic link of x + g, and "z_noise" is sampled in its place:
    g iid Gumbel(0, 1) over the categories, for a bit Logistic(0, 1). At low temperatures the
    density of a soft value has a pole at each vertex, to which floats round, so that NUTS becomes
    slow and wrong; that of the noise has none. A value that the site is given, as an initial one,
    is inverted: of the noise that makes it, which is unique up to a shift common to all
    categories, the most probable,

        g = -log(k softmax(x - tau v)),    v the value's coordinates.

    The transform of Gorinova, Moore and Hoffman, "Automatic reparameterisation of probabilistic
    programs" (2020), https://arxiv.org/abs/1906.03028, for soft laws of one bit, one of k and m of
    k, over values or coordinates.

    >>> def model():
    ...     return pyro.sample("z", RelaxedCategorical(0.1, logits=torch.zeros(3)))
    >>> moved = pyro.poutine.reparam(model, config={"z": NoiseReparam()})
    >>> pyro.poutine.trace(moved).get_trace().nodes["z_noise"]["value"].shape
    torch.Size([3])

    :raises TypeError: for a site whose law is not one of these.
    :raises ValueError: for an observed site.
    """

    def apply(self, msg: Any) -> Any:
        """The site's message with its value made of noise."""
        name, value = msg["name"], msg["value"]
        law = _soft_law(name, msg["fn"])
        if msg["is_observed"]:
            raise ValueError(
                f'NoiseReparam: site "{name}" must be latent, and is observed; write '
                f'poutine.reparam(..., config={{}}) without "{name}"'
            )
        given = None
        if value is not None:
            v = law.link.finite(law._to_unconstrained(value))
            given = law.link.noise(v, law.link.centred(law._logits), law._tau)
            if not isinstance(law, RelaxedLogits):
                remember(value, law.link, v)  # as a drawn one does
        drawn = pyro.sample(
            f"{name}_noise",
            rewrapped(msg["fn"], _noise_law(law)),
            obs=given,
            infer={"is_observed": False},
        )
        if value is None:
            value = law._to_value(
                law.link.unconstrained(law.link.centred(law._logits) + drawn, law._tau)
            )
        delta = dist.Delta(value, event_dim=msg["fn"].event_dim).mask(False)
        return {"fn": delta, "value": value, "is_observed": True}


def _soft_law(name: str, distribution: Any) -> Any:
    law = innermost(distribution)
    if isinstance(law, Relaxed) and law.family.noise_distribution is not None:
        return law
    raise TypeError(
        f'NoiseReparam: site "{name}" must have a soft law of one bit, one of k or m of k, got '
        f"{type(law).__name__}; write RelaxedBernoulli, RelaxedCategorical or RelaxedSubset, or "
        "relaxed(model, temperature, hard=False)"
    )


def _noise_law(law: Any) -> Any:
    like = torch.zeros((), dtype=law._dtype, device=law._parameter.device).expand(law.shape())
    noise = law.family.noise_distribution(like, torch.ones_like(like))
    return noise.to_event(law.family.event_dim)
