# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Many devices: the discrete VAE by torchrun
==========================================

The VAE of `digits_vae.py`, trained by several processes. Each has its part of every batch.

Usage::

    python examples/distributed_vae.py                         # one process
    torchrun --nproc-per-node 4 examples/distributed_vae.py    # four on this machine

On two machines, of which A can be reached from the other, run on each::

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint A:29500 \\
        examples/distributed_vae.py

With ``--checkpoint vae.pt`` rank 0 writes the state of the training to a file, and with
``--resume`` as many ranks go on from there. If a rank is killed, torchrun ends the others, with an
error. Ctrl-C ends the training early and keeps the result; torchrun then reports the signal as an
error.
"""

import argparse
import itertools
import math
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam
from torch.utils.data import DistributedSampler
from tqdm import tqdm

from digits_vae import (
    BATCH,
    EVALUATION_SAMPLES,
    LEARNING_RATE,
    VAE,
    Curve,
    digits,
    draw,
    temperature_at,
)
from options import (
    CHECKPOINTS,
    Trainings,
    described,
    option_parser,
    random_state,
    save,
    set_random_state,
    stop_at_ctrl_c,
)

# %%
# The model and the guide
# -----------------------
#
# Those of `digits_vae.py`, as modules: ``DistributedDataParallel`` wraps one. A batch is a part of
# all images, and the loss is scaled to all of them. So the mean over processes estimates it too.

SHAPE = 8, 8  # (variables, categories)
FLOOR = 0.5  # of the temperature


class Model(nn.Module):
    """Images from discrete variables.

    :param vae: the networks.
    :param number: of the images that a batch is a part of. The loss is scaled to all of them, so
        the mean over ranks is an estimate of it as well.
    """

    def __init__(self, vae: VAE, number: int) -> None:
        super().__init__()
        self.vae, self.number = vae, number

    def forward(self, images: Tensor, temperature: float) -> None:
        uniform = self.vae.discrete(logits=images.new_zeros(self.vae.shape))
        with pyro.plate("images", self.number, len(images)):
            latents = pyro.sample("latents", uniform.to_event(1))
            pixels = dist.Bernoulli(logits=self.vae.decode(latents), validate_args=False)
            pyro.sample("pixels", pixels.to_event(1), obs=images)


class Guide(nn.Module):
    """Discrete variables from images. The parameters are those of `Model`."""

    def __init__(self, vae: VAE, number: int) -> None:
        super().__init__()
        self.vae, self.number = vae, number

    def forward(self, images: Tensor, temperature: float) -> None:
        with pyro.plate("images", self.number, len(images)):
            pyro.sample("latents", self.vae.posterior(images, temperature))


def elbo_module(vae: VAE, number: int, samples: int = 1) -> nn.Module:
    """A module whose forward pass is the negative ELBO of `number` images."""
    # Of bound methods, as SVI takes them, this module would have no parameters.
    return TraceMeanField_ELBO(num_particles=samples)(Model(vae, number), Guide(vae, number))


@torch.no_grad()
def held_out_elbo(vae: VAE, images: Tensor, samples: int = 1) -> float:
    """The ELBO of the discrete model in nats an image."""
    any_temperature = 1.0  # the distribution of discrete samples does not depend on it
    loss = elbo_module(vae, len(images), samples)(images, any_temperature)
    return -loss.item() / len(images)


# %%
# The processes
# -------------
#
# The processes are called ranks. Each has a GPU of its own, or a CPU core where torch finds no GPU.

# How long a rank waits for the others: at the start, at each step, and at the end. A process that
# dies closes its connections, so that the others need not wait. A machine that vanishes does not.
TIMEOUT = timedelta(seconds=60)


def join_the_ranks() -> torch.device:
    """Join the processes that torchrun has started, or be the only one.

    :return: the device of this process.
    """
    alone = {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
    group = {} if "RANK" in os.environ else alone
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", timeout=TIMEOUT, **group)
        return device
    distributed.init_process_group("gloo", timeout=TIMEOUT, **group)
    return torch.device("cpu")


def leave_the_ranks(device: torch.device) -> None:
    """Wait until all ranks are done, and leave together.

    A thread of gloo may still hold the tensor of the last collective. If Python ends while that
    thread releases the tensor, the process is aborted, and torchrun ends the others.
    """
    distributed.barrier(device_ids=[device.index] if device.type == "cuda" else None)
    distributed.destroy_process_group()


# %%
# The gradient
# ------------
#
# ``DistributedDataParallel`` averages the gradients of Pyro's ELBO module over the ranks.


def parallel_elbo(vae: VAE, images: Tensor, seed: int) -> DistributedDataParallel:
    """The ELBO whose gradient is the mean over ranks. From here on each rank has its own noise."""
    elbo = elbo_module(vae, len(images))
    elbo(images[:2], 1.0)  # parameters that are made in the first run must be there to be wrapped
    parallel = DistributedDataParallel(elbo)
    # It orders the gradients as the first backward pass does. With that pass here a resumed run
    # adds them up in the same order, and so to the same last digit.
    parallel(images[:2], 1.0).backward()
    # The ranks must draw different noise. With
    #     pyro.set_rng_seed(seed)
    # on all ranks each would draw the same. Nothing would fail, but the errors of the ranks would
    # be alike, and the mean over ranks would have more noise.
    pyro.set_rng_seed(seed + distributed.get_rank())
    return parallel


# %%
# The data
# --------
#
# All ranks shuffle the images in the same order, and each takes its part.


def batches(images: Tensor, seed: int) -> Iterator[Tensor]:
    """The parts of this rank of all batches. An epoch's are parts of one permutation."""
    sampler = DistributedSampler(images, seed=seed, drop_last=True)
    size = BATCH // distributed.get_world_size()
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        order = torch.tensor(list(sampler))
        for number in range(len(order) // size):
            yield images[order[number * size : (number + 1) * size]]


# %%
# Training
# --------
#
# A step is the same on all ranks. Rank 0 alone evaluates, and writes the checkpoint.


class Training:
    """What a checkpoint keeps: the networks, the optimiser, the curve, and the number of steps."""

    def __init__(self, images: Tensor, seed: int) -> None:
        pyro.set_rng_seed(seed)
        self.vae = VAE(images.shape[1], "categorical", SHAPE).to(images.device)
        self.elbo = parallel_elbo(self.vae, images, seed)
        self.optimiser = Adam(self.elbo.parameters(), LEARNING_RATE)
        self.curve, self.done = Curve(), 0

    def step(self, batch: Tensor, temperature: float) -> Tensor:
        """The loss of this rank's part. The gradient is the mean over ranks."""
        loss = self.elbo(batch, temperature)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.done += 1
        return loss.detach()

    def save(self, options: argparse.Namespace) -> None:
        """Rank 0 writes what the ranks have in common, and the random state of each."""
        states: list[Any] | None = [None] * options.ranks if is_first() else None
        distributed.gather_object(random_state(), states)
        if is_first():
            state = {
                "parameters": self.vae.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "curve": vars(self.curve),
                "done": self.done,
                "random": states,
            }
            save(
                options.checkpoint,
                {"options": described(options), "trainings": {"training": state}},
            )

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from a checkpoint, if rank 0 has one. It tells the others."""
        told = [state]
        distributed.broadcast_object_list(told)
        if state := told[0]:
            self.vae.load_state_dict(state["parameters"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.curve, self.done = Curve(**state["curve"]), state["done"]
            set_random_state(state["random"][distributed.get_rank()])


def is_first() -> bool:
    """Whether this rank is the one that writes."""
    return distributed.get_rank() == 0


def train(
    training: Training,
    images: Tensor,
    held_out: Tensor,
    options: argparse.Namespace,
    stop: threading.Event,
) -> None:
    """Maximise the ELBO until the last step or the first Ctrl-C."""
    curve, done, steps = training.curve, training.done, options.steps
    ahead = itertools.islice(batches(images, options.seed), done, steps)
    shown = {"total": steps, "initial": done, "unit": "step", "disable": not is_first()}
    for step, batch in enumerate(bar := tqdm(ahead, "training", **shown), done + 1):
        temperature = temperature_at(step, steps, FLOOR)  # of the step: the same on all ranks
        loss, stopped = told_to_all(training.step(batch, temperature) / len(images), stop)
        curve.train.append(-loss)
        recent = np.mean(curve.train[-100:])
        bar.set_postfix_str(f"ELBO {recent:.2f}, temperature {temperature:.2f}", refresh=False)
        if is_first() and step % math.ceil(steps / 20) == 0:
            curve.test[step] = held_out_elbo(training.vae, held_out)
        last = stopped or step == steps
        if options.checkpoint and (last or step % math.ceil(steps / CHECKPOINTS) == 0):
            training.save(options)
        if stopped:
            bar.close()
            if is_first():
                print(f"stopped by Ctrl-C after {step} steps")
            break


def told_to_all(loss: Tensor, stop: threading.Event) -> tuple[float, bool]:
    """The mean loss, and whether any rank is to stop. All must stop after the same step."""
    both = torch.stack([loss, loss.new_tensor(float(stop.is_set()))])
    distributed.all_reduce(both)
    total, stops = both.tolist()
    return total / distributed.get_world_size(), stops > 0


# %%
# The program
# -----------
#
# On this page it is run by one process, for 1,000 steps.


def parse_options() -> argparse.Namespace:
    options = option_parser(__doc__, steps=5000, out="distributed_vae.png").parse_args()
    options.ranks = int(os.environ.get("WORLD_SIZE", 1))
    if BATCH % options.ranks:
        raise SystemExit(
            f"expected a number of processes that divides the batch of {BATCH} images, got "
            f"{options.ranks}; write e.g. torchrun --nproc-per-node 4"
        )
    return options


def main() -> None:
    options = parse_options()
    pyro.settings.set(module_local_params=True)  # parameters belong to modules, as DDP needs
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    state, stop = None, stop_at_ctrl_c()
    if os.environ.get("RANK", "0") == "0":
        trainings = Trainings(options)
        state, stop = trainings.saved("training"), trainings.stop
    pictures, unseen = digits(options.seed)
    device = join_the_ranks()
    images, held_out = pictures.flatten(1).to(device), unseen.flatten(1).to(device)
    training = Training(images, options.seed)
    training.restore(state)
    train(training, images, held_out, options, stop)
    if is_first():
        elbo = held_out_elbo(training.vae, held_out, EVALUATION_SAMPLES)
        print(
            f"held-out ELBO: {elbo:.2f} nats an image "
            f"({len(held_out)} images, {EVALUATION_SAMPLES} samples each)"
        )
        draw(options.out, training.vae.cpu(), unseen, training.curve)
        print(f"wrote {options.out}")
    leave_the_ranks(device)


if __name__ == "__main__":
    main()

# %%
# What to try next
# ----------------
#
# - ``torchrun --nproc-per-node 2 examples/distributed_vae.py``: two processes on this machine.
# - `lightning_vae.py`: the same by Lightning's Trainer.
