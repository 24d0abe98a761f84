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

import torch
from torch import Tensor

from pyro_gumbel.links import Interval, Link, Simplex

__all__ = [
    "Estimator",
    "gumbel_softmax",
    "named",
    "reinmax",
    "straight_through",
    "straight_through_of",
]

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


def straight_through(
    logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
) -> Tensor:
    r"""The soft value of the logits without noise: S = softmax(x / tau).

    Backward: J(S) g / tau. At tau = 1 exact in expectation for every f linear in D. Bengio,
    Leonard and Courville, "Estimating or propagating gradients through stochastic neurons for
    conditional computation" (2013), https://arxiv.org/abs/1308.3432.

    :param logits: x.
    :param temperature: tau, broadcastable with x.
    :param perturbed: z = x + g; unused.
    :param hard: D; unused.
    :param link: the row's `Link`.
    """
    return link(logits, temperature)


def reinmax(
    logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
) -> Tensor:
    r"""Backward: 2 J((softmax(x / tau) + D) / 2) g - J(softmax(x)) g / 2.

    At tau = 1 exact in expectation for every f quadratic in D: Heun's method along each edge, where
    the straight-through estimator is Euler's. Liu, Dong, Liu, Yu and Gao, "Bridging discrete and
    backpropagation: straight-through and beyond" (2023), https://arxiv.org/abs/2304.08612. No
    gradient goes to the temperature. One bit, one of k, and orders row by row.

    :param logits: x.
    :param temperature: tau, broadcastable with x.
    :param perturbed: z = x + g; unused, D is all that counts.
    :param hard: D.
    :param link: the row's `Link`.
    :raises ValueError: for a subset, whose vertices the method does not know.
    """
    if not isinstance(link, (Interval, Simplex)):
        raise ValueError(
            f"reinmax: `link` must be the interval or the simplex, got {link!r}; write "
            'estimator="gumbel_softmax" for a subset'
        )
    x = torch.where(logits.isfinite(), logits, 0.0)
    step = x - x.detach()  # 0, with the gradient of x
    p = link(logits, torch.ones_like(temperature)).detach()
    middle = (link(logits, temperature).detach() + hard) / 2
    return 2 * _times_jacobian(middle, step, link) - _times_jacobian(p, step, link) / 2


def _times_jacobian(p: Tensor, u: Tensor, link: Link) -> Tensor:
    """J(p) u = p (u - <p, u>), for a bit p (1 - p) u."""
    return p * (1 - p) * u if isinstance(link, Interval) else p * (u - (p * u).sum(-1, True))


_NAMED: dict[str, Estimator] = {
    "gumbel_softmax": gumbel_softmax,
    "reinmax": reinmax,
    "straight_through": straight_through,
}


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
