# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Subsets of m of k categories, as m-hot vectors, with gradients.

`Subset` is the discrete distribution. `RelaxedSubset` has values on the hypersimplex,
`LogitRelaxedSubset` has the logits of those, and `SubsetStraightThrough` has exactly m-hot vectors,
with a surrogate gradient.
"""

import itertools
import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_gumbel._validation import Temperature, read_size
from pyro_gumbel.constraints import hypersimplex, logit_hypersimplex, subset
from pyro_gumbel.distributions import kl
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.categorical import CategoricalFamily
from pyro_gumbel.distributions.relaxation import register_relaxation
from pyro_gumbel.distributions.relaxed import NO_FORMULA, USE_DRAWS, RelaxedLogits, RelaxedValue
from pyro_gumbel.distributions.straight_through import FamilyStraightThrough
from pyro_gumbel.distributions.without_replacement import (
    WithoutReplacement,
    in_order,
    is_shape_of_int,
    second_order_sample,
)
from pyro_gumbel.estimators import Estimator
from pyro_gumbel.links import Hypersimplex
from pyro_gumbel.ops.rank_probability import inclusion_probabilities
from pyro_gumbel.ops.subset_probability import log_subset_prob

__all__ = ["LogitRelaxedSubset", "RelaxedSubset", "Subset", "SubsetStraightThrough"]


class SubsetFamily(CategoricalFamily):
    """What the subset distributions share: parameters, noise and link. Not a distribution.

    The parameters are those of one categorical draw; `size` categories are drawn without
    replacement.

    :param all_of_them: whether all categories may be chosen.
    """

    link = Hypersimplex
    takes_size = True
    default_temperature: ClassVar[float | None] = 1.0  # second order is unbiased, but noisier

    def __init__(self, *, all_of_them: bool) -> None:
        self._all_of_them = all_of_them

    def event_shape(self, owner: str, categories: torch.Size, size: Any) -> torch.Size:
        if not is_shape_of_int(size):
            read_size(owner, size, categories[-1], all_of_them=self._all_of_them)
        return categories

    def mode(self, logits: Tensor, size: int | None = None) -> Tensor:
        return in_order(logits, size or 1, stable=True).sum(-2)


discrete_subsets, relaxed_subsets = SubsetFamily(all_of_them=True), SubsetFamily(all_of_them=False)


class Subset(WithoutReplacement, TorchDistribution):
    r"""m of k categories, drawn one after the other without replacement; their order is ignored.

    A value is an m-hot vector: m ones, k - m zeros. It marks the m largest of :math:`x + g`, with
    :math:`x` the logits and :math:`g_i \sim \text{Gumbel}(0, 1)` iid. With :math:`S` the chosen
    categories and :math:`A = \log \sum_{j \notin S} \exp x_j`,

    .. math::
        P(S) = \int \exp(-h - e^{-h}) \prod_{i \in S} \left(1 - \exp(-e^{x_i - A - h})\right) dh,

    to 1e-10 by quadrature, for any m, k and logits. Kool, van Hoof and Welling, "Stochastic beams
    and where to find them" (2019), https://arxiv.org/abs/1903.06059, for the sampler, and
    "Estimating gradients for discrete random variables by sampling without replacement" (2020),
    https://arxiv.org/abs/2002.06043, for the probability.

    >>> Subset(2, probs=torch.tensor([0.4, 0.3, 0.2, 0.1])).mean
    tensor([0.7159, 0.6083, 0.4413, 0.2345])

    :param size: m, a Python int from 1 to k.
    :param probs: non-negative weights of a single draw, one for each category in the last
        dimension; they need not sum to 1.
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. It is never drawn, and a value that has it has log_prob -inf. Give exactly one of
        `probs` and `logits`, with at least m possible categories in every row.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    family = discrete_subsets
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = dict(
        CategoricalFamily.arg_constraints
    )
    _support_text = "m-hot, that is `size` ones and otherwise zeros over the last dimension"
    _remedy = (
        "draw it from a SubsetStraightThrough in the guide too, or relax this distribution: "
        "RelaxedSubset"
    )

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """m-hot vectors."""
        return subset(self.size)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """m-hot vectors, in the parameter's dtype."""
        with torch.no_grad():
            _, perturbed = self._perturb(self._sample_shape(sample_shape))
            return self.link.hard(perturbed).to(self._parameter.dtype)

    def _nearest_and_log_prob(self, value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.expand(torch.broadcast_shapes(value.shape, x.shape))
        chosen = value.expand(x.shape).topk(self.size, -1).indices
        inside, outside = x.gather(-1, chosen), x.scatter(-1, chosen, -math.inf)
        certain, impossible = outside.isneginf().all(-1), inside.isneginf().any(-1)
        settled = (certain | impossible).unsqueeze(-1)
        rival = torch.where(settled, 0.0, outside).logsumexp(-1, keepdim=True)
        log_prob = log_subset_prob(torch.where(settled, 0.0, inside) - rival)
        log_prob = torch.where(impossible, -math.inf, torch.where(certain, 0.0, log_prob))
        return torch.zeros_like(value).expand(x.shape).scatter(-1, chosen, 1.0), log_prob

    def _number_of_choices(self, size: int) -> int:
        return math.comb(self._event_shape[-1], size)

    def _choices(self, size: int) -> Tensor:
        k = self._event_shape[-1]
        sets = list(itertools.combinations(range(k), size))
        chosen = torch.tensor(sets, device=self._parameter.device)
        return self._parameter.new_zeros((len(sets), k)).scatter(-1, chosen, 1.0)

    @property
    def mean(self) -> Tensor:
        """The inclusion probabilities P(i in S), to 1e-12, by quadrature; they sum to m.

        One batch element takes .15 s with m = 150 of k = 300, and 1 s with m = 500 of k = 1000, on
        one core; the gradient takes as long again. Memory stays below 100 MB, or a dozen tensors of
        the shape of the logits. A second derivative takes memory for all nodes of the rule, 600 MB
        with m = 150 of k = 300.
        """
        return self._expanded(inclusion_probabilities(self._logits64, self.size))


class RelaxedSubset(RelaxedValue, TorchDistribution):
    r"""An m-hot vector relaxed to the hypersimplex, with a pathwise gradient.

    The hypersimplex is the set of vectors with entries in [0, 1] and sum m.

    .. math:: s = \sigma(v), \qquad v = \frac{x + g}{\tau} - c,
              \qquad g_i \sim \text{Gumbel}(0, 1) \text{ iid},

    with :math:`x` the logits of :math:`k` categories, :math:`\tau` the temperature,
    :math:`\sigma` the sigmoid, and :math:`c` such that :math:`\sum_i s_i = m`. With
    :math:`w = s (1 - s)`, its density with respect to :math:`ds_1 \dots ds_{k-1}` is

    .. math::
        \log p(s) = \log (k-1)! + (k-1) \log \tau
                    + \sum_i \log \operatorname{softmax}(x - \tau v)_i
                    + \log \sum_i w_i - \sum_i \log w_i,

    derived in `pyro_gumbel.links`. The m largest entries have the distribution of a `Subset` at
    every temperature: round to those, not at 1/2. `rsample` and `sample` attach v to the tensor
    that they return, so that its log_prob is exact also where entries were rounded to 0 or 1. A new
    tensor (a clone, a slice, one read from a file) has no v, and its log_prob is inexact there: use
    `LogitRelaxedSubset` for values that are copied or stored. The link is the sigmoid of Amos,
    Koltun and Kolter, "The limited multi-label projection layer" (2019),
    https://arxiv.org/abs/1906.08707, at perturbed logits. At k = 2, m = 1 it is a
    `RelaxedBernoulli` at temperature 2 tau.

    >>> RelaxedSubset(0.5, 3, logits=torch.zeros(10)).sample().sum().round()
    tensor(3.)

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape (it has no
        dimension for the categories), or a function without arguments that returns one, such as a
        temperature schedule; the constructor calls it once.
    :param size: m, a Python int from 1 to k - 1.
    :param probs: non-negative weights of a single draw, one for each category in the last
        dimension; they need not sum to 1.
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. Its entry is always 0, and k and the sums above count the possible categories only.
        Give exactly one of `probs` and `logits`, with at least m possible categories in every row.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    covariance_matrix: Any = absent(NO_FORMULA, USE_DRAWS)

    family = relaxed_subsets
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        **CategoricalFamily.arg_constraints,
    }
    _support_text = "on the hypersimplex (in [0, 1], sum `size` over the last dimension)"
    _remedy = "write LogitRelaxedSubset if these are in logit space"
    _exact = "use LogitRelaxedSubset, which does not saturate"

    def __init__(
        self,
        temperature: Temperature,
        size: int,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._set_up(probs, logits, temperature=temperature, size=size, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The hypersimplex."""
        return hypersimplex(self.size)


class LogitRelaxedSubset(RelaxedLogits, TorchDistribution):
    r"""The logit of a `RelaxedSubset`.

    .. math:: v = \frac{x + g}{\tau} - c, \qquad g_i \sim \text{Gumbel}(0, 1) \text{ iid},

    with :math:`x` the logits of :math:`k` categories, :math:`\tau` the temperature, and :math:`c`
    such that :math:`\sum_i \sigma(v_i) = m`, :math:`\sigma` the sigmoid. With
    :math:`w = \sigma(v) \sigma(-v)`, its density is

    .. math::
        \log p(v) = \log (k-1)! + (k-1) \log \tau
                    + \sum_i \log \operatorname{softmax}(x - \tau v)_i + \log \sum_i w_i,

    which is :math:`p(s) \prod_i w_i`, with :math:`p(s)` the density of :math:`s = \sigma(v)` as a
    `RelaxedSubset`. Without the last term it is the density with respect to the :math:`k - 1`
    differences :math:`v_i - v_k`.

    Entries of s near 0 and 1 are rounded to them, and their logits are not. Use this class for NUTS
    and autoguides at low temperatures, and for values that are copied or stored. The link is that
    of Amos, Koltun and Kolter, "The limited multi-label projection layer" (2019),
    https://arxiv.org/abs/1906.08707; the density is derived in `pyro_gumbel.links`.

    >>> LogitRelaxedSubset(0.1, 2, probs=torch.ones(4)).sample().sigmoid().sum().round()
    tensor(2.)

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape (it has no
        dimension for the categories), or a function without arguments that returns one, such as a
        temperature schedule; the constructor calls it once.
    :param size: m, a Python int from 1 to k - 1.
    :param probs: non-negative weights of a single draw, one for each category in the last
        dimension; they need not sum to 1.
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. Its entry is always -inf, and k and the sums above count the possible categories
        only. Give exactly one of `probs` and `logits`, with at least m possible categories in every
        row.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    covariance_matrix: Any = absent(NO_FORMULA, USE_DRAWS)

    family = relaxed_subsets
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = RelaxedSubset.arg_constraints
    _support_text = "logits of a point on the hypersimplex (sigmoids sum to `size`)"
    _remedy = "write value.logit() if this is a point of the hypersimplex, or use RelaxedSubset"

    def __init__(
        self,
        temperature: Temperature,
        size: int,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._set_up(probs, logits, temperature=temperature, size=size, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The logits of the hypersimplex."""
        return logit_hypersimplex(self.size)


class SubsetStraightThrough(FamilyStraightThrough, Subset):
    r"""A distribution over m-hot vectors whose `rsample` carries a gradient.

    Use it where the model needs m-hot vectors, and `RelaxedSubset` where relaxed ones do.

    The distribution is that of `Subset` at every temperature. `rsample` and `sample` draw
    :math:`z = x + g`, :math:`g_i \sim \text{Gumbel}(0, 1)` iid, with :math:`x` the logits, and
    return the m-hot vector that marks the m largest entries. With a temperature the gradient of
    `rsample` is that of the value of a `RelaxedSubset`,

    .. math:: s = \sigma(z / \tau - c), \qquad \sum_i s_i = m,

    unless `estimator` names another one. Without a temperature it is the gradient of the
    second-order surrogate

    .. math:: \tfrac{1}{2} \mu + \tfrac{1}{2} \log P(D) \, (D - \mu),

    with :math:`\mu` the mean and :math:`D - \mu` held constant. It is unbiased for every loss that
    is quadratic in D. It has more variance, and takes far longer: :math:`\log P(D)` is an integral.
    Of more than 10 categories the mean is estimated from 16 more draws. It is derived in
    `pyro_gumbel.ops.second_order`.

    `log_prob` passes a gradient to the sample, see `Subset.log_prob`. The link is that of Amos,
    Koltun and Kolter, "The limited multi-label projection layer" (2019),
    https://arxiv.org/abs/1906.08707.

    >>> SubsetStraightThrough(0.5, 2, logits=torch.randn(3, 10)).rsample().sum(-1)
    tensor([2., 2., 2.])

    :param temperature: tau > 0 of the surrogate, without effect on samples and log_prob; a number,
        a tensor that broadcasts with the batch shape (it has no dimension for the categories), or a
        function without arguments that returns one, such as a temperature schedule; the constructor
        calls it once. None for second order.
    :param size: m, a Python int from 1 to k.
    :param probs: non-negative weights of a single draw, one for each category in the last
        dimension; they need not sum to 1.
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. It is never drawn, and a value that has it has log_prob -inf. Give exactly one of
        `probs` and `logits`, with at least m possible categories in every row.
    :param estimator: "second_order", which has no temperature; "gumbel_softmax", "gumbel_rao",
        "straight_through", or a function (logits, temperature, perturbed, hard, link) -> surrogate,
        see `pyro_gumbel.estimators`. "reinmax", "gapped", "mve" and "reinmax_rao" have no form for
        subsets. None for second order without a temperature and `gumbel_softmax` with one.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :raises ValueError: for a wrong value, shape or estimator, or both or neither of `probs` and
        `logits`.
    :raises TypeError: for an argument of another type.
    """

    takes_temperature = True
    has_rsample = True
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = RelaxedSubset.arg_constraints
    rsample = FamilyStraightThrough.rsample
    sample = FamilyStraightThrough.sample

    def __init__(
        self,
        temperature: Temperature | None,
        size: int,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        estimator: str | Estimator | None = None,
    ) -> None:
        self._set_up_with_size(temperature, size, probs, logits, validate_args, estimator)

    def _second_order(self, sample_shape: torch.Size) -> Tensor:
        return second_order_sample(self, self._hard, sample_shape)


# `relax` of a Subset returns one of these.
register_relaxation(Subset, SubsetStraightThrough, RelaxedSubset)
# Divergences between two of the same relaxed class.
kl.register_relaxed(RelaxedSubset, LogitRelaxedSubset)
# Between two discrete distributions, straight-through or not.
kl.register_enumerated(Subset)
