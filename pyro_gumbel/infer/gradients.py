# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which estimator, at which temperature: the gradients of a model and its guide, measured."""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from tqdm import tqdm  # which Pyro depends on

from pyro_gumbel.distributions.counts import NamedCount
from pyro_gumbel.distributions.outcome_distribution import OutcomeDistribution
from pyro_gumbel.distributions.straight_through import FamilyStraightThrough
from pyro_gumbel.distributions.wrappers import WRAPPERS, innermost, wrapped_like
from pyro_gumbel.estimators import Estimator
from pyro_gumbel.infer.exact_gradient import (
    DRAWS,
    BlockedMoments,
    ExactGradient,
    Moments,
    by_enumeration,
    by_score_function,
)
from pyro_gumbel.infer.gradient_rows import GradientRow
from pyro_gumbel.infer.gradient_settings import (
    Params,
    RowSettings,
    Settings,
    choose_parameters,
    read_arguments,
    read_rows,
    read_settings,
)
from pyro_gumbel.infer.objective import Objective
from pyro_gumbel.infer.report import GradientReport
from pyro_gumbel.infer.traces import kept_random_state

__all__ = ["gradient_report"]

MOST_STATES = 2048  # that are enumerated


def gradient_report(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    params: Params | None = None,
    estimators: Sequence[str | Estimator] | None = None,
    temperatures: Sequence[float] = (0.1, 0.3, 1.0),
    steps: float | None = None,
    num_samples: int = 200,
    num_exact_samples: int | None = None,
    elbo: Trace_ELBO | None = None,
    seed: int = 0,
    progress: bool = True,
) -> GradientReport:
    r"""Measure bias, noise and cost of gradients by estimator, and recommend one.

    The gradients are those of the loss of SVI in the present parameters of the guide. A row of the
    report, see `GradientRow`, compares those of one estimator and temperature with the exact one:
    enumerated if the guide has up to 2048 joint states, else estimated without bias by the score
    function (Kool, van Hoof and Welling, "Buy 4 REINFORCE samples, get a baseline for free!"
    (2019), https://openreview.net/forum?id=r1lgTGL5DE). The rule is in `GradientReport.best`.

    >>> def model():
    ...     z = pyro.sample("z", pyro.distributions.Bernoulli(0.5))
    ...     pyro.sample("x", pyro.distributions.Normal(3 * z, 1.0), obs=torch.tensor(2.0))
    >>> model = relaxed(model)
    >>> report = gradient_report(model, AutoRelaxed(model), temperatures=[0.5], num_samples=50)
    >>> report.exact_by
    'enumeration of 2 states'

    :param model: as for SVI; only its sites may be random, so call `.eval()` of modules first.
    :param guide: as for SVI, with straight-through sites.
    :param args: the positional arguments of both, a tuple or list.
    :param kwargs: their keyword arguments, a dictionary.
    :param params: the parameters to look at: a name or a list of names, of parameters or modules in
        Pyro's parameter store, or a function from a name to a bool; None for all of the guide.
    :param estimators: names or functions, for all sites but counts; where all are counts,
        "second_order" and "third_order". None for all that apply.
    :param temperatures: positive numbers, for the estimators that have one.
    :param steps: of training, that the recommendation is for; None for training to the end.
    :param num_samples: how many gradients are drawn for each row, 2 or more.
    :param num_exact_samples: the draws of a score-function estimate; None for 50 `num_samples`.
    :param elbo: the loss, a `Trace_ELBO` (the default) or `TraceMeanField_ELBO`.
    :param seed: of each row, an int. The global generator is restored afterwards.
    :param progress: whether to show a progress bar.
    :raises ValueError: for a guide without parameters or straight-through sites, for unknown
        parameters, for numbers out of range, and where an estimator raises it.
    :raises TypeError: for arguments of another type.
    """
    args, kwargs = read_arguments(args, kwargs)
    settings = read_settings(elbo, num_samples, num_exact_samples, steps, seed, progress)
    with _apart(settings.seed):
        objective = Objective(model, guide, args, kwargs)
        rows = read_rows(objective, estimators, temperatures)
        objective.parameters = choose_parameters(objective.parameters, params)
        return _report(objective, settings, rows)


@contextmanager
def _apart(seed: int) -> Iterator[None]:
    """Gradients are on, and random numbers are from `seed`; afterwards all is as it was.

    The sites are used with all estimators and temperatures, so what they warn about does not count.
    """
    with kept_random_state(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(reinmax|gapped): expected")
        torch.manual_seed(seed)
        with torch.inference_mode(False), torch.enable_grad():
            yield


def _report(objective: Objective, settings: Settings, rows: list[RowSettings]) -> GradientReport:
    for row in rows:  # one that raises does so before the long runs
        _gradient(objective, settings.elbo, row)
    exact = _exact_gradient(objective, settings)
    total = len(rows) * settings.num_samples
    with tqdm(total=total, desc="gradients", disable=not settings.progress) as bar:
        measured = [_measured(objective, settings, row, exact, bar) for row in rows]
    return GradientReport(
        rows=measured,
        exact_norm=math.sqrt(max(exact.squared_length, 0.0)),
        exact_error=exact.error,
        exact_by=exact.how,
        num_samples=settings.num_samples,
        num_parameters=exact.gradient.numel(),
        steps=settings.steps,
    )


def _exact_gradient(objective: Objective, settings: Settings) -> ExactGradient:
    found = by_enumeration(objective, MOST_STATES)
    if found is not None:
        return found
    groups = range(settings.num_exact_samples // DRAWS)
    return by_score_function(
        objective, tqdm(groups, desc="exact gradient", disable=not settings.progress)
    )


def _measured(
    objective: Objective, settings: Settings, row: RowSettings, exact: ExactGradient, bar: Any
) -> GradientRow:
    torch.manual_seed(settings.seed + 1)  # other draws than those of the exact gradient
    _gradient(objective, settings.elbo, row)  # warms up
    measured = _Measured(exact)
    for _ in range(settings.num_samples):
        start = time.perf_counter()
        gradient = _gradient(objective, settings.elbo, row)
        measured.add(gradient, 1000 * (time.perf_counter() - start))
        bar.update()
    return measured.row(row)


def _gradient(objective: Objective, elbo: Trace_ELBO, row: RowSettings) -> Tensor:
    replaced = _Replaced(row.estimator, row.temperature, row.of_counts)
    return objective.gradient(objective.loss(elbo, replaced))


class _Measured:
    """Running statistics of gradients g, against the exact gradient e.

    A mean has noise, which lengthens it on average. Lengths are corrected for that: the variance of
    the noise is taken off the square.
    """

    def __init__(self, exact: ExactGradient) -> None:
        self._exact = exact
        self._gradients = BlockedMoments()
        self._along = Moments()  # of <g, e>
        self._milliseconds: list[float] = []

    def add(self, gradient: Tensor, milliseconds: float) -> None:
        self._gradients.add(gradient)
        self._along.add(torch.dot(gradient, self._exact.gradient).reshape(1))
        self._milliseconds.append(milliseconds)

    def row(self, settings: RowSettings) -> GradientRow:
        bias, bias_error = self._bias()
        projection, projection_error = self._projection()
        cosine, cosine_error = self._cosine()
        progress, progress_error = self._progress()
        return GradientRow(
            estimator=settings.label,
            temperature=settings.temperature,
            bias=bias,
            bias_error=bias_error,
            noise_directions=_noise_directions([self._gradients.blocks, self._exact.blocks]),
            standard_deviation=math.sqrt(self._gradients.variance),
            projection=projection,
            projection_error=projection_error,
            cosine=cosine,
            cosine_error=cosine_error,
            progress=progress,
            progress_error=progress_error,
            milliseconds=statistics.median(self._milliseconds),
        )

    @property
    def _noise(self) -> float:
        """The variance of the mean of g."""
        return self._gradients.variance / self._gradients.count

    @property
    def _squared_length(self) -> float:
        """|E g|^2."""
        return max(self._gradients.mean.square().sum().item() - self._noise, 0.0)

    @property
    def _root_mean_square(self) -> float:
        """sqrt(E |g|^2)."""
        return math.sqrt(self._squared_length + self._gradients.variance)

    @property
    def _exact_norm(self) -> float:
        """|e|; NaN where it is not above twice its standard error, or is 0 up to rounding."""
        square = self._exact.squared_length
        rounding = 1e-6 * self._root_mean_square
        is_known = square > max(4 * self._exact.error**2, rounding**2)
        return math.sqrt(square) if is_known else math.nan

    def _bias(self) -> tuple[float, float]:
        noise = self._noise + self._exact.error**2
        square = (self._gradients.mean - self._exact.gradient).square().sum().item()
        return math.sqrt(max(square - noise, 0.0)), math.sqrt(noise)

    def _projection(self) -> tuple[float, float]:
        square = self._exact_norm**2
        error = math.sqrt(self._along.variance / self._along.count)
        return _quotient(self._along.mean.item(), square), _quotient(error, square)

    def _cosine(self) -> tuple[float, float]:
        square = self._squared_length
        length = math.sqrt(square) if square > 4 * self._noise else math.nan
        projection = self._along.mean.item() / self._exact_norm
        error = _turning_error(self._gradients.blocks, self._gradients.mean, self._exact.gradient)
        return _clamped(_quotient(projection, length)), _quotient(error, length)

    def _progress(self) -> tuple[float, float]:
        scale = _quotient(self._exact_norm, self._root_mean_square)
        projection, error = self._projection()
        return _clamped(projection * scale), error * scale


def _turning_error(blocks: Sequence[Tensor], mean: Tensor, exact: Tensor) -> float:
    """The standard error of the mean in the one direction that turns it from the exact one."""
    u, v = (vector / vector.norm() for vector in (exact, mean))
    across = u - torch.dot(u, v) * v
    parts = (torch.stack(list(blocks)) @ across).tolist()
    return statistics.stdev(parts) / math.sqrt(len(parts))


def _noise_directions(blocks: Sequence[Sequence[Tensor]]) -> float:
    """(tr C)^2 / tr C^2, the number of directions of equal noise that C amounts to.

    C is the covariance matrix of the difference of two means; each is that of some blocks. The
    square of a sample covariance has a bias, which is taken off (Srivastava, "Some tests concerning
    the covariance matrix in high dimensional data" (2005), https://doi.org/10.14490/jjss.35.251).
    """
    parts = [_scaled_deviations(each) for each in blocks if len(each) > 1]
    traces = [part.square().sum().item() for part in parts]
    squares = 0.0
    for i, part in enumerate(parts):
        squares += _trace_of_square(part, traces[i])
        squares += 2 * sum((part @ other.T).square().sum().item() for other in parts[:i])
    most = blocks[0][0].numel()
    return min(max(sum(traces) ** 2 / squares, 1.0), most) if squares > 0 else most


def _scaled_deviations(blocks: Sequence[Tensor]) -> Tensor:
    """X, such that X^T X estimates the covariance matrix of the mean of the blocks."""
    stacked = torch.stack(list(blocks))
    return (stacked - stacked.mean(0)) / math.sqrt(len(blocks) * (len(blocks) - 1))


def _trace_of_square(deviations: Tensor, trace: float) -> float:
    """tr C^2 without a bias, for normal blocks; of two blocks its upper bound (tr C)^2."""
    freedom = len(deviations) - 1
    if freedom < 2:
        return trace**2
    square = (deviations @ deviations.T).square().sum().item()
    return (square - trace**2 / freedom) * freedom**2 / ((freedom - 1) * (freedom + 2))


def _clamped(cosine: float) -> float:
    return cosine if math.isnan(cosine) else max(min(cosine, 1.0), -1.0)


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


class _Replaced(Messenger):
    """Straight-through sites of a family have this estimator and this temperature.

    Where all sites are counts, they have the estimator.
    """

    def __init__(self, estimator: Estimator, temperature: float | None, of_counts: bool) -> None:
        super().__init__()
        self._estimator = estimator
        self._temperature = temperature
        self._kind = NamedCount if of_counts else FamilyStraightThrough

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = self._replaced(msg["fn"])

    def _replaced(self, distribution: Any) -> Any:
        base: Any = innermost(distribution)
        if not isinstance(base, self._kind):
            return distribution
        if isinstance(distribution, OutcomeDistribution):
            return distribution.mapped(self._replaced)
        if isinstance(distribution, WRAPPERS):
            return wrapped_like(distribution, self._replaced(distribution.base_dist))
        if isinstance(base, NamedCount):
            return base.with_estimator(self._estimator)
        new: Any = base.expand(base.batch_shape)  # type: ignore[attr-defined]
        new.estimator = self._estimator
        tau = self._temperature
        new._temperature = None if tau is None else base._parameter.new_full((), tau)
        new._has_number = False
        return new
