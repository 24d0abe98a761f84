# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What SECURITY.md promises: no files, processes, network or variables; state without pickle."""

import ast
import copy
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import pyro_gumbel
from pyro_gumbel import (
    AutoRelaxed,
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    GeometricTemperature,
    LearnableTemperature,
    LearnedCurvature,
    LinearTemperature,
    TemperatureSchedule,
    mve,
    relaxed,
)
from pyro_gumbel.infer.site_parameters import SiteParameters
from tests.common import DISCRETE, WITH_INDICES, make
from tests.counts import COUNTS, make_count

PACKAGE = Path(pyro_gumbel.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


# The source.

ALLOWED = {
    "collections",
    "contextlib",
    "contextvars",
    "copy",
    "dataclasses",
    "fractions",
    "functools",
    "itertools",
    "math",
    "matplotlib",  # for the type of a picture, which is not saved
    "numbers",
    "operator",
    "pyro",
    "pyro_gumbel",
    "statistics",
    "sys",
    "textwrap",
    "threading",
    "time",
    "torch",
    "tqdm",
    "triton",
    "types",
    "typing",
    "warnings",
    "weakref",
}
# Names that run text, import by text or open files, and what their modules are reached by.
FORBIDDEN = {"__builtins__", "__import__", "breakpoint", "compile", "eval", "exec", "input", "open"}
FORBIDDEN_ATTRIBUTES = {
    "__builtins__",
    "__globals__",
    "__subclasses__",
    "cpp_extension",
    "ctypes",
    "environ",
    "from_file",
    "getenv",
    "get_param_store",  # whose save and load are pickle
    "hub",
    "importlib",
    "modules",
    "os",
    "pickle",
    "save",
    "savefig",
    "serialization",
    "socket",
    "subprocess",
    "system",
    "tofile",
    "urllib",
}
# Where a name above is one of ours, or does no harm.
EXCEPT = {
    ("pyro_gumbel.kernels.compiling", "__globals__"),  # of our own functions, for a copy of them
}


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def misuses(source, module=""):
    """What a source must not have."""
    tree = ast.parse(source)
    found = []
    for name in imports_of(tree):
        root, *parts = name.split(".")
        if root not in ALLOWED or FORBIDDEN_ATTRIBUTES & set(parts):
            found.append(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in FORBIDDEN:
            found.append(node.id)
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            found.append(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            found.append("torch.load")
    return [name for name in found if (module, name) not in EXCEPT]


@pytest.mark.parametrize("path", MODULES, ids=map(name_of, MODULES))
def test_the_source_runs_no_text_and_touches_nothing_outside(path):
    assert not misuses(path.read_text(), name_of(path))


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "import pickle",
        "import subprocess as s",
        "import ctypes",
        "from urllib.request import urlopen",
        "import http.client",
        "def f():\n    import socket",
        "from torch import hub",
        "from torch.utils import cpp_extension",
        "import torch.utils.cpp_extension",
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'eval')",
        "open('x')",
        "__import__('os')",
        "torch.os.environ['X']",
        "sys.modules['os']",
        "torch.load('x')",
        "torch.save(1, 'x')",
        "torch.hub.load('x')",
        "pyro.get_param_store().load('x')",
        "figure.savefig('x')",
    ],
)
def test_a_misuse_is_found(line):
    assert misuses(line)


# A process.

WATCHED = """
import sys
import pyro, pyro.distributions as dist, torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

TOUCHES = ("ctypes.dlopen", "pickle.find_class", "os.exec", "os.fork", "os.mkdir", "os.posix_spawn",
           "os.putenv", "os.remove", "os.rename", "os.spawn", "os.system", "os.unsetenv")
AREAS = ("http", "shutil", "socket", "subprocess", "tempfile", "urllib")
events = []

def watch(event, arguments):
    writes = event == "open" and set("wax+") & set(str(arguments[1]))
    if writes or event in TOUCHES or event.partition(".")[0] in AREAS:
        events.append((event, str(arguments)))

def model(z=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0)) if z is None else z
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

def discrete():
    z = pyro.sample("z", dist.Categorical(torch.ones(3)))
    model(torch.arange(3.0)[z])

def train(model, guide):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step()
    svi.step()

train(model, AutoNormal(model))  # torch loads its compiler in the first step of an optimiser
sys.dont_write_bytecode = True
sys.addaudithook(watch)
from pyro_gumbel import AutoRelaxed, relaxed
train(relaxed(discrete), AutoRelaxed(discrete))
assert not events, events
open("/dev/null", "w").close()
assert events, "nothing is watched"
"""


@pytest.mark.slow
@pytest.mark.cpu(reason="a process of its own, without the device")
def test_importing_and_training_touch_nothing_outside():
    """By Python's audit events, after torch and Pyro have been imported."""
    done = subprocess.run([sys.executable, "-c", WATCHED], cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0


# State.


def stepped(schedule):
    for _ in range(3):
        schedule.step()
    return schedule


def drawn_from(estimator):
    """A `LearnedCurvature` that has learned from a batch."""
    x = torch.randn(5, 4, requires_grad=True)
    d = pyro_gumbel.BernoulliStraightThrough(logits=x, estimator=estimator)
    d.to_event(1).rsample().square().sum().backward()
    return estimator


def sites():
    with pyro.plate("points", 3):
        pyro.sample("bits", dist.Bernoulli(0.3 * torch.ones(4)).to_event(1))
    pyro.sample("index", dist.Categorical(torch.ones(3)))
    pyro.sample("count", dist.Poisson(2.0))


def bits():
    with pyro.plate("points", 3):
        pyro.sample("bits", dist.Bernoulli(0.3 * torch.ones(4)).to_event(1))


def guided(make):
    """A guide after two steps, and one that has run, of the same settings."""

    def made(trained):
        pyro.clear_param_store()
        guide, model, schedules = make()
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        for _ in range(2 if trained else 1):
            svi.step()
            for schedule in schedules if trained else ():
                schedule.step()
        return guide

    return made


def plain_guide():
    return AutoRelaxed(sites), relaxed(sites), ()


def relaxed_guide():
    temperature = LinearTemperature(1.0, 0.5, 10)
    model = relaxed(bits, temperature, hard=False)
    return AutoRelaxed(model, temperature, hard=False), model, (temperature,)


def guide_with_tau():
    tau = GeometricTemperature(160, 1e5, 10)
    return AutoRelaxed(bits, estimator=mve(tau)), relaxed(bits), (tau,)


def guide_with_learned_temperature():
    temperature = LearnableTemperature(0.5)
    model = relaxed(bits, temperature, hard=False)
    return AutoRelaxed(model, temperature, hard=False), model, ()


def guide_with_curvature():
    return AutoRelaxed(bits, estimator=LearnedCurvature((4,))), relaxed(bits), ()


def scheduled(make):
    return lambda trained: stepped(make()) if trained else make()


class Halving(TemperatureSchedule):
    """A schedule of a user."""

    def forward(self):
        return 0.5**self.steps


def parameters_of_a_site(trained):
    return guided(plain_guide)(trained).logits


# Every class with a state: id -> the class, and a function that makes a trained one or a fresh one.
STATES = {
    "TemperatureSchedule": (TemperatureSchedule, scheduled(Halving)),
    "constant": (ConstantTemperature, scheduled(lambda: ConstantTemperature(0.5))),
    "exponential": (ExponentialTemperature, scheduled(lambda: ExponentialTemperature(0.1))),
    "linear": (LinearTemperature, scheduled(lambda: LinearTemperature(1.0, 0.5, 10))),
    "geometric": (GeometricTemperature, scheduled(lambda: GeometricTemperature(1.0, 0.5, 10))),
    "cosine": (CosineTemperature, scheduled(lambda: CosineTemperature(1.0, 0.5, 10))),
    "learnable": (
        LearnableTemperature,
        lambda trained: stepped(LearnableTemperature(0.5 if trained else 0.7)),
    ),
    "curvature": (
        LearnedCurvature,
        lambda trained: drawn_from(LearnedCurvature((4,))) if trained else LearnedCurvature((4,)),
    ),
    "guide": (AutoRelaxed, guided(plain_guide)),
    "relaxed guide": (AutoRelaxed, guided(relaxed_guide)),
    "guide with a schedule in its estimator": (AutoRelaxed, guided(guide_with_tau)),
    "guide with a learned temperature": (AutoRelaxed, guided(guide_with_learned_temperature)),
    "guide with a learned curvature": (AutoRelaxed, guided(guide_with_curvature)),
    "parameters of sites": (SiteParameters, parameters_of_a_site),
}


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", STATES)
def test_a_state_needs_no_pickle(name):
    cls, build = STATES[name]
    torch.manual_seed(0)
    trained = build(trained=True)
    assert isinstance(trained, cls)
    state = copy.deepcopy(trained.state_dict())
    fresh = build(trained=False)
    assert any(not torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    fresh.load_state_dict(through_a_file(state))
    torch.testing.assert_close(dict(fresh.state_dict()), dict(state), rtol=0, atol=0)


def has_state(cls):
    return hasattr(cls, "state_dict") and cls.__module__.partition(".")[0] == "pyro_gumbel"


def test_every_class_with_a_state_is_tried():
    """But for private ones, whose subclasses are."""
    for path in MODULES:
        if not path.stem.startswith(("cuda", "triton_")):  # which need Triton
            importlib.import_module(name_of(path))
    modules = [module for name, module in sys.modules.items() if name.startswith("pyro_gumbel")]
    values = [value for module in modules for value in vars(module).values()]
    classes = {each for each in values if isinstance(each, type) and has_state(each)}
    public = {cls for cls in classes if not cls.__name__.startswith("_")}
    assert public == {cls for cls, _ in STATES.values()}


@pytest.mark.parametrize("cls", [*WITH_INDICES, *DISCRETE])
def test_a_drawn_value_needs_no_pickle(cls):
    value = make(cls).sample()
    assert torch.equal(through_a_file(value), value)


@pytest.mark.parametrize("name", COUNTS)
def test_a_drawn_count_needs_no_pickle(name):
    value = make_count(name).rsample()
    assert torch.equal(through_a_file(value), value)


HOSTILE = [
    "__class__",
    "logits.__class__",
    "logits.__class__.forward_unconstrained",
    "logits.__dict__.x_unconstrained",
    "logits._kind_unconstrained",
    "logits.forward_unconstrained",
    "logits.a.forward_unconstrained",
    "logits.a.__init__.__globals___unconstrained",
    "temperature",
]


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize("has_run", [False, True])
def test_a_state_replaces_no_attribute(key, has_run):
    guide = AutoRelaxed(bits)
    if has_run:
        guide()
    before = {module: set(vars(module)) for module in guide.modules()}
    methods = {module: module.forward for module in guide.modules()}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        guide.load_state_dict({key: torch.zeros(3)})
    assert {module: set(vars(module)) for module in guide.modules()} == before
    assert {module: module.forward for module in guide.modules()} == methods


# The release.

WORKFLOWS = sorted(PACKAGE.parent.glob(".github/workflows/*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_a_commit(path):
    """A tag of an action can be moved."""
    actions = [name for name in re.findall(r"uses: (\S+)", path.read_text()) if name[0] != "."]
    assert actions
    assert [name for name in actions if not re.search("@[0-9a-f]{40}$", name)] == []
