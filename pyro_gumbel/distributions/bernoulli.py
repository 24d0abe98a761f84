# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Bernoulli variables with gradients.

`RelaxedBernoulli` has values in the unit interval, `LogitRelaxedBernoulli` has the logits of those,
and `BernoulliStraightThrough` has exactly 0 and 1, with a surrogate gradient.
"""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import Bernoulli, TorchDistribution
from pyro.distributions.relaxed_straight_through import RelaxedBernoulliStraightThrough
from pyro.distributions.torch import RelaxedBernoulli as PyroRelaxedBernoulli
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import constraints
from torch.distributions.transforms import SigmoidTransform, Transform
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import are_finite, ends, in_program
from pyro_gumbel._validation import check_value, require
from pyro_gumbel.distributions import kl
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.base import Family
from pyro_gumbel.distributions.noise import StandardLogistic
from pyro_gumbel.distributions.relaxation import register_relaxation
from pyro_gumbel.distributions.relaxed import (
    Relaxed,
    RelaxedLogits,
    RelaxedOutcome,
    entropy_of_outcomes,
)
from pyro_gumbel.distributions.sample_cache import recall
from pyro_gumbel.distributions.straight_through import StraightThroughOutcome
from pyro_gumbel.links import interval
from pyro_gumbel.ops.logarithms import log_of_positive
from pyro_gumbel.ops.noise import logistic
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.ops.second_order import with_bit_gradient

__all__ = ["BernoulliStraightThrough", "LogitRelaxedBernoulli", "RelaxedBernoulli"]

_IS_A_STEP = "is a step, which torch's Bernoulli leaves out"
_FAR = 1e300  # in float64 finite logits are clamped to this, so that no difference overflows


class BernoulliFamily(Family):
    """What the Bernoulli distributions share: parameters, noise and link. Not a distribution.

    `probs` is the probability of 1, `logits` its log-odds, infinite for a certain outcome.
    """

    link = interval
    noise = staticmethod(logistic)
    noise_distribution = StandardLogistic
    event_dim = 0
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "probs": constraints.unit_interval,
        "logits": constraints.real,
    }

    def logits_of(self, probs: Tensor) -> Tensor:
        zero, one = probs <= 0, probs >= 1
        inside = torch.where(zero | one, 0.5, probs)
        logits = log_of_positive(inside) - torch.log1p(-inside)
        return torch.where(zero, -math.inf, torch.where(one, math.inf, logits))

    def normalised_logits(self, logits: Tensor) -> Tensor:
        return logits

    def normalised_probs(self, probs: Tensor) -> Tensor:
        return probs

    def probs_of(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def without_extremes(self, logits: Tensor) -> Tensor:
        return torch.where(logits.isinf(), logits, logits.clamp(-_FAR, _FAR))

    def log_probs(self, logits: Tensor) -> Tensor:
        return torch.stack([logsigmoid(-logits), logsigmoid(logits)], -1)

    def one_hot(self, value: Tensor) -> Tensor:
        return torch.stack([1 - value, value], -1)

    def from_one_hot(self, weights: Tensor) -> Tensor:
        return weights[..., 1]

    def with_second_order_gradient(self, value: Tensor, logits: Tensor) -> Tensor:
        return with_bit_gradient(value, logits)

    def mode(self, logits: Tensor, size: int | None = None) -> Tensor:
        return interval.hard(logits)

    def number_of_outcomes(self, probs: Tensor) -> int:
        return 2

    def check_parameter(
        self, owner: str, name: str, value: Tensor, size: int | Tensor | None
    ) -> None:
        if name == "probs":
            least, most = ends(value)
            if least >= 0 and most <= 1:
                return
            valid, remedy = (value >= 0) & (value <= 1), "write logits=... for log-odds"
            require(valid, f"{owner}: `probs` must be in [0, 1]", value, remedy)
        elif not are_finite(value):
            remedy = "write logits=torch.nan_to_num(logits)"
            require(~value.isnan(), f"{owner}: `logits` must be free of NaN", value, remedy)


bernoulli = BernoulliFamily()


class RelaxedBernoulli(RelaxedOutcome, PyroRelaxedBernoulli):
    r"""A Bernoulli variable relaxed to the unit interval, with a pathwise gradient.

    .. math:: s = \sigma\left(\frac{x + L}{\tau}\right), \qquad L \sim \text{Logistic}(0, 1),

    with :math:`x` the logit, :math:`\tau` the temperature and :math:`\sigma` the sigmoid. With
    :math:`v = \operatorname{logit}(s)` and :math:`d = x - \tau v`, its density on
    :math:`(0, 1)` is

    .. math::
        \log p(s) = \log \tau + \log \sigma(d) + \log \sigma(-d)
                    - \log \sigma(v) - \log \sigma(-v).

    :math:`P(s > 1/2) = \sigma(x)` at every temperature. `rsample` and `sample` attach v to the
    tensor that they return, so that its log_prob is exact also where s was rounded to 0 or 1. A new
    tensor (a clone, a slice, one read from a file) has no v, and its log_prob is inexact there: use
    `LogitRelaxedBernoulli` for values that are copied or stored. This is the binary Concrete
    distribution of Maddison, Mnih and Teh, "The Concrete distribution" (2017),
    https://arxiv.org/abs/1611.00712, appendix B.

    >>> d = RelaxedBernoulli(0.5, logits=torch.zeros(3))
    >>> d.log_prob(d.rsample()).shape
    torch.Size([3])

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape, or a
        function without arguments that returns one, such as a temperature schedule; the constructor
        calls it once. An object that torch functions take for a tensor, by `__torch_function__`,
        becomes that tensor.
    :param probs: the probability of 1, in [0, 1]; its shape is the batch shape.
    :param logits: its log-odds x, real or infinite. Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    family = bernoulli
    replaces = PyroRelaxedBernoulli  # by register(replace=True)
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        **bernoulli.arg_constraints,
    }
    support = constraints.unit_interval
    _support_text = "in [0, 1]"
    _remedy = "write value.sigmoid() if these are logits, or use LogitRelaxedBernoulli"
    _exact = "use LogitRelaxedBernoulli, which does not saturate"
    _most_probable = "write probs.round() for the more probable value, the probs.argmax of two"

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
        return probability_below(self, v)

    def icdf(self, value: Tensor) -> Tensor:
        """The s with P(S <= s) = `value`: sigmoid((x + logit(value)) / tau)."""
        return self._to_value(quantile_of(self, value))


class LogitRelaxedBernoulli(RelaxedLogits, TorchDistribution):
    r"""The logit of a `RelaxedBernoulli`, on the real line.

    .. math:: v = \frac{x + L}{\tau}, \qquad L \sim \text{Logistic}(0, 1),

    with :math:`x` the logit of the probability of 1 and :math:`\tau` the temperature. Its density
    on the real line is, with :math:`d = x - \tau v` and :math:`\sigma` the sigmoid,

    .. math:: \log p(v) = \log \tau + \log \sigma(d) + \log \sigma(-d).

    Values s near 0 and 1 are rounded to them, and their logits are not. Use this class for NUTS and
    autoguides at low temperatures, and for values that are copied or stored. Maddison, Mnih and
    Teh, "The Concrete distribution" (2017), https://arxiv.org/abs/1611.00712.

    >>> LogitRelaxedBernoulli(0.1, probs=torch.tensor(0.7)).sample().sigmoid().shape
    torch.Size([])

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape, or a
        function without arguments that returns one, such as a temperature schedule; the constructor
        calls it once.
    :param probs: the probability of 1, in [0, 1]; its shape is the batch shape.
    :param logits: its log-odds x, real or infinite. Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    family = bernoulli
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = RelaxedBernoulli.arg_constraints
    support = constraints.real
    _support_text = "real"
    _remedy = "write torch.logit(value) if this is a relaxed value, or use RelaxedBernoulli"

    def entropy(self) -> Tensor:
        """-E log_prob = 2 - log(tau), the differential entropy in nats; 0 for a certain outcome."""
        return entropy_of_outcomes(self, of_values=False)

    @property
    def mean(self) -> Tensor:
        """x / tau."""
        return self._expanded(self.link.unconstrained(self._logits, self._tau))

    @property
    def mode(self) -> Tensor:
        """x / tau."""
        return self.mean

    @property
    def variance(self) -> Tensor:
        """pi^2 / (3 tau^2)."""
        variance = math.pi**2 / 3 / self._tau**2
        return self._expanded(torch.where(self._logits.isinf(), 0.0, variance))

    def cdf(self, value: Tensor) -> Tensor:
        """P(V <= value) = sigmoid(tau value - x)."""
        self._validate_sample(value)
        return probability_below(self, self._to_unconstrained(value))

    def icdf(self, value: Tensor) -> Tensor:
        """The v with P(V <= v) = `value`: (x + logit(value)) / tau."""
        return self._to_value(quantile_of(self, value))


def probability_below(distribution: Relaxed, v: Tensor) -> Tensor:
    """P(V <= v) of the logit V = (x + L) / tau."""
    x, end = distribution._logits, v.isinf()
    height = torch.where(x.isinf(), 0.0, distribution._tau * torch.where(end, 0.0, v)) - x
    at_end = (v > 0) | x.isneginf()
    return distribution._over_batch(torch.where(end, at_end.to(height.dtype), height.sigmoid()))


def quantile_of(distribution: Relaxed, probability: Tensor) -> Tensor:
    """The v with P(V <= v) = `probability`."""
    d, owner = distribution, f"{type(distribution).__name__}.icdf"
    check_value(owner, probability, d._batch_shape, d._event_shape, integers=False)
    if d._validate_args and not in_program():
        require(
            (probability >= 0) & (probability <= 1),
            f"{owner}: `value` must be a probability, in [0, 1]",
            probability,
            "write .cdf(value) if this is a value of the variable",
        )
    x, p = d._logits, cast(probability, torch.promote_types(probability.dtype, d._dtype))
    end = (p <= 0) | (p >= 1)
    quantile = d.link.unconstrained(x + torch.logit(torch.where(end, 0.5, p)), d._tau)
    at_end = end & x.isfinite()
    quantile = torch.where(at_end, torch.where(p <= 0, -torch.inf, torch.inf), quantile)
    return d._over_batch(quantile)


class BernoulliStraightThrough(StraightThroughOutcome, Bernoulli):
    r"""A Bernoulli distribution whose `rsample` carries a gradient.

    Use it where the model needs values of 0 and 1, and `RelaxedBernoulli` where relaxed ones do.

    The distribution is the discrete one at every temperature. With :math:`p` the probability of 1,

    .. math:: \log P(D) = D \log p + (1 - D) \log(1 - p),

    which is linear in :math:`D`, so that `log_prob` passes a gradient to the sample. `rsample` and
    `sample` draw :math:`z = x + L`, :math:`L \sim \text{Logistic}(0, 1)`, with :math:`x` the logit,
    and return :math:`D = 1` where :math:`z \ge 0`, else 0. With :math:`u` the gradient of a loss at
    :math:`D`, `rsample` passes to the logit the gradient

    .. math:: \tfrac{1}{2} |D - p| \, u.

    It is unbiased for every loss that is quadratic in :math:`D`. This is second order, derived in
    `pyro_gumbel.ops.second_order`: the ReinMax of Liu, Dong, Liu, Yu and Gao, "Bridging discrete
    and backpropagation" (2023), https://arxiv.org/abs/2304.08612, at temperature 1. With a
    temperature the gradient is that of the relaxed value :math:`\sigma(z / \tau)`, the
    straight-through Gumbel-softmax of Jang, Gu and Poole, "Categorical reparameterization with
    Gumbel-softmax" (2017), https://arxiv.org/abs/1611.01144, unless `estimator` names another one.
    A lower temperature lowers its bias and raises its variance.

    >>> BernoulliStraightThrough(probs=torch.tensor(1.0)).rsample()
    tensor(1.)

    :param temperature: tau > 0 of the surrogate, without effect on samples and log_prob; a number,
        a tensor that broadcasts with the batch shape, or a function without arguments that returns
        one, such as a temperature schedule; the constructor calls it once. None for second order.
    :param probs: the probability of 1, in [0, 1]; its shape is the batch shape.
    :param logits: its log-odds x, real or infinite. Give exactly one of `probs` and `logits`.
    :param estimator: without a temperature "second_order", the default, "mve" or "reinmax_rao";
        with one "gumbel_softmax", the default, "gumbel_rao", "straight_through", "reinmax",
        "gapped", or a function of (logits, temperature, perturbed, hard, link) that returns a
        tensor of the sample's shape, whose gradient is used; `perturbed` is z, and `hard` the
        sample. `pyro_gumbel.estimators` has the formula and source of each.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    cdf: Any = absent(_IS_A_STEP, "use probs: P(D <= 0) is 1 - probs")
    icdf: Any = absent(_IS_A_STEP, "use probs: P(D <= 0) is 1 - probs")

    family = bernoulli
    replaces = RelaxedBernoulliStraightThrough  # by register(replace=True)
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = RelaxedBernoulli.arg_constraints
    _support_text = "hard, that is exactly 0 or 1"
    _remedy = (
        "draw it from a BernoulliStraightThrough in the guide too, or relax this distribution: "
        "RelaxedBernoulli"
    )


# `relax` of a Bernoulli returns one of these.
register_relaxation(TorchBernoulli, BernoulliStraightThrough, RelaxedBernoulli)
# Divergences between two of the same relaxed class.
kl.register_relaxed(RelaxedBernoulli, LogitRelaxedBernoulli)
# Between a RelaxedBernoulli and a TransformedDistribution of torch.
kl.register_transformed(RelaxedBernoulli)
# Between straight-through and plain Bernoulli distributions.
kl.register_outcomes(BernoulliStraightThrough, TorchBernoulli)
