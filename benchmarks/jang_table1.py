# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Table 1 of Jang, Gu and Poole (2017), https://arxiv.org/abs/1611.01144: binarised MNIST.

    python benchmarks/jang_table1.py --data binary.npz --model vae --units categorical
    python benchmarks/jang_table1.py --data binary.npz --model sbn --estimator soft

The models are a sigmoid belief net 392-200-200-392, from the upper half of an image to the lower
half, and a variational autoencoder 784-200-784. The layers of 200 are binary, or 20 variables of 10
categories. The estimator "soft" feeds relaxed values to the next layer (the paper's
Gumbel-softmax); the others are those of straight-through samples (its ST Gumbel-softmax is
"gumbel_softmax").

As in the paper: stochastic gradient descent with momentum .9 and one sample; temperature 1 for the
net; max(.5, exp(-r t)), held for 500 steps, for the autoencoder. The paper does not state the batch
size, prior and initialisation; here they are 100, learnt, and PyTorch's. It does not use Adam,
which gets further in minutes: --optimiser adam --learning-rate 0.001.

The result is the bound on the negative log likelihood of the test images in nats, from 1000
discrete samples, for the parameters that were best on the validation images. Training ends after
--minutes of processor time, or at Ctrl-C, which keeps the result.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, pyro_method
from pyro.optim import SGD, Adam
from torch import Tensor, nn
from torch.distributions import kl_divergence
from tqdm import tqdm
from turns import environment_parser, write

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    ConstantTemperature,
    ExponentialTemperature,
    RelaxedBernoulli,
    RelaxedCategorical,
    TemperatureSchedule,
)

BATCH = 100
WIDTH = 200
EVERY = 2500  # steps between two evaluations on the validation images
FAMILIES: dict[str, Any] = {
    "bernoulli": (BernoulliStraightThrough, RelaxedBernoulli),
    "categorical": (CategoricalStraightThrough, RelaxedCategorical),
}


class Layers(PyroModule):
    """What the two models share: stochastic layers of 200, straight-through or relaxed."""

    def __init__(self, units: str, estimator: str, temperature: TemperatureSchedule) -> None:
        super().__init__()
        self.units = units
        self.estimator = estimator
        self.temperature = temperature

    def discrete(self, logits: Tensor) -> Any:
        """The discrete distribution of a layer."""
        shape = (20, 10) if self.units == "categorical" else (WIDTH,)
        family, _ = FAMILIES[self.units]
        estimator = "gumbel_softmax" if self.estimator == "soft" else self.estimator
        logits = logits.unflatten(-1, shape)
        return family(self.temperature, logits=logits, estimator=estimator).to_event(1)

    def sample(self, name: str, distribution: Any) -> Tensor:
        """A layer's flattened value; its site adds nothing to the loss."""
        if self.estimator == "soft":
            _, family = FAMILIES[self.units]
            logits = distribution.base_dist.logits
            distribution = family(self.temperature, logits=logits).to_event(1)
        return pyro.sample(name, distribution.mask(False)).flatten(-distribution.event_dim)


class VAE(Layers):
    """The image from one layer; the KL is the exact one of the discrete distributions."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.encoder = nn.Linear(784, WIDTH)
        self.decoder = nn.Linear(WIDTH, 784)
        self.prior = nn.Parameter(torch.zeros(WIDTH))

    @pyro_method
    def model(self, images: Tensor) -> None:
        with pyro.plate("images", len(images)):
            z = self.sample("z", self.discrete(self.prior.expand(len(images), -1)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=images)

    @pyro_method
    def guide(self, images: Tensor) -> None:
        posterior = self.discrete(self.encoder(images))
        with pyro.plate("images", len(images)):
            self.sample("z", posterior)
            divergence = kl_divergence(posterior, self.discrete(self.prior))
            pyro.factor("divergence", divergence, has_rsample=True)

    def log_weights(self, images: Tensor, samples: int) -> Tensor:
        """log p(x, z) - log q(z | x) at discrete samples of z."""
        posterior, prior = self.discrete(self.encoder(images)), self.discrete(self.prior)
        z = posterior.sample((samples,))
        likelihood = dist.Bernoulli(logits=self.decoder(z.flatten(2)))
        ratio = prior.log_prob(z) - posterior.log_prob(z)
        return likelihood.log_prob(images).sum(-1) + ratio


class SigmoidBeliefNet(Layers):
    """The lower half of an image from the upper one, through two layers."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.first = nn.Linear(392, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, 392)

    @pyro_method
    def model(self, images: Tensor) -> None:
        lower = images[:, 392:]
        with pyro.plate("images", len(images)):
            h = self.layers(images)
            pyro.sample("y", dist.Bernoulli(logits=self.output(h)).to_event(1), obs=lower)

    @pyro_method
    def guide(self, images: Tensor) -> None:
        with pyro.plate("images", len(images)):
            self.layers(images)

    def layers(self, images: Tensor) -> Tensor:
        h = self.sample("h1", self.discrete(self.first(images[:, :392])))
        return self.sample("h2", self.discrete(self.second(h)))

    def log_weights(self, images: Tensor, samples: int) -> Tensor:
        """log p(y | h) at discrete samples of h given x."""
        h = self.discrete(self.first(images[:, :392])).sample((samples,))
        h = self.discrete(self.second(h.flatten(2))).sample()
        likelihood = dist.Bernoulli(logits=self.output(h.flatten(2)))
        return likelihood.log_prob(images[:, 392:]).sum(-1)


MODELS = {"vae": VAE, "sbn": SigmoidBeliefNet}
OPTIMISERS = {
    "sgd": lambda rate: SGD({"lr": rate, "momentum": 0.9}),
    "adam": lambda rate: Adam({"lr": rate}),
}


@torch.no_grad()
def bound(model: Any, images: Tensor, samples: int, chunk: int = 5) -> float:
    """-log of the mean weight of so many samples, mean over the images, in nats."""
    total = 0.0
    for some in tqdm(images.split(chunk), desc="bound", unit="batch", disable=samples == 1):
        log_weights = model.log_weights(some, samples)
        total -= (log_weights.logsumexp(0) - np.log(samples)).sum().item()
    return total / len(images)


def steps_within(limit: float) -> Iterator[tuple[int, float]]:
    """The steps from 1 and the seconds of processor time so far, until those reach the limit."""
    start = time.process_time()
    with tqdm(total=limit, desc="training", unit="s", bar_format="{l_bar}{bar}{postfix}") as bar:
        for step in itertools.count(1):
            seconds = time.process_time() - start
            if seconds > limit:
                return
            if step % 100 == 0:
                bar.set_postfix_str(f"step {step}", refresh=False)
                bar.update(seconds - bar.n)
            yield step, seconds


def train(model: Any, data: dict[str, Tensor], options: argparse.Namespace, results: Any) -> Any:
    """The parameters that were best on the validation images; `results` gets the curve.

    Ctrl-C ends it early.
    """
    optimiser = OPTIMISERS[options.optimiser](options.learning_rate)
    parts = (poutine.scale(part, 1 / BATCH) for part in (model.model, model.guide))
    svi = SVI(*parts, optimiser, Trace_ELBO())
    best, recent = copy.deepcopy(model.state_dict()), []
    lowest = bound(model, data["valid"], 1, chunk=1000)
    try:
        for steps, seconds in steps_within(60 * options.minutes):
            batch = data["train"][torch.randint(len(data["train"]), (BATCH,))]
            recent.append(svi.step(batch))
            model.temperature.step()
            if steps % EVERY == 0:
                valid = bound(model, data["valid"], 1, chunk=1000)
                results["curve"].append((steps, seconds, sum(recent) / len(recent), valid))
                if valid < lowest:
                    lowest, best = valid, copy.deepcopy(model.state_dict())
                recent.clear()
                write(options, results)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C")
    return best


def read_images(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        parts = {name: arrays[name] for name in ("train", "valid", "test")}
    dtype = torch.get_default_dtype()
    return {name: torch.from_numpy(part).flatten(1).to(dtype) for name, part in parts.items()}


def main() -> None:
    parser = environment_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="an .npz file with binary train, valid and test")
    add("--model", choices=MODELS, default="vae")
    add("--units", choices=FAMILIES, default="bernoulli")
    estimators = ["soft", "gumbel_softmax", "gumbel_rao", "straight_through", "reinmax", "gapped"]
    add("--estimator", choices=estimators, default="gumbel_softmax")
    add("--optimiser", choices=OPTIMISERS, default="sgd")
    add("--learning-rate", type=float, default=3e-3)
    add("--rate", type=float, default=1e-4, help="r of the temperature (default: 1e-4)")
    add("--minutes", type=float, default=12, help="of processor time (default: 12)")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pyro.set_rng_seed(options.seed)
    pyro.enable_validation(False)
    annealed = ExponentialTemperature(options.rate, floor=0.5, hold=500)
    temperature = annealed if options.model == "vae" else ConstantTemperature(1.0)
    model = MODELS[options.model](options.units, options.estimator, temperature)
    data = read_images(options.data)
    results: dict[str, Any] = {"curve": []}
    best = train(model, data, options, results)
    steps = model.temperature.steps.item()
    model.load_state_dict(best)
    results["test"] = bound(model, data["test"], 1000)
    write(options, results)
    print(f"after {steps} steps: test {results['test']:.2f} nats")


if __name__ == "__main__":
    main()
