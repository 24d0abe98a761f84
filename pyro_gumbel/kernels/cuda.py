# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The formulas on a GPU: one Triton kernel for a draw or a density, one for its backward pass.

Nothing waits for the GPU, and nothing is read back to the host. Noise is drawn in the kernels from
a seed that torch's generator of the device gives, so that `torch.manual_seed` and the replays of a
CUDA graph do with it what they do with any draw. Derivatives of the gradients, and gradients under
vmap, are those of the operations of the reference at the same noise. float64 is computed by the
reference. The arguments are those of `pyro_gumbel.kernels.dispatch`.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from pyro_gumbel._tracing import counts_changes, is_batched, is_own, version_of
from pyro_gumbel.estimators import (
    Estimator,
    gapped,
    gumbel_rao,
    mean_relaxed,
    reinmax,
    straight_through,
)
from pyro_gumbel.kernels import (
    reference,
    triton_bits,
    triton_estimators,
    triton_functions,
    triton_rao,
    triton_rows,
)
from pyro_gumbel.kernels.reference import Draw
from pyro_gumbel.kernels.triton_functions import FIRST, MODULO, OWN
from pyro_gumbel.links import Hypersimplex, Link, Simplex
from pyro_gumbel.ops.noise import perturbed_given_bit, perturbed_given_ranking
from pyro_gumbel.ops.second_order import with_bit_gradient, with_one_hot_gradient

__all__ = [
    "draw",
    "estimated_draw",
    "log_density",
    "second_order_draw",
    "straight_through_draw",
    "try_on",
]

TILE = triton_functions.TILE  # elements of a program
COMPUTED = torch.float16, torch.bfloat16, torch.float32


def try_on(device: torch.device) -> None:
    """Run a kernel on a device. It raises what Triton raises there."""
    seed, noise = torch.zeros(1, dtype=torch.int64, device=device), torch.empty(1, device=device)
    grid, launch = triton_functions.launch_of_bits(1, TILE)
    with torch.cuda.device_of(seed):
        triton_functions.noise_of_bits[grid](seed, noise, 1, **launch)


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
) -> Draw:
    """A relaxed draw, with log p(s).

    If v need not be kept, and torch counts the changes of the parameters, v is a function that
    draws the noise again.
    """
    if logits.dtype not in COMPUTED:
        given = logits, temperature, link, noise, sample_shape, batch_shape
        return reference.draw(*given, keep=keep, log_prob=log_prob)
    attached = torch.is_grad_enabled() and (logits.requires_grad or temperature.requires_grad)
    log_prob = log_prob and (attached or link.event_dim > 0)  # as on a CPU
    if not attached:  # v without a gradient, whenever it is asked for
        logits, temperature = logits.detach(), temperature.detach()
    is_safe = counts_changes(temperature) or is_own(temperature)
    if not (keep or is_safe or temperature.requires_grad) and temperature.numel() == 1:
        temperature, is_safe = temperature.clone(), True  # which nobody else can change
    keep = keep or not (is_safe and counts_changes(logits))
    over = sample_shape + batch_shape
    arguments = logits, temperature, _seed(logits), link, over, batch_shape
    s, v, log_p = _FusedDraw.apply(*arguments, True, keep, log_prob)
    return Draw(s, _Again(arguments) if v is None else v, log_p)


def straight_through_draw(
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    noise: Callable[..., Tensor],
    sample_shape: Size,
    batch_shape: Size,
) -> Tensor:
    """A hard draw with the gradient of the relaxed value."""
    arguments = logits, temperature, link, noise, sample_shape, batch_shape
    if logits.dtype not in COMPUTED:
        return reference.straight_through_draw(*arguments)
    over = sample_shape + batch_shape
    hard: Tensor = _FusedStraightThroughDraw.apply(
        logits, temperature, _seed(logits), link, over, batch_shape
    )
    return hard


def second_order_draw(
    logits: Tensor, link: Link, sample_shape: Size, batch_shape: Size
) -> Tensor | None:
    """A hard draw with the gradient of the second-order surrogate."""
    if logits.dtype not in COMPUTED:
        return None
    over = sample_shape + batch_shape
    hard: Tensor = _FusedSecondOrderDraw.apply(logits, _seed(logits), link, over, batch_shape)
    return hard


def estimated_draw(
    logits: Tensor,
    temperature: Tensor,
    link: Link,
    sample_shape: Size,
    batch_shape: Size,
    estimator: Estimator,
) -> Tensor | None:
    """A hard draw with the gradient of an estimator, of those that have a kernel."""
    known = estimator is straight_through or estimator is reinmax or type(estimator) is gapped
    if type(estimator) is gumbel_rao:  # of rows that are taken whole
        known = not link.event_dim or logits.shape[-1] <= triton_functions.LONGEST
    if logits.dtype not in COMPUTED or type(link) is Hypersimplex or not known:
        return None
    over = sample_shape + batch_shape
    hard: Tensor = _FusedEstimatedDraw.apply(
        logits, temperature, _seed(logits), link, over, batch_shape, estimator
    )
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
    """log p(s) or log p(v)."""
    v = unconstrained
    if logits.dtype not in COMPUTED or v.dtype not in COMPUTED:
        return reference.log_density(
            value, v, logits, temperature, link, batch_shape, of_values=of_values
        )
    shape = v.shape[: v.dim() - link.event_dim]
    joint = torch.broadcast_shapes(shape, batch_shape)
    event = v.shape[len(shape) :]
    v, value = v.expand(joint + event), value.detach().expand(joint + event)
    batch = joint[len(joint) - len(batch_shape) :]  # larger if a batch of 1 meets several values
    log_p: Tensor = _FusedLogDensity.apply(value, v, logits, temperature, link, batch, of_values)
    return log_p


class _Again:
    """v of a draw, from its seed; if a parameter has changed since, from the value.

    :param arguments: the first ones of `_FusedDraw.apply`.
    """

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.versions = [version_of(parameter) for parameter in arguments[:2]]

    def __call__(self, value: Tensor) -> Tensor:
        if [version_of(parameter) for parameter in self.arguments[:2]] != self.versions:
            link: Link = self.arguments[3]
            return link.inverse(value)
        v: Tensor = _FusedDraw.apply(*self.arguments, False, True, False)[1]
        return v


def _seed(like: Tensor) -> Tensor:
    return torch.randint(0, 2**63 - 1, (1,), device=like.device)


class _Rows(NamedTuple):
    """A draw or a density as the kernels see it: n vectors or bits, each with its parameters."""

    x: Tensor
    tau: Tensor
    over: Size
    """Without the event: samples and batch."""
    shape: Size
    """With the event."""
    n: int
    k: int
    counts: tuple[int, int, int]
    """How many there are of the draw, of x and of tau."""
    grid: tuple[int]
    options: dict[str, Any]

    @classmethod
    def of(cls, x: Tensor, tau: Tensor, link: Link, over: Size, batch: Size) -> "_Rows":
        plan = _plan_of(x.shape, tau.shape, link, over, batch, TILE, triton_functions.LONGEST)
        (x_shape, tau_shape), *rest = plan
        x = x if x_shape is None else x.expand(x_shape)
        tau = tau if tau_shape is None else tau.expand(tau_shape)
        return cls(x.contiguous(), tau.contiguous(), *rest)

    def run(
        self,
        kernel: Any,
        *pointers: Tensor | None,
        more: Any = (),
        waits_for_memory: bool = False,
        **options: Any,
    ) -> None:
        """Run a kernel on the device of the draw, in the current stream.

        :param waits_for_memory: whether it computes little, and so is faster with more threads.
        """
        options |= self.options
        if waits_for_memory:
            options["num_warps"] *= 2
        with torch.cuda.device_of(self.x):
            _launch(kernel, self.grid, self.x.device, (*pointers, *self.counts, *more), options)

    def flat(self, tensor: Tensor | None, event_dim: int) -> tuple[Tensor | None, tuple[int, ...]]:
        """A tensor over the draw, and its strides over rows and columns, without a copy if it can.

        :param event_dim: 1 for a tensor of vectors, 0 for one number a vector or bit.
        """
        if tensor is None:
            return None, (0,) * (1 + event_dim)
        flat = tensor.reshape((self.n, self.k)[: 1 + event_dim])
        return flat, flat.stride()

    def room_for_gradients(
        self, x: Tensor, tau: Tensor, of_x: bool, of_tau: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Memory for the gradients in x and in tau."""
        dx = dtau = None
        if of_x:
            dx = _new(self.shape, x, x.dtype if x.shape == self.shape else torch.float32)
        if of_tau and self.shape == self.over and self.options["TAU_AT"] == FIRST.value:
            dtau = _new(self.grid, x)  # a number a program of bits
        elif of_tau:
            has_event = self.shape != self.over and tau.dim() > 0
            dtau = _new((*self.over, 1) if has_event else self.over, x)
        return dx, dtau


@lru_cache(maxsize=1024)
def _plan_of(
    x: Size, tau: Size, link: Link, over: Size, batch: Size, tile: int, longest: int
) -> tuple[Any, ...]:
    """What x and tau must be expanded to, or None, and all of `_Rows` but its tensors.

    :param longest: what `triton_functions.launch_of_rows` reads.
    """
    event_dim = link.event_dim
    event = x[len(x) - event_dim :]
    n, k = over.numel(), event.numel()
    x_shape, x_rows, x_at = _by_row(x, event_dim, batch, n)
    tau_shape, tau_rows, tau_at = _by_row(tau, event_dim if tau else 0, batch, n)
    options: dict[str, Any] = {"X_AT": x_at, "TAU_AT": tau_at}
    if event_dim:
        options |= {"SIMPLEX": type(link) is Simplex, "SIZE": link.size, "K": k}  # type: ignore[attr-defined]
        grid, launch = triton_functions.launch_of_rows(n, k, tile)
    else:
        grid, launch = triton_functions.launch_of_bits(n, tile)
    counts = n, x_rows, tau_rows
    return (x_shape, tau_shape), over, over + event, n, k, counts, grid, options | launch


def _by_row(shape: Size, event_dim: int, batch: Size, n: int) -> tuple[Size | None, int, int]:
    """The shape that makes rows of a parameter, their number, and how a draw's row finds its own.

    The shape is None if it is the one that the parameter has.
    """
    cut = len(shape) - event_dim
    over, event, expanded = shape[:cut], shape[cut:], None
    while over and over[0] == 1:
        over = over[1:]
    if over != batch[len(batch) - len(over) :]:  # it is expanded within the batch
        over, expanded = batch, batch + event
    count = over.numel()
    at = FIRST if count == 1 else OWN if count == n else MODULO
    return expanded, count, at.value


_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def _launch(
    kernel: Any,
    grid: tuple[int],
    device: torch.device,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    """Run a kernel. The second time with arguments of the same kinds it is known.

    At each call Triton looks for what it has compiled for such arguments. That takes longer than
    all else that a small draw does.
    """
    key = (kernel.__name__, device.index, *options.values(), *map(_kind_of, arguments))
    found = _compiled.get(key)
    if found is not None:
        made, constants = found
        made[(grid[0], 1, 1)](*arguments, *constants)
        return
    made = kernel[grid](*arguments, **options)
    if made is not None:  # not in the interpreter
        names = kernel.arg_names[len(arguments) :]
        _compiled[key] = made, tuple(options[name] for name in names)


def _kind_of(argument: Any) -> Any:
    """What a kernel is compiled for, of an argument."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, -(2**31) <= argument < 2**31
    return type(argument)


def _new(shape: Any, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


# Autograd.


class _FusedDraw(torch.autograd.Function):
    """From x and tau to s, v and log p(s), or None for those that are not wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tau: Tensor,
        seed: Tensor,
        link: Link,
        over: Size,
        batch: Size,
        *wanted: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows = _Rows.of(x, tau, link, over, batch)
        s = _new(rows.shape, x, x.dtype) if wanted[0] else None
        v = _new(rows.shape, x) if wanted[1] else None
        log_p = _new(over, x) if wanted[2] else None
        parts = None
        if link.event_dim:
            if type(link) is not Simplex and any(ctx.needs_input_grad):
                parts = _new((2, rows.n), x)
            outputs = s, v, log_p, parts
            more = (math.lgamma(rows.k),)
            rows.run(triton_rows.draw_rows, rows.x, rows.tau, seed, *outputs, more=more)
        else:
            rows.run(triton_bits.draw_bits, rows.x, rows.tau, seed, s, v, log_p)
        enough = type(link) is Simplex and x.dtype == torch.float32  # to save s alone
        ctx.place = link, over, batch
        ctx.save_for_backward(x, tau, seed, s if enough else None, parts)
        ctx.set_materialize_grads(False)
        return s, v, log_p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_pull_draw(ctx, grads, _relaxed), *(None,) * 7


class _FusedStraightThroughDraw(torch.autograd.Function):
    """From x and tau to the hard value, which has the gradient of the relaxed one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tau: Tensor, seed: Tensor, link: Link, over: Size, batch: Size
    ) -> Tensor:
        rows = _Rows.of(x, tau, link, over, batch)
        parts = None
        if link.event_dim and type(link) is not Simplex and any(ctx.needs_input_grad):
            parts = _new((2, rows.n), x)
        hard = _hard_value(rows, x, seed, parts)
        ctx.place = link, over, batch
        ctx.save_for_backward(x, tau, seed, None, parts)
        return hard

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_pull_draw(ctx, (*grads, None, None), _surrogate), *(None,) * 4


class _FusedSecondOrderDraw(torch.autograd.Function):
    """From x to the hard value, which has the gradient of the second-order surrogate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, link: Link, over: Size, batch: Size) -> Tensor:
        hard = _hard_value(_Rows.of(x, seed.squeeze(), link, over, batch), x, seed, None)
        ctx.place = link, over, batch
        ctx.save_for_backward(x, seed, hard)
        return hard

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, seed, hard = ctx.saved_tensors
        link, over, batch = ctx.place
        nothing = (None,) * 4
        if torch.is_grad_enabled() or is_batched(grad):
            attach = with_one_hot_gradient if link.event_dim else with_bit_gradient
            hard, grad = hard.detach().float(), grad.float()
            expand = partial(torch.broadcast_to, size=hard.shape)
            return *_gradients_of_graph(
                lambda x: (attach(hard, expand(x.float())),), (x,), (True,), (grad,)
            ), *nothing
        rows = _Rows.of(x, seed.squeeze(), link, over, batch)
        gs, strides = rows.flat(grad, link.event_dim)
        dx, _ = rows.room_for_gradients(x, seed, True, False)
        bits, vectors = triton_bits.pull_second_order_of_bits, triton_rows.pull_second_order_of_rows
        rows.run(vectors if link.event_dim else bits, rows.x, hard, gs, dx, more=strides)
        return _summed(dx, x), *nothing


class _FusedEstimatedDraw(torch.autograd.Function):
    """From x and tau to the hard value, which has the gradient of an estimator's surrogate."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tau: Tensor,
        seed: Tensor,
        link: Link,
        over: Size,
        batch: Size,
        estimator: Estimator,
    ) -> Tensor:
        hard = _hard_value(_Rows.of(x, tau, link, over, batch), x, seed, None)
        ctx.place, ctx.estimator = (link, over, batch), estimator
        ctx.save_for_backward(x, tau, seed, hard)
        return hard

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, tau, seed, hard = ctx.saved_tensors
        link, over, batch = ctx.place
        wanted, nothing = ctx.needs_input_grad[:2], (None,) * 5
        if torch.is_grad_enabled() or is_batched(grad):
            surrogate = partial(_estimated, link, hard, seed, over, ctx.estimator)
            return *_gradients_of_graph(surrogate, (x, tau), wanted, (grad,)), *nothing
        rows = _Rows.of(x, tau, link, over, batch)
        gs, strides = rows.flat(grad, link.event_dim)
        dx, dtau = rows.room_for_gradients(x, tau, True, wanted[1])
        _run_estimator(ctx.estimator, rows, seed, strides, hard, gs, dx, dtau)
        return _summed(dx, x), _summed(dtau, tau), *nothing


def _run_estimator(
    estimator: Estimator, rows: _Rows, seed: Tensor, strides: tuple[int, ...], *tensors: Any
) -> None:
    """The backward pass of an estimator."""
    have_event = rows.shape != rows.over
    if isinstance(estimator, gumbel_rao):
        bits, vectors = triton_rao.pull_rao_of_bits, triton_rao.pull_rao_of_rows
        pointers = rows.x, rows.tau, seed, *tensors
        samples = estimator.samples
        rows.run(vectors if have_event else bits, *pointers, more=strides, SAMPLES=samples)
        return
    bits = triton_estimators.pull_closed_form_of_bits
    vectors = triton_estimators.pull_closed_form_of_rows
    gap, form = 0.0, triton_estimators.STRAIGHT_THROUGH
    if isinstance(estimator, gapped):
        gap, form = estimator.gap, triton_estimators.GAPPED
    elif estimator is reinmax:
        form = triton_estimators.REINMAX
    pointers, more = (rows.x, rows.tau, *tensors), (gap, *strides)
    rows.run(vectors if have_event else bits, *pointers, more=more, FORM=form.value)


def _hard_value(rows: _Rows, x: Tensor, seed: Tensor, parts: Tensor | None) -> Tensor:
    """The hard value of a draw; for subsets also the parts of v, where they are wanted."""
    hard = _new(rows.shape, x, x.dtype)
    if rows.shape != rows.over:
        rows.run(triton_rows.choose_rows, rows.x, rows.tau, seed, hard, parts)
    else:
        rows.run(triton_bits.choose_bits, rows.x, rows.tau, seed, hard)
    return hard


def _pull_draw(ctx: Any, grads: Any, graph: Any) -> tuple[Tensor | None, Tensor | None]:
    """The gradients in x and tau of a draw or of a hard value.

    :param grads: those in s or the hard value, in v and in log p(s).
    :param graph: the operations whose derivatives they are, for derivatives of them.
    """
    x, tau, seed, s, parts = ctx.saved_tensors
    link, over, batch = ctx.place
    wanted = ctx.needs_input_grad[:2]
    if all(grad is None for grad in grads):
        return None, None
    if torch.is_grad_enabled() or any(map(is_batched, grads)):
        outputs = partial(graph, link, _noise_of_draw(x, tau, seed, *ctx.place))
        return _gradients_of_graph(outputs, (x, tau), wanted, grads)  # type: ignore[return-value]
    rows = _Rows.of(x, tau, link, over, batch)
    event_dim = link.event_dim
    gs, gs_strides = rows.flat(grads[0], event_dim)
    gv, gv_strides = rows.flat(grads[1], event_dim)
    gl, gl_strides = rows.flat(grads[2], 0)
    dx, dtau = rows.room_for_gradients(x, tau, True, wanted[1])
    strides = *gs_strides, *gv_strides, *gl_strides
    tensors = gs, gv, gl, dx, dtau
    if event_dim:
        # v, which the gradient in tau needs, is lost where s is 0.
        s = None if wanted[1] else s
        kernel = triton_rows.pull_draw_of_rows
        pointers = rows.x, rows.tau, seed, s, parts, *tensors
        rows.run(kernel, *pointers, more=strides, waits_for_memory=s is not None)
    else:
        rows.run(triton_bits.pull_draw_of_bits, rows.x, rows.tau, seed, *tensors, more=strides)
    return _summed(dx, x), _summed(dtau, tau)


class _FusedLogDensity(torch.autograd.Function):
    """From v, x and tau to log p(s) or log p(v)."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        v: Tensor,
        x: Tensor,
        tau: Tensor,
        link: Link,
        batch: Size,
        of_values: bool,
    ) -> Tensor:
        over = v.shape[: v.dim() - link.event_dim]
        rows = _Rows.of(x, tau, link, over, batch)
        log_p = _new(over, v)
        values, v_, strides = _values(rows, value, v, link)
        pointers = values, v_, rows.x, rows.tau, log_p
        if link.event_dim:
            more = *strides, math.lgamma(rows.k)
            rows.run(triton_rows.density_of_rows, *pointers, more=more, OF_VALUES=of_values)
        else:
            rows.run(triton_bits.density_of_bits, *pointers, more=strides, OF_VALUES=of_values)
        ctx.place = link, over, batch, of_values
        ctx.save_for_backward(value, v, x, tau)
        return log_p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, v, x, tau = ctx.saved_tensors
        link, over, batch, of_values = ctx.place
        of_v, of_x, of_tau = wanted = ctx.needs_input_grad[1:4]
        if torch.is_grad_enabled() or is_batched(grad):
            density = partial(_density, link, batch, of_values, value)
            found = _gradients_of_graph(density, (v, x, tau), wanted, (grad,))
            return None, *found, None, None, None
        rows = _Rows.of(x, tau, link, over, batch)
        values, v_, strides = _values(rows, value, v, link)
        gl, gl_strides = rows.flat(grad, 0)
        dv = _new(rows.shape, v, v.dtype) if of_v else None
        dx, dtau = rows.room_for_gradients(x, tau, of_x, of_tau)
        pointers = values, v_, rows.x, rows.tau, gl, dv, dx, dtau
        bits, vectors = triton_bits.pull_density_of_bits, triton_rows.pull_density_of_rows
        kernel = vectors if link.event_dim else bits
        options = {"waits_for_memory": link.event_dim > 0, "OF_VALUES": of_values}
        rows.run(kernel, *pointers, more=(*strides, *gl_strides), **options)
        return None, dv, _summed(dx, x), _summed(dtau, tau), None, None, None


def _values(rows: _Rows, value: Tensor, v: Tensor, link: Link) -> Any:
    """The values and their v for a kernel, and the strides of v."""
    flat, strides = rows.flat(v, link.event_dim)
    return value.contiguous(), flat, strides


def _summed(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The gradient of each row or program, summed to that of the parameter."""
    if gradient is None or gradient.shape == parameter.shape:
        return gradient
    if parameter.numel() == 1:
        return gradient.sum().reshape(parameter.shape).to(parameter.dtype)
    return gradient.sum_to_size(parameter.shape).to(parameter.dtype)


# Derivatives of gradients.


def _noise_of_draw(
    x: Tensor, tau: Tensor, seed: Tensor, link: Link, over: Size, batch: Size
) -> Tensor:
    """The noise of a draw."""
    return _noise_over(over + x.shape[x.dim() - link.event_dim :], link, seed)


def _noise_of_samples(x: Tensor, seed: Tensor, link: Link, over: Size, samples: int) -> Tensor:
    """The noise of the samples of `gumbel_rao`, over a new first dimension."""
    n, event = over.numel(), x.shape[x.dim() - link.event_dim :]
    each = n if link.event_dim else n + n % 2
    noise = _noise_over(Size((samples + 1, each)) + event, link, seed)
    return noise[1:, :n].reshape(samples, *over, *event)


def _noise_over(shape: Size, link: Link, seed: Tensor) -> Tensor:
    """The noise of a draw of a shape."""
    noise = _new(shape, seed)
    n, k = noise.numel(), shape[-1] if link.event_dim else 1
    with torch.cuda.device_of(seed):
        if link.event_dim:
            grid, launch = triton_functions.launch_of_rows(n // k, k, TILE)
            triton_functions.noise_of_rows[grid](seed, noise, n // k, K=k, **launch)
        else:
            grid, launch = triton_functions.launch_of_bits(n, TILE)
            triton_functions.noise_of_bits[grid](seed, noise, n, **launch)
    return noise


def _relaxed(link: Any, noise: Tensor, x: Tensor, tau: Tensor) -> tuple[Tensor, ...]:
    """s, v and log p(s) of a draw."""
    x = link.centred(x.float())
    v = link.unconstrained(x + noise, tau)
    return link.value(v), v, link.log_density(link.finite(v), x, tau, of_values=True)


def _surrogate(link: Any, noise: Tensor, x: Tensor, tau: Tensor) -> tuple[Tensor, ...]:
    """What a hard value has the gradient of; nothing where that is infinite or NaN."""
    return (link(link.centred(x.float()) + noise, tau).nan_to_num(nan=0.0),) * 3


def _estimated(
    link: Link,
    hard: Tensor,
    seed: Tensor,
    over: Size,
    estimator: Estimator,
    x: Tensor,
    tau: Tensor,
) -> tuple[Tensor]:
    """The surrogate of an estimator; nothing where that is infinite or NaN."""
    noise_of = partial(_noise_of_samples, x, seed, link, over)
    x, hard = link.centred(x.float()).expand(hard.shape), hard.detach().float()
    if not isinstance(estimator, gumbel_rao):
        surrogate = estimator(x, tau, hard, hard, link)
    else:
        noise = noise_of(estimator.samples)
        if link.event_dim:
            z = perturbed_given_ranking(x, hard.argmax(-1, keepdim=True), noise)
        else:
            z = perturbed_given_bit(x, hard, noise)
        surrogate = mean_relaxed(x, tau, z, link)
    return (surrogate.nan_to_num(nan=0.0),)


def _density(
    link: Link, batch: Size, of_values: bool, value: Tensor, v: Tensor, x: Tensor, tau: Tensor
) -> tuple[Tensor]:
    arguments = value, v.float(), x.float(), tau, link, batch
    return (reference.log_density(*arguments, of_values=of_values),)


def _gradients_of_graph(
    outputs: Callable[..., tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """The gradients of functions of some inputs, by autograd and differentiable themselves."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = tuple(each.view_as(each) for each in inputs)  # one may depend on another
        used = [(y, g) for y, g in zip(outputs(*inputs), grads, strict=True) if g is not None]
        leaves = [each for each, is_wanted in zip(inputs, wanted, strict=True) if is_wanted]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in used],
                leaves,
                [g.to(y.dtype) for y, g in used],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return tuple(next(found) if is_wanted else None for is_wanted in wanted)
