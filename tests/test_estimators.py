# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Surrogate gradients against literal slow versions, and against exact gradients by enumeration."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    LinearTemperature,
    PlackettLuceStraightThrough,
    SubsetStraightThrough,
    gapped,
    gumbel_rao,
    gumbel_softmax,
    links,
    mve,
    reinmax,
    reinmax_rao,
    straight_through,
)
from pyro_gumbel.distributions.plackett_luce import untaken
from pyro_gumbel.estimators import named, takes_temperature
from pyro_gumbel.ops import noise
from tests.common import (
    STRAIGHT_THROUGH,
    assert_same_mean,
    build,
    leaf_of,
    make,
    seeded,
    slow_unless,
)
from tests.literal import jacobian, mve_matrix

NAMES = {
    "gapped": gapped(gap=1.0),
    "gumbel_rao": gumbel_rao(samples=10),
    "gumbel_softmax": gumbel_softmax,
    "mve": mve(tau=1e3),
    "reinmax": reinmax,
    "reinmax_rao": reinmax_rao(samples=32, tau=0.7),
    "straight_through": straight_through,
}
ONE_HOT_ONLY = ["gapped", "mve", "reinmax", "reinmax_rao"]  # not of subsets
KINDS = {"dtype": torch.float64, "device": torch.get_default_device()}


def suited_to(estimator, temperature):
    """The temperature of a distribution with an estimator: None if it has none."""
    return temperature if takes_temperature(named(estimator)) else None


def conditional_gumbels(x, hard, exponentials):
    """z given its argmax, one category after the other (Maddison et al. 2014; Paulus et al.)."""
    rates = x.exp()
    total = rates.sum()
    winner = int(hard.argmax())
    first = exponentials[winner] / total
    z = torch.zeros_like(x)
    for i, e in enumerate(exponentials):
        z[i] = -torch.log(first) if i == winner else -torch.log(e / rates[i] + first)
    return z


def moved_logits(x, hard, gap=1.0):
    """Fan et al.: the winner is moved up to the highest, the others down to a gap below."""
    highest = x.max()
    up = (highest - x) * hard
    down = (x - highest + gap).relu() * (1 - hard)
    return x + up - down


def literally(name, x, tau, z, hard, exponentials=()):
    """The matrix that the gradient in the sample is multiplied by, from the papers."""
    if name == "mve":
        return mve_matrix(x, 1e3, int(hard.argmax()))
    if name == "reinmax_rao":
        p = x.softmax(-1)
        middle = ((p + hard) / 2).log()
        soft = [conditional_gumbels(middle, hard, each) / 0.7 for each in exponentials]
        mean = sum(jacobian(each.softmax(-1)) / 0.7 for each in soft) / len(soft)
        return 2 * mean - jacobian(p) / 2
    if name == "reinmax":
        middle = ((x / tau).softmax(-1) + hard) / 2
        return 2 * jacobian(middle) - jacobian(x.softmax(-1)) / 2
    if name == "gumbel_rao":
        soft = [conditional_gumbels(x, hard, each) for each in exponentials]
    else:
        soft = [{"gumbel_softmax": z, "straight_through": x, "gapped": moved_logits(x, hard)}[name]]
    return sum(jacobian((each / tau).softmax(-1)) / tau for each in soft) / len(soft)


def backward(name, x, tau, z, hard, gradient, link=links.simplex):
    """The estimator's gradient in x; in z = x + noise the noise is held fixed."""
    x = x.clone().requires_grad_()
    surrogate = NAMES[name](x, torch.tensor(tau, dtype=x.dtype), x + (z - x).detach(), hard, link)
    return torch.autograd.grad((surrogate * gradient).sum(), x)[0]


def case(k, seed=0):
    """Logits, perturbed logits, the sample that they choose, and a gradient in it."""
    x, g, gradient = seeded(torch.randn, seed, 3, k, dtype=torch.float64)
    return x, x + g, links.simplex.hard(x + g), gradient


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_an_estimator_is_the_one_of_its_paper(name, tau, k):
    for seed in range(5):
        x, z, hard, gradient = case(k, seed)
        torch.manual_seed(seed)
        samples = getattr(NAMES[name], "samples", 1)
        exponentials = noise.exponential((samples, k), **KINDS)
        expected = literally(name, x, tau, z, hard, exponentials) @ gradient
        torch.manual_seed(seed)
        found = backward(name, x, tau, z, hard, gradient)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("rao")])
def test_a_binary_variable_is_one_of_two_categories(name, tau):
    """With the logits (0, x), and the noise of the difference."""
    for seed in range(30):
        x, z, hard, gradient = case(2, seed)
        pair = x - x[0], z - z[0]
        matrix = literally(name, pair[0], tau, pair[1], hard)
        expected = matrix[1, 1] * gradient[1]
        bit = pair[0][1], tau, pair[1][1], hard[1], gradient[1]
        found = backward(name, *bit, link=links.interval)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_a_binary_variable_has_the_conditional_noise_of_its_formula():
    """z = softplus(softplus(x) + L) where D = 1, and the mirror image where D = 0."""
    x = torch.tensor([-2.0, -0.3, 0.0, 1.5], dtype=torch.float64)
    hard = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    torch.manual_seed(0)
    draws = noise.logistic((10, 4), **KINDS)
    softplus = torch.nn.functional.softplus
    z = torch.where(hard > 0, softplus(softplus(x) + draws), -softplus(softplus(-x) + draws))
    s = (z / 0.3).sigmoid()
    expected = (s * (1 - s) / 0.3).mean(0)
    torch.manual_seed(0)
    found = backward("gumbel_rao", x, 0.3, x, hard, torch.ones(4), links.interval)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_a_binary_variable_has_the_conditional_noise_of_its_midpoint():
    """The same for `reinmax_rao`, whose midpoint has the log-odds of (p + D) / 2."""
    x = torch.tensor([-2.0, -0.3, 0.0, 1.5], dtype=torch.float64)
    hard = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    torch.manual_seed(0)
    draws = noise.logistic((32, 4), **KINDS)
    softplus = torch.nn.functional.softplus
    middle = ((x.sigmoid() + hard) / 2).logit()
    up, down = softplus(softplus(middle) + draws), -softplus(softplus(-middle) + draws)
    s = (torch.where(hard > 0, up, down) / 0.7).sigmoid()
    expected = 2 * (s * (1 - s) / 0.7).mean(0) - x.sigmoid() * (-x).sigmoid() / 2
    torch.manual_seed(0)
    found = backward("reinmax_rao", x, 1.0, x, hard, torch.ones(4), links.interval)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_subset_has_the_conditional_noise_of_its_ranking(size):
    """In the order of the ranking each wait is exponential with the rate of what is left."""
    x, g, gradient = torch.randn(3, 5, dtype=torch.float64)
    z = x + g
    order = z.argsort(descending=True).tolist()
    link = links.Hypersimplex(size)
    torch.manual_seed(1)
    soft = []
    for draws in noise.exponential((10, 5), **KINDS):
        left, wait, e = list(range(5)), 0.0, torch.zeros(5, dtype=torch.float64)
        for j in order[:size]:
            wait = wait + draws[j] / sum(x[i].exp() for i in left)
            e[j] = wait
            left.remove(j)
        for j in left:
            e[j] = wait + draws[j] * (-x[j]).exp()
        soft.append(-e.log())
    expected = torch.zeros(5, dtype=torch.float64)
    tau = torch.tensor(0.3, dtype=torch.float64)
    for each in soft:
        leaf = each.clone().requires_grad_()
        expected += torch.autograd.grad((link(leaf, tau) * gradient).sum(), leaf)[0] / 10
    torch.manual_seed(1)
    found = backward("gumbel_rao", x, 0.3, z, link.hard(z), gradient, link)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def gradients(distribution, estimator, draws):
    """Gradients of a fixed quadratic function in the logits, one for each of `draws` samples."""
    leaf = leaf_of(distribution)
    k = leaf.shape[-1] if leaf.dim() else 1
    square = torch.arange(1.0, k * k + 1).reshape(k, k) / k
    logits = leaf.detach().expand(draws, *leaf.shape).clone().requires_grad_()
    distribution = type(distribution)(
        suited_to(estimator, distribution.temperature),
        *([distribution.size] if isinstance(distribution, SubsetStraightThrough) else []),
        logits=logits,
        estimator=estimator,
    )
    value = distribution.rsample().reshape(draws, k)
    loss = torch.einsum("...i,ij,...j->...", value, square, value)
    return torch.autograd.grad(loss.sum(), logits)[0].reshape(draws, k)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("cls", [
    BernoulliStraightThrough, CategoricalStraightThrough, SubsetStraightThrough,
])  # fmt: skip
def test_gumbel_rao_has_the_mean_of_gumbel_softmax_and_less_variance(cls, tau):
    distribution = make(cls, temperature=tau, batch_shape=(), k=4)
    draws = 40_000
    plain = gradients(distribution, "gumbel_softmax", draws)
    averaged = gradients(distribution, gumbel_rao(samples=5), draws)
    assert_same_mean(averaged - plain, torch.zeros(plain.shape[-1]))
    assert (averaged.var(0) < plain.var(0)).all()
    if tau == 0.1:
        assert (averaged.var(0) < 0.6 * plain.var(0)).all()


@pytest.mark.parametrize("cls", [BernoulliStraightThrough, CategoricalStraightThrough])
def test_reinmax_rao_has_the_mean_of_one_draw_and_less_variance(cls):
    distribution = make(cls, batch_shape=(), k=4)
    one, few, many = (gradients(distribution, reinmax_rao(n), 20_000) for n in (1, 4, 16))
    assert_same_mean(many - one, torch.zeros(one.shape[-1]))
    assert (few.var(0) < one.var(0)).all()
    assert (many.var(0) < few.var(0)).all()


def bias(name, k, degree):
    """The bias of the gradient of a random polynomial of the sample, by enumeration."""
    x, z, _, linear = case(k)
    square = torch.randn(k, k, dtype=torch.float64) if degree == 2 else torch.zeros(k, k)
    square = (square + square.T).to(x)

    def f(d):
        return d @ square @ d + d @ linear

    x.requires_grad_()
    one_hots = torch.eye(k, dtype=torch.float64)
    values = torch.stack([f(d) for d in one_hots])
    (exact,) = torch.autograd.grad(x.softmax(-1) @ values, x)
    x = x.detach()
    expected = sum(
        p * backward(name, x, 1.0, z, d, 2 * square @ d + linear)
        for p, d in zip(x.softmax(-1), one_hots, strict=True)
    )
    return (expected - exact).abs().max().item()


@pytest.mark.parametrize("k", [2, 3, 7])
def test_which_are_unbiased_at_temperature_one(k):
    assert bias("straight_through", k, degree=1) < 1e-12
    assert bias("reinmax", k, degree=1) < 1e-12
    assert bias("reinmax", k, degree=2) < 1e-10
    assert bias("straight_through", k, degree=2) > 0.01


def test_gumbel_softmax_is_unbiased_for_quadratics_in_the_limit():
    """For a binary variable, by quadrature: the bias is proportional to the temperature."""
    x, linear, square = torch.tensor([0.7, -0.4, 1.5], dtype=torch.float64)
    p = x.sigmoid()
    exact = (square + linear) * p * (1 - p)
    for tau in (0.1, 0.03, 0.01):
        z = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
        density = torch.sigmoid(z - x) * torch.sigmoid(x - z)
        hard = links.interval.hard(z)
        gradient = (2 * square * hard + linear) * density * 1e-4
        logits = x.expand(z.shape)
        found = backward("gumbel_softmax", logits, tau, z, hard, gradient, links.interval).sum()
        assert abs(found / exact - 1) < 0.6 * tau


@pytest.mark.parametrize("cls", [
    BernoulliStraightThrough, CategoricalStraightThrough, PlackettLuceStraightThrough,
])  # fmt: skip
@pytest.mark.parametrize("name", ["gapped", "mve", "reinmax", "straight_through"])
def test_a_distribution_uses_it_by_name(name, cls):
    """For a ranking row by row, with the taken categories at -inf."""
    distribution = make(cls, temperature=0.7, k=4, dtype=torch.float64)
    distribution.estimator = NAMES[name]
    value = distribution.rsample()
    weights = torch.randn_like(value)
    (found,) = torch.autograd.grad((value * weights).sum(), leaf_of(distribution))
    logits = leaf_of(distribution).detach().requires_grad_()
    x = logits
    if cls is PlackettLuceStraightThrough:
        x = torch.where(untaken(value.detach()), logits.unsqueeze(-2), -torch.inf)
    tau = torch.tensor(0.7, dtype=torch.float64)
    surrogate = NAMES[name](x, tau, x, value.detach(), distribution.link)
    (expected,) = torch.autograd.grad((surrogate * weights).sum(), logits)
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0
    size = [2] if "size" in distribution.__dict__ else []
    by_name = cls(suited_to(name, 0.7), *size, logits=logits, estimator=name)
    assert by_name.estimator == NAMES[name]


def test_gumbel_rao_draws_for_the_rows_of_a_ranking_from_what_is_left():
    """Its mean is that of gumbel_softmax there too."""
    logits = torch.tensor([0.3, -0.5, 1.0, -torch.inf])
    weights = torch.tensor([[0.5, -1.0, 2.0, 3.0], [1.0, 1.5, -2.0, 3.0]])
    means = []
    for estimator in (gumbel_rao(samples=5), gumbel_softmax):
        raw = logits.expand(40_000, 4).clone().requires_grad_()
        value = PlackettLuceStraightThrough(0.5, 2, logits=raw, estimator=estimator).rsample()
        means.append(torch.autograd.grad((value * weights).sum(), raw)[0])
    assert_same_mean(means[0] - means[1], torch.zeros(4))
    assert (means[0].var(0) < means[1].var(0))[:3].all()
    assert (means[0][:, 3] == 0).all()


@pytest.mark.parametrize("name", ONE_HOT_ONLY)
def test_estimators_that_do_not_support_subsets(name):
    """The constructor raises. A function that calls one raises when it is used."""
    for estimator in (name, NAMES[name]):
        with pytest.raises(
            ValueError, match=rf"support subsets.*got {name}.*write .*gumbel_softmax"
        ):
            SubsetStraightThrough(
                suited_to(name, 0.5), 2, logits=torch.zeros(4), estimator=estimator
            )
    distribution = SubsetStraightThrough(
        0.5, 2, torch.ones(4), estimator=lambda *a: NAMES[name](*a)
    )
    with pytest.raises(ValueError, match=r"got Hypersimplex\(2\); write estimator=.gumbel_softmax"):
        distribution.rsample()
    tau = suited_to(name, 0.5)
    PlackettLuceStraightThrough(tau, 2, torch.ones(4), estimator=name).rsample()


def test_an_estimator_of_the_users_own_may_support_subsets():
    class gapped_subsets(gapped):
        def __call__(self, logits, temperature, perturbed, hard, link):
            return link(perturbed + self.gap * hard, temperature)

    logits = torch.zeros(4, requires_grad=True)
    distribution = SubsetStraightThrough(0.5, 2, logits=logits, estimator=gapped_subsets())
    assert torch.autograd.grad(distribution.rsample()[0], logits)[0].abs().sum() > 0


def test_a_subset_without_noise():
    logits = torch.randn(4, requires_grad=True)
    distribution = SubsetStraightThrough(0.5, 2, logits=logits)
    distribution.estimator = straight_through
    value = distribution.rsample()
    (found,) = torch.autograd.grad(value[0], logits)
    soft = links.Hypersimplex(2)(logits, distribution.temperature)
    (expected,) = torch.autograd.grad(soft[0], logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cls", [BernoulliStraightThrough, CategoricalStraightThrough])
def test_low_temperatures_and_impossible_outcomes_leave_finite_gradients(cls, name, dtype):
    raw = torch.tensor([-torch.inf, 0.3, 20.0, -20.0], dtype=dtype, requires_grad=True)
    value = cls(suited_to(name, 0.01), logits=raw, estimator=name).rsample((100,))
    (gradient,) = torch.autograd.grad((value * torch.randn(4)).sum(), raw)
    assert gradient.isfinite().all()
    assert gradient[0] == 0


def test_infinite_log_odds():
    raw = torch.tensor([-torch.inf, torch.inf], requires_grad=True)
    for name, estimator in NAMES.items():
        tau = suited_to(name, 0.1)
        value = BernoulliStraightThrough(tau, logits=raw, estimator=estimator).rsample()
        assert value.tolist() == [0, 1], name
        assert torch.autograd.grad(value.sum(), raw)[0].tolist() == [0, 0], name


def with_a_first_entry_of(number):
    def broken(logits, temperature, perturbed, hard, link):
        surrogate = 2 * logits
        return torch.cat([torch.full_like(surrogate[..., :1], number), surrogate[..., 1:]], -1)

    return broken


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_a_surrogate_that_is_not_finite_is_an_error(cls, number):
    broken = with_a_first_entry_of(number)
    distribution = build(cls, 0.5, logits=torch.randn(3), estimator=broken, validate_args=True)
    with pytest.raises(ValueError, match=r"`estimator` must return a surrogate that is finite"):
        distribution.rsample((50,))


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_a_surrogate_that_is_not_finite_leaves_the_sample_as_it_is(cls, number):
    """It passes no gradient where it is not finite. The other entries do."""
    raw = torch.randn(3, dtype=torch.float64, requires_grad=True)
    broken = with_a_first_entry_of(number)
    distribution = build(cls, 0.5, logits=raw, estimator=broken, validate_args=False)
    torch.manual_seed(0)
    value = distribution.rsample((50,))
    assert distribution.support.check(value).all()
    assert not value.signbit().any()
    torch.manual_seed(0)
    assert value.equal(distribution.sample((50,)))
    (gradient,) = torch.autograd.grad(value[0].sum(), raw)
    rows = value[0].detach().reshape(-1, 3)
    taken = rows.cumsum(0) - rows  # in earlier rows of a ranking: their perturbed logits are -inf
    expected = 2 * (1 - taken).sum(0)
    expected[0] = 0
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_a_surrogate_without_a_link_is_infinite_where_an_outcome_is_impossible(cls):
    """The surrogate z / tau is. It passes no gradient to impossible outcomes."""
    logits = [0.3, 0.1, -torch.inf] if cls is not BernoulliStraightThrough else [torch.inf, 0.1]
    raw = torch.tensor(logits, requires_grad=True)
    distribution = build(
        cls, 0.5, logits=raw, estimator=lambda x, tau, z, hard, link: z / tau.detach()
    )
    value = distribution.rsample((20,))
    assert distribution.support.check(value).all()
    (gradient,) = torch.autograd.grad((value * torch.ones_like(value)).sum(), raw)
    assert (gradient[raw.isinf()] == 0).all()
    assert (gradient[raw.isfinite()] > 0).all()


PAIRS = [
    (cls, name)
    for cls in STRAIGHT_THROUGH
    for name in NAMES
    if not (cls is SubsetStraightThrough and name in ONE_HOT_ONLY)
]
COMPILED = [
    (cls, name) for cls, name in PAIRS if cls is CategoricalStraightThrough or name == "gumbel_rao"
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("cls", "name"), PAIRS)
def test_logits_at_the_end_of_the_range_leave_finite_gradients(cls, name, dtype):
    """Gradients in the logits and in the temperature."""
    b = torch.finfo(dtype).max
    rows = [[b, 0, 1], [-b, 0, 1], [b, b, 0], [b, -b, 0], [b, b / 2, -b], [-torch.inf, b, -b]]
    for temperature in (0.01, 0.5, 1.0, 3.0):
        raw = torch.tensor(rows, dtype=dtype, requires_grad=True)
        tau = torch.full((6, 3) if cls is BernoulliStraightThrough else (6,), temperature)
        tau = tau.to(dtype).requires_grad_()
        distribution = build(
            cls, suited_to(name, tau), logits=raw, estimator=name, validate_args=True
        )
        value = distribution.rsample((5,))
        assert distribution.support.check(value).all()
        loss = (value * torch.tensor([1.0, 2.0, 3.0])).sum()
        for gradient in torch.autograd.grad(
            loss, [raw, tau], allow_unused=True, materialize_grads=True
        ):
            assert gradient.isfinite().all()


def weighted_sum(cls, name):
    """A weighted sum of a sample, as a function of the logits."""
    weights = torch.arange(3.0)

    def function(raw):
        tau = suited_to(name, 0.5)
        distribution = build(cls, tau, logits=raw, estimator=name, validate_args=False)
        return (distribution.rsample() @ weights).sum()

    return function


@pytest.mark.parametrize(("cls", "name"), PAIRS)
def test_under_vmap(cls, name):
    gradient = torch.func.grad(weighted_sum(cls, name))
    mapped = torch.func.vmap(gradient, randomness="different")(torch.randn(5, 3))
    assert mapped.shape == (5, 3)
    assert mapped.isfinite().all()


@pytest.mark.parametrize(
    ("cls", "name"),
    slow_unless(
        lambda case: case[0] is CategoricalStraightThrough and case[1] in ("gapped", "gumbel_rao"),
        COMPILED,
    ),
)
def test_under_compile(cls, name):
    torch.compiler.reset()
    compiled = torch.compile(weighted_sum(cls, name), backend="aot_eager", fullgraph=True)
    leaf = torch.randn(3, requires_grad=True)
    (found,) = torch.autograd.grad(compiled(leaf), leaf)
    assert found.isfinite().all()


def test_makers_compare_print_and_are_pickled():
    """A maker prints as the line that makes it, compares by its argument, and is pickled."""
    assert repr(gumbel_rao(samples=3)) == "gumbel_rao(samples=3)"
    assert gapped(2.0) == gapped(gap=2.0) != gapped()
    assert pickle.loads(pickle.dumps(gumbel_rao())) == gumbel_rao(samples=10)
    assert repr(mve(30)) == "mve(tau=30.0)"
    assert pickle.loads(pickle.dumps(mve(np.float32(2)))) == mve(tau=2.0) != mve()
    assert repr(reinmax_rao(3)) == "reinmax_rao(samples=3, tau=0.7)"
    assert copy.deepcopy(reinmax_rao(tau=1)) == reinmax_rao(32, 1.0) != reinmax_rao()


@pytest.mark.parametrize("gap", [Fraction(1, 2), np.array(0.5), np.float32(0.5)])
def test_a_gap_is_a_number_of_any_kind(gap):
    distribution = CategoricalStraightThrough(0.5, logits=torch.zeros(3), estimator=gapped(gap))
    assert distribution.rsample().sum() == 1
    assert gapped(gap) == gapped(0.5)


def test_more_draws_and_wider_gaps():
    """The arguments do what they say."""
    x, z, hard, gradient = case(3)
    wide = backward("gapped", x, 1.0, z, hard, gradient)
    expected = jacobian(moved_logits(x, hard, gap=3.0).softmax(-1)) @ gradient
    leaf = x.clone().requires_grad_()
    surrogate = gapped(gap=3.0)(leaf, torch.tensor(1.0), z, hard, links.simplex)
    found = torch.autograd.grad((surrogate * gradient).sum(), leaf)[0]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, wide)
    one, many = (
        gradients(make(CategoricalStraightThrough, 0.1, ()), gumbel_rao(samples=n), 5_000).var(0)
        for n in (1, 50)
    )
    assert (many < one).all()


@pytest.mark.parametrize(
    ("make_one", "error", "words"),
    [
        (
            lambda: gumbel_rao(samples=0),
            ValueError,
            "`samples` must be .* int of 1 or more, got 0; write",
        ),
        (
            lambda: gumbel_rao(samples=2.0),
            TypeError,
            "`samples` must be .* int .*, got float; write",
        ),
        (
            lambda: gumbel_rao(samples=True),
            TypeError,
            "`samples` must be .* int .*, got bool; write",
        ),
        (lambda: gapped(gap=-1), ValueError, "`gap` must be .* of at least 0, got -1; write"),
        (lambda: gapped(gap=torch.inf), ValueError, "`gap` must be a finite .*, got inf; write"),
        (lambda: gapped(gap=10**400), ValueError, "`gap` must be a finite .*, got inf; write"),
        (
            lambda: gumbel_rao(samples=10**400),
            ValueError,
            r"`samples` must be .*, below 2\*\*63, got an int of 1329 bits; write",
        ),
        (lambda: gapped(gap="1"), TypeError, "`gap` must be a finite number .*, got str; write"),
        (lambda: mve(-1), ValueError, "`tau` must be .* of at least 0, got -1; write"),
        (lambda: mve(torch.nan), ValueError, "`tau` must be a finite .*, got nan; write"),
        (lambda: mve("1"), TypeError, "`tau` must be a finite number .*, got str; write"),
        (lambda: mve(torch.ones(2)), TypeError, "`tau` must be .*, got Tensor; write"),
        (lambda: mve(LinearTemperature), TypeError, "`tau` must be .*, got type; write"),
        (lambda: reinmax_rao(0), ValueError, "`samples` must be .* 1 or more, got 0; write"),
        (lambda: reinmax_rao(True), TypeError, "`samples` must be .* int .*, got bool; write"),
        (lambda: reinmax_rao(tau=0), ValueError, "`tau` must be .* above 0, got 0; write"),
        (lambda: reinmax_rao(tau=None), TypeError, "`tau` must be .*, got NoneType; write"),
        (
            lambda: BernoulliStraightThrough(0.5, 0.5, estimator=gumbel_rao),
            TypeError,
            r"got the class gumbel_rao; write estimator=gumbel_rao\(\)",
        ),
    ],
)
def test_bad_makers(make_one, error, words):
    with pytest.raises(error, match=words):
        make_one()


@pytest.mark.parametrize(
    ("now", "error", "words"),
    [
        (-1, ValueError, "`tau` must be a finite number .*, got -1; write"),
        (torch.tensor(torch.nan), ValueError, "`tau` must be a finite number .*, got nan; write"),
        (torch.ones(2), ValueError, r"`tau` must be one number, got .* of shape \(2,\); write"),
        (None, TypeError, "`tau` must be a finite number .*, got NoneType; write"),
    ],
)
def test_bad_numbers_of_a_schedule(now, error, words):
    """They are found when a draw is made."""
    for estimator in (mve(lambda: now), reinmax_rao(tau=lambda: now)):
        with pytest.raises(error, match=f"^{type(estimator).__name__}: {words}"):
            CategoricalStraightThrough(logits=torch.zeros(3), estimator=estimator).rsample()


@pytest.mark.parametrize("name", ["mve", "reinmax_rao"])
def test_an_estimator_with_a_tau_of_its_own_takes_no_temperature(name):
    for estimator in (name, NAMES[name]):
        with pytest.raises(
            ValueError, match=rf"`temperature` must be None for estimator={name}.*without it"
        ):
            CategoricalStraightThrough(0.5, logits=torch.zeros(3), estimator=estimator)
    distribution = CategoricalStraightThrough(logits=torch.zeros(3), estimator=name)
    assert distribution.temperature is None
    assert repr(distribution).startswith(f"CategoricalStraightThrough(estimator: {name}(")
    torch.manual_seed(0)
    value = distribution.rsample((10,))
    torch.manual_seed(0)
    assert value.equal(distribution.sample((10,)))


def test_an_estimator_of_the_users_own_may_take_no_temperature():
    class scaled:
        takes_temperature = False

        def __call__(self, logits, temperature, perturbed, hard, link):
            return 3 * logits

    logits = torch.zeros(3, requires_grad=True)
    value = CategoricalStraightThrough(logits=logits, estimator=scaled()).rsample()
    assert torch.autograd.grad(value.sum(), logits)[0].tolist() == [3, 3, 3]


def test_a_ranking_of_one_is_a_category():
    """The rows of a ranking have the gradients of one-hot vectors, from the same noise."""
    weights = torch.tensor([0.5, -1.0, 2.0, 3.0])
    for estimator in (mve(30), reinmax_rao(3)):
        found = []
        for build_one in (
            lambda x, e: PlackettLuceStraightThrough(None, 1, logits=x, estimator=e),
            lambda x, e: CategoricalStraightThrough(logits=x, estimator=e),
        ):
            torch.manual_seed(0)
            raw = torch.tensor([0.3, -0.5, 1.0, -torch.inf], requires_grad=True)
            value = build_one(raw, estimator).rsample((5,))
            found.append(torch.autograd.grad((value * weights).sum(), raw)[0])
        torch.testing.assert_close(*found)
        assert found[0][3] == 0
