# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The gradient of `gumbel_rao` as Triton kernels: noise given the hard value, drawn and used.

The surrogate is the mean of n relaxed values, whose perturbed logits z are drawn given the hard
value D. Symbols as in `pyro_gumbel.ops.noise`, which derives z, and in
`pyro_gumbel.kernels.triton_functions`. A program goes through the n samples one after another, and
adds up their gradients. So nothing of a sample is stored.

**Vectors.** With independent Exponential(1) variates :math:`E_i`, the waiting time of the chosen
category D is :math:`e_D = E_D / Z`, with Z the sum of all :math:`e^{x_i}`, and that of another is
:math:`e_i = e_D + E_i e^{-x_i}`. Only differences of :math:`z = -\log e` matter. With
:math:`p_i = e^{x_i} / Z` and the sigmoid :math:`\sigma` they are

.. math::
    z_i - z_D = -\log \frac{E_D / Z + E_i e^{-x_i}}{E_D / Z}
    = -\log \Bigl(1 + \frac{E_i}{E_D \, p_i}\Bigr)
    = \log \sigma(\log p_i + \log E_D - \log E_i).

This is right for small and for large probabilities, of D and of others, since all stay logarithms.
The largest z is that of D, so that softmax(z / tau) needs no search for it.

**Bits.** Let s be 1 where D = 1, else -1. With logistic variates L,

.. math::
    s z = \operatorname{softplus}(\operatorname{softplus}(s x) + L)
    = -\log \sigma(\log \sigma(-s x) - L).

**Gradients.** With u the gradient in the surrogate, S a relaxed value, v = (z - z_D) / tau of
vectors and v = z / tau of bits, each sample has

.. math::
    r = S \odot (u - \langle S, u \rangle) \text{ for vectors,} \qquad
    r = S (1 - S) \, u \text{ for bits,}

and its gradients are :math:`r / \tau` in x and :math:`-\langle r, v \rangle / \tau` in tau, because
the noise is held constant.

**Variates.** The noise that chose D must not be used again. The noise of a draw has the rows
0, ..., n_rows - 1. That of sample j has the n_rows rows from j n_rows on, for j = 1, ..., n.
The same holds for pairs of bits.
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
    _exp_of,
    _exponential_of_rows,
    _log_of,
    _log_sigmoid_of,
    _logistic_of_bits,
    _own,
    _rows_here,
    _slope_of,
    _temperature,
)
from pyro_gumbel.kernels.triton_rows import (
    _below,
    _gradient_of_rows,
    _largest_of,
    _logits,
    _sum_of_row,
)

__all__ = ["pull_rao_of_bits", "pull_rao_of_rows"]

FLAT = tl.constexpr(-200.0)  # v of a category whose relaxed value is 0


@triton.jit
def _over_tau(log_sigmoid, tau):
    """log sigmoid / tau, but not below `FLAT`: the quotient might overflow."""
    return tl.maximum(log_sigmoid, tau * FLAT) / tau


@triton.jit(do_not_specialize=["n", "x_rows", "tau_rows"])
def pull_rao_of_rows(
    x_ptr, tau_ptr, seed_ptr, hard_ptr, gs_ptr, dx_ptr, dtau_ptr,
    n, x_rows, tau_rows, gs_row, gs_column,
    SAMPLES: tl.constexpr, X_AT: tl.constexpr, TAU_AT: tl.constexpr, SIMPLEX: tl.constexpr,
    SIZE: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients in x and tau, for each row, of one-hot vectors; a row is one block."""
    row, seed = _rows_here(ROWS), tl.load(seed_ptr)
    tau = _temperature(tau_ptr, row, n, tau_rows, TAU_AT)
    x = _logits(x_ptr, _own(tl.minimum(row, n - 1), x_rows, X_AT), 0, K, BLOCK)
    live = (x > -INFINITY) & (_sum_of_row((x != x).to(tl.float32)) == 0)  # no row with a NaN
    x = tl.where(live, _below(x, _largest_of(x)), 0.0)
    log_p = x - tl.log(_sum_of_row(tl.where(live, tl.exp(x), 0.0)))
    u = _gradient_of_rows(gs_ptr, gs_row, gs_column, row, 0, n, K, BLOCK)
    chosen = _gradient_of_rows(hard_ptr, K, 1, row, 0, n, K, BLOCK) > 0
    sum_r, sum_rv, noise_row = log_p * 0, log_p * 0, row
    for _ in range(0, SAMPLES):
        noise_row += n
        log_e = _log_of(_exponential_of_rows(seed, noise_row, 0, K, BLOCK))
        of_chosen = _sum_of_row(tl.where(chosen, log_e, 0.0))
        v = _over_tau(_log_sigmoid_of(log_p + (of_chosen - log_e)), tau)
        v = tl.where(chosen, 0.0, v)
        weight = tl.where(live, _exp_of(v), 0.0)
        share = 1 / tl.maximum(_sum_of_row(weight), 1.0)  # it is less beyond the last row alone
        r = weight * share * (u - _sum_of_row(weight * u) * share)
        sum_r += r
        sum_rv += r * v
    column = tl.arange(0, BLOCK)[None, :]
    dx = tl.where(live, sum_r / (tau * SAMPLES), 0.0)
    tl.store(dx_ptr + (row * K + column), dx, mask=(row < n) & (column < K))
    if dtau_ptr is not None:
        tl.store(dtau_ptr + row, -_sum_of_row(sum_rv) / (tau * SAMPLES), mask=row < n)


@triton.jit(do_not_specialize=["x_rows", "tau_rows"])
def pull_rao_of_bits(
    x_ptr, tau_ptr, seed_ptr, hard_ptr, gs_ptr, dx_ptr, dtau_ptr,
    n, x_rows, tau_rows, gs_step,
    SAMPLES: tl.constexpr, X_AT: tl.constexpr, TAU_AT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients in x and tau of bits."""
    at, seed = _bits_here(BLOCK), tl.load(seed_ptr)
    x, tau = _of_bits(x_ptr, at, n, x_rows, X_AT), _of_bits(tau_ptr, at, n, tau_rows, TAU_AT)
    moves = tl.abs(x) < INFINITY
    u = tl.load(gs_ptr + at * gs_step, mask=at < n, other=0.0).to(tl.float32)
    u = tl.where(moves, u, 0.0)
    hard = tl.load(hard_ptr + at, mask=at < n, other=0.0).to(tl.float32)
    side = 2 * hard - 1
    log_q = _log_sigmoid_of(-side * tl.where(moves, x, 0.0))
    sum_r, sum_rv = u * 0, u * 0
    before = tl.zeros((1,), tl.int64)
    for _ in range(0, SAMPLES):
        before += n // 2 + n % 2
        v = -_over_tau(_log_sigmoid_of(log_q - _logistic_of_bits(seed, BLOCK, before)), tau)
        r = u * _slope_of(v)
        sum_r += r
        sum_rv += r * v
    tl.store(dx_ptr + at, sum_r / (tau * SAMPLES), mask=at < n)
    if dtau_ptr is not None:
        _store_of_temperature(dtau_ptr, -side * sum_rv / (tau * SAMPLES), at, n, TAU_AT)
