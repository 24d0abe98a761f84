# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Gaussian mixtures with different scales: `SelectedComponent` against ``Normal(z @ mu, z @ sd)``.

    python benchmarks/mixture.py --threads 1                  # six minutes
    python benchmarks/mixture.py --seeds 0 --data iris        # one of the starts

Both likelihoods have the same values on one-hot vectors z. The model has K = 3 components with
means, scales and weights of their own, for the standardised iris or wine data of scikit-learn.

First the gradient: at the start of the training, the mean of many straight-through gradients of the
expected log likelihood in the logits of all points, against the exact gradient, for each estimator.
Printed are the lengths of the exact gradient, and of its difference to the mean with the standard
error of the mean.

Then training: from a k-means start, SVI with `AutoRelaxed` for z and `AutoDelta` for the rest, 10
particles and a decaying learning rate. The point that it reaches is evaluated with z summed out,
and continued by `TraceEnum_ELBO` with the same guide. Printed are both log densities and the gain.
"""

import argparse
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoGuideList, init_to_value
from pyro.optim import ClippedAdam
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris, load_wine
from torch import Tensor
from turns import environment_parser, write

from pyro_gumbel import AutoRelaxed, CategoricalStraightThrough, SelectedComponent, relaxed

COMPONENTS = 3
DATA = {"iris": load_iris, "wine": load_wine}
CHUNK = 200  # draws of all points at a time
CONTINUED_STEPS = 1500
ESTIMATORS: list[tuple[str, float | None]] = [
    ("second_order", None),
    ("straight_through", 1.0),
    ("gapped", 1.0),
    ("gumbel_softmax", 1.0),
    ("gumbel_softmax", 0.5),
    ("gumbel_softmax", 0.1),
    ("gumbel_rao", 0.5),
]


def selected(z: Tensor, means: Tensor, scales: Tensor) -> Any:
    return SelectedComponent(z, dist.Normal(means, scales).to_event(1))


def derivative(z: Tensor, means: Tensor, scales: Tensor) -> Any:
    mean, scale = ((z.unsqueeze(-1) * table).sum(-2) for table in (means, scales))
    return dist.Normal(mean, scale).to_event(1)


LIKELIHOODS: dict[str, Callable[..., Any]] = {
    "SelectedComponent": selected,
    "Normal(z @ mu, z @ sd)": derivative,
}


def standardised(name: str) -> Tensor:
    x, _ = DATA[name](return_X_y=True)
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)


def k_means(x: Tensor, seed: int) -> dict[str, Tensor]:
    """The means, scales and weights of the clusters."""
    found = KMeans(COMPONENTS, n_init=1, random_state=seed).fit(x.numpy())
    clusters = [x[torch.tensor(found.labels_ == k)] for k in range(COMPONENTS)]
    return {
        "means": torch.stack([cluster.mean(0) for cluster in clusters]),
        "scales": torch.stack([cluster.std(0) for cluster in clusters]).clamp(min=0.05),
        "weights": torch.tensor([len(cluster) / len(x) for cluster in clusters]),
    }


# The gradient.


def exact_gradient(x: Tensor, start: dict[str, Tensor], logits: Tensor) -> Tensor:
    """Of the expected log likelihood, in the logits of every point."""
    normal = dist.Normal(start["means"], start["scales"]).to_event(1)
    expected = (logits.softmax(-1) * normal.log_prob(x.unsqueeze(1))).sum()
    return torch.autograd.grad(expected, logits)[0]


def mean_gradient(
    likelihood: str,
    estimator: str,
    temperature: float | None,
    draws: int,
    x: Tensor,
    start: dict[str, Tensor],
    logits: Tensor,
) -> tuple[Tensor, float]:
    """The mean straight-through gradient, and the length of its standard error."""
    total, squares = torch.zeros(logits.shape), torch.zeros(logits.shape)
    for _ in range(draws // CHUNK):
        each = logits.detach().expand(CHUNK, *logits.shape).clone().requires_grad_()
        z = CategoricalStraightThrough(temperature, logits=each, estimator=estimator).rsample()
        p = LIKELIHOODS[likelihood](z, start["means"], start["scales"])
        (gradient,) = torch.autograd.grad(p.log_prob(x).sum(), each)
        total += gradient.sum(0)
        squares += gradient.square().sum(0)
    number = draws // CHUNK * CHUNK
    mean = total / number
    return mean, ((squares / number - mean.square()).clamp(min=0).sum() / number).sqrt().item()


def biases(name: str, draws: int) -> list[dict[str, Any]]:
    x = standardised(name)
    start = k_means(x, seed=0)
    logits = start["weights"].log().expand(len(x), COMPONENTS).clone().requires_grad_()
    exact = exact_gradient(x, start, logits)
    rows = []
    for estimator, temperature in ESTIMATORS:
        row: dict[str, Any] = {"data": name, "exact": exact.norm().item()}
        row |= {"estimator": estimator, "temperature": temperature}
        for likelihood in LIKELIHOODS:
            mean, error = mean_gradient(likelihood, estimator, temperature, draws, x, start, logits)
            row[likelihood] = ((mean - exact).norm().item(), error)
        rows.append(row)
        cells = (f"{row[key][0]:.1f} +- {row[key][1]:.1f}" for key in LIKELIHOODS)
        shown = "" if temperature is None else temperature
        print(
            f"| {name} | {row['exact']:.1f} | {estimator} | {shown} | {' | '.join(cells)} |",
            flush=True,
        )
    return rows


# Training.


def model(x: Tensor, likelihood: str) -> None:
    shape = (COMPONENTS, x.shape[-1])
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((COMPONENTS,), 2.0)))
    means = pyro.sample("means", dist.Normal(torch.zeros(shape), 2.0).to_event(2))
    scales = pyro.sample("scales", dist.LogNormal(torch.full(shape, -0.5), 1.0).to_event(2))
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(weights))
        pyro.sample("x", LIKELIHOODS[likelihood](z, means, scales), obs=x)


def train(trained: Any, guide: Any, elbo: ELBO, steps: int, rate: float, *data: Any) -> None:
    """Adam with a rate that decays to 1/50; six times that for the logits of z."""

    def settings(parameter: str) -> dict[str, float]:
        return {"lr": 6 * rate if "logits" in parameter else rate, "lrd": 0.02 ** (1 / steps)}

    svi = SVI(trained, guide, ClippedAdam(settings), elbo)
    for _ in range(steps):
        svi.step(*data)


def reached_and_continued(name: str, likelihood: str, seed: int, steps: int) -> tuple[float, float]:
    """The log density after training on samples, and after more training by enumeration."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    x = standardised(name)
    points = AutoDelta(
        poutine.block(model, hide=["z"]), init_loc_fn=init_to_value(values=k_means(x, seed))
    )
    sampled = relaxed(model)
    guide = AutoGuideList(sampled)
    guide.append(points)
    guide.append(AutoRelaxed(poutine.block(sampled, expose=["z"])))
    elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    train(sampled, guide, elbo, steps, 0.05, x, likelihood)
    enumerated, exact = config_enumerate(model), TraceEnum_ELBO(max_plate_nesting=1)
    reached = -exact.loss(enumerated, points, x, likelihood)
    train(enumerated, points, exact, CONTINUED_STEPS, 0.01, x, likelihood)
    return reached, -exact.loss(enumerated, points, x, likelihood)


def gains(name: str, seeds: list[int], steps: int) -> list[dict[str, Any]]:
    rows = []
    for likelihood in LIKELIHOODS:
        for seed in seeds:
            reached, continued = reached_and_continued(name, likelihood, seed, steps)
            gain = continued - reached
            row = {"data": name, "likelihood": likelihood, "seed": seed}
            rows.append(row | {"reached": reached, "continued": continued, "gain": gain})
            print(
                f"| {name} | `{likelihood}` | {seed} | {reached:.3f} | {continued:.3f} "
                f"| {gain:.3f} |",
                flush=True,
            )
    return rows


def main() -> None:
    parser = environment_parser(__doc__)
    add = parser.add_argument
    add("--data", nargs="+", choices=DATA, default=list(DATA))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    add("--steps", type=int, default=1500)
    add("--draws", type=int, default=10_000, help="for the mean of a gradient (default: 10000)")
    options: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results: dict[str, Any] = {"biases": [], "gains": []}
    print("| data | exact | estimator | temperature | " + " | ".join(LIKELIHOODS) + " |")
    for name in options.data:
        results["biases"] += biases(name, options.draws)
    print("| data | likelihood | seed | reached | continued | gain |")
    for name in options.data:
        results["gains"] += gains(name, options.seeds, options.steps)
        write(options, results)
    for likelihood in LIKELIHOODS:
        found = [row["gain"] for row in results["gains"] if row["likelihood"] == likelihood]
        print(f"{likelihood}: gains from {min(found):.3f} to {max(found):.3f} nats")


if __name__ == "__main__":
    main()
