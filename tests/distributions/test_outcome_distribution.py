# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Distributions made of categorical draws: the gradient of each log_prob is exact on average."""

import copy
import pickle
import threading
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import AffineTransform, ExpTransform, SigmoidTransform
from torch.nn import functional as F

from pyro_gumbel import relax, relaxed
from pyro_gumbel.distributions.outcome_distribution import (
    OutcomeDistribution,
    outcome_distributions,
)
from pyro_gumbel.tensors.deferred import DeferredTensor
from pyro_gumbel.tensors.index_tensor import OutcomeTensor
from tests.common import seeded
from tests.states import drawn, relative_error

pytestmark = pytest.mark.usefixtures("float64")

SITES, K = 2, 3
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return seeded(torch.randn, GENERATOR, shape, dtype=torch.float64)


def uniform(*shape):
    return seeded(torch.rand, GENERATOR, shape, dtype=torch.float64)


# Tables: of any number, of a positive one, of a probability; of vectors of three.
L, S, Q = normal(K), uniform(K) + 0.4, uniform(K) * 0.8 + 0.1
V, W = normal(K, 3), uniform(K, 3) + 0.3
TRIL = normal(K, 3, 3).tril(-1) + torch.eye(3, dtype=torch.float64) * (uniform(K, 3, 1) + 0.5)
COV = TRIL @ TRIL.mT

# Values.
X, POSITIVE, UNIT, VECTORS = normal(SITES), uniform(SITES) + 0.2, uniform(SITES), normal(SITES, 3)
COUNTS, BITS = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
SIMPLEX = uniform(SITES, 3).softmax(-1)
ONE_HOT, M_HOT = torch.eye(3)[:2], torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
CORRELATIONS = torch.tensor([[[1.0, 0.3], [0.3, 1.0]], [[1.0, -0.2], [-0.2, 1.0]]])
CHOLESKY = torch.linalg.cholesky(CORRELATIONS.double())


def transformed(base, *transforms):
    return dist.TransformedDistribution(base, list(transforms))


def mixture(weights, components):
    return dist.MixtureSameFamily(weights, components)


class OfPairs(dist.Normal):
    """With a parameter that has no constraint."""

    def __init__(self, pairs, validate_args=None):
        super().__init__(pairs[..., 0], pairs[..., 1].exp(), validate_args=validate_args)


class OfAny(dist.TorchDistribution):
    """With any arguments."""

    arg_constraints: ClassVar[dict] = {}
    support = dist.constraints.real

    def __init__(self, *numbers, **others):
        self.loc, self.scale = torch.broadcast_tensors(numbers[0], others["scale"])
        super().__init__(self.loc.shape, validate_args=False)

    def log_prob(self, value):
        return -(((value - self.loc) / self.scale) ** 2)

    def sample(self, sample_shape=()):
        return self.loc.expand(*sample_shape, *self.loc.shape)

    def expand(self, batch_shape, _instance=None):
        return OfAny(self.loc.expand(batch_shape), scale=self.scale.expand(batch_shape))


DISTRIBUTIONS = {
    "normal": (lambda z: dist.Normal(L[z], S[z]), X),
    "normal, its loc": (lambda z: dist.Normal(L[z], 1.0), X),
    "normal, its scale": (lambda z: dist.Normal(0.0, S[z]), X),
    "normal, by name": (lambda z: dist.Normal(scale=S[z], loc=L[z]), X),
    "normal, computed": (lambda z: dist.Normal(L[z].exp(), F.softplus(L)[z]), X),
    "log-normal": (lambda z: dist.LogNormal(L[z], S[z]), POSITIVE),
    "student": (lambda z: dist.StudentT(S[z] + 2, L[z], S[z]), X),
    "cauchy": (lambda z: dist.Cauchy(L[z], S[z]), X),
    "half-cauchy": (lambda z: dist.HalfCauchy(S[z]), POSITIVE),
    "laplace": (lambda z: dist.Laplace(L[z], S[z]), X),
    "asymmetric laplace": (lambda z: dist.AsymmetricLaplace(L[z], S[z], S[z] + 1), X),
    "soft laplace": (lambda z: dist.SoftLaplace(L[z], S[z]), X),
    "logistic": (lambda z: dist.Logistic(L[z], S[z]), X),
    "gumbel": (lambda z: dist.Gumbel(L[z], S[z]), X),
    "weibull": (lambda z: dist.Weibull(S[z], S[z] + 1), POSITIVE),
    "pareto": (lambda z: dist.Pareto(0.1 * S[z], S[z]), POSITIVE + 1),
    "gamma": (lambda z: dist.Gamma(S[z], S[z] + 1), POSITIVE),
    "inverse gamma": (lambda z: dist.InverseGamma(S[z], S[z] + 1), POSITIVE),
    "chi2": (lambda z: dist.Chi2(S[z]), POSITIVE),
    "beta": (lambda z: dist.Beta(S[z], S[z] + 1), UNIT),
    "kumaraswamy": (lambda z: dist.Kumaraswamy(S[z], S[z] + 1), UNIT),
    "exponential": (lambda z: dist.Exponential(S[z]), POSITIVE),
    "half-normal": (lambda z: dist.HalfNormal(S[z]), POSITIVE),
    "uniform": (lambda z: dist.Uniform(-S[z], S[z] + 1), 0.3 * UNIT),
    "von mises": (lambda z: dist.VonMises(L[z], S[z]), X),
    "poisson": (lambda z: dist.Poisson(S[z]), COUNTS),
    "binomial, by probs": (lambda z: dist.Binomial(5, probs=Q[z]), COUNTS),
    "binomial, by logits": (lambda z: dist.Binomial(5, logits=L[z]), COUNTS),
    "negative binomial, by probs": (lambda z: dist.NegativeBinomial(5.0, probs=Q[z]), COUNTS),
    "negative binomial, by logits": (lambda z: dist.NegativeBinomial(S[z], logits=L[z]), COUNTS),
    "geometric, by probs": (lambda z: dist.Geometric(Q[z]), COUNTS),
    "geometric, by logits": (lambda z: dist.Geometric(logits=L[z]), COUNTS),
    "bernoulli, by probs": (lambda z: dist.Bernoulli(Q[z]), BITS),
    "bernoulli, by logits": (lambda z: dist.Bernoulli(logits=L[z]), BITS),
    "continuous bernoulli": (lambda z: dist.ContinuousBernoulli(Q[z]), UNIT),
    "categorical, by probs": (lambda z: dist.Categorical(W[z]), COUNTS.long()),
    "categorical, by logits": (lambda z: dist.Categorical(logits=V[z]), COUNTS.long()),
    "categorical, by softmax": (lambda z: dist.Categorical(V[z].softmax(-1)), COUNTS.long()),
    "one-hot, by probs": (lambda z: dist.OneHotCategorical(W[z]), ONE_HOT),
    "one-hot, by logits": (lambda z: dist.OneHotCategorical(logits=V[z]), ONE_HOT),
    "multinomial, by probs": (lambda z: dist.Multinomial(3, W[z]), M_HOT),
    "multinomial, by logits": (lambda z: dist.Multinomial(3, logits=V[z]), M_HOT),
    "dirichlet": (lambda z: dist.Dirichlet(W[z]), SIMPLEX),
    "dirichlet-multinomial": (lambda z: dist.DirichletMultinomial(W[z], 3), M_HOT),
    "multivariate, by tril": (
        lambda z: dist.MultivariateNormal(V[z], scale_tril=TRIL[z]),
        VECTORS,
    ),
    "multivariate, by covariance": (lambda z: dist.MultivariateNormal(V[z], COV[z]), VECTORS),
    "multivariate, by precision": (
        lambda z: dist.MultivariateNormal(V[z], precision_matrix=COV[z]),
        VECTORS,
    ),
    "multivariate, its loc": (
        lambda z: dist.MultivariateNormal(V[z], scale_tril=torch.eye(3)),
        VECTORS,
    ),
    "low rank": (
        lambda z: dist.LowRankMultivariateNormal(V[z], TRIL[z][..., :1], W[z]),
        VECTORS,
    ),
    "mixture": (lambda z: mixture(dist.Categorical(W[z]), dist.Normal(V[z], W[z])), X),
    "mixture, its components": (
        lambda z: mixture(dist.Categorical(torch.ones(SITES, 3)), dist.Normal(V[z], W[z])),
        X,
    ),
    "mixture, its weights": (
        lambda z: mixture(dist.Categorical(W[z]), dist.Normal(V[:SITES], W[:SITES])),
        X,
    ),
    "mixture of vectors": (
        lambda z: mixture(
            dist.Categorical(W[z]),
            dist.Normal(V[z].unsqueeze(-1) + V, W[z].unsqueeze(-1)).to_event(1),
        ),
        VECTORS,
    ),
    "mixture, one number for all components": (
        lambda z: mixture(dist.Categorical(torch.ones(SITES, 3)), dist.Normal(L[z[0]], W[:SITES])),
        X,
    ),
    "mixture of vectors, one number for all": (
        lambda z: mixture(
            dist.Categorical(torch.ones(SITES, 3)),
            dist.Normal(L[z[0]], W.expand(SITES, 3, 3)).to_event(1),
        ),
        VECTORS,
    ),
    "exp of a normal": (lambda z: transformed(dist.Normal(L[z], S[z]), ExpTransform()), POSITIVE),
    "sigmoid of a normal": (
        lambda z: transformed(dist.Normal(L[z], 1.0), SigmoidTransform()),
        UNIT,
    ),
    "affine in the draw": (
        lambda z: transformed(dist.Normal(0.0, 1.0), AffineTransform(L[z], S[z])),
        X,
    ),
    "independent": (lambda z: dist.Normal(V[z], W[z]).to_event(1), VECTORS),
    "independent, by its class": (lambda z: dist.Independent(dist.Normal(V[z], W[z]), 1), VECTORS),
    "independent over the draws": (lambda z: dist.Normal(L[z], S[z]).to_event(1), X),
    "masked": (lambda z: dist.Normal(L[z], S[z]).mask(torch.tensor([True, False])), X),
    "masked by the draw": (lambda z: dist.Normal(L[z], S[z]).mask(z == 1), X),
    "masked by the draw, an event": (lambda z: dist.Normal(L[z], S[z]).mask(z == 1).to_event(1), X),
    "expanded": (lambda z: dist.Normal(L[z], S[z]).expand([2, SITES]), X),
    "expanded by": (lambda z: dist.Normal(L[z], S[z]).expand_by([2]), X),
    "pairs with a diagonal": (lambda z: dist.Normal(L[z[:, None]], S[z[None]]), X),
    "zero-inflated, by gate": (lambda z: dist.ZeroInflatedPoisson(S[z], gate=Q[z]), COUNTS),
    "zero-inflated, by logits": (
        lambda z: dist.ZeroInflatedPoisson(S[z], gate_logits=L[z]),
        torch.zeros(SITES),
    ),
    "zero-inflated": (
        lambda z: dist.ZeroInflatedDistribution(dist.Poisson(S[z]), gate=Q[z]),
        torch.zeros(SITES),
    ),
    "gamma-poisson": (lambda z: dist.GammaPoisson(S[z], S[z] + 1), COUNTS),
    "beta-binomial": (lambda z: dist.BetaBinomial(S[z], S[z] + 1, 5), COUNTS),
    "ordered logistic": (
        lambda z: dist.OrderedLogistic(L[z], torch.tensor([-1.0, 1.0])),
        COUNTS.long(),
    ),
    "lkj": (lambda z: dist.LKJCholesky(2, S[z]), CHOLESKY),
    "projected normal": (lambda z: dist.ProjectedNormal(V[z]), F.normalize(VECTORS, dim=-1)),
    "delta, its density": (lambda z: dist.Delta(torch.zeros(SITES), L[z]), torch.zeros(SITES)),
    "an event of several draws": (
        lambda z: dist.Dirichlet(S[z].expand(SITES, SITES)),
        uniform(SITES, SITES).softmax(-1),
    ),
    "a parameter without a constraint": (lambda z: OfPairs(V[z]), X),
    "any arguments": (lambda z: OfAny(L[z], 1.0, z, scale=S[z]), X),
    "any arguments, expanded": (lambda z: OfAny(L[z], scale=S[z]).expand([2, SITES]), X),
    "unit": (lambda z: dist.Unit(L[z] * S[z]), torch.zeros(SITES, 0)),
}


def log_prob(name, z):
    make, value = DISTRIBUTIONS[name]
    with outcome_distributions():
        distribution = make(z)
    return distribution.log_prob(value.to(X) if value.is_floating_point() else value).sum()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_mean_gradient_is_exact(name):
    logits = normal(SITES, K).requires_grad_()
    assert relative_error(lambda z: log_prob(name, z), logits) < 1e-10


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_value_is_that_of_plain_integers(name):
    state = torch.tensor([2, 0])
    value = drawn(state, normal(SITES, K).requires_grad_())
    found = log_prob(name, value)
    torch.testing.assert_close(found.detach(), log_prob(name, state), rtol=1e-12, atol=1e-12)
    assert type(found) in (torch.Tensor, DeferredTensor)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_shapes_and_support_are_those_of_plain_integers(name):
    make, _ = DISTRIBUTIONS[name]
    state = torch.tensor([2, 0])
    with outcome_distributions():
        found = make(drawn(state, normal(SITES, K).requires_grad_()))
    plain = make(state)
    assert (found.batch_shape, found.event_shape) == (plain.batch_shape, plain.event_shape)
    assert found.has_rsample == plain.has_rsample
    assert found.has_enumerate_support == plain.has_enumerate_support
    torch.manual_seed(0)
    draw = found.sample()
    torch.manual_seed(0)
    assert torch.equal(draw, plain.sample())


@pytest.mark.parametrize("validate_args", [True, None])
def test_an_illegal_parameter_of_another_category_does_not_raise(validate_args):
    scales = torch.tensor([1.0, 2.0, -1.0])
    value = drawn(torch.tensor([0, 1]), normal(SITES, K).requires_grad_())
    with outcome_distributions():
        distribution = dist.Normal(L[value], scales[value], validate_args=validate_args)
    assert isinstance(distribution, OutcomeDistribution)
    assert distribution.log_prob(X).isfinite().all()
    with outcome_distributions():
        distribution = dist.GammaPoisson(scales[value], 1.0)  # checks a distribution inside of it
    assert distribution.log_prob(COUNTS).isfinite().all()
    with pytest.raises(ValueError, match="scale"), outcome_distributions():
        dist.Normal(0.0, scales[drawn(torch.tensor([0, 2]), normal(SITES, K))])


def test_the_hook_is_removed():
    from pyro.distributions.distribution import COERCIONS

    before = list(COERCIONS)
    with pytest.raises(RuntimeError), outcome_distributions(), outcome_distributions():
        raise RuntimeError
    assert before == COERCIONS


class OneDimension(dist.Normal):
    """With parameters that may not have a dimension more."""

    def __init__(self, loc, validate_args=None):
        if loc.dim() > 1:
            raise RuntimeError("too many")
        super().__init__(loc, 1.0, validate_args=validate_args)


class OfAll(dist.Normal):
    """With one log_prob for all of a batch."""

    def log_prob(self, value):
        return super().log_prob(value).sum()


@pytest.mark.parametrize("make", [OneDimension, lambda loc: OfAll(loc, 1.0)])
def test_the_derivative_where_another_category_is_an_error(make):
    logits = normal(SITES, K).requires_grad_()
    with outcome_distributions():
        distribution = make(L[drawn(torch.tensor([2, 0]), logits)])
    with pytest.warns(UserWarning, match=r"expected a (OneDimension|OfAll).*outcomes=False") as all:
        found = distribution.log_prob(X)
    assert len(all) == 1
    assert torch.equal(found.detach(), make(L[torch.tensor([2, 0])]).log_prob(X))
    found.sum().backward()
    assert logits.grad.any()


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))]
)
def test_copies_are_plain(make):
    with outcome_distributions():
        value = drawn(torch.tensor([2, 0]), normal(SITES, K).requires_grad_())
        distribution = dist.Normal(L[value], 1.0)
    found = make(distribution)
    assert type(found) is dist.Normal
    assert torch.equal(found.loc, distribution.plain_distribution.loc)
    assert repr(distribution) == f"OutcomeDistribution({found})"


SAME_NOISE = ["normal", "log-normal", "cauchy", "laplace", "gumbel", "weibull", "uniform"]
SAME_NOISE += [name for name in DISTRIBUTIONS if name.startswith("multivariate")]
OTHER_NOISE = ["gamma", "beta", "dirichlet", "student", "low rank"]


@pytest.mark.parametrize("name", [*SAME_NOISE, "exponential", "half-normal", "sigmoid of a normal"])
def test_a_draw_has_outcomes_of_the_same_noise(name):
    make, _ = DISTRIBUTIONS[name]

    def function(z):
        torch.manual_seed(0)
        with outcome_distributions():
            return make(z).rsample().sin().sum()

    assert relative_error(function, normal(SITES, K).requires_grad_()) < 1e-10


@pytest.mark.parametrize("name", OTHER_NOISE)
def test_another_draw_has_the_derivative(name):
    make, _ = DISTRIBUTIONS[name]
    logits = normal(SITES, K).requires_grad_()
    with outcome_distributions():
        distribution = make(drawn(torch.tensor([2, 0]), logits))
    torch.manual_seed(0)
    found = distribution.rsample()
    torch.manual_seed(0)
    assert torch.equal(found.detach(), make(torch.tensor([2, 0])).rsample())
    assert not isinstance(found, OutcomeTensor)
    assert found.requires_grad == distribution.has_rsample
    with pytest.warns(UserWarning, match="and of noise without any, as Normal") as caught:
        found.sum().backward()
    assert [each.filename for each in caught] == [__file__]


OTHERS = {
    "a transformed df": lambda z: dist.TransformedDistribution(
        dist.StudentT(S[z] + 3, L[z], 1.0), [ExpTransform()]
    ),
    "a vector with a gradient of its own": lambda z: dist.OMTMultivariateNormal(V[z], TRIL[z]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_draw_has_the_derivative_of_its_own(name):
    logits = torch.zeros(K, dtype=torch.float64, requires_grad=True)
    with outcome_distributions():
        found = OTHERS[name](drawn(torch.tensor(2), logits)).rsample()
    assert not isinstance(found, OutcomeTensor)
    with pytest.warns(UserWarning, match="and of noise without any, as Normal"):
        found.sum().backward()


@pytest.mark.parametrize("family", [dist.Poisson, dist.Bernoulli])
def test_a_discrete_draw_that_is_made_of_another_has_the_derivative(family):
    """Which is no matter of its noise: docs/outcomes.md has a page on sites that depend so."""
    logits = normal(SITES, K).requires_grad_()
    with outcome_distributions():
        d = relax(family(S.sigmoid()[drawn(torch.tensor([2, 0]), logits)]))
    d.rsample().sum().backward()
    assert logits.grad.abs().max() > 0


def test_a_draw_of_a_model_does_not_warn_where_the_guide_draws_it():
    """Its log density is that of every category, at the value of the guide."""
    logits, rate = normal(SITES, K).requires_grad_(), torch.ones(SITES, requires_grad=True)

    def model():
        with pyro.plate("data", SITES):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(K)))
            pyro.sample("w", dist.Gamma(L.exp()[z], 1.0))

    def guide():
        with pyro.plate("data", SITES):
            pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("w", dist.Gamma(1.0, rate))

    loss = TraceMeanField_ELBO().differentiable_loss(relaxed(model), relaxed(guide))
    loss.backward()
    assert logits.grad.abs().max() > 0.01


GIVEN_A_DRAW = {
    "multivariate": lambda z: dist.MultivariateNormal(M[z], scale_tril=T[z]),
    "multivariate, by covariance": lambda z: dist.MultivariateNormal(M[z], (T @ T.mT)[z]),
    "multivariate, of one scale": lambda z: dist.MultivariateNormal(M[z], scale_tril=T[1]),
    "student": lambda z: dist.StudentT(8.0, M[z], T[z].diagonal(0, -2, -1)).to_event(1),
    "normal": lambda z: dist.Normal(M[z], T[z].diagonal(0, -2, -1)).to_event(1),
}
M = torch.tensor([[1.0, -0.5], [0.2, 2.0], [-1.5, 0.3]], dtype=torch.float64)
T = torch.tensor([0.4, 1.0, 1.6], dtype=torch.float64)[:, None, None] * torch.tensor(
    [[1.0, 0.0], [0.7, 0.8]], dtype=torch.float64
)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("name", GIVEN_A_DRAW)
def test_a_site_of_the_guide_given_a_draw_has_the_exact_gradient(name, elbo):
    """On average, of a loss that is quadratic in the site, by the moments and entropies."""
    x, make = torch.tensor([1.0, -1.0], dtype=torch.float64), GIVEN_A_DRAW[name]
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def model():
        pyro.sample("z", dist.Categorical(torch.ones(3, dtype=torch.float64)))
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros_like(x), torch.eye(2).double()))
        pyro.sample("x", dist.Normal(w, 0.7).to_event(1), obs=x)

    def guide():
        pyro.sample("w", make(pyro.sample("z", dist.Categorical(logits=logits))))

    q, p = make(torch.arange(3)), logits.softmax(-1)
    variance, error = q.variance, q.mean - x
    cost = (q.mean**2 + variance).sum(-1) / 2 + (error**2 + variance).sum(-1) / (2 * 0.7**2)
    (expected,) = torch.autograd.grad((p * (cost - q.entropy() + p.log())).sum(), logits)
    loss = elbo(num_particles=40_000, vectorize_particles=True, max_plate_nesting=0)
    torch.manual_seed(0)
    total = loss.differentiable_loss(relaxed(model), relaxed(guide))
    (found,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.12)


def model_of(site):
    def model(z):
        def run():
            with pyro.plate("data", SITES):
                site(z)

        return pyro.poutine.trace(relaxed(run)).get_trace().log_prob_sum()

    return model


def masked(z):
    with pyro.poutine.mask(mask=z == 1):
        pyro.sample("x", dist.Normal(L[z], S[z]), obs=X)


def scaled(z):
    with pyro.poutine.scale(scale=2.5):
        pyro.sample("x", dist.Normal(L[z], S[z]), obs=X)


MODELS = {
    "data of the draw": lambda z: pyro.sample("x", dist.Normal(L[z], 1.0), obs=V[z, 0]),
    "data of the draw, a plain density": lambda z: pyro.sample("x", dist.Normal(X, 1.0), obs=L[z]),
    "the draw as data": lambda z: pyro.sample("x", dist.Categorical(W[z]), obs=z),
    "a delta": lambda z: pyro.sample("x", dist.Delta(L[z], S[z]), obs=L[z]),
    "a factor": lambda z: pyro.factor("x", (L[z] * S[z]).exp()),
    "deterministic": lambda z: pyro.factor("x", pyro.deterministic("y", L[z]).exp() * S[z]),
    "a mask": masked,
    "a scale": scaled,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_gradient_in_a_model_is_exact(name):
    logits = normal(SITES, K).requires_grad_()
    assert relative_error(model_of(MODELS[name]), logits) < 1e-10


def test_other_threads():
    errors = []

    def work():
        try:
            for _ in range(50):
                with outcome_distributions():
                    logits = torch.zeros(SITES, K, requires_grad=True)
                    d = dist.Normal(L[drawn(torch.tensor([2, 0]), logits)], 1.0)
                    assert isinstance(d, OutcomeDistribution)
                    d.log_prob(X).sum().backward()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors
    assert torch.distributions.Distribution._validate_args
