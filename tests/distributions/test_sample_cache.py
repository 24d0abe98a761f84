# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The sample cache keeps log_prob exact; every operation that loses it."""

import copy
import gc
import io
import pickle
from functools import partial
from types import FunctionType, ModuleType

import pyro
import pytest
import torch
from pyro.infer import Predictive
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.dct_adam import DCTAdam
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from pyro_gumbel import (
    CategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
)
from pyro_gumbel.distributions import base
from pyro_gumbel.distributions.sample_cache import CacheKey, recall
from pyro_gumbel.kernels import dispatch, reference
from pyro_gumbel.links import interval
from tests.common import (
    BERNOULLI,
    RELAXED_VALUES,
    STRAIGHT_THROUGH,
    assert_counts,
    build,
    leaf_of,
    make,
    param_shape,
    smooth,
)
from tests.pretend_device import CALLS, OPERATIONS

OF_ONE_ROW = [cls for cls in RELAXED_VALUES if cls is not RelaxedPlackettLuce]


def exact_score(d, coordinates):
    """The log_prob of cached values in logit space, in float64."""
    tau = d.temperature.reshape((*d.temperature.shape, *[1] * d.event_dim))
    x, tau, v = d.logits.double(), tau.double(), coordinates.double()
    return d.link.log_density(v, x, tau, of_values=True)


@pytest.mark.parametrize("draw", ["sample", "rsample"])
@pytest.mark.parametrize("cls", OF_ONE_ROW)
def test_every_distribution_of_the_family_takes_the_log_prob_in_logit_space(cls, draw):
    guide = make(cls, 0.03, (200,), 5, validate_args=False)  # or the last log_prob would warn
    model = make(cls, 0.7, (200,), 5)
    value = getattr(guide, draw)()
    coordinates = recall(value, guide.link)
    for d in (guide, model, model.expand([3, 200])):
        expected = exact_score(d, coordinates).expand(d.batch_shape)
        torch.testing.assert_close(d.log_prob(value).double(), expected, rtol=1e-5, atol=1e-2)
    assert (value == 1).any()  # or the cache would not have been needed
    forgotten = guide.log_prob(value.detach().clone()).double()
    assert forgotten.isfinite().all()
    assert (forgotten - exact_score(guide, coordinates)).abs().max() > 1


@pytest.mark.parametrize("cls", OF_ONE_ROW)
def test_log_prob_is_differentiable_through_the_cache(cls):
    """The gradient in the parameters that the value was drawn with, at another distribution."""
    guide, model = make(cls, 0.05, (50,), 5), make(cls, 0.7, (50,), 5)
    value = guide.rsample()
    (found,) = torch.autograd.grad(model.log_prob(value).sum(), leaf_of(guide), retain_graph=True)
    exact = exact_score(model, recall(value, guide.link))
    (expected,) = torch.autograd.grad(exact.sum(), leaf_of(guide))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
    assert (found != 0).any()


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


FORGETTING = {
    "clone": lambda value: value.clone(),
    "detach": lambda value: value.detach(),
    "index": lambda value: value[...],
    "arithmetic": lambda value: value * 1,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "disk": saved_and_loaded,
    "in-place": lambda value: value.mul_(1.0),
    "view in-place": lambda value: (value.view(-1).mul_(1.0), value)[1],
    "requires_grad_": lambda value: value.requires_grad_(),
}


@pytest.mark.parametrize("how", FORGETTING)
@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_without_its_cache_a_value_is_evaluated_through_the_inverse(cls, how):
    d = make(cls, 0.03, (200,), 5, validate_args=False)  # or it would warn
    value = d.sample()
    own = value.clone()
    forgetful = FORGETTING[how](value)
    assert recall(forgetful, d.link) is None
    torch.testing.assert_close(d.log_prob(forgetful), d.log_prob(own))


def test_a_changed_value_is_evaluated_as_it_is():
    d = RelaxedBernoulli(0.1, logits=torch.zeros(4))
    value = d.sample()
    value.fill_(0.25)
    torch.testing.assert_close(d.log_prob(value), d.log_prob(torch.full((4,), 0.25)))


def test_a_copy_made_after_a_change_has_no_cache():
    d = RelaxedBernoulli(0.1, logits=torch.zeros(4))
    value = d.sample()
    value.fill_(0.25)
    for other in (copy.copy(value), copy.deepcopy(value)):
        torch.testing.assert_close(d.log_prob(other), d.log_prob(torch.full((4,), 0.25)))


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_the_log_prob_of_a_detached_value_is_detached_from_it(cls):
    d = make(cls, 0.5, (6,), 4, torch.float64)
    value = d.rsample()
    constant = value.detach().clone()
    value.detach_()
    found, expected = (
        torch.autograd.grad(d.log_prob(v).sum(), leaf_of(d))[0] for v in (value, constant)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_a_value_made_a_leaf_has_a_gradient_of_its_own(cls):
    d = make(cls, 0.5, (6,), 4, torch.float64)
    value = d.rsample()
    leaf = value.detach().clone().requires_grad_()
    value.detach_().requires_grad_()
    found, expected = (torch.autograd.grad(d.log_prob(v).sum(), v)[0] for v in (value, leaf))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("draw", ["sample", "rsample"])
def test_a_parameter_that_has_changed_its_dtype_is_not_what_it_was(draw):
    module = torch.nn.ParameterDict({"logits": torch.nn.Parameter(torch.tensor(0.5))})
    d = RelaxedBernoulli(0.5, logits=module["logits"])
    value = getattr(d, draw)()
    d.log_prob(value)
    module.double()
    assert d.log_prob(value).dtype == torch.float64


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_log_prob_has_the_dtype_of_the_distribution_with_or_without_a_cache(cls):
    logits = torch.zeros(param_shape(cls), dtype=torch.float64)
    value = build(cls, 0.5, logits=logits.float()).sample((3,))
    d = build(cls, 0.5, logits=logits)
    assert d.log_prob(value).dtype == d.log_prob(value.clone()).dtype == torch.float64


def test_a_cache_belongs_to_one_tensor():
    """Copying the attributes of a tensor does not copy its cache."""
    value = RelaxedBernoulli(0.1, logits=torch.zeros(4)).sample()
    other = torch.full((4,), 0.25)
    vars(other).update(vars(value))
    assert recall(value, interval) is not None
    assert recall(other, interval) is None


@pytest.mark.parametrize("cls", smooth(RELAXED_VALUES))
def test_the_gradient_in_a_leaf_exists(cls):
    d = make(cls, 0.5, (6,), 4)
    value = d.sample().requires_grad_()
    (slope,) = torch.autograd.grad(d.log_prob(value).sum(), value)
    assert slope.isfinite().all()
    assert (slope != 0).all()


def test_a_cache_is_keyed_by_the_link():
    """A vector of relaxed Bernoulli values is no draw from a simplex, whatever its cache holds."""
    bits = RelaxedBernoulli(0.5, logits=torch.randn(100, 2)).sample()
    pair = RelaxedCategorical(0.5, logits=torch.randn(2), validate_args=False)
    torch.testing.assert_close(pair.log_prob(bits), pair.log_prob(bits.clone()))
    rows = RelaxedCategorical(0.5, logits=torch.randn(100, 2)).sample()
    d = RelaxedBernoulli(0.5, logits=torch.randn(2))
    torch.testing.assert_close(d.log_prob(rows), d.log_prob(rows.clone()))


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_values_of_half_types_are_cached_in_float32(cls):
    d = make(cls, 0.1, (20,), 4, torch.bfloat16)
    value = d.rsample()
    assert value.dtype == torch.bfloat16
    assert recall(value, d.link).dtype == torch.float32


@pytest.mark.parametrize("cls", OF_ONE_ROW)
def test_inference_mode(cls):
    with torch.inference_mode():
        d = make(cls, 0.03, (200,), 5)
        value = d.sample()
        expected = exact_score(d, recall(value, d.link))
        torch.testing.assert_close(d.log_prob(value).double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_values_from_predictive(cls, parallel):
    """Stacked over many runs they have no cache; the values in the trace of one run do."""
    d = make(cls, 0.03, (), 5, validate_args=False)  # or it would warn

    def model():
        return pyro.sample("s", d)

    value = Predictive(model, num_samples=200, parallel=parallel)()["s"]
    score = d.log_prob(value)
    assert score.isfinite().all()
    torch.testing.assert_close(score, d.log_prob(value.clone()))
    own = pyro.poutine.trace(model).get_trace().nodes["s"]["value"]
    assert recall(own, d.link) is not None


@pytest.mark.parametrize("cls", smooth(RELAXED_VALUES))
def test_a_cached_infinity_of_an_impossible_category_is_not_used_elsewhere(cls):
    """Where the outcome is possible, the value is evaluated through the inverse instead."""
    zeros = torch.tensor([0.0, 0.4, 0.6] if cls not in BERNOULLI else [0.0, 1.0])
    value = build(cls, 0.5, probs=zeros).sample()
    d = build(cls, 0.5, logits=torch.zeros_like(zeros), validate_args=False)
    score = d.log_prob(value)
    assert score.isfinite().all()
    torch.testing.assert_close(score, d.log_prob(value.clone()))


# The log_prob that a draw has cached for the distribution that drew it.


def scored(d, value, parameter):
    """log p of a value, and its gradient in a parameter; None where autograd refuses one."""
    log_prob = d.log_prob(value)
    if not (log_prob.requires_grad and parameter.requires_grad):
        return log_prob.detach(), None
    try:
        wanted = torch.autograd.grad(
            log_prob.sum(), parameter, retain_graph=True, allow_unused=True
        )
    except RuntimeError:  # a tensor that the graph needs was changed in place
        return log_prob.detach(), None
    return log_prob.detach(), wanted[0]


def assert_as_new(cls, d, value, tau, logits, parameter):
    """The log_prob is that of a new distribution of the parameters."""
    new = build(cls, tau, logits=logits)
    for found, expected in zip(
        scored(d, value, parameter), scored(new, value, parameter), strict=True
    ):
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def uneven(parameter):
    """Of its shape, from which a common shift of all logits differs."""
    signs = torch.tensor([1.0, -1.0]).repeat(parameter.numel())[: parameter.numel()]
    return (0.1 * signs).to(parameter.dtype).reshape(parameter.shape)


def stepped(make_optimiser):
    def step(parameter):
        parameter.grad = uneven(parameter)
        make_optimiser([parameter]).step()
        parameter.grad = None

    return step


@torch.no_grad()
def through_numpy(parameter):
    parameter.numpy()[...] += uneven(parameter).numpy()


def through_storage(parameter):
    other = parameter.detach() + uneven(parameter)
    parameter.untyped_storage().copy_(other.untyped_storage())


def swapped(parameter):
    other = (parameter.detach() + uneven(parameter)).requires_grad_(parameter.requires_grad)
    torch.utils.swap_tensors(parameter, other)


@torch.no_grad()
def in_place(parameter):
    parameter.add_(uneven(parameter))


@torch.inference_mode()
def in_place_for_inference(parameter):
    parameter.add_(uneven(parameter))


CHANGES = {
    "fused Adam": stepped(partial(torch.optim.Adam, lr=0.3, fused=True)),
    "fused AdamW": stepped(partial(torch.optim.AdamW, lr=0.3, fused=True)),
    "fused SGD": stepped(partial(torch.optim.SGD, lr=0.3, fused=True)),
    "fused Adagrad": stepped(partial(torch.optim.Adagrad, lr=0.3, fused=True)),
    "Adam": stepped(partial(torch.optim.Adam, lr=0.3)),
    "ClippedAdam": stepped(partial(ClippedAdam, lr=0.3)),
    "DCTAdam": stepped(partial(DCTAdam, lr=0.3)),
    "AdagradRMSProp": stepped(partial(AdagradRMSProp, eta=0.3)),
    "data": lambda parameter: parameter.data.add_(uneven(parameter)),
    "new data": lambda parameter: setattr(parameter, "data", parameter.data + uneven(parameter)),
    "numpy": through_numpy,
    "storage": through_storage,
    "swap": swapped,
    "in place": in_place,
    "inference mode": in_place_for_inference,
}


def marks_of(change):
    of_cpu = pytest.mark.cpu(reason="numpy, and this optimiser, take tensors of the CPU alone")
    return [of_cpu] if change in ("numpy", "fused Adagrad") else []


# A distribution's parameter from the leaf that is trained.
MADE_OF_A_LEAF = {
    "leaf": lambda leaf: leaf,
    "view of a leaf": lambda leaf: leaf.view_as(leaf),
    "part of a leaf": lambda leaf: leaf[...],
    "detached": lambda leaf: leaf.detach(),
}


# torch does not swap a tensor that a graph holds.
DRAWN_AND_CHANGED = [
    pytest.param(draw, change, marks=marks_of(change))
    for draw in ("sample", "rsample")
    for change in CHANGES
    if (draw, change) != ("rsample", "swap")
]


@pytest.mark.parametrize("which", ["logits", "temperature"])
@pytest.mark.parametrize(("draw", "change"), DRAWN_AND_CHANGED)
@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_no_change_of_a_leaf_goes_unnoticed(cls, change, which, draw):
    leaf = torch.rand(param_shape(cls), dtype=torch.float64).requires_grad_()
    leaves = {"logits": leaf, "temperature": torch.tensor([0.7]).double().requires_grad_()}
    d = build(cls, leaves["temperature"], logits=leaf)
    value = getattr(d, draw)((5,))
    CHANGES[change](leaves[which])
    assert_as_new(cls, d, value, leaves["temperature"], leaf, leaves[which])


@pytest.mark.parametrize("made", MADE_OF_A_LEAF)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, marks=marks_of(change))
        for change in ("fused Adam", "ClippedAdam", "numpy", "storage")
    ],
)
@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_no_change_of_a_view_of_a_leaf_goes_unnoticed(cls, change, made):
    leaf = torch.rand(param_shape(cls), dtype=torch.float64).requires_grad_()
    tau, logits = torch.tensor(0.7).double(), MADE_OF_A_LEAF[made](leaf)
    d = build(cls, tau, logits=logits)
    value = d.rsample((5,))
    CHANGES[change](leaf)
    assert_as_new(cls, d, value, tau, logits, leaf)


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_a_result_without_a_graph_is_compared_by_value(cls):
    weights = torch.rand(param_shape(cls), dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        logits = weights * 1
    d = build(cls, 0.7, logits=logits)
    value = d.sample((5,))
    logits.data.add_(uneven(logits))
    assert_as_new(cls, d, value, 0.7, logits, weights)


@pytest.mark.parametrize("batch", [5, 20_000])
@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_a_log_prob_in_a_checkpoint_has_its_gradient(cls, batch):
    """What runs again in the backward pass must save the same tensors."""

    def gradient(run):
        torch.manual_seed(1)
        leaf = torch.rand(batch, *param_shape(cls, 4)).requires_grad_()
        d, other = build(cls, 0.7, logits=leaf), build(cls, 0.7, logits=torch.zeros_like(leaf))
        value = d.rsample()
        run(
            lambda value: (other.log_prob(value) - d.log_prob(value)).tanh().sum(), value
        ).backward()
        return leaf.grad

    expected = gradient(lambda function, value: function(value))
    found = gradient(partial(checkpoint, use_reentrant=False))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_logits_whose_memory_has_them_with_the_opposite_sign(cls):
    """So torch holds the imaginary part of a conjugate, and marks it. Many are compared."""
    logits = torch._neg_view(torch.rand(4096, *param_shape(cls, 4)))
    d = build(cls, 0.7, logits=logits)
    value = d.sample()
    expected = build(cls, 0.7, logits=logits.clone()).log_prob(value)
    torch.testing.assert_close(d.log_prob(value), expected)


@pytest.mark.parametrize("change", [lambda logits: logits.add_(uneven(logits)), in_place, swapped])
@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_no_counted_change_of_a_result_goes_unnoticed(cls, change):
    weights = torch.rand(param_shape(cls), dtype=torch.float64).requires_grad_()
    logits = weights * 1
    d = build(cls, 0.7, logits=logits)
    value = d.sample((5,))
    with torch.no_grad():
        d.log_prob(value)
        change(logits)
        torch.testing.assert_close(
            d.log_prob(value), build(cls, 0.7, logits=logits).log_prob(value)
        )


@pytest.mark.parametrize("value_needs_grad", [True, False])
@pytest.mark.parametrize("which", ["logits", "temperature"])
@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_a_gradient_switched_on_after_the_draw_is_there(cls, which, value_needs_grad):
    leaves = {
        "logits": torch.rand(param_shape(cls), dtype=torch.float64),
        "temperature": torch.tensor(0.7, dtype=torch.float64),
    }
    other = "logits" if which == "temperature" else "temperature"
    leaves[other].requires_grad_(value_needs_grad)
    d = build(cls, leaves["temperature"], logits=leaves["logits"])
    value = d.rsample((5,))
    leaves[which].requires_grad_()
    assert_as_new(cls, d, value, leaves["temperature"], leaves["logits"], leaves[which])
    assert scored(d, value, leaves[which])[1] is not None


@pytest.mark.parametrize("made", [*MADE_OF_A_LEAF, "result"])
@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_every_log_prob_is_a_tensor_of_its_own(cls, made):
    leaf = torch.rand(param_shape(cls)).requires_grad_()
    logits = {**MADE_OF_A_LEAF, "result": lambda leaf: leaf * 1}[made](leaf)
    d = build(cls, 0.7, logits=logits)
    value = d.rsample((5,))
    first, second = d.log_prob(value), d.log_prob(value)
    if second.requires_grad:
        first.register_hook(lambda gradient: 100 * gradient)
        expected = scored(d, value, leaf)[1]
        found = torch.autograd.grad((0 * first + second).sum(), leaf)[0]
        torch.testing.assert_close(found, expected)
    kept = second.detach().clone()
    first += 100
    torch.testing.assert_close(second, kept, rtol=0, atol=0)
    torch.testing.assert_close(d.log_prob(value), kept)


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_a_value_changed_in_inference_mode_is_evaluated_as_it_is(cls):
    with torch.inference_mode():
        d = make(cls, 0.5, (6,), 4)
        value, other = d.sample(), d.sample()
        value.copy_(other)
        torch.testing.assert_close(d.log_prob(value), d.log_prob(other.clone()))


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("shape", [(64, 8), (2**12, 24)], ids=["few", "blocks"])
@pytest.mark.parametrize("cls", OF_ONE_ROW)
def test_the_log_prob_that_a_draw_has_cached_is_that_in_logit_space(cls, shape, needs_grad):
    logits = torch.randn(shape)
    d = build(cls, 0.5, logits=logits.requires_grad_(needs_grad))
    value = d.rsample()
    expected = exact_score(d, recall(value, d.link))
    torch.testing.assert_close(d.log_prob(value).double(), expected, rtol=1e-5, atol=2e-3)


# What the constructor has seen of the logits, which the draw need not look at again.


def moved_far_away(logits):
    logits.add_(1e8)  # where neighbouring float32 numbers are 8 apart


FAR_AWAY = {
    "in place": torch.no_grad()(moved_far_away),
    "data": lambda logits: moved_far_away(logits.data),
    "numpy": lambda logits: moved_far_away(torch.from_numpy(logits.detach().numpy())),
    "detached": lambda logits: moved_far_away(logits.detach_().data),
}


UNCOUNTED = [
    pytest.param(made, change, marks=marks_of(change))
    for made in ("leaf", "view")
    for change in ("in place", "data", "numpy")
]


@pytest.mark.parametrize(
    ("made", "change"), [("result", "in place"), ("result", "detached"), *UNCOUNTED]
)
@pytest.mark.parametrize("cls", [RelaxedCategorical, CategoricalStraightThrough])
def test_logits_that_have_moved_far_away_are_centred_again(cls, made, change):
    leaf = torch.zeros(1000, 5, requires_grad=True)
    logits = {"leaf": leaf, "view": leaf.view_as(leaf), "result": leaf * 1}[made]
    d = cls(0.5, logits=logits)
    FAR_AWAY[change](logits)
    winners = d.sample().argmax(-1)
    assert_counts(winners.bincount(minlength=5), torch.full((5,), 0.2))


# What a kept draw holds.


OF_CPU_KERNELS = pytest.mark.cpu(reason="what is kept is the choice of the kernels of a device")


def held_bytes(value):
    """The bytes of all tensors that can be reached from the cache of a value, each once."""
    found, begun, bytes_held = set(), [value._pyro_gumbel_cache], 0
    while begun:
        thing = begun.pop()
        if id(thing) in found or isinstance(thing, type | ModuleType | FunctionType):
            continue
        found.add(id(thing))
        if isinstance(thing, torch.Tensor):
            bytes_held += thing.untyped_storage().nbytes()
        else:
            begun.extend(gc.get_referents(thing))
    return bytes_held


@OF_CPU_KERNELS
@pytest.mark.parametrize("k", [100, 30_000], ids=["few", "blocks"])
@pytest.mark.parametrize("tau", [1.0, 0.05])
@pytest.mark.parametrize("cls", OF_ONE_ROW)
def test_a_kept_draw_holds_no_more_than_its_logits_and_log_prob(cls, tau, k):
    """A Bernoulli value caches its logit alone, a categorical in reach of floats nothing."""
    logits = torch.zeros(k)
    value = build(cls, tau, logits=logits).sample((20,))
    itself = value.numel() * value.element_size()
    inside = cls is RelaxedCategorical and tau == 1.0
    expected = 0 if inside else itself
    if cls not in BERNOULLI:
        expected += 20 * 4 + 2 * 4 * k  # the log_prob, the logits and a copy of them
    assert held_bytes(value) == expected


@OF_CPU_KERNELS
def test_a_bernoulli_value_that_determines_its_logit_caches_nothing():
    d = RelaxedBernoulli(1.0, logits=torch.full((100,), -20.0))
    value = d.sample()
    assert (value < 0.5).all()
    assert held_bytes(value) == 0
    torch.testing.assert_close(
        d.log_prob(value).double(), exact_score(d, torch.logit(value.double())), rtol=1e-5,
        atol=1e-5,
    )  # fmt: skip


@OF_CPU_KERNELS
def test_all_draws_of_a_distribution_share_one_copy_of_its_parameters():
    d = RelaxedCategorical(1.0, logits=torch.zeros(1000))
    draws = [d.expand([2]).sample(), d.sample(), d.sample()]
    states = {id(draw._pyro_gumbel_cache.state) for draw in draws}
    assert len(states) == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_off_the_cpu_a_temperature_that_may_be_changed_counts_as_changed(device):
    """Without validation, where to compare would be to wait."""
    logits = 1 * torch.zeros(3, device="meta", requires_grad=True)
    temperature = torch.zeros((), device=device)
    parameters = logits, temperature
    state = CacheKey(may_wait=False).state_of(*parameters)
    assert state.is_that_of(parameters) is (device == "cpu")
    temperature.mul_(2)
    assert not state.is_that_of(parameters)


@OF_CPU_KERNELS
def test_a_number_on_the_cpu_and_logits_on_a_gpu_are_compared():
    """With validation, by one look at the GPU."""
    with OPERATIONS, CALLS:
        leaf = torch.zeros(4, 3, device="cuda")
        d = RelaxedCategorical(0.5, logits=leaf)
        parameters = d._parameter, d._temperature
        assert d._temperature.device.type == "cpu"
        state = CacheKey(may_wait=True).state_of(*parameters)
        assert state.is_that_of(parameters)
        leaf.data.add_(torch.eye(4, 3, device="cuda"))
        assert not state.is_that_of(parameters)


@OF_CPU_KERNELS
@pytest.mark.parametrize("validate_args", [True, False])
def test_on_a_gpu_too_a_temperature_may_be_changed_in_place(validate_args, monkeypatch):
    monkeypatch.setitem(dispatch.BY_DEVICE, "cuda", reference)
    with OPERATIONS, CALLS:
        given = {"logits": 1 * torch.randn(4, 3, device="cuda"), "validate_args": validate_args}
        d = RelaxedCategorical(0.5, **given)
        value = d.rsample()
        other, key = copy.copy(d), d._cache_key
        d.temperature.mul_(2)
        assert d._cache_key is not key  # what a draw remembers is forgotten
        assert other._cache_key is key
        assert other.temperature == 0.5
        assert d.temperature.device.type == "cuda"
        assert d.temperature == 1
        expected = RelaxedCategorical(1.0, **given).log_prob(value)
        assert torch.equal(d.log_prob(value), expected)


@pytest.mark.parametrize("cls", [*RELAXED_VALUES, *STRAIGHT_THROUGH])
def test_a_temperature_that_is_changed_in_place_is_that_of_one_distribution(cls):
    """Those with the same number share it until one is asked for it."""
    logits = 1 * torch.randn(4, *param_shape(cls)).requires_grad_()
    with torch.inference_mode():
        build(cls, 0.3, logits=torch.zeros(4, *param_shape(cls))).rsample()
    d, other = (build(cls, 0.3, logits=logits) for _ in range(2))
    value, changed = d.rsample(), d.expand((2, 4))
    with torch.inference_mode():
        changed.temperature.mul_(2)
    assert [round(each.temperature.item(), 6) for each in (d, other, changed)] == [0.3, 0.3, 0.6]
    fresh = build(cls, 0.6, logits=logits)
    torch.testing.assert_close(changed.log_prob(value)[0], fresh.log_prob(value))
    gradients = []
    for each in (changed, fresh.expand((2, 4))):
        torch.manual_seed(0)
        (gradient,) = torch.autograd.grad(each.rsample().pow(2).sum(), logits, retain_graph=True)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


def test_an_estimator_gets_a_temperature_that_is_not_shared():
    def estimator(logits, temperature, perturbed, hard, link):
        return link(perturbed, temperature.mul_(2))

    logits = torch.zeros(4, 3, requires_grad=True)
    CategoricalStraightThrough(0.4, logits=logits, estimator=estimator).rsample()
    assert RelaxedCategorical(0.4, logits=logits).temperature.item() == pytest.approx(0.4)


def test_the_temperature_is_asked_for_while_another_thread_draws(monkeypatch):
    d = RelaxedBernoulli(0.5, logits=torch.zeros(3, requires_grad=True))
    d.rsample()
    drawn = []

    class Key(CacheKey):
        def __init__(self, may_wait):
            drawn.append(d.rsample())  # where the key is about to be replaced
            super().__init__(may_wait)

    monkeypatch.setattr(base, "CacheKey", Key)
    assert d.temperature.mul_(2) == 1
    fresh = RelaxedBernoulli(1.0, logits=d._parameter)
    assert torch.equal(d.log_prob(drawn[0]), fresh.log_prob(drawn[0]))


def test_fake_numbers_are_not_shared():
    logits = torch.zeros(3)
    with FakeTensorMode():
        RelaxedBernoulli(0.123, logits=logits, validate_args=False)
    d = RelaxedBernoulli(0.123, logits=logits)
    assert type(d.rsample()) is type(d.temperature) is torch.Tensor


def test_fake_tensors_are_made_of_numbers_on_a_gpu():
    with FakeTensorMode():
        logits = torch.zeros(3, device="cuda")
        d = RelaxedBernoulli(0.5, logits=logits, validate_args=False)
        assert d.rsample().device == d.temperature.device == logits.device


def test_of_two_threads_one_is_given_the_cached_log_prob(monkeypatch):
    """A second thread may take it after the first one has seen that it is there."""
    d = RelaxedCategorical(0.5, logits=torch.zeros(4, 3))
    value, taken = d.sample(), []
    is_that_of = d._cache_key.state.is_that_of

    def interrupted(parameters):
        if not taken:
            taken.append(None)
            taken[0] = d.log_prob(value)
        return is_that_of(parameters)

    monkeypatch.setattr(d._cache_key.state, "is_that_of", interrupted)
    other = d.log_prob(value)
    assert other is not taken[0]
    torch.testing.assert_close(other, taken[0])
