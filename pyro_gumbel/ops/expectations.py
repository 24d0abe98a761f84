# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Divergences, entropies and moments of relaxed distributions, as integrals over one variable.

Symbols: :math:`x` the logits, :math:`\tau` the temperature, k the number of categories,
:math:`E_i` independent Exponential(1) variates, :math:`g_i = -\log E_i` Gumbel(0, 1) noise,
:math:`s = \operatorname{softmax}((x + g) / \tau)` the relaxed value, :math:`v = \log s` the value
in logit space, :math:`\gamma` Euler's constant, :math:`\psi` the digamma function. All is computed
in float64.

**One function.** Everything follows from one expectation. For log weights b and an exponent r it is

.. math:: L(b, r) = E \log S, \qquad S = \sum_i e^{b_i} E_i^r.

Frullani's integral is :math:`\log S = \int \exp(-e^u) - \exp(-S e^u) \, du`. The :math:`E_i` are
independent, so

.. math::

    L(b, r) = \int \exp(-e^u) - \prod_i \psi_r(b_i + u) \, du, \qquad
    \psi_r(u) = E \exp(-e^u E^r).

A single term has :math:`L = b_1 - r \gamma`. Subtract the integral of a single term with the log
weight c, for any c:

.. math:: L(b, r) = c - r \gamma + \int \psi_r(c + u) - \prod_i \psi_r(b_i + u) \, du.

**Large exponents.** With another Exponential(1) variate E' it is
:math:`\psi_r(u) = P(E' > e^u E^r)`. Solve the inequality for E:

.. math::

    \psi_r(u) = \begin{cases}
        1 - \psi_{1/r}(-u / r) & \text{if } r > 1, \\
        \psi_{1/r}(-u / r) & \text{if } r < -1.
    \end{cases}

Let :math:`\rho` be r or 1 / r, whichever is in [-1, 1], :math:`R = \max(1, |r|)` and u = R w. Then
the only inner integral is

.. math::

    F(w) = E \bigl(1 - \exp(-e^w E^\rho)\bigr), \qquad
    f(w) = \log \psi_r(R w) = \begin{cases}
        \log F(-w) & \text{if } r > 1, \\
        \log(1 - F(w)) & \text{otherwise,}
    \end{cases}

and

.. math::

    L(b, r) = c - r \gamma + R \int \exp f(w) - \exp \sum_i f\bigl((b_i - c) / R + w\bigr) \, dw.

Here c is R logsumexp(b / R). With this choice the two terms are equal to first order where they are
near 1, unless r > 1.

**Quadrature.** The trapezoid rule is used over :math:`y = \log E` for F, and over w. On an analytic
integrand that vanishes at both ends it converges geometrically. With steps of 0.3 in w the error is
below 1e-13 for :math:`r \le 1`. For r > 1 the sum S is close to its largest term, and the integrand
falls from 1 to 0 over a distance of about :math:`1 / \log k`. There the step is
:math:`0.62 / (1 + \log k)`.

**One mesh for all categories.** f is tabulated once, on a mesh that contains the nodes w. Between
the points of the mesh f is interpolated (Lagrange, with an error of 1e-13). The weights of the
interpolation at :math:`(b_i - c) / R` are the same for all nodes. So the weights are summed over
the categories, into an array over the mesh. One product with the matrix of f(mesh point + node)
then gives the sum of f at all nodes. The matrix grows with the spread of b, not with k.

**Moments.** The derivative of L is :math:`\partial L / \partial b_i = E e^{b_i} E_i^r / S`. With
:math:`b = x / \tau` and :math:`r = -1 / \tau` the fraction is :math:`s_i`. Let
:math:`w_i = (b_i - c) / R + w` and :math:`P = \exp \sum_i f(w_i)`. Then

.. math::

    E s_i &= \frac{\partial L}{\partial b_i} = -\int f'(w_i) P \, dw, \\
    E s_i s_j &= -\frac{\partial^2 L}{\partial b_i \partial b_j}
        = \frac{1}{R} \int f'(w_i) f'(w_j) P \, dw, \qquad i \ne j, \\
    E s_i^2 &= E s_i - \frac{\partial^2 L}{\partial b_i^2}
        = E s_i + \frac{1}{R} \int \bigl(f''(w_i) + f'(w_i)^2\bigr) P \, dw.

In logit space, since :math:`E g_i = \gamma`,

.. math:: E v_i = (x_i + \gamma) / \tau - L(x / \tau, -1 / \tau).

**Entropy.** :math:`x - \tau v` is :math:`\log E` up to a common constant. So the density in
`pyro_gumbel.links` is

.. math::

    \log p(v) = \log (k-1)! + (k-1) \log \tau + \sum_i \log E_i - k \log \sum_i E_i.

Here :math:`E \log E_i = -\gamma`, and :math:`\sum_i E_i` is a Gamma(k) variate with
:math:`E \log \sum_i E_i = \psi(k)`. Hence

.. math::

    H(v) &= -\log (k-1)! - (k-1) \log \tau + k \gamma + k \psi(k), \\
    H(s) &= H(v) + E \sum_i v_i
        = H(v) + \Bigl(\sum_i x_i + k \gamma\Bigr) / \tau - k L(x / \tau, -1 / \tau).

**Divergence.** Let q have the logits x and the temperature :math:`\tau`, and p the logits x' and
the temperature :math:`\tau'`. Evaluate p at a draw v from q. There :math:`x' - \tau' v` is
:math:`b + r \log E` up to a common constant, with :math:`b = x' - r x` and
:math:`r = \tau' / \tau`. So

.. math::

    \log p(v) &= \log (k-1)! + (k-1) \log \tau' + \sum_i (b_i + r \log E_i) - k \log S, \\
    KL(q \,\|\, p) &= (k-1) \log(\tau / \tau') - k (\gamma + \psi(k)) + r k \gamma
        - \sum_i b_i + k L(b, r).

Two links differ only in that common constant. Hence the divergence is the same for values, for
values in logit space, and for subsets of equal size. A relaxed Bernoulli distribution with the
log-odds x is the case k = 2 with the logits (x, 0). At equal temperatures its divergence is

.. math:: KL(q \,\|\, p) = \delta \coth(\delta / 2) - 2, \qquad \delta = x' - x.

**Impossible categories.** A distribution with some logits of -inf is the distribution over the
other categories, with their number for k.

(Maddison, Mnih and Teh, "The Concrete distribution" (2017), https://arxiv.org/abs/1611.00712,
appendix C, give the densities and estimate the divergence from samples.)
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from pyro_gumbel._tracing import known

__all__ = [
    "expected_log_sum",
    "log_softmax_mean",
    "relaxed_divergence",
    "relaxed_entropy",
    "softmax_mean",
    "softmax_second_moments",
]

_EULER = 0.5772156649015329
_LARGEST = 1000.0  # the largest |r|, to which the error is proportional
_NATS = 34.0  # what is smaller than exp(-34) counts as 0
_POINTS = 14  # the number of points of an interpolation
BLOCK = 2**22  # the largest number of elements in a temporary tensor, where there is a choice


def expected_log_sum(log_weights: Tensor, exponent: Tensor) -> Tensor:
    r"""The expectation of a log sum of powers of exponential variates.

    .. math:: L(b, r) = E \log \sum_i e^{b_i} E_i^r

    The error is :math:`10^{-12} \max(1, |r|)`. Derivatives of any order can be taken.

    :param log_weights: b, over the last dimension; -inf to leave a term out.
    :param exponent: r, of a shape that broadcasts with the batch shape.
    :raises NotImplementedError: for r above 1000 or below -1000.
    """
    r = exponent.double()
    scale, centre, below = _scaled(log_weights, r)
    return scale * (centre + _in_blocks(_excess, below, r, matched=True)) - _EULER * r


def log_softmax_mean(logits: Tensor, temperature: Tensor) -> Tensor:
    """E log softmax((x + g) / tau) over the last dimension; -inf where x is -inf."""
    tau = temperature.double()
    b = _divided(logits.double(), tau)
    shift = _EULER / tau - expected_log_sum(b, -1 / tau)
    return torch.where(b.isneginf(), b.detach(), b + shift.unsqueeze(-1))


def softmax_mean(logits: Tensor, temperature: Tensor) -> Tensor:
    """E softmax((x + g) / tau) over the last dimension."""
    r = -1 / temperature.double()
    *_, below = _scaled(_divided(logits.double(), temperature), r)
    return torch.where(logits.isneginf(), 0.0, _in_blocks(_shares, below, r))


def softmax_second_moments(logits: Tensor, temperature: Tensor) -> Tensor:
    """E s_i s_j for s = softmax((x + g) / tau), over the last two dimensions."""
    r = -1 / temperature.double()
    *_, below = _scaled(_divided(logits.double(), temperature), r)
    out = logits.isneginf()
    products = _in_blocks(_products, below, r, rows_each=logits.shape[-1])
    return torch.where(out.unsqueeze(-1) | out.unsqueeze(-2), 0.0, products)


def relaxed_entropy(logits: Tensor, temperature: Tensor, *, of_values: bool) -> Tensor:
    """The entropy of a relaxed categorical distribution, in nats.

    It is 0 where only one logit is finite.

    :param logits: x, over the last dimension.
    :param temperature: tau, of a shape that broadcasts with the batch shape.
    :param of_values: whether the entropy is H(s) of the values, or H(v) in logit space.
    :raises NotImplementedError: for the entropy of values, if tau < 1 / 1000.
    """
    x, tau = logits.double(), temperature.double()
    out = x.isneginf()
    k = (~out).sum(-1)
    entropy = (
        k * (_EULER + torch.digamma(k.double())) - torch.lgamma(k.double()) - (k - 1) * tau.log()
    )
    if of_values:
        b = _divided(_centred(x, out), tau)
        entropy = entropy + k * (_EULER / tau - expected_log_sum(b, -1 / tau))
    return torch.where(k == 1, 0.0, entropy)


def relaxed_divergence(
    logits_q: Tensor,
    temperature_q: Tensor,
    logits_p: Tensor,
    temperature_p: Tensor,
    *,
    size: int = 1,
) -> Tensor:
    """KL(q || p) in nats of two relaxed distributions over the same categories.

    Any two temperatures are possible. The divergence is infinite unless the same logits are -inf in
    both. It is 0 where exactly `size` logits are finite: both distributions then have one value.

    :param logits_q: the logits of q, over the last dimension.
    :param temperature_q: its temperature, of a shape that broadcasts with the batch shape.
    :param logits_p: the logits of p, over the last dimension.
    :param temperature_p: its temperature, likewise.
    :param size: how many categories are chosen.
    :raises NotImplementedError: if the temperature of p is more than 1000 times that of q.
    """
    x_q, x_p = torch.broadcast_tensors(logits_q.double(), logits_p.double())
    tau_q, tau_p = temperature_q.double(), temperature_p.double()
    out_q, out_p = x_q.isneginf(), x_p.isneginf()
    out = out_q & out_p
    differ = (out_q ^ out_p).any(-1)
    r = tau_p / tau_q
    b = torch.where(out_p, 0.0, x_p) - r.unsqueeze(-1) * torch.where(out_q, 0.0, x_q)
    k = (~out).sum(-1)
    if x_q.shape[-1] == 2 and known((r == 1).all(), otherwise=False) and _is_constant(r):
        divergence = _binary_divergence(b[..., 1] - b[..., 0])
    else:
        b = _centred(torch.where(out, -torch.inf, b), out)
        elementary = (k - 1) * (tau_q / tau_p).log() - k * (_EULER + torch.digamma(k.double()))
        divergence = elementary + k * (r * _EULER + expected_log_sum(b, r))
    divergence = torch.where(k <= size, 0.0, divergence)
    return torch.where(differ, torch.inf, divergence)


def _divided(x: Tensor, tau: Tensor) -> Tensor:
    """x / tau. Entries of -inf pass no gradient."""
    out = x.isneginf()
    return torch.where(out, x, torch.where(out, 0.0, x) / tau.double().unsqueeze(-1))


def _is_constant(tensor: Tensor) -> bool:
    """Whether no derivative in the tensor is asked for."""
    return not tensor.requires_grad and forward_ad.unpack_dual(tensor).tangent is None


def _centred(x: Tensor, out: Tensor) -> Tensor:
    """x minus the mean of the entries that are not `out`, which then sum to 0."""
    total = torch.where(out, 0.0, x).sum(-1, keepdim=True)
    return x - total / (~out).sum(-1, keepdim=True)


def _binary_divergence(delta: Tensor) -> Tensor:
    """delta coth(delta / 2) - 2; near 0 by its power series."""
    small = delta.abs() < 0.1
    square = torch.where(small, delta, 0.0) ** 2
    series = square / 6 * (1 - square / 60 * (1 - square / 42 * (1 - square / 40)))
    far = torch.where(small, 1.0, delta)
    return torch.where(small, series, far / torch.tanh(far / 2) - 2)


def _scaled(log_weights: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R, c / R and (b - c) / R."""
    scale = _scale(exponent)
    scaled = log_weights.double().clamp(min=-1e100) / scale.unsqueeze(-1)
    centre = scaled.logsumexp(-1, keepdim=True)
    return scale, centre.squeeze(-1), scaled - centre


def _in_blocks(
    function: Callable[..., Tensor],
    below: Tensor,
    r: Tensor,
    *,
    matched: bool = False,
    rows_each: int = 1,
) -> Tensor:
    """Evaluate `function(mesh, below, r)` in blocks that fit into memory.

    :param function: takes a mesh, log weights of the shape (groups, n, k) and one exponent for each
        group. Its result has the shape (groups, n, ...).
    :param below: the log weights (b - c) / R, of any batch shape, over the last dimension.
    :param r: the exponents, of a shape that broadcasts with the batch shape.
    :param matched: whether the integrand is a difference whose terms are equal to first order where
        they are near 1.
    :param rows_each: how many arrays over the mesh one batch element takes.
    """
    below, r, ungrouped = _grouped(below, r)
    mesh = Mesh(below, r, matched=matched)
    groups = max(1, BLOCK // (mesh.points * mesh.nodes))
    each = max(below.shape[-1] * _POINTS, rows_each * mesh.points)
    rows = max(1, BLOCK // max(1, min(groups, len(r)) * each))
    call = partial(function, mesh)
    if groups < len(r) or rows < below.shape[1]:  # otherwise a graph would hold all blocks at once
        call = partial(checkpoint, call, use_reentrant=False, preserve_rng_state=False)
    blocks = [
        torch.cat([call(part, some) for part in parts.split(rows, 1)], 1)
        for parts, some in zip(below.split(groups), r.split(groups), strict=True)
    ]
    return ungrouped(torch.cat(blocks))


def _grouped(below: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Arrange log weights as (groups, n, k), one exponent for each group.

    :returns: the log weights, the exponents, and the function that restores the batch shape.
    """
    is_one = r.numel() > 1 and known((r == r.flatten()[0]).all(), otherwise=False)
    if is_one and _is_constant(r):
        batch = torch.broadcast_shapes(below.shape[:-1], r.shape)
        below, r = below.expand(*batch, below.shape[-1]), r.flatten()[0]
    batch, k = torch.broadcast_shapes(below.shape[:-1], r.shape), below.shape[-1]
    dims_of_r = [len(batch) - r.dim() + d for d, length in enumerate(r.shape) if length > 1]
    front = list(range(len(dims_of_r)))
    below, r = below.expand(*batch, k).movedim(dims_of_r, front), r.flatten()
    lead = below.shape[:-1]
    below = below.reshape(len(r), math.prod(lead) // max(1, len(r)), k)

    def ungrouped(result: Tensor) -> Tensor:
        return result.reshape(lead + result.shape[2:]).movedim(front, dims_of_r)

    return below, r, ungrouped


def _excess(mesh: "Mesh", below: Tensor, r: Tensor) -> Tensor:
    """The integral of exp f(w) - exp sum_i f(w_i)."""
    table, single = mesh.table(r)
    survival = _Place(mesh, below).sums(table).exp()
    return mesh.width * (single.unsqueeze(1).exp() - survival).sum(-1)


def _shares(mesh: "Mesh", below: Tensor, r: Tensor) -> Tensor:
    """The first derivatives of L in each b_i."""
    place, table = _Place(mesh, below), mesh.table(r)[0]
    by_point = place.sums(table).exp() @ table.mT
    around = by_point.gather(-1, place.index.flatten(-2)).reshape(place.index.shape)
    return -mesh.width * (around * place.weights(1)).sum(-1)


def _products(mesh: "Mesh", below: Tensor, r: Tensor) -> Tensor:
    """The matrix of the second moments: minus the second derivatives of L, the first ones added
    to the diagonal.
    """
    place, table = _Place(mesh, below), mesh.table(r)[0]
    survival = mesh.width * place.sums(table).exp().unsqueeze(-2)
    slopes, curvatures = place.each(table, 1), place.each(table, 2)
    scale = _scale(r).reshape(-1, 1, 1, 1)
    products = slopes * survival @ slopes.mT / scale
    return products + ((curvatures / scale - slopes) * survival).sum(-1).diag_embed()


class Mesh:
    """The mesh on which f is tabulated. Every `stride`-th point is a node w of the quadrature.

    :ivar width: the distance between nodes.
    :ivar step: the distance between points of the mesh.
    :ivar nodes: the number of nodes.
    :ivar low: the lowest node.
    :ivar depth: how many steps below 0 the lowest log weight lies.
    :ivar points: the number of points of the mesh that interpolation uses at the lowest node.
    """

    def __init__(self, below: Tensor, r: Tensor, *, matched: bool) -> None:
        least, most, fold = -1.0, _LARGEST, 1.0
        if r.numel():
            least, most = known(r.min(), otherwise=least), known(r.max(), otherwise=most)
            fold = known(_folded(r).abs().max(), otherwise=fold)
        _require_in_reach(max(-least, most))
        self.low, high = _range_of_nodes(least, most, fold, matched=matched)
        self.width = 0.3 if most <= 1 else min(0.3, 0.62 / (1 + math.log(below.shape[-1])))
        depth = high + _NATS  # f is 0 at every node for log weights below
        if below.numel():
            lowest = below.detach().amin((0, 1)).amin()
            depth = min(depth, -known(lowest, otherwise=-depth))
        self.stride = math.ceil(self.width / (0.1 if most > 1 else 0.15) - 1e-9)
        self.step = self.width / self.stride
        self.nodes = math.ceil((high - self.low) / self.width) + 1
        self.depth = math.ceil(depth / self.step)
        self.points = self.depth + _POINTS

    def table(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """f at point + node, (groups, points, nodes), and at 0 + node, (groups, nodes)."""
        points = torch.arange(self.points, device=r.device)
        nodes = self.stride * torch.arange(self.nodes, device=r.device)
        zero = self.points - _POINTS // 2 - 1
        steps = torch.arange(self.points + self.stride * self.nodes, device=r.device) - zero
        f = _log_survival(r, self.low + self.step * steps.double())
        index = (points.unsqueeze(-1) + nodes).flatten()
        table = f.index_select(-1, index).reshape(-1, self.points, self.nodes)
        return table, table[:, zero]


def _range_of_nodes(
    least: float, most: float, fold: float, *, matched: bool
) -> tuple[float, float]:
    """The lowest and the highest node, given the range of r and the largest |rho|."""
    if most < 0:
        return -_NATS * (max(0.5, fold) if matched else 1), 6.0
    if most <= 1:
        return -_NATS / (1 if least < 0 else 2), _NATS * most + 5
    return -_NATS / max(1, least) - 4, _NATS + 5


def _require_in_reach(exponent: float) -> None:
    """Raise for an |r| at which the results are not accurate."""
    if exponent > 1.01 * _LARGEST:  # a little more than the limit, since r is rounded
        raise NotImplementedError(
            f"entropies, moments and divergences are exact for a `temperature` of at least "
            f"{1 / _LARGEST:g} and a ratio p.temperature / q.temperature of at most "
            f"{_LARGEST:g}, got 1 / temperature or a ratio of {exponent:g}; "
            f"write temperature.clamp(min={1 / _LARGEST:g})"
        )


class _Place:
    """The places of log weights (b_i - c) / R on the mesh, and the interpolation there."""

    def __init__(self, mesh: Mesh, below: Tensor) -> None:
        self.mesh = mesh
        position = (below / mesh.step).clamp(min=-mesh.depth)
        point = position.detach().floor().nan_to_num(0.0)  # a NaN stays in the offset
        self.offset = position - point - 0.5
        around = torch.arange(_POINTS, device=below.device)
        self.index = (point.long() + mesh.depth).unsqueeze(-1) + around

    def weights(self, derivative: int = 0) -> Tensor:
        """The weights of the points around, for the function or one of its derivatives."""
        rows = torch.tensor(_LAGRANGE, dtype=self.offset.dtype, device=self.offset.device)
        for _ in range(derivative):
            degrees = torch.arange(1, len(rows), device=rows.device)
            rows = rows[1:] * degrees.unsqueeze(-1) / self.mesh.step
        powers = [torch.ones_like(self.offset)]
        for _ in rows[1:]:
            powers.append(powers[-1] * self.offset)
        return torch.stack(powers, -1) @ rows

    def sums(self, table: Tensor) -> Tensor:
        """The sum of f(w_i) over i, at all nodes: (groups, n, nodes)."""
        index = self.index.flatten(-2)
        empty = table.new_zeros((*index.shape[:-1], self.mesh.points))
        return empty.scatter_add(-1, index, self.weights().flatten(-2)) @ table

    def each(self, table: Tensor, derivative: int) -> Tensor:
        """A derivative of f at each w_i, at all nodes: (groups, n, k, nodes)."""
        empty = table.new_zeros((*self.index.shape[:-1], self.mesh.points))
        return empty.scatter_add(-1, self.index, self.weights(derivative)) @ table.unsqueeze(1)


def _scale(r: Tensor) -> Tensor:
    """R = max(1, |r|). Its derivative is 0 up to |r| = 1, from where on `_folded` is 1 / r."""
    return torch.where(r.abs() > 1, r.abs(), 1.0)


def _folded(r: Tensor) -> Tensor:
    """The exponent rho: r or 1 / r, whichever is in [-1, 1]."""
    outside = r.abs() > 1
    return torch.where(outside, 1 / torch.where(outside, r, 1.0), r)


def _log_survival(r: Tensor, w: Tensor) -> Tensor:
    """f(w) for each exponent, over a new last dimension."""
    y = torch.arange(-44, 4.25, 0.25, dtype=r.dtype, device=r.device)
    weights = 0.25 * (y - y.exp()).exp()
    r = r.unsqueeze(-1)
    rising = torch.where(r > 1, -w, w)
    rates = rising.exp().unsqueeze(-1) * (_folded(r) * y).exp().unsqueeze(-2)
    failure = -torch.expm1(-rates) @ weights  # F
    survival = torch.exp(-rates) @ weights  # 1 - F
    chance, other = torch.where(r > 1, failure, survival), torch.where(r > 1, survival, failure)
    # Clamped far above the smallest double, such that four derivatives of the logarithm are finite.
    return torch.where(
        other < 0.5, torch.log1p(-other.clamp(max=0.5)), chance.clamp(min=1e-75).log()
    )


def _lagrange_coefficients() -> list[list[float]]:
    """The interpolation weights as polynomials in the offset from the middle of the points.

    :returns: for each degree the coefficients of the weights of all points.
    """
    points = [Fraction(2 * i + 1 - _POINTS, 2) for i in range(_POINTS)]
    columns = []
    for i, at in enumerate(points):
        polynomial = [Fraction(1)]
        for other in points[:i] + points[i + 1 :]:
            shifted = [Fraction(0), *polynomial]
            scaled = [-other * c for c in polynomial] + [Fraction(0)]
            polynomial = [(a + b) / (at - other) for a, b in zip(shifted, scaled, strict=True)]
        columns.append([float(c) for c in polynomial])
    return [list(degree) for degree in zip(*columns, strict=True)]


_LAGRANGE = _lagrange_coefficients()
