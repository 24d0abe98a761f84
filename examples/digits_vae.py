# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""A discrete VAE
==============

A variational autoencoder with discrete latent variables, on 1,797 real digits of 8x8 pixels.

Usage::

    python examples/digits_vae.py                        # about half a minute
    python examples/digits_vae.py --latents bernoulli    # 32 bits
    python examples/digits_vae.py --soft                 # trained on relaxed samples
    python examples/digits_vae.py --data mnist.npz       # other images
    python examples/digits_vae.py --checkpoint vae.pt    # and with --resume it goes on from there

Ctrl-C ends the training early and keeps the result.
"""

import argparse
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, pyro_method
from pyro.optim import Adam
from sklearn.datasets import load_digits
from torch import Tensor, nn

from options import Trainings, option_parser, positive_number, whole_number
from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
)

# %%
# The data
# --------
#
# The digits come with scikit-learn. Four fifths of them are trained on, one fifth is held out.


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """The digits that scikit-learn ships: four fifths to train on, one fifth held out."""
    images = torch.as_tensor(load_digits().images / 16, dtype=torch.get_default_dtype())
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    cut = 4 * len(images) // 5
    return shuffled[:cut], shuffled[cut:]


# %%
# The model and the guide
# -----------------------
#
# An image is described by 8 variables of 8 categories, 24 bits in all. The model draws them from a
# uniform prior, and a network, the decoder, makes the pixels of them. The guide draws them given
# the image, with probabilities from a second network, the encoder.
#
# The prior is Pyro's ``OneHotCategorical``. The guide has `CategoricalStraightThrough`: its samples
# are one-hot vectors, and they have a gradient. So the discrete model itself is trained. With
# ``--soft`` prior and guide are relaxed instead.

# The prior, the straight-through guide, and the relaxation of both.
LATENTS: dict[str, tuple[Any, Any, Any]] = {
    "categorical": (dist.OneHotCategorical, CategoricalStraightThrough, RelaxedCategorical),
    "bernoulli": (dist.Bernoulli, BernoulliStraightThrough, RelaxedBernoulli),
}
HIDDEN = 256


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, outputs))


class VAE(PyroModule):
    """Images from discrete variables (the model) and discrete variables from images (the guide).

    :param pixels: the number of pixels of an image.
    :param latents: "categorical" or "bernoulli".
    :param shape: (variables, categories), or (bits,).
    """

    def __init__(self, pixels: int, latents: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.discrete, self.hard, self.relaxed = LATENTS[latents]
        self.shape = shape
        self.encoder = mlp(pixels, math.prod(shape))
        self.decoder = mlp(math.prod(shape), pixels)

    @pyro_method
    def model(self, images: Tensor, temperature: float, soft: bool = False) -> None:
        with pyro.plate("images", len(images)):
            latents = pyro.sample("latents", self.prior(temperature, soft))
            # Grey values are not Bernoulli outcomes, so validation would refuse them. The log
            # probability is the usual loss for them, the binary cross entropy.
            pixels = dist.Bernoulli(logits=self.decode(latents), validate_args=False)
            pyro.sample("pixels", pixels.to_event(1), obs=images)

    @pyro_method
    def guide(self, images: Tensor, temperature: float, soft: bool = False) -> None:
        with pyro.plate("images", len(images)):
            pyro.sample("latents", self.posterior(images, temperature, soft))

    def prior(self, temperature: float = 1.0, soft: bool = False) -> Any:
        """The uniform prior, discrete or relaxed."""
        logits = torch.zeros(self.shape)
        if soft:
            return self.relaxed(temperature, logits=logits).to_event(1)
        return self.discrete(logits=logits).to_event(1)

    def posterior(self, images: Tensor, temperature: float = 1.0, soft: bool = False) -> Any:
        """The distribution of the latents given images, straight-through or relaxed."""
        logits = self.encoder(images).unflatten(-1, self.shape)
        family = self.relaxed if soft else self.hard
        return family(temperature, logits=logits).to_event(1)

    def decode(self, latents: Tensor) -> Tensor:
        """The logits of the pixels."""
        return self.decoder(latents.flatten(-len(self.shape)))


# %%
# The temperature
# ---------------
#
# The temperature belongs to the surrogate gradient, and not to the samples. It decreases as in
# Jang, Gu and Poole (2017), https://arxiv.org/abs/1611.01144: exponentially, down to a floor.


def temperature_at(step: int, steps: int, floor: float) -> float:
    """tau = max(floor, exp(-r t)), with the rate r that reaches the floor after half the steps."""
    rate = max(0.0, -math.log(floor)) / (steps / 2)
    return max(floor, math.exp(-rate * step))


# %%
# Training
# --------
#
# ``TraceMeanField_ELBO`` has the exact KL divergence between guide and prior. Held-out images are
# evaluated along the way, always by the discrete model.

BATCH = 100
LEARNING_RATE = 3e-3


@dataclass
class Curve:
    """The ELBO in nats an image: of every training batch, and at times of held-out images."""

    train: list[float] = field(default_factory=list)
    test: dict[int, float] = field(default_factory=dict)


def train(
    trainings: Trainings,
    vae: VAE,
    images: Tensor,
    held_out: Tensor,
    options: argparse.Namespace,
) -> Curve:
    """Maximise the ELBO until the last step or the first Ctrl-C."""
    # The KL is exact for the discrete model, and estimated from the sample for the relaxed one.
    elbo = Trace_ELBO() if options.soft else TraceMeanField_ELBO()
    svi = SVI(vae.model, vae.guide, Adam({"lr": LEARNING_RATE}), elbo)
    curve = Curve()
    example = images[:BATCH], 1.0, options.soft
    records = curve.train, curve.test
    for step, bar in trainings.steps(options.steps, svi, *example, records=records):
        temperature = temperature_at(step, options.steps, options.temperature)
        batch = images[torch.randint(len(images), (BATCH,))]
        curve.train.append(-svi.step(batch, temperature, options.soft) / BATCH)
        recent = np.mean(curve.train[-100:])
        bar.set_postfix_str(f"ELBO {recent:.2f}, temperature {temperature:.2f}", refresh=False)
        if step % math.ceil(options.steps / 20) == 0:
            curve.test[step] = discrete_elbo(vae, held_out[:1000])
    return curve


@torch.no_grad()
def discrete_elbo(vae: VAE, images: Tensor, samples: int = 1) -> float:
    """The ELBO of the discrete model in nats an image, from discrete samples and the exact KL."""
    elbo = TraceMeanField_ELBO(num_particles=samples)
    any_temperature = 1.0  # the distribution of discrete samples does not depend on it
    return -elbo.loss(vae.model, vae.guide, images, any_temperature) / len(images)


# %%
# The picture
# -----------
#
# Held-out images, their reconstructions, samples from the prior, and the ELBO.


@torch.no_grad()
def draw(path: Path, vae: VAE, images: Tensor, curve: Curve) -> None:
    """Originals, reconstructions, samples from the prior, and the ELBO, as one picture."""
    originals = images[:12].flatten(1)
    reconstructions = vae.decode(vae.posterior(originals).sample()).sigmoid()
    samples = vae.decode(vae.prior().sample((4, 12))).sigmoid()
    figure = Figure(figsize=(11, 4), layout="constrained")  # without pyplot: needs no display
    left, right = figure.subfigures(1, 2, width_ratios=(1.3, 1))
    panels = left.subplots(3, 1, height_ratios=(1, 1, 4))
    height, width = images.shape[1:]
    for axes, title, grid in (
        (panels[0], "held-out images", originals[None]),
        (panels[1], "their reconstructions from hard samples", reconstructions[None]),
        (panels[2], "samples from the prior", samples),
    ):
        framed = nn.functional.pad(grid.unflatten(-1, (height, width)), (1, 1, 1, 1))
        axes.imshow(framed.transpose(1, 2).flatten(2).flatten(0, 1).numpy(), cmap="gray_r")
        axes.set_title(title, fontsize="medium")
        axes.axis("off")
    plot_curve(right.subplots(), curve)
    figure.savefig(path, dpi=150)


def plot_curve(axes: Axes, curve: Curve) -> None:
    window = math.ceil(len(curve.train) / 40)
    smoothed = np.convolve(curve.train, np.full(window, 1 / window), mode="valid")
    axes.plot(range(window, len(curve.train) + 1), smoothed, label="training batches, smoothed")
    axes.plot(curve.test.keys(), curve.test.values(), "o", ms=4, label="held-out images, discrete")
    axes.set(title="evidence lower bound (ELBO)", xlabel="step", ylabel="nats an image")
    axes.title.set_fontsize("medium")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)


# %%
# The program
# -----------
#
# Its options, and the evaluation after the training. With ``--data`` it trains on other images.

EVALUATION_SAMPLES = 20


def archive(text: str) -> tuple[Tensor, Tensor]:
    """The value of --data: the images to train on and the held-out ones."""
    try:
        with np.load(text) as arrays:
            train_images, test_images = arrays["x_train"], arrays["x_test"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise argparse.ArgumentTypeError(
            f"expected an .npz file with arrays x_train and x_test, got {text!r} ({error}); "
            "write it with numpy.savez('images.npz', x_train=..., x_test=...)"
        ) from None
    for name, images in (("x_train", train_images), ("x_test", test_images)):
        alike = images.shape[1:] == train_images.shape[1:]
        if images.dtype != np.uint8 or images.ndim != 3 or images.size == 0 or not alike:
            raise argparse.ArgumentTypeError(
                "expected x_train and x_test of dtype uint8 and shape (images, height, width), "
                f"with one height and width, got {images.dtype} {images.shape} for {name}; "
                "write (255 * grey).astype('uint8') for grey values in [0, 1]"
            )
    return torch.from_numpy(train_images) / 255, torch.from_numpy(test_images) / 255


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=5000, out="digits_vae.png")
    add = parser.add_argument
    add("--latents", choices=LATENTS, default="categorical")
    add("--variables", type=whole_number(1, 8), help="how many (default: 8, or 32 bits)")
    add("--categories", type=whole_number(2, 8), default=8, help="of each variable (default: 8)")
    add("--soft", action="store_true", help="train on relaxed samples, with a relaxed prior")
    add(
        "--temperature",
        type=positive_number,
        default=0.5,
        help="the floor that it falls to from 1 (default: 0.5); from 1 on it is constant",
    )
    add(
        "--data",
        type=archive,
        help="an .npz file of grey images, uint8 arrays x_train and x_test (default: the digits)",
    )
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    trainings = Trainings(options)
    start = trainings.clock()
    pyro.set_rng_seed(options.seed)
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    images, held_out = options.data or digits(options.seed)
    if options.latents == "categorical":
        shape = (options.variables or 8, options.categories)
    else:
        shape = (options.variables or 32,)
    vae = VAE(images[0].numel(), options.latents, shape)
    curve = train(trainings, vae, images.flatten(1), held_out.flatten(1), options)
    elbo = discrete_elbo(vae, held_out.flatten(1), EVALUATION_SAMPLES)
    print(
        f"held-out ELBO: {elbo:.2f} nats an image "
        f"({len(held_out)} images, {EVALUATION_SAMPLES} samples each)"
    )
    draw(options.out, vae, held_out, curve)
    print(f"wrote {options.out} after {trainings.clock() - start:.0f} s")


if __name__ == "__main__":
    main()

# %%
# The result
# ----------
#
# A reconstruction has passed through 24 bits, and most digits can still be read. Most samples from
# the prior look like digits too. The ELBO of held-out images is near that of the training images,
# so the networks do not overfit.
#
# What to try next
# ----------------
#
# - ``--latents bernoulli``: 32 bits in place of the categories.
# - ``--variables 16`` or ``--categories 16``: a longer description of each image.
# - ``--soft``: the relaxed model. The KL divergence of relaxed distributions is several times that
#   of the discrete ones. On images this small it costs more than the information in a category, so
#   the categories stay unused.
# - `choose_an_estimator.py` compares the estimators for this encoder, and `count_vae.py` has counts
#   as latent variables.
