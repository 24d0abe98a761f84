# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The gradient of least variance for a one-hot vector, at a limited bias for quadratic losses.

Let :math:`D = e_i` be a one-hot vector drawn with probabilities :math:`p = \operatorname{softmax}
(x)`, and u the gradient of the loss at D. Consider all estimates :math:`J(p)\, M_i u` of the
gradient in x with one K x K matrix :math:`M_i` for each category i. The estimate is unbiased

* for linear losses if :math:`\sum_i p_i M_i` is the identity;
* for quadratic losses too if for each k the matrix S, with the entries :math:`S_{ij} = p_i
  (M_i)_{kj} + p_j (M_j)_{ki}`, is :math:`e_k e_k^\top`.

Of all matrices with the first property, minimum variance estimation takes those with the least

.. math::
    \sum_i p_i \lVert M_i \rVert^2
        + \frac{\tau}{2} \sum_k \bigl\lVert S^{(k)} - e_k e_k^\top \bigr\rVert^2 .

At :math:`\tau = 0` all :math:`M_i` are the identity, the straight-through estimate. As
:math:`\tau` grows the bias for quadratic losses goes to 0 like :math:`1 / \tau`.

**The solution.** Row k of M is a problem of its own. With multipliers :math:`\lambda` for the
first property its stationary point is

.. math::
    (M_i)_{kj} = \frac{(1 + \tau p_j) \lambda_j - \tau p_j \lambda_i}{1 + \tau (p_i + p_j)}
        + \tau \, \delta_{ij} \delta_{jk} \, \frac{1}{1 + 2 \tau p_k},

and the first property says :math:`A \lambda = e_k (1 + \tau p_k) / (1 + 2 \tau p_k)` with

.. math::
    A_{jl} = - \frac{\tau p_j p_l}{1 + \tau (p_j + p_l)} \quad (l \ne j), \qquad
    A_{jj} = \sum_{l \ne j} \frac{(1 + \tau p_j)\, p_l}{1 + \tau (p_j + p_l)}
        + \frac{p_j}{1 + 2 \tau p_j} .

A is symmetric and strictly diagonally dominant. So :math:`M_i u` is found from one linear system.
A constant in u only adds a constant to :math:`M_i u`, which J(p) removes. With
:math:`d = u - u_i`, whose entry at i is 0,

.. math::
    M_i u = \frac{1 + \tau p}{1 + 2 \tau p} \odot A^{-1} b + \text{constant}, \qquad
    b_j = \frac{(1 + \tau p_j) \, d_j}{1 + \tau (p_i + p_j)} \quad (j \ne i), \qquad
    b_i = - \tau \sum_j \frac{p_j \, d_j}{1 + \tau (p_i + p_j)} .

**Rounding.** For large :math:`\tau` A is nearly singular. But

.. math::
    A \, \frac{1 + 2 \tau p}{1 + \tau p} = \Bigl( \sum_l \frac{p_l}{1 + \tau p_l} \Bigr) \mathbf{1},

so a multiple of the vector on the left is a constant in :math:`M_i u`. It makes no difference if
the same number is added to all entries of A. With the mean of its diagonal, divided by K, the
condition number of A does not grow with :math:`\tau`. The constant in :math:`M_i u` is chosen such
that its entry for the most probable category is 0; otherwise the product with J(p) would lose
digits.

**Bits.** Of two categories, with q the probability of the second one, the gradient in their
log-odds is

.. math:: q (1 - q) \, \frac{1 + 2 \tau |D - q|}{1 + 4 \tau q (1 - q)} \, u .

As :math:`\tau` goes to infinity this is the second-order :math:`\tfrac{1}{2} |D - q| \, u`.
"""

import torch
from torch import Tensor

from pyro_gumbel.ops.autograd import zero_with_gradient

__all__ = ["minimum_variance_of_bit", "minimum_variance_of_one_hot"]

_MOST_IN_FLOAT32 = 1e7


def minimum_variance_of_bit(value: Tensor, logits: Tensor, tau: float | Tensor) -> Tensor:
    """0 with the gradient of bits in their log-odds.

    :param value: D.
    :param logits: the log-odds, which may be infinite.
    :param tau: a number, or a tensor without dimensions.
    """
    x, step, tau = _computed(logits, tau)
    p, other = x.sigmoid(), (-x).sigmoid()
    spread = p * other
    distance = torch.where(value > 0, other, p)
    gradient = spread * (1 + 2 * tau * distance) / (1 + 4 * tau * spread)
    return (gradient * step).to(logits.dtype)


def minimum_variance_of_one_hot(value: Tensor, logits: Tensor, tau: float | Tensor) -> Tensor:
    """0 with the gradient of one-hot vectors in their logits.

    The gradient is that of a linear function, the transpose of :math:`J(p) M_i`.

    :param value: D.
    :param logits: x, which may be -inf.
    :param tau: a number, or a tensor without dimensions.
    """
    x, step, tau = _computed(logits, tau)
    p, value = x.softmax(-1), value.to(x.dtype)
    a = tau * p
    y = p * (step - _sum(p * step))
    y = y - _most_probable(p) * _sum(y)
    y = _solve(_matrix(p, tau), y * (1 + a) / (1 + 2 * a))
    y = ((1 + a) * y - a * _sum(value * y)) / (1 + tau * (p + _sum(value * p)))
    return (y - value * _sum(y)).to(logits.dtype)


def _matrix(p: Tensor, tau: Tensor) -> Tensor:
    """A, with the same number added to all entries."""
    k = p.shape[-1]
    shares = p.unsqueeze(-2) / (1 + tau * (p.unsqueeze(-1) + p.unsqueeze(-2)))
    diagonal = torch.eye(k, dtype=torch.bool, device=p.device)
    others = (tau * p.unsqueeze(-1) * shares).masked_fill(diagonal, 0.0)
    total = shares.sum(-1) + others.sum(-1)
    added = total.mean(-1, keepdim=True).unsqueeze(-1) / k
    return torch.diag_embed(total) - others + added


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of a positive definite system for each row."""
    factor, _ = torch.linalg.cholesky_ex(matrix)
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)


def _most_probable(p: Tensor) -> Tensor:
    """The one-hot vector of the most probable category."""
    return torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0)


def _computed(logits: Tensor, tau: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x without a gradient, 0 with the gradient of x, and tau, in the dtype of the computation.

    A larger tau than a dtype can tell from infinity is made smaller.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if not isinstance(tau, Tensor) and tau > _MOST_IN_FLOAT32:
        dtype = torch.float64
    most = _MOST_IN_FLOAT32 if dtype == torch.float32 else 1 / torch.finfo(dtype).eps
    step = zero_with_gradient(torch.where(logits.isfinite(), logits, 0.0).to(dtype))
    x = logits.detach().to(dtype)
    tau = tau.to(x) if isinstance(tau, Tensor) else x.new_full((), tau)
    return x, step, tau.clamp(max=most)


def _sum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)
