# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The kernels run in Triton's interpreter, by `make test-kernels`, and not in other test runs."""

import importlib.util
import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" or not importlib.util.find_spec("triton"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Memory that a kernel does not write to holds NaN, and tiles are large, for speed."""
    from pyro_gumbel.kernels import cuda

    monkeypatch.setattr(cuda, "TILE", 2**14)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def short_blocks(monkeypatch):
    """Rows longer than 8 are taken 8 columns at a time."""
    from pyro_gumbel.kernels import triton_kernels

    monkeypatch.setattr(triton_kernels, "LONGEST", 8)


@pytest.fixture
def on_the_kernels(monkeypatch):
    """The distributions find them for tensors of a CPU."""
    from pyro_gumbel.kernels import cuda, dispatch

    monkeypatch.setitem(dispatch.BY_DEVICE, "cpu", cuda)
