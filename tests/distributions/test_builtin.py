# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Where Pyro's built-in relaxed classes fail, next to ours.

Each test shows the failure first, so that it tells when the host has mended it.
"""

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import TransformedDistribution, constraints, kl_divergence

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
)
from tests.common import ALL, assert_counts, make


def theirs_and_ours(temperature, logits):
    tau = torch.tensor(temperature)
    return (
        dist.RelaxedOneHotCategorical(tau, logits=logits, validate_args=False),
        RelaxedCategorical(tau, logits=logits, validate_args=True),
    )


@pytest.mark.parametrize("temperature", [0.1, 0.05, 0.01])
def test_log_prob_of_own_samples_is_finite(temperature):
    """And so is its gradient: K = 10, logits 2 randn, float32."""
    bad = []
    for law_of in (0, 1):
        logits = (2 * torch.randn(2000, 10)).requires_grad_()
        law = theirs_and_ours(temperature, logits)[law_of]
        log_prob = law.log_prob(law.rsample())
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        bad.append(((~log_prob.isfinite()).sum(), (~gradient.isfinite()).any(-1).sum()))
    assert min(bad[0]) > 20
    assert max(bad[1]) == 0


@pytest.mark.parametrize("temperature", [0.1, 0.05, 0.01])
def test_own_samples_pass_validation(temperature):
    logits = 2 * torch.randn(20_000, 10)
    theirs, ours = theirs_and_ours(temperature, logits)
    assert not constraints.simplex.check(theirs.sample()).all()
    value = ours.sample()
    assert ours.support.check(value).all()
    assert ours.log_prob(value).isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
def test_a_hard_guide_reports_the_discrete_elbo(temperature):
    """log p(z) - log q(z) against a discrete prior; its mean is -KL, not a soft density's."""
    prior = dist.OneHotCategorical(torch.tensor([0.7, 0.1, 0.1, 0.1]))
    logits = torch.tensor([0.5, -0.5, 0.0, 0.3]).expand(20_000, 4)
    exact = -kl_divergence(dist.OneHotCategorical(logits=logits[0]), prior).item()
    tau = torch.tensor(temperature)
    elbos = []
    for cls in (dist.RelaxedOneHotCategoricalStraightThrough, CategoricalStraightThrough):
        guide = cls(tau, logits=logits, validate_args=False)
        value = guide.rsample()
        log_prior = (value.detach() * prior.logits).sum(-1)
        elbos.append(log_prior - guide.log_prob(value))
    theirs = elbos[0][elbos[0].isfinite()].mean()
    assert abs(theirs - exact) > 0.5
    error = elbos[1].std() / math.sqrt(20_000)
    assert abs(elbos[1].mean() - exact) < 5 * error


def test_a_prior_passes_a_gradient_to_the_sample():
    value = torch.tensor([0.0, 1.0, 0.0], requires_grad=True)
    probs = torch.tensor([0.7, 0.2, 0.1])
    assert not dist.OneHotCategorical(probs).log_prob(value).requires_grad
    score = CategoricalStraightThrough(0.5, probs).log_prob(value)
    (slope,) = torch.autograd.grad(score, value)
    torch.testing.assert_close(slope, probs.log())


@pytest.mark.parametrize(
    "lose",
    [lambda v: v.clone(), lambda v: v[...], lambda v: v.detach(), lambda v: copy.deepcopy(v.data)],
)
def test_a_hard_sample_survives_what_happens_to_tensors(lose):
    logits = torch.randn(100, 5)
    tau = torch.tensor(0.1)
    theirs = dist.RelaxedOneHotCategoricalStraightThrough(tau, logits=logits, validate_args=False)
    assert not theirs.log_prob(lose(theirs.rsample())).isfinite().all()
    ours = CategoricalStraightThrough(tau, logits=logits)
    value = ours.rsample()
    torch.testing.assert_close(ours.log_prob(lose(value)), ours.log_prob(value))


def test_sample_of_a_straight_through_class_is_hard():
    tau, logits = torch.tensor(0.5), torch.randn(100, 5)
    soft = dist.RelaxedOneHotCategoricalStraightThrough(tau, logits=logits).sample()
    assert ((soft > 0) & (soft < 1)).any()
    hard = CategoricalStraightThrough(tau, logits=logits).sample()
    assert ((hard == 0) | (hard == 1)).all()


def test_a_temperature_of_batch_shape_belongs_to_the_batch():
    tau, logits = torch.tensor([0.1, 1.0, 10.0]), torch.randn(3, 3)
    theirs = dist.RelaxedOneHotCategorical(tau, logits=logits)
    torch.manual_seed(0)
    value = theirs.sample()
    torch.manual_seed(0)
    first = dist.RelaxedOneHotCategorical(tau[0], logits=logits).sample()[0]
    assert not torch.allclose(value[0], first)
    ours = RelaxedCategorical(tau, logits=logits)
    torch.manual_seed(0)
    value = ours.sample()
    torch.manual_seed(0)
    torch.testing.assert_close(value[0], RelaxedCategorical(tau[0], logits=logits).sample()[0])


def test_a_float_temperature_works_and_a_negative_one_does_not():
    logits = torch.randn(3)
    theirs = dist.RelaxedOneHotCategorical(0.5, logits=logits)
    with pytest.raises(TypeError):
        theirs.log_prob(torch.tensor([0.2, 0.3, 0.5]))
    dist.RelaxedOneHotCategorical(torch.tensor(-1.0), logits=logits, validate_args=True)
    RelaxedCategorical(0.5, logits=logits).log_prob(torch.tensor([0.2, 0.3, 0.5]))
    with pytest.raises(ValueError, match="temperature"):
        RelaxedCategorical(-1.0, logits=logits, validate_args=True)


@pytest.mark.parametrize("logit", [-20.0, 20.0])
def test_the_gradient_of_a_large_logit_is_not_zero(logit):
    gradients = []
    for cls in (dist.RelaxedBernoulli, RelaxedBernoulli):
        x = torch.full((1000,), logit, requires_grad=True)
        torch.autograd.grad(cls(torch.tensor(1.0), logits=x).rsample().sum(), x)
        gradients.append(
            torch.autograd.grad(cls(torch.tensor(1.0), logits=x).rsample().sum(), x)[0]
        )
    assert (gradients[0] == 0).all()
    assert (gradients[1] > 0).all()


def test_far_values_of_a_bit_have_a_finite_score_and_gradient():
    value = torch.tensor([0.0, 1.0, 1e-38, 1 - 2**-24])
    logits = torch.tensor(1.0, requires_grad=True)
    theirs = dist.RelaxedBernoulli(torch.tensor(10.0), logits=logits, validate_args=False)
    score = theirs.log_prob(value)
    assert not score.isfinite().all()
    assert not torch.autograd.grad(score.sum(), logits)[0].isfinite()
    ours = RelaxedBernoulli(10.0, logits=logits, validate_args=False).log_prob(value)
    assert ours.isfinite().all()
    assert torch.autograd.grad(ours.sum(), logits)[0].isfinite()


@pytest.mark.parametrize("parameter", ["logits", "probs"])
def test_bfloat16_draws_rare_categories_as_often_as_it_should(parameter):
    logits = torch.tensor([2.0, 1.0, 1.5, 0.0, -3.0, 0.5]).bfloat16()
    given = logits if parameter == "logits" else logits.float().softmax(-1).bfloat16()
    exact = given.double().softmax(-1) if parameter == "logits" else given.double()
    tau = torch.tensor(0.5, dtype=torch.bfloat16)
    theirs = dist.RelaxedOneHotCategorical(tau, **{parameter: given}, validate_args=False)
    winners = theirs.sample((100_000,)).argmax(-1).bincount(minlength=6)
    with pytest.raises(AssertionError):
        assert_counts(winners, exact)
    ours = CategoricalStraightThrough(tau, **{parameter: given})
    assert_counts(ours.sample((100_000,)).double().sum(0), exact)


def test_the_mean_log_density_of_a_bit_at_low_temperature():
    """E log q is 12.03 (logit 1, temperature 0.1); without a NaN in sight theirs reads 7.9."""
    tau, logits = torch.tensor(0.1), torch.tensor(1.0)
    means = []
    for cls in (dist.RelaxedBernoulli, RelaxedBernoulli):
        law = cls(tau, logits=logits)
        means.append(law.log_prob(law.sample((100_000,))).mean().item())
    assert abs(means[0] - 12.03) > 2
    assert means[1] == pytest.approx(12.03, rel=0.02)


def test_relaxed_laws_have_moments_and_a_divergence():
    theirs, ours = theirs_and_ours(0.5, torch.tensor([0.3, -0.2, 1.0]))
    for missing in (
        lambda d: d.mean,
        lambda d: d.variance,
        lambda d: d.entropy(),
        lambda d: kl_divergence(d, d.expand([2])),
    ):
        with pytest.raises(NotImplementedError):
            missing(theirs)
        assert missing(ours).isfinite().all()


def test_probabilities_of_zero_and_one_have_an_entropy_and_a_divergence():
    """torch's discrete classes, which Pyro's are, have NaN gradients or clamp."""
    logits = torch.tensor([-math.inf, 0.0, 1.0], requires_grad=True)
    other = torch.tensor([0.3, 0.3, 0.4]).log()
    plain = dist.OneHotCategorical(logits=logits)
    divergence = kl_divergence(plain, dist.OneHotCategorical(logits=other))
    assert torch.autograd.grad(divergence, logits)[0].isnan().any()
    ours = CategoricalStraightThrough(0.5, logits=logits)
    divergence = kl_divergence(ours, dist.OneHotCategorical(logits=other))
    assert torch.autograd.grad(divergence + ours.entropy(), logits)[0].isfinite().all()
    sure = torch.tensor([-math.inf, math.inf])
    assert dist.Bernoulli(logits=sure, validate_args=False).entropy().isnan().any()
    assert BernoulliStraightThrough(0.5, logits=sure).entropy().tolist() == [0.0, 0.0]


# The built-in classes as ancestors of ours.

BUILT_IN_OF = {
    RelaxedBernoulli: (torch.distributions.RelaxedBernoulli, dist.RelaxedBernoulli),
    RelaxedCategorical: (
        torch.distributions.RelaxedOneHotCategorical,
        dist.RelaxedOneHotCategorical,
    ),
}
KEPT = [
    lambda law: law,
    lambda law: law.expand((4, *law.batch_shape)),
    copy.copy,
    copy.deepcopy,
    lambda law: pickle.loads(pickle.dumps(law)),
]


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("cls", ALL)
def test_code_that_asks_for_the_built_in_classes_finds_ours(cls, keep):
    """Values and no coordinates, no hard values: those are bits and one-hot vectors."""
    law = keep(make(cls))
    for ours, built_in in BUILT_IN_OF.items():
        assert [isinstance(law, theirs) for theirs in built_in] == 2 * [cls is ours]
    assert isinstance(law, TransformedDistribution) == (cls in BUILT_IN_OF)


FORMS = {
    "scalar": lambda cls, given: make(cls, 0.4, (), 4, torch.float64, given),
    "batch": lambda cls, given: make(cls, 0.4, (3, 2), 4, torch.float64, given),
    "temperatures": lambda cls, given: make(
        cls, torch.tensor([0.3, 1.0], dtype=torch.float64), (3, 2), 4, torch.float64, given
    ),
    "expanded": lambda cls, given: make(cls, 0.4, (2,), 4, torch.float64, given).expand((3, 2)),
}


@pytest.mark.parametrize("given", ["logits", "probs"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", BUILT_IN_OF)
def test_base_and_transforms_make_the_same_law(cls, form, given):
    """By torch's own formulas for transformed distributions, with all derivatives."""
    law = FORMS[form](cls, given)
    torch.manual_seed(0)
    value = law.rsample((5,))
    torch.manual_seed(0)
    transformed = TransformedDistribution.rsample(law, (5,))
    torch.testing.assert_close(transformed, value)
    scores = law.log_prob(value.detach()), TransformedDistribution.log_prob(law, value.detach())
    torch.testing.assert_close(*scores)
    for pair in ((value.square(), transformed.square()), scores):
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), law._parameter)[0] for y in pair))
    assert law.base_dist.batch_shape == law.batch_shape
    assert law.base_dist.event_shape == law.event_shape
    for name in ("temperature", "probs", "logits"):
        torch.testing.assert_close(getattr(law.base_dist, name), getattr(law, name))


def test_quantiles_of_base_and_transforms():
    law = FORMS["temperatures"](RelaxedBernoulli, "logits")
    p = torch.linspace(0.05, 0.95, 7, dtype=torch.float64).reshape(-1, 1, 1)
    value = law.icdf(p)
    torch.testing.assert_close(TransformedDistribution.icdf(law, p), value)
    torch.testing.assert_close(TransformedDistribution.cdf(law, value), law.cdf(value))


@pytest.mark.parametrize("cls", BUILT_IN_OF)
def test_whether_there_is_an_rsample_is_ours_to_set(cls):
    """Pyro assigns it; of torch's transformed distributions it is a property of the base."""
    law = make(cls)
    assert cls.has_rsample is True
    assert not law.has_rsample_(False).has_rsample
    assert not law.base_dist.has_rsample
    assert not law.expand((4, 2)).has_rsample
    assert make(cls).has_rsample


@pytest.mark.parametrize("cls", BUILT_IN_OF)
def test_nothing_of_the_ancestors_is_left_that_needs_their_constructor(cls):
    """All that is public of them answers, or is not implemented."""
    law = make(cls, temperature=3.0)
    other = {"conjugate_update", "independent", "reshape", "rsample_n", "sample_n"}
    arguments = {
        "cdf": (law.sample(),),
        "enumerate_support": (),
        "entropy": (),
        "expand": ((3, 2),),
        "expand_by": ((3,),),
        "has_rsample_": (True,),
        "icdf": (torch.tensor([0.2, 0.3]),),
        "log_prob": (law.sample(),),
        "mask": (True,),
        "perplexity": (),
        "rsample": (),
        "sample": (),
        "score_parts": (law.sample(),),
        "shape": (),
        "to_event": (0,),
    }
    missing = set()
    for name in {name for theirs in BUILT_IN_OF[cls] for name in dir(theirs)} - other:
        try:
            found = getattr(law, name)
            if name in arguments:
                found(*arguments[name])
        except NotImplementedError:
            missing.add(name)
    expected = {"enumerate_support"} | ({"cdf", "icdf"} if cls is RelaxedCategorical else set())
    assert missing == expected
