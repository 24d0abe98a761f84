# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""A device for tests without a GPU, to find tensors that are on the wrong device.

    make test ARGS="--device pretend"

Its tensors are plain tensors of the CPU whose storage is marked. They say that they are on
`cuda:0`, and refuse what tensors there refuse: operations with tensors of the CPU, and numpy.
"""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.autograd import graph
from torch.overrides import TorchFunctionMode
from torch.utils import _device
from torch.utils._python_dispatch import TorchDispatchMode

CPU, PRETENDED = torch.device("cpu"), torch.device("cuda", 0)

ATEN = torch.ops.aten
PUTS = {ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
TAKE_INDICES = {ATEN.index, *PUTS}  # on the CPU, of a tensor on the device
TAKE_SCALARS = {ATEN.masked_fill, ATEN.masked_fill_, ATEN.fill, ATEN.fill_, *PUTS}
TAKE_ALL = {ATEN.copy, ATEN.copy_, ATEN.set_}


def tensors_in(value):
    """The tensors in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def storage_of(tensor):
    """Of the plain tensor inside those of the transforms of torch.func."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


def is_pretended(tensor):
    if torch._C._functorch.is_legacy_batchedtensor(tensor):  # of `is_grads_batched`
        return OPERATIONS.makes_pretended
    return hasattr(storage_of(tensor), "is_pretended")


def device_of(tensor):
    device = Tensor.device.__get__(tensor)
    return PRETENDED if device == CPU and is_pretended(tensor) else device


class Operations(TorchDispatchMode):
    """Refuses operations as CUDA does, and marks what they return."""

    makes_pretended = False  # whether tensors that are made of no tensor are on the device

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # for speed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            kwargs = kwargs or {}
            given = {storage_of(t)._cdata: is_pretended(t) for t in tensors_in((args, kwargs))}
            if len(set(given.values())) > 1:
                refuse_mixtures(func, args, kwargs)
            if func is ATEN._efficientzerotensor.default:
                func = ATEN.zeros.default  # the other one has no storage
            result = func(*args, **kwargs)
            if any(given.values()) or (not given and self.makes_pretended):
                for tensor in tensors_in(result):
                    storage = storage_of(tensor)
                    if storage._cdata not in given and tensor.is_cpu:
                        storage.is_pretended = True
            return result

    @contextlib.contextmanager
    def making(self, pretended):
        before, self.makes_pretended = self.makes_pretended, pretended
        try:
            yield
        finally:
            self.makes_pretended = before


def refuse_mixtures(func, args, kwargs):
    """What CUDA takes from the CPU is indices, and scalars in pointwise operations."""
    operation = func.overloadpacket
    if operation in TAKE_ALL or func.name().startswith("aten::_foreach"):
        return
    takes_scalars = torch.Tag.pointwise in func.tags or operation in TAKE_SCALARS
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "indices" and operation in TAKE_INDICES:
            continue
        is_changed = argument.alias_info is not None and argument.alias_info.is_write
        given = args[place] if place < len(args) else kwargs.get(argument.name)
        for tensor in tensors_in(given):
            is_scalar = tensor.dim() == 0 and takes_scalars and not is_changed
            if not (is_scalar or is_pretended(tensor)):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, {tensor.device} and {PRETENDED}: `{argument.name}` of {func}"
                )


class Move(torch.autograd.Function):
    """A copy on the other device."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor):
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU)
        if not is_pretended(tensor):
            storage_of(copy).is_pretended = True
        return copy.copy_(tensor)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return Move.apply(gradient)

    @staticmethod
    def jvp(ctx, tangent):
        return Move.apply(tangent)


def moved(tensor, device):
    """On the CPU or the device."""
    return tensor if device_of(tensor) == device else Move.apply(tensor)


def as_device(given):
    device = torch.device(given)
    return PRETENDED if device.type == PRETENDED.type else device


class Calls(TorchFunctionMode):
    """Says of a tensor where it is, and reads where a call of torch wants it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if types and torch._C._is_torch_function_enabled():
            with self:  # the class of a tensor decides, and calls torch in turn
                return types[0].__torch_function__(func, types, args, kwargs)
        if func in SPECIAL:
            return SPECIAL[func](*args, **kwargs)
        device = kwargs.get("device")
        if device is None and func in _device._device_constructors():
            device = _device.CURRENT_DEVICE or CPU
        elif device is None and func is Tensor.new_tensor:
            device = device_of(args[0])
        if device is None:
            with OPERATIONS.making(any(map(is_pretended, tensors_in((args, kwargs))))):
                return func(*args, **kwargs)
        device = as_device(device)
        if device not in (CPU, PRETENDED):
            return func(*args, **{**kwargs, "device": device})
        with OPERATIONS.making(device == PRETENDED):
            result = func(*args, **{**kwargs, "device": CPU})
        if func in (torch.as_tensor, torch.asarray):
            return moved(result, device)
        return marked(result, device)


def to(tensor, *args, device=None, **kwargs):
    if args and isinstance(args[0], Tensor):
        device, args = device_of(args[0]), (args[0].dtype, *args[1:])
    elif args and isinstance(args[0], (str, int, torch.device)):
        device, *args = args
    device = device_of(tensor) if device is None else as_device(device)
    if device not in (CPU, PRETENDED):
        return tensor.to(device, *args, **kwargs)
    return moved(tensor.to(*args, **kwargs) if args or kwargs else tensor, device)


def of_cpu(method):
    def call(tensor, *args, **kwargs):
        if is_pretended(tensor):
            raise TypeError(f"can't convert {PRETENDED} device type tensor to numpy; write .cpu()")
        return method(tensor, *args, **kwargs)

    return call


def marked(tensor, device):
    if device == PRETENDED:
        storage_of(tensor).is_pretended = True
    elif hasattr(storage_of(tensor), "is_pretended"):
        del storage_of(tensor).is_pretended
    return tensor


def on_device(rebuild, *args):
    tensor = rebuild(*args)
    storage_of(tensor).is_pretended = True
    return tensor


def skip(*args, **kwargs):
    pytest.skip("compilers and tracers do not know the device")


REDUCE = Tensor._reduce_ex_internal


def reduced(tensor, protocol):
    rebuild, args = REDUCE(tensor, protocol)
    return (on_device, (rebuild, *args)) if is_pretended(tensor) else (rebuild, args)


SPECIAL = {
    Tensor.__deepcopy__: lambda tensor, memo: marked(tensor.__deepcopy__(memo), device_of(tensor)),
    Tensor.device.__get__: device_of,
    Tensor.is_cpu.__get__: lambda tensor: device_of(tensor).type == "cpu",
    Tensor.is_cuda.__get__: lambda tensor: device_of(tensor).type == "cuda",
    Tensor.cpu: lambda tensor, *args: moved(tensor, CPU),
    Tensor.cuda: lambda tensor, *args: moved(tensor, PRETENDED),
    Tensor.to: to,
    Tensor.numpy: of_cpu(Tensor.numpy),
    Tensor.__array__: of_cpu(Tensor.__array__),
}
OPERATIONS, CALLS = Operations(), Calls()


def start():
    """From now on there is the device; also in backward passes, which torch runs without modes."""
    Tensor._reduce_ex_internal = reduced
    torch.serialization.add_safe_globals([on_device])
    torch.compile = torch.jit.trace = skip
    OPERATIONS.__enter__()
    CALLS.__enter__()
    run_backward = graph._engine_run_backward

    def run(*args, **kwargs):
        with CALLS:
            return run_backward(*args, **kwargs)

    torch.autograd._engine_run_backward = run
    return PRETENDED
