# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Polynomial programming, after Liu et al. (2023), https://arxiv.org/abs/2304.08612.

    python benchmarks/polynomial.py --threads 1

Minimise E |X - .45|^p, the mean over 128 bits X, in the logits of the bits: 40 epochs of 200 steps
of Adam with learning rate .001, batches of 64 draws. The minimum is at X = 0. Printed is the mean
loss of the last epoch minus the minimum, for p = 1.5, 2, 3: mean and standard deviation over seeds.
The straight-through estimator stops at odds of (.45 / .55)^(p - 1), where its two derivatives
balance.
"""

import argparse
import statistics
from typing import Any

import pyro
import torch
from tqdm import tqdm
from turns import environment_parser, write

from pyro_gumbel import CategoricalStraightThrough, gapped, gumbel_rao

BITS = 128
TARGET = 0.45
EPOCHS = 40
STEPS = 200  # an epoch
BATCH = 64
CONTESTANTS: dict[str, tuple[Any, float]] = {
    "reinmax": ("reinmax", 1.0),
    "gumbel_rao(20)": (gumbel_rao(samples=20), 0.1),
    "gumbel_softmax": ("gumbel_softmax", 0.1),
    "gapped": (gapped(gap=1.0), 1.0),
    "straight_through": ("straight_through", 1.0),
}


def excess(estimator: Any, temperature: float, power: float, seed: int) -> float:
    """The mean loss of the last epoch above that of X = 0."""
    pyro.set_rng_seed(seed)
    logits = torch.empty(BITS, 2).uniform_(-0.01, 0.01).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=1e-3)
    losses = []
    for _ in range(EPOCHS * STEPS):
        q = CategoricalStraightThrough(temperature, logits=logits, estimator=estimator)
        bits = q.rsample((BATCH,))[..., 0]
        loss = (bits - TARGET).abs().pow(power).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return statistics.mean(losses[-STEPS:]) - TARGET**power


def main() -> None:
    parser = environment_parser(__doc__)
    add = parser.add_argument
    add("--estimators", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    add("--powers", nargs="+", type=float, default=[1.5, 2.0, 3.0])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"excess": {}}
    runs = len(options.estimators) * len(options.powers) * len(options.seeds)
    with tqdm(total=runs, unit="run") as bar:
        for name in options.estimators:
            row = results["excess"][name] = {}
            for power in options.powers:
                row[power] = []
                for seed in options.seeds:
                    row[power].append(excess(*CONTESTANTS[name], power, seed))
                    bar.update()
                    write(options, results)
    for name, row in results["excess"].items():
        cells = (f"{statistics.mean(r):.5f} ({statistics.pstdev(r):.5f})" for r in row.values())
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
