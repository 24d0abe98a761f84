# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Surrogate gradients for hard samples.

An estimator is a pure function

    estimator(logits, temperature, perturbed, hard, link) -> surrogate

of the logits x, the temperature (broadcastable with x), the perturbed logits z = x + g that chose
the sample, the hard sample D itself, and the `Link` of its row. x, z, D and the surrogate have one
shape, that of the draw. The sample is D in the forward pass and the surrogate in the backward pass.
"""

from collections.abc import Callable

from torch import Tensor

from pyro_gumbel.links import Link

__all__ = ["Estimator", "gumbel_softmax", "named", "straight_through_of"]

Estimator = Callable[[Tensor, Tensor, Tensor, Tensor, Link], Tensor]


def gumbel_softmax(
    logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
) -> Tensor:
    r"""The soft value of the very perturbed logits that chose D: S = softmax(z / tau).

    Backward: J(S) g / tau with J(p) g = p (g - <p, g>), the straight-through Gumbel-softmax of
    Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax" (2017),
    https://arxiv.org/abs/1611.01144.

    :param logits: x; unused, z carries its gradient.
    :param temperature: tau, broadcastable with x.
    :param perturbed: z = x + g.
    :param hard: D; unused, z has chosen it.
    :param link: the row's `Link`.
    """
    return link(perturbed, temperature)


_NAMED: dict[str, Estimator] = {"gumbel_softmax": gumbel_softmax}


def named(estimator: str | Estimator) -> Estimator:
    """The estimator of that name, or the function itself.

    :raises ValueError: for an unknown name.
    :raises TypeError: for what is neither a name nor a function.
    """
    if callable(estimator):
        return estimator
    if not isinstance(estimator, str):
        raise TypeError(
            "`estimator` must be a name or a function (logits, temperature, perturbed, hard, "
            f"link) -> surrogate, got {type(estimator).__name__}; "
            'write estimator="gumbel_softmax"'
        )
    if estimator not in _NAMED:
        raise ValueError(
            f"`estimator` must be one of {sorted(_NAMED)} or a function (logits, temperature, "
            f'perturbed, hard, link) -> surrogate, got "{estimator}"; '
            'write estimator="gumbel_softmax"'
        )
    return _NAMED[estimator]


def straight_through_of(hard: Tensor, surrogate: Tensor) -> Tensor:
    """Exactly `hard` in the forward pass, `surrogate` in the backward pass."""
    if not isinstance(surrogate, Tensor):
        raise TypeError(
            f"`estimator` must return a tensor, got {type(surrogate).__name__}; "
            "write e.g. return link(perturbed, temperature)"
        )
    if surrogate.shape != hard.shape:
        raise ValueError(
            f"`estimator` must return a surrogate of the sample's shape {tuple(hard.shape)}, "
            f"got {tuple(surrogate.shape)}; write surrogate.expand(hard.shape)"
        )
    return hard + (surrogate - surrogate.detach())
