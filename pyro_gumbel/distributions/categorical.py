# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Categorical distributions with gradients.

`RelaxedCategorical` has values on the simplex, `ExpRelaxedCategorical` has the logarithms of those,
and `CategoricalStraightThrough` has exactly one-hot vectors, with a surrogate gradient.
"""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import OneHotCategorical, TorchDistribution
from pyro.distributions.relaxed_straight_through import RelaxedOneHotCategoricalStraightThrough
from pyro.distributions.torch import RelaxedOneHotCategorical
from torch import Tensor
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform, Transform

from pyro_gumbel._tracing import are_finite, ends
from pyro_gumbel._validation import require
from pyro_gumbel.constraints import log_simplex
from pyro_gumbel.constraints import simplex as simplex_support
from pyro_gumbel.distributions import kl
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.base import Family
from pyro_gumbel.distributions.noise import StandardGumbel
from pyro_gumbel.distributions.relaxation import register_relaxation
from pyro_gumbel.distributions.relaxed import (
    NO_FORMULA,
    USE_DRAWS,
    RelaxedLogits,
    RelaxedOutcome,
    entropy_of_outcomes,
    log_probs_and_tau,
)
from pyro_gumbel.distributions.straight_through import StraightThroughOutcome
from pyro_gumbel.links import simplex
from pyro_gumbel.ops.expectations import log_softmax_mean
from pyro_gumbel.ops.logarithms import are_regular, log_of_positive
from pyro_gumbel.ops.noise import gumbel
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.ops.second_order import with_one_hot_gradient
from pyro_gumbel.tensors.one_hot_sample import as_one_hot_sample

__all__ = [
    "CategoricalFamily",
    "CategoricalStraightThrough",
    "ExpRelaxedCategorical",
    "RelaxedCategorical",
]

_FAR = 1e300  # in float64 finite logits are at most so far below the largest


class CategoricalFamily(Family):
    """What the categorical distributions share: parameters, noise and link. Not a distribution.

    `probs` are non-negative weights over the last dimension, `logits` their logarithms.
    """

    link: ClassVar[Any] = simplex
    noise = staticmethod(gumbel)
    noise_distribution: ClassVar[Any] = StandardGumbel
    event_dim = 1
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "probs": constraints.independent(constraints.nonnegative, 1),
        "logits": constraints.real_vector,
    }

    def logits_of(self, probs: Tensor) -> Tensor:
        if are_regular(probs):
            return probs.log()
        return torch.where(probs <= 0, -math.inf, log_of_positive(probs))

    def normalised_logits(self, logits: Tensor) -> Tensor:
        return simplex.centred(logits).log_softmax(-1)

    def normalised_probs(self, probs: Tensor) -> Tensor:
        weights = probs / probs.detach().amax(-1, keepdim=True)
        return weights / weights.sum(-1, keepdim=True)

    def probs_of(self, logits: Tensor) -> Tensor:
        return simplex.centred(logits).softmax(-1)

    def without_extremes(self, logits: Tensor) -> Tensor:
        below = logits - logits.detach().amax(-1, keepdim=True)
        return torch.where(logits.isneginf(), logits, below.clamp(min=-_FAR))

    def log_probs(self, logits: Tensor) -> Tensor:
        return self.normalised_logits(logits)

    def one_hot(self, value: Tensor) -> Tensor:
        return value

    def from_one_hot(self, weights: Tensor) -> Tensor:
        return weights

    def with_second_order_gradient(self, value: Tensor, logits: Tensor) -> Tensor:
        return with_one_hot_gradient(value, logits)

    def mode(self, logits: Tensor, size: int | None = None) -> Tensor:
        return simplex.hard(logits)

    def number_of_outcomes(self, probs: Tensor) -> int:
        return probs.shape[-1]

    def check_parameter(
        self, owner: str, name: str, value: Tensor, size: int | Tensor | None
    ) -> None:
        if name == "logits" and are_finite(value):
            return
        # A draw of `size` categories needs as many that are possible.
        fewest = 1 if size is None else size
        kind = "positive" if name == "probs" else "finite"
        has_lengths = isinstance(size, Tensor)
        few = f"as many {kind} as its length" if has_lengths else f"{fewest} or more {kind}"
        if name == "probs":
            least, most = ends(value)
            if least > 0 and most < math.inf:
                return
            valid = ((value >= 0) & value.isfinite()).all(-1) & ((value > 0).sum(-1) >= fewest)
            what = f"non-negative and finite, with {few} in every row"
            remedy = "write logits=... for log weights"
        else:
            valid = (value < math.inf).all(-1) & (value.isfinite().sum(-1) >= fewest)
            what = f"below infinity and not NaN, with {few} in every row"
            remedy = "write a logit of -inf only for a category that cannot occur"
        whole = value.expand(*valid.shape, value.shape[-1])  # lengths may make the batch larger
        require(valid, f"{owner}: `{name}` must be {what}", whole, remedy)


categorical = CategoricalFamily()


class RelaxedCategorical(RelaxedOutcome, RelaxedOneHotCategorical):
    r"""A one-hot vector relaxed to the simplex, with a pathwise gradient.

    .. math:: s = \operatorname{softmax}\left(\frac{x + g}{\tau}\right),
              \qquad g_i \sim \text{Gumbel}(0, 1) \text{ iid},

    with :math:`x` the logits of :math:`k` categories and :math:`\tau` the temperature. With
    :math:`v = \log s`, its density with respect to :math:`ds_1 \dots ds_{k-1}` is

    .. math::
        \log p(s) = \log (k-1)! + (k-1) \log \tau
                    + \sum_i \log \operatorname{softmax}(x - \tau v)_i - \sum_i v_i.

    The largest entry is the i-th with probability :math:`\operatorname{softmax}(x)_i` at every
    temperature. `rsample` and `sample` attach v to the tensor that they return, so that its
    log_prob is exact also where entries were rounded to 0. A new tensor (a clone, a slice, one read
    from a file) has no v, and its log_prob is inexact there: use `ExpRelaxedCategorical` for values
    that are copied or stored. This is the Concrete distribution of Maddison, Mnih and Teh, "The
    Concrete distribution" (2017), https://arxiv.org/abs/1611.00712, and the Gumbel-softmax of Jang,
    Gu and Poole, "Categorical reparameterization with Gumbel-softmax" (2017),
    https://arxiv.org/abs/1611.01144.

    >>> d = RelaxedCategorical(0.1, logits=torch.randn(5, 10))
    >>> d.log_prob(d.rsample()).isfinite().all()
    tensor(True)

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape (it has no
        dimension for the categories), or a function without arguments that returns one, such as a
        temperature schedule; the constructor calls it once.
    :param probs: non-negative weights, one for each category in the last dimension; they need not
        sum to 1.
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. Its entry is always 0, and k and the sums above count the possible categories only.
        Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    family = categorical
    replaces = RelaxedOneHotCategorical  # by register(replace=True)
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        **categorical.arg_constraints,
    }
    support = simplex_support
    _support_text = "on the simplex (non-negative, sum 1 over the last dimension)"
    _remedy = "write value / value.sum(-1, keepdim=True), or use ExpRelaxedCategorical for logs"
    _exact = "use ExpRelaxedCategorical, which does not saturate"
    _most_probable = "write probs.argmax(-1) for the most probable category"

    @property
    def base_dist(self) -> "ExpRelaxedCategorical":
        """The distribution of log(s), with the same parameters."""
        return self._as(ExpRelaxedCategorical)

    @property
    def transforms(self) -> list[Transform]:
        """From a value of `base_dist` to s."""
        return [ExpTransform()]

    @property
    def covariance_matrix(self) -> Tensor:
        """Cov(s_i, s_j), by quadrature, to 1e-12 in float64; of shape batch_shape + (k, k)."""
        covariances = cast(self._covariances, self._parameter.dtype)
        return covariances.expand(self._batch_shape + covariances.shape[-2:])


class ExpRelaxedCategorical(RelaxedLogits, TorchDistribution):
    r"""The logarithm of a `RelaxedCategorical`, on the log-simplex.

    .. math:: v = \operatorname{log\,softmax}\left(\frac{x + g}{\tau}\right),
              \qquad g_i \sim \text{Gumbel}(0, 1) \text{ iid},

    with :math:`x` the logits of :math:`k` categories and :math:`\tau` the temperature. Its density
    with respect to the :math:`k - 1` log-ratios :math:`v_i - v_k` is

    .. math::
        \log p(v) = \log (k-1)! + (k-1) \log \tau
                    + \sum_i \log \operatorname{softmax}(x - \tau v)_i,

    which is :math:`p(s) \prod_i s_i`, with :math:`p(s)` the density of :math:`s = \exp v` as a
    `RelaxedCategorical`. Where all logits are finite, the log_prob of torch's class of this
    name is the same.

    Small entries of s are rounded to 0, and their logarithms are not. Use this class for NUTS and
    autoguides at low temperatures, and for values that are copied or stored. Maddison, Mnih and
    Teh, "The Concrete distribution" (2017), https://arxiv.org/abs/1611.00712, appendix C.

    >>> ExpRelaxedCategorical(0.1, probs=torch.ones(4)).sample().exp().shape
    torch.Size([4])

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape (it has no
        dimension for the categories), or a function without arguments that returns one, such as a
        temperature schedule; the constructor calls it once.
    :param probs: non-negative weights, one for each category in the last dimension; they need not
        sum to 1.
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. Its entry is always -inf, and k and the sums above count the possible categories
        only. Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    family = categorical
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = (
        RelaxedCategorical.arg_constraints
    )
    support = log_simplex
    _support_text = "on the log-simplex (logsumexp 0 over the last dimension)"
    _remedy = "write value.log_softmax(-1), or value.log() if this is a point of the simplex"

    variance: Any = absent(
        f"{NO_FORMULA} (that of v_i - v_j is pi^2 / (3 temperature^2))",
        "write d.rsample((1000,)).var(0) to estimate it",
    )

    covariance_matrix: Any = absent(NO_FORMULA, USE_DRAWS)

    def entropy(self) -> Tensor:
        """-E log_prob, the differential entropy in nats; 0 if one category has probability 1."""
        return entropy_of_outcomes(self, of_values=False)

    @property
    def mean(self) -> Tensor:
        """E v = (x + gamma) / tau - E logsumexp((x + g) / tau), with gamma Euler's constant.

        By quadrature, to 1e-12 in float64. The exponentials of the mean do not sum to 1.
        """
        return self._expanded(log_softmax_mean(*log_probs_and_tau(self)))

    @property
    def mode(self) -> Tensor:
        """log_softmax(x / tau), where the density of v is largest."""
        return self._expanded(self.link.unconstrained(self.link.centred(self._logits), self._tau))


class CategoricalStraightThrough(StraightThroughOutcome, OneHotCategorical):
    r"""A categorical distribution over one-hot vectors whose `rsample` carries a gradient.

    Use it where the model needs one-hot vectors, and `RelaxedCategorical` where relaxed ones do.

    The distribution is the discrete one at every temperature. With :math:`p` the probabilities,

    .. math:: \log P(D) = \sum_i D_i \log p_i,

    which is linear in :math:`D`, so that `log_prob` passes a gradient to the sample. `rsample` and
    `sample` draw :math:`z = x + g`, :math:`g_i \sim \text{Gumbel}(0, 1)` iid, with :math:`x` the
    logits, and return the one-hot vector :math:`D` of the largest entry. With :math:`u` the
    gradient of a loss at :math:`D`, `rsample` passes to the logits the gradient

    .. math::
        \tfrac{1}{2} \bigl( p \odot (u - \langle D, u \rangle)
            + D \, \langle D - p, u \rangle \bigr).

    It is unbiased for every loss that is quadratic in :math:`D`. This is second order, derived in
    `pyro_gumbel.ops.second_order`: the ReinMax of Liu, Dong, Liu, Yu and Gao, "Bridging discrete
    and backpropagation" (2023), https://arxiv.org/abs/2304.08612, at temperature 1. With a
    temperature the gradient is that of the relaxed value
    :math:`\operatorname{softmax}(z / \tau)`, the straight-through Gumbel-softmax of Jang, Gu and
    Poole, "Categorical reparameterization with Gumbel-softmax" (2017),
    https://arxiv.org/abs/1611.01144, unless `estimator` names another one. A lower temperature
    lowers its bias and raises its variance.

    >>> d = CategoricalStraightThrough(logits=torch.randn(5, 10))
    >>> d.rsample().sum(-1)
    tensor([1., 1., 1., 1., 1.])

    :param temperature: tau > 0 of the surrogate, without effect on samples and log_prob; a number,
        a tensor that broadcasts with the batch shape (it has no dimension for the categories), or a
        function without arguments that returns one, such as a temperature schedule; the constructor
        calls it once. None for second order.
    :param probs: non-negative weights, one for each category in the last dimension; they need not
        sum to 1.
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. It is never drawn, and a value that has it has log_prob -inf. Give exactly one of
        `probs` and `logits`.
    :param estimator: without a temperature "second_order", the default, "mve" or "reinmax_rao";
        with one "gumbel_softmax", the default, "gumbel_rao", "straight_through", "reinmax",
        "gapped", or a function of (logits, temperature, perturbed, hard, link) that returns a
        tensor of the sample's shape, whose gradient is used; `perturbed` is z, and `hard` the
        sample. `pyro_gumbel.estimators` has the formula and source of each.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    # Pyro's OneHotCategorical reads an inner `_categorical`. There is none here: every property and
    # method that would read it is overridden by the first base.

    family = categorical
    replaces = RelaxedOneHotCategoricalStraightThrough  # by register(replace=True)
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = (
        RelaxedCategorical.arg_constraints
    )
    _support_text = "hard, that is exactly one-hot"
    _remedy = (
        "draw it from a CategoricalStraightThrough in the guide too, or relax this distribution: "
        "RelaxedCategorical"
    )

    def _pathwise(self, sample: Tensor) -> Tensor:
        return as_one_hot_sample(StraightThroughOutcome._pathwise(self, sample))


# `relax` of a OneHotCategorical returns one of these.
register_relaxation(TorchOneHotCategorical, CategoricalStraightThrough, RelaxedCategorical)
# Divergences between two of the same relaxed class.
kl.register_relaxed(RelaxedCategorical, ExpRelaxedCategorical)
# Between a RelaxedCategorical and a TransformedDistribution of torch.
kl.register_transformed(RelaxedCategorical)
# Between straight-through and plain one-hot categorical distributions.
kl.register_outcomes(CategoricalStraightThrough, TorchOneHotCategorical)
