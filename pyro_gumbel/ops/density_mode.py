# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Where the density of a relaxed one-hot vector is largest.

Symbols: x the logits, tau the temperature, k the number of categories, s = exp(v) the value. In
`pyro_gumbel.links`

    log p(s) = const + sum_i log softmax(x - tau v)_i - sum_i v_i.

Near a vertex, all other entries of order epsilon, that is (tau - (k - 1)) log epsilon: below
tau = k - 1 the density has a pole there and no mode. From there on set its derivative with respect
to v, with a multiplier for sum(s) = 1, to 0:

    k s_i + k tau softmax(x - tau v)_i = tau + 1,    or, with a common constant c,

    x_i - c = G(s_i),    G(s) = tau log s + log(tau + 1 - k s).

G grows up to s = tau / k >= 1 / 2 and falls from there: no more than one entry can be beyond, and
that is the one of the largest logit. So t, this entry, fixes c; all others follow on the growing
branch, by Newton's method from a point below, monotone because G is concave in log s; and t is
bisected for a total of 1 (which it crossed once in all cases tried, of 2 to 10 categories). At
tau = k - 1 this may end at t = 1: the density has its supremum at the vertex.
"""

import torch
from torch import Tensor

__all__ = ["density_mode"]


def density_mode(logits: Tensor, temperature: Tensor) -> Tensor:
    """The s at which the density is largest, for tau >= k - 1, k the number of finite logits.

    :param logits: x, over the last dimension.
    """
    x, tau = logits.double(), temperature.double().unsqueeze(-1)
    out = x.isneginf()
    k = (~out).sum(-1, keepdim=True).double()
    x = torch.where(out, -1e100, x)
    largest = torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), 1.0) > 0
    with torch.no_grad():
        s = _stationary(x, tau, k, largest)
    # One more step of Newton's method, on all equations at once: it carries the derivatives.
    slack = (tau + 1 - k * s).clamp(min=1e-300)
    common = x - tau * s.clamp(min=1e-300).log() - slack.log()
    slope = tau.detach() - k * s
    room = (s * slack / (tau + 1)).detach()
    share = torch.where(largest | (slope == 0), 0.0, room / torch.where(slope == 0, 1.0, slope))
    top_slope, top_room, top = (
        torch.where(largest, part, 0.0).sum(-1, keepdim=True) for part in (slope, room, common)
    )
    others = (share * common).sum(-1, keepdim=True)
    weight = top_slope * share.sum(-1, keepdim=True) + top_room
    flat = weight.abs() < 1e-9 * top_room  # no mode is better than its neighbours
    mean = (top_slope * others + top_room * top) / torch.where(flat, 1.0, weight)
    step = torch.where(flat, 0.0, share * (common - mean))
    return s + torch.where(largest, -step.sum(-1, keepdim=True), step)


def _stationary(x: Tensor, tau: Tensor, k: Tensor, largest: Tensor) -> Tensor:
    """The solution, to rounding."""
    lag = x - x.amax(-1, keepdim=True)

    def all_entries(t: Tensor) -> Tensor:
        height = tau * t.log() + (tau + 1 - k * t).log()
        return torch.where(largest, t, _growing_branch(lag + height, tau, k))

    low = (1 / k).expand(lag[..., :1].shape)
    high = torch.ones_like(low)
    for _ in range(50):
        t = (low + high) / 2
        enough = all_entries(t).sum(-1, keepdim=True) >= 1 - 1e-14
        low, high = torch.where(enough, low, t), torch.where(enough, t, high)
    return all_entries(high)


def _growing_branch(height: Tensor, tau: Tensor, k: Tensor) -> Tensor:
    """The s <= tau / k at which G(s) is `height`."""
    top = (tau / k).log()
    log_s = torch.minimum((height - (tau + 1).log()) / tau, top)
    for _ in range(40):
        slack = tau + 1 - k * log_s.exp()
        slope = tau - k * log_s.exp() / slack
        step = (height - tau * log_s - slack.log()) / slope.clamp(min=1e-9)
        log_s = torch.minimum(log_s + step.clamp(min=0), top)
    return log_s.exp()
