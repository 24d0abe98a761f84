# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The loss of SVI for one model, guide and data, and its gradient in the guide's parameters."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_gumbel.infer.independence import independent_plates
from pyro_gumbel.infer.traces import OneSubsample, log_prob_of_draw

__all__ = ["Objective"]

RUNS = 10  # of the guide, to find its sites and parameters


@dataclass
class Objective:
    """A model and a guide with their arguments, on one subsample of each plate.

    :ivar sites: the distributions of the guide's latent sites, by name.
    :ivar parameters: the unconstrained parameters of the guide that require a gradient, by name.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._subsample = OneSubsample()
        self.sites: dict[str, Any] = {}
        leaves: dict[str, Tensor] = {}
        for _ in range(RUNS):
            with poutine.trace(param_only=True) as capture, self._subsample:
                trace = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
            for name, site in trace.iter_stochastic_nodes():
                if not site_is_subsample(site):
                    self.sites[name] = site["fn"]
            registered = _registered(capture.trace)
            leaves |= registered | self._registered_by_the_model(trace, registered)
        self.parameters = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}

    def _registered_by_the_model(
        self, guide: Any, known: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Parameters that this run of the guide uses and that only the model registers."""
        used = _leaves_of(guide).keys() - set(map(id, known.values()))
        if not used:
            return {}
        model = poutine.replay(self.model, trace=guide)
        with poutine.trace(param_only=True) as capture, self._subsample:
            model(*self.args, **self.kwargs)
        registered = _registered(capture.trace)
        return {name: leaf for name, leaf in registered.items() if id(leaf) in used}

    def traces(self, *handlers: AbstractContextManager[Any]) -> tuple[Any, Any]:
        """Traces of the model and of the guide under `handlers`, with all log probabilities."""
        with ExitStack() as stack:
            for handler in (self._subsample, *handlers):
                stack.enter_context(handler)
            return get_importance_trace(
                "flat", math.inf, self.model, self.guide, self.args, self.kwargs
            )

    def loss(self, elbo: Any, *handlers: AbstractContextManager[Any], guide: Any = None) -> Tensor:
        """What SVI differentiates, under `handlers`."""
        guide = self.guide if guide is None else guide
        with ExitStack() as stack:
            for handler in (self._subsample, *handlers):
                stack.enter_context(handler)
            return elbo.differentiable_loss(self.model, guide, *self.args, **self.kwargs)

    def gradient(self, loss: Tensor) -> Tensor:
        """The gradient of a loss in `parameters`, one vector in float64 on the CPU.

        A parameter with two names counts once.
        """
        leaves = list({id(leaf): leaf for leaf in self.parameters.values()}.values())
        if not loss.requires_grad:
            numbers = sum(leaf.numel() for leaf in leaves)
            return torch.zeros(numbers, dtype=torch.float64, device="cpu")
        parts = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten().cpu().double() for part in parts])

    @functools.cached_property
    def independent(self) -> set[tuple[str, int]]:
        """The sites and dimensions of `independent_plates`."""
        return independent_plates(self.traces)


def _registered(trace: Any) -> dict[str, Tensor]:
    """The unconstrained parameters that a run has registered with Pyro, by name."""
    return {name: site["value"].unconstrained() for name, site in trace.nodes.items()}


def _leaves_of(guide: Any) -> dict[int, Tensor]:
    """The leaves of the graph of a guide's values and log probabilities, by identity."""
    sites = [site for _, site in guide.iter_stochastic_nodes()]
    outputs = [site["value"] for site in sites] + [log_prob_of_draw(site) for site in sites]
    leaves = {id(output): output for output in outputs if output.is_leaf}
    pending = {output.grad_fn for output in outputs} - {None}
    seen = set(pending)
    while pending:
        node: Any = pending.pop()
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        new = {child for child, _ in node.next_functions} - {None} - seen
        seen |= new
        pending |= new
    return leaves
