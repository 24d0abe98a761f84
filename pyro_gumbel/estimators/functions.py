# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The estimators: pure functions, as `pyro_gumbel.estimators` describes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import known
from pyro_gumbel._validation import read_count, read_number
from pyro_gumbel.links import Hypersimplex, Interval, Link, Simplex
from pyro_gumbel.ops.autograd import zero_with_gradient
from pyro_gumbel.ops.minimum_variance import minimum_variance_of_bit, minimum_variance_of_one_hot
from pyro_gumbel.ops.noise import given_bit, given_ranking
from pyro_gumbel.ops.second_order import with_bit_gradient, with_one_hot_gradient

__all__ = [
    "Estimator",
    "gapped",
    "gumbel_rao",
    "gumbel_softmax",
    "is_one_hot",
    "mean_relaxed",
    "mve",
    "reinmax",
    "reinmax_rao",
    "require_one_hot",
    "second_order",
    "straight_through",
    "third_order",
]

#: The type of an estimator.
Estimator = Callable[[Tensor, Tensor, Tensor, Tensor, Link], Tensor]

_Tau = float | Callable[[], float | Tensor]  # a parameter of an estimator


def gumbel_softmax(
    logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
) -> Tensor:
    r"""The relaxed value of the perturbed logits that chose the sample.

    The surrogate and the gradient that it passes to the logits are

    .. math:: S = \operatorname{softmax}(z / \tau), \qquad J(S)\, u / \tau.

    This is the straight-through Gumbel-softmax estimator of Jang, Gu and Poole, "Categorical
    reparameterization with Gumbel-softmax" (2017), https://arxiv.org/abs/1611.01144. A low
    temperature has little bias and much variance. It suits every kind of sample.

    >>> d = CategoricalStraightThrough(0.5, logits=torch.zeros(3), estimator="gumbel_softmax")
    >>> d.rsample().sum()
    tensor(1.)

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

    >>> d = CategoricalStraightThrough(1.0, logits=torch.zeros(3), estimator="straight_through")
    >>> d.rsample().sum()
    tensor(1.)

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

    >>> d = CategoricalStraightThrough(1.0, logits=torch.zeros(3), estimator="reinmax")
    >>> d.rsample().sum()
    tensor(1.)

    :param logits: the logits x, of the shape of the sample.
    :param temperature: the temperature tau, which broadcasts with x.
    :param perturbed: the perturbed logits z; unused.
    :param hard: the sample D, of the shape of x.
    :param link: the function from logits and temperature to relaxed values.
    :raises ValueError: for subsets, for which the method is not defined.
    """
    require_one_hot("reinmax", link)
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
    have a form of their own under the same name, `estimator="second_order"`, and so have counts.
    These forms need the mean, the variance or the log_prob of the distribution,
    and are derived in `pyro_gumbel.ops.second_order`.

    :param logits: the logits x, of the shape of the sample.
    :param temperature: unused.
    :param perturbed: the perturbed logits z; unused.
    :param hard: the sample D, of the shape of x.
    :param link: the function from perturbed logits and a temperature to relaxed values.
    :raises ValueError: for subsets.
    """
    require_one_hot("second_order", link)
    attach = with_bit_gradient if isinstance(link, Interval) else with_one_hot_gradient
    return attach(hard, logits)


def third_order(
    logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
) -> Tensor:
    r"""The estimator of counts that is unbiased for cubic losses. It suits no other samples.

    A count D with mean :math:`\mu`, variance :math:`V = \mu + a \mu^2` and a fixed number a passes
    back

    .. math::

        \Bigl( \mu' + \frac{V'}{2 V} (D - \mu) - e \, \mu' \Bigr) u, \qquad
        e = \frac{1}{12 V^2} \Bigl( \frac{D (D - 1)}{1 + a} - 2 \mu D + \mu^2 \Bigr),

    where primes are derivatives in a parameter. Without e this is second order. Of all weights
    w(D) u that are unbiased for cubic losses these have the least norm: He and Wu (2026), third
    order. Ask for them by name, in `relax`, `relaxed` or `AutoRelaxed`:

    >>> relax(pyro.distributions.Poisson(3.0), estimator="third_order")
    PoissonStraightThrough(estimator: third_order, rate: 3.0)

    Poisson, binomial, negative binomial and geometric counts have it, and beta-binomial and
    gamma-Poisson ones by their binomial or Poisson count. A single trial keeps second order. The
    formulas are derived in `pyro_gumbel.ops.third_order`. This function stands for the name, and
    does not compute them.

    :param logits: unused.
    :param temperature: unused.
    :param perturbed: unused.
    :param hard: unused.
    :param link: unused.
    :raises ValueError: whenever it is called.
    """
    raise ValueError(
        "third_order: expected a count, which has this estimator by its moments, got samples of a "
        'link; write estimator="second_order"'
    )


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
        require_one_hot("gapped", link)
        x = logits.detach()
        if isinstance(link, Interval):
            moved = torch.where(hard > 0, x.clamp(min=self.gap), x.clamp(max=-self.gap))
        else:
            highest = x.amax(-1, keepdim=True)
            moved = torch.where(hard > 0, highest, torch.minimum(x, highest - self.gap))
        return link(moved + _zero_with_finite_gradient(logits), temperature)


@dataclass(frozen=True)
class mve:  # used as a function
    r"""The estimator of least variance at a limited bias for quadratic losses.

    `mve(tau=1e3)` is an estimator of distributions without a temperature. Of all estimates
    :math:`J(p)\, M_i u`, with :math:`p = \operatorname{softmax}(x)` and one K x K matrix
    :math:`M_i` for each category i, it is the one that is unbiased for linear losses and has the
    least

    .. math::

        \sum_i p_i \lVert M_i \rVert^2
            + \frac{\tau}{2} \sum_k \bigl\lVert S^{(k)} - e_k e_k^\top \bigr\rVert^2,
        \qquad S^{(k)}_{ij} = p_i (M_i)_{kj} + p_j (M_j)_{ki}.

    The first sum is the mean square of :math:`M_i u` if the entries of u are independent and
    standard normal. The second sum is 0 where the estimate is unbiased for every quadratic loss. At
    tau = 0 it is `straight_through` at a temperature of 1. As tau grows, the bias for quadratic
    losses falls like 1 / tau, and the variance rises to the least that is possible without this
    bias. For Bernoulli variables the gradient is

    .. math:: p (1 - p) \, \frac{1 + 2 \tau |D - p|}{1 + 4 \tau p (1 - p)} \, u,

    which goes from `straight_through` to `reinmax`, both at a temperature of 1. The authors raise
    tau from 160 to 100,000 in the course of training, as a schedule does:
    `mve(tau=GeometricTemperature(160, 1e5, num_steps=10_000))`, with a call of `step` after each
    update.

    Hooper and Shekhovtsov, "Generalized and optimal straight-through estimators" (2026),
    https://openreview.net/forum?id=5LZQfHUVER. `pyro_gumbel.ops.minimum_variance` derives the
    formula. It suits Bernoulli variables, one-hot vectors and the rows of rankings.

    Of K categories each draw takes one Cholesky factorisation of a K x K matrix. So its time is
    proportional to :math:`K^3`. Its memory is about 5 :math:`K^2` numbers a draw, of which
    :math:`K^2` are kept until the backward pass. In float32 a tau above 1e7 is computed in float64.

    >>> CategoricalStraightThrough(logits=torch.zeros(3), estimator=mve(tau=1e5)).estimator
    mve(tau=100000.0)

    :param tau: the weight of the bias, a number of at least 0; or a function without arguments that
        returns one, such as a temperature schedule, which is called for each draw. It gets no
        gradient.
    :raises TypeError: unless `tau` is a number or a function.
    :raises ValueError: unless `tau` is finite and at least 0; when it is called, for subsets.
    """

    tau: _Tau = 1e3
    takes_temperature: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", _read_tau("mve", self.tau, zero=True))

    def __call__(
        self, logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
    ) -> Tensor:
        require_one_hot("mve", link)
        tau = _current_tau("mve", self.tau, zero=True)
        if isinstance(link, Interval):
            return minimum_variance_of_bit(hard, logits, tau)
        return minimum_variance_of_one_hot(hard, logits, tau)


@dataclass(frozen=True)
class reinmax_rao:  # used as a function
    r"""A version of `reinmax` that averages over noise given the sample.

    `reinmax_rao(samples=32, tau=0.7)` is an estimator of distributions without a temperature. The
    gradient that it passes to the logits is, with :math:`p = \operatorname{softmax}(x)`,

    .. math::

        \frac{2}{n} \sum_{j=1}^n J(S_j)\, u / \tau - \tfrac{1}{2}\, J(p)\, u, \qquad
        S_j = \operatorname{softmax}(z_j / \tau), \qquad
        z_j = \log \tfrac{1}{2} (p + D) + g_j,

    where the n Gumbel noises :math:`g_j` are drawn given that the largest entry of :math:`z_j` is
    that of the sample D, and detached. The first term is `gumbel_rao` at the midpoint that
    `reinmax` uses. Its mean is that of one draw, and its variance falls with their number. Unlike
    `reinmax` it is biased for quadratic losses.

    Wang and Bui, "Beyond ReinMax: low-variance gradient estimators for discrete latent variables"
    (2026), https://arxiv.org/abs/2603.08257. It suits Bernoulli variables, one-hot vectors and the
    rows of rankings.

    >>> CategoricalStraightThrough(logits=torch.zeros(3), estimator=reinmax_rao(100)).estimator
    reinmax_rao(samples=100, tau=0.7)

    :param samples: the number n of draws, an int of 1 or more. Time and memory are proportional to
        it.
    :param tau: the temperature of the draws, a positive number; or a function without arguments
        that returns one, such as a temperature schedule, which is called for each draw. It gets no
        gradient.
    :raises TypeError: unless `samples` is a Python int and `tau` a number or a function.
    :raises ValueError: unless `samples` is 1 or more, and `tau` positive and finite; when it is
        called, for subsets.
    """

    samples: int = 32
    tau: _Tau = 0.7
    takes_temperature: ClassVar[bool] = False

    def __post_init__(self) -> None:
        read_count("reinmax_rao", "samples", self.samples, 1, 32)
        object.__setattr__(self, "tau", _read_tau("reinmax_rao", self.tau))

    def __call__(
        self, logits: Tensor, temperature: Tensor, perturbed: Tensor, hard: Tensor, link: Link
    ) -> Tensor:
        require_one_hot("reinmax_rao", link)
        x = logits.detach()
        now = _current_tau("reinmax_rao", self.tau)
        tau = now.to(x) if isinstance(now, Tensor) else x.new_full((), now)
        p = link(x, torch.ones_like(tau))
        if isinstance(link, Interval):
            z = given_bit(_middle_of_bit(x, hard), hard, self.samples)
        else:
            middle = torch.where(hard > 0, p.log1p(), x.log_softmax(-1))
            z = given_ranking(middle, hard.argmax(-1, keepdim=True), self.samples)
        first = mean_relaxed(logits, tau, z, link)
        return 2 * first - _times_jacobian(p, _zero_with_finite_gradient(logits), link) / 2


def _middle_of_bit(x: Tensor, hard: Tensor) -> Tensor:
    """The log-odds of (p + D) / 2, with p = sigmoid(x)."""
    sign = 2 * hard - 1
    return sign * ((sign * x).sigmoid().log1p() - logsigmoid(-sign * x))


def _read_tau(owner: str, tau: _Tau, *, zero: bool = False) -> _Tau:
    """A number as a float; a function is returned as it is.

    :param zero: whether 0 is allowed too.
    """
    if callable(tau) and not isinstance(tau, type):
        return tau
    return read_number(owner, "tau", tau, zero=zero)


def _current_tau(owner: str, tau: _Tau, *, zero: bool = False) -> float | Tensor:
    """The number, or what the function returns: a float where it can be read."""
    if not callable(tau):
        return tau
    now = tau()
    if isinstance(now, Tensor):
        if now.numel() != 1:
            raise ValueError(
                f"{owner}: `tau` must be one number, got a function that returns a tensor of shape "
                f"{tuple(now.shape)}; write tau=lambda: 0.5"
            )
        now = now.detach().reshape(())
        now = known(now, otherwise=now)
    return now if isinstance(now, Tensor) else read_number(owner, "tau", now, zero=zero)


def is_one_hot(link: Link) -> bool:
    """Whether the samples of a link choose one outcome of two, or one of the categories."""
    return isinstance(link, (Interval, Simplex))


def require_one_hot(name: str, link: Link) -> None:
    """Raise for subsets."""
    if not is_one_hot(link):
        raise ValueError(
            f"{name}: `link` must be the interval or the simplex, got {link!r}; write "
            'estimator="gumbel_softmax" for a subset'
        )


def _zero_with_finite_gradient(logits: Tensor) -> Tensor:
    """0, with the gradient of the logits where they are finite."""
    return zero_with_gradient(torch.where(logits.isfinite(), logits, 0.0))
