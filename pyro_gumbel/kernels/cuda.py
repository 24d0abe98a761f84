# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The formulas on a GPU: one Triton kernel for a draw or a density, one for its backward pass.

Nothing waits for the GPU, and nothing is read back to the host. Noise is drawn in the kernels from
a seed that torch's generator of the device gives, so that `torch.manual_seed` and the replays of a
CUDA graph do with it what they do with any draw. Derivatives of the gradients, and gradients under
vmap, are those of the operations of the reference at the same noise. The arguments are those of
`pyro_gumbel.kernels.dispatch`, in float32 or a shorter dtype. A temperature that is a number on the
CPU is passed to the kernels as one.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Size, Tensor

from pyro_gumbel._tracing import (
    counts_changes,
    in_eager_mode,
    is_batched,
    is_number,
    version_of,
)
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
from pyro_gumbel.kernels.triton_functions import FIRST, MODULO, NUMBER, OWN
from pyro_gumbel.links import Hypersimplex, Link, Simplex, interval
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

_alive = torch._C._functorch.unwrap_if_dead  # of a tensor that has left a transform

TILE = triton_functions.TILE  # elements of a program


def try_on(device: torch.device) -> None:
    """Draw a bit twice on a device, the second time by what Triton has compiled for the first.

    It raises what Triton raises there.
    """
    x, seed = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    plan = _plan_of(x, 1.0, interval, x.shape, x.shape)
    for _ in range(2):
        _hard_value(plan, x, 1.0, seed, None)


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
    logits, temperature = _alive(logits), _alive(temperature)
    attached = torch.is_grad_enabled() and (logits.requires_grad or temperature.requires_grad)
    log_prob = log_prob and (attached or link.event_dim > 0)  # as on a CPU
    if not attached:  # v without a gradient, whenever it is asked for
        logits, temperature = logits.detach(), temperature.detach()
    tau = _number_or_tensor(temperature)
    is_safe = isinstance(tau, float) or counts_changes(tau)
    if not (keep or is_safe or temperature.requires_grad) and temperature.numel() == 1:
        tau, is_safe = temperature.clone(), True  # which nobody else can change
    keep = keep or not (is_safe and counts_changes(logits))
    over = sample_shape + batch_shape
    arguments = logits, tau, _seed(logits), link, over, batch_shape
    s, v, log_p = _apply_draw(*arguments, True, keep, log_prob)
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
    x, tau, over = _alive(logits), _number_or_tensor(temperature), sample_shape + batch_shape
    hard: Tensor = _apply_straight_through_draw(x, tau, _seed(x), link, over, batch_shape)
    return hard


def second_order_draw(logits: Tensor, link: Link, sample_shape: Size, batch_shape: Size) -> Tensor:
    """A hard draw with the gradient of the second-order surrogate."""
    x, over = _alive(logits), sample_shape + batch_shape
    hard: Tensor = _apply_second_order_draw(x, _seed(x), link, over, batch_shape)
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
    if type(link) is Hypersimplex or not known:
        return None
    x, tau, over = _alive(logits), _number_or_tensor(temperature), sample_shape + batch_shape
    hard: Tensor = _apply_estimated_draw(x, tau, _seed(x), link, over, batch_shape, estimator)
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
    x, tau, v = _alive(logits), _number_or_tensor(temperature), _alive(unconstrained)
    shape = v.shape[: v.dim() - link.event_dim]
    joint = torch.broadcast_shapes(shape, batch_shape)
    event = v.shape[len(shape) :]
    v, value = v.expand(joint + event), _alive(value).detach().expand(joint + event)
    batch = joint[len(joint) - len(batch_shape) :]  # larger if a batch of 1 meets several values
    log_p: Tensor = _apply_log_density(value, v, x, tau, link, batch, of_values)
    return log_p


class _Again:
    """v of a draw, from its seed; from the value in a transform, or if a parameter has changed.

    :param arguments: the first ones of `_FusedDraw.apply`.
    """

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.versions = self._versions()

    def __call__(self, value: Tensor) -> Tensor:
        if self._versions() != self.versions or not in_eager_mode():
            link: Link = self.arguments[3]
            return link.inverse(value)
        v: Tensor = _apply_draw(*self.arguments, False, True, False)[1]
        return v

    def _versions(self) -> tuple[int, int]:
        x, tau, *_ = self.arguments
        return version_of(x), 0 if isinstance(tau, float) else version_of(tau)


def _number_or_tensor(tau: Tensor) -> Tensor | float:
    """A temperature for a kernel."""
    return tau.item() if is_number(tau) else _alive(tau)


def _tau_as_tensor(tau: Tensor | float, like: Tensor) -> Tensor:
    """A temperature for torch's operations."""
    if isinstance(tau, Tensor):
        return tau
    return torch.scalar_tensor(tau, dtype=torch.float32, device=like.device)


def _seed(like: Tensor) -> Tensor:
    return torch.randint(0, 2**63 - 1, (1,), device=like.device)


class _Plan:
    """How the kernels see draws or densities of given shapes: n vectors or bits with parameters.

    :param x: the shape of the logits.
    :param tau: the shape of the temperature; None for a number.
    :param over: samples and batch, without the event.
    :param longest: what `triton_functions.launch_of_rows` reads.
    """

    def __init__(
        self,
        x: Size,
        tau: Size | None,
        link: Link,
        over: Size,
        batch: Size,
        tile: int,
        longest: int,
    ) -> None:
        self.place = link, over, batch
        event_dim = link.event_dim
        event = x[len(x) - event_dim :]
        self.n, self.k = n, k = over.numel(), event.numel()
        self.over, self.shape = over, over + event
        self._x, x_rows, x_at = _by_row(x, event_dim, batch, n)
        self._tau, tau_rows, tau_at = None, 1, NUMBER.value
        if tau is not None:
            self._tau, tau_rows, tau_at = _by_row(tau, event_dim if tau else 0, batch, n)
        self.counts = n, x_rows, tau_rows
        """How many there are of the draw, of x and of tau."""
        self.options: dict[str, Any] = {"X_AT": x_at, "TAU_AT": tau_at}
        if event_dim:
            self.options |= {"SIMPLEX": type(link) is Simplex, "SIZE": link.size, "K": k}  # type: ignore[attr-defined]
            self.grid, launch = triton_functions.launch_of_rows(n, k, tile)
        else:
            self.grid, launch = triton_functions.launch_of_bits(n, tile)
        self.options |= launch
        self._known: dict[tuple[Any, ...], Callable[..., None]] = {}

    def rows_of(self, x: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor | float]:
        """The parameters as rows in memory."""
        x = _in_memory(x if self._x is None else x.expand(self._x)).contiguous()
        if isinstance(tau, Tensor):
            tau = _in_memory(tau if self._tau is None else tau.expand(self._tau)).contiguous()
        return x, tau

    def run(
        self,
        kernel: Any,
        *pointers: Any,
        more: Any = (),
        waits_for_memory: bool = False,
        **options: Any,
    ) -> None:
        """Run a kernel in the current stream of the device of the first pointer.

        At each call Triton looks for what it has compiled for such arguments. That takes longer
        than all else that a small draw does, so what it finds is kept. Settings of Triton that
        change what it compiles, such as those for debugging, are read at the first call alone.

        :param pointers: tensors, or None, or a float.
        :param more: numbers.
        :param waits_for_memory: whether it computes little, and so is faster with more threads.
        """
        device = pointers[0].get_device()  # -1 for a CPU, in the interpreter
        kinds = [
            (p.dtype, p.data_ptr() % 16 == 0) if isinstance(p, Tensor) else type(p)
            for p in pointers
        ]
        sizes = [m if type(m) is int else float for m in more]
        key = kernel.__name__, device, waits_for_memory, *options.values(), *sizes, *kinds
        launch = self._known.get(key)
        arguments = *pointers, *self.counts, *more
        if launch is None:
            launch = partial(self._first_launch, kernel, key, waits_for_memory, options)
        if device < 0 or device == torch.cuda.current_device():
            launch(*arguments)
        else:
            with torch.cuda.device(device):
                launch(*arguments)

    def _first_launch(
        self,
        kernel: Any,
        key: Any,
        waits_for_memory: bool,
        options: dict[str, Any],
        *arguments: Any,
    ) -> None:
        """Run a kernel, and keep what Triton has compiled for such arguments."""
        options = {**options, **self.options}
        if waits_for_memory:
            options["num_warps"] *= 2
        made = kernel[self.grid](*arguments, **options)
        if not hasattr(type(made), "__getitem__"):  # in the interpreter, or not compiled yet
            return
        constants = [options[name] for name in kernel.arg_names[len(arguments) :]]
        run = made[(*self.grid, 1, 1)]
        self._known[key] = lambda *arguments: run(*arguments, *constants)

    def flat(self, tensor: Tensor | None, event_dim: int) -> tuple[Tensor | None, tuple[int, ...]]:
        """A tensor over the draw, and its strides over rows and columns, without a copy if it can.

        :param event_dim: 1 for a tensor of vectors, 0 for one number a vector or bit.
        """
        if tensor is None:
            return None, (0,) * (1 + event_dim)
        tensor = _in_memory(tensor)
        if tensor.dim() != 1 + event_dim:
            tensor = tensor.reshape((self.n, self.k)[: 1 + event_dim])
        return tensor, tensor.stride()

    def room_for_gradients(
        self, x: Tensor, tau: Tensor | float, of_x: bool, of_tau: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Memory for the gradients in x and in tau."""
        dx = dtau = None
        if of_x:
            dx = _new(self.shape, x, x.dtype if x.shape == self.shape else torch.float32)
        if of_tau and self.shape == self.over and self.options["TAU_AT"] == FIRST.value:
            dtau = _new(self.grid, x)  # a number a program of bits
        elif isinstance(tau, Tensor) and of_tau:
            has_event = self.shape != self.over and tau.dim() > 0
            dtau = _new((*self.over, 1) if has_event else self.over, x)
        return dx, dtau


_kept_plan = lru_cache(maxsize=1024)(_Plan)


def _plan_of(x: Tensor, tau: Tensor | float, link: Link, over: Size, batch: Size) -> _Plan:
    tau_shape = tau.shape if isinstance(tau, Tensor) else None
    return _kept_plan(x.shape, tau_shape, link, over, batch, TILE, triton_functions.LONGEST)


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


def _in_memory(tensor: Tensor) -> Tensor:
    """The tensor with its numbers in memory, where a kernel reads them.

    Torch marks a tensor whose memory has the numbers with the opposite sign, such as the imaginary
    part of a conjugate.
    """
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def _new(shape: Any, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return like.new_empty(shape, dtype=dtype)


# Autograd. A temperature is a tensor or a number.


def _save(ctx: Any, tau: Tensor | float, *tensors: Tensor | None) -> None:
    """Save a temperature and tensors for the backward pass."""
    ctx.number = None if isinstance(tau, Tensor) else tau
    ctx.save_for_backward(tau if isinstance(tau, Tensor) else None, *tensors)


def _saved(ctx: Any) -> Any:
    """What `_save` has saved."""
    tau, *tensors = ctx.saved_tensors
    return ctx.number if tau is None else tau, *tensors


class _FusedDraw(torch.autograd.Function):
    """From x and tau to s, v and log p(s), or None for those that are not wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tau: Tensor | float,
        seed: Tensor,
        link: Link,
        over: Size,
        batch: Size,
        *wanted: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        plan = _plan_of(x, tau, link, over, batch)
        rows = plan.rows_of(x, tau)
        s = _new(plan.shape, x, x.dtype) if wanted[0] else None
        v = _new(plan.shape, x) if wanted[1] else None
        log_p = _new(over, x) if wanted[2] else None
        parts = None
        if link.event_dim:
            if type(link) is not Simplex and any(ctx.needs_input_grad):
                parts = _new((2, plan.n), x)
            more = (math.lgamma(plan.k),)
            plan.run(triton_rows.draw_rows, *rows, seed, s, v, log_p, parts, more=more)
        else:
            plan.run(triton_bits.draw_bits, *rows, seed, s, v, log_p)
        enough = type(link) is Simplex and x.dtype == torch.float32  # to save s alone
        ctx.plan = plan
        _save(ctx, tau, x, seed, s if enough else None, parts)
        ctx.set_materialize_grads(False)
        return s, v, log_p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_pull_draw(ctx, grads, _relaxed), *(None,) * 7


class _FusedStraightThroughDraw(torch.autograd.Function):
    """From x and tau to the hard value, which has the gradient of the relaxed one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tau: Tensor | float, seed: Tensor, link: Link, over: Size, batch: Size
    ) -> Tensor:
        plan, parts = _plan_of(x, tau, link, over, batch), None
        if link.event_dim and type(link) is not Simplex and any(ctx.needs_input_grad):
            parts = _new((2, plan.n), x)
        hard = _hard_value(plan, x, tau, seed, parts)
        ctx.plan = plan
        _save(ctx, tau, x, seed, None, parts)
        return hard

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_pull_draw(ctx, (*grads, None, None), _surrogate), *(None,) * 4


class _FusedSecondOrderDraw(torch.autograd.Function):
    """From x to the hard value, which has the gradient of the second-order surrogate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, link: Link, over: Size, batch: Size) -> Tensor:
        ctx.plan = plan = _plan_of(x, 1.0, link, over, batch)
        hard = _hard_value(plan, x, 1.0, seed, None)
        ctx.save_for_backward(x, hard)
        return hard

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, hard), plan = ctx.saved_tensors, ctx.plan
        event_dim, nothing = plan.place[0].event_dim, (None,) * 4
        if torch.is_grad_enabled() or is_batched(grad):
            attach = with_one_hot_gradient if event_dim else with_bit_gradient
            hard, grad = hard.detach().float(), grad.float()
            expand = partial(torch.broadcast_to, size=hard.shape)
            return *_gradients_of_graph(
                lambda x: (attach(hard, expand(x.float())),), (x,), (True,), (grad,)
            ), *nothing
        rows, _ = plan.rows_of(x, 1.0)
        gs, strides = plan.flat(grad, event_dim)
        dx, _ = plan.room_for_gradients(x, 1.0, True, False)
        bits, vectors = triton_bits.pull_second_order_of_bits, triton_rows.pull_second_order_of_rows
        plan.run(vectors if event_dim else bits, rows, hard, gs, dx, more=strides)
        return _summed(dx, x), *nothing


class _FusedEstimatedDraw(torch.autograd.Function):
    """From x and tau to the hard value, which has the gradient of an estimator's surrogate."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tau: Tensor | float,
        seed: Tensor,
        link: Link,
        over: Size,
        batch: Size,
        estimator: Estimator,
    ) -> Tensor:
        ctx.plan, ctx.estimator = _plan_of(x, tau, link, over, batch), estimator
        hard = _hard_value(ctx.plan, x, tau, seed, None)
        _save(ctx, tau, x, seed, hard)
        return hard

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (tau, x, seed, hard), plan = _saved(ctx), ctx.plan
        link, over, _ = plan.place
        wanted, nothing = ctx.needs_input_grad[:2], (None,) * 5
        if torch.is_grad_enabled() or is_batched(grad):
            surrogate = partial(_estimated, link, hard, seed, over, ctx.estimator)
            inputs = x, _tau_as_tensor(tau, x)
            return *_gradients_of_graph(surrogate, inputs, wanted, (grad,)), *nothing
        gs, strides = plan.flat(grad, link.event_dim)
        dx, dtau = plan.room_for_gradients(x, tau, True, wanted[1])
        tensors = *plan.rows_of(x, tau), seed, hard, gs, dx, dtau
        _run_estimator(ctx.estimator, plan, strides, *tensors)
        return _summed(dx, x), _summed(dtau, tau), *nothing


def _run_estimator(
    estimator: Estimator,
    plan: _Plan,
    strides: tuple[int, ...],
    x: Tensor,
    tau: Tensor | float,
    seed: Tensor,
    *tensors: Any,
) -> None:
    """The backward pass of an estimator."""
    have_event = plan.shape != plan.over
    if isinstance(estimator, gumbel_rao):
        bits, vectors = triton_rao.pull_rao_of_bits, triton_rao.pull_rao_of_rows
        kernel, samples = vectors if have_event else bits, estimator.samples
        plan.run(kernel, x, tau, seed, *tensors, more=strides, SAMPLES=samples)
        return
    bits = triton_estimators.pull_closed_form_of_bits
    vectors = triton_estimators.pull_closed_form_of_rows
    gap, form = 0.0, triton_estimators.STRAIGHT_THROUGH
    if isinstance(estimator, gapped):
        gap, form = estimator.gap, triton_estimators.GAPPED
    elif estimator is reinmax:
        form = triton_estimators.REINMAX
    kernel, more = vectors if have_event else bits, (gap, *strides)
    plan.run(kernel, x, tau, *tensors, more=more, FORM=form.value)


def _hard_value(
    plan: _Plan, x: Tensor, tau: Tensor | float, seed: Tensor, parts: Tensor | None
) -> Tensor:
    """The hard value of a draw; for subsets also the parts of v, where they are wanted."""
    hard = _new(plan.shape, x, x.dtype)
    rows = plan.rows_of(x, tau)
    if plan.shape != plan.over:
        plan.run(triton_rows.choose_rows, *rows, seed, hard, parts)
    else:
        plan.run(triton_bits.choose_bits, *rows, seed, hard)
    return hard


def _pull_draw(ctx: Any, grads: Any, graph: Any) -> tuple[Tensor | None, Tensor | None]:
    """The gradients in x and tau of a draw or of a hard value.

    :param grads: those in s or the hard value, in v and in log p(s).
    :param graph: the operations whose derivatives they are, for derivatives of them.
    """
    (tau, x, seed, s, parts), plan = _saved(ctx), ctx.plan
    wanted = ctx.needs_input_grad[:2]
    if all(grad is None for grad in grads):
        return None, None
    if torch.is_grad_enabled() or any(map(is_batched, grads)):
        outputs = partial(graph, plan.place[0], _noise_of_draw(x, tau, seed, *plan.place))
        inputs = x, _tau_as_tensor(tau, x)
        return _gradients_of_graph(outputs, inputs, wanted, grads)  # type: ignore[return-value]
    rows, event_dim = plan.rows_of(x, tau), plan.place[0].event_dim
    gs, gs_strides = plan.flat(grads[0], event_dim)
    gv, gv_strides = plan.flat(grads[1], event_dim)
    gl, gl_strides = plan.flat(grads[2], 0)
    dx, dtau = plan.room_for_gradients(x, tau, True, wanted[1])
    strides = *gs_strides, *gv_strides, *gl_strides
    tensors = gs, gv, gl, dx, dtau
    if event_dim:
        # v, which the gradient in tau needs, is lost where s is 0.
        s = None if wanted[1] else s
        pointers, options = (*rows, seed, s, parts, *tensors), {"waits_for_memory": s is not None}
        plan.run(triton_rows.pull_draw_of_rows, *pointers, more=strides, **options)
    else:
        plan.run(triton_bits.pull_draw_of_bits, *rows, seed, *tensors, more=strides)
    return _summed(dx, x), _summed(dtau, tau)


class _FusedLogDensity(torch.autograd.Function):
    """From v, x and tau to log p(s) or log p(v)."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        v: Tensor,
        x: Tensor,
        tau: Tensor | float,
        link: Link,
        batch: Size,
        of_values: bool,
    ) -> Tensor:
        over = v.shape[: v.dim() - link.event_dim]
        plan = _plan_of(x, tau, link, over, batch)
        log_p = _new(over, v)
        v_, strides = plan.flat(v, link.event_dim)
        pointers = _in_memory(value).contiguous(), v_, *plan.rows_of(x, tau), log_p
        if link.event_dim:
            more = *strides, math.lgamma(plan.k)
            plan.run(triton_rows.density_of_rows, *pointers, more=more, OF_VALUES=of_values)
        else:
            plan.run(triton_bits.density_of_bits, *pointers, more=strides, OF_VALUES=of_values)
        ctx.plan, ctx.of_values = plan, of_values
        _save(ctx, tau, value, v, x)
        return log_p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (tau, value, v, x), plan, of_values = _saved(ctx), ctx.plan, ctx.of_values
        link, _, batch = plan.place
        of_v, of_x, of_tau = wanted = ctx.needs_input_grad[1:4]
        if torch.is_grad_enabled() or is_batched(grad):
            density = partial(_density, link, batch, of_values, value)
            inputs = v, x, _tau_as_tensor(tau, x)
            found = _gradients_of_graph(density, inputs, wanted, (grad,))
            return None, *found, None, None, None
        v_, strides = plan.flat(v, link.event_dim)
        gl, gl_strides = plan.flat(grad, 0)
        dv = _new(plan.shape, v, v.dtype) if of_v else None
        dx, dtau = plan.room_for_gradients(x, tau, of_x, of_tau)
        pointers = _in_memory(value).contiguous(), v_, *plan.rows_of(x, tau), gl, dv, dx, dtau
        bits, vectors = triton_bits.pull_density_of_bits, triton_rows.pull_density_of_rows
        kernel = vectors if link.event_dim else bits
        options = {"waits_for_memory": link.event_dim > 0, "OF_VALUES": of_values}
        plan.run(kernel, *pointers, more=(*strides, *gl_strides), **options)
        return None, dv, _summed(dx, x), _summed(dtau, tau), None, None, None


def _summed(gradient: Tensor | None, parameter: Any) -> Tensor | None:
    """The gradient of each row or program, summed to that of the parameter."""
    if gradient is None or gradient.shape == parameter.shape:
        return gradient
    if parameter.numel() == 1:
        return gradient.sum().reshape(parameter.shape).to(parameter.dtype)
    return gradient.sum_to_size(parameter.shape).to(parameter.dtype)


# Without what `Function.apply` does besides, as in `cpu`.
_apply_draw = super(torch.autograd.Function, _FusedDraw).apply
_apply_straight_through_draw = super(torch.autograd.Function, _FusedStraightThroughDraw).apply
_apply_second_order_draw = super(torch.autograd.Function, _FusedSecondOrderDraw).apply
_apply_estimated_draw = super(torch.autograd.Function, _FusedEstimatedDraw).apply
_apply_log_density = super(torch.autograd.Function, _FusedLogDensity).apply


# Derivatives of gradients.


def _noise_of_draw(
    x: Tensor, tau: Any, seed: Tensor, link: Link, over: Size, batch: Size
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
