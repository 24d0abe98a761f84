# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What `Subset` and `PlackettLuce` share: size of k categories, drawn without replacement."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.base import FamilyDistribution
from pyro_gumbel.estimators import straight_through_of
from pyro_gumbel.ops.autograd import zero_with_gradient
from pyro_gumbel.ops.logarithms import minus_p_log_p
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.ops.second_order import surrogate_of_vector

__all__ = [
    "MAX_ENUMERATED",
    "WithoutReplacement",
    "in_order",
    "is_shape_of_int",
    "second_order_sample",
]

MAX_ENUMERATED = 100_000  # outcomes
MOST_EXACT = 10  # categories up to which second order takes the exact mean
EXTRA_DRAWS = 16  # that estimate the mean of more categories


class WithoutReplacement(FamilyDistribution):
    """A discrete distribution over `size` of the categories, as a set or in order."""

    rsample: Any = absent(
        "would need a gradient, and discrete values have none",
        "write relax(distribution, 1.0).rsample(), or sample()",
    )

    takes_temperature = False
    has_rsample = False
    has_enumerate_support = True
    _integers = True

    def __init__(
        self,
        size: int,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._set_up(probs, logits, size=size, validate_args=validate_args)

    def _are_impossible(self, log_probs: Tensor) -> Tensor:
        """Which entries of a value are always 0, given log p over the dimensions of a value."""
        return log_probs.isneginf()

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value); off the support extended by first differences.

        With S the outcome nearest to the value, log P(S) + <value - S, log p>, log p held constant
        in the second term: equal to log P on the support, and differentiable in the value. The
        log_prob of an outcome of probability 0 is -inf, and passes no gradient.
        """
        self._validate_sample(value)
        value = cast(value, torch.promote_types(value.dtype, self._dtype))
        log_p = self.family.log_probs(self._logits)
        if len(self._event_shape) > 1:
            log_p = log_p.unsqueeze(-2)
        impossible = self._are_impossible(log_p)
        nearest, log_prob = self._nearest_and_log_prob(value.detach(), self._logits64)
        slopes = torch.where(impossible, 0.0, log_p.detach())
        events = tuple(range(-len(self._event_shape), 0))
        extended = cast(log_prob, value.dtype) + ((value - nearest) * slopes).sum(events)
        excluded = (impossible & (value > 0)).any(-1)
        excluded = excluded.any(-1) if len(events) > 1 else excluded
        return self._over_batch(torch.where(excluded, -math.inf, extended))

    def _nearest_and_log_prob(self, value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outcome S nearest to `value`, and log P(S)."""
        raise NotImplementedError

    def _choices(self, size: int) -> Tensor:
        """All choices of `size` categories, over the first dimension."""
        raise NotImplementedError

    def _number_of_choices(self, size: int) -> int:
        raise NotImplementedError

    @property
    def _only_size(self) -> int:
        """The size, if it is the same in the whole batch."""
        size: int = self.size
        return size

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All outcomes over a new first dimension, in lexicographic order.

        :raises NotImplementedError: for more than 100,000 outcomes, and for rankings of different
            lengths.
        """
        values = self._enumerated(self._only_size)
        return values.expand(-1, *self._batch_shape, *self._event_shape) if expand else values

    def _enumerated(self, size: int) -> Tensor:
        """All outcomes of that size over a new first dimension, and the batch of size 1."""
        number = self._number_of_choices(size)
        if number > MAX_ENUMERATED:
            raise NotImplementedError(
                f"{type(self).__name__}: enumeration is for up to {MAX_ENUMERATED:,} outcomes, "
                f"size={size} of {self._event_shape[-1]} has {number:,}; write "
                "infer={} at this site to sample it, or choose a smaller size"
            )
        outcomes = self._choices(size).to(self._parameter)
        ones = (1,) * len(self._batch_shape)
        return outcomes.reshape(outcomes.shape[:1] + ones + self._event_shape)

    def _outcomes_and_repeats(self) -> tuple[Tensor, Tensor | None]:
        """All outcomes, and how often each of them occurs there, if not once."""
        return self.enumerate_support(expand=False), None

    def entropy(self) -> Tensor:
        """-sum P log P in nats, by enumeration.

        :raises NotImplementedError: for more than 100,000 outcomes.
        """
        values, repeats = self._outcomes_and_repeats()
        terms = minus_p_log_p(self.log_prob(values))
        return (terms if repeats is None else terms / repeats).sum(0)

    @property
    def variance(self) -> Tensor:
        """p (1 - p), entry by entry, p the mean."""
        mean = self.mean
        return mean * (1 - mean)

    @property
    def mode(self) -> Tensor:
        """A most probable value: the `size` largest logits, of equals the first."""
        found = self.family.mode(self._logits, **self._size_arguments)
        mode = cast(found, self._parameter.dtype)
        return mode.expand(self._batch_shape + self._event_shape)

    @property
    def param_shape(self) -> torch.Size:
        """The shape of `probs` and `logits`."""
        return self._parameter_shape


def is_shape_of_int(size: Any) -> bool:
    """Whether `infer_shapes` was given the shape of the argument `size` instead of the number."""
    return isinstance(size, tuple) and not size


def second_order_sample(
    distribution: WithoutReplacement,
    draw: Callable[[torch.Size], Tensor],
    sample_shape: torch.Size,
) -> Tensor:
    """A draw with the gradient of the second-order surrogate of a vector.

    The exact mean of many categories is expensive. Of more than 10 it is estimated by the mean of
    16 more draws D', and its gradient by the mean of log P(D') (D' - c), c a constant. The loss is
    not evaluated at these draws, and the gradient is as unbiased as with the exact mean.

    :param draw: draws values without a gradient.
    """
    d, event_dim = distribution, len(distribution._event_shape)
    with torch.no_grad():
        value = draw(sample_shape)
        exact = d._event_shape[-1] <= MOST_EXACT
        extra = None if exact else draw(torch.Size((EXTRA_DRAWS, *sample_shape)))
    if extra is None:
        mean = cast(d.mean, value.dtype)
    else:
        weights = d.log_prob(extra).reshape(*extra.shape[:-event_dim], *[1] * event_dim)
        slopes = weights * (extra - extra.mean(-1, keepdim=True))  # the share of ones in a row
        mean = extra.mean(0) + zero_with_gradient(slopes.mean(0))
    surrogate = surrogate_of_vector(value, mean, d.log_prob(value), event_dim)
    return straight_through_of(value, surrogate)


def in_order(scores: Tensor, size: int, *, stable: bool = False) -> Tensor:
    """A one-hot row for each of the `size` largest scores, the largest first."""
    if stable:
        winners = scores.sort(dim=-1, descending=True, stable=True).indices[..., :size]
    else:
        winners = scores.topk(size, -1).indices
    rows = scores.new_zeros((*winners.shape, scores.shape[-1]))
    return rows.scatter(-1, winners.unsqueeze(-1), 1.0)
