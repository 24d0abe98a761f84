# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Random arguments of every class, as plain data that hypothesis can shrink and print.

A tensor is a list of numbers that are repeated over a shape, with a layout in memory. A case is a
class with its arguments. It can be built as it is, and with the same numbers in float64.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from tests.common import BERNOULLI, DISCRETE, RANKINGS, RELAXED, SIZED, SUBSETS
from tests.counts import COUNTS, VECTORS

INF = math.inf
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
WIDE_RANGE = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = [(), (2,), (1,), (3,), (2, 3), (0,), (2, 1), (2, 0), (1, 2, 2)]

# What parameters are made of. The first numbers are the simplest.
MODERATE = [0.0, 1.0, -1.0, 0.3, -2.5, 0.7, 3.0]
LARGE = [20.0, -20.0, 100.0, -100.0, 1e4, -1e4]
EXTREME = [3e38, -3e38, 1e30, 1e-40, -1e-40, 1e-300]
SHARES = [0.5, 0.3, 0.9, 1.0, 0.0, 1e-3, 1 - 1e-6, 1e-7, 1e-38, 1e-45]
POSITIVE = [1.0, 0.5, 3.0, 0.02, 50.0, 1e4, 1e-3, 1e-30, 1e30]
TEMPERATURES = [0.5, 1.0, 2.0, 0.05, 1e-3, 50.0, 1e4, 1e-10, 1e10, 1e-30, 1e30]
NUMBERS = {
    "logit": MODERATE + LARGE + EXTREME + [INF, -INF],
    "logits": MODERATE + LARGE + EXTREME + [-INF],
    "finite logit": MODERATE + LARGE + EXTREME,
    "real": MODERATE + LARGE,
    "probability": SHARES,
    "probability below 1": SHARES,
    "probability above 0": SHARES,
    "weights": [*SHARES, 5.0, 1e30],
    "normal weights": [0.5, 0.3, 0.9, 1.0, 0.0, 1e-3, 1e-7, 1e-30, 5.0],
    "positive": POSITIVE,
    "not negative": [*POSITIVE, 0.0],
}


def legal(kind, x):
    """Numbers of a kind in the dtype of x, which may have rounded them to what is not allowed."""
    finfo = torch.finfo(x.dtype)
    least, most = {
        "positive": (finfo.tiny, finfo.max / 4),
        "not negative": (0.0, finfo.max / 4),
        "weights": (0.0, finfo.max),
        "logits": (-INF, finfo.max),
        "finite logit": (finfo.min, finfo.max),
        "probability below 1": (0.0, 1 - finfo.eps),
        "probability above 0": (finfo.tiny, 1.0),
    }.get(kind, (-INF, INF))
    return x.clamp(least, most)


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "sliced": lambda x: torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0],
    "first last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() else x,
    "expanded": lambda x: x[:1].expand(x.shape) if x.dim() > 1 else x,
}
# The argument from what it is made of, which requires a gradient but for the first.
MADE = {
    "constant": lambda x: x,
    "leaf": lambda x: x,
    "result": lambda x: x * 1,
    "view": lambda x: x[...],
}


@dataclass(frozen=True)
class Numbers:
    """A tensor: numbers that are repeated over a shape."""

    kind: str
    values: tuple[float, ...]
    shape: tuple[int, ...]
    least: int = 0  # how many entries of a row are possible at least
    layout: str = "contiguous"
    made: str = "constant"

    def tensor(self, dtype):
        """The numbers in the dtype."""
        number = math.prod(self.shape)
        repeated = (self.values * (number // len(self.values) + 1))[:number]
        x = torch.tensor(repeated, dtype=torch.float64).reshape(self.shape)
        if self.layout == "expanded" and x.dim() > 1:
            x = x[:1].expand(x.shape)
        x = legal(self.kind, x.to(dtype))
        if self.least:
            possible = x > (-INF if self.kind == "logits" else 0)
            x = torch.where(possible.sum(-1, keepdim=True) < self.least, x.clamp(min=1), x)
        return x

    def given(self, dtype):
        """The argument, and the leaf of which it is made, None for a constant."""
        x = LAYOUTS[self.layout](self.tensor(dtype))
        leaf = None if self.made == "constant" else x.requires_grad_()
        return MADE[self.made](x), leaf


@dataclass(frozen=True)
class Case:
    """A class or a function that makes a distribution, with its arguments by name."""

    make: Any
    arguments: dict[str, Any]
    dtype: torch.dtype

    def given(self):
        """The arguments as they are given, and the leaves of which they are made."""
        given, leaves = {}, {}
        for name, value in self.arguments.items():
            if isinstance(value, Numbers):
                value, leaf = value.given(self.dtype)
                leaves |= {} if leaf is None else {name: leaf}
            given[name] = value
        return given, leaves

    def in_float64(self):
        """The arguments of the same numbers in float64, without validation."""
        given = {name: self._in_float64(value) for name, value in self.arguments.items()}
        return {**given, "validate_args": False}

    def _in_float64(self, value):
        if isinstance(value, Numbers):
            return value.tensor(self.dtype).double().requires_grad_(value.made != "constant")
        if isinstance(value, Constant):
            value = value.number
        is_temperature = isinstance(value, float)
        return torch.tensor(value, dtype=self.dtype).item() if is_temperature else value


@st.composite
def numbers(draw, kind, shape, least=0):
    """Numbers of a shape, half of them moderate."""
    pool = NUMBERS[kind]
    some = draw(st.lists(st.sampled_from(pool[:4]) | st.sampled_from(pool), min_size=1, max_size=7))
    layout, made = draw(st.sampled_from(list(LAYOUTS))), draw(st.sampled_from(list(MADE)))
    return Numbers(kind, tuple(some), tuple(shape), least, layout, made)


# Distributions of a family.


class Constant:
    """A function that returns a temperature."""

    def __init__(self, number):
        self.number = number

    def __call__(self):
        return self.number

    def __repr__(self):
        return f"lambda: {self.number}"


@st.composite
def temperatures(draw, batch, dtype):
    finfo = torch.finfo(dtype)
    pool = [t for t in TEMPERATURES if finfo.tiny <= t <= finfo.max / 4]
    number = st.sampled_from(pool[:4]) | st.sampled_from(pool)
    kind = draw(st.sampled_from(["number", "one element", "batch", "function"]))
    if kind == "number":
        return draw(number)
    if kind == "function":
        return Constant(draw(number))
    shape = batch if kind == "batch" else draw(st.sampled_from([(), (1,)]))
    some = draw(st.lists(number, min_size=1, max_size=3))
    return Numbers("positive", tuple(some), shape, made=draw(st.sampled_from(list(MADE))))


@st.composite
def estimated(draw, cls, batch, dtype):
    """A temperature and an estimator, of which both may be left out."""
    tau = draw(st.none() | temperatures(batch, dtype))
    some = ["second_order"] if tau is None else ["gumbel_softmax", "straight_through"]
    if cls not in SUBSETS:
        some += [] if tau is None else ["reinmax", "gapped", "gumbel_rao"]
    if cls not in SIZED:
        some += ["mve", "reinmax_rao"] if tau is None else []
    name = draw(st.none() | st.sampled_from(some))
    return {"temperature": tau, **({} if name is None else {"estimator": name})}


@st.composite
def sizes(draw, cls, batch, k):
    """The arguments `size` and `rows`, and how many categories must be possible."""
    ranks = cls not in (*SUBSETS, *DISCRETE[:1])
    if not (ranks and draw(st.booleans())):
        size = draw(st.integers(1, k if cls in DISCRETE or ranks else k - 1))
        return {"size": size}, size
    lengths = draw(st.lists(st.integers(1, k), min_size=1, max_size=4))
    rows = draw(st.integers(max(lengths), k))
    size = torch.tensor((lengths * 24)[: math.prod(batch)], dtype=torch.long).reshape(batch)
    return {"size": size, "rows": rows}, max(lengths)


@st.composite
def of_families(draw, classes):
    """A distribution of a family."""
    cls, dtype = draw(st.sampled_from(classes)), draw(st.sampled_from(DTYPES))
    batch, k = draw(st.sampled_from(SHAPES)), draw(st.integers(2, 5))
    arguments, least = {}, 1
    if cls in RELAXED or cls in RANKINGS[:1]:
        arguments["temperature"] = draw(temperatures(batch, dtype))
    elif cls not in DISCRETE:
        arguments |= draw(estimated(cls, batch, dtype))
    if cls in SIZED:
        more, least = draw(sizes(cls, batch, k))
        arguments |= more
    name = draw(st.sampled_from(["logits", "probs"]))
    kinds = ("logit", "probability") if cls in BERNOULLI else ("logits", "weights")
    kind = kinds[name == "probs"]
    shape = batch if cls in BERNOULLI else (*batch, k)
    arguments[name] = draw(numbers(kind, shape, 0 if cls in BERNOULLI else least))
    return Case(cls, {**arguments, "validate_args": draw(st.booleans())}, dtype)


# Counts.

KINDS_OF_COUNTS = {
    "Poisson": {"rate": "not negative"},
    "Binomial probs": {"probs": "probability"},
    "Binomial logits": {"logits": "logit"},
    "NegativeBinomial probs": {"total_count": "not negative", "probs": "probability below 1"},
    "NegativeBinomial logits": {"total_count": "not negative", "logits": "finite logit"},
    "Geometric probs": {"probs": "probability above 0"},
    "Geometric logits": {"logits": "finite logit"},
    "Multinomial probs": {"probs": "normal weights"},  # which Pyro's normalises
    "Multinomial logits": {"logits": "logits"},
    "BetaBinomial": {"concentration1": "positive", "concentration0": "positive"},
    "GammaPoisson": {"concentration": "positive", "rate": "positive"},
    "DirichletMultinomial": {"concentration": "positive"},
}


@st.composite
def of_counts(draw, names):
    name = draw(st.sampled_from(names))
    # The moments of the others overflow in float16.
    dtype = draw(st.sampled_from(DTYPES if name.startswith("Multinomial") else WIDE_RANGE))
    is_vector = name in VECTORS
    shapes = st.sampled_from(SHAPES)
    if is_vector or name == "BetaBinomial":
        shapes = shapes.filter(math.prod)  # torch's constructors of these need a batch
    batch, k = draw(shapes), draw(st.integers(2, 4))
    shape = (*batch, k) if is_vector else batch
    arguments = {
        key: draw(numbers(kind, shape, int(kind in ("normal weights", "logits"))))
        for key, kind in KINDS_OF_COUNTS[name].items()
    }
    if COUNTS[name].constants:
        arguments["total_count"] = draw(st.integers(0, 20))
    return Case(COUNTS[name].cls, {**arguments, "validate_args": draw(st.booleans())}, dtype)
