# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Surrogate gradients for hard samples.

An estimator is a pure function

    estimator(logits, temperature, perturbed, hard, link) -> surrogate

of the logits x, the temperature (broadcastable with x), the perturbed logits z = x + g that chose
the sample, the hard sample D itself, and the `Link` of its row. x, z, D and the surrogate have one
shape, that of the draw. The sample is D in the forward pass and the surrogate in the backward pass.
Where a surrogate is infinite or NaN the sample is still D, and no gradient passes there; with
validation on that is an error, unless the logit is infinite.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_gumbel._validation import read_count, read_number
from pyro_gumbel.links import Hypersimplex, Interval, Link, Simplex
from pyro_gumbel.ops.noise import given_bit, given_order

__all__ = [
    "NAMES",
    "OF_SUBSETS",
    "Estimator",
    "gapped",
    "gumbel_rao",
    "gumbel_softmax",
    "named",
    "reinmax",
    "require_suited",
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
    _require_one_of_few("reinmax", link)
    step = _step(logits)
    p = link(logits, torch.ones_like(temperature)).detach()
    middle = (link(logits, temperature).detach() + hard) / 2
    return 2 * _times_jacobian(middle, step, link) - _times_jacobian(p, step, link) / 2


def _times_jacobian(p: Tensor, u: Tensor, link: Link) -> Tensor:
    """J(p) u = p (u - <p, u>), for a bit p (1 - p) u."""
    return p * (1 - p) * u if isinstance(link, Interval) else p * (u - (p * u).sum(-1, True))


@dataclass(frozen=True)
class gumbel_rao:  # used as a function
    r"""The mean of S = softmax(z / tau) over draws of z given D: `gumbel_rao(samples=10)`.

    Backward: the mean of J(S) g / tau, which no gradient enters through the draws of z but for
    that of x in z = x + g. In expectation it is that of `gumbel_softmax`, and its variance is
    lower, the more so the lower tau. Paulus, Maddison and Krause, "Rao-Blackwellizing the
    straight-through Gumbel-softmax gradient estimator" (2021), https://arxiv.org/abs/2010.04838.
    Of a subset z is drawn given the order in which D was chosen. `pyro_gumbel.ops.noise` derives
    the draws.

    >>> CategoricalStraightThrough(0.1, logits=torch.zeros(3), estimator=gumbel_rao(samples=100))
    CategoricalStraightThrough(temperature: 0.1, logits: (3,), batch_shape: (), event_shape: (3,))

    :param samples: how many draws; time and memory grow in proportion.
    :raises TypeError: unless `samples` is a Python int.
    :raises ValueError: unless it is 1 or more.
    """

    samples: int = 10

    def __post_init__(self) -> None:
        read_count("gumbel_rao", "samples", self.samples, 1, 10)

    def __call__(
        self, logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
    ) -> Tensor:
        x = logits.detach()
        if isinstance(link, (Simplex, Hypersimplex)):
            z = given_order(x, perturbed.topk(link.size, -1).indices, self.samples)
        else:
            z = given_bit(x, hard, self.samples)
        return link(z + _step(logits), temperature).mean(0)


@dataclass(frozen=True)
class gapped:  # used as a function
    r"""The soft value of logits that are moved until D wins by a gap: `gapped(gap=1.0)`.

    Backward: J(S) g / tau, S = softmax((x + m1 - m2) / tau) with m1 = (max x - x) D and
    m2 = relu(x - max x + gap) (1 - D) held fixed; for a bit S = sigmoid(d / tau), d = max(x, gap)
    where D = 1 and min(x, -gap) where D = 0. What noise does in `gumbel_softmax`, without noise but
    that of D. Fan, Chi, Rudnicky and Ramadge, "Training discrete deep generative models via gapped
    straight-through estimator" (2022), https://arxiv.org/abs/2206.07235. One bit, one of k, and
    orders row by row.

    >>> BernoulliStraightThrough(0.7, 0.3, estimator=gapped(gap=2.0))
    BernoulliStraightThrough(temperature: 0.7, probs: (), batch_shape: (), event_shape: ())

    :param gap: the least distance of the winning logit from the others.
    :raises TypeError: unless `gap` is a Python number.
    :raises ValueError: unless it is at least 0 and finite; by the estimator, for a subset.
    """

    gap: float = 1.0

    def __post_init__(self) -> None:
        gap = read_number("gapped", "gap", self.gap, zero=True)
        object.__setattr__(self, "gap", gap)  # of numpy, or a fraction: now a float

    def __call__(
        self, logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
    ) -> Tensor:
        _require_one_of_few("gapped", link)
        x = logits.detach()
        if isinstance(link, Interval):
            moved = torch.where(hard > 0, x.clamp(min=self.gap), x.clamp(max=-self.gap))
        else:
            highest = x.amax(-1, keepdim=True)
            moved = torch.where(hard > 0, highest, torch.minimum(x, highest - self.gap))
        return link(moved + _step(logits), temperature)


def _require_one_of_few(name: str, link: Link) -> None:
    """Raise for a subset."""
    if not isinstance(link, (Interval, Simplex)):
        raise ValueError(
            f"{name}: `link` must be the interval or the simplex, got {link!r}; write "
            'estimator="gumbel_softmax" for a subset'
        )


def require_suited(owner: str, estimator: Estimator, link: Link) -> None:
    """Raise for an estimator of this module that does not know the values of the link."""
    if isinstance(link, Hypersimplex) and (estimator is reinmax or type(estimator) is gapped):
        raise ValueError(
            f"{owner}: `estimator` must be one that knows subsets, one of {list(OF_SUBSETS)} or a "
            f"function of yours, got {getattr(estimator, '__name__', estimator)}; "
            'write estimator="gumbel_softmax"'
        )


def _step(logits: Tensor) -> Tensor:
    """0, with the gradient of x where it is finite."""
    x = torch.where(logits.isfinite(), logits, 0.0)
    return x - x.detach()


_NAMED: dict[str, Estimator] = {
    "gapped": gapped(),
    "gumbel_rao": gumbel_rao(),
    "gumbel_softmax": gumbel_softmax,
    "reinmax": reinmax,
    "straight_through": straight_through,
}
NAMES = tuple(_NAMED)
OF_SUBSETS = ("gumbel_rao", "gumbel_softmax", "straight_through")


def named(estimator: str | Estimator) -> Estimator:
    """The estimator of that name, or the function itself.

    :raises ValueError: for an unknown name.
    :raises TypeError: for what is neither a name nor a function.
    """
    if isinstance(estimator, type):
        raise TypeError(
            f"`estimator` must be a name or a function, got the class {estimator.__name__}; write "
            f"estimator={estimator.__name__}()"
        )
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
            f"`estimator` must be one of {list(NAMES)} or a function (logits, temperature, "
            f'perturbed, hard, link) -> surrogate, got "{estimator}"; '
            'write estimator="gumbel_softmax"'
        )
    return _NAMED[estimator]


def straight_through_of(hard: Tensor, surrogate: Tensor) -> Tensor:
    """Exactly `hard` in the forward pass, `surrogate` in the backward pass where it is finite."""
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
    return hard + (surrogate - surrogate.detach()).nan_to_num(nan=0.0)
