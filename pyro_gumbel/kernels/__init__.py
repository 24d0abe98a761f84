# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws and densities, each with one forward and one analytic backward pass.

`dispatch` is the only module that the distributions call. It chooses between `reference`, the
operations of a link as autograd differentiates them; `cpu`, which runs the mathematics of
`formulas` in blocks with the memory of `workspace`; and `cuda`, which runs it by the kernels of
`triton_rows` and `triton_bits`. `compiling` runs the blocks by `torch.compile`. `backend` says what
runs where.
"""

from pyro_gumbel.kernels.dispatch import backend

__all__ = ["backend"]
