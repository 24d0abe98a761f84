# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Counts with gradients of third order: unbiased for cubic losses."""

import copy
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch.distributions import kl_divergence

from pyro_gumbel import BernoulliStraightThrough, CategoricalStraightThrough, estimators, relax
from pyro_gumbel import BetaBinomialStraightThrough as BetaBinomial
from pyro_gumbel import BinomialStraightThrough as Binomial
from pyro_gumbel import GammaPoissonStraightThrough as GammaPoisson
from pyro_gumbel import GeometricStraightThrough as Geometric
from pyro_gumbel import NegativeBinomialStraightThrough as NegativeBinomial
from pyro_gumbel import PlackettLuceStraightThrough as PlackettLuce
from pyro_gumbel import PoissonStraightThrough as Poisson
from pyro_gumbel import SubsetStraightThrough as Subset
from tests.common import assert_same_mean
from tests.counts import (
    COUNTS,
    ONE_EACH,
    SIMPLE,
    VECTORS,
    make_count,
    parameters_of,
    support_of,
)
from tests.distributions.test_counts import EDGES, HALF, WIDE, at_the_edge, gradients

OF_THIRD_ORDER = [name for name in SIMPLE if name not in VECTORS]
KINDS = [name for name in ONE_EACH if name not in VECTORS and name != "DirichletMultinomial"]
AT_EDGES = [name for name in EDGES if "multinomial" not in name]


def third_order(distribution):
    return relax(distribution, estimator="third_order")


def third_order_count(name, leaves=None, **keywords):
    return third_order(make_count(name, leaves, **keywords))


def slopes(totals, leaf):
    """The derivative of each of some numbers."""
    return torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in totals])


def weights_of(d, values, leaf):
    """w of each value."""
    return slopes(d._attached(values), leaf)


# Unbiased.


def bias(name, power):
    """Of the estimates of the derivatives of E D^power, relative to those."""
    values, leaves = support_of(name), parameters_of(name)
    d = third_order_count(name, leaves)
    probs, sample = d.log_prob(values).exp(), d.rsample(values.shape)
    assert torch.equal(sample, values)
    exact = gradients((probs * values**power).sum(), leaves)
    found = gradients((probs.detach() * sample**power).sum(), leaves)
    return [(f / e - 1).item() for f, e in zip(found, exact, strict=True)]


@pytest.mark.parametrize("name", OF_THIRD_ORDER)
def test_unbiased_for_cubic_losses(name, monkeypatch):
    """In the derivative of each parameter, `total_count` too."""
    monkeypatch.setattr(COUNTS[name].cls, "_drawn", lambda *_: support_of(name))
    for power in (1, 2, 3):
        assert bias(name, power) == pytest.approx([0.0] * len(parameters_of(name)), abs=1e-10)
    assert min(map(abs, bias(name, 5))) > 1e-3


def least_norm(probs, values, leaf, degree):
    """The w of least E w^2 that is unbiased for polynomials of some degree, solved for."""
    root = probs.detach().sqrt()
    moments = slopes([(probs * values**k).sum() / k for k in range(1, degree + 1)], leaf)
    conditions = torch.stack([root * values**j for j in range(degree)])
    solved = np.linalg.lstsq(conditions.numpy(force=True), moments.numpy(force=True), rcond=None)
    return torch.from_numpy(solved[0]) / root.cpu()


@pytest.mark.parametrize("name", OF_THIRD_ORDER)
def test_the_weights_have_the_least_norm(name):
    values, leaves = support_of(name), parameters_of(name)
    d = third_order_count(name, leaves)
    probs = d.log_prob(values).exp()
    likely = (probs > 1e-10).cpu()
    for leaf in leaves.values():
        expected = least_norm(probs, values, leaf, 3)
        found = weights_of(d, values, leaf).cpu()
        torch.testing.assert_close(found[likely], expected[likely], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [2, 3, 40])
@pytest.mark.parametrize("p", [0.02, 0.5, 0.98])
def test_numbers_of_trials(n, p):
    """Two are enough. It counts failures where they are rarer."""
    probs = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    d, values = third_order(Binomial(n, probs)), torch.arange(n + 1.0).double()
    share = d.log_prob(values).exp()
    found = weights_of(d, values, probs)
    for power in (1, 2, 3):
        exact = torch.autograd.grad((share * values**power).sum(), probs, retain_graph=True)[0]
        mean = (share * found * power * values ** (power - 1)).sum()
        torch.testing.assert_close(mean.detach(), exact, rtol=1e-10, atol=1e-10)


def test_a_single_trial_has_second_order():
    """No weights of a bit are unbiased for z^2 and z^3: they ask for w(1) p = p'/2 and p'/3."""
    probs = torch.tensor([0.3, 0.3, 0.3], requires_grad=True)
    trials, values = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 1.0])
    plain = Binomial(trials, probs)
    pairs = [
        gradients(d._attached(values).sum(), {"p": probs})[0] for d in (plain, third_order(plain))
    ]
    assert torch.equal(pairs[0][:2], pairs[1][:2])
    assert pairs[0][2] != pairs[1][2]


@pytest.mark.parametrize("name", ["BetaBinomial", "GammaPoisson"])
def test_the_mean_gradient_of_compounds_is_exact_for_a_cubic_loss(name):
    """With the pathwise derivatives of torch. That of second order is not."""
    leaves, n = parameters_of(name), 400_000
    values = support_of(name)
    probs = make_count(name, leaves).log_prob(values).exp()
    exact = gradients((probs * values**3).sum(), leaves)
    many = {key: leaf.detach().expand(n).clone().requires_grad_() for key, leaf in leaves.items()}
    found = gradients((third_order_count(name, many).rsample() ** 3).sum(), many)
    for one, other in zip(found, exact, strict=True):
        assert_same_mean(one, other)


@pytest.mark.parametrize(("name", "given"), [("GammaPoisson", Poisson), ("BetaBinomial", Binomial)])
def test_compounds_have_the_third_order_of_their_count(name, given, monkeypatch):
    seen = []
    attach = given._attached
    monkeypatch.setattr(given, "_attached", lambda d, v: seen.append(d.estimator) or attach(d, v))
    third_order_count(name).rsample()
    assert seen == [estimators.third_order]


def test_small_concentrations_have_second_order():
    a = torch.full((50_000, 2), 0.003, dtype=torch.float64, requires_grad=True)
    found = []
    for d in (BetaBinomial(a[:, 0], a[:, 1], 5), third_order(BetaBinomial(a[:, 0], a[:, 1], 5))):
        pyro.set_rng_seed(0)
        found.append(torch.autograd.grad(d.rsample().sum(), a)[0])
    assert torch.equal(*found)
    assert found[0].any()


# Edges and precision.


@pytest.mark.parametrize("dtype", WIDE + HALF)
@pytest.mark.parametrize("case", AT_EDGES)
def test_gradients_are_finite_at_the_edges(case, dtype):
    d, leaves = at_the_edge(case, dtype)
    sample = third_order(d).rsample((20,))
    assert sample.isfinite().all()
    for gradient in gradients(sample.float().sum(0).mean(), leaves):
        assert gradient.isfinite().all()


def test_where_the_variance_is_0_it_is_second_order():
    zero = torch.tensor(0.0, requires_grad=True)
    for plain in (Poisson(zero), Binomial(5, zero), NegativeBinomial(5.0, zero)):
        found = [torch.autograd.grad(d.rsample(), zero)[0] for d in (plain, third_order(plain))]
        assert torch.equal(*found)
    one = torch.tensor(1.0, requires_grad=True)
    for plain in (Binomial(5, one), Geometric(one)):
        found = [torch.autograd.grad(d.rsample(), one)[0] for d in (plain, third_order(plain))]
        assert torch.equal(*found)


@pytest.mark.parametrize("rate", [1e-42, 1e-30, 1e-12, 1e12, 1e30])
def test_weights_of_extreme_rates(rate):
    """Of D = 0 it is 5/12 for small rates. Far from 0 the orders agree."""
    leaf = torch.tensor(rate, requires_grad=True)
    value = torch.tensor(0.0 if rate < 1 else rate)
    (found,) = torch.autograd.grad(third_order(Poisson(leaf))._attached(value), leaf)
    expected = (0.5 if rate < 1e-38 else 5 / 12) if rate < 1 else 1.0
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("logit", [-9.0, 9.0])
@pytest.mark.parametrize("value", [0.0, 1.0, 9.0, 10.0])
def test_rare_outcomes_in_float32(logit, value):
    """Near p = 1 the sum over D would cancel."""
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = torch.tensor(logit, dtype=dtype, requires_grad=True)
        d = third_order(Binomial(10, logits=leaf))
        found.append(weights_of(d, torch.tensor([value], dtype=dtype), leaf).double())
    torch.testing.assert_close(*found, rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", KINDS)
def test_half_types_are_computed_in_float32(name, dtype):
    leaves = parameters_of(name, (3,), dtype)
    wide = {key: leaf.detach().float().requires_grad_() for key, leaf in leaves.items()}
    found = []
    for given in (leaves, wide):
        pyro.set_rng_seed(1)
        sample = third_order_count(name, given).rsample((5,))
        assert sample.dtype is next(iter(given.values())).dtype
        found.append([each.float() for each in gradients(sample.float().sum(), given)])
    torch.testing.assert_close(*found, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_only_the_gradient_differs(name):
    leaves = parameters_of(name, (4,))
    plain, d = make_count(name, leaves), third_order_count(name, leaves)
    values = []
    for draw in (plain.rsample, d.rsample, d.sample):
        pyro.set_rng_seed(1)
        values.append(draw((6,)))
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert torch.equal(d.log_prob(values[0]), plain.log_prob(values[0]))
    assert torch.equal(d.mean, plain.mean)
    first, second = (gradients(each.sum(), leaves) for each in values[:2])
    assert all((a != b).all() for a, b in zip(first, second, strict=True))
    if name in ("Poisson", "Binomial probs"):
        assert torch.equal(kl_divergence(d, plain), kl_divergence(plain, plain))


# What keeps it.


@pytest.mark.parametrize("name", KINDS)
def test_copies_and_wrappers_keep_it(name):
    d = third_order_count(name, {k: v.detach() for k, v in parameters_of(name, (3,)).items()})
    assert d.estimator is estimators.third_order
    mask = torch.tensor([True, False, True])
    for form in (
        copy.copy,
        copy.deepcopy,
        lambda d: pickle.loads(pickle.dumps(d)),
        relax,
        third_order,
        lambda d: relax(d, estimator="second_order"),  # is relaxed already
        lambda d: d.expand((2, 3)),
        lambda d: d.expand((2, 3)).expand((4, 2, 3)),
        lambda d: d.to_event(1).base_dist,
        lambda d: d.mask(mask).base_dist,
        lambda d: ExpandedDistribution(d, (2, 3)).base_dist,
    ):
        other = form(d)
        assert type(other) is type(d)
        assert other.estimator is estimators.third_order
        assert "(estimator: third_order, " in repr(other)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_asked_for_by_relax(name):
    """Of Pyro's class, of ours, and inside wrappers. The distribution given is not changed."""
    plain, ours = make_count(name, parent=True), make_count(name)
    for d in (plain, ours, plain.expand((2,)).to_event(1), ours.expand((2,)).mask(True)):
        made = third_order(d)
        base = getattr(made, "base_dist", made)
        assert base.estimator is estimators.third_order
        assert relax(d, estimator=estimators.third_order).batch_shape == made.batch_shape
    assert ours.estimator is estimators.second_order
    assert "estimator" not in repr(ours)
    assert relax(ours, estimator="reinmax") is ours


def drawn_by_vmap(name, leaves):
    """Two draws of each distribution, one at a time."""
    keys = list(leaves)

    def function(*given):
        d = make_count(name, dict(zip(keys, given, strict=True)), validate_args=False)
        return third_order(d).rsample((2,))

    with pyro.validation_enabled(False):
        return torch.vmap(function, randomness="different")(*leaves.values())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", OF_THIRD_ORDER)
def test_vmap(name):
    leaves = parameters_of(name, (500,))
    sample = drawn_by_vmap(name, leaves)
    attached = third_order_count(name, leaves)._attached(sample.detach().T)
    found, expected = (gradients(each.sum(), leaves) for each in (sample, attached))
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["BetaBinomial", "GammaPoisson"])
def test_vmap_of_compounds(name):
    leaves = parameters_of(name, (3000,))
    sample = drawn_by_vmap(name, leaves)
    assert_same_mean(sample[:, 0].detach() - make_count(name, leaves).mean.detach(), 0.0)
    assert all(gradient.isfinite().all() for gradient in gradients(sample.sum(), leaves))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile itself
@pytest.mark.slow
@pytest.mark.parametrize("name", ["Poisson", "NegativeBinomial probs"])
def test_compile(name):
    leaves = parameters_of(name, (50,), torch.float32)
    keys = list(leaves)

    def function(*given):
        d = make_count(name, dict(zip(keys, given, strict=True)), validate_args=False)
        return d.with_estimator(estimators.third_order).rsample()

    torch.compiler.reset()
    sample = torch.compile(function, backend="aot_eager")(*leaves.values())
    expected = third_order_count(name, leaves)._attached(sample.detach())
    torch.testing.assert_close(gradients(sample.sum(), leaves), gradients(expected.sum(), leaves))


# Errors.


WITHOUT = {
    "Multinomial": lambda: dist.Multinomial(3, torch.ones(2)),
    "DirichletMultinomial": lambda: dist.DirichletMultinomial(torch.ones(2), 3),
    "ExtendedBinomial": lambda: dist.ExtendedBinomial(3, torch.tensor(0.5)),
    "ours": lambda: COUNTS["Multinomial probs"].cls(3, torch.ones(2)),
    "made by relax": lambda: relax(dist.ExtendedBinomial(3, torch.tensor(0.5))),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_other_counts_refuse_it(kind):
    with pytest.raises(
        ValueError, match=r'relax: `distribution` must be .* write estimator="second'
    ):
        third_order(WITHOUT[kind]())


CLASSES = {
    "BernoulliStraightThrough": lambda **keywords: BernoulliStraightThrough(
        probs=torch.tensor(0.5), **keywords
    ),
    "CategoricalStraightThrough": lambda **keywords: CategoricalStraightThrough(
        logits=torch.zeros(3), **keywords
    ),
    "SubsetStraightThrough": lambda **keywords: Subset(None, 2, torch.ones(3), **keywords),
    "PlackettLuceStraightThrough": lambda **keywords: PlackettLuce(
        None, 2, torch.ones(3), **keywords
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_are_no_counts_refuse_it(name):
    words = f'{name}: `estimator` must not be third_order.* write estimator="second_order"'
    with pytest.raises(ValueError, match=words):
        CLASSES[name](estimator="third_order")


@pytest.mark.parametrize(
    "distribution", [dist.Bernoulli(0.5), dist.Categorical(torch.ones(3)).expand((2,)).to_event(1)]
)
def test_relax_refuses_it_for_what_is_no_count(distribution):
    with pytest.raises(ValueError, match="`estimator` must not be third_order"):
        third_order(distribution)


def test_it_has_no_temperature_and_is_no_function_of_a_link():
    assert "third_order" in estimators.NAMES
    assert not estimators.takes_temperature(estimators.third_order)
    with pytest.raises(ValueError, match="`temperature` must be None for estimator=third_order"):
        BernoulliStraightThrough(0.5, torch.tensor(0.5), estimator="third_order")
    with pytest.raises(ValueError, match="third_order: expected a count"):
        estimators.third_order(None, None, None, None, None)
    assert GammaPoisson(2.0, 1.0).has_third_order
