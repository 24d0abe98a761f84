# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The hot path: a draw and a density, each with one forward and one analytic backward.

Symbols as in `pyro_gumbel.links`: logits x, temperature tau, coordinates v, value s, slope
w = ds/dv, omega = w / sum(w), and h = dlog w/dv. What is a graph of operations there is done at
once here, in blocks that stay in the cache; no large tensor is made but the results.

**A draw** gives s, v and log p(s). With the noise held fixed x - tau v is -g up to a constant, so

    log p(s) = log (k-1)! + (k-1) log tau + sum_i log softmax(-g)_i + logsumexp(log w) - sum(log w)

needs no second pass over x, and x and tau enter it through v alone. Gradients a in s, b in v and c
in log p(s) make

    u = a w + b + c (omega - 1) h,    r = u - omega sum(u),
    dx = r / tau,    dtau = (c (k-1) - sum(r v)) / tau.

On the simplex w = omega = s, and the term of c is -c, because logsumexp(log w) is 0.

**A density** is that of any v. With d = x - tau v and p = softmax(d), a gradient c in it makes

    r = c (1 - k p),    dx = r,    dv = c (omega - 1) h - tau r,    dtau = c (k-1) / tau - sum(r v),

with -c for the first term of dv on the simplex. The density of coordinates lacks sum(log w), and
dv the 1 of omega - 1.

**Bits** have no sums: omega is 0, there is 1 for k - 1, log density h of the logistic noise for
log softmax, and r = c h(d) in the gradients of a density.

**Coordinates** on the simplex are log(s), to rounding, unless s has lost an entry. Of many draws
they are kept only then.

All this is for finite numbers. Where there are others, and wherever the graph itself is wanted (by
torch.func, compilers and tracers), it is that of `pyro_gumbel.links`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel.links import Link, Simplex, largest
from pyro_gumbel.noise import MANY, exponential, exponential_, logistic, logistic_
from pyro_gumbel.parameters import in_eager_mode

__all__ = ["apply_to", "draw", "draw_hard", "log_density"]

BLOCK = 2**19  # elements: a few tensors of as many stay in the cache
SHORT = 32  # to sum over fewer neighbours is dear

EXACT = -50  # of a v above this, less log(k), log(s) is as good, and 1 / s far from infinity

Maybe = Tensor | None
Gradient = Tensor | None


def apply_to(*tensors: Tensor) -> bool:
    """Whether the formulas may stand for the graph of operations on these tensors."""
    plain = all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors)
    return plain and in_eager_mode()


def draw(
    x: Tensor,
    tau: Tensor,
    link: Link,
    sample_shape: torch.Size,
    batch_shape: torch.Size,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """s, v and log p(s) of a draw.

    No v where it is log(s) to rounding, unless it is to be kept; no log p(s) where a logit is
    infinite.
    """
    s, v, density = _Draw.apply(x, tau, link, sample_shape, batch_shape, keep)
    return s, v, density if _is_finite(density) else None


def draw_hard(
    x: Tensor, tau: Tensor, link: Link, sample_shape: torch.Size, batch_shape: torch.Size
) -> Tensor:
    """The vertex D that perturbed logits choose, with the gradient of the s that they make."""
    vertex: Tensor = _HardDraw.apply(x, tau, link, sample_shape, batch_shape)[0]
    return vertex


def log_density(
    v: Tensor, x: Tensor, tau: Tensor, link: Link, batch_shape: torch.Size, *, of_values: bool
) -> Tensor | None:
    """log p(s) or log p(v); None where a logit or a coordinate is infinite."""
    shape = v.shape[: v.dim() - link.event_dim]
    if shape[len(shape) - len(batch_shape) :] != batch_shape:  # a value for many rows
        v = v.expand(torch.broadcast_shapes(shape, batch_shape) + v.shape[len(shape) :])
    density = _Density.apply(v, x.to(v.dtype), tau.to(v.dtype), link, batch_shape, of_values)
    return density if _is_finite(density) else None


def _is_finite(density: Tensor) -> bool:
    return math.isfinite(density.detach().sum().item())


class _OnInterval:
    """The formulas for bits, element by element."""

    event_dim = 0

    def __init__(self, link: Link, k: int) -> None:
        self.degrees, self.log_factorial = 1, 0.0

    def draw(
        self, noise: Tensor, x: Tensor, tau: Tensor, s: Maybe, v: Maybe, *, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """s, v, and log p(s) but for its constant; the first two into s and v if given."""
        v = self.perturbed(noise, x, v).div_(tau)
        return torch.sigmoid(v, out=s), v, _log_slope(noise).sub_(_log_slope(v))

    def perturbed(self, noise: Tensor, x: Tensor, z: Maybe = None) -> Tensor:
        """z, into z if given."""
        return torch.add(noise, x, out=z)

    def linked_(self, z: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """s and v of perturbed logits, in whose place v comes."""
        return torch.sigmoid(z.div_(tau)), z

    def pull_draw(self, a: Gradient, b: Gradient, c: Gradient, s: Tensor, v: Tensor) -> Tensor:
        """r."""
        of_s = None if a is None else a * (v.sigmoid() * (-v).sigmoid())
        of_density = None if c is None else c * torch.tanh(v / 2)
        return _sum(of_s, b, of_density)

    def density(self, v: Tensor, x: Tensor, tau: Tensor, of_values: bool) -> Tensor:
        """log p but for its constant."""
        density = _log_slope(x - tau * v)
        return density.sub_(_log_slope(v)) if of_values else density

    def pull_density(
        self, c: Tensor, v: Tensor, x: Tensor, tau: Tensor, of_values: bool
    ) -> tuple[Tensor, Tensor]:
        """r and dv."""
        r = -c * torch.tanh((x - tau * v) / 2)
        return r, c * torch.tanh(v / 2) - tau * r if of_values else -tau * r

    def total(self, terms: Tensor) -> Tensor:
        """The sum over an event."""
        return terms


class _InRows:
    """The formulas for values that have a constant sum over the last dimension."""

    event_dim = 1

    def __init__(self, link: Any, k: int) -> None:
        self.link, self.on_simplex = link, isinstance(link, Simplex)
        self.k, self.degrees, self.log_factorial = k, k - 1, math.lgamma(k)

    def draw(
        self, e: Tensor, x: Tensor, tau: Tensor, s: Maybe, v: Maybe, *, keep: bool
    ) -> tuple[Tensor, Maybe, Tensor]:
        """s, v, and log p(s) but for its constant; the first two into s and v if given.

        On the simplex no v, unless it is to be kept or is more than log(s) in floats.
        """
        log_total = e.sum(-1).log_()
        log_e = e.log_()
        density = log_e.sum(-1).sub_(log_total, alpha=self.k)
        z = self._scaled_(torch.sub(x, log_e, out=log_e), tau)
        if not self.on_simplex:
            normal = self.link.normalise(z)
            v = normal if v is None else v.copy_(normal)
            return torch.sigmoid(v, out=s), v, density.add_(self._of_slopes(v, of_values=True))
        s, c = _softmax(z, s)
        density.sub_(z.sum(-1)).add_(c.squeeze(-1), alpha=self.k)
        if keep or z.amin().item() < EXACT:
            return s, torch.sub(z, c, out=v), density
        return s, None, density

    def perturbed(self, e: Tensor, x: Tensor, z: Maybe = None) -> Tensor:
        """z, into z if given."""
        return torch.sub(x, e.log_(), out=z)

    def linked_(self, z: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """s and v of perturbed logits, in whose place v may come."""
        z = self._scaled_(z, tau)
        if self.on_simplex:
            s, _ = _softmax(z, None)
            return s, torch.log(s, out=z)
        v = self.link.normalise(z)
        return v.sigmoid(), v

    def _scaled_(self, z: Tensor, tau: Tensor) -> Tensor:
        """z / tau, up to a common term of a row: that of the last of the winners is 0."""
        return z.sub_(largest(z, self.link.size)).div_(tau)

    def pull_draw(self, a: Gradient, b: Gradient, c: Gradient, s: Tensor, v: Tensor) -> Tensor:
        """r."""
        w = s if self.on_simplex else v.sigmoid() * (-v).sigmoid()
        omega = s if self.on_simplex else self.link.weights(v)
        u = _sum(None if a is None else a * w, b)
        if c is not None:
            u = _sum(u, self._of_c(c, v, omega, of_values=True)).expand_as(s)
        return u - omega * u.sum(-1, keepdim=True)

    def density(self, v: Tensor, x: Tensor, tau: Tensor, of_values: bool) -> Tensor:
        """log p but for its constant."""
        d = self._below_largest(v, x, tau)
        density = d.sum(-1).sub_(d.exp_().sum(-1).log_(), alpha=self.k)
        return density.add_(self._of_slopes(v, of_values))

    def pull_density(
        self, c: Tensor, v: Tensor, x: Tensor, tau: Tensor, of_values: bool
    ) -> tuple[Tensor, Tensor]:
        """r and dv."""
        if torch.is_grad_enabled():
            p = (x - tau * v).softmax(-1)
        else:
            p = self._below_largest(v, x, tau).exp_()
            p.div_(p.sum(-1, keepdim=True))
        r = c.unsqueeze(-1) * (1 - self.k * p)
        omega = None if self.on_simplex else self.link.weights(v)
        return r, self._of_c(c, v, omega, of_values) - tau * r

    def _below_largest(self, v: Tensor, x: Tensor, tau: Tensor) -> Tensor:
        """d less the largest of its row."""
        d = torch.mul(v, tau, out=_across(v.shape, v))
        torch.sub(x, d, out=d)
        return d.sub_(d.amax(-1, keepdim=True))

    def _of_slopes(self, v: Tensor, of_values: bool) -> Tensor:
        """logsumexp(log w) - sum(log w), or the first term only."""
        log_w = self.link.log_slopes(v)
        total = v.new_zeros(()) if self.on_simplex else log_w.logsumexp(-1)
        return total - log_w.sum(-1) if of_values else total

    def _of_c(self, c: Tensor, v: Tensor, omega: Any, of_values: bool) -> Tensor:
        """The gradient of that."""
        c = c.unsqueeze(-1)
        if self.on_simplex:
            return -c if of_values else torch.zeros_like(c)
        return c * (float(of_values) - omega) * torch.tanh(v / 2)

    def total(self, terms: Tensor) -> Tensor:
        """The sum over an event."""
        return terms.sum(-1)


def _softmax(z: Tensor, s: Maybe) -> tuple[Tensor, Tensor]:
    """softmax(z), into s if given, and logsumexp(z), of z whose largest is 0."""
    exp_z = z.exp()
    total = exp_z.sum(-1, keepdim=True)
    return torch.div(exp_z, total, out=s), total.log_()


def _formulas(link: Link, x: Tensor) -> Any:
    return _InRows(link, x.shape[-1]) if link.event_dim else _OnInterval(link, 1)


class _Draw(torch.autograd.Function):
    """(x, tau) -> s, v or None, log p(s)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tau: Tensor,
        link: Link,
        sample: torch.Size,
        batch: torch.Size,
        keep: bool,
    ) -> tuple[Tensor, Maybe, Tensor]:
        ctx.formulas = formulas = _formulas(link, x)
        ctx.batch = batch
        noise = _Noise(link, x)
        shape = sample + batch + x.shape[x.dim() - link.event_dim :]
        if math.prod(shape) < MANY:
            s, v, density = formulas.draw(noise.of(shape), x, tau, None, None, keep=True)
            _add_constant(density, tau, formulas)
        else:
            s, density = x.new_empty(shape), x.new_empty(sample + batch)
            v = x.new_empty(shape) if keep or not isinstance(link, Simplex) else None
            blocks = _Blocks(s, batch, link.event_dim)
            for samples, rows, (x_, tau_, s_, v_, density_) in blocks.each(x, tau, s, v, density):
                variates = noise.of(s_.shape)
                drawn = formulas.draw(variates, x_, tau_, s_, v_, keep=v is not None)
                if v_ is None and drawn[1] is not None:
                    v = s.log() if v is None else v
                    blocks.fold(v)[samples, rows] = drawn[1]
                density_.copy_(drawn[2])
                _add_constant(density_, tau_, formulas)
        ctx.save_for_backward(x, tau, s, v)
        ctx.set_materialize_grads(False)
        return s, v, density

    @staticmethod
    def backward(ctx: Any, a: Any, b: Any, c: Any) -> tuple[Gradient, ...]:
        x, tau, s, v = ctx.saved_tensors
        formulas = ctx.formulas
        blocks = _Blocks(s, ctx.batch, formulas.event_dim)

        def pull(x: Any, tau: Any, a: Any, b: Any, c: Any, s: Any, v: Any) -> tuple[Gradient, ...]:
            dx = formulas.pull_draw(a, b, c, s, v) / tau
            if not ctx.needs_input_grad[1]:
                return None, dx, None
            return None, dx, _of_tau(formulas, c, tau, dx, s.log() if v is None else v)

        if a is None and b is None and c is None:
            return (None,) * 6
        _, dx, dtau = _pulled(pull, blocks, x, tau, a, b, c, s, v)
        return dx, dtau, None, None, None, None


class _HardDraw(torch.autograd.Function):
    """(x, tau) -> D, z; D has the gradient of s."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tau: Tensor, link: Link, sample: torch.Size, batch: torch.Size
    ) -> tuple[Tensor, Tensor]:
        ctx.formulas, ctx.link, ctx.batch = _formulas(link, x), link, batch
        noise = _Noise(link, x)
        shape = sample + batch + x.shape[x.dim() - link.event_dim :]
        if math.prod(shape) < MANY:
            z = ctx.formulas.perturbed(noise.of(shape), x)
            vertex = link.vertex(z)
        else:
            z, vertex = x.new_empty(shape), x.new_empty(shape)
            for *_, tensors in _Blocks(z, batch, link.event_dim).each(x, tau, z, vertex):
                x_, _, z_, vertex_ = tensors
                ctx.formulas.perturbed(noise.of(z_.shape), x_, z_)
                vertex_.copy_(link.vertex(z_))
        ctx.save_for_backward(x, tau, z)
        ctx.set_materialize_grads(False)
        return vertex, z

    @staticmethod
    def backward(ctx: Any, a: Any, of_z: Any) -> tuple[Gradient, ...]:
        x, tau, z = ctx.saved_tensors
        formulas, link = ctx.formulas, ctx.link

        def pull(x: Any, tau: Any, a: Any, of_z: Any, z: Any) -> tuple[Gradient, ...]:
            if a is None:
                return None, of_z, None
            if torch.is_grad_enabled():
                v = link.coordinates(z, tau)
                s = link.value(v)
            else:
                s, v = formulas.linked_(_across(z.shape, z).copy_(z), tau)
            dx = formulas.pull_draw(a, None, None, s, v) / tau
            dtau = _of_tau(formulas, None, tau, dx, v) if ctx.needs_input_grad[1] else None
            return None, _sum(dx, of_z), dtau

        blocks = _Blocks(z, ctx.batch, formulas.event_dim)
        _, dx, dtau = _pulled(pull, blocks, x, tau, a, of_z, z)
        return dx, dtau, None, None, None


class _Density(torch.autograd.Function):
    """(v, x, tau) -> log p(s) or log p(v)."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, x: Tensor, tau: Tensor, link: Link, batch: torch.Size, of_values: bool
    ) -> Tensor:
        ctx.formulas = formulas = _formulas(link, x)
        ctx.batch, ctx.of_values = batch, of_values
        ctx.save_for_backward(v, x, tau)
        if v.numel() < MANY:
            return _add_constant(formulas.density(v, x, tau, of_values), tau, formulas)
        density = x.new_empty(v.shape[: v.dim() - link.event_dim])
        for *_, tensors in _Blocks(v, batch, link.event_dim).each(x, tau, v, density):
            x_, tau_, v_, density_ = tensors
            density_.copy_(formulas.density(v_, x_, tau_, of_values))
            _add_constant(density_, tau_, formulas)
        return density

    @staticmethod
    def backward(ctx: Any, c: Any) -> tuple[Gradient, ...]:
        v, x, tau = ctx.saved_tensors
        formulas = ctx.formulas
        blocks = _Blocks(v, ctx.batch, formulas.event_dim)
        of_v, of_x, of_tau, *_ = ctx.needs_input_grad

        def pull(x: Any, tau: Any, c: Any, v: Any) -> tuple[Gradient, ...]:
            r, dv = formulas.pull_density(c, v, x, tau, ctx.of_values)
            dtau = _of_tau(formulas, c, tau, r, v) if of_tau else None
            return dv if of_v else None, r if of_x else None, dtau

        return *_pulled(pull, blocks, x, tau, c, v), None, None, None


def _add_constant(density: Tensor, tau: Tensor, formulas: Any) -> Tensor:
    """Add log (k-1)! + (k-1) log tau to the densities of a draw."""
    if tau.numel() == 1:
        return density.add_(formulas.degrees * tau.log().item() + formulas.log_factorial)
    log_tau = _without_events(tau, formulas).log()
    return density.add_(log_tau, alpha=formulas.degrees).add_(formulas.log_factorial)


def _without_events(tau: Tensor, formulas: Any) -> Tensor:
    return tau.squeeze(-1) if tau.dim() and formulas.event_dim else tau


def _of_tau(formulas: Any, c: Gradient, tau: Tensor, dx: Tensor, v: Tensor) -> Tensor:
    """c (k-1) / tau - sum(dx v), for each draw."""
    minus = -formulas.total(dx * torch.nan_to_num(v, nan=math.nan))
    return minus if c is None else minus + c * formulas.degrees / _without_events(tau, formulas)


def _pulled(
    pull: Callable[..., tuple[Gradient, ...]],
    blocks: "_Blocks",
    x: Tensor,
    tau: Tensor,
    *others: Gradient,
) -> tuple[Gradient, ...]:
    """dv, dx and dtau over all blocks, from what `pull` finds for the draws of one."""
    if blocks.are_few or torch.is_grad_enabled():  # with a graph of its own: no change in place
        dv, dx, dtau = pull(x, tau, *others)
    else:
        dv, dx, dtau = blocks.gather(pull, x, tau, *others)
    if dx is not None and dx.shape != x.shape:
        dx = dx.sum_to_size(x.shape)
    if dtau is not None:
        dtau = dtau.reshape(dtau.shape + blocks.ones).sum_to_size(tau.shape)
    return dv, dx, dtau


class _Blocks:
    """The tensors of a draw as (samples, rows of the batch, *event), some rows after the other.

    :param v: of the sample, batch and event shape.
    """

    def __init__(self, v: Tensor, batch: torch.Size, event_dim: int) -> None:
        self.cut = v.dim() - event_dim
        self.shape, self.batch, self.event = v.shape, batch, v.shape[self.cut :]
        self.ones = (1,) * event_dim
        self.are_few = v.numel() < MANY

    @property
    def counts(self) -> tuple[int, int]:
        """How many samples and how many rows."""
        return math.prod(self.shape[: self.cut - len(self.batch)]), math.prod(self.batch)

    def fold(self, tensor: Tensor) -> Tensor:
        """A tensor over samples, batch and maybe events, as (samples, rows, *event)."""
        return tensor.reshape((*self.counts, *tensor.shape[self.cut :]))

    def each(
        self, x: Tensor, tau: Tensor, *draws: Gradient
    ) -> Iterator[tuple[slice, slice, list[Any]]]:
        """Which samples and which rows; and their x, tau, and parts of `draws`.

        Of some rows all samples come, then those of the next.
        """
        samples, rows = self.counts
        x = x.expand(self.batch + self.event).reshape((rows, *self.event))
        if tau.dim():
            tau = tau.expand(self.batch + self.ones).reshape((rows, *self.ones))
        folded = [None if t is None else self.fold(t) for t in draws]
        many = max(1, BLOCK // math.prod(self.event))
        for row in range(0, rows, many):
            for sample in range(0, samples, max(1, many // rows)):
                at = slice(sample, sample + max(1, many // rows)), slice(row, row + many)
                some = [None if t is None else t[at] for t in folded]
                yield *at, [x[at[1]], tau[at[1]] if tau.dim() else tau, *some]

    def gather(
        self, pull: Callable[..., Any], x: Tensor, tau: Tensor, *others: Gradient
    ) -> list[Any]:
        """The gradients of all blocks: in v as it is, in x and tau summed over samples."""
        whole: list[Any] = [None, None, None]
        for samples, rows, tensors in self.each(x, tau, *others):
            for i, part in enumerate(pull(*tensors)):
                if part is None:
                    continue
                shape = self.shape if i == 0 else self.batch + part.shape[2:]
                if whole[i] is None:
                    whole[i] = part.new_empty(shape)
                folded = whole[i].view((-1, self.counts[1], *part.shape[2:]))
                if i == 0:
                    folded[samples, rows] = part
                elif samples.start:
                    folded[0, rows] += part.sum(0)
                else:
                    folded[0, rows] = part.sum(0) if len(part) > 1 else part[0]
        return whole


class _Noise:
    """The variates of one block after the other, of many in memory of their own."""

    def __init__(self, link: Link, x: Tensor) -> None:
        self.in_rows = bool(link.event_dim)
        self.like = x
        self.kept: Any = None

    def of(self, shape: torch.Size) -> Tensor:
        """Noise of that shape."""
        if self.like.dtype != torch.float32 or math.prod(shape) < MANY:
            draw = exponential if self.in_rows else logistic
            return draw(shape, dtype=self.like.dtype, device=self.like.device)
        if self.kept is None or self.kept.shape != shape:
            self.kept = _across(shape, self.like) if self.in_rows else self.like.new_empty(shape)
        return (exponential_ if self.in_rows else logistic_)(self.kept)


def _across(shape: torch.Size, like: Tensor) -> Tensor:
    """Memory for rows; many short ones lie across it, which makes sums over them cheap."""
    if math.prod(shape) < MANY or shape[-1] >= SHORT:
        return like.new_empty(shape)
    return like.new_empty((shape[-1], *shape[:-1])).movedim(0, -1)


def _log_slope(v: Tensor) -> Tensor:
    """log sigmoid(v) + log sigmoid(-v) = -|v| - 2 log(1 + exp(-|v|))."""
    size = v.abs()
    return size.neg().exp_().log1p_().mul_(-2).sub_(size)


def _sum(*terms: Gradient) -> Any:
    """The sum of those that are there; None if none is."""
    there = [term for term in terms if term is not None]
    return sum(there[1:], there[0]) if there else None
