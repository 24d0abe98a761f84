# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The device for tests without a GPU takes and refuses what CUDA does."""

import pytest
import torch

from tests.pretend_device import CALLS, OPERATIONS, PRETENDED

pytestmark = pytest.mark.cpu(reason="the device is made of tensors of the CPU")


@pytest.fixture(autouse=True)
def _device():
    with OPERATIONS, CALLS:
        yield


def both():
    """A tensor on the device, and one on the CPU."""
    return torch.arange(3.0, device="cuda"), torch.arange(3.0)


TAKEN = {
    "a scalar": lambda x, y: x + y[1],
    "a condition": lambda x, y: torch.where(x > 1, y[0], x),
    "an index": lambda x, y: x[y.long()],
    "a copy": lambda x, y: x.copy_(y),
    "a number": lambda x, y: x * y[1].item(),
    "moved": lambda x, y: x + y.to(x.device) + y.to(x),
    "alike": lambda x, y: torch.zeros_like(x) + x.new_tensor([1.0]) + torch.randn(3, device="cuda"),
    "gradient": lambda x, y: torch.func.grad(lambda x: (x.cpu() * y).sum())(x),
    "vmap": lambda x, y: torch.vmap(lambda x: x * torch.ones((), device=x.device))(x),
}
REFUSED = {
    "an operand": lambda x, y: x + y,
    "a scalar to a vector": lambda x, y: y + x[0],
    "in place": lambda x, y: y[0].add_(x[0]),
    "a bound": lambda x, y: x.clamp(y[0], y[1]),
    "a list": lambda x, y: torch.cat([x, y]),
    "an index of the device": lambda x, y: y[x.long()],
    "an index by its name": lambda x, y: x.index_select(0, y.long()),
    "a matrix product": lambda x, y: x @ y,
    "in a backward pass": lambda x, y: torch.func.grad(lambda x: (x * y).sum())(x),
}


@pytest.mark.parametrize("call", TAKEN)
def test_takes(call):
    x, y = both()
    assert TAKEN[call](x, y).device == x.device == PRETENDED
    assert y.device.type == "cpu"


@pytest.mark.parametrize("call", REFUSED)
def test_refuses(call):
    with pytest.raises(RuntimeError, match="on the same device"):
        REFUSED[call](*both())


def test_numpy_takes_tensors_of_the_cpu():
    x, y = both()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    assert (x.cpu().numpy() == y.numpy()).all()
