# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Maps from perturbed logits to relaxed values, and the densities that they induce.

Symbols: :math:`x` the logits, :math:`\tau > 0` the temperature, :math:`k` the number of categories,
:math:`E_i` independent Exponential(1) variates, :math:`g_i = -\log E_i` independent Gumbel(0, 1)
variates, and :math:`z = x + g` the *perturbed logits*. A link works in two steps. It maps
:math:`z` to :math:`v`, the value in logit space, which the code calls `unconstrained`. Then it maps
each entry of :math:`v` to one of :math:`s`, the relaxed value. The slope of the second step is
:math:`w = ds/dv`. In floating point :math:`s` saturates at 0 and 1, and :math:`v` does not. So
`log_prob` is evaluated at :math:`v`, and a drawn value caches it.

============ =================================== ================= =========
link         value in logit space                value             slope w
============ =================================== ================= =========
interval     v = (x + logistic) / tau            s = sigmoid(v)    s (1 - s)
simplex      v = z / tau - logsumexp(z / tau)    s = exp(v)        s
hypersimplex v = z / tau - c, sum sigmoid(v) = m s = sigmoid(v)    s (1 - s)
============ =================================== ================= =========

**The differential.** On the simplex and on the hypersimplex of size m, :math:`v = v' - c` with
:math:`v' = z / \tau` and a common :math:`c` that keeps the sum of :math:`s` constant. Hence
:math:`0 = \sum_i w_i \, dv_i`, and

.. math::
    dv_i = dv'_i - \sum_j \omega_j \, dv'_j, \qquad
    \omega = \frac{w}{\sum_j w_j} = \mathrm{softmax}(\log w).

The gradient therefore does not need a graph of the search for :math:`c`.

**The threshold** :math:`c` of the hypersimplex solves :math:`\sum_i \sigma(v'_i - c) = m`, with
:math:`\sigma` the sigmoid. In floating point that equation is useless: between the m-th and the
(m+1)-th largest entry the left side is flat to rounding. But the amount by which the top m fall
short of 1 must equal the amount that the rest hold,

.. math::
    \underset{\text{rest}}{\mathrm{logsumexp}} \; \log \sigma(v' - c)
    = \underset{\text{top}}{\mathrm{logsumexp}} \; \log \sigma(c - v'),

and both sides are steep in :math:`c`. With :math:`v'_{(j)}` the j-th largest entry the root lies in
:math:`v'_{(m+1)} - \log m \le c \le v'_{(m)} + \log(k - m)`. Newton's method starts in the middle
and is clamped to that interval. It takes four steps in float32 and five in float64, the most seen
for k up to 100,000 and temperatures from .001 to 100. The link is the sigmoid of Amos, Koltun and
Kolter, "The limited multi-label projection layer" (2019), https://arxiv.org/abs/1906.08707.

**Density on the simplex and on the hypersimplex.** Each :math:`z_i` has the density
:math:`\exp(-(z_i - x_i) - e^{x_i - z_i})`. The value determines :math:`z` up to a common shift:
:math:`z = \tau v + c`. Integrate over the shift, with :math:`d_i = x_i - \tau v_i` and the
substitution :math:`t = e^{-c}`:

.. math::
    \int \exp\Big(\sum_i (d_i - c) - e^{-c} \sum_i e^{d_i}\Big) \, dc
    = e^{\sum_i d_i} \int t^{k-1} e^{-t \sum_i e^{d_i}} \, dt
    = \frac{(k-1)! \, e^{\sum_i d_i}}{(\sum_i e^{d_i})^k}
    = (k-1)! \prod_i \mathrm{softmax}(d)_i.

The Jacobian of :math:`(c, s_1, \dots, s_{k-1}) \to z` has the entries
:math:`\partial z_i / \partial s_j = \tau \delta_{ij} / w_i` in its first k - 1 rows and
:math:`-\tau / w_k` in the last. Adding :math:`w_i / w_k` times row i to the last row leaves the
determinant :math:`\tau^{k-1} \sum_i w_i / \prod_i w_i`. This holds for any increasing map from
:math:`v_i` to :math:`s_i` with a constant sum. Hence

.. math::
    \log p(s) = \log (k-1)! + (k-1) \log \tau + \sum_i \log \mathrm{softmax}(x - \tau v)_i
    + \mathrm{logsumexp}(\log w) - \sum_i \log w_i

with respect to :math:`ds_1 \cdots ds_{k-1}` (any one entry may be left out). On the simplex
:math:`\sum_i w_i = 1` and :math:`\log w = v`, which gives the Concrete density of Maddison, Mnih
and Teh (2017), https://arxiv.org/abs/1611.00712, and of Jang, Gu and Poole (2017),
https://arxiv.org/abs/1611.01144. The density in logit space is :math:`p(v) = p(s) \prod_i w_i`, as
for any elementwise transform: the last sum drops out. Without the last two terms it is the density
of the k - 1 differences :math:`v_i - v_k`, with any category as the reference. These differences
have the same distribution on the simplex and on the hypersimplex.

**Density on the interval.** :math:`v = (x + L) / \tau` with a standard logistic :math:`L`. The log
density of :math:`L` at :math:`d` is :math:`\log \sigma(d) + \log \sigma(-d)`, which is also the log
slope of the sigmoid:

.. math::
    \log p(s) = \log \tau + \log w(x - \tau v) - \log w(v).

The density in logit space again lacks the last term.

**The clipped interval**, for gates. The value s of the interval is stretched to
:math:`l + (h - l) s` with :math:`l < 0` and :math:`h > 1`, and clipped to [0, 1]. The density is
that of the stretched value, :math:`\log p(s) - \log (h - l)`: the clipped one has none at 0 and 1.

**Logits of -inf** (probabilities of 0). Only the finite logits have possible outcomes. The others
are left out of every sum, and k counts the finite ones. If exactly m are finite, the distribution
on the hypersimplex has a single value, in which these m are chosen.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import ends
from pyro_gumbel.ops.autograd import with_own_gradient, zero_with_gradient
from pyro_gumbel.ops.logarithms import clamped_log

__all__ = [
    "ClippedInterval",
    "Hypersimplex",
    "Interval",
    "Link",
    "Simplex",
    "interval",
    "simplex",
]

NEAR = 64.0  # logits up to this size cost the noise no digits that matter


class Link:
    """A map from perturbed logits to relaxed values, in two steps; calling it takes both.

    In every method `logits`, `perturbed` and `unconstrained` are x, z and v of the module's
    docstring. `temperature` broadcasts with them: for vectors it has a last dimension of 1, or no
    dimensions.

    A subclass defines `event_dim`, the number of dimensions of a value (0 or 1), and the methods

    * `unconstrained` and `value`, for draws;
    * `inverse`, `log_density`, `is_impossible` and `is_point`, for `log_prob`;
    * `hard`, for straight-through samples;
    * `noise`, for `NoiseReparam`.

    They are made of differentiable operations of torch. The other methods have defaults.

    Links of one class with equal attributes are equal, so that a copied or unpickled distribution
    finds what a value has cached.
    """

    event_dim: ClassVar[int]

    def __eq__(self, other: object) -> bool:
        if other is self or type(other) is not type(self):
            return other is self
        mine, theirs = self.__dict__, other.__dict__
        return mine.keys() == theirs.keys() and all(
            torch.equal(each, theirs[name]) if isinstance(each, Tensor) else each == theirs[name]
            for name, each in mine.items()
        )

    def __hash__(self) -> int:
        return hash(type(self))  # not by attributes: torch.compile hashes before they are set

    def __call__(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        """The relaxed value s of perturbed logits z."""
        return self.value(self.unconstrained(perturbed, temperature))

    def unconstrained(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        """The value in logit space, v, of perturbed logits z."""
        raise NotImplementedError

    def value(self, unconstrained: Tensor) -> Tensor:
        """The relaxed value s at v in logit space."""
        raise NotImplementedError

    def inverse(self, value: Tensor) -> Tensor:
        """The v of a value s, clamped: on the boundary it and its derivative are finite too."""
        raise NotImplementedError

    def inverse_inside(self, value: Tensor) -> Tensor:
        """The v of a value s that is far from the boundary, without clamping."""
        return self.inverse(value)

    def noise(self, unconstrained: Tensor, logits: Tensor, temperature: Tensor) -> Tensor:
        """The most probable z - x among those that give a finite v."""
        raise NotImplementedError

    def hard(self, perturbed: Tensor) -> Tensor:
        """The hard value that perturbed logits z choose, in their dtype."""
        raise NotImplementedError

    def centred(self, logits: Tensor) -> Tensor:
        """Logits of the same distribution that are near 0, if there are any; else `logits`.

        Noise that is added to numbers far from 0 loses digits.
        """
        return logits

    def finite(self, unconstrained: Tensor) -> Tensor:
        """v with -inf and inf, of the values 0 and 1, replaced as in the clamped inverse."""
        finfo = torch.finfo(unconstrained.dtype)
        low, high = math.log(finfo.tiny), -math.log(finfo.eps / 2)
        return torch.nan_to_num(unconstrained, nan=math.nan, neginf=low, posinf=high)

    def log_density(
        self, unconstrained: Tensor, logits: Tensor, temperature: Tensor, *, of_values: bool
    ) -> Tensor:
        """log p(s) if `of_values`, else log p(v), at a finite v of a possible outcome."""
        raise NotImplementedError

    def is_impossible(self, value: Tensor, logits: Tensor, low: float, high: float) -> Tensor:
        """Where `value`, with entries in [low, high], gives weight to an impossible outcome."""
        raise NotImplementedError

    def is_point(self, logits: Tensor) -> Tensor:
        """Where the distribution has a single value."""
        raise NotImplementedError


class _Sigmoid(Link):
    """Links whose value is the sigmoid of v."""

    def value(self, unconstrained: Tensor) -> Tensor:
        # Not torch.sigmoid: its derivative s (1 - s) is 0 where s rounds to 1.
        return logsigmoid(unconstrained).exp()

    def inverse(self, value: Tensor) -> Tensor:
        below_one = 1 - torch.finfo(value.dtype).eps / 2
        return clamped_log(value) - torch.log1p(-value.clamp(max=below_one))

    def inverse_inside(self, value: Tensor) -> Tensor:
        return torch.logit(value)


class Interval(_Sigmoid):
    """[0, 1], for Bernoulli. At a logit of -inf or inf the only value is 0 or 1."""

    event_dim = 0

    def unconstrained(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        return _divide(perturbed, temperature)

    def noise(self, unconstrained: Tensor, logits: Tensor, temperature: Tensor) -> Tensor:
        point = logits.isinf()
        return torch.where(
            point, 0.0, temperature * unconstrained - torch.where(point, 0.0, logits)
        )

    def hard(self, perturbed: Tensor) -> Tensor:
        return (perturbed >= 0).to(perturbed.dtype)

    def log_density(
        self, unconstrained: Tensor, logits: Tensor, temperature: Tensor, *, of_values: bool
    ) -> Tensor:
        point = logits.isinf()
        noise = torch.where(point, 0.0, logits) - temperature * unconstrained
        density = temperature.log() + _log_slope(noise)
        if of_values:
            density = density - _log_slope(unconstrained)
        return torch.where(point, 0.0, density)

    def is_impossible(self, value: Tensor, logits: Tensor, low: float, high: float) -> Tensor:
        return logits.isneginf() & (value > low) | logits.isposinf() & (value < high)

    def is_point(self, logits: Tensor) -> Tensor:
        return logits.isinf()


class ClippedInterval(Interval):
    r"""[0, 1] with its ends, for gates: the interval, stretched beyond its ends and clipped.

    .. math:: s = \min(1, \max(0, \; l + (h - l) \, \sigma(v)))

    :param low: l < 0, the lower end of the stretched interval.
    :param high: h > 1, its upper end.
    :ivar at_zero: the v at which the stretched value is 0.
    :ivar at_one: the v at which it is 1.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.at_zero = math.log(-low) - math.log(high)
        self.at_one = math.log1p(-low) - math.log(high - 1)

    def __eq__(self, other: object) -> bool:
        # In torch 2.8 torch.compile cannot look through all attributes.
        return isinstance(other, ClippedInterval) and (
            (self.low, self.high) == (other.low, other.high)
        )

    __hash__ = Interval.__hash__

    def __repr__(self) -> str:
        return f"ClippedInterval({self.low:g}, {self.high:g})"

    def value(self, unconstrained: Tensor) -> Tensor:
        return self.stretched(unconstrained).clamp(0, 1)

    def stretched(self, unconstrained: Tensor) -> Tensor:
        """The value at v before it is clipped."""
        return self.low + (self.high - self.low) * super().value(unconstrained)

    def inverse(self, value: Tensor) -> Tensor:
        inside = value.clamp(0, 1)
        return torch.log(inside - self.low) - torch.log(self.high - inside)

    def inverse_inside(self, value: Tensor) -> Tensor:
        return self.inverse(value)

    def finite(self, unconstrained: Tensor) -> Tensor:
        return torch.nan_to_num(
            unconstrained, nan=math.nan, neginf=self.at_zero, posinf=self.at_one
        )

    def hard(self, perturbed: Tensor) -> Tensor:
        return (self.value(perturbed) >= 0.5).to(perturbed.dtype)

    def log_density(
        self, unconstrained: Tensor, logits: Tensor, temperature: Tensor, *, of_values: bool
    ) -> Tensor:
        density = super().log_density(unconstrained, logits, temperature, of_values=of_values)
        if not of_values:
            return density
        return torch.where(logits.isinf(), 0.0, density - math.log(self.high - self.low))


class _SumConstrained(Link):
    """Links whose values have a constant sum over the last dimension: v = z / tau - c."""

    event_dim = 1
    size: int

    def unconstrained(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        # Subtract the smallest of the winners first. Differences next to it are exact, and only
        # quotients far from it can overflow.
        below = perturbed - largest(perturbed.detach(), self.size)
        return _normalised(_divide(below, temperature), self)

    def noise(self, unconstrained: Tensor, logits: Tensor, temperature: Tensor) -> Tensor:
        # z = tau v + c for any c. With d = x - tau v the noise c - d is the most probable where
        # k = sum_i exp(d_i - c), that is where it is -log(k softmax(d)).
        out = logits.isneginf()
        shares = torch.log_softmax(logits - temperature * unconstrained, -1)
        k = (~out).sum(-1, keepdim=True).to(shares.dtype)
        return torch.where(out, 0.0, -torch.where(out, 0.0, shares) - k.log())

    def centred(self, logits: Tensor) -> Tensor:
        # To see that the largest of each row is near 0 costs less than to subtract it.
        on_cpu = logits.device.type == "cpu"
        if on_cpu and _are_near(logits):
            return logits
        top = logits.detach().amax(-1, keepdim=True)
        if on_cpu and _are_near(top):
            return logits
        below = logits - top
        lowest = _lowest(logits.dtype) + zero_with_gradient(logits)
        overflows = below.isneginf() & ~logits.isneginf()
        return torch.where(overflows, lowest, below)

    def normalise(self, scaled: Tensor) -> Tensor:
        """The v of z / tau, without a graph."""
        raise NotImplementedError

    def normalise_in_graph(self, scaled: Tensor) -> Tensor:
        """The v of z / tau, with derivatives up to the third order."""
        raise NotImplementedError

    def log_slopes(self, unconstrained: Tensor) -> Tensor:
        """log w at v."""
        raise NotImplementedError

    def weights(self, unconstrained: Tensor) -> Tensor:
        """omega = w / sum(w), the weights of the differential."""
        log_w = self.log_slopes(unconstrained)
        # Where there is a single value any weights will do.
        point = log_w.detach().amax(-1, keepdim=True).isneginf()
        return torch.where(point, 0.0, log_w).softmax(-1)

    def log_density(
        self, unconstrained: Tensor, logits: Tensor, temperature: Tensor, *, of_values: bool
    ) -> Tensor:
        out = logits.isneginf()
        terms = torch.log_softmax(logits - temperature * unconstrained, -1)
        log_w = self.log_slopes(unconstrained)
        if of_values:
            terms = terms - log_w
        k = (~out).sum(-1, keepdim=True).to(terms.dtype)
        scale = torch.lgamma(k) + (k - 1) * temperature.log()
        density = scale.squeeze(-1) + torch.where(out, 0.0, terms).sum(-1)
        return self._add_total_slope(density, log_w, out)

    def _add_total_slope(self, density: Tensor, log_slopes: Tensor, out: Tensor) -> Tensor:
        """`density` + logsumexp(log w), or 0 where the distribution has a single value."""
        raise NotImplementedError

    def is_impossible(self, value: Tensor, logits: Tensor, low: float, high: float) -> Tensor:
        return (logits.isneginf() & (value > low)).any(-1)

    def is_point(self, logits: Tensor) -> Tensor:
        return (~logits.isneginf()).sum(-1) == self.size


class Simplex(_SumConstrained):
    """{s >= 0, sum(s) = 1} over the last dimension, for one-hot vectors."""

    size = 1

    def normalise(self, scaled: Tensor) -> Tensor:
        return torch.log_softmax(scaled, -1)

    normalise_in_graph = normalise

    def value(self, unconstrained: Tensor) -> Tensor:
        return unconstrained.exp()

    def inverse(self, value: Tensor) -> Tensor:
        return clamped_log(value)

    def inverse_inside(self, value: Tensor) -> Tensor:
        return value.log()

    def hard(self, perturbed: Tensor) -> Tensor:
        winner = perturbed.argmax(-1, keepdim=True)
        return torch.zeros_like(perturbed).scatter(-1, winner, 1.0)

    def log_slopes(self, unconstrained: Tensor) -> Tensor:
        return unconstrained

    def weights(self, unconstrained: Tensor) -> Tensor:
        return unconstrained.exp()

    def _add_total_slope(self, density: Tensor, log_slopes: Tensor, out: Tensor) -> Tensor:
        return density  # sum(w) = sum(s) = 1


class Hypersimplex(_Sigmoid, _SumConstrained):
    """{0 <= s <= 1, sum(s) = size} over the last dimension, for subsets of `size` categories.

    :param size: m, the number of chosen categories, 1 <= m <= k. At m = k there is a single value.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __eq__(self, other: object) -> bool:  # torch.compile of torch 2.8 cannot read __dict__
        return isinstance(other, Hypersimplex) and other.size == self.size

    __hash__ = Link.__hash__

    def __repr__(self) -> str:
        return f"Hypersimplex({self.size})"

    def hard(self, perturbed: Tensor) -> Tensor:
        winners = perturbed.topk(self.size, -1, sorted=False).indices
        return torch.zeros_like(perturbed).scatter(-1, winners, 1.0)

    def normalise(self, scaled: Tensor) -> Tensor:
        return torch.where(scaled == -math.inf, scaled, scaled - self._threshold(scaled))

    def normalise_in_graph(self, scaled: Tensor) -> Tensor:
        # Start at the root. Each step of Newton's method, with its slope held fixed, makes one
        # more derivative correct, because its error is of one order higher in the input.
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
        return torch.where(alone & (scaled > -math.inf), math.inf, scaled - c)

    def _threshold(self, scaled: Tensor) -> Tensor:
        """The root c; -inf where only the top m are finite."""
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

    def log_slopes(self, unconstrained: Tensor) -> Tensor:
        return _log_slope(unconstrained)

    def _add_total_slope(self, density: Tensor, log_slopes: Tensor, out: Tensor) -> Tensor:
        total = torch.where(out, -math.inf, log_slopes).logsumexp(-1)
        return torch.where((~out).sum(-1) == self.size, 0.0, density + total)


interval = Interval()
simplex = Simplex()


class _Normalise(torch.autograd.Function):
    """From v' to v, with dv_i = dv'_i - sum_j omega_j dv'_j."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scaled: Tensor, link: _SumConstrained) -> Tensor:
        return link.normalise(scaled)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _SumConstrained], output: Tensor) -> None:
        ctx.link = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return gradient - ctx.link.weights(v) * gradient.sum(-1, keepdim=True), None


def _lowest(dtype: torch.dtype) -> float:
    """The lowest number, in float64 one that is finite when it is written with 16 digits.

    So TorchScript writes it into a program for a GPU.
    """
    return torch.finfo(dtype).min * (1 - 2**-50)


def _normalised(scaled: Tensor, link: _SumConstrained) -> Tensor:
    """`link.normalise` with a gradient."""
    result: Tensor = with_own_gradient(_Normalise, _normalised_in_graph, scaled, link)
    return result


def _normalised_in_graph(scaled: Tensor, link: _SumConstrained) -> Tensor:
    return link.normalise_in_graph(scaled)


def largest(z: Tensor, j: int) -> Tensor:
    """The j-th largest over the last dimension."""
    if j == 1:
        return z.amax(-1, keepdim=True)
    return z.topk(j, -1, sorted=False).values.amin(-1, keepdim=True)


def _are_near(logits: Tensor) -> bool:
    """Whether all logits are known to be near 0."""
    least, most = ends(logits)
    return least >= -NEAR and most <= NEAR


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
    """z / tau, without a gradient where it is infinite.

    The factor tau / tau, 1 in value, gives the derivative in tau: z / tau^2 may overflow.
    """
    tau = temperature.detach()
    quotient = perturbed.detach() / tau
    infinite = quotient.isinf()
    finite = torch.where(infinite, 0.0, perturbed) / tau * (tau / temperature)
    return torch.where(infinite, quotient, finite)
