# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""A search for an estimator of one-hot variables that needs one evaluation of the loss.

    python benchmarks/estimator_search.py exact --variables 3 --categories 6
    python benchmarks/estimator_search.py train --data mnist.npz --shape 8x16 --epochs 3

`exact` trains a tiny VAE on the digits of scikit-learn. It enumerates all outcomes of the variables
and prints the squared bias and the variance of each estimator, in units of the squared length of
the gradient, and the cosine between its mean and the gradient. The last two columns are the
progress of a gradient step of the best length along the estimate, as a share of the progress along
the gradient: for one image, and for the weights of the encoder's last layer over all images.

`train` trains the grey MNIST VAE of `mnist_vae.py` by a plain loop. It prints the mean -ELBO of
each epoch, the spread over the seeds, the test -ELBO, and the seconds of CPU time. With
`--first .5 --warm-up 15` the estimates are multiplied by a factor that grows from 1/2 to 1 in 15
epochs. Since Adam does not see the scale, that is a weight of the KL divergence that falls from 2
to 1.

An estimator is a function (x, p, D, g) -> v here: from logits x, probabilities p, one-hot samples D
and the gradient g of each image's loss at D, to the gradient v that it passes to the logits. The
shape of all of them is (images, variables, categories).
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from pyro_gumbel import LearnedCurvature

BATCH = 100

Estimate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


# Published estimators.


def times_jacobian(p: Tensor, u: Tensor) -> Tensor:
    """J(p) u = p (u - <p, u>)."""
    return p * (u - (p * u).sum(-1, True))


def straight_through(temperature: float = 1.0) -> Estimate:
    return lambda x, p, D, g: times_jacobian((x / temperature).softmax(-1), g) / temperature


def second_order(x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
    """(J(p) + (D - p) (D - p)') g / 2: ReinMax at a temperature of 1."""
    return 0.5 * (times_jacobian(p, g) + (D - p) * ((D - p) * g).sum(-1, True))


def reinmax(temperature: float) -> Estimate:
    def estimate(x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        middle = ((x / temperature).softmax(-1) + D) / 2
        return 2 * times_jacobian(middle, g) - times_jacobian(p, g) / 2

    return estimate


def relaxed_given(x: Tensor, D: Tensor, temperature: float, samples: int) -> Tensor:
    """Relaxed values of `samples` draws of perturbed logits given that D has won."""
    e = x.new_empty((samples, *x.shape)).exponential_().clamp_min_(1e-30)
    first = (e * D).sum(-1, True) * (-x.logsumexp(-1, True)).exp()
    z = -torch.where(D > 0, first, first + e * (-x).exp()).log()
    return (z / temperature).softmax(-1)


def gumbel_rao(temperature: float, samples: int) -> Estimate:
    """One sample is `gumbel_softmax`."""

    def estimate(x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        S = relaxed_given(x, D, temperature, samples)
        return times_jacobian(S, g).mean(0) / temperature

    return estimate


def reinmax_rao(temperature: float = 0.7, samples: int = 32) -> Estimate:
    def estimate(x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        S = relaxed_given(((p + D) / 2).log().clamp_min(-60), D, temperature, samples)
        return 2 * times_jacobian(S, g).mean(0) / temperature - times_jacobian(p, g) / 2

    return estimate


def gapped(temperature: float, gap: float = 1.0) -> Estimate:
    def estimate(x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        highest = x.amax(-1, True)
        moved = torch.where(D > 0, highest, torch.minimum(x, highest - gap))
        return times_jacobian((moved / temperature).softmax(-1), g) / temperature

    return estimate


def mve(tau: float) -> Estimate:
    """Hooper and Shekhovtsov (2026), literally: one solve a variable, in float64."""

    def estimate(x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        dtype = x.dtype
        p, D, g = p.double(), D.double(), g.double()
        h = g / (1 + tau * (p + (D * p).sum(-1, True)))
        u = h * (1 + tau * p) - tau * (h * p).sum(-1, True) * D
        p_j, p_l = p.unsqueeze(-1), p.unsqueeze(-2)
        pairs = (1 - torch.eye(p.shape[-1], dtype=p.dtype)) / (1 + tau * (p_j + p_l))
        diagonal = (1 + tau * p) * (p_l * pairs).sum(-1) + p / (1 + 2 * tau * p)
        A = torch.diag_embed(diagonal) - tau * p_j * p_l * pairs
        w = torch.linalg.solve(A, u.unsqueeze(-1)).squeeze(-1) * (1 + tau * p) / (1 + 2 * tau * p)
        return times_jacobian(p, w + tau * (h * D).sum(-1, True) * D).to(dtype)

    return estimate


# Tried.


def mixture(a: Estimate, b: Estimate, share: float) -> Estimate:
    return lambda x, p, D, g: share * a(x, p, D, g) + (1 - share) * b(x, p, D, g)


def pairs(power: float) -> Estimate:
    """Weights p_i^r / (p_i^r + p_k^r) of the pairs of the sample i; r = 0 is second order."""

    def estimate(x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        of_sample = (D * p).sum(-1, True) ** power
        weight = of_sample / (of_sample + p**power)
        w = p * weight * (g - (D * g).sum(-1, True))
        return w - D * w.sum(-1, True)

    return estimate


class Learning:
    """An estimator that changes with the batches."""

    is_learning = True

    def learns(self, learns: bool) -> None:
        self.is_learning = learns


class Curved(Learning):
    r"""Straight-through, corrected by a quadratic model that is learned from earlier batches.

    With :math:`d = D - p` over all variables of an image, and a matrix H that stands for the mean
    of the second derivatives of the loss, the gradient that variable l passes to its logits is

    .. math:: J(p_l) \bigl( g - H d + \tfrac{1}{2} \operatorname{diag}(H) - H_{ll}\, p_l \bigr)_l .

    For a quadratic loss with these second derivatives it is the exact gradient, without noise:
    g - H d is the gradient of the loss at p, and the other two terms are the derivative of
    <H, Cov(D)> / 2. Whatever H is, -H_lm d_m of another variable m has a mean of 0: it adds no
    bias, and takes out noise. After each batch H moves to explain the rest r = g - H d by least
    squares, with a ridge,

    .. math:: H \mathrel{+}= \text{step} \cdot
        \operatorname{sym} \bigl( (E[\operatorname{Cov} D] + \text{ridge} / K)^{-1}\,
        E[d \, (r - E r)^T] \bigr).

    :param step: the share of H that one batch replaces.
    :param ridge: relative to the mean probability.
    :param cross: whether H has blocks of different variables.
    :param rest: an estimator of what H does not explain; straight-through by default.
    """

    def __init__(
        self,
        step: float = 0.1,
        ridge: float = 1e-2,
        keep: float = 0.9,
        cross: bool = True,
        rest: Estimate | None = None,
        own: bool = True,
    ) -> None:
        self.step, self.ridge, self.keep, self.cross = step, ridge, keep, cross
        self.rest, self.own = rest or straight_through(), own
        self.batches = 0

    def __call__(self, x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        L, K = p.shape[1:]
        if not self.batches:
            self.H, self.covariance = p.new_zeros(L * K, L * K), p.new_zeros(L, K, K)
        blocks = self.blocks(self.H, L, K)
        d = D - p
        r = g - (d.flatten(1) @ self.H).view_as(d)
        if self.own:
            second = 0.5 * blocks.diagonal(dim1=1, dim2=2) - torch.einsum("bli,lij->blj", p, blocks)
            v = self.rest(x, p, D, r) + times_jacobian(p, second)
        else:
            v = self.rest(x, p, D, r + torch.einsum("bli,lij->blj", d, blocks))
        if self.is_learning:
            self.learn(p, d, r - r.mean(0))
        return v

    def learn(self, p: Tensor, d: Tensor, r: Tensor) -> None:
        B, L, K = p.shape
        now = torch.diag_embed(p.mean(0)) - torch.einsum("bli,blj->lij", p, p) / B
        self.covariance = self.covariance.lerp(now, 1 - self.keep)
        self.batches += 1
        covariance = self.covariance / (1 - self.keep**self.batches)
        ridge = self.ridge / K * torch.eye(K, dtype=p.dtype)
        products = (d.flatten(1).mT @ r.flatten(1) / B).view(L, K, L * K)
        M = torch.linalg.solve(covariance + ridge, products).reshape(L * K, L * K)
        if not self.cross:
            M = torch.block_diag(*self.blocks(M, L, K))
        self.H = self.H + self.step / 2 * (M + M.mT)

    @staticmethod
    def blocks(H: Tensor, L: int, K: int) -> Tensor:
        """The blocks on the diagonal, one a variable."""
        each = torch.arange(L)
        return H.view(L, K, L, K)[each, :, each]


class OfNetwork:
    """`Curved` with the second derivatives of the network at the draw in the place of H.

    They take a backward pass for each entry of an example.
    """

    curvature: Tensor  # of each row, as the model finds it

    def __call__(self, x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        L, K = p.shape[1:]
        r = g - (self.curvature @ (D - p).flatten(1).unsqueeze(-1)).view_as(p)
        each = torch.arange(L)
        blocks = self.curvature.view(-1, L, K, L, K)[:, each, :, each].transpose(0, 1)
        second = blocks.diagonal(dim1=2, dim2=3) / 2 - torch.einsum("bli,blij->blj", p, blocks)
        return times_jacobian(p, r + second)


class Fading(Learning):
    """From an estimator of little noise to one of little bias, over some batches."""

    def __init__(self, first: Estimate, last: Estimate, batches: int) -> None:
        self.first, self.last, self.batches = first, last, batches
        self.done = 0

    def __call__(self, x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        share = max(0.0, 1 - self.done / self.batches)
        self.done += self.is_learning
        return mixture(self.first, self.last, share)(x, p, D, g)


class Chosen(Learning):
    r"""For each variable the share of two estimators with the least mean squared error.

    It is measured. With the second one taken as unbiased, and d the second less the first, a share
    s of the second has in a batch of B images the error

    .. math:: (1 - s)^2 |E d|^2 + \operatorname{tr} \operatorname{Var}(a + s d) / B,

    which is least at (|E d|^2 - tr Cov(a, d) / B) / (|E d|^2 + tr Var(d) / B). The moments are
    running means.
    """

    def __init__(self, first: Estimate, last: Estimate, keep: float = 0.98) -> None:
        self.first, self.last, self.keep = first, last, keep
        self.moments: Tensor | None = None

    def __call__(self, x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        a = self.first(x, p, D, g)
        d = self.last(x, p, D, g) - a
        if self.is_learning:
            now = torch.stack([d.mean(0), a.mean(0), (d * d).mean(0), (a * d).mean(0)])
            self.moments = now if self.moments is None else now.lerp(self.moments, self.keep)
        assert self.moments is not None
        mean_d, mean_a, square, product = self.moments
        signal = mean_d.square().sum(-1)
        variance = (square.sum(-1) - signal) / BATCH
        covariance = (product - mean_a * mean_d).sum(-1) / BATCH
        share = ((signal - covariance) / (signal + variance)).clamp(0, 1).unsqueeze(-1)
        return a + share * d


class Packaged(Learning):
    """`pyro_gumbel.LearnedCurvature`: `Curved` with fewer parts."""

    def __init__(self) -> None:
        self.module: LearnedCurvature | None = None

    def __call__(self, x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        if self.module is None:
            self.module = LearnedCurvature(p.shape[1:]).to(p.dtype)
        rows = (t.flatten(1) for t in (g, p, D))
        return times_jacobian(p, self.module.pull(*rows, p.shape[-1]).view_as(p))

    def learns(self, learns: bool) -> None:
        if self.module is not None:
            self.module.train(learns)


# Makers, since some learn. Temperatures of the published ones are the papers'.
ESTIMATORS: dict[str, Callable[[], Estimate]] = {
    "gumbel_softmax .5": lambda: gumbel_rao(0.5, 1),
    "gumbel_rao(10) .7": lambda: gumbel_rao(0.7, 10),
    "gumbel_rao(100) .7": lambda: gumbel_rao(0.7, 100),
    "gapped .5": lambda: gapped(0.5),
    "gapped .7": lambda: gapped(0.7),
    "straight_through 1": lambda: straight_through(),
    "straight_through 1.5": lambda: straight_through(1.5),
    "second_order": lambda: second_order,
    "reinmax 1.3": lambda: reinmax(1.3),
    "reinmax 1.5": lambda: reinmax(1.5),
    "mve 5": lambda: mve(5.0),
    "mve 160": lambda: mve(160.0),
    "mve 1e5": lambda: mve(1e5),
    "reinmax_rao(32) .7": lambda: reinmax_rao(),
    "pairs .5": lambda: pairs(0.5),
    "pairs 1": lambda: pairs(1.0),
    "half straight_through, half second_order": lambda: mixture(
        straight_through(), second_order, 0.5
    ),
    "half gapped .5, half second_order": lambda: mixture(gapped(0.5), second_order, 0.5),
    "second_order, others' noise out": lambda: Curved(rest=second_order, own=False),
    "mve 160, others' noise out": lambda: Curved(rest=mve(160.0), own=False),
    "gapped .5, others' noise out": lambda: Curved(rest=gapped(0.5), own=False),
    "curved, rest by mve 5": lambda: Curved(rest=mve(5.0)),
    "curved, rest half by second_order": lambda: Curved(
        rest=mixture(straight_through(), second_order, 0.5)
    ),
    "curved, own blocks": lambda: Curved(cross=False),
    "curved, step .02": lambda: Curved(step=0.02),
    "curved": lambda: Curved(),
    "LearnedCurvature": lambda: Packaged(),
    "curvature of the network at the draw": lambda: OfNetwork(),
    "straight_through fading to second_order": lambda: Fading(
        straight_through(), second_order, batches=1500
    ),
    "gapped .5 fading to second_order": lambda: Fading(gapped(0.5), second_order, batches=1500),
    "straight_through or second_order, chosen": lambda: Chosen(straight_through(), second_order),
}


def warmed_up(estimate: Estimate, first: float, batches: float) -> Estimate:
    """The estimate times a factor that grows from `first` to 1."""
    done = itertools.count(1)

    def times_factor(x: Tensor, p: Tensor, D: Tensor, g: Tensor) -> Tensor:
        share = min(1.0, next(done) / batches) if batches else 1.0
        return (first + (1 - first) * share) * estimate(x, p, D, g)

    return times_factor


# The models.


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def draw(p: Tensor) -> Tensor:
    u = torch.rand(*p.shape[:-1], 1, dtype=p.dtype)
    return one_hot((u > p.cumsum(-1)[..., :-1]).sum(-1), p.shape[-1]).to(p.dtype)


def divergence(x: Tensor) -> tuple[Tensor, Tensor]:
    """The KL divergence of each image from the uniform prior, and its gradient in the logits."""
    log_p = x.log_softmax(-1)
    p = log_p.exp()
    each = (p * log_p).sum(-1, True)
    return (each.squeeze(-1) + math.log(x.shape[-1])).sum(-1), p * (log_p - each)


def second_derivatives(f: Tensor, D: Tensor) -> Tensor:
    """Those of losses in the entries of their own examples, as matrices."""
    (g,) = torch.autograd.grad(f.sum(), D, create_graph=True)
    entries = g.flatten(-2).unbind(-1)
    rows = [torch.autograd.grad(each.sum(), D, retain_graph=True)[0] for each in entries]
    return torch.stack([row.flatten(-2) for row in rows], -2)


class VAE:
    """An encoder, a decoder, and one-hot variables between them."""

    def __init__(self, pixels: int, widths: tuple[int, ...], L: int, K: int) -> None:
        self.L, self.K = L, K
        self.encoder = mlp(pixels, *widths, L * K)
        self.decoder = mlp(L * K, *widths[::-1], pixels)
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]

    def logits(self, images: Tensor) -> Tensor:
        return self.encoder(images).unflatten(-1, (self.L, self.K))

    def loss(self, D: Tensor, images: Tensor) -> Tensor:
        """The cross entropy of each image."""
        pixels = self.decoder(D.flatten(-2))
        target = images.expand_as(pixels)
        return binary_cross_entropy_with_logits(pixels, target, reduction="none").sum(-1)

    def gradients(self, images: Tensor, estimate: Estimate, *listeners: Estimate) -> float:
        """Fill the parameters' gradients of the mean -ELBO; the mean -ELBO is returned."""
        x = self.logits(images)
        p = x.detach().softmax(-1)
        D = draw(p).requires_grad_()
        each = self.loss(D, images)
        if isinstance(estimate, OfNetwork):
            estimate.curvature = second_derivatives(each, D)
        loss = each.sum() / len(images)
        loss.backward()
        kl, v = divergence(x.detach())
        with torch.no_grad():
            given = x.detach(), p, D.detach(), D.grad * len(images)
            v = v + estimate(*given)
            for listener in listeners:
                listener(*given)
        x.backward(v / len(images))
        return loss.item() + kl.mean().item()

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> float:
        x = self.logits(images)
        return (self.loss(draw(x.softmax(-1)), images) + divergence(x)[0]).mean().item()


# Training.


def train(estimate: Estimate, seed: int, options: argparse.Namespace) -> dict[str, list[float]]:
    torch.manual_seed(seed)
    K, L = map(int, options.shape.split("x"))
    images, held_out = options.images
    estimate = warmed_up(estimate, options.first, options.warm_up * len(images) / BATCH)
    vae = VAE(784, (512, 256), L, K)
    optimiser = torch.optim.RAdam(vae.parameters, lr=options.lr)
    start, epochs = time.process_time(), []
    for _ in range(options.epochs):
        losses = []
        for batch in torch.randperm(len(images)).split(BATCH):
            optimiser.zero_grad()
            losses.append(vae.gradients(images[batch], estimate))
            optimiser.step()
        epochs.append(statistics.mean(losses))
    seconds = time.process_time() - start
    return {"train": epochs, "test": [vae.evaluate(held_out)], "seconds": [seconds]}


def read_images(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path) as arrays:
        both = arrays["x_train"], arrays["x_test"]
    one, other = (torch.from_numpy(part).flatten(1) / 255 for part in both)
    return one, other


def print_training(options: argparse.Namespace) -> None:
    options.images = read_images(options.data)
    for name in options.estimators:
        runs = [train(ESTIMATORS[name](), seed, options) for seed in options.seeds]
        curve = [statistics.mean(at) for at in zip(*(run["train"] for run in runs), strict=True)]
        print(
            f"{name:42s} train {' '.join(f'{loss:.1f}' for loss in curve)} "
            f"+- {spread([run['train'][-1] for run in runs])}, test "
            f"{statistics.mean(run['test'][0] for run in runs):.1f} "
            f"+- {spread([run['test'][0] for run in runs])}, "
            f"{statistics.mean(run['seconds'][0] for run in runs):.0f} s",
            flush=True,
        )


def spread(values: list[float]) -> str:
    return f"{statistics.stdev(values):.1f}" if len(values) > 1 else "?"


# Exact bias and variance.


def print_exact(options: argparse.Namespace) -> None:
    from sklearn.datasets import load_digits

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(options.seeds[0])
    digits = torch.from_numpy(load_digits().data) / 16
    L, K = options.variables, options.categories
    vae = VAE(64, (64,), L, K)
    optimiser = torch.optim.Adam(vae.parameters, lr=2e-3)
    table = {name: ESTIMATORS[name]() for name in options.estimators}
    learning = [e for e in table.values() if isinstance(e, Learning)]
    step, trainer = 0, Curved()
    for stage in options.stages:
        for _ in range(step, stage):
            optimiser.zero_grad()
            vae.gradients(digits[torch.randint(len(digits), (BATCH,))], trainer, *learning)
            optimiser.step()
        step = stage
        for e in learning:
            e.learns(False)
        compare(vae, digits[: options.count], table, options)
        for e in learning:
            e.learns(True)


def compare(
    vae: VAE, images: Tensor, table: dict[str, Estimate], options: argparse.Namespace
) -> None:
    L, K, B = vae.L, vae.K, len(images)
    x = vae.logits(images).detach()
    outcomes = one_hot(torch.tensor(list(itertools.product(range(K), repeat=L))), K)
    D = outcomes.double().unsqueeze(1).repeat(1, B, 1, 1).requires_grad_()
    f = vae.loss(D, images)
    (g,) = torch.autograd.grad(f.sum(), D, retain_graph=True)
    for estimate in table.values():
        if isinstance(estimate, OfNetwork):
            estimate.curvature = second_derivatives(f, D).flatten(0, 1)
    f, D, p = f.detach(), D.detach(), x.softmax(-1)
    weights = (D * x.log_softmax(-1)).sum((-1, -2)).exp()

    def mean(values: Tensor) -> Tensor:
        return (weights.view(weights.shape + (1,) * (values.dim() - 2)) * values).sum(0)

    truth = mean(f[..., None, None] * (D - p))
    hidden = vae.encoder[:-1](images).detach()
    gram = hidden @ hidden.mT + 1  # of the last layer's weights and biases

    def of_images(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum()

    def of_weights(u: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("blk,bc,clk->", u, gram, v)

    print(f"\n-ELBO {(mean(f) + divergence(x)[0]).mean():.2f}, largest p {p.amax(-1).mean():.2f}")
    print(f"{'':42s} bias^2 variance   cosine  progress: image, weights")
    size = truth.square().sum()
    every = [t.expand(len(outcomes), B, L, K).flatten(0, 1) for t in (x, p, D, g)]
    for name, estimate in table.items():
        n = options.draws if "gumbel" in name or "rao" in name else 1
        draws = [estimate(*every).view_as(D) for _ in range(n)]
        means = torch.stack([mean(v) for v in draws])
        m = means.mean(0)
        square = torch.stack([mean(v.square().sum((-1, -2))) for v in draws]).mean(0)
        variance = square - m.square().sum((-1, -2))
        # less the noise of the mean over the draws
        bias = (m - truth).square().sum() - means.var(0, correction=n > 1).sum() / n
        cosine = of_images(m, truth) / (of_images(m, m) * size).sqrt()
        image = of_images(m, truth) ** 2 / (size * square.sum())
        noise = (gram.diagonal() * variance).sum()
        length = of_weights(truth, truth) * (of_weights(m, m) + noise)
        print(
            f"{name:42s} {bias / size:6.3f} {variance.sum() / size:8.3f} {cosine:8.3f} "
            f"{image:12.3f} {of_weights(m, truth) ** 2 / length:8.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("judge", choices=("exact", "train"))
    add = parser.add_argument
    add("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    add("--seeds", type=int, nargs="+", default=[0])
    add("--threads", type=int, default=1)
    add("--data", type=Path, help="train: an .npz file with uint8 x_train and x_test")
    add("--shape", default="8x16", help="train: CxL, L variables of C categories")
    add("--epochs", type=int, default=3)
    add("--lr", type=float, default=1e-3)
    add("--first", type=float, default=1.0, help="train: factor of the first estimates")
    add("--warm-up", type=float, default=0.0, help="train: epochs until that factor is 1")
    add("--variables", type=int, default=3, help="exact: their number")
    add("--categories", type=int, default=6)
    add("--stages", type=int, nargs="+", default=[300, 3000], help="exact: steps of training")
    add("--count", type=int, default=50, help="exact: of images")
    add("--draws", type=int, default=10, help="exact: of the noise that is not enumerated")
    options = parser.parse_args()
    if options.judge == "train" and options.data is None:
        parser.error("train: `--data` must be given")
    torch.set_num_threads(options.threads)
    (print_training if options.judge == "train" else print_exact)(options)


if __name__ == "__main__":
    main()
