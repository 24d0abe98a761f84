# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What `import pyro_gumbel` adds to `import pyro`.

    python benchmarks/importing.py

Each round is a fresh process that imports Pyro and then this package. Its processor time after the
second import is divided by that after the first. Both include the start of Python. A round that is
not counted writes the bytecode, as an installation does. Printed are the ratio of each round, and
the medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTS = """
from time import process_time
import pyro
before = process_time()
import pyro_gumbel
print(before, process_time())
"""


def environment() -> dict[str, str]:
    """One in which Python writes bytecode and imports the package of this clone."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT)}


def seconds() -> tuple[float, float]:
    """The processor time after `import pyro`, and after `import pyro_gumbel`."""
    command = [sys.executable, "-c", IMPORTS]
    printed = subprocess.check_output(command, env=environment(), text=True)
    pyro, both = map(float, printed.split())
    return pyro, both


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    options = parser.parse_args()
    seconds()
    rounds = [seconds() for _ in range(options.repeats)]
    ratios = [both / pyro for pyro, both in rounds]
    print("ratio of each round:", " ".join(f"{ratio:.3f}" for ratio in ratios))
    print(f"import pyro: {statistics.median(pyro for pyro, _ in rounds):.2f} s of the processor")
    print(f"with pyro_gumbel, times as long: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
