# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which estimator, at which temperature: the gradients of a model of yours, measured."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from tqdm import tqdm  # which Pyro depends on

from pyro_gumbel._validation import read_count, read_number, read_seed
from pyro_gumbel.distributions.straight_through import StraightThrough
from pyro_gumbel.distributions.wrappers import innermost, rewrapped
from pyro_gumbel.estimators import NAMES, Estimator, named, suited
from pyro_gumbel.infer.exact_gradient import (
    DRAWS,
    Moments,
    Objective,
    Reference,
    by_enumeration,
    by_score_function,
)

__all__ = ["GradientReport", "GradientRow", "gradient_report"]

OWNER = "gradient_report"
MOST_STATES = 2048  # that are enumerated
BLOCKS = 10  # of gradients, whose spread gives the error of a direction


@dataclasses.dataclass(frozen=True)
class GradientRow:
    """The gradient of one estimator at one temperature, over all parameters of the guide.

    :ivar estimator: its name, or how it prints.
    :ivar temperature: tau.
    :ivar bias: |E g - e| of its gradients g and the exact one e, without what noise adds to it.
    :ivar bias_error: how large a bias the noise can hide: the standard error of E g - e.
    :ivar standard_deviation: sqrt(E |g - E g|^2).
    :ivar cosine: <E g, e> / (|E g| |e|), of the angle by which the bias turns the gradient; NaN
        where E g is not above twice its standard error, and has no direction yet.
    :ivar cosine_error: its standard error, without that of e.
    :ivar progress: <E g, e> / (sqrt(E |g|^2) |e|), the cosine of single gradients in mean square:
        which part of the length of a step goes the right way. Bias and noise both lower it; the
        length of g, which an optimiser like Adam undoes, does not. NaN, as the cosine, where e is
        not above twice its own standard error.
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
    """What `gradient_report` found; it prints as a table.

    :ivar rows: a `GradientRow` for each estimator and temperature.
    :ivar exact_norm: the length of the exact gradient, without what its noise adds.
    :ivar exact_error: its standard error; 0 where it was enumerated.
    :ivar exact_by: how it was found.
    :ivar num_samples: how many gradients each row has seen.
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

        :raises ValueError: where the exact gradient has no direction that could be told.
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
        """All of it as numbers, strings, lists and dictionaries, e.g. for JSON; NaN is None."""
        found = dataclasses.asdict(self)
        for row in found["rows"]:
            row.update({name: None for name, value in row.items() if value != value})
        return found

    def __str__(self) -> str:
        error = f" +- {self.exact_error:.2g}" if self.exact_error else ""
        cells = [["estimator", "temperature", "bias", "sd", "cosine", "progress", "ms"]]
        cells += [
            [
                row.estimator,
                f"{row.temperature:g}",
                f"{row.bias:.3g} +- {float(f'{row.bias_error:.1g}'):g}",
                f"{row.standard_deviation:.3g}",
                _with_error(row.cosine, row.cosine_error),
                _with_error(row.progress, row.progress_error),
                f"{row.milliseconds:.2f}",
            ]
            for row in self.rows
        ]
        first, *others = ([len(cell) for cell in column] for column in zip(*cells, strict=True))
        table = (
            "  ".join(
                [name.ljust(max(first))]
                + [cell.rjust(max(column)) for cell, column in zip(rest, others, strict=True)]
            )
            for name, *rest in cells
        )
        return "\n".join(
            [
                f"exact gradient: length {self.exact_norm:.4g}{error}, by {self.exact_by}",
                f"each row: {self.num_samples} gradients of {self.num_parameters} numbers",
                *table,
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
        ticks = sorted({row.temperature for row in self.rows})
        for axes, quantity in zip(panels, ("bias", "standard_deviation", "progress"), strict=True):
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
            axes.set(xscale="log", xlabel="temperature", title=quantity.replace("_", " "))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
        for axes in panels[:2]:
            axes.axhline(self.exact_norm, color="gray", linestyle=":", label="exact gradient")
            axes.set_ylim(bottom=0)
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right center", frameon=False)
        return figure


def _with_error(number: float, error: float) -> str:
    return "-" if math.isnan(number) else f"{number:.2f} +- {error:.2f}"


def gradient_report(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    estimators: Sequence[str | Estimator] | None = None,
    temperatures: Sequence[float] = (0.1, 0.3, 1.0),
    num_samples: int = 200,
    num_exact_samples: int | None = None,
    elbo: Trace_ELBO | None = None,
    seed: int = 0,
    progress: bool = True,
) -> GradientReport:
    r"""Bias, noise and cost of the gradients of a model and a guide, for each estimator.

    The gradient is that of the loss of SVI in the parameters of the guide, as they are now, at
    these arguments; of a subsampled plate one subsample is drawn and kept. Parameters that the
    guide uses and only the model registers, as by `pyro.module`, count too. All hard sites take
    each estimator and temperature in turn, whatever they were written with; nothing is trained.

    The exact gradient is enumerated where all latent sites of the guide are discrete and have up
    to 2048 joint states, or that many in parallel in a model that `TraceEnum_ELBO` can run. Else it
    is estimated by the score function with leave-one-out baselines, and its standard error is part
    of the table: raise `num_exact_samples` where that is not small against its length. Nothing but
    the sites should be random: call `.eval()` of modules with dropout or batch normalisation.

    >>> def model():
    ...     z = pyro.sample("z", BernoulliStraightThrough(0.5, 0.5))
    ...     pyro.sample("x", pyro.distributions.Normal(3 * z, 1.0), obs=torch.tensor(2.0))
    >>> guide = AutoRelaxed(model, 0.5)
    >>> report = gradient_report(model, guide, estimators=["reinmax", "gumbel_softmax"],
    ...                          temperatures=[1.0], progress=False)
    >>> report.best().estimator
    'reinmax'

    :param model: as for SVI.
    :param guide: as for SVI, with hard sites.
    :param args: the positional arguments of both, a tuple or list.
    :param kwargs: their keyword arguments, a dictionary.
    :param estimators: names or functions, see `pyro_gumbel.estimators`; None for all names, of
        subsets those that know them.
    :param temperatures: positive numbers.
    :param num_samples: how many gradients each row of the table takes, 2 or more.
    :param num_exact_samples: how many draws a score-function estimate takes, 20 or more; by default
        50 times `num_samples`.
    :param elbo: the loss of SVI, a `Trace_ELBO` (the default) or `TraceMeanField_ELBO`.
    :param seed: of each row, an int; the generator of the caller is left as it was.
    :param progress: whether to show a progress bar.
    :raises ValueError: for a guide without parameters or without hard sites, and numbers out of
        range; and where an estimator does, e.g. "reinmax" at the site of a subset.
    :raises TypeError: for arguments of another type.
    """
    elbo = _read_elbo(elbo)
    _read_arguments(args, kwargs)
    read_count(OWNER, "num_samples", num_samples, 2, 200)
    if num_exact_samples is None:
        num_exact_samples = 50 * num_samples
    read_count(OWNER, "num_exact_samples", num_exact_samples, 2 * DRAWS, 10_000)
    seed = read_seed(OWNER, seed)
    with _own_generator(seed), torch.inference_mode(False), torch.enable_grad():
        objective = Objective(model, guide, args, {} if kwargs is None else kwargs)
        _require_something_to_measure(objective)
        cells = _read_cells(_names(objective) if estimators is None else estimators, temperatures)
        for _, estimator, temperature in cells:
            _gradient(objective, elbo, estimator, temperature)  # what is wrong shows at once
        exact = _reference(objective, num_exact_samples, progress)
        rows = []
        with tqdm(total=len(cells) * num_samples, desc="gradients", disable=not progress) as bar:
            for label, estimator, temperature in cells:
                torch.manual_seed(seed + 1)  # other draws than those of the exact gradient
                gradients = _gradients(objective, elbo, estimator, temperature, num_samples)
                rows.append(_row(label, temperature, gradients, exact, bar))
    norm = math.sqrt(max(_square(exact), 0.0))
    return GradientReport(rows, norm, exact.error, exact.how, num_samples, exact.gradient.numel())


def _read_elbo(elbo: Any) -> Trace_ELBO:
    """The loss, if its value is the ELBO."""
    if elbo is None:
        return Trace_ELBO()
    if type(elbo) not in (Trace_ELBO, TraceMeanField_ELBO):
        kind = f"the class {elbo.__name__}" if isinstance(elbo, type) else type(elbo).__name__
        raise TypeError(
            f"{OWNER}: `elbo` must be a Trace_ELBO or TraceMeanField_ELBO, got {kind}; write "
            "elbo=TraceMeanField_ELBO()"
        )
    return elbo


def _read_arguments(args: Any, kwargs: Any) -> None:
    if not isinstance(args, (tuple, list)):
        raise TypeError(
            f"{OWNER}: `args` must be a tuple or list of arguments, got {type(args).__name__}; "
            "write (x,) for the argument x"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(
            f"{OWNER}: `kwargs` must be a dictionary, got {type(kwargs).__name__}; write "
            'kwargs={"x": x}'
        )


def _names(objective: Objective) -> Sequence[str]:
    """The estimators that suit all straight-through sites."""
    distributions = map(innermost, objective.sites.values())
    links = [d.link for d in distributions if isinstance(d, StraightThrough)]
    return [name for name in NAMES if all(name in suited(link) for link in links)]


def _read_cells(
    estimators: Sequence[str | Estimator], temperatures: Any
) -> list[tuple[str, Estimator, float]]:
    """Label, function and temperature of each row."""
    if hasattr(temperatures, "tolist"):  # a tensor or an array
        temperatures = temperatures.tolist()
    for name, given in (("estimators", estimators), ("temperatures", temperatures)):
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            example = "[0.5]" if name == "temperatures" else '["reinmax"]'
            raise TypeError(
                f"{OWNER}: `{name}` must be a list of one or more, got {given!r}; write "
                f"{name}={example}"
            )
    labels = [_label(each) for each in estimators]
    if len(set(labels)) < len(labels):
        labels = [f"{i}: {label}" for i, label in enumerate(labels)]
    functions = list(zip(labels, map(named, estimators), strict=True))
    taus = [read_number(OWNER, "temperatures", each) for each in temperatures]
    return [(label, function, tau) for label, function in functions for tau in taus]


def _label(estimator: str | Estimator) -> str:
    if isinstance(estimator, str):
        return estimator
    return getattr(estimator, "__name__", repr(estimator))


def _require_something_to_measure(objective: Objective) -> None:
    laws = {name: type(innermost(law)).__name__ for name, law in objective.sites.items()}
    if not any(isinstance(innermost(law), StraightThrough) for law in objective.sites.values()):
        raise ValueError(
            f"{OWNER}: `guide` must have a latent site with a hard law, got {laws}; write "
            "AutoRelaxed(model, 0.5), or CategoricalStraightThrough and its kin in the guide"
        )
    if not objective.parameters:
        raise ValueError(
            f"{OWNER}: `guide` must have parameters, got none with a gradient; write "
            'pyro.param("logits", torch.zeros(3)) inside the guide, or pyro.module("net", net) '
            "for a network"
        )


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """Random numbers from `seed`, and the caller's as they were afterwards."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _reference(objective: Objective, draws: int, progress: bool) -> Reference:
    found = by_enumeration(objective, MOST_STATES)
    if found is not None:
        return found
    groups = tqdm(range(draws // DRAWS), desc="exact gradient", disable=not progress)
    return by_score_function(objective, groups)


def _gradients(
    objective: Objective,
    elbo: Trace_ELBO,
    estimator: Estimator,
    temperature: float,
    num_samples: int,
) -> Iterator[tuple[Tensor, float]]:
    """Gradients and the milliseconds that they took, after one to warm up."""
    for i in range(num_samples + 1):
        start = time.perf_counter()
        gradient = _gradient(objective, elbo, estimator, temperature)
        if i:
            yield gradient, 1000 * (time.perf_counter() - start)


def _gradient(
    objective: Objective, elbo: Trace_ELBO, estimator: Estimator, temperature: float
) -> Tensor:
    return objective.gradient(objective.loss(elbo, _Replaced(estimator, temperature)))


class _Replaced(Messenger):
    """Hard sites have this estimator and this temperature."""

    def __init__(self, estimator: Estimator, temperature: float) -> None:
        super().__init__()
        self._estimator = estimator
        self._temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        law: Any = innermost(msg["fn"])
        if not isinstance(law, StraightThrough):
            return
        new: Any = law.expand(law.batch_shape)  # type: ignore[attr-defined]
        new.estimator = self._estimator
        new._temperature = law._parameter.new_tensor(self._temperature)
        msg["fn"] = rewrapped(msg["fn"], new)


def _square(exact: Reference) -> float:
    """|e|^2, without what its noise adds."""
    return exact.gradient.square().sum().item() - exact.error**2


def _row(
    label: str,
    temperature: float,
    gradients: Iterator[tuple[Tensor, float]],
    exact: Reference,
    bar: Any,
) -> GradientRow:
    moments, along, times = Moments(), Moments(), []
    blocks = [Moments() for _ in range(BLOCKS)]
    for i, (gradient, milliseconds) in enumerate(gradients):
        moments.add(gradient)
        along.add(torch.dot(gradient, exact.gradient).reshape(1))
        blocks[i % BLOCKS].add(gradient)
        times.append(milliseconds)
        bar.update()
    noise = moments.variance / moments.count
    noise_of_both = noise + exact.error**2
    distance = (moments.mean - exact.gradient).square().sum().item()
    square = max(moments.mean.square().sum().item() - noise, 0.0)
    root_mean_square = math.sqrt(square + moments.variance)
    length = math.sqrt(square) if square > 4 * noise else math.nan
    norm = _square(exact)
    seen = norm > max(4 * exact.error**2, (1e-6 * root_mean_square) ** 2)
    norm = math.sqrt(norm) if seen else math.nan
    projection = along.mean.item() / norm
    return GradientRow(
        estimator=label,
        temperature=temperature,
        bias=math.sqrt(max(distance - noise_of_both, 0.0)),
        bias_error=math.sqrt(noise_of_both),
        standard_deviation=math.sqrt(moments.variance),
        cosine=_clamped(_quotient(projection, length)),
        cosine_error=_quotient(_turning_error(blocks, moments.mean, exact.gradient), length),
        progress=_clamped(_quotient(projection, root_mean_square)),
        progress_error=_quotient(math.sqrt(along.variance / along.count) / norm, root_mean_square),
        milliseconds=statistics.median(times),
    )


def _turning_error(blocks: list[Moments], mean: Tensor, exact: Tensor) -> float:
    """The standard error of the mean in the one direction that turns it from the exact one."""
    u, v = (vector / vector.norm() for vector in (exact, mean))
    across = u - torch.dot(u, v) * v
    parts = [torch.dot(across, block.mean).item() for block in blocks if block.count]
    return statistics.stdev(parts) / math.sqrt(len(parts))


def _clamped(cosine: float) -> float:
    return cosine if math.isnan(cosine) else max(min(cosine, 1.0), -1.0)


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
