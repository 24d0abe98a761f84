# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The distributions of the package, one file a family, and what works on all of them."""
