# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws and densities of bits as Triton kernels, each with its backward pass.

Symbols and words as in `pyro_gumbel.kernels.triton_functions`. A program has `BLOCK` bits. n is
specialised: multiples of 16 are read 16 bytes at once.
"""

import triton
import triton.language as tl

from pyro_gumbel.kernels.triton_functions import (
    FIRST,
    INFINITY,
    NUMBER,
    _bits_here,
    _finite_of,
    _log_slope_of,
    _logistic_of_bits,
    _own,
    _sigmoid_of,
    _slope_of,
    _tanh_of_half,
)

__all__ = [
    "choose_bits",
    "density_of_bits",
    "draw_bits",
    "pull_density_of_bits",
    "pull_draw_of_bits",
    "pull_second_order_of_bits",
]

_BIT_COUNTS = ["x_rows", "tau_rows"]


@triton.jit
def _of_bits(ptr, at, n, rows, AT: tl.constexpr):
    """The parameter of each bit, 1 beyond the last one."""
    if AT == NUMBER:
        found = ptr + tl.zeros_like(at).to(tl.float32)
    elif AT == FIRST:
        found = tl.load(ptr).to(tl.float32) + tl.zeros_like(at).to(tl.float32)
    else:
        found = tl.load(ptr + _own(at, rows, AT), mask=at < n, other=1.0).to(tl.float32)
    return found


@triton.jit
def _store_of_temperature(dtau_ptr, dtau, at, n, TAU_AT: tl.constexpr):
    """The gradient in tau of each bit, or of all of a program if there is one tau."""
    if TAU_AT == FIRST:
        # Beyond the last bit the gradients that come in are 0.
        tl.store(dtau_ptr + tl.program_id(0), tl.sum(dtau, axis=0))
    else:
        tl.store(dtau_ptr + at, dtau, mask=at < n)


@triton.jit(do_not_specialize=_BIT_COUNTS)
def draw_bits(
    x_ptr, tau_ptr, seed_ptr, s_ptr, v_ptr, log_p_ptr, n, x_rows, tau_rows,
    X_AT: tl.constexpr, TAU_AT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """s, v and log p(s), those that have a pointer."""
    at = _bits_here(BLOCK)
    x, tau = _of_bits(x_ptr, at, n, x_rows, X_AT), _of_bits(tau_ptr, at, n, tau_rows, TAU_AT)
    noise = _logistic_of_bits(tl.load(seed_ptr), BLOCK)
    v = (x + noise) / tau
    if s_ptr is not None:
        tl.store(s_ptr + at, _sigmoid_of(v), mask=at < n)
    if v_ptr is not None:
        tl.store(v_ptr + at, v, mask=at < n)
    if log_p_ptr is not None:
        point = tl.abs(x) == INFINITY
        log_p = tl.log(tau) + _log_slope_of(noise) - _log_slope_of(_finite_of(v))
        tl.store(log_p_ptr + at, tl.where(point, 0.0, log_p), mask=at < n)


@triton.jit(do_not_specialize=_BIT_COUNTS)
def choose_bits(
    x_ptr, tau_ptr, seed_ptr, hard_ptr, n, x_rows, tau_rows,
    X_AT: tl.constexpr, TAU_AT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The hard value of a draw."""
    at = _bits_here(BLOCK)
    z = _of_bits(x_ptr, at, n, x_rows, X_AT) + _logistic_of_bits(tl.load(seed_ptr), BLOCK)
    tl.store(hard_ptr + at, (z >= 0).to(tl.float32), mask=at < n)


@triton.jit(do_not_specialize=_BIT_COUNTS)
def pull_draw_of_bits(
    x_ptr, tau_ptr, seed_ptr, gs_ptr, gv_ptr, gl_ptr, dx_ptr, dtau_ptr,
    n, x_rows, tau_rows, gs_step, gv_step, gl_step,
    X_AT: tl.constexpr, TAU_AT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients in x and tau of a draw or of a hard value."""
    at = _bits_here(BLOCK)
    inside = at < n
    x, tau = _of_bits(x_ptr, at, n, x_rows, X_AT), _of_bits(tau_ptr, at, n, tau_rows, TAU_AT)
    v = (x + _logistic_of_bits(tl.load(seed_ptr), BLOCK)) / tau
    moves = tl.abs(v) < INFINITY
    v = tl.where(moves, v, 0.0)
    r, of_log_p = v * 0, v * 0
    if gl_ptr is not None:
        of_log_p = tl.load(gl_ptr + at * gl_step, mask=inside, other=0.0).to(tl.float32)
        of_log_p = tl.where(moves, of_log_p, 0.0)
        r += of_log_p * _tanh_of_half(v)
    if gs_ptr is not None:
        gs = tl.load(gs_ptr + at * gs_step, mask=inside, other=0.0).to(tl.float32)
        r += gs * _slope_of(v)
    if gv_ptr is not None:
        r += tl.load(gv_ptr + at * gv_step, mask=inside, other=0.0).to(tl.float32)
    r = tl.where(moves, r, 0.0)
    tl.store(dx_ptr + at, r / tau, mask=inside)
    if dtau_ptr is not None:
        _store_of_temperature(dtau_ptr, (of_log_p - r * v) / tau, at, n, TAU_AT)


@triton.jit(do_not_specialize=_BIT_COUNTS)
def pull_second_order_of_bits(
    x_ptr, hard_ptr, gs_ptr, dx_ptr, n, x_rows, tau_rows, gs_step,
    X_AT: tl.constexpr, TAU_AT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient in x of `pyro_gumbel.ops.second_order`."""
    at = _bits_here(BLOCK)
    p = _sigmoid_of(_of_bits(x_ptr, at, n, x_rows, X_AT))
    hard = tl.load(hard_ptr + at, mask=at < n, other=0.0).to(tl.float32)
    u = tl.load(gs_ptr + at * gs_step, mask=at < n, other=0.0).to(tl.float32)
    tl.store(dx_ptr + at, 0.5 * tl.abs(hard - p) * u, mask=at < n)


@triton.jit
def _bits_in_density(value_ptr, v_ptr, v_step, x, at, n, OF_VALUES: tl.constexpr):
    """v made finite, where it was, where x is, and which values are impossible."""
    given = tl.load(v_ptr + at * v_step, mask=at < n, other=0.0).to(tl.float32)
    v = _finite_of(given)
    point = tl.abs(x) == INFINITY
    least, most = (0.0, 1.0) if OF_VALUES else (-INFINITY, INFINITY)
    value = tl.load(value_ptr + at, mask=(at < n) & point, other=0.0).to(tl.float32)
    impossible = ((x == -INFINITY) & (value > least)) | ((x == INFINITY) & (value < most))
    return v, v == given, point, impossible


@triton.jit(do_not_specialize=_BIT_COUNTS)
def density_of_bits(
    value_ptr, v_ptr, x_ptr, tau_ptr, log_p_ptr, n, x_rows, tau_rows, v_step,
    OF_VALUES: tl.constexpr, X_AT: tl.constexpr, TAU_AT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """log p(s), or log p(v); -inf for an impossible value."""
    at = _bits_here(BLOCK)
    x, tau = _of_bits(x_ptr, at, n, x_rows, X_AT), _of_bits(tau_ptr, at, n, tau_rows, TAU_AT)
    v, _as_given, point, impossible = _bits_in_density(
        value_ptr, v_ptr, v_step, x, at, n, OF_VALUES
    )
    log_p = tl.log(tau) + _log_slope_of(tl.where(point, 0.0, x) - tau * v)
    if OF_VALUES:
        log_p -= _log_slope_of(v)
    log_p = tl.where(point, tl.where(impossible, -INFINITY, 0.0), log_p)
    tl.store(log_p_ptr + at, log_p, mask=at < n)


@triton.jit(do_not_specialize=_BIT_COUNTS)
def pull_density_of_bits(
    value_ptr, v_ptr, x_ptr, tau_ptr, gl_ptr, dv_ptr, dx_ptr, dtau_ptr,
    n, x_rows, tau_rows, v_step, gl_step,
    OF_VALUES: tl.constexpr, X_AT: tl.constexpr, TAU_AT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of a density in v, x and tau; those that have a pointer."""
    at = _bits_here(BLOCK)
    inside = at < n
    x, tau = _of_bits(x_ptr, at, n, x_rows, X_AT), _of_bits(tau_ptr, at, n, tau_rows, TAU_AT)
    v, as_given, point, _impossible = _bits_in_density(
        value_ptr, v_ptr, v_step, x, at, n, OF_VALUES
    )
    grad = tl.load(gl_ptr + at * gl_step, mask=inside, other=0.0).to(tl.float32)
    grad = tl.where(point, 0.0, grad)
    r = -grad * _tanh_of_half(tl.where(point, 0.0, x) - tau * v)
    if dx_ptr is not None:
        tl.store(dx_ptr + at, r, mask=inside)
    if dv_ptr is not None:
        dv = -tau * r
        if OF_VALUES:
            dv += grad * _tanh_of_half(v)
        tl.store(dv_ptr + at, tl.where(as_given, dv, 0.0), mask=inside)
    if dtau_ptr is not None:
        _store_of_temperature(dtau_ptr, grad / tau - r * v, at, n, TAU_AT)
