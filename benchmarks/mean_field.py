# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How accurate a mean-field guide is after training with relaxed samples.

    python benchmarks/mean_field.py --threads 1             # 20 models, five minutes
    python benchmarks/mean_field.py --curved                # where derivatives mislead
    python benchmarks/mean_field.py --out mean_field.json

Each random model has two to four latent sites, binary or categorical with three to five categories.
Their priors may depend on earlier sites. The mean of the one observed vector has an effect of each
site and of each pair of sites. It is linear in every site, so the log likelihood is quadratic.
--curved adds half of its square to the mean, so the log likelihood has degree four. The same
`AutoRelaxed` guide is trained from the same start, the prior, in two ways: by `TraceEnum_ELBO`,
which sums over all states in every step, and by `Trace_ELBO` over samples of the relaxed model. The
ELBO of both guides is then evaluated exactly, by enumeration.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import ClippedAdam
from torch import Tensor
from turns import option_parser, read_options, write

from pyro_gumbel import AutoRelaxed, relaxed

LEARNING_RATE = 0.3
FINAL_LEARNING_RATE = 0.01
OBSERVED = 5  # numbers


class RandomModel:
    """A Pyro model of random structure and weights, with data drawn from it."""

    def __init__(self, seed: int, *, curved: bool) -> None:
        self.curved = curved
        torch.manual_seed(seed)
        self.entries = [1 if k == 2 else k for k in torch.randint(2, 6, (2 + seed % 3,)).tolist()]
        self.prior = [torch.randn(entries) for entries in self.entries]
        pairs = list(itertools.combinations(range(len(self.entries)), 2))
        self.influence = {
            (i, j): torch.randn(self.entries[i], self.entries[j]) * torch.randint(0, 2, ())
            for i, j in pairs
        }
        self.weights = [torch.randn(entries, OBSERVED) for entries in self.entries]
        self.interactions = {
            (i, j): torch.randn(self.entries[i], self.entries[j], OBSERVED) / 2 for i, j in pairs
        }
        self.data: Tensor | None = None
        self.data = self()

    @property
    def states(self) -> int:
        return math.prod(max(2, entries) for entries in self.entries)

    def __call__(self) -> Tensor:
        sites: list[Tensor] = []
        for j, entries in enumerate(self.entries):
            logits = self.prior[j] + sum(z @ self.influence[i, j] for i, z in enumerate(sites))
            if entries == 1:
                bit = pyro.sample(f"z{j}", dist.Bernoulli(logits=logits.squeeze(-1)))
                sites.append(bit.unsqueeze(-1))
            else:
                sites.append(pyro.sample(f"z{j}", dist.OneHotCategorical(logits=logits)))
        mean = sum(z @ weight for z, weight in zip(sites, self.weights, strict=True))
        for (i, j), weight in self.interactions.items():
            mean = mean + torch.einsum("...a,...b,abd->...d", sites[i], sites[j], weight)
        if self.curved:
            mean = mean + mean * mean / 2
        return pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=self.data)


def trained(
    model: Callable[..., Any],
    elbo: ELBO,
    steps: int,
    temperature: float | None,
    wrap: Callable[..., Any] = lambda guide: guide,
) -> tuple[float, float]:
    """The exact ELBO after `steps`, and the seconds that they took."""
    pyro.clear_param_store()
    guide = AutoRelaxed(model, temperature)
    decay = (FINAL_LEARNING_RATE / LEARNING_RATE) ** (1 / steps)
    svi = SVI(model, wrap(guide), ClippedAdam({"lr": LEARNING_RATE, "lrd": decay}), elbo)
    start = time.perf_counter()
    for _ in range(steps):
        svi.step()
    seconds = time.perf_counter() - start
    exact = -TraceEnum_ELBO(max_plate_nesting=0).loss(model, config_enumerate(guide))
    return exact, seconds


def log_evidence(model: Callable[..., Any]) -> float:
    return -TraceEnum_ELBO(max_plate_nesting=0).loss(config_enumerate(model), lambda: None)


def compare(seed: int, options: argparse.Namespace) -> dict[str, float]:
    model = RandomModel(seed, curved=options.curved)
    steps, temperature = options.steps, options.temperature
    enumerated, enumerated_seconds = trained(
        model, TraceEnum_ELBO(max_plate_nesting=0), steps, temperature, config_enumerate
    )
    sampling = Trace_ELBO(options.particles, vectorize_particles=True, max_plate_nesting=0)
    sampled, sampled_seconds = trained(relaxed(model, temperature), sampling, steps, temperature)
    return {
        "sites": len(model.entries),
        "states": model.states,
        "log evidence": log_evidence(model),
        "enumerated": enumerated,
        "relaxed": sampled,
        "seconds enumerated": enumerated_seconds,
        "seconds relaxed": sampled_seconds,
    }


def main() -> None:
    parser = option_parser(__doc__, repeats=20)  # of models
    add = parser.add_argument
    add("--curved", action="store_true", help="means that are no longer linear in every site")
    add("--steps", type=int, default=1000)
    add("--temperature", type=float, help="of gumbel_softmax; without it, second order")
    add("--particles", type=int, default=100)
    options = read_options(parser)
    rows = []
    for seed in range(options.repeats):
        row = compare(seed, options)
        rows.append(row)
        gap = row["enumerated"] - row["relaxed"]
        print(
            f"| {seed} | {row['sites']} | {row['states']} | {row['log evidence']:.3f} "
            f"| {row['enumerated']:.3f} | {row['relaxed']:.3f} | {gap:.3f} |",
            flush=True,
        )
    gaps = [row["enumerated"] - row["relaxed"] for row in rows]
    print(f"largest gap: {max(gaps):.3f} nats; mean: {sum(gaps) / len(gaps):.3f}")
    write(options, {"models": rows})


if __name__ == "__main__":
    main()
