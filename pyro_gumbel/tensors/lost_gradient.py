# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The warning where the gradient of a categorical draw ends."""

import sys
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = [
    "is_distribution",
    "is_host",
    "is_in_function",
    "warn_of_derivative",
    "warn_of_hook",
    "warn_of_lost_derivative",
    "warn_of_lost_gradient",
    "warn_of_noise",
    "who_asks",
]

# What only asks whether something holds. Pyro and torch validate arguments with these.
_QUESTIONS = {"all", "any", "_is_all_true", "_is_any_true", "__bool__", "item", "equal"}
_HOSTS = {"torch", "pyro", "pyro_gumbel"}
_DISTRIBUTIONS = ("torch.distributions.", "pyro.distributions.")
_CONSTRAINTS = {
    "torch.distributions.constraints",
    "pyro.distributions.constraints",
    "pyro_gumbel.constraints",
}
# Modules that pass on what was called.
_TRANSPARENT = {
    "pyro_gumbel.tensors.deferred",
    "pyro_gumbel.tensors.drawn_sample",
    "pyro_gumbel.tensors.index_tensor",
    "pyro_gumbel.tensors.linear_operations",
    "pyro_gumbel.tensors.operations",
    "pyro_gumbel.tensors.rules",
    "pyro_gumbel.tensors.sample_operations",
    "pyro_gumbel.tensors.subclass",
    "torch._compile",
    "torch._dynamo.eval_frame",
    "torch._jit_internal",
    "torch._tensor",
    "torch.functional",
    "torch.nn.functional",
    "torch.overrides",
}
# What they make of a value is the user's own.
_PASS_ON_RESULTS = ("torch.nn.modules.", "pyro.ops.indexing")

_FLOATS = "write z.float() first, as in z.float().sum()"
_TABLE = "write table[z], with a table that has an entry for each category"
_MASK = "write torch.where(z == k, x, 0.0) for the elements of category k"
_COUNTS = "write torch.nn.functional.one_hot(z, k).float().sum(0) for the counts of k categories"
_ONE_HOT = "write torch.where(torch.nn.functional.one_hot(z, k).bool(), value, t)"
_LOG_PROB = "write -log_probs.gather(-1, z.unsqueeze(-1)).squeeze(-1)"
_ANY = "write table[z], torch.where(z == k, a, b) or z.float()"

_SUM = "write (a * z).sum(-1) for a sum over up to 16 elements of z"

_REMEDIES = {
    **dict.fromkeys(("long", "int", "short", "char", "byte", "bool", "to", "type"), _SUM),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _SUM),
    **dict.fromkeys(("sum", "mean", "prod", "cumsum", "cumprod", "count_nonzero"), _FLOATS),
    **dict.fromkeys(("max", "min", "amax", "amin", "sort", "argmax", "argmin"), _FLOATS),
    **dict.fromkeys(("matmul", "dot", "outer", "einsum", "softmax", "logsumexp", "diff"), _FLOATS),
    **dict.fromkeys(("item", "__int__", "__float__", "__index__", "tolist"), _TABLE),
    **dict.fromkeys(("numpy", "__array__", "__complex__", "__dlpack__"), _TABLE),
    **dict.fromkeys(("isin", "bucketize", "searchsorted"), _TABLE),
    **dict.fromkeys(("__bool__", "is_nonzero", "__contains__"), "write torch.where(z == k, a, b)"),
    "all": "write (z == k).float().prod(-1)",
    "any": "write 1 - (z != k).float().prod(-1)",
    **dict.fromkeys(("__getitem__", "where", "nonzero", "masked_select", "argwhere"), _MASK),
    **dict.fromkeys(("bincount", "unique", "scatter_add", "scatter_add_"), _COUNTS),
    **dict.fromkeys(("index_add", "index_add_"), _COUNTS),
    **dict.fromkeys(("__setitem__", "scatter", "scatter_", "index_fill", "index_put_"), _ONE_HOT),
    **dict.fromkeys(("cross_entropy", "nll_loss"), _LOG_PROB),
}


def warn_of_lost_gradient(name: str) -> None:
    """Warn that an operation returns a plain result for a value of a categorical draw.

    Pyro and torch validate values, which needs no gradient. So no warning where they ask whether
    something holds.

    :param name: of the operation.
    """
    callers = list(_callers())
    asker = next((each for each in callers if each not in _TRANSPARENT), "")
    if asker in _CONSTRAINTS or (name in _QUESTIONS and is_host(asker)):
        return
    _warn(
        callers,
        f"expected an operation that passes on the gradient of a categorical draw z, got {name}, "
        f"which returns a plain value without it; {_REMEDIES.get(name, _ANY)}; or write z.detach() "
        "if no gradient is wanted",
    )


def warn_of_derivative(name: str) -> None:
    """Warn if an operation of a distribution takes the derivative in place of outcomes.

    Inside of `relaxed(model)` Pyro's distributions are evaluated whole, so that this does not
    happen.

    :param name: of the operation.
    """
    callers = list(_callers())
    asker = next((each for each in callers if each not in _TRANSPARENT), "")
    if not asker.startswith(_DISTRIBUTIONS) or asker in _CONSTRAINTS:
        return
    _warn(
        callers,
        f"expected a distribution of pyro.distributions inside of relaxed(model), got {name} in "
        f"{asker} outside of it, of a value of a categorical draw; took the derivative, which is "
        "biased; write relaxed(model) where the model is given to the ELBO",
    )


def warn_of_lost_derivative(name: str, *, has_outcomes: bool) -> None:
    """Warn that an operation returns a plain result for drawn floats.

    :param name: of the operation.
    :param has_outcomes: whether others have a gradient: the draw is binary or one-hot.
    """
    if name in ("max", "min"):
        remedy = f"write z.a{name}(dim) for the numbers without their indices"
    elif has_outcomes:
        remedy = "write torch.where(z == 1, a, b) or table[z.long()]"
    else:
        remedy = (
            "write a function of the float itself, as x * z, or draw z from a Categorical, of "
            "which table[z] and z == k have a gradient"
        )
    _warn(
        list(_callers()),
        f"expected an operation that passes on the derivative of a draw z, got {name}, which "
        f"returns a plain value without it; {remedy}; or write z.detach() if no gradient is wanted",
    )


def who_asks() -> tuple[str, str]:
    """The module and the function that call an operation.

    Those of torch, Pyro and this package only if they are not asked by the user.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        module, function = _module_of(frame), frame.f_code.co_name
        if module not in _TRANSPARENT and not module.startswith(_PASS_ON_RESULTS):
            return module, function
        frame = frame.f_back
    return "", ""


def is_host(module: str) -> bool:
    """Whether a module is one of torch, Pyro or this package, and not of the user."""
    return module.partition(".")[0] in _HOSTS


def is_distribution(module: str) -> bool:
    """Whether a module has distributions; not their constraints, which validate arguments."""
    return module.startswith(_DISTRIBUTIONS) and module not in _CONSTRAINTS


def warn_of_hook() -> None:
    """Warn that a hook is never called. Pyro's validation has one that looks for NaN."""
    callers = list(_callers())
    if is_host(next((each for each in callers if each not in _TRANSPARENT), "")):
        return
    _warn(
        callers,
        "expected a hook on a tensor that has a gradient itself, got one on a float that was made "
        "of a categorical draw, whose outcomes have the gradient: it is never called; put it on "
        "the logits of the distribution, or write relaxed(model, outcomes=False)",
    )


def warn_of_noise(name: str) -> None:
    """Warn of the gradient of a continuous site, whose noise depends on its parameters.

    :param name: of its distribution.
    """
    _warn(
        list(_callers()),
        "expected a continuous site that is made of a categorical draw to be a function of its "
        "parameters and of noise without any, as Normal, LogNormal and MultivariateNormal are, got "
        f"{name}; took the derivative at what was drawn, which is biased; write one of those, or a "
        "guide in which the site does not depend on the draw",
    )


def _warn(callers: list[str], message: str) -> None:
    """Warn at the line of the user, of calls whose innermost one calls what calls this."""
    user = next((i for i, each in enumerate(callers) if not is_host(each)), 0)
    warnings.warn(message, stacklevel=user + 3)


def is_in_function() -> bool:
    """Whether the forward pass of a `torch.autograd.Function` is under way."""
    return "torch.autograd.function" in _callers()


def _callers() -> Iterator[str]:
    """The modules of the calls under way, from the operation outwards."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        yield _module_of(frame)
        frame = frame.f_back


def _module_of(frame: Any) -> str:
    """The module of a call; what overrides the functions of torch passes on what was called."""
    if frame.f_code.co_name == "__torch_function__":  # as of a default device
        return "torch.overrides"
    return frame.f_globals.get("__name__", "")
