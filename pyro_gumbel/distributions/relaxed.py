# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What relaxed distributions share: continuous, with an exact density and a pathwise gradient.

Each family has two, rankings the first only. Values of the first lie in the unit interval or on a
simplex, and cache their form in logit space, which does not saturate. Values of the second are that
form: they keep their density through every tensor operation. The densities are derived in
`pyro_gumbel.links`.
"""

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_gumbel._tracing import brief, in_eager_mode, in_program, known
from pyro_gumbel._validation import Temperature, check_value
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.base import FamilyDistribution
from pyro_gumbel.distributions.sample_cache import recall, recall_log_prob, remember
from pyro_gumbel.kernels import dispatch
from pyro_gumbel.links import Link
from pyro_gumbel.ops.density_mode import density_mode
from pyro_gumbel.ops.expectations import relaxed_entropy, softmax_mean, softmax_second_moments
from pyro_gumbel.ops.precision import cast

__all__ = ["NO_FORMULA", "USE_DRAWS", "Relaxed", "RelaxedLogits", "RelaxedOutcome", "RelaxedValue"]

NO_FORMULA = "has no exact formula here"
USE_DRAWS = "use the covariance of d.rsample((1000,))"


class Relaxed(FamilyDistribution):
    """A relaxed distribution, over values or in logit space."""

    has_rsample = True

    enumerate_support: Any = absent(
        "is of discrete values, and these are continuous",
        "use the straight-through class of the family, as relax(..., hard=True) makes it",
    )
    mean: Any = absent(NO_FORMULA, "write d.rsample((1000,)).mean(0) to estimate it")
    variance: Any = absent(NO_FORMULA, "write d.rsample((1000,)).var(0) to estimate it")
    entropy: Any = absent(
        NO_FORMULA, "write -d.log_prob(d.rsample((1000,))).mean(0) to estimate it"
    )
    mode: Any = absent(
        NO_FORMULA, "use that of Subset or PlackettLuce for the most probable choice"
    )

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._set_up(probs, logits, temperature=temperature, validate_args=validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw that is differentiable in the parameters."""
        raise NotImplementedError

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw like `rsample`'s from the same seed, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def _draw(
        self, sample_shape: Any, *, keep: bool, log_prob: bool, link: Link | None = None
    ) -> dispatch.Draw:
        """A draw over the batch.

        :param link: with the same values in logit space as the distribution's own, the default.
        """
        logits, tau = self._logits_and_tau
        return dispatch.draw(
            logits,
            tau,
            self.link if link is None else link,
            self.family.noise,
            self._sample_shape(sample_shape),
            self._batch_shape,
            keep=keep,
            log_prob=log_prob,
            near=self._cache_key.is_near(self._parameter),
        )

    def _as(self, cls: Any) -> Any:
        """The distribution of another class of the family with the same parameters."""
        new = object.__new__(cls)
        new.__dict__.update(self.__dict__)
        return new

    def _to_value(self, unconstrained: Tensor) -> Tensor:
        """The value with this form in logit space, in the parameter's dtype."""
        raise NotImplementedError

    def _to_unconstrained(self, value: Tensor) -> Tensor:
        """The form of a value in logit space, in float32 at least."""
        raise NotImplementedError

    def _log_density(self, value: Tensor, unconstrained: Tensor, *, of_values: bool) -> Tensor:
        return dispatch.log_density(
            value,
            unconstrained,
            *self._logits_and_tau,
            self.link,
            self._batch_shape,
            of_values=of_values,
        )


class RelaxedValue(Relaxed):
    """Relaxed values s. Their density is that of the form in logit space that they cache."""

    _exact: ClassVar[str]  # what to write for values that saturate

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw that is differentiable in the parameters."""
        dtype = self._parameter.dtype
        is_half = dtype.itemsize < 4
        drawn = self._draw(sample_shape, keep=is_half, log_prob=True)
        value = cast(drawn.value, dtype) if is_half else drawn.value
        v = self.link.inverse_inside if drawn.unconstrained is None else drawn.unconstrained
        key = self._cache_key  # before the others: another thread may ask for the temperature
        changing = [self._parameter] if self._has_number else [self._parameter, self._temperature]
        return remember(value, self.link, v, drawn.log_prob, key, *changing)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(s), exact for any value that `rsample` or `sample` of the family returned.

        A value without a cache (a copy, a slice, a user's own) is evaluated through an inverse
        clamped to the normal floats: finite, with finite gradients, on the boundary too.

        :warns UserWarning: for a value that is 0 or 1 in all entries and has no cache, with
            validation on. The density has no meaning there: a one-hot observation belongs to the
            discrete distribution, and a saturated draw to the classes in logit space.
        """
        if isinstance(value, Tensor):
            own = recall_log_prob(value, self._cache_key)
            if own is not None:
                return own if own.shape == self._batch_shape else self._over_batch(own)
        v = recall(value, self.link) if isinstance(value, Tensor) else None
        if not (v is None and self._is_seen_usual(value)):
            self._validate_sample(value)
            if v is None:
                self._warn_of_hard_values(value)
        if v is None:
            v = self._inverse(value)
        v = cast(v, torch.promote_types(v.dtype, self._dtype))
        return self._over_batch(self._log_density(value, v, of_values=True))

    def _to_value(self, unconstrained: Tensor) -> Tensor:
        value = cast(self.link.value(unconstrained), self._parameter.dtype)
        return remember(value, self.link, unconstrained)

    def _to_unconstrained(self, value: Tensor) -> Tensor:
        v = recall(value, self.link)
        v = self._inverse(value) if v is None else v
        return cast(v, torch.promote_types(v.dtype, self._dtype))

    def _inverse(self, value: Tensor) -> Tensor:
        return self.link.inverse(cast(value, torch.promote_types(value.dtype, self._dtype)))

    def _is_seen_usual(self, value: Any) -> bool:
        """Whether one look at a GPU shows a value to be in the support, and no part to be hard."""
        is_seen = isinstance(value, Tensor) and value.device.type == "cuda"
        if not (is_seen and self._validate_args and in_eager_mode()):
            return False
        check_value(
            type(self).__name__, value, self._batch_shape, self._event_shape, integers=False
        )
        hard = _are_hard(value) if self.link.event_dim else (value == 0) | (value == 1)
        return bool((self.support.check(value).all() & ~hard.any()).item())

    def _warn_of_hard_values(self, value: Tensor) -> None:
        """Warn if some of `value` is 0 or 1 in all entries, unless there is no other value."""
        if not self._validate_args or in_program():
            return
        if self.link.event_dim:  # few have an entry of 1, and are looked at whole
            has_one = value.amax(-1) == 1
            if not known(has_one.any(), otherwise=False) or not _are_hard(value[has_one]).any():
                return
        hard = _are_hard(value) if self.link.event_dim else (value == 0) | (value == 1)
        logits = self._logits.unsqueeze(-2) if len(self._event_shape) > 1 else self._logits
        if known((hard & ~self.link.is_point(logits)).any(), otherwise=False):
            warnings.warn(
                f"{type(self).__name__}: `value` must be a relaxed value, got one that is 0 or 1 "
                "in all entries and has no cached logits; its log_prob is that of a value nearby, "
                "and not comparable with the log probability of an outcome; for an observation "
                "write relaxed(poutine.condition(model, data=data), 0.5, hard=False), with the "
                f"condition inside; for a saturated draw that was copied or stored {self._exact}",
                stacklevel=3,
            )


def _are_hard(rows: Tensor) -> Tensor:
    """Which are 0 or 1 in all entries of the last dimension, and not 0 in all of them."""
    return ((rows == 0) | (rows == 1)).all(-1) & (rows == 1).any(-1)


class RelaxedLogits(Relaxed):
    """Relaxed values in logit space, v."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw that is differentiable in the parameters."""
        v = self._draw(sample_shape, keep=True, log_prob=False).unconstrained
        return cast(v, self._parameter.dtype)  # type: ignore[arg-type]

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(v)."""
        self._validate_sample(value)
        v = self._to_unconstrained(value)
        return self._over_batch(self._log_density(value, v, of_values=False))

    def _to_value(self, unconstrained: Tensor) -> Tensor:
        return cast(unconstrained, self._parameter.dtype)

    def _to_unconstrained(self, value: Tensor) -> Tensor:
        return cast(value, torch.promote_types(value.dtype, self._dtype))


class RelaxedOutcome(RelaxedValue):
    """A relaxed value of a family with a table of outcomes, binary or categorical.

    Its mean, variance, entropy and mode are known; `pyro_gumbel.ops.expectations` derives them.
    """

    _most_probable: ClassVar[str]  # what to write instead of a mode that does not exist

    def entropy(self) -> Tensor:
        """-E log_prob, the differential entropy in nats; 0 if one outcome has probability 1."""
        return entropy_of_outcomes(self, of_values=True)

    @property
    def mean(self) -> Tensor:
        """E s, exact; tends to `probs` as the temperature falls."""
        return self._expanded(self.family.from_one_hot(softmax_mean(*log_probs_and_tau(self))))

    @property
    def variance(self) -> Tensor:
        """The variance of each entry, by quadrature to 1e-12."""
        variances = self._covariances.diagonal(dim1=-2, dim2=-1).clamp(min=0)
        return self._expanded(self.family.from_one_hot(variances))

    @property
    def mode(self) -> Tensor:
        """The value at which the density is largest, differentiable in the parameters.

        :raises NotImplementedError: where there is none: below temperature k - 1, k the number of
            possible outcomes, the density is unbounded.
        """
        logits, temperature = log_probs_and_tau(self)
        bounded = temperature >= logits.isfinite().sum(-1) - 1
        if not known(bounded.all(), otherwise=True):
            raise NotImplementedError(
                f"{type(self).__name__}: `temperature` must be at least k - 1, with k possible "
                "outcomes, for a largest density, and below that it is unbounded; got "
                f"{brief(temperature)} with k up to {logits.shape[-1]}; {self._most_probable}"
            )
        return self._expanded(self.family.from_one_hot(density_mode(logits, temperature)))

    @property
    def _covariances(self) -> Tensor:
        logits, temperature = log_probs_and_tau(self)
        mean = softmax_mean(logits, temperature)
        products = mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return softmax_second_moments(logits, temperature) - products


def log_probs_and_tau(distribution: Relaxed) -> tuple[Tensor, Tensor]:
    """The log probabilities of the outcomes over a last dimension, and the temperature."""
    log_probs = distribution.family.log_probs(distribution._logits64)
    return log_probs, distribution._temperature64


def entropy_of_outcomes(distribution: Relaxed, *, of_values: bool) -> Tensor:
    """The differential entropy of relaxed outcomes, of values or in logit space."""
    exact = relaxed_entropy(*log_probs_and_tau(distribution), of_values=of_values)
    dtype = distribution._dtype
    return distribution._over_batch(cast(exact.clamp(min=torch.finfo(dtype).min), dtype))
