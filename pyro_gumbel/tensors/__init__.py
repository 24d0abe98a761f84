# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Discrete values that remember their draw, so that what is made of them has a gradient."""

from pyro_gumbel.tensors import (  # noqa: F401  give the tensor classes their operations
    linear_operations,
    operations,
    sample_operations,
)
