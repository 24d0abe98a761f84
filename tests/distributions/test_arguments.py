# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Temperature, probs and logits, shapes, errors, and the ordinary life of a distribution."""

import copy
import inspect
import math
import pickle
from fractions import Fraction
from functools import partial
from typing import ClassVar

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_gumbel import (
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    ExpRelaxedCategorical,
    HardConcrete,
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
    m_hot,
)
from tests.common import (
    ALL,
    BERNOULLI,
    CATEGORICAL,
    DISCRETE,
    RANKINGS,
    RELAXED,
    SIZED,
    STRAIGHT_THROUGH,
    SUBSETS,
    WITH_INDICES,
    build,
    event_shape,
    leaf_of,
    make,
    param_shape,
    smooth,
)


@pytest.mark.parametrize("cls", [cls for cls in WITH_INDICES if cls not in SIZED])
@pytest.mark.parametrize("fill", [0.0, 200.0, -math.inf, math.nan])
@pytest.mark.parametrize("validate_args", [None, True, False])
def test_usual_arguments_are_set_up_as_all_others(cls, fill, validate_args, monkeypatch):
    """In fewer steps: with the same attributes, and the same errors."""
    logits = torch.randn(4, *param_shape(cls), requires_grad=True) * 1
    with torch.no_grad():
        logits.view(-1)[0] = fill

    def attributes():
        try:
            d = cls(0.5, logits=logits, validate_args=validate_args)
        except ValueError as error:
            return str(error)
        key = d.__dict__.pop("_cache_key")
        d.__dict__.pop("_is_usual", None)
        return sorted((vars(d) | {"near": key.near, "may wait": key.may_wait}).items())

    found = attributes()
    monkeypatch.setattr(cls, "_set_up_usual", lambda *arguments: False)
    assert repr(found) == repr(attributes())
    assert isinstance(found, str) == (math.isnan(fill) and validate_args is not False)


def test_logits_of_a_size_that_is_not_known_are_compiled_whole():
    def draw(x, chosen):
        return RelaxedBernoulli(0.5, logits=x[chosen], validate_args=False).rsample()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(draw, backend="eager", fullgraph=True)
        assert compiled(torch.randn(4), torch.tensor([True, False, True, True])).shape == (3,)


# Temperature.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", RELAXED)
def test_a_temperature_is_rounded_as_the_parameter_is(cls, dtype):
    logits = torch.randn(4, *param_shape(cls)).to(dtype)
    d = build(cls, torch.tensor(0.3), logits=logits, validate_args=False)
    assert d.temperature.dtype == dtype
    value = d.rsample().clone()
    expected = build(cls, d.temperature.item(), logits=logits, validate_args=False)
    assert torch.equal(d.log_prob(value), expected.log_prob(value))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("cls", ALL)
def test_parameters_of_a_module_that_changes_its_dtype(cls, dtype):
    """After the distribution was made: it is computed as with one that is made then."""
    module = torch.nn.ParameterDict(
        {"logits": torch.nn.Parameter(torch.randn(4, *param_shape(cls)))}
    )
    kept = build(cls, 0.5, logits=module["logits"])
    module.to(dtype)
    new = build(cls, 0.5, logits=module["logits"])
    values = []
    for d in (kept, new):
        torch.manual_seed(0)
        value = d.rsample((50,))
        values.append((value.detach(), d.log_prob(value).detach()))
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_one_element_is_a_scalar(cls):
    logits = torch.randn(4, *param_shape(cls))
    torch.manual_seed(0)
    expected = build(cls, 0.5, logits=logits).rsample()
    for temperature in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]]), lambda: 0.5):
        d = build(cls, temperature, logits=logits)
        assert d.batch_shape == (4,)
        assert d.temperature.shape == ()
        torch.manual_seed(0)
        assert torch.equal(d.rsample(), expected)
        assert d.log_prob(d.sample()).shape == (4,)


@pytest.mark.parametrize("cls", smooth(WITH_INDICES))
@pytest.mark.parametrize(
    ("temperature", "batch", "joint"),
    [((4,), (), (4,)), ((4,), (3, 4), (3, 4)), ((3, 1), (3, 4), (3, 4)), ((2, 3), (3,), (2, 3))],
)
def test_temperature_is_part_of_the_batch_shape(cls, temperature, batch, joint):
    """Each batch element has its own temperature: compare with one distribution an element."""
    tau = torch.rand(temperature, dtype=torch.float64) + 0.2
    logits = torch.randn((*batch, *param_shape(cls)), dtype=torch.float64)
    d = build(cls, tau, logits=logits)
    assert d.batch_shape == joint
    assert d.rsample((2,)).shape == (2, *joint, *event_shape(cls))
    value = d.sample()
    score = d.log_prob(value)
    assert score.shape == joint
    full_tau = tau.expand(joint)
    full_logits = logits.expand(*joint, *param_shape(cls))
    for index in np.ndindex(*joint):
        one = build(cls, full_tau[index], logits=full_logits[index])
        torch.testing.assert_close(score[index], one.log_prob(value[index].clone()))


def test_a_callable_temperature_is_called_once_in_the_constructor():
    calls = []

    def schedule():
        calls.append(1)
        return torch.tensor(0.3)

    d = RelaxedBernoulli(schedule, logits=torch.zeros(3))
    d.log_prob(d.rsample())
    d.expand([2, 3]).rsample()
    assert len(calls) == 1
    assert d.temperature == torch.tensor(0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("cls", ALL)
def test_temperature_takes_the_dtype_of_the_parameters(cls, dtype):
    logits = torch.zeros(2, *param_shape(cls), dtype=dtype)
    for temperature in (0.5, 1, torch.tensor(0.5, dtype=torch.float64), np.float32(0.5)):
        d = build(cls, temperature, logits=logits)
        assert d.temperature.dtype == dtype
        assert d.rsample().dtype == dtype


class Unwrapped:
    """An object that torch functions take for the tensor inside; no subclass of Tensor."""

    def __init__(self, tensor):
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        inside = [each.tensor if isinstance(each, cls) else each for each in arguments]
        return cls.answer(function(*inside, **(keywords or {})))

    @staticmethod
    def answer(tensor):
        return tensor


class Wrapped(Unwrapped):
    """One that answers with its like, has the attributes of the tensor and converts to an array."""

    answer = classmethod(lambda cls, tensor: cls(tensor))

    def __getattr__(self, name):
        return getattr(self.tensor, name)

    def __array__(self, dtype=None, copy=None):
        return self.tensor.detach().numpy()


SCALARS = {
    "a number": lambda number: number,
    "an integer tensor": lambda number: torch.tensor(number),
    "a batch of one integer": lambda number: torch.tensor([number], dtype=torch.uint8),
    "an array": lambda number: np.array(float(number)),
    "an array of an integer": lambda number: np.array(number),
    "a long double": lambda number: np.array(number, dtype=np.longdouble),
    "a number of numpy": lambda number: np.int64(number),
    "an object": lambda number: Unwrapped(torch.tensor(float(number))),
    "an object of an integer": lambda number: Unwrapped(torch.tensor(number)),
    "an object that stays one": lambda number: Wrapped(torch.tensor(float(number))),
    "a function": lambda number: lambda: np.array(number),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SCALARS)
@pytest.mark.parametrize("cls", WITH_INDICES)
def test_kinds_of_temperatures(cls, kind, dtype):
    logits = torch.randn(4, *param_shape(cls), dtype=dtype)
    d, expected = (build(cls, given, logits=logits) for given in (SCALARS[kind](2), 2.0))
    assert type(d.temperature) is torch.Tensor
    assert d.temperature.dtype == dtype
    torch.manual_seed(0)
    value = d.rsample()
    torch.manual_seed(0)
    assert torch.equal(value, expected.rsample())
    assert torch.equal(d.log_prob(value.clone()), expected.log_prob(value.clone()))


@pytest.mark.parametrize("kind", [Unwrapped, Wrapped])
@pytest.mark.parametrize("cls", ALL)
def test_a_temperature_for_each_element_of_a_batch(cls, kind):
    tau, logits = torch.tensor([0.5, 10.0]), torch.randn(2, *param_shape(cls), requires_grad=True)
    results = []
    for given in (tau, kind(tau)):
        torch.manual_seed(0)
        d = build(cls, given, logits=logits)
        value = d.rsample()
        (gradient,) = torch.autograd.grad(value.pow(2).sum(), logits)
        results.append((value, d.log_prob(value.detach() * 1), gradient))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [kind for kind in SCALARS if kind != "a function"])
@pytest.mark.parametrize("cls", BERNOULLI)
def test_kinds_of_numbers_for_a_bit(cls, kind):
    for name in ("probs", "logits"):
        d = build(cls, 0.5, **{name: SCALARS[kind](1)})
        assert getattr(d, name).tolist() in (1.0, [1.0])
        assert d.log_prob(d.sample()).dtype == torch.float32


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_the_gradient_of_an_object_that_stands_for_a_tensor(cls):
    """It is kept, or where it would be lost the object is refused."""
    tau = torch.tensor(0.5, requires_grad=True)
    logits = torch.zeros(param_shape(cls))
    d = build(cls, Unwrapped(tau), logits=logits)
    assert torch.autograd.grad(d.temperature, tau)[0] == 1
    with pytest.raises(
        TypeError, match=r"`temperature` must be .*, got Wrapped; write temperature"
    ):
        build(cls, Wrapped(tau), logits=logits)


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_a_batch_of_integer_temperatures(cls):
    logits = torch.zeros(3, *param_shape(cls))
    for given in (torch.tensor([1, 2, 3]), Unwrapped(torch.tensor([1.0, 2.0, 3.0]))):
        d = build(cls, given, logits=logits)
        assert d.temperature.tolist() == [1.0, 2.0, 3.0]
        assert d.batch_shape == (3,)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", [*WITH_INDICES, *DISCRETE])
def test_integer_parameters(cls, default):
    """Weights 1, 2, 3 are probabilities of 1/6, 1/3, 1/2, in torch's default dtype."""
    torch.set_default_dtype(default)
    for integers in (torch.int64, torch.uint8, torch.int8):
        weights = torch.tensor([0, 1, 1] if cls in BERNOULLI else [1, 2, 3], dtype=integers)
        plain = dist.Bernoulli if cls in BERNOULLI else dist.OneHotCategorical
        for name in ("probs", "logits"):
            d = build(cls, 0.5, **{name: weights}, validate_args=True)
            expected = plain(**{name: weights.to(default)})
            torch.testing.assert_close(d.probs, expected.probs)
            assert d.probs.dtype == default
            assert d.log_prob(d.sample()).isfinite().all()


@pytest.mark.parametrize("cls", [*WITH_INDICES, *DISCRETE])
def test_validation_is_the_argument_after_logits(cls):
    """As in the signatures of Pyro: RelaxedBernoulli(temperature, probs, logits, validate_args)."""
    names = list(inspect.signature(cls).parameters)
    before = [name for name in ("temperature", "size") if name in names]
    assert names[: len(before) + 3] == [*before, "probs", "logits", "validate_args"]
    if cls is RelaxedBernoulli:
        theirs = inspect.signature(torch.distributions.RelaxedBernoulli).parameters
        assert names == list(theirs)
    first = [{"temperature": -0.5, "size": 1}[name] for name in before]
    logits = torch.full(param_shape(cls), math.nan)
    for no in (False, np.False_):
        assert cls(*first, None, logits, no)._validate_args is False
    with pytest.raises(ValueError, match="must be"):
        cls(*first, None, logits, True)
    for wrong in ("reinmax", lambda *a: a[0], [True]):
        with pytest.raises(TypeError, match=r"`validate_args` must be True, False or None, got"):
            cls(*first, None, logits, wrong)


@pytest.mark.parametrize("cls", BERNOULLI)
def test_a_number_takes_the_default_dtype(cls):
    assert build(cls, 0.5, 0.3).sample().dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    assert build(cls, 0.5, probs=0.3).sample().dtype == torch.float64
    assert build(cls, 0.5, logits=1).batch_shape == ()


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_default_device(cls):
    with torch.device("meta"):
        d = build(cls, 0.5, logits=torch.zeros(2, *param_shape(cls)), validate_args=False)
        assert d.rsample().device.type == "meta"
        assert d.log_prob(d.rsample()).shape == (2,)
        if cls in BERNOULLI:
            assert build(cls, 0.5, probs=0.3).sample().device.type == "meta"


# Shapes.


@pytest.mark.parametrize("cls", WITH_INDICES)
@pytest.mark.parametrize("batch", [(), (1,), (0,), (3, 0), (4, 2)])
def test_shapes(cls, batch):
    d = make(cls, batch_shape=batch)
    event = event_shape(cls)
    assert d.shape() == (*batch, *event)
    assert d.event_dim == len(event)
    for sample_shape in ((), (5,), (2, 3)):
        assert d.rsample(sample_shape).shape == (*sample_shape, *batch, *event)
        value = d.sample(sample_shape)
        assert value.shape == (*sample_shape, *batch, *event)
        assert d.log_prob(value).shape == (*sample_shape, *batch)


@pytest.mark.parametrize("cls", ALL)
def test_samples_of_a_batch_are_independent(cls):
    """No noise shared over the sample shape, the batch or an expanded dimension."""
    d = make(cls, 1.0, (3,), 20).expand([40, 3])
    rows = d.sample((2,)).reshape(240, -1)
    if cls in smooth(RELAXED):
        assert rows.unique(dim=0).shape[0] == 240
    else:
        assert rows.unique(dim=0).shape[0] > 1


@pytest.mark.parametrize("parameter", ["probs", "logits"])
@pytest.mark.parametrize("cls", WITH_INDICES)
def test_expand(cls, parameter):
    d = make(cls, torch.tensor([[0.3], [2.0]]), (2, 4), parameter=parameter)
    assert d.batch_shape == (2, 4)
    wide = d.expand([5, 2, 4])
    assert type(wide) is cls
    assert wide.batch_shape == (5, 2, 4)
    assert wide.rsample().shape == wide.shape()
    assert wide._validate_args == d._validate_args
    value = d.sample()
    torch.testing.assert_close(wide.log_prob(value), d.log_prob(value).expand(5, 2, 4))
    for name in ("probs", "logits"):
        torch.testing.assert_close(getattr(wide, name)[0], getattr(d, name))
        assert getattr(wide, name).shape == (5, 2, 4, *param_shape(cls))
    d.has_rsample_(False)
    assert d.expand([5, 2, 4]).has_rsample is False
    assert cls.has_rsample is True
    for wrong in ([3], [-1, 4], [4], [1, 4]):
        with pytest.raises(ValueError, match="batch_shape"):
            d.expand(wrong)


def test_expanding_a_subclass_keeps_its_attributes():
    class Named(RelaxedCategorical):
        def __init__(self, name, logits):
            self.name = name
            super().__init__(0.5, logits=logits)

    wide = Named("mine", torch.zeros(3)).expand([4])
    assert type(wide) is Named
    assert wide.name == "mine"


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_to_event(cls):
    d = make(cls, batch_shape=(4, 3, 2)).to_event(2)
    assert d.batch_shape == (4,)
    assert d.event_shape == (3, 2, *event_shape(cls))
    value = d.rsample()
    torch.testing.assert_close(d.log_prob(value), d.base_dist.log_prob(value).sum((-1, -2)))
    assert d.expand([7, 4]).rsample().shape == (7, *d.shape())


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_mask(cls):
    mask = torch.tensor([True, False])
    d = make(cls, batch_shape=(2,))
    value = d.rsample()
    score = d.mask(mask).log_prob(value).detach()
    assert score[1] == 0
    torch.testing.assert_close(score[0], d.log_prob(value)[0].detach())


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_infer_shapes(cls):
    event, own = event_shape(cls), param_shape(cls)
    infer = partial(cls.infer_shapes, size=2) if cls in SIZED else cls.infer_shapes
    assert infer((), probs=(4, *own)) == ((4,), event)
    assert infer(temperature=(2, 4), logits=(4, *own)) == ((2, 4), event)
    assert infer(temperature=(1,), logits=own) == ((), event)
    with pytest.raises(ValueError, match="temperature"):
        infer(temperature=(5,), logits=(4, *own))
    for both in ({}, {"probs": own, "logits": own}):
        with pytest.raises(ValueError, match=r"`probs` and `logits`; write"):
            cls.infer_shapes(temperature=(), **both)


@pytest.mark.parametrize("cls", CATEGORICAL)
def test_a_single_category(cls):
    d = make(cls, batch_shape=(2,), k=1)
    value = d.rsample()
    assert (value == (0.0 if cls is ExpRelaxedCategorical else 1.0)).all()
    assert d.log_prob(value).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("cls", SIZED)
def test_infer_shapes_from_shapes_alone(cls):
    """A Python int has shape (), which tells the event shape of a subset and not of a ranking."""
    if cls in (PlackettLuce, *RANKINGS):
        with pytest.raises(NotImplementedError, match=r"`size` rows.*number itself.*write size=2"):
            cls.infer_shapes(size=(), logits=(4, 3))
    else:
        assert cls.infer_shapes(size=(), logits=(4, 3)) == ((4,), (3,))
        assert cls.infer_shapes(size=torch.Size(), probs=torch.Size([3])) == ((), (3,))
    for size in ((2,), None, 2.0, torch.tensor(2)):
        with pytest.raises(TypeError, match="`size` must be a Python int, got"):
            cls.infer_shapes(size=size, logits=(4, 3))


@pytest.mark.parametrize("cls", [*WITH_INDICES, *DISCRETE])
def test_shapes_that_infer_shapes_cannot_read(cls):
    infer = partial(cls.infer_shapes, size=2) if cls in SIZED else cls.infer_shapes
    with pytest.raises(TypeError, match=rf"{cls.__name__}.infer_shapes: `probs`.*got int; write"):
        infer(probs=3)
    with pytest.raises(TypeError, match=r"infer_shapes: `temperature`.*got tuple of float; write"):
        infer((0.5,), probs=(4, 3))
    if cls not in BERNOULLI:
        with pytest.raises(ValueError, match=r"infer_shapes: `logits`.*last dimension, got shape"):
            infer(logits=())


BAD_SHAPES = [
    (3, TypeError, ["got int", "(3,)"]),
    (None, TypeError, ["got NoneType"]),
    ("x", TypeError, ["got str"]),
    ((1.5,), TypeError, ["got tuple of float"]),
    ([2, "x"], TypeError, ["got list of int, str"]),
    ((None,), TypeError, ["got tuple of NoneType"]),
    (torch.tensor(3), TypeError, ["got Tensor"]),
    ((-1,), ValueError, ["-1"]),
    (torch.Size([2, -3]), ValueError, ["2, -3"]),
    ((10**30,), ValueError, []),
    ((2, 10**5000), ValueError, []),
]


@pytest.mark.parametrize(("shape", "error", "words"), BAD_SHAPES)
@pytest.mark.parametrize("cls", [*WITH_INDICES, *DISCRETE])
def test_bad_shapes(cls, shape, error, words):
    d = build(cls, 0.5, logits=torch.zeros(2, *param_shape(cls)))
    methods = ["sample", "__call__", "expand_by", "shape", "expand"]
    for method in methods + ["rsample"] * d.has_rsample:
        with pytest.raises(error) as caught:
            getattr(d, method)(shape)
        name = "`batch_shape`" if method == "expand" else "`sample_shape`"
        for word in [cls.__name__, name, "write", *words]:
            assert word in str(caught.value)


@pytest.mark.parametrize(
    "shape", [(3, 1), [3, 1], torch.Size([3, 1]), (np.int64(3), 1), torch.tensor([3, 1]), range(3)]
)
@pytest.mark.parametrize("cls", [*WITH_INDICES, *DISCRETE])
def test_shapes_are_what_torch_takes_for_one(cls, shape):
    d = build(cls, 0.5, logits=torch.zeros(param_shape(cls)))
    expected = torch.Size([int(n) for n in shape])
    assert d.expand(shape).batch_shape == expected
    assert d.expand_by(shape).batch_shape == expected
    assert d.shape(shape) == expected + d.event_shape
    assert d.sample(shape).shape == expected + d.event_shape
    if d.has_rsample:
        assert d.rsample(shape).shape == expected + d.event_shape


# Parameters.


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_probs_and_logits_mean_what_they_mean_in_pyro(cls):
    plain = dist.Bernoulli if cls in BERNOULLI else dist.OneHotCategorical
    for parameter in ("probs", "logits"):
        d = make(cls, 0.5, (4,), dtype=torch.float64, parameter=parameter)
        theirs = plain(**{parameter: leaf_of(d)})
        torch.testing.assert_close(d.probs, theirs.probs)
        torch.testing.assert_close(d.logits, theirs.logits)


@pytest.mark.parametrize("cls", CATEGORICAL + SUBSETS + RANKINGS)
def test_probs_are_normalised_and_logits_shift_invariant(cls):
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    distributions = [
        build(cls, 0.5, probs=weights),
        build(cls, 0.5, probs=weights / 8),
        build(cls, 0.5, logits=weights.log() + 100),
    ]
    torch.manual_seed(0)
    value = distributions[0].sample((5,))
    for d in distributions:
        torch.testing.assert_close(d.log_prob(value), distributions[0].log_prob(value))
        torch.testing.assert_close(d.probs, weights / 8)
        torch.manual_seed(0)
        torch.testing.assert_close(d.sample((5,)), value)


OF_CATEGORIES = CATEGORICAL + SUBSETS + RANKINGS + DISCRETE
TWO_ROWS = torch.tensor([[0.5, -1.25, 0.125, 2.0], [0.0, 0.0, 0.0, -3.0]], dtype=torch.float64)
IN_SIXTEENS = torch.tensor([[0, 16, 0, -16], [32, 0, 0, 0]], dtype=torch.float64)
ONE_IMPOSSIBLE = torch.tensor([[0.5, 0, -math.inf, 2], [0, 0, 0, -3]], dtype=torch.float64)
SHIFTS = [  # with the logits that are still exact behind them
    (1e9, TWO_ROWS),
    (-1e12, TWO_ROWS),
    (1e17, IN_SIXTEENS),
    (1e9, ONE_IMPOSSIBLE),
]


def all_that_is_known(cls, logits):
    """What a distribution of these logits gives, by its name; with the gradients in the logits."""
    x = logits.clone().requires_grad_()
    d, other = (build(cls, tau, logits=y) for tau, y in ((2.5, x), (1.5, x.flip(0) / 2)))
    torch.manual_seed(0)
    value = build(cls, 2.5, logits=torch.zeros(4, dtype=torch.float64)).sample((3, 2))
    calls = {
        "log_prob": lambda: d.log_prob(value.clone()),
        "entropy": d.entropy,
        "kl": lambda: torch.distributions.kl_divergence(d, other),
        "draw": lambda: d.rsample((5,)) if d.has_rsample else d.sample((5,)),
        "own": lambda: d.log_prob(d.sample((5,))),
    }
    names = ("mean", "variance", "mode", "probs", "logits", "covariance_matrix")
    calls |= {name: partial(getattr, d, name) for name in names if hasattr(cls, name)}
    known = {}
    for name, call in calls.items():
        torch.manual_seed(1)
        try:
            found = call()
        except NotImplementedError:
            continue
        known[name] = found.detach()
        if found.requires_grad:
            weights = torch.linspace(-1, 1, found.numel(), dtype=torch.float64)
            total = (torch.where(found.isinf(), 0.0, found).flatten() * weights).sum()
            known[f"gradient of {name}"] = torch.autograd.grad(total, x)[0]
    return known


@pytest.mark.parametrize(("shift", "logits"), SHIFTS)
@pytest.mark.parametrize("cls", OF_CATEGORIES)
def test_nothing_sees_a_common_shift_of_the_logits(cls, shift, logits):
    moved = logits + shift
    assert torch.equal(moved - shift, logits)
    expected, found = all_that_is_known(cls, logits), all_that_is_known(cls, moved)
    assert len(found) == len(expected) >= 5
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-12, atol=1e-12, msg=lambda text, n=name: n + text
        )


@pytest.mark.parametrize("cls", OF_CATEGORIES)
def test_a_far_shift_takes_no_digit_from_the_noise_in_float32(cls):
    """At a million nats: of two equal ones neither is preferred, and z has its digits."""
    for batch in ((), (3,)):
        logits = torch.zeros(*batch, 2)
        draws = []
        for x in (logits, logits - 1e6):
            torch.manual_seed(0)
            draws.append(build(cls, 0.5, logits=x).sample((1000,)))
        torch.testing.assert_close(*draws)
        first = draws[1].reshape(-1, 2)[:, 0]
        assert 0.4 < (first > draws[1].reshape(-1, 2)[:, 1]).float().mean() < 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", DISCRETE)
def test_the_lowest_number_beside_a_far_one_stays_possible(cls, dtype):
    lowest = torch.finfo(dtype).min
    d = cls(2, logits=torch.tensor([1e5, lowest, lowest], dtype=dtype), validate_args=True)
    included = m_hot(d.mean) if cls is PlackettLuce else d.mean
    torch.testing.assert_close(included, torch.tensor([1.0, 0.5, 0.5], dtype=dtype))
    assert d.log_prob(d.sample()).item() == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("cls", CATEGORICAL + SUBSETS + RANKINGS)
def test_weights_whose_sum_overflows_are_normalised(cls):
    d = build(cls, 0.5, probs=torch.tensor([3e38, 1e38]))
    torch.testing.assert_close(d.probs, torch.tensor([0.75, 0.25]))


SUBNORMAL = [
    (torch.float16, 6e-8),
    (torch.bfloat16, 1e-40),
    (torch.float32, 4e-45),
    (torch.float32, 1e-40),
    (torch.float64, 5e-324),
    (torch.float64, 1e-310),
]


def with_a_subnormal(cls, dtype, small):
    """Probabilities, of which the first is subnormal, and that one as Python has it."""
    probs = torch.tensor(small if cls in BERNOULLI else [small, 0.25, 0.75], dtype=dtype)
    first = probs.reshape(-1)[0].item()
    assert 0 < first < torch.finfo(dtype).tiny
    return probs, first


@pytest.mark.parametrize(("dtype", "small"), SUBNORMAL)
@pytest.mark.parametrize("cls", WITH_INDICES + DISCRETE)
def test_the_logarithm_of_a_subnormal_probability_is_exact(cls, dtype, small):
    probs, first = with_a_subnormal(cls, dtype, small)
    logit = build(cls, 0.5, probs=probs).logits.reshape(-1)[0]
    assert logit.item() == pytest.approx(math.log(first), rel=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("dtype", "small"), [case for case in SUBNORMAL if case[0] != torch.float16]
)
@pytest.mark.parametrize("cls", WITH_INDICES + DISCRETE)
def test_a_subnormal_probability_has_finite_gradients(cls, dtype, small):
    probs, _ = with_a_subnormal(cls, dtype, small)
    d = build(cls, 0.5, probs=probs.requires_grad_())
    logit = d.logits.reshape(-1)[0]
    for found in (logit, d.probs, d.log_prob(d.sample((20,)))):
        (gradient,) = torch.autograd.grad(found.sum(), probs, retain_graph=True)
        assert gradient.isfinite().all()
    (slope,) = torch.autograd.grad(logit, probs)
    assert slope.reshape(-1)[0] >= 2.0**-24 / torch.finfo(dtype).tiny


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_log_probs_of_half_parameters_are_float32(cls):
    for dtype in (torch.float16, torch.bfloat16):
        d = make(cls, 0.5, (4,), dtype=dtype)
        assert d.log_prob(d.rsample()).dtype == torch.float32
        assert d.logits.dtype == dtype


@pytest.mark.parametrize("parameter", ["probs", "logits"])
@pytest.mark.parametrize("cls", WITH_INDICES)
def test_parameters_and_draws_of_half_types_are_valid(cls, parameter):
    for dtype in (torch.float16, torch.bfloat16):
        d = make(cls, 0.5, (500,), 4, dtype, parameter, validate_args=True, scale=2.0)
        assert not d.log_prob(d.rsample()).isnan().any()


# Errors.

TWO, THREE = torch.zeros(2), torch.zeros(3)

BAD_ARGUMENTS = [
    # arguments, keywords, error, words that name the argument and the remedy
    ((0.5,), {}, ValueError, ["`probs` and `logits`", "neither", "write"]),
    ((0.5, THREE, THREE), {}, ValueError, ["`probs` and `logits`", "both", "write"]),
    ((0.0, None, THREE), {}, ValueError, ["`temperature`", "positive", "0", "write"]),
    ((-1.0, None, THREE), {}, ValueError, ["`temperature`", "-1", "softplus"]),
    ((math.nan, None, THREE), {}, ValueError, ["`temperature`", "nan", "write"]),
    ((math.inf, None, THREE), {}, ValueError, ["`temperature`", "inf", "write"]),
    ((lambda: -1.0, None, THREE), {}, ValueError, ["`temperature`", "-1"]),
    ((torch.tensor(True), None, THREE), {}, TypeError, ["`temperature`", "bool", ".to("]),
    ((True, None, THREE), {}, TypeError, ["`temperature`", "bool", "write"]),
    (("0.5", None, THREE), {}, TypeError, ["`temperature`", "str", "write"]),
    ((0.5, THREE.bool()), {}, TypeError, ["`probs`", "bool", "probs.to("]),
    ((0.5, THREE.to(torch.cfloat)), {}, TypeError, ["`probs`", "complex64", "probs.to("]),
    ((0.5, None, THREE.bool()), {}, TypeError, ["`logits`", "bool", "logits.to("]),
    ((0.5, None, THREE.to(torch.cfloat)), {}, TypeError, ["`logits`", "complex64"]),
    ((0.5, [0.2, 0.3, 0.5]), {}, TypeError, ["`probs`", "list", "torch.as_tensor"]),
    ((0.5, torch.tensor([-0.1, 0.6, 0.5])), {}, ValueError, ["`probs`", "-0.1", "logits=..."]),
    ((0.5, torch.tensor([math.nan, 0.6, 0.4])), {}, ValueError, ["`probs`", "nan", "write"]),
    ((0.5, None, torch.tensor([math.nan, 0.0, 1.0])), {}, ValueError, ["`logits`", "nan", "write"]),
    (
        (torch.ones(4), None, torch.zeros(5, 3)),
        {},
        ValueError,
        ["`temperature`", "(4,)", "torch.full"],
    ),
    (
        (torch.ones(4, 1, 1), None, torch.zeros(5, 3)),
        {},
        ValueError,
        ["`temperature`", "(4, 1, 1)", "logits.expand"],
    ),
]
BAD_FOR_CATEGORIES = [
    ((torch.tensor([0.5, -2.0]), None, torch.zeros(2, 3)), {}, ValueError, ["got e.g. -2;"]),
    ((torch.ones(2, 1), None, torch.zeros(2, 3)), {}, ValueError, ["squeeze(-1)"]),
    ((0.5, 0.3), {}, ValueError, ["`probs`", "last dimension", "Bernoulli"]),
    ((0.5, None, torch.zeros(4, 0)), {}, ValueError, ["`logits`", "at least one"]),
    ((0.5, None, torch.tensor(0.3)), {}, ValueError, ["`logits`", "last dimension", "shape ()"]),
    ((0.5, torch.zeros(3)), {}, ValueError, ["`probs`", "1 or more positive", "write"]),
    ((0.5, torch.tensor([math.inf, 1.0])), {}, ValueError, ["`probs`", "inf", "write"]),
    ((0.5, None, torch.tensor([math.inf, 0.0])), {}, ValueError, ["`logits`", "inf", "write"]),
    ((0.5, None, torch.full((2,), -math.inf)), {}, ValueError, ["`logits`", "finite", "write"]),
]
BAD_FOR_A_BIT = [
    ((torch.tensor([0.5, -2.0]), None, TWO), {}, ValueError, ["got e.g. -2;"]),
    ((0.5, 1.5), {}, ValueError, ["`probs`", "1.5", "[0, 1]", "logits=..."]),
    ((0.5, -0.1), {}, ValueError, ["`probs`", "-0.1", "[0, 1]"]),
    ((torch.ones(2, 1), None, torch.zeros(2)), {}, ValueError, ["squeeze(-1)"]),
]
BAD_FOR_RELAXED = [
    ((None, None, THREE), {}, TypeError, ["`temperature`", "NoneType", "write"]),
]
BAD_FOR_HARD = [
    (
        (0.5, None, THREE),
        {"estimator": "second_order"},
        ValueError,
        ["`temperature` must be None", "estimator=second_order", "float", "leave it out"],
    ),
    (
        (None, None, THREE),
        {"estimator": "gumbel_rao"},
        ValueError,
        ["`estimator` gumbel_rao", "temperature", "write"],
    ),
    ((0.5, None, THREE), {"estimator": "gumble"}, ValueError, ["`estimator`", "gumble", "write"]),
    ((0.5, None, THREE), {"estimator": 3}, TypeError, ["`estimator`", "int", "write"]),
]


def bad_calls():
    for cls in WITH_INDICES:
        rows = BAD_ARGUMENTS + (BAD_FOR_CATEGORIES if cls not in BERNOULLI else BAD_FOR_A_BIT)
        rows = rows + (BAD_FOR_RELAXED if cls.needs_temperature else BAD_FOR_HARD)
        for i, row in enumerate(rows):
            yield pytest.param(cls, *row, id=f"{cls.__name__}-{i}")


@pytest.mark.parametrize(("cls", "arguments", "keywords", "error", "words"), list(bad_calls()))
def test_bad_arguments(cls, arguments, keywords, error, words):
    for validate_args in (True, None):
        with pytest.raises(error) as caught:
            build(cls, *arguments, **keywords, validate_args=validate_args, size=1)
        for word in [cls.__name__ if "estimator" not in words[0] else "estimator", *words]:
            assert word in str(caught.value)


def calls_in_another_order():
    """Calls with an argument forgotten, or two in each other's place, and what the error says."""
    for cls in [*ALL, *DISCRETE]:
        first = "" if cls in DISCRETE else "0.5, "
        second = "2, " if cls in SIZED else ""
        line = f"{cls.__name__}({first}{second}logits=logits)"
        if cls in STRAIGHT_THROUGH and cls not in SIZED:
            line = f"{cls.__name__}(logits=logits), or {line}"
        line = f"write {line}"
        has = "`temperature` first: here it has shape (5,)"
        size = [2] if cls in SIZED else []
        weights = torch.ones(5)
        if first:
            yield cls, (weights, *size), ["got neither", line, has]
            yield cls, (0.5, *size), ["got neither", line, "`temperature` first"]
            yield cls, (weights, *size, weights, weights), ["got both", line, has]
        else:
            yield cls, (2,), ["got neither", line]
        if first and cls not in BERNOULLI:
            yield cls, (weights, *size, 0.5), ["`probs`", "got shape ()", line, has]
            yield cls, (weights, *size, None, 0.5), ["`logits`", "got shape ()", line, has]
        if size:
            temperature = [0.5] if first else []
            for wrong in ((weights, 2), (weights,), (0.5, weights), (None, weights)):
                words = ["`size` must be a Python int", "right before `probs` and `logits`"]
                yield cls, (*temperature, *wrong), words


@pytest.mark.parametrize(("cls", "arguments", "words"), list(calls_in_another_order()))
def test_arguments_in_another_order(cls, arguments, words):
    """The error blames the argument that is in a wrong place."""
    with pytest.raises((TypeError, ValueError)) as caught:
        cls(*arguments)
    for word in [cls.__name__, *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "number",
    [10**400, -(10**400), Fraction(10**400), 10**5000, 1e300],
    ids=["int", "-", "/", "long", "float64"],
)
@pytest.mark.parametrize("cls", WITH_INDICES)
def test_numbers_that_no_float_can_hold(cls, number):
    logits = torch.zeros(param_shape(cls))
    for given in (number, lambda: number):
        with pytest.raises(ValueError, match=r"`temperature` must be positive.*inf; write"):
            build(cls, given, logits=logits, validate_args=True)
    if cls in BERNOULLI:
        with pytest.raises(ValueError, match=r"`probs` must be in \[0, 1\], got e.g. -?inf; write"):
            build(cls, 0.5, number, validate_args=True)


@pytest.mark.parametrize("cls", ALL)
def test_shapes_and_types_are_checked_without_validation_values_are_not(cls):
    for arguments, keywords, error, _ in (
        BAD_ARGUMENTS[:2] + BAD_ARGUMENTS[7:15] + BAD_ARGUMENTS[-2:]
    ):
        with pytest.raises(error):
            build(cls, *arguments, **keywords, validate_args=False, size=1)
    d = build(cls, -1.0, logits=torch.zeros(3), validate_args=False)
    with pytest.raises(ValueError, match="value"):
        d.log_prob(torch.zeros(5, 2))


BAD_VALUES = {
    RelaxedBernoulli: [(torch.tensor([0.5, 1.5]), ValueError, ["1.5", "[0, 1]", "sigmoid"])],
    LogitRelaxedBernoulli: [(torch.tensor([0.5, math.nan]), ValueError, ["real", "nan"])],
    HardConcrete: [(torch.tensor([0.5, 1.5]), ValueError, ["1.5", "[0, 1]", "d.gate(value)"])],
    LogitHardConcrete: [(torch.tensor([0.5, math.nan]), ValueError, ["real", "nan"])],
    RelaxedCategorical: [
        (torch.tensor([0.5, 0.6]), ValueError, ["simplex", "value.sum(-1, keepdim=True)"]),
        (torch.tensor([-0.5, 1.5]), ValueError, ["non-negative", "-0.5"]),
        (torch.tensor([0.5, math.nan]), ValueError, ["simplex", "nan"]),
    ],
    ExpRelaxedCategorical: [
        (torch.tensor([0.5, 0.5]), ValueError, ["log-simplex", "log_softmax"]),
    ],
    BernoulliStraightThrough: [
        (torch.tensor([0.5, 1.0]), ValueError, ["0 or 1", "0.5", "RelaxedBernoulli"]),
    ],
    RelaxedSubset: [
        (torch.tensor([0.5, 0.6]), ValueError, ["hypersimplex", "sum `size`", "write"]),
        (torch.tensor([-0.5, 1.5]), ValueError, ["in [0, 1]", "-0.5"]),
    ],
    LogitRelaxedSubset: [
        (torch.tensor([2.0, 2.0]), ValueError, ["logits", "sum to `size`", "value.logit()"]),
    ],
    SubsetStraightThrough: [
        (torch.tensor([0.5, 0.5]), ValueError, ["m-hot", "RelaxedSubset", "guide"]),
        (torch.tensor([1.0, 1.0]), ValueError, ["m-hot"]),
    ],
    RelaxedPlackettLuce: [
        (torch.tensor([[0.5, 0.6]]), ValueError, ["simplex", "value.sum(-1, keepdim=True)"]),
    ],
    PlackettLuceStraightThrough: [
        (torch.tensor([[0.5, 0.5]]), ValueError, ["one-hot rows", "RelaxedPlackettLuce", "guide"]),
    ],
    CategoricalStraightThrough: [
        (torch.tensor([0.5, 0.5]), ValueError, ["one-hot", "RelaxedCategorical", "guide"]),
        (torch.tensor([1.0, 1.0]), ValueError, ["one-hot"]),
    ],
}
BAD_ANYWHERE = [
    (torch.zeros(3), ValueError, ["shape", "(2,)", "(3,)", "reshape"]),
    (torch.zeros(3, 7), ValueError, ["shape", "(3, 7)", "reshape"]),
    (0.5, ValueError, ["`value`", "float", "torch.as_tensor"]),
    (None, ValueError, ["`value`", "NoneType"]),
    (np.zeros(2), ValueError, ["`value`", "ndarray", "torch.as_tensor"]),
    (torch.zeros(2, dtype=torch.cfloat), TypeError, ["`value`", "complex64"]),
]
BAD_FOR_SOFT = [(torch.tensor([0, 1]), TypeError, ["`value`", "int64", "torch.as_tensor"])]


@pytest.mark.parametrize("cls", ALL)
def test_bad_values(cls):
    d = build(cls, 0.5, logits=torch.zeros(2), validate_args=True)
    anywhere = BAD_ANYWHERE[2:] if cls in RANKINGS else BAD_ANYWHERE
    for value, error, words in (
        BAD_VALUES[cls] + anywhere + (BAD_FOR_SOFT if cls in RELAXED else [])
    ):
        with pytest.raises(error) as caught:
            d.log_prob(value)
        for word in [cls.__name__, *words]:
            assert word in str(caught.value)


@pytest.mark.parametrize("cls", [*WITH_INDICES, *DISCRETE])
def test_a_value_that_is_no_tensor_is_a_value_error(cls):
    """As in torch, with validation and without, in each method that takes a value."""
    for checks in (True, False):
        d = build(cls, 0.5, logits=torch.zeros(2), validate_args=checks)
        has_cdf = cls in BERNOULLI and cls is not BernoulliStraightThrough
        names = ["cdf", "icdf"] if has_cdf else []
        for name in ["log_prob", "score_parts", *names]:
            for value in (1, 0.5, True, "1", None, [0.0, 1.0], np.zeros(2)):
                with pytest.raises(ValueError, match=r"`value` must be a tensor of .*write torch"):
                    getattr(d, name)(value)


@pytest.mark.parametrize("cls", STRAIGHT_THROUGH)
def test_a_hard_value_may_be_of_integers(cls):
    d = build(cls, 0.5, logits=torch.tensor([0.3, -0.2]), validate_args=True)
    value = torch.tensor([[0, 1]] if cls in RANKINGS else [0, 1])
    torch.testing.assert_close(d.log_prob(value), d.log_prob(value.float()))


BAD_SIZES = [
    (0, ValueError, ["`size`", "from 1 to", "got 0", "write size="]),
    (-1, ValueError, ["`size`", "got -1"]),
    (6, ValueError, ["`size`", "got 6", "write size="]),
    (2.0, TypeError, ["`size`", "Python int", "float", "write size=2"]),
    (torch.tensor(2.0), TypeError, ["`size`", "Python int", "ensor"]),
    (True, TypeError, ["`size`", "bool"]),
    (None, TypeError, ["`size`", "NoneType"]),
    (10**400, ValueError, ["`size`", "from 1 to", "an int of 1329 bits"]),
    (-(10**5000), ValueError, ["`size`", "from 1 to", "an int of 16610 bits"]),
]


@pytest.mark.parametrize("cls", SIZED)
def test_bad_sizes(cls):
    for size, error, words in BAD_SIZES:
        first = () if cls in DISCRETE else (0.5,)
        with pytest.raises(error) as caught:
            cls(*first, size, logits=torch.zeros(2, 5), validate_args=False)
        for word in [cls.__name__, *words]:
            assert word in str(caught.value)


@pytest.mark.parametrize("cls", [Subset, *SUBSETS])
def test_subsets_of_different_sizes_are_no_batch(cls):
    first = () if cls is Subset else (0.5,)
    for size in (torch.tensor(2), torch.tensor([1, 2])):
        with pytest.raises(
            TypeError, match="`size` must be a Python int, got Tensor; write size=2"
        ):
            cls(*first, size, logits=torch.zeros(2, 5), validate_args=False)


@pytest.mark.parametrize("cls", SIZED)
def test_all_categories_can_be_chosen_of_discrete_distributions_and_in_order(cls):
    if cls in (RelaxedSubset, LogitRelaxedSubset):
        with pytest.raises(
            ValueError, match=r"`size` must be from 1 to one less.*4, got 5.*Subset"
        ):
            build(cls, 0.5, logits=torch.zeros(5), size=5)
    else:
        d = build(cls, 0.5, logits=torch.randn(7, 5), size=5, validate_args=True)
        assert d.log_prob(d.sample()).isfinite().all()


@pytest.mark.parametrize("cls", SIZED)
def test_too_few_possible_categories(cls):
    logits = torch.tensor([0.0, 1.0, -math.inf, -math.inf])
    with pytest.raises(ValueError, match=r"`logits` must be.* 3 or more finite in every row"):
        build(cls, 0.5, logits=logits, size=3, validate_args=True)
    with pytest.raises(ValueError, match=r"`probs` must be.* 3 or more positive in every row"):
        build(cls, 0.5, probs=torch.tensor([0.5, 0.5, 0.0, 0.0]), size=3, validate_args=True)


def test_a_surrogate_of_the_wrong_kind_is_an_error():
    logits = torch.zeros(3)
    d = CategoricalStraightThrough(0.5, logits=logits, estimator=lambda x, *rest: x[..., :1])
    with pytest.raises(ValueError, match=r"`estimator`.*\(5, 3\).*expand"):
        d.rsample((5,))
    d = CategoricalStraightThrough(0.5, logits=logits, estimator=lambda *arguments: None)
    with pytest.raises(TypeError, match=r"`estimator`.*NoneType.*return link"):
        d.rsample()


# Ordinary life.


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_repr_shows_temperature_and_shapes(cls):
    d = make(cls, 0.25, (4,))
    text = repr(d)
    for part in (cls.__name__, "0.25", "batch_shape: (4,)", f"event_shape: {event_shape(cls)}"):
        assert part in text
    assert "temperature: (4,)" in repr(make(cls, torch.ones(4), (4,)))


@pytest.mark.parametrize("through", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy])
@pytest.mark.parametrize("parameter", ["probs", "logits"])
@pytest.mark.parametrize("cls", ALL)
def test_copies(cls, parameter, through):
    """With parameters that require a gradient, and expanded: both stay leaves inside."""
    distribution = make(cls, 0.5, (4,), parameter=parameter).expand([2, 4])
    twin = through(distribution)
    value = distribution.sample()
    assert torch.equal(twin.log_prob(value.clone()), distribution.log_prob(value.clone()))
    torch.manual_seed(0)
    expected = distribution.rsample()
    torch.manual_seed(0)
    assert torch.equal(twin.rsample(), expected)
    assert repr(twin) == repr(distribution)


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_a_pickle_leaves_the_graph_out(cls):
    """Of the parameters, and of what it keeps of them once it has drawn."""
    leaf = torch.zeros(2, *param_shape(cls), requires_grad=True)
    d = build(cls, 0.5, logits=leaf + 1)
    d.rsample()
    twin = pickle.loads(pickle.dumps(d))
    assert torch.equal(twin.logits, d.logits)


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_a_distribution_with_a_learnt_temperature_can_be_copied(cls):
    for dtype in (torch.float32, torch.float64):
        tau = torch.nn.Parameter(torch.tensor([0.5], dtype=dtype))
        twin = copy.deepcopy(build(cls, tau, logits=torch.zeros(2, *param_shape(cls))))
        assert twin.temperature.shape == ()
        assert twin.temperature.dtype == torch.float32


@pytest.mark.parametrize("cls", ALL)
def test_sample_and_rsample_draw_alike(cls):
    d = make(cls, 0.5, (100,))
    torch.manual_seed(0)
    drawn = d.sample()
    torch.manual_seed(0)
    pathwise = d.rsample()
    assert torch.equal(drawn, pathwise)
    assert pathwise.requires_grad
    assert not drawn.requires_grad


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_own_samples_pass_validation_in_every_dtype(cls):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for temperature in (0.05, 1.0, 5.0):
            d = make(cls, temperature, (100,), 100, dtype)
            assert d.log_prob(d.sample()).shape == (100,)


@pytest.mark.parametrize("cls", WITH_INDICES)
def test_a_subclass_may_have_other_argument_constraints(cls):
    """They do not decide whether a class has a temperature."""

    class Narrow(cls):
        arg_constraints: ClassVar = {"logits": constraints.real}

    size, logits = [2] if cls in SIZED else [], torch.zeros(param_shape(cls))
    d = Narrow(0.5, *size, logits=logits)
    assert d.temperature == 0.5
    assert d.sample().shape == d.event_shape
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        Narrow(-1.0, *size, logits=logits, validate_args=True)


@pytest.mark.parametrize("cls", SIZED)
def test_infer_shapes_takes_no_size_of_numpy(cls):
    with pytest.raises(TypeError, match=r"`size` must be a Python int, got int64"):
        cls.infer_shapes(logits=(3,), size=np.int64(2))
