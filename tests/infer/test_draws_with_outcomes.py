# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""`relaxed(model, outcomes=...)`: exact gradients of binary and one-hot draws, and derivatives."""

import warnings
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    JitTraceMeanField_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)

from pyro_gumbel import PlackettLuce, Subset, relaxed
from pyro_gumbel.tensors.deferred import DeferredTensor
from tests.common import seeded

POINTS, K = 3, 3
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return seeded(torch.randn, GENERATOR, shape, dtype=torch.float64)


X, A, B = normal(POINTS), normal(POINTS), normal(POINTS)
LOCS, SCALES, MATRIX = normal(K), normal(K).exp(), normal(K, 2)
SITES = {
    "bits": (dist.Bernoulli, torch.zeros(()), normal(POINTS)),
    "one-hot": (dist.OneHotCategorical, torch.zeros(K), normal(POINTS, K)),
    "index": (dist.Categorical, torch.zeros(K), normal(POINTS, K)),
}

# What is made of a draw, by its kind.
FACTORS = {
    "a sum of two": ("bits", lambda z: dist.Normal(z * A + (1 - z) * B, z + 0.5)),
    "a choice": ("bits", lambda z: dist.Normal(torch.where(z.bool(), A, B), 1.0)),
    "a comparison": ("bits", lambda z: dist.Normal(torch.where(z.eq(1), A, B), 1.0 + (z > 0.5))),
    "a lookup of bits": ("bits", lambda z: dist.Normal(LOCS[z.long()], SCALES[z.to(torch.int32)])),
    "a bit and its lookup": ("bits", lambda z: dist.Normal(LOCS[z.long()] * z, 1.0)),
    "a bit beside its lookup": ("bits", lambda z: dist.Normal(z, SCALES[z.long()])),
    "its entries": (
        "bits",
        lambda z: dist.Normal(LOCS[torch.cat([z[..., :2].long(), z[..., 2:].long()], -1)], 1.0),
    ),
    "a loop over it": (
        "bits",
        lambda z: dist.Normal(torch.stack([LOCS[each.long()] for each in z.T]).T, 1.0),
    ),
    "moved": (
        "bits",
        lambda z: dist.Normal(torch.where(z.unsqueeze(-1).flatten(-2).bool(), A, B), 1.0),
    ),
    "computed": ("bits", lambda z: dist.Normal(LOCS[(2 - z).to(torch.int64)], 1.0)),
    "a larger number": ("bits", lambda z: dist.Normal(torch.where(2 * z - 1 > 0, A, B), 1.0)),
    "twice it and its lookup": ("bits", lambda z: dist.Normal(2 * z * LOCS[z.long()], 1.0)),
    "a curve and its lookup": (
        "bits",
        lambda z: dist.Normal((z * A).exp(), (SCALES[z.long()] * (z + B)).abs()),
    ),
    "its largest": (
        "bits",
        lambda z: dist.Normal(LOCS[torch.stack([z, 0.5 + 0 * z], -1).max(-1)[1]], 1.0),
    ),
    "a category": ("one-hot", lambda z: dist.Normal(LOCS[z.argmax(-1)], SCALES[z.argmax(dim=-1)])),
    "a category that is kept": (
        "one-hot",
        lambda z: dist.Normal(LOCS[z.argmax(-1, keepdim=True)].squeeze(-1), 1.0),
    ),
    "a category of a view": (
        "one-hot",
        lambda z: dist.Normal(LOCS[z.unsqueeze(-2).max(-1)[1].squeeze(-1)], 1.0),
    ),
    "a category by its number": (
        "one-hot",
        lambda z: dist.Normal(LOCS[(z * torch.arange(3.0).double()).sum(-1).long()], 1.0),
    ),
    "a choice of entries": (
        "one-hot",
        lambda z: dist.Normal(torch.where(z.bool(), LOCS, 0.0).sum(-1), 1.0),
    ),
    "entries that are compared": (
        "one-hot",
        lambda z: dist.Normal(((z == 1) * LOCS).sum(-1), (SCALES * z.long()).sum(-1)),
    ),
    "a power": ("bits", lambda z: dist.Normal(1.7**z, A.exp() ** z)),
    "a product": ("one-hot", lambda z: dist.Normal((z * LOCS).sum(-1), (z * SCALES).sum(-1))),
    "a matrix product": ("one-hot", lambda z: dist.Normal(z @ LOCS, z @ SCALES)),
    "a product of vectors": ("one-hot", lambda z: dist.Normal(z @ MATRIX, 1.0).to_event(1)),
    "a lookup": ("index", lambda z: dist.Normal(LOCS[z], SCALES[z])),
    "a lookup and a product": ("index", lambda z: dist.Normal(LOCS[z] * z, 1.0)),
}


def model_and_guide(name):
    kind, factor = FACTORS[name]
    family, prior, start = SITES[kind]
    logits = start.clone().requires_grad_()

    def model():
        with pyro.plate("points", POINTS):
            z = pyro.sample("z", family(logits=prior.double()))
            likelihood = factor(z)
            value = X.unsqueeze(-1).expand(-1, 2) if likelihood.event_shape else X
            pyro.sample("x", likelihood, obs=value)

    def guide():
        with pyro.plate("points", POINTS):
            pyro.sample("z", family(logits=logits))

    return model, guide, logits


def error_of(name, outcomes, model_of=relaxed):
    """Of the mean of a few gradients, relative to the exact gradient."""
    model, guide, logits = model_and_guide(name)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, config_enumerate(guide))
    (exact,) = torch.autograd.grad(loss, logits)
    elbo = TraceMeanField_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.differentiable_loss(model_of(model, outcomes=outcomes), relaxed(guide))
    (found,) = torch.autograd.grad(loss, logits)
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("name", FACTORS)
def test_every_draw_has_the_exact_gradient(name):
    """Points are independent, so that outcomes leave no noise."""
    assert error_of(name, outcomes=True) < 1e-10


@pytest.mark.parametrize("name", ["a choice", "a comparison", "a lookup of bits"])
def test_in_a_trace_of_torch_it_is_the_same(name):
    """The gradient has no noise, so that other draws do not matter."""
    model, _, leaf = model_and_guide(name)
    start = leaf.detach()

    def guide():
        logits = pyro.param("logits", start.clone())
        with pyro.plate("points", POINTS):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    found = []
    for elbo in (TraceMeanField_ELBO(), JitTraceMeanField_ELBO(ignore_jit_warnings=True)):
        pyro.clear_param_store()
        elbo.loss_and_grads(relaxed(model), relaxed(guide))
        found.append(pyro.param("logits").grad)
    torch.testing.assert_close(*found)


# Where the derivative of a draw ends: it becomes integers or truth values.
ENDS = {
    *("a choice", "a comparison", "a lookup of bits", "a bit and its lookup"),
    "a bit beside its lookup",
    *("a choice of entries", "entries that are compared"),
    *("its entries", "a loop over it", "moved", "computed", "a larger number"),
    *("twice it and its lookup", "a curve and its lookup", "its largest"),
    *("a category", "a category that is kept", "a category of a view"),
    "a category by its number",
}
# The index of a one-hot vector has a derivative.
ENDS_SILENTLY = {"a category", "a category that is kept"}
HAVE_OUTCOMES = [name for name, (kind, _) in FACTORS.items() if kind == "index" or name in ENDS]


@pytest.mark.parametrize("name", HAVE_OUTCOMES)
def test_an_index_and_what_has_no_derivative_have_outcomes_by_default(name):
    assert error_of(name, outcomes=None) < 1e-10


@pytest.mark.parametrize("name", HAVE_OUTCOMES)
def test_so_they_have_in_a_plain_model(name):
    """What is made of the guide's draws, in the distributions of Pyro's own."""
    assert error_of(name, outcomes=None, model_of=lambda model, outcomes: model) < 1e-10


@pytest.mark.parametrize("name", [name for name in FACTORS if name not in HAVE_OUTCOMES])
def test_other_draws_have_derivatives_by_default(name):
    assert error_of(name, outcomes=None) > 1e-3


@pytest.mark.parametrize("name", FACTORS)
def test_without_outcomes_all_have_derivatives(name):
    """What has none warns."""
    words = "expected an operation that passes on the derivative of a draw z"
    warns = name in ENDS - ENDS_SILENTLY
    with pytest.warns(UserWarning, match=words) if warns else nullcontext():
        assert error_of(name, outcomes=False) > 1e-3


WITHOUT_OUTCOMES = {
    "Poisson": lambda x: dist.Poisson(x.exp()),
    "Binomial": lambda x: dist.Binomial(3, logits=x),
    "Multinomial": lambda x: dist.Multinomial(3, logits=x),
    "Subset": lambda x: Subset(2, logits=x),
    "PlackettLuce": lambda x: PlackettLuce(2, logits=x),
}
USES = {
    "long": lambda z: z.long(),
    "to": lambda z: z.to(torch.bool),
    "eq": lambda z: z == 1,
    "gt": lambda z: torch.gt(z, 0.5),
    "nonzero": lambda z: z.nonzero(),
    "tolist": lambda z: z.tolist(),
}


def used_in_a_model(kind, use, outcomes):
    """What a model makes of a draw and of the same plain numbers, and the warnings."""
    x = torch.zeros(3, requires_grad=True)

    @relaxed(outcomes=outcomes)
    def model():
        z = pyro.sample("z", WITHOUT_OUTCOMES[kind](x))
        return USES[use](z), USES[use](z.detach())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return *model(), caught


@pytest.mark.parametrize("outcomes", [None, True, False])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", WITHOUT_OUTCOMES)
def test_a_draw_without_outcomes_warns_where_its_derivative_ends(kind, use, outcomes):
    found, expected, (warning,) = used_in_a_model(kind, use, outcomes)
    if use == "tolist":
        assert found == expected
    else:
        assert found.equal(expected)
    assert warning.filename == __file__
    assert "passes on the derivative of a draw z" in str(warning.message)
    assert "z.detach()" in str(warning.message)


@pytest.mark.parametrize(
    "use", [torch.isnan, torch.zeros_like, lambda z: z.new_ones(2).long(), lambda z: z.size(-1)]
)
def test_what_only_asks_does_not_warn(use, monkeypatch):
    monkeypatch.setitem(USES, "asks", use)
    assert not used_in_a_model("Poisson", "asks", None)[-1]


def without_a_gradient(z):
    with torch.no_grad():
        return z.long()


@pytest.mark.parametrize("use", [without_a_gradient, lambda z: dist.Poisson(2.0).log_prob(z)])
def test_where_no_gradient_is_recorded_and_in_the_checks_of_distributions_nothing_warns(
    use, monkeypatch
):
    monkeypatch.setitem(USES, "silent", use)
    assert not used_in_a_model("Poisson", "silent", None)[-1]


@pytest.mark.parametrize("site", [dist.Bernoulli, dist.OneHotCategorical])
@pytest.mark.parametrize("use", [lambda z: z.long(), lambda z: z[:2] > 0.5, lambda z: z == 1])
def test_a_relaxed_value_warns_where_its_derivative_ends(site, use):
    """Its numbers are not even those of a draw."""
    logits = torch.zeros(3, requires_grad=True)

    @relaxed(temperature=0.5, hard=False)
    def model():
        return use(pyro.sample("z", site(logits=logits)))

    with pytest.warns(UserWarning, match="passes on the derivative of a draw z") as caught:
        assert type(model()) is torch.Tensor
    assert len(caught) == 1


def test_bits_that_were_changed_in_place_warn():
    logits = torch.zeros(3, requires_grad=True)

    @relaxed
    def model():
        return pyro.sample("y", dist.Bernoulli(logits=logits)).mul_(2.0).long()

    with pytest.warns(UserWarning, match="passes on the derivative of a draw z, got long"):
        assert type(model()) is torch.Tensor


@pytest.mark.parametrize("use", [bool, int, torch.Tensor.item])
def test_a_number_of_a_bit_warns(use):
    @relaxed
    def model():
        z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros((), requires_grad=True)))
        return use(z), use(z.detach())

    with pytest.warns(UserWarning, match=r"write torch.where\(z == 1, a, b\) or table") as caught:
        found, expected = model()
    assert found == expected
    assert [each.filename for each in caught] == [__file__]


OF_A_DRAW = {
    "bits": lambda z, values: values[0] + z * (values[1] - values[0]),
    "one-hot": lambda z, values: z @ values,
    "index": lambda z, values: values[z],
}


@pytest.mark.parametrize("kind", OF_A_DRAW)
def test_a_model_reads_the_draw_of_which_the_guide_makes_another_site(kind):
    """Read as two draws, the product would have the gradient of a product of two means."""
    family, prior, _ = SITES[kind]
    logits = normal(*prior.shape).requires_grad_()
    a, b = normal(K), normal(K)

    def model():
        z = pyro.sample("z", family(logits=prior.double()))
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.factor("f", OF_A_DRAW[kind](z, a) * w)

    def guide():
        z = pyro.sample("z", family(logits=logits))
        pyro.sample("w", dist.Delta(OF_A_DRAW[kind](z, b)))

    pair = relaxed(model, outcomes=True), relaxed(guide, outcomes=True)
    (found,) = torch.autograd.grad(TraceMeanField_ELBO().differentiable_loss(*pair), logits)
    probs = logits.softmax(-1)
    if kind == "bits":
        probs = torch.stack([1 - logits.sigmoid(), logits.sigmoid()])
    n = len(probs)
    cost = a[:n] * b[:n] - b[:n] ** 2 / 2 - probs.log()
    (exact,) = torch.autograd.grad(-(probs * cost).sum(), logits)
    torch.testing.assert_close(found, exact)


def test_a_value_that_depends_on_a_draw_is_evaluated_whole():
    """Pyro's log_prob of a binomial count computes a part of itself without a gradient."""
    logits = normal(4).requires_grad_()

    def model():
        z = pyro.sample("z", dist.Categorical(logits=torch.zeros(4, dtype=torch.float64)))
        pyro.sample("x", dist.Binomial(3, torch.tensor(0.3, dtype=torch.float64)), obs=z)

    def guide():
        pyro.sample("z", dist.Categorical(logits=logits))

    loss = TraceMeanField_ELBO().differentiable_loss(relaxed(model), relaxed(guide))
    (found,) = torch.autograd.grad(loss, logits)
    counts = dist.Binomial(3, torch.tensor(0.3, dtype=torch.float64))
    log_q, log_p = logits.log_softmax(-1), counts.log_prob(torch.arange(4.0).double())
    elbo = (log_q.exp() * (log_p - log_q)).sum() - torch.tensor(4.0).log()
    (exact,) = torch.autograd.grad(-elbo, logits)
    torch.testing.assert_close(found, exact)


def test_outcomes_end_where_pyro_sums_a_log_prob():
    """Else the sum over all sites would have the outcomes of each, and take quadratic time."""
    logits = normal(POINTS, K).requires_grad_()

    def model():
        with pyro.plate("points", POINTS):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(LOCS[z], SCALES[z]), obs=X)

    trace = pyro.poutine.trace(relaxed(model)).get_trace()
    trace.compute_log_prob()
    for name in ("z", "x"):
        assert type(trace.nodes[name]["log_prob_sum"]) is DeferredTensor
        assert trace.nodes[name]["log_prob_sum"].requires_grad
