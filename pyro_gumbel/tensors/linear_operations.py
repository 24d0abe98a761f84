# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How an operation of torch is applied to deferred tensors.

One that is linear in them gives a deferred tensor again. Every other one takes the tensor for a
loss that is not linear, see `pyro_gumbel.tensors.deferred`.
"""

from typing import Any

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_gumbel.tensors.deferred import DeferredTensor, Settled, deferred, settled
from pyro_gumbel.tensors.index_tensor import collapsed, varies
from pyro_gumbel.tensors.lost_gradient import is_host, warn_of_lost_gradient, who_asks
from pyro_gumbel.tensors.operations import (
    IN_PLACE_OPERATORS,
    LINEAR_REDUCTIONS,
    READS,
    apply,
    asks,
    is_decided_by,
    is_in_place,
    is_product_with_plain,
    records_no_gradient,
    rule_of,
)
from pyro_gumbel.tensors.rules import (
    broadcasting_rule,
    converting_rule,
    getitem_rule,
    joining_rule,
    moving_like_rule,
    moving_rule,
)

__all__: list[str] = []


def _apply_deferred(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation that a deferred tensor takes part in."""
    if asks(func) or func.__name__ in _CHECKS or records_no_gradient():
        result = func(*args, **kwargs)
        if func.__name__ in READS and am_i_wrapped() and torch.is_grad_enabled():
            _warn_of_branch(func, args, kwargs)
        return result
    if is_in_place(func):
        return _deferred_in_place(func, args, kwargs)
    if _is_linear(func, args, kwargs):
        return _linear(func, args, kwargs)
    return _settled(func, args, kwargs)


DeferredTensor._rule = staticmethod(_apply_deferred)


def _warn_of_branch(func: Any, args: Any, kwargs: Any) -> None:
    """Warn where the user reads a truth value that is another one for another category."""
    value = args[0] if args else kwargs.get("input")
    is_truth = func is Tensor.__bool__ or getattr(value, "dtype", None) == torch.bool
    if not is_truth or type(value) is not DeferredTensor or is_host(who_asks()[0]):
        return
    made: Any = value
    later = value.later
    if not isinstance(later, Settled) or later.steps > _MOST_STEPS:
        return
    if value.dtype == torch.bool:  # made again without the warning that a comparison gives
        compared = later.arguments_of(_settled_later)
        try:
            made = apply(*compared) if varies(compared) else None
        except RuntimeError:  # of a tensor that was given another shape, unseen by torch
            return
    if is_decided_by(func, settled(made)):
        warn_of_lost_gradient(func.__name__)


def _settled(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation for a loss that is not linear in its arguments."""
    args, kwargs = settled((args, kwargs))
    if varies((args, kwargs)):
        return apply(func, args, kwargs)
    result = func(*args, **kwargs)
    name = func.__name__.strip("_")
    if (rule_of(func) is converting_rule or name in _COMPARISONS) and not result.requires_grad:
        warn_of_lost_gradient(name)
    return result


def _settled_later(*arguments: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return _settled(*arguments)


def _linear(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation for a loss that is linear in its result."""
    result = func(*_for_linear(args), **_for_linear(kwargs))
    if result is NotImplemented:  # the other argument is asked next
        return result
    if isinstance(result, Tensor):
        return deferred(result, _settled_later, func, args, kwargs)
    whole = Settled(result, _settled_later, func, args, kwargs)
    return type(result)(deferred(each, _entry_of, i, whole) for i, each in enumerate(result))


def _entry_of(place: int, whole: Any) -> Any:
    return settled(whole)[place]


def _for_linear(arguments: Any) -> Any:
    """The arguments with gradients in place of outcomes. A deferred tensor has its gradient."""
    kind = type(arguments)
    if kind is DeferredTensor:
        return arguments
    if kind is tuple or kind is list:
        return kind([_for_linear(each) for each in arguments])
    if kind is dict:
        return {name: _for_linear(each) for name, each in arguments.items()}
    return collapsed(arguments, linear=True)


def _deferred_in_place(func: Any, args: Any, kwargs: Any) -> Any:
    """The change of a deferred tensor, or of another tensor by one."""
    value, *rest = args
    if not isinstance(value, DeferredTensor):
        return _settled(func, args, kwargs)
    other = getattr(Tensor, IN_PLACE_OPERATORS.get(func.__name__, func.__name__[:-1]), None)
    if _is_linear(other, args, kwargs):
        later = Settled(value.plain, _settled_later, other, args, kwargs)
        func(value, *_for_linear(rest), **_for_linear(kwargs))
        value.defer(later)
    else:
        new = _settled(Tensor.clone, (value,), {})
        _settled(func, (new, *rest), kwargs)
        value.copy_(collapsed(new, linear=True))
        value.defer(Settled(value.plain, settled, new))
    return value


def _are_floats(arguments: Any) -> bool:
    """Whether the deferred tensors among the arguments are floats: others are not linear in v."""
    kind = type(arguments)
    if kind is DeferredTensor:
        is_float: bool = arguments.is_floating_point()
        return is_float
    if kind is dict:
        arguments = arguments.values()
    elif kind is not tuple and kind is not list:
        return True
    return all(map(_are_floats, arguments))


def _is_linear(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a result is linear in all tensors with outcomes together, up to a constant."""
    name, rule = getattr(func, "__name__", ""), rule_of(func)
    if not args or "out" in kwargs or not _are_floats((args, kwargs)):
        return False
    if name.strip("_") in _COMPARISONS:
        return True  # in which no loss is linear: the result has no gradient until it is settled
    if (
        rule in (moving_rule, moving_like_rule, getitem_rule, converting_rule)
        or name in LINEAR_REDUCTIONS
    ):
        return not varies(args[1:]) and not varies(kwargs)
    if name in _MULTIPLICATIONS:
        return not (varies(args[0]) and varies(args[1:])) and not varies(kwargs)
    if name in _QUOTIENTS:
        return not varies(args[1:]) and not kwargs
    if name == "where":
        return not varies(args[0]) and not kwargs
    if name in _DIFFERENCES or rule in (joining_rule, broadcasting_rule):
        return True
    return is_product_with_plain(func, args) and not varies(kwargs)


# The names of functions.

# Operations on a deferred tensor whose results have no gradient.
_CHECKS = {"isnan", "isinf", "isfinite", "_is_all_true", "_is_any_true", *READS}
_MOST_STEPS = 64  # to see whether a branch depends on a draw, as after a loop
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}

# Linear operations, besides those that move.
_DIFFERENCES = {
    *("add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "rsub", "subtract"),
    *("neg", "negative", "__neg__", "positive", "__pos__"),
}
_MULTIPLICATIONS = {"mul", "multiply", "__mul__", "__rmul__"}
_QUOTIENTS = {"div", "divide", "true_divide", "__truediv__"}
