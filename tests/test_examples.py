# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The examples, run as a user runs them.

In the default run most of them run in the process of the tests instead, where torch is loaded.
"""

import argparse
import dataclasses
import importlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro import poutine

from pyro_gumbel import GradientReport, GradientRow
from tests.common import first_fast, seeded

pytestmark = pytest.mark.cpu(reason="the examples run on the CPU")

for needed in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def load(script):
    """An example as a module, which finds beside it what the examples share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
        return importlib.import_module(script)


def command(script, *options):
    return [sys.executable, "-W", "error", str(EXAMPLES / f"{script}.py"), *map(str, options)]


def environment():
    """An example imports the package that lies beside it, wherever it is run."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def run_as_a_user(folder, script, *options):
    """Run an example in `folder`, away from the repository."""
    return subprocess.run(
        command(script, *options),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(autouse=True)
def _ctrl_c():
    """What it does, as the tests found it."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(params=first_fast(["here", "as a user"]))
def run(request, tmp_path, monkeypatch, capsys):
    """What runs an example in `tmp_path`."""
    if request.param == "as a user":
        return partial(run_as_a_user, tmp_path)

    def run_here(script, *options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, options)])
        load(script).main()
        return subprocess.CompletedProcess(sys.argv, 0, *capsys.readouterr())

    return run_here


def number(pattern, output):
    """The number that the group of `pattern` matches, at the start of a line."""
    return float(re.search("^" + pattern, output, re.MULTILINE)[1])


def held_out_elbo(output):
    return number(r"held-out ELBO: (\S+) nats an image", output)


BY_F_SCORE = "on the best by F-score"


def accuracy_and_log_loss(which, output):
    """Of the regression on one of the choices of `feature_selection`."""
    line = rf"  {which}: "
    return number(line + r"(\S+)%", output), number(line + r"\S+ log loss (\S+)$", output)


def assert_picture(path):
    """`path` is a PNG file of more than a blank page."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 10_000


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("latents", "soft"),
    [
        ("categorical", []),
        pytest.param("categorical", ["--soft"], marks=SLOW),
        pytest.param("bernoulli", [], marks=SLOW),
        ("bernoulli", ["--soft"]),
    ],
)
def test_few_steps(tmp_path, run, latents, soft):
    picture = tmp_path / "x.png"
    done = run("digits_vae", "--steps", 20, "--latents", latents, *soft, "--out", picture)
    assert done.returncode == 0, done.stderr
    assert math.isfinite(held_out_elbo(done.stdout))
    assert "(360 images, 20 samples each)" in done.stdout
    assert_picture(picture)


@pytest.mark.parametrize("latents", ["poisson", pytest.param("binomial", marks=SLOW)])
def test_a_few_steps_of_count_vae(tmp_path, run, latents):
    options = ["--steps", 5, "--latents", latents, "--variables", 3, "--out", "x.png"]
    done = run("count_vae", *options)
    assert done.returncode == 0, done.stderr
    assert all(math.isfinite(elbo) for elbo in elbos_of_counts(done.stdout))
    assert done.stdout.count("(360 images, 20 samples each)") == 2
    assert_picture(tmp_path / "x.png")


def elbos_of_counts(output):
    """By second order, and by the score function."""
    names = ("second order", "score function")
    return [number(rf"held-out ELBO by {name}: (\S+) nats an image", output) for name in names]


def test_the_digits_are_whole_numbers_of_sixteenths():
    images, _ = load("count_vae").digits(seed=0)
    counts = 16 * images
    assert counts.eq(counts.round()).all()
    assert counts.max() == 16


@pytest.mark.parametrize("soft", [pytest.param([], marks=SLOW), ["--soft"]])
def test_a_few_steps_of_feature_selection(tmp_path, run, soft):
    options = ["--steps", 5, "--size", 3, *soft, "--temperature", 0.7, "--out", "x.png"]
    done = run("feature_selection", *options)
    assert done.returncode == 0, done.stderr
    probabilities = re.findall(r"[a-z] \((0\.\d\d)\)", done.stdout)
    assert len(probabilities) == 3
    assert probabilities == sorted(probabilities, reverse=True)
    assert "held-out accuracy (171 tumours)" in done.stdout
    for which in ("on all features", "on 3 at random, mean of 100", BY_F_SCORE, "on the chosen"):
        accuracy, log_loss = accuracy_and_log_loss(which, done.stdout)
        assert 60 < accuracy <= 100
        assert 0 < log_loss < 1
    assert_picture(tmp_path / "x.png")


@pytest.mark.parametrize(("more", "most"), [([], "2"), (["--any-length"], "1 to 2")])
def test_a_few_steps_of_ranking(tmp_path, run, more, most):
    options = ["--steps", 5, "--items", 4, "--size", 2, "--judges", 30, "--out", "x.png"]
    done = run("ranking", *options, *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"top {most} of 4 items from 30 judges\n")
    assert -1 <= number(r"Kendall's tau .*: (\S+)$", done.stdout) <= 1
    assert number(r"root mean square error .*: (\S+)$", done.stdout) > 0
    assert 0 <= number(r"true log-worths .*: (\d+) of 4$", done.stdout) <= 4
    assert_picture(tmp_path / "x.png")


def test_a_few_steps_of_relax_a_model(tmp_path, run):
    done = run("relax_a_model", "--steps", 3, "--most", 5, "--out", "x.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("178 wines in 3 clusters")
    for line in (r"ELBO, nats", r"agreement with the cultivars", r"seconds"):
        assert math.isfinite(number(line + r" +(\S+) +\S+$", done.stdout))
    assert 0 <= number(r"mean difference of the probabilities: (\S+)$", done.stdout) <= 1
    by_number = causes_by_number(done.stdout)
    assert list(by_number) == [2, 5]
    assert all(elbo < evidence for evidence, elbo, _ in by_number.values())
    assert_picture(tmp_path / "x.png")
    again = run("relax_a_model", "--steps", 3, "--most", 5)
    assert causes_by_number(again.stdout) == by_number
    assert_picture(tmp_path / "relax_a_model.png")


@pytest.mark.parametrize("data", ["wine", pytest.param("iris", marks=SLOW)])
def test_a_few_steps_of_mixture(tmp_path, run, data):
    done = run("mixture", "--data", data, "--steps", 3, "--out", "x.png")
    assert done.returncode == 0, done.stderr
    points = {"wine": "178 points of 13 numbers", "iris": "150 points of 4 numbers"}[data]
    assert done.stdout.startswith(f"{points} in 3 clusters")
    for line in (r"log density .*", r"log likelihood .*", r"agreement .*"):
        assert math.isfinite(number(line + r" +(\S+) +\S+ +\S+$", done.stdout))
    assert number(r".* gains (\S+) nats$", done.stdout) > 0
    assert_picture(tmp_path / "x.png")


def test_a_few_steps_of_hidden_markov(tmp_path, run):
    done = run("hidden_markov", "--steps", 2, "--months", 3, "--out", "x.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 histories of 3 months ")
    evidence = row("log evidence of the parameters, nats", done.stdout)
    elbos = row("ELBO, nats", done.stdout)
    assert elbos[0] == evidence[0]  # of the true parameters
    assert all(elbo < value for elbo, value in zip(elbos[2:], evidence[2:], strict=True))
    assert all(0 <= found <= 100 for found in row("months whose state is found, %", done.stdout))
    assert_picture(tmp_path / "x.png")


def row(label, output):
    """The numbers of the line that starts with `label`."""
    (line,) = re.findall(f"^{re.escape(label)} (.*)$", output, re.MULTILINE)
    return [float(word) for word in line.split()]


def test_the_forward_algorithm_of_hidden_markov():
    """Against sums over all paths."""
    example = load("hidden_markov")
    returns = torch.tensor([[1.0, -9.0, 2.0, 0.5], [12.0, 3.0, -4.0, 1.0]])
    parameters = example.Parameters(*(value.double() for value in example.HARDY))
    observed = example.log_densities(parameters, returns.double())
    paths = torch.cartesian_prod(*[torch.arange(2)] * 4)
    steps = parameters.transitions.log()[paths[:, :-1], paths[:, 1:]].sum(-1)
    log_joint = math.log(0.5) + steps + observed[:, torch.arange(4), paths].sum(-1)
    expected = log_joint.logsumexp(-1)
    torch.testing.assert_close(example.log_evidence(parameters, observed), expected)
    volatile = log_joint.softmax(-1) @ paths.double()
    torch.testing.assert_close(example.volatile_given(parameters, returns.double()), volatile)


def test_the_vectorised_chain_has_the_density_of_the_loop():
    example = load("hidden_markov")
    pyro.clear_param_store()
    returns, states = example.histories(5)
    values = {f"z{month}": states[:, month] for month in range(5)}
    loop = poutine.trace(poutine.condition(example.model, data=values)).get_trace(returns)
    chain = poutine.condition(example.vectorised, data={"z": states})
    chain = poutine.trace(chain).get_trace(returns)
    torch.testing.assert_close(chain.log_prob_sum(), loop.log_prob_sum())


def test_a_few_steps_of_topics(tmp_path, run):
    done = run("topics", "--steps", 2, "--topics", 2, "--out", "x.png")
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+ documents of \d+ modules, 2 topics\n", done.stdout)
    for label in ("held-out log likelihood, nats a word", "ELBO, nats a word"):
        assert all(-20 < value < 0 for value in row(label, done.stdout))
    assert len(re.findall(r"^  (\w+ ){7} +\(\S+, \S+\)$", done.stdout, re.MULTILINE)) == 2
    assert_picture(tmp_path / "x.png")


def test_the_words_of_topics():
    """Every word is one of the vocabulary; a fifth of each document is held out."""
    data = load("topics").corpus()
    assert len(data.vocabulary) == 250
    assert data.words.shape == (len(data.modules), 40)
    assert data.held_out.shape == (len(data.modules), 10)
    assert 0 <= data.words.min() <= data.words.max() < 250


@pytest.mark.parametrize("decorrelate", [[], pytest.param(["--decorrelate"], marks=SLOW)])
def test_a_few_steps_of_spike_and_slab(tmp_path, run, decorrelate):
    done = run("spike_and_slab", "--steps", 5, *decorrelate, "--out", "x.png")
    assert done.returncode == 0, done.stderr
    found = inclusion_probabilities(done.stdout)
    assert len(found) == 10
    assert all(0 <= probability <= 1 for pair in found.values() for probability in pair)
    gap, of_gates = gaps(done.stdout)
    assert gap > of_gates > 0
    assert_picture(tmp_path / "x.png")


def inclusion_probabilities(output):
    """By feature, the exact one and that of the guide, as `spike_and_slab` prints them."""
    rows = re.findall(r"^(\w+) +(\d\.\d{3}) +(\d\.\d{3}) +\S+ +\S+$", output, re.MULTILINE)
    return {name: tuple(map(float, pair)) for name, *pair in rows}


def gaps(output):
    """KL(guide || posterior), whole and of the gates alone."""
    found = re.search(r"^KL\(guide \|\| posterior\): (\S+) nats, .* (\S+)$", output, re.MULTILINE)
    return tuple(map(float, found.groups()))


def test_the_exact_posterior_of_spike_and_slab():
    """Against the likelihood of the outcome itself, a normal one with a covariance."""
    example = load("spike_and_slab")
    x, y, _ = example.diabetes(decorrelate=False)
    x, y = x[:20, :3].double(), y[:20].double()
    log_joint = []
    for gates in example.all_gates(3):
        noise = example.NOISE**2 * torch.eye(20, dtype=torch.float64)
        covariance = noise + example.SLAB**2 * (x * gates) @ x.T
        outcome = torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance)
        log_joint.append(outcome.log_prob(y) - 3 * math.log(2))
    log_joint = torch.stack(log_joint)
    exact = example.exact_posterior(x, y)
    assert exact.evidence == pytest.approx(log_joint.logsumexp(0).item(), abs=1e-9)
    torch.testing.assert_close(exact.subsets, log_joint.softmax(0))
    torch.testing.assert_close(exact.inclusion, exact.subsets @ example.all_gates(3))


def test_a_few_steps_of_sparse_gates(tmp_path, run):
    done = run("sparse_gates", "--steps", 5, "--units", 4, "--out", "x.png")
    assert done.returncode == 0, done.stderr
    rows = open_gates_and_accuracies(done.stdout)
    assert list(rows) == list(range(6))
    assert rows[0][0] == 4 * (64 + 10)
    assert number(r"held-out accuracy: (\S+)%$", done.stdout) == rows[5][1]
    assert_picture(tmp_path / "x.png")


def open_gates_and_accuracies(output):
    """By step, as `sparse_gates` prints them."""
    rows = re.findall(r"^ *(\d+) +(\d+) +(\S+)%$", output, re.MULTILINE)
    return {int(step): (int(gates), float(percent)) for step, gates, percent in rows}


def test_the_largest_weights_of_a_network():
    example = load("sparse_gates")
    network = example.Network(3)
    gates = example.largest_weights(network, 20)
    assert sum(example.number_open(gate) for gate in gates) == 20
    sizes = torch.cat([layer.weight.detach().abs().flatten() for layer in network.layers])
    open_ = torch.cat([gate.flatten() for gate in gates]) > 0
    assert sizes[open_].min() > sizes[~open_].max()


@SLOW
def test_a_small_choice_of_an_estimator(tmp_path, run):
    options = ["--steps", 1, "--samples", 8, "--temperatures", 0.5, 1, "--json", "x.json"]
    done = run("choose_an_estimator", *options)
    assert done.returncode == 0, done.stderr
    assert "by leave-one-out score function, 400 draws" in done.stdout
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["rows"][0]["estimator"] == "second_order"
    assert len(report["rows"]) == 13
    assert "recommended for training to the end: " in done.stdout
    assert len(re.findall(r"^best over 10* steps?: ", done.stdout, re.MULTILINE)) == 4
    assert_picture(tmp_path / "choose_an_estimator.png")


def test_the_recommendations_over_steps():
    def report(*rows):
        made = [
            GradientRow(name, tau, bias, 0.1, 5.0, noise, 1.0, 0.1, 1.0, 0.1, progress, 0.02, 5.0)
            for name, tau, bias, noise, progress in rows
        ]
        made = [dataclasses.replace(row, projection=row.progress) for row in made]
        return GradientReport(made, 10.0, 0.1, "enumeration of 3 states", 200, 3)

    example = load("choose_an_estimator")
    nothing = report(("gumbel_softmax", 0.5, 3.0, 8.0, math.nan))
    assert example.recommendations(nothing) == "no recommendation: write a larger --samples"
    both = report(("second_order", None, 0.0, 300.0, 1.0), ("gumbel_softmax", 0.5, 5.0, 1.0, 1.0))
    biased, unbiased = 'estimator="gumbel_softmax", temperature=0.5', 'estimator="second_order"'
    assert example.recommendations(both).splitlines() == [
        f"best over 1 steps:    {biased}",
        f"best over 10 steps:   {biased}",
        f"best over 100 steps:  {biased}",
        f"best over 1000 steps: {unbiased}",
    ]


def causes_by_number(output):
    """Log evidence, ELBO and mean difference, where `relax_a_model` has all."""
    line = r"^ *(\d+) +(-\S+) +(-\S+) +\S+ +\S+ +(0\.\d+)$"
    rows = re.findall(line, output, re.MULTILINE)
    return {int(number): tuple(map(float, values)) for number, *values in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    ["digits_vae", "feature_selection", "ranking", "spike_and_slab", "count_vae", "sparse_gates"],
)
def test_equal_seeds_give_equal_results(tmp_path, script):
    runs = [run_as_a_user(tmp_path, script, "--steps", 2, "--seed", 3) for _ in range(2)]
    first, again = (done.stdout[: done.stdout.index("wrote ")] for done in runs)
    assert first == again
    assert_picture(tmp_path / f"{script}.png")


@pytest.mark.parametrize("items", [2, 3, 10])
def test_kendall_tau(items):
    """As scipy has it."""
    first, second = seeded(torch.randn, items, 2, items)
    expected = scipy.stats.kendalltau(first, second).statistic
    assert load("ranking").kendall_tau(first, second) == pytest.approx(expected)


def write_archive(path, **changes):
    """A small archive of images of 5x7 pixels, with some of its arrays replaced or left out."""
    grey = np.random.default_rng(0).integers(0, 256, (50, 5, 7)).astype("uint8")
    arrays = {"x_train": grey[:40], "x_test": grey[40:], **changes}
    np.savez(path, **{name: images for name, images in arrays.items() if images is not None})


def test_own_images(tmp_path, run):
    write_archive(tmp_path / "own.npz")
    options = ["--variables", 3, "--categories", 4, "--temperature", 2, "--out", "own.png"]
    done = run("digits_vae", "--data", "own.npz", "--steps", 5, *options)
    assert done.returncode == 0, done.stderr
    assert math.isfinite(held_out_elbo(done.stdout))
    assert "(10 images, 20 samples each)" in done.stdout
    assert_picture(tmp_path / "own.png")


def test_own_images_of_counts(tmp_path, run):
    write_archive(tmp_path / "own.npz")
    done = run("count_vae", "--data", "own.npz", "--steps", 2, "--out", "own.png")
    assert done.returncode == 0, done.stderr
    assert all(math.isfinite(elbo) for elbo in elbos_of_counts(done.stdout))
    assert_picture(tmp_path / "own.png")


@SLOW
def test_ctrl_c_keeps_what_is_there(tmp_path):
    process = subprocess.Popen(
        command("digits_vae", "--steps", 10_000_000, "--out", "x.png"),
        cwd=tmp_path,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        progress = b""
        while b"ELBO" not in progress:  # until the bar shows a first step
            byte = process.stderr.read(1)
            assert byte, f"ended before training: {progress.decode()}"
            progress += byte
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    assert re.search(r"stopped by Ctrl-C after \d+ steps", output.decode())
    assert math.isfinite(held_out_elbo(output.decode()))
    assert_picture(tmp_path / "x.png")


WHOLE = "expected a whole number of {} or more, got '{}'; write e.g. {}"
ARRAYS = "expected x_train and x_test of dtype uint8 and shape (images, height, width)"

BETWEEN = "expected a whole number from {} to {}, got '{}'; write e.g. {}"
BAD_OPTIONS = {
    "digits_vae": [
        ("--steps 0", "argument --steps: " + WHOLE.format(1, 0, 5000)),
        ("--steps many", "argument --steps: " + WHOLE.format(1, "many", 5000)),
        ("--seed -1", "argument --seed: " + WHOLE.format(0, -1, 0)),
        ("--variables 0", "argument --variables: " + WHOLE.format(1, 0, 8)),
        ("--categories 1", "argument --categories: " + WHOLE.format(2, 1, 8)),
        ("--temperature -1", "expected a number above 0, got '-1'; write e.g. 0.5"),
        ("--temperature nan", "expected a number above 0, got 'nan'; write e.g. 0.5"),
        ("--temperature cold", "expected a number above 0, got 'cold'; write e.g. 0.5"),
        ("--latents gaussian", "argument --latents: invalid choice: 'gaussian'"),
        ("--out nowhere/x.png", "in a folder that exists, got 'nowhere/x.png'; write e.g."),
        ("--out x", "expected a name that ends in .png, in a folder that exists, got 'x'"),
        ("--data none.npz", "got 'none.npz' ([Errno 2] No such file or directory: 'none.npz')"),
        ("--data text.npz", "an .npz file with arrays x_train and x_test, got 'text.npz'"),
        ("--data array.npy", "an .npz file with arrays x_train and x_test, got 'array.npy'"),
        ("--data no_test.npz", "x_test is not a file in the archive"),
        ("--data no_test.npz", "write it with numpy.savez('images.npz', x_train=..., x_test=...)"),
        ("--data floats.npz", ARRAYS + ", with one height and width, got float64 (40, 5, 7)"),
        ("--data floats.npz", "write (255 * grey).astype('uint8') for grey values in [0, 1]"),
        ("--data flat.npz", "got uint8 (10, 35) for x_test"),
        ("--data unlike.npz", "got uint8 (10, 7, 5) for x_test"),
        ("--data empty.npz", "got uint8 (0, 5, 7) for x_train"),
    ],
    "feature_selection": [
        ("--steps 0", "argument --steps: " + WHOLE.format(1, 0, 1000)),
        ("--size 0", "argument --size: " + BETWEEN.format(1, 29, 0, 5)),
        ("--size 30", "argument --size: " + BETWEEN.format(1, 29, 30, 5)),
        ("--temperature 0", "expected a number above 0, got '0'; write e.g. 0.5"),
        ("--out x", "got 'x'; write e.g. feature_selection.png"),
    ],
    "count_vae": [
        ("--steps 0", "argument --steps: " + WHOLE.format(1, 0, 2000)),
        ("--variables 0", "argument --variables: " + WHOLE.format(1, 0, 32)),
        ("--latents normal", "argument --latents: invalid choice: 'normal'"),
        ("--data none.npz", "got 'none.npz' ([Errno 2] No such file or directory: 'none.npz')"),
        ("--out x", "got 'x'; write e.g. count_vae.png"),
    ],
    "sparse_gates": [
        ("--steps 0", "argument --steps: " + WHOLE.format(1, 0, 1000)),
        ("--units 0", "argument --units: " + WHOLE.format(1, 0, 64)),
        ("--prior 0", "expected a number above 0, got '0'; write e.g. 0.5"),
        ("--prior 1", "--prior must be below 1, got 1; write e.g. 0.01"),
        ("--out x", "got 'x'; write e.g. sparse_gates.png"),
    ],
    "spike_and_slab": [
        ("--steps 0", "argument --steps: " + WHOLE.format(1, 0, 2000)),
        ("--out x", "got 'x'; write e.g. spike_and_slab.png"),
    ],
    "relax_a_model": [
        ("--steps 0", "argument --steps: " + WHOLE.format(1, 0, 200)),
        ("--most 1", "argument --most: " + WHOLE.format(2, 1, 200)),
        ("--out x", "got 'x'; write e.g. relax_a_model.png"),
    ],
    "choose_an_estimator": [
        ("--steps -1", "argument --steps: " + WHOLE.format(0, -1, 1000)),
        ("--samples 1", "argument --samples: " + WHOLE.format(2, 1, 200)),
        ("--temperatures 0", "expected a number above 0, got '0'; write e.g. 0.5"),
        ("--out x", "got 'x'; write e.g. choose_an_estimator.png"),
    ],
    "mixture": [
        ("--steps 0", "argument --steps: " + WHOLE.format(1, 0, 1500)),
        ("--data roses", "argument --data: invalid choice: 'roses'"),
        ("--out x", "got 'x'; write e.g. mixture.png"),
    ],
    "hidden_markov": [
        ("--steps 0", "argument --steps: " + WHOLE.format(1, 0, 300)),
        ("--months 1", "argument --months: " + WHOLE.format(2, 1, 24)),
        ("--out x", "got 'x'; write e.g. hidden_markov.png"),
    ],
    "topics": [
        ("--steps 0", "argument --steps: " + WHOLE.format(1, 0, 500)),
        ("--topics 1", "argument --topics: " + WHOLE.format(2, 1, 6)),
        ("--out x", "got 'x'; write e.g. topics.png"),
    ],
    "ranking": [
        ("--items 1", "argument --items: " + WHOLE.format(2, 1, 10)),
        ("--judges 0", "argument --judges: " + WHOLE.format(1, 0, 200)),
        ("--size 0", "argument --size: " + WHOLE.format(1, 0, 3)),
        ("--size 11", "at most the number of items, 10, got 11; write e.g. --size 10"),
        ("--items 2", "at most the number of items, 2, got 3; write e.g. --size 2"),
        ("--out x", "got 'x'; write e.g. ranking.png"),
    ],
}
BAD_LINES = [
    pytest.param(script, options.split(), words, id=f"{script} {options}")
    for script, cases in BAD_OPTIONS.items()
    for options, words in cases
]


@pytest.mark.parametrize(("script", "options", "words"), BAD_LINES)
def test_bad_options(tmp_path, monkeypatch, capsys, script, options, words):
    monkeypatch.chdir(tmp_path)
    Path("text.npz").write_text("no archive")
    np.save("array.npy", np.zeros((40, 5, 7), "uint8"))
    write_archive("no_test.npz", x_test=None)
    write_archive("floats.npz", x_train=np.zeros((40, 5, 7)))
    write_archive("flat.npz", x_test=np.zeros((10, 35), "uint8"))
    write_archive("unlike.npz", x_test=np.zeros((10, 7, 5), "uint8"))
    write_archive("empty.npz", x_train=np.zeros((0, 5, 7), "uint8"))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *options])
    with pytest.raises(SystemExit) as stopped:
        load(script).parse_options()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def independent_pixels_elbo(train_images, test_images):
    """The log likelihood of the model that knows the mean of every pixel, in nats an image."""
    mean = (train_images.sum(0) + 0.5) / (len(train_images) + 1)
    terms = test_images * mean.log() + (1 - test_images) * (1 - mean).log()
    return terms.sum((1, 2)).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("latents", ["categorical", "bernoulli"])
def test_the_latent_variables_are_used(tmp_path, latents):
    """An image costs 2 nats less than without them, and than before the training."""
    digits_vae = load("digits_vae")
    train_images, test_images = digits_vae.digits(seed=0)
    untrained = digits_vae.VAE(64, "categorical", (8, 8))
    without = independent_pixels_elbo(train_images, test_images)
    before = digits_vae.discrete_elbo(untrained, test_images.flatten(1))
    done = run_as_a_user(tmp_path, "digits_vae", "--seed", 0, "--latents", latents)
    assert held_out_elbo(done.stdout) > max(without, before) + 2


@pytest.mark.slow
@pytest.mark.parametrize("latents", ["poisson", "binomial"])
def test_latent_counts_are_used(tmp_path, latents):
    """An image costs half of what it does without them, and less than by the score function."""
    without = independent_counts(*load("count_vae").digits(seed=0))
    done = run_as_a_user(tmp_path, "count_vae", "--seed", 0, "--latents", latents)
    second_order, score_function = elbos_of_counts(done.stdout)
    assert second_order > without / 2
    assert second_order > score_function + 1


def independent_counts(train_images, test_images):
    """The log likelihood of binomial pixels of which each has a mean of its own, nats an image."""
    mean = (train_images.sum(0) + 0.5) / (len(train_images) + 1)
    pixels = torch.distributions.Binomial(16, mean)
    return pixels.log_prob((16 * test_images).round()).sum((1, 2)).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("soft", [[], ["--soft"]], ids=["hard", "soft"])
def test_the_chosen_features_are_better_together(tmp_path, soft):
    """On tumours not seen they predict better than the best univariate scores, or chance."""
    done = run_as_a_user(tmp_path, "feature_selection", "--seed", 0, *soft)
    accuracy, log_loss = accuracy_and_log_loss("on the chosen", done.stdout)
    univariate_accuracy, univariate_loss = accuracy_and_log_loss(BY_F_SCORE, done.stdout)
    _, random_loss = accuracy_and_log_loss("on 5 at random, mean of 100", done.stdout)
    assert log_loss < univariate_loss
    assert log_loss < 0.75 * random_loss
    assert accuracy > univariate_accuracy - 2  # of 171 tumours: 3 of them are within chance


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--size", 5, "--any-length"]])
def test_the_true_ranking_is_found(tmp_path, more):
    """And the intervals are as wide as they say: fewer than 7 of 10 inside has a chance of 1 %."""
    done = run_as_a_user(tmp_path, "ranking", "--seed", 0, *more)
    assert number(r"Kendall's tau .*: (\S+)$", done.stdout) > 0.8
    assert number(r"root mean square error .*: (\S+)$", done.stdout) < 0.3
    assert number(r"true log-worths .*: (\d+) of 10$", done.stdout) >= 7


@pytest.mark.slow
def test_mean_field_is_exact_without_correlation_and_sure_with_it(tmp_path):
    done = run_as_a_user(tmp_path, "spike_and_slab", "--seed", 0, "--decorrelate")
    exact, found = np.transpose(list(inclusion_probabilities(done.stdout).values()))
    assert np.abs(exact - found).max() < 0.05
    assert gaps(done.stdout)[0] < 0.5
    done = run_as_a_user(tmp_path, "spike_and_slab", "--seed", 0)
    found = inclusion_probabilities(done.stdout)
    assert all(0.3 < found[name][0] < 0.7 for name in ("s1", "s2", "s3", "s4"))
    assert all(abs(found[name][1] - 0.5) > 0.3 for name in ("s1", "s2", "s3", "s4"))
    assert 1 < gaps(done.stdout)[0] < 3


@pytest.mark.slow
def test_sparse_gates_keep_a_tenth_of_the_weights(tmp_path):
    """And the accuracy, which the largest weights of an ordinary network do not."""
    done = run_as_a_user(tmp_path, "sparse_gates", "--seed", 0)
    first, *_, last = open_gates_and_accuracies(done.stdout).values()
    assert first[0] == 4736
    assert last[0] < 474
    assert last[1] > 92
    line = r"trained without gates: (\S+)%, and with its largest weights alone: {}%$"
    assert number(line.format(r"\S+"), done.stdout) > 95
    assert number(line.replace(r"(\S+)", r"\S+").format(r"(\S+)"), done.stdout) < 60


@pytest.mark.slow
def test_one_line_of_relaxation_finds_what_enumeration_does(tmp_path):
    done = run_as_a_user(tmp_path, "relax_a_model", "--seed", 0, "--most", 50)
    elbos = re.search(r"^ELBO, nats +(\S+) +(\S+)$", done.stdout, re.MULTILINE)
    enumerated, relaxed = map(float, elbos.groups())
    assert enumerated - 30 < relaxed < enumerated + 5  # of -2833, 178 wines
    assert number(r"mean difference of the probabilities: (\S+)$", done.stdout) < 0.05
    by_number = causes_by_number(done.stdout)
    assert list(by_number) == [2, 5, 10, 20]
    for causes, (evidence, elbo, _) in by_number.items():
        assert evidence - 0.15 * causes < elbo < evidence + 0.2
    # How far a guide of independent causes must be from the posterior depends on the effects.
    assert statistics.mean(apart for *_, apart in by_number.values()) < 0.06
    assert re.search(r"^ +50 +-\S+ +2\^50 states", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_a_mixture_fitted_on_samples_is_at_an_optimum(tmp_path):
    """Where clusters differ in scale; as sums over all clusters find it, from the same start."""
    done = run_as_a_user(tmp_path, "mixture", "--seed", 0)
    assert number(r".* gains (\S+) nats$", done.stdout) < 0.5
    densities = re.search(r"^log density .*, nats +(\S+) +(\S+) ", done.stdout, re.MULTILINE)
    relaxation, enumeration = map(float, densities.groups())
    assert relaxation == pytest.approx(enumeration, abs=0.5)


@pytest.mark.slow
def test_relaxation_ends_where_coordinate_ascent_does():
    """The mean-field ELBO of a chain, by exact sums; a better start ends at a better optimum."""
    example = load("hidden_markov")
    pyro.set_rng_seed(0)
    returns, _ = example.histories(24)
    trainings = example.Trainings(argparse.Namespace(checkpoint=None, resume=False))
    fit = example.by_vectorised_relaxation(example.Run(returns, 300, trainings))
    found = mean_field_elbo(example, returns, both_states(fit.volatile), fit.parameters)
    ascent = coordinate_ascent(example, returns, both_states(torch.full(returns.shape, 0.5)))
    assert found == pytest.approx(ascent, abs=2)
    exact = example.volatile_given(example.HARDY, returns)
    better = coordinate_ascent(example, returns, both_states(exact))
    evidence = example.log_evidence(
        example.HARDY, example.log_densities(example.HARDY, returns)
    ).sum()
    assert ascent + 15 < better < evidence - 15


def both_states(volatile):
    return torch.stack([1 - volatile, volatile], -1).double()


def coordinate_ascent(example, returns, q, sweeps=150):
    """The ELBO that variational EM reaches from the probabilities `q` of the states."""
    pyro.clear_param_store()
    x, parameters = returns.double(), example.detached(example.learnt())
    parameters = example.Parameters(*(value.double() for value in parameters))
    for _ in range(sweeps):
        observed = example.log_densities(parameters, x)
        log_p = parameters.transitions.log()
        for month in range(x.shape[-1]):
            logits = observed[:, month].clone()
            if month > 0:
                logits += q[:, month - 1] @ log_p
            if month < x.shape[-1] - 1:
                logits += q[:, month + 1] @ log_p.T
            q[:, month] = logits.softmax(-1)
        pairs = torch.einsum("nti,ntj->ij", q[:, :-1], q[:, 1:])
        weights = q / q.sum((0, 1))
        locs = (weights * x.unsqueeze(-1)).sum((0, 1))
        variances = (weights * (x.unsqueeze(-1) - locs).square()).sum((0, 1))
        transitions = pairs / pairs.sum(-1, keepdim=True)
        parameters = example.Parameters(transitions, locs, variances.sqrt())
    return mean_field_elbo(example, returns, q, parameters)


def mean_field_elbo(example, returns, q, parameters):
    parameters = example.Parameters(*(value.double() for value in parameters))
    observed = example.log_densities(parameters, returns.double())
    steps = torch.einsum("nti,ntj,ij->", q[:, :-1], q[:, 1:], parameters.transitions.log())
    first = -len(returns) * math.log(2)
    return (first + steps + (q * observed).sum() + torch.special.entr(q).sum()).item()


@pytest.mark.slow
def test_relaxation_comes_near_enumeration_in_random_models(tmp_path):
    """Within 0.02 nats of the ELBO that exact gradients reach with the same guide, mean 0.004."""
    script = ROOT / "benchmarks" / "mean_field.py"
    options = ["--threads", "1", "--out", "x.json"]
    subprocess.run(
        [sys.executable, str(script), *options], cwd=tmp_path, env=environment(), check=True
    )
    models = json.loads((tmp_path / "x.json").read_text())["models"]
    assert len(models) == 20
    gaps = [model["enumerated"] - model["relaxed"] for model in models]
    assert max(gaps) < 0.02
    assert sum(gaps) / len(gaps) < 0.004
    assert all(model["relaxed"] < model["log evidence"] for model in models)


def bits(*shape):
    return np.random.default_rng(0).integers(0, 2, shape, dtype="uint8")


BENCHMARKS = [
    ("mnist_vae", {"epochs": 1, "seeds": 3, "estimator": "gapped"}, r"test (\S+), standard"),
    ("mnist_vae", {"epochs": 1, "seeds": 3, "shape": "8x16"}, r"epoch 1: train (\S+), standard"),
    ("jang_table1", {"minutes": 0.02, "units": "categorical"}, r"after .* steps: test (\S+) nats"),
    ("jang_table1", {"minutes": 0.02, "model": "sbn", "estimator": "soft"}, r".*: test (\S+) nats"),
    ("mnist_counts", {"epochs": 1, "latents": 3}, r"\| test \| (\S+) \|"),
    ("mnist_counts", {"minutes": 0.001, "family": "binomial"}, r"\| test \| (\S+) \|"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "options", "pattern"), BENCHMARKS)
def test_a_short_benchmark(tmp_path, script, options, pattern):
    grey = 255 * bits(300, 28, 28)
    binary = {name: bits(1000, 784) for name in ("train", "valid", "test")}
    np.savez(tmp_path / "data.npz", x_train=grey, x_test=grey, **binary)
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / f"{script}.py"),
         "--data", "data.npz", "--out", "x.json", "--threads", "1", *given],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert number(pattern, done.stdout) > 0
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["environment"]["torch"] == torch.__version__
    assert record["options"]["data"] == "data.npz"
    assert record["test"]


@pytest.mark.slow
def test_mixtures(tmp_path):
    """`SelectedComponent` is at an optimum and unbiased; `Normal(z @ mu, z @ sd)` is neither."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "mixture.py"), "--data", "iris",
         "--seeds", "2", "--draws", "400", "--threads", "1", "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "x.json").read_text())
    gains = {row["likelihood"]: row["gain"] for row in record["gains"]}
    assert gains["SelectedComponent"] < 0.5
    assert gains["Normal(z @ mu, z @ sd)"] > 5
    for row in record["biases"]:
        bias, error = row["SelectedComponent"]
        assert row["estimator"] != "second_order" or bias < 3 * error
        bias, error = row["Normal(z @ mu, z @ sd)"]
        assert bias > 0.5 * row["exact"]


@pytest.mark.slow
def test_chains(tmp_path):
    """A factor that is linear in every state has no bias; probabilities have the most."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "chain.py"), "--repeats", "3",
         "--sites", "3", "--threads", "1", "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    biases = json.loads((tmp_path / "x.json").read_text())["relative biases"]
    assert max(biases["factor"]) < 1e-12
    assert max(biases["logits"]) < 0.5
    assert sum(biases["probs"]) > 3 * sum(biases["logits"])


@pytest.mark.slow
def test_bias_and_variance_of_estimators(tmp_path):
    """For quadratic losses second order has no bias, and that of `mve` falls with tau."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "bias_and_variance.py"),
         "--categories", "3", "--problems", "5", "--threads", "1", "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "x.json").read_text())["categories"]["3"]
    bias = {name: row["quadratic: bias"] for name, row in rows.items()}
    assert bias["reinmax, T = 1"] < 1e-12
    assert bias["mve(1e5)"] < 1e-3 < bias["mve(160)"] < 0.1 < bias["straight_through, T = 1"]
    for loss in ("quadratic", "curved"):
        assert rows["reinmax_rao(32)"][f"{loss}: sd"] < rows["reinmax_rao(1)"][f"{loss}: sd"]


@pytest.mark.slow
def test_forms_of_integer_sites(tmp_path):
    """Derivatives of curved forms have a bias; outcomes have none, and no noise in a mixture."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "index_bias.py"),
         "--repeats", "3", "--concentrations", "0.5", "--threads", "1", "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    forms = json.loads((tmp_path / "x.json").read_text())["forms"]
    assert len(forms) == 9
    for row in forms:
        found = row["by concentration"]["0.5"]
        assert found["worst error with outcomes"] < 1e-12
        noise = found["noise by TraceMeanField_ELBO"]
        assert (
            (0.1 < noise < found["noise by Trace_ELBO"])
            if row["model"] == "chain"
            else noise < 1e-12
        )
        if re.search(r"factor|1\.0|SelectedComponent", row["form"]):
            assert found["worst error"] < 1e-12
            assert found["worst cosine"] > 1 - 1e-12
        elif "logits" in row["form"]:
            assert 0.001 < found["error"] < 0.5
        else:
            assert found["error"] > 0.1


@pytest.mark.slow
def test_dependent_sites(tmp_path):
    """Where the sites of the guide depend on each other there is a bias, and else none."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "dependent_sites.py"),
         "--sites", "2", "--dependences", "0", "1", "--threads", "1", "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    independent, dependent = json.loads((tmp_path / "x.json").read_text())["dependences"]
    assert independent["outcomes"]["worst error"] < 1e-12
    assert independent["derivative"]["error"] > 0.001
    assert 0.001 < dependent["outcomes"]["error"] < 0.5


@pytest.mark.slow
def test_costs_of_integer_sites(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "indices.py"),
         "--repeats", "1", "--categories", "50", "--threads", "1", "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "x.json").read_text())
    assert len(record["lookup"]) == 2
    assert len(record["large table"]) == 3
    assert all(both["index"] > 0 for both in record["microseconds"].values())
    assert "| `t[z]` | " in done.stdout


@pytest.mark.slow
def test_costs_of_outcomes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "outcomes.py"),
         "--repeats", "1", "--size", "0.05", "--threads", "1", "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "x.json").read_text())
    assert len(record["mixture"]) == len(record["topics"]) == len(record["megabytes"]) == 2
    assert len(record["hidden Markov model"]) == 4
    assert all(both["outcomes"] > 0 for both in record["microseconds"].values())
    assert "| `a[z]` | " in done.stdout


@pytest.mark.slow
def test_topics(tmp_path):
    """Sums over the topic of each word find the topics that the words were drawn from."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "lda.py"), "--repeats", "1",
         "--steps", "300", "--threads", "1", "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "x.json").read_text())["seeds"]
    assert row["enumeration"] < 0.15
    assert row["enumeration"] < row["relaxation"] < 1


@pytest.mark.slow
def test_polynomials(tmp_path):
    """Where the straight-through estimator stops: its slopes balance at q = .45 for p = 2."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "polynomial.py"), "--powers", "2",
         "--seeds", "0", "--estimators", "straight_through", "reinmax", "--threads", "1",
         "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    excess = json.loads((tmp_path / "x.json").read_text())["excess"]
    assert abs(excess["straight_through"]["2.0"][0] - 0.45 * (0.55**2 - 0.45**2)) < 0.002
    assert excess["reinmax"]["2.0"][0] < 0.005


@pytest.fixture
def counts(monkeypatch):
    """The benchmark of counts as a module."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module("counts")


# Of second order for each of LOSSES, to two digits.
BIASES = {
    "Poisson(3)": (0, 0.025, -0.0011, 0.0061, -0.011),
    "Binomial(10, logit .3)": (0, 0.061, -0.0013, 0.0021, -0.0068),
    "NegativeBinomial(5, logit .2)": (0, 0.15, -0.0027, 0.0086, -0.020),
}


def test_weights_of_counts(counts):
    """Second order is Fini-2, third order Fini-3."""
    for family in counts.FAMILIES.values():
        assert max(counts.differences(family).values()) < 1e-10


@pytest.mark.parametrize("name", BIASES)
def test_means_of_estimates_of_counts(counts, name):
    rows = [counts.accuracy(counts.FAMILIES[name], f)["estimators"] for f in counts.LOSSES.values()]
    biases = {each: [row[each]["bias"] for row in rows] for each in rows[0]}
    assert biases["second order"] == pytest.approx(BIASES[name], rel=0.05, abs=1e-10)
    assert biases["third order (Fini-3)"][:2] == pytest.approx([0, 0], abs=1e-10)
    for unbiased in ("score function", "leave one out, 2 draws"):
        assert biases[unbiased] == pytest.approx([0] * 5, abs=1e-10)


def test_draws_of_counts_have_these_weights(counts):
    for family in counts.FAMILIES.values():
        x = counts.parameter(family).expand(50).clone().requires_grad_()
        count = family.of(x)
        for value, weights in (
            (count.rsample(), counts.second_order_weights(family)),
            (counts.third_order_sample(count), counts.third_order_weights(family)),
        ):
            (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
            torch.testing.assert_close(gradient, weights[value.long()])


@pytest.mark.parametrize("form", ["soft", "hard"])
@pytest.mark.parametrize("kind", ["categories", "bits"])
def test_bare_functions_compute_what_the_classes_do(monkeypatch, kind, form):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    bare = importlib.import_module("bare")
    function, family, _ = {"soft": bare.SOFT, "hard": bare.HARD}[form][kind]
    x, w = torch.randn(64, 10, requires_grad=True), torch.randn(64, 10)

    def by_class():
        d = family(bare.TEMPERATURE, logits=x)
        y = d.rsample()
        return (y, d.log_prob(y)) if form == "soft" else (y,)

    def by_function():
        found = function.apply(x, bare.TEMPERATURE)
        return found if form == "soft" else (found,)

    results = []
    for draw in (by_class, by_function):
        torch.manual_seed(1)
        y, *log_prob = draw()
        loss = (w * y).sum() + sum((each.cos().sum() for each in log_prob), torch.zeros(()))
        results.append((y, *log_prob, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_speeds_of_small_shapes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "bare.py"), "--threads", "1",
         "--repeats", "1", "--out", "x.json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text())["seconds"]
    assert len(found) == 26  # 2 shapes x 4 families x 3 works, and 2 SVI steps
    assert all(taken > 0 for row in found.values() for taken in row.values())


@SLOW
@pytest.mark.parametrize(
    "options", ["--skip memory svi", "--growth --compiled --largest 1e4 --plot x.png"]
)
def test_speeds(tmp_path, options):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:`torch.jit:DeprecationWarning",  # torch's own
         str(ROOT / "benchmarks" / "speed.py"), "--threads", "1",
         "--shapes", "64x10", "--repeats", "0.01", "--out", "x.json", *options.split()],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "64x10, hard" in done.stdout
    record = json.loads((tmp_path / "x.json").read_text())
    soft = record["shapes"]["64x10"]["soft"]
    assert {"RelaxedCategorical", "the loss itself"} < set(soft["seconds"])
    assert soft["ratios"]["RelaxedCategorical"] == 1
    if "--growth" in options:
        assert set(record["shapes"]["64x10"]["peak MiB"]) < set(soft["seconds"])
        assert all(record["svi"]["seconds"].values())
        assert len(record["growth"]) == 5
        assert len(record["compiled"]) == 14
        assert_picture(tmp_path / "x.png")
