# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The pictures of the reference, one small function each. Densities are those of the package.

It is a Sphinx extension: before the pages are read, it draws what is older than its code.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from pyro.distributions import Normal
from sphinx.application import Sphinx
from torch import Tensor

import pyro_gumbel as pg

WIDTH = 7.2  # inches
STYLE = {
    "axes.grid": True,
    "axes.prop_cycle": matplotlib.cycler(
        # Okabe and Ito's colours, which colour-blind readers can tell apart, and dashes.
        color=["#0072B2", "#D55E00", "#009E73", "#CC79A7"],
        linestyle=["-", "--", "-.", ":"],
    ),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 14,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.facecolor": "white",
    "font.size": 13,
    "grid.alpha": 0.3,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 2.5,
    "savefig.dpi": 200,
}
BLUE, ORANGE, GREEN, PURPLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
FILLS = ["#0072B2", "#56B4E9", "#F0E442", "#E69F00", "#D55E00", "#CC79A7"]
LABEL = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "boxstyle": "round,pad=0.2"}
SHADES = matplotlib.colormaps["Blues"]
TEMPERATURES = (0.5, 1.0, 2.0)
PROBS = torch.tensor([0.6, 0.3, 0.1])


def panels(columns: int, rows: int = 1, height: float = 3.2) -> tuple[Figure, Any]:
    """A figure and its axes, as an array unless there is one."""
    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


# Numbers: densities and pmfs over a moving parameter.


def density_lines(axes: Axes, grid: Tensor, distributions: dict[str, Any]) -> None:
    for label, d in distributions.items():
        axes.plot(grid, d.log_prob(grid).exp(), label=label)
    axes.set(ylim=(0, None), ylabel="density")


def relaxed_bernoulli() -> Figure:
    figure, axes = panels(2, rows=2, height=6)
    unit, line = torch.linspace(0.001, 0.999, 999), torch.linspace(-15, 15, 500)
    temperatures, logits = (0.25, 0.5, 1.0, 2.0), (-2.0, 0.0, 2.0)
    for column, (cls, grid, name) in enumerate(
        [(pg.RelaxedBernoulli, unit, "s"), (pg.LogitRelaxedBernoulli, line, "v = logit(s)")]
    ):
        of_temperature = {f"τ = {t:g}": cls(t, logits=torch.tensor(0.8)) for t in temperatures}
        of_logit = {f"x = {x:g}": cls(0.5, logits=torch.tensor(x)) for x in logits}
        density_lines(axes[0, column], grid, of_temperature)
        density_lines(axes[1, column], grid, of_logit)
        axes[1, column].set_xlabel(name)
    for row, kept in enumerate(["logit x = 0.8", "temperature τ = 0.5"]):
        axes[row, 0].set(ylim=(0, 4), title=f"value, {kept}")
        axes[row, 1].set(title="in logit space", ylabel=None)
        axes[row, 0].set_ylabel("density")
        axes[row, 0].legend(loc="upper center", ncols=2, columnspacing=1)
    return figure


def hard_concrete() -> Figure:
    figure, axes = panels(3, height=3.6)
    inside = torch.linspace(0.002, 0.998, 500)
    ends = torch.tensor([0.0, 1.0])
    for column, x in zip(axes, (-2.0, 0.0, 2.0), strict=True):
        for t, shift in ((0.2, -0.035), (2 / 3, 0.035)):
            d = pg.HardConcrete(t, logits=torch.tensor(x))
            (curve,) = column.plot(inside, d.log_prob(inside).exp(), label=f"τ = {t:.2g}")
            atoms = d.log_prob(ends).exp()  # probabilities of exactly 0 and 1
            column.bar([shift, 1 + shift], atoms.tolist(), 0.07, color=curve.get_color())
        column.set(title=f"logit {x:g}", xlabel="gate s", ylim=(0, 1.5), xticks=[0, 0.5, 1])
    axes[0].set_ylabel("density, probability")
    legend_below(figure, axes[0], 2)
    return figure


def selected_component() -> Figure:
    figure, (left, right) = panels(2, height=3.8)
    components = Normal(torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, 0.5]))
    x = torch.linspace(-4, 4, 401)
    density_lines(
        left, x, {f"z = {k}": pg.SelectedComponent(torch.tensor(k), components) for k in range(3)}
    )
    z = torch.eye(3)[torch.zeros(len(x), dtype=torch.long)].requires_grad_()
    pg.SelectedComponent(z, components).log_prob(x).sum().backward()
    right.plot(x, z.grad)
    left.set(title="density of x given z", xlabel="x")
    right.set(title="gradient in each entry of z", xlabel="x", ylim=(-20, 1))
    legend_below(figure, left, 3)
    return figure


# What a straight-through sample passes back, against a logit that moves.

LOGITS = torch.linspace(-4, 4, 41)
ESTIMATORS: dict[str, dict[str, Any]] = {
    "second order": {"temperature": None},
    "Gumbel-softmax, τ = 1": {"temperature": 1.0},
    "straight-through, τ = 1": {"temperature": 1.0, "estimator": "straight_through"},
}
WITHOUT_REPLACEMENT: dict[str, dict[str, Any]] = {
    "second order": {"temperature": None},
    "Gumbel-softmax, τ = 1": {"temperature": 1.0},
    "Gumbel-softmax, τ = 0.2": {"temperature": 0.2},
}


def exact_gradient(distribution: Any, loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The gradient of the expected loss, by a sum over all outcomes."""
    leaf = logits.clone().requires_grad_()
    d = distribution(leaf)
    outcomes = d.enumerate_support()
    (d.log_prob(outcomes).exp() * loss(outcomes)).sum().backward()
    return leaf.grad


def mean_gradient(
    distribution: Any, loss: Callable[[Tensor], Tensor], logits: Tensor, draws: int = 4000
) -> Tensor:
    """The mean of the gradients that samples pass back."""
    leaf = logits.clone().requires_grad_()
    loss(distribution(leaf).rsample((draws,))).mean(0).sum().backward()
    return leaf.grad


def gradient_lines(
    axes: Axes,
    cls: Any,
    loss: Callable[[Tensor], Tensor],
    logits: Tensor,
    estimators: dict[str, Any],
    draws: int,
) -> None:
    """The exact gradient in the logit that moves, and the mean of each estimator's."""

    def moving(gradient: Tensor) -> Tensor:
        return gradient if gradient.dim() == 1 else gradient[:, 0]

    exact = exact_gradient(lambda x: cls(None, logits=x), loss, logits)
    axes.plot(LOGITS, moving(exact), color="0.8", linestyle="-", linewidth=7, label="exact")
    for label, how in estimators.items():
        mean = mean_gradient(lambda x, how=how: cls(**how, logits=x), loss, logits, draws)
        axes.plot(LOGITS, moving(mean), label=label)
    axes.set(title="mean gradient in the logit", xlabel="logit")


def stacked(axes: Axes, pmf: Tensor, names: list[str]) -> None:
    """The probabilities of all outcomes, the first at the top, with names where there is room."""
    axes.stackplot(LOGITS, pmf.flip(0), colors=FILLS, edgecolor="white")
    tops = pmf.flip(0).cumsum(0).flip(0)
    for name, height, top in zip(names, pmf[:, 2:-2], tops[:, 2:-2], strict=True):
        widest = height.argmax()
        place = LOGITS[2 + widest].clamp(-3.3, 3.3), (top - height / 2)[widest]
        axes.text(*place, name, ha="center", va="center", bbox=LABEL)
    axes.set(title="pmf, stacked", xlabel="logit", xlim=(-4, 4), ylim=(0, 1))


def straight_through(
    cls: Any,
    loss: Callable[[Tensor], Tensor],
    logits: Tensor,
    names: list[str],
    estimators: dict[str, Any],
    draws: int = 4000,
) -> Figure:
    """The pmf of all outcomes, and the gradient, as one logit moves."""
    figure, (left, right) = panels(2, height=4.4)
    d = cls(None, logits=logits)
    stacked(left, d.log_prob(d.enumerate_support()).exp(), names)
    gradient_lines(right, cls, loss, logits, estimators, draws)
    legend_below(figure, right, 2)
    return figure


def first_moves(*others: float) -> Tensor:
    return torch.stack([LOGITS, *(torch.full_like(LOGITS, x) for x in others)], -1)


def squared_distance(value: Tensor) -> Tensor:
    return (value - 0.45).square()


def squared_distance_of_mean(value: Tensor) -> Tensor:
    weights = torch.arange(value.shape[-1], dtype=value.dtype)
    return squared_distance(value @ weights)


def squared_distance_of_rows(value: Tensor) -> Tensor:
    ranks = value * torch.arange(1.0, 1 + value.shape[-2]).unsqueeze(-1)
    return squared_distance_of_mean(ranks.sum(-2))


def with_size(cls: Any) -> Callable[..., Any]:
    """A class of subsets or rankings, to choose two."""
    return lambda temperature, **given: cls(temperature, 2, **given)


def index_straight_through() -> Figure:
    locs, scales = torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, 0.5])

    def loss(loc: Tensor, scale: Tensor) -> Tensor:
        return (loc - 0.5).square() / (2 * scale.square()) + scale.log()

    figure, (left, right) = panels(2, height=4.4)
    logits = first_moves(0.0, 1.0)
    stacked(left, logits.softmax(-1).T, ["z = 0", "z = 1", "z = 2"])
    one_hot, index = pg.CategoricalStraightThrough, pg.IndexStraightThrough

    def of_one_hot(d: Tensor) -> Tensor:
        return loss(d @ locs, d @ scales)

    exact = exact_gradient(lambda x: one_hot(logits=x), of_one_hot, logits)[:, 0]
    right.plot(LOGITS, exact, color="0.8", linestyle="-", linewidth=7, label="exact")
    of_index = mean_gradient(lambda x: index(logits=x), lambda z: loss(locs[z], scales[z]), logits)
    right.plot(LOGITS, of_index[:, 0], label="index")
    for label, how in list(ESTIMATORS.items())[:2]:
        mean = mean_gradient(lambda x, how=how: one_hot(**how, logits=x), of_one_hot, logits)
        right.plot(LOGITS, mean[:, 0], label=f"one-hot, {label}")
    right.set(title="mean gradient in the logit", xlabel="logit")
    legend_below(figure, right, 2)
    return figure


# Counts.


def count(make: Callable[[Tensor], Any], parameters: dict[str, float], symbol: str) -> Figure:
    """The pmf as a parameter moves, and the derivative of samples in it."""
    figure, (left, right) = panels(2, height=4)
    values = torch.arange(21.0)
    marks = zip(parameters.items(), (BLUE, ORANGE, GREEN), ("o", "s", "^"), strict=True)
    for (label, parameter), colour, mark in marks:
        d = make(torch.tensor(parameter))
        possible = values[d.support.check(values)]
        style = {"color": colour, "marker": mark, "linestyle": "-", "linewidth": 1}
        left.plot(possible, d.log_prob(possible).exp(), label=label, **style)
        drawn, slopes = slopes_of_draws(make, parameter)
        right.plot(drawn, slopes, color=colour, marker=mark, linestyle="", alpha=0.5, markersize=5)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set(title="pmf", xlabel="count D", ylim=(0, None))
    right.set(title=f"derivative of D in {symbol}", xlabel="count D drawn")
    legend_below(figure, left, 3)
    return figure


def slopes_of_draws(make: Callable[[Tensor], Any], parameter: float) -> tuple[Tensor, Tensor]:
    """Draws, and the derivative of each in its own copy of the parameter."""
    leaf = torch.full((150,), parameter, requires_grad=True)
    drawn = make(leaf).rsample()
    drawn.sum().backward()
    return drawn.detach(), leaf.grad


def poisson() -> Figure:
    return count(pg.PoissonStraightThrough, {"λ = 1": 1.0, "λ = 4": 4.0, "λ = 9": 9.0}, "λ")


def binomial() -> Figure:
    parameters = {"p = 0.1": 0.1, "p = 0.5": 0.5, "p = 0.8": 0.8}
    return count(lambda p: pg.BinomialStraightThrough(10, p), parameters, "p")


def negative_binomial() -> Figure:
    parameters = {"p = 0.2": 0.2, "p = 0.5": 0.5, "p = 0.7": 0.7}
    return count(lambda p: pg.NegativeBinomialStraightThrough(3.0, p), parameters, "p")


def geometric() -> Figure:
    parameters = {"p = 0.7": 0.7, "p = 0.4": 0.4, "p = 0.2": 0.2}
    return count(pg.GeometricStraightThrough, parameters, "p")


def beta_binomial() -> Figure:
    def make(alpha: Tensor) -> Any:
        return pg.BetaBinomialStraightThrough(alpha, torch.full_like(alpha, 2.0), 10)

    return count(make, {"α = 0.5": 0.5, "α = 2": 2.0, "α = 8": 8.0}, "α")


def gamma_poisson() -> Figure:
    def make(alpha: Tensor) -> Any:
        return pg.GammaPoissonStraightThrough(alpha, torch.full_like(alpha, 0.5))

    return count(make, {"α = 0.5": 0.5, "α = 2": 2.0, "α = 4": 4.0}, "α")


# Triangles: three categories.

CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
OFFSETS = torch.tensor([[-0.03, -0.12], [0.03, -0.12], [0.0, 0.11]])


def in_plane(points: Tensor) -> tuple[Tensor, Tensor]:
    """The place of points of the simplex in the picture."""
    x, y = (points @ CORNERS).unbind(-1)
    return x, y


def triangle(axes: Axes, title: str, corners: list[str]) -> None:
    axes.set_axis_off()
    axes.set(aspect="equal", title=title, xlim=(-0.15, 1.15), ylim=(-0.2, 1.04))
    axes.fill(*CORNERS.T, fill=False, edgecolor="0.4", linewidth=1)
    for name, (x, y) in zip(corners, (CORNERS + OFFSETS).tolist(), strict=True):
        axes.text(x, y, name, ha="center", va="center", fontsize=12)


def inner_points(steps: int = 100) -> Tensor:
    """Points inside of the simplex."""
    whole = torch.tensor(
        [(i, j, steps - i - j) for i in range(1, steps) for j in range(1, steps - i)]
    )
    return whole / steps


LEVELS = [0, 0.125, 0.25, 0.5, 1, 2, 4, 8]
NORM = BoundaryNorm(LEVELS, SHADES.N, extend="max")


def density_on_triangle(axes: Axes, density: Tensor, points: Tensor) -> None:
    """By shades for the ratio to the uniform density on the triangle, which is 2."""
    axes.tricontourf(
        *in_plane(points), density / 2, levels=LEVELS, cmap=SHADES, norm=NORM, extend="max"
    )


def shades(figure: Figure, axes: Any) -> None:
    bar = figure.colorbar(
        ScalarMappable(NORM, SHADES), ax=axes, ticks=LEVELS, location="bottom", aspect=40
    )
    bar.set_ticklabels(["0", "1/8", "1/4", "1/2", "1", "2", "4", "8"])
    bar.set_label("density, as a multiple of the uniform one")


ONE_OF_THREE, TWO_OF_THREE = ["1", "2", "3"], ["2, 3", "1, 3", "1, 2"]


def relaxed_categorical() -> Figure:
    figure, axes = panels(3, rows=2, height=6)
    points = inner_points()
    for row, probs in zip(axes, (torch.ones(3) / 3, PROBS), strict=True):
        for column, t in zip(row, TEMPERATURES, strict=True):
            density = pg.RelaxedCategorical(t, probs).log_prob(points).exp()
            density_on_triangle(column, density, points)
            triangle(column, f"τ = {t:g}", ONE_OF_THREE)
    for row, text in zip(axes, ("p: 1/3, 1/3, 1/3", "p: 0.6, 0.3, 0.1"), strict=True):
        row[0].text(-0.22, 0.45, text, rotation=90, va="center", ha="center")
    shades(figure, axes)
    return figure


SHARES = [0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]  # of the largest density


def exp_relaxed_categorical() -> Figure:
    figure, axes = panels(3, height=3)
    side = torch.linspace(-8, 8, 161)
    ratios = torch.stack([*torch.meshgrid(side, side, indexing="xy"), torch.zeros(161, 161)], -1)
    for column, t in zip(axes, TEMPERATURES, strict=True):
        density = pg.ExpRelaxedCategorical(t, PROBS).log_prob(ratios.log_softmax(-1)).exp()
        column.contourf(side, side, density / density.max(), SHARES, cmap=SHADES)
        column.set(aspect="equal", title=f"τ = {t:g}", xlabel="v₁ − v₃", xticks=[-5, 0, 5])
        column.set_yticks([-5, 0, 5])
    axes[0].set_ylabel("v₂ − v₃")
    return figure


def multinomial_triangle(axes: Axes, d: Any, title: str) -> None:
    """A disc for each vector of counts, with an area in proportion to its probability."""
    n = int(d.total_count)
    values = torch.tensor([v for v in itertools.product(range(n + 1), repeat=3) if sum(v) == n])
    pmf = d.log_prob(values.float()).exp()
    triangle(axes, title, ONE_OF_THREE)
    axes.scatter(*in_plane(values / n), s=2500 * pmf, color=BLUE, linewidths=0, zorder=3)


def multinomial() -> Figure:
    figure, axes = panels(3, height=2.9)
    for column, p in zip(axes, ((1, 1, 1), (6, 3, 1), (1, 0, 1)), strict=True):
        d = pg.MultinomialStraightThrough(6, torch.tensor(p, dtype=torch.float32))
        share = ", ".join(f"{each / sum(p):.2g}" for each in p)
        multinomial_triangle(column, d, f"p: {share}")
    return figure


def dirichlet_multinomial() -> Figure:
    figure, axes = panels(3, height=2.9)
    for column, alpha in zip(axes, ((0.3, 0.3, 0.3), (1, 1, 1), (6, 3, 1)), strict=True):
        d = pg.DirichletMultinomialStraightThrough(torch.tensor(alpha) * 1.0, 6)
        title = "α: " + ", ".join(f"{each:g}" for each in alpha)
        multinomial_triangle(column, d, title)
    return figure


def relaxed_plackett_luce() -> Figure:
    figure, axes = panels(3, height=3.2)
    for column, t in zip(axes, TEMPERATURES, strict=True):
        rows = pg.RelaxedPlackettLuce(t, 2, PROBS).sample((150,))
        triangle(column, f"τ = {t:g}", ONE_OF_THREE)
        for j, (colour, mark) in enumerate(((BLUE, "o"), (ORANGE, "x"))):
            points = in_plane(rows[:, j])
            style = {"color": colour, "marker": mark, "alpha": 0.7, "clip_on": False}
            column.scatter(*points, s=18, label=f"row {j + 1}", zorder=3, **style)
    legend_below(figure, axes[0], 2)
    return figure


# Subsets of four: the octahedron. Rankings of three: the hexagon.

PAIRS = list(itertools.combinations(range(4), 2))
# Where the six pairs are: opposite corners have no category in common.
OCTAHEDRON = torch.tensor(
    [[0.0, 1.0], [-0.95, 0.12], [0.35, -0.28], [-0.35, 0.28], [0.95, -0.12], [0.0, -1.0]]
)
FOUR = torch.tensor([0.4, 0.3, 0.2, 0.1])


def on_octahedron(values: Tensor) -> Tensor:
    """The place in the picture of vectors with sum 2: linear, with the pairs at the corners."""
    corners = torch.zeros(len(PAIRS), 4)
    for row, pair in zip(corners, PAIRS, strict=True):
        row[list(pair)] = 1.0
    return values @ torch.linalg.lstsq(corners, OCTAHEDRON).solution


def octahedron(axes: Axes, title: str) -> None:
    axes.set_axis_off()
    axes.set(aspect="equal", title=title, xlim=(-1.4, 1.4), ylim=(-1.35, 1.35))
    for (i, a), (j, b) in itertools.combinations(enumerate(PAIRS), 2):
        if set(a) & set(b):
            dashes = ":" if 3 in (i, j) else "-"  # behind
            axes.plot(*OCTAHEDRON[[i, j]].T, color="0.6", linewidth=1, linestyle=dashes)
    outer = OCTAHEDRON + 0.3 * OCTAHEDRON / OCTAHEDRON.norm(dim=-1, keepdim=True)
    for (a, b), (x, y) in zip(PAIRS, outer.tolist(), strict=True):
        name = f"{a + 1}, {b + 1}"
        axes.text(x, y, name, ha="center", va="center", fontsize=11, bbox=LABEL, zorder=4)


def subset() -> Figure:
    figure, (left, right) = panels(2, height=3.6)
    for size, colour in zip((1, 2, 3), (BLUE, ORANGE, GREEN), strict=True):
        mean = pg.Subset(size, FOUR).mean.tolist()
        left.bar([i + 0.27 * (size - 2) for i in range(1, 5)], mean, 0.25, color=colour, label=size)
    left.set(title="chance to be chosen", xlabel="category", xticks=[1, 2, 3, 4], ylim=(0, 1))
    left.legend(title="size m", ncols=3, loc="upper right", columnspacing=0.8)
    left.set_ylim(0, 1.3)
    left.set_yticks([0, 0.5, 1])
    d = pg.Subset(2, FOUR)
    pmf = d.log_prob(d.enumerate_support()).exp()
    octahedron(right, "pmf of the pairs")
    right.scatter(*OCTAHEDRON.T, s=1500 * pmf, color=BLUE, zorder=3, alpha=0.8)
    return figure


def relaxed_subset() -> Figure:
    figure, axes = panels(3, rows=2, height=6)
    points = inner_points()
    for (top, bottom), t in zip(axes.T, (0.25, 0.5, 1.0), strict=True):
        # Two of three: 1 - s is on the triangle, so that corner i is the pair without i.
        density = pg.RelaxedSubset(t, 2, PROBS).log_prob(1 - points).exp()
        density_on_triangle(top, density, points)
        triangle(top, f"τ = {t:g}", TWO_OF_THREE)
        octahedron(bottom, f"τ = {t:g}")
        drawn = on_octahedron(pg.RelaxedSubset(t, 2, FOUR).sample((300,)))
        bottom.scatter(*drawn.T, s=10, color=BLUE, alpha=0.6, linewidths=0, zorder=3)
    shades(figure, axes)
    return figure


RANKINGS = list(itertools.permutations(range(3)))


def plackett_luce() -> Figure:
    figure, (left, right) = panels(2, height=3.6)
    d = pg.PlackettLuce(3, PROBS)
    pmf = d.log_prob(d.enumerate_support()).exp()
    hexagon(left, pmf)
    right.imshow(d.mean.tolist(), cmap=SHADES, vmin=0, vmax=1)
    right.grid(False)
    right.set(title="P(j-th draw is i)", xlabel="category i", ylabel="draw j")
    right.set_xticks(range(3), ["1", "2", "3"])
    right.set_yticks(range(3), ["1", "2", "3"])
    for j, i in itertools.product(range(3), repeat=2):
        p = d.mean[j, i].item()
        colour = "white" if p > 0.5 else "black"
        right.text(i, j, f"{p:.2f}", ha="center", va="center", color=colour)
    return figure


def hexagon(axes: Axes, pmf: Tensor) -> None:
    """The rankings; neighbours differ by an exchange of two that follow one another."""
    axes.set_axis_off()
    axes.set(aspect="equal", title="pmf of the rankings", xlim=(-1.8, 1.8), ylim=(-1.45, 1.45))
    round_it = [(0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0), (1, 2, 0), (1, 0, 2)]
    angles = torch.arange(6) * torch.pi / 3 + torch.pi / 2
    places = torch.stack([angles.cos(), angles.sin()], -1)
    axes.fill(*places.T, fill=False, edgecolor="0.6", linewidth=1)
    sizes = torch.stack([pmf[RANKINGS.index(each)] for each in round_it])
    axes.scatter(*places.T, s=1500 * sizes, color=BLUE, zorder=3, alpha=0.8)
    outer = places * torch.tensor([1.6, 1.35])
    for ranking, (x, y) in zip(round_it, outer.tolist(), strict=True):
        axes.text(x, y, ", ".join(str(i + 1) for i in ranking), ha="center", va="center")


PICTURES: dict[str, Callable[[], Figure]] = {
    "bernoulli_straight_through": partial(
        straight_through,
        pg.BernoulliStraightThrough,
        squared_distance,
        LOGITS,
        ["0", "1"],
        ESTIMATORS,
    ),
    "beta_binomial": beta_binomial,
    "binomial": binomial,
    "categorical_straight_through": partial(
        straight_through,
        pg.CategoricalStraightThrough,
        squared_distance_of_mean,
        first_moves(0.0, 1.0),
        ["1", "2", "3"],
        ESTIMATORS,
    ),
    "dirichlet_multinomial": dirichlet_multinomial,
    "exp_relaxed_categorical": exp_relaxed_categorical,
    "gamma_poisson": gamma_poisson,
    "geometric": geometric,
    "hard_concrete": hard_concrete,
    "index_straight_through": index_straight_through,
    "multinomial": multinomial,
    "negative_binomial": negative_binomial,
    "plackett_luce": plackett_luce,
    "plackett_luce_straight_through": partial(
        straight_through,
        with_size(pg.PlackettLuceStraightThrough),
        squared_distance_of_rows,
        first_moves(0.0, 1.0),
        ["1, 2", "1, 3", "2, 1", "2, 3", "3, 1", "3, 2"],
        WITHOUT_REPLACEMENT,
    ),
    "poisson": poisson,
    "relaxed_bernoulli": relaxed_bernoulli,
    "relaxed_categorical": relaxed_categorical,
    "relaxed_plackett_luce": relaxed_plackett_luce,
    "relaxed_subset": relaxed_subset,
    "selected_component": selected_component,
    "subset": subset,
    "subset_straight_through": partial(
        straight_through,
        with_size(pg.SubsetStraightThrough),
        squared_distance_of_mean,
        first_moves(0.0, 1.0),
        ["1, 2", "1, 3", "2, 3"],
        WITHOUT_REPLACEMENT,
        draws=400,
    ),
}


def draw(name: str, path: Path) -> None:
    """Write one picture, from seed 0."""
    with torch.random.fork_rng(), matplotlib.rc_context(STYLE):
        torch.manual_seed(0)
        PICTURES[name]().savefig(path)


def draw_all(app: Sphinx) -> None:
    """Draw every picture that is older than this file or the package."""
    folder = Path(app.srcdir, "_build", "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    code = [Path(__file__), *Path(pg.__file__).parent.rglob("*.py")]
    changed = max(path.stat().st_mtime for path in code)
    for name in PICTURES:
        path = folder / f"{name}.png"
        if not path.exists() or path.stat().st_mtime < changed:
            draw(name, path)


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("builder-inited", draw_all)
    return {"parallel_read_safe": True}
