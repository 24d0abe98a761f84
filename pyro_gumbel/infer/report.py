# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What a gradient report holds and recommends, and how it prints and plots."""

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from pyro_gumbel._validation import read_number
from pyro_gumbel.infer.gradient_rows import AFFORDABLE, GradientRow, Rule

__all__ = ["GradientReport", "read_steps"]


def read_steps(owner: str, steps: Any) -> float:
    """A number of training steps; None is infinitely many."""
    if steps is None or steps == math.inf:
        return math.inf
    return read_number(owner, "steps", steps, example="1000")


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """The result of `gradient_report`; it prints as a table with a recommendation.

    >>> def model():
    ...     z = pyro.sample("z", pyro.distributions.Bernoulli(0.5))
    ...     pyro.sample("x", pyro.distributions.Normal(3 * z, 1.0), obs=torch.tensor(2.0))
    >>> model = relaxed(model)
    >>> report = gradient_report(model, AutoRelaxed(model), temperatures=[0.5], num_samples=50)
    >>> report.best() in report.rows
    True
    >>> report.to_dict()["num_samples"]
    50

    :ivar rows: a `GradientRow` for each estimator and temperature.
    :ivar exact_norm: the length of the exact gradient, without what its noise adds.
    :ivar exact_error: the standard error of the exact gradient; 0 where it was enumerated.
    :ivar exact_by: how the exact gradient was found.
    :ivar num_samples: how many gradients were drawn for each row.
    :ivar num_parameters: how many numbers a gradient has.
    :ivar steps: of training, that the printed recommendation is for; infinity for training to the
        end.
    """

    rows: list[GradientRow]
    exact_norm: float
    exact_error: float
    exact_by: str
    num_samples: int
    num_parameters: int
    steps: float = math.inf

    def best(self, steps: float | None = None) -> GradientRow:
        r"""The row to train with for N steps: the cheapest one of `ties`.

        With e the exact gradient, g that of one draw and s the standard deviation of a row,

        .. math::
            \text{progress}_N
            = \frac{2 c \, \langle E g, e \rangle - c^2 \, (|E g|^2 + s^2 / N)}{|e|^2}, \qquad
            c = \frac{|e|^2}{|e|^2 + s^2 / N}.

        This is the expected decrease of a loss that has the same curvature in all directions, by
        the mean of N gradients, as a fraction of the decrease by the exact gradient with its best
        step; c shortens the step as the noise demands. Averaging takes off noise but no bias: the
        progress of an unbiased row is c, and for training to the end, N to infinity, the progress
        of every row is :math:`1 - \text{bias}^2 / |e|^2`.

        A bias is significant if noise alone would look like it with a chance of about 1 in 100 or
        less. The row with the most progress is best, unless its bias is significant and some row
        without significant bias is affordable: unbiased gradients of its noise make as much
        progress in 4 N steps. Then the best row is the affordable one with the most progress. For N
        to infinity all rows without significant bias are affordable.

        :param steps: N, a positive number, possibly infinite; None for that of the report.
        :raises ValueError: where the exact gradient is not above twice its standard error.
        """
        return self.ties(steps)[0]

    def ties(self, steps: float | None = None) -> list[GradientRow]:
        """The best row and all rows that the samples cannot tell apart from it, cheapest first.

        Their progress, see `best`, is less than that of the row with the most by at most 2 standard
        errors of the difference. The cost is the time to the same relative noise: the time of a
        gradient times the square of s / projection. Of the rows that cost up to 4 times the least,
        the first one in the report leads. By default that is second order, where it is tied: it is
        unbiased for quadratic losses, and less noise is not worth a bias that does not show.

        :param steps: as of `best`.
        :raises ValueError: as of `best`.
        """
        known = self._known()
        if not known:
            raise ValueError(
                "GradientReport.best: expected an exact gradient that is not 0, got one of length "
                f"{self.exact_norm:.2g} +- {self.exact_error:.2g}; write a larger "
                "num_exact_samples, or report away from the optimum"
            )
        return self._rule(steps).recommended(known)

    def expected_progress(self, row: GradientRow, steps: float | None = None) -> float:
        """The progress of a row of this report over N steps, see `best`.

        :param row: one of `rows`.
        :param steps: as of `best`.
        :returns: 1 at most, up to the noise of the report; NaN where the exact gradient is not
            above twice its standard error.
        """
        return self._rule(steps).progress(row) if row in self._known() else math.nan

    def _known(self) -> list[GradientRow]:
        return [row for row in self.rows if not math.isnan(row.projection)]

    def _rule(self, steps: float | None = None) -> Rule:
        steps = self.steps if steps is None else read_steps("GradientReport.best", steps)
        return Rule(self.exact_norm, self.num_samples, steps)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as numbers, strings, lists and dictionaries, e.g. for JSON.

        NaN becomes None, and so do infinitely many steps.
        """
        found = dataclasses.asdict(self)
        found["steps"] = None if math.isinf(self.steps) else self.steps
        for row in found["rows"]:
            row.update({name: None for name, value in row.items() if value != value})
        return found

    def __str__(self) -> str:
        error = f" +- {self.exact_error:.2g}" if self.exact_error else ""
        end = "to the end" if math.isinf(self.steps) else f"{self.steps:g} steps"
        header = ["estimator", "tau", "bias  ", "sd", "cosine", "progress", end, "ms"]
        numbers = f"{self.num_samples} gradients of {self.num_parameters} numbers"
        return "\n".join(
            [
                f"exact gradient: length {self.exact_norm:.4g}{error}, by {self.exact_by}",
                f"each row: {numbers}; * marks a significant bias",
                *_aligned([header, *map(self._cells, self.rows)]),
                *self._recommendation(),
            ]
        )

    def _cells(self, row: GradientRow) -> list[str]:
        """The texts of a line of the table."""
        mark = "*" if self._rule().is_biased(row) else " "
        error = self._rule().error(row) if row in self._known() else math.nan
        return [
            row.estimator,
            "-" if row.temperature is None else f"{row.temperature:g}",
            f"{row.bias:.3g} +- {float(f'{row.bias_error:.1g}'):g} {mark}",
            f"{row.standard_deviation:.3g}",
            _with_error(row.cosine, row.cosine_error),
            _with_error(row.progress, row.progress_error),
            _with_error(self.expected_progress(row), error),
            f"{row.milliseconds:.2f}",
        ]

    def _recommendation(self) -> list[str]:
        """The last lines of the print."""
        if not self._known():
            return ["recommended: none, since the exact gradient is not above twice its error"]
        best, *others = self.ties()
        end = "training to the end" if math.isinf(self.steps) else f"{self.steps:g} steps"
        lines = [f"recommended for {end}: {_described(best)}, {self._reason(best)}"]
        if others:
            text = "; ".join(map(_described, others))
            lines.append("not told apart from it by these samples, the cheapest first:")
            lines += textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="  ")
        return lines

    def _reason(self, best: GradientRow) -> str:
        """Why the best row is chosen."""
        biased = self._rule().is_biased
        if not biased(best):
            return "without a significant bias"
        if all(map(biased, self._known())):
            return "biased as all rows are"
        return f"biased, but the others need over {AFFORDABLE:g} times the steps"

    def plot(self) -> Any:
        """A `matplotlib.figure.Figure`: bias, standard deviation and progress over temperature.

        :raises ImportError: without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "GradientReport.plot: expected matplotlib, which is not installed; write "
                "pip install matplotlib (it is the extra `plot`), or print(report)"
            ) from error
        figure = Figure(figsize=(11, 3.5), layout="constrained")  # without pyplot: needs no display
        panels = figure.subplots(1, 3)
        for axes, quantity in zip(panels, ("bias", "standard_deviation", "progress"), strict=True):
            self._plot_quantity(axes, quantity)
        for axes in panels[:2]:
            axes.axhline(self.exact_norm, color="gray", linestyle=":", label="exact gradient")
            axes.set_ylim(bottom=0)
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right center", frameon=False)
        return figure

    def _plot_quantity(self, axes: Any, quantity: str) -> None:
        """One line for each estimator over the temperatures, with error bars if there are any."""
        for number, name in enumerate(dict.fromkeys(row.estimator for row in self.rows)):
            rows = [row for row in self.rows if row.estimator == name]
            if rows[0].temperature is None:
                _plot_level(axes, rows[0], quantity, f"C{number}")
            else:
                _plot_line(axes, rows, quantity, f"C{number}")
        ticks = sorted({row.temperature for row in self.rows if row.temperature is not None})
        axes.set(xscale="log", xlabel="temperature", title=quantity.replace("_", " "))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)


def _plot_line(axes: Any, rows: Sequence[GradientRow], quantity: str, color: str) -> None:
    """An estimator over its temperatures."""
    points = sorted((row.temperature, *_with_quantity(row, quantity)) for row in rows)
    taus, numbers, errors = zip(*points, strict=True)
    label = rows[0].estimator
    axes.errorbar(taus, numbers, errors, marker="o", markersize=4, color=color, label=label)


def _plot_level(axes: Any, row: GradientRow, quantity: str, color: str) -> None:
    """An estimator without a temperature: a horizontal line in a band of its error."""
    number, error = _with_quantity(row, quantity)
    axes.axhline(number, color=color, linestyle="--", label=row.estimator)
    axes.axhspan(number - error, number + error, color=color, alpha=0.15, linewidth=0)


def _with_quantity(row: GradientRow, quantity: str) -> tuple[float, float]:
    """A number of a row, and its standard error, 0 if that is not known."""
    return getattr(row, quantity), getattr(row, f"{quantity}_error", 0.0)


def _described(row: GradientRow) -> str:
    """The estimator and the temperature of a row."""
    tau = "" if row.temperature is None else f" at temperature {row.temperature:g}"
    return f"{row.estimator}{tau}"


def _with_error(number: float, error: float) -> str:
    return "-" if math.isnan(number) else f"{number:.2f} +- {error:.2f}"


def _aligned(lines: list[list[str]]) -> list[str]:
    """The lines of a table: the first column flush left, the others flush right."""
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return [
        "  ".join(
            [name.ljust(first)]
            + [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
        )
        for name, *cells in lines
    ]
