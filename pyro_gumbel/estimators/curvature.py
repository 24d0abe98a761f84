# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""An estimator that learns the curvature of the loss from the gradients that pass through it.

Let :math:`D = (D_1, \dots, D_L)` be independent draws with probabilities :math:`p_l`, and u the
gradient of a loss f at D. For any symmetric matrix H, held constant with p, the function

.. math:: q(D) = \tfrac{1}{2} \langle D - p, H (D - p) \rangle

is a control variate. Its gradient at D is :math:`H (D - p)`, and the gradient of its mean is known.
A mean over D of probabilities p' has the parts

.. math::
    E \tfrac{1}{2} \langle D_l - p_l, H_{ll} (D_l - p_l) \rangle
        = \tfrac{1}{2} \langle p'_l, \operatorname{diag} H_{ll} \rangle
        - \langle p'_l, H_{ll} p_l \rangle + \tfrac{1}{2} \langle p_l, H_{ll} p_l \rangle,
    \qquad
    E \langle D_l - p_l, H_{lm} (D_m - p_m) \rangle
        = \langle p'_l - p_l, H_{lm} (p'_m - p_m) \rangle,

and at :math:`p' = p` the derivatives of the second are 0. So

.. math::
    \nabla_{p_l} E f = \nabla_{p_l} E (f - q)
        + \tfrac{1}{2} \operatorname{diag} H_{ll} - H_{ll} \, p_l.

The straight-through estimator of the first term is the gradient of f - q at D,
:math:`u_l - (H (D - p))_l`. It has no bias and no noise where f is quadratic with the Hessian
matrix H: then it does not depend on D.

H is learned. Where f is quadratic, :math:`u = b + H (D - p)` with b independent of D, so that
:math:`E[(D - p) u^\top] = \operatorname{Cov}(D) H`. Each backward pass moves H by a part of what
this least-squares equation asks of the rest, :math:`r = u - H (D - p)`.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pyro_gumbel._tracing import in_transform
from pyro_gumbel._validation import read_number, read_shape
from pyro_gumbel.estimators.functions import require_one_hot
from pyro_gumbel.links import Interval, Link
from pyro_gumbel.tensors.subclass import uncompiled

__all__ = ["LearnedCurvature"]


class LearnedCurvature(nn.Module):
    r"""Straight-through, less the noise and the bias of the mean curvature of the loss.

    `LearnedCurvature(shape)` is an estimator of distributions without a temperature, for L
    independent variables of K categories: the event of ``distribution.to_event(1)``. With u the
    gradient of the loss at the draws :math:`D = (D_1, \dots, D_L)`, it passes to the logits of
    variable l

    .. math::
        J(p_l) \Bigl( u_l - \sum_m H_{lm} (D_m - p_m)
            + \tfrac{1}{2} \operatorname{diag} H_{ll} - H_{ll} \, p_l \Bigr),
        \qquad p_l = \operatorname{softmax}(x_l).

    H is an estimate of the Hessian matrix of the loss in D. For a quadratic loss whose Hessian
    matrix is H the gradient is exact, without noise. At H = 0 this is `straight_through` at a
    temperature of 1, unbiased for linear losses. The sum takes off the noise that comes from the
    draws of all variables, and changes no mean if H has no block on its diagonal; the two last
    terms make up for the curvature along each variable.

    Each backward pass in training mode moves H, by least squares over the batch,

    .. math::
        H \leftarrow H + \text{step} \cdot \operatorname{sym} \bigl(
            (\operatorname{Cov} D + \text{ridge} / K)^{-1} \, E [(D - p) (r - \bar r)^\top] \bigr),
        \qquad r = u - H (D - p),

    with :math:`\bar r` the mean of r over earlier batches. It does so after the gradient has been
    computed, so that H does not depend on the draws that it serves. In evaluation mode, after
    ``.eval()``, H stays as it is. It is a part of ``state_dict``. A backward pass with a gradient
    that is infinite or NaN does not move it.

    The loss should be a sum over examples that share one curvature, as in a minibatch of an
    autoencoder. H adapts to a changed scale of the loss within about 1 / step batches. Use one
    object for each site. It suits Bernoulli variables, with :math:`p_l = \operatorname{sigmoid}
    (x_l)` and K = 1 above, and one-hot vectors. The rows of a ranking are not independent: it is
    not for these.

    It was found in the development of this package; for its parts see Gu, Levine, Sutskever and
    Mnih, "MuProp: unbiased backpropagation for stochastic neural networks" (2016),
    https://arxiv.org/abs/1511.05176, a control variate of first order by the network's gradient at
    the mean, and Bengio, Leonard and Courville, "Estimating or propagating gradients through
    stochastic neurons for conditional computation" (2013), https://arxiv.org/abs/1308.3432.

    Memory and time of a batch of N are those of a matrix of (L K) x (L K) numbers, and of its
    product with N vectors.

    >>> estimator = LearnedCurvature((16, 8))
    >>> d = CategoricalStraightThrough(logits=torch.zeros(100, 16, 8), estimator=estimator)
    >>> d.to_event(1).rsample().shape
    torch.Size([100, 16, 8])

    :param shape: the event shape of the site, (L, K) for one-hot vectors and (L,) for bits; more
        dimensions of variables may come first. (K,) or () is a single variable.
    :param step: how much H moves in a batch, more than 0 and at most 1.
    :param ridge: what is added to the variances, which are at most 1/4, a number above 0.
    :ivar curvature: H, of shape (n, n) with n the number of entries of `shape`.
    :ivar residual: the mean of r, of shape (n,).
    :raises TypeError: unless `shape` holds ints, and `step` and `ridge` are numbers.
    :raises ValueError: unless they are in range; when it is called, for subsets and for draws whose
        last dimensions are not `shape`.
    :raises NotImplementedError: when it is called under torch.func, in forward mode; and for second
        derivatives.
    """

    takes_temperature: ClassVar[bool] = False
    curvature: Tensor
    residual: Tensor

    def __init__(self, shape: Sequence[int], *, step: float = 0.1, ridge: float = 0.01) -> None:
        super().__init__()
        self.shape = read_shape("LearnedCurvature", "shape", shape)
        self.step = read_number("LearnedCurvature", "step", step)
        self.ridge = read_number("LearnedCurvature", "ridge", ridge)
        if self.step > 1:
            raise ValueError(
                f"LearnedCurvature: `step` must be at most 1, got {step}; write step=0.1"
            )
        size = math.prod(self.shape)
        self.register_buffer("curvature", torch.zeros(size, size))
        self.register_buffer("residual", torch.zeros(size))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{tuple(self.shape)}, step={self.step}, ridge={self.ridge}"

    @uncompiled
    def forward(
        self, logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
    ) -> Tensor:
        """The surrogate of a draw, see `pyro_gumbel.estimators`."""
        require_one_hot("LearnedCurvature", link)
        rank = len(self.shape)
        if hard.shape[hard.dim() - rank :] != self.shape or hard.dim() < rank:
            raise ValueError(
                f"LearnedCurvature: `shape` must be the last dimensions of a draw, whose shape is "
                f"{tuple(hard.shape)}, got {tuple(self.shape)}; write "
                f"LearnedCurvature({tuple(hard.shape[-2:])}) if the last two are of one example"
            )
        if in_transform():
            raise NotImplementedError(
                "LearnedCurvature: learns in the backward pass, so that torch.func and forward "
                'mode cannot take it apart; write estimator="second_order" there'
            )
        surrogate: Tensor = _Surrogate.apply(logits, hard, self, isinstance(link, Interval))
        return surrogate

    @torch.no_grad()
    def pull(self, grad: Tensor, p: Tensor, hard: Tensor, k: int) -> Tensor:
        """The gradient in p that is passed back, by rows over all variables; and then learn.

        :param grad: u, one row an example, as all arguments.
        :param k: the number K of entries of one variable.
        """
        deviation = hard - p
        r = torch.addmm(grad, deviation, self.curvature, alpha=-1)
        blocks = self._blocks(k)
        p_by_variable = p.unflatten(-1, (-1, 1, k))
        slope = (p_by_variable @ blocks).flatten(-3)
        found = r + blocks.diagonal(dim1=-2, dim2=-1).flatten() / 2 - slope
        if self.training:
            self._learn(deviation, r, p_by_variable, k)
        return found

    def _blocks(self, k: int) -> Tensor:
        """The blocks of H on its diagonal, of shape (variables, K, K)."""
        by_variable = self.curvature.unflatten(0, (-1, k)).unflatten(-1, (-1, k))
        return by_variable.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def _learn(self, deviation: Tensor, r: Tensor, p: Tensor, k: int) -> None:
        """Move H, and the mean of r, by one batch."""
        n = len(r)
        p = p.squeeze(-2)  # (examples, variables, K)
        second = torch.einsum("nli,nlj->lij", p, p) / n
        covariance = torch.diag_embed(p.mean(0)) - second
        joint = deviation.T @ (r - self.residual) / n
        ridge = self.ridge / k * torch.eye(k, dtype=p.dtype, device=p.device)
        factor, _ = torch.linalg.cholesky_ex(covariance + ridge)
        change = torch.cholesky_solve(joint.unflatten(0, (-1, k)), factor).flatten(0, 1)
        change = self.step / 2 * (change + change.T)
        mean = self.step * (r.mean(0) - self.residual)
        # Without a look at the numbers, which would wait for a GPU.
        is_finite = change.sum().isfinite() & mean.sum().isfinite()
        self.curvature += torch.where(is_finite, change, 0.0)
        self.residual += torch.where(is_finite, mean, 0.0)


class _Surrogate(Function):
    """The sample itself, with the gradient of a `LearnedCurvature`."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, hard: Tensor, module: LearnedCurvature, is_bit: bool
    ) -> Tensor:
        p = logits.sigmoid() if is_bit else logits.softmax(-1)
        ctx.save_for_backward(p, hard)
        ctx.module, ctx.is_bit = module, is_bit
        return hard.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, hard = ctx.saved_tensors
        module: LearnedCurvature = ctx.module
        n, dtype = len(module.residual), module.curvature.dtype
        u, probs, draw = (t.to(dtype).reshape(-1, n) for t in (grad, p, hard))
        with torch.autocast(p.device.type, enabled=False):
            w = module.pull(u, probs, draw, 1 if ctx.is_bit else p.shape[-1])
        w = w.reshape(p.shape).to(p.dtype)
        dx = p * (1 - p) * w if ctx.is_bit else p * (w - (p * w).sum(-1, keepdim=True))
        return dx, None, None, None
