# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Our names in `pyro.distributions`, where a user asks for them."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import relaxed_straight_through
from pyro.distributions import torch as wrapped_torch

from pyro_gumbel import distributions

__all__ = ["register", "unregister"]

_OURS: dict[str, Any] = {name: getattr(distributions, name) for name in distributions.__all__}
# Pyro's own relaxed classes by name, and ours in their place.
_SHADOWED: dict[str, tuple[Any, Any]] = {
    cls.replaces.__name__: (cls.replaces, cls) for cls in _OURS.values() if "replaces" in vars(cls)
}
_HOMES = (dist, wrapped_torch, relaxed_straight_through)


def register(*, replace: bool = False) -> None:
    """Add the classes of this package to `pyro.distributions`, until `unregister`.

    Names that are there already are left as they are.

    >>> register()
    >>> pyro.distributions.RelaxedCategorical(0.5, logits=torch.zeros(3)).event_shape
    torch.Size([3])
    >>> unregister()

    With `replace=True` a model written with Pyro's relaxed classes need not be changed, if it looks
    them up after the call. It does not reach names that were imported before, by
    ``from pyro.distributions import RelaxedBernoulli``; objects made of them, which cannot be
    pickled until `unregister`; and `torch.distributions`. So call it first, before the modules
    that define models are imported.

    :param replace: whether ours replace Pyro's `RelaxedBernoulli`, `RelaxedOneHotCategorical` and
        their `StraightThrough` variants, in `pyro.distributions` and in its modules `torch` and
        `relaxed_straight_through`.
    """
    for name, cls in _OURS.items():
        if not hasattr(dist, name):
            setattr(dist, name, cls)
            dist.__all__.append(name)
    if replace:
        for name, (theirs, ours) in _SHADOWED.items():
            _exchange(name, theirs, ours)


def unregister() -> None:
    """Undo `register`: `pyro.distributions` and its modules as they were.

    >>> register()
    >>> unregister()
    >>> hasattr(pyro.distributions, "Subset")
    False
    """
    for name, (theirs, ours) in _SHADOWED.items():
        _exchange(name, ours, theirs)
    for name, cls in _OURS.items():
        if name not in _SHADOWED and getattr(dist, name, None) is cls:
            delattr(dist, name)
            dist.__all__.remove(name)


def _exchange(name: str, old: Any, new: Any) -> None:
    """`new` for `old` in every module of Pyro that has it under this name."""
    for module in _HOMES:
        if getattr(module, name, None) is old:
            setattr(module, name, new)
