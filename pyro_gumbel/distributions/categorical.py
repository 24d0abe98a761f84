# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The categorical family: a one-hot vector, relaxed to the simplex, or straight-through."""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import OneHotCategorical, TorchDistribution
from pyro.distributions.relaxed_straight_through import RelaxedOneHotCategoricalStraightThrough
from pyro.distributions.torch import RelaxedOneHotCategorical
from torch import Tensor
from torch.distributions import Categorical, constraints
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions.transforms import ExpTransform, Transform

from pyro_gumbel._tracing import ends
from pyro_gumbel._validation import Temperature, require
from pyro_gumbel.constraints import log_simplex
from pyro_gumbel.constraints import simplex as simplex_constraint
from pyro_gumbel.distributions import kl
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.base import Family
from pyro_gumbel.distributions.noise import StandardGumbel
from pyro_gumbel.distributions.relaxation import LEFT_OUT, register_relaxation, relax
from pyro_gumbel.distributions.relaxed import (
    NO_FORMULA,
    RelaxedLogits,
    RelaxedOutcome,
    entropy_of_outcomes,
    log_probs_and_tau,
)
from pyro_gumbel.distributions.straight_through import StraightThroughOutcome
from pyro_gumbel.links import log_of_positive, simplex
from pyro_gumbel.ops import noise
from pyro_gumbel.ops.expectations import log_softmax_mean
from pyro_gumbel.ops.one_hot import as_one_hot_sample
from pyro_gumbel.ops.precision import cast

__all__ = [
    "CategoricalFamily",
    "CategoricalStraightThrough",
    "ExpRelaxedCategorical",
    "RelaxedCategorical",
    "categorical",
]

_FAR = 1e300  # logits that are farther apart make no other probabilities in float64


class CategoricalFamily(Family):
    """`probs` are non-negative weights over the last dimension, `logits` their logarithms."""

    link: ClassVar[Any] = simplex
    noise = staticmethod(noise.gumbel)
    noise_distribution: ClassVar[Any] = StandardGumbel
    event_dim = 1
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "probs": constraints.independent(constraints.nonnegative, 1),
        "logits": constraints.real_vector,
    }

    def logits_of(self, probs: Tensor) -> Tensor:
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

    def mode(self, logits: Tensor, size: int | None = None) -> Tensor:
        return simplex.hard(logits)

    def number_of_outcomes(self, probs: Tensor) -> int:
        return probs.shape[-1]

    def check_parameter(self, owner: str, name: str, value: Tensor, size: int | None) -> None:
        least, most = ends(value)
        lowest, fewest = 0 if name == "probs" else -math.inf, size or 1
        if lowest < least and most < math.inf:
            return
        if name == "probs":
            valid = ((value >= 0) & value.isfinite()).all(-1) & ((value > 0).sum(-1) >= fewest)
            what = f"non-negative and finite, with {fewest} or more positive in every row"
            remedy = "write logits=... for log weights"
        else:
            valid = (value < math.inf).all(-1) & (value.isfinite().sum(-1) >= fewest)
            what = f"below infinity and not NaN, with {fewest} or more finite in every row"
            remedy = "write a logit of -inf only for a category that cannot occur"
        require(valid, f"{owner}: `{name}` must be {what}", value, remedy)


categorical = CategoricalFamily()


class RelaxedCategorical(RelaxedOutcome, RelaxedOneHotCategorical):
    r"""A one-hot vector relaxed to the simplex.

    .. math:: s = \operatorname{softmax}\left(\frac{x + g}{\tau}\right),
              \qquad g_i \sim \text{Gumbel}(0, 1) \text{ iid},

    with :math:`x` the logits of :math:`k` categories and :math:`\tau` the temperature. With
    :math:`v = \log s`, its density with respect to :math:`ds_1 \dots ds_{k-1}` is

    .. math::
        \log p(s) = \log (k-1)! + (k-1) \log \tau
                    + \sum_i \log \operatorname{softmax}(x - \tau v)_i - \sum_i v_i.

    The largest entry is the i-th with probability :math:`\operatorname{softmax}(x)_i` at every
    temperature. The Concrete distribution of Maddison, Mnih and Teh, "The Concrete distribution"
    (2017), https://arxiv.org/abs/1611.00712, and the Gumbel-softmax of Jang, Gu and Poole,
    "Categorical reparameterization with Gumbel-softmax" (2017), https://arxiv.org/abs/1611.01144.

    >>> d = RelaxedCategorical(0.1, logits=torch.randn(5, 10))
    >>> d.log_prob(d.rsample()).isfinite().all()
    tensor(True)

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape (it has no
        dimension for the categories), or a function without arguments that returns one, called
        once.
    :param probs: non-negative weights, categories in the last dimension; normalised.
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given.
    :param validate_args: whether argument and sample *values* are checked; None for the default
        of `torch.distributions`. Shapes and types are always checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them.
    """

    family = categorical
    replaces = RelaxedOneHotCategorical
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        **categorical.arg_constraints,
    }
    support = simplex_constraint
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
        """Cov(s_i, s_j), exact; its shape is the batch shape and (k, k)."""
        covariances = cast(self._covariances, self._parameter.dtype)
        return covariances.expand(self._batch_shape + covariances.shape[-2:])


class ExpRelaxedCategorical(RelaxedLogits, TorchDistribution):
    r"""The logarithm of a `RelaxedCategorical`, on the log-simplex.

    .. math:: v = \operatorname{log\,softmax}\left(\frac{x + g}{\tau}\right),
              \qquad g_i \sim \text{Gumbel}(0, 1) \text{ iid},

    with :math:`x` the logits of :math:`k` categories and :math:`\tau` the temperature. Its density
    is

    .. math::
        \log p(v) = \log (k-1)! + (k-1) \log \tau
                    + \sum_i \log \operatorname{softmax}(x - \tau v)_i,

    the density of :math:`s = \exp v` times :math:`\prod_i s_i`, as in `torch.distributions`. It is
    also the density with respect to the :math:`k - 1` log-ratios :math:`v_i - v_k`.

    It does not saturate: use it at low temperature under NUTS, in an autoguide, or wherever a value
    is copied or stored. Maddison, Mnih and Teh, "The Concrete distribution" (2017),
    https://arxiv.org/abs/1611.00712, appendix C.

    >>> ExpRelaxedCategorical(0.1, probs=torch.ones(4)).sample().exp().shape
    torch.Size([4])

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape (it has no
        dimension for the categories), or a function without arguments that returns one, called
        once.
    :param probs: non-negative weights, categories in the last dimension; normalised.
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given.
    :param validate_args: whether argument and sample *values* are checked; None for the default
        of `torch.distributions`. Shapes and types are always checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them.
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

    def entropy(self) -> Tensor:
        """-E log_prob, the differential entropy in nats; 0 if there is a single value."""
        return entropy_of_outcomes(self, of_values=False)

    @property
    def mean(self) -> Tensor:
        """E v = (x + gamma) / tau - E logsumexp((x + g) / tau), gamma Euler's constant, to 1e-12.

        It is no point of the log-simplex, which is curved: `log_softmax` of it is the mode.
        """
        return self._expanded(log_softmax_mean(*log_probs_and_tau(self)))

    @property
    def mode(self) -> Tensor:
        """log_softmax(x / tau), where the density of v is largest."""
        return self._expanded(self.link.unconstrained(self._logits, self._tau))


class CategoricalStraightThrough(StraightThroughOutcome, OneHotCategorical):
    r"""A one-hot categorical vector whose sample carries the gradient of a relaxed one.

    The distribution is the discrete one at every temperature. With :math:`p` the probabilities,

    .. math:: \log P(D) = \sum_i D_i \log p_i,

    extended linearly to real :math:`D`. `rsample` and `sample` return exactly one-hot vectors. The
    backward pass of `rsample` is the estimator's, by default that of
    :math:`s = \operatorname{softmax}(z / \tau)` with :math:`D` the argmax of :math:`z = x + g`,
    :math:`g_i \sim \text{Gumbel}(0, 1)` iid: the straight-through Gumbel-softmax of Jang, Gu and
    Poole, "Categorical reparameterization with Gumbel-softmax" (2017),
    https://arxiv.org/abs/1611.01144. A low temperature lowers its bias and raises its variance.

    >>> d = CategoricalStraightThrough(0.5, logits=torch.randn(5, 10))
    >>> d.rsample().sum(-1)
    tensor([1., 1., 1., 1., 1.])

    :param temperature: tau > 0 of the surrogate; a number, a tensor that broadcasts with the batch
        shape (it has no dimension for the categories), or a function without arguments that
        returns one, called once.
    :param probs: non-negative weights, categories in the last dimension; normalised.
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given.
    :param estimator: "gumbel_softmax", "gumbel_rao", "straight_through", "reinmax", "gapped", or a
        function (logits, temperature, perturbed, hard, link) -> surrogate, see
        `pyro_gumbel.estimators`.
    :param validate_args: whether argument and sample *values* are checked; None for the default
        of `torch.distributions`. Shapes and types are always checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but real numbers and tensors of them.
    """

    # Nothing that reads the parent's inner `_categorical` is left: all of it is overridden.

    family = categorical
    replaces = RelaxedOneHotCategoricalStraightThrough
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = (
        RelaxedCategorical.arg_constraints
    )
    _support_text = "hard, that is exactly one-hot"
    _remedy = (
        "draw it from a CategoricalStraightThrough in the guide too, or relax this distribution: "
        "RelaxedCategorical"
    )

    def _pathwise(self, sample: Tensor) -> Tensor:
        return as_one_hot_sample(super()._pathwise(sample))


@relax.register(Categorical)
def _(distribution: Any, temperature: Temperature, **options: Any) -> Any:
    raise TypeError(
        "relax: `distribution` must have values that can carry a gradient, got a Categorical, "
        "whose values are integers; write OneHotCategorical(probs=probs) for "
        "Categorical(probs=probs), and z @ table where its value z is an index, table[z]; or "
        f"{LEFT_OUT}"
    )


register_relaxation(TorchOneHotCategorical, CategoricalStraightThrough, RelaxedCategorical)
kl.register_relaxed(RelaxedCategorical, ExpRelaxedCategorical)
kl.register_transformed(RelaxedCategorical)
kl.register_outcomes(CategoricalStraightThrough, TorchOneHotCategorical)
