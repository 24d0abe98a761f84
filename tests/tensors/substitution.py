# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of a categorical draw by literal substitution.

For each element of a draw and each category, that one number is replaced in a plain tensor, and the
same expression is evaluated again. What comes out is the gradient in the one-hot vector, up to a
constant for each vector, which no gradient in logits depends on.
"""

import itertools

import torch
from pyro.ops.indexing import Vindex
from torch.nn import functional as F

from pyro_gumbel.tensors.index_tensor import as_derivative, drawn_index


class Draw:
    """A draw of given shape: its one-hot vectors, its index tensor and its plain numbers."""

    def __init__(self, *batch, k=4, dtype=torch.float64):
        self.numbers = torch.randint(k, batch)
        self.one_hot = F.one_hot(self.numbers, k).to(dtype).requires_grad_()
        self.k = k

    @property
    def index(self):
        """An index whose floats have the derivative in the one-hot vectors."""
        return as_derivative(self.with_outcomes)

    @property
    def with_outcomes(self):
        """An index whose floats have outcomes."""
        return drawn_index(self.one_hot, self.numbers.clone(), lambda: self.one_hot)

    def replaced(self):
        """For each element and category, their place and the numbers."""
        for place in itertools.product(*map(range, self.numbers.shape)):
            for category in range(self.k):
                numbers = self.numbers.clone()
                numbers[place] = category
                yield (*place, category), numbers


def substituted(function, draws, weights):
    """The gradients of a weighted sum of a function of the draws in their one-hot vectors."""
    gradients = []
    for i, draw in enumerate(draws):
        gradient = torch.zeros(draw.one_hot.shape, dtype=torch.float64)
        for place, numbers in draw.replaced():
            plain = [each.numbers for each in draws]
            plain[i] = numbers
            with torch.no_grad():
                gradient[place] = (function(*plain).double() * weights.double()).sum()
        gradients.append(gradient)
    return gradients


def centred(gradient):
    """Without the constant of each vector."""
    return gradient - gradient.mean(-1, keepdim=True)


class Tables:
    """Tables of numbers by their shape, the same in each call, with a gradient."""

    def __init__(self, dtype=torch.float64):
        self.dtype, self.made = dtype, {}

    def __call__(self, *shape):
        if shape not in self.made:
            self.made[shape] = torch.randn(shape, dtype=self.dtype).requires_grad_()
        return self.made[shape]


class Expression:
    """A line of Python in the names of some draws.

    `T(4, 2)` is a table of floats of that shape, `N(4, 2)` one of integers less than 4.
    """

    def __init__(self, text, draws, dtype=torch.float64):
        self.code = compile(text, text, "eval")
        self.names = [name for name in draws if name in self.code.co_names]
        self.draws = [draws[name] for name in self.names]
        self.tables = Tables(dtype)
        self.integers = {}

    def _integers(self, *shape):
        if shape not in self.integers:
            self.integers[shape] = torch.randint(4, shape)
        return self.integers[shape]

    def __call__(self, *values):
        known = {"torch": torch, "F": F, "Vindex": Vindex, "t": torch.tensor}
        known |= {"T": self.tables, "N": self._integers, "FLOAT": self.tables.dtype}
        return eval(self.code, known | dict(zip(self.names, values, strict=True)))


def assert_equal(found, expected):
    """The same numbers, dtype and shape, whatever the class."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found.detach(), expected.detach())
