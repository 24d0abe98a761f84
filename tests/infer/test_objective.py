# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The parameters that a gradient is taken in, and the subsample that is kept."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_gumbel import BernoulliStraightThrough, gradient_report
from pyro_gumbel.infer.exact_gradient import by_enumeration, by_score_function
from pyro_gumbel.infer.objective import Objective
from tests.common import STRAIGHT_THROUGH, build, param_shape
from tests.infer.models import DATA, MEANS, T, one_of_three, parameter


class Amortised(torch.nn.Module):
    """A model and a guide with a network each; either of them may register both."""

    def __init__(self, cls, subsample_size=None):
        super().__init__()
        torch.manual_seed(0)
        self.cls, self.subsample_size = cls, subsample_size
        self.encoder = torch.nn.Linear(1, math.prod(param_shape(cls)))
        self.decoder = torch.nn.Linear(math.prod(build(cls, T, logits=self.logits()).shape()), 1)

    def logits(self, x=DATA[:1]):
        return self.encoder(x.unsqueeze(-1)).reshape(*x.shape, *param_shape(self.cls))

    def plate(self):
        return pyro.plate("points", 2, subsample_size=self.subsample_size)

    def model(self, registered):
        for name in registered:
            pyro.module(name, getattr(self, name))
        with self.plate() as index:
            z = pyro.sample("z", build(self.cls, T, logits=torch.zeros(param_shape(self.cls))))
            mean = self.decoder(z.reshape(len(index), -1)).squeeze(-1)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[index])

    def guide(self, registered):
        with self.plate() as index:
            pyro.sample("z", build(self.cls, T, logits=self.logits(DATA[index])))

    def registering_guide(self, registered):
        pyro.module("encoder", self.encoder)
        self.guide(registered)


def numbers(report):
    rows = report.to_dict()
    for row in rows["rows"]:
        del row["milliseconds"]
    return rows


@pytest.mark.parametrize("subsample_size", [None, 1])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_modules_that_the_model_registers_are_the_guides_too(cls, subsample_size):
    """The report is that of a guide which registers them; the model's own are left out."""
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
    """It is the value of a site. A parameter that only the model uses does not count."""

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


def test_one_subsample_is_kept():
    """With other subsamples the gradients would differ by their data."""

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
