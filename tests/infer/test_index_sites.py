# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Sites of integer categories, `Categorical` and ``table[z]``, in all of inference."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate

from pyro_gumbel import (
    AutoRelaxed,
    IndexStraightThrough,
    NoiseReparam,
    gradient_report,
    relaxed,
)
from pyro_gumbel.infer.exact_gradient import by_enumeration
from pyro_gumbel.infer.objective import Objective
from tests.common import slow_unless, z_bound
from tests.infer.models import agree

START = torch.tensor([0.5, 0.3, 0.2])
TABLE = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
LOCS, SCALES = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([1.0, 0.7, 1.6])
DATA = torch.tensor([0.3, -1.2, 1.7, 0.9])
KEPT = torch.tensor([True, False, True, True])


def one():
    z = pyro.sample("z", dist.Categorical(START))
    pyro.sample("x", dist.Normal(LOCS[z], SCALES[z]), obs=DATA[0])


def chain():
    z = pyro.sample("z", dist.Categorical(START))
    w = pyro.sample("w", dist.Categorical(TABLE[z]))
    pyro.sample("x", dist.Normal(LOCS[w], 1.0), obs=DATA[0])


def plated():
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Categorical(START))
        pyro.sample("x", dist.Normal(LOCS[z], SCALES[z]), obs=DATA)


def event():
    z = pyro.sample("z", dist.Categorical(TABLE[:2]).to_event(1))
    pyro.sample("x", dist.Normal(LOCS[z].sum(-1), 1.0), obs=DATA[0])


def masked():
    with pyro.plate("data", 4), poutine.mask(mask=KEPT):
        z = pyro.sample("z", dist.Categorical(START).expand([4]))
        pyro.sample("x", dist.Normal(LOCS[z], SCALES[z]), obs=DATA)


def masked_distribution():
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Categorical(START).mask(KEPT))
        pyro.sample("x", dist.Normal(LOCS[z], SCALES[z]), obs=DATA)


def partly():
    with pyro.plate("data", 4):
        codes = torch.tensor([0, 1, 2, 1])
        z = pyro.sample("z", dist.Categorical(START), obs=codes, obs_mask=~KEPT)
        pyro.sample("x", dist.Normal(LOCS[z], SCALES[z]), obs=DATA)


def mixed():
    """Beside a binary site, whose values are floats."""
    b = pyro.sample("b", dist.Bernoulli(0.4))
    z = pyro.sample("z", dist.Categorical(START))
    pyro.sample("x", dist.Normal(LOCS[z] + b, 1.0), obs=DATA[0])


MODELS = {each.__name__: each for each in (
    one, chain, plated, event, masked, masked_distribution, partly, mixed,
)}  # fmt: skip
STATES = {"one": 3, "chain": 9, "plated": 81, "event": 9, "masked": 81,
          "masked_distribution": 81, "partly": 81, "mixed": 6}  # fmt: skip


def moved(model):
    """A guide away from its start."""
    guide = AutoRelaxed(model)
    guide()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += torch.randn_like(parameter)
    return guide


@pytest.mark.parametrize("name", slow_unless(lambda n: n in ("chain", "masked"), MODELS))
def test_three_exact_gradients_agree(name):
    """Each is found in its own way: state by state, in parallel, by the score function."""
    model = MODELS[name]
    guide = moved(model)
    objective = Objective(model, guide)
    exact = by_enumeration(objective, 2048)
    assert exact.how == f"enumeration of {STATES[name]} states"
    if name in ("plated", "masked", "masked_distribution", "partly"):
        parallel = by_enumeration(objective, 3)
        assert parallel.how == "parallel enumeration"
        torch.testing.assert_close(parallel.gradient, exact.gradient, atol=1e-5, rtol=1e-5)
    elif name != "event":  # `.to_event` cannot be enumerated
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        loss = elbo.differentiable_loss(model, config_enumerate(guide))
        torch.testing.assert_close(objective.gradient(loss), exact.gradient, atol=1e-5, rtol=1e-5)
    agree(objective, exact.gradient, groups=20)


def test_a_relaxed_model_has_the_same_exact_gradient():
    guide = moved(chain)
    found = [by_enumeration(Objective(m, guide), 2048).gradient for m in (chain, relaxed(chain))]
    torch.testing.assert_close(*found)


def test_the_plate_of_index_sites_is_found_independent():
    assert Objective(plated, moved(plated)).independent == {("z", -1)}

    def dependent():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Categorical(START))
            pyro.sample("x", dist.Normal(LOCS[z].mean(), 1.0), obs=DATA)

    assert Objective(dependent, moved(dependent)).independent == set()


@pytest.mark.parametrize("name", slow_unless(lambda n: n == "chain", ["chain", "partly", "mixed"]))
def test_a_report_has_all_estimators(name):
    guide = moved(MODELS[name])
    report = gradient_report(
        MODELS[name], guide, temperatures=[1.0], num_samples=20, progress=False
    )
    assert report.exact_by == f"enumeration of {STATES[name]} states"
    names = {row.estimator for row in report.rows}
    assert names == {
        "second_order", "gapped", "gumbel_rao", "gumbel_softmax", "mve", "reinmax", "reinmax_rao",
        "straight_through",
    }  # fmt: skip
    assert all(row.standard_deviation > 0 and math.isfinite(row.bias) for row in report.rows)


def test_a_loss_that_is_linear_in_the_table_has_an_unbiased_gradient():
    table = dist.Normal(LOCS, SCALES).log_prob(DATA[0])

    def model():
        z = pyro.sample("z", dist.Categorical(START))
        pyro.factor("x", table[z])

    guide = moved(model)
    elbo = TraceMeanField_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=0)
    objective = Objective(model, guide)
    found = torch.stack([objective.gradient(objective.loss(elbo)) for _ in range(50)])
    exact = by_enumeration(objective, 3).gradient
    error = found.std(0) / math.sqrt(len(found))
    assert (error < 0.1 * exact.norm()).all()
    assert ((found.mean(0) - exact).abs() < z_bound(3) * error + 1e-6).all()


# Values of a guide.


def test_median_distribution_and_repr():
    guide = AutoRelaxed(event)
    assert guide.median()["z"].tolist() == [0, 1]
    assert guide.median()["z"].dtype == torch.int64
    distribution = guide.distribution("z")
    assert isinstance(distribution.base_dist, IndexStraightThrough)
    torch.testing.assert_close(distribution.base_dist.probs.detach(), TABLE[:2])
    assert "z: IndexStraightThrough, estimator: second_order, batch_shape: (), event" in repr(guide)
    assert guide.logits.z.shape == (2, 3)


def test_quantiles_are_those_of_the_numbers():
    """The least possible k with P(category <= k) >= q, by a sum over the categories."""
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.125, 0.125, 0.75]])

    def model():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Categorical(probs))

    guide = AutoRelaxed(model)
    q = [0.0, 0.1, 0.2, 0.3, 0.45, 0.55, 0.75, 0.85, 0.95, 1.0]
    found = guide.quantiles(q)["z"]
    assert found.dtype == torch.int64
    for i, row in enumerate(guide.distribution("z").probs.detach().double()):
        possible = [k for k in range(3) if row[k] > 0]
        for j, each in enumerate(q):
            up_to = [row[: k + 1].sum().item() for k in possible]
            least = [k for k, p in zip(possible, up_to, strict=True) if p >= each - 1e-6]
            assert found[j, i] == least[0]


def test_the_quantiles_of_an_ordered_category():
    cutpoints = torch.tensor([-1.0, 1.0])
    guide = AutoRelaxed(
        lambda: pyro.sample("z", dist.OrderedLogistic(torch.tensor(0.0), cutpoints))
    )
    assert guide.quantiles([0.05, 0.5, 0.95])["z"].tolist() == [0, 1, 2]


def test_draws_are_integers():
    guide = AutoRelaxed(plated)
    for model in (plated, relaxed(plated)):
        draws = Predictive(model, guide=guide, num_samples=20)()["z"]
        assert draws.dtype == torch.int64
        assert draws.shape == (20, 4)


# What is refused.


def test_without_integers_for_relaxed_values():
    message = r'at pyro.sample\("z", ...\).*leave out hard=False, write OneHotCategorical\(probs='
    with pytest.raises(TypeError, match=message):
        relaxed(one, 0.5, hard=False)()
    with pytest.raises(TypeError, match=message):
        AutoRelaxed(one, 0.5, hard=False)()


def test_the_noise_of_an_index_is_no_parameter_free_one():
    moved_model = poutine.reparam(relaxed(one), config={"z": NoiseReparam()})
    with pytest.raises(TypeError, match=r'site "z" must have a relaxed.*got IndexStraightThrough'):
        moved_model()
