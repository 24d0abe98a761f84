# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What the Triton kernels share: launch parameters, functions of numbers, noise.

The kernels are the formulas of `pyro_gumbel.kernels.formulas`. Symbols as there: logits x,
temperature tau, value s, value in logit space v, slope w, weights omega, h = d log w / dv. All is
computed in float32. `triton_rows` has the kernels of vectors and `triton_bits` those of bits;
`triton_estimators` and `triton_rao` have the backward passes of more estimators.

Rows of the parameters are fewer than those of a draw where there are samples or an expanded batch;
`_own` says which one a row has. Offsets are 64 bits wide.

**Noise.** Each pair of columns has a counter, and Philox turns seed and counter into two times 64
random bits. The sign of the first 32 says which half of (0, 1) the variate U is in; the other 63
are its distance m from the nearer end, to full relative precision down to 2^-65. Then E = -log U is
-log(m) or -log(1 - m), and the logistic variate is log(m) - log(1 - m) or its negative. So a
backward pass can draw the noise of its forward pass again, and no tensor keeps it.

Philox4x32 has 7 rounds here, the fewest that pass all tests of BigCrush (Salmon, Moraes, Dror and
Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011, https://doi.org/10.1145/2063384.2063405).
The usual 10 take longer.
"""

import triton
import triton.language as tl

__all__ = [
    "FIRST",
    "LONGEST",
    "MODULO",
    "NUMBER",
    "OWN",
    "TILE",
    "launch_of_bits",
    "launch_of_rows",
    "noise_of_bits",
    "noise_of_rows",
]

TILE = 512  # elements of a program: fewer are slower, and so are more
LONGEST = 4096  # columns that a program takes at a time

# How a row of a draw finds its row of a parameter.
OWN = tl.constexpr(0)
FIRST = tl.constexpr(1)
MODULO = tl.constexpr(2)
NUMBER = tl.constexpr(3)  # there are no rows, but one number in the place of the pointer

INFINITY = tl.constexpr(float("inf"))
LOWEST = tl.constexpr(-3.4028234663852886e38)  # float32
HALF_LOWEST = tl.constexpr(-1.7014117331926443e38)
LEAST = tl.constexpr(-8.5e37)  # v on the simplex that stands for -inf, and
FLOOR = tl.constexpr(-8e37)  # what is below it
TINY = tl.constexpr(1.1754943508222875e-38)
LOG_TINY = tl.constexpr(-87.33654475055310)  # v for a value of 0, and
LOG_NEAR_ONE = tl.constexpr(16.635532333438686)  # for a value of 1, as `Link.finite` has them
UNIT = tl.constexpr(2.0**-32)
LOG_2_OF_POWER = tl.constexpr(0.6931471805599453 * 2.0**-23)
LOG2_E = tl.constexpr(1.4426950408889634)
ROUNDS = tl.constexpr(7)  # of Philox


def launch_of_rows(rows: int, k: int, tile: int = TILE) -> tuple[tuple[int], dict[str, int]]:
    """The grid and the launch parameters for rows of k entries, 8 entries a thread.

    :param tile: the number of elements of a program, a power of two.
    """
    block = min(1 << max(1, (k - 1).bit_length()), LONGEST)
    each = max(1, tile // block)
    warps = min(16, max(1, each * block // 256))
    return (-(-rows // each),), {"ROWS": each, "BLOCK": block, "num_warps": warps}


def launch_of_bits(size: int, tile: int = TILE) -> tuple[tuple[int], dict[str, int]]:
    """The grid and the launch parameters for bits, 8 a thread."""
    return (-(-size // tile),), {"BLOCK": tile, "num_warps": min(16, max(1, tile // 256))}


# Functions of numbers.


@triton.jit
def _log_of(x):
    """log x of a positive normal number, to 1.1 units in the last place; faster than tl.log.

    x = 2^n (1 + f) with |f| <= 1/3, and log(1 + f) = f - f^2 / 2 + f^3 q(f), where q is the
    polynomial of degree 7 with the smallest largest relative error.
    """
    bits = x.to(tl.int32, bitcast=True)
    power = (bits - 0x3F2AAAAB) & -0x800000  # 2^23 n
    f = (bits - power).to(tl.float32, bitcast=True) - 1
    q = 0.139657974 - 0.128804788 * f
    q = q * f - 0.121869721
    q = q * f + 0.140101045
    q = q * f - 0.166802794
    q = q * f + 0.200101078
    q = q * f - 0.249998033
    q = q * f + 0.333332211
    return power.to(tl.float32) * LOG_2_OF_POWER + ((q * f - 0.5) * (f * f) + f)


@triton.jit
def _exp_of(v):
    """exp v of a number above -2e38, 0 where it is not a normal number; faster than tl.exp."""
    return tl.exp2(v * LOG2_E)


# Noise.


@triton.jit
def _distance(high, low):
    """The distance of U from the nearer end, in (0, 1/2], and whether U is in the lower half."""
    word = high.to(tl.int32, bitcast=True)
    rest = low.to(tl.uint32, bitcast=True).to(tl.float32) + 0.5
    m = ((word & 0x7FFFFFFF).to(tl.float32) + rest * UNIT) * UNIT
    return m, word < 0


@triton.jit
def _exponential(m, is_low):
    """E = -log U."""
    u = tl.where(is_low, m, 1 - m)
    lost = tl.where(is_low, 0.0, m - (1 - u))  # exact: by the rounding of 1 - m
    return lost - _log_of(u)


@triton.jit
def _exponential_of_rows(seed, row, start, K: tl.constexpr, BLOCK: tl.constexpr):
    """E of a block of columns."""
    pair = start // 2 + tl.arange(0, BLOCK // 2)[None, :]
    a, b, c, d = tl.randint4x(seed, row * ((K + 1) // 2) + pair, ROUNDS)
    high = tl.reshape(tl.join(a, c), (row.shape[0], BLOCK))
    low = tl.reshape(tl.join(b, d), (row.shape[0], BLOCK))
    m, is_low = _distance(high, low)
    return _exponential(m, is_low)


@triton.jit
def _logistic_of_bits(seed, BLOCK: tl.constexpr, before=0):
    """The logistic variates of a program, where the noise has so many pairs before its own."""
    pair = before + tl.program_id(0).to(tl.int64) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    a, b, c, d = tl.randint4x(seed, pair, ROUNDS)
    high, low = tl.reshape(tl.join(a, c), (BLOCK,)), tl.reshape(tl.join(b, d), (BLOCK,))
    m, is_low = _distance(high, low)
    size = _log_of(m / (1 - m))
    return tl.where(is_low, size, -size)


# Functions of entries.


@triton.jit
def _own(row, rows, AT: tl.constexpr):
    """The row of a parameter that a row of a draw has."""
    if AT == OWN:
        own = row
    elif AT == FIRST:
        own = row * 0
    else:
        own = row % rows
    return own


@triton.jit
def _sigmoid_of(v):
    a = tl.exp(-tl.abs(v))
    return tl.where(v >= 0, 1.0, a) / (1 + a)


@triton.jit
def _slope_of(v):
    """sigmoid(v) sigmoid(-v)."""
    a = tl.exp(-tl.abs(v))
    return a / ((1 + a) * (1 + a))


@triton.jit
def _log_slope_of(v):
    """log sigmoid(v) + log sigmoid(-v), also the logistic log density."""
    size = tl.abs(v)
    return -size - 2 * _log_of(1 + tl.exp(-size))


@triton.jit
def _log_sigmoid_of(v):
    return tl.minimum(v, 0.0) - _log_of(1 + tl.exp(-tl.abs(v)))


@triton.jit
def _tanh_of_half(v):
    """tanh(v / 2) = -d log w / dv of the sigmoid."""
    a = tl.exp(-tl.abs(v))
    size = (1 - a) / (1 + a)
    return tl.where(v >= 0, size, -size)


@triton.jit
def _finite_of(v):
    """v, with what `Link.finite` puts in the place of infinities."""
    v = tl.where(v == -INFINITY, LOG_TINY, v)
    return tl.where(v == INFINITY, LOG_NEAR_ONE, v)


# Where a program is, and what belongs there.


@triton.jit
def _rows_here(ROWS: tl.constexpr):
    return (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]


@triton.jit
def _bits_here(BLOCK: tl.constexpr):
    return tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _temperature(tau_ptr, row, n, tau_rows, TAU_AT: tl.constexpr):
    if TAU_AT == NUMBER:
        tau = tau_ptr
    elif TAU_AT == FIRST:
        tau = tl.load(tau_ptr).to(tl.float32)  # one number for a program: cheaper than one a row
    else:
        at = _own(row, tau_rows, TAU_AT)
        tau = tl.load(tau_ptr + at, mask=row < n, other=1.0).to(tl.float32)
    return tau


# The noise of a draw.


@triton.jit
def noise_of_rows(seed_ptr, noise_ptr, n, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The Gumbel noise of a draw."""
    row, seed = _rows_here(ROWS), tl.load(seed_ptr)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        e = _exponential_of_rows(seed, row, start, K, BLOCK)
        tl.store(noise_ptr + (row * K + column), -tl.log(e), mask=(row < n) & (column < K))


@triton.jit
def noise_of_bits(seed_ptr, noise_ptr, n, BLOCK: tl.constexpr):
    """The logistic noise of a draw."""
    at = _bits_here(BLOCK)
    tl.store(noise_ptr + at, _logistic_of_bits(tl.load(seed_ptr), BLOCK), mask=at < n)
