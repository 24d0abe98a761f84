# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Counts of Bernoulli trials with gradients.

The number of successes among n trials: binomial, and binomial with a beta distributed probability.
The number of trials of one outcome before others: negative binomial and geometric.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import (
    BetaBinomial,
    Binomial,
    ExtendedBetaBinomial,
    ExtendedBinomial,
    Geometric,
    NegativeBinomial,
)
from torch import Tensor
from torch.distributions import Binomial as TorchBinomial
from torch.distributions import Geometric as TorchGeometric
from torch.distributions import NegativeBinomial as TorchNegativeBinomial
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import in_eager_mode, known
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.counts import (
    NO_ENTROPY,
    NO_MODE,
    WITHOUT_END,
    NamedCount,
    derived,
    enumerated_divergence,
    in_float32,
    register_count,
    register_divergence,
    register_log_prob,
)
from pyro_gumbel.distributions.mean_field import (
    MeanField,
    TrialsMeanField,
    register_mean_field,
)
from pyro_gumbel.estimators import second_order
from pyro_gumbel.ops.autograd import zero_with_gradient
from pyro_gumbel.ops.logarithms import (
    exact_log,
    exact_log1m,
    finite_log,
    log_rising,
    minus_p_log_p,
)
from pyro_gumbel.ops.mixing import (
    dirichlet_variate,
    gamma_variate,
    is_without_gradient,
    poisson_variate,
)
from pyro_gumbel.ops.subset_probability import kl_of_log_probs
from pyro_gumbel.ops.third_order import curvature_weight, finite_or_zero

__all__ = [
    "BetaBinomialStraightThrough",
    "BinomialStraightThrough",
    "GeometricStraightThrough",
    "NegativeBinomialStraightThrough",
]


class TrialCount(NamedCount):
    """A count of trials, given by the `probs` or the `logits` of one trial."""

    @derived
    def logits(self) -> Tensor:
        """The log-odds, infinite where a probability is 0 or 1."""
        return exact_log(self.probs) - exact_log1m(self.probs)

    @derived
    def probs(self) -> Tensor:
        """The probabilities."""
        return self.logits.sigmoid()

    def _log_probs(self) -> tuple[Tensor, Tensor]:
        """log p and log(1 - p), -inf where that is 0."""
        if "probs" in self.__dict__:
            return exact_log(self.probs), exact_log1m(self.probs)
        return logsigmoid(self.logits), logsigmoid(-self.logits)


class BinomialStraightThrough(TrialCount, Binomial):
    r"""A binomial distribution whose `rsample` carries a gradient.

    .. math:: P(D) = \binom{n}{D} p^D (1 - p)^{n - D}, \qquad D = 0, \ldots, n

    `rsample` returns the count that Pyro's `Binomial` draws. Its gradient is that of

    .. math::
        s = n p + c \, n p (1 - p), \qquad
        c = \frac{D - n p}{2 n p (1 - p)} \text{ held constant.}

    It is unbiased for every loss that is quadratic in D. These are the second-order weights of He
    and Wu (2026). ``relax(d, estimator="third_order")`` is d with the third-order weights: it is
    unbiased for cubic losses too. A single trial has no such weights, and keeps second order.

    Probabilities of 0 and 1, infinite logits and no trials are allowed. `log_prob` is
    differentiable in the value. That of Pyro's `Binomial` passes only a part of its gradient to the
    value, so that a model with a binomial prior must be relaxed too.

    >>> d = BinomialStraightThrough(10, logits=torch.zeros(3))
    >>> d.rsample().shape
    torch.Size([3])

    :param total_count: the number n of trials, an int or a tensor that broadcasts with `probs` or
        `logits`; the joint shape is the batch shape.
    :param probs: the probability p of a success, in [0, 1].
    :param logits: its log-odds. Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`.
    :raises ValueError: for both or neither of `probs` and `logits`; with validation, for a wrong
        value.
    """

    has_third_order = True
    plain_passes_gradient = False

    def _third_order(self, value: Tensor) -> Tensor:
        n, p = self.total_count.detach(), self.probs.detach()
        is_likely = p > 0.5  # of failures then, whose mean is exact near p = 1; e is the same
        rarer = torch.where(is_likely, n - value, value)
        mean = n * torch.where(is_likely, 1 - p, p)
        e = curvature_weight(rarer, mean, self.variance, n / (n - 1).clamp(min=1))
        return -torch.where(n > 1, e, 0.0) * self.mean

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        if in_eager_mode():
            return super()._drawn(sample_shape)
        probs = self.probs.detach()  # a traced program forgets no_grad
        counts = self.total_count.detach() + torch.zeros_like(
            probs
        )  # torch.vmap asks for both alike
        shape = self._extended_shape(sample_shape)
        return torch.binomial(counts.expand(shape), probs.expand(shape))

    def _log_prob(self, value: Tensor) -> Tensor:
        n = self.total_count
        log_p, log_q = map(finite_log, self._log_probs())
        return _log_ways(n, value) + value * log_p + (n - value) * log_q

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values over a new first dimension, for equal numbers of trials."""
        if self.total_count.numel():
            return super().enumerate_support(expand)
        batch = self.batch_shape if expand else (1,) * len(self.batch_shape)
        return self._param.new_zeros((1, *batch))

    def entropy(self) -> Tensor:
        """-sum P log P in nats, over equal numbers of trials."""
        wide = in_float32(self)
        log_prob = wide._log_prob_of(wide.enumerate_support(expand=False))
        return minus_p_log_p(log_prob).sum(0)

    def _is_possible(self, value: Tensor) -> Tensor:
        n, (log_p, log_q) = self.total_count, self._log_probs()
        some = (value > 0) & (value <= n) & ~log_p.isneginf()
        others = (value >= 0) & (value < n) & ~log_q.isneginf()
        return (some | (value == 0)) & (others | (value == n))


class BetaBinomialStraightThrough(NamedCount, BetaBinomial):
    r"""A binomial distribution with a beta distributed probability, with a gradient in `rsample`.

    .. math::
        P(D) = \binom{n}{D} \frac{B(\alpha + D, \beta + n - D)}{B(\alpha, \beta)},
        \qquad D = 0, \ldots, n

    `rsample` draws the probability p of a beta distribution with a pathwise gradient, and then the
    count as `BinomialStraightThrough` does, from the same random numbers as Pyro's `BetaBinomial`.
    Its gradient is that of

    .. math::
        s = n p + c \, n p (1 - p), \qquad
        c = \frac{D - n p}{2 n p (1 - p)} \text{ held constant,}

    where p is a differentiable function of :math:`\alpha` and :math:`\beta`. It is unbiased for
    every loss that is quadratic in D, and for others it has less bias than the second-order weights
    of He and Wu (2026) for the whole distribution. Those are used where :math:`\alpha` or
    :math:`\beta` is below 0.02 or above 10,000, since torch's gradient of a beta variate is wrong
    there.
    ``relax(d, estimator="third_order")`` is d with the third order of the binomial count: elsewhere
    it is unbiased for cubic losses too, for 2 trials or more.

    `log_prob` is differentiable in the value. That of Pyro's `BetaBinomial` passes only a part of
    its gradient to the value, so that a model with such a prior must be relaxed too.

    >>> d = BetaBinomialStraightThrough(torch.tensor(2.0), torch.tensor(3.0), 9)
    >>> bool(d.rsample() <= 9)
    True

    :param concentration1: :math:`\alpha > 0` of the beta distribution, a number or a tensor.
    :param concentration0: :math:`\beta > 0` of the beta distribution, likewise.
    :param total_count: the number n of trials, an int or a tensor. All three broadcast with each
        other; the joint shape is the batch shape.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`.
    :raises ValueError: for a wrong value, with validation.
    """

    has_third_order = True
    plain_passes_gradient = False

    entropy: Any = absent(*NO_ENTROPY)
    mode: Any = absent(*NO_MODE)

    @property
    def variance(self) -> Tensor:
        """n p (1 - p) (n + c) / (1 + c), c the sum of the concentrations and p the mean share."""
        a, b, n = self.concentration1, self.concentration0, self.total_count
        c = a + b
        return n * (a / c) * (b / c) * ((n + c) / (1 + c))

    def _differentiable(self, sample_shape: torch.Size) -> Tensor:
        both = torch.stack([self.concentration1, self.concentration0], -1)
        probs = dirichlet_variate(both, sample_shape)[..., 0]
        binomial = BinomialStraightThrough(self.total_count, probs, validate_args=False)
        sample = binomial.with_estimator(self.estimator)._differentiable(torch.Size())
        whole = self.with_estimator(second_order)._attached(sample.detach())
        return torch.where(is_without_gradient(both), whole, sample)

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        return self._differentiable(sample_shape)

    def _log_prob(self, value: Tensor) -> Tensor:
        a, b = self.concentration1, self.concentration0
        n = self.total_count.to(a.dtype)
        k = torch.clamp(value, torch.zeros_like(n), n)
        ratio = log_rising(a, k) + log_rising(b, n - k) - log_rising(a + b, n)
        return _log_ways(n, value) + ratio

    def _is_possible(self, value: Tensor) -> Tensor:
        return (value >= 0) & (value <= self.total_count)


class NegativeBinomialStraightThrough(TrialCount, NegativeBinomial):
    r"""A negative binomial distribution whose `rsample` carries a gradient.

    .. math::
        P(D) = \frac{\Gamma(r + D)}{\Gamma(r) \, D!} \, (1 - p)^r p^D, \qquad D = 0, 1, 2, \ldots

    `rsample` returns the count that Pyro's `NegativeBinomial` draws. Its gradient is that of

    .. math::
        s = \mu + c \, V, \qquad \mu = \frac{r p}{1 - p}, \qquad V = \frac{r p}{(1 - p)^2},
        \qquad c = \frac{D - \mu}{2 V} \text{ held constant.}

    It is unbiased for every loss that is quadratic in D. These are the second-order weights of He
    and Wu (2026). ``relax(d, estimator="third_order")`` is d with the third-order weights: it is
    unbiased for cubic losses too, in the derivatives of both parameters.

    A `total_count` of 0 and probabilities of 0 are allowed: then D is 0. `log_prob` is
    differentiable in the value.

    >>> d = NegativeBinomialStraightThrough(5.0, logits=torch.zeros(3))
    >>> d.mean
    tensor([5., 5., 5.])

    :param total_count: r >= 0, a number or a tensor that broadcasts with `probs` or `logits`; the
        joint shape is the batch shape. D is the number of successes before r failures, and r need
        not be an integer.
    :param probs: the probability p of a success, in [0, 1).
    :param logits: its log-odds. Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`.
    :raises ValueError: for both or neither of `probs` and `logits`; with validation, for a wrong
        value.
    """

    has_third_order = True

    entropy: Any = absent(*NO_ENTROPY)
    enumerate_support: Any = absent(*WITHOUT_END)

    @property
    def mean(self) -> Tensor:
        """r p / (1 - p)."""
        return self._or_none(self.total_count * self._odds())

    @property
    def variance(self) -> Tensor:
        """r p / (1 - p)^2."""
        odds = self._odds()
        return self._or_none(self.total_count * odds * (1 + odds))

    @property
    def mode(self) -> Tensor:
        """(r - 1) p / (1 - p), rounded down; 0 for r up to 1."""
        mode = (self.total_count - 1) * self._odds()
        return torch.where(self.total_count > 1, mode, 0.0).floor()

    def _or_none(self, moment: Tensor) -> Tensor:
        """A moment or a sample, 0 where `total_count` is 0, even if the odds overflow."""
        return torch.where(self.total_count > 0, moment, 0.0)

    def _odds(self) -> Tensor:
        """p / (1 - p)."""
        return self.probs / (1 - self.probs) if "probs" in self.__dict__ else self.logits.exp()

    def _third_order(self, value: Tensor) -> Tensor:
        r, o = self.total_count, self._odds().detach()
        share = r.detach() / (1 + r.detach())
        e = curvature_weight(value, self.mean, self.variance, share)
        return -e * self.mean - finite_or_zero(e * o * o * (3 + 2 * o)) * r

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        rate = torch.exp(-self.logits)
        return self._or_none(poisson_variate(gamma_variate(self.total_count, rate, sample_shape)))

    def _log_prob(self, value: Tensor) -> Tensor:
        r, count = self.total_count, value.clamp(min=0)
        log_p, log_q = map(finite_log, self._log_probs())
        some = r >= torch.finfo(r.dtype).tiny
        positive = torch.where(some, r, 1.0)
        ways = log_rising(positive, count)
        ways = torch.where(some, ways, count * finite_log(torch.full_like(r, -torch.inf)))
        return ways - torch.lgamma(count + 1) + r * log_q + value * log_p

    def _is_possible(self, value: Tensor) -> Tensor:
        varies = (self.total_count > 0) & ~self._log_probs()[0].isneginf()
        return (value == 0) | ((value > 0) & varies)


class GeometricStraightThrough(TrialCount, Geometric):
    r"""A geometric distribution whose `rsample` carries a gradient.

    .. math:: P(D) = (1 - p)^D p, \qquad D = 0, 1, 2, \ldots

    `rsample` returns the count that Pyro's `Geometric` draws. Its gradient is that of

    .. math::
        s = \mu + c \, V, \qquad \mu = \frac{1 - p}{p}, \qquad V = \frac{1 - p}{p^2},
        \qquad c = \frac{D - \mu}{2 V} \text{ held constant.}

    It is unbiased for every loss that is quadratic in D. These are the second-order weights of He
    and Wu (2026). ``relax(d, estimator="third_order")`` is d with the third-order weights: it is
    unbiased for cubic losses too.

    A probability of 1 is allowed: then D is 0. `log_prob` is differentiable in the value.

    >>> d = GeometricStraightThrough(torch.tensor(0.25))
    >>> d.mean
    tensor(3.)

    :param probs: the probability p of a success, in (0, 1], a number or a tensor of the batch
        shape. D is the number of failures before the first success.
    :param logits: its log-odds. Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`.
    :raises ValueError: for both or neither of `probs` and `logits`; with validation, for a wrong
        value.
    """

    has_third_order = True

    enumerate_support: Any = absent(*WITHOUT_END)

    @property
    def mean(self) -> Tensor:
        """(1 - p) / p."""
        return (1 - self.probs) / self.probs if "probs" in self.__dict__ else (-self.logits).exp()

    @property
    def variance(self) -> Tensor:
        """(1 - p) / p^2."""
        return self.mean * (1 + self.mean)

    def entropy(self) -> Tensor:
        """-log p - E D log(1 - p) in nats."""
        wide = in_float32(self)
        return _mean_failures_cost(wide, wide) - finite_log(wide._log_probs()[0])

    def _third_order(self, value: Tensor) -> Tensor:
        return -curvature_weight(value, self.mean, self.variance, 0.5) * self.mean

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        probs = self.probs
        finfo = torch.finfo(probs.dtype)
        u = torch.rand(self._extended_shape(sample_shape), dtype=probs.dtype, device=probs.device)
        return (u.clamp(min=finfo.tiny).log() / (-probs).log1p()).floor().clamp(max=finfo.max)

    def _log_prob(self, value: Tensor) -> Tensor:
        log_p, log_q = map(finite_log, self._log_probs())
        return value * log_q + log_p

    def _is_possible(self, value: Tensor) -> Tensor:
        log_p, log_q = self._log_probs()
        return ((value == 0) | ((value > 0) & ~log_q.isneginf())) & ~log_p.isneginf()


def _mean_failures_cost(q: GeometricStraightThrough, p: GeometricStraightThrough) -> Tensor:
    """-E_q D log(1 - p), as one exponential: the mean of D may overflow where this is near 1."""
    (log_q, log_1q), (log_p, log_1p) = (map(finite_log, d._log_probs()) for d in (q, p))
    is_small = log_p < math.log(torch.finfo(log_p.dtype).eps)  # then -log(1 - p) is p
    log_cost = torch.where(is_small, log_p, torch.where(is_small, 1.0, -log_1p).log())
    return (log_1q - log_q + log_cost).exp()


def _log_ways(n: Tensor, value: Tensor) -> Tensor:
    """The logarithm of the binomial coefficient; that of the nearest one for an impossible value.

    That of Pyro passes no gradient to the value.
    """
    k = torch.clamp(value, torch.zeros_like(n), n)
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _with_ways(log_prob: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A log_prob of Pyro with the gradient of the binomial coefficient in the value."""

    def complete(distribution: Any, value: Tensor) -> Tensor:
        ways = _log_ways(distribution.total_count.to(value.dtype), value)
        return log_prob(distribution, value) + zero_with_gradient(ways)

    return complete


class BinomialMeanField(TrialsMeanField):
    """Binomial, by logits."""

    def start(self) -> dict[str, Tensor]:
        return {"logits": self.prior.logits.detach()}

    def start_at_mean(self, priors: list[Any]) -> dict[str, Tensor]:
        """The logits of mean probabilities, with 1/2 as one more prior."""
        probs = torch.stack([prior.probs for prior in priors]).detach()
        return {"logits": ((probs.sum(0) + 0.5) / (len(priors) + 1)).logit()}

    def distribution(
        self, parameters: dict[str, Tensor], temperature: Any, estimator: Any, event_dim: int
    ) -> BinomialStraightThrough:
        validate = self.prior._validate_args
        logits = parameters["logits"]
        return BinomialStraightThrough(self.total_count, logits=logits, validate_args=validate)


class BetaBinomialMeanField(TrialsMeanField):
    """Beta-binomial, by the logits of the mean probability and the log of the concentration."""

    names = ("logits", "log_concentration")

    def start(self) -> dict[str, Tensor]:
        a, b = self.prior.concentration1.detach(), self.prior.concentration0.detach()
        return {"logits": a.log() - b.log(), "log_concentration": (a + b).log()}

    def distribution(
        self, parameters: dict[str, Tensor], temperature: Any, estimator: Any, event_dim: int
    ) -> BetaBinomialStraightThrough:
        logits, log_concentration = (parameters[name] for name in self.names)
        concentrations = ((logsigmoid(x) + log_concentration).exp() for x in (logits, -logits))
        least = torch.finfo(logits.dtype).tiny
        return BetaBinomialStraightThrough(
            *(each.clamp(min=least) for each in concentrations),
            self.total_count,
            validate_args=self.prior._validate_args,
        )


class NegativeBinomialMeanField(MeanField):
    """Negative binomial, by the logarithms of the mean and of `total_count`.

    The prior may be geometric, with a `total_count` of 1, or gamma-Poisson, with one of
    `concentration`.
    """

    names = ("log_mean", "log_total_count")

    def start(self) -> dict[str, Tensor]:
        prior = self.prior
        mean = prior.mean.detach()
        total = getattr(
            prior, "total_count", getattr(prior, "concentration", torch.ones_like(mean))
        )
        logs = exact_log(mean), exact_log(total.detach().expand(mean.shape))
        return dict(zip(self.names, map(finite_log, logs), strict=True))

    def start_at_mean(self, priors: list[Any]) -> dict[str, Tensor]:
        starts = [type(self)(prior).start() for prior in priors]
        means = {name: torch.stack([start[name].exp() for start in starts]) for name in self.names}
        return {name: finite_log(exact_log(mean.mean(0))) for name, mean in means.items()}

    def distribution(
        self, parameters: dict[str, Tensor], temperature: Any, estimator: Any, event_dim: int
    ) -> NegativeBinomialStraightThrough:
        log_mean, log_total = (parameters[name] for name in self.names)
        return NegativeBinomialStraightThrough(
            log_total.exp(), logits=log_mean - log_total, validate_args=self.prior._validate_args
        )


# `relax` of a binomial and the like returns one of these.
for cls in (Binomial, ExtendedBinomial, BetaBinomial, ExtendedBetaBinomial):
    register_log_prob(cls.log_prob, _with_ways(cls.log_prob))
register_count(BinomialStraightThrough, TorchBinomial, Binomial)
register_count(BetaBinomialStraightThrough, BetaBinomial)
register_count(NegativeBinomialStraightThrough, TorchNegativeBinomial, NegativeBinomial)
register_count(GeometricStraightThrough, TorchGeometric, Geometric)
register_mean_field(BinomialStraightThrough, BinomialMeanField)
register_mean_field(BetaBinomialStraightThrough, BetaBinomialMeanField)
register_mean_field(NegativeBinomialStraightThrough, NegativeBinomialMeanField)
register_mean_field(GeometricStraightThrough, NegativeBinomialMeanField)


@register_divergence(BinomialStraightThrough, TorchBinomial)
def _(q: BinomialStraightThrough, p: BinomialStraightThrough) -> Tensor:
    """n times that of one trial; of unequal numbers of trials the sum over all values."""
    is_same = q.total_count == p.total_count
    if known(is_same.all(), otherwise=True):
        log_q, log_p = (torch.stack(d._log_probs(), -1) for d in (q, p))
        divergence = q.total_count * kl_of_log_probs(log_q, log_p)
        return _where_same(is_same, torch.where(q.total_count > 0, divergence, 0.0))
    return enumerated_divergence(q, p)


@register_divergence(BetaBinomialStraightThrough, BetaBinomial)
def _(q: BetaBinomialStraightThrough, p: BetaBinomialStraightThrough) -> Tensor:
    return enumerated_divergence(q, p)


@register_divergence(NegativeBinomialStraightThrough, TorchNegativeBinomial)
def _(q: NegativeBinomialStraightThrough, p: NegativeBinomialStraightThrough) -> Tensor:
    """r (log(1 - p_q) - log(1 - p_p)) + mean_q (log p_q - log p_p), for equal r."""
    learnt = q.total_count.requires_grad or p.total_count.requires_grad
    is_same = q.total_count == p.total_count
    differs = learnt and q.total_count is not p.total_count
    if differs or not known(is_same.all(), otherwise=True):
        raise NotImplementedError(
            "kl_divergence(q, p): a formula is known for two negative binomial distributions of "
            "equal `total_count` that is not learnt; estimate it by "
            "(q.log_prob(z) - p.log_prob(z)).mean(0) with z = q.rsample((1000,))"
        )
    (log_q, log_1q), (log_p, log_1p) = q._log_probs(), p._log_probs()
    excluded = (q.mean > 0) & log_p.isneginf()
    divergence = q.total_count * (log_1q - log_1p)
    gain = finite_log(log_q) - finite_log(log_p)
    divergence = divergence + torch.where(gain == 0, 0.0, q.mean) * gain
    divergence = torch.where(q.mean.isinf() & (gain != 0), torch.inf, divergence)
    return _where_same(is_same, divergence + torch.where(excluded, torch.inf, 0.0))


def _where_same(is_same: Tensor, divergence: Tensor) -> Tensor:
    """A divergence of equal numbers of trials; NaN where they are not, if they cannot be read."""
    return torch.where(is_same, divergence, torch.nan)


@register_divergence(GeometricStraightThrough, TorchGeometric)
def _(q: GeometricStraightThrough, p: GeometricStraightThrough) -> Tensor:
    """log p_q - log p_p + mean_q (log(1 - p_q) - log(1 - p_p))."""
    log_q, (log_p, log_1p) = q._log_probs()[0], p._log_probs()
    excluded = (q.mean > 0) & log_1p.isneginf()
    divergence = log_q - log_p + _mean_failures_cost(q, p) - _mean_failures_cost(q, q)
    return divergence + torch.where(excluded, torch.inf, 0.0)
