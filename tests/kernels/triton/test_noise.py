# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The noise that the kernels draw, and the distributions of the draws."""

import itertools
import math

import mpmath
import numpy
import pytest
import torch
import triton
import triton.language as tl
from scipy import stats

from pyro_gumbel.kernels import cuda
from pyro_gumbel.kernels import triton_functions as kernels
from pyro_gumbel.links import Hypersimplex, interval, simplex
from tests.common import ALPHA, assert_counts
from tests.kernels.triton.common import LARGE, assert_uniform, placed, seed

N = 16_000_000


@triton.jit
def variates_of_words(high_ptr, low_ptr, m_ptr, is_low_ptr, e_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    high = tl.load(high_ptr + at, mask=at < n, other=1).to(tl.uint32, bitcast=True)
    low = tl.load(low_ptr + at, mask=at < n, other=1).to(tl.uint32, bitcast=True)
    m, is_low = kernels._distance(high, low)
    tl.store(m_ptr + at, m, mask=at < n)
    tl.store(is_low_ptr + at, is_low.to(tl.int32), mask=at < n)
    tl.store(e_ptr + at, kernels._exponential(m, is_low), mask=at < n)


def of_words(high, low):
    """m, which half and E of pairs of 32-bit words."""
    words = [torch.tensor([w - 2**32 if w >= 2**31 else w for w in ws], dtype=torch.int32)
             for ws in (high, low)]  # fmt: skip
    m, e = torch.empty(len(high)), torch.empty(len(high))
    is_low = torch.empty(len(high), dtype=torch.int32)
    variates_of_words[(1,)](*words, m, is_low, e, len(high), BLOCK=256)
    return m, is_low, e


@triton.jit
def values_of(function: tl.constexpr, x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, function(tl.load(x_ptr + at, mask=at < n, other=1.0)), mask=at < n)


def of_numbers(function, x):
    y = torch.empty_like(x)
    values_of[(-(-len(x) // 1024),)](function, x, y, len(x), BLOCK=1024)
    return y


def test_logarithms():
    """In units of the last place, close to 1 and over all normal numbers."""
    close = 1 + 0.4 * (2 * torch.rand(200_000) - 1) ** 3
    x = torch.cat([close, torch.exp(87 * (2 * torch.rand(200_000) - 1)), torch.ones(1)])
    found = of_numbers(kernels._log_of, x)
    expected = x.double().log()
    unit = torch.nextafter(expected.abs().float(), torch.tensor(torch.inf)) - expected.abs().float()
    assert ((found - expected).abs() <= 1.1 * unit).all()


def test_exponentials():
    """To the digits of a float32 exponent; numbers below the normal ones may be 0."""
    x = torch.cat([-88 * torch.rand(100_000), 80 * torch.rand(1000), torch.tensor([0.0, -2e38])])
    found = of_numbers(kernels._exp_of, x)
    expected = x.double().exp()
    error = expected * (2e-7 + 1.2e-7 * x.abs())
    assert ((found - expected).abs() <= error.clamp(min=torch.finfo(torch.float32).tiny)).all()


def test_a_variate_has_63_bits_and_a_sign():
    """From the smallest to the largest, without a gap between the halves."""
    high = [0, 0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    low = [0, 1, 0, 2**32 - 1, 0, 2**32 - 1]
    m, is_low, _ = of_words(high, low)
    assert m.tolist() == [2.0**-65, 1.5 * 2.0**-64, 2.0**-32, 0.5, 2.0**-65, 0.5]
    assert is_low.tolist() == [0, 0, 0, 0, 1, 1]


def test_the_exponential_variate_of_a_variate_is_exact():
    """At both ends, and where the two halves meet."""
    generator = numpy.random.default_rng(0)
    words = [min(2**31 - 1, int(2.0**e)) for e in generator.uniform(0, 31, 100)]
    high = [*words, *(w + 2**31 for w in words), 0, 2**31]
    low = generator.integers(0, 2**32, len(high)).tolist()
    m, is_low, e = of_words(high, low)
    with mpmath.workdps(40):
        for each, lower, found in zip(m.tolist(), is_low.tolist(), e.tolist(), strict=True):
            u = mpmath.mpf(each) if lower else 1 - mpmath.mpf(each)
            expected = -mpmath.log(u)
            assert abs(found - expected) <= 2e-7 * expected


def rows_of_noise(n, k, tile=LARGE, number=0):
    noise = torch.empty(n, k)
    grid, launch = kernels.launch_of_rows(n, k, tile)
    kernels.noise_of_rows[grid](seed(number), noise, n, K=k, **launch)
    return noise


def bits_of_noise(n, tile=LARGE, number=0):
    noise = torch.empty(n)
    grid, launch = kernels.launch_of_bits(n, tile)
    kernels.noise_of_bits[grid](seed(number), noise, n, **launch)
    return noise


def assert_poisson(count, mean):
    p = 2 * min(stats.poisson.cdf(count, mean), stats.poisson.sf(count - 1, mean))
    assert p > ALPHA


def test_gumbel_variates():
    """The whole distribution, the lower tail of E, and what 32 bits would not show."""
    noise = rows_of_noise(N // 64, 64).flatten().cpu().numpy().astype(float)
    e = numpy.exp(-noise)
    assert_uniform(-numpy.expm1(-e))
    small = e[e < 1e-4]
    assert_uniform(numpy.expm1(-small) / math.expm1(-1e-4))
    assert_poisson((e < 1e-6).sum(), N * -math.expm1(-1e-6))
    assert_poisson((e > 13).sum(), N * math.exp(-13))
    assert len(numpy.unique(small)) > 0.99 * len(small)  # 24 bits have 1,700 numbers there


def test_logistic_variates():
    noise = bits_of_noise(N // 4).cpu().numpy().astype(float)
    assert_uniform(1 / (1 + numpy.exp(-noise)))
    for tail in (noise, -noise):
        assert_poisson((tail > 13).sum(), N / 4 / (1 + math.exp(13)))


def test_variates_are_independent():
    """Of one another in a row, of the next row, and of another seed."""
    noise, other = rows_of_noise(50_000, 4), rows_of_noise(50_000, 4, number=1)
    columns = torch.cat([noise[:-1], noise[1:], other[:-1]], 1)
    correlation = torch.corrcoef(columns.T).fill_diagonal_(0)
    bound = stats.norm.isf(ALPHA / 2 / 66) / math.sqrt(len(columns))
    assert correlation.abs().max() < bound


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_noise_does_not_depend_on_the_tile(k, monkeypatch):
    """So a backward pass may have another one."""
    whole = rows_of_noise(37, k)
    assert rows_of_noise(37, k, tile=16).equal(whole)
    monkeypatch.setattr(kernels, "LONGEST", 4)
    assert rows_of_noise(37, k).equal(whole)
    assert bits_of_noise(37, tile=4).equal(bits_of_noise(37))


# The draws.


@pytest.fixture
def large_tiles(monkeypatch):
    monkeypatch.setattr(cuda, "TILE", LARGE)


PROBS = torch.tensor([0.5, 0.3, 0.1999, 1e-4])
ROWS = 200_000


def test_relaxed_vectors(large_tiles):
    """Rounded they have the probabilities, and their log ratios are logistic."""
    x, tau = PROBS.log(), torch.tensor(0.3)
    s, v, _ = cuda._FusedDraw.apply(*placed(x, tau, simplex, (ROWS,)), True, True, False)
    assert_counts(s.argmax(-1).bincount(minlength=4), PROBS)
    ratio = 0.3 * (v[:, 0] - v[:, 2]) - (x[0] - x[2])
    assert_uniform(ratio.double().sigmoid().cpu().numpy())


def test_hard_vectors(large_tiles):
    arguments = placed(PROBS.log(), torch.tensor(1.0), simplex, (ROWS,))
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    assert hard.sum(-1).eq(1).all()
    assert_counts(hard.sum(0), PROBS)


def test_bits(large_tiles):
    p = torch.tensor([1e-4, 0.3, 0.9999])
    x, tau = p.logit(), torch.tensor(0.5)
    arguments = placed(x, tau, interval, (ROWS,))
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    _, v, _ = cuda._FusedDraw.apply(*arguments, False, True, False)
    for column in range(3):
        ones = hard[:, column].sum()
        assert_counts([ROWS - ones, ones], [1 - p[column], p[column]])
        assert_uniform((0.5 * v[:, column] - x[column]).double().sigmoid().cpu().numpy())


def test_subsets(large_tiles):
    """Against the sum over the orders in which the categories are chosen."""
    p = torch.tensor([0.6, 0.38, 0.015, 0.005], dtype=torch.float64)
    sets = list(itertools.combinations(range(4), 2))
    probs = [float(p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j]))) for i, j in sets]
    assert min(probs) > 1e-4
    arguments = placed(p.log().float(), torch.tensor(0.5), Hypersimplex(2), (ROWS // 4,))
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    s, *_ = cuda._FusedDraw.apply(*arguments, True, False, False)
    code = torch.tensor([1, 2, 4, 8])
    counts = (hard.long() * code).sum(-1).bincount(minlength=16)
    assert_counts([counts[code[i] + code[j]] for i, j in sets], probs)
    assert hard.equal(Hypersimplex(2).hard(s))
