# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Pure functions of tensors: noise, expectations, probabilities, modes and casts."""
