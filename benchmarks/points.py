# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How near to the truth a guide comes where it can be exact: 200 independent points.

    python benchmarks/points.py --threads 1                    # the default, second order
    python benchmarks/points.py --threads 1 --temperature 0.5  # gumbel_softmax

Each point is in one of two clusters, N(-1.5, 1) or N(1.5, 1), with probability 1/2 each. The latent
site is a bit, or with --categorical a one-hot vector. The points are independent, so the mean-field
guide contains the exact posterior. `AutoRelaxed` is trained by `Trace_ELBO` with a decaying rate:
with ten vectorised particles over 2,000 steps, and with one particle over 5,000. For each seed the
table has the distance of the exact ELBO from the log evidence in nats, summed over the points, the
largest error of a posterior probability, and how many are off by more than 0.1.
"""

import argparse
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.distributions import kl_divergence
from turns import option_parser, read_options, write

from pyro_gumbel import AutoRelaxed, relaxed

POINTS = 200
TRAININGS = [  # particles, learning rate, steps
    (10, 0.1, 2000),
    (1, 0.05, 5000),
]
DECAY = 0.02  # the last learning rate over the first


def drawn_points() -> Tensor:
    return torch.randn(POINTS) + 3 * torch.bernoulli(torch.full((POINTS,), 0.5)) - 1.5


def posterior(x: Tensor) -> Tensor:
    """The probability of the second cluster, for each point."""
    return (3 * x).sigmoid()


def model_of(x: Tensor, *, categorical: bool) -> Callable[[], None]:
    def model() -> None:
        with pyro.plate("points", POINTS):
            if categorical:
                z = pyro.sample("z", dist.OneHotCategorical(torch.ones(2)))
                mean = z @ torch.tensor([-1.5, 1.5])
            else:
                mean = 3 * pyro.sample("z", dist.Bernoulli(0.5)) - 1.5
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    return model


def trained(
    x: Tensor, particles: int, rate: float, steps: int, options: argparse.Namespace
) -> Tensor:
    """The guide's probabilities of the second cluster."""
    settings = {"temperature": options.temperature, "estimator": options.estimator}
    model = relaxed(model_of(x, categorical=options.categorical), **settings)
    guide = AutoRelaxed(model, **settings)
    elbo = Trace_ELBO(particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    svi = SVI(model, guide, ClippedAdam({"lr": rate, "lrd": DECAY ** (1 / steps)}), elbo)
    for _ in range(steps):
        svi.step()
    probs = guide.distribution("z").probs.detach()
    return probs[..., 1] if options.categorical else probs


def compare(seed: int, particles: int, rate: float, steps: int, options: Any) -> dict[str, float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    x = drawn_points()
    found, exact = trained(x, particles, rate, steps, options), posterior(x)
    errors = (found - exact).abs()
    return {
        "particles": particles,
        "seed": seed,
        "nats": kl_divergence(dist.Bernoulli(found), dist.Bernoulli(exact)).sum().item(),
        "largest error": errors.max().item(),
        "off": int((errors > 0.1).sum()),
    }


def main() -> None:
    parser = option_parser(__doc__, repeats=5)  # of seeds
    add = parser.add_argument
    add("--categorical", action="store_true", help="one-hot vectors in place of bits")
    add("--temperature", type=float, help="without it, second order")
    add("--estimator", help="with a temperature gumbel_softmax by default")
    options = read_options(parser)
    print(
        "| particles | seed | nats | largest error | off by more than 0.1 |\n|---|---|---|---|---|"
    )
    rows = []
    for training in TRAININGS:
        for seed in range(options.repeats):
            row = compare(seed, *training, options)
            rows.append(row)
            print(
                f"| {row['particles']} | {seed} | {row['nats']:.2f} | {row['largest error']:.3f} "
                f"| {row['off']} |",
                flush=True,
            )
    write(options, {"runs": rows})


if __name__ == "__main__":
    main()
