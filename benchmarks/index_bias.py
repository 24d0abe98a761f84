# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The bias of second-order gradients of integer sites z, for the forms in which models use them.

    python benchmarks/index_bias.py --threads 1    # ten seconds

Three models. In the chain each of 5 states is drawn from the row of a table that the state before
selects, and a number is observed at each state. In the mixture 5 points come from 3 clusters. In
the topic model 5 words are observed, each from the row of a table that its topic selects. The rows
of the tables come from a Dirichlet distribution of concentration 1, and then 0.3, for rows with
more small probabilities. States, clusters and topics have 3 values.

The guide has independent sites with random logits. The gradient is that of the ELBO in these
logits. The exact gradient and the mean of the estimate are sums over all states, in float64, so
nothing is sampled. Printed are, for each concentration, the relative error |mean - exact| / |exact|
and the cosine of the angle between both: the median over 20 random models, and in parentheses the
worst of them.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from turns import option_parser, read_options, write

from pyro_gumbel import IndexStraightThrough, SelectedComponent
from pyro_gumbel.ops.second_order import with_one_hot_gradient
from pyro_gumbel.tensors.index_tensor import drawn_index

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


# Each form is the log joint probability of states z of the shape (..., SITES) and the data. The
# prior of a cluster and of a topic has equal probabilities, and is left out.

Form = Callable[[Tensor, Tables], Tensor]


def emissions(z: Tensor, tables: Tables) -> Tensor:
    return dist.Normal(tables.locs[z], 1.0).log_prob(tables.x).sum(-1)


def chain(step: Callable[[Tensor, Tables], dist.TorchDistribution]) -> Form:
    def log_likelihood(z: Tensor, tables: Tables) -> Tensor:
        steps = step(z[..., :-1], tables).log_prob(z[..., 1:])
        return emissions(z, tables) + steps.sum(-1)

    return log_likelihood


def chain_of_factors(z: Tensor, tables: Tables) -> Tensor:
    return emissions(z, tables) + tables.log_probs[z[..., :-1], z[..., 1:]].sum(-1)


def mixture(component: Callable[[Tensor, Tables], dist.TorchDistribution]) -> Form:
    return lambda z, tables: component(z, tables).log_prob(tables.x).sum(-1)


def topics(word: Callable[[Tensor, Tables], dist.TorchDistribution]) -> Form:
    return lambda z, tables: word(z, tables).log_prob(tables.words).sum(-1)


def by_probs(z: Tensor, tables: Tables) -> dist.Categorical:
    return dist.Categorical(probs=tables.probs[z])


def by_logits(z: Tensor, tables: Tables) -> dist.Categorical:
    return dist.Categorical(logits=tables.log_probs[z])


FORMS: dict[tuple[str, str], Form] = {
    ("chain", "Categorical(probs=P[z])"): chain(by_probs),
    ("chain", "Categorical(logits=log_P[z])"): chain(by_logits),
    ("chain", 'factor("step", log_P[z, new])'): chain_of_factors,
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
    elbo = q.log_prob(states).sum(-1).exp() @ form(states, tables) + q.entropy().sum()
    return torch.autograd.grad(elbo, logits)[0].flatten()


def mean_gradient(form: Form, tables: Tables) -> Tensor:
    """Of the estimate, over all states as draws."""
    logits = tables.logits.clone().requires_grad_()
    q, states = IndexStraightThrough(logits=logits), all_states()
    one_hot = torch.nn.functional.one_hot(states, CATEGORIES).double()
    z = drawn_index(with_one_hot_gradient(one_hot, logits.expand(one_hot.shape)), states)
    weights = q.log_prob(states).sum(-1).exp().detach()
    elbo = weights @ form(z, tables) + q.entropy().sum()
    return torch.autograd.grad(elbo, logits)[0].flatten()


def error_and_cosine(form: Form, tables: Tables) -> tuple[float, float]:
    exact, mean = exact_gradient(form, tables), mean_gradient(form, tables)
    error = ((mean - exact).norm() / exact.norm()).item()
    return error, torch.cosine_similarity(mean, exact, dim=0).item()


def compare(form: Form, models: list[Tables]) -> dict[str, float]:
    errors, cosines = zip(*(error_and_cosine(form, tables) for tables in models), strict=True)
    return {
        "error": statistics.median(errors),
        "largest error": max(errors),
        "cosine": statistics.median(cosines),
        "smallest cosine": min(cosines),
    }


def cells(found: dict[str, float]) -> str:
    return (
        f"{found['error']:.2g} ({found['largest error']:.2g}) "
        f"| {found['cosine']:.3f} ({found['smallest cosine']:.3f})"
    )


def main() -> None:
    parser = option_parser(__doc__, repeats=20)  # of random models
    add = parser.add_argument
    add("--concentrations", nargs="+", type=float, default=[1.0, 0.3], help="of the Dirichlet")
    options: argparse.Namespace = read_options(parser)
    torch.set_default_dtype(torch.float64)
    models = {c: [random_tables(c) for _ in range(options.repeats)] for c in options.concentrations}
    rows = []
    for (model, name), form in FORMS.items():
        found = {c: compare(form, tables) for c, tables in models.items()}
        rows.append({"model": model, "form": name, "by concentration": found})
        print(f"| {model} | `{name}` | {' | '.join(map(cells, found.values()))} |")
    write(options, {"forms": rows})


if __name__ == "__main__":
    main()
