# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Sparse gates
============

A network that learns which of its weights to leave out, with hard concrete gates.

Usage::

    python examples/sparse_gates.py
    python examples/sparse_gates.py --prior 0.1   # more open gates
    python examples/sparse_gates.py --units 128

Source: Louizos, Welling and Kingma, "Learning sparse neural networks through L0 regularization"
(2018), https://arxiv.org/abs/1712.01312. They add the expected number of open gates to the loss,
`d.prob_nonzero.sum()` times a factor; here the divergence from the prior takes its place.

Ctrl-C ends the training early and keeps the result.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import ClippedAdam
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from options import Trainings, option_parser, positive_number, whole_number
from pyro_gumbel import HardConcrete

# %%
# The data
# --------
#
# The data are scikit-learn's 1,797 digits of 8 x 8 pixels. A quarter of them is held out.

SIDE, DIGITS = 8, 10
PIXELS = SIDE**2
HELD_OUT = 0.25


class Images(NamedTuple):
    """Images with entries in [0, 1], one a row, and their digits."""

    pixels: Tensor
    digit: Tensor


def digits(seed: int) -> tuple[Images, Images]:
    """The images to train on and those held out."""
    data = load_digits()
    parts = train_test_split(
        data.data / 16, data.target, test_size=HELD_OUT, stratify=data.target, random_state=seed
    )
    seen, unseen, digit, unseen_digit = (torch.as_tensor(part) for part in parts)
    return Images(seen.float(), digit), Images(unseen.float(), unseen_digit)


# %%
# The network
# -----------
#
# It has 64 hidden units and 4,736 weights. Each weight is multiplied by a gate, which is 0, 1 or
# between.


class Network(nn.Module):
    """Pixels to logits of digits, by one hidden layer, with a gate for each weight."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(PIXELS, units), nn.Linear(units, DIGITS)])

    def forward(self, pixels: Tensor, gates: list[Tensor]) -> Tensor:
        weights = (layer.weight for layer in self.layers)
        first, second = (w * gate for w, gate in zip(weights, gates, strict=True))
        hidden = linear(pixels, first, self.layers[0].bias).relu()
        return linear(hidden, second, self.layers[1].bias)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the gates, by the name of their site."""
        return {f"gates_{i}": layer.weight.shape for i, layer in enumerate(self.layers)}


# %%
# The model and the guide
# -----------------------
#
# The gates are latent variables. A priori they are closed with a high probability. The guide, too,
# has `HardConcrete` gates, with a logit for each weight. At test time a gate is the mode of its
# distribution, so that nothing is random.

TEMPERATURE = 2 / 3  # as in the paper
START = 2.0  # the logit of a gate: open


class Training:
    """The model, the guide, and how they were along the training."""

    def __init__(self, units: int, prior: float) -> None:
        self.network, self.prior = Network(units), prior
        self.steps: list[int] = []
        self.open: list[int] = []
        self.accuracy: list[float] = []

    def model(self, images: Images) -> None:
        pyro.module("weights", self.network)
        prior = HardConcrete(TEMPERATURE, probs=self.prior)
        gates = [
            pyro.sample(name, prior.expand(shape).to_event(2))
            for name, shape in self.network.shapes.items()
        ]
        with pyro.plate("images", len(images.digit)):
            logits = self.network(images.pixels, gates)
            pyro.sample("digit", dist.Categorical(logits=logits), obs=images.digit)

    def guide(self, images: Images) -> None:
        for name in self.network.shapes:
            pyro.sample(name, self.distribution(name).to_event(2))

    def distribution(self, name: str) -> HardConcrete:
        """Of the gates of one layer, in the guide."""
        start = torch.full(self.network.shapes[name], START)
        return HardConcrete(TEMPERATURE, logits=pyro.param(f"{name}_logits", start))

    @torch.no_grad()
    def gates(self) -> list[Tensor]:
        """The gates of test time, without noise."""
        return [self.distribution(name).mode for name in self.network.shapes]

    def look(self, step: int, held_out: Images) -> None:
        """Note how many gates are open, and what the network then gets right."""
        gates = self.gates()
        self.steps.append(step)
        self.open.append(sum(number_open(gate) for gate in gates))
        self.accuracy.append(accuracy(self.network, gates, held_out))


def number_open(gate: Tensor) -> int:
    return int((gate > 0).sum())


@torch.no_grad()
def accuracy(network: Network, gates: list[Tensor], images: Images) -> float:
    """The share of the images whose digit is the most probable one."""
    right = network(images.pixels, gates).argmax(-1) == images.digit
    return right.float().mean().item()


# %%
# Training
# --------
#
# SVI trains the logits and the weights at once, with exact divergences (``TraceMeanField_ELBO``). A
# gate stays open only where its weight is worth more than the gate costs.

RATES = {"gates": 0.07, "weights": 0.03}  # of learning; they fall to 5 % of it
LOOKS = 50  # at the accuracy, along the training


def train(
    trainings: Trainings, training: Training, images: Images, held_out: Images, steps: int
) -> None:
    """Maximise the ELBO until the last step or the first Ctrl-C."""

    def options(name: str) -> dict[str, Any]:
        kind = "gates" if name.startswith("gates") else "weights"
        return {"lr": RATES[kind], "lrd": 0.05 ** (1 / steps)}

    svi = SVI(training.model, training.guide, ClippedAdam(options), TraceMeanField_ELBO())
    elbos: list[float] = []
    records = elbos, training.steps, training.open, training.accuracy
    training.look(0, held_out)
    for step, bar in trainings.steps(steps, svi, images, records=records):
        elbos.append(-svi.step(images))
        bar.set_postfix_str(f"ELBO {elbos[-1]:.0f}", refresh=False)
        if step % max(1, steps // LOOKS) == 0:
            training.look(step, held_out)
    if training.steps[-1] != len(elbos):
        training.look(len(elbos), held_out)


# %%
# To compare with
# ---------------
#
# A network of the same size, trained without gates, and what is left of it with its largest weights
# alone.


def without_gates(units: int, images: Images, steps: int) -> Network:
    """A network with all of its weights, trained for as many steps."""
    network = Network(units)
    ones = [torch.ones(shape) for shape in network.shapes.values()]
    optimiser = torch.optim.Adam(network.parameters(), lr=RATES["weights"])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.05 ** (1 / steps))
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(network(images.pixels, ones), images.digit).backward()
        optimiser.step()
        schedule.step()
    return network


def largest_weights(network: Network, number: int) -> list[Tensor]:
    """Gates that are 1 for this number of weights, the largest ones, and else 0."""
    sizes = [layer.weight.detach().abs() for layer in network.layers]
    least = torch.cat([size.flatten() for size in sizes]).topk(max(1, number)).values[-1]
    return [(size >= least).float() for size in sizes]


# %%
# The table
# ---------
#
# Closed gates are exactly 0. Their weights can be dropped, and with them whole pixels and units.


def report(training: Training, dense: Network, held_out: Images) -> None:
    """Print the open gates along the training, what is left at its end, and what it costs."""
    print(" step   open gates   held-out accuracy")
    shown = sorted({round(i * (len(training.steps) - 1) / 8) for i in range(9)})
    for i in shown:
        print(f"{training.steps[i]:5}{training.open[i]:13}{training.accuracy[i]:17.1%}")
    first, second = training.gates()
    total = first.numel() + second.numel()
    share = training.open[-1] / total
    print(f"open gates: {training.open[-1]} of {total}, {share:.1%}")
    used = used_units(first, second)
    pixels = number_open(first[used].sum(0))
    print(f"pixels in use: {pixels} of {PIXELS}; units in use: {int(used.sum())} of {len(used)}")
    print(f"held-out accuracy: {training.accuracy[-1]:.1%}")
    kept = [largest_weights(dense, number) for number in (total, training.open[-1])]
    of_all, of_kept = (accuracy(dense, gates, held_out) for gates in kept)
    print(f"trained without gates: {of_all:.1%}, and with its largest weights alone: {of_kept:.1%}")


def used_units(first: Tensor, second: Tensor) -> Tensor:
    """Which hidden units have an open gate on both sides."""
    return (first > 0).any(1) & (second > 0).any(0)


# %%
# The picture
# -----------
#
# The open gates and the accuracy along the training, and the weights that are left.


def draw(path: Path, training: Training) -> None:
    """The open gates and the accuracy along the training, and the weights that are left."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")  # without pyplot: needs no display
    along, matrix, image = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    along.plot(training.steps, training.open, color="C0")
    along.set(yscale="log", xlabel="step", title="along the training")
    along.set_ylabel("open gates", color="C0")
    beside = along.twinx()
    beside.plot(training.steps, training.accuracy, color="C1")
    beside.set_ylabel("held-out accuracy", color="C1")
    first = training.gates()[0]
    weights = training.network.layers[0].weight.detach() * first
    order = weights.abs().argmax(1).argsort()
    brightest = weights.abs().max().item() / 2 or 1.0
    shown = weights[order].numpy()
    matrix.imshow(shown, cmap="RdBu", vmin=-brightest, vmax=brightest, aspect="auto")
    matrix.set(xlabel="pixel", ylabel="hidden unit", title="weights of the first layer")
    of_pixels = (first > 0).sum(0).reshape(SIDE, SIDE)
    shades = image.imshow(of_pixels.numpy(), cmap="Greys")
    figure.colorbar(shades, ax=image)
    image.set(xticks=[], yticks=[], title="open gates of each pixel")
    figure.savefig(path, dpi=110)


# %%
# The program
# -----------


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=1000, out="sparse_gates.png")
    add = parser.add_argument
    add("--units", type=whole_number(1, 64), default=64, help="hidden units (default: 64)")
    prior = "`probs` of the gates a priori, below 1 (default: 0.01)"
    add("--prior", type=positive_number, default=0.01, help=prior)
    options = parser.parse_args()
    if options.prior >= 1:
        parser.error(f"--prior must be below 1, got {options.prior:g}; write e.g. 0.01")
    return options


def main() -> None:
    options = parse_options()
    trainings = Trainings(options)
    start = trainings.clock()
    pyro.set_rng_seed(options.seed)
    pyro.clear_param_store()
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    images, held_out = digits(options.seed)
    training = Training(options.units, options.prior)
    train(trainings, training, images, held_out, options.steps)
    report(training, without_gates(options.units, images, options.steps), held_out)
    draw(options.out, training)
    print(f"wrote {options.out} after {trainings.clock() - start:.0f} s")


if __name__ == "__main__":
    main()

# %%
# The result
# ----------
#
# With the default options 331 of the 4,736 weights are left, on 40 of the 64 pixels, and 94.7 % of
# the held-out digits are right. The network without gates gets 97.1 % right, and 22.9 % by its 331
# largest weights alone.
#
# What to try next
# ----------------
#
# - ``--prior 0.1``: gates cost less, and more of them stay open.
# - ``--units 128``: twice as many weights to choose from.
# - ``--seed 1``: which weights are left, and how many, from another start.
