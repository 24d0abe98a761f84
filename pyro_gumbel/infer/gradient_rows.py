# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""The rows of a gradient report, and which of them to train with.

Let e be the exact gradient, g that of one draw, and :math:`s^2 = E |g - E g|^2`. Let the loss have
the same curvature in all directions. A step along the mean of N gradients, c times as long as the
step along e that leads to the optimum, lowers the loss on average by the fraction

.. math::
    \text{progress}_N
    = \frac{2 c \, \langle E g, e \rangle - c^2 \, (|E g|^2 + s^2 / N)}{|e|^2}, \qquad
    c = \frac{|e|^2}{|e|^2 + s^2 / N},

of what that step along e does. Without a bias this c is the best one, and the progress is c. As N
grows, c goes to 1 and the progress to

.. math:: \text{progress}_\infty = 1 - \frac{|E g - e|^2}{|e|^2}.

In terms of a row, with the projection :math:`a = \langle E g, e \rangle / |e|^2`,

.. math:: \frac{|E g|^2}{|e|^2} = 2 a - 1 + \frac{\text{bias}^2}{|e|^2}.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["GradientRow", "Rule"]

SIGNIFICANT = 1e-3  # the chance of it in noise whose directions were known; they are estimated
TIED = 2.0  # standard errors of their difference by which tied rows differ at most
AFFORDABLE = 4.0  # times the steps that an unbiased row may take, or the cost that a tied one may
ROUNDING = 1e-5  # of float32 gradients, relative to the exact one


@dataclass(frozen=True)
class GradientRow:
    r"""The gradient of one estimator at one temperature, over the parameters of the guide.

    With g the gradient of one draw and e the exact gradient,

    .. math::
        \text{bias} = |E g - e|, \qquad
        \text{standard deviation} = \sqrt{E |g - E g|^2}, \qquad
        \text{projection} = \frac{\langle E g, e \rangle}{|e|^2}, \\
        \text{cosine} = \frac{\langle E g, e \rangle}{|E g| \, |e|}, \qquad
        \text{progress} = \frac{\langle E g, e \rangle}{\sqrt{E |g|^2} \, |e|}.

    The cosine is that of the angle by which the bias turns the mean gradient. Progress is the
    fraction of a step that is along the exact gradient, in mean square: the cosine of single
    gradients. Bias and noise both lower it. The length of g, which an optimiser like Adam divides
    out, does not.

    >>> def model():
    ...     z = pyro.sample("z", pyro.distributions.Bernoulli(0.5))
    ...     pyro.sample("x", pyro.distributions.Normal(3 * z, 1.0), obs=torch.tensor(2.0))
    >>> model = relaxed(model)
    >>> report = gradient_report(model, AutoRelaxed(model), temperatures=[0.5], num_samples=50)
    >>> row = report.rows[0]
    >>> row.estimator, row.temperature
    ('second_order', None)
    >>> row.bias <= 2 * row.bias_error  # unbiased for this model
    True

    :ivar estimator: its name, or how it prints.
    :ivar temperature: tau; None for "second_order", which has none.
    :ivar bias: as above, without what the noise of the means adds to it.
    :ivar bias_error: the standard error of E g - e, and so how large a bias the noise can hide.
    :ivar noise_directions: the number of directions of equal noise in E g - e, from 1 to the number
        of parameters, that its noise amounts to. The square of a length varies less where it is the
        sum of more.
    :ivar standard_deviation: as above.
    :ivar projection: as above: 1 without a bias, below it for a mean gradient that is too short;
        NaN where e is not above twice its standard error.
    :ivar projection_error: its standard error, without that of e.
    :ivar cosine: as above; NaN where E g or e is not above twice its standard error, so that its
        direction is not known.
    :ivar cosine_error: its standard error, without that of e.
    :ivar progress: as above; NaN where e is not above twice its standard error.
    :ivar progress_error: its standard error, without that of e.
    :ivar milliseconds: the median time of one gradient.
    """

    estimator: str
    temperature: float | None
    bias: float
    bias_error: float
    noise_directions: float
    standard_deviation: float
    projection: float
    projection_error: float
    cosine: float
    cosine_error: float
    progress: float
    progress_error: float
    milliseconds: float


@dataclass(frozen=True)
class Rule:
    """The rule by which `GradientReport.best` chooses.

    :ivar norm: the length of the exact gradient, above 0.
    :ivar num_samples: how many gradients were drawn for each row.
    :ivar steps: N, above 0 and possibly infinite.
    """

    norm: float
    num_samples: int
    steps: float

    def progress(self, row: GradientRow) -> float:
        """progress_N."""
        noise = self._noise(row, self.steps)
        c = 1 / (1 + noise)
        squared_mean = 2 * row.projection - 1 + (row.bias / self.norm) ** 2  # |E g|^2 / |e|^2
        return 2 * c * row.projection - c**2 * (squared_mean + noise)

    def error(self, row: GradientRow) -> float:
        """The standard error of progress_N."""
        noise = self._noise(row, self.steps)
        c = 1 / (1 + noise)
        bias, error = row.bias / self.norm, row.bias_error / self.norm
        of_squared_bias = math.hypot(2 * bias * error, math.sqrt(2) * error**2)
        of_noise = noise * math.sqrt(2 / (self.num_samples - 1))
        of_lengths = c**2 * math.hypot(of_squared_bias, of_noise) / math.sqrt(row.noise_directions)
        return math.hypot(of_lengths, 2 * c * (1 - c) * row.projection_error)

    def is_biased(self, row: GradientRow) -> bool:
        """Whether the bias is significant.

        The square of a length of noise is about that of d normal numbers, a chi-square variate, d
        the number of directions of the noise.
        """
        if row.bias <= ROUNDING * self.norm or not row.bias_error:
            return row.bias > ROUNDING * self.norm
        half = torch.tensor(row.noise_directions / 2, dtype=torch.float64, device="cpu")
        ratio = 1 + (row.bias / row.bias_error) ** 2
        return torch.special.gammaincc(half, half * ratio).item() < SIGNIFICANT

    def recommended(self, rows: Sequence[GradientRow]) -> list[GradientRow]:
        """The best row and those that the samples cannot tell apart from it, cheapest first."""
        eligible = self._affordable(rows) or rows
        best = max(eligible, key=self.progress)
        return _cheapest_first([row for row in eligible if self._are_tied(best, row)])

    def _affordable(self, rows: Sequence[GradientRow]) -> list[GradientRow]:
        """The rows without a significant bias that need not many more steps than the best one."""
        top = max(rows, key=self.progress)
        wanted = self.progress(top) - ROUNDING
        unbiased = [row for row in rows if not self.is_biased(row)]
        return [row for row in unbiased if row is top or self._reachable(row) >= wanted]

    def _reachable(self, row: GradientRow) -> float:
        """The progress over the steps that an unbiased row may take, if the row is unbiased."""
        return 1 / (1 + self._noise(row, AFFORDABLE * self.steps))

    def _are_tied(self, best: GradientRow, row: GradientRow) -> bool:
        error = math.hypot(self.error(best), self.error(row))
        return self.progress(best) - self.progress(row) <= TIED * error + ROUNDING

    def _noise(self, row: GradientRow, steps: float) -> float:
        """s^2 / N, relative to |e|^2."""
        return (row.standard_deviation / self.norm) ** 2 / steps


def _cheapest_first(rows: list[GradientRow]) -> list[GradientRow]:
    """By the time that they take to the same noise, relative to the projection.

    The first of those that are affordable leads: a report has the estimator first that is unbiased
    for quadratic losses, and less noise is not worth a bias that the samples do not show.
    """
    cheapest = sorted(rows, key=_cost)
    first = next(row for row in rows if _cost(row) <= AFFORDABLE * _cost(cheapest[0]))
    return [first, *(row for row in cheapest if row is not first)]


def _cost(row: GradientRow) -> float:
    if row.projection <= 0:
        return math.inf
    return (row.standard_deviation / row.projection) ** 2 * row.milliseconds
