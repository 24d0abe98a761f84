# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How a gradient report is read: best row, table, dictionary and plot."""

import json
import sys

import pyro
import pytest
import torch

from pyro_gumbel import gapped, gradient_report
from tests.infer.models import one_of_three, quadratic, quadratic_guide


def report_of_two():
    return gradient_report(
        quadratic, quadratic_guide, estimators=["reinmax", gapped(2.0)], temperatures=[1.0, 0.1],
        num_samples=20, progress=False,
    )  # fmt: skip


def test_the_best_row_has_the_most_progress():
    report = gradient_report(
        quadratic, quadratic_guide, temperatures=[1.0], num_samples=60, progress=False
    )
    best = report.best()
    assert best.progress == max(row.progress for row in report.rows)
    assert {row.estimator for row in report.rows} == {
        "gapped", "gumbel_rao", "gumbel_softmax", "reinmax", "straight_through",
    }  # fmt: skip


def test_at_the_optimum_nothing_is_best():
    def model():
        pyro.sample("z", one_of_three(torch.linspace(-0.4, 0.7, 3)))

    report = gradient_report(
        model, quadratic_guide, estimators=["gumbel_softmax"], temperatures=[1.0], num_samples=10,
        progress=False,
    )  # fmt: skip
    assert report.exact_norm < 1e-6
    assert report.to_dict()["rows"][0]["progress"] is None
    with pytest.raises(ValueError, match=r"expected an exact gradient that is not 0, got .* write"):
        report.best()


def test_the_table_prints_well():
    lines = str(report_of_two()).splitlines()
    assert lines[0].startswith("exact gradient: length 0.")
    assert lines[0].endswith("by enumeration of 3 states")
    assert lines[1] == "each row: 20 gradients of 3 numbers"
    assert len(lines) == 3 + 4
    assert len({len(line) for line in lines[2:]}) == 1
    assert all(len(line) < 100 for line in lines)
    assert lines[3].startswith("reinmax")
    assert lines[5].startswith("gapped(gap=2.0)")


def test_the_dictionary_is_json():
    found = json.loads(json.dumps(report_of_two().to_dict()))
    assert found["num_samples"] == 20
    assert found["rows"][0]["estimator"] == "reinmax"
    assert set(found["rows"][0]) == {
        "estimator", "temperature", "bias", "bias_error", "standard_deviation", "cosine",
        "cosine_error", "progress", "progress_error", "milliseconds",
    }  # fmt: skip


def test_the_plot(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    report = report_of_two()
    figure = report.plot()
    assert [axes.get_title() for axes in figure.axes] == ["bias", "standard deviation", "progress"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(labels) == {"reinmax", "gapped(gap=2.0)", "exact gradient"}
    figure.savefig(tmp_path / "report.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"expected matplotlib.*pip install matplotlib"):
        report.plot()
