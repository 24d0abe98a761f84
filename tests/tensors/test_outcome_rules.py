# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Operations over the dimensions of an event, and products, keep outcomes."""

import pyro.distributions as dist
import pytest
import torch
from torch.nn import functional as F

from pyro_gumbel import BernoulliStraightThrough, CategoricalStraightThrough, SelectedComponent
from tests.states import relative_error

SITES, K = 3, 3


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


V, W, A, S = normal(K, 4), normal(4, 2, seed=1), normal(6, seed=2), normal(K, seed=3).exp()
X, LOGITS = normal(SITES, seed=4), normal(SITES, K, seed=5)


def one_hot(z):
    return F.one_hot(z, K).double()


FUNCTIONS = {
    "matrix product": lambda z: (V[z] @ W).exp().sum(),
    "vector product": lambda z: (V[z] @ W[:, 0]).exp().sum(),
    "logsigmoid": lambda z: F.logsigmoid(V[z]).exp().sum(),
    "amax": lambda z: V[z].amax(-1).exp().sum(),
    "max": lambda z: V[z].max(-1).values.exp().sum(),
    "the index of max": lambda z: A[V[z].max(-1)[1]].exp().sum(),
    "argmax": lambda z: A[V[z].argmax(-1)].exp().sum(),
    "max of two": lambda z: torch.max(A[z], S[z]).exp().sum(),
    "prod": lambda z: V[z].prod(-1, keepdim=True).exp().sum(),
    "cumsum": lambda z: V[z].cumsum(-1).exp().sum(),
    "mean over rows": lambda z: V[z].mean(dim=1).exp().sum(),
    "one-hot prior": lambda z: dist.OneHotCategorical(logits=LOGITS).log_prob(one_hot(z)).sum(),
    "our one-hot prior": lambda z: (
        CategoricalStraightThrough(logits=LOGITS).log_prob(one_hot(z)).sum()
    ),
    "our binary prior": lambda z: (
        BernoulliStraightThrough(logits=X).log_prob((z == 1).double()).sum()
    ),
    "our binary prior, of integers": lambda z: (
        BernoulliStraightThrough(logits=X).log_prob((z == 1).long()).sum()
    ),
    "binary prior": lambda z: dist.Bernoulli(logits=X).log_prob((z == 1).double()).sum(),
    "binary likelihood": lambda z: dist.Bernoulli(logits=A[z]).log_prob((X > 0).double()).sum(),
    "selected component": lambda z: SelectedComponent(z, dist.Normal(A[:K], S)).log_prob(X).sum(),
    "selected component, one-hot": lambda z: (
        SelectedComponent(one_hot(z), dist.Normal(A[:K], S)).log_prob(X).sum()
    ),
    "count": lambda z: dist.Poisson(2.0).log_prob(z).sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_mean_gradient_is_exact(name):
    logits = normal(SITES, K, seed=6).requires_grad_()
    assert relative_error(FUNCTIONS[name], logits) < 1e-7
