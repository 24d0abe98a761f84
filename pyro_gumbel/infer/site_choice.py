# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which sites of a model `relaxed` and `AutoRelaxed` are for."""

import warnings
from collections.abc import Collection, Iterable
from typing import Any

from pyro_gumbel.distributions.relaxation import is_relaxable

__all__ = ["UNMARKED", "SiteChoice"]

UNMARKED = 'poutine.infer_config(model, lambda site: {"enumerate": None})'


class SiteChoice:
    """The latent sites of some names; without names, the discrete ones that are not enumerated.

    :param owner: the name of the function or class that was given the names.
    :param sites: the names, or None.
    :ivar names: likewise, read and checked.
    :ivar observed: the sites with data in some run so far.
    :ivar enumerated: the latent discrete ones that were left to enumeration, in the order in which
        they were met.
    """

    def __init__(self, owner: str, sites: Collection[str] | None) -> None:
        self._owner = owner
        self.names = _read_sites(owner, sites)
        self.observed: set[str] = set()
        self.enumerated: list[str] = []
        # Names of sites, collected over all runs so far.
        self._met: set[str] = set()
        self._latent: set[str] = set()  # and discrete
        self._chosen: set[str] = set()  # those of `names` that were latent
        self._warned: set[str] = set()

    def chooses(self, msg: Any) -> bool:
        """Whether a site is chosen, a sample site that is no subsample of a plate."""
        name = msg["name"]
        self._met.add(name)
        if msg["is_observed"]:
            self.observed.add(name)
            return False
        is_discrete = is_relaxable(msg["fn"])
        if is_discrete:
            self._latent.add(name)
        if self.names is not None:
            return self._is_named(name)
        if is_discrete and _is_marked(msg) and name not in self.enumerated:
            self.enumerated.append(name)
        return is_discrete and not _is_marked(msg)

    def _is_named(self, name: str) -> bool:
        found = (self.names or frozenset()) & self._names_of(name)
        self._chosen |= found
        return bool(found)

    def _names_of(self, name: str) -> set[str]:
        """The names by which a user may choose a site.

        With `obs_mask`, Pyro splits the site "y" into "y_observed" and "y_unobserved"; "y" then
        chooses the latent part.
        """
        stem = name.removesuffix("_unobserved")
        return {name, stem} if f"{stem}_observed" in self._met else {name}

    def check(self, stacklevel: int) -> None:
        """Raise for names that no run so far has met, and warn once of those that are observed."""
        names = self.names or frozenset()
        missing = sorted(names - self._met)
        if missing:
            raise ValueError(
                f"{self._owner}: `sites` must be names of the model's sample sites, got {missing}, "
                f"which it does not have; it has {sorted(self._met)}; write sites=None for all "
                "that are latent, discrete and not enumerated, and for a model that enumerates "
                f"none model = {UNMARKED}"
            )
        observed = names - self._chosen
        self.warn_once(
            observed,
            f"{self._owner}: `sites` must be names of latent discrete sites, got "
            f"{sorted(observed)}, which were observed in every call so far; the latent discrete "
            f"sites are {sorted(self._latent)}; write sites=None for all of them that are not "
            "enumerated",
            stacklevel + 1,
        )

    def warn_once(self, names: Collection[str], message: str, stacklevel: int) -> None:
        """Warn of these names, unless of all of them already."""
        if not self._warned.issuperset(names):
            self._warned.update(names)
            warnings.warn(message, stacklevel=stacklevel + 1)


def _is_marked(msg: Any) -> bool:
    """Whether a site has the mark ``infer={"enumerate": ...}``."""
    return bool(msg["infer"].get("enumerate"))


def _read_sites(owner: str, sites: Collection[str] | None) -> frozenset[str] | None:
    if sites is None:
        return None
    names = list(sites) if isinstance(sites, Iterable) and not isinstance(sites, str) else [sites]
    if names == [sites] or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{owner}: `sites` must be a collection of names of sample sites, got "
            f'{sites!r}; write sites=["z"]'
        )
    return frozenset(names)
