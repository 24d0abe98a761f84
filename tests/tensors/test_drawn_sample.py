# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What is made of drawn bits, one-hot vectors and counts: samples, outcomes and warnings."""

import gc
import itertools
import re
import warnings
import weakref
from collections import namedtuple
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import nn
from torch.distributions import AffineTransform
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pyro_gumbel import BernoulliStraightThrough, CategoricalStraightThrough, harden, relaxed
from pyro_gumbel.distributions.outcome_distribution import outcome_distributions
from pyro_gumbel.tensors.drawn_sample import DrawnSample, watched, with_outcomes_of
from pyro_gumbel.tensors.index_tensor import IndexTensor, OutcomeTensor, collapsed, draws_in
from pyro_gumbel.tensors.later import Later
from tests.common import seeded

N = 3
GENERATOR = torch.Generator().manual_seed(3)


def normal(*shape):
    return seeded(torch.randn, GENERATOR, shape, dtype=torch.float64)


PAIR, CODES, W, LOGITS = normal(2), normal(2**N), normal(N), normal(N)
TABLE = torch.tensor([[0.2, 0.8], [0.7, 0.3]], dtype=torch.float64)
EYE = torch.eye(N, dtype=torch.float64)
LEAF = torch.zeros(1, dtype=torch.float64, requires_grad=True)
PLACES = 2.0 ** torch.arange(N - 1.0, -1.0, -1.0, dtype=torch.float64)


def sample_of(hard, logits):
    """Bits as a model reads them, with a straight-through gradient."""
    distribution = BernoulliStraightThrough(logits=logits)
    probs = logits.sigmoid()
    return watched(hard + (probs - probs.detach()), distribution._known_draw())


def drawn(distribution):
    """A draw with the same noise each time."""
    pyro.set_rng_seed(5)
    return distribution.rsample()


def observed(distribution, value):
    """The log_prob of data in a relaxed model."""
    with relaxed(sites=[]):
        model = poutine.trace(lambda: pyro.sample("x", distribution, obs=value))
        return model.get_trace().nodes["x"]["fn"].log_prob(value).sum()


Two = namedtuple("Two", "first second")

# Functions of three bits. Where they are cast, written or compared they have outcomes.
EXACT = {
    "a number of their places": lambda z: CODES[(z * PLACES).sum().long()],
    "a number of three": lambda z: CODES[(4 * z[0] + 2 * z[1] + z[2]).long()],
    "how many": lambda z: CODES[z.sum().long()],
    "how many before": lambda z: CODES[z.cumsum(0).long()].sum(),
    "stacked": lambda z: CODES[torch.stack([z[1], z[0]]).sum(0).long()],
    "joined": lambda z: CODES[torch.cat([z[1:], z]).to(torch.int32)].prod(),
    "all of them": lambda z: torch.where(z.prod() > 0, 1.3, -0.3),
    "moved": lambda z: CODES[z.reshape(1, N).T.flatten().flip(0).long()].prod(),
    "entries": lambda z: PAIR[z[0].long()] * PAIR[z[..., 1:].int()].sum(),
    "a loop": lambda z: sum(CODES[(each + i).long()] for i, each in enumerate(z)),
    "parts": lambda z: PAIR[z.split(2)[0].long()].prod() + PAIR[z.unbind()[2].long()],
    "by lists": lambda z: PAIR[z[[0, 2]].long()].prod(),
    "the other bit": lambda z: PAIR[(1 - z).long()].prod(),
    "of another dtype": lambda z: PAIR[z.float().half().long()].prod(),
    "the largest": lambda z: CODES[(z * W).argmax()] + CODES[(z * W).max(0)[1]],
    "its number and the place": lambda z: (lambda m: m.values * CODES[m.indices])((z + W).max(0)),
    "rounded": lambda z: (z.round() * W).exp().sum() + ((z + 0.5) // 1 * W).exp().sum(),
    "a sign": lambda z: ((z - 0.5).sign() * W).exp().sum(),
    "nested": lambda z: PAIR[((PAIR[z.long()] > 0).double() * z).long()].prod(),
    "beside a lookup": lambda z: (CODES[z.long()] * (z * W).exp()).sum(),
    "in a curve with a lookup": lambda z: F.softplus(CODES[z.long()] + z * W).sum(),
    "sums": lambda z: PAIR[z.long()].sum() * z.sum(),
    "a sum of sums": lambda z: (2 * PAIR[z.long()].sum() + 1) * z.sum(),
    "curved sums": lambda z: PAIR[z.long()].sum().exp() * (z * W).sum().exp(),
    "a sum less a sample": lambda z: (PAIR[z.long()].sum() - (z * W).sum()).exp(),
    "a choice": lambda z: torch.where(z > 0, (z * W).sin(), (z + W).cos()).sum(),
    "broadcast": lambda z: PAIR[torch.broadcast_tensors(z, W)[0].long()].prod(),
    "no logarithm of 0": lambda z: torch.where(z == 0, z * W, (z + 1).log()).sum(),
    "a plain tensor first": lambda z: CODES[torch.einsum("i,i->i", PLACES, z).long()].prod(),
    "broadcast after another": lambda z: PAIR[torch.broadcast_tensors(W, z)[1].long()].prod(),
    "out of None": lambda z: PAIR[torch.sub(1, z, out=None).long()].prod(),
    "modules": lambda z: PAIR[nn.Sequential(nn.Flatten(0), nn.ReLU())(z[None]).long()].prod(),
    "a log_prob of categories": lambda z: dist.Categorical(logits=PAIR).log_prob(z).sum(),
    "a log_prob of one-hot vectors": lambda z: (
        dist.OneHotCategorical(logits=PAIR).log_prob(torch.stack([1 - z, z], -1)).exp().sum()
    ),
    "a chain of one-hot vectors": lambda z: (
        dist.OneHotCategorical(TABLE[z[0].long()]).log_prob(torch.stack([1 - z[1], z[1]], -1)).exp()
    ),
    "a chain of floats": lambda z: dist.Categorical(TABLE[z[:2].long()]).log_prob(z[1:]).sum(),
    "a value and its distribution": lambda z: (
        dist.Normal(PAIR[z.long()], 1.0).log_prob(2 * z).sum()
    ),
    "a lookup as data": lambda z: observed(dist.Normal(2 * z, 1.0), PAIR[z.long()]),
    "a draw made of it": lambda z: PAIR[z.long()] * drawn(dist.Normal(2 * z, 0.5 + z)).sin(),
    "a vector made of it": lambda z: (
        PAIR[z.long()] * drawn(dist.MultivariateNormal(2 * z, scale_tril=(1 + z[0]) * EYE)).exp()
    ),
    "a transformed draw": lambda z: PAIR[z.long()] * drawn(dist.LogNormal(z, 1 + z)).log1p(),
    "a draw of Delta": lambda z: PAIR[dist.Delta(z).to_event(1)().long()].prod(),
    "spins": lambda z: torch.where(AffineTransform(-1.0, 2.0)(z) == 1, W, 0.5).prod(),
    "Vindex": lambda z: PAIR[Vindex(z)[torch.tensor([2, 0])].long()].prod(),
    "a named tuple": lambda z: CODES[torch.stack(Two(z, 1 - z)).sum(0).long() + z.long()].prod(),
    "divided": lambda z: torch.div(3 * z, 2, rounding_mode="floor").exp().sum(),
    "in order": lambda z: CODES[torch.where((2 * z - 1).argmax() == 0, z[1], z[2]).long()],
    "many orders": lambda z: CODES[
        (z + 2 * z.flip(0) + 3 * z.roll(1) + 5 * z.roll(2) + 7 * z.flip(0).roll(1)).long() % 8
    ].prod(),
    "named arguments": lambda z: PAIR[torch.unsqueeze(input=z, dim=0).long()].prod(),
}


def mean_and_exact_gradient(function, of_state, context):
    """Over all states, each as a draw."""
    logits = LOGITS.clone().requires_grad_()
    total, found = 0.0, torch.zeros(N, dtype=torch.float64)
    for state in itertools.product([0.0, 1.0], repeat=N):
        z = torch.tensor(state, dtype=torch.float64)
        prob = torch.where(z > 0, logits.sigmoid(), (-logits).sigmoid()).prod()
        value = function(z).sum()
        total = total + prob * value
        with context():
            sample = function(of_state(z, logits)).sum()
        torch.testing.assert_close(collapsed(sample).detach(), value, rtol=1e-12, atol=1e-12)
        (own,) = torch.autograd.grad(collapsed(sample, linear=True), logits)
        found += prob.detach() * own
    return found, torch.autograd.grad(total, logits)[0]


def three_samples_of(hard, logits):
    """A state as three draws."""
    return [sample_of(*pair) for pair in zip(hard, logits, strict=True)]


CONTEXTS = [nullcontext, outcome_distributions]  # a plain model and a relaxed one


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", EXACT)
def test_the_mean_gradient_is_exact(name, context):
    found, exact = mean_and_exact_gradient(EXACT[name], sample_of, context)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


OF_THREE = {
    "a code": lambda a, b, c: CODES[(4 * a + 2 * b + c).long()],
    "stacked": lambda a, b, c: CODES[torch.stack([a, b, c]).sum().long()],
    "a chain": lambda a, b, c: dist.Categorical(TABLE[a.long()]).log_prob(b) + PAIR[c.long()],
    "one-hot vectors": lambda a, b, c: (
        dist.OneHotCategorical(TABLE[a.long()]).log_prob(torch.stack([1 - b, b], -1)) * c
    ),
    "one beside another": lambda a, b, c: (
        (PAIR[a.long()] * a).exp() * b + PAIR[(b + c).bool().long()]
    ),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", OF_THREE)
def test_the_mean_gradient_of_several_draws_is_exact(name, context):
    def function(z):
        return OF_THREE[name](*z)

    found, exact = mean_and_exact_gradient(function, three_samples_of, context)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


def in_a_model(use, site=dist.Bernoulli, dtype=torch.float64):
    """What a relaxed model makes of a draw, and the warnings."""

    @relaxed
    def model():
        logits = torch.zeros(N, dtype=dtype, requires_grad=True)
        return use(pyro.sample("z", site(logits=logits)))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return model(), [str(each.message) for each in caught]


def written(z, write):
    x = torch.zeros(N + 1, dtype=torch.float64)
    write(x, z)
    return x


LOST = {
    "sort": lambda z: z.sort().indices,
    "topk": lambda z: z.topk(2)[1],
    "nonzero": lambda z: z.nonzero(),
    "nonzero, parts": lambda z: z.nonzero(as_tuple=True)[0],
    "argsort": lambda z: z.argsort(),
    "median": lambda z: z.median(0).indices,
    "count_nonzero": lambda z: z.count_nonzero(),
    "histc": lambda z: torch.histc(z),
    "bernoulli": lambda z: torch.bernoulli(z),
    "searchsorted": lambda z: torch.searchsorted(PAIR.sort().values, z),
    "a mask": lambda z: W[z.bool()],
    "a mask of entries": lambda z: W[:2][z[1:] == 1],
    "any": lambda z: (z == 1).any(),
    "a branch": lambda z: 1.0 if (z == 1).all() else 0.0,
    "an index": lambda z: [1.0, 2.0][z[0].long()],
    "a number": lambda z: int(z.sum()),
    "a comparison without a rule": lambda z: F.pad(z, (1, 0)) == 1,
    "one of them": lambda z: 1.0 in z,
    "equal": lambda z: torch.equal(z, W),
    "written": lambda z: written(z, lambda x, z: x.__setitem__(slice(N), z)).long(),
    "written at one place": lambda z: written(z, lambda x, z: x.__setitem__(0, z[1])) == 1,
    "written to a view": lambda z: written(z, lambda x, z: x[1:].copy_(z)).long(),
    "written to a row": lambda z: written(z, lambda x, z: x.view(2, 2)[0].fill_(z[0])).long(),
    "written to integers": lambda z: torch.zeros(N, dtype=torch.int64).copy_(z),
    "integers out": lambda z: torch.gt(z, 0.5, out=torch.zeros(N, dtype=torch.bool)),
    "a step in place": lambda z: (z * 1.5).floor_(),
    "an order": lambda z: (z + W).argsort(),
    "places of computed numbers": lambda z: torch.bucketize(2 * z, PLACES.flip(0)),
    "added": lambda z: written(z[0], lambda x, z: x.add_(z)).int(),
    "out": lambda z: torch.mul(z.detach(), 2.0).copy_(z).long(),
    "a function without a rule": lambda z: torch.outer(z, z).long(),
    "padded": lambda z: F.pad(z, (1, 0)).int(),
    "random": lambda z: F.dropout(z).long(),
    "a branch of the sum": lambda z: 1.0 if z.sum() > 1 else 0.0,
    "a branch of a computed one": lambda z: 1.0 if (2 * z)[0] > 1 else 0.0,
    "whether all are": lambda z: (2 * z > 1).all(),
    "whether any is": lambda z: (z.cumsum(0) > 1).any(),
    "a sum of many": lambda z: torch.where(z.repeat(8).sum() > 12, 1.0, 2.0),
    "a product with a matrix": lambda z: CODES[(z @ PLACES).long()],
}


@pytest.mark.parametrize("name", LOST)
def test_what_loses_the_gradient_of_bits_warns(name):
    found, messages = in_a_model(LOST[name])
    assert len(messages) == 1, messages
    assert messages[0].startswith("expected an operation that passes on the")
    assert not isinstance(found, OutcomeTensor)


SILENT = {
    "a float": lambda z: z * 2 + 1,
    "a network": lambda z: F.linear(z, W.reshape(1, N)).relu() > 0,
    "a number of a network": lambda z: F.linear(z, W.reshape(1, N)).long(),
    "its largest number": lambda z: z.amax(),
    "another to its dtype": lambda z: torch.ones(N).long().type_as(z),
    "another to its shape": lambda z: torch.arange(N).expand_as(z),
    "another beside it": lambda z: torch.broadcast_tensors(z, (W[:1] + LEAF))[1].long(),
    "integers beside it": lambda z: torch.broadcast_tensors(z, torch.arange(1))[1],
    "a number of a computed one": lambda z: (z * W).sum().item(),
    "whether all is well": lambda z: (z * W).isnan().any(),
    "the shape": lambda z: z.shape[0] + len(z) + z.dim() + z.numel(),
    "zeros": lambda z: torch.zeros_like(z).long(),
    "detached": lambda z: z.detach().long(),
    "printed": lambda z: f"{z} {z!r} {z[0]:.2f}",
}


def test_a_float_of_a_bit_warns_each_time():
    """Torch warns of it too, once in a process."""
    for _ in range(2):
        assert any("got __float__" in each for each in in_a_model(lambda z: float(z[0]))[1])


OF_BITS = {
    "the larger numbers": lambda z: torch.where(z * W > 0, z, 0.1 * z),
    "a branch that is always taken": lambda z: 1.0 if (z * W).sum() < 100 else 0.0,
    "whether all are": lambda z: ((z * W) > -100).all(),
    "a number of the sum": lambda z: (z * W).sum().tolist(),
}


@pytest.mark.parametrize("use", OF_BITS.values(), ids=OF_BITS)
def test_what_is_computed_of_bits_may_be_compared(use):
    assert not in_a_model(use)[1]


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.parametrize("site", [dist.Bernoulli, lambda logits: dist.Poisson(logits.exp())])
def test_what_loses_nothing_does_not_warn(name, site):
    assert not in_a_model(SILENT[name], site)[1]


def poisson(logits):
    return dist.Poisson(logits.exp())


@pytest.mark.parametrize(
    "use",
    [
        lambda z: z[:2].long(),
        lambda z: (z - 1).to(torch.int64),
        lambda z: z.unsqueeze(0) == 2,
        lambda z: z.round(),
        lambda z: z // 2,
        lambda z: z.max(0).values,
        lambda z: (z * 2).bool(),
        lambda z: (z / 2).floor(),
        lambda z: torch.div(z, 2, rounding_mode="trunc"),
        lambda z: torch.poisson(z),
        lambda z: torch.bernoulli(z / 100),
        lambda z: (z * 1.0).argmax(-1),
        lambda z: 2 * z > 4,
        lambda z: torch.where(z.sum() == 4, 7.0, 1.0),
    ],
)
def test_what_is_made_of_a_count_warns_where_it_ends(use):
    assert len(in_a_model(use, poisson)[1]) == 1


@pytest.mark.parametrize("site", [dist.Bernoulli, dist.OneHotCategorical])
def test_a_relaxed_value_has_its_discrete_value(site):
    """Known from its cache, and watched."""

    @relaxed(temperature=0.5, hard=False)
    def model():
        z = pyro.sample("z", site(logits=torch.zeros(N, dtype=torch.float64, requires_grad=True)))
        return z, harden(z), harden(z).long()

    with pytest.warns(UserWarning, match="passes on the derivative of a draw z, got long"):
        z, hard, integers = model()
    assert ((hard == 0) | (hard == 1)).all()
    assert torch.equal(hard.detach().long(), integers)
    assert torch.equal(hard.plain, harden(z).plain)


def test_one_hot_vectors_of_too_many_categories_have_the_derivative():
    size = 8193
    table = torch.arange(float(size), dtype=torch.float64)
    value, messages = in_a_model(lambda z: table[z.argmax(-1)], of_size(size))
    assert value.requires_grad
    assert not messages
    assert len(in_a_model(lambda z: z.long(), of_size(size))[1]) == 1


def of_size(size):
    return lambda logits: dist.OneHotCategorical(logits=logits.sum() + torch.zeros(size))


def test_bits_and_counts_together_warn_where_they_end():
    """The bits alone would have outcomes."""
    count = poisson(torch.zeros(N, dtype=torch.float64, requires_grad=True))
    found, messages = in_a_model(lambda z: (z + pyro.sample("n", count)).long())
    assert type(found) is torch.Tensor
    assert len(messages) == 1


def test_steps_of_a_count_warn_where_they_are_cast():
    found, messages = in_a_model(lambda z: (z / 2).floor().long(), poisson)
    assert type(found) is torch.Tensor
    assert [re.search(r"got (\w+)", each).group(1) for each in messages] == ["floor", "long"]


def test_the_indices_of_the_largest_have_a_remedy_of_their_own():
    (message,) = in_a_model(lambda z: z.max(0), poisson)[1]
    assert "write z.amax(dim) for the numbers without their indices" in message


def test_what_a_distribution_computes_is_plain():
    found, _ = in_a_model(lambda z: dist.Normal(2 * z, 1.0).log_prob(W))
    assert type(found) is torch.Tensor


# Where a draw is a sample.


def test_a_draw_is_a_sample_in_a_pyro_program_only():
    bits = BernoulliStraightThrough(logits=torch.zeros(2, requires_grad=True))
    assert type(bits.rsample()) is torch.Tensor
    sites = poutine.trace(lambda: pyro.sample("z", bits.to_event(1))).get_trace().nodes
    assert type(sites["z"]["value"]) is DrawnSample
    assert type(pyro.sample("z", bits)) is torch.Tensor


def test_a_draw_without_a_gradient_is_plain():
    bits = BernoulliStraightThrough(logits=torch.zeros(2))
    assert type(poutine.trace(lambda: pyro.sample("z", bits))()) is torch.Tensor


@pytest.mark.parametrize(
    "use",
    [lambda z: z.detach_() * 1, lambda z: (2 * z).detach_().long(), lambda z: z.detach_() == 1],
)
def test_a_draw_may_be_detached_in_place(use):
    """It is no view, and no gradient of it is lost afterwards."""
    found, messages = in_a_model(use)
    assert not found.requires_grad
    assert not messages


def test_the_value_of_a_trace_may_be_looked_at():
    site = BernoulliStraightThrough(logits=torch.zeros(2, requires_grad=True))
    value = poutine.trace(lambda: pyro.sample("z", site)).get_trace().nodes["z"]["value"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(value, value.round())
        assert value[0].item() in (0.0, 1.0)
        assert sum(value.tolist()) == float(value.detach().sum())
        assert value.topk(1).values.item() in (0.0, 1.0)


def test_a_category_of_one_hot_vectors_in_the_code_of_pyro_is_linear():
    """As outside of a program: `OneHotCategorical.log_prob` looks it up."""
    logits = LOGITS.clone().requires_grad_()

    def program():
        z = pyro.sample("z", CategoricalStraightThrough(logits=logits))
        return dist.OneHotCategorical(logits=W).log_prob(z)

    value = poutine.trace(program)()
    (found,) = torch.autograd.grad(value, logits)
    assert type(value) is torch.Tensor
    assert found.norm() > 0


# What a sample remembers.


@pytest.mark.parametrize(
    "change",
    [
        lambda z, y, w: z.mul_(1.0),
        lambda z, y, w: y.mul_(1.0),
        lambda z, y, w: w.mul_(2.0),
        lambda z, y, w: z[0].add_(1.0),
    ],
)
def test_what_was_changed_since_is_not_made_again(change):
    def use(z):
        w = torch.ones(N, dtype=torch.float64)
        y = z * w
        change(z, y, w)
        return y.long()

    found, messages = in_a_model(use)
    assert type(found) is torch.Tensor
    assert len(messages) == 1


def test_a_sample_that_was_changed_through_a_view_has_no_outcomes():
    def use(z):
        value = PAIR[z.long()]
        z[0].add_(1.0)
        assert with_outcomes_of([z], draws_in(value)) == [z]
        return z.long()

    found, messages = in_a_model(use)
    assert type(found) is torch.Tensor
    assert len(messages) == 1


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_does_not_change_the_numbers(inside):
    """An operation that is applied again may be under another one."""
    matrix = torch.tensor([257.0, 1.0, 1.0]).diag()

    def use(z):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            y = (z + 1) * 0 + (z * 0 + 1) @ matrix
        with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
            return y.long(), y.detach().long()

    found, expected = in_a_model(use, dtype=torch.float32)[0]
    assert torch.equal(found.plain, expected)


@pytest.mark.cpu(reason="an array of numpy shares its numbers with tensors of the CPU alone")
def test_numbers_that_were_changed_behind_the_back_of_torch():
    def use(z):
        w = np.zeros(N)
        y = z + torch.from_numpy(w)
        w[:] = 1.0
        return y.long(), z.detach().long()

    found, expected = in_a_model(use)[0]
    assert torch.equal(found.plain, expected)


def test_a_random_function_is_not_applied_again():
    def use(z):
        y = F.dropout((z + 1).expand(50, N))
        return y * PAIR[z.long()], y.detach() * PAIR[z.long().detach()]

    found, expected = in_a_model(use)[0]
    torch.testing.assert_close(found.plain, expected, rtol=0, atol=0)


def test_what_is_made_later_is_made_once():
    calls = []
    part = Later(None, lambda: calls.append("part") or 1.0)
    whole = Later(None, lambda a, b: calls.append("whole") or a + b, part, part)
    assert whole.made() == whole.made() == 2 * part.made()
    assert calls == ["part", "whole"]


@pytest.mark.parametrize(
    ("step", "times"),
    [(lambda z: z + 0.0, 1500), (lambda z: (z + z) / 2, 60), (lambda z: z.flip(0), 1500)],
)
def test_long_chains_and_shared_parts_take_linear_time(step, times):
    def use(z):
        for _ in range(times):
            z = step(z)
        return z.long()

    found, messages = in_a_model(use)
    assert type(found) is IndexTensor
    assert not messages


def test_nothing_is_held_after_use():
    """Without the collector of cycles."""
    held = []

    def use(z):
        y = [(2 * z[:2])[0], torch.stack([z, z]), *z.split(1), z.max(0).values, z.view(1, -1)]
        held.extend(map(weakref.ref, [z, *y]))
        return CODES[torch.stack([y[0], z[1]]).long()].sum()

    gc.collect()
    gc.disable()
    try:
        found = in_a_model(use)[0]
        collapsed(found).sum().backward()
        del found
        assert not [each for each in held if each() is not None]
    finally:
        gc.enable()


LOOKUPS = {
    "a lookup": (dist.Bernoulli, lambda y: PAIR[y.long()]),
    "a sample and its lookup": (dist.Bernoulli, lambda y: y * PAIR[y.long()]),
    "an index": (dist.Categorical, lambda y: PAIR[y.long() // 2].exp()),
}


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize("make", [lambda z, w: z, lambda z, w: z * w])
def test_a_checkpoint_of_what_was_made_outside(name, make):
    """Both passes of a checkpoint must save the same tensors."""
    site, lookup = LOOKUPS[name]
    w = torch.ones((), dtype=torch.float64, requires_grad=True)

    def within(y):
        return collapsed(lookup(y), linear=True)

    def gradient(context):
        logits = LOGITS.clone().requires_grad_()

        @relaxed
        def model():
            z = pyro.sample("z", site(logits=logits))
            return context(make(z, w)).sum()

        pyro.set_rng_seed(0)
        return torch.autograd.grad(model(), logits)[0]

    found = gradient(lambda y: checkpoint(within, y, use_reentrant=False))
    torch.testing.assert_close(found, gradient(within))
