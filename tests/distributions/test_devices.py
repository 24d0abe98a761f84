# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Results are where the inputs are, whatever torch's default device is.

The inputs are on the CPU, or on the device of the option `--device`, and the default device is
`meta`, whose tensors have no numbers: none can be read there or copied from it, so that a tensor
made without a device shows.
"""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch.distributions import biject_to, kl_divergence, transform_to
from torch.utils._pytree import tree_flatten

import pyro_gumbel
from pyro_gumbel import (
    AutoRelaxed,
    CategoricalStraightThrough,
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    LearnableTemperature,
    LinearTemperature,
    LogitRelaxedBernoulli,
    NoiseReparam,
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    SelectedComponent,
    Subset,
    constraints,
    estimators,
    gradient_report,
    harden,
    links,
    m_hot,
    relax,
    relaxed,
)
from pyro_gumbel.infer import exact_gradient as reference
from pyro_gumbel.ops.noise import MANY
from tests.common import (
    ALL,
    BERNOULLI,
    CATEGORICAL,
    DISCRETE,
    RELAXED,
    RELAXED_VALUES,
    STRAIGHT_THROUGH,
    build,
    first_fast,
    param_shape,
    smooth,
)

HERE = torch.zeros(()).device  # where the inputs are


def assert_same(call):
    """A call returns the same under a default device of `meta`: from the same seed, on HERE."""
    found = []
    for context in (nullcontext(), torch.device("meta")):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        with context:
            found.append(tree_flatten(call()))
    (plain, form), (under_meta, same_form) = found
    assert same_form == form
    for expected, got in zip(plain, under_meta, strict=True):
        if isinstance(expected, torch.Tensor):
            assert got.device == HERE
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
        else:
            assert got == expected


# Distributions.


def with_gradient(d, value):
    return value, torch.autograd.grad(value.sum(), d._parameter)


def many(d):
    """A shape of samples that the formulas take in blocks."""
    return (1 + MANY // d.shape().numel(),)


def error_of(call):
    with pytest.raises(ValueError, match=r"write|draw it") as caught:
        call()
    return str(caught.value)


def through_noise(d):
    moved = poutine.reparam(lambda: pyro.sample("z", d), {"z": NoiseReparam()})
    nodes = poutine.trace(moved).get_trace().nodes
    return nodes["z"]["value"], nodes["z_noise"]["value"]


def there_and_back(d, bijection):
    transform = bijection(d.support)
    y = transform.inv(d.sample())
    return y, transform(y)


EVERY = [*ALL, *DISCRETE]
ENUMERATED = [*STRAIGHT_THROUGH, *DISCRETE]
WITH_MOMENTS = [RelaxedBernoulli, LogitRelaxedBernoulli, RelaxedCategorical, *ENUMERATED]
BITS = [RelaxedBernoulli, LogitRelaxedBernoulli]
OPERATIONS = {
    "parameters": (EVERY, lambda d: (d.probs, d.logits)),
    "temperature": (ALL, lambda d: d.temperature),
    "rsample": (ALL, lambda d: with_gradient(d, d.rsample((3,)).square())),
    "many of rsample": (ALL, lambda d: with_gradient(d, d.rsample(many(d)).square())),
    "sample": (EVERY, lambda d: d.sample()),
    "many of sample": (EVERY, lambda d: d.sample(many(d))),
    "log_prob": (EVERY, lambda d: with_gradient(d, d.log_prob(d.sample((3,)).clone()))),
    "many of log_prob": (
        RELAXED,
        lambda d: with_gradient(d, d.log_prob(d.sample(many(d)).clone())),
    ),
    "log_prob of its own": (ALL, lambda d: with_gradient(d, d.log_prob(d.rsample()))),
    "score_parts": (EVERY, lambda d: tuple(d.score_parts(d.sample()))),
    "mean": (WITH_MOMENTS, lambda d: with_gradient(d, d.mean.square())),
    "variance": (WITH_MOMENTS, lambda d: (d.variance, d.stddev)),
    "covariance_matrix": ([RelaxedCategorical], lambda d: d.covariance_matrix),
    "mode": (WITH_MOMENTS, lambda d: d.mode),
    "entropy": ([*BERNOULLI, *CATEGORICAL, *ENUMERATED], lambda d: d.entropy()),
    "cdf": (BITS, lambda d: d.cdf(d.sample())),
    "icdf": (BITS, lambda d: d.icdf(d.probs)),
    "enumerate_support": (
        ENUMERATED,
        lambda d: (d.enumerate_support(), d.enumerate_support(expand=False)),
    ),
    "expand": (EVERY, lambda d: d.expand((3, 2)).sample()),
    "wrappers": (EVERY, lambda d: d.mask(d.logits[..., 0] > 0).to_event(1).sample()),
    "support": (EVERY, lambda d: d.support.check(d.sample())),
    "validation": (EVERY, lambda d: error_of(lambda: d.log_prob(d.sample() * torch.nan))),
    "kl_divergence": (
        [cls for cls in EVERY if cls is not RelaxedPlackettLuce],
        lambda d: with_gradient(d, kl_divergence(d, d.expand((3, 2)))),
    ),
    "biject_to": (smooth(RELAXED), lambda d: there_and_back(d, biject_to)),
    "transform_to": (smooth(RELAXED), lambda d: there_and_back(d, transform_to)),
    "base_dist": ([RelaxedBernoulli, RelaxedCategorical], lambda d: d.base_dist.rsample()),
    "harden": (RELAXED[: len(RELAXED_VALUES)], lambda d: harden(d.rsample())),
    "NoiseReparam": ([cls for cls in RELAXED if cls is not RelaxedPlackettLuce], through_noise),
    "vmap": (
        ALL,
        lambda d: torch.vmap(
            lambda x: build(type(d), 0.5, logits=x).rsample(), randomness="different"
        )(d._parameter),
    ),
    "jvp": (
        RELAXED,
        lambda d: torch.func.jvp(
            lambda x: build(type(d), 0.5, logits=x).rsample(),
            (d._parameter,),
            (d._parameter,),
        ),
    ),
}
DISTRIBUTIONS = [(name, cls) for name, (classes, _) in OPERATIONS.items() for cls in classes]
TEMPERATURES = {"number": 5.0, "tensor": torch.tensor([5.0, 6.0]), "function": lambda: 5.0}


@pytest.mark.parametrize(("operation", "cls"), DISTRIBUTIONS)
def test_distributions(operation, cls):
    logits = torch.randn(2, *param_shape(cls, 4), requires_grad=True)
    function = OPERATIONS[operation][1]
    assert_same(lambda: function(build(cls, 5.0, logits=logits, validate_args=True)))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("given", ["probs", "logits"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cls", EVERY)
def test_constructors(cls, dtype, given, temperature):
    """In every form and dtype, with a draw of each."""
    parameter = torch.rand(2, *param_shape(cls, 4)).to(dtype)

    def call():
        d = build(cls, TEMPERATURES[temperature], **{given: parameter}, validate_args=True)
        value = d.sample()
        return value, d.log_prob(value.clone()), repr(d)

    assert_same(call)


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_estimators(cls):
    logits = torch.randn(2, *param_shape(cls, 4), requires_grad=True)
    names = estimators.suited(build(cls, 0.5, logits=logits).link)

    def call():
        distributions = [
            build(cls, tau, logits=logits, estimator=name)
            for name in names
            for tau in [0.5 if estimators.takes_temperature(estimators.named(name)) else None]
        ]
        return [with_gradient(d, d.rsample().square()) for d in distributions]

    assert_same(call)


@pytest.mark.parametrize("cls", BERNOULLI)
def test_a_parameter_that_is_a_number_is_where_the_temperature_is(cls):
    """And on the default device only where both are numbers."""
    tau = torch.tensor(0.5)
    for temperature in (tau, lambda: tau):
        assert_same(lambda temperature=temperature: cls(temperature, probs=0.3).sample())
        assert_same(lambda temperature=temperature: cls(temperature, logits=0.3).sample())
    with torch.device("meta"):
        assert cls(0.5, probs=0.3).sample().device.type == "meta"


# Functions of values.

X, ZERO, ONE = torch.linspace(-1, 2, 12).reshape(4, 3), torch.tensor(0.0), torch.tensor(1.0)
P = torch.tensor([0.2, 0.3, 0.5])
PLAIN = [
    dist.Bernoulli(P),
    dist.Bernoulli(logits=P).expand((2, 3)).to_event(1),
    dist.OneHotCategorical(P),
    dist.OneHotCategorical(logits=P).expand((2,)),
    Subset(2, P),
    PlackettLuce(2, logits=P),
    PlackettLuce(torch.tensor([1, 3]), logits=P),
]
TRANSFORMS = [
    constraints.LogRatioTransform(),
    constraints.LogitHypersimplexTransform(2),
    constraints.HypersimplexTransform(2),
]
CONSTRAINTS = [
    constraints.simplex,
    constraints.log_simplex,
    constraints.simplex_rows,
    constraints.hypersimplex(2),
    constraints.logit_hypersimplex(2),
    constraints.subset(2),
    constraints.ranking(2),
    constraints.ranking(torch.tensor([1, 2, 2, 1]), rows=4),
    constraints.padded_simplex_rows(torch.tensor([1, 2, 2, 1]), rows=4),
]


def test_a_component_by_its_number():
    def call():
        d = SelectedComponent(1, dist.Normal(P, ONE))
        return d.sample((3,)), d.log_prob(ONE), d.mean

    assert_same(call)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("plain", PLAIN)
def test_relax(plain, hard):
    assert_same(lambda: relax(plain, 0.5, hard=hard).rsample())


@pytest.mark.parametrize(
    ("value", "link"),
    [
        (X.softmax(-1), None),
        (X.sigmoid(), links.interval),
        (X.softmax(-1), links.simplex),
        (X.sigmoid(), links.Hypersimplex(2)),
    ],
)
def test_harden(value, link):
    assert_same(lambda: harden(value, link))


def test_harden_refuses_what_it_does_not_know():
    assert_same(lambda: error_of(lambda: harden(X.sigmoid()[0, 0])))
    assert_same(lambda: error_of(lambda: harden(X.sigmoid())))


def test_m_hot():
    assert_same(lambda: m_hot(X))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_constraints(constraint):
    assert_same(lambda: constraint.check(X.softmax(-1).round()))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform):
    def call():
        y = transform(X)
        return y, transform.inv(y), transform.log_abs_det_jacobian(X, y)

    assert_same(call)


@pytest.mark.parametrize(
    "make_schedule",
    [
        lambda: ConstantTemperature(0.5),
        lambda: ExponentialTemperature(0.1, hold=2),
        lambda: LinearTemperature(1.0, 0.5, 10),
        lambda: CosineTemperature(1.0, 0.5, 10),
        lambda: LearnableTemperature(0.5),
        lambda: LearnableTemperature(torch.tensor([0.5, 1.0])),
    ],
)
def test_schedules(make_schedule):
    """On the device of their buffer; made of numbers that is the default."""

    def call():
        for _ in range(3):
            schedule.step()
        found = schedule().detach().clone(), repr(schedule), schedule.steps.item()
        schedule.steps.zero_()
        return found

    schedule = make_schedule()
    assert_same(call)
    with torch.device("meta"):
        assert make_schedule().steps.device.type == "meta"


def test_a_learnt_temperature_is_where_its_tensor_is():
    assert_same(lambda: LearnableTemperature(ONE)().detach())


# Models.

DATA, MANY_DATA = torch.tensor([0.3, -1.2]), torch.linspace(-2, 2, 12)


def model(data):
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.OneHotCategorical(P))
        pyro.sample("x", dist.Normal(z @ X[0], ONE), obs=data)


def subsampled(data):
    with pyro.plate("data", 12, subsample_size=2, device=HERE) as index:
        z = pyro.sample("z", dist.OneHotCategorical(P))
        pyro.sample("x", dist.Normal(z @ X[0], ONE), obs=MANY_DATA[index])


def of_all_kinds(data):
    z = pyro.sample("z", dist.OneHotCategorical(P))
    s = pyro.sample("s", Subset(2, logits=P))
    r = pyro.sample("r", PlackettLuce(2, logits=P))
    b = pyro.sample("b", dist.Bernoulli(P[:2]).to_event(1))
    pyro.sample("x", dist.Normal((z + s + m_hot(r)) @ X[0] + b.sum(-1), ONE), obs=data[0])


def own_plate(data):
    """Without its `device` Pyro draws the indices of a subsample on the default one."""
    return pyro.plate("data", 12, subsample_size=2, device=HERE)


def values(trace):
    """Of the sites with the values that they have, and their log probabilities."""
    nodes = {name: trace.nodes[name] for name in ("z", "s", "r", "b", "x")}
    return {n: (site["value"], site["fn"].log_prob(site["value"])) for n, site in nodes.items()}


@pytest.mark.parametrize("hard", [True, False])
def test_relaxed(hard):
    handled = relaxed(of_all_kinds, 0.5, hard=hard)
    assert_same(lambda: values(poutine.trace(handled).get_trace(DATA)))


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize(
    ("plain", "plates"), [(model, None), (subsampled, own_plate), (of_all_kinds, None)]
)
def test_auto_relaxed(plain, plates, hard):
    """Set up, drawn from, its median, its distributions and its parameters."""
    handled = relaxed(plain, 0.5, hard=hard)

    def call():
        guide = AutoRelaxed(handled, 0.5, hard=hard, create_plates=plates)
        drawn, median = guide(DATA), guide.median(DATA)
        again = {name: guide.distribution(name).sample() for name in drawn}
        return drawn, median, again, dict(guide.state_dict())

    assert_same(call)


@pytest.mark.parametrize(
    ("plain", "elbo"),
    [
        (relaxed(of_all_kinds, 0.5), Trace_ELBO()),
        (of_all_kinds, TraceMeanField_ELBO()),
        (
            relaxed(model, 0.5),
            TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
        ),
    ],
)
def test_svi(plain, elbo):
    def call():
        guide = AutoRelaxed(plain, 0.5)
        svi = SVI(plain, guide, pyro.optim.SGD({"lr": 0.1}), elbo)
        return [svi.step(DATA) for _ in range(3)], dict(guide.state_dict())

    assert_same(call)


def partly_continuous(data):
    u = pyro.sample("u", dist.Normal(ZERO, ONE))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.OneHotCategorical(P))
        pyro.sample("x", dist.Normal(z @ X[0] + u, ONE), obs=data)


def its_guide(data):
    loc = pyro.param("loc", lambda: ZERO.clone())
    logits = pyro.param("logits", lambda: P.clone())
    u = pyro.sample("u", dist.Normal(loc, ONE))
    with pyro.plate("data", len(data)):
        pyro.sample("z", CategoricalStraightThrough(0.5, logits=logits + u))


def ranked(data):
    """A site whose outcomes are made, not known to torch."""
    r = pyro.sample("r", PlackettLuceStraightThrough(0.5, 2, logits=P))
    pyro.sample("x", dist.Normal(m_hot(r) @ X[0], ONE), obs=data[0])


def report(model, guide, data):
    arguments = {"num_samples": 3, "num_exact_samples": 20, "progress": False}
    found = gradient_report(
        model, guide, (data,), estimators=["gumbel_softmax"], temperatures=[1.0], **arguments
    ).to_dict()
    assert found["rows"][0].pop("milliseconds") > 0
    return found


@pytest.mark.parametrize(
    ("plain", "data", "how"),
    [
        (model, DATA, "enumeration of 9 states"),
        (ranked, DATA, "enumeration of 6 states"),
        (subsampled, DATA, "enumeration of 9 states"),
        (model, MANY_DATA, "parallel enumeration"),
        (partly_continuous, DATA, "leave-one-out score function, 20 draws"),
    ],
)
def test_gradient_report(plain, data, how, monkeypatch):
    """By each of the ways to the exact gradient."""
    monkeypatch.setattr(reference, "CHECKS", 20)  # for speed
    handled = relaxed(plain, 0.5, sites=None if plain is ranked else ["z"])
    plates = own_plate if plain is subsampled else None

    def call():
        auto = AutoRelaxed(handled, 0.5, create_plates=plates)
        found = report(handled, its_guide if plain is partly_continuous else auto, data)
        assert found["exact_by"] == how
        return found

    assert_same(call)


def test_a_gradient_that_there_is_not_is_on_the_cpu_too():
    """As every other, wherever the parameters are."""

    def guide():
        logits = pyro.param("logits", lambda: P.clone())
        pyro.sample("z", CategoricalStraightThrough(0.5, logits=logits))

    objective = reference.Objective(guide, guide)
    with torch.device("meta"):
        assert objective.gradient(ZERO).device.type == "cpu"


# torch.compile.


@pytest.mark.parametrize("cls", first_fast([STRAIGHT_THROUGH[0], RelaxedCategorical]))
def test_compile(cls):
    logits = torch.randn(20, *param_shape(cls))

    def draw_and_score(logits):
        d = build(cls, 0.5, logits=logits, validate_args=False)
        value = d.rsample()
        return value, d.log_prob(value)

    def call():
        torch.compiler.reset()
        return torch.compile(draw_and_score, fullgraph=True, backend="aot_eager")(logits)

    assert_same(call)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [RelaxedCategorical, STRAIGHT_THROUGH[0]])
def test_compiled(cls):
    logits = torch.randn(MANY, *param_shape(cls), requires_grad=True)

    def call():
        with pyro_gumbel.compiled():
            d = build(cls, 0.5, logits=logits)
            return with_gradient(d, d.rsample().square()), d.log_prob(d.sample().clone())

    assert_same(call)
