# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The bias of second-order gradients in a chain of one-hot states, for three forms of its steps.

    python benchmarks/chain.py                        # chains of 5 sites with 3 states, a minute
    python benchmarks/chain.py --concentration 0.3    # of rarer transitions

The probabilities of the transitions are the rows of a table, drawn from a Dirichlet distribution.
Each site has one more term in the log joint probability, a table too, as an observation has. The
guide has independent sites with random logits. The expected log joint probability and the expected
gradient are sums over all states, in float64, so that nothing is sampled.

- logits: ``OneHotCategorical(logits=z @ table.log())``. The normaliser of the logits is curved.
- probs: ``OneHotCategorical(probs=z @ table)``, the same on one-hot vectors, and more curved.
- factor: ``<z, table.log() new>``, which is linear in both states.
"""

import argparse
import itertools

import torch
from torch import Tensor
from turns import option_parser, read_options, write

from pyro_gumbel import CategoricalStraightThrough
from pyro_gumbel.ops.second_order import with_one_hot_gradient

FORMS = {
    "logits": lambda z, table: (z @ table.log()).log_softmax(-1),
    "probs": lambda z, table: (z @ table).log(),
    "factor": lambda z, table: z @ table.log(),
}


def log_joint(z: Tensor, form: str, table: Tensor, observed: Tensor) -> Tensor:
    """Of states of the shape (..., sites, categories)."""
    transitions = FORMS[form](z[..., :-1, :], table) * z[..., 1:, :]
    return (z * observed).sum((-1, -2)) + transitions.sum((-1, -2))


def relative_bias(form: str, sites: int, table: Tensor, observed: Tensor, logits: Tensor) -> float:
    """|mean of the estimate - exact| / |exact|, in the logits of the guide."""
    categories = len(table)
    states = torch.tensor(list(itertools.product(range(categories), repeat=sites)))
    one_hot = torch.eye(categories)[states]
    x = logits.clone().requires_grad_()
    log_q = CategoricalStraightThrough(logits=x).log_prob(one_hot).sum(-1)
    exact = log_q.exp() @ log_joint(one_hot, form, table, observed)
    z = with_one_hot_gradient(one_hot, x.expand(one_hot.shape))
    mean = log_q.detach().exp() @ log_joint(z, form, table, observed)
    right, estimate = (torch.autograd.grad(each, x)[0] for each in (exact, mean))
    return ((estimate - right).norm() / right.norm()).item()


def main() -> None:
    parser = option_parser(__doc__, repeats=20)  # of chains
    add = parser.add_argument
    add("--sites", type=int, default=5)
    add("--categories", type=int, default=3)
    add("--concentration", type=float, default=1.0, help="of the Dirichlet distribution")
    options: argparse.Namespace = read_options(parser)
    torch.set_default_dtype(torch.float64)
    rows = torch.full((options.categories,), options.concentration)
    biases: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(options.repeats):
        table = torch.distributions.Dirichlet(rows).sample((options.categories,))
        observed, logits = torch.randn(2, options.sites, options.categories)
        for form, found in biases.items():
            found.append(relative_bias(form, options.sites, table, observed, logits))
    for form, found in biases.items():
        print(f"| {form} | {sum(found) / len(found):.2g} | {max(found):.2g} |")
    write(options, {"relative biases": biases})


if __name__ == "__main__":
    main()
