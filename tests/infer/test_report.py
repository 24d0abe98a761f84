# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How a gradient report is read: recommendation, table, dictionary and plot."""

import dataclasses
import json
import math
import re
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gumbel import (
    AutoRelaxed,
    gapped,
    gradient_report,
    relaxed,
)
from tests.common import first_fast
from tests.infer.models import MEANS, one_of_three, quadratic, quadratic_guide


def report_of_three(**keywords):
    return gradient_report(
        quadratic, quadratic_guide, estimators=["second_order", "reinmax", gapped(2.0)],
        temperatures=[1.0, 0.5], num_samples=20, progress=False, **keywords,
    )  # fmt: skip


# The recommendation.


def three_sites():
    """A loss that is quadratic in two categories and a bit together."""
    z = pyro.sample("z", dist.OneHotCategorical(logits=torch.tensor([0.2, 0.0, -0.2])))
    b = pyro.sample("b", dist.Bernoulli(0.4))
    w = pyro.sample("w", dist.OneHotCategorical(torch.ones(4)))
    mean = z @ MEANS + 1.5 * b + w @ torch.tensor([0.5, -1.0, 1.0, 2.0])
    pyro.sample("x", dist.Normal(mean, 0.7), obs=torch.tensor(2.5))


@pytest.mark.parametrize("seed", first_fast(range(3)))
def test_the_recommendation_for_a_model_of_three_sites_is_unbiased(seed):
    model = relaxed(three_sites)
    report = gradient_report(
        model, AutoRelaxed(model), temperatures=[0.5], num_samples=100, seed=seed, progress=False,
        estimators=["second_order", "gumbel_softmax", "straight_through"],
    )  # fmt: skip
    assert report.exact_by == "enumeration of 24 states"
    assert report.best().estimator == "second_order"
    assert "second_order, without a significant bias" in str(report)


def test_the_recommendation_over_steps():
    """Bias counts the more, the more steps there are."""
    report = report_of_three()
    first, *_, last = report.rows
    for row in (first, last):
        values = [report.expected_progress(row, steps) for steps in (1, 10, 1000, math.inf)]
        assert values[3] == pytest.approx(1 - (row.bias / report.exact_norm) ** 2)
        assert values[2] == pytest.approx(values[3], abs=0.1)
    again = report_of_three(steps=10)
    assert (report.steps, again.steps) == (math.inf, 10)
    assert again.expected_progress(again.rows[0]) == report.expected_progress(first, 10)
    assert again.expected_progress(again.rows[0], math.inf) == report.expected_progress(first)
    assert "recommended for 10 steps: second_order" in str(again)


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
    assert math.isnan(report.expected_progress(report.rows[0]))
    *_, last = str(report).splitlines()
    assert last == "recommended: none, since the exact gradient is not above twice its error"
    assert report.plot().axes


# Table, dictionary and plot.


def test_the_table_prints_well():
    lines = str(report_of_three()).splitlines()
    assert lines[0].startswith("exact gradient: length 0.")
    assert lines[0].endswith("by enumeration of 3 states")
    assert lines[1] == "each row: 20 gradients of 3 numbers; * marks a significant bias"
    table = lines[2 : 3 + 5]
    assert len({len(line) for line in table}) == 1
    assert all(len(line) < 100 for line in lines)
    assert re.match(r"estimator +tau +bias +sd +cosine +progress +to the end +ms$", table[0])
    assert re.match(r"second_order +- +\d", table[1])
    assert re.match(r"reinmax +1 +\d", table[2])
    assert re.match(r"gapped\(gap=2.0\) +0.5 +\d", table[5])
    assert re.match(r"recommended for training to the end: \S+.*, without a significant", lines[8])
    assert lines[9] == "not told apart from it by these samples, the cheapest first:"
    assert "; " in lines[10]


def with_biases(report, *biases):
    """The report as if its rows had these biases and little noise."""
    rows = [
        dataclasses.replace(row, bias=bias, bias_error=1e-3, standard_deviation=1e-2)
        for row, bias in zip(report.rows, biases, strict=True)
    ]
    return dataclasses.replace(report, rows=rows)


def test_the_table_marks_biases_and_says_why_a_biased_row_is_recommended():
    report = report_of_three()
    norm = report.exact_norm
    lines = str(with_biases(report, 0.9 * norm, *[0.1 * norm] * 4)).splitlines()
    assert [" *  " in line for line in lines[3:8]] == [True] * 5
    assert lines[8].endswith(", biased as all rows are")
    lines = str(with_biases(report, 0.9 * norm, 0.0, *[0.2 * norm] * 3)).splitlines()
    assert [" *  " in line for line in lines[3:8]] == [True, False, True, True, True]
    assert "recommended for training to the end: reinmax at temperature 1, without" in lines[8]
    noisy = with_biases(report, 0.2 * norm, *[0.0] * 4)
    rows = [noisy.rows[0]]
    rows += [dataclasses.replace(row, standard_deviation=100 * norm) for row in noisy.rows[1:]]
    noisy = dataclasses.replace(noisy, rows=rows, steps=10)
    text = "recommended for 10 steps: second_order, biased, but the others need over 4 times the"
    assert text in str(noisy)


@pytest.mark.parametrize("steps", [None, 30])
def test_the_dictionary_is_json(steps):
    found = json.loads(json.dumps(report_of_three(steps=steps).to_dict(), allow_nan=False))
    assert found["num_samples"] == 20
    assert found["steps"] == steps
    assert [row["temperature"] for row in found["rows"]] == [None, 1.0, 0.5, 1.0, 0.5]
    assert [row["estimator"] for row in found["rows"]][:2] == ["second_order", "reinmax"]
    assert set(found["rows"][0]) == {
        "estimator", "temperature", "bias", "bias_error", "noise_directions", "standard_deviation",
        "projection", "projection_error", "cosine", "cosine_error", "progress", "progress_error",
        "milliseconds",
    }  # fmt: skip


def test_the_plot(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    report = report_of_three()
    figure = report.plot()
    assert [axes.get_title() for axes in figure.axes] == ["bias", "standard deviation", "progress"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(labels) == {"second_order", "reinmax", "gapped(gap=2.0)", "exact gradient"}
    assert len(labels) == 4
    for axes, quantity in zip(figure.axes, ("bias", "standard_deviation", "progress"), strict=True):
        (level,) = [line for line in axes.lines if line.get_label() == "second_order"]
        assert set(level.get_ydata()) == {getattr(report.rows[0], quantity)}
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0.5", "1"]
    figure.savefig(tmp_path / "report.png")
    alone = dataclasses.replace(report, rows=report.rows[:1]).plot()
    alone.savefig(tmp_path / "alone.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"expected matplotlib.*pip install matplotlib"):
        report.plot()
