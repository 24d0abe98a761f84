# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Subsets and rankings: exact probabilities, samplers, moments, enumeration."""

import copy
import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch.distributions import kl_divergence

from pyro_gumbel import (
    CategoricalStraightThrough,
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedPlackettLuce,
    RelaxedSubset,
    Subset,
    SubsetStraightThrough,
    m_hot,
)
from tests.common import (
    DISCRETE,
    assert_counts,
    assert_same_mean,
    build,
    first_fast,
    make,
    slow_unless,
)

CLASSES = [Subset, SubsetStraightThrough, PlackettLuce, PlackettLuceStraightThrough]
UNORDERED = [Subset, SubsetStraightThrough]
ORDERED = [PlackettLuce, PlackettLuceStraightThrough]
DRAWS = 50_000


def redrawn(probs, size, draws):
    """The literal loop of the note on m-hot vectors: a winner that is taken is drawn anew."""
    orders = []
    for _ in range(draws):
        order = []
        while len(order) < size:
            winner = torch.multinomial(probs, 1).item()
            if winner not in order:
                order.append(winner)
        orders.append(tuple(order))
    return orders


def orders_of(value):
    """The winners of each row, as a tuple a draw."""
    return [tuple(order) for order in value.argmax(-1).tolist()]


def assert_outcomes(d, value):
    """`value` has the outcomes of `distribution` as often as its probabilities say."""
    outcomes = d.enumerate_support()
    counts = (value.flatten(1).double() @ outcomes.flatten(1).double().T == d.size).sum(0)
    assert counts.sum() == len(value)
    assert_counts(counts, d.log_prob(outcomes).exp())


# Probabilities.


@pytest.mark.parametrize("cls", ORDERED)
def test_the_probability_of_a_ranking_is_that_of_successive_draws(cls):
    logits = 3 * torch.randn(6, dtype=torch.float64)
    d = build(cls, 0.5, logits=logits, size=4)
    for value in d.sample((20,)):
        p, left = 1.0, logits.exp()
        for winner in value.argmax(-1).tolist():
            p *= (left[winner] / left.sum()).item()
            left = left.clone()
            left[winner] = 0
        assert d.log_prob(value).item() == pytest.approx(math.log(p), rel=1e-12)


@pytest.mark.parametrize("cls", CLASSES)
def test_probabilities_sum_to_one_and_subsets_are_sums_of_rankings(cls):
    logits = 2 * torch.randn(3, 5, dtype=torch.float64)
    d = build(cls, 0.5, logits=logits, size=3)
    outcomes = d.enumerate_support()
    count = math.comb(5, 3) if cls in UNORDERED else math.perm(5, 3)
    assert outcomes.shape == (count, 3, *d.event_shape)
    assert d.support.check(outcomes).all()
    assert outcomes[:, 0].unique(dim=0).shape[0] == count
    probabilities = d.log_prob(outcomes).exp()
    torch.testing.assert_close(probabilities.sum(0), torch.ones(3, dtype=torch.float64))
    if cls in ORDERED:
        sets = Subset(3, logits=logits)
        for value in sets.enumerate_support(expand=False).flatten(0, 1)[:4]:
            same = (m_hot(outcomes[:, 0]) == value).all(-1)
            found = probabilities[same].sum(0)
            torch.testing.assert_close(found, sets.log_prob(value).exp())


@pytest.mark.parametrize("cls", ORDERED)
def test_a_full_ranking(cls):
    d = build(cls, 0.5, logits=torch.randn(4, dtype=torch.float64), size=4)
    outcomes = d.enumerate_support()
    assert len(outcomes) == 24
    assert d.log_prob(outcomes).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("cls", UNORDERED)
def test_all_of_them_are_a_point(cls):
    d = build(cls, 0.5, logits=torch.randn(4, requires_grad=True), size=4)
    assert d.sample().tolist() == [1.0] * 4
    assert d.log_prob(torch.ones(4)).item() == 0
    assert d.entropy().item() == 0
    assert d.mean.tolist() == [1.0] * 4


@pytest.mark.parametrize("cls", CLASSES)
def test_size_one_is_a_categorical(cls):
    logits = torch.randn(3, 5, dtype=torch.float64)
    d, one = (
        build(cls, 0.5, logits=logits, size=1),
        CategoricalStraightThrough(0.5, None, logits),
    )
    values = one.enumerate_support().requires_grad_()
    own = values.unsqueeze(-2) if cls in ORDERED else values
    torch.testing.assert_close(d.log_prob(own), one.log_prob(values))
    slopes = [torch.autograd.grad(s.sum(), values, retain_graph=True)[0] for s in (
        d.log_prob(own), one.log_prob(values)
    )]  # fmt: skip
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(d.entropy(), one.entropy())
    torch.testing.assert_close(d.mean.reshape(3, 5), one.mean)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_probability_extends_by_first_differences(cls):
    """At other values it is that of the nearest outcome, plus the logits times what is left.

    The gradient in the logits is that of the first term.
    """
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    d = build(cls, 0.5, logits=logits, size=2, validate_args=False)
    nearest = d.sample()
    value = 0.9 * nearest + 0.02 * torch.rand(nearest.shape, dtype=torch.float64)
    expected = d.log_prob(nearest) + ((value - nearest) * d.logits).sum()
    torch.testing.assert_close(d.log_prob(value), expected)
    gradients = [torch.autograd.grad(d.log_prob(each), logits)[0] for each in (value, nearest)]
    torch.testing.assert_close(*gradients)
    value.requires_grad_()
    (slope,) = torch.autograd.grad(d.log_prob(value), value)
    torch.testing.assert_close(slope, d.logits.expand(value.shape))


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_of_the_probability(cls):
    raw = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    value = build(cls, 0.5, logits=raw.detach(), size=3).sample()

    def score(raw):
        d = build(cls, 0.5, logits=raw, size=3)
        return d.log_prob(value) + d.entropy()

    assert torch.autograd.gradcheck(score, raw)
    assert torch.autograd.gradgradcheck(score, raw)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("parameter", ["probs", "logits"])
def test_impossible_outcomes(cls, parameter):
    numbers = [0.0, 0.3, 0.7, 0.5] if parameter == "probs" else [-math.inf, 0.3, 0.7, 0.5]
    raw = torch.tensor(numbers, requires_grad=True)
    d = build(cls, 0.1, **{parameter: raw}, size=2, validate_args=True)
    draws = d.sample((1000,))
    assert (draws[..., 0] == 0).all()
    log_prob = d.log_prob(draws)
    outcomes = d.enumerate_support()
    probabilities = d.log_prob(outcomes)
    assert torch.equal(
        probabilities.isneginf(), outcomes[..., 0].reshape(len(outcomes), -1).any(-1)
    )
    possible = probabilities[probabilities.isfinite()]
    assert possible.exp().sum().item() == pytest.approx(1, abs=1e-5)
    for output in (log_prob, d.entropy(), possible, d.mean):
        (gradient,) = torch.autograd.grad(output.sum(), raw, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient[0] == 0
    value = draws[:1].clone().requires_grad_()
    assert torch.autograd.grad(d.log_prob(value).sum(), value)[0].isfinite().all()
    sure = build(cls, 0.1, logits=torch.tensor([0.0, -math.inf, 1.0]), size=2)
    drawn = m_hot(sure.sample()) if cls in ORDERED else sure.sample()
    assert drawn.tolist() == [1, 0, 1]
    if cls in UNORDERED:
        assert sure.log_prob(sure.sample()).item() == 0
        assert sure.mean.tolist() == pytest.approx([1, 0, 1], abs=1e-6)


def test_a_ranking_with_a_repeated_winner_is_impossible():
    d = PlackettLuce(2, logits=torch.zeros(3), validate_args=False)
    value = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert d.log_prob(value).item() == -math.inf


# Samplers.


@pytest.mark.parametrize("cls", CLASSES)
def test_samplers_have_the_distribution(cls):
    for logits in (torch.zeros(4), torch.tensor([2.0, 0.0, 0.5, -1.0])):
        d = build(cls, 0.5, logits=logits, size=2)
        assert_outcomes(d, d.sample((DRAWS,)))
        if d.has_rsample:
            assert_outcomes(d, d.rsample((DRAWS,)).detach())


@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
def test_the_top_of_a_relaxed_sample_has_the_discrete_distribution(temperature):
    logits = torch.tensor([2.0, 0.0, 0.5, -1.0, 0.3])
    value = RelaxedSubset(temperature, 2, logits=logits).sample((DRAWS,))
    top = torch.zeros_like(value).scatter(-1, value.topk(2, -1).indices, 1.0)
    assert_outcomes(Subset(2, logits=logits), top)


FOUR = torch.tensor([0.5, 0.3, 0.15, 0.05])


def assert_ordered_masses(orders):
    """Two winners of `FOUR` have the distribution of PlackettLuce."""
    exact = PlackettLuce(2, probs=FOUR)
    outcomes = exact.enumerate_support()
    probabilities = dict(
        zip(orders_of(outcomes), exact.log_prob(outcomes).exp().tolist(), strict=True)
    )
    assert_counts([orders.count(order) for order in probabilities], list(probabilities.values()))


@pytest.mark.cpu  # a loop of 40,000 numbers, which a GPU would send back one by one
def test_the_redraw_loop_has_the_probabilities_of_rankings():
    assert_ordered_masses(redrawn(FOUR, 2, 20_000))


@pytest.mark.parametrize("cls", [*ORDERED, RelaxedPlackettLuce])
def test_rankings_have_the_distribution_of_the_redraw_loop(cls):
    d = build(cls, 0.5, probs=FOUR, size=2)
    assert_ordered_masses(orders_of(d.sample((DRAWS,))))


@pytest.mark.parametrize("cls", [*ORDERED, RelaxedPlackettLuce])
def test_where_the_loop_would_hardly_end(cls):
    """One category of probability .999999: the second draw would take a million tries."""
    probs = torch.tensor([0.999999, 7e-7, 2e-7, 1e-7])
    d = build(cls, 0.5, probs=probs, size=3)
    value = d.sample((DRAWS,))
    assert d.log_prob(value).isfinite().all()
    orders = orders_of(value)
    usual = [order for order in orders if order[0] == 0]
    assert len(usual) > 0.999 * DRAWS
    weights = {1: 7, 2: 2, 3: 1}
    expected = {
        (0, a, b): weights[a] / 10 * weights[b] / (10 - weights[a])
        for a, b in itertools.permutations(weights, 2)
    }
    assert_counts([usual.count(order) for order in expected], list(expected.values()))


@pytest.mark.parametrize("cls", DISCRETE)
def test_plain_distributions_are_discrete_and_their_samples_carry_no_gradient(cls):
    d = make(cls, batch_shape=(3,), k=5)
    assert not d.has_rsample
    assert d.support.is_discrete
    for wide in (d, d.expand([4, 3])):
        value = wide.sample((2,))
        assert value.shape == (2, *wide.batch_shape, *wide.event_shape)
        assert not value.requires_grad
        assert d.log_prob(value).shape == (2, *wide.batch_shape)
        assert wide.support.check(value).all()
    assert type(d.expand([4, 3])) is cls
    assert "size: 3" in repr(d)
    assert "temperature" not in repr(d)


@pytest.mark.parametrize("cls", slow_unless(lambda cls: cls is PlackettLuce, DISCRETE))
def test_plain_distributions_can_be_copied_mapped_and_compiled(cls):
    d = make(cls, batch_shape=(4,), k=5).expand([2, 4])
    value = d.sample()
    for twin in (pickle.loads(pickle.dumps(d)), copy.deepcopy(d)):
        assert torch.equal(twin.log_prob(value), d.log_prob(value))

    def score(logits, value):
        d = cls(3, logits=logits, validate_args=False)
        return d.log_prob(value), d.sample()

    logits = d.logits[0].detach()
    expected = d.log_prob(value[0])[0]
    mapped = torch.vmap(score, randomness="different")(logits, value[0])
    torch.compiler.reset()
    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")(logits, value[0])
    for found, drawn in (mapped, compiled):
        torch.testing.assert_close(found, expected)
        assert d.support.check(drawn).all()


# Moments.


@pytest.mark.parametrize("cls", CLASSES)
def test_moments_are_those_of_the_enumeration(cls):
    d = build(cls, 0.5, logits=2 * torch.randn(3, 5, dtype=torch.float64), size=3)
    outcomes = d.enumerate_support()
    probabilities = d.log_prob(outcomes).exp()
    mean = (probabilities.reshape(*probabilities.shape, *[1] * len(d.event_shape)) * outcomes).sum(
        0
    )
    torch.testing.assert_close(d.mean, mean, rtol=0, atol=1e-11)
    torch.testing.assert_close(d.variance, mean * (1 - mean), rtol=0, atol=1e-11)
    entropy = -(probabilities * probabilities.log()).sum(0)
    torch.testing.assert_close(d.entropy(), entropy)
    best = d.log_prob(outcomes).max(0).values
    torch.testing.assert_close(d.log_prob(d.mode), best)
    assert_same_mean(d.sample((20_000,)), mean)


@pytest.mark.parametrize("cls", CLASSES)
def test_too_many_to_enumerate(cls):
    d = build(cls, 0.5, logits=torch.zeros(40), size=10)
    for call in (d.enumerate_support, d.entropy):
        with pytest.raises(NotImplementedError, match=r"100,000 outcomes.*size=10 of 40.*write"):
            call()
    assert d.log_prob(d.sample()).isfinite()


def test_rankings_are_counted_in_their_order():
    """6 of 10 categories make 210 subsets, which are enumerated, and 151,200 rankings."""
    logits = torch.zeros(10)
    assert len(Subset(6, logits=logits).enumerate_support()) == 210
    with pytest.raises(NotImplementedError, match="size=6 of 10 has 151,200"):
        PlackettLuce(6, logits=logits).enumerate_support()


def test_the_m_hot_vector_is_the_elementwise_maximum():
    rows = RelaxedPlackettLuce(0.5, 2, logits=torch.zeros(100_000, 4)).sample()
    assert torch.equal(m_hot(rows), torch.maximum(rows[:, 0], rows[:, 1]))
    assert m_hot(rows).sum(-1).mean().item() == pytest.approx(1.78, abs=0.005)
    hard = PlackettLuceStraightThrough(0.5, 2, logits=torch.zeros(100, 4)).rsample()
    assert Subset(2, logits=torch.zeros(4)).support.check(m_hot(hard)).all()


def test_what_has_no_rows_has_no_m_hot_vector():
    for value, error, words in (
        (torch.zeros(3), ValueError, r"got shape \(3,\); write m_hot\(row.unsqueeze\(-2\)\)"),
        (torch.zeros(()), ValueError, r"got shape \(\); write"),
        (torch.zeros(4, 0, 3), ValueError, r"got shape \(4, 0, 3\); write"),
        ([1], TypeError, r"got list; write m_hot\(torch.stack\(rows, -2\)\)"),
        (None, TypeError, "got NoneType; write"),
    ):
        with pytest.raises(error, match=rf"^m_hot: `value` must be a tensor.*{words}"):
            m_hot(value)
    assert m_hot(torch.eye(3)[:2].long()).tolist() == [1, 1, 0]
    assert m_hot(torch.zeros(0, 2, 3)).shape == (0, 3)


# Scale.


def test_a_hundred_of_a_hundred_thousand():
    raw = torch.randn(100_000, requires_grad=True)
    for d in (Subset(100, logits=raw), SubsetStraightThrough(0.5, 100, logits=raw)):
        value = d.rsample() if d.has_rsample else d.sample()
        score = d.log_prob(value)
        (gradient,) = torch.autograd.grad(score + (value * raw.detach()).sum(), raw)
        assert value.sum() == 100
        assert gradient.isfinite().all()
        # Of log P alone the gradient sums to 0: the probability does not see a shift.
        (own,) = torch.autograd.grad(d.log_prob(value.detach()), raw)
        assert own.sum().abs() < 1e-4
        assert (own[value.detach() > 0] > 0).all()


# In Pyro.


@pytest.mark.parametrize("cls", CLASSES)
def test_enumeration_in_pyro(cls):
    """Against the sum over outcomes, by hand."""
    logits, x = torch.tensor([0.5, -0.3, 0.1, 0.8]), torch.tensor(0.7)
    d = build(cls, 0.5, logits=logits, size=2)
    weights = torch.tensor([1.0, -1.0, 2.0, 0.3])

    def model():
        with pyro.plate("data", 2):
            value = pyro.sample("v", build(cls, 0.5, logits=logits, size=2))
            chosen = m_hot(value) if cls in ORDERED else value
            pyro.sample("x", dist.Normal(chosen @ weights, 1.0), obs=x.expand(2))

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), lambda: None)
    outcomes = d.enumerate_support()
    chosen = m_hot(outcomes) if cls in ORDERED else outcomes
    evidence = d.log_prob(outcomes) + dist.Normal(chosen @ weights, 1.0).log_prob(x)
    assert loss == pytest.approx(-2 * evidence.logsumexp(0).item(), rel=1e-5)


@pytest.mark.parametrize("prior", first_fast(["plain", "hard"]))
@pytest.mark.parametrize("cls", first_fast([PlackettLuceStraightThrough, SubsetStraightThrough]))
def test_a_guide_finds_the_best_outcome(cls, prior):
    """The probability extended to real values carries the gradient of a plain prior too."""
    plain = Subset if cls is SubsetStraightThrough else PlackettLuce
    target = torch.tensor([3.0, -1.0, 2.5, 0.0, 1.0])

    def model():
        d = build(plain if prior == "plain" else cls, 0.5, logits=torch.zeros(5), size=2)
        value = pyro.sample("v", d)
        chosen = value if cls is SubsetStraightThrough else m_hot(value)
        pyro.factor("utility", 2 * chosen @ target)

    def guide():
        logits = pyro.param("logits", torch.zeros(5))
        pyro.sample("v", build(cls, 0.5, logits=logits, size=2))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(300):
        svi.step()
    assert set(pyro.param("logits").detach().topk(2).indices.tolist()) == {0, 2}


@pytest.mark.parametrize("cls", [Subset, PlackettLuce, SubsetStraightThrough])
def test_logits_as_far_apart_as_floats_go_are_possible(cls):
    """Their difference overflows; it counts as the largest number."""
    lowest = torch.finfo(torch.float32).min
    logits = torch.tensor([1e38, -2.5e38, 0.0], requires_grad=True)
    q, p = (build(cls, 0.5, logits=x, size=1) for x in (torch.zeros(3), logits))
    log_prob = p.log_prob(torch.tensor([0.0, 1.0, 0.0]).reshape(p.event_shape))
    assert log_prob.item() == pytest.approx(lowest)
    assert kl_divergence(q, p).isfinite()
