# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Distributions whose parameters are made of categorical draws.

Let a log density be :math:`\ell(z) = \log p(x \mid \theta_z)`, with parameters looked up by an
index z, as in ``Normal(locs[z], scales[z])``. It is evaluated for every category j of z, which
gives the table of outcomes :math:`\ell(j)`. With D the one-hot vector of z,

.. math:: \ell = \sum_j D_j \, \ell(j),

and the gradient in D is the table. The expectation of a linear function of D is that of its mean,
:math:`E \, \ell = \sum_j p_j \, \ell(j)`, so the gradient in the probabilities p is exact for a
single site, and for any loss and independent sites it is exact on average over draws. A derivative
of :math:`\ell` in the parameters, in place of the table, is not: :math:`\ell` is curved in them.

Inside of `relaxed(model)` a distribution that is constructed from values with outcomes is an
`OutcomeDistribution`: it keeps how it was made. Its log_prob makes it again, with the categories
as one more dimension of the batch on the left. No operation inside of torch's distributions sees
our tensors, so all of them work, whatever they do.

Local expectation gradients (Titsias and Lázaro-Gredilla, "Local expectation gradients for black
box variational inference" (2015), https://arxiv.org/abs/1503.01494) evaluate the same tables, by
running the model for each category. StochasticAD carries such alternatives through a program (Arya,
Schauer, Schäfer and Rackauckas, "Automatic differentiation of programs with discrete randomness"
(2022), https://arxiv.org/abs/2210.08572).
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import (
    AVFMultivariateNormal,
    Delta,
    OMTMultivariateNormal,
    SoftLaplace,
    TorchDistribution,
    Unit,
)
from pyro.distributions.distribution import COERCIONS
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import (
    Cauchy,
    Distribution,
    Exponential,
    Laplace,
    MultivariateNormal,
    Normal,
    StudentT,
    Transform,
    TransformedDistribution,
    Uniform,
    kl_divergence,
    register_kl,
)

from pyro_gumbel._tracing import in_eager_mode
from pyro_gumbel.distributions.base import FamilyDistribution
from pyro_gumbel.distributions.relaxation import is_discrete, relax
from pyro_gumbel.distributions.wrappers import WRAPPERS, innermost, wrapped_like
from pyro_gumbel.tensors.deferred import DeferredTensor, deferred, settled
from pyro_gumbel.tensors.drawn_sample import DrawnSample, with_outcomes_of
from pyro_gumbel.tensors.grouping import grouped, in_parts_of_events
from pyro_gumbel.tensors.index_tensor import OutcomeTensor, carrying, collapsed, draws_in
from pyro_gumbel.tensors.lost_gradient import warn_of_noise
from pyro_gumbel.tensors.outcomes import Outcomes, with_gradient, without_gradient
from pyro_gumbel.tensors.subclass import PlainTensor, plain

__all__ = ["OutcomeDistribution", "evaluated_whole", "outcome_distributions"]

# What to put in place of a tensor, given how many of its dimensions are not of the batch.
Replace = Callable[[Tensor, int], Any]
# Makes a distribution with other tensors; with False, without validation.
Make = Callable[[Replace, bool], Any]


class OutcomeDistribution(TorchDistribution):
    """A distribution that is evaluated for every category of the draws it is made of.

    It has the shapes, the support and the values of the distribution at what was drawn. Its other
    attributes, as ``loc``, have the derivative of the draws as their gradient.

    :param make: makes the distribution, with what a function returns in place of each tensor.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._tensors: list[tuple[Tensor, int]] = []  # with how many dimensions not of the batch
        self._keep(make(self._read, True))

    def _with(self, make: Make, now: Any) -> "OutcomeDistribution":
        """A distribution of the same tensors, which are not read again.

        :param now: the distribution at what was drawn.
        """
        new = OutcomeDistribution.__new__(OutcomeDistribution)
        new._make, new._tensors = make, self._tensors
        new._keep(now)
        return new

    def _keep(self, now: Any) -> None:
        """Take this for the distribution at what was drawn."""
        super().__init__(now.batch_shape, now.event_shape, validate_args=False)
        batch = len(self._batch_shape)  # a parameter without a constraint may have more dimensions
        self._tensors = [(t, max(tail, len(t.shape) - batch)) for t, tail in self._tensors]
        self.plain_distribution = now
        self.has_rsample = now.has_rsample
        self.has_enumerate_support = now.has_enumerate_support

    def _read(self, tensor: Tensor, tail: int) -> Tensor:
        """Note a tensor that has outcomes, and return it without."""
        if isinstance(tensor, OutcomeTensor):
            self._tensors.append((tensor, tail))
        return plain(tensor)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "plain_distribution" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._with_derivatives, name)

    @property
    def _with_derivatives(self) -> Any:
        """The distribution with derivatives in place of outcomes."""
        return self._make(lambda tensor, tail: collapsed(tensor), True)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy, and what is stored, is the distribution at what was drawn."""
        return _itself, (self.plain_distribution,)

    def __repr__(self) -> str:
        return f"OutcomeDistribution({self.plain_distribution})"

    @property
    def support(self) -> Any:
        """That of the distribution at what was drawn."""
        return self.plain_distribution.support

    @property
    def arg_constraints(self) -> Any:
        """Those of the distribution at what was drawn."""
        return self.plain_distribution.arg_constraints

    @property
    def mean(self) -> Tensor:
        """The mean, with the derivative of the draws."""
        return self._with_derivatives.mean

    @property
    def variance(self) -> Tensor:
        """The variance, with the derivative of the draws."""
        return self._with_derivatives.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OutcomeDistribution":
        """The same over a larger batch."""
        shape = torch.Size(batch_shape)

        def make(replace: Replace, checks: bool) -> Any:
            # The tables of outcomes broadcast to a larger batch as they are.
            new = self._make(replace, checks)
            return new if len(new.batch_shape) > len(shape) else new.expand(shape)

        if shape == self.batch_shape:
            return self
        return self._with(make, self.plain_distribution.expand(shape))

    def mapped(self, function: Callable[[Any], Any]) -> "OutcomeDistribution":
        """What a function makes of the distribution, for every category."""

        def make(replace: Replace, checks: bool) -> Any:
            return function(self._make(replace, checks))

        return self._with(make, function(self.plain_distribution))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw without a gradient."""
        with torch.no_grad():
            return self.plain_distribution.sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw. Of some families it has outcomes, with the same noise, else the derivative.

        The derivative is biased. A warning says so in the backward pass: where a guide draws the
        value instead, as of a site of the model, there is none.
        """
        source = _source(self.plain_distribution)
        if isinstance(source, _LOCATION_SCALE) and not isinstance(source, _WITH_OWN_GRADIENT):
            with _unchecked():
                own = self._make(lambda tensor, tail: tensor, False)
                if not isinstance(getattr(_source(own), "df", None), OutcomeTensor):
                    return own.rsample(sample_shape)
        value: Tensor = self._with_derivatives.rsample(sample_shape)
        if value.requires_grad and in_eager_mode() and not is_discrete(self):
            name = type(innermost(self.plain_distribution)).__name__
            value.register_hook(lambda gradient: warn_of_noise(name))
        return value

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """That of the distribution at what was drawn."""
        return self.plain_distribution.enumerate_support(expand)

    def score_parts(self, value: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """As those of the distribution at what was drawn, with outcomes."""
        log_prob = self.log_prob(value)
        is_pathwise = getattr(self.plain_distribution, "_is_pathwise", lambda value: True)
        if self.has_rsample and is_pathwise(value):
            return ScoreParts(log_prob, score_function=0, entropy_term=log_prob)
        return ScoreParts(log_prob, score_function=log_prob, entropy_term=0)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density, linear in the one-hot vectors of the draws."""
        event_dim = len(self.event_shape)
        if isinstance(value, DrawnSample):
            value = self._with_outcomes(value)
        return self.of_every_category(lambda d, value: d.log_prob(value), (value, event_dim))

    def _with_outcomes(self, value: Tensor) -> Tensor:
        """Drawn floats with the outcomes of draws that the distribution is made of too.

        Of others they have their derivative, which ends in discrete distributions of torch.
        """
        ends = is_discrete(self) and not isinstance(
            innermost(self.plain_distribution), FamilyDistribution
        )
        draws = None if ends else draws_in([tensor for tensor, _ in self._tensors])
        made: Tensor = with_outcomes_of(value, draws)
        return made

    def entropy(self) -> Tensor:
        """The entropy, linear in the one-hot vectors of the draws."""
        return self.of_every_category(lambda d: d.entropy())

    def of_every_category(self, function: Any, *values: tuple[Tensor, int]) -> Tensor:
        """A number of each element of the batch, linear in the one-hot vectors.

        It has the derivative if an event depends on many elements of a draw, and, with a warning,
        if another category is an error.

        :param function: of the distribution and the values.
        :param values: tensors, and how many of their dimensions are not of the batch.
        """
        values = tuple((settled(value), tail) for value, tail in values)
        result = function(self.plain_distribution, *(plain(value) for value, _ in values))
        try:
            made = self._outcomes(function, values, result)
        except NotImplementedError:
            made = None
        except Exception as error:  # of whatever is constructed and evaluated
            self._warn_of_derivative(error)
            made = None
        if made is None:
            return function(self._with_derivatives, *(collapsed(value) for value, _ in values))
        new = with_gradient(result, made, linear=True)
        return deferred(new, carrying, result, made)

    def _outcomes(self, function: Any, values: Any, result: Tensor) -> list[Outcomes]:
        """What the number would have been, for each set of elements that varies on its own.

        :raises NotImplementedError: if an event depends on many elements of a draw.
        """
        tensors, tails = zip(*self._tensors, *values, strict=True)
        whole = [in_parts_of_events(*pair) for pair in zip(tensors, tails, strict=True)]
        groups = grouped(whole, result.dim(), tails)
        tables = []
        with without_gradient(), _unchecked():
            for group in groups:
                own = {id(tensors[place]): table for place, table in group.tables.items()}
                tables.append(self._table(function, values, own))
        made = []
        for group, table in zip(groups, tables, strict=True):
            shapes = group.first.elements.shape, table.shape[1:]
            if table.dim() == result.dim() + 1 and _fit(shapes, result.shape):
                made.append(group.outcomes(table))
            elif not torch.equal(table, result):
                raise ValueError(f"a result of shape {tuple(table.shape)}")
        return made

    def _table(self, function: Any, values: Any, tables: dict[int, Tensor]) -> Tensor:
        """The number with these in place of the tensors that vary."""

        def replaced(tensor: Tensor, tail: int) -> Any:
            return tables.get(id(tensor), plain(tensor))

        varies = any(id(tensor) in tables for tensor, _ in self._tensors)
        new = self._make(replaced, False) if varies else self._without_checks
        table: Tensor = function(new, *(replaced(*value) for value in values))
        return table

    @property
    def _without_checks(self) -> Any:
        """The distribution at what was drawn, without validation."""
        if not isinstance(self.plain_distribution, FamilyDistribution):
            return self._make(lambda tensor, tail: plain(tensor), False)
        new = copy.copy(self.plain_distribution)
        new._validate_args = False
        return new

    def _warn_of_derivative(self, error: Exception) -> None:
        warnings.warn(
            f"expected a {type(self.plain_distribution).__name__} that can be made for all "
            "categories of a draw, which are one more dimension on the left of its parameters and "
            f"values, got {type(error).__name__}: {error}; took the derivative in its place, which "
            "is biased; write the distribution for a batch of any shape, or "
            "relaxed(model, outcomes=False)",
            stacklevel=4,
        )


def _itself(distribution: Any) -> Any:
    """What it is called with."""
    return distribution


# A draw is a function of the parameters and of noise without any, but for a `df`.
_LOCATION_SCALE = (
    Normal | Laplace | Cauchy | Uniform | Exponential | Delta | SoftLaplace
    | MultivariateNormal | StudentT
)  # fmt: skip
_WITH_OWN_GRADIENT = OMTMultivariateNormal | AVFMultivariateNormal


def _source(distribution: Any) -> Any:
    """The distribution inside of wrappers and transforms."""
    base = innermost(distribution)
    while isinstance(base, TransformedDistribution):
        base = innermost(base.base_dist)
    return base


def _fit(shapes: Sequence[torch.Size], whole: torch.Size) -> bool:
    """Whether tensors of these shapes broadcast to a shape."""
    return all(n in (1, size) for shape in shapes for n, size in zip(shape, whole, strict=True))


_LOCK = threading.RLock()  # of the default of torch, which all threads have in common


def evaluated_whole(distribution: Any) -> Any:
    """The distribution, such that its log_prob is evaluated for every category of a value.

    A categorical distribution is linear in its value already. One of drawn floats is left alone:
    each of its operations gives them the outcomes that they need beside those of the value.
    """
    base = innermost(distribution)
    own = isinstance(distribution, OutcomeDistribution) or isinstance(base, FamilyDistribution)
    is_of_samples = any(isinstance(each, DrawnSample) for each in vars(base).values())
    if own or is_of_samples or isinstance(base, TorchCategorical):
        return distribution
    return OutcomeDistribution(lambda replace, checks: distribution)


@contextmanager
def _unchecked() -> Iterator[None]:
    """A category that was not drawn may have parameters that are not legal."""
    with _LOCK:
        before = Distribution._validate_args
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            Distribution.set_default_validate_args(before)


@relax.register(OutcomeDistribution)
def _(distribution: Any, temperature: Any = None, **options: Any) -> Any:
    return distribution.mapped(lambda each: relax(each, temperature, **options))


@register_kl(Distribution, OutcomeDistribution)
def _kl_to_outcomes(q: Any, p: Any) -> Tensor:
    return p.of_every_category(lambda p: kl_divergence(q, p))


@register_kl(OutcomeDistribution, Distribution)
def _kl_from_outcomes(q: Any, p: Any) -> Tensor:
    return q.of_every_category(lambda q: kl_divergence(q, p))


@register_kl(OutcomeDistribution, OutcomeDistribution)
def _kl_of_two_with_outcomes(q: Any, p: Any) -> Tensor:
    raise NotImplementedError


# How distributions are constructed inside of `relaxed(model)`.


@contextmanager
def outcome_distributions() -> Iterator[None]:
    """Pyro's distributions that are constructed from values with outcomes keep how."""
    COERCIONS.append(_coerce)
    try:
        yield
    finally:
        COERCIONS.remove(_coerce)


def _coerce(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OutcomeDistribution | None:
    """An `OutcomeDistribution`, where an argument has outcomes; called by Pyro's metaclass."""
    if _thread.constructs_plain:
        return None
    if not any(map(_has_outcomes, args)) and not any(map(_has_outcomes, kwargs.values())):
        return None
    count = len(args)
    names = [*_names(cls, count), *kwargs]
    given = [*args, *kwargs.values()]
    given = with_outcomes_of(given, draws_in(given))
    replaced = [
        (place, _tail(cls, name, dict(zip(names, given, strict=True))))
        for place, name in enumerate(names)
        if _is_replaced(given[place])
    ]
    if not any(_has_outcomes(given[i]) and not _passes_on(cls, names[i]) for i, _ in replaced):
        return None

    def make(replace: Replace, checks: bool) -> Any:
        new = list(given)
        for place, tail in replaced:
            new[place] = _replaced(given[place], replace, checks, tail)
        if not checks and "validate_args" in names:
            new[names.index("validate_args")] = False
        with _plain_constructors():
            return cls(*new[:count], **dict(zip(kwargs, new[count:], strict=True)))

    return OutcomeDistribution(make)


def _names(cls: Any, count: int) -> list[str]:
    """The names of the first parameters of a constructor, empty ones of those beyond `*args`."""
    names = list(cls.__signature__.parameters)[:count]
    return names + [""] * (count - len(names))


def _passes_on(cls: Any, name: str) -> bool:
    """Whether the log_prob passes on the outcomes of an argument by itself."""
    if issubclass(cls, WRAPPERS):  # the sum of the log_prob of the base, or a part of it
        return name in ("base_distribution", "base_dist")
    if issubclass(cls, Unit):  # of `pyro.factor`
        return name == "log_factor"
    return name in getattr(cls, "linear_in", ())


class _Thread(threading.local):
    constructs_plain = False


_thread = _Thread()


@contextmanager
def _plain_constructors() -> Iterator[None]:
    """Distributions that are constructed do not keep how, in this thread."""
    before, _thread.constructs_plain = _thread.constructs_plain, True
    try:
        yield
    finally:
        _thread.constructs_plain = before


_WITHOUT_OUTCOMES = {Tensor, bool, int, float, type(None)}


def _has_outcomes(argument: Any) -> bool:
    """Whether there are outcomes anywhere in an argument."""
    if type(argument) in _WITHOUT_OUTCOMES:  # as most are
        return False
    if isinstance(argument, OutcomeTensor):
        return True
    if isinstance(argument, dict):
        return any(map(_has_outcomes, argument.values()))
    if isinstance(argument, list | tuple):
        return any(map(_has_outcomes, argument))
    if isinstance(argument, Transform):
        return any(_has_outcomes(each) for name, each in vars(argument).items() if name != "_inv")
    if isinstance(argument, WRAPPERS):
        return _has_outcomes(argument.base_dist)
    return isinstance(argument, OutcomeDistribution)


def _is_replaced(argument: Any) -> bool:
    """Whether an argument must be replaced: it has outcomes, or is not a plain tensor."""
    return isinstance(argument, PlainTensor) or _has_outcomes(argument)


def _tail(cls: Any, name: str, given: dict[str, Any]) -> int:
    """How many dimensions of an argument are not of the batch."""
    if name == "component_distribution":
        return 1
    if name == "v":
        return given.get("event_dim", 0)
    try:
        return cls.arg_constraints[name].event_dim
    except (AttributeError, KeyError, NotImplementedError, TypeError):
        return 0


def _replaced(argument: Any, replace: Replace, checks: bool, tail: int) -> Any:
    """An argument with other tensors in it."""
    if isinstance(argument, DeferredTensor):
        return replace(argument.settled, tail)
    if isinstance(argument, Tensor):
        return replace(argument, tail)
    if isinstance(argument, OutcomeDistribution):
        return argument._make(lambda tensor, own: replace(tensor, own + tail), checks)
    if isinstance(argument, WRAPPERS) and _has_outcomes(argument):
        taken = getattr(argument, "reinterpreted_batch_ndims", 0)
        base = _replaced(argument.base_dist, replace, checks, tail + taken)
        return base if _is_expanded(argument, base) else wrapped_like(argument, base)
    if isinstance(argument, Transform) and _has_outcomes(argument):
        new = copy.copy(argument)
        new._inv = None
        for name, each in vars(argument).items():
            if name != "_inv":
                new.__dict__[name] = _replaced(each, replace, checks, tail)
        return new
    if isinstance(argument, list | tuple):
        return type(argument)(_replaced(each, replace, checks, tail) for each in argument)
    if isinstance(argument, dict):
        return {name: _replaced(each, replace, checks, tail) for name, each in argument.items()}
    return argument


def _is_expanded(wrapper: Any, base: Any) -> bool:
    """Whether the tables of a base broadcast to the batch of a wrapper that expands it."""
    is_larger = len(base.batch_shape) > len(wrapper.batch_shape)
    return isinstance(wrapper, ExpandedDistribution) and is_larger
