# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which estimator and which temperature suit a model: the VAE of digits_vae.py.

    python examples/choose_an_estimator.py                 # two minutes
    python examples/choose_an_estimator.py --steps 0       # before any training

The VAE is trained for some steps first: at the start the decoder ignores its input, and all
estimators are good. Then `gradient_report` compares the gradient of the encoder on one batch of
images with the exact gradient, for each estimator and temperature. With 8 variables of 8 categories
an image has 16.7 million states, so the exact gradient is itself an estimate, by the score
function. The report states its error. The script recommends the row with the most progress: the
fraction of a step that is along the exact gradient.

Ctrl-C ends the training early and keeps the result; during the report it ends the program.
"""

import argparse
import dataclasses
import json
import math
import signal
import time
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam

from digits_vae import BATCH, LEARNING_RATE, VAE, digits
from options import option_parser, positive_number, training_steps, whole_number
from pyro_gumbel import GradientReport, GradientRow, gradient_report

SHAPE = (8, 8)  # variables, categories
USUAL = "gumbel_softmax"  # the default of straight-through classes
TEMPERATURE = 0.5  # of training


def train(vae: VAE, images: torch.Tensor, steps: int) -> None:
    """Train with the default estimator."""
    svi = SVI(vae.model, vae.guide, Adam({"lr": LEARNING_RATE}), TraceMeanField_ELBO())
    for _, bar in training_steps(steps):
        batch = images[torch.randint(len(images), (BATCH,))]
        loss = svi.step(batch, TEMPERATURE) / BATCH
        bar.set_postfix_str(f"ELBO {-loss:.2f}", refresh=False)


def recommendation(report: GradientReport) -> str:
    """The best row, the best one of the default estimator, and why the first is better."""
    try:
        best = report.best()
    except ValueError:  # the exact gradient is smaller than its error
        return "no recommendation: write a larger --samples"
    usual_rows = [row for row in report.rows if row.estimator == USUAL]
    usual = dataclasses.replace(report, rows=usual_rows).best()
    lines = [
        f'recommended: estimator="{best.estimator}", temperature={best.temperature:g}',
        f"  {described(best)}",
    ]
    if best is usual:
        return "\n".join([*lines, "  because no other estimator does better"])
    return "\n".join(
        [
            *lines,
            f'  beside it "{usual.estimator}" at its best temperature, {usual.temperature:g}:',
            f"  {described(usual)}",
            f"  because {reason(best, usual)}",
        ]
    )


def described(row: GradientRow) -> str:
    return (
        f"{row.progress:.0%} +- {row.progress_error:.0%} of a step is along the exact gradient; "
        f"bias {row.bias:.3g}, noise {row.standard_deviation:.3g}, {row.milliseconds:.1f} ms"
    )


def reason(best: GradientRow, usual: GradientRow) -> str:
    """Why the best row is better."""
    gain = best.progress - usual.progress
    if gain < 2 * math.hypot(best.progress_error, usual.progress_error):
        return "it came out first, but these samples cannot tell the two apart"
    less = [
        name
        for name, ours, theirs in (
            ("bias", best.bias, usual.bias),
            ("noise", best.standard_deviation, usual.standard_deviation),
        )
        if ours < theirs
    ]
    return f"it has less {' and less '.join(less)}" if less else "its mean points the right way"


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
    start = time.perf_counter()
    options = parse_options()
    pyro.set_rng_seed(options.seed)
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    images, _ = digits(options.seed)
    images = images.flatten(1)
    vae = VAE(images.shape[-1], "categorical", SHAPE)
    train(vae, images, options.steps)
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
    print(recommendation(report))
    if options.json:
        options.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    report.plot().savefig(options.out, dpi=120)
    print(f"wrote {options.out} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
