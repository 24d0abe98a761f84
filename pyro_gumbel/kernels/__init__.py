# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Draws and densities, each with one forward and one analytic backward pass.

`dispatch` is the only module that the distributions call. It chooses between `reference`, the
operations of a link as autograd differentiates them, and `cpu`, which runs the mathematics of
`formulas` in blocks with the memory of `workspace`. `compiling` runs it by `torch.compile`.
"""
