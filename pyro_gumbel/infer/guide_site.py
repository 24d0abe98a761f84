# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""A site of a mean-field guide: what it takes from the model, and its distribution."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor

from pyro_gumbel._tracing import brief
from pyro_gumbel._validation import Temperature
from pyro_gumbel.distributions.counts import CountStraightThrough
from pyro_gumbel.distributions.mean_field import MeanField, mean_field_of
from pyro_gumbel.distributions.relaxation import is_straight_through, relax
from pyro_gumbel.distributions.relaxed import Relaxed
from pyro_gumbel.distributions.wrappers import innermost, masks_of, rewrapped, unmasked
from pyro_gumbel.estimators import Estimator, name_of, second_order
from pyro_gumbel.infer.handlers import require_continuous_log_prob

__all__ = [
    "GuideSite",
    "brief_settings",
    "brief_site",
    "over_plates",
    "read_site",
    "require_known",
    "require_plates",
    "require_subsamples",
    "start_of",
]


@dataclass(frozen=True)
class GuideSite:
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
        base = self.mean_field.distribution(parameters, *settings)
        if isinstance(base, CountStraightThrough):
            base = relax(base, estimator=estimator)
        return rewrapped(self.distribution, base)

    @property
    def masks(self) -> list[Tensor]:
        """All masks of the site that are tensors."""
        masks = (self.mask, *masks_of(self.distribution))
        return [mask for mask in masks if isinstance(mask, Tensor)]

    @property
    def is_subsampled(self) -> bool:
        """Whether the model shows a part of a plate only."""
        return bool(self.subsampled_plates)

    @property
    def subsampled_plates(self) -> set[str]:
        """Their names."""
        frames = self.frames
        return {frame.name for frame in frames if frame.full_size not in (None, frame.size)}

    def over_whole_plates(self) -> "GuideSite":
        """The same without the masks of a subsample."""
        if not (self.is_subsampled and self.masks):
            return self
        return replace(self, distribution=unmasked(self.distribution), mask=None)


def read_site(
    node: Any, hard: bool, temperature: Temperature | None, estimator: str | Estimator | None
) -> GuideSite:
    """The guide's site for one of a run of the model, with its prior.

    :raises ValueError: if the guide cannot have this site, or the settings do not fit it.
    :raises TypeError: likewise.
    :raises NotImplementedError: if it takes over from the model what it sees only a part of.
    """
    require_continuous_log_prob(node["fn"])
    prior = _counterpart(node, hard)
    _require_gradient(node, prior)
    site = GuideSite(prior, node["mask"], node["cond_indep_stack"])
    start = site.mean_field.start()
    site.with_parameters(start, temperature, estimator)  # raises if the settings do not fit
    prior = site.with_parameters(start, None if hard else 1.0, None)
    site = replace(site, distribution=prior)
    _require_whole(site)
    return site


def _counterpart(node: Any, hard: bool) -> Any:
    """The guide's kind of distribution for a site of the model."""
    distribution = node["fn"]
    base = innermost(distribution)
    name, is_relaxed = type(base).__name__, isinstance(base, Relaxed)
    if is_relaxed and hard:
        raise ValueError(
            f"the model has a relaxed distribution, {name}, and the guide would have a discrete "
            "one; write AutoRelaxed(model, temperature, hard=False)"
        )
    if not is_relaxed and not hard:
        if isinstance(innermost(relax(distribution)), CountStraightThrough):
            raise TypeError(
                f"counts have no relaxed form for hard=False, got a {name}; write "
                "guide = AutoGuideList(model), guide.append(AutoRelaxed(poutine.block(model, "
                "hide=[...]), temperature, hard=False)) without the counts, and "
                "guide.append(AutoRelaxed(poutine.block(model, expose=[...]))) with the counts "
                "alone"
            )
        relax(distribution, 1.0, hard=False)  # raises where there is no relaxed form
        raise ValueError(
            f"the model has a discrete distribution, {name}, and the guide would have a relaxed "
            "one, a density against a probability; write soft = relaxed(model, temperature, "
            f"hard=False{_named_if_marked(node)}), then AutoRelaxed(soft, temperature, "
            "hard=False), and train soft, or leave out hard=False"
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


def _named_if_marked(node: Any) -> str:
    """How `relaxed` is told of a site that the model enumerates."""
    return f', sites=["{node["name"]}", ...]' if node["infer"].get("enumerate") else ""


def _require_gradient(node: Any, prior: Any) -> None:
    """Raise for a plain distribution of the model that does not pass its gradient to a sample.

    A sparse one passes none to a value of 0.
    """
    plain = innermost(node["fn"])
    passes = getattr(innermost(prior), "plain_passes_gradient", True)
    passes = passes and not getattr(plain, "is_sparse", False)
    if not passes and not is_straight_through(plain):
        raise ValueError(
            f"the model must be relaxed, as the log_prob of Pyro's {type(plain).__name__} passes "
            "only a part of its gradient to a sample; write "
            f"model = relaxed(model{_named_if_marked(node)}), then AutoRelaxed(model), and train "
            "that model"
        )


def _require_whole(site: GuideSite) -> None:
    """Raise if the guide sees only a part of the argument that it takes over from the model."""
    for name, tensor in site.mean_field.taken_over.items():
        if site.is_subsampled and tensor.dim():
            raise NotImplementedError(
                f"expected one {name} for a subsampled plate, got a tensor of shape "
                f"{tuple(tensor.shape)}, of which the guide sees only the part in the subsample; "
                "write poutine.block(model, hide=[...]) and a guide of its own for this site"
            )


def require_known(runs: list[dict[str, GuideSite]]) -> None:
    """Raise where masked sites or their masks depend on the latent values of the model.

    :param runs: the sites of several runs of the model on the same subsample, by name.
    :raises ValueError: where a run has other sites or other masks.
    """
    first = runs[0]
    for run in runs[1:]:
        for name in sorted(first.keys() ^ run.keys()):
            site = first[name] if name in first else run[name]
            raise _of_a_latent_value(name, "site", "one that is in some only", site)
        for name, site in run.items():
            if not _are_equal(site.masks, first[name].masks):
                raise _of_a_latent_value(name, "mask of the site", "two masks", site)


def require_subsamples(sites: dict[str, GuideSite], plates: set[str]) -> None:
    """Raise where a subsample of the model could not be set, as a handler hides it.

    :param plates: the names of those whose subsample was set.
    """
    for name, site in sites.items():
        hidden = sorted(site.subsampled_plates - plates)
        if hidden:
            raise ValueError(
                f'AutoRelaxed: at pyro.sample("{name}", ...): `model` must show the subsamples of '
                f"its plates where a site has a mask, got one that hides that of {hidden}; write "
                "poutine.block(model, hide=[...]) with the names of the other sites, or "
                f"poutine.block(model, expose={[name, *hidden]})"
            )


def require_plates(sites: dict[str, GuideSite], plates: Collection[str]) -> None:
    """Raise where the guide does not have all plates of the sites, by name."""
    for name, site in sites.items():
        for frame in site.frames:
            if frame.name not in plates:
                raise ValueError(
                    f'AutoRelaxed: at pyro.sample("{name}", ...): expected plates of the first '
                    f"run of the guide, {sorted(plates)}, got {frame.name!r}; write "
                    f"create_plates=lambda *args: [pyro.plate({frame.name!r}, {frame.full_size}, "
                    f"dim={frame.dim})]"
                )


def _are_equal(tensors: list[Tensor], others: list[Tensor]) -> bool:
    return len(tensors) == len(others) and all(map(torch.equal, tensors, others))


def _of_a_latent_value(name: str, what: str, got: str, site: GuideSite) -> ValueError:
    kind = type(innermost(site.distribution)).__name__
    return ValueError(
        f'AutoRelaxed: at pyro.sample("{name}", ...): the {what} must be the same in all runs of '
        f"the model on the same data, got {got}, as where it depends on a latent value; write "
        "guide = AutoGuideList(model), "
        f'guide.append(AutoRelaxed(poutine.block(model, hide=["{name}", ...]))) without the sites '
        "that this one depends on, and guide.append(own), where own(...) draws them and this one "
        "as the model does, inside guide.plates[...] and poutine.mask(mask=...), with "
        f'pyro.sample("{name}", {kind}(logits=pyro.param("{name}_logits", ...)))'
    )


def start_of(runs: list[GuideSite]) -> dict[str, Tensor]:
    """Where the parameters of a site start, given its priors in several runs of the model."""
    starts = [run.mean_field.start() for run in runs]
    priors = [innermost(run.distribution) for run in runs]
    first, mean_field = starts[0], runs[0].mean_field
    mean_field.require_same_support(priors)
    if all(torch.equal(start[kind], first[kind]) for start in starts for kind in first):
        return first
    return mean_field.start_at_mean(priors)


def over_plates(start: Tensor, frames: Any, event_dim: int) -> Tensor:
    """A parameter over the whole of the plates, repeated from that of a subsample."""
    for frame in frames:
        full_size = frame.full_size or frame.size
        if full_size != frame.size:
            start = periodic_repeat(start, full_size, frame.dim - event_dim)
    return start


def brief_site(distribution: Any) -> str:
    """The class, the settings and the shapes of a distribution of the guide."""
    base = innermost(distribution)
    estimator = getattr(base, "estimator", second_order) if is_straight_through(base) else None
    temperature = getattr(base, "temperature", None)
    settings = brief_settings(estimator, None if temperature is None else brief(temperature))
    batch_shape, event_shape = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    shapes = f"batch_shape: {batch_shape}, event_shape: {event_shape}"
    return f"{type(base).__name__}, {settings}, {shapes}"


def brief_settings(estimator: Estimator | None, temperature: Any) -> str:
    """Those that are not None, as text."""
    settings = {
        "estimator": None if estimator is None else name_of(estimator),
        "temperature": temperature,
    }
    return ", ".join(f"{name}: {is_}" for name, is_ in settings.items() if is_ is not None)
