# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The formulas with buffers, whose contents do not matter, against those without."""

import itertools
import math

import pytest
import torch

from pyro_gumbel.kernels.formulas import FORMULAS, SHORT
from pyro_gumbel.links import Hypersimplex, interval, simplex
from pyro_gumbel.ops.noise import MANY

pytestmark = pytest.mark.cpu(reason="the formulas of the kernels of the CPU")

LINKS = [interval, simplex, Hypersimplex(2)]
NAMES = ["interval", "simplex", "hypersimplex"]
SHAPE = (3, 4, 5)  # samples, rows, categories
ALL_WANTED = True, True, True


def formulas_of(link):
    return FORMULAS[type(link)](link, SHAPE[-1] - 1 if link.event_dim else 1)


def buffer(across=False):
    """Memory that nobody may read."""
    if across:
        return buffer_of(SHAPE[-1:] + SHAPE[:-1]).movedim(0, -1)
    return buffer_of(SHAPE)


def buffer_of(shape):
    return torch.full(shape, math.nan, dtype=torch.float64)


def numbers(*shape):
    return torch.randn(shape or SHAPE, dtype=torch.float64)


@pytest.mark.parametrize("log_prob", [True, False])
@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_draw_into_buffers(link, across, log_prob):
    formulas, x, tau = formulas_of(link), numbers(*SHAPE[1:]), torch.tensor(0.7)
    noise = numbers().exp() if link.event_dim else numbers()
    expected = formulas.draw(noise.clone(), x, tau, log_prob, None, None)
    s, spare, memory = buffer(), buffer(across), buffer(across).copy_(noise)
    found = formulas.draw(memory, x, tau, log_prob, s, spare)
    assert found[0] is s
    assert (found[2] is None) == (expected[2] is None)
    assert (found[3] is None) == (not log_prob)
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other)
    v = found[1] if found[2] is None else found[1] - found[2]
    torch.testing.assert_close(link.value(v), s)


@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_gradients_into_buffers(link):
    """Of a draw, in all combinations of gradients that come in, of a hard draw and of a density."""
    formulas, x, tau = formulas_of(link), numbers(*SHAPE[1:]), torch.tensor(0.7).double()
    z = numbers()
    v = link.unconstrained(z, tau)
    grad, of_log_prob = numbers(), numbers(*SHAPE[: 3 - link.event_dim])
    calls = [(formulas.pull_straight_through, (grad, None, z))]
    for used in itertools.product([True, False], repeat=3):
        if any(used):
            given = [g if u else None for g, u in zip((grad, z, of_log_prob), used, strict=True)]
            calls.append((formulas.pull_draw, (*given, v, link.value(v))))
    calls += [(formulas.pull_log_density, (of_log_prob, v, of)) for of in (True, False)]
    for pull, arguments in calls:
        expected = pull(x, tau, *arguments, ALL_WANTED, None, None)
        found = pull(x, tau, *arguments, ALL_WANTED, buffer(), buffer())
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)
                assert one.isfinite().all()


@pytest.mark.parametrize("of_values", [True, False])
@pytest.mark.parametrize("link", LINKS, ids=NAMES)
def test_a_density_with_a_buffer(link, of_values):
    formulas, x, tau = formulas_of(link), numbers(*SHAPE[1:]), torch.tensor(0.7).double()
    v = link.unconstrained(numbers(), tau)
    found = formulas.add_constant(formulas.log_density(v, x, tau, of_values, buffer()), tau)
    torch.testing.assert_close(found, link.log_density(v, x, tau, of_values=of_values))


@pytest.mark.parametrize("k", [3, SHORT - 1, SHORT])
def test_many_short_rows_have_the_gradient_of_few(k):
    """Their sums are made in another way."""
    formulas = FORMULAS[type(simplex)](simplex, k - 1)
    s, grad = numbers(MANY // 3, k).softmax(-1), numbers(MANY // 3, k)
    tau = torch.tensor(0.7).double()
    _, dx, _ = formulas.pull_draw(s, tau, grad, None, None, None, s, ALL_WANTED, None, None)
    expected = s * (grad - (s * grad).sum(-1, keepdim=True)) / tau
    torch.testing.assert_close(dx, expected)


@pytest.mark.parametrize("link", LINKS[1:], ids=NAMES[1:])
def test_logits_near_0_stay_as_they_are(link):
    """Also with an impossible outcome; far ones are those of the link."""
    formulas, near = formulas_of(link), numbers(4, 5)
    impossible = near.index_fill(1, torch.tensor(2), -math.inf)
    for x in (near, impossible):
        assert formulas.centred(x) is x
    assert formulas.centred(numbers(0, 5)).shape == (0, 5)
    far = formulas.centred(impossible + 1e6)
    torch.testing.assert_close(
        far, impossible - impossible.amax(-1, keepdim=True), atol=1e-9, rtol=0
    )
    assert formulas_of(interval).centred(near + 1e6).min() > 1e5
