# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The table of constructors that every property runs over, and the statistics of the tests."""

import functools
import math
import weakref

import pytest
import torch
from scipy import stats
from torch.nn.functional import logsigmoid

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    HardConcrete,
    IndexStraightThrough,
    LogitHardConcrete,
    LogitRelaxedBernoulli,
    LogitRelaxedSubset,
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    Subset,
    SubsetStraightThrough,
)
from pyro_gumbel.kernels import cpu as kernels
from pyro_gumbel.kernels import dispatch, reference
from pyro_gumbel.ops import noise

# The chance of a false alarm of one statistical test.
ALPHA = 2e-5

# How much two equal backward passes may differ, in float64. The threads of a GPU add to a sum in
# another order each time, which changes the last of its 16 digits.
NONDETERMINISM = 0.0 if torch.get_default_device().type == "cpu" else 1e-9

# The families.
GATES = [HardConcrete, LogitHardConcrete]
BERNOULLI = [RelaxedBernoulli, LogitRelaxedBernoulli, BernoulliStraightThrough, *GATES]
CATEGORICAL = [RelaxedCategorical, ExpRelaxedCategorical, CategoricalStraightThrough]
SUBSETS = [RelaxedSubset, LogitRelaxedSubset, SubsetStraightThrough]
RANKINGS = [RelaxedPlackettLuce, PlackettLuceStraightThrough]

OUTCOMES = BERNOULLI + CATEGORICAL

# The kinds of distributions.
DISCRETE = [Subset, PlackettLuce]
RELAXED_VALUES = [
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedSubset,
    RelaxedPlackettLuce,
    HardConcrete,
]
RELAXED_LOGITS = [
    LogitRelaxedBernoulli,
    ExpRelaxedCategorical,
    LogitRelaxedSubset,
    LogitHardConcrete,
]
STRAIGHT_THROUGH = [
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    SubsetStraightThrough,
    PlackettLuceStraightThrough,
]
RELAXED = RELAXED_VALUES + RELAXED_LOGITS
ALL = BERNOULLI + CATEGORICAL + SUBSETS + RANKINGS
WITH_INDICES = [*ALL, IndexStraightThrough]  # whose values are integers
# One of each family, and a straight-through one, for what all do alike and is slow to test.
FEW = [*RELAXED_VALUES, CategoricalStraightThrough]
SIZED = [*SUBSETS, *RANKINGS, *DISCRETE]


def smooth(classes):
    """Those whose values are never 0 or 1, or always.

    The values of a `HardConcrete` are so with a probability between: draws are equal, gradients 0,
    and a copy of such a draw has another log_prob.
    """
    return [cls for cls in classes if cls is not HardConcrete]


def slow_unless(fast, cases):
    """The cases of a parametrisation; those for which `fast(case)` is false are marked slow.

    A tuple is the values of several arguments.
    """
    return [
        case
        if fast(case)
        else pytest.param(*(case if type(case) is tuple else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]


def first_fast(cases, number=1):
    """The cases of a parametrisation; all but the first ones are marked slow."""
    cases = list(cases)
    return cases[:number] + slow_unless(lambda case: False, cases[number:])


def size_for(k):
    """How many of k categories the tests choose: 1 of 2, 2 of 3 and of 4, 5 of 10 and more."""
    return max(1, min(k - 1, (k + 1) // 2, 5))


def param_shape(cls, k=3):
    """The shape of a parameter without batch."""
    return () if cls in BERNOULLI else (k,)


def with_sizes(classes, *numbers):
    """The pairs of a class and a number of categories; a Bernoulli class once, with 2."""
    return [(cls, k) for cls in classes for k in ((2,) if cls in BERNOULLI else numbers)]


def event_shape(cls, k=3):
    """The event shape of a class, with k categories where it has categories."""
    if cls is IndexStraightThrough:
        return ()
    rows = (size_for(k),) if cls in (PlackettLuce, *RANKINGS) else ()
    return (*rows, *param_shape(cls, k))


def build(cls, temperature, probs=None, logits=None, *, size=None, **keywords):
    """A distribution of the class; one with a size chooses `size_for` of its categories."""
    if cls not in SIZED:
        return cls(temperature, probs, logits, **keywords)
    if size is None:
        size = size_for(int((logits if probs is None else probs).shape[-1]))
    arguments = (size,) if cls in DISCRETE else (temperature, size)
    return cls(*arguments, probs, logits, **keywords)


def make(
    cls,
    temperature=0.5,
    batch_shape=(2,),
    k=3,
    dtype=torch.float32,
    parameter="logits",
    validate_args=True,
    scale=1.0,
):
    """A distribution of the class with random parameters, which require a gradient."""
    logits = scale * torch.randn((*batch_shape, *param_shape(cls, k)), dtype=torch.float64)
    if parameter == "probs":
        logits = logits.sigmoid() if cls in BERNOULLI else logits.softmax(-1)
    given = logits.to(dtype).requires_grad_()
    made = build(cls, temperature, **{parameter: given}, validate_args=validate_args)
    _LEAVES[made] = given
    return made


_LEAVES = weakref.WeakKeyDictionary()


def leaf_of(made):
    """The parameter that `make` gave to the distribution, which requires a gradient."""
    return _LEAVES[made]


def on_a_face(cls, possible, parameter, dtype=torch.float64):
    """A parameter of which the last outcomes have probability 0, and what is left without them.

    Of Bernoulli variables the last ones have probability 0 and 1; the first one is left.
    """
    if cls in BERNOULLI:
        whole, possible = torch.tensor([0.3, 0.0, 1.0], dtype=dtype), 1
    else:
        whole = torch.tensor([[0.3, 0.7, 0.5, 0.4], [0.2, 0.3, 0.5, 0.1]], dtype=dtype)
        whole[:, possible:] = 0
    if parameter == "logits":
        whole = whole.logit() if cls in BERNOULLI else whole.log()
    return whole, whole[..., :possible]


def share_noise(k, monkeypatch):
    """From one seed fewer than k categories have the noise of the first of k.

    On a GPU too, where kernels would draw their own.
    """
    rand = torch.rand

    def first(shape, **kinds):
        return rand((*shape[:-1], k), **kinds)[..., : shape[-1]]

    def filled(draw):
        return lambda out: out.copy_(draw(out.shape, dtype=out.dtype, device=out.device))

    monkeypatch.setattr(torch, "rand", first)
    monkeypatch.setitem(dispatch.BY_DEVICE, "cuda", reference)
    monkeypatch.setattr(kernels, "exponential_", filled(noise.exponential))
    monkeypatch.setattr(kernels, "logistic_", filled(noise.logistic))


def derivatives(function, parameter, temperature, possible):
    """The first and second derivatives of a function of the two, as a list.

    Of the parameter those in its first entries; in the others they must be 0.
    """
    leaves = parameter.clone().requires_grad_(), temperature.clone().requires_grad_()
    value = function(*leaves)
    wanted, found = (value * weights_like(value)).sum(), []
    for _ in range(2):
        if wanted.requires_grad:
            options = {"create_graph": True, "materialize_grads": True}
            of_parameter, of_temperature = torch.autograd.grad(wanted, leaves, **options)
        else:
            of_parameter, of_temperature = (torch.zeros_like(leaf) for leaf in leaves)
        assert (of_parameter[..., possible:] == 0).all()
        parts = of_parameter[..., :possible], of_temperature
        wanted = sum((part * weights_like(part)).sum() for part in parts)
        found += [part.detach() for part in parts]
    return found


def weights_like(tensor):
    """Some weights, the same for the same shape."""
    weights = torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64)
    return weights.reshape(tensor.shape).to(tensor.dtype)


@functools.cache
def noise_shares(k):
    """log(E_i / sum_j E_j) of k = 2 or 3 exponential variates, as nodes and weights.

    The shares are uniform on the simplex; by the tanh-sinh rule, exact also for functions of their
    logarithms: to 1e-11 for k = 2, where more nodes are cheap, and 1e-9 for k = 3.
    """
    step = 0.002 if k == 2 else 0.01
    t = torch.arange(-4, 4 + step, step, dtype=torch.float64)
    logit = math.pi * torch.sinh(t)
    left, right = logsigmoid(logit), logsigmoid(-logit)
    weights = step * (left + right).exp() * math.pi * torch.cosh(t)
    if k == 2:
        return torch.stack([left, right], -1), weights
    rest = right.unsqueeze(-1)
    parts = torch.broadcast_tensors(left.unsqueeze(-1), rest + left, rest + right)
    density = 2 * (weights * right.exp()).unsqueeze(-1) * weights
    return torch.stack(parts, -1).flatten(0, 1), density.flatten()


def assert_same_mean(samples, expected):
    """The mean of iid `samples` over the first dimension is `expected`, entry by entry."""
    samples = torch.as_tensor(samples).double()
    n = samples.shape[0]
    error = samples.std(0) / math.sqrt(n)
    z = ((samples.mean(0) - expected) / error.clamp(min=1e-12)).abs().max().item()
    assert z < z_bound(samples[0].numel()), f"{z} standard errors from the exact mean"


def z_bound(comparisons=1):
    """How many standard errors are too many, for this many comparisons."""
    return stats.norm.isf(ALPHA / 2 / comparisons)


def seeded(draw, generator, *arguments, dtype=None):
    """Random numbers that are the same on every device.

    :param draw: such as torch.randn.
    :param generator: a generator of the CPU, or a seed.
    """
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    numbers = draw(*arguments, generator=generator, dtype=dtype, device="cpu")
    return numbers.to(torch.get_default_device())


def random_state():
    """The state of the generator that draws on the device."""
    return _generators().get_rng_state()


def set_random_state(state):
    """Draw on the device from where `random_state` was called."""
    _generators().set_rng_state(state)


def _generators():
    on_gpu = torch.get_default_device().type == "cuda" and torch.cuda.is_available()
    return torch.cuda if on_gpu else torch


def assert_counts(counts, probs):
    """Multinomial `counts` have the distribution `probs` (chi-square)."""
    counts, probs = torch.as_tensor(counts).double(), torch.as_tensor(probs).double()
    expected = probs / probs.sum() * counts.sum()
    p = stats.chisquare(counts.cpu().numpy(), expected.cpu().numpy()).pvalue
    assert p > ALPHA, f"chi-square p = {p}"
