# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The hard column: discrete laws whose samples carry a surrogate gradient.

A straight-through distribution *is* the discrete distribution, with its mass, mean, entropy,
support and divergences. It adds `rsample`, whose forward value is exactly a discrete sample and
whose backward is an estimator, and a `log_prob` that is differentiable in the value.
"""

import math
from typing import Any

import torch
from pyro.distributions import Bernoulli, OneHotCategorical
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor

from pyro_gumbel._tracing import ends
from pyro_gumbel._validation import Temperature, require
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.base import OneBit, OneOfK, Row
from pyro_gumbel.distributions.sample_cache import recall, remember
from pyro_gumbel.distributions.without_replacement import PlackettLuce, Subset
from pyro_gumbel.estimators import (
    Estimator,
    gumbel_softmax,
    named,
    require_suited,
    straight_through_of,
)
from pyro_gumbel.kernels import dispatch
from pyro_gumbel.ops.one_hot import as_one_hot_sample, plain
from pyro_gumbel.ops.precision import cast

__all__ = [
    "PATHWISE",
    "BernoulliStraightThrough",
    "CategoricalStraightThrough",
    "PlackettLuceStraightThrough",
    "StraightThrough",
    "SubsetStraightThrough",
]

PATHWISE = "returned by rsample"
_USE_PROBS = "use probs: P(D <= 0) is 1 - probs"


class StraightThrough(Row):
    """The hard law of a row, mixed in before the row and the discrete class."""

    has_rsample = True
    _has_temperature = True
    _integers = True

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
        *,
        estimator: str | Estimator = "gumbel_softmax",
    ) -> None:
        self.estimator = named(estimator)
        Row.__init__(self, probs, logits, temperature=temperature, validate_args=validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A discrete sample whose backward is that of the estimator's surrogate."""
        if self._is_drawn_at_once:
            return self._pathwise(self._drawn_at_once(sample_shape))
        logits, perturbed = self._contest(sample_shape)
        hard = self.link.hard(perturbed.detach())
        surrogate = self.estimator(logits, self._tau, perturbed, hard, self.link)
        sample = straight_through_of(hard, surrogate)
        if self._checks_values and not all(map(math.isfinite, ends(surrogate))):
            require(
                surrogate.isfinite() | logits.isinf(),
                f"{type(self).__name__}: `estimator` must return a surrogate that is finite where "
                "the logits are",
                surrogate,
                "write surrogate.nan_to_num(0.0) to pass no gradient there",
            )
        return self._pathwise(cast(sample, self._raw.dtype))

    def _pathwise(self, sample: Tensor) -> Tensor:
        """A draw that carries the mark of `rsample`."""
        return remember(sample, PATHWISE, True)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """The draw that `rsample` makes from the same seed, without a gradient."""
        with torch.no_grad():
            if self._is_drawn_at_once:
                return self._drawn_at_once(sample_shape)
            return self.link.hard(self._contest(sample_shape)[1]).to(self._raw.dtype)

    @property
    def _is_drawn_at_once(self) -> bool:
        """Whether a draw is one of `pyro_gumbel.kernels.dispatch`."""
        return self.estimator is gumbel_softmax

    def _drawn_at_once(self, sample_shape: Any) -> Tensor:
        shape = self._sample_shape(sample_shape)
        arguments = self._x, self._tau, self.link, self.noise, shape, self._batch_shape
        return cast(dispatch.straight_through_draw(*arguments), self._raw.dtype)

    def _contest(self, sample_shape: Any) -> tuple[Tensor, Tensor]:
        """x and z = x + noise of the full shape of a draw: the sample is what z chooses."""
        perturbed = self._perturbed(sample_shape)
        return self._location.expand(perturbed.shape), perturbed

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Pathwise for what `rsample` returned; an enumerated value is weighed by its score."""
        log_prob = self.log_prob(value)
        if value.requires_grad or recall(value, PATHWISE):
            return ScoreParts(log_prob, score_function=0, entropy_term=log_prob)
        return ScoreParts(log_prob, score_function=log_prob, entropy_term=0)


class _OfOne(StraightThrough):
    """One outcome of a few, whose masses are looked up in a table."""

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value) = <value, log p>, linear in the value and differentiable in it.

        An outcome of probability 0 scores -inf, adds 0 where the value is 0 there, and passes no
        gradient.
        """
        value = plain(value)
        self._validate_sample(value)
        weights = self._one_hot(cast(value, torch.promote_types(value.dtype, self._dtype)))
        impossible, log_masses = _split(self._log_masses(self._x))
        mass = (weights * log_masses).sum(-1)
        excluded = (impossible & (weights > 0)).any(-1)
        return self._over_batch(torch.where(excluded, -torch.inf, mass))

    def entropy(self) -> Tensor:
        """-sum p log p in nats, finite with finite gradients at probabilities of 0 and 1."""
        _, log_masses = _split(self._log_masses(self._x))
        return self._over_batch(-(log_masses.exp() * log_masses).sum(-1))

    @property
    def mean(self) -> Tensor:
        """The probabilities."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """p (1 - p), entry by entry."""
        return self.probs * (1 - self.probs)

    @property
    def mode(self) -> Tensor:
        """A most probable value; of equals the first (for one bit 1)."""
        return self._like_param(self.link.hard(self._x))

    @property
    def param_shape(self) -> torch.Size:
        """The shape of `probs` and `logits`."""
        return self._batch_shape + self._event_shape


class _OfSize(StraightThrough):
    """`size` of the categories."""

    arg_constraints = OneOfK.arg_constraints

    def __init__(
        self,
        temperature: Temperature,
        size: int,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        estimator: str | Estimator = "gumbel_softmax",
    ) -> None:
        self.estimator = named(estimator)
        Row.__init__(
            self, probs, logits, temperature=temperature, size=size, validate_args=validate_args
        )
        if self.estimator is not gumbel_softmax:
            require_suited(type(self).__name__, self.estimator, self.link)


class BernoulliStraightThrough(_OfOne, OneBit, Bernoulli):
    r"""A Bernoulli bit D whose sample carries the gradient of a soft one.

    The law is the discrete one at every temperature::

        log P(D) = D log p + (1 - D) log(1 - p)

    extended linearly to real D. `rsample` and `sample` return exactly 0 or 1; the backward of
    `rsample` is the estimator's, by default that of s = sigmoid(z / tau) with z = x + L and D = 1
    where z >= 0: the straight-through Gumbel-softmax of Jang, Gu and Poole (2017),
    https://arxiv.org/abs/1611.01144. Low temperatures trade its bias for variance.

    >>> BernoulliStraightThrough(0.5, probs=torch.tensor(1.0)).rsample()
    tensor(1.)

    :param temperature: tau > 0 of the surrogate; a number, a tensor that broadcasts with the
        batch shape, or a function without arguments that returns one, called once.
    :param probs: the probability of 1, in [0, 1]; its shape is the batch shape.
    :param logits: its log-odds x, real or infinite; exactly one of the two is given.
    :param estimator: "gumbel_softmax", "gumbel_rao", "straight_through", "reinmax", "gapped", or a
        function (logits, temperature, perturbed, hard, link) -> surrogate, see
        `pyro_gumbel.estimators`.
    :param validate_args: whether argument and sample *values* are checked; None for the default
        of `torch.distributions`. Shapes and types are always checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them.
    """

    cdf: Any = absent("is a step, which torch's Bernoulli leaves out", _USE_PROBS)
    icdf: Any = absent("is a step, which torch's Bernoulli leaves out", _USE_PROBS)

    _support_text = "hard, that is exactly 0 or 1"
    _remedy = (
        "draw it from a BernoulliStraightThrough in the guide too, or make this law soft: "
        "RelaxedBernoulli"
    )


class CategoricalStraightThrough(_OfOne, OneOfK, OneHotCategorical):
    r"""A one-hot categorical vector D whose sample carries the gradient of a soft one.

    The law is the discrete one at every temperature::

        log P(D) = sum_i D_i log p_i

    extended linearly to real D. `rsample` and `sample` return exactly one-hot vectors; the
    backward of `rsample` is the estimator's, by default that of s = softmax(z / tau) with D the
    argmax of z = x + g: the straight-through Gumbel-softmax of Jang, Gu and Poole (2017),
    https://arxiv.org/abs/1611.01144. Low temperatures trade its bias for variance.

    >>> d = CategoricalStraightThrough(0.5, logits=torch.randn(5, 10))
    >>> d.rsample().sum(-1)
    tensor([1., 1., 1., 1., 1.])

    :param temperature: tau > 0 of the surrogate, as in `BernoulliStraightThrough`; broadcasts
        with the batch shape, that is without a dimension for the categories.
    :param probs: non-negative weights, categories in the last dimension; normalised.
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given.
    :param estimator: as in `BernoulliStraightThrough`.
    :param validate_args: as in `BernoulliStraightThrough`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them.
    """

    # Of the parent's inner `_categorical` nothing is left: all that read it is overridden.

    def _pathwise(self, sample: Tensor) -> Tensor:
        return as_one_hot_sample(super()._pathwise(sample))

    _support_text = "hard, that is exactly one-hot"
    _remedy = (
        "draw it from a CategoricalStraightThrough in the guide too, or make this law soft: "
        "RelaxedCategorical"
    )


class SubsetStraightThrough(_OfSize, Subset):
    r"""An m-hot vector D whose sample carries the gradient of a soft one.

    The law is that of `Subset` at every temperature, its mass extended to real D as there.
    `rsample` and `sample` return exactly m-hot vectors; the backward of `rsample` is the
    estimator's, by default that of s = sigmoid(z / tau - c) with sum(s) = m, the value that a
    `RelaxedSubset` has at the same z = x + g, D the m largest of z. The sigmoid on the hypersimplex
    is that of Amos, Koltun and Kolter, "The limited multi-label projection layer" (2019),
    https://arxiv.org/abs/1906.08707.

    >>> SubsetStraightThrough(0.5, 2, logits=torch.randn(3, 10)).rsample().sum(-1)
    tensor([2., 2., 2.])

    :param temperature: tau > 0 of the surrogate, as in `CategoricalStraightThrough`.
    :param size: m, a Python int from 1 to k.
    :param probs: non-negative weights of a single draw, categories in the last dimension;
        normalised.
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given, with at least m possible categories in every row.
    :param estimator: as in `BernoulliStraightThrough`, but neither "reinmax" nor "gapped", which
        know no subsets.
    :param validate_args: as in `BernoulliStraightThrough`.
    :raises ValueError: for a wrong value, shape or estimator, or both or neither of `probs` and
        `logits`.
    :raises TypeError: for anything but real numbers and tensors of them, and a size that is no int.
    """


class PlackettLuceStraightThrough(_OfSize, PlackettLuce):
    r"""One-hot rows D_1, ..., D_m, in the order of the draws, that carry the gradient of soft ones.

    The law is that of `PlackettLuce` at every temperature, its mass extended to real D as there.
    Each row is drawn like a `CategoricalStraightThrough` from the categories that the rows before
    it have left, with noise of its own; its backward is the estimator's with the logits of the
    taken at -inf. The earlier winners are held fixed there, which adds to the bias from the second
    row on.

    >>> PlackettLuceStraightThrough(0.5, 3, logits=torch.randn(5, 4)).rsample().shape
    torch.Size([5, 3, 4])

    :param temperature: tau > 0 of the surrogate, as in `CategoricalStraightThrough`.
    :param size: m, a Python int from 1 to k.
    :param probs: non-negative weights of the first draw, categories in the last dimension;
        normalised. The event shape is (m, k).
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given, with at least m possible categories in every row.
    :param estimator: as in `BernoulliStraightThrough`.
    :param validate_args: as in `BernoulliStraightThrough`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them, and a size that is no int.
    """

    _is_drawn_at_once = False

    def _contest(self, sample_shape: Any) -> tuple[Tensor, Tensor]:
        logits, perturbed = super()._contest(sample_shape)
        untaken = self._untaken(perturbed.detach())
        return (
            torch.where(untaken, logits, -torch.inf),
            torch.where(untaken, perturbed, -torch.inf),
        )


def _split(log_masses: Tensor) -> tuple[Tensor, Tensor]:
    """Where an outcome is impossible, and the log masses with 0 in its place."""
    impossible = log_masses.isneginf()
    return impossible, torch.where(impossible, 0.0, log_masses)
