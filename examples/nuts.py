# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""NUTS over a relaxed model
=========================

NUTS over a relaxed model: what the temperature costs, and what a sum over the values gives.

Usage::

    python examples/nuts.py
    python examples/nuts.py --steps 1000    # draws of each chain

Ctrl-C ends the program after the chain that is under way.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from torch import Tensor
from torch.nn.functional import one_hot

from options import TorchTraining, Trainings, option_parser
from pyro_gumbel import ExpRelaxedCategorical, NoiseReparam, RelaxedCategorical, relaxed

# %%
# The model
# ---------
#
# A measurement of 1.6 is a normal level, plus the offset of the instrument, 0, 1 or 2.5, plus
# noise. Which instrument was used is latent.

PROBS = torch.tensor([0.5, 0.3, 0.2])  # of the instruments, a priori
OFFSETS = torch.tensor([0.0, 1.0, 2.5])
NOISE = 0.5
MEASURED = torch.tensor(1.6)


def model() -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    instrument = pyro.sample("instrument", dist.OneHotCategorical(PROBS))
    pyro.sample("measured", dist.Normal(level + instrument @ OFFSETS, NOISE), obs=MEASURED)


# %%
# Two relaxed forms
# -----------------
#
# NUTS needs a gradient for every latent variable, so it cannot draw the instrument, but can draw a
# relaxed one. Two forms of it do not round to 0 or 1:
#
# - noise: ``relaxed(model, T, hard=False)``, and `NoiseReparam` for the site. The model stays as it
#   is.
# - log space: a site `ExpRelaxedCategorical`, whose values are the logarithms of the relaxed ones.
#   This is a change of one line of the model.
#
# A third way needs no relaxation: ``NUTS(model)`` sums over a plain discrete site by itself.

TEMPERATURES = (1.0, 0.3, 0.1)


class Way(NamedTuple):
    """A model for NUTS, and the probabilities of the instruments for each of its draws."""

    model: Callable[[], None]
    instruments: Callable[[dict[str, Tensor]], Tensor]


def in_log_space(temperature: float) -> None:
    """The model with a relaxed instrument, written by hand."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    logs = pyro.sample("instrument", ExpRelaxedCategorical(temperature, probs=PROBS))
    pyro.sample("measured", dist.Normal(level + logs.exp() @ OFFSETS, NOISE), obs=MEASURED)


def by_noise(temperature: float) -> Way:
    soft = relaxed(model, temperature, hard=False)
    moved = poutine.reparam(soft, config={"instrument": NoiseReparam()})
    return Way(moved, lambda draws: largest(PROBS.log() + draws["instrument_noise"]))


def by_logs(temperature: float) -> Way:
    return Way(partial(in_log_space, temperature), lambda draws: largest(draws["instrument"]))


def by_sum() -> Way:
    """The discrete model itself: NUTS draws the level, and sums over the instruments."""
    return Way(model, lambda draws: given(draws["level"]))


def largest(values: Tensor) -> Tensor:
    return one_hot(values.argmax(-1), len(PROBS)).float()


WAYS: dict[str, tuple[str, float | None, Callable[[], Way]]] = {
    "NUTS, a sum": ("sum", None, by_sum),
    **{f"NUTS, noise, {t:g}": ("noise", t, partial(by_noise, t)) for t in TEMPERATURES},
    **{f"NUTS, log space, {t:g}": ("log space", t, partial(by_logs, t)) for t in TEMPERATURES},
}

# %%
# The exact posteriors
# --------------------
#
# The instrument has an exact posterior, by Bayes' rule. The relaxed model has another one. It is
# found from weighted draws of the prior, so that the error of the temperature can be told from that
# of the sampler.

WEIGHTED = 200_000  # draws of the prior


def given(level: Tensor) -> Tensor:
    """P(instrument | level, measurement), by Bayes' rule."""
    likelihood = dist.Normal(level.unsqueeze(-1) + OFFSETS, NOISE).log_prob(MEASURED)
    return (PROBS.log() + likelihood).softmax(-1)


def exact() -> Tensor:
    """P(instrument | measurement): without the level the measurement is normal."""
    log_evidence = dist.Normal(OFFSETS, (1 + NOISE**2) ** 0.5).log_prob(MEASURED)
    return (PROBS.log() + log_evidence).softmax(-1)


def exact_relaxed(temperature: float) -> Tensor:
    """The same of the relaxed model, from draws of its prior, weighted by their likelihood."""
    z = RelaxedCategorical(temperature, probs=PROBS).sample((WEIGHTED,))
    log_evidence = dist.Normal(z @ OFFSETS, (1 + NOISE**2) ** 0.5).log_prob(MEASURED)
    return log_evidence.softmax(0) @ largest(z)


# %%
# Sampling
# --------
#
# Each chain has a warm-up of half as many draws. The instrument of a draw is its largest entry.


def sampled(way: Way, draws: int) -> dict[str, Any]:
    """What one chain finds, and what it costs."""
    gradients = 0

    def counted() -> None:
        nonlocal gradients
        gradients += 1
        way.model()

    chain = MCMC(NUTS(counted), draws, draws // 2, disable_progbar=True)
    chain.run()
    instruments = way.instruments(chain.get_samples())
    effective = effective_sample_size(instruments.unsqueeze(0), 0, 1)
    return {
        "probabilities": instruments.mean(0),
        "error": instruments.std(0) / effective.sqrt(),
        "effective": effective.min().item(),
        "gradients": gradients,
        "divergences": len(chain.diagnostics()["divergences"]["chain 0"]),
    }


def sample_all(trainings: Trainings, draws: int) -> dict[str, dict[str, Any]]:
    """All chains. In a checkpoint a chain is a step of one training."""
    found: dict[str, dict[str, Any]] = {}
    steps = trainings.steps(len(WAYS), TorchTraining(), what="chains", records=[found])
    for step, bar in steps:
        name, (_, _, way) = list(WAYS.items())[step - 1]
        bar.set_postfix_str(name)
        found[name] = sampled(way(), draws)
    return found


# %%
# The table
# ---------
#
# By temperature T: the probabilities of the three instruments, the effective number of draws (the
# smallest of the three), the number of gradients, and the divergent transitions.


def line(name: str, probabilities: Tensor) -> str:
    return f"{name:24}" + "".join(f"{p:7.3f}" for p in probabilities)


def report(found: dict[str, dict[str, Any]]) -> None:
    print(f"{'':24}    P(instrument)    effective   gradients   divergences")
    print(line("exact", exact()))
    for temperature in (None, *TEMPERATURES):
        if temperature is not None:
            print(line(f"exact, relaxed, {temperature:g}", exact_relaxed(temperature)))
        for name, row in found.items():
            if WAYS[name][1] == temperature:
                costs = f"{row['effective']:9.0f}{row['gradients']:12}{row['divergences']:14}"
                print(line(name, row["probabilities"]) + costs)


# %%
# The picture
# -----------


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """The probabilities by temperature, and the gradients that an effective draw takes."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")  # without pyplot: needs no display
    left, right = figure.subplots(1, 2)
    grid = torch.logspace(-1.5, 0.3, 10).tolist()
    curves = torch.stack([exact_relaxed(t) for t in grid])
    for i, limit in enumerate(exact().tolist()):
        left.plot(grid, curves[:, i], color=f"C{i}", label=f"instrument {i + 1}")
        left.axhline(limit, color=f"C{i}", ls=":")
    for name, marker, shift in (("noise", "o", 0.95), ("log space", "s", 1.05)):
        rows = [(t, found[each]) for each, (n, t, _) in WAYS.items() if n == name and each in found]
        for t, row in rows:
            for i, (p, error) in enumerate(zip(row["probabilities"], row["error"], strict=True)):
                left.errorbar(shift * t, p, 2 * error, fmt=marker, color=f"C{i}", ms=4, alpha=0.7)
        costs = [row["gradients"] / row["effective"] for _, row in rows]
        right.plot([t for t, _ in rows], costs, marker=marker, label=f"relaxed, {name}")
    if "NUTS, a sum" in found:
        row = found["NUTS, a sum"]
        right.axhline(row["gradients"] / row["effective"], color="black", ls=":", label="a sum")
    left.set(
        xscale="log",
        xlabel="temperature",
        title="P(instrument | measurement); dotted: discrete",
        ylim=(0, 0.9),
    )
    left.legend(loc="upper center", ncols=3, fontsize="small")
    right.set(xscale="log", yscale="log", xlabel="temperature", title="gradients an effective draw")
    right.legend()
    figure.savefig(path, dpi=110)


# %%
# The program
# -----------


def main() -> None:
    options = option_parser(__doc__, steps=200, out="nuts.png", least=20).parse_args()
    trainings = Trainings(options)
    start = trainings.clock()
    pyro.set_rng_seed(options.seed)
    pyro.clear_param_store()
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    found = sample_all(trainings, options.steps)
    report(found)
    draw(options.out, found)
    print(f"wrote {options.out} after {trainings.clock() - start:.0f} s")


if __name__ == "__main__":
    main()

# %%
# The result
# ----------
#
# The posterior of the relaxed model goes to that of the model only as the temperature goes to 0.
# NUTS then finds fewer effective draws, with more gradients in log space and with divergent
# transitions in the noise, since a chain has to go from one corner of the simplex to another. At
# 0.1 a chain of 200 draws is too short: the noise misses the exact probability of the third
# instrument, 0.254, by four of its standard errors, and a chain of 1,000 draws does not. That a
# temperature is too high shows in no column but the exact one.
#
# Do not do this where the values can be summed: that is exact and costs least. And do not do it
# where a guide of independent sites is good enough: `AutoRelaxed`. It is for models with too many
# joint values for a sum, at a temperature that is low enough: compare the results at T with those
# at T / 2.
#
# What to try next
# ----------------
#
# - ``--steps 1000``: longer chains, with smaller errors.
# - ``TEMPERATURES``: where the relaxed posterior is near enough to the discrete one.
