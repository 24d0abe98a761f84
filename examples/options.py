# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Shared by the examples: checked options, and training steps that Ctrl-C ends."""

import argparse
import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm


def option_parser(
    description: str | None, *, steps: int, out: str, least: int = 1
) -> argparse.ArgumentParser:
    """A parser with the options that all examples have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=whole_number(least, steps), default=steps, help=f"default: {steps}")
    add("--seed", type=whole_number(0, 0), default=0, help="default: 0")
    add("--out", type=png_path(out), default=out, help=f"the picture (default: {out})")
    return parser


def whole_number(least: int, example: int, most: float = math.inf) -> Callable[[str], int]:
    """A reader of whole numbers from `least` to `most`."""
    wanted = f"of {least} or more" if most == math.inf else f"from {least} to {most}"

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number {wanted}, got {text!r}; write e.g. {example}"
            )
        return int(text)

    return read


def positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}; write e.g. 0.5")
    return number


def png_path(example: str) -> Callable[[str], Path]:
    """A reader of names of pictures."""

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix != ".png" or not path.parent.is_dir():
            raise argparse.ArgumentTypeError(
                f"expected a name that ends in .png, in a folder that exists, got {text!r}; "
                f"write e.g. {example}"
            )
        return path

    return read


def training_steps(
    number: int, *, stop: threading.Event | None = None, what: str = "training"
) -> Iterator[tuple[int, tqdm]]:
    """The steps from 1 and their progress bar, until the last one or the first Ctrl-C."""
    stop = stop_at_ctrl_c() if stop is None else stop
    bar = tqdm(range(1, number + 1), desc=what, unit="step")
    for step in bar:
        yield step, bar
        if stop.is_set():
            bar.close()
            print(f"stopped by Ctrl-C after {step} steps")
            break


def stop_at_ctrl_c() -> threading.Event:
    """An event that the first Ctrl-C sets; the second one ends the program, as usual."""
    stop = threading.Event()

    def handle(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, handle)
    return stop
