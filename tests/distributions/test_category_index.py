# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""`IndexStraightThrough`: Pyro's `Categorical`, with the gradient of the one-hot vector."""

import copy
import itertools
import math
import pickle
import re
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate, infer_discrete
from torch.distributions import kl_divergence
from torch.nn.functional import one_hot

import pyro_gumbel
from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    IndexStraightThrough,
    IndexTensor,
    LinearTemperature,
    MultinomialStraightThrough,
    estimators,
    relax,
)
from pyro_gumbel.tensors.index_tensor import as_derivative
from tests.common import assert_counts, on_a_face

CAT = dist.Categorical
K = 4
LOGITS = torch.tensor([[0.3, -0.2, 0.1, 1.0], [1.5, 0.0, -0.7, 0.2]], dtype=torch.float64)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
both = pytest.mark.parametrize("parameter", ["logits", "probs"])


def given(parameter="logits", dtype=torch.float64):
    """A parameter of two distributions over four categories, which requires a gradient."""
    value = LOGITS if parameter == "logits" else LOGITS.exp()  # weights need not sum to 1
    return {parameter: value.to(dtype, copy=True).requires_grad_()}


def make(parameter="logits", temperature=None, **options):
    return IndexStraightThrough(temperature, **given(parameter), **options)


def draw(distribution, sample_shape=(), seed=3):
    """A draw; of an index, one whose floats have the derivative in the one-hot vectors."""
    pyro.set_rng_seed(seed)
    value = distribution.rsample(sample_shape)
    return as_derivative(value) if isinstance(value, IndexTensor) else value


# It is Pyro's class.


@both
def test_it_is_pyros_categorical(parameter):
    d, plain = make(parameter).expand((3, 2)), CAT(**given(parameter)).expand((3, 2))
    assert isinstance(d, CAT)
    assert (d.batch_shape, d.event_shape) == (plain.batch_shape, plain.event_shape)
    assert d.has_rsample
    assert d.has_enumerate_support
    assert d.support.is_discrete
    assert (d.support.lower_bound, d.support.upper_bound) == (0, K - 1)
    for name in ("probs", "logits", "mean", "variance", "stddev", "mode", "param_shape"):
        torch.testing.assert_close(getattr(d, name), getattr(plain, name), equal_nan=True)
    torch.testing.assert_close(d.entropy(), plain.entropy())
    torch.testing.assert_close(d.perplexity(), plain.perplexity())


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("batch_shape", [(2,), (3, 2)])
def test_enumeration(batch_shape, expand):
    d, plain = (cls(logits=LOGITS).expand(batch_shape) for cls in (IndexStraightThrough, CAT))
    values = d.enumerate_support(expand)
    assert torch.equal(values, plain.enumerate_support(expand))
    assert values.dtype == torch.long
    expected = plain.log_prob(plain.enumerate_support(expand))
    torch.testing.assert_close(d.log_prob(values), expected)
    torch.testing.assert_close(plain.log_prob(values), expected)


@both
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.long, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (5, 2), (3, 1, 1), (0, 2)])
def test_log_prob_is_that_of_torch(shape, kind, parameter):
    value = torch.randint(K, shape).to(kind)
    for batch_shape in ((2,), (5, 2)):
        if shape != (0, 2) or batch_shape == (2,):
            plain = torch.distributions.Categorical(**given(parameter)).expand(batch_shape)
            found = make(parameter).expand(batch_shape).log_prob(value)
            torch.testing.assert_close(found, plain.log_prob(value))


def test_a_value_is_validated():
    d = make(validate_args=True)
    for wrong in (torch.tensor(K), torch.tensor(-1), torch.tensor(1.5), torch.tensor(math.nan)):
        got = f"{wrong.item():.6g}"
        with pytest.raises(ValueError, match=rf"`value` must be an integer from 0 .* {got}; write"):
            d.log_prob(wrong)
    with pytest.raises(ValueError, match=r"the shape of `value` must broadcast .*\(2,\)"):
        d.log_prob(torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match="`value` must be a tensor"):
        d.log_prob(1)
    assert make(validate_args=False).log_prob(torch.tensor(1.5)).isfinite().all()


def test_the_line_of_the_error_for_a_one_hot_value():
    value = torch.tensor([0.1, 0.2, 0.3, 0.4])
    d = IndexStraightThrough(logits=LOGITS[0], validate_args=True)
    with pytest.raises(ValueError, match=r"write value.argmax\(-1\) for a one-hot value"):
        d.log_prob(value)
    torch.testing.assert_close(d.log_prob(value.argmax(-1)), d.logits[3])


@pytest.mark.parametrize("name", ["cdf", "icdf"])
def test_what_it_does_not_have(name):
    with pytest.raises(NotImplementedError) as caught:
        getattr(make(), name)(torch.tensor(0.3))
    words = rf"IndexStraightThrough: `{name}` needs an order, and categories have none; (write|use)"
    assert re.match(words, str(caught.value))


# Samples.


@pytest.mark.parametrize("dtype", DTYPES)
@both
def test_categories_are_drawn_as_often_as_they_should_be(parameter, dtype):
    """A category of probability about .0025 among large ones, in bfloat16 too."""
    logits = torch.tensor([2.0, 1.0, 1.5, 0.0, -3.0, 0.5]).to(dtype)
    value = logits if parameter == "logits" else logits.float().softmax(-1).to(dtype)
    exact = value.double().softmax(-1) if parameter == "logits" else value.double()
    d = IndexStraightThrough(**{parameter: value.requires_grad_()})
    for drawn in (d.sample((100_000,)), d.rsample((100_000,)).detach()):
        assert drawn.dtype == torch.long
        assert_counts(drawn.bincount(minlength=6), exact.detach())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [None, 0.5, torch.tensor([0.3, 2.0])])
def test_the_same_seed_gives_the_same_category(temperature, dtype):
    """As `sample`, `rsample` and the one-hot vector."""
    d = IndexStraightThrough(temperature, **given(dtype=dtype)).expand((3, 2))
    z = draw(d, (5,))
    assert type(z) is IndexTensor
    assert z.shape == (5, 3, 2)
    pyro.set_rng_seed(3)
    sample = d.sample((5,))
    assert type(sample) is torch.Tensor
    assert torch.equal(z.detach(), sample)
    vectors = draw(
        CategoricalStraightThrough(temperature, **given(dtype=dtype)).expand((3, 2)), (5,)
    )
    assert torch.equal(vectors.detach().argmax(-1), sample)


def test_without_a_gradient_a_sample_is_a_plain_tensor():
    assert type(IndexStraightThrough(logits=LOGITS).rsample()) is torch.Tensor
    with torch.no_grad():
        assert type(make().rsample()) is torch.Tensor


@pytest.mark.parametrize("batch_shape", [(), (0,), (3, 0, 2)])
def test_one_category_and_empty_batches(batch_shape):
    logits = torch.zeros(*batch_shape, 1, requires_grad=True)
    d, table = IndexStraightThrough(logits=logits), torch.full((1, 3), 2.0, requires_grad=True)
    z = d.rsample((2,))
    assert z.shape == (2, *batch_shape)
    assert torch.equal(d.log_prob(z), torch.zeros(z.shape))
    for selected, number in ((table[:, 0][z], 1), (table[z], 3), (z * table.sum(), 0)):
        loss = (selected**2).sum() + d.log_prob(z).sum() + d.entropy().sum()
        found = torch.autograd.grad(loss, (logits, table), retain_graph=True)
        assert torch.equal(found[0], torch.zeros_like(logits))
        assert (found[1][0, :number] == 4 * z.numel()).all()


def test_wrappers_and_plates():
    d = make()
    mask = torch.tensor([True, False])
    values = torch.tensor([[0, 1], [2, 3], [1, 1]])
    expected = CAT(logits=LOGITS).log_prob(values)
    for form in (d.expand((3, 2)), copy.copy(d.expand((3, 2))), d.expand_by((3,))):
        assert type(form) is IndexStraightThrough
        assert form.rsample().shape == (3, 2)
        torch.testing.assert_close(form.log_prob(values), expected)
    wide = d.expand((3, 2))
    torch.testing.assert_close(wide.to_event(1).log_prob(values), expected.sum(-1))
    torch.testing.assert_close(wide.mask(mask).log_prob(values), expected * mask)
    assert isinstance(wide.to_event(1).mask(mask[0]).rsample(), IndexTensor)

    def model():
        with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1):
            return pyro.sample("z", d)

    with poutine.trace() as trace:
        assert type(model()) is IndexTensor
    trace.trace.compute_log_prob()
    assert trace.trace.nodes["z"]["log_prob"].shape == (3, 2)


def test_copies_keep_the_estimator_and_the_draw():
    d = make(temperature=0.7, estimator="gapped")
    expected = draw(d, (20,)).detach()
    for made in (copy.deepcopy(d), copy.copy(d), pickle.loads(pickle.dumps(d))):
        assert type(made) is IndexStraightThrough
        assert type(made.estimator) is type(d.estimator)
        assert torch.equal(draw(made, (20,)).detach(), expected)


def test_a_schedule_is_read_by_the_constructor():
    schedule = LinearTemperature(1.0, 0.5, num_steps=2)
    temperatures = []
    for _ in range(3):
        temperatures.append(make(temperature=schedule).temperature.item())
        schedule.step()
    assert temperatures == [1.0, 0.75, 0.5]


def test_as_the_weights_of_a_mixture():
    """torch asks for a Categorical."""
    weights, components = make(), dist.Normal(torch.arange(4.0).double(), 1.0)
    value = torch.tensor([0.3, 2.0], dtype=torch.float64)
    mixtures = [
        dist.MixtureSameFamily(each, components.expand((2, K)))
        for each in (weights, CAT(logits=LOGITS))
    ]
    torch.testing.assert_close(*(each.log_prob(value) for each in mixtures))
    torch.testing.assert_close(*(each.mean for each in mixtures))
    assert mixtures[0].sample().shape == (2,)


# Probabilities of 0.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@both
def test_impossible_categories(parameter, dtype):
    """They are never drawn, have the log_prob -inf without a gradient, and no gradient is NaN."""
    whole, possible = on_a_face(IndexStraightThrough, 2, parameter, dtype)
    leaf, rest = whole.clone().requires_grad_(), possible.clone().requires_grad_()
    d, smaller = (IndexStraightThrough(**{parameter: each}) for each in (leaf, rest))
    assert (d.rsample((1000,)).detach() < 2).all()
    log_prob = d.log_prob(d.enumerate_support())
    assert log_prob[2:].isneginf().all()
    (gradient,) = torch.autograd.grad(log_prob[2:].sum(), leaf, retain_graph=True)
    assert not gradient.any()
    for of_whole, of_rest in (
        (log_prob[:2], smaller.log_prob(smaller.enumerate_support())),
        (d.entropy(), smaller.entropy()),
        (
            kl_divergence(d, uniform_like(d)),
            math.log(2) + kl_divergence(smaller, uniform_like(smaller)),
        ),
        (kl_divergence(d, copy.deepcopy(d)), torch.zeros(2)),
    ):
        torch.testing.assert_close(of_whole, of_rest, check_dtype=False)
        (gradient,) = torch.autograd.grad(of_whole.sum(), leaf, retain_graph=True)
        assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(torch.arange(4.0)[d.rsample((9,))].sum(), leaf)
    assert gradient.isfinite().all()


def uniform_like(d):
    return CAT(logits=torch.zeros(d._parameter.shape[-1:]))


def test_the_gradient_leads_away_from_what_the_prior_excludes():
    """An impossible category counts as 100 nats less likely than the least likely possible one."""
    z = draw(IndexStraightThrough(logits=torch.tensor([0.0, -30.0, -30.0], requires_grad=True)))
    for prior in (IndexStraightThrough, CAT):
        log_prob = prior(logits=torch.tensor([1.0, 0.0, -math.inf])).log_prob(z)
        (gradient,) = torch.autograd.grad(log_prob, one_hot_of(z))
        assert gradient[2] == gradient[1] - 100
        assert gradient[1] < gradient[0]


def one_hot_of(z):
    """The one-hot vectors of a draw, in the graph."""
    ((draws,),) = [each.draws for each in z._outcomes]
    return draws.one_hot


# Divergences.

OTHERS = {
    "index": IndexStraightThrough,
    "pyro": dist.Categorical,
    "torch": torch.distributions.Categorical,
}


@both
@pytest.mark.parametrize("order", ["to", "from"])
@pytest.mark.parametrize("other", OTHERS)
def test_divergences_are_sums_over_categories(other, order, parameter):
    leaves = given(parameter)[parameter], torch.randn(3, 1, K).double().exp().requires_grad_()
    pair = [
        IndexStraightThrough(**{parameter: leaves[0]}),
        OTHERS[other](**{parameter: leaves[1]}),
    ]
    log_q, log_p = (d.logits for d in (pair if order == "to" else reversed(pair)))
    expected = (log_q.exp() * (log_q - log_p)).sum(-1)
    found = kl_divergence(*(pair if order == "to" else reversed(pair)))
    assert found.shape == (3, 2)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(3, 2, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((kl * weights).sum(), leaves, retain_graph=True)
        for kl in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("other", OTHERS)
def test_divergences_at_probability_zero(other):
    q = torch.tensor([0.5, 0.5, 0.0], requires_grad=True)
    p = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    pair = IndexStraightThrough(probs=q), OTHERS[other](probs=p)
    kl = kl_divergence(*pair)
    assert kl.item() == pytest.approx(0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.3))
    assert all(g.isfinite().all() for g in torch.autograd.grad(kl, (q, p)))
    assert kl_divergence(*reversed(pair)).isposinf()


def test_divergences_of_different_numbers_of_categories():
    with pytest.raises(ValueError, match="same number of categories, got 4 and 3"):
        kl_divergence(make(), CAT(torch.ones(3)))


def test_divergences_in_wrappers():
    q, p = make().expand((3, 2)), CAT(torch.ones(K)).expand((3, 2))
    found = kl_divergence(q.to_event(1), p.to_event(1))
    torch.testing.assert_close(found, kl_divergence(q, p).sum(-1))


@both
def test_mean_field_elbo_has_the_gradient_of_the_divergence(parameter):
    """Exactly: nothing is sampled where there is no data."""
    whole, _ = on_a_face(IndexStraightThrough, 3, parameter)
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    leaf = whole.clone().requires_grad_()

    def model():
        with pyro.plate("rows", 2):
            pyro.sample("z", CAT(prior))

    def guide():
        with pyro.plate("rows", 2):
            pyro.sample("z", IndexStraightThrough(**{parameter: leaf}))

    loss = TraceMeanField_ELBO().differentiable_loss(model, guide)
    expected = kl_divergence(IndexStraightThrough(**{parameter: leaf}), CAT(prior)).sum()
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(each, (leaf, prior)) for each in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0][0].isfinite().all()


# Gradients.


def shrunk(logits, temperature, perturbed, hard, link):
    """An estimator of a user."""
    return link(perturbed / 2, temperature) * hard.sum(-1, keepdim=True)


ESTIMATORS = {
    "default": (None, None),
    "default with a temperature": (0.7, None),
    "second_order": (None, "second_order"),
    **{name: (0.7, name) for name in ("gumbel_softmax", "straight_through", "reinmax", "gapped")},
    "gumbel_rao": (0.7, estimators.gumbel_rao(3)),
    "mve": (None, estimators.mve(30)),
    "reinmax_rao": (None, estimators.reinmax_rao(3)),
    "own": (0.7, shrunk),
    "a temperature each": (torch.tensor([0.3, 2.0]), None),
}


@pytest.mark.parametrize(("dtype", "places"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_is_that_of_the_one_hot_vector(estimator, rank, dtype, places):
    """Of ``table[z]`` that of ``D @ table``, in the parameter, the temperature and the table."""
    tau, name = ESTIMATORS[estimator]
    table = torch.randn(K, *(2, 3)[: rank - 1], dtype=dtype, requires_grad=True)
    results = []
    for cls in (IndexStraightThrough, CategoricalStraightThrough):
        leaves = [given(dtype=dtype)["logits"], table]
        if tau is not None:
            leaves.append(torch.as_tensor(tau, dtype=dtype).clone().requires_grad_())
        d = cls(*leaves[2:], logits=leaves[0], estimator=name)
        sample = draw(d, (5,))
        value = table[sample] if cls is IndexStraightThrough else torch.tensordot(sample, table, 1)
        loss = (value.cumsum(0) ** 2).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        results.append([value.detach(), *gradients])
    assert results[0][1].any()
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=places, atol=places * 10)


def joint(d):
    """The one-hot vectors of all outcomes of two variables, and their probabilities."""
    pairs = torch.tensor(list(itertools.product(range(K), repeat=2)))
    return one_hot(pairs, K).double(), d.log_prob(pairs).sum(-1).exp()


@both
def test_second_order_is_unbiased_for_quadratic_losses(parameter):
    """By enumeration: the mean over all outcomes of the estimated gradient is the gradient."""
    leaf = given(parameter)[parameter]
    d = IndexStraightThrough(**{parameter: leaf})
    first, second = torch.randn(2, K, dtype=torch.float64)
    table = torch.randn(K, K, dtype=torch.float64)

    def loss(z):
        x, y = z.unbind(-1)
        return first[x] * second[y] + table[x, y] + first[y] ** 2

    vectors, probs = joint(d)
    values = vectors.argmax(-1)
    (expected,) = torch.autograd.grad((probs * loss(values)).sum(), leaf, retain_graph=True)
    d._hard = lambda sample_shape: vectors  # all outcomes in place of random ones
    z = d.rsample((len(vectors),))
    assert torch.equal(z.detach(), values)
    (found,) = torch.autograd.grad((probs.detach() * loss(z)).sum(), leaf)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_gradient_under_transforms_of_torch():
    """The draw is inside of the function."""
    table = torch.randn(K, dtype=torch.float64)

    def loss(logits, cls):
        pyro.set_rng_seed(0)
        sample = cls(logits=logits).rsample()
        return (table[sample] if cls is IndexStraightThrough else sample @ table) ** 2

    both_forms = (IndexStraightThrough, CategoricalStraightThrough)
    row = LOGITS[0].clone()
    found, expected = (torch.func.grad(loss)(row, cls) for cls in both_forms)
    assert found.any()
    torch.testing.assert_close(found, expected)

    def mapped(cls):
        pyro.set_rng_seed(0)
        # Of one dimension: torch 2.8 cannot look up a single number under vmap.
        draws = torch.vmap(lambda x: table[IndexStraightThrough(logits=x).rsample((1,))],
                           randomness="different")  # fmt: skip
        return draws(LOGITS)

    assert mapped(IndexStraightThrough).shape == (2, 1)


def test_a_surrogate_that_is_not_finite_is_refused():
    def wrong(logits, temperature, perturbed, hard, link):
        return logits / 0

    d = IndexStraightThrough(0.5, logits=LOGITS, estimator=wrong, validate_args=True)
    with pytest.raises(ValueError, match=r"^IndexStraightThrough: `estimator` must return"):
        d.rsample()


# A prior that is not relaxed.

PRIORS = {
    "pyro": lambda p: dist.Categorical(**p),
    "torch": lambda p: torch.distributions.Categorical(**p),
    "index": lambda p: IndexStraightThrough(**p),
    "expanded": lambda p: dist.Categorical(**p).expand((3, 2)),
    "expanded of torch": lambda p: torch.distributions.Categorical(**p).expand((3, 2)),
    "wrapped": lambda p: ExpandedDistribution(dist.Categorical(**p), torch.Size((3, 2))),
}
FORMS = {
    "plain": lambda d: d,
    "independent": lambda d: dist.Independent(d, 1),
    "masked": lambda d: dist.MaskedDistribution(d, MASK),
    "masked and independent": lambda d: dist.Independent(dist.MaskedDistribution(d, MASK), 1),
}
MASK = torch.tensor([True, False])


@both
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("validate", [True, False])
def test_a_prior_passes_its_gradient_to_the_index(prior, form, parameter, validate):
    """As <D, log p>, with validation and without."""
    torch.distributions.Distribution.set_default_validate_args(validate)
    guide = IndexStraightThrough(logits=LOGITS.clone().requires_grad_())
    leaf = torch.randn(2, K, dtype=torch.float64).exp().requires_grad_()
    d = FORMS[form](PRIORS[prior]({parameter: leaf}))
    z = draw(guide.expand((3, 2)))
    log_p = leaf.log_softmax(-1) if parameter == "logits" else (leaf / leaf.sum(-1, True)).log()
    expected = (
        draw(CategoricalStraightThrough(logits=guide._parameter).expand((3, 2))) * log_p
    ).sum(-1)
    if "masked" in form:
        expected = expected * MASK
    if "independent" in form:
        expected = expected.sum(-1)
    found = d.log_prob(z)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((each * weights).sum(), (guide._parameter, leaf))
        for each in (found, expected)
    ]
    assert gradients[0][0].any()
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_log_probs_of_other_straight_through_classes_take_what_is_made_of_an_index():
    """Integers and truth values, with the gradient of the float that they stand for."""
    leaf = LOGITS.clone().requires_grad_()
    z = draw(IndexStraightThrough(logits=leaf))
    bit = BernoulliStraightThrough(probs=torch.tensor([0.2, 0.7]), validate_args=True)
    vector = CategoricalStraightThrough(
        probs=torch.tensor([0.1, 0.2, 0.3, 0.4]), validate_args=True
    )
    counts = MultinomialStraightThrough(1, torch.tensor([0.1, 0.2, 0.3, 0.4]), validate_args=True)
    vectors = one_hot(z, K)
    for d, value in ((bit, z == 1), (bit, (z == 1).long()), (vector, vectors), (counts, vectors)):
        found, expected = (
            torch.autograd.grad(d.log_prob(each).sum(), leaf, retain_graph=True)[0]
            for each in (value, value.double())
        )
        assert found.any()
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "constraint",
    [
        dist.constraints.one_hot,
        dist.constraints.multinomial(1),
        dist.constraints.independent(dist.constraints.integer_interval(0, 3), 1),
        pyro_gumbel.constraints.simplex,
    ],
)
@pytest.mark.parametrize("context", [nullcontext(), torch.get_default_device()])
def test_a_check_of_a_support_does_not_warn(constraint, context):
    """Nor under a default device, through which all functions of torch are called."""
    with context:
        assert constraint.check(one_hot(make().rsample(), K)).detach().all()


# A guide's site.


def test_what_rsample_returned_is_pathwise():
    d = make()
    z = d.rsample()
    with torch.no_grad():
        without = d.rsample()
    for value in (z, z.clone(), without, d.expand((5, 2)).rsample()[3]):
        scored = d.score_parts(value)
        assert scored.score_function == 0
        torch.testing.assert_close(scored.entropy_term, scored.log_prob)


def test_other_values_have_the_score_function():
    d = make()
    for value in (
        d.sample(),
        d.enumerate_support(),
        d.enumerate_support(False),
        d.rsample().detach(),
    ):
        scored = d.score_parts(value)
        assert torch.equal(scored.score_function, scored.log_prob)
        assert scored.entropy_term == 0


def test_a_site_without_rsample_has_the_score_function():
    with poutine.trace() as trace:
        pyro.sample("z", make().has_rsample_(False).to_event(1))
    assert type(trace.trace.nodes["z"]["value"]) is torch.Tensor
    trace.trace.compute_score_parts()
    assert trace.trace.nodes["z"]["score_parts"].score_function.requires_grad


SCALES = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
DATA = torch.tensor([0.3, -1.0], dtype=torch.float64)


def model():
    with pyro.plate("points", 2):
        z = pyro.sample("z", CAT(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)))
        pyro.sample("x", dist.Normal(torch.arange(4.0).double()[z], SCALES[z]), obs=DATA)


def log_joint():
    """Of each point and category."""
    table = dist.Normal(torch.arange(4.0).double(), SCALES).log_prob(DATA.unsqueeze(-1))
    return table + torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()


def test_an_enumerated_guide_has_the_exact_elbo_and_gradient():
    leaf = LOGITS.clone().requires_grad_()

    @config_enumerate
    def guide():
        with pyro.plate("points", 2):
            pyro.sample("z", IndexStraightThrough(logits=leaf))

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide)
    log_q = leaf.log_softmax(-1)
    expected = -(log_q.exp() * (log_joint() - log_q)).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, leaf)[0] for each in (loss, expected)))


def test_infer_discrete_finds_the_most_probable_category():
    @config_enumerate
    def relaxed_model():
        with pyro.plate("points", 2):
            probs = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
            z = pyro.sample("z", IndexStraightThrough(probs=probs))
            pyro.sample("x", dist.Normal(torch.arange(4.0).double()[z], SCALES[z]), obs=DATA)
            return z

    found = infer_discrete(relaxed_model, first_available_dim=-2, temperature=0)()
    assert torch.equal(found, log_joint().argmax(-1))


# relax.

PARAMETER_OF = {
    "Categorical": lambda p: CAT(**p),
    "of torch": lambda p: torch.distributions.Categorical(**p),
    "subclass": lambda p: type("Mine", (dist.Categorical,), {})(**p),
}


@both
@pytest.mark.parametrize("kind", PARAMETER_OF)
def test_a_categorical_becomes_an_index(kind, parameter):
    plain = PARAMETER_OF[kind](given(parameter))
    d = relax(plain)
    assert type(d) is IndexStraightThrough
    assert d.temperature is None
    assert d._parameter_name == parameter
    torch.testing.assert_close(d.probs, plain.probs)
    assert relax(d) is relax(d, 0.5) is relax(d, 0.5, hard=False) is d
    at = relax(plain, torch.tensor([0.5, 2.0]), estimator="reinmax")
    assert at.temperature.tolist() == [0.5, 2.0]
    assert at.estimator is estimators.reinmax
    assert relax(plain.expand((3, 2))).batch_shape == (3, 2)


def test_an_ordered_logistic_becomes_an_index():
    predictor = torch.tensor([0.3, -1.0], requires_grad=True)
    cutpoints = torch.tensor([0.0, 1.0], requires_grad=True)
    plain = dist.OrderedLogistic(predictor, cutpoints)
    for form in (plain, plain.expand((3, 2))):
        d = relax(form)
        assert type(d) is IndexStraightThrough
        assert d.batch_shape == form.batch_shape
        values = form.enumerate_support()
        torch.testing.assert_close(d.log_prob(values), form.log_prob(values))
        torch.testing.assert_close(kl_divergence(d, form), torch.zeros(form.batch_shape))
        loss = torch.tensor([1.0, 0.0, 5.0])[draw(d, (20,))].sum()
        leaves = predictor, cutpoints
        assert all(g.any() for g in torch.autograd.grad(loss, leaves, retain_graph=True))


@pytest.mark.parametrize("validate", [True, False])
def test_wrappers_are_kept(validate):
    plain = CAT(logits=LOGITS, validate_args=validate)
    for form in (
        lambda d: d.to_event(1),
        lambda d: d.mask(MASK),
        lambda d: d.mask(MASK).to_event(1),
        lambda d: d.expand((3, 2)).to_event(2).mask(False),
        lambda d: ExpandedDistribution(d, torch.Size((3, 2))),
    ):
        made, wrapped = relax(form(plain)), form(plain)
        assert (made.batch_shape, made.event_shape) == (wrapped.batch_shape, wrapped.event_shape)
        value = wrapped.sample()
        torch.testing.assert_close(made.log_prob(value), wrapped.log_prob(value))
        assert isinstance(made.rsample(), torch.Tensor)
        assert relax(made) is made
        while hasattr(made, "base_dist"):
            made = made.base_dist
        assert type(made) is IndexStraightThrough
        assert made._validate_args is validate


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize(
    "d",
    [
        CAT(logits=LOGITS[0]),
        CAT(probs=LOGITS[0].exp()),
        dist.OrderedLogistic(torch.tensor(0.0), torch.tensor([0.0, 1.0])),
    ],
    ids=["logits", "probs", "ordered logistic"],
)
def test_an_index_has_no_relaxed_form(d, temperature):
    """And the line of the error gives one."""
    for form in (d, d.expand((2,)), d.mask(True)):
        words = f"for hard=False, got a {type(d).__name__}, .*, or leave its site out"
        with pytest.raises(TypeError, match=words) as caught:
            relax(form, temperature, hard=False)
    line = re.search(r"write (OneHotCategorical\(.*?\)) for this distribution d", str(caught.value))
    one_hots = eval(line[1], {"OneHotCategorical": dist.OneHotCategorical, "d": d})
    torch.testing.assert_close(one_hots.probs, d.probs)
    z = relax(one_hots, 0.5, hard=False).rsample()
    assert (z @ torch.ones_like(z)).item() == pytest.approx(1.0)
