# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The entries that an index selects have the outcomes of the operations that they stand for."""

import pytest
import torch

from pyro_gumbel.tensors.index_tensor import drawn_index, outcomes_of
from pyro_gumbel.tensors.lookups import entries

CASES = {
    "the draw": (lambda z: z, (4, 2, 3)),
    "one table": (lambda z: z, (3,)),
    "a larger table": (lambda z: z, (4, 2, 5)),
    "a smaller table": (lambda z: z, (4, 2, 2)),
    "a wider batch": (lambda z: z[..., :1], (4, 2, 3)),
    "more dimensions": (lambda z: z, (5, 4, 2, 3)),
    "integers of the draw": (lambda z: 2 - z, (4, 2, 3)),
    "a part": (lambda z: z[1:], (3, 1, 3)),
    "two parts": (lambda z: (z[:-1] + z[1:]) // 2, (3, 2, 3)),
    "other integers": (lambda z: z.int(), (4, 2, 3)),
}


def entry(table, index):
    """As `log_prob` of torch's Categorical selects it, in four operations."""
    indices, whole = torch.broadcast_tensors(index.long().unsqueeze(-1), table)
    return whole.gather(-1, indices[..., :1]).squeeze(-1)


@pytest.mark.parametrize("name", CASES)
def test_entries(name):
    of_draw, shape = CASES[name]
    one_hot = torch.eye(3)[torch.tensor([[0, 1], [2, 2], [1, 0], [0, 0]])].requires_grad_()
    index = of_draw(drawn_index(one_hot, one_hot.argmax(-1), lambda: one_hot.softmax(-1)))
    table = torch.randn(shape, requires_grad=True)
    if name == "a smaller table":
        index = torch.minimum(index, torch.ones_like(index))
    found, expected = entries(table, index), entry(table, index)
    assert torch.equal(found.plain, expected.plain)
    pairs = list(zip(outcomes_of(found), outcomes_of(expected), strict=True))
    assert pairs
    for a, b in pairs:
        whole = (-1, *found.shape)
        torch.testing.assert_close(a.table.expand(whole), b.table.expand(whole))
        assert torch.equal(a.elements.expand(found.shape), b.elements.expand(found.shape))
    weights = torch.randn(found.shape)
    inputs = one_hot, table
    slopes = [
        torch.autograd.grad((each * weights).sum(), inputs, retain_graph=True)
        for each in (found, expected)
    ]
    torch.testing.assert_close(*slopes)
