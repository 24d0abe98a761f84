# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The handler that makes the latent discrete sites of a model differentiable."""

import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.distributions import ZeroInflatedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch.distributions import Distribution

from pyro_gumbel._validation import Temperature
from pyro_gumbel.distributions.relaxation import is_relaxable, relax, require_settings
from pyro_gumbel.distributions.wrappers import innermost
from pyro_gumbel.estimators import Estimator
from pyro_gumbel.temperature import TemperatureSchedule

__all__ = ["RelaxedMessenger", "at_site", "relaxed", "require_continuous_log_prob"]


class RelaxedMessenger(Messenger):
    """The handler behind `relaxed`, which documents the arguments."""

    def __init__(
        self,
        temperature: Temperature | None = None,
        *,
        hard: bool = True,
        estimator: str | Estimator | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        require_settings("relaxed", temperature, hard, estimator)
        self.temperature = temperature
        self.options: dict[str, Any] = {"hard": hard, "estimator": estimator}
        self.sites = _read_sites(sites)
        # Names of sites, collected over all calls so far.
        self._met: set[str] = set()
        self._observed: set[str] = set()
        self._latent: set[str] = set()  # neither observed nor enumerated, and discrete
        self._relaxed: set[str] = set()  # those of `sites` that were relaxed
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
        chosen = relaxable if self.sites is None else self._is_in_sites(name)
        if chosen:
            with at_site("relaxed", name):
                require_continuous_log_prob(msg["fn"])
                new = relax(msg["fn"], self.temperature, **self.options)
            if new is not msg["fn"]:
                self._warn_if_once_observed(name)
            msg["fn"] = new

    def _is_in_sites(self, name: str) -> bool:
        """Whether `sites` names this site, which then counts as relaxed."""
        found = (self.sites or frozenset()) & self._names_of(name)
        self._relaxed |= found
        return bool(found)

    def _names_of(self, name: str) -> set[str]:
        """The names by which a user may choose a site.

        With `obs_mask`, Pyro splits the site "y" into "y_observed" and "y_unobserved"; "y" then
        chooses the latent part.
        """
        stem = name.removesuffix("_unobserved")
        return {name, stem} if f"{stem}_observed" in self._met else {name}

    def _warn_if_once_observed(self, name: str) -> None:
        """Warn, once, that a site becomes continuous which had data in an earlier call."""
        if self.options["hard"] or self.sites is not None or name not in self._observed:
            return
        self._warn_once(
            {name},
            f'relaxed: at pyro.sample("{name}", ...): expected data, as in an earlier call, got '
            "none, so that the site is continuous in this call; to predict write Predictive(model, "
            "guide=guide) of the model that is not relaxed, or name the sites to relax with "
            "relaxed(..., sites=[...])",
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
        not_relaxed = sites - self._relaxed
        self._warn_once(
            not_relaxed,
            "relaxed: `sites` must be names of latent discrete sites, got "
            f"{sorted(not_relaxed)}, which are observed or enumerated and were not relaxed in any "
            f"call so far; the latent discrete sites are {sorted(self._latent)}; write sites=None "
            "for all of them",
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
    estimator: str | Estimator | None = None,
    sites: Collection[str] | None = None,
) -> Any:
    """Make the latent discrete sites of a model or guide differentiable.

    In each call, the distribution of every latent discrete site is replaced by its counterpart
    from `relax`: one that draws discrete values and has a surrogate gradient (`hard=True`), or a
    continuous relaxation (`hard=False`), which needs a temperature. Without settings the gradient
    is the second-order one; subsets and rankings have `gumbel_softmax` at temperature 1. Observed
    sites, continuous sites and sites with `infer={"enumerate": ...}` are left alone.

    Three ways to write it::

        relaxed(model)

        @relaxed
        def model(): ...

        with relaxed(): ...

    The last two take settings by name, as in ``@relaxed(temperature=0.5)``.

    >>> model = relaxed(lambda: pyro.sample("n", pyro.distributions.Poisson(3.0)))
    >>> pyro.poutine.trace(model).get_trace().nodes["n"]["fn"]
    PoissonStraightThrough(rate: 3.0)

    Apply `condition` first and `relaxed` second: ``relaxed(condition(model, data))``. In the
    other order the site is relaxed before it becomes observed. With `hard=False` its data are then
    evaluated under a continuous density, with a warning if they are discrete.

    A site whose data are an argument of the model is latent in a call without them, and is relaxed
    too. So predict with the model that is not relaxed, ``Predictive(model, guide=guide)``, or name
    the sites to relax. With `hard=False` a warning names, once, each site that becomes continuous
    in this way after an earlier call had data for it.

    Sources: Maddison, Mnih and Teh (2017), https://arxiv.org/abs/1611.00712; Jang, Gu and Poole
    (2017), https://arxiv.org/abs/1611.01144; Liu, Dong, Liu, Yu and Gao (2023),
    https://arxiv.org/abs/2304.08612.

    :param model: the model or guide; None for a decorator or a context manager.
    :param temperature: as in `relax`, for each site that is relaxed; a function is called at each.
    :param hard: as in `relax`.
    :param estimator: as in `relax`.
    :param sites: the names of the sites to relax; None for all. With `obs_mask`, Pyro splits a site
        "y" into an observed and a latent part; "y" and "y_unobserved" both name the latent one. A
        warning names, once, those that were observed or enumerated in every call so far.
    :returns: a callable with the signature of `model`, or a handler where `model` is None.
    :raises TypeError: for anything but a model or guide; at a site that cannot be relaxed, which
        the message names.
    :raises ValueError: for settings that do not fit together, as in `relax`; and at the end of the
        first complete run, for a name in `sites` that the model does not have.
    """
    _require_model(model)
    messenger = RelaxedMessenger(temperature, hard=hard, estimator=estimator, sites=sites)
    return messenger if model is None else messenger(model)


def _require_model(model: Any) -> None:
    """Raise a TypeError unless this is a model, a guide or None."""
    if isinstance(model, TemperatureSchedule) or not (model is None or callable(model)):
        raise TypeError(
            f"relaxed: `model` must be a model or guide, got {model!r}; write relaxed(model), or "
            "relaxed(temperature=0.5) for a decorator or a context manager with a temperature"
        )
    if isinstance(model, Distribution):
        raise TypeError(
            "relaxed: `model` must be a model or guide, got a distribution, "
            f"{type(model).__name__}; write relax(distribution)"
        )


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


def require_continuous_log_prob(distribution: Any) -> None:
    """Raise for a latent zero-inflated distribution.

    Its probability at 0 is not on the curve through the other probabilities, and the gradient in
    the value follows the curve.
    """
    base = innermost(distribution)
    if isinstance(base, ZeroInflatedDistribution):
        of_count = type(base.base_dist).__name__
        arguments = "rate" if of_count == "Poisson" else "..."
        raise TypeError(
            f"`distribution` must not be zero-inflated, got a {type(base).__name__}, which "
            "has an extra probability at 0 that a gradient in the value does not see; write two "
            'sites, gate = pyro.sample("gate", dist.Bernoulli(1 - zero)) and '
            f'count = pyro.sample("count", dist.{of_count}({arguments})), where zero is the gate '
            "of the zero-inflated one, and gate * count for the value"
        )


@contextmanager
def at_site(owner: str, name: str) -> Iterator[None]:
    """Put `owner` and the name of the site in front of the message of an error."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        kinds = (TypeError, ValueError, NotImplementedError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f'{owner}: at pyro.sample("{name}", ...): {error}') from error
