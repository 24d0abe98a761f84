# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Supports whose tolerance depends on the dtype and the number of categories, and their bijections.

`torch.distributions.constraints.simplex` requires a sum within 1e-6 of 1 for every dtype and every
number of categories. Samples that are rounded correctly may miss that. The supports here allow for
the rounding.

Importing this module registers `biject_to` and `transform_to` for the continuous constraints that
are defined here, and for no others.
"""

import math
from typing import Self

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import (
    IndependentTransform,
    SoftmaxTransform,
    StickBreakingTransform,
    Transform,
)
from torch.nn.functional import pad

from pyro_gumbel._tracing import brief
from pyro_gumbel.links import Hypersimplex
from pyro_gumbel.ops.lengths import rows_within

__all__ = [
    "HypersimplexTransform",
    "LogRatioTransform",
    "LogitHypersimplexTransform",
    "gate",
    "hypersimplex",
    "log_simplex",
    "logit_hypersimplex",
    "padded_simplex_rows",
    "ranking",
    "simplex",
    "simplex_rows",
    "subset",
    "tolerance",
]


def tolerance(dtype: torch.dtype, size: int) -> float:
    r"""How far a sum of `size` rounded numbers may be from their exact sum of 1.

    .. math::

        \max\Bigl(10^{-6}, \; (4 + \log k)\, \epsilon + k\, t + 4 \sqrt{k}\, \epsilon'\Bigr)

    for k numbers of a dtype with the machine epsilon :math:`\epsilon` and the smallest subnormal
    number t, where :math:`\epsilon'` is the epsilon of the sum, which is computed in float32 or
    better. The terms are:

    * 1e-6, the tolerance of torch;
    * the rounding of each number s by :math:`\epsilon s` and at most t;
    * the rounding of its logarithm by :math:`\epsilon |\log s|`, which adds up to :math:`\epsilon`
      times an entropy of at most :math:`\log k`;
    * the errors of the summation, which grow like :math:`\sqrt{k}`.

    :param dtype: the floating-point dtype of the numbers.
    :param size: k, how many numbers there are.
    """
    finfo = torch.finfo(dtype)
    summed = torch.finfo(torch.promote_types(dtype, torch.float32))
    terms = (4 + math.log(max(1, size))) * finfo.eps + size * finfo.tiny * finfo.eps
    return max(1e-6, terms + 4 * math.sqrt(size) * summed.eps)


def _sums_to(value: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Whether the sum over the last dimension is `size`, within `size` times the tolerance."""
    total = value.to(torch.promote_types(value.dtype, torch.float32)).sum(-1)
    return (total - size).abs() <= size * tolerance(dtype, value.shape[-1])


class _OverLastDimensions(constraints.Constraint):
    """A constraint on the last one or two dimensions, for tensors of any real dtype."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        if value.dim() < self.event_dim:
            return torch.zeros((), dtype=torch.bool, device=value.device)
        floats = value.is_floating_point()
        return self._check(value if floats else value.to(torch.get_default_dtype()))

    def _check(self, value: Tensor) -> Tensor:
        """The check for a floating-point tensor with at least `event_dim` dimensions."""
        raise NotImplementedError


class _Simplex(_OverLastDimensions):
    r"""Vectors of probabilities.

    .. math:: \{s : s_i \ge 0, \; \textstyle\sum_i s_i = 1\}

    within `tolerance`, over the last dimension.
    """

    def _check(self, value: Tensor) -> Tensor:
        return (value >= 0).all(-1) & _sums_to(value, 1, value.dtype)


class _LogSimplex(_OverLastDimensions):
    r"""Vectors of log probabilities.

    .. math:: \{v : \textstyle\sum_i e^{v_i} = 1\}

    within `tolerance`, over the last dimension. An entry of -inf is a probability of 0.
    """

    def _check(self, value: Tensor) -> Tensor:
        return _sums_to(value.exp(), 1, value.dtype)


class _Gate(constraints.Constraint):
    r"""Numbers in [0, 1], of which 0 and 1 have a probability of their own.

    No bijection from the real line reaches them, so `biject_to` and `transform_to` raise.
    """

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0) & (value <= 1)

    def __repr__(self) -> str:
        return "gate"


class _WithSize(_OverLastDimensions):
    """A constraint with the parameter `size`: how many of the categories are chosen."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.size == self.size

    def __hash__(self) -> int:
        return hash((type(self), self.size))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size})"


class hypersimplex(_WithSize):
    r"""Vectors of inclusion probabilities of a subset of size m.

    .. math:: \{s : 0 \le s_i \le 1, \; \textstyle\sum_i s_i = m\}

    within m times `tolerance`, over the last dimension.

    :param size: m.
    """

    def _check(self, value: Tensor) -> Tensor:
        inside = ((value >= 0) & (value <= 1)).all(-1)
        return inside & _sums_to(value, self.size, value.dtype)


class logit_hypersimplex(_WithSize):
    r"""Vectors of the log-odds of inclusion probabilities of a subset of size m.

    .. math:: \{v : \textstyle\sum_i \operatorname{sigmoid}(v_i) = m\}

    within m times `tolerance`, over the last dimension. The log-odds of the probabilities 0 and 1
    are infinite.

    :param size: m.
    """

    def _check(self, value: Tensor) -> Tensor:
        return _sums_to(value.sigmoid(), self.size, value.dtype)


class subset(_WithSize):
    r"""The m-hot vectors, which stand for subsets of size m.

    .. math:: \{s : s_i \in \{0, 1\}, \; \textstyle\sum_i s_i = m\}

    :param size: m.
    """

    is_discrete = True

    def _check(self, value: Tensor) -> Tensor:
        hard = ((value == 0) | (value == 1)).all(-1)
        return hard & (value.sum(-1, dtype=torch.float32) == self.size)


class _WithLengths(_WithSize):
    """A constraint on matrices over the last two dimensions, whose first rows count.

    :param size: how many rows count, an int, or a tensor of integers of the batch shape.
    :param rows: how many rows there are; None for `size`, or the largest of it.
    """

    size: int | Tensor  # type: ignore[assignment]
    event_dim = 2

    def __init__(self, size: int | Tensor, rows: int | None = None) -> None:
        self.size = size
        if rows is None:
            rows = size if isinstance(size, int) else int(size.amax())
        self.rows = rows

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return False
        sizes = torch.as_tensor(self.size), torch.as_tensor(other.size)
        return self.rows == other.rows and torch.equal(*sizes)

    def __hash__(self) -> int:
        return hash((type(self), self.rows))

    def __repr__(self) -> str:
        if self._all_count:
            return f"{type(self).__name__}({self.size})"
        size = brief(self.size) if isinstance(self.size, Tensor) else self.size
        return f"{type(self).__name__}({size}, rows={self.rows})"

    @property
    def _all_count(self) -> bool:
        return isinstance(self.size, int) and self.size == self.rows

    def _within(self, value: Tensor) -> Tensor:
        """Which rows count."""
        return rows_within(torch.as_tensor(self.size, device=value.device), self.rows)


class ranking(_WithLengths):
    r"""Matrices of m different one-hot rows, which stand for rankings of m categories.

    .. math::

        \{s : s_{ji} \in \{0, 1\}, \; \textstyle\sum_i s_{ji} = 1 \text{ for } j \le m, \;
        \textstyle\sum_i s_{ji} = 0 \text{ for } j > m, \; \textstyle\sum_j s_{ji} \le 1\}

    over the last two dimensions, of the shape (rows, k). By default there are m rows.

    :param size: m, an int, or a tensor of integers of the batch shape.
    :param rows: the number of rows; None for m, or the largest m.
    """

    is_discrete = True

    def _check(self, value: Tensor) -> Tensor:
        if value.shape[-2] != self.rows:
            return torch.zeros(value.shape[:-2], dtype=torch.bool, device=value.device)
        hard = ((value == 0) | (value == 1)).flatten(-2).all(-1)
        sums = value.sum(-1, dtype=torch.float32)
        one_each = (sums == (1 if self._all_count else self._within(value))).all(-1)
        distinct = (value.sum(-2, dtype=torch.float32) <= 1).all(-1)
        return hard & one_each & distinct


class padded_simplex_rows(_WithLengths):
    r"""Matrices whose first m rows are on the `simplex`, and whose other rows are 0.

    .. math::

        \{s : s_{ji} \ge 0, \; \textstyle\sum_i s_{ji} = 1 \text{ for } j \le m, \;
        s_{ji} = 0 \text{ for } j > m\}

    over the last two dimensions, of the shape (rows, k). There is no bijection to it for matrices
    of different m.

    :param size: m, an int, or a tensor of integers of the batch shape.
    :param rows: the number of rows; None for m, or the largest m.
    """

    def _check(self, value: Tensor) -> Tensor:
        if value.shape[-2] != self.rows:
            return torch.zeros(value.shape[:-2], dtype=torch.bool, device=value.device)
        empty = (value == 0).all(-1)
        return torch.where(self._within(value), simplex.check(value), empty).all(-1)


class _SimplexRows(_OverLastDimensions):
    """Matrices over the last two dimensions whose rows are on the `simplex`."""

    event_dim = 2

    def _check(self, value: Tensor) -> Tensor:
        return simplex.check(value).all(-1)


#: Numbers from 0 to 1, where 0 and 1 have a positive probability: no bijection is registered.
gate = _Gate()
#: Vectors of probabilities over the last dimension: they sum to 1 within `tolerance`.
simplex = _Simplex()
#: Vectors of log probabilities over the last dimension; their exponentials sum to 1 likewise.
log_simplex = _LogSimplex()
#: Matrices over the last two dimensions whose rows are on the `simplex`.
simplex_rows = _SimplexRows()


class _DifferencesTransform(Transform):
    """From y in R^(k-1) to a v in R^k with the differences v_i - v_k = y_i."""

    domain = constraints.real_vector
    codomain: constraints.Constraint
    bijective = True

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1] - y[..., -1:]

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


class LogRatioTransform(_DifferencesTransform):
    r"""The bijection from real vectors to vectors of log probabilities, by log-ratios.

    .. math::

        v = \operatorname{log\,softmax}(y_1, \ldots, y_{k-1}, 0), \qquad y_i = v_i - v_k.

    It is the additive log-ratio transform of Aitchison, "The statistical analysis of compositional
    data" (1982), https://doi.org/10.1111/j.2517-6161.1982.tb01195.x. Unlike stick-breaking it is
    exact for probabilities far below the smallest positive number of the dtype.

    The log-determinant is 0, and :math:`\log p(v) = \log p(y)`. Both densities are that of the
    probabilities :math:`s = e^v` times :math:`\prod_i s_i`: the density of y because
    :math:`|\det ds/dy| = \prod_i s_i`, that of v because torch multiplies by the derivatives
    :math:`ds_i / dv_i = s_i` of an elementwise transform.
    """

    codomain = log_simplex

    def _call(self, x: Tensor) -> Tensor:
        return torch.log_softmax(pad(x, (0, 1)), -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])


class LogitHypersimplexTransform(_DifferencesTransform):
    r"""The bijection from real vectors to the log-odds of subsets of size m.

    .. math::

        v = (y_1, \ldots, y_{k-1}, 0) - c
        \quad \text{with } c \text{ such that } \sum_i \operatorname{sigmoid}(v_i) = m,
        \qquad y_i = v_i - v_k.

    **The log-determinant.** Let :math:`s = \operatorname{sigmoid}(v)`, :math:`w = s (1 - s)` and
    :math:`\omega = w / \sum_j w_j`. Then :math:`dv_i = dy_i - \sum_j \omega_j dy_j` (derived in
    `pyro_gumbel.links`), and the k - 1 differentials :math:`ds_i = w_i dv_i` have

    .. math:: \Bigl|\det \frac{ds}{dy}\Bigr| = \prod_i w_i \Big/ \sum_i w_i.

    The density of v is that of s times :math:`\prod_i w_i`. Hence the log-determinant is

    .. math:: -\operatorname{logsumexp}(\log w).

    :param size: m, how many categories are chosen, 1 <= m < k.
    :param cache_size: 1 to keep the last pair of argument and result, such that the inverse of that
        result returns the same tensor; 0 to keep none.
    """

    def __init__(self, size: int, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.link = Hypersimplex(size)
        self.codomain = logit_hypersimplex(size)

    def with_cache(self, cache_size: int = 1) -> Self:
        """The same transform with a cache of that size, 0 or 1.

        :param cache_size: as in the constructor.
        """
        if self._cache_size == cache_size:
            return self
        return type(self)(self.link.size, cache_size=cache_size)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.link == self.link

    def __hash__(self) -> int:
        return hash((type(self), self.link))

    def _call(self, x: Tensor) -> Tensor:
        return self.link.unconstrained(pad(x, (0, 1)), x.new_ones(()))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.link.log_slopes(self._call(x)).logsumexp(-1)


class HypersimplexTransform(LogitHypersimplexTransform):
    r"""The bijection from real vectors to the inclusion probabilities of subsets of size m.

    .. math::

        s = \operatorname{sigmoid}\bigl((y_1, \ldots, y_{k-1}, 0) - c\bigr)
        \quad \text{with } c \text{ such that } \sum_i s_i = m,
        \qquad y_i = \operatorname{logit} s_i - \operatorname{logit} s_k.

    With :math:`w = s (1 - s)` the log-determinant is (derived in `LogitHypersimplexTransform`)

    .. math::

        \log \Bigl|\det \frac{ds}{dy}\Bigr| = \sum_i \log w_i - \operatorname{logsumexp}(\log w).

    :param size: m, how many categories are chosen, 1 <= m < k.
    :param cache_size: 1 to keep the last pair of argument and result, such that the inverse of that
        result returns the same tensor; 0 to keep none.
    """

    def __init__(self, size: int, cache_size: int = 0) -> None:
        super().__init__(size, cache_size=cache_size)
        self.codomain = hypersimplex(size)

    def _call(self, x: Tensor) -> Tensor:
        return self.link.value(super()._call(x))

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(self.link.inverse(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        log_w = self.link.log_slopes(super()._call(x))
        return log_w.sum(-1) - log_w.logsumexp(-1)


class _RowsTransform(IndependentTransform):
    """A transform of each row, whose log-determinant works for an empty batch too."""

    def __init__(self, base_transform: Transform, cache_size: int = 0) -> None:
        super().__init__(base_transform, 1, cache_size=cache_size)

    def with_cache(self, cache_size: int = 1) -> Self:
        if self._cache_size == cache_size:
            return self
        return type(self)(self.base_transform, cache_size=cache_size)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.base_transform == self.base_transform

    def __hash__(self) -> int:
        return hash((type(self), type(self.base_transform)))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.base_transform.log_abs_det_jacobian(x, y).sum(-1)


@biject_to.register(_Simplex)
def _(constraint: _Simplex) -> Transform:
    return StickBreakingTransform()


@transform_to.register(_Simplex)
def _(constraint: _Simplex) -> Transform:
    return SoftmaxTransform()


@biject_to.register(_SimplexRows)
def _(constraint: _SimplexRows) -> Transform:
    return _RowsTransform(StickBreakingTransform())


@transform_to.register(_SimplexRows)
def _(constraint: _SimplexRows) -> Transform:
    return _RowsTransform(SoftmaxTransform())


@biject_to.register(padded_simplex_rows)
@transform_to.register(padded_simplex_rows)
def _(constraint: padded_simplex_rows) -> Transform:
    error = NotImplementedError(
        "biject_to: no bijection is known for relaxed rankings of different lengths; write one "
        "site for each length, with `size` an int, or a guide of your own"
    )
    raise error


@biject_to.register(_LogSimplex)
@transform_to.register(_LogSimplex)
def _(constraint: _LogSimplex) -> Transform:
    return LogRatioTransform()


@biject_to.register(hypersimplex)
@transform_to.register(hypersimplex)
def _(constraint: hypersimplex) -> Transform:
    return HypersimplexTransform(constraint.size)


@biject_to.register(logit_hypersimplex)
@transform_to.register(logit_hypersimplex)
def _(constraint: logit_hypersimplex) -> Transform:
    return LogitHypersimplexTransform(constraint.size)


@biject_to.register(_Gate)
@transform_to.register(_Gate)
def _(constraint: _Gate) -> Transform:
    raise NotImplementedError(
        "biject_to: expected a distribution with a density, got the support of a gate, which is 0 "
        "or 1 with a positive probability; NUTS, autoguides and pyro.param need the value in logit "
        'space: write v = pyro.sample("v", d) and gate = d.gate(v), with '
        "d = LogitHardConcrete(temperature, logits=logits), in place of a HardConcrete"
    )
