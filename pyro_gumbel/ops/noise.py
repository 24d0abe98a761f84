# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Gumbel and logistic noise, right at both ends of the float range; noise given its winner.

`torch.rand` gives multiples of 2^-24 in float32: it is 0 once in 17 million draws, and the
distance to 1 is as coarse. A Gumbel variate -log(-log(u)) of such a u is infinite once in 17
million draws, and a category less likely than 6e-8 either never wins or wins far too often. Here
a second variate fills the cell that the first one chose, so that both U and 1 - U are exact to
their last digit, down to 2^-48; what little is left is clamped to the smallest normal number.
Float32 on a CPU has it cheaper: from the 53 bits of a double, or for many draws at once from 32
bits, and with new variates for those that come near to 0 or 1.

**Noise given that an untaken category wins.** Drawing z = x + g anew until the winner is one that
is not yet taken has no bound on the number of draws. The same law without a loop: the waiting
times e_j = exp(-z_j) are independent exponentials with rates exp(x_j), and the first of them is
exponential with rate Z = sum_j exp(x_j), whichever it is. Let M be the first among the untaken,
exponential with rate Z_R, the sum over the untaken. Then M' = M Z_R / Z has the law of the first of
all. The untaken run on as they do after M, the taken, without memory, as they would from M' on:

    z_j = -log(e_j - M + M') if j is untaken,    -log(e_j + M') if it is taken.

**Noise given its winners.** Let (1), ..., (m) be the first categories in their order and Z_j the
sum of exp(x) over those that are not among (1), ..., (j - 1). Given the order the gaps between the
first waiting times are independent, with the E_i iid Exponential(1),

    e_(1) = E_(1) / Z_1,    e_(j) = e_(j-1) + E_(j) / Z_j,    e_i = e_(m) + E_i exp(-x_i)

for the others: without memory they start anew at e_(m). For m = 1 these are the conditional Gumbel
variates of Maddison, Tarlow and Minka, "A* sampling" (2014), https://arxiv.org/abs/1411.0030. For a
bit, z = x + L given z >= 0 has the distribution function 1 - sigmoid(x - z) / sigmoid(x), whose
inverse at a uniform variate is, with a logistic variate L',

    z = softplus(softplus(x) + L'),    and given z < 0    z = -softplus(softplus(-x) + L').
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import in_eager_mode

__all__ = [
    "MANY",
    "exponential",
    "exponential_",
    "given_bit",
    "given_order",
    "gumbel",
    "logistic",
    "logistic_",
    "uniform",
    "won_by_the_untaken",
]

_CELLS = 2.0**24
MANY = 2**16  # from how many variates on 32 bits of each cost less than a double
EDGE = 2.0**-10  # how near to 0 and 1 the variates made of 32 bits are drawn anew


def uniform(
    shape: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """U ~ Uniform(0, 1) and its complement 1 - U, each to full relative precision.

    U = (n + f) / 2^24 with n uniform on 0, ..., 2^24 - 1 and f uniform on [0, 1).
    """
    cell = torch.rand(shape, dtype=dtype, device=device).mul(_CELLS).floor()
    place = torch.rand(shape, dtype=dtype, device=device)
    tiny = torch.finfo(dtype).tiny
    lower = (cell + place) / _CELLS
    upper = ((_CELLS - 1 - cell) + (1 - place)) / _CELLS
    return lower.clamp(min=tiny), upper.clamp(min=tiny)


def exponential(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """E ~ Exponential(1), never 0: -log(1 - U) from whichever end of U is the exact one."""
    if dtype != torch.float32 or device.type != "cpu":
        u, complement = uniform(shape, dtype=dtype, device=device)
        return -torch.where(u < 0.5, torch.log1p(-u.clamp(max=0.5)), complement.log())
    if math.prod(shape) >= MANY and in_eager_mode():
        return exponential_(torch.empty(shape, dtype=dtype, device=device))
    e = torch.rand(shape, dtype=torch.float64, device=device).neg_().log1p_().neg_()
    return e.to(dtype).clamp(min=torch.finfo(dtype).tiny)


def exponential_(out: Tensor) -> Tensor:
    """Fill a dense tensor of float32 on a CPU with Exponential(1) variates -log U, never 0."""
    lower, edge, near = _of_bits_(out)
    out.sub_(0.5).log1p_().neg_()
    return _put_(out, edge, torch.where(lower, -near.log(), -torch.log1p(-near)))


def gumbel(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """G = -log E ~ Gumbel(0, 1), the noise whose argmax on top of logits is a categorical draw."""
    return -exponential(shape, dtype=dtype, device=device).log()


def logistic(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """L = log U - log(1 - U) ~ Logistic(0, 1), the difference of two Gumbel variates."""
    if dtype != torch.float32 or device.type != "cpu":
        u, complement = uniform(shape, dtype=dtype, device=device)
        return u.log() - complement.log()
    if math.prod(shape) >= MANY and in_eager_mode():
        return logistic_(torch.empty(shape, dtype=dtype, device=device))
    u = torch.rand(shape, dtype=torch.float64, device=device).clamp(min=2.0**-54)
    return torch.logit(u).to(dtype)


def logistic_(out: Tensor) -> Tensor:
    """Fill a dense tensor of float32 on a CPU with Logistic(0, 1) variates."""
    lower, edge, near = _of_bits_(out)
    out.add_(0.5).logit_()
    at_edge = near.log() - torch.log1p(-near)
    return _put_(out, edge, torch.where(lower, at_edge, -at_edge))


def _of_bits_(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fill with U - 1/2 from 32 bits each, cheaper than `torch.rand`; and finer ones for the ends.

    Of U two parts in 2^10 are near to 0 or 1. The positions of those are a Bernoulli process, with
    gaps of geometric law; the others are uniform on the middle part, to a relative 2^-14 of the
    distance to either end.

    :returns: which of the near ones are near to 0, their positions, and the distance of each.
    """
    n, device = out.numel(), out.device
    flat = _flat(out)  # whose memory is the bits' too
    flat[: n - n % 2].view(torch.int64).random_(-(2**63), None)
    flat[n - n % 2 :].view(torch.int32).random_(-(2**31), None)
    flat.copy_(flat.view(torch.int32)).mul_((1 - 2 * EDGE) * 2.0**-32)
    edge = _successes(n, 2 * EDGE, device)
    near = torch.rand(edge.shape, dtype=torch.float64, device=device).mul_(EDGE)
    lower = torch.rand(edge.shape, device=device) < 0.5
    return lower, edge, near.clamp_(min=2.0**-100)


def _flat(out: Tensor) -> Tensor:
    """All elements of a dense tensor, in the order of its memory."""
    return out.as_strided((out.numel(),), (1,))


def _put_(out: Tensor, edge: Tensor, variates: Tensor) -> Tensor:
    _flat(out).index_copy_(0, edge, variates.to(out.dtype))
    return out


def _successes(n: int, chance: float, device: torch.device) -> Tensor:
    """Which of n Bernoulli trials succeed, by the gaps between them."""
    enough = int(n * chance + 10 * math.sqrt(n * chance)) + 10
    u = torch.rand(enough, dtype=torch.float64, device=device)
    gaps = u.neg_().log1p_().div_(math.log1p(-chance)).floor_().add_(1)
    at = gaps.cumsum_(0).sub_(1)
    count = int((at < n).sum())
    return at[:count].long() if count < enough else _successes(n, chance, device)


def won_by_the_untaken(perturbed: Tensor, logits: Tensor, untaken: Tensor) -> Tensor:
    """Perturbed logits given that their winner is untaken, from ones without that condition.

    The winner is the largest of the untaken in `perturbed`. Where nothing is taken they are
    returned as they are.

    :param perturbed: z = x + g, categories in the last dimension.
    :param logits: x, which broadcasts with z.
    :param untaken: a mask of the shape of z; of the untaken at least one has a finite logit.
    """
    possible = perturbed > -math.inf
    z = torch.where(possible, perturbed, 0.0)
    first = torch.where(untaken & possible, z, -math.inf).amax(-1, keepdim=True)  # -log M
    share = torch.where(untaken, logits, -math.inf).logsumexp(-1, keepdim=True)
    winner = first - share + logits.logsumexp(-1, keepdim=True)  # -log M'
    # log(e_j - M) = -z_j + log(1 - exp(z_j - first)) of the untaken, log(e_j) = -z_j of the taken
    behind = untaken & (z < first)
    lag = torch.where(behind, z - first, -1.0)
    log_wait = torch.where(behind, torch.log(-torch.expm1(lag)), 0.0) - z
    conditioned = -torch.logaddexp(log_wait, -winner)
    conditioned = torch.where(untaken & ~behind, winner, conditioned)
    conditioned = torch.where(untaken.all(-1, keepdim=True), z, conditioned)
    return torch.where(possible, conditioned, -math.inf)


@torch.no_grad()
def given_order(logits: Tensor, order: Tensor, draws: int) -> Tensor:
    """`draws` perturbed logits z = x + g given the first categories, over a new first dimension.

    :param logits: x, categories in the last dimension.
    :param order: the indices of the m largest z, in their order; their logits are finite.
    """
    g = gumbel((draws, *logits.shape), dtype=logits.dtype, device=logits.device)
    others = logits.scatter(-1, order, -math.inf)
    from_last = torch.cat([others.logsumexp(-1, True), logits.gather(-1, order).flip(-1)], -1)
    log_left = from_last.logcumsumexp(-1)[..., 1:].flip(-1)  # log Z_1, ..., log Z_m
    order = order.expand((draws, *order.shape))
    log_e = (-g.gather(-1, order) - log_left).logcumsumexp(-1)
    last = log_e[..., -1:]
    behind = -torch.logaddexp(last, -(logits + g))
    below = torch.nextafter(-last, torch.full_like(last, -math.inf))  # where the gap is lost
    return torch.minimum(behind, below).scatter(-1, order, -log_e)


@torch.no_grad()
def given_bit(logits: Tensor, bit: Tensor, draws: int) -> Tensor:
    """`draws` perturbed log-odds z = x + L given its sign, over a new first dimension.

    :param logits: x.
    :param bit: 1 where z >= 0, else 0; of the shape of x.
    """
    noise = logistic((draws, *logits.shape), dtype=logits.dtype, device=logits.device)
    sign = 2 * bit - 1
    return -sign * logsigmoid(logsigmoid(-sign * logits) - noise)
