# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The hot path: a draw and a density, each with one forward and one analytic backward.

Symbols as in `pyro_gumbel.links`: logits x, temperature tau, coordinates v, value s, slope
w = ds/dv, omega = w / sum(w), and h = dlog w/dv. What is a graph of operations there is done at
once here, in blocks that stay in the cache; no large tensor is made but the results. (Derivatives
of the gradients have a graph, and no blocks.)

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
import threading
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel._tracing import in_eager_mode
from pyro_gumbel.kernels.compiling import is_on, program
from pyro_gumbel.links import Link, Simplex, interval, largest
from pyro_gumbel.ops.noise import MANY, exponential, exponential_, logistic, logistic_
from pyro_gumbel.ops.one_hot import is_plain

__all__ = ["apply_to", "draw", "draw_hard", "log_density"]

BLOCK = 2**19  # elements: a few tensors of as many stay in the cache
SHORT = 32  # to sum over fewer neighbours is dear

EXACT = -50  # of a v above this, less log(k), log(s) is as good, and 1 / s far from infinity
EXACT_BELOW = 2  # of a v below this, logit(s) is as good

Maybe = Tensor | None
Gradient = Tensor | None
Gradients = tuple[Gradient, Gradient, Gradient]  # dv, dx, dtau


def apply_to(*tensors: Tensor) -> bool:
    """Whether the formulas may stand for the graph of operations on these tensors."""
    return all(is_plain(t) and t.device.type == "cpu" for t in tensors) and in_eager_mode()


def draw(
    x: Tensor,
    tau: Tensor,
    link: Link,
    sample_shape: torch.Size,
    batch_shape: torch.Size,
    *,
    keep: bool,
    score: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """s, v and log p(s) of a draw.

    Unless it is to be kept, no v where `link.inverse_inside` finds it to rounding. log p(s) where
    it is to be scored and the logits are finite, but not that of bits without a gradient: from v
    it is as cheap.
    """
    attached = torch.is_grad_enabled() and (x.requires_grad or tau.requires_grad)
    score = score and (attached or link.event_dim > 0)
    s, v, density = _Draw.apply(x, tau, link, sample_shape, batch_shape, keep, score)
    if v is not None and not keep and not attached and _is_inside(v, link):
        v = None
    return s, v, density if density is not None and _is_finite(density) else None


def _is_inside(v: Tensor, link: Link) -> bool:
    """Whether the value has all of v, to rounding."""
    if not v.numel():
        return True
    least, most = v.aminmax()
    return least.item() > EXACT and (isinstance(link, Simplex) or most.item() < EXACT_BELOW)


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
    joint = torch.broadcast_shapes(shape, batch_shape)
    if shape != joint:  # a value for many rows
        v = v.expand(joint + v.shape[len(shape) :])
    batch = joint[len(joint) - len(batch_shape) :]  # larger where a value meets a batch of 1
    density = _Density.apply(v, x.to(v.dtype), tau.to(v.dtype), link, batch, of_values)
    return density if _is_finite(density) else None


def _is_finite(density: Tensor) -> bool:
    return math.isfinite(density.detach().sum().item())


class _OnInterval:
    """The formulas for bits, element by element."""

    event_dim = 0

    def __init__(self, link: Link, k: int) -> None:
        self.degrees, self.log_factorial = 1, 0.0

    def draw(
        self, noise: Tensor, x: Tensor, tau: Tensor, score: bool, s: Maybe, spare: Maybe
    ) -> tuple[Tensor, Tensor, Maybe, Maybe]:
        """s (in s if given), v (in the noise's memory), None, and log p(s) but for its constant."""
        density = _log_slope(noise) if score else None
        v = noise.add_(x).div_(tau)
        if density is not None:
            density.sub_(_log_slope(v))
        return torch.sigmoid(v, out=s), v, None, density

    def perturbed(self, noise: Tensor, x: Tensor, z: Maybe = None) -> Tensor:
        """z, into z if given."""
        return torch.add(noise, x, out=z)

    def linked(self, z: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """s and v of perturbed logits."""
        v = interval.unconstrained(z, tau) if torch.is_grad_enabled() else z / tau
        return v.sigmoid(), v

    def pull_draw(
        self, a: Gradient, b: Gradient, c: Gradient, s: Tensor, v: Tensor, out: Maybe = None
    ) -> Tensor:
        """r, in `out` if given."""
        of_s = None if a is None else torch.mul(a, v.sigmoid() * (-v).sigmoid(), out=out)
        of_density = None if c is None else c * torch.tanh(v / 2)
        return _sum(of_s, b, of_density, out=out)

    def density(self, v: Tensor, x: Tensor, tau: Tensor, of_values: bool) -> Tensor:
        """log p but for its constant."""
        density = _log_slope(x - tau * v)
        return density.sub_(_log_slope(v)) if of_values else density

    def pull_density(
        self, c: Tensor, v: Tensor, x: Tensor, tau: Tensor, of_values: bool, out: Maybe = None
    ) -> tuple[Tensor, Tensor]:
        """r, in `out` if given, and dv."""
        r = torch.mul(-c, torch.tanh((x - tau * v) / 2), out=out)
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
        self, e: Tensor, x: Tensor, tau: Tensor, score: bool, s: Maybe, spare: Maybe
    ) -> tuple[Tensor, Tensor, Maybe, Maybe]:
        """s (in s if given), z (in the noise's memory) and n with v = z - n, and log p(s) but
        for its constant. n is None for 0. `spare` is memory that lies as the noise does.
        """
        log_total = e.sum(-1).log_() if score else None
        log_e = e.log_()
        density = None if log_total is None else log_e.sum(-1).sub_(log_total, alpha=self.k)
        z = self._scaled_(log_e.neg_().add_(x), tau)
        if not self.on_simplex:
            v = self.link.normalise(z)
            if density is not None:
                density.add_(self._of_slopes(v, True))
            return torch.sigmoid(v, out=s), v, None, density
        s, n = _softmax(z, s, spare)
        if density is not None:
            density.sub_(z.sum(-1)).add_(n.squeeze(-1), alpha=self.k)
        return s, z, n, density

    def perturbed(self, e: Tensor, x: Tensor, z: Maybe = None) -> Tensor:
        """z, into z if given."""
        return torch.sub(x, e.log_(), out=z)

    def linked(self, z: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """s and v of perturbed logits."""
        if torch.is_grad_enabled():
            v = self.link.unconstrained(z, tau)
            return self.link.value(v), v
        z = self._scaled_(_scratch("z", z.shape, z).copy_(z), tau)
        if self.on_simplex:
            s, _ = _softmax(z)
            return s, torch.log(s, out=z)
        v = self.link.normalise(z)
        return v.sigmoid(), v

    def _scaled_(self, z: Tensor, tau: Tensor) -> Tensor:
        """z / tau, up to a common term of a row: that of the last of the winners is 0."""
        return z.sub_(largest(z, self.link.size)).div_(tau)

    def pull_draw(
        self, a: Gradient, b: Gradient, c: Gradient, s: Tensor, v: Tensor, out: Maybe = None
    ) -> Tensor:
        """r, in `out` if given."""
        w = s if self.on_simplex else v.sigmoid() * (-v).sigmoid()
        omega = s if self.on_simplex else self.link.weights(v)
        of_s = None if a is None else torch.mul(a, w, out=out)
        of_density = None if c is None else self._of_c(c, v, omega, of_values=True)
        u = _sum(of_s, b, of_density, out=out).expand_as(s)
        return torch.addcmul(u, omega, _sum_of_rows(u), value=-1, out=out)

    def density(self, v: Tensor, x: Tensor, tau: Tensor, of_values: bool) -> Tensor:
        """log p but for its constant."""
        d = self._below_largest(v, x, tau)
        density = d.sum(-1).sub_(d.exp_().sum(-1).log_(), alpha=self.k)
        return density.add_(self._of_slopes(v, of_values))

    def pull_density(
        self, c: Tensor, v: Tensor, x: Tensor, tau: Tensor, of_values: bool, out: Maybe = None
    ) -> tuple[Tensor, Tensor]:
        """r, in `out` if given, and dv."""
        if torch.is_grad_enabled():
            p = (x - tau * v).softmax(-1)
        else:
            p = self._below_largest(v, x, tau).exp_()
            p.div_(p.sum(-1, keepdim=True))
        r = torch.mul(c.unsqueeze(-1), 1 - self.k * p, out=out)
        omega = None if self.on_simplex else self.link.weights(v)
        return r, self._of_c(c, v, omega, of_values) - tau * r

    def _below_largest(self, v: Tensor, x: Tensor, tau: Tensor) -> Tensor:
        """d less the largest of its row."""
        d = torch.mul(v, tau, out=_scratch("d", v.shape, v))
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


def _softmax(z: Tensor, s: Maybe = None, spare: Maybe = None) -> tuple[Tensor, Tensor]:
    """softmax(z), in s if given, and logsumexp(z), of z whose largest is 0."""
    exp_z = torch.exp(z, out=s if spare is None else spare)
    total = exp_z.sum(-1, keepdim=True)
    return torch.div(exp_z, total, out=s), total.log_()


def _formulas(link: Link, x: Tensor) -> Any:
    formulas: Any = _InRows(link, x.shape[-1]) if link.event_dim else _OnInterval(link, 1)
    formulas.kind = type(link), x.dtype
    return formulas


class _Draw(torch.autograd.Function):
    """(x, tau) -> s, v or None, log p(s) or None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tau: Tensor,
        link: Link,
        sample: torch.Size,
        batch: torch.Size,
        keep: bool,
        score: bool,
    ) -> tuple[Tensor, Maybe, Maybe]:
        ctx.formulas = formulas = _formulas(link, x)
        ctx.batch = batch
        noise = _Noise(link, x)
        shape = sample + batch + x.shape[x.dim() - link.event_dim :]
        if math.prod(shape) < MANY:
            s, z, n, density = formulas.draw(noise.of(shape), x, tau, score, None, None)
            v = z if n is None else z.sub_(n)
            if density is not None:
                _add_constant(density, tau, formulas)
        else:
            s, density = x.new_empty(shape), x.new_empty(sample + batch) if score else None
            v = x.new_empty(shape) if keep or not isinstance(link, Simplex) else None
            draw_block = program(_draw, formulas.kind)
            blocks = _Blocks(s, batch, link.event_dim)
            for at, (x_, tau_, s_, density_) in blocks.each(x, tau, s, density):
                e = noise.of(s_.shape)
                _, z, n, found = draw_block(formulas, e, x_, tau_, score, s_, noise.beside(e))
                if v is None and z.amin().item() < EXACT:
                    v = s.log()
                if v is not None:
                    v_ = blocks.fold(v)[at]
                    torch.sub(z, n, out=v_) if n is not None else v_.copy_(z)
                if density_ is not None:
                    density_.copy_(found)
                    _add_constant(density_, tau_, formulas)
        ctx.save_for_backward(x, tau, s, v)
        ctx.set_materialize_grads(False)
        return s, v, density

    @staticmethod
    def backward(ctx: Any, a: Any, b: Any, c: Any) -> tuple[Gradient, ...]:
        if a is None and b is None and c is None:
            return (None,) * 7
        x, tau, s, v = ctx.saved_tensors
        blocks = _Blocks(s, ctx.batch, ctx.formulas.event_dim)
        options = ctx.formulas, ctx.needs_input_grad[1]
        _, dx, dtau = _pulled(_pull_draw, options, blocks, x, tau, a, b, c, s, v)
        return dx, dtau, None, None, None, None, None


class _HardDraw(torch.autograd.Function):
    """(x, tau) -> D, z; D has the gradient of s."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tau: Tensor, link: Link, sample: torch.Size, batch: torch.Size
    ) -> tuple[Tensor, Tensor]:
        ctx.formulas, ctx.batch = _formulas(link, x), batch
        noise = _Noise(link, x)
        shape = sample + batch + x.shape[x.dim() - link.event_dim :]
        if math.prod(shape) < MANY:
            z = ctx.formulas.perturbed(noise.of(shape), x)
            vertex = link.hard(z)
        else:
            z, vertex = x.new_empty(shape), x.new_empty(shape)
            blocks = _Blocks(z, batch, link.event_dim)
            for _, (x_, _, z_, vertex_) in blocks.each(x, tau, z, vertex):
                ctx.formulas.perturbed(noise.of(z_.shape), x_, z_)
                vertex_.copy_(link.hard(z_))
        ctx.save_for_backward(x, tau, z)
        ctx.set_materialize_grads(False)
        return vertex, z

    @staticmethod
    def backward(ctx: Any, a: Any, of_z: Any) -> tuple[Gradient, ...]:
        x, tau, z = ctx.saved_tensors
        blocks = _Blocks(z, ctx.batch, ctx.formulas.event_dim)
        options = ctx.formulas, ctx.needs_input_grad[1]
        _, dx, dtau = _pulled(_pull_hard, options, blocks, x, tau, a, of_z, z)
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
        density_of_block = program(_density, formulas.kind)
        blocks = _Blocks(v, batch, link.event_dim)
        for _, (x_, tau_, v_, density_) in blocks.each(x, tau, v, density):
            density_.copy_(density_of_block(formulas, v_, x_, tau_, of_values))
            _add_constant(density_, tau_, formulas)
        return density

    @staticmethod
    def backward(ctx: Any, c: Any) -> tuple[Gradient, ...]:
        v, x, tau = ctx.saved_tensors
        blocks = _Blocks(v, ctx.batch, ctx.formulas.event_dim)
        options = ctx.formulas, ctx.of_values, *ctx.needs_input_grad[:3]
        return *_pulled(_pull_density, options, blocks, x, tau, c, v), None, None, None


# What is done with one block, compiled or not; `out` is memory for dx.


def _draw(
    formulas: Any, noise: Tensor, x: Tensor, tau: Tensor, score: bool, s: Tensor, spare: Maybe
) -> tuple[Tensor, Tensor, Maybe, Maybe]:
    drawn: tuple[Tensor, Tensor, Maybe, Maybe] = formulas.draw(noise, x, tau, score, s, spare)
    return drawn


def _density(formulas: Any, v: Tensor, x: Tensor, tau: Tensor, of_values: bool) -> Tensor:
    density: Tensor = formulas.density(v, x, tau, of_values)
    return density


def _pull_draw(
    formulas: Any, of_tau: bool,
    x: Tensor, tau: Tensor, a: Gradient, b: Gradient, c: Gradient, s: Tensor, v: Maybe, out: Maybe,
) -> Gradients:  # fmt: skip
    dx = torch.div(formulas.pull_draw(a, b, c, s, v, out), tau, out=out)
    if not of_tau:
        return None, dx, None
    return None, dx, _of_tau(formulas, c, tau, dx, s.log() if v is None else v)


def _pull_hard(
    formulas: Any, of_tau: bool,
    x: Tensor, tau: Tensor, a: Gradient, of_z: Gradient, z: Tensor, out: Maybe,
) -> Gradients:  # fmt: skip
    if a is None:
        return None, of_z, None
    s, v = formulas.linked(z, tau)
    dx = torch.div(formulas.pull_draw(a, None, None, s, v, out), tau, out=out)
    dtau = _of_tau(formulas, None, tau, dx, v) if of_tau else None
    return None, _sum(dx, of_z, out=out), dtau


def _pull_density(
    formulas: Any, of_values: bool, of_v: bool, of_x: bool, of_tau: bool,
    x: Tensor, tau: Tensor, c: Tensor, v: Tensor, out: Maybe,
) -> Gradients:  # fmt: skip
    r, dv = formulas.pull_density(c, v, x, tau, of_values, out)
    dtau = _of_tau(formulas, c, tau, r, v) if of_tau else None
    return dv if of_v else None, r if of_x else None, dtau


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
    # Where v is infinite dx is 0 and stays so; and no derivative of dx is to meet a large number.
    finite = torch.nan_to_num(v, nan=math.nan, posinf=0.0, neginf=0.0)
    minus = -formulas.total(dx * finite)
    return minus if c is None else minus + c * formulas.degrees / _without_events(tau, formulas)


def _pulled(
    pull: Callable[..., Gradients],
    options: tuple[Any, ...],
    blocks: "_Blocks",
    x: Tensor,
    tau: Tensor,
    *others: Gradient,
) -> Gradients:
    """dv, dx and dtau over all blocks, from what `pull` finds for the draws of one."""
    # With a graph of its own, and of gradients that stand for many: no change in place.
    if blocks.are_few or torch.is_grad_enabled() or any(map(_stands_for_many, others)):
        dv, dx, dtau = pull(*options, x, tau, *others, None)
    else:
        pull = program(pull, options[0].kind)
        dv, dx, dtau = blocks.gather(partial(pull, *options), x, tau, *others)
    if dx is not None and dx.shape != x.shape:
        dx = dx.sum_to_size(x.shape)
    if dtau is not None:
        dtau = dtau.reshape(dtau.shape + blocks.ones).sum_to_size(tau.shape)
    return dv, dx, dtau


def _stands_for_many(gradient: Gradient) -> bool:
    """Whether this is a batch, as of `is_grads_batched` and `torch.vmap`, that looks like one."""
    if gradient is None:
        return False
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(gradient) or functorch.is_batchedtensor(gradient)


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
        return tensor.detach().reshape((*self.counts, *tensor.shape[self.cut :]))

    def each(
        self, x: Tensor, tau: Tensor, *draws: Gradient
    ) -> Iterator[tuple[tuple[slice, slice], list[Any]]]:
        """Which samples and rows; and their x, tau, and parts of `draws`.

        Of some rows all samples come, then those of the next.
        """
        samples, rows = self.counts
        x = x.detach().expand(self.batch + self.event).reshape((rows, *self.event))
        if tau.dim():
            tau = tau.detach().expand(self.batch + self.ones).reshape((rows, *self.ones))
        folded = [None if t is None else self.fold(t) for t in draws]
        many = max(1, BLOCK // math.prod(self.event))
        for row in range(0, rows, many):
            for sample in range(0, samples, max(1, many // rows)):
                at = slice(sample, sample + max(1, many // rows)), slice(row, row + many)
                some = [None if t is None else t[at] for t in folded]
                yield at, [x[at[1]], tau[at[1]] if tau.dim() else tau, *some]

    def gather(
        self, pull: Callable[..., Any], x: Tensor, tau: Tensor, *others: Gradient
    ) -> list[Any]:
        """The gradients of all blocks: in v as it is, in x and tau summed over samples."""
        n, m = self.counts
        dx = x.new_empty((1, m, *self.event))
        whole: list[Any] = [None, None, None]
        for (samples, rows), tensors in self.each(x, tau, *others):
            out = dx[:, rows]
            if n > 1:
                out = _scratch("dx", torch.Size((len(range(n)[samples]), *out.shape[1:])), x)
            for i, part in enumerate(pull(*tensors, out)):
                if part is None:
                    continue
                if whole[i] is None:
                    shape = n if i == 0 else 1, m, *part.shape[2:]
                    whole[i] = dx if i == 1 else part.new_empty(shape)
                if i == 0:
                    whole[i][samples, rows] = part
                elif samples.start:
                    whole[i][0, rows] += part.sum(0)
                elif n > 1:
                    torch.sum(part, 0, out=whole[i][0, rows])
                elif part is not out:
                    whole[i][:, rows] = part
        outer = self.shape[: self.cut], self.batch, self.batch
        return [
            None if t is None else t.view(shape + t.shape[2:])
            for t, shape in zip(whole, outer, strict=True)
        ]


class _Noise:
    """The variates of one block after the other."""

    def __init__(self, link: Link, x: Tensor) -> None:
        self.in_rows = bool(link.event_dim)
        self.like = x

    def of(self, shape: torch.Size) -> Tensor:
        """Noise of that shape."""
        if self.like.dtype != torch.float32 or math.prod(shape) < MANY:
            draw = exponential if self.in_rows else logistic
            return draw(shape, dtype=self.like.dtype, device=self.like.device)
        return (exponential_ if self.in_rows else logistic_)(_scratch("noise", shape, self.like))

    def beside(self, noise: Tensor) -> Tensor | None:
        """Memory that lies across as the noise does, if it does."""
        return None if noise.is_contiguous() else _scratch("beside", noise.shape, self.like)


class _Kept(threading.local):
    """A flat tensor by name and dtype, in each thread."""

    def __init__(self) -> None:
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}


_kept = _Kept()


def _scratch(name: str, shape: torch.Size, like: Tensor) -> Tensor:
    """Memory for what does not outlive a block; many short rows lie across it.

    By its name it is the same at every call in a thread, because the system hands out new pages
    slowly: at most 10 MiB of float32 in all. Sums over rows that lie across are cheap.
    """
    size = math.prod(shape)
    if not MANY <= size <= BLOCK or torch.compiler.is_compiling():
        return like.new_empty(shape)
    key = name, like.dtype
    if key not in _kept.flat or _kept.flat[key].numel() != BLOCK:
        with torch.inference_mode(False):  # for calls outside of that mode too
            _kept.flat[key] = like.new_empty(BLOCK)
    flat = _kept.flat[key][:size]
    if not 1 < shape[-1] < SHORT or is_on():
        return flat.view(shape)
    return flat.view((shape[-1], *shape[:-1])).movedim(0, -1)


def _log_slope(v: Tensor) -> Tensor:
    """log sigmoid(v) + log sigmoid(-v) = -|v| - 2 log(1 + exp(-|v|))."""
    size = v.abs()
    return size.neg().exp_().log1p_().mul_(-2).sub_(size)


def _sum(*terms: Gradient, out: Maybe = None) -> Any:
    """The sum of those that are there, of several in `out` if given; None if none is."""
    there = [term for term in terms if term is not None]
    return reduce(partial(torch.add, out=out), there) if there else None


def _sum_of_rows(u: Tensor) -> Tensor:
    """sum(u) of each row, kept as a dimension."""
    if u.numel() < MANY or u.shape[-1] >= SHORT or torch.compiler.is_compiling():
        return u.sum(-1, keepdim=True)
    with torch.autocast("cpu", enabled=False):
        return u @ u.new_ones((u.shape[-1], 1))  # four times as fast a sum
