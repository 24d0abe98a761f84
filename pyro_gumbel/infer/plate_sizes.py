# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Whether data have the sizes of the plates they are in, where broadcasting would hide it."""

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_gumbel.infer.traces import vectorized_plates

__all__ = ["PlateSizes", "shapes_of", "size_of"]


class PlateSizes(Messenger):
    """Raises a ValueError at a site whose plates or data have another size.

    :param sizes: the sizes of the guide's plates, by name.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self._sizes = sizes

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        for frame in vectorized_plates(msg):
            expected, size = self._sizes.get(frame.name), size_of(frame)
            if expected not in (None, size):
                raise ValueError(
                    f'AutoRelaxed: at pyro.sample("{msg["name"]}", ...): the plate "{frame.name}" '
                    f"must have size {expected}, as in the first run of the guide, got {size}; "
                    "write guide = AutoRelaxed(model) for the new data, or a guide that computes "
                    "its parameters from the data"
                )
            if _is_repeated(msg, frame):
                shape = tuple(msg["value"].shape)
                raise ValueError(
                    f'AutoRelaxed: at pyro.sample("{msg["name"]}", ...): `obs` must have the '
                    f'{frame.size} elements of the plate "{frame.name}" in dimension '
                    f"{_dim_of(msg, frame)}, got shape {shape}; write obs=x.expand(...) to count "
                    "one value for all elements"
                )


def size_of(frame: Any) -> int:
    """The size of a whole plate."""
    return int(frame.full_size or frame.size)


def _is_repeated(msg: Any, frame: Any) -> bool:
    """Whether a dimension of 1 of the data would count for all elements of a plate.

    Data without that dimension may do so.
    """
    is_data = msg["is_observed"] and not msg["infer"].get("_deterministic")
    value, dim = msg["value"], _dim_of(msg, frame)
    if not (is_data and isinstance(value, Tensor)) or value.dim() < -dim or not value.numel():
        return False
    return bool(value.shape[dim] == 1 < frame.size)


def _dim_of(msg: Any, frame: Any) -> int:
    """The dimension of a value that a plate has."""
    return int(frame.dim - len(msg["fn"].event_shape))


def shapes_of(data: Any) -> Any:
    """The shapes of all tensors in the arguments of a model, and the lengths of lists and dicts."""
    if isinstance(data, dict):
        return tuple((key, shapes_of(item)) for key, item in data.items())
    if isinstance(data, list | tuple):
        return tuple(map(shapes_of, data))
    return tuple(data.shape) if isinstance(data, Tensor) else None
