# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Kullback-Leibler divergences, registered for this package's types only.

Hard with hard, and hard with the plain discrete class of its row: the sum over outcomes, which
torch's own makes NaN in the gradient, or in the value, where a probability is 0.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical, register_kl

from pyro_gumbel.hard import BernoulliStraightThrough, CategoricalStraightThrough
from pyro_gumbel.rows import OneBit, OneOfK, Row

__all__ = ["kl_of_masses"]


def kl_of_masses(log_q: Tensor, log_p: Tensor) -> Tensor:
    """sum_i q_i (log q_i - log p_i) over the last dimension.

    An outcome that q excludes adds 0; one that only p excludes makes it infinite.
    """
    counts = ~log_q.isneginf()
    inside = counts & ~log_p.isneginf()
    ratio = torch.where(inside, log_q, 0.0) - torch.where(inside, log_p, 0.0)
    total = (torch.where(inside, log_q, 0.0).exp() * ratio).sum(-1)
    return torch.where((counts & ~inside).any(-1), torch.inf, total)


def _log_masses(law: Distribution) -> Tensor:
    """The log mass of each outcome over a last dimension, -inf where it is 0."""
    if isinstance(law, Row):
        return law._log_masses(law._x)
    row: type[Row] = OneBit
    plain: Any = law
    if isinstance(law, OneHotCategorical):
        row, plain = OneOfK, law._categorical
    # torch clamps the logits that it makes of probs to |log eps|; logits that were given and round
    # to a probability of 0 or 1 are farther out.
    clamped = plain.logits.abs() <= 0.3 - math.log(torch.finfo(plain.logits.dtype).eps)
    sure = clamped & ((plain.probs == 0) | (plain.probs == 1))
    return row._log_masses(torch.where(sure, row._location_of(plain.probs), plain.logits))


def _kl(q: Distribution, p: Distribution) -> Tensor:
    divergence = kl_of_masses(_log_masses(q), _log_masses(p))
    return divergence.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


for _hard, _plain in (
    (BernoulliStraightThrough, Bernoulli),
    (CategoricalStraightThrough, OneHotCategorical),
):
    register_kl(_hard, _hard)(_kl)
    register_kl(_hard, _plain)(_kl)
    register_kl(_plain, _hard)(_kl)
