# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The discrete laws that Pyro lacks: m of k without replacement, unordered and in order.

Their masses and inclusion probabilities are derived in `pyro_gumbel.ops.subset_probability`.
"""

import itertools
import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_gumbel.constraints import ranking, subset
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.base import MOfK, OneOfK, Ranking, Row
from pyro_gumbel.ops import noise
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.ops.rank_probability import inclusion_probabilities, rank_probabilities
from pyro_gumbel.ops.subset_probability import log_subset_prob

__all__ = ["ENUMERABLE", "PlackettLuce", "Subset", "m_hot"]

ENUMERABLE = 100_000  # the largest number of outcomes that is enumerated


class _WithoutReplacement(Row):
    """What both laws share."""

    rsample: Any = absent(
        "would need a gradient, and discrete values have none",
        "write relax(distribution, 0.5).rsample(), or sample()",
    )

    has_rsample = False
    has_enumerate_support = True
    _has_temperature = False
    _integers = True
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        name: OneOfK.arg_constraints[name] for name in ("probs", "logits")
    }

    def __init__(
        self,
        size: int,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        Row.__init__(self, probs, logits, size=size, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value); off the support extended by first differences.

        With S the outcome nearest to the value, log P(S) + <value - S, log p>, log p held constant
        in the second term: the mass on the support, and differentiable in the value. An outcome of
        probability 0 scores -inf and passes no gradient.
        """
        self._validate_sample(value)
        value = cast(value, torch.promote_types(value.dtype, self._dtype))
        log_p = self._log_masses(self._x)
        impossible = log_p.isneginf()
        nearest, mass = self._nearest_and_mass(value.detach(), self._wide_x)
        slopes = torch.where(impossible, 0.0, log_p.detach())
        if len(self._event_shape) > 1:
            impossible, slopes = impossible.unsqueeze(-2), slopes.unsqueeze(-2)
        events = tuple(range(-len(self._event_shape), 0))
        extended = cast(mass, value.dtype) + ((value - nearest) * slopes).sum(events)
        excluded = (impossible & (value > 0)).any(-1)
        excluded = excluded.any(-1) if len(events) > 1 else excluded
        return self._over_batch(torch.where(excluded, -math.inf, extended))

    def _nearest_and_mass(self, value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outcome S nearest to `value`, and log P(S)."""
        raise NotImplementedError

    def _outcomes(self) -> Tensor:
        """All outcomes, over the first dimension."""
        raise NotImplementedError

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All outcomes over a new first dimension, in lexicographic order.

        :raises NotImplementedError: for more than 100,000 outcomes.
        """
        number = self._number_of_outcomes()
        if number > ENUMERABLE:
            raise NotImplementedError(
                f"{type(self).__name__}: enumeration is for up to {ENUMERABLE:,} outcomes, "
                f"size={self.size} of {self._event_shape[-1]} has {number:,}; write "
                "infer={} at this site to sample it, or choose a smaller size"
            )
        outcomes = self._outcomes().to(self._raw)
        ones = (1,) * len(self._batch_shape)
        values = outcomes.reshape(outcomes.shape[:1] + ones + self._event_shape)
        return values.expand(-1, *self._batch_shape, *self._event_shape) if expand else values

    def _number_of_outcomes(self) -> int:
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """-sum P log P in nats, by enumeration.

        :raises NotImplementedError: for more than 100,000 outcomes.
        """
        log_mass = self.log_prob(self.enumerate_support(expand=False))
        impossible = log_mass.isneginf()
        log_mass = torch.where(impossible, 0.0, log_mass)
        return -torch.where(impossible, 0.0, log_mass.exp() * log_mass).sum(0)

    @property
    def variance(self) -> Tensor:
        """p (1 - p), entry by entry, p the mean."""
        mean = self.mean
        return mean * (1 - mean)

    @property
    def param_shape(self) -> torch.Size:
        """The shape of `probs` and `logits`."""
        return self._param_shape


class Subset(_WithoutReplacement, MOfK, TorchDistribution):
    r"""m of k categories, drawn one after the other without replacement, their order forgotten.

    A value is an m-hot vector: m ones, k - m zeros. It marks the m largest of x + g, g iid
    Gumbel(0, 1). With S the chosen, A = log sum_{j not in S} exp(x_j)::

        P(S) = \int exp(-h - exp(-h)) prod_{i in S} (1 - exp(-exp(x_i - A - h))) dh

    to 1e-10 by quadrature, for any m, k and logits. Kool, van Hoof and Welling, "Stochastic beams
    and where to find them" (2019), https://arxiv.org/abs/1903.06059, for the sampler, and
    "Estimating gradients for discrete random variables by sampling without replacement" (2020),
    https://arxiv.org/abs/2002.06043, for the mass.

    >>> Subset(2, probs=torch.tensor([0.4, 0.3, 0.2, 0.1])).mean
    tensor([0.7159, 0.6083, 0.4413, 0.2345])

    :param size: m, a Python int from 1 to k.
    :param probs: non-negative weights of a single draw, categories in the last dimension;
        normalised.
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given, with at least m possible categories in every row.
    :param validate_args: whether argument and sample *values* are checked; None for the default
        of `torch.distributions`. Shapes and types are always checked.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but tensors of real numbers, and a size that is no int.
    """

    _support_text = "m-hot, that is `size` ones and otherwise zeros over the last dimension"
    _remedy = (
        "draw it from a SubsetStraightThrough in the guide too, or make this law soft: "
        "RelaxedSubset"
    )

    @property
    def support(self) -> constraints.Constraint:
        """m-hot vectors."""
        return subset(self.size)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """m-hot vectors, in the parameter's dtype."""
        with torch.no_grad():
            return self.link.hard(self._perturbed(sample_shape)).to(self._raw.dtype)

    def _nearest_and_mass(self, value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.expand(torch.broadcast_shapes(value.shape, x.shape))
        chosen = value.expand(x.shape).topk(self.size, -1).indices
        inside, outside = x.gather(-1, chosen), x.scatter(-1, chosen, -math.inf)
        certain, impossible = outside.isneginf().all(-1), inside.isneginf().any(-1)
        settled = (certain | impossible).unsqueeze(-1)
        rival = torch.where(settled, 0.0, outside).logsumexp(-1, keepdim=True)
        mass = log_subset_prob(torch.where(settled, 0.0, inside) - rival)
        mass = torch.where(impossible, -math.inf, torch.where(certain, 0.0, mass))
        return torch.zeros_like(value).expand(x.shape).scatter(-1, chosen, 1.0), mass

    def _number_of_outcomes(self) -> int:
        return math.comb(self._event_shape[-1], self.size)

    def _outcomes(self) -> Tensor:
        k = self._event_shape[-1]
        sets = list(itertools.combinations(range(k), self.size))
        chosen = torch.tensor(sets, device=self._raw.device)
        return self._raw.new_zeros((len(sets), k)).scatter(-1, chosen, 1.0)

    @property
    def mean(self) -> Tensor:
        """The inclusion probabilities P(i in S), to 1e-12, by quadrature; they sum to m.

        Of one batch element it takes .15 s with m = 150 of k = 300, 1 s with m = 500 of k = 1000,
        on one core, and the gradient as long again. Memory stays below 100 MB, or what a dozen
        tensors of the shape of the logits take. A second derivative takes the memory of all nodes
        of the rule, 600 MB with m = 150 of k = 300.
        """
        return self._like_param(inclusion_probabilities(self._wide_x, self.size))

    @property
    def mode(self) -> Tensor:
        """A most probable value: the m largest logits, of equals the first."""
        rows = _in_order(self._x, self.size, stable=True)
        return self._like_param(rows.sum(-2))


class PlackettLuce(_WithoutReplacement, Ranking, TorchDistribution):
    r"""m of k categories, drawn one after the other without replacement, in order.

    A value has a row a draw, each a one-hot vector over the k categories, no two alike; m = k is a
    ranking of all. With i_1, ..., i_m the draws::

        log P = sum_j x_{i_j} - log sum_{l not in {i_1, ..., i_{j-1}}} exp(x_l)

    Luce, "Individual choice behavior" (1959), and Plackett, "The analysis of permutations" (1975),
    https://doi.org/10.2307/2346567; sampled as the m largest of x + g in order, g iid Gumbel(0, 1)
    (Yellott 1977, https://doi.org/10.1016/0022-2496(77)90026-8).

    >>> PlackettLuce(3, logits=torch.zeros(5, 4)).sample().shape
    torch.Size([5, 3, 4])

    :param size: m, a Python int from 1 to k.
    :param probs: non-negative weights of the first draw, categories in the last dimension;
        normalised. The event shape is (m, k).
    :param logits: log weights x, unnormalised; -inf for a category that cannot occur. Exactly one
        of the two is given, with at least m possible categories in every row.
    :param validate_args: as in `Subset`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for anything but tensors of real numbers, and a size that is no int.
    """

    _support_text = "one-hot rows, no two of them alike"
    _remedy = (
        "draw it from a PlackettLuceStraightThrough in the guide too, or make this law soft: "
        "RelaxedPlackettLuce"
    )

    @property
    def support(self) -> constraints.Constraint:
        """Rows that are one-hot, no two alike."""
        return ranking(self.size)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """One-hot rows in the order of the draws, in the parameter's dtype."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            noisy = noise.gumbel(
                (*shape[:-2], shape[-1]), dtype=self._dtype, device=self._raw.device
            )
            return _in_order(self._x + noisy, self.size).to(self._raw.dtype)

    def _nearest_and_mass(self, value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        left = torch.where(self._untaken(value), x.unsqueeze(-2), -math.inf)
        taken = left.isneginf()
        nothing_left = taken.all(-1, keepdim=True)
        log_p = torch.where(nothing_left, 0.0, left).log_softmax(-1)
        nearest = self.link.hard(value)
        mass = torch.where(taken, 0.0, log_p * nearest).sum((-1, -2))
        return nearest, torch.where((taken & (nearest > 0)).flatten(-2).any(-1), -math.inf, mass)

    def _number_of_outcomes(self) -> int:
        return math.perm(self._event_shape[-1], self.size)

    def _outcomes(self) -> Tensor:
        k = self._event_shape[-1]
        orders = list(itertools.permutations(range(k), self.size))
        chosen = torch.tensor(orders, device=self._raw.device)
        return torch.nn.functional.one_hot(chosen, k)

    @property
    def mean(self) -> Tensor:
        """P(the j-th draw is i), to 1e-12, by quadrature.

        Of one batch element it takes .03 s with m = k = 100, .3 s with m = k = 300, on one core,
        and the gradient as long again; memory is as in `Subset.mean`. Both grow with the range of
        the logits, where that is hundreds of nats.
        """
        ranks = rank_probabilities(self._wide_x, self.size)
        return cast(ranks, self._raw.dtype).expand(self._batch_shape + self._event_shape)

    @property
    def mode(self) -> Tensor:
        """A most probable value: the m largest logits, the largest first, of equals the first."""
        rows = _in_order(self._x, self.size, stable=True).to(self._raw.dtype)
        return rows.expand(self._batch_shape + self._event_shape)


def _in_order(scores: Tensor, size: int, *, stable: bool = False) -> Tensor:
    """A one-hot row for each of the `size` largest scores, the largest first."""
    if stable:
        winners = scores.sort(dim=-1, descending=True, stable=True).indices[..., :size]
    else:
        winners = scores.topk(size, -1).indices
    rows = scores.new_zeros((*winners.shape, scores.shape[-1]))
    return rows.scatter(-1, winners.unsqueeze(-1), 1.0)


def m_hot(value: Tensor) -> Tensor:
    """The categories that the rows of a ranking choose: the elementwise maximum of the rows.

    Of hard rows an m-hot vector. The entries of soft ones do not sum to m: at temperature 0.5 two
    rows over four equal categories sum to 1.78 in the mean; `RelaxedSubset` is made to.

    :param value: rows over the last two dimensions, as from `PlackettLuce`, its soft or its hard
        row-mate.
    :raises ValueError: for fewer dimensions, or no row.
    :raises TypeError: for anything but a tensor.
    """
    wanted = "m_hot: `value` must be a tensor with one row or more over its last two dimensions"
    if not isinstance(value, Tensor):
        raise TypeError(f"{wanted}, got {type(value).__name__}; write m_hot(torch.stack(rows, -2))")
    if value.dim() < 2 or not value.shape[-2]:
        raise ValueError(
            f"{wanted}, got shape {tuple(value.shape)}; write m_hot(row.unsqueeze(-2)) for one row"
        )
    return value.amax(-2)
