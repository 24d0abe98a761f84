# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The distributions on top of the kernels: what autograd, transforms and caches see.

The kernels stand in for those of the CPU; on a GPU they are chosen in the same way.
"""

import pytest
import torch

import pyro_gumbel
from pyro_gumbel import RelaxedBernoulli, RelaxedCategorical, RelaxedSubset
from pyro_gumbel.distributions.sample_cache import recall
from pyro_gumbel.kernels import cuda, dispatch, reference
from pyro_gumbel.links import simplex
from pyro_gumbel.ops.second_order import with_bit_gradient, with_one_hot_gradient
from tests.common import (
    RANKINGS,
    RELAXED_LOGITS,
    RELAXED_VALUES,
    STRAIGHT_THROUGH,
    build,
    make,
    param_shape,
    smooth,
)
from tests.kernels.triton.common import (
    LINKS,
    NAMES,
    assert_near,
    in_double,
    noise_of,
    parameters,
    placed,
    smooth_total,
    state_of_generator,
)

VALUES = [cls for cls in smooth(RELAXED_VALUES) if cls not in RANKINGS]
HARD = [cls for cls in STRAIGHT_THROUGH if cls not in RANKINGS]
ALL = [*VALUES, *RELAXED_LOGITS, *HARD]


pytestmark = pytest.mark.usefixtures("on_the_kernels")


def with_parameter(cls, batch=(4,), k=5, dtype=torch.float32, temperature=0.6):
    """A distribution whose logits are the result of an operation, and the leaf behind them."""
    leaf = torch.randn(*batch, *param_shape(cls, k), dtype=dtype, requires_grad=True)
    return build(cls, temperature, logits=leaf * 1.0, validate_args=False), leaf


def test_the_kernels_are_found():
    here = torch.get_default_device()
    assert pyro_gumbel.kernels.backend(here) == "triton"
    assert pyro_gumbel.kernels.backend("meta") == "operations"
    assert pyro_gumbel.kernels.backend("cuda") in ("triton", "operations")
    cuda.try_on(here)


# Derivatives of gradients.


def in_graph(link, noise, x, tau):
    """The sum of smooth functions of a draw, its density and its hard value."""
    centred = link.centred(x)
    v = link.unconstrained(centred + noise, tau)
    s = link.value(v)
    return s, v, link.log_density(v, centred, tau, of_values=True), s


def total_of(gradients):
    """A smooth function of gradients, to take the derivative of.

    Its slope is at most 1, and changes by less than the relative change of a gradient. The sine of
    a gradient of 100 has a slope that is wrong by 100 times that.
    """
    return sum(gradient.asinh().sum() for gradient in gradients)


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_second_derivatives(link):
    x, tau = parameters(link, 4, (2,))
    arguments = placed(x, tau, link, (3,))
    others = in_double(x, tau)
    drawn = cuda._FusedDraw.apply(*arguments, True, True, True)
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    expected = in_graph(link, noise_of(arguments), *others)
    for found, right in zip((*drawn, hard), expected, strict=True):
        weight = torch.linspace(0.5, 1.5, found.numel()).view(found.shape)
        totals = []
        for y, leaves in ((found, [x, tau]), (right, others)):
            first = torch.autograd.grad((y * weight).sum(), leaves, create_graph=True)
            second = torch.autograd.grad(total_of(first), leaves, retain_graph=True)
            totals.append([*first, *second])
        for one, other in zip(*totals, strict=True):
            assert_near(one, other, 2e-5)


@pytest.mark.parametrize("of_values", [True, False])
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_second_derivatives_of_a_density(link, of_values):
    x, tau = parameters(link, 4, (2,))
    v = link.unconstrained(torch.randn(3, *x.shape), torch.ones(())).requires_grad_()
    value = (link.value(v) if of_values else v).detach()
    batch = x.shape[: x.dim() - link.event_dim]
    results = []
    for kernels, leaves in ((cuda, [v, x, tau]), (reference, in_double(v, x, tau))):
        y = kernels.log_density(
            value.to(leaves[0].dtype), *leaves, link, batch, of_values=of_values
        )
        first = torch.autograd.grad(y.sum(), leaves, create_graph=True)
        results.append([*first, *torch.autograd.grad(total_of(first), leaves)])
    for one, other in zip(*results, strict=True):
        assert_near(one, other, 2e-5)


@pytest.mark.parametrize("link", LINKS[:2], ids=NAMES[:2])
def test_derivatives_of_the_gradient_of_second_order(link):
    """It is linear in the gradient that comes in, and p is held constant."""
    x, tau = parameters(link, 4, (2,))
    arguments = placed(x, tau, link, (3,))
    hard = cuda._FusedSecondOrderDraw.apply(x, *arguments[2:])
    grads = torch.randn(3, *hard.shape, requires_grad=True)
    attach = with_one_hot_gradient if link.event_dim else with_bit_gradient
    expected = attach(hard.detach(), x.expand(hard.shape))
    first, other = (
        torch.autograd.grad(y, x, grads[0], create_graph=True)[0] for y in (hard, expected)
    )
    assert_near(first, other)
    (in_x,) = torch.autograd.grad(smooth_total([first]), x, retain_graph=True, allow_unused=True)
    assert in_x is None or (in_x == 0).all()
    found, right = (torch.autograd.grad(g.sin().sum(), grads)[0] for g in (first, other))
    assert_near(found, right)
    options = {"is_grads_batched": True, "retain_graph": True}
    found, right = (torch.autograd.grad(y, x, grads, **options)[0] for y in (hard, expected))
    assert_near(found, right)


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_temperature_that_depends_on_the_logits(link):
    """Each gets its own part of the gradient, also of its derivative."""
    x, _ = parameters(link, 4, (2,))
    results = []
    for kernel in (True, False):
        leaf = x.detach().double().requires_grad_() if not kernel else x
        tau = 0.5 + leaf.square().mean()
        arguments = placed(x, tau.float(), link)
        if kernel:
            y = cuda._FusedDraw.apply(*arguments, True, False, False)[0]
        else:
            y = in_graph(link, noise_of(arguments), leaf, tau)[0]
        total = (y * torch.linspace(0.5, 1.5, y.numel()).view(y.shape)).sum()
        (first,) = torch.autograd.grad(total, leaf, create_graph=True)
        results.append((first, torch.autograd.grad(first.sin().sum(), leaf)[0]))
    for one, other in zip(*results, strict=True):
        assert_near(one, other, 2e-5)


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_several_gradients_at_once(link):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    x, tau = parameters(link, 3, (2,))
    arguments = placed(x, tau, link)
    drawn = cuda._FusedDraw.apply(*arguments, True, True, True)
    hard = cuda._FusedStraightThroughDraw.apply(*arguments)
    v = drawn[1].detach().requires_grad_()
    log_p = cuda.log_density(link.value(v), v, x, tau, link, arguments[-1], of_values=True)
    for y, leaves in (*((y, [x, tau]) for y in (*drawn, hard)), (log_p, [v, x, tau])):
        grads = torch.randn(3, *y.shape)
        options = {"retain_graph": True, "allow_unused": True}
        found = torch.autograd.grad(y, leaves, grads, is_grads_batched=True, **options)
        each = [torch.autograd.grad(y, leaves, g, **options) for g in grads]
        for one, others in zip(found, zip(*each, strict=True), strict=True):
            assert_near(one, torch.stack(others), 1e-5)


# Values remember.


@pytest.mark.parametrize("temperature", [0.6, 0.02])
@pytest.mark.parametrize("cls", VALUES)
def test_a_value_finds_its_v_again(cls, temperature):
    """By drawing the noise again: no tensor keeps it. Its gradient is that of the draw."""
    d, leaf = with_parameter(cls, temperature=temperature)
    value = d.rsample((3,))
    assert callable(value._pyro_gumbel_cache.content)
    v = recall(value, d.link)
    assert_near(d.link.value(v), value, 1e-6)
    other, _ = with_parameter(cls, temperature=temperature)
    log_p = other.log_prob(value)
    exact = d.link.log_density(v.double(), other.logits.double(), other.temperature.double(),
                               of_values=True)  # fmt: skip
    assert_near(log_p, exact, 1e-5)
    (found,) = torch.autograd.grad(v.sin().sum(), leaf, retain_graph=True)
    kept = cuda.draw(
        d._logits, d._tau, d.link, None, torch.Size((3,)), d.batch_shape, keep=True, log_prob=False
    ).unconstrained
    assert isinstance(kept, torch.Tensor)
    assert found.isfinite().all()
    assert log_p.requires_grad


@pytest.mark.parametrize("cls", VALUES)
def test_v_is_kept_where_changes_are_not_counted(cls):
    """Of leaves; and what is changed in place gives the clamped inverse."""
    d = make(cls, 0.6, (4,), 5)
    assert isinstance(d.rsample()._pyro_gumbel_cache.content, torch.Tensor)
    d, leaf = with_parameter(cls)
    value = d.rsample()
    v = recall(value, d.link)
    with torch.no_grad():
        d._logits.add_(torch.randn_like(leaf))
    assert_near(recall(value, d.link), d.link.inverse(value))
    assert_near(d.link.value(v), value, 1e-6)


@pytest.mark.parametrize("cls", VALUES)
def test_sample_and_rsample_draw_alike(cls):
    d, _ = with_parameter(cls)
    draws = []
    for draw in (d.rsample, d.sample):
        torch.manual_seed(3)
        draws.append(draw((2,)))
    assert draws[0].equal(draws[1])
    assert not recall(draws[1], d.link).requires_grad
    again = build(cls, 0.6, logits=d.logits).log_prob(draws[1])
    assert_near(again, d.log_prob(draws[0]), 1e-5)


@pytest.mark.parametrize("estimator", ["second_order", "gumbel_softmax", "reinmax"])
@pytest.mark.parametrize("cls", HARD[:2])
def test_estimators(cls, estimator):
    """`second_order` is ReinMax at temperature 1, with a kernel of its own."""
    leaf = torch.randn(4, *param_shape(cls, 5), requires_grad=True)
    tau = None if estimator == "second_order" else 1.0
    d = cls(tau, logits=leaf * 1.0, estimator=estimator)
    draws = []
    for draw in (d.rsample, d.sample):
        torch.manual_seed(3)
        draws.append(draw((2,)))
    assert torch.equal(*draws)
    weight = torch.randn_like(draws[1])
    (found,) = torch.autograd.grad((draws[0] * weight).sum(), leaf)
    if estimator == "second_order":
        fused = dispatch.second_order_draw(
            d._logits, d.link, d.family.noise, torch.Size((2,)), d.batch_shape
        )
        assert type(fused.grad_fn).__name__ == "_FusedSecondOrderDrawBackward"
        attach = with_one_hot_gradient if d.link.event_dim else with_bit_gradient
        expected = attach(draws[1], leaf.expand(draws[1].shape))
        (right,) = torch.autograd.grad((expected * weight).sum(), leaf)
        assert_near(found, right)
    assert found.isfinite().all()


@pytest.mark.parametrize("cls", ALL)
def test_a_seed_repeats_a_draw(cls):
    d, _ = with_parameter(cls)
    torch.manual_seed(1)
    first, second = d.rsample(), d.rsample()
    torch.manual_seed(1)
    assert d.rsample().equal(first)
    if cls not in HARD:
        assert not second.equal(first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("cls", ALL)
def test_dtypes(cls, dtype):
    """float64 is computed by the reference."""
    d, leaf = with_parameter(cls, dtype=dtype)
    value = d.rsample((2,))
    assert value.dtype == dtype
    total = value.sum() + d.log_prob(value).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@pytest.mark.parametrize("cls", ALL)
def test_transforms_and_programs_use_the_operations(cls, monkeypatch):
    def score(logits):
        d = build(cls, 0.5, logits=logits, validate_args=False)
        return d.log_prob(d.rsample()).sum()

    def refuse(*_, **__):
        raise AssertionError("a kernel ran")

    logits = torch.randn(2, *param_shape(cls, 3))
    score(logits)
    monkeypatch.setattr(cuda._Plan, "run", refuse)
    with pytest.raises(AssertionError):
        score(logits)
    torch.func.vmap(score, randomness="different")(logits)
    torch.func.grad(score)(logits)
    torch.func.jvp(score, (logits,), (logits,))
    if cls is RelaxedCategorical:  # slow
        compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
        assert compiled(logits).isfinite()


@pytest.mark.parametrize("cls", ALL)
def test_logits_that_have_left_a_transform(cls):
    """They are plain tensors again."""
    left = []
    torch.func.grad(lambda x: left.append(x * 1.0) or x.sum())(torch.randn(4, *param_shape(cls, 3)))
    d = build(cls, 0.5, logits=left[0], validate_args=False)
    value = d.rsample()
    assert value.isfinite().all()
    assert d.log_prob(value).equal(d.log_prob(value))


@pytest.mark.parametrize("cls", VALUES)
def test_a_draw_from_outside_of_a_transform(cls):
    """It finds its v inside, from the value."""
    logits = torch.randn(4, *param_shape(cls, 3), requires_grad=True) * 1.0
    value = build(cls, 2.0, logits=logits, validate_args=False).rsample()

    def score(shift):
        return build(cls, 0.7, logits=logits + shift, validate_args=False).log_prob(value).sum()

    shift = torch.tensor(0.1, requires_grad=True)
    (expected,) = torch.autograd.grad(score(shift), shift, retain_graph=True)
    assert_near(torch.func.grad(score)(shift.detach()), expected, 1e-5)


# Nothing waits for the GPU.


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_nothing_is_read_back(link, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a number was read")

    x, tau = parameters(link)
    noise, batch = None, torch.Size(x.shape[: x.dim() - link.event_dim])
    arguments = x * 1.0, tau * 1.0, link, noise, torch.Size((2,)), batch
    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "nonzero", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch, "equal", refuse)
    drawn = cuda.draw(*arguments, keep=False, log_prob=True)
    v = drawn.unconstrained(drawn.value)
    found = cuda.log_density(drawn.value, v, x, tau, link, batch, of_values=True)
    hard = cuda.straight_through_draw(*arguments)
    (drawn.value.sum() + drawn.log_prob.sum() + found.sum() + hard.sum()).backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("cls", [RelaxedBernoulli, RelaxedCategorical, RelaxedSubset])
def test_the_seed_is_all_that_is_drawn(cls, monkeypatch):
    """One number by torch's generator, so that replays of a CUDA graph draw anew."""
    d, _ = with_parameter(cls)
    torch.manual_seed(0)
    d.rsample((50,))
    state = state_of_generator()
    torch.manual_seed(0)
    torch.randint(0, 2**63 - 1, (1,))
    assert state_of_generator().equal(state)


# Launches.


class Kernel:
    """Says whether it was asked for itself, or for what it was compiled to."""

    __name__ = "a kernel of the test"
    arg_names = ("x_ptr", "y_ptr", "n", "x_rows", "tau_rows", "stride", "FORM", "K")

    def __init__(self):
        self.asked = []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.asked.append("itself")
            return Compiled(self.asked, options)

        return run


class Compiled:
    def __init__(self, asked, options):
        self.asked, self.options = asked, options

    def __getitem__(self, grid):
        assert len(grid) == 3

        def run(*arguments):
            assert arguments[6:] == (self.options["FORM"], self.options["K"])
            self.asked.append("compiled")

        return run


class KernelOfThreads(Kernel):
    """One that Triton compiles on another thread, as in `triton.AsyncCompileMode`."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.asked.append("itself") or Future()


class Future:
    """It has the attributes of what is compiled, and so it seems to have all methods."""

    def __getattr__(self, name):
        return lambda *arguments: None


def plan_of_rows(n, k):
    over = torch.Size((n,))
    return cuda._Plan(torch.Size((n, k)), None, simplex, over, over, 512, 4096)


def test_a_launch_is_known_for_arguments_of_the_same_kinds():
    """Others, such as of another dtype, alignment or stride, are compiled for."""
    kernel, x, plan, form = Kernel(), torch.zeros(64), plan_of_rows(8, 5), {"FORM": 1}
    others = [
        (plan, (x.double(), None), 7, form),
        (plan, (x[1:], None), 7, form),
        (plan, (x, x), 7, form),
        (plan, (x, 0.5), 7, form),
        (plan, (x, None), 1, form),
        (plan, (x, None), 7.0, form),
        (plan, (x, None), 7, {"FORM": 2}),
        (plan, (x, None), 7, {"waits_for_memory": True, **form}),
        (plan_of_rows(8, 6), (x, None), 7, form),
        (plan_of_rows(9, 5), (x, None), 7, form),
    ]
    for plan_, pointers, stride, options in ((plan, (x, None), 7, form), *others):
        for asked in ("itself", "compiled"):
            plan_.run(kernel, *pointers, more=(stride,), **options)
            assert kernel.asked[-1] == asked
    plan.run(kernel, torch.ones(128), None, more=(7,), **form)
    plan.run(kernel, x, 0.25, more=(7,), **form)
    plan.run(kernel, x, None, more=(0.1,), **form)
    assert kernel.asked[-3:] == ["compiled"] * 3


def test_a_kernel_that_is_compiled_later_is_asked_for_again():
    kernel, plan = KernelOfThreads(), plan_of_rows(8, 5)
    for _ in range(2):
        plan.run(kernel, torch.zeros(64), None, more=(7,), FORM=1)
    assert kernel.asked == ["itself"] * 2
