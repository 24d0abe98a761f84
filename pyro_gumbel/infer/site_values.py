# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The most probable value and the quantiles of a distribution of a guide."""

from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._validation import require
from pyro_gumbel.distributions.base import FamilyDistribution
from pyro_gumbel.distributions.relaxed import RelaxedLogits
from pyro_gumbel.distributions.straight_through import FamilyStraightThrough

__all__ = ["most_probable", "quantiles_of", "read_quantiles"]

DRAWS = 1000  # where there is no closed form


def read_quantiles(quantiles: Any) -> Tensor:
    """Numbers from 0 to 1 as a tensor of one dimension."""
    wanted = "AutoRelaxed.quantiles: `quantiles` must be numbers from 0 to 1"
    remedy = "write guide.quantiles([0.05, 0.5, 0.95])"
    try:
        q = torch.as_tensor(quantiles, dtype=torch.float64, device="cpu").flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{wanted}, got {quantiles!r}; {remedy}") from error
    require((q >= 0) & (q <= 1), wanted, q, remedy)
    return q


def most_probable(distribution: Any) -> Tensor:
    """The most probable discrete value, in the form of the distribution's values."""
    if not isinstance(distribution, FamilyDistribution):
        return _most_probable_count(distribution)
    mode = distribution.family.mode(distribution.logits, **distribution._size_arguments)
    if isinstance(distribution, RelaxedLogits):
        return distribution._to_value(distribution.link.inverse(mode))
    return mode


def _most_probable_count(distribution: Any) -> Tensor:
    """The mode, or where there is no formula the most probable of 1,000 draws."""
    try:
        return distribution.mode
    except NotImplementedError:
        draws = distribution.sample((DRAWS,))
        best = distribution.log_prob(draws).argmax(0)
        index = best.reshape(1, *best.shape, *[1] * distribution.event_dim)
        return draws.gather(0, index.expand(1, *draws.shape[1:])).squeeze(0)


def quantiles_of(distribution: Any, q: Tensor) -> Tensor:
    """The least value that an entry is at or below with probability q, for each q and entry."""
    like = (
        distribution.logits if isinstance(distribution, FamilyDistribution) else distribution.mean
    )
    q = q.to(like.device).reshape(-1, *[1] * len(distribution.shape()))
    if isinstance(distribution, FamilyStraightThrough):
        return _outcome_quantiles(distribution, q)
    try:
        return distribution.icdf(q)
    except NotImplementedError:  # no formula
        rank = (q.flatten() * DRAWS).ceil().long() - 1
        return distribution.sample((DRAWS,)).sort(0).values[rank.clamp(min=0)]


def _outcome_quantiles(distribution: Any, q: Tensor) -> Tensor:
    """Of zeros and ones, or of integer categories, which have fewer dimensions than `probs`."""
    if distribution.family.event_dim > distribution.event_dim:
        return _category_quantiles(distribution.probs, q)
    mean = distribution.mean
    return ((mean > 1 - q) | (mean >= 1)).to(mean.dtype)


def _category_quantiles(probs: Tensor, q: Tensor) -> Tensor:
    """The least possible category k such that those up to k have a probability of q or more."""
    probs = probs.double()
    up_to, from_here = probs.cumsum(-1), probs.flip(-1).cumsum(-1).flip(-1)
    above = torch.cat([from_here[..., 1:], torch.zeros_like(probs[..., :1])], -1)
    return ((above > 1 - q.unsqueeze(-1)) | (up_to == 0)).sum(-1)
