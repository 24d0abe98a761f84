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


def marked(tensor, pretended=True):
    if pretended:
        storage_of(tensor).is_pretended = True
    elif is_pretended(tensor):
        del storage_of(tensor).is_pretended
    return tensor


def tensors_in(value):
    """The tensors in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(each)


class Operations(TorchDispatchMode):
    """Refuses operations as CUDA does, and marks what they return."""

    makes_pretended = False  # whether tensors that are made of no tensor are on the device

    @contextlib.contextmanager
    def making(self, pretended):
        before, self.makes_pretended = self.makes_pretended, pretended
        try:
            yield
        finally:
            self.makes_pretended = before

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # for speed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            kwargs = kwargs or {}
            given = {storage_of(t)._cdata: is_pretended(t) for t in tensors_in((args, kwargs))}
            if len(set(given.values())) > 1:
                refuse_mixtures(func, args, kwargs)
            if func is torch.ops.aten._efficientzerotensor.default:  # has no storage
                func = torch.ops.aten.zeros.default
            result = func(*args, **kwargs)
            if any(given.values()) or (not given and self.makes_pretended):
                for tensor in tensors_in(result):
                    if tensor.is_cpu and storage_of(tensor)._cdata not in given:
                        marked(tensor)
            return result


PUTS = {"index_put", "index_put_", "_index_put_impl_"}
TAKE_INDICES = {"index", *PUTS}
TAKE_SCALARS = {"masked_fill", "masked_fill_", "fill", "fill_", *PUTS}
TAKE_NO_SCALARS = {"clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_"}
TAKE_ALL = {"copy", "copy_", "set_"}


def refuse_mixtures(func, args, kwargs):
    """What CUDA takes from the CPU is indices, and scalars in most pointwise operations."""
    name = func.overloadpacket.__name__
    if name in TAKE_ALL or name.startswith("_foreach"):
        return
    takes_scalars = torch.Tag.pointwise in func.tags or name in TAKE_SCALARS
    takes_scalars = takes_scalars and name not in TAKE_NO_SCALARS
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "indices" and name in TAKE_INDICES:
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
        return marked(copy, not is_pretended(tensor)).copy_(tensor)

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
    return tensor if device_of(tensor) == device else Move.apply(tensor)


class Calls(TorchFunctionMode):
    """Says of a tensor where it is, and reads where a call of torch wants it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if types and torch._C._is_torch_function_enabled():
            with self:  # the class of a tensor decides, and calls torch in turn
                return types[0].__torch_function__(func, types, args, kwargs)
        if func in SPECIAL:
            return SPECIAL[func](*args, **kwargs)
        device = wanted(func, args, kwargs)
        if device is None:
            with OPERATIONS.making(any(map(is_pretended, tensors_in((args, kwargs))))):
                return func(*args, **kwargs)
        if device not in (CPU, PRETENDED):
            return func(*args, **{**kwargs, "device": device})
        if device == PRETENDED and kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        with OPERATIONS.making(device == PRETENDED):
            result = func(*args, **{**kwargs, "device": CPU})
        if func in (torch.as_tensor, torch.asarray):  # may be a tensor that was there before
            return moved(result, device)
        return marked(result, device == PRETENDED)


def wanted(func, args, kwargs):
    """The device that a call names, or the default one; None where neither counts."""
    device = kwargs.get("device")
    if device is None and func in _device._device_constructors():
        device = _device.CURRENT_DEVICE or CPU
    if device is None:
        return device_of(args[0]) if func is Tensor.new_tensor else None
    return PRETENDED if torch.device(device).type == "cuda" else torch.device(device)


def to(tensor, *args, device=None, **kwargs):
    if args and isinstance(args[0], Tensor):
        device, args = device_of(args[0]), (args[0].dtype, *args[1:])
    elif args and not isinstance(args[0], torch.dtype):
        device, *args = args
    device = wanted(to, (tensor,), {"device": device}) or device_of(tensor)
    if device not in (CPU, PRETENDED):
        return tensor.to(device, *args, **kwargs)
    return moved(tensor.to(*args, **kwargs) if args or kwargs else tensor, device)


def of_cpu(method):
    def call(tensor, *args, **kwargs):
        if is_pretended(tensor):
            raise TypeError(f"can't convert {PRETENDED} device type tensor to numpy; write .cpu()")
        return method(tensor, *args, **kwargs)

    return call


SPECIAL = {
    Tensor.__array__: of_cpu(Tensor.__array__),
    Tensor.__deepcopy__: lambda x, memo: marked(x.__deepcopy__(memo), is_pretended(x)),
    Tensor.cpu: lambda x, **_: moved(x, CPU),
    Tensor.device.__get__: device_of,
    Tensor.numpy: of_cpu(Tensor.numpy),
    Tensor.to: to,
}
OPERATIONS, CALLS = Operations(), Calls()


def rebuilt(rebuild, *args):
    """A tensor of the device from a pickle."""
    return marked(rebuild(*args))


def skip(*args, **kwargs):
    pytest.skip("compilers and tracers do not know the device")


def start():
    """From now on there is the device; also in backward passes, which torch runs without modes."""
    reduce, run_backward = Tensor._reduce_ex_internal, graph._engine_run_backward

    def reduced(tensor, protocol):
        rebuild, args = reduce(tensor, protocol)
        return (rebuilt, (rebuild, *args)) if is_pretended(tensor) else (rebuild, args)

    def run(*args, **kwargs):
        with CALLS:
            return run_backward(*args, **kwargs)

    OPERATIONS.__enter__()
    CALLS.__enter__()
    Tensor._reduce_ex_internal, torch.autograd._engine_run_backward = reduced, run
    torch.serialization.add_safe_globals([rebuilt])
    torch.compile = torch.jit.trace = skip
    torch.cuda.is_current_stream_capturing = lambda: False
    return PRETENDED
