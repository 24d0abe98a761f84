# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The mean-field guide of a model's latent discrete sites."""

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.ops.tensor_utils import periodic_repeat
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_gumbel._tracing import brief
from pyro_gumbel._validation import Temperature, require
from pyro_gumbel.distributions.base import FamilyDistribution
from pyro_gumbel.distributions.mean_field import MeanField, mean_field_of, parameter_names
from pyro_gumbel.distributions.relaxation import (
    is_relaxable,
    is_straight_through,
    relax,
    require_settings,
)
from pyro_gumbel.distributions.relaxed import Relaxed, RelaxedLogits
from pyro_gumbel.distributions.straight_through import FamilyStraightThrough
from pyro_gumbel.distributions.wrappers import innermost, masks_of, rewrapped
from pyro_gumbel.estimators import Estimator, resolved, second_order
from pyro_gumbel.infer.handlers import at_site, require_continuous_log_prob
from pyro_gumbel.infer.site_parameters import SiteParameters

__all__ = ["AutoRelaxed"]

RUNS = 10  # of the model, over which a prior that varies is averaged
DRAWS = 1000  # per site whose quantiles have no closed form


@dataclass(frozen=True)
class _Site:
    """What the guide has at a site of the model: a distribution, the mask and the plates."""

    distribution: Any
    mask: Any
    frames: Any

    @property
    def mean_field(self) -> MeanField:
        """How the distribution depends on the parameters of the guide."""
        return mean_field_of(innermost(self.distribution))

    @property
    def event_dim(self) -> int:
        """How many dimensions of the parameters are not of the batch."""
        return self.mean_field.event_dim + self._num_reinterpreted

    @property
    def _num_reinterpreted(self) -> int:
        """How many dimensions of the batch `.to_event` takes."""
        return self.distribution.event_dim - innermost(self.distribution).event_dim

    def with_parameters(
        self,
        parameters: dict[str, Tensor],
        temperature: Temperature | None,
        estimator: str | Estimator | None,
    ) -> Any:
        """The distribution of the guide."""
        settings = temperature, estimator, self._num_reinterpreted
        return rewrapped(self.distribution, self.mean_field.distribution(parameters, *settings))

    @property
    def masks(self) -> list[Tensor]:
        """All masks of the site that are tensors."""
        masks = (self.mask, *masks_of(self.distribution))
        return [mask for mask in masks if isinstance(mask, Tensor)]


class AutoRelaxed(AutoGuide):
    r"""The mean-field guide of a model's latent discrete sites.

    .. math:: q(z) = \prod_i q_i(z_i)

    The sites are independent. The distribution of site i is the counterpart of its prior under
    `relax`, with the plates and masks of the site. With `hard=True` it is discrete and its samples
    carry a surrogate gradient; with `hard=False` it is a continuous relaxation.

    No setting is needed: samples then carry the second-order gradient, which is unbiased for every
    loss that is quadratic in them. Subsets and rankings have `gumbel_softmax` at temperature 1.

    ===================================== ======================================================
    distribution of the site              parameters of its distribution in the guide
    ===================================== ======================================================
    binary, categorical, subset, ranking  `logits.<site>`
    `Poisson`                             `log_rate.<site>`
    `Binomial`, `Multinomial`             `logits.<site>`, with the `total_count` of the site
    `BetaBinomial`,                       the same, and `log_concentration.<site>`
    `DirichletMultinomial`
    `NegativeBinomial`, `Geometric`,      `log_mean.<site>` and `log_total_count.<site>` of a
    `GammaPoisson`                        `NegativeBinomial`
    ===================================== ======================================================

    Parameters are over the whole plate where the plate is subsampled. A module cannot have a
    parameter of every name; the logits of a site "type", for example, are `logits.type_site`. They
    start at the prior, and an outcome that the prior excludes stays excluded. A prior that depends
    on other sites, or on the subsample, is averaged over 10 runs of the model to find the starting
    point, and excludes nothing.

    The parameters belong to the elements of the plates of the first run, as in `AutoNormal`. Data
    of another length need a guide that computes its parameters from the data::

        network = torch.nn.Linear(784, 10)

        def guide(x):
            pyro.module("network", network)
            with pyro.plate("data", len(x)):
                pyro.sample("z", CategoricalStraightThrough(logits=network(x)))

    The guide leaves continuous sites, and sites that the model enumerates, to other guides::

        guide = AutoGuideList(model)
        guide.append(AutoNormal(poutine.block(model, hide=["z"])))
        guide.append(AutoRelaxed(poutine.block(model, expose=["z"])))

    With `hard=True` the model may be relaxed or not: the samples get the gradient of a plain prior
    too. Relax a model that you compile, since `torch.compile` does not carry that gradient, and one
    with a `Binomial` or `BetaBinomial` site, since Pyro's `log_prob` of those drops a part of it.
    With `hard=False` the model must be ``relaxed(model, temperature, hard=False)``.

    If a discrete site has a mask, each call runs the model once more to find its masks. The guide
    does not copy a `poutine.scale` inside the model; put it around both, model and guide.

    Sources: Maddison, Mnih and Teh, "The Concrete distribution: a continuous relaxation of discrete
    random variables" (2017), https://arxiv.org/abs/1611.00712; Jang, Gu and Poole, "Categorical
    reparameterization with Gumbel-softmax" (2017), https://arxiv.org/abs/1611.01144.

    :param model: a Pyro model.
    :param temperature: tau > 0: a number, a tensor that broadcasts to the batch shape of every
        site, or a function without arguments that returns one, called at every site. None for
        second order. Counts have no temperature.
    :param hard: whether the guide draws discrete values and has a surrogate gradient, or draws
        continuous values, which needs a temperature.
    :param estimator: of the surrogate gradient, as in `BernoulliStraightThrough`; None for
        `gumbel_softmax` with a temperature and second order without.
    :param create_plates: as in every `AutoGuide`.
    :raises ValueError: for settings that do not fit together; in the first run, for a model without
        latent discrete sites; for `hard=True` and a relaxed site of the model; for `hard=False` and
        a discrete one; for a plain `Binomial` or `BetaBinomial` of the model; for a `total_count`
        that differs from run to run.
    :raises TypeError: in the first run, for a site that cannot be relaxed, or that has no guide
        here: counts other than those above, zero-inflated ones.
    :raises NotImplementedError: in the first run, for a mask or a `total_count` of several elements
        in a subsampled plate.
    """

    prototype_trace: Any
    master: Any
    _model: Any

    def __init__(
        self,
        model: Callable[..., Any],
        temperature: Temperature | None = None,
        *,
        hard: bool = True,
        estimator: str | Estimator | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        require_settings("AutoRelaxed", temperature, hard, estimator)
        super().__init__(model, create_plates=create_plates)
        self._add_parameters()
        self._warned_of_masks = False
        self.temperature = temperature
        self.hard = hard
        self.estimator = estimator

    def __repr__(self) -> str:
        """The settings; after the first run the distribution, settings and shapes of each site."""
        if self.prototype_trace is None:
            estimator = None
            if self.hard:
                estimator = resolved("AutoRelaxed", self.temperature, self.estimator)
            settings = _settings_in_brief(estimator, self.temperature)
            return f"AutoRelaxed({settings}, sites: those of the first run)"
        sites = [f"  {name}: {_site_in_brief(self.distribution(name))}\n" for name in self._sites]
        return f"AutoRelaxed(\n{''.join(sites)})"

    def __getstate__(self) -> dict[str, Any]:
        """The state without the model, which a pickle leaves out.

        Pyro's method removes the model from the guide itself; this one puts it back.
        """
        own = self._model, self.master
        try:
            return super().__getstate__()
        finally:
            self._model, self.master = own

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that shares the model, or has the copy of it that the same call has made."""
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if self._model is not None:
            model = self._model[0]
            new._model = (memo.get(id(model), model),)
        return new

    @staticmethod
    def _prototype_hide_fn(msg: Any) -> bool:
        if prototype_hide_fn(msg) or msg["infer"].get("enumerate"):
            return True
        return not is_relaxable(msg["fn"])

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self._model is None:
            raise ValueError(
                "AutoRelaxed: expected a model for the first run, got none, which a pickle leaves "
                "out; write guide = AutoRelaxed(model, temperature), and "
                "guide.load_state_dict(state) for what was saved"
            )
        super()._setup_prototype(*args, **kwargs)
        try:
            self._setup_sites(*args, **kwargs)
        except Exception:
            self.prototype_trace = None  # the next call raises the same error
            raise

    def _setup_sites(self, *args: Any, **kwargs: Any) -> None:
        self._sites = self._sites_of(self.prototype_trace)
        if not self._sites:
            raise ValueError(
                "AutoRelaxed: `model` must have a latent discrete site, and has none; write "
                "AutoNormal(model) for continuous ones, or AutoGuideList for several guides"
            )
        self._masked = any(site.masks for site in self._sites.values())
        initial = self._initial_parameters(*args, **kwargs)
        self._add_parameters()
        kinds = {kind: getattr(self, kind) for kind in parameter_names()}
        is_loaded = any(parameters.is_loaded for parameters in kinds.values())
        for kind, parameters in kinds.items():
            of_kind = {name: start[kind] for name, start in initial.items() if kind in start}
            dims = {name: self._sites[name].event_dim for name in of_kind}
            parameters.set_up(of_kind, dims, is_loaded)
        self.prototype_trace = _without_graph(self.prototype_trace, self._sites)

    def _add_parameters(self) -> None:
        """A module for each name of a parameter; for those registered since, if called again."""
        for kind in parameter_names():
            if not hasattr(self, kind):
                setattr(self, kind, SiteParameters(kind))

    def _sites_of(self, trace: Any) -> dict[str, _Site]:
        """The sites of a run of the model, with their priors."""
        sites = {}
        for name, node in trace.iter_stochastic_nodes():
            with at_site("AutoRelaxed", name):
                require_continuous_log_prob(node["fn"])
                prior = _counterpart(node["fn"], self.hard)
                _require_gradient(node["fn"], prior)
                site = _Site(prior, node["mask"], node["cond_indep_stack"])
                start = site.mean_field.start()
                # Raises if the settings do not fit.
                site.with_parameters(start, self.temperature, self.estimator)
                tau = None if self.hard else 1.0
                sites[name] = replace(site, distribution=site.with_parameters(start, tau, None))
                _require_whole_plates(sites[name])
        return sites

    def _sites_in_another_run(self, *args: Any, **kwargs: Any) -> dict[str, _Site]:
        model = poutine.block(self.model, self._prototype_hide_fn)
        with torch.no_grad():
            trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
        return self._sites_of(trace)

    def _initial_parameters(self, *args: Any, **kwargs: Any) -> dict[str, dict[str, Tensor]]:
        """The prior's parameters, or those of its mean where it differs from run to run."""
        others = [self._sites_in_another_run(*args, **kwargs) for _ in range(RUNS - 1)]
        initial = {}
        for name, site in self._sites.items():
            runs = [run[name] for run in (self._sites, *others) if name in run]
            with at_site("AutoRelaxed", name):
                start = _start(runs)
            initial[name] = {
                kind: _over_plates(each, site.frames, site.event_dim)
                for kind, each in start.items()
            }
        return initial

    def _current(self, name: str, site: _Site) -> Any:
        """The distribution of a site at the present parameters and temperature."""
        kinds = site.mean_field.names
        parameters = {kind: getattr(self, kind).of_site(name) for kind in kinds}
        return site.with_parameters(parameters, self.temperature, self.estimator)

    def distribution(self, name: str) -> Any:
        """The distribution of a site with the present parameters, over the whole of its plates.

        >>> guide = AutoRelaxed(lambda: pyro.sample("z", pyro.distributions.Bernoulli(0.25)))
        >>> _ = guide()
        >>> guide.distribution("z").probs.detach()
        tensor(0.2500)

        It has the wrappers of the site's own: where the model writes `.to_event`, the probabilities
        are those of its `.base_dist`.

        :param name: of a latent discrete site.
        :raises ValueError: for any other name, and before the first run of the guide.
        """
        if self.prototype_trace is None:
            raise ValueError(
                "AutoRelaxed.distribution: expected a guide that has run, as the first run finds "
                "the sites, got one that has not; write guide(*args) once before "
                f"guide.distribution({name!r})"
            )
        if name not in self._sites:
            raise ValueError(
                f"AutoRelaxed.distribution: `name` must be one of {sorted(self._sites)}, got "
                f"{name!r}; write guide.distribution({min(self._sites)!r})"
            )
        return self._current(name, self._sites[name])

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw each site; returns the values by the name of the site."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        sites = self._sites_of_this_call(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for name, site in sites.items():
            with ExitStack() as stack:
                for frame in site.frames:
                    stack.enter_context(plates[frame.name])
                if site.mask is not None:
                    stack.enter_context(poutine.mask(mask=site.mask))
                result[name] = pyro.sample(name, self._current(name, site))
        return result

    def _sites_of_this_call(self, *args: Any, **kwargs: Any) -> dict[str, _Site]:
        """The sites with their masks in this call."""
        if not self._masked:
            return self._sites
        if self._model is not None:
            return self._sites_in_another_run(*args, **kwargs)
        if not self._warned_of_masks:
            self._warned_of_masks = True
            warnings.warn(
                "AutoRelaxed: expected a model, for the masks of this call, got none, which a "
                "pickle leaves out, and took those of the first run; where they change write guide "
                "= AutoRelaxed(model, temperature) and guide.load_state_dict(state)",
                stacklevel=3,
            )
        return self._sites

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The most probable value of each site, by name.

        At a site of multinomial or beta-binomial counts it is the most probable of 1,000 draws. It
        is discrete; at a site in logit space it is the logit-space form of that value.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {name: _most_probable(innermost(self.distribution(name))) for name in self._sites}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        r"""Quantiles of each site, by name; each entry of a value is treated on its own.

        An entry of a discrete value is 0 or 1. Its quantile at q is 1 where its mean is above
        1 - q, and else 0. So the quantiles of a one-hot vector need not be one-hot; see `median`.
        For relaxed Bernoulli sites the quantiles are exact. For other relaxed sites and counts they
        are those of 1,000 draws, which are quantiles at q with a standard error of

        .. math:: \sqrt{q (1 - q) / 1000}

        :param quantiles: numbers q from 0 to 1.
        :returns: for each site a tensor of shape `(len(quantiles),) + value.shape`.
        :raises ValueError: for a number out of range.
        :raises TypeError: for anything but numbers.
        """
        q = _read_quantiles(quantiles)
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {name: _quantiles_of(innermost(self.distribution(name)), q) for name in self._sites}


def _site_in_brief(distribution: Any) -> str:
    """The class, the settings and the shapes of a distribution of the guide."""
    base = innermost(distribution)
    estimator = getattr(base, "estimator", second_order) if is_straight_through(base) else None
    temperature = getattr(base, "temperature", None)
    settings = _settings_in_brief(estimator, None if temperature is None else brief(temperature))
    batch_shape, event_shape = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    shapes = f"batch_shape: {batch_shape}, event_shape: {event_shape}"
    return f"{type(base).__name__}, {settings}, {shapes}"


def _settings_in_brief(estimator: Estimator | None, temperature: Any) -> str:
    settings = {
        "estimator": getattr(estimator, "__name__", estimator),
        "temperature": temperature,
    }
    return ", ".join(f"{name}: {is_}" for name, is_ in settings.items() if is_ is not None)


def _start(runs: list[_Site]) -> dict[str, Tensor]:
    """Where the parameters of a site start, given its priors in several runs of the model."""
    starts = [run.mean_field.start() for run in runs]
    priors = [innermost(run.distribution) for run in runs]
    first, mean_field = starts[0], runs[0].mean_field
    mean_field.require_same_support(priors)
    if all(torch.equal(start[kind], first[kind]) for start in starts for kind in first):
        return first
    return mean_field.start_at_mean(priors)


def _require_gradient(distribution: Any, prior: Any) -> None:
    """Raise for a plain distribution of the model that does not pass its gradient to a sample."""
    plain = innermost(distribution)
    passes = getattr(innermost(prior), "plain_passes_gradient", True)
    if not passes and not is_straight_through(plain):
        raise ValueError(
            f"the model must be relaxed, as the log_prob of Pyro's {type(plain).__name__} passes "
            "only a part of its gradient to a sample; write model = relaxed(model), then "
            "AutoRelaxed(model), and train that model"
        )


def _require_whole_plates(site: _Site) -> None:
    """Raise if the guide sees only a part of what it takes over from the model."""
    subsampled = any(frame.full_size not in (None, frame.size) for frame in site.frames)
    for what, tensors in (("mask", site.masks), ("total_count", site.mean_field.taken_over)):
        if subsampled and any(tensor.dim() for tensor in tensors):
            raise NotImplementedError(
                f"expected no {what} of several elements in a subsampled plate, got one, and the "
                "guide sees only the part of it in the subsample; write poutine.block(model, "
                "hide=[...]) and a guide of its own for this site"
            )


def _over_plates(start: Tensor, frames: Any, event_dim: int) -> Tensor:
    """A parameter over the whole of the plates, repeated from that of a subsample."""
    for frame in frames:
        full_size = frame.full_size or frame.size
        if full_size != frame.size:
            start = periodic_repeat(start, full_size, frame.dim - event_dim)
    return start


def _without_graph(trace: Any, sites: dict[str, _Site]) -> Trace:
    """The sites of a trace, with distributions and values that can be copied and pickled."""
    detached = Trace()
    for name, site in sites.items():
        node = trace.nodes[name]
        kept = {
            key: item.detach() if isinstance(item, Tensor) else item for key, item in node.items()
        }
        detached.add_node(name, **{**kept, "fn": site.distribution})
    return detached


def _read_quantiles(quantiles: Any) -> Tensor:
    """Numbers from 0 to 1 as a tensor of one dimension."""
    wanted = "AutoRelaxed.quantiles: `quantiles` must be numbers from 0 to 1"
    remedy = "write guide.quantiles([0.05, 0.5, 0.95])"
    try:
        q = torch.as_tensor(quantiles, dtype=torch.float64, device="cpu").flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{wanted}, got {quantiles!r}; {remedy}") from error
    require((q >= 0) & (q <= 1), wanted, q, remedy)
    return q


# The distributions of the guide.


def _counterpart(distribution: Any, hard: bool) -> Any:
    """The guide's kind of distribution for a site of the model."""
    base = innermost(distribution)
    name, is_relaxed = type(base).__name__, isinstance(base, Relaxed)
    if is_relaxed and hard:
        raise ValueError(
            f"the model has a relaxed distribution, {name}, and the guide would have a discrete "
            "one; write AutoRelaxed(model, temperature, hard=False)"
        )
    if not is_relaxed and not hard:
        relax(distribution, 1.0, hard=False)  # raises for counts, which have no relaxed form
        raise ValueError(
            f"the model has a discrete distribution, {name}, and the guide would have a relaxed "
            "one, a density against a probability; write soft = relaxed(model, temperature, "
            "hard=False), then AutoRelaxed(soft, temperature, hard=False), and train soft, or "
            "leave out hard=False"
        )
    new = relax(distribution, None if hard else 1.0, hard=hard)
    base = innermost(new)
    if not (isinstance(base, Relaxed) or is_straight_through(base)):
        raise TypeError(
            "its relaxed distribution must be of pyro_gumbel, got "
            f"{type(base).__name__}; write a guide of its own for this site and combine "
            "them by AutoGuideList"
        )
    return new


def _most_probable(distribution: Any) -> Tensor:
    if not isinstance(distribution, FamilyDistribution):
        return _most_probable_count(distribution)
    size = (distribution.size,) if distribution.family.takes_size else ()
    mode = distribution.family.mode(distribution.logits, *size)
    if isinstance(distribution, RelaxedLogits):
        return distribution._to_value(distribution.link.inverse(mode))
    return mode


def _most_probable_count(distribution: Any) -> Tensor:
    """The mode, or where there is no formula the most probable of 1,000 draws."""
    try:
        return distribution.mode
    except NotImplementedError:
        draws = distribution.sample((DRAWS,))
        best = distribution.log_prob(draws).argmax(0)
        index = best.reshape(1, *best.shape, *[1] * distribution.event_dim)
        return draws.gather(0, index.expand(1, *draws.shape[1:])).squeeze(0)


def _quantiles_of(distribution: Any, q: Tensor) -> Tensor:
    """The least value that an entry is at or below with probability q, for each q and entry."""
    like = (
        distribution.logits if isinstance(distribution, FamilyDistribution) else distribution.mean
    )
    q = q.to(like.device).reshape(-1, *[1] * len(distribution.shape()))
    if isinstance(distribution, FamilyStraightThrough):
        mean = distribution.mean
        return ((mean > 1 - q) | (mean >= 1)).to(mean.dtype)
    try:
        return distribution.icdf(q)
    except NotImplementedError:  # of a vector
        rank = (q.flatten() * DRAWS).ceil().long() - 1
        return distribution.sample((DRAWS,)).sort(0).values[rank.clamp(min=0)]
