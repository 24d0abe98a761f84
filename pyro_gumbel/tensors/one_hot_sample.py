# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""One-hot samples that keep their gradient where their index is asked for.

`OneHotCategorical.log_prob` of torch and Pyro finds the index of a one-hot vector D by
``D.max(-1)[1]`` and looks up its log probability:

.. math:: \log P(D) = \log p_{i}, \qquad i = \operatorname{argmax}_j D_j.

The lookup in a plain tensor passes no gradient to D. A sample with a gradient is a `OneHotSample`.
Its `max(-1)` and `argmax(-1)` return an `IndexTensor`, and a lookup with that has the gradient of

.. math:: \log P(D) = \sum_j D_j \log p_j

in D. Every other operation behaves as on a plain tensor and returns one. A sample that was changed
in place is treated as a plain tensor too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from pyro_gumbel._tracing import in_eager_mode, version_of
from pyro_gumbel.tensors.drawn_sample import DrawnSample
from pyro_gumbel.tensors.index_tensor import drawn_index

__all__ = ["OneHotSample", "as_one_hot_sample"]


class OneHotSample(DrawnSample):
    """A tensor of one-hot vectors, over the last dimension, that may have a gradient."""


def as_one_hot_sample(value: Tensor) -> Tensor:
    """Turn `value` into a `OneHotSample`, in place, if it may have a gradient; and return it.

    Outside of eager mode every value may have one: within an inner transform of torch.func, and in
    forward mode, `requires_grad` does not say. Under `torch.compile`, which would have to trace
    through the subclass, the value stays a plain tensor.
    """
    if is_compiling() or (not value.requires_grad and in_eager_mode()):
        return value
    if not isinstance(value, DrawnSample):
        value.drawn_version = version_of(value)  # type: ignore[attr-defined]
    # `as_subclass` would return a view, and `detach_` does not accept views.
    value.__class__ = OneHotSample
    return value


# The rules: each takes the plain result of an operation and its arguments.


def _max(result: Any, *args: Any, **kwargs: Any) -> Any:
    if not _is_over_categories(*args, **kwargs):
        return result
    return torch.return_types.max((result.values, _index(args[0], result.indices)))


def _argmax(result: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _index(args[0], result) if _is_over_categories(*args, **kwargs) else result


def _index(value: Any, index: Tensor) -> Tensor:
    """The index of the category, which may have kept the dimension of the vectors."""
    if index.dim() < value.dim():
        return drawn_index(value.plain, index)
    with torch._C._EnableTorchFunction():
        return drawn_index(value.plain, index.squeeze(-1)).unsqueeze(-1)


def _is_over_categories(
    value: Any = None, dim: Any = None, keepdim: bool = False, *, axis: Any = None, **others: Any
) -> bool:
    """Whether this is an unchanged sample, and the dimension that of the categories."""
    dim = axis if dim is None else dim
    if not isinstance(value, OneHotSample) or not isinstance(dim, int) or others:
        return False
    return dim in (-1, value.dim() - 1) and version_of(value) == value.drawn_version


OneHotSample.rules = {
    **dict.fromkeys((Tensor.max, torch.max), _max),
    **dict.fromkeys((Tensor.argmax, torch.argmax), _argmax),
}
