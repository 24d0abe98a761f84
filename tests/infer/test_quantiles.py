# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The median and the quantiles of a guide."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList, AutoNormal

from pyro_gumbel import (
    AutoRelaxed,
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    links,
    relaxed,
)
from pyro_gumbel.distributions.wrappers import innermost
from tests.common import z_bound
from tests.infer.sites import (
    DISTRIBUTIONS,
    PLATES,
    PRIORS,
    PROBS,
    Site,
    T,
    clusters,
    mixture,
    prior_only,
)


def test_the_median_is_the_most_probable_value():
    expected = {
        "bernoulli": [1.0, 0.0],
        "categorical": [1.0, 0.0, 0.0, 0.0],
        "subset": [1.0, 1.0, 0.0, 0.0],
        "ranking": [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],
    }
    for family in PRIORS:
        for hard in (True, False):
            model = prior_only(family) if hard else relaxed(prior_only(family), T, hard=False)
            guide = AutoRelaxed(model, T, hard=hard)
            assert guide.median()["z"].tolist() == expected[family]
    for distribution, link in (
        (ExpRelaxedCategorical(T, PROBS), links.simplex),
        (LogitRelaxedSubset(T, 2, PROBS), links.Hypersimplex(2)),
    ):
        guide = AutoRelaxed(
            lambda distribution=distribution: pyro.sample("z", distribution), T, hard=False
        )
        median = guide.median()["z"]
        family = "categorical" if link is links.simplex else "subset"
        assert link.value(median).tolist() == pytest.approx(expected[family])
        assert distribution.log_prob(median).isfinite()


Q = [0.05, 0.5, 0.95]


def marginals(family, prior):
    """The probability that each entry of a value is 1, by enumeration."""
    values = innermost(prior).enumerate_support(expand=True)
    probabilities = innermost(prior).log_prob(values).exp()
    return (
        probabilities.reshape(*probabilities.shape, *[1] * (values.dim() - probabilities.dim()))
        * values
    ).sum(0)


@pytest.mark.parametrize("plates", PLATES)
@pytest.mark.parametrize("family", PRIORS)
def test_quantiles_of_a_straight_through_site(family, plates):
    """The least x with P(entry <= x) >= q, an entry being 0 or 1."""
    guide = AutoRelaxed(relaxed(Site(family, plates), T), T)
    q = torch.linspace(0, 1, 21, dtype=torch.float64)
    found = guide.quantiles(q)["z"]
    probability = marginals(
        family, DISTRIBUTIONS[family](innermost(guide.distribution("z")).logits.detach())
    ).double()
    assert found.shape == (21, *guide.distribution("z").shape())
    expected = torch.stack([(1 - probability < each).float() for each in q])
    assert torch.equal(found, expected)
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("plates", PLATES)
def test_quantiles_of_relaxed_bernoulli_variables_are_exact(plates):
    guide = AutoRelaxed(relaxed(Site("bernoulli", plates), T, hard=False), T, hard=False)
    found = guide.quantiles(Q)["z"]
    distribution = guide.distribution("z")
    assert found.shape == (3, *distribution.shape())
    for q, value in zip(Q, found, strict=True):
        torch.testing.assert_close(distribution.base_dist.cdf(value), torch.full_like(value, q))


@pytest.mark.parametrize("plates", PLATES)
@pytest.mark.parametrize("family", [family for family in PRIORS if family != "bernoulli"])
def test_quantiles_of_a_relaxed_site_are_those_of_draws(family, plates):
    guide = AutoRelaxed(relaxed(Site(family, plates), T, hard=False), T, hard=False)
    found = guide.quantiles(Q)["z"]
    distribution = guide.distribution("z")
    assert found.shape == (3, *distribution.shape())
    with torch.no_grad():
        draws = distribution.sample((20_000,))
    for q, value in zip(Q, found, strict=True):
        share = (draws <= value).double().mean(0)
        error = math.sqrt(q * (1 - q) * (1 / 1000 + 1 / 20_000))
        assert ((share - q).abs() / error).max() < z_bound(3 * share.numel())


@pytest.mark.parametrize("distribution", [
    ExpRelaxedCategorical(T, PROBS), LogitRelaxedSubset(T, 2, PROBS), LogitRelaxedBernoulli(T, 0.3),
])  # fmt: skip
def test_quantiles_in_logit_space(distribution):
    guide = AutoRelaxed(lambda: pyro.sample("z", distribution), T, hard=False)
    found = guide.quantiles(Q)["z"]
    share = (distribution.sample((20_000,)) <= found.unsqueeze(1)).double().mean(1)
    expected = (
        torch.tensor(Q).double().reshape(3, *[1] * len(distribution.shape())).expand(share.shape)
    )
    error = (expected * (1 - expected) * (1 / 1000 + 1 / 20_000)).sqrt()
    assert ((share - expected).abs() / error).max() < z_bound(share.numel())


def test_quantiles_of_a_list_of_guides():
    x, _ = clusters()
    model = relaxed(mixture, T)
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["z"])))
    guide.append(AutoRelaxed(poutine.block(model, expose=["z"]), T))
    guide(x)
    with torch.no_grad():
        guide[1].logits.z[:, 1] = torch.linspace(-5, 5, 60)
        guide[1].logits.z[:, 0] = 0.0
    found = guide.quantiles(Q, x)
    assert set(found) == {"shift", "z"}
    normal = dist.Normal(guide[0].locs.shift, guide[0].scales.shift)
    torch.testing.assert_close(normal.cdf(found["shift"]).detach(), torch.tensor(Q))
    probability = torch.linspace(-5, 5, 60).sigmoid()
    assert found["z"].shape == (3, 60, 2)
    for q, value in zip(Q, found["z"], strict=True):
        assert torch.equal(value[:, 1], (probability > 1 - q).float())
        assert torch.equal(value[:, 0], (1 - probability > 1 - q).float())


def test_quantiles_at_the_ends_are_outcomes():
    distribution = dist.Bernoulli(torch.tensor([0.0, 1e-12, 0.5, 1.0]))
    guide = AutoRelaxed(lambda: pyro.sample("z", distribution.to_event(1)), T)
    assert guide.quantiles([0, 1])["z"].tolist() == [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]]
    for wrong in ([-0.1], [1.5], [math.nan], torch.tensor([2.0])):
        with pytest.raises(ValueError, match=r"must be numbers from 0 to 1, got .*; write guide"):
            guide.quantiles(wrong)
    for wrong in ("median", None, [None]):
        with pytest.raises(TypeError, match=r"must be numbers from 0 to 1, got .*; write guide"):
            guide.quantiles(wrong)
