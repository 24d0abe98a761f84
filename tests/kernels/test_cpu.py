# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The formulas, at once and in blocks, against the operations of the links."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    RelaxedCategorical,
    Subset,
    SubsetStraightThrough,
)
from pyro_gumbel.distributions.sample_cache import recall
from pyro_gumbel.kernels import cpu, formulas, reference, workspace
from pyro_gumbel.links import Hypersimplex, interval, simplex
from pyro_gumbel.ops import noise
from tests.common import (
    BERNOULLI,
    DISCRETE,
    FEW,
    GATES,
    RANKINGS,
    RELAXED,
    RELAXED_LOGITS,
    RELAXED_VALUES,
    STRAIGHT_THROUGH,
    assert_same_mean,
    build,
    make,
    param_shape,
    slow_unless,
)

pytestmark = pytest.mark.cpu(reason="the kernels of the CPU")

LINKS = [interval, simplex, Hypersimplex(2)]
NAMES = ["interval", "simplex", "hypersimplex"]
K = 5

PLAIN = [cls for cls in [*RELAXED, *STRAIGHT_THROUGH] if cls not in RANKINGS]
LINK_OF = {
    cls: i
    for column in (RELAXED_VALUES, RELAXED_LOGITS, STRAIGHT_THROUGH)
    for i, cls in enumerate(column)
} | dict.fromkeys(GATES, 0)

# sample shape, batch shape, shape of the parameter and of the temperature
FILLED = [
    ((), (), (), ()),
    ((), (3,), (3,), ()),
    ((4,), (3,), (3,), (3,)),
    ((4, 2), (3, 2), (3, 2), (3, 1)),
    ((2,), (3, 2), (2,), (3, 2)),
    ((5,), (), (), ()),
]
EMPTY = [((0,), (3,), (3,), ())]
SHAPES = FILLED + EMPTY


def draw(x, tau, link, sample, batch, *, keep):
    """s, v and log p(s) of a draw; the formulas draw the noise themselves."""
    return cpu.draw(x, tau, link, None, sample, batch, keep=keep, log_prob=True)


def straight_through_draw(x, tau, link, sample, batch):
    return cpu.straight_through_draw(x, tau, link, None, sample, batch)


def log_density(v, x, tau, link, batch, *, of_values):
    """log p at v, where no value is impossible."""
    value = link.value(v) if of_values else v
    return cpu.log_density(value, v, x, tau, link, batch, of_values=of_values)


def parameters(link, x_shape, tau_shape):
    """x and tau, in float64, which require a gradient."""
    event = (K,) if link.event_dim else ()
    x = torch.randn((*x_shape, *event), dtype=torch.float64, requires_grad=True)
    tau = torch.rand((*tau_shape, *(1 for _ in event if tau_shape)), dtype=torch.float64) + 0.3
    return x, tau.requires_grad_()


@pytest.fixture(params=["whole", "blocks"])
def one_noise(request, monkeypatch):
    """The noise that is drawn, for all at once or for blocks of two rows."""
    if request.param == "blocks":
        monkeypatch.setattr(cpu, "MANY", 1)
        monkeypatch.setattr(workspace, "BLOCK", 12)
    drawn = []

    def keep(sampler):
        def draw(shape, **kinds):
            drawn.append(sampler(shape, **kinds))
            return drawn[-1].clone()

        return draw

    exponential, logistic = keep(noise.exponential), keep(noise.logistic)
    for module in (cpu, formulas):
        monkeypatch.setattr(module, "logistic", logistic)
    monkeypatch.setattr(cpu, "exponential", exponential)
    monkeypatch.setattr(
        formulas, "log_exponential", lambda s, **kinds: exponential(s, **kinds).log()
    )
    return drawn


def graph(link, x, tau, variates):
    """s, v and log p(s) at given noise, as operations that autograd differentiates."""
    z = x - variates.log() if link.event_dim else x + variates
    v = link.unconstrained(z, tau)
    density = link.log_density(v, x, tau, of_values=True)
    return link.value(v), v, density


def whole_noise(drawn, shape, samples, rows):
    """The noise of the blocks, put together as the blocks are laid."""
    if len(drawn) == 1:
        return drawn[0].reshape(shape)
    columns, blocks = [], iter(drawn)
    while sum(column.shape[1] for column in columns) < rows:
        column = [next(blocks)]
        while sum(len(block) for block in column) < samples:
            column.append(next(blocks))
        columns.append(torch.cat(column))
    return torch.cat(columns, 1).reshape(shape)


def assert_same_gradients(found, expected, leaves):
    """The outputs and their gradients, in every combination of outputs that are used."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    weights = [torch.randn_like(one) for one in found]
    for n in range(1, len(found) + 1):
        for used in itertools.combinations(range(len(found)), n):
            totals = [
                sum((weights[i] * outputs[i]).sum() for i in used) for outputs in (found, expected)
            ]
            gradients = [torch.autograd.grad(t, leaves, retain_graph=True) for t in totals]
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("sample", "batch", "x_shape", "tau_shape"), EMPTY)
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_an_empty_draw_has_its_shape(link, sample, batch, x_shape, tau_shape):
    x, tau = parameters(link, x_shape, tau_shape)
    arguments = link, torch.Size(sample), torch.Size(batch)
    s, v, density = draw(x, tau, *arguments, keep=True)
    hard = straight_through_draw(x, tau, *arguments)
    assert s.shape == v.shape == hard.shape == (*sample, *batch, *((K,) if link.event_dim else ()))
    assert density.shape == (*sample, *batch)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("sample", "batch", "x_shape", "tau_shape"), FILLED)
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_draw_is_that_of_the_link(link, sample, batch, x_shape, tau_shape, keep, one_noise):
    x, tau = parameters(link, x_shape, tau_shape)
    arguments = link, torch.Size(sample), torch.Size(batch)
    s, v, density = draw(x, tau, *arguments, keep=keep)
    assert s.shape == (*sample, *batch, *((K,) if link.event_dim else ()))
    assert v is None or v.shape == s.shape
    assert density.shape == (*sample, *batch)
    samples, rows = torch.Size(sample).numel(), torch.Size(batch).numel()
    expected = graph(link, x, tau, whole_noise(one_noise, s.shape, samples, rows))
    v = s.log() if v is None else v
    assert_same_gradients((s, v, density), expected, [x, tau])


@pytest.mark.parametrize("far", [0.0, 200.0])
@pytest.mark.parametrize("is_learnt", [True, False], ids=["tau is learnt", "tau is fixed"])
@pytest.mark.parametrize(("sample", "batch", "x_shape", "tau_shape"), FILLED)
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_hard_draw_has_the_gradient_of_the_relaxed_one(
    link, sample, batch, x_shape, tau_shape, is_learnt, far, one_noise
):
    x, tau = parameters(link, x_shape, tau_shape)
    x = (x + far * link.event_dim).detach().requires_grad_()
    leaves = [x, tau.requires_grad_(is_learnt)][: 1 + is_learnt]
    hard = straight_through_draw(x, tau, link, torch.Size(sample), torch.Size(batch))
    samples, rows = torch.Size(sample).numel(), torch.Size(batch).numel()
    variates = whole_noise(one_noise, hard.shape, samples, rows)
    z = x - variates.log() if link.event_dim else x + variates
    torch.testing.assert_close(hard, link.hard(z))
    soft = link(z, tau)
    weight = torch.randn_like(soft)
    gradients = [torch.autograd.grad((y * weight).sum(), leaves) for y in (hard, soft)]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("of_values", [True, False])
@pytest.mark.parametrize(("sample", "batch", "x_shape", "tau_shape"), SHAPES)
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_density_is_that_of_the_link(
    link, sample, batch, x_shape, tau_shape, of_values, monkeypatch
):
    x, tau = parameters(link, x_shape, tau_shape)
    shape = (*sample, *batch, *((K,) if link.event_dim else ()))
    z = torch.randn(shape, dtype=torch.float64)
    v = link.unconstrained(z, torch.ones((), dtype=torch.float64)).requires_grad_()
    for many, block in ((2**30, 2**30), (1, 12)):
        monkeypatch.setattr(cpu, "MANY", many)
        monkeypatch.setattr(workspace, "BLOCK", block)
        found = log_density(v, x, tau, link, torch.Size(batch), of_values=of_values)
        expected = link.log_density(v, x, tau, of_values=of_values)
        assert_same_gradients([found], [expected.expand(found.shape)], [v, x, tau])


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_second_derivatives(link):
    """At noise that a seed fixes; the backward is differentiated like any function."""
    x, tau = parameters(link, (2,), (2,))
    sizes = torch.Size(), torch.Size((2,))

    def seeded(function, *arguments):
        torch.manual_seed(3)
        return function(*arguments, link, *sizes)

    assert torch.autograd.gradgradcheck(lambda *p: seeded(partial(draw, keep=True), *p), (x, tau))
    v = draw(x, tau, link, *sizes, keep=True)[1].detach().requires_grad_()
    for of_values in (True, False):
        assert torch.autograd.gradgradcheck(
            lambda *p, of_values=of_values: log_density(*p, link, sizes[1], of_values=of_values),
            (v, x, tau),
        )


@pytest.mark.parametrize("is_learnt", [True, False], ids=["tau is learnt", "tau is fixed"])
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_second_derivatives_of_a_hard_draw(link, is_learnt, one_noise):
    """They are those of the surrogate."""
    x, tau = parameters(link, (), ())
    leaves = [x, tau.requires_grad_(is_learnt)][: 1 + is_learnt]
    hard = straight_through_draw(x, tau, link, torch.Size(), torch.Size())
    (variates,) = one_noise
    soft = link(x - variates.log() if link.event_dim else x + variates, tau)
    weight = torch.randn_like(soft)
    found = []
    for y in (hard, soft):
        first = torch.autograd.grad((weight * y).sum(), leaves, create_graph=True)
        total = sum(g.sin().sum() for g in first) + (weight * y).sum()  # through both at once
        found.append(torch.autograd.grad(total, leaves))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cls", [BernoulliStraightThrough, CategoricalStraightThrough])
def test_a_selective_checkpoint_of_a_hard_draw(cls):
    """Of all that may be saved nothing is written to."""
    saved = {torch.ops.aten.clone.default}
    saved |= {getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div")}

    def policy(context, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.PREFER_RECOMPUTE

    def loss(x):
        return (cls(0.5, logits=1 * x).rsample() * torch.arange(5.0)).sum()

    x, gradients = torch.randn(4, 5, requires_grad=True), []
    contexts = partial(create_selective_checkpoint_contexts, policy)
    for checked in (loss, partial(checkpoint, loss, use_reentrant=False, context_fn=contexts)):
        torch.manual_seed(0)
        gradients += torch.autograd.grad(checked(x), x)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("one_noise", ["blocks"], indirect=True)
def test_v_is_kept_where_it_is_lost_in_the_value(one_noise):
    """On the simplex v is log(s) elsewhere. One row that has lost an entry makes all be kept."""
    tau = torch.tensor(0.5, dtype=torch.float64)
    x = torch.randn(6, K, dtype=torch.float64)
    shapes = simplex, torch.Size(), torch.Size((6,))
    assert draw(x, tau, *shapes, keep=False)[1] is None
    for row in range(6):
        x[row, 1] = -2e3
        one_noise.clear()
        s, v, _ = draw(x, tau, *shapes, keep=False)
        expected, *_ = graph(simplex, x, tau, whole_noise(one_noise, s.shape, 1, 6))
        torch.testing.assert_close(s, expected)
        assert s[row, 1] == 0
        assert v[row, 1] < -3900
        others = torch.arange(6) != row
        torch.testing.assert_close(v[others], s[others].log())
        x[row, 1] = 0.0


@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_a_value_caches_v_or_a_function_that_finds_it(temperature):
    """In both cases the log_prob of another distribution is exact, and so is its gradient."""
    d = make(RelaxedCategorical, temperature, (8000,), 10)
    other = make(RelaxedCategorical, temperature, (8000,), 10)
    value = d.rsample()
    assert callable(value._pyro_gumbel_cache.content) == (temperature == 0.5)
    v = recall(value, simplex)
    torch.testing.assert_close(v.exp(), value)
    exact = simplex.log_density(
        v.detach().double(),
        other.logits.detach().double(),
        torch.tensor(temperature, dtype=torch.float64),
        of_values=True,
    )
    torch.testing.assert_close(other.log_prob(value).double(), exact, rtol=1e-5, atol=1e-3)
    (gradient,) = torch.autograd.grad(other.log_prob(value).sum(), d._parameter)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_v_is_kept_for_half_values(dtype):
    d = make(RelaxedCategorical, 0.5, (8000,), 10, dtype=dtype)
    v = recall(d.sample(), simplex)
    assert v.dtype == torch.float32
    torch.testing.assert_close(v.logsumexp(-1), torch.zeros(8000), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cls", PLAIN)
@pytest.mark.parametrize("k", [3, 40])
def test_draws_and_gradients_are_contiguous(cls, k):
    """Whatever the layout of the scratch memory."""
    for rows in (10, 80_000):
        d = make(cls, batch_shape=(rows,), k=k)
        value = d.rsample()
        assert value.is_contiguous()
        (gradient,) = torch.autograd.grad(value.pow(2).sum(), d._parameter)
        assert gradient.is_contiguous()


@pytest.mark.parametrize("cls", PLAIN)
@pytest.mark.parametrize("k", [3, 40])
def test_draws_of_many_blocks_have_the_right_distribution(cls, k, monkeypatch):
    """Rounded they have the discrete distribution, and no block repeats another."""
    monkeypatch.setattr(workspace, "BLOCK", 2**17)
    monkeypatch.setattr(cpu, "MANY", 2**10)
    d = make(cls, batch_shape=(), k=k)
    n = 300_000 if cls in BERNOULLI else 900_000 // k
    value = d.sample((n,))
    v = value if cls in [*RELAXED_LOGITS, *STRAIGHT_THROUGH] else d._to_unconstrained(value)
    winners = v if cls in STRAIGHT_THROUGH else d.link.hard(v)
    assert_same_mean(
        winners, build(STRAIGHT_THROUGH[LINK_OF[cls]], 1.0, logits=d.logits).mean.detach()
    )
    if cls not in STRAIGHT_THROUGH:
        assert v.reshape(n, -1)[:, 0].unique().numel() > n / 2


@pytest.mark.parametrize("cls", PLAIN)
def test_sample_and_rsample_draw_alike_in_many_blocks(cls, monkeypatch):
    monkeypatch.setattr(workspace, "BLOCK", 2**10)
    monkeypatch.setattr(cpu, "MANY", 2**8)
    d = make(cls, batch_shape=(50,), k=4)
    draws = []
    for draw in (d.sample, d.rsample):
        torch.manual_seed(0)
        draws.append(draw((100,)).detach())
    assert draws[0].equal(draws[1])


@pytest.mark.parametrize("cls", RELAXED_VALUES[:3])
def test_the_density_of_a_draw_under_the_distribution_that_drew_it(cls):
    """It is that of any distribution with these parameters; in x it has the total derivative."""
    d = make(cls, 0.4, (3,), 4)
    value = d.rsample((2,))
    twin = build(cls, 0.4, logits=d._parameter)
    torch.testing.assert_close(d.log_prob(value), twin.log_prob(value), rtol=1e-5, atol=1e-5)
    assert d.log_prob(value).requires_grad
    assert d.expand((2, 3)).log_prob(value).equal(d.log_prob(value))
    with torch.no_grad():
        assert not d.log_prob(value).requires_grad
    ((total,), (other,)) = (
        torch.autograd.grad(d.log_prob(value).sum(), d._parameter, retain_graph=True)
        for d in (d, twin)
    )
    torch.testing.assert_close(total, other, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        cut = d.rsample((2,))
    (partial,) = torch.autograd.grad(d.log_prob(cut).sum(), d._parameter)
    (expected,) = torch.autograd.grad(twin.log_prob(cut).sum(), d._parameter)
    torch.testing.assert_close(partial, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("cls", RELAXED_VALUES[:3])
def test_a_parameter_that_has_changed_is_another(cls, in_place):
    """A step of an optimiser between the draw and its log_prob."""
    d = make(cls, 0.4, (3,), 4)
    value = d.rsample()
    moved = 1.5 * torch.randn_like(d._parameter)
    if in_place:
        with torch.no_grad():
            d._parameter.add_(moved)
    else:  # torch does not count this, but then the distribution is new
        d._parameter.data.add_(moved)
        d = build(cls, d._temperature, logits=d._parameter)
    fresh = build(cls, 0.4, logits=d._parameter.detach().clone())
    torch.testing.assert_close(d.log_prob(value).detach(), fresh.log_prob(value).detach())


@pytest.mark.parametrize("cls", RELAXED_VALUES[:3])
def test_probs_are_not_taken_for_logits(cls):
    parameter = torch.rand((3, *param_shape(cls, 4))).requires_grad_()
    temperature = torch.tensor(0.4)
    value = build(cls, temperature, logits=parameter).rsample()
    as_probs = build(cls, temperature, probs=parameter)
    fresh = build(cls, 0.4, probs=parameter.detach().clone())
    torch.testing.assert_close(as_probs.log_prob(value), fresh.log_prob(value))


@pytest.mark.parametrize("of_values", [True, False])
@pytest.mark.parametrize("link", [interval, simplex], ids=NAMES[:2])
def test_infinite_logits_leave_the_formulas(link, of_values):
    """Their densities are those of the reference; the draw itself is right."""
    x = torch.tensor([[0.5, -torch.inf, 0.1], [0.0, 0.3, -1.0]], requires_grad=True)
    tau = torch.tensor(0.5, requires_grad=True)
    batch = torch.Size((2,) if link.event_dim else (2, 3))
    s, v, density = draw(x, tau, link, torch.Size(), batch, keep=True)
    assert density is None
    assert s[0, 1] == 0
    hard = straight_through_draw(x, tau, link, torch.Size(), batch)
    for y in (s, hard):
        gradients = torch.autograd.grad(y.pow(2).sum(), [x, tau], retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
    value = s if of_values else v
    arguments = value, v, x, tau, link, batch
    found, expected = (
        kernels.log_density(*arguments, of_values=of_values) for kernels in (cpu, reference)
    )
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected)
    impossible = torch.where(x.isinf(), 0.1, value.detach())
    found = cpu.log_density(impossible, *arguments[1:], of_values=of_values)
    assert found.isneginf().sum() == 1


@pytest.mark.parametrize("tau", [1e-3, 1e-38])
def test_a_density_of_logits_near_0_is_finite_or_left_out(tau):
    """Logits that are known to be near 0, and a temperature that makes quotients overflow."""
    x = torch.randn(50, K)
    arguments = simplex, None, torch.Size(), torch.Size((50,))
    _, v, density = cpu.draw(x, torch.tensor(tau), *arguments, keep=True, log_prob=True, near=True)
    assert v.isfinite().all() == (density is not None) == (tau > 1e-38)
    assert density is None or density.isfinite().all()


def draws_in_a_thread(_):
    """Draws in inference mode, then others; whether their densities are those of their values."""
    logits = torch.randn(noise.MANY // 8, 8)
    d = RelaxedCategorical(0.5, logits=logits)
    with torch.inference_mode():
        d.rsample()
    for _ in range(20):
        value = d.rsample()
        torch.testing.assert_close(
            d.log_prob(value), d.log_prob(value.clone()), rtol=1e-4, atol=1e-3
        )
    return True


def test_threads_and_modes_do_not_share_scratch_memory():
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(draws_in_a_thread, range(4)))


@pytest.mark.parametrize("k", [3, 8, 40])
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_draw_in_float32_is_that_of_the_link_in_float64(link, k, monkeypatch):
    """In blocks with scratch memory, which short rows lie across."""
    monkeypatch.setattr(workspace, "BLOCK", 2**17)
    drawn = []

    def noting(sampler):
        def sample_(out):
            drawn.append(sampler(out).clone())
            return out

        return sample_

    monkeypatch.setattr(cpu, "exponential_", noting(noise.exponential_))
    monkeypatch.setattr(cpu, "logistic_", noting(noise.logistic_))
    batch = torch.Size((340_000 // k, *(() if link.event_dim else (k,))))
    x = torch.randn(340_000 // k, k, requires_grad=True)
    tau = torch.tensor(0.5, requires_grad=True)
    s, v, density = draw(x, tau, link, torch.Size(), batch, keep=False)
    assert len(drawn) == 3
    variates = torch.cat([block.reshape(-1, k if link.event_dim else 1) for block in drawn])
    exact = [t.detach().double().requires_grad_() for t in (x, tau)]
    expected = graph(link, *exact, variates.reshape(x.shape).double())
    v = s.log() if v is None else v
    for one, other in zip((s, v, density), expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    weight = torch.rand_like(s)
    totals = (density.sum() + (weight * s).sum(), expected[2].sum() + (weight * expected[0]).sum())
    found, right = (
        torch.autograd.grad(t, leaves) for t, leaves in zip(totals, ([x, tau], exact), strict=True)
    )
    torch.testing.assert_close(found[0].double(), right[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1].double(), right[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", [*RELAXED_VALUES[:3], *RELAXED_LOGITS])
def test_a_value_of_many_rows_under_a_batch_of_one(cls):
    many = make(cls, batch_shape=(noise.MANY,), k=3)
    d = make(cls, batch_shape=(1,), k=3, validate_args=False)  # some are saturated
    value = many.sample().clone()
    score = d.log_prob(value)
    assert score.shape == (noise.MANY,)
    part = d.log_prob(value[:7].clone())
    torch.testing.assert_close(score[:7], part, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(score.sum(), d._parameter)
    halves = [d.log_prob(half.clone()).sum() for half in value.split(1000)]
    (expected,) = torch.autograd.grad(sum(halves), d._parameter)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=0.5)


@pytest.mark.parametrize("cls", PLAIN)
def test_autocast_rounds_no_gradient(cls):
    d = make(cls, batch_shape=(noise.MANY,), k=3)
    value = d.rsample()
    total = (value * torch.randn(value.shape)).sum()
    (expected,) = torch.autograd.grad(total, d._parameter, retain_graph=True)
    with torch.autocast("cpu"):
        (found,) = torch.autograd.grad(total, d._parameter)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cls", RELAXED_VALUES[:3])
def test_a_log_prob_that_has_been_changed_is_not_given_again(cls):
    d = make(cls, 0.4, (3,), 4)
    value = d.rsample()
    right = d.log_prob(value).detach().clone()
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            score = d.log_prob(value)
            score -= 5
        torch.testing.assert_close(d.log_prob(value).detach(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", PLAIN)
def test_many_gradients_of_many_blocks_at_once(cls, monkeypatch):
    """By `is_grads_batched`, as of `functional.jacobian(vectorize=True)`, and by `torch.vmap`."""
    monkeypatch.setattr(cpu, "MANY", 1)
    monkeypatch.setattr(workspace, "BLOCK", 12)
    logits = torch.randn(4, *param_shape(cls, K), dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    d = build(cls, tau, logits=logits)
    for output in (d.rsample((3,)), d.log_prob(d.sample((3,)).clone())):
        weights = torch.randn(2, *output.shape, dtype=torch.float64)
        leaves = [leaf for leaf in (logits, tau) if _is_used(output, leaf)]
        pull = partial(torch.autograd.grad, output, leaves, retain_graph=True)
        expected = [torch.stack(each) for each in zip(*map(pull, weights), strict=True)]
        for found in (pull(weights, is_grads_batched=True), torch.vmap(pull)(weights)):
            torch.testing.assert_close(list(found), expected)


def _is_used(output, leaf):
    (gradient,) = torch.autograd.grad(output.sum(), leaf, retain_graph=True, allow_unused=True)
    return gradient is not None


@pytest.mark.parametrize(
    "cls", slow_unless(FEW.__contains__, [*RELAXED, *STRAIGHT_THROUGH, *DISCRETE])
)
def test_a_batch_of_gradients_of_a_large_draw_is_its_gradients_one_by_one(cls):
    """As `jacobian(vectorize=True)` asks for them: of draws, own densities and those of a value."""
    logits = torch.randn(noise.MANY // (1 if cls in BERNOULLI else 4), *param_shape(cls, 5))
    torch.manual_seed(1)
    value = build(cls, 0.5, logits=logits).sample().clone()
    scored = (
        3 if cls in (Subset, SubsetStraightThrough) else len(logits)
    )  # the probability of a subset is slow

    def call(shift, temperature):
        torch.manual_seed(2)
        d = build(cls, temperature, logits=logits + shift, validate_args=False)
        moved = value + (temperature - temperature.detach())
        some = build(cls, temperature, logits=(logits + shift)[:scored], validate_args=False)
        found = [some.log_prob(value[:scored]), some.log_prob(moved[:scored])]
        if d.has_rsample:
            drawn = d.rsample()
            found += [drawn, drawn.square().sum()]
            found += [d.log_prob(drawn)] * (scored == len(logits))
        return torch.stack([part.reshape(-1)[i] for part in found for i in (0, -1)])

    inputs = torch.zeros(param_shape(cls, 5)), torch.tensor(0.5)
    by_one, at_once = (
        torch.autograd.functional.jacobian(call, inputs, vectorize=vectorize)
        for vectorize in (False, True)
    )
    for expected, found in zip(by_one, at_once, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
