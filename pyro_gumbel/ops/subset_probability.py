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

**Ranks.** With v_i = exp(x_i - t), z_i exceeds t with probability q_i = 1 - exp(-v_i) and has the
density f_i = v_i exp(-v_i) there. i has rank j where j - 1 of the other z exceed t = z_i. They are
independent, and the generating function of their number N_{-i} is that of all, G, divided by the
factor of i:

    P(i has rank j) = \int f_i P(N_{-i} = j - 1) dt,
    E w^{N_{-i}} = G(w) / (1 + q_i (w - 1)),    G(w) = prod_l (1 + q_l (w - 1)).

i is included, in S, where its rank is at most m. On the circle |w| = 1 the quotient is as exact as
a product of the other factors, and n points give P(N = j) by a discrete Fourier transform if N is
below n; n is odd, so that no factor is 0 at w = -1. Let M be the mean from which on P(N < m) is
below e^-40 (Chernoff): no threshold t with a larger mean is needed, and n is k, or what a count of
mean M exceeds as seldom. The integral is taken first, the transform once at the end. P(N < m) alone
takes fewer points, n as many counts around the mean as N can be at (Bernstein), and the sum of the
powers w^-j over those below m.

**Derivatives of ranks.** dq_l / dx_l = f_l, and a common shift of the logits changes nothing. So in
the direction y

    d \int f_i G_{-i}(w) dt = (w - 1) \int f_i sum_l f_l G_{-i-l}(w) (y_l - y_i) dt,

where l = i adds 0 and needs no care. Backwards the same sum has the gradients in the place of y.

**Nodes of ranks.** The trapezoid rule converges geometrically in any variable in which the
integrand is analytic and dies down at both ends. Here it is the integral of a density of nodes,

    a + b sum_i sigma'(t - x_i),    sigma the sigmoid,

which falls to 1 above all logits, where only f_i, an exponential function, is left. Of n events
with logits near t the count changes within 1 / sqrt(n) of t; that is many nodes, since
2 sqrt(a b n) <= a + b n.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from pyro_gumbel._tracing import in_forward_mode, known

__all__ = ["inclusion_probabilities", "kl_of_log_probs", "log_subset_prob", "rank_probabilities"]

_STEPS = 160
_NATS = 40.0
_BLOCK = 2**20  # numbers in a temporary tensor, where that can be chosen
_BLOCK_OF_RANKS = 2**18  # of which there are a dozen at once: they stay in the cache
_POINTS = 16  # of the circle in one block, if there is room for one node

Complex = tuple[Tensor, Tensor]  # real and imaginary part: compilers know these better


def log_subset_prob(advantages: Tensor) -> Tensor:
    """log P(S), to 1e-10.

    Memory is that of `advantages`, in the gradient too; second derivatives take 160 times that.

    :param advantages: d_i = x_i - A of the members of S over the last dimension, in float64.
    """
    if in_forward_mode():
        return _rule_for_set(advantages)
    mass: Tensor = _LogSubsetMass.apply(advantages)
    return mass


def _rule_for_set(d: Tensor) -> Tensor:
    """log P(S) by the trapezoid rule."""
    h, step = _nodes(d.detach())
    parts = [_log_integrand(d, part).logsumexp(-1) for part in _blocks(h, d.numel())]
    return torch.stack(parts).logsumexp(0) + step.log()


class _LogSubsetMass(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(d: Tensor) -> Tensor:
        return _rule_for_set(d)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.unsqueeze(-1) * _slopes(*ctx.saved_tensors)


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
    """P(i is among the `size` largest of x + g), to 1e-12, with its derivatives.

    Memory grows as k, also with the gradient, and time faster, at most as k^2. Second derivatives
    take the memory of all nodes.

    :param logits: x in float64, over the last dimension; -inf for what cannot win. At least
        `size` are finite.
    :param size: m, 1 <= m <= k.
    """
    if size == logits.shape[-1]:
        return 1 + (logits - logits.detach())
    last = logits.detach().topk(size, -1).values[..., -1:]
    return _ranks(logits - last, size, each=False).squeeze(-2)


def rank_probabilities(logits: Tensor, size: int) -> Tensor:
    """P(i is the j-th largest of x + g), to 1e-12, with its derivatives.

    The last dimension but one is over j = 1, ..., `size`, the last over i. Memory is that of
    `inclusion_probabilities` and of the result; time grows as k min(k, size), and with the range of
    the logits where that is hundreds.

    :param logits: as there.
    :param size: m, 1 <= m <= k.
    """
    return _ranks(_closed_up(logits), size, each=True)


def _closed_up(logits: Tensor) -> Tensor:
    """The logits, of which the largest is 0, without the part of a gap that no z ever crosses."""
    x = logits.detach()
    out = x.isneginf()
    ranked, order = x.sort(-1, descending=True)
    gaps = (ranked[..., :-1] - ranked[..., 1:]).nan_to_num(0.0).clamp(max=_gap(x.shape[-1]))
    behind = torch.zeros_like(x).scatter(-1, order, pad(gaps, (1, 0)).cumsum(-1))
    return torch.where(out, x, -behind) + torch.where(out, 0.0, logits - x)


def _gap(k: int) -> float:
    """A distance between logits that none of k categories makes up for."""
    return _NATS + 2 * math.log(k)


def _ranks(x: Tensor, size: int, *, each: bool) -> Tensor:
    if in_forward_mode():
        return _rule_for_ranks(x, size, each)[0]
    function = _Ranks if torch.compiler.is_compiling() else _RanksInBatches
    ranks: Tensor = function.apply(x, size, each)[0]
    return ranks


def _rule_for_ranks(x: Tensor, size: int, each: bool) -> tuple[Tensor, Tensor, Tensor]:
    """P(i has rank j) for each j up to `size`, or the sum over j; the nodes and their widths."""
    t, width = _nodes_of_ranks(x.detach(), size, each=each)
    ranks = x.new_zeros((*x.shape[:-1], size if each else 1, x.shape[-1]))
    for circle in _circle(x, size, each=each):
        ranks = ranks + circle.probabilities(_alone(x, t, width, circle))
    if (
        not each
    ):  # of what is above the first node it is P(not included) that dies down at both ends
        excluded = _mass(x, t, width) - ranks
        ranks = torch.where(_above(x, t[..., :1]).exp() > _NATS, 1 - excluded, ranks)
    return ranks.clamp(0, 1), t, width


class _Ranks(torch.autograd.Function):
    """x -> the ranks by that rule, which keeps no graph of it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: int, each: bool) -> tuple[Tensor, Tensor, Tensor]:
        return _rule_for_ranks(x, size, each)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, bool], output: Any) -> None:
        x, ctx.size, ctx.each = inputs
        _, t, width = output
        ctx.mark_non_differentiable(t, width)
        ctx.save_for_backward(x, t, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        x, t, width = ctx.saved_tensors
        total = torch.zeros_like(x)
        for circle in _circle(x, ctx.size, each=ctx.each):
            pairs = _in_pairs(x, t, width, circle, circle.gradients(gradient))
            total = total + pairs[0].sum(-2)
        return total, None, None


class _RanksInBatches(_Ranks):
    """The same; under vmap with nodes whose number can be read. (torch.compile knows it not.)"""

    generate_vmap_rule = False

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, size: int, each: bool) -> tuple[Any, Any]:
        return _RanksInBatches.apply(x.movedim(dims[0], 0), size, each), (0, 0, 0)


class _Circle(NamedTuple):
    """Some of the points w of the unit circle at which generating functions are known."""

    fall: Tensor  # 1 - the real part of w
    turn: Tensor  # the imaginary part
    parts: Complex  # what 1 at w adds to P(N = j), for each w and j; or the same for all sums
    below: Callable[[Tensor], Complex] | None  # of sums also the factor, from the mean of N

    def probabilities(self, function: Complex) -> Tensor:
        """The part of the probabilities that is due to these points, from E w^N."""
        return self.parts[0].mT @ function[0] - self.parts[1].mT @ function[1]

    def gradients(self, gradient: Tensor) -> Complex:
        """The gradients in E w^N / (w - 1), from those in the probabilities."""
        steps = -self.fall.unsqueeze(-1), self.turn.unsqueeze(-1)
        return _times(steps, (self.parts[0] @ gradient, self.parts[1] @ gradient))


def _circle(x: Tensor, size: int, *, each: bool) -> list[_Circle]:
    """All the points, of which each stands for its conjugate too.

    They come in parts so small that a tensor over one of them, x and some nodes is small.
    """
    whole = min(x.shape[-1], _most(_crowd(size))) | 1  # odd: no factor is 0 at w = -1
    n = whole if each else min(whole, 2 * _deviation(min(x.shape[-1] / 4, _crowd(size))) + 3)
    index = torch.arange(n // 2 + 1, dtype=x.dtype, device=x.device)
    points = max(1, min(_POINTS, _BLOCK_OF_RANKS // max(1, x.numel())))
    return [_arc(i, n, size, each=each, sliding=n < whole) for i in index.split(points)]


def _arc(index: Tensor, n: int, size: int, *, each: bool, sliding: bool) -> _Circle:
    """The points w = exp(2 pi i index / n).

    :param sliding: whether the n counts are those around the mean, rather than those from 0 on.
    """
    angle, weight = 2 * math.pi / n * index, ((1 + (index > 0).to(index)) / n).unsqueeze(-1)
    fall, turn = 2 * (angle / 2).sin().square(), angle.sin()
    if not each:
        below = partial(_sum_of_powers, index.unsqueeze(-1), n, size, sliding)
        return _Circle(fall, turn, (weight, torch.zeros_like(weight)), below)
    j = torch.arange(size, dtype=index.dtype, device=index.device)
    back = -2 * math.pi / n * (index.unsqueeze(-1) * j % n)
    return _Circle(fall, turn, (weight * back.cos(), weight * back.sin()), None)


def _sum_of_powers(index: Tensor, n: int, size: int, sliding: bool, mean: Tensor) -> Complex:
    """The sum of w^-j over those of n counts j that are below the size."""
    first = (mean.detach().round() - n // 2).clamp(min=0) if sliding else torch.zeros_like(mean)
    terms = (size - first).clamp(0, n)
    middle = math.pi / n * (index * (2 * first + terms - 1) % (2 * n))
    half = torch.where(index > 0, math.pi / n * index, 1.0)
    ratio = (math.pi / n * (index * terms % (2 * n))).sin() / half.sin()
    length = torch.where(index > 0, ratio, terms)
    return length * middle.cos(), -length * middle.sin()


def _crowd(size: int) -> float:
    """The mean from which on a count, also without one event, is never below `size`."""
    mean = size + _NATS + math.sqrt(_NATS**2 + 2 * _NATS * size)
    for _ in range(20):
        mean = size + _NATS + size * math.log(mean / size)
    return mean + 1


def _most(mean: float) -> int:
    """What a count with this mean never exceeds."""
    most = mean + _deviation(mean)
    for _ in range(20):
        excess = most * math.log(most / mean) - most + mean - _NATS
        most -= excess / math.log(most / mean)
    return math.ceil(most)


def _deviation(variance: float) -> int:
    """What a count with this variance is never farther from its mean (Bernstein's bound)."""
    return math.ceil(_NATS / 3 + math.sqrt(_NATS**2 / 9 + 2 * _NATS * variance))


def _nodes_of_ranks(x: Tensor, size: int, *, each: bool) -> tuple[Tensor, Tensor]:
    """The nodes t, over the last dimension, and the width that each stands for."""
    k = x.shape[-1]
    crowd = min(k, _crowd(size))
    low, high, last = _range(x, size, each=each)
    mesh = _Mesh(x, last, crowd)
    ends = torch.cat([low, high], -1)
    heights = mesh(ends)[0]
    longest = math.log(_NATS + math.log(size)) + math.log(k) + 4
    longest += (size - 1) * _gap(k) if each else _NATS
    most = mesh.sparse * longest + _NATS + mesh.dense * crowd  # where the number cannot be read
    needed = known((heights[..., 1] - heights[..., 0]).amax(), otherwise=most) if x.numel() else 1
    count = math.ceil(needed if needed < most else most)
    steps = torch.linspace(0, 1, count + 1, dtype=x.dtype, device=x.device)
    grid, goal = (end[..., :1] + (end[..., 1:] - end[..., :1]) * steps for end in (ends, heights))
    t = mesh.inverse(goal, grid)
    return t, (heights[..., 1:] - heights[..., :1]) / count / mesh(t)[1]


def _range(x: Tensor, size: int, *, each: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Where the thresholds begin and end, and from where on there is nothing but single events."""
    ranked = x.sort(-1, descending=True).values
    all_of_them = ranked.logsumexp(-1, keepdim=True)
    rest = ranked[..., size - 1 :].logsumexp(-1, keepdim=True)  # with the last that is included
    low = ranked[..., size - 1 : size] - math.log(_NATS + math.log(size))
    crowd = _crowd(size)

    def excess(t: Tensor) -> Tensor:
        return -torch.expm1(-_rates(x, t)).sum(-1) - crowd

    low = _bisected(excess, low, rest, steps=20)
    high = (all_of_them if each else rest) + _NATS
    return low, high, torch.minimum(all_of_them, high) + 2


class _Mesh:
    """The density of nodes for up to `crowd` logits that are near each other."""

    def __init__(self, x: Tensor, last: Tensor, crowd: float) -> None:
        self.x, self.last = x, last
        self.sparse = max(5.0, math.sqrt(crowd / 9))
        self.dense = 1.5 / self.sparse

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Its integral up to t, and itself at t."""
        found = []
        for at in _blocks(t, self.x.numel()):
            below = torch.sigmoid(-_above(self.x, at))
            beyond = (at - self.last) / 2
            height = at + (self.sparse - 1) * 2 * logsigmoid(beyond)
            density = 1 + (self.sparse - 1) * torch.sigmoid(-beyond)
            near = (below * (1 - below)).sum(-1)
            found.append((height + self.dense * below.sum(-1), density + self.dense * near))
        heights, densities = zip(*found, strict=True)
        return torch.cat(heights, -1), torch.cat(densities, -1)

    def inverse(self, goal: Tensor, grid: Tensor) -> Tensor:
        """The t with these integrals, by Newton's method between neighbours of the grid."""
        heights = self(grid)[0]
        right = torch.searchsorted(heights, goal).clamp(1, grid.shape[-1] - 1)
        (low, high), (below, above) = (
            (tensor.gather(-1, right - 1), tensor.gather(-1, right)) for tensor in (grid, heights)
        )
        t = low + (high - low) * ((goal - below) / (above - below))
        for _ in range(5):
            height, density = self(t)
            t = torch.maximum(torch.minimum(t - (height - goal) / density, high), low)
        return t


def _rates(x: Tensor, t: Tensor) -> Tensor:
    """v_i at each t, in the last dimension."""
    return _above(x, t).clamp(max=6.5).exp()


def _mass(x: Tensor, t: Tensor, width: Tensor) -> Tensor:
    """The integral of f_i for each i, over the last dimension."""
    total = torch.zeros_like(x)
    for at, wide in _parts(x, t, width, 1):
        v = _rates(x, at)
        total = total + (wide.unsqueeze(-1) * v * torch.exp(-v)).sum(-2)
    return total.unsqueeze(-2)


def _alone(x: Tensor, t: Tensor, width: Tensor, circle: _Circle) -> Complex:
    """The integral of f_i G_{-i} for each w and, over the last dimension, i."""
    real, imag = x.new_zeros(()), x.new_zeros(())
    for at, wide in _parts(x, t, width, len(circle.fall)):
        whole, single = _generating(x, at, wide, circle)
        rows = torch.stack(whole, -2)
        (a, b), (c, d) = ((rows @ part).unbind(-2) for part in single)
        real, imag = real + (a - d), imag + (b + c)
    return real, imag


def _in_pairs(x: Tensor, t: Tensor, width: Tensor, circle: _Circle, y: Complex) -> Complex:
    """The integral of f_i sum_l f_l G_{-i-l} (y_l - y_i) for each w and, in the last dimension, i.

    :param y: over w and l.
    """
    columns = torch.stack([*y, torch.ones_like(y[0])], -1)
    sums = [x.new_zeros(())] * 4
    for at, wide in _parts(x, t, width, len(circle.fall)):
        whole, single = _generating(x, at, wide, circle)
        (a, b, c), (d, e, f) = ((part @ columns).unbind(-1) for part in single)
        rows = torch.stack([*_times(whole, (a - e, b + d)), *_times(whole, (c, f))], -2)
        (a, b, c, d), (e, f, g, h) = ((rows @ part).unbind(-2) for part in single)
        sums = [total + p for total, p in zip(sums, (a - f, b + e, c - h, d + g), strict=True)]
    real, imag = _times(y, (sums[2], sums[3]))
    return sums[0] - real, sums[1] - imag


def _parts(x: Tensor, t: Tensor, width: Tensor, points: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some nodes after the others, so that a tensor over them, x and the points is small."""
    nodes = max(1, _BLOCK_OF_RANKS // max(1, x.numel() * points))
    return zip(t.split(nodes, -1), width.split(nodes, -1), strict=True)


def _generating(x: Tensor, t: Tensor, width: Tensor, circle: _Circle) -> tuple[Complex, Complex]:
    """The width times G for each w and t, in its part of P(N < size) where that is wanted; and for
    each i, in the last dimension, f_i divided by its factor of G.
    """
    v = _rates(x, t).unsqueeze(-3)
    miss = torch.exp(-v)
    happen = -torch.expm1(-v)
    real = 1 - circle.fall[:, None, None] * happen
    imag = circle.turn[:, None, None] * happen
    scale = v * miss / torch.addcmul(real.square(), imag, imag)
    whole, wide = _product(real, imag), width.unsqueeze(-2)
    if circle.below is not None:
        whole = _times(whole, circle.below(happen.sum(-1)))
    return (whole[0] * wide, whole[1] * wide), (scale * real, -scale * imag)


def _product(real: Tensor, imag: Tensor) -> Complex:
    """Over the last dimension, in pairs."""
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
    (a, b), (c, d) = left, right
    return torch.addcmul(a * c, b, d, value=-1), torch.addcmul(a * d, b, c)


def kl_of_log_probs(log_q: Tensor, log_p: Tensor) -> Tensor:
    """sum_i q_i (log q_i - log p_i) over the last dimension.

    An outcome that q excludes adds 0; one that only p excludes makes it infinite.
    """
    counts = ~log_q.isneginf()
    inside = counts & ~log_p.isneginf()
    ratio = torch.where(inside, log_q, 0.0) - torch.where(inside, log_p, 0.0)
    total = (torch.where(inside, log_q, 0.0).exp() * ratio).sum(-1)
    return torch.where((counts & ~inside).any(-1), torch.inf, total)
