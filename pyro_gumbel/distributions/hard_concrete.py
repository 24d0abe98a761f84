# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Gates, which are 0, 1 or between, with gradients.

`HardConcrete` has the gates for values, `LogitHardConcrete` their form in logit space.
"""

import math
import warnings
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import in_program, known
from pyro_gumbel._validation import Temperature, read_number_between
from pyro_gumbel.constraints import gate as gate_constraint
from pyro_gumbel.distributions import kl
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.bernoulli import (
    LogitRelaxedBernoulli,
    bernoulli,
    probability_below,
    quantile_of,
)
from pyro_gumbel.distributions.relaxed import RelaxedValue, entropy_of_outcomes
from pyro_gumbel.distributions.sample_cache import cached, recall, remember
from pyro_gumbel.kernels import dispatch
from pyro_gumbel.links import ClippedInterval, interval
from pyro_gumbel.ops.gate_moments import gate_mean, gate_variance
from pyro_gumbel.ops.precision import cast

__all__ = ["HardConcrete", "LogitHardConcrete"]

_FARTHEST = 1000.0  # what is between 0 and 1 would else be lost in the rounding


def clipped_interval(owner: str, low: float, high: float) -> ClippedInterval:
    """The link of gates with these ends of the stretched interval, which are checked."""
    low = read_number_between(owner, "low", low, -_FARTHEST, 0.0, "-0.1")
    high = read_number_between(owner, "high", high, 1.0, _FARTHEST, "1.1")
    return ClippedInterval(low, high)


class HardConcrete(RelaxedValue, TorchDistribution):
    r"""A gate: exactly 0 or exactly 1 with positive probability, else between, with a gradient.

    .. math::
        s = \min\bigl(1, \max(0, r)\bigr), \qquad r = l + (h - l) \, \sigma(v), \\
        v = \frac{x + L}{\tau}, \qquad L \sim \text{Logistic}(0, 1),

    with :math:`x` the logit, :math:`\tau` the temperature, :math:`\sigma` the sigmoid and
    :math:`l < 0 < 1 < h` the ends of the stretched interval. So r, the *stretched value*, is that
    of a `RelaxedBernoulli` on [l, h]. A gate is 0 or 1 with the probabilities

    .. math::
        P(s = 0) = \sigma\bigl(\tau \log\tfrac{-l}{h} - x\bigr), \qquad
        P(s = 1) = \sigma\bigl(x - \tau \log\tfrac{1 - l}{h - 1}\bigr),

    and between 0 and 1 it has the density of r. With :math:`d = x - \tau v` it is

    .. math::
        \log p(r) = \log \tau + \log \sigma(d) + \log \sigma(-d)
                    - \log \sigma(v) - \log \sigma(-v) - \log (h - l).

    **log_prob.** A tensor that `rsample` or `sample` returned, or `LogitHardConcrete.gate`, has its
    v attached. Its log_prob is the log density of r, also at 0 and 1. So r is the latent variable
    of the ELBO, whose gradient is unbiased. With the distribution of s instead, the gradient of the
    divergence would be too small, since log P(0) and log P(1) pass none to the sample: for the
    logits 1 and -1 by 30 % at temperature 0.5, and by 80 % at 0.1. Any other tensor (a copy, a
    slice, one read from a file, an observation) is evaluated by the distribution of s: log P(0) at
    0, log P(1) at 1, and the log density between, which is that of r. A guide and its model
    evaluate the same tensor, so they agree. Write ``value.detach().clone()`` to evaluate a draw as
    an observation.

    **Divergence.** `kl_divergence` is exact at any two temperatures, and that of r. It is an upper
    bound of the divergence of s, so that the ELBO is a lower bound still. For the logits 1 and -1
    it is 0.626 nats, and the divergence of s 0.604 at temperature 0.5 and 0.508 at 0.1. Prior and
    guide must have the same `low` and `high`.

    `rsample` passes no gradient where the gate is clipped, as in the source: Louizos, Welling and
    Kingma, "Learning sparse neural networks through L0 regularization" (2018),
    https://arxiv.org/abs/1712.01312. Its L0 penalty, the expected number of gates that are not 0,
    is ``d.prob_nonzero.sum()``. For test time, ``d.mode`` is a gate without noise.

    NUTS and autoguides need a density without points of positive probability: use
    `LogitHardConcrete` there.

    >>> d = HardConcrete(0.5, logits=torch.tensor([-2.0, 0.0, 2.0]))
    >>> d.prob_nonzero
    tensor([0.3098, 0.7683, 0.9608])
    >>> d.log_prob(d.rsample()).shape
    torch.Size([3])

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape, or a
        function without arguments that returns one, such as a temperature schedule; the constructor
        calls it once. Louizos et al. use 2/3.
    :param probs: the probability that v > 0, in [0, 1], which for the default ends is that of a
        gate above 1/2; its shape is the batch shape.
    :param logits: its log-odds x, real or infinite. Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes, types, `low` and `high`
        are always checked.
    :param low: l, the lower end of the stretched interval, a number below 0 and above -1000.
    :param high: h, its upper end, a number above 1 and below 1000.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`; in
        `log_prob`, for a gate that was drawn with another `low` or `high`.
    :raises TypeError: for an argument of another type.
    """

    family = bernoulli
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        **bernoulli.arg_constraints,
        "low": constraints.less_than(0.0),
        "high": constraints.greater_than(1.0),
    }
    support = gate_constraint
    enumerate_support: Any = absent(
        "is of discrete values, and a gate may be between 0 and 1",
        "use BernoulliStraightThrough for gates that are only 0 and 1",
    )
    _support_text = "in [0, 1]"
    _remedy = "write d.gate(value) if these are values of d = LogitHardConcrete(...)"

    link: ClippedInterval

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
        *,
        low: float = -0.1,
        high: float = 1.1,
    ) -> None:
        link = clipped_interval(type(self).__name__, low, high)
        super().__init__(temperature, probs, logits, validate_args)
        self.link = link

    @property
    def low(self) -> float:
        """l, the lower end of the stretched interval."""
        return self.link.low

    @property
    def high(self) -> float:
        """h, the upper end of the stretched interval."""
        return self.link.high

    @property
    def _own_arguments(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}

    @classmethod
    def infer_shapes(
        cls, *args: Any, low: tuple[()] = (), high: tuple[()] = (), **kwargs: Any
    ) -> tuple[torch.Size, torch.Size]:
        """The batch shape and the event shape from the shapes of the arguments.

        :param low: the shape of a number, or the number; likewise `high`.
        """
        return super().infer_shapes(*args, **kwargs)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw that is differentiable in the parameters where it is neither 0 nor 1."""
        v = self._draw(sample_shape, keep=True, log_prob=False, link=interval).unconstrained
        return self._to_value(v)  # type: ignore[arg-type]

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(r) of a value as it was drawn; of any other tensor that of the gate s.

        :raises ValueError: for a value that was drawn with another `low` or `high`.
        :warns UserWarning: for a copy of a draw that carries a gradient and is 0 or 1 somewhere,
            with validation on: the gradient of the ELBO is then biased.
        """
        if isinstance(value, Tensor):
            self._require_same_ends(value)
            if recall(value, self.link) is not None:
                return super().log_prob(value)
        self._validate_sample(value)
        self._warn_of_lost_memory(value)
        return self._over_batch(self._log_prob_of_gate(value))

    def _require_same_ends(self, value: Tensor) -> None:
        """Raise if a value has the memory of a gate with other ends."""
        key, _ = cached(value)
        if isinstance(key, ClippedInterval) and key != self.link:
            owner = type(self).__name__
            raise ValueError(
                f"{owner}: `value` must be a gate of low={self.low} and high={self.high}, got one "
                f"that was drawn with low={key.low} and high={key.high}, whose density is on "
                f"another interval; write {owner}(..., low={key.low}, high={key.high}), or "
                "value.detach().clone() to evaluate it as an observed gate"
            )

    def _warn_of_lost_memory(self, value: Tensor) -> None:
        """Warn of a value of 0 or 1 that was computed from parameters, but not as a draw."""
        is_computed = value.requires_grad and not value.is_leaf
        if not (is_computed and self._validate_args) or in_program():
            return
        if known(((value == 0) | (value == 1)).any(), otherwise=False):
            warnings.warn(
                f"{type(self).__name__}: `value` must be the tensor that rsample returned for an "
                "unbiased gradient, got another one with a gradient that is 0 or 1 somewhere, as a "
                "copy or a slice of a draw; write value.detach() for an observed gate, or use "
                "LogitHardConcrete for draws that are copied",
                stacklevel=3,
            )

    def _log_density(self, value: Tensor, unconstrained: Tensor, *, of_values: bool) -> Tensor:
        # At the value of the bits, which is 0 and 1 only where an outcome is certain.
        return self._log_density_of_bits(unconstrained.sigmoid(), self.link.finite(unconstrained))

    def _log_density_of_bits(self, bits: Tensor, v: Tensor) -> Tensor:
        """log p(r), by the kernels for the bits."""
        how = *self._logits_and_tau, interval, self._batch_shape
        return self._stretched(dispatch.log_density(bits, v, *how, of_values=True))

    def _stretched(self, density: Tensor) -> Tensor:
        """The log density on [l, h] from that on [0, 1]; a certain outcome keeps its 0."""
        return torch.where(self._logits.isinf(), density, density - math.log(self.high - self.low))

    def _log_prob_of_gate(self, value: Tensor) -> Tensor:
        """log P(s) at 0 and 1, and log p(s) between."""
        s = cast(value, torch.promote_types(value.dtype, self._dtype))
        inside = self._log_density_of_bits(s, self.link.inverse(s))
        of_zero = logsigmoid(-self._above(self.link.at_zero))
        of_one = logsigmoid(self._above(self.link.at_one))
        log_prob = torch.where(s <= 0, of_zero, torch.where(s >= 1, of_one, inside))
        return torch.where(self._logits.isinf(), log_prob.detach(), log_prob)

    def _above(self, v: float) -> Tensor:
        """x - tau v, the log-odds of a value above v in logit space."""
        return self._logits - self._tau * v

    def _to_value(self, unconstrained: Tensor) -> Tensor:
        value, dtype = self.link.value(unconstrained), self._parameter.dtype
        if dtype.itemsize < 4:
            value = _kept_inside(value, dtype)
        return remember(cast(value, dtype), self.link, unconstrained)

    # The distribution of the gate s.

    @property
    def prob_zero(self) -> Tensor:
        """P(s = 0) = sigmoid(tau log(-l / h) - x)."""
        return self._expanded((-self._above(self.link.at_zero)).sigmoid())

    @property
    def prob_one(self) -> Tensor:
        """P(s = 1) = sigmoid(x - tau log((1 - l) / (h - 1)))."""
        return self._expanded(self._above(self.link.at_one).sigmoid())

    @property
    def prob_nonzero(self) -> Tensor:
        """P(s > 0) = sigmoid(x - tau log(-l / h)), whose sum over the gates is the L0 penalty."""
        return self._expanded(self._above(self.link.at_zero).sigmoid())

    @property
    def mean(self) -> Tensor:
        """E s, by quadrature to 1e-12."""
        return self._expanded(gate_mean(self._logits64, self._tau, self.low, self.high))

    @property
    def variance(self) -> Tensor:
        """The variance of s, by quadrature to 1e-12."""
        return self._expanded(gate_variance(self._logits64, self._tau, self.low, self.high))

    @property
    def mode(self) -> Tensor:
        """0 or 1 where that has a probability above 1/2, else l + (h - l) sigmoid(x), clipped.

        It is the gate without noise, for test time.
        """
        zero, one = self._above(self.link.at_zero) < 0, self._above(self.link.at_one) > 0
        between = self.link.value(self._logits)
        return self._expanded(torch.where(zero, 0.0, torch.where(one, 1.0, between)))

    def cdf(self, value: Tensor) -> Tensor:
        """P(s <= value): sigmoid(tau v - x) with v that of `value`, and 1 from 1 on."""
        self._validate_sample(value)
        s = cast(value, torch.promote_types(value.dtype, self._dtype))
        below = probability_below(self, self.link.inverse(s))
        return torch.where(s < 0, 0.0, torch.where(s >= 1, 1.0, below))

    def icdf(self, value: Tensor) -> Tensor:
        """The smallest s with P(s' <= s) >= `value`, which is clipped like a draw."""
        return self._to_value(quantile_of(self, value))

    def entropy(self) -> Tensor:
        """-E log_prob of a draw, the differential entropy of r in nats; 0 for a certain outcome."""
        return -self._stretched(-entropy_of_outcomes(self, of_values=True))


def _kept_inside(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value`, such that what is between 0 and 1 is not rounded to them in a half type."""
    least, most = torch.finfo(dtype).tiny, 1 - torch.finfo(dtype).eps / 2
    return torch.where((value > 0) & (value < 1), value.clamp(least, most), value)


class LogitHardConcrete(LogitRelaxedBernoulli):
    r"""The form of a `HardConcrete` in logit space, on the real line.

    .. math:: v = \frac{x + L}{\tau}, \qquad L \sim \text{Logistic}(0, 1),

    with :math:`x` the logit and :math:`\tau` the temperature. It is the `LogitRelaxedBernoulli`
    with the same arguments, and `gate` makes a gate of a value:

    .. math:: s = \min\bigl(1, \max(0, \; l + (h - l) \, \sigma(v))\bigr).

    Its density has no points of positive probability. So use it for NUTS and for autoguides, which
    refuse a `HardConcrete`, and for values that are copied or stored::

        d = LogitHardConcrete(0.5, logits=logits)
        gate = d.gate(pyro.sample("v", d.to_event(1)))

    Louizos, Welling and Kingma, "Learning sparse neural networks through L0 regularization" (2018),
    https://arxiv.org/abs/1712.01312.

    >>> d = LogitHardConcrete(0.5, logits=torch.zeros(3))
    >>> d.gate(torch.tensor([-5.0, 0.0, 5.0]))
    tensor([0.0000, 0.5000, 1.0000])

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape, or a
        function without arguments that returns one, such as a temperature schedule; the constructor
        calls it once.
    :param probs: the probability that v > 0, in [0, 1]; its shape is the batch shape.
    :param logits: its log-odds x, real or infinite. Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes, types, `low` and `high`
        are always checked.
    :param low: l, the lower end of the stretched interval, a number below 0 and above -1000.
    :param high: h, its upper end, a number above 1 and below 1000.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = HardConcrete.arg_constraints
    _remedy = "write the value in logit space, or use HardConcrete if this is a gate"

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
        *,
        low: float = -0.1,
        high: float = 1.1,
    ) -> None:
        self._of_gates = clipped_interval(type(self).__name__, low, high)
        super().__init__(temperature, probs, logits, validate_args)

    @property
    def low(self) -> float:
        """l, the lower end of the stretched interval."""
        return self._of_gates.low

    @property
    def high(self) -> float:
        """h, the upper end of the stretched interval."""
        return self._of_gates.high

    @property
    def _own_arguments(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}

    @classmethod
    def infer_shapes(
        cls, *args: Any, low: tuple[()] = (), high: tuple[()] = (), **kwargs: Any
    ) -> tuple[torch.Size, torch.Size]:
        """The batch shape and the event shape from the shapes of the arguments.

        :param low: the shape of a number, or the number; likewise `high`.
        """
        return super().infer_shapes(*args, **kwargs)

    @property
    def gates(self) -> HardConcrete:
        """The distribution of the gates, with the same parameters."""
        gates: HardConcrete = self._as(HardConcrete)
        gates.link = self._of_gates
        return gates

    def gate(self, value: Tensor) -> Tensor:
        """The gate of a value v, differentiable in it where it is neither 0 nor 1.

        A `HardConcrete` evaluates it by v, as a gate that it has drawn.
        """
        self._validate_sample(value)
        return self.gates._to_value(self._to_unconstrained(value))


@register_kl(HardConcrete, HardConcrete)
def _kl_of_stretched(q: HardConcrete, p: HardConcrete) -> Tensor:
    """That of the relaxed bits: both are stretched alike."""
    if q.link != p.link:
        raise ValueError(
            "kl_divergence(q, p): both gates must have the same `low` and `high`, got "
            f"low={q.low}, high={q.high} and low={p.low}, high={p.high}; write both with "
            f"low={q.low}, high={q.high}"
        )
    return kl.kl_of_relaxed(q, p)
