# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Gumbel and logistic noise, accurate in both tails; and noise given which categories won.

**Accuracy in the tails.** In float32 `torch.rand` returns multiples of :math:`2^{-24}`. It is 0
once in 17 million draws, and its distance to 1 is as coarse. A Gumbel variate
:math:`-\log(-\log U)` of such a U is infinite once in 17 million draws. A category that is less
likely than 6e-8 either never wins or wins far too often. Here a second variate fills the cell
that the first one chose. So both U and 1 - U are exact to their last digit, down to
:math:`2^{-48}`; what lies below is clamped to the smallest normal number.

On a CPU float32 noise is made in a faster way. A few variates are computed from the 53 bits of a
double. Many at once are computed from 32 random bits each, and those near 0 or 1 are drawn anew.

**Symbols.** :math:`x` are the logits, :math:`g_i` independent Gumbel(0, 1) variates and
:math:`z = x + g` the perturbed logits. The waiting times :math:`e_i = e^{-z_i}` are independent
exponential variates with the rates :math:`e^{x_i}`. The largest z is the smallest waiting time.

**Noise given that the winner is one of the untaken categories.** One could draw z again until the
winner is a category that is not yet taken, but the number of draws would have no bound. The same
distribution follows without a loop. The smallest waiting time is exponential with the rate
:math:`Z = \sum_j e^{x_j}`, and independent of which category it belongs to. Let M be the smallest
waiting time of the untaken categories. It is exponential with the rate
:math:`Z_R = \sum_{j\ \text{untaken}} e^{x_j}`. Hence :math:`M' = M Z_R / Z` has the distribution
of the smallest of all. The untaken categories keep their delays after the winner. The taken ones
are memoryless: their waiting times start anew at M'. So

.. math::

    z_j = \begin{cases}
        -\log(e_j - M + M') & \text{if } j \text{ is untaken,} \\
        -\log(e_j + M') & \text{if } j \text{ is taken.}
    \end{cases}

**Noise given the ranking of the winners.** Let (1), ..., (m) be the first m categories of the
ranking, and :math:`Z_j` the sum of :math:`e^{x_i}` over all categories except (1), ..., (j - 1).
Given the ranking, the gaps between the first waiting times are independent. With independent
Exponential(1) variates :math:`E_i`,

.. math::

    e_{(1)} = \frac{E_{(1)}}{Z_1}, \qquad
    e_{(j)} = e_{(j-1)} + \frac{E_{(j)}}{Z_j}, \qquad
    e_i = e_{(m)} + E_i e^{-x_i} \text{ for the others,}

because the others are memoryless and start anew at :math:`e_{(m)}`. For m = 1 these are the
conditional Gumbel variates of Maddison, Tarlow and Minka, "A* sampling" (2014),
https://arxiv.org/abs/1411.0030.

**Logistic noise given the binary outcome.** Let z = x + L with a logistic variate L. Given
:math:`z \ge 0` the distribution function of z is
:math:`1 - \operatorname{sigmoid}(x - z) / \operatorname{sigmoid}(x)`. Its inverse at a uniform
variate is, with another logistic variate L',

.. math::

    z &= \operatorname{softplus}(\operatorname{softplus}(x) + L')
        \quad \text{given } z \ge 0, \\
    z &= -\operatorname{softplus}(\operatorname{softplus}(-x) + L')
        \quad \text{given } z < 0.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import CPU, in_eager_mode

__all__ = [
    "MANY",
    "exponential",
    "exponential_",
    "given_bit",
    "given_ranking",
    "given_untaken_winner",
    "gumbel",
    "log_exponential",
    "logistic",
    "logistic_",
    "perturbed_given_bit",
    "perturbed_given_ranking",
    "uniform",
]

MANY = 2**16  # from this number of variates on, 32 bits each are faster than doubles
EDGE = 2.0**-10  # variates made of 32 bits are drawn anew within this distance of 0 and of 1
_CELLS = 2.0**24


def uniform(
    shape: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    r"""U ~ Uniform(0, 1) and its complement 1 - U, each to full relative precision.

    .. math:: U = (n + f) / 2^{24}

    with n uniform on 0, ..., 2^24 - 1 and f uniform on [0, 1).

    :param shape: the shape of both.
    :param dtype: their floating-point dtype.
    :param device: their device.
    """
    cell = torch.rand(shape, dtype=dtype, device=device).mul(_CELLS).floor()
    place = torch.rand(shape, dtype=dtype, device=device)
    tiny = torch.finfo(dtype).tiny
    lower = (cell + place) / _CELLS
    upper = ((_CELLS - 1 - cell) + (1 - place)) / _CELLS
    return lower.clamp(min=tiny), upper.clamp(min=tiny)


def exponential(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """E ~ Exponential(1), never 0: -log U, exact at both ends."""
    if dtype != torch.float32 or device != CPU:
        u, complement = uniform(shape, dtype=dtype, device=device)
        return -torch.where(u < 0.5, torch.log1p(-u.clamp(max=0.5)), complement.log())
    if math.prod(shape) >= MANY and in_eager_mode():
        return exponential_(torch.empty(shape, dtype=dtype, device=device))
    return _few_uniform(shape, device).log_().neg_().to(dtype)


def log_exponential(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """log E with E ~ Exponential(1); its negative is a Gumbel variate."""
    if dtype != torch.float32 or device != CPU or math.prod(shape) >= MANY:
        return exponential(shape, dtype=dtype, device=device).log_()
    return _few_uniform(shape, device).log_().neg_().log_().to(dtype)


def exponential_(out: Tensor) -> Tensor:
    """Fill a dense float32 tensor on a CPU with Exponential(1) variates -log U, never 0."""
    lower, edge, near = _fill_from_bits_(out)
    out.sub_(0.5).log1p_().neg_()
    return _put_(out, edge, torch.where(lower, -near.log(), -torch.log1p(-near)))


def gumbel(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """G = -log E ~ Gumbel(0, 1): the argmax of logits + G is a categorical draw."""
    return -log_exponential(shape, dtype=dtype, device=device)


def logistic(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """L = log U - log(1 - U) ~ Logistic(0, 1), the difference of two Gumbel variates."""
    if dtype != torch.float32 or device != CPU:
        u, complement = uniform(shape, dtype=dtype, device=device)
        return u.log() - complement.log()
    if math.prod(shape) >= MANY and in_eager_mode():
        return logistic_(torch.empty(shape, dtype=dtype, device=device))
    return _few_uniform(shape, device).logit_().to(dtype)


def _few_uniform(shape: Sequence[int], device: torch.device) -> Tensor:
    """U ~ Uniform(0, 1) as doubles, whose 53 bits are enough for float32."""
    # torch reads a tuple faster than a torch.Size.
    return torch.rand(tuple(shape), dtype=torch.float64, device=device).clamp_min_(2.0**-54)


def logistic_(out: Tensor) -> Tensor:
    """Fill a dense float32 tensor on a CPU with Logistic(0, 1) variates."""
    lower, edge, near = _fill_from_bits_(out)
    out.add_(0.5).logit_()
    at_edge = near.log() - torch.log1p(-near)
    return _put_(out, edge, torch.where(lower, at_edge, -at_edge))


def _fill_from_bits_(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fill with U - 1/2 from 32 random bits each, and draw those near 0 and 1 with more bits.

    This is faster than `torch.rand`. A variate U is within `EDGE` of 0 or 1 with the probability
    2 `EDGE`. Where such variates are is a Bernoulli process, whose gaps are geometric variates. All
    others are uniform on the middle part, to a relative 2^-14 of the distance to either end.

    :returns: for the variates near 0 or 1: whether each is near 0, its position in memory, and
        its distance from that end.
    """
    n, device = out.numel(), out.device
    flat = _flat(out)  # the random bits are written to the same memory
    flat[: n - n % 2].view(torch.int64).random_(-(2**63), None)
    flat[n - n % 2 :].view(torch.int32).random_(-(2**31), None)
    flat.copy_(flat.view(torch.int32)).mul_((1 - 2 * EDGE) * 2.0**-32)
    edge = _successes(n, 2 * EDGE, device)
    near = torch.rand(edge.shape, dtype=torch.float64, device=device).mul_(EDGE)
    lower = torch.rand(edge.shape, device=device) < 0.5
    return lower, edge, near.clamp_(min=2.0**-100)


def _flat(out: Tensor) -> Tensor:
    """All elements of a dense tensor, in their order in memory."""
    return out.as_strided((out.numel(),), (1,))


def _put_(out: Tensor, edge: Tensor, variates: Tensor) -> Tensor:
    """Write the variates to the positions `edge` in memory."""
    _flat(out).index_copy_(0, edge, variates.to(out.dtype))
    return out


def _successes(n: int, chance: float, device: torch.device) -> Tensor:
    """The indices of the successes in n Bernoulli trials, drawn by the gaps between them."""
    enough = int(n * chance + 10 * math.sqrt(n * chance)) + 10
    u = torch.rand(enough, dtype=torch.float64, device=device)
    gaps = u.neg_().log1p_().div_(math.log1p(-chance)).floor_().add_(1)
    at = gaps.cumsum_(0).sub_(1)
    count = int((at < n).sum())
    return at[:count].long() if count < enough else _successes(n, chance, device)


def given_untaken_winner(perturbed: Tensor, logits: Tensor, untaken: Tensor) -> Tensor:
    """Turn perturbed logits into ones given that the winner is an untaken category.

    The winner is the largest entry of `perturbed` among the untaken categories. Rows in which
    nothing is taken are returned unchanged.

    :param perturbed: z = x + g without that condition, categories in the last dimension.
    :param logits: x, which broadcasts with z.
    :param untaken: a mask of the shape of z. At least one untaken category has a finite logit.
    """
    possible = perturbed > -math.inf
    z = torch.where(possible, perturbed, 0.0)
    first = torch.where(untaken & possible, z, -math.inf).amax(-1, keepdim=True)  # -log M
    share = torch.where(untaken, logits, -math.inf).logsumexp(-1, keepdim=True)
    winner = first - share + logits.logsumexp(-1, keepdim=True)  # -log M'
    # untaken: log(e_j - M) = -z_j + log(1 - exp(z_j - first)); taken: log(e_j) = -z_j
    behind = untaken & (z < first)
    lag = torch.where(behind, z - first, -1.0)
    log_wait = torch.where(behind, torch.log(-torch.expm1(lag)), 0.0) - z
    conditioned = -torch.logaddexp(log_wait, -winner)
    conditioned = torch.where(untaken & ~behind, winner, conditioned)
    conditioned = torch.where(untaken.all(-1, keepdim=True), z, conditioned)
    return torch.where(possible, conditioned, -math.inf)


@torch.no_grad()
def given_ranking(logits: Tensor, ranking: Tensor, draws: int) -> Tensor:
    """Draw perturbed logits z = x + g given the ranking of the m largest.

    :param logits: x, categories in the last dimension.
    :param ranking: the indices of the m largest z, the largest first; their logits are finite.
    :param draws: how many to draw, over a new first dimension.
    """
    g = gumbel((draws, *logits.shape), dtype=logits.dtype, device=logits.device)
    return perturbed_given_ranking(logits, ranking, g)


@torch.no_grad()
def perturbed_given_ranking(logits: Tensor, ranking: Tensor, g: Tensor) -> Tensor:
    """The z of `given_ranking` that Gumbel variates g give, one for each draw and category."""
    others = logits.scatter(-1, ranking, -math.inf)
    from_last = torch.cat([others.logsumexp(-1, True), logits.gather(-1, ranking).flip(-1)], -1)
    log_left = from_last.logcumsumexp(-1)[..., 1:].flip(-1)  # log Z_1, ..., log Z_m
    ranking = ranking.expand((*g.shape[:-1], ranking.shape[-1]))
    log_e = (-g.gather(-1, ranking) - log_left).logcumsumexp(-1)
    last = log_e[..., -1:]
    behind = -torch.logaddexp(last, -(logits + g))
    below = torch.nextafter(-last, torch.full_like(last, -math.inf))  # if the gap is rounded away
    return torch.minimum(behind, below).scatter(-1, ranking, -log_e)


@torch.no_grad()
def given_bit(logits: Tensor, bit: Tensor, draws: int) -> Tensor:
    """Draw perturbed log-odds z = x + L given their signs.

    :param logits: x.
    :param bit: 1 where z >= 0, else 0; of the shape of x.
    :param draws: how many to draw, over a new first dimension.
    """
    noise = logistic((draws, *logits.shape), dtype=logits.dtype, device=logits.device)
    return perturbed_given_bit(logits, bit, noise)


@torch.no_grad()
def perturbed_given_bit(logits: Tensor, bit: Tensor, noise: Tensor) -> Tensor:
    """The z of `given_bit` that logistic variates give, one for each draw and bit."""
    sign = 2 * bit - 1
    return -sign * logsigmoid(logsigmoid(-sign * logits) - noise)
