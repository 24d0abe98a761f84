# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The examples, run as a user runs them."""

import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for needed in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parent.parent
DIGITS_VAE = str(ROOT / "examples" / "digits_vae.py")


@pytest.fixture(scope="module")
def digits_vae():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("digits_vae", DIGITS_VAE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(*options):
    return [sys.executable, "-W", "error", DIGITS_VAE, *map(str, options)]


def environment():
    """The example imports the package that lies beside it, wherever it is run."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def run(folder, *options):
    """Run the example in `folder`, away from the repository."""
    return subprocess.run(
        command(*options),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def held_out_elbo(output):
    return float(re.search(r"^held-out ELBO: (\S+) nats an image", output, re.MULTILINE)[1])


def assert_picture(path):
    """`path` is a PNG file of more than a blank page."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 10_000


@pytest.mark.parametrize("soft", [[], ["--soft"]], ids=["hard", "soft"])
@pytest.mark.parametrize("latents", ["categorical", "bernoulli"])
def test_few_steps(tmp_path, latents, soft):
    picture = tmp_path / "x.png"
    done = run(tmp_path, "--steps", 20, "--latents", latents, *soft, "--out", picture)
    assert done.returncode == 0, done.stderr
    assert math.isfinite(held_out_elbo(done.stdout))
    assert "(360 images, 20 samples each)" in done.stdout
    assert_picture(picture)


def test_equal_seeds_give_equal_results(tmp_path):
    first, again = (run(tmp_path, "--steps", 2, "--seed", 3) for _ in range(2))
    assert held_out_elbo(first.stdout) == held_out_elbo(again.stdout)
    assert_picture(tmp_path / "digits_vae.png")


def write_archive(path, **changes):
    """A small archive of images of 5x7 pixels, with some of its arrays replaced or left out."""
    grey = np.random.default_rng(0).integers(0, 256, (50, 5, 7)).astype("uint8")
    arrays = {"x_train": grey[:40], "x_test": grey[40:], **changes}
    np.savez(path, **{name: images for name, images in arrays.items() if images is not None})


def test_own_images(tmp_path):
    write_archive(tmp_path / "own.npz")
    options = ["--variables", 3, "--categories", 4, "--temperature", 2, "--out", "own.png"]
    done = run(tmp_path, "--data", "own.npz", "--steps", 5, *options)
    assert done.returncode == 0, done.stderr
    assert math.isfinite(held_out_elbo(done.stdout))
    assert "(10 images, 20 samples each)" in done.stdout
    assert_picture(tmp_path / "own.png")


def test_ctrl_c_keeps_what_is_there(tmp_path):
    process = subprocess.Popen(
        command("--steps", 10_000_000, "--out", "x.png"),
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

BAD_OPTIONS = [
    (["--steps", "0"], "argument --steps: " + WHOLE.format(1, 0, 5000)),
    (["--steps", "many"], "argument --steps: " + WHOLE.format(1, "many", 5000)),
    (["--seed", "-1"], "argument --seed: " + WHOLE.format(0, -1, 0)),
    (["--variables", "0"], "argument --variables: " + WHOLE.format(1, 0, 8)),
    (["--categories", "1"], "argument --categories: " + WHOLE.format(2, 1, 8)),
    (["--temperature", "-1"], "expected a number above 0, got '-1'; write e.g. 0.5"),
    (["--temperature", "nan"], "expected a number above 0, got 'nan'; write e.g. 0.5"),
    (["--temperature", "cold"], "expected a number above 0, got 'cold'; write e.g. 0.5"),
    (["--latents", "gaussian"], "argument --latents: invalid choice: 'gaussian'"),
    (["--out", "nowhere/x.png"], "in a folder that exists, got 'nowhere/x.png'; write e.g."),
    (["--out", "x"], "expected a name that ends in .png, in a folder that exists, got 'x'"),
    (["--data", "none.npz"], "got 'none.npz' ([Errno 2] No such file or directory: 'none.npz')"),
    (["--data", "text.npz"], "an .npz file with arrays x_train and x_test, got 'text.npz'"),
    (["--data", "array.npy"], "an .npz file with arrays x_train and x_test, got 'array.npy'"),
    (["--data", "no_test.npz"], "x_test is not a file in the archive"),
    (["--data", "no_test.npz"], "write it with numpy.savez('images.npz', x_train=..., x_test=...)"),
    (["--data", "floats.npz"], ARRAYS + ", with one height and width, got float64 (40, 5, 7)"),
    (["--data", "floats.npz"], "write (255 * grey).astype('uint8') for grey values in [0, 1]"),
    (["--data", "flat.npz"], "got uint8 (10, 35) for x_test"),
    (["--data", "unlike.npz"], "got uint8 (10, 7, 5) for x_test"),
    (["--data", "empty.npz"], "got uint8 (0, 5, 7) for x_train"),
]


NAMES = [" ".join(options) for options, _ in BAD_OPTIONS]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS, ids=NAMES)
def test_bad_options(tmp_path, monkeypatch, capsys, digits_vae, options, words):
    monkeypatch.chdir(tmp_path)
    Path("text.npz").write_text("no archive")
    np.save("array.npy", np.zeros((40, 5, 7), "uint8"))
    write_archive("no_test.npz", x_test=None)
    write_archive("floats.npz", x_train=np.zeros((40, 5, 7)))
    write_archive("flat.npz", x_test=np.zeros((10, 35), "uint8"))
    write_archive("unlike.npz", x_test=np.zeros((10, 7, 5), "uint8"))
    write_archive("empty.npz", x_train=np.zeros((0, 5, 7), "uint8"))
    monkeypatch.setattr(sys, "argv", ["digits_vae.py", *options])
    with pytest.raises(SystemExit) as stopped:
        digits_vae.parse_options()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def independent_pixels_elbo(train_images, test_images):
    """The log likelihood of the model that knows the mean of every pixel, in nats an image."""
    mean = (train_images.sum(0) + 0.5) / (len(train_images) + 1)
    terms = test_images * mean.log() + (1 - test_images) * (1 - mean).log()
    return terms.sum((1, 2)).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("latents", ["categorical", "bernoulli"])
def test_the_latent_variables_are_used(tmp_path, digits_vae, latents):
    """An image costs 2 nats less than without them, and than before the training."""
    train_images, test_images = digits_vae.digits(seed=0)
    untrained = digits_vae.VAE(64, "categorical", (8, 8))
    without = independent_pixels_elbo(train_images, test_images)
    before = digits_vae.discrete_elbo(untrained, test_images.flatten(1))
    done = run(tmp_path, "--seed", 0, "--latents", latents)
    assert held_out_elbo(done.stdout) > max(without, before) + 2
