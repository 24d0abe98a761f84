# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The hypersimplex: its threshold, density, gradient and bijections."""

import math

import mpmath
import pytest
import torch
from torch.distributions import biject_to, transform_to

from pyro_gumbel import LogitRelaxedSubset, RelaxedBernoulli, RelaxedSubset, SubsetStraightThrough
from pyro_gumbel.constraints import hypersimplex, logit_hypersimplex
from pyro_gumbel.links import Hypersimplex
from pyro_gumbel.ops import noise
from tests.common import ALPHA, first_fast, z_bound

FLOATS = [torch.float32, torch.float64]


def float64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


# The threshold, against a root at 100 digits.


def exact_coordinates(scaled, size):
    """z / tau - c with sum sigmoid = size, by bisection at 100 digits; as mpmath numbers."""
    with mpmath.workdps(100):
        u = [mpmath.mpf(i) for i in scaled]
        low, high = min(u) - 100, max(u) + 100
        for _ in range(350):
            c = (low + high) / 2
            # 1 - sigmoid of the winners, so that nothing is lost where they are close to 1
            if mpmath.fsum(1 / (1 + mpmath.exp(c - i)) for i in u) > size:
                low = c
            else:
                high = c
        return [i - c for i in u]


def exact_log_density(x, tau, v):
    with mpmath.workdps(100):
        k, tau, x = len(x), mpmath.mpf(tau), [mpmath.mpf(i) for i in x]
        d = [a - tau * b for a, b in zip(x, v, strict=True)]
        w = [1 / (2 + mpmath.exp(b) + mpmath.exp(-b)) for b in v]
        total = mpmath.log(mpmath.fsum(mpmath.exp(i) for i in d))
        scale = mpmath.loggamma(k) + (k - 1) * mpmath.log(tau)
        log_w = mpmath.fsum(mpmath.log(i) for i in w)
        return scale + mpmath.fsum(d) - k * total + mpmath.log(mpmath.fsum(w)) - log_w


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", first_fast([0.01, 0.05, 1.0]))
def test_logit_space_and_density_against_a_hundred_digits(temperature, dtype):
    eps = torch.finfo(dtype).eps
    x = torch.randn(10, dtype=dtype)
    tau = torch.tensor(temperature, dtype=dtype)
    d = RelaxedSubset(tau, 3, logits=x)
    for _ in range(6):
        z = x + noise.gumbel((10,), dtype=dtype, device=x.device)
        v = d.link.unconstrained(z, tau)
        with mpmath.workdps(100):
            scaled = [mpmath.mpf(i) / mpmath.mpf(tau.item()) for i in z.tolist()]
        exact = exact_coordinates(scaled, 3)
        for found, right in zip(v.tolist(), exact, strict=True):
            # The winners' and losers' distance from the threshold, each to a few eps
            assert abs(found - right) <= 8 * eps * (1 + abs(right))
        density = d.link.log_density(v, x, tau, of_values=True).item()
        right = float(exact_log_density(x.tolist(), tau.item(), exact))
        assert abs(density - right) < (1e-3 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0.001, 0.5, 100.0])
@pytest.mark.parametrize(("k", "m"), [(2, 1), (10, 9), (1000, 500), (100_000, 100), (100_000, 1)])
def test_samples_sum_to_size(k, m, temperature, dtype):
    d = RelaxedSubset(temperature, m, logits=torch.randn(k, dtype=dtype), validate_args=True)
    value = d.sample((3,))
    bound = 16 * torch.finfo(dtype).eps * m
    assert ((value.double().sum(-1) - m).abs() <= bound).all()
    assert d.log_prob(value).isfinite().all()


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_ties_and_clusters(m, scale):
    """Equal perturbed logits at and around the boundary, and far from it."""
    z = scale * torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0, -1.0]).double()
    v = Hypersimplex(m).unconstrained(z, torch.ones(()).double())
    assert v.sigmoid().sum().item() == pytest.approx(m, rel=1e-14)
    assert (v[:6] == v[0]).all()


def test_the_value_that_the_naive_threshold_has_is_off_by_nats():
    """Solving sum sigmoid(v' - c) = m in floats stops anywhere on the flat part."""
    x, tau, errors = torch.randn(10, dtype=torch.float64), float64(0.01), []
    for _ in range(20):
        z = x + noise.gumbel((10,), dtype=x.dtype, device=x.device)
        scaled = (z - x) / tau
        low, high = scaled.min() - 100, scaled.max() + 100
        for _ in range(80):
            c = (low + high) / 2
            low, high = (c, high) if (scaled - c).sigmoid().sum() > 3 else (low, c)
        exact = exact_coordinates(scaled.tolist(), 3)
        naive = Hypersimplex(3).log_density(scaled - c, x, tau, of_values=True).item()
        errors.append(abs(naive - float(exact_log_density(x.tolist(), 0.01, exact))))
    assert max(errors) > 1


# The density.


def differences(k, half_width, steps):
    """A grid of y_i = v_i - v_k as the rows of a matrix, and the volume of a cell."""
    axis = torch.linspace(-half_width, half_width, steps, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * (k - 1)).reshape(-1, k - 1), (axis[1] - axis[0]) ** (
        k - 1
    )


@pytest.mark.parametrize("temperature", first_fast([0.5, 1.0, 2.0]))
@pytest.mark.parametrize("size", [1, 2])
def test_the_density_integrates_to_one(size, temperature):
    """Over the hypersimplex of k = 3, parametrised by the bijection that is tested below."""
    x = float64(0.5, -1.0, 0.3)
    y, cell = differences(3, 35 / temperature, 401)
    transform = biject_to(hypersimplex(size))
    s = transform(y)
    d = RelaxedSubset(temperature, size, logits=x, validate_args=False)
    inside = (s > 1e-13).all(-1) & (s < 1 - 1e-13).all(-1)  # where logit(s) has digits
    density = d.log_prob(s) + transform.log_abs_det_jacobian(y, s)
    by_coordinates = LogitRelaxedSubset(temperature, size, logits=x)
    own = biject_to(logit_hypersimplex(size))
    v = own(y)
    in_logits = by_coordinates.log_prob(v) + own.log_abs_det_jacobian(y, v)
    torch.testing.assert_close(density[inside], in_logits[inside], rtol=1e-3, atol=1e-3)
    assert (in_logits.exp().sum() * cell).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("registry", [biject_to, transform_to])
@pytest.mark.parametrize(("k", "size"), [(2, 1), (4, 1), (4, 3), (6, 2)])
def test_the_bijections(registry, k, size):
    """Both directions, and the log-determinant by autograd."""
    y = 2 * torch.randn(k - 1, dtype=torch.float64)
    for support in (hypersimplex(size), logit_hypersimplex(size)):
        transform = registry(support)
        value = transform(y)
        assert support.check(value)
        torch.testing.assert_close(transform.inv(value), y)
        assert transform.forward_shape((7, k - 1)) == (7, k)
        assert transform.inverse_shape((7, k)) == (7, k - 1)
        assert transform == registry(support)
        assert transform != registry(type(support)(size + 1))

        def free_entries(y, transform=transform):
            s = transform(y)
            return (s if transform.codomain == hypersimplex(size) else s.sigmoid())[:-1]

        expected = torch.autograd.functional.jacobian(free_entries, y).det().abs().log()
        if support == logit_hypersimplex(size):
            expected = expected - (value.sigmoid() * (-value).sigmoid()).log().sum()
        torch.testing.assert_close(transform.log_abs_det_jacobian(y, value), expected)


@pytest.mark.parametrize(("k", "size"), [(5, 2), (8, 3), (20, 7)])
@pytest.mark.parametrize("temperature", first_fast([0.3, 1.5]))
def test_importance_weights_average_to_one(k, size, temperature):
    """E_q[p / q] = 1 with a q of known density: y = a (g_i - g_k) + b_i, the differences of Gumbel
    variates, by the formula of Malik and Abraham (1973), https://doi.org/10.1214/aos/1176342421.
    """
    n, x = 400_000 // k, 0.3 * torch.randn(k, dtype=torch.float64)
    scale = 1.1 / temperature
    g = torch.distributions.Gumbel(float64(0.0), float64(1.0)).sample((n, k)).squeeze(-1)
    u = g[:, :-1] - g[:, -1:]
    log_q_of_y = (
        math.lgamma(k) - u.sum(-1)
        - k * torch.nn.functional.pad(-u, (0, 1)).logsumexp(-1) - (k - 1) * math.log(scale)
    )  # fmt: skip
    y = scale * u
    transform = biject_to(logit_hypersimplex(size))
    v = transform(y)
    log_q = log_q_of_y - transform.log_abs_det_jacobian(y, v)
    log_p = LogitRelaxedSubset(temperature, size, logits=x).log_prob(v)
    weights = (log_p - log_q).exp()
    error = weights.std() / math.sqrt(n)
    assert abs(weights.mean() - 1) < z_bound() * error
    assert error < 0.05


@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
def test_one_of_two_is_a_bernoulli_at_twice_the_temperature(temperature):
    x = 2 * torch.randn(500, dtype=torch.float64)
    pair = RelaxedSubset(temperature, 1, logits=torch.stack([x, torch.zeros_like(x)], -1))
    bit = RelaxedBernoulli(2 * temperature, logits=x)
    s = (2 * torch.randn(500, dtype=torch.float64)).sigmoid()
    found = pair.log_prob(torch.stack([s, 1 - s], -1))
    torch.testing.assert_close(found, bit.log_prob(s), rtol=1e-8, atol=1e-8)


def test_the_density_does_not_see_a_shift_of_the_logits():
    x = torch.randn(20, 6, dtype=torch.float64)
    value = RelaxedSubset(0.3, 2, logits=x).sample()
    moved = RelaxedSubset(0.3, 2, logits=x + 50).log_prob(value)
    torch.testing.assert_close(moved, RelaxedSubset(0.3, 2, logits=x).log_prob(value))


def test_categories_that_cannot_occur_are_left_out():
    x, alive = float64(0.3, -math.inf, -1.0, 0.5, -math.inf, 0.1), [0, 2, 3, 5]
    d, own = RelaxedSubset(0.7, 2, logits=x), RelaxedSubset(0.7, 2, logits=x[alive])
    value = d.sample((50,))
    assert (value[:, [1, 4]] == 0).all()
    for v in (value, value.clone()):
        torch.testing.assert_close(d.log_prob(v), own.log_prob(value[:, alive].clone()))
    occupied = own.sample()
    assert d.log_prob(torch.ones(6).double() / 3).item() == -math.inf
    coordinates = LogitRelaxedSubset(0.7, 2, logits=x)
    v = coordinates.sample((50,))
    expected = LogitRelaxedSubset(0.7, 2, logits=x[alive]).log_prob(v[:, alive])
    torch.testing.assert_close(coordinates.log_prob(v), expected)
    assert occupied.sum().item() == pytest.approx(2)


@pytest.mark.parametrize("cls", [RelaxedSubset, LogitRelaxedSubset, SubsetStraightThrough])
def test_as_many_possible_categories_as_are_chosen_make_a_point(cls):
    raw = torch.tensor([0.3, -math.inf, -1.0, -math.inf], requires_grad=True)
    d = cls(0.5, 2, logits=raw, validate_args=True)
    value = d.rsample()
    assert value.clamp(0, 1).tolist() == [1, 0, 1, 0]
    score = d.log_prob(value)
    assert score.item() == 0
    total = score + torch.where(value.isinf(), 0.0, value).sum()
    (gradient,) = torch.autograd.grad(total, raw)
    assert (gradient == 0).all()
    wrong = torch.tensor([1.0, 0.5, 0.5, 0.0])
    if cls is RelaxedSubset:
        assert d.log_prob(wrong).item() == -math.inf


# The gradient.


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_gradient_through_the_threshold_by_finite_differences(temperature):
    link, tau = Hypersimplex(3), float64(temperature)
    z = torch.randn(8, dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda z: link(z, tau), z)
    step = 1e-6
    for i in range(8):
        shift = step * torch.eye(8, dtype=torch.float64)[i]
        difference = (link(z + shift, tau) - link(z - shift, tau)).detach() / (2 * step)
        torch.testing.assert_close(jacobian[:, i], difference, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(jacobian.sum(0), torch.zeros(8).double())


def test_forward_and_reverse_mode_agree():
    link, tau = Hypersimplex(2), float64(0.4)
    z, tangent = torch.randn(2, 5, dtype=torch.float64)
    forward = torch.func.jvp(lambda z: link(z, tau), (z,), (tangent,))[1]
    jacobian = torch.func.jacrev(lambda z: link(z, tau))(z)
    torch.testing.assert_close(forward, jacobian @ tangent)


def test_links_are_equal_by_size():
    assert Hypersimplex(3) == Hypersimplex(3) != Hypersimplex(2)
    assert hash(Hypersimplex(3)) == hash(Hypersimplex(3))
    assert repr(Hypersimplex(3)) == "Hypersimplex(3)"
    value = RelaxedSubset(0.02, 2, logits=torch.zeros(50, 4)).sample()
    other = RelaxedSubset(0.02, 1, logits=torch.zeros(4), validate_args=False)
    torch.testing.assert_close(other.log_prob(value), other.log_prob(value.clone()))


def test_a_hundred_of_a_hundred_thousand():
    raw = torch.randn(100_000, requires_grad=True)
    d = RelaxedSubset(0.5, 100, logits=raw)
    value = d.rsample()
    assert value.sum().item() == pytest.approx(100, rel=1e-5)
    total = d.log_prob(value) + value.square().sum()
    (gradient,) = torch.autograd.grad(total, raw)
    assert gradient.isfinite().all()


def test_the_marginal_of_a_difference_in_logit_space():
    """v_i - v_j is Logistic((x_i - x_j) / tau, 1 / tau), whatever the size."""
    from scipy import stats

    x = float64(1.0, -0.5, 0.3, 0.0)
    v = LogitRelaxedSubset(0.3, 2, logits=x).sample((20_000,))
    for tau, passes in ((0.3, True), (0.33, False)):
        d = stats.logistic((x[0] - x[1]).item() / tau, 1 / tau)
        p = stats.kstest((v[:, 0] - v[:, 1]).numpy(), d.cdf).pvalue
        assert (p > ALPHA) == passes
