# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The links from perturbed logits to soft values, and the densities that they induce.

Symbols: x the logits, tau > 0 the temperature, k the number of categories, E_i iid Exponential(1),
g_i = -log E_i iid Gumbel(0, 1), z = x + g the *perturbed logits*. A link maps z to *coordinates* v
and those, elementwise, to the *value* s; w = ds/dv is the slope of that second step. Coordinates
never saturate: they are what is stored, scored and remembered.

============ ================================== ================= =========
link         coordinates                        value             slope w
============ ================================== ================= =========
interval     v = (x + logistic) / tau           s = sigmoid(v)    s (1 - s)
simplex      v = z / tau - logsumexp(z / tau)   s = exp(v)        s
============ ================================== ================= =========

**Density on the simplex.** Each z_i has density exp(-(z_i - x_i) - exp(x_i - z_i)). The
coordinates determine z up to a common shift c: z = tau v + c. Integrate the shift out, with
d_i = x_i - tau v_i and the substitution t = exp(-c):

    \int exp(sum_i (d_i - c) - e^{-c} sum_i e^{d_i}) dc
        = exp(sum_i d_i) \int t^{k-1} exp(-t sum_i e^{d_i}) dt
        = (k-1)! exp(sum_i d_i) / (sum_i e^{d_i})^k = (k-1)! prod_i softmax(d)_i.

The Jacobian of (c, s_1, ..., s_{k-1}) -> z: since du_i/ds_j = tau delta_ij / w_i for the
first k - 1 rows and -tau / w_k in the last, adding (w_i / w_k) times row i to the last row leaves
tau^{k-1} sum(w) / prod(w), and sum(w) = 1 on the simplex. Hence

    log p(s) = log (k-1)! + (k-1) log tau + sum_i log softmax(x - tau v)_i - sum_i v_i

with respect to ds_1 ... ds_{k-1} (any one coordinate left out). This is the Concrete density of
Maddison, Mnih and Teh (2017), https://arxiv.org/abs/1611.00712, and of Jang, Gu and Poole (2017),
https://arxiv.org/abs/1611.01144. The density of the coordinates is p(s) prod(w), as an elementwise
transform has it: without the last sum. It is a density with respect to the k - 1 log-ratios
v_i - v_k (any category as the reference).

**Density on the interval.** v = (x + L) / tau with L standard logistic, whose log density at d is
logsigmoid(d) + logsigmoid(-d), the log slope of the sigmoid:

    log p(s) = log tau + log w(x - tau v) - log w(v).

The density of the coordinate is again that without the last term.

**Logits of -inf** (probabilities of 0). The law lives on the face of the finite logits: the
others are left out of every sum, and k is the number of the finite ones.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["Interval", "Link", "Simplex", "clamped_log", "interval", "simplex"]


class Link:
    """A map from perturbed logits over coordinates to values; called, it goes all the way.

    In every method `temperature` broadcasts with the perturbed logits: on the simplex it has a
    last dimension of 1.
    """

    event_dim: ClassVar[int]

    def __call__(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        """The soft value of `perturbed` logits at `temperature`."""
        return self.value(self.coordinates(perturbed, temperature))

    def coordinates(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        """z -> v."""
        raise NotImplementedError

    def value(self, coordinates: Tensor) -> Tensor:
        """v -> s."""
        raise NotImplementedError

    def inverse(self, value: Tensor) -> Tensor:
        """s -> v, clamped: finite, with a finite derivative, on the boundary too."""
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

    def off_face(self, value: Tensor, logits: Tensor, low: float, high: float) -> Tensor:
        """Where `value`, in [low, high], has mass on an outcome of probability 0."""
        raise NotImplementedError


class Interval(Link):
    """[0, 1]: one bit. A logit of -inf or inf is the point 0 or 1."""

    event_dim = 0

    def coordinates(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        return _divide(perturbed, temperature)

    def value(self, coordinates: Tensor) -> Tensor:
        # Not torch.sigmoid: its derivative s (1 - s) is 0 where s rounds to 1.
        return logsigmoid(coordinates).exp()

    def inverse(self, value: Tensor) -> Tensor:
        below_one = 1 - torch.finfo(value.dtype).eps / 2
        return clamped_log(value) - torch.log1p(-value.clamp(max=below_one))

    def log_density(
        self, coordinates: Tensor, logits: Tensor, temperature: Tensor, *, of_values: bool
    ) -> Tensor:
        point = logits.isinf()
        noise = torch.where(point, 0.0, logits) - temperature * coordinates
        density = temperature.log() + _log_slope(noise)
        if of_values:
            density = density - _log_slope(coordinates)
        return torch.where(point, 0.0, density)

    def off_face(self, value: Tensor, logits: Tensor, low: float, high: float) -> Tensor:
        return logits.isneginf() & (value > low) | logits.isposinf() & (value < high)


class Simplex(Link):
    """{s >= 0, sum(s) = 1} over the last dimension: one of k."""

    event_dim = 1

    def coordinates(self, perturbed: Tensor, temperature: Tensor) -> Tensor:
        # The largest is taken out first, so that no quotient but that of a loser overflows.
        below = perturbed - perturbed.detach().amax(-1, keepdim=True)
        return torch.log_softmax(_divide(below, temperature), -1)

    def value(self, coordinates: Tensor) -> Tensor:
        return coordinates.exp()

    def inverse(self, value: Tensor) -> Tensor:
        return clamped_log(value)

    def log_density(
        self, coordinates: Tensor, logits: Tensor, temperature: Tensor, *, of_values: bool
    ) -> Tensor:
        out = logits.isneginf()
        terms = torch.log_softmax(logits - temperature * coordinates, -1)
        if of_values:
            terms = terms - coordinates
        k = (~out).sum(-1, keepdim=True).to(terms.dtype)
        scale = torch.lgamma(k) + (k - 1) * temperature.log()
        return scale.squeeze(-1) + torch.where(out, 0.0, terms).sum(-1)

    def off_face(self, value: Tensor, logits: Tensor, low: float, high: float) -> Tensor:
        return (logits.isneginf() & (value > low)).any(-1)


interval = Interval()
simplex = Simplex()


def _log_slope(v: Tensor) -> Tensor:
    """log ds/dv of s = sigmoid(v), which is also the standard logistic log density."""
    return logsigmoid(v) + logsigmoid(-v)


def _divide(perturbed: Tensor, temperature: Tensor) -> Tensor:
    """z / tau; where that is infinite no gradient sees it."""
    quotient = perturbed.detach() / temperature.detach()
    infinite = quotient.isinf()
    return torch.where(infinite, quotient, torch.where(infinite, 0.0, perturbed) / temperature)


def clamped_log(value: Tensor) -> Tensor:
    """log(s) of s clamped to the normal numbers, with the slope 1 / max(s, floor).

    The slope 1 / s of the smallest numbers overflows as soon as it is multiplied; below the floor
    it grows no further.
    """
    finfo = torch.finfo(value.dtype)
    floor = torch.tensor(finfo.tiny * 2.0**24, dtype=value.dtype, device=value.device)
    above = torch.maximum(value, floor).log()
    extended = torch.where(value < floor, floor.log() + (value - floor) / floor, above)
    exact = value.detach().clamp(min=finfo.tiny).log()
    return extended + (exact - extended.detach())
