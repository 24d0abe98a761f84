# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The kernels on a GPU one by one, and the time of Python at a small shape.

    python benchmarks/gpu_kernels.py

The first tables have medians of the milliseconds between two events around one kernel, for each of
the kernels of a shape: "draw" makes a relaxed value and its log p, "pull" is its backward pass,
"choose" makes a hard value and "pull, hard" is its backward pass, "density" evaluates any value and
"pull, density" is its backward pass. A launch takes .05 ms, which is most of the time at the small
shapes. Beside the shape is the time to move five arrays of its size, by the bandwidth of a copy.

The last table has microseconds of Python at 64 x 10, of works as in `speed.py`: the loop is not
slower than the GPU there. It has them again with torch's backward passes in the same thread
(`torch.autograd.set_multithreading_enabled(False)`), which saves the change of threads.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from speed import SECOND_ORDER, in_turns, of_tensor, table, torch_hard_work, unchecked
from speed import hard_work as hard
from speed import soft_work as soft
from turns import environment_parser, read_options, write

from pyro_gumbel import CategoricalStraightThrough, RelaxedCategorical
from pyro_gumbel.kernels import cuda, triton_bits, triton_rows
from pyro_gumbel.links import Hypersimplex, Link, interval, simplex

GPU = torch.device("cuda")
CASES: list[tuple[Link, tuple[int, ...]]] = [
    (simplex, (10_000_000, 10)),
    (simplex, (1_000_000, 128)),
    (simplex, (1_000_000, 10)),
    (simplex, (4096, 64)),
    (simplex, (64, 10)),
    (Hypersimplex(50), (1000, 1000)),
    (interval, (10_000_000,)),
]
SMALL = (64, 10)

Work = Callable[[], object]


def kernels_of(link: Link, shape: tuple[int, ...]) -> dict[str, Work]:
    """Each kernel, with arguments as a relaxed or a straight-through work gives it."""
    x, g = torch.randn(shape, device=GPU), torch.randn(shape, device=GPU)
    tau = torch.tensor(0.5, device=GPU)
    seed = cuda._seed(x)
    batch = torch.Size(shape[: len(shape) - link.event_dim])
    rows = cuda._Rows.of(x, tau, link, batch, batch)
    s, dx, log_p = torch.empty_like(x), torch.empty_like(x), torch.empty(batch, device=GPU)
    gl = torch.ones((), device=GPU).expand(batch)
    of_draw = rows.x, rows.tau, seed
    if link.event_dim == 0:
        grads = g, None, gl, dx, None
        return {
            "draw": partial(rows.run, triton_bits.draw_bits, *of_draw, s, None, log_p),
            "pull": partial(
                rows.run, triton_bits.pull_draw_of_bits, *of_draw, *grads, more=(1, 0, 0)
            ),
            "choose": partial(rows.run, triton_bits.choose_bits, *of_draw, s),
        }
    parts = None if link is simplex else torch.empty((2, rows.n), device=GPU)
    constant, strides = math.lgamma(rows.k), g.stride()
    pull = partial(rows.run, triton_rows.pull_draw_of_rows, *of_draw, more=(*strides, 0, 0, 0))
    value, v = g.softmax(-1), g.log_softmax(-1)
    of_density = value, v, rows.x, rows.tau
    return {
        "draw": partial(
            rows.run, triton_rows.draw_rows, *of_draw, s, None, log_p, parts, more=(constant,)
        ),
        "pull": partial(
            pull, s if link is simplex else None, parts, g, None, gl, dx, None,
            waits_for_memory=link is simplex,
        ),
        "choose": partial(rows.run, triton_rows.choose_rows, *of_draw, dx, parts),
        "pull, hard": partial(pull, None, parts, g, None, None, dx, None),
        "density": partial(
            rows.run, triton_rows.density_of_rows, *of_density, log_p, more=(*strides, constant),
            OF_VALUES=True,
        ),
        "pull, density": partial(
            rows.run, triton_rows.pull_density_of_rows, *of_density, gl, None, dx, None,
            more=(*strides, 0), waits_for_memory=True, OF_VALUES=True,
        ),
    }  # fmt: skip


def python_seconds(work: Work, calls: int = 100) -> float:
    """Of one call, without waiting for the GPU: the fastest of five loops."""
    taken = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        taken.append((time.perf_counter() - start) / calls)
    return min(taken)


def small_works() -> dict[str, Work]:
    x = 1 * torch.randn(SMALL, device=GPU, requires_grad=True)
    w = torch.randn(SMALL, device=GPU)
    relaxed, pyros = unchecked(RelaxedCategorical), of_tensor(dist.RelaxedOneHotCategorical)
    return {
        "RelaxedCategorical": partial(soft, relaxed, x, "cuda"),
        "Pyro's RelaxedOneHotCategorical": partial(soft, pyros, x, "cuda"),
        "CategoricalStraightThrough": partial(
            hard, unchecked(CategoricalStraightThrough), x, w, "cuda"
        ),
        "CategoricalStraightThrough, second order": partial(hard, SECOND_ORDER, x, w, "cuda"),
        "torch's gumbel_softmax, hard": partial(torch_hard_work, x, w),
    }


def main() -> None:
    options: argparse.Namespace = read_options(environment_parser(__doc__))
    options.device, options.repeats = "cuda", 0.2
    source = torch.empty(2**28, device=GPU)
    copy = in_turns({"": partial(torch.empty_like(source).copy_, source)}, options)
    bandwidth = 2 * 2**30 / float(copy[""])
    results: dict[str, Any] = {"bandwidth": bandwidth, "kernels": {}}
    print(f"{torch.cuda.get_device_name()}, a copy moves {bandwidth / 1e9:.0f} GB/s")
    for link, shape in CASES:
        times = in_turns(kernels_of(link, shape), options)
        name = "x".join(map(str, shape)) + (f", {link.size} chosen" if link.event_dim else "")  # type: ignore[attr-defined]
        results["kernels"][name] = times
        least = 20 * math.prod(shape) / bandwidth
        rows = [[kernel, 1e3 * float(taken)] for kernel, taken in times.items()]
        table(f"{name}: five arrays {1e3 * least:.3g} ms", ["ms"], rows)
    works = small_works()
    plain = {name: python_seconds(work) for name, work in works.items()}
    with torch.autograd.set_multithreading_enabled(False):
        alone = {name: python_seconds(work) for name, work in works.items()}
    results["python"] = {"seconds": plain, "in one thread": alone}
    table(
        "Python at 64x10",
        ["us", "in one thread"],
        [[n, 1e6 * plain[n], 1e6 * alone[n]] for n in works],
    )
    write(options, results)


if __name__ == "__main__":
    main()
