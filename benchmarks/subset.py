# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Relaxed subsets: `RelaxedSubset` against successive softmaxes.

    python benchmarks/subset.py                  # k = 20,000, size = 50, and growth with size
    python benchmarks/subset.py --out subset.json

The work of one round: draw a vector of k entries from logits, and differentiate a weighted sum of
it in the logits. The usual recipe (Xie and Ermon, "Reparameterizable subset sampling via continuous
relaxations" (2019), https://arxiv.org/abs/1901.10517) takes m successive softmaxes, each with the
winners so far damped: a_1 = x + g, p_j = softmax(a_j / tau), a_{j+1} = a_j + log(1 - p_j), and the
sum of the p_j. It has no density. The contestants take turns in one process. Ratios are of medians.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from turns import medians, option_parser, read_options, write

from pyro_gumbel import RelaxedSubset, Subset, SubsetStraightThrough

TEMPERATURE = 0.5


def successive_softmaxes(logits: Tensor, size: int) -> Tensor:
    """The usual recipe, with the logarithms clamped as float32 requires."""
    noise = -torch.rand_like(logits).clamp(min=1e-20).log().neg().clamp(min=1e-20).log()
    perturbed, total = logits + noise, torch.zeros_like(logits)
    for _ in range(size):
        share = (perturbed / TEMPERATURE).softmax(-1)
        total = total + share
        perturbed = perturbed + (1 - share).clamp(min=1e-20).log()
    return total


def relaxed(logits: Tensor, size: int) -> Tensor:
    return RelaxedSubset(TEMPERATURE, size, logits=logits).rsample()


def relaxed_and_log_prob(logits: Tensor, size: int) -> Tensor:
    distribution = RelaxedSubset(TEMPERATURE, size, logits=logits)
    value = distribution.rsample()
    return value + 1e-3 * distribution.log_prob(value).unsqueeze(-1)


def straight_through(logits: Tensor, size: int) -> Tensor:
    return SubsetStraightThrough(TEMPERATURE, size, logits=logits).rsample()


def straight_through_and_log_prob(logits: Tensor, size: int) -> Tensor:
    distribution = SubsetStraightThrough(TEMPERATURE, size, logits=logits)
    value = distribution.rsample()
    return value + 1e-3 * distribution.log_prob(value).unsqueeze(-1)


def discrete_and_log_prob(logits: Tensor, size: int) -> Tensor:
    distribution = Subset(size, logits=logits)
    return distribution.log_prob(distribution.sample()).unsqueeze(-1)


CONTESTANTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "successive softmaxes": successive_softmaxes,
    "RelaxedSubset, sample": relaxed,
    "RelaxedSubset, sample and log_prob": relaxed_and_log_prob,
    "SubsetStraightThrough, sample": straight_through,
    "SubsetStraightThrough, sample and log_prob": straight_through_and_log_prob,
    "Subset, sample and log_prob": discrete_and_log_prob,
}


def in_turns(names: list[str], k: int, size: int, rows: int, repeats: int) -> dict[str, float]:
    """The median seconds of a draw of each contestant, forward and backward."""
    logits = torch.randn(rows, k).requires_grad_()
    weights = torch.linspace(-1, 1, k)

    def work(draw: Callable[[Tensor, int], Tensor]) -> None:
        torch.autograd.grad((draw(logits, size) * weights).sum(), logits)

    return medians({name: partial(work, CONTESTANTS[name]) for name in names}, repeats)


def main() -> None:
    parser = option_parser(__doc__, repeats=20)
    add = parser.add_argument
    add("--k", type=int, default=20_000, help="categories (default: 20000)")
    add("--size", type=int, default=50, help="how many are chosen (default: 50)")
    add("--rows", type=int, default=1, help="vectors a round (default: 1)")
    options = read_options(parser)

    found = in_turns(list(CONTESTANTS), options.k, options.size, options.rows, options.repeats)
    baseline = found["successive softmaxes"]
    print(f"k = {options.k}, size = {options.size}, rows = {options.rows}, float32, backward too")
    for name, taken in found.items():
        print(f"{name:44s} {1e3 * taken:9.2f} ms   {baseline / taken:6.1f} times as fast")

    growth: dict[int, dict[str, float]] = {}
    print("\ngrowth with size, milliseconds")
    for size in (1, 10, 100, 1000):
        ours = [name for name in CONTESTANTS if name != "successive softmaxes"]
        growth[size] = in_turns(ours, options.k, size, options.rows, max(1, options.repeats // 4))
        print(f"{size:5d}  " + "  ".join(f"{1e3 * taken:8.2f}" for taken in growth[size].values()))
    ratios = {name: baseline / taken for name, taken in found.items()}
    write(options, {"seconds": found, "ratios": ratios, "growth": growth})


if __name__ == "__main__":
    main()
