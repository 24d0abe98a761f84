# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What straight-through distributions share: discrete, with samples that carry a gradient.

A straight-through distribution *is* the discrete distribution: it has its probabilities, mean,
entropy, support and divergences. It adds `rsample`, whose forward value is exactly a discrete
sample and whose backward pass is an estimator's, and a `log_prob` that is differentiable in the
value.
"""

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_gumbel._tracing import are_seen_finite, ends, in_program
from pyro_gumbel._validation import Temperature, require
from pyro_gumbel.distributions.base import FamilyDistribution
from pyro_gumbel.distributions.sample_cache import recall, remember
from pyro_gumbel.estimators import (
    Estimator,
    gumbel_softmax,
    name_of,
    require_suited,
    resolved_for_family,
    second_order,
    straight_through_of,
    warn_of_temperature,
)
from pyro_gumbel.kernels import dispatch
from pyro_gumbel.ops.logarithms import minus_p_log_p
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.tensors.deferred import deferred
from pyro_gumbel.tensors.drawn_sample import KnownDraw, watched
from pyro_gumbel.tensors.index_tensor import MOST, OutcomeTensor, carrying, collapsed
from pyro_gumbel.tensors.outcomes import CategoricalDraw, Outcomes
from pyro_gumbel.tensors.subclass import plain

__all__ = [
    "PATHWISE",
    "FamilyStraightThrough",
    "StraightThrough",
    "StraightThroughOutcome",
    "without_impossible",
]

PATHWISE = "returned by rsample"  # the key of the cache of such a sample


class StraightThrough:
    """Tells samples of `rsample` from other values; mixed in before the discrete class.

    Pyro weighs an enumerated value of a guide by its score function, but not where the class has an
    `rsample`. So what `rsample` returned is marked.
    """

    has_rsample = True

    def _pathwise(self: Any, sample: Tensor) -> Tensor:
        """A draw that carries the mark of `rsample`. In a Pyro program it is watched."""
        remember(sample, PATHWISE, True)
        return watched(sample, self._known_draw()) if am_i_wrapped() else sample

    def _known_draw(self: Any) -> KnownDraw | None:
        """What gives the draw outcomes; None where it has none."""
        return None

    def _is_pathwise(self: Any, value: Tensor) -> bool:
        """Whether a value has a gradient, or `rsample` returned it."""
        return value.requires_grad or bool(recall(value, PATHWISE))

    def score_parts(self: Any, value: Tensor) -> ScoreParts:
        """Pathwise for what `rsample` returned; the score function for an enumerated value."""
        log_prob = self.log_prob(value)
        if self._is_pathwise(value):
            return ScoreParts(log_prob, score_function=0, entropy_term=log_prob)
        return ScoreParts(log_prob, score_function=log_prob, entropy_term=0)


class FamilyStraightThrough(FamilyDistribution):
    """A straight-through distribution of a family; mixed in before the discrete class."""

    has_rsample = True
    _pathwise = StraightThrough._pathwise
    _known_draw = StraightThrough._known_draw
    _is_pathwise = StraightThrough._is_pathwise
    score_parts = StraightThrough.score_parts

    takes_temperature = True
    needs_temperature = False
    _integers = True

    def __init__(
        self,
        temperature: Temperature | None = None,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
        *,
        estimator: str | Estimator | None = None,
    ) -> None:
        self.estimator: Estimator = gumbel_softmax
        if estimator is not None or temperature is None:
            self.estimator = resolved_for_family(type(self).__name__, temperature, estimator)
        self._set_up(probs, logits, temperature=temperature, validate_args=validate_args)
        self._warn_of(temperature)

    def _set_up_with_size(
        self,
        temperature: Temperature | None,
        size: int | Tensor,
        probs: Tensor | None,
        logits: Tensor | None,
        validate_args: bool | None,
        estimator: str | Estimator | None,
        rows: int | None = None,
    ) -> None:
        self.estimator = resolved_for_family(type(self).__name__, temperature, estimator)
        self._set_up(
            probs,
            logits,
            temperature=temperature,
            size=size,
            rows=rows,
            validate_args=validate_args,
        )
        if self.estimator is not gumbel_softmax:
            require_suited(type(self).__name__, self.estimator, self.link)
        self._warn_of(temperature)

    def _warn_of(self, temperature: Temperature | None) -> None:
        """Warn where the estimator does not suit the temperature, as it was given."""
        if self.estimator is gumbel_softmax or not self._validate_args or in_program():
            return
        # A number is read without waiting for a GPU.
        tau = temperature if isinstance(temperature, float) else self._temperature_to_read
        warn_of_temperature(self.estimator, tau)

    def _brief_temperature(self) -> dict[str, Any]:
        if self._temperature is None:
            return {"estimator": name_of(self.estimator)}
        return super()._brief_temperature()

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A discrete sample whose backward pass is that of the estimator's surrogate."""
        shape, dtype = self._sample_shape(sample_shape), self._parameter.dtype
        if self.estimator is gumbel_softmax:
            sample = self._gumbel_softmax(shape)
        elif self.estimator is second_order:
            sample = self._second_order(shape)
        else:
            sample = self._estimated(shape)
        return self._pathwise(sample if sample.dtype == dtype else cast(sample, dtype))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """The draw that `rsample` makes from the same seed, without a gradient."""
        shape = self._sample_shape(sample_shape)
        with torch.no_grad():
            return self._hard(shape).to(self._parameter.dtype)

    def _hard(self, sample_shape: torch.Size) -> Tensor:
        """A draw without a gradient, called under no_grad, which leaves forward mode on."""
        if self.estimator is gumbel_softmax or self.estimator is second_order:
            return self._gumbel_softmax(sample_shape).detach()
        return self.link.hard(self._contest(sample_shape)[1])

    def _gumbel_softmax(self, sample_shape: torch.Size) -> Tensor:
        """A draw with the gradient of the relaxed value."""
        logits, tau = self._logits_and_tau
        near = self._cache_key.is_near(self._parameter)
        return dispatch.straight_through_draw(
            logits, tau, self.link, self.family.noise, sample_shape, self._batch_shape, near
        )

    def _second_order(self, sample_shape: torch.Size) -> Tensor:
        """A draw with the gradient of the second-order surrogate."""
        raise NotImplementedError

    def _estimated(self, sample_shape: torch.Size) -> Tensor:
        """A draw with the gradient of any estimator."""
        logits, perturbed = self._contest(sample_shape)
        hard = self.link.hard(perturbed.detach())
        # A function of a user gets no tensor that distributions share.
        tau = self._tau.clone() if self._has_number else self._tau
        surrogate = self.estimator(logits, tau, perturbed, hard, self.link)
        sample = straight_through_of(hard, surrogate)
        checks = self._validate_args and not in_program()
        if checks and not all(map(math.isfinite, ends(surrogate))):
            require(
                surrogate.isfinite() | logits.isinf(),
                f"{type(self).__name__}: `estimator` must return a surrogate that is finite where "
                "the logits are",
                surrogate,
                "write surrogate.nan_to_num(0.0) to pass no gradient there",
            )
        return sample

    def _contest(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        """x and z = x + noise, both of the full shape of a draw: the sample is what z chooses."""
        logits, perturbed = self._perturb(sample_shape)
        return logits.expand(perturbed.shape), perturbed


class StraightThroughOutcome(FamilyStraightThrough):
    """For a family with a table of outcomes, binary or categorical."""

    def _known_draw(self) -> KnownDraw | None:
        return _Drawn(self)

    def _second_order(self, sample_shape: torch.Size) -> Tensor:
        arguments = self._logits, self.link, self.family.noise, sample_shape, self._batch_shape
        fused = dispatch.second_order_draw(*arguments)
        if fused is not None:
            return fused
        with torch.no_grad():
            hard = self._hard(sample_shape)
        return self.family.with_second_order_gradient(hard, self._logits.expand(hard.shape))

    def _estimated(self, sample_shape: torch.Size) -> Tensor:
        fused = self._fused(sample_shape)
        return super()._estimated(sample_shape) if fused is None else fused

    def _hard(self, sample_shape: torch.Size) -> Tensor:
        if self.estimator is gumbel_softmax or self.estimator is second_order:
            return super()._hard(sample_shape)
        fused = self._fused(sample_shape)
        return super()._hard(sample_shape) if fused is None else fused.detach()

    def _fused(self, sample_shape: torch.Size) -> Tensor | None:
        """A draw with the gradient of an estimator, if a kernel does it."""
        arguments = *self._logits_and_tau, self.link, self.family.noise
        return dispatch.estimated_draw(*arguments, sample_shape, self._batch_shape, self.estimator)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value) = <value, log p>, linear in the value and differentiable in it.

        The log_prob of an outcome of probability 0 is -inf. Where the value is 0 there it adds 0,
        and it passes no gradient.
        """
        self._validate_sample(plain(value))
        value = cast(value, torch.promote_types(value.dtype, self._dtype))
        if not isinstance(value, OutcomeTensor):
            return self._log_prob(plain(value))
        linear = self._log_prob(plain(collapsed(value, linear=True)))
        return deferred(linear, self._log_prob, value)

    def _log_prob(self, value: Tensor) -> Tensor:
        weights = self.family.one_hot(value)
        log_probs = self.family.log_probs(self._logits)
        if are_seen_finite(log_probs):
            return self._over_batch((weights * log_probs).sum(-1))
        impossible, log_probs = without_impossible(log_probs)
        log_prob = (weights * log_probs).sum(-1)
        excluded = (impossible & (weights > 0)).any(-1)
        return self._over_batch(torch.where(excluded, -torch.inf, log_prob))

    def entropy(self) -> Tensor:
        """-sum p log p in nats, finite with finite gradients at probabilities of 0 and 1."""
        log_probs = self.family.log_probs(self._logits)
        return self._over_batch(minus_p_log_p(log_probs).sum(-1))

    @property
    def mean(self) -> Tensor:
        """The probabilities."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """p (1 - p), entry by entry."""
        return self.probs * (1 - self.probs)

    @property
    def mode(self) -> Tensor:
        """A most probable value; of equals the first (of a binary variable 1)."""
        return self._expanded(self.family.mode(self._logits))

    @property
    def param_shape(self) -> torch.Size:
        """The shape of `probs` and `logits`."""
        return self._parameter_shape

    @property
    def _param(self) -> Tensor:
        """The given parameter over the whole batch, as torch's discrete classes read it."""
        return self._parameter.expand(self._parameter_shape)


def without_impossible(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Which outcomes are impossible, and the log probabilities, 0 for those."""
    impossible = log_probs.isneginf()
    return impossible, torch.where(impossible, 0.0, log_probs)


class _Drawn:
    """What is known of a draw of binary or one-hot values: the distribution that drew it."""

    def __init__(self, distribution: StraightThroughOutcome) -> None:
        self._distribution = distribution
        self._draw: Callable[[], CategoricalDraw | None] = lambda: None  # a weak reference

    @property
    def is_complete(self) -> bool:
        """Whether it has outcomes: there are not too many."""
        shape = self._distribution._event_shape
        return not shape or shape[-1] ** 2 <= MOST

    def with_outcomes(self, value: Tensor) -> Tensor:
        """The draw with outcomes; as it is if they would be too many."""
        d, value = self._distribution, plain(value)
        one_hot = d.family.one_hot(value)
        k, rank = one_hot.shape[-1], one_hot.dim() - 1
        if k * k > MOST or not value.requires_grad:
            return value
        # A model that reads the draw of a guide reads the one that other sites there are made of.
        draw = self._draw() or CategoricalDraw(one_hot, lambda: d.family.log_probs(d._logits).exp())
        self._draw = weakref.ref(draw)
        every = torch.eye(k, dtype=value.dtype, device=value.device)
        table = d.family.from_one_hot(every).reshape(k, *[1] * rank, *value.shape[rank:])
        elements = draw.elements.reshape(draw.elements.shape + (1,) * (value.dim() - rank))
        # The draw has the gradient now, and the numbers have none.
        return carrying(value.detach(), [Outcomes((draw,), elements, table)])

    def is_among(self, draws: Any) -> bool:
        """Whether the draw is one of these."""
        draw = self._draw()
        return draw is not None and draw in draws
