# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The kernels as a GPU would get them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_gumbel.kernels import (
    triton_bits,
    triton_estimators,
    triton_functions,
    triton_rao,
    triton_rows,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.interpreter  # of a process that has no GPU
def test_all_kernels_compile_and_have_wide_offsets(tmp_path):
    """Rows times columns pass 2^31."""
    own = {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | own
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.compile_kernels"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert all(offsets == ["i64"] for _, *offsets in lines)
    modules = triton_functions, triton_rows, triton_bits, triton_rao, triton_estimators
    exported = {name for module in modules for name in module.__all__ if name.islower()}
    assert {name for name, *_ in lines} == exported - {"launch_of_bits", "launch_of_rows"}
