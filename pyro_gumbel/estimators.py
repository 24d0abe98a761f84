# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Surrogate gradients for discrete samples.

A discrete sample has no gradient. An estimator returns a differentiable *surrogate* of the sample.
The sample is used in the forward pass, and the gradient of the surrogate in the backward pass.

An estimator is a pure function::

    estimator(logits, temperature, perturbed, hard, link) -> surrogate

============= ============ ========================================================================
argument      symbol       meaning
============= ============ ========================================================================
`logits`      :math:`x`    the logits: log-odds of Bernoulli variables, otherwise log weights of
                           categories in the last dimension
`temperature` :math:`\tau` a positive tensor that broadcasts with the logits
`perturbed`   :math:`z`    the logits plus the noise that chose the sample: logistic noise for
                           Bernoulli variables, otherwise Gumbel noise
`hard`        :math:`D`    the discrete sample: 0 or 1, a one-hot vector or an m-hot vector
`link`                     the function from perturbed logits and a temperature to relaxed values
============= ============ ========================================================================

The logits, the perturbed logits, the sample and the surrogate have the same shape, that of the
draw. The link is a `Link` of `pyro_gumbel.links`. Its value `link(z, temperature)` depends on the
kind of the sample:

* Bernoulli: :math:`\operatorname{sigmoid}(z / \tau)`;
* one-hot vectors: :math:`\operatorname{softmax}(z / \tau)`;
* m-hot vectors (subsets of size m): :math:`\operatorname{sigmoid}(z / \tau - c)`, with c such that
  the entries sum to m;
* rankings: the rows are one-hot vectors, each with the logits of the categories that the rows
  before it have taken at -inf.

The formulas below are for one-hot vectors. With :math:`p` a vector of probabilities and :math:`u`
the gradient of the loss in the sample, they use the product

.. math:: J(p)\, u = p \odot (u - \langle p, u \rangle),

where :math:`J(p)` is the Jacobian matrix of the softmax. For Bernoulli variables it is
:math:`J(p)\, u = p (1 - p) u`.

Where a surrogate is infinite or NaN the sample keeps its value, and no gradient passes. With
validation on that is an error, unless the logit is infinite.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_gumbel._tracing import ends
from pyro_gumbel._validation import read_count, read_number
from pyro_gumbel.links import Hypersimplex, Interval, Link, Simplex
from pyro_gumbel.ops.autograd import zero_with_gradient
from pyro_gumbel.ops.noise import given_bit, given_ranking
from pyro_gumbel.ops.second_order import with_bit_gradient, with_one_hot_gradient

__all__ = [
    "NAMES",
    "Estimator",
    "gapped",
    "gumbel_rao",
    "gumbel_softmax",
    "mean_relaxed",
    "named",
    "reinmax",
    "require_suited",
    "resolved",
    "second_order",
    "straight_through",
    "straight_through_of",
    "suited",
    "warn_of_temperature",
]

#: The type of an estimator.
Estimator = Callable[[Tensor, Tensor, Tensor, Tensor, Link], Tensor]


def gumbel_softmax(
    logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
) -> Tensor:
    r"""The relaxed value of the perturbed logits that chose the sample.

    The surrogate and the gradient that it passes to the logits are

    .. math:: S = \operatorname{softmax}(z / \tau), \qquad J(S)\, u / \tau.

    This is the straight-through Gumbel-softmax estimator of Jang, Gu and Poole, "Categorical
    reparameterization with Gumbel-softmax" (2017), https://arxiv.org/abs/1611.01144. A low
    temperature has little bias and much variance. It suits every kind of sample.

    :param logits: the logits x; unused, since z carries their gradient.
    :param temperature: the temperature tau, which broadcasts with x.
    :param perturbed: the perturbed logits z, of the shape of the sample.
    :param hard: the sample D; unused, since z has chosen it.
    :param link: the function from perturbed logits and temperature to relaxed values.
    """
    return link(perturbed, temperature)


def straight_through(
    logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
) -> Tensor:
    r"""The relaxed value of the logits without noise.

    The surrogate and the gradient that it passes to the logits are

    .. math:: S = \operatorname{softmax}(x / \tau), \qquad J(S)\, u / \tau.

    At a temperature of 1 it is unbiased for every function that is linear in D. Bengio, Leonard and
    Courville, "Estimating or propagating gradients through stochastic neurons for conditional
    computation" (2013), https://arxiv.org/abs/1308.3432. It suits every kind of sample.

    :param logits: the logits x, of the shape of the sample.
    :param temperature: the temperature tau, which broadcasts with x.
    :param perturbed: the perturbed logits z; unused.
    :param hard: the sample D; unused.
    :param link: the function from logits and temperature to relaxed values.
    """
    return link(logits, temperature)


def reinmax(
    logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
) -> Tensor:
    r"""A second-order version of the straight-through estimator.

    The gradient that it passes to the logits is

    .. math::

        2\, J\Bigl(\tfrac{1}{2} \bigl(\operatorname{softmax}(x / \tau) + D\bigr)\Bigr) u
            - \tfrac{1}{2}\, J(\operatorname{softmax}(x))\, u.

    At a temperature of 1 it is unbiased for every function that is quadratic in D. It approximates
    the difference of the loss between two outcomes by Heun's method; the straight-through estimator
    uses Euler's. Liu, Dong, Liu, Yu and Gao, "Bridging discrete and backpropagation:
    straight-through and beyond" (2023), https://arxiv.org/abs/2304.08612. No gradient goes to the
    temperature. It suits Bernoulli variables, one-hot vectors and the rows of rankings.

    :param logits: the logits x, of the shape of the sample.
    :param temperature: the temperature tau, which broadcasts with x.
    :param perturbed: the perturbed logits z; unused.
    :param hard: the sample D, of the shape of x.
    :param link: the function from logits and temperature to relaxed values.
    :raises ValueError: for subsets, for which the method is not defined.
    """
    _require_one_hot("reinmax", link)
    step = _zero_with_finite_gradient(logits)
    p = link(logits, torch.ones_like(temperature)).detach()
    middle = (link(logits, temperature).detach() + hard) / 2
    return 2 * _times_jacobian(middle, step, link) - _times_jacobian(p, step, link) / 2


def second_order(
    logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
) -> Tensor:
    r"""The estimator of the straight-through classes that are given no temperature.

    The gradient that it passes to the logits, with :math:`p = \operatorname{softmax}(x)`, is

    .. math::

        \tfrac{1}{2} \bigl( p \odot (u - \langle D, u \rangle)
            + D \, \langle D - p, u \rangle \bigr).

    For Bernoulli variables it is :math:`\tfrac{1}{2} |D - p| \, u`. Both are those of `reinmax` at
    a temperature of 1, and unbiased for every function that is quadratic in D. Liu, Dong, Liu, Yu
    and Gao, "Bridging discrete and backpropagation: straight-through and beyond" (2023),
    https://arxiv.org/abs/2304.08612.

    This function suits Bernoulli variables and one-hot vectors. The classes of subsets and rankings
    have a form of their own under the same name, `estimator="second_order"`, and counts have no
    other estimator. These forms need the mean, the variance or the log_prob of the distribution,
    and are derived in `pyro_gumbel.ops.second_order`.

    :param logits: the logits x, of the shape of the sample.
    :param temperature: unused.
    :param perturbed: the perturbed logits z; unused.
    :param hard: the sample D, of the shape of x.
    :param link: the function from perturbed logits and a temperature to relaxed values.
    :raises ValueError: for subsets.
    """
    _require_one_hot("second_order", link)
    attach = with_bit_gradient if isinstance(link, Interval) else with_one_hot_gradient
    return attach(hard, logits)


def _times_jacobian(p: Tensor, u: Tensor, link: Link) -> Tensor:
    """J(p) u = p (u - <p, u>); for Bernoulli variables p (1 - p) u."""
    return p * (1 - p) * u if isinstance(link, Interval) else p * (u - (p * u).sum(-1, True))


@dataclass(frozen=True)
class gumbel_rao:  # used as a function
    r"""The mean relaxed value over draws of the noise given the sample.

    `gumbel_rao(samples=10)` is an estimator. Its surrogate and the gradient that it passes to the
    logits are

    .. math::

        S = \frac{1}{n} \sum_{j=1}^n S_j, \qquad
        \frac{1}{n} \sum_{j=1}^n J(S_j)\, u / \tau, \qquad
        S_j = \operatorname{softmax}(z_j / \tau), \qquad
        z_j = x + g_j,

    where the n noises :math:`g_j` are drawn given the sample D and detached: the gradient flows
    through x alone. (For subsets they are drawn given the ranking in which the m categories of D
    were chosen.) In expectation the gradient is that of `gumbel_softmax`. Its variance is lower, in
    particular at low temperatures. Paulus, Maddison and Krause, "Rao-Blackwellizing the
    straight-through Gumbel-softmax gradient estimator" (2021), https://arxiv.org/abs/2010.04838. It
    suits every kind of sample.

    >>> CategoricalStraightThrough(0.1, logits=torch.zeros(3), estimator=gumbel_rao(samples=100))
    CategoricalStraightThrough(temperature: 0.1, logits: (3,), batch_shape: (), event_shape: (3,))

    :param samples: the number n of draws, an int of 1 or more. Time and memory are proportional to
        it; in the kernels of a GPU time alone.
    :raises TypeError: unless `samples` is a Python int.
    :raises ValueError: unless `samples` is 1 or more.
    """

    samples: int = 10

    def __post_init__(self) -> None:
        read_count("gumbel_rao", "samples", self.samples, 1, 10)

    def __call__(
        self, logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
    ) -> Tensor:
        x = logits.detach()
        if isinstance(link, (Simplex, Hypersimplex)):
            z = given_ranking(x, perturbed.topk(link.size, -1).indices, self.samples)
        else:
            z = given_bit(x, hard, self.samples)
        return mean_relaxed(logits, temperature, z, link)


def mean_relaxed(logits: Tensor, temperature: Tensor, z: Tensor, link: Link) -> Tensor:
    """The mean relaxed value of perturbed logits, over their first dimension.

    :param logits: x, which alone has a gradient, where it is finite.
    :param z: the perturbed logits, detached.
    """
    return link(z + _zero_with_finite_gradient(logits), temperature).mean(0)


@dataclass(frozen=True)
class gapped:  # used as a function
    r"""The relaxed value of logits that are moved until the sample wins by a gap.

    `gapped(gap=1.0)` is an estimator. Its surrogate and the gradient that it passes to the logits
    are

    .. math::

        S = \operatorname{softmax}\bigl((x + m_1 - m_2) / \tau\bigr), \qquad J(S)\, u / \tau

    with the moves

    .. math::

        m_1 = (\max_i x_i - x) \odot D, \qquad
        m_2 = \max(x - \max_i x_i + \text{gap}, \, 0) \odot (1 - D),

    which are detached. For Bernoulli variables

    .. math::

        S = \operatorname{sigmoid}(y / \tau), \qquad
        y = \begin{cases}
            \max(x, \text{gap}) & \text{where } D = 1, \\
            \min(x, -\text{gap}) & \text{where } D = 0.
        \end{cases}

    The moves do what the noise does in `gumbel_softmax`, but the only randomness is that of D. Fan,
    Chi, Rudnicky and Ramadge, "Training discrete deep generative models via gapped straight-through
    estimator" (2022), https://arxiv.org/abs/2206.07235. It suits Bernoulli variables, one-hot
    vectors and the rows of rankings.

    >>> BernoulliStraightThrough(0.7, 0.3, estimator=gapped(gap=2.0))
    BernoulliStraightThrough(temperature: 0.7, probs: (), batch_shape: (), event_shape: ())

    :param gap: the smallest distance of the winning logit from the others, a number of at least 0.
    :raises TypeError: unless `gap` is a number.
    :raises ValueError: unless `gap` is finite and at least 0; when it is called, for subsets.
    """

    gap: float = 1.0

    def __post_init__(self) -> None:
        gap = read_number("gapped", "gap", self.gap, zero=True)
        object.__setattr__(self, "gap", gap)  # a float, also from numpy

    def __call__(
        self, logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
    ) -> Tensor:
        _require_one_hot("gapped", link)
        x = logits.detach()
        if isinstance(link, Interval):
            moved = torch.where(hard > 0, x.clamp(min=self.gap), x.clamp(max=-self.gap))
        else:
            highest = x.amax(-1, keepdim=True)
            moved = torch.where(hard > 0, highest, torch.minimum(x, highest - self.gap))
        return link(moved + _zero_with_finite_gradient(logits), temperature)


def _is_one_hot(link: Link) -> bool:
    """Whether the samples of a link choose one outcome of two, or one of the categories."""
    return isinstance(link, (Interval, Simplex))


def _require_one_hot(name: str, link: Link) -> None:
    """Raise for subsets."""
    if not _is_one_hot(link):
        raise ValueError(
            f"{name}: `link` must be the interval or the simplex, got {link!r}; write "
            'estimator="gumbel_softmax" for a subset'
        )


def _zero_with_finite_gradient(logits: Tensor) -> Tensor:
    """0, with the gradient of the logits where they are finite."""
    return zero_with_gradient(torch.where(logits.isfinite(), logits, 0.0))


_NAMED: dict[str, Estimator] = {
    "gapped": gapped(),
    "gumbel_rao": gumbel_rao(),
    "gumbel_softmax": gumbel_softmax,
    "reinmax": reinmax,
    "second_order": second_order,
    "straight_through": straight_through,
}
#: The names of all estimators of this module.
NAMES = tuple(_NAMED)


def suited(link: Link) -> tuple[str, ...]:
    """The names of the estimators that are defined for the samples of a link.

    :param link: a `Link` of `pyro_gumbel.links`.
    """
    return tuple(name for name, estimator in _NAMED.items() if _is_suited(estimator, link))


def _is_suited(estimator: Estimator, link: Link) -> bool:
    """Whether an estimator is defined for the samples of a link.

    Functions of users always are, and `second_order`, of which each class has its form.
    """
    needs_one_hot = estimator is reinmax or type(estimator) is gapped
    return _is_one_hot(link) or not needs_one_hot


def require_suited(owner: str, estimator: Estimator, link: Link) -> None:
    """Raise for an estimator of this module that is not defined for the samples of a link.

    :param owner: the name of the class that the error speaks of.
    :param estimator: an estimator of this module, or any function.
    :param link: a `Link` of `pyro_gumbel.links`.
    :raises ValueError: unless it is suited.
    """
    if not _is_suited(estimator, link):
        raise ValueError(
            f"{owner}: `estimator` must support subsets: one of {list(suited(link))} or a function "
            f"of yours, got {getattr(estimator, '__name__', estimator)}; "
            'write estimator="gumbel_softmax"'
        )


def named(estimator: str | Estimator) -> Estimator:
    """The estimator of that name; a function is returned as it is.

    :param estimator: one of `NAMES`, or a function.
    :raises ValueError: for an unknown name.
    :raises TypeError: unless `estimator` is a name or a function.
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


def resolved(owner: str, temperature: object, estimator: str | Estimator | None) -> Estimator:
    """The estimator that a temperature and an estimator together mean.

    :param owner: the name of the class or function that the error speaks of.
    :param temperature: None, or anything that is a temperature.
    :param estimator: None for `second_order` without a temperature and `gumbel_softmax` with one.
    :raises ValueError: for "second_order" with a temperature, and another one without it; and as
        `named` does.
    :raises TypeError: as `named` does.
    """
    if estimator is None:
        return second_order if temperature is None else gumbel_softmax
    function = named(estimator)
    if (function is second_order) == (temperature is None):
        return function
    name = getattr(function, "__name__", repr(function))
    if temperature is None:
        raise ValueError(
            f"{owner}: `estimator` {name} must have a temperature, got None; write "
            "temperature=1.0, or leave out `estimator` for second_order, which has none"
        )
    raise ValueError(
        f"{owner}: `temperature` must be None for estimator={name}, which has none, got "
        f'{type(temperature).__name__}; leave it out, or write estimator="gumbel_softmax"'
    )


def warn_of_temperature(estimator: Estimator, temperature: Tensor | float) -> None:
    """Warn where an estimator does not do what it is for at a temperature.

    Of `reinmax` at any but 1, where it is biased for quadratic functions too; of `gapped` where the
    gap is more than 4 temperatures. There the surrogate is flat: the slope between the winner and
    another category is exp(-gap / tau) / tau at most.
    """
    if estimator is reinmax:
        least, most = ends(temperature)
        if least < 1 or most > 1:
            warnings.warn(_REINMAX_IS_BIASED, stacklevel=2)
    elif isinstance(estimator, gapped) and 4 * ends(temperature)[0] < estimator.gap:
        warnings.warn(_GAPPED_IS_FLAT, stacklevel=2)


_REINMAX_IS_BIASED = (
    "reinmax: expected `temperature` 1, where it is unbiased for quadratic functions, got another "
    "one, where its bias can be large; write temperature=1.0, or leave out `temperature` and "
    "`estimator` for second_order, which is the same"
)
_GAPPED_IS_FLAT = (
    "gapped: expected a `gap` of at most 4 temperatures, got a larger one, so that almost no "
    "gradient passes; write temperature=gap / 4 or more"
)


def straight_through_of(hard: Tensor, surrogate: Tensor) -> Tensor:
    """A tensor with the value of the sample and the gradient of the surrogate.

    Where the surrogate is infinite or NaN no gradient passes.

    :param hard: the sample.
    :param surrogate: the surrogate, of the same shape.
    :raises TypeError: unless the surrogate is a tensor.
    :raises ValueError: unless it has the shape of the sample.
    """
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
    return hard + zero_with_gradient(surrogate).nan_to_num(nan=0.0)
