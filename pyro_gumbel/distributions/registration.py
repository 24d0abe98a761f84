# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Our names in `pyro.distributions`, where a user asks for them."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import relaxed_straight_through
from pyro.distributions import torch as relaxed_soft

from pyro_gumbel.distributions import relaxed as soft
from pyro_gumbel.distributions import straight_through as hard
from pyro_gumbel.distributions import without_replacement as discrete

__all__ = ["register", "unregister"]

_OURS: dict[str, Any] = {
    name: getattr(module, name)
    for module in (discrete, hard, soft)
    for name in module.__all__
    if isinstance(getattr(module, name), type)
    and issubclass(getattr(module, name), dist.Distribution)
}
# Pyro's own relaxed classes by name, and ours in their place; and the modules that have them.
_SHADOWED: dict[str, tuple[Any, Any]] = {
    "RelaxedBernoulli": (relaxed_soft.RelaxedBernoulli, soft.RelaxedBernoulli),
    "RelaxedBernoulliStraightThrough": (
        relaxed_straight_through.RelaxedBernoulliStraightThrough,
        hard.BernoulliStraightThrough,
    ),
    "RelaxedOneHotCategorical": (relaxed_soft.RelaxedOneHotCategorical, soft.RelaxedCategorical),
    "RelaxedOneHotCategoricalStraightThrough": (
        relaxed_straight_through.RelaxedOneHotCategoricalStraightThrough,
        hard.CategoricalStraightThrough,
    ),
}
_HOMES = (dist, relaxed_soft, relaxed_straight_through)


def register(*, replace: bool = False) -> None:
    """Add the classes of this package to `pyro.distributions`, until `unregister`.

    Names that are there already are left as they are.

    >>> register()
    >>> pyro.distributions.RelaxedCategorical(0.5, logits=torch.zeros(3)).event_shape
    torch.Size([3])
    >>> unregister()

    With `replace=True` a model written with Pyro's relaxed classes need not be changed, if it looks
    them up after the call. Not reached are names that were imported before, by
    ``from pyro.distributions import RelaxedBernoulli``, objects made of them, which cannot be
    pickled until `unregister`, and `torch.distributions`. So call it first, before the modules
    that define models are imported.

    :param replace: whether Pyro's `RelaxedBernoulli`, `RelaxedOneHotCategorical` and the two with
        `StraightThrough` behind these names give way to ours, in `pyro.distributions` and in its
        modules `torch` and `relaxed_straight_through`.
    """
    for name, law in _OURS.items():
        if not hasattr(dist, name):
            setattr(dist, name, law)
            dist.__all__.append(name)
    if replace:
        for name, (theirs, ours) in _SHADOWED.items():
            _exchange(name, theirs, ours)


def unregister() -> None:
    """Undo `register`: `pyro.distributions` and its modules as they were."""
    for name, (theirs, ours) in _SHADOWED.items():
        _exchange(name, ours, theirs)
    for name, law in _OURS.items():
        if name not in _SHADOWED and getattr(dist, name, None) is law:
            delattr(dist, name)
            dist.__all__.remove(name)


def _exchange(name: str, old: Any, new: Any) -> None:
    """`new` for `old` in every module of Pyro that has it under this name."""
    for module in _HOMES:
        if getattr(module, name, None) is old:
            setattr(module, name, new)
