# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The examples of data parallel training, on several processes of this machine."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pyro
import pytest
import torch
from torch import distributed

from tests.ranks import SEED, TEMPERATURE
from tests.test_examples import EXAMPLES, ROOT, assert_picture, environment, held_out_elbo, load
from tests.test_readme import run_blocks

pytestmark = pytest.mark.cpu(reason="gloo on CPUs")

SLOW = pytest.mark.slow
RANKS = ROOT / "tests" / "ranks.py"
LOOPBACK = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
PATIENCE = 30  # seconds from the death of a rank to the end of the run; it takes about one


def torchrun(ranks, script, *options):
    """The command that starts a script on some ranks of this machine, at a free port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    places = ["--local-addr", "127.0.0.1", "--nproc-per-node", ranks]
    return [*launcher, *places, script, *options]


class Run:
    """A command and all the processes that it starts. None of them outlives it."""

    def __init__(self, folder, command):
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env={
                **environment(),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": LOOPBACK,
                "PYTHONWARNINGS": "error",
                "PYTHONUNBUFFERED": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """torchrun ends its ranks, which have sessions of their own, when it is told to end."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdout.close()
        self.process.stderr.close()

    def end(self):
        output, errors = self.process.communicate(timeout=300)
        return subprocess.CompletedProcess(
            self.process.args, self.process.returncode, output, errors
        )


def run(folder, command):
    """Run a command to its end."""
    with Run(folder, command) as started:
        return started.end()


def succeeded(folder, command):
    done = run(folder, command)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys):
    """What runs an example in this process, which is then the only rank."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)

    def main(script, *options):
        monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
        load(script).main()
        return capsys.readouterr().out

    with pyro.settings.context():
        yield main
    signal.signal(signal.SIGINT, handler)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def test_a_few_steps_of_one_process(tmp_path, run_here):
    output = run_here("distributed_vae", "--steps", 20, "--checkpoint", "x.pt")
    assert math.isfinite(held_out_elbo(output))
    assert "(360 images, 20 samples each)" in output
    assert_picture(tmp_path / "distributed_vae.png")
    state = torch.load(tmp_path / "x.pt", weights_only=True)["trainings"]["training"]
    assert state["done"] == len(state["curve"]["train"]) == 20
    again = run_here("distributed_vae", "--steps", 20, "--checkpoint", "x.pt", "--resume")
    assert held_out_elbo(again) == held_out_elbo(output)


def test_the_ranks_must_divide_the_batch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(sys, "argv", ["distributed_vae"])
    words = "expected a number of processes that divides the batch of 100 images, got 3"
    with pytest.raises(SystemExit, match=words):
        load("distributed_vae").parse_options()


@SLOW
def test_the_examples_of_many_devices_run(monkeypatch):
    """As the only rank. A point costs 118 nats without clusters, and 30.5 with the true ones."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    with pyro.settings.context():
        try:
            blocks = run_blocks(ROOT / "docs" / "many_devices.md")
            losses = [scope["elbo"](scope["data"]).item() / 1000 for scope in blocks]
        finally:
            distributed.destroy_process_group()
    assert len(losses) == 2
    assert max(losses) < 60


DTYPES = {torch.float64: 1e-10, torch.float32: 1e-6}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Parameters, batches, gradients and draws of two ranks, by precision."""
    folder = tmp_path_factory.mktemp("ranks")
    succeeded(folder, torchrun(2, RANKS, "gradients", "x.pt"))
    return torch.load(folder / "x.pt", weights_only=True)


@SLOW
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
def test_the_gradient_is_the_mean_over_ranks(two_ranks, dtype, tolerance):
    """Of one process, which computes each rank's part after that rank's seed.

    So it is with `fully_shard`. On CPUs torch 2.8 adds up those of float32, instead.
    """
    kinds = ["gradients", "sharded"] if dtype == torch.float64 else ["gradients"]
    example, found = load("distributed_vae"), two_ranks[str(dtype)]
    torch.set_default_dtype(dtype)
    images = example.digits(SEED)[0].flatten(1)
    vae = example.VAE(64, "categorical", example.SHAPE)
    vae.load_state_dict(found["parameters"])
    elbo = example.elbo_module(vae, len(images))
    for rank, own in enumerate(found["ranks"]):
        pyro.set_rng_seed(SEED + rank)
        (elbo(own["batch"], TEMPERATURE) / len(found["ranks"])).backward()
    for name, parameter in vae.named_parameters():
        bound = tolerance * parameter.grad.abs().max().item()
        for own in found["ranks"]:
            for kind in kinds:
                torch.testing.assert_close(own[kind][name], parameter.grad, rtol=0, atol=bound)


@SLOW
def test_the_ranks_have_parts_of_one_batch(two_ranks):
    example = load("distributed_vae")
    images = example.digits(SEED)[0].flatten(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    for rank, own in enumerate(two_ranks[str(torch.float32)]["ranks"]):
        torch.testing.assert_close(own["batch"], images[order[rank:100:2]])


@SLOW
def test_the_ranks_draw_different_noise(two_ranks):
    """And the same noise from the same seed."""
    first, second = two_ranks[str(torch.float32)]["ranks"]
    torch.testing.assert_close(first["same seed"], second["same seed"], rtol=0, atol=0)
    different = (first["own seed"] != second["own seed"]).any(-1)
    assert different.float().mean() > 0.5  # of variables with 8 categories


@SLOW
def test_four_ranks_train_as_one_does(tmp_path, run_here):
    options = "--steps", 600, "--seed", 0
    alone = held_out_elbo(run_here("distributed_vae", *options))
    done = succeeded(tmp_path, torchrun(4, EXAMPLES / "distributed_vae.py", *options))
    assert held_out_elbo(done.stdout) == pytest.approx(alone, abs=0.4)
    assert alone > -26  # of -44.5 before the training


def flat(state, path=""):
    """The leaves of a checkpoint, by their paths."""
    if isinstance(state, dict):
        state = state.items()
    elif isinstance(state, list | tuple):
        state = enumerate(state)
    else:
        return {path: state}
    return {k: v for key, value in state for k, v in flat(value, f"{path}/{key}").items()}


def assert_same(state, expected):
    """Two checkpoints, bit for bit."""
    state, expected = flat(state), flat(expected)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(state[name], value) if torch.is_tensor(value) else state[name] == value
        assert same, name


RESUMED = {"distributed_vae": [], "lightning_vae": ["--devices", 2]}


@SLOW
@pytest.mark.parametrize(("script", "devices"), RESUMED.items())
def test_a_killed_rank_ends_the_run_and_a_resume_goes_on(tmp_path, script, devices):
    if script == "lightning_vae":
        pytest.importorskip("lightning")
    options = ["--steps", 56, "--checkpoint", "x.pt"]
    died = run(tmp_path, torchrun(2, RANKS, "dying", script, 35, "died", *options))
    ended = time.time()
    assert died.returncode != 0
    assert "Signal 9 (SIGKILL) received by PID" in died.stderr
    assert ended - float((tmp_path / "died").read_text()) < PATIENCE
    example = EXAMPLES / f"{script}.py"
    resumed = succeeded(tmp_path, torchrun(2, example, *options, "--resume"))
    options[-1] = "y.pt"
    # Lightning starts its ranks by itself as well.
    own = [sys.executable, example, *options, *devices]
    whole = succeeded(tmp_path, own if devices else torchrun(2, example, *options))
    assert held_out_elbo(resumed.stdout) == held_out_elbo(whole.stdout)
    states = (torch.load(tmp_path / name, weights_only=True) for name in ("x.pt", "y.pt"))
    assert_same(*states)


@SLOW
@pytest.mark.parametrize("script", RESUMED)
def test_no_rank_leaves_before_the_others_are_done(tmp_path, script):
    """Python may abort a rank that ends right after a collective: see `leave_the_ranks`."""
    if script == "lightning_vae":
        pytest.importorskip("lightning")
    succeeded(tmp_path, torchrun(2, RANKS, "leaving", script, "--steps", 14))
    drawn, left = (float((tmp_path / name).read_text()) for name in ("drawn", "left"))
    assert left > drawn


@SLOW
def test_ctrl_c_keeps_what_is_there(tmp_path):
    """torchrun passes the signal on, and reports it as an error of its own."""
    options = ["--steps", 100_000, "--out", "x.png", "--checkpoint", "x.pt"]
    with Run(tmp_path, torchrun(2, EXAMPLES / "distributed_vae.py", *options)) as started:
        progress = ""
        while "ELBO" not in progress:  # until the bar shows a first step
            character = started.process.stderr.read(1)
            assert character, f"ended before training: {progress}"
            progress += character
        started.process.send_signal(signal.SIGINT)
        done = started.end()
    assert "SignalException" in done.stderr
    steps = int(re.search(r"stopped by Ctrl-C after (\d+) steps", done.stdout)[1])
    assert math.isfinite(held_out_elbo(done.stdout))
    assert_picture(tmp_path / "x.png")
    state = torch.load(tmp_path / "x.pt", weights_only=True)["trainings"]["training"]
    assert state["done"] == steps
