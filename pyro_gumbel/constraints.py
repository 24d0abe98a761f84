# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Supports with a tolerance for the dtype and the number of categories, and their bijections.

torch's simplex wants a sum within 1e-6 of 1 in every dtype and at every size, which correctly
rounded samples miss. Importing this module registers `biject_to` and `transform_to` for the two
constraints defined here, and for nothing else.
"""

import math

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import SoftmaxTransform, StickBreakingTransform, Transform

__all__ = ["LogRatioTransform", "log_simplex", "simplex", "tolerance"]


def tolerance(dtype: torch.dtype, size: int) -> float:
    """How far a sum of `size` rounded numbers whose exact sum is 1 may be from 1.

    torch's 1e-6, or where that is more: a term s is rounded by eps s and by the smallest
    subnormal, its logarithm by eps |log s|, which makes eps times an entropy of at most log(size),
    and the errors of a summation in float32 or better grow like sqrt(size).
    """
    finfo = torch.finfo(dtype)
    summed = torch.finfo(torch.promote_types(dtype, torch.float32))
    terms = (4 + math.log(size)) * finfo.eps + size * finfo.tiny * finfo.eps
    return max(1e-6, terms + 4 * math.sqrt(size) * summed.eps)


def _sums_to_one(value: Tensor, dtype: torch.dtype) -> Tensor:
    total = value.to(torch.promote_types(value.dtype, torch.float32)).sum(-1)
    return (total - 1).abs() <= tolerance(dtype, value.shape[-1])


class _Simplex(constraints.Constraint):
    """{s >= 0, sum(s) = 1} within `tolerance`."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0).all(-1) & _sums_to_one(value, value.dtype)


class _LogSimplex(constraints.Constraint):
    """{v: logsumexp(v) = 0} within `tolerance`; entries of -inf are probabilities of 0."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return _sums_to_one(value.exp(), value.dtype)


simplex = _Simplex()
log_simplex = _LogSimplex()


class LogRatioTransform(Transform):
    r"""y in R^(k-1) to v = log_softmax([y, 0]) on the log-simplex; back, y_i = v_i - v_k.

    A density on the log-simplex is one with respect to the log-ratios, so the log-determinant
    is 0: log p(y) = log p(v). (It is |det ds/dy| = prod(s) divided by the prod(w) = prod(s) that
    an elementwise transform puts into the density of v.) The additive log-ratio of Aitchison,
    "The statistical analysis of compositional data" (1982),
    https://doi.org/10.1111/j.2517-6161.1982.tb01195.x, unlike stick-breaking exact for
    probabilities far below the smallest float.
    """

    domain = constraints.real_vector
    codomain = log_simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogRatioTransform)

    def __hash__(self) -> int:
        return hash(LogRatioTransform)

    def _call(self, x: Tensor) -> Tensor:
        return torch.log_softmax(torch.nn.functional.pad(x, (0, 1)), -1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1] - y[..., -1:]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


@biject_to.register(_Simplex)
def _(constraint: _Simplex) -> Transform:
    return StickBreakingTransform()


@transform_to.register(_Simplex)
def _(constraint: _Simplex) -> Transform:
    return SoftmaxTransform()


@biject_to.register(_LogSimplex)
@transform_to.register(_LogSimplex)
def _(constraint: _LogSimplex) -> Transform:
    return LogRatioTransform()
