# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""`LearnedCurvature` against enumeration, its literal form, and the life of a module."""

import copy
import itertools
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    LearnedCurvature,
    PlackettLuceStraightThrough,
    SubsetStraightThrough,
    links,
    straight_through,
)
from tests.common import seeded

DOUBLE = torch.float64
# The event shape of a site, and the link.
SITES = {"bits": ((4,), links.interval), "one-hot": ((3, 3), links.simplex)}
CLASSES = {"bits": BernoulliStraightThrough, "one-hot": CategoricalStraightThrough}


def probabilities(x, link):
    return x.sigmoid() if link is links.interval else x.softmax(-1)


def outcomes(shape, link):
    """All values of a draw."""
    if link is links.interval:
        return torch.tensor(list(itertools.product([0.0, 1.0], repeat=shape[0])), dtype=DOUBLE)
    each = torch.eye(shape[-1], dtype=DOUBLE)
    return torch.stack([torch.stack(d) for d in itertools.product(each, repeat=shape[0])])


def chances(x, values, link):
    """The probability of each value."""
    p = probabilities(x, link)
    if link is links.interval:
        return torch.where(values > 0, p, 1 - p).prod(-1)
    return (values * p).sum(-1).prod(-1)


def quadratic(shape, seed=0):
    """A gradient at 0 and a Hessian matrix."""
    n = torch.Size(shape).numel()
    b, a = seeded(torch.randn, seed, n, dtype=DOUBLE), seeded(torch.randn, seed, n, n, dtype=DOUBLE)
    return b, a + a.T


def estimate(estimator, x, values, loss, link):
    """The gradient in x at each value, one row a value."""
    x = x.expand(values.shape).clone().requires_grad_()
    draws = values.clone().requires_grad_()
    (u,) = torch.autograd.grad(loss(draws.flatten(1)).sum(), draws)
    surrogate = estimator(x, torch.ones((), dtype=DOUBLE), x.detach(), values, link)
    return torch.autograd.grad((surrogate * u).sum(), x)[0]


def exact(x, values, loss, link):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((chances(x, values, link) * loss(values.flatten(1))).sum(), x)[0]


def frozen(shape, curvature):
    """An estimator in evaluation mode, with a given H."""
    estimator = LearnedCurvature(shape).double().eval()
    estimator.curvature.copy_(curvature)
    return estimator


@pytest.mark.parametrize("kind", SITES)
def test_for_a_quadratic_of_its_curvature_every_draw_gives_the_exact_gradient(kind):
    shape, link = SITES[kind]
    b, a = quadratic(shape)
    x, values = seeded(torch.randn, 1, *shape, dtype=DOUBLE), outcomes(shape, link)

    def loss(d):
        return d @ b + (d @ a * d).sum(-1) / 2

    found = estimate(frozen(shape, a), x, values, loss, link)
    expected = exact(x, values, loss, link).expand_as(found)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", SITES)
def test_for_other_losses_it_is_that_of_straight_through_for_the_rest(kind):
    """On average; what H says of two variables changes no average."""
    shape, link = SITES[kind]
    x, values = seeded(torch.randn, 1, *shape, dtype=DOUBLE), outcomes(shape, link)
    weight = chances(x, values, link).reshape(-1, *[1] * len(shape))
    _, h = quadratic(shape, seed=2)
    p = probabilities(x, link).flatten()

    def loss(d):
        return (d.cumsum(-1) / 2).exp().sum(-1)

    def model(d):
        return ((d - p) @ h * (d - p)).sum(-1) / 2

    def mean(estimator, f):
        return (weight * estimate(estimator, x, values, f, link)).sum(0)

    found = mean(frozen(shape, h), loss)
    rest = mean(straight_through, lambda d: loss(d) - model(d))
    torch.testing.assert_close(found, rest + exact(x, values, model, link))
    blocks = torch.block_diag(*torch.ones(len(p) // shape[-1], shape[-1], shape[-1]))
    blocks = torch.eye(len(p)) if link is links.interval else blocks
    across = torch.where(blocks > 0, 0.0, h)
    torch.testing.assert_close(mean(frozen(shape, across), loss), mean(straight_through, loss))


def literally_learned(h, residual, spread, p, values, u, step, ridge, k):
    """The next H, mean and size of r, by inverses and outer products."""
    n, size = len(values), len(h)
    covariance = torch.zeros(size, size, dtype=DOUBLE)
    for at in range(0, size, k):
        of = slice(at, at + k)
        for q in p[:, of]:
            covariance[of, of] += (torch.diag(q) - torch.outer(q, q)) / n
        covariance[of, of] += ridge / k * torch.eye(k, dtype=DOUBLE)
    rest = [u[i] - h @ (values[i] - p[i]) - residual for i in range(n)]
    usual = (sum(r @ r for r in rest) / n).sqrt()
    spread = usual if spread == 0 else spread
    share = min(1.0, 4 * spread / usual)
    change, mean = torch.zeros(size, size, dtype=DOUBLE), torch.zeros(size, dtype=DOUBLE)
    for d, r in zip(values - p, rest, strict=True):
        scaled = torch.linalg.inv(covariance) @ d
        change += torch.outer(scaled, r) / (n + d @ scaled)
        mean += r / (n + d @ scaled)
    return (
        h + step * share * (change + change.T) / 2,
        residual + step * share * mean,
        (1 - step) * spread + step * share * usual,
    )


@pytest.mark.parametrize("kind", SITES)
def test_it_learns_by_least_squares(kind):
    shape, link = SITES[kind]
    values = outcomes(shape, link)[::2]
    x = seeded(torch.randn, 3, len(values), *shape, dtype=DOUBLE)
    estimator = LearnedCurvature(shape, step=0.3, ridge=0.05).double()
    state = [buffer.clone() for buffer in estimator.buffers()]
    p, d = probabilities(x, link).flatten(1), values.flatten(1)
    k = 1 if link is links.interval else shape[-1]
    for scale in (1.0, 1.5, 1000.0, 2.0):
        u = scale * (d @ state[0] / 9 + d.cumsum(-1)).exp()
        state = literally_learned(*state, p, d, u, 0.3, 0.05, k)
        draw = estimator(x.requires_grad_(), torch.ones(()), x.detach(), values, link)
        draw.backward(u.view_as(values))
        for buffer, expected in zip(estimator.buffers(), state, strict=True):
            torch.testing.assert_close(buffer, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("step", [0.5, 1.0])
def test_it_is_stable_in_small_batches(kind, batch, step):
    """Of 30 categories or bits, and of logits that differ from example to example."""
    torch.manual_seed(0)
    shape = (30,) if kind == "bits" else (6, 5)
    b, a = (t.float() for t in quadratic(shape))
    estimator = LearnedCurvature(shape, step=step)
    for _ in range(300):
        logits = 3 * torch.randn(batch, *shape)
        d = CLASSES[kind](logits=logits.requires_grad_(), estimator=estimator).rsample().flatten(1)
        (d @ b + (d @ a * d).sum(-1) / 2).sum().backward()
    assert estimator.curvature.abs().max() < 5 * a.abs().max()


def test_one_far_too_large_gradient_is_soon_forgotten():
    torch.manual_seed(0)
    b, a = (t.float() for t in quadratic((3, 3)))
    estimator = LearnedCurvature((3, 3))

    def step(scale=1.0):
        d = drawn(estimator, 50)[1].flatten(1)
        (scale * (d @ b + (d @ a * d).sum(-1) / 2).sum()).backward()

    for _ in range(100):
        step()
    before = estimator.curvature.clone()
    step(1e6)
    assert (estimator.curvature - before).abs().max() < 4 * a.abs().max()
    for _ in range(100):
        step()
    assert (estimator.curvature - before).abs().max() < 0.1 * a.abs().max()


@pytest.mark.parametrize("kind", SITES)
def test_what_it_has_learned_takes_off_noise_and_bias(kind):
    """Of a quadratic loss, whose straight-through gradient has both."""
    torch.manual_seed(0)
    (shape, link), cls = SITES[kind], CLASSES[kind]
    b, a = (t.float() for t in quadratic(shape))
    estimator = LearnedCurvature(shape, step=0.1)

    def gradients(x, estimator):
        d = cls(logits=x, estimator=estimator, **more[estimator]).rsample().flatten(1)
        (found,) = torch.autograd.grad((d @ b + (d @ a * d).sum(-1) / 2).sum(), x)
        return found

    more = {estimator: {}, straight_through: {"temperature": 1.0}}
    for _ in range(300):
        gradients(torch.randn(100, *shape, requires_grad=True), estimator)
    estimator.eval()
    x = seeded(torch.randn, 5, *shape)
    rows = x.expand(1000, *shape).clone().requires_grad_()
    values = outcomes(shape, link)
    expected = exact(
        x.double(), values, lambda d: d @ b.double() + (d @ a.double() * d).sum(-1) / 2, link
    ).float()
    errors = {e: (gradients(rows, e) - expected).square().mean().sqrt() for e in more}
    assert errors[estimator] < errors[straight_through] / 30


def drawn(estimator, n=5, cls=CategoricalStraightThrough, **given):
    """Logits and a draw."""
    logits = torch.randn(n, *estimator.shape, **given).requires_grad_()
    return logits, cls(logits=logits, estimator=estimator).rsample()


def test_it_stays_as_it_is_in_evaluation_mode_and_at_gradients_that_are_not_finite():
    torch.manual_seed(0)
    estimator = LearnedCurvature((2, 3))
    drawn(estimator)[1].square().sum().backward()
    before = copy.deepcopy(estimator.state_dict())
    estimator.eval()
    drawn(estimator)[1].sum().backward()
    estimator.train()
    for number in (torch.inf, torch.nan):
        draw = drawn(estimator)[1]
        draw.backward(torch.full_like(draw, number))
    torch.testing.assert_close(estimator.state_dict(), before, atol=0, rtol=0)
    drawn(estimator)[1].sum().backward()
    assert not torch.equal(estimator.curvature, before["curvature"])


def test_a_guide_refuses_sites_that_it_does_not_suit():
    def model(is_masked=False, number=1):
        for i in range(number):
            with pyro.poutine.mask(mask=torch.tensor(not is_masked)), pyro.plate(f"p{i}", 2):
                pyro.sample(f"z{i}", dist.Bernoulli(0.5))

    estimator = LearnedCurvature(())
    with pytest.raises(ValueError, match=r"for all sites, \['z0', 'z1'\], got LearnedCurvature"):
        AutoRelaxed(model, estimator=estimator)(number=2)
    with pytest.raises(ValueError, match='site "z0" is masked or partly observed'):
        AutoRelaxed(model, estimator=estimator)(is_masked=True)
    known = torch.tensor([True, False])

    def partly():
        with pyro.plate("p", 2):
            pyro.sample("y", dist.Bernoulli(0.5), obs=torch.ones(2), obs_mask=known)

    with pytest.raises(ValueError, match='site "y_unobserved" is masked or partly observed'):
        AutoRelaxed(partly, estimator=estimator)()


def test_float64_logits_are_computed_in_float64():
    logits = torch.zeros(4, 2, 3, dtype=DOUBLE, requires_grad=True)
    draw = CategoricalStraightThrough(logits=logits, estimator=LearnedCurvature((2, 3))).rsample()
    (draw * torch.arange(3.0).double() * 1e60).sum().backward()
    expected = torch.tensor([-1 / 3, 0.0, 1 / 3], dtype=DOUBLE) * 1e60
    torch.testing.assert_close(logits.grad, expected.expand(4, 2, 3))


def test_it_is_saved_and_copied_with_what_it_has_learned(tmp_path):
    torch.manual_seed(0)
    estimator = LearnedCurvature((2, 3), step=0.2)
    drawn(estimator)[1].square().sum().backward()
    torch.save(estimator.state_dict(), tmp_path / "state.pt")
    loaded = LearnedCurvature((2, 3))
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for other in (loaded, copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert torch.equal(other.curvature, estimator.curvature)
        assert torch.equal(other.residual, estimator.residual)
    assert repr(estimator) == "LearnedCurvature((2, 3), step=0.2, ridge=0.01)"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_shapes(dtype):
    torch.manual_seed(0)
    estimator = LearnedCurvature((2, 3))
    logits = torch.randn(4, 1, 2, 3, dtype=dtype, requires_grad=True)
    d = CategoricalStraightThrough(logits=logits, estimator=estimator).expand((4, 5, 2))
    draw = d.to_event(1).rsample((7,))
    assert draw.shape == (7, 4, 5, 2, 3)
    assert draw.dtype == dtype
    assert set(draw.unique().tolist()) == {0.0, 1.0}
    draw.float().square().sum().backward()
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()
    assert estimator.curvature.dtype == torch.float32


def test_autocast_does_not_lower_what_it_computes():
    torch.manual_seed(0)
    estimators = [LearnedCurvature((2, 3)) for _ in range(2)]
    logits = torch.randn(8, 2, 3, requires_grad=True)
    for estimator, enabled in zip(estimators, (False, True), strict=True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            draw = CategoricalStraightThrough(logits=logits, estimator=estimator).rsample()
            (draw * torch.linspace(-1, 1, 3)).sum().square().backward()
    assert torch.equal(estimators[0].curvature, estimators[1].curvature)


def test_impossible_categories_pass_no_gradient():
    torch.manual_seed(0)
    estimator = LearnedCurvature((2, 3))
    for _ in range(3):
        logits = torch.randn(5, 2, 3)
        logits[..., 1] = -torch.inf
        logits.requires_grad_()
        draw = CategoricalStraightThrough(logits=logits, estimator=estimator).rsample()
        draw.exp().sum().backward()
        assert logits.grad.isfinite().all()
        assert (logits.grad[..., 1] == 0).all()


def test_a_guide_that_is_trained_with_it():
    """The posterior of a sum of bits, with a mean-field guide that is best by symmetry."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    estimator = LearnedCurvature((3,))

    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(), 0.7), obs=torch.tensor(3.0))

    def guide():
        logits = pyro.param("logits", torch.zeros(3))
        pyro.sample("z", BernoulliStraightThrough(logits=logits, estimator=estimator).to_event(1))

    svi = SVI(model, guide, Adam({"lr": 0.05}), TraceMeanField_ELBO())
    for _ in range(400):
        svi.step()
    assert pyro.param("logits").min() > 1.5
    # The Hessian matrix of the loss is 1 / 0.7^2 in all entries.
    torch.testing.assert_close(estimator.curvature.mean().item(), 1 / 0.49, atol=0.5, rtol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile itself
def test_it_runs_in_a_compiled_function():
    torch.manual_seed(0)
    estimator = LearnedCurvature((2, 3))

    @partial(torch.compile, backend="eager")
    def loss(logits):
        return (
            CategoricalStraightThrough(logits=logits, estimator=estimator).rsample().square().sum()
        )

    logits = torch.randn(4, 2, 3, requires_grad=True)
    loss(logits).backward()
    assert logits.grad.isfinite().all()
    assert estimator.curvature.abs().sum() > 0


def test_what_it_cannot_do_is_an_error():
    estimator = LearnedCurvature((2, 3))

    def drawn_from(logits):
        return CategoricalStraightThrough(logits=logits, estimator=estimator).rsample()

    with pytest.raises(ValueError, match=r"`shape` must be the last dimensions.*\(5, 3, 3\)"):
        CategoricalStraightThrough(logits=torch.zeros(5, 3, 3), estimator=estimator).rsample()
    with pytest.raises(ValueError, match=r"write LearnedCurvature\(\(6,\)\)"):
        BernoulliStraightThrough(logits=torch.zeros(30, 6), estimator=estimator).rsample()
    with pytest.raises(ValueError, match="the interval or the simplex"):
        SubsetStraightThrough(None, 1, logits=torch.zeros(2, 3), estimator=estimator).rsample()
    with pytest.raises(ValueError, match="rows that depend on each other, got LearnedCurvature"):
        PlackettLuceStraightThrough(None, 2, logits=torch.zeros(3), estimator=estimator)
    with pytest.raises(NotImplementedError, match="LearnedCurvature: learns in the backward pass"):
        torch.vmap(drawn_from, randomness="different")(torch.zeros(4, 2, 3))
    logits, draw = drawn(estimator)
    (gradient,) = torch.autograd.grad(draw.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with pytest.raises(ValueError, match="`temperature` must be None"):
        CategoricalStraightThrough(0.5, logits=logits, estimator=estimator)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"shape": (2.5,)}, TypeError, "`shape`"),
        ({"shape": (0, 3)}, ValueError, "`shape` must be of 1 or more"),
        ({"shape": (2,), "step": 0}, ValueError, "`step` must be a finite number above 0"),
        ({"shape": (2,), "step": 1.5}, ValueError, "`step` must be at most 1"),
        ({"shape": (2,), "ridge": -1}, ValueError, "`ridge`"),
        ({"shape": (2,), "ridge": "a"}, TypeError, "`ridge`"),
    ],
)
def test_bad_arguments(given, error, text):
    with pytest.raises(error, match=text):
        LearnedCurvature(**given)
