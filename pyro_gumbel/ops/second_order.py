# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Surrogates of discrete samples that are unbiased for quadratic losses.

Let D be a draw of a discrete distribution with mean :math:`\mu` and variance V, and let u be the
gradient of a loss f at D. Primes are derivatives in a parameter. The gradient of E f is estimated
from this one draw by :math:`\langle s', u \rangle`, with a *surrogate* s that is differentiable in
the parameter, and whose value does not matter.

**A number.** The standardised residual of the draw is held fixed:

.. math::
    s = \mu + c \, V, \qquad c = \frac{D - \mu}{2 V} \text{ held constant,} \qquad
    s' = \mu' + \frac{D - \mu}{2 V} V'.

For f = D the estimate is :math:`\mu'`. For :math:`f = D^2` it is on average

.. math:: E[2 D s'] = 2 \mu \mu' + \frac{2 V}{2 V} V' = (\mu^2 + V)',

which is exact. So it is unbiased for every quadratic loss. Of all weights w(D) with
:math:`E[w(D) f'(D)] = (E f)'` for quadratic f, :math:`s'` has the least norm, since it is linear in
D. These are the second-order weights of He and Wu (2026). Where V = 0, c is 0.

**A vector.** With the log probability of the draw,

.. math::
    s = \tfrac{1}{2} \mu + \tfrac{1}{2} \log P(D) \, (D - \mu),
    \qquad D - \mu \text{ held constant.}

For :math:`f(D) = \langle b, D \rangle + \tfrac{1}{2} \langle D, A D \rangle`, with A symmetric,
:math:`u = b + A D` and :math:`E[(\log P(D))' D] = \mu'`,

.. math::
    E \langle s', u \rangle = \tfrac{1}{2} \langle \mu', b + A \mu \rangle
        + \tfrac{1}{2} \bigl( \langle \mu', b \rangle + E[(\log P(D))' \langle D, A D \rangle]
        - \langle \mu', A \mu \rangle \bigr) = (E f)'.

For a one-hot vector of probabilities :math:`p = \operatorname{softmax}(x)` the gradient that it
passes to x is that of ReinMax at temperature 1 (Liu, Dong, Liu, Yu and Gao, "Bridging discrete and
backpropagation: straight-through and beyond" (2023), https://arxiv.org/abs/2304.08612),

.. math:: \tfrac{1}{2} \bigl( p \, (u - \langle D, u \rangle) + D \langle D - p, u \rangle \bigr),

and for a bit with logit x it is :math:`\tfrac{1}{2} |D - p| \, u`.

**Counts of n trials.** Each trial is a one-hot vector, which gives on the whole

.. math::
    s = \tfrac{1}{2} n p + \tfrac{1}{2} \sum_j D_j \log p_j \, (e_j - p),
    \qquad D_j (e_j - p) \text{ held constant.}
"""

from typing import Any

import torch
from torch import Tensor

from pyro_gumbel.ops.autograd import with_own_gradient, zero_with_gradient

__all__ = [
    "surrogate_of_number",
    "surrogate_of_trials",
    "surrogate_of_vector",
    "with_bit_gradient",
    "with_one_hot_gradient",
]


def surrogate_of_number(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """s of a number; all arguments broadcast with each other."""
    varies = variance.detach() > 0
    spread = torch.where(varies, variance.detach(), 1.0)
    c = torch.where(varies, (value - mean.detach()) / (2 * spread), 0.0)
    return mean + c * variance


def surrogate_of_vector(value: Tensor, mean: Tensor, log_prob: Tensor, event_dim: int) -> Tensor:
    """s of a vector.

    :param log_prob: log P(value), over the batch.
    :param event_dim: the number of dimensions of one value.
    """
    weight = log_prob.reshape(log_prob.shape + (1,) * event_dim)
    return 0.5 * mean + 0.5 * weight * (value - mean).detach()


def surrogate_of_trials(counts: Tensor, probs: Tensor, log_probs: Tensor) -> Tensor:
    """s of counts of categories, over the last dimension.

    :param log_probs: log p, finite where a count is not 0, and not NaN.
    """
    counts = counts.detach()
    weights = torch.where(counts > 0, counts * log_probs, 0.0)
    of_trials = weights - probs.detach() * weights.sum(-1, keepdim=True)
    return 0.5 * counts.sum(-1, keepdim=True) * probs + 0.5 * of_trials


def with_bit_gradient(value: Tensor, logits: Tensor) -> Tensor:
    """The bits `value`, with the gradient of s in their logits."""
    return _attached(_Bit, _bit, value, logits)


def with_one_hot_gradient(value: Tensor, logits: Tensor) -> Tensor:
    """The one-hot vectors `value`, with the gradient of s in their logits, which may be -inf."""
    return _attached(_OneHot, _one_hot, value, logits)


def _attached(function: Any, operations: Any, value: Tensor, logits: Tensor) -> Tensor:
    """The hard value with its gradient.

    A compiled program is made of the operations: in torch 2.8 its tensors cannot be given an
    attribute, the mark of a sample, if they are results of a `Function`.
    """
    if torch.compiler.is_compiling():
        return operations(value, logits)
    return with_own_gradient(function, operations, value, logits)


def _bit(value: Tensor, logits: Tensor) -> Tensor:
    return value + _bit_gradient(value, logits, _finite_step(logits))


def _one_hot(value: Tensor, logits: Tensor) -> Tensor:
    return value + _one_hot_gradient(value, logits, _finite_step(logits))


def _finite_step(logits: Tensor) -> Tensor:
    return zero_with_gradient(torch.where(logits.isfinite(), logits, 0.0))


def _bit_gradient(value: Tensor, logits: Tensor, u: Tensor) -> Tensor:
    """|D - p| u / 2."""
    return (value - logits.detach().sigmoid()).abs() * (0.5 * u)


def _one_hot_gradient(value: Tensor, logits: Tensor, u: Tensor) -> Tensor:
    """(p (u - <D, u>) + D <D - p, u>) / 2: the product with a symmetric matrix."""
    p = logits.detach().softmax(-1)
    chosen = (value * u).sum(-1, keepdim=True)
    return 0.5 * (p * (u - chosen) + value * (chosen - (p * u).sum(-1, keepdim=True)))


class _Bit(torch.autograd.Function):
    """D, with the gradient of s."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, logits: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        value, logits = ctx.saved_tensors
        return None, _bit_gradient(value, logits, gradient)


class _OneHot(_Bit):
    """D, with the gradient of s."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        value, logits = ctx.saved_tensors
        return None, _one_hot_gradient(value, logits, gradient)
