# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The bias and the noise of all estimators for one-hot vectors, on random losses.

    python benchmarks/bias_and_variance.py --threads 1    # two minutes

A one-hot vector of K categories has random logits, 1.5 times normal. Two kinds of losses:
quadratic ones with normal coefficients, and curved ones, which are networks with one hidden layer
of 16 tanh units and normal weights. The gradient is that of the mean loss in the logits, which is
a sum over the categories in float64. Each category is drawn in turn and weighted with its
probability, so the only sampling is that of the noise given the sample, 40 times for each category,
of the estimators that have such noise.

Printed are the bias |E g - exact|, from which the part that is due to sampling is taken off, and
the standard deviation sqrt(E |g - E g|^2), for the gradient g from one draw. Both are root mean
squares over random losses, divided by that of the exact gradient.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from turns import environment_parser, read_options, write

from pyro_gumbel import (
    gapped,
    gumbel_rao,
    links,
    mve,
    reinmax,
    reinmax_rao,
    straight_through,
)
from pyro_gumbel.estimators import Estimator

DTYPE = torch.float64


class Contestant(NamedTuple):
    """An estimator at a temperature."""

    estimator: Estimator
    temperature: float = 1.0


CONTESTANTS = {
    "straight_through, T = 1": Contestant(straight_through),
    "gumbel_softmax, T = 1": Contestant(gumbel_rao(1)),  # the same distribution given the sample
    "gumbel_softmax, T = .5": Contestant(gumbel_rao(1), 0.5),
    "gumbel_rao(10), T = 1": Contestant(gumbel_rao(10)),
    "gumbel_rao(10), T = .5": Contestant(gumbel_rao(10), 0.5),
    "gapped, T = 1": Contestant(gapped()),
    "reinmax, T = 1": Contestant(reinmax),
    "mve(160)": Contestant(mve(160)),
    "mve(1e3)": Contestant(mve(1e3)),
    "mve(1e5)": Contestant(mve(1e5)),
    "reinmax_rao(1)": Contestant(reinmax_rao(1)),
    "reinmax_rao(32)": Contestant(reinmax_rao(32)),
}


class Problem(NamedTuple):
    """Logits, and for each category, in rows, the loss and the gradient of the loss."""

    logits: Tensor
    losses: Tensor
    gradients: Tensor

    def exact(self) -> Tensor:
        p = self.logits.softmax(-1)
        return p * (self.losses - p @ self.losses)


def quadratic(k: int) -> Problem:
    a, b = torch.randn(k, k, dtype=DTYPE), torch.randn(k, dtype=DTYPE)
    a = (a + a.T) / math.sqrt(2)
    return Problem(1.5 * torch.randn(k, dtype=DTYPE), b + a.diagonal() / 2, b + a)


def curved(k: int) -> Problem:
    inner, outer = torch.randn(16, k, dtype=DTYPE), torch.randn(16, dtype=DTYPE)
    hidden = (inner + torch.randn(16, 1, dtype=DTYPE)).tanh()  # of each category, in columns
    slopes = outer.unsqueeze(-1) * (1 - hidden**2)
    return Problem(1.5 * torch.randn(k, dtype=DTYPE), outer @ hidden, slopes.T @ inner)


LOSSES = {"quadratic": quadratic, "curved": curved}


def estimates(contestant: Contestant, problem: Problem, repeats: int) -> Tensor:
    """Gradients over repeats, the category that was drawn, and the logits."""
    k = len(problem.logits)
    logits = problem.logits.expand(repeats, k, k).clone().requires_grad_()
    hard = torch.eye(k, dtype=DTYPE).expand(repeats, k, k)
    tau = torch.tensor(contestant.temperature, dtype=DTYPE)
    # `gumbel_rao` asks the perturbed logits for the winner only.
    surrogate = contestant.estimator(logits, tau, hard, hard, links.simplex)
    return torch.autograd.grad((surrogate * problem.gradients).sum(), logits)[0]


def measured(contestant: Contestant, problem: Problem, repeats: int) -> list[float]:
    """The squares of the bias, the standard deviation and the exact gradient."""
    p, exact = problem.logits.softmax(-1), problem.exact()
    is_sampled = hasattr(contestant.estimator, "samples")
    found = estimates(contestant, problem, repeats if is_sampled else 1)
    given = found.mean(0)
    within = found.var(0).sum(-1) if is_sampled else torch.zeros_like(p)  # given the sample
    mean = p @ given
    error = (p.square() * within).sum() / repeats
    bias = (mean - exact).square().sum() - error
    noise = p @ ((given - mean).square().sum(-1) + within)
    return [bias.item(), noise.item(), exact.square().sum().item()]


def rows(k: int, problems: int, repeats: int) -> Iterator[tuple[str, dict[str, float]]]:
    for name, contestant in CONTESTANTS.items():
        row = {}
        for loss, make in LOSSES.items():
            torch.manual_seed(0)
            chosen = [make(k) for _ in range(problems)]
            results = [measured(contestant, problem, repeats) for problem in chosen]
            bias, noise, length = map(sum, zip(*results, strict=True))
            row[f"{loss}: bias"] = math.sqrt(max(bias, 0.0) / length)
            row[f"{loss}: sd"] = math.sqrt(noise / length)
        yield name, row


def main() -> None:
    parser = environment_parser(__doc__)
    parser.add_argument("--categories", type=int, nargs="+", default=[2, 4, 8, 64])
    parser.add_argument("--problems", type=int, default=50, help="random losses of each kind")
    parser.add_argument("--noises", type=int, default=40, help="given each sample")
    options = read_options(parser)
    results: dict[int, dict[str, dict[str, float]]] = {}
    for k in options.categories:
        print(f"\n{k} categories")
        header = [f"{loss}: {what}" for loss in LOSSES for what in ("bias", "sd")]
        print(f"| estimator | {' | '.join(header)} |")
        print("|---" * (len(header) + 1) + "|")
        results[k] = {}
        for name, row in rows(k, options.problems, options.noises):
            results[k][name] = row
            print(f"| {name} | {' | '.join(f'{row[each]:.2g}' for each in header)} |", flush=True)
    write(options, {"categories": results})


if __name__ == "__main__":
    main()
