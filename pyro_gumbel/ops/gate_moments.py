# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The mean and the variance of a gate, by quadrature.

Symbols: :math:`x` the logit, :math:`\tau` the temperature, :math:`L` a standard logistic variate,
:math:`v = (x + L) / \tau`, :math:`\sigma` the sigmoid, and the stretched value
:math:`r(v) = l + (h - l) \, \sigma(v)` with :math:`l < 0` and :math:`h > 1`. The gate is
:math:`s = \min(1, \max(0, r(v)))`. With :math:`r(a) = 0` and :math:`r(b) = 1` it is 0 for
:math:`v \le a` and 1 for :math:`v \ge b`.

**Mean.** :math:`E s = \int_0^1 P(s > t) \, dt`. Substitute :math:`t = r(v)`:

.. math:: E s = \int_a^b r'(v) \, \sigma(x - \tau v) \, dv, \qquad
    r'(v) = (h - l) \, \sigma(v) \, \sigma(-v).

**Variance.** With :math:`m = E s`, and :math:`\tau \sigma(\tau v - x) \sigma(x - \tau v)` for the
density of v,

.. math:: E (s - m)^2 = m^2 \, \sigma(\tau a - x) + (1 - m)^2 \, \sigma(x - \tau b)
    + \int_a^b (r(v) - m)^2 \, \tau \, \sigma(\tau v - x) \, \sigma(x - \tau v) \, dv.

No term is negative, so that nothing cancels. 1 - m is the mean of the gate 1 - s, which has
:math:`-x` for the logit and [1 - h, 1 - l] for the stretched interval.

**Quadrature.** At a high temperature :math:`\sigma(x - \tau v)` falls from 1 to 0 within a small
part of [a, b]. So the integrals are over a window, of a width of at most :math:`80 / \tau`, at the
place of [a, b] that is nearest to :math:`x / \tau`. To the left of it the sigmoid is 1 to rounding,
and to the right of it 0. The window is cut into 8 panels of 24 Gauss-Legendre nodes each. The poles
of the integrands, at :math:`\pm i \pi` and :math:`(x \pm i \pi) / \tau`, are then at least 0.6
times the half of a panel away, for b - a up to 80. The relative error is below 1e-12.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_gumbel.ops.quadrature import in_blocks

__all__ = ["gate_mean", "gate_variance"]

_REACH = 40.0  # of the logistic distribution: what is beyond is less than its rounding
_PANELS, _NODES = 8, 24
_BLOCK = 2**22  # the largest number of elements in a temporary tensor, where there is a choice


def gate_mean(logits: Tensor, temperature: Tensor, low: float, high: float) -> Tensor:
    """E s of a gate s, in float64 and differentiable in both.

    :param logits: x, of a shape that broadcasts with that of the temperature.
    :param temperature: tau.
    :param low: l < 0.
    :param high: h > 1.
    """
    x, tau = logits.double(), temperature.double()
    a, b = _ends(low, high)
    left, half = _window(x, tau, a, b)
    before = torch.where(left > a, low + (high - low) * left.sigmoid(), 0.0)

    def integrand(v: Tensor) -> Tensor:
        slope = (high - low) * v.sigmoid() * (-v).sigmoid()
        return slope * (x.unsqueeze(-1) - tau.unsqueeze(-1) * v).sigmoid()

    return before + _integral(integrand, left, half)


def gate_variance(logits: Tensor, temperature: Tensor, low: float, high: float) -> Tensor:
    """The variance of a gate, with the arguments of `gate_mean`."""
    x, tau = logits.double(), temperature.double()
    mean = gate_mean(x, tau, low, high)
    rest = gate_mean(-x, tau, 1 - high, 1 - low)
    a, b = _ends(low, high)
    of_ends = mean**2 * (tau * a - x).sigmoid() + rest**2 * (x - tau * b).sigmoid()

    def integrand(v: Tensor) -> Tensor:
        noise = tau.unsqueeze(-1) * v - x.unsqueeze(-1)
        distance = low + (high - low) * v.sigmoid() - mean.unsqueeze(-1)
        return distance**2 * noise.sigmoid() * (-noise).sigmoid()

    return of_ends + tau * _integral(integrand, *_window(x, tau, a, b))


def _ends(low: float, high: float) -> tuple[float, float]:
    """a and b, where the stretched value is 0 and 1."""
    return math.log(-low) - math.log(high), math.log1p(-low) - math.log(high - 1)


def _window(x: Tensor, tau: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
    """The left end of the window, and half of its width."""
    x, tau = x.detach(), tau.detach()
    half = (_REACH / tau).clamp(max=(b - a) / 2)
    left = torch.minimum((x / tau - half).clamp(min=a), b - 2 * half)
    return torch.where(half < (b - a) / 2, left, a), half


def _integral(integrand: Callable[[Tensor], Tensor], left: Tensor, half: Tensor) -> Tensor:
    """The integral over each window, in blocks of nodes that fit into memory."""
    rule = (left.new_tensor(numbers) for numbers in _RULE)
    start, half = left.unsqueeze(-1), half.unsqueeze(-1)
    blocks = in_blocks(left.numel(), _BLOCK, *rule)
    total = torch.zeros_like(left)
    for nodes, weights in blocks:
        total = total + (half * weights * integrand(start + half * (1 + nodes))).sum(-1)
    return total


def _node(i: int) -> tuple[float, float]:
    """A root of the Legendre polynomial of degree n, by Newton's method, and its weight."""
    n, root = _NODES, math.cos(math.pi * (i + 0.75) / (_NODES + 0.5))
    for _ in range(8):
        value, previous = root, 1.0
        for k in range(2, n + 1):
            value, previous = ((2 * k - 1) * root * value - (k - 1) * previous) / k, value
        slope = n * (root * value - previous) / (root**2 - 1)
        root -= value / slope
    return root, 2 / ((1 - root**2) * slope**2)


def _rule() -> tuple[list[float], list[float]]:
    """The nodes and the weights of all panels, on [-1, 1]."""
    nodes, weights = zip(*map(_node, range(_NODES)), strict=True)
    centres = [(2 * panel + 1) / _PANELS - 1 for panel in range(_PANELS)]
    all_nodes = [centre + node / _PANELS for centre in centres for node in nodes]
    return all_nodes, [weight / _PANELS for weight in weights] * _PANELS


_RULE = _rule()
