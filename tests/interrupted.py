# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""An example, run as a user runs it, that kills itself at one of its moments.

    python tests/interrupted.py 7 ranking --steps 5

A moment is a step of a training, or one of three in a write of a checkpoint: with half of the new
file on the disk, with all of it, and with it in the place of the old one. The clock stands still,
so that all runs print the same seconds.
"""

import functools
import importlib
import io
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from pyro.infer import SVI


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Moments:
    """Counts the moments, and does something at one of them."""

    def __init__(self, last=None, end=kill):
        self.passed, self.last, self.end = 0, last, end

    def __call__(self):
        self.passed += 1
        if self.passed == self.last:
            self.end()

    def after(self, function):
        """A function with a moment at its end."""

        @functools.wraps(function)
        def with_moment(*args, **kwargs):
            result = function(*args, **kwargs)
            self()
            return result

        return with_moment

    def amid(self, save):
        """`torch.save` to a file, with a moment when half of it is written."""

        def write(state, file):
            buffer = io.BytesIO()
            save(state, buffer)
            content = buffer.getvalue()
            file.write(content[: len(content) // 2])
            file.flush()
            self()
            file.write(content[len(content) // 2 :])

        return write


def watch(moments, patch=setattr):
    """Count the moments of what runs from now on, without a clock."""
    patch(SVI, "step", moments.after(SVI.step))
    patch(torch, "save", moments.amid(torch.save))
    patch(os, "fsync", moments.after(os.fsync))
    patch(Path, "replace", moments.after(Path.replace))
    patch(time, "perf_counter", lambda: 0.0)


def run(moment, script, *options):
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    sys.argv = [f"{script}.py", *options]
    example = importlib.import_module(script)
    watch(Moments(int(moment)))
    example.main()


def run_forked(folder, threads, *arguments):
    """The same in a process that was forked for it."""
    os.chdir(folder)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    torch.set_num_threads(threads)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Data has no positive values")
    run(*arguments)


if __name__ == "__main__":
    run(*sys.argv[1:])
