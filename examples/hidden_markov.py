# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""A hidden Markov model with plain Categorical sites
==================================================

A Markov-switching model of stock returns: exact enumeration against mean-field relaxation.

Usage::

    python examples/hidden_markov.py                # about a minute
    python examples/hidden_markov.py --months 6     # short histories, faster

Ctrl-C ends the training early and keeps the result.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.distributions import constraints
from pyro.infer import ELBO, SVI, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.optim import ClippedAdam
from torch import Tensor

from options import Trainings, option_parser, whole_number
from pyro_gumbel import AutoRelaxed, relaxed

# %%
# The data
# --------
#
# A market is calm or volatile. The state z of a month depends on that of the month before, and the
# return is ``Normal(locs[z], scales[z])``. The histories are drawn with the parameters that Hardy
# found for the Toronto stock index (M. R. Hardy, "A Regime-Switching Model of Long-Term Stock
# Returns", North American Actuarial Journal 5(2), 2001,
# https://doi.org/10.1080/10920277.2001.10595984). The program finds the parameters again.

HISTORIES = 40
VOLATILE = 1  # the other state is 0, calm
FIRST = torch.tensor([0.5, 0.5])  # the probabilities of the first state


class Parameters(NamedTuple):
    """Transition probabilities, and mean and scale of a month's log return in percent."""

    transitions: Tensor
    locs: Tensor
    scales: Tensor


HARDY = Parameters(
    torch.tensor([[0.9629, 0.0371], [0.2101, 0.7899]]),
    torch.tensor([1.23, -1.57]),
    torch.tensor([3.47, 7.78]),
)


def histories(months: int) -> tuple[Tensor, Tensor]:
    """Returns and states, of the shape (histories, months)."""
    z = dist.Categorical(FIRST).sample((HISTORIES,))
    states = [z]
    while len(states) < months:
        states.append(dist.Categorical(HARDY.transitions[states[-1]]).sample())
    z = torch.stack(states, -1)
    return dist.Normal(HARDY.locs[z], HARDY.scales[z]).sample(), z


# %%
# The model
# ---------
#
# It is plain Pyro, with a site for each month. Enumeration needs ``pyro.markov``. For relaxation a
# plain ``range`` gives the same loss and gradient.


def learnt() -> Parameters:
    return Parameters(
        pyro.param("transitions", torch.tensor([[0.9, 0.1], [0.1, 0.9]]), constraints.simplex),
        pyro.param("locs", torch.zeros(2)),
        pyro.param("scales", torch.tensor([3.0, 6.0]), constraints.positive),
    )


def model(returns: Tensor) -> None:
    transitions, locs, scales = learnt()
    with pyro.plate("histories", len(returns)):
        probs = FIRST
        for month in pyro.markov(range(returns.shape[-1])):
            z = pyro.sample(f"z{month}", dist.Categorical(probs))
            pyro.sample(f"x{month}", dist.Normal(locs[z], scales[z]), obs=returns[:, month])
            probs = transitions[z]


# %%
# The vectorised model has the same joint density, without a loop. All months are one site, in which
# each state has the probability 1/2. A factor replaces this by the transition from the month
# before, P. So it multiplies by P / (1/2) = 2 P for each step. With K states that would be K P.


def vectorised(returns: Tensor) -> None:
    """The same joint density as `model`."""
    transitions, locs, scales = learnt()
    with pyro.plate("histories", len(returns), dim=-2):
        with pyro.plate("months", returns.shape[-1], dim=-1):
            z = pyro.sample("z", dist.Categorical(FIRST))
            pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=returns)
        steps = (2 * transitions).log()[z[..., :-1], z[..., 1:]]
        pyro.factor("chain", steps.sum(-1, keepdim=True))


# %%
# Training
# --------
#
# All three fits share this loop.


class Fit(NamedTuple):
    """The parameters, P(volatile) by history and month, the ELBO of each step, ms a step."""

    parameters: Parameters
    volatile: Tensor
    elbos: list[float]
    milliseconds: float

    @property
    def elbo(self) -> float:
        """The mean over the last tenth of the steps."""
        last = self.elbos[-max(1, len(self.elbos) // 10) :]
        return sum(last) / len(last)


class Run(NamedTuple):
    """What all trainings share."""

    returns: Tensor
    steps: int
    trainings: Trainings


def train(run: Run, what: str, trained: Any, guide: Any, elbo: ELBO) -> tuple[list[float], float]:
    def rate(parameter: str) -> dict[str, float]:
        return {"lr": 0.3 if "logits" in parameter else 0.1, "lrd": 0.03 ** (1 / run.steps)}

    svi = SVI(trained, guide, ClippedAdam(rate), elbo)
    elbos: list[float] = []
    began = run.trainings.clock()
    for _, bar in run.trainings.steps(run.steps, svi, run.returns, what=what, records=[elbos]):
        elbos.append(-svi.step(run.returns))
        bar.set_postfix_str(f"ELBO {elbos[-1]:.1f}", refresh=False)
    return elbos, 1000 * (run.trainings.clock() - began) / len(elbos)


# %%
# By enumeration
# --------------
#
# ``TraceEnum_ELBO`` sums over all paths of the states, one month after the other.


def by_enumeration(run: Run) -> Fit:
    pyro.clear_param_store()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    trained = train(run, "enumeration", config_enumerate(model), nothing, elbo)
    found = detached(learnt())
    return Fit(found, volatile_given(found, run.returns), *trained)


def nothing(_: Tensor) -> None:
    """The guide where all sites are enumerated."""


def detached(parameters: Parameters) -> Parameters:
    return Parameters(*(value.detach().clone() for value in parameters))


# %%
# By relaxation
# -------------
#
# The line is ``relaxed(model)``. The guide is `AutoRelaxed`, in which all states are independent.
# ``TraceMeanField_ELBO`` has the exact divergences.


def by_relaxation(run: Run) -> Fit:
    relaxed_model = relaxed(model)
    guide, trained = mean_field(run, "relaxation", relaxed_model)
    sites = [guide.distribution(f"z{month}") for month in range(run.returns.shape[-1])]
    volatile = torch.stack([site.probs[..., VOLATILE].detach() for site in sites], -1)
    return Fit(detached(learnt()), volatile, *trained)


def by_vectorised_relaxation(run: Run) -> Fit:
    guide, trained = mean_field(run, "vectorised", relaxed(vectorised))
    volatile = guide.distribution("z").probs[..., VOLATILE].detach()
    return Fit(detached(learnt()), volatile, *trained)


def mean_field(
    run: Run, what: str, relaxed_model: Any
) -> tuple[AutoRelaxed, tuple[list[float], float]]:
    """The trained guide, in which all states of all months are independent."""
    pyro.clear_param_store()
    guide = AutoRelaxed(relaxed_model)
    return guide, train(run, what, relaxed_model, guide, TraceMeanField_ELBO())


# %%
# The forward algorithm
# ---------------------
#
# The same sums by hand. They give the log evidence of any parameters, and the probabilities of the
# states.


def log_evidence(parameters: Parameters, observed: Tensor) -> Tensor:
    """Of each history, given the log densities of its months in each state."""
    paths = FIRST.log() + observed[:, 0]
    for month in observed.unbind(1)[1:]:
        paths = (paths.unsqueeze(-1) + parameters.transitions.log()).logsumexp(-2) + month
    return paths.logsumexp(-1)


def log_densities(parameters: Parameters, returns: Tensor) -> Tensor:
    return dist.Normal(parameters.locs, parameters.scales).log_prob(returns.unsqueeze(-1))


def volatile_given(parameters: Parameters, returns: Tensor) -> Tensor:
    """P(volatile | returns): the gradient of the log evidence in the log density of that state."""
    observed = log_densities(parameters, returns).requires_grad_()
    (probs,) = torch.autograd.grad(log_evidence(parameters, observed).sum(), observed)
    return probs[..., VOLATILE] / probs.sum(-1)  # a sum of 1, but for rounding


# %%
# The table
# ---------


def compare(run: Run, states: Tensor) -> dict[str, Fit]:
    fits = {
        "enumeration": by_enumeration(run),
        "relaxation": by_relaxation(run),
        "vectorised": by_vectorised_relaxation(run),
    }
    evidence = log_evidence(HARDY, log_densities(HARDY, run.returns)).sum().item()
    truth = Fit(HARDY, volatile_given(HARDY, run.returns), [evidence], float("nan"))
    columns = {"truth": truth, **fits}
    print(f"{'{} histories of {} months'.format(*states.shape):36}", end="")
    print("".join(f"{name:>13}" for name in columns))
    for label, digits, value in measures(run.returns, states):
        cells = (f"{value(fit):13.{digits}f}" for fit in columns.values())
        print(f"{label:36}" + "".join(cells).replace("nan", "   "))
    return fits


def measures(returns: Tensor, states: Tensor) -> list[tuple[str, int, Callable[[Fit], float]]]:
    """What the table has: the label, the digits, and how to compute it."""

    def evidence(fit: Fit) -> float:
        return log_evidence(fit.parameters, log_densities(fit.parameters, returns)).sum().item()

    def found(fit: Fit) -> float:
        return 100 * ((fit.volatile > 0.5) == (states == VOLATILE)).float().mean().item()

    def score(fit: Fit) -> float:
        return dist.Bernoulli(fit.volatile).log_prob((states == VOLATILE).float()).mean().item()

    return [
        ("calm: mean, %", 2, lambda fit: fit.parameters.locs[0]),
        ("calm: scale, %", 2, lambda fit: fit.parameters.scales[0]),
        ("volatile: mean, %", 2, lambda fit: fit.parameters.locs[1]),
        ("volatile: scale, %", 2, lambda fit: fit.parameters.scales[1]),
        ("P(calm to volatile)", 3, lambda fit: fit.parameters.transitions[0, 1]),
        ("P(volatile to calm)", 3, lambda fit: fit.parameters.transitions[1, 0]),
        ("log evidence of the parameters, nats", 1, evidence),
        ("ELBO, nats", 1, lambda fit: fit.elbo),
        ("months whose state is found, %", 1, found),
        ("log P(true state), nats a month", 3, score),
        ("milliseconds a step", 0, lambda fit: fit.milliseconds),
    ]


# %%
# The picture
# -----------
#
# A history with its states, the probabilities of all months, and the training.


def draw(path: Path, states: Tensor, fits: dict[str, Fit]) -> None:
    """A history with its states, the probabilities of all months, and the training."""
    figure = Figure(figsize=(12, 4), layout="constrained")  # needs no display
    left, middle, right = figure.subplots(1, 3)
    exact, mean_field = (fits[name].volatile.numpy() for name in ("enumeration", "vectorised"))
    mixed = (states == VOLATILE).float().mean(-1).sub(0.4).abs().argmin()
    months = range(states.shape[-1])
    left.bar(months, states[mixed].numpy(), width=1, color="0.9", label="volatile")
    left.plot(months, exact[mixed], "o-", label="by enumeration")
    left.plot(months, mean_field[mixed], "s-", label="by mean field")
    left.set(title="P(volatile) in one history", xlabel="month", ylim=(0, 1))
    left.legend(fontsize="small")
    middle.scatter(exact, mean_field, s=8, alpha=0.5)
    middle.axline((0, 0), slope=1, color="grey", lw=0.8)
    middle.set(title="P(volatile) of all months", xlabel="by enumeration", ylabel="by mean field")
    for name, fit in fits.items():
        right.plot(fit.elbos, lw=0.8, label=f"{name}: {fit.milliseconds:.0f} ms a step")
    best = fits["enumeration"].elbo
    right.set(title="ELBO, nats", xlabel="step", ylim=(best - 150, best + 20))
    right.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=110)


# %%
# The program
# -----------


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=300, out="hidden_markov.png")
    months = whole_number(2, 24)
    parser.add_argument("--months", type=months, default=24, help="of a history (default: 24)")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    trainings = Trainings(options)
    began = trainings.clock()
    pyro.set_rng_seed(options.seed)
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    returns, states = histories(options.months)
    run = Run(returns, options.steps, trainings)
    fits = compare(run, states)
    draw(options.out, states, fits)
    print(f"wrote {options.out} after {trainings.clock() - began:.0f} s")


if __name__ == "__main__":
    main()

# %%
# The result
# ----------
#
# Enumeration wins. For a single chain the sum over all paths is exact and cheap: it is the forward
# algorithm. The ELBO is then the log evidence.
#
# Relaxation finds the means and scales, but here not how long a state lasts, and its probabilities
# of the states are worse. The returns of the two states overlap, so in the posterior the state of a
# month depends on its neighbours. The guide does not have that dependence. If the states are far
# apart, relaxation finds the transitions too: set the volatile mean to -30 in ``HARDY``, and start
# ``locs`` at (0, -20).
#
# The reason is the guide, not the gradient. Its ELBO is below the log evidence, and it has several
# optima. With the default options the ELBO
# is -2843, and -2841 with the vectorised model. Coordinate ascent, with exact sums and from the
# same start, ends at -2841 nats too. From the exact probabilities of the states it ends at -2820,
# which is better, and still 27 nats below the log evidence.
#
# Start the guide at a guess from the data if the optimum is poor. Here ``guide(returns)`` and then
# ``guide.logits.z.data[..., VOLATILE] = returns.abs() - 6``, before the training in `mean_field`,
# call a month volatile if its return is larger than about 6 %. The transitions found are then near
# the true ones. Random logits end where the default start does.
#
# A step of the vectorised chain takes a small part of the time of the loop. One draw a step is
# enough here, with hundreds of states that share the parameters.
#
# What to try next
# ----------------
#
# - ``--months 6``: short histories, from which less can be learnt.
# - ``--seed 1``: other histories.
# - Relax where the sum is out of reach: where several chains enter one likelihood, or where a state
#   depends on many of the states before.
