# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Counts of categories with gradients: multinomial, and Dirichlet-multinomial."""

import math
from typing import Any

import torch
from pyro.distributions import DirichletMultinomial, Multinomial
from torch import Tensor
from torch.distributions import Categorical
from torch.distributions import Multinomial as TorchMultinomial
from torch.distributions.utils import probs_to_logits

from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.counts import (
    NO_ENTROPY,
    NO_MODE,
    NamedCount,
    in_float32,
    register_count,
    register_divergence,
    widened,
)
from pyro_gumbel.distributions.mean_field import TrialsMeanField, register_mean_field
from pyro_gumbel.distributions.trials import BinomialStraightThrough
from pyro_gumbel.estimators import straight_through_of
from pyro_gumbel.ops.logarithms import exact_log, finite_log, log_rising, minus_p_log_p
from pyro_gumbel.ops.mixing import dirichlet_variate, is_without_gradient
from pyro_gumbel.ops.second_order import surrogate_of_trials
from pyro_gumbel.ops.subset_probability import kl_of_log_probs

__all__ = ["DirichletMultinomialStraightThrough", "MultinomialStraightThrough"]

_OF_VECTORS = (
    "is not implemented for vectors of counts",
    "use one CategoricalStraightThrough for each trial to enumerate them",
)


class MultinomialStraightThrough(NamedCount, Multinomial):
    r"""A multinomial distribution whose `rsample` carries a gradient.

    .. math:: P(D) = n! \prod_i \frac{p_i^{D_i}}{D_i!}, \qquad \sum_i D_i = n

    `rsample` returns the counts that Pyro's `Multinomial` draws. Each of the n trials is a one-hot
    vector, with the gradient that `CategoricalStraightThrough` has without a temperature. On the
    whole it is that of

    .. math::
        s = \tfrac{1}{2} n p + \tfrac{1}{2} \sum_j D_j \log p_j \, (e_j - p),
        \qquad D_j (e_j - p) \text{ held constant.}

    It is unbiased for every loss that is quadratic in D: the second-order estimator of Liu, Dong,
    Liu, Yu and Gao, "Bridging discrete and backpropagation: straight-through and beyond" (2023),
    https://arxiv.org/abs/2304.08612, which He and Wu (2026) extend to counts.

    A probability of 0 is allowed: that category is never counted. `log_prob` is differentiable in
    the value.

    >>> d = MultinomialStraightThrough(10, logits=torch.zeros(2, 3))
    >>> d.rsample().sum(-1)
    tensor([10., 10.])

    :param total_count: the number n of trials, an int.
    :param probs: non-negative weights, one for each category in the last dimension; they need not
        sum to 1.
    :param logits: log weights, which need not be normalised; -inf for a category that cannot occur.
        Give exactly one of `probs` and `logits`.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`.
    :raises ValueError: for both or neither of `probs` and `logits`; with validation, for a wrong
        value.
    :raises NotImplementedError: for a `total_count` that is not an int.
    """

    mode: Any = absent(*NO_MODE)
    enumerate_support: Any = absent(*_OF_VECTORS)

    def __init__(
        self,
        total_count: int = 1,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        """Kept in float32: probabilities rounded to a half type do not sum to 1."""
        super().__init__(total_count, widened(probs), widened(logits), validate_args=validate_args)
        given: Any = probs if logits is None else logits
        self._dtype = given.dtype if given.is_floating_point() else None

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution over a larger batch."""
        # torch makes no instance of a class that has a constructor of its own.
        new = object.__new__(type(self)) if _instance is None else _instance
        new = super().expand(batch_shape, new)
        new._dtype = self._dtype
        return new

    @property
    def probs(self) -> Tensor:
        """p, normalised."""
        return self._in_own_dtype(self._categorical.probs)

    @property
    def logits(self) -> Tensor:
        """log p, -inf where a probability is 0."""
        return self._in_own_dtype(self._log_probs())

    def _log_probs(self) -> Tensor:
        """log p, normalised; torch clamps what it derives from `probs`."""
        inner = self._categorical
        exact = exact_log(inner.probs) - inner.probs.sum(-1, keepdim=True).log()
        if "logits" not in vars(inner):
            return exact
        is_derived = probs_to_logits(inner.probs) == inner.logits
        return torch.where(is_derived, exact, inner.logits.log_softmax(-1))

    def entropy(self) -> Tensor:
        """-sum P log P in nats: each count alone is binomial."""
        wide, n = in_float32(self), self.total_count
        p, of_one_trial = wide._categorical.probs, minus_p_log_p(wide._log_probs())
        values = torch.arange(n + 1, dtype=p.dtype, device=p.device).reshape(-1, *(1,) * p.dim())
        shares = BinomialStraightThrough(n, p, validate_args=False)._log_prob_of(values).exp()
        log_factorials = (shares * torch.lgamma(values + 1)).sum(0)
        return (log_factorials + n * of_one_trial).sum(-1) - math.lgamma(n + 1)

    def _attached(self, value: Tensor) -> Tensor:
        surrogate = surrogate_of_trials(value, self._categorical.probs, self._log_probs())
        return straight_through_of(value, surrogate)

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        return _counts(self.total_count, self._categorical.probs, sample_shape)

    def _log_prob(self, value: Tensor) -> Tensor:
        counts = value.clamp(min=0)
        ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
        return ways + (value * finite_log(self._log_probs())).sum(-1)

    def _is_possible(self, value: Tensor) -> Tensor:
        return ((value == 0) | ((value > 0) & ~self._log_probs().isneginf())).all(-1)

    def _validate_sample(self, value: Tensor) -> None:
        _validate_counts(super()._validate_sample, value)


class DirichletMultinomialStraightThrough(NamedCount, DirichletMultinomial):
    r"""A multinomial with Dirichlet distributed probabilities, whose `rsample` carries a gradient.

    .. math::
        P(D) = \frac{n! \, \Gamma(\alpha_0)}{\Gamma(n + \alpha_0)}
            \prod_i \frac{\Gamma(D_i + \alpha_i)}{D_i! \, \Gamma(\alpha_i)},
        \qquad \alpha_0 = \sum_i \alpha_i, \quad \sum_i D_i = n

    `rsample` draws the probabilities p of a Dirichlet distribution with a pathwise gradient, and
    then the counts as `MultinomialStraightThrough` does, from the same random numbers as Pyro's
    `DirichletMultinomial`. Its gradient is that of

    .. math::
        s = \tfrac{1}{2} n p + \tfrac{1}{2} \sum_j D_j \log p_j \, (e_j - p),
        \qquad D_j (e_j - p) \text{ held constant,}

    where p is a differentiable function of :math:`\alpha`. It is unbiased for every loss that is
    quadratic in D. For the second-order weights see He and Wu (2026). Where a concentration is
    below 0.02 or above 10,000, torch's gradient of p is wrong, and that of
    :math:`\tfrac{1}{2} \mu + \tfrac{1}{2} \log P(D) \, (D - \mu)` is used, with :math:`\mu` the
    mean and :math:`D - \mu` held constant.

    `log_prob` is differentiable in the value. It evaluates every value, also with `is_sparse`.

    >>> d = DirichletMultinomialStraightThrough(torch.ones(2, 3), 10)
    >>> d.rsample().sum(-1)
    tensor([10., 10.])

    :param concentration: :math:`\alpha > 0` of the Dirichlet distribution, categories in the last
        dimension.
    :param total_count: the number n of trials, an int or a tensor that broadcasts with the batch
        shape; to draw, all must be equal.
    :param is_sparse: as in Pyro's `DirichletMultinomial`; without effect here.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`.
    :raises ValueError: for a wrong value, with validation.
    :raises NotImplementedError: by `sample` and `rsample`, for unequal numbers of trials.
    """

    entropy: Any = absent(*NO_ENTROPY)
    mode: Any = absent(*NO_MODE)
    enumerate_support: Any = absent(*_OF_VECTORS)

    def _differentiable(self, sample_shape: torch.Size) -> Tensor:
        n = int(self.total_count.max())
        if self.total_count.min() != n:
            raise NotImplementedError(
                f"{type(self).__name__}: `total_count` must be the same for all to draw from them, "
                f"got {int(self.total_count.min())} to {n}; write one distribution for each"
            )
        probs = dirichlet_variate(self.concentration, sample_shape)
        counts = _counts(n, probs.detach(), torch.Size())
        sample = straight_through_of(counts, surrogate_of_trials(counts, probs, exact_log(probs)))
        whole = is_without_gradient(self.concentration).unsqueeze(-1)
        return torch.where(whole, self._attached(counts), sample)

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        return self._differentiable(sample_shape)

    def _log_prob(self, value: Tensor) -> Tensor:
        alpha, counts = self.concentration, value.clamp(min=0)
        return _log_ratio(counts, alpha).sum(-1) - _log_ratio(counts.sum(-1), alpha.sum(-1))

    def _is_possible(self, value: Tensor) -> Tensor:
        return (value >= 0).all(-1)

    def _validate_sample(self, value: Tensor) -> None:
        _validate_counts(super()._validate_sample, value)


def _counts(n: int, probs: Tensor, sample_shape: torch.Size) -> Tensor:
    """How often each category occurs in n trials, as torch's Multinomial draws it."""
    zeros = probs.new_zeros((*sample_shape, *probs.shape))
    if not n * zeros.numel():
        return zeros
    chosen = Categorical(probs, validate_args=False).sample(torch.Size((n, *sample_shape)))
    chosen = chosen.movedim(0, -1)
    return zeros.scatter_add(-1, chosen, torch.ones_like(chosen, dtype=probs.dtype))


def _log_ratio(counts: Tensor, alpha: Tensor) -> Tensor:
    """log of Gamma(counts + alpha) / (counts! Gamma(alpha))."""
    return log_rising(alpha, counts) - torch.lgamma(counts + 1)


def _validate_counts(validate: Any, value: Tensor) -> None:
    """Validate counts; those of a half type are rounded, so that they may sum to a little more."""
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float() * (1 - torch.finfo(value.dtype).eps)
    validate(value)


class MultinomialMeanField(TrialsMeanField):
    """Multinomial, by logits."""

    def start(self) -> dict[str, Tensor]:
        return {"logits": self.prior.logits.detach()}

    def start_at_mean(self, priors: list[Any]) -> dict[str, Tensor]:
        """The logits of mean probabilities, with the uniform distribution as one more prior."""
        probs = torch.stack([prior.probs for prior in priors]).detach()
        return {"logits": ((probs.sum(0) + 1 / probs.shape[-1]) / (len(priors) + 1)).log()}

    def distribution(
        self, parameters: dict[str, Tensor], temperature: Any, estimator: Any, event_dim: int
    ) -> MultinomialStraightThrough:
        validate = self.prior._validate_args
        logits, total = parameters["logits"], int(self.total_count)
        return MultinomialStraightThrough(total, logits=logits, validate_args=validate)


class DirichletMultinomialMeanField(TrialsMeanField):
    """Dirichlet-multinomial, by the logits of the mean and the logarithm of the concentration.

    The logarithm has a last dimension of 1, for the categories.
    """

    names = ("logits", "log_concentration")

    def start(self) -> dict[str, Tensor]:
        concentration = self.prior.concentration.detach()
        total = concentration.sum(-1, keepdim=True)
        return {"logits": (concentration / total).log(), "log_concentration": total.log()}

    def distribution(
        self, parameters: dict[str, Tensor], temperature: Any, estimator: Any, event_dim: int
    ) -> DirichletMultinomialStraightThrough:
        logits, log_concentration = (parameters[name] for name in self.names)
        concentration = (logits.log_softmax(-1) + log_concentration).exp()
        return DirichletMultinomialStraightThrough(
            concentration.clamp(min=torch.finfo(logits.dtype).tiny),
            self.total_count,
            validate_args=self.prior._validate_args,
        )


# `relax` of a multinomial returns one of these.
register_count(MultinomialStraightThrough, TorchMultinomial, Multinomial)
register_count(DirichletMultinomialStraightThrough, DirichletMultinomial)
register_mean_field(MultinomialStraightThrough, MultinomialMeanField)
register_mean_field(DirichletMultinomialStraightThrough, DirichletMultinomialMeanField)


@register_divergence(MultinomialStraightThrough, TorchMultinomial)
def _(q: MultinomialStraightThrough, p: MultinomialStraightThrough) -> Tensor:
    """n times that of one trial."""
    if q.total_count != p.total_count or q.event_shape != p.event_shape:
        shapes = [(d.total_count, tuple(d.event_shape)) for d in (q, p)]
        raise NotImplementedError(
            "kl_divergence(q, p): two multinomial distributions must have the same `total_count` "
            f"and number of categories, got {shapes[0]} and {shapes[1]}; write both alike"
        )
    divergence = kl_of_log_probs(q._log_probs(), p._log_probs())
    n = torch.full_like(divergence, q.total_count)
    return torch.where(n > 0, n * divergence, 0.0)
