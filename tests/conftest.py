# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

import pyro
import pytest
import torch
from hypothesis import Phase, settings
from torch.distributions import Distribution

from tests import pretend_device

# Tensors are small: a second thread only waits, and on a busy machine it waits long.
torch.set_num_threads(1)

FUZZ_TESTS = 60  # among which the random cases are divided


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="of tensors: cpu, cuda, or pretend")
    parser.addoption("--fuzz", type=int, default=300, help="how many random cases to try")


def pytest_configure(config):
    """The device becomes torch's default one, also for the constants of the modules of tests."""
    settings.register_profile(
        "fuzz",
        max_examples=max(1, config.getoption("fuzz") // FUZZ_TESTS),
        deadline=None,
        derandomize=config.getoption("hypothesis_seed") is None,
        database=None,
        phases=(Phase.generate, Phase.shrink),  # to explain it would trace every line
    )
    settings.load_profile("fuzz")
    device = config.getoption("device")
    if device == "pretend":
        device = pretend_device.start()
    if device != "cpu":
        torch.set_default_device(device)


def pytest_collection_modifyitems(config, items):
    """On another device what is about the CPU is left out."""
    if config.getoption("device") != "cpu":
        of_cpu = [item for item in items if item.get_closest_marker("cpu")]
        config.hook.pytest_deselected(items=of_cpu)
        items[:] = [item for item in items if not item.get_closest_marker("cpu")]


@pytest.fixture(autouse=True)
def _fresh_process():
    """Seeds set, an empty parameter store, and the globals of torch and Pyro as they were.

    One call of torch.compile switches validation off for the whole process.
    """
    validate, dtype = Distribution._validate_args, torch.get_default_dtype()
    settings = pyro.settings.get()
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    Distribution.set_default_validate_args(validate)
    pyro.enable_validation(True)
    pyro.settings.set(**settings)
    torch.set_default_dtype(dtype)


@pytest.fixture
def equal_draws(monkeypatch):
    """Kernels of a GPU draw other numbers from a seed than torch's operations, which draw here."""
    from pyro_gumbel.kernels import dispatch, reference

    monkeypatch.setitem(dispatch.BY_DEVICE, "cuda", reference)


@pytest.fixture
def float64():
    """Tensors of this precision by default, for the length of a test."""
    torch.set_default_dtype(torch.float64)
