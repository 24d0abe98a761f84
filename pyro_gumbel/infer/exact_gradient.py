# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The exact gradient of the ELBO, by enumeration or estimated without bias.

With q(z) the guide and f(z) = log p(x, z) - log q(z), all differentiable in the parameters,

.. math::
    \nabla \mathrm{ELBO}
    &= \nabla \sum_z q(z) f(z) && \text{(enumeration)} \\
    &= E \Big[ \nabla f(z) + \sum_i (f_i(z) - b_i) \nabla \log q_i(z_i) \Big]
    && \text{(score function)}

where f_i is f without the terms that do not depend on z_i, and the baseline b_i is independent of
z_i. Of K draws, b_i is the mean of f_i over the other K - 1: the leave-one-out baseline of Kool,
van Hoof and Welling, "Buy 4 REINFORCE samples, get a baseline for free!" (2019),
https://openreview.net/forum?id=r1lgTGL5DE.

Sites of the guide whose samples carry an exact gradient, such as normal ones, keep it: z stands for
the other sites, given a draw of these.

For an element of a site in a plate, f_i leaves out the other elements of the plate. This is right
if they are independent, which `pyro_gumbel.infer.independence` tests. Where they are not, the
plate's elements share one f_i, and the model is not enumerated in parallel.

Counts without an end, as of a Poisson distribution, are enumerated up to a tail of probability
below 1e-12 under the guide, if they are few; each element of a plate counts as a site then.

f contains the scales and masks of model and guide; q(z), the probability of a draw, does not.
"""

import itertools
import math
import statistics
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_gumbel.distributions.relaxation import is_discrete
from pyro_gumbel.distributions.wrappers import innermost
from pyro_gumbel.infer.objective import Objective
from pyro_gumbel.infer.traces import (
    SiteValues,
    WithoutGradient,
    log_prob_of_draw,
    sites_without_gradient,
    vectorized_plates,
)

__all__ = ["BlockedMoments", "ExactGradient", "Moments", "by_enumeration", "by_score_function"]

DRAWS = 10  # in a group, of which each has the mean of the others as its baseline
TAIL = 1e-12  # the probability of the counts of a site that are left out, element by element
CHECKS = 100  # draws of the loss, to check an enumerated one
BLOCKS = 10  # that gradients are dealt to, whose spread shows the directions of the noise


@dataclass(frozen=True)
class ExactGradient:
    """A gradient, its standard error over all parameters together, and how it was found.

    :ivar blocks: the means of independent parts of the draws, if there were any.
    """

    gradient: Tensor
    error: float
    how: str
    blocks: Sequence[Tensor] = ()

    @property
    def squared_length(self) -> float:
        """Without what the noise adds to it on average; so it may be negative."""
        return self.gradient.square().sum().item() - self.error**2


class Moments:
    """The running mean of vectors, and their variance summed over the entries."""

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


class BlockedMoments(Moments):
    """The same, with the means of 10 blocks that the vectors are dealt to."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks = [Moments() for _ in range(BLOCKS)]

    def add(self, vector: Tensor) -> None:
        self._blocks[self.count % BLOCKS].add(vector)
        super().add(vector)

    @property
    def blocks(self) -> list[Tensor]:
        """The means of the blocks that have vectors."""
        return [block.mean for block in self._blocks if block.count]


def _zero() -> Tensor:
    """The start of a sum: a number on the CPU can be added to tensors on every device."""
    return torch.tensor(0.0, device="cpu")


# Enumeration.


def by_enumeration(objective: Objective, most: int) -> ExactGradient | None:
    """The exact gradient, or None where it would take more than `most` states.

    All joint states one by one, if they are few enough. Else the states of each site in parallel
    over its plates, as in `TraceEnum_ELBO`, if model and guide can be run so.
    """
    sizes = {name: len(_support(each, most)) for name, each in objective.sites.items()}
    if not all(sizes.values()):
        return None
    elements = {name: _num_elements(each) for name, each in objective.sites.items()}
    if math.prod(sizes[name] ** elements[name] for name in sizes) <= most:
        return _state_by_state(objective, most)
    if math.prod(sizes.values()) <= most and _is_parallel(objective):
        return _by_parallel_enumeration(objective)
    return None


def _support(distribution: Any, most: int) -> Tensor:
    """The outcomes of one element; none if they are surely more than `most`, or not known."""
    base = innermost(distribution)
    if is_discrete(distribution) and max(base.event_shape.numel(), _largest(base)) <= most:
        try:
            return base.enumerate_support(expand=False).reshape(-1, *base.event_shape)
        except NotImplementedError:
            if _is_infinite(base) and 2 ** _num_elements(distribution) <= most:
                return _likely_counts(base, most)
    return torch.empty(0, device="cpu")


def _largest(base: Any) -> float:
    """The largest outcome, where the support says that; else 0."""
    bound = getattr(base.support, "upper_bound", 0)
    return torch.as_tensor(bound, device="cpu").max().item()


def _is_infinite(base: Any) -> bool:
    """Whether the outcomes are the numbers 0, 1, 2, and so on."""
    return base.support is constraints.nonnegative_integer and not base.event_shape


def _likely_counts(base: Any, most: int) -> Tensor:
    """The counts from 0 on, but for a tail of probability below 1e-12 in each element.

    The probability of a tail is summed over the counts up to 2 `most`; none if the tail from `most`
    on, so summed, is not below 1e-12.
    """
    mean = base.mean.detach()
    counts = torch.arange(2 * most + 1, dtype=mean.dtype, device=mean.device)
    with torch.no_grad():
        log_probs = base.log_prob(counts.reshape(-1, *[1] * len(base.batch_shape)))
    probs = log_probs.double().exp().reshape(len(counts), -1)
    tails = probs.flip(0).cumsum(0).flip(0).amax(1)  # of the counts from here on
    few = int((tails >= TAIL).sum())
    return counts[:few] if few <= most else counts[:0]


def _num_elements(distribution: Any) -> int:
    """How many independent elements a value has."""
    return distribution.shape().numel() // innermost(distribution).event_shape.numel()


def _outcomes(distribution: Any, support: Tensor) -> Iterator[Tensor]:
    """Every value of a distribution."""
    for choice in itertools.product(range(len(support)), repeat=_num_elements(distribution)):
        yield support[list(choice)].reshape(distribution.shape())


def _state_by_state(objective: Objective, most: int) -> ExactGradient | None:
    """The sum over z of the gradient of -q(z) f(z); None where z is not all that is random.

    The guide is run with the values of its first sites. It stops at the first site that has none,
    and is run again with each outcome of that site.
    """
    total, states, cut = _zero(), 0, False
    pending: list[dict[str, Tensor]] = [{}]
    while pending:
        values = pending.pop()
        try:
            loss, q = _weighted_loss(objective, values)
        except _SiteWithoutValue as site:
            support = _support(site.distribution, most)
            if site.name not in objective.sites or not len(support):
                return None
            cut = cut or _is_infinite(innermost(site.distribution))
            outcomes = _outcomes(site.distribution, support)
            pending.extend({**values, site.name: outcome} for outcome in outcomes)
            continue
        states += 1
        if states + len(pending) > 2 * most:
            return None
        if q > 0:  # the loss of an impossible state may not be finite
            first = not total.dim()
            if first and not torch.equal(loss, _weighted_loss(objective, values)[0]):
                return None
            total = total + objective.gradient(loss)
    rest = f", all but tails of less than {TAIL:g}" if cut else ""
    return ExactGradient(total, 0.0, f"enumeration of {states} states{rest}")


def _weighted_loss(objective: Objective, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """-q(z) f(z), and q(z)."""
    model, guide = objective.traces(_AllSiteValues(values))
    log_q = torch.stack([log_prob_of_draw(guide.nodes[name]).sum() for name in values]).sum()
    q = log_q.exp()
    return -q * (model.log_prob_sum() - guide.log_prob_sum()), q


class _SiteWithoutValue(Exception):
    """A latent site of the guide that was given no value."""

    def __init__(self, name: str, distribution: Any) -> None:
        super().__init__(name)
        self.name = name
        self.distribution = distribution


class _AllSiteValues(SiteValues):
    """As `SiteValues`, but a latent site without a value raises `_SiteWithoutValue`."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["value"] is None and not msg["is_observed"] and not site_is_subsample(msg):
            raise _SiteWithoutValue(msg["name"], msg["fn"])


def _is_parallel(objective: Objective) -> bool:
    """Whether Pyro enumerates all sites, none with `.to_event`, and all plates are independent."""
    _, guide = objective.traces(WithoutGradient())
    names = sites_without_gradient(guide)
    plates = {(name, f.dim) for name in names for f in vectorized_plates(guide.nodes[name])}
    enumerable = all(each.has_enumerate_support for each in objective.sites.values())
    return enumerable and plates <= objective.independent


def _by_parallel_enumeration(objective: Objective) -> ExactGradient | None:
    """None where model or guide cannot be run so, or have another loss or gradient then."""
    loss = _parallel_loss(objective)
    if loss is None or not _has_mean(objective, loss.item()):
        return None
    gradient = objective.gradient(loss)
    sampled = by_score_function(objective, range(CHECKS // 5))
    if not (gradient - sampled.gradient).norm() < 6 * sampled.error + 1e-5 * gradient.norm():
        return None
    return ExactGradient(gradient, 0.0, "parallel enumeration")


def _parallel_loss(objective: Objective) -> Tensor | None:
    guide = config_enumerate(objective.guide)
    elbo = TraceEnum_ELBO(max_plate_nesting=_plate_nesting(*objective.traces()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # Pyro's, of invalid dependencies
            return objective.loss(elbo, guide=guide)
    except Exception:  # of whatever kind the user's code raises when it meets other shapes
        return None


def _has_mean(objective: Objective, loss: float) -> bool:
    """Whether this is the mean of draws of the loss, up to 6 standard errors."""
    draws = [objective.loss(Trace_ELBO(), WithoutGradient()).item() for _ in range(CHECKS)]
    error = statistics.stdev(draws) / math.sqrt(CHECKS) + 1e-5 * abs(loss)
    return abs(statistics.mean(draws) - loss) < 6 * error


def _plate_nesting(*traces: Any) -> int:
    """How many dimensions the plates take."""
    stacks = [site.get("cond_indep_stack", ()) for trace in traces for site in trace.nodes.values()]
    return max((-frame.dim for stack in stacks for frame in stack if frame.vectorized), default=0)


# The score function.


def by_score_function(objective: Objective, groups: Iterable[int]) -> ExactGradient:
    """The mean over groups of draws, one for each number in `groups`, and its standard error."""
    moments = BlockedMoments()
    for _ in groups:
        moments.add(objective.gradient(_score_function_loss(objective)))
    draws = DRAWS * moments.count
    how = f"leave-one-out score function, {draws:,} draws"
    error = math.sqrt(moments.variance / moments.count)
    return ExactGradient(moments.mean, error, how, moments.blocks)


def _score_function_loss(objective: Objective) -> Tensor:
    """A loss whose gradient is an unbiased estimate of that of -E f."""
    loss = _zero()
    terms: dict[str, list[tuple[Tensor, Tensor]]] = {}  # of site i (f_i, log q_i) in each draw
    for _ in range(DRAWS):
        model, guide = objective.traces(WithoutGradient())
        loss = loss - (model.log_prob_sum() - guide.log_prob_sum())
        for name in sites_without_gradient(guide):
            site = guide.nodes[name]
            f = _terms_of_site(site, model, guide, objective.independent)
            terms.setdefault(name, []).append((f, log_prob_of_draw(site)))
    return (loss - sum(map(_with_baselines, terms.values()))) / DRAWS


def _with_baselines(terms: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of (f_i - b_i) log q_i over draws, b_i the mean of f_i over the other draws."""
    total = sum(f for f, _ in terms)
    others = max(len(terms) - 1, 1)
    return sum((((f - (total - f) / others) * log_q).sum() for f, log_q in terms), _zero())


def _terms_of_site(site: Any, model: Any, guide: Any, independent: set[tuple[str, int]]) -> Tensor:
    """f_i: f without what is in other elements of the independent plates of `site`."""
    f = _zero()
    for sign, trace in ((1, model), (-1, guide)):
        for term in trace.nodes.values():
            if term["type"] == "sample":
                shared = set(vectorized_plates(site)) & set(vectorized_plates(term))
                kept = {frame.dim for frame in shared if (site["name"], frame.dim) in independent}
                f = f + sign * _sum_but(term["log_prob"].detach(), kept)
    return f


def _sum_but(log_prob: Tensor, kept: set[int]) -> Tensor:
    """The sum over all dimensions but those that are kept, which are counted from the right."""
    dims = [dim for dim in range(-log_prob.dim(), 0) if dim not in kept]
    return log_prob.sum(dims, keepdim=True) if dims else log_prob
