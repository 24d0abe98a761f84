# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Guides of counts: where they start, what their parameters mean, what they refuse."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from scipy import stats

from pyro_gumbel import AutoRelaxed, PoissonStraightThrough, relax, relaxed
from pyro_gumbel.distributions.mean_field import mean_field_of
from tests.common import z_bound
from tests.counts import COUNTS, make_count, parameters_of, support_of


def sampled(distribution):
    """A model of one site, in as many plates as its batch has dimensions."""

    def model():
        with pyro.plate_stack("plates", distribution().batch_shape):
            pyro.sample("z", distribution())

    return relaxed(model)


def guide_of(distribution):
    """Of a model of one site, after its first run."""
    pyro.clear_param_store()
    guide = AutoRelaxed(sampled(distribution))
    guide()
    return guide


def mean_field(distribution):
    return mean_field_of(relax(distribution))


@pytest.mark.parametrize("name", COUNTS)
def test_it_starts_at_the_prior(name):
    plain = make_count(name, parameters_of(name, (2,)), parent=True)
    q = guide_of(lambda: plain).distribution("z")
    assert q.batch_shape == (2,)
    values = support_of(name, most=20).unsqueeze(1)
    torch.testing.assert_close(q.log_prob(values), plain.log_prob(values))


TWO = torch.tensor([0.3, -0.7])
THREE = torch.tensor([1.3, -0.7, 2.0])  # not normalised
N = 7

# A prior, the parameters of the guide and the distribution that it has with them.
FORMS = {
    "Poisson": (dist.Poisson(2.0), {"log_rate": TWO}, lambda: dist.Poisson(TWO.exp())),
    "Binomial": (dist.Binomial(N, 0.5), {"logits": TWO}, lambda: dist.Binomial(N, logits=TWO)),
    "BetaBinomial": (
        dist.BetaBinomial(2.0, 2.0, N),
        {"logits": TWO, "log_concentration": -TWO},
        lambda: dist.BetaBinomial(
            (-TWO).exp() * TWO.sigmoid(), (-TWO).exp() * (1 - TWO.sigmoid()), N
        ),
    ),
    "NegativeBinomial": (
        dist.GammaPoisson(2.0, 2.0),
        {"log_mean": TWO, "log_total_count": 1 - TWO},
        lambda: dist.NegativeBinomial(
            (1 - TWO).exp(), probs=TWO.exp() / (TWO.exp() + (1 - TWO).exp())
        ),
    ),
    "Multinomial": (
        dist.Multinomial(N, torch.ones(3)),
        {"logits": THREE},
        lambda: dist.Multinomial(N, THREE.exp()),
    ),
    "DirichletMultinomial": (
        dist.DirichletMultinomial(torch.ones(3), N),
        {"logits": THREE, "log_concentration": torch.tensor([0.4])},
        lambda: dist.DirichletMultinomial(math.exp(0.4) * THREE.softmax(-1), N),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_parameters(name):
    prior, parameters, expected = FORMS[name]
    form = mean_field(prior)
    assert tuple(parameters) == form.names
    q, expected = form.distribution(parameters, None, None, 0), expected()
    values = expected.sample((30,))
    torch.testing.assert_close(q.log_prob(values), expected.log_prob(values))


def odds(*probs):
    return torch.tensor(probs).logit()


# Two priors of different runs, and the parameters to start at.
MEANS = {
    "Poisson": (dist.Poisson(1.0), dist.Poisson(4.0), {"log_rate": math.log(2.5)}),
    "a rate of 0": (dist.Poisson(0.0), dist.Poisson(4.0), {"log_rate": math.log(2.0)}),
    "Binomial": (  # and a probability of 1/2
        dist.Binomial(N, odds(0.2).sigmoid()),
        dist.Binomial(N, torch.ones(1)),
        {"logits": odds(1.7 / 3)},
    ),
    "BetaBinomial": (
        dist.BetaBinomial(1.0, 3.0, N),
        dist.BetaBinomial(4.0, 4.0, N),
        {"logits": -math.log(3) / 2, "log_concentration": math.log(32) / 2},
    ),
    "NegativeBinomial": (
        dist.NegativeBinomial(2.0, logits=torch.tensor(0.0)),
        dist.NegativeBinomial(4.0, logits=torch.tensor(math.log(2.5))),
        {"log_mean": math.log(6), "log_total_count": math.log(3)},
    ),
    "Geometric": (
        dist.Geometric(torch.tensor(1.0)),
        dist.Geometric(torch.tensor(0.2)),
        {"log_mean": math.log(2), "log_total_count": 0.0},
    ),
    "Multinomial": (  # and equal probabilities
        dist.Multinomial(N, torch.tensor([0.5, 0.5, 0.0])),
        dist.Multinomial(N, torch.tensor([0.1, 0.9, 0.0])),
        {"logits": (torch.tensor([2.8, 5.2, 1.0]) / 9).log()},
    ),
    "DirichletMultinomial": (
        dist.DirichletMultinomial(torch.tensor([1.0, 3.0]), N),
        dist.DirichletMultinomial(torch.tensor([4.0, 4.0]), N),
        {
            "logits": torch.tensor([0.125, 0.375]).log() / 2,
            "log_concentration": torch.tensor([32.0]).log() / 2,
        },
    ),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_prior_that_varies_is_averaged(name):
    *priors, expected = MEANS[name]
    form, other = (mean_field(prior) for prior in priors)
    start = form.start_at_mean([form.prior, other.prior])
    assert start.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(start[key], torch.as_tensor(value), rtol=1e-5, atol=1e-6)


CERTAIN = {
    "Poisson": (lambda: dist.Poisson(torch.zeros(2)), 0.0),
    "Binomial": (lambda: dist.Binomial(N, torch.tensor([0.0, 1.0])), torch.tensor([0.0, N])),
    "no trials": (lambda: dist.Binomial(0, torch.tensor([0.3, 0.7])), 0.0),
    "NegativeBinomial": (lambda: dist.NegativeBinomial(3.0, torch.zeros(2)), 0.0),
    "no failures": (lambda: dist.NegativeBinomial(torch.zeros(2), torch.tensor(0.3)), 0.0),
    "Geometric": (lambda: dist.Geometric(torch.ones(2)), 0.0),
    "Multinomial": (
        lambda: dist.Multinomial(N, torch.tensor([[0.0, 1.0], [1.0, 0.0]])),
        torch.tensor([[0.0, N], [N, 0.0]]),
    ),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_certain_stays_certain(name):
    distribution, expected = CERTAIN[name]
    guide = guide_of(distribution)
    loss = Trace_ELBO().differentiable_loss(sampled(distribution), guide)
    assert abs(loss.item()) < 1e-5
    loss.backward()
    for parameter in guide.parameters():
        assert parameter.grad.isfinite().all()
    assert (guide.distribution("z").sample((20,)) == expected).all()


# The number of trials.


@pytest.mark.parametrize(
    ("both", "got"),
    [([5.0, 7.0], "5 and 7; "), ([[5.0], [5.0, 5.0]], r"the shapes \(1,\) and \(2,\); ")],
)
def test_trials_that_differ_from_run_to_run_are_refused(both, got):
    trials = itertools.cycle(both)

    def model():
        pyro.sample("z", dist.Binomial(torch.tensor(next(trials)), torch.tensor(0.5)))

    words = rf'"z".*`total_count` must be the same in every run, got {got}'
    with pytest.raises(ValueError, match=words):
        AutoRelaxed(relaxed(model))()


def test_trials_in_a_subsampled_plate():
    """Equal numbers are one number, as the guide sees only a part of them."""

    def model(trials):
        with pyro.plate("data", 4, subsample_size=2) as index:
            pyro.sample("z", dist.Binomial(trials[index], torch.tensor(0.5)))

    guide = AutoRelaxed(relaxed(model))
    guide(torch.full((4,), 5.0))
    assert guide.distribution("z").batch_shape == (4,)
    assert (guide.distribution("z").total_count == 5).all()
    words = r"expected one total_count for a subsampled plate, got a tensor of shape \(2,\)"
    with pytest.raises(NotImplementedError, match=words):
        AutoRelaxed(relaxed(model))(torch.arange(4.0))


def test_trials_that_differ_in_a_plate():
    trials = torch.tensor([0.0, 3.0, 5.0])
    guide = guide_of(lambda: dist.BetaBinomial(2.0, 2.0, trials))
    assert torch.equal(guide.distribution("z").total_count, trials)


@pytest.mark.parametrize(
    "distribution", [dist.Binomial(3, torch.tensor(0.5)), dist.BetaBinomial(2.0, 3.0, 3)]
)
def test_a_plain_prior_that_drops_a_part_of_the_gradient_is_refused(distribution):
    def model():
        pyro.sample("z", distribution)

    with pytest.raises(ValueError, match=r"the model must be relaxed.*model = relaxed\(model\)"):
        AutoRelaxed(model)()
    AutoRelaxed(relaxed(model))()
    AutoRelaxed(lambda: pyro.sample("z", dist.Poisson(3.0)))()


def test_thinning_is_refused_with_the_sites_to_write():
    def thinned():
        n = pyro.sample("n", dist.Poisson(4.0))
        pyro.sample("part", dist.Binomial(n, 0.3))

    with pytest.raises(ValueError, match=r'"part".*rate \* p\)\) and rest = .*, and n = part \+ r'):
        AutoRelaxed(relaxed(thinned))()

    def apart():
        part = pyro.sample("part", dist.Poisson(4.0 * 0.3))
        return part + pyro.sample("rest", dist.Poisson(4.0 * (1 - 0.3)))

    assert AutoRelaxed(relaxed(apart))().keys() == {"part", "rest"}


# Sites of other guides. The lines are those of the errors.


def two_kinds(count, soft=False):
    """A model of a count and a one-hot vector in one plate."""

    def model(x):
        with pyro.plate("points", len(x)):
            n = pyro.sample("n", count)
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(n + z @ torch.arange(3.0), 1.0), obs=x)

    return relaxed(model, 0.5, hard=False, sites=["z"]) if soft else relaxed(model)


def assert_trains(model, guide):
    x = torch.tensor([0.0, 2.0, 5.0])
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    assert math.isfinite(SVI(model, guide, pyro.optim.Adam({}), elbo).step(x))


def test_a_count_without_a_guide_gets_one_in_a_list():
    rates = torch.tensor([1.0, 5.0])
    model = two_kinds(dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Poisson(rates)))
    with pytest.raises(TypeError, match=r'"n".*got a MixtureSameFamily; .*hide.*inside guide.plat'):
        AutoRelaxed(model)(torch.zeros(3))
    guide = AutoGuideList(model)
    guide.append(AutoRelaxed(poutine.block(model, hide=["n"])))

    def own(x):
        rate = pyro.param("rate", torch.ones(3), constraint=dist.constraints.positive)
        with guide.plates["points"]:
            pyro.sample("n", PoissonStraightThrough(rate))

    guide.append(own)
    assert_trains(model, guide)


def test_a_count_beside_a_relaxed_site_has_a_guide_of_its_own():
    model = two_kinds(dist.Poisson(3.0), soft=True)
    with pytest.raises(TypeError, match=r'"n".*no relaxed form for hard=False, got a Poisson; wri'):
        AutoRelaxed(model, 0.5, hard=False)(torch.zeros(3))
    guide = AutoGuideList(model)
    guide.append(AutoRelaxed(poutine.block(model, hide=["n"]), 0.5, hard=False))
    guide.append(AutoRelaxed(poutine.block(model, expose=["n"])))
    assert_trains(model, guide)


# Medians and quantiles.


def test_the_median_is_the_most_probable_count():
    for distribution, expected in (
        (dist.Poisson(3.5), 3.0),
        (dist.Binomial(20, torch.tensor(0.9)), 18.0),
        (dist.Geometric(torch.tensor(0.1)), 0.0),
        (dist.Multinomial(3, torch.tensor([0.01, 0.97, 0.02])), [0.0, 3.0, 0.0]),
        (dist.BetaBinomial(30.0, 3000.0, torch.tensor([10.0])), [0.0]),
    ):
        guide = guide_of(lambda distribution=distribution: distribution)
        assert guide.median()["z"].tolist() == expected


def test_quantiles_of_counts():
    """Those of 1,000 draws: between the counts at levels a few standard errors away."""
    q = torch.tensor([0.05, 0.5, 0.95])
    error = z_bound(15) * (q * (1 - q) / 1000).sqrt()
    rate, probs = torch.tensor([1.0, 9.5]), torch.tensor([0.2, 0.3, 0.5])
    for distribution, inverse in (
        (dist.Poisson(rate), lambda level: stats.poisson.ppf(level, rate.cpu())),
        (dist.Multinomial(9, probs), lambda level: stats.binom.ppf(level, 9, probs.cpu())),
    ):
        found = guide_of(lambda d=distribution: d).quantiles(q)["z"]
        lower, upper = (
            torch.as_tensor(inverse((q + side * error).unsqueeze(-1).cpu())) for side in (-1, 1)
        )
        assert found.shape == lower.shape
        assert ((lower <= found) & (found <= upper)).all()
