# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Third order in models: which sites have it, and where training by it ends."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoGuideList

from pyro_gumbel import AutoRelaxed, BinomialStraightThrough, estimators, relax, relaxed

SECOND, THIRD = estimators.second_order, estimators.third_order
PRIORS = {
    "Poisson": lambda: dist.Poisson(torch.tensor(3.0)),
    "Binomial": lambda: dist.Binomial(4, torch.tensor(0.3)),
    "NegativeBinomial": lambda: dist.NegativeBinomial(5, torch.tensor(0.3)),
    "Geometric": lambda: dist.Geometric(torch.tensor(0.3)),
    "BetaBinomial": lambda: dist.BetaBinomial(torch.tensor(2.0), torch.tensor(2.0), 5),
    "GammaPoisson": lambda: dist.GammaPoisson(torch.tensor(2.0), torch.tensor(2.0)),
}


def counts():
    for name, prior in PRIORS.items():
        pyro.sample(name, prior().expand((2,)).to_event(1))


def mixed():
    n = pyro.sample("n", dist.Poisson(3.0))
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(n + z, 1.0), obs=torch.tensor(2.0))


def orders(model):
    """The estimator of each site, by name."""
    nodes = poutine.trace(model).get_trace().nodes
    found = {
        name: getattr(node.get("fn"), "base_dist", node.get("fn")) for name, node in nodes.items()
    }
    return {name: base.estimator for name, base in found.items() if hasattr(base, "estimator")}


# Which sites have it.


def test_all_counts_of_a_model_and_of_its_guide():
    model = relaxed(counts, estimator="third_order")
    assert orders(model) == dict.fromkeys(PRIORS, THIRD)
    guide = AutoRelaxed(model, estimator="third_order")
    assert "estimator: third_order, sites: those" in repr(guide)
    assert orders(guide) == dict.fromkeys(PRIORS, THIRD)
    assert orders(copy.deepcopy(guide)) == dict.fromkeys(PRIORS, THIRD)
    assert repr(guide).count("estimator: third_order") == len(PRIORS)
    assert orders(AutoRelaxed(relaxed(counts))) == dict.fromkeys(PRIORS, SECOND)


@pytest.mark.parametrize(
    "run",
    [
        lambda: relaxed(mixed, estimator="third_order")(),
        lambda: AutoRelaxed(relaxed(mixed), estimator="third_order")(),
    ],
)
def test_a_site_that_is_no_count_is_an_error(run):
    words = r'at pyro.sample\("z", ...\): .*`estimator` must not be third_order.*sites='
    with pytest.raises(ValueError, match=words):
        run()


def test_a_count_that_does_not_have_it_is_an_error():
    def model():
        pyro.sample("n", dist.Multinomial(3, torch.ones(2)))

    for run in (
        relaxed(model, estimator="third_order"),
        AutoRelaxed(model, estimator="third_order"),
    ):
        with pytest.raises(ValueError, match=r'"n", ...\): relax: .* got a Multinomial'):
            run()


@pytest.mark.parametrize(
    "model",
    [
        relaxed(relaxed(mixed, estimator="third_order", sites=["n"])),
        relaxed(relaxed(mixed, sites=["z"]), estimator="third_order"),
        relaxed(relaxed(mixed, estimator="third_order", sites=["n"]), estimator="second_order"),
    ],
)
def test_it_is_given_to_the_counts_of_a_mixed_model(model):
    assert orders(model) == {"n": THIRD, "z": SECOND}


def test_guides_of_a_mixed_model():
    guide = AutoGuideList(mixed)
    guide.append(
        AutoRelaxed(poutine.block(mixed, hide=["z"]), estimator="third_order", sites=["n"])
    )
    guide.append(AutoRelaxed(poutine.block(mixed, expose=["z"])))
    assert orders(guide) == {"n": THIRD, "z": SECOND}


# Training.


def cube():
    """A loss that is cubic in a count of 6 trials."""
    z = pyro.sample("z", BinomialStraightThrough(6, torch.tensor(0.5, dtype=torch.float64)))
    pyro.factor("x", z - 0.2 * (z - 3) ** 3)


def guide_of(estimator):
    def guide():
        logits = pyro.param("logits", torch.tensor(0.0, dtype=torch.float64))
        pyro.sample("z", relax(BinomialStraightThrough(6, logits=logits), estimator=estimator))

    return guide


def exact_loss(logit):
    pyro.clear_param_store()
    pyro.param("logits", torch.as_tensor(logit, dtype=torch.float64))
    return TraceEnum_ELBO(max_plate_nesting=0).loss(cube, config_enumerate(guide_of(None)))


def best_loss():
    return min(exact_loss(logit) for logit in torch.linspace(-3, 3, 121))


def trained(estimator):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo = TraceMeanField_ELBO(num_particles=300, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(cube, guide_of(estimator), pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.97}), elbo)
    for _ in range(150):
        svi.step()
    return exact_loss(pyro.param("logits").detach())


@pytest.mark.slow
def test_training_ends_at_the_best_elbo():
    """Second order stops elsewhere: the loss is cubic."""
    best = best_loss()
    assert trained("third_order") - best < 1e-3
    assert trained("second_order") - best > 4e-3


def test_the_loss_is_that_of_second_order():
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        losses = []
        for estimator in (None, "third_order"):
            pyro.clear_param_store()
            pyro.set_rng_seed(3)
            losses.append(elbo.loss(cube, guide_of(estimator)))
        assert losses[0] == losses[1]
