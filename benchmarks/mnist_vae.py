# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Estimators on the grey MNIST VAE of Liu et al. (2023), https://arxiv.org/abs/2304.08612.

    python benchmarks/mnist_vae.py --data mnist.npz --shape 8x4 --estimator reinmax --epochs 10
    python benchmarks/mnist_vae.py --data mnist.npz --shape 8x16 --estimator reinmax --epochs 20

The shape CxL means L variables of C categories. Encoder 784-512-256-(L C) and a mirrored decoder,
ReLU, batches of 100, one sample. The loss is the binary cross entropy with the grey values plus the
exact KL divergence from the uniform prior. Each estimator has the learning rate, temperature and
optimiser of the paper's search. Printed is the mean -ELBO in nats per image: over each epoch of
training, and after the last one over the test images. Ctrl-C ends the run early and writes the
results so far.
"""

import argparse
import itertools
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.nn import PyroModule, pyro_method
from pyro.optim import Adam, RAdam
from torch import Tensor, nn
from tqdm import tqdm
from turns import environment_parser, write

from pyro_gumbel import CategoricalStraightThrough, gapped, gumbel_rao

BATCH = 100


class Setting(NamedTuple):
    """Of one estimator at one shape."""

    learning_rate: float
    temperature: float


ESTIMATORS: dict[str, Any] = {
    "gumbel_softmax": "gumbel_softmax",
    "gumbel_rao": gumbel_rao(samples=100),
    "gapped": gapped(gap=1.0),
    "straight_through": "straight_through",
    "reinmax": "reinmax",
}
OPTIMISERS = {"8x4": Adam, "8x16": RAdam}
SETTINGS = {
    "8x4": {
        "gumbel_softmax": Setting(3e-4, 0.5),
        "gumbel_rao": Setting(5e-4, 0.5),
        "gapped": Setting(5e-4, 0.7),
        "straight_through": Setting(1e-3, 1.3),
        "reinmax": Setting(5e-4, 1.3),
    },
    "8x16": {
        "gumbel_softmax": Setting(5e-4, 0.5),
        "gumbel_rao": Setting(7e-4, 0.7),
        "gapped": Setting(7e-4, 0.5),
        "straight_through": Setting(1e-3, 1.5),
        "reinmax": Setting(7e-4, 1.5),
    },
}


class VAE(PyroModule):
    """Images from categorical variables (the model) and back (the guide)."""

    def __init__(self, shape: str, estimator: str) -> None:
        super().__init__()
        categories, variables = map(int, shape.split("x"))
        self.shape = (variables, categories)
        self.estimator = ESTIMATORS[estimator]
        self.temperature = SETTINGS[shape][estimator].temperature
        width = variables * categories
        self.encoder = mlp(784, 512, 256, width)
        self.decoder = mlp(width, 256, 512, 784)

    @pyro_method
    def model(self, images: Tensor) -> None:
        with pyro.plate("images", len(images)):
            prior = dist.OneHotCategorical(logits=torch.zeros(self.shape))
            latents = pyro.sample("latents", prior.to_event(1))
            # Grey values are not Bernoulli outcomes, but its log probability is the usual loss.
            pixels = dist.Bernoulli(logits=self.decoder(latents.flatten(-2)), validate_args=False)
            pyro.sample("pixels", pixels.to_event(1), obs=images)

    @pyro_method
    def guide(self, images: Tensor) -> None:
        logits = self.encoder(images).unflatten(-1, self.shape)
        latents = CategoricalStraightThrough(
            self.temperature, logits=logits, estimator=self.estimator
        )
        with pyro.plate("images", len(images)):
            pyro.sample("latents", latents.to_event(1))


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(
    seed: int,
    data: tuple[Tensor, Tensor],
    options: argparse.Namespace,
    results: dict[str, Any],
) -> None:
    """Train from one seed; `results` is updated after every epoch."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    images, held_out = data
    vae = VAE(options.shape, options.estimator)
    setting = SETTINGS[options.shape][options.estimator]
    optimiser = OPTIMISERS[options.shape]({"lr": setting.learning_rate})
    svi = SVI(vae.model, vae.guide, optimiser, TraceMeanField_ELBO())
    for epoch in tqdm(range(options.epochs), desc=f"seed {seed}", unit="epoch"):
        start = time.perf_counter()
        batches = torch.randperm(len(images)).split(BATCH)
        losses = [svi.step(images[batch]) for batch in batches]
        results["seconds an epoch"].append(time.perf_counter() - start)
        results["train"][seed].append(sum(losses) / len(images))
        if (epoch + 1) == options.epochs:
            results["test"][seed] = svi.evaluate_loss(held_out) / len(held_out)
        write(options, results)


def report(results: dict[str, Any]) -> None:
    """Each epoch that the papers tabulate, and the last one: the mean and spread over seeds."""
    curves = list(results["train"].values())
    done = min(map(len, curves))
    for epoch in [n for n in (1, 2, 5, 10, 20, 40, 80, 160) if n < done] + [done] * (done > 0):
        print(f"epoch {epoch}: train {mean_and_spread([curve[epoch - 1] for curve in curves])}")
    if results["test"]:
        print(f"test {mean_and_spread(list(results['test'].values()))}")
    if results["seconds an epoch"]:
        print(f"{statistics.median(results['seconds an epoch']):.1f} s an epoch")


def mean_and_spread(losses: list[float]) -> str:
    spread = statistics.stdev(losses) if len(losses) > 1 else math.nan
    seeds = ", ".join(f"{loss:.1f}" for loss in losses)
    return f"{statistics.mean(losses):.1f}, standard deviation {spread:.1f} (seeds: {seeds})"


def read_images(path: Path) -> tuple[Tensor, Tensor]:
    """60,000 and 10,000 grey images, flat, in [0, 1]."""
    with np.load(path) as arrays:
        both = arrays["x_train"], arrays["x_test"]
    train_images, test_images = (torch.from_numpy(part).flatten(1) / 255 for part in both)
    return train_images, test_images


def main() -> None:
    parser = environment_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="an .npz file with uint8 x_train and x_test")
    add("--shape", choices=SETTINGS, default="8x4")
    add("--estimator", choices=ESTIMATORS, default="reinmax")
    add("--epochs", type=int, default=10)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "reinmax: expected")  # the published temperatures are not 1
    data = read_images(options.data)
    results: dict[str, Any] = {
        "setting": SETTINGS[options.shape][options.estimator]._asdict(),
        "train": {seed: [] for seed in options.seeds},
        "test": {},
        "seconds an epoch": [],
    }
    try:
        for seed in options.seeds:
            train(seed, data, options, results)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C")
    report(results)


if __name__ == "__main__":
    main()
