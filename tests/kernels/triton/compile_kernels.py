# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Compiles every kernel for a GPU that is not there: a script, run by `test_compiled.py`.

The interpreter takes more than the compiler does. So here the functions of the host ask for the
kernels, for tensors of a CPU, and Triton compiles what they ask for to machine code of an H100.
Nothing runs. The blocks are small: their size changes the number of instructions alone. One line is
printed for each kernel: its name, and the types of the offsets that are added to blocks of
pointers.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from pyro_gumbel.estimators import gapped, gumbel_rao, reinmax, straight_through
from pyro_gumbel.kernels import cuda
from pyro_gumbel.kernels import triton_functions as kernels
from pyro_gumbel.links import Hypersimplex, interval, simplex

TILE = 64  # elements of a program, two for each thread

# A link, the shape of an event, and how many columns are taken at a time; the dtype of the logits,
# and whether there is one temperature.
CASES = [
    (interval, (), 0, torch.bfloat16, True),
    (simplex, (10,), 4096, torch.float32, True),
    (simplex, (1000,), TILE, torch.bfloat16, False),
    (Hypersimplex(5), (10,), 4096, torch.float32, True),
    (Hypersimplex(5), (1000,), TILE, torch.bfloat16, False),
]


class NoDriver:
    """Says that there is a GPU, and no more."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


compiled: list[tuple[str, Any]] = []


def run(
    plan: Any,
    kernel: Any,
    *pointers: Any,
    more: Any = (),
    waits_for_memory: Any = None,
    **options: Any,
) -> None:
    """In place of `_Plan.run`: compile, but do not run."""
    arguments = *pointers, *plan.counts, *more
    made = kernel.warmup(*arguments, grid=plan.grid, **options, **plan.options)
    compiled.append((kernel.__name__, made))


def compile_case(link: Any, event: tuple[int, ...], dtype: torch.dtype, tau_is_one: bool) -> None:
    """A draw, a hard draw and a density with all gradients."""
    rows = 48
    x = torch.zeros(rows, *event, dtype=dtype, requires_grad=True)
    tau = torch.ones(() if tau_is_one else (rows, *(1 for _ in event)), requires_grad=True)
    seed, batch = torch.zeros(1, dtype=torch.int64), torch.Size((rows,))
    arguments = x, tau, seed, link, batch, batch
    if tau_is_one:
        number = x, 0.5, *arguments[2:]
        cuda._FusedDraw.apply(*number, True, False, True)[0].sum().backward()
    s, v, log_p = cuda._FusedDraw.apply(*arguments, True, True, True)
    torch.autograd.backward([s, v, log_p], [torch.ones_like(y) for y in (s, v, log_p)])
    cuda._FusedStraightThroughDraw.apply(*arguments).sum().backward()
    if link.event_dim == 0 or link is simplex:
        cuda._FusedSecondOrderDraw.apply(x, *arguments[2:]).sum().backward()
        for estimator in (gumbel_rao(), straight_through, reinmax, gapped()):
            cuda._FusedEstimatedDraw.apply(*arguments, estimator).sum().backward()
    v = v.detach().requires_grad_()
    cuda.log_density(s, v, x, tau, link, batch, of_values=tau_is_one).sum().backward()


def offsets(text: str) -> Iterator[str]:
    """The types of offsets added to blocks of pointers."""
    yield from set(re.findall(r"tt\.addptr .*: tensor<[^,]*>, tensor<(?:\d+x)*(\w+)", text))


def main() -> None:
    driver.set_active(NoDriver())
    cuda._Plan.run, cuda.TILE = run, TILE  # type: ignore[method-assign, misc]
    for link, event, kernels.LONGEST, dtype, tau_is_one in CASES:
        compile_case(link, event, dtype, tau_is_one)
    for kernel, count, options in (
        (kernels.noise_of_bits, (1,), kernels.launch_of_bits(1)[1]),
        (kernels.noise_of_rows, (1,), {"K": 10, **kernels.launch_of_rows(1, 10)[1]}),
    ):
        seed, noise = torch.zeros(1, dtype=torch.int64), torch.zeros(10)
        made = kernel.warmup(seed, noise, *count, grid=(1,), **options)
        compiled.append((kernel.__name__, made))
    for name, made in compiled:
        assert "cubin" in made.asm, name
        print(name, *sorted(offsets(made.asm["ttir"])))


if __name__ == "__main__":
    sys.exit(main())
