# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What importing the package leaves alone, and that it warns of nothing."""

import subprocess
import sys
from pathlib import Path

import pyro_gumbel

IMPORT = """
import warnings
import pyro, pyro.infer, torch, torch.distributions as td
from torch.distributions import kl

classes = [td.Distribution, td.Bernoulli, td.OneHotCategorical, td.constraints.Constraint,
           pyro.distributions.TorchDistribution, pyro.distributions.Bernoulli,
           pyro.distributions.OneHotCategorical, torch.Tensor]

def shot():
    return {
        "validation": td.Distribution._validate_args,
        "Pyro's validation": pyro.infer.util.is_validation_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random state": torch.get_rng_state().tolist(),
        "warnings": list(warnings.filters),
        "settings": pyro.settings.get(),
        "parameters": list(pyro.get_param_store().keys()),
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "modules": [dir(m) for m in (pyro, pyro.distributions, torch, td, td.constraints)],
        "classes": [dict(vars(c)) for c in classes],
    }

def registries():
    return dict(kl._KL_REGISTRY), dict(td.biject_to._registry), dict(td.transform_to._registry)

def ours(*types):
    return any(t.__module__.split(".")[0] == "pyro_gumbel" for t in types)

before, registered = shot(), registries()
import pyro_gumbel
after = shot()
for name in before:
    assert before[name] == after[name], name
for old, new in zip(registered, registries()):
    assert old.items() <= new.items()
    added = new.keys() - old.keys()
    assert added
    for key in added:
        assert ours(*key) if isinstance(key, tuple) else ours(key), key
"""


UNDER_ANOTHER_DEVICE = """
import torch
torch.set_default_device("meta")
from pyro_gumbel import BernoulliStraightThrough, CategoricalStraightThrough, RelaxedCategorical
torch.set_default_device(None)
logits = torch.zeros(4, 3, requires_grad=True)
for cls in (BernoulliStraightThrough, CategoricalStraightThrough, RelaxedCategorical):
    for temperature in (0.5, torch.tensor(0.5)):
        value = cls(temperature, logits=logits).rsample()
        assert value.device.type == "cpu", value
        value.pow(2).sum().backward()
"""


def run(*command):
    """Python with these arguments, in a process of its own."""
    root = Path(pyro_gumbel.__file__).parents[1]
    return subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True)


def test_importing_changes_nothing_of_torch_and_pyro():
    done = run("-c", IMPORT)
    assert done.returncode == 0, done.stderr


def test_importing_warns_of_nothing():
    done = run("-W", "error", "-c", "import pyro_gumbel")
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_the_default_device_at_import_does_not_matter():
    done = run("-c", UNDER_ANOTHER_DEVICE)
    assert done.returncode == 0, done.stderr
