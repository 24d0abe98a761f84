# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Time and memory of relaxed and straight-through categories, against Pyro, torch and JAX.

    python benchmarks/speed.py --threads 1                     # four shapes, and SVI
    python benchmarks/speed.py --shapes 64x10 4096x64 --plot speed.png --out speed.json
    python benchmarks/speed.py --shapes --skip svi --growth    # growth alone, of ours
    python benchmarks/speed.py --device cuda --more            # six shapes, SVI, other families

The relaxed work ("soft") of one call: construct the distribution from logits x, draw y, evaluate
log p(y), and differentiate sum(log p(y)) + sum(y * y) in x. The straight-through work ("hard"):
construct, draw, and differentiate sum(y * w), w fixed. All is float32, at temperature 0.5: a number
for ours, and a tensor for Pyro's and torch's classes, which take no number. Logits are the result
of an operation, like the output of a network. "Of a leaf" are logits that an optimiser changes in
place: ours compares them with a copy before it uses the cached log p(y). So it does with a tensor
as the temperature. On a GPU it does not wait for a comparison, and computes log p(y) again.

Every contestant's time includes its loss, so the time of the loss alone is listed: sum(y * y), or
sum(y * w), and its gradient, y a leaf. The contestants take turns in one process, one call each,
and ratios are of medians. Those that check arguments are compared with ours that checks them, all
others with ours that does not. JAX takes part if it is installed and has the device; so does
`torch.compile` of the same formulas, which have no checks and no classes, on a GPU or with
--compiled. With --compiled so does ours within `pyro_gumbel.compiled`. "Without the loss" is ours
with the gradients of the loss given: construct, draw, score and differentiate alone. "The kernels
alone" are the same in a CUDA graph, which leaves out the time of Python.

The floor of the relaxed work is the time of what torch's operations must do for it in any case:
random bits, logarithms and an exponential, writing y and the gradient, the loss itself.

Memory is what the relaxed work adds to the peak of its own process, on a GPU to that of torch's
allocator. On a GPU, or with --bandwidth, the time to move five arrays of x's size is the floor, and
given as a fraction of the time taken. A GPU's times are those between two events.
"""

import argparse
import functools
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.nn.functional import gumbel_softmax
from turns import environment_parser, read_options, write

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedSubset,
    SubsetStraightThrough,
    compiled,
    gumbel_rao,
)

TEMPERATURE = 0.5
SHAPES = [(64, 10), (4096, 64), (1_000_000, 10), (100_000, 128)]
LARGE = [(10_000_000, 10), (1_000_000, 128)]  # on a GPU
SECONDS = 5  # of turns, at --repeats 1
ARRAYS_MOVED = 5  # of x's size, at the least
REJECTS = "rejects its own sample"
BATCH, PIXELS, LATENT = 128, 784, (20, 10)

Shape = tuple[int, int]
Maker = Callable[[Tensor, Tensor], Any]  # a distribution from temperature and logits
Work = Callable[[], object]
Times = dict[str, float | str]  # seconds, or the reason why there are none


def of_tensor(family: Any, *, checks: bool = False) -> Maker:
    return lambda tau, x: family(tau, logits=x, validate_args=checks)


def unchecked(family: Any, **given: Any) -> Maker:
    return lambda tau, x: family(TEMPERATURE, logits=x, validate_args=False, **given)


def checked(family: Any) -> Maker:
    return lambda tau, x: family(TEMPERATURE, logits=x, validate_args=True)


SOFT: dict[str, Maker] = {
    "RelaxedCategorical": unchecked(RelaxedCategorical),
    "RelaxedCategorical, checked": checked(RelaxedCategorical),
    "RelaxedCategorical, of a tensor as temperature": of_tensor(RelaxedCategorical),
    "Pyro's RelaxedOneHotCategorical": of_tensor(dist.RelaxedOneHotCategorical),
    "Pyro's RelaxedOneHotCategorical, checked": of_tensor(
        dist.RelaxedOneHotCategorical, checks=True
    ),
    "torch's RelaxedOneHotCategorical": of_tensor(torch.distributions.RelaxedOneHotCategorical),
}
HARD: dict[str, Maker] = {
    "CategoricalStraightThrough": unchecked(CategoricalStraightThrough),
    "CategoricalStraightThrough, checked": checked(CategoricalStraightThrough),
}
# Without a temperature.
SECOND_ORDER: Maker = lambda tau, x: CategoricalStraightThrough(  # noqa: E731
    logits=x, validate_args=False
)
IN_MEMORY = ("RelaxedCategorical", "Pyro's RelaxedOneHotCategorical")


@functools.cache
def temperature(device: str) -> Tensor:
    return torch.tensor(TEMPERATURE, device=device)


def leaf(shape: Shape, device: str) -> Tensor:
    return torch.randn(shape, device=device).requires_grad_()


def logits(shape: Shape, device: str) -> Tensor:
    """A result of operations, as the output of a network is."""
    return 1 * leaf(shape, device)


def soft_work(make: Maker, x: Tensor, device: str) -> None:
    distribution = make(temperature(device), x)
    y = distribution.rsample()
    torch.autograd.grad(distribution.log_prob(y).sum() + (y * y).sum(), x)


def hard_work(make: Maker, x: Tensor, w: Tensor, device: str) -> None:
    y = make(temperature(device), x).rsample()
    torch.autograd.grad((y * w).sum(), x)


def torch_hard_work(x: Tensor, w: Tensor) -> None:
    torch.autograd.grad((gumbel_softmax(x, tau=TEMPERATURE, hard=True) * w).sum(), x)


def loss_itself(y: Tensor, w: Tensor) -> None:
    torch.autograd.grad((y * w).sum(), y)


def density_work(make: Maker, x: Tensor, y: Tensor, device: str) -> None:
    """The density of a value from elsewhere."""
    torch.autograd.grad(make(temperature(device), x).log_prob(y).sum(), x)


def within_compiled(work: Work) -> None:
    with compiled():
        work()


def relaxed_loss(x: Tensor) -> Tensor:
    """The loss of the relaxed work by its formulas alone, for `torch.compile`."""
    k, tau = x.shape[-1], TEMPERATURE
    noise = -torch.log(-torch.log(torch.rand_like(x).clamp(min=1e-20)))
    v = torch.log_softmax((x + noise) / tau, -1)
    y = v.exp()
    constant = math.lgamma(k) + (k - 1) * math.log(tau)
    log_p = constant + (torch.log_softmax(x - tau * v, -1) - v).sum(-1)
    return log_p.sum() + (y * y).sum()


def compiled_work(x: Tensor) -> Work:
    """The relaxed work by `torch.compile`, which a call before the turns compiles."""
    x = x.detach().requires_grad_()  # compilers ask for the gradient, of which others warn
    loss = torch.compile(relaxed_loss, dynamic=False)
    return lambda: torch.autograd.grad(loss(x), x)


def given_work(shape: Shape, device: str) -> Work:
    """The relaxed work without its loss, whose gradients are given."""
    x, y_slope = logits(shape, device), torch.randn(shape, device=device)
    p_slope = torch.ones(shape[:-1], device=device)

    def work() -> None:
        distribution = SOFT["RelaxedCategorical"](temperature(device), x)
        y = distribution.rsample()
        torch.autograd.grad((y, distribution.log_prob(y)), x, (y_slope, p_slope))

    return work


def in_cuda_graph(make: Callable[[], Work]) -> Work:
    """A work by a CUDA graph: what the GPU does, without the time that Python takes."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work = make()  # with its logits on this stream, where the gradient goes
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        work()
    return graph.replay


def jax_work(x: Tensor, options: argparse.Namespace) -> Work | None:
    """The relaxed work by the same formulas in JAX, if it is installed and has the device."""
    os.environ.setdefault("NPROC", str(options.threads))  # the threads of its CPU client
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs a GPU too
    try:
        import jax
    except ImportError:
        return None
    if jax.default_backend() != {"cuda": "gpu"}.get(options.device, options.device):
        return None
    k, tau = x.shape[-1], TEMPERATURE
    constant = math.lgamma(k) + (k - 1) * math.log(tau)

    def loss(x: Any, key: Any) -> Any:
        v = jax.nn.log_softmax((x + jax.random.gumbel(key, x.shape, x.dtype)) / tau)
        y = jax.numpy.exp(v)
        log_p = constant + (jax.nn.log_softmax(x - tau * v) - v).sum(-1)
        return log_p.sum() + (y * y).sum()

    @jax.jit
    def step(x: Any, key: Any) -> Any:
        key, now = jax.random.split(key)
        return key, jax.value_and_grad(loss)(x, now)

    state = {"x": jax.numpy.asarray(x.detach().cpu().numpy()), "key": jax.random.key(0)}

    def work() -> None:
        state["key"], found = step(state["x"], state["key"])
        jax.block_until_ready(found)

    return work


def soft_contestants(shape: Shape, options: argparse.Namespace) -> dict[str, Work]:
    x = logits(shape, options.device)
    works: dict[str, Work] = {}
    for name, make in SOFT.items():
        works[name] = partial(soft_work, make, x, options.device)
        if name == "RelaxedCategorical":
            of_leaf = leaf(shape, options.device)
            works[f"{name}, of a leaf"] = partial(soft_work, make, of_leaf, options.device)
    if options.compiled:
        works["RelaxedCategorical, compiled"] = partial(
            within_compiled, works["RelaxedCategorical"]
        )
    if options.compiled or options.device == "cuda":
        works["torch.compile of the formulas"] = compiled_work(x)
    works["RelaxedCategorical, without the loss"] = given_work(shape, options.device)
    if options.device == "cuda":
        works["the kernels alone"] = in_cuda_graph(partial(given_work, shape, options.device))
    by_jax = jax_work(x, options)
    if by_jax:
        works["JAX, jit"] = by_jax
    y = leaf(shape, options.device)
    works["the loss itself"] = partial(loss_itself, y, y)
    return works


def moved(shape: Shape, options: argparse.Namespace) -> float:
    """The seconds that the memory takes to move five arrays."""
    return ARRAYS_MOVED * 4 * math.prod(shape) / (1e9 * options.bandwidth)


def floor(shape: Shape, options: argparse.Namespace) -> Times:
    """The times of what any implementation of the relaxed work must do.

    On a GPU move five arrays; on a CPU the operations of torch, one by one.
    """
    found: Times = {"five arrays moved": moved(shape, options)} if options.bandwidth else {}
    if options.device == "cpu":
        found |= floor_of_operations(shape, options)
    rows = [[name, 1e3 * float(taken)] for name, taken in found.items()]
    table(f"{called(shape)}, soft, the floor", ["ms"], rows)
    return found


def floor_of_operations(shape: Shape, options: argparse.Namespace) -> Times:
    entries = math.prod(shape)
    block = torch.rand(min(entries, 2**18)) + 0.5
    times = -(-entries // len(block))

    def bits() -> None:
        for _ in range(times):
            block.view(torch.int64).random_(-(2**63), None)

    def functions() -> None:
        block.fill_(1.5)
        for _ in range(times):
            block.log().log1p_().exp_()

    def pages() -> None:
        for _ in range(2):
            torch.empty(shape).fill_(0.0)

    y = leaf(shape, options.device)
    works: dict[str, Work] = {
        "32 random bits an entry": bits,
        "two logarithms and an exponential": functions,
        "first write to two arrays": pages,
        "the loss itself": partial(loss_itself, y, y),
    }
    found = in_turns(works, options)
    found["sum"] = sum(float(taken) for taken in found.values())
    return found


def hard_contestants(shape: Shape, options: argparse.Namespace) -> dict[str, Work]:
    x, w = logits(shape, options.device), torch.randn(shape, device=options.device)
    works: dict[str, Work] = {
        name: partial(hard_work, make, x, w, options.device) for name, make in HARD.items()
    }
    works["torch's gumbel_softmax, hard"] = partial(torch_hard_work, x, w)
    works["the loss itself"] = partial(loss_itself, leaf(shape, options.device), w)
    return works


def svi_step(name: str, make: Maker, device: str) -> Work:
    """A step on a batch of random bits, of a VAE with one layer of categories."""
    images = torch.randint(2, (BATCH, PIXELS), device=device).float()
    width = LATENT[0] * LATENT[1]
    encoder = torch.nn.Linear(PIXELS, width).to(device)
    decoder = torch.nn.Linear(width, PIXELS).to(device)
    equal, tau = torch.zeros(BATCH, *LATENT, device=device), temperature(device)

    def model(images: Tensor) -> None:
        pyro.module(f"decoder of {name}", decoder)
        with pyro.plate("images", BATCH):
            z = pyro.sample("z", make(tau, equal).to_event(1))
            pixels = dist.Bernoulli(logits=decoder(z.flatten(-2)))
            pyro.sample("x", pixels.to_event(1), obs=images)

    def guide(images: Tensor) -> None:
        pyro.module(f"encoder of {name}", encoder)
        logits = encoder(images).unflatten(-1, LATENT)
        with pyro.plate("images", BATCH):
            pyro.sample("z", make(tau, logits).to_event(1))

    return partial(SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step, images)


def seconds(work: Work, device: str) -> float:
    if device == "cuda":
        return seconds_on_gpu(work)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def seconds_on_gpu(work: Work) -> float:
    """Between two events, that of the host included where it is the slower one."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def in_turns(contestants: Mapping[str, Work], options: argparse.Namespace) -> Times:
    """The median seconds of a call of each, over turns of a few seconds in all.

    A first round warms up, and a second one shows how many there is time for.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    rejected: Times = {}

    def take_turns() -> None:
        for name, work in contestants.items():
            if name in rejected:
                continue
            try:
                taken[name].append(seconds(work, options.device))
            except ValueError as error:
                if "within the support" not in str(error):
                    raise
                rejected[name] = REJECTS

    take_turns()
    a_round = seconds(take_turns, options.device)
    for _ in range(min(1000, max(2, round(options.repeats * SECONDS / a_round)))):
        take_turns()
    return {name: rejected.get(name) or statistics.median(taken[name][1:]) for name in contestants}


def ratios(times: Times) -> dict[str, float]:
    """The time of each over that of ours, which checks its arguments if the other does."""
    ours = next(iter(times))
    return {
        name: taken / float(times[f"{ours}, checked" if name.endswith(", checked") else ours])
        for name, taken in times.items()
        if isinstance(taken, float)
    }


def called(shape: Shape) -> str:
    return "x".join(map(str, shape))


def table(title: str, head: list[str], rows: Iterable[list[str | float]]) -> None:
    """Printed in Markdown, numbers to three digits at least."""
    print(f"\n{title}\n\n| | {' | '.join(head)} |\n|{'---|' * (1 + len(head))}")
    for row in rows:
        print(f"| {' | '.join(map(written, row))} |", flush=True)


def written(cell: str | float) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:.3g}" if abs(cell) < 999.5 else f"{cell:.0f}"


def measured(
    kind: str, shape: Shape, contestants: dict[str, Work], options: argparse.Namespace
) -> dict[str, Any]:
    """The times of one work on one shape, and ratios of them."""
    times = in_turns(contestants, options)
    entries = math.prod(shape)
    found: dict[str, Any] = {"seconds": times, "ratios": ratios(times)}
    head = ["ms", "ns an entry", "times ours"]
    if kind == "soft" and options.bandwidth:
        head.append("of the bandwidth")
        least = moved(shape, options)
        found["of the bandwidth"] = {name: least / times[name] for name in found["ratios"]}

    def cells(name: str, taken: float | str) -> list[str | float]:
        if isinstance(taken, str):
            return [name, taken, *[""] * (len(head) - 1)]
        rest = [found[key][name] for key in ("ratios", "of the bandwidth") if key in found]
        return [name, 1e3 * taken, 1e9 * taken / entries, *rest]

    table(f"{called(shape)}, {kind}", head, [cells(*item) for item in times.items()])
    return found


def high_water() -> int:
    """The peak memory of this process, in bytes.

    Not by `getrusage` on Linux: there its maximum starts at that of the parent process.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak(name: str, shape: Shape, device: str) -> float:
    """How many MiB a relaxed work adds to the peak memory of this process."""
    soft_work(SOFT[name], logits((2, 2), device), device)  # loads what is loaded on first use
    x = logits(shape, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else high_water()
    soft_work(SOFT[name], x, device)
    after = torch.cuda.max_memory_allocated() if device == "cuda" else high_water()
    return (after - before) / 2**20


def peaks(shape: Shape, options: argparse.Namespace) -> dict[str, float]:
    """The MiB of each, on a CPU in a process of its own."""

    def of(name: str) -> float:
        if options.device == "cuda":
            return peak(name, shape, options.device)
        line = [sys.executable, __file__, "--threads", str(options.threads)]
        line += ["--peak", name, called(shape)]
        return float(subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout)

    added = {name: of(name) for name in IN_MEMORY}
    ours, array = added[IN_MEMORY[0]], 4 * math.prod(shape) / 2**20
    rows = [[name, mib, mib / array, mib / ours if ours else ""] for name, mib in added.items()]
    table(f"{called(shape)}, soft, peak memory", ["MiB", "arrays", "times ours"], rows)
    return added


def svi(options: argparse.Namespace) -> dict[str, Any]:
    makers = {name: SOFT[name] for name in IN_MEMORY}
    pyro.clear_param_store()
    with pyro.validation_enabled(False):
        steps = {name: svi_step(name, make, options.device) for name, make in makers.items()}
        times = in_turns(steps, options)
    pyro.clear_param_store()
    found: dict[str, Any] = {"seconds": times, "ratios": ratios(times)}
    rows = [[name, 1e3 * float(times[name]), ratio] for name, ratio in found["ratios"].items()]
    table(f"SVI step, batch {BATCH}, latent {called(LATENT)}", ["ms", "times ours"], rows)
    return found


def gains(options: argparse.Namespace) -> dict[str, Times]:
    """The speedups of compiling; subsets choose one in eight of the categories."""
    found: dict[str, Times] = {}
    for k in (10, 128):
        shape = int(min(1e6, options.largest)) // k, k
        x, w = logits(shape, options.device), torch.randn(shape, device=options.device)
        size, y = max(1, k // 8), w.softmax(-1)
        of_size = {"size": size}
        works: dict[str, Work] = {
            "RelaxedBernoulli": partial(soft_work, unchecked(RelaxedBernoulli), x),
            "RelaxedCategorical": partial(soft_work, unchecked(RelaxedCategorical), x),
            "RelaxedCategorical, density": partial(
                density_work, unchecked(RelaxedCategorical), x, y
            ),
            "RelaxedSubset": partial(soft_work, unchecked(RelaxedSubset, **of_size), x),
            "BernoulliStraightThrough": partial(
                hard_work, unchecked(BernoulliStraightThrough), x, w
            ),
            "CategoricalStraightThrough": partial(
                hard_work, unchecked(CategoricalStraightThrough), x, w
            ),
            "SubsetStraightThrough": partial(
                hard_work, unchecked(SubsetStraightThrough, **of_size), x, w
            ),
        }
        rows: list[list[str | float]] = []
        for name, work in works.items():
            plain = partial(work, options.device)
            times = in_turns({"": plain, "compiled": partial(within_compiled, plain)}, options)
            found[f"{called(shape)}, {name}"] = times
            without, within = map(float, times.values())
            rows.append([name, 1e3 * without, 1e3 * within, without / within])
        table(f"{called(shape)}, compiled", ["ms", "compiled", "times as fast"], rows)
    return found


def others(options: argparse.Namespace) -> dict[str, Times]:
    """The contestants of --more: other families, values and estimators."""
    device = options.device
    total = int(min(1e7 if device == "cuda" else 1e6, options.largest))
    rows, bits, sets = (total // 10, 10), (total, 1), (max(1, min(total // 1000, 1000)), 1000)
    subset = {"size": 50}

    def soft(make: Maker, shape: Shape) -> Work:
        return partial(soft_work, make, logits(shape, device), device)

    def hard(make: Maker, shape: Shape) -> Work:
        w = torch.randn(shape, device=device)
        return partial(hard_work, make, logits(shape, device), w, device)

    def density(make: Maker) -> Work:
        y = torch.randn(rows, device=device).softmax(-1)
        return partial(density_work, make, logits(rows, device), y, device)

    def by(estimator: Any) -> Work:
        return hard(unchecked(CategoricalStraightThrough, estimator=estimator), rows)

    works: dict[str, dict[str, Work]] = {
        f"{called(bits)}, bits": {
            "RelaxedBernoulli": soft(unchecked(RelaxedBernoulli), bits),
            "Pyro's RelaxedBernoulli": soft(of_tensor(dist.RelaxedBernoulli), bits),
            "BernoulliStraightThrough": hard(unchecked(BernoulliStraightThrough), bits),
        },
        f"{called(sets)}, subsets of 50": {
            "RelaxedSubset": soft(unchecked(RelaxedSubset, **subset), sets),
            "SubsetStraightThrough": hard(unchecked(SubsetStraightThrough, **subset), sets),
        },
        f"{called(rows)}, density of other values": {
            "RelaxedCategorical": density(unchecked(RelaxedCategorical)),
            "Pyro's RelaxedOneHotCategorical": density(of_tensor(dist.RelaxedOneHotCategorical)),
        },
        f"{called(rows)}, estimators of CategoricalStraightThrough": {
            "gumbel_softmax": by("gumbel_softmax"),
            "straight_through": by("straight_through"),
            "reinmax": by("reinmax"),
            "gumbel_rao(samples=10)": by(gumbel_rao(samples=10)),
            "second_order": hard(SECOND_ORDER, rows),
        },
    }
    found: dict[str, Times] = {}
    for title, contestants in works.items():
        found[title] = times = in_turns(contestants, options)
        cells: list[list[str | float]] = [
            [name, 1e3 * float(times[name]), ratio] for name, ratio in ratios(times).items()
        ]
        table(title, ["ms", "times the first"], cells)
    return found


def cases(options: argparse.Namespace) -> dict[str, dict[str, tuple[Shape, Maker]]]:
    """The cases of --growth: by title, then by name, a shape and a distribution."""
    total = int(min(1e6, options.largest))
    relaxed = unchecked(RelaxedCategorical)
    sizes = sorted({int(min(entries, options.largest)) for entries in (1e6, 1e7, 1e8)})

    def rows_of(k: int, entries: int = total) -> Shape:
        return max(1, entries // k), k

    def subset(size: int) -> Maker:
        return unchecked(RelaxedSubset, size=size)

    def rao(samples: int) -> Maker:
        return unchecked(CategoricalStraightThrough, estimator=gumbel_rao(samples=samples))

    return {
        "RelaxedCategorical, k = 10, by entries": {
            str(n): (rows_of(10, n), relaxed) for n in sizes if fits(n, options.device)
        },
        f"RelaxedCategorical, {total} entries, by k": {
            str(k): (rows_of(k), relaxed) for k in (2, 10, 100, 1000, 10_000)
        },
        f"RelaxedSubset of size 5, {total} entries, by k": {
            str(k): (rows_of(k), subset(5)) for k in (100, 1000, 10_000)
        },
        f"RelaxedSubset, k = 1000, {total} entries, by size": {
            str(size): (rows_of(1000), subset(size)) for size in (1, 5, 50, 500)
        },
        "CategoricalStraightThrough, hard, by samples of gumbel_rao": {
            str(samples): ((1000, 10), rao(samples)) for samples in (1, 10, 100)
        },
    }


def fits(entries: int, device: str) -> bool:
    """Whether there is memory for a dozen arrays of so many."""
    meminfo = Path("/proc/meminfo")
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    elif meminfo.exists():
        free = 1024 * int(re.findall(r"MemAvailable:\s*(\d+) kB", meminfo.read_text())[0])
    else:
        return True
    return 12 * 4 * entries < free


def growth(
    title: str, of: dict[str, tuple[Shape, Maker]], options: argparse.Namespace
) -> dict[str, float]:
    """The seconds by name."""
    device = options.device

    def work(shape: Shape, make: Maker) -> Work:
        if "hard" in title:
            return partial(
                hard_work, make, logits(shape, device), torch.randn(shape, device=device), device
            )
        return partial(soft_work, make, logits(shape, device), device)

    found = in_turns({name: work(*case) for name, case in of.items()}, options)
    times = {name: float(taken) for name, taken in found.items()}
    rows: list[list[str | float]] = [
        [name, called(shape), 1e3 * times[name], 1e9 * times[name] / math.prod(shape)]
        for name, (shape, _) in of.items()
    ]
    table(title, ["shape", "ms", "ns an entry"], rows)
    return times


def plot(shapes: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of the time an entry, by shape and contestant."""
    from matplotlib.figure import Figure

    # Small, so that its labels can be read on a phone. Without pyplot: needs no display.
    figure = Figure(figsize=(5.4, 8), layout="constrained")
    for axes, kind in zip(figure.subplots(2, sharey=True), ("soft", "hard"), strict=True):
        times = {shape: found[kind]["seconds"] for shape, found in shapes.items() if kind in found}
        names = list(dict.fromkeys(name for row in times.values() for name in row))
        for i, name in enumerate(names):
            bars = {
                place + 0.8 * i / len(names): 1e9 * row[name] / math.prod(shape_of(shape))
                for place, (shape, row) in enumerate(times.items())
                if isinstance(row[name], float)
            }
            axes.bar(bars.keys(), bars.values(), 0.8 / len(names), align="edge", label=name)
        axes.set_xticks([place + 0.4 for place in range(len(times))], list(times))
        axes.set(title=f"{kind} work", yscale="log", ylabel="ns an entry")
        if times:
            axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path, dpi=250)


def shape_of(shape: str) -> Shape:
    rows, k = map(int, shape.split("x"))
    return rows, k


def read() -> argparse.Namespace:
    parser = environment_parser(__doc__)
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--shapes", nargs="*", type=shape_of, help="such as 64x10 4096x64")
    add("--skip", nargs="+", choices=["soft", "hard", "floor", "memory", "svi"], default=[])
    add("--repeats", type=float, default=1.0, help="times the usual rounds (default: 1)")
    add("--more", action="store_true", help="other families and estimators, too")
    add("--compiled", action="store_true", help="ours by `torch.compile`, too")
    add("--growth", action="store_true", help="how the times of ours grow, too")
    add("--largest", type=float, default=1e7, help="entries, if they fit (default: 1e7)")
    add("--bandwidth", type=float, help="of the memory, GB/s (default on a GPU: of a copy)")
    add("--plot", type=Path, help="a PNG file for the times")
    add("--peak", nargs=2, help=argparse.SUPPRESS)  # name and shape: what a process is started for
    options = read_options(parser)
    if options.shapes is None:
        options.shapes = SHAPES + (LARGE if options.device == "cuda" else [])
    return options


def copy_bandwidth(options: argparse.Namespace) -> float:
    """In GB/s, that of a copy of a GiB."""
    source = torch.empty(2**28, device=options.device)
    copied = in_turns({"": partial(torch.empty_like(source).copy_, source)}, options)
    return 2 * 2**30 / float(copied[""]) / 1e9


def described(device: str) -> str:
    if device == "cpu":
        return f"{os.cpu_count()} cores"
    gpu = torch.cuda.get_device_properties(0)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def main() -> None:
    options = read()
    if options.peak:
        print(peak(options.peak[0], shape_of(options.peak[1]), options.device))
        return
    if options.device == "cuda" and not options.bandwidth:
        options.bandwidth = copy_bandwidth(options)
    results: dict[str, Any] = {
        "device": described(options.device),
        "bandwidth": options.bandwidth,
        "pyro": pyro.__version__,
        "shapes": {},
    }
    print(f"{results['device']}, {options.threads} threads, float32")
    if options.bandwidth:
        print(f"bandwidth: {options.bandwidth:.4g} GB/s")
    for shape in options.shapes:
        found = results["shapes"][called(shape)] = {}
        for kind, contestants in (("soft", soft_contestants), ("hard", hard_contestants)):
            if kind not in options.skip:
                found[kind] = measured(kind, shape, contestants(shape, options), options)
        if "floor" not in options.skip:
            found["floor"] = floor(shape, options)
        if "memory" not in options.skip:
            found["peak MiB"] = peaks(shape, options)
        write(options, results)
    if "svi" not in options.skip:
        results["svi"] = svi(options)
        write(options, results)
    if options.more:
        results["more"] = others(options)
        write(options, results)
    if options.compiled:
        results["compiled"] = gains(options)
        write(options, results)
    results["growth"] = {}
    for title, of in (cases(options) if options.growth else {}).items():
        results["growth"][title] = growth(title, of, options)
        write(options, results)
    if options.plot:
        plot(results["shapes"], options.plot)


if __name__ == "__main__":
    main()
