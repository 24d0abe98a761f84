# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""An example that is ended at any moment and resumed gives the numbers of a run without a break."""

import argparse
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from tests.common import first_fast, slow_unless
from tests.interrupted import Moments, run_forked, watch
from tests.test_examples import ROOT, environment, load

pytestmark = [
    pytest.mark.cpu(reason="the examples run on the CPU"),
    pytest.mark.filterwarnings("ignore:Data has no positive values"),  # where no clock runs
]

SMALL = {
    "ranking": "--steps 25 --items 4 --judges 30",
    "choose_an_estimator": "--steps 25 --samples 8 --temperatures 0.5",
    "count_vae": "--steps 8 --variables 3",
    "digits_vae": "--steps 30",
    "experts": "--steps 8 --experts 5",
    "feature_selection": "--steps 8 --size 3",
    "hidden_markov": "--steps 8 --months 3",
    "mixture": "--steps 8",
    "nuts": "--steps 20",
    "relax_a_model": "--steps 3 --most 5",
    "semi_supervised": "--steps 8",
    "sparse_gates": "--steps 25 --units 4",
    "spike_and_slab": "--steps 25",
    "topics": "--steps 4 --topics 2",
}


def line_of(script):
    """The script and its options, but those of the checkpoint."""
    return [script, *SMALL[script].split(), "--out", "x.png"]


@pytest.fixture(autouse=True)
def _ctrl_c():
    """What it does, as the tests found it."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """What runs an example in this process and returns what it prints. The clock stands still."""
    monkeypatch.chdir(tmp_path)

    def run_here(script, *options, moments=None):
        pyro.clear_param_store()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [f"{script}.py", *map(str, options)])
            watch(moments or Moments(), patch.setattr)
            load(script).main()
        return capsys.readouterr().out

    return run_here


def command(moment, script, *options):
    """That which runs an example up to a moment, in a process of its own."""
    line = [sys.executable, "-W", "error", "-W", "ignore:Data has no positive values"]
    return [*line, str(ROOT / "tests" / "interrupted.py"), str(moment), script, *options]


# A server of processes that have torch loaded, from which each killed run is forked.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.interrupted", "matplotlib.pyplot", "sklearn.datasets"])


def kill(folder, *line):
    """Run an example that SIGKILL ends at a moment."""
    arguments = (str(folder), torch.get_num_threads(), *map(str, line))
    process = FORKS.Process(target=run_forked, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def assert_same(found, expected):
    """Equal bit for bit, tensors and all that a checkpoint has around them."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()  # of parameters, in the order of their addresses
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected


def assert_equal_runs(folder, printed, expected):
    """What two runs print, their checkpoints x.pt and whole.pt, and their pictures."""
    assert printed == expected
    assert_same(*(load("options").load(folder / name) for name in ("x.pt", "whole.pt")))
    assert (folder / "x.png").read_bytes() == (folder / "whole.png").read_bytes()


def whole_run(run, folder, *line):
    """A run without a break: what it prints and how many moments it has."""
    moments = Moments()
    printed = run(*line, "--checkpoint", "whole.pt", moments=moments)
    (folder / "x.png").rename(folder / "whole.png")
    return printed, moments.passed


FAST = ["ranking", "mixture", "semi_supervised", "spike_and_slab", "sparse_gates"]
KILLS = [*((script, 2) for script in FAST), *slow_unless(lambda _: False, ((s, 20) for s in SMALL))]


@pytest.mark.parametrize(("script", "kills"), KILLS)
def test_a_killed_run_goes_on(run, tmp_path, script, kills):
    """Killed once at each of some moments, the first of them before the first checkpoint."""
    line = line_of(script)
    expected, number = whole_run(run, tmp_path, *line)
    for moment in [1, *random.Random(script).sample(range(2, number), min(kills, number - 2))]:
        kill(tmp_path, moment, *line, "--checkpoint", "x.pt")
        printed = run(*line, "--checkpoint", "x.pt", "--resume")
        assert_equal_runs(tmp_path, printed, expected)
        (tmp_path / "x.pt").unlink()


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_time_goes_on(run, tmp_path):
    """From outside, after two writes of the file and a moment of chance."""
    line = [*line_of("ranking"), "--steps", "400"]
    expected, _ = whole_run(run, tmp_path, *line)
    draw, codes = random.Random(0), []
    for _ in range(3):
        process = subprocess.Popen(
            command(0, *line, "--checkpoint", "x.pt", "--resume"),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_writes(tmp_path / "x.pt", process, 2)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        codes.append(process.wait())
    assert -signal.SIGKILL in codes  # all of them, unless this process was kept waiting
    printed = run(*line, "--checkpoint", "x.pt", "--resume")
    assert_equal_runs(tmp_path, printed, expected)


def wait_for_writes(path, process, number):
    """Until a file has been replaced so many times, or the process has ended."""
    seen = {time_of_write(path)}
    while len(seen) <= number and process.poll() is None:
        time.sleep(0.001)
        seen.add(time_of_write(path))


def time_of_write(path):
    return path.stat().st_mtime_ns if path.exists() else None


# In this process, where a signal is as good: what the file is worth does not depend on the process.


@pytest.mark.parametrize("script", first_fast(["ranking", "relax_a_model", "mixture"]))
def test_ctrl_c_and_then_a_resume(run, tmp_path, script):
    """The trainings after Ctrl-C have one step each, which a resumed run does not start from."""
    line = line_of(script)
    expected, number = whole_run(run, tmp_path, *line)
    line += ["--checkpoint", "x.pt"]
    moments = Moments(random.Random(script).randint(1, number // 2), press_ctrl_c)
    assert "stopped by Ctrl-C after " in run(*line, moments=moments)
    assert moments.passed < number
    assert_equal_runs(tmp_path, run(*line, "--resume"), expected)


@pytest.mark.slow
def test_a_checkpoint_changes_nothing(run, tmp_path):
    expected, _ = whole_run(run, tmp_path, *line_of("ranking"))
    assert run(*line_of("ranking")) == expected
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_a_run_is_resumed_from_nothing_and_from_its_end(run, tmp_path):
    """Without a file it starts anew; at its end it trains no more, and says the same."""
    line = line_of("ranking")
    expected, number = whole_run(run, tmp_path, *line)
    for steps in number, 0:
        moments = Moments()
        printed = run(*line, "--checkpoint", "x.pt", "--resume", moments=moments)
        assert moments.passed == steps
        assert_equal_runs(tmp_path, printed, expected)


# The trainings themselves, of a model with one parameter of each kind.


def model():
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 1.0), obs=torch.tensor(3.0))


def guide():
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("at", torch.zeros(())), scale))


def adam():
    return pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.9})


def trainings(path, *, resume=False, **options):
    options = argparse.Namespace(checkpoint=path, resume=resume, out=path, **options)
    return load("options").Trainings(options)


def train(these, number, what="training", records=(), each=None, until=None):
    """The steps that were made, and the parameters and random numbers after them."""
    pyro.clear_param_store()
    svi, made = SVI(model, guide, adam(), Trace_ELBO()), []
    for step, _ in these.steps(number, svi, what=what, records=records):
        made.append(step)
        svi.step()
        if each is not None:
            each(step)
        if step == until:
            press_ctrl_c()
    return made, {name: value.item() for name, value in pyro.get_param_store().items()}, random_()


def random_():
    """A number of each generator."""
    return torch.rand(()).item(), np.random.rand(), random.random()


def test_a_training_goes_on_after_its_last_step(tmp_path):
    path = tmp_path / "x.pt"
    pyro.set_rng_seed(0)
    _, *expected = train(trainings(None), 50)
    pyro.set_rng_seed(0)
    made, *stopped = train(trainings(path), 50, until=7)
    assert made == list(range(1, 8))
    assert stopped != expected
    for first in (8, 51):
        pyro.set_rng_seed(1)
        made, *found = train(trainings(path, resume=True), 50)
        assert made == list(range(first, 51))
        assert found == expected


@pytest.mark.parametrize(
    ("saved", "shown"),
    [
        ({"loc": torch.tensor(1.0)}, r"\{'loc': \(\)\}"),
        ({**dict.fromkeys(("at", "loc"), torch.tensor(1.0)), "scale": torch.ones(2)}, r"\(2,\)\}"),
    ],
)
def test_the_parameters_of_another_model_are_refused(saved, shown):
    pyro.clear_param_store()
    svi = SVI(model, guide, adam(), Trace_ELBO())
    names = r"\{'at': \(\), 'loc': \(\), 'scale': \(\)\}"
    words = f"expected .*{shown}, got {names}; write --checkpoint ANOTHER_FILE"
    with pytest.raises(ValueError, match=words):
        load("options").load_training({"parameters": saved}, svi, (), ())


def test_records_are_kept(tmp_path):
    path, losses, tests = tmp_path / "x.pt", [], {}

    def fill(step):
        losses.append(step / 10)
        tests[step] = [step]

    train(trainings(path), 4, records=(losses, tests), each=fill, until=3)
    losses[:], tests[99] = [1.0, 2.0], "what another run has begun"
    train(trainings(path, resume=True), 4, records=(losses, tests), each=fill)
    assert losses == [0.1, 0.2, 0.3, 0.4]
    assert tests == {1: [1], 2: [2], 3: [3], 4: [4]}


def test_trainings_after_ctrl_c_are_not_kept(tmp_path):
    path = tmp_path / "x.pt"
    these = trainings(path)
    assert train(these, 10, "first")[0] == list(range(1, 11))
    assert train(these, 10, "second", until=4)[0] == [1, 2, 3, 4]
    assert train(these, 10, "third")[0] == [1]
    kept = load("options").load(path)["trainings"]
    assert {name: state["step"] for name, state in kept.items()} == {"first": 10, "second": 4}


def test_what_is_kept_of_a_training_stays(tmp_path):
    path, record = tmp_path / "x.pt", [1.0]
    these = trainings(path)
    train(these, 2, "first", records=[record])
    kept = load("options").load(path)["trainings"]["first"]
    record.append(2.0)
    train(these, 2, "second")
    assert_same(load("options").load(path)["trainings"]["first"], kept)


def test_the_second_ctrl_c_ends_the_program(tmp_path):
    these = trainings(tmp_path / "x.pt")
    press_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    assert these.stop.is_set()


def test_the_clock_counts_earlier_runs(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def wait(step):
        nonlocal now
        now += 5

    train(trainings(path), 3, "first", each=wait, until=2)
    now = 1000.0
    these = trainings(path, resume=True)
    began = these.clock()
    assert began == 1000
    train(these, 3, "first")
    assert these.clock() - began == 10
    train(these, 3, "second", each=wait)
    assert these.clock() - began == 25


def test_twenty_checkpoints_a_training(tmp_path, monkeypatch):
    written = []
    options = load("options")
    monkeypatch.setattr(options, "save", lambda path, state: written.append(kept_step(state)))
    for number, expected in (3, [1, 2, 3]), (45, [*range(3, 46, 3)]), (47, [*range(3, 46, 3), 47]):
        train(trainings(tmp_path / f"{number}.pt"), number)
        assert written == expected
        written.clear()


def kept_step(state):
    return state["trainings"]["training"]["step"]


# What the file can be.


OLD, NEW = {"step": 1, "x": torch.arange(1000)}, {"step": 2, "x": torch.arange(2000)}


class Ended(BaseException):
    """In place of SIGKILL."""


def end_by_an_error():
    raise Ended


@pytest.mark.parametrize(("moment", "expected"), [(1, OLD), (2, OLD), (3, NEW)])
def test_a_write_that_is_ended_leaves_a_whole_file(tmp_path, monkeypatch, moment, expected):
    """Also the file that it leaves beside it is no trouble."""
    options, path = load("options"), tmp_path / "x.pt"
    options.save(path, OLD)

    with monkeypatch.context() as patch:
        watch(Moments(moment, end_by_an_error), patch.setattr)
        with pytest.raises(Ended):
            options.save(path, NEW)
    assert_same(options.load(path), expected)
    options.save(path, NEW)
    assert_same(options.load(path), NEW)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


@pytest.fixture
def checkpoint(tmp_path):
    """That of three steps of a training, without options."""
    train(trainings(tmp_path / "x.pt"), 3)
    return tmp_path / "x.pt"


def refusal(path, **options):
    with pytest.raises(SystemExit) as stopped:
        trainings(path, resume=True, **options)
    return str(stopped.value)


def test_a_part_of_a_checkpoint_is_refused(checkpoint):
    content = checkpoint.read_bytes()
    for length in range(0, len(content), 997):
        checkpoint.write_bytes(content[:length])
        message = refusal(checkpoint)
        assert message.startswith(f"--resume: expected a checkpoint, got {checkpoint} (")
        assert message.endswith("); remove it to start anew")


def test_a_checkpoint_with_a_changed_bit_is_refused_or_read_as_it_was(checkpoint):
    """A change between the parts of the file does no harm."""
    options, content = load("options"), checkpoint.read_bytes()
    expected = options.load(checkpoint)
    draw, refused = random.Random(0), 0
    for _ in range(60):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        checkpoint.write_bytes(changed)
        try:
            found = options.load(checkpoint)
        except SystemExit:
            refused += 1
        else:
            assert_same(found, expected)
    assert refused > 30


def test_other_files_are_refused(checkpoint):
    checkpoint.write_text("import os")
    assert "(File is not a zip file); remove it" in refusal(checkpoint)
    torch.save(Path("x"), checkpoint)  # an object, which may run code
    assert "(UnpicklingError); remove it" in refusal(checkpoint)
    torch.save({"weight": torch.ones(2)}, checkpoint)
    assert "expected the options of" in refusal(checkpoint)


def test_what_is_written_has_no_objects(checkpoint):
    """Only what `weights_only=True` reads without any class being allowed."""
    assert torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint) == []


def test_other_options_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    images = torch.ones(2, 3)
    train(trainings(path, steps=3, seed=0, data=images, json=Path("a.json")), 3)
    trainings(path, resume=True, steps=3, seed=0, data=images, json=Path("b.json"))
    expected = (
        f"--resume: expected the options of {path}, seed 0, got seed 1; write the same options, or "
        "--checkpoint ANOTHER_FILE"
    )
    assert refusal(path, steps=3, seed=1, data=images) == expected
    assert "data (2, 3) with the sum 6, got data (2, 3) with the sum 12" in refusal(
        path, steps=3, seed=0, data=2 * images
    )


def test_a_file_that_is_there_is_not_replaced(checkpoint):
    with pytest.raises(SystemExit, match=r"expected a new file, got .*x\.pt, .*add --resume"):
        trainings(checkpoint)


def test_a_resume_needs_a_file():
    assert refusal(None) == ("--resume: expected a checkpoint, got none; add --checkpoint FILE")


def test_the_options_of_a_checkpoint(tmp_path, capsys):
    parser = load("options").option_parser("", steps=10, out="x.png")
    assert parser.parse_args([]).checkpoint is None
    with pytest.raises(SystemExit):
        parser.parse_args(["--checkpoint", str(tmp_path / "none" / "x.pt")])
    assert "expected a name, in a folder that exists, got" in capsys.readouterr().err
