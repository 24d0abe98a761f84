# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The exact KL divergence of two relaxed distributions against its Monte Carlo estimate.

    python benchmarks/divergence.py                      # 128 x 20, of 10 categories
    python benchmarks/divergence.py --out divergence.json

The work of one round: KL(q || p) of a batch, where p has equal logits as a prior does, and its
gradient in the logits of q. The estimate is log q - log p at one draw of q, as in an ELBO. Printed
are the times; the standard deviation of the estimate, summed over the distributions of one data
point; how many draws cost as much as the exact value; the error of the exact value in float32
against float64; and how many draws would be as accurate. The contestants take turns in one process.
Ratios are of medians.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from turns import medians, option_parser, read_options, write

from pyro_gumbel import RelaxedBernoulli, RelaxedCategorical, RelaxedSubset

TEMPERATURES = [(0.5, 0.5), (2 / 3, 0.5), (0.1, 0.5)]  # of q and p


def distributions(family: str, logits: Tensor, temperature: float) -> Any:
    if family == "binary":
        return RelaxedBernoulli(temperature, logits=logits)
    if family == "subset":
        return RelaxedSubset(temperature, logits.shape[-1] // 2, logits=logits)
    return RelaxedCategorical(temperature, logits=logits)


def exact(q: Any, p: Any) -> Tensor:
    return kl_divergence(q, p).sum(-1)


def estimate(q: Any, p: Any) -> Tensor:
    value = q.rsample()
    return (q.log_prob(value) - p.log_prob(value)).sum(-1)


def compare(
    family: str, shape: list[int], repeats: int, tau_q: float, tau_p: float
) -> dict[str, float]:
    logits = torch.randn(shape).requires_grad_()

    def pair(dtype: torch.dtype) -> tuple[Any, Any]:
        x = logits.to(dtype)
        return distributions(family, x, tau_q), distributions(family, torch.zeros_like(x), tau_p)

    def work(divergence: Any) -> None:
        torch.autograd.grad(divergence(*pair(torch.float32)).sum(), logits)

    taken = medians({f.__name__: partial(work, f) for f in (exact, estimate)}, repeats)
    with torch.no_grad():
        truth = exact(*pair(torch.float64))
        error = (exact(*pair(torch.float32)) - truth).square().mean().sqrt().item()
        draws = torch.stack([estimate(*pair(torch.float32)) for _ in range(200)])
    deviation = draws.var(0).mean().sqrt().item()
    return {
        "exact, ms": 1e3 * taken["exact"],
        "one draw, ms": 1e3 * taken["estimate"],
        "draws at the same cost": taken["exact"] / taken["estimate"],
        "value, nats": truth.mean().item(),
        "deviation of one draw": deviation,
        "error of the exact value": error,
        "draws to come as near": (deviation / error) ** 2 if error else math.inf,
    }


def main() -> None:
    parser = option_parser(__doc__, repeats=20)
    add = parser.add_argument
    add(
        "--batch", type=int, nargs=2, default=[128, 20], help="data points, distributions per point"
    )
    add("--k", type=int, default=10, help="categories (default: 10)")
    options = read_options(parser)
    results = {}
    for family in ("categorical", "subset", "binary"):
        shape = [*options.batch, options.k] if family != "binary" else options.batch
        for tau_q, tau_p in TEMPERATURES:
            name = f"{family}, temperatures {tau_q:.3g} and {tau_p:.3g}"
            results[name] = compare(family, shape, options.repeats, tau_q, tau_p)
            print(name)
            for what, number in results[name].items():
                print(f"    {what:28s}{number:12.4g}")
    write(options, {"results": results})


if __name__ == "__main__":
    main()
