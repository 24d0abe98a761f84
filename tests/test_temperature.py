# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Schedules against their formulas, in every place of a temperature, and resumed."""

import copy
import io
import math
import pickle
from fractions import Fraction

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam, ClippedAdam

from pyro_gumbel import (
    AutoRelaxed,
    CategoricalStraightThrough,
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    GeometricTemperature,
    LearnableTemperature,
    LinearTemperature,
    RelaxedBernoulli,
    RelaxedCategorical,
    TemperatureSchedule,
    relax,
    relaxed,
)
from tests.common import (
    ALL,
    DISCRETE,
    WITH_INDICES,
    build,
    param_shape,
    random_state,
    set_random_state,
)

HUGE = 10**400  # beyond the floats

SCHEDULES = {
    "constant": lambda: ConstantTemperature(0.7),
    "exponential": lambda: ExponentialTemperature(rate=0.05, floor=0.4, hold=3, initial=2.0),
    "linear": lambda: LinearTemperature(2.0, 0.4, num_steps=10),
    "cosine": lambda: CosineTemperature(2.0, 0.4, num_steps=10),
    "geometric": lambda: GeometricTemperature(2.0, 0.4, num_steps=10),
    "rising": lambda: GeometricTemperature(0.4, 2.0, num_steps=10),
    "learnable": lambda: LearnableTemperature(0.7),
}
FORMULAS = {
    "constant": lambda t: 0.7,
    "exponential": lambda t: max(0.4, 2 * math.exp(-0.05 * (3 * (t // 3)))),
    "linear": lambda t: max(0.4, 2 - 0.16 * t),
    "cosine": lambda t: 0.4 + 0.8 * (1 + math.cos(math.pi * min(t, 10) / 10)),
    "geometric": lambda t: 2 * 0.2 ** (min(t, 10) / 10),
    "rising": lambda t: 0.4 * 5 ** (min(t, 10) / 10),
    "learnable": lambda t: 0.7,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_follows_its_formula(name, dtype):
    torch.set_default_dtype(dtype)
    schedule = SCHEDULES[name]()
    for t in range(100):
        assert schedule().dtype == dtype
        assert schedule().shape == ()
        assert schedule().item() == pytest.approx(FORMULAS[name](t), rel=1e-6)
        schedule.step()


def test_the_last_temperature_is_exact():
    for cls in (LinearTemperature, CosineTemperature, GeometricTemperature):
        schedule = cls(1.0, 1e-8, num_steps=1)
        schedule.step()
        assert schedule().item() == pytest.approx(1e-8)


def test_the_annealing_of_jang_et_al():
    schedule = ExponentialTemperature(rate=1e-5, hold=500)
    schedule.steps.fill_(40_000 + 499)
    assert schedule().item() == pytest.approx(math.exp(-0.4))
    schedule.steps.fill_(1_000_000)
    assert schedule().item() == 0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_step_is_in_the_state(name):
    schedule, fresh = SCHEDULES[name](), SCHEDULES[name]()
    for _ in range(7):
        schedule.step()
    fresh.load_state_dict(schedule.state_dict())
    assert torch.equal(fresh(), schedule())
    assert fresh.steps.item() == 7
    assert torch.equal(copy.deepcopy(schedule)(), schedule())
    assert isinstance(schedule, TemperatureSchedule)


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_goes_wherever_a_temperature_goes(name):
    schedule = SCHEDULES[name]()
    schedule.step()
    tau = schedule().detach()
    logits = torch.zeros(2, 3, dtype=torch.float64)
    distributions = [
        CategoricalStraightThrough(schedule, logits=logits),
        RelaxedCategorical(schedule, logits=logits),
        relax(dist.OneHotCategorical(logits=logits), schedule),
    ]
    for distribution in distributions:
        torch.testing.assert_close(distribution.temperature.detach(), tau.double())
        assert distribution.rsample().dtype == torch.float64

    def model():
        pyro.sample("z", dist.Bernoulli(0.3))

    seen = pyro.poutine.trace(relaxed(model, schedule)).get_trace().nodes["z"]["fn"].temperature
    assert torch.equal(seen, tau)
    guide = AutoRelaxed(relaxed(model, schedule), schedule)
    guide()
    schedule.step()
    assert torch.equal(guide.distribution("z").temperature, schedule().detach())


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (ConstantTemperature(0.5), "ConstantTemperature(value=0.5, steps=0, temperature=0.5)"),
        (
            ExponentialTemperature(1e-4, 0.5, 500),
            "ExponentialTemperature(initial=1, rate=0.0001, floor=0.5, hold=500, steps=0, "
            "temperature=1)",
        ),
        (
            LinearTemperature(1.0, 0.5, 8),
            "LinearTemperature(initial=1, final=0.5, num_steps=8, steps=0, temperature=1)",
        ),
        (LearnableTemperature(0.5), "LearnableTemperature(steps=0, temperature=0.5)"),
        (LearnableTemperature(torch.ones(3)), "LearnableTemperature(steps=0, temperature=(3,))"),
    ],
)
def test_repr(schedule, text):
    assert repr(schedule) == text


def test_kinds_of_numbers():
    """Integers and numbers of numpy; and the most steps that torch can count."""
    for one in (1, np.array(1.0), np.array(1), np.int64(1), np.float32(1)):
        assert ConstantTemperature(one)().item() == 1
        assert LearnableTemperature(one)().item() == 1
    assert LearnableTemperature(torch.tensor([1, 2]))().tolist() == pytest.approx([1, 2])
    most = 2**63 - 1
    for schedule in (LinearTemperature(1.0, 0.5, most), ExponentialTemperature(0.1, hold=most)):
        schedule.step()
        assert schedule().item() == 1


class SoftGuide(PyroModule):
    """A binary variable for each of four plates, with a learnt temperature of its own."""

    def __init__(self):
        super().__init__()
        self.temperature = LearnableTemperature(torch.full((4,), 0.3))
        self.logits = PyroParam(torch.zeros(4))

    def forward(self):
        with pyro.plate("bits", 4):
            return pyro.sample("z", RelaxedBernoulli(self.temperature, logits=self.logits))


def test_a_learnt_temperature_of_a_relaxed_guide_finds_that_of_the_model():
    """The relaxed distributions are one family: the best guide is the prior itself."""

    def model():
        with pyro.plate("bits", 4):
            pyro.sample("z", RelaxedBernoulli(torch.tensor([0.5, 1.0, 0.5, 1.0]), probs=0.5))

    guide = SoftGuide()
    svi = SVI(
        model,
        guide,
        ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / 400)}),
        Trace_ELBO(20, vectorize_particles=True),
    )
    for _ in range(400):
        svi.step()
    expected = torch.tensor([0.5, 1.0, 0.5, 1.0])
    torch.testing.assert_close(guide.temperature().detach(), expected, atol=0.05, rtol=0)


def test_nameless_temperatures_do_not_meet_in_the_parameter_store():
    first, second = LearnableTemperature(0.5), LearnableTemperature(torch.full((3,), 2.0))
    assert first().item() == pytest.approx(0.5)
    assert second().tolist() == pytest.approx([2.0] * 3)
    assert not pyro.get_param_store()
    optimiser = torch.optim.SGD(second.parameters(), 1.0)
    second().sum().backward()
    optimiser.step()
    assert second().tolist() == pytest.approx([2 * math.exp(-2)] * 3)


def test_a_temperature_that_is_no_attribute_is_trained_under_its_name():
    def model():
        pyro.sample("z", RelaxedBernoulli(1.0, probs=0.5))

    temperatures = {name: LearnableTemperature(0.5, name) for name in ("first", "second")}
    for name, temperature in temperatures.items():
        guide = pyro.poutine.trace(
            lambda tau=temperature: pyro.sample("z", RelaxedBernoulli(tau, probs=0.5))
        )
        SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO()).step()
        assert abs(temperature().item() - 0.5) > 0.01, name
    assert set(pyro.get_param_store()) == {"first.value", "second.value"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_that_is_resumed_ends_as_one_that_is_not(name):
    """Bit for bit, through a file with the states of guide, parameters, optimiser and generator."""

    def model():
        z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(z @ torch.arange(3.0), 1.0), obs=torch.tensor(1.7))

    def run(steps, saved=None):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        schedule = SCHEDULES[name]()
        soft = relaxed(model, schedule, hard=False)
        guide = AutoRelaxed(soft, schedule, hard=False)
        guide()
        optimiser = Adam({"lr": 0.1})
        svi = SVI(soft, guide, optimiser, Trace_ELBO())
        if saved is not None:
            state = torch.load(saved, weights_only=False)
            guide.load_state_dict(state["guide"])
            pyro.get_param_store().set_state(state["parameters"])
            optimiser.set_state(state["optimiser"])
            set_random_state(state["generator"])
        for _ in range(steps):
            svi.step()
            schedule.step()
        file = io.BytesIO()
        state = {
            "guide": guide.state_dict(),
            "parameters": pyro.get_param_store().get_state(),
            "optimiser": optimiser.get_state(),
            "generator": random_state(),
        }
        torch.save(state, file)
        file.seek(0)
        return guide.distribution("z").logits.detach(), schedule().detach(), file

    *whole, _ = run(12)
    *_, file = run(5)
    *resumed, _ = run(7, file)
    assert torch.equal(resumed[0], whole[0])
    assert torch.equal(resumed[1], whole[1])
    assert not torch.equal(resumed[0], torch.full((3,), 1 / 3).log())


def through_a_file(distribution):
    file = io.BytesIO()
    torch.save(distribution, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# What has a weak reference of Pyro's, which cannot be pickled: parameters of its store, and what
# `LearnableTemperature` returns.
PARAMETERS = {
    "a learnt temperature": lambda shape: (LearnableTemperature(0.7), torch.zeros(shape)),
    "one of a batch": lambda shape: (LearnableTemperature(torch.ones(2)), torch.zeros(2, *shape)),
    "a leaf": lambda shape: (0.7, pyro.param("leaf", torch.zeros(shape))),
    "a constrained one": lambda shape: (
        pyro.param("tau", torch.tensor(0.7), constraint=dist.constraints.positive),
        pyro.param("between", torch.zeros(shape), constraint=dist.constraints.interval(-1, 1)),
    ),
}
FORMS = {
    "as it is": lambda distribution: distribution,
    "expanded": lambda distribution: distribution.expand((3, *distribution.batch_shape)),
    "in wrappers": lambda distribution: (
        distribution.expand((3, *distribution.batch_shape)).mask(True).to_event(1)
    ),
}


def innermost_parameters(distribution):
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution, [
        distribution._parameter,
        *([distribution._temperature] if hasattr(distribution, "_temperature") else []),
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("cls", [*WITH_INDICES, *DISCRETE])
def test_a_distribution_with_parameters_of_pyro_is_pickled(cls, kind, form):
    """As every tensor: with the same numbers, and those with a gradient are leaves."""
    tau, logits = PARAMETERS[kind](param_shape(cls))
    distribution = FORMS[form](build(cls, tau, logits=logits))
    tied = [hasattr(raw, "unconstrained") for raw in innermost_parameters(distribution)[1]]
    for through in (lambda distribution: pickle.loads(pickle.dumps(distribution)), through_a_file):
        with torch.no_grad():
            twin = through(distribution)
        assert (twin.batch_shape, twin.event_shape) == (
            distribution.batch_shape,
            distribution.event_shape,
        )
        value = distribution.sample()
        assert torch.equal(twin.log_prob(value), distribution.log_prob(value))
        pairs = zip(
            innermost_parameters(twin)[1], innermost_parameters(distribution)[1], strict=True
        )
        for loaded, raw in pairs:
            assert torch.equal(loaded, raw)
            assert loaded.is_leaf
            assert loaded.requires_grad == raw.requires_grad
            assert loaded.data_ptr() != raw.data_ptr()
    assert [hasattr(raw, "unconstrained") for raw in innermost_parameters(distribution)[1]] == tied


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_a_deep_copy_does_not_drop_a_graph(cls):
    """torch refuses it, for its own distributions as for ours; leaves are copied."""
    learnt = build(cls, LearnableTemperature(0.7), logits=torch.zeros(param_shape(cls)))
    for distribution in (learnt, dist.Normal(0.0, torch.ones((), requires_grad=True).exp())):
        with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
            copy.deepcopy(distribution)
    leaf = pyro.param("leaf", torch.zeros(param_shape(cls)))
    twin = copy.deepcopy(build(cls, 0.7, logits=leaf))
    assert twin._parameter.is_leaf
    assert twin._parameter.requires_grad
    twin.log_prob(twin.sample()).sum().backward()
    assert twin._parameter.grad is not None
    assert leaf.grad is None


@pytest.mark.parametrize("cls", ALL)
def test_a_shallow_copy_has_the_same_parameters(cls):
    schedule = LearnableTemperature(0.7)
    leaf = pyro.param("leaf", torch.zeros(param_shape(cls)))
    twin = copy.copy(build(cls, schedule, logits=leaf))
    assert twin._parameter is leaf
    twin.rsample().sum().backward()
    assert leaf.grad is not None
    assert schedule.value_unconstrained.grad is not None


@pytest.mark.parametrize(
    ("make_one", "error", "words"),
    [
        (lambda: ConstantTemperature(0), ValueError, "`value` must be a finite number above 0"),
        (lambda: ConstantTemperature("1"), TypeError, "`value` must be .*, got str; write"),
        (lambda: ConstantTemperature(math.nan), ValueError, "`value` must be .*, got nan; write"),
        (lambda: ExponentialTemperature(-1), ValueError, "`rate` must be .*at least 0, got -1"),
        (lambda: ExponentialTemperature(1, 2.0), ValueError, "`floor`.*`initial`, 1, got 2; write"),
        (lambda: ExponentialTemperature(1, hold=0), ValueError, "`hold` must be .*, got 0; write"),
        (lambda: ExponentialTemperature(1, hold=2.0), TypeError, "`hold` must be .*, got float"),
        (lambda: LinearTemperature(1, math.inf, 9), ValueError, "`final` must be .*, got inf"),
        (lambda: LinearTemperature(1, 0.5, True), TypeError, "`num_steps` must be .*, got bool"),
        (lambda: CosineTemperature(-1, 0.5, 9), ValueError, "`initial` must be .*, got -1; write"),
        (lambda: LearnableTemperature(-1.0), ValueError, "`initial` must be .*, got .*-1; write"),
        (lambda: LearnableTemperature(None), TypeError, "`initial` must be .*, got NoneType"),
        (
            lambda: LearnableTemperature(torch.tensor([True, False])),
            TypeError,
            "`initial` must be .* tensor of floats, got a tensor of torch.bool; write",
        ),
        (lambda: ConstantTemperature(HUGE), ValueError, "`value` must be .*, got inf; write"),
        (lambda: ExponentialTemperature(HUGE), ValueError, "`rate` must be .*, got inf; write"),
        (lambda: ExponentialTemperature(-HUGE), ValueError, "`rate` must be .*, got -inf; write"),
        (lambda: ExponentialTemperature(1, HUGE), ValueError, "`floor` must be .*, got inf; wri"),
        (
            lambda: ExponentialTemperature(1, initial=Fraction(HUGE)),
            ValueError,
            "`initial` must be .*, got inf; write",
        ),
        (
            lambda: ExponentialTemperature(1, hold=HUGE),
            ValueError,
            r"`hold` must be .*, below 2\*\*63, got an int of 1329 bits; write",
        ),
        (
            lambda: ExponentialTemperature(1, hold=-(10**5000)),
            ValueError,
            "`hold` must be .* 1 or more, got an int of 16610 bits; write",
        ),
        (
            lambda: LinearTemperature(1, 0.5, 2**63),
            ValueError,
            r"`num_steps` must be .*, below 2\*\*63, got 9223372036854775808; write",
        ),
        (lambda: CosineTemperature(1, HUGE, 9), ValueError, "`final` must be .*, got inf; write"),
        (lambda: LearnableTemperature(HUGE), ValueError, "`initial` must be .*, got .*inf; write"),
    ],
)
def test_bad_arguments(make_one, error, words):
    with pytest.raises(error, match=words):
        make_one()


def test_a_number_that_the_dtype_cannot_hold_is_infinite():
    schedule = ConstantTemperature(1e300)
    assert schedule() == math.inf
    with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
        RelaxedBernoulli(schedule, logits=torch.zeros(3))
