# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Models and guides whose gradients are measured."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_gumbel import BernoulliStraightThrough, CategoricalStraightThrough
from pyro_gumbel.infer.exact_gradient import by_score_function

MEANS = torch.tensor([-1.0, 0.5, 2.0])
DATA = torch.tensor([0.3, -1.2, 1.7, 0.9])
T = 0.5


def one_of_three(logits):
    return CategoricalStraightThrough(T, logits=logits)


def parameter(name, *shape):
    start = torch.linspace(-0.4, 0.7, math.prod(shape)).reshape(shape)
    return pyro.param(name, start)


def quadratic():
    z = pyro.sample("z", one_of_three(torch.tensor([0.2, 0.0, -0.2])))
    pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[0])


def quadratic_guide():
    pyro.sample("z", one_of_three(parameter("logits", 3)))


def chain():
    z = pyro.sample("z", one_of_three(torch.tensor([0.2, 0.0, -0.2])))
    w = pyro.sample("w", BernoulliStraightThrough(T, logits=z @ torch.tensor([1.0, -1.0, 0.3])))
    pyro.sample("x", dist.Normal(z @ MEANS * (1 + w), 1.0), obs=DATA[0])


def chain_guide():
    z = pyro.sample("z", one_of_three(parameter("z_logits", 3)))
    pyro.sample("w", BernoulliStraightThrough(T, logits=z @ parameter("w_logits", 3)))


def plated(masked=None, scale=1.0, size=4):
    mask = poutine.mask(mask=True if masked is None else masked)
    with pyro.plate("points", size), poutine.scale(scale=scale), mask:
        z = pyro.sample("z", one_of_three(torch.tensor([0.2, 0.0, -0.2])))
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0), obs=DATA[:size])


def plated_guide(masked=None, scale=1.0, size=4):
    mask = poutine.mask(mask=True if masked is None else masked)
    with pyro.plate("points", size), poutine.scale(scale=scale), mask:
        pyro.sample("z", one_of_three(parameter("logits", size, 3)))


def shared():
    """A site outside the plate, whose prior counts once, and binary sites inside that use it."""
    z = pyro.sample("z", one_of_three(torch.tensor([0.9, 0.0, -1.2])))
    with pyro.plate("points", 3):
        w = pyro.sample("w", BernoulliStraightThrough(T, logits=(z @ MEANS).expand(3)))
        pyro.sample("x", dist.Normal(z @ MEANS + w, 1.0), obs=DATA[:3])


def shared_guide():
    z = pyro.sample("z", one_of_three(parameter("z_logits", 3)))
    shift = parameter("shift", 3)
    with pyro.plate("points", 3):
        pyro.sample("w", BernoulliStraightThrough(T, logits=shift - z[..., 0]))


def agree(objective, expected, groups=40, most=0.5):
    """The score-function estimate agrees with an exact gradient."""
    found = by_score_function(objective, range(groups))
    assert found.error < most * expected.norm()
    assert (found.gradient - expected).norm() < 3.5 * found.error
