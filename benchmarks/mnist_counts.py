# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Estimators on a grey MNIST VAE of counts, after He and Wu (2026).

    python benchmarks/mnist_counts.py --data mnist.npz --minutes 15 --threads 1
    python benchmarks/mnist_counts.py --data mnist.npz --family binomial --latents 16

The latent variables are Poisson counts or binomial counts of 8 trials, with a prior that is learnt,
a rate or logit for each. The paper's architecture is not known here. This one is that of
`mnist_vae.py`: encoder 784-512-256-d, a mirrored decoder of the counts, ReLU, Adam with learning
rate .001, batches of 100, one sample. The encoder's output is the logarithm of the rate, or the
logit. The loss is the binary cross entropy with the grey values plus the exact KL divergence from
the prior.

The contestants are the second order, the third (see `counts.py`), and a truncated categorical over
the values 0 to K with ReinMax: K = 8 for binomial counts, which truncates nothing, and
--largest for Poisson counts.

They take turns: an epoch each, over the same batches, until --epochs or --minutes of processor
time. Printed is the mean -ELBO in nats per image over each epoch of training; and after the last
one over all training and test images, with exact draws for every contestant. Ctrl-C ends the run
early and writes the results so far.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from counts import third_order_sample, truncated_sample
from mnist_vae import mlp, read_images
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm
from turns import environment_parser, write

from pyro_gumbel import BinomialStraightThrough, PoissonStraightThrough

ESTIMATORS = ("second_order", "third_order", "truncated")
FAMILIES = ("poisson", "binomial")
BATCH = 100  # images a step
TRIALS = 8


class VAE(nn.Module):
    """Images from counts (decoder and prior) and back (encoder)."""

    def __init__(self, options: argparse.Namespace, estimator: str) -> None:
        super().__init__()
        self.family, self.estimator = options.family, estimator
        self.largest = TRIALS if self.family == "binomial" else options.largest
        self.prior = nn.Parameter(torch.zeros(options.latents))
        self.encoder = mlp(784, 512, 256, options.latents, slope=0.0)
        self.decoder = mlp(options.latents, 256, 512, 784, slope=0.0)

    def forward(self, images: Tensor) -> Tensor:
        """-ELBO, the sum over the images."""
        q = self.posterior(images)
        pixels = self.decoder(self.sample(q))
        loss = binary_cross_entropy_with_logits(pixels, images, reduction="sum")
        return loss + kl_divergence(q, self.prior_distribution()).sum()

    def posterior(self, images: Tensor) -> Any:
        x = self.encoder(images)
        if self.family == "binomial":
            return BinomialStraightThrough(TRIALS, logits=x, validate_args=False)
        return PoissonStraightThrough(x.exp(), validate_args=False)

    def prior_distribution(self) -> Any:
        if self.family == "binomial":
            return dist.Binomial(TRIALS, logits=self.prior)
        return dist.Poisson(self.prior.exp())

    def sample(self, q: Any) -> Tensor:
        if self.estimator == "third_order":
            return third_order_sample(q)
        if self.estimator == "truncated" and self.training:
            return truncated_sample(q, self.largest)
        return q.rsample()


class Contestant:
    """An estimator with its own model, which learns from the same batches as the others."""

    def __init__(self, options: argparse.Namespace, estimator: str) -> None:
        torch.manual_seed(options.seed)
        self.model = VAE(options, estimator)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate)
        self.train_losses: list[float] = []
        self.seconds: list[float] = []
        self.final: dict[str, float] = {}

    def epoch(self, images: Tensor, batches: Iterator[Tensor]) -> None:
        start, total = time.process_time(), 0.0
        for batch in batches:
            self.optimiser.zero_grad()
            loss = self.model(images[batch])
            (loss / len(batch)).backward()
            self.optimiser.step()
            total += loss.item()
        self.train_losses.append(total / len(images))
        self.seconds.append(time.process_time() - start)

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> float:
        """The mean -ELBO, with draws of the counts themselves."""
        self.model.eval()
        total = sum(self.model(batch).item() for batch in images.split(1000))
        self.model.train()
        return total / len(images)


def train(
    contestants: dict[str, Contestant], images: Tensor, options: argparse.Namespace
) -> Iterator[int]:
    """An epoch of each in turn; the number of epochs after each round."""
    order = torch.Generator().manual_seed(options.seed)
    for epoch in tqdm(range(options.epochs), unit="epoch"):
        batches = torch.randperm(len(images), generator=order).split(BATCH)
        for contestant in contestants.values():
            contestant.epoch(images, batches)
        yield epoch + 1
        if time.process_time() > 60 * options.minutes:
            return


def report(contestants: dict[str, Contestant]) -> None:
    """The epochs that the papers tabulate and the last one, for each contestant."""
    done = min(len(each.train_losses) for each in contestants.values())
    print(f"| epoch | {' | '.join(contestants)} |\n" + "|---" * (len(contestants) + 1) + "|")
    for epoch in [n for n in (1, 2, 5, 10, 20, 40, 80, 160) if n < done] + [done] * (done > 0):
        row = (f"{each.train_losses[epoch - 1]:.2f}" for each in contestants.values())
        print(f"| {epoch} | {' | '.join(row)} |")
    for what in ("train", "test"):
        row = (f"{each.final.get(what, math.nan):.2f}" for each in contestants.values())
        print(f"| {what} | {' | '.join(row)} |")
    if done:
        row = (f"{statistics.median(each.seconds):.1f}" for each in contestants.values())
        print(f"| processor seconds an epoch | {' | '.join(row)} |")


def results(contestants: dict[str, Contestant]) -> dict[str, Any]:
    return {
        "train": {name: each.train_losses for name, each in contestants.items()},
        "processor seconds an epoch": {name: each.seconds for name, each in contestants.items()},
        "test": {name: each.final for name, each in contestants.items()},
    }


def main() -> None:
    parser = environment_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="an .npz file with uint8 x_train and x_test")
    add("--family", choices=FAMILIES, default="poisson")
    add("--latents", type=int, default=128, help="d, the number of latent variables")
    add("--largest", type=int, default=15, help="K of the truncated Poisson (default: 15)")
    add("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    add("--epochs", type=int, default=160)
    add("--minutes", type=float, default=30.0, help="of processor time (default: 30)")
    add("--learning-rate", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, held_out = read_images(options.data, "cpu")
    contestants = {name: Contestant(options, name) for name in options.estimators}
    try:
        for _ in train(contestants, images, options):
            write(options, results(contestants))
    except KeyboardInterrupt:
        print("stopped by Ctrl-C")
    for each in contestants.values():
        each.final = {"train": each.evaluate(images), "test": each.evaluate(held_out)}
    write(options, results(contestants))
    report(contestants)


if __name__ == "__main__":
    main()
