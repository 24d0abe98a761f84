# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What only a GPU shows: waiting for it, CUDA graphs, streams, autocast, and large offsets."""

import contextlib
import warnings

import pytest
import torch

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedSubset,
    kernels,
)
from pyro_gumbel.estimators import NAMES, named, takes_temperature
from pyro_gumbel.kernels import cuda
from pyro_gumbel.links import interval, simplex
from tests.common import RANKINGS, RELAXED_LOGITS, RELAXED_VALUES, STRAIGHT_THROUGH, build, smooth
from tests.common import param_shape as shape_of
from tests.kernels.triton.common import assert_near

SERVED = [cls for cls in (*smooth(RELAXED_VALUES), *RELAXED_LOGITS, *STRAIGHT_THROUGH)
          if cls not in RANKINGS]  # fmt: skip


@pytest.fixture(params=SERVED)
def cls(request):
    return request.param


def leaf_of(cls, batch=(64,), k=10):
    return torch.randn(*batch, *shape_of(cls, k), requires_grad=True)


def step(cls, leaf, temperature, validate_args=False):
    """A draw, its log_prob and the gradient of a smooth function of both."""
    d = build(cls, temperature, logits=leaf * 1.0, validate_args=validate_args)
    value = d.rsample()
    log_p = d.log_prob(value)
    weights = torch.linspace(0.5, 1.5, value.numel(), device=value.device).view(value.shape)
    (gradient,) = torch.autograd.grad((value * weights).sum() + log_p.sum(), leaf)
    return value, log_p, gradient


def test_the_kernels_run_here():
    assert kernels.backend("cuda") == "triton"


@contextlib.contextmanager
def waiting(mode):
    """Torch says where it waits for the GPU."""
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode(mode)
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits_of(function, *arguments, **keywords):
    """How often a call waits for the GPU, and what it returns."""
    with warnings.catch_warnings(record=True) as found, waiting("warn"):
        warnings.simplefilter("always")
        result = function(*arguments, **keywords)
    return len([each for each in found if "synchronizing" in str(each.message)]), result


def test_nothing_waits_without_validation(cls):
    leaf, temperature = leaf_of(cls), torch.tensor(0.6)
    step(cls, leaf, temperature)
    with waiting("error"):
        step(cls, leaf, temperature)
        d = build(cls, 0.6, logits=leaf * 1.0, validate_args=False)
        d.log_prob(d.rsample().detach().clone())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_temperature_that_was_a_number_is_on_the_device(cls, dtype):
    """To ask for it is not to wait."""
    leaf = leaf_of(cls).detach().to(dtype).requires_grad_()
    step(cls, leaf, 0.6)
    with waiting("error"):
        tau = build(cls, 0.6, logits=leaf * 1.0, validate_args=False).temperature
    value, log_p, _ = step(cls, leaf, 0.6)
    assert tau.device == value.device == log_p.device == leaf.device
    assert tau.dtype == value.dtype == dtype


@pytest.mark.parametrize("number", [True, False])
@pytest.mark.parametrize("parameter", ["logits", "probs"])
def test_validation_waits_once(cls, parameter, number):
    """In a constructor, and in a log_prob, of a draw and of any other value."""
    temperature = 0.6 if number else torch.tensor(0.6)
    given = {parameter: torch.rand(64, *shape_of(cls, 10), requires_grad=True) * 0.9 + 0.05}
    step(cls, leaf_of(cls), temperature, validate_args=True)
    constructor, d = waits_of(build, cls, temperature, **given, validate_args=True)
    draw, value = waits_of(d.rsample)
    others = value, value.detach().clone()
    log_probs = [waits_of(d.log_prob, each)[0] for each in others]
    assert (constructor, draw) in ((0, 0), (1, 0))
    assert max(log_probs) <= 1


@pytest.mark.parametrize("estimator", ["reinmax", "gapped"])
def test_an_estimator_that_looks_at_the_temperature_waits_once(estimator):
    leaf = leaf_of(CategoricalStraightThrough)
    arguments = {"logits": leaf * 1.0, "estimator": estimator, "validate_args": True}
    constructor, _ = waits_of(CategoricalStraightThrough, 1.0, **arguments)
    assert constructor == 1


def test_a_log_prob_is_that_of_the_parameters_as_they_are(cls):
    """However they are changed after the draw."""
    for validate_args in (True, False):
        for change in (lambda x: x.data.mul_(0.9), lambda x: x.detach().mul_(0.9)):
            x, temperature = torch.rand(64, *shape_of(cls, 10)), torch.tensor(0.6)
            d = build(cls, temperature, logits=x, validate_args=validate_args)
            for parameter in (x, temperature):
                value = d.rsample()
                change(parameter)
                now = build(cls, temperature.clone(), logits=x.clone(), validate_args=validate_args)
                assert_near(d.log_prob(value), now.log_prob(value), 1e-5)


def has_digits(cls, value):
    """Whether the digits of a value say what its density is: near 1 those of a subset do not."""
    if cls is RelaxedSubset:
        return value.amax(-1) < 1 - 1e-4
    return torch.ones(value.shape[:1], dtype=torch.bool)


def test_cuda_graphs(cls):
    """Replays draw anew, and have the density and the gradient of what they draw."""
    leaf, temperature = leaf_of(cls), torch.tensor(0.6)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(cls, leaf, temperature)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step(cls, leaf, temperature)
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append([each.clone() for each in outputs])
    assert not replays[0][0].equal(replays[1][0])
    d = build(cls, temperature, logits=leaf.detach().double(), validate_args=False)
    for value, log_p, gradient in replays:
        kept = has_digits(cls, value)
        assert kept.any()
        assert_near(log_p[kept], d.log_prob(value.double())[kept], 1e-3)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_a_gradient_in_a_cuda_graph():
    """That of the same draw, whose noise the value gives."""
    tau = torch.tensor(0.9)
    for cls, link in ((RelaxedBernoulli, interval), (RelaxedCategorical, simplex)):
        leaf = leaf_of(cls)
        step(cls, leaf, tau)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step(cls, leaf, tau)
        graph.replay()
        value, _, gradient = outputs
        x = leaf.detach().double().requires_grad_()
        noise = tau.double() * link.inverse(value.detach().double()) - x.detach()
        v = link.unconstrained(x + noise, tau.double())
        weights = torch.linspace(0.5, 1.5, value.numel()).view(value.shape)
        total = (link.value(v) * weights).sum()
        total = total + link.log_density(v, x, tau.double(), of_values=True).sum()
        assert_near(gradient, torch.autograd.grad(total, x)[0], 1e-4)


def test_streams(cls):
    """A draw on another stream is the one of the same seed."""
    leaf, temperature = leaf_of(cls, (10_000,)), torch.tensor(0.6)
    torch.manual_seed(1)
    expected = step(cls, leaf, temperature)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        same = leaf.detach().clone().requires_grad_()  # a leaf accumulates on one stream
        torch.manual_seed(1)
        found = step(cls, same, temperature)
    torch.cuda.current_stream().wait_stream(stream)
    for one, other in zip(found, expected, strict=True):
        assert one.equal(other)


def test_seeds(cls):
    leaf, temperature = leaf_of(cls), torch.tensor(0.6)
    d = build(cls, temperature, logits=leaf * 1.0)
    torch.cuda.manual_seed(3)
    first, second = d.rsample(), d.rsample()
    torch.cuda.manual_seed(3)
    assert d.rsample().equal(first)
    assert not second.equal(first)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        d.rsample()
    assert d.rsample().equal(second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(cls, dtype):
    """Logits of half precision, as a layer gives them there."""
    event = shape_of(cls, 10)
    layer = torch.nn.Linear(7, event[0] if event else 1, bias=False)
    features = torch.randn(64, 7)
    torch.manual_seed(2)
    with torch.autocast("cuda", dtype=dtype):
        logits = layer(features) if event else layer(features).squeeze(-1)
        value = build(cls, 0.6, logits=logits).rsample()
        weights = torch.linspace(0.01, 0.02, value.numel()).view(
            value.shape
        )  # float16 holds little
        loss = (value.float() ** 2 * weights).sum()
    assert value.dtype == logits.dtype == dtype
    (found,) = torch.autograd.grad(loss, layer.weight)
    torch.manual_seed(2)
    same = logits.detach().requires_grad_()
    again = build(cls, 0.6, logits=same * 1.0).rsample()
    assert again.equal(value)
    assert found.isfinite().all()
    assert found.abs().max() > 0


# Torch looks at the gradient of every tensor that a graph passes on.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("cls", [RelaxedCategorical, CategoricalStraightThrough])
def test_compiled_programs(cls):
    leaf = leaf_of(cls)
    value, log_p, gradient = torch.compile(step, dynamic=False)(cls, leaf, torch.tensor(0.6))
    assert value.isfinite().all()
    assert log_p.isfinite().all()
    assert gradient.isfinite().all()


def test_more_entries_than_31_bits_count():
    k = 32
    rows = 2**31 // k + 1000
    x = torch.zeros(k)
    over, none = torch.Size((rows,)), torch.Size()
    arguments = x, torch.tensor(0.5), torch.ones(1, dtype=torch.int64), simplex, over, none
    s = cuda._FusedDraw.apply(*arguments, True, False, False)[0][-2000:].clone()
    assert_near(s.sum(-1), torch.ones(2000))
    assert len(s.unique(dim=0)) == 2000
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)[-2000:]
    assert hard.argmax(-1).equal(s.argmax(-1))


# A graph cannot capture every library that torch may use for the factorisations of `mve`.
@pytest.mark.parametrize(
    "estimator", [name for name in NAMES if name not in ("mve", "third_order")]
)
@pytest.mark.parametrize("cls", [BernoulliStraightThrough, CategoricalStraightThrough])
def test_estimators_in_a_cuda_graph(cls, estimator):
    leaf = leaf_of(cls)
    temperature = torch.tensor(0.6) if takes_temperature(named(estimator)) else None
    options = {"estimator": estimator, "validate_args": False}

    def draw():
        value = cls(temperature, logits=leaf * 1.0, **options).rsample()
        return value, torch.autograd.grad((value * value.cumsum(0)).sum(), leaf)[0]

    draw()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradient = draw()
    graph.replay()
    first = value.clone()
    graph.replay()
    assert not first.equal(value)
    assert gradient.isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device(cls):
    """The kernels run on the device of the logits, not on the current one."""
    leaf = leaf_of(cls).detach().to("cuda:1").requires_grad_()
    value, log_p, gradient = step(cls, leaf, torch.tensor(0.6, device="cuda:1"))
    assert {each.device for each in (value, log_p, gradient)} == {torch.device("cuda:1")}
    assert gradient.isfinite().all()
