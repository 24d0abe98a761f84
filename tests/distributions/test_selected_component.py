# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""One component of several: against the components by hand, and torch's mixtures."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch.nn.functional import one_hot

from pyro_gumbel import (
    CategoricalStraightThrough,
    IndexStraightThrough,
    RelaxedCategorical,
    SelectedComponent,
)
from pyro_gumbel.tensors.index_tensor import as_derivative
from tests.common import assert_counts, assert_same_mean, seeded

K = 3
BATCH = 5
EYE = torch.eye(K, dtype=torch.float64)


def numbers(*shape):
    """Some numbers, the same for the same shape."""
    return seeded(torch.randn, 7, shape, dtype=torch.float64)


def covariance(*shape):
    root = numbers(*shape, 2, 2)
    return root @ root.mT + torch.eye(2, dtype=torch.float64)


def normals(*shape):
    """Of other variances each: what is the same for all components has no gradient in z."""
    return dist.Normal(numbers(*shape), numbers(*shape).exp())


# Components of the batch shape `shape`, whose last dimension is over them.
COMPONENTS = {
    "normal": lambda shape: normals(*shape),
    "poisson": lambda shape: dist.Poisson(numbers(*shape).exp()),
    "multivariate": lambda shape: dist.MultivariateNormal(numbers(*shape, 2), covariance(*shape)),
    "independent": lambda shape: normals(*shape, 4).to_event(1),
    "matrices": lambda shape: normals(*shape, 4, 2).to_event(2),
    "counts of categories": lambda shape: dist.Multinomial(4, logits=numbers(*shape, 3)),
    "transformed": lambda shape: dist.LogNormal(numbers(*shape), 0.7),
    "masked": lambda shape: dist.Normal(numbers(*shape), 1.0).mask(numbers(*shape) > 0),
    "mixtures": lambda shape: dist.MixtureSameFamily(
        dist.Categorical(logits=numbers(*shape, 2)), dist.Normal(numbers(*shape, 2), 1.0)
    ),
    "of torch": lambda shape: torch.distributions.Gamma(numbers(*shape).exp(), 2.0),
    "ours": lambda shape: RelaxedCategorical(0.7, logits=numbers(*shape, 4)),
}
PATHWISE = ["normal", "multivariate", "independent", "matrices", "transformed"]
SHAPES = {"shared": (K,), "of each element": (BATCH, K)}

everything = pytest.mark.parametrize("name", COMPONENTS)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def selections(number=BATCH):
    """Indices and the one-hot vectors of them."""
    index = torch.arange(number) % K
    return index, EYE[index]


def by_hand(components, index, value):
    """log_prob with a loop over the elements."""
    wide = components.expand((BATCH, K))
    values = value.unsqueeze(1).expand(BATCH, K, *wide.event_shape)
    table = wide.log_prob(values)
    return torch.stack([table[i, k] for i, k in enumerate(index.tolist())])


@every_shape
@everything
def test_log_prob_is_that_of_the_selected_component(name, shape):
    components = COMPONENTS[name](shape)
    index, z = selections()
    value = components.expand((BATCH, K)).sample()[:, 0]
    expected = by_hand(components, index, value)
    for selection in (index, z, index.int(), z.float()):
        d = SelectedComponent(selection, components)
        assert d.batch_shape == (BATCH,)
        assert d.event_shape == components.event_shape
        torch.testing.assert_close(d.log_prob(value), expected)
        many = d.log_prob(value.expand(2, *value.shape))
        torch.testing.assert_close(many, expected.expand(2, BATCH))


@everything
def test_the_sum_over_components_is_the_mixture(name):
    """logsumexp over z of log P(z) + log_prob."""
    components, logits = COMPONENTS[name]((BATCH, K)), numbers(BATCH, K)
    value = components.sample()[:, 0]
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits), components
    )
    each = SelectedComponent(EYE.unsqueeze(1), components).log_prob(value)
    assert each.shape == (K, BATCH)
    found = (logits.log_softmax(-1).T + each).logsumexp(0)
    torch.testing.assert_close(found, mixture.log_prob(value))


@everything
def test_the_gradient_in_z_is_the_table_of_log_probabilities(name):
    components = COMPONENTS[name]((BATCH, K))
    value = components.sample()[:, 0]
    table = components.log_prob(value.unsqueeze(1))
    one_hots, soft = selections()[1], numbers(BATCH, K).softmax(-1)
    for z in (one_hots.clone().requires_grad_(), soft.requires_grad_()):
        log_prob = SelectedComponent(z, components).log_prob(value)
        torch.testing.assert_close(log_prob, (z * table).sum(-1))
        (gradient,) = torch.autograd.grad(log_prob.sum(), z)
        torch.testing.assert_close(gradient, table)


def test_the_gradient_reaches_the_logits_of_a_straight_through_sample():
    """Of a plain tensor and of the subclass that `rsample` returns."""
    logits = numbers(BATCH, K).requires_grad_()
    z = CategoricalStraightThrough(logits=logits).rsample()
    components, value = dist.Normal(numbers(K), numbers(K).exp()), numbers(BATCH)
    found = [
        torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]
        for loss in (
            SelectedComponent(z, components).log_prob(value),
            (z * components.log_prob(value.unsqueeze(-1))).sum(-1),
        )
    ]
    assert found[0].any()
    torch.testing.assert_close(*found)


def test_gradients_reach_the_components():
    loc, log_scale = numbers(K).requires_grad_(), numbers(K).requires_grad_()
    index, z = selections()
    value = numbers(BATCH)
    expected = dist.Normal(loc[index], log_scale.exp()[index]).log_prob(value).sum()
    found = SelectedComponent(z, dist.Normal(loc, log_scale.exp())).log_prob(value).sum()
    gradients = [torch.autograd.grad(loss, (loc, log_scale)) for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


# Values that a component cannot have.


def test_an_impossible_component_counts_only_where_it_is_selected():
    """A component of rate 0 has only the value 0."""
    components = dist.Poisson(torch.tensor([0.0, 1.0, 400.0]))
    value = torch.tensor(3.0)
    z = torch.eye(K).requires_grad_()
    log_prob = SelectedComponent(z, components).log_prob(value)
    assert log_prob.isinf().tolist() == [True, False, False]
    torch.testing.assert_close(log_prob[1:], components.log_prob(value)[1:])
    (gradient,) = torch.autograd.grad(log_prob[1:].sum(), z)
    lowest = components.log_prob(value)[2]  # -384
    expected = torch.stack([lowest - 100, *components.log_prob(value)[1:]])
    torch.testing.assert_close(gradient[1:], expected.expand(2, K))


@pytest.mark.parametrize("selected", range(K))
def test_the_gradient_leads_away_from_an_impossible_component(selected):
    """Also where it is selected, and without a NaN for the components."""
    rate = torch.tensor([0.0, 1.0, 400.0])
    high = torch.tensor([0.5, 2.0, 3.0], requires_grad=True)
    z = one_hot(torch.tensor(selected), K).float().requires_grad_()
    for components in (dist.Poisson(rate), dist.Uniform(torch.zeros(K), high)):
        log_prob = SelectedComponent(z, components).log_prob(torch.tensor(1.0))
        (gradient,) = torch.autograd.grad(log_prob, z, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.argmin() == 0
    (gradient,) = torch.autograd.grad(log_prob, high)
    inside = [0.0, *(-1 / high[1:])]
    assert gradient[selected] == inside[selected]
    assert gradient.count_nonzero() == (selected > 0)


def test_where_no_component_is_possible():
    z = torch.eye(K).requires_grad_()
    log_prob = SelectedComponent(z, dist.Poisson(torch.zeros(K))).log_prob(torch.tensor(2.0))
    assert log_prob.isneginf().all()
    (gradient,) = torch.autograd.grad(log_prob.sum(), z)
    assert (gradient == -100).all()


def test_a_component_that_is_not_a_number_counts_only_where_it_is_selected():
    components = dist.Normal(torch.tensor([0.0, math.nan]), 1.0, validate_args=False)
    log_prob = SelectedComponent(torch.eye(2), components).log_prob(torch.tensor(1.0))
    assert log_prob.isnan().tolist() == [False, True]


# Components of different supports.

BOUNDED = {
    "uniform": (lambda: dist.Uniform(torch.zeros(K), torch.tensor([1.0, 2.0, 3.0])), 1.5),
    "binomial": (lambda: dist.Binomial(torch.tensor([1.0, 4.0, 9.0]), torch.tensor(0.3)), 3.0),
    "pareto": (lambda: dist.Pareto(torch.tensor([2.0, 1.0, 0.5]), torch.tensor(1.0)), 1.2),
    "uniform vectors": (
        lambda: dist.Uniform(torch.zeros(K, 2), torch.tensor([[1.0], [2.0], [3.0]])).to_event(1),
        [0.5, 1.5],
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_value_outside_of_a_component_is_impossible_there(name):
    """With validation, although the component alone would raise; and it still does so."""
    make, value = BOUNDED[name]
    components, value = make(), torch.tensor(value)
    d = SelectedComponent(torch.eye(K), components, validate_args=True)
    log_prob = d.log_prob(value)
    assert log_prob.isneginf().tolist() == [True, False, False]
    for k in (1, 2):
        alone = SelectedComponent(torch.tensor(k), components).log_prob(value)
        torch.testing.assert_close(log_prob[k], alone)
    assert d.support.check(value)
    assert not d.support.check(-torch.ones(d.event_shape))
    assert d.support.event_dim == components.support.event_dim
    assert d.support.is_discrete == components.support.is_discrete
    with pytest.raises(ValueError, match="support"):
        components.log_prob(value)
    with pytest.raises(ValueError, match="must be in the support of a component"):
        d.log_prob(-torch.ones(d.event_shape))


@everything
def test_the_support_is_that_of_the_components(name):
    components = COMPONENTS[name]((K,))
    d = SelectedComponent(torch.eye(K), components)
    assert d.support.is_discrete == components.support.is_discrete
    assert d.support.event_dim == len(components.event_shape)
    assert d.support.check(components.sample()).all()
    if name in PATHWISE:
        assert type(d.support) is type(components.support)


# Draws and moments.


@every_shape
@everything
def test_draws_are_those_of_the_selected_component(name, shape):
    components = COMPONENTS[name](shape)
    index, z = selections()
    pyro.set_rng_seed(0)
    every = components.expand((BATCH, K)).sample((7,))
    expected = torch.stack([every[:, i, k] for i, k in enumerate(index.tolist())], 1)
    for selection in (index, z):
        pyro.set_rng_seed(0)
        draw = SelectedComponent(selection, components).sample((7,))
        assert torch.equal(draw, expected)
    assert not draw.requires_grad


def test_every_element_of_the_batch_has_its_own_draw():
    d = SelectedComponent(torch.zeros(4, dtype=torch.long), dist.Normal(torch.zeros(K), 1.0))
    for larger in (d, d.expand((2, 4)), SelectedComponent(0, d.components).expand((6,))):
        draw = larger.sample((3,))
        assert len(draw.unique()) == draw.numel()


@pytest.mark.parametrize("name", PATHWISE)
def test_draws_have_gradients(name):
    """In the components as their own draws have; in z the draws of all components."""
    components = COMPONENTS[name]((BATCH, K))
    z = selections()[1].requires_grad_()
    d = SelectedComponent(z, components)
    assert d.has_rsample
    pyro.set_rng_seed(0)
    draw = d.rsample()
    pyro.set_rng_seed(0)
    every = components.rsample()
    weights = numbers(*draw.shape)
    (gradient,) = torch.autograd.grad((draw * weights).sum(), z)
    expected = (every * weights.unsqueeze(1)).flatten(2 if d.event_dim else 1)
    if d.event_dim:
        expected = expected.sum(-1)
    torch.testing.assert_close(gradient, expected)


def test_draws_have_the_gradient_of_the_component():
    loc = numbers(K).requires_grad_()
    for selection in selections():
        d = SelectedComponent(selection, dist.Normal(loc, 1.0))
        (gradient,) = torch.autograd.grad(d.rsample().sum(), loc)
        assert gradient.tolist() == [2, 2, 1]


def test_an_infinite_draw_counts_only_where_it_is_selected():
    z = torch.eye(2, requires_grad=True)
    draw = SelectedComponent(z, dist.Delta(torch.tensor([2.0, torch.inf]))).rsample()
    assert draw.tolist() == [2.0, torch.inf]
    (gradient,) = torch.autograd.grad(draw.sum(), z)
    assert gradient.tolist() == [[2.0, 0.0], [2.0, 0.0]]


def test_components_without_pathwise_draws():
    d = SelectedComponent(torch.eye(K), dist.Poisson(torch.ones(K)))
    assert not d.has_rsample
    with pytest.raises(NotImplementedError):
        d.rsample()


def test_draws_of_a_relaxed_z_are_of_its_largest_entry():
    z = torch.tensor([0.2, 0.5, 0.3])
    draws = SelectedComponent(z, dist.Categorical(logits=1e3 * torch.eye(K))).sample((9,))
    assert (draws == 1).all()
    assert draws.dtype == torch.long


MOMENTS = [name for name in COMPONENTS if name not in ("masked", "ours")]


@every_shape
@pytest.mark.parametrize("name", MOMENTS)
def test_moments_are_those_of_the_selected_component(name, shape):
    components = COMPONENTS[name](shape)
    index, z = selections()
    for selection in (index, z):
        d = SelectedComponent(selection, components).expand((2, BATCH))
        for moment in ("mean", "variance"):
            every = getattr(components, moment).expand(BATCH, K, *d.event_shape)
            expected = torch.stack([every[i, k] for i, k in enumerate(index.tolist())])
            torch.testing.assert_close(getattr(d, moment), expected.expand(d.shape()))


def test_an_infinite_moment_counts_only_where_it_is_selected():
    d = SelectedComponent(torch.eye(2), dist.Pareto(torch.ones(2), torch.tensor([0.5, 2.0])))
    assert d.mean.tolist() == [math.inf, 2.0]


# As a Pyro distribution.


@everything
def test_shapes_wrappers_and_copies(name):
    components = COMPONENTS[name]((K,))
    value = components.expand((BATCH, K)).sample()[:, 0]
    d = SelectedComponent(selections()[1], components)
    expected = d.log_prob(value)
    wide = d.expand(torch.Size((2, BATCH)))
    assert wide.batch_shape == (2, BATCH)
    assert wide.sample().shape == (2, BATCH, *components.event_shape)
    assert wide.has_rsample == d.has_rsample == components.has_rsample
    torch.testing.assert_close(wide.log_prob(value), expected.expand(2, BATCH))
    torch.testing.assert_close(d.to_event(1).log_prob(value), expected.sum())
    mask = torch.arange(BATCH) > 1
    torch.testing.assert_close(d.mask(mask).log_prob(value), expected * mask)
    assert d.expand_by((2,)).batch_shape == (2, BATCH)
    assert not d.has_enumerate_support
    for copied in (copy.deepcopy(d), copy.copy(d), pickle.loads(pickle.dumps(d))):
        torch.testing.assert_close(copied.log_prob(value), expected)
        assert copied.batch_shape == d.batch_shape
    assert repr(d).startswith("SelectedComponent(z: (5, 3), components: ")


def test_validation_is_not_switched_off_in_the_components():
    components = dist.Normal(torch.zeros(K), 1.0, validate_args=True).to_event(0)
    SelectedComponent(torch.eye(K), components).log_prob(torch.tensor(1.0))
    with pytest.raises(ValueError, match="support"):
        components.log_prob(torch.tensor(math.nan))


@pytest.mark.parametrize("selection", ["index", "one-hot"])
def test_vmap(selection):
    index, z = selections()
    loc, value = numbers(BATCH, K), numbers(BATCH)

    def log_prob(selected, loc, value):
        components = dist.Normal(loc, 1.0, validate_args=False)
        return SelectedComponent(selected, components).log_prob(value)

    selected = index if selection == "index" else z
    found = torch.vmap(log_prob)(selected, loc, value)
    torch.testing.assert_close(found, log_prob(selected, loc, value))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    """The table reaches z in the dtype of z, clamped to its range."""
    z = torch.eye(2, dtype=dtype).requires_grad_()
    components = dist.Normal(torch.tensor([0.0, 1.0]), torch.tensor([1e-3, 1.0]))
    log_prob = SelectedComponent(z, components).log_prob(torch.tensor(1.0))
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, components.log_prob(torch.tensor(1.0)))
    (gradient,) = torch.autograd.grad(log_prob.sum(), z)
    assert gradient.isfinite().all()
    assert (gradient[:, 0] < -65000).all()


DATA = torch.tensor([-2.1, 0.1, 1.8, 0.4])


def mixture(x, *_):
    """Of Normal distributions of different scales."""
    components = dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([0.3, 1.5, 0.7]))
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", SelectedComponent(z, components), obs=x)


def log_evidence(x):
    components = dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([0.3, 1.5, 0.7]))
    weights = dist.Categorical(torch.tensor([0.2, 0.5, 0.3]))
    return dist.MixtureSameFamily(weights, components).log_prob(x).sum()


@pytest.mark.parametrize("particles", [1, 2])
def test_enumeration_gives_the_evidence(particles):
    elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.loss(config_enumerate(mixture), lambda *_: None, DATA)
    assert loss == pytest.approx(-log_evidence(DATA).item(), abs=1e-5)


def guide(x, logits):
    with pyro.plate("points", len(x)):
        pyro.sample("z", CategoricalStraightThrough(logits=logits))


def exact_elbo(x, logits):
    """With the log joint density of each point and component."""
    components = dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([0.3, 1.5, 0.7]))
    log_joint = torch.tensor([0.2, 0.5, 0.3]).log() + components.log_prob(x.unsqueeze(-1))
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_joint - log_q)).sum()


def test_vectorised_particles_have_the_elbo():
    torch.manual_seed(0)
    logits = torch.randn(len(DATA), K)
    elbo = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    losses = [elbo.loss(mixture, guide, DATA, logits) for _ in range(20)]
    assert_same_mean(-torch.tensor(losses), exact_elbo(DATA, logits).double())


@pytest.mark.parametrize(("strategy", "points"), [("parallel", len(DATA)), ("sequential", 1)])
def test_an_enumerated_guide_has_the_elbo(strategy, points):
    torch.manual_seed(0)
    x, logits = DATA[:points], torch.randn(points, K)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    loss = elbo.loss(mixture, config_enumerate(guide, strategy), x, logits)
    assert loss == pytest.approx(-exact_elbo(x, logits).item(), abs=1e-5)


def test_data_are_drawn_without_obs():
    """By `Predictive` or a prior run: the site is one of a mixture."""

    def prior():
        with pyro.plate("points", 30_000):
            z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])))
            return z, pyro.sample("x", SelectedComponent(z, dist.Delta(torch.arange(3.0))))

    z, x = prior()
    assert torch.equal(x, z.argmax(-1).float())
    assert_counts(x.long().bincount(), [0.2, 0.5, 0.3])


# The gradient is unbiased. All by enumeration, in float64.

MEANS, SCALES = numbers(K) * 2, torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
POINT = torch.tensor(0.7, dtype=torch.float64)
LIKELIHOODS = {
    "selected": lambda z: SelectedComponent(z, dist.Normal(MEANS, SCALES)),
    "derivative": lambda z: dist.Normal(z @ MEANS, z @ SCALES),
}


def exact_gradient(logits):
    """Of E log p(x | z) in the logits of z."""
    table = dist.Normal(MEANS, SCALES).log_prob(POINT)
    return torch.autograd.grad((logits.softmax(-1) * table).sum(), logits)[0]


def expected_gradient(likelihood, logits):
    """The mean of the straight-through gradient: the backward pass of each state, weighted."""
    mean = torch.zeros(K, dtype=torch.float64)
    seen = torch.zeros(K, dtype=torch.bool)
    while not seen.all():
        z = CategoricalStraightThrough(logits=logits).rsample()
        state = z.argmax()
        if not seen[state]:
            seen[state] = True
            log_prob = LIKELIHOODS[likelihood](z).log_prob(POINT)
            (gradient,) = torch.autograd.grad(log_prob, logits)
            mean += logits.detach().softmax(-1)[state] * gradient
    return mean


def test_the_second_order_gradient_is_exact():
    """While that of `Normal(z @ means, z @ scales)`, of the same values, is biased."""
    logits = numbers(K).requires_grad_()
    exact = exact_gradient(logits)
    torch.testing.assert_close(expected_gradient("selected", logits), exact, rtol=1e-12, atol=1e-12)
    bias = expected_gradient("derivative", logits) - exact
    assert bias.norm() > 0.5 * exact.norm()


# An index with a gradient: as the one-hot vector of the same draw.


def drawn(logits, cls, batch_shape=(BATCH,)):
    pyro.set_rng_seed(5)
    z = cls(logits=logits).expand(batch_shape).rsample()
    return as_derivative(z) if cls is IndexStraightThrough else z


def of_each_form(logits, function, batch_shape=(BATCH,), of_one_hot=None):
    """The value of a function of z and its gradient in the logits, for an index and one-hot.

    :param of_one_hot: the function of the one-hot vector, if it is another one.
    """
    found = []
    for cls, of in (
        (IndexStraightThrough, function),
        (CategoricalStraightThrough, of_one_hot or function),
    ):
        z = drawn(logits, cls, batch_shape)
        pyro.set_rng_seed(6)
        value = of(z)
        weights = numbers(*value.shape).to(value.dtype)
        loss = torch.where(value.isfinite(), value * weights, 0.0).sum()
        found.append((value.detach(), torch.autograd.grad(loss, logits)[0]))
    return found


@every_shape
@everything
def test_an_index_has_the_log_prob_and_gradient_of_its_one_hot_vector(name, shape):
    logits, components = numbers(BATCH, K).requires_grad_(), COMPONENTS[name](shape)
    value = components.expand((BATCH, K)).sample()[:, 0]

    def log_prob(z, form=lambda d: d):
        d = SelectedComponent(z, components)
        assert (d.batch_shape, d.event_shape) == ((BATCH,), components.event_shape)
        return form(d).log_prob(value)

    mask = torch.arange(BATCH) > 1
    for form in (
        lambda d: d,
        lambda d: d.expand((2, BATCH)),
        lambda d: d.mask(mask).to_event(1),
        copy.copy,
    ):
        index, one_hots = of_each_form(logits, lambda z, form=form: log_prob(z, form))
        assert index[1].any()
        torch.testing.assert_close(index, one_hots, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PATHWISE)
def test_an_index_has_the_draws_and_moments_of_its_one_hot_vector(name):
    logits, components = numbers(BATCH, K).requires_grad_(), COMPONENTS[name]((K,))
    for of in (lambda d: d.rsample((7,)), lambda d: d.mean, lambda d: d.variance):
        index, one_hots = of_each_form(
            logits, lambda z, of=of: of(SelectedComponent(z, components))
        )
        assert index[1].any()
        torch.testing.assert_close(index, one_hots, rtol=1e-12, atol=1e-12)
    z = drawn(logits, IndexStraightThrough)
    assert type(SelectedComponent(z, components).sample()) is torch.Tensor


@pytest.mark.parametrize(
    ("batch_shape", "shape", "name"),
    [((), (K,), "independent"), ((4, 1), (BATCH, K), "independent"), ((0,), (K,), "normal")],
)
def test_an_index_broadcasts_with_the_components(batch_shape, shape, name):
    logits, components = numbers(K).requires_grad_(), COMPONENTS[name](shape)
    joint = torch.broadcast_shapes(batch_shape, shape[:-1])

    def log_prob(z):
        d = SelectedComponent(z, components)
        assert d.batch_shape == joint
        return d.log_prob(numbers(*joint, *components.event_shape))

    index, one_hots = of_each_form(logits, log_prob, batch_shape)
    torch.testing.assert_close(index, one_hots, rtol=1e-12, atol=1e-12)


def test_an_index_of_a_component_that_is_impossible():
    """The value is -inf where it is selected; the gradient leads away from it."""
    logits = torch.zeros(20, K, requires_grad=True)
    components = dist.Poisson(torch.tensor([0.0, 1.0, 400.0]))
    index, one_hots = of_each_form(
        logits, lambda z: SelectedComponent(z, components).log_prob(torch.tensor(3.0)), (20,)
    )
    assert index[0].isneginf().any()
    torch.testing.assert_close(index, one_hots)
    infinite = dist.Delta(torch.tensor([2.0, torch.inf, 1.0]))
    for of in (lambda d: d.rsample(), lambda d: d.mean):
        forms = of_each_form(logits, lambda z, of=of: of(SelectedComponent(z, infinite)), (20,))
        assert forms[0][0].isinf().any()
        torch.testing.assert_close(*forms)


def test_what_is_made_of_an_index_selects_too():
    """A looked-up index, and a truth value as an integer."""
    logits, order = numbers(BATCH, K).requires_grad_(), torch.tensor([2, 0, 1])
    components = {k: dist.Normal(numbers(k), numbers(k).exp()) for k in (2, 3)}

    def log_prob(z, k):
        return SelectedComponent(z, components[k]).log_prob(numbers(BATCH))

    for found, expected in (
        of_each_form(
            logits,
            lambda z: log_prob(order[z], 3),
            of_one_hot=lambda z: log_prob(z @ EYE[order], 3),
        ),
        of_each_form(
            logits,
            lambda z: log_prob((z == 1).long(), 2),
            of_one_hot=lambda z: log_prob(torch.stack([1 - z[:, 1], z[:, 1]], -1), 2),
        ),
    ):
        torch.testing.assert_close(found, expected)


def test_an_index_as_the_value():
    """Of components that are distributions of indices."""
    logits, which = numbers(BATCH, K).requires_grad_(), torch.arange(BATCH) % 2
    words = dist.Categorical(logits=numbers(2, K))
    found, expected = of_each_form(
        logits,
        lambda z: SelectedComponent(which, words, validate_args=True).log_prob(z),
        of_one_hot=lambda z: (z * words.logits[which]).sum(-1),
    )
    torch.testing.assert_close(found, expected)


def test_the_second_order_gradient_of_an_index_is_exact():
    """By enumeration."""
    logits = numbers(K).requires_grad_()
    d = IndexStraightThrough(logits=logits)
    d._hard = lambda sample_shape: EYE  # all categories in place of random ones
    log_prob = SelectedComponent(d.rsample(), dist.Normal(MEANS, SCALES)).log_prob(POINT)
    (found,) = torch.autograd.grad((logits.detach().softmax(-1) * log_prob).sum(), logits)
    torch.testing.assert_close(found, exact_gradient(logits), rtol=1e-12, atol=1e-12)


def test_an_index_in_a_model_of_pyro():
    """Enumerated, drawn without data, and by a guide: the gradient in expectation."""
    weights = torch.tensor([0.2, 0.5, 0.3])
    components = dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([0.3, 1.5, 0.7]))

    def model(x=None, number=4):
        with pyro.plate("points", number):
            z = pyro.sample("z", dist.Categorical(weights))
            return z, pyro.sample("x", SelectedComponent(z, components), obs=x)

    def guide(x, logits):
        with pyro.plate("points", len(x)):
            pyro.sample("z", IndexStraightThrough(logits=logits))

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), lambda _: None, DATA)
    assert loss == pytest.approx(-log_evidence(DATA).item(), abs=1e-5)
    z, x = model(number=9)
    assert z.shape == x.shape == (9,)
    logits = torch.randn(len(DATA), K, requires_grad=True)
    elbo = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    losses, gradients = [], []
    for _ in range(20):
        loss = elbo.differentiable_loss(lambda x, _: model(x), guide, DATA, logits)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, logits)[0])
    exact = exact_elbo(DATA, logits)
    assert_same_mean(-torch.stack(losses), exact.detach().double())
    assert_same_mean(-torch.stack(gradients), torch.autograd.grad(exact, logits)[0].double())


# Errors.

NORMAL = dist.Normal(torch.zeros(K), 1.0)
ERRORS = {
    "another number": (
        lambda: SelectedComponent(torch.eye(4), NORMAL),
        ValueError,
        r"one-hot `z` must have the 3 components .* got shape \(4, 4\); write z.long\(\)",
    ),
    "no event dimension": (
        lambda: SelectedComponent(torch.eye(K), dist.Normal(torch.zeros(K, 2), 1.0)),
        ValueError,
        r"the 2 components .* write .* .to_event\(1\)",
    ),
    "a number for z": (
        lambda: SelectedComponent(torch.tensor(1.0), NORMAL),
        ValueError,
        r"got shape \(\); write z.long\(\) if it is an index",
    ),
    "another batch": (
        lambda: SelectedComponent(torch.zeros(4, dtype=torch.long), NORMAL.expand((5, K))),
        ValueError,
        r"batch shape of `z` must broadcast .* \(5,\), got \(4,\); write .to_event\(1\)",
    ),
    "logits": (
        lambda: SelectedComponent(torch.tensor([0.3, -2.0, 1.0]), NORMAL, validate_args=True),
        ValueError,
        r"`z` must be one-hot .* got e.g. 0.3, -2, 1; write z.softmax\(-1\) if these are logits",
    ),
    "a large index": (
        lambda: SelectedComponent(torch.tensor([0, 3]), NORMAL, validate_args=True),
        ValueError,
        r"an index `z` must be from 0 to 2, got e.g. 3; write",
    ),
    "a boolean": (
        lambda: SelectedComponent(torch.eye(K).bool(), NORMAL),
        TypeError,
        r"got a tensor of torch.bool; write z.float\(\) for one-hot .* z.long\(\) for indices",
    ),
    "a list": (
        lambda: SelectedComponent([1.0, 0.0, 0.0], NORMAL),
        TypeError,
        r"`z` must be a tensor of one-hot vectors.* got list; write torch.as_tensor\(z\)",
    ),
    "no distribution": (
        lambda: SelectedComponent(torch.eye(K), torch.zeros(K)),
        TypeError,
        r"`components` must be a distribution .* got Tensor; write pyro.distributions.Normal",
    ),
    "no batch": (
        lambda: SelectedComponent(torch.eye(K), dist.Normal(0.0, 1.0)),
        ValueError,
        r"`components` must be a distribution .* got batch_shape \(\); write",
    ),
    "validate_args": (
        lambda: SelectedComponent(torch.eye(K), NORMAL, "yes"),
        TypeError,
        r"`validate_args` must be True, False or None",
    ),
    "a value of another shape": (
        lambda: SelectedComponent(torch.eye(K), NORMAL).log_prob(torch.zeros(4)),
        ValueError,
        r"the shape of `value` must broadcast with batch_shape \(3,\)",
    ),
    "a value of another support": (
        lambda: SelectedComponent(
            torch.eye(K), dist.Gamma(torch.ones(K), 1.0), validate_args=True
        ).log_prob(-torch.ones(K)),
        ValueError,
        r"`value` must be in the support of a component, got e.g. -1, -1, -1",
    ),
    "no value": (
        lambda: SelectedComponent(torch.eye(K), NORMAL).log_prob(1.0),
        ValueError,
        r"`value` must be a tensor",
    ),
    "a smaller batch": (
        lambda: SelectedComponent(torch.eye(K), NORMAL).expand((2,)),
        ValueError,
        r"SelectedComponent.expand: `batch_shape` must be one that \(3,\) broadcasts to",
    ),
    "enumeration": (
        lambda: SelectedComponent(torch.eye(K), NORMAL).enumerate_support(),
        NotImplementedError,
        r"^$",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        call()


def test_an_index_that_no_integer_can_hold():
    components = dist.Normal(torch.zeros(3), 1.0)
    for z, words in ((10**400, "an int of 1329 bits"), (-1, "-1"), (3, "3")):
        with pytest.raises(ValueError, match=f"an index `z` must be from 0 to 2, got {words}; "):
            SelectedComponent(z, components)
