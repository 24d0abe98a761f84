# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The gradient that an estimator is measured by: that of the ELBO of the discrete model.

With q(z) the guide, f(z) = log p(x, z) - log q(z) and all of it differentiable in the parameters,

    grad ELBO = grad sum_z q(z) f(z)                                              (enumeration)
              = E [grad f(z) + sum_i (f_i(z) - b_i) grad log q_i(z_i)]            (score function)

where f_i is f without what is in other elements of the plates of site i, and b_i is independent of
z_i: of K draws the mean of f_i at the K - 1 others, the leave-one-out baseline of Kool, van Hoof
and Welling, "Buy 4 REINFORCE samples, get a baseline for free!" (2019),
https://openreview.net/forum?id=r1lgTGL5DE. Continuous sites of the guide stay pathwise in it: z is
then a draw of the discrete sites given them.

f has the scales and masks of the model and the guide; q(z), the chance of a draw, has none.
"""

import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_gumbel.relaxing import is_discrete
from pyro_gumbel.wrappers import innermost, rewrapped, unmasked

__all__ = ["Objective", "Reference", "by_enumeration", "by_score_function"]

DRAWS = 10  # of which each has the mean of the others as its baseline
CHECKS = 100  # draws of the loss, against which an enumerated one is held


@dataclass(frozen=True)
class Reference:
    """A gradient, its standard error over all parameters, the ELBO and how they were found."""

    gradient: Tensor
    error: float
    how: str


@dataclass
class Objective:
    """A model and a guide with their arguments, on one subsample of each plate."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._subsample = _OneSubsample()
        with poutine.trace(param_only=True) as capture, self._subsample:
            trace = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        values = [site["value"] for site in capture.trace.nodes.values()]
        leaves = {id(leaf): leaf for leaf in (value.unconstrained() for value in values)}
        self.parameters = [leaf for leaf in leaves.values() if leaf.requires_grad]
        self.sites = {
            name: site["fn"]
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
        }

    def traces(self, *handlers: AbstractContextManager[Any]) -> tuple[Any, Any]:
        """Of the model and the guide, with all log probabilities, under `handlers`."""
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
        """Of a loss in the guide's parameters, one vector in float64."""
        if not loss.requires_grad:
            return torch.zeros(sum(p.numel() for p in self.parameters), dtype=torch.float64)
        parts = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten().double().cpu() for part in parts])


class _OneSubsample(Messenger):
    """Every plate has the subsample that it had the first time."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] in self._kept:
            msg["value"] = self._kept[msg["name"]]

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._kept.setdefault(msg["name"], msg["value"])


# Enumeration.


def by_enumeration(objective: Objective, most: int) -> Reference | None:
    """The exact gradient, or None where there are more than `most` states or no end of them.

    All states of all elements of all sites one by one, if they are few; else the states of each
    site in parallel, as `TraceEnum_ELBO` has them, if the model can be run so.
    """
    sizes = {name: _cardinality(law) for name, law in objective.sites.items()}
    if not all(sizes.values()):
        return None
    elements = {name: _elements(law) for name, law in objective.sites.items()}
    if math.prod(sizes[name] ** elements[name] for name in sizes) <= most:
        return _state_by_state(objective)
    # Pyro leaves alone what it cannot enumerate, such as laws with `.to_event`.
    in_parallel = all(law.has_enumerate_support for law in objective.sites.values())
    if in_parallel and math.prod(sizes.values()) <= most:
        return _by_parallel_enumeration(objective)
    return None


def _cardinality(law: Any) -> int:
    """How many outcomes one element of a law has; 0 for no end of them."""
    if not is_discrete(law):
        return 0
    try:
        return len(innermost(law).enumerate_support(expand=False))
    except NotImplementedError:
        return 0


def _elements(law: Any) -> int:
    """How many independent elements the value of a law has."""
    return law.shape().numel() // innermost(law).event_shape.numel()


def _outcomes(law: Any) -> Iterator[Tensor]:
    """Every value of a law."""
    base = innermost(law)
    support = base.enumerate_support(expand=False).reshape(-1, *base.event_shape)
    for choice in itertools.product(range(len(support)), repeat=_elements(law)):
        yield support[list(choice)].reshape(law.shape())


def _state_by_state(objective: Objective) -> Reference:
    """The sum over z of the gradient of -q(z) f(z)."""
    total, states = torch.tensor(0.0), 0
    begun: list[dict[str, Tensor]] = [{}]
    while begun:
        values = begun.pop()
        try:
            model, guide = objective.traces(_Given(values))
        except _Undecided as site:
            begun.extend({**values, site.name: value} for value in _outcomes(site.law))
            continue
        q = torch.stack([_log_chance(guide.nodes[name]).sum() for name in values]).sum().exp()
        if q > 0:
            elbo = model.log_prob_sum() - guide.log_prob_sum()
            total = total + objective.gradient(-q * elbo)
        states += 1
    return Reference(total, 0.0, f"enumeration of {states} states")


class _Undecided(Exception):
    """A site of the guide that has no value yet."""

    def __init__(self, name: str, law: Any) -> None:
        super().__init__(name)
        self.name = name
        self.law = law


class _Given(Messenger):
    """The guide's sites have these values; at the first that is not among them all ends."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or msg["value"] is not None:
            return
        if msg["name"] not in self._values:
            raise _Undecided(msg["name"], msg["fn"])
        msg["value"] = self._values[msg["name"]]


def _by_parallel_enumeration(objective: Objective) -> Reference | None:
    """None where model or guide cannot be run so, or have another loss then."""
    guide = config_enumerate(objective.guide)
    elbo = TraceEnum_ELBO(max_plate_nesting=_plate_nesting(*objective.traces()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # Pyro's, of invalid dependencies
            loss = objective.loss(elbo, guide=guide)
    except (NotImplementedError, RuntimeError, ValueError, IndexError, RuntimeWarning):
        return None
    draws = [objective.loss(Trace_ELBO(), _WithoutGradient()).item() for _ in range(CHECKS)]
    error = statistics.stdev(draws) / math.sqrt(CHECKS) + 1e-5 * abs(loss.item())
    if not abs(statistics.mean(draws) - loss.item()) < 6 * error:
        return None
    return Reference(objective.gradient(loss), 0.0, "parallel enumeration")


def _plate_nesting(*traces: Any) -> int:
    """How many dimensions the plates take."""
    stacks = [site.get("cond_indep_stack", ()) for trace in traces for site in trace.nodes.values()]
    return max((-frame.dim for stack in stacks for frame in stack if frame.vectorized), default=0)


# The score function.


def by_score_function(objective: Objective, groups: Iterator[int]) -> Reference:
    """The mean over as many groups of draws as `groups` has numbers, and its standard error."""
    moments = Moments()
    for _ in groups:
        moments.add(objective.gradient(_score_function_loss(objective)))
    draws = DRAWS * moments.count
    how = f"leave-one-out score function, {draws:,} draws"
    return Reference(moments.mean, math.sqrt(moments.variance / moments.count), how)


class Moments:
    """The mean of vectors, and their variance summed over the entries."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.tensor(0.0)
        self._squares = 0.0

    def add(self, vector: Tensor) -> None:
        self.count += 1
        change = vector - self.mean
        self.mean = self.mean + change / self.count
        self._squares += torch.dot(change, vector - self.mean).item()

    @property
    def variance(self) -> float:
        return self._squares / (self.count - 1)


def _score_function_loss(objective: Objective) -> Tensor:
    """A loss whose gradient is that of -E f, without bias."""
    elbos, costs, scores = [], [], []
    for _ in range(DRAWS):
        model, guide = objective.traces(_WithoutGradient())
        elbos.append(model.log_prob_sum() - guide.log_prob_sum())
        sites = [guide.nodes[name] for name in _discrete(guide)]
        costs.append([_cost(site, model, guide) for site in sites])
        scores.append([_log_chance(site) for site in sites])
    loss = -sum(elbos)
    for of_site, score_of_site in zip(
        zip(*costs, strict=True), zip(*scores, strict=True), strict=True
    ):
        mean = sum(of_site) / DRAWS
        for cost, score in zip(of_site, score_of_site, strict=True):
            advantage = (cost - mean) * DRAWS / (DRAWS - 1)  # against the mean of the others
            loss = loss - (advantage * score).sum()
    return loss / DRAWS


def _discrete(trace: Any) -> list[str]:
    return [name for name, site in trace.iter_stochastic_nodes() if is_discrete(site["fn"])]


def _log_chance(site: Any) -> Tensor:
    """log q of a site's value, element by element, without scales and masks."""
    return unmasked(site["fn"]).log_prob(site["value"])


def _cost(site: Any, model: Any, guide: Any) -> Tensor:
    """f, without what is in other elements of the plates of `site`."""
    total = torch.tensor(0.0)
    for sign, trace in ((1, model), (-1, guide)):
        for term in trace.nodes.values():
            if term["type"] == "sample":
                total = total + sign * _within(site, term, term["log_prob"].detach())
    return total


def _within(site: Any, term: Any, log_prob: Tensor) -> Tensor:
    """`log_prob` of a term, summed over all dimensions but those of the plates of both sites."""
    shared = set(site["cond_indep_stack"]) & set(term["cond_indep_stack"])
    kept = {frame.dim for frame in shared if frame.vectorized}
    dims = [dim for dim in range(-log_prob.dim(), 0) if dim not in kept]
    return log_prob.sum(dims, keepdim=True) if dims else log_prob


class _WithoutGradient(Messenger):
    """Discrete sites are drawn without a gradient."""

    def _pyro_sample(self, msg: Any) -> None:
        law = msg["fn"]
        if isinstance(law, Distribution) and is_discrete(law) and law.has_rsample:
            msg["fn"] = _detached(law)


def _detached(law: Any) -> Any:
    """The law with samples that carry no gradient."""
    base = innermost(law)
    plain = base.expand(base.batch_shape)  # a copy
    plain.has_rsample = False
    return rewrapped(law, plain)
