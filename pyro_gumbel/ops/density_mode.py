# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Where the density of a relaxed one-hot vector is largest.

Symbols: :math:`x` the logits, :math:`\tau` the temperature, :math:`k` the number of categories,
:math:`s = e^v` the value. The density (derived in `pyro_gumbel.links`) is

.. math::

    \log p(s) = \text{const}
        + \sum_i \log \operatorname{softmax}(x - \tau v)_i - \sum_i v_i.

**Existence.** Near a one-hot vector, where all other entries are of the order :math:`\epsilon`, the
log density behaves like :math:`(\tau - (k - 1)) \log \epsilon`. Below :math:`\tau = k - 1` it has a
pole there, and no mode exists.

**Equations.** For :math:`\tau \ge k - 1` set the derivative in v to 0, with a multiplier for the
constraint :math:`\sum_i s_i = 1`:

.. math:: k s_i + k \tau \operatorname{softmax}(x - \tau v)_i = \tau + 1.

With a common constant c this is

.. math:: x_i - c = G(s_i), \qquad G(s) = \tau \log s + \log(\tau + 1 - k s).

**Solution.** G increases up to :math:`s = \tau / k \ge 1/2` and decreases from there. The entries
sum to 1, so at most one of them can be on the decreasing branch: that of the largest logit. This
entry t determines c, and all other entries follow from c on the increasing branch. They are found
by Newton's method from a point below, which is monotone because G is concave in :math:`\log s`. The
entry t is found by bisection, such that all entries sum to 1. (In all cases tried, with 2 to 10
categories, the sum crosses 1 only once.) At :math:`\tau = k - 1` the result may be t = 1: the
density then has its supremum at the one-hot vector.
"""

import torch
from torch import Tensor

from pyro_gumbel.ops.bisection import bisected

__all__ = ["density_mode"]


def density_mode(logits: Tensor, temperature: Tensor) -> Tensor:
    """The value s at which the density is largest, with derivatives in both arguments.

    :param logits: x, over the last dimension; k of them are finite.
    :param temperature: tau >= k - 1, of the batch shape.
    """
    x, tau = logits.double(), temperature.double().unsqueeze(-1)
    out = x.isneginf()
    k = (~out).sum(-1, keepdim=True).double()
    x = torch.where(out, -1e100, x)
    is_largest = torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), 1.0) > 0
    with torch.no_grad():
        s = _stationary_point(x, tau, k, is_largest)
    return s + _newton_step(s, x, tau, k, is_largest)


def _newton_step(s: Tensor, x: Tensor, tau: Tensor, k: Tensor, is_largest: Tensor) -> Tensor:
    """One step of Newton's method on all equations at once: it carries the derivatives of s.

    The equations c = x_i - G(s_i) and sum(s) = 1 are linearised with G'(s) = slope / room.
    """
    slack = (tau + 1 - k * s).clamp(min=1e-300)
    common = x - tau * s.clamp(min=1e-300).log() - slack.log()  # c, by each equation
    slope = tau.detach() - k * s
    room = (s * slack / (tau + 1)).detach()
    share = torch.where(is_largest | (slope == 0), 0.0, room / torch.where(slope == 0, 1.0, slope))
    top_slope, top_room, top = (
        torch.where(is_largest, part, 0.0).sum(-1, keepdim=True) for part in (slope, room, common)
    )
    others = (share * common).sum(-1, keepdim=True)
    weight = top_slope * share.sum(-1, keepdim=True) + top_room
    flat = weight.abs() < 1e-9 * top_room  # singular: the mode has no derivative
    mean = (top_slope * others + top_room * top) / torch.where(flat, 1.0, weight)
    step = torch.where(flat, 0.0, share * (common - mean))
    return torch.where(is_largest, -step.sum(-1, keepdim=True), step)


def _stationary_point(x: Tensor, tau: Tensor, k: Tensor, is_largest: Tensor) -> Tensor:
    """The solution s of the equations, up to rounding."""
    lag = x - x.amax(-1, keepdim=True)

    def all_entries(t: Tensor) -> Tensor:
        """All entries, given the one of the largest logit."""
        height = tau * t.log() + (tau + 1 - k * t).log()
        return torch.where(is_largest, t, _on_increasing_branch(lag + height, tau, k))

    def missing(t: Tensor) -> Tensor:
        """What the entries lack of a sum of 1."""
        return 1 - 1e-14 - all_entries(t).sum(-1, keepdim=True)

    low = (1 / k).expand(lag[..., :1].shape)
    return all_entries(bisected(missing, low, torch.ones_like(low), steps=50))


def _on_increasing_branch(height: Tensor, tau: Tensor, k: Tensor) -> Tensor:
    """The s <= tau / k at which G(s) is `height`."""
    top = (tau / k).log()
    log_s = torch.minimum((height - (tau + 1).log()) / tau, top)
    for _ in range(40):
        slack = tau + 1 - k * log_s.exp()
        slope = tau - k * log_s.exp() / slack
        step = (height - tau * log_s - slack.log()) / slope.clamp(min=1e-9)
        log_s = torch.minimum(log_s + step.clamp(min=0), top)
    return log_s.exp()
