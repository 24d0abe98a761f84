# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Gradients by outcomes of Pyro's categorical models, against the enumeration of the guide."""

import itertools
import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch.distributions import constraints

from pyro_gumbel import AutoRelaxed, gradient_report, relaxed
from pyro_gumbel.distributions.outcome_distribution import OutcomeDistribution
from pyro_gumbel.distributions.wrappers import WRAPPERS
from pyro_gumbel.infer.traces import OneSubsample
from tests.common import slow_unless
from tests.infer.categorical_models import EXAMPLES, Example, chain_guide, without_marks
from tests.infer.test_categorical_models import hidden_sites
from tests.states import drawn, relative_error

pytestmark = pytest.mark.usefixtures("float64")

DRAWS = 2000
OBJECTIVES = [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO]
# The concentration of the probabilities, and the spread of the other numbers.
KINDS = {"mild": (1.0, 1.0), "peaked": (0.2, 2.5)}
MODELS = [name for name in EXAMPLES if name not in ("structured chain", "amortised lda")]


# A model with a guide at its start.


def numbers(constraint: Any, shape: Any, concentration: float, spread: float) -> torch.Tensor:
    """What a parameter of a model is at random."""
    if constraint is constraints.simplex:
        weights = dist.Dirichlet(torch.full(shape, concentration)).sample().clamp(min=1e-6)
        return weights / weights.sum(-1, keepdim=True)
    if constraint is constraints.unit_interval:
        return dist.Beta(concentration, concentration).sample(shape).clamp(1e-6, 1 - 1e-6)
    if constraint is constraints.positive:
        return (0.5 * spread * torch.randn(shape)).exp()
    return spread * torch.randn(shape)


@dataclass
class Problem:
    """A model with fixed tables and a mean-field guide of its categorical sites.

    :ivar hidden: the names of these sites. The logits of each are a parameter, which starts at 0.
    :ivar subsample: that of each plate.
    """

    example: Example
    data: tuple[Any, ...]
    settings: dict[str, Any]
    hidden: list[str]
    subsample: OneSubsample

    @property
    def model(self) -> Callable[..., Any]:
        return without_marks(self.example.learnt)

    def gradient(self, elbo: Any, model: Any, guide: Any) -> torch.Tensor:
        """In the logits, one vector."""
        for _, parameter in pyro.get_param_store().named_parameters():
            parameter.grad = None
        with self.subsample:
            elbo.loss_and_grads(model, guide, *self.data, **self.settings)
        return torch.cat([pyro.param(f"q_{name}").grad.flatten() for name in self.hidden])

    def exact_gradient(self) -> torch.Tensor:
        elbo = TraceEnum_ELBO(max_plate_nesting=self.example.nesting)
        return self.gradient(elbo, self.model, self.enumerated(self.example.guide))

    def trained_loss(self, elbo: Any, model: Any, guide: Any, steps: int = 100) -> float:
        """The exact loss after some steps from the start."""
        leaves = [pyro.param(f"q_{name}").unconstrained() for name in self.hidden]
        with torch.no_grad():
            for leaf in leaves:
                leaf.zero_()
        optimiser = torch.optim.Adam(leaves, lr=0.1)
        for _ in range(steps):
            self.gradient(elbo, model, guide)
            optimiser.step()
        exact = TraceEnum_ELBO(max_plate_nesting=self.example.nesting)
        guide = self.enumerated(self.example.guide)
        with self.subsample:
            return exact.loss(self.model, guide, *self.data, **self.settings)

    def enumerated(self, guide: Any) -> Callable[..., Any]:
        """The guide, with every site marked for enumeration."""
        marks = {"enumerate": "parallel"}
        return poutine.infer_config(
            guide, lambda site: marks if site["name"] in self.hidden else {}
        )

    def sampled_gradient(self, kind: Any, draws: int = DRAWS, **settings: Any) -> torch.Tensor:
        """The mean over draws."""
        particles = {"num_particles": draws, "max_plate_nesting": self.example.nesting}
        elbo = kind(**particles, vectorize_particles=settings.pop("vectorised", True))
        model, guide = (relaxed(each, **settings) for each in (self.model, self.example.guide))
        return self.gradient(elbo, model, guide)


def problem(example: Example, kind: str = "mild", seed: int = 0, **settings: Any) -> Problem:
    """A problem with tables at random."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    data, settings = example.data(), {**example.settings, **settings}
    subsample = OneSubsample()
    with subsample:
        hidden = hidden_sites(replace(example, settings=settings), data)
        example.learnt(*data, **settings)
    store = pyro.get_param_store()
    for name, constraint in store.get_state()["constraints"].items():
        is_logits = name.removeprefix("q_") in hidden
        shape = store[name].shape
        drawn = torch.zeros(shape) if is_logits else numbers(constraint, shape, *KINDS[kind])
        store[name] = drawn
    return Problem(example, data, settings, hidden, subsample)


def whole(name: str, kind: str = "mild", seed: int = 0) -> Problem:
    """A problem with all data."""
    settings = {"batch_size": None} if "batch_size" in EXAMPLES[name].settings else {}
    return problem(EXAMPLES[name], kind, seed, **settings)


# Draws.


def closeness(found: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """The cosine of the angle between two gradients, and the ratio of their lengths."""
    cosine = torch.cosine_similarity(found, exact, 0)
    return cosine.item(), (found.norm() / exact.norm()).item()


def assert_close(found: torch.Tensor, exact: torch.Tensor) -> None:
    cosine, ratio = closeness(found, exact)
    assert cosine > 0.98
    assert 0.9 < ratio < 1.1


CASES = itertools.product(MODELS, KINDS, range(3), OBJECTIVES)
QUICK = [(name, "peaked", 0, TraceMeanField_ELBO) for name in ("mixture", "chain", "lda", "mixed")]


@pytest.mark.parametrize(
    ("name", "kind", "seed", "objective"), slow_unless(QUICK.__contains__, CASES)
)
def test_gradients_of_draws_are_exact_on_average(name, kind, seed, objective):
    found = whole(name, kind, seed)
    assert_close(found.sampled_gradient(objective), found.exact_gradient())


SUBSAMPLED = [name for name in MODELS if "batch_size" in EXAMPLES[name].settings]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", SUBSAMPLED)
def test_gradients_of_a_subsample(name, objective):
    found = problem(EXAMPLES[name], "peaked")
    assert_close(found.sampled_gradient(objective), found.exact_gradient())


@pytest.mark.parametrize("name", ["mixture", "lda"])
def test_gradients_of_draws_in_a_loop(name):
    found = whole(name, "peaked")
    gradient = found.sampled_gradient(TraceMeanField_ELBO, draws=10, vectorised=False)
    assert_close(gradient, found.exact_gradient())


COPIES = 100


def in_copies(function: Callable[..., Any], nesting: int) -> Callable[..., Any]:
    """The model or guide many times over, in a plate of its own."""

    def many(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate("copies", COPIES, dim=-1 - nesting):
            return function(*args, **kwargs)

    return many


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_many_draws_in_a_loop(name, seed):
    """Each draw of the loop is of many independent copies of the model."""
    found = whole(name, "peaked", seed)
    nesting = found.example.nesting
    parts = (in_copies(each, nesting) for each in (found.model, found.example.guide))
    elbo = TraceMeanField_ELBO(num_particles=DRAWS // COPIES)
    gradient = found.gradient(elbo, *map(relaxed, parts)) / COPIES
    assert_close(gradient, found.exact_gradient())


@pytest.mark.parametrize("name", ["chain", "lda", "hmm 1"])
def test_gradients_without_outcomes_are_biased(name):
    found = whole(name, "peaked")
    cosine, _ = closeness(
        found.sampled_gradient(TraceMeanField_ELBO, outcomes=False), found.exact_gradient()
    )
    assert cosine < 0.9


# Every state.


class State(Messenger):
    """The sites of a relaxed guide have given values, with the gradient of a draw."""

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and msg["value"] is None:
            msg["value"] = drawn(self.values[msg["name"]], msg["fn"].logits)


def states(logits: list[torch.Tensor]) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """The joint states of some sites, each with its probability."""
    elements = [range(each.shape[-1]) for each in logits for _ in range(each[..., 0].numel())]
    sizes = [each[..., 0].numel() for each in logits]
    for state in itertools.product(*elements):
        parts = torch.tensor(state).split(sizes)
        values = [v.reshape(each.shape[:-1]) for v, each in zip(parts, logits, strict=True)]
        log_probs = [
            dist.Categorical(logits=each).log_prob(v).sum()
            for v, each in zip(values, logits, strict=True)
        ]
        yield values, torch.stack(log_probs).sum().exp()


def mean_over_states(found: Problem, objective: Any, **settings: Any) -> torch.Tensor:
    """The expectation of the gradient of a draw."""
    logits = [pyro.param(f"q_{name}").detach() for name in found.hidden]
    model, guide = (relaxed(each, **settings) for each in (found.model, found.example.guide))
    total = torch.tensor(0.0)
    for values, prob in states(logits):
        with State(dict(zip(found.hidden, values, strict=True))):
            total = total + prob * found.gradient(objective(), model, guide)
    return total


def error_over_states(found: Problem, objective: Any, **settings: Any) -> float:
    """How far the mean gradient of a draw is from the exact one, in its lengths."""
    store = pyro.get_param_store()
    for name in found.hidden:
        store[f"q_{name}"] = torch.randn(store[f"q_{name}"].shape)
    exact = found.exact_gradient()
    mean = mean_over_states(found, objective, **settings)
    return ((mean - exact).norm() / exact.norm()).item()


def small(name: str, data: Callable[[], tuple[Any, ...]], **settings: Any) -> Example:
    example = EXAMPLES[name]
    return replace(example, data=data, settings={**example.settings, **settings})


def chords(num: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.bernoulli(torch.full((num, length, 5), 0.4)), torch.full((num,), length)


HMM = {"args": Namespace(hidden_dim=4, jit=True), "batch_size": None}
TWO_WORDS = Namespace(num_topics=3, num_words=6, num_docs=2, num_words_per_doc=2)
SMALL = {
    "mixture": small("mixture", lambda: (torch.randn(3),)),
    "chain": EXAMPLES["chain"],
    "time series": small("time series", lambda: (torch.tensor([0, 2, 1]),)),
    "hmm 1": small("hmm 1", lambda: chords(1, 2), **HMM),
    "hmm 2": small("hmm 2", lambda: chords(1, 2), **HMM),
    "hmm 3": small("hmm 3", lambda: chords(1, 2), **HMM),
    "hmm 4": small("hmm 4", lambda: chords(1, 2), **HMM),
    "lda": small("lda", lambda: (torch.randint(6, (2, 2)),), args=TWO_WORDS, batch_size=None),
}


QUICK_SMALL = [("mixture", Trace_ELBO), ("chain", Trace_ELBO), ("chain", TraceMeanField_ELBO)]


@pytest.mark.parametrize(
    ("name", "objective"),
    slow_unless(QUICK_SMALL.__contains__, itertools.product(SMALL, OBJECTIVES)),
)
def test_the_mean_over_all_states_is_exact(name, objective):
    found = problem(SMALL[name], "peaked")
    assert error_over_states(found, objective) < 1e-10


@pytest.mark.parametrize("name", slow_unless("chain".__eq__, SMALL))
def test_the_mean_over_all_states_is_not_exact_without_outcomes(name):
    found = problem(SMALL[name], "peaked")
    assert error_over_states(found, Trace_ELBO, outcomes=False) > 0.05


# Models of one site with several elements.


TIMES, STATES = 3, 3
START = torch.zeros(STATES)


def chain_in_one_tensor(log_p, levels, data):
    start = torch.zeros(TIMES, STATES)
    z = pyro.sample("z", dist.Categorical(logits=start).to_event(1))
    pyro.factor("chain", log_p[z[..., :-1], z[..., 1:]].sum(-1))
    pyro.sample("obs", dist.Normal(levels[z], 0.5).to_event(1), obs=data)


def chain_over_a_plate(log_p, levels, data):
    with pyro.plate("time", TIMES):
        z = pyro.sample("z", dist.Categorical(logits=START))
        pyro.sample("obs", dist.Normal(levels[z], 0.5), obs=data)
    pyro.factor("chain", log_p[z[..., :-1], z[..., 1:]].sum(-1))


def scaled_by_the_draw(log_p, levels, data):
    with pyro.plate("time", TIMES):
        z = pyro.sample("z", dist.Categorical(logits=START))
        with poutine.scale(scale=levels[z].exp()):
            pyro.sample("obs", dist.Normal(levels[z], 0.5), obs=data)


def scaled_and_masked_by_the_draw(log_p, levels, data):
    with pyro.plate("time", TIMES):
        z = pyro.sample("z", dist.Categorical(logits=START))
        with poutine.mask(mask=z > 0), poutine.scale(scale=0.5 + z):
            pyro.sample("obs", dist.StudentT(3.0, levels[z], 0.5), obs=data)
            pyro.sample("switch", dist.Categorical(logits=log_p[z]), obs=torch.ones(TIMES))


def mixture_by_hand(log_p, levels, data):
    """The log of a sum of densities, of which one depends on the draw."""
    with pyro.plate("time", TIMES):
        z = pyro.sample("z", dist.Categorical(logits=START))
        outlier = dist.Normal(0.0, 3.0).log_prob(data)
        pyro.factor("obs", torch.logaddexp(dist.Beta(1 + z, 2.0).log_prob(0.3 + 0 * data), outlier))


def of_a_total(log_p, levels, data):
    """A density of a sum over the elements, and a factor that is not linear in another one."""
    with pyro.plate("time", TIMES):
        z = pyro.sample("z", dist.Categorical(logits=START))
    pyro.sample("obs", dist.Normal(levels[z].sum(), z.double().mean().exp()), obs=data[0])
    pyro.factor("energy", -((levels[z].sum() - 1) ** 2))


def pooled(log_p, levels, data):
    """A penalty on all log densities together."""
    with pyro.plate("time", TIMES):
        z = pyro.sample("z", dist.Categorical(logits=START))
    log_prob = dist.Normal(levels[z], 0.5 + z).log_prob(data).sum()
    pyro.factor("tempered", -((log_prob / 4 - 1) ** 2))


@pytest.mark.parametrize(
    "model",
    [
        chain_in_one_tensor,
        chain_over_a_plate,
        scaled_by_the_draw,
        scaled_and_masked_by_the_draw,
        mixture_by_hand,
        of_a_total,
        pooled,
    ],
)
def test_the_mean_over_all_states_of_one_site_is_exact(model):
    log_p = numbers(constraints.simplex, (STATES, STATES), *KINDS["peaked"]).log()
    args = log_p, torch.randn(STATES), torch.randn(TIMES)

    def log_joint(z):
        given = relaxed(poutine.condition(model, data={"z": z}))
        return poutine.trace(given).get_trace(*args).log_prob_sum()

    logits = torch.randn(TIMES, STATES, requires_grad=True)
    assert relative_error(log_joint, logits) < 1e-10


# Training.


def assert_trains_as_by_enumeration(name: str, kind: str, gap: float) -> None:
    """To the same exact ELBO, up to a gap a site; the median of three seeds."""
    gaps = []
    for seed in range(3):
        found = whole(name, kind, seed)
        nesting = found.example.nesting
        by_enumeration = TraceEnum_ELBO(max_plate_nesting=nesting)
        by_draws = TraceMeanField_ELBO(
            num_particles=10, vectorize_particles=True, max_plate_nesting=nesting
        )
        guide = found.example.guide
        loss = found.trained_loss(by_draws, relaxed(found.model), relaxed(guide))
        loss -= found.trained_loss(by_enumeration, found.model, found.enumerated(guide))
        gaps.append(loss / sum(pyro.param(f"q_{site}")[..., 0].numel() for site in found.hidden))
    assert statistics.median(gaps) < gap


GAPS = {"mixture": 0.01, "lda": 0.01, "chain": 0.05, "time series": 0.05}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gap", "kind"),
    [
        *((name, gap, kind) for name, gap in GAPS.items() for kind in KINDS),
        *((f"hmm {n}", 0.05, "peaked") for n in range(1, 5)),  # take long
    ],
)
def test_training_reaches_the_exact_elbo_of_enumeration(name, gap, kind):
    assert_trains_as_by_enumeration(name, kind, gap)


# Guides whose sites depend on each other.


def test_a_guide_of_dependent_sites_trains():
    """It is not exact: the draw of one site depends on that of another, which is no outcome."""
    found = problem(EXAMPLES["structured chain"], "peaked")
    store = pyro.get_param_store()
    for name in found.hidden:
        store[f"q_{name}"] = torch.randn(store[f"q_{name}"].shape)
    exact = found.exact_gradient()
    cosine, ratio = closeness(found.sampled_gradient(Trace_ELBO, vectorised=False, draws=50), exact)
    assert math.isfinite(ratio)
    assert cosine > 0.5


# A report.


@pytest.mark.slow
def test_a_report_finds_no_bias_where_all_is_outcomes():
    found = problem(SMALL["chain"], "peaked")

    def report(outcomes):
        model, guide = (relaxed(each, outcomes=outcomes) for each in (found.model, chain_guide))
        return gradient_report(
            model, guide, num_samples=60, temperatures=[0.5], progress=False,
            estimators=["second_order", "gumbel_softmax", "straight_through"],
            elbo=TraceMeanField_ELBO(),
        )  # fmt: skip

    assert all(row.bias <= 3 * row.bias_error for row in report(True).rows)
    assert "biased as all rows are" in str(report(False))


# Runs without a gradient.


def outcome_distributions_in(trace):
    return [
        name for name, site in trace.nodes.items()
        if site["type"] == "sample" and contains_outcomes(site["fn"])
    ]  # fmt: skip


def contains_outcomes(distribution):
    while isinstance(distribution, WRAPPERS):
        distribution = distribution.base_dist
    return isinstance(distribution, OutcomeDistribution)


@pytest.mark.parametrize("name", slow_unless(("mixture", "hmm 1", "lda").__contains__, MODELS))
def test_runs_without_a_gradient_have_plain_distributions(name):
    found = whole(name)
    guide = AutoRelaxed(relaxed(found.model, sites=found.hidden))
    guide(*found.data, **found.settings)
    assert not outcome_distributions_in(guide.prototype_trace)
    with torch.no_grad():
        trace = poutine.trace(relaxed(found.model)).get_trace(*found.data, **found.settings)
    assert not outcome_distributions_in(trace)
    draws = poutine.trace(relaxed(found.example.guide)).get_trace(*found.data, **found.settings)
    trained = poutine.trace(poutine.replay(relaxed(found.model), trace=draws))
    assert outcome_distributions_in(trained.get_trace(*found.data, **found.settings))
