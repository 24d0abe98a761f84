# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Shared by the benchmarks: contestants that take turns in one process, and records of results."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def environment_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, help="a JSON file for the results")
    return parser


def option_parser(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    parser = environment_parser(description)
    add = parser.add_argument
    add("--repeats", type=int, default=repeats, help=f"rounds of each (default: {repeats})")
    return parser


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with the threads set, and the seed."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def medians(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The median seconds of each, over turns of five calls, after a round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats + 1):
        for name, work in contestants.items():
            start = clock()
            for _ in range(5):
                work()
            times[name].append((clock() - start) / 5)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """The results with options and environment, if a file was asked for."""
    if not options.out:
        return
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    given = {name: str(value) for name, value in vars(options).items()}
    record = {"options": given, "environment": environment, **results}
    options.out.write_text(json.dumps(record, indent=2) + "\n")
