# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Gradients by outcomes are exact on average, whatever is made of the draws."""

import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex
from torch.nn import functional as F

from pyro_gumbel.tensors import index_tensor
from pyro_gumbel.tensors.deferred import settled
from pyro_gumbel.tensors.index_tensor import OutcomeTensor
from tests.common import seeded
from tests.states import drawn, relative_error

pytestmark = pytest.mark.usefixtures("float64")

SITES, K = 3, 3
X, X4 = torch.randn(SITES, dtype=torch.float64), torch.randn(4, dtype=torch.float64)


def table(*shape, seed=0):
    return seeded(torch.randn, seed, shape, dtype=torch.float64)


A, B, S = table(K, seed=1), table(K, seed=2), table(K, seed=3).exp()
WIDE, P, M = table(K, 4, seed=4), table(K, K, seed=5).softmax(-1), table(K, K, seed=6)
AT = torch.tensor([0, 1, 1, 2])


def normal(x, loc, scale):
    scale = torch.as_tensor(scale)
    return (-((x - loc) ** 2) / (2 * scale**2) - scale.log()).sum()


def beside_a_part_without_a_draw(z):
    values = torch.stack([A[z], S[z]], -1)
    written = values.clone()
    written[0] = 0.3
    return torch.stack([written, values])


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
    "beside a part without a draw": lambda z: beside_a_part_without_a_draw(z).exp().sum(),
    "side by side, by hstack": lambda z: (
        torch.hstack([A[z][:, None], B[z][:, None]]).logsumexp(-1).sum()
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
    "a sum over elements": lambda z: (A[z].sum(-1) + B[z].prod()).exp(),
    "softmax over elements": lambda z: (A[z].softmax(-1) * B[z]).sum() ** 2,
    "stacked, with one twice": lambda z: torch.stack([A[z[0]], B[z[1]], S[z[0]]]).logsumexp(0),
    "stacked, with one twice, in order": lambda z: (
        torch.stack([A[z[0]], B[z[1]], S[z[0]]]).softmax(0)[0] ** 2
    ),
    "in a value of all others": lambda z: P[z][..., z.flip(0)].exp().sum(),
    "Vindex in a value": lambda z: Vindex(P[z])[..., z.flip(0)].exp().sum(),
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


def drawn_twice():
    """A draw of two elements with its logits."""
    logits = table(2, K, seed=7).requires_grad_()
    return drawn(torch.tensor([2, 0]), logits), logits


def test_writing_to_floats_changes_them():
    value, logits = drawn_twice()
    floats = A[value].clone()
    floats[0] = 5.0
    assert floats.tolist() == [5.0, A[0].item()]
    floats.cumsum_(0)
    assert floats.tolist() == [5.0, 5.0 + A[0].item()]
    floats.sum().backward()
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_what_was_made_before_a_change_keeps_its_gradient():
    value, logits = drawn_twice()
    floats = A[value]
    total = floats.sum()
    product = floats @ X[:2]
    floats += 1
    (total + product).backward()
    assert logits.grad.any()


def test_many_elements_meet_as_derivatives():
    logits = torch.zeros(20, 3, requires_grad=True)
    value = drawn(torch.zeros(20, dtype=torch.int64), logits)
    floats = A[value]
    assert floats[:16].logsumexp(0).requires_grad
    assert type(floats[:16].logsumexp(0)) is OutcomeTensor
    assert type(floats.logsumexp(0)) is torch.Tensor
    assert type(settled(floats.sum())) is torch.Tensor
    assert type(settled(floats[:16].sum())) is OutcomeTensor


def test_too_many_outcomes_are_a_derivative_with_a_warning(monkeypatch):
    monkeypatch.setattr(index_tensor, "MOST", 10)
    value, logits = drawn_twice()
    with pytest.warns(UserWarning, match=r"at most 10 outcomes.* got 12.*outcomes=False"):
        floats = WIDE[value]
    assert type(floats) is torch.Tensor
    floats.exp().sum().backward()
    assert logits.grad.any()


def test_no_elements():
    logits = torch.zeros(0, K, requires_grad=True)
    floats = A[drawn(torch.zeros(0, dtype=torch.int64), logits)]
    floats.exp().sum().exp().backward()
    assert logits.grad.shape == (0, K)


def test_a_hook_on_floats_is_not_called():
    value, _ = drawn_twice()
    floats = A[value]
    with pytest.warns(UserWarning, match="it is never called"):
        floats.register_hook(lambda gradient: gradient.unknown).remove()
    floats.sum().backward()


def test_an_impossible_category_repels():
    logits = torch.zeros(1, 3, requires_grad=True)
    value = drawn(torch.tensor([0]), logits)
    torch.tensor([-500.0, -501.0, -torch.inf])[value].sum().backward()
    assert (logits.grad[0, :2] > 0).all()
    assert logits.grad[0, 2] < 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    logits = torch.zeros(2, K, dtype=dtype, requires_grad=True)
    floats = A.to(dtype)[drawn(torch.tensor([2, 0]), logits)]
    assert floats.dtype == dtype
    floats.exp().sum().backward()
    exact = A.exp() / K - A.exp().mean() / K
    torch.testing.assert_close(logits.grad, exact.to(dtype).expand(2, K), rtol=0.02, atol=0.005)


@pytest.mark.parametrize("seed", range(3))
def test_tables_have_the_gradient_of_plain_torch(seed):
    tables = [table(K, 4, seed=seed).requires_grad_(), table(K, seed=seed + 1).requires_grad_()]

    def function(z):
        return (tables[0][z].logsumexp(-1) * tables[1][z]).exp().sum()

    value, _ = drawn_twice()
    found, expected = (
        torch.autograd.grad(function(z), tables) for z in (value, torch.tensor([2, 0]))
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
