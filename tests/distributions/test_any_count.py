# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""`relax` of discrete distributions with a mean and a variance: plain, of Pyro, of a user."""

import copy
import pickle
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import constraints, kl_divergence

from pyro_gumbel import (
    BinomialStraightThrough,
    PoissonStraightThrough,
    SelectedComponent,
    gapped,
    relax,
)
from pyro_gumbel.distributions.counts import CountStraightThrough
from tests.common import assert_same_mean
from tests.counts import COUNTS, ONE_EACH, make_count, parameters_of

PROBS = torch.tensor([0.2, 0.6])


class Busy(dist.Poisson):
    """A user's subclass of a class that has a named counterpart."""

    def log_prob(self, value):
        return super().log_prob(value) - 0.0


class Die(torch.distributions.Distribution):
    """A user's class of plain torch: 0, 1 or 3 with the weights 1, rate and rate^2."""

    arg_constraints: ClassVar = {"rate": constraints.positive}
    support = constraints.nonnegative_integer
    faces = torch.tensor([0.0, 1.0, 3.0])

    def __init__(self, rate, validate_args=None):
        self.rate = rate
        super().__init__(rate.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(Die, _instance)
        new.rate = self.rate.expand(batch_shape)
        super(Die, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def probs(self):
        return torch.stack([self.rate**k for k in range(3)], -1).log().softmax(-1)

    @property
    def mean(self):
        return (self.probs * self.faces).sum(-1)

    @property
    def variance(self):
        return (self.probs * self.faces**2).sum(-1) - self.mean**2

    def sample(self, sample_shape=()):
        with torch.no_grad():
            index = torch.distributions.Categorical(self.probs).sample(sample_shape)
            return self.faces[index]

    def log_prob(self, value):
        equal = (value.unsqueeze(-1) == self.faces).to(self.probs.dtype)
        return (equal * self.probs.log()).sum(-1)


class PairOfBits(dist.TorchDistribution):
    """A user's vector: two equal bits."""

    arg_constraints: ClassVar = {"probs": constraints.unit_interval}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, probs, validate_args=None):
        self.probs = probs
        super().__init__(probs.shape, (2,), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.probs.expand(batch_shape), self._validate_args)

    @property
    def mean(self):
        return self.probs.unsqueeze(-1).expand(*self.batch_shape, 2)

    def sample(self, sample_shape=()):
        bit = torch.bernoulli(self.probs.detach().expand(self._extended_shape(sample_shape)[:-1]))
        return torch.stack([bit, bit], -1)

    def log_prob(self, value):
        return torch.where(value[..., 0] > 0, self.probs.log(), torch.log1p(-self.probs))


class IntegerPoisson(dist.Poisson):
    def sample(self, sample_shape=()):
        return super().sample(sample_shape).long()


def mixture():
    return dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Poisson(torch.tensor([1.0, 5.0]))
    )


OTHERS = {
    "subclass": lambda: Busy(torch.tensor([1.0, 3.0])),
    "plain torch": lambda: Die(torch.tensor([0.5, 2.0])),
    "zero-inflated": lambda: dist.ZeroInflatedPoisson(
        torch.tensor([1.0, 3.0]), gate_logits=torch.tensor(0.3)
    ),
    "zero-inflated negative binomial": lambda: dist.ZeroInflatedNegativeBinomial(
        torch.tensor([1.0, 3.0]), probs=PROBS, gate=torch.tensor(0.3)
    ),
    "zero-inflated geometric": lambda: dist.ZeroInflatedDistribution(
        dist.Geometric(PROBS), gate=torch.tensor(0.3)
    ),
    "extended binomial": lambda: dist.ExtendedBinomial(torch.tensor([5.0, 3.0]), PROBS),
    "extended beta-binomial": lambda: dist.ExtendedBetaBinomial(
        PROBS, PROBS, torch.tensor([5.0, 3.0])
    ),
    "mixture": mixture,
    "masked mixture": lambda: dist.MaskedMixture(
        torch.tensor([True, False]), dist.Poisson(PROBS), dist.Geometric(PROBS)
    ),
    "vector": lambda: PairOfBits(PROBS),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_discrete_distribution(name):
    plain = OTHERS[name]()
    state = dict(vars(plain))
    d = relax(plain)
    assert vars(plain) == state  # reading the moments has left nothing behind
    assert isinstance(d, type(plain))
    assert isinstance(d, TorchDistributionMixin)
    assert type(d).__name__ == f"{type(plain).__name__}StraightThrough"
    assert type(d) is type(relax(OTHERS[name]()))
    assert type(d).has_rsample is True
    assert d.has_rsample
    pyro.set_rng_seed(1)
    expected = plain.sample((20,))
    for made in (d, copy.deepcopy(d), copy.copy(d), pickle.loads(pickle.dumps(d))):
        assert type(made) is type(d)
        pyro.set_rng_seed(1)
        value = made.rsample((20,))
        assert torch.equal(value, expected)
        torch.testing.assert_close(made.log_prob(value), plain.log_prob(value))
    if name != "mixture":  # its expand is that of any batch
        assert d.expand((4, 2)).to_event(1).rsample().shape == d.expand((4, 2)).shape()
    with pyro.poutine.trace() as trace:
        pyro.sample("z", d.to_event(len(d.batch_shape)))
    assert trace.trace.nodes["z"]["fn"].has_rsample
    assert relax(d) is relax(d, 0.5, hard=False) is d
    assert isinstance(d, CountStraightThrough)


def test_the_gradient_of_any_distribution_is_unbiased_for_a_quadratic_loss():
    rate = torch.full((100_000,), 0.8, dtype=torch.float64, requires_grad=True)
    sample = relax(Die(rate)).rsample()
    (found,) = torch.autograd.grad((sample**2 - 2 * sample).sum(), rate)
    one = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    d = Die(one)
    (expected,) = torch.autograd.grad(d.variance + d.mean**2 - 2 * d.mean, one)
    assert_same_mean(found, expected)

    probs = torch.full((100_000,), 0.3, dtype=torch.float64, requires_grad=True)
    sample = relax(PairOfBits(probs)).rsample()
    (found,) = torch.autograd.grad((sample[:, 0] * sample[:, 1]).sum(), probs)
    assert_same_mean(found, 1.0)


def test_a_sure_value_has_the_gradient_of_the_mean():
    rate = torch.tensor(0.0, requires_grad=True)
    sample = relax(Busy(rate)).rsample()
    assert sample == 0
    assert torch.autograd.grad(sample, rate)[0] == 1


class Coins(dist.Binomial):
    """A user's subclass that inherits the log_prob of Pyro."""


@pytest.mark.parametrize("cls", [Coins, dist.ExtendedBinomial])
def test_pyros_binomial_coefficient_has_its_gradient_in_the_value(cls):
    """Pyro computes it without a gradient."""
    value = torch.tensor([0.0, 2.0, 5.0], requires_grad=True)
    found, expected = (
        torch.autograd.grad(d.log_prob(value).sum(), value)[0]
        for d in (relax(cls(5, torch.tensor(0.3))), BinomialStraightThrough(5, torch.tensor(0.3)))
    )
    torch.testing.assert_close(found, expected)


MIXTURES = {
    "mixture": lambda d: dist.MixtureSameFamily(torch.distributions.Categorical(PROBS), d),
    "vectors": lambda d: dist.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(1)), d.expand((1, 2)).to_event(1)
    ),
    "zero-inflated": lambda d: dist.ZeroInflatedDistribution(d, gate=PROBS),
    "selected": lambda d: SelectedComponent(torch.tensor(0), d),
}


@pytest.mark.parametrize("mixed", MIXTURES)
@pytest.mark.parametrize("name", ["BetaBinomial", "Binomial probs"])
def test_so_has_that_of_the_parts_of_a_distribution(name, mixed):
    leaves = parameters_of(name, (2,))
    plain, own = (make_count(name, leaves, parent, validate_args=False) for parent in (True, False))
    value = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    made, expected = relax(MIXTURES[mixed](plain)), MIXTURES[mixed](own)
    gradients = [torch.autograd.grad(d.log_prob(value).sum(), value)[0] for d in (made, expected)]
    torch.testing.assert_close(*gradients)
    for copied in (made.expand((4, *made.batch_shape)), pickle.loads(pickle.dumps(made))):
        torch.manual_seed(0)
        sample = copied.rsample()
        assert sample.requires_grad
        torch.manual_seed(0)
        torch.testing.assert_close(copied.sample(), sample.detach())


def test_divergences_are_those_of_the_parent():
    q, p = Busy(torch.tensor(3.0)), Busy(torch.tensor(2.0))
    expected = kl_divergence(q, p)
    for pair in ((relax(q), relax(p)), (relax(q), p), (q, relax(p))):
        torch.testing.assert_close(kl_divergence(*pair), expected)


@pytest.mark.parametrize("name", ONE_EACH)
def test_exact_classes_become_the_named_ones(name):
    count = COUNTS[name]
    plain = make_count(name, parameters_of(name, (3,)), parent=True, validate_args=False)
    for form in (plain, plain.expand((2, 3))):
        d = relax(form)
        assert type(d) is count.cls
        assert d.batch_shape == form.batch_shape
        assert d._validate_args is False
        value = form.sample()
        torch.testing.assert_close(d.log_prob(value), form.log_prob(value))
    for key in count.parameters:
        assert key in vars(plain) or not hasattr(plain, f"_{key}")
    torch_class = getattr(torch.distributions, count.parent.__name__, None)
    if torch_class:
        d = relax(torch_class(**parameters_of(name), **count.constants))
        assert type(d) is count.cls
        assert d.log_prob(d.rsample()).requires_grad
        assert d.expand((2,)).to_event(1).has_rsample


def test_the_parameters_are_not_copied():
    rate = torch.tensor(3.0, requires_grad=True)
    plain = dist.Poisson(rate, is_sparse=True)
    assert relax(plain).rate is plain.rate
    assert relax(plain).is_sparse
    assert not relax(torch.distributions.Poisson(rate)).is_sparse
    assert relax(dist.Poisson(rate).has_rsample_(False)).has_rsample


def test_a_temperature_and_an_estimator_are_ignored():
    plain = dist.Poisson(3.0)
    for options in ({}, {"estimator": "gumbel_softmax"}, {"estimator": gapped()}):
        assert type(relax(plain, 0.5, **options)) is PoissonStraightThrough
    for each in (plain, relax(plain), Busy(torch.tensor(3.0))):
        with pytest.raises(ValueError, match="`estimator` must be one of"):
            relax(each, 0.5, estimator="gumbel")


def test_a_distribution_with_a_gradient_of_its_own_is_returned_as_it_is():
    class Rounded(dist.Poisson):
        has_rsample = True

        def rsample(self, sample_shape=()):
            return self.rate.expand(self._extended_shape(sample_shape)).round()

    d = Rounded(3.0)
    assert relax(d) is d


class NoMean(dist.Poisson):
    mean = dist.TorchDistribution.mean


class NoVariance(dist.Poisson):
    variance = dist.TorchDistribution.variance


class NaNMean(dist.Poisson):
    mean = property(lambda self: self.rate * torch.nan)


MISSING = {
    "mean not implemented": (lambda: NoMean(3.0), "NoMean, whose `mean` is not implemented"),
    "variance not implemented": (
        lambda: NoVariance(3.0),
        "NoVariance, whose `variance` is not implemented",
    ),
    "mean is NaN": (lambda: NaNMean(3.0), "NaNMean, whose `mean` is NaN"),
    "negative variance": (
        lambda: dist.ExtendedBinomial(torch.tensor(-2), torch.tensor(0.3)),
        "ExtendedBinomial, whose `variance` is negative",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_the_error_says_what_is_missing_and_why(case):
    constructor, text = MISSING[case]
    with pytest.raises(TypeError, match=text) as error:
        relax(constructor())
    assert "leave its site out" in str(error.value)


def test_integers_cannot_carry_a_gradient():
    d = relax(IntegerPoisson(3.0))
    with pytest.raises(TypeError, match=r"`sample` must return floats.*torch.int64"):
        d.rsample()


def test_a_continuous_distribution_is_no_count():
    with pytest.raises(TypeError, match="discrete distribution with a mean"):
        relax(dist.Normal(0.0, 1.0), 0.5)


@pytest.mark.parametrize("d", [dist.Poisson(3.0), Busy(3.0)], ids=["named", "other"])
def test_counts_have_no_relaxed_form(d):
    with pytest.raises(TypeError, match=r"`hard` must be True for counts.*relax\(distribution\)"):
        relax(d, 0.5, hard=False)
