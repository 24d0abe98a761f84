# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Means, variances, entropies, modes and quantiles of relaxed distributions."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence

from pyro_gumbel import (
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedSubset,
)
from tests.common import (
    ALL,
    BERNOULLI,
    NONDETERMINISM,
    SIZED,
    assert_same_mean,
    build,
    derivatives,
    first_fast,
    leaf_of,
    make,
    noise_shares,
    on_a_face,
    slow_unless,
)

VALUES_OF_ONE = [RelaxedBernoulli, RelaxedCategorical]
COORDINATES_OF_ONE = [LogitRelaxedBernoulli, ExpRelaxedCategorical]
SOFT_OF_ONE = VALUES_OF_ONE + COORDINATES_OF_ONE
COORDINATES_OF = dict(zip(VALUES_OF_ONE, COORDINATES_OF_ONE, strict=True))
BITS = [RelaxedBernoulli, LogitRelaxedBernoulli]

TEMPERATURES = slow_unless(
    lambda temperature: temperature in (0.05, 0.67, 5.0), [0.05, 0.1, 0.4, 0.5, 0.67, 1.0, 2.0, 5.0]
)
LOGITS = {
    RelaxedBernoulli: [[0.0], [1.5], [-20.0]],
    RelaxedCategorical: [[0.0, 0.0, 0.0], [1.0, -0.5, 0.3], [8.0, -3.0, 7.5], [2.0, 0.0]],
}
CASES = [(cls, x) for cls in VALUES_OF_ONE for x in LOGITS[cls]]


def over_noise(cls, temperature, logits):
    """Values in logit space at the nodes of a quadrature over the noise, and the weights."""
    x = torch.tensor(logits, dtype=torch.float64)
    if cls is RelaxedBernoulli:
        log_shares, weights = noise_shares(2)
        return (x + log_shares[:, 1:] - log_shares[:, :1]).squeeze(-1) / temperature, weights
    log_shares, weights = noise_shares(len(x))
    return torch.log_softmax((x - log_shares) / temperature, -1), weights


def distribution_at(cls, temperature, logits, **keywords):
    x = torch.tensor(logits, dtype=torch.float64)
    return cls(temperature, logits=x.squeeze(0) if len(x) == 1 else x, **keywords)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("cls", "logits"), CASES)
def test_moments_are_those_over_all_noise(cls, logits, temperature):
    v, weights = over_noise(cls, temperature, logits)
    d = distribution_at(cls, temperature, logits)
    s = d.link.value(v)
    atol = 1e-9 if len(logits) == 3 else 1e-11
    weights = weights.reshape(-1, *(1 for _ in d.event_shape))
    mean = (weights * s).sum(0)
    torch.testing.assert_close(d.mean, mean, rtol=0, atol=atol)
    torch.testing.assert_close(d.variance, (weights * (s - mean) ** 2).sum(0), rtol=0, atol=atol)
    if cls is RelaxedCategorical:
        off = s - mean
        products = off.unsqueeze(-1) * off.unsqueeze(-2)
        expected = (weights.unsqueeze(-1) * products).sum(0)
        torch.testing.assert_close(d.covariance_matrix, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("logits", LOGITS[RelaxedCategorical])
def test_means_in_logit_space_are_those_over_all_noise(logits, temperature):
    v, weights = over_noise(RelaxedCategorical, temperature, logits)
    d = distribution_at(ExpRelaxedCategorical, temperature, logits)
    torch.testing.assert_close(d.mean, weights @ v, rtol=1e-11, atol=1e-8)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("cls", "logits"), CASES)
def test_entropies_are_those_over_all_noise(cls, logits, temperature):
    v, weights = over_noise(cls, temperature, logits)
    coordinates = distribution_at(COORDINATES_OF[cls], temperature, logits, validate_args=False)
    log_prob = coordinates.log_prob(v)
    entropy = -(weights * log_prob).sum()
    torch.testing.assert_close(coordinates.entropy(), entropy, rtol=0, atol=1e-9)
    d = distribution_at(cls, temperature, logits)
    log_slopes = d.link.log_slopes(v).sum(-1) if d.event_shape else -(v.abs() + 2 * _tail(v))
    entropy = -(weights * (log_prob - log_slopes)).sum()
    torch.testing.assert_close(d.entropy(), entropy, rtol=1e-11, atol=1e-9)


def _tail(v):
    return torch.log1p(torch.exp(-v.abs()))


def test_the_logit_of_a_relaxed_bernoulli_is_logistic():
    x, temperature = torch.tensor([0.0, 1.5, -20.0], dtype=torch.float64), 0.4
    d = LogitRelaxedBernoulli(temperature, logits=x)
    exact = stats.logistic(loc=x.cpu().numpy() / temperature, scale=1 / temperature)
    p = torch.tensor([0.1, 0.5, 0.999], dtype=torch.float64)
    for found, expected in (
        (d.mean, exact.mean()),
        (d.mode, exact.median()),
        (d.variance, exact.var()),
        (d.entropy(), exact.entropy()),
        (d.icdf(p), exact.ppf(p.cpu().numpy())),
        (d.cdf(3 * p), exact.cdf(3 * p.cpu().numpy())),
    ):
        torch.testing.assert_close(found, torch.as_tensor(expected))


def draws(cls, k, temperature, count, dtype=torch.float64):
    torch.manual_seed(k)
    d = cls(temperature, logits=2 * torch.randn(k, dtype=dtype))
    return d, d.sample((count,))


@pytest.mark.parametrize("k", first_fast([10, 100]), ids=lambda k: f"{k} categories")
@pytest.mark.parametrize("temperature", first_fast([0.67, 0.1, 2.0]))
def test_moments_of_many_categories_are_those_of_many_draws(k, temperature):
    count = 200_000 if k == 10 else 10**6  # rare large entries make the mean of few less normal
    d, s = draws(RelaxedCategorical, k, temperature, count)
    assert_same_mean(s, d.mean)
    assert_same_mean((s - d.mean) ** 2, d.variance)
    assert_same_mean(-d.log_prob(s), d.entropy())
    v = ExpRelaxedCategorical(temperature, logits=d.logits)
    assert_same_mean(-v.log_prob(v.sample((10**5,))), v.entropy())
    assert_same_mean(v.sample((count,)), v.mean)


@pytest.mark.parametrize("k", first_fast([2, 10, 1000], 2))
def test_means_sum_to_one_and_tend_to_the_probabilities(k):
    x = 3 * torch.randn(4, k, dtype=torch.float64)
    distances = []
    for temperature in (3.0, 1.0, 0.3, 0.1, 0.03, 0.01):
        d = RelaxedCategorical(temperature, logits=x)
        torch.testing.assert_close(d.mean.sum(-1), torch.ones(4, dtype=torch.float64))
        assert (d.mean > 0).all()
        distances.append((d.mean - d.probs).abs().max().item())
        torch.testing.assert_close(
            d.covariance_matrix.sum(-1), torch.zeros_like(d.mean), rtol=0, atol=1e-9
        )
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-2


@pytest.mark.parametrize("cls", SOFT_OF_ONE)
def test_moments_are_differentiable_in_logits_and_temperature(cls):
    x = leaf_of(make(cls, dtype=torch.float64))
    temperature = torch.tensor([0.4, 2.5], dtype=torch.float64, requires_grad=True)

    def moments(x, temperature):
        d = cls(temperature, logits=x)
        if cls is ExpRelaxedCategorical:
            return d.mean, d.mode, d.entropy()
        if cls is RelaxedCategorical:
            return d.mean, d.variance, d.covariance_matrix, d.entropy()
        probability = torch.tensor([0.3, 0.9], dtype=torch.float64)
        value = torch.tensor([0.2, 0.6], dtype=torch.float64)
        return d.mean, d.variance, d.entropy(), d.icdf(probability), d.cdf(value)

    assert torch.autograd.gradcheck(moments, (x, temperature), nondet_tol=NONDETERMINISM)


@pytest.mark.parametrize("temperature", first_fast([0.03, 0.1, 0.7, 30.0]))
@pytest.mark.parametrize("cls", VALUES_OF_ONE)
def test_moments_are_differentiable_twice(cls, temperature):
    """At low temperatures too, where the integrals have terms of less than the least double."""
    x = leaf_of(make(cls, batch_shape=(), dtype=torch.float64))
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)

    def moments(x, tau):
        d = cls(tau, logits=x)
        return d.mean, d.variance, d.stddev, d.entropy() * tau

    options = {"rtol": 1e-3, "atol": 1e-5, "nondet_tol": NONDETERMINISM}
    assert torch.autograd.gradgradcheck(moments, (x, tau), fast_mode=True, **options)


OF_A_LAW = {
    "mean": lambda d: d.mean,
    "variance": lambda d: d.variance,
    "stddev": lambda d: d.stddev,
    "entropy": lambda d: d.entropy(),
    "mode": lambda d: d.mode,
    "cdf": lambda d: torch.stack([d.cdf(torch.full_like(d.probs, q)) for q in (0.2, 0.9)]),
    "icdf": lambda d: torch.stack([d.icdf(torch.full_like(d.probs, q)) for q in (0.2, 0.9)]),
    "divergence": lambda d: kl_divergence(d, at_one(d)),
    "divergence from another": lambda d: kl_divergence(at_one(d), d),
}
OF_OUTCOMES = ("mean", "variance", "stddev", "mode")


def at_one(d):
    return build(type(d), 1.0, logits=d.logits.detach(), size=getattr(d, "size", None))


def exists(cls, what):
    try:
        OF_A_LAW[what](make(cls, 2.5))
    except (AttributeError, NotImplementedError):
        return False
    return True


@pytest.mark.parametrize(
    ("cls", "what", "temperature"),
    slow_unless(
        lambda case: case[2] == 2.5,
        [
            (cls, what, temperature)
            for cls in ALL
            for what in OF_A_LAW
            if exists(cls, what)
            for temperature in ((2.5,) if what == "mode" else (0.05, 2.5))
        ],
    ),
)
def test_derivatives_at_probabilities_of_0_are_those_of_what_is_left(cls, what, temperature):
    """Of first and of second order, in the parameter, the temperature, and mixed."""
    possible = 1 if cls in BERNOULLI else 3

    def of_what_is_left(parameter, temperature):
        size = {"size": 2} if cls in SIZED else {}
        value = OF_A_LAW[what](build(cls, temperature, **{name: parameter}, **size))
        return value[..., :possible] if cls in BERNOULLI or what in OF_OUTCOMES else value

    # The mean of a one-hot vector is w / sum(w) of the weights w, with a slope at w = 0 too.
    for name in ("logits",) if cls is CategoricalStraightThrough else ("probs", "logits"):
        tau = torch.tensor(temperature, dtype=torch.float64)
        found, expected = (
            derivatives(of_what_is_left, parameter, tau, possible)
            for parameter in on_a_face(cls, possible, name)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("cls", VALUES_OF_ONE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_moments_of_lower_precision_are_those_of_float64_rounded(cls, dtype):
    d = make(cls, 0.5, (4,), 5, dtype)
    exact = cls(0.5, logits=leaf_of(d).double())
    for name in ("mean", "variance"):
        assert getattr(d, name).dtype == dtype
        expected = getattr(exact, name).to(dtype)
        torch.testing.assert_close(getattr(d, name), expected, rtol=1e-5, atol=1e-7)
    assert d.entropy().dtype == torch.float32
    torch.testing.assert_close(d.entropy(), exact.entropy().float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", SOFT_OF_ONE)
def test_moments_have_the_batch_shape(cls):
    d = make(cls, torch.tensor([[0.5], [0.1], [2.0]]), (3, 4))
    each = [leaf_of(make(cls, 0.3, ())) for _ in range(4)]
    small = cls(
        torch.tensor([0.5, 0.1, 2.0]).unsqueeze(-1),
        logits=torch.stack(each).expand(leaf_of(d).shape),
    )
    last = "mode" if cls is ExpRelaxedCategorical else "variance"
    names = ["entropy", "mean", last]
    for name in names:
        whole = getattr(small.expand((2, 3, 4)), name)
        whole = whole() if callable(whole) else whole
        own = () if name == "entropy" else d.event_shape
        assert whole.shape == (2, 3, 4, *own)
        for i, temperature in enumerate([0.5, 0.1, 2.0]):
            for j, logits in enumerate(each):
                single = getattr(cls(temperature, logits=logits), name)
                single = single() if callable(single) else single
                torch.testing.assert_close(whole[1, i, j], single, rtol=1e-5, atol=1e-5)


def test_impossible_categories_are_left_out():
    x = torch.tensor([0.5, -math.inf, 1.0, -0.2], dtype=torch.float64, requires_grad=True)
    alive = x.isfinite()
    d, face = (RelaxedCategorical(2.3, logits=logits) for logits in (x, x[alive].detach()))
    torch.testing.assert_close(d.mean[alive], face.mean)
    torch.testing.assert_close(d.variance[alive], face.variance)
    torch.testing.assert_close(d.mode[alive], face.mode)
    torch.testing.assert_close(d.entropy(), face.entropy())
    for moment in (d.mean, d.variance, d.mode):
        assert moment[~alive].item() == 0
    total = d.mean[0] + d.variance.sum() + d.mode[0] + d.entropy()
    (gradient,) = torch.autograd.grad(total, x)
    assert gradient.isfinite().all()
    assert gradient[~alive].item() == 0


def test_impossible_categories_are_left_out_in_logit_space():
    x = torch.tensor([0.5, -math.inf, 1.0, -0.2], dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(2.3, dtype=torch.float64, requires_grad=True)
    alive = x.isfinite()
    d = ExpRelaxedCategorical(tau, logits=x)
    face = ExpRelaxedCategorical(2.3, logits=x[alive].detach())
    for moment, expected in ((d.mean, face.mean), (d.mode, face.mode)):
        torch.testing.assert_close(moment[alive], expected)
        assert moment[~alive].item() == -math.inf
        gradients = torch.autograd.grad(moment[0] + moment[2], (x, tau))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert gradients[0][~alive].item() == 0
    alone = ExpRelaxedCategorical(0.1, logits=torch.tensor([-math.inf, 3.0]))
    torch.testing.assert_close(alone.mean, torch.tensor([-math.inf, 0.0]))


@pytest.mark.parametrize("temperature", [1.0, 0.01, 0.0011])
def test_the_mean_in_logit_space_far_from_zero(temperature):
    """The log-ratios have the means of their logistic variates, (x_i - x_j) / tau, exactly."""
    x = torch.tensor([5e3, -5e3, 0.0], dtype=torch.float64)
    mean = ExpRelaxedCategorical(temperature, logits=x).mean
    torch.testing.assert_close(mean - mean[0], (x - x[0]) / temperature, rtol=1e-12, atol=0)
    assert mean[0].item() == pytest.approx(0, abs=1e-9 / temperature)


@pytest.mark.parametrize("cls", SOFT_OF_ONE)
def test_what_is_impossible_passes_no_nan_to_a_learnt_temperature(cls):
    x = torch.tensor([[0.5, -math.inf, 1.0], [0.0, 0.0, -math.inf]], requires_grad=True)
    if cls in BITS:
        x = torch.tensor([0.0, math.inf, -math.inf], requires_grad=True)
    temperature = torch.tensor(2.3, requires_grad=True)
    d, p = cls(temperature, logits=x), cls(0.7, logits=x)
    found = [d.entropy(), kl_divergence(d, p)]
    if cls in VALUES_OF_ONE:
        found += [d.mean, d.variance, d.mode]
    if cls in BITS:
        ends = torch.tensor([[0.0], [0.3], [1.0]], requires_grad=True)
        found += [torch.where(q.isinf(), 0.0, q) for q in (d.icdf(ends), d.mean, d.cdf(ends))]
    inputs = [x, temperature, ends] if cls in BITS else [x, temperature]
    for moment in found:
        gradients = torch.autograd.grad(moment.sum(), inputs, allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)


def test_variances_are_never_negative():
    x = 40 * torch.randn(400, 5, dtype=torch.float64)
    for temperature in (0.01, 0.5, 2.0, 1e7):
        assert (RelaxedCategorical(temperature, logits=x).variance >= 0).all()


@pytest.mark.parametrize("cls", BITS)
def test_a_sure_bernoulli_is_a_point(cls):
    x = torch.tensor([math.inf, -math.inf], requires_grad=True)
    d = cls(0.5, logits=x)
    point = torch.tensor([1.0, 0.0])
    if cls is LogitRelaxedBernoulli:
        point = torch.logit(point)
    assert d.mean.tolist() == pytest.approx(point.tolist())
    assert d.variance.tolist() == pytest.approx([0, 0])
    assert d.entropy().tolist() == pytest.approx([0, 0])
    assert d.cdf(point).tolist() == [1, 1]
    assert d.cdf(torch.tensor(0.5)).tolist() == [0, 1]
    assert d.icdf(torch.tensor([[0.0], [0.3], [1.0]])).tolist() == [point.tolist()] * 3
    d = RelaxedCategorical(0.5, probs=torch.tensor([0.0, 1.0, 0.0]))
    assert d.entropy().item() == pytest.approx(0)


@pytest.mark.parametrize("cls", BITS)
def test_the_distribution_function_is_that_of_the_samples(cls):
    d = cls(0.7, logits=torch.tensor(0.8, dtype=torch.float64))
    samples = d.sample((20_000,))
    uniform = d.cdf(samples.clone())
    assert stats.kstest(uniform.cpu().numpy(), "uniform").pvalue > 2e-5
    torch.testing.assert_close(d.icdf(uniform), samples)
    middle = d.icdf(torch.linspace(0.2, 0.8, 7, dtype=torch.float64)).clone()
    slope = (d.cdf(middle + 1e-6) - d.cdf(middle - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, d.log_prob(middle).exp())


def test_the_distribution_function_where_floats_saturate():
    """A drawn value has the probability of its cached logit; the ends are exact."""
    d = RelaxedBernoulli(0.05, logits=torch.tensor(0.5))
    s = d.sample((1000,))
    assert (s == 1).float().mean() > 0.3
    assert stats.kstest(d.cdf(s).cpu().numpy(), "uniform").pvalue > 2e-5
    assert d.cdf(torch.tensor([0.0, 1.0])).tolist() == [0, 1]
    quantile = d.icdf(torch.tensor(0.9))
    assert quantile == 1
    torch.testing.assert_close(d.cdf(quantile), torch.tensor(0.9))
    with pytest.warns(UserWarning, match="has no cached logits"):
        assert d.log_prob(quantile) < d.log_prob(torch.tensor(1.0)) + 100


def test_a_quantile_of_no_probability_is_refused():
    for cls in BITS:
        with pytest.raises(ValueError, match=r"icdf: `value` must be a probability.*got e.g. 1.5"):
            cls(0.5, logits=torch.tensor(0.0)).icdf(torch.tensor([0.3, 1.5]))
        with pytest.raises(ValueError, match=r"icdf: `value` must be a tensor of floats, got floa"):
            cls(0.5, logits=torch.tensor(0.0)).icdf(0.3)


# Modes.


@pytest.mark.parametrize("spread", first_fast([2.0, 0.0, 0.5, 8.0]))
@pytest.mark.parametrize(
    ("k", "temperature"), [(2, 1.01), (2, 1.5), (2, 4.0), (3, 2.0), (3, 3.5), (4, 3.1), (5, 9.0)]
)
def test_no_other_value_is_denser_than_the_mode(k, temperature, spread):
    x = spread * torch.randn(k, dtype=torch.float64)
    distributions = [RelaxedCategorical(temperature, logits=x)]
    if k == 2:
        distributions.append(RelaxedBernoulli(temperature, logits=x[0] - x[1]))
    for d in distributions:
        highest = d.log_prob(d.mode)
        assert (d.log_prob(d.sample((10_000,)).clone()) <= highest + 1e-12).all()
        v = d.link.inverse(d.mode)
        for scale in (1e-3, 1e-2, 0.1, 1.0):
            near = v + scale * torch.randn(1000, *v.shape, dtype=torch.float64)
            value = d.link.value(near if d.event_dim == 0 else near.log_softmax(-1))
            assert (d.log_prob(value) <= highest + 1e-12).all()


@pytest.mark.parametrize("temperature", [0.05, 0.7, 3.0])
def test_no_other_value_in_logit_space_is_denser_than_the_mode(temperature):
    """At every temperature: the density in logit space is bounded, unlike that of the value."""
    x = 2 * torch.randn(4, dtype=torch.float64)
    d = ExpRelaxedCategorical(temperature, logits=x)
    highest = d.log_prob(d.mode)
    torch.testing.assert_close(d.mean.log_softmax(-1), d.mode)
    for scale in (1e-3, 1e-2, 0.1, 1.0, 1 / temperature):
        near = d.mode + scale * torch.randn(1000, 4, dtype=torch.float64)
        assert (d.log_prob(near.log_softmax(-1)) <= highest + 1e-12).all()
    (gradient,) = torch.autograd.functional.jacobian(
        lambda y: d.log_prob((d.mode + y).log_softmax(-1)), (torch.zeros(4, dtype=torch.float64),)
    )
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-11)


def test_the_mode_of_a_flat_density_moves_with_nothing():
    """At temperature 1 two equal logits make a uniform distribution: any value would do."""
    x = torch.zeros(2, requires_grad=True)
    mode = RelaxedCategorical(1.0, logits=x).mode
    assert mode.sum().item() == pytest.approx(1)
    assert torch.autograd.grad(mode[0], x)[0].tolist() == [0, 0]


def test_the_mode_of_a_relaxed_bernoulli_at_temperature_1_is_its_likelier_end():
    d = RelaxedBernoulli(1.0, logits=torch.tensor([-3.0, -0.1, 0.1, 3.0]))
    assert d.mode.tolist() == pytest.approx([0, 0, 1, 1])


@pytest.mark.parametrize("cls", first_fast(VALUES_OF_ONE))
def test_the_mode_is_differentiable(cls):
    x = leaf_of(make(cls, 3.0, (3,), 3, torch.float64))
    temperature = torch.tensor([2.1, 2.5, 7.0], dtype=torch.float64, requires_grad=True)
    mode = lambda x, temperature: cls(temperature, logits=x).mode  # noqa: E731
    assert torch.autograd.gradcheck(
        mode, (x, temperature), fast_mode=True, nondet_tol=NONDETERMINISM
    )


@pytest.mark.parametrize(
    ("cls", "temperature"), [(RelaxedBernoulli, 0.99), (RelaxedCategorical, 1.9)]
)
def test_an_unbounded_density_has_no_mode(cls, temperature):
    with pytest.raises(NotImplementedError, match=r"unbounded; got .* with k up to .*probs.argmax"):
        _ = make(cls, temperature).mode


@pytest.mark.parametrize("name", ["mean", "variance", "mode"])
def test_what_has_no_exact_form_is_refused(name):
    d = make(RelaxedSubset)
    with pytest.raises(NotImplementedError):
        getattr(d, name)
    with pytest.raises(NotImplementedError):
        d.entropy()
