# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Small shapes on a CPU: our classes against bare functions of the same operations, and Pyro's.

    python benchmarks/bare.py --threads 1

A bare function is an `autograd.Function` that draws, evaluates its own log p(y) and has an analytic
backward pass, for logits that are finite and near 0. There is no distribution, no check, no memory
of a draw, and no other path. It shows what torch's operations take, written in the obvious way.

The works of one call: "rsample" draws y from a distribution that is there; "draw" constructs it
from logits x first; "all" also evaluates log p(y), and differentiates sum(log p(y)) + sum(y * y) in
x, of straight-through classes sum(y * w), w fixed. Logits are the result of an operation, in
float32, and the temperature is 0.5. Distributions check their arguments, as they do by default,
unless it says otherwise.

"SVI" is a step of `Trace_ELBO` with `AutoRelaxed` and temperature 0.5, of the relaxed model and of
the plain one, against the plain model with a guide written by hand of Pyro's own straight-through
classes: 20 sites of one bit or one of three categories each, and a mixture of 100 points.

Contestants take turns of many calls in one process, so that the code of each is in the processor's
cache. Printed are median microseconds of the processor, and how many times as long ours takes.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.autograd import Function
from turns import option_parser, read_options, write

from pyro_gumbel import (
    AutoRelaxed,
    BernoulliStraightThrough,
    CategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedCategorical,
    relaxed,
)
from pyro_gumbel.ops.noise import exponential, logistic

TEMPERATURE = 0.5
SITES, POINTS = 20, 100

SHAPES = {(64, 10): 50, (4096, 64): 5}  # calls a turn
STEPS = 5  # of SVI a turn

Work = Callable[[], object]
CPU = {"dtype": torch.float32, "device": torch.device("cpu")}


class BareRelaxed(Function):
    """From x and tau to s and log p(s), on the simplex."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        k = x.shape[-1]
        e = exponential(x.shape, **CPU)
        log_p = e.sum(-1).log_().mul_(-k)
        e.log_()
        log_p.add_(e.sum(-1))
        v = torch.sub(x, e).div_(tau)
        v.sub_(v.logsumexp(-1, keepdim=True))
        log_p.sub_(v.sum(-1)).add_(math.lgamma(k) + (k - 1) * math.log(tau))
        s = v.exp_()
        ctx.tau = tau
        ctx.save_for_backward(s)
        return s, log_p

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log_prob: Tensor) -> tuple[Tensor, None]:
        (s,) = ctx.saved_tensors
        u = (grad * s).sub_(grad_log_prob.unsqueeze(-1))
        return torch.addcmul(u, s, u.sum(-1, keepdim=True), value=-1).div_(ctx.tau), None


class BareBits(Function):
    """From x and tau to s and log p(s), on the interval."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        noise = logistic(x.shape, **CPU)
        log_p = logistic_log_density(noise).add_(math.log(tau))
        v = noise.add_(x).div_(tau)
        log_p.sub_(logistic_log_density(v))
        ctx.tau = tau
        s = v.sigmoid()
        ctx.save_for_backward(s, v)
        return s, log_p

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log_prob: Tensor) -> tuple[Tensor, None]:
        s, v = ctx.saved_tensors
        r = (grad * s).mul_((-v).sigmoid_()).add_((v / 2).tanh_().mul_(grad_log_prob))
        return r.div_(ctx.tau), None


def logistic_log_density(v: Tensor) -> Tensor:
    size = v.abs()
    return size.neg().exp_().log1p_().mul_(-2).sub_(size)


class BareOneHot(Function):
    """From x and tau to one-hot vectors, with the gradient of the relaxed ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: float) -> Tensor:
        z = torch.sub(x, exponential(x.shape, **CPU).log_())
        ctx.tau = tau
        ctx.save_for_backward(z)
        return torch.zeros_like(z).scatter_(-1, z.argmax(-1, keepdim=True), 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        s = z.div(ctx.tau).softmax(-1)
        u = grad * s
        return torch.addcmul(u, s, u.sum(-1, keepdim=True), value=-1).div_(ctx.tau), None


class BareHardBits(Function):
    """From x and tau to bits, with the gradient of the relaxed ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: float) -> Tensor:
        z = logistic(x.shape, **CPU).add_(x)
        ctx.tau = tau
        ctx.save_for_backward(z)
        return z.ge(0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        v = z / ctx.tau
        return (grad * v.sigmoid()).mul_(v.neg_().sigmoid_()).div_(ctx.tau), None


SOFT = {
    "categories": (BareRelaxed, RelaxedCategorical, dist.RelaxedOneHotCategorical),
    "bits": (BareBits, RelaxedBernoulli, dist.RelaxedBernoulli),
}
HARD = {
    "categories": (
        BareOneHot,
        CategoricalStraightThrough,
        dist.RelaxedOneHotCategoricalStraightThrough,
    ),
    "bits": (BareHardBits, BernoulliStraightThrough, dist.RelaxedBernoulliStraightThrough),
}


def soft_works(kind: str, x: Tensor) -> dict[str, dict[str, Work]]:
    bare, *families = SOFT[kind]

    def bare_all() -> None:
        y, log_prob = bare.apply(x, TEMPERATURE)
        torch.autograd.grad(log_prob.sum() + (y * y).sum(), x)

    def everything(make: Callable[[], Any]) -> None:
        d = make()
        y = d.rsample()
        torch.autograd.grad(d.log_prob(y).sum() + (y * y).sum(), x)

    makers = makers_of(*families, x)
    by_all = {name: partial(everything, make) for name, make in makers.items()}
    return {**draws(bare, makers, x), "all": {"bare": bare_all, **by_all}}


def hard_works(kind: str, x: Tensor) -> dict[str, dict[str, Work]]:
    bare, *families = HARD[kind]
    w = torch.randn(x.shape)

    def everything(draw: Callable[[], Any]) -> None:
        torch.autograd.grad((draw() * w).sum(), x)

    works = draws(bare, makers_of(*families, x), x)
    by_all = {name: partial(everything, each) for name, each in works["draw"].items()}
    return {**works, "all": by_all}


def makers_of(ours: Any, pyros: Any, x: Tensor) -> dict[str, Callable[[], Any]]:
    """What constructs each distribution."""
    tau = torch.tensor(TEMPERATURE)
    return {
        "ours": lambda: ours(TEMPERATURE, logits=x),
        "ours, unchecked": lambda: ours(TEMPERATURE, logits=x, validate_args=False),
        "Pyro's, unchecked": lambda: pyros(tau, logits=x, validate_args=False),
    }


def draws(bare: Any, makers: dict[str, Callable[[], Any]], x: Tensor) -> dict[str, dict[str, Work]]:
    """A draw from a distribution that is there, and from one that is constructed first."""
    from_logits = {"bare": partial(bare.apply, x, TEMPERATURE)}

    def draw(make: Callable[[], Any]) -> Tensor:
        return make().rsample()

    return {
        "rsample": from_logits | {name: make().rsample for name, make in makers.items()},
        "draw": from_logits | {name: partial(draw, make) for name, make in makers.items()},
    }


def many_sites() -> tuple[Callable[[], None], Callable[[], None]]:
    """A model of small discrete sites, and a guide of Pyro's classes."""
    names = [f"z{i}" for i in range(SITES)]
    weights = torch.linspace(-1, 1, 3)

    def model() -> None:
        total = torch.zeros(())
        for i, name in enumerate(names):
            if i % 2:
                total = total + pyro.sample(name, dist.Bernoulli(0.4))
            else:
                z = pyro.sample(name, dist.OneHotCategorical(torch.ones(3)))
                total = total + (z * weights).sum()
        pyro.sample("x", dist.Normal(total, 1.0), obs=torch.tensor(3.0))

    def guide() -> None:
        tau = torch.tensor(TEMPERATURE)
        for i, name in enumerate(names):
            logits = pyro.param(f"logits.{name}", torch.zeros(() if i % 2 else (3,)))
            family = HARD["bits" if i % 2 else "categories"][-1]
            pyro.sample(name, family(tau, logits=logits))

    return model, guide


def mixture() -> tuple[Callable[[], None], Callable[[], None]]:
    """A mixture of three components, and a guide of Pyro's class."""
    x, locs = torch.randn(POINTS), torch.tensor([-2.0, 0.0, 2.0])

    def model() -> None:
        with pyro.plate("points", POINTS):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3)))
            pyro.sample("x", dist.Normal((z * locs).sum(-1), 1.0), obs=x)

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(POINTS, 3))
        with pyro.plate("points", POINTS):
            family = dist.RelaxedOneHotCategoricalStraightThrough
            pyro.sample("z", family(torch.tensor(TEMPERATURE), logits=logits))

    return model, guide


def svi_works(model: Callable[[], None], guide: Callable[[], None]) -> dict[str, Work]:
    ours = relaxed(model, TEMPERATURE)
    pairs = {
        "ours": (ours, AutoRelaxed(ours, TEMPERATURE)),
        "ours, plain model": (model, AutoRelaxed(model, TEMPERATURE)),
        "Pyro's": (model, guide),
    }
    return {name: SVI(*pair, Adam({"lr": 1e-3}), Trace_ELBO()).step for name, pair in pairs.items()}


def turn(work: Work, calls: int) -> float:
    """The seconds of a call."""
    start = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - start) / calls


def measured(
    title: str, works: dict[str, Work], calls: int, options: argparse.Namespace
) -> dict[str, float]:
    """The median seconds of each, after a round to warm up, and a line that shows them."""
    turns: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.repeats + 1):
        for name, work in works.items():
            turns[name].append(turn(work, calls))
    taken = {name: statistics.median(each[1:]) for name, each in turns.items()}
    ours = taken["ours"]
    cells = (f"{name} {1e6 * each:.0f} ({ours / each:.2f})" for name, each in taken.items())
    print(f"{title}: {', '.join(cells)}", flush=True)
    return taken


def main() -> None:
    options = read_options(option_parser(__doc__, repeats=40))
    results: dict[str, Any] = {}
    for shape, calls in SHAPES.items():
        x = torch.randn(shape, requires_grad=True) * 1
        for kind in SOFT:
            for form, make in (("soft", soft_works), ("hard", hard_works)):
                for work, works in make(kind, x).items():
                    title = f"{shape[0]}x{shape[1]} {kind}, {form}, {work}"
                    results[title] = measured(title, works, calls, options)
    for title, pair in (("SVI, 20 sites", many_sites()), ("SVI, mixture", mixture())):
        results[title] = measured(title, svi_works(*pair), STEPS, options)
    write(options, {"seconds": results})


if __name__ == "__main__":
    main()
