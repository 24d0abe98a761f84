# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""From discrete to relaxed: one law, all latent sites of a model, and a soft value back again."""

import functools
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, OneHotCategorical

from pyro_gumbel._tracing import known
from pyro_gumbel._validation import Temperature, fitted, require
from pyro_gumbel.constraints import simplex as on_the_simplex
from pyro_gumbel.distributions.base import are_derived, exact_logits
from pyro_gumbel.distributions.relaxed import (
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    Soft,
)
from pyro_gumbel.distributions.sample_cache import memory_of, recall
from pyro_gumbel.distributions.straight_through import (
    PATHWISE,
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuceStraightThrough,
    StraightThrough,
    SubsetStraightThrough,
)
from pyro_gumbel.distributions.without_replacement import PlackettLuce, Subset
from pyro_gumbel.distributions.wrappers import innermost, wrapped_like
from pyro_gumbel.estimators import Estimator, named, straight_through_of
from pyro_gumbel.links import Link, simplex

__all__ = [
    "harden",
    "is_discrete",
    "is_relaxable",
    "relax",
]

LEFT_OUT = (
    "leave its site out with relaxed(..., sites=[...]); where it is the data, to be predicted, run "
    "the model that is not relaxed: Predictive(model, guide=guide)"
)


@functools.singledispatch
def relax(
    distribution: Any,
    temperature: Temperature,
    *,
    hard: bool = True,
    estimator: str | Estimator = "gumbel_softmax",
) -> Any:
    """The soft or hard row-mate of a discrete law, with its probabilities, size and batch shape.

    ==================== ================================ =======================
    discrete             hard                             soft
    ==================== ================================ =======================
    `Bernoulli`          `BernoulliStraightThrough`       `RelaxedBernoulli`
    `OneHotCategorical`  `CategoricalStraightThrough`     `RelaxedCategorical`
    `Subset`             `SubsetStraightThrough`          `RelaxedSubset`
    `PlackettLuce`       `PlackettLuceStraightThrough`    `RelaxedPlackettLuce`
    ==================== ================================ =======================

    `Independent`, masked and expanded forms of these keep their form, a law given by `probs` is
    relaxed with `probs`, and a law that is relaxed already is returned as it is. The relaxation of
    another law is taught by a function of the same arguments::

        @relax.register(MyDistribution)
        def _(distribution, temperature, *, hard=True, estimator="gumbel_softmax"):
            return relax(dist.Bernoulli(distribution.chance), temperature, hard=hard,
                         estimator=estimator)

    >>> relax(pyro.distributions.Bernoulli(probs=torch.tensor(0.3)), 0.5)
    BernoulliStraightThrough(temperature: 0.5, probs: (), batch_shape: (), event_shape: ())

    :param distribution: the law.
    :param temperature: tau > 0; a number, a tensor that broadcasts to the batch shape of
        `distribution`, or a function without arguments that returns one, called once.
    :param hard: whether to return the discrete law with a surrogate gradient, or a continuous one.
    :param estimator: of the hard law's gradient, as in `BernoulliStraightThrough`.
    :raises TypeError: for a law of which no relaxation is known, and for a `Categorical`, whose
        integer values can carry no gradient.
    :raises ValueError: for a wrong temperature or estimator.
    """
    owner = type(distribution).__name__
    raise TypeError(
        "relax: `distribution` must be a Bernoulli, OneHotCategorical, Subset or PlackettLuce, or "
        f"of a class that has been registered, got {owner}; write one of those, teach it with "
        f"@relax.register({owner}), or {LEFT_OUT}"
    )


@relax.register(Soft)
@relax.register(StraightThrough)
def _(distribution: Any, temperature: Temperature, **column: Any) -> Any:
    _of_column(StraightThrough, Soft, **column)
    return distribution


@relax.register(Bernoulli)
def _(distribution: Any, temperature: Temperature, **column: Any) -> Any:
    law = _of_column(BernoulliStraightThrough, RelaxedBernoulli, **column)
    tau = fitted(temperature, distribution.batch_shape)
    return law(tau, **_parameter(distribution), validate_args=distribution._validate_args)


@relax.register(OneHotCategorical)
def _(distribution: Any, temperature: Temperature, **column: Any) -> Any:
    law = _of_column(CategoricalStraightThrough, RelaxedCategorical, **column)
    tau = fitted(temperature, distribution.batch_shape)
    return law(tau, **_parameter(distribution), validate_args=distribution._validate_args)


@relax.register(Subset)
def _(distribution: Any, temperature: Temperature, **column: Any) -> Any:
    law = _of_column(SubsetStraightThrough, RelaxedSubset, **column)
    return _with_size(law, distribution, temperature)


@relax.register(PlackettLuce)
def _(distribution: Any, temperature: Temperature, **column: Any) -> Any:
    law = _of_column(PlackettLuceStraightThrough, RelaxedPlackettLuce, **column)
    return _with_size(law, distribution, temperature)


@relax.register(Categorical)
def _(distribution: Any, temperature: Temperature, **column: Any) -> Any:
    raise TypeError(
        "relax: `distribution` must have values that can carry a gradient, got a Categorical, "
        "whose values are integers; write OneHotCategorical(probs=probs) for "
        "Categorical(probs=probs), and z @ table where its value z is an index, table[z]; or "
        f"{LEFT_OUT}"
    )


@relax.register(Independent)
@relax.register(MaskedDistribution)
@relax.register(ExpandedDistribution)
def _(distribution: Any, temperature: Temperature, **column: Any) -> Any:
    if isinstance(distribution, Independent):
        event_dim = distribution.reinterpreted_batch_ndims
        temperature = fitted(temperature, distribution.batch_shape, event_dim)
    base = relax(distribution.base_dist, temperature, **column)
    return distribution if base is distribution.base_dist else wrapped_like(distribution, base)


def _of_column(
    hard_class: Any,
    soft_class: Any,
    *,
    hard: bool = True,
    estimator: str | Estimator = "gumbel_softmax",
) -> Any:
    """What makes the law in the column that is asked for."""
    function = named(estimator)
    return functools.partial(hard_class, estimator=function) if hard else soft_class


def _with_size(law: Any, distribution: Any, temperature: Temperature) -> Any:
    tau = fitted(temperature, distribution.batch_shape)
    keywords = {distribution._given: distribution._param}
    return law(tau, distribution.size, **keywords, validate_args=distribution._validate_args)


def _parameter(distribution: Any) -> dict[str, Tensor]:
    """The one of `probs` and `logits` that a torch law was given, under its name."""
    law = getattr(distribution, "_categorical", distribution)
    kept = {name: law.__dict__[name] for name in ("probs", "logits") if name in law.__dict__}
    given = {name: parameter for name, parameter in kept.items() if law._param is parameter}
    if len(kept) == 1 or "probs" in given:
        return given
    # Logits were given, or torch derived them and hid it by an expansion.
    if known(are_derived(distribution).all(), otherwise=False):
        return {"probs": law.probs}
    return {"logits": exact_logits(distribution)}


def is_relaxable(distribution: Any) -> bool:
    """Whether a site of this law is for relaxing: it is discrete, or of a registered class."""
    kind = type(innermost(distribution))
    return relax.dispatch(kind) is not relax.dispatch(object) or is_discrete(distribution)


def is_discrete(distribution: Any) -> bool:
    """Whether the support says so."""
    try:
        return distribution.support.is_discrete
    except (AttributeError, NotImplementedError):
        return False


def harden(value: Tensor, link: Link | None = None) -> Tensor:
    """The hard value nearest to a soft one; in the backward pass the soft value itself.

    For one of k the one-hot vector of the largest entry, for m of k the m largest, for a bit 0 or
    1 (of a half 1), for the rows of an order row by row. A hard value is returned as it is.

    For use inside a model with soft sites, where the data want a hard value.

    >>> harden(torch.tensor([0.2, 0.5, 0.3]))
    tensor([0., 1., 0.])

    :param value: a soft value.
    :param link: what kind of value it is, see `pyro_gumbel.links`. Not needed for a point on the
        simplex, nor for the very tensor that a distribution returned, which remembers it; in a
        model that autoguides and samplers run too, say it for bits and for m of k.
    :raises ValueError: without `link`, for a value that remembers nothing and is not on the
        simplex; for one that is infinite or NaN.
    :raises TypeError: for anything but a tensor of floats, and a link that is none.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"harden: `value` must be a tensor of floats, got {got}; write harden(value.float())"
        )
    if link is None:
        key, _ = memory_of(value)
        if key == PATHWISE or known(((value == 0) | (value == 1)).all(), otherwise=False):
            return value
        link = key if isinstance(key, Link) else _simplex_of(value)
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
    return straight_through_of(link.hard(v.detach()).to(value.dtype), value)


def _simplex_of(value: Tensor) -> Link:
    valid = on_the_simplex.check(value) if value.dim() else torch.zeros_like(value).bool()
    require(
        valid,
        "harden: `value` must remember what it is or be on the simplex (non-negative, sum 1 over "
        "the last dimension)",
        value,
        "write harden(value, links.interval) for bits, or harden(value, links.Hypersimplex(size)) "
        "for m of k",
    )
    return simplex
