# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Gradients of a function of independent categorical draws, over all their states, in float64."""

import itertools

import torch

from pyro_gumbel.ops.second_order import with_one_hot_gradient
from pyro_gumbel.tensors.index_tensor import as_derivative, collapsed, drawn_index


def states(logits):
    """Every state of independent draws, one for each row of the logits."""
    sites, categories = logits.shape
    return map(torch.tensor, itertools.product(range(categories), repeat=sites))


def prob_of(state, logits):
    return logits.log_softmax(-1).gather(-1, state.unsqueeze(-1)).sum().exp()


def exact_gradient(function, logits):
    """Of the expectation, by the sum over all states, with plain integers."""
    total = sum(prob_of(state, logits) * function(state) for state in states(logits))
    return torch.autograd.grad(total, logits)[0]


def drawn(state, logits):
    """A state as a draw from the logits, with the gradient of second order."""
    one_hot = torch.nn.functional.one_hot(state, logits.shape[-1]).to(logits)
    value = with_one_hot_gradient(one_hot, logits)
    return drawn_index(value, state, lambda: logits.softmax(-1))


def gradient_of_draw(function, state, logits, outcomes=True):
    """Of one draw: of its outcomes, or of its derivative."""
    value = drawn(state, logits)
    loss = collapsed(function(value if outcomes else as_derivative(value)), linear=True)
    if not loss.requires_grad:
        return torch.zeros_like(logits)
    return torch.autograd.grad(loss, logits)[0]


def mean_gradient(function, logits, outcomes=True):
    """Of a draw, on average."""
    return sum(
        prob_of(state, logits).detach() * gradient_of_draw(function, state, logits, outcomes)
        for state in states(logits)
    )


def relative_error(function, logits, outcomes=True):
    """How far the mean gradient of a draw is from the exact one."""
    exact = exact_gradient(function, logits)
    return ((mean_gradient(function, logits, outcomes) - exact).norm() / exact.norm()).item()
