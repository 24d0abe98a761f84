# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from scipy import stats

from pyro_gumbel.ops import noise
from tests.common import ALPHA, first_fast, z_bound

KINDS = {"dtype": torch.float32, "device": torch.get_default_device()}
DTYPES = [torch.float32, torch.float64]


def minus_log_exponential(shape, **kinds):
    return -noise.log_exponential(shape, **kinds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_once", [200_000, 50_000])
@pytest.mark.parametrize(
    ("sampler", "distribution"),
    [
        (noise.exponential, stats.expon),
        (noise.gumbel, stats.gumbel_r),
        (minus_log_exponential, stats.gumbel_r),
        (noise.logistic, stats.logistic),
    ],
)
def test_noise_has_its_distribution(sampler, distribution, at_once, dtype):
    kinds = {"dtype": dtype, "device": torch.get_default_device()}
    draws = torch.cat([sampler((at_once,), **kinds) for _ in range(200_000 // at_once)])
    assert draws.dtype == dtype
    assert stats.kstest(draws.double().cpu().numpy(), distribution.cdf).pvalue > ALPHA


@pytest.mark.parametrize(
    ("sampler", "distribution"),
    first_fast([(noise.exponential, stats.expon), (noise.logistic, stats.logistic)]),
)
def test_many_variates_have_their_distribution_up_to_both_ends(sampler, distribution):
    """Near the ends, also within `EDGE`, where they are drawn with more bits, and below 2^-18."""
    u, n = [], 0
    for _ in range(20):
        draws = sampler((5_000_000,), **KINDS)
        n += len(draws)
        assert draws.isfinite().all()
        ends = draws[
            (draws < distribution.ppf(4 * noise.EDGE)) | (draws > distribution.isf(4 * noise.EDGE))
        ]
        u.append(ends.double())
    ends = torch.cat(u).cpu().numpy()
    for tail in (distribution.cdf(ends), distribution.sf(ends)):
        for width in (4 * noise.EDGE, noise.EDGE, 2.0**-18):
            near = tail[tail < width] / width
            assert abs(len(near) - n * width) < z_bound() * (n * width) ** 0.5
            assert stats.kstest(near, "uniform").pvalue > ALPHA
        assert len(set(near)) > 0.99 * len(near)


@pytest.mark.parametrize(
    ("sampler", "distribution"),
    [
        (noise.exponential, stats.expon),
        (minus_log_exponential, stats.gumbel_r),
        (noise.logistic, stats.logistic),
    ],
)
def test_few_variates_have_their_distribution_up_to_both_ends(sampler, distribution):
    draws = torch.cat([sampler((noise.MANY - 1,), **KINDS) for _ in range(50)]).double().cpu()
    for tail in (distribution.cdf(draws.numpy()), distribution.sf(draws.numpy())):
        near = tail[tail < 1e-3] / 1e-3
        assert stats.kstest(near, "uniform").pvalue > ALPHA
        assert len(set(near)) > 0.99 * len(near)


def test_many_variates_repeat_with_the_seed_and_differ_from_each_other():
    torch.manual_seed(4)
    first = noise.exponential((3, noise.MANY), **KINDS)
    torch.manual_seed(4)
    assert noise.exponential((3, noise.MANY), **KINDS).equal(first)
    assert not first[0].equal(first[1])


def test_the_last_of_an_odd_number_is_drawn_too():
    for sampler, distribution in ((noise.exponential_, "expon"), (noise.logistic_, "logistic")):
        last = [sampler(torch.zeros(3))[-1].item() for _ in range(2000)]
        assert stats.kstest(last, distribution).pvalue > ALPHA


def test_many_variates_are_on_the_device_that_is_asked_for():
    """Whatever the default device is."""
    with torch.device("meta"):
        for sampler in (noise.exponential, noise.logistic):
            assert sampler((noise.MANY,), **KINDS).device == KINDS["device"]


@pytest.mark.parametrize(
    ("sampler", "distribution"),
    [(noise.exponential, stats.expon), (noise.logistic, stats.logistic)],
)
def test_variates_near_the_ends_are_bernoulli_trials(sampler, distribution):
    """They are drawn anew at each end, and may be anywhere: in each quarter of the memory alike."""
    n, chance = 200_000, noise.EDGE
    low, high = distribution.ppf(chance), distribution.isf(chance)
    counts = torch.zeros(2, n)
    for _ in range(100):
        draws = sampler((n,), **KINDS)
        counts += torch.stack([draws < low, draws > high])
    for part in counts.split(n // 4, -1):
        expected = 100 * chance * n / 4
        error = (part.sum(-1) - expected).abs()
        assert (error < z_bound(8) * (expected * (1 - chance)) ** 0.5).all()


@pytest.mark.parametrize("end", first_fast([0, 1]))
def test_uniform_fills_its_smallest_cells_at_both_ends(end):
    """Below 2^-18 a plain float32 uniform has 64 values; here it is uniform there too."""
    small = []
    for _ in range(10):
        u = noise.uniform((5_000_000,), **KINDS)[end]
        small.append(u[u < 2.0**-18] * 2.0**18)
    small = torch.cat(small)
    assert small.unique().numel() > 0.99 * small.numel()
    assert stats.kstest(small.double().cpu().numpy(), "uniform").pvalue > ALPHA
    expected = 10 * 5_000_000 * 2.0**-18
    assert abs(small.numel() - expected) < z_bound() * expected**0.5


@pytest.mark.parametrize(
    ("cell", "place"), [(0.0, 0.0), (0.0, 1 - 2**-24), (1 - 2**-24, 0.0), (1 - 2**-24, 1 - 2**-24)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_uniform_variate_makes_infinite_noise(monkeypatch, cell, place, dtype):
    variates = iter([cell, place] * 3)
    monkeypatch.setattr(
        torch, "rand", lambda shape, dtype, device: torch.full(shape, next(variates), dtype=dtype)
    )
    kinds = {"dtype": dtype, "device": torch.get_default_device()}
    assert noise.exponential((1,), **kinds).item() > 0
    assert noise.gumbel((1,), **kinds).isfinite()
    assert noise.logistic((1,), **kinds).isfinite()


def test_noise_differs_across_a_vmapped_batch():
    draws = torch.vmap(lambda _: noise.gumbel((5,), **KINDS), randomness="different")(
        torch.zeros(4)
    )
    assert draws.unique().numel() == 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_given_the_ranking_has_its_distribution_and_that_ranking(dtype):
    """Given the ranking, against draws of z that happen to have it."""
    x = torch.tensor([0.5, -1.0, 0.2, -0.3, -torch.inf], dtype=dtype)
    ranking = torch.tensor([2, 0])
    found = noise.given_ranking(x, ranking, 20_000)
    assert (found.topk(2, -1).indices == ranking).all()
    z = x + noise.gumbel((400_000, 5), dtype=dtype, device=torch.get_default_device())
    rejected = z[(z.topk(2, -1).indices == ranking).all(-1)]
    assert len(rejected) > 20_000
    for i in range(4):
        assert (
            stats.ks_2samp(found[:, i].cpu().numpy(), rejected[:, i].cpu().numpy()).pvalue > ALPHA
        )
    gaps = (sample[:, 2] - sample[:, 0] for sample in (found, rejected))  # jointly too
    assert stats.ks_2samp(*(gap.cpu().numpy() for gap in gaps)).pvalue > ALPHA
    assert (found[:, 4] == -torch.inf).all()


def test_the_winner_given_that_it_wins_is_a_gumbel_variate():
    """Its location is log Z, whichever it is. The others are Gumbel variates truncated there."""
    x = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    log_z = x.logsumexp(-1).item()
    for winner in range(3):
        z = noise.given_ranking(x, torch.tensor([winner]), 20_000)
        distribution = stats.gumbel_r(loc=log_z)
        assert stats.kstest(z[:, winner].cpu().numpy(), distribution.cdf).pvalue > ALPHA
        for other in {0, 1, 2} - {winner}:
            cut = stats.gumbel_r(loc=x[other].item())
            ranks = cut.cdf(z[:, other].cpu().numpy()) / cut.cdf(z[:, winner].cpu().numpy())
            assert stats.kstest(ranks, "uniform").pvalue > ALPHA


@pytest.mark.parametrize("x", [-20.0, -1.0, 0.0, 3.0, 20.0])
@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_noise_given_a_bit_has_its_distribution_and_its_sign(x, bit):
    z = noise.given_bit(torch.tensor(x), torch.tensor(bit), 20_000).double().cpu().numpy()
    assert ((z >= 0) == bool(bit)).all()
    tail = (lambda t: stats.logistic.sf(t, x)) if bit else (lambda t: stats.logistic.cdf(t, x))
    assert stats.kstest(tail(z) / tail(0.0), "uniform").pvalue > ALPHA


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_given_winner_wins_by_however_little(monkeypatch, dtype):
    """Where the noise of another is almost as large, as happens once in 10 million draws."""
    g = torch.tensor([85.0, -4.0, 0.0], dtype=dtype)
    monkeypatch.setattr(noise, "gumbel", lambda shape, dtype, device: g.expand(shape))
    z = noise.given_ranking(torch.zeros(3, dtype=dtype), torch.tensor([1]), 1)
    assert z.argmax(-1) == 1
    assert z[0, 1] - z[0, 0] < 1e-6
    monkeypatch.undo()
    x = torch.tensor([0.0, -80.0, -85.0], dtype=dtype)
    for order in ([1], [2], [1, 2], [2, 1]):
        z = noise.given_ranking(x, torch.tensor(order), 10_000)
        others = [i for i in range(3) if i not in order]
        assert (z[:, others].amax(-1) < z[:, order].amin(-1)).all()
        assert z.isfinite().all()
    assert (noise.given_bit(torch.tensor(-80.0, dtype=dtype), torch.tensor(1.0), 10_000) >= 0).all()
    assert (noise.given_bit(torch.tensor(80.0, dtype=dtype), torch.tensor(0.0), 10_000) < 0).all()
