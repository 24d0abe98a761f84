# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The hard column: discrete laws whose samples carry a surrogate gradient.

A straight-through distribution *is* the discrete distribution, with its mass, mean, entropy,
support and divergences. It adds `rsample`, whose forward value is exactly a discrete sample and
whose backward is an estimator, and a `log_prob` that is differentiable in the value.
"""

from typing import Any

import torch
from pyro.distributions import Bernoulli, OneHotCategorical
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor

from pyro_gumbel.estimators import Estimator, named, straight_through_of
from pyro_gumbel.memory import recall, remember
from pyro_gumbel.parameters import Temperature
from pyro_gumbel.rows import OneBit, OneOfK, Row

__all__ = ["BernoulliStraightThrough", "CategoricalStraightThrough", "StraightThrough"]

_PATHWISE = "returned by rsample"


class StraightThrough(Row):
    """The hard law of a row, mixed in before the row and the discrete class."""

    _integers = True

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        *,
        estimator: str | Estimator = "gumbel_softmax",
        validate_args: bool | None = None,
    ) -> None:
        self.estimator = named(estimator)
        super().__init__(temperature, probs, logits, validate_args=validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A discrete sample whose backward is that of the estimator's surrogate."""
        perturbed = self._perturbed(sample_shape)
        hard = self._harden(perturbed.detach())
        logits = self._location.expand(hard.shape)
        surrogate = self.estimator(logits, self._tau, perturbed, hard, self.link)
        sample = straight_through_of(hard, surrogate).to(self._raw.dtype)
        return remember(sample, _PATHWISE, True)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """The draw that `rsample` makes from the same seed, without a gradient."""
        with torch.no_grad():
            return self._harden(self._perturbed(sample_shape)).to(self._raw.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value) = <value, log p>, linear in the value and differentiable in it.

        An outcome of probability 0 scores -inf, adds 0 where the value is 0 there, and passes no
        gradient.
        """
        self._validate_sample(value)
        weights = self._one_hot(value.to(torch.promote_types(value.dtype, self._dtype)))
        impossible, log_masses = _split(self._log_masses(self._location))
        mass = (weights * log_masses).sum(-1)
        excluded = (impossible & (weights > 0)).any(-1)
        return self._over_batch(torch.where(excluded, -torch.inf, mass))

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Pathwise for what `rsample` returned; an enumerated value is weighed by its score."""
        log_prob = self.log_prob(value)
        if value.requires_grad or recall(value, _PATHWISE):
            return ScoreParts(log_prob, score_function=0, entropy_term=log_prob)
        return ScoreParts(log_prob, score_function=log_prob, entropy_term=0)

    def entropy(self) -> Tensor:
        """-sum p log p in nats, finite with finite gradients at probabilities of 0 and 1."""
        _, log_masses = _split(self._log_masses(self._location))
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
        return self._like_param(self._harden(self._location))

    @property
    def param_shape(self) -> torch.Size:
        """The shape of `probs` and `logits`."""
        return self._batch_shape + self._event_shape


class BernoulliStraightThrough(StraightThrough, OneBit, Bernoulli):
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
    :param estimator: "gumbel_softmax", or a function (logits, temperature, perturbed, hard, link)
        -> surrogate, see `pyro_gumbel.estimators`.
    :param validate_args: whether argument and sample *values* are checked; None for the default
        of `torch.distributions`. Shapes and types are always checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but numbers and tensors of floats.
    """

    _support_text = "hard, that is exactly 0 or 1"
    _remedy = (
        "draw it from a BernoulliStraightThrough in the guide too, or make this law soft: "
        "RelaxedBernoulli"
    )


class CategoricalStraightThrough(StraightThrough, OneOfK, OneHotCategorical):
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
    :raises TypeError: for anything but numbers and tensors of floats.
    """

    # Of the parent's inner `_categorical` nothing is left: all that read it is overridden.

    _support_text = "hard, that is exactly one-hot"
    _remedy = (
        "draw it from a CategoricalStraightThrough in the guide too, or make this law soft: "
        "RelaxedCategorical"
    )


def _split(log_masses: Tensor) -> tuple[Tensor, Tensor]:
    """Where an outcome is impossible, and the log masses with 0 in its place."""
    impossible = log_masses.isneginf()
    return impossible, torch.where(impossible, 0.0, log_masses)
