# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""`relax`, from a discrete distribution to its counterpart, and `harden`, back for a value."""

from functools import partial
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    HardConcrete,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedSubset,
    Subset,
    gapped,
    harden,
    links,
    reinmax,
    relax,
    relaxed,
)
from tests.common import ALL, BERNOULLI, RELAXED_VALUES, STRAIGHT_THROUGH, make
from tests.families import FAMILIES, LOGITS, T, assert_same_distribution, counterpart

# relax.


@pytest.mark.parametrize("parameter", ["probs", "logits"])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_distribution_becomes_its_counterpart(family, hard, parameter):
    value = LOGITS.log_softmax(-1)
    given = {parameter: value if parameter == "logits" else value.exp()}
    discrete, expected = FAMILIES[family][0](**given), counterpart(family, hard, **given)
    assert_same_distribution(relax(discrete, T, hard=hard), expected)
    larger = (3, *discrete.batch_shape)
    assert_same_distribution(
        relax(discrete.expand(larger), T, hard=hard),
        counterpart(family, hard, **{parameter: given[parameter].expand(3, *LOGITS.shape)}),
    )


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_wrappers_are_kept(family, hard):
    discrete, expected = (
        FAMILIES[family][0](logits=LOGITS),
        counterpart(family, hard, logits=LOGITS),
    )
    if family == "categorical":
        expected = counterpart(family, hard, logits=LOGITS.log_softmax(-1))
    mask = torch.tensor([True, False]).reshape(2, *[1] * (len(discrete.batch_shape) - 1))
    for form in (
        lambda distribution: distribution.to_event(1),
        lambda distribution: distribution.mask(mask),
        lambda distribution: distribution.mask(mask).to_event(1),
        lambda distribution: distribution.to_event(1).mask(False),
        lambda distribution: distribution.expand((3, *distribution.batch_shape)).to_event(2),
    ):
        assert_same_distribution(relax(form(discrete), T, hard=hard), form(expected))
    wrapped = ExpandedDistribution(discrete, (3, *discrete.batch_shape))
    assert_same_distribution(
        relax(wrapped, T, hard=hard), expected.expand((3, *discrete.batch_shape))
    )


@pytest.mark.parametrize("cls", ALL)
def test_a_relaxed_distribution_is_returned_as_it_is(cls):
    distribution = make(cls, batch_shape=(2, 3))
    for form in (distribution, distribution.to_event(1), distribution.mask(True)):
        assert relax(form, 0.1, hard=cls not in STRAIGHT_THROUGH) is form


def test_what_was_given_is_kept_when_torch_has_derived_the_other():
    """torch clamps the logits that it derives: probabilities of 0 and 1 would become 6e-8."""
    probs = torch.tensor([0.0, 0.3, 1.0])
    for distribution in (dist.Bernoulli(probs), dist.OneHotCategorical(probs)):
        distribution.entropy()  # derives the logits
        for form in (distribution, distribution.expand((2, *distribution.batch_shape))):
            assert torch.equal(relax(form, T).probs, form.probs)
            assert relax(form, T).probs.eq(0).any()
    logits = torch.tensor([-40.0, 0.3, 40.0])
    distribution = dist.Bernoulli(logits=logits)
    _ = distribution.probs
    for form in (distribution, distribution.expand((2, 3))):
        assert torch.equal(relax(form, T).logits, logits.expand(form.batch_shape))


def test_validation_stays_as_the_distribution_has_it():
    for checks in (True, False):
        distribution = dist.Bernoulli(0.5, validate_args=checks)
        assert relax(distribution, T)._validate_args is checks
        assert relax(distribution.expand((3,)), T)._validate_args is checks


def test_a_temperature_has_the_batch_shape_of_the_distribution():
    distribution = dist.Bernoulli(logits=torch.zeros(2, 3)).to_event(1)
    temperature = torch.tensor([0.5, 1.0])
    for given in (temperature, lambda: temperature):
        base = relax(distribution, given).base_dist
        assert torch.equal(base.temperature.expand(2, 3), temperature[:, None].expand(2, 3))
    with pytest.raises(ValueError, match=r"to the batch shape \(2,\), got shape \(3,\)"):
        relax(distribution, torch.ones(3))
    gradient = torch.tensor(0.7, requires_grad=True)
    relax(distribution, gradient).rsample().sum().backward()
    assert gradient.grad != 0


def test_a_user_registers_a_distribution():
    class Coin(dist.TorchDistribution):
        support = dist.constraints.boolean
        arg_constraints: ClassVar = {}

        def __init__(self, probability):
            self.probability = probability
            super().__init__(probability.shape)

    @relax.register(Coin)
    def _(distribution, temperature, **options):
        return relax(dist.Bernoulli(distribution.probability), temperature, **options)

    distribution = Coin(torch.tensor([0.2, 0.8]))
    assert_same_distribution(
        relax(distribution.to_event(1), T),
        counterpart("bernoulli", True, probs=distribution.probability).to_event(1),
    )
    with poutine.trace() as trace, relaxed(temperature=T, hard=False):
        pyro.sample("z", distribution)
    assert_same_distribution(
        trace.trace.nodes["z"]["fn"],
        counterpart("bernoulli", False, probs=distribution.probability),
    )


def test_distributions_that_cannot_be_relaxed_say_what_to_write():
    with pytest.raises(TypeError, match=r"got Normal.*@relax.register\(Normal\)"):
        relax(dist.Normal(0.0, 1.0), T)
    with pytest.raises(TypeError, match="got int"):
        relax(3, T)
    for distribution in (
        dist.Bernoulli(0.5),
        relax(dist.Bernoulli(0.5), T),
        Subset(1, torch.ones(3)),
    ):
        with pytest.raises(ValueError, match="`estimator` must be one of"):
            relax(distribution, T, estimator="unknown")
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        relax(dist.Bernoulli(0.5), -1.0)


@pytest.mark.parametrize("estimator", ["reinmax", "gapped", reinmax, gapped(gap=2.0)])
def test_an_estimator_that_does_not_support_subsets(estimator):
    """It is refused when the distribution is made; in a model the error names the site."""
    subset = Subset(2, logits=torch.zeros(4))
    words = r"`estimator` must support subsets.*got (reinmax|gapped).*gumbel_softmax"
    for form in (subset, subset.expand((3,)), subset.expand((3,)).to_event(1), subset.mask(True)):
        with pytest.raises(ValueError, match=words):
            relax(form, T, estimator=estimator)

    def model():
        pyro.sample("bernoulli", dist.Bernoulli(0.5))
        pyro.sample("chosen", subset)

    with pytest.raises(ValueError, match=rf'pyro.sample\("chosen", ...\): .*{words}'):
        relaxed(model, T, estimator=estimator)()
    with pytest.raises(ValueError, match=rf'pyro.sample\("chosen", ...\): .*{words}'):
        AutoRelaxed(model, T, estimator=estimator)()
    relaxed(model, T, estimator=estimator, sites=["bernoulli"])()


def test_numbers_that_no_float_can_hold():
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        relax(dist.Bernoulli(0.5), 10**400)
    with pytest.raises(ValueError, match=r'pyro.sample\("z", ...\): .*`temperature` must be posi'):
        relaxed(lambda: pyro.sample("z", dist.Bernoulli(0.5)), 10**400)()


def test_temperatures_that_are_no_tensors_yet():
    """Integers and arrays, and a batch of them under `.to_event`."""
    distribution = dist.Bernoulli(logits=torch.zeros(2, 3)).to_event(1)
    for given in (torch.tensor([1, 2]), lambda: torch.tensor([1, 2])):
        found = relax(distribution, given).base_dist.temperature
        assert found.expand(2, 3).tolist() == [[1.0] * 3, [2.0] * 3]
    for given in (np.array(2), np.array(2.0), torch.tensor(2), np.int64(2)):
        assert relax(distribution, given).base_dist.temperature == 2


# harden.


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_hardening_finds_the_outcome_that_the_noise_chose(cls):
    distribution = make(cls, temperature=0.01, batch_shape=(2000,), k=4)
    value = distribution.rsample()  # of which many entries have saturated
    discrete = harden(value)
    link = {
        RelaxedBernoulli: links.interval,
        RelaxedSubset: links.Hypersimplex(2),
        HardConcrete: links.ClippedInterval(-0.1, 1.1),
    }
    v = distribution._to_unconstrained(value)
    if cls in BERNOULLI:
        assert torch.equal(discrete, (v >= 0).float())
    else:
        size = 2 if cls is RelaxedSubset else 1
        assert discrete.eq(1).sum(-1).eq(size).all()
        assert discrete.eq(0).sum(-1).eq(4 - size).all()
        least_chosen = torch.where(discrete == 1, v, torch.inf).amin(-1)
        assert (torch.where(discrete == 0, v, -torch.inf).amax(-1) <= least_chosen).all()
    warm = make(cls, temperature=0.7, batch_shape=(2000,), k=4).rsample()
    assert torch.equal(harden(warm), harden(warm.clone(), link.get(cls, links.simplex)))
    assert harden(discrete) is discrete


@pytest.mark.parametrize("cls", RELAXED_VALUES)
def test_hardening_passes_the_gradient_on(cls):
    value = make(cls, dtype=torch.float64).rsample()
    weights = torch.randn_like(value)
    (gradient,) = torch.autograd.grad((harden(value) * weights).sum(), value)
    assert torch.equal(gradient, weights)


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_hardening_leaves_a_discrete_value_as_it_is(cls):
    for value in (make(cls).rsample(), make(cls).sample()):
        assert harden(value) is value


def test_hardening_in_half_precision_and_of_ties():
    value = torch.tensor([0.25, 0.5, 0.25], dtype=torch.bfloat16)
    assert torch.equal(harden(value), torch.tensor([0.0, 1.0, 0.0], dtype=torch.bfloat16))
    assert harden(torch.tensor([0.5, 0.5])).tolist() == [1.0, 0.0]
    assert harden(torch.tensor([0.5, 0.4]), links.interval).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("link", [links.simplex, links.interval, links.Hypersimplex(1), None])
def test_hardening_refuses_what_is_not_finite(link, number):
    value = torch.tensor([[0.5, 0.5], [number, 0.0]])
    with pytest.raises(ValueError, match=r"harden: `value` must .*got e.g. (-?inf|nan).*; write"):
        harden(value, link)
    unread = torch.vmap(lambda family: harden(family, links.simplex))(value)
    assert unread[0].tolist() == [1, 0]


def test_hardening_asks_for_a_link_that_it_cannot_infer():
    remedy = r"harden\(value, links.interval\).*links.Hypersimplex\(size\)"
    for value in (torch.tensor([0.9, 0.8]), torch.tensor(0.4), torch.tensor([0.9, 0.8, 0.3])):
        with pytest.raises(ValueError, match=remedy):
            harden(value)
    with pytest.raises(TypeError, match=r"must be a tensor of floats, got .*int64"):
        harden(torch.tensor([1, 0]))
    with pytest.raises(TypeError, match="`link` must be a Link, got int"):
        harden(torch.tensor([0.9, 0.1]), 2)
    with pytest.raises(
        ValueError, match=r"3 or more categories.*Hypersimplex\(3\), got shape \(2,"
    ):
        harden(torch.tensor([0.9, 0.1]), links.Hypersimplex(3))
    with pytest.raises(ValueError, match=r"1 or more categories.*got shape \(\)"):
        harden(torch.tensor(0.9), links.simplex)


def test_hardening_under_vmap_and_compile():
    value = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.equal(torch.vmap(harden)(value), expected)
    assert torch.equal(torch.compile(harden, backend="eager", fullgraph=True)(value), expected)


def a_hardened_draw(probs):
    return harden(BernoulliStraightThrough(T, probs=probs).rsample())


def test_hardening_a_discrete_value_in_a_compiled_function():
    """There it cannot be read whether a value is discrete already."""
    compiled = torch.compile(a_hardened_draw, backend="eager", fullgraph=True)
    assert compiled(torch.tensor([1.0, 1.0, 0.0])).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler reads
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_a_compiled_function_hardens_a_discrete_value_from_outside(cls):
    value = make(cls, batch_shape=(6,)).rsample()
    assert torch.equal(torch.compile(harden, backend="eager")(value), value)


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
@pytest.mark.parametrize(
    "transform", [torch.vmap, partial(torch.compile, backend="eager", fullgraph=True)]
)
def test_hardening_a_discrete_value_from_outside_without_a_mark(transform, cls):
    value = make(cls, batch_shape=(6, 5)).sample() * 1
    assert torch.equal(transform(harden)(value), value)


def test_hardening_a_discrete_value_under_vmap():
    def sum_and_draw(probs):
        draw = a_hardened_draw(probs)
        return draw.sum(), draw

    gradient = torch.func.grad(sum_and_draw, has_aux=True)
    _, draws = torch.vmap(gradient, randomness="different")(torch.ones(2, 3))
    assert draws.tolist() == [[1.0, 1.0, 1.0]] * 2


@pytest.mark.parametrize("cls", [RelaxedBernoulli, RelaxedCategorical])
def test_hardening_uses_the_cached_logits_of_a_half_type(cls):
    """It finds the outcome that the noise chose, also where two rounded entries are equal."""
    distribution = make(cls, temperature=50.0, batch_shape=(2000,), k=2, dtype=torch.bfloat16)
    value = distribution.rsample()
    chosen = distribution.link.hard(distribution._to_unconstrained(value)).to(value.dtype)
    assert torch.equal(harden(value), chosen)
    assert not torch.equal(harden(value.clone(), distribution.link), chosen)
