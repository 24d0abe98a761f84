# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from scipy import stats

from pyro_gumbel import noise
from tests.common import ALPHA, z_bound

KINDS = {"dtype": torch.float32, "device": torch.device("cpu")}
DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sampler", "law"),
    [
        (noise.exponential, stats.expon),
        (noise.gumbel, stats.gumbel_r),
        (noise.logistic, stats.logistic),
    ],
)
def test_noise_has_its_law(sampler, law, dtype):
    draws = sampler((200_000,), dtype=dtype, device=torch.device("cpu"))
    assert draws.dtype == dtype
    assert stats.kstest(draws.double().numpy(), law.cdf).pvalue > ALPHA


@pytest.mark.parametrize("end", [0, 1])
def test_uniform_fills_its_smallest_cells_at_both_ends(end):
    """Below 2^-18 a plain float32 uniform has 64 values; here it is uniform there too."""
    small = []
    for _ in range(20):
        u = noise.uniform((5_000_000,), **KINDS)[end]
        small.append(u[u < 2.0**-18] * 2.0**18)
    small = torch.cat(small)
    assert small.unique().numel() > 0.99 * small.numel()
    assert stats.kstest(small.double().numpy(), "uniform").pvalue > ALPHA
    expected = 20 * 5_000_000 * 2.0**-18
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
    kinds = {"dtype": dtype, "device": torch.device("cpu")}
    assert noise.exponential((1,), **kinds).item() > 0
    assert noise.gumbel((1,), **kinds).isfinite()
    assert noise.logistic((1,), **kinds).isfinite()


def test_noise_differs_across_a_vmapped_batch():
    draws = torch.vmap(lambda _: noise.gumbel((5,), **KINDS), randomness="different")(
        torch.zeros(4)
    )
    assert draws.unique().numel() == 20
