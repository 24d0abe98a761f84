# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Soft m-hot vectors: the threshold of a `RelaxedSubset` against successive softmaxes.

    python benchmarks/subset.py                  # k = 20,000, size = 50, and growth with size
    python benchmarks/subset.py --out subset.json

The work of one round: draw a row of k entries from logits, and differentiate a weighted sum
of them in the logits. The usual recipe (Xie and Ermon, "Reparameterizable subset sampling via
continuous relaxations" (2019), https://arxiv.org/abs/1901.10517) takes m softmaxes in a row, each
with the winners so far damped: a_1 = x + g, p_j = softmax(a_j / tau), a_{j+1} = a_j + log(1 - p_j),
and the sum of the p_j. It has no density. The contestants take turns in one process; ratios are of
medians.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_gumbel import RelaxedSubset, Subset, SubsetStraightThrough

TEMPERATURE = 0.5


def successive_softmaxes(logits: Tensor, size: int) -> Tensor:
    """The recipe, with the logarithm clamped as it has to be in float32."""
    noise = -torch.rand_like(logits).clamp(min=1e-20).log().neg().clamp(min=1e-20).log()
    scores, total = logits + noise, torch.zeros_like(logits)
    for _ in range(size):
        share = (scores / TEMPERATURE).softmax(-1)
        total = total + share
        scores = scores + (1 - share).clamp(min=1e-20).log()
    return total


def relaxed(logits: Tensor, size: int) -> Tensor:
    return RelaxedSubset(TEMPERATURE, size, logits=logits).rsample()


def relaxed_and_scored(logits: Tensor, size: int) -> Tensor:
    law = RelaxedSubset(TEMPERATURE, size, logits=logits)
    value = law.rsample()
    return value + 1e-3 * law.log_prob(value).unsqueeze(-1)


def hard(logits: Tensor, size: int) -> Tensor:
    return SubsetStraightThrough(TEMPERATURE, size, logits=logits).rsample()


def hard_and_scored(logits: Tensor, size: int) -> Tensor:
    law = SubsetStraightThrough(TEMPERATURE, size, logits=logits)
    value = law.rsample()
    return value + 1e-3 * law.log_prob(value).unsqueeze(-1)


def discrete_and_scored(logits: Tensor, size: int) -> Tensor:
    law = Subset(size, logits=logits)
    return law.log_prob(law.sample()).unsqueeze(-1)


CONTESTANTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "successive softmaxes": successive_softmaxes,
    "RelaxedSubset, sample": relaxed,
    "RelaxedSubset, sample and log_prob": relaxed_and_scored,
    "SubsetStraightThrough, sample": hard,
    "SubsetStraightThrough, sample and log_prob": hard_and_scored,
    "Subset, sample and log_prob": discrete_and_scored,
}


def seconds(draw: Callable[[Tensor, int], Tensor], logits: Tensor, size: int) -> float:
    """The seconds of one draw, forward and backward, in a turn of five."""
    weights = torch.linspace(-1, 1, logits.shape[-1])
    start = time.perf_counter()
    for _ in range(5):
        torch.autograd.grad((draw(logits, size) * weights).sum(), logits)
    return (time.perf_counter() - start) / 5


def medians(names: list[str], k: int, size: int, rows: int, repeats: int) -> dict[str, float]:
    """The median seconds of each contestant, in turns after a round to warm up."""
    logits = torch.randn(rows, k).requires_grad_()
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats + 1):
        for name in names:
            times[name].append(seconds(CONTESTANTS[name], logits, size))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def environment() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--k", type=int, default=20_000, help="categories (default: 20000)")
    add("--size", type=int, default=50, help="how many are chosen (default: 50)")
    add("--rows", type=int, default=1, help="vectors a round (default: 1)")
    add("--repeats", type=int, default=20, help="rounds of each (default: 20)")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    found = medians(list(CONTESTANTS), options.k, options.size, options.rows, options.repeats)
    baseline = found["successive softmaxes"]
    print(f"k = {options.k}, size = {options.size}, rows = {options.rows}, float32, backward too")
    for name, taken in found.items():
        print(f"{name:44s} {1e3 * taken:9.2f} ms   {baseline / taken:6.1f} times as fast")

    growth: dict[int, dict[str, float]] = {}
    print("\ngrowth with size, milliseconds")
    for size in (1, 10, 100, 1000):
        ours = [name for name in CONTESTANTS if name != "successive softmaxes"]
        growth[size] = medians(ours, options.k, size, options.rows, max(1, options.repeats // 4))
        print(f"{size:5d}  " + "  ".join(f"{1e3 * taken:8.2f}" for taken in growth[size].values()))
    if options.out:
        result = {
            "options": {name: str(value) for name, value in vars(options).items()},
            "environment": environment(),
            "seconds": found,
            "ratios": {name: baseline / taken for name, taken in found.items()},
            "growth": growth,
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
