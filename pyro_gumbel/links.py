# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The links from perturbed logits to soft values, and the densities that they induce.

Symbols: x the logits, tau > 0 the temperature, k the number of categories, E_i iid Exponential(1),
g_i = -log E_i iid Gumbel(0, 1), z = x + g the *perturbed logits*. A link maps z to *coordinates* v
and those, elementwise, to the *value* s; w = ds/dv is the slope of that second step. Coordinates
never saturate: they are what is stored, scored and remembered.

============ =================================== ================= =========
link         coordinates                         value             slope w
============ =================================== ================= =========
interval     v = (x + logistic) / tau            s = sigmoid(v)    s (1 - s)
simplex      v = z / tau - logsumexp(z / tau)    s = exp(v)        s
hypersimplex v = z / tau - c, sum sigmoid(v) = m s = sigmoid(v)    s (1 - s)
============ =================================== ================= =========

**One differential.** On the simplex and on the hypersimplex of size m the coordinates are
v = v' - c with v' = z / tau and a common c that keeps sum(s) constant: 0 = sum_i w_i dv_i, so

    dv_i = dv'_i - sum_j omega_j dv'_j,    omega = w / sum(w) = softmax(log w),

and the root c needs no graph.

**The threshold** c of the hypersimplex is not the root of sum_i sigmoid(v'_i - c) = m in floats:
between the m-th and the (m+1)-th largest coordinate the left side is flat to rounding. What the
top m lack of 1 must balance what the rest hold,

    logsumexp_rest logsigmoid(v' - c) = logsumexp_top logsigmoid(c - v'),

each side steep in c. The root lies in v'_(m+1) - log m <= c <= v'_(m) + log(k - m), v'_(j) the
j-th largest, and Newton's method from the middle, kept inside, takes four steps in float32 and
five in float64 (the most seen at k to 100,000, tau from .001 to 100). The link is the sigmoid of
Amos, Koltun and Kolter, "The limited multi-label projection layer" (2019),
https://arxiv.org/abs/1906.08707.

**Density on the simplex and on the hypersimplex.** Each z_i has density
exp(-(z_i - x_i) - exp(x_i - z_i)). The coordinates determine z up to a common shift c:
z = tau v + c. Integrate the shift out, with d_i = x_i - tau v_i and the substitution t = exp(-c):

    \int exp(sum_i (d_i - c) - e^{-c} sum_i e^{d_i}) dc
        = exp(sum_i d_i) \int t^{k-1} exp(-t sum_i e^{d_i}) dt
        = (k-1)! exp(sum_i d_i) / (sum_i e^{d_i})^k = (k-1)! prod_i softmax(d)_i.

The Jacobian of (c, s_1, ..., s_{k-1}) -> z: since du_i/ds_j = tau delta_ij / w_i for the
first k - 1 rows and -tau / w_k in the last, adding (w_i / w_k) times row i to the last row leaves
tau^{k-1} sum(w) / prod(w). It holds for any increasing s(v) whose sum is constant. Hence

    log p(s) = log (k-1)! + (k-1) log tau + sum_i log softmax(x - tau v)_i
               + logsumexp(log w) - sum_i log w_i

with respect to ds_1 ... ds_{k-1} (any one coordinate left out). On the simplex sum(w) = 1 and
log w = v: the Concrete density of Maddison, Mnih and Teh (2017), https://arxiv.org/abs/1611.00712,
and of Jang, Gu and Poole (2017), https://arxiv.org/abs/1611.01144. The density of the coordinates
is p(s) prod(w), as an elementwise transform has it: without the last sum. Without the last two
terms it is the density of the k - 1 differences v_i - v_k (any category as the reference): in them
the law is the same on both.

**Density on the interval.** v = (x + L) / tau with L standard logistic, whose log density at d is
logsigmoid(d) + logsigmoid(-d), the log slope of the sigmoid:

    log p(s) = log tau + log w(x - tau v) - log w(v).

The density of the coordinate is again that without the last term.

**Logits of -inf** (probabilities of 0). The law lives on the face of the finite logits: the
others are left out of every sum, and k is the number of the finite ones. Where exactly m are
finite, the law on the hypersimplex is the point that has them all.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import in_forward_mode

__all__ = [
    "Hypersimplex",
    "Interval",
    "Link",
    "Simplex",
    "clamped_log",
    "interval",
    "largest",
    "log_of_positive",
    "simplex",
]


class Link:
    """A map from perturbed logits over coordinates to values; called, it goes all the way.

    In every method `temperature` broadcasts with the perturbed logits: on the simplex it has a
    last dimension of 1.
    """

    event_dim: ClassVar[int]

    def __call__(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        """The soft value of `perturbed` logits at `temperature`."""
        return self.value(self.unconstrained(perturbed, temperature))

    def unconstrained(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        """z -> v."""
        raise NotImplementedError

    def value(self, coordinates: Tensor) -> Tensor:
        """v -> s."""
        raise NotImplementedError

    def inverse(self, value: Tensor) -> Tensor:
        """s -> v, clamped: finite, with a finite derivative, on the boundary too."""
        raise NotImplementedError

    def inverse_inside(self, value: Tensor) -> Tensor:
        """s -> v of values that are far from the boundary."""
        raise NotImplementedError

    def noise(self, coordinates: Tensor, logits: Tensor, temperature: Tensor) -> Tensor:
        """v -> z - x, of all noise that gives finite v the most probable."""
        raise NotImplementedError

    def hard(self, perturbed: Tensor) -> Tensor:
        """z -> the hard value that it chooses."""
        raise NotImplementedError

    def finite(self, coordinates: Tensor) -> Tensor:
        """v with -inf and inf, of values 0 and 1, as the clamped inverse has them."""
        finfo = torch.finfo(coordinates.dtype)
        low, high = math.log(finfo.tiny), -math.log(finfo.eps / 2)
        return torch.nan_to_num(coordinates, nan=math.nan, neginf=low, posinf=high)

    def log_density(
        self, coordinates: Tensor, logits: Tensor, temperature: Tensor, *, of_values: bool
    ) -> Tensor:
        """log p(s) or log p(v) at finite coordinates, for a point on the face of the law."""
        raise NotImplementedError

    def is_impossible(self, value: Tensor, logits: Tensor, low: float, high: float) -> Tensor:
        """Where `value`, in [low, high], has mass on an outcome of probability 0."""
        raise NotImplementedError

    def is_point(self, logits: Tensor) -> Tensor:
        """Where the distribution has a single value."""
        raise NotImplementedError


class _Sigmoid(Link):
    """The links whose value is the sigmoid of the coordinates."""

    def value(self, coordinates: Tensor) -> Tensor:
        # Not torch.sigmoid: its derivative s (1 - s) is 0 where s rounds to 1.
        return logsigmoid(coordinates).exp()

    def inverse(self, value: Tensor) -> Tensor:
        below_one = 1 - torch.finfo(value.dtype).eps / 2
        return clamped_log(value) - torch.log1p(-value.clamp(max=below_one))

    def inverse_inside(self, value: Tensor) -> Tensor:
        return torch.logit(value)


class Interval(_Sigmoid):
    """[0, 1]: one bit. A logit of -inf or inf is the point 0 or 1."""

    event_dim = 0

    def unconstrained(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        return _divide(perturbed, temperature)

    def noise(self, coordinates: Tensor, logits: Tensor, temperature: Tensor) -> Tensor:
        point = logits.isinf()
        return torch.where(point, 0.0, temperature * coordinates - torch.where(point, 0.0, logits))

    def hard(self, perturbed: Tensor) -> Tensor:
        return (perturbed >= 0).to(perturbed.dtype)

    def log_density(
        self, coordinates: Tensor, logits: Tensor, temperature: Tensor, *, of_values: bool
    ) -> Tensor:
        point = logits.isinf()
        noise = torch.where(point, 0.0, logits) - temperature * coordinates
        density = temperature.log() + _log_slope(noise)
        if of_values:
            density = density - _log_slope(coordinates)
        return torch.where(point, 0.0, density)

    def is_impossible(self, value: Tensor, logits: Tensor, low: float, high: float) -> Tensor:
        return logits.isneginf() & (value > low) | logits.isposinf() & (value < high)

    def is_point(self, logits: Tensor) -> Tensor:
        return logits.isinf()


class _OfConstantSum(Link):
    """The links whose values have a constant sum over the last dimension: v = z / tau - c."""

    event_dim = 1
    size: int

    def unconstrained(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        # The last of the winners is taken out first: differences are exact next to it, and no
        # quotient but those far from it overflows.
        below = perturbed - largest(perturbed.detach(), self.size)
        return _normalised(_divide(below, temperature), self)

    def noise(self, coordinates: Tensor, logits: Tensor, temperature: Tensor) -> Tensor:
        # z = tau v + c for any c. With d = x - tau v the noise c - d is the most probable where
        # k = sum_i exp(d_i - c), that is where it is -log(k softmax(d)).
        out = logits.isneginf()
        shares = torch.log_softmax(logits - temperature * coordinates, -1)
        k = (~out).sum(-1, keepdim=True).to(shares.dtype)
        return torch.where(out, 0.0, -torch.where(out, 0.0, shares) - k.log())

    def normalise(self, scaled: Tensor) -> Tensor:
        """z / tau -> v, without a graph."""
        raise NotImplementedError

    def normalise_in_graph(self, scaled: Tensor) -> Tensor:
        """The same with derivatives up to the third."""
        raise NotImplementedError

    def log_slopes(self, coordinates: Tensor) -> Tensor:
        """log w at coordinates."""
        raise NotImplementedError

    def weights(self, coordinates: Tensor) -> Tensor:
        """omega = w / sum(w), the weights of the differential."""
        log_w = self.log_slopes(coordinates)
        point = log_w.detach().amax(-1, keepdim=True).isneginf()  # has no tangent: any weights do
        return torch.where(point, 0.0, log_w).softmax(-1)

    def log_density(
        self, coordinates: Tensor, logits: Tensor, temperature: Tensor, *, of_values: bool
    ) -> Tensor:
        out = logits.isneginf()
        terms = torch.log_softmax(logits - temperature * coordinates, -1)
        log_w = self.log_slopes(coordinates)
        if of_values:
            terms = terms - log_w
        k = (~out).sum(-1, keepdim=True).to(terms.dtype)
        scale = torch.lgamma(k) + (k - 1) * temperature.log()
        density = scale.squeeze(-1) + torch.where(out, 0.0, terms).sum(-1)
        return self._add_total_slope(density, log_w, out)

    def _add_total_slope(self, density: Tensor, log_slopes: Tensor, out: Tensor) -> Tensor:
        """`density` + logsumexp(log w), or 0 where the law is a point."""
        raise NotImplementedError

    def is_impossible(self, value: Tensor, logits: Tensor, low: float, high: float) -> Tensor:
        return (logits.isneginf() & (value > low)).any(-1)

    def is_point(self, logits: Tensor) -> Tensor:
        return (~logits.isneginf()).sum(-1) == self.size


class Simplex(_OfConstantSum):
    """{s >= 0, sum(s) = 1} over the last dimension: one of k."""

    size = 1

    def normalise(self, scaled: Tensor) -> Tensor:
        return torch.log_softmax(scaled, -1)

    normalise_in_graph = normalise

    def value(self, coordinates: Tensor) -> Tensor:
        return coordinates.exp()

    def inverse(self, value: Tensor) -> Tensor:
        return clamped_log(value)

    def inverse_inside(self, value: Tensor) -> Tensor:
        return value.log()

    def hard(self, perturbed: Tensor) -> Tensor:
        winner = perturbed.argmax(-1, keepdim=True)
        return torch.zeros_like(perturbed).scatter(-1, winner, 1.0)

    def log_slopes(self, coordinates: Tensor) -> Tensor:
        return coordinates

    def weights(self, coordinates: Tensor) -> Tensor:
        return coordinates.exp()

    def _add_total_slope(self, density: Tensor, log_slopes: Tensor, out: Tensor) -> Tensor:
        return density  # sum(w) = sum(s) = 1


class Hypersimplex(_Sigmoid, _OfConstantSum):
    """{0 <= s <= 1, sum(s) = size} over the last dimension: `size` of k.

    :param size: the number m of the chosen, 1 <= m <= k; at m = k there is but one point.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hypersimplex) and other.size == self.size

    def __hash__(self) -> int:
        return hash(Hypersimplex)  # of any size: torch.compile asks before there is one

    def __repr__(self) -> str:
        return f"Hypersimplex({self.size})"

    def hard(self, perturbed: Tensor) -> Tensor:
        winners = perturbed.topk(self.size, -1, sorted=False).indices
        return torch.zeros_like(perturbed).scatter(-1, winners, 1.0)

    def normalise(self, scaled: Tensor) -> Tensor:
        return torch.where(scaled == -math.inf, scaled, scaled - self._threshold(scaled))

    def normalise_in_graph(self, scaled: Tensor) -> Tensor:
        # From the root itself each step of Newton's method, with its slope held fixed, adds one
        # derivative: its error is of one order more in the change of the input.
        root = self._threshold(scaled.detach())
        alone = root == -math.inf
        c = torch.where(alone, 0.0, root)
        where = scaled.detach().topk(self.size, -1, sorted=False).indices
        is_top = torch.zeros_like(root).expand(scaled.shape).scatter(-1, where, 1.0) > 0
        finite = torch.where(scaled == -math.inf, 0.0, scaled)
        rest = torch.where((is_top | (scaled == -math.inf)) & ~alone, -math.inf, 0.0)
        top = torch.where(is_top, 0.0, -math.inf)
        for _ in range(3):
            lag = finite - c
            held = (logsigmoid(lag) + rest).logsumexp(-1, keepdim=True)
            lacked = (logsigmoid(-lag) + top).logsumexp(-1, keepdim=True)
            fall = (logsigmoid(lag) + rest).softmax(-1) * (-lag).sigmoid()
            rise = (logsigmoid(-lag) + top).softmax(-1) * lag.sigmoid()
            slope = (fall + rise).sum(-1, keepdim=True).detach()
            c = c + torch.where(alone, 0.0, (held - lacked) / slope)
        return torch.where(scaled == -math.inf, scaled, scaled - torch.where(alone, root, c))

    def _threshold(self, scaled: Tensor) -> Tensor:
        """The root c of the balance; -inf where there is nothing but the top m."""
        m, k = self.size, scaled.shape[-1]
        top, where = scaled.topk(m, -1, sorted=False)
        rest = scaled.scatter(-1, where, -math.inf)
        high = top.amin(-1, keepdim=True) + math.log(max(k - m, 1))
        low = rest.amax(-1, keepdim=True) - math.log(m)
        c = (low + high) / 2
        for _ in range(5 if scaled.dtype == torch.float64 else 4):
            held, fall = _log_sum_and_slope(rest - c)
            lacked, rise = _log_sum_and_slope(c - top)
            step = (held - lacked) / (fall + rise)
            c = torch.minimum(torch.maximum(c + step, low), high)
        return torch.where(low == -math.inf, low, c)

    def log_slopes(self, coordinates: Tensor) -> Tensor:
        return _log_slope(coordinates)

    def _add_total_slope(self, density: Tensor, log_slopes: Tensor, out: Tensor) -> Tensor:
        total = torch.where(out, -math.inf, log_slopes).logsumexp(-1)
        return torch.where((~out).sum(-1) == self.size, 0.0, density + total)


interval = Interval()
simplex = Simplex()


class _Normalise(torch.autograd.Function):
    """v' -> v with dv_i = dv'_i - sum_j omega_j dv'_j."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scaled: Tensor, link: _OfConstantSum) -> Tensor:
        return link.normalise(scaled)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _OfConstantSum], output: Tensor) -> None:
        ctx.link = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return gradient - ctx.link.weights(v) * gradient.sum(-1, keepdim=True), None


def _normalised(scaled: Tensor, link: _OfConstantSum) -> Tensor:
    """`link.normalise` with a gradient; in forward mode by operations that have a second one too.

    torch does not differentiate the `jvp` of a Function once more.
    """
    if in_forward_mode():
        return link.normalise_in_graph(scaled)
    result: Tensor = _Normalise.apply(scaled, link)
    return result


def largest(z: Tensor, j: int) -> Tensor:
    """The j-th largest over the last dimension."""
    if j == 1:
        return z.amax(-1, keepdim=True)
    return z.topk(j, -1, sorted=False).values.amin(-1, keepdim=True)


def _log_sum_and_slope(u: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp(logsigmoid(u)) and its derivative along a common shift of u."""
    terms = logsigmoid(u)
    largest = terms.amax(-1, keepdim=True)
    shares = (terms - largest).exp()
    total = shares.sum(-1, keepdim=True)
    mean_sigmoid = largest.exp() * (shares * shares).sum(-1, keepdim=True) / total
    return largest + total.log(), 1 - mean_sigmoid


def _log_slope(v: Tensor) -> Tensor:
    """log ds/dv of s = sigmoid(v), which is also the standard logistic log density."""
    return logsigmoid(v) + logsigmoid(-v)


def _divide(perturbed: Tensor, temperature: Tensor) -> Tensor:
    """z / tau; where that is infinite no gradient sees it.

    The factor tau / tau, 1 in value, is there for the derivative in tau: z / tau^2 may overflow.
    """
    tau = temperature.detach()
    quotient = perturbed.detach() / tau
    infinite = quotient.isinf()
    finite = torch.where(infinite, 0.0, perturbed) / tau * (tau / temperature)
    return torch.where(infinite, quotient, finite)


def clamped_log(value: Tensor) -> Tensor:
    """log(s) of s clamped to the normal numbers, with the slope 1 / max(s, floor).

    The slope 1 / s of the smallest numbers overflows as soon as it is multiplied; below the floor
    it grows no further.
    """
    return _log(value, torch.finfo(value.dtype).tiny)


def log_of_positive(value: Tensor) -> Tensor:
    """log(p) of p > 0, exact down to the smallest subnormal number, with that slope."""
    finfo = torch.finfo(value.dtype)
    return _log(value, finfo.tiny * finfo.eps)


def _log(value: Tensor, least: float) -> Tensor:
    floor = torch.finfo(value.dtype).tiny * 2.0**24
    above = value.clamp(min=floor).log()
    extended = torch.where(value < floor, (value - floor) / floor + math.log(floor), above)
    exact = value.detach().clamp(min=least).log()
    return extended + (exact - extended.detach())
