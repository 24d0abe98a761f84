# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Gradients by outcomes are exact on average, whatever is made of the draws."""

import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex
from torch.nn import functional as F

from tests.states import relative_error

SITES, K = 3, 3
X, X4 = torch.randn(SITES, dtype=torch.float64), torch.randn(4, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def table(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B, S = table(K, seed=1), table(K, seed=2), table(K, seed=3).exp()
WIDE, P, M = table(K, 4, seed=4), table(K, K, seed=5).softmax(-1), table(K, K, seed=6)
AT = torch.tensor([0, 1, 1, 2])


def normal(x, loc, scale):
    scale = torch.as_tensor(scale)
    return (-((x - loc) ** 2) / (2 * scale**2) - scale.log()).sum()


# A log density of each, and what makes it hard for a derivative.
FUNCTIONS = {
    "one draw in the table of another": lambda z: P[z[0]][..., z[1]].log(),
    "a categorical of a draw, at the draw": lambda z: dist.Categorical(P[z]).log_prob(z).sum(),
    "where, between values of the draw": lambda z: normal(X, torch.where(z == 1, A[z], 0.3), 1.0),
    "where, between constants": lambda z: normal(X, torch.where(z == 1, 0.7, 0.3), 1.0),
    "a value times the draw": lambda z: normal(X, A[z] * z.double(), 1.0),
    "the draw as a scale": lambda z: normal(X, torch.zeros(()), 1 + z.double()),
    "a one-hot product": lambda z: normal(X, (F.one_hot(z, K).double() * A).sum(-1), S[z]),
    "elements of values": lambda z: normal(X4, A[z][AT], S[z][AT]),
    "columns of values": lambda z: normal(X, WIDE[z][:, 0], WIDE[z][:, 1].exp()),
    "neighbours in a chain": lambda z: P.log()[z[..., :-1], z[..., 1:]].sum(-1),
    "values of neighbours": lambda z: normal(X[:2], A[z[:-1]] + B[z[1:]], 0.7),
    "elements of the draw, twice": lambda z: normal(X4, A[z[AT]], S[z[AT]]),
    "pairs with a diagonal": lambda z: (M[z[:, None], z[None, :]] ** 2).exp().sum(),
    "a sum over pairs": lambda z: ((A[z[:, None]] + B[z[None, :]]) ** 2).exp().sum(),
    "stacked values": lambda z: normal(X, torch.stack([A[each] for each in z]), S[z]),
    "values side by side": lambda z: torch.stack([A[z], B[z]], -1).logsumexp(-1).sum(),
    "a value beside a constant": lambda z: (
        torch.cat([A[z][:, None], torch.ones(SITES, 1)], -1).logsumexp(-1).sum()
    ),
    "a copy of values": lambda z: normal(X, A[z].clone(), S[z].flip(0).flip(0)),
    "logsumexp over an event": lambda z: WIDE[z].logsumexp(-1).sum(),
    "softmax over an event": lambda z: WIDE[z].softmax(-1)[:, 1].log().sum(),
    "an index of an index": lambda z: A[AT[z]].exp().sum() + A[(z + 1) % K].exp().sum(),
    "two draws make one index": lambda z: WIDE.flatten()[K * z[:-1] + z[1:]].exp().sum(),
    "Vindex": lambda z: normal(X4, Vindex(WIDE)[z[:, None], torch.arange(4)], 1.0),
    "gather": lambda z: P.expand(SITES, K, K)[0].gather(-1, z[:, None]).log().sum(),
    "in a value that has outcomes": lambda z: P[z].gather(-1, z[:, None]).log().sum(),
    "a comparison of two": lambda z: torch.where(z[:-1] == z[1:], 0.9, 0.1).log().sum(),
    "changed in place": lambda z: normal(X, A[z].clone().mul_(2).add_(1), 1.0),
    "a power": lambda z: (torch.tensor(1.3) ** z.double()).sum() + (z.double() ** 2).exp().sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_mean_gradient_is_exact(name):
    logits = table(SITES, K, seed=7).requires_grad_()
    assert relative_error(FUNCTIONS[name], logits) < 1e-10


CURVED = ["a categorical of a draw, at the draw", "columns of values", "a value times the draw"]


@pytest.mark.parametrize("name", CURVED)
def test_a_derivative_is_not(name):
    logits = table(SITES, K, seed=7).requires_grad_()
    assert relative_error(FUNCTIONS[name], logits, outcomes=False) > 0.05
