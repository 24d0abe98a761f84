# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Shared by the examples: checked options, training steps that Ctrl-C ends, and checkpoints."""

import argparse
import copy
import math
import os
import random
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm import tqdm

CHECKPOINTS = 20  # of a training


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
    add("--checkpoint", type=file_path("x.pt"), help="a file that keeps the state of the training")
    add("--resume", action="store_true", help="go on from the checkpoint, if there is one")
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
    return file_path(example, ".png")


def file_path(example: str, suffix: str | None = None) -> Callable[[str], Path]:
    """A reader of names of files that can be written."""
    ending = f" that ends in {suffix}" if suffix else ""

    def read(text: str) -> Path:
        path = Path(text)
        wrong = suffix is not None and path.suffix != suffix
        if wrong or path.is_dir() or not path.parent.is_dir():
            raise argparse.ArgumentTypeError(
                f"expected a name{ending}, in a folder that exists, got {text!r}; "
                f"write e.g. {example}"
            )
        return path

    return read


class Trainings:
    """The trainings of a program. Ctrl-C ends them early, and a checkpoint file keeps them.

    The file has the state of every training so far: its step, parameters, optimiser, records and
    seconds, and the random state after that step. With ``--resume`` each training starts from the
    state in the file. The program computes all else anew from the same seed, so on one thread it
    ends with the same numbers as a run without a break.

    :param options: what a parser of `option_parser` has read.
    :raises SystemExit: if the file is there without ``--resume``, or of another run.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path | None = options.checkpoint
        self.stop = stop_at_ctrl_c()
        self._options = described(options)
        self._saved = self._load(options.resume)
        self._earlier = 0.0

    def steps(
        self,
        number: int,
        svi: Any,
        *arguments: Any,
        what: str = "training",
        records: Iterable[list[Any] | dict[Any, Any]] = (),
    ) -> Iterator[tuple[int, tqdm]]:
        """The steps from 1 or from the checkpoint on, with their progress bar.

        A training that begins after Ctrl-C has one step, so that the program can go on to its end.
        The file does not keep it, since it may begin where another training ended early.

        :param number: the last step.
        :param svi: what is trained, an SVI or a `TorchTraining`.
        :param arguments: the arguments of a step, whose loss makes the parameters.
        :param what: the name of the training, its own in this program.
        :param records: lists and dicts that the loop fills, and that the file keeps.
        """
        began, done, kept = self.clock(), 0, self.path and not self.stop.is_set()
        if what in self._saved:
            done = self._saved[what]["step"]
            self._earlier += self._saved[what]["seconds"]
            load_training(self._saved[what], svi, arguments, records)
        bar = tqdm(range(done + 1, number + 1), what, number, initial=done, unit="step")
        for step in bar:
            yield step, bar
            stopped = self.stop.is_set()
            due = step % math.ceil(number / CHECKPOINTS) == 0
            if kept and (due or stopped or step == number):
                state = training_state(svi, records)
                self._saved[what] = {"step": step, "seconds": self.clock() - began, **state}
                save(self.path, {"options": self._options, "trainings": self._saved})
            if stopped:
                bar.close()
                print(f"stopped by Ctrl-C after {step} steps")
                break

    def saved(self, what: str) -> dict[str, Any] | None:
        """The state that the file had of a training, if any."""
        return self._saved.get(what)

    def clock(self) -> float:
        """Seconds, which count those of the trainings that the file had."""
        return time.perf_counter() + self._earlier

    def _load(self, resume: bool) -> dict[str, Any]:
        """The trainings in the file."""
        if self.path is None:
            if resume:
                raise SystemExit("--resume: expected a checkpoint, got none; add --checkpoint FILE")
            return {}
        if not self.path.exists():
            if resume:
                print(f"{self.path} is not there: the training starts anew", file=sys.stderr)
            return {}
        if not resume:
            raise SystemExit(
                f"--checkpoint: expected a new file, got {self.path}, which is there; add --resume "
                "to go on from it"
            )
        state = load(self.path)
        self._check(state["options"] if "trainings" in state else {"checkpoint": "of an example"})
        return state["trainings"]

    def _check(self, saved: dict[str, str]) -> None:
        """The file is of the same options."""
        names = sorted(saved.keys() | self._options.keys())
        other = [name for name in names if saved.get(name) != self._options.get(name)]
        if other:
            expected, got = (
                ", ".join(f"{name} {options.get(name)}" for name in other)
                for options in (saved, self._options)
            )
            raise SystemExit(
                f"--resume: expected the options of {self.path}, {expected}, got {got}; "
                "write the same options, or --checkpoint ANOTHER_FILE"
            )


class TorchTraining:
    """What `Trainings` asks of SVI, for a loop in plain torch: its state, to save and to load.

    :param parts: what has a ``state_dict``, as modules and optimisers.
    """

    model = guide = None

    def __init__(self, *parts: Any) -> None:
        self.parts, self.optim = parts, self

    def loss_and_grads(self, *_: Any) -> None:
        """SVI makes its parameters in this call. Those of torch are there."""

    def get_state(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def set_state(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def described(options: argparse.Namespace) -> dict[str, str]:
    """The options that the numbers depend on, as text."""

    def text(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{tuple(value.shape)} with the sum {value.double().sum():.9g}"
        if isinstance(value, tuple | list):
            return ", ".join(map(text, value))
        return str(value)

    return {
        name: text(value)
        for name, value in vars(options).items()
        if name not in ("out", "checkpoint", "resume") and not isinstance(value, Path)
    }


def training_state(svi: Any, records: Iterable[list[Any] | dict[Any, Any]]) -> dict[str, Any]:
    """What it takes to go on after this step, in tensors, numbers, lists and dicts."""
    parameters = dict(pyro.get_param_store().named_parameters())  # unconstrained
    state = {
        "parameters": {name: value.detach() for name, value in parameters.items()},
        "optimiser": svi.optim.get_state(),
        "records": list(records),
        "random": random_state(),
    }
    return copy.deepcopy(state)


def load_training(
    state: dict[str, Any],
    svi: Any,
    arguments: tuple[Any, ...],
    records: Iterable[list[Any] | dict[Any, Any]],
) -> None:
    """Go on from a state of `training_state`.

    :raises ValueError: if the model has other parameters, or of other shapes.
    """
    # A guide makes its parameters, and their constraints, when it is run. The store keeps them.
    svi.loss_and_grads(svi.model, svi.guide, *arguments)
    parameters, saved = dict(pyro.get_param_store().named_parameters()), state["parameters"]
    expected, got = (
        {name: tuple(value.shape) for name, value in sorted(values.items())}
        for values in (saved, parameters)
    )
    if expected != got:
        raise ValueError(
            f"--resume: expected a model with the parameters of the checkpoint, {expected}, got "
            f"{got}; write --checkpoint ANOTHER_FILE for this model"
        )
    for name, parameter in parameters.items():
        parameter.grad = None
        with torch.no_grad():
            parameter.copy_(saved[name])
    svi.optim.set_state(state["optimiser"])  # which an optimiser reads at its first step
    for record, values in zip(records, state["records"], strict=True):
        record.clear()
        record.update(values) if isinstance(record, dict) else record.extend(values)
    set_random_state(state["random"])


def random_state() -> dict[str, Any]:
    """The state of all generators that Pyro seeds, without objects that need pickle."""
    _, key, position, has_normal, normal = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "GPUs": torch.cuda.get_rng_state_all(),
        "numpy": (torch.from_numpy(key.astype(np.int64)), position, has_normal, normal),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Of `random_state`."""
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["GPUs"])
    key, *others = state["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), *others))
    random.setstate(state["python"])


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint. At any moment `path` has the old state or the new one, whole."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, which cannot run code. A damaged one is refused."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
            if archive.testzip():
                raise zipfile.BadZipFile("a checksum is wrong")
        return torch.load(path, weights_only=True)
    except Exception as error:  # each kind of damage has its own
        known = isinstance(error, OSError | zipfile.BadZipFile)
        reason = error if known else type(error).__name__
        raise SystemExit(
            f"--resume: expected a checkpoint, got {path} ({reason}); remove it to start anew"
        ) from None


def stop_at_ctrl_c() -> threading.Event:
    """An event that the first Ctrl-C sets; the second one ends the program, as usual."""
    stop = threading.Event()

    def handle(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, handle)
    return stop
