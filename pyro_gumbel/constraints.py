# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Supports with a tolerance for the dtype and the number of categories, and their bijections.

torch's simplex wants a sum within 1e-6 of 1 in every dtype and at every size, which correctly
rounded samples miss. Importing this module registers `biject_to` and `transform_to` for the
continuous constraints defined here, and for nothing else.
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

from pyro_gumbel.links import Hypersimplex

__all__ = [
    "HypersimplexTransform",
    "LogRatioTransform",
    "LogitHypersimplexTransform",
    "hypersimplex",
    "log_simplex",
    "logit_hypersimplex",
    "ranking",
    "simplex",
    "simplex_rows",
    "subset",
    "tolerance",
]


def tolerance(dtype: torch.dtype, size: int) -> float:
    """How far a sum of `size` rounded numbers whose exact sum is 1 may be from 1.

    torch's 1e-6, or where that is more: a term s is rounded by eps s and by the smallest
    subnormal, its logarithm by eps |log s|, which makes eps times an entropy of at most log(size),
    and the errors of a summation in float32 or better grow like sqrt(size).
    """
    finfo = torch.finfo(dtype)
    summed = torch.finfo(torch.promote_types(dtype, torch.float32))
    terms = (4 + math.log(max(1, size))) * finfo.eps + size * finfo.tiny * finfo.eps
    return max(1e-6, terms + 4 * math.sqrt(size) * summed.eps)


def _sums_to(value: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    total = value.to(torch.promote_types(value.dtype, torch.float32)).sum(-1)
    return (total - size).abs() <= size * tolerance(dtype, value.shape[-1])


class _OverCategories(constraints.Constraint):
    """What concerns the last dimension, or two. Integers and booleans are numbers here too."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        if value.dim() < self.event_dim:
            return torch.zeros((), dtype=torch.bool, device=value.device)
        floats = value.is_floating_point()
        return self._check(value if floats else value.to(torch.get_default_dtype()))

    def _check(self, value: Tensor) -> Tensor:
        """For a tensor of floats with enough dimensions."""
        raise NotImplementedError


class _Simplex(_OverCategories):
    """{s >= 0, sum(s) = 1} within `tolerance`."""

    def _check(self, value: Tensor) -> Tensor:
        return (value >= 0).all(-1) & _sums_to(value, 1, value.dtype)


class _LogSimplex(_OverCategories):
    """{v: logsumexp(v) = 0} within `tolerance`; entries of -inf are probabilities of 0."""

    def _check(self, value: Tensor) -> Tensor:
        return _sums_to(value.exp(), 1, value.dtype)


class _OfSize(_OverCategories):
    """What concerns `size` of the categories in the last dimension."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.size == self.size

    def __hash__(self) -> int:
        return hash((type(self), self.size))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size})"


class hypersimplex(_OfSize):
    """{0 <= s <= 1, sum(s) = size} within `size` times `tolerance`."""

    def _check(self, value: Tensor) -> Tensor:
        inside = ((value >= 0) & (value <= 1)).all(-1)
        return inside & _sums_to(value, self.size, value.dtype)


class logit_hypersimplex(_OfSize):
    """{v: sum(sigmoid(v)) = size} within `size` times `tolerance`; infinite at 0 and 1."""

    def _check(self, value: Tensor) -> Tensor:
        return _sums_to(value.sigmoid(), self.size, value.dtype)


class subset(_OfSize):
    """Vectors of `size` ones and otherwise zeros."""

    is_discrete = True

    def _check(self, value: Tensor) -> Tensor:
        hard = ((value == 0) | (value == 1)).all(-1)
        return hard & (value.sum(-1, dtype=torch.float32) == self.size)


class ranking(_OfSize):
    """`size` one-hot rows, no two of them alike."""

    is_discrete = True
    event_dim = 2

    def _check(self, value: Tensor) -> Tensor:
        hard = ((value == 0) | (value == 1)).flatten(-2).all(-1)
        one_each = (value.sum(-1, dtype=torch.float32) == 1).all(-1)
        distinct = (value.sum(-2, dtype=torch.float32) <= 1).all(-1)
        return hard & one_each & distinct & (value.shape[-2] == self.size)


class _SimplexRows(_OverCategories):
    """Rows over the last two dimensions, each on the simplex."""

    event_dim = 2

    def _check(self, value: Tensor) -> Tensor:
        return simplex.check(value).all(-1)


simplex = _Simplex()
log_simplex = _LogSimplex()
simplex_rows = _SimplexRows()


class _DifferencesTransform(Transform):
    """y in R^(k-1) to coordinates v that have the differences y_i = v_i - v_k."""

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
    r"""y in R^(k-1) to v = log_softmax([y, 0]) on the log-simplex; back, y_i = v_i - v_k.

    A density on the log-simplex is one with respect to the log-ratios, so the log-determinant
    is 0: log p(y) = log p(v). (It is |det ds/dy| = prod(s) divided by the prod(w) = prod(s) that
    an elementwise transform puts into the density of v.) The additive log-ratio of Aitchison,
    "The statistical analysis of compositional data" (1982),
    https://doi.org/10.1111/j.2517-6161.1982.tb01195.x, unlike stick-breaking exact for
    probabilities far below the smallest float.
    """

    codomain = log_simplex

    def _call(self, x: Tensor) -> Tensor:
        return torch.log_softmax(pad(x, (0, 1)), -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])


class LogitHypersimplexTransform(_DifferencesTransform):
    r"""y in R^(k-1) to v = [y, 0] - c with sum(sigmoid(v)) = size; back, y_i = v_i - v_k.

    With w = s (1 - s), s = sigmoid(v): dv_i = dy_i - sum_j omega_j dy_j with omega = w / sum(w)
    (derived in `pyro_gumbel.links`), so that the k - 1 differentials ds_i = w_i dv_i have
    |det ds/dy| = prod(w) / sum(w). A density of v is that of s times prod(w), hence here

        log |det| = -logsumexp(log w).

    :param size: the number m of the chosen, 1 <= m < k.
    :param cache_size: 1 to return the very tensor of which the last result was made; 0 not to.
    """

    def __init__(self, size: int, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.link = Hypersimplex(size)
        self.codomain = logit_hypersimplex(size)

    def with_cache(self, cache_size: int = 1) -> Self:
        """The same transform with a cache of that size, 0 or 1."""
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
    r"""y in R^(k-1) to s = sigmoid([y, 0] - c) with sum(s) = size.

    Back, y_i = logit s_i - logit s_k. As derived in `LogitHypersimplexTransform`,

        log |det ds/dy| = sum(log w) - logsumexp(log w).

    :param size: the number m of the chosen, 1 <= m < k.
    :param cache_size: as in `LogitHypersimplexTransform`.
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
    """A transform of each row, whose log-determinant an empty batch has too."""

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
