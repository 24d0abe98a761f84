# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Whether the elements of a plate are independent, as the plate declares.

Pyro cannot know whether a model uses the elements of a plate independently of each other. So it is
tried: one element of a site is changed, and every log probability outside of that element must
stay the same, in the model and in the guide.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel.infer.traces import (
    SiteValues,
    WithoutGradient,
    sites_without_gradient,
    vectorized_plates,
)

__all__ = ["independent_plates"]

ATTEMPTS = 12  # to change an element of a plate
CHANGES = 3  # that must succeed

Traces = Callable[..., tuple[Any, Any]]  # runs model and guide under handlers


def independent_plates(traces: Traces) -> set[tuple[str, int]]:
    """The sites without a gradient and, of their plates, the dimensions that are independent.

    :param traces: runs the model and the guide under the handlers that it is given, and returns
        both traces with all log probabilities.
    """
    _, guide = traces(WithoutGradient())
    return {
        (name, frame.dim)
        for name in sites_without_gradient(guide)
        for frame in vectorized_plates(guide.nodes[name])
        if _is_independent(traces, name, frame)
    }


@torch.no_grad()
def _is_independent(traces: Traces, name: str, frame: Any) -> bool:
    """Whether a few changes of one element leave everything outside of it as it was."""
    changed = 0
    for _ in range(ATTEMPTS):
        same = _is_same_after_a_change(traces, name, frame)
        if same is False:
            return False
        changed += same is True
        if changed == CHANGES:
            return True
    return False


def _is_same_after_a_change(traces: Traces, name: str, frame: Any) -> bool | None:
    """Change one element of a plate; None where no element differs between two draws."""
    before, other = (traces(WithoutGradient()) for _ in range(2))
    values = {key: before[1].nodes[key]["value"] for key, _ in before[1].iter_stochastic_nodes()}
    if name not in values or name not in other[1].nodes:
        return False
    dim = frame.dim - before[1].nodes[name]["fn"].event_dim
    moved = _with_another_element(values[name], other[1].nodes[name]["value"], dim)
    if moved is None:
        return None
    index, values[name] = moved
    after = traces(WithoutGradient(), SiteValues(values))
    pairs = zip(before, after, strict=True)
    return all(_are_same_elsewhere(old, new, frame, index) for old, new in pairs)


def _with_another_element(value: Tensor, other: Tensor, dim: int) -> tuple[int, Tensor] | None:
    """A random index at which `other` differs, and `value` with the element of `other` there."""
    if value.shape != other.shape:
        return None
    differs = (value != other).movedim(dim, 0)
    indices = differs.reshape(len(differs), -1).any(-1).nonzero().flatten()
    if not len(indices):
        return None
    index = int(indices[torch.randint(len(indices), (), device="cpu")])
    mixed = value.clone()
    mixed.select(dim, index).copy_(other.select(dim, index))
    return index, mixed


def _are_same_elsewhere(old: Any, new: Any, frame: Any, index: int) -> bool:
    """Whether the log probabilities of two traces agree, but for one index of a plate."""
    if set(old.nodes) != set(new.nodes):
        return False
    sites = [(site, new.nodes[name]) for name, site in old.nodes.items()]
    return all(
        _is_same_elsewhere(site, twin, frame, index)
        for site, twin in sites
        if site["type"] == "sample"
    )


def _is_same_elsewhere(site: Any, twin: Any, frame: Any, index: int) -> bool:
    """The same of one site."""
    was, now = site["log_prob"], twin["log_prob"]
    if was.shape != now.shape:
        return False
    if frame in vectorized_plates(site):
        keep = torch.arange(was.shape[frame.dim], device=was.device) != index
        was, now = (part.movedim(frame.dim, 0)[keep] for part in (was, now))
    return torch.allclose(was, now, rtol=1e-5, atol=1e-6, equal_nan=True)
