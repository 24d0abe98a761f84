# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Whole models: the handler, the guide, reparameterisation, gradient reports."""
