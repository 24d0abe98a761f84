# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Sums over elements: where a loss is linear in them, and where it is not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gumbel.tensors.deferred import DeferredTensor, settled
from pyro_gumbel.tensors.subclass import plain
from tests.common import seeded
from tests.states import (
    drawn,
    exact_gradient,
    gradient_of_draw,
    relative_error,
    states,
)

from .substitution import Draw

pytestmark = pytest.mark.usefixtures("float64")

SITES, K = 3, 3
WEIGHTS = torch.tensor([0.5, -1.5])


def table(*shape, seed):
    return seeded(torch.randn, seed, shape, dtype=torch.float64)


A, B, PAIR = table(K, seed=1), table(K, seed=2), table(K, 2, seed=3)


def logits():
    return table(SITES, K, seed=7).requires_grad_()


def written_to(tensor, at, value):
    tensor[at] = value
    return tensor


# Of two sums v over elements, and of the values x themselves. The result is linear in v and x.
LINEAR = {
    "v + c": lambda v, x: v + 1.5,
    "c + v": lambda v, x: 1.5 + v,
    "v + v": lambda v, x: v + v[0],
    "v - c": lambda v, x: v - 1.5,
    "c - v": lambda v, x: 1.5 - v,
    "-v": lambda v, x: -v,
    "+v": lambda v, x: +v,
    "c * v": lambda v, x: 1.5 * v,
    "v * w": lambda v, x: v * WEIGHTS.double(),
    "v / c": lambda v, x: v / 1.5,
    "v / w": lambda v, x: torch.div(v, WEIGHTS.double()),
    "add": lambda v, x: torch.add(v, v, alpha=0.5),
    "subtract": lambda v, x: v.subtract(WEIGHTS.double()),
    "where": lambda v, x: torch.where(WEIGHTS > 0, v, 0.3),
    "sum": lambda v, x: v.sum(-1),
    "dot": lambda v, x: torch.dot(v, WEIGHTS.double()),
    "mean": lambda v, x: v.mean(),
    "moved": lambda v, x: v.flip(0).unsqueeze(-1).expand(2, 2).reshape(-1),
    "selected": lambda v, x: v[..., 1:],
    "moved like": lambda v, x: v.view_as(WEIGHTS),
    "parts": lambda v, x: v.unbind()[1] - v.split(1)[0],
    "stack": lambda v, x: torch.stack([v[0], v[1], x[0]]),
    "cat": lambda v, x: torch.cat([v, x]),
    "broadcast": lambda v, x: torch.broadcast_tensors(v, torch.zeros(2, 2))[0],
    "with values": lambda v, x: v[0] + x - x[0] * 2.0,
    "+= c": lambda v, x: v.__iadd__(1.5),
    "-= v": lambda v, x: v.__isub__(v[0] * 0.5),
    "*= c": lambda v, x: v.mul_(1.5),
    "/= w": lambda v, x: v.div_(WEIGHTS.double()),
    "to float64": lambda v, x: v.clone().to(torch.float64).double(),
}

# Products over the elements themselves, which are of the estimator in other losses.
PRODUCTS = {
    "tensordot": lambda v, x: torch.tensordot(x, torch.arange(3.0).double(), 1),
    "matrix product": lambda v, x: x @ torch.arange(3.0).double(),
    "einsum": lambda v, x: torch.einsum("i,ij->j", x, PAIR),
}

# Where it is not.
CURVED = {
    "exp": lambda v, x: v.exp(),
    "logsumexp": lambda v, x: v.logsumexp(-1),
    "square": lambda v, x: v * v,
    "with values": lambda v, x: v[0] * x,
    "a quotient": lambda v, x: 1.5 / (3.0 + v.square()),
    "rounded": lambda v, x: torch.div(v, 0.1, rounding_mode="floor"),
    "by a condition": lambda v, x: torch.where(v > 0, 0.9, v),
    "an index of it": lambda v, x: A[(v > 0).long()],
    "an integer": lambda v, x: A[v.long() % K],
    "a truth value as a number": lambda v, x: (v > 0).double() * 2,
    "truth values side by side": lambda v, x: torch.stack([v > 0, v < 1]).double(),
    "an integer as a number": lambda v, x: v.long().double(),
    "a product with values": lambda v, x: torch.dot(v, WEIGHTS.double()).exp(),
    "by name": lambda v, x: torch.mul(input=v, other=v) + torch.add(input=v, other=1.0),
    "where, by name": lambda v, x: torch.where(condition=WEIGHTS > 0, input=v, other=v.exp()),
    "in place": lambda v, x: v.exp_() + v,
    "in place, by values": lambda v, x: v.mul_(x[:2]),
    "written to": lambda v, x: written_to(v, 0, 0.3).exp(),
    "written into values": lambda v, x: written_to(x.clone(), 0, v[1]).exp(),
    "a distribution": lambda v, x: dist.Normal(v, 1.0, validate_args=False).log_prob(x[0]),
}


def sums(z):
    return PAIR[z].sum(0), B[z]


@pytest.mark.parametrize("name", [*LINEAR, *PRODUCTS])
def test_a_linear_loss_has_the_same_gradient_for_every_draw(name):
    function = {**LINEAR, **PRODUCTS}[name]

    def loss(z):
        return function(*sums(z)).sum()

    x = logits()
    exact = exact_gradient(loss, x)
    for state in states(x):
        torch.testing.assert_close(gradient_of_draw(loss, state, x), exact)
    assert isinstance(function(*sums(drawn(torch.tensor([2, 0, 1]), x))), DeferredTensor)


@pytest.mark.parametrize("name", LINEAR)
def test_a_loss_of_a_linear_function_is_exact_on_average(name):
    def loss(z):
        return (LINEAR[name](*sums(z)) ** 3).exp().sum()

    assert relative_error(loss, logits()) < 1e-10


@pytest.mark.parametrize("name", CURVED)
def test_another_loss_is_exact_on_average(name):
    def loss(z):
        return CURVED[name](*sums(z)).sum()

    assert relative_error(loss, logits()) < 1e-10


def test_a_sum_of_a_deferred_tensor_is_exact_on_average():
    def loss(z):
        rows = PAIR[z].sum(-1) + PAIR[z].sum()
        return (rows.sum() / 3).exp()

    assert relative_error(loss, logits()) < 1e-10


def test_a_sum_in_two_losses_has_both_gradients():
    def loss(z):
        total = A[z].sum()
        return 2 * total + total.exp()

    assert relative_error(loss, logits()) < 1e-10


def test_the_sum_of_many_elements_has_the_gradient_of_the_estimator():
    x = table(20, 2, seed=5).requires_grad_()
    state = (x.detach() > 0).long()[:, 0]

    def loss(z):
        return (A[z].sum() / 10).exp()

    found = gradient_of_draw(loss, state, x)
    torch.testing.assert_close(found, gradient_of_draw(loss, state, x, outcomes=False))
    with_estimator = gradient_of_draw(lambda z: A[z].sum(), state, x, outcomes=False)
    assert (gradient_of_draw(lambda z: A[z].sum(), state, x) - with_estimator).norm() > 0.01


def test_numbers_that_were_changed_since_are_not_read():
    z = drawn(torch.tensor([2, 0, 1]), logits())
    constant = torch.ones(())
    total = A[z].sum() + constant
    expected = total.detach().exp()
    constant += 1
    torch.testing.assert_close(total.exp().detach(), expected)
    other = A[z].sum()
    with torch.no_grad():
        other.mul_(2.0)
    torch.testing.assert_close(other.exp().detach(), (2 * A[z].sum()).exp().detach())


class Marked(torch.Tensor):
    """A user's tensors, with operations of their own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def test_another_class_of_tensors_gets_the_gradient_of_the_estimator():
    x, other = logits(), torch.ones(()).as_subclass(Marked)
    state = torch.tensor([2, 0, 1])

    def loss(z):
        return A[z].sum() * other

    expected = gradient_of_draw(loss, state, x, outcomes=False)
    torch.testing.assert_close(gradient_of_draw(loss, state, x), expected)
    assert not torch.allclose(gradient_of_draw(lambda z: A[z].sum(), state, x), expected)


@pytest.mark.parametrize("name", [*LINEAR, *CURVED])
def test_the_numbers_are_those_of_plain_integers(name):
    state = torch.tensor([2, 0, 1])
    function = {**LINEAR, **CURVED}[name]
    expected = function(*sums(state))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = function(*sums(drawn(state, logits())))
        torch.testing.assert_close(torch.as_tensor(settled(found)), expected, rtol=0, atol=0)


def test_questions_need_no_outcomes(monkeypatch):
    def unexpected(tensor):
        raise AssertionError

    total = A[drawn(torch.tensor([2, 0, 1]), logits())].sum()
    monkeypatch.setattr(DeferredTensor, "settled", property(unexpected))
    assert not total.isnan()
    assert total.shape == ()
    assert total.item() == total.tolist()
    assert not total.detach().requires_grad
    assert total.requires_grad


def test_a_sum_of_many_terms():
    """It is made step by step, and torch's checks of it need no outcomes."""
    z = drawn(torch.tensor([2, 0, 1]), logits())
    total = 0.0
    for _ in range(400):
        total = total + A[z].sum()
    assert torch._is_all_true(total < 1e6)
    assert total._later._made is None
    torch.testing.assert_close((total / 400).exp().detach(), A[z].sum().exp().detach())


class Other:
    """What is no tensor, and takes part in operations with one."""

    def __radd__(self, value):
        return "added"

    def __matmul__(self, value):
        return NotImplemented


def test_an_operation_with_what_is_no_tensor():
    x = A[drawn(torch.tensor([2, 0, 1]), logits())]
    assert x.sum() + Other() == x + Other() == "added"
    for value in (x, x + x.sum()):
        with pytest.raises(TypeError, match="unsupported operand"):
            Other() @ value


@pytest.mark.parametrize("inside", [True, False])
def test_a_value_is_computed_under_the_autocast_of_its_line(inside):
    """For a loss that is not linear in it too, wherever that is."""
    draw = Draw(4, dtype=torch.float32).with_outcomes
    values, weights = torch.linspace(0.1, 0.8, 4).float(), torch.full((4,), 1.001).float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        product = values[draw] @ weights
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
        made = product.settled
    assert made.dtype == (torch.bfloat16 if inside else torch.float32)
    assert torch.equal(plain(made), product.plain)


def test_a_value_may_be_computed_under_another_autocast_with_the_same_weights():
    draw = Draw(2, dtype=torch.float32).with_outcomes
    values, weights = torch.linspace(0.1, 0.8, 4).float(), torch.ones(2, 1).float()
    weights.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = values[draw] @ weights
    with torch.autocast("cpu", dtype=torch.float16):
        _ = torch.ones(3, 2).float() @ weights
        assert product.settled.dtype == torch.bfloat16


def test_a_comparison_is_read_as_it_was():
    """Though torch does not count the change of a leaf by its `data`."""
    draw, weights = Draw(4, dtype=torch.float32).with_outcomes, torch.ones(4).float()

    def model():
        larger = torch.full((4,), 0.5).float()[draw] @ weights > 1
        weights.data.zero_()
        return bool(larger)

    assert pyro.poutine.trace(model)()
