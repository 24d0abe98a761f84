# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Many devices: the discrete VAE by Lightning
===========================================

The VAE of `distributed_vae.py`, trained by Lightning's Trainer. Needs ``pip install lightning``.

Usage::

    python examples/lightning_vae.py                       # one process
    python examples/lightning_vae.py --devices 4           # four on this machine
    torchrun --nproc-per-node 4 examples/lightning_vae.py  # the same

With ``--checkpoint vae.ckpt`` rank 0 writes the state at the end of an epoch, and with ``--resume``
as many ranks go on from there. Ctrl-C ends the training after the epoch and keeps the result.
"""

import argparse
import logging
import math
import os
import threading
import warnings
from typing import Any

import pyro
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed
from torch.optim import Adam
from torch.utils.data import DataLoader, DistributedSampler

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
from distributed_vae import FLOOR, SHAPE, TIMEOUT, elbo_module, held_out_elbo
from options import (
    CHECKPOINTS,
    Trainings,
    described,
    option_parser,
    random_state,
    set_random_state,
    whole_number,
)

# %%
# The module
# ----------
#
# A ``LightningModule`` has the ELBO, the optimiser and the batches. The training has whole epochs,
# of 14 steps. Three things are left to the module: noise of its own for each rank, the temperature,
# and the random state of each rank in a checkpoint.


class LightningVAE(LightningModule):
    """The ELBO of a VAE, for a Trainer."""

    def __init__(
        self, images: Tensor, held_out: Tensor, options: argparse.Namespace, stop: threading.Event
    ) -> None:
        super().__init__()
        self.images, self.held_out, self.options = images, held_out, options
        self.epochs = math.ceil(options.steps / (len(images) // BATCH))
        self.elbo = elbo_module(VAE(images.shape[1], "categorical", SHAPE), len(images))
        self.elbo(images[:2], 1.0)  # parameters that are made in the first run must be there
        self.curve, self.stop, self.stopped = Curve(), stop, False
        self.random_states: list[Any] = []

    @property
    def vae(self) -> VAE:
        return self.elbo.guide.vae

    def configure_optimizers(self) -> Adam:
        return Adam(self.parameters(), LEARNING_RATE)

    def train_dataloader(self) -> DataLoader:
        """The parts of this rank of all batches. An epoch's are parts of one permutation."""
        ranks, rank = self.trainer.world_size, self.global_rank
        sampler = DistributedSampler(
            self.images, ranks, rank, seed=self.options.seed, drop_last=True
        )
        # Its own generator, since a loader draws a number at the start of each epoch.
        generator = torch.Generator()
        size = BATCH // ranks
        return DataLoader(self.images, size, sampler=sampler, drop_last=True, generator=generator)

    def on_train_start(self) -> None:
        """From here on each rank has its own noise.

        Lightning leaves the seed to you. Processes with the same seed draw the same noise, and so
        do those without one, since torch starts each with the same number.
        """
        if self.random_states:
            set_random_state(self.random_states[self.global_rank])
        else:
            pyro.set_rng_seed(self.options.seed + self.global_rank)

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        # A function of the step, so it is the same on all ranks.
        temperature = temperature_at(self.global_step + 1, self.options.steps, FLOOR)
        loss = self.elbo(batch, temperature)
        self.curve.train.append(-loss.item() / len(self.images))  # of this rank's part
        self.log("ELBO", self.curve.train[-1], prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        stopped = self.trainer.strategy.reduce_boolean_decision(self.stop.is_set(), all=False)
        self.trainer.should_stop = self.stopped = stopped
        if self.global_rank == 0:
            held_out = self.held_out.to(self.device)
            self.curve.test[self.global_step] = held_out_elbo(self.vae, held_out)
        epoch = self.current_epoch + 1
        last = stopped or epoch == self.epochs
        if self.options.checkpoint and (last or epoch % math.ceil(self.epochs / CHECKPOINTS) == 0):
            self.trainer.save_checkpoint(self.options.checkpoint)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not save: the random state of each rank."""
        states = [random_state()]
        if self.trainer.world_size > 1:
            states *= self.trainer.world_size
            distributed.all_gather_object(states, random_state())
        own = {"random": states, "curve": vars(self.curve)}
        checkpoint |= {"options": described(self.options), "trainings": {"training": own}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = checkpoint["trainings"]["training"]
        self.random_states, self.curve = own["random"], Curve(**own["curve"])


# %%
# The program
# -----------
#
# Each process has a GPU of its own, or a CPU core where torch finds no GPU. On this page there is
# one process.


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=5000, out="lightning_vae.png")
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # what torchrun has started
    parser.add_argument(
        "--devices", type=whole_number(1, 4), default=devices, help="of this machine (default: 1)"
    )
    parser.add_argument(
        "--machines", type=whole_number(1, 2), default=1, help="of as many devices (default: 1)"
    )
    options = parser.parse_args()
    ranks = options.devices * options.machines
    if BATCH % ranks:
        raise SystemExit(
            f"expected a number of processes that divides the batch of {BATCH} images, got "
            f"{ranks}; write e.g. --devices 4"
        )
    return options


def quiet() -> None:
    """Hide Lightning's hints, and warnings about its own code."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # The images are in memory, so loading them needs no further processes.
    warnings.filterwarnings("ignore", "The 'train_dataloader' does not have many workers")


def main() -> None:
    options = parse_options()
    quiet()
    pyro.settings.set(module_local_params=True)  # parameters belong to modules, as DDP needs
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    trainings = Trainings(options)
    path = options.checkpoint if trainings.saved("training") else None
    pictures, unseen = digits(options.seed)
    images, held_out = pictures.flatten(1), unseen.flatten(1)
    pyro.set_rng_seed(options.seed)
    module = LightningVAE(images, held_out, options, trainings.stop)
    trainer = Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=options.devices,
        num_nodes=options.machines,
        strategy=DDPStrategy(timeout=TIMEOUT) if options.devices * options.machines > 1 else "auto",
        max_epochs=module.epochs,
        use_distributed_sampler=False,  # `train_dataloader` has one
        logger=False,
        enable_checkpointing=False,  # `on_train_epoch_end` saves
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=path, weights_only=True)
    if trainer.is_global_zero:
        if module.stopped:
            print(f"stopped by Ctrl-C after {trainer.global_step} steps")
        elbo = held_out_elbo(module.vae, held_out, EVALUATION_SAMPLES)
        print(
            f"held-out ELBO: {elbo:.2f} nats an image "
            f"({len(held_out)} images, {EVALUATION_SAMPLES} samples each)"
        )
        draw(options.out, module.vae, unseen, module.curve)
        print(f"wrote {options.out}")
    trainer.strategy.barrier()  # all leave together, as in `leave_the_ranks` of the other example


if __name__ == "__main__":
    main()

# %%
# What to try next
# ----------------
#
# - ``--devices 2``: two processes on this machine.
# - ``--checkpoint vae.ckpt``, and Ctrl-C during the training. With ``--resume`` it goes on.
