# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The parameters that a gradient is taken in, and the subsample that is kept."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam

from pyro_gumbel import BernoulliStraightThrough, gradient_report
from pyro_gumbel.infer.exact_gradient import by_enumeration, by_score_function
from pyro_gumbel.infer.gradient_settings import choose_parameters
from pyro_gumbel.infer.objective import Objective
from tests.common import STRAIGHT_THROUGH, build, first_fast, param_shape
from tests.infer.models import DATA, MEANS, T, one_of_three, parameter, quadratic


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
@pytest.mark.parametrize("cls", first_fast(STRAIGHT_THROUGH, 2))
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
    assert list(objective.parameters) == ["mean"]
    assert objective.parameters["mean"] is pyro.param("mean").unconstrained()


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
    found = by_score_function(objective, range(40))
    assert (found.gradient - exact.gradient).norm() < 3.5 * found.error


# Some parameters only.


class Guide(PyroModule):
    """Parameters with all kinds of names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 2))
        self.inner = PyroModule[torch.nn.Linear](2, 3)
        self.shift = PyroParam(torch.ones(3))

    def forward(self):
        plain = pyro.param("inner_shift", torch.ones(3))
        logits = self.inner(self.net(DATA[:1])) + self.shift + plain
        pyro.sample("z", one_of_three(logits))


PARAMETERS = {
    "inner_shift": 3, "net$$$0.weight": 2, "net$$$0.bias": 2, "net$$$1.weight": 4,
    "net$$$1.bias": 2, "inner.weight": 6, "inner.bias": 3, "shift": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("params", "chosen"),
    [
        (None, set(PARAMETERS)),
        ("shift", {"shift"}),
        ("net$$$1.bias", {"net$$$1.bias"}),
        ("net", {name for name in PARAMETERS if name.startswith("net")}),
        ("net$$$0", {"net$$$0.weight", "net$$$0.bias"}),
        (("inner", "shift"), {"inner.weight", "inner.bias", "shift"}),
        (lambda name: name.endswith("bias"), {"net$$$0.bias", "net$$$1.bias", "inner.bias"}),
    ],
)
def test_some_parameters(params, chosen):
    """Each has the same gradient as in the report of all."""
    guide = Guide()
    whole = Objective(quadratic, guide)
    assert {name: leaf.numel() for name, leaf in whole.parameters.items()} == PARAMETERS
    found = choose_parameters(whole.parameters, params)
    assert found.keys() == chosen
    everything = by_enumeration(whole, 2048).gradient
    wanted = [
        part
        for name, part in zip(PARAMETERS, everything.split(list(PARAMETERS.values())), strict=True)
        if name in chosen
    ]
    report = gradient_report(
        quadratic, guide, params=params, estimators=["second_order"], num_samples=50,
        progress=False,
    )  # fmt: skip
    assert report.num_parameters == sum(PARAMETERS[name] for name in chosen)
    assert report.exact_norm == pytest.approx(torch.cat(wanted).norm().item(), rel=1e-5)
    assert report.rows[0].bias < 5 * report.rows[0].bias_error


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ("encoder", ValueError, r"\['inner_shift'.*'shift'\], got 'encoder'; write"),
        (["shift", "net$$$"], ValueError, r"got 'net\$\$\$'; write params=\['inner_sh"),
        ("inn", ValueError, "got 'inn'"),
        (lambda name: False, ValueError, "got a function that is true of none"),
        (3, TypeError, "`params` must be a name, a list of names or a function of a name, got 3"),
        ([3], TypeError, r"`params` must be .*, got \[3\]; write"),
        ([], ValueError, "`params` must choose from"),
    ],
)
def test_parameters_that_there_are_not(params, error, words):
    with pytest.raises(error, match=words):
        gradient_report(quadratic, Guide(), params=params, progress=False)


def test_a_parameter_with_two_names_counts_once():
    net = torch.nn.Linear(1, 3)

    def guide():
        pyro.module("one", net)
        pyro.module("two", net)
        pyro.sample("z", one_of_three(net(DATA[:1])))

    for params, number in ((None, 6), ("two", 6), (["one", "two$$$bias"], 6), ("two$$$bias", 3)):
        report = gradient_report(
            quadratic, guide, params=params, estimators=["second_order"], num_samples=2,
            progress=False,
        )  # fmt: skip
        assert report.num_parameters == number
