# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Every class by every method: each gives a number, or says why it has none and what to write."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    HardConcrete,
    LogitHardConcrete,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    Subset,
    SubsetStraightThrough,
)
from tests.common import ALL, BERNOULLI, DISCRETE, build, param_shape
from tests.counts import ONE_EACH, make_count

EVERY = [*ALL, *DISCRETE]


def two_draws(d):
    with pytest.deprecated_call():
        return d.sample_n(2)


# What gives numbers, of all that a distribution of torch and of Pyro has.
NUMBERS = {
    "__call__": lambda d: d(),
    "cdf": lambda d: d.cdf(d.sample()),
    "conjugate_update": lambda d: d.conjugate_update(d)[1],
    "entropy": lambda d: d.entropy(),
    "enumerate_support": lambda d: d.enumerate_support(),
    "icdf": lambda d: d.icdf(torch.full(d.batch_shape, 0.3)),
    "log_prob": lambda d: d.log_prob(d.sample()),
    "mean": lambda d: d.mean,
    "mode": lambda d: d.mode,
    "perplexity": lambda d: d.perplexity(),
    "rsample": lambda d: d.rsample(),
    "sample": lambda d: d.sample(),
    "sample_n": lambda d: two_draws(d),
    "score_parts": lambda d: d.score_parts(d.sample()).log_prob,
    "stddev": lambda d: d.stddev,
    "variance": lambda d: d.variance,
}
# The rest, which is of shapes and forms.
FORMS = {
    "arg_constraints", "batch_shape", "event_dim", "event_shape", "expand", "expand_by",
    "has_enumerate_support", "has_rsample", "has_rsample_", "independent", "infer_shapes", "mask",
    "reshape", "rv", "set_default_validate_args", "shape", "support", "to_event",
}  # fmt: skip

OF_A_VECTOR = {"cdf", "icdf"}
OF_CONTINUOUS = {"enumerate_support"}
MOMENTS = {"mean", "variance", "stddev", "mode", "entropy", "perplexity"}
ABSENT = {
    RelaxedBernoulli: OF_CONTINUOUS,
    LogitRelaxedBernoulli: OF_CONTINUOUS,
    BernoulliStraightThrough: OF_A_VECTOR,
    HardConcrete: OF_CONTINUOUS,
    LogitHardConcrete: OF_CONTINUOUS,
    RelaxedCategorical: OF_CONTINUOUS | OF_A_VECTOR,
    ExpRelaxedCategorical: OF_CONTINUOUS | OF_A_VECTOR | {"variance", "stddev"},
    CategoricalStraightThrough: OF_A_VECTOR,
    RelaxedSubset: OF_CONTINUOUS | OF_A_VECTOR | MOMENTS,
    LogitRelaxedSubset: OF_CONTINUOUS | OF_A_VECTOR | MOMENTS,
    RelaxedPlackettLuce: OF_CONTINUOUS | OF_A_VECTOR | MOMENTS,
    SubsetStraightThrough: OF_A_VECTOR,
    PlackettLuceStraightThrough: OF_A_VECTOR,
    Subset: OF_A_VECTOR | {"rsample"},
    PlackettLuce: OF_A_VECTOR | {"rsample"},
}


def test_the_table_has_the_whole_interface():
    interface = {name for base in (dist.TorchDistribution, dist.Distribution) for name in dir(base)}
    public = {name for name in interface if not name.startswith("_")}
    assert public <= NUMBERS.keys() | FORMS
    assert ABSENT.keys() == set(EVERY)


def one_of(cls):
    """One at a temperature above k - 1, where a relaxed one has a mode."""
    return build(cls, 2.5, logits=torch.randn(4, *param_shape(cls)))


def assert_says_why(error, cls):
    """It names the class and what is missing, and a line to write."""
    assert re.match(rf"{cls.__name__}: `\w+` \w+.*; (write|use) .*", str(error))


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("cls", EVERY)
def test_a_number_or_the_reason_why_not(cls, name):
    d = one_of(cls)
    if name in ABSENT[cls] | {"conjugate_update"}:
        with pytest.raises(NotImplementedError) as caught:
            NUMBERS[name](d)
        assert_says_why(caught.value, cls)
    else:
        assert NUMBERS[name](d).isfinite().all()


WITHOUT_END = {"enumerate_support"}
ABSENT_OF_COUNTS = {
    "Poisson": {"entropy", "perplexity"} | WITHOUT_END,
    "Binomial logits": set(),
    "NegativeBinomial logits": {"entropy", "perplexity"} | WITHOUT_END,
    "Geometric logits": WITHOUT_END,
    "Multinomial logits": {"mode", "enumerate_support"},
    "BetaBinomial": {"entropy", "perplexity", "mode"},
    "GammaPoisson": {"entropy", "perplexity", "mode"} | WITHOUT_END,
    "DirichletMultinomial": {"entropy", "perplexity", "mode", "enumerate_support"},
}


@pytest.mark.parametrize("name", sorted(NUMBERS.keys() - {"conjugate_update"}))
@pytest.mark.parametrize("count", ONE_EACH)
def test_a_number_of_a_count_or_the_reason_why_not(count, name):
    d = make_count(count)
    if name in ABSENT_OF_COUNTS[count] | OF_A_VECTOR:
        with pytest.raises(NotImplementedError) as caught:
            NUMBERS[name](d)
        assert_says_why(caught.value, type(d))
    else:
        assert NUMBERS[name](d).isfinite().all()


@pytest.mark.parametrize(
    "cls", [ExpRelaxedCategorical, RelaxedSubset, LogitRelaxedSubset, RelaxedPlackettLuce]
)
def test_covariances_that_are_not_known(cls):
    with pytest.raises(NotImplementedError) as caught:
        _ = one_of(cls).covariance_matrix
    assert_says_why(caught.value, cls)


@pytest.mark.parametrize("name", ["mean", "variance"])
@pytest.mark.parametrize("cls", [RelaxedSubset, LogitRelaxedSubset, RelaxedPlackettLuce])
def test_the_reason_goes_through_the_forms_around_a_distribution(cls, name):
    d = one_of(cls)
    for form in (d.to_event(1), d.expand((2, 4)), d.mask(True)):
        with pytest.raises(NotImplementedError) as caught:
            getattr(form, name)
        assert_says_why(caught.value, cls)


def test_a_subclass_may_have_what_its_parent_has_not():
    class WithMean(RelaxedSubset):
        @property
        def mean(self):
            return self.probs * self.size

    d = WithMean(0.5, 2, logits=torch.zeros(4))
    assert d.mean.tolist() == [0.5] * 4
    with pytest.raises(NotImplementedError, match="WithMean: `variance` has no"):
        _ = d.variance


# A guide of Pyro that asks for the mean.

WITH_MEAN = [RelaxedBernoulli, LogitRelaxedBernoulli, RelaxedCategorical, ExpRelaxedCategorical]
WITHOUT_MEAN = [RelaxedSubset, LogitRelaxedSubset, RelaxedPlackettLuce]


def hierarchy(cls):
    """A site whose logits depend on another."""

    def model():
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        logits = shift * torch.linspace(-1.0, 1.5, 3)
        if not param_shape(cls):
            logits = logits[0]
        return pyro.sample("z", build(cls, 0.7, logits=logits))

    return model


@pytest.mark.parametrize("cls", WITH_MEAN)
def test_a_hierarchical_guide_starts_at_the_mean_of_the_prior(cls):
    """And follows it: with weight 1 and no shift of its own its median is where the mean is."""
    guide = AutoHierarchicalNormalMessenger(hierarchy(cls))
    elbo = pyro.infer.Trace_ELBO()
    loss = elbo.differentiable_loss(hierarchy(cls), guide)
    assert loss.isfinite()
    loss.backward()
    assert guide.weights.z_unconstrained.grad.isfinite().all()
    with torch.no_grad():
        guide.locs.z.zero_()
        guide.locs.shift_unconstrained.fill_(0.4)
    median = guide.median()
    logits = median["shift"] * torch.linspace(-1.0, 1.5, 3)
    logits = logits if param_shape(cls) else logits[0]
    many = build(cls, 0.7, logits=logits.double().expand(200_000, *param_shape(cls))).sample()
    mean = many.mean(0)
    if cls is ExpRelaxedCategorical:
        mean = mean.log_softmax(-1)
    torch.testing.assert_close(median["z"].double(), mean, atol=0.02, rtol=0)


@pytest.mark.parametrize("cls", WITHOUT_MEAN)
def test_a_hierarchical_guide_is_told_why_there_is_no_mean(cls):
    with pytest.raises(NotImplementedError) as caught:
        AutoHierarchicalNormalMessenger(hierarchy(cls))()
    assert_says_why(caught.value, cls)


@pytest.mark.parametrize("cls", BERNOULLI)
def test_numbers_have_no_covariance_matrix(cls):
    assert not hasattr(one_of(cls), "covariance_matrix")
