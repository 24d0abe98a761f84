# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Inference in whole models: handler, guide, reparameterisation, gradient reports."""
