# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

import pyro
import pytest
import torch
from torch.distributions import Distribution

# Tensors are small: a second thread only waits, and on a busy machine it waits long.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_process():
    """Seeds set, an empty parameter store, and every global of torch as the tests found it.

    One call of torch.compile switches validation off for the whole process.
    """
    validate, dtype = Distribution._validate_args, torch.get_default_dtype()
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    Distribution.set_default_validate_args(validate)
    pyro.enable_validation(True)
    torch.set_default_dtype(dtype)


@pytest.fixture
def float64():
    """Tensors of this precision by default, for the length of a test."""
    torch.set_default_dtype(torch.float64)
