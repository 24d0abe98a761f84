# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Random small models with index sites: the mean over all states of the gradient is exact.

The reference sums the plain model over all states, in float64, under a guide of independent sites.
"""

import random

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.ops.indexing import Vindex
from pyro.poutine.messenger import Messenger
from torch.distributions import AffineTransform, ExpTransform

from pyro_gumbel import relaxed
from pyro_gumbel.distributions import IndexStraightThrough
from pyro_gumbel.ops.second_order import with_one_hot_gradient
from pyro_gumbel.tensors.index_tensor import drawn_index
from tests.common import seeded
from tests.states import prob_of, states

pytestmark = pytest.mark.usefixtures("float64")

MOST = 4  # categories

# Numbers made of two sites, which may be the same one, with tables of numbers.
NUMBERS = [
    lambda z, w, t: t(4)[z],
    lambda z, w, t: t(4)[z] * t(4)[w].exp(),
    lambda z, w, t: t(4, 4)[z, w],
    lambda z, w, t: Vindex(t(4, 4)[z])[..., w],
    lambda z, w, t: torch.where(z == w, t(4)[z], 0.3),
    lambda z, w, t: torch.where(z == 1, 0.7, -0.2) + t(4)[w],
    lambda z, w, t: t(4)[z] * w.double() / 2,
    lambda z, w, t: t(16)[4 * z + w],
    lambda z, w, t: t(4)[(z + w) % 4].sin(),
    lambda z, w, t: t(4, 3)[z].logsumexp(-1) - t(4)[w],
    lambda z, w, t: torch.stack([t(4)[z], t(4)[w]], -1).softmax(-1)[..., 0],
    lambda z, w, t: torch.nn.functional.one_hot(z, 4).double().mul(t(4)).sum(-1) + t(4)[w],
]
# Vectors of three.
VECTORS = [
    lambda z, w, t: t(4, 3)[z],
    lambda z, w, t: t(4, 3)[z] + t(4, 3)[w],
    lambda z, w, t: t(4, 4, 3)[z, w],
    lambda z, w, t: torch.where((z == w).unsqueeze(-1), t(4, 3)[z], t(3)),
]
TRIL = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.2, 1.1]], dtype=torch.float64)


def mixture(v, w, a, b):
    return dist.MixtureSameFamily(dist.Categorical(logits=v), dist.Normal(w, 0.7))


# Distributions with two vectors and two numbers as parameters, and a value.
DISTRIBUTIONS = [
    (lambda v, w, a, b: dist.Normal(a, b.exp()), 0.4),
    (lambda v, w, a, b: dist.StudentT(3.0, a, 0.5 + b**2), 0.4),
    (lambda v, w, a, b: dist.Laplace(a, b.exp()), -0.3),
    (lambda v, w, a, b: dist.LogNormal(a, b.exp()), 0.8),
    (lambda v, w, a, b: dist.Gamma(a.exp(), b.exp()), 0.8),
    (lambda v, w, a, b: dist.Beta(a.exp(), b.exp()), 0.3),
    (lambda v, w, a, b: dist.Weibull(a.exp(), b.exp() + 0.5), 0.9),
    (lambda v, w, a, b: dist.VonMises(a, b.exp()), 0.5),
    (lambda v, w, a, b: dist.Poisson(a.exp()), 2.0),
    (lambda v, w, a, b: dist.NegativeBinomial(b.exp(), logits=a), 2.0),
    (lambda v, w, a, b: dist.Binomial(5, a.sigmoid()), 2.0),
    (lambda v, w, a, b: dist.Bernoulli(logits=a), 1.0),
    (lambda v, w, a, b: dist.ZeroInflatedPoisson(a.exp(), gate_logits=b), 0.0),
    (lambda v, w, a, b: dist.GammaPoisson(a.exp(), b.exp()), 3.0),
    (lambda v, w, a, b: dist.Categorical(logits=v), 2),
    (lambda v, w, a, b: dist.Categorical(v.softmax(-1)), 1),
    (lambda v, w, a, b: dist.OneHotCategorical(v.exp()), [0.0, 1.0, 0.0]),
    (lambda v, w, a, b: dist.Multinomial(3, logits=v), [2.0, 1.0, 0.0]),
    (lambda v, w, a, b: dist.Dirichlet(v.exp()), [0.2, 0.5, 0.3]),
    (lambda v, w, a, b: dist.Normal(v, w.exp()).to_event(1), [0.2, 0.5, -0.3]),
    (lambda v, w, a, b: dist.MultivariateNormal(v, scale_tril=TRIL), [0.2, 0.5, -0.3]),
    (lambda v, w, a, b: dist.LowRankMultivariateNormal(v, TRIL[:, :1], w.exp()), [0.2, 0.5, -0.3]),
    (mixture, 0.6),
    (
        lambda v, w, a, b: dist.TransformedDistribution(dist.Normal(a, 1.0), [ExpTransform()]),
        0.7,
    ),
    (
        lambda v, w, a, b: dist.TransformedDistribution(
            dist.Normal(0.0, 1.0), [AffineTransform(a, b.exp())]
        ),
        0.7,
    ),
]


class Model:
    """A random model: sites in a tree or in one plate, and factors that share tables."""

    def __init__(self, seed):
        chance = self.chance = random.Random(seed)
        self.sites, self.categories = chance.randint(1, 4), chance.randint(2, MOST)
        self.in_plate = chance.random() < 0.4
        self.parents = [
            [chance.randrange(i) for _ in range(chance.randint(0, 2))] if i else []
            for i in range(self.sites)
        ]
        self.tables = {}
        self.generator = torch.Generator().manual_seed(seed)
        start = seeded(torch.randn, self.generator, self.sites, self.categories)
        self.logits = start.double().requires_grad_()
        self.factors = [self._factor() for _ in range(chance.randint(1, 4))]

    def _factor(self):
        chance = self.chance
        numbers = [chance.choice(NUMBERS), chance.choice(NUMBERS)]
        vectors = [chance.choice(VECTORS), chance.choice(VECTORS)]
        distribution = chance.choice([*DISTRIBUTIONS, None])
        at = [chance.randrange(self.sites) for _ in range(2)]
        return vectors, numbers, distribution, at

    def table(self, *shape):
        if shape not in self.tables:
            new = seeded(torch.randn, self.generator, shape, dtype=torch.float64)
            self.tables[shape] = (0.7 * new).requires_grad_()
        return self.tables[shape]

    def prior(self, values):
        k = self.categories
        table = self.table(*[MOST] * len(values), k)
        return dist.Categorical(logits=table[(*values,)] if values else table)

    def __call__(self):
        if self.in_plate:
            with pyro.plate("sites", self.sites):
                z = pyro.sample("z", self.prior([]))
            pyro.factor("chain", self.table(4, 4)[z[..., :-1], z[..., 1:]].sum(-1))
            with pyro.plate("data", self.sites):
                self._observe("along", z, z.flip(0), self.factors[0])
            z = list(z)
        else:
            z = []
            for i, parents in enumerate(self.parents):
                z.append(pyro.sample(f"z{i}", self.prior([z[j] for j in parents])))
        for n, factor in enumerate(self.factors):
            i, j = factor[-1]
            self._observe(f"x{n}", z[i], z[j], factor)

    def _observe(self, name, z, w, factor):
        vectors, numbers, distribution, _ = factor
        a, b = (each(z, w, self.table) for each in numbers)
        if distribution is None:
            pyro.factor(name, -((a - 0.3) ** 2) * (b / 2).exp())
            return
        make, value = distribution
        made = make(*(each(z, w, self.table) for each in vectors), a, b)
        pyro.sample(name, made, obs=torch.as_tensor(value).expand(made.shape()))

    def guide(self):
        if self.in_plate:
            with pyro.plate("sites", self.sites):
                pyro.sample("z", IndexStraightThrough(logits=self.logits))
        else:
            for i, each in enumerate(self.logits):
                pyro.sample(f"z{i}", IndexStraightThrough(logits=each))

    def values(self, state, made):
        """Those of the sites, made of elements of a state and their logits."""
        if self.in_plate:
            return {"z": made(state, self.logits)}
        pairs = zip(state, self.logits, strict=True)
        return {f"z{i}": made(*pair) for i, pair in enumerate(pairs)}

    def states(self):
        """Each with its probability."""
        return [(state, prob_of(state, self.logits)) for state in states(self.logits)]

    def gradient(self, loss):
        """In the guide's parameters and in the tables."""
        of = [self.logits, *self.tables.values()]
        each = torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True)
        return torch.cat([x.flatten() for x in each])


class Fixed(Messenger):
    """Sites have given values."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg):
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def draw(state, logits):
    """A state as a draw: the gradient of outcomes goes to the probabilities."""
    return drawn_index(_one_hot(state, logits), state, lambda: logits.softmax(-1))


def draw_by_one_hot(state, logits):
    """A state as a draw: the gradient of outcomes is that of ReinMax."""
    one_hot = _one_hot(state, logits)
    return drawn_index(one_hot, state, lambda: one_hot)


def _one_hot(state, logits):
    one_hot = torch.nn.functional.one_hot(state, logits.shape[-1]).to(logits)
    return with_one_hot_gradient(one_hot, logits)


def gradient(model, state, made=draw, **options):
    """That of one step of SVI from this state."""
    guide = Fixed(model.values(state, made))(model.guide)
    loss = TraceMeanField_ELBO().differentiable_loss(relaxed(model.__call__, **options), guide)
    return model.gradient(loss)


def moments(model, made=draw, **options):
    """The mean gradient, and the mean of its squared length."""
    mean, square = 0.0, 0.0
    for state, prob in model.states():
        each = gradient(model, state, made, **options)
        mean, square = mean + prob.detach() * each, square + prob.detach() * each.square().sum()
    return mean, square


def exact(model):
    """That of the negative ELBO, by the sum over all states of the plain model."""
    total = 0.0
    for state, prob in model.states():
        values = model.values(state, lambda each, logits: each)
        trace = poutine.trace(poutine.condition(model.__call__, values)).get_trace()
        total = total + prob * (prob.log() - trace.log_prob_sum())
    return model.gradient(total)


def seeds(least, most):
    """Of the first 50 models, those with this number of states."""
    sizes = {seed: Model(seed) for seed in range(50)}
    return [seed for seed, m in sizes.items() if least <= m.categories**m.sites <= most]


def assert_exact(seed):
    model = Model(seed)
    expected = exact(model)
    mean, square = moments(model)
    of_one_hot, square_of_one_hot = moments(model, draw_by_one_hot)
    for each in (mean, of_one_hot):
        assert (each - expected).norm() < 1e-10 * expected.norm()
    assert square < square_of_one_hot * (1 - 1e-9)


@pytest.mark.parametrize("seed", seeds(1, 4))
def test_the_mean_gradient_is_exact(seed):
    assert_exact(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(5, 256))
def test_the_mean_gradient_of_larger_models_is_exact(seed):
    assert_exact(seed)


def test_a_derivative_is_not():
    errors = []
    for seed in seeds(3, 4):
        model = Model(seed)
        expected = exact(model)
        mean, _ = moments(model, outcomes=False)
        errors.append((mean - expected).norm() / expected.norm())
    assert torch.stack(errors).median() > 0.02
