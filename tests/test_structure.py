# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The shape of the package: what imports what, how deep a class is, and where a family is named."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import pyro_gumbel
from pyro_gumbel.distributions import __all__ as DISTRIBUTIONS

PACKAGE = Path(pyro_gumbel.__file__).parent

# A module imports from the layers before its own, and from its own layer where that says so.
LAYERS = [
    ("_tracing", False),
    ("ops", True),
    ("tensors", True),
    ("links", False),
    ("constraints", False),
    ("_validation", False),
    ("estimators", False),
    ("temperature", False),
    ("kernels", True),
    ("distributions", True),
    ("divergences", False),
    ("infer", True),
]
ORDER = [layer for layer, _ in LAYERS]
FAMILIES = (
    "bernoulli",
    "categorical",
    "category_index",
    "hard_concrete",
    "plackett_luce",
    "subset",
)
EXTENDED = ("bernoulli", "categorical")  # which other families are made of
COUNTS = ("poisson", "trials", "multinomial")
MODULES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = [
    each for name in pyro_gumbel.__all__ if inspect.isclass(each := getattr(pyro_gumbel, name))
]


def layer_of(module):
    """The layer of a module by its dotted name; '' for the package itself."""
    return module.removeprefix("pyro_gumbel").removeprefix(".").split(".")[0]


def name_of(path):
    return ".".join(("pyro_gumbel", *path.relative_to(PACKAGE).with_suffix("").parts))


def imports_of(path):
    """The modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pyro_gumbel"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = (PACKAGE.parent / f"{whole.replace('.', '/')}.py").exists()
                yield whole if is_module or node.module == "pyro_gumbel" else node.module


@pytest.mark.parametrize("path", MODULES[1:], ids=map(name_of, MODULES[1:]))
def test_imports_point_one_way(path):
    layer = layer_of(name_of(path))
    rank = ORDER.index(layer)
    for module in imports_of(path):
        theirs = ORDER.index(layer_of(module))
        assert theirs < rank or (theirs == rank and LAYERS[rank][1]), module


def test_mathematics_does_not_import_the_checks_of_constructors():
    for path in MODULES:
        if layer_of(name_of(path)) in ("ops", "links", "constraints", "kernels"):
            assert "pyro_gumbel._validation" not in set(imports_of(path)), path


@pytest.mark.parametrize("path", MODULES, ids=map(name_of, MODULES))
def test_a_module_has_what_it_exports(path):
    if path.stem == "cuda" or path.stem.startswith("triton_"):
        pytest.importorskip("triton")
    module = importlib.import_module(name_of(path).removesuffix(".__init__"))
    assert set(getattr(module, "__all__", ())) <= vars(module).keys()


def test_the_package_does_not_shadow_pyro_distributions():
    assert not {"distributions", "kernels", "ops", "infer"} & set(pyro_gumbel.__all__)


# A family is one file.

MAY_NAME = {
    *(f"pyro_gumbel.distributions.{family}" for family in (*FAMILIES, *COUNTS)),
    "pyro_gumbel.__init__",
    "pyro_gumbel.distributions.__init__",
    "pyro_gumbel.distributions.selected_component",
}


def identifiers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]


@pytest.mark.parametrize(
    "path", [p for p in MODULES if name_of(p) not in MAY_NAME], ids=lambda p: name_of(p)
)
def test_no_other_module_names_a_family(path):
    assert not {*DISTRIBUTIONS, *FAMILIES} & set(identifiers(path))


def test_families_do_not_import_one_another_but_for_what_they_extend():
    """Gates are made of bits; subsets and rankings of categories."""
    for family in FAMILIES:
        for module in imports_of(PACKAGE / "distributions" / f"{family}.py"):
            theirs = module.rpartition(".")[2]
            assert theirs not in FAMILIES or theirs in EXTENDED


# The bases of a class.


def own(cls):
    return [each for each in cls.__mro__ if each.__module__.startswith("pyro_gumbel")]


@pytest.mark.parametrize("cls", PUBLIC)
def test_a_class_has_four_ancestors_of_ours_at_most(cls):
    assert len(own(cls)) - 1 <= 4


def definers(cls, name):
    """The own classes that define a name and that no subclass among them overrides."""
    found = [each for each in own(cls) if name in vars(each)]
    return [a for a in found if not any(issubclass(b, a) for b in found if b is not a)]


IGNORED = {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__"}


def own_names(cls):
    return {name for each in own(cls) for name in vars(each)} - IGNORED


@pytest.mark.parametrize("cls", PUBLIC)
def test_nothing_depends_on_the_order_of_our_bases(cls):
    """Where two unrelated bases define a name alike or not, the class itself says which counts."""
    for name in own_names(cls):
        values = [vars(each)[name] for each in definers(cls, name)]
        assert all(value is values[0] or value == values[0] for value in values), name


@pytest.mark.parametrize("cls", [getattr(pyro_gumbel, name) for name in DISTRIBUTIONS])
def test_an_attribute_is_no_property_elsewhere(cls):
    """But for the support, as in torch: a property where it depends on an argument."""
    for name in own_names(cls) - {"support"}:
        values = [vars(each)[name] for each in own(cls) if name in vars(each)]
        computed = [isinstance(value, property) or hasattr(value, "__get__") for value in values]
        assert all(computed) or not any(computed), name


# One helper, one name.


def definitions(path):
    """The functions and classes of a module."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "_":
            yield node.name


def test_no_two_modules_define_the_same_name():
    """But for the functions that every module of kernels has, which `dispatch` chooses from."""
    kernels = {
        "draw",
        "estimated_draw",
        "log_density",
        "second_order_draw",
        "straight_through_draw",
    }
    names = [name for path in MODULES for name in definitions(path) if name not in kernels]
    assert sorted(names) == sorted(set(names))
