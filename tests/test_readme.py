# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The examples of the README, the docs and the docstrings run and do what they say."""

import copy
import doctest
import functools
import importlib
import itertools
import math
import pkgutil
import re
import statistics
from pathlib import Path

import pyro
import pytest
import torch

import pyro_gumbel
from pyro_gumbel.distributions.outcome_distribution import outcome_distributions
from pyro_gumbel.tensors.index_tensor import as_derivative, collapsed
from pyro_gumbel.tensors.subclass import plain
from tests.states import relative_error
from tests.tensors.substitution import Draw, centred, substituted

pytestmark = pytest.mark.cpu(reason="the examples run on the CPU")

ROOT = Path(__file__).parent.parent


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def readme_example():
    (block,) = python_blocks(ROOT / "README.md")
    return block


def test_the_example_has_twelve_lines():
    assert len([line for line in readme_example().splitlines() if line.strip()]) <= 12


def test_the_site_starts_with_the_same_example():
    assert python_blocks(ROOT / "docs" / "index.md") == [readme_example()]


RELAXED = "relaxed(model)"
HANDLERS = {"as it is": RELAXED, "derivative": "relaxed(model, outcomes=False)"}


def stated_errors():
    """What the README says of its example: the error of outcomes, the largest and median others."""
    text = " ".join((ROOT / "README.md").read_text().split())
    number = r"([\d.]+\d)"
    (stated,) = re.findall(f"is {number}, for every seed.* is {number} or less, and {number}", text)
    return map(float, stated)


@functools.cache
def example_after_training(handler, seed):
    """The probabilities that the example finds, the exact ones by enumeration, and the losses."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    assert RELAXED in readme_example()
    scope = {}
    code = readme_example().replace(RELAXED, HANDLERS[handler])
    exec(compile(code, "README.md", "exec"), scope)
    x = torch.tensor([[-2.1], [0.1], [1.8]])
    log_joint = torch.distributions.Normal(scope["means"], scope["scales"]).log_prob(x)
    exact = log_joint.softmax(-1)  # of equal prior probabilities
    return scope["guide"].distribution("z").probs.detach(), exact, scope["losses"]


def error_of_the_example(handler, seed):
    """The largest of the nine probabilities' errors."""
    found, exact, _ = example_after_training(handler, seed)
    return (found - exact).abs().max().item()


def test_the_example_finds_the_clusters():
    found, _, losses = example_after_training("as it is", 0)
    assert found.argmax(-1).tolist() == [0, 1, 2]
    assert sum(losses[-50:]) < sum(losses[:50])


def test_the_example_is_as_near_to_the_posterior_as_it_says():
    stated, _, _ = stated_errors()
    assert error_of_the_example("as it is", 0) == pytest.approx(stated, abs=0.0005)


@pytest.mark.slow
def test_the_example_has_the_same_error_for_all_seeds():
    stated, _, _ = stated_errors()
    for seed in range(5):
        assert error_of_the_example("as it is", seed) == pytest.approx(stated, abs=0.0005)


@pytest.mark.slow
def test_the_errors_of_derivatives_over_seeds():
    _, most, median = stated_errors()
    errors = [error_of_the_example("derivative", seed) for seed in range(20)]
    assert max(errors) <= most
    assert statistics.median(errors) == pytest.approx(median, abs=0.005)


NUMBERS_OF_STEPS = r"(range\(|num_samples=|warmup_steps=)\d{3}"


def run_blocks(page, steps=None):
    """Run the examples of a page one after another, and yield their names after each.

    :param steps: of each training and chain, in place of their own number.
    """
    scope = {}
    for block in python_blocks(page):
        if steps is not None:
            block = re.sub(NUMBERS_OF_STEPS, rf"\g<1>{steps}", block)
        pyro.set_rng_seed(0)
        exec(compile(block, page.name, "exec"), scope)
        yield scope


def test_the_examples_of_extending_do_what_they_say():
    *_, scope = run_blocks(ROOT / "docs" / "extending.md")
    assert scope["sample"].sum() == 1
    assert scope["gradient"] == pytest.approx(5, abs=0.3)


# The how-to pages. Each has a check for each of its examples.

HOW_TO = {
    page.stem: page
    for page in [ROOT / "docs" / "relaxing.md", *sorted(ROOT.glob("docs/how_to/*.md"))]
    if page.stem != "index"
}


def probs_of(scope, site="z"):
    return scope["guide"].distribution(site).probs.detach()


def finds_three_clusters(scope):
    assert probs_of(scope).argmax(-1).tolist() == [0, 1, 2]


def finds_the_maximum_of_the_likelihood(scope):
    """As the EM algorithm from the same start does, which one rate for all does not."""
    highest = highest_log_likelihood(scope["x"], torch.tensor([-1.0, 0.0, 1.0]))
    assert highest - 0.5 < scope["log_likelihood"] < highest + 0.001
    assert (probs_of(scope) - scope["exact"]).abs().max() < 0.05
    code, *_ = python_blocks(HOW_TO["mixtures"])
    one_rate = code.replace("0.3 if", "0.05 if")
    assert one_rate != code
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    exec(compile(one_rate, "mixtures.md", "exec"), scope := {})
    assert scope["log_likelihood"] < highest - 10


def finds_the_best_of_five_starts(scope):
    """Whose parameters and guide are put back."""
    highest = highest_log_likelihood(scope["x"], torch.tensor([-1.0, 0.0, 1.0]))
    reached = [log_likelihood for log_likelihood, *_ in scope["fits"]]
    assert min(reached) < highest - 10
    assert highest - 0.5 < max(reached) < highest + 0.001
    log_joint = scope["log_joint"](scope["x"])
    assert log_joint.logsumexp(-1).sum() == max(reached)
    assert (probs_of(scope) - log_joint.softmax(-1)).abs().max() < 0.05


def highest_log_likelihood(x, means):
    """Of the mixture, by the EM algorithm."""
    weights, scales = torch.ones(3) / 3, torch.ones(3)
    for _ in range(2000):
        log_joint = weights.log() + torch.distributions.Normal(means, scales).log_prob(x[:, None])
        probs = log_joint.softmax(-1)
        weights, means = probs.mean(0), (probs * x[:, None]).sum(0) / probs.sum(0)
        scales = ((probs * (x[:, None] - means) ** 2).sum(0) / probs.sum(0)).sqrt()
    return log_joint.logsumexp(-1).sum()


def has_one_unbiased_form(scope):
    bias = {name: (scope[name] - scope["exact"]).norm() for name in ("curved", "linear")}
    assert bias["linear"] < 0.02 * scope["exact"].norm() < 0.1 * bias["curved"]


def trains_compiled_networks(scope):
    assert statistics.mean(scope["losses"][-20:]) < statistics.mean(scope["losses"][:20])
    assert {"encoder$$$weight", "decoder$$$weight"} <= set(pyro.get_param_store())


def has_a_compiled_gradient(scope):
    assert scope["encoder"].weight.grad.abs().sum() > 0


def predicts_the_data(scope):
    means = scope["samples"]["x"].mean(0)
    assert (means - torch.tensor([-2.0, 0.0, 2.0])).abs().max() < 0.3


def finds_the_counts(scope):
    mean = scope["guide"].distribution("n").mean
    assert (mean - torch.tensor([0.4, 2.9, 4.9])).abs().max() < 0.5


def has_rates_in_order(scope):
    assert (pyro.param("rate").diff() > 1).all()


def finds_the_two_features(scope):
    included = scope["guide"][1].distribution("included").probs
    assert (included > 0.9).tolist() == [True, False, False, True, False]


def finds_the_probabilities_of_inclusion(scope):
    """As a sum over all subsets does, at the noise that is found."""
    X, y = scope["X"].double(), scope["y"].double()
    noise = pyro.param("noise").item()
    assert 0.85 < noise < 1.15
    exact, effect = exact_inclusion(X, y, noise)
    assert (exact - scope["included"]).abs().max() < 0.05
    assert (effect - scope["effect"]).abs().max() < 0.05
    assert 0.5 < exact[2] < 0.9


def exact_inclusion(X, y, noise, slab=2.0, prior=0.2):
    """The probabilities of inclusion and the mean coefficients, by a sum over all subsets."""
    number = X.shape[1]
    subsets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * number)
    design = subsets[:, :, None] * (X.T @ X) * subsets[:, None, :] / noise**2
    precision = torch.eye(number) / slab**2 + design
    shift = subsets * (X.T @ y) / noise**2
    mean = torch.linalg.solve(precision, shift)
    evidence = (shift * mean).sum(-1) / 2 - torch.logdet(slab**2 * precision) / 2
    prior = torch.distributions.Bernoulli(torch.tensor(prior).double()).log_prob(subsets).sum(-1)
    posterior = (evidence + prior).softmax(0)
    return posterior @ subsets, posterior @ (subsets * mean)


@pytest.mark.parametrize(("slab", "prior"), [(1.0, 0.2), (2.0, 0.2), (8.0, 0.2), (2.0, 0.05)])
def test_the_odds_of_features_without_effect(slab, prior):
    """As the page on spike and slab states them."""
    torch.manual_seed(0)
    X = torch.linalg.qr(torch.randn(200, 6).double()).Q * 200**0.5  # not correlated
    y = X @ torch.tensor([1.0, 0.0, 0.0, -2.0, 0.0, 0.0]).double() + torch.randn(200).double()
    included, _ = exact_inclusion(X, y, 1.0, slab, prior)
    s = 200**-0.5
    t = X.T @ y / 200 / s
    names = {"slab": slab, "s": s, "t": t, "exp": torch.exp, "prior_odds": prior / (1 - prior)}
    page = HOW_TO["discrete_and_continuous"].read_text()
    (formula,) = re.findall(r"^ +(prior odds \*.*)$", page, re.MULTILINE)
    stated = eval(formula.replace("prior odds", "prior_odds"), names)
    without = [1, 2, 4, 5]
    odds = included / (1 - included)
    torch.testing.assert_close(odds[without], stated[without], rtol=0.05, atol=0)


def finds_the_two_means(scope):
    assert pyro.param("AutoDelta.means").diff() > 1


ROW = r"^ *(\w+ +[-.\d]+) +[.\d]+ \+- [.\d]+ ([* ]) "  # of a report, until the mark of a bias


def finds_the_biases_that_are_printed(scope):
    page = HOW_TO["gradient_report"].read_text()
    printed, found = (re.findall(ROW, text, re.MULTILINE) for text in (page, str(scope["report"])))
    assert len(printed) == 7
    assert found == printed
    assert scope["report"].best().estimator == "second_order"


def finds_the_chain(scope):
    states = [probs_of(scope, f"z{t}").argmax(-1).item() for t in range(4)]
    assert states == [0, 0, 1, 1]


def learns_the_chain(scope):
    """From other data too, which one rate for all parameters does not."""
    _, code = python_blocks(HOW_TO["hidden_markov"])
    one_rate, twice = code.replace("0.3 if", "0.05 if"), code.replace("range(500)", "range(1000)")
    assert one_rate != code != twice
    for seed in range(3):
        losses = learn_a_chain(code, scope, seed)
        found = (probs_of(scope).argmax(-1) == scope["states"]).double().mean()
        assert found > 0.95
        means = pyro.param("means").detach()
        torch.testing.assert_close(means, torch.tensor([-2.0, 0.0, 2.0]), atol=0.3, rtol=0)
        assert pyro.param("scale").item() == pytest.approx(0.5, abs=0.1)
        assert (pyro.param("table").diagonal() > 0.7).all()
        longer = learn_a_chain(twice.replace("0.993", "0.993**0.5"), scope, seed)
        assert longer > losses - 3
        assert learn_a_chain(one_rate, scope, seed) > losses + 10


def learn_a_chain(code, scope, seed):
    """The loss at the end."""
    pyro.set_rng_seed(seed)
    exec(compile(code, "hidden_markov.md", "exec"), scope)
    return statistics.mean(scope["losses"][-50:])


def serves_new_data(scope):
    found = scope["network"](torch.tensor([[-2.1], [1.9]])).softmax(-1)
    assert found.argmax(-1).tolist() == [0, 2]


def samples_the_simplex(scope):
    assert scope["z"].shape == (100, 3)
    torch.testing.assert_close(scope["z"].sum(-1), torch.ones(100))


def classifies_by_a_network(scope):
    logits = scope["network"](scope["x"].unsqueeze(-1))
    assert logits.argmax(-1).tolist() == [0, 0, 1, 1, 1]
    assert (gradient_by_point(scope) > 0).tolist() == (~scope["known"]).tolist()


def gradient_by_point(scope):
    """The length of the gradient of the loss in what the network gives for each point."""
    gradients = []

    def keep_gradient(network, inputs, output):
        output.register_hook(gradients.append)

    handle = scope["network"].register_forward_hook(keep_gradient)
    pyro.infer.TraceMeanField_ELBO().loss_and_grads(scope["model"], scope["guide"], scope["x"])
    handle.remove()
    (gradient,) = gradients
    return gradient.norm(dim=-1)


def trains_on_the_labels_too(scope):
    """The loss of a step has the loss of the labels beside the negative ELBO."""
    assert scope["network"](scope["x"][:, None]).argmax(-1).tolist() == [0, 0, 1, 1, 1]
    with torch.no_grad():
        for parameter in scope["network"].parameters():
            parameter.zero_()  # so that both labels are equally probable
    losses = []
    for model in (scope["with_labels"], scope["model"]):
        pyro.set_rng_seed(0)
        losses.append(scope["elbo"].loss(model, scope["guide"], scope["x"]))
    of_labels = scope["known"].sum().item() * math.log(2)
    assert losses[0] - losses[1] == pytest.approx(scope["alpha"] * of_labels, rel=1e-5)


def classifies_what_is_unknown(scope):
    assert probs_of(scope, "y_unobserved")[~scope["known"]].argmax(-1).tolist() == [0, 1, 1]


def trains_the_router(scope):
    layer = scope["layer"]
    assert layer.router.weight.grad.abs().sum() > 0
    x = torch.randn(32, 8)
    with torch.no_grad():
        best = torch.zeros(32, 4).scatter(-1, layer.router(x).topk(2).indices, 1.0)
        each = torch.stack([expert(x) for expert in layer.experts], -1)
        torch.testing.assert_close(layer.eval()(x), (each * best.unsqueeze(-2)).sum(-1) / 2)


def is_registered_for_a_while(scope):
    assert scope["value"].sum() == pytest.approx(1)
    assert not hasattr(pyro.distributions, "RelaxedCategorical")


def hardens(scope):
    assert scope["one_hot"].argmax() == scope["value"].argmax()
    assert sorted(scope["one_hot"].tolist()) == [0, 0, 1]
    assert 0 < scope["value"].max() < 1


def keeps_two_gates(scope):
    gates = pyro_gumbel.HardConcrete(2 / 3, logits=pyro.param("gate_logits")).mode
    assert (gates > 0).tolist() == [True, False, False, True, False]


def finds_pairs_of_points(scope):
    of_means, of_z = scope["guide"]
    means = of_means.median()["means"].detach()
    assert_clusters(of_z.distribution("z").probs, means)


def assert_clusters(probs, means):
    """Of the page on integer sites, and of that on vectorised particles."""
    order = means.argsort()
    expected = torch.tensor([-2.0, 0.2, 1.9])
    torch.testing.assert_close(means[order], expected, atol=0.15, rtol=0)
    assert order.argsort()[probs.argmax(-1)].tolist() == [0, 0, 1, 1, 2, 2]


CHECKS = {
    "relaxing": [finds_three_clusters],
    "accuracy": [has_one_unbiased_form],
    "compile": [trains_compiled_networks, has_a_compiled_gradient],
    "condition": [predicts_the_data],
    "counts": [finds_the_counts, has_rates_in_order],
    "discrete_and_continuous": [finds_the_two_features, finds_the_probabilities_of_inclusion],
    "enumerate_or_relax": [finds_the_two_means],
    "gradient_report": [finds_the_biases_that_are_printed],
    "guides": [finds_three_clusters, finds_three_clusters],
    "hidden_markov": [finds_the_chain, learns_the_chain],
    "mixtures": [
        finds_the_maximum_of_the_likelihood,
        finds_the_best_of_five_starts,
        finds_three_clusters,
    ],
    "new_data": [serves_new_data],
    "nuts": [samples_the_simplex],
    "partly_observed": [
        classifies_what_is_unknown,
        classifies_by_a_network,
        trains_on_the_labels_too,
    ],
    "plain_torch": [trains_the_router],
    "register": [is_registered_for_a_while],
    "relaxed_model": [finds_three_clusters, hardens],
    "sparse_network": [keeps_two_gates],
    "vectorised_particles": [finds_pairs_of_points],
}


def test_every_how_to_page_is_checked():
    assert CHECKS.keys() == HOW_TO.keys()


@pytest.fixture
def in_little_time(monkeypatch):
    """Compilers take long, and so do 200 gradients for each row of a report."""
    report = functools.partial(pyro_gumbel.gradient_report, num_samples=5, progress=False)
    monkeypatch.setattr(pyro_gumbel, "gradient_report", report)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_the_likelihoods_of_vectors(shape):
    """The lines for them on the page of mixtures find the cluster of each point."""
    scales_of = "scales[z].unsqueeze(-1)" if len(shape) == 1 else "scales[z]"
    line = f"dist.Normal(means[z], {scales_of}).to_event(1)"
    assert f"`{line}`" in HOW_TO["mixtures"].read_text()
    means, scales = torch.tensor([[-4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]), torch.ones(shape)

    def model(x):
        with pyro.plate("points", len(x)):
            z = pyro.sample("z", pyro.distributions.Categorical(torch.ones(3)))
            names = {"dist": pyro.distributions, "means": means, "scales": scales, "z": z}
            pyro.sample("x", eval(line, names), obs=x)

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = pyro_gumbel.relaxed(model)
    guide = pyro_gumbel.AutoRelaxed(model)
    optimiser, elbo = pyro.optim.Adam({"lr": 0.3}), pyro.infer.TraceMeanField_ELBO()
    svi = pyro.infer.SVI(model, guide, optimiser, elbo)
    for _ in range(50):
        svi.step(means + 0.1)
    assert guide.median()["z"].tolist() == [0, 1, 2]


@pytest.mark.usefixtures("in_little_time")
@pytest.mark.parametrize("name", HOW_TO)
def test_the_examples_of_how_to_pages_run(name):
    assert list(run_blocks(HOW_TO[name], steps=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", HOW_TO)
def test_the_examples_of_how_to_pages_do_what_they_say(name):
    for scope, check in zip(run_blocks(HOW_TO[name]), CHECKS[name], strict=True):
        check(scope)


def block_of_estimators(name):
    """The example of the page of estimators that uses a name."""
    blocks = python_blocks(ROOT / "docs" / "estimators.md")
    (block,) = (block for block in blocks if f"{name}(" in block)
    return block


def test_the_example_of_learned_curvature_learns():
    scope = {}
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    exec(compile(block_of_estimators("LearnedCurvature"), "estimators.md", "exec"), scope)
    before = scope["encoder"].state_dict()["estimator.curvature"].clone()
    scope["svi"].step(scope["data"])
    assert before.any()
    assert not torch.equal(before, scope["encoder"].estimator.curvature)


def test_the_example_of_a_report_prints_its_table(capsys):
    block = block_of_estimators("gradient_report")
    exec(compile(block.replace("(x,),", "(x,), num_samples=5,"), "estimators.md", "exec"), {})
    output = capsys.readouterr().out
    assert "by enumeration of 27 states" in output
    assert output.splitlines()[3 + 13].startswith("recommended for training to the end: ")


def test_the_example_of_outcomes_is_exact_for_every_draw():
    (block,) = python_blocks(ROOT / "docs" / "outcomes.md")
    code, drawn = compile(block, "outcomes.md", "exec"), set()
    for seed in range(10):
        scope = {}
        torch.manual_seed(seed)
        exec(code, scope)
        torch.testing.assert_close(scope["estimate"], scope["exact"])
        drawn.add(int(scope["z"].detach()))
    assert drawn == {0, 1, 2}


NOT_EXACT = {
    "dist.Normal(t[z], net(inputs[z]))": "dist.Normal(t[z], net(inputs)[z])",
}


@pytest.mark.parametrize(("line", "instead"), NOT_EXACT.items())
def test_what_outcomes_are_not_exact_for(line, instead):
    torch.manual_seed(0)
    numbers = {"dtype": torch.float64}
    t, inputs, x = (torch.randn(3, **numbers) for _ in range(3))
    logits = torch.randn(3, 3, **numbers).requires_grad_()
    layer = torch.nn.Linear(1, 1).double().requires_grad_(False)

    def net(inputs):
        return layer(inputs.unsqueeze(-1)).squeeze(-1).exp()

    names = {"dist": pyro.distributions, "torch": torch, "t": t, "inputs": inputs, "net": net}

    def error(line):
        with outcome_distributions():
            return relative_error(lambda z: eval(line, names | {"z": z}).log_prob(x).sum(), logits)

    assert error(line) > 0.01
    assert error(instead) < 1e-12


INDICES = ROOT / "docs" / "indices.md"


def lines_of_code(header):
    """The pairs of lines in the tables of `indices.md` with this header."""
    start = re.escape(f"| {header} |\n|---|---|\n")
    tables = re.findall(rf"^{start}((?:\|.*\n)+)", INDICES.read_text(), re.MULTILINE)
    return re.findall(r"^\| `(.*)` \| `(.*)` \|$", "".join(tables), re.MULTILINE)


@functools.cache
def names_of_indices():
    """The names of the tables of `indices.md`."""
    (block,) = (block for block in python_blocks(INDICES) if "D, E = " in block)
    scope = {"torch": torch, "dist": pyro.distributions}
    pyro.set_rng_seed(0)
    exec(compile(block, INDICES.name, "exec"), scope)
    return scope


KINDS = {"outcomes": lambda z: z, "derivative": as_derivative}


def value_and_gradient(line, kind="outcomes"):
    """Of a line of `indices.md`. The gradient is None where the value has none."""
    names = names_of_indices()
    value = eval(line, names | {name: KINDS[kind](names[name]) for name in ("z", "w")})
    if not getattr(value, "requires_grad", False):
        return value, None
    weights = torch.linspace(1, 2, value.numel()).reshape(value.shape)
    (gradient,) = torch.autograd.grad((value * weights).sum(), names["logits"], retain_graph=True)
    return value, gradient


@functools.cache
def draws():
    """Two draws in place of those of `indices.md`, whose one-hot vectors have the gradient."""
    torch.manual_seed(1)
    return {name: Draw(4, k=3, dtype=torch.float32) for name in ("z", "w")}


def value_and_gradients(line, **indices):
    """Of a line of `indices.md` by z and w, the value and its gradients in the one-hot vectors.

    A constant in all categories is left out, since no gradient in logits depends on it.
    """
    one_hots = [draw.one_hot for draw in draws().values()]
    with outcome_distributions():
        value = eval(line, names_of_indices() | dict(zip("DE", one_hots, strict=True)) | indices)
    weights = torch.linspace(1, 2, value.numel()).reshape(value.shape)
    loss = collapsed((value * weights).sum(), linear=True)
    gradients = torch.autograd.grad(loss, one_hots, allow_unused=True, materialize_grads=True)
    return value, list(map(centred, gradients))


def by_substitution(line):
    """The gradients if each category of each element is put in its place."""

    def function(z, w):
        return eval(line, names_of_indices() | {"z": z, "w": w})

    value = function(*(draw.numbers for draw in draws().values()))
    weights = torch.linspace(1, 2, value.numel()).reshape(value.shape)
    gradients = substituted(function, list(draws().values()), weights)
    return [centred(each).float() for each in gradients]


WITH_ONE_HOT = lines_of_code("with integers | the same with one-hot vectors")

# Where the density is curved the derivative is that of another line.
CURVED = {
    "dist.Categorical(logits=P[w]).log_prob(z)": "(D * (E @ P).log_softmax(-1)).sum(-1)",
    "dist.Categorical(P[w]).log_prob(z)": "(D * (E @ P / (E @ P).sum(-1, True)).log()).sum(-1)",
    "dist.Normal(t[z], 1.0).log_prob(x)": "dist.Normal(D @ t, 1.0).log_prob(x)",
    "dist.Normal(t[z], s[z]).log_prob(x)": "dist.Normal(D @ t, D @ s).log_prob(x)",
    "dist.Poisson(s[z]).log_prob(n)": "dist.Poisson(D @ s).log_prob(n)",
}


@pytest.mark.parametrize(("line", "of_one_hot"), WITH_ONE_HOT)
def test_lines_with_outcomes_are_exact(line, of_one_hot):
    value, found = value_and_gradients(
        line, **{name: draw.with_outcomes for name, draw in draws().items()}
    )
    of_one_hot_value, of_one_hot_gradients = value_and_gradients(of_one_hot, z=None, w=None)
    torch.testing.assert_close(plain(value), of_one_hot_value)
    torch.testing.assert_close(found, of_one_hot_gradients)
    torch.testing.assert_close(found, by_substitution(line))


@pytest.mark.parametrize(("line", "of_one_hot"), WITH_ONE_HOT)
def test_lines_as_derivatives(line, of_one_hot):
    value, found = value_and_gradients(line, **{name: draw.index for name, draw in draws().items()})
    expected_value, expected = value_and_gradients(CURVED.get(line, of_one_hot), z=None, w=None)
    torch.testing.assert_close(plain(value), expected_value)
    torch.testing.assert_close(found, expected)


def test_curved_lines_have_another_derivative():
    lines = dict(WITH_ONE_HOT)
    for line, of_derivative in CURVED.items():
        _, found = value_and_gradients(of_derivative, z=None, w=None)
        _, exact = value_and_gradients(lines[line], z=None, w=None)
        assert (found[0] - exact[0]).abs().max() + (found[1] - exact[1]).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("line", "instead"), lines_of_code("this warns | write instead"))
def test_lines_that_lose_the_gradient(line, instead, kind):
    with pytest.warns(UserWarning, match=r"z\.detach\(\) if no gradient is wanted"):
        value, gradient = value_and_gradient(line, kind)
    expected, expected_gradient = value_and_gradient(instead, kind)
    assert gradient is None
    assert (expected_gradient is None) == ("detach" in instead)
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(torch.as_tensor(value).to(expected.dtype), expected.detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("line", "instead"), lines_of_code("no gradient, no warning | write instead")
)
def test_lines_that_lose_the_gradient_silently(line, instead, kind):
    value, gradient = value_and_gradient(line, kind)
    expected, expected_gradient = value_and_gradient(instead, kind)
    assert gradient is None
    assert expected_gradient is not None
    torch.testing.assert_close(value, expected.detach())


def test_the_lines_of_indices_are_found():
    headers = re.findall(r"^\| (.*) \|\n\|---\|---\|$", INDICES.read_text(), re.MULTILINE)
    assert len(headers) == 6
    assert sum(len(list(lines_of_code(header))) for header in set(headers)) > 50


def test_the_examples_of_indices_run():
    assert len(list(run_blocks(INDICES, steps=2))) == 2


@pytest.mark.slow
def test_the_examples_of_indices_do_what_they_say():
    scope = next(run_blocks(INDICES))
    assert_clusters(scope["guide"].distribution("z").probs, pyro.param("means").detach())


@pytest.mark.slow
def test_the_examples_of_saving_do_what_they_say(tmp_path, monkeypatch):
    """Most of them say it themselves."""
    monkeypatch.chdir(tmp_path)
    for number, scope in enumerate(run_blocks(ROOT / "docs" / "saving.md")):
        if number == 2:
            probs = scope["guide"].distribution("z").probs
            assert probs.argmax(-1).tolist() == [0, 0, 1, 1, 2, 2]
        if number == 3:
            saved = pyro.param("spread").item()
            assert saved == pytest.approx(2, abs=0.2)
        if number == 6:
            found = scope["guide"].distribution("z").probs.argmax(-1)
            assert found.tolist() == [2, 0, 1, 2]
            assert pyro.param("spread").item() == saved  # held
    assert number == 9
    assert scope["frequencies"].argmax(-1).tolist() == scope["most_probable"].tolist()
    assert scope["most_probable"].tolist() == [2, 0, 1, 2]


@pytest.mark.slow
def test_a_guide_function_is_resumed_as_the_page_on_saving_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "saving.md"
    *_, scope = itertools.islice(run_blocks(page), 6)
    (block,) = (block for block in python_blocks(page) if "ModuleDict" in block)
    x = scope["x"]

    def fresh():
        pyro.clear_param_store()
        exec(block, scope)
        parts = scope["guide"] = scope["parts"]

        def guide(x):
            pyro.module("network", parts["network"])
            logits = parts["network"](x.unsqueeze(-1))
            with pyro.plate("points", len(x)):
                z = pyro_gumbel.CategoricalStraightThrough(parts["temperature"](), logits=logits)
                pyro.sample("z", z)

        optimiser, loss = pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO()
        scope["svi"] = pyro.infer.SVI(scope["model"], guide, optimiser, loss)

    def trained():
        scope["train"](5)
        steps = scope["parts"]["temperature"].steps.item()
        return steps, {name: pyro.param(name).tolist() for name in pyro.get_param_store()}

    fresh()
    trained()
    torch.save(scope["state"](), "parts.pt")
    expected = trained()
    fresh()
    saved = torch.load("parts.pt", weights_only=True)
    scope["svi"].loss_and_grads(scope["svi"].model, scope["svi"].guide, x)
    scope["load_store"](saved["store"])
    scope["guide"].load_state_dict(saved["guide"])
    scope["svi"].optim.set_state(saved["optimiser"])
    torch.set_rng_state(saved["random"])
    assert expected[0] == 10
    assert trained() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("last", "added"), [("guide", 1), ("store", -1)])
def test_the_part_that_is_loaded_last_has_the_logits(last, added, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, scope = itertools.islice(run_blocks(ROOT / "docs" / "saving.md"), 5)
    guide, store, state = scope["guide"], scope["store"], scope["state"]()
    expected = guide.logits.z.detach() + added
    saved = {
        "guide": {name: value + 1 for name, value in state["guide"].items()},
        "store": {name: value - 1 for name, value in state["store"].items()},
    }
    load = {"guide": guide.load_state_dict, "store": scope["load_store"]}
    for part in sorted(load, key=last.__eq__):
        load[part](saved[part])
    torch.testing.assert_close(guide.logits.z.detach(), expected)
    torch.testing.assert_close(store["AutoRelaxed.logits.z"].detach(), expected)


@pytest.mark.slow
def test_to_relax_a_model_twice_changes_nothing():
    scope = next(run_blocks(ROOT / "docs" / "saving.md"))
    relaxed, block = pyro_gumbel.relaxed, pyro.poutine.block
    of_once, of_twice = (
        block(model, hide_types=["param"]) for model in (scope["model"], relaxed(scope["model"]))
    )
    found = []
    for model in map(relaxed, (of_once, of_twice)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = pyro_gumbel.AutoRelaxed(model)
        loss = pyro.infer.Trace_ELBO().loss_and_grads(model, guide, scope["x"])
        found.append((loss, guide.logits.z.grad.tolist()))
    assert found[0] == found[1]


@pytest.mark.slow
def test_what_the_page_on_saving_says_of_other_lengths():
    scope = next(run_blocks(ROOT / "docs" / "saving.md"))
    for size in 1, 4:
        with pytest.raises(ValueError, match=rf'plate "points" must have size 6, .* got {size}'):
            scope["svi"].step(torch.zeros(size))


@pytest.mark.slow
def test_what_the_page_on_saving_says_of_pickle(tmp_path):
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint
    next(run_blocks(ROOT / "docs" / "saving.md"))
    for state in pyro.get_param_store().get_state(), pyro.util.get_rng_state():
        torch.save(state, tmp_path / "x.pt")
        assert unsafe(tmp_path / "x.pt")


@pytest.mark.slow
def test_an_optimiser_reads_its_state_once():
    scope = next(run_blocks(ROOT / "docs" / "saving.md"))
    optimiser = scope["svi"].optim
    state = copy.deepcopy(optimiser.get_state())
    state["spread"]["param_groups"][0]["lr"] = 0.0
    optimiser.set_state(state)
    scope["train"](1)
    assert optimiser.get_state()["spread"]["param_groups"][0]["lr"] == 0.05


def test_every_linked_file_exists():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), target


MODULES = [
    "pyro_gumbel",
    *(name for _, name, _ in pkgutil.walk_packages(pyro_gumbel.__path__, "pyro_gumbel.")),
]


def file_of(name):
    """The file of a module, which is not imported here: some need Triton."""
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def number_of_examples(name):
    return len(re.findall(r"^\s*>>> ", file_of(name).read_text(), re.MULTILINE))


def test_no_module_is_forgotten():
    """Such as one in a folder without `__init__.py`."""
    assert set(map(file_of, MODULES)) == set((ROOT / "pyro_gumbel").rglob("*.py"))


@pytest.mark.parametrize("name", list(filter(number_of_examples, MODULES)))
def test_docstring_examples(name):
    module = importlib.import_module(name)
    names = {name: getattr(pyro_gumbel, name) for name in pyro_gumbel.__all__}
    result = doctest.testmod(module, extraglobs={**names, "pyro": pyro, "torch": torch})
    assert result.attempted == number_of_examples(name)
    assert result.failed == 0


def test_public_names_are_sorted_and_there():
    assert sorted(pyro_gumbel.__all__) == pyro_gumbel.__all__
    assert all(hasattr(pyro_gumbel, name) for name in pyro_gumbel.__all__)
