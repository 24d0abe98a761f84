# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Choose an estimator
===================

Which estimator and which temperature suit a model: the VAE of `digits_vae.py`.

Usage::

    python examples/choose_an_estimator.py                 # two minutes
    python examples/choose_an_estimator.py --steps 0       # before any training

Ctrl-C ends the training early and keeps the result; during the report it ends the program.
"""

import argparse
import json
import signal
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam

from digits_vae import BATCH, LEARNING_RATE, VAE, digits
from options import Trainings, option_parser, positive_number, whole_number
from pyro_gumbel import GradientReport, GradientRow, gradient_report

# %%
# The data and the model
# ----------------------
#
# They are those of `digits_vae.py`: an image has 8 variables of 8 categories, so 16.7 million
# states.

SHAPE = (8, 8)  # variables, categories
TEMPERATURE = 0.5  # of training

# %%
# Training
# --------
#
# The VAE is trained for some steps first: at the start the decoder ignores its input, and all
# estimators are good.


def train(trainings: Trainings, vae: VAE, images: torch.Tensor, steps: int) -> None:
    """Train with "gumbel_softmax"."""
    svi = SVI(vae.model, vae.guide, Adam({"lr": LEARNING_RATE}), TraceMeanField_ELBO())
    for _, bar in trainings.steps(steps, svi, images[:BATCH], TEMPERATURE):
        batch = images[torch.randint(len(images), (BATCH,))]
        loss = svi.step(batch, TEMPERATURE) / BATCH
        bar.set_postfix_str(f"ELBO {-loss:.2f}", refresh=False)


# %%
# The report
# ----------
#
# `gradient_report` compares the gradient of the encoder on one batch of images with the exact
# gradient, for each estimator and temperature. The sum over all states is out of reach here. So the
# exact gradient is itself an estimate, by the score function, and the report states its error.
#
# It recommends an estimator for training to the end, where bias counts in full. Over fewer steps
# noise counts too, so the program also prints what is best over 1, 10, 100 and 1000 steps.

STEPS = (1, 10, 100, 1000)  # that recommendations are printed for


def recommendations(report: GradientReport) -> str:
    """The best row over fewer steps."""
    lines = []
    for steps in STEPS:
        try:
            best = report.best(steps)
        except ValueError:  # the exact gradient is smaller than its error
            return "no recommendation: write a larger --samples"
        lines.append(f"best over {f'{steps} steps:':11} {described(best)}")
    return "\n".join(lines)


def described(row: GradientRow) -> str:
    tau = "" if row.temperature is None else f", temperature={row.temperature:g}"
    return f'estimator="{row.estimator}"{tau}'


# %%
# The program
# -----------


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=1000, least=0, out="choose_an_estimator.png")
    add = parser.add_argument
    add(
        "--temperatures",
        type=positive_number,
        nargs="+",
        default=[0.3, 0.5, 1.0],
        help="default: 0.3 0.5 1",
    )
    add("--samples", type=whole_number(2, 200), default=200, help="a row (default: 200)")
    add("--json", type=Path, help="a file for the numbers of the report")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    trainings = Trainings(options)
    start = trainings.clock()
    pyro.set_rng_seed(options.seed)
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    images, _ = digits(options.seed)
    images = images.flatten(1)
    vae = VAE(images.shape[-1], "categorical", SHAPE)
    train(trainings, vae, images, options.steps)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report = gradient_report(
        vae.model,
        vae.guide,
        (images[:BATCH], TEMPERATURE),
        elbo=TraceMeanField_ELBO(),
        temperatures=options.temperatures,
        num_samples=options.samples,
        seed=options.seed,
    )
    print(report)
    print(recommendations(report))
    if options.json:
        options.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    report.plot().savefig(options.out, dpi=120)
    print(f"wrote {options.out} after {trainings.clock() - start:.0f} s")


if __name__ == "__main__":
    main()

# %%
# What to try next
# ----------------
#
# - ``--steps 0``: before any training nearly all estimators are good.
# - ``--temperatures 0.1 0.2``: a lower temperature has less bias, and more noise.
# - The report for a model of your own: ``print(gradient_report(model, guide, args))``.
