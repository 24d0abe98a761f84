# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Straight-through sites that Pyro enumerates, samples, or differentiates by the score function."""

from functools import partial

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO

from tests.common import STRAIGHT_THROUGH, assert_same_mean, first_fast
from tests.infer.latents import (
    CONTEXTS,
    MANY,
    PARALLEL,
    SEQUENTIAL,
    STRATEGIES,
    assert_mean_loss,
    enumerated,
    gradients,
    guide,
    model,
    particle_losses,
)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_enumeration_is_that_of_the_plain_classes(strategy, context):
    loss, found = enumerated("straight-through", context, *STRATEGIES[strategy])
    expected_loss, expected = enumerated("discrete", context, *STRATEGIES[strategy])
    of_the_guide = set() if strategy == "model" else {"q_z", "q_b"}
    assert found.keys() == expected.keys() == {"p_z", "p_b"} | of_the_guide
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        assert gradient.any()
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


SEVERAL = PARALLEL | {"num_samples": 10}


@pytest.mark.parametrize("context", first_fast(["no plate", "mask"]))
@pytest.mark.parametrize(
    "infer",
    first_fast(
        [
            {"b": PARALLEL},
            {"b": SEQUENTIAL},
            {"z": SEVERAL, "b": PARALLEL},
            {"z": SEVERAL, "b": SEVERAL},
        ]
    ),
    ids=["beside a parallel one", "beside a sequential one", "several times", "both several times"],
)
def test_a_straight_through_site_is_sampled_under_trace_enum(infer, context):
    """Its gradient is pathwise there too, with the mean that it has under Trace_ELBO."""
    sampled = [f"q_{name}" for name in "zb" if infer.get(name, SEVERAL) is SEVERAL]
    few = MANY | {"num_particles": 50}
    p, q = partial(model, "straight-through", context), partial(guide, "straight-through", context)
    enum, plain = TraceEnum_ELBO(**few), Trace_ELBO(**few)
    losses, differences = [], []
    for _ in range(100):
        losses.append(enum.loss_and_grads(p, partial(guide, "straight-through", context, **infer)))
        found = gradients()
        assert all(gradient.isfinite().all() and gradient.any() for gradient in found.values())
        plain.loss_and_grads(p, q)
        expected = gradients()
        differences.append(torch.cat([(found[n] - expected[n]).reshape(-1) for n in sampled]))
    assert_same_mean(torch.stack(differences), 0.0)
    assert_mean_loss(
        torch.tensor(losses).mean(), 100 * 50, particle_losses("straight-through", context)
    )


@pytest.mark.parametrize("context", ["no plate", "plate"])
@pytest.mark.parametrize("objective", first_fast([Trace_ELBO, TraceGraph_ELBO]))
def test_without_rsample_a_straight_through_site_has_the_score_function(objective, context):
    """The sample carries no gradient, and the gradient of the loss is unbiased."""
    p, q = (
        partial(model, "straight-through", context),
        partial(guide, "straight-through without rsample", context),
    )
    trace = poutine.trace(q).get_trace()
    trace.compute_score_parts()
    for name in "zb":
        site = trace.nodes[name]
        assert not site["fn"].has_rsample
        assert not site["value"].requires_grad
        assert ((site["value"] == 0) | (site["value"] == 1)).all()
        assert torch.equal(site["score_parts"].score_function, site["log_prob"])
        assert site["log_prob"].all()
        assert not site["fn"].expand_by([2]).has_rsample
    assert all(cls.has_rsample for cls in STRAIGHT_THROUGH)

    elbo, found = objective(**MANY | {"num_particles": 100}), []
    for _ in range(200):
        elbo.loss_and_grads(p, q)
        found.append(gradients())
    _, exact = enumerated("discrete", context, *STRATEGIES["guide in parallel"])
    for name, gradient in exact.items():
        assert_same_mean(torch.stack([g[name] for g in found]), gradient)
