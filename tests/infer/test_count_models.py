# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Models with counts, trained with 10 particles and a decaying rate.

What they find is compared with the best guide of the same family. Its ELBO is a sum over all
values, in float64 and with the distributions of Pyro.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from scipy.optimize import minimize

from pyro_gumbel import AutoRelaxed, relaxed

STEPS = 2000
TRIALS = 10
COUNTS = 200  # values of a count without an upper bound that are summed over
# A parameter of the optimum may be infinite; a mean must be among the values that are summed over.
BOUNDS = {"log_rate": (-12.0, 3.5), "log_mean": (-12.0, 3.5)}
FAR = 1.0  # how far from the prior the guide of a model without data starts, in logits or log rate

# The distributions of a guide, by the names of their parameters.
GUIDES = {
    "Bernoulli": (["logits"], lambda logits: dist.Bernoulli(logits=logits)),
    "Poisson": (["log_rate"], lambda log_rate: dist.Poisson(log_rate.exp())),
    "Binomial": (["logits"], lambda logits: dist.Binomial(TRIALS, logits=logits)),
    "BetaBinomial": (
        ["logits", "log_concentration"],
        lambda logits, log_c: dist.BetaBinomial(
            log_c.exp() * logits.sigmoid(), log_c.exp() * (-logits).sigmoid(), TRIALS
        ),
    ),
    "NegativeBinomial": (
        ["log_mean", "log_total_count"],
        lambda log_mean, log_total: dist.NegativeBinomial(
            log_total.exp(), logits=log_mean - log_total
        ),
    ),
}
VALUES = {"Bernoulli": 2, "Binomial": TRIALS + 1, "BetaBinomial": TRIALS + 1}


class Case(NamedTuple):
    """A model, the families of its guide by site, and E log p(z, x) under a guide.

    The guide is given by a table for each site, the probability of every value, which is the first
    dimension.
    """

    model: Callable
    families: dict[str, str]
    expected: Callable
    number_of_sites: int


def values_of(family):
    return torch.arange(float(VALUES.get(family, COUNTS))).unsqueeze(-1)


def seen_through(likelihood, family, prior, x):
    """Independent sites, each with an observation."""

    def model():
        with pyro.plate("sites", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    def expected(z):
        values = values_of(family)
        return (z * (prior.log_prob(values) + likelihood(values).log_prob(x))).sum()

    return Case(model, {"z": family}, expected, len(x))


def normal(z):
    return dist.Normal(z, 1.5)


def poisson_of_exp(z):
    return dist.Poisson((0.2 * z).exp())


def poisson(z):
    return dist.Poisson(0.5 + z)


def poissons():
    return "Poisson", dist.Poisson(torch.tensor([0.5, 2.0, 4.0, 8.0]))


def binomials():
    return "Binomial", dist.Binomial(TRIALS, torch.tensor([0.1, 0.4, 0.6, 0.8]))


def beta_binomials():
    alpha, beta = torch.tensor([2.0, 2.0, 0.7, 5.0]), torch.tensor([3.0, 1.0, 0.9, 5.0])
    return "BetaBinomial", dist.BetaBinomial(alpha, beta, TRIALS)


def negative_binomials():
    total_count, logits = torch.tensor([1.0, 3.0, 5.0, 0.5]), torch.tensor([0.5, 0.3, 0.0, 1.5])
    return "NegativeBinomial", dist.NegativeBinomial(total_count, logits=logits)


def gamma_poissons():
    alpha, rate = torch.tensor([2.0, 3.0, 0.8, 6.0]), torch.tensor([1.5, 0.5, 0.3, 1.0])
    return "NegativeBinomial", dist.GammaPoisson(alpha, rate)


def geometrics():
    return "NegativeBinomial", dist.Geometric(torch.tensor([0.2, 0.3, 0.5, 0.7]))


def chain():
    """Binomial counts whose logits depend on the count before, seen through a Normal."""
    x = torch.tensor([2.0, 4.0, 9.0, 8.0, 3.0])
    names = [f"z{i}" for i in range(len(x))]

    def prior(before):
        return dist.Binomial(TRIALS, logits=0.4 * (before - TRIALS / 2))

    def model():
        z = torch.tensor(4.0)
        for name, seen in zip(names, x, strict=True):
            z = pyro.sample(name, prior(z))
            pyro.sample(f"x of {name}", normal(z), obs=seen)

    def expected(**tables):
        values = values_of("Binomial")
        tables = [tables[name].squeeze(-1) for name in names]
        first = tables[0] @ prior(torch.tensor(4.0)).log_prob(values.squeeze(-1))
        seen = sum(
            q @ normal(values.squeeze(-1)).log_prob(at) for q, at in zip(tables, x, strict=True)
        )
        log_priors = prior(values).log_prob(values.squeeze(-1))  # by the count before, and this one
        return first + seen + sum(p @ log_priors @ q for p, q in pairwise(tables))

    return Case(model, dict.fromkeys(names, "Binomial"), expected, len(x))


def gated():
    """A bit times a Poisson count, seen through a Normal."""
    x = torch.tensor([0.3, 1.0, 4.0, -1.0])
    of_gate, of_count = dist.Bernoulli(torch.tensor(0.4)), dist.Poisson(torch.tensor(3.0))

    def model():
        with pyro.plate("sites", len(x)):
            gate = pyro.sample("gate", of_gate)
            count = pyro.sample("count", of_count)
            pyro.sample("x", normal(gate * count), obs=x)

    def expected(gate, count):
        gates, counts = values_of("Bernoulli").unsqueeze(1), values_of("Poisson")
        log_joint = of_gate.log_prob(gates) + of_count.log_prob(counts)
        log_joint = log_joint + normal(gates * counts).log_prob(x)
        return (gate.unsqueeze(1) * count * log_joint).sum()

    return Case(model, {"gate": "Bernoulli", "count": "Poisson"}, expected, 2 * len(x))


SEEN = {
    "poisson, normal": (normal, poissons, [1.0, 1.0, 6.0, 7.0]),
    "poisson, poisson of exp": (poisson_of_exp, poissons, [1.0, 3.0, 0.0, 6.0]),
    "binomial, normal": (normal, binomials, [2.0, 3.0, 9.0, 7.0]),
    "binomial, poisson of exp": (poisson_of_exp, binomials, [2.0, 0.0, 6.0, 3.0]),
    "beta-binomial, normal": (normal, beta_binomials, [2.0, 3.0, 9.0, 7.0]),
    "beta-binomial, poisson of exp": (poisson_of_exp, beta_binomials, [2.0, 0.0, 6.0, 3.0]),
    "negative binomial, normal": (normal, negative_binomials, [1.0, 5.0, 9.0, 0.0]),
    "negative binomial, poisson": (poisson, negative_binomials, [1.0, 5.0, 9.0, 0.0]),
    "gamma-poisson, normal": (normal, gamma_poissons, [1.0, 3.0, 5.0, 9.0]),
    "gamma-poisson, poisson": (poisson, gamma_poissons, [1.0, 3.0, 5.0, 9.0]),
    "geometric, normal": (normal, geometrics, [1.0, 3.0, 5.0, 0.0]),
}


def case_of(name):
    """In the default dtype."""
    if name in ("chain", "gated"):
        return globals()[name]()
    likelihood, prior, x = SEEN[name]
    return seen_through(likelihood, *prior(), torch.tensor(x))


def train(model, guide):
    decayed = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.02 ** (1 / STEPS)})
    elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, decayed, elbo)
    for _ in range(STEPS):
        svi.step()


def parameters_of(guide, families):
    """All parameters of a guide as one vector in float64, site by site."""
    parts = [
        getattr(getattr(guide, kind), site) for site, f in families.items() for kind in GUIDES[f][0]
    ]
    return torch.stack([part.detach().double().reshape(-1) for part in parts])


def exact_elbo(case, parameters):
    """The ELBO of a guide: E log p(z, x) plus its entropy."""
    parameters, tables, entropy = iter(parameters), {}, 0.0
    for site, family in case.families.items():
        kinds, distribution = GUIDES[family]
        q = distribution(*(next(parameters) for _ in kinds))
        log_q = q.log_prob(values_of(family))
        tables[site] = log_q.exp()
        entropy = entropy - (tables[site] * log_q).sum()
    return case.expected(**tables) + entropy


def largest_elbo(case, *starts):
    def objective(point):
        point = torch.tensor(point, requires_grad=True)
        loss = -exact_elbo(case, point.reshape(starts[0].shape))
        return loss.item(), torch.autograd.grad(loss, point)[0].cpu().numpy()

    kinds = [kind for family in case.families.values() for kind in GUIDES[family][0]]
    bounds = [BOUNDS.get(kind, (-12.0, 12.0)) for kind in kinds for _ in starts[0][0]]
    return -min(
        minimize(objective, start.flatten().cpu().numpy(), jac=True, bounds=bounds).fun
        for start in starts
    )


def gap_per_site(name, seed):
    pyro.set_rng_seed(seed)
    model = relaxed(case_of(name).model)
    guide = AutoRelaxed(model)
    guide()
    families = case_of(name).families
    start = parameters_of(guide, families)
    train(model, guide)
    found = parameters_of(guide, families)
    torch.set_default_dtype(torch.float64)
    case = case_of(name)
    gap = largest_elbo(case, start, found) - exact_elbo(case, found).item()
    return gap / case.number_of_sites


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEEN, "chain", "gated"])
def test_the_guide_is_the_best_of_its_family(name):
    assert 0 <= gap_per_site(name, seed=0) < 0.02


# A model without data: by site the prior, and the parameter that starts at another value.

PRIORS = {
    "Bernoulli": (lambda: dist.Bernoulli(torch.tensor(0.3)), "logits"),
    "Poisson": (lambda: dist.Poisson(torch.tensor(3.0)), "log_rate"),
    "Binomial": (lambda: dist.Binomial(TRIALS, torch.tensor(0.3)), "logits"),
    "BetaBinomial": (lambda: beta_binomial(2.0, 3.0), "logits"),
    "NegativeBinomial": (lambda: dist.NegativeBinomial(2.0, torch.tensor(0.6)), "log_mean"),
    "GammaPoisson": (lambda: dist.GammaPoisson(torch.tensor(2.0), 0.5), "log_mean"),
    "Geometric": (lambda: dist.Geometric(torch.tensor(0.3)), "log_mean"),
    "Multinomial": (lambda: dist.Multinomial(5, torch.tensor([0.2, 0.3, 0.5])), "logits"),
    "DirichletMultinomial": (
        lambda: dist.DirichletMultinomial(torch.tensor([1.0, 2.0, 3.0]), 5), "logits",
    ),
}  # fmt: skip


def beta_binomial(alpha, beta):
    return dist.BetaBinomial(torch.tensor(alpha), torch.tensor(beta), TRIALS)


def priors_only():
    for name, (prior, _) in PRIORS.items():
        pyro.sample(name, prior())


def support_of(prior):
    if prior.event_shape:
        counts = torch.cartesian_prod(*[torch.arange(6.0)] * 3)
        return counts[counts.sum(-1) == 5]
    return values_of(type(prior).__name__).squeeze(-1)


def divergence(q, p):
    """KL(q || p), by enumeration."""
    log_q, log_p = (d.log_prob(support_of(p)).double() for d in (q, p))
    return (log_q.exp() * (log_q - log_p)).sum().item()


def divergences(seed):
    """KL(guide || prior) at each site, before and after the training."""
    pyro.set_rng_seed(seed)
    model = relaxed(priors_only)
    guide = AutoRelaxed(model)
    guide()

    def by_site():
        return {site: divergence(guide.distribution(site), p()) for site, (p, _) in PRIORS.items()}

    with torch.no_grad():
        for site, (_, kind) in PRIORS.items():
            parameter = getattr(getattr(guide, kind), site)
            parameter.reshape(-1)[0] += FAR
    before = by_site()
    train(model, guide)
    return before, by_site()


@pytest.mark.slow
def test_the_guide_finds_the_prior():
    before, after = divergences(seed=0)
    assert min(before.values()) > 0.05
    assert max(after.values()) < 0.01
