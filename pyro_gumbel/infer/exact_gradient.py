# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The gradient that an estimator is measured by: that of the ELBO of the discrete model.

With q(z) the guide, f(z) = log p(x, z) - log q(z) and all of it differentiable in the parameters,

    grad ELBO = grad sum_z q(z) f(z)                                              (enumeration)
              = E [grad f(z) + sum_i (f_i(z) - b_i) grad log q_i(z_i)]            (score function)

where f_i is f without what does not depend on z_i, and b_i is independent of z_i: of K draws the
mean of f_i at the K - 1 others, the leave-one-out baseline of Kool, van Hoof and Welling, "Buy 4
REINFORCE samples, get a baseline for free!" (2019), https://openreview.net/forum?id=r1lgTGL5DE.
Sites of the guide that can be differentiated through stay pathwise in it: z is then a draw of the
others given them.

What does not depend on an element of z in a plate are the other elements of that plate, if they are
as independent as the plate says. Pyro cannot know, so it is tried out: the element is changed, and
all log probabilities outside of it have to stay. A plate where they do not is no plate here, and
the model is not enumerated in parallel.

f has the scales and masks of the model and the guide; q(z), the chance of a draw, has none.
"""

import functools
import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from pyro_gumbel.distributions.relaxation import is_discrete
from pyro_gumbel.distributions.wrappers import innermost, rewrapped, unmasked

__all__ = ["Objective", "Reference", "by_enumeration", "by_score_function"]

DRAWS = 10  # of which each has the mean of the others as its baseline
CHECKS = 100  # draws of the loss, against which an enumerated one is held
RUNS = 10  # of the guide, to meet its parameters
ATTEMPTS, CHANGES = 12, 3  # to change an element of a plate, and how often one has to be changed


@dataclass(frozen=True)
class Reference:
    """A gradient, its standard error over all parameters, and how it was found."""

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
        self.sites: dict[str, Any] = {}
        leaves: dict[int, Tensor] = {}
        for _ in range(RUNS):
            with poutine.trace(param_only=True) as capture, self._subsample:
                trace = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
            self.sites |= {name: site["fn"] for name, site in trace.iter_stochastic_nodes()}
            registered = _registered(capture.trace)
            leaves |= registered | self._registered_by_the_model(trace, registered)
        self.sites = {name: law for name, law in self.sites.items() if not _draws_indices(law)}
        self.parameters = [leaf for leaf in leaves.values() if leaf.requires_grad]

    def _registered_by_the_model(self, guide: Any, known: Iterable[int]) -> dict[int, Tensor]:
        """Parameters that this run of the guide uses and of which only the model tells Pyro."""
        used = _leaves_of(guide).keys() - set(known)
        if not used:
            return {}
        model = poutine.replay(self.model, trace=guide)
        with poutine.trace(param_only=True) as capture, self._subsample:
            model(*self.args, **self.kwargs)
        registered = _registered(capture.trace)
        return {key: leaf for key, leaf in registered.items() if key in used}

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
        """Of a loss in the guide's parameters, one vector in float64 on the CPU."""
        if not loss.requires_grad:
            numbers = sum(p.numel() for p in self.parameters)
            return torch.zeros(numbers, dtype=torch.float64, device="cpu")
        parts = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten().cpu().double() for part in parts])

    @functools.cached_property
    def independent(self) -> set[tuple[str, int]]:
        """The sites, and of their plates the dimensions, whose elements are independent."""
        _, guide = self.traces(_WithoutGradient())
        plates = [(name, frame) for name in _scored(guide) for frame in _frames(guide.nodes[name])]
        return {(name, frame.dim) for name, frame in plates if _is_independent(self, name, frame)}


def _registered(trace: Any) -> dict[int, Tensor]:
    """The unconstrained parameters that a run has told Pyro of, by identity."""
    leaves = (site["value"].unconstrained() for site in trace.nodes.values())
    return {id(leaf): leaf for leaf in leaves}


def _leaves_of(guide: Any) -> dict[int, Tensor]:
    """All that the values and log probabilities of a guide have a gradient in, by identity."""
    sites = [site for _, site in guide.iter_stochastic_nodes()]
    outputs = [site["value"] for site in sites] + [_log_chance(site) for site in sites]
    leaves = {id(output): output for output in outputs if output.is_leaf}
    begun = {output.grad_fn for output in outputs} - {None}
    seen = set(begun)
    while begun:
        node: Any = begun.pop()
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        new = {child for child, _ in node.next_functions} - {None} - seen
        seen |= new
        begun |= new
    return leaves


def _draws_indices(law: Any) -> bool:
    """Whether this is the law of a plate's subsample."""
    return site_is_subsample({"type": "sample", "fn": law})


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
    sizes = {name: _cardinality(law, most) for name, law in objective.sites.items()}
    if not all(sizes.values()):
        return None
    elements = {name: _elements(law) for name, law in objective.sites.items()}
    if math.prod(sizes[name] ** elements[name] for name in sizes) <= most:
        return _state_by_state(objective, most)
    if math.prod(sizes.values()) <= most and _in_parallel(objective):
        return _by_parallel_enumeration(objective)
    return None


def _cardinality(law: Any, most: int) -> int:
    """How many outcomes one element of a law has; 0 for no end of them, or surely too many."""
    if not is_discrete(law) or innermost(law).event_shape.numel() > most:
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


def _state_by_state(objective: Objective, most: int) -> Reference | None:
    """The sum over z of the gradient of -q(z) f(z); None where z is not all that is random."""
    total, states = _zero(), 0
    begun: list[dict[str, Tensor]] = [{}]
    while begun:
        values = begun.pop()
        try:
            loss, q = _weighted_loss(objective, values)
        except _Undecided as site:
            if site.name not in objective.sites or not _cardinality(site.law, most):
                return None
            begun.extend({**values, site.name: value} for value in _outcomes(site.law))
            continue
        states += 1
        if states + len(begun) > 2 * most:
            return None
        if q > 0:  # a state of no chance has no loss
            if not total.dim() and not torch.equal(loss, _weighted_loss(objective, values)[0]):
                return None
            total = total + objective.gradient(loss)
    return Reference(total, 0.0, f"enumeration of {states} states")


def _weighted_loss(objective: Objective, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """-q(z) f(z), and q(z)."""
    model, guide = objective.traces(_Given(values))
    q = torch.stack([_log_chance(guide.nodes[name]).sum() for name in values]).sum().exp()
    return -q * (model.log_prob_sum() - guide.log_prob_sum()), q


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


def _in_parallel(objective: Objective) -> bool:
    """Whether Pyro enumerates all sites, none with `.to_event`, and plates are what they say."""
    _, guide = objective.traces(_WithoutGradient())
    plates = {(name, f.dim) for name in _scored(guide) for f in _frames(guide.nodes[name])}
    laws = objective.sites.values()
    return all(law.has_enumerate_support for law in laws) and plates <= objective.independent


def _by_parallel_enumeration(objective: Objective) -> Reference | None:
    """None where model or guide cannot be run so, or have another loss or gradient then."""
    guide = config_enumerate(objective.guide)
    elbo = TraceEnum_ELBO(max_plate_nesting=_plate_nesting(*objective.traces()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # Pyro's, of invalid dependencies
            loss = objective.loss(elbo, guide=guide)
    except Exception:  # of whatever kind the user's code raises when it meets other shapes
        return None
    draws = [objective.loss(Trace_ELBO(), _WithoutGradient()).item() for _ in range(CHECKS)]
    error = statistics.stdev(draws) / math.sqrt(CHECKS) + 1e-5 * abs(loss.item())
    if not abs(statistics.mean(draws) - loss.item()) < 6 * error:
        return None
    gradient, sampled = objective.gradient(loss), by_score_function(objective, range(CHECKS // 5))
    if not (gradient - sampled.gradient).norm() < 6 * sampled.error + 1e-5 * gradient.norm():
        return None
    return Reference(gradient, 0.0, "parallel enumeration")


def _zero() -> Tensor:
    """To begin a sum with: a number on the CPU goes with tensors of every device."""
    return torch.tensor(0.0, device="cpu")


def _plate_nesting(*traces: Any) -> int:
    """How many dimensions the plates take."""
    stacks = [site.get("cond_indep_stack", ()) for trace in traces for site in trace.nodes.values()]
    return max((-frame.dim for stack in stacks for frame in stack if frame.vectorized), default=0)


# The score function.


def by_score_function(objective: Objective, groups: Iterable[int]) -> Reference:
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
        self.mean = _zero()
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
    loss = _zero()
    terms: dict[str, list[tuple[Tensor, Tensor]]] = {}  # a site may be in some draws only
    for _ in range(DRAWS):
        model, guide = objective.traces(_WithoutGradient())
        loss = loss - (model.log_prob_sum() - guide.log_prob_sum())
        for name in _scored(guide):
            site = guide.nodes[name]
            cost = _cost(site, model, guide, objective.independent)
            terms.setdefault(name, []).append((cost, _log_chance(site)))
    for of_site in terms.values():
        total = sum(cost for cost, _ in of_site)
        others = max(len(of_site) - 1, 1)
        for cost, score in of_site:
            loss = loss - ((cost - (total - cost) / others) * score).sum()
    return loss / DRAWS


def _scored(trace: Any) -> list[str]:
    """The sites of a guide that no gradient passes through."""
    return [name for name, site in trace.iter_stochastic_nodes() if not site["fn"].has_rsample]


def _log_chance(site: Any) -> Tensor:
    """log q of a site's value, element by element, without scales and masks."""
    return unmasked(site["fn"]).log_prob(site["value"])


def _cost(site: Any, model: Any, guide: Any, independent: set[tuple[str, int]]) -> Tensor:
    """f, without what is in other elements of the independent plates of `site`."""
    total = _zero()
    for sign, trace in ((1, model), (-1, guide)):
        for term in trace.nodes.values():
            if term["type"] == "sample":
                shared = set(_frames(site)) & set(_frames(term))
                kept = {f.dim for f in shared if (site["name"], f.dim) in independent}
                total = total + sign * _summed(term["log_prob"].detach(), kept)
    return total


def _summed(log_prob: Tensor, kept: set[int]) -> Tensor:
    """Over all dimensions but those that are kept, counted from the right."""
    dims = [dim for dim in range(-log_prob.dim(), 0) if dim not in kept]
    return log_prob.sum(dims, keepdim=True) if dims else log_prob


def _frames(site: Any) -> list[Any]:
    """The plates of a site that are dimensions."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


# What the plates promise.


@torch.no_grad()
def _is_independent(objective: Objective, name: str, frame: Any) -> bool:
    """Whether nothing outside of an element changes with it, in a few attempts."""
    changed = 0
    for _ in range(ATTEMPTS):
        before, other = (objective.traces(_WithoutGradient()) for _ in range(2))
        values = {
            key: before[1].nodes[key]["value"] for key, _ in before[1].iter_stochastic_nodes()
        }
        if name not in values or name not in other[1].nodes:
            return False
        dim = frame.dim - before[1].nodes[name]["fn"].event_dim
        moved = _with_another_element(values[name], other[1].nodes[name]["value"], dim)
        if moved is None:
            continue
        index, values[name] = moved
        after = objective.traces(_WithoutGradient(), _Values(values))
        if not _same_elsewhere(before, after, frame, index):
            return False
        changed += 1
        if changed == CHANGES:
            return True
    return False


def _with_another_element(value: Tensor, other: Tensor, dim: int) -> tuple[int, Tensor] | None:
    """The index of a random element that `other` has unlike, and `value` with that element."""
    if value.shape != other.shape:
        return None
    unlike = (value != other).movedim(dim, 0)
    unlike = unlike.reshape(len(unlike), -1).any(-1).nonzero().flatten()
    if not len(unlike):
        return None
    index = int(unlike[torch.randint(len(unlike), (), device="cpu")])
    mixed = value.clone()
    mixed.select(dim, index).copy_(other.select(dim, index))
    return index, mixed


def _same_elsewhere(before: Any, after: Any, frame: Any, index: int) -> bool:
    """Whether the log probabilities of both traces agree but at one index of a plate."""
    for old, new in zip(before, after, strict=True):
        if set(old.nodes) != set(new.nodes):
            return False
        for name, site in old.nodes.items():
            if site["type"] != "sample":
                continue
            was, now = site["log_prob"], new.nodes[name]["log_prob"]
            if was.shape != now.shape:
                return False
            if frame in _frames(site):
                keep = torch.arange(was.shape[frame.dim], device=was.device) != index
                was, now = (part.movedim(frame.dim, 0)[keep] for part in (was, now))
            if not torch.allclose(was, now, rtol=1e-5, atol=1e-6, equal_nan=True):
                return False
    return True


class _Values(Messenger):
    """The guide's sites have these values."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and not site_is_subsample(msg) and msg["name"] in self._values:
            msg["value"] = self._values[msg["name"]]


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
