# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The mean-field guide of a model's discrete sites."""

from collections.abc import Callable
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor
from torch.distributions import constraints

from pyro_gumbel.estimators import Estimator, named
from pyro_gumbel.hard import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuceStraightThrough,
    SubsetStraightThrough,
)
from pyro_gumbel.parameters import Temperature, at_site, fitted
from pyro_gumbel.relaxing import is_relaxable, relax
from pyro_gumbel.rows import MOfK, OneBit, Ranking, Row
from pyro_gumbel.soft import Coordinates, Soft
from pyro_gumbel.wrappers import innermost, masks_of, rewrapped

__all__ = ["AutoRelaxed"]

RUNS = 10  # of the model, to see what the prior of a site is


class AutoRelaxed(AutoGuide):
    r"""One independent law for each latent discrete site of a model: q(z) = prod_i q_i(z_i).

    A site's law is the hard or the soft one of its row, with the site's plates and masks. Its
    logits are the parameter `logits.<site>`, over the whole plate where the plate is subsampled.
    They start at those of the prior, and an outcome that the prior excludes stays excluded; where
    the prior depends on other sites, or on the subsample, they start at its mean over 10 runs, and
    nothing is excluded.
    Continuous sites, and sites that the model enumerates, are left to other guides::

        guide = AutoGuideList(model)
        guide.append(AutoNormal(poutine.block(model, hide=["z"])))
        guide.append(AutoRelaxed(poutine.block(model, expose=["z"]), 0.5))

    With `hard=True` the model may be relaxed or not: a plain prior passes its gradient to the
    samples too. (Not within a function that `torch.compile` compiles: relax the model there.) With
    `hard=False` the model is ``relaxed(model, temperature, hard=False)``.

    A model with masked discrete sites is run once more in every call, for the masks. A
    `poutine.scale` inside the model is not the guide's: write it around both.

    :param model: a Pyro model.
    :param temperature: tau > 0, a number, a tensor that broadcasts to every site's batch shape,
        or a function without arguments that returns one, called at every site.
    :param hard: whether the laws are discrete with a surrogate gradient, or continuous.
    :param estimator: of the gradient of hard laws, as in `BernoulliStraightThrough`.
    :param create_plates: as in every `AutoGuide`.
    :raises ValueError: in the first run, for a model without latent discrete sites, and for a hard
        guide of a soft site or the reverse.
    :raises TypeError: in the first run, for a site that cannot be relaxed.
    :raises NotImplementedError: in the first run, for a mask in a subsampled plate.
    """

    prototype_trace: Any

    def __init__(
        self,
        model: Callable[..., Any],
        temperature: Temperature,
        *,
        hard: bool = True,
        estimator: str | Estimator = "gumbel_softmax",
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, create_plates=create_plates)
        self.temperature = temperature
        self.hard = hard
        self.estimator = named(estimator)

    @staticmethod
    def _prototype_hide_fn(msg: Any) -> bool:
        if prototype_hide_fn(msg) or msg["infer"].get("enumerate"):
            return True
        return not is_relaxable(msg["fn"])

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        try:
            self._setup_sites(*args, **kwargs)
        except Exception:
            self.prototype_trace = None  # so that the next call says the same
            raise

    def _setup_sites(self, *args: Any, **kwargs: Any) -> None:
        self._sites = self._sites_of(self.prototype_trace)
        if not self._sites:
            raise ValueError(
                "AutoRelaxed: `model` must have a latent discrete site, and has none; write "
                "AutoNormal(model) for continuous ones, or AutoGuideList for several guides"
            )
        self._masked = any(_masks(site["mask"], site["law"]) for site in self._sites.values())
        self.logits = PyroModule()
        for name, logits in self._initial_logits(*args, **kwargs).items():
            event_dim = logits.dim() - len(self._sites[name]["law"].batch_shape)
            for frame in self._sites[name]["frames"]:
                full_size = frame.full_size or frame.size
                if full_size != frame.size:
                    logits = periodic_repeat(logits, full_size, frame.dim - event_dim)
            parameter = PyroParam(logits.clone(), constraints.real, event_dim)
            deep_setattr(self.logits, name, parameter)

    def _sites_of(self, trace: Any) -> dict[str, dict[str, Any]]:
        """The law of each site in the guide's column, at temperature 1, its mask and its plates."""
        sites = {}
        for name, site in trace.iter_stochastic_nodes():
            with at_site("AutoRelaxed", name):
                law, frames = self._relaxed_law(site["fn"]), site["cond_indep_stack"]
                _require_whole_plates(frames, _masks(site["mask"], law))
                logits = innermost(law).logits.detach()
                self._with_logits(law, logits, self.temperature)  # raises if it does not fit
                law = self._with_logits(law, logits, 1.0)
            sites[name] = {"law": law, "mask": site["mask"], "frames": frames}
        return sites

    def _sites_in_another_run(self, *args: Any, **kwargs: Any) -> dict[str, dict[str, Any]]:
        model = poutine.block(self.model, self._prototype_hide_fn)
        with torch.no_grad():
            trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
        return self._sites_of(trace)

    def _initial_logits(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Those of the prior, or of its mean over runs where they are not the same in all."""
        others = [self._sites_in_another_run(*args, **kwargs) for _ in range(RUNS - 1)]
        logits = {}
        for name in self._sites:
            laws = [innermost(run[name]["law"]) for run in (self._sites, *others) if name in run]
            fixed = all(torch.equal(law.logits, laws[0].logits) for law in laws)
            logits[name] = laws[0].logits if fixed else _mean_logits(laws)
        return logits

    def _relaxed_law(self, law: Any) -> Any:
        """The row-mate of a site's law in the guide's column."""
        soft_site = isinstance(innermost(law), Soft)
        if soft_site and self.hard:
            raise ValueError(
                f"the model has a soft law, {type(innermost(law)).__name__}, and the guide would "
                "have a hard one; write AutoRelaxed(model, temperature, hard=False)"
            )
        if not soft_site and not self.hard:
            raise ValueError(
                f"the model has a discrete law, {type(innermost(law)).__name__}, and the guide "
                "would have a soft one, a density against a mass; write soft = relaxed(model, "
                "temperature, hard=False), then AutoRelaxed(soft, temperature, hard=False), and "
                "train soft, or leave out hard=False"
            )
        new = relax(law, 1.0, hard=self.hard)
        if not isinstance(innermost(new), Row):
            raise TypeError(
                f"its relaxed law must be of pyro_gumbel, got {type(innermost(new)).__name__}; "
                "write a guide of its own for this site and combine them by AutoGuideList"
            )
        return new

    def _with_logits(self, law: Any, logits: Tensor, temperature: Temperature) -> Any:
        """A law like `law` with these logits, at this temperature."""
        base = innermost(law)
        event_dim = law.event_dim - base.event_dim
        batch_shape = logits.shape[: logits.dim() - base._parameter_dim - event_dim]
        tau = fitted(temperature, batch_shape, event_dim)
        keywords = {"logits": logits, "validate_args": base._validate_args}
        if self.hard:
            keywords["estimator"] = self.estimator
        return rewrapped(law, type(base)(tau, *_size(base), **keywords))

    def law(self, name: str) -> Any:
        """The law of a site as the parameters now have it, over the whole of its plates.

        >>> guide = AutoRelaxed(lambda: pyro.sample("z", pyro.distributions.Bernoulli(0.25)), 0.5)
        >>> _ = guide()
        >>> guide.law("z").probs.detach()
        tensor(0.2500)

        It has the form of the site's, so that of a law with `.to_event` the probabilities are
        those of its `.base_dist`.

        :param name: of a site that the first run has met.
        :raises ValueError: for any other name.
        """
        sites = {} if self.prototype_trace is None else self._sites
        if name not in sites:
            raise ValueError(
                f"AutoRelaxed.law: `name` must be one of {sorted(sites)}, got {name!r}; write "
                "guide(*args) for a first run, if there was none"
            )
        return self._current_law(name, sites[name])

    def _current_law(self, name: str, site: dict[str, Any]) -> Any:
        return self._with_logits(site["law"], attrgetter(name)(self.logits), self.temperature)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """A draw of each site, by name."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        sites = self._sites
        if self._masked and self._model is not None:
            sites = self._sites_in_another_run(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for name, site in sites.items():
            with ExitStack() as stack:
                for frame in site["frames"]:
                    stack.enter_context(plates[frame.name])
                if site["mask"] is not None:
                    stack.enter_context(poutine.mask(mask=site["mask"]))
                result[name] = pyro.sample(name, self._current_law(name, site))
        return result

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The most probable value of each site, by name: hard, or its coordinates."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {name: _most_probable(innermost(self.law(name))) for name in self._sites}


def _masks(mask: Any, law: Any) -> list[Tensor]:
    """The masks of a site that are tensors."""
    return [mask for mask in (mask, *masks_of(law)) if isinstance(mask, Tensor)]


def _require_whole_plates(frames: Any, masks: list[Tensor]) -> None:
    """Raise if the site has a mask of which only a subsample is known."""
    subsampled = any(frame.full_size not in (None, frame.size) for frame in frames)
    if subsampled and any(mask.dim() for mask in masks):
        raise NotImplementedError(
            "expected no mask in a subsampled plate, got one, of which the guide sees a part only; "
            "write poutine.block(model, hide=[...]) and a guide of its own for this site"
        )


def _mean_logits(laws: list[Any]) -> Tensor:
    """Logits of the mean of the laws' probabilities, with a uniform law among them."""
    probs = torch.stack([law.probs for law in laws])
    outcomes = 2 if isinstance(laws[0], OneBit) else probs.shape[-1]
    mean = (probs.sum(0) + 1 / outcomes) / (len(laws) + 1)
    return mean.logit() if isinstance(laws[0], OneBit) else mean.log()


def _size(law: Row) -> tuple[int, ...]:
    """The argument `size`, where the class has it."""
    return (law.size,) if isinstance(law, MOfK | Ranking) else ()


def _most_probable(law: Any) -> Tensor:
    vertex = _hard_class(law)(1.0, *_size(law), logits=law.logits).mode
    return law._value_at(law.link.inverse(vertex)) if isinstance(law, Coordinates) else vertex


def _hard_class(law: Row) -> Any:
    """The hard class of its row."""
    if isinstance(law, OneBit):
        return BernoulliStraightThrough
    if isinstance(law, MOfK):
        return SubsetStraightThrough
    return PlackettLuceStraightThrough if isinstance(law, Ranking) else CategoricalStraightThrough
