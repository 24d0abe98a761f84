# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Exact gradients against autograd and quadrature; the report against planted cases."""

import itertools
import json
import math
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    SubsetStraightThrough,
    gapped,
    gradient_report,
    gumbel_rao,
    relaxed,
)
from pyro_gumbel.infer import exact_gradient as reference
from pyro_gumbel.infer.exact_gradient import DRAWS, Objective, by_enumeration, by_score_function
from tests.common import HARD, law_of, param_shape

MEANS = torch.tensor([-1.0, 0.5, 2.0])
DATA = torch.tensor([0.3, -1.2, 1.7, 0.9])
T = 0.5


def one_of_three(logits):
    return CategoricalStraightThrough(T, logits=logits)


def parameter(name, *shape):
    start = torch.linspace(-0.4, 0.7, math.prod(shape)).reshape(shape)
    return pyro.param(name, start)


# A site whose log likelihood is quadratic: x ~ Normal(z . MEANS, 1).


def quadratic():
    z = pyro.sample("z", one_of_three(torch.tensor([0.2, 0.0, -0.2])))
    pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])


def quadratic_guide():
    pyro.sample("z", one_of_three(parameter("logits", 3)))


def elbo_gradient_in_sample(z, q):
    """Of f(z) = log p(x, z) - log q(z), the masses extended linearly."""
    log_p = torch.tensor([0.2, 0.0, -0.2]).log_softmax(-1)
    return log_p - q.log() + (DATA[0] - z @ MEANS) * MEANS


def planted(name):
    """Exact gradient of the loss, bias and standard deviation of an estimator at temperature 1."""
    logits = torch.linspace(-0.4, 0.7, 3)
    q = logits.softmax(-1)
    vertices = torch.eye(3)
    log_p = torch.tensor([0.2, 0.0, -0.2]).log_softmax(-1)
    f = log_p - q.log() + dist.Normal(vertices @ MEANS, 1.0).log_prob(DATA[0])

    def jacobian(p):
        return torch.diag(p) - torch.outer(p, p)

    exact = -jacobian(q) @ f
    gradients = []
    for z in vertices:
        slope = elbo_gradient_in_sample(z, q)
        if name == "straight_through":
            surrogate = jacobian(q) @ slope
        else:
            surrogate = 2 * jacobian((q + z) / 2) @ slope - jacobian(q) @ slope / 2
        score = z - q  # of -log q(z), a part of f that is no surrogate
        gradients.append(-(surrogate - score))
    gradients = torch.stack(gradients)
    mean = q @ gradients
    sd = (q @ (gradients - mean).square().sum(-1)).sqrt()
    return exact, (mean - exact).norm().item(), sd.item()


@pytest.mark.parametrize("name", ["straight_through", "reinmax"])
def test_a_planted_case(name):
    """Of the two what is known of the sample alone: they have no other noise."""
    report = gradient_report(
        quadratic, quadratic_guide, estimators=[name], temperatures=[1.0], num_samples=600,
        progress=False,
    )  # fmt: skip
    (row,) = report.rows
    exact, bias, sd = planted(name)
    assert report.exact_norm == pytest.approx(exact.norm().item(), rel=1e-5)
    assert report.exact_error == 0
    assert row.standard_deviation == pytest.approx(sd, rel=0.1)
    assert row.bias_error == pytest.approx(sd / math.sqrt(600), rel=0.1)
    assert abs(row.bias - bias) < 4 * row.bias_error
    if name == "reinmax":
        assert bias < 1e-6
        assert row.cosine > 0.99
    else:
        assert row.bias > 4 * row.bias_error
    mean = math.sqrt(report.exact_norm**2 + row.standard_deviation**2)
    if name == "reinmax":
        assert row.progress == pytest.approx(report.exact_norm / mean, rel=0.1)


def rows_of_seeds(seeds, model, guide, estimator, *, num_samples):
    """The row of one estimator, at temperature 1, in a report of each seed."""
    return [
        gradient_report(
            model, guide, estimators=[estimator], temperatures=[1.0], seed=seed,
            num_samples=num_samples, progress=False,
        ).rows[0]
        for seed in range(seeds)
    ]  # fmt: skip


def test_noise_is_not_taken_for_bias():
    """Its part is taken off, so that without a bias what is left is below 0 half of the time."""
    rows = rows_of_seeds(16, quadratic, quadratic_guide, "reinmax", num_samples=20)
    assert 2 < sum(row.bias == 0 for row in rows) < 16
    assert len({row.standard_deviation for row in rows}) > 8


def test_the_best_row_has_the_most_progress():
    report = gradient_report(
        quadratic, quadratic_guide, temperatures=[1.0], num_samples=60, progress=False
    )
    best = report.best()
    assert best.progress == max(row.progress for row in report.rows)
    assert {row.estimator for row in report.rows} == {
        "gapped", "gumbel_rao", "gumbel_softmax", "reinmax", "straight_through",
    }  # fmt: skip


# The exact gradient.


def chain():
    z = pyro.sample("z", one_of_three(torch.tensor([0.2, 0.0, -0.2])))
    w = pyro.sample("w", BernoulliStraightThrough(T, logits=z @ torch.tensor([1.0, -1.0, 0.3])))
    pyro.sample("x", dist.Normal(z @ MEANS * (1 + w), 1.0), obs=DATA[0])


def chain_guide():
    z = pyro.sample("z", one_of_three(parameter("z_logits", 3)))
    pyro.sample("w", BernoulliStraightThrough(T, logits=z @ parameter("w_logits", 3)))


def plated(masked=None, scale=1.0, size=4):
    mask = poutine.mask(mask=True if masked is None else masked)
    with pyro.plate("points", size), poutine.scale(scale=scale), mask:
        z = pyro.sample("z", one_of_three(torch.tensor([0.2, 0.0, -0.2])))
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[:size])


def plated_guide(masked=None, scale=1.0, size=4):
    mask = poutine.mask(mask=True if masked is None else masked)
    with pyro.plate("points", size), poutine.scale(scale=scale), mask:
        pyro.sample("z", one_of_three(parameter("logits", size, 3)))


def by_hand(model, guide, supports, **kwargs):
    """-sum_z q(z) f(z) over a product of supports, by autograd: values put in by `condition`."""
    guide(**kwargs)
    total = 0.0
    for values in itertools.product(*supports.values()):
        data = dict(zip(supports, values, strict=True))
        q = poutine.trace(poutine.condition(guide, data)).get_trace(**kwargs)
        p = poutine.trace(poutine.condition(model, data)).get_trace(**kwargs)
        log_q = sum(q.nodes[name]["fn"].log_prob(data[name]).sum() for name in data)
        total = total - log_q.exp() * (p.log_prob_sum() - q.log_prob_sum())
    leaves = [pyro.param(name).unconstrained() for name in pyro.get_param_store()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)]).double()


def shared():
    """A site outside the plate, whose prior counts once, and bits inside that depend on it."""
    z = pyro.sample("z", one_of_three(torch.tensor([0.9, 0.0, -1.2])))
    with pyro.plate("points", 3):
        w = pyro.sample("w", BernoulliStraightThrough(T, logits=(z @ MEANS).expand(3)))
        pyro.sample("x", dist.Normal(z @ MEANS + w, 1.0), obs=DATA[:3])


def shared_guide():
    z = pyro.sample("z", one_of_three(parameter("z_logits", 3)))
    shift = parameter("shift", 3)
    with pyro.plate("points", 3):
        pyro.sample("w", BernoulliStraightThrough(T, logits=shift - z[..., 0]))


ONE_HOT = list(torch.eye(3))
ROWS = [torch.stack(rows) for rows in itertools.product(torch.eye(3), repeat=4)]
BITS = [torch.tensor(bits) for bits in itertools.product([0.0, 1.0], repeat=3)]
CASES = {
    "shared": (shared, shared_guide, {"z": ONE_HOT, "w": BITS}, {}),
    "chain": (chain, chain_guide, {"z": ONE_HOT, "w": [torch.tensor(0.0), torch.tensor(1.0)]}, {}),
    "plate": (plated, plated_guide, {"z": ROWS}, {}),
    "scaled": (plated, plated_guide, {"z": ROWS}, {"scale": 3.0}),
    "masked": (
        plated, plated_guide, {"z": ROWS}, {"masked": torch.tensor([True, False, True, True])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_enumerated_gradient_is_that_of_the_enumerated_elbo(case):
    model, guide, supports, kwargs = CASES[case]
    expected = by_hand(model, guide, supports, **kwargs)
    found = by_enumeration(Objective(model, guide, (), kwargs), 2048)
    assert found.how == f"enumeration of {math.prod(map(len, supports.values()))} states"
    torch.testing.assert_close(found.gradient, expected, atol=1e-5, rtol=1e-5)
    assert found.error == 0
    if case in ("plate", "scaled", "masked"):
        parallel = by_enumeration(Objective(model, guide, (), kwargs), 3)
        assert parallel.how == "parallel enumeration"
        torch.testing.assert_close(parallel.gradient, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_score_function_agrees_with_enumeration(case):
    model, guide, _, kwargs = CASES[case]
    objective = Objective(model, guide, (), kwargs)
    exact = by_enumeration(objective, 2048).gradient
    found = by_score_function(objective, range(40))
    assert found.how == "leave-one-out score function, 400 draws"
    assert found.error < 0.5 * exact.norm()
    assert (found.gradient - exact).norm() < 3.5 * found.error


def test_the_baseline_of_two_draws_is_the_other_one(monkeypatch):
    """Two are enough to see whether a draw is in its own baseline: half the gradient goes then."""
    monkeypatch.setattr(reference, "DRAWS", 2)
    objective = Objective(plated, plated_guide)
    exact = by_enumeration(objective, 2048).gradient
    found = by_score_function(objective, range(150))
    assert found.error < 0.3 * exact.norm()
    assert (found.gradient - exact).norm() < 3.5 * found.error


def test_a_parallel_enumeration_with_another_loss_is_none():
    """A plate whose elements are not independent, which nobody but the loss can tell."""

    def model():
        with pyro.plate("bits", 12):
            z = pyro.sample("z", BernoulliStraightThrough(T, logits=torch.zeros(12)))
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.full((12,), 9.0))

    def guide():
        with pyro.plate("bits", 12):
            pyro.sample("z", BernoulliStraightThrough(T, logits=parameter("logits", 12)))

    assert by_enumeration(Objective(model, guide), 2048) is None


def test_a_law_without_a_plate_has_one_cost_for_all_its_elements():
    """Its elements meet in one observation; and a mask that hides its score from the loss."""

    def laws(mask):
        law = BernoulliStraightThrough(T, logits=parameter("logits", 3)).to_event(1)
        return law.mask(False) if mask else law

    def guide(mask):
        pyro.sample("z", laws(mask))

    def model(mask):
        z = pyro.sample("z", laws(mask))
        pyro.sample("x", dist.Normal(z.prod(-1) + z.sum(-1), 0.5), obs=DATA[2])

    for mask in (True, False):
        objective = Objective(model, guide, (mask,))
        exact = by_enumeration(objective, 2048)
        assert exact.how == "enumeration of 8 states"
        probs = parameter("logits", 3).sigmoid()
        states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
        chances = (states * probs + (1 - states) * (1 - probs)).prod(-1)
        f = dist.Normal(states.prod(-1) + states.sum(-1), 0.5).log_prob(DATA[2])
        leaf = pyro.param("logits").unconstrained()
        (expected,) = torch.autograd.grad(-(chances * f).sum(), leaf)
        torch.testing.assert_close(exact.gradient, expected.double(), atol=1e-5, rtol=1e-5)
        found = by_score_function(objective, range(40))
        assert (found.gradient - exact.gradient).norm() < 3.5 * found.error


def test_continuous_sites_stay_pathwise():
    """Against a quadrature over the continuous site."""

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=w))
        pyro.sample("x", dist.Normal(w + 2 * z, 1.0), obs=DATA[2])

    def guide():
        w = pyro.sample("w", dist.Normal(parameter("loc", 1).squeeze(), 0.7))
        pyro.sample(
            "z", BernoulliStraightThrough(T, logits=w + pyro.param("shift", torch.ones(())))
        )

    objective = Objective(model, guide)
    assert by_enumeration(objective, 2048) is None
    loc, shift = torch.tensor(-0.4, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    nodes, weights = (torch.tensor(part).float() for part in np.polynomial.hermite_e.hermegauss(60))
    w = loc + 0.7 * nodes
    q = (w + shift).sigmoid()
    total = 0.0
    for z, chance in ((0.0, 1 - q), (1.0, q)):
        f = (
            dist.Normal(0.0, 1.0).log_prob(w)
            + dist.Bernoulli(logits=w).log_prob(torch.tensor(z))
            + dist.Normal(w + 2 * z, 1.0).log_prob(DATA[2])
            - dist.Normal(loc, 0.7).log_prob(w)
            - chance.log()
        )
        total = total - (weights * chance * f).sum() / weights.sum()
    expected = torch.stack(torch.autograd.grad(total, [loc, shift])).double()
    found = by_score_function(objective, range(60))
    assert found.error < 0.3 * expected.norm()
    assert (found.gradient - expected).norm() < 3.5 * found.error


def test_a_model_that_cannot_be_enumerated_in_parallel_is_sampled():
    """Its sum over the plate would run over the states as well, and give another loss."""

    def model():
        with pyro.plate("bits", 12):
            z = pyro.sample("z", BernoulliStraightThrough(T, logits=torch.zeros(12)))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(9.0))

    def guide():
        with pyro.plate("bits", 12):
            pyro.sample("z", BernoulliStraightThrough(T, logits=parameter("logits", 12)))

    report = gradient_report(
        model, guide, estimators=["reinmax"], temperatures=[1.0], num_samples=50,
        num_exact_samples=500, progress=False,
    )  # fmt: skip
    assert report.exact_by == "leave-one-out score function, 500 draws"
    assert 0 < report.exact_error < 0.4 * report.exact_norm
    (row,) = report.rows
    assert row.bias < 3 * row.bias_error  # quadratic again, but for the error of the exact one


def test_events_in_a_plate_have_costs_of_their_own():
    """Two sites an element in one event, of which Pyro enumerates none."""
    table = torch.tensor([[0.3, -1.0], [1.0, 0.2], [-0.5, 0.7]])

    def model():
        with pyro.plate("points", 4):
            z = pyro.sample("z", one_of_three(torch.zeros(4, 2, 3)).to_event(1))
            pyro.sample("x", dist.Normal((z @ table).flatten(-2).square().sum(-1), 1.0), obs=DATA)

    def guide():
        with pyro.plate("points", 4):
            pyro.sample("z", one_of_three(parameter("logits", 4, 2, 3)).to_event(1))

    objective = Objective(model, guide)
    assert by_enumeration(objective, 2048) is None  # 3^8 states
    pairs = torch.stack([torch.stack(pair) for pair in itertools.product(torch.eye(3), repeat=2)])
    law = one_of_three(parameter("logits", 4, 2, 3)).to_event(1)
    log_q = law.log_prob(pairs.unsqueeze(1))
    log_p = one_of_three(torch.zeros(4, 2, 3)).to_event(1).log_prob(pairs.unsqueeze(1))
    means = (pairs @ table).flatten(-2).square().sum(-1)
    log_p = log_p + dist.Normal(means.unsqueeze(-1), 1.0).log_prob(DATA)
    loss = -(log_q.exp() * (log_p - log_q)).sum()
    (expected,) = torch.autograd.grad(loss, pyro.param("logits").unconstrained())
    found = by_score_function(objective, range(40))
    assert found.error < 0.5 * expected.norm()
    assert (found.gradient - expected.flatten().double()).norm() < 3.5 * found.error


def test_one_subsample_is_kept():
    """Else the gradients would differ by the points that they have seen."""

    def model():
        with pyro.plate("points", 4, subsample_size=2) as index:
            z = pyro.sample("z", one_of_three(torch.zeros(2, 3)))
            pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[index])

    def guide():
        logits = parameter("logits", 4, 3)
        with pyro.plate("points", 4, subsample_size=2) as index:
            pyro.sample("z", one_of_three(logits[index]))

    objective = Objective(model, guide)
    exact = by_enumeration(objective, 2048)
    assert exact.how == "enumeration of 9 states"
    rows = exact.gradient.reshape(4, 3).abs().sum(-1)
    assert (rows > 0).sum() == 2
    again = by_enumeration(objective, 2048)
    assert torch.equal(again.gradient, exact.gradient)
    found = by_score_function(objective, range(100))
    assert (found.gradient - exact.gradient).norm() < 3.5 * found.error


@pytest.mark.parametrize(
    "law",
    [
        lambda logits: SubsetStraightThrough(T, 2, logits=logits),
        lambda logits: PlackettLuceStraightThrough(T, 2, logits=logits),
        lambda logits: CategoricalStraightThrough(T, logits=logits).expand([2]).to_event(1),
        lambda logits: CategoricalStraightThrough(T, logits=logits).expand_by([2]).to_event(1),
    ],
)
def test_every_row_and_form(law):
    def model():
        z = pyro.sample("z", law(torch.zeros(3)))
        pyro.sample("x", dist.Normal((z @ MEANS).sum(), 1.0), obs=DATA[0])

    def guide():
        pyro.sample("z", law(parameter("logits", 3)))

    report = gradient_report(
        model, guide, estimators=["gumbel_softmax", "gumbel_rao", "straight_through"],
        temperatures=[0.3], num_samples=20, progress=False,
    )  # fmt: skip
    assert report.exact_by.startswith("enumeration")
    assert all(math.isfinite(row.bias) for row in report.rows)


# What the handler does.


def test_estimator_and_temperature_are_replaced_and_nothing_else():
    seen = []

    def mine(logits, temperature, perturbed, hard, link):
        seen.append(temperature.item())
        return link(perturbed, temperature)

    law = one_of_three(torch.zeros(3))

    def model():
        z = pyro.sample("z", law)
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])

    quadratic_guide()
    before = pyro.param("logits").detach().clone()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    report = gradient_report(
        model, quadratic_guide, estimators=[mine, gapped(2.0), gumbel_rao(samples=3)],
        temperatures=[0.2, 0.9], num_samples=5, progress=False,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert set(np.round(seen, 5)) == {0.2, 0.9}
    assert [row.estimator for row in report.rows][::2] == [
        "mine", "gapped(gap=2.0)", "gumbel_rao(samples=3)",
    ]  # fmt: skip
    assert [row.temperature for row in report.rows] == [0.2, 0.9] * 3
    assert law.temperature == T
    assert law.estimator.__name__ == "gumbel_softmax"
    assert torch.equal(pyro.param("logits"), before)
    assert pyro.param("logits").unconstrained().grad is None


def test_it_repeats_itself():
    reports = []
    for state in (1, 2):
        torch.manual_seed(state)
        report = gradient_report(
            quadratic, quadratic_guide, estimators=["gumbel_softmax"], temperatures=[0.5],
            num_samples=10, progress=False,
        ).to_dict()  # fmt: skip
        del report["rows"][0]["milliseconds"]
        reports.append(report)
    assert reports[0] == reports[1]


def test_a_plain_prior_under_two_losses():
    """Its divergence is exact under TraceMeanField_ELBO; under Trace_ELBO its gradient is there."""

    def model():
        z = pyro.sample("z", dist.OneHotCategorical(logits=torch.tensor([2.0, 0.0, -2.0])))
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])

    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        report = gradient_report(
            model, quadratic_guide, estimators=["reinmax"], temperatures=[1.0], elbo=elbo,
            num_samples=300, progress=False,
        )  # fmt: skip
        (row,) = report.rows
        assert row.bias / row.bias_error < 3
        assert report.exact_norm > 5 * row.bias_error  # so that a lost part would be seen


def test_an_autoguide_and_keyword_arguments():
    def model(x=None):
        with pyro.plate("points", len(x)):
            z = pyro.sample("z", one_of_three(torch.tensor([0.2, 0.0, -0.2])))
            pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=x)

    guide = AutoRelaxed(model, T)
    report = gradient_report(
        model, guide, kwargs={"x": DATA}, estimators=["reinmax"], temperatures=[1.0],
        num_samples=200, progress=False,
    )  # fmt: skip
    (row,) = report.rows
    assert report.num_parameters == 12
    assert row.bias < 3 * row.bias_error
    exact = TraceEnum_ELBO(max_plate_nesting=1)
    loss = exact.differentiable_loss(model, pyro.infer.config_enumerate(guide), x=DATA)
    (expected,) = torch.autograd.grad(loss, pyro.param("AutoRelaxed.logits.z").unconstrained())
    assert report.exact_norm == pytest.approx(expected.norm().item(), rel=1e-4)


# How it is read.


def report_of_two():
    return gradient_report(
        quadratic, quadratic_guide, estimators=["reinmax", gapped(2.0)], temperatures=[1.0, 0.1],
        num_samples=20, progress=False,
    )  # fmt: skip


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


def test_the_progress_bar(capsys):
    keywords = {"estimators": ["reinmax"], "temperatures": [1.0], "num_samples": 5}
    gradient_report(quadratic, quadratic_guide, **keywords)
    assert "gradients: 100%" in capsys.readouterr().err
    gradient_report(quadratic, quadratic_guide, **keywords, progress=False)
    assert capsys.readouterr().err == ""


def soft_guide():
    pyro.sample("z", RelaxedBernoulli(T, logits=parameter("logits", 1)[0]))


def soft_model():
    pyro.sample("z", RelaxedBernoulli(T, 0.5))


def fixed_guide():
    pyro.sample("z", one_of_three(torch.zeros(3)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"estimators": "reinmax"}, TypeError, "`estimators` must be a list .*'reinmax'; write"),
        ({"estimators": []}, TypeError, r"`estimators` must be a list of one or more, got \[\]"),
        ({"estimators": ["reimax"]}, ValueError, "`estimator` must be one of"),
        ({"temperatures": 0.5}, TypeError, r"`temperatures` must be a list .*write temp.*\[0.5\]"),
        ({"temperatures": [0.0]}, ValueError, "`temperatures` must be a finite number above 0"),
        ({"num_samples": 1}, ValueError, "`num_samples` must be .* 2 or more, got 1; write"),
        ({"num_exact_samples": DRAWS}, ValueError, "`num_exact_samples` must be .* 20 or more"),
        ({"elbo": RenyiELBO()}, TypeError, "`elbo` must be a Trace_ELBO .*RenyiELBO; write"),
        ({"elbo": JitTrace_ELBO()}, TypeError, "`elbo` must be .*, got JitTrace_ELBO; write"),
        ({"elbo": Trace_ELBO}, TypeError, "`elbo` must be .*, got the class Trace_ELBO; write"),
        ({"num_samples": 10**400}, ValueError, r"`num_samples` must be .*below 2\*\*63.*1329 bits"),
        ({"temperatures": [10**400]}, ValueError, "`temperatures` must be .*, got inf; write"),
        ({"seed": math.inf}, TypeError, "`seed` must be a Python int, got float; write seed=0"),
        ({"seed": 1.5}, TypeError, "`seed` must be a Python int, got float; write seed=0"),
        ({"seed": None}, TypeError, "`seed` must be a Python int, got NoneType; write seed=0"),
        ({"seed": "x"}, TypeError, "`seed` must be a Python int, got str; write seed=0"),
        ({"seed": True}, TypeError, "`seed` must be a Python int, got bool; write seed=0"),
        ({"seed": 10**30}, ValueError, r"`seed` must be from -2\*\*63 to .*100 bits; write seed=0"),
        (
            {"seed": 2**64 - 1},
            ValueError,
            r"`seed` must be .* 2\*\*64 - 2, got 18446744073709551615",
        ),
        ({"args": DATA}, TypeError, r"`args` must be a tuple or list .*, got Tensor; write \(x,\)"),
        ({"kwargs": [1]}, TypeError, "`kwargs` must be a dictionary, got list; write"),
        ({"model": soft_model, "guide": soft_guide}, ValueError, "`guide` must have a latent site"),
        ({"guide": fixed_guide}, ValueError, "`guide` must have parameters, got none"),
    ],
)
def test_bad_arguments(change, error, words):
    arguments = {"model": quadratic, "guide": quadratic_guide, "progress": False, **change}
    with pytest.raises(error, match=words):
        gradient_report(**arguments)


# Models that are not what their plates say, and randomness outside of the sites.


def agree(objective, expected, groups=40, most=0.5):
    """The score function against an exact gradient."""
    found = by_score_function(objective, range(groups))
    assert found.error < most * expected.norm()
    assert (found.gradient - expected).norm() < 3.5 * found.error


def meeting():
    """Bits of a plate that meet in a bit outside, on which all elements of the plate depend."""
    points = pyro.plate("points", 4)
    with points:
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=torch.zeros(4)))
    w = pyro.sample("w", BernoulliStraightThrough(T, logits=z.sum() - 2))
    with points:
        pyro.sample("x", dist.Normal(z + 3 * w, 0.5), obs=DATA)


def meeting_guide():
    with pyro.plate("points", 4):
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=parameter("logits", 4)))
    pyro.sample("w", BernoulliStraightThrough(T, logits=2 * z.sum() - 4))


def normalised():
    """The elements of the plate are normalised over it."""
    with pyro.plate("points", 4):
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=torch.zeros(4)))
        pyro.sample("x", dist.Normal(3 * (z - z.mean()), 0.5), obs=DATA)


def normalised_guide():
    with pyro.plate("points", 4):
        pyro.sample("z", BernoulliStraightThrough(T, logits=parameter("logits", 4)))


@pytest.mark.parametrize(("model", "guide"), [
    (meeting, meeting_guide), (normalised, normalised_guide),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*possibly invalid dependency:RuntimeWarning")
def test_elements_that_are_not_independent_have_one_cost(model, guide):
    pyro.enable_validation(False)
    objective = Objective(model, guide)
    assert objective.independent == set()
    exact = by_enumeration(objective, 2048)
    assert exact.how.startswith("enumeration of")
    agree(objective, exact.gradient)
    assert by_enumeration(Objective(model, guide), 10) is None


def test_independent_elements_are_found_so():
    assert Objective(plated, plated_guide).independent == {("z", -1)}
    assert Objective(shared, shared_guide).independent == {("w", -1)}


def test_data_in_another_plate_are_outside():
    """Enumerated in parallel, the sum over the plate would be over one element: always 1."""
    n = torch.tensor([4.0, 3.0])

    def model():
        with pyro.plate("bits", 12):
            z = pyro.sample("z", BernoulliStraightThrough(T, torch.full((12,), 1 / 12)))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=n)

    def guide():
        logits = pyro.param("logits", torch.full((12,), -math.log(11.0)))
        with pyro.plate("bits", 12):
            pyro.sample("z", BernoulliStraightThrough(T, logits=logits))

    pyro.enable_validation(False)
    assert by_enumeration(Objective(model, guide), 2048) is None


def test_a_continuous_site_without_a_pathwise_gradient_has_its_score():
    def model():
        w = pyro.sample("w", dist.VonMises(0.0, 1.0))
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=w))
        pyro.sample("x", dist.Normal(w + z, 0.5), obs=DATA[2])

    def guide():
        loc = pyro.param("loc", torch.tensor(0.3))
        pyro.sample("w", dist.VonMises(loc, 4.0))
        pyro.sample("z", BernoulliStraightThrough(T, 0.4))

    objective = Objective(model, guide)
    assert by_enumeration(objective, 2048) is None
    leaf = torch.tensor(0.3, requires_grad=True)
    w = torch.linspace(-math.pi, math.pi, 2001)[:-1]
    q = dist.VonMises(leaf, 4.0)
    total = 0.0
    for z, chance in ((0.0, 0.6), (1.0, 0.4)):
        f = dist.VonMises(0.0, 1.0).log_prob(w) - q.log_prob(w) - math.log(chance)
        f = f + dist.Bernoulli(logits=w).log_prob(torch.tensor(z))
        f = f + dist.Normal(w + z, 0.5).log_prob(DATA[2])
        total = total - chance * (q.log_prob(w).exp() * f).sum() * 2 * math.pi / 2000
    (expected,) = torch.autograd.grad(total, leaf)
    agree(objective, expected.reshape(1).double())


def test_states_that_cannot_be_are_left_out():
    """They have no finite loss; whichever comes first."""

    def law(logits):
        return one_of_three(torch.where(allowed, logits, -torch.inf))

    def model():
        z = pyro.sample("z", law(torch.tensor([0.2, 0.0, -0.2])))
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])

    def guide():
        pyro.sample("z", law(parameter("logits", 3)))

    for impossible in range(3):
        allowed = torch.arange(3) != impossible
        found = by_enumeration(Objective(model, guide), 2048)
        leaf = pyro.param("logits").unconstrained()
        q = leaf[allowed].log_softmax(-1)
        log_p = torch.tensor([0.2, 0.0, -0.2])[allowed].log_softmax(-1)
        log_p = log_p + dist.Normal(MEANS[allowed], 1.0).log_prob(DATA[0])
        (expected,) = torch.autograd.grad(-(q.exp() * (log_p - q)).sum(), leaf)
        torch.testing.assert_close(found.gradient, expected.double(), atol=1e-6, rtol=1e-5)


def test_other_randomness_is_not_enumerated():
    def dropped():
        z = pyro.sample("z", one_of_three(torch.zeros(3)))
        pyro.sample("x", dist.Normal(z @ MEANS * torch.rand(()), 1.0), obs=DATA[0])

    def latent():
        quadratic()
        pyro.sample("w", dist.Normal(0.0, 1.0))

    assert by_enumeration(Objective(dropped, quadratic_guide), 2048) is None
    assert by_enumeration(Objective(latent, quadratic_guide), 2048) is None


def test_sites_and_parameters_of_one_branch():
    def model():
        z = pyro.sample("z", BernoulliStraightThrough(T, 0.1))
        mean = pyro.sample("w", one_of_three(torch.zeros(3))) @ MEANS if z > 0 else z
        pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[2])

    def guide():
        z = pyro.sample("z", BernoulliStraightThrough(T, logits=parameter("logits", 2)[1]))
        if z > 0:
            pyro.sample("w", one_of_three(parameter("inner", 3)))

    objective = Objective(model, guide)
    assert sum(leaf.numel() for leaf in objective.parameters) == 5
    exact = by_enumeration(objective, 2048)
    assert exact.how == "enumeration of 4 states"
    agree(objective, exact.gradient)


# Errors of the errors, and where there is nothing to see.


def test_the_error_of_the_cosine():
    """Against its spread over seeds."""
    rows = rows_of_seeds(8, chain, chain_guide, "straight_through", num_samples=60)
    for name in ("cosine", "progress"):
        spread = np.std([getattr(row, name) for row in rows], ddof=1)
        claimed = np.mean([getattr(row, f"{name}_error") for row in rows])
        assert 0.3 < claimed / spread < 3


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


def test_it_works_where_gradients_are_off_and_takes_tensors():
    with torch.no_grad():
        report = gradient_report(
            quadratic, quadratic_guide, estimators=[lambda *a: a[4](a[2], a[1])] * 2,
            temperatures=torch.tensor([0.5, 1.0]), num_samples=5, progress=False,
        )  # fmt: skip
    assert report.exact_norm > 0.1
    assert [row.temperature for row in report.rows] == [0.5, 1.0] * 2
    assert len({row.estimator for row in report.rows}) == 2


def test_the_ends_of_the_seeds_and_a_seed_of_numpy():
    def deviation(seed):
        report = gradient_report(
            quadratic, quadratic_guide, estimators=["reinmax"], temperatures=[np.array(1.0)],
            num_samples=20, seed=seed, progress=False,
        )  # fmt: skip
        return report.rows[0].standard_deviation

    assert deviation(np.int64(3)) == deviation(3) != deviation(4)
    for seed in (-(2**63), 2**64 - 2):
        assert deviation(seed) > 0


def test_subsets_have_the_estimators_that_know_them():
    def model():
        z = pyro.sample("z", SubsetStraightThrough(T, 2, logits=torch.zeros(3)))
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])

    def guide():
        pyro.sample("z", SubsetStraightThrough(T, 2, logits=parameter("logits", 3)))

    report = gradient_report(model, guide, num_samples=3, temperatures=[1.0], progress=False)
    found = [row.estimator for row in report.rows]
    assert found == ["gumbel_rao", "gumbel_softmax", "straight_through"]
    with pytest.raises(ValueError, match="got Hypersimplex"):
        gradient_report(model, guide, estimators=["reinmax"], progress=False)


# Where the parameters of a guide are.


class Amortised(torch.nn.Module):
    """A model and a guide with networks, of which one of the two tells Pyro, or each its own."""

    def __init__(self, cls, subsample_size=None):
        super().__init__()
        torch.manual_seed(0)
        self.cls, self.subsample_size = cls, subsample_size
        self.encoder = torch.nn.Linear(1, math.prod(param_shape(cls)))
        self.decoder = torch.nn.Linear(math.prod(law_of(cls, T, logits=self.logits()).shape()), 1)

    def logits(self, x=DATA[:1]):
        return self.encoder(x.unsqueeze(-1)).reshape(*x.shape, *param_shape(self.cls))

    def plate(self):
        return pyro.plate("points", 2, subsample_size=self.subsample_size)

    def model(self, registered):
        for name in registered:
            pyro.module(name, getattr(self, name))
        with self.plate() as index:
            z = pyro.sample("z", law_of(self.cls, T, logits=torch.zeros(param_shape(self.cls))))
            mean = self.decoder(z.reshape(len(index), -1)).squeeze(-1)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[index])

    def guide(self, registered):
        with self.plate() as index:
            pyro.sample("z", law_of(self.cls, T, logits=self.logits(DATA[index])))

    def registering_guide(self, registered):
        pyro.module("encoder", self.encoder)
        self.guide(registered)


def numbers(report):
    rows = report.to_dict()
    for row in rows["rows"]:
        del row["milliseconds"]
    return rows


@pytest.mark.parametrize("subsample_size", [None, 1])
@pytest.mark.parametrize("cls", HARD)
def test_modules_that_the_model_registers_are_the_guides_too(cls, subsample_size):
    """The same numbers as where the guide registers them, and none of the model's own."""
    keywords = {"estimators": ["straight_through"], "temperatures": [1.0], "num_samples": 5}
    networks = Amortised(cls, subsample_size)
    reports = []
    for guide, registered in (
        (networks.registering_guide, []),
        (networks.guide, ["encoder"]),
        (networks.guide, ["decoder", "encoder"]),
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        arguments = (networks.model, guide, (registered,))
        reports.append(numbers(gradient_report(*arguments, **keywords, progress=False)))
    assert reports[0]["num_parameters"] == sum(p.numel() for p in networks.encoder.parameters())
    assert reports[0]["exact_norm"] > 1e-3
    assert reports[1] == reports[2] == reports[0]


def test_a_module_that_nobody_registers_is_refused():
    networks = Amortised(BernoulliStraightThrough)
    with pytest.raises(
        ValueError, match=r"must have parameters, got none.*pyro.module\(\"net\", net"
    ):
        gradient_report(networks.model, networks.guide, (["decoder"],), progress=False)


def test_a_parameter_of_the_model_that_the_guide_uses_without_noise():
    """It is the value of a site; one that the model alone uses is none of the guide's."""

    def model():
        mean, scale = pyro.param("mean", torch.tensor(0.3)), pyro.param("scale", torch.tensor(1.0))
        pyro.sample("m", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", BernoulliStraightThrough(T, 0.5))
        pyro.sample("x", dist.Normal(z + mean, scale), obs=DATA[0])

    def guide():
        pyro.sample("m", dist.Delta(pyro.get_param_store()["mean"]))
        pyro.sample("z", BernoulliStraightThrough(T, 0.4))

    poutine.trace(model).get_trace()
    objective = Objective(model, guide)
    assert len(objective.parameters) == 1
    assert objective.parameters[0] is pyro.param("mean").unconstrained()


@pytest.mark.parametrize("sites", [None, ["y"]])
def test_the_gradient_of_a_partly_observed_site(sites):
    """Against the elbo of the missing bits, by enumeration."""
    mask, data = torch.tensor([True, False, True]), torch.tensor([1.0, 0.0, 0.0])

    @relaxed(temperature=T, sites=sites)
    def model():
        with pyro.plate("bits", 3):
            y = pyro.sample("y", dist.Bernoulli(0.3), obs=data, obs_mask=mask)
        pyro.sample("x", dist.Normal(y.sum(), 0.5), obs=torch.tensor(2.0))

    guide = AutoRelaxed(model, T)
    report = gradient_report(
        model, guide, estimators=["reinmax"], temperatures=[1.0], num_samples=100, progress=False
    )
    logits = torch.tensor([0.3, 0.3, 0.3]).logit().requires_grad_()
    q = logits[1].sigmoid()
    elbo = q * (dist.Normal(2.0, 0.5).log_prob(torch.tensor(2.0)) + math.log(0.3) - q.log())
    elbo = elbo + (1 - q) * (
        dist.Normal(1.0, 0.5).log_prob(torch.tensor(2.0)) + math.log(0.7) - (1 - q).log()
    )
    (exact,) = torch.autograd.grad(elbo, logits)
    assert report.num_parameters == 3
    assert report.exact_norm == pytest.approx(exact.norm().item(), rel=1e-4)
    assert report.rows[0].cosine > 0.9
    assert report.rows[0].bias < 4 * report.rows[0].bias_error
