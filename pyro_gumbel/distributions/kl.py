# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Kullback-Leibler divergences. Each family registers the rules for its own classes.

Between relaxed distributions: exact, at any two temperatures, as derived in
`pyro_gumbel.ops.expectations`. Between straight-through distributions, and between one and the
plain discrete class of its family: the sum over outcomes. torch's own rules give NaN in the
gradient, or in the value, where a logit is infinite.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    TransformedDistribution,
    kl_divergence,
    register_kl,
)

from pyro_gumbel._validation import broadcast
from pyro_gumbel.distributions.base import Family, FamilyDistribution
from pyro_gumbel.distributions.plain import exact_logits
from pyro_gumbel.ops.expectations import relaxed_divergence
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.ops.subset_probability import kl_of_log_probs

__all__ = [
    "kl_by_enumeration",
    "kl_of_relaxed",
    "register_enumerated",
    "register_outcomes",
    "register_relaxed",
    "register_transformed",
]


def register_relaxed(*classes: Any) -> None:
    """Between two of the same class: relaxed, of Gumbel or logistic noise."""
    for cls in classes:
        register_kl(cls, cls)(kl_of_relaxed)


def register_outcomes(straight_through: Any, plain: Any) -> None:
    """Between a straight-through class and itself or a plain discrete class: sum over outcomes."""
    rule = partial(_kl_of_outcomes, straight_through.family)
    for q, p in (
        (straight_through, straight_through),
        (straight_through, plain),
        (plain, straight_through),
    ):
        register_kl(q, p)(rule)


def register_enumerated(cls: Any) -> None:
    """Between two of a discrete class or its subclasses, by enumeration of the support."""
    register_kl(cls, cls)(kl_by_enumeration)


def register_transformed(cls: Any) -> None:
    """Between a class that torch takes for a transformed distribution and such distributions."""
    register_kl(cls, TransformedDistribution)(_kl_of_transformed)
    register_kl(TransformedDistribution, cls)(_kl_of_transformed)


def kl_of_relaxed(q: Any, p: Any) -> Tensor:
    """Between two of the same class, relaxed; that of the values is that in logit space."""
    _require_alike(q, p)
    x_q, x_p = (d.family.log_probs(d._logits64) for d in (q, p))
    tau_q, tau_p = (d._temperature64 for d in (q, p))
    divergence = relaxed_divergence(x_q, tau_q, x_p, tau_p, size=getattr(q, "size", 1))
    return _over_joint_batch(cast(divergence, torch.promote_types(q._dtype, p._dtype)), q, p)


def _kl_of_outcomes(family: Family, q: Distribution, p: Distribution) -> Tensor:
    _require_alike(q, p)
    of_q, of_p = (_log_probs(family, distribution) for distribution in (q, p))
    if of_q.shape[-1] != of_p.shape[-1]:
        raise ValueError(
            f"kl_divergence(q, p): {type(q).__name__} and {type(p).__name__} must have the same "
            f"number of categories, got {of_q.shape[-1]} and {of_p.shape[-1]}; write both with "
            "logits of the same last dimension"
        )
    return _over_joint_batch(kl_of_log_probs(of_q, of_p), q, p)


def _log_probs(family: Family, distribution: Any) -> Tensor:
    """The log probability of each outcome over a last dimension, -inf where it is 0."""
    if isinstance(distribution, FamilyDistribution):
        return family.log_probs(distribution._logits)
    return family.log_probs(exact_logits(distribution, family))


def kl_by_enumeration(q: Any, p: Any) -> Tensor:
    """The sum over the outcomes of two distributions without replacement, of equal size.

    The NotImplementedError for too many outcomes is `q`'s own.
    """
    _require_alike(q, p)
    batch = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    values, repeats = q.expand(batch)._outcomes_and_repeats()
    log_probs = [d.expand(batch).log_prob(values) for d in (q, p)]
    if repeats is not None:
        log_probs = [each - repeats.log() for each in log_probs]
    return kl_of_log_probs(*(each.movedim(0, -1) for each in log_probs))


def _kl_of_transformed(q: Any, p: Any) -> Tensor:
    """torch's rule for one transformation of two distributions, with a text where it fails."""
    try:
        if q.transforms != p.transforms or q.event_shape != p.event_shape:
            raise NotImplementedError
        return kl_divergence(q.base_dist, p.base_dist)
    except NotImplementedError as error:
        names = [f"{type(d).__module__}.{type(d).__name__}" for d in (q, p)]
        raise NotImplementedError(
            f"kl_divergence(q, p): no formula is known for {names[0]} and {names[1]}; write both "
            "with the relaxed classes of pyro_gumbel, or estimate it by "
            "(q.log_prob(z) - p.log_prob(z)).mean(0) with z = q.rsample((1000,))"
        ) from error


def _require_alike(q: Any, p: Any) -> None:
    """Raise a ValueError unless both have as many categories and choose as many of them."""
    shapes = [(tuple(d.event_shape), _size_of(d)) for d in (q, p)]
    if shapes[0] != shapes[1]:
        (event_q, size_q), (event_p, size_p) = shapes
        raise ValueError(
            f"kl_divergence(q, p): {type(q).__name__} and {type(p).__name__} must have the same "
            f"event shape and `size`, got {event_q} and {event_p}, size {size_q} and {size_p}; "
            "write both with the same number of categories and the same size"
        )


def _size_of(distribution: Any) -> int:
    """How many categories are chosen; of rankings of different lengths the number of rows."""
    size: Any = getattr(distribution, "size", 1)
    return int(distribution.event_shape[0]) if isinstance(size, Tensor) else int(size)


def _over_joint_batch(divergence: Tensor, q: Distribution, p: Distribution) -> Tensor:
    return divergence.expand(broadcast(q.batch_shape, p.batch_shape))  # type: ignore[arg-type]
