# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""A categorical and a binary site in every context of Pyro, and their losses by hand."""

import math
from contextlib import contextmanager
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    SubsetStraightThrough,
    m_hot,
)
from tests.common import z_bound

T = 0.5

KINDS = {
    "relaxed": (RelaxedCategorical, RelaxedBernoulli),
    "straight-through": (CategoricalStraightThrough, BernoulliStraightThrough),
    "discrete": (
        lambda temperature, logits: dist.OneHotCategorical(logits=logits),
        lambda temperature, logits: dist.Bernoulli(logits=logits),
    ),
    "relaxed subset": (lambda t, logits: RelaxedSubset(t, 2, logits=logits), RelaxedBernoulli),
    "straight-through subset": (
        lambda t, logits: SubsetStraightThrough(t, 2, logits=logits),
        BernoulliStraightThrough,
    ),
    "relaxed ranking": (
        lambda t, logits: RelaxedPlackettLuce(t, 2, logits=logits),
        RelaxedBernoulli,
    ),
    "straight-through ranking": (
        lambda t, logits: PlackettLuceStraightThrough(t, 2, logits=logits),
        BernoulliStraightThrough,
    ),
}

KINDS["straight-through without rsample"] = tuple(
    lambda temperature, logits, cls=cls: cls(temperature, logits=logits).has_rsample_(False)
    for cls in KINDS["straight-through"]
)

MEANS = torch.tensor([-1.0, 0.5, 2.0])
SHIFT = 1.5
DATA = torch.tensor([0.7, -0.4, 1.9, 3.0])


@contextmanager
def inside(context):
    """The context of a model and of its guide; yields what is observed there."""
    if context == "no plate":
        yield DATA[0]
    elif context == "plate":
        with pyro.plate("data", 4):
            yield DATA
    elif context == "subsampled plate":
        with pyro.plate("data", 4, subsample_size=2) as index:
            yield DATA[0].expand(4)[index]  # equal data, so that all subsamples have the same loss
    elif context == "mask":
        with pyro.plate("data", 4), poutine.mask(mask=torch.tensor([True, False, True, True])):
            yield DATA
    elif context == "scale":
        with poutine.scale(scale=2.5):
            yield DATA[0]


CONTEXTS = ["no plate", "plate", "subsampled plate", "mask", "scale"]


def latents(kind, infer, name, z_logits, b_logit):
    categorical, bernoulli = KINDS[kind]
    z_logits = pyro.param(f"{name}_z", torch.tensor(z_logits))
    b_logit = pyro.param(f"{name}_b", torch.tensor(b_logit))
    z = pyro.sample("z", categorical(T, logits=z_logits), infer=infer.get("z", {}))
    b = pyro.sample("b", bernoulli(T, logits=b_logit), infer=infer.get("b", {}))
    return z, b


def model(kind, context, observed=True, **infer):
    with inside(context) as data:
        z, b = latents(kind, infer, "p", [0.3, -0.2, 0.1], 0.4)
        mean = (m_hot(z) if "ranking" in kind else z) @ MEANS + b * SHIFT
        pyro.sample("x", dist.Normal(mean, 1.0), obs=data if observed else None)


def guide(kind, context, **infer):
    with inside(context):
        latents(kind, infer, "q", [-0.5, 0.2, 0.6], -0.3)


def no_guide():
    pass


def gradients():
    """Take the gradient of every parameter that has one, by name."""
    found = {}
    for name, parameter in pyro.get_param_store().named_parameters():
        if parameter.grad is not None:
            found[name], parameter.grad = parameter.grad.clone(), None
    return found


def particle_losses(kind, context, n=20_000):
    """log q - log p of n draws, by hand."""
    with torch.no_grad(), pyro.plate("particles", n, dim=-2):
        q = poutine.trace(guide).get_trace(kind, context)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(kind, context)
    q.compute_log_prob()
    p.compute_log_prob()
    latent = sum(q.nodes[name]["log_prob"].sum(-1) for name in "zb")
    joint = sum(p.nodes[name]["log_prob"].sum(-1) for name in "zbx")
    return latent - joint


def assert_mean_loss(loss, count, particles):
    """`loss`, a mean over `count` particles, has the mean of `particles`."""
    error = particles.std() * math.sqrt(1 / count + 1 / len(particles))
    assert abs(loss - particles.mean()) < z_bound() * error


MANY = {"num_particles": 5_000, "vectorize_particles": True, "max_plate_nesting": 1}


def enumerated(kind, context, p_infer, q_infer):
    """The loss and the gradients of one evaluation from fresh parameters."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    q = no_guide if q_infer is None else partial(guide, kind, context, **q_infer)
    loss = elbo.loss_and_grads(partial(model, kind, context, **p_infer), q)
    return torch.tensor(loss), gradients()


PARALLEL, SEQUENTIAL = {"enumerate": "parallel"}, {"enumerate": "sequential"}

STRATEGIES = {  # of the model's two sites and of the guide's
    "model": ({"z": PARALLEL, "b": PARALLEL}, None),
    "guide in parallel": ({}, {"z": PARALLEL, "b": PARALLEL}),
    "guide in sequence": ({}, {"z": SEQUENTIAL, "b": SEQUENTIAL}),
    "guide in both ways": ({}, {"z": SEQUENTIAL, "b": PARALLEL}),
}
