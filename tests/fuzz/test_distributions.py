# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Random arguments and calls of every distribution, against the same one in float64."""

import copy
import math
import pickle
from dataclasses import replace

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_gumbel import IndexStraightThrough
from pyro_gumbel.distributions.sample_cache import recall
from pyro_gumbel.tensors.subclass import plain
from tests.common import BERNOULLI, CATEGORICAL, DISCRETE, RANKINGS, RELAXED, SUBSETS
from tests.counts import COUNTS
from tests.fuzz.cases import SHAPES, Numbers, of_counts, of_families
from tests.fuzz.checks import (
    ERRORS,
    assert_close,
    assert_named,
    bounded,
    gradients,
    largest,
    representable,
    unchanged,
)

KINDS = {
    "bits": of_families(BERNOULLI),
    "categories": of_families([*CATEGORICAL, IndexStraightThrough]),
    "subsets": of_families([*SUBSETS, DISCRETE[0]]),
    "rankings": of_families([*RANKINGS, DISCRETE[1]]),
    "counts": of_counts(list(COUNTS)),
}


MANY = 100  # cases of each kind and check in the slow tests


class Built:
    """A distribution of a case, and the same one in float64."""

    def __init__(self, case):
        torch.manual_seed(0)
        self.case = case
        self.arguments, leaves = case.given()
        wide = case.in_float64()
        self.d, self.wide = case.make(**self.arguments), case.make(**wide)
        self.tensors = [t for t in self.arguments.values() if isinstance(t, Tensor)]
        self.leaves = list(leaves.values())
        self.wide_leaves = [wide[name] for name in leaves]
        tau = getattr(self.wide, "temperature", None)
        tau = torch.as_tensor(1.0 if tau is None else tau)
        self.x = largest(*(t for n, t in wide.items() if isinstance(t, Tensor) and n != "size"))
        self.tau, self.coldest = largest(tau), 1 / largest(1 / tau)
        parameters = [value for value in case.arguments.values() if isinstance(value, Numbers)]
        sizes = [value.tensor(case.dtype).abs() for value in parameters]
        self.least = 1 / largest(*(1 / size[size > 0].double() for size in sizes))

    @property
    def is_relaxed(self):
        return self.case.make in RELAXED

    @property
    def is_moderate(self):
        return self.x < 1e3 and self.least > 1e-3 and self.coldest > 1e-2 and self.tau < 1e3

    def check(self, found, exact, scale=1.0):
        """A result and its gradients are those in float64, where they are representable."""
        assert_close(found, exact, scale)
        if not (self.leaves and found.is_floating_point()) or not representable(exact, found.dtype):
            return
        slopes = gradients(found, self.leaves), gradients(exact, self.wide_leaves)
        for slope, exact_slope in zip(*slopes, strict=True):
            if representable(exact_slope.abs(), self.case.dtype):
                assert not slope.isnan().any()
                if self.is_moderate:
                    assert_close(slope, exact_slope, scale * largest(exact_slope))

    def scale(self, value, unconstrained=None):
        """How large the terms of a log_prob are."""
        k = 6
        if self.is_relaxed:
            v = largest(value if unconstrained is None else unconstrained)
            return k * (110 + self.x + v + self.tau * (v + 110))
        return k * (110 + self.x) * largest(value)


# Properties, and methods without an argument.

PROPERTIES = {
    "entropy": lambda d: d.entropy(),
    "mean": lambda d: d.mean,
    "variance": lambda d: d.variance,
    "stddev": lambda d: d.stddev,
    "mode": lambda d: d.mode,
    "probs": lambda d: d.probs,
    "logits": lambda d: d.logits,
    "covariance_matrix": lambda d: d.covariance_matrix,
    "prob_zero": lambda d: d.prob_zero,
    "prob_one": lambda d: d.prob_one,
    "prob_nonzero": lambda d: d.prob_nonzero,
}


def check_properties(built, names):
    for name in names:
        if not hasattr(type(built.d), name):
            continue
        try:
            found = PROPERTIES[name](built.d)
        except NotImplementedError as error:
            assert_named(error)
            continue
        if built.case.make is IndexStraightThrough and name in ("mean", "variance", "stddev"):
            assert found.isnan().all()
        else:
            scale = built.x if name == "entropy" else built.d.event_shape.numel()
            if "total_count" in built.case.arguments:
                scale *= 20  # trials at most
            built.check(found, PROPERTIES[name](built.wide), scale)


# Draws.


def check_draws(built, shape):
    d = built.d
    for draw in ("sample", "rsample") if d.has_rsample else ("sample",):
        value = getattr(d, draw)(shape)
        number = plain(value)
        assert number.shape == (*shape, *d.batch_shape, *d.event_shape)
        assert not number.isnan().any()
        assert d.support.check(number).all()
        if built.is_relaxed or not number.is_floating_point():
            assert not value.requires_grad or draw == "rsample"
        check_log_prob_of_draw(built, value)
        check_gradient_of_draw(built, value)


def check_log_prob_of_draw(built, value):
    """That of its form in logit space; an impossible value is never drawn."""
    d, wide, number = built.d, built.wide, plain(value).detach().double()
    v = recall(value, d.link) if built.is_relaxed else None
    found = d.log_prob(value)
    if v is None:
        exact = wide.log_prob(number)
    else:
        v = v.detach().double()
        exact = wide._over_batch(wide._log_density(number, v, of_values=True))
    assert not exact.isneginf().any()
    if number.isposinf().any():  # a logit that its dtype cannot hold, or of a certain bit
        assert not found.isnan().any()
    else:
        assert_close(found, exact, built.scale(number, v))


def check_gradient_of_draw(built, value):
    if not built.leaves or not plain(value).is_floating_point():
        return
    slopes = gradients(value, built.leaves)
    overflows = "temperature" not in built.arguments and built.x > 50  # as the mean of a count
    if built.is_moderate and not overflows:
        assert all(slope.isfinite().all() for slope in slopes)


# Values of a user.

VALUES = [0.0, 1.0, 0.5, 0.3, -1.0, 2.0, 7.0, 1e-40, 1 - 1e-7, 1e30, -1e30, torch.inf, torch.nan]


@st.composite
def values(draw):
    """What makes the argument of `log_prob` for a distribution."""
    kind = draw(st.sampled_from(["copy", "numbers", "numbers", "shape", "other"]))
    if kind == "copy":
        return kind, draw(st.sampled_from([(), (2,)]))
    if kind == "other":
        return kind, draw(st.sampled_from(OTHERS))
    some = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=6))
    shape = draw(st.sampled_from([*SHAPES, (4,), (5, 1, 1)])) if kind == "shape" else None
    return kind, Numbers("value", tuple(some), shape or (), made=draw(st.sampled_from(MADE)))


MADE = ["constant", "leaf"]
OTHERS = [None, 1, 0.5, "1", True, [0.0, 1.0]]


def value_of(built, made):
    kind, what = made
    d = built.d
    if kind == "other":
        return what
    if kind == "copy":
        return plain(d.sample(what)).clone()
    shape = d.batch_shape + d.event_shape if kind == "numbers" else what.shape
    return replace(what, shape=tuple(shape)).given(built.case.dtype)[0]


def check_values(built, made):
    value = value_of(built, made)
    tensors = [value] if isinstance(value, Tensor) else []
    for name in ("log_prob", "cdf", "icdf"):
        with unchanged(*tensors):
            check_value(built, name, value)


def check_value(built, name, value):
    """A finite value is an error, or has a number and slopes."""
    if built.case.make is IndexStraightThrough and not built.d._validate_args:
        return None  # an index that nobody checks may be out of bounds
    try:
        found = getattr(built.d, name)(value)
    except ERRORS as error:
        return assert_named(error, ["value"])
    if value.isfinite().all():
        # Off the support nobody looks whether the product with the temperature overflows.
        far = built.tau * largest(value) > 1e30 and not built.d.support.check(value).all()
        assert far or not found.isnan().any()
        if name == "log_prob":
            check_log_prob_of_value(built, value, found)
    return None


def check_log_prob_of_value(built, value, found):
    """That in float64, for a value in the support that has not saturated."""
    inside = not built.is_relaxed or ((value > 0) & (value < 1)).all()
    if inside and built.d.support.check(value).all():
        exact = built.wide.log_prob(value.detach().double())
        assert_close(found, exact, built.scale(value))
    if built.is_moderate and largest(value) < 1e3:
        slopes = gradients(found, [t for t in (value, *built.leaves) if t.requires_grad])
        assert not any(slope.isnan().any() for slope in slopes)


# Divergences.


def check_divergences(built, other):
    d, wide = built.d, built.wide
    arguments = {
        name: replace(value, values=value.values[::-1]) if isinstance(value, Numbers) else value
        for name, value in built.case.arguments.items()
    }
    of_p = Built(replace(built.case, arguments=arguments))
    try:
        found = kl_divergence(d, of_p.d)
    except ERRORS as error:
        return assert_named(error, ["kl_divergence", "KL"])
    exact = kl_divergence(wide, of_p.wide)
    scale = 36 * (110 + built.x)
    assert_close(found, exact, scale)
    return None


# Enumeration.


def check_enumeration(built, expand):
    d = built.d
    if not d.has_enumerate_support:
        return None
    try:
        found = d.enumerate_support(expand=expand)
    except NotImplementedError as error:
        return assert_named(error)
    batch = d.batch_shape if expand else (1,) * len(d.batch_shape)
    assert found.shape == (found.shape[0], *batch, *d.event_shape)
    total = d.log_prob(found).double().exp().sum(0)
    assert ((total - 1).abs() < 1e-4 * built.x).all()
    return None


# The ordinary life of a distribution: copies, larger batches, handlers.


def check_copies(built, how):
    """The log_prob of a value is the same by a copy."""
    d = built.d
    value = plain(d.sample()).clone()
    other = COPIES[how](d)
    log_prob, expected = other.log_prob(value), d.log_prob(value)
    assert log_prob.shape == other.batch_shape
    if how == "to_event":
        expected = expected.sum(-1) if d.batch_shape else expected
    if how == "mask":
        expected = torch.zeros_like(expected)
    assert_close(log_prob, expected.double().expand(log_prob.shape), built.scale(value))


COPIES = {
    "expand": lambda d: d.expand((2, *d.batch_shape)),
    "to_event": lambda d: d.to_event(min(1, len(d.batch_shape))),
    "mask": lambda d: d.mask(False),
    "copy": copy.copy,
    "pickle": lambda d: pickle.loads(pickle.dumps(d)),
}


def check_handlers(built, observed):
    """A site in plates, masked and scaled, has the scaled log_prob where the mask is."""
    d, mask = built.d, torch.ones(built.d.batch_shape, dtype=torch.bool)
    if not mask.numel() or built.x > 1e30:
        return  # Pyro has no empty plates, and warns of a density that overflows
    mask.view(-1)[0] = False

    def model():
        with (
            pyro.plate_stack("plates", d.batch_shape),
            poutine.scale(scale=0.5),
            poutine.mask(mask=mask),
        ):
            return pyro.sample("z", d)

    data = {"z": plain(d.sample()).clone()} if observed else {}
    trace = poutine.trace(poutine.condition(model, data)).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    expected = torch.where(mask, 0.5 * d.log_prob(site["value"]), 0.0)
    assert_close(site["log_prob"], expected.double(), built.scale(plain(site["value"])))


def check_shapes(built, _):
    """The shapes are known from those of the arguments."""
    given = {name: built.arguments.get(name) for name in ("temperature", "probs", "logits")}
    shapes = {name: getattr(x, "shape", ()) for name, x in given.items() if x is not None}
    if "size" in built.arguments:
        shapes["size"] = built.arguments.get("rows", built.arguments["size"])
    assert built.d.infer_shapes(**shapes) == (built.d.batch_shape, built.d.event_shape)


# Arguments that may be wrong.

HOSTILE = {
    "None": lambda given: None,
    "bool": lambda given: True,
    "text": lambda given: "1",
    "list": lambda given: [0.5, 0.5],
    "zero": lambda given: 0.0,
    "negative": lambda given: -1.0,
    "infinite": lambda given: math.inf,
    "not a number": lambda given: math.nan,
    "long": lambda given: 10**400,
    "number": lambda given: 0.5,
    "int": lambda given: 3,
    "empty": lambda given: torch.zeros(0),
    "no dimensions": lambda given: torch.tensor(0.5),
    "integers": lambda given: torch.ones(2, 3, dtype=torch.long),
    "bools": lambda given: torch.ones(3, dtype=torch.bool),
    "complex": lambda given: torch.ones(3, dtype=torch.cfloat),
    "another shape": lambda given: torch.ones(5, 1, 4),
    "NaN in it": lambda given: tampered(given, math.nan),
    "inf in it": lambda given: tampered(given, math.inf),
    "all -inf": lambda given: torch.full((2, 3), -math.inf),
    "all 0": lambda given: torch.zeros(2, 3),
    "more dimensions": lambda given: torch.as_tensor(given).unsqueeze(0)[..., None],
}


def tampered(given, number):
    """Numbers with another first one."""
    changed = torch.as_tensor(given, dtype=torch.get_default_dtype()).contiguous().clone()
    if changed.numel():
        changed.view(-1)[0] = number
    return changed


def check_arguments(case, name, how):
    """A wrong argument is an error, or gives draws that have a log_prob."""
    arguments, _ = case.given()
    name = list(arguments)[name % len(arguments)]
    given = arguments[name]
    if how in ("NaN in it", "inf in it", "more dimensions") and not isinstance(given, Tensor):
        return None
    arguments[name] = HOSTILE[how](given)
    try:
        d = case.make(**arguments)
        value = d.sample()
        found = d.log_prob(value)
    except ERRORS as error:
        return assert_named(error, [*arguments, "value"])
    if arguments["validate_args"] is not False:
        assert not found.isnan().any()
    return None


# From the name of a check to its function, and to what it takes besides the case.
CHECKS = {
    "properties": (
        check_properties,
        st.lists(st.sampled_from(list(PROPERTIES)), min_size=1, max_size=2),
    ),
    "draws": (check_draws, st.sampled_from([(), (2,), (0,), (2, 1)])),
    "values": (check_values, values()),
    "divergences": (check_divergences, st.none()),
    "enumeration": (check_enumeration, st.booleans()),
    "copies": (check_copies, st.sampled_from(list(COPIES))),
    "handlers": (check_handlers, st.booleans()),
    "shapes": (check_shapes, st.none()),
    "arguments": (
        check_arguments,
        st.tuples(st.integers(0, 5), st.sampled_from(list(HOSTILE))),
    ),
}
# The constructors of counts are Pyro's.
PAIRS = [(kind, check) for kind in KINDS for check in CHECKS]
PAIRS.remove(("counts", "arguments"))
PAIRS.remove(("counts", "shapes"))


def holds(check, case, more):
    function, _ = CHECKS[check]
    with bounded():
        if function is check_arguments:
            return check_arguments(case, *more)
        built = Built(case)
        with unchanged(*built.tensors):
            return function(built, more)


def run(kind, check, **options):
    @given(case=KINDS[kind], more=CHECKS[check][1])
    def every_case(case, more):
        holds(check, case, more)

    (settings(**options)(every_case) if options else every_case)()


@pytest.mark.cpu(reason="the cases are of float64 and of layouts in memory, as those of a CPU")
@pytest.mark.parametrize(("kind", "check"), PAIRS)
def test_some_cases(kind, check):
    run(kind, check)


@pytest.mark.slow
@pytest.mark.cpu(reason="as above")
@pytest.mark.parametrize(("kind", "check"), PAIRS)
def test_many_cases(kind, check):
    run(kind, check, max_examples=MANY)
