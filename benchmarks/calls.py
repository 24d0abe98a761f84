# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The way of the logits through the package: how many functions, and how often in another file.

    python benchmarks/calls.py          # the two numbers, without and with validation
    python benchmarks/calls.py --list   # the functions too

A `RelaxedCategorical` of 5 x 10 logits is constructed, drawn from, scored and differentiated. What
is counted are the calls of the package's own functions, and the places where the file of one call
is not that of the call before it.
"""

import argparse
import itertools
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import pyro_gumbel
from pyro_gumbel import RelaxedCategorical

PACKAGE = str(Path(pyro_gumbel.__file__).parent)


def work(logits: torch.Tensor, validate_args: bool) -> None:
    distribution = RelaxedCategorical(0.5, logits=logits, validate_args=validate_args)
    value = distribution.rsample()
    (value.sum() + distribution.log_prob(value).sum()).backward()


def calls(validate_args: bool) -> list[tuple[str, str]]:
    """The file and the function of each call."""
    logits = torch.randn(5, 10, requires_grad=True)
    work(logits, validate_args)  # what happens once happens here
    found = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            found.append((code.co_filename[len(PACKAGE) + 1 :], code.co_qualname))

    sys.setprofile(note)
    try:
        work(logits, validate_args)
    finally:
        sys.setprofile(None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the functions")
    options = parser.parse_args()
    for validate_args in (False, True):
        found = calls(validate_args)
        changes = sum(a[0] != b[0] for a, b in itertools.pairwise(found))
        print(f"validation {'on ' if validate_args else 'off'}: {len(found)} calls, "
              f"{changes} changes of file")  # fmt: skip
        if options.list:
            print(*(f"    {file} {function}" for file, function in found), sep="\n")


if __name__ == "__main__":
    main()
