# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient report against planted cases, and what it asks of its arguments."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    BinomialStraightThrough,
    CategoricalStraightThrough,
    LearnedCurvature,
    PlackettLuceStraightThrough,
    PoissonStraightThrough,
    RelaxedBernoulli,
    SubsetStraightThrough,
    gapped,
    gradient_report,
    gumbel_rao,
    relax,
    relaxed,
)
from pyro_gumbel.infer.exact_gradient import DRAWS
from tests.common import random_state
from tests.infer.models import (
    DATA,
    MEANS,
    T,
    chain,
    chain_guide,
    one_of_three,
    parameter,
    quadratic,
    quadratic_guide,
)

# Bias, noise and progress.


def elbo_gradient_in_sample(z, q):
    """Of f(z) = log p(x, z) - log q(z), the log probabilities extended linearly."""
    log_p = torch.tensor([0.2, 0.0, -0.2]).log_softmax(-1)
    return log_p - q.log() + (DATA[0] - z @ MEANS) * MEANS


def planted(name):
    """Exact gradient of the loss, bias and standard deviation of an estimator at temperature 1."""
    logits = torch.linspace(-0.4, 0.7, 3)
    q = logits.softmax(-1)
    outcomes = torch.eye(3)
    log_p = torch.tensor([0.2, 0.0, -0.2]).log_softmax(-1)
    f = log_p - q.log() + dist.Normal(outcomes @ MEANS, 1.0).log_prob(DATA[0])

    def jacobian(p):
        return torch.diag(p) - torch.outer(p, p)

    exact = -jacobian(q) @ f
    gradients = []
    for z in outcomes:
        slope = elbo_gradient_in_sample(z, q)
        if name == "straight_through":
            surrogate = jacobian(q) @ slope
        else:
            surrogate = 2 * jacobian((q + z) / 2) @ slope - jacobian(q) @ slope / 2
        own = z - q  # the gradient of log q(z) in its own parameter, which is exact
        gradients.append(-(surrogate - own))
    gradients = torch.stack(gradients)
    mean = q @ gradients
    sd = (q @ (gradients - mean).square().sum(-1)).sqrt()
    return exact, (mean - exact).norm().item(), sd.item()


@pytest.mark.parametrize("name", ["straight_through", "reinmax"])
def test_a_planted_case(name):
    """Given the sample, the gradient of these two estimators is known: they have no other noise."""
    report = gradient_report(
        quadratic, quadratic_guide, estimators=[name], temperatures=[1.0], num_samples=2400,
        progress=False,
    )  # fmt: skip
    (row,) = report.rows
    exact, bias, sd = planted(name)
    assert report.exact_norm == pytest.approx(exact.norm().item(), rel=1e-5)
    assert report.exact_error == 0
    assert row.standard_deviation == pytest.approx(sd, rel=0.1)
    assert row.bias_error == pytest.approx(sd / math.sqrt(2400), rel=0.1)
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
    """The mean effect of noise is taken off; without a bias the rest is often below 0."""
    rows = rows_of_seeds(16, quadratic, quadratic_guide, "reinmax", num_samples=20)
    assert 2 < sum(row.bias == 0 for row in rows) < 16
    assert len({row.standard_deviation for row in rows}) > 8


@pytest.mark.slow
def test_the_error_of_the_cosine():
    """Against its spread over seeds."""
    rows = rows_of_seeds(8, chain, chain_guide, "straight_through", num_samples=60)
    for name in ("cosine", "progress"):
        spread = np.std([getattr(row, name) for row in rows], ddof=1)
        claimed = np.mean([getattr(row, f"{name}_error") for row in rows])
        assert 0.3 < claimed / spread < 3


# Estimators and temperatures are replaced, and nothing else.


def test_estimator_and_temperature_are_replaced_and_nothing_else():
    seen = []

    def mine(logits, temperature, perturbed, hard, link):
        seen.append(temperature.item())
        return link(perturbed, temperature)

    distribution = one_of_three(torch.zeros(3))

    def model():
        z = pyro.sample("z", distribution)
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])

    quadratic_guide()
    before = pyro.param("logits").detach().clone()
    torch.manual_seed(3)
    state = random_state()
    report = gradient_report(
        model, quadratic_guide, estimators=[mine, gapped(2.0), gumbel_rao(samples=3)],
        temperatures=[0.2, 0.9], num_samples=5, progress=False,
    )  # fmt: skip
    assert torch.equal(random_state(), state)
    assert set(np.round(seen, 5)) == {0.2, 0.9}
    assert [row.estimator for row in report.rows][::2] == [
        "mine", "gapped(gap=2.0)", "gumbel_rao(samples=3)",
    ]  # fmt: skip
    assert [row.temperature for row in report.rows] == [0.2, 0.9] * 3
    assert distribution.temperature == T
    assert distribution.estimator.__name__ == "gumbel_softmax"
    assert torch.equal(pyro.param("logits"), before)
    assert pyro.param("logits").unconstrained().grad is None


@pytest.mark.parametrize(
    "distribution",
    [
        lambda logits: SubsetStraightThrough(T, 2, logits=logits),
        lambda logits: PlackettLuceStraightThrough(T, 2, logits=logits),
        lambda logits: CategoricalStraightThrough(T, logits=logits).expand([2]).to_event(1),
        lambda logits: CategoricalStraightThrough(T, logits=logits).expand_by([2]).to_event(1),
    ],
)
def test_every_family_and_wrapper(distribution):
    def model():
        z = pyro.sample("z", distribution(torch.zeros(3)))
        pyro.sample("x", dist.Normal((z @ MEANS).sum(), 1.0), obs=DATA[0])

    def guide():
        pyro.sample("z", distribution(parameter("logits", 3)))

    report = gradient_report(
        model, guide, estimators=["gumbel_softmax", "gumbel_rao", "straight_through"],
        temperatures=[0.3], num_samples=20, progress=False,
    )  # fmt: skip
    assert report.exact_by.startswith("enumeration")
    assert all(math.isfinite(row.bias) for row in report.rows)


def test_subsets_have_the_estimators_that_support_them():
    def model():
        z = pyro.sample("z", SubsetStraightThrough(T, 2, logits=torch.zeros(3)))
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])

    def guide():
        pyro.sample("z", SubsetStraightThrough(T, 2, logits=parameter("logits", 3)))

    report = gradient_report(model, guide, num_samples=3, temperatures=[1.0], progress=False)
    found = [row.estimator for row in report.rows]
    assert found == ["second_order", "gumbel_rao", "gumbel_softmax", "straight_through"]
    with pytest.raises(ValueError, match="got Hypersimplex"):
        gradient_report(model, guide, estimators=["reinmax"], progress=False)


def test_the_default_estimators_are_those_of_all_sites():
    def model():
        z = pyro.sample("z", SubsetStraightThrough(T, 2, logits=torch.zeros(3)))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z @ MEANS + b, 1.0), obs=DATA[0])

    def guide():
        pyro.sample("z", SubsetStraightThrough(T, 2, logits=parameter("logits", 3)))
        pyro.sample("b", BernoulliStraightThrough(T, logits=torch.tensor(0.0)))

    report = gradient_report(model, guide, num_samples=3, temperatures=[1.0], progress=False)
    found = [row.estimator for row in report.rows]
    assert found == ["second_order", "gumbel_rao", "gumbel_softmax", "straight_through"]


@pytest.mark.usefixtures("equal_draws")
def test_an_estimator_that_learns_is_measured_as_it_is():
    """At no curvature it is `straight_through` at a temperature of 1, and it stays so."""
    estimator = LearnedCurvature((3,), step=1.0)
    estimators = [estimator, "straight_through"]
    report = gradient_report(
        quadratic, quadratic_guide, estimators=estimators, temperatures=[1.0], num_samples=50
    )
    learned, plain = report.rows
    assert learned.estimator == repr(estimator)
    assert learned.temperature is None
    for name in ("bias", "standard_deviation"):
        assert getattr(learned, name) == pytest.approx(getattr(plain, name), rel=1e-4)
    assert estimator.training
    assert not estimator.curvature.any()


def test_second_order_has_one_row_without_a_temperature():
    """The first by default. The sites have it whatever they were written with, and the reverse."""
    seen = []

    def mine(logits, temperature, perturbed, hard, link):
        seen.append(temperature.item())
        return link(perturbed, temperature)

    def written(distribution):
        def guide():
            pyro.sample("z", distribution(logits=parameter("logits", 3)))

        return guide

    ways = {
        "second order": CategoricalStraightThrough,
        "reinmax": lambda logits: CategoricalStraightThrough(
            1.0, None, logits, estimator="reinmax"
        ),
        "softmax": lambda logits: CategoricalStraightThrough(torch.tensor(0.2), None, logits),
    }
    reports = []
    for way in ways.values():
        pyro.clear_param_store()
        report = gradient_report(
            quadratic, written(way), estimators=["second_order", "reinmax", mine],
            temperatures=[1.0, 0.7], num_samples=10, progress=False,
        )  # fmt: skip
        assert [row.temperature for row in report.rows] == [None, 1.0, 0.7, 1.0, 0.7]
        reports.append([(row.bias, row.standard_deviation) for row in report.rows])
        assert reports[-1][0] == pytest.approx(reports[-1][1], rel=1e-4)  # reinmax at 1 is the same
    assert reports[0] == reports[1] == reports[2]
    assert set(np.round(seen, 5)) == {0.7, 1.0}
    default = gradient_report(
        quadratic, quadratic_guide, num_samples=2, temperatures=[1.0], progress=False
    )
    assert [row.estimator for row in default.rows] == [
        "second_order", "gapped", "gumbel_rao", "gumbel_softmax", "mve", "reinmax", "reinmax_rao",
        "straight_through",
    ]  # fmt: skip


def test_what_constructors_warn_about_is_not_warned():
    """Warnings are errors here. Of the user's code they still come through."""

    def guide():
        logits = parameter("logits", 3)
        pyro.sample("z", CategoricalStraightThrough(0.1, None, logits, estimator="gapped"))

    def model():
        quadratic()
        warnings.warn("reinmax is nice", stacklevel=1)

    keywords = {"temperatures": [0.1, 0.5], "num_samples": 2, "progress": False}
    report = gradient_report(quadratic, guide, estimators=["reinmax", "gapped"], **keywords)
    assert len(report.rows) == 4
    with pytest.warns(UserWarning, match="gapped: expected"):
        guide()
    with pytest.warns(UserWarning, match="reinmax is nice"):
        gradient_report(model, quadratic_guide, estimators=["reinmax"], **keywords)


# Counts.


def counts_model():
    z = pyro.sample("z", dist.Poisson(2.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[2])


def counts_guide():
    pyro.sample("z", PoissonStraightThrough(parameter("log_rate", 2)[1].exp()))


def test_a_guide_of_counts_has_a_row_for_each_order():
    report = gradient_report(counts_model, counts_guide, num_samples=100, progress=False)
    found = [(row.estimator, row.temperature) for row in report.rows]
    assert found == [("second_order", None), ("third_order", None)]
    assert report.exact_by.startswith("enumeration of 19 states, all but tails")
    for row in report.rows:
        assert row.bias < 4 * row.bias_error  # up to the lgamma of the prior, it is quadratic
    with pytest.raises(ValueError, match=r"`estimators` must be second_order .*, got 'reinmax'"):
        gradient_report(counts_model, counts_guide, estimators=["reinmax"], progress=False)


@pytest.mark.parametrize("wrapped", [lambda d: d, lambda d: d.expand((1,)).to_event(1)])
def test_a_row_replaces_the_estimator_of_counts(wrapped):
    """Whatever the guide was written with."""

    def model():
        z = pyro.sample("z", wrapped(BinomialStraightThrough(6, torch.tensor(0.5))))
        pyro.factor("x", 0.1 * z.sum() ** 3)

    def guide_of(order):
        def guide():
            count = BinomialStraightThrough(6, logits=parameter("logits", 1)[0])
            pyro.sample("z", relax(wrapped(count), estimator=order))

        return guide

    found = []
    for order in ("second_order", "third_order"):
        pyro.clear_param_store()
        report = gradient_report(model, guide_of(order), num_samples=5, progress=False)
        found.append([(row.bias, row.standard_deviation) for row in report.rows])
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_third_order_has_a_row_for_counts_alone():
    def guide():
        counts_guide()
        pyro.sample("b", BernoulliStraightThrough(logits=parameter("logits", 1)[0]))

    def model():
        counts_model()
        pyro.sample("b", dist.Bernoulli(0.5))

    keywords = {"estimators": ["third_order"], "num_samples": 2, "progress": False}
    words = "must not have third_order unless .* got a BernoulliStraightThrough; write"
    with pytest.raises(ValueError, match=words):
        gradient_report(model, guide, **keywords)
    report = gradient_report(counts_model, counts_guide, **keywords)
    assert [row.estimator for row in report.rows] == ["third_order"]


@pytest.mark.slow
def test_counts_keep_their_estimator_beside_other_sites():
    def model():
        b = pyro.sample("b", dist.Bernoulli(0.4))
        n = pyro.sample("n", dist.Binomial(3, 0.5))
        pyro.sample("x", dist.Normal(b + n, 1.0), obs=DATA[2])

    def guide():
        logits = parameter("logits", 2)
        pyro.sample("b", BernoulliStraightThrough(logits=logits[0]))
        pyro.sample("n", BinomialStraightThrough(3, logits=logits[1]))

    keywords = {"temperatures": [0.5], "num_samples": 50, "progress": False}
    report = gradient_report(model, guide, **keywords)
    assert report.exact_by == "enumeration of 8 states"
    temperatures = {row.estimator: row.temperature for row in report.rows}
    assert {name for name, tau in temperatures.items() if tau is None} == {
        "second_order", "mve", "reinmax_rao",
    }  # fmt: skip
    assert len(report.rows) == len(temperatures) == 8
    assert report.rows[0].bias < 4 * report.rows[0].bias_error
    quick = {"estimators": ["gumbel_softmax", "second_order"], **keywords}
    only = gradient_report(model, guide, params=lambda name: name == "logits", **quick)
    assert len(only.rows) == 2


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


def test_the_progress_bar(capsys):
    keywords = {"estimators": ["reinmax"], "temperatures": [1.0], "num_samples": 5}
    gradient_report(quadratic, quadratic_guide, **keywords)
    assert "gradients: 100%" in capsys.readouterr().err
    gradient_report(quadratic, quadratic_guide, **keywords, progress=False)
    assert capsys.readouterr().err == ""


# Models and guides.


def test_a_plain_prior_under_two_losses():
    """Under TraceMeanField_ELBO its divergence is exact; under Trace_ELBO its gradient is kept."""

    def model():
        z = pyro.sample("z", dist.OneHotCategorical(logits=torch.tensor([2.0, 0.0, -2.0])))
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])

    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        report = gradient_report(
            model, quadratic_guide, estimators=["reinmax"], temperatures=[1.0], elbo=elbo,
            num_samples=150, progress=False,
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


@pytest.mark.parametrize("sites", [None, ["y"]])
def test_the_gradient_of_a_partly_observed_site(sites):
    """Against the ELBO of the missing elements, by enumeration."""
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


def test_a_model_that_cannot_be_enumerated_in_parallel_is_sampled():
    """In parallel, its sum over the plate would also be over the states, and the loss differ."""

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
    assert row.bias < 3 * row.bias_error  # quadratic, so reinmax is unbiased


# Errors.


def relaxed_guide():
    pyro.sample("z", RelaxedBernoulli(T, logits=parameter("logits", 1)[0]))


def relaxed_model():
    pyro.sample("z", RelaxedBernoulli(T, 0.5))


def fixed_guide():
    pyro.sample("z", one_of_three(torch.zeros(3)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"steps": 0},
            ValueError,
            "`steps` must be a finite number above 0, got 0; write steps=1000",
        ),
        ({"params": "x"}, ValueError, r"`params` must choose from .*\['logits'\], got 'x'; write"),
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
        (
            {"model": relaxed_model, "guide": relaxed_guide},
            ValueError,
            "`guide` must have a latent site",
        ),
        ({"guide": fixed_guide}, ValueError, "`guide` must have parameters, got none"),
    ],
)
def test_bad_arguments(change, error, words):
    arguments = {"model": quadratic, "guide": quadratic_guide, "progress": False, **change}
    with pytest.raises(error, match=words):
        gradient_report(**arguments)
