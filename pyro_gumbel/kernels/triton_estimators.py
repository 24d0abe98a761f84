# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The gradients of `straight_through`, `reinmax` and `gapped` as Triton kernels.

They are closed forms of the logits x, the temperature tau, the hard value D and the gradient u that
comes in. Symbols as in `pyro_gumbel.estimators`, which has the formulas. With y = x, for `gapped`
with the moved logits, v = y / tau, S = softmax(v) and :math:`J(S) u = S (u - \langle S, u \rangle)`
the gradients in x and tau are

.. math:: J(S) \, u / \tau, \qquad -\langle J(S) \, u, v \rangle / \tau.

That of `reinmax` is, with p = softmax(x), S = softmax(x / tau) and the middle (S + D) / 2 of both,

.. math::
    2 J\bigl(\tfrac{1}{2} (S + D)\bigr) u - \tfrac{1}{2} J(p) \, u
    = (S + D) \bigl(u - \tfrac{1}{2} \langle S + D, u \rangle\bigr)
    - \tfrac{1}{2} p \, (u - \langle p, u \rangle).

For bits S = sigmoid(v) and J(S) u = S (1 - S) u.
"""

import triton
import triton.language as tl

from pyro_gumbel.kernels.triton_bits import (
    _of_bits,
    _store_of_temperature,
)
from pyro_gumbel.kernels.triton_functions import (
    INFINITY,
    _bits_here,
    _own,
    _rows_here,
    _sigmoid_of,
    _slope_of,
    _temperature,
)
from pyro_gumbel.kernels.triton_rao import _over_tau
from pyro_gumbel.kernels.triton_rows import (
    _below,
    _gradient_of_rows,
    _logits,
    _sum_of_row,
    _top_of_logits,
)

__all__ = [
    "GAPPED",
    "REINMAX",
    "STRAIGHT_THROUGH",
    "pull_closed_form_of_bits",
    "pull_closed_form_of_rows",
]

STRAIGHT_THROUGH = tl.constexpr(0)
REINMAX = tl.constexpr(1)
GAPPED = tl.constexpr(2)


@triton.jit
def _closed_form_block(
    x_ptr, x_row, hard_ptr, gs_ptr, gs_row, gs_column, row, start, top, tau, gap, n,
    FORM: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of a block the weights of S and of p, v, D and u."""
    x = _logits(x_ptr, x_row, start, K, BLOCK)
    live = x != -INFINITY
    y = tl.where(live, _below(x, top), 0.0)
    u = _gradient_of_rows(gs_ptr, gs_row, gs_column, row, start, n, K, BLOCK)
    hard = _gradient_of_rows(hard_ptr, K, 1, row, start, n, K, BLOCK)
    of_p = tl.where(live, tl.exp(y), 0.0)
    if FORM == GAPPED:
        y = tl.where(hard > 0, 0.0, tl.minimum(y, -gap))
    v = _over_tau(y, tau)
    return tl.where(live, tl.exp(v), 0.0), of_p, v, hard, u


@triton.jit(do_not_specialize=["n", "x_rows", "tau_rows"])
def pull_closed_form_of_rows(
    x_ptr, tau_ptr, hard_ptr, gs_ptr, dx_ptr, dtau_ptr,
    n, x_rows, tau_rows, gap, gs_row, gs_column,
    FORM: tl.constexpr, X_AT: tl.constexpr, TAU_AT: tl.constexpr, SIMPLEX: tl.constexpr,
    SIZE: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients in x and tau, for each row, of one-hot vectors."""
    row = _rows_here(ROWS)
    x_row = _own(tl.minimum(row, n - 1), x_rows, X_AT)
    tau = _temperature(tau_ptr, row, n, tau_rows, TAU_AT)
    top = _top_of_logits(x_ptr, x_row, K, BLOCK)
    total, mean, total_p, mean_p, of_chosen = top * 0, top * 0, top * 0, top * 0, top * 0
    for start in range(0, K, BLOCK):
        weight, of_p, v, hard, u = _closed_form_block(
            x_ptr, x_row, hard_ptr, gs_ptr, gs_row, gs_column, row, start, top, tau, gap, n,
            FORM, K, BLOCK,
        )  # fmt: skip
        total += _sum_of_row(weight)
        mean += _sum_of_row(weight * u)
        total_p += _sum_of_row(of_p)
        mean_p += _sum_of_row(of_p * u)
        of_chosen += _sum_of_row(hard * u)
    total = tl.maximum(total, 1.0)  # it is less beyond the last row alone
    mean, mean_p, sum_rv = mean / total, mean_p / total_p, top * 0
    for start in range(0, K, BLOCK):
        weight, of_p, v, hard, u = _closed_form_block(
            x_ptr, x_row, hard_ptr, gs_ptr, gs_row, gs_column, row, start, top, tau, gap, n,
            FORM, K, BLOCK,
        )  # fmt: skip
        s = weight / total
        if FORM == REINMAX:
            dx = (s + hard) * (u - 0.5 * (mean + of_chosen)) - 0.5 * (of_p / total_p) * (u - mean_p)
        else:
            r = s * (u - mean)
            sum_rv += _sum_of_row(r * v)
            dx = r / tau
        column = start + tl.arange(0, BLOCK)[None, :]
        tl.store(dx_ptr + (row * K + column), dx, mask=(row < n) & (column < K))
    if dtau_ptr is not None:
        tl.store(dtau_ptr + row, -sum_rv / tau, mask=row < n)


@triton.jit(do_not_specialize=["x_rows", "tau_rows"])
def pull_closed_form_of_bits(
    x_ptr, tau_ptr, hard_ptr, gs_ptr, dx_ptr, dtau_ptr,
    n, x_rows, tau_rows, gap, gs_step,
    FORM: tl.constexpr, X_AT: tl.constexpr, TAU_AT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients in x and tau of bits."""
    at = _bits_here(BLOCK)
    x, tau = _of_bits(x_ptr, at, n, x_rows, X_AT), _of_bits(tau_ptr, at, n, tau_rows, TAU_AT)
    moves = tl.abs(x) < INFINITY
    x = tl.where(moves, x, 0.0)
    hard = tl.load(hard_ptr + at, mask=at < n, other=0.0).to(tl.float32)
    u = tl.load(gs_ptr + at * gs_step, mask=at < n, other=0.0).to(tl.float32)
    u = tl.where(moves, u, 0.0)
    y = x
    if FORM == GAPPED:
        y = tl.where(hard > 0, tl.maximum(x, gap), tl.minimum(x, -gap))
    size = -_over_tau(-tl.abs(y), tau)
    v = tl.where(y >= 0, size, -size)
    if FORM == REINMAX:
        middle = 0.5 * (_sigmoid_of(v) + hard)
        dx = (2 * middle * (1 - middle) - 0.5 * _slope_of(x)) * u
        r = u * 0
    else:
        r = u * _slope_of(v)
        dx = r / tau
    tl.store(dx_ptr + at, dx, mask=at < n)
    if dtau_ptr is not None:
        _store_of_temperature(dtau_ptr, -r * v / tau, at, n, TAU_AT)
