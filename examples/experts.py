# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Top-2 experts in plain torch
============================

Two of eight experts for each input, in plain torch, without a Pyro model.

Usage::

    python examples/experts.py
    python examples/experts.py --experts 4

Ctrl-C ends the training early and keeps the result.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.distributions import kl_divergence

from options import TorchTraining, Trainings, option_parser, whole_number
from pyro_gumbel import Subset, SubsetStraightThrough

# %%
# The data
# --------
#
# The inputs are scikit-learn's 1,797 digits of 8 x 8 pixels, without the mean image. A quarter of
# them is held out.

PIXELS, DIGITS = 64, 10


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images to train on and held-out ones, without the mean image, and the digits of these."""
    data = load_digits()
    seen, unseen, _, digit = train_test_split(
        data.data / 16, data.target, test_size=0.25, stratify=data.target, random_state=seed
    )
    mean = seen.mean(0)
    seen, unseen = (torch.as_tensor(part - mean).float() for part in (seen, unseen))
    return seen, unseen, torch.as_tensor(digit)


# %%
# The experts
# -----------
#
# An expert is a linear autoencoder that describes an image by two numbers. A router, a linear
# layer, gives each expert a logit for the image at hand, and a gate makes weights of the logits.
# The output is the weighted sum of the experts, and is to equal the image.
#
# All experts run for all images here: the gradient of the router needs the outputs of those that
# were not chosen too. :doc:`/how_to/plain_torch` runs only the chosen ones at test time.

CODE = 2  # numbers by which an expert describes an image
RATES = {"router": 0.05, "experts": 0.01}  # of learning; they fall to 5 % of it


class Experts(nn.Module):
    """Images of images, by linear experts of few dimensions and a router."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.router = nn.Linear(PIXELS, number)
        self.encoders = nn.Parameter(torch.randn(number, PIXELS, CODE) / PIXELS**0.5)
        self.decoders = nn.Parameter(torch.randn(number, CODE, PIXELS) / CODE**0.5)
        self.biases = nn.Parameter(torch.zeros(number, PIXELS))

    def forward(self, images: Tensor, weights: Tensor) -> Tensor:
        codes = torch.einsum("ni,kic->nkc", images, self.encoders)
        outputs = torch.einsum("nkc,kcj->nkj", codes, self.decoders) + self.biases
        return (weights.unsqueeze(-1) * outputs).sum(-2)

    def groups(self) -> list[dict[str, Any]]:
        """The parameters and their rates of learning."""
        router = list(self.router.parameters())
        others = [self.encoders, self.decoders, self.biases]
        return [
            {"params": router, "lr": RATES["router"]},
            {"params": others, "lr": RATES["experts"]},
        ]


# %%
# Four gates
# ----------
#
# - "softmax of all": the weights are the softmax. All experts are needed for every image.
# - "top 2, softmax": the usual gate. The two largest entries of the softmax, divided by their sum.
# - "subset": a draw of `SubsetStraightThrough`, with weights of 1/2. At test time it is the mode.
# - "subset, with prior": the same, and a prior that all pairs of experts are equally probable. The
#   divergence from this prior is exact, and takes the place of an auxiliary loss for the balance.
#   It is a sum over all pairs, 28 of 8 experts and 120 of 16. Each probability is an integral.

CHOSEN = 2


def softmax_of_all(logits: Tensor, training: bool) -> Tensor:
    return logits.softmax(-1)


def top_softmax(logits: Tensor, training: bool) -> Tensor:
    values, chosen = logits.topk(CHOSEN, -1)
    return torch.zeros_like(logits).scatter(-1, chosen, values.softmax(-1))


def subset(logits: Tensor, training: bool) -> Tensor:
    distribution = SubsetStraightThrough(1.0, CHOSEN, logits=logits)
    return (distribution.rsample() if training else distribution.mode) / CHOSEN


def from_uniform(logits: Tensor) -> Tensor:
    """The mean divergence of the pairs from uniform ones, in nats."""
    uniform = Subset(CHOSEN, logits=torch.zeros_like(logits))
    return kl_divergence(Subset(CHOSEN, logits=logits), uniform).mean()


Gate = Callable[[Tensor, bool], Tensor]
GATES: dict[str, tuple[Gate, bool]] = {  # and whether there is a prior
    "softmax of all": (softmax_of_all, False),
    "top 2, softmax": (top_softmax, False),
    "subset": (subset, False),
    "subset, with prior": (subset, True),
}

# %%
# Training
# --------
#
# A loop in plain torch. The loss is the squared error, and the divergence if there is a prior.

BATCH = 100
VARIANCE = 0.12  # of a pixel given its reconstruction
OF_PRIOR = 10  # images of a batch whose divergence is computed, for speed


def train(trainings: Trainings, name: str, images: Tensor, number: int, steps: int) -> Experts:
    """Minimise the error until the last step or the first Ctrl-C."""
    gate, has_prior = GATES[name]
    experts = Experts(number)
    optimiser = torch.optim.Adam(experts.groups())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.05 ** (1 / steps))
    state = TorchTraining(experts, optimiser, schedule)
    for _, bar in trainings.steps(steps, state, what=name):
        batch = images[torch.randint(len(images), (BATCH,))]
        logits = experts.router(batch)
        error = (experts(batch, gate(logits, True)) - batch).square().sum(-1).mean()
        loss = error / (2 * VARIANCE)
        if has_prior:
            loss = loss + from_uniform(logits[:OF_PRIOR])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        bar.set_postfix_str(f"error {error.item():.2f}", refresh=False)
    return experts


# %%
# The table
# ---------
#
# Of held-out images: the squared error as a share of the variance, how many experts an image needs,
# the share of the choices that fall on the least and on the most used expert, and the mean entropy
# of the pair that the gate draws, in nats. Uniform pairs have log(28) = 3.33. "one for all" has
# four numbers for an image, as two experts have: the first four principal components.


@torch.no_grad()
def report_components(seen: Tensor, held_out: Tensor) -> None:
    """Print the line of principal components, as many as the numbers of the chosen experts."""
    axes = torch.linalg.svd(seen, full_matrices=False).Vh[: CHOSEN * CODE]
    error = (held_out - held_out @ axes.T @ axes).square().sum() / held_out.square().sum()
    print(f"{'one for all':20}{error:7.3f}")


@torch.no_grad()
def report(name: str, experts: Experts, images: Tensor) -> None:
    """Print a line of the table."""
    logits = experts.router(images)
    weights = GATES[name][0](logits, False)
    error = ((experts(images, weights) - images).square().sum() / images.square().sum()).item()
    run = int((weights > 0).sum(-1).max())
    if run > CHOSEN:
        return print(f"{name:20}{error:7.3f}{run:9}")
    shares = (weights > 0).float().mean(0) / CHOSEN
    use = f"{shares.min():10.2f} {shares.max():.2f}"
    drawn = f"{Subset(CHOSEN, logits=logits).entropy().mean():11.2f}" if "subset" in name else ""
    print(f"{name:20}{error:7.3f}{run:9}{use}{drawn}")


# %%
# The picture
# -----------
#
# Which experts the images of each digit are sent to.


@torch.no_grad()
def draw(path: Path, found: dict[str, Experts], images: Tensor, digit: Tensor) -> None:
    """Which experts the images of each digit are sent to, by gate."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")  # without pyplot: needs no display
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (name, experts) in zip(panels, found.items(), strict=True):
        weights = GATES[name][0](experts.router(images), False)
        by_digit = torch.stack([(weights[digit == d] > 0).float().mean(0) for d in range(DIGITS)])
        shades = axes.imshow(by_digit.T.numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set(title=name, xlabel="digit", xticks=range(DIGITS))
    panels[0].set(ylabel="expert", yticks=range(weights.shape[-1]))
    figure.colorbar(shades, ax=panels, label="share of the images", shrink=0.8)
    figure.savefig(path, dpi=110)


# %%
# The program
# -----------


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=1000, out="experts.png")
    add = parser.add_argument
    add("--experts", type=whole_number(CHOSEN + 1, 8), default=8, help="how many (default: 8)")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    trainings = Trainings(options)
    start = trainings.clock()
    pyro.clear_param_store()
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    images, held_out, digit = digits(options.seed)
    found = {}
    print("gate                  error  experts   least, most    entropy")
    report_components(images, held_out)
    for name in GATES:
        pyro.set_rng_seed(options.seed)
        found[name] = train(trainings, name, images, options.experts, options.steps)
        report(name, found[name], held_out)
    sparse = {name: experts for name, experts in found.items() if name != "softmax of all"}
    draw(options.out, sparse, held_out, digit)
    print(f"wrote {options.out} after {trainings.clock() - start:.0f} s")


if __name__ == "__main__":
    main()

# %%
# The result
# ----------
#
# The default options, for three seeds::
#
#     for seed in 0 1 2; do python examples/experts.py --seed $seed; done
#
# ===================  =====  =====  =====  ==========================
# seed                   0      1      2    share of least, most used
# ===================  =====  =====  =====  ==========================
# softmax of all       0.142  0.139  0.141
# top 2, softmax       0.351  0.342  0.344  0.03 to 0.09, 0.20 to 0.23
# subset               0.360  0.350  0.366  0.08 to 0.10, 0.16 to 0.17
# subset, with prior   0.394  0.411  0.404  0.09 to 0.11, 0.14 to 0.16
# one for all          0.516  0.519  0.518
# ===================  =====  =====  =====  ==========================
#
# The softmax of all has the smallest error, and needs four times as many experts. Top 2 is slightly
# better than the subset, since the softmax also weights its two experts. The subset needs no
# weights to be trained, and has a probability of each pair.
#
# An expert can fall out of use, with a share of 0. No term in the loss of the subset alone prevents
# it. The prior, `from_uniform`, counteracts it, and makes the error larger.
#
# So take top 2 with the softmax if the two experts may count unequally. Take the subset if both
# must count alike, or if you need the probabilities of the pairs.
#
# What to try next
# ----------------
#
# - ``--experts 4``: fewer experts to choose from.
# - ``VARIANCE``: a smaller one makes the error count more beside the prior.
# - The same gate in a layer of your own: ``subset(router(x), self.training)``.
