# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Counts in models: enumeration, the pathwise gradient and exact divergences."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    JitTrace_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)

from pyro_gumbel import (
    AutoRelaxed,
    BetaBinomialStraightThrough,
    BinomialStraightThrough,
    relaxed,
)
from tests.common import assert_same_mean

DATA = torch.tensor([1.5, 3.0], dtype=torch.float64)
CLASSES = {
    "Binomial": (
        dist.Binomial,
        BinomialStraightThrough,
        lambda cls, x: cls(4, logits=x),
    ),
    "BetaBinomial": (
        dist.BetaBinomial,
        BetaBinomialStraightThrough,
        lambda cls, x: cls(x.exp(), (-x).exp(), torch.tensor(4.0)),
    ),
}


def program(cls, make):
    def model():
        p = pyro.param("p", torch.tensor([0.2, -0.3], dtype=torch.float64))
        with pyro.plate("data", 2):
            z = pyro.sample("z", make(cls, p))
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)

    def guide():
        q = pyro.param("q", torch.tensor([0.5, 0.1], dtype=torch.float64))
        with pyro.plate("data", 2):
            pyro.sample("z", make(cls, q))

    return model, guide


def loss_and_gradients(elbo, model, guide):
    pyro.clear_param_store()
    with pyro.poutine.trace(param_only=True) as trace:
        loss = elbo.loss_and_grads(model, guide)
    params = {name: node["value"].unconstrained().grad for name, node in trace.trace.nodes.items()}
    return torch.as_tensor(loss), params


@pytest.mark.parametrize("how", ["parallel", "sequential"])
@pytest.mark.parametrize("name", CLASSES)
def test_enumeration_is_that_of_the_plain_class(name, how):
    plain, named, make = CLASSES[name]
    found = []
    for cls in (plain, named):
        model, guide = program(cls, make)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        found.append(loss_and_gradients(elbo, model, config_enumerate(guide, how)))
    (expected_loss, expected), (loss, gradients) = found
    torch.testing.assert_close(loss, expected_loss)
    assert expected["q"].abs().min() > 0.01
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_loss_and_its_gradient(objective):
    """A normal likelihood is quadratic in the count: with the exact divergence it is unbiased."""
    plain, named, make = CLASSES["Binomial"]
    exact_model, exact_guide = program(plain, make)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    exact_loss, exact = loss_and_gradients(elbo, exact_model, config_enumerate(exact_guide))
    elbo = objective(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    runs = [loss_and_gradients(elbo, *program(named, make)) for _ in range(40)]
    assert_same_mean(torch.stack([loss for loss, _ in runs]), exact_loss)
    if objective is TraceMeanField_ELBO:
        assert_same_mean(torch.stack([gradients["q"] for _, gradients in runs]), exact["q"])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit itself
@pytest.mark.parametrize("name", CLASSES)
def test_a_traced_program(name):
    _, named, make = CLASSES[name]
    model, guide = program(named, make)
    found = []
    for cls in (Trace_ELBO, JitTrace_ELBO):
        pyro.clear_param_store()
        elbo = cls(ignore_jit_warnings=True)
        elbo.loss_and_grads(model, guide)  # traces
        q = pyro.param("q").unconstrained()
        q.grad = None
        pyro.set_rng_seed(0)
        elbo.loss_and_grads(model, guide)
        found.append(q.grad)
    torch.testing.assert_close(*found)


def test_a_count_in_the_model_alone():
    """The plain model, whose prior passes a gradient to the value of the guide."""
    model, _ = program(dist.Binomial, CLASSES["Binomial"][2])
    _, guide = program(BinomialStraightThrough, CLASSES["Binomial"][2])
    elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    _, gradients = loss_and_gradients(elbo, model, guide)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


PROBS = torch.tensor([0.3, 0.6])
INCOMPLETE = {
    "Binomial": lambda: dist.Binomial(4, PROBS),
    "BetaBinomial": lambda: dist.BetaBinomial(PROBS, PROBS, 4),
    "sparse Poisson": lambda: dist.Poisson(PROBS, is_sparse=True).to_event(1),
    "sparse DirichletMultinomial": lambda: dist.DirichletMultinomial(PROBS, 4, is_sparse=True),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_a_guide_refuses_a_prior_that_drops_a_part_of_its_gradient(name):
    def model():
        with pyro.plate("data", 2):
            pyro.sample("z", INCOMPLETE[name]())

    with pytest.raises(ValueError, match="passes only a part of its gradient"):
        AutoRelaxed(model)()
    assert AutoRelaxed(relaxed(model))()["z"].shape[0] == 2
