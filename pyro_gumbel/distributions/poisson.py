# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Counts of events with gradients: Poisson, and Poisson with a gamma distributed rate."""

from typing import Any

import torch
from pyro.distributions import GammaPoisson, Poisson
from torch import Tensor
from torch.distributions import Poisson as TorchPoisson
from torch.nn.functional import logsigmoid

from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.counts import (
    NO_ENTROPY,
    NO_MODE,
    WITHOUT_END,
    NamedCount,
    register_count,
    register_divergence,
)
from pyro_gumbel.distributions.mean_field import MeanField, register_mean_field
from pyro_gumbel.distributions.trials import NegativeBinomialMeanField
from pyro_gumbel.ops.logarithms import exact_log, finite_log, log_rising
from pyro_gumbel.ops.mixing import gamma_variate, poisson_variate
from pyro_gumbel.ops.third_order import curvature_weight

__all__ = ["GammaPoissonStraightThrough", "PoissonStraightThrough"]


class PoissonStraightThrough(NamedCount, Poisson):
    r"""A Poisson distribution whose `rsample` carries a gradient.

    .. math:: P(D) = \frac{\lambda^D e^{-\lambda}}{D!}, \qquad D = 0, 1, 2, \ldots

    `rsample` returns the count that Pyro's `Poisson` draws. Its gradient is that of

    .. math::
        s = \lambda + c \, \lambda, \qquad c = \frac{D - \lambda}{2 \lambda} \text{ held constant.}

    A loss f with the derivative u at D passes the gradient
    :math:`\frac{D + \lambda}{2 \lambda} \, u` to :math:`\lambda`. It is unbiased for every loss
    that is quadratic in D. These are the second-order weights of He and Wu (2026).
    ``relax(d, estimator="third_order")`` is d with the third-order weights: it is unbiased for
    cubic losses too, and noisier at rates below 1.

    A rate of 0 is allowed: then D is 0. `log_prob` is differentiable in the value. It evaluates
    every value, also with `is_sparse`.

    >>> d = PoissonStraightThrough(torch.tensor(3.0))
    >>> d
    PoissonStraightThrough(rate: 3.0)
    >>> bool(d.rsample() % 1 == 0)
    True

    :param rate: the mean :math:`\lambda \ge 0`, a number or a tensor of the batch shape.
    :param is_sparse: as in Pyro's `Poisson`; without effect here.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`.
    :raises ValueError: for a negative rate, with validation.
    """

    has_third_order = True
    is_sparse = False  # where torch's Poisson was given

    entropy: Any = absent(*NO_ENTROPY)
    enumerate_support: Any = absent(*WITHOUT_END)

    def _third_order(self, value: Tensor) -> Tensor:
        return -curvature_weight(value, self.rate, self.rate, 1.0) * self.rate

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        return poisson_variate(self.rate.expand(self._extended_shape(sample_shape)))

    def _log_prob(self, value: Tensor) -> Tensor:
        log_rate = finite_log(exact_log(self.rate))
        return value * log_rate - self.rate - torch.lgamma(value.clamp(min=0) + 1)

    def _is_possible(self, value: Tensor) -> Tensor:
        return (value == 0) | ((value > 0) & (self.rate > 0))


class GammaPoissonStraightThrough(NamedCount, GammaPoisson):
    r"""A Poisson distribution with a gamma distributed rate, whose `rsample` carries a gradient.

    .. math::
        P(D) = \frac{\Gamma(\alpha + D)}{\Gamma(\alpha) \, D!}
            \left(\frac{\beta}{1 + \beta}\right)^\alpha \left(\frac{1}{1 + \beta}\right)^D,
        \qquad D = 0, 1, 2, \ldots

    `rsample` draws the rate :math:`\lambda` of a gamma distribution with a pathwise gradient, and
    then the count as `PoissonStraightThrough` does, from the same random numbers as Pyro's
    `GammaPoisson`. Its gradient is that of

    .. math::
        s = \lambda + c \, \lambda, \qquad c = \frac{D - \lambda}{2 \lambda} \text{ held constant,}

    where :math:`\lambda` is a differentiable function of :math:`\alpha` and :math:`\beta`. It is
    unbiased for every loss that is quadratic in D, and for others it has less bias than the
    second-order weights of He and Wu (2026) for the whole distribution.
    ``relax(d, estimator="third_order")`` is d with the third order of the Poisson count: it is
    unbiased for cubic losses too.

    >>> d = GammaPoissonStraightThrough(torch.tensor(2.0), torch.tensor(1.5))
    >>> bool(d.rsample() % 1 == 0)
    True

    :param concentration: the shape :math:`\alpha > 0` of the gamma distribution, a number or a
        tensor.
    :param rate: the rate :math:`\beta > 0` of the gamma distribution, which broadcasts with
        `concentration`; the joint shape is the batch shape.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`.
    :raises ValueError: for a parameter that is not positive, with validation.
    """

    has_third_order = True

    entropy: Any = absent(*NO_ENTROPY)
    mode: Any = absent(*NO_MODE)
    enumerate_support: Any = absent(*WITHOUT_END)

    @property
    def variance(self) -> Tensor:
        """The mean times 1 + 1 / beta."""
        return self.mean * ((1 + self.rate) / self.rate)

    def _differentiable(self, sample_shape: torch.Size) -> Tensor:
        rate = gamma_variate(self.concentration, self.rate, sample_shape)
        count = PoissonStraightThrough(rate, validate_args=False)
        return count.with_estimator(self.estimator)._differentiable(torch.Size())

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        return self._differentiable(sample_shape)

    def _log_prob(self, value: Tensor) -> Tensor:
        alpha, count = self.concentration, value.clamp(min=0)
        ways = log_rising(alpha, count) - torch.lgamma(count + 1)
        return ways + alpha * logsigmoid(self.rate.log()) - value * self.rate.log1p()

    def _is_possible(self, value: Tensor) -> Tensor:
        return value >= 0


class PoissonMeanField(MeanField):
    """By the logarithm of the rate."""

    names = ("log_rate",)

    def start(self) -> dict[str, Tensor]:
        return {"log_rate": exact_log(self.prior.rate.detach())}

    def start_at_mean(self, priors: list[Any]) -> dict[str, Tensor]:
        rates = torch.stack([prior.rate for prior in priors])
        return {"log_rate": finite_log(exact_log(rates.detach().mean(0)))}

    def distribution(
        self, parameters: dict[str, Tensor], temperature: Any, estimator: Any, event_dim: int
    ) -> PoissonStraightThrough:
        rate = parameters["log_rate"].exp()
        return PoissonStraightThrough(rate, validate_args=self.prior._validate_args)


# `relax` of a Poisson returns one of these.
register_count(PoissonStraightThrough, TorchPoisson, Poisson)
register_count(GammaPoissonStraightThrough, GammaPoisson)
register_mean_field(PoissonStraightThrough, PoissonMeanField)
register_mean_field(GammaPoissonStraightThrough, NegativeBinomialMeanField)


@register_divergence(PoissonStraightThrough, TorchPoisson)
def _(q: PoissonStraightThrough, p: PoissonStraightThrough) -> Tensor:
    """rate_q (log rate_q - log rate_p) + rate_p - rate_q."""
    log_q, log_p = (finite_log(exact_log(d.rate)) for d in (q, p))
    divergence = q.rate * (log_q - log_p) + p.rate - q.rate
    return divergence + torch.where((q.rate > 0) & (p.rate <= 0), torch.inf, 0.0)
