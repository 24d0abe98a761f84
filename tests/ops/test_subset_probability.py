# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Subset, inclusion and rank probabilities: enumeration, mpmath, and closed forms."""

import itertools
import math

import mpmath
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_gumbel import PlackettLuce, Subset
from pyro_gumbel.ops.rank_probability import inclusion_probabilities, rank_probabilities
from pyro_gumbel.ops.subset_probability import log_subset_prob
from tests.common import first_fast

SPREADS = [0.0, 0.1, 1.0, 3.0, 10.0, 50.0]


def log_prob_over_rankings(x, chosen):
    """log P(S) as the sum over the m! rankings, at 50 digits."""
    with mpmath.workdps(50):
        weights, total = dict(enumerate(map(mpmath.exp, x))), mpmath.mpf(0)
        for order in itertools.permutations(chosen):
            left, product = weights.copy(), mpmath.mpf(1)
            for i in order:
                total_left = mpmath.fsum(left.values())  # no difference, which can be 0
                product *= left.pop(i) / total_left
            total += product
        return float(mpmath.log(total))


def log_prob(x, chosen):
    value = torch.zeros(len(x), dtype=torch.float64)
    value[list(chosen)] = 1
    return Subset(len(chosen), logits=x).log_prob(value).item()


def subsets(k, m):
    return list(itertools.combinations(range(k), m))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("k", [2, 3, 4, 6, 8])
def test_the_subset_probability_is_the_sum_over_rankings(k, spread):
    for m in range(1, min(k, 6)):
        x = spread * torch.randn(k, dtype=torch.float64)
        chosen = torch.randperm(k)[:m].tolist()
        exact = log_prob_over_rankings(x.tolist(), chosen)
        assert log_prob(x, chosen) == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("k", "m"), [(4, 1), (4, 2), (8, 3), (12, 6), (12, 11), (5, 5)])
def test_probabilities_of_all_subsets_sum_to_one(k, m, spread):
    distribution = Subset(m, logits=spread * torch.randn(k, dtype=torch.float64))
    log_probs = distribution.log_prob(distribution.enumerate_support())
    assert log_probs.logsumexp(0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [10, 1000, 100_000])
def test_equal_logits_make_all_subsets_equally_likely(k):
    for m in {1, 5, 50, 500, k // 2, k - 1}:
        if m < k:
            advantages = torch.full((m,), -math.log(k - m), dtype=torch.float64)
            exact = -float(mpmath.log(mpmath.binomial(k, m)))
            assert log_subset_prob(advantages).item() == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("count", [1, 10, 1000, 30_000])
@pytest.mark.parametrize("advantage", [-10.0, 0.0, 3.0, 8.0, 13.0, 20.0])
def test_the_probability_where_the_integrand_has_a_sharp_edge(count, advantage):
    """With n equal advantages d: of n waiting times with rate e^d and one with rate 1 the latter is
    the last with the probability prod_j j e^d / (j e^d + 1), j = 1, ..., n.
    """
    d = torch.full((count,), advantage, dtype=torch.float64)
    j = torch.arange(1, count + 1, dtype=torch.float64)
    exact = -torch.log1p(1 / (j * math.exp(advantage))).sum().item()
    assert log_subset_prob(d).item() == pytest.approx(exact, rel=1e-10, abs=1e-11)


def test_advantages_that_overflow_are_certain_or_impossible():
    d = torch.tensor([[1000.0, 1e300], [-1000.0, 3.0]], dtype=torch.float64, requires_grad=True)
    found = log_subset_prob(d)
    assert found[0].item() == pytest.approx(0, abs=1e-12)
    assert found[1].item() == pytest.approx(-1000, abs=1)
    (slopes,) = torch.autograd.grad(found.sum(), d)
    torch.testing.assert_close(slopes[0], torch.zeros(2, dtype=torch.float64))
    assert slopes[1, 0].item() == pytest.approx(1)


def test_derivatives_of_the_subset_probability():
    d = (2 * torch.randn(3, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(log_subset_prob, d, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(log_subset_prob, d)
    batched = torch.vmap(torch.func.grad(log_subset_prob))(d.detach())
    torch.testing.assert_close(batched, torch.autograd.grad(log_subset_prob(d).sum(), d)[0])


def test_forward_derivatives_of_the_subset_probability_can_be_taken_twice():
    """A jvp of one's own would have a second derivative of 0, without a word."""
    d = torch.randn(4, dtype=torch.float64)
    forward = torch.func.jacfwd(torch.func.jacfwd(log_subset_prob))(d)
    reverse = torch.autograd.functional.hessian(log_subset_prob, d)
    torch.testing.assert_close(forward, reverse)
    assert forward.abs().max() > 1e-3


def test_the_derivative_of_a_large_set_is_found_in_blocks():
    d = torch.linspace(-9, -5, 20_000, dtype=torch.float64)
    whole = d.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(log_subset_prob(whole), whole)
    step = torch.zeros_like(d)
    step[777] = 1e-4
    difference = (log_subset_prob(d + step) - log_subset_prob(d - step)) / 2e-4
    assert slopes[777].item() == pytest.approx(difference.item(), rel=1e-5)


# Inclusion.


def test_the_inclusion_probabilities_of_four():
    found = Subset(2, probs=torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)).mean
    expected = torch.tensor([0.7159, 0.6083, 0.4413, 0.2345], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("k", "m"), [(2, 1), (3, 2), (5, 1), (6, 3), (12, 6), (13, 9), (14, 13)])
def test_inclusion_is_the_mean_of_all_subsets(k, m, spread):
    distribution = Subset(m, logits=spread * torch.randn(k, dtype=torch.float64))
    values = distribution.enumerate_support()
    exact = (distribution.log_prob(values).exp().unsqueeze(-1) * values).sum(0)
    torch.testing.assert_close(distribution.mean, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("k", "m"), first_fast([(1000, 10), (500, 250), (1000, 900)], 2))
def test_inclusion_of_many_categories(k, m):
    """Equal ones are included alike; unequal ones sum to m."""
    zeros = torch.zeros(k, dtype=torch.float64)
    torch.testing.assert_close(
        inclusion_probabilities(zeros, m), torch.full_like(zeros, m / k), rtol=0, atol=1e-12
    )
    found = inclusion_probabilities(3 * torch.randn(k, dtype=torch.float64), m)
    assert found.sum().item() == pytest.approx(m, abs=1e-10)
    assert (found >= 0).all()
    assert (found <= 1 + 1e-12).all()


def test_inclusion_leaves_out_what_cannot_occur():
    x = torch.tensor([0.3, -math.inf, 1.0, -2.0, -math.inf], dtype=torch.float64)
    alive = x.isfinite()
    found = inclusion_probabilities(x, 2)
    torch.testing.assert_close(found[alive], inclusion_probabilities(x[alive], 2))
    assert (found[~alive] == 0).all()
    assert (inclusion_probabilities(x, 3)[alive] - 1).abs().max() < 1e-12


def test_the_gradient_of_inclusion():
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: inclusion_probabilities(x, 2), x)
    assert torch.autograd.gradcheck(lambda x: inclusion_probabilities(x, 4), x)


def test_a_shift_of_the_logits_does_not_change_inclusion():
    x = torch.tensor([1e17, 0, 1e17], dtype=torch.float64)
    found = Subset(1, logits=x).mean
    torch.testing.assert_close(found, x / 2e17, rtol=0, atol=1e-15)


# Ranks.


def ranks_by_enumeration(x, size):
    """The mean of all rankings, weighted by their probabilities."""
    distribution = PlackettLuce(size, logits=x)
    values = distribution.enumerate_support()
    return (distribution.log_prob(values).exp().reshape(-1, 1, 1) * values).sum(0)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 2), (3, 1), (5, 5), (6, 3), (7, 6), (40, 2)])
def test_ranks_are_the_mean_of_all_rankings(k, m, spread):
    x = spread * torch.randn(k, dtype=torch.float64)
    found = rank_probabilities(x, m)
    torch.testing.assert_close(found, ranks_by_enumeration(x, m), rtol=0, atol=1e-13)


def clusters(k, distance, width):
    """Three groups of logits, `distance` apart."""
    groups = torch.arange(k, dtype=torch.float64).remainder(3)
    return distance * groups + width * torch.randn(k, dtype=torch.float64)


def every_third(x):
    """Two thirds of the logits -inf."""
    return torch.where(torch.arange(len(x)) % 3 == 0, x, -math.inf)


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(lambda: torch.zeros(150, dtype=torch.float64), id="equal"),
        pytest.param(lambda: clusters(90, 3.0, 0.1), id="near"),
        pytest.param(lambda: clusters(60, 12.0, 1.0), id="apart"),
        pytest.param(lambda: clusters(30, 1e5, 0.0), id="far"),
        pytest.param(lambda: -7 * torch.arange(40, dtype=torch.float64), id="line"),
        pytest.param(lambda: -1e300 * torch.arange(5, dtype=torch.float64), id="huge"),
        pytest.param(lambda: every_third(clusters(90, 2.0, 1.0)), id="impossible"),
    ],
)
def test_many_ranks_are_probabilities(logits):
    """Rows and columns have their sums, the first m rows that of a subset, the first is softmax."""
    x = logits()
    alive = x > -math.inf
    k = int(alive.sum())
    found = rank_probabilities(x, k)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[:, ~alive] == 0).all()
    ones = torch.ones(k, dtype=torch.float64)
    torch.testing.assert_close(found.sum(-1), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(-2)[alive], ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0], x.softmax(-1), rtol=0, atol=1e-13)
    for m in {1, 2, k // 2, k - 1}:
        included = inclusion_probabilities(x, m)
        torch.testing.assert_close(found[:m].sum(-2), included, rtol=0, atol=1e-12)
        few = rank_probabilities(x, m)
        torch.testing.assert_close(few, found[:m], rtol=0, atol=1e-12)


def test_ranks_of_equal_logits_are_equally_likely():
    found = rank_probabilities(torch.zeros(200, dtype=torch.float64), 200)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 200), rtol=0, atol=1e-15)


MEANS = [(inclusion_probabilities, 2), (inclusion_probabilities, 4), (rank_probabilities, 3)]


@pytest.mark.parametrize(("mean", "size"), MEANS)
def test_derivatives_of_ranks_in_all_modes(mean, size):
    x = (2 * torch.randn(2, 5, dtype=torch.float64)).requires_grad_()
    options = {"check_batched_grad": True}
    call = lambda x: mean(x, size)  # noqa: E731
    assert torch.autograd.gradcheck(call, x, check_forward_ad=True, **options)
    assert torch.autograd.gradgradcheck(call, x, **options)
    x = x.detach()
    torch.testing.assert_close(torch.vmap(call)(x), call(x))
    hessian = torch.func.jacrev(torch.func.jacrev(call))(x[0])
    for twice in (torch.func.hessian, lambda f: torch.func.jacfwd(torch.func.jacfwd(f))):
        torch.testing.assert_close(twice(call)(x[0]), hessian)
    torch.testing.assert_close(torch.vmap(torch.func.hessian(call))(x)[0], hessian)


@pytest.mark.parametrize("spread", [0.1, 3.0, 300.0])
def test_backward_and_forward_derivatives_of_many_ranks_agree(spread):
    """They are sums of other terms: the one of pairs, the other of the rule itself."""
    x = (spread * torch.randn(40, dtype=torch.float64)).requires_grad_()
    direction = torch.randn(40, dtype=torch.float64)
    for mean, size in ((inclusion_probabilities, 15), (rank_probabilities, 40)):
        call = lambda x, mean=mean, size=size: mean(x, size)  # noqa: E731
        forward = torch.func.jvp(call, (x.detach(),), (direction,))[1]
        weights = torch.randn(forward.shape, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((call(x) * weights).sum(), x)
        torch.testing.assert_close(gradient @ direction, (forward * weights).sum())
        assert gradient.sum().abs() < 1e-12 * (1 + gradient.abs().sum())


def test_an_impossible_category_passes_no_gradient():
    x = torch.tensor([0.3, -math.inf, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for mean in (inclusion_probabilities, rank_probabilities):
        (first,) = torch.autograd.grad(mean(x, 2).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        for gradient in (first, second):
            assert gradient.isfinite().all()
            assert gradient[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "size"), [(Subset, 2), (PlackettLuce, 4)])
def test_means_are_compiled_whole(cls, size):
    def call(x):
        return cls(size, logits=x, validate_args=False).mean

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    torch.compiler.reset()
    means = torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x)
    torch.testing.assert_close(*means)
    gradients = [torch.autograd.grad(mean.square().sum(), x)[0] for mean in means]
    torch.testing.assert_close(*gradients)


class _Allocations(TorchDispatchMode):
    """The bytes of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(
    ("cls", "k", "m"), [(PlackettLuce, 60, 60), (Subset, 200, 100), (Subset, 1000, 3)]
)
def test_means_of_many_and_their_gradients_take_little_memory(cls, k, m):
    """No large tensor is made, and less than a megabyte is kept for the gradient."""
    x = torch.randn(k, dtype=torch.float64, requires_grad=True)
    kept = []
    with (
        _Allocations() as allocations,
        saved_tensors_hooks(lambda t: kept.append(t.untyped_storage().nbytes()) or t, lambda t: t),
    ):
        mean = cls(m, logits=x).mean
        torch.autograd.grad(mean.square().sum(), x)
    assert sum(kept) < 2**20
    assert allocations.largest < 2**22


@pytest.mark.parametrize("size", [2, 20])
@pytest.mark.parametrize("cls", [Subset, PlackettLuce])
def test_means_of_an_empty_batch(cls, size):
    for batch in ((0,), (3, 0)):
        x = torch.zeros(*batch, 40, requires_grad=True)
        distribution = cls(size, logits=x)
        assert distribution.mean.shape == distribution.batch_shape + distribution.event_shape
        assert torch.autograd.grad(distribution.mean.sum(), x)[0].shape == x.shape
