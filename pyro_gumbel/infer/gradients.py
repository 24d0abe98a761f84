# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which estimator, at which temperature: the gradients of a model and its guide, measured."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from tqdm import tqdm  # which Pyro depends on

from pyro_gumbel._validation import read_count, read_number, read_seed
from pyro_gumbel.distributions.straight_through import FamilyStraightThrough
from pyro_gumbel.distributions.wrappers import innermost, rewrapped
from pyro_gumbel.estimators import NAMES, Estimator, named, suited
from pyro_gumbel.infer.exact_gradient import (
    DRAWS,
    ExactGradient,
    Moments,
    by_enumeration,
    by_score_function,
)
from pyro_gumbel.infer.objective import Objective
from pyro_gumbel.infer.report import GradientReport, GradientRow

__all__ = ["gradient_report"]

OWNER = "gradient_report"
MOST_STATES = 2048  # that are enumerated
BLOCKS = 10  # of gradients, whose spread gives the error of a direction


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
    r"""Measure bias, noise and cost of the gradients of a model and a guide, by estimator.

    The gradient is that of the loss of SVI in the parameters of the guide, at their present values
    and these arguments. Of a subsampled plate, one subsample is drawn and kept. Parameters that the
    guide uses and only the model registers, as by `pyro.module`, count too. Each estimator and
    temperature is used at all straight-through sites of model and guide, instead of those that they
    were written with. Nothing is trained.

    Each row of the report compares the gradients g of one estimator and temperature with the exact
    gradient e,

    .. math::
        \text{bias} = |E g - e|, \qquad
        \text{standard deviation} = \sqrt{E |g - E g|^2}, \qquad
        \text{progress} = \frac{\langle E g, e \rangle}{\sqrt{E |g|^2} \, |e|}

    and others, see `GradientRow`.

    The exact gradient is enumerated if all latent sites of the guide are discrete and have up to
    2048 joint states, or up to 2048 in parallel in a model that `TraceEnum_ELBO` can run. Otherwise
    it is estimated without bias, by the score function with leave-one-out baselines. The report
    then has its standard error; raise `num_exact_samples` where that is not small against the
    length of the gradient. Only the sites may be random: call `.eval()` of modules with dropout or
    batch normalisation.

    >>> def model():
    ...     z = pyro.sample("z", BernoulliStraightThrough(0.5, 0.5))
    ...     pyro.sample("x", pyro.distributions.Normal(3 * z, 1.0), obs=torch.tensor(2.0))
    >>> guide = AutoRelaxed(model, 0.5)
    >>> report = gradient_report(model, guide, estimators=["reinmax", "gumbel_softmax"],
    ...                          temperatures=[1.0], progress=False)
    >>> report.best().estimator
    'reinmax'

    Source of the baselines: Kool, van Hoof and Welling, "Buy 4 REINFORCE samples, get a baseline
    for free!" (2019), https://openreview.net/forum?id=r1lgTGL5DE.

    :param model: as for SVI.
    :param guide: as for SVI, with straight-through sites.
    :param args: the positional arguments of both, a tuple or list.
    :param kwargs: their keyword arguments, a dictionary.
    :param estimators: names or functions, see `pyro_gumbel.estimators`; None for all that apply to
        the sites of the guide.
    :param temperatures: positive numbers.
    :param num_samples: how many gradients are drawn for each row of the table, 2 or more.
    :param num_exact_samples: how many draws a score-function estimate takes, 20 or more; by default
        50 times `num_samples`.
    :param elbo: the loss of SVI, a `Trace_ELBO` (the default) or `TraceMeanField_ELBO`.
    :param seed: of each row, an int. The state of the global generator is restored afterwards.
    :param progress: whether to show a progress bar.
    :returns: a report with a row for each estimator and temperature.
    :raises ValueError: for a guide without parameters or without straight-through sites; for
        numbers out of range; and where an estimator raises it, as "reinmax" does at a site of
        subsets.
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
        estimators = _names(objective) if estimators is None else estimators
        settings = _read_settings(estimators, temperatures)
        for setting in settings:  # a setting that raises does so before the long runs
            _gradient(objective, elbo, setting)
        exact = _exact_gradient(objective, num_exact_samples, progress)
        rows = []
        with tqdm(total=len(settings) * num_samples, desc="gradients", disable=not progress) as bar:
            for setting in settings:
                torch.manual_seed(seed + 1)  # other draws than those of the exact gradient
                rows.append(_row(objective, elbo, setting, exact, num_samples, bar))
    norm = math.sqrt(max(exact.squared_length, 0.0))
    return GradientReport(rows, norm, exact.error, exact.how, num_samples, exact.gradient.numel())


# What the user passes.


@dataclass(frozen=True)
class _Setting:
    """What a row of the report measures."""

    label: str
    estimator: Estimator
    temperature: float


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


def _read_settings(estimators: Sequence[str | Estimator], temperatures: Any) -> list[_Setting]:
    if hasattr(temperatures, "tolist"):  # a tensor or an array
        temperatures = temperatures.tolist()
    _require_list("estimators", estimators, '["reinmax"]')
    _require_list("temperatures", temperatures, "[0.5]")
    labels = [_label(each) for each in estimators]
    if len(set(labels)) < len(labels):
        labels = [f"{i}: {label}" for i, label in enumerate(labels)]
    functions = list(zip(labels, map(named, estimators), strict=True))
    taus = [read_number(OWNER, "temperatures", each) for each in temperatures]
    return [_Setting(label, function, tau) for label, function in functions for tau in taus]


def _require_list(name: str, given: Any, example: str) -> None:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise TypeError(
            f"{OWNER}: `{name}` must be a list of one or more, got {given!r}; write "
            f"{name}={example}"
        )


def _label(estimator: str | Estimator) -> str:
    if isinstance(estimator, str):
        return estimator
    return getattr(estimator, "__name__", repr(estimator))


# What is measured.


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """Random numbers from `seed`; afterwards the state of the generators is what it was."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _exact_gradient(objective: Objective, draws: int, progress: bool) -> ExactGradient:
    found = by_enumeration(objective, MOST_STATES)
    if found is not None:
        return found
    groups = tqdm(range(draws // DRAWS), desc="exact gradient", disable=not progress)
    return by_score_function(objective, groups)


def _row(
    objective: Objective,
    elbo: Trace_ELBO,
    setting: _Setting,
    exact: ExactGradient,
    num_samples: int,
    bar: Any,
) -> GradientRow:
    _gradient(objective, elbo, setting)  # warms up
    measured = _Measured(exact)
    for _ in range(num_samples):
        start = time.perf_counter()
        gradient = _gradient(objective, elbo, setting)
        measured.add(gradient, 1000 * (time.perf_counter() - start))
        bar.update()
    return measured.row(setting)


def _gradient(objective: Objective, elbo: Trace_ELBO, setting: _Setting) -> Tensor:
    replaced = _Replaced(setting.estimator, setting.temperature)
    return objective.gradient(objective.loss(elbo, replaced))


class _Measured:
    """Running statistics of gradients g, against the exact gradient e.

    A mean has noise, which lengthens it on average. Lengths are corrected for that: the variance of
    the noise is taken off the square.
    """

    def __init__(self, exact: ExactGradient) -> None:
        self._exact = exact
        self._gradients = Moments()
        self._along = Moments()  # of <g, e>
        self._blocks = [Moments() for _ in range(BLOCKS)]
        self._milliseconds: list[float] = []

    def add(self, gradient: Tensor, milliseconds: float) -> None:
        self._blocks[self._gradients.count % BLOCKS].add(gradient)
        self._gradients.add(gradient)
        self._along.add(torch.dot(gradient, self._exact.gradient).reshape(1))
        self._milliseconds.append(milliseconds)

    def row(self, setting: _Setting) -> GradientRow:
        bias, bias_error = self._bias()
        cosine, cosine_error = self._cosine()
        progress, progress_error = self._progress()
        return GradientRow(
            estimator=setting.label,
            temperature=setting.temperature,
            bias=bias,
            bias_error=bias_error,
            standard_deviation=math.sqrt(self._gradients.variance),
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

    def _cosine(self) -> tuple[float, float]:
        square = self._squared_length
        length = math.sqrt(square) if square > 4 * self._noise else math.nan
        projection = self._along.mean.item() / self._exact_norm
        error = _turning_error(self._blocks, self._gradients.mean, self._exact.gradient)
        return _clamped(_quotient(projection, length)), _quotient(error, length)

    def _progress(self) -> tuple[float, float]:
        norm, root_mean_square = self._exact_norm, self._root_mean_square
        projection = self._along.mean.item() / norm
        error = math.sqrt(self._along.variance / self._along.count) / norm
        progress = _clamped(_quotient(projection, root_mean_square))
        return progress, _quotient(error, root_mean_square)


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


class _Replaced(Messenger):
    """Straight-through sites have this estimator and this temperature."""

    def __init__(self, estimator: Estimator, temperature: float) -> None:
        super().__init__()
        self._estimator = estimator
        self._temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        base: Any = innermost(msg["fn"])
        if not isinstance(base, FamilyStraightThrough):
            return
        new: Any = base.expand(base.batch_shape)  # type: ignore[attr-defined]
        new.estimator = self._estimator
        new._temperature = base._parameter.new_tensor(self._temperature)
        msg["fn"] = rewrapped(msg["fn"], new)


def _names(objective: Objective) -> Sequence[str]:
    """The estimators that suit all straight-through sites."""
    bases = map(innermost, objective.sites.values())
    links = [base.link for base in bases if isinstance(base, FamilyStraightThrough)]
    return [name for name in NAMES if all(name in suited(link) for link in links)]


def _require_something_to_measure(objective: Objective) -> None:
    bases = {name: innermost(distribution) for name, distribution in objective.sites.items()}
    if not any(isinstance(base, FamilyStraightThrough) for base in bases.values()):
        kinds = {name: type(base).__name__ for name, base in bases.items()}
        raise ValueError(
            f"{OWNER}: `guide` must have a latent site with a straight-through distribution, got "
            f"{kinds}; write AutoRelaxed(model, 0.5), or a straight-through class such as "
            "CategoricalStraightThrough in the guide"
        )
    if not objective.parameters:
        raise ValueError(
            f"{OWNER}: `guide` must have parameters, got none with a gradient; write "
            'pyro.param("logits", torch.zeros(3)) inside the guide, or pyro.module("net", net) '
            "for a network"
        )
