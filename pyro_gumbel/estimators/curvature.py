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

H is learned. Where f is quadratic, :math:`u = b + H^* (D - p)` with b independent of D. Let C be
the covariance of D, and :math:`d_i = D_i - p_i` the deviation of example i. The rest
:math:`r_i = u_i - H d_i` has the mean b over draws, which is estimated by that over earlier
batches, :math:`\bar r`. A batch of N examples moves H by a step of least squares,

.. math::
    H \leftarrow H + \text{step} \cdot \operatorname{sym} M, \qquad
    M = \sum_i \frac{C^{-1} d_i \, (r_i - \bar r)^\top}{N + h_i}, \qquad
    h_i = \langle d_i, C^{-1} d_i \rangle.

The leverage :math:`h_i` is about L (K - 1). Without it a batch that is small beside it would move H
too far. With it a single example shortens the error :math:`E = H^* - H` at every step up to 2. With
:math:`\lVert X \rVert^2 = \operatorname{tr} (X C X^\top C)`, for which sym is a projection, and
:math:`r - \bar r = E d`,

.. math::
    \lVert E - \text{step} \operatorname{sym} M \rVert^2 \le \lVert E \rVert^2
        - \text{step} \Bigl( 2 - \text{step} \, \frac{h}{1 + h} \Bigr)
          \frac{\langle d, E C E d \rangle}{1 + h}.
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

FARTHEST = 4.0  # times the usual size of what is left to explain, for one batch
_LEAST = torch.float32


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
        H \leftarrow H + \text{step} \cdot \operatorname{sym} \sum_i
            \frac{(\operatorname{Cov} D + \text{ridge} / K)^{-1} d_i \, (r_i - \bar r)^\top}
                 {N + h_i},
        \qquad d_i = D_i - p_i, \quad r_i = u_i - H d_i,

    over the N examples of a batch, with :math:`\bar r` the mean of r over earlier batches and
    :math:`h_i` the leverage of an example, which keeps H stable in small batches. It does so after
    the gradient has been computed, so that H does not depend on the draws that it serves. (A second
    backward pass through the same draw has an H that does.) In evaluation mode, after ``.eval()``,
    H stays as it is. A gradient that is infinite or NaN does not move it, and one that is far
    larger than those before only as much as one of four times their size.

    The loss should be a sum or a mean over examples that share one curvature, as in a minibatch of
    an autoencoder. It does not know which examples a mask leaves out of the loss, or which are
    observed: their curvature is 0, and the gradient that they are passed is not. So give it none of
    these. With few examples in a batch beside the entries of `shape`, H is learned slowly:
    `LearnedCurvature((K,))`, or `LearnedCurvature(())` for bits, then learns one block for all
    variables, as if each were an example. H adapts to a changed scale of the loss within some
    hundred batches. Use one object for each site. It suits Bernoulli variables, with
    :math:`p_l = \operatorname{sigmoid} (x_l)` and K = 1 above, and one-hot vectors. The rows of a
    ranking are not independent: it is not for these.

    What it has learned is in its buffers. Make it an attribute of the module that is saved, such as
    the encoder. `AutoRelaxed` keeps it in its ``state_dict``. Pyro's parameter store holds no
    buffers. It computes in float32 at least, and in float64 where the logits are.

    It was found in the development of this package. Its parts are the straight-through estimator,
    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation" (2013), https://arxiv.org/abs/1308.3432, and a control variate by a
    Taylor series, which Miller, Foti, D'Amour and Adams, "Reducing reparameterization gradient
    variance" (2017), https://arxiv.org/abs/1705.07880, have for continuous variables.

    Memory and time of a batch of N are those of a matrix of (L K) x (L K) numbers, and of its
    product with N vectors.

    >>> estimator = LearnedCurvature((16, 8))
    >>> d = CategoricalStraightThrough(logits=torch.zeros(100, 16, 8), estimator=estimator)
    >>> d.to_event(1).rsample().shape
    torch.Size([100, 16, 8])

    :param shape: the event shape of the site, (L, K) for one-hot vectors and (L,) for bits; more
        dimensions of variables may come first. (K,) or () is a single variable.
    :param step: how far H moves towards what a batch says, more than 0 and at most 1.
    :param ridge: what is added to the variances, which are at most 1/4, a number above 0.
    :ivar curvature: H, of shape (n, n) with n the number of entries of `shape`.
    :ivar residual: the mean of r, of shape (n,).
    :ivar spread: the root of the mean square of r - residual, 0 before the first batch.
    :raises TypeError: unless `shape` holds ints, and `step` and `ridge` are numbers.
    :raises ValueError: unless they are in range; when it is called, for subsets and for draws whose
        last dimensions are not `shape`.
    :raises NotImplementedError: when it is called under torch.func or in forward mode.
    :raises RuntimeError: for second derivatives, by torch.
    """

    takes_temperature: ClassVar[bool] = False
    curvature: Tensor
    residual: Tensor
    spread: Tensor

    def __init__(self, shape: Sequence[int], *, step: float = 0.5, ridge: float = 0.01) -> None:
        super().__init__()
        self.shape = read_shape("LearnedCurvature", "shape", shape)
        if 0 in self.shape:
            raise ValueError(
                "LearnedCurvature: `shape` must be of 1 or more in each dimension, got "
                f"{tuple(self.shape)}; write LearnedCurvature((16, 8)) for 16 variables of 8 "
                "categories"
            )
        self.step = read_number("LearnedCurvature", "step", step)
        self.ridge = read_number("LearnedCurvature", "ridge", ridge)
        if self.step > 1:
            raise ValueError(
                f"LearnedCurvature: `step` must be at most 1, got {step}; write step=0.5"
            )
        size = math.prod(self.shape)
        self.register_buffer("curvature", torch.zeros(size, size))
        self.register_buffer("residual", torch.zeros(size))
        self.register_buffer("spread", torch.zeros(()))

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
        is_bit = isinstance(link, Interval)
        if hard.shape[hard.dim() - rank :] != self.shape or hard.dim() < rank:
            event = tuple(hard.shape[-1:] if is_bit else hard.shape[-2:])
            raise ValueError(
                f"LearnedCurvature: `shape` must be the last dimensions of a draw, whose shape is "
                f"{tuple(hard.shape)}, without those of the examples, got {tuple(self.shape)}; "
                f"write LearnedCurvature({event}) for an example with this event shape"
            )
        if in_transform():
            raise NotImplementedError(
                "LearnedCurvature: learns in the backward pass, so that torch.func and forward "
                'mode cannot take it apart; write estimator="second_order" there'
            )
        surrogate: Tensor = _Surrogate.apply(logits, hard, self, is_bit)
        return surrogate

    @torch.no_grad()
    def pull(self, grad: Tensor, p: Tensor, hard: Tensor, k: int) -> Tensor:
        """The gradient in p that is passed back, by rows over all variables; and then learn.

        :param grad: u, one row an example, as all arguments.
        :param k: the number K of entries of one variable.
        """
        deviation = hard - p
        curvature = self.curvature.to(grad.dtype)
        r = torch.addmm(grad, deviation, curvature, alpha=-1)
        blocks = _blocks_of(curvature, k)
        p_by_variable = p.unflatten(-1, (-1, 1, k))
        slope = (p_by_variable @ blocks).flatten(-3)
        found = r + blocks.diagonal(dim1=-2, dim2=-1).flatten() / 2 - slope
        if self.training and len(r):
            self._learn(deviation, r, p_by_variable.squeeze(-2))
        return found

    def _learn(self, deviation: Tensor, r: Tensor, p: Tensor) -> None:
        """Move H, and the means, by one batch. No number is read, which would wait for a GPU.

        :param p: of shape (examples, variables, K).
        """
        rest = r - self.residual
        scaled = self._over_covariance(deviation, p)
        leverage = (scaled * deviation).sum(-1, keepdim=True)
        weighted = rest / (len(rest) + leverage)
        size = rest.square().sum(-1).mean().sqrt()
        spread = torch.where(self.spread > 0, self.spread, size)
        share = (FARTHEST * spread / size).clamp(max=1.0).nan_to_num(1.0)  # of 0 / 0
        change = self.step * share * (scaled.T @ weighted)
        moves = (  # of the buffers, in their order
            (change + change.T) / 2,
            self.step * share * weighted.sum(0),
            spread.lerp(share * size, self.step) - self.spread,
        )
        is_known = torch.stack([each.sum().isfinite() for each in moves]).all()
        for buffer, move in zip(self.buffers(), moves, strict=True):
            buffer += torch.where(is_known, move, 0.0)

    def _over_covariance(self, deviation: Tensor, p: Tensor) -> Tensor:
        """(C + ridge / K)^-1 d of each example, with C the mean covariance of its variables."""
        k = p.shape[-1]
        covariance = torch.diag_embed(p.mean(0)) - torch.einsum("nli,nlj->lij", p, p) / len(p)
        ridge = self.ridge / k * torch.eye(k, dtype=p.dtype, device=p.device)
        factor, _ = torch.linalg.cholesky_ex(covariance + ridge)
        by_variable = deviation.unflatten(-1, (-1, k)).permute(1, 2, 0)
        return torch.cholesky_solve(by_variable, factor).permute(2, 0, 1).flatten(1)


def _blocks_of(curvature: Tensor, k: int) -> Tensor:
    """The blocks of H on its diagonal, of shape (variables, K, K)."""
    by_variable = curvature.unflatten(0, (-1, k)).unflatten(-1, (-1, k))
    return by_variable.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


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
        n = len(module.residual)
        dtype = torch.promote_types(p.dtype, torch.promote_types(module.curvature.dtype, _LEAST))
        u, probs, draw = (t.to(dtype).reshape(-1, n) for t in (grad, p, hard))
        with torch.autocast(p.device.type, enabled=False):
            w = module.pull(u, probs, draw, 1 if ctx.is_bit else p.shape[-1])
        w = w.reshape(p.shape).to(p.dtype)
        dx = p * (1 - p) * w if ctx.is_bit else p * (w - (p * w).sum(-1, keepdim=True))
        return dx, None, None, None
