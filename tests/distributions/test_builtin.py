# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What Pyro's built-in relaxed classes get wrong, and ours right.

Each statement is asserted of both. Of the built-in class it is expected to fail, strictly: when it
no longer fails, Pyro has been mended, and the mark can go.
"""

import copy
import math
import pickle
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import TransformedDistribution, kl_divergence

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
)
from tests.common import ALL, assert_counts, assert_same_mean, leaf_of, make


def both(ours, theirs, reason, raises=AssertionError):
    """Parametrise with our class and with the built-in one, for which the test must fail."""
    fails = pytest.mark.xfail(strict=True, raises=raises, reason=reason)
    return pytest.mark.parametrize(
        "cls", [pytest.param(ours, id="ours"), pytest.param(theirs, marks=fails, id="built-in")]
    )


def both_categorical(reason, **keywords):
    return both(RelaxedCategorical, dist.RelaxedOneHotCategorical, reason, **keywords)


def both_bernoulli(reason, **keywords):
    return both(RelaxedBernoulli, dist.RelaxedBernoulli, reason, **keywords)


def both_straight_through(reason, **keywords):
    theirs = dist.RelaxedOneHotCategoricalStraightThrough
    return both(CategoricalStraightThrough, theirs, reason, **keywords)


@pytest.mark.parametrize("temperature", [0.1, 0.05, 0.01])
@both_categorical("values that round to 0 have the logarithm -inf")
def test_log_prob_of_own_samples_is_finite(cls, temperature):
    """And so is its gradient: K = 10, logits 2 randn, float32."""
    logits = (2 * torch.randn(2000, 10)).requires_grad_()
    distribution = cls(torch.tensor(temperature), logits=logits, validate_args=False)
    log_prob = distribution.log_prob(distribution.rsample())
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("temperature", [0.1, 0.05, 0.01])
@both_categorical("values do not sum to 1 within the tolerance of the support")
def test_own_samples_pass_validation(cls, temperature):
    logits = 2 * torch.randn(20_000, 10)
    distribution = cls(torch.tensor(temperature), logits=logits)
    value = distribution.sample()
    assert distribution.support.check(value).all()
    assert distribution.log_prob(value).isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
@both_straight_through("log_prob is the density of a hidden relaxed value, see pyro #3127")
def test_a_straight_through_guide_reports_the_discrete_elbo(cls, temperature):
    """log p(z) - log q(z) against a discrete prior has the mean -KL."""
    prior = dist.OneHotCategorical(torch.tensor([0.7, 0.1, 0.1, 0.1]))
    logits = torch.tensor([0.5, -0.5, 0.0, 0.3]).expand(20_000, 4)
    exact = -kl_divergence(dist.OneHotCategorical(logits=logits[0]), prior)
    guide = cls(torch.tensor(temperature), logits=logits, validate_args=False)
    value = guide.rsample()
    assert_same_mean((value.detach() * prior.logits).sum(-1) - guide.log_prob(value), exact)


@both(
    partial(CategoricalStraightThrough, 0.5),
    dist.OneHotCategorical,
    "log_prob takes an argmax of the value",
)
def test_a_prior_passes_a_gradient_to_the_sample(cls):
    value = torch.tensor([0.0, 1.0, 0.0], requires_grad=True)
    probs = torch.tensor([0.7, 0.2, 0.1])
    log_prob = cls(probs).log_prob(value)
    assert log_prob.requires_grad
    (slope,) = torch.autograd.grad(log_prob, value)
    torch.testing.assert_close(slope, probs.log())


@pytest.mark.parametrize(
    "lose",
    [lambda v: v.clone(), lambda v: v[...], lambda v: v.detach(), lambda v: copy.deepcopy(v.data)],
)
@both_straight_through("the relaxed value behind a hard one is a Python attribute")
def test_a_hard_sample_survives_what_happens_to_tensors(cls, lose):
    distribution = cls(torch.tensor(0.1), logits=torch.randn(100, 5), validate_args=False)
    value = distribution.rsample()
    torch.testing.assert_close(distribution.log_prob(lose(value)), distribution.log_prob(value))


@both_straight_through("sample is that of the relaxed class")
def test_sample_of_a_straight_through_class_is_hard(cls):
    value = cls(torch.tensor(0.5), logits=torch.randn(100, 5)).sample()
    assert ((value == 0) | (value == 1)).all()


@both_categorical("a batch of temperatures is applied along the categories, see pytorch #37162")
def test_a_temperature_of_batch_shape_belongs_to_the_batch(cls):
    tau, logits = torch.tensor([0.1, 1.0, 10.0]), torch.randn(3, 3)
    found = []
    for temperature in (tau, tau[0]):
        torch.manual_seed(0)
        found.append(cls(temperature, logits=logits).sample()[0])
    torch.testing.assert_close(*found)


@both_categorical("log_prob needs a temperature that is a tensor", raises=TypeError)
def test_a_float_temperature_works(cls):
    value = torch.tensor([0.2, 0.3, 0.5])
    assert cls(0.5, logits=torch.randn(3)).log_prob(value).isfinite()


@both_categorical("temperatures are not validated", raises=pytest.fail.Exception)
def test_a_negative_temperature_is_refused(cls):
    with pytest.raises(ValueError, match="temperature"):
        cls(torch.tensor(-1.0), logits=torch.randn(3), validate_args=True)


@pytest.mark.parametrize("logit", [-20.0, 20.0])
@both_bernoulli("values are clamped, and pass no gradient where they are")
def test_the_gradient_of_a_large_logit_is_not_zero(cls, logit):
    x = torch.full((1000,), logit, requires_grad=True)
    (gradient,) = torch.autograd.grad(cls(torch.tensor(1.0), logits=x).rsample().sum(), x)
    assert (gradient > 0).all()


@both_bernoulli("values next to 0 and 1 have no logit")
def test_far_values_of_a_bernoulli_have_a_finite_log_prob_and_gradient(cls):
    value = torch.tensor([0.0, 1.0, 1e-38, 1 - 2**-24])
    logits = torch.tensor(1.0, requires_grad=True)
    log_prob = cls(torch.tensor(10.0), logits=logits, validate_args=False).log_prob(value)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), logits)[0].isfinite()


@pytest.mark.parametrize("parameter", ["logits", "probs"])
@both(
    CategoricalStraightThrough,
    dist.RelaxedOneHotCategorical,
    "the noise is drawn in bfloat16, which has too few values near 1",
)
def test_bfloat16_draws_rare_categories_as_often_as_it_should(cls, parameter):
    logits = torch.tensor([2.0, 1.0, 1.5, 0.0, -3.0, 0.5]).bfloat16()
    given = logits if parameter == "logits" else logits.float().softmax(-1).bfloat16()
    exact = given.double().softmax(-1) if parameter == "logits" else given.double()
    tau = torch.tensor(0.5, dtype=torch.bfloat16)
    value = cls(tau, **{parameter: given}, validate_args=False).sample((100_000,))
    assert_counts(value.argmax(-1).bincount(minlength=6), exact)


@both_bernoulli("saturated values are clamped, whose density is another")
def test_the_mean_log_density_of_a_bernoulli_at_low_temperature(cls):
    """E log q is 12.03 (logit 1, temperature 0.1); the built-in class reads 7.9, without a NaN."""
    distribution = cls(torch.tensor(0.1), logits=torch.tensor(1.0))
    found = distribution.log_prob(distribution.sample((100_000,))).mean().item()
    assert found == pytest.approx(12.03, rel=0.02)


@pytest.mark.parametrize(
    "exact",
    [
        lambda d: d.mean,
        lambda d: d.variance,
        lambda d: d.entropy(),
        lambda d: kl_divergence(d, d.expand([2])),
    ],
    ids=["mean", "variance", "entropy", "divergence"],
)
@both_categorical("not implemented", raises=NotImplementedError)
def test_relaxed_distributions_have_moments_and_a_divergence(cls, exact):
    distribution = cls(torch.tensor(0.5), logits=torch.tensor([0.3, -0.2, 1.0]))
    assert exact(distribution).isfinite().all()


@both(
    partial(CategoricalStraightThrough, 0.5),
    dist.OneHotCategorical,
    "torch multiplies the probability 0 with the logarithm -inf",
)
def test_probabilities_of_zero_pass_finite_gradients(cls):
    logits = torch.tensor([-math.inf, 0.0, 1.0], requires_grad=True)
    other = dist.OneHotCategorical(logits=torch.tensor([0.3, 0.3, 0.4]).log())
    distribution = cls(logits=logits)
    total = kl_divergence(distribution, other) + distribution.entropy()
    assert torch.autograd.grad(total, logits)[0].isfinite().all()


@both(
    partial(BernoulliStraightThrough, 0.5),
    dist.Bernoulli,
    "torch multiplies the probability 0 with the logarithm -inf",
)
def test_probabilities_of_zero_and_one_have_an_entropy(cls):
    sure = torch.tensor([-math.inf, math.inf])
    assert cls(logits=sure, validate_args=False).entropy().tolist() == [0.0, 0.0]


# The built-in classes as ancestors of ours.

BUILT_IN_OF = {
    RelaxedBernoulli: (torch.distributions.RelaxedBernoulli, dist.RelaxedBernoulli),
    RelaxedCategorical: (
        torch.distributions.RelaxedOneHotCategorical,
        dist.RelaxedOneHotCategorical,
    ),
}
KEPT = [
    lambda d: d,
    lambda d: d.expand((4, *d.batch_shape)),
    copy.copy,
    copy.deepcopy,
    lambda d: pickle.loads(pickle.dumps(d)),
]


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("cls", ALL)
def test_code_that_asks_for_the_built_in_classes_finds_ours(cls, keep):
    """Relaxed values alone; neither those in logit space nor straight-through ones."""
    d = keep(make(cls))
    for ours, built_in in BUILT_IN_OF.items():
        assert [isinstance(d, theirs) for theirs in built_in] == 2 * [cls is ours]
    assert isinstance(d, TransformedDistribution) == (cls in BUILT_IN_OF)


TEMPERATURES = torch.tensor([0.3, 1.0], dtype=torch.float64)
FORMS = {  # a temperature, and the batch shapes before and after an expansion
    "scalar": (0.4, (), ()),
    "batch": (0.4, (3, 2), (3, 2)),
    "temperatures": (TEMPERATURES, (3, 2), (3, 2)),
    "expanded": (0.4, (2,), (3, 2)),
}


def in_form(cls, form, given):
    """A distribution, and the leaf that it is made of."""
    temperature, batch_shape, expanded = FORMS[form]
    d = make(cls, temperature, batch_shape, 4, torch.float64, given)
    return d if batch_shape == expanded else d.expand(expanded), leaf_of(d)


@pytest.mark.parametrize("given", ["logits", "probs"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", BUILT_IN_OF)
def test_base_and_transforms_make_the_same_distribution(cls, form, given):
    """By torch's own formulas for transformed distributions, with all derivatives."""
    d, leaf = in_form(cls, form, given)
    torch.manual_seed(0)
    value = d.rsample((5,))
    torch.manual_seed(0)
    transformed = TransformedDistribution.rsample(d, (5,))
    torch.testing.assert_close(transformed, value)
    scores = d.log_prob(value.detach()), TransformedDistribution.log_prob(d, value.detach())
    torch.testing.assert_close(*scores)
    for pair in ((value.square(), transformed.square()), scores):
        torch.testing.assert_close(
            *(torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0] for y in pair)
        )
    assert d.base_dist.batch_shape == d.batch_shape
    assert d.base_dist.event_shape == d.event_shape
    for name in ("temperature", "probs", "logits"):
        torch.testing.assert_close(getattr(d.base_dist, name), getattr(d, name))


def test_quantiles_of_base_and_transforms():
    d, _ = in_form(RelaxedBernoulli, "temperatures", "logits")
    p = torch.linspace(0.05, 0.95, 7, dtype=torch.float64).reshape(-1, 1, 1)
    value = d.icdf(p)
    torch.testing.assert_close(TransformedDistribution.icdf(d, p), value)
    torch.testing.assert_close(TransformedDistribution.cdf(d, value), d.cdf(value))


@pytest.mark.parametrize("cls", BUILT_IN_OF)
def test_whether_there_is_an_rsample_is_ours_to_set(cls):
    """Pyro assigns it; of torch's transformed distributions it is a property of the base."""
    d = make(cls)
    assert cls.has_rsample is True
    assert not d.has_rsample_(False).has_rsample
    assert not d.base_dist.has_rsample
    assert not d.expand((4, 2)).has_rsample
    assert make(cls).has_rsample


@pytest.mark.parametrize("cls", BUILT_IN_OF)
def test_nothing_of_the_ancestors_is_left_that_needs_their_constructor(cls):
    """All that is public of them answers, or is not implemented."""
    d = make(cls, temperature=3.0)
    other = {"conjugate_update", "independent", "reshape", "rsample_n", "sample_n"}
    arguments = {
        "cdf": (d.sample(),),
        "enumerate_support": (),
        "entropy": (),
        "expand": ((3, 2),),
        "expand_by": ((3,),),
        "has_rsample_": (True,),
        "icdf": (torch.tensor([0.2, 0.3]),),
        "log_prob": (d.sample(),),
        "mask": (True,),
        "perplexity": (),
        "rsample": (),
        "sample": (),
        "score_parts": (d.sample(),),
        "shape": (),
        "to_event": (0,),
    }
    missing = set()
    for name in {name for theirs in BUILT_IN_OF[cls] for name in dir(theirs)} - other:
        try:
            found = getattr(d, name)
            if name in arguments:
                found(*arguments[name])
        except NotImplementedError:
            missing.add(name)
    expected = {"enumerate_support"} | ({"cdf", "icdf"} if cls is RelaxedCategorical else set())
    assert missing == expected
