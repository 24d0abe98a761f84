# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Copies and pickles of a guide."""

import copy
import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.optim.swa_utils import AveragedModel

from pyro_gumbel import AutoRelaxed, relaxed
from pyro_gumbel.distributions.wrappers import innermost
from tests.infer.sites import GRID, T, chain, with_guide


def through_a_file(guide):
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda guide: pickle.loads(pickle.dumps(guide)),
    "torch.save": through_a_file,
    "AveragedModel": lambda guide: AveragedModel(guide).module,
    "an objective": lambda guide: copy.deepcopy(Trace_ELBO()(guide.model, guide)).guide,
}


@pytest.mark.parametrize(("hard", "family", "plates"), GRID)
def test_copies_are_like_it_and_independent(hard, family, plates):
    _, guide = with_guide(hard, family, plates)
    kept = guide.logits.z.detach().clone()
    for how, made in COPIES.items():
        copied = made(guide)
        assert copied is not guide
        torch.testing.assert_close(copied.logits.z, kept, rtol=0, atol=0)
        assert (
            innermost(copied.distribution("z")).temperature
            == innermost(guide.distribution("z")).temperature
        )
        with (
            pyro.get_param_store().scope()
        ):  # otherwise it takes the original's parameters from the store
            shape = copied()["z"].shape
        assert shape == guide()["z"].shape, how
        with torch.no_grad():
            copied.logits.z.add_(1.0)
        torch.testing.assert_close(guide.logits.z, kept, rtol=0, atol=0)
        assert guide.model is not None


def test_an_average_of_guides_is_one_of_their_logits():
    _, guide = with_guide(True, "categorical", "plates")
    average = AveragedModel(guide)
    expected = []
    for _ in range(3):
        with torch.no_grad():
            guide.logits.z.add_(torch.randn(3, 2, 4))
        average.update_parameters(guide)
        expected.append(guide.logits.z.detach().clone())
    mean = torch.stack(expected).mean(0)
    torch.testing.assert_close(average.module.logits.z, mean)
    with pyro.get_param_store().scope():
        distribution = poutine.trace(average).get_trace().nodes["z"]["fn"]
    torch.testing.assert_close(distribution.logits, mean.log_softmax(-1))
    torch.testing.assert_close(guide.logits.z, expected[-1], rtol=0, atol=0)


@pytest.mark.parametrize(("hard", "family", "plates"), GRID)
def test_the_prototype_keeps_no_graph_and_no_argument(hard, family, plates):
    _, guide = with_guide(hard, family, plates)
    (site,) = guide.prototype_trace.nodes.values()
    distribution = innermost(site["fn"])
    for tensor in (site["value"], distribution.logits, distribution.temperature):
        assert tensor is None or not tensor.requires_grad


def masked_model(kept):
    with pyro.plate("bits", 3), poutine.mask(mask=kept):
        pyro.sample("z", dist.Bernoulli(torch.tensor([0.2, 0.6, 0.9])))


def test_a_copy_and_its_original_have_the_masks_of_each_call():
    """At the prior the divergence is 0, whatever the mask."""
    model = relaxed(masked_model, T)
    guide = AutoRelaxed(model, T)
    masks = [torch.tensor(mask) for mask in ([True, True, False], [False] * 3, [True] * 3)]
    guide(masks[0])
    with torch.no_grad():
        guide.logits.z[2] -= 3.0
    for each in (copy.deepcopy(guide), guide):
        found = [Trace_ELBO(50).loss(model, each, mask) for mask in masks]
        assert found[:2] == pytest.approx([0, 0], abs=1e-6)
        assert abs(found[2]) > 1e-2


def test_a_guide_from_a_pickle_has_no_model_and_says_so():
    guide = AutoRelaxed(masked_model, T)
    with pytest.raises(
        ValueError, match=r"expected a model.*write guide = AutoRelaxed\(model, temp"
    ):
        pickle.loads(pickle.dumps(guide))(torch.tensor(True))
    guide(torch.tensor([True, True, False]))
    loaded = pickle.loads(pickle.dumps(guide))
    with pytest.warns(UserWarning, match="expected a model, for the masks of this call"):
        loaded(torch.tensor([True] * 3))
    loaded(torch.tensor([True] * 3))  # once
    assert guide.model is masked_model


def test_it_is_copied_and_pickled():
    guide = AutoRelaxed(chain, T)
    guide()
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded.distribution("z").probs, guide.distribution("z").probs)
    assert copy.deepcopy(guide).distribution("z").probs.equal(guide.distribution("z").probs)


def test_copying_and_saving_leave_it_as_it_was():
    """Pyro's own pickling removes the model from the original guide too."""
    log_temperature = torch.zeros((), requires_grad=True)
    for keep in (copy.deepcopy, lambda guide: torch.save(guide.state_dict(), io.BytesIO())):
        pyro.clear_param_store()
        guide = AutoRelaxed(chain, log_temperature.exp)
        guide()
        copied = keep(guide) or guide
        for each in (guide, copied):
            svi = SVI(chain, each, pyro.optim.Adam({}), TraceMeanField_ELBO())
            assert math.isfinite(svi.step())
