# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""One call from discrete to relaxed, for a law and for a model; and back for a value."""

import inspect
import warnings
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer import (
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    config_enumerate,
    infer_discrete,
)

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    PlackettLuce,
    PlackettLuceStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPlackettLuce,
    RelaxedSubset,
    Subset,
    SubsetStraightThrough,
    gapped,
    harden,
    links,
    reinmax,
    relax,
    relaxed,
)
from tests.common import ALL, HARD, VALUES, make

T = 0.5
LOGITS = torch.tensor([[0.3, -0.2, 0.1, 1.0], [1.5, 0.0, -0.7, 0.2]])

# Of each row: the discrete law, the hard and the soft one.
ROWS = {
    "bit": (dist.Bernoulli, BernoulliStraightThrough, RelaxedBernoulli),
    "one of k": (dist.OneHotCategorical, CategoricalStraightThrough, RelaxedCategorical),
    "set": (
        lambda **given: Subset(2, **given),
        lambda t, **given: SubsetStraightThrough(t, 2, **given),
        lambda t, **given: RelaxedSubset(t, 2, **given),
    ),
    "order": (
        lambda **given: PlackettLuce(2, **given),
        lambda t, **given: PlackettLuceStraightThrough(t, 2, **given),
        lambda t, **given: RelaxedPlackettLuce(t, 2, **given),
    ),
}


def mate(row, hard, **given):
    return ROWS[row][1 if hard else 2](T, **given)


def assert_same_law(law, expected):
    """Wrapped alike around equal classes, batch shapes and parameters, under equal names."""
    assert type(law) is type(expected)
    assert (law.batch_shape, law.event_shape) == (expected.batch_shape, expected.event_shape)
    if hasattr(law, "base_dist"):
        return assert_same_law(law.base_dist, expected.base_dist)
    assert law._parameter_name == expected._parameter_name
    torch.testing.assert_close(law._parameter, expected._parameter)
    assert torch.equal(law.temperature, expected.temperature)
    assert getattr(law, "estimator", None) is getattr(expected, "estimator", None)


# Laws.


@pytest.mark.parametrize("parameter", ["probs", "logits"])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("row", ROWS)
def test_a_law_becomes_its_row_mate(row, hard, parameter):
    value = LOGITS.log_softmax(-1)
    given = {parameter: value if parameter == "logits" else value.exp()}
    discrete, expected = ROWS[row][0](**given), mate(row, hard, **given)
    assert_same_law(relax(discrete, T, hard=hard), expected)
    larger = (3, *discrete.batch_shape)
    assert_same_law(
        relax(discrete.expand(larger), T, hard=hard),
        mate(row, hard, **{parameter: given[parameter].expand(3, *LOGITS.shape)}),
    )


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("row", ROWS)
def test_the_form_around_a_law_is_kept(row, hard):
    discrete, expected = ROWS[row][0](logits=LOGITS), mate(row, hard, logits=LOGITS)
    if row == "one of k":
        expected = mate(row, hard, logits=LOGITS.log_softmax(-1))
    mask = torch.tensor([True, False]).reshape(2, *[1] * (len(discrete.batch_shape) - 1))
    for form in (
        lambda law: law.to_event(1),
        lambda law: law.mask(mask),
        lambda law: law.mask(mask).to_event(1),
        lambda law: law.to_event(1).mask(False),
    ):
        assert_same_law(relax(form(discrete), T, hard=hard), form(expected))
    wrapped = ExpandedDistribution(discrete, (3, *discrete.batch_shape))
    assert_same_law(relax(wrapped, T, hard=hard), expected.expand((3, *discrete.batch_shape)))


@pytest.mark.parametrize("cls", ALL)
def test_a_relaxed_law_is_returned_as_it_is(cls):
    law = make(cls, batch_shape=(2, 3))
    for form in (law, law.to_event(1), law.mask(True)):
        assert relax(form, 0.1, hard=cls not in HARD) is form


def test_what_was_given_is_kept_when_torch_has_derived_the_other():
    """torch clamps the logits that it derives: chances of 0 and 1 would become 6e-8."""
    probs = torch.tensor([0.0, 0.3, 1.0])
    for law in (dist.Bernoulli(probs), dist.OneHotCategorical(probs)):
        law.entropy()  # derives the logits
        for form in (law, law.expand((2, *law.batch_shape))):
            assert torch.equal(relax(form, T).probs, form.probs)
            assert relax(form, T).probs.eq(0).any()
    logits = torch.tensor([-40.0, 0.3, 40.0])
    law = dist.Bernoulli(logits=logits)
    _ = law.probs
    for form in (law, law.expand((2, 3))):
        assert torch.equal(relax(form, T).logits, logits.expand(form.batch_shape))


def test_validation_stays_as_the_law_has_it():
    for checks in (True, False):
        law = dist.Bernoulli(0.5, validate_args=checks)
        assert relax(law, T)._validate_args is checks
        assert relax(law.expand((3,)), T)._validate_args is checks


def test_a_temperature_has_the_batch_shape_of_the_law():
    law = dist.Bernoulli(logits=torch.zeros(2, 3)).to_event(1)
    temperature = torch.tensor([0.5, 1.0])
    for given in (temperature, lambda: temperature):
        base = relax(law, given).base_dist
        assert torch.equal(base.temperature.expand(2, 3), temperature[:, None].expand(2, 3))
    with pytest.raises(ValueError, match=r"to the batch shape \(2,\), got shape \(3,\)"):
        relax(law, torch.ones(3))
    gradient = torch.tensor(0.7, requires_grad=True)
    relax(law, gradient).rsample().sum().backward()
    assert gradient.grad != 0


def test_a_user_teaches_a_law():
    class Coin(dist.TorchDistribution):
        support = dist.constraints.boolean
        arg_constraints: ClassVar = {}

        def __init__(self, chance):
            self.chance = chance
            super().__init__(chance.shape)

    @relax.register(Coin)
    def _(distribution, temperature, **column):
        return relax(dist.Bernoulli(distribution.chance), temperature, **column)

    law = Coin(torch.tensor([0.2, 0.8]))
    assert_same_law(relax(law.to_event(1), T), mate("bit", True, probs=law.chance).to_event(1))
    with poutine.trace() as trace, relaxed(temperature=T, hard=False):
        pyro.sample("z", law)
    assert_same_law(trace.trace.nodes["z"]["fn"], mate("bit", False, probs=law.chance))


def test_laws_that_cannot_be_relaxed_say_what_to_write():
    with pytest.raises(TypeError, match=r"OneHotCategorical\(probs=probs\).*z @ table"):
        relax(dist.Categorical(torch.ones(3)), T)
    with pytest.raises(TypeError, match=r"got Poisson.*@relax.register\(Poisson\)"):
        relax(dist.Poisson(1.0), T)
    with pytest.raises(TypeError, match="got int"):
        relax(3, T)
    for law in (dist.Bernoulli(0.5), relax(dist.Bernoulli(0.5), T), Subset(1, torch.ones(3))):
        with pytest.raises(ValueError, match="`estimator` must be one of"):
            relax(law, T, estimator="unknown")
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        relax(dist.Bernoulli(0.5), -1.0)


@pytest.mark.parametrize("estimator", ["reinmax", "gapped", reinmax, gapped(gap=2.0)])
def test_an_estimator_that_knows_no_subsets(estimator):
    """It is refused where the distribution is made: with the name of its site in a model."""
    subset = Subset(2, logits=torch.zeros(4))
    words = r"`estimator` must support subsets: one of.*got (reinmax|gapped).*gumbel_softmax"
    for form in (subset, subset.expand((3,)), subset.expand((3,)).to_event(1), subset.mask(True)):
        with pytest.raises(ValueError, match=words):
            relax(form, T, estimator=estimator)

    def model():
        pyro.sample("bit", dist.Bernoulli(0.5))
        pyro.sample("chosen", subset)

    with pytest.raises(ValueError, match=rf'pyro.sample\("chosen", ...\): .*{words}'):
        relaxed(model, T, estimator=estimator)()
    with pytest.raises(ValueError, match=rf'pyro.sample\("chosen", ...\): .*{words}'):
        AutoRelaxed(model, T, estimator=estimator)()
    relaxed(model, T, estimator=estimator, sites=["bit"])()


def test_numbers_that_no_float_can_hold():
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        relax(dist.Bernoulli(0.5), 10**400)
    with pytest.raises(ValueError, match=r'pyro.sample\("z", ...\): .*`temperature` must be posi'):
        relaxed(lambda: pyro.sample("z", dist.Bernoulli(0.5)), 10**400)()


def test_temperatures_that_are_no_tensors_yet():
    """Integers and arrays; and a batch of them, for a distribution that is taken apart."""
    law = dist.Bernoulli(logits=torch.zeros(2, 3)).to_event(1)
    for given in (torch.tensor([1, 2]), lambda: torch.tensor([1, 2])):
        found = relax(law, given).base_dist.temperature
        assert found.expand(2, 3).tolist() == [[1.0] * 3, [2.0] * 3]
    for given in (np.array(2), np.array(2.0), torch.tensor(2), np.int64(2)):
        assert relax(law, given).base_dist.temperature == 2


# Models.

DATA = torch.tensor([0.7, -0.4, 1.9, 3.0])
PROBS = torch.tensor([0.2, 0.3, 0.5])


def mixture(data=DATA, one_of_k=dist.OneHotCategorical, bit=dist.Bernoulli, infer=None):
    """Latent sites of two rows and a normal one, in two plates, with data."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    shift = pyro.sample("shift", bit(probs=torch.tensor([0.3, 0.6])).to_event(1))
    with pyro.plate("groups", 2, dim=-2), pyro.plate("data", 4):
        z = pyro.sample("z", one_of_k(probs=PROBS), infer=infer)
        pyro.sample("x", dist.Normal(z @ mean + shift.sum(), 1.0), obs=data)


def by_hand(hard):
    """The same model with relaxed laws written by hand."""

    def model(data=DATA):
        kinds = {"one_of_k": "one of k", "bit": "bit"}
        return mixture(
            data, **{name: lambda probs, row=row: mate(row, hard, probs=probs)
                     for name, row in kinds.items()}
        )  # fmt: skip

    return model


HANDLERS = {
    "none": lambda model: model,
    "scale": lambda model: poutine.scale(model, scale=2.5),
    "mask": lambda model: poutine.mask(model, mask=torch.tensor([[True], [False]])),
    "block": lambda model: poutine.block(model, hide=["shift"]),
    "replay": lambda model: poutine.replay(model, trace=poutine.trace(model).get_trace()),
    "condition": lambda model: poutine.condition(model, data={"mean": torch.ones(3)}),
    "lift": lambda model: poutine.lift(model, prior=dist.Normal(0.0, 1.0)),
    "markov": lambda model: poutine.markov(model),
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("hard", [True, False])
def test_a_relaxed_model_is_the_one_written_by_hand(hard, handler):
    traces = []
    for model in (relaxed(mixture, T, hard=hard), by_hand(hard)):
        pyro.set_rng_seed(1)
        trace = poutine.trace(HANDLERS[handler](model)).get_trace()
        trace.compute_log_prob()
        traces.append(trace.nodes)
    assert list(traces[0]) == list(traces[1])
    for name, site in traces[1].items():
        if site["type"] == "sample" and name not in ("groups", "data"):
            twin = traces[0][name]
            assert type(twin["fn"]) is type(site["fn"])
            assert torch.equal(twin["value"], site["value"])
            assert torch.equal(twin["log_prob_sum"], site["log_prob_sum"])
            assert twin["cond_indep_stack"] == site["cond_indep_stack"]


def subsampled(x):
    with pyro.plate("data", 6, subsample_size=3) as index:
        z = pyro.sample("z", dist.OneHotCategorical(PROBS))
        pyro.sample("x", dist.Normal(z @ torch.arange(3.0), 1.0), obs=x[index])


def test_in_a_subsampled_plate():
    trace = poutine.trace(relaxed(subsampled, T)).get_trace(torch.zeros(6))
    site = trace.nodes["z"]
    assert_same_law(site["fn"], mate("one of k", True, probs=PROBS).expand((3,)))
    assert site["scale"] == 2


def test_a_decorator_a_context_manager_and_a_wrapper_are_one():
    @relaxed(temperature=T)
    def decorated():
        """One bit."""
        return pyro.sample("z", dist.Bernoulli(0.5))

    class Owner:
        @relaxed(temperature=T)
        def method(self):
            return pyro.sample("z", dist.Bernoulli(0.5))

    def plain():
        return pyro.sample("z", dist.Bernoulli(0.5))

    def in_context():
        with relaxed(temperature=T):
            return plain()

    for model in (decorated, Owner().method, relaxed(plain, T), in_context):
        law = poutine.trace(model).get_trace().nodes["z"]["fn"]
        assert isinstance(law, BernoulliStraightThrough)
    assert isinstance(poutine.trace(plain).get_trace().nodes["z"]["fn"], dist.Bernoulli)
    for wrapped in (relaxed(mixture, T), relaxed(temperature=T)(mixture)):
        assert wrapped.__name__ == "mixture"
        assert wrapped.__doc__ == mixture.__doc__
        assert list(inspect.signature(wrapped).parameters) == ["data", "one_of_k", "bit", "infer"]


def laws(model, *args, **kwargs):
    nodes = poutine.trace(model).get_trace(*args, **kwargs).nodes
    return {name: type(node["fn"]) for name, node in nodes.items() if node["type"] == "sample"}


def test_observed_continuous_and_enumerated_sites_are_left_alone():
    def model(z=None):
        pyro.sample("z", dist.Bernoulli(0.5), obs=z)
        pyro.sample("c", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
        pyro.sample("e", dist.Bernoulli(0.5), infer={"enumerate": "sequential"})
        pyro.sample("n", dist.Normal(0.0, 1.0))
        pyro.sample("count", dist.Poisson(3.0), obs=torch.tensor(2.0))
        pyro.deterministic("d", torch.tensor(1.0))
        pyro.factor("f", torch.tensor(1.0))
        pyro.sample("w", dist.Bernoulli(0.5), infer={"enumerate": None})

    handled = relaxed(model, T)
    changed = {"w": BernoulliStraightThrough}
    assert laws(handled, torch.tensor(1.0)) == {**laws(model), **changed}
    # what is latent and what is observed is decided in each call
    assert laws(handled) == {**laws(model), **changed, "z": BernoulliStraightThrough}
    conditioned = relaxed(poutine.condition(model, data={"w": torch.tensor(1.0)}), T)
    assert laws(conditioned, torch.tensor(1.0)) == laws(model)
    configured = relaxed(config_enumerate(model), T)
    assert laws(configured, torch.tensor(1.0)) == {**laws(model), **changed}


def test_a_masked_observation_relaxes_what_is_missing():
    def model():
        with pyro.plate("data", 3):
            mask = torch.tensor([True, False, True])
            pyro.sample("b", dist.Bernoulli(0.5), obs=torch.ones(3), obs_mask=mask)

    seen = laws(relaxed(model, T))
    assert seen["b_observed"] is dist.Bernoulli
    assert seen["b_unobserved"] is BernoulliStraightThrough


def test_condition_goes_inside():
    """Outside, the handler swaps a law that it cannot know to be observed."""
    data = {"z": torch.tensor([0.0, 0.0, 1.0])}

    def model():
        pyro.sample("z", dist.OneHotCategorical(PROBS))

    inside = relaxed(poutine.condition(model, data), T, hard=False)
    outside = poutine.condition(relaxed(model, T, hard=False), data)
    with pytest.warns(UserWarning, match="condition inside"):
        score = [poutine.trace(way).get_trace().log_prob_sum() for way in (inside, outside)]
    torch.testing.assert_close(score[0], PROBS[2].log())
    assert (score[1] - score[0]).abs() > 1
    hard = poutine.condition(relaxed(model, T), data)
    torch.testing.assert_close(poutine.trace(hard).get_trace().log_prob_sum(), PROBS[2].log())


def test_sites_are_chosen_by_name():
    def model():
        pyro.sample("a", dist.Bernoulli(0.5))
        pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("c", dist.Categorical(PROBS))

    assert laws(relaxed(model, T, sites=["a"])) == {**laws(model), "a": BernoulliStraightThrough}
    with pytest.raises(ValueError, match=r"got \['z'\].*it has \['a', 'b', 'c'\]"):
        relaxed(model, T, sites={"a", "z"})()
    with pytest.raises(ValueError, match=r"got \['z'\]"), relaxed(temperature=T, sites=["z"]):
        model()
    with pytest.raises(TypeError, match=r'`sites` must be a collection.*write sites=\["z"\]'):
        relaxed(model, T, sites="a")
    for wrong in (3, None.__class__, object(), [3], [None], (b"a",)):
        with pytest.raises(TypeError, match=r'`sites` must be a collection.*write sites=\["z"\]'):
            relaxed(model, T, sites=wrong)
    for names in ((name for name in "a"), {"a": 1}, ("a",), frozenset("a")):
        assert laws(relaxed(model, T, sites=names))["a"] is BernoulliStraightThrough
    # a branch that was taken once need not be taken again
    branching = relaxed(lambda go: pyro.sample("z", dist.Bernoulli(0.5)) if go else None, T,
                        sites=["z"])  # fmt: skip
    branching(True)
    branching(False)


PARTLY = {
    "bit": dist.Bernoulli(torch.tensor(0.3)),
    "one of k": dist.OneHotCategorical(PROBS),
    "set": Subset(2, PROBS),
    "order": PlackettLuce(2, PROBS),
}


def partly_observed(row, subsample_size=None):
    """Two of three values are data."""
    law, mask = PARTLY[row], torch.tensor([True, False, True])
    data = law.sample((3,))

    def model():
        with pyro.plate("data", 3, subsample_size=subsample_size) as index:
            pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("y", law, obs=data[index], obs_mask=mask[index])

    return model


@pytest.mark.parametrize("subsample_size", [None, 2])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("row", PARTLY)
def test_a_partly_observed_site_is_chosen_by_its_name(row, hard, subsample_size):
    """Pyro splits y into y_observed and y_unobserved."""
    model = partly_observed(row, subsample_size)
    mate = ROWS[row][1 if hard else 2](T, probs=PROBS)
    expected = {**laws(model), "y_unobserved": type(mate)}
    for name in ("y", "y_unobserved"):
        assert laws(relaxed(model, T, hard=hard, sites=[name])) == expected
    trace = poutine.trace(relaxed(model, T, hard=hard, sites=["y"])).get_trace()
    assert trace.nodes["y_observed"]["value"] is not None
    assert trace.nodes["y"]["value"].shape[:1] == (subsample_size or 3,)


def test_a_name_like_that_of_a_part_is_only_a_name():
    def model():
        pyro.sample("y", dist.Bernoulli(0.5))
        pyro.sample("y_unobserved", dist.Normal(0.0, 1.0))

    assert laws(relaxed(model, T, sites=["y"])) == {**laws(model), "y": BernoulliStraightThrough}


def test_a_chosen_site_that_is_continuous_is_an_error():
    def model():
        mask = torch.tensor([True, False])
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.ones(2), obs_mask=mask)

    with pytest.raises(TypeError, match=r'pyro.sample\("y_unobserved", ...\).*got Normal'):
        relaxed(model, T, sites=["y"])()


def warned(work):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(warning.message) for warning in caught if "relaxed: " in str(warning.message)]


def semi_supervised(z=None):
    pyro.sample("z", dist.Bernoulli(0.5), obs=z)
    pyro.sample("w", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


IDLE = {  # of the two sites that are chosen only the second is relaxed
    "observed": (lambda: semi_supervised(torch.tensor(1.0)), ["z", "w"]),
    "data": (semi_supervised, ["x", "w"]),
    "enumerated": (
        lambda: (config_enumerate(semi_supervised)(), pyro.sample("b", dist.Bernoulli(0.5))),
        ["z", "b"],
    ),
    "conditioned": (poutine.condition(semi_supervised, {"z": torch.tensor(1.0)}), ["z", "w"]),
    "an observed part": (partly_observed("bit"), ["y_observed", "y"]),
}


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("case", IDLE)
def test_a_chosen_site_that_is_not_relaxed_is_named(case, hard):
    model, sites = IDLE[case]
    handled = relaxed(model, T, hard=hard, sites=sites)
    (message,) = warned(lambda: poutine.trace(handled).get_trace())
    assert f"got ['{sites[0]}'], which are observed or enumerated" in message
    assert "write sites=None" in message
    assert not warned(lambda: poutine.trace(handled).get_trace())  # once


def test_the_warning_lists_the_latent_discrete_sites():
    handled = relaxed(semi_supervised, T, sites=["x"])
    (message,) = warned(lambda: poutine.trace(handled).get_trace())
    assert "the latent discrete sites are ['w', 'z']" in message
    with (
        pytest.warns(UserWarning, match=r"got \['x'\]"),
        poutine.trace(),
        relaxed(temperature=T, sites=["x"]),
    ):
        semi_supervised()


def test_a_site_that_was_relaxed_once_may_be_observed_later():
    handled = relaxed(semi_supervised, T, sites=["z"])
    for z in (None, torch.tensor(1.0), None, torch.tensor(0.0)):
        assert not warned(lambda z=z: poutine.trace(handled).get_trace(z))


def test_chosen_sites_of_nested_handlers():
    """Each has sites of its own; what the inner one has relaxed counts for the outer one."""

    def model():
        for name in "abc":
            pyro.sample(name, dist.Bernoulli(0.5))

    inner = relaxed(model, T, sites=["a"])
    outer = relaxed(inner, 0.1, hard=False, sites=["a", "b"])
    trace = poutine.trace(outer).get_trace().nodes
    kinds = {name: type(trace[name]["fn"]) for name in "abc"}
    assert kinds == {"a": BernoulliStraightThrough, "b": RelaxedBernoulli, "c": dist.Bernoulli}
    assert [trace[name]["fn"].temperature.item() for name in "ab"] == pytest.approx([T, 0.1])


def test_errors_name_the_site():
    def model(law):
        pyro.sample("z", law)

    with pytest.raises(
        TypeError, match=r'pyro.sample\("z", ...\).*OneHotCategorical\(probs=probs\) for Categ'
    ):
        relaxed(model, T)(dist.Categorical(PROBS))
    with pytest.raises(TypeError, match=r'pyro.sample\("z", ...\).*got Poisson.*sites=\[...\]'):
        relaxed(model, T)(dist.Poisson(1.0))
    with pytest.raises(TypeError, match=r'pyro.sample\("z", ...\).*got Normal'):
        relaxed(model, T, sites=["z"])(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r'pyro.sample\("z", ...\).*`temperature` must be one'):
        relaxed(model, torch.ones(7))(dist.Bernoulli(torch.ones(2) / 2))
    for call in (
        lambda: relaxed(model),
        lambda: relaxed(0.5),
        lambda: relaxed(model, hard=False),
        lambda: relaxed(),
    ):
        with pytest.raises(TypeError, match=r"relaxed\(model, 0.5\)"):
            call()
    with pytest.raises(ValueError, match="`estimator` must be one of"):
        relaxed(model, T, estimator="unknown")

    class OfTwo(ValueError):
        def __init__(self, one, two):
            super().__init__(f"{one} {two}")

    class Coin(dist.Bernoulli):
        pass

    @relax.register(Coin)
    def _(distribution, temperature, **column):
        raise OfTwo("heads", "tails")

    with pytest.raises(ValueError, match=r'pyro.sample\("z", ...\): heads tails'):
        relaxed(model, T)(Coin(0.5))
    # after an error no handler is left behind
    assert not poutine.runtime._PYRO_STACK


def test_the_temperature_is_read_at_every_call():
    temperatures = iter([0.5, 0.25])
    model = relaxed(lambda: pyro.sample("z", dist.Bernoulli(0.5)), lambda: next(temperatures))
    read = [poutine.trace(model).get_trace().nodes["z"]["fn"].temperature for _ in range(2)]
    assert torch.stack(read).tolist() == [0.5, 0.25]


# Inside Pyro.


def graph(hard):
    """A chain of two latents, and data."""

    @relaxed(temperature=T, hard=hard)
    def model(x=None):
        a = pyro.sample("a", dist.OneHotCategorical(PROBS))
        with pyro.plate("data", 4):
            b = pyro.sample("b", dist.Bernoulli(logits=a @ torch.tensor([-1.0, 0.0, 1.0])))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    return model


@pytest.mark.parametrize("hard", [True, False])
def test_predictive(hard):
    predictive = Predictive(graph(hard), num_samples=500, parallel=True)
    draws = predictive()
    assert draws["b"].shape == (500, 4)
    share = draws["a"].reshape(500, 3).argmax(-1).bincount(minlength=3) / 500
    assert (share - PROBS).abs().max() < 0.1
    assert draws["b"].eq(draws["b"].round()).all() == hard


@pytest.mark.parametrize("hard", [True, False])
def test_render_model(hard):
    source = pyro.render_model(graph(hard), model_args=(DATA,), render_distributions=True).source
    assert "a -> b" in source
    assert "b -> x" in source
    names = ("CategoricalStraightThrough", "RelaxedCategorical")
    assert names[0 if hard else 1] in source


def test_infer_discrete_draws_hard_bits_from_their_posterior():
    @infer_discrete(first_available_dim=-2)
    @config_enumerate
    @relaxed(temperature=T)
    def sampled(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z

    share = sampled(torch.full((20_000,), 1.5)).mean()
    odds = 0.3 / 0.7 * torch.tensor(1.5 - 0.5).exp()
    assert (share - odds / (1 + odds)).abs() < 0.02


def test_compute_marginals_cannot_build_a_hard_class():
    """The limit that the documents state, and what to do instead."""

    def model():
        pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    marginal = elbo.compute_marginals(relaxed(model, T), lambda: None)["z"]
    torch.testing.assert_close(marginal.probs, torch.tensor(0.3))
    with pytest.raises(TypeError, match="temperature"):
        elbo.compute_marginals(config_enumerate(relaxed(lambda: pyro.sample("z", dist.Bernoulli(
            0.3)), T)), lambda: None)  # fmt: skip


def test_a_guide_is_relaxed_like_a_model():
    """Of three categories the second is what the datum says."""

    def model():
        z = pyro.sample("z", dist.OneHotCategorical(PROBS))
        pyro.sample(
            "x", dist.Normal(z @ torch.tensor([-3.0, 0.0, 3.0]), 0.5), obs=torch.tensor(0.0)
        )

    def guide():
        pyro.sample("z", dist.OneHotCategorical(logits=pyro.param("logits", torch.zeros(3))))

    svi = SVI(relaxed(model, T), relaxed(guide, T), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(200):
        svi.step()
    assert pyro.param("logits").softmax(-1)[1] > 0.95


def test_prediction_is_for_the_plain_model():
    """There the data are latent, and discrete ones are nothing to relax."""

    def model(x=None):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Poisson(1 + 2 * z), obs=x)

    handled = relaxed(model, T)
    guide = AutoRelaxed(handled, T)
    SVI(handled, guide, pyro.optim.Adam({}), Trace_ELBO()).step(torch.tensor(4.0))
    draws = Predictive(model, guide=guide, num_samples=20)()
    assert draws["x"].shape[0] == 20
    with pytest.raises(TypeError, match=r"got Poisson.*leave its site out"):
        Predictive(handled, guide=guide, num_samples=2)()
    draws = Predictive(relaxed(model, T, sites=["z"]), guide=guide, num_samples=20)()
    assert draws["x"].shape[0] == 20


def predicted(law, x):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", law(0.2 + 0.5 * z), obs=x)


REFUSED = {
    "Poisson": lambda rate: dist.Poisson(rate),
    "Categorical": lambda rate: dist.Categorical(torch.stack([rate, 1 - rate], -1)),
}


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_a_prediction_that_is_refused_says_what_to_run(name, hard):
    handled = relaxed(lambda x=None: predicted(REFUSED[name], x), T, hard=hard)
    with pytest.raises(TypeError, match=r'"x".*sites=\[...\].*not relaxed: Predictive\(model, gu'):
        Predictive(handled, num_samples=2)()


def test_data_that_become_continuous_are_named():
    """In a relaxed model a bit that is not observed is continuous, the bits of the data too."""
    handled = relaxed(lambda x=None: predicted(dist.Bernoulli, x), T, hard=False)
    assert not warned(Predictive(handled, num_samples=2))  # nothing is known of data
    poutine.trace(handled).get_trace(torch.tensor(1.0))
    (message,) = warned(Predictive(handled, num_samples=2))
    assert 'at pyro.sample("x", ...)' in message
    assert "write Predictive(model, guide=guide) of the model that is not relaxed" in message
    assert not warned(Predictive(handled, num_samples=2))  # once
    for keywords in ({"hard": True}, {"hard": False, "sites": ["z"]}):
        handled = relaxed(lambda x=None: predicted(dist.Bernoulli, x), T, **keywords)
        poutine.trace(handled).get_trace(torch.tensor(1.0))
        predictive = Predictive(handled, num_samples=20)
        assert not warned(predictive)
        assert set(predictive()["x"].unique().tolist()) <= {0.0, 1.0}


# Values.


@pytest.mark.parametrize("cls", VALUES)
def test_hardening_finds_the_vertex_that_the_noise_chose(cls):
    law = make(cls, temperature=0.01, batch_shape=(2000,), k=4)
    value = law.rsample()  # of which many entries have saturated
    hard = harden(value)
    link = {RelaxedBernoulli: links.interval, RelaxedSubset: links.Hypersimplex(2)}
    v = law._to_unconstrained(value)
    if cls is RelaxedBernoulli:
        assert torch.equal(hard, (v >= 0).float())
    else:
        size = 2 if cls is RelaxedSubset else 1
        assert hard.eq(1).sum(-1).eq(size).all()
        assert hard.eq(0).sum(-1).eq(4 - size).all()
        least_chosen = torch.where(hard == 1, v, torch.inf).amin(-1)
        assert (torch.where(hard == 0, v, -torch.inf).amax(-1) <= least_chosen).all()
    warm = make(cls, temperature=0.7, batch_shape=(2000,), k=4).rsample()
    assert torch.equal(harden(warm), harden(warm.clone(), link.get(cls, links.simplex)))
    assert harden(hard) is hard


@pytest.mark.parametrize("cls", VALUES)
def test_hardening_passes_the_gradient_on(cls):
    value = make(cls, dtype=torch.float64).rsample()
    weights = torch.randn_like(value)
    (gradient,) = torch.autograd.grad((harden(value) * weights).sum(), value)
    assert torch.equal(gradient, weights)


@pytest.mark.parametrize("cls", HARD)
def test_a_hard_value_stays_as_it_is(cls):
    for value in (make(cls).rsample(), make(cls).sample()):
        assert harden(value) is value


def test_hardening_in_half_precision_and_of_ties():
    value = torch.tensor([0.25, 0.5, 0.25], dtype=torch.bfloat16)
    assert torch.equal(harden(value), torch.tensor([0.0, 1.0, 0.0], dtype=torch.bfloat16))
    assert harden(torch.tensor([0.5, 0.5])).tolist() == [1.0, 0.0]
    assert harden(torch.tensor([0.5, 0.4]), links.interval).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("link", [links.simplex, links.interval, links.Hypersimplex(1), None])
def test_hardening_refuses_what_is_not_finite(link, number):
    value = torch.tensor([[0.5, 0.5], [number, 0.0]])
    with pytest.raises(ValueError, match=r"harden: `value` must .*got e.g. (-?inf|nan).*; write"):
        harden(value, link)
    unread = torch.vmap(lambda row: harden(row, links.simplex))(value)
    assert unread[0].tolist() == [1, 0]


def test_hardening_asks_what_it_cannot_know():
    remedy = r"harden\(value, links.interval\).*links.Hypersimplex\(size\)"
    for value in (torch.tensor([0.9, 0.8]), torch.tensor(0.4), torch.tensor([0.9, 0.8, 0.3])):
        with pytest.raises(ValueError, match=remedy):
            harden(value)
    with pytest.raises(TypeError, match=r"must be a tensor of floats, got .*int64"):
        harden(torch.tensor([1, 0]))
    with pytest.raises(TypeError, match="`link` must be a Link, got int"):
        harden(torch.tensor([0.9, 0.1]), 2)
    with pytest.raises(
        ValueError, match=r"3 or more categories.*Hypersimplex\(3\), got shape \(2,"
    ):
        harden(torch.tensor([0.9, 0.1]), links.Hypersimplex(3))
    with pytest.raises(ValueError, match=r"1 or more categories.*got shape \(\)"):
        harden(torch.tensor(0.9), links.simplex)


def test_hardening_under_vmap_and_compile():
    value = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.equal(torch.vmap(harden)(value), expected)
    assert torch.equal(torch.compile(harden, backend="eager", fullgraph=True)(value), expected)


def bits():
    return harden(BernoulliStraightThrough(T, probs=torch.tensor([1.0, 1.0, 0.0])).rsample())


def test_hardening_a_hard_value_in_a_compiled_function():
    """Where it cannot be read that it is hard already."""
    compiled = torch.compile(bits, backend="eager", fullgraph=True)
    assert compiled().tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("cls", [RelaxedBernoulli, RelaxedCategorical])
def test_hardening_knows_what_a_half_type_has_rounded_away(cls):
    """Of two nearly equal categories, or a bit near a half, the one that the noise chose."""
    law = make(cls, temperature=50.0, batch_shape=(2000,), k=2, dtype=torch.bfloat16)
    value = law.rsample()
    chosen = cls.link.hard(law._to_unconstrained(value)).to(value.dtype)
    assert torch.equal(harden(value), chosen)
    assert not torch.equal(harden(value.clone(), cls.link), chosen)
