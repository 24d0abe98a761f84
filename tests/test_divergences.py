# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

import itertools
import math
import warnings

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_gumbel import BernoulliStraightThrough, CategoricalStraightThrough
from tests.common import make
from tests.test_hard import HARD_ONE, INFINITE, PLAIN_OF, ZEROS


def pairs(cls, parameter="logits", k=5):
    """Hard and plain laws with the same parameters, twice."""
    for _ in range(2):
        law = make(cls, 0.3, (4,), k, torch.float64, parameter)
        yield law, PLAIN_OF[cls](**{parameter: law._raw})


@pytest.mark.parametrize("parameter", ["logits", "probs"])
@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_of_hard_and_plain_is_that_of_the_discrete_laws(cls, parameter):
    q, p = pairs(cls, parameter)
    expected = kl_divergence(q[1], p[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an ambiguous dispatch warns
        for left, right in itertools.product(q, p):
            torch.testing.assert_close(kl_divergence(left, right), expected)


@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_equals_the_sum_over_the_support(cls):
    q, p = (law for law, _ in pairs(cls))
    values = q.enumerate_support()
    expected = (q.log_prob(values).exp() * (q.log_prob(values) - p.log_prob(values))).sum(0)
    torch.testing.assert_close(kl_divergence(q, p), expected)
    torch.testing.assert_close(kl_divergence(q, q), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("parameter", ["probs", "logits"])
@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_is_finite_where_the_first_law_has_zeros(cls, parameter):
    raw = torch.tensor((ZEROS if parameter == "probs" else INFINITE)[cls], requires_grad=True)
    q = cls(0.5, **{parameter: raw})
    other = torch.tensor([0.2, -0.4, 0.5], requires_grad=True)
    for p in (cls(0.5, logits=other), PLAIN_OF[cls](logits=other), cls(0.3, **{parameter: raw})):
        divergence = kl_divergence(q, p)
        assert divergence.isfinite().all()
        assert (divergence >= -1e-6).all()
        (gradient,) = torch.autograd.grad(divergence.sum(), raw)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("expanded", [True, False])
@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_of_equal_laws_with_zeros_is_zero(cls, expanded):
    """torch clamps the logits of a plain law, and forgets in `expand` what was given."""
    law, plain = cls(0.5, probs=torch.tensor(ZEROS[cls])), PLAIN_OF[cls](torch.tensor(ZEROS[cls]))
    assert plain.logits.isfinite().all()
    if expanded:
        law, plain = (d.expand(torch.Size([2, *d.batch_shape])) for d in (law, plain))
    for q, p in itertools.product([law, plain], repeat=2):
        if law in (q, p):
            assert kl_divergence(q, p).abs().max() < 1e-6


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_is_infinite_only_where_the_second_law_excludes_what_the_first_does_not(cls, plain):
    raw = torch.tensor(ZEROS[cls])
    p = PLAIN_OF[cls](probs=raw) if plain else cls(0.5, probs=raw)
    q = cls(0.5, logits=torch.zeros(3))
    expected = [True, False, True] if cls is BernoulliStraightThrough else True
    assert kl_divergence(q, p).isposinf().tolist() == expected
    assert kl_divergence(q, q).abs().max() < 1e-6


def test_kl_with_a_plain_law_of_extreme_logits_is_finite():
    """Its probabilities round to 0 and 1, its logits do not."""
    for logit in (-200.0, -30.0, 30.0, 200.0):
        q = BernoulliStraightThrough(0.5, logits=torch.tensor(0.0))
        expected = abs(logit) / 2 - math.log(2)
        found = kl_divergence(q, dist.Bernoulli(logits=torch.tensor(logit)))
        assert found.item() == pytest.approx(expected, rel=1e-6)
        p = dist.OneHotCategorical(logits=torch.tensor([logit, 0.0]))
        q = CategoricalStraightThrough(0.5, logits=torch.zeros(2))
        assert kl_divergence(q, p).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cls", HARD_ONE)
def test_kl_over_batches_and_wrappers(cls):
    q, p = make(cls, batch_shape=(3, 2)), make(cls, batch_shape=())
    assert kl_divergence(q, p).shape == (3, 2)
    assert kl_divergence(p.expand([7, 3, 2]), q).shape == (7, 3, 2)
    inner = kl_divergence(q, p.expand([3, 2]))
    outer = kl_divergence(q.to_event(1), p.expand([3, 2]).to_event(1))
    torch.testing.assert_close(outer, inner.sum(-1))
    mask = torch.tensor([True, False])
    masked = kl_divergence(q.mask(mask), p.expand([3, 2]).mask(mask))
    torch.testing.assert_close(masked, inner * mask)
