# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws and densities of vectors as Triton kernels, each with its backward pass.

Symbols and words as in `pyro_gumbel.kernels.triton_functions`. A program has `ROWS` rows, each a
vector of `K` entries, and takes `BLOCK` columns at a time. Short rows are taken whole: loops over
columns then run once. Longer rows are gone through several times, and their noise is drawn again
each time. An entry is *live* if its logit is not -inf. The others are left out of every sum, and k
counts the live ones. Infinities are masked before they could be subtracted.

**The simplex and the hypersimplex** share kernels. In both v = (z - base) / tau - shift. On the
simplex `base` is the largest z, and `shift` the logarithm of a sum. On the hypersimplex `base` is
the m-th largest z: bisection over integers that are ordered as floats finds it exactly. `shift` is
the root c of `pyro_gumbel.links`, by Newton's method inside of the bracket given there. Of entries
equal to `base` some may be chosen: each then counts as chosen in part.
"""

import triton
import triton.language as tl

from pyro_gumbel.kernels.triton_functions import (
    FLOOR,
    HALF_LOWEST,
    INFINITY,
    LEAST,
    LOG_TINY,
    LOWEST,
    TINY,
    _exp_of,
    _exponential_of_rows,
    _finite_of,
    _log_of,
    _log_sigmoid_of,
    _log_slope_of,
    _own,
    _rows_here,
    _sigmoid_of,
    _slope_of,
    _tanh_of_half,
    _temperature,
)

__all__ = [
    "choose_rows",
    "density_of_rows",
    "draw_rows",
    "pull_density_of_rows",
    "pull_draw_of_rows",
    "pull_second_order_of_rows",
]


# Functions of entries and of rows.


@triton.jit
def _finite_on_simplex(v):
    """v, with what `Link.finite` puts in the place of what stands for -inf."""
    return tl.where(v < FLOOR, LOG_TINY, v)


@triton.jit
def _infinite_of(v, SIMPLEX: tl.constexpr):
    """v, with -inf where it stands for that."""
    if SIMPLEX:
        v = tl.where(v < FLOOR, -INFINITY, v)
    return v


@triton.jit
def _log_gamma(k):
    """log (k - 1)! by Stirling's series at k + 5."""
    y = k + 5
    series = (y - 0.5) * tl.log(y) - y + 0.9189385332046727 + 1 / (12 * y) - 1 / (360 * y * y * y)
    return series - tl.log(k * (k + 1) * (k + 2) * (k + 3) * (k + 4))


@triton.jit
def _constant(count, tau, log_factorial, K: tl.constexpr):
    """log (k-1)! + (k-1) log tau, with k the number of live entries."""
    constant = tl.zeros_like(count) + log_factorial
    if tl.min(tl.min(count, axis=1), axis=0) < K:
        constant = tl.where(count == K, constant, _log_gamma(count))
    return constant + (count - 1) * tl.log(tau)


@triton.jit
def _key_of(z):
    """Integers that are ordered as the floats are."""
    bits = z.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _float_of(key):
    bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _largest_of(z):
    return tl.max(z, axis=1, keep_dims=True)


@triton.jit
def _sum_of_row(z):
    return tl.sum(z, axis=1, keep_dims=True)


# Rows of logits.


@triton.jit
def _logits(x_ptr, x_row, start, K: tl.constexpr, BLOCK: tl.constexpr):
    """A block of logits, -inf beyond the last column."""
    column = start + tl.arange(0, BLOCK)[None, :]
    if K % BLOCK == 0:
        x = tl.load(x_ptr + (x_row * K + column))
    else:
        x = tl.load(x_ptr + (x_row * K + column), mask=column < K, other=-INFINITY)
    return x.to(tl.float32)


@triton.jit
def _top_of_logits(x_ptr, x_row, K: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit of each row."""
    top = tl.zeros_like(x_row).to(tl.float32) - INFINITY
    for start in range(0, K, BLOCK):
        top = tl.maximum(top, _largest_of(_logits(x_ptr, x_row, start, K, BLOCK)))
    return top


@triton.jit
def _below(x, top):
    """x - top, at least the lowest number."""
    return _at_least(x, tl.maximum(top, 0.0) + LOWEST) - top


@triton.jit
def _perturbed_logits(x_ptr, x_row, seed, row, start, top, K: tl.constexpr, BLOCK: tl.constexpr):
    """A block of z, -inf where x is, and its E, 1 there."""
    x = _logits(x_ptr, x_row, start, K, BLOCK)
    live = x != -INFINITY
    e = tl.where(live, _exponential_of_rows(seed, row, start, K, BLOCK), 1.0)
    return tl.where(live, _below(x, top) - _log_of(e), -INFINITY), e


@triton.jit
def _perturbed_alone(x_ptr, x_row, seed, row, start, top, K: tl.constexpr, BLOCK: tl.constexpr):
    z, _e = _perturbed_logits(x_ptr, x_row, seed, row, start, top, K, BLOCK)
    return z


@triton.jit
def _scaled_z(z, base, tau):
    """(z - base) / tau, with the value at infinity where z is -inf or the quotient overflows."""
    below = tl.where(z != -INFINITY, z - base, 0.0)
    overflows = below <= tl.minimum(tau, 1.0) * HALF_LOWEST
    return tl.where(overflows | (z == -INFINITY), -INFINITY, tl.where(overflows, 0.0, below) / tau)


# The functions below get the first block of z, and draw the others again.


@triton.jit
def _largest_of_row(z, x_ptr, x_row, seed, row, top, K: tl.constexpr, BLOCK: tl.constexpr):
    largest = _largest_of(z)
    if K > BLOCK:
        for start in range(BLOCK, K, BLOCK):
            z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
            largest = tl.maximum(largest, _largest_of(z))
    return largest


@triton.jit
def _number_from(key, z, x_ptr, x_row, seed, row, top, K: tl.constexpr, BLOCK: tl.constexpr):
    """How many entries of a row have at least this key."""
    number = tl.zeros_like(key)
    for start in range(0, K, BLOCK):
        if K > BLOCK:
            z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
        number += _sum_of_row((_key_of(z) >= key).to(tl.int32))
    return number


@triton.jit
def _key_of_rank(
    z, x_ptr, x_row, seed, row, top, SIZE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr
):
    """The key of the m-th largest entry, bit by bit."""
    zero = tl.zeros_like(row).to(tl.int32)
    number = _number_from(zero, z, x_ptr, x_row, seed, row, top, K, BLOCK)
    key = tl.where(number >= SIZE, zero, zero - 0x7FFFFFFF - 1)
    for i in range(0, 31):
        higher = key + (1 << (30 - i))
        number = _number_from(higher, z, x_ptr, x_row, seed, row, top, K, BLOCK)
        key = tl.where(number >= SIZE, higher, key)
    return key


@triton.jit
def _about_rank(
    key, z, x_ptr, x_row, seed, row, top,
    SIZE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many entries with this key are chosen, how many there are, and the next smaller entry."""
    above, tied = tl.zeros_like(key), tl.zeros_like(key)
    following = key.to(tl.float32) * 0 - INFINITY
    for start in range(0, K, BLOCK):
        if K > BLOCK:
            z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
        here = _key_of(z)
        above += _sum_of_row((here > key).to(tl.int32))
        tied += _sum_of_row((here == key).to(tl.int32))
        following = tl.maximum(following, _largest_of(tl.where(here < key, z, -INFINITY)))
    return SIZE - above, tied, following


@triton.jit
def _at_least(x, least):
    """The larger of two numbers; NaN if one is NaN, which `tl.maximum` would pass over."""
    return tl.maximum(x, least, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _inverse_of(tau):
    return 1 / tl.maximum(tau, TINY)


@triton.jit
def _scaled_on_simplex(z, base, tau):
    """(z - base) / tau, at least `LEAST`, which stands for -inf."""
    return _at_least((z - base) * _inverse_of(tau), LEAST)


@triton.jit
def _log_total(z, x_ptr, x_row, seed, row, top, base, tau, K: tl.constexpr, BLOCK: tl.constexpr):
    """The shift on the simplex."""
    total = tl.zeros_like(base)
    for start in range(0, K, BLOCK):
        if K > BLOCK:
            z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
        total += _sum_of_row(_exp_of(_scaled_on_simplex(z, base, tau)))
    return _log_of(total)


@triton.jit
def _threshold(
    key, base, z, x_ptr, x_row, seed, row, top, tau,
    SIZE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The shift on the hypersimplex; -inf where only the chosen entries are live."""
    chosen, tied, following = _about_rank(key, z, x_ptr, x_row, seed, row, top, SIZE, K, BLOCK)
    share = chosen.to(tl.float32) / tied.to(tl.float32)
    following = tl.where(chosen < tied, base, following)  # the (m+1)-th largest entry
    alone = following == -INFINITY
    gap = _finite_of(_scaled_z(following, base, tau))
    low = gap - tl.log(base * 0 + SIZE)
    high = tl.log(base * 0 + max(K - SIZE, 1))
    c = (low + high) / 2
    for _ in range(0, 8):  # more than ever needed
        most_held, most_lacked = _log_sigmoid_of(gap - c), _log_sigmoid_of(c)
        held, held_2 = tl.zeros_like(base), tl.zeros_like(base)
        lacked, lacked_2 = tl.zeros_like(base), tl.zeros_like(base)
        for start in range(0, K, BLOCK):
            if K > BLOCK:
                z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
            here = _key_of(z)
            top_part = tl.where(here > key, 1.0, tl.where(here == key, share, 0.0))
            rest_part = tl.where(z == -INFINITY, 0.0, 1 - top_part)
            u = _finite_of(_scaled_z(z, base, tau))
            of_rest = tl.exp(tl.minimum(_log_sigmoid_of(u - c) - most_held, 0.0))
            of_top = tl.exp(tl.minimum(_log_sigmoid_of(c - u) - most_lacked, 0.0))
            held += _sum_of_row(rest_part * of_rest)
            held_2 += _sum_of_row(rest_part * of_rest * of_rest)
            lacked += _sum_of_row(top_part * of_top)
            lacked_2 += _sum_of_row(top_part * of_top * of_top)
        held = tl.where(alone, 1.0, held)
        fall = 1 - tl.exp(most_held) * held_2 / held
        rise = 1 - tl.exp(most_lacked) * lacked_2 / lacked
        step = (most_held + tl.log(held) - most_lacked - tl.log(lacked)) / (fall + rise)
        c = tl.minimum(tl.maximum(c + step, low), high)
    return tl.where(alone, -INFINITY, c)


@triton.jit
def _unconstrained_of(z, base, shift, tau, SIMPLEX: tl.constexpr):
    """v; -inf where z is, and elsewhere inf where the shift is -inf.

    On the simplex numbers below `FLOOR` stand for -inf.
    """
    if SIMPLEX:
        v = _scaled_on_simplex(z, base, tau) - shift
    else:
        v = _scaled_z(z, base, tau)
        alone = shift == -INFINITY
        v = tl.where(alone & (z > -INFINITY), INFINITY, v - tl.where(alone, 0.0, shift))
    return v


@triton.jit
def _log_total_slope(
    z, x_ptr, x_row, seed, row, top, base, shift, tau, K: tl.constexpr, BLOCK: tl.constexpr
):
    """logsumexp(log w) on the hypersimplex."""
    most, total = tl.zeros_like(base) + LOWEST, tl.zeros_like(base)
    for start in range(0, K, BLOCK):
        if K > BLOCK:
            z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
        v = _finite_of(_unconstrained_of(z, base, shift, tau, False))
        most = tl.maximum(most, _largest_of(tl.where(z > -INFINITY, _log_slope_of(v), LOWEST)))
    for start in range(0, K, BLOCK):
        if K > BLOCK:
            z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
        v = _finite_of(_unconstrained_of(z, base, shift, tau, False))
        share = tl.exp(tl.minimum(_log_slope_of(v) - most, 0.0))
        total += _sum_of_row(tl.where(z > -INFINITY, share, 0.0))
    return most + tl.log(total)


@triton.jit
def _base_and_shift(
    z, x_ptr, x_row, seed, row, top, tau,
    SIMPLEX: tl.constexpr, SIZE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`base` and `shift`."""
    if SIMPLEX:
        base = _largest_of_row(z, x_ptr, x_row, seed, row, top, K, BLOCK)
        shift = _log_total(z, x_ptr, x_row, seed, row, top, base, tau, K, BLOCK)
    else:
        key = _key_of_rank(z, x_ptr, x_row, seed, row, top, SIZE, K, BLOCK)
        base = _float_of(key)
        shift = _threshold(key, base, z, x_ptr, x_row, seed, row, top, tau, SIZE, K, BLOCK)
    return base, shift


# Draws of vectors.


_ROW_COUNTS = ["n", "x_rows", "tau_rows"]


@triton.jit(do_not_specialize=_ROW_COUNTS)
def draw_rows(
    x_ptr, tau_ptr, seed_ptr, s_ptr, v_ptr, log_p_ptr, parts_ptr, n, x_rows, tau_rows,
    log_factorial,
    X_AT: tl.constexpr, TAU_AT: tl.constexpr, SIMPLEX: tl.constexpr, SIZE: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """s, v and log p(s) of a draw, those that have a pointer.

    :param parts_ptr: None, or where `base` and `shift` of all rows go.
    """
    row, seed = _rows_here(ROWS), tl.load(seed_ptr)
    x_row = _own(tl.minimum(row, n - 1), x_rows, X_AT)
    tau = _temperature(tau_ptr, row, n, tau_rows, TAU_AT)
    top = _top_of_logits(x_ptr, x_row, K, BLOCK)
    z, e = _perturbed_logits(x_ptr, x_row, seed, row, 0, top, K, BLOCK)
    base, shift = _base_and_shift(z, x_ptr, x_row, seed, row, top, tau, SIMPLEX, SIZE, K, BLOCK)
    if parts_ptr is not None:
        tl.store(parts_ptr + row, base, mask=row < n)
        tl.store(parts_ptr + (n + row), shift, mask=row < n)
    count, sum_e, terms = tl.zeros_like(base), tl.zeros_like(base), tl.zeros_like(base)
    for start in range(0, K, BLOCK):
        if K > BLOCK:
            z, e = _perturbed_logits(x_ptr, x_row, seed, row, start, top, K, BLOCK)
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < n) & (column < K)
        v = _unconstrained_of(z, base, shift, tau, SIMPLEX)
        if s_ptr is not None:
            s = _exp_of(v) if SIMPLEX else _sigmoid_of(v)
            tl.store(s_ptr + (row * K + column), s, mask=inside)
        if v_ptr is not None:
            tl.store(v_ptr + (row * K + column), _infinite_of(v, SIMPLEX), mask=inside)
        if log_p_ptr is not None:
            live = z != -INFINITY
            count += _sum_of_row(live.to(tl.float32))
            sum_e += _sum_of_row(tl.where(live, e, 0.0))
            log_w = _finite_on_simplex(v) if SIMPLEX else _log_slope_of(_finite_of(v))
            terms += _sum_of_row(tl.where(live, _log_of(e) - log_w, 0.0))
    if log_p_ptr is not None:
        log_p = _constant(count, tau, log_factorial, K) + terms - count * _log_of(sum_e)
        if not SIMPLEX:
            log_p += _log_total_slope(z, x_ptr, x_row, seed, row, top, base, shift, tau, K, BLOCK)
            log_p = tl.where(count == SIZE, 0.0, log_p)
        tl.store(log_p_ptr + row, log_p, mask=row < n)


@triton.jit(do_not_specialize=_ROW_COUNTS)
def choose_rows(
    x_ptr, tau_ptr, seed_ptr, hard_ptr, parts_ptr, n, x_rows, tau_rows,
    X_AT: tl.constexpr, TAU_AT: tl.constexpr, SIMPLEX: tl.constexpr, SIZE: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The hard value of a draw: 1 at its m largest z, of equal ones at the first."""
    row, seed = _rows_here(ROWS), tl.load(seed_ptr)
    x_row = _own(tl.minimum(row, n - 1), x_rows, X_AT)
    top = _top_of_logits(x_ptr, x_row, K, BLOCK)
    z = _perturbed_alone(x_ptr, x_row, seed, row, 0, top, K, BLOCK)
    if SIMPLEX:
        _choose_largest(z, hard_ptr, x_ptr, x_row, seed, row, top, n, K, BLOCK)
    else:
        key = _key_of_rank(z, x_ptr, x_row, seed, row, top, SIZE, K, BLOCK)
        if parts_ptr is not None:
            tau = _temperature(tau_ptr, row, n, tau_rows, TAU_AT)
            base = _float_of(key)
            shift = _threshold(key, base, z, x_ptr, x_row, seed, row, top, tau, SIZE, K, BLOCK)
            tl.store(parts_ptr + row, base, mask=row < n)
            tl.store(parts_ptr + (n + row), shift, mask=row < n)
        _choose_from(key, z, hard_ptr, x_ptr, x_row, seed, row, top, n, SIZE, K, BLOCK)


@triton.jit
def _choose_largest(
    z, hard_ptr, x_ptr, x_row, seed, row, top, n, K: tl.constexpr, BLOCK: tl.constexpr
):
    """Store 1 at the largest entry of each row, of equal ones at the first, and 0 elsewhere."""
    largest, at = _largest_of(z), tl.zeros_like(row).to(tl.int32) + K
    column = tl.arange(0, BLOCK)[None, :]
    at = tl.min(tl.where(z == largest, column, K), axis=1, keep_dims=True)
    if K > BLOCK:
        for start in range(BLOCK, K, BLOCK):
            z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
            here = _largest_of(z)
            first = tl.min(tl.where(z == here, start + column, K), axis=1, keep_dims=True)
            at = tl.where(here > largest, first, at)
            largest = tl.maximum(largest, here)
    for start in range(0, K, BLOCK):
        chosen = (start + column == at).to(tl.float32)
        inside = (row < n) & (start + column < K)
        tl.store(hard_ptr + (row * K + start + column), chosen, mask=inside)


@triton.jit
def _choose_from(
    key, z, hard_ptr, x_ptr, x_row, seed, row, top, n,
    SIZE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store 1 at the entries above a key and, until there are m, at those that have it."""
    wanted, _tied, _following = _about_rank(key, z, x_ptr, x_row, seed, row, top, SIZE, K, BLOCK)
    for start in range(0, K, BLOCK):
        if K > BLOCK:
            z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
        column = start + tl.arange(0, BLOCK)[None, :]
        here = _key_of(z)
        equal = (here == key).to(tl.int32)
        chosen = (here > key) | ((here == key) & (tl.cumsum(equal, axis=1) <= wanted))
        wanted -= _sum_of_row(equal)
        inside = (row < n) & (column < K)
        tl.store(hard_ptr + (row * K + column), chosen.to(tl.float32), mask=inside)


@triton.jit
def _gradient_of_rows(
    grad_ptr, grad_row, grad_column, row, start, n, K: tl.constexpr, BLOCK: tl.constexpr
):
    """A block of a gradient that comes in, with any strides."""
    column = start + tl.arange(0, BLOCK)[None, :]
    at = row * grad_row + column.to(tl.int64) * grad_column
    return tl.load(grad_ptr + at, mask=(row < n) & (column < K), other=0.0).to(tl.float32)


@triton.jit
def _value_before_pull(
    z, x_ptr, x_row, s_ptr, row, base, shift, tau, total_slope, start, n,
    SIMPLEX: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """w, omega, h, v (0 where it is infinite), and which entries have a gradient.

    On the simplex from s alone, if it is given; then v is of no use.
    """
    if s_ptr is not None:
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < n) & (column < K)
        w = tl.load(s_ptr + (row * K + column), mask=inside, other=0.0).to(tl.float32)
        # Only where s is 0 may the logit be -inf.
        x = tl.load(x_ptr + (x_row * K + column), mask=inside & (w == 0), other=0.0).to(tl.float32)
        live = (column < K) & (x != -INFINITY)
        omega, h, v = w, w * 0 + 1, w * 0
    else:
        v = _unconstrained_of(z, base, shift, tau, SIMPLEX)
        live = (v >= FLOOR) if SIMPLEX else (v > -INFINITY) & (v < INFINITY)
        v = tl.where(live, v, 0.0)
        if SIMPLEX:
            w = tl.where(live, _exp_of(v), 0.0)
            omega, h = w, w * 0 + 1
        else:
            w = tl.where(live, _slope_of(v), 0.0)
            omega = tl.where(live, tl.exp(tl.minimum(_log_slope_of(v) - total_slope, 0.0)), 0.0)
            h = -_tanh_of_half(v)
    return w, omega, h, v, live


@triton.jit
def _pull_block(
    z, x_ptr, x_row, s_ptr, row, base, shift, tau, total_slope, of_log_p,
    gs_ptr, gs_row, gs_column, gv_ptr, gv_row, gv_column, start, n,
    SIMPLEX: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """u, omega and v of a block, and which entries have a gradient."""
    w, omega, h, v, live = _value_before_pull(
        z, x_ptr, x_row, s_ptr, row, base, shift, tau, total_slope, start, n, SIMPLEX, K, BLOCK
    )
    u = of_log_p * (omega - 1) * h
    if gs_ptr is not None:
        u += w * _gradient_of_rows(gs_ptr, gs_row, gs_column, row, start, n, K, BLOCK)
    if gv_ptr is not None:
        u += _gradient_of_rows(gv_ptr, gv_row, gv_column, row, start, n, K, BLOCK)
    return tl.where(live, u, 0.0), omega, v, live


@triton.jit(do_not_specialize=_ROW_COUNTS)
def pull_draw_of_rows(
    x_ptr, tau_ptr, seed_ptr, s_ptr, parts_ptr, gs_ptr, gv_ptr, gl_ptr, dx_ptr, dtau_ptr,
    n, x_rows, tau_rows, gs_row, gs_column, gv_row, gv_column, gl_row,
    X_AT: tl.constexpr, TAU_AT: tl.constexpr, SIMPLEX: tl.constexpr, SIZE: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients in x and tau, for each row, of a draw or of a hard value.

    :param s_ptr: None if noise and value are to be found again. The gradient in tau needs that.
    :param gs_ptr: with gv_ptr and gl_ptr the gradients in s, v and log p(s), or None.
    """
    row = _rows_here(ROWS)
    x_row = _own(tl.minimum(row, n - 1), x_rows, X_AT)
    tau = _temperature(tau_ptr, row, n, tau_rows, TAU_AT)
    nothing = tl.zeros((ROWS, 1), tl.float32)
    z = tl.zeros((ROWS, BLOCK), tl.float32)
    seed, top, base, shift, total_slope = 0, nothing, nothing, nothing, nothing
    if s_ptr is None:
        seed = tl.load(seed_ptr)
        top = _top_of_logits(x_ptr, x_row, K, BLOCK)
        z = _perturbed_alone(x_ptr, x_row, seed, row, 0, top, K, BLOCK)
        if parts_ptr is None:
            base, shift = _base_and_shift(
                z, x_ptr, x_row, seed, row, top, tau, SIMPLEX, SIZE, K, BLOCK
            )
        else:
            base = tl.load(parts_ptr + row, mask=row < n, other=0.0)
            shift = tl.load(parts_ptr + (n + row), mask=row < n, other=0.0)
        if not SIMPLEX:
            total_slope = _log_total_slope(
                z, x_ptr, x_row, seed, row, top, base, shift, tau, K, BLOCK
            )
    of_log_p = nothing
    if gl_ptr is not None:
        of_log_p = tl.load(gl_ptr + row * gl_row, mask=row < n, other=0.0).to(tl.float32)
    u, omega, v, live = _pull_block(
        z, x_ptr, x_row, s_ptr, row, base, shift, tau, total_slope, of_log_p,
        gs_ptr, gs_row, gs_column, gv_ptr, gv_row, gv_column, 0, n, SIMPLEX, K, BLOCK,
    )  # fmt: skip
    sum_u, count, sum_rv = _sum_of_row(u), _sum_of_row(live.to(tl.float32)), nothing
    if K > BLOCK:
        for start in range(BLOCK, K, BLOCK):
            if s_ptr is None:
                z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
            u, omega, v, live = _pull_block(
                z, x_ptr, x_row, s_ptr, row, base, shift, tau, total_slope, of_log_p,
                gs_ptr, gs_row, gs_column, gv_ptr, gv_row, gv_column, start, n, SIMPLEX, K, BLOCK,
            )  # fmt: skip
            sum_u += _sum_of_row(u)
            count += _sum_of_row(live.to(tl.float32))
    for start in range(0, K, BLOCK):
        if K > BLOCK:
            if s_ptr is None:
                z = _perturbed_alone(x_ptr, x_row, seed, row, start, top, K, BLOCK)
            u, omega, v, live = _pull_block(
                z, x_ptr, x_row, s_ptr, row, base, shift, tau, total_slope, of_log_p,
                gs_ptr, gs_row, gs_column, gv_ptr, gv_row, gv_column, start, n, SIMPLEX, K, BLOCK,
            )  # fmt: skip
        r = tl.where(live, u - omega * sum_u, 0.0)
        column = start + tl.arange(0, BLOCK)[None, :]
        tl.store(dx_ptr + (row * K + column), r * _inverse_of(tau), mask=(row < n) & (column < K))
        sum_rv += _sum_of_row(r * v)
    if dtau_ptr is not None:
        degrees = tl.maximum(count - 1, 0.0)
        dtau = (of_log_p * degrees - sum_rv) * _inverse_of(tau)
        tl.store(dtau_ptr + row, dtau, mask=row < n)


@triton.jit(do_not_specialize=_ROW_COUNTS)
def pull_second_order_of_rows(
    x_ptr, hard_ptr, gs_ptr, dx_ptr, n, x_rows, tau_rows, gs_row, gs_column,
    X_AT: tl.constexpr, TAU_AT: tl.constexpr, SIMPLEX: tl.constexpr, SIZE: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient in x, for each row, of `pyro_gumbel.ops.second_order`."""
    row = _rows_here(ROWS)
    x_row = _own(tl.minimum(row, n - 1), x_rows, X_AT)
    top = _top_of_logits(x_ptr, x_row, K, BLOCK)
    total, of_chosen, of_mean = tl.zeros_like(top), tl.zeros_like(top), tl.zeros_like(top)
    for start in range(0, K, BLOCK):
        x = _logits(x_ptr, x_row, start, K, BLOCK)
        weight = tl.where(x != -INFINITY, tl.exp(_below(x, top)), 0.0)
        u = _gradient_of_rows(gs_ptr, gs_row, gs_column, row, start, n, K, BLOCK)
        hard = _gradient_of_rows(hard_ptr, K, 1, row, start, n, K, BLOCK)
        total += _sum_of_row(weight)
        of_chosen += _sum_of_row(hard * u)
        of_mean += _sum_of_row(weight * u)
    of_mean /= total
    for start in range(0, K, BLOCK):
        x = _logits(x_ptr, x_row, start, K, BLOCK)
        p = tl.where(x != -INFINITY, tl.exp(_below(x, top)), 0.0) / total
        u = _gradient_of_rows(gs_ptr, gs_row, gs_column, row, start, n, K, BLOCK)
        hard = _gradient_of_rows(hard_ptr, K, 1, row, start, n, K, BLOCK)
        dx = 0.5 * (p * (u - of_chosen) + hard * (of_chosen - of_mean))
        column = start + tl.arange(0, BLOCK)[None, :]
        tl.store(dx_ptr + (row * K + column), dx, mask=(row < n) & (column < K))


# Densities of vectors.


@triton.jit
def _value_in_density(
    value_ptr, v_ptr, v_row, v_column, x_ptr, x_row, top, tau, row, start, n,
    OF_VALUES: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d up to a constant, v made finite, where it was, where live, and where impossible."""
    x = _logits(x_ptr, x_row, start, K, BLOCK)
    live = x != -INFINITY
    column = start + tl.arange(0, BLOCK)[None, :]
    inside = (row < n) & (column < K)
    at = row * v_row + column.to(tl.int64) * v_column
    given = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
    v = _finite_of(given)
    least = 0.0 if OF_VALUES else -INFINITY
    value = tl.load(value_ptr + (row * K + column), mask=inside & ~live, other=least)
    impossible = inside & ~live & (value.to(tl.float32) > least)
    d = tl.where(live, _below(x, top), 0.0) - tau * v
    return d, v, v == given, live, impossible


@triton.jit
def _parts_of_density(
    value_ptr, v_ptr, v_row, v_column, x_ptr, x_row, top, tau, row, n,
    OF_VALUES: tl.constexpr, SIMPLEX: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest d, the sum of exp(d), the total slope, k, and whether the value is impossible."""
    none = tl.zeros_like(tau) + tl.zeros_like(row).to(tl.float32)
    most, most_w = none + LOWEST, none + LOWEST
    total, total_w, count, bad = none, none, none, none
    for start in range(0, K, BLOCK):
        d, v, _as_given, live, impossible = _value_in_density(
            value_ptr, v_ptr, v_row, v_column, x_ptr, x_row, top, tau, row, start, n,
            OF_VALUES, K, BLOCK,
        )  # fmt: skip
        most = tl.maximum(most, _largest_of(tl.where(live, d, LOWEST)))
        count += _sum_of_row(live.to(tl.float32))
        bad += _sum_of_row(impossible.to(tl.float32))
        if not SIMPLEX:
            most_w = tl.maximum(most_w, _largest_of(tl.where(live, _log_slope_of(v), LOWEST)))
    for start in range(0, K, BLOCK):
        d, v, _as_given, live, _impossible = _value_in_density(
            value_ptr, v_ptr, v_row, v_column, x_ptr, x_row, top, tau, row, start, n,
            OF_VALUES, K, BLOCK,
        )  # fmt: skip
        total += _sum_of_row(tl.where(live, tl.exp(tl.minimum(d - most, 0.0)), 0.0))
        if not SIMPLEX:
            share = tl.exp(tl.minimum(_log_slope_of(v) - most_w, 0.0))
            total_w += _sum_of_row(tl.where(live, share, 0.0))
    slope = none
    if not SIMPLEX:
        slope = most_w + tl.log(total_w)
    return most, total, slope, count, bad > 0


@triton.jit(do_not_specialize=_ROW_COUNTS)
def density_of_rows(
    value_ptr, v_ptr, x_ptr, tau_ptr, log_p_ptr, n, x_rows, tau_rows, v_row, v_column,
    log_factorial,
    OF_VALUES: tl.constexpr, X_AT: tl.constexpr, TAU_AT: tl.constexpr, SIMPLEX: tl.constexpr,
    SIZE: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """log p(s), or log p(v); -inf for an impossible value."""
    row = _rows_here(ROWS)
    x_row = _own(tl.minimum(row, n - 1), x_rows, X_AT)
    tau = _temperature(tau_ptr, row, n, tau_rows, TAU_AT)
    top = _top_of_logits(x_ptr, x_row, K, BLOCK)
    most, total, slope, count, bad = _parts_of_density(
        value_ptr, v_ptr, v_row, v_column, x_ptr, x_row, top, tau, row, n,
        OF_VALUES, SIMPLEX, K, BLOCK,
    )  # fmt: skip
    terms = tl.zeros_like(total)
    for start in range(0, K, BLOCK):
        d, v, _as_given, live, _impossible = _value_in_density(
            value_ptr, v_ptr, v_row, v_column, x_ptr, x_row, top, tau, row, start, n,
            OF_VALUES, K, BLOCK,
        )  # fmt: skip
        d -= most
        if OF_VALUES:
            d -= v if SIMPLEX else _log_slope_of(v)
        terms += _sum_of_row(tl.where(live, d, 0.0))
    log_p = _constant(count, tau, log_factorial, K) + terms - count * tl.log(total) + slope
    if not SIMPLEX:
        log_p = tl.where(count == SIZE, 0.0, log_p)
    log_p = tl.where(bad, -INFINITY, log_p)
    tl.store(log_p_ptr + row, log_p, mask=row < n)


@triton.jit(do_not_specialize=_ROW_COUNTS)
def pull_density_of_rows(
    value_ptr, v_ptr, x_ptr, tau_ptr, gl_ptr, dv_ptr, dx_ptr, dtau_ptr,
    n, x_rows, tau_rows, v_row, v_column, gl_row,
    OF_VALUES: tl.constexpr, X_AT: tl.constexpr, TAU_AT: tl.constexpr, SIMPLEX: tl.constexpr,
    SIZE: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of a density in v, x and tau, for each row; those that have a pointer."""
    row = _rows_here(ROWS)
    x_row = _own(tl.minimum(row, n - 1), x_rows, X_AT)
    tau = _temperature(tau_ptr, row, n, tau_rows, TAU_AT)
    top = _top_of_logits(x_ptr, x_row, K, BLOCK)
    most, total, slope, count, bad = _parts_of_density(
        value_ptr, v_ptr, v_row, v_column, x_ptr, x_row, top, tau, row, n,
        OF_VALUES, SIMPLEX, K, BLOCK,
    )  # fmt: skip
    grad = tl.load(gl_ptr + row * gl_row, mask=row < n, other=0.0).to(tl.float32)
    grad = tl.where(bad, 0.0, grad)
    if not SIMPLEX:
        grad = tl.where(count == SIZE, 0.0, grad)
    sum_rv = tl.zeros_like(total)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < n) & (column < K)
        d, v, as_given, live, _impossible = _value_in_density(
            value_ptr, v_ptr, v_row, v_column, x_ptr, x_row, top, tau, row, start, n,
            OF_VALUES, K, BLOCK,
        )  # fmt: skip
        p = tl.exp(tl.minimum(d - most, 0.0)) / total
        r = tl.where(live, grad * (1 - count * p), 0.0)
        if dx_ptr is not None:
            tl.store(dx_ptr + (row * K + column), r, mask=inside)
        if dv_ptr is not None:
            dv = -tau * r
            if SIMPLEX:
                if OF_VALUES:
                    dv -= grad
            else:
                omega = tl.exp(tl.minimum(_log_slope_of(v) - slope, 0.0))
                dv += grad * ((1.0 if OF_VALUES else 0.0) - omega) * _tanh_of_half(v)
            tl.store(dv_ptr + (row * K + column), tl.where(live & as_given, dv, 0.0), mask=inside)
        sum_rv += _sum_of_row(r * v)
    if dtau_ptr is not None:
        degrees = tl.maximum(count - 1, 0.0)
        tl.store(dtau_ptr + row, grad * degrees / tau - sum_rv, mask=row < n)
