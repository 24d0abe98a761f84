# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The handler that relaxes the latent discrete sites of a model."""

import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_gumbel._validation import Temperature
from pyro_gumbel.distributions.relaxation import is_relaxable, relax
from pyro_gumbel.estimators import Estimator, named

__all__ = ["RelaxedMessenger", "at_site", "relaxed"]


class RelaxedMessenger(Messenger):
    """The handler behind `relaxed`, which documents the arguments."""

    def __init__(
        self,
        temperature: Temperature,
        *,
        hard: bool = True,
        estimator: str | Estimator = "gumbel_softmax",
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.column: dict[str, Any] = {"hard": hard, "estimator": named(estimator)}
        self.sites = _read_sites(sites)
        self._met: set[str] = set()
        self._observed: set[str] = set()
        self._latent: set[str] = set()  # of those that were met, the ones that can be relaxed
        self._relaxed: set[str] = set()  # of `sites`, the ones that a latent site has answered to
        self._warned: set[str] = set()

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return functools.update_wrapper(super().__call__(fn), fn, updated=())

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        name = msg["name"]
        self._met.add(name)
        if msg["is_observed"]:
            self._observed.add(name)
        if msg["is_observed"] or msg["infer"].get("enumerate"):
            return
        relaxable = is_relaxable(msg["fn"])
        if relaxable:
            self._latent.add(name)
        if relaxable if self.sites is None else self._is_asked(name):
            with at_site("relaxed", name):
                new = relax(msg["fn"], self.temperature, **self.column)
            if new is not msg["fn"]:
                self._warn_of_data(name)
            msg["fn"] = new

    def _is_asked(self, name: str) -> bool:
        asked = (self.sites or frozenset()) & self._names_of(name)
        self._relaxed |= asked
        return bool(asked)

    def _names_of(self, name: str) -> set[str]:
        """What a site answers to: of `obs_mask` Pyro makes y_observed and y_unobserved from y."""
        stem = name.removesuffix("_unobserved")
        return {name, stem} if f"{stem}_observed" in self._met else {name}

    def _warn_of_data(self, name: str) -> None:
        """Once, where a site is made continuous that had data in an earlier call."""
        if self.column["hard"] or self.sites is not None or name not in self._observed:
            return
        self._warn_once(
            {name},
            f'relaxed: at pyro.sample("{name}", ...): expected data, as in an earlier call, got '
            "none, so that the site is continuous in this call; to predict write Predictive(model, "
            "guide=guide) of the model that is not relaxed, or relaxed(..., sites=[...]) for the "
            "sites to relax",
        )

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if exception[0] is None and self.sites is not None:
            self._check_sites(self.sites)

    def _check_sites(self, sites: frozenset[str]) -> None:
        missing = sorted(sites - self._met)
        if missing:
            raise ValueError(
                f"relaxed: `sites` must be names of the model's sample sites, got {missing}, which "
                f"it does not have; it has {sorted(self._met)}; write sites=None for all that are "
                "latent and discrete"
            )
        idle = sites - self._relaxed
        self._warn_once(
            idle,
            f"relaxed: `sites` must be names of latent discrete sites, got {sorted(idle)}, which "
            "are observed or enumerated and were not relaxed in any call so far; the latent "
            f"discrete sites are {sorted(self._latent)}; write sites=None for all of them",
        )

    def _warn_once(self, names: Collection[str], message: str) -> None:
        if not self._warned.issuperset(names):
            self._warned.update(names)
            warnings.warn(message, stacklevel=4)


def relaxed(
    model: Callable[..., Any] | None = None,
    temperature: Temperature | None = None,
    *,
    hard: bool = True,
    estimator: str | Estimator = "gumbel_softmax",
    sites: Collection[str] | None = None,
) -> Any:
    """A model or guide whose latent discrete sites have relaxed laws.

    The law of each site that is latent and discrete in this very call is replaced by its row-mate,
    see `relax`, before a handler outside sees it. Left alone are sites that are observed or
    continuous, and those with `infer={"enumerate": ...}`. Use `condition` inside,
    ``relaxed(condition(model, data), 0.5)``: outside it would score the data under the soft law,
    with a warning if they are hard.

    A call without the data has latent sites in their place, and relaxes them: predict with the
    model that is not relaxed, ``Predictive(model, guide=guide)``, or choose the sites. A warning
    says so, once a site, where `hard=False` makes one continuous that an earlier call had data for.

    Three ways to write it::

        relaxed(model, 0.5)

        @relaxed(temperature=0.5)
        def model(): ...

        with relaxed(temperature=0.5): ...

    :param model: the model or guide; None for a decorator or a context manager.
    :param temperature: tau > 0, as in `relax`; a function is called at every site.
    :param hard: whether sites keep their discrete law and gain a surrogate gradient, or become
        continuous.
    :param estimator: of the gradient of hard sites, as in `BernoulliStraightThrough`.
    :param sites: the names of the sites to relax; None for all. Of a site with `obs_mask`, which
        Pyro splits, ``"y"`` means its latent part ``"y_unobserved"`` too. A warning names, once,
        those that are observed or enumerated in every call so far.
    :raises TypeError: at a site that cannot be relaxed, naming it and, for a `Categorical`, the
        line to write instead.
    :raises ValueError: at the end of the first complete run, for a name that no site has.
    """
    if temperature is None or not (model is None or callable(model)):
        raise TypeError(
            "relaxed: expected a model and a temperature, or a temperature alone by its name, got "
            f"model={model!r}, temperature={temperature!r}; write relaxed(model, 0.5), or "
            "relaxed(temperature=0.5) for a decorator or a context manager"
        )
    messenger = RelaxedMessenger(temperature, hard=hard, estimator=estimator, sites=sites)
    return messenger if model is None else messenger(model)


def _read_sites(sites: Collection[str] | None) -> frozenset[str] | None:
    if sites is None:
        return None
    names = list(sites) if isinstance(sites, Iterable) and not isinstance(sites, str) else [sites]
    if names == [sites] or not all(isinstance(name, str) for name in names):
        raise TypeError(
            "relaxed: `sites` must be a collection of names of sample sites, got "
            f'{sites!r}; write sites=["z"]'
        )
    return frozenset(names)


@contextmanager
def at_site(owner: str, name: str) -> Iterator[None]:
    """Errors name the site."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        kinds = (TypeError, ValueError, NotImplementedError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f'{owner}: at pyro.sample("{name}", ...): {error}') from error
