# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Estimators on the grey MNIST VAE of Liu et al. (2023), https://arxiv.org/abs/2304.08612.

    python benchmarks/mnist_vae.py --data mnist.npz --shape 8x4 --estimator reinmax --epochs 10
    python benchmarks/mnist_vae.py --data mnist.npz --shape 64x8 --estimator mve --device cuda \
        --epochs 300 --batch 200 --slope 0.2 --warm-up 1000 --out mve.json

The shape CxL means L variables of C categories. Encoder 784-512-256-(L C) and a mirrored decoder,
ReLU, batches of 100, one sample. The loss is the binary cross entropy with the grey values plus the
exact KL divergence from the uniform prior. Each estimator has the learning rate, temperature and
optimiser of the paper's search; one without a published setting has the learning rate of reinmax.
Printed is the mean -ELBO in nats per image: over each epoch of training, and after the last one
over the test images.

"proposed" trains one epoch by second_order, asks `gradient_report` about the last layer of the
encoder, and starts again with the estimator and temperature that it recommends.

--batch, --slope and --warm-up are for the setting of Hooper and Shekhovtsov (2026): batches of 200,
LeakyReLU of slope .2, and a learning rate that grows linearly over the first steps. Their optimiser
is not known here. There the tau of mve grows from 160 to 1e5 over all steps, as it does here at any
setting.

With --out the results are written after every epoch, and beside them, with the suffix .pt, what it
takes to go on. Ctrl-C ends the run early. The same command goes on where it ended.
"""

import argparse
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from turns import environment_parser, write

from pyro_gumbel import (
    CategoricalStraightThrough,
    GeometricTemperature,
    LearnedCurvature,
    TemperatureSchedule,
    gapped,
    gradient_report,
    gumbel_rao,
    mve,
    reinmax_rao,
)

IMAGES = 60_000


class Setting(NamedTuple):
    """Of one estimator at one shape."""

    estimator: str
    learning_rate: float
    temperature: float | None
    optimiser: str = "RAdam"


# Each is made for a shape (variables, categories) and the tau of `mve`.
ESTIMATORS: dict[str, Callable[[tuple[int, int], TemperatureSchedule], Any]] = {
    "gumbel_softmax": lambda shape, tau: "gumbel_softmax",
    "gumbel_rao": lambda shape, tau: gumbel_rao(samples=100),
    "gapped": lambda shape, tau: gapped(gap=1.0),
    "straight_through": lambda shape, tau: "straight_through",
    "reinmax": lambda shape, tau: "reinmax",
    "reinmax_rao": lambda shape, tau: reinmax_rao(samples=32, tau=0.7),
    "second_order": lambda shape, tau: "second_order",
    "mve": lambda shape, tau: mve(tau=tau),
    "learned_curvature": lambda shape, tau: LearnedCurvature(shape),
}
OPTIMISERS = {"Adam": Adam, "RAdam": RAdam}
# The learning rate and temperature of each shape and estimator; Adam where they say so.
SEARCHED: dict[str, dict[str, tuple[float, float | None]]] = {
    "8x4": {
        "gumbel_softmax": (3e-4, 0.5),
        "gumbel_rao": (5e-4, 0.5),
        "gapped": (5e-4, 0.7),
        "straight_through": (1e-3, 1.3),
        "reinmax": (5e-4, 1.3),
    },
    "8x16": {
        "gumbel_softmax": (5e-4, 0.5),
        "gumbel_rao": (7e-4, 0.7),
        "gapped": (7e-4, 0.5),
        "straight_through": (1e-3, 1.5),
        "reinmax": (7e-4, 1.5),
    },
    "4x24": {
        "gumbel_softmax": (5e-4, 0.3),
        "gumbel_rao": (5e-4, 0.3),
        "gapped": (5e-4, 0.5),
        "reinmax": (5e-4, 1.5),
    },
    "16x12": {
        "gumbel_softmax": (7e-4, 0.7),
        "gumbel_rao": (5e-4, 1.0),
        "gapped": (7e-4, 0.5),
        "reinmax": (7e-4, 1.5),
    },
    "64x8": {
        "gumbel_softmax": (7e-4, 0.7),
        "gumbel_rao": (7e-4, 2.0),
        "gapped": (7e-4, 0.7),
        "reinmax": (5e-4, 1.5),
    },
}
WITH_ADAM = {("16x12", "gumbel_rao"), ("64x8", "gumbel_rao")}  # and all of 8x4


def setting_of(shape: str, estimator: str) -> Setting:
    """The published setting; without one, the learning rate of reinmax and no temperature."""
    searched = SEARCHED[shape]
    learning_rate, temperature = searched.get(estimator, (searched["reinmax"][0], None))
    has_adam = shape == "8x4" or (shape, estimator) in WITH_ADAM
    return Setting(estimator, learning_rate, temperature, "Adam" if has_adam else "RAdam")


class VAE(PyroModule):
    """Images from categorical variables (the model) and back (the guide)."""

    def __init__(
        self, shape: tuple[int, int], estimator: Any, temperature: float | None, slope: float
    ) -> None:
        super().__init__()
        self.shape = shape
        self.estimator = estimator
        self.temperature = temperature
        width = math.prod(shape)
        self.encoder = mlp(784, 512, 256, width, slope=slope)
        self.decoder = mlp(width, 256, 512, 784, slope=slope)

    @pyro_method
    def model(self, images: Tensor) -> None:
        with pyro.plate("images", len(images)):
            prior = dist.OneHotCategorical(logits=images.new_zeros(self.shape))
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


def mlp(*widths: int, slope: float) -> nn.Sequential:
    """Linear layers, with a LeakyReLU of this slope (0: a ReLU) between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Run:
    """The training from one seed, which can be saved and loaded between two epochs."""

    def __init__(self, seed: int, options: argparse.Namespace, setting: Setting) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        categories, variables = map(int, options.shape.split("x"))
        shape = variables, categories
        steps = options.epochs * math.ceil(IMAGES / options.batch)
        self.tau = GeometricTemperature(160, 1e5, num_steps=steps)
        estimator = ESTIMATORS[setting.estimator](shape, self.tau)
        self.vae = VAE(shape, estimator, setting.temperature, options.slope)
        self.vae.to(options.device)
        self.batch = options.batch
        self.loss = TraceMeanField_ELBO().differentiable_loss
        self.optimiser: Optimizer = OPTIMISERS[setting.optimiser](
            self.vae.parameters(), lr=setting.learning_rate
        )
        self.warm_up = LambdaLR(
            self.optimiser, lambda step: min(1.0, (step + 1) / (options.warm_up + 1))
        )

    def epoch(self, images: Tensor) -> float:
        """One epoch of training; its mean loss per image."""
        batches = torch.randperm(len(images)).to(images.device).split(self.batch)
        return sum(self.step(images[batch]) for batch in batches) / len(images)

    def step(self, images: Tensor) -> float:
        loss = self.loss(self.vae.model, self.vae.guide, images)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.warm_up.step()
        self.tau.step()
        return loss.item()

    def evaluate(self, images: Tensor) -> float:
        with torch.no_grad():
            return self.loss(self.vae.model, self.vae.guide, images).item() / len(images)

    def state(self) -> dict[str, Any]:
        """What it takes to go on."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        return state | {"random": torch.get_rng_state(), "GPU": torch.cuda.get_rng_state_all()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state, on the same kind of device."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["GPU"])

    @property
    def parts(self) -> dict[str, Any]:
        return {
            "network": self.vae,
            "optimiser": self.optimiser,
            "warm-up": self.warm_up,
            "tau": self.tau,
        }


def proposed(seed: int, images: Tensor, options: argparse.Namespace) -> Setting:
    """What `gradient_report` recommends after an epoch by second_order."""
    setting = setting_of(options.shape, "second_order")
    run = Run(seed, options, setting)
    run.epoch(images)
    report = gradient_report(
        run.vae.model,
        run.vae.guide,
        (images[: options.batch],),
        params=lambda name: "4." in name,  # of the last layer
        temperatures=[0.3, 0.5, 0.7, 1.0, 1.5],
        steps=options.epochs * IMAGES / options.batch,
        elbo=TraceMeanField_ELBO(),
        seed=seed,
    )
    print(report)
    best = report.best()
    return setting._replace(estimator=best.estimator, temperature=best.temperature)


def train(
    seed: int,
    data: tuple[Tensor, Tensor],
    options: argparse.Namespace,
    results: dict[str, Any],
    state: dict[str, Any] | None,
) -> None:
    """Train from one seed, from the start or a state; `results` is updated after every epoch."""
    images, held_out = data
    start = time.perf_counter()
    if seed not in results["setting"]:
        if options.estimator == "proposed":
            setting = proposed(seed, images, options)
        else:
            setting = setting_of(options.shape, options.estimator)
        results["setting"][seed] = setting._asdict()
        results["seconds before"][seed] = time.perf_counter() - start
    run = Run(seed, options, Setting(**results["setting"][seed]))
    if state:
        run.load(state)
    curve = results["train"].setdefault(seed, [])
    for epoch in tqdm(range(len(curve), options.epochs), desc=f"seed {seed}", unit="epoch"):
        wall, processor = time.perf_counter(), time.process_time()
        curve.append(run.epoch(images))
        results["seconds an epoch"].append(time.perf_counter() - wall)
        results["processor seconds an epoch"].append(time.process_time() - processor)
        if epoch + 1 == options.epochs:
            results["test"][seed] = run.evaluate(held_out)
        write(options, results)
        if options.out:
            save(options, {"results": results, "run": run.state()})


def save(options: argparse.Namespace, state: dict[str, Any]) -> None:
    """The state beside the results: the new file whole, or the old one."""
    part = options.out.with_suffix(".part")
    torch.save(state | {"options": described(options)}, part)
    part.replace(options.out.with_suffix(".pt"))


def saved(options: argparse.Namespace) -> dict[str, Any]:
    """The state beside the results, or an empty one."""
    path = options.out and options.out.with_suffix(".pt")
    if not path or not path.exists():
        return {}
    state = torch.load(path, weights_only=True)
    if state["options"] != described(options):
        raise SystemExit(f"{path} has other options: {state['options']}; choose another --out")
    return state


def described(options: argparse.Namespace) -> dict[str, str]:
    """The options on which the results depend."""
    free = ("data", "out", "seeds", "threads")
    return {name: str(value) for name, value in vars(options).items() if name not in free}


def report(results: dict[str, Any]) -> None:
    """Each epoch that the papers tabulate, and the last one: the mean and spread over seeds."""
    curves = list(results["train"].values())
    done = min(map(len, curves), default=0)
    for epoch in [n for n in (1, 2, 5, 10, 20, 40, 80, 160) if n < done] + [done] * (done > 0):
        print(f"epoch {epoch}: train {mean_and_spread([curve[epoch - 1] for curve in curves])}")
    if results["test"]:
        print(f"test {mean_and_spread(list(results['test'].values()))}")
    if results["seconds an epoch"]:
        wall, processor = (
            statistics.median(results[f"{clock}seconds an epoch"]) for clock in ("", "processor ")
        )
        print(f"{wall:.1f} s an epoch, {processor:.1f} s of the processor")


def mean_and_spread(losses: list[float]) -> str:
    spread = statistics.stdev(losses) if len(losses) > 1 else math.nan
    seeds = ", ".join(f"{loss:.1f}" for loss in losses)
    return f"{statistics.mean(losses):.1f}, standard deviation {spread:.1f} (seeds: {seeds})"


def read_images(path: Path, device: str) -> tuple[Tensor, Tensor]:
    """60,000 and 10,000 grey images, flat, in [0, 1]."""
    with np.load(path) as arrays:
        both = arrays["x_train"], arrays["x_test"]
    train_images, test_images = (
        torch.from_numpy(part).to(device).flatten(1) / 255 for part in both
    )
    return train_images, test_images


def main() -> None:
    parser = environment_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="an .npz file with uint8 x_train and x_test")
    add("--shape", choices=SEARCHED, default="8x4")
    add("--estimator", choices=[*ESTIMATORS, "proposed"], default="reinmax")
    add("--epochs", type=int, default=10)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--device", default="cpu")
    add("--batch", type=int, default=100, help="images a step (default: 100)")
    add("--slope", type=float, default=0.0, help="of the LeakyReLU (default: 0, a ReLU)")
    add("--warm-up", type=int, default=0, help="steps over which the learning rate grows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "reinmax: expected")  # the published temperatures are not 1
    state = saved(options)
    results: dict[str, Any] = state.get("results") or {
        "setting": {},
        "seconds before": {},
        "train": {},
        "test": {},
        "seconds an epoch": [],
        "processor seconds an epoch": [],
    }
    begun = set(results["train"]) - set(results["test"])
    data = read_images(options.data, options.device)
    try:
        for seed in options.seeds:
            if seed not in results["test"]:
                train(seed, data, options, results, state["run"] if seed in begun else None)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C")
    report(results)


if __name__ == "__main__":
    main()
