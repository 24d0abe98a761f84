# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How a mean-field guide parametrises a discrete site. `AutoRelaxed` asks here.

A family of `probs` and `logits` has its logits. Counts register a `MeanField` of their own, in the
file of their class.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_gumbel._validation import Temperature, fitted
from pyro_gumbel.distributions.base import FamilyDistribution
from pyro_gumbel.distributions.straight_through import FamilyStraightThrough
from pyro_gumbel.estimators import Estimator

__all__ = [
    "FamilyMeanField",
    "MeanField",
    "TrialsMeanField",
    "mean_field_of",
    "parameter_names",
    "register_mean_field",
]


class MeanField:
    """A distribution as a function of free real parameters, which start at a prior.

    :param prior: a straight-through or relaxed distribution, without wrappers.
    :ivar names: of the parameters.
    """

    names: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, prior: Any) -> None:
        self.prior = prior

    @property
    def event_dim(self) -> int:
        """How many dimensions of the parameters are not of the batch."""
        return len(self.prior.event_shape)

    @property
    def taken_over(self) -> dict[str, Tensor]:
        """What the guide takes over from the prior as it is, by the name of the argument."""
        return {}

    def start(self) -> dict[str, Tensor]:
        """The parameters of the prior, over its whole batch, by name."""
        raise NotImplementedError

    def require_same_support(self, priors: list[Any]) -> None:
        """Raise where the priors of several runs allow different values."""

    def start_at_mean(self, priors: list[Any]) -> dict[str, Tensor]:
        """The parameters to start at where the prior differs from run to run: their means.

        :param priors: those of several runs, this one among them.
        """
        starts = [type(self)(prior).start() for prior in priors]
        return {name: torch.stack([start[name] for start in starts]).mean(0) for name in self.names}

    def distribution(
        self,
        parameters: dict[str, Tensor],
        temperature: Temperature | None,
        estimator: str | Estimator | None,
        event_dim: int,
    ) -> Any:
        """The guide's distribution with these parameters.

        :param event_dim: how many dimensions of its batch `.to_event` takes.
        """
        raise NotImplementedError


class FamilyMeanField(MeanField):
    """Of a family, by its logits."""

    @property
    def event_dim(self) -> int:
        return self.prior.family.event_dim

    @property
    def taken_over(self) -> dict[str, Tensor]:
        size = self.prior._size_arguments.get("size")
        return {"size": size} if isinstance(size, Tensor) else {}

    def start(self) -> dict[str, Tensor]:
        return {"logits": self.prior.logits.detach()}

    def require_same_support(self, priors: list[Any]) -> None:
        kept = [prior._size_arguments.get("size") for prior in priors]
        lengths = [size for size in kept if isinstance(size, Tensor)]
        if got := _first_difference(lengths):
            raise ValueError(
                f"`size` must be the same in every run, got {got}; write a guide of its own for "
                "this site, which computes the lengths of the rankings as the model does"
            )

    def start_at_mean(self, priors: list[Any]) -> dict[str, Tensor]:
        """The logits of mean probabilities, with the uniform distribution as one more prior."""
        family, probs = self.prior.family, torch.stack([each.probs for each in priors])
        mean = (probs.sum(0) + 1 / family.number_of_outcomes(probs)) / (len(priors) + 1)
        return {"logits": family.logits_of(mean)}

    def distribution(
        self,
        parameters: dict[str, Tensor],
        temperature: Temperature | None,
        estimator: str | Estimator | None,
        event_dim: int,
    ) -> Any:
        prior, logits = self.prior, parameters["logits"]
        batch_shape = logits.shape[: logits.dim() - self.event_dim - event_dim]
        tau = fitted(temperature, batch_shape, event_dim)
        keywords: dict[str, Any] = {"logits": logits, "validate_args": prior._validate_args}
        keywords |= prior._own_arguments | prior._size_arguments
        if isinstance(prior, FamilyStraightThrough):
            keywords["estimator"] = estimator
            if tau is None and estimator is None:
                tau = prior.family.default_temperature
        return type(prior)(tau, **keywords)


class TrialsMeanField(MeanField):
    """Of counts of `total_count` trials, by logits, the trials being those of the prior."""

    def require_same_support(self, priors: list[Any]) -> None:
        totals = [torch.as_tensor(prior.total_count) for prior in priors]
        if got := _first_difference(totals):
            raise ValueError(
                f"`total_count` must be the same in every run, got {got}; where it is a latent "
                "Poisson count n, as in thinning, a guide of independent sites can draw a part "
                "larger than n, and its ELBO is -inf; write two independent sites, "
                'part = pyro.sample("part", dist.Poisson(rate * p)) and '
                'rest = pyro.sample("rest", dist.Poisson(rate * (1 - p))), and n = part + rest'
            )

    @property
    def taken_over(self) -> dict[str, Tensor]:
        return {"total_count": torch.as_tensor(self.total_count)}

    @property
    def total_count(self) -> Any:
        """That of the prior; a single number where all are equal, also in other subsamples."""
        total = self.prior.total_count
        if isinstance(total, Tensor) and total.numel() and (total == total.flatten()[0]).all():
            return total.flatten()[0]
        return total


def _first_difference(tensors: list[Tensor]) -> str:
    """What two tensors have where the first one differs from another; empty if none does."""
    for other in tensors[1:]:
        first = tensors[0]
        if first.shape != other.shape:
            return f"the shapes {tuple(first.shape)} and {tuple(other.shape)}"
        if (differ := first != other).any():
            return f"{first[differ][0].item():g} and {other[differ][0].item():g}"
    return ""


_REGISTERED: dict[type, type[MeanField]] = {}


def register_mean_field(cls: type, mean_field: type[MeanField]) -> None:
    """Say how `AutoRelaxed` parametrises the sites of a class, but not those of its subclasses."""
    _REGISTERED[cls] = mean_field


def parameter_names() -> list[str]:
    """The names of the parameters of all forms."""
    forms: list[type[MeanField]] = [FamilyMeanField, *_REGISTERED.values()]
    return sorted({name for form in forms for name in form.names})


def mean_field_of(prior: Any) -> MeanField:
    """The mean-field form of a straight-through or relaxed distribution, without wrappers.

    :raises TypeError: for a class that has none.
    """
    if isinstance(prior, FamilyDistribution):
        return FamilyMeanField(prior)
    if type(prior) not in _REGISTERED:
        given = type(prior).__name__.removesuffix("StraightThrough")
        raise TypeError(
            f"expected a distribution that AutoRelaxed has a guide for, got a {given}; write "
            "guide = AutoGuideList(model), "
            "guide.append(AutoRelaxed(poutine.block(model, hide=[...]))) for the other sites, and "
            "guide.append(own), where own(...) is a function that draws this site, inside "
            "guide.plates[...] if the site is in a plate"
        )
    return _REGISTERED[type(prior)](prior)
