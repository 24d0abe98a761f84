# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The handler `relaxed`: which sites it changes, and what it says of the others."""

import inspect
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, config_enumerate

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    ConstantTemperature,
    PlackettLuce,
    RelaxedBernoulli,
    Subset,
    relax,
    relaxed,
)
from tests.families import FAMILIES, PROBS, T, assert_same_distribution, counterpart

# A relaxed model is the model written by hand.


DATA = torch.tensor([0.7, -0.4, 1.9, 3.0])


def mixture(data=DATA, categorical=dist.OneHotCategorical, bernoulli=dist.Bernoulli, infer=None):
    """Latent sites of two families and a normal one, in two plates, with data."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    shift = pyro.sample("shift", bernoulli(probs=torch.tensor([0.3, 0.6])).to_event(1))
    with pyro.plate("groups", 2, dim=-2), pyro.plate("data", 4):
        z = pyro.sample("z", categorical(probs=PROBS), infer=infer)
        pyro.sample("x", dist.Normal(z @ mean + shift.sum(), 1.0), obs=data)


def by_hand(hard):
    """The same model with relaxed distributions written by hand."""

    def model(data=DATA):
        kinds = {"categorical": "categorical", "bernoulli": "bernoulli"}
        return mixture(
            data, **{name: lambda probs, family=family: counterpart(family, hard, probs=probs)
                     for name, family in kinds.items()}
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
            expected = traces[0][name]
            assert type(expected["fn"]) is type(site["fn"])
            # On a GPU a parameter that is expanded has another kernel, which rounds otherwise.
            torch.testing.assert_close(expected["value"], site["value"])
            torch.testing.assert_close(expected["log_prob_sum"], site["log_prob_sum"])
            assert expected["cond_indep_stack"] == site["cond_indep_stack"]


def subsampled(x):
    with pyro.plate("data", 6, subsample_size=3) as index:
        z = pyro.sample("z", dist.OneHotCategorical(PROBS))
        pyro.sample("x", dist.Normal(z @ torch.arange(3.0), 1.0), obs=x[index])


def test_in_a_subsampled_plate():
    trace = poutine.trace(relaxed(subsampled, T)).get_trace(torch.zeros(6))
    site = trace.nodes["z"]
    assert_same_distribution(site["fn"], counterpart("categorical", True, probs=PROBS).expand((3,)))
    assert site["scale"] == 2


def test_a_decorator_a_context_manager_and_a_wrapper_are_one():
    @relaxed(temperature=T)
    def decorated():
        """One binary site."""
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
        distribution = poutine.trace(model).get_trace().nodes["z"]["fn"]
        assert isinstance(distribution, BernoulliStraightThrough)
    assert isinstance(poutine.trace(plain).get_trace().nodes["z"]["fn"], dist.Bernoulli)
    for wrapped in (relaxed(mixture, T), relaxed(temperature=T)(mixture)):
        assert wrapped.__name__ == "mixture"
        assert wrapped.__doc__ == mixture.__doc__
        assert list(inspect.signature(wrapped).parameters) == [
            "data",
            "categorical",
            "bernoulli",
            "infer",
        ]


def test_the_temperature_is_read_at_every_call():
    temperatures = iter([0.5, 0.25])
    model = relaxed(lambda: pyro.sample("z", dist.Bernoulli(0.5)), lambda: next(temperatures))
    read = [poutine.trace(model).get_trace().nodes["z"]["fn"].temperature for _ in range(2)]
    assert torch.stack(read).tolist() == [0.5, 0.25]


# Which sites are relaxed.


def kinds(model, *args, **kwargs):
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
    assert kinds(handled, torch.tensor(1.0)) == {**kinds(model), **changed}
    # what is latent and what is observed is decided in each call
    assert kinds(handled) == {**kinds(model), **changed, "z": BernoulliStraightThrough}
    conditioned = relaxed(poutine.condition(model, data={"w": torch.tensor(1.0)}), T)
    assert kinds(conditioned, torch.tensor(1.0)) == kinds(model)
    configured = relaxed(config_enumerate(model), T)
    assert kinds(configured, torch.tensor(1.0)) == {**kinds(model), **changed}


def test_a_masked_observation_relaxes_what_is_missing():
    def model():
        with pyro.plate("data", 3):
            mask = torch.tensor([True, False, True])
            pyro.sample("b", dist.Bernoulli(0.5), obs=torch.ones(3), obs_mask=mask)

    seen = kinds(relaxed(model, T))
    assert seen["b_observed"] is dist.Bernoulli
    assert seen["b_unobserved"] is BernoulliStraightThrough


def test_condition_goes_inside():
    """Outside, `relaxed` cannot know that the site is observed, and replaces its distribution."""
    data = {"z": torch.tensor([0.0, 0.0, 1.0])}

    def model():
        pyro.sample("z", dist.OneHotCategorical(PROBS))

    inside = relaxed(poutine.condition(model, data), T, hard=False)
    outside = poutine.condition(relaxed(model, T, hard=False), data)
    with pytest.warns(UserWarning, match="condition inside"):
        log_probs = [poutine.trace(way).get_trace().log_prob_sum() for way in (inside, outside)]
    torch.testing.assert_close(log_probs[0], PROBS[2].log())
    assert (log_probs[1] - log_probs[0]).abs() > 1
    discrete = poutine.condition(relaxed(model, T), data)
    torch.testing.assert_close(poutine.trace(discrete).get_trace().log_prob_sum(), PROBS[2].log())


def test_sites_are_chosen_by_name():
    def model():
        pyro.sample("a", dist.Bernoulli(0.5))
        pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("c", dist.Categorical(PROBS))

    assert kinds(relaxed(model, T, sites=["a"])) == {**kinds(model), "a": BernoulliStraightThrough}
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
        assert kinds(relaxed(model, T, sites=names))["a"] is BernoulliStraightThrough
    # a branch that was taken once need not be taken again
    branching = relaxed(lambda go: pyro.sample("z", dist.Bernoulli(0.5)) if go else None, T,
                        sites=["z"])  # fmt: skip
    branching(True)
    branching(False)


PARTLY = {
    "bernoulli": dist.Bernoulli(torch.tensor(0.3)),
    "categorical": dist.OneHotCategorical(PROBS),
    "subset": Subset(2, PROBS),
    "ranking": PlackettLuce(2, PROBS),
}


def partly_observed(family, subsample_size=None):
    """Two of three values are data."""
    distribution, mask = PARTLY[family], torch.tensor([True, False, True])
    data = distribution.sample((3,))

    def model():
        with pyro.plate("data", 3, subsample_size=subsample_size) as index:
            pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("y", distribution, obs=data[index], obs_mask=mask[index])

    return model


@pytest.mark.parametrize("subsample_size", [None, 2])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("family", PARTLY)
def test_a_partly_observed_site_is_chosen_by_its_name(family, hard, subsample_size):
    """Pyro splits y into y_observed and y_unobserved."""
    model = partly_observed(family, subsample_size)
    counterpart = FAMILIES[family][1 if hard else 2](T, probs=PROBS)
    expected = {**kinds(model), "y_unobserved": type(counterpart)}
    for name in ("y", "y_unobserved"):
        assert kinds(relaxed(model, T, hard=hard, sites=[name])) == expected
    trace = poutine.trace(relaxed(model, T, hard=hard, sites=["y"])).get_trace()
    assert trace.nodes["y_observed"]["value"] is not None
    assert trace.nodes["y"]["value"].shape[:1] == (subsample_size or 3,)


def test_a_name_like_that_of_a_part_is_only_a_name():
    def model():
        pyro.sample("y", dist.Bernoulli(0.5))
        pyro.sample("y_unobserved", dist.Normal(0.0, 1.0))

    assert kinds(relaxed(model, T, sites=["y"])) == {**kinds(model), "y": BernoulliStraightThrough}


def test_chosen_sites_of_nested_handlers():
    """The outer handler leaves what the inner one has relaxed, and counts it as relaxed."""

    def model():
        for name in "abc":
            pyro.sample(name, dist.Bernoulli(0.5))

    inner = relaxed(model, T, sites=["a"])
    outer = relaxed(inner, 0.1, hard=False, sites=["a", "b"])
    trace = poutine.trace(outer).get_trace().nodes
    kinds = {name: type(trace[name]["fn"]) for name in "abc"}
    assert kinds == {"a": BernoulliStraightThrough, "b": RelaxedBernoulli, "c": dist.Bernoulli}
    assert [trace[name]["fn"].temperature.item() for name in "ab"] == pytest.approx([T, 0.1])


# Warnings and errors.


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
    "conditioned": (poutine.condition(semi_supervised, {"z": torch.tensor(1.0)}), ["z", "w"]),
    "an observed part": (partly_observed("bernoulli"), ["y_observed", "y"]),
}


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("case", IDLE)
def test_a_chosen_site_that_is_not_relaxed_is_named(case, hard):
    model, sites = IDLE[case]
    handled = relaxed(model, T, hard=hard, sites=sites)
    (message,) = warned(lambda: poutine.trace(handled).get_trace())
    assert f"got ['{sites[0]}'], which were observed in every call so far" in message
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


def test_errors_name_the_site():
    def model(distribution):
        pyro.sample("z", distribution)

    with pytest.raises(
        TypeError, match=r'pyro.sample\("z", ...\).*OneHotCategorical\(probs=d.probs\) for'
    ):
        relaxed(model, T, hard=False)(dist.Categorical(PROBS))
    with pytest.raises(TypeError, match=r'pyro.sample\("z", ...\).*got a Poisson.*sites=\[...\]'):
        relaxed(model, T, hard=False)(dist.Poisson(1.0))
    with pytest.raises(TypeError, match=r'"z", ...\).*got a ZeroInflatedPoisson.*gate \* count'):
        relaxed(model)(dist.ZeroInflatedPoisson(torch.ones(()), gate=torch.tensor(0.5)))
    with pytest.raises(TypeError, match=r'count = pyro.sample\("count", dist.Geometric\(...\)\)'):
        relaxed(model)(dist.ZeroInflatedDistribution(dist.Geometric(0.5), gate=torch.tensor(0.5)))
    with pytest.raises(TypeError, match=r'pyro.sample\("z", ...\).*got Normal'):
        relaxed(model, T, sites=["z"])(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r'pyro.sample\("z", ...\).*`temperature` must be one'):
        relaxed(model, torch.ones(7))(dist.Bernoulli(torch.ones(2) / 2))
    for given in (0.5, ConstantTemperature(0.5)):
        with pytest.raises(TypeError, match=r"relaxed: `model` must.*relaxed\(temperature=0.5\)"):
            relaxed(given)
    with pytest.raises(ValueError, match="relaxed: `temperature` must be given for hard=False"):
        relaxed(model, hard=False)
    with pytest.raises(ValueError, match="relaxed: `temperature` must be None for estimator=sec"):
        relaxed(model, T, estimator="second_order")
    with pytest.raises(ValueError, match="relaxed: `estimator` reinmax must have a temperature"):
        relaxed(model, estimator="reinmax")
    with pytest.raises(ValueError, match="`estimator` must be one of"):
        relaxed(model, T, estimator="unknown")

    class OfTwo(ValueError):
        def __init__(self, one, two):
            super().__init__(f"{one} {two}")

    class Coin(dist.Bernoulli):
        pass

    @relax.register(Coin)
    def _(distribution, temperature, **options):
        raise OfTwo("heads", "tails")

    with pytest.raises(ValueError, match=r'pyro.sample\("z", ...\): heads tails'):
        relaxed(model, T)(Coin(0.5))
    # after an error no handler is left behind
    assert not poutine.runtime._PYRO_STACK


# Prediction.


def test_prediction_is_for_the_plain_model():
    """In a prediction the data are latent, and `relaxed` relaxes them too."""

    def model(x=None):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Poisson(1 + 2 * z), obs=x)

    handled = relaxed(model, T)
    guide = AutoRelaxed(handled, T)
    SVI(handled, guide, pyro.optim.Adam({}), Trace_ELBO()).step(torch.tensor(4.0))
    draws = Predictive(model, guide=guide, num_samples=20)()
    assert draws["x"].shape[0] == 20
    for chosen in (None, ["z"]):
        draws = Predictive(relaxed(model, T, sites=chosen), guide=guide, num_samples=20)()
        assert draws["x"].shape[0] == 20


def predicted(distribution, x):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", distribution(0.2 + 0.5 * z), obs=x)


REFUSED = {
    "Poisson": lambda rate: dist.Poisson(rate),
    "Categorical": lambda rate: dist.Categorical(torch.stack([rate, 1 - rate], -1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_prediction_that_is_refused_says_what_to_run(name):
    handled = relaxed(lambda x=None: predicted(REFUSED[name], x), T, hard=False)
    with pytest.raises(TypeError, match=r'"x".*sites=\[...\].*not relaxed: Predictive\(model, gu'):
        Predictive(handled, num_samples=2)()


@pytest.mark.parametrize("given", [dist.Poisson(3.0), dist.Normal(0.0, 1.0)])
def test_a_distribution_is_no_model(given):
    name = type(given).__name__
    with pytest.raises(TypeError, match=rf"got a distribution, {name}; write relax\(distribution"):
        relaxed(given)
    with pytest.raises(TypeError, match=f"AutoRelaxed: `model` must be a model, got {name}; write"):
        AutoRelaxed(given)
    with pytest.raises(TypeError, match="`model` must be a model, got float; write AutoRelaxed"):
        AutoRelaxed(0.5, lambda: None)
    with pytest.raises(TypeError, match=r"got function; write relaxed\(model\)"):
        relax(predicted)


def test_data_that_become_continuous_are_named():
    """With `hard=False` a discrete site without its data becomes continuous."""
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
