# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The sampler against its exact distribution, finiteness everywhere, and the gradients."""

import math
import warnings

import pytest
import torch
from scipy import stats
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import kl_divergence

from pyro_gumbel import (
    ExpRelaxedCategorical,
    HardConcrete,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    links,
)
from pyro_gumbel.distributions.sample_cache import recall
from pyro_gumbel.kernels import cpu as kernels
from tests.common import (
    ALL,
    ALPHA,
    BERNOULLI,
    DISCRETE,
    RANKINGS,
    RELAXED,
    RELAXED_LOGITS,
    RELAXED_VALUES,
    SIZED,
    SUBSETS,
    assert_counts,
    assert_same_mean,
    build,
    derivatives,
    first_fast,
    leaf_of,
    make,
    on_a_face,
    param_shape,
    share_noise,
    size_for,
    slow_unless,
    smooth,
    with_sizes,
    z_bound,
)

DTYPES = [torch.float32, torch.float64]
DRAWS = 20_000


def log_ratio_ks(coordinates, logits, temperature):
    """p-values of log s_i - log s_j ~ Logistic((x_i - x_j) / tau, 1 / tau), disjoint pairs."""
    k = logits.shape[-1]
    for i, j in {(0, 1), (k - 2, k - 1), (k // 2, 0)}:
        if i != j:
            d = stats.logistic(((logits[i] - logits[j]) / temperature).item(), 1 / temperature)
            ratio = (coordinates[:, i] - coordinates[:, j]).double().cpu().numpy()
            yield stats.kstest(ratio, d.cdf).pvalue


@pytest.mark.parametrize("dtype", first_fast(DTYPES))
@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("k", first_fast([2, 3, 10, 1000], 3))
def test_simplex_sampler_has_its_distribution(k, temperature, dtype):
    logits = 2 * torch.randn(k, dtype=dtype)
    d = ExpRelaxedCategorical(temperature, logits=logits, validate_args=True)
    draws = d.sample((DRAWS if k < 1000 else DRAWS // 4,))
    assert min(log_ratio_ks(draws, logits, temperature)) > ALPHA / 3
    assert min(log_ratio_ks(draws, logits, 1.1 * temperature)) < ALPHA  # it can fail
    if k <= 10:
        winners = draws.argmax(-1).bincount(minlength=k)
        assert_counts(winners, logits.softmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("logit", [-3.0, 0.0, 1.0])
def test_interval_sampler_has_its_distribution(logit, temperature, dtype):
    logits = torch.tensor(logit, dtype=dtype)
    draws = LogitRelaxedBernoulli(temperature, logits=logits).sample((DRAWS,))
    d = stats.logistic(logit / temperature, 1 / temperature)
    assert stats.kstest(draws.double().cpu().numpy(), d.cdf).pvalue > ALPHA
    ones = (draws > 0).sum().item()
    p = 1 / (1 + math.exp(-logit))
    assert_counts([DRAWS - ones, ones], [1 - p, p])


@pytest.mark.parametrize(
    ("soft", "coordinates", "back"),
    [
        (RelaxedBernoulli, LogitRelaxedBernoulli, torch.sigmoid),
        (RelaxedCategorical, ExpRelaxedCategorical, torch.exp),
    ],
)
def test_values_in_logit_space_have_the_same_distribution(soft, coordinates, back):
    """From one seed the value is the link of that in logit space, parametrised either way."""
    for parameter in ("logits", "probs"):
        value_law = make(soft, 0.3, (50,), parameter=parameter, dtype=torch.float64)
        given = {parameter: getattr(value_law, parameter).detach()}
        coordinate_law = coordinates(0.3, **given)
        torch.manual_seed(1)
        value = value_law.sample((4,))
        torch.manual_seed(1)
        v = coordinate_law.sample((4,))
        torch.testing.assert_close(value, back(v))


@pytest.mark.parametrize("cls", [RelaxedCategorical, ExpRelaxedCategorical])
def test_a_category_that_cannot_occur_never_does(cls):
    d = build(cls, 0.1, logits=torch.tensor([0.0, -math.inf, 1.0]), validate_args=True)
    draws = d.sample((1000,))
    nothing = 0.0 if cls is RelaxedCategorical else -math.inf
    assert (draws[:, 1] == nothing).all()
    assert d.log_prob(draws).isfinite().all()


# Finite everywhere.

TEMPERATURES = [10.0, 1.0, 0.1, 0.01, 0.001]


def assert_finite(**tensors):
    for name, tensor in tensors.items():
        assert tensor is not None, f"{name} has no gradient"
        assert tensor.isfinite().all(), f"{name} is not finite"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("parameter", ["logits", "probs"])
@pytest.mark.parametrize(
    ("cls", "k"),
    slow_unless(lambda case: case[1] in (2, 10), with_sizes(ALL, 2, 10, 64, 1000)),
)
def test_own_samples_are_finite(cls, k, parameter, dtype):
    for temperature in TEMPERATURES:
        tau = torch.tensor(temperature, dtype=dtype, requires_grad=True)
        d = make(cls, tau, (200 if k < 1000 else 50,), k, dtype, parameter)
        value = d.rsample()
        assert value.dtype == dtype
        log_prob = d.log_prob(value)
        assert log_prob.dtype == torch.promote_types(dtype, torch.float32)
        parameters = [leaf_of(d), tau]
        density_grads = torch.autograd.grad(log_prob.sum(), parameters, retain_graph=True)
        value_grads = torch.autograd.grad(value.float().square().sum(), parameters)
        assert_finite(
            value=value,
            log_prob=log_prob,
            density_grad=density_grads[0],
            density_grad_tau=density_grads[1],
            value_grad=value_grads[0],
            value_grad_tau=value_grads[1],
        )


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize(("cls", "k"), with_sizes(ALL, 2, 10, 64))
def test_own_float16_samples_are_finite(cls, k, temperature):
    d = make(cls, temperature, (500,), k, torch.float16)
    value = d.rsample()
    log_prob = d.log_prob(value)
    assert value.dtype == torch.float16
    assert log_prob.dtype == torch.float32
    (gradient,) = torch.autograd.grad(log_prob.sum(), leaf_of(d), retain_graph=True)
    (pathwise,) = torch.autograd.grad(value.float().sum(), leaf_of(d))
    assert_finite(value=value, log_prob=log_prob, gradient=gradient, pathwise=pathwise)


def boundary(cls, k, dtype):
    """Values at and next to the boundary of the support."""
    finfo = torch.finfo(dtype)
    edge = [0.0, 1.0, finfo.tiny * finfo.eps, finfo.tiny / 2, 2 * finfo.tiny, 1 - finfo.eps / 2]
    if cls in BERNOULLI:
        return torch.tensor(edge, dtype=dtype)
    rows = []
    for number in edge:
        row = torch.zeros(k, dtype=dtype)
        row[0], row[1] = number, 1 - number
        others = range(2, 1 + size_for(k))
        if cls is RelaxedSubset:
            row[2 : 1 + size_for(k)] = 1
        if cls in RANKINGS:
            row = torch.stack([row, *(torch.eye(k, dtype=dtype)[i] for i in others)])
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("dtype", "cls", "k"),
    [(torch.float16, *pair) for pair in with_sizes(smooth(RELAXED_VALUES), 2, 10, 64)]
    + [
        (dtype, *pair)
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
        for pair in with_sizes(smooth(RELAXED_VALUES), 2, 10, 64, 1000)
    ],
)
def test_boundary_values_are_finite(cls, k, dtype):
    half = dtype == torch.float16
    for temperature in [1.0, 0.1] if half else TEMPERATURES:
        tau = torch.tensor(temperature, dtype=dtype, requires_grad=True)
        d = make(cls, tau, (), k, dtype)
        value = boundary(cls, k, dtype).requires_grad_()
        with pytest.warns(UserWarning, match="has no cached logits"):
            log_prob = d.log_prob(value)
        wanted = [leaf_of(d)] if half else [leaf_of(d), tau, value]
        gradients = torch.autograd.grad(log_prob.sum(), wanted)
        assert_finite(log_prob=log_prob, **{f"grad_{i}": g for i, g in enumerate(gradients)})


@pytest.mark.parametrize("cls", RELAXED)
def test_impossible_outcomes_pass_no_nan(cls):
    raw = torch.tensor([0.0, 0.3, 1.0], requires_grad=True)
    tau = torch.tensor(0.1, requires_grad=True)
    d = build(cls, tau, probs=raw, validate_args=True)
    value = d.rsample((7,))
    log_prob = d.log_prob(value)
    assert log_prob.isfinite().all()
    total = log_prob.sum() + torch.where(value.isinf(), 0.0, value).sum()
    assert_finite(**dict(zip("pt", torch.autograd.grad(total, [raw, tau]), strict=True)))


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 1e-30])
@pytest.mark.parametrize("cls", ALL)
def test_subnormal_probabilities_pass_finite_gradients(cls, tiny):
    """Where softmax underflows gradually, between a logit of -87 and one of -103."""
    probs = torch.tensor([1.0, tiny] if cls not in BERNOULLI else tiny, requires_grad=True)
    tau = torch.tensor(100.0, requires_grad=True)
    d, other = (
        build(cls, tau, probs=probs),
        build(cls, 0.7, probs=torch.full_like(probs, 0.5)),
    )
    value = d.rsample((50,))
    total = (d.log_prob(value) - other.log_prob(value)).sum() + value.sum()
    assert_finite(**dict(zip("pt", torch.autograd.grad(total, [probs, tau]), strict=True)))


@pytest.mark.parametrize("temperature", [0.1, 1e-6])
@pytest.mark.parametrize("cls", ALL)
def test_a_quotient_that_overflows_makes_no_nan(cls, temperature):
    """The largest logits, and the smallest number as the mask of a category."""
    lowest = torch.finfo(torch.float32).min
    for numbers in ([0.0, 1.0, lowest], [1e38, 0.0, -1.0], [-1e38, -2e38, -1e38]):
        raw = torch.tensor(numbers, requires_grad=True)
        tau = torch.tensor(temperature, requires_grad=True)
        value = build(cls, tau, logits=raw).rsample((20,))
        assert not value.isnan().any()
        total = torch.where(value.isinf(), 0.0, value).sum()
        assert_finite(**dict(zip("xt", torch.autograd.grad(total, [raw, tau]), strict=True)))


# Hard values without a cache.

SOFT_VALUE = {
    RelaxedBernoulli: torch.tensor(0.3),
    RelaxedCategorical: torch.tensor([0.2, 0.3, 0.5]),
    RelaxedSubset: torch.tensor([0.9, 0.3, 0.8]),
    RelaxedPlackettLuce: torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.7, 0.2]]),
    HardConcrete: torch.tensor(0.3),
}
HARD_VALUE = {
    RelaxedBernoulli: torch.tensor(1.0),
    RelaxedCategorical: torch.tensor([0.0, 0.0, 1.0]),
    RelaxedSubset: torch.tensor([1.0, 0.0, 1.0]),
    RelaxedPlackettLuce: torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]),  # a row is enough
    HardConcrete: torch.tensor(1.0),
}
TEXT = "is 0 or 1 in all entries and has no cached logits.*condition inside.*"
SATURATING = smooth(RELAXED_VALUES)
UNSATURATED = dict(
    zip(SATURATING, ["LogitRelaxedB", "ExpR", "LogitRelaxedS", "the very"], strict=True)
)


@pytest.mark.parametrize("cls", SATURATING)
def test_a_hard_value_that_nobody_drew_is_warned_of(cls):
    """Alone and in a batch of soft ones; the number that comes back is that of one nearby."""
    d = build(cls, 0.5, logits=torch.zeros(param_shape(cls)), validate_args=True)
    some = torch.stack([SOFT_VALUE[cls], HARD_VALUE[cls], SOFT_VALUE[cls]])
    for value in (HARD_VALUE[cls], some):
        with pytest.warns(UserWarning, match=f"{cls.__name__}: .*{TEXT}{UNSATURATED[cls]}") as all_:
            score = d.log_prob(value)
        assert score.isfinite().all()
        assert [warning.filename for warning in all_] == [__file__]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            d.log_prob(some)
    assert len(seen) == 1


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_other_values_are_not_warned_of(cls):
    """A warning is an error here."""
    zeros = torch.zeros(param_shape(cls))
    d = build(cls, 0.002, logits=zeros, validate_args=True)
    drawn = d.rsample((100,))
    assert ((drawn == 0) | (drawn == 1)).reshape(100, -1).all(-1).any()
    d.log_prob(drawn)
    build(cls, 0.5, logits=zeros, validate_args=True).log_prob(drawn)
    d.log_prob(SOFT_VALUE[cls])
    hard = HARD_VALUE[cls]
    build(cls, 0.5, logits=zeros, validate_args=False).log_prob(hard)
    torch.vmap(d.log_prob)(hard.expand(2, *hard.shape))


@pytest.mark.parametrize("cls", first_fast(RELAXED_VALUES))
def test_a_compiled_function_does_not_look_at_its_values(cls):
    d = build(cls, 0.5, logits=torch.zeros(param_shape(cls)), validate_args=True)
    torch.compiler.reset()
    compiled = torch.compile(d.log_prob, backend="eager", fullgraph=True)
    d._validate_args = True  # torch.compile has switched the default off
    assert compiled(HARD_VALUE[cls]).isfinite().all()


@pytest.mark.parametrize(
    ("cls", "probs", "value"),
    [
        (RelaxedBernoulli, [0.0, 1.0, 0.5], [0.0, 1.0, 0.5]),
        (RelaxedCategorical, [[0.0, 1.0], [0.5, 0.5]], [[0.0, 1.0], [0.3, 0.7]]),
        (RelaxedSubset, [0.5, 0.0, 0.2], [1.0, 0.0, 1.0]),
        (RelaxedPlackettLuce, [0.0, 1.0], [[0.0, 1.0]]),
    ],
)
def test_the_only_value_there_is_is_not_warned_of(cls, probs, value):
    d = build(cls, 0.5, probs=torch.tensor(probs), validate_args=True)
    assert d.log_prob(torch.tensor(value)).isfinite().all()


# Logits at the end of the range, as b; the last two rows are for what has few large ones.
EXTREME_ROWS = [
    [1.0, 0.0, 0.0],
    [-1.0, 0.0, 0.0],
    [1.0, 1.0, 0.0],
    [1.0, -1.0, 0.0],
    [1.0, 1.0, 1.0],
    [-1.0, -1.0, -1.0],
    [1.0, 0.5, -1.0],
    [-math.inf, 1.0, -1.0],
    [-1.0, -1.0, 0.0],
    [-1.0, -0.5, -1.0],
]
OF_A_LAW = {
    "value": lambda d, raw: d.rsample((3,)),
    "own score": lambda d, raw: d.log_prob(d.sample((3,))),
    "score of another's": lambda d, raw: d.log_prob(plain(d, raw).sample((3,)).clone()),
    "probs": lambda d, raw: d.probs,
    "logits": lambda d, raw: d.logits,
    "mean": lambda d, raw: d.mean,
    "variance": lambda d, raw: d.variance,
    "stddev": lambda d, raw: d.stddev,
    "mode": lambda d, raw: d.mode,
    "entropy": lambda d, raw: d.entropy(),
    "divergence": lambda d, raw: kl_divergence(d, plain(d, raw)),
    "divergence from a plain one": lambda d, raw: kl_divergence(plain(d, raw), d),
    "divergence from itself": lambda d, raw: kl_divergence(d, d),
    "cdf": lambda d, raw: d.cdf(torch.full_like(d.mean.detach(), 0.3)),
    "icdf": lambda d, raw: d.icdf(torch.full_like(d.mean.detach(), 0.3)),
}
DENSITIES = ("own score", "score of another's")  # whose slope in tau is as large as the logits


def plain(d, raw):
    """One of the class and shape, of equal probabilities where they are not 0 or 1."""
    logits = torch.where(raw.isinf(), raw, 0.0).detach()
    return build(type(d), 0.7, logits=logits, size=getattr(d, "size", None))


def exists(cls, what):
    logits = torch.zeros(param_shape(cls))
    try:
        OF_A_LAW[what](build(cls, 2.0, logits=logits), logits)
    except (AttributeError, NotImplementedError):
        return False
    return True


@pytest.mark.parametrize("dtype", first_fast(DTYPES))
@pytest.mark.parametrize(
    ("cls", "what"),
    [
        (cls, what)
        for cls in [*ALL, *DISCRETE]
        for what in OF_A_LAW
        if exists(cls, what) and not (cls in RELAXED_LOGITS and "divergence" in what)  # the values'
    ],
)
def test_logits_at_the_end_of_the_range_make_no_nan(cls, what, dtype):
    """In nothing that there is, nor in its gradients; entropies are finite."""
    largest = 3e38 if dtype == torch.float32 else 1e308
    rows = EXTREME_ROWS[:-2] if cls is RelaxedPlackettLuce else EXTREME_ROWS
    if cls in BERNOULLI:
        rows = [1.0, -1.0, 0.5, math.inf, -math.inf]
    logits = largest * torch.tensor(rows, dtype=dtype)
    batch = logits.shape[: logits.dim() - len(param_shape(cls))]
    for temperature in (0.01, 2.0) if what != "mode" else (2.0,):
        raw = logits.clone().requires_grad_()
        tau = torch.full(batch, temperature, dtype=dtype, requires_grad=True)
        value = OF_A_LAW[what](build(cls, tau, logits=raw, validate_args=False), raw)
        assert not value.isnan().any()
        assert what != "entropy" or value.isfinite().all()
        total = torch.where(value.isfinite(), value, 0.0)
        if total.requires_grad:
            slopes = torch.autograd.grad(total.sum(), [raw, tau], materialize_grads=True)
            assert not slopes[0].isnan().any()
            assert (cls in RELAXED and what in DENSITIES) or not slopes[1].isnan().any()


@pytest.mark.parametrize("cls", RELAXED)
def test_forward_mode(cls):
    """torch.func.hessian is forward over reverse; of a single bit too."""
    logits = torch.randn(param_shape(cls), dtype=torch.float64)
    value = build(cls, 0.5, logits=logits).sample().clone()

    def score(logits, value):
        return build(cls, 0.5, logits=logits, validate_args=False).log_prob(value)

    for argument in (0, 1):
        found = torch.func.hessian(score, argument)(logits, value)
        expected = torch.autograd.functional.hessian(score, (logits, value))[argument][argument]
        torch.testing.assert_close(found, expected)


# Probabilities of 0 and 1: the distribution of what is left.


def score_of_another(d, given):
    """Of the same parameter, held fixed, at another temperature."""
    size = {"size": d.size} if type(d) in SIZED else {}
    fixed = {name: parameter.detach() for name, parameter in given.items()}
    other = build(type(d), 0.7, **fixed, **size)
    return other.log_prob(d.rsample((5,)))


# What it is, and whether its last dimension is that of the outcomes.
OF_A_DRAW = {
    "value": (lambda d, given: d.rsample((5,)), True),
    "own score": (lambda d, given: d.log_prob(d.rsample((5,))), False),
    "score of another": (score_of_another, False),
    "score of a copy": (lambda d, given: d.log_prob(d.sample((5,)).clone()), False),
}
ON_FACES = [
    (cls, possible)
    for cls in ALL
    for possible in ((1,) if cls in BERNOULLI else (3,) if cls in SUBSETS[:2] else (2, 3))
]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("what", OF_A_DRAW)
@pytest.mark.parametrize(
    ("cls", "possible"), slow_unless(lambda case: case[0] not in RELAXED_LOGITS, ON_FACES)
)
def test_derivatives_at_probabilities_of_0_are_those_of_what_is_left(
    cls, possible, what, many, monkeypatch
):
    """Of first and of second order, in the parameter, the temperature, and mixed."""
    k = 3 if cls in BERNOULLI else 4
    share_noise(k, monkeypatch)
    if many:
        monkeypatch.setattr(kernels, "MANY", 1)
    statistic, of_outcomes = OF_A_DRAW[what]

    def of_what_is_left(parameter, temperature):
        torch.manual_seed(3)
        size = {"size": 2} if cls in SIZED else {}
        given = {name: parameter}
        value = statistic(build(cls, temperature, **given, **size), given)
        return value[..., :possible] if of_outcomes or cls in BERNOULLI else value

    for name, batch in (("probs", ()), ("logits", (1,) if cls in BERNOULLI else (2,))):
        for dtype in DTYPES:
            whole, left = on_a_face(cls, possible, name, dtype)
            tau = torch.full(batch, 0.5, dtype=dtype)
            found, expected = (
                derivatives(of_what_is_left, parameter, tau, possible)
                for parameter in (whole, left)
            )
            for one, other in zip(found, expected, strict=True):
                exact = 1e-9 if dtype == torch.float64 else 1e-3
                torch.testing.assert_close(one, other, rtol=exact, atol=exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", ALL)
def test_second_derivatives_at_probabilities_of_0_in_half_precision(cls, dtype):
    parameter, _ = on_a_face(cls, 3, "probs", dtype)
    for statistic, _ in OF_A_DRAW.values():
        raw, tau = parameter.clone().requires_grad_(), torch.tensor(0.5, dtype=dtype)
        d = build(cls, tau.requires_grad_(), probs=raw, validate_args=False)
        value = statistic(d, {"probs": raw})
        total = torch.where(value.isfinite(), value, 0.0).float().sum()
        options = {"create_graph": True, "materialize_grads": True}
        first = torch.autograd.grad(total, [raw, tau], **options)
        second = torch.autograd.grad(sum(g.float().sum() for g in first), [raw, tau], **options)
        assert_finite(**dict(zip(["x", "tau", "xx", "tautau"], (*first, *second), strict=True)))


@pytest.mark.parametrize("cls", [RelaxedSubset, LogitRelaxedSubset, RelaxedCategorical])
def test_a_point_has_no_derivatives(cls):
    """Where as many categories are left as are chosen."""
    possible = 2 if cls in SUBSETS else 1
    whole, _ = on_a_face(cls, possible, "logits")
    tau = torch.tensor([0.5, 0.1], dtype=torch.float64)
    for statistic, _ in OF_A_DRAW.values():

        def finite(parameter, temperature, statistic=statistic):
            size = {"size": 2} if cls in SUBSETS else {}
            given = {"logits": parameter}
            value = statistic(build(cls, temperature, **given, **size), given)
            return torch.where(value.isfinite(), value, 0.0)

        assert all((part == 0).all() for part in derivatives(finite, whole, tau, possible))


def test_the_mean_log_density_of_a_saturated_bit_is_right():
    """E log q at temperature 0.1, logit 1; a quadrature over the logit gives 12.03."""
    v = torch.linspace(-500, 500, 100_001, dtype=torch.float64)
    logit = torch.tensor(1.0, dtype=torch.float64)
    log_q = LogitRelaxedBernoulli(0.1, logits=logit).log_prob(v)
    log_slope = -v.abs() - 2 * torch.log1p((-v.abs()).exp())
    exact = torch.trapezoid(log_q.exp() * (log_q - log_slope), v).item()
    assert exact == pytest.approx(12.03, abs=0.005)
    d = RelaxedBernoulli(0.1, logits=torch.tensor(1.0))
    found = d.log_prob(d.sample((400_000,))).mean().item()
    assert found == pytest.approx(exact, rel=0.005)


def test_float32_has_the_log_prob_of_float64():
    """Own float32 samples, at every temperature, to a few units in the last place of the sum."""
    for temperature in TEMPERATURES:
        for cls in (RelaxedBernoulli, RelaxedCategorical, RelaxedSubset):
            d = make(cls, temperature, (300,), 10)
            value = d.sample()
            exact_logits = leaf_of(d).detach().double()
            exact = build(cls, temperature, logits=exact_logits, validate_args=False)
            coordinates = recall(value, d.link).double()
            tau = torch.tensor(temperature, dtype=torch.float64)
            expected = exact.link.log_density(coordinates, exact_logits, tau, of_values=True)
            scale = coordinates.abs().max() + 20
            torch.testing.assert_close(
                d.log_prob(value).double(), expected, rtol=1e-5, atol=1e-6 * scale.item()
            )


# Gradients.


def at_fixed_noise(function):
    def seeded(*arguments):
        torch.manual_seed(5)
        return function(*arguments)

    return seeded


def gradient_inputs(cls, parameter):
    shape = (3, 4) if cls not in BERNOULLI else (3,)
    raw = torch.randn(shape, dtype=torch.float64)
    if parameter == "probs":
        raw = raw.sigmoid() * 0.8 + 0.1
    tau = torch.tensor([0.5, 1.3, 0.8], dtype=torch.float64)
    return raw.requires_grad_(), tau.requires_grad_()


@pytest.mark.parametrize("parameter", first_fast(["logits", "probs"]))
@pytest.mark.parametrize("cls", RELAXED)
def test_gradients_of_rsample(cls, parameter):
    @at_fixed_noise
    def draw(raw, tau):
        return build(cls, tau, **{parameter: raw}).rsample((2,))

    inputs = gradient_inputs(cls, parameter)
    assert gradcheck(draw, inputs)
    assert gradgradcheck(draw, inputs)


@pytest.mark.parametrize("parameter", first_fast(["logits", "probs"]))
@pytest.mark.parametrize("cls", RELAXED)
def test_gradients_of_log_prob(cls, parameter):
    """In the parameters and in the value; the soft values move within their support."""
    inputs = gradient_inputs(cls, parameter)
    free = torch.randn(inputs[0].shape, dtype=torch.float64, requires_grad=True)

    def score(raw, tau, free):
        d = build(cls, tau, **{parameter: raw}, validate_args=False)
        if cls not in BERNOULLI:
            link = links.Hypersimplex(2) if cls in SUBSETS else links.simplex
            if cls in RANKINGS:
                free = torch.stack([free, free.flip(-1)], -2)  # with another winner
            v = link.unconstrained(free, torch.ones_like(tau[0]))
            if cls is RelaxedSubset:
                return d.log_prob(v.sigmoid())
            return d.log_prob(v if cls in RELAXED_LOGITS else v.exp())
        return d.log_prob(free if cls in RELAXED_LOGITS else free.sigmoid())

    assert gradcheck(score, (*inputs, free))
    assert gradgradcheck(score, (*inputs, free))


@pytest.mark.parametrize("cls", RELAXED)
def test_gradients_of_log_prob_of_own_samples(cls):
    @at_fixed_noise
    def score(raw, tau):
        d = build(cls, tau, logits=raw)
        return d.log_prob(d.rsample((2,)))

    inputs = gradient_inputs(cls, "logits")
    assert gradcheck(score, inputs)
    assert gradgradcheck(score, inputs)


@pytest.mark.parametrize("cls", [RelaxedBernoulli, RelaxedCategorical])
def test_total_derivative_of_own_log_prob(cls):
    """d log p(s) / dx = (k s - 1) / tau on the simplex, (2 s - 1) / tau on the interval."""
    d = make(cls, 0.05, (100,), 10)
    value = d.rsample()
    (found,) = torch.autograd.grad(d.log_prob(value).sum(), leaf_of(d))
    k = 10 if cls not in BERNOULLI else 2
    torch.testing.assert_close(found, (k * value - 1).detach() / 0.05, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("logit", [-80.0, -30.0, 30.0, 80.0])
def test_the_gradient_of_a_saturated_bit_is_that_of_the_formula(logit):
    x = torch.tensor(logit, requires_grad=True)
    d = RelaxedBernoulli(1.0, logits=x)
    value = d.rsample((1000,))
    slopes = []
    for i in range(3):
        (slope,) = torch.autograd.grad(value[i], x, retain_graph=True)
        v = recall(value, d.link)[i].double()
        slopes.append((slope.double(), (-v.abs()).exp() / (1 + (-v.abs()).exp()) ** 2))
    for found, exact in slopes:
        assert found > 0
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=0)


def test_reparametrised_gradient_of_an_expectation():
    """The mean of pathwise gradients of E s is the gradient of the mean, by quadrature."""
    x = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    v = torch.linspace(-150, 150, 60_001, dtype=torch.float64)
    mean = torch.trapezoid(LogitRelaxedBernoulli(0.7, logits=x).log_prob(v).exp() * v.sigmoid(), v)
    (exact,) = torch.autograd.grad(mean, x)
    batch = x.detach().expand(DRAWS).clone().requires_grad_()
    (pathwise,) = torch.autograd.grad(RelaxedBernoulli(0.7, logits=batch).rsample().sum(), batch)
    assert_same_mean(pathwise, exact)


def test_a_rare_category_is_drawn_as_often_as_it_should_be():
    """Probability 1e-6 next to one: 20 million draws, 20 expected."""
    logits = torch.tensor([0.0, math.log(1e-6)])
    d = ExpRelaxedCategorical(0.1, logits=logits)
    wins = sum((d.sample((1_000_000,)).argmax(-1)).sum().item() for _ in range(20))
    expected = 20 / (1 + 1e-6)
    low, high = stats.poisson.ppf([ALPHA / 2, 1 - ALPHA / 2], expected)
    assert low <= wins <= high


def test_a_common_category_next_to_many_rare_ones():
    """1000 categories of 1e-6 each: the common one loses once in a thousand draws."""
    logits = torch.full((1001,), math.log(1e-6))
    logits[0] = 0.0
    losses = (ExpRelaxedCategorical(0.1, logits=logits).sample((20_000,)).argmax(-1) > 0).sum()
    expected = 20_000 * (1e-3 / (1 + 1e-3))
    assert abs(losses.item() - expected) < z_bound() * math.sqrt(expected)
