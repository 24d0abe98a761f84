# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The soft column: continuous laws with an exact density and a pathwise gradient.

Each comes twice: over soft values, which remember the coordinates they were drawn at, and over
the coordinates themselves, which survive any tensor operation. The densities are derived in
`pyro_gumbel.links`.
"""

import math
import warnings
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch import RelaxedBernoulli as PyroRelaxedBernoulli
from pyro.distributions.torch import RelaxedOneHotCategorical as PyroRelaxedOneHotCategorical
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform, SigmoidTransform, Transform

from pyro_gumbel._tracing import brief, known
from pyro_gumbel._validation import Temperature, check_value, require
from pyro_gumbel.constraints import (
    hypersimplex,
    log_simplex,
    logit_hypersimplex,
    simplex,
    simplex_rows,
)
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.base import MOfK, OneBit, OneOfK, Ranking, Row
from pyro_gumbel.distributions.sample_cache import Density, recall, recall_density, remember
from pyro_gumbel.kernels import cpu as kernels
from pyro_gumbel.ops.density_mode import density_mode
from pyro_gumbel.ops.expectations import (
    log_softmax_mean,
    relaxed_entropy,
    softmax_mean,
    softmax_second_moments,
)
from pyro_gumbel.ops.noise import given_untaken_winner
from pyro_gumbel.ops.precision import cast

__all__ = [
    "Coordinates",
    "ExpRelaxedCategorical",
    "LogitRelaxedBernoulli",
    "LogitRelaxedSubset",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "RelaxedPlackettLuce",
    "RelaxedSubset",
    "Soft",
]


_NO_FORM = "has no exact formula here"


class Soft(Row):
    """The soft law of a row, mixed in before the row: what values and coordinates share."""

    enumerate_support: Any = absent(
        "is of discrete values, and these are continuous",
        "use the straight-through class of the family, as relax(..., hard=True) makes it",
    )

    _is_drawn_at_once: ClassVar[bool] = True  # by the formulas of `pyro_gumbel.kernels.cpu`

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        Row.__init__(self, probs, logits, temperature=temperature, validate_args=validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw that is differentiable in the parameters."""
        if self._is_drawn_at_once and kernels.apply_to(self._raw, self._raw_temperature):
            shapes = self._sample_shape(sample_shape), self._batch_shape
            values = isinstance(self, _Values)
            keep = not values or self._raw.dtype != self._dtype
            drawn = kernels.draw(self._x, self._tau, self.link, *shapes, keep=keep, score=values)
            return self._value_of(*drawn)
        return self._value_at(self._draw_coordinates(sample_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw like `rsample`'s from the same seed, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def _draw_coordinates(self, sample_shape: Any) -> Tensor:
        return self.link.unconstrained(self._perturbed(sample_shape), self._tau)

    def _value_of(self, s: Tensor, v: Tensor | None, density: Tensor | None) -> Tensor:
        """The value of a draw, from what it gives."""
        raise NotImplementedError

    def _value_at(self, coordinates: Tensor) -> Tensor:
        """The value with these coordinates, in the parameter's dtype."""
        raise NotImplementedError

    def _coordinates_of(self, value: Tensor) -> Tensor:
        """The inverse, in float32 at least."""
        raise NotImplementedError

    def _score(
        self, v: Tensor, value: Tensor, low: float, high: float, *, of_values: bool
    ) -> Tensor:
        """The density at v, or -inf where `value` leaves the face that the law lives on."""
        x = self._location
        if self._is_drawn_at_once and kernels.apply_to(v, self._raw, self._raw_temperature):
            arguments = (v, x, self._tau, self.link, self._batch_shape)
            at_once = kernels.log_density(*arguments, of_values=of_values)
            if at_once is not None:
                return at_once
        v = self.link.finite(v)
        density = self.link.log_density(v, x, self._tau, of_values=of_values)
        off_face = self.link.is_impossible(value, x, low, high)
        return torch.where(off_face, -torch.inf, density)


class _Values(Soft):
    """Soft values s, scored at the coordinates that they remember or else at a clamped inverse."""

    _exact: ClassVar[str]  # what to write for values that saturate

    def _value_at(self, coordinates: Tensor) -> Tensor:
        value = cast(self.link.value(coordinates), self._raw.dtype)
        return remember(value, self.link, coordinates)

    def _value_of(self, s: Tensor, v: Tensor | None, density: Tensor | None) -> Tensor:
        own = None if density is None else Density(density, self._parameters)
        coordinates = self.link.inverse_inside if v is None else v
        return remember(cast(s, self._raw.dtype), self.link, coordinates, own)

    def _coordinates_of(self, value: Tensor, *, scored: bool = False) -> Tensor:
        v = recall(value, self.link)
        if v is None:
            if scored:
                self._warn_of_hard_values(value)
            v = self.link.inverse(cast(value, torch.promote_types(value.dtype, self._dtype)))
        return cast(v, torch.promote_types(v.dtype, self._dtype))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(s), exact for any value that `rsample` or `sample` of the family returned.

        A value that remembers nothing (a copy, a slice, a user's own) is scored through an
        inverse clamped to the normal floats: finite, with finite gradients, on the boundary too.

        :warns UserWarning: for a value that is 0 or 1 in all entries and remembers nothing, where
            validation is on. The density has no meaning there: a one-hot observation belongs to
            the discrete distribution, and a saturated draw to the classes in logit space.
        """
        own = recall_density(value, self._parameters) if isinstance(value, Tensor) else None
        if own is not None:
            return self._over_batch(own)
        self._validate_sample(value)
        v = self._coordinates_of(value, scored=True)
        return self._over_batch(self._score(v, value, 0.0, 1.0, of_values=True))

    def _warn_of_hard_values(self, value: Tensor) -> None:
        """Warn if some of `value` is 0 or 1 in all entries, unless there is no other value."""
        if not self._checks_values:
            return
        if self.link.event_dim:  # few have an entry of 1, and are looked at whole
            has_one = value.amax(-1) == 1
            if not known(has_one.any(), otherwise=False) or not _are_hard(value[has_one]).any():
                return
        hard = _are_hard(value) if self.link.event_dim else (value == 0) | (value == 1)
        if known((hard & ~self.link.is_point(self._location)).any(), otherwise=False):
            warnings.warn(
                f"{type(self).__name__}: `value` must be a relaxed value, got one that is 0 or 1 "
                "in all entries and remembers no draw; its log_prob is that of a value nearby, and "
                "not comparable with the log probability of an outcome; for an observation write "
                "relaxed(poutine.condition(model, data=data), 0.5, hard=False), with condition "
                f"inside; for a saturated draw that was copied or stored {self._exact}",
                stacklevel=4,
            )


def _are_hard(rows: Tensor) -> Tensor:
    """Which are 0 or 1 in all entries of the last dimension."""
    return ((rows == 0) | (rows == 1)).all(-1)


class Coordinates(Soft):
    """The coordinates v as values."""

    def _value_of(self, s: Tensor, v: Tensor | None, density: Tensor | None) -> Tensor:
        return self._value_at(v)  # type: ignore[arg-type]

    def _value_at(self, coordinates: Tensor) -> Tensor:
        return cast(coordinates, self._raw.dtype)

    def _coordinates_of(self, value: Tensor) -> Tensor:
        return cast(value, torch.promote_types(value.dtype, self._dtype))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(v)."""
        self._validate_sample(value)
        v = self._coordinates_of(value)
        return self._over_batch(self._score(v, value, -torch.inf, torch.inf, of_values=False))


class _OfOne(Soft):
    """One outcome of a few, of which all is known that `pyro_gumbel.ops.expectations` derives."""

    def entropy(self) -> Tensor:
        """-E log_prob, the differential entropy in nats; 0 where the law is a point."""
        exact = relaxed_entropy(*self._outcomes, of_values=isinstance(self, _Values))
        lowest = torch.finfo(self._dtype).min
        return self._over_batch(cast(exact.clamp(min=lowest), self._dtype))

    @property
    def _outcomes(self) -> tuple[Tensor, Tensor]:
        """Logits of the outcomes over a last dimension, and the temperature."""
        return self._log_masses(self._wide_x), cast(self.temperature, torch.float64)


class _ValuesOfOne(_OfOne, _Values):
    """One outcome of a few, as a soft value."""

    _most_probable: ClassVar[str]  # what to write instead of a mode that does not exist

    def _as(self, cls: Any) -> Any:
        """The distribution of another class of the family that has all that this one has."""
        new = object.__new__(cls)
        new.__dict__.update(self.__dict__)
        return new

    @property
    def mean(self) -> Tensor:
        """E s, exact; tends to `probs` as the temperature falls."""
        return self._like_param(self._from_one_hot(softmax_mean(*self._outcomes)))

    @property
    def variance(self) -> Tensor:
        """The variance of each entry, to 1e-13."""
        variances = self._covariances.diagonal(dim1=-2, dim2=-1).clamp(min=0)
        return self._like_param(self._from_one_hot(variances))

    @property
    def _covariances(self) -> Tensor:
        mean = softmax_mean(*self._outcomes)
        return softmax_second_moments(*self._outcomes) - mean.unsqueeze(-1) * mean.unsqueeze(-2)

    @property
    def mode(self) -> Tensor:
        """The value at which the density is largest, differentiable in the parameters.

        :raises NotImplementedError: where there is none: below temperature k - 1, k the number of
            possible outcomes, the density is unbounded.
        """
        logits, temperature = self._outcomes
        bounded = temperature >= logits.isfinite().sum(-1) - 1
        if not known(bounded.all(), otherwise=True):
            raise NotImplementedError(
                f"{type(self).__name__}: `temperature` must be at least k - 1, with k possible "
                "outcomes, for a largest density, and below that it is unbounded; got "
                f"{brief(temperature)} with k up to {logits.shape[-1]}; {self._most_probable}"
            )
        return self._like_param(self._from_one_hot(density_mode(logits, temperature)))


class _Bit(_OfOne):
    """One bit, whose coordinate v = (x + L) / tau is logistic."""

    def _probability_below(self, v: Tensor) -> Tensor:
        x, end = self._x, v.isinf()
        height = torch.where(x.isinf(), 0.0, self._tau * torch.where(end, 0.0, v)) - x
        at_end = (v > 0) | x.isneginf()
        return self._over_batch(torch.where(end, at_end.to(height.dtype), height.sigmoid()))

    def _quantile(self, probability: Tensor) -> Tensor:
        owner = f"{type(self).__name__}.icdf"
        check_value(owner, probability, self._batch_shape, self._event_shape, integers=False)
        if self._checks_values:
            require(
                (probability >= 0) & (probability <= 1),
                f"{owner}: `value` must be a probability, in [0, 1]",
                probability,
                "write .cdf(value) if this is a value of the variable",
            )
        x, p = self._x, cast(probability, torch.promote_types(probability.dtype, self._dtype))
        end = (p <= 0) | (p >= 1)
        noise = torch.logit(torch.where(end, 0.5, p))
        quantile = self.link.unconstrained(x + noise, self._tau)
        at_end = end & x.isfinite()
        quantile = torch.where(at_end, torch.where(p <= 0, -torch.inf, torch.inf), quantile)
        return self._over_batch(quantile)


class _OfSize(Soft):
    """`size` of the categories; mixed in before values or coordinates."""

    mean: Any = absent(_NO_FORM, "write d.rsample((1000,)).mean(0) to estimate it")
    variance: Any = absent(_NO_FORM, "write d.rsample((1000,)).var(0) to estimate it")
    covariance_matrix: Any = absent(_NO_FORM, "use the covariance of d.rsample((1000,))")
    entropy: Any = absent(_NO_FORM, "write -d.log_prob(d.rsample((1000,))).mean(0) to estimate it")
    mode: Any = absent(_NO_FORM, "use that of Subset or PlackettLuce for the most probable choice")

    def __init__(
        self,
        temperature: Temperature,
        size: int,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        Row.__init__(
            self, probs, logits, temperature=temperature, size=size, validate_args=validate_args
        )


class RelaxedBernoulli(_Bit, _ValuesOfOne, OneBit, PyroRelaxedBernoulli):
    r"""A bit relaxed to the unit interval: s = sigmoid((x + L) / tau), L standard logistic.

    With v = logit(s), sigma the sigmoid and d = x - tau v::

        log p(s) = log tau + log sigma(d) sigma(-d) - log sigma(v) sigma(-v)

    P(s > 1/2) = sigmoid(x) at every temperature. The binary Concrete distribution of Maddison,
    Mnih and Teh, "The Concrete distribution" (2017), https://arxiv.org/abs/1611.00712, appendix B.

    >>> d = RelaxedBernoulli(0.5, logits=torch.zeros(3))
    >>> d.log_prob(d.rsample()).shape
    torch.Size([3])

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape, or a
        function without arguments that returns one, called once. An object that torch functions
        take for a tensor, by `__torch_function__`, becomes that tensor.
    :param probs: the probability of 1, in [0, 1]; its shape is the batch shape.
    :param logits: its log-odds x, real or infinite; exactly one of the two is given.
    :param validate_args: whether argument and sample *values* are checked; None for the default
        of `torch.distributions`. Shapes and types are always checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them.
    """

    support = constraints.unit_interval
    _support_text = "in [0, 1]"
    _remedy = "write value.sigmoid() if these are logits, or use LogitRelaxedBernoulli"
    _exact = "use LogitRelaxedBernoulli, which does not saturate"
    _most_probable = "write probs.round() for the more probable bit, the probs.argmax of two"

    @property
    def base_dist(self) -> "LogitRelaxedBernoulli":
        """The distribution of logit(s), with the same parameters."""
        return self._as(LogitRelaxedBernoulli)

    @property
    def transforms(self) -> list[Transform]:
        """From a value of `base_dist` to s."""
        return [SigmoidTransform()]

    def cdf(self, value: Tensor) -> Tensor:
        """P(S <= value) = sigmoid(tau logit(value) - x)."""
        self._validate_sample(value)
        v = recall(value, self.link)
        if v is None:
            s = cast(value, torch.promote_types(value.dtype, self._dtype))
            end = (s <= 0) | (s >= 1)
            v = torch.logit(torch.where(end, 0.5, s))
            v = torch.where(end, torch.where(s <= 0, -torch.inf, torch.inf), v)
        return self._probability_below(v)

    def icdf(self, value: Tensor) -> Tensor:
        """The s with P(S <= s) = `value`: sigmoid((x + logit(value)) / tau)."""
        return self._value_at(self._quantile(value))


class LogitRelaxedBernoulli(_Bit, Coordinates, OneBit, TorchDistribution):
    r"""The logit of a `RelaxedBernoulli`: v = (x + L) / tau, on the real line.

    ::

        log p(v) = log tau + log sigma(d) sigma(-d),    d = x - tau v

    Does not saturate: the site to use at low temperature under NUTS, in an autoguide, or wherever
    a value is copied or stored. Maddison, Mnih and Teh (2017), https://arxiv.org/abs/1611.00712.

    >>> LogitRelaxedBernoulli(0.1, probs=torch.tensor(0.7)).sample().sigmoid().shape
    torch.Size([])

    :param temperature: tau > 0, as in `RelaxedBernoulli`.
    :param probs: the probability of 1, in [0, 1]; its shape is the batch shape.
    :param logits: its log-odds x; exactly one of the two is given.
    :param validate_args: as in `RelaxedBernoulli`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them.
    """

    support = constraints.real
    _support_text = "real"
    _remedy = "write torch.logit(value) if this is a soft bit, or use RelaxedBernoulli"

    @property
    def mean(self) -> Tensor:
        """x / tau."""
        return self._like_param(self.link.unconstrained(self._x, self._tau))

    @property
    def mode(self) -> Tensor:
        """x / tau."""
        return self.mean

    @property
    def variance(self) -> Tensor:
        """pi^2 / (3 tau^2)."""
        variance = math.pi**2 / 3 / self._tau**2
        return self._like_param(torch.where(self._x.isinf(), 0.0, variance))

    def cdf(self, value: Tensor) -> Tensor:
        """P(V <= value) = sigmoid(tau value - x)."""
        self._validate_sample(value)
        return self._probability_below(self._coordinates_of(value))

    def icdf(self, value: Tensor) -> Tensor:
        """The v with P(V <= v) = `value`: (x + logit(value)) / tau."""
        return self._value_at(self._quantile(value))


class RelaxedCategorical(_ValuesOfOne, OneOfK, PyroRelaxedOneHotCategorical):
    r"""A one-hot vector relaxed to the simplex: s = softmax((x + g) / tau), g iid Gumbel(0, 1).

    With v = log(s) and k categories::

        log p(s) = log (k-1)! + (k-1) log tau + sum_i log softmax(x - tau v)_i - sum_i v_i

    with respect to ds_1 ... ds_{k-1}. The largest entry is the i-th with probability softmax(x)_i
    at every temperature. The Concrete distribution of Maddison, Mnih and Teh (2017),
    https://arxiv.org/abs/1611.00712, and the Gumbel-softmax of Jang, Gu and Poole (2017),
    https://arxiv.org/abs/1611.01144.

    >>> d = RelaxedCategorical(0.1, logits=torch.randn(5, 10))
    >>> d.log_prob(d.rsample()).isfinite().all()
    tensor(True)

    :param temperature: tau > 0, as in `RelaxedBernoulli`; broadcasts with the batch shape, that
        is without a dimension for the categories.
    :param probs: non-negative weights, categories in the last dimension; normalised.
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given.
    :param validate_args: as in `RelaxedBernoulli`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them.
    """

    support = simplex
    _support_text = "on the simplex (non-negative, sum 1 over the last dimension)"
    _remedy = "write value / value.sum(-1, keepdim=True), or use ExpRelaxedCategorical for logs"
    _exact = "use ExpRelaxedCategorical, which does not saturate"
    _most_probable = "write probs.argmax(-1) for the most probable category"

    @property
    def base_dist(self) -> "ExpRelaxedCategorical":
        """The distribution of log(s), with the same parameters."""
        return self._as(ExpRelaxedCategorical)

    @property
    def transforms(self) -> list[Transform]:
        """From a value of `base_dist` to s."""
        return [ExpTransform()]

    @property
    def covariance_matrix(self) -> Tensor:
        """Cov(s_i, s_j), exact; its shape is the batch shape and (k, k)."""
        covariances = cast(self._covariances, self._raw.dtype)
        return covariances.expand(self._batch_shape + covariances.shape[-2:])


class ExpRelaxedCategorical(_OfOne, Coordinates, OneOfK, TorchDistribution):
    r"""The logarithm of a `RelaxedCategorical`: v = log_softmax((x + g) / tau).

    ::

        log p(v) = log (k-1)! + (k-1) log tau + sum_i log softmax(x - tau v)_i

    the density of the value times prod_i exp(v_i), as in `torch.distributions`; equivalently the
    density with respect to the k - 1 log-ratios v_i - v_k. Does not saturate: the site to use at
    low temperature under NUTS, in an autoguide, or wherever a value is copied or stored.
    Maddison, Mnih and Teh (2017), https://arxiv.org/abs/1611.00712, appendix C.

    >>> ExpRelaxedCategorical(0.1, probs=torch.ones(4)).sample().exp().shape
    torch.Size([4])

    :param temperature: tau > 0, as in `RelaxedCategorical`.
    :param probs: non-negative weights, categories in the last dimension; normalised.
    :param logits: log weights x, unnormalised; exactly one of the two is given.
    :param validate_args: as in `RelaxedBernoulli`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them.
    """

    support = log_simplex
    _support_text = "on the log-simplex (logsumexp 0 over the last dimension)"
    _remedy = "write value.log_softmax(-1), or value.log() if this is a point of the simplex"

    variance: Any = absent(
        f"{_NO_FORM} (that of v_i - v_j is pi^2 / (3 temperature^2))",
        "write d.rsample((1000,)).var(0) to estimate it",
    )
    covariance_matrix: Any = absent(_NO_FORM, "use the covariance of d.rsample((1000,))")

    @property
    def mean(self) -> Tensor:
        """E v = (x + gamma) / tau - E logsumexp((x + g) / tau), gamma Euler's constant, to 1e-12.

        No point of the log-simplex, which is curved: `log_softmax` of it is the mode.
        """
        return self._like_param(log_softmax_mean(*self._outcomes))

    @property
    def mode(self) -> Tensor:
        """log_softmax(x / tau), where the density of v is largest."""
        return self._like_param(self.link.unconstrained(self._x, self._tau))


class RelaxedSubset(_OfSize, _Values, MOfK, TorchDistribution):
    r"""An m-hot vector relaxed to the hypersimplex {0 <= s <= 1, sum(s) = m}.

    s = sigmoid(v), v = (x + g) / tau - c with g iid Gumbel(0, 1) and c such that sum(s) = m. With
    k categories and w = s (1 - s)::

        log p(s) = log (k-1)! + (k-1) log tau + sum_i log softmax(x - tau v)_i
                   + logsumexp(log w) - sum_i log w_i

    with respect to ds_1 ... ds_{k-1}, derived in `pyro_gumbel.links`. The m largest entries have
    the law of `Subset` at every temperature: round to those, not at 1/2. The link is the sigmoid of
    Amos, Koltun and Kolter, "The limited multi-label projection layer" (2019),
    https://arxiv.org/abs/1906.08707, at Gumbel-perturbed logits. At k = 2, m = 1 it is
    `RelaxedBernoulli` at temperature 2 tau.

    >>> RelaxedSubset(0.5, 3, logits=torch.zeros(10)).sample().sum().round()
    tensor(3.)

    :param temperature: tau > 0, as in `RelaxedCategorical`.
    :param size: m, a Python int from 1 to k - 1.
    :param probs: non-negative weights of a single draw, categories in the last dimension;
        normalised.
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given, with at least m possible categories in every row.
    :param validate_args: as in `RelaxedBernoulli`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them, and a size that is no int.
    """

    _all_of_them = False
    _support_text = "on the hypersimplex (in [0, 1], sum `size` over the last dimension)"
    _remedy = "write LogitRelaxedSubset if these are coordinates"
    _exact = "use LogitRelaxedSubset, which does not saturate"

    @property
    def support(self) -> constraints.Constraint:
        """The hypersimplex."""
        return hypersimplex(self.size)


class LogitRelaxedSubset(_OfSize, Coordinates, MOfK, TorchDistribution):
    r"""The logit of a `RelaxedSubset`: v = (x + g) / tau - c with sum(sigmoid(v)) = m.

    With w = sigmoid(v) sigmoid(-v)::

        log p(v) = log (k-1)! + (k-1) log tau + sum_i log softmax(x - tau v)_i + logsumexp(log w)

    the density of the value times prod(w), as for the other coordinates; without the last term it
    is the density of the k - 1 differences v_i - v_k. Does not saturate: the site to use at low
    temperature under NUTS, in an autoguide, or wherever a value is copied or stored.

    >>> LogitRelaxedSubset(0.1, 2, probs=torch.ones(4)).sample().sigmoid().sum().round()
    tensor(2.)

    :param temperature: tau > 0, as in `RelaxedCategorical`.
    :param size: m, a Python int from 1 to k - 1.
    :param probs: as in `RelaxedSubset`.
    :param logits: as in `RelaxedSubset`; exactly one of the two is given.
    :param validate_args: as in `RelaxedBernoulli`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them, and a size that is no int.
    """

    _all_of_them = False
    _support_text = "logits of a point on the hypersimplex (sigmoids sum to `size`)"
    _remedy = "write value.logit() if this is a point of the hypersimplex, or use RelaxedSubset"

    @property
    def support(self) -> constraints.Constraint:
        """The logits of the hypersimplex."""
        return logit_hypersimplex(self.size)


class RelaxedPlackettLuce(_OfSize, _Values, Ranking, TorchDistribution):
    r"""The rows of a `PlackettLuce`, each relaxed to the simplex.

    Row j is a Gumbel-softmax vector softmax(z_j / tau), z_j = x + g_j drawn given that its largest
    entry is not that of an earlier row: the law of drawing it again until this is so, without
    the loop (see `pyro_gumbel.ops.noise`). With p the density of a `RelaxedCategorical` and Z the
    sum of exp(x), Z_j that over the categories that are no winner of a row before j, on rows with
    distinct winners::

        log p(C_1, ..., C_m) = sum_j (log p(C_j) + log Z - log Z_j)

    and -inf elsewhere. The winners have the law of `PlackettLuce` at every temperature, and at
    m = 1 this is `RelaxedCategorical`. From the second row on the gradient of `rsample` holds the
    earlier winners fixed, which makes it biased: of an expectation over 3 of 5 categories it has a
    cosine of .95 and more with the exact one (`tests/distributions/test_ranking.py`).

    >>> RelaxedPlackettLuce(0.5, 3, logits=torch.randn(5, 4)).rsample().shape
    torch.Size([5, 3, 4])

    :param temperature: tau > 0, as in `RelaxedCategorical`.
    :param size: m, a Python int from 1 to k.
    :param probs: non-negative weights of the first draw, categories in the last dimension;
        normalised. The event shape is (m, k).
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given, with at least m possible categories in every row.
    :param validate_args: as in `RelaxedBernoulli`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them, and a size that is no int.
    """

    support = simplex_rows
    _support_text = "rows on the simplex (non-negative, sum 1 over the last dimension)"
    _remedy = "write value / value.sum(-1, keepdim=True)"
    _exact = "pass the very tensor that rsample returned"
    _is_drawn_at_once = False

    def _draw_coordinates(self, sample_shape: Any) -> Tensor:
        perturbed = self._perturbed(sample_shape)
        untaken = self._untaken(perturbed.detach())
        given = given_untaken_winner(perturbed, self._location, untaken)
        return self.link.unconstrained(given, self._tau)

    def _score(
        self, v: Tensor, value: Tensor, low: float, high: float, *, of_values: bool
    ) -> Tensor:
        rows = super()._score(v, value, low, high, of_values=of_values)
        untaken = self._untaken(v.detach())
        distinct = torch.where(untaken, v, -torch.inf).amax(-1) >= v.amax(-1)
        left = torch.where(untaken, self._location, -torch.inf)
        possible = left.isfinite().any(-1)
        chance = torch.where(possible.unsqueeze(-1), left, 0.0).logsumexp(-1)
        density = rows + self._location.logsumexp(-1) - chance
        return torch.where((distinct & possible).all(-1), density.sum(-1), -torch.inf)
