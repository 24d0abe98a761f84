# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Gradients of counts: bias, standard deviation and time.

    python benchmarks/counts.py --threads 1

Let D be a count with the parameter x, a rate or a logit, and f a loss. Each contestant estimates
the derivative of E f(D) in x from one draw, or from two with a leave-one-out baseline. D has few
likely values, so that bias and standard deviation are exact sums over them, in float64. The time,
of the processor, is that of a call for many counts in float32: to construct the distribution, draw,
and differentiate the sum of exp(-D/3). The contestants take turns in one process. Ratios are of
medians.

Training to the end: the prior of a count is Poisson(m), the guide Poisson(rate), and one x is
observed. Printed is the rate of the best ELBO; and for second and third order the rate at which the
mean of the gradient in log(rate) is 0, the ELBO lost there, and the standard deviation of the
gradient at the best rate.

The contestants besides the second order of `PoissonStraightThrough` and the like:

The score function, f(D) (log P(D))', and of two draws (f(D) - f(D')) (log P(D) - log P(D'))' / 2.

Polynomial weights (He and Wu 2026). The estimate w(D) f'(D) is unbiased for all polynomials f up to
degree m if

    E[w(D) D^j] = (E D^(j+1))' / (j + 1),    j = 0, ..., m - 1.

The w of least E w^2 is a polynomial of degree m - 1. With the powers v(D) = (1, D, ..., D^(m-1)),
G = E[v v^T] and the right sides b it is w = v^T G^-1 b. m = 2 is the second order: the largest
difference is printed.

Third order is m = 3: `relax(count, estimator="third_order")`, which `pyro_gumbel.ops.third_order`
derives.

A truncated categorical with ReinMax at temperature 1: the value is the sum of k D_k over a one-hot
vector D of the values 0 to K, with P(D > K) below 1e-6.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from tqdm import tqdm
from turns import medians, option_parser, read_options, write

from pyro_gumbel import (
    BinomialStraightThrough,
    CategoricalStraightThrough,
    GeometricStraightThrough,
    NegativeBinomialStraightThrough,
    PoissonStraightThrough,
    relax,
)
from pyro_gumbel.ops.second_order import surrogate_of_number
from pyro_gumbel.ops.third_order import curvature_weight

TAIL = 1e-6  # probability beyond the truncation
VALUES = torch.arange(200, dtype=torch.float64)  # beyond them less than 1e-15

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "z^2": torch.square,
    ".05 z^3": lambda z: 0.05 * z**3,
    "exp(-z/3)": lambda z: (-z / 3).exp(),
    "log1p(z)": torch.log1p,
    "lgamma(z+1)": lambda z: torch.lgamma(z + 1),
}


class Family(NamedTuple):
    """A distribution of one parameter."""

    parameter: float
    of: Callable[[Tensor], Any]
    curvature: float  # a of V = mu + a mu^2


FAMILIES = {
    "Poisson(.1)": Family(0.1, lambda x: PoissonStraightThrough(x), 0.0),
    "Poisson(3)": Family(3.0, lambda x: PoissonStraightThrough(x), 0.0),
    "Binomial(10, logit .3)": Family(
        0.3, lambda x: BinomialStraightThrough(10, logits=x, validate_args=False), -0.1
    ),
    "NegativeBinomial(5, logit .2)": Family(
        0.2, lambda x: NegativeBinomialStraightThrough(5, logits=x), 0.2
    ),
    "Geometric(logit .2)": Family(0.2, lambda x: GeometricStraightThrough(logits=x), 1.0),
}


# Weights of the values, and estimates: exact sums.


def pmf(family: Family, x: Tensor) -> Tensor:
    return family.of(x).log_prob(VALUES).exp()


def parameter(family: Family) -> Tensor:
    return torch.tensor(family.parameter, dtype=torch.float64)


def second_order_weights(family: Family) -> Tensor:
    """w of each value: the derivative of the surrogate."""

    def surrogate(x: Tensor) -> Tensor:
        count = family.of(x)
        return surrogate_of_number(VALUES, count.mean, count.variance)

    return jacobian(surrogate, parameter(family))


def third_order_weights(family: Family) -> Tensor:
    def surrogate(x: Tensor) -> Tensor:
        count, share = family.of(x), 1 / (1 + family.curvature)
        e = curvature_weight(VALUES, count.mean, count.variance, share)
        return surrogate_of_number(VALUES, count.mean, count.variance) - e * count.mean

    return jacobian(surrogate, parameter(family))


def polynomial_weights(family: Family, degree: int) -> Tensor:
    """w of least norm, unbiased for polynomials up to `degree`: Fini-2, Fini-3."""
    x = parameter(family)
    p, slope = pmf(family, x), jacobian(partial(pmf, family), x)
    z = VALUES - (p * VALUES).sum().round()  # powers of smaller numbers
    powers = torch.stack([z**j for j in range(degree)])
    gram = (powers * p) @ powers.T
    right = torch.stack([(slope * z ** (j + 1)).sum() / (j + 1) for j in range(degree)])
    return torch.linalg.solve(gram, right) @ powers


class Estimates(NamedTuple):
    """Every estimate that can occur, with its probability."""

    probs: Tensor
    values: Tensor

    def mean(self) -> float:
        return (self.probs * self.values).sum().item()

    def deviation(self) -> float:
        return (self.probs * (self.values - self.mean()).square()).sum().sqrt().item()


def score_function(family: Family, f: Callable[[Tensor], Tensor]) -> Estimates:
    x = parameter(family)
    score = jacobian(lambda x: family.of(x).log_prob(VALUES), x)
    p = pmf(family, x)
    return Estimates(p, torch.where(p > 0, score * f(VALUES), 0.0))


def leave_one_out(family: Family, f: Callable[[Tensor], Tensor]) -> Estimates:
    """Of two draws."""
    x = parameter(family)
    score = jacobian(lambda x: family.of(x).log_prob(VALUES), x)
    p, loss = pmf(family, x), f(VALUES)
    apart = (loss[:, None] - loss) * (score[:, None] - score) / 2
    joint = p[:, None] * p
    return Estimates(joint, torch.where(joint > 0, apart, 0.0))


def weighted(weights: Tensor, p: Tensor, f: Callable[[Tensor], Tensor]) -> Estimates:
    """Of w(D) f'(D)."""
    z = VALUES[: len(p)].clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(z).sum(), z)
    return Estimates(p, torch.where(p > 0, weights[: len(p)] * slope, 0.0))


def largest_value(family: Family) -> int:
    """K of the truncated categorical."""
    p = pmf(family, parameter(family))
    return int((p.flip(0).cumsum(0).flip(0) > TAIL).sum()) - 1


def truncated(family: Family, f: Callable[[Tensor], Tensor]) -> Estimates:
    """The surrogate of ReinMax, `mean / 2 + log P(D) (D - mean) / 2`, of the truncated count."""
    z = VALUES[: largest_value(family) + 1]

    def log_probs(x: Tensor) -> Tensor:
        return family.of(x).log_prob(z).log_softmax(0)

    x = parameter(family)
    p, score = log_probs(x).exp(), jacobian(log_probs, x)
    mean = (p * z).sum()
    weights = ((p * score * z).sum() + score * (z - mean)) / 2
    return weighted(weights, p, f)


def estimates(family: Family, f: Callable[[Tensor], Tensor]) -> dict[str, Estimates]:
    p = pmf(family, parameter(family))
    return {
        "second order": weighted(second_order_weights(family), p, f),
        "third order (Fini-3)": weighted(polynomial_weights(family, 3), p, f),
        "truncated, ReinMax": truncated(family, f),
        "score function": score_function(family, f),
        "leave one out, 2 draws": leave_one_out(family, f),
    }


def exact(family: Family, f: Callable[[Tensor], Tensor]) -> float:
    slope = jacobian(partial(pmf, family), parameter(family))
    return torch.where(slope != 0, slope * f(VALUES), 0.0).sum().item()


def accuracy(family: Family, f: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    truth = exact(family, f)
    rows = {
        name: {"bias": e.mean() - truth, "deviation": e.deviation()}
        for name, e in estimates(family, f).items()
    }
    return {"derivative": truth, "estimators": rows}


def differences(family: Family) -> dict[str, float]:
    """How far apart weights are that should be equal, where P is above 1e-12."""
    likely = pmf(family, parameter(family)) > 1e-12
    pairs = {
        "second order and Fini-2": (second_order_weights(family), polynomial_weights(family, 2)),
        "third order and Fini-3": (third_order_weights(family), polynomial_weights(family, 3)),
    }
    return {name: (a - b)[likely].abs().max().item() for name, (a, b) in pairs.items()}


# Training to the end.


LIKELIHOODS: dict[str, Callable[[Tensor], Tensor]] = {
    "x = 6 ~ Poisson(exp(z/4))": lambda z: 1.5 * z - (z / 4).exp(),
    "x = 4 ~ Poisson(z + .1)": lambda z: 4 * (z + 0.1).log() - z,
    "x = 1 ~ Normal(log1p(z), .2)": lambda z: -12.5 * (1 - z.log1p()).square(),
    "x = .4 ~ Normal(exp(-z/3), .1)": lambda z: -50 * (0.4 - (-z / 3).exp()).square(),
    "x = 1 ~ Bernoulli(sigmoid(z - 3))": lambda z: torch.nn.functional.logsigmoid(z - 3),
}
RATES = 0.1, 1.0, 5.0  # m
WEIGHTS = {"second order": second_order_weights, "third order": third_order_weights}


def poisson(rate: float) -> Family:
    return FAMILIES["Poisson(3)"]._replace(parameter=rate)


def elbo(m: float, likelihood: Callable[[Tensor], Tensor], rate: float) -> float:
    p = pmf(poisson(rate), torch.tensor(rate, dtype=torch.float64))
    expected = torch.where(p > 0, p * likelihood(VALUES), 0.0).sum().item()
    return expected - (rate * math.log(rate / m) - rate + m)


def zero_of(slope: Callable[[float], float]) -> float:
    """Where a function that falls from above 0 to below crosses it, by bisection of log(rate)."""
    low, high = math.log(1e-3), math.log(40)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) > 0 else (low, middle)
    return math.exp(low)


def where_training_ends(m: float, likelihood: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    def estimated(rate: float, weights: Callable[[Family], Tensor]) -> Estimates:
        family = poisson(rate)
        return weighted(weights(family), pmf(family, parameter(family)), likelihood)

    best = zero_of(lambda rate: exact(poisson(rate), likelihood) - math.log(rate / m))
    rows = {}
    for name, weights in WEIGHTS.items():
        end = zero_of(lambda rate, w=weights: estimated(rate, w).mean() - math.log(rate / m))
        rows[name] = {
            "rate": end,
            "nats lost": elbo(m, likelihood, best) - elbo(m, likelihood, end),
            "deviation": best * estimated(best, weights).deviation(),
        }
    return {"best rate": best, "estimators": rows}


def report_training(found: dict[str, Any]) -> None:
    print("\n| m | observed | best rate | second order: rate, nats lost, deviation | third order |")
    print("|---" * 5 + "|")
    for name, row in found.items():
        ends = (
            f"{end['rate']:.3g}, {end['nats lost']:.4f}, {end['deviation']:.2g}"
            for end in row["estimators"].values()
        )
        print(f"| {name} | {row['best rate']:.3g} | {' | '.join(ends)} |")


# Calls that are timed.


def truncated_sample(count: Any, largest: int) -> Tensor:
    """A count as a one-hot vector over 0 to `largest`, with the gradient of ReinMax."""
    values = torch.arange(largest + 1.0)
    logits = count.log_prob(values.reshape(-1, *(1,) * len(count.batch_shape))).movedim(0, -1)
    one_hot = CategoricalStraightThrough(1.0, logits=logits, estimator="reinmax").rsample()
    return one_hot @ values


def third_order_sample(count: Any) -> Tensor:
    return relax(count, estimator="third_order").rsample()


def calls(family: Family, size: int) -> dict[str, Callable[[], object]]:
    x, f = torch.full((size,), family.parameter).requires_grad_(), LOSSES["exp(-z/3)"]
    largest = largest_value(family)

    def differentiated(total: Callable[[Any], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(total(family.of(x)), x)

    def by_score(count: Any) -> Tensor:
        z = count.sample()
        return (f(z) * count.log_prob(z)).sum()

    def by_two_scores(count: Any) -> Tensor:
        z = count.sample((2,))
        loss = f(z)
        return ((loss - loss.flip(0)) * count.log_prob(z)).sum() / 2

    return {
        "second order": differentiated(lambda count: f(count.rsample()).sum()),
        "third order (Fini-3)": differentiated(lambda count: f(third_order_sample(count)).sum()),
        "truncated, ReinMax": differentiated(
            lambda count: f(truncated_sample(count, largest)).sum()
        ),
        "score function": differentiated(by_score),
        "leave one out, 2 draws": differentiated(by_two_scores),
    }


def report(results: dict[str, Any]) -> None:
    """A table: bias (standard deviation) by loss, and the time."""
    for name, found in results.items():
        apart = (f"{pair} {most:.0e}" for pair, most in found["weights"].items())
        print(f"weights of {name}, largest difference: {', '.join(apart)}")
    print(f"\n| | | {' | '.join(LOSSES)} | ms | times as long |")
    print("|---" * (len(LOSSES) + 4) + "|")
    for name, found in results.items():
        derivatives = (digits(row["derivative"]) for row in found["losses"].values())
        print(f"| {name} | derivative | {' | '.join(derivatives)} | | |")
        ours = found["seconds"]["second order"]
        for estimator, taken in found["seconds"].items():
            rows = (row["estimators"][estimator] for row in found["losses"].values())
            cells = (f"{digits(row['bias'])} ({digits(row['deviation'])})" for row in rows)
            times = f"{1e3 * taken:.2f} | {taken / ours:.1f}"
            print(f"| | {estimator} | {' | '.join(cells)} | {times} |")


def digits(number: float) -> str:
    """Two of them."""
    if abs(number) < 1e-10:
        return "0"
    return f"{number:.2g}" if abs(number) < 100 else f"{number:.0f}"


def main() -> None:
    parser = option_parser(__doc__, repeats=20)
    parser.add_argument("--size", type=int, default=1000, help="counts of a call (default: 1000)")
    options = read_options(parser)
    results: dict[str, Any] = {}
    for name, family in tqdm(FAMILIES.items(), unit="family"):
        results[name] = {
            "weights": differences(family),
            "losses": {loss: accuracy(family, f) for loss, f in LOSSES.items()},
            "seconds": medians(calls(family, options.size), options.repeats, time.process_time),
        }
    ends = {
        f"{m} | {name}": where_training_ends(m, likelihood)
        for m in tqdm(RATES, unit="prior")
        for name, likelihood in LIKELIHOODS.items()
    }
    write(options, {"families": results, "training": ends})
    report(results)
    report_training(ends)


if __name__ == "__main__":
    main()
