# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The categorical distribution of an index, Pyro's `Categorical`, with a gradient."""

from typing import Any, ClassVar

import torch
from pyro.distributions import Categorical
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import constraints

from pyro_gumbel._tracing import are_seen_finite
from pyro_gumbel.distributions import kl
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.categorical import CategoricalFamily, CategoricalStraightThrough
from pyro_gumbel.distributions.relaxation import register_relaxation
from pyro_gumbel.distributions.straight_through import StraightThroughOutcome, without_impossible
from pyro_gumbel.tensors.index_tensor import IndexTensor, drawn_index
from pyro_gumbel.tensors.lookups import entries
from pyro_gumbel.tensors.subclass import plain

__all__ = ["IndexFamily", "IndexStraightThrough"]

_NO_ORDER = "needs an order, and categories have none"


class IndexFamily(CategoricalFamily):
    """The categorical family, with the index of a category as its value. Not a distribution."""

    without_relaxed = (
        "whose values are integers; leave out hard=False, write OneHotCategorical(probs=d.probs) "
        "for this distribution d, and z @ table where its value z is an index, table[z]"
    )

    def event_shape(self, owner: str, categories: torch.Size, size: Any) -> torch.Size:
        return torch.Size()

    def one_hot(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def from_one_hot(self, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def mode(self, logits: Tensor, size: int | None = None) -> Tensor:
        return logits.argmax(-1)


class IndexStraightThrough(StraightThroughOutcome, Categorical):
    r"""A categorical distribution over indices whose `rsample` carries a gradient.

    It is Pyro's `Categorical`, for models that write ``table[z]``. A sample is an `IndexTensor`: an
    integer tensor, and what is made of it keeps its outcomes, the values for every category. With
    :math:`D` the one-hot vector of the index and :math:`t(j)` the outcomes of a value,

    .. math:: t(z) = \sum_j D_j \, t(j), \qquad E \, t(z) = \sum_j p_j \, t(j).

    The gradient in the probabilities is the table of the outcomes. For independent draws it is
    exact on average, whatever the loss. Inside of ``relaxed(model)`` the log density of every
    distribution made of z has outcomes, as ``Normal(locs[z], scales[z])``.

    Values that pass through a layer of a network or another function that mixes elements have the
    derivative in :math:`D`. It is passed on to the logits as that of a
    `CategoricalStraightThrough`: without a temperature by second order, which is unbiased for every
    loss that is linear or quadratic in :math:`D`; see there for the formula. `temperature` and
    `estimator` concern these values only.

    Sources: Titsias and Lázaro-Gredilla, "Local expectation gradients for black box variational
    inference" (2015), https://arxiv.org/abs/1503.01494; Liu, Dong, Liu, Yu and Gao, "Bridging
    discrete and backpropagation" (2023), https://arxiv.org/abs/2304.08612; Jang, Gu and Poole,
    "Categorical reparameterization with Gumbel-softmax" (2017), https://arxiv.org/abs/1611.01144.

    >>> logits = torch.zeros(5, 3, requires_grad=True)
    >>> z = IndexStraightThrough(logits=logits).rsample()
    >>> torch.tensor([1.0, 4.0, 9.0])[z].sqrt().sum().backward()
    >>> logits.grad[0]    # of the mean of 1, 2 and 3
    tensor([-0.3333,  0.0000,  0.3333])

    :param temperature: tau > 0 of the surrogate, without effect on samples, log_prob and outcomes;
        a number, a tensor that broadcasts with the batch shape, or a function without arguments
        that returns one, such as a temperature schedule; the constructor calls it once. None for
        second order.
    :param probs: non-negative weights, one for each category in the last dimension; they need not
        sum to 1.
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. It is never drawn, and its log_prob is -inf. Give exactly one of `probs` and
        `logits`.
    :param estimator: as in `CategoricalStraightThrough`; a function of yours returns a tensor of
        the shape of the one-hot vectors.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    family = IndexFamily()
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = (
        CategoricalStraightThrough.arg_constraints
    )
    _support_text = "an integer from 0 to the number of categories - 1"
    _remedy = "write value.argmax(-1) for a one-hot value"

    cdf: Any = absent(_NO_ORDER, "write d.probs[..., : k + 1].sum(-1) for the categories up to k")
    icdf: Any = absent(_NO_ORDER, "use `mode` or `probs`")

    @property
    def _num_events(self) -> int:
        """The number of categories, as torch's Categorical reads it."""
        return self._parameter.shape[-1]

    @property
    def _noise_shape(self) -> torch.Size:
        return self._parameter.shape[-1:]

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """An index, as an `IndexTensor`; a plain tensor where no gradient is asked for."""
        return super().rsample(sample_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """The draw that `rsample` makes from the same seed, without a gradient."""
        return super().sample(sample_shape).argmax(-1)

    def _pathwise(self, sample: Tensor) -> Tensor:
        """The index of a one-hot vector."""
        index = drawn_index(sample, sample.argmax(-1), lambda: self.probs)
        return index if isinstance(index, IndexTensor) else super()._pathwise(index)

    def _is_pathwise(self, value: Tensor) -> bool:
        return isinstance(value, IndexTensor) or super()._is_pathwise(value)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p of the category; -inf for one of probability 0."""
        self._validate_sample(plain(value))
        return self._over_batch(entries(self._table, value))

    @property
    def _table(self) -> Tensor:
        """log p of each category, -inf where p is 0, which passes no gradient."""
        log_probs = self.family.log_probs(self._logits)
        if are_seen_finite(log_probs):
            return log_probs
        impossible, log_probs = without_impossible(log_probs)
        return torch.where(impossible, -torch.inf, log_probs)

    @property
    def mean(self) -> Tensor:
        """NaN, as of torch's Categorical: categories are not numbers."""
        return self.probs.new_full(self._batch_shape, torch.nan)

    @property
    def variance(self) -> Tensor:
        """NaN, as of torch's Categorical."""
        return self.mean

    @property
    def mode(self) -> Tensor:
        """The most probable category; of equals the first."""
        return self.family.mode(self._logits).expand(self._batch_shape)


# `relax` of a Categorical returns one of these.
register_relaxation(TorchCategorical, IndexStraightThrough, None)
# Between straight-through and plain categorical distributions.
kl.register_outcomes(IndexStraightThrough, TorchCategorical)
