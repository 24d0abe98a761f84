# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How an operation of torch is applied to tensors with outcomes.

An operation acts on the numbers as on those of a plain tensor. Its rule, from
`pyro_gumbel.tensors.rules`, then gives the result its outcomes. Without a rule, floats take part
as plain tensors with the derivative. Integers and truth values take part without a gradient, with a
warning, except in *questions* that do not depend on the numbers, as ``shape``.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from pyro_gumbel._tracing import in_eager_mode
from pyro_gumbel.tensors.deferred import deferred
from pyro_gumbel.tensors.event_rules import (
    class_loss_rule,
    einsum_rule,
    is_plain_mean,
    loss_rule,
    matrix_rule,
    pair_rule,
    product_rule,
    reduced_dims,
    reduced_outcomes,
    single_outcomes,
)
from pyro_gumbel.tensors.grouping import MOST_PARTS, in_parts
from pyro_gumbel.tensors.index_tensor import (
    OutcomeTensor,
    carrying,
    collapsed,
    outcomes_of,
    varies,
)
from pyro_gumbel.tensors.lost_gradient import (
    is_in_function,
    warn_of_derivative,
    warn_of_hook,
    warn_of_lost_gradient,
)
from pyro_gumbel.tensors.outcomes import NO_ELEMENT, without_gradient
from pyro_gumbel.tensors.rules import (
    broadcasting_rule,
    converting_rule,
    elementwise_rule,
    embedding_rule,
    gather_rule,
    getitem_rule,
    index_select_rule,
    is_row_lookup,
    joining_rule,
    moving_like_rule,
    moving_rule,
    one_hot_rule,
    rows_of,
    take_along_dim_rule,
    take_rule,
    writing_rule,
)

__all__ = [
    "IN_PLACE_OPERATORS",
    "LINEAR_REDUCTIONS",
    "READS",
    "apply",
    "asks",
    "is_decided_by",
    "is_in_place",
    "is_layer",
    "is_product_with_plain",
    "records_no_gradient",
    "rule_of",
]

Rule = Callable[[Any, Any, Any, Any], Any]  # of the function, its arguments and its result


def apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation, with the outcomes that it has."""
    rule = rule_of(func)
    if rule is _ask and not varies(args[1:]):
        return func(*args, **kwargs)
    if records_no_gradient() and not is_in_function():  # whose result may have outcomes
        return func(*args, **kwargs)
    if rule is _ask_for_gradient:
        return func(*args) or _has_gradient(args[0])
    if rule is _hook and not args[0].requires_grad:
        warn_of_hook()
        return torch.empty(0, requires_grad=True).register_hook(*args[1:], **kwargs)
    if is_in_place(func):
        return _changed_in_place(func, args, kwargs)
    if rule is None and _has_floats((args, kwargs)):
        if func is Tensor.__bool__ and am_i_wrapped() and is_decided_by(func, args[0]):
            warn_of_lost_gradient("__bool__")
        return _collapse(func, args, kwargs)
    if rule is _reduced:
        return _reduce(func, args, kwargs)
    if rule in (loss_rule, class_loss_rule) and kwargs.get("reduction", "mean") != "none":
        return _reduced_loss(func, args, kwargs)
    if rule is getitem_rule and is_row_lookup(*args):
        return rows_of(*args)
    result = func(*args, **kwargs)
    if args and result is args[0]:
        return result
    made = _made(rule, func, args, kwargs, result)
    if made is None and _has_floats((args, kwargs)):
        return _collapse(func, args, kwargs)
    compares = _compares_floats(args)
    if made is None:
        name = getattr(func, "__name__", repr(func))
        value = args[0] if args else kwargs.get("input")
        if not compares or (name in READS and am_i_wrapped() and is_decided_by(func, value)):
            warn_of_lost_gradient(name)
        return result
    result = _carrying(result, made)
    if compares and isinstance(result, OutcomeTensor) and result.dtype == torch.bool:
        result.compares_floats = True
    return result


OutcomeTensor._rule = staticmethod(apply)


def _compares_floats(args: Any) -> bool:
    """Whether an argument is a float, or the result of comparing floats.

    The gradient of a float ends where it is compared, as in torch. It warns only where a Pyro
    program takes another branch for another category.
    """
    values = [each for each in args if isinstance(each, OutcomeTensor)]
    return any(each.compares_floats or each.is_floating_point() for each in values)


def is_decided_by(func: Any, value: Any) -> bool:
    """Whether what a function reads of a truth value is another for other categories.

    :param func: one of `READS`.
    """
    if not isinstance(value, OutcomeTensor) or not in_eager_mode():
        return False
    if value.is_cuda and torch.cuda.is_current_stream_capturing():
        return False  # where no number can be read
    outcomes = outcomes_of(value)
    if sum(each.table.numel() for each in outcomes) > _MOST_READ:
        return False
    tables, truth = [each.table != 0 for each in outcomes], value.plain != 0
    may_be_true, may_be_false = truth, ~truth
    for each, table in zip(outcomes, tables, strict=True):
        varies_here = each.elements != NO_ELEMENT
        may_be_true = may_be_true | (varies_here & table.any(0))
        may_be_false = may_be_false | (varies_here & ~table.all(0))
    if func.__name__ == "any":
        return bool(may_be_true.any() & may_be_false.all())
    if func.__name__ == "all":
        return bool(may_be_true.all() & may_be_false.any())
    return bool((may_be_true & may_be_false).any())


def _collapse(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation on plain floats, with gradients in place of their outcomes.

    A value of one element of a draw keeps its outcomes, except in networks.
    """
    if not (is_layer(func) or is_in_place(func)):
        made = _single_outcomes(func, args, kwargs)
        if made:
            return _carrying(func(*args, **kwargs), made)
    if is_product_with_plain(func, args):
        result = func(*collapsed(args, linear=True), **kwargs)
        if result is NotImplemented:
            return result
        return deferred(result, _collapsed_later, func, args, kwargs)
    return _collapse_for_others(func, args, kwargs)


def is_layer(func: Any) -> bool:
    """Whether a function is a layer of networks. Its cost would be that of all categories."""
    return getattr(func, "__name__", "") in _OF_NETWORKS


def _single_outcomes(func: Any, args: Any, kwargs: Any) -> Any:
    """What `single_outcomes` finds; None if the function cannot be applied to every category."""
    if kwargs.get("out") is not None:
        return None
    try:
        with without_gradient():
            return single_outcomes(func, args, kwargs)
    except Exception:  # of any function: it need not return tensors, for example
        return None


def is_product_with_plain(func: Any, args: Any) -> bool:
    """Whether a function is linear in the only tensor that varies among its arguments."""
    is_product = getattr(func, "__name__", "") in _PRODUCTS
    return is_product and sum(isinstance(each, OutcomeTensor) for each in tree_leaves(args)) == 1


def _collapsed_later(*arguments: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return _collapse_for_others(*arguments)


def _collapse_for_others(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation on plain floats, for a loss that is not linear in them."""
    name = getattr(func, "__name__", repr(func))
    args, kwargs = collapsed((args, kwargs))
    if varies((args, kwargs)):
        warn_of_lost_gradient(name)
    else:
        warn_of_derivative(name)
    return func(*args, **kwargs)


def _has_floats(arguments: Any) -> bool:
    """Whether floats with outcomes are among the arguments."""
    if isinstance(arguments, dict):
        return any(map(_has_floats, arguments.values()))
    if isinstance(arguments, tuple | list):
        return any(map(_has_floats, arguments))
    return isinstance(arguments, OutcomeTensor) and arguments.is_floating_point()


def records_no_gradient() -> bool:
    """Whether torch records no gradient, as under `torch.no_grad`."""
    return not torch.is_grad_enabled() and in_eager_mode()


def _made(rule: Rule | None, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The outcomes of a result, or of each of its tensors; None where they are lost."""
    if kwargs:
        args, kwargs = _regular(rule, args, kwargs)
    if rule is None or "out" in kwargs:
        return None
    try:
        with without_gradient():
            return rule(func, args, kwargs, result)
    except (
        RuntimeError,
        IndexError,
        TypeError,
        ValueError,
    ):  # not known here, or another category would be an error
        return None


def _regular(rule: Rule | None, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """The arguments without an `out` of None, and with the first one not by its name."""
    kwargs = {name: value for name, value in kwargs.items() if name != "out" or value is not None}
    first = {"input", "tensors"} & set(kwargs)
    if first and not args and rule is not elementwise_rule:
        args = (kwargs.pop(first.pop()),)
    return args, kwargs


def _carrying(result: Any, outcomes: Any) -> Any:
    if not outcomes:
        return result
    if isinstance(result, Tensor):
        return carrying(result, outcomes)
    return type(result)(map(carrying, result, outcomes))


# The names of functions that read truth values, upon which a program may branch.
READS = {"all", "any", "item", "tolist", "__bool__", "__int__", "__float__"}
_MOST_READ = 2**22  # outcomes that are looked at, which takes milliseconds


# Which rule is for which function.


_RULES: dict[Any, Rule | None] = {}  # found so far


def rule_of(func: Any) -> Rule | None:
    """The rule of a function; None if there is none."""
    if func not in _RULES:
        _RULES[func] = _find_rule(func)
    return _RULES[func]


def _find_rule(func: Any) -> Rule | None:
    name = getattr(func, "__name__", "")
    if name == "__get__" and getattr(func, "__self__", None) is Tensor.requires_grad:
        return _ask_for_gradient
    if name == "__get__":
        return _MOVING_PROPERTIES.get(getattr(func, "__self__", None), _ask)
    if name in _LOSSES | _CLASS_LOSSES and func is not getattr(F, name):
        return None  # as `torch.kl_div`, whose arguments are others
    if name in _BY_NAME:
        return _BY_NAME[name]
    stem = name.strip("_")
    stem = _OPERATORS.get(stem, stem)
    return elementwise_rule if stem in _ALSO_ELEMENTWISE or _is_elementwise(stem) else None


@functools.cache
def _is_elementwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    tags = set().union(*(getattr(packet, each).tags for each in packet.overloads()))
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


# Reductions.


def _reduced(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For `sum`, `logsumexp`, `softmax` and their kind, see `_reduce`."""
    raise NotImplementedError


def _reduce(func: Any, args: Any, kwargs: Any) -> Any:
    """A reduction: of outcomes over the dimensions of an event, and over a few elements of a draw.

    Over more of them it is of plain floats. A sum over elements is deferred: it is linear in each.
    """
    if kwargs:
        args, kwargs = _regular(_reduced, args, kwargs)
    if len(args) > 1 and isinstance(args[1], Tensor):  # `max` and `min` of two tensors
        return apply({"max": torch.maximum, "min": torch.minimum}[func.__name__], args, kwargs)
    value = args[0]
    if not isinstance(value, OutcomeTensor) or not value.is_floating_point():
        warn_of_lost_gradient(func.__name__)
        return func(*args, **kwargs)
    dims = reduced_dims(args, kwargs)
    vary = {d for d in dims for each in outcomes_of(value) if each.elements.shape[d] != 1}
    if func.__name__ not in LINEAR_REDUCTIONS or not (vary or not value.dim()):
        return _reduced_over(dims, vary, func, args, kwargs)
    result = func(collapsed(value, linear=True), *args[1:], **kwargs)
    return deferred(result, _reduced_later, dims, vary, func, args, kwargs)


def _reduced_later(*arguments: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return _reduced_over(*arguments)


def _reduced_over(dims: list[int], vary: set[int], func: Any, args: Any, kwargs: Any) -> Any:
    """A reduction over some dimensions, with outcomes if elements vary along at most one of them.

    :param vary: the dimensions along which they do.
    """
    value = args[0]
    outcomes = outcomes_of(value)
    are_many = len(vary) > 1 or any(not 0 < value.shape[d] <= MOST_PARTS for d in vary)
    if not outcomes or are_many:
        return func(collapsed(value), *args[1:], **kwargs)
    result = func(*args, **kwargs)
    groups = in_parts(value, min(vary)) if vary else outcomes
    with without_gradient():
        made = [reduced_outcomes(func, args, kwargs, each, dims, result) for each in groups]
    if isinstance(result, Tensor):
        return carrying(result, made)
    return type(result)(tuple(map(carrying, result, zip(*made, strict=True))))


def _reduced_loss(func: Any, args: Any, kwargs: Any) -> Any:
    """The sum or the mean of a loss, whose terms have outcomes."""
    reduction = kwargs.get("reduction", "mean")
    allowed = ("sum", "mean", "batchmean") if func is F.kl_div else ("sum", "mean")
    has_weights = rule_of(func) is class_loss_rule and not is_plain_mean(args, kwargs)
    if len(args) > 3 or reduction not in allowed or (reduction == "mean" and has_weights):
        return _collapse(func, args, kwargs)
    terms = apply(func, args, {**kwargs, "reduction": "none"})
    with torch._C._EnableTorchFunction():
        if reduction == "mean":
            return terms.sum() / terms.numel()
        return terms.sum() / len(args[0]) if reduction == "batchmean" else terms.sum()


# Changes in place.


@functools.cache
def is_in_place(func: Any) -> bool:
    """Whether a function changes its first argument."""
    name = getattr(func, "__name__", "")
    is_operator = name in IN_PLACE_OPERATORS or name == "__setitem__"
    return is_operator or (name.endswith("_") and not name.endswith("__"))


def _changed_in_place(func: Any, args: Any, kwargs: Any) -> Any:
    """The change of a value with outcomes. Into another tensor of integers the gradient is lost."""
    name, value = func.__name__, args[0] if args else None
    if not isinstance(value, OutcomeTensor):
        if _has_floats((args, kwargs)):
            return _collapse(func, args, kwargs)
        warn_of_lost_gradient(name)
        return func(*args, **kwargs)
    other = getattr(Tensor, IN_PLACE_OPERATORS.get(name, name[:-1]), None)
    made = None
    if name == "__setitem__" and value.is_floating_point():
        made = _made(writing_rule, func, args, kwargs, value)
    elif rule_of(other) is elementwise_rule:
        made = _made(elementwise_rule, other, args, kwargs, value)
    if made is None and _has_floats((args, kwargs)):
        return _changed_to_derivative(func, args, kwargs)
    result = func(*args, **kwargs)
    if made is None:
        warn_of_lost_gradient(name)
    value.keep(made or ())
    return result


def _changed_to_derivative(func: Any, args: Any, kwargs: Any) -> Any:
    """A change without a rule: of a copy that has the derivative, which is then the value."""
    value, *rest = args
    new = collapsed(value)
    result = _collapse(func, (new, *rest), kwargs)
    value.copy_(new)
    value.keep(())
    return value if result is new else result


# Questions, and the names of all functions.


def _ask(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For what does not depend on the numbers, and for what asks for a plain tensor."""
    return None


def asks(func: Any) -> bool:
    """Whether a function asks for something that does not depend on the numbers."""
    return rule_of(func) in (_ask, _ask_for_gradient, _hook)


def _ask_for_gradient(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For `requires_grad`, see `_has_gradient`."""
    return None


def _hook(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For a hook on a gradient: it is never called, since the outcomes have the gradient."""
    return None


def _has_gradient(value: OutcomeTensor) -> bool:
    """Whether floats will have a gradient in a draw."""
    draws = [draw for each in value.kept for draw in each.draws]
    return value.is_floating_point() and any(draw.one_hot.requires_grad for draw in draws)


def _properties(*names: str) -> Iterator[Any]:
    return (getattr(Tensor, name) for name in names)


_MOVING_PROPERTIES: dict[Any, Rule] = dict.fromkeys(
    _properties("T", "mT", "H", "mH", "real"), moving_rule
)


_MOVING = {
    *("reshape", "view", "expand", "unsqueeze", "squeeze", "permute", "transpose", "t"),
    *("flatten", "unflatten", "movedim", "moveaxis", "swapaxes", "swapdims", "ravel"),
    *("narrow", "select", "flip", "__reversed__", "fliplr", "flipud", "rot90", "roll"),
    *("repeat", "tile", "repeat_interleave", "broadcast_to", "diagonal", "atleast_1d"),
    *("atleast_2d", "atleast_3d", "adjoint", "chunk", "split", "tensor_split"),
    *("hsplit", "vsplit", "dsplit", "unbind", "split_with_sizes", "contiguous", "clone"),
}

_CONVERTING = {
    *("float", "double", "half", "bfloat16", "long", "int", "short", "char", "byte"),
    *("bool", "to", "type", "type_as", "cpu", "cuda"),
}

_QUESTIONS = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset"),
    *("data_ptr", "get_device", "element_size", "is_floating_point", "is_complex"),
    *("is_signed", "is_contiguous", "is_inference", "result_type", "can_cast"),
    *("__len__", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like"),
    *("randn_like", "new", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
    *("detach", "requires_grad_", "retain_grad", "__hash__", "__dir__"),
    *("__array_wrap__", "__dlpack_device__", "__set__", "__delete__"),
    *("broadcast_shapes", "is_same_size", "is_conj", "is_neg", "_is_view", "is_pinned"),
    *("untyped_storage", "is_shared", "share_memory_", "as_subclass"),
}

# Products, linear in each argument.
_PRODUCTS = {
    *("matmul", "__matmul__", "__rmatmul__", "mv", "mm", "bmm", "dot", "vdot", "inner"),
    *("tensordot", "einsum"),
}

LINEAR_REDUCTIONS = {"sum", "mean"}

_LOSSES = {
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "gaussian_nll_loss"),
    *("poisson_nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div"),
    *("soft_margin_loss", "margin_ranking_loss", "hinge_embedding_loss"),
}

_CLASS_LOSSES = {"cross_entropy", "nll_loss"}

_BY_NAME: dict[str, Rule | None] = {
    **dict.fromkeys(_MOVING, moving_rule),
    **dict.fromkeys(_CONVERTING, converting_rule),
    **dict.fromkeys(_QUESTIONS, _ask),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as"), moving_like_rule),
    **dict.fromkeys(("sum", "mean", "prod", "logsumexp", "softmax", "log_softmax"), _reduced),
    **dict.fromkeys(("amax", "amin", "max", "min", "argmax", "argmin"), _reduced),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp"), _reduced),
    **dict.fromkeys(("matmul", "__matmul__", "mv", "mm", "bmm"), product_rule),
    **dict.fromkeys(("linalg_solve_triangular", "linalg_solve", "cholesky_solve"), pair_rule),
    "einsum": einsum_rule,
    **dict.fromkeys(("tril", "triu", "cholesky", "linalg_cholesky", "inverse"), matrix_rule),
    **dict.fromkeys(("linalg_inv", "matrix_exp", "linalg_matrix_exp", "pinverse"), matrix_rule),
    **dict.fromkeys(("det", "logdet", "linalg_det", "cholesky_inverse"), matrix_rule),
    **dict.fromkeys(("stack", "cat", "concat", "concatenate"), joining_rule),
    **dict.fromkeys(("hstack", "vstack", "dstack", "column_stack", "row_stack"), joining_rule),
    **dict.fromkeys(("broadcast_tensors",), broadcasting_rule),
    **dict.fromkeys(_LOSSES, loss_rule),
    **dict.fromkeys(_CLASS_LOSSES, class_loss_rule),
    "register_hook": _hook,
    "__getitem__": getitem_rule,
    "gather": gather_rule,
    "take_along_dim": take_along_dim_rule,
    "take": take_rule,
    "index_select": index_select_rule,
    "embedding": embedding_rule,
    "one_hot": one_hot_rule,
}

_OF_NETWORKS = {
    *("linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"),
    *("conv_transpose3d", "embedding_bag", "scaled_dot_product_attention"),
    "multi_head_attention_forward",
}

IN_PLACE_OPERATORS = {
    f"__i{name}__": f"__{name}__"
    for name in ("add", "sub", "mul", "pow", "truediv", "floordiv", "mod", "and", "or", "xor")
}

# Those that torch does not tag, with its second names for others.
_ALSO_ELEMENTWISE = {
    *("floor_divide", "isclose", "isreal", "special_xlogy", "conj", "resolve_conj"),
    *("logsigmoid", "log_sigmoid", "softsign", "tanhshrink", "hardswish", "resolve_neg"),
    *("subtract", "multiply", "divide", "negative", "absolute", "fix"),
    *("arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh"),
    *("greater", "greater_equal", "less", "less_equal", "not_equal"),
    *("special_expit", "special_gammainc", "special_gammaincc", "special_gammaln"),
    *("special_ndtr", "special_psi"),
}

_OPERATORS = {
    **{f"r{name}": name for name in ("add", "sub", "mul", "pow")},
    **dict.fromkeys(("truediv", "rtruediv", "div", "rdiv", "true_divide"), "div"),
    **dict.fromkeys(("floordiv", "rfloordiv"), "floor_divide"),
    **dict.fromkeys(("mod", "rmod"), "remainder"),
    **dict.fromkeys(("and", "rand"), "bitwise_and"),
    **dict.fromkeys(("or", "ror"), "bitwise_or"),
    **dict.fromkeys(("xor", "rxor"), "bitwise_xor"),
    "invert": "bitwise_not",
    **dict.fromkeys(("lshift", "rlshift"), "bitwise_left_shift"),
    **dict.fromkeys(("rshift", "rrshift"), "bitwise_right_shift"),
    "pos": "positive",
}
