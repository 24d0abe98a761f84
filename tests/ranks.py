# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What the ranks of a test do, as a script that torchrun starts.

python tests/ranks.py gradients FILE                   gradients, batches and draws of all ranks
python tests/ranks.py dying EXAMPLE STEP FILE OPTIONS  an example whose rank 1 is killed at a step
python tests/ranks.py leaving EXAMPLE OPTIONS          an example whose rank 0 is done last
"""

import copy
import importlib
import os
import signal
import sys
import time
from pathlib import Path

import pyro
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

EXAMPLES = Path(__file__).parent.parent / "examples"
TEMPERATURE = 0.7
SEED = 3


def gradients(file):
    """Of both precisions: the parameters, and what each rank has."""
    example = importlib.import_module("distributed_vae")
    pyro.settings.set(module_local_params=True)
    torch.set_num_threads(1)
    device = example.join_the_ranks()
    found = {}
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        images = example.digits(SEED)[0].flatten(1)
        training = example.Training(images, SEED)
        training.elbo.zero_grad()
        batch = next(example.batches(images, SEED))
        training.elbo(batch, TEMPERATURE).backward()
        mine = {
            "batch": batch,
            "gradients": {name: p.grad for name, p in training.vae.named_parameters()},
            "own seed": draws(training.vae, images),
            "sharded": sharded_gradients(example, training.vae, batch, len(images)),
        }
        pyro.set_rng_seed(SEED)
        mine["same seed"] = draws(training.vae, images)
        ranks = [None] * distributed.get_world_size()
        distributed.all_gather_object(ranks, mine)
        found[str(dtype)] = {"parameters": training.vae.state_dict(), "ranks": ranks}
    if example.is_first():
        torch.save(found, file)
    example.leave_the_ranks(device)


def sharded_gradients(example, vae, batch, number):
    """Of a copy whose networks are sharded."""
    copied = copy.deepcopy(vae)
    fully_shard(copied.encoder)
    fully_shard(copied.decoder)
    pyro.set_rng_seed(SEED + distributed.get_rank())
    copied.zero_grad()
    example.elbo_module(copied, number)(batch, TEMPERATURE).backward()
    return {name: p.grad.full_tensor() for name, p in copied.named_parameters()}


@torch.no_grad()
def draws(vae, images):
    """The same images on all ranks."""
    return vae.posterior(images[:50]).sample()


def dying(script, step, file, *options):
    """Rank 1 is killed at the start of a step, and leaves the time in a file."""
    example = importlib.import_module(script)
    schedule = example.temperature_at

    def temperature_at(now, *others):
        if now == int(step) and os.environ["RANK"] == "1":
            Path(file).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return schedule(now, *others)

    example.temperature_at = temperature_at
    sys.argv = [script, *options]
    example.main()


def leaving(script, *options):
    """Rank 0 leaves the time of its last work in `drawn`, and the others that of their end."""
    example = importlib.import_module(script)
    draw = example.draw

    def draw_slowly(*arguments):
        time.sleep(2)
        draw(*arguments)
        Path("drawn").write_text(str(time.time()))

    example.draw = draw_slowly
    sys.argv = [script, *options]
    example.main()
    if os.environ["RANK"] != "0":
        Path("left").write_text(str(time.time()))


if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLES))
    {"gradients": gradients, "dying": dying, "leaving": leaving}[sys.argv[1]](*sys.argv[2:])
