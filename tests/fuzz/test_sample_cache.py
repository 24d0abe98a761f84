# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Random histories of parameters and drawn values, in which no log_prob may be out of date.

The model is a new distribution in float64, built of the parameters as they are now. It evaluates a
value by the form in logit space that the value had when it was drawn, or else by its numbers.
"""

import copy
import io
import pickle
import threading

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pyro.optim.clipped_adam import ClippedAdam

from pyro_gumbel import RelaxedBernoulli, RelaxedCategorical, RelaxedPlackettLuce, RelaxedSubset
from pyro_gumbel.distributions.sample_cache import recall
from tests.common import build, param_shape
from tests.fuzz.checks import bounded

CLASSES = [RelaxedBernoulli, RelaxedCategorical, RelaxedSubset, RelaxedPlackettLuce]
SHAPES = [(3,), (1500,)]  # of logits that one kernel computes, and of several blocks
MADE = {
    "leaf": lambda leaf: leaf,
    "view": lambda leaf: leaf.view_as(leaf),
    "result": lambda leaf: leaf * 1,
}


def moved(tensor):
    """What a change adds: all but a common shift."""
    return torch.linspace(-0.3, 0.4, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)


@torch.no_grad()
def in_place(leaf):
    leaf.add_(moved(leaf))


@torch.no_grad()
def through_numpy(leaf):
    leaf.numpy()[...] += moved(leaf).numpy()


def stepped(make):
    def step(leaf):
        needed = leaf.requires_grad
        leaf.requires_grad_().grad = moved(leaf)
        make([leaf]).step()
        leaf.grad = None
        leaf.requires_grad_(needed)

    return step


CHANGES = {
    "in place": in_place,
    "data": lambda leaf: leaf.data.add_(moved(leaf)),
    "new data": lambda leaf: setattr(leaf, "data", leaf.data + moved(leaf)),
    "numpy": through_numpy,
    "Adam": stepped(lambda leaves: torch.optim.Adam(leaves, lr=0.1)),
    "fused Adam": stepped(lambda leaves: torch.optim.Adam(leaves, lr=0.1, fused=True)),
    "fused SGD": stepped(lambda leaves: torch.optim.SGD(leaves, lr=0.5, fused=True)),
    "ClippedAdam": stepped(lambda leaves: ClippedAdam(leaves, lr=0.1)),
    "requires_grad_": lambda leaf: leaf.requires_grad_(not leaf.requires_grad),
}


def loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


COPIES = {
    "clone": torch.clone,
    "copy": copy.copy,
    "deepcopy": lambda value: copy.deepcopy(value.detach()),
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "file": loaded,
    "slice": lambda value: value[...],
    "detach": torch.Tensor.detach,
}


class Drawn:
    """A value, with its form in logit space when it was drawn; None if it keeps none."""

    def __init__(self, value, unconstrained=None):
        self.value, self.version = value, value._version
        self.unconstrained = None if unconstrained is None else unconstrained.detach().double()


def exact(d, drawn):
    """The log_prob of a value by a new distribution, in float64; NaN where it has saturated."""
    value, tau = drawn.value.detach().double(), d.temperature.detach().double()
    logits = d._parameter.detach().double().clone()
    fresh = build(type(d), tau, logits=logits, validate_args=False)
    if drawn.unconstrained is not None and drawn.version == drawn.value._version:
        return fresh._over_batch(fresh._log_density(value, drawn.unconstrained, of_values=True))
    inside = (value > 0) & (value < 1)
    inside = inside.flatten(-d.event_dim).all(-1) if d.event_dim else inside
    return torch.where(inside, fresh.log_prob(value), torch.nan)


def assert_up_to_date(d, drawn, found):
    assert found.dtype == torch.promote_types(d._dtype, drawn.value.dtype)
    expected = exact(d, drawn)
    found = torch.where(expected.isnan(), torch.nan, found.detach().double())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


class Histories(RuleBasedStateMachine):
    """A distribution whose parameters change, and values that it and its copies have drawn."""

    values = Bundle("values")

    @initialize(
        target=values,
        cls=st.sampled_from(CLASSES),
        shape=st.sampled_from(SHAPES),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        made=st.sampled_from(list(MADE)),
        needs_grad=st.booleans(),
        validates=st.booleans(),
    )
    def start(self, cls, shape, dtype, made, needs_grad, validates):
        torch.manual_seed(0)
        self.leaves = {
            "logits": torch.randn((*shape, *param_shape(cls)), dtype=dtype),
            "temperature": torch.tensor(0.6, dtype=dtype),
        }
        logits = MADE[made](self.leaves["logits"].requires_grad_(needs_grad))
        self.is_result = made == "result"
        tau = self.leaves["temperature"]
        self.d = build(cls, tau, logits=logits, validate_args=validates)
        return self.draw("sample")

    @rule(target=values, name=st.sampled_from(["sample", "rsample"]))
    def draw(self, name):
        value = getattr(self.d, name)()
        return Drawn(value, recall(value, self.d.link))

    @rule(drawn=values, mode=st.sampled_from([torch.enable_grad, torch.no_grad]))
    def score(self, drawn, mode=torch.enable_grad):
        with mode():
            found = self.d.log_prob(drawn.value)
            wants = drawn.value.requires_grad or self.d._parameter.requires_grad
            assert found.requires_grad == (wants and torch.is_grad_enabled())
        assert_up_to_date(self.d, drawn, found)

    @rule(drawn=values)
    def score_an_expanded_distribution(self, drawn):
        d = self.d.expand((2, *self.d.batch_shape))
        found = d.log_prob(drawn.value)
        assert_up_to_date(self.d, drawn, found[0])
        assert_up_to_date(self.d, drawn, found[1])

    @rule(change=st.sampled_from(list(CHANGES)), drawn=values)
    def change_logits(self, change, drawn):
        CHANGES[change](self.leaves["logits"])
        self.score(drawn)

    @rule(change=st.sampled_from(list(CHANGES)[:-1]), drawn=values)
    def change_the_temperature(self, change, drawn):
        CHANGES[change](self.leaves["temperature"])
        self.leaves["temperature"].data.clamp_(0.2, 1.5)
        self.score(drawn)

    @precondition(lambda self: self.is_result)
    @rule(drawn=values)
    def change_a_result(self, drawn):
        in_place(self.d._parameter)
        self.score(drawn)

    @rule(drawn=values)
    def change_a_value(self, drawn):
        with torch.no_grad():
            drawn.value.copy_(drawn.value.flip(-1).clone())  # and what shares its memory

    @rule(target=values, drawn=values, how=st.sampled_from(list(COPIES)))
    def copy_a_value(self, drawn, how):
        return Drawn(COPIES[how](drawn.value))

    @rule(how=st.sampled_from([copy.copy, lambda d: pickle.loads(pickle.dumps(d))]))
    def copy_the_distribution(self, how):
        self.d = how(self.d)

    @rule(drawn=values)
    def two_threads(self, drawn):
        found = []

        def score():
            value = self.d.sample()
            mine = Drawn(value, recall(value, self.d.link))
            found.append((mine, self.d.log_prob(mine.value)))
            found.append((drawn, self.d.log_prob(drawn.value)))

        threads = [threading.Thread(target=score) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for each, log_prob in found:
            assert_up_to_date(self.d, each, log_prob)


def run(**options):
    with bounded():
        run_state_machine_as_test(Histories, settings=settings(stateful_step_count=15, **options))


@pytest.mark.cpu(reason="numpy and fused optimisers change tensors of the CPU")
def test_no_log_prob_is_out_of_date():
    run()


@pytest.mark.slow
@pytest.mark.cpu(reason="as above")
def test_no_log_prob_is_out_of_date_in_many_histories():
    run(max_examples=300)
