# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

import itertools
import math
import warnings

import mpmath
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    HardConcrete,
    IndexStraightThrough,
    LogitHardConcrete,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedSubset,
    Subset,
    SubsetStraightThrough,
)
from tests.common import (
    BERNOULLI,
    NONDETERMINISM,
    RELAXED_LOGITS,
    assert_same_mean,
    build,
    first_fast,
    leaf_of,
    make,
    noise_shares,
    param_shape,
    slow_unless,
    with_sizes,
)
from tests.distributions.test_straight_through import HARD_ONE, INFINITE, PLAIN_OF, ZEROS


def pairs(cls, parameter="logits", k=5):
    """Hard and plain distributions with the same parameters, twice."""
    for _ in range(2):
        d = make(cls, 0.3, (4,), k, torch.float64, parameter)
        yield d, PLAIN_OF[cls](**{parameter: leaf_of(d)})


@pytest.mark.parametrize("parameter", ["logits", "probs"])
@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_of_hard_and_plain_is_that_of_the_discrete_distributions(cls, parameter):
    q, p = pairs(cls, parameter)
    expected = kl_divergence(q[1], p[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an ambiguous dispatch warns
        for left, right in itertools.product(q, p):
            torch.testing.assert_close(kl_divergence(left, right), expected)


@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_equals_the_sum_over_the_support(cls):
    q, p = (d for d, _ in pairs(cls))
    values = q.enumerate_support()
    expected = (q.log_prob(values).exp() * (q.log_prob(values) - p.log_prob(values))).sum(0)
    torch.testing.assert_close(kl_divergence(q, p), expected)
    torch.testing.assert_close(kl_divergence(q, q), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("parameter", ["probs", "logits"])
@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_is_finite_where_the_first_distribution_has_zeros(cls, parameter):
    raw = torch.tensor((ZEROS if parameter == "probs" else INFINITE)[cls], requires_grad=True)
    q = cls(0.5, **{parameter: raw})
    other = torch.tensor([0.2, -0.4, 0.5], requires_grad=True)
    for p in (cls(0.5, logits=other), PLAIN_OF[cls](logits=other), cls(0.3, **{parameter: raw})):
        divergence = kl_divergence(q, p)
        assert divergence.isfinite().all()
        assert (divergence >= -1e-6).all()
        (gradient,) = torch.autograd.grad(divergence.sum(), raw)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("expanded", [True, False])
@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_of_equal_distributions_with_zeros_is_zero(cls, expanded):
    """torch clamps the logits of a plain distribution, and forgets in `expand` what was given."""
    distribution, plain = (
        cls(0.5, probs=torch.tensor(ZEROS[cls])),
        PLAIN_OF[cls](torch.tensor(ZEROS[cls])),
    )
    assert plain.logits.isfinite().all()
    if expanded:
        distribution, plain = (
            d.expand(torch.Size([2, *d.batch_shape])) for d in (distribution, plain)
        )
    for q, p in itertools.product([distribution, plain], repeat=2):
        if distribution in (q, p):
            assert kl_divergence(q, p).abs().max() < 1e-6


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_is_infinite_only_where_the_second_distribution_excludes_what_the_first_does_not(
    cls, plain
):
    raw = torch.tensor(ZEROS[cls])
    p = PLAIN_OF[cls](probs=raw) if plain else cls(0.5, probs=raw)
    q = cls(0.5, logits=torch.zeros(3))
    expected = [True, False, True] if cls is BernoulliStraightThrough else True
    assert kl_divergence(q, p).isposinf().tolist() == expected
    assert kl_divergence(q, q).abs().max() < 1e-6


def test_kl_with_a_plain_distribution_of_extreme_logits_is_finite():
    """Its probabilities round to 0 and 1, its logits do not."""
    for logit in (-200.0, -30.0, 30.0, 200.0):
        q = BernoulliStraightThrough(0.5, logits=torch.tensor(0.0))
        expected = abs(logit) / 2 - math.log(2)
        found = kl_divergence(q, dist.Bernoulli(logits=torch.tensor(logit)))
        assert found.item() == pytest.approx(expected, rel=1e-6)
        p = dist.OneHotCategorical(logits=torch.tensor([logit, 0.0]))
        q = CategoricalStraightThrough(0.5, logits=torch.zeros(2))
        assert kl_divergence(q, p).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_over_batches_and_wrappers(cls):
    q, p = make(cls, batch_shape=(3, 2)), make(cls, batch_shape=())
    assert kl_divergence(q, p).shape == (3, 2)
    assert kl_divergence(p.expand([7, 3, 2]), q).shape == (7, 3, 2)
    inner = kl_divergence(q, p.expand([3, 2]))
    outer = kl_divergence(q.to_event(1), p.expand([3, 2]).to_event(1))
    torch.testing.assert_close(outer, inner.sum(-1))
    mask = torch.tensor([True, False])
    masked = kl_divergence(q.mask(mask), p.expand([3, 2]).mask(mask))
    torch.testing.assert_close(masked, inner * mask)


# Soft distributions.

SOFT_WITH_KL = [
    RelaxedBernoulli,
    LogitRelaxedBernoulli,
    RelaxedCategorical,
    ExpRelaxedCategorical,
    RelaxedSubset,
    LogitRelaxedSubset,
    HardConcrete,
    LogitHardConcrete,
]
TEMPERATURES = [[0.1, 0.5], [0.5, 0.1], [0.5, 0.5], [0.67, 0.4], [2.0, 0.3], [0.05, 0.05]]


def soft_pair(cls, k, temperatures, dtype=torch.float64, **keywords):
    return [make(cls, t, (), k, dtype, scale=1.5, **keywords) for t in temperatures]


@pytest.mark.parametrize(
    ("cls", "k", "temperatures"),
    slow_unless(
        lambda case: case[:2] != (LogitRelaxedSubset, 3) or case[2] == TEMPERATURES[0],
        [
            (*pair, temperatures)
            for pair in with_sizes(RELAXED_LOGITS, 2, 3)
            for temperatures in TEMPERATURES
        ],
    ),
)
def test_kl_of_soft_distributions_is_the_mean_over_all_noise(cls, k, temperatures):
    """Of log q - log p, at values in logit space, which do not round."""
    q, p = soft_pair(cls, k, temperatures, validate_args=False)
    log_shares, weights = noise_shares(k)
    if cls in BERNOULLI:
        v = q.link.unconstrained(q.logits + log_shares[:, 1] - log_shares[:, 0], q.temperature)
    else:
        v = q.link.unconstrained(q.logits - log_shares, q.temperature)
    exact = (weights * (q.log_prob(v) - p.log_prob(v))).sum()
    torch.testing.assert_close(kl_divergence(q, p), exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("temperatures", TEMPERATURES)
@pytest.mark.parametrize("values", [RelaxedBernoulli, RelaxedCategorical, RelaxedSubset])
def test_values_and_their_logits_have_the_same_kl(values, temperatures):
    """As they are one distribution after a bijection."""
    coordinates = SOFT_WITH_KL[SOFT_WITH_KL.index(values) + 1]
    q, p = soft_pair(values, 4, temperatures)
    same = [build(coordinates, d.temperature, logits=d.logits) for d in (q, p)]
    torch.testing.assert_close(kl_divergence(*same), kl_divergence(q, p))


@pytest.mark.parametrize(
    "temperatures", slow_unless(lambda pair: pair == [0.67, 0.4], TEMPERATURES)
)
@pytest.mark.parametrize(
    ("cls", "k"),
    slow_unless(
        lambda case: case[1] < 100,
        with_sizes([RelaxedBernoulli, RelaxedCategorical, RelaxedSubset], 10, 100),
    ),
)
def test_kl_of_soft_distributions_is_the_mean_of_many_draws(cls, k, temperatures):
    q, p = soft_pair(cls, k, temperatures, torch.float32)
    s = q.sample((200_000,))
    assert_same_mean(q.log_prob(s) - p.log_prob(s), kl_divergence(q, p))


@pytest.mark.parametrize("temperatures", TEMPERATURES[:3])
@pytest.mark.parametrize("cls", SOFT_WITH_KL)
def test_kl_of_soft_distributions_in_lower_precision(cls, temperatures):
    for dtype in (torch.float32, torch.bfloat16):
        q, p = soft_pair(cls, 10, temperatures, dtype)
        exact = kl_divergence(
            *(build(cls, d.temperature.double(), logits=leaf_of(d).double()) for d in (q, p))
        )
        assert kl_divergence(q, p).dtype == torch.float32
        torch.testing.assert_close(kl_divergence(q, p), exact.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperatures", first_fast(TEMPERATURES[:3]))
@pytest.mark.parametrize("cls", SOFT_WITH_KL)
def test_kl_of_soft_distributions_is_differentiable_twice(cls, temperatures):
    logits = [leaf_of(d) for d in soft_pair(cls, 3, temperatures)]
    taus = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in temperatures]

    def kl(x_q, x_p, tau_q, tau_p):
        return kl_divergence(build(cls, tau_q, logits=x_q), build(cls, tau_p, logits=x_p))

    fixed = [tau.detach() for tau in taus]  # where one bit has another formula
    of_logits = lambda x_q, x_p: kl(x_q, x_p, *fixed)  # noqa: E731
    options = {"nondet_tol": NONDETERMINISM}
    assert torch.autograd.gradcheck(kl, (*logits, *taus), **options)
    assert torch.autograd.gradgradcheck(kl, (*logits, *taus), **options)
    assert torch.autograd.gradgradcheck(of_logits, tuple(logits), **options)
    torch.testing.assert_close(kl(*logits, *fixed), kl(*logits, *taus), rtol=0, atol=1e-11)


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("cls", "k"),
    [(cls, 2) for cls in SOFT_WITH_KL] + [(cls, k) for cls in SOFT_WITH_KL[2:] for k in (10, 1000)],
)
def test_kl_and_its_gradient_are_0_between_equal_distributions(cls, k, dtype, learnt):
    given = 3 * torch.randn(4, *param_shape(cls, k), dtype=dtype)
    for raw in (given, torch.zeros_like(given)):
        inputs = [raw.clone().requires_grad_() for _ in range(2)]
        taus = [torch.tensor(0.3, dtype=dtype, requires_grad=learnt) for _ in range(2)]
        q, p = (build(cls, tau, logits=x) for tau, x in zip(taus, inputs, strict=True))
        divergence = kl_divergence(q, p)
        assert divergence.abs().max() < 1e-10
        for gradient in torch.autograd.grad(divergence.sum(), inputs + taus * learnt):
            assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize("cls", [RelaxedBernoulli, RelaxedCategorical])
def test_the_derivative_in_a_temperature_that_equals_the_other(cls):
    """In forward mode too: two outcomes at equal temperatures have a formula without them."""
    x = torch.randn(param_shape(cls, 2), dtype=torch.float64)

    def kl(tau):
        return kl_divergence(cls(tau, logits=x), cls(0.5, logits=torch.zeros_like(x)))

    at = torch.tensor(0.5, dtype=torch.float64)
    difference = (kl(at + 1e-5) - kl(at - 1e-5)) / 2e-5
    assert difference.abs() > 1e-3
    for slope in (torch.func.grad(kl)(at), torch.func.jvp(kl, (at,), (torch.ones_like(at),))[1]):
        torch.testing.assert_close(slope, difference, rtol=1e-6, atol=0)


def test_kl_of_bits_far_and_near():
    """delta coth(delta / 2) - 2, at 50 digits."""
    for delta in (1e-8, 1e-4, 0.099, 0.101, 1.0, 30.0, 800.0):
        with mpmath.workdps(50):
            exact = float(delta * mpmath.coth(mpmath.mpf(delta) / 2) - 2)
        q = RelaxedBernoulli(0.3, logits=torch.tensor(0.25, dtype=torch.float64))
        p = RelaxedBernoulli(0.3, logits=torch.tensor(0.25 + delta, dtype=torch.float64))
        assert kl_divergence(q, p).item() == pytest.approx(exact, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("cls", SOFT_WITH_KL)
def test_kl_is_finite_where_a_difference_of_logits_overflows(cls):
    """A category that is hardly possible is not an impossible one."""
    numbers = [-1.2e308, 1.2e308] if cls in BERNOULLI else [1.2e308, -1.2e308, 1.2e308]
    logits = torch.tensor(numbers, dtype=torch.float64)
    far, near = build(cls, 0.7, logits=logits), build(cls, 0.5, logits=torch.zeros_like(logits))
    for q, p in ((far, near), (near, far)):
        assert kl_divergence(q, p).isfinite().all()
        assert (kl_divergence(q, p) > 1e299).all()


@pytest.mark.parametrize("cls", SOFT_WITH_KL)
def test_kl_of_soft_distributions_over_batches_and_wrappers(cls):
    shape = param_shape(cls, 4)
    tau = torch.tensor([[0.3], [0.5], [0.9]], dtype=torch.float64)
    x_q = torch.randn(3, 2, *shape, dtype=torch.float64)
    x_p = torch.randn(2, *shape, dtype=torch.float64)
    q, p = build(cls, tau, logits=x_q), build(cls, 0.5, logits=x_p)
    inner = kl_divergence(q, p)
    assert inner.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            single = kl_divergence(
                build(cls, tau[i, 0], logits=x_q[i, j]),
                build(cls, 0.5, logits=x_p[j]),
            )
            torch.testing.assert_close(inner[i, j], single)
    torch.testing.assert_close(kl_divergence(q.expand([7, 3, 2]), p), inner.expand(7, 3, 2))
    outer = kl_divergence(q.to_event(1), p.expand([3, 2]).to_event(1))
    torch.testing.assert_close(outer, inner.sum(-1))
    mask = torch.tensor([True, False])
    masked = kl_divergence(q.mask(mask), p.expand([3, 2]).mask(mask))
    torch.testing.assert_close(masked, inner * mask)


@pytest.mark.parametrize("cls", SOFT_WITH_KL)
def test_kl_of_relaxed_distributions_is_infinite_unless_they_have_the_same_outcomes(cls):
    full = torch.tensor([0.3, 1.0, -0.4, 0.2])
    face = torch.tensor([-0.5, -math.inf, 0.4, 1.0])
    if not param_shape(cls):
        full, face = torch.tensor(0.3), torch.tensor(math.inf)
    for raw, other in ((full, face), (face, full)):
        raw = raw.clone().requires_grad_()
        q, p = (
            build(cls, 0.5, logits=raw, size=2),
            build(cls, 0.3, logits=other, size=2),
        )
        assert kl_divergence(q, p).isposinf()
    raw = face.clone().requires_grad_()
    q, p = (
        build(cls, t, logits=raw + i * 0.1 * raw.isfinite(), size=2)
        for i, t in enumerate((0.5, 0.3))
    )
    divergence = kl_divergence(q, p)
    (gradient,) = torch.autograd.grad(divergence, raw)
    assert gradient.isfinite().all()
    alive = face.isfinite()
    expected = torch.tensor(0.0)  # of a sure bit nothing is left
    if alive.any():
        left = (raw + 0.1 * i for i in range(2))
        q, p = (
            build(cls, t, logits=x[alive], size=2) for t, x in zip((0.5, 0.3), left, strict=True)
        )
        expected = kl_divergence(q, p)
    torch.testing.assert_close(divergence, expected)


def test_sets_of_all_that_is_possible_are_points():
    for cls in (RelaxedSubset, LogitRelaxedSubset):
        distributions = [cls(t, 2, probs=torch.tensor([t, 0.0, 0.7])) for t in (0.3, 0.5)]
        assert kl_divergence(*distributions) == 0


# Torch takes relaxed values for transformed distributions.

BASE_OF = {RelaxedBernoulli: LogitRelaxedBernoulli, RelaxedCategorical: ExpRelaxedCategorical}
TAU, HALF = torch.tensor(0.5), torch.tensor([0.3, -0.2, 1.0])
OTHERS = [
    dist.RelaxedBernoulli(TAU, logits=HALF),
    dist.RelaxedBernoulliStraightThrough(TAU, logits=HALF),
    dist.RelaxedOneHotCategorical(TAU, logits=HALF),
    dist.RelaxedOneHotCategoricalStraightThrough(TAU, logits=HALF),
    torch.distributions.RelaxedBernoulli(TAU, logits=HALF),
    dist.LogNormal(HALF, 1.0),
    dist.Gumbel(HALF, 1.0),
    dist.Uniform(HALF, 2.0),
    dist.Bernoulli(logits=HALF),
    RelaxedSubset(0.5, 2, logits=HALF),
    LogitRelaxedBernoulli(0.5, logits=HALF),
]


@pytest.mark.parametrize("cls", BASE_OF)
def test_kl_of_soft_distributions_and_the_same_distribution_by_its_base(cls):
    """The class's own, without a warning of two that fit, and that of a bare transformed one."""
    q, p = soft_pair(cls, 4, (0.5, 0.3))
    exact = kl_divergence(*(build(BASE_OF[cls], d.temperature, logits=leaf_of(d)) for d in (q, p)))
    bare = [dist.TransformedDistribution(d.base_dist, d.transforms) for d in (q, p)]
    assert exact > 0
    for pair in ((q, p), (q, bare[1]), (bare[0], p), bare):
        torch.testing.assert_close(kl_divergence(*pair), exact)


@pytest.mark.parametrize("other", OTHERS, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("cls", BASE_OF)
def test_there_is_no_kl_of_soft_distributions_and_others(cls, other):
    """Above all no wrong one with the built-in class of the same name."""
    d = build(cls, 0.5, logits=HALF)
    for pair in ((d, other), (other, d)):
        with pytest.raises(NotImplementedError, match=r"\w+"):
            kl_divergence(*pair)


def test_the_kl_that_there_is_not_says_what_to_write():
    d, other = RelaxedBernoulli(0.5, logits=HALF), OTHERS[0]
    text = r"pyro_gumbel\.\S+\.RelaxedBernoulli and pyro\.distributions.*; write both"
    with pytest.raises(NotImplementedError, match=text):
        kl_divergence(d, other)
    one, of_k = RelaxedBernoulli(0.5, 0.5), RelaxedCategorical(0.5, logits=torch.zeros(3))
    with pytest.raises(NotImplementedError, match=r"\.RelaxedBernoulli and .*Categorical;"):
        kl_divergence(one, of_k)


@pytest.mark.parametrize("cls", [RelaxedSubset, LogitRelaxedSubset, SubsetStraightThrough, Subset])
def test_kl_between_different_sizes_is_refused(cls):
    q, p = (build(cls, 0.5, logits=torch.zeros(4), size=size) for size in (1, 2))
    with pytest.raises(ValueError, match=r"same event shape and `size`, got .* size 1 and 2"):
        kl_divergence(q, p)
    other = build(cls, 0.5, logits=torch.zeros(5), size=1)
    with pytest.raises(ValueError, match=r"got \(4,\) and \(5,\)"):
        kl_divergence(q, other)


# Sets and orders.

PLAIN_OF_MANY = {SubsetStraightThrough: Subset, PlackettLuceStraightThrough: PlackettLuce}


@pytest.mark.parametrize(("hard", "plain"), PLAIN_OF_MANY.items())
def test_kl_of_sets_and_orders_is_the_sum_over_the_outcomes(hard, plain):
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    distributions = [(build(hard, 0.3, logits=y), build(plain, None, logits=y)) for y in x]
    values = distributions[0][1].enumerate_support()
    log_q, log_p = (pair[1].log_prob(values) for pair in distributions)
    exact = (log_q.exp() * (log_q - log_p)).sum(0)
    for q, p in itertools.product(*distributions):
        torch.testing.assert_close(kl_divergence(q, p), exact)
    single = build(plain, None, logits=x[1, 0])
    torch.testing.assert_close(kl_divergence(distributions[0][0], single)[0], exact[0])
    torch.testing.assert_close(kl_divergence(single, single), torch.tensor(0.0).double())


@pytest.mark.parametrize(("hard", "plain"), PLAIN_OF_MANY.items())
def test_kl_of_sets_and_orders_with_impossible_categories(hard, plain):
    full, face = torch.zeros(4), torch.tensor([0.3, -math.inf, 0.0, 1.0]).requires_grad_()
    q, p = hard(0.5, 2, logits=face), plain(2, logits=full)
    divergence = kl_divergence(q, p)
    assert divergence.isfinite()
    assert torch.autograd.grad(divergence, face)[0].isfinite().all()
    assert kl_divergence(p, q).isposinf()


@pytest.mark.parametrize(("hard", "plain"), PLAIN_OF_MANY.items())
def test_beyond_enumeration_kl_is_not_implemented(hard, plain):
    q, p = hard(0.5, 10, logits=torch.zeros(40)), plain(10, logits=torch.ones(40))
    with pytest.raises(NotImplementedError, match="up to 100,000 outcomes"):
        kl_divergence(q, p)


@pytest.mark.parametrize("cls", [CategoricalStraightThrough, IndexStraightThrough, Subset])
def test_a_category_masked_with_the_lowest_number_has_finite_gradients(cls):
    """A weight of 2 times that number is -inf, and 0 times that NaN."""
    lowest = torch.finfo(torch.float32).min
    x = torch.tensor([0.3, lowest, -0.2], requires_grad=True)
    y = torch.tensor([0.1, lowest, 0.5], requires_grad=True)
    q, p = (build(cls, None, logits=logits, size=1) for logits in (x, y))
    whole = build(cls, None, logits=torch.zeros(3), size=1)
    of_whole = torch.autograd.grad(2 * kl_divergence(q, whole), x)
    loss = 2 * (q.entropy() + kl_divergence(q, p))
    for slope in (*of_whole, *torch.autograd.grad(loss, (x, y))):
        assert slope.isfinite().all()
        assert slope[1] == 0
    expected = [build(cls, None, logits=each[[0, 2]], size=1) for each in (x, y)]
    exact = 2 * (expected[0].entropy() + kl_divergence(*expected))
    torch.testing.assert_close(loss, exact)
