# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The mean-field guide of a model's discrete sites."""

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.ops.tensor_utils import periodic_repeat
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_gumbel._validation import Temperature, fitted, require
from pyro_gumbel.distributions.base import FamilyDistribution
from pyro_gumbel.distributions.relaxation import is_relaxable, relax
from pyro_gumbel.distributions.relaxed import Relaxed, RelaxedLogits
from pyro_gumbel.distributions.straight_through import StraightThrough
from pyro_gumbel.distributions.wrappers import innermost, masks_of, rewrapped
from pyro_gumbel.estimators import Estimator, named
from pyro_gumbel.infer.handlers import at_site
from pyro_gumbel.infer.site_logits import SiteLogits

__all__ = ["AutoRelaxed"]

RUNS = 10  # of the model, to see what the prior of a site is
DRAWS = 1000  # whose quantiles stand for those that have no formula


class AutoRelaxed(AutoGuide):
    r"""One independent law for each latent discrete site of a model: q(z) = prod_i q_i(z_i).

    A site's law is the hard or the soft one of its row, with the site's plates and masks. Its
    logits are the parameter `logits.<site>`, over the whole plate where the plate is subsampled;
    where a module has another use for the name, `logits.type_site` and the like. They start at
    those of the prior, and an outcome that the prior excludes stays excluded; where the prior
    depends on other sites, or on the subsample, they start at its mean over 10 runs, and nothing is
    excluded.
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
    master: Any
    _model: Any

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
        self.logits = SiteLogits()
        self._warned_of_masks = False
        self.temperature = temperature
        self.hard = hard
        self.estimator = named(estimator)

    def __getstate__(self) -> dict[str, Any]:
        """Without the model; Pyro takes it from the guide itself, which goes on with it here."""
        own = self._model, self.master
        try:
            return super().__getstate__()
        finally:
            self._model, self.master = own

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A guide of the same model, or of its copy where that is copied in the same call."""
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
        initial = self._initial_logits(*args, **kwargs)
        shapes = {name: len(site["law"].batch_shape) for name, site in self._sites.items()}
        event_dims = {name: logits.dim() - shapes[name] for name, logits in initial.items()}
        for name, site in self._sites.items():
            initial[name] = _over_plates(initial[name], site["frames"], event_dims[name])
        self.logits.set_up(initial, event_dims)
        self.prototype_trace = _without_graph(self.prototype_trace, self._sites)

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
        soft_site = isinstance(innermost(law), Relaxed)
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
        if not isinstance(innermost(new), FamilyDistribution):
            raise TypeError(
                f"its relaxed law must be of pyro_gumbel, got {type(innermost(new)).__name__}; "
                "write a guide of its own for this site and combine them by AutoGuideList"
            )
        return new

    def _with_logits(self, law: Any, logits: Tensor, temperature: Temperature) -> Any:
        """A law like `law` with these logits, at this temperature."""
        base = innermost(law)
        event_dim = law.event_dim - base.event_dim
        batch_shape = logits.shape[: logits.dim() - base.family.event_dim - event_dim]
        tau = fitted(temperature, batch_shape, event_dim)
        keywords = {"logits": logits, "validate_args": base._validate_args}
        if self.hard:
            keywords["estimator"] = self.estimator
        return rewrapped(law, type(base)(tau, *_size(base), **keywords))

    def distribution(self, name: str) -> Any:
        """The law of a site as the parameters now have it, over the whole of its plates.

        >>> guide = AutoRelaxed(lambda: pyro.sample("z", pyro.distributions.Bernoulli(0.25)), 0.5)
        >>> _ = guide()
        >>> guide.distribution("z").probs.detach()
        tensor(0.2500)

        It has the form of the site's, so that of a law with `.to_event` the probabilities are
        those of its `.base_dist`.

        :param name: of a site that the first run has met.
        :raises ValueError: for any other name, and before the first run.
        """
        if self.prototype_trace is None:
            raise ValueError(
                "AutoRelaxed.distribution: expected a guide that has run, which is when it meets "
                "the sites, got one that has not; write guide(*args) once before "
                f"guide.distribution({name!r})"
            )
        if name not in self._sites:
            raise ValueError(
                f"AutoRelaxed.distribution: `name` must be one of {sorted(self._sites)}, got "
                f"{name!r}; write guide.distribution({min(self._sites)!r})"
            )
        return self._current_law(name, self._sites[name])

    def _current_law(self, name: str, site: dict[str, Any]) -> Any:
        return self._with_logits(site["law"], self.logits.of_site(name), self.temperature)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """A draw of each site, by name."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        sites = self._sites_now(*args, **kwargs)
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

    def _sites_now(self, *args: Any, **kwargs: Any) -> dict[str, dict[str, Any]]:
        """The sites with the masks of this call."""
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
        """The most probable value of each site, by name: hard, or its coordinates."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {name: _most_probable(innermost(self.distribution(name))) for name in self._sites}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of each entry of each site on its own, by name, as of every Pyro autoguide.

        An entry of a hard site is a bit: its quantile at q is 1 where its mean is above 1 - q, and
        else 0. So the quantiles of a one-hot vector need not be one-hot; see `median`. Of relaxed
        bits they are exact. Of the other relaxed sites they are those of 1,000 draws, with
        a standard error of sqrt(q (1 - q) / 1000) in q.

        :param quantiles: numbers q from 0 to 1.
        :returns: tensors with a first dimension for the quantiles and then the shape of a value.
        :raises ValueError: for a number out of range.
        :raises TypeError: for anything but numbers.
        """
        q = _read_quantiles(quantiles)
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {name: _quantiles_of(innermost(self.distribution(name)), q) for name in self._sites}


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


def _over_plates(logits: Tensor, frames: Any, event_dim: int) -> Tensor:
    """Logits over whole plates, where they are known of a subsample."""
    for frame in frames:
        full_size = frame.full_size or frame.size
        if full_size != frame.size:
            logits = periodic_repeat(logits, full_size, frame.dim - event_dim)
    return logits


def _without_graph(trace: Any, sites: dict[str, dict[str, Any]]) -> Trace:
    """The sites of a trace, with distributions and values that can be copied and pickled."""
    detached = Trace()
    for name, site in sites.items():
        node = trace.nodes[name]
        kept = {key: is_.detach() if isinstance(is_, Tensor) else is_ for key, is_ in node.items()}
        detached.add_node(name, **{**kept, "fn": site["law"]})
    return detached


def _mean_logits(laws: list[Any]) -> Tensor:
    """Logits of the mean of the laws' probabilities, with a uniform law among them."""
    family, probs = laws[0].family, torch.stack([law.probs for law in laws])
    mean = (probs.sum(0) + 1 / family.number_of_outcomes(probs)) / (len(laws) + 1)
    return family.logits_of(mean)


def _size(law: Any) -> tuple[int, ...]:
    """The argument `size`, where the class has it."""
    return (law.size,) if law.family.takes_size else ()


def _most_probable(law: Any) -> Tensor:
    size = law.size if law.family.takes_size else None
    mode = law.family.mode(law.logits, size)
    return law._to_value(law.link.inverse(mode)) if isinstance(law, RelaxedLogits) else mode


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


def _quantiles_of(law: Any, q: Tensor) -> Tensor:
    """The least value that an entry is at or below with probability q, for each q and entry."""
    q = q.to(law.logits.device).reshape(-1, *[1] * len(law.shape()))
    if isinstance(law, StraightThrough):
        mean = law.mean
        return ((mean > 1 - q) | (mean >= 1)).to(mean.dtype)
    try:
        return law.icdf(q)
    except NotImplementedError:  # of a vector
        rank = (q.flatten() * DRAWS).ceil().long() - 1
        return law.sample((DRAWS,)).sort(0).values[rank.clamp(min=0)]
