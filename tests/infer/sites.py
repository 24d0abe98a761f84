# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Models of one latent site, by family and plates, and how a guide is trained."""

from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule

from pyro_gumbel import AutoRelaxed, LearnableTemperature, PlackettLuce, Subset, relaxed

T = 0.5
PROBS = torch.tensor([0.5, 0.25, 0.15, 0.1])

PRIORS = {
    "bernoulli": lambda: dist.Bernoulli(PROBS[:2]).to_event(1),
    "categorical": lambda: dist.OneHotCategorical(PROBS),
    "subset": lambda: Subset(2, PROBS),
    "ranking": lambda: PlackettLuce(2, PROBS),
}


def decayed(rate, steps):
    """Adam with a rate that falls a hundredfold over the run."""
    optimiser = {"optimizer": torch.optim.Adam, "optim_args": {"lr": rate}}
    return pyro.optim.ExponentialLR({**optimiser, "gamma": 0.01 ** (1 / steps)})


def train(model, guide, elbo, steps, rate=0.1, args=()):
    optimiser = decayed(rate, steps)
    svi = SVI(model, guide, optimiser, elbo)
    for _ in range(steps):
        svi.step(*args)
        optimiser.step()


def prior_only(family):
    return lambda: pyro.sample("z", PRIORS[family]())


def exact_elbo(logits, log_joint):
    """The ELBO of independent Bernoulli variables, by enumeration."""
    values = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * len(logits))
    log_q = dist.Bernoulli(logits=logits).log_prob(values).sum(-1)
    return (log_q.exp() * (log_joint(values) - log_q)).sum()


def chain():
    z = pyro.sample("z", dist.OneHotCategorical(PROBS))
    pyro.sample("x", dist.Normal(z @ torch.arange(4.0), 1.0), obs=torch.tensor(1.0))


PLATES = {
    "no plate": ((), None),
    "plates": ((3, 2), None),
    "a subsampled plate": ((6,), 3),
}

GRID = [(hard, family, plates) for hard in (True, False) for family in PRIORS for plates in PLATES]

DISTRIBUTIONS = {
    "bernoulli": lambda logits: dist.Bernoulli(logits=logits[..., :2]).to_event(1),
    "categorical": lambda logits: dist.OneHotCategorical(logits=logits),
    "subset": lambda logits: Subset(2, logits=logits),
    "ranking": lambda logits: PlackettLuce(2, logits=logits),
}


class Site(PyroModule):
    """A model of one site, whose prior depends on a network and on constrained parameters."""

    def __init__(self, family, plates="no plate", name="z"):
        super().__init__()
        self.family, self.name, (self.sizes, self.subsample_size) = family, name, PLATES[plates]
        self.net = PyroModule[torch.nn.Linear](1, 4)

    def forward(self):
        weights = pyro.param("weights", PROBS.clone, constraint=dist.constraints.positive)
        logits = self.net(torch.ones(1)) + weights.log()
        with ExitStack() as stack:
            for dim, size in enumerate(self.sizes, start=-len(self.sizes)):
                plate = pyro.plate(f"plate{dim}", size, self.subsample_size, dim=dim)
                stack.enter_context(plate)
            return pyro.sample(self.name, DISTRIBUTIONS[self.family](logits))


def with_guide(hard, family, plates):
    """A relaxed model and its guide, with a learnt temperature, after one step of SVI."""
    temperature = LearnableTemperature(T)
    model = relaxed(Site(family, plates), temperature, hard=hard)
    guide = AutoRelaxed(model, temperature, hard=hard)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.5}), Trace_ELBO()).step()
    return model, guide


def mixture(x, subsample_size=None):
    """Two normal clusters with a common unknown shift; each point is in one of them."""
    shift = pyro.sample("shift", dist.Normal(0.0, 5.0))
    with pyro.plate("points", len(x), subsample_size=subsample_size) as index:
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.5, 0.5])))
        mean = shift + z @ torch.tensor([0.0, 6.0])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])


def clusters(n=60):
    chosen = torch.arange(n) % 3 == 0
    return torch.randn(n) + 1.5 + 6 * chosen, chosen
