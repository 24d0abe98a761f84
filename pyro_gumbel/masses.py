# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Probabilities of sets of winners, as integrals over one common threshold.

Symbols: x the logits, z = x + g the perturbed logits, g iid Gumbel(0, 1), S the set of the m
largest z. All is computed in float64.

**The mass of a set.** S wins where all its members exceed the largest z outside, which is
Gumbel with location A, the logsumexp of the x outside. With h that largest less A, d_i = x_i - A
and P(z_i > A + h) = 1 - exp(-exp(d_i - h)) (Kool, van Hoof and Welling, "Estimating gradients for
discrete random variables by sampling without replacement" (2020),
https://arxiv.org/abs/2002.06043, appendix B):

    P(S) = \int exp(-h - e^{-h}) prod_{i in S} (1 - exp(-exp(d_i - h))) dh.

The logarithm of the integrand is concave, with its mode where

    e^{-h} = 1 + sum_i phi(d_i - h),    phi(u) = e^u / (exp(e^u) - 1) in (0, 1),

between h = -log(m + 1) and 0. With a = e^{-h} there, concavity leaves at a distance delta below
the mode at most -a (e^delta - 1 - delta), and above it at most -a (delta + e^-delta - 1). The
trapezoid rule runs over what is within 40 nats of the mode, in 160 steps; on an analytic integrand
that has died down at both ends it converges geometrically. The derivative is a mean of phi,

    d log P / d d_i = E_h[phi(d_i - h)],    h by its weight in the sum.

(Inclusion-exclusion over subsets cancels catastrophically; summing over orders costs m! terms.)

**Inclusion.** i is in S where fewer than m of the independent events z_j > t, j other than i,
happen at t = z_i, whose density is f_i:

    P(i in S) = \int f_i(t) P(N_{-i}(t) < m) dt = 1 - \int f_i(t) P(N_{-i}(t) >= m) dt.

Categories with the m largest logits take the second form, the others the first; then every
integrand lives near the m-th largest logit. The counts N_{-i}, "all but one", come from a tree over
the categories: up it goes the law of the count within each node, and down it, for each count that
the node may have, the probability that together with those outside there are fewer than m.
Nothing is subtracted on either way. (Long laws are convolved by FFT, with an error of eps.)
Where m > k / 2 the tree counts the events that do not happen.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["inclusion_probabilities", "kl_of_masses", "log_subset_mass"]

_STEPS = 160
_NATS = 40.0
_FFT_FROM = 16  # outcomes of a count, from where on a convolution goes through the FFT
_BLOCK = 2**20  # numbers in a temporary tensor, where that can be chosen


def log_subset_mass(advantages: Tensor) -> Tensor:
    """log P(S), to 1e-10.

    Memory is that of `advantages`, in the gradient too; second derivatives take 160 times that.

    :param advantages: d_i = x_i - A of the members of S over the last dimension, in float64.
    """
    compiling = torch.compiler.is_compiling()
    function = _LogSubsetMass if compiling else _LogSubsetMassInForwardMode
    return function.apply(advantages)


class _LogSubsetMass(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(d: Tensor) -> Tensor:
        h, step = _nodes(d)
        parts = [_log_integrand(d, part).logsumexp(-1) for part in _blocks(h, d.numel())]
        return torch.stack(parts).logsumexp(0) + step.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.unsqueeze(-1) * _slopes(*ctx.saved_tensors)


class _LogSubsetMassInForwardMode(_LogSubsetMass):
    """The same for torch.func.jvp too, which torch.compile knows not."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return (tangent * _slopes(*ctx.saved_tensors)).sum(-1)


def _slopes(d: Tensor, log_mass: Tensor) -> Tensor:
    """d log P / d d_i: the mean of phi(d_i - h)."""
    h, step = _nodes(d.detach())
    log_scale = (step.log() - log_mass).unsqueeze(-1)
    total = torch.zeros_like(d)
    for part in _blocks(h, d.numel()):
        weights = (_log_integrand(d, part) + log_scale).exp()
        total = total + (weights.unsqueeze(-1) * _phi(_above(d, part))).sum(-2)
    return total


def _nodes(d: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes h of the trapezoid rule, over a last dimension, and their distance."""
    m = d.shape[-1]

    def slope(h: Tensor) -> Tensor:
        return torch.exp(-h) - 1 - _phi(_above(d, h)).sum(-1)

    start = d.new_zeros((*d.shape[:-1], 1))
    mode = _bisected(slope, start - math.log(m + 1), start, steps=20)
    a = mode.neg().exp()
    peak = _log_integrand(d, mode)

    def height(h: Tensor) -> Tensor:
        return _log_integrand(d, h) - peak + _NATS

    low = mode - (2 * _NATS / a).sqrt().clamp(max=3.8)
    far = mode + _NATS / a + (2 * _NATS / a).sqrt().clamp(max=1)
    high = _bisected(height, mode, far, steps=10)
    steps = torch.linspace(0, 1, _STEPS + 1, dtype=d.dtype, device=d.device)
    return low + (high - low) * steps, ((high - low) / _STEPS).squeeze(-1)


def _bisected(
    function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, *, steps: int
) -> Tensor:
    """A point just above the root of a decreasing function."""
    for _ in range(steps):
        middle = (low + high) / 2
        above = function(middle) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high


def _blocks(h: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """The nodes in parts, so that a tensor over a part and `numbers` others stays small."""
    return h.split(max(1, _BLOCK // max(1, numbers)), -1)


def _above(d: Tensor, h: Tensor) -> Tensor:
    """d_i - h for each node h, the members in the last dimension."""
    return d.unsqueeze(-2) - h.unsqueeze(-1)


def _log_integrand(d: Tensor, h: Tensor) -> Tensor:
    """-h - e^-h + sum_i log(1 - exp(-exp(d_i - h))); below u = -40 the last logarithm is u."""
    u = _above(d, h)
    y = u.clamp(-40, 6.5).exp()
    factors = u.clamp(max=0) + (-torch.expm1(-y) / y.clamp(max=1)).log()
    return factors.sum(-1) - h - torch.exp(-h)


def _phi(u: Tensor) -> Tensor:
    """y / (e^y - 1) at y = e^u: the derivative of log(1 - exp(-e^u))."""
    y = u.clamp(-40, 6.5).exp()
    return y / torch.expm1(y)


def inclusion_probabilities(logits: Tensor, size: int) -> Tensor:
    """P(i is among the `size` largest of x + g), to 1e-12.

    Time grows as k sqrt(size), memory as k, up to logarithms.

    :param logits: x in float64, over the last dimension; -inf for what cannot win. At least
        `size` are finite.
    :param size: m, 1 <= m <= k.
    """
    m, k = size, logits.shape[-1]
    if m == k:
        return torch.ones_like(logits)
    x = logits.detach()
    ranked = x.sort(-1, descending=True).values
    boundary = ranked[..., m - 1 : m]
    low = boundary - math.log(_NATS + math.log(m))
    high = ranked[..., m - 1 :].logsumexp(-1, keepdim=True) + _NATS
    width = min(0.25, 0.6 / math.sqrt(m + 1))
    count = math.ceil((math.log(_NATS + math.log(m)) + math.log(k - m + 1) + _NATS) / width)
    steps = torch.linspace(0, 1, count + 1, dtype=x.dtype, device=x.device)
    nodes = low + (high - low) * steps
    step = (high - low) / count
    leading = x >= boundary
    total = torch.zeros_like(logits)
    for t in _blocks(nodes, x.numel() * (2 + m.bit_length())):
        u = _above(logits, t).clamp(max=6.5)
        density = (u - u.exp()).exp()  # f_i(t), of Gumbel noise
        miss = torch.exp(-u.exp())  # P(z_i < t)
        if m <= k / 2:
            few = _fewer_among_the_others(miss, m)
        else:
            few = 1 - _fewer_among_the_others(1 - miss, k - m)
        share = torch.where(leading.unsqueeze(-2), 1 - few, few)
        total = total + (density * share).sum(-2)
    integral = total * step
    return torch.where(leading, 1 - integral, integral)


def _fewer_among_the_others(misses: Tensor, size: int) -> Tensor:
    """For each of independent events: P(fewer than `size` of the others happen).

    :param misses: the probability that each does not happen, over the last dimension.
    """
    k = misses.shape[-1]
    depth = (k - 1).bit_length()
    misses = pad(misses, (0, 2**depth - k), value=1.0)
    levels = [torch.stack([misses, 1 - misses], -1)[..., :size]]
    for _ in range(depth - 1):
        left, right = levels[-1][..., ::2, :], levels[-1][..., 1::2, :]
        levels.append(_convolved(left, right)[..., :size])
    # Of a node, with j = 0, 1, ...: P(fewer than `size` happen outside, if j happen inside).
    few = misses.new_ones((*misses.shape[:-1], 1, size))
    for law in reversed(levels):
        inside = 1 if law is levels[0] else law.shape[-1]
        left, right = law[..., ::2, :], law[..., 1::2, :]
        pair = [_correlated(few, other, inside) for other in (right, left)]
        few = torch.stack(pair, -2).flatten(-3, -2)
    return few[..., :k, 0]


def _correlated(function: Tensor, law: Tensor, length: int) -> Tensor:
    """E function(j + N) for j = 0, ..., length - 1, N a count with that law; 0 beyond its end."""
    offset = law.shape[-1] - 1
    full = _convolved(function, law.flip(-1))
    return pad(full, (0, length))[..., offset : offset + length]


def _convolved(left: Tensor, right: Tensor) -> Tensor:
    """The coefficients of the product of two polynomials."""
    if left.shape[-1] > right.shape[-1]:
        left, right = right, left
    short, length = left.shape[-1], left.shape[-1] + right.shape[-1] - 1
    if short > _FFT_FROM:
        fast = 2 ** (length - 1).bit_length()
        product = torch.fft.rfft(left, fast) * torch.fft.rfft(right, fast)
        return torch.fft.irfft(product, fast)[..., :length]
    terms = [left[..., i : i + 1] * pad(right, (i, short - 1 - i)) for i in range(short)]
    return sum(terms[1:], terms[0])


def kl_of_masses(log_q: Tensor, log_p: Tensor) -> Tensor:
    """sum_i q_i (log q_i - log p_i) over the last dimension.

    An outcome that q excludes adds 0; one that only p excludes makes it infinite.
    """
    counts = ~log_q.isneginf()
    inside = counts & ~log_p.isneginf()
    ratio = torch.where(inside, log_q, 0.0) - torch.where(inside, log_p, 0.0)
    total = (torch.where(inside, log_q, 0.0).exp() * ratio).sum(-1)
    return torch.where((counts & ~inside).any(-1), torch.inf, total)
