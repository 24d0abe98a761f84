# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Rankings of different lengths in one batch equal one distribution for each length."""

import copy
import io
import itertools
import math
import pickle
import random
import warnings
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from scipy import stats
from torch.distributions import biject_to, kl_divergence
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_gumbel import (
    AutoRelaxed,
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    estimators,
    gradient_report,
    harden,
    links,
    m_hot,
    relax,
    relaxed,
)
from pyro_gumbel.constraints import padded_simplex_rows, ranking
from pyro_gumbel.distributions import plackett_luce
from tests.common import ALPHA, assert_counts, assert_same_mean, build, first_fast

K = 4
LENGTHS = torch.tensor([1, 3, K])
X = torch.tensor(
    [[0.3, -0.2, 0.1, 1.0], [1.5, 0.0, -0.7, 0.2], [-1.0, 0.4, 2.0, 0.0]], dtype=torch.float64
)
HARD = [PlackettLuce, PlackettLuceStraightThrough]
CLASSES = [*HARD, RelaxedPlackettLuce]
ESTIMATORS = ["gumbel_softmax", "gumbel_rao", "straight_through", "reinmax", "gapped"]


def together(cls, logits=X, temperature=0.5, **keywords):
    """Rankings of 1, 3 and 4 of 4 categories in one batch."""
    return build(cls, temperature, logits=logits, **{"size": LENGTHS, **keywords})


def apart(cls, logits=X, temperature=0.5, **keywords):
    """One distribution for each length."""
    lengths = enumerate(LENGTHS.tolist())
    return [build(cls, temperature, logits=logits[i], size=n, **keywords) for i, n in lengths]


def cut(value):
    """The rows of each element that are within its length."""
    return [value[..., i, :n, :] for i, n in enumerate(LENGTHS.tolist())]


def beyond(value):
    """The rows beyond the lengths, in one vector."""
    outside = torch.arange(value.shape[-2]) >= LENGTHS.unsqueeze(-1)
    return value[..., outside, :].flatten()


def weights_of(value):
    return torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)


def assert_all_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# Against one distribution for each length.


@pytest.mark.parametrize("cls", CLASSES)
def test_log_prob_and_its_gradients(cls):
    """Of own values and of copies, in the logits, the temperature and the value."""
    for own in (True, False):
        values = [together(cls).sample((5,)) for _ in range(2)]
        parts = []
        for whole in (True, False):
            x = X.clone().requires_grad_()
            tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
            value = values[own].clone().requires_grad_()
            if whole:
                score = together(cls, x, tau).log_prob(value)
            else:
                each = zip(apart(cls, x, tau), cut(value), strict=True)
                score = torch.stack([d.log_prob(part) for d, part in each], -1)
            leaves = (x, value) if cls is PlackettLuce else (x, value, tau)
            total = (score * weights_of(score)).sum()
            parts.append([score, *torch.autograd.grad(total, leaves, materialize_grads=True)])
        assert parts[0][0].isfinite().all()
        assert all(part.isfinite().all() for part in parts[0])
        assert (beyond(parts[0][2]) == 0).all()
        assert_all_close(*parts)


@pytest.mark.parametrize("cls", HARD)
def test_moments_and_divergences_and_their_gradients(cls):
    def all_of(d):
        return [d.mean, d.variance, d.stddev, d.mode]

    x = X.clone().requires_grad_()
    d, prior = together(cls, x), together(cls, X.flip(0))
    for found in all_of(d):
        assert found.shape == (3, K, K)
        assert (beyond(found) == 0).all()
    for name, found in zip(("mean", "variance", "stddev", "mode"), all_of(d), strict=True):
        expected = [getattr(each, name) for each in apart(cls, x)]
        assert_all_close(cut(found), expected)
        if found.requires_grad:
            gradients = [
                torch.autograd.grad(sum((part * weights_of(part)).sum() for part in parts), x)[0]
                for parts in (cut(found), expected)
            ]
            assert_all_close(*zip(gradients, strict=True))
    others = apart(cls, X.flip(0))
    pairs = [
        (d.entropy(), [each.entropy() for each in apart(cls, x)]),
        (
            kl_divergence(d, prior),
            [kl_divergence(q, p) for q, p in zip(apart(cls, x), others, strict=True)],
        ),
    ]
    for found, parts in pairs:
        expected = torch.stack(parts)
        assert_all_close([found], [expected])
        total = [torch.autograd.grad((e * weights_of(e)).sum(), x)[0] for e in (found, expected)]
        assert_all_close(total[:1], total[1:])


@pytest.mark.parametrize("cls", CLASSES)
def test_the_same_seed_gives_rankings_of_all_rows_cut_to_their_lengths(cls):
    """The first rows of a longer ranking are a shorter one, from the same random numbers."""
    found = []
    for size in (LENGTHS, K):
        torch.manual_seed(0)
        found.append(build(cls, 0.5, logits=X, size=size).sample((50,)))
    assert (beyond(found[0]) == 0).all()
    assert (beyond(found[1]) != 0).any()
    assert_all_close(*map(cut, found))


@pytest.mark.parametrize("estimator", [None, *ESTIMATORS])
def test_the_same_seed_gives_gradients_of_all_rows_cut_to_their_lengths(estimator):
    """Of the relaxed class where there is no estimator; in the logits and the temperature."""
    found = []
    for size in (LENGTHS, K):
        x = X.clone().requires_grad_()
        tau = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(0)
        if estimator is None:
            value = RelaxedPlackettLuce(tau, size, logits=x).rsample((50,))
        else:
            d = PlackettLuceStraightThrough(tau, size, logits=x, estimator=estimator)
            value = d.rsample((50,))
        loss = sum((part.square() * weights_of(part)).sum() for part in cut(value))
        found.append(torch.autograd.grad(loss, (x, tau), retain_graph=True, materialize_grads=True))
        if size is LENGTHS:
            padding = torch.autograd.grad(
                (beyond(value) * torch.randn(len(beyond(value)), dtype=torch.float64)).sum(),
                (x, tau),
                materialize_grads=True,
            )
            assert all((each == 0).all() for each in padding)
    assert_all_close(*found)
    assert found[0][0].abs().sum() > 0


@pytest.mark.parametrize("k", [4, 12])  # of more than 10 the mean is estimated from 16 more draws
def test_second_order_from_given_noise(k, monkeypatch):
    """Value and gradient, where each length draws from its part of the noise."""
    lengths = torch.tensor([1, 2, 4])
    noise = torch.randn(17, 3, 4, k, dtype=torch.float64)
    logits = torch.randn(3, k, dtype=torch.float64)

    def given(part):
        def draw(shape, **kinds):
            return part(noise[0] if shape[0] != 16 else noise[1:]).reshape(shape)

        return staticmethod(draw)

    found = []
    for which in (None, 0, 1, 2):
        x = logits.clone().requires_grad_()
        if which is None:
            monkeypatch.setattr(plackett_luce.RankingFamily, "noise", given(lambda part: part))
            d = PlackettLuceStraightThrough(None, lengths, logits=x)
        else:
            n = lengths[which].item()
            only = given(lambda part, i=which, n=n: part[..., i, :n, :])
            monkeypatch.setattr(plackett_luce.RankingFamily, "noise", only)
            d = PlackettLuceStraightThrough(None, n, logits=x[which])
        value = d.rsample()
        parts = [value[i, :n] for i, n in enumerate(lengths)] if which is None else [value]
        loss = sum((part * (1 + weights_of(part))).sum() ** 2 for part in parts)
        found.append((parts, torch.autograd.grad(loss, x)[0]))
    assert_all_close(found[0][0], [parts[0] for parts, _ in found[1:]])
    assert_all_close([found[0][1]], [sum(gradient for _, gradient in found[1:])])


def redrawn(weights, length, draws):
    """The literal loop: a winner that is taken is drawn again."""
    choose, orders = random.Random(0), []
    for _ in range(draws):
        order = []
        while len(order) < length:
            (winner,) = choose.choices(range(len(weights)), weights)
            if winner not in order:
                order.append(winner)
        orders.append(tuple(order))
    return orders


def counts_of(orders, length):
    found = Counter(orders)
    return [found[order] for order in itertools.permutations(range(K), length)]


@pytest.mark.parametrize("cls", CLASSES)
def test_the_distribution_is_that_of_the_redraw_loop(cls):
    """For each length, by a chi-square test of two samples; and its probabilities fit the loop."""
    x, draws = X / 2, 5_000
    value = together(cls, x).sample((draws,))
    assert (beyond(value) == 0).all()
    for i, (part, length) in enumerate(zip(cut(value), LENGTHS.tolist(), strict=True)):
        loop = counts_of(redrawn(x[i].exp().tolist(), length, draws), length)
        ours = counts_of([tuple(order) for order in part.argmax(-1).tolist()], length)
        assert sum(ours) == draws
        assert stats.chi2_contingency([ours, loop]).pvalue > ALPHA
        if cls in HARD:
            rows = torch.zeros(math.perm(K, length), 3, K, K, dtype=torch.float64)
            orders = torch.tensor(list(itertools.permutations(range(K), length)))
            rows[:, i, :length] = one_hot(orders, K).double()
            log_prob = together(cls, x, validate_args=False).log_prob(rows)
            assert_counts(loop, log_prob[:, i].exp())


def test_the_relaxed_density_integrates_to_one():
    """E_q[p / q] = 1 for each length, with independent rows for q."""
    n, lengths = 20_000, torch.tensor([1, 2, 3])
    x = X[:, :3] / 2
    rows = RelaxedCategorical(0.9, logits=x.unsqueeze(-2)).expand([3, 3])
    value = rows.sample((n,))
    within = torch.arange(3) < lengths.unsqueeze(-1)
    log_q = torch.where(within, rows.log_prob(value), 0.0).sum(-1)
    value = torch.where(within.unsqueeze(-1), value, 0.0)
    log_p = RelaxedPlackettLuce(1.0, lengths, logits=x).log_prob(value)
    assert_same_mean((log_p - log_q).exp(), torch.ones(3, dtype=torch.float64))


# What is and what is not in the support.


@pytest.mark.parametrize("cls", CLASSES)
def test_a_value_that_is_not_zero_beyond_its_length_is_not_in_the_support(cls):
    d, unchecked = together(cls, validate_args=True), together(cls, validate_args=False)
    whole = build(cls, 0.5, logits=X, size=K).sample()
    assert d.support.check(whole).tolist() == [False, False, True]
    assert d.support.check(d.sample((2,))).all()
    assert d.support.event_dim == 2
    with pytest.raises(ValueError, match=r"`value` must be.* beyond its length.*to cut it") as e:
        d.log_prob(whole)
    remedy = "or write value * (torch.arange(4) < size.unsqueeze(-1)).unsqueeze(-1)"
    assert remedy in str(e.value)
    short = whole * (torch.arange(4) < LENGTHS.unsqueeze(-1)).unsqueeze(-1)
    assert d.log_prob(short).isfinite().all()
    assert unchecked.log_prob(whole.clone()).isneginf().tolist() == [True, True, False]
    short = d.sample((20,)).clone()
    short[:, 1, 2] = 0
    assert unchecked.log_prob(short).isneginf().tolist() == [[False, True, False]] * 20
    assert d.support.check(short).tolist() == [[True, False, True]] * 20
    assert d.support.check(short[0, :, :3]).tolist() == [False] * 3
    assert d.support.check(torch.zeros(3, K, K)).tolist() == [False] * 3


@pytest.mark.parametrize("cls", CLASSES)
def test_longer_values_have_no_nan_in_their_gradients(cls):
    x = X.clone().requires_grad_()
    value = build(cls, 0.5, logits=X, size=K).sample().requires_grad_()
    score = together(cls, x, validate_args=False).log_prob(value)
    for gradient in torch.autograd.grad(score[2] + score[:2].clamp(min=-1).sum(), (x, value)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("cls", CLASSES)
def test_own_samples_are_in_the_support_in_every_dtype(cls, dtype):
    d = together(cls, X.to(dtype), validate_args=True)
    value = d.rsample((500,)) if d.has_rsample else d.sample((500,))
    assert value.dtype == dtype
    assert d.log_prob(value).isfinite().all()
    assert d.log_prob(value).dtype == torch.promote_types(dtype, torch.float32)


def test_indices_with_padding_become_rows_by_one_line():
    """As docs/choosing.md says."""
    orders = torch.tensor([[2, -1, -1, -1], [0, 3, 1, -1], [3, 0, 2, 1]])
    value = one_hot(orders + 1, K + 1)[..., 1:]
    d = together(PlackettLuce, validate_args=True)
    assert torch.equal((orders >= 0).sum(-1), LENGTHS)
    expected = torch.stack([
        each.log_prob(one_hot(order[:n], K))
        for each, order, n in zip(apart(PlackettLuce), orders, LENGTHS, strict=True)
    ])  # fmt: skip
    assert_all_close([d.log_prob(value)], [expected])
    assert m_hot(value).sum(-1).tolist() == LENGTHS.tolist()


@pytest.mark.parametrize("cls", CLASSES)
def test_the_m_hot_vector_has_as_many_ones_as_rows_count(cls):
    chosen = m_hot(harden(together(cls).sample((20,))))
    assert (chosen.sum(-1) == LENGTHS).all()


def test_hardening_keeps_rows_of_zeros():
    x = X.clone().requires_grad_()
    value = together(RelaxedPlackettLuce, x, validate_args=True).rsample()
    hard = harden(value)
    assert together(PlackettLuce).support.check(hard).all()
    (gradient,) = torch.autograd.grad((hard * weights_of(hard)).sum(), x, retain_graph=True)
    assert gradient.abs().sum() > 0
    assert torch.equal(harden(value.detach().clone(), links.simplex), hard)
    with pytest.raises(ValueError, match=r"harden\(value, links.simplex\) for a ranking"):
        harden(value.detach().clone())


@pytest.mark.parametrize("parameter", ["probs", "logits"])
@pytest.mark.parametrize("cls", CLASSES)
def test_each_length_needs_as_many_possible_categories(cls, parameter):
    """And no more: where a ranking is shorter than others it may have fewer."""
    possible = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.float64)
    weights = possible * X.exp()
    raw = (weights if parameter == "probs" else weights.log()).requires_grad_()
    d = build(cls, 1.0, **{parameter: raw}, size=LENGTHS, validate_args=True)
    value = d.rsample((200,)) if d.has_rsample else d.sample((200,))
    assert (value[..., possible.unsqueeze(-2).expand(3, K, K) == 0] == 0).all()
    found = [d.log_prob(value), d.log_prob(value.detach().clone())]
    if cls in HARD:
        kl = kl_divergence(d, together(cls))
        found += [d.mean, d.entropy(), kl]
        found += [d.variance] if cls is PlackettLuce else [value]
        expected = [
            build(cls, 1.0, **{parameter: raw[i, :n]}, size=n).mean
            for i, n in enumerate(LENGTHS.tolist())
        ]
        parts = [d.mean[i, :n, :n] for i, n in enumerate(LENGTHS.tolist())]
        assert_all_close(parts, expected)
        assert d.entropy()[0] == 0
        assert d.support.check(d.mode).all()
    for each in found:
        assert each.isfinite().all()
        (gradient,) = torch.autograd.grad(each.sum(), raw, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient[possible == 0] == 0).all()
    with pytest.raises(ValueError, match=rf"`{parameter}` must be.*as many .* as its length"):
        build(cls, 1.0, **{parameter: raw.flip(0)}, size=LENGTHS, validate_args=True)
    one = raw[1]
    with pytest.raises(ValueError, match=rf"`{parameter}` must be.*as many .* as its length"):
        build(cls, 1.0, **{parameter: one}, size=LENGTHS, validate_args=True)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "second_order"])
def test_estimators_where_fewer_categories_than_rows_are_possible(estimator):
    logits = X.clone()
    logits[0, 1:] = logits[1, 3] = -math.inf
    logits.requires_grad_()
    tau = None if estimator == "second_order" else torch.tensor(1.0).double().requires_grad_()
    d = PlackettLuceStraightThrough(
        tau, LENGTHS, logits=logits, estimator=estimator, validate_args=True
    )
    value = d.rsample((20,))
    assert d.support.check(value).all()
    loss = (value * torch.randn_like(value)).sum()
    leaves = [logits] if tau is None else [logits, tau]
    for gradient in torch.autograd.grad(loss, leaves, materialize_grads=True):
        assert gradient.isfinite().all()


# Enumeration.


@pytest.mark.parametrize("cls", HARD)
def test_rankings_of_one_length_are_enumerated(cls):
    """With rows of zeros, where there are more rows."""
    for size in (torch.tensor([2, 2, 2]), 2):
        d = build(cls, 0.5, logits=X, size=size, rows=3)
        values, expected = d.enumerate_support(), build(cls, 0.5, logits=X, size=2)
        assert values.shape == (12, 3, 3, K)
        assert torch.equal(values[..., :2, :], expected.enumerate_support())
        assert (values[..., 2, :] == 0).all()
        assert d.enumerate_support(expand=False).shape == (12, 1, 3, K)
        assert d.log_prob(values).exp().sum(0).tolist() == pytest.approx([1, 1, 1])
        assert_all_close([d.entropy()], [expected.entropy()])


@pytest.mark.parametrize("cls", HARD)
def test_rankings_of_different_lengths_are_not_enumerated(cls):
    d = together(cls)
    with pytest.raises(NotImplementedError, match=r"one length, got 1 to 4.*write infer=\{\}"):
        d.enumerate_support()

    def model():
        with pyro.plate("judges", 3):
            pyro.sample("r", together(cls))

    with pytest.raises(NotImplementedError, match="one length"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), lambda: None)


@pytest.mark.parametrize("cls", HARD)
def test_the_divergence_of_other_lengths_is_infinite(cls):
    x = X.clone().requires_grad_()
    q = together(cls, x)
    for size, rows in ((torch.tensor([1, 2, 4]), K), (torch.tensor([1, 2, 4]), None), (K, None)):
        p = build(PlackettLuce, 0.5, logits=X.flip(0), size=size, rows=rows)
        for one, other, own in ((q, p, True), (p, q, False)):
            divergence = kl_divergence(one, other)
            differs = (torch.as_tensor(size) != LENGTHS).tolist()
            assert divergence.isposinf().tolist() == differs
            (gradient,) = torch.autograd.grad(divergence[~divergence.isinf()].sum(), x)
            assert gradient.isfinite().all()
            assert (gradient[torch.tensor(differs)] == 0).all(), own
    with pytest.raises(ValueError, match=r"same event shape and `size`, got \(4, 4\) and \(3, 4\)"):
        kl_divergence(q, build(cls, 0.5, logits=X, size=3))
    longer = kl_divergence(q, together(cls, X.expand(2, 3, K)))
    assert longer.shape == (2, 3)


def test_few_of_many_rows_are_enumerated_by_their_largest_length():
    """10 rows of 10 categories have 3,628,800 rankings, and those of lengths up to 2 have 90."""
    logits = torch.randn(2, 10, dtype=torch.float64)
    d = PlackettLuce(torch.tensor([1, 2]), logits=logits, rows=10)
    assert d.event_shape == (10, 10)
    expected = [PlackettLuce(n, logits=logits[n - 1]).entropy() for n in (1, 2)]
    assert_all_close([d.entropy()], [torch.stack(expected)])
    with pytest.raises(NotImplementedError, match=r"100,000 outcomes, size=10 of 10"):
        PlackettLuce(torch.tensor([1, 10]), logits=logits).entropy()


# Shapes.


@pytest.mark.parametrize("cls", CLASSES)
def test_shapes(cls):
    for lengths, logits, rows, batch, event in (
        (LENGTHS, X, None, (3,), (4, 4)),
        (torch.tensor([1, 2, 2]), X, None, (3,), (2, 4)),
        (torch.tensor([1, 2, 2]), X, 3, (3,), (3, 4)),
        (torch.tensor([1, 3, 2, 2]), X[0], None, (4,), (3, 4)),  # they make the batch
        (torch.tensor([2]), X[0], None, (1,), (2, 4)),  # of one, too
        (torch.tensor([2]), X, None, (3,), (2, 4)),
        (torch.tensor([[1], [2]]), X[:1], None, (2, 1), (2, 4)),
        (torch.tensor([[1], [2]]), X, None, (2, 3), (2, 4)),
        (torch.tensor([1, 2]), X.unsqueeze(1), None, (3, 2), (2, 4)),  # particles, judges
        (LENGTHS, X.expand(5, 3, 4), None, (5, 3), (4, 4)),
        (torch.tensor(2), X, None, (3,), (2, 4)),
        (torch.tensor(2), X, 3, (3,), (3, 4)),
        (2, X, 3, (3,), (3, 4)),
        (2, X, 2, (3,), (2, 4)),
        (torch.zeros(0, dtype=torch.long), X[0], 2, (0,), (2, 4)),
    ):
        d = build(cls, 0.5, logits=logits, size=lengths, rows=rows, validate_args=True)
        assert (d.batch_shape, d.event_shape) == (batch, event)
        value = d.rsample((2,)) if d.has_rsample else d.sample((2,))
        assert value.shape == d.shape((2,)) == (2, *batch, *event)
        assert d.log_prob(value).shape == (2, *batch)
        wide = d.expand((6, *batch))
        assert type(wide) is cls
        assert wide.sample().shape == (6, *batch, *event)
        assert wide.log_prob(value[:1]).shape == (6, *batch)
        assert wide.support.check(wide.sample()).all()
        assert wide.to_event(1).log_prob(wide.sample()).shape == (6, *batch)[:-1]
        if cls in HARD:
            assert d.mean.shape == d.mode.shape == d.variance.shape == (*batch, *event)
            assert wide.mean.shape == (6, *batch, *event)
            assert d.entropy().shape == batch
            assert kl_divergence(wide, d).shape == (6, *batch)


@pytest.mark.parametrize("cls", CLASSES)
def test_shapes_are_inferred_from_the_number_of_rows(cls):
    assert cls.infer_shapes(logits=(3, 4), size=2) == ((3,), (2, 4))
    for size in (LENGTHS, (3,), torch.Size([3])):
        with pytest.raises(TypeError, match=r"`size` must be a Python int.*the number of rows"):
            cls.infer_shapes(logits=(3, 4), size=size)


def test_a_number_stays_a_number():
    for d in (PlackettLuce(torch.tensor(2), logits=X), PlackettLuce(2, logits=X, rows=2)):
        assert d.size == 2
        assert isinstance(d.size, int)
        assert d.enumerate_support().shape == (12, 3, 2, 4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("cls", CLASSES)
def test_lengths_of_every_integer_dtype(cls, dtype):
    found = []
    for size in (LENGTHS.to(dtype), LENGTHS):
        d = together(cls, size=size, validate_args=True)
        torch.manual_seed(0)
        value = d.sample((3,))
        found.append([value, d.log_prob(value), *([d.mean, d.entropy()] if cls in HARD else [])])
        assert d.size.dtype == torch.int64
    assert_all_close(*found)


@pytest.mark.parametrize("cls", [RelaxedPlackettLuce, PlackettLuceStraightThrough])
def test_lengths_beside_a_temperature_of_the_batch(cls):
    d = build(cls, torch.tensor([0.3, 1.0, 2.0]), logits=X[0], size=LENGTHS)
    value = d.rsample((4,))
    assert value.shape == (4, 3, K, K)
    assert d.log_prob(value).shape == (4, 3)


WRONG = [
    ({"size": torch.tensor([1.0, 2.0, 3.0])}, TypeError, ["`size`", "float32", "size.long()"]),
    ({"size": torch.tensor([True, True, True])}, TypeError, ["`size`", "torch.bool", "write"]),
    ({"size": torch.tensor([1j, 1, 1])}, TypeError, ["`size`", "complex", "write"]),
    ({"size": [1, 2, 3]}, TypeError, ["`size`", "got list", "torch.tensor"]),
    ({"size": torch.tensor([0, 2, 3])}, ValueError, ["`size`", "from 1 to", "got e.g. 0", "write"]),
    ({"size": torch.tensor([-1, 2, 3])}, ValueError, ["`size`", "got e.g. -1", "write"]),
    ({"size": torch.tensor([0, 0, 0])}, ValueError, ["`size`", "got up to 0", "write"]),
    (
        {"size": torch.tensor([1, 2, 5])},
        ValueError,
        ["`size`", "got up to 5", "write size[(size < 1)"],
    ),
    ({"size": torch.tensor(5)}, ValueError, ["`size`", "from 1 to", "4, got 5", "write size=4"]),
    ({"size": torch.tensor([1, 2])}, ValueError, ["`size`", "(3,)", "shape (2,)", "torch.full"]),
    ({"size": torch.ones(3, 1).long()}, ValueError, ["`size`", "write size.squeeze(-1)"]),
    ({"size": torch.zeros(0).long()}, ValueError, ["`size`", "(0,)", "write"]),
    ({"rows": 3}, ValueError, ["`size`", "from 1 to `rows`, 3", "got e.g. 4", "write rows=None"]),
    ({"rows": 5}, ValueError, ["`rows`", "from 1 to", "4, got 5", "write rows=4"]),
    ({"rows": 0}, ValueError, ["`rows`", "from 1 to", "got 0", "write rows=4"]),
    ({"rows": -(10**400)}, ValueError, ["`rows`", "an int of 1329 bits"]),
    ({"rows": 3.0}, TypeError, ["`rows`", "got float", "write rows=3"]),
    ({"rows": True}, TypeError, ["`rows`", "got bool", "write rows=3"]),
    ({"rows": torch.tensor(4)}, TypeError, ["`rows`", "got Tensor", "write rows=3"]),
    ({"size": 3, "rows": 2}, ValueError, ["`size`", "from 1 to `rows`, 2", "got 3", "write"]),
    ({"size": 0, "rows": 2}, ValueError, ["`size`", "got 0", "write"]),
    ({"size": 2.0, "rows": 2}, TypeError, ["`size`", "got float", "write size=2"]),
]


@pytest.mark.parametrize(("arguments", "error", "words"), WRONG)
@pytest.mark.parametrize("cls", CLASSES)
def test_wrong_lengths_and_rows(cls, arguments, error, words):
    with pytest.raises(error) as caught:
        together(cls, validate_args=True, **arguments)
    for word in [cls.__name__, *words]:
        assert word in str(caught.value)


def test_a_lone_empty_tensor_of_lengths_needs_rows():
    with pytest.raises(ValueError, match=r"`rows` must be given.*write rows=3"):
        PlackettLuce(torch.zeros(0, dtype=torch.long), logits=X[0])


@pytest.mark.parametrize("cls", CLASSES)
def test_without_validation_lengths_are_not_looked_at(cls):
    d = together(cls, size=torch.tensor([0, 9, 2]), rows=2, validate_args=False)
    assert d.sample().sum((-1, -2)).round().tolist() == [0, 2, 2]


class Looks(TorchDispatchMode):
    """Counts how often Python reads a number of a tensor, for which a GPU would wait."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cls", CLASSES)
def test_lengths_with_rows_add_no_look_at_a_number(cls):
    """Without validation. Without `rows` there is one more, for the largest length."""
    counts = []
    for size, rows in ((K, None), (LENGTHS, K), (LENGTHS, None)):
        with Looks() as looks:
            d = build(cls, 0.5, logits=X, size=size, rows=rows, validate_args=False)
            value = d.rsample((2,)) if d.has_rsample else d.sample((2,))
            d.log_prob(value)
            d.log_prob(value.clone())
        counts.append(looks.count)
    assert counts[1] == counts[0]
    assert counts[2] == counts[0] + 1


# Copies, transforms, compilation.


@pytest.mark.parametrize("cls", CLASSES)
def test_copies_and_text(cls):
    d = together(cls, X.clone().requires_grad_())
    value = d.sample((2,))
    expected = d.log_prob(value.clone())
    file = io.BytesIO()
    torch.save(d, file)
    file.seek(0)
    for twin in (
        pickle.loads(pickle.dumps(d)),
        copy.deepcopy(d),
        copy.copy(d),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(twin.log_prob(value.clone()), expected)
        assert torch.equal(twin.size, LENGTHS)
        assert twin.support == d.support
    assert "size: (3,)" in repr(d)
    assert "event_shape: (4, 4)" in repr(d)
    assert "size: 2" in repr(together(cls, size=2, rows=3))
    assert d.arg_constraints["size"].check(d.size).all()
    assert "size" not in cls.arg_constraints


def test_the_supports_are_values():
    for cls in (ranking, padded_simplex_rows):
        assert cls(LENGTHS) == cls(LENGTHS.clone(), rows=4)
        assert hash(cls(LENGTHS)) == hash(cls(LENGTHS.clone()))
        assert cls(LENGTHS, 4) != cls(torch.tensor([1, 2, 4]), 4)
        assert cls(2, 3) != cls(2)
        assert cls(2) != cls(3)
        assert repr(cls(LENGTHS)) == f"{cls.__name__}((3,), rows=4)"
        assert repr(cls(2, 3)) == f"{cls.__name__}(2, rows=3)"
        assert repr(cls(2)) == f"{cls.__name__}(2)"
    assert ranking(2) != padded_simplex_rows(2)


def test_there_are_no_coordinates_of_relaxed_rankings_of_different_lengths():
    with pytest.raises(NotImplementedError, match="different lengths; write one site for each"):
        biject_to(together(RelaxedPlackettLuce).support)
    assert biject_to(together(RelaxedPlackettLuce, size=2).support)


@pytest.mark.parametrize("cls", CLASSES)
def test_lengths_under_vmap(cls):
    value = together(cls).sample()

    def score(logits, length, value):
        d = build(cls, 0.5, logits=logits, size=length, rows=K, validate_args=True)
        draw = d.rsample() if d.has_rsample else d.sample()
        mean = (d.mean, d.mode) if cls in HARD else ()
        return d.log_prob(value), draw, *mean

    found = torch.vmap(score, randomness="different")(X, LENGTHS, value)
    expected = together(cls)
    assert_all_close(found[:1], [expected.log_prob(value)])
    assert expected.support.check(found[1]).all()
    if cls in HARD:
        assert_all_close(found[2:], [expected.mean, expected.mode])
    with pytest.raises(ValueError, match=r"`rows` must be given.*torch.vmap.*write rows=3"):
        torch.vmap(lambda n: build(cls, 0.5, logits=X[0], size=n).sample().sum())(LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("cls", CLASSES)
def test_lengths_in_a_compiled_function(cls):
    def score(logits, lengths, value):
        d = build(cls, 0.5, logits=logits, size=lengths, rows=K, validate_args=False)
        return d.log_prob(value), d.rsample() if d.has_rsample else d.sample()

    value = together(cls).sample()
    torch.compiler.reset()
    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    found, draw = compiled(X, LENGTHS, value)
    assert_all_close([found], [together(cls).log_prob(value)])
    assert together(cls).support.check(draw).all()


# In Pyro.


def model_of(cls, lengths, rows, batch=2):
    """Rankings in a subsampled plate, by worths that are the same for all."""
    worths = X[0]

    def model(data=None):
        with pyro.plate("judges", len(lengths), subsample_size=batch) as idx:
            d = build(cls, 0.5, logits=worths, size=lengths[idx], rows=rows, validate_args=True)
            return pyro.sample("r", d, obs=None if data is None else data[idx])

    return model


@pytest.mark.parametrize("cls", CLASSES)
def test_minibatches_have_the_same_shapes(cls):
    """Also a last one of one element, and one whose rankings are all short."""
    lengths = torch.tensor([1, 1, 3, 2, 1])
    data = build(cls, 0.5, logits=X[0], size=lengths, rows=3).sample()
    for batch in (1, 2, 5):
        model = model_of(cls, lengths, 3, batch)
        for _ in range(5):
            trace = pyro.poutine.trace(model).get_trace(data)
            trace.compute_log_prob()
            node = trace.nodes["r"]
            assert node["fn"].event_shape == (3, 4)
            assert node["value"].shape == (batch, 3, 4)
            assert node["log_prob"].shape == (batch,)
            assert node["log_prob"].isfinite().all()
    total = [pyro.poutine.trace(model_of(cls, lengths, 3, n)).get_trace(data) for n in (5, 2)]
    whole = total[0].log_prob_sum()
    assert whole.isfinite()
    draws = Predictive(model_of(cls, lengths, 3, 5), num_samples=7)()["r"]
    assert draws.shape == (7, 5, 3, 4)
    assert (draws.sum((-1, -2)) - lengths).abs().max() < 1e-5


@pytest.mark.parametrize("cls", CLASSES)
def test_worths_of_several_particles(cls):
    """Worths that all judges share have a dimension of 1 for the judges."""
    lengths = torch.tensor([1, 3, 2, 3, 1])
    data = build(cls, 0.5, logits=X[0], size=lengths).sample()

    def model():
        worths = pyro.sample("worths", dist.Normal(X[0], 1.0).to_event(1))
        with pyro.plate("judges", 5):
            pyro.sample("r", build(cls, 0.5, logits=worths, size=lengths, rows=3), obs=data)

    def guide():
        loc = pyro.param("loc", torch.zeros(K, dtype=torch.float64))
        pyro.sample("worths", dist.Normal(loc, 0.1).to_event(1))

    elbo = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.differentiable_loss(model, guide)
    loss.backward()
    assert loss.isfinite()
    assert pyro.param("loc").grad.isfinite().all()
    with pyro.plate("particles", 7, dim=-2):
        trace = pyro.poutine.trace(model).get_trace()
    assert trace.nodes["r"]["fn"].batch_shape == (7, 5)


@pytest.mark.parametrize("cls", CLASSES)
def test_masks_and_events(cls):
    d = together(cls)
    value = d.sample((5,))
    mask = torch.tensor([True, False, True])
    log_prob = d.log_prob(value.clone())
    assert_all_close([d.mask(mask).log_prob(value.clone())], [torch.where(mask, log_prob, 0.0)])
    assert_all_close([d.to_event(1).log_prob(value.clone())], [log_prob.sum(-1)])
    wide = d.expand([2, 3]).mask(mask).to_event(2)
    assert wide.sample().shape == (2, 3, K, K)
    if d.has_rsample:
        assert relax(wide, 0.5) is wide


@pytest.mark.parametrize("hard", [True, False])
def test_relax_keeps_lengths_and_rows(hard):
    lengths = torch.tensor([1, 2, 2])
    d = PlackettLuce(lengths, logits=X, rows=3)
    for given in (d, d.to_event(1), d.mask(False), d.expand([2, 3])):
        new = relax(given, 0.5, hard=hard)
        assert new.batch_shape == given.batch_shape
        assert new.event_shape == given.event_shape
        base = getattr(new, "base_dist", new)
        assert type(base) is (PlackettLuceStraightThrough if hard else RelaxedPlackettLuce)
        assert torch.equal(base.size, lengths)
        assert base.event_shape == (3, 4)


def utility(value):
    return m_hot(value) @ torch.tensor([4.0, -4.0, 2.0, -4.0])


@pytest.mark.parametrize("hard", first_fast([True, False]))
@pytest.mark.parametrize("elbo", first_fast([Trace_ELBO, TraceMeanField_ELBO]))
def test_a_relaxed_model_and_its_guide_keep_the_lengths(elbo, hard):
    lengths = torch.tensor([1, 2, 2])

    def model():
        with pyro.plate("judges", 3):
            value = pyro.sample("r", PlackettLuce(lengths, logits=torch.zeros(4), rows=3))
            pyro.factor("utility", 2 * utility(value))

    soft = relaxed(model, 0.5, hard=hard)
    guide = AutoRelaxed(soft, 0.5, hard=hard)
    svi = SVI(soft, guide, pyro.optim.Adam({"lr": 0.2}), elbo())
    losses = [svi.step() for _ in range(100)]
    assert all(map(math.isfinite, losses))
    d = guide.distribution("r")
    assert torch.equal(d.size, lengths)
    assert d.event_shape == (3, 4)
    best = guide.median()["r"]
    assert m_hot(best).tolist() == [[1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]]
    assert (best.sum(-1) == (torch.arange(3) < lengths.unsqueeze(-1))).all()
    quantiles = guide.quantiles([0.5])["r"]
    assert quantiles.shape == (1, 3, 3, 4)
    assert (quantiles[0, 0, 1:] == 0).all()


def test_a_report_of_a_model_with_lengths():
    """By the score function, as different lengths are not enumerated."""
    lengths = torch.tensor([1, 2])

    def model():
        with pyro.plate("judges", 2):
            value = pyro.sample("r", PlackettLuce(lengths, logits=torch.zeros(4)))
            pyro.factor("utility", utility(value))

    counts = {"num_samples": 4, "num_exact_samples": 40}
    report = gradient_report(
        model, AutoRelaxed(model), temperatures=[1.0], **counts, progress=False
    )
    assert {row.estimator for row in report.rows} == {*estimators.NAMES} - {"third_order"}
    assert all(row.standard_deviation > 0 for row in report.rows)


def test_a_guide_of_a_subsampled_plate_needs_lengths_of_its_own():
    lengths = torch.tensor([1, 2, 3, 2])
    guide = AutoRelaxed(model_of(PlackettLuce, lengths, 3))
    words = r"one size for a subsampled plate, got a tensor of shape \(2,\)"
    with pytest.raises(NotImplementedError, match=words):
        guide()
    same = AutoRelaxed(model_of(PlackettLuce, torch.tensor([2, 2, 2, 2]), 2, batch=4))
    assert same()["r"].shape == (4, 2, 4)


def test_a_guide_refuses_lengths_that_differ_from_run_to_run():
    def model():
        lengths = torch.tensor([next(length), 2])
        with pyro.plate("judges", 2):
            pyro.sample("r", PlackettLuce(lengths, logits=torch.zeros(4), rows=3))

    length = itertools.cycle([1, 3])
    words = r'"r".*`size` must be the same in every run, got 1 and 3; write a guide of its own'
    with pytest.raises(ValueError, match=words):
        AutoRelaxed(model)()


def test_lengths_can_be_enumerated_and_summed_over():
    """A latent length, against the sum over it by hand."""
    lengths = torch.tensor([1, 3, 2, 3])
    prior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    data = PlackettLuce(lengths, logits=X[0], rows=3).sample()

    @config_enumerate
    def model():
        with pyro.plate("judges", 4):
            z = pyro.sample("z", dist.Categorical(prior))
            d = PlackettLuce(1 + z, logits=X[0], rows=3, validate_args=False)
            pyro.sample("r", d, obs=data)

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
    expected = PlackettLuce(lengths, logits=X[0], rows=3).log_prob(data)
    assert loss == pytest.approx(-(expected + prior.log()[lengths - 1]).sum().item(), rel=1e-6)


def test_a_latent_length_has_an_exact_gradient_in_a_relaxed_model():
    """Its surrogate averages to the gradient of the sum over lengths and rankings."""
    target = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
    start = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64)

    def value_of(raw):
        total = 0.0
        for n, p in enumerate(raw.softmax(-1), 1):
            d = PlackettLuce(n, logits=X[0])
            rows = d.enumerate_support()
            total = total + p * (d.log_prob(rows).exp() * (m_hot(rows) @ target)).sum()
        return total

    raw = start.clone().requires_grad_()
    (exact,) = torch.autograd.grad(value_of(raw), raw)
    n = 3000
    raw = start.expand(n, 3).clone().requires_grad_()

    def model():
        with pyro.plate("draws", n):
            z = pyro.sample("z", dist.Categorical(logits=raw))
            d = PlackettLuce(1 + z, logits=X[0], rows=3)
            pyro.factor("mean", (d.mean.sum(-2) * target).sum(-1))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = pyro.poutine.trace(relaxed(model)).get_trace()
        loss = trace.nodes["mean"]["fn"].log_prob(torch.empty(n, 0)).sum()
    (gradient,) = torch.autograd.grad(loss, raw)
    assert_same_mean(gradient, exact)
