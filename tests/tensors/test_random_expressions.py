# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Random expressions of index tensors: plain numbers, and the right gradient or a warning.

An expression is a tree of operations. Its reference gradient is that of plain autograd, where each
operation that makes floats of integers or truth values adds what literal substitution gives.
"""

import random
import warnings

import pytest
import torch
from pyro.ops.indexing import Vindex
from torch.nn import functional as F

from tests.common import seeded

from .substitution import Draw, assert_equal, centred

pytestmark = pytest.mark.usefixtures("float64")


class Node:
    """An operation and its arguments; without arguments the draw of this number."""

    def __init__(self, name, operation, arguments):
        self.name, self.operation, self.arguments = name, operation, arguments

    def __str__(self):
        return f"{self.name}({', '.join(map(str, self.arguments))})"

    def draws(self):
        if isinstance(self.operation, int):
            return {self.operation}
        return set().union(*(each.draws() for each in self.arguments))

    def of(self, leaves):
        """The value for these draws."""
        if isinstance(self.operation, int):
            return leaves[self.operation]
        return self.operation(*[each.of(leaves) for each in self.arguments])

    def reference(self, draws):
        """The value of plain numbers, with the gradient of literal substitution."""
        numbers = [each.numbers for each in draws]
        if isinstance(self.operation, int):
            return numbers[self.operation]
        values = [each.reference(draws) for each in self.arguments]
        result = self.operation(*values)
        if not result.is_floating_point():
            return result
        whole = [
            each if not value.is_floating_point() else None
            for each, value in zip(self.arguments, values, strict=True)
        ]
        for i in set().union(*(each.draws() for each in whole if each is not None)):
            one_hot = draws[i].one_hot
            zero = one_hot - one_hot.detach()
            for place, replaced in draws[i].replaced():
                other = [*numbers[:i], replaced, *numbers[i + 1 :]]
                result = result + zero[place] * self.operation(
                    *[
                        value.detach() if each is None else each.of(other)
                        for each, value in zip(whole, values, strict=True)
                    ]
                )
        return result


def is_whole(x):
    return not x.is_floating_point()


def table(*shape, dtype=torch.float64):
    """The same numbers for the same shape."""
    seed = sum(s * 31**i for i, s in enumerate(shape))
    if dtype == torch.float64:
        return seeded(torch.rand, seed, shape, dtype=dtype) + 0.5
    return seeded(torch.randint, seed, 4, shape)


def integers(x):
    return x if x.dtype == torch.int64 else x.long()


def within(x, n):
    """Indices less than n, without an operation where they are so."""
    return integers(x) if n >= 16 else integers(x) % n


def same_shape(function):
    return lambda *each: function(torch.broadcast_tensors(*each))


def same_kind(function):
    return lambda a, b: function(*torch.broadcast_tensors(integers(a), integers(b)))


# Of one tensor of integers or truth values.
OF_ONE = {
    "plus": lambda x: x + 1,
    "minus": lambda x: 3 - integers(x),
    "twice": lambda x: 2 * x,
    "modulo": lambda x: x % 3,
    "halved": lambda x: x // 2,
    "negative": lambda x: -integers(x),
    "is": lambda x: x == 1,
    "is not": lambda x: x != 2,
    "less": lambda x: x < 2,
    "not": lambda x: ~(x > 1),
    "clamp": lambda x: integers(x).clamp(1, 2),
    "long": lambda x: x.long(),
    "bool": lambda x: x.bool(),
    "short": lambda x: x.short().long(),
    "code": lambda x: table(16, dtype=int)[within(x, 16)],
    "codes": lambda x: table(5, 2, dtype=int)[within(x, 5)],
    "one-hot": lambda x: F.one_hot(within(x, 4), 4),
    "choice": lambda x: torch.where(x == 1, 3, integers(x)),
    "filled": lambda x: integers(x).masked_fill(x == 1, 2),
    # Moved.
    "flat": lambda x: x.reshape(-1),
    "first": lambda x: x[0],
    "last": lambda x: x[..., -1],
    "slice": lambda x: x[1:],
    "steps": lambda x: x[::2],
    "none": lambda x: x[None],
    "inner": lambda x: x[..., None],
    "list": lambda x: x[[0, 0]],
    "mask": lambda x: x[torch.arange(x.shape[0]) != 0],
    "turned": lambda x: x.T if x.dim() == 2 else x.transpose(0, 1),
    "expanded": lambda x: x.expand(2, *x.shape),
    "copied": lambda x: x.expand(2, *x.shape).clone(),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1),
    "repeat": lambda x: x.repeat(2, *[1] * max(x.dim() - 1, 0)),
    "interleaved": lambda x: x.repeat_interleave(2, 0),
    "chunk": lambda x: x.chunk(2)[-1],
    "unbind": lambda x: x.unbind()[-1],
    "iterated": lambda x: next(iter(x)),
    "squeeze": lambda x: x.squeeze(),
    "diagonal": lambda x: x.diagonal(),
    # Lost.
    "sum": lambda x: x.sum(),
    "cumulated": lambda x: x.cumsum(0),
    "sorted": lambda x: x.sort().values,
    "largest": lambda x: x.max(),
    "counted": lambda x: integers(x).flatten().abs().bincount(),
    "itself": lambda x: x[x == 1],
    "any": lambda x: (x == 1).any(),
    "outer": lambda x: integers(x).flatten().outer(integers(x).flatten()),
    "padded": lambda x: F.pad(x, (1, 0)),
    "written": lambda x: torch.zeros(4).index_put((within(x, 4),), torch.ones(1)).long(),
}

# Of two of them.
OF_TWO = {
    "sum of two": lambda x, y: x + y,
    "product": lambda x, y: integers(x) * y,
    "difference": lambda x, y: integers(x) - integers(y),
    "code of two": lambda x, y: 4 * x + y,
    "equal": lambda x, y: x == y,
    "greater": lambda x, y: x > y,
    "and": lambda x, y: (x == 1) & (y > 0),
    "or": lambda x, y: (x == 1) | (y > 2),
    "where": lambda x, y: torch.where(x > 1, integers(y), 2),
    "where of": lambda x, y: torch.where(x > y, integers(x), integers(y)),
    "larger": same_kind(torch.maximum),
    "stack": same_kind(lambda *each: torch.stack(each)),
    "stack last": same_kind(lambda *each: torch.stack(each, -1)),
    "cat": same_kind(lambda *each: torch.cat(each)),
    "index": lambda x, y: x[within(y, x.shape[0])],
    "gathered": lambda x, y: integers(x).flatten().gather(0, within(y, x.numel()).flatten()),
    "taken": lambda x, y: x.take(within(y, x.numel())),
    "codes of two": lambda x, y: table(3, 4, dtype=int)[within(x, 3), within(y, 4)],
    "broadcast": lambda x, y: torch.broadcast_tensors(x, y)[1],
    "outer sum": lambda x, y: x.unsqueeze(-1) + y,
}

# To floats.
TO_FLOATS_OF_ONE = {
    "double": lambda x: x.double(),
    "to": lambda x: x.to(torch.float64),
    "half": lambda x: x * 1.5,
    "ratio": lambda x: x / 2,
    "choice of floats": lambda x: torch.where(x == 1, 2.0, 3.0),
    "times floats": lambda x: integers(x).unsqueeze(-1) * table(4),
    "table": lambda x: table(16)[within(x, 16)],
    "small table": lambda x: table(5)[within(x, 5)],
    "table of rows": lambda x: table(4, 2)[within(x, 4)],
    "column": lambda x: table(2, 4)[:, within(x, 4)],
    "column of three": lambda x: table(2, 4, 3)[:, within(x, 4), 1:],
    "cell": lambda x: table(2, 4, 3)[1, within(x, 4), 0],
    "with none": lambda x: table(4, 2)[None, within(x, 4), ..., None],
    "with list": lambda x: table(4, 2, 3)[within(x, 4), :, [1]],
    "with mask": lambda x: table(4, 3)[within(x, 4)[..., None], torch.tensor([True, False, True])],
    "with itself": lambda x: table(4, 3)[within(x, 4), within(x, 3)],
    "vindex": lambda x: Vindex(table(2, 1, 4, 3))[..., within(x, 4), :],
    "embedding": lambda x: F.embedding(within(x, 4), table(4, 3)),
    "one-hot floats": lambda x: F.one_hot(within(x, 4), 4).double(),
    "gathered floats": lambda x: table(*x.shape, 4).gather(-1, within(x, 4).unsqueeze(-1)),
    "selected": lambda x: table(2, 4).index_select(-1, within(x, 4).flatten()),
    "along": lambda x: torch.take_along_dim(table(4), within(x, 4).flatten(), 0),
    "taken floats": lambda x: table(4, 4).take(within(x, 16)),
}
TO_FLOATS_OF_TWO = {
    "table of two": lambda x, y: table(4, 4)[within(x, 4), within(y, 4)],
    "apart": lambda x, y: table(4, 2, 4)[within(x, 4), :, within(y, 4)],
    "outer table": lambda x, y: table(4, 4, 2)[within(x, 4).unsqueeze(-1), within(y, 4)],
    "vindex of two": lambda x, y: Vindex(table(2, 4, 4))[..., within(x, 4), within(y, 4)],
    "where floats": lambda x, y: torch.where(x == y, 2.0, 0.5),
    "ratio of two": lambda x, y: integers(x) / (integers(y).abs() + 1),
}
# Of floats, and of floats with others.
OF_FLOATS = {
    "scaled": lambda f: 2 * f + 1,
    "exp": lambda f: (f / 4).sin(),
    "total": lambda f: f.sum(-1) if f.dim() else f,
    "squares": lambda f: f * f,
}
OF_FLOATS_AND_WHOLE = {
    "row of floats": lambda f, x: f[within(x, f.shape[0])],
    "kept": lambda f, x: torch.where(x == 1, f, 0.5),
    "times": lambda f, x: f * x,
    "masked": lambda f, x: (x == 1) * f,
}
OF_TWO_FLOATS = {"mixed": lambda f, g: f * g, "difference of floats": lambda f, g: f - g}

OPERATIONS = [
    *((OF_ONE, (True,)), (OF_TWO, (True, True)), (OF_ONE, (True,)), (OF_TWO, (True, True))),
    *((TO_FLOATS_OF_ONE, (True,)), (TO_FLOATS_OF_TWO, (True, True))),
    *((OF_FLOATS, (False,)), (OF_FLOATS_AND_WHOLE, (False, True)), (OF_TWO_FLOATS, (False, False))),
]


def draws():
    return [Draw(3), Draw(3), Draw(2, 1, k=3), Draw()]


def random_expression(chance, numbers, operations=OPERATIONS):
    """A tree of one to five operations, each of the one before and of earlier ones."""
    nodes = [Node("zwvs"[i], i, []) for i in range(len(numbers))]
    values = list(numbers)
    wanted = len(nodes) + chance.randint(1, 5)
    last = chance.randrange(len(nodes))
    while len(nodes) < wanted:
        kinds, whole = chance.choice(operations)
        name = chance.choice(list(kinds))
        at = [last, chance.randrange(len(nodes))][: len(whole)]
        chance.shuffle(at)
        if [is_whole(values[i]) for i in at] != list(whole):
            continue
        try:
            value = kinds[name](*[values[i] for i in at])
        except (RuntimeError, IndexError, TypeError):
            continue
        if value.numel() > 60 or value.dim() > 4 or not value.numel():
            continue
        last = len(nodes)
        nodes.append(Node(name, kinds[name], [nodes[i] for i in at]))
        values.append(value)
    return nodes[-1]


def check(seed):
    """Whether the gradient of the expression of this seed was compared."""
    torch.manual_seed(seed)
    own = draws()
    numbers = [each.numbers for each in own]
    expression = random_expression(random.Random(seed), numbers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = expression.of([each.index for each in own])
        whole = is_whole(found)
        assert_equal(found, expression.of(numbers))
        found = found.double()
    if caught:
        assert all("gradient of a categorical draw" in str(each.message) for each in caught)
        return False
    if whole:
        expression = Node("double", lambda x: x.double(), [expression])
    try:
        expected = expression.reference(own)
    except (RuntimeError, IndexError):  # some category would be an error
        return False
    weights = torch.randn(found.shape, dtype=torch.float64)
    assert expected.requires_grad == found.requires_grad
    if not expected.requires_grad:
        return False
    gradients = [
        torch.autograd.grad(
            (value * weights).sum(),
            [each.one_hot for each in own],
            allow_unused=True,
            materialize_grads=True,
        )
        for value in (found, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(centred(a), centred(b), rtol=1e-9, atol=1e-9)
    return True


def test_random_expressions():
    compared = sum(map(check, range(200)))
    assert compared > 150


@pytest.mark.slow
def test_many_random_expressions():
    compared = sum(map(check, range(200, 5400)))
    assert compared > 3800
