# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Handlers that a model and its guide are measured under, and what is read off their traces."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.distributions import Distribution

from pyro_gumbel.distributions.relaxation import is_discrete
from pyro_gumbel.distributions.wrappers import innermost, rewrapped, unmasked

__all__ = [
    "OneSubsample",
    "SiteValues",
    "WithoutGradient",
    "kept_random_state",
    "log_prob_of_draw",
    "sites_without_gradient",
    "vectorized_plates",
]


class OneSubsample(Messenger):
    """Every plate keeps the subsample that it is given here, or that it drew the first time.

    :param given: subsamples by the name of the plate.
    :ivar plates: the names of all plates so far.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._kept: dict[str, Any] = dict(given or {})
        self.plates: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] in self._kept:
            msg["value"] = self._kept[msg["name"]]

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.plates.add(msg["name"])
            self._kept.setdefault(msg["name"], msg["value"])


class SiteValues(Messenger):
    """The sites of a guide take the values given by name; a site without one is drawn."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and not site_is_subsample(msg) and msg["name"] in self._values:
            msg["value"] = self._values[msg["name"]]


class WithoutGradient(Messenger):
    """Discrete sites are drawn without a gradient."""

    def _pyro_sample(self, msg: Any) -> None:
        distribution = msg["fn"]
        discrete = isinstance(distribution, Distribution) and is_discrete(distribution)
        if discrete and distribution.has_rsample:
            msg["fn"] = _without_rsample(distribution)


def _without_rsample(distribution: Any) -> Any:
    """A copy of a distribution whose samples carry no gradient."""
    base = innermost(distribution)
    plain = base.expand(base.batch_shape)  # a copy
    plain.has_rsample = False
    return rewrapped(distribution, plain)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Afterwards the random states of torch, NumPy and Python are as they were."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    state = get_rng_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            set_rng_state(state)


def sites_without_gradient(trace: Any) -> list[str]:
    """The latent sites of a trace whose samples carry no gradient."""
    return [name for name, site in trace.iter_stochastic_nodes() if not site["fn"].has_rsample]


def log_prob_of_draw(site: Any) -> Tensor:
    """The log probability of drawing a site's value: element by element, no scales, no masks."""
    return unmasked(site["fn"]).log_prob(site["value"])


def vectorized_plates(site: Any) -> list[Any]:
    """The plates of a site that are dimensions of its value."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]
