# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The cost of an index z with a gradient, against its one-hot vector D and against plain integers.

    python benchmarks/indices.py --threads 1
    python benchmarks/indices.py --threads 1 --categories 1000    # of the large table

- Lookup: ``table[z]`` and ``D @ table`` for 4096 draws, 64 categories and a table of 64 x 32, with
  the gradient in D and in the table; then the same with the draw, and the gradient in its logits.
- Large table: a step with 200 draws of 50,000 categories and a table of 50,000 x 64. It draws z,
  looks it up, and differentiates the sum of squares in logits and table. Beside it are the same
  step with ``D @ table``, and drawing and differentiating the one-hot vectors alone.
- Operations: on 10 draws of 3 categories, without the backward pass, beside the same operation on
  plain integers.

The contestants take turns in one process. Times are medians of processor time.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from turns import medians, option_parser, read_options, write

from pyro_gumbel import CategoricalStraightThrough, IndexStraightThrough
from pyro_gumbel.tensors.index_tensor import drawn_index

LOOKUP = 4096, 64, 32  # draws, categories, columns of the table
BATCH, COLUMNS = 200, 64  # of the large table
SMALL = 10, 3
CALLS = 100  # of a small operation, in each call that is timed

Work = Callable[[], object]


def index_of(one_hots: Tensor) -> Tensor:
    return drawn_index(one_hots, one_hots.argmax(-1))


def gradients(value: Tensor, *inputs: Tensor) -> object:
    return torch.autograd.grad(value.square().sum(), inputs)


def lookups() -> Mapping[str, Work]:
    draws, categories, columns = LOOKUP
    d = one_hot(torch.randint(categories, (draws,)), categories).float().requires_grad_()
    table = torch.randn(categories, columns, requires_grad=True)
    z = index_of(d)
    return {
        "`table[z]`": lambda: gradients(table[z], d, table),
        "`D @ table`": lambda: gradients(d @ table, d, table),
    }


def steps(shape: tuple[int, int], columns: int) -> Mapping[str, Work]:
    logits = torch.randn(shape, requires_grad=True)
    table = torch.randn(shape[1], columns, requires_grad=True)
    weights = torch.randn(shape)

    def index() -> Tensor:
        return IndexStraightThrough(logits=logits, validate_args=False).rsample()

    def one_hots() -> Tensor:
        return CategoricalStraightThrough(logits=logits, validate_args=False).rsample()

    return {
        "draw z, `table[z]`": lambda: gradients(table[index()], logits, table),
        "draw D, `D @ table`": lambda: gradients(one_hots() @ table, logits, table),
        "draw D alone": lambda: torch.autograd.grad((one_hots() * weights).sum(), logits),
    }


OPERATIONS: dict[str, Callable[[Tensor, Any], object]] = {
    "t[z]": lambda z, on: on.table[z],
    "P[:, z]": lambda z, on: on.matrix[:, z],
    "z == 1": lambda z, on: z == 1,
    "z.float()": lambda z, on: z.float(),
    "torch.where(z == 1, x, y)": lambda z, on: torch.where(z == 1, on.x, on.y),
    "X.gather(-1, z[:, None])": lambda z, on: on.rows.gather(-1, z[:, None]),
    "Categorical(p).log_prob(z)": lambda z, on: on.prior.log_prob(z),
}


def operands() -> argparse.Namespace:
    draws, categories = SMALL
    return argparse.Namespace(
        table=torch.randn(categories, requires_grad=True),
        matrix=torch.randn(categories, categories, requires_grad=True),
        rows=torch.randn(draws, categories, requires_grad=True),
        x=torch.randn(draws),
        y=torch.randn(draws),
        prior=dist.Categorical(torch.ones(categories), validate_args=False),
    )


def often(operation: Callable[[Tensor, Any], object], z: Tensor, on: Any) -> Work:
    def work() -> None:
        for _ in range(CALLS):
            operation(z, on)

    return work


def microseconds(repeats: int) -> dict[str, dict[str, float]]:
    """Of each operation, on plain integers and on an index with a gradient."""
    draws, categories = SMALL
    integers = torch.randint(categories, (draws,))
    z = index_of(one_hot(integers, categories).float().requires_grad_())
    on, found = operands(), {}
    for name, operation in OPERATIONS.items():
        pair = {"plain": often(operation, integers, on), "index": often(operation, z, on)}
        times = medians(pair, repeats, time.process_time)
        found[name] = {each: 1e6 * taken / CALLS for each, taken in times.items()}
    return found


def show(title: str, seconds: dict[str, float]) -> None:
    """The times, and how many times as long as that of the last contestant they are."""
    *_, last = seconds.values()
    print(f"\n| {title} | ms | ratio |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {1e3 * taken:.2f} | {taken / last:.2f} |")


def main() -> None:
    parser = option_parser(__doc__, repeats=20)
    parser.add_argument("--categories", type=int, default=50_000, help="of the large table")
    options = read_options(parser)
    draws, categories, columns = LOOKUP
    results: dict[str, Any] = {}
    for title, contestants, repeats in (
        ("lookup", lookups(), 5 * options.repeats),
        ("lookup with the draw", steps((draws, categories), columns), options.repeats),
        ("large table", steps((BATCH, options.categories), COLUMNS), options.repeats // 5 + 1),
    ):
        results[title] = medians(contestants, repeats, time.process_time)
        show(title, results[title])
    results["microseconds"] = microseconds(options.repeats)
    print("\n| operation | plain integers, us | index, us | more |\n|---|---|---|---|")
    for name, both in results["microseconds"].items():
        more = both["index"] - both["plain"]
        print(f"| `{name}` | {both['plain']:.1f} | {both['index']:.1f} | {more:.1f} |")
    write(options, results)


if __name__ == "__main__":
    main()
