# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Divergences, entropies and moments of relaxed laws, all from one function of one integral.

Symbols: x the logits, tau the temperature, k the number of categories, E_i iid Exp(1) variates,
g_i = -log E_i iid Gumbel(0, 1), s = softmax((x + g) / tau) a soft value, v = log s its coordinates;
gamma is Euler's constant, psi the digamma function. All is computed in float64.

**The function.** With S = sum_i exp(b_i) E_i^r for log weights b and an exponent r,

    L(b, r) = E log S.

Since log S = \int exp(-e^u) - exp(-S e^u) du (Frullani) and the E_i are independent,

    L(b, r) = \int exp(-e^u) - prod_i psi_r(b_i + u) du,    psi_r(u) = E exp(-e^u E^r).

One term alone has L = b_1 - r gamma. Subtract that of the single term c, for any c:

    L(b, r) = c - r gamma + \int psi_r(c + u) - prod_i psi_r(b_i + u) du.

**Large exponents.** psi_r(u) = P(E' > e^u E^r), E' another Exp(1). Solved for E that is
1 - psi_{1/r}(-u / r) if r > 1, and psi_{1/r}(-u / r) if r < -1. With rho = r or 1 / r, whichever
is in [-1, 1], R = max(1, |r|) and u = R w, all that is ever integrated is

    F(w) = E (1 - exp(-e^w E^rho)),    log psi_r(R w) = log(1 - F(w)), or log F(-w) if r > 1,

    L(b, r) = c - r gamma + R \int exp f(w) - exp sum_i f((b_i - c) / R + w) dw,

f(w) = log psi_r(R w). Here c is R logsumexp(b / R); then, unless r > 1, both terms leave 1
together.

**Quadrature.** The trapezoid rule, over y = log E for F and over w: on an analytic integrand that
has died down at both ends it converges geometrically. Step 0.3 is right to 1e-13, but for r > 1:
there S approaches its largest term, the integrand falls from 1 to 0 within some 1 / log k of w,
and the step is 0.62 / (1 + log k).

**One mesh for all categories.** f is tabulated once, on a mesh of which the nodes w are points.
Between its points f is interpolated (Lagrange, to 1e-13). The weights of the points around
(b_i - c) / R do for all nodes: so it is the weights that are summed over the categories, into an
array over the mesh, and one product with the matrix of f at (mesh point + node) makes the sum of f
at all nodes. Its size grows with the spread of the b, not with k.

**Moments.** dL/db_i = E exp(b_i) E_i^r / S. With b = x / tau and r = -1 / tau the fraction is s_i:

    E s_i = dL/db_i = -\int f'(w_i) P dw,    w_i = (b_i - c) / R + w, P = exp sum_i f(w_i),
    E s_i s_j = -d2L/db_i db_j = \int f'(w_i) f'(w_j) P dw / R,    i != j,
    E s_i^2 = E s_i - d2L/db_i^2 = E s_i + \int (f''(w_i) + f'(w_i)^2) P dw / R.

Of the coordinates E v_i = (x_i + gamma) / tau - L(x / tau, -1 / tau), since E g_i is gamma.

**Entropy.** x - tau v is log E up to a common constant, so of the density in `pyro_gumbel.links`

    log p(v) = log (k-1)! + (k-1) log tau + sum_i log E_i - k log sum_i E_i,

where E log E_i = -gamma, and sum_i E_i is a Gamma(k) variate, E log sum_i E_i = psi(k):

    H(v) = -log (k-1)! - (k-1) log tau + k gamma + k psi(k),
    H(s) = H(v) + E sum_i v_i = H(v) + (sum_i x_i + k gamma) / tau - k L(x / tau, -1 / tau).

**Divergence.** Of the laws (x, tau) and (x', tau') put the second density at a draw of the first:
x' - tau' v is b + r log E up to a common constant, b = x' - r x, r = tau' / tau. So

    log p'(v) = log (k-1)! + (k-1) log tau' + sum_i (b_i + r log E_i) - k log S,
    KL = (k-1) log(tau / tau') - k (gamma + psi(k)) + r k gamma - sum_i b_i + k L(b, r).

The common constant is all that a link adds: value, coordinates and subset have the same divergence
(of subsets: those of equal size). A bit is k = 2 with logits (x, 0), and at equal temperatures

    KL = delta coth(delta / 2) - 2,    delta = x' - x.

The law with some logits of -inf is that of the others, with their number for k.

(Maddison, Mnih and Teh, "The Concrete distribution" (2017), https://arxiv.org/abs/1611.00712,
appendix C, have the densities and estimate the divergence from a sample.)
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
_LARGEST = 1000.0  # of |r|, in which the error is proportional
_NATS = 34.0  # what is smaller than exp(-34) is 0
_POINTS = 14  # of the interpolation
_BLOCK = 2**22  # numbers in a temporary tensor, where that can be chosen


def expected_log_sum(log_weights: Tensor, exponent: Tensor) -> Tensor:
    """L(b, r) = E log sum_i exp(b_i) E_i^r, to 1e-12 max(1, |r|), with derivatives of any order.

    :param log_weights: b, over the last dimension; -inf for a term that is not there.
    :param exponent: r, of a shape that broadcasts with the batch shape.
    :raises NotImplementedError: for |r| > 1000.
    """
    r = exponent.double()
    scale, centre, below = _scaled(log_weights, r)
    return scale * (centre + _in_blocks(_excess, below, r, matched=True)) - _EULER * r


def log_softmax_mean(logits: Tensor, temperature: Tensor) -> Tensor:
    """E log softmax((x + g) / tau) over the last dimension; -inf where x is."""
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
    """E s_i s_j of s = softmax((x + g) / tau), over the last two dimensions."""
    r = -1 / temperature.double()
    *_, below = _scaled(_divided(logits.double(), temperature), r)
    out = logits.isneginf()
    products = _in_blocks(_products, below, r, rows_each=logits.shape[-1])
    return torch.where(out.unsqueeze(-1) | out.unsqueeze(-2), 0.0, products)


def relaxed_entropy(logits: Tensor, temperature: Tensor, *, of_values: bool) -> Tensor:
    """H(s) of the values or H(v) of the coordinates, in nats; 0 where one finite logit is left.

    :param logits: x, over the last dimension.
    :param temperature: tau, of a shape that broadcasts with the batch shape.
    :raises NotImplementedError: of values, for tau < 1 / 1000.
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
    """KL(q || p) in nats of two relaxed laws over the same categories, at any two temperatures.

    Infinite unless the same logits are -inf in both.

    :param logits_q: x of q, over the last dimension.
    :param logits_p: x of p, likewise.
    :param size: how many categories are chosen; if just as many are finite, the law is a point.
    :raises NotImplementedError: where the temperature of p is more than 1000 times that of q.
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
        divergence = _equal_bits(b[..., 1] - b[..., 0])
    else:
        b = _centred(torch.where(out, -torch.inf, b), out)
        elementary = (k - 1) * (tau_q / tau_p).log() - k * (_EULER + torch.digamma(k.double()))
        divergence = elementary + k * (r * _EULER + expected_log_sum(b, r))
    divergence = torch.where(k <= size, 0.0, divergence)
    return torch.where(differ, torch.inf, divergence)


def _divided(x: Tensor, tau: Tensor) -> Tensor:
    """x / tau, where an x of -inf passes no gradient."""
    out = x.isneginf()
    return torch.where(out, x, torch.where(out, 0.0, x) / tau.double().unsqueeze(-1))


def _is_constant(tensor: Tensor) -> bool:
    """Whether nobody asks for a derivative in it."""
    return not tensor.requires_grad and forward_ad.unpack_dual(tensor).tangent is None


def _centred(x: Tensor, out: Tensor) -> Tensor:
    """x less the mean of what is not out: then its sum is 0."""
    total = torch.where(out, 0.0, x).sum(-1, keepdim=True)
    return x - total / (~out).sum(-1, keepdim=True)


def _equal_bits(delta: Tensor) -> Tensor:
    """delta coth(delta / 2) - 2, by its series around 0."""
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
    """`function(mesh, below, r)` with below (G, n, k), r (G), of any batch shapes.

    :param matched: whether the integrand is a difference whose terms leave 1 together.
    :param rows_each: how many arrays over the mesh a batch element takes.
    """
    alike = r.numel() > 1 and known((r == r.flatten()[0]).all(), otherwise=False)
    if alike and _is_constant(r):
        batch = torch.broadcast_shapes(below.shape[:-1], r.shape)
        below, r = below.expand(*batch, below.shape[-1]), r.flatten()[0]
    batch, k = torch.broadcast_shapes(below.shape[:-1], r.shape), below.shape[-1]
    own = [len(batch) - r.dim() + d for d, length in enumerate(r.shape) if length > 1]
    front = list(range(len(own)))
    below, r = below.expand(*batch, k).movedim(own, front), r.flatten()
    lead = below.shape[:-1]
    below = below.reshape(len(r), math.prod(lead) // max(1, len(r)), k)

    mesh = _Mesh(below, r, matched=matched)
    groups = max(1, _BLOCK // (mesh.points * mesh.nodes))
    each = max(k * _POINTS, rows_each * mesh.points)
    rows = max(1, _BLOCK // max(1, min(groups, len(r)) * each))
    call = partial(function, mesh)
    if groups < len(r) or rows < below.shape[1]:  # else a graph would hold all blocks
        call = partial(checkpoint, call, use_reentrant=False, preserve_rng_state=False)
    blocks = [
        torch.cat([call(part, some) for part in parts.split(rows, 1)], 1)
        for parts, some in zip(below.split(groups), r.split(groups), strict=True)
    ]
    result = torch.cat(blocks)
    return result.reshape(lead + result.shape[2:]).movedim(front, own)


def _excess(mesh: "_Mesh", below: Tensor, r: Tensor) -> Tensor:
    """The integral of exp f(w) - exp sum_i f(w_i)."""
    table, single = mesh.table(r)
    survival = _Place(mesh, below).sums(table).exp()
    return mesh.width * (single.unsqueeze(1).exp() - survival).sum(-1)


def _shares(mesh: "_Mesh", below: Tensor, r: Tensor) -> Tensor:
    """dL/db_i."""
    place, table = _Place(mesh, below), mesh.table(r)[0]
    by_point = place.sums(table).exp() @ table.mT
    around = by_point.gather(-1, place.index.flatten(-2)).unflatten(-1, place.index.shape[-2:])
    return -mesh.width * (around * place.weights(1)).sum(-1)


def _products(mesh: "_Mesh", below: Tensor, r: Tensor) -> Tensor:
    """-d2L/db_i db_j, and in the diagonal dL/db_i - d2L/db_i^2."""
    place, table = _Place(mesh, below), mesh.table(r)[0]
    survival = mesh.width * place.sums(table).exp().unsqueeze(-2)
    slopes, curvatures = place.each(table, 1), place.each(table, 2)
    scale = _scale(r).reshape(-1, 1, 1, 1)
    products = slopes * survival @ slopes.mT / scale
    return products + ((curvatures / scale - slopes) * survival).sum(-1).diag_embed()


class _Mesh:
    """The mesh and, on every `stride`-th point of it, the nodes w: how many, how far apart."""

    def __init__(self, below: Tensor, r: Tensor, *, matched: bool) -> None:
        least, most, fold = -1.0, _LARGEST, 1.0
        if r.numel():
            least, most = known(r.min(), otherwise=least), known(r.max(), otherwise=most)
            fold = known(_folded(r).abs().max(), otherwise=fold)
        if max(-least, most) > 1.01 * _LARGEST:  # a little more, where it was rounded
            raise NotImplementedError(
                f"entropies, moments and divergences are exact for a `temperature` of at least "
                f"{1 / _LARGEST:g} and a ratio p.temperature / q.temperature of at most "
                f"{_LARGEST:g}, got 1 / temperature or a ratio of {max(-least, most):g}; "
                f"write temperature.clamp(min={1 / _LARGEST:g})"
            )
        self.width = 0.3
        if most < 0:
            low, high = -_NATS * (max(0.5, fold) if matched else 1), 6.0
        elif most <= 1:
            low, high = -_NATS / (1 if least < 0 else 2), _NATS * most + 5
        else:
            low, high = -_NATS / max(1, least) - 4, _NATS + 5
            self.width = min(self.width, 0.62 / (1 + math.log(below.shape[-1])))
        depth = high + _NATS  # farther down f is 0 at every node
        if below.numel():
            lowest = below.detach().amin((0, 1)).amin()
            depth = min(depth, -known(lowest, otherwise=-depth))
        self.stride = math.ceil(self.width / (0.1 if most > 1 else 0.15) - 1e-9)
        self.step = self.width / self.stride
        self.nodes = math.ceil((high - low) / self.width) + 1
        self.low = low
        self.depth = math.ceil(depth / self.step)
        self.points = self.depth + _POINTS

    def table(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """f at point + node, (G, points, nodes), and at 0 + node, (G, nodes)."""
        points = torch.arange(self.points, device=r.device)
        nodes = self.stride * torch.arange(self.nodes, device=r.device)
        zero = self.points - _POINTS // 2 - 1
        steps = torch.arange(self.points + self.stride * self.nodes, device=r.device) - zero
        f = _log_survival(r, self.low + self.step * steps.double())
        index = (points.unsqueeze(-1) + nodes).flatten()
        table = f.index_select(-1, index).unflatten(-1, (self.points, self.nodes))
        return table, table[:, zero]


class _Place:
    """Where log weights (b_i - c) / R lie on the mesh, and the interpolation there."""

    def __init__(self, mesh: _Mesh, below: Tensor) -> None:
        self.mesh = mesh
        position = (below / mesh.step).clamp(min=-mesh.depth)
        point = position.detach().floor().nan_to_num(0.0)  # of NaN the answer is NaN, as it is
        self.offset = position - point - 0.5
        around = torch.arange(_POINTS, device=below.device)
        self.index = (point.long() + mesh.depth).unsqueeze(-1) + around

    def weights(self, derivative: int = 0) -> Tensor:
        """Of the points around, for the function or one of its derivatives."""
        rows = torch.tensor(_LAGRANGE, dtype=self.offset.dtype, device=self.offset.device)
        for _ in range(derivative):
            degrees = torch.arange(1, len(rows), device=rows.device)
            rows = rows[1:] * degrees.unsqueeze(-1) / self.mesh.step
        powers = [torch.ones_like(self.offset)]
        for _ in rows[1:]:
            powers.append(powers[-1] * self.offset)
        return torch.stack(powers, -1) @ rows

    def sums(self, table: Tensor) -> Tensor:
        """sum_i f(w_i) at all nodes, (G, n, nodes)."""
        index = self.index.flatten(-2)
        empty = table.new_zeros((*index.shape[:-1], self.mesh.points))
        return empty.scatter_add(-1, index, self.weights().flatten(-2)) @ table

    def each(self, table: Tensor, derivative: int) -> Tensor:
        """A derivative of f at w_i at all nodes, (G, n, k, nodes)."""
        empty = table.new_zeros((*self.index.shape[:-1], self.mesh.points))
        return empty.scatter_add(-1, self.index, self.weights(derivative)) @ table.unsqueeze(1)


def _scale(r: Tensor) -> Tensor:
    """R, whose derivative is 0 up to |r| = 1: where `_folded` begins to be 1 / r."""
    return torch.where(r.abs() > 1, r.abs(), 1.0)


def _folded(r: Tensor) -> Tensor:
    """rho: r or 1 / r, whichever is in [-1, 1]."""
    outside = r.abs() > 1
    return torch.where(outside, 1 / torch.where(outside, r, 1.0), r)


def _log_survival(r: Tensor, w: Tensor) -> Tensor:
    """f(w) for each exponent, over a last dimension."""
    y = torch.arange(-44, 4.25, 0.25, dtype=r.dtype, device=r.device)
    weights = 0.25 * (y - y.exp()).exp()
    r = r.unsqueeze(-1)
    rising = torch.where(r > 1, -w, w)
    rates = rising.exp().unsqueeze(-1) * (_folded(r) * y).exp().unsqueeze(-2)
    failure = -torch.expm1(-rates) @ weights  # F
    survival = torch.exp(-rates) @ weights  # 1 - F
    chance, other = torch.where(r > 1, failure, survival), torch.where(r > 1, survival, failure)
    # Not the least double: four derivatives of the logarithm are to be finite there.
    return torch.where(
        other < 0.5, torch.log1p(-other.clamp(max=0.5)), chance.clamp(min=1e-75).log()
    )


def _lagrange_coefficients() -> list[list[float]]:
    """Of the weights of the interpolation points in the offset from their middle, by degree."""
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
