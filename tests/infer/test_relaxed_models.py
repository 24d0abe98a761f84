# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Relaxed models inside Pyro: prediction, rendering, other guides and samplers."""

import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    config_enumerate,
    infer_discrete,
)
from pyro.infer.autoguide import AutoNormal
from pyro.infer.mcmc.util import initialize_model

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    harden,
    relaxed,
)
from tests.common import first_fast
from tests.infer.sites import PROBS, T, clusters, train

THREE = torch.tensor([0.2, 0.3, 0.5])
DATA = torch.tensor([0.7, -0.4, 1.9, 3.0])


def graph(hard):
    """A chain of two latents, and data."""

    @relaxed(temperature=T, hard=hard)
    def model(x=None):
        a = pyro.sample("a", dist.OneHotCategorical(THREE))
        with pyro.plate("data", 4):
            b = pyro.sample("b", dist.Bernoulli(logits=a @ torch.tensor([-1.0, 0.0, 1.0])))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    return model


@pytest.mark.parametrize("hard", [True, False])
def test_predictive(hard):
    predictive = Predictive(graph(hard), num_samples=500, parallel=True)
    draws = predictive()
    assert draws["b"].shape == (500, 4)
    share = draws["a"].reshape(500, 3).argmax(-1).bincount(minlength=3) / 500
    assert (share - THREE).abs().max() < 0.1
    assert draws["b"].eq(draws["b"].round()).all() == hard


@pytest.mark.parametrize("hard", [True, False])
def test_render_model(hard):
    source = pyro.render_model(graph(hard), model_args=(DATA,), render_distributions=True).source
    assert "a -> b" in source
    assert "b -> x" in source
    names = ("CategoricalStraightThrough", "RelaxedCategorical")
    assert names[0 if hard else 1] in source


def test_infer_discrete_draws_from_the_posterior():
    @infer_discrete(first_available_dim=-2)
    @config_enumerate
    @relaxed(temperature=T)
    def sampled(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z

    share = sampled(torch.full((20_000,), 1.5)).mean()
    odds = 0.3 / 0.7 * torch.tensor(1.5 - 0.5).exp()
    assert (share - odds / (1 + odds)).abs() < 0.02


def test_compute_marginals_of_an_enumerated_site():
    def model():
        pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    marginal = elbo.compute_marginals(relaxed(model, T), lambda: None)["z"]
    torch.testing.assert_close(marginal.probs, torch.tensor(0.3))


@pytest.mark.parametrize("settings", [(), (T,)])
def test_compute_marginals_of_a_relaxed_site(settings):
    """Pyro constructs the class of the site without a temperature."""
    model = relaxed(lambda: pyro.sample("z", dist.Bernoulli(0.3)), *settings)
    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    marginal = elbo.compute_marginals(config_enumerate(model), lambda: None)["z"]
    torch.testing.assert_close(marginal.probs, torch.tensor(0.3))


def test_a_guide_is_relaxed_like_a_model():
    """The datum says that the category is the second of three."""

    def model():
        z = pyro.sample("z", dist.OneHotCategorical(THREE))
        pyro.sample(
            "x", dist.Normal(z @ torch.tensor([-3.0, 0.0, 3.0]), 0.5), obs=torch.tensor(0.0)
        )

    def guide():
        pyro.sample("z", dist.OneHotCategorical(logits=pyro.param("logits", torch.zeros(3))))

    svi = SVI(relaxed(model, T), relaxed(guide, T), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(200):
        svi.step()
    assert pyro.param("logits").softmax(-1)[1] > 0.95


@pytest.mark.slow
def test_a_guide_relaxed_by_hand_finds_the_posterior_of_a_plain_model():
    def model():
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.7, 0.1, 0.1, 0.1])))
        pyro.sample("x", dist.Normal(z @ torch.tensor([0.0, 0.5, 1.0, 1.5]), 1.0), obs=x)

    @relaxed(temperature=0.3)
    def guide():
        logits = pyro.param("logits", torch.zeros(4))
        pyro.sample("z", dist.OneHotCategorical(logits=logits))

    x = torch.tensor(0.8)
    elbo = Trace_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.02 ** (1 / 300)}), elbo)
    for _ in range(300):
        svi.step()
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1])
    likelihood = dist.Normal(torch.tensor([0.0, 0.5, 1.0, 1.5]), 1.0).log_prob(x)
    exact = (prior.log() + likelihood).softmax(-1)
    assert (pyro.param("logits").softmax(-1) - exact).abs().max() < 0.03


# Other guides, and samplers.


def continuous(x, subsample_size=None, z_class=None, b_class=None):
    """A shift, and discrete sites of two families with the given classes."""
    shift = pyro.sample("shift", dist.Normal(0.0, 5.0))
    b = pyro.sample("b", (b_class or dist.Bernoulli)(probs=torch.tensor(0.3)))
    with pyro.plate("points", len(x), subsample_size=subsample_size) as index:
        distribution = z_class or dist.OneHotCategorical
        z = pyro.sample("z", distribution(probs=torch.tensor([0.5, 0.5])))
        mean = shift + b + z @ torch.tensor([0.0, 4.0])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])


def by_hand(hard, **keywords):
    straight_through = (CategoricalStraightThrough, BernoulliStraightThrough)
    z_class, b_class = straight_through if hard else (RelaxedCategorical, RelaxedBernoulli)
    return partial(continuous, z_class=partial(z_class, T), b_class=partial(b_class, T), **keywords)


def losses(model, make_guide, x, steps=20):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(model, make_guide(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    return [svi.step(x) for _ in range(steps)]


@pytest.mark.parametrize("subsample_size", [None, 3])
def test_a_normal_guide_of_a_continuous_model(subsample_size):
    """All sites continuous: step by step as for the model written by hand."""
    x, _ = clusters(6)
    model = relaxed(partial(continuous, subsample_size=subsample_size), T, hard=False)
    expected = losses(by_hand(False, subsample_size=subsample_size), AutoNormal, x)
    assert losses(model, AutoNormal, x) == expected
    assert all(map(math.isfinite, expected))


@pytest.mark.parametrize("subsample_size", [None, 3])
def test_a_normal_guide_of_the_continuous_sites(subsample_size):
    x, _ = clusters(6)

    def guide(model):
        return AutoNormal(poutine.block(model, hide=["z", "b"]))

    model = relaxed(partial(continuous, subsample_size=subsample_size), T)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found vars in model but not guide")
        expected = losses(by_hand(True, subsample_size=subsample_size), guide, x)
        assert losses(model, guide, x) == expected
    with pytest.raises(ValueError, match="cannot handle discrete sample site"):
        AutoNormal(model)(x)


def chain_of(model, x, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    kernel = NUTS(model, step_size=0.1, adapt_step_size=False, max_tree_depth=3, **options)
    sampler = MCMC(kernel, num_samples=5, warmup_steps=2, disable_progbar=True)
    sampler.run(x)
    return sampler.get_samples()


def test_nuts_on_a_continuous_model():
    x, _ = clusters(4)
    expected = chain_of(by_hand(False), x)
    found = chain_of(relaxed(continuous, T, hard=False), x)
    assert set(found) == {"shift", "b", "z"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_nuts_beside_enumerated_straight_through_sites():
    """The energy is the same as with plain sites, which are summed out too."""
    x, _ = clusters(4)
    energy = [
        initialize_model(model, model_args=(x,))[1]
        for model in (relaxed(continuous, T), by_hand(True), continuous)
    ]
    for shift in torch.linspace(-3, 5, 7):
        at = [potential({"shift": shift}) for potential in energy]
        torch.testing.assert_close(at[0], at[2])
        assert torch.equal(at[0], at[1])
    assert set(chain_of(relaxed(continuous, T), x)) == {"shift"}


def test_hardened_values_inside_a_continuous_model():
    """The likelihood gets discrete values, whatever the guide."""
    seen = []

    @relaxed(temperature=T, hard=False)
    def model():
        z = pyro.sample("z", dist.OneHotCategorical(PROBS))
        seen.append(harden(z))
        pyro.sample("x", dist.Normal(seen[-1] @ torch.arange(4.0), 1.0), obs=torch.tensor(1.0))

    for guide in (AutoNormal(model), AutoRelaxed(model, T, hard=False)):
        pyro.clear_param_store()
        train(model, guide, Trace_ELBO(), steps=3)
    assert len(seen) >= 6
    assert all(((z == 0) | (z == 1)).all() for z in seen)


def assignments(x):
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)


def local_logits(x):
    logits = pyro.param("logits", lambda: torch.zeros(len(x)))
    with pyro.plate("points", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logits))


@pytest.mark.parametrize(
    ("estimator", "temperature", "error"),
    first_fast(
        [
            ("gumbel_softmax", 0.1, 0.03),
            ("gumbel_softmax", 0.5, 0.09),
            ("gumbel_softmax", 1.0, 0.12),
            ("reinmax", 1.0, 0.02),
        ]
    ),
)
def test_two_clusters_against_enumeration(estimator, temperature, error):
    x = torch.randn(200) + 3 * torch.bernoulli(torch.full((200,), 0.5))
    exact = torch.sigmoid(3 * x - 4.5)
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    model, guide = (
        relaxed(part, temperature, estimator=estimator) for part in (assignments, local_logits)
    )
    train(model, guide, elbo, steps=600, rate=0.3, args=(x,))
    found = pyro.param("logits").detach().sigmoid()
    assert ((found > 0.5) == (exact > 0.5)).float().mean() >= 0.98
    assert (found - exact).abs().mean() <= error
