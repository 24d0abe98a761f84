# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The parameters of a plain discrete distribution, as they were given.

torch keeps one of `probs` and `logits` and computes the other when it is asked for, clamped: a
probability of 0 becomes a finite logit.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions.utils import probs_to_logits

from pyro_gumbel._tracing import known
from pyro_gumbel.distributions.base import Family, FamilyDistribution

__all__ = ["exact_logits", "parameter_of"]


def parameter_of(distribution: Any, family: Family) -> dict[str, Tensor]:
    """The one of `probs` and `logits` that a discrete distribution was given, under its name."""
    if isinstance(distribution, FamilyDistribution):
        whole = distribution._parameter.expand(distribution._parameter_shape)
        return {distribution._parameter_name: whole}
    inner = _inner(distribution)
    kept = {name: inner.__dict__[name] for name in ("probs", "logits") if name in inner.__dict__}
    given = {name: parameter for name, parameter in kept.items() if inner._param is parameter}
    if len(kept) == 1 or "probs" in given:
        return given
    # Logits were given; or torch derived them, and an expansion no longer shows it.
    if known(_are_derived(inner, family).all(), otherwise=False):
        return {"probs": inner.probs}
    return {"logits": exact_logits(distribution, family)}


def exact_logits(distribution: Any, family: Family) -> Tensor:
    """The logits of a plain distribution, infinite where a probability is 0 or 1."""
    inner = _inner(distribution)
    exact = family.logits_of(inner.probs)
    return torch.where(_are_derived(inner, family), exact, inner.logits)


def _are_derived(inner: Any, family: Family) -> Tensor:
    """Where the logits are those that torch computes from the probabilities."""
    return inner.logits == probs_to_logits(inner.probs, is_binary=family.event_dim == 0)


def _inner(distribution: Any) -> Any:
    """torch's OneHotCategorical keeps its parameters in a Categorical."""
    return getattr(distribution, "_categorical", distribution)
