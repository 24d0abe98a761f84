# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""NUTS on one relaxed site of three categories at a low temperature, and reparametrisations of it.

    python benchmarks/nuts.py --threads 1                # ten minutes
    python benchmarks/nuts.py --draws 100                # two minutes
    python benchmarks/nuts.py --out nuts.json

The model: z from a `RelaxedCategorical` at temperature 0.1, and an observation from a normal
distribution whose mean is linear in z; two chains. Unchanged, the site moves on the simplex by
stick-breaking. In logit space it is an `ExpRelaxedCategorical`. Its noise is that of
`NoiseReparam`. Printed are the time, the smallest effective sample size, the largest r_hat, and the
largest error of the mean of z in standard errors. The exact mean comes from a million draws of the
prior, weighted by their likelihood.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from turns import option_parser, read_options, write

from pyro_gumbel import ExpRelaxedCategorical, NoiseReparam, RelaxedCategorical

LOGITS = torch.tensor([0.5, 0.0, -0.5])
EFFECTS = torch.tensor([0.0, 1.0, 2.0])
OBSERVED = torch.tensor(1.2)


def prior(options: argparse.Namespace, dtype: torch.dtype) -> RelaxedCategorical:
    return RelaxedCategorical(options.temperature, logits=LOGITS.to(dtype))


def log_likelihood(z: Tensor) -> Tensor:
    return dist.Normal(z @ EFFECTS.to(z), 1.0).log_prob(OBSERVED.to(z))


def model(distribution: Any, value: Callable[[Tensor], Tensor] = lambda z: z) -> Tensor:
    z = value(pyro.sample("z", distribution))
    pyro.factor("x", log_likelihood(z))
    return z


def unchanged(relaxed: RelaxedCategorical) -> tuple[Any, str, Callable[[Tensor], Tensor]]:
    return lambda: model(relaxed), "z", lambda z: z


def in_logit_space(relaxed: RelaxedCategorical) -> tuple[Any, str, Callable[[Tensor], Tensor]]:
    logs = ExpRelaxedCategorical(relaxed.temperature, logits=relaxed.logits)
    return lambda: model(logs, torch.exp), "z", torch.exp


def through_noise(relaxed: RelaxedCategorical) -> tuple[Any, str, Callable[[Tensor], Tensor]]:
    moved = poutine.reparam(lambda: model(relaxed), config={"z": NoiseReparam()})
    return moved, "z_noise", lambda noise: relaxed.link(relaxed.logits + noise, relaxed.temperature)


def pyros_class(relaxed: RelaxedCategorical) -> tuple[Any, str, Callable[[Tensor], Tensor]]:
    theirs = dist.RelaxedOneHotCategorical(relaxed.temperature, logits=relaxed.logits)
    return lambda: model(theirs), "z", lambda z: z


def measure(way: Any, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, float]:
    relaxed = prior(options, dtype)
    posterior, site, value = way(relaxed)
    start = time.perf_counter()
    chains = []
    for seed in range(options.repeats):
        pyro.set_rng_seed(seed)
        sampler = MCMC(NUTS(posterior), options.draws, options.draws // 2, disable_progbar=True)
        sampler.run()
        chains.append(value(sampler.get_samples()[site]))
    seconds = time.perf_counter() - start
    draws = torch.stack(chains)
    effective = effective_sample_size(draws, 0, 1)
    error = draws.std((0, 1)) / effective.sqrt()
    return {
        "seconds": seconds,
        "effective sample size": effective.min().item(),
        "r_hat": split_gelman_rubin(draws, 0, 1).max().item(),
        "standard errors": ((draws.mean((0, 1)) - exact_mean(options)) / error).abs().max().item(),
    }


def exact_mean(options: argparse.Namespace) -> Tensor:
    z = prior(options, torch.float64).sample((1_000_000,))
    weight = log_likelihood(z).softmax(0)
    return weight @ z


def main() -> None:
    parser = option_parser(__doc__, repeats=2)  # chains
    add = parser.add_argument
    add("--draws", type=int, default=400, help="of each chain (default: 400)")
    add("--temperature", type=float, default=0.1, help="default: 0.1")
    options = read_options(parser)
    results = {}
    for way in (through_noise, in_logit_space, unchanged, pyros_class):
        for dtype in (torch.float32, torch.float64):
            name = f"{way.__name__.replace('_', ' ')}, {str(dtype).removeprefix('torch.')}"
            row = results[name] = measure(way, dtype, options)
            rate = row["effective sample size"] / row["seconds"]
            print(
                f"| {name} | {row['seconds']:.0f} | {row['effective sample size']:.0f} "
                f"| {rate:.2g} | {row['r_hat']:.3f} | {row['standard errors']:.1f} |",
                flush=True,
            )
    write(options, results)


if __name__ == "__main__":
    main()
