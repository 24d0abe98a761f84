# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which kernels compute, and that there is always an answer."""

import math
import sys

import pytest
import torch
from torch.nn.functional import logsigmoid

from pyro_gumbel.kernels import cpu, dispatch, reference
from pyro_gumbel.links import Hypersimplex, Link, interval, simplex
from pyro_gumbel.ops import noise
from tests.common import RANKINGS, RELAXED, build, param_shape

pytestmark = pytest.mark.cpu(reason="when the kernels of the CPU compute")

EMPTY = torch.Size()
LINKS = [(interval, noise.logistic), (simplex, noise.gumbel), (Hypersimplex(2), noise.gumbel)]
NAMES = ["interval", "simplex", "hypersimplex"]


@pytest.fixture
def asked(monkeypatch):
    """The names of the functions of the CPU kernels that are called."""
    names = []

    class Noting:
        def __getattr__(self, name):
            names.append(name)
            return getattr(cpu, name)

    monkeypatch.setitem(dispatch.BY_DEVICE, "cpu", Noting())
    return names


def all_three(logits, tau, link, sampler, shape=EMPTY):
    """A draw, a hard draw, and the density of the first."""
    batch = logits.shape[: logits.dim() - link.event_dim]
    arguments = logits, tau, link, sampler, shape, batch
    drawn = dispatch.draw(*arguments, keep=True, log_prob=True)
    hard = dispatch.straight_through_draw(*arguments)
    v = drawn.unconstrained
    found = dispatch.log_density(drawn.value, v, logits, tau, link, batch, of_values=True)
    return drawn, hard, found


@pytest.mark.parametrize(("link", "sampler"), LINKS, ids=NAMES)
def test_plain_tensors_go_to_the_cpu(link, sampler, asked):
    x = torch.randn(4, 3, requires_grad=True)
    drawn, hard, found = all_three(x, torch.tensor(0.5), link, sampler)
    assert asked == ["draw", "straight_through_draw", "log_density"]
    torch.testing.assert_close(drawn.log_prob, found, rtol=1e-4, atol=1e-4)
    assert drawn.value.shape == hard.shape == (4, 3)


@pytest.mark.parametrize(("link", "sampler"), LINKS, ids=NAMES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_reference_draws_alike(link, sampler, device, monkeypatch):
    """Where no kernels are for the device: shapes, dtypes and gradients are the same."""
    monkeypatch.delitem(dispatch.BY_DEVICE, "cpu")
    x = torch.randn(4, 3, device=device, requires_grad=True)
    tau = torch.full((4, 1), 0.5, device=device)
    drawn, hard, found = all_three(x, tau, link, sampler, torch.Size((2,)))
    assert drawn.value.shape == hard.shape == drawn.unconstrained.shape == (2, 4, 3)
    assert drawn.log_prob is None
    assert found.shape == ((2, 4) if link.event_dim else (2, 4, 3))
    assert all(t.dtype == x.dtype and t.requires_grad for t in (drawn.value, hard, found))
    with torch.no_grad():
        arguments = x, tau, link, sampler, EMPTY, x.shape[: 2 - link.event_dim]
        assert not dispatch.straight_through_draw(*arguments).requires_grad


@pytest.mark.parametrize(("link", "sampler"), LINKS, ids=NAMES)
def test_both_have_the_same_values_from_the_same_noise(link, sampler):
    """In float64, where the noise is drawn in the same way."""
    x = torch.randn(4, 3, dtype=torch.float64)
    arguments = x, x.new_tensor(0.7), link, sampler, torch.Size((5,)), x.shape[: 2 - link.event_dim]
    for name, options in (
        ("draw", {"keep": True, "log_prob": False}),
        ("straight_through_draw", {}),
    ):
        results = []
        for kernels in (cpu, reference):
            torch.manual_seed(0)
            result = getattr(kernels, name)(*arguments, **options)
            results.append(result[:2] if options else result)
        torch.testing.assert_close(*results)


class Noted:
    """Kernels that note which temperature they are given."""

    def __init__(self):
        self.temperatures = []

    def draw(self, logits, temperature, *_, **__):
        self.temperatures.append(temperature)

    straight_through_draw = draw

    def log_density(self, value, unconstrained, logits, temperature, *_, **__):
        self.temperatures.append(temperature)


def test_a_temperature_may_be_a_number_on_the_cpu(monkeypatch):
    """The kernels of a device take it as it is, and torch's operations on that device."""
    kernels, operations = Noted(), Noted()
    monkeypatch.setitem(dispatch.BY_DEVICE, "meta", kernels)
    for name in ("draw", "straight_through_draw", "log_density"):
        monkeypatch.setattr(reference, name, getattr(operations, name))
    x, number = torch.zeros(4, device="meta"), torch.tensor(0.3)

    def run(x, tau):
        arguments = x, tau, interval, noise.logistic, EMPTY, x.shape
        dispatch.draw(*arguments, keep=False, log_prob=False)
        dispatch.straight_through_draw(*arguments)
        dispatch.log_density(x, x, x, tau, interval, x.shape, of_values=True)

    run(x, number)
    assert [tau is number for tau in kernels.temperatures] == [True] * 3
    assert not operations.temperatures
    run(x.double(), number.double())
    run(x, number.clone().requires_grad_())
    dispatch.log_density(number, number, x, number, interval, x.shape, of_values=False)
    assert len(kernels.temperatures) == 3
    assert len(operations.temperatures) == 7
    assert {tau.device.type for tau in operations.temperatures} == {"meta"}


def test_what_runs_on_a_device(monkeypatch):
    """On a GPU the reference, if Triton is not there or does not work."""
    assert dispatch.backend("cpu") == "blocks"
    assert dispatch.backend("meta") == "operations"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dispatch.backend("cuda") == "operations"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(dispatch, "_on_gpu", {})
    monkeypatch.setitem(sys.modules, "pyro_gumbel.kernels.cuda", None)  # its import fails
    assert dispatch.backend("cuda") == "operations"
    assert dispatch._on_gpu == {torch.device("cuda", 0): reference}


def test_a_trial_during_a_capture_is_not_remembered(monkeypatch):
    """A CUDA graph may forbid what compiling needs."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(dispatch, "_on_gpu", {})
    monkeypatch.setitem(sys.modules, "pyro_gumbel.kernels.cuda", None)
    assert dispatch._module_for(torch.device("cuda", 0)) is reference
    assert not dispatch._on_gpu


FAR = [1e6, -3e37]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("shift", FAR)
@pytest.mark.parametrize("kernels", [cpu, reference])
@pytest.mark.parametrize(("link", "sampler"), LINKS[1:], ids=NAMES[1:])
def test_no_noise_is_lost_to_logits_far_from_0(link, sampler, kernels, shift, many, monkeypatch):
    """All equal logits: neither draws, densities nor gradients see where they are."""
    if many:
        monkeypatch.setattr(cpu, "MANY", 1)
    results = []
    for x in (torch.zeros(4, 3), torch.full((4, 3), shift)):
        torch.manual_seed(0)
        leaves = x.requires_grad_(), torch.tensor(0.5, requires_grad=True)
        arguments = *leaves, link, sampler, torch.Size((2,)), torch.Size((4,))
        s, v, _ = kernels.draw(*arguments, keep=True, log_prob=False)
        hard = kernels.straight_through_draw(*arguments)
        fixed = kernels.straight_through_draw(x, torch.tensor(0.5), *arguments[2:])
        v = v.detach()
        found = kernels.log_density(s, v, *leaves, link, torch.Size((4,)), of_values=True)
        total = s.square().sum() + ((hard + fixed) * torch.randn(3)).sum() + found.sum()
        first = torch.autograd.grad(total, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append([s, hard, fixed, found, *first, *second])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cls", [cls for cls in RELAXED if cls not in RANKINGS])
def test_the_reference_is_used_where_its_operations_are_wanted(cls, asked):
    """Under vmap, func.grad, jvp, and for subclasses of a tensor."""
    logits = torch.zeros((2, *param_shape(cls, 3)))

    def score(logits):
        d = build(cls, 0.5, logits=logits, validate_args=False)
        return d.log_prob(d.rsample()).sum()

    score(logits)
    assert asked
    asked.clear()
    torch.func.vmap(score, randomness="different")(logits)
    torch.func.grad(score)(logits)
    torch.func.jvp(score, (logits,), (logits,))
    with torch.autograd.forward_ad.dual_level():
        score(torch.autograd.forward_ad.make_dual(logits, logits))

    class Named(torch.Tensor):
        pass

    score(logits.as_subclass(Named))
    assert not asked


# A link of a user's own.


class NormalBit(Link):
    """s = sigmoid(v) with v = (x + e) / tau and e standard normal: a probit model, relaxed."""

    event_dim = 0

    def unconstrained(self, perturbed, temperature):
        return perturbed / temperature

    def value(self, unconstrained):
        return unconstrained.sigmoid()

    def inverse(self, value):
        return value.clamp(1e-30, 1 - 1e-7).logit()

    def hard(self, perturbed):
        return (perturbed >= 0).to(perturbed.dtype)

    def log_density(self, unconstrained, logits, temperature, *, of_values):
        e = temperature * unconstrained - logits
        log_p = temperature.log() - e.square() / 2 - math.log(2 * math.pi) / 2
        if of_values:
            log_p = log_p - logsigmoid(unconstrained) - logsigmoid(-unconstrained)
        return log_p

    def is_impossible(self, value, logits, low, high):
        return torch.zeros((), dtype=torch.bool)


def normal(shape, *, dtype, device):
    return torch.randn(shape, dtype=dtype, device=device)


def test_a_link_of_a_user_is_answered_by_the_reference(asked):
    """With its own noise: its draws have the density that it says, and their gradients."""
    x = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    link, shape = NormalBit(), torch.Size((20_000,))
    drawn, hard, found = all_three(x, tau, link, normal, shape)
    assert not asked
    assert drawn.log_prob is None
    v = drawn.unconstrained
    torch.testing.assert_close(drawn.value, v.sigmoid())
    expected = torch.distributions.Normal(x / tau, 1 / tau).log_prob(v)
    slope = logsigmoid(v) + logsigmoid(-v)
    torch.testing.assert_close(found, expected - slope)
    in_logit_space = dispatch.log_density(v, v, x, tau, link, x.shape, of_values=False)
    torch.testing.assert_close(in_logit_space, expected)
    share = torch.special.ndtr(x.detach())
    assert ((hard.detach().mean(0) - share).abs() < 5 * (share * (1 - share) / 20_000).sqrt()).all()
    torch.manual_seed(1)
    sample = dispatch.straight_through_draw(x, tau, link, normal, EMPTY, x.shape)
    torch.manual_seed(1)
    relaxed = ((x + normal((2,), dtype=x.dtype, device=x.device)) / tau).sigmoid()
    for found, right in zip(
        torch.autograd.grad(sample.sum(), [x, tau]),
        torch.autograd.grad(relaxed.sum(), [x, tau]),
        strict=True,
    ):
        torch.testing.assert_close(found, right)


def test_a_hard_draw_passes_no_gradient_where_the_relaxed_one_is_infinite():
    class Unbounded(NormalBit):
        def value(self, unconstrained):
            return unconstrained

    x = torch.tensor([math.inf, 0.3], requires_grad=True)
    hard = dispatch.straight_through_draw(x, torch.tensor(0.5), Unbounded(), normal, EMPTY, x.shape)
    assert hard[0] == 1
    hard.sum().backward()
    assert x.grad.tolist() == [0.0, 2.0]


def test_a_subclass_of_a_link_has_no_formulas(asked):
    """It may define anything anew."""

    class Steeper(type(interval)):
        def value(self, unconstrained):
            return (2 * unconstrained).sigmoid()

    x = torch.zeros(3)
    arguments = Steeper(), noise.logistic, EMPTY, x.shape
    s, v, _ = dispatch.draw(x, torch.tensor(1.0), *arguments, keep=True, log_prob=True)
    torch.testing.assert_close(s, (2 * v).sigmoid())
    assert not asked


@pytest.mark.parametrize(("link", "sampler"), LINKS, ids=NAMES)
def test_other_noise_than_that_of_the_formulas_goes_to_the_reference(link, sampler, asked):
    def nothing(shape, *, dtype, device):
        return torch.zeros(shape, dtype=dtype, device=device)

    x, tau = torch.randn(4, 3), torch.tensor(0.5)
    drawn, hard, _ = all_three(x, tau, link, nothing)
    assert asked == ["log_density"]
    torch.testing.assert_close(drawn.value, link(x, tau))
    assert hard.equal(link.hard(x))
