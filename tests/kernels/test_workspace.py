# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Blocks cover every element once, and scratch memory is what it says."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pyro_gumbel import compiled
from pyro_gumbel.kernels import workspace
from pyro_gumbel.kernels.formulas import SHORT

pytestmark = pytest.mark.cpu(reason="the memory of the kernels of the CPU")

# sample shape, batch shape, event shape
SHAPES = [
    ((), (), ()),
    ((4,), (3,), ()),
    ((2, 2), (3, 2), (5,)),
    ((), (7,), (5,)),
    ((7,), (), (5,)),
    ((0,), (3,), (5,)),
    ((2,), (3,), (100,)),  # an event larger than a block
]


@pytest.mark.parametrize("size", [1, 12, 2**19])
@pytest.mark.parametrize(("sample", "batch", "event"), SHAPES)
def test_blocks_cover_each_draw_once(sample, batch, event, size, monkeypatch):
    """Writes go to the tensors themselves; parameters are those of the draw's row."""
    monkeypatch.setattr(workspace, "BLOCK", size)
    shape = torch.Size(sample + batch + event)
    count, sums = torch.zeros(shape), torch.zeros(shape)
    x = torch.randn(batch[-1:] + event)
    tau = torch.rand((*batch, *(1 for _ in event)))
    total, per_draw = torch.zeros((math.prod(batch), *event)), torch.zeros(sample + batch)
    blocks = workspace.Blocks(shape, torch.Size(batch), len(event))
    by_row = [blocks.over_rows(x), blocks.over_rows(tau), torch.tensor(2.0), total]
    seen = set()
    for (samples, rows), (x_, tau_, scalar, total_), (
        count_,
        sums_,
        per_draw_,
        none,
    ) in blocks.each(by_row, [count, sums, per_draw, None]):
        assert none is None
        assert scalar == 2
        assert count_.numel() <= max(size, math.prod(event))
        count_ += 1
        sums_ += x_ * tau_
        per_draw_ += 1
        assert (samples.start == 0) == ((rows.start, rows.stop) not in seen)
        seen.add((rows.start, rows.stop))
        total_ += count_.sum(0)
    assert (count == 1).all()
    assert (per_draw == 1).all()
    torch.testing.assert_close(sums, (x * tau).expand(shape))
    assert (total == math.prod(sample)).all()


@pytest.mark.parametrize("k", [1, 3, SHORT, 40])
def test_short_rows_lie_across(k):
    like = torch.zeros(())
    memory = workspace.scratch("test", (1000, k), like)
    assert memory.shape == (1000, k)
    assert memory.is_contiguous() == (not 1 < k < SHORT)
    assert memory.data_ptr() == workspace.scratch("test", (5, k), like).data_ptr()
    assert memory.data_ptr() != workspace.scratch("another", (5, k), like).data_ptr()
    assert memory.data_ptr() != workspace.scratch("test", (5, k), like.double()).data_ptr()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(workspace.scratch, "test", (5, k), like).result()
        assert memory.data_ptr() != other.data_ptr()


@pytest.mark.slow
def test_no_rows_lie_across_for_programs():
    with compiled():
        assert workspace.scratch("test", (1000, 3), torch.zeros(())).is_contiguous()


def test_what_is_larger_than_a_block_is_not_kept():
    first, second = (
        workspace.scratch("test", (workspace.BLOCK + 1,), torch.zeros(())) for _ in range(2)
    )
    assert first.data_ptr() != second.data_ptr()
