# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""One line, beside enumeration
============================

Two models with plain discrete sites: exact enumeration against one line of relaxation.

Usage::

    python examples/relax_a_model.py                  # two minutes
    python examples/relax_a_model.py --most 20        # ten seconds

The mixture is trained for four times ``--steps``. Ctrl-C ends the training early and keeps the
result.
"""

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import ELBO, SVI, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_value
from pyro.ops.indexing import Vindex
from pyro.optim import ClippedAdam
from sklearn.datasets import load_wine
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from options import Trainings, option_parser, whole_number
from pyro_gumbel import AutoRelaxed, relaxed

# %%
# The data
# --------
#
# Two data sets. The first is the chemistry of 178 wines, standardised, of three cultivars. The
# second is simulated: each of n binary causes adds its effects to some of 2 n observed numbers.


def wines() -> tuple[Tensor, np.ndarray]:
    """The chemistry, standardised, and the cultivar."""
    x, cultivar = load_wine(return_X_y=True)
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32), cultivar


def observed_causes(number: int) -> tuple[Tensor, Tensor]:
    """An observation of 2 n numbers with unit noise, and effects of about 4 causes on each."""
    effects = torch.randn(number, 2 * number)
    effects = effects * torch.bernoulli(torch.full_like(effects, min(1.0, 4 / number)))
    bits = torch.bernoulli(torch.full((number,), 0.5))
    return bits @ effects + torch.randn(2 * number), effects


# %%
# The models
# ----------
#
# Both are plain Pyro. The first is a mixture of three clusters. Its sites are independent given its
# parameters, so enumeration is cheap. In the second the causes of one observation are not
# independent, and n of them have 2^n states.

CLUSTERS = 3


def mixture(x: Tensor) -> None:
    means = pyro.sample("means", dist.Normal(torch.zeros(CLUSTERS, x.shape[-1]), 1.0).to_event(2))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    with pyro.plate("wines", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(CLUSTERS)))
        mean = Vindex(means)[..., z, :]  # means[z], for every particle its own means
        pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def causes(x: Tensor, effects: Tensor) -> None:
    total = torch.zeros(())
    for i, effect in enumerate(effects):
        bit = pyro.sample(f"z{i}", dist.Bernoulli(0.5))
        total = total + bit.unsqueeze(-1) * effect
    pyro.sample("x", dist.Normal(total, 1.0).to_event(1), obs=x)


# %%
# Training
# --------
#
# A training is SVI with a learning rate that decreases. A result has the posterior of each site,
# the ELBO, and the time.

PARTICLES = 16
EVALUATION_PARTICLES = 1000


class Result(NamedTuple):
    """The probabilities of each site's values, the ELBO in nats, and the seconds."""

    posterior: Tensor
    elbo: float
    seconds: float


class Run(NamedTuple):
    """What all trainings share."""

    steps: int
    trainings: Trainings


def train(
    run: Run,
    what: str,
    steps: int,
    model: object,
    guide: object,
    elbo: ELBO,
    *data: Tensor,
    rate_of_logits: float = 0.3,
) -> None:
    def rate(parameter: str) -> dict[str, float]:
        first = rate_of_logits if "logits" in parameter else 0.1
        return {"lr": first, "lrd": 0.03 ** (1 / steps)}

    svi = SVI(model, guide, ClippedAdam(rate), elbo)
    for _, bar in run.trainings.steps(steps, svi, *data, what=what):
        bar.set_postfix_str(f"ELBO {-svi.step(*data):.1f}", refresh=False)


def many(particles: int, plates: int) -> dict[str, object]:
    return {"num_particles": particles, "vectorize_particles": True, "max_plate_nesting": plates}


# %%
# The mixture, in two ways
# ------------------------
#
# The means and the scale have a normal guide, which starts at three wines far from each other.
# Enumeration sums over the clusters of each wine. The added line of the relaxation is
# ``relaxed(mixture)``, and `AutoRelaxed` is the guide of the clusters. `mixture.py` has one-hot
# vectors in place of these integers.


def guide_of_parameters(model: object, x: Tensor) -> AutoNormal:
    """A guide of the continuous sites, which starts at clusters around three distant wines."""
    start = {"means": x[distant(x)], "scale": torch.ones(x.shape[-1])}
    return AutoNormal(poutine.block(model, hide=["z"]), init_loc_fn=init_to_value(values=start))


def distant(x: Tensor) -> list[int]:
    """The wine nearest to the mean, then twice the wine farthest from those chosen so far."""
    chosen = [int(x.norm(dim=-1).argmin())]
    while len(chosen) < CLUSTERS:
        chosen.append(int(torch.cdist(x, x[chosen]).amin(-1).argmax()))
    return chosen


def enumerated_mixture(run: Run, x: Tensor) -> Result:
    start = run.trainings.clock()
    pyro.clear_param_store()
    guide = guide_of_parameters(mixture, x)
    model = config_enumerate(mixture)
    train(run, "enumerated", 4 * run.steps, model, guide, TraceEnum_ELBO(**many(PARTICLES, 1)), x)
    elbo = -TraceEnum_ELBO(**many(EVALUATION_PARTICLES, 1)).loss(model, guide, x)
    at_median = poutine.condition(model, data=guide.median())
    marginals = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(at_median, nothing, x)
    return Result(marginals["z"].probs.detach(), elbo, run.trainings.clock() - start)


def relaxed_mixture(run: Run, x: Tensor) -> Result:
    start = run.trainings.clock()
    pyro.clear_param_store()
    model = relaxed(mixture)  # the line
    guide = AutoGuideList(model)
    guide.append(guide_of_parameters(model, x))
    guide.append(AutoRelaxed(poutine.block(model, expose=["z"])))
    objective = TraceMeanField_ELBO(**many(PARTICLES, 1))
    # The means start at single wines, so the logits are as slow as the means: a wine that is sure
    # of its cluster too early does not leave it. From a better start, as that of k-means in
    # `mixture.py`, the logits should be 6 times faster.
    train(run, "relaxed", 4 * run.steps, model, guide, objective, x, rate_of_logits=0.1)
    elbo = -TraceMeanField_ELBO(**many(EVALUATION_PARTICLES, 1)).loss(model, guide, x)
    return Result(guide[1].distribution("z").probs.detach(), elbo, run.trainings.clock() - start)


# %%
# The causes, in two ways
# -----------------------
#
# Enumeration is exact here, without a training, as long as the table of all states fits into
# memory. The relaxation has the same line as before, and a guide of independent causes.


def enumerated_causes(x: Tensor, effects: Tensor) -> Result:
    """The exact posterior and the log evidence: there is nothing to train."""
    start = time.perf_counter()
    model, elbo = config_enumerate(causes), TraceEnum_ELBO(max_plate_nesting=0)
    evidence = -elbo.loss(model, nothing, x, effects)
    marginals = elbo.compute_marginals(model, nothing, x, effects)
    posterior = torch.stack([marginals[f"z{i}"].probs.detach() for i in range(len(effects))])
    return Result(posterior, evidence, time.perf_counter() - start)


def relaxed_causes(run: Run, x: Tensor, effects: Tensor) -> Result:
    start = run.trainings.clock()
    pyro.clear_param_store()
    model = relaxed(causes)  # the line
    guide = AutoRelaxed(model)
    what = f"{len(effects)} causes"
    objective = TraceMeanField_ELBO(**many(PARTICLES, 0))
    train(run, what, run.steps, model, guide, objective, x, effects)
    elbo = -TraceMeanField_ELBO(**many(EVALUATION_PARTICLES, 0)).loss(model, guide, x, effects)
    posterior = torch.stack(
        [guide.distribution(f"z{i}").probs.detach() for i in range(len(effects))]
    )
    return Result(posterior, elbo, run.trainings.clock() - start)


def nothing(*_: Tensor) -> None:
    """The guide if all sites are enumerated."""


# %%
# The tables
# ----------
#
# Clusters have no order, so those of both fits are matched first.

SIZES = [2, 5, 10, 20, 50, 100, 200]  # numbers of causes
LARGEST_TABLE = 2**26  # numbers in an enumeration, a quarter of a gigabyte


def compare_wines(run: Run) -> tuple[Result, Result]:
    x, cultivar = wines()
    exact = enumerated_mixture(run, x)
    found = with_names_of(exact, relaxed_mixture(run, x))
    print(f"{len(x)} wines in {CLUSTERS} clusters       enumerated   relaxed")
    for label, digits, values in (
        ("ELBO, nats", 1, [result.elbo for result in (exact, found)]),
        ("agreement with the cultivars", 2, [rand(r.posterior, cultivar) for r in (exact, found)]),
        ("seconds", 1, [result.seconds for result in (exact, found)]),
    ):
        print(f"{label:32}" + "".join(f"{value:10.{digits}f}" for value in values))
    print(f"mean difference of the probabilities: {difference(exact, found):.3f}")
    return exact, found


def with_names_of(exact: Result, found: Result) -> Result:
    """Clusters have no order: permute those of `found` to be nearest to `exact`."""
    orders = itertools.permutations(range(CLUSTERS))
    renamed = [found._replace(posterior=found.posterior[:, list(order)]) for order in orders]
    return min(renamed, key=lambda result: difference(exact, result))


def rand(posterior: Tensor, truth: np.ndarray) -> float:
    """The adjusted Rand index of the most probable clusters: 1 for the same, 0 for chance."""
    return adjusted_rand_score(truth, posterior.argmax(-1).numpy())


def difference(exact: Result, found: Result) -> float:
    return (exact.posterior - found.posterior).abs().mean().item()


def compare_causes(
    run: Run, data: dict[int, tuple[Tensor, Tensor]]
) -> dict[int, tuple[Result | None, Result]]:
    """By number of causes, up to Ctrl-C; no enumeration where it would not fit."""
    print("causes  log evidence      ELBO  seconds enumerated  relaxed  mean difference")
    results: dict[int, tuple[Result | None, Result]] = {}
    for number, (x, effects) in data.items():
        if run.trainings.stop.is_set():
            break
        fits = number + math.log2(len(x)) <= math.log2(LARGEST_TABLE)
        exact = enumerated_causes(x, effects) if fits else None
        found = relaxed_causes(run, x, effects)
        results[number] = exact, found
        evidence, seconds, apart = "", f"2^{number} states", ""
        if exact is not None:
            evidence, seconds = f"{exact.elbo:.1f}", f"{exact.seconds:.2f}"
            apart = f"{difference(exact, found):.3f}"
        print(
            f"{number:6}{evidence:>14}{found.elbo:10.1f}{seconds:>20}{found.seconds:9.1f}{apart:>17}"
        )
    return results


# %%
# The picture
# -----------
#
# The wines by their first two principal components, the probabilities of the causes, and the times.


def draw(
    path: Path,
    wines_found: tuple[Result, Result],
    causes_found: dict[int, tuple[Result | None, Result]],
) -> None:
    """The wines by their first two principal components; probabilities and times of the causes."""
    figure = Figure(figsize=(12, 4), layout="constrained")  # needs no display
    left, middle, right = figure.subplots(1, 3)
    exact, found = (result.posterior.argmax(-1) for result in wines_found)
    x, _ = wines()
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    first, second = (u[:, :2] * s[:2]).T.numpy()
    left.scatter(first, second, c=found.numpy(), cmap="viridis", s=16)
    apart = (exact != found).numpy()
    left.scatter(
        first[apart], second[apart], s=80, facecolors="none", edgecolors="red",
        label=f"otherwise by enumeration: {apart.sum()}",
    )  # fmt: skip
    left.set(title="178 wines, cluster by relaxation", xlabel="first component")
    left.set_ylabel("second component")
    left.legend(loc="lower left", fontsize="small")
    for number, (by_enumeration, by_relaxation) in causes_found.items():
        if by_enumeration is not None:
            pair = by_enumeration.posterior.numpy(), by_relaxation.posterior.numpy()
            middle.scatter(*pair, s=20, label=f"{number} causes")
    middle.axline((0, 0), slope=1, color="grey", lw=0.8)
    middle.set(title="P(cause | observation)", xlabel="by enumeration", ylabel="by relaxation")
    if causes_found:
        middle.legend(fontsize="small")
    for which, label in enumerate(("enumeration", "relaxation")):
        timed = {n: pair[which].seconds for n, pair in causes_found.items() if pair[which]}
        right.loglog(list(timed), list(timed.values()), "o-", label=label)
    right.set(title="the time it takes", xlabel="causes", ylabel="seconds")
    right.grid(alpha=0.3)
    right.legend()
    figure.savefig(path, dpi=110)


# %%
# The program
# -----------


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=200, out="relax_a_model.png")
    most = max(SIZES)
    parser.add_argument(
        "--most", type=whole_number(min(SIZES), most), default=most,
        help=f"largest number of causes (default: {most})",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    trainings = Trainings(options)
    start = trainings.clock()
    pyro.set_rng_seed(options.seed)
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    run = Run(options.steps, trainings)
    data = {size: observed_causes(size) for size in SIZES if size <= options.most}
    wines_found = compare_wines(run)
    causes_found = compare_causes(run, data)
    draw(options.out, wines_found, causes_found)
    print(f"wrote {options.out} after {trainings.clock() - start:.0f} s")


if __name__ == "__main__":
    main()

# %%
# The result
# ----------
#
# The mixture: both ways find nearly the same clusters. Enumeration has the higher ELBO, since it
# has no guide of the clusters that could be wrong.
#
# The causes: the time of enumeration doubles with each cause, and 50 of them do not fit into
# memory. The relaxation takes a minute for 200. Its ELBO is below the log evidence, because the
# causes are independent in the guide and not in the posterior.
#
# What to try next
# ----------------
#
# - ``--seed 1``: other effects and another observation.
# - `mixture.py` is a mixture whose clusters also differ in scale, and `hidden_markov.py` a chain.
