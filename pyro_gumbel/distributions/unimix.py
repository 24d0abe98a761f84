# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Logits of a categorical distribution that keep away from certainty."""

import math

import torch
from torch import Tensor

from pyro_gumbel._validation import as_float_tensor, read_number
from pyro_gumbel.links import simplex
from pyro_gumbel.ops.precision import cast

__all__ = ["unimix"]


def unimix(logits: Tensor, share: float = 0.01) -> Tensor:
    r"""The logits of a categorical distribution, mixed with the uniform one.

    .. math::

        \log p_i = \log \Bigl( (1 - \text{share}) \operatorname{softmax}(x)_i
            + \frac{\text{share}}{K} \Bigr),

    for the K categories with a finite logit. A category with the logit -inf stays impossible. So no
    possible category has a probability below share / K, and log probabilities and divergences are
    bounded.

    Hafner, Pasukonis, Ba and Lillicrap, "Mastering diverse domains through world models" (2023),
    https://arxiv.org/abs/2301.04104, mix 1 % of the uniform distribution into all categorical
    distributions of DreamerV3. Its latent variables are drawn with straight-through gradients, and
    the divergence between its posterior and its prior is exact::

        how = {"temperature": 1.0, "estimator": "straight_through"}
        posterior = CategoricalStraightThrough(logits=unimix(encoder(x)), **how)
        prior = CategoricalStraightThrough(logits=unimix(dynamics(state)), **how)
        z = posterior.rsample()
        loss = torch.distributions.kl_divergence(posterior, prior).sum() - ...

    Without a temperature and an estimator the gradient is of second order.

    >>> unimix(torch.tensor([5.0, 0.0, -torch.inf]), share=0.1).exp()
    tensor([0.9440, 0.0560, 0.0000])

    :param logits: x, the logits or log weights, with the categories in the last dimension.
    :param share: the share of the uniform distribution, a number from 0 to 1.
    :returns: normalised logits of the same shape and dtype.
    :raises TypeError: unless `logits` is a tensor of real numbers and `share` a number.
    :raises ValueError: unless `logits` has a dimension of categories and `share` is from 0 to 1.
    """
    given = as_float_tensor("unimix", "logits", logits)
    if not given.dim() or not given.shape[-1]:
        raise ValueError(
            "unimix: `logits` must have the categories in its last dimension, at least one, got "
            f"shape {tuple(given.shape)}; for a binary variable write "
            "torch.stack([torch.zeros_like(logits), logits], -1)"
        )
    share = read_number("unimix", "share", share, zero=True, example="0.01")
    if share > 1:
        raise ValueError(f"unimix: `share` must be from 0 to 1, got {share:g}; write share=0.01")
    x = cast(given, torch.promote_types(given.dtype, torch.float32))
    return cast(_mixed(x, share), given.dtype)


def _mixed(x: Tensor, share: float) -> Tensor:
    impossible = x.isneginf()
    k = (~impossible).sum(-1, keepdim=True)
    log_p = simplex.centred(x).log_softmax(-1).clamp(min=torch.finfo(x.dtype).min / 2)
    log_rest = math.log1p(-share) if share < 1 else -math.inf
    log_share = math.log(share) if share > 0 else -math.inf
    mixed = torch.logaddexp(log_p + log_rest, log_share - k.to(x.dtype).log())
    return torch.where(impossible, -math.inf, mixed)
