# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""From a discrete distribution to its relaxation, and from a relaxed value to a discrete one."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_gumbel._tracing import known
from pyro_gumbel._validation import Temperature, fitted, require
from pyro_gumbel.constraints import simplex as simplex_constraint
from pyro_gumbel.distributions.base import Family
from pyro_gumbel.distributions.plain import parameter_of
from pyro_gumbel.distributions.relaxed import Relaxed
from pyro_gumbel.distributions.sample_cache import cached, recall
from pyro_gumbel.distributions.straight_through import (
    PATHWISE,
    FamilyStraightThrough,
    StraightThrough,
)
from pyro_gumbel.distributions.wrappers import innermost, wrapped_like
from pyro_gumbel.estimators import Estimator, named, resolved, straight_through_of
from pyro_gumbel.links import Link, simplex
from pyro_gumbel.tensors.drawn_sample import DrawnSample, watched

__all__ = [
    "LEFT_OUT",
    "harden",
    "is_discrete",
    "is_relaxable",
    "is_straight_through",
    "register_default",
    "register_relaxation",
    "relax",
    "require_settings",
]

LEFT_OUT = (
    "leave its site out, with relaxed(model, sites=[...]) or "
    "AutoRelaxed(poutine.block(model, hide=[...])); to predict the data of a site, run the model "
    "that is not relaxed: Predictive(model, guide=guide)"
)

_discrete_classes: list[str] = []  # that have been registered, for errors
_Default = Callable[[Any, bool, str | Estimator | None], Any]
_defaults: list[_Default] = []  # for discrete classes that have not been


@functools.singledispatch
def relax(
    distribution: Any,
    temperature: Temperature | None = None,
    *,
    hard: bool = True,
    estimator: str | Estimator | None = None,
) -> Any:
    """The straight-through or relaxed counterpart of a discrete distribution.

    It has the same probabilities, size and batch shape.

    ==================== ================================ =======================
    discrete             straight-through                 relaxed, `hard=False`
    ==================== ================================ =======================
    `Bernoulli`          `BernoulliStraightThrough`       `RelaxedBernoulli`
    `OneHotCategorical`  `CategoricalStraightThrough`     `RelaxedCategorical`
    `Categorical`        `IndexStraightThrough`           none
    `Subset`             `SubsetStraightThrough`          `RelaxedSubset`
    `PlackettLuce`       `PlackettLuceStraightThrough`    `RelaxedPlackettLuce`
    `Poisson`            `PoissonStraightThrough`         none
    other counts         a class of that kind             none
    ==================== ================================ =======================

    An `OrderedLogistic` is a `Categorical`. Counts are all other discrete distributions with a mean
    and a variance, of torch, Pyro or your own. They have second order, and take no notice of
    `temperature` and of estimators for other distributions. A Poisson, Binomial, NegativeBinomial,
    Geometric, BetaBinomial or GammaPoisson also has `estimator="third_order"`, which is unbiased
    for cubic losses too.

    Distributions wrapped by `Independent`, `mask` or `expand` keep their wrappers. A distribution
    given by `probs` is relaxed with `probs`. One that is relaxed already is returned as it is, but
    that a count of second order is given third order if the estimator says so. For a class of your
    own, register a function of the same arguments::

        @relax.register(MyDistribution)
        def _(distribution, temperature=None, *, hard=True, estimator=None):
            return relax(dist.Bernoulli(distribution.chance), temperature, hard=hard,
                         estimator=estimator)

    >>> relax(pyro.distributions.Bernoulli(probs=torch.tensor(0.3)))
    BernoulliStraightThrough(estimator: second_order, probs: (), batch_shape: (), event_shape: ())
    >>> relax(pyro.distributions.Poisson(3.0), estimator="third_order")
    PoissonStraightThrough(estimator: third_order, rate: 3.0)

    :param distribution: a discrete distribution.
    :param temperature: tau > 0; a number, a tensor that broadcasts to the batch shape of
        `distribution`, or a function without arguments that returns one, called once. None for
        second order, which has none; subsets and rankings then have `gumbel_softmax` at temperature
        1, unless `estimator="second_order"` says otherwise.
    :param hard: True for the discrete distribution with a surrogate gradient, False for a
        continuous one, which needs a temperature.
    :param estimator: of the surrogate gradient, as in `BernoulliStraightThrough`; None for
        `gumbel_softmax` with a temperature and second order without.
    :raises TypeError: for a distribution that is continuous, or has no mean or variance; for
        `hard=False` and a `Categorical` or a count, whose values cannot be relaxed.
    :raises ValueError: for a wrong temperature or estimator; for third order and any distribution
        but the six counts that have it.
    """
    if _defaults and is_discrete(distribution):
        return _defaults[-1](distribution, hard, estimator)
    raise _not_relaxable(distribution)


def _not_relaxable(distribution: Any) -> TypeError:
    """The error for what has no counterpart."""
    owner = type(distribution).__name__
    *others, last = _discrete_classes
    expected = (
        f"relax: `distribution` must be a {', '.join(others)} or {last}, another discrete "
        "distribution with a mean and a variance, or of a class that has been registered, got "
    )
    if not isinstance(distribution, Distribution):
        return TypeError(f"{expected}{owner}; write relaxed(model) for a model or a guide")
    return TypeError(
        f"{expected}{owner}; write one of those, register a function with "
        f"@relax.register({owner}), or {LEFT_OUT}"
    )


def _without_relaxed(distribution: Any, family: Family) -> TypeError:
    """The error for `hard=False` and a family that has discrete values only."""
    return TypeError(
        "relax: `distribution` must have values that can be relaxed for hard=False, got a "
        f"{type(distribution).__name__}, {family.without_relaxed}, or {LEFT_OUT}"
    )


def register_default(function: _Default) -> _Default:
    """Teach `relax` what to make of a discrete distribution whose class is not registered.

    :param function: of the distribution, `hard` and `estimator`.
    """
    _defaults.append(function)
    return function


def register_relaxation(discrete: Any, straight_through: Any, relaxed: Any) -> None:
    """Teach `relax` which classes a discrete class of their family becomes.

    :param relaxed: None for a family without relaxed values.
    """
    _discrete_classes.append(discrete.__name__)
    family = straight_through.family

    @relax.register(discrete)
    def _(
        distribution: Any,
        temperature: Temperature | None = None,
        *,
        hard: bool = True,
        estimator: str | Estimator | None = None,
    ) -> Any:
        if not hard and relaxed is None:
            raise _without_relaxed(distribution, family)
        require_settings("relax", temperature, hard, estimator)
        arguments = parameter_of(distribution, family)
        if family.takes_size:
            arguments |= distribution._size_arguments
        arguments["validate_args"] = distribution._validate_args
        tau = fitted(temperature, distribution.batch_shape)
        if not hard:
            return relaxed(tau, **arguments)
        if tau is None and estimator is None:
            tau = family.default_temperature
        return straight_through(tau, estimator=estimator, **arguments)

    relax.register(straight_through)(_unchanged)


@relax.register(Relaxed)
@relax.register(StraightThrough)
@relax.register(FamilyStraightThrough)
def _unchanged(
    distribution: Any,
    temperature: Temperature | None = None,
    *,
    hard: bool = True,
    estimator: str | Estimator | None = None,
) -> Any:
    require_settings("relax", temperature, hard, estimator)
    return distribution


def require_settings(
    owner: str, temperature: Temperature | None, hard: bool, estimator: str | Estimator | None
) -> None:
    """Raise unless the settings of `relax` fit together.

    :param owner: the name of the function or class that was given them.
    """
    if hard:
        resolved(owner, temperature, estimator)
        return
    if estimator is not None:
        named(estimator)  # raises for an unknown one
    if temperature is None:
        raise ValueError(
            f"{owner}: `temperature` must be given for hard=False, got None; write "
            "temperature=0.5, or leave out hard=False for discrete values"
        )


@relax.register(Independent)
@relax.register(MaskedDistribution)
@relax.register(ExpandedDistribution)
def _(distribution: Any, temperature: Temperature | None = None, **options: Any) -> Any:
    if isinstance(distribution, Independent):
        event_dim = distribution.reinterpreted_batch_ndims
        temperature = fitted(temperature, distribution.batch_shape, event_dim)
    base = relax(distribution.base_dist, temperature, **options)
    return distribution if base is distribution.base_dist else wrapped_like(distribution, base)


def is_relaxable(distribution: Any) -> bool:
    """Whether `relaxed` is for sites of this distribution: discrete, or of a registered class."""
    kind = type(innermost(distribution))
    return relax.dispatch(kind) is not relax.dispatch(object) or is_discrete(distribution)


def is_discrete(distribution: Any) -> bool:
    """Whether the support says so."""
    try:
        return distribution.support.is_discrete
    except (AttributeError, NotImplementedError):
        return False


def is_straight_through(distribution: Any) -> bool:
    """Whether values are discrete and `rsample` carries a gradient."""
    return distribution.has_rsample and is_discrete(distribution)


def harden(value: Tensor, link: Link | None = None) -> Tensor:
    """The discrete value nearest to a relaxed one; in the backward pass the relaxed value itself.

    For a point on the simplex it is the one-hot vector of the largest entry; for one on the
    hypersimplex of size m the m largest entries; for a binary value 0 or 1 (1/2 becomes 1); for a
    relaxed ranking row by row. A discrete value is returned as it is.

    For use inside a model with relaxed sites, where a discrete value is needed.

    >>> harden(torch.tensor([0.2, 0.5, 0.3]))
    tensor([0., 1., 0.])

    :param value: a relaxed value.
    :param link: its link, see `pyro_gumbel.links`. Not needed for a point on the simplex, nor for
        the very tensor that a distribution returned, which caches its link. Name the link for
        binary values and subsets in a model that is also run by autoguides and samplers.
    :raises ValueError: without `link`, for a value that has no cache and is not on the simplex; for
        a value that is infinite or NaN.
    :raises TypeError: for anything but a tensor of floats, and for a link that is no `Link`.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"harden: `value` must be a tensor of floats, got {got}; write harden(value.float())"
        )
    are_hard = None
    if link is None:
        key, _ = cached(value)
        is_hard = (value == 0) | (value == 1)
        if key == PATHWISE or known(is_hard.all(), otherwise=False):
            return value
        if isinstance(key, Link):
            link = key
        else:  # perhaps rows of bits, where no number can be read
            link, are_hard = _simplex_of(value), is_hard.all(-1, keepdim=True)
    if not isinstance(link, Link):
        raise TypeError(
            f"harden: `link` must be a Link, got {type(link).__name__}; write links.simplex, "
            "links.interval, or links.Hypersimplex(size)"
        )
    if link.event_dim and (not value.dim() or getattr(link, "size", 1) > value.shape[-1]):
        raise ValueError(
            f"harden: `value` must have {getattr(link, 'size', 1)} or more categories in its last "
            f"dimension for {link!r}, got shape {tuple(value.shape)}; write links.interval for bits"
        )
    v = recall(value, link)
    if v is None:
        remedy = "write value.nan_to_num(0.0, posinf=1.0) for what is infinite to win"
        require(value.isfinite(), "harden: `value` must be finite", value, remedy)
        v = link.inverse(value.to(torch.promote_types(value.dtype, torch.float32)))
    hard = link.hard(v.detach()).to(value.dtype)
    if link.event_dim and value.dim() > 1:  # rows of zeros, beyond the length of a ranking
        hard = torch.where((value != 0).any(-1, keepdim=True), hard, 0.0)
    if are_hard is not None:
        hard = torch.where(are_hard, value.detach(), hard)
    result = straight_through_of(hard, value)
    return watched(result, None) if isinstance(value, DrawnSample) else result


def _simplex_of(value: Tensor) -> Link:
    valid = simplex_constraint.check(value) if value.dim() else torch.zeros_like(value).bool()
    require(
        valid,
        "harden: `value` must be as a distribution drew it or be on the simplex (non-negative, "
        "sum 1 over the last dimension)",
        value,
        "write harden(value, links.interval) for bits, harden(value, links.Hypersimplex(size)) for "
        "m of k, or harden(value, links.simplex) for a ranking with rows of zeros",
    )
    return simplex
