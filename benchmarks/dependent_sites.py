# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The error of the gradient where the integer sites of a guide depend on each other.

    python benchmarks/dependent_sites.py --threads 1    # ten seconds

The model is a chain of 4 states with 3 values. Each state is drawn from the row of a table that the
state before selects, and a number is observed at each. The rows come from a Dirichlet distribution
of concentration 1. In the guide each state depends on the one before, too. Its logits are numbers
from a normal distribution, plus the *dependence* times a row that the state before selects from a
table of such numbers. At a dependence of 0 the states are independent.

The gradient is that of the ELBO in the logits of the guide, one row for each state and the state
before: by outcomes, as in `relaxed(model)`, and as the derivative, as in `relaxed(model,
outcomes=False)`. The exact gradient and the mean of the estimate are sums over all states, in
float64, so nothing is sampled. The mean is the same under `Trace_ELBO` and `TraceMeanField_ELBO`.

The table has the relative error of the mean, |mean - exact| / |exact|, and the cosine of the angle
between both. Each entry is the median over 20 random models, and in parentheses the worst of them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from index_bias import cells, relative, summary
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.ops.indexing import Vindex
from pyro.poutine.messenger import Messenger
from torch import Tensor
from turns import option_parser, read_options, write

from pyro_gumbel import relaxed
from pyro_gumbel.ops.second_order import with_one_hot_gradient
from pyro_gumbel.tensors.index_tensor import drawn_index

CATEGORIES = 3
COLUMNS = {"error": ".2g", "cosine": ".3f"}


@dataclass
class Chain:
    """A model and a guide, which run in a plate of draws: one for each joint state.

    :ivar log_probs: of a state given the one before.
    :ivar locs: the mean of the observation of each state.
    :ivar x: the observations.
    :ivar logits: of the guide's states given the one before. The first has only one row.
    """

    log_probs: Tensor
    locs: Tensor
    x: Tensor
    logits: Tensor

    @property
    def states(self) -> Tensor:
        return torch.tensor(list(itertools.product(range(CATEGORIES), repeat=len(self.x))))

    def model(self, logits: Tensor) -> None:
        z = torch.tensor(0)
        with pyro.plate("draws", len(logits)):
            for t, x in enumerate(self.x):
                z = pyro.sample(f"z{t}", dist.Categorical(logits=self.log_probs[z]))
                pyro.sample(f"x{t}", dist.Normal(self.locs[z], 1.0), obs=x)

    def guide(self, logits: Tensor) -> None:
        """Each draw has its own copy of the logits."""
        z = torch.tensor(0)
        with pyro.plate("draws", len(logits)):
            for t in range(len(self.x)):
                given = Vindex(logits[:, t])[..., z, :]
                z = pyro.sample(f"z{t}", dist.Categorical(logits=given))

    def log_prob(self, function: Callable[[Tensor], None], logits: Tensor) -> Tensor:
        """Of each joint state."""
        values = {f"z{t}": each for t, each in enumerate(self.states.T)}
        trace = poutine.trace(poutine.condition(function, data=values)).get_trace(logits)
        trace.compute_log_prob()
        sites = [trace.nodes[name]["log_prob"] for name in trace.nodes if name[0] in "zx"]
        return torch.stack(sites).sum(0)

    def exact_gradient(self) -> Tensor:
        logits = self._copies().requires_grad_()
        log_q, log_p = (self.log_prob(each, logits) for each in (self.guide, self.model))
        (gradients,) = torch.autograd.grad(log_q.exp() @ (log_p - log_q), logits)
        return gradients.sum(0).flatten()

    def mean_gradient(self, *, outcomes: bool) -> Tensor:
        logits = self._copies().requires_grad_()
        model, guide = (relaxed(each, outcomes=outcomes) for each in (self.model, self.guide))
        with Drawn(self.states):
            loss = Trace_ELBO().differentiable_loss(model, guide, logits)
        (gradients,) = torch.autograd.grad(-loss, logits)
        probs = self.log_prob(self.guide, self._copies()).exp()
        return probs @ gradients.flatten(1)

    def _copies(self) -> Tensor:
        return self.logits.repeat(len(self.states), 1, 1, 1)


class Drawn(Messenger):
    """The sites of a relaxed guide are at given states, with the gradient of a draw."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"][0] == "z" and msg["value"] is None:
            state, logits = self.states[:, int(msg["name"][1:])], msg["fn"].logits
            one_hot = torch.nn.functional.one_hot(state, CATEGORIES).to(logits)
            value = with_one_hot_gradient(one_hot, logits)
            msg["value"] = drawn_index(value, state, lambda: logits.softmax(-1))


def random_chain(sites: int, dependence: float) -> Chain:
    own, rows = torch.randn(sites, 1, CATEGORIES), torch.randn(sites, CATEGORIES, CATEGORIES)
    return Chain(
        log_probs=dist.Dirichlet(torch.ones(CATEGORIES)).sample((CATEGORIES,)).log(),
        locs=torch.randn(CATEGORIES),
        x=2 * torch.randn(sites),
        logits=own + dependence * rows,
    )


def compare(models: list[Chain], *, outcomes: bool) -> dict[str, float]:
    errors, cosines = [], []
    for model in models:
        exact, mean = model.exact_gradient(), model.mean_gradient(outcomes=outcomes)
        errors.append(relative(mean - exact, exact))
        cosines.append(torch.cosine_similarity(mean, exact, dim=0).item())
    return {**summary("error", errors), **summary("cosine", cosines, min)}


def main() -> None:
    parser = option_parser(__doc__, repeats=20)  # of random models
    add = parser.add_argument
    add("--sites", type=int, default=4, help="states of the chain")
    add("--dependences", nargs="+", type=float, default=[0.0, 0.5, 1.0, 2.0, 4.0])
    options = read_options(parser)
    torch.set_default_dtype(torch.float64)
    rows = []
    for dependence in options.dependences:
        models = [random_chain(options.sites, dependence) for _ in range(options.repeats)]
        found = {
            name: compare(models, outcomes=outcomes)
            for name, outcomes in {"outcomes": True, "derivative": False}.items()
        }
        print(f"| {dependence:g} | {' | '.join(cells(each, COLUMNS) for each in found.values())} |")
        rows.append({"dependence": dependence, **found})
    write(options, {"dependences": rows})


if __name__ == "__main__":
    main()
