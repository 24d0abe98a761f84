# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The formulas on a CPU: small draws at once, large ones in blocks that stay in the cache.

Of a large draw no tensor of its size is made but the results. Derivatives of the gradients have a
graph, and no blocks. So have small hard draws, where torch's operations are faster. The arguments
are those of `pyro_gumbel.kernels.dispatch`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor

from pyro_gumbel._tracing import is_batched
from pyro_gumbel.kernels import reference
from pyro_gumbel.kernels.compiling import is_on, program
from pyro_gumbel.kernels.formulas import FORMULAS, Formulas, Gradients
from pyro_gumbel.kernels.reference import Draw
from pyro_gumbel.kernels.workspace import Blocks, scratch
from pyro_gumbel.links import Link
from pyro_gumbel.ops.autograd import zero_with_gradient
from pyro_gumbel.ops.noise import MANY, exponential, exponential_, logistic, logistic_

_alive = torch._C._functorch.unwrap_if_dead  # of a tensor that has left a transform

__all__ = ["MANY", "draw", "log_density", "straight_through_draw"]

# Where v is above the first, up to log(k), log(s) is as exact as v, and 1 / s is far from infinity.
# Where it is also below the second, so is logit(s).
EXACT_ABOVE = -50.0
EXACT_BELOW = 2.0


def draw(
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    noise: Callable[..., Tensor],
    sample_shape: Size,
    batch_shape: Size,
    *,
    keep: bool,
    log_prob: bool,
    near: bool = False,
) -> Draw:
    """A relaxed draw, with log p(s) if all of it is finite.

    For bits without a gradient there is no log p(s): from v it is as cheap.
    """
    attached = torch.is_grad_enabled() and (logits.requires_grad or temperature.requires_grad)
    log_prob = log_prob and (attached or link.event_dim > 0)
    logits, temperature = _alive(logits), _alive(temperature)
    how = link, sample_shape, batch_shape, keep, log_prob, near
    s, v, log_p = _apply_draw(logits, temperature, how)
    if not keep and not attached and v is not None and _follows_from_value(v, link):
        v = None
    return Draw(s, v, log_p)


def _follows_from_value(v: Tensor, link: Link) -> bool:
    """Whether `link.inverse_inside` finds all of v from the value, to rounding."""
    if not v.numel():
        return True
    least, most = v.aminmax()
    of_value = FORMULAS[type(link)].value_gives_unconstrained
    return least.item() > EXACT_ABOVE and (of_value or most.item() < EXACT_BELOW)


def straight_through_draw(
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    noise: Callable[..., Tensor],
    sample_shape: Size,
    batch_shape: Size,
    near: bool = False,
) -> Tensor:
    """A hard draw with the gradient of the relaxed value."""
    x, tau = _alive(logits), _alive(temperature)
    event_dim, shape = link.event_dim, sample_shape + batch_shape
    if event_dim:
        shape += x.shape[-1:]
    formulas = FORMULAS[type(link)](link, x.shape[-1] - 1 if event_dim else 1)
    numbers = math.prod(shape)
    if numbers < MANY and formulas.is_fast_with_graph(numbers) and not tau.requires_grad:
        near = near or formulas.are_near(x)
        if near:
            return formulas.hard_with_graph(formulas.perturbed_at_once(x, shape), tau)
    hard: Tensor = _apply_straight_through_draw(x, tau, formulas, shape, batch_shape, near)
    return hard


def log_density(
    value: Tensor,
    unconstrained: Tensor,
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    batch_shape: Size,
    *,
    of_values: bool,
) -> Tensor:
    """log p(s) or log p(v), by the reference if some of it is not finite."""
    v = unconstrained
    shape = v.shape[: v.dim() - link.event_dim]
    joint = torch.broadcast_shapes(shape, batch_shape)
    if shape != joint:  # one value for several rows
        v = v.expand(joint + v.shape[len(shape) :])
    batch = joint[len(joint) - len(batch_shape) :]  # larger if a batch of 1 meets several values
    log_p: Tensor = _LogDensity.apply(
        v, logits.to(v.dtype), temperature.to(v.dtype), link, batch, of_values
    )
    if math.isfinite(log_p.detach().sum().item()):
        return log_p
    return reference.log_density(
        value, unconstrained, logits, temperature, link, batch_shape, of_values=of_values
    )


class _Draw(torch.autograd.Function):
    """From x and tau to s, v or None, and log p(s) or None; None if some of it is not finite."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tau: Tensor, how: tuple[Link, Size, Size, bool, bool, bool]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        link, sample, batch, keep, log_prob, near = how
        event_dim = link.event_dim
        shape = sample + batch + x.shape[x.dim() - event_dim :]
        formulas = FORMULAS[type(link)](link, x.shape[-1] - 1 if event_dim else 1)
        v: Tensor | None
        if math.prod(shape) < MANY:
            draw_noise = exponential if event_dim else logistic
            noise = draw_noise(shape, dtype=x.dtype, device=x.device)
            centred = x if near else formulas.centred(x)
            s, v, log_p = formulas.draw_at_once(noise, centred, tau, log_prob)
            if log_p is not None:
                formulas.add_constant(log_p, tau)
        else:
            s, v, log_p = _draw_in_blocks(formulas, x, tau, shape, batch, keep, log_prob)
        is_known = near and formulas.value_gives_unconstrained and _is_above_0(tau)
        if log_p is not None and not is_known and not math.isfinite(log_p.sum().item()):
            log_p = None
        ctx.formulas, ctx.batch = formulas, batch
        # The gradient in tau alone needs v, where the value gives it.
        by_value = formulas.value_gives_unconstrained and not ctx.needs_input_grad[1]
        ctx.save_for_backward(x, tau, s, None if by_value else v)
        ctx.set_materialize_grads(False)
        return s, v, log_p

    @staticmethod
    def backward(
        ctx: Any, grad_value: Any, grad_v: Any, grad_log_prob: Any
    ) -> tuple[Tensor | None, ...]:
        if grad_value is None and grad_v is None and grad_log_prob is None:
            return None, None, None
        x, tau, s, v = ctx.saved_tensors
        wanted = False, True, ctx.needs_input_grad[1]
        draws = grad_value, grad_v, grad_log_prob, v, s
        _, dx, dtau = _gradients(ctx.formulas.pull_draw, s.shape, ctx.batch, x, tau, draws, wanted)
        return dx, dtau, None


def _is_above_0(tau: Tensor) -> bool:
    """Whether a temperature is so far from 0 that no quotient of numbers near 0 overflows."""
    return tau.dim() == 0 and tau.item() > 1e-6


def _draw_in_blocks(
    formulas: Formulas, x: Tensor, tau: Tensor, shape: Size, batch: Size, keep: bool, log_prob: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """s, v and log p(s). v is None if it need not be kept, and the value gives it."""
    s = x.new_empty(shape)
    log_p = x.new_empty(shape[: len(shape) - formulas.event_dim]) if log_prob else None
    v = None if formulas.value_gives_unconstrained and not keep else x.new_empty(shape)
    draw_block = program(type(formulas).draw, _kind(formulas, x))
    blocks = Blocks(shape, batch, formulas.event_dim)
    by_row = [blocks.over_rows(formulas.centred(x)), blocks.over_rows(tau)]
    for at, (x_, tau_), (s_, log_p_) in blocks.each(by_row, [s, log_p]):
        noise = _noise(s_.shape, formulas, x)
        spare = None if noise.is_contiguous() else scratch("spare", noise.shape, x)
        _, z, n, found = draw_block(formulas, noise, x_, tau_, log_prob, s_, spare)
        if v is None and z.amin().item() < EXACT_ABOVE:
            v = s.log()  # of the blocks so far
        if v is not None:
            v_ = blocks.over_draws(v)[at]
            if n is None:
                v_.copy_(z)
            else:
                torch.sub(z, n, out=v_)
        if log_p_ is not None:
            formulas.add_constant(log_p_.copy_(found), tau_)
    return s, v, log_p


class _StraightThroughDraw(torch.autograd.Function):
    """From x and tau to the hard value, which has the gradient of the relaxed one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tau: Tensor, formulas: Formulas, shape: Size, batch: Size, near: bool
    ) -> Tensor:
        top = None
        if math.prod(shape) < MANY:
            z = formulas.perturbed_at_once(x if near else formulas.centred(x), shape)
            hard, top = formulas.hard(z)
        else:
            z, hard = x.new_empty(shape), x.new_empty(shape)
            blocks = Blocks(shape, batch, formulas.event_dim)
            by_row = [blocks.over_rows(formulas.centred(x))]
            for _, (x_,), (z_, hard_) in blocks.each(by_row, [z, hard]):
                formulas.perturbed(_noise(z_.shape, formulas, x), x_, z_)
                hard_.copy_(formulas.link.hard(z_))
        ctx.formulas, ctx.batch = formulas, batch
        ctx.save_for_backward(x, tau, top, z)
        return hard

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, tau, top, z = ctx.saved_tensors
        if torch.is_grad_enabled():  # z = x + noise, with the gradient that it passes to x
            z = z + zero_with_gradient(torch.where(x.isinf(), 0.0, x))
        wanted = False, True, ctx.needs_input_grad[1]
        pull = ctx.formulas.pull_straight_through
        _, dx, dtau = _gradients(pull, z.shape, ctx.batch, x, tau, (grad, top, z), wanted)
        return dx, dtau, None, None, None, None


# Without what `Function.apply` does besides. It looks for transforms of torch.func, which
# `dispatch` has ruled out, and unwraps tensors that have left one.
_apply_draw = super(torch.autograd.Function, _Draw).apply
_apply_straight_through_draw = super(torch.autograd.Function, _StraightThroughDraw).apply


class _LogDensity(torch.autograd.Function):
    """From v, x and tau to log p(s) or log p(v)."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, x: Tensor, tau: Tensor, link: Link, batch: Size, of_values: bool
    ) -> Tensor:
        event_dim = link.event_dim
        formulas = FORMULAS[type(link)](link, x.shape[-1] - 1 if event_dim else 1)
        ctx.formulas, ctx.batch, ctx.of_values = formulas, batch, of_values
        ctx.save_for_backward(v, x, tau)
        x = formulas.centred(x)
        if v.numel() < MANY:
            return formulas.add_constant(formulas.log_density(v, x, tau, of_values, None), tau)
        log_p = x.new_empty(v.shape[: v.dim() - event_dim])
        density_of_block = program(type(formulas).log_density, _kind(formulas, x))
        blocks = Blocks(v.shape, batch, event_dim)
        by_row = [blocks.over_rows(x), blocks.over_rows(tau)]
        for _, (x_, tau_), (v_, log_p_) in blocks.each(by_row, [v, log_p]):
            spare = None if is_on() else scratch("draw", v_.shape, v_)
            log_p_.copy_(density_of_block(formulas, v_, x_, tau_, of_values, spare))
            formulas.add_constant(log_p_, tau_)
        return log_p

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Tensor | None, ...]:
        v, x, tau = ctx.saved_tensors
        x = ctx.formulas.centred(x)
        options = ctx.of_values, ctx.needs_input_grad[:3]
        pull = ctx.formulas.pull_log_density
        grads = _gradients(pull, v.shape, ctx.batch, x, tau, (grad, v), *options)
        return *grads, None, None, None


def _gradients(
    pull: Callable[..., Gradients],
    shape: Size,
    batch: Size,
    x: Tensor,
    tau: Tensor,
    draws: tuple[Tensor | None, ...],
    *options: Any,
) -> Gradients:
    """The gradients in v, x and tau, from a backward pass of the formulas.

    :param pull: a bound method of `Formulas`.
    :param options: its arguments after the tensors; the last says what is wanted.
    """
    # In blocks memory is written to, which a graph, and gradients under vmap, do not allow.
    few = math.prod(shape) < MANY or torch.is_grad_enabled() or any(map(is_batched, draws))
    if few:
        dv, dx, dtau = pull(x, tau, *draws, *options, None, None)
    else:
        dv, dx, dtau = _gradients_in_blocks(pull, shape, batch, x, tau, draws, *options)
    if dx is not None and dx.shape != x.shape:
        dx = dx.sum_to_size(x.shape)
    if dtau is not None:
        dtau = dtau.sum_to_size(tau.shape)
    return dv, dx, dtau


def _gradients_in_blocks(
    pull: Any,
    shape: Size,
    batch: Size,
    x: Tensor,
    tau: Tensor,
    draws: tuple[Tensor | None, ...],
    *options: Any,
) -> Gradients:
    """The gradients in v as it is, and in x and tau over the batch, summed over samples."""
    formulas, wanted = pull.__self__, options[-1]
    blocks = Blocks(shape, batch, formulas.event_dim)
    event = shape[blocks.cut :]
    dv = x.new_empty(shape) if wanted[0] else None
    dx = x.new_empty((blocks.rows, *event))
    dtau = x.new_empty((blocks.rows, *(1 for _ in event))) if wanted[2] else None
    pull = program(pull.__func__, _kind(formulas, x))
    by_row = [blocks.over_rows(x), blocks.over_rows(tau), dx, dtau]
    for (samples, _), parts, (dv_, *draws_) in blocks.each(by_row, [dv, *draws]):
        x_, tau_, dx_, dtau_ = parts
        size = draws_[-1].shape
        out = dx_.unsqueeze(0) if blocks.samples == 1 else scratch("dx", size, x)
        spare = None if is_on() else scratch("draw", size, x)
        found = pull(formulas, x_, tau_, *draws_, *options, out, spare)
        if dv_ is not None:
            dv_.copy_(found[0])
        if found[1] is not out or blocks.samples > 1:
            _accumulate(dx_, found[1], samples.start)
        _accumulate(dtau_, found[2], samples.start)
    over_batch = [None if t is None else t.view(batch + t.shape[1:]) for t in (dx, dtau)]
    return dv, over_batch[0] if wanted[1] else None, over_batch[1]


def _accumulate(total: Tensor | None, part: Tensor | None, start: int) -> None:
    """Add a block's gradient, summed over its samples, to the total of its rows.

    :param start: the first of its samples; before sample 0 there is no total.
    """
    if total is None or part is None:
        return
    if start:
        total += part.sum(0)
    elif len(part) > 1:
        torch.sum(part, 0, out=total)
    else:
        total.copy_(part[0])


def _noise(shape: Size, formulas: Formulas, like: Tensor) -> Tensor:
    """The noise of a block. Noise that is made of 32 bits is in scratch memory."""
    if like.dtype != torch.float32 or math.prod(shape) < MANY:
        noise = exponential if formulas.event_dim else logistic
        return noise(shape, dtype=like.dtype, device=like.device)
    noise_ = exponential_ if formulas.event_dim else logistic_
    return noise_(scratch("noise", shape, like))


def _kind(formulas: Formulas, x: Tensor) -> Any:
    """What a compiled program is for."""
    return type(formulas), x.dtype
