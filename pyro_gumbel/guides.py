# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The mean-field guide of a model's discrete sites."""

import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from operator import attrgetter
from types import FrameType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.infer.autoguide.utils import deep_setattr
from pyro.infer.elbo import ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor
from torch.distributions import OneHotCategorical, constraints

from pyro_gumbel.estimators import Estimator, named
from pyro_gumbel.hard import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuceStraightThrough,
    StraightThrough,
    SubsetStraightThrough,
)
from pyro_gumbel.parameters import Temperature
from pyro_gumbel.relaxing import at_site, fitted, innermost, is_relaxable, relax, rewrapped
from pyro_gumbel.rows import MOfK, OneBit, Ranking, Row
from pyro_gumbel.soft import Coordinates, Soft

__all__ = ["AutoRelaxed"]


class AutoRelaxed(AutoGuide):
    r"""One independent law for each latent discrete site of a model: q(z) = prod_i q_i(z_i).

    A site's law is the hard or the soft one of its row, with the site's plates and masks. Its
    logits are the parameter `logits.<site>`, over the whole plate where the plate is subsampled,
    and start at those of the prior in the first run, so that a category that the prior excludes
    then stays excluded. Continuous sites, and sites that the model enumerates, are left to other
    guides::

        guide = AutoGuideList(model)
        guide.append(AutoNormal(poutine.block(model, hide=["z"])))
        guide.append(AutoRelaxed(poutine.block(model, expose=["z"]), 0.5))

    Under `TraceMeanField_ELBO` train the model as it is. Under other ELBOs train
    ``relaxed(model, temperature)``, and give that to the guide: there the prior has to pass a
    gradient to the sample, which a plain `OneHotCategorical` does not. The guide warns of it. With
    `hard=False` the model is always ``relaxed(model, temperature, hard=False)``. A `poutine.scale`
    inside the model is not the guide's: write it around both.

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
        self._laws: dict[str, Any] = {}  # as in the first run
        self._without_gradient: list[str] = []  # until an objective has been seen
        self.logits = PyroModule()
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            with at_site("AutoRelaxed", name):
                law = self._relaxed_law(site["fn"])
                _require_whole_plates(site)
                self._laws[name] = self._with_logits(law, innermost(law).logits.detach())
            logits = innermost(law).logits.detach()
            event_dim = logits.dim() - len(law.batch_shape)
            for frame in site["cond_indep_stack"]:
                full_size = frame.full_size or frame.size
                if full_size != frame.size:
                    logits = periodic_repeat(logits, full_size, frame.dim - event_dim)
            deep_setattr(self.logits, name, PyroParam(logits.clone(), constraints.real, event_dim))
            if _passes_no_gradient(site["fn"]):
                self._without_gradient.append(name)
        if not self._laws:
            raise ValueError(
                "AutoRelaxed: `model` must have a latent discrete site, and has none; write "
                "AutoNormal(model) for continuous ones, or AutoGuideList for several guides"
            )

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

    def _with_logits(self, law: Any, logits: Tensor) -> Any:
        """A law like `law` with these logits, at the guide's temperature."""
        base = innermost(law)
        event_dim = law.event_dim - base.event_dim
        batch_shape = logits.shape[: logits.dim() - base._parameter_dim - event_dim]
        tau = fitted(self.temperature, batch_shape, event_dim)
        estimator = {"estimator": self.estimator} if self.hard else {}
        return rewrapped(law, type(base)(tau, *_size(base), logits=logits, **estimator))

    def law(self, name: str) -> Any:
        """The law of a site as the parameters now have it, over the whole of its plates.

        >>> guide = AutoRelaxed(lambda: pyro.sample("z", pyro.distributions.Bernoulli(0.25)), 0.5)
        >>> _ = guide()
        >>> guide.law("z").probs.detach()
        tensor(0.2500)

        :param name: of a site that the first run has met.
        :raises ValueError: for any other name.
        """
        laws = {} if self.prototype_trace is None else self._laws
        if name not in laws:
            raise ValueError(
                f"AutoRelaxed.law: `name` must be one of {sorted(laws)}, got {name!r}; write "
                "guide(*args) for a first run, if there was none"
            )
        return self._with_logits(laws[name], attrgetter(name)(self.logits))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """A draw of each site, by name."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                if site["mask"] is not None:
                    stack.enter_context(poutine.mask(mask=site["mask"]))
                result[name] = pyro.sample(name, self.law(name))
        self._warn_of_lost_gradients(result)
        return result

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The most probable value of each site, by name: hard, or its coordinates."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {name: _most_probable(innermost(self.law(name))) for name in self._laws}

    def _warn_of_lost_gradients(self, values: dict[str, Tensor]) -> None:
        """Once, where a prior passes no gradient to a sample that has one."""
        sites = [name for name in self._without_gradient if values[name].requires_grad]
        elbo, model = _running_objective() if sites else (None, None)
        if elbo is None:
            return
        self._without_gradient = []
        own_model = (self if self.master is None else self.master()).model
        if isinstance(elbo, TraceMeanField_ELBO) or model != own_model:
            return
        warnings.warn(
            f"AutoRelaxed: the OneHotCategorical priors of {sites} pass no gradient to the samples "
            f"under {type(elbo).__name__}; write model = relaxed(model, temperature) before the "
            "guide and SVI are made of it, or loss=TraceMeanField_ELBO()",
            stacklevel=2,
        )


def _require_whole_plates(site: Any) -> None:
    """Raise if the site has a mask of which only a subsample is known."""
    masks, law = [site["mask"]], site["fn"]
    while law is not innermost(law):
        masks.append(getattr(law, "_mask", None))
        law = law.base_dist
    subsampled = any(
        frame.full_size not in (None, frame.size) for frame in site["cond_indep_stack"]
    )
    if subsampled and any(isinstance(mask, Tensor) and mask.dim() for mask in masks):
        raise NotImplementedError(
            "expected no mask in a subsampled plate, got one, of which the guide sees a part only; "
            "write poutine.block(model, hide=[...]) and a guide of its own for this site"
        )


def _passes_no_gradient(law: Any) -> bool:
    """Whether log_prob looks an index up."""
    base = innermost(law)
    return isinstance(base, OneHotCategorical) and not isinstance(base, StraightThrough)


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


def _running_objective() -> tuple[ELBO | None, Any]:
    """The ELBO that is running this guide, and its model; None where the guide runs alone.

    Pyro tells a guide nothing of it, so it is looked up in the calls under way.
    """
    found: tuple[ELBO | None, Any] = (None, None)
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        variables = frame.f_locals
        if isinstance(variables.get("self"), ELBO) and "model" in variables:
            found = variables["self"], variables["model"]
        frame = frame.f_back
    return found
