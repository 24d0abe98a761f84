# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What a gradient report holds, and how it prints and plots."""

import dataclasses
import math
from typing import Any

__all__ = ["GradientReport", "GradientRow"]


@dataclasses.dataclass(frozen=True)
class GradientRow:
    r"""The gradient of one estimator at one temperature, over all parameters of the guide.

    With g the gradient of one draw and e the exact gradient,

    .. math::
        \text{bias} = |E g - e|, \qquad
        \text{standard deviation} = \sqrt{E |g - E g|^2}, \\
        \text{cosine} = \frac{\langle E g, e \rangle}{|E g| \, |e|}, \qquad
        \text{progress} = \frac{\langle E g, e \rangle}{\sqrt{E |g|^2} \, |e|}.

    The cosine is that of the angle by which the bias turns the mean gradient. Progress is the
    fraction of a step that is along the exact gradient, in mean square: the cosine of single
    gradients. Bias and noise both lower it. The length of g, which an optimiser like Adam divides
    out, does not.

    :ivar estimator: its name, or how it prints.
    :ivar temperature: tau.
    :ivar bias: as above, without what the noise of the means adds to it.
    :ivar bias_error: the standard error of E g - e, and so how large a bias the noise can hide.
    :ivar standard_deviation: as above.
    :ivar cosine: as above; NaN where E g or e is not above twice its standard error, so that its
        direction is not known.
    :ivar cosine_error: its standard error, without that of e.
    :ivar progress: as above; NaN where e is not above twice its standard error.
    :ivar progress_error: its standard error, without that of e.
    :ivar milliseconds: the median time of one gradient.
    """

    estimator: str
    temperature: float
    bias: float
    bias_error: float
    standard_deviation: float
    cosine: float
    cosine_error: float
    progress: float
    progress_error: float
    milliseconds: float


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """The result of `gradient_report`; it prints as a table.

    :ivar rows: a `GradientRow` for each estimator and temperature.
    :ivar exact_norm: the length of the exact gradient, without what its noise adds.
    :ivar exact_error: the standard error of the exact gradient; 0 where it was enumerated.
    :ivar exact_by: how the exact gradient was found.
    :ivar num_samples: how many gradients were drawn for each row.
    :ivar num_parameters: how many numbers a gradient has.
    """

    rows: list[GradientRow]
    exact_norm: float
    exact_error: float
    exact_by: str
    num_samples: int
    num_parameters: int

    def best(self) -> GradientRow:
        """The row with the most progress.

        :raises ValueError: where the exact gradient is not above twice its standard error.
        """
        rows = [row for row in self.rows if not math.isnan(row.progress)]
        if not rows:
            raise ValueError(
                "GradientReport.best: expected an exact gradient that is not 0, got one of length "
                f"{self.exact_norm:.2g} +- {self.exact_error:.2g}; write a larger "
                "num_exact_samples, or report away from the optimum"
            )
        return max(rows, key=lambda row: row.progress)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as numbers, strings, lists and dictionaries, e.g. for JSON.

        NaN becomes None.
        """
        found = dataclasses.asdict(self)
        for row in found["rows"]:
            row.update({name: None for name, value in row.items() if value != value})
        return found

    def __str__(self) -> str:
        error = f" +- {self.exact_error:.2g}" if self.exact_error else ""
        header = ["estimator", "temperature", "bias", "sd", "cosine", "progress", "ms"]
        return "\n".join(
            [
                f"exact gradient: length {self.exact_norm:.4g}{error}, by {self.exact_by}",
                f"each row: {self.num_samples} gradients of {self.num_parameters} numbers",
                *_aligned([header, *map(_cells, self.rows)]),
            ]
        )

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
        for name in dict.fromkeys(row.estimator for row in self.rows):
            rows = [row for row in self.rows if row.estimator == name]
            rows.sort(key=lambda row: row.temperature)
            axes.errorbar(
                [row.temperature for row in rows],
                [getattr(row, quantity) for row in rows],
                [getattr(row, f"{quantity}_error", 0.0) for row in rows],
                marker="o",
                markersize=4,
                label=name,
            )
        ticks = sorted({row.temperature for row in self.rows})
        axes.set(xscale="log", xlabel="temperature", title=quantity.replace("_", " "))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)


def _cells(row: GradientRow) -> list[str]:
    """The texts of a line of the table."""
    return [
        row.estimator,
        f"{row.temperature:g}",
        f"{row.bias:.3g} +- {float(f'{row.bias_error:.1g}'):g}",
        f"{row.standard_deviation:.3g}",
        _with_error(row.cosine, row.cosine_error),
        _with_error(row.progress, row.progress_error),
        f"{row.milliseconds:.2f}",
    ]


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
