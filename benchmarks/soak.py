# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Many steps of SVI of small models: whether numbers stay finite, and memory stays as it is.

    python benchmarks/soak.py --threads 1                         # more than 200,000 steps
    python benchmarks/soak.py --threads 1 --steps 50 --only subsets

A cell is a family, an estimator, a guide, an ELBO and a precision. Six points are observed, each
with one latent site of the family. The guide is `AutoRelaxed`, or a linear network that computes
the parameters of the sites from the points. The temperature falls from 1 to 0.01 in the first half
of the steps and stays there. A relaxed cell has continuous values and no estimator.

For each family are printed: its cells and steps; steps with an infinite or NaN loss, gradient or
parameter; how many tensors and MiB the process has more at the end of a cell than after a fifth of
its steps, in the cell where it is most; and seconds of CPU time. A round is all families,
estimators and guides with one ELBO and precision. For each round are printed the resident memory
and the tensors that are alive at its end. The exit status is 1 if there is a number that is not
finite, an error or a warning.
"""

import argparse
import gc
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from turns import environment_parser, read_options, write

from pyro_gumbel import (
    AutoRelaxed,
    ExpRelaxedCategorical,
    GeometricTemperature,
    HardConcrete,
    LearnedCurvature,
    LogitHardConcrete,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    PlackettLuce,
    SelectedComponent,
    Subset,
    mve,
    relaxed,
)

POINTS, NUMBERS, HIDDEN = 6, 3, 4  # observed points, the numbers of each, the width of the model
TRIALS = 5
LEARNING_RATE = 0.02

SUBSETS = ("gumbel_rao", "gumbel_softmax", "straight_through", "second_order")
ONE_HOT = (*SUBSETS, "gapped", "mve", "reinmax", "reinmax_rao")
CURVED = (*ONE_HOT, "LearnedCurvature")
CONTINUOUS = ("relaxed",)
SECOND, THIRD = ("second_order",), ("second_order", "third_order")
WITHOUT_TEMPERATURE = ("second_order", "third_order", "reinmax_rao")

ELBOS = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO)
PRECISIONS = ("float32", "bfloat16")
WRONG = ("losses", "gradients", "parameters")  # steps in which they are not finite

Distribution = Any


# Families.


def normal(mean: Tensor) -> Distribution:
    return dist.Normal(mean, 1.0).to_event(1)


def linear(value: Tensor, table: Tensor) -> Distribution:
    return normal(value.flatten(1) @ table)


def of_count(value: Tensor, table: Tensor) -> Distribution:
    return normal(value.unsqueeze(-1) * table / TRIALS)


# Without validation, since the sum of torch's probabilities in bfloat16 is not 1 to 1e-6.


def one_hot(logits: Tensor) -> Distribution:
    return dist.OneHotCategorical(logits=logits, validate_args=False)


def multinomial(logits: Tensor) -> Distribution:
    return dist.Multinomial(TRIALS, logits=logits, validate_args=False)


class Family(NamedTuple):
    """How a model is made of one site for each point."""

    site: Callable[[Tensor, GeometricTemperature], Distribution]  # of unconstrained parameters
    parameters: int  # of a site
    features: int  # rows of the table of the model
    estimators: tuple[str, ...]
    likelihood: Callable[[Tensor, Tensor], Distribution] = linear  # of a value and the table
    variables: tuple[int, ...] = ()  # the shape of `LearnedCurvature`
    guides: tuple[str, ...] = ("AutoRelaxed", "network")


def gates(x: Tensor, temperature: GeometricTemperature) -> Distribution:
    return HardConcrete(temperature, logits=x).to_event(1)


def logit_gates(x: Tensor, temperature: GeometricTemperature) -> Distribution:
    return LogitHardConcrete(temperature, logits=x).to_event(1)


def opened(value: Tensor, table: Tensor) -> Distribution:
    return linear(LogitHardConcrete(1.0, logits=torch.zeros(())).gate(value), table)


def count(
    site: Callable[[Tensor], Distribution], parameters: int, estimators: tuple[str, ...]
) -> Family:
    """Of a distribution of numbers."""
    return Family(lambda x, _: site(x), parameters, 1, estimators, of_count)


def vector_count(site: Callable[[Tensor], Distribution]) -> Family:
    return Family(
        lambda x, _: site(x), 3, 3, SECOND, lambda value, table: linear(value / TRIALS, table)
    )


def by_hand(
    site: Callable[[Tensor, GeometricTemperature], Distribution],
    size: int,
    likelihood: Callable[[Tensor, Tensor], Distribution],
) -> Family:
    """Of a continuous distribution that `relaxed` leaves as it is."""
    return Family(site, size, size, CONTINUOUS, likelihood, guides=("network",))


# What comes before a colon is a row of the printed table.
FAMILIES = {
    "bits": Family(
        lambda x, _: dist.Bernoulli(logits=x).to_event(1),
        4, 4, (*CURVED, *CONTINUOUS), variables=(4,),
    ),
    "bits: logit space": by_hand(
        lambda x, t: LogitRelaxedBernoulli(t, logits=x).to_event(1),
        4, lambda value, table: linear(value.sigmoid(), table),
    ),
    "one-hot": Family(
        lambda x, _: one_hot(x.unflatten(-1, (2, 3))).to_event(1),
        6, 6, (*CURVED, *CONTINUOUS), variables=(2, 3),
    ),
    "one-hot: logit space": by_hand(
        lambda x, t: ExpRelaxedCategorical(t, logits=x),
        4, lambda value, table: linear(value.exp(), table),
    ),
    "one-hot: mixture": Family(
        lambda x, _: one_hot(x),
        4, 4, CURVED, lambda value, table: SelectedComponent(value, normal(table)), (4,),
    ),
    "integers": Family(
        lambda x, _: dist.Categorical(logits=x),
        4, 4, CURVED, lambda value, table: normal(table[value]), (4,),
    ),
    "subsets": Family(
        lambda x, _: Subset(2, logits=x), 5, 5, (*SUBSETS, *CONTINUOUS)
    ),
    "subsets: logit space": by_hand(
        lambda x, t: LogitRelaxedSubset(t, 2, logits=x),
        5, lambda value, table: linear(value.sigmoid(), table),
    ),
    "rankings": Family(
        lambda x, _: PlackettLuce(2, logits=x), 4, 8, (*ONE_HOT, *CONTINUOUS)
    ),
    "rankings: lengths": Family(
        lambda x, _: PlackettLuce(torch.tensor(2), logits=x, rows=3),
        4, 12, (*ONE_HOT, *CONTINUOUS),
    ),
    "counts: Poisson": count(lambda x: dist.Poisson(x[..., 0].exp()), 1, THIRD),
    "counts: Binomial": count(lambda x: dist.Binomial(TRIALS, logits=x[..., 0]), 1, THIRD),
    "counts: NegativeBinomial": count(
        lambda x: dist.NegativeBinomial(x[..., 0].exp(), logits=x[..., 1]), 2, THIRD
    ),
    "counts: Geometric": count(lambda x: dist.Geometric(logits=x[..., 0]), 1, THIRD),
    "counts: BetaBinomial": count(
        lambda x: dist.BetaBinomial(x[..., 0].exp(), x[..., 1].exp(), TRIALS), 2, THIRD
    ),
    "counts: GammaPoisson": count(
        lambda x: dist.GammaPoisson(x[..., 0].exp(), x[..., 1].exp()), 2, THIRD
    ),
    "counts: Multinomial": vector_count(multinomial),
    "counts: DirichletMultinomial": vector_count(
        lambda x: dist.DirichletMultinomial(x.exp(), TRIALS)
    ),
    "gates": by_hand(gates, 4, linear),
    "gates: logit space": by_hand(logit_gates, 4, opened),
}  # fmt: skip


# Cells.


class Cell(NamedTuple):
    """What is trained."""

    family: str
    estimator: str
    guide: str
    elbo: str
    precision: str


def cells(only: str = "") -> Iterator[list[Cell]]:
    """The rounds, each a list of cells; with `only` those whose text contains it."""
    for precision, elbo in itertools.product(PRECISIONS, ELBOS):
        every = [
            Cell(name, estimator, guide, elbo.__name__, precision)
            for name, family in FAMILIES.items()
            for estimator, guide in itertools.product(family.estimators, family.guides)
        ]
        if chosen := [cell for cell in every if only in described(cell)]:
            yield chosen


def described(cell: Cell) -> str:
    return ", ".join(cell)


class Training:
    """The model, the guide and the objective of a cell, and a step that counts what is wrong."""

    def __init__(self, cell: Cell, steps: int) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.cell = cell
        self.family = FAMILIES[cell.family]
        half = max(1, steps // 2)
        self.temperature = GeometricTemperature(1.0, 0.01, num_steps=half)
        self.tau = GeometricTemperature(160, 1e5, num_steps=half)
        self.data = torch.randn(POINTS, NUMBERS)
        self.network = nn.Linear(NUMBERS, self.family.parameters)
        settings = self.settings()
        self.model = relaxed(self.plain_model, **settings)
        self.optimiser = WatchedAdam()
        self.svi = SVI(self.model, self.guide_of(settings), self.optimiser, self.elbo())
        self.infinite_losses = 0

    def settings(self) -> dict[str, Any]:
        """What `relaxed` and `AutoRelaxed` are given."""
        estimator = self.cell.estimator
        if estimator == "relaxed":
            return {"temperature": self.temperature, "hard": False}
        if estimator == "LearnedCurvature":
            return {"estimator": LearnedCurvature(self.family.variables)}
        if estimator == "mve":
            return {"estimator": mve(self.tau)}
        temperature = None if estimator in WITHOUT_TEMPERATURE else self.temperature
        return {"temperature": temperature, "estimator": estimator}

    def elbo(self) -> Any:
        return next(elbo for elbo in ELBOS if elbo.__name__ == self.cell.elbo)()

    def plain_model(self) -> None:
        table = pyro.param("codes", lambda: torch.randn(self.family.features, HIDDEN))
        table = table @ pyro.param("layer", lambda: torch.randn(HIDDEN, NUMBERS))
        prior = self.family.site(torch.zeros(self.family.parameters), self.temperature)
        with pyro.plate("points", POINTS):
            value = pyro.sample("z", prior)
            pyro.sample("x", self.family.likelihood(value, table), obs=self.data)

    def plain_guide(self) -> None:
        pyro.module("network", self.network)
        with pyro.plate("points", POINTS):
            pyro.sample("z", self.family.site(self.network(self.data), self.temperature))

    def guide_of(self, settings: dict[str, Any]) -> Callable[[], Any]:
        if self.cell.guide == "network":
            return relaxed(self.plain_guide, **settings)
        return AutoRelaxed(self.model, **settings)

    def step(self) -> None:
        """One step of SVI and of the schedules."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.cell.precision == "bfloat16"):
            loss = self.svi.step()
        self.infinite_losses += not math.isfinite(loss)
        self.temperature.step()
        self.tau.step()


class WatchedAdam(PyroOptim):
    """Pyro's Adam, which counts steps with gradients and parameters that are not finite."""

    def __init__(self) -> None:
        super().__init__(torch.optim.Adam, {"lr": LEARNING_RATE})
        self.infinite_gradients = self.infinite_parameters = 0

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.infinite_gradients += any_infinite(p.grad for p in params if p.grad is not None)
        super().__call__(params, *args, **kwargs)
        self.infinite_parameters += any_infinite(params)


def any_infinite(tensors: Iterable[Tensor]) -> bool:
    return not all(tensor.isfinite().all() for tensor in tensors)


def live_tensors() -> int:
    """How many tensors Python holds."""
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def resident() -> float:
    """The memory of the process that is not swapped out, in MiB, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soaked(cell: Cell, steps: int) -> dict[str, Any]:
    """What is found in the steps of a cell."""
    training = Training(cell, steps)
    warm_up = max(1, steps // 5)
    seconds = timed(training, warm_up)
    tensors, memory = live_tensors(), resident()
    seconds += timed(training, steps - warm_up)
    return {
        "steps": steps,
        "losses": training.infinite_losses,
        "gradients": training.optimiser.infinite_gradients,
        "parameters": training.optimiser.infinite_parameters,
        "tensors": live_tensors() - tensors,
        "MiB": resident() - memory,
        "seconds": seconds,
    }


def timed(training: Training, steps: int) -> float:
    """The CPU time of some steps."""
    start = time.process_time()
    for _ in range(steps):
        training.step()
    return time.process_time() - start


def soaked_or_error(cell: Cell, steps: int) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # of estimators at temperatures that do not suit them, and of losses that are counted here
        warnings.filterwarnings("ignore", r"(reinmax|gapped): expected|Encountered (NaN|[+-]inf)")
        try:
            return {**cell._asdict(), **soaked(cell, steps)}
        except Exception as error:
            return {**cell._asdict(), "error": f"{type(error).__name__}: {error}"}


# What is printed and written.


def folded(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sums over the cells of each family, and of all, with the cells of the largest growth."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"].partition(":")[0], []).append(row)
    return {name: summary(of_family) for name, of_family in {**families, "all": rows}.items()}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    done = [row for row in rows if "error" not in row]
    sums = {what: sum(row[what] for row in done) for what in ("steps", *WRONG, "seconds")}
    most = {what: largest(done, what) for what in ("tensors", "MiB")}
    return {"cells": len(rows), "errors": len(rows) - len(done), **sums, **most}


def largest(rows: list[dict[str, Any]], what: str) -> tuple[float, str]:
    """The largest growth, and its cell."""
    row = max(rows, key=lambda row: row[what], default=None)
    return (row[what], described(cell_of(row))) if row else (0, "")


def cell_of(row: dict[str, Any]) -> Cell:
    return Cell(*(row[field] for field in Cell._fields))


def is_wrong(row: dict[str, Any]) -> bool:
    return "error" in row or any(row[what] for what in WRONG)


def print_table(families: dict[str, dict[str, Any]]) -> None:
    print("| family | cells | steps | losses / gradients / parameters not finite | errors "
          "| tensors, most | MiB, most | its cell | seconds |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name, found in families.items():
        wrong = " / ".join(str(found[what]) for what in WRONG)
        memory, cell = found["MiB"]
        print(f"| {name} | {found['cells']} | {found['steps']:,} | {wrong} | {found['errors']} "
              f"| {found['tensors'][0]} | {memory:.2f} | {cell} "
              f"| {found['seconds']:.0f} |")  # fmt: skip


def main() -> None:
    parser = environment_parser(__doc__)
    add = parser.add_argument
    add("--steps", type=int, default=220, help="of a cell, 2 or more (default: 220)")
    add("--only", default="", help="cells whose text contains this, such as 'subsets, gumbel_rao'")
    options: argparse.Namespace = read_options(parser)
    soaked(Cell("bits", "relaxed", "AutoRelaxed", "Trace_ELBO", "float32"), 2)  # loads all modules
    gc.freeze()  # what they hold, so that it is not searched
    rows: list[dict[str, Any]] = []
    rounds: list[dict[str, float]] = []
    for number, of_round in enumerate(cells(options.only), 1):
        rows += [soaked_or_error(cell, options.steps) for cell in of_round]
        pyro.clear_param_store()
        rounds.append({"MiB": resident(), "tensors": live_tensors()})
        print(f"round {number}: {rounds[-1]['MiB']:.0f} MiB resident, "
              f"{rounds[-1]['tensors']} tensors alive", flush=True)  # fmt: skip
    families = folded(rows)
    print_table(families)
    wrong = [row for row in rows if is_wrong(row)]
    print(*wrong, sep="\n")
    write(options, {"families": families, "rounds": rounds, "wrong": wrong})
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
