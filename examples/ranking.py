# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Rankings
========

Infer how good items are from judges who each rank only their favourites.

Usage::

    python examples/ranking.py                            # ten seconds
    python examples/ranking.py --items 30 --judges 50     # wider intervals
    python examples/ranking.py --size 1                   # only a favourite each
    python examples/ranking.py --size 10 --any-length     # from a favourite to all items

Ctrl-C ends the training early and keeps the result.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.optim import ClippedAdam
from torch import Tensor

from options import Trainings, option_parser, whole_number
from pyro_gumbel import PlackettLuce

# %%
# The data
# --------
#
# The ballots are simulated. The log-worths of 10 items are drawn from a standard normal
# distribution, and 200 judges each rank their top 3. With ``--any-length`` a judge ranks 1, 2 or 3
# items, each number with the same probability.


def worths_prior(items: int) -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(items), 1.0).to_event(1)


def draw_lengths(judges: int, size: int, any_length: bool) -> int | Tensor:
    """How many items each judge ranks."""
    return torch.randint(1, size + 1, (judges,)) if any_length else size


# %%
# The model
# ---------
#
# A ballot is a draw from ``PlackettLuce(lengths, logits=worths, rows=3)``. The lengths are a
# number, or a tensor with one for each judge.


def model(ballots: Tensor, lengths: int | Tensor) -> None:
    judges, rows, items = ballots.shape
    worths = pyro.sample("worths", worths_prior(items))
    with pyro.plate("judges", judges):
        ballot = PlackettLuce(lengths, logits=worths, rows=rows)
        pyro.sample("ballots", ballot, obs=ballots)


# %%
# Training
# --------
#
# The latent variables are continuous, and the rankings are observed. So nothing is relaxed, and the
# guide is Pyro's ``AutoMultivariateNormal``.

LEARNING_RATE = 0.05
FINAL_LEARNING_RATE = 0.001
PARTICLES = 8


def train(
    trainings: Trainings, ballots: Tensor, lengths: int | Tensor, steps: int
) -> AutoMultivariateNormal:
    """The trained guide, after the last step or the first Ctrl-C."""
    guide = AutoMultivariateNormal(model)
    decay = (FINAL_LEARNING_RATE / LEARNING_RATE) ** (1 / steps)
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, ClippedAdam({"lr": LEARNING_RATE, "lrd": decay}), elbo)
    elbos: list[float] = []
    for _, bar in trainings.steps(steps, svi, ballots, lengths, records=[elbos]):
        elbos.append(-svi.step(ballots, lengths) / len(ballots))
        bar.set_postfix_str(f"ELBO {np.mean(elbos[-100:]):.3f} a judge", refresh=False)
    return guide


# %%
# The posterior
# -------------
#
# The same constant added to all log-worths changes no ballot, so both truth and posterior are shown
# with a mean of 0.

POSTERIOR_SAMPLES = 10_000


class Posterior(NamedTuple):
    """What is known of the log-worths: their mean, and 90 % intervals."""

    mean: Tensor
    low: Tensor
    high: Tensor


@torch.no_grad()
def posterior_of(guide: AutoMultivariateNormal) -> Posterior:
    samples = centred(guide.get_posterior().sample((POSTERIOR_SAMPLES,)))
    low, high = samples.quantile(torch.tensor([0.05, 0.95]), dim=0)
    return Posterior(samples.mean(0), low, high)


def centred(worths: Tensor) -> Tensor:
    return worths - worths.mean(-1, keepdim=True)


def kendall_tau(first: Tensor, second: Tensor) -> float:
    """The share of pairs of items in the same order, less the share in opposite order."""
    i, j = torch.triu_indices(len(first), len(first), offset=1)
    return ((first[i] - first[j]).sign() * (second[i] - second[j]).sign()).mean().item()


# %%
# The picture
# -----------


def draw(path: Path, truth: Tensor, posterior: Posterior, title: str) -> None:
    """The true log-worths beside the posterior mean and 90 % intervals, the best item on top."""
    order = truth.argsort()
    rows = np.arange(len(truth))
    mean, low, high = (part[order].numpy() for part in posterior)
    figure = Figure(figsize=(7, 1.5 + 0.3 * len(truth)), layout="constrained")  # needs no display
    axes = figure.subplots()
    label = "posterior mean, 90 % interval"
    axes.errorbar(mean, rows, xerr=(mean - low, high - mean), fmt="o", capsize=3, label=label)
    axes.plot(truth[order].numpy(), rows, "D", color="C1", ms=5, label="truth")
    axes.set_yticks(rows, [f"item {item + 1}" for item in order.tolist()])
    axes.set(title=title, xlabel="log-worth, centred")
    axes.title.set_fontsize("medium")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)


# %%
# The program
# -----------


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=1500, out="ranking.png")
    add = parser.add_argument
    add("--items", type=whole_number(2, 10), default=10, help="default: 10")
    add("--judges", type=whole_number(1, 200), default=200, help="default: 200")
    add("--size", type=whole_number(1, 3), default=3, help="items on a ballot (default: 3)")
    add("--any-length", action="store_true", help="ballots have 1 to SIZE items")
    options = parser.parse_args()
    if options.size > options.items:
        parser.error(
            f"argument --size: expected at most the number of items, {options.items}, "
            f"got {options.size}; write e.g. --size {options.items}"
        )
    return options


def main() -> None:
    options = parse_options()
    trainings = Trainings(options)
    start = trainings.clock()
    pyro.set_rng_seed(options.seed)
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    worths = worths_prior(options.items).sample()
    lengths = draw_lengths(options.judges, options.size, options.any_length)
    ballot = PlackettLuce(lengths, logits=worths.expand(options.judges, -1), rows=options.size)
    ballots = ballot.sample()
    posterior = posterior_of(train(trainings, ballots, lengths, options.steps))
    truth = centred(worths)
    tau = kendall_tau(posterior.mean, truth)
    error = (posterior.mean - truth).square().mean().sqrt().item()
    inside = ((posterior.low <= truth) & (truth <= posterior.high)).sum().item()
    most = f"1 to {options.size}" if options.any_length else f"{options.size}"
    title = f"top {most} of {options.items} items from {options.judges} judges"
    print(title)
    print(f"Kendall's tau between posterior mean and truth: {tau:.2f}")
    print(f"root mean square error of the log-worths: {error:.2f}")
    print(f"true log-worths inside their 90 % intervals: {inside} of {options.items}")
    draw(options.out, truth, posterior, title)
    print(f"wrote {options.out} after {trainings.clock() - start:.0f} s")


if __name__ == "__main__":
    main()

# %%
# The result
# ----------
#
# The order of the posterior means is nearly the true one, and about 9 of 10 true log-worths are
# inside their 90 % intervals. Items that no judge ranks high have the widest intervals.
#
# What to try next
# ----------------
#
# - ``--size 1``: only a favourite each. The intervals get wider.
# - ``--any-length --size 10``: judges who rank few items and judges who rank all.
# - ``--judges 20``: the intervals for few ballots.
