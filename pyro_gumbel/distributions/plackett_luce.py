# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Rankings of m of k categories, as one-hot rows, with gradients.

`PlackettLuce` is the discrete distribution. `RelaxedPlackettLuce` has rows on the simplex, and
`PlackettLuceStraightThrough` has exactly one-hot rows, with a surrogate gradient.

**Different lengths.** Rankings of one batch may have different lengths m, the argument `size` as a
tensor. Values then have `rows` rows, and those beyond the length are 0. The first m rows of a
longer ranking are a ranking of m, so a value is one of all rows that is cut: the rows beyond the
length enter no probability and no density, and pass no gradient. The sums of the entropy H and of
the divergence from a distribution Q of the same lengths run over the rankings r of all rows, each
evaluated by its first m rows :math:`r_{1:m}`,

.. math::

    H = -\sum_r \frac{P(r_{1:m}) \log P(r_{1:m})}{n_m}, \qquad
    \mathrm{KL} = \sum_r \frac{P(r_{1:m})}{n_m} \log \frac{P(r_{1:m})}{Q(r_{1:m})}, \qquad
    n_m = \frac{(k - m)!}{(k - \text{rows})!},

where :math:`n_m` is the number of rankings of all rows with the same first m.
"""

import itertools
import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn.functional import one_hot, pad

from pyro_gumbel._tracing import ends, known
from pyro_gumbel._validation import Temperature, read_lengths, read_size
from pyro_gumbel.constraints import padded_simplex_rows, ranking, simplex_rows
from pyro_gumbel.distributions import kl
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.categorical import CategoricalFamily
from pyro_gumbel.distributions.relaxation import register_relaxation
from pyro_gumbel.distributions.relaxed import NO_FORMULA, USE_DRAWS, RelaxedValue
from pyro_gumbel.distributions.straight_through import FamilyStraightThrough
from pyro_gumbel.distributions.without_replacement import (
    MAX_ENUMERATED,
    WithoutReplacement,
    in_order,
    is_shape_of_int,
    second_order_sample,
)
from pyro_gumbel.estimators import Estimator, LearnedCurvature
from pyro_gumbel.ops.lengths import rows_within
from pyro_gumbel.ops.noise import given_untaken_winner, gumbel
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.ops.rank_probability import rank_probabilities

__all__ = ["PlackettLuce", "PlackettLuceStraightThrough", "RelaxedPlackettLuce", "m_hot"]


class RankingFamily(CategoricalFamily):
    """What the ranking distributions share: parameters, noise and link. Not a distribution.

    The parameters are those of one categorical draw; `size` categories are drawn without
    replacement. A value has a row for each draw, with one of the categories that the rows before it
    have left.
    """

    noise_distribution = None  # the noise of a row depends on the rows before it
    takes_size = True
    default_temperature: ClassVar[float | None] = 1.0  # second order is unbiased, but noisier

    def event_shape(self, owner: str, categories: torch.Size, size: Any) -> torch.Size:
        if is_shape_of_int(size):
            raise NotImplementedError(
                f"{owner}.infer_shapes: the event shape has `size` rows, so that it takes "
                "the number itself, and got its shape (); write size=2"
            )
        if isinstance(size, (Tensor, tuple)):  # torch.compile of torch 2.8 knows no union
            raise TypeError(
                f"{owner}.infer_shapes: `size` must be a Python int, got {type(size).__name__}; "
                "write size=3, the number of rows, for rankings of different lengths"
            )
        m = read_size(owner, size, categories[-1], all_of_them=True)
        return torch.Size((m, int(categories[-1])))

    def read_size(self, owner: str, size: Any, rows: Any) -> int | Tensor:
        return read_lengths(owner, size, rows)

    def mode(self, logits: Tensor, size: Any = None, rows: int | None = None) -> Tensor:
        if rows is None:
            return in_order(logits, size or 1, stable=True)
        within = rows_within(size, rows).unsqueeze(-1)
        return torch.where(within, in_order(logits, rows, stable=True), 0.0)


rankings = RankingFamily()


def within_length(d: Any) -> Tensor | None:
    """Which rows of a value are within its length, of size 1 over the categories; None for all."""
    if not isinstance(d.size, Tensor):
        return None
    return rows_within(d.size, d._event_shape[0]).unsqueeze(-1)


def padded(d: Any, value: Tensor, other: float = 0.0) -> Tensor:
    """`value` with `other` in the rows beyond its length, which pass no gradient."""
    within = within_length(d)
    return value if within is None else torch.where(within, value, other)


def left_for(d: Any, rows: Tensor) -> Tensor:
    """Which categories are left for each row; all are for a row beyond the length, which is cut."""
    left, within = untaken(rows), within_length(d)
    return left if within is None else left | ~within


def are_zero(rows: Tensor) -> Tensor:
    """Which rows are 0, of size 1 over the categories."""
    return (rows == 0).all(-1, keepdim=True)


def untaken(rows: Tensor) -> Tensor:
    """Which categories are left for each row; a row's winner is its largest entry of those."""
    categories = torch.arange(rows.shape[-1], device=rows.device)
    left = [torch.ones_like(rows[..., 0, :], dtype=torch.bool)]
    for row in rows.unbind(-2)[:-1]:
        winner = torch.where(left[-1], row, -math.inf).argmax(-1, keepdim=True)
        left.append(left[-1] & (categories != winner))
    return torch.stack(left, -2)


class PlackettLuce(WithoutReplacement, TorchDistribution):
    r"""m of k categories, drawn one after the other without replacement, in order.

    A value has a row for each draw, a one-hot vector over the k categories, no two alike; m = k is
    a ranking of all. Rankings of different lengths m may be in one batch: their values are filled
    up with rows of zeros. With :math:`i_1, \dots, i_m` the draws and :math:`x` the logits,

    .. math::
        \log P(i_1, \dots, i_m) = \sum_j \Bigl( x_{i_j}
            - \log \sum_{l \notin \{i_1, \dots, i_{j-1}\}} \exp x_l \Bigr).

    Luce, "Individual choice behavior" (1959), and Plackett, "The analysis of permutations" (1975),
    https://doi.org/10.2307/2346567. It is sampled as the m largest of :math:`x + g` in order,
    :math:`g_i \sim \text{Gumbel}(0, 1)` iid: Yellott, "The relationship between Luce's choice
    axiom, Thurstone's theory of comparative judgment, and the double exponential distribution"
    (1977),
    https://doi.org/10.1016/0022-2496(77)90026-8.

    >>> PlackettLuce(3, logits=torch.zeros(5, 4)).sample().shape
    torch.Size([5, 3, 4])
    >>> PlackettLuce(torch.tensor([1, 3, 2]), logits=torch.zeros(4)).sample().sum(-1)
    tensor([[1., 0., 0.],
            [1., 1., 1.],
            [1., 1., 0.]])

    Rankings as indices that are filled up with -1 become such values by
    ``torch.nn.functional.one_hot(ranking + 1, k + 1)[..., 1:]``. For minibatches whose values have
    one shape give `rows`. The divergence between rankings of different lengths is infinite. A value
    of another length has log_prob -inf, and with validation raises an error.

    :param size: m, a Python int from 1 to k; or a tensor of integers, the lengths of the rankings,
        whose shape broadcasts with the batch shape. A tensor without dimensions is a number.
    :param probs: non-negative weights of the first draw, one for each category in the last
        dimension; they need not sum to 1. The event shape is (rows, k).
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. It is never drawn, and a value that has it has log_prob -inf. Give exactly one of
        `probs` and `logits`, with at least m possible categories in every row.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :param rows: how many rows a value has, a Python int from the largest length to k; None for
        `size`, or for the largest length. That is read from the tensor, which waits for a GPU, and
        is not possible under `torch.vmap` and `torch.compile`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    :raises NotImplementedError: by `enumerate_support`, for rankings of different lengths.
    """

    family = rankings
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = dict(
        CategoricalFamily.arg_constraints
    )
    _support_text = "one-hot rows, no two of them alike"
    _remedy = (
        "draw it from a PlackettLuceStraightThrough in the guide too, or relax this distribution: "
        "RelaxedPlackettLuce"
    )

    def __init__(
        self,
        size: int | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        rows: int | None = None,
    ) -> None:
        self._set_up(probs, logits, size=size, rows=rows, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=2)
    def support(self) -> constraints.Constraint:
        """Rows that are one-hot, no two alike, and 0 beyond the length."""
        return ranking(self.size, self._event_shape[0])

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """One-hot rows in the order of the draws, in the parameter's dtype."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            x = self.link.centred(self._logits)
            noisy = x + gumbel((*shape[:-2], shape[-1]), dtype=x.dtype, device=x.device)
            rows = in_order(noisy, self._event_shape[0])
            return padded(self, rows).to(self._parameter.dtype)

    def _are_impossible(self, log_probs: Tensor) -> Tensor:
        impossible, within = log_probs.isneginf(), within_length(self)
        return impossible if within is None else impossible | ~within

    def _nearest_and_log_prob(self, value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        left = torch.where(untaken(value), x.unsqueeze(-2), -math.inf)
        taken = left.isneginf()
        nothing_left = taken.all(-1, keepdim=True)
        log_p = torch.where(nothing_left, 0.0, left).log_softmax(-1)
        nearest = padded(self, self.link.hard(value))
        log_prob = torch.where(taken, 0.0, log_p * nearest).sum((-1, -2))
        impossible = (taken & (nearest > 0)).flatten(-2).any(-1)
        within = within_length(self)
        if within is not None:
            impossible = impossible | (within & are_zero(value)).flatten(-2).any(-1)
        return nearest, torch.where(impossible, -math.inf, log_prob)

    def _number_of_choices(self, size: int) -> int:
        return math.perm(self._event_shape[-1], size)

    def _choices(self, size: int) -> Tensor:
        rows, k = self._event_shape
        orders = list(itertools.permutations(range(k), size))
        chosen = torch.tensor(orders, device=self._parameter.device)
        return pad(one_hot(chosen, k), (0, 0, 0, rows - size))

    @property
    def _only_size(self) -> int:
        if not isinstance(self.size, Tensor):
            return int(self.size)
        least, most = ends(self.size)
        if least != most:
            raise NotImplementedError(
                f"{type(self).__name__}: for enumeration `size` must be one length, got "
                f"{least:.0f} to {most:.0f}, or lengths that cannot be read; write infer={{}} at "
                "this site to sample it, or a site for each length"
            )
        return int(most)

    def _outcomes_and_repeats(self) -> tuple[Tensor, Tensor | None]:
        """Of different lengths the rankings of the largest one, each cut to every length.

        A ranking of length l then occurs once for each way to go on.
        """
        if not isinstance(self.size, Tensor):
            return super()._outcomes_and_repeats()
        rows, k = self._event_shape
        if self._number_of_choices(rows) > MAX_ENUMERATED:
            rows = int(known(self.size.amax(), otherwise=rows))
        ways = [math.perm(k - length, rows - length) for length in range(rows + 1)]
        repeats = torch.tensor(ways, dtype=self._dtype, device=self.size.device)
        return padded(self, self._enumerated(rows)), repeats[self.size.clamp(max=rows)]

    @property
    def mean(self) -> Tensor:
        """P(the j-th draw is i), to 1e-12, by quadrature; 0 beyond the length.

        One batch element takes .03 s with m = k = 100, and .3 s with m = k = 300, on one core; the
        gradient takes as long again. Memory is as in `Subset.mean`. Both grow with the range of the
        logits, where that is hundreds of nats.
        """
        x = self._logits64
        ranks = rank_probabilities(x, self._event_shape[0])
        if isinstance(self.size, Tensor):
            ranks = torch.where(self._are_impossible(x.unsqueeze(-2)), 0.0, ranks)
        return cast(ranks, self._parameter.dtype).expand(self._batch_shape + self._event_shape)


class RelaxedPlackettLuce(RelaxedValue, TorchDistribution):
    r"""The rows of a `PlackettLuce`, each relaxed to the simplex.

    Row j is a Gumbel-softmax vector :math:`C_j = \operatorname{softmax}(z_j / \tau)`,
    :math:`z_j = x + g_j`, drawn given that its largest entry is not that of an earlier row. This is
    the distribution of redrawing the row until that is so, but without the loop (see
    `pyro_gumbel.ops.noise`). With :math:`x` the logits of :math:`k` categories, :math:`\tau` the
    temperature, :math:`p` the density of a `RelaxedCategorical`, :math:`Z = \sum_i \exp x_i`, and
    :math:`Z_j` that sum over the categories that won no row before j, the density of rows with
    distinct winners is

    .. math:: \log p(C_1, \dots, C_m) = \sum_j \left( \log p(C_j) + \log Z - \log Z_j \right),

    with respect to the first k - 1 entries of each row, and 0 elsewhere. The winners have the
    distribution of `PlackettLuce` at every temperature, and at m = 1 this is `RelaxedCategorical`.
    From the second row on the gradient of `rsample` holds the earlier winners fixed, which makes it
    biased: for an expectation over 3 of 5 categories its cosine with the exact gradient is .95 and
    more (`tests/distributions/test_ranking.py`).

    Of rankings of different lengths the density is with respect to the rows within the length, and
    the rows beyond it are 0.

    >>> RelaxedPlackettLuce(0.5, 3, logits=torch.randn(5, 4)).rsample().shape
    torch.Size([5, 3, 4])

    :param temperature: tau > 0; a number, a tensor that broadcasts with the batch shape (it has no
        dimension for the rows and categories), or a function without arguments that returns one,
        such as a temperature schedule; the constructor calls it once.
    :param size: m, a Python int from 1 to k; or a tensor of integers, the lengths of the rankings,
        whose shape broadcasts with the batch shape. A tensor without dimensions is a number.
    :param probs: non-negative weights of the first draw, one for each category in the last
        dimension; they need not sum to 1. The event shape is (rows, k).
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. Its entry is always 0, and k and the sums above count the possible categories only.
        Give exactly one of `probs` and `logits`, with at least m possible categories in every row.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :param rows: how many rows a value has, a Python int from the largest length to k; None for
        `size`, or for the largest length. That is read from the tensor, which waits for a GPU, and
        is not possible under `torch.vmap` and `torch.compile`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    """

    covariance_matrix: Any = absent(NO_FORMULA, USE_DRAWS)

    family = rankings
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        **CategoricalFamily.arg_constraints,
    }
    _support_text = "rows on the simplex (non-negative, sum 1 over the last dimension)"
    _remedy = "write value / value.sum(-1, keepdim=True)"
    _exact = "pass the very tensor that rsample returned"

    def __init__(
        self,
        temperature: Temperature,
        size: int | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        rows: int | None = None,
    ) -> None:
        self._set_up(
            probs,
            logits,
            temperature=temperature,
            size=size,
            rows=rows,
            validate_args=validate_args,
        )

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self) -> constraints.Constraint:
        """Rows on the simplex, and 0 beyond the length."""
        if isinstance(self.size, Tensor):
            return padded_simplex_rows(self.size, self._event_shape[0])
        return simplex_rows

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw that is differentiable in the parameters, the earlier winners held fixed."""
        logits, perturbed = self._perturb(self._sample_shape(sample_shape))
        left = left_for(self, perturbed.detach())
        given = given_untaken_winner(perturbed, logits, left)
        unconstrained = self.link.unconstrained(given, self._tau)
        return self._to_value(padded(self, unconstrained, -math.inf))

    def _log_density(self, value: Tensor, unconstrained: Tensor, *, of_values: bool) -> Tensor:
        v, x = unconstrained, self.link.centred(self._logits).unsqueeze(-2)
        density = self.link.log_density(self.link.finite(v), x, self._tau, of_values=of_values)
        impossible = self.link.is_impossible(value, x, 0.0, 1.0)
        rows = torch.where(impossible, -torch.inf, density)
        is_left = untaken(v.detach())
        distinct = torch.where(is_left, v, -torch.inf).amax(-1) >= v.amax(-1)
        left = torch.where(is_left, x, -torch.inf)
        possible = left.isfinite().any(-1)
        log_left = torch.where(possible.unsqueeze(-1), left, 0.0).logsumexp(-1)
        joint = rows + x.logsumexp(-1) - log_left
        legal, within = distinct & possible, within_length(self)
        if within is not None:
            within, zero = within.squeeze(-1), are_zero(value).squeeze(-1)
            joint = torch.where(within, joint, 0.0)
            legal = torch.where(within, legal & ~zero, zero)
        return torch.where(legal.all(-1), joint.sum(-1), -torch.inf)


class PlackettLuceStraightThrough(FamilyStraightThrough, PlackettLuce):
    r"""A distribution over rankings, as one-hot rows, whose `rsample` carries a gradient.

    Use it where the model needs one-hot rows, and `RelaxedPlackettLuce` where relaxed ones do.

    The distribution is that of `PlackettLuce` at every temperature. Row j of m is drawn like a
    `CategoricalStraightThrough` from the categories that the rows before it have left, with noise
    of its own: with :math:`z_j = x + g_j`,

    .. math:: D_j = \operatorname{one\,hot} \operatorname*{argmax}_{i \text{ untaken}} z_{ji},

    with :math:`x` the logits and the entries of :math:`g_j` iid Gumbel(0, 1). With a temperature
    the gradient of `rsample` is that of :math:`\operatorname{softmax}(z_j / \tau)` over the
    untaken, unless `estimator` names another one, which is applied row by row with the logits of
    the taken categories at -inf. It holds the earlier winners fixed, which adds to its bias from
    the second row on. Without a temperature it is the gradient of the second-order surrogate

    .. math:: \tfrac{1}{2} \mu + \tfrac{1}{2} \log P(D) \, (D - \mu),

    with :math:`\mu` the mean and :math:`D - \mu` held constant. It is unbiased for every loss that
    is quadratic in D, and has more variance. Of more than 10 categories the mean is estimated from
    16 more draws. It is derived in `pyro_gumbel.ops.second_order`.

    `log_prob` passes a gradient to the sample, see `PlackettLuce.log_prob`. The estimator is that
    of Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax" (2017),
    https://arxiv.org/abs/1611.01144.

    Of rankings of different lengths the rows beyond the length are 0 and pass no gradient. An
    estimator is given draws of all rows, which are cut afterwards.

    >>> PlackettLuceStraightThrough(0.5, 3, logits=torch.randn(5, 4)).rsample().shape
    torch.Size([5, 3, 4])

    :param temperature: tau > 0 of the surrogate, without effect on samples and log_prob; a number,
        a tensor that broadcasts with the batch shape (it has no dimension for the rows and
        categories), or a function without arguments that returns one, such as a temperature
        schedule; the constructor calls it once. None for second order.
    :param size: m, a Python int from 1 to k; or a tensor of integers, the lengths of the rankings,
        whose shape broadcasts with the batch shape. A tensor without dimensions is a number.
    :param probs: non-negative weights of the first draw, one for each category in the last
        dimension; they need not sum to 1. The event shape is (rows, k).
    :param logits: log weights x, which need not be normalised; -inf for a category that cannot
        occur. It is never drawn, and a value that has it has log_prob -inf. Give exactly one of
        `probs` and `logits`, with at least m possible categories in every row.
    :param estimator: without a temperature "second_order", the default, "mve" or "reinmax_rao";
        with one "gumbel_softmax", the default, "gumbel_rao", "straight_through", "reinmax",
        "gapped", or a function of (logits, temperature, perturbed, hard, link) that returns a
        tensor of the sample's shape, whose gradient is used; `perturbed` is z, and `hard` the
        sample. `pyro_gumbel.estimators` has the formula and source of each.
    :param validate_args: whether to check the values of the parameters, and of the argument of
        `log_prob`; None for the default of `torch.distributions`. Shapes and types are always
        checked.
    :param rows: how many rows a value has, a Python int from the largest length to k; None for
        `size`, or for the largest length. That is read from the tensor, which waits for a GPU, and
        is not possible under `torch.vmap` and `torch.compile`.
    :raises ValueError: for a wrong value or shape, or both or neither of `probs` and `logits`.
    :raises TypeError: for an argument of another type.
    :raises NotImplementedError: by `enumerate_support`, for rankings of different lengths.
    """

    takes_temperature = True
    has_rsample = True
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = (
        RelaxedPlackettLuce.arg_constraints
    )
    rsample = FamilyStraightThrough.rsample
    sample = FamilyStraightThrough.sample

    def __init__(
        self,
        temperature: Temperature | None,
        size: int | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        estimator: str | Estimator | None = None,
        rows: int | None = None,
    ) -> None:
        self._set_up_with_size(temperature, size, probs, logits, validate_args, estimator, rows)
        if isinstance(self.estimator, LearnedCurvature):
            raise ValueError(
                f"{type(self).__name__}: `estimator` must be for rows that depend on each other, "
                "got LearnedCurvature, which is for independent variables; leave out `estimator` "
                "for second_order"
            )

    def _second_order(self, sample_shape: torch.Size) -> Tensor:
        return second_order_sample(self, self._hard, sample_shape)

    def _hard(self, sample_shape: torch.Size) -> Tensor:
        return padded(self, self.link.hard(self._contest(sample_shape)[1]))

    def _estimated(self, sample_shape: torch.Size) -> Tensor:
        return padded(self, super()._estimated(sample_shape))

    def _gumbel_softmax(self, sample_shape: torch.Size) -> Tensor:
        return self._estimated(sample_shape)

    def _contest(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        logits, perturbed = super()._contest(sample_shape)
        is_left = left_for(self, perturbed.detach())
        return (
            torch.where(is_left, logits, -torch.inf),
            torch.where(is_left, perturbed, -torch.inf),
        )


def m_hot(value: Tensor) -> Tensor:
    """The categories that the rows of a ranking choose: the elementwise maximum of the rows.

    Of one-hot rows it is an m-hot vector. The entries of relaxed rows do not sum to m: at
    temperature 0.5 two rows over four equal categories sum to 1.78 on average. `RelaxedSubset` is
    made to sum to m.

    >>> m_hot(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    tensor([0., 1., 1.])

    :param value: rows over the last two dimensions, as from `PlackettLuce`, `RelaxedPlackettLuce`
        or `PlackettLuceStraightThrough`.
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


# `relax` of a PlackettLuce returns one of these.
register_relaxation(PlackettLuce, PlackettLuceStraightThrough, RelaxedPlackettLuce)


@register_kl(PlackettLuce, PlackettLuce)
def _(q: PlackettLuce, p: PlackettLuce) -> Tensor:
    """By enumeration, straight-through or not; infinite where the lengths differ."""
    if not (isinstance(q.size, Tensor) or isinstance(p.size, Tensor)):
        return kl.kl_by_enumeration(q, p)
    alike = p.expand(p._batch_shape)
    alike.size = q.size
    return torch.where(q.size == p.size, kl.kl_by_enumeration(q, alike), math.inf)
