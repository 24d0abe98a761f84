# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Latent Dirichlet allocation: sums over the topic of each word, against samples of it.

    python benchmarks/lda.py --threads 1               # five seeds, some minutes
    python benchmarks/lda.py --threads 1 --repeats 1   # one seed

Each of 100 documents has 30 words of a vocabulary of 20. The topic of each word is a one-hot
vector. The topics and the shares of a document are points, by `AutoDelta`. Both trainings start
from the same point and take as many steps with the same decaying rate. One sums over the topic of
each word by `TraceEnum_ELBO`; the other has `AutoRelaxed` for it, and ten vectorised particles. For
each seed the table has the distance of the topics found from those that the words were drawn from,
the mean total variation after the best matching, and the milliseconds of a step.
"""

import itertools
import time
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoGuideList, init_to_sample
from pyro.optim import ClippedAdam
from torch import Tensor
from turns import option_parser, read_options, write

from pyro_gumbel import AutoRelaxed, SelectedComponent, relaxed

TOPICS, VOCABULARY, DOCUMENTS, WORDS = 3, 20, 100, 30
LEARNING_RATE, DECAY = 0.1, 0.02  # the last rate is DECAY times the first


def drawn() -> tuple[Tensor, Tensor]:
    """Topics, and words of the shape (documents, words)."""
    topics = dist.Dirichlet(torch.full((VOCABULARY,), 0.2)).sample((TOPICS,))
    shares = dist.Dirichlet(torch.full((TOPICS,), 0.5)).sample((DOCUMENTS,))
    return topics, dist.Categorical(shares @ topics).sample((WORDS,)).T


def model(words: Tensor) -> None:
    flat = dist.Dirichlet(torch.ones(TOPICS, VOCABULARY)).to_event(1)
    topics = pyro.sample("topics", flat)
    with pyro.plate("documents", DOCUMENTS, dim=-2):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(TOPICS)))
        with pyro.plate("words", WORDS, dim=-1):
            z = pyro.sample("z", dist.OneHotCategorical(shares))
            pyro.sample("word", SelectedComponent(z, dist.Categorical(topics)), obs=words)


def trained(trained_model: Any, guide: Any, elbo: ELBO, steps: int, words: Tensor) -> float:
    """Train the guide; returns the milliseconds of a step."""
    decay = DECAY ** (1 / steps)
    svi = SVI(trained_model, guide, ClippedAdam({"lr": LEARNING_RATE, "lrd": decay}), elbo)
    start = time.perf_counter()
    for _ in range(steps):
        svi.step(words)
    return 1000 * (time.perf_counter() - start) / steps


def points(seed: int) -> AutoDelta:
    """The guide of topics and shares."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return AutoDelta(poutine.block(model, hide=["z"]), init_loc_fn=init_to_sample)


def by_enumeration(words: Tensor, seed: int, steps: int) -> tuple[Tensor, float]:
    guide = points(seed)
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    milliseconds = trained(config_enumerate(model), guide, elbo, steps, words)
    return guide.median()["topics"], milliseconds


def by_relaxation(words: Tensor, seed: int, steps: int) -> tuple[Tensor, float]:
    sampled, of_points = relaxed(model), points(seed)
    guide = AutoGuideList(sampled)
    guide.append(of_points)
    guide.append(AutoRelaxed(poutine.block(sampled, expose=["z"])))
    elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=2)
    milliseconds = trained(sampled, guide, elbo, steps, words)
    return of_points.median()["topics"], milliseconds


def distance(found: Tensor, true: Tensor) -> float:
    """The mean total variation between matched topics."""
    orders = itertools.permutations(range(TOPICS))
    return min((found[list(order)] - true).abs().sum(-1).mean().item() / 2 for order in orders)


def main() -> None:
    parser = option_parser(__doc__, repeats=5)  # of seeds
    parser.add_argument("--steps", type=int, default=1000)
    options = read_options(parser)
    print("| seed | enumeration: distance | ms a step | relaxation: distance | ms a step |")
    print("|---" * 5 + "|")
    rows = []
    for seed in range(options.repeats):
        pyro.set_rng_seed(seed)
        true, words = drawn()
        row: dict[str, float] = {"seed": seed}
        for name, fit in (("enumeration", by_enumeration), ("relaxation", by_relaxation)):
            found, row[f"{name}, ms"] = fit(words, seed, options.steps)
            row[name] = distance(found.detach(), true)
        rows.append(row)
        cells = (
            f"{row[name]:.3f} | {row[f'{name}, ms']:.1f}" for name in ("enumeration", "relaxation")
        )
        print(f"| {seed} | {' | '.join(cells)} |", flush=True)
    write(options, {"seeds": rows})


if __name__ == "__main__":
    main()
