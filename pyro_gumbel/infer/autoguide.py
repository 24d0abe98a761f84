# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The mean-field guide of a model's latent discrete sites."""

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_gumbel._tracing import in_program
from pyro_gumbel._validation import Temperature
from pyro_gumbel.distributions.mean_field import parameter_names
from pyro_gumbel.distributions.relaxation import require_settings
from pyro_gumbel.distributions.wrappers import innermost
from pyro_gumbel.estimators import Estimator, LearnedCurvature, resolved
from pyro_gumbel.infer.guide_site import (
    GuideSite,
    brief_settings,
    brief_site,
    over_plates,
    read_site,
    require_known,
    require_plates,
    require_subsamples,
    start_of,
)
from pyro_gumbel.infer.handlers import at_site
from pyro_gumbel.infer.plate_sizes import PlateSizes, shapes_of, size_of
from pyro_gumbel.infer.site_choice import UNMARKED, SiteChoice
from pyro_gumbel.infer.site_parameters import SiteParameters
from pyro_gumbel.infer.site_values import most_probable, quantiles_of, read_quantiles
from pyro_gumbel.infer.traces import OneSubsample, kept_random_state
from pyro_gumbel.temperature import TemperatureSchedule

__all__ = ["AutoRelaxed"]

RUNS = 10  # of the model, over which a prior that varies is averaged


class AutoRelaxed(AutoGuide):
    r"""The mean-field guide of a model's latent discrete sites.

    .. math:: q(z) = \prod_i q_i(z_i)

    The sites are independent. The distribution of site i is the counterpart of its prior under
    `relax`, with the plates and masks of the site. With `hard=True` it is discrete and its samples
    carry a surrogate gradient; with `hard=False` it is a continuous relaxation. The values of a
    `Categorical` site are integers with a gradient, for models that write ``table[z]``.

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

    >>> guide = AutoRelaxed(lambda: pyro.sample("n", pyro.distributions.Poisson(3.0)))
    >>> _ = guide()
    >>> guide.distribution("n")
    PoissonStraightThrough(rate: 3.0)

    The parameters belong to the elements of the plates of the first run, as in `AutoNormal`, and so
    do the `total_count` of a site and the lengths of its rankings, in later calls too. Data of
    another length or `total_count` need a guide that computes its parameters from the data. A call
    with data of a new shape runs the model once more, and raises an error where the sizes of its
    plates differ::

        network = torch.nn.Linear(784, 10)

        def guide(x):
            pyro.module("network", network)
            with pyro.plate("data", len(x)):
                pyro.sample("z", CategoricalStraightThrough(logits=network(x)))

    The guide leaves continuous sites to other guides::

        guide = AutoGuideList(model)
        guide.append(AutoNormal(poutine.block(model, hide=["z"])))
        guide.append(AutoRelaxed(poutine.block(model, expose=["z"])))

    It leaves sites marked ``infer={"enumerate": ...}`` to `TraceEnum_ELBO`, which sums over them,
    unless `sites` names them. The guide draws what it names, whatever the mark in the model says:
    write ``AutoRelaxed(model, sites=["z"])``. Where the model must be relaxed, as below, write
    ``model = relaxed(model, sites=["z"])``, which takes off the mark, and ``AutoRelaxed(model)``.

    With `hard=True` the model may be relaxed or not: the samples get the gradient of a plain prior
    too. Relax a model that you compile, since `torch.compile` does not carry that gradient, and one
    with a site that is `Binomial`, `BetaBinomial` or given `is_sparse=True`, since Pyro's
    `log_prob` of those drops a part of it.
    With `hard=False` the model must be ``relaxed(model, temperature, hard=False)``.

    If a discrete site has a mask, each call runs the model once more to find the masks, on the
    subsample of the guide. A mask must not depend on latent values. Masked sites may differ between
    subsamples, as where a loop ends at the longest sequence: a call draws the sites that the model
    has on its subsample. A site gets its parameters in the first call that has it. Pyro's
    optimisers find them then; to one of torch, give them by `add_param_group`.

    The guide does not copy a `poutine.scale` inside the model; put it around both, model and guide.

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
        `gumbel_softmax` with a temperature and second order without. `"third_order"` is for counts
        alone: name them in `sites`, and give the other sites a second guide.
    :param sites: the names of the sites of the guide, marked or not, as in `relaxed`; None for all
        that are latent, discrete and not marked.
    :param create_plates: as in every `AutoGuide`.
    :raises ValueError: for settings that do not fit together; in the first run, for third order and
        a site that does not have it; for a model without latent discrete sites, or with marked ones
        only; for a name in `sites` that the model does not have; for `hard=True` and a relaxed site
        of the model; for `hard=False` and a discrete one; for a plain site of the model whose
        `log_prob` drops a part of the gradient; for a `total_count` or lengths of rankings that
        differ from run to run; for a mask that does so on the same data; for plates of other sizes
        than in the first run; for data with a dimension of 1 in a plate of several elements.
    :raises TypeError: for anything but a model; in the first run, for a site that cannot be
        relaxed, or that has no guide here: counts other than those above, zero-inflated ones; and
        for `hard=False` and a count or a `Categorical`.
    :raises NotImplementedError: in the first run, for a `total_count` or lengths of several
        elements in a subsampled plate.
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
        sites: Collection[str] | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if not callable(model) or isinstance(model, Distribution):
            raise TypeError(
                f"AutoRelaxed: `model` must be a model, got {type(model).__name__}; write "
                "AutoRelaxed(model), or AutoRelaxed(model, 0.5) for a temperature"
            )
        require_settings("AutoRelaxed", temperature, hard, estimator)
        choice = SiteChoice("AutoRelaxed", sites)
        super().__init__(model, create_plates=create_plates)
        self._choice = choice
        self._add_parameters()
        self._warned_of_masks = False
        self._sites: dict[str, GuideSite] = {}
        self._known_shapes: set[Any] = set()  # of arguments whose plates have the right sizes
        self.temperature = temperature
        self.hard = hard
        self.estimator = estimator
        if isinstance(tau := getattr(estimator, "tau", None), TemperatureSchedule):
            self.tau = tau  # part of the `state_dict`, as the temperature is

    def __repr__(self) -> str:
        """The settings; after the first run the distribution, settings and shapes of each site."""
        if self.prototype_trace is None:
            estimator = None
            if self.hard:
                estimator = resolved("AutoRelaxed", self.temperature, self.estimator)
            settings = brief_settings(estimator, self.temperature)
            return f"AutoRelaxed({settings}, sites: those of the first run)"
        sites = [f"  {name}: {brief_site(self.distribution(name))}\n" for name in self._sites]
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

    def _hides(self, msg: Any) -> bool:
        """Whether a message of the model is none of a site of the guide."""
        if msg["type"] != "sample" or site_is_subsample(msg):
            return True
        return not self._choice.chooses(msg)

    def _prototype_hide_fn(self, msg: Any) -> bool:
        """The same in the first run. An `AutoGuideList` must have met the site in its own."""
        master = None if self.master is None else self.master()
        known = master is None or msg["name"] in master.prototype_trace.nodes
        return self._hides(msg) or not known

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self._model is None:
            raise ValueError(
                "AutoRelaxed: expected a model for the first run, got none, which a pickle leaves "
                "out; write guide = AutoRelaxed(model, temperature), and "
                "guide.load_state_dict(state) for what was saved"
            )
        try:
            with kept_random_state():  # a training that is resumed has a first run more
                super()._setup_prototype(*args, **kwargs)
                self._setup_sites(*args, **kwargs)
        except Exception:
            self.prototype_trace = None  # the next call raises the same error
            raise

    def _setup_sites(self, *args: Any, **kwargs: Any) -> None:
        first = self._sites_of(self.prototype_trace)
        if not first:
            raise self._no_site()
        runs = [first, *self._runs(RUNS - 1, args, kwargs)]
        self._choice.check(stacklevel=4)
        masked = [site for run in runs for site in run.values() if site.masks]
        self._is_masked = bool(masked)
        if isinstance(self.estimator, LearnedCurvature):
            _require_one_whole_site(list(first), self._is_masked)
        self._needs_model = any(site.is_subsampled for site in masked)
        if self._is_masked:
            require_known(self._runs(RUNS, args, kwargs, OneSubsample()))
        self._sites = {}
        self._add_parameters()
        self._add_sites(_names_in(runs) if self._is_masked else first, runs)
        self._known_shapes = {shapes_of((args, kwargs))}
        self.prototype_trace = _without_graph(self.prototype_trace, first)

    def _no_site(self) -> ValueError:
        """The error for a model without a site for the guide."""
        if self._choice.enumerated:
            names = self._choice.enumerated
            return ValueError(
                "AutoRelaxed: `model` must have a latent discrete site that it does not enumerate, "
                'and has only sites with infer={"enumerate": ...}; to draw them write '
                f"AutoRelaxed(model, sites={names}), or model = {UNMARKED} for all sites"
            )
        return ValueError(
            "AutoRelaxed: `model` must have a latent discrete site, and has none; write "
            "AutoNormal(model) for continuous ones, or AutoGuideList for several guides"
        )

    def _add_parameters(self) -> None:
        """A module for each name of a parameter; for those registered since, if called again."""
        for kind in parameter_names():
            if not hasattr(self, kind):
                setattr(self, kind, SiteParameters(kind))

    def _add_sites(self, names: Iterable[str], runs: list[dict[str, GuideSite]]) -> None:
        """Sites of some runs of the model, with parameters that start at their mean prior."""
        sites = {name: next(run[name] for run in runs if name in run) for name in names}
        initial = {name: _start_of(name, runs) for name in sites}
        kinds = {kind: getattr(self, kind) for kind in parameter_names()}
        is_loaded = any(parameters.is_loaded for parameters in kinds.values())
        for kind, parameters in kinds.items():
            of_kind = {name: start[kind] for name, start in initial.items() if kind in start}
            dims = {name: sites[name].event_dim for name in of_kind}
            parameters.set_up(of_kind, dims, is_loaded, may_grow=self._is_masked)
        self._sites.update((name, site.over_whole_plates()) for name, site in sites.items())

    def _sites_of(self, trace: Any) -> dict[str, GuideSite]:
        """The sites of a run of the model, with their priors."""
        sites = {}
        for name, node in trace.iter_stochastic_nodes():
            with at_site("AutoRelaxed", name):
                sites[name] = read_site(node, self.hard, self.temperature, self.estimator)
        return sites

    def _runs(
        self, count: int, args: Any, kwargs: Any, subsample: OneSubsample | None = None
    ) -> list[dict[str, GuideSite]]:
        """The sites of some more runs of the model, perhaps all on one subsample."""
        frames = (frame for site in self._sites.values() for frame in site.frames)
        model = PlateSizes({frame.name: size_of(frame) for frame in frames})(self.model)
        model = model if subsample is None else subsample(model)
        run = poutine.block(poutine.trace(poutine.block(model, self._hides)).get_trace)
        with torch.no_grad():
            runs = [self._sites_of(run(*args, **kwargs)) for _ in range(count)]
        if subsample is not None:
            for sites in runs:
                require_subsamples(sites, subsample.plates)
        return runs

    def _current(self, name: str, site: GuideSite) -> Any:
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
        are those of its `.base_dist`. In a subsampled plate it has no mask, as the guide knows only
        that of a subsample.

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
        if not self._is_masked:
            self._require_sizes(args, kwargs)
        plates = self._create_plates(*args, **kwargs)
        sites = self._sites_of_this_call(plates, args, kwargs) if self._is_masked else self._sites
        result = {}
        for name, site in sites.items():
            with ExitStack() as stack:
                for frame in site.frames:
                    stack.enter_context(plates[frame.name])
                if site.mask is not None:
                    stack.enter_context(poutine.mask(mask=site.mask))
                result[name] = pyro.sample(name, self._current(name, site))
        return result

    def _require_sizes(self, args: Any, kwargs: Any) -> None:
        """Raise for data whose plates have other sizes: run the model once for each new shape."""
        shapes = shapes_of((args, kwargs))
        if shapes not in self._known_shapes and self._model is not None and not in_program():
            with kept_random_state():
                self._runs(1, args, kwargs)
            self._known_shapes.add(shapes)

    def _sites_of_this_call(
        self, plates: Mapping[str, Any], args: Any, kwargs: Any
    ) -> dict[str, GuideSite]:
        """The sites and masks that the model has on the data and the subsample of this call."""
        if self._model is None:
            return self._sites_without_a_model()
        subsample = OneSubsample({name: plate.indices for name, plate in plates.items()})
        (sites,) = self._runs(1, args, kwargs, subsample)
        require_plates(sites, plates)
        if not sites.keys() <= self._sites.keys():
            with kept_random_state():
                runs = [sites, *self._runs(RUNS - 1, args, kwargs, subsample)]
            self._add_sites([n for n in _names_in(runs) if n not in self._sites], runs)
        return sites

    def _sites_without_a_model(self) -> dict[str, GuideSite]:
        """Those of the first run. Masks of a subsample are no use for another."""
        missing = (
            "AutoRelaxed: expected a model, for the masks of this call, got none, which a pickle "
            "leaves out"
        )
        remedy = "write guide = AutoRelaxed(model, temperature) and guide.load_state_dict(state)"
        if self._needs_model:
            raise ValueError(f"{missing}; {remedy}")
        if not self._warned_of_masks:
            self._warned_of_masks = True
            message = f"{missing}, and took those of the first run; where they change {remedy}"
            warnings.warn(message, stacklevel=4)
        return self._sites

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The most probable value of each site, by name.

        At a site of multinomial or beta-binomial counts it is the most probable of 1,000 draws. It
        is discrete; at a site in logit space it is the logit-space form of that value. At an
        integer `Categorical` site it is the most probable category.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {name: most_probable(innermost(self.distribution(name))) for name in self._sites}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        r"""Quantiles of each site, by name; each entry of a value is treated on its own.

        An entry of a discrete value is 0 or 1. Its quantile at q is 1 where its mean is above
        1 - q, and else 0. So the quantiles of a one-hot vector need not be one-hot; see `median`.
        An integer category counts as a number: its quantile at q is the least possible k for which
        the categories 0 to k have a probability of q or more. That says something only where the
        categories have an order; where they have none, read `guide.distribution(name).probs`.
        For relaxed Bernoulli sites the quantiles are exact. For other relaxed sites and counts they
        are those of 1,000 draws, which are quantiles at q with a standard error of

        .. math:: \sqrt{q (1 - q) / 1000}

        :param quantiles: numbers q from 0 to 1.
        :returns: for each site a tensor of shape `(len(quantiles),) + value.shape`.
        :raises ValueError: for a number out of range.
        :raises TypeError: for anything but numbers.
        """
        q = read_quantiles(quantiles)
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {name: quantiles_of(innermost(self.distribution(name)), q) for name in self._sites}


def _require_one_whole_site(names: list[str], is_masked: bool) -> None:
    """Raise unless a `LearnedCurvature` suits: one site, with all its examples in the loss."""
    if len(names) > 1:
        raise ValueError(
            f"AutoRelaxed: `estimator` must be for all sites, {names}, got LearnedCurvature, which "
            f"learns the curvature of one; write AutoRelaxed(model, sites={names[:1]}, "
            "estimator=...) for each, in an AutoGuideList"
        )
    if is_masked or names[0].endswith("_unobserved"):
        raise ValueError(
            "AutoRelaxed: `estimator` must be for examples that may not be in the loss, as the "
            f'site "{names[0]}" is masked or partly observed, got LearnedCurvature, which takes '
            "all to have the same curvature; leave out `estimator` for second_order"
        )


def _names_in(runs: list[dict[str, GuideSite]]) -> list[str]:
    """The sites of all runs, each once."""
    return list(dict.fromkeys(name for run in runs for name in run))


def _start_of(name: str, runs: list[dict[str, GuideSite]]) -> dict[str, Tensor]:
    """Where the parameters of a site start, over the whole of its plates."""
    of_site = [run[name] for run in runs if name in run]
    site = of_site[0]
    with at_site("AutoRelaxed", name):
        start = start_of(of_site)
    return {kind: over_plates(each, site.frames, site.event_dim) for kind, each in start.items()}


def _without_graph(trace: Any, sites: dict[str, GuideSite]) -> Trace:
    """The sites of a trace, with distributions and values that can be copied and pickled."""
    detached = Trace()
    for name, site in sites.items():
        node = trace.nodes[name]
        kept = {
            key: item.detach() if isinstance(item, Tensor) else item for key, item in node.items()
        }
        detached.add_node(name, **{**kept, "fn": site.distribution})
    return detached
