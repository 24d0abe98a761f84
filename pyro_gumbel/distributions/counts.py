# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Counts with gradients: any discrete distribution of numbers with a mean and a variance.

Such a distribution needs no temperature. `rsample` is its own `sample` in the forward pass. In the
backward pass it has the gradient of the second-order surrogate, which is derived in
`pyro_gumbel.ops.second_order`:

.. math::
    s = \mu + c \, V, \qquad c = \frac{D - \mu}{2 V} \text{ held constant,}

with D the sample, :math:`\mu` the mean and V the variance. It is unbiased for every loss that is
quadratic in D. Some named classes also have a surrogate of third order, which is derived in
`pyro_gumbel.ops.third_order`; `relax(count, estimator="third_order")` asks for it.

There are named classes for the common distributions. They are evaluated in float32 at least, and
are finite wherever the distribution is defined: rates and probabilities of 0, probabilities of 1,
infinite logits, no trials. Every other class gets a subclass of its own, made once.
"""

import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Categorical, Distribution, register_kl
from torch.distributions.utils import lazy_property, probs_to_logits

from pyro_gumbel._tracing import ends, known
from pyro_gumbel._validation import Temperature, check_value
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.relaxation import LEFT_OUT, register_default, relax
from pyro_gumbel.distributions.straight_through import StraightThrough
from pyro_gumbel.distributions.wrappers import innermost
from pyro_gumbel.estimators import (
    Estimator,
    name_of,
    named,
    second_order,
    straight_through_of,
    third_order,
)
from pyro_gumbel.ops.autograd import square_root
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.ops.second_order import surrogate_of_number, surrogate_of_vector
from pyro_gumbel.ops.subset_probability import kl_of_log_probs
from pyro_gumbel.tensors.subclass import plain

__all__ = [
    "NO_ENTROPY",
    "NO_MODE",
    "WITHOUT_END",
    "CountStraightThrough",
    "NamedCount",
    "derived",
    "enumerated_divergence",
    "in_float32",
    "register_count",
    "register_divergence",
    "register_log_prob",
    "widened",
]

# The reason and the line to write for what a named class does not have.
NO_ENTROPY = (
    "has no exact formula here",
    "write -d.log_prob(d.sample((1000,))).mean(0) to estimate it",
)
NO_MODE = (
    "has no formula here",
    "write draws = d.sample((1000,)), and take the one with the largest d.log_prob(draws)",
)
WITHOUT_END = (
    "is infinite, as the count has no largest value",
    "write torch.arange(100.0) for the first 100 values",
)

_LARGEST = 2**24  # the largest number of terms of a sum over values


class CountStraightThrough(StraightThrough):
    """A discrete distribution whose `rsample` has the second-order gradient.

    Mixed in before the discrete class. It has no constructor of its own: torch's `expand` asks for
    that of the discrete class.
    """

    if TYPE_CHECKING:  # of the Distribution class
        batch_shape: torch.Size
        event_shape: torch.Size
        _validate_args: bool

        def sample(self, sample_shape: Any = torch.Size()) -> Tensor: ...
        def _validate_sample(self, value: Tensor) -> None: ...
        @property
        def variance(self) -> Tensor: ...

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """The sample that `sample` draws, with the gradient of the surrogate."""
        with torch.no_grad():
            value = copied(self, type(self)).sample(sample_shape)  # on a copy: see `_surrogate`
        if not value.is_floating_point():
            name = type(self).__name__
            raise TypeError(
                f"{name}: `sample` must return floats, which can carry a gradient, got a tensor of "
                f"{value.dtype}; write a subclass whose `sample` returns "
                "super().sample(sample_shape).float()"
            )
        return self._pathwise(self._attached(value))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution over a larger batch."""
        further = () if _instance is None else (_instance,)  # not all classes take it
        new = super().expand(batch_shape, *further)  # type: ignore[misc]
        if "has_rsample" in vars(self):  # set by has_rsample_
            new.has_rsample = self.has_rsample
        return new

    @property
    def stddev(self) -> Tensor:
        """The square root of the variance; an entry that cannot vary passes no gradient."""
        return square_root(self.variance)

    def _attached(self, value: Tensor) -> Tensor:
        """The sample with the gradient of its surrogate."""
        surrogate = cast(self._surrogate(value), value.dtype)
        return straight_through_of(value, surrogate.expand(value.shape))

    def _surrogate(self, value: Tensor) -> Tensor:
        moments, event_dim = self._moments(), len(self.event_shape)
        if event_dim:
            return surrogate_of_vector(value, moments.mean, moments.log_prob(value), event_dim)
        return surrogate_of_number(value, moments.mean, moments.variance)

    def _moments(self) -> Any:
        """What is asked for the moments: a copy, as some classes keep what they derive for them.

        With that they could not expand.
        """
        return copied(self, type(self))


class NamedCount(CountStraightThrough):
    """A count with a class of its own: in float32 at least, and finite at the edges.

    Samples have the dtype of the parameters, and `log_prob` that in which it is computed. What a
    subclass implements is called on a distribution in float32 or float64.

    :ivar plain_passes_gradient: whether `log_prob` of Pyro's class passes all of its gradient to
        the value, unless it is sparse.
    :ivar has_third_order: whether there is a gradient of third order.
    :ivar estimator: `second_order` or `third_order`, of `pyro_gumbel.estimators`.
    """

    plain_passes_gradient: ClassVar[bool] = True
    has_third_order: ClassVar[bool] = False
    estimator: Any = staticmethod(second_order)
    _dtype: torch.dtype | None = None  # of samples, where the parameters are kept in another

    cdf: Any = absent(
        "has no formula here",
        "write (d.sample((1000,)) <= value).double().mean(0) for shares of samples",
    )
    icdf: Any = absent(
        "has no formula here", "write d.sample((1000,)).quantile(q, 0) for quantiles of samples"
    )

    def with_estimator(self, estimator: Estimator) -> Any:
        """A copy with another estimator."""
        new = copied(self, type(self))
        new.estimator = estimator
        return new

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution over a larger batch."""
        new = super().expand(batch_shape, _instance)
        if self.estimator is not second_order:
            new.estimator = self.estimator
        return new

    def __repr__(self) -> str:
        """That of Pyro's class, with an estimator other than the default."""
        text = super().__repr__()
        if self.estimator is second_order:
            return text
        return text.replace("(", f"(estimator: {name_of(self.estimator)}, ", 1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """The sample that `sample` draws, with the gradient of the surrogate."""
        sample = self._wide()._differentiable(torch.Size(sample_shape))
        return self._pathwise(self._in_own_dtype(sample))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """The sample that `rsample` draws from the same seed, without a gradient."""
        with torch.no_grad():
            return self._in_own_dtype(self._wide()._drawn(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), differentiable in the value; -inf with a finite slope where P is 0."""
        owner = type(self).__name__
        check_value(owner, plain(value), self.batch_shape, self.event_shape, integers=True)
        if self._validate_args:
            self._validate_sample(value)
        wide = self._wide()
        return wide._log_prob_of(cast(value, torch.promote_types(value.dtype, _dtype_of(wide))))

    def _wide(self) -> Any:
        """With parameters of float32 or wider; those of integers are refused."""
        _dtype_of(self)
        return in_float32(self)

    def _log_prob_of(self, value: Tensor) -> Tensor:
        """log P of any value, in the support or not."""
        return self._log_prob(value) + torch.where(self._is_possible(value), 0.0, -torch.inf)

    def _differentiable(self, sample_shape: torch.Size) -> Tensor:
        """A sample with its gradient."""
        with torch.no_grad():
            value = self._drawn(sample_shape)
        return self._attached(value)

    def _surrogate(self, value: Tensor) -> Tensor:
        surrogate = super()._surrogate(value)
        return surrogate + self._third_order(value) if self.estimator is third_order else surrogate

    def _moments(self) -> Any:
        """Itself, which keeps nothing."""
        return self

    def _third_order(self, value: Tensor) -> Tensor:
        """What third order adds to the surrogate."""
        raise NotImplementedError

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        """A sample: the one of Pyro's class from the same seed."""
        return super().sample(sample_shape)

    def _log_prob(self, value: Tensor) -> Tensor:
        """log P(value), extended by a finite number to what cannot occur."""
        raise NotImplementedError

    def _is_possible(self, value: Tensor) -> Tensor:
        """Whether a value can occur."""
        raise NotImplementedError

    def _in_own_dtype(self, sample: Tensor) -> Tensor:
        dtype = self._dtype or _dtype_of(self)
        if sample.dtype == dtype:
            return sample
        return cast(sample.clamp(max=torch.finfo(dtype).max), dtype)


# Half types.


_HALF = (torch.float16, torch.bfloat16)

# Where Pyro's counts keep a distribution that has their parameters.
_INNER = ("_beta", "_categorical", "_dirichlet", "_gamma")


def in_float32(distribution: Any) -> Any:
    """The distribution; if it has parameters of a half type, a copy with these in float32."""
    if not any(parameter.dtype in _HALF for parameter in _floats(distribution)):
        return distribution
    state = dict(vars(distribution))
    _keep_what_was_given(state, is_binary=not isinstance(distribution, Categorical))
    wide = {name: widened(value) for name, value in state.items()}
    return copied(distribution, type(distribution), wide)


def widened(value: Any) -> Any:
    """A tensor or a distribution of a half type in float32; everything else as it is."""
    if isinstance(value, Distribution):
        return in_float32(value)
    is_half = isinstance(value, Tensor) and value.dtype in _HALF
    return cast(value, torch.float32) if is_half else value


def _dtype_of(distribution: Any) -> torch.dtype:
    """The dtype of the first parameter of floats."""
    for value in _floats(distribution):
        return value.dtype
    owner = type(distribution).__name__
    names = [name for name in distribution.arg_constraints if name != "total_count"]
    raise TypeError(
        f"{owner}: {' or '.join(f'`{name}`' for name in names)} must be a tensor of floats, got "
        f"integers; write e.g. {names[0]}=torch.tensor(1.0)"
    )


def _floats(distribution: Any) -> list[Tensor]:
    """Its parameters of floats. In torch 2.8 torch.compile cannot look through all of `vars`."""
    found: list[Tensor] = []
    for name in (*_INNER, *distribution.arg_constraints):
        value = distribution.__dict__.get(name)
        if isinstance(value, Distribution):
            found += _floats(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            found.append(value)
    return found


class derived(lazy_property[Any, Any]):  # a decorator
    """A property that is computed at each call, and that an attribute of the instance overrides.

    torch keeps what its `lazy_property` computes. After that a distribution does not show whether
    `probs` or `logits` was given.
    """

    def __get__(self, instance: Any, obj_type: Any = None) -> Any:
        if instance is None:
            return super().__get__(None, obj_type)
        return self.wrapped(instance)


# From a discrete distribution to one with gradients.


_NAMED: dict[type, type[NamedCount]] = {}
_LOG_PROBS: dict[Any, Callable[[Any, Tensor], Tensor]] = {}


def register_count(cls: type[NamedCount], *parents: type) -> None:
    """Teach `relax` which exact types become the named class."""
    for parent in parents:
        _NAMED[parent] = cls


def register_log_prob(of_pyro: Any, differentiable: Callable[[Any, Tensor], Tensor]) -> None:
    """Use another `log_prob` in the classes made by `relax` that inherit this one of Pyro."""
    _LOG_PROBS[of_pyro] = differentiable


@register_default
def _of_discrete(distribution: Any, hard: bool, estimator: str | Estimator | None) -> Any:
    """What `relax` makes of a discrete distribution whose class is not registered there."""
    return _of_order(_as_count(distribution, hard), estimator)


def _of_order(count: Any, estimator: str | Estimator | None) -> Any:
    """The count; with third order if the estimator says so. Others do not apply to counts."""
    if estimator is None or named(estimator) is not third_order:
        return count
    if not getattr(count, "has_third_order", False):
        raise ValueError(
            "relax: `distribution` must be a Poisson, Binomial, NegativeBinomial, Geometric, "
            f"BetaBinomial or GammaPoisson for estimator=third_order, got a {type(count).__name__};"
            ' write estimator="second_order"'
        )
    return count.with_estimator(third_order)


def _as_count(distribution: Any, hard: bool) -> Any:
    """The count that a discrete distribution becomes."""
    cls: Any = type(distribution)
    if not hard:
        raise TypeError(
            f"relax: `hard` must be True for counts, which have no relaxed form, got a "
            f"{cls.__name__}; write relax(distribution), or {LEFT_OUT}"
        )
    if distribution.has_rsample:
        return distribution
    if cls in _NAMED:
        return as_named(distribution, _NAMED[cls])
    _require_moments(distribution)
    state = {name: _with_full_gradient(part) for name, part in vars(distribution).items()}
    return copied(distribution, straight_through_class(cls), state)


def _with_full_gradient(part: Any) -> Any:
    """A part of a distribution, e.g. the components of a mixture, with all of its gradient."""
    return relax(part) if _loses_gradient(part) else part


def _loses_gradient(part: Any) -> bool:
    """Whether a `log_prob` of Pyro in it drops a part of the gradient in the value."""
    if not isinstance(part, Distribution):
        return False
    base: Any = innermost(part)
    return type(base).log_prob in _LOG_PROBS or any(map(_loses_gradient, vars(base).values()))


@relax.register(CountStraightThrough)
def _unchanged_count(
    distribution: Any,
    temperature: Temperature | None = None,
    *,
    hard: bool = True,
    estimator: str | Estimator | None = None,
) -> Any:
    return _of_order(distribution, estimator)


def as_named(distribution: Any, cls: type[NamedCount]) -> Any:
    """A distribution of a named class, or of its parent, as one of the named class."""
    return distribution if isinstance(distribution, cls) else copied(distribution, cls)


def copied(distribution: Any, cls: type, state: dict[str, Any] | None = None) -> Any:
    """A shallow copy that is of another class, or has another state."""
    new: Any = object.__new__(cls)
    vars(new).update(vars(distribution) if state is None else state)
    if cls is not type(distribution):
        _keep_what_was_given(vars(new))
    return new


def _keep_what_was_given(state: dict[str, Any], *, is_binary: bool = True) -> None:
    """Leave out what torch and Pyro have derived from the parameters."""
    state.pop("has_rsample", None)
    if {"probs", "logits"} <= state.keys():
        of_probs = probs_to_logits(state["probs"], is_binary) == state["logits"]
        is_derived = known(of_probs.all(), otherwise=False)
        del state["logits" if is_derived else "probs"]


def _require_moments(distribution: Any) -> None:
    """Raise a TypeError that says which moment is missing, and why."""
    cls: Any = type(distribution)
    needed = ("mean",) if distribution.event_shape else ("mean", "variance")
    for name, why in ((name, _fault(distribution, name)) for name in needed):
        if why:
            raise TypeError(
                "relax: `distribution` must have a mean and a variance, of which the gradient is "
                f"made, got a {cls.__name__}, whose `{name}` {why}; register a "
                f"function with @relax.register({cls.__name__}), or {LEFT_OUT}"
            )


def _fault(distribution: Any, name: str) -> str | None:
    """What is wrong with a moment."""
    try:
        moment = getattr(copied(distribution, type(distribution)), name)
    except NotImplementedError:
        return "is not implemented"
    if not distribution._validate_args:  # numbers are not read
        return None
    if known(moment.isnan().any(), otherwise=False):
        return "is NaN"
    return "is negative" if name == "variance" and ends(moment)[0] < 0 else None


@functools.cache
def straight_through_class(parent: type) -> type:
    """The subclass of a discrete class whose `rsample` has the second-order gradient."""
    bases: tuple[type, ...] = (CountStraightThrough, parent)
    if not issubclass(parent, TorchDistributionMixin):
        bases += (TorchDistributionMixin,)

    def reduced(distribution: Any) -> tuple[Any, tuple[type], Any]:
        """For copies and pickles: the class itself has no name in a module."""
        return _without_state, (parent,), distribution.__getstate__()

    body: dict[str, Any] = {
        "__doc__": f"{parent.__name__} with a differentiable `rsample`, made by `relax`.",
        "__module__": parent.__module__,
        "__reduce__": reduced,
    }
    log_prob: Any = parent.log_prob  # type: ignore[attr-defined]
    if log_prob in _LOG_PROBS:
        body["log_prob"] = _LOG_PROBS[log_prob]
    return types.new_class(f"{parent.__name__}StraightThrough", bases, {}, lambda n: n.update(body))


def _without_state(parent: type) -> Any:
    return object.__new__(straight_through_class(parent))


# Divergences.


def register_divergence(
    cls: type[NamedCount], plain: type
) -> Callable[[Callable[[Any, Any], Tensor]], Callable[[Any, Any], Tensor]]:
    """Register a rule between the named class and itself or its parent, for float32 at least."""

    def register(rule: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
        def divergence(q: Any, p: Any) -> Tensor:
            return rule(*(in_float32(as_named(d, cls)) for d in (q, p)))

        for pair in ((cls, cls), (cls, plain), (plain, cls)):
            register_kl(*pair)(divergence)
        return rule

    return register


def enumerated_divergence(q: Any, p: Any) -> Tensor:
    """KL(q || p) of two named counts of `total_count` trials: the sum over the values of q."""
    most, batch = int(q.total_count.max()), torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    if (most + 1) * batch.numel() > _LARGEST:
        raise NotImplementedError(
            f"kl_divergence(q, p): the sum over {most + 1} values of {batch.numel()} distributions "
            f"must have {_LARGEST} terms at most; estimate it by "
            "(q.log_prob(z) - p.log_prob(z)).mean(0) with z = q.rsample((1000,))"
        )
    values = torch.arange(most + 1, dtype=_dtype_of(q), device=q.total_count.device)
    values = values.reshape(-1, *(1,) * len(batch))
    log_q, log_p = (d._log_prob_of(values).movedim(0, -1) for d in (q, p))
    return kl_of_log_probs(log_q, log_p)
