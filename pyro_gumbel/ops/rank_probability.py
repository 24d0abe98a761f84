# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The probabilities of ranks and of inclusion, as integrals over one threshold.

Symbols: :math:`x` the logits, :math:`g` independent Gumbel(0, 1) noise, :math:`z = x + g` the
perturbed logits, k their number, m the size of a subset. Category i has rank j if :math:`z_i` is
the j-th largest. It is included in the subset if its rank is at most m. All is computed in float64.

**The integral.** Let t be a threshold and :math:`v_i = e^{x_i - t}`. Then :math:`z_i` exceeds t
with the probability :math:`q_i = 1 - e^{-v_i}` and has the density :math:`f_i = v_i e^{-v_i}` at t.
Category i has rank j if j - 1 of the other z exceed :math:`z_i = t`. Let :math:`N_{-i}` be the
number of the others that exceed t. Then

.. math:: P(i \text{ has rank } j) = \int f_i \, P(N_{-i} = j - 1) \, dt.

**The count.** The events :math:`z_l > t` are independent. So the count N of all of them has the
generating function G below, and that of :math:`N_{-i}` is G divided by the factor of i:

.. math::

    G(w) = \prod_l \bigl(1 + q_l (w - 1)\bigr), \qquad
    E\, w^{N_{-i}} = \frac{G(w)}{1 + q_i (w - 1)}.

On the circle :math:`|w| = 1` the quotient is as accurate as the product of the other factors. From
its values at n points a discrete Fourier transform gives P(N = j), if N is always below n. The
number n is odd, so that no point is w = -1, where a factor may be 0. The integral over t is taken
first, at each point of the circle, and the transform once at the end.

**How many points.** Let M be the mean of N from which on P(N < m) is below :math:`e^{-40}`
(Chernoff's bound). No threshold with a larger mean is needed. Hence n is k, or the largest count
that N reaches at a mean of M with a probability of at least :math:`e^{-40}`, if that is less. Fewer
points suffice for P(N < m) alone, the sum over ranks: as many as there are counts around the mean
that N can take (Bernstein's bound). The transform then sums the powers :math:`w^{-j}` over those
counts below m.

**Derivatives.** :math:`\partial q_l / \partial x_l = f_l`, and a common shift of all logits changes
nothing. So in the direction y

.. math::

    d \int f_i \, G_{-i}(w) \, dt
        = (w - 1) \int f_i \sum_l f_l \, G_{-i-l}(w) \, (y_l - y_i) \, dt.

The term l = i is 0 and needs no special case. The backward pass computes the same sum, with the
gradients in the place of y.

**Nodes.** The trapezoid rule converges geometrically in every variable in which the integrand is
analytic and vanishes at both ends. Here the variable is the integral of the density of nodes

.. math:: a + b \sum_i \sigma'(t - x_i),

where :math:`\sigma` is the sigmoid. Above all logits only :math:`f_i`, which is an exponential
function there, is left of the integrand, and the first term falls from a to 1. Among n events with
logits near t the count changes within :math:`1 / \sqrt{n}` of t. There are enough nodes for it,
since :math:`2 \sqrt{a b n} \le a + b n`.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from pyro_gumbel._tracing import known
from pyro_gumbel.ops.autograd import with_own_gradient, zero_with_gradient
from pyro_gumbel.ops.bisection import bisected
from pyro_gumbel.ops.quadrature import in_blocks, minus_nodes

__all__ = ["inclusion_probabilities", "rank_probabilities"]

_NATS = 40.0  # events with a probability below exp(-40) are neglected
_BLOCK = 2**20  # the largest number of elements in a temporary tensor, where there is a choice
_CACHED_BLOCK = 2**18  # the same where a dozen are in use at once: they stay in the cache
_POINTS = 16  # the largest number of points of the circle in one block

Complex = tuple[Tensor, Tensor]  # real and imaginary part: compilers support these better


def inclusion_probabilities(logits: Tensor, size: int) -> Tensor:
    """P(x_i + g_i is among the `size` largest) for each i, to 1e-12, with derivatives.

    The memory is proportional to k, also for the gradient. The time grows faster, at most as k^2.
    Second derivatives take the memory of all nodes.

    :param logits: x in float64, k categories over the last dimension; -inf for a category that is
        never included. At least `size` logits are finite.
    :param size: m, 1 <= m <= k.
    """
    if size == logits.shape[-1]:
        return 1 + 0 * zero_with_gradient(logits)  # constant, but part of the graph
    last = logits.detach().topk(size, -1).values[..., -1:]
    return _rank_probs(logits - last, size, each_rank=False).squeeze(-2)


def rank_probabilities(logits: Tensor, size: int) -> Tensor:
    """P(x_i + g_i is the j-th largest) for j up to `size` and each i, to 1e-12, with derivatives.

    The last dimension of the result is over i, the last but one over j. The memory is that of
    `inclusion_probabilities` and of the result. The time grows as k min(k, size), and with the
    range of the logits if that is in the hundreds.

    :param logits: x in float64, k categories over the last dimension; -inf for a category that has
        none of these ranks. Where fewer than `size` logits are finite, the others share the ranks
        that are left.
    :param size: m, 1 <= m <= k.
    """
    return _rank_probs(_with_closed_gaps(logits, size), size, each_rank=True)


def _with_closed_gaps(logits: Tensor, size: int) -> Tensor:
    """The logits with the largest at 0, and with gaps that are no wider than needed.

    The order of two z is certain if their logits are `_certain_gap` apart. Logits of -inf that are
    needed for `size` ranks are as far behind all others.
    """
    x = logits.detach()
    infinite = x.isneginf()
    out = infinite & ((~infinite).sum(-1, keepdim=True) >= size)
    ranked, order = x.sort(-1, descending=True)
    gaps = (ranked[..., :-1] - ranked[..., 1:]).nan_to_num(0.0)
    gaps = gaps.clamp(max=_certain_gap(x.shape[-1]))
    behind = torch.zeros_like(x).scatter(-1, order, pad(gaps, (1, 0)).cumsum(-1))
    return torch.where(out, x, -behind) + torch.where(infinite, 0.0, logits - x)


def _certain_gap(k: int) -> float:
    """A distance between logits that the noise of k categories never makes up for."""
    return _NATS + 2 * math.log(k)


def _rank_probs(x: Tensor, size: int, *, each_rank: bool) -> Tensor:
    """P(i has rank j) for each j up to `size`, or the sum over these j."""
    function = _RankProbs if torch.compiler.is_compiling() else _BatchedRankProbs
    probs: Tensor = with_own_gradient(function, _integrated_ranks, x, size, each_rank)[0]
    return probs


def _integrated_ranks(x: Tensor, size: int, each_rank: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The probabilities by the trapezoid rule; the nodes and their widths."""
    t, width = _thresholds(x.detach(), size, each_rank=each_rank)
    probs = x.new_zeros((*x.shape[:-1], size if each_rank else 1, x.shape[-1]))
    for points in _circle(x, size, each_rank=each_rank):
        probs = probs + points.probabilities(_integral_of_one(x, t, width, points))
    if not each_rank:
        # For x_i above the first node P(i is included) does not vanish at the lower end of the
        # integral. P(i is not included) does.
        excluded = _prob_above_first_node(x, t, width) - probs
        probs = torch.where(minus_nodes(x, t[..., :1]).exp() > _NATS, 1 - excluded, probs)
    return probs.clamp(0, 1), t, width


class _RankProbs(torch.autograd.Function):
    """x -> the probabilities, the nodes and their widths, without a graph over the nodes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: int, each_rank: bool) -> tuple[Tensor, Tensor, Tensor]:
        return _integrated_ranks(x, size, each_rank)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, bool], output: Any) -> None:
        x, ctx.size, ctx.each_rank = inputs
        _, t, width = output
        ctx.mark_non_differentiable(t, width)
        ctx.save_for_backward(x, t, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        x, t, width = ctx.saved_tensors
        total = torch.zeros_like(x)
        for points in _circle(x, ctx.size, each_rank=ctx.each_rank):
            pairs = _integral_of_pairs(x, t, width, points, points.gradients(gradient))
            total = total + pairs[0].sum(-2)
        return total, None, None


class _BatchedRankProbs(_RankProbs):
    """The same; under vmap it runs on the whole batch, where the number of nodes can be read.

    torch.compile does not support a `vmap` method.
    """

    generate_vmap_rule = False

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, size: int, each_rank: bool) -> tuple[Any, Any]:
        return _BatchedRankProbs.apply(x.movedim(dims[0], 0), size, each_rank), (0, 0, 0)


# The points of the circle.


class _Points(NamedTuple):
    """Some points w of the unit circle, at which generating functions are evaluated."""

    one_minus_real: Tensor  # 1 - the real part of w
    imag: Tensor  # the imaginary part of w
    transform: Complex  # what 1 at w adds to P(N = j), for each w and j; or a factor of all sums
    powers: Callable[[Tensor], Complex] | None  # for sums over j: a factor, given the mean of N

    def probabilities(self, function: Complex) -> Tensor:
        """What these points add to the probabilities, given E w^N."""
        return self.transform[0].mT @ function[0] - self.transform[1].mT @ function[1]

    def gradients(self, gradient: Tensor) -> Complex:
        """The gradients in E w^N / (w - 1), given those in the probabilities."""
        w_minus_one = -self.one_minus_real.unsqueeze(-1), self.imag.unsqueeze(-1)
        return _times(w_minus_one, (self.transform[0] @ gradient, self.transform[1] @ gradient))


def _circle(x: Tensor, size: int, *, each_rank: bool) -> list[_Points]:
    """The points on half of the circle, each of which stands for its conjugate too.

    They come in blocks, such that a tensor over a block, x and some nodes stays small.
    """
    k, mean = x.shape[-1], _largest_mean(size)
    whole = min(k, _largest_count(mean)) | 1  # odd: no factor is 0 at w = -1
    n = whole if each_rank else min(whole, 2 * _largest_deviation(min(k / 4, mean)) + 3)
    index = torch.arange(n // 2 + 1, dtype=x.dtype, device=x.device)
    length = max(1, min(_POINTS, _CACHED_BLOCK // max(1, x.numel())))
    blocks = index.split(length)
    return [_points(i, n, size, each_rank=each_rank, around_mean=n < whole) for i in blocks]


def _points(index: Tensor, n: int, size: int, *, each_rank: bool, around_mean: bool) -> _Points:
    """The points w = exp(2 pi i index / n).

    :param around_mean: whether the n counts are those around the mean, rather than those from 0.
    """
    angle, weight = 2 * math.pi / n * index, ((1 + (index > 0).to(index)) / n).unsqueeze(-1)
    one_minus_real, imag = 2 * (angle / 2).sin().square(), angle.sin()
    if not each_rank:
        powers = partial(_sum_of_powers, index.unsqueeze(-1), n, size, around_mean)
        return _Points(one_minus_real, imag, (weight, torch.zeros_like(weight)), powers)
    j = torch.arange(size, dtype=index.dtype, device=index.device)
    back = -2 * math.pi / n * (index.unsqueeze(-1) * j % n)
    return _Points(one_minus_real, imag, (weight * back.cos(), weight * back.sin()), None)


def _sum_of_powers(index: Tensor, n: int, size: int, around_mean: bool, mean: Tensor) -> Complex:
    """The sum of w^-j over those of the n counts j that are below `size`."""
    first = torch.zeros_like(mean)
    if around_mean:
        first = (mean.detach().round() - n // 2).clamp(min=0)
    terms = (size - first).clamp(0, n)
    middle = math.pi / n * (index * (2 * first + terms - 1) % (2 * n))
    half = torch.where(index > 0, math.pi / n * index, 1.0)
    ratio = (math.pi / n * (index * terms % (2 * n))).sin() / half.sin()
    length = torch.where(index > 0, ratio, terms)
    return length * middle.cos(), -length * middle.sin()


def _largest_mean(size: int) -> float:
    """M: a count with a larger mean is never below `size`, even without one of its events."""
    mean = size + _NATS + math.sqrt(_NATS**2 + 2 * _NATS * size)
    for _ in range(20):
        mean = size + _NATS + size * math.log(mean / size)
    return mean + 1


def _largest_count(mean: float) -> int:
    """What a count with this mean never exceeds (Chernoff's bound)."""
    most = mean + _largest_deviation(mean)
    for _ in range(20):
        excess = most * math.log(most / mean) - most + mean - _NATS
        most -= excess / math.log(most / mean)
    return math.ceil(most)


def _largest_deviation(variance: float) -> int:
    """How far a count with this variance is at most from its mean (Bernstein's bound)."""
    return math.ceil(_NATS / 3 + math.sqrt(_NATS**2 / 9 + 2 * _NATS * variance))


# The nodes.


def _thresholds(x: Tensor, size: int, *, each_rank: bool) -> tuple[Tensor, Tensor]:
    """The nodes t, over the last dimension, and the width that each stands for."""
    mean = min(x.shape[-1], _largest_mean(size))
    low, high, last = _range_of_thresholds(x, size, each_rank=each_rank)
    density = _NodeDensity(x, last, mean)
    ends = torch.cat([low, high], -1)
    integrals = density(ends)[0]
    most = density.a * _longest_range(x.shape[-1], size, each_rank) + _NATS + density.b * mean
    needed = 1
    if x.numel():
        # The largest number, where it cannot be read.
        needed = known((integrals[..., 1] - integrals[..., 0]).amax(), otherwise=most)
    count = math.ceil(needed if needed < most else most)
    steps = torch.linspace(0, 1, count + 1, dtype=x.dtype, device=x.device)
    grid, goal = (end[..., :1] + (end[..., 1:] - end[..., :1]) * steps for end in (ends, integrals))
    t = density.inverse(goal, grid)
    return t, (integrals[..., 1:] - integrals[..., :1]) / count / density(t)[1]


def _range_of_thresholds(x: Tensor, size: int, *, each_rank: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The lowest and the highest threshold, and the one above which only single events occur."""
    ranked = x.sort(-1, descending=True).values
    all_of_them = ranked.logsumexp(-1, keepdim=True)
    rest = ranked[..., size - 1 :].logsumexp(-1, keepdim=True)  # from the m-th largest on
    low = ranked[..., size - 1 : size] - math.log(_NATS + math.log(size))
    largest_mean = _largest_mean(size)

    def excess(t: Tensor) -> Tensor:
        return -torch.expm1(-_rates(x, t)).sum(-1) - largest_mean

    low = bisected(excess, low, rest, steps=20)
    high = (all_of_them if each_rank else rest) + _NATS
    return low, high, torch.minimum(all_of_them, high) + 2


def _longest_range(k: int, size: int, each_rank: bool) -> float:
    """The largest distance between the lowest and the highest threshold."""
    longest = math.log(_NATS + math.log(size)) + math.log(k) + 4
    return longest + ((size - 1) * _certain_gap(k) if each_rank else _NATS)


class _NodeDensity:
    """The density of nodes, for thresholds with a mean count of up to `mean`.

    The first term falls from a to 1 around the threshold `last`.
    """

    def __init__(self, x: Tensor, last: Tensor, mean: float) -> None:
        self.x, self.last = x, last
        self.a = max(5.0, math.sqrt(mean / 9))
        self.b = 1.5 / self.a

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The integral of the density up to t, and the density at t."""
        found = []
        for (block,) in in_blocks(self.x.numel(), _BLOCK, t):
            below = torch.sigmoid(-minus_nodes(self.x, block))
            beyond = (block - self.last) / 2
            integral = block + (self.a - 1) * 2 * logsigmoid(beyond)
            density = 1 + (self.a - 1) * torch.sigmoid(-beyond)
            near = (below * (1 - below)).sum(-1)
            found.append((integral + self.b * below.sum(-1), density + self.b * near))
        integrals, densities = zip(*found, strict=True)
        return torch.cat(integrals, -1), torch.cat(densities, -1)

    def inverse(self, goal: Tensor, grid: Tensor) -> Tensor:
        """The t with the integrals `goal`, by Newton's method between neighbours of the grid."""
        integrals = self(grid)[0]
        right = torch.searchsorted(integrals, goal).clamp(1, grid.shape[-1] - 1)
        (low, high), (below, above) = (
            (tensor.gather(-1, right - 1), tensor.gather(-1, right)) for tensor in (grid, integrals)
        )
        t = low + (high - low) * ((goal - below) / (above - below))
        for _ in range(5):
            integral, density = self(t)
            t = torch.maximum(torch.minimum(t - (integral - goal) / density, high), low)
        return t


# The integrals over the nodes.


def _rates(x: Tensor, t: Tensor) -> Tensor:
    """v_i at each t, with i in the last dimension."""
    return minus_nodes(x, t).clamp(max=6.5).exp()


def _prob_above_first_node(x: Tensor, t: Tensor, width: Tensor) -> Tensor:
    """The integral of f_i for each i, over the last dimension."""
    total = torch.zeros_like(x)
    for at, wide in in_blocks(x.numel(), _CACHED_BLOCK, t, width):
        v = _rates(x, at)
        total = total + (wide.unsqueeze(-1) * v * torch.exp(-v)).sum(-2)
    return total.unsqueeze(-2)


def _integral_of_one(x: Tensor, t: Tensor, width: Tensor, points: _Points) -> Complex:
    """The integral of f_i G_{-i} for each w and, over the last dimension, each i."""
    real, imag = x.new_zeros(()), x.new_zeros(())
    for at, wide in _blocks(x, t, width, points):
        whole, single = _generating_functions(x, at, wide, points)
        rows = torch.stack(whole, -2)
        (a, b), (c, d) = ((rows @ part).unbind(-2) for part in single)
        real, imag = real + (a - d), imag + (b + c)
    return real, imag


def _integral_of_pairs(x: Tensor, t: Tensor, width: Tensor, points: _Points, y: Complex) -> Complex:
    """The integral of f_i sum_l f_l G_{-i-l} (y_l - y_i) for each w, and i in the last dimension.

    :param y: for each w and l.
    """
    columns = torch.stack([*y, torch.ones_like(y[0])], -1)
    sums = [x.new_zeros(())] * 4
    for at, wide in _blocks(x, t, width, points):
        whole, single = _generating_functions(x, at, wide, points)
        a, b = ((part @ columns).unbind(-1) for part in single)
        with_y, without_y = (a[0] - b[1], a[1] + b[0]), (a[2], b[2])  # sums over l
        rows = torch.stack([*_times(whole, with_y), *_times(whole, without_y)], -2)
        a, b = ((rows @ part).unbind(-2) for part in single)  # sums over the nodes
        more = a[0] - b[1], a[1] + b[0], a[2] - b[3], a[3] + b[2]
        sums = [total + term for total, term in zip(sums, more, strict=True)]
    real, imag = _times(y, (sums[2], sums[3]))
    return sums[0] - real, sums[1] - imag


def _blocks(x: Tensor, t: Tensor, width: Tensor, points: _Points) -> Iterator[Any]:
    """Blocks of the nodes and their widths."""
    return in_blocks(x.numel() * len(points.imag), _CACHED_BLOCK, t, width)


def _generating_functions(
    x: Tensor, t: Tensor, width: Tensor, points: _Points
) -> tuple[Complex, Complex]:
    """The width times G for each w and t; and f_i divided by the factor of i for each i too.

    Where sums over j are wanted, G is multiplied by their `powers`.
    """
    v = _rates(x, t).unsqueeze(-3)
    miss = torch.exp(-v)  # 1 - q
    exceed = -torch.expm1(-v)  # q
    real = 1 - points.one_minus_real[:, None, None] * exceed
    imag = points.imag[:, None, None] * exceed
    scale = v * miss / torch.addcmul(real.square(), imag, imag)
    whole, wide = _product(real, imag), width.unsqueeze(-2)
    if points.powers is not None:
        whole = _times(whole, points.powers(exceed.sum(-1)))
    return (whole[0] * wide, whole[1] * wide), (scale * real, -scale * imag)


def _product(real: Tensor, imag: Tensor) -> Complex:
    """The complex product over the last dimension, halved in each round."""
    while (n := real.shape[-1]) > 1:
        halves = [part.narrow(-1, start, n // 2) for start in (0, n // 2) for part in (real, imag)]
        product = _times((halves[0], halves[1]), (halves[2], halves[3]))
        if n % 2:
            product = (
                torch.cat([product[0], real[..., -1:]], -1),
                torch.cat([product[1], imag[..., -1:]], -1),
            )
        real, imag = product
    return real.squeeze(-1), imag.squeeze(-1)


def _times(left: Complex, right: Complex) -> Complex:
    """The complex product, entry by entry."""
    (a, b), (c, d) = left, right
    return torch.addcmul(a * c, b, d, value=-1), torch.addcmul(a * d, b, c)
