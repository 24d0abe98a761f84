# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Discrete values that remember their draw, so that what is made of them has a gradient."""

from pyro_gumbel.tensors import linear_operations, operations  # noqa: F401  gives the tensor classes their operations
