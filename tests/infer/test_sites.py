# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What Pyro takes a site for: discrete or continuous, wrapped, masked, replayed."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide, config_enumerate
from torch.nn.functional import logsigmoid

from pyro_gumbel import (
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    RelaxedBernoulli,
    RelaxedCategorical,
)
from tests.common import ALL, STRAIGHT_THROUGH, event_shape, make


@pytest.mark.parametrize(
    "guide_class",
    [
        autoguide.AutoDelta,
        autoguide.AutoNormal,
        autoguide.AutoDiagonalNormal,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoLaplaceApproximation,
        autoguide.AutoIAFNormal,
        autoguide.AutoStructured,
    ],
)
@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_continuous_autoguides_refuse_straight_through_sites(cls, guide_class):
    def p():
        pyro.sample("continuous", dist.Normal(0.0, 1.0))
        pyro.sample("discrete", make(cls).to_event(1))

    with pytest.raises(ValueError, match="cannot handle discrete sample site 'discrete'"):
        guide_class(p)()


@pytest.mark.parametrize("cls", ALL)
def test_only_straight_through_sites_are_discrete(cls):
    def p():
        pyro.sample("v", make(cls, batch_shape=()))

    site = poutine.trace(config_enumerate(p)).get_trace().nodes["v"]
    discrete = cls in STRAIGHT_THROUGH
    assert site["fn"].support.is_discrete == site["fn"].has_enumerate_support == discrete
    assert site["infer"].get("enumerate") == ("parallel" if discrete else None)


@pytest.mark.parametrize("cls", ALL)
def test_wrappers_and_handlers_reach_the_distribution(cls):
    distribution, mask = make(cls, batch_shape=(3,)), torch.tensor([True, False, True])

    def p():
        with pyro.plate("rows", 4), poutine.scale(scale=2.5):
            return pyro.sample("v", distribution.mask(mask).expand_by([4]).to_event(1))

    trace = poutine.trace(p).get_trace()
    trace.compute_log_prob()
    value, site = trace.nodes["v"]["value"], trace.nodes["v"]
    assert value.shape == (4, 3, *event_shape(cls))
    assert value.requires_grad
    expected = 2.5 * torch.where(mask, distribution.log_prob(value), 0.0).sum(-1)
    torch.testing.assert_close(site["log_prob"], expected)


@pytest.mark.parametrize("cls", [RelaxedBernoulli, RelaxedCategorical])
def test_the_log_prob_of_what_the_guide_drew_where_floats_saturate(cls):
    """Replayed, at another temperature; against the formula in logit space, in float64."""
    logits = torch.randn(2, 500, *event_shape(cls))
    in_logit_space = {
        RelaxedBernoulli: LogitRelaxedBernoulli,
        RelaxedCategorical: ExpRelaxedCategorical,
    }[cls]

    def site(distribution, temperature, logits):
        with pyro.plate("data", 500):
            return pyro.sample("v", distribution(temperature, logits=logits))

    pyro.set_rng_seed(1)
    q = poutine.trace(site).get_trace(cls, 0.05, logits[0])
    pyro.set_rng_seed(1)
    v = site(in_logit_space, 0.05, logits[0]).double()  # the same draw
    p = poutine.trace(poutine.replay(site, trace=q)).get_trace(cls, 0.3, logits[1])
    assert p.nodes["v"]["value"] is q.nodes["v"]["value"]
    assert (p.nodes["v"]["value"] == 1).float().mean() > 0.1
    for trace, temperature, x in ((q, 0.05, logits[0]), (p, 0.3, logits[1])):
        trace.compute_log_prob()
        expected = concrete_log_prob(cls, v, x.double(), temperature)
        found = trace.nodes["v"]["log_prob"].double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def concrete_log_prob(cls, v, x, temperature):
    """The density of the value whose logit-space form is v; a Bernoulli is a categorical of two."""
    if cls is RelaxedBernoulli:
        v = torch.stack([logsigmoid(v), logsigmoid(-v)], -1)
        x = torch.stack([x, torch.zeros_like(x)], -1)
    k, d = x.shape[-1], x - temperature * v
    scale = math.lgamma(k) + (k - 1) * math.log(temperature)
    return scale + (d - d.logsumexp(-1, keepdim=True)).sum(-1) - v.sum(-1)
