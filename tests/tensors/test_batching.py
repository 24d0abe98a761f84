# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Operations on the values of every category at once equal those on each."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_gumbel.tensors import batching
from pyro_gumbel.tensors.batching import batched, batched_join

SHAPE = 2, 3, 1
OPERATIONS = [
    *((Tensor.unsqueeze, (dim,), {}) for dim in (-4, -1, 0, 3)),
    *((Tensor.squeeze, (dim,), {}) for dim in (2, -1, (0, 2))),
    *((Tensor.sum, (dim,), {}) for dim in (0, 1, -1, (0, -1), [1, 2], None, ())),
    (Tensor.sum, (), {}),
    (Tensor.sum, (1, True), {}),
    (torch.sum, (), {"axis": (0, 1)}),
    (torch.mean, (), {"dim": 0, "keepdim": True}),
    (torch.prod, (), {"dim": 1}),
    (torch.logsumexp, ((0, 1),), {}),
    (Tensor.amax, ((0, 1),), {}),
    (F.softmax, (1,), {}),
    (F.log_softmax, (), {"dim": 0}),
    (Tensor.cumsum, (1,), {}),
    (Tensor.transpose, (0, 2), {}),
    (Tensor.transpose, (-1, 1), {}),
    (Tensor.select, (1, 2), {}),
    (Tensor.narrow, (1, 0, 2), {}),
    (Tensor.reshape, (3, 2), {}),
    (Tensor.reshape, ((-1,),), {}),
    (Tensor.reshape, (-1, 1), {}),
    (Tensor.permute, (2, 0, -2), {}),
    (Tensor.permute, ((1, 0, 2),), {}),
    (Tensor.expand, (4, 2, 3, 5), {}),
    (Tensor.flip, ((0,),), {}),
    (Tensor.__getitem__, (0,), {}),
    (Tensor.__getitem__, ((..., 0),), {}),
    (Tensor.__getitem__, ((slice(1), None, -1),), {}),
    (Tensor.__getitem__, ((slice(None), torch.tensor([0, 2])),), {}),
    (Tensor.__getitem__, (True,), {}),
    (Tensor.__getitem__, ([0, 1],), {}),
    (Tensor.max, (1,), {}),
    (Tensor.unbind, (1,), {}),
    (Tensor.chunk, (2, 0), {}),
]


def in_list(result):
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize(("func", "rest", "kwargs"), OPERATIONS)
def test_an_operation(func, rest, kwargs):
    table = torch.randn(4, *SHAPE)
    found = in_list(batched(func, table, rest, kwargs))
    of_each = [in_list(func(each, *rest, **kwargs)) for each in table]
    for part, expected in zip(found, map(torch.stack, zip(*of_each, strict=True)), strict=True):
        assert part.shape == expected.shape
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize(
    ("func", "rest", "kwargs"),
    [
        (Tensor.unsqueeze, (0,), {}),
        (Tensor.sum, (0,), {}),
        (Tensor.softmax, (-1,), {}),
        (Tensor.squeeze, (0,), {}),
        (Tensor.transpose, (0, 0), {}),
        (Tensor.reshape, (1, 1), {}),
        (Tensor.__getitem__, (None,), {}),
    ],
)
def test_an_operation_on_numbers(func, rest, kwargs):
    table = torch.randn(4)
    expected = torch.stack([func(each, *rest, **kwargs) for each in table])
    found = batched(func, table, rest, kwargs)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)


JOINS = [
    *((torch.stack, (dim,), {}) for dim in (0, 2, -1)),
    (torch.stack, (), {"dim": 1}),
    *((torch.cat, (dim,), {}) for dim in (0, 1, -1)),
    (torch.cat, (), {}),
    (torch.vstack, (), {}),
    (torch.hstack, (), {}),
]


@pytest.mark.parametrize(("func", "rest", "kwargs"), JOINS)
def test_a_join(func, rest, kwargs):
    tables = [torch.randn(4, 2, 3), torch.randn(4, 2, 3)]
    expected = torch.stack(
        [func(list(each), *rest, **kwargs) for each in zip(*tables, strict=True)]
    )
    torch.testing.assert_close(batched_join(func, tables, rest, kwargs), expected)


@pytest.mark.parametrize("func", [Tensor.sum, Tensor.reshape, Tensor.__getitem__, Tensor.select])
def test_it_does_without_vmap(func, monkeypatch):
    monkeypatch.setattr(batching, "of_every_category", None)
    rest = (1, 0) if func is Tensor.select else (0,) if func is not Tensor.reshape else (6,)
    batched(func, torch.randn(4, *SHAPE), rest, {})
