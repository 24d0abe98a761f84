# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The error and the noise of the gradient of integer sites z, for the forms that models use.

    python benchmarks/index_bias.py --threads 1    # ten seconds

Three models. In the chain each of 5 states is drawn from the row of a table that the state before
selects, and a number is observed at each state. In the mixture 5 points come from 3 clusters. In
the topic model 5 words are observed, each from the row of a table that its topic selects. The rows
of the tables come from a Dirichlet distribution of concentration 1, and then 0.3, for rows with
more small probabilities. States, clusters and topics have 3 values.

The guide has independent sites with random logits. The gradient is that of the ELBO in these
logits: by outcomes, as in `relaxed(model)`, and as the derivative, as in `relaxed(model,
outcomes=False)`. The exact gradient, the mean of the estimate and its variance are sums over all
states, in float64, so nothing is sampled.

The first table has the relative error of the mean, |mean - exact| / |exact|, and for the derivative
the cosine of the angle between both. The second has the noise of one draw with outcomes,
sqrt(E |gradient - mean|^2) / |exact|, under `Trace_ELBO` and under `TraceMeanField_ELBO`. Each
entry is the median over 20 random models, and in parentheses the worst of them.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from turns import option_parser, read_options, write

from pyro_gumbel import IndexStraightThrough, SelectedComponent
from pyro_gumbel.distributions.outcome_distribution import outcome_distributions
from pyro_gumbel.ops.second_order import with_one_hot_gradient
from pyro_gumbel.tensors.index_tensor import as_derivative, collapsed, drawn_index

SITES, CATEGORIES = 5, 3


@dataclass
class Tables:
    """What a random model is made of. Rows are for the categories of z."""

    probs: Tensor
    locs: Tensor
    scales: Tensor
    x: Tensor
    words: Tensor
    logits: Tensor  # of the guide

    @property
    def log_probs(self) -> Tensor:
        return self.probs.log()


def random_tables(concentration: float) -> Tables:
    rows = torch.full((CATEGORIES,), concentration)
    return Tables(
        probs=dist.Dirichlet(rows).sample((CATEGORIES,)),
        locs=torch.randn(CATEGORIES),
        scales=torch.randn(CATEGORIES).exp(),
        x=2 * torch.randn(SITES),
        words=torch.randint(CATEGORIES, (SITES,)),
        logits=torch.randn(SITES, CATEGORIES),
    )


@dataclass
class Form:
    """How a model is written.

    A prior of equal probabilities is left out.

    :ivar likelihood: the log probability of the data, and of what is not in `steps`.
    :ivar steps: the distribution of each state of a chain given the one before; None for no chain.
    """

    likelihood: Callable[[Tensor, Tables], Tensor]
    steps: Callable[[Tensor, Tables], dist.TorchDistribution] | None = None

    def log_joint(self, z: Tensor, tables: Tables) -> Tensor:
        result = self.likelihood(z, tables)
        if self.steps is None:
            return result
        return result + self.steps(z[..., :-1], tables).log_prob(z[..., 1:]).sum(-1)

    def trace_elbo(self, q: IndexStraightThrough, z: Tensor, tables: Tables) -> Tensor:
        return self.log_joint(z, tables) - q.log_prob(z).sum(-1)

    def mean_field_elbo(self, q: IndexStraightThrough, z: Tensor, tables: Tables) -> Tensor:
        if self.steps is None:
            return self.likelihood(z, tables) + q.entropy().sum(-1)
        first, rest = (IndexStraightThrough(logits=each) for each in split(q.logits))
        divergence = kl_divergence(rest, self.steps(z[..., :-1], tables)).sum(-1)
        return self.likelihood(z, tables) + first.entropy().sum(-1) - divergence


def split(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The first site, and the others."""
    return logits[..., :1, :], logits[..., 1:, :]


def emissions(z: Tensor, tables: Tables) -> Tensor:
    return dist.Normal(tables.locs[z], 1.0).log_prob(tables.x).sum(-1)


def emissions_and_factors(z: Tensor, tables: Tables) -> Tensor:
    return emissions(z, tables) + tables.log_probs[z[..., :-1], z[..., 1:]].sum(-1)


def by_probs(z: Tensor, tables: Tables) -> dist.Categorical:
    return dist.Categorical(probs=tables.probs[z])


def by_logits(z: Tensor, tables: Tables) -> dist.Categorical:
    return dist.Categorical(logits=tables.log_probs[z])


def mixture(component: Callable[[Tensor, Tables], dist.TorchDistribution]) -> Form:
    return Form(lambda z, tables: component(z, tables).log_prob(tables.x).sum(-1))


def topics(word: Callable[[Tensor, Tables], dist.TorchDistribution]) -> Form:
    return Form(lambda z, tables: word(z, tables).log_prob(tables.words).sum(-1))


FORMS: dict[tuple[str, str], Form] = {
    ("chain", "Categorical(probs=P[z])"): Form(emissions, by_probs),
    ("chain", "Categorical(logits=log_P[z])"): Form(emissions, by_logits),
    ("chain", 'factor("step", log_P[z, new])'): Form(emissions_and_factors),
    ("mixture", "Normal(locs[z], scales[z])"): mixture(
        lambda z, t: dist.Normal(t.locs[z], t.scales[z])
    ),
    ("mixture", "Normal(locs[z], 1.0)"): mixture(lambda z, t: dist.Normal(t.locs[z], 1.0)),
    ("mixture", "SelectedComponent(z, Normal(locs, scales))"): mixture(
        lambda z, t: SelectedComponent(z, dist.Normal(t.locs, t.scales))
    ),
    ("topics", "Categorical(probs=P[z])"): topics(by_probs),
    ("topics", "Categorical(logits=log_P[z])"): topics(by_logits),
    ("topics", "SelectedComponent(z, Categorical(probs=P))"): topics(
        lambda z, t: SelectedComponent(z, dist.Categorical(probs=t.probs))
    ),
}


def all_states() -> Tensor:
    return torch.tensor(list(itertools.product(range(CATEGORIES), repeat=SITES)))


def exact_gradient(form: Form, tables: Tables) -> Tensor:
    logits = tables.logits.clone().requires_grad_()
    q, states = IndexStraightThrough(logits=logits), all_states()
    elbo = q.log_prob(states).sum(-1).exp() @ form.log_joint(states, tables) + q.entropy().sum()
    return torch.autograd.grad(elbo, logits)[0].flatten()


@dataclass
class Estimate:
    """The gradient of each state as a draw, and the probability of the state."""

    gradients: Tensor
    probs: Tensor

    @property
    def mean(self) -> Tensor:
        return self.probs @ self.gradients

    @property
    def noise(self) -> float:
        return math.sqrt(self.probs @ (self.gradients - self.mean).square().sum(-1))


def estimate(form: Form, tables: Tables, *, outcomes: bool, mean_field: bool = False) -> Estimate:
    states = all_states()
    logits = tables.logits.repeat(len(states), 1, 1).requires_grad_()  # one copy a state
    one_hot = torch.nn.functional.one_hot(states, CATEGORIES).double()
    z = drawn_index(with_one_hot_gradient(one_hot, logits), states, lambda: logits.softmax(-1))
    q = IndexStraightThrough(logits=logits)
    with outcome_distributions() if outcomes else nullcontext():
        objective = form.mean_field_elbo if mean_field else form.trace_elbo
        elbo = collapsed(objective(q, z if outcomes else as_derivative(z), tables), linear=True)
    (gradients,) = torch.autograd.grad(elbo.sum(), logits)
    return Estimate(gradients.flatten(1), q.log_prob(states).sum(-1).exp().detach())


def errors_of(form: Form, tables: Tables) -> tuple[float, float, float]:
    """Of the derivative the error and the cosine, and the error with outcomes."""
    exact = exact_gradient(form, tables)
    derivative = estimate(form, tables, outcomes=False).mean
    with_outcomes = estimate(form, tables, outcomes=True).mean
    cosine = torch.cosine_similarity(derivative, exact, dim=0).item()
    return relative(derivative - exact, exact), cosine, relative(with_outcomes - exact, exact)


def noise_of(form: Form, tables: Tables) -> tuple[float, float]:
    """With outcomes, by `Trace_ELBO` and by `TraceMeanField_ELBO`."""
    length = exact_gradient(form, tables).norm().item()
    by_trace, by_mean_field = (
        estimate(form, tables, outcomes=True, mean_field=mean_field).noise / length
        for mean_field in (False, True)
    )
    return by_trace, by_mean_field


def relative(difference: Tensor, exact: Tensor) -> float:
    return (difference.norm() / exact.norm()).item()


def compare(form: Form, models: list[Tables]) -> dict[str, float]:
    errors, cosines, with_outcomes = zip(*(errors_of(form, each) for each in models), strict=True)
    by_trace, by_mean_field = zip(*(noise_of(form, each) for each in models), strict=True)
    return {
        **summary("error", errors),
        **summary("cosine", cosines, min),
        **summary("error with outcomes", with_outcomes),
        **summary("noise by Trace_ELBO", by_trace),
        **summary("noise by TraceMeanField_ELBO", by_mean_field),
    }


def summary(
    name: str, values: Sequence[float], worst: Callable[..., float] = max
) -> dict[str, float]:
    return {name: statistics.median(values), f"worst {name}": worst(values)}


TABLES = {
    "errors": {"error": ".2g", "cosine": ".3f", "error with outcomes": ".1g"},
    "noise": {"noise by Trace_ELBO": ".2g", "noise by TraceMeanField_ELBO": ".2g"},
}


def cells(found: dict[str, float], columns: dict[str, str]) -> str:
    pairs = ((found[name], found[f"worst {name}"], digits) for name, digits in columns.items())
    return " | ".join(f"{median:{digits}} ({worst:{digits}})" for median, worst, digits in pairs)


def main() -> None:
    parser = option_parser(__doc__, repeats=20)  # of random models
    add = parser.add_argument
    add("--concentrations", nargs="+", type=float, default=[1.0, 0.3], help="of the Dirichlet")
    options: argparse.Namespace = read_options(parser)
    torch.set_default_dtype(torch.float64)
    models = {c: [random_tables(c) for _ in range(options.repeats)] for c in options.concentrations}
    found = {
        name: {c: compare(form, each) for c, each in models.items()} for name, form in FORMS.items()
    }
    for title, columns in TABLES.items():
        print(f"\n{title}: for each concentration {', '.join(columns)}")
        for (model, text), by_concentration in found.items():
            row = (cells(each, columns) for each in by_concentration.values())
            print(f"| {model} | `{text}` | {' | '.join(row)} |")
    rows = [
        {"model": model, "form": text, "by concentration": each}
        for (model, text), each in found.items()
    ]
    write(options, {"forms": rows})


if __name__ == "__main__":
    main()
