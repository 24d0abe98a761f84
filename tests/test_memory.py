# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Exactness through the memory, and every way of losing it."""

import copy
import io
import pickle

import pyro
import pytest
import torch
from pyro.infer import Predictive

from pyro_gumbel import RelaxedBernoulli, RelaxedCategorical, RelaxedPlackettLuce
from pyro_gumbel.links import interval
from pyro_gumbel.memory import recall
from tests.common import ONE_BIT, VALUES, law_of, make, param_shape

OF_ONE_ROW = [cls for cls in VALUES if cls is not RelaxedPlackettLuce]


def exact_score(law, coordinates):
    """log p of remembered coordinates, in float64."""
    x, tau, v = law._location.double(), law._tau.double(), coordinates.double()
    return law.link.log_density(v, x, tau, of_values=True)


@pytest.mark.parametrize("draw", ["sample", "rsample"])
@pytest.mark.parametrize("cls", OF_ONE_ROW)
def test_any_law_of_the_family_scores_a_value_at_its_coordinates(cls, draw):
    guide = make(cls, 0.03, (200,), 5, validate_args=False)  # or the last score would warn
    model = make(cls, 0.7, (200,), 5)
    value = getattr(guide, draw)()
    coordinates = recall(value, guide.link)
    for law in (guide, model, model.expand([3, 200])):
        expected = exact_score(law, coordinates).expand(law.batch_shape)
        torch.testing.assert_close(law.log_prob(value).double(), expected, rtol=1e-5, atol=1e-2)
    assert (value == 1).any()  # or the memory would not have been needed
    forgotten = guide.log_prob(value.detach().clone()).double()
    assert forgotten.isfinite().all()
    assert (forgotten - exact_score(guide, coordinates)).abs().max() > 1


@pytest.mark.parametrize("cls", OF_ONE_ROW)
def test_a_score_is_differentiable_through_the_memory(cls):
    """The score term of the value's own parameters, at another law of the family."""
    guide, model = make(cls, 0.05, (50,), 5), make(cls, 0.7, (50,), 5)
    value = guide.rsample()
    (found,) = torch.autograd.grad(model.log_prob(value).sum(), guide._raw, retain_graph=True)
    exact = exact_score(model, recall(value, guide.link))
    (expected,) = torch.autograd.grad(exact.sum(), guide._raw)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
    assert (found != 0).any()


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


FORGETTING = {
    "clone": lambda value: value.clone(),
    "detach": lambda value: value.detach(),
    "index": lambda value: value[...],
    "arithmetic": lambda value: value * 1,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "disk": saved_and_loaded,
    "in-place": lambda value: value.mul_(1.0),
    "view in-place": lambda value: (value.view(-1).mul_(1.0), value)[1],
    "requires_grad_": lambda value: value.requires_grad_(),
}


@pytest.mark.parametrize("how", FORGETTING)
@pytest.mark.parametrize("cls", VALUES)
def test_a_value_forgets_and_is_scored_through_the_inverse(cls, how):
    law = make(cls, 0.03, (200,), 5, validate_args=False)  # or it would warn
    value = law.sample()
    own = value.clone()
    forgetful = FORGETTING[how](value)
    assert recall(forgetful, law.link) is None
    torch.testing.assert_close(law.log_prob(forgetful), law.log_prob(own))


def test_a_changed_value_is_scored_as_what_it_is():
    law = RelaxedBernoulli(0.1, logits=torch.zeros(4))
    value = law.sample()
    value.fill_(0.25)
    torch.testing.assert_close(law.log_prob(value), law.log_prob(torch.full((4,), 0.25)))


def test_a_copy_made_after_a_change_does_not_resurrect_the_memory():
    law = RelaxedBernoulli(0.1, logits=torch.zeros(4))
    value = law.sample()
    value.fill_(0.25)
    for other in (copy.copy(value), copy.deepcopy(value)):
        torch.testing.assert_close(law.log_prob(other), law.log_prob(torch.full((4,), 0.25)))


@pytest.mark.parametrize("cls", VALUES)
def test_a_value_cut_off_from_its_graph_is_cut_off_in_its_score(cls):
    law = make(cls, 0.5, (6,), 4, torch.float64)
    value = law.rsample()
    constant = value.detach().clone()
    value.detach_()
    found, expected = (
        torch.autograd.grad(law.log_prob(v).sum(), law._raw)[0] for v in (value, constant)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cls", VALUES)
def test_a_score_has_the_dtype_of_the_law_with_or_without_memory(cls):
    logits = torch.zeros(param_shape(cls), dtype=torch.float64)
    value = law_of(cls, 0.5, logits=logits.float()).sample((3,))
    law = law_of(cls, 0.5, logits=logits)
    assert law.log_prob(value).dtype == law.log_prob(value.clone()).dtype == torch.float64


def test_a_memory_belongs_to_one_tensor():
    """Whoever copies the attributes of a tensor does not copy its coordinates."""
    value = RelaxedBernoulli(0.1, logits=torch.zeros(4)).sample()
    other = torch.full((4,), 0.25)
    vars(other).update(vars(value))
    assert recall(value, interval) is not None
    assert recall(other, interval) is None


@pytest.mark.parametrize("cls", VALUES)
def test_the_gradient_in_a_leaf_exists(cls):
    law = make(cls, 0.5, (6,), 4)
    value = law.sample().requires_grad_()
    (slope,) = torch.autograd.grad(law.log_prob(value).sum(), value)
    assert slope.isfinite().all()
    assert (slope != 0).all()


def test_memory_is_keyed_by_the_link():
    """A vector of relaxed bits is no draw from a simplex, whatever it remembers."""
    bits = RelaxedBernoulli(0.5, logits=torch.randn(100, 2)).sample()
    pair = RelaxedCategorical(0.5, logits=torch.randn(2), validate_args=False)
    torch.testing.assert_close(pair.log_prob(bits), pair.log_prob(bits.clone()))
    rows = RelaxedCategorical(0.5, logits=torch.randn(100, 2)).sample()
    law = RelaxedBernoulli(0.5, logits=torch.randn(2))
    torch.testing.assert_close(law.log_prob(rows), law.log_prob(rows.clone()))


@pytest.mark.parametrize("cls", VALUES)
def test_half_values_remember_float32(cls):
    law = make(cls, 0.1, (20,), 4, torch.bfloat16)
    value = law.rsample()
    assert value.dtype == torch.bfloat16
    assert recall(value, law.link).dtype == torch.float32


@pytest.mark.parametrize("cls", OF_ONE_ROW)
def test_inference_mode(cls):
    with torch.inference_mode():
        law = make(cls, 0.03, (200,), 5)
        value = law.sample()
        expected = exact_score(law, recall(value, law.link))
        torch.testing.assert_close(law.log_prob(value).double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("cls", VALUES)
def test_values_from_predictive(cls, parallel):
    """Collected over many runs they have forgotten; one run's trace remembers."""
    law = make(cls, 0.03, (), 5, validate_args=False)  # or it would warn

    def model():
        return pyro.sample("s", law)

    value = Predictive(model, num_samples=200, parallel=parallel)()["s"]
    score = law.log_prob(value)
    assert score.isfinite().all()
    torch.testing.assert_close(score, law.log_prob(value.clone()))
    own = pyro.poutine.trace(model).get_trace().nodes["s"]["value"]
    assert recall(own, law.link) is not None


@pytest.mark.parametrize("cls", VALUES)
def test_a_coordinate_of_a_dead_category_is_no_coordinate_elsewhere(cls):
    """An infinite memory is scored through the inverse, where its outcome is possible."""
    zeros = torch.tensor([0.0, 0.4, 0.6] if cls not in ONE_BIT else [0.0, 1.0])
    value = law_of(cls, 0.5, probs=zeros).sample()
    law = law_of(cls, 0.5, logits=torch.zeros_like(zeros), validate_args=False)
    score = law.log_prob(value)
    assert score.isfinite().all()
    torch.testing.assert_close(score, law.log_prob(value.clone()))
