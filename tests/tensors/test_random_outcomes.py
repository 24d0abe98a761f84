# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Random expressions of draws with outcomes: plain numbers, and the gradient of substitution.

The whole expression is evaluated again for each element and category. That is its gradient, unless
an operation on the way has taken the derivative in place of outcomes.
"""

import contextlib
import random
import warnings

import pytest
import torch
from pyro.ops.indexing import Vindex
from torch.nn import functional as F

from pyro_gumbel.tensors import index_tensor, outcomes

from .substitution import assert_equal, centred
from .test_random_expressions import (
    OF_FLOATS,
    OF_FLOATS_AND_WHOLE,
    OF_TWO_FLOATS,
    OPERATIONS,
    TO_FLOATS_OF_ONE,
    TO_FLOATS_OF_TWO,
    Node,
    draws,
    is_whole,
    random_expression,
    same_shape,
    table,
    within,
)

pytestmark = pytest.mark.usefixtures("float64")


def changed(function):
    """A copy of a tensor, changed in place."""

    def change(x, *others):
        x = x.clone()
        function(x, *others)
        return x

    return change


def as_rows(f):
    """With a last dimension of its own, over a table."""
    return f.unsqueeze(-1) * table(3)


# Of floats, of the same shape or another.
ALSO_OF_FLOATS = {
    "exponential": lambda f: (f / 9).exp(),
    "logarithm": lambda f: (f.abs() + 0.1).log(),
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "power": lambda f: f.abs() ** 1.5,
    "inverse": lambda f: 1 / (1 + f * f),
    "clamped": lambda f: f.clamp(0.7, 2.5),
    "compared": lambda f: torch.where(f > 1, f * f, -f),
    "comparison": lambda f: (f > 1).double(),
    "rounded": lambda f: f.round() + f / 2,
    "to integers": lambda f: table(4)[f.long() % 4],
    "rows": as_rows,
    "sum of rows": lambda f: as_rows(f).exp().sum(-1),
    "mean of rows": lambda f: as_rows(f).exp().mean(-1, keepdim=True),
    "logsumexp": lambda f: as_rows(f).logsumexp(-1),
    "softmax": lambda f: as_rows(f).softmax(-1),
    "log-softmax": lambda f: F.log_softmax(as_rows(f), -1)[..., 0],
    "softmax of a few": lambda f: torch.softmax(f, -1),
    "sum of the last": lambda f: f.sum(-1),
    "sum of two dimensions": lambda f: f.sum((0, -1)),
    "mean of the first": lambda f: f.mean(dim=0, keepdim=True),
    "changed": changed(lambda f: f.mul_(2).add_(1)),
    "exponential in place": changed(lambda f: f.div_(9).exp_()),
    "added to": changed(lambda f: f.add_(f)),
    "operator in place": changed(lambda f: f.__imul__(3)),
    "written with a number": changed(lambda f: f.__setitem__(0, 0.4)),
    "shifted in place": changed(lambda f: f.cumsum_(0)),
    "copied in place": changed(lambda f: f.copy_(f.flip(0))),
    "filled floats": lambda f: f.masked_fill(f > 1, 0.25),
    "flat floats": lambda f: f.reshape(-1),
    "first floats": lambda f: f[0],
    "last floats": lambda f: f[..., -1],
    "slice of floats": lambda f: f[1:],
    "inner floats": lambda f: f[..., None],
    "listed floats": lambda f: f[..., [0, 0]],
    "flipped floats": lambda f: f.flip(-1),
    "turned floats": lambda f: f.mT if f.dim() > 1 else f.roll(1),
    "expanded floats": lambda f: f.expand(2, *f.shape),
    "copied floats": lambda f: f.expand(2, *f.shape).clone(),
    "repeated floats": lambda f: f.repeat(2, *[1] * f.dim()),
    "unbound floats": lambda f: f.unbind(-1)[-1],
    "diagonal of floats": lambda f: f.diagonal(dim1=0, dim2=-1),
    "float": lambda f: f.float().double(),
    "matmul": lambda f: f.reshape(1, -1) @ table(f.numel()),
    "sum of all": lambda f: f.sum(),
    "mean of all": lambda f: as_rows(f).exp().mean(),
    "product of rows": lambda f: as_rows(f).prod(-1),
    "largest of rows": lambda f: as_rows(f).amax((0, -1), keepdim=True),
    "logsumexp of the first": lambda f: f.logsumexp(0),
    "cumulated rows": lambda f: as_rows(f).cumsum(dim=-1)[..., 1],
    "cumulated floats": lambda f: f.cumsum(-1),
}
ALSO_OF_TWO_FLOATS = {
    "sum of floats": lambda f, g: f + g,
    "quotient": lambda f, g: f / (1 + g * g),
    "log-density": lambda f, g: -((f - 1) ** 2) / (1 + g * g) - (1 + g * g).log(),
    "larger floats": torch.maximum,
    "logaddexp": torch.logaddexp,
    "choice of two": lambda f, g: torch.where(f > g, f, g * g),
    "stacked floats": same_shape(torch.stack),
    "stacked last": same_shape(lambda each: torch.stack(each, -1)),
    "joined floats": same_shape(lambda each: torch.cat(each, -1)),
    "sum of stacked": same_shape(lambda each: torch.stack(each, -1).logsumexp(-1)),
    "product in place": changed(lambda f, g: f.mul_(g)),
    "sum in place": changed(lambda f, g: f.__iadd__(g)),
    "outer product": lambda f, g: f.unsqueeze(-1) * g,
    "fused": lambda f, g: torch.addcmul(f, f, g, value=0.5),
    "between": lambda f, g: torch.lerp(f, g, 0.3),
    "written": changed(lambda f, g: f.__setitem__(0, g)),
    "written last": changed(lambda f, g: f.__setitem__((..., -1), g.reshape(-1)[0])),
    "written at": changed(lambda f, g: f.__setitem__(torch.arange(f.shape[0]) == 1, g)),
    "written twice": changed(lambda f, g: f.__setitem__([0, -1], g)),
}
ALSO_OF_FLOATS_AND_WHOLE = {
    "column of floats": lambda f, x: f[..., within(x, f.shape[-1])],
    "gathered of floats": lambda f, x: f.expand(*x.shape, f.shape[-1]).gather(
        -1, within(x, f.shape[-1]).unsqueeze(-1)
    ),
    "gathered of rows": lambda f, x: as_rows(f).gather(-1, within(x, 3).unsqueeze(-1)).squeeze(-1),
    "Vindex of rows": lambda f, x: Vindex(as_rows(f))[..., within(x, 3)],
    "Vindex of floats": lambda f, x: Vindex(f)[..., within(x, f.shape[-1])],
    "cells of rows": lambda f, x: as_rows(f)[torch.arange(f.shape[0]), ..., within(x, 3)],
    "entry of rows": lambda f, x: as_rows(f)[..., within(x, 3)],
    "floats, taken": lambda f, x: f.take(within(x, f.numel())),
    "floats, selected": lambda f, x: f.index_select(-1, within(x, f.shape[-1]).flatten()),
    "along floats": lambda f, x: torch.take_along_dim(f, within(x, f.numel()).flatten()),
    "power of": lambda f, x: f.abs() ** (x % 3),
    "filled at": lambda f, x: f.masked_fill(x == 1, 0.3),
    "at one place": lambda f, x: f * F.one_hot(within(x, 3), 3),
}
FLOATS = [
    (OF_FLOATS | ALSO_OF_FLOATS, (False,)),
    (OF_TWO_FLOATS | ALSO_OF_TWO_FLOATS, (False, False)),
    (OF_FLOATS_AND_WHOLE | ALSO_OF_FLOATS_AND_WHOLE, (False, True)),
]
TO_FLOATS = [(TO_FLOATS_OF_ONE, (True,)), (TO_FLOATS_OF_TWO, (True, True))]
ALL = [*OPERATIONS, *FLOATS, *FLOATS, *FLOATS, *TO_FLOATS, *TO_FLOATS]


@contextlib.contextmanager
def derivatives_counted(monkeypatch):
    """How many tensors have given up their outcomes, in a list of one number."""
    count = [0]

    def counted(*args, **options):
        count[0] += 1
        return outcomes.with_gradient(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(index_tensor, "with_gradient", counted)
        yield count


def gradients_of(value, own, weights):
    total = (value * weights).sum()
    if not total.requires_grad:
        return [torch.zeros_like(each.one_hot) for each in own]
    wanted = [each.one_hot for each in own]
    return torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)


def substituted(expression, own, weights):
    numbers, gradients = [each.numbers for each in own], []
    for i, draw in enumerate(own):
        gradient = torch.zeros_like(draw.one_hot)
        for place, replaced in draw.replaced():
            value = expression.of([*numbers[:i], replaced, *numbers[i + 1 :]])
            gradient[place] = (value * weights).sum()
        gradients.append(gradient)
    return gradients


def check(seed, monkeypatch):
    """Whether the gradient of the expression of this seed was compared."""
    torch.manual_seed(seed)
    own = draws()
    numbers = [each.numbers for each in own]
    expression = random_expression(random.Random(seed), numbers, ALL)
    if is_whole(expression.of(numbers)):
        expression = Node("double", lambda x: x.double(), [expression])
    with warnings.catch_warnings(record=True) as caught, derivatives_counted(monkeypatch) as count:
        warnings.simplefilter("always")
        found = expression.of([each.with_outcomes for each in own])
    assert_equal(found, expression.of(numbers))
    if caught or count[0]:
        assert all("gradient of a categorical draw" in str(each.message) for each in caught)
        return False
    weights = torch.randn(found.shape, dtype=torch.float64)
    try:
        expected = substituted(expression, own, weights)
    except (RuntimeError, IndexError):  # some category would be an error
        return False
    for a, b in zip(gradients_of(found, own, weights), expected, strict=True):
        torch.testing.assert_close(centred(a), centred(b), rtol=1e-9, atol=1e-9)
    return any(each.any() for each in expected)


def test_random_expressions(monkeypatch):
    compared = sum(check(seed, monkeypatch) for seed in range(150))
    assert compared > 75


@pytest.mark.slow
def test_many_random_expressions(monkeypatch):
    compared = sum(check(seed, monkeypatch) for seed in range(150, 4300))
    assert compared > 2000
