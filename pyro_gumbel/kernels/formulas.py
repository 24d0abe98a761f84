# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The forward and the analytic backward pass of a draw and of a density, as functions of buffers.

Symbols as in `pyro_gumbel.links`: logits :math:`x`, temperature :math:`\tau`, value :math:`s`,
value in logit space :math:`v`, slope :math:`w = ds/dv`, weights :math:`\omega = w / \sum_j w_j`.
Besides, :math:`h = d \log w / dv`, and a bar denotes the gradient of the loss in a quantity.

**A draw** gives :math:`s`, :math:`v` and :math:`\log p(s)`. With the noise held fixed
:math:`x - \tau v` is :math:`-g` up to a constant. So

.. math::
    \log p(s) = \log (k-1)! + (k-1) \log \tau + \sum_i \log \mathrm{softmax}(-g)_i
    + \mathrm{logsumexp}(\log w) - \sum_i \log w_i

needs no second pass over :math:`x`, and depends on :math:`x` and :math:`\tau` through :math:`v` and
:math:`\log \tau` alone. With :math:`\bar\ell` the gradient in :math:`\log p(s)`,

.. math::
    u = \bar s \, w + \bar v + \bar\ell \, (\omega - 1) \, h, \qquad
    r = u - \omega \sum_j u_j, \qquad
    \bar x = r / \tau, \qquad
    \bar\tau = \Big(\bar\ell \, (k-1) - \sum_j r_j v_j\Big) / \tau.

On the simplex :math:`w = \omega = s` and :math:`\mathrm{logsumexp}(\log w) = 0`, so that the last
term of :math:`u` is :math:`-\bar\ell`.

**A density** is that of any :math:`v`. With :math:`d = x - \tau v` and
:math:`p = \mathrm{softmax}(d)`, a gradient :math:`\bar\ell` in it gives

.. math::
    r = \bar\ell \, (1 - k p), \qquad
    \bar x = r, \qquad
    \bar v = \bar\ell \, (\omega - 1) \, h - \tau r, \qquad
    \bar\tau = \bar\ell \, (k-1) / \tau - \sum_j r_j v_j,

with :math:`-\bar\ell` as the first term of :math:`\bar v` on the simplex. The density in logit
space lacks :math:`\sum_i \log w_i`, and its :math:`\bar v` has :math:`\omega` in the place of
:math:`\omega - 1`.

**A bit** has no sums: :math:`\omega` is 0, 1 stands for :math:`k - 1`, the log density of the
logistic noise for :math:`\log \mathrm{softmax}(-g)`, and :math:`r = \bar\ell \, h(d)` in the
gradients of a density.

The formulas are for finite numbers. They need no graph, allocate little, and write to the buffers
that they are given. With gradients enabled, and without buffers, the backward passes are
differentiable themselves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import CPU
from pyro_gumbel.links import NEAR, Hypersimplex, Interval, Link, Simplex, interval, largest
from pyro_gumbel.ops.noise import MANY, gumbel, log_exponential, logistic

__all__ = [
    "FEW",
    "FORMULAS",
    "SHORT",
    "Elementwise",
    "Formulas",
    "Gradients",
    "OnHypersimplex",
    "OnSimplex",
]

FEW = 2**12  # elements, up to which one scalar operation is faster than several vectorised ones
SHORT = 32  # torch is slow at sums and softmax over rows with fewer entries

_ONE = {dtype: torch.ones((), dtype=dtype, device=CPU) for dtype in (torch.float32, torch.float64)}

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""The gradients in v, x and tau; those in x and tau are for each draw, not yet summed."""

Wanted = tuple[bool, bool, bool]
"""Which of them are wanted."""


@dataclass(eq=False)
class Formulas:
    """The formulas of a link.

    :param link: the link.
    :param degrees: the degrees of freedom, k - 1; 1 for a bit.
    """

    link: Any
    degrees: int

    event_dim: ClassVar[int]
    noise: ClassVar[Callable[..., Tensor]]
    """The noise that the formulas are for."""

    value_gives_unconstrained: ClassVar[bool] = False
    """Whether v follows from s to rounding, unless s is too small. The density of a draw then is
    finite where x and tau are of a usual size."""

    def are_near(self, x: Tensor) -> bool:
        """Whether the noise loses no digits that matter where it is added to x, as it is."""
        return True

    def centred(self, x: Tensor) -> Tensor:
        """`link.centred` of numbers that can be read."""
        return x if self.are_near(x) else self.link.centred(x)

    def draw(
        self,
        noise: Tensor,
        x: Tensor,
        tau: Tensor,
        log_prob: bool,
        s: Tensor | None,
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """s, z / tau, n and log p(s) without its constant, from noise, which is overwritten.

        v is z / tau - n, where None stands for n = 0. z / tau is in the memory of the noise.

        :param s: a buffer for s.
        :param spare: a buffer with the layout of the noise.
        """
        raise NotImplementedError

    def draw_at_once(
        self, noise: Tensor, x: Tensor, tau: Tensor, log_prob: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """s, v and log p(s) without its constant, of few numbers, with fewer operations."""
        s, v, n, log_p = self.draw(noise, x, tau, log_prob, None, None)
        return s, v if n is None else v.sub_(n), log_p

    def perturbed(self, noise: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        """z from noise, which is overwritten."""
        raise NotImplementedError

    def perturbed_at_once(self, x: Tensor, shape: torch.Size) -> Tensor:
        """z of few numbers, of a shape to which x broadcasts; with a graph if x has one."""
        raise NotImplementedError

    def hard(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The hard value that z chooses, without a graph; the largest z of each row, if found."""
        return self.link.hard(z), None

    def is_fast_with_graph(self, numbers: int) -> bool:
        """Whether `hard_with_graph` is faster than an `autograd.Function`, for few numbers."""
        return False

    def hard_with_graph(self, z: Tensor, tau: Tensor) -> Tensor:
        """The hard value that z chooses, with the graph of s if z has one.

        :param tau: without a gradient.
        """
        raise NotImplementedError

    def at_perturbed(
        self, z: Tensor, tau: Tensor, top: Tensor | None, out: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """s and v of z; with a graph if gradients are enabled. v may be None where s gives it.

        :param top: the largest z of each row, if it is known.
        """
        raise NotImplementedError

    def log_density(
        self, v: Tensor, x: Tensor, tau: Tensor, of_values: bool, spare: Tensor | None
    ) -> Tensor:
        """log p(s) or log p(v) without its constant."""
        raise NotImplementedError

    def add_constant(self, log_prob: Tensor, tau: Tensor) -> Tensor:
        """Add log (k-1)! + (k-1) log tau in place."""
        log_factorial = math.lgamma(self.degrees + 1)
        if tau.numel() == 1:
            only = tau.item()
            log_only = math.log(only) if only > 0 else math.nan
            return log_prob.add_(self.degrees * log_only + log_factorial)
        log_tau = tau.log().squeeze(-1) if self.event_dim else tau.log()
        return log_prob.add_(log_tau, alpha=self.degrees).add_(log_factorial)

    # The backward passes. They share their arguments: x, tau, the tensors of the draws, what is
    # wanted, a buffer for the gradient in x, and one with the shape of a draw.

    def pull_draw(
        self,
        x: Tensor,
        tau: Tensor,
        grad_value: Tensor | None,
        grad_v: Tensor | None,
        grad_log_prob: Tensor | None,
        v: Tensor | None,
        s: Tensor,
        wanted: Wanted,
        out: Tensor | None,
        spare: Tensor | None,
    ) -> Gradients:
        """The gradients of a draw; `v` may be None where the value gives it."""
        r = self._pull_link(grad_value, grad_v, grad_log_prob, s, v, out)
        dx = torch.div(r, tau, out=out)
        if not wanted[2]:
            return None, dx, None
        v = s.log() if v is None else v
        return None, dx, self._pull_temperature(grad_log_prob, tau, dx, v)

    def pull_straight_through(
        self,
        x: Tensor,
        tau: Tensor,
        grad: Tensor,
        top: Tensor | None,
        z: Tensor,
        wanted: Wanted,
        out: Tensor | None,
        spare: Tensor | None,
    ) -> Gradients:
        """The gradients of a hard value with the gradient of its relaxed value."""
        s, v = self.at_perturbed(z, tau, top, spare)
        dx = torch.div(self._pull_link(grad, None, None, s, v, out), tau, out=out)
        if not wanted[2]:
            return None, dx, None
        v = s.log() if v is None else v
        return None, dx, self._pull_temperature(None, tau, dx, v)

    def pull_log_density(
        self,
        x: Tensor,
        tau: Tensor,
        grad: Tensor,
        v: Tensor,
        of_values: bool,
        wanted: Wanted,
        out: Tensor | None,
        spare: Tensor | None,
    ) -> Gradients:
        """The gradients of a log density."""
        r, dv = self._pull_density(grad, v, x, tau, of_values, out, spare)
        dtau = self._pull_temperature(grad, tau, r, v) if wanted[2] else None
        return dv if wanted[0] else None, r if wanted[1] else None, dtau

    def _pull_link(
        self,
        grad_value: Tensor | None,
        grad_v: Tensor | None,
        grad_log_prob: Tensor | None,
        s: Tensor,
        v: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:
        """r of a draw, the gradient in z / tau."""
        raise NotImplementedError

    def _pull_density(
        self,
        grad: Tensor,
        v: Tensor,
        x: Tensor,
        tau: Tensor,
        of_values: bool,
        out: Tensor | None,
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """r of a density, and the gradient in v."""
        raise NotImplementedError

    def _pull_temperature(
        self, grad_log_prob: Tensor | None, tau: Tensor, dx: Tensor, v: Tensor
    ) -> Tensor:
        """The gradient in tau for each draw, with the last dimension of tau."""
        # Where v is infinite dx is 0, and the product must be 0 in all derivatives.
        terms = dx * torch.nan_to_num(v, nan=math.nan, posinf=0.0, neginf=0.0)
        dtau = -(terms.sum(-1, keepdim=True) if self.event_dim else terms)
        if grad_log_prob is None:
            return dtau
        of_log_prob = grad_log_prob.unsqueeze(-1) if self.event_dim else grad_log_prob
        return dtau + of_log_prob * self.degrees / tau


class Elementwise(Formulas):
    """Bits, entry by entry."""

    event_dim = 0
    noise = staticmethod(logistic)

    def draw(
        self,
        noise: Tensor,
        x: Tensor,
        tau: Tensor,
        log_prob: bool,
        s: Tensor | None,
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        log_p = _logistic_log_density(noise) if log_prob else None
        v = noise.add_(x).div_(tau)
        if log_p is not None:
            log_p.sub_(_logistic_log_density(v))
        return torch.sigmoid(v, out=s), v, None, log_p

    def draw_at_once(
        self, noise: Tensor, x: Tensor, tau: Tensor, log_prob: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        v = torch.add(noise, x).div_(tau)
        if not log_prob:
            return v.sigmoid(), v, None
        # log sigmoid(v) + log sigmoid(-v) = 2 log sigmoid(v) - v, of the noise less that of v
        log_p = logsigmoid(noise).sub_(logsigmoid(v))
        return v.sigmoid(), v, torch.sub(v, noise, out=noise).add_(log_p, alpha=2)

    def perturbed(self, noise: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        return torch.add(noise, x, out=out)

    def perturbed_at_once(self, x: Tensor, shape: torch.Size) -> Tensor:
        return logistic(shape, dtype=x.dtype, device=x.device).add_(x)

    def hard(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        if z.numel() >= FEW:
            return interval.hard(z), None
        return torch.heaviside(z, _ONE[z.dtype]), None  # 1 at 0 too

    def is_fast_with_graph(self, numbers: int) -> bool:
        return True

    def hard_with_graph(self, z: Tensor, tau: Tensor) -> Tensor:
        if not z.requires_grad:
            return self.hard(z)[0]
        s = (z / tau).sigmoid()
        return self.hard(z.detach())[0] + (s - s.detach())

    def at_perturbed(
        self, z: Tensor, tau: Tensor, top: Tensor | None, out: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        v = interval.unconstrained(z, tau) if torch.is_grad_enabled() else z / tau
        return v.sigmoid(), v

    def log_density(
        self, v: Tensor, x: Tensor, tau: Tensor, of_values: bool, spare: Tensor | None
    ) -> Tensor:
        log_p = _logistic_log_density(x - tau * v)
        return log_p.sub_(_logistic_log_density(v)) if of_values else log_p

    def _pull_link(
        self,
        grad_value: Tensor | None,
        grad_v: Tensor | None,
        grad_log_prob: Tensor | None,
        s: Tensor,
        v: Any,
        out: Tensor | None,
    ) -> Tensor:
        of_value = of_log_prob = None
        if grad_value is not None:
            of_value = torch.mul(grad_value, s * (-v).sigmoid(), out=out)
        if grad_log_prob is not None:
            half = torch.sub(v, v, alpha=0.5)  # exact, and faster than a division by a number
            of_log_prob = grad_log_prob * torch.tanh(half)
        return _sum_of(of_value, grad_v, of_log_prob, out)

    def _pull_density(
        self,
        grad: Tensor,
        v: Tensor,
        x: Tensor,
        tau: Tensor,
        of_values: bool,
        out: Tensor | None,
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        r = torch.mul(-grad, torch.tanh((x - tau * v) / 2), out=out)
        return r, grad * torch.tanh(v / 2) - tau * r if of_values else -tau * r


class Rowwise(Formulas):
    """Values with a constant sum over the last dimension; the noise is Gumbel."""

    event_dim = 1
    noise = staticmethod(gumbel)

    def are_near(self, x: Tensor) -> bool:
        if not x.numel():
            return True
        least, most = x.detach().aminmax()
        return least.item() >= -NEAR and most.item() <= NEAR

    def draw(
        self,
        noise: Tensor,
        x: Tensor,
        tau: Tensor,
        log_prob: bool,
        s: Tensor | None,
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        log_total = noise.sum(-1).log_() if log_prob else None
        log_e = noise.log_()
        log_p = None
        if log_total is not None:  # sum_i log softmax(-g)_i
            log_p = log_e.sum(-1).sub_(log_total, alpha=self.degrees + 1)
        z = torch.sub(x, log_e, out=log_e)
        return *self._finish(z, tau, log_p, s, spare), log_p

    def perturbed(self, noise: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        return torch.sub(x, noise.log_(), out=out)

    def perturbed_at_once(self, x: Tensor, shape: torch.Size) -> Tensor:
        return x - log_exponential(shape, dtype=x.dtype, device=x.device)

    def at_perturbed(
        self, z: Tensor, tau: Tensor, top: Tensor | None, out: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if torch.is_grad_enabled():
            v = self.link.unconstrained(z, tau)
            return self.link.value(v), v
        z = z.clone() if out is None else out.copy_(z)
        s, scaled, n = self._finish(z, tau, None, None, None)
        return s, scaled if n is None else scaled.sub_(n)

    def _finish(
        self,
        z: Tensor,
        tau: Tensor,
        log_p: Tensor | None,
        s: Tensor | None,
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """s, z / tau (in place, up to a common shift) and n; adds the slopes' part to log p."""
        raise NotImplementedError

    def _differences(self, v: Tensor, x: Tensor, tau: Tensor, out: Tensor | None) -> Tensor:
        """d, less the largest of each row."""
        d = torch.mul(v, tau, out=out)
        torch.sub(x, d, out=d)
        return d.sub_(d.amax(-1, keepdim=True))

    def log_density(
        self, v: Tensor, x: Tensor, tau: Tensor, of_values: bool, spare: Tensor | None
    ) -> Tensor:
        d = self._differences(v, x, tau, spare)
        log_p = d.sum(-1).sub_(d.exp_().sum(-1).log_(), alpha=self.degrees + 1)
        return self._add_slopes(log_p, v, of_values)

    def _add_slopes(self, log_p: Tensor, v: Tensor, of_values: bool) -> Tensor:
        """Add logsumexp(log w) - sum(log w), or the first term only, in place."""
        raise NotImplementedError

    def _pull_density(
        self,
        grad: Tensor,
        v: Tensor,
        x: Tensor,
        tau: Tensor,
        of_values: bool,
        out: Tensor | None,
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            p = (x - tau * v).softmax(-1)
        else:
            p = self._differences(v, x, tau, spare).exp_()
            p.div_(p.sum(-1, keepdim=True))
        grad = grad.unsqueeze(-1)
        r = torch.mul(grad, 1 - (self.degrees + 1) * p, out=out)
        return r, self._pull_slopes(grad, v, of_values) - tau * r

    def _pull_slopes(self, grad: Tensor, v: Tensor, of_values: bool) -> Tensor:
        """The gradient in v of what `_add_slopes` adds."""
        raise NotImplementedError


class OnSimplex(Rowwise):
    """One-hot vectors."""

    value_gives_unconstrained = True

    def _finish(
        self,
        z: Tensor,
        tau: Tensor,
        log_p: Tensor | None,
        s: Tensor | None,
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        z.sub_(z.amax(-1, keepdim=True)).div_(tau)
        exp_z = torch.exp(z, out=s if spare is None else spare)
        total = exp_z.sum(-1, keepdim=True)
        s = torch.div(exp_z, total, out=s)
        n = total.log_()
        if log_p is not None:
            log_p.sub_(z.sum(-1)).add_(n.squeeze(-1), alpha=self.degrees + 1)
        return s, z, n

    def draw_at_once(
        self, noise: Tensor, x: Tensor, tau: Tensor, log_prob: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        log_total = noise.sum(-1).log_() if log_prob else None
        log_e = noise.log_()
        v = x - log_e
        v.sub_(v.amax(-1, keepdim=True)).div_(tau)
        s = v.exp()
        total = s.sum(-1, keepdim=True)
        s.div_(total)
        v.sub_(total.log_())
        if log_total is None:
            return s, v, None
        return s, v, log_e.sub_(v).sum(-1).sub_(log_total, alpha=self.degrees + 1)

    def hard(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        top, index = z.max(-1, keepdim=True)
        return torch.zeros_like(z).scatter_(-1, index, 1.0), top  # no copy

    def is_fast_with_graph(self, numbers: int) -> bool:
        # `softmax` goes row by row, which is slow in many short rows.
        k = self.degrees + 1
        return k >= SHORT or numbers <= SHORT * k

    def hard_with_graph(self, z: Tensor, tau: Tensor) -> Tensor:
        if not z.requires_grad:
            return self.hard(z)[0]
        hard, top = self.hard(z.detach())
        s = (z.sub(top) / tau).softmax(-1)  # type: ignore[arg-type]
        return hard + (s - s.detach())

    def at_perturbed(
        self, z: Tensor, tau: Tensor, top: Tensor | None, out: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if out is not None or torch.is_grad_enabled():
            return super().at_perturbed(z, tau, top, out)
        s = z.sub(z.amax(-1, keepdim=True) if top is None else top).div_(tau).exp_()
        return s.div_(s.sum(-1, keepdim=True)), None  # faster than `softmax` in short rows

    def _add_slopes(self, log_p: Tensor, v: Tensor, of_values: bool) -> Tensor:
        return log_p.sub_(v.sum(-1)) if of_values else log_p

    def _pull_slopes(self, grad: Tensor, v: Tensor, of_values: bool) -> Tensor:
        return -grad if of_values else torch.zeros_like(grad)

    def _pull_link(
        self,
        grad_value: Tensor | None,
        grad_v: Tensor | None,
        grad_log_prob: Tensor | None,
        s: Tensor,
        v: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:
        of_value = None if grad_value is None else torch.mul(grad_value, s, out=out)
        u = _sum_of(of_value, grad_v, None, out)
        if grad_log_prob is not None:
            of_row = grad_log_prob.unsqueeze(-1)
            u = (-of_row).expand_as(s) if u is None else torch.sub(u, of_row, out=out)
        return _less_weighted_sum(u, s, out)


class OnHypersimplex(Rowwise):
    """Subsets."""

    def _finish(
        self,
        z: Tensor,
        tau: Tensor,
        log_p: Tensor | None,
        s: Tensor | None,
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        v = self.link.normalise(z.sub_(largest(z, self.link.size)).div_(tau))
        if log_p is not None:
            self._add_slopes(log_p, v, True)
        return torch.sigmoid(v, out=s), v, None

    def _add_slopes(self, log_p: Tensor, v: Tensor, of_values: bool) -> Tensor:
        log_w = self.link.log_slopes(v)
        total = log_w.logsumexp(-1)
        return log_p.add_(total - log_w.sum(-1) if of_values else total)

    def _pull_slopes(self, grad: Tensor, v: Tensor, of_values: bool) -> Tensor:
        return grad * (float(of_values) - self.link.weights(v)) * torch.tanh(v / 2)

    def _pull_link(
        self,
        grad_value: Tensor | None,
        grad_v: Tensor | None,
        grad_log_prob: Tensor | None,
        s: Tensor,
        v: Any,
        out: Tensor | None,
    ) -> Tensor:
        of_value = of_log_prob = None
        omega = self.link.weights(v)
        if grad_value is not None:
            of_value = torch.mul(grad_value, s * (-v).sigmoid(), out=out)
        if grad_log_prob is not None:
            of_log_prob = grad_log_prob.unsqueeze(-1) * (1 - omega) * torch.tanh(v / 2)
        u = _sum_of(of_value, grad_v, of_log_prob, out)
        return _less_weighted_sum(u.expand_as(s), omega, out)


FORMULAS: dict[type[Link], type[Formulas]] = {
    Interval: Elementwise,
    Simplex: OnSimplex,
    Hypersimplex: OnHypersimplex,
}


def _logistic_log_density(v: Tensor) -> Tensor:
    """log sigmoid(v) + log sigmoid(-v) = -|v| - 2 log(1 + exp(-|v|))."""
    size = v.abs()
    return size.neg().exp_().log1p_().mul_(-2).sub_(size)


def _sum_of(first: Tensor | None, second: Tensor | None, third: Tensor | None, out: Any) -> Any:
    """The sum of the terms that are not None, of several in `out` if given; None if there are none.

    One that is the only term is returned itself.
    """
    total = first
    for term in (second, third):
        if total is None:
            total = term
        elif term is not None:
            total = torch.add(total, term, out=out)
    return total


def _less_weighted_sum(u: Tensor, omega: Tensor, out: Tensor | None) -> Tensor:
    """u - omega sum(u)."""
    if u.numel() < MANY or u.shape[-1] >= SHORT or torch.compiler.is_compiling():
        total = u.sum(-1, keepdim=True)
    else:
        with torch.autocast("cpu", enabled=False):  # a product is four times as fast as a sum
            total = u @ u.new_ones((u.shape[-1], 1))
    return torch.addcmul(u, omega, total, value=-1, out=out)
