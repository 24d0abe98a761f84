# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Kullback-Leibler divergences, registered for this package's types only.

Relaxed with relaxed: exact, at any two temperatures, as derived in `pyro_gumbel.ops.expectations`.
Straight-through with straight-through, and with the plain discrete class of its family: the sum
over outcomes, which torch's own makes NaN in the gradient, or in the value, where a probability
is 0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    OneHotCategorical,
    TransformedDistribution,
    kl_divergence,
    register_kl,
)

from pyro_gumbel.distributions.base import OneBit, OneOfK, Row, exact_logits
from pyro_gumbel.distributions.relaxed import (
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedSubset,
)
from pyro_gumbel.distributions.straight_through import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
)
from pyro_gumbel.distributions.without_replacement import PlackettLuce, Subset
from pyro_gumbel.ops.expectations import relaxed_divergence
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.ops.subset_probability import kl_of_log_probs


def _kl_of_soft(q: Any, p: Any) -> Tensor:
    _require_alike(q, p)
    x_q, x_p = (law._log_masses(law._wide_x) for law in (q, p))
    tau_q, tau_p = (cast(law.temperature, torch.float64) for law in (q, p))
    divergence = relaxed_divergence(x_q, tau_q, x_p, tau_p, size=getattr(q, "size", 1))
    return _over_joint_batch(cast(divergence, torch.promote_types(q._dtype, p._dtype)), q, p)


def _kl_of_few(q: Distribution, p: Distribution) -> Tensor:
    _require_alike(q, p)
    return _over_joint_batch(kl_of_log_probs(_log_masses(q), _log_masses(p)), q, p)


def _log_masses(law: Distribution) -> Tensor:
    """The log mass of each outcome over a last dimension, -inf where it is 0."""
    if isinstance(law, Row):
        return law._log_masses(law._x)
    row = OneOfK if isinstance(law, OneHotCategorical) else OneBit
    return row._log_masses(exact_logits(law))


def _kl_of_many(q: Any, p: Any) -> Tensor:
    """By enumeration; NotImplementedError, where there is too much of that, is `q`'s own."""
    _require_alike(q, p)
    batch = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    values = q.expand(batch).enumerate_support(expand=False)
    return kl_of_log_probs(*(law.expand(batch).log_prob(values).movedim(0, -1) for law in (q, p)))


def _kl_of_transformed(q: Any, p: Any) -> Tensor:
    """The rule of torch for one transformation of two distributions, with a text where it fails."""
    try:
        if q.transforms != p.transforms or q.event_shape != p.event_shape:
            raise NotImplementedError
        return kl_divergence(q.base_dist, p.base_dist)
    except NotImplementedError as error:
        names = [f"{type(law).__module__}.{type(law).__name__}" for law in (q, p)]
        raise NotImplementedError(
            f"kl_divergence(q, p): no formula is known for {names[0]} and {names[1]}; write both "
            "with the relaxed classes of pyro_gumbel, or estimate it by "
            "(q.log_prob(z) - p.log_prob(z)).mean(0) with z = q.rsample((1000,))"
        ) from error


def _require_alike(q: Any, p: Any) -> None:
    """Raise a ValueError unless both laws have as many categories and choose as many of them."""
    shapes = [(tuple(law.event_shape), getattr(law, "size", 1)) for law in (q, p)]
    if shapes[0] != shapes[1]:
        (event_q, size_q), (event_p, size_p) = shapes
        raise ValueError(
            f"kl_divergence(q, p): {type(q).__name__} and {type(p).__name__} must have the same "
            f"event shape and `size`, got {event_q} and {event_p}, size {size_q} and {size_p}; "
            "write both with the same number of categories and the same size"
        )


def _over_joint_batch(divergence: Tensor, q: Distribution, p: Distribution) -> Tensor:
    return divergence.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


for _soft in (
    RelaxedBernoulli,
    LogitRelaxedBernoulli,
    RelaxedCategorical,
    ExpRelaxedCategorical,
    RelaxedSubset,
    LogitRelaxedSubset,
):
    register_kl(_soft, _soft)(_kl_of_soft)

for _soft in (RelaxedBernoulli, RelaxedCategorical):  # in torch's hierarchy they are transformed
    register_kl(_soft, TransformedDistribution)(_kl_of_transformed)
    register_kl(TransformedDistribution, _soft)(_kl_of_transformed)

for _hard, _plain in (
    (BernoulliStraightThrough, Bernoulli),
    (CategoricalStraightThrough, OneHotCategorical),
):
    register_kl(_hard, _hard)(_kl_of_few)
    register_kl(_hard, _plain)(_kl_of_few)
    register_kl(_plain, _hard)(_kl_of_few)

for _law in (Subset, PlackettLuce):  # and, by inheritance, the hard laws
    register_kl(_law, _law)(_kl_of_many)
