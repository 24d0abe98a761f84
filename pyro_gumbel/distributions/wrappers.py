# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The wrappers of a distribution, `Independent`, masked, expanded: taken off and put on again."""

from typing import Any

from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch.distributions import Independent

__all__ = ["WRAPPERS", "innermost", "masks_of", "rewrapped", "unmasked", "wrapped_like"]

WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)


def innermost(distribution: Any) -> Any:
    """The distribution inside all wrappers."""
    while isinstance(distribution, WRAPPERS):
        distribution = distribution.base_dist
    plain = getattr(distribution, "plain_distribution", distribution)
    return distribution if plain is distribution else innermost(plain)


def rewrapped(distribution: Any, base: Any) -> Any:
    """`base` in all wrappers of `distribution`."""
    if not isinstance(distribution, WRAPPERS):
        return base
    return wrapped_like(distribution, rewrapped(distribution.base_dist, base))


def wrapped_like(distribution: Any, base: Any) -> Any:
    """`base` in the outermost wrapper of `distribution`."""
    if isinstance(distribution, Independent):
        return base.to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, MaskedDistribution):
        return base.mask(distribution._mask)
    return base.expand(distribution.batch_shape)


def masks_of(distribution: Any) -> list[Any]:
    """The masks among the wrappers."""
    masks = []
    while isinstance(distribution, WRAPPERS):
        if isinstance(distribution, MaskedDistribution):
            masks.append(distribution._mask)
        distribution = distribution.base_dist
    return masks


def unmasked(distribution: Any) -> Any:
    """The distribution in all its wrappers except masks."""
    if not isinstance(distribution, WRAPPERS):
        return distribution
    base = unmasked(distribution.base_dist)
    if isinstance(distribution, MaskedDistribution):
        return base
    return distribution if base is distribution.base_dist else wrapped_like(distribution, base)
