# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Our names in `pyro.distributions`, where a user asks for them."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import relaxed_straight_through
from pyro.distributions import torch as relaxed_soft

from pyro_gumbel import discrete, hard, soft

__all__ = ["register", "unregister"]

_OURS: dict[str, Any] = {
    name: getattr(module, name)
    for module in (discrete, hard, soft)
    for name in module.__all__
    if isinstance(getattr(module, name), type)
    and issubclass(getattr(module, name), dist.Distribution)
}
# Pyro's own relaxed classes, the modules that they come from, and ours in their place.
_SHADOWED: dict[str, tuple[Any, Any]] = {
    "RelaxedBernoulli": (relaxed_soft, soft.RelaxedBernoulli),
    "RelaxedBernoulliStraightThrough": (relaxed_straight_through, hard.BernoulliStraightThrough),
    "RelaxedOneHotCategorical": (relaxed_soft, soft.RelaxedCategorical),
    "RelaxedOneHotCategoricalStraightThrough": (
        relaxed_straight_through,
        hard.CategoricalStraightThrough,
    ),
}


def register(*, replace: bool = False) -> None:
    """Add the classes of this package to `pyro.distributions`, until `unregister`.

    Names that are there already are left as they are.

    >>> register()
    >>> pyro.distributions.RelaxedCategorical(0.5, logits=torch.zeros(3)).event_shape
    torch.Size([3])
    >>> unregister()

    :param replace: whether Pyro's `RelaxedBernoulli`, `RelaxedOneHotCategorical` and the two with
        `StraightThrough` behind these names give way to ours, so that a model written with them
        need not be changed.
    """
    for name, law in _OURS.items():
        if not hasattr(dist, name):
            setattr(dist, name, law)
            dist.__all__.append(name)
    if replace:
        for name, (_, law) in _SHADOWED.items():
            setattr(dist, name, law)


def unregister() -> None:
    """Undo `register`: `pyro.distributions` as it was."""
    for name, (home, law) in _SHADOWED.items():
        if getattr(dist, name) is law:
            setattr(dist, name, getattr(home, name))
    for name, law in _OURS.items():
        if name not in _SHADOWED and getattr(dist, name, None) is law:
            delattr(dist, name)
            dist.__all__.remove(name)
