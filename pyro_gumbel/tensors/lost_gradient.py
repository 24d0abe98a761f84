# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The warning where the gradient of a categorical draw ends."""

import sys
import warnings
from typing import Any

__all__ = ["warn_of_lost_gradient"]

# What only asks whether something holds. Pyro and torch validate arguments with these.
_QUESTIONS = {"all", "any", "_is_all_true", "_is_any_true", "__bool__", "item", "equal"}
_HOSTS = ("torch.", "pyro.")
_CONSTRAINTS = (
    "torch.distributions.constraints",
    "pyro.distributions.constraints",
    "pyro_gumbel.constraints",
)
_TRANSPARENT = (
    "torch._compile",
    "torch._dynamo.eval_frame",
    "torch._tensor",
    "torch.functional",
    "torch.nn.functional",
    "torch.overrides",
)

_FLOATS = "write z.float() first, as in z.float().sum()"
_TABLE = "write table[z], with a table that has an entry for each category"
_MASK = "write torch.where(z == k, x, 0.0) for the elements of category k"
_REMEDIES = {
    **dict.fromkeys(("sum", "mean", "prod", "cumsum", "cumprod", "count_nonzero"), _FLOATS),
    **dict.fromkeys(("max", "min", "amax", "amin", "sort", "argmax", "argmin"), _FLOATS),
    **dict.fromkeys(("item", "__int__", "__float__", "__index__", "tolist"), _TABLE),
    **dict.fromkeys(("numpy", "__array__"), _TABLE),
    **dict.fromkeys(("__bool__", "__contains__"), "write torch.where(z == k, a, b)"),
    **dict.fromkeys(("all", "any"), "write (z == k).float().prod(-1) for all of them"),
    **dict.fromkeys(("nonzero", "masked_select", "argwhere"), _MASK),
    **dict.fromkeys(
        ("bincount", "histc", "unique", "scatter_add", "scatter_add_"),
        "write torch.nn.functional.one_hot(z, k).float().sum(0) for the counts of k categories",
    ),
    "__getitem__": _MASK,
    "__setitem__": "write torch.where(one_hot.bool(), value, t), with the one-hot vectors "
    "one_hot = torch.nn.functional.one_hot(z, k)",
}


def warn_of_lost_gradient(name: str) -> None:
    """Warn that an operation returns a plain result for a value of a categorical draw.

    Pyro and torch validate values, which needs no gradient. So no warning where they ask whether
    something holds.

    :param name: of the operation.
    """
    depth, module = _caller()
    if module in _CONSTRAINTS or (name in _QUESTIONS and module.startswith(_HOSTS)):
        return
    remedy = _REMEDIES.get(name, "write table[z], torch.where(z == k, a, b) or z.float()")
    warnings.warn(
        f"expected an operation that passes on the gradient of a categorical draw z, got {name}, "
        f"which returns a plain value without it; {remedy}; or write z.detach() if no gradient is "
        "wanted",
        stacklevel=depth + 1,
    )


def _caller() -> tuple[int, str]:
    """How far above `warn_of_lost_gradient` the call of the operation is, and in which module."""
    frame: Any = sys._getframe(1)
    depth = 0
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("pyro_gumbel.tensors") and module not in _TRANSPARENT:
            return depth, module
        frame, depth = frame.f_back, depth + 1
    return depth, ""
