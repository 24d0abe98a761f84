# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The soak: that it finds what it looks for, and that it leaves no class out."""

import gc
import importlib
import json
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine

import pyro_gumbel
from pyro_gumbel.distributions import __all__ as DISTRIBUTIONS
from pyro_gumbel.estimators import NAMES
from tests.common import slow_unless

pytestmark = pytest.mark.cpu(reason="the benchmark runs on the CPU")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def soak(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("soak")


def cell(soak, family="subsets", estimator="gumbel_softmax", guide="network", precision="float32"):
    return soak.Cell(family, estimator, guide, "TraceMeanField_ELBO", precision)


@pytest.mark.parametrize(
    ("family", "estimator", "guide", "precision"),
    slow_unless(
        lambda case: case[0] == "subsets",
        [
            ("subsets", "gumbel_softmax", "network", "bfloat16"),
            ("bits", "LearnedCurvature", "AutoRelaxed", "float32"),
            ("one-hot: mixture", "mve", "network", "bfloat16"),
            ("rankings: lengths", "relaxed", "AutoRelaxed", "bfloat16"),
            ("counts: BetaBinomial", "third_order", "network", "float32"),
            ("gates", "relaxed", "network", "bfloat16"),
        ],
    ),
)
def test_a_few_steps_find_nothing(soak, family, estimator, guide, precision):
    row = soak.soaked_or_error(cell(soak, family, estimator, guide, precision), 4)
    assert "error" not in row, row
    assert not soak.is_wrong(row)
    assert row["steps"] == 4
    assert row["tensors"] <= 0  # below 0 where what other tests have made ends meanwhile


def test_the_temperature_falls_to_a_hundredth(soak):
    training = soak.Training(cell(soak), 10)
    assert training.temperature() == 1
    for _ in range(5):
        training.step()
    torch.testing.assert_close(training.temperature(), torch.tensor(0.01))


# Faults that are put in.


def faulty(soak, monkeypatch, change):
    """What is found in a family whose likelihood has `change` in it."""
    family = soak.FAMILIES["subsets"]

    def likelihood(value, table):
        return soak.normal(change(value.flatten(1), table))

    monkeypatch.setitem(soak.FAMILIES, "subsets", family._replace(likelihood=likelihood))
    return soak.soaked_or_error(cell(soak), 8)


def test_a_gradient_that_is_not_finite_is_counted(soak, monkeypatch):
    """And the parameters that it changes, and the losses of the steps after that."""

    def change(features, table):
        return (0 * features.detach() @ table).sqrt()

    def unchecked(mean):
        return soak.dist.Normal(mean, 1.0, validate_args=False).to_event(1)

    monkeypatch.setattr(soak, "normal", unchecked)
    row = faulty(soak, monkeypatch, change)
    assert row["gradients"] == row["parameters"] == 8
    assert row["losses"] == 7
    assert soak.is_wrong(row)


def test_tensors_and_memory_that_are_kept_are_counted(soak, monkeypatch):
    kept = []

    def keep(features, table):
        kept.append(torch.ones(10 * 2**20))  # 40 MiB, which no memory that was freed before holds
        return features @ table

    row = faulty(soak, monkeypatch, keep)
    assert 0 < row["tensors"] <= 7  # of the 8 steps, after a warm-up of one
    assert 200 < row["MiB"] < 400


def test_an_error_and_a_warning_are_reported(soak, monkeypatch):
    def warn(features, table):
        soak.warnings.warn("careful", stacklevel=1)
        return features @ table

    row = faulty(soak, monkeypatch, warn)
    assert row["error"] == "UserWarning: careful"
    assert soak.is_wrong(row)


# What is covered.


def classes_of(soak):
    """The classes of the distributions of all models and guides."""
    first, *_ = soak.cells()
    for each in first:
        training = soak.Training(each, 2)
        traces = [poutine.trace(part).get_trace() for part in (training.svi.guide, training.model)]
        for trace in traces:
            for name in "zx":
                if name in trace.nodes:
                    fn = trace.nodes[name]["fn"]
                    yield from {type(fn), type(getattr(fn, "base_dist", fn))}
    pyro.clear_param_store()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(reinmax|gapped). expected")
def test_every_class_is_trained(soak):
    """But for the plain subsets and rankings, which `relaxed` replaces."""
    wanted = {getattr(pyro_gumbel, name) for name in DISTRIBUTIONS}
    plain = {pyro_gumbel.Subset, pyro_gumbel.PlackettLuce}
    assert wanted - set(classes_of(soak)) == plain


def test_every_estimator_is_tried(soak):
    tried = {name for family in soak.FAMILIES.values() for name in family.estimators}
    assert tried == {*NAMES, "LearnedCurvature", "relaxed"}


def test_it_prints_a_table_and_writes_a_record(soak, monkeypatch, tmp_path, capsys):
    out = tmp_path / "x.json"
    options = ["--steps", "2", "--only", "subsets, second_order, network, Trace", "--out", str(out)]
    threads = ["--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["soak.py", *threads, *options])
    with pytest.raises(SystemExit, match="False"):  # no fault
        soak.main()
    gc.unfreeze()
    record = json.loads(out.read_text())
    assert record["families"]["all"]["cells"] == len(record["rounds"]) == 6
    assert record["wrong"] == []
    assert "| subsets | 6 | 12 | 0 / 0 / 0 | 0 | 0 |" in capsys.readouterr().out
