# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The cost of exact gradients from outcomes, against enumeration and against plain Pyro.

    python benchmarks/outcomes.py --threads 1
    python benchmarks/outcomes.py --threads 1 --repeats 1 --size 0.05    # a try

- Steps: the loss and all gradients, by `TraceMeanField_ELBO` of a relaxed model and guide, and by
  `TraceEnum_ELBO` of the same model with the same guide, whose sites it sums over. A mixture of
  10,000 points and 20 components; a hidden Markov model of 100 steps and 4 states, with a site for
  each step, or with all states in one site; latent Dirichlet allocation of 32 documents of 64
  words, with 8 topics and a vocabulary of 1,000.
- Memory: the most that a step of the last needs, in a process of its own.
- Operations: with z of 5 draws of 4 categories, without the backward pass, beside the same
  operation on a plain z. *Normal* is constructed inside of `relaxed(model)` from plain tensors.

The contestants take turns in one process. Times are medians of processor time.
"""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor
from turns import medians, option_parser, read_options, write

from pyro_gumbel import IndexStraightThrough, relaxed

POINTS, COMPONENTS = 10_000, 20
STEPS, STATES = 100, 4
DOCUMENTS, WORDS, TOPICS, VOCABULARY = 32, 64, 8, 1000
DRAWS, CATEGORIES = 5, 4
CALLS = 100  # of a small operation, in each call that is timed

Work = Callable[[], object]


def logits(name: str, *shape: int) -> Tensor:
    return pyro.param(f"q_{name}", lambda: torch.zeros(shape))


def real(name: str, *shape: int) -> Tensor:
    return pyro.param(name, lambda: torch.randn(shape))


def positive(name: str, *shape: int) -> Tensor:
    return pyro.param(name, lambda: torch.ones(shape), constraint=constraints.positive)


def simplex(name: str, *shape: int) -> Tensor:
    start = torch.randn(shape).softmax(-1)
    return pyro.param(name, lambda: start, constraint=constraints.simplex)


# The models, with all tables learnt, and the guides.


def mixture(data: Tensor) -> None:
    weights = simplex("weights", COMPONENTS)
    locs, scales = real("locs", COMPONENTS), positive("scales", COMPONENTS)
    with pyro.plate("points", len(data)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=data)


def mixture_guide(data: Tensor) -> None:
    with pyro.plate("points", len(data)):
        pyro.sample("z", dist.Categorical(logits=logits("z", len(data), COMPONENTS)))


def looped(data: Tensor) -> None:
    transition = simplex("transition", STATES, STATES)
    locs, scales = real("locs", STATES), positive("scales", STATES)
    z = torch.tensor(0)
    for t in pyro.markov(range(len(data))):
        z = pyro.sample(f"z{t}", dist.Categorical(transition[z]))
        pyro.sample(f"x{t}", dist.Normal(locs[z], scales[z]), obs=data[t])


def looped_guide(data: Tensor) -> None:
    of_steps = logits("z", len(data), STATES)
    for t in pyro.markov(range(len(data))):
        pyro.sample(f"z{t}", dist.Categorical(logits=of_steps[t]))


def vectorised(data: Tensor) -> None:
    transition = simplex("transition", STATES, STATES)
    locs, scales = real("locs", STATES), positive("scales", STATES)
    with pyro.plate("steps", len(data)):
        uniform = dist.Categorical(logits=torch.zeros(STATES)).mask(False)
        z = pyro.sample("z", uniform)
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=data)
    log_p = transition.log()
    steps = log_p[z[..., :-1], z[..., 1:]].sum(-1)
    pyro.factor("chain", log_p[0][z[..., 0]] + steps)


def vectorised_guide(data: Tensor) -> None:
    with pyro.plate("steps", len(data)):
        pyro.sample("z", dist.Categorical(logits=logits("z", len(data), STATES)))


def topics(words: Tensor) -> None:
    of_topics = simplex("topics", TOPICS, VOCABULARY)
    shares = simplex("shares", words.shape[1], TOPICS)
    with pyro.plate("documents", words.shape[1]), pyro.plate("words", words.shape[0]):
        z = pyro.sample("z", dist.Categorical(shares))
        pyro.sample("word", dist.Categorical(of_topics[z]), obs=words)


def topics_guide(words: Tensor) -> None:
    with pyro.plate("documents", words.shape[1]), pyro.plate("words", words.shape[0]):
        pyro.sample("z", dist.Categorical(logits=logits("z", *words.shape, TOPICS)))


# Their steps.


def step(elbo: Any, model: Any, guide: Any, data: Tensor) -> Work:
    pyro.clear_param_store()
    elbo.loss(model, guide, data)  # makes the parameters
    parameters = dict(pyro.get_param_store().get_state()["params"])
    constraints_ = dict(pyro.get_param_store().get_state()["constraints"])

    def work() -> None:
        pyro.get_param_store().set_state({"params": parameters, "constraints": constraints_})
        elbo.loss_and_grads(model, guide, data)
        for parameter in parameters.values():
            parameter.grad = None

    return work


def by_relaxation(model: Any, guide: Any, data: Tensor, nesting: int) -> Work:
    elbo = TraceMeanField_ELBO(max_plate_nesting=nesting)
    return step(elbo, relaxed(model), relaxed(guide), data)


def by_enumeration(model: Any, guide: Any, data: Tensor, nesting: int) -> Work:
    elbo = TraceEnum_ELBO(max_plate_nesting=nesting)
    return step(elbo, model, config_enumerate(guide), data)


def pair(*arguments: Any) -> Mapping[str, Work]:
    return {"relaxed": by_relaxation(*arguments), "enumerated": by_enumeration(*arguments)}


def chains(data: Tensor) -> Mapping[str, Work]:
    return {
        "relaxed, one site": by_relaxation(vectorised, vectorised_guide, data, 1),
        "relaxed, a site for each step": by_relaxation(looped, looped_guide, data, 0),
        "enumerated": by_enumeration(looped, looped_guide, data, 0),
    }


def corpus(size: float) -> Tensor:
    return torch.randint(VOCABULARY, (WORDS, max(2, int(DOCUMENTS * size))))


def peak(way: str, size: float, threads: int) -> float:
    """The megabytes that a step of the topics adds to what the process has used before.

    Linux tells of kilobytes.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ways = {"relaxed": by_relaxation, "enumerated": by_enumeration}
    ways[way](topics, topics_guide, corpus(0.0), 2)()  # what happens once happens here
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work = ways[way](topics, topics_guide, corpus(size), 2)
    for _ in range(3):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peaks(size: float, threads: int) -> dict[str, float]:
    found = {}
    for way in ("relaxed", "enumerated"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[way] = pool.submit(peak, way, size, threads).result()
    return found


# Small operations.

OPERATIONS: dict[str, Callable[[Tensor, Any], object]] = {
    "a[z]": lambda z, on: on["a"][z],
    "v * x": lambda z, on: on["v"] * on["x"],
    "v + w": lambda z, on: on["v"] + on["w"],
    "v.exp()": lambda z, on: on["v"].exp(),
    "v.unsqueeze(-1)": lambda z, on: on["v"].unsqueeze(-1),
    "u.unsqueeze(-1)": lambda z, on: on["u"].unsqueeze(-1),
    "m[:, 0]": lambda z, on: on["m"][:, 0],
    "m.logsumexp(-1)": lambda z, on: on["m"].logsumexp(-1),
    "z == 1": lambda z, on: z == 1,
    "torch.where(b, x, y)": lambda z, on: torch.where(on["b"], on["x"], on["y"]),
    "v.sum()": lambda z, on: on["v"].sum(),
    "Normal(a[z], s[z]).log_prob(x)": lambda z, on: dist.Normal(on["a"][z], on["s"][z]).log_prob(
        on["x"]
    ),
    "Normal(x, y)": lambda z, on: dist.Normal(on["x"], on["y"]),
    "Categorical(logits=l)": lambda z, on: dist.Categorical(logits=on["l"]),
}


def operands(z: Tensor) -> dict[str, Tensor]:
    """Tables of the categories, a and s; x, y and l; and v, w, u, m and b, which are made of z."""
    a, s = torch.randn(CATEGORIES, requires_grad=True), torch.ones(CATEGORIES, requires_grad=True)
    m = torch.randn(CATEGORIES, 3, requires_grad=True)
    x, y = torch.randn(DRAWS), torch.rand(DRAWS) + 1
    made = {"v": a[z], "w": s[z], "u": x * a[z], "m": m[z], "b": z == 1}
    return {"a": a, "s": s, "x": x, "y": y, "l": torch.randn(DRAWS, CATEGORIES), **made}


@contextmanager
def inside(z: Tensor) -> Iterator[None]:
    """Inside of a relaxed model if z is relaxed."""
    if type(z) is Tensor:
        yield
    else:
        with relaxed():
            yield


def often(operation: Callable[[Tensor, Any], object], z: Tensor) -> Work:
    on = operands(z)

    def work() -> None:
        with inside(z):
            for _ in range(CALLS):
                operation(z, on)

    return work


def microseconds(repeats: int) -> dict[str, dict[str, float]]:
    """Of each operation, with a plain z and with one that has outcomes."""
    start = torch.zeros(DRAWS, CATEGORIES, requires_grad=True)
    relaxed_z = IndexStraightThrough(logits=start).rsample()
    found = {}
    for name, operation in OPERATIONS.items():
        contestants = {
            "plain": often(operation, relaxed_z.detach()),
            "outcomes": often(operation, relaxed_z),
        }
        times = medians(contestants, repeats, time.process_time)
        found[name] = {each: 1e6 * taken / CALLS for each, taken in times.items()}
    return found


def show(title: str, figures: dict[str, float], unit: str, factor: float = 1.0) -> None:
    """The figures, and how many times as much as that of the last contestant they are."""
    *_, last = figures.values()
    print(f"\n| {title} | {unit} | ratio |\n|---|---|---|")
    for name, figure in figures.items():
        print(f"| {name} | {factor * figure:.2f} | {figure / max(last, 1e-9):.2f} |", flush=True)


def main() -> None:
    parser = option_parser(__doc__, repeats=10)
    parser.add_argument("--size", type=float, default=1.0, help="of the data, as a multiple")
    options = read_options(parser)
    size = options.size
    points, series = (torch.randn(max(2, int(count * size))) for count in (POINTS, STEPS))
    # First: a process starts with the peak of the one that starts it.
    results: dict[str, Any] = {"megabytes": peaks(size, options.threads)}
    show("topics", results["megabytes"], "MB")
    for title, contestants in (
        ("mixture", pair(mixture, mixture_guide, points, 1)),
        ("hidden Markov model", chains(series)),
        ("topics", pair(topics, topics_guide, corpus(size), 2)),
    ):
        results[title] = medians(contestants, options.repeats, time.process_time)
        show(title, results[title], "ms", 1e3)
    results["microseconds"] = microseconds(options.repeats)
    print("\n| operation | plain, us | outcomes, us | more |\n|---|---|---|---|")
    for name, both in results["microseconds"].items():
        more = both["outcomes"] - both["plain"]
        print(f"| `{name}` | {both['plain']:.1f} | {both['outcomes']:.1f} | {more:.1f} |")
    write(options, results)


if __name__ == "__main__":
    main()
