# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The categorical models of Pyro's tutorials and examples, relaxed with their bodies unchanged."""

import math
from argparse import Namespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    EmpiricalMarginal,
    Importance,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
    infer_discrete,
)
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from pyro.infer.inspect import get_dependencies
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.indexing import Vindex
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_gumbel import AutoRelaxed, IndexTensor, relaxed
from pyro_gumbel.distributions.wrappers import innermost
from tests.common import first_fast, slow_unless
from tests.infer.categorical_models import (
    EXAMPLES,
    logits,
    tutorial_mixture,
    without_marks,
)

PLAIN = [name for name in EXAMPLES if name not in ("structured chain", "amortised lda")]
WITH_TABLES = [name for name in PLAIN if EXAMPLES[name].tables]

# The objectives, for a number of nested plates.
LOOPED = {"num_particles": 2}


def vectorised(nesting):
    return {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": nesting}


def compiled(nesting, **settings):
    return JitTrace_ELBO(ignore_jit_warnings=True, **{"max_plate_nesting": nesting, **settings})


OBJECTIVES = {
    "Trace_ELBO": lambda n: Trace_ELBO(),
    "Trace_ELBO, looped": lambda n: Trace_ELBO(**LOOPED),
    "Trace_ELBO, vectorised": lambda n: Trace_ELBO(**vectorised(n)),
    "TraceMeanField_ELBO": lambda n: TraceMeanField_ELBO(),
    "TraceMeanField_ELBO, vectorised": lambda n: TraceMeanField_ELBO(**vectorised(n)),
    "TraceGraph_ELBO": lambda n: TraceGraph_ELBO(),
    "TraceGraph_ELBO, vectorised": lambda n: TraceGraph_ELBO(**vectorised(n)),
    "RenyiELBO": lambda n: RenyiELBO(alpha=0.5, **LOOPED),
    "RenyiELBO, vectorised": lambda n: RenyiELBO(alpha=0.5, **vectorised(n)),
    "JitTrace_ELBO": compiled,
    "JitTrace_ELBO, vectorised": lambda n: compiled(n, **vectorised(n)),
}
EAGER = [objective for objective in OBJECTIVES if "Jit" not in objective]
QUICK = {
    *(("mixture", objective) for objective in [*EAGER, "JitTrace_ELBO"]),
    *((name, "Trace_ELBO, vectorised") for name in EXAMPLES),
}

WRAPPED = {"relaxed": relaxed, "plain": lambda model: model}
MODELS = {  # of an example with data; they draw the marked sites too
    "relaxed": lambda example, data: relaxed(example.learnt, sites=hidden_sites(example, data)),
    "plain": lambda example, data: without_marks(example.learnt),
}


def hidden_sites(example, data):
    """The categorical sites that have no data."""
    trace = poutine.trace(relaxed(example.guide)).get_trace(*data, **example.settings)
    return [name for name in trace.stochastic_nodes if is_index(trace.nodes[name]["value"])]


def is_index(value):
    return isinstance(value, IndexTensor)


class Checked(pyro.optim.PyroOptim):
    """An optimiser that asserts that each parameter has a gradient."""

    def __call__(self, parameters, *args, **kwargs):
        assert_gradients(parameters)
        super().__call__(parameters, *args, **kwargs)


def assert_gradients(parameters):
    store = pyro.get_param_store()
    for parameter in parameters:
        name, gradient = store.param_name(parameter), parameter.grad
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


def train(model, guide, elbo, data, steps=None, **settings):
    """Some steps; without a number as many as run all code of the objective."""
    svi = SVI(model, guide, Checked(torch.optim.Adam, {"lr": 0.01}), elbo)
    for _ in range(steps or (2 if isinstance(elbo, JitTrace_ELBO) else 1)):
        assert math.isfinite(svi.step(*data, **settings))


@pytest.mark.parametrize(
    ("name", "objective"),
    slow_unless(QUICK.__contains__, [(name, each) for name in EXAMPLES for each in OBJECTIVES]),
)
def test_every_objective_trains_every_parameter(name, objective):
    example = EXAMPLES[name]
    for make in MODELS.values():
        pyro.clear_param_store()
        data, elbo = example.data(), OBJECTIVES[objective](example.nesting)
        train(make(example, data), relaxed(example.guide), elbo, data, **example.settings)


STEPS_VARY = {"args": Namespace(hidden_dim=4, jit=False), "batch_size": 1}


def test_steps_as_many_as_the_longest_sequence_of_the_subsample():
    """So the sites differ from call to call."""
    example = EXAMPLES["hmm 4"]
    model, data = relaxed(without_marks(example.learnt)), example.data()
    train(model, relaxed(example.guide), Trace_ELBO(), data, steps=5, **STEPS_VARY)
    guide = AutoRelaxed(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step(*data, **STEPS_VARY)) for _ in range(3))
    assert len({len(guide(*data, **STEPS_VARY)) for _ in range(8)}) > 1


# The relaxed model is Pyro's.


def detached(trace):
    """A copy of a trace with plain values."""
    copy = trace.copy()
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            copy.nodes[name] = {**site, "value": site["value"].detach()}
    return copy


def replayed(model, trace, data, settings):
    new = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*data, **settings)
    new.compute_log_prob()
    return new


@pytest.mark.parametrize("wrapped", MODELS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_log_prob_is_that_of_plain_values(name, wrapped):
    example = EXAMPLES[name]
    data = example.data()
    draws = poutine.trace(relaxed(example.guide)).get_trace(*data, **example.settings)
    found = replayed(MODELS[wrapped](example, data), draws, data, example.settings)
    expected = replayed(example.learnt, detached(draws), data, example.settings)
    assert any(is_index(found.nodes[site]["value"]) for site in found.stochastic_nodes)
    for site, nodes in expected.nodes.items():
        if nodes["type"] == "sample":
            torch.testing.assert_close(found.nodes[site]["log_prob"], nodes["log_prob"])


@pytest.mark.parametrize("objective", [each for each in EAGER if "looped" not in each])
@pytest.mark.parametrize("name", slow_unless(["lda", "hmm 4"].__contains__, PLAIN))
def test_the_loss_of_a_draw_is_that_of_plain_pyro(name, objective):
    example = EXAMPLES[name]
    data = example.data()
    model, elbo = MODELS["relaxed"](example, data), OBJECTIVES[objective](example.nesting)
    recorded = poutine.trace(relaxed(example.guide))
    elbo.loss(example.learnt, recorded, *data, **example.settings)  # the values of the particles
    with poutine.replay(trace=recorded.trace):
        loss = elbo.loss(model, relaxed(example.guide), *data, **example.settings)
    # Pyro's mean-field objective accepts a plain categorical site only where it does not validate.
    with poutine.replay(trace=detached(recorded.trace)), pyro.validation_enabled(False):
        expected = elbo.loss(example.learnt, example.guide, *data, **example.settings)
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("wrapped", MODELS)
@pytest.mark.parametrize("name", PLAIN)
def test_the_gradient_of_a_factor_reaches_the_sites_on_which_it_depends(name, wrapped):
    """And no others. The guide is mean field, so that its sites have a parameter each."""
    example = EXAMPLES[name]
    data = example.data()
    expected = get_dependencies(example.learnt, data, example.settings)["prior_dependencies"]
    draws = poutine.trace(relaxed(example.guide)).get_trace(*data, **example.settings)
    found = replayed(MODELS[wrapped](example, data), draws, data, example.settings)
    hidden = [site for site in expected if is_index(found.nodes[site]["value"])]
    parameters = [pyro.param(f"q_{site}") for site in hidden]
    for factor in expected.keys() - example.tables.keys() - {"doc_topics"}:
        gradients = torch.autograd.grad(
            found.nodes[factor]["log_prob_sum"], parameters, retain_graph=True, allow_unused=True
        )
        reached = {site for site, g in zip(hidden, gradients, strict=True) if g is not None}
        assert reached == expected[factor].keys() & set(hidden)
        assert all(g is None or g.any() for g in gradients)


def test_dependencies_of_a_relaxed_model():
    example = EXAMPLES["mixed"]
    data = example.data()
    expected, found = (
        get_dependencies(model, data, example.settings) for model in
        (example.model, relaxed(example.model))
    )  # fmt: skip
    assert found == expected
    source = pyro.render_model(relaxed(example.model), data, example.settings).source
    assert "e_i -> y_1" in source


# Enumeration.


def no_guide(*args, **kwargs):
    pass


def loss_and_gradients(model, guide, example, data):
    pyro.set_rng_seed(1)
    elbo = TraceEnum_ELBO(max_plate_nesting=example.nesting)
    loss = elbo.loss_and_grads(model, guide, *data, **example.settings)
    gradients = {}
    for name, parameter in pyro.get_param_store().named_parameters():
        if parameter.grad is not None:
            gradients[name], parameter.grad = parameter.grad.clone(), None
    return loss, gradients


@pytest.mark.parametrize("name", PLAIN)
def test_marked_sites_are_enumerated_as_by_plain_pyro(name):
    """The loss and the gradients are equal, to the bit."""
    example = EXAMPLES[name]
    data, model = example.data(), config_enumerate(example.learnt)
    guide = poutine.block(example.guide, expose=["doc_topics"]) if name == "lda" else no_guide
    loss_and_gradients(model, guide, example, data)  # makes the parameters
    expected_loss, expected = loss_and_gradients(model, guide, example, data)
    loss, found = loss_and_gradients(relaxed(model), guide, example, data)
    assert loss == expected_loss
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("name", PLAIN)
def test_a_guide_is_enumerated_as_by_plain_pyro(name):
    example = EXAMPLES[name]
    data = example.data()
    hidden, model = hidden_sites(example, data), without_marks(example.learnt)

    def enumerated(guide):
        return poutine.infer_config(
            guide, lambda site: {"enumerate": "parallel"} if site["name"] in hidden else {}
        )

    loss_and_gradients(model, enumerated(example.guide), example, data)
    expected_loss, expected = loss_and_gradients(model, enumerated(example.guide), example, data)
    loss, found = loss_and_gradients(
        relaxed(model), enumerated(relaxed(example.guide)), example, data
    )
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", first_fast([1, 0]))
@pytest.mark.parametrize("name", PLAIN)
def test_infer_discrete_draws_what_plain_pyro_draws(name, temperature):
    example = EXAMPLES[name]
    data = example.data()
    hidden, drawn = hidden_sites(example, data), []
    example.learnt(*data, **example.settings)  # makes the parameters
    for model in (example.learnt, relaxed(example.learnt)):
        pyro.set_rng_seed(1)
        decoded = infer_discrete(
            config_enumerate(model), first_available_dim=-1 - example.nesting,
            temperature=temperature,
        )  # fmt: skip
        drawn.append(poutine.trace(decoded).get_trace(*data, **example.settings))
    for site in hidden:
        expected, found = (trace.nodes[site]["value"] for trace in drawn)
        assert type(found) is Tensor
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", [name for name in WITH_TABLES if name != "lda"])
def test_the_energy_of_the_continuous_sites_sums_the_others_out(name):
    """Pyro's samplers enumerate every discrete site that is not marked, too."""
    example = EXAMPLES[name]
    data = example.data()
    settings = {key: value for key, value in example.settings.items() if key != "batch_size"}
    energies = []
    for model in (example.model, relaxed(example.model)):
        pyro.set_rng_seed(1)
        start, energy, _, _ = initialize_model(
            model, data, settings, max_plate_nesting=example.nesting
        )
        energies.append(energy(start))
    assert torch.equal(*energies)


def test_nuts_beside_a_categorical_site():
    data = torch.randn(5)
    draws = []
    for model in (tutorial_mixture, relaxed(tutorial_mixture)):
        pyro.set_rng_seed(1)
        kernel = NUTS(model, step_size=0.1, adapt_step_size=False, max_tree_depth=3)
        sampler = MCMC(kernel, num_samples=5, warmup_steps=2, disable_progbar=True)
        sampler.run(data)
        draws.append(sampler.get_samples())
    assert draws[1].keys() == {"p", "scale", "loc"}
    for site in draws[1]:
        torch.testing.assert_close(draws[1][site], draws[0][site])


# Guides.


def of_every_site(model, hidden):
    """A guide of the categorical sites, with a normal one of the continuous sites."""
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=hidden)))
    guide.append(AutoRelaxed(model, sites=hidden))
    return guide


def of_hidden_sites(model, hidden):
    """A guide of the categorical sites, and of the documents' topics where there are documents."""
    if hidden != ["word_topics"]:
        return AutoRelaxed(model, sites=hidden)
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["doc_topics"])))
    guide.append(AutoRelaxed(model, sites=hidden))
    return guide


def assert_auto_relaxed_trains(name, objective, wrapped):
    example = EXAMPLES[name]
    data, elbo = example.data(), OBJECTIVES[objective](example.nesting)
    model, hidden = MODELS[wrapped](example, data), hidden_sites(example, data)
    pyro.clear_param_store()
    guide = of_hidden_sites(example.learnt, hidden)
    guide(*data, **example.settings)
    with torch.no_grad():
        for parameter in guide.parameters():  # away from the prior, where the divergence is flat
            parameter += 0.1 * torch.randn(parameter.shape)
    train(model, guide, elbo, data, **example.settings)


@pytest.mark.parametrize("wrapped", first_fast(MODELS))
@pytest.mark.parametrize("name", PLAIN)
def test_auto_relaxed_trains(name, wrapped):
    assert_auto_relaxed_trains(name, "Trace_ELBO, vectorised", wrapped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "objective"),
    [(name, objective) for name in PLAIN for objective in EAGER]
    + [("lda", "JitTrace_ELBO"), ("lda", "JitTrace_ELBO, vectorised")],
)
def test_auto_relaxed_trains_under_every_objective(name, objective):
    assert_auto_relaxed_trains(name, objective, "relaxed")


@pytest.mark.parametrize(
    ("name", "objective"),
    slow_unless(
        lambda case: case[1] == "Trace_ELBO" and case[0] not in ("hmm 3", "hmm 4"),
        [
            (name, objective)
            for name in WITH_TABLES
            for objective in ("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", "RenyiELBO")
        ],
    ),
)
def test_tables_that_are_drawn_beside_categorical_sites(name, objective):
    example = EXAMPLES[name]
    data = example.data()
    hidden = hidden_sites(example, data)
    for model in (relaxed(example.model, sites=hidden), example.model):
        pyro.clear_param_store()
        guide, elbo = of_every_site(example.model, hidden), OBJECTIVES[objective](example.nesting)
        train(model, guide, elbo, data, **example.settings)


# What other algorithms return: plain integers.


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_predictions_are_plain_integers(name, parallel):
    example = EXAMPLES[name]
    data = example.data()
    hidden = hidden_sites(example, data)
    for make in MODELS.values():
        predictive = Predictive(
            make(example, data), guide=relaxed(example.guide), num_samples=3, parallel=parallel,
            return_sites=hidden,
        )  # fmt: skip
        draws = predictive(*data, **example.settings)
        for site in hidden:
            assert type(draws[site]) is Tensor
            assert draws[site].dtype == torch.int64
            assert not draws[site].requires_grad
            assert draws[site].shape[0] == 3


@pytest.mark.parametrize("name", PLAIN)
def test_conditioned_sites_are_those_of_plain_pyro(name):
    example = EXAMPLES[name]
    data, model = example.data(), without_marks(example.learnt)
    draws = poutine.trace(relaxed(example.guide)).get_trace(*data, **example.settings)
    values = {name: site["value"] for name, site in draws.nodes.items() if site["type"] == "sample"}
    plain = {name: value.detach() for name, value in values.items()}
    expected = poutine.trace(poutine.condition(model, data=plain))
    expected = expected.get_trace(*data, **example.settings)
    for given in (values, plain):
        found = poutine.trace(relaxed(poutine.condition(model, data=given)))
        found = found.get_trace(*data, **example.settings)
        for site in hidden_sites(example, data):
            kinds = (type(innermost(each.nodes[site]["fn"])) for each in (found, expected))
            assert len(set(kinds)) == 1
        torch.testing.assert_close(found.log_prob_sum(), expected.log_prob_sum())


@pytest.mark.parametrize("name", ["mixture", "hmm 1"])
def test_importance_samples(name):
    """The weights are those of the plain model, and the draws are read as integers."""
    example = EXAMPLES[name]
    data = example.data()
    posterior = Importance(MODELS["relaxed"](example, data), relaxed(example.guide), num_samples=20)
    posterior = posterior.run(*data, **example.settings)
    site = hidden_sites(example, data)[0]
    draws = EmpiricalMarginal(posterior, sites=site).sample((7,))
    assert draws.dtype == torch.int64
    assert draws.shape == (7, *posterior.exec_traces[0].nodes[site]["value"].shape)
    for trace, weight in zip(posterior.exec_traces, posterior.log_weights, strict=True):
        expected = replayed(example.learnt, detached(trace), data, example.settings).log_prob_sum()
        guide = poutine.replay(example.guide, trace=detached(trace))
        expected -= poutine.trace(guide).get_trace(*data, **example.settings).log_prob_sum()
        torch.testing.assert_close(torch.as_tensor(weight), expected)


# Vectorised particles put a dimension of particles in front of a table that is drawn. `p[x]` then
# looks up a particle instead of a category, in plain Pyro too.


def drawn_chain(look_up, data):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    x = pyro.sample("x", dist.Categorical(look_up(p, 0)))
    y = pyro.sample("y", dist.Categorical(look_up(p, x)))
    pyro.sample("obs", dist.Categorical(look_up(p, y)), obs=data)


def drawn_chain_guide(look_up, data):
    pyro.sample("p", dist.Dirichlet(pyro.param("weights", torch.ones(3, 3))).to_event(1))
    pyro.sample("x", dist.Categorical(logits=logits("x", 3)))
    pyro.sample("y", dist.Categorical(logits=logits("y", 3)))


def drawn_mixture(look_up, data):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(3, 2), 10.0).to_event(2))
    with pyro.plate("data", len(data)):
        x = pyro.sample("x", dist.Categorical(torch.ones(3)))
        pyro.sample("obs", dist.Normal(look_up(locs, x), 1.0).to_event(1), obs=data)


def drawn_mixture_guide(look_up, data):
    pyro.sample("locs", dist.Normal(pyro.param("mean", torch.randn(3, 2)), 1.0).to_event(2))
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Categorical(logits=logits("x", len(data), 3)))


def drawn_hmm(look_up, data):
    probs_x = pyro.sample("probs_x", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    probs_y = pyro.sample("probs_y", dist.Beta(torch.ones(3, 4), 1.0).to_event(2))
    x, tones_plate = 0, pyro.plate("tones", 4, dim=-1)
    with pyro.plate("sequences", len(data), dim=-2):
        for t in pyro.markov(range(2)):
            x = pyro.sample(f"x_{t}", dist.Categorical(look_up(probs_x, x)))
            with tones_plate as tones:
                y = dist.Bernoulli(Vindex(probs_y)[..., x, tones])
                pyro.sample(f"y_{t}", y, obs=data[:, t])


def drawn_hmm_guide(look_up, data):
    weights = pyro.param("weights", torch.ones(3, 3)), pyro.param("more", torch.ones(3, 4))
    pyro.sample("probs_x", dist.Dirichlet(weights[0]).to_event(1))
    pyro.sample("probs_y", dist.Beta(weights[1], 1.0).to_event(2))
    with pyro.plate("sequences", len(data), dim=-2):
        for t in range(2):
            of_step = logits(f"x_{t}", len(data), 1, 3)
            pyro.sample(f"x_{t}", dist.Categorical(logits=of_step))


DRAWN = {  # model, guide, data, nested plates
    "chain": (drawn_chain, drawn_chain_guide, torch.tensor(1), 0),
    "mixture": (drawn_mixture, drawn_mixture_guide, torch.randn(5, 2), 1),
    "hidden Markov model": (drawn_hmm, drawn_hmm_guide, torch.ones(2, 2, 4), 2),
}


def by_brackets(table, index):
    return table[index]


def by_vindex(table, index):
    return Vindex(table)[..., index, :]


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("name", DRAWN)
def test_brackets_break_with_vectorised_particles_in_plain_pyro_too(name, wrapped):
    model, guide, data, nesting = DRAWN[name]
    wrap, elbo = WRAPPED[wrapped], Trace_ELBO(**vectorised(nesting) | {"num_particles": 4})
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        elbo.loss(wrap(model), wrap(guide), by_brackets, data)
    assert math.isfinite(Trace_ELBO().loss(wrap(model), wrap(guide), by_brackets, data))


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("name", DRAWN)
def test_vindex_looks_up_the_table_of_the_particle(name, wrapped):
    model, guide, data, nesting = DRAWN[name]
    model, guide = WRAPPED[wrapped](model), relaxed(guide)
    with pyro.plate("particles", 4, dim=-1 - nesting):
        draws = poutine.trace(guide).get_trace(by_vindex, data)
        found = replayed(model, draws, (by_vindex, data), {})
    expected = torch.tensor(0.0)
    for i in range(4):
        single = poutine.trace(guide).get_trace(by_vindex, data)
        for site, node in single.iter_stochastic_nodes():
            if not site_is_subsample(node):
                value = draws.nodes[site]["value"].detach()[i]
                node["value"] = value.reshape(node["value"].shape)
        expected += replayed(model, single, (by_brackets, data), {}).log_prob_sum()
    torch.testing.assert_close(found.log_prob_sum(), expected)
    for objective in ("Trace_ELBO, vectorised", "TraceMeanField_ELBO, vectorised"):
        train(model, guide, OBJECTIVES[objective](nesting), (by_vindex, data))
