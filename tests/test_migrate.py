# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The lines of docs/migrate.md run, and differ as its third columns say."""

import functools
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import one_hot

from pyro_gumbel import IndexStraightThrough, RelaxedBernoulli
from tests.common import assert_same_mean, z_bound

pytestmark = pytest.mark.cpu(reason="the examples run on the CPU")

PAGE = Path(__file__).parent.parent / "docs" / "migrate.md"
ROWS = 5000  # in place of the 1000 of the page, for the frequencies


def rows_of(header):
    """The rows of the table with this header: their line, ours, and the difference."""
    start = re.escape(f"| {header} | here | what differs |\n|---|---|---|\n")
    (table,) = re.findall(rf"^{start}((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    rows = re.findall(r"^\| `(.*)` \| `(.*)` \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) == len(table.splitlines())
    return rows


def names():
    """The names of the lines. The logits are leaves."""
    scope = {"alpha": torch.ones(3), "scores": torch.tensor([1.0, 2.0, 3.0])}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(in_many_rows(block), PAGE.name, "exec"), scope)
    for name in ("x", "X"):
        scope[name].requires_grad_()
    return scope


def in_many_rows(code):
    return code.replace("1000", str(ROWS))


@functools.cache
def shared_names():
    pyro.set_rng_seed(1)  # not that of the tests: the noise of the lines would be that of logits
    return names()


def evaluated(line):
    return eval(in_many_rows(line), shared_names())


def gradient_of(value):
    """In the logits, of a weighted sum of all entries."""
    weights = torch.linspace(1, 2, value.numel()).reshape(value.shape)
    leaves = [shared_names()[name] for name in ("x", "X")]
    total = (weights * value).sum()
    return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)


def assert_same_shapes(theirs, ours):
    assert theirs.batch_shape == ours.batch_shape
    assert theirs.event_shape == ours.event_shape


def assert_same_density(theirs, ours):
    assert_same_shapes(theirs, ours)
    assert theirs.rsample().shape == ours.rsample().shape
    value = ours.sample().clone()
    if isinstance(ours, RelaxedBernoulli):
        value = value.clamp(0.01, 0.99)  # where float32 has its logit
    torch.testing.assert_close(theirs.log_prob(value), ours.log_prob(value), rtol=1e-4, atol=1e-4)


def assert_discrete_log_prob(theirs, ours):
    assert_same_shapes(theirs, ours)
    discrete = dist.OneHotCategorical if ours.event_shape else dist.Bernoulli
    for value in (theirs.rsample(), ours.rsample()):
        assert ((value == 0) | (value == 1)).all()
        exact = discrete(logits=ours.logits).log_prob(value.detach())
        torch.testing.assert_close(ours.log_prob(value), exact)


def assert_same_gradient(theirs, ours):
    assert_same_shapes(theirs, ours)
    found = [gradient_of(d.rsample()) for d in (theirs, ours)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def assert_same_probabilities(theirs, ours):
    assert_same_shapes(theirs, ours)
    value = theirs.sample()
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
    assert ours.has_rsample
    assert not theirs.has_rsample
    sample = ours.rsample()
    looked_up = torch.arange(3.0)[sample] if isinstance(ours, IndexStraightThrough) else sample
    assert any(gradient.abs().sum() > 0 for gradient in gradient_of(looked_up))


def features(value):
    """Of each row: which entries are largest or 1, by themselves and in pairs, and two moments."""
    value = value.detach()
    hard = (value > 0.5).float()
    if value.dim() == 2 and value.sum(-1).max() < 1.5:
        hard = one_hot(value.argmax(-1), value.shape[-1]).float()
    hard, value = hard.reshape(ROWS, -1), value.reshape(ROWS, -1)
    pairs = (hard.unsqueeze(-1) * hard.unsqueeze(-2)).reshape(ROWS, -1)
    return torch.cat([hard, pairs, value, value**2], -1)


def assert_same_frequencies(theirs, ours):
    assert theirs.shape == ours.shape
    assert_same_mean(features(theirs) - features(ours), 0)


CLAIMS = {
    "same density": assert_same_density,
    "`log_prob` is the pmf": assert_discrete_log_prob,
    "same gradient": assert_same_gradient,
    "adds a gradient": assert_same_probabilities,
    "same distribution": assert_same_frequencies,
}


@pytest.mark.parametrize(
    ("theirs", "ours", "claim"), [*rows_of("Pyro or torch"), *rows_of("torch")]
)
def test_lines_of_pyro_and_torch(theirs, ours, claim):
    CLAIMS[claim](evaluated(theirs), evaluated(ours))


def exact_elbo(scope, data, probs):
    """Over the three components of each point."""
    log_joint = (
        dist.Normal(scope["means"], 1.0).log_prob(data.unsqueeze(-1)) - torch.tensor(3).log()
    )
    return (probs * (log_joint - probs.log())).sum()


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours", "claim"), rows_of("Pyro"))
def test_lines_of_models(theirs, ours, claim):
    assert claim == "same objective"
    data = torch.tensor([-2.1, 0.1, 1.8])
    for line in (theirs, ours):
        pyro.clear_param_store()
        scope = names()
        svi = eval(line, scope)
        losses = torch.tensor([svi.evaluate_loss(data) for _ in range(50)])
        of_ours = getattr(svi.guide, "distribution", None)
        probs = of_ours("z").probs.detach() if of_ours else torch.full((3, 3), 1 / 3)
        error = z_bound() * losses.std() / len(losses) ** 0.5 + 1e-4
        assert (losses.mean() + exact_elbo(scope, data, probs)).abs() < error
        svi.step(data)


OF_OTHERS = [
    row for package in ("TensorFlow Probability", "NumPyro", "relaxit") for row in rows_of(package)
]


@pytest.mark.parametrize("ours", [ours for _, ours, _ in OF_OTHERS])
def test_lines_for_those_of_other_packages(ours):
    d = evaluated(ours)
    value = d.sample()
    assert value.shape == d.batch_shape + d.event_shape
    assert d.log_prob(value).isfinite().all()


def test_what_differs_from_other_packages():
    found = {claim: evaluated(ours) for _, ours, claim in OF_OTHERS}
    subset = found["`log_prob` is the pmf of the subset"]
    probs = subset.log_prob(subset.enumerate_support()).exp()
    torch.testing.assert_close(probs.sum(0), torch.ones(ROWS))
    relaxed = found["the entries sum to 2 and are at most 1"].sample()
    torch.testing.assert_close(relaxed.sum(-1), torch.full((ROWS,), 2.0))
    assert relaxed.max() <= 1
    ranking = found["values are one-hot rows, not indices"]
    assert ranking.event_shape == (3, 3)
    torch.testing.assert_close(ranking.log_prob(torch.eye(3)).exp(), torch.tensor(1 / 6 * 2 / 5))
    bits = found["a sample is 1 with probability sigmoid(x)"]
    torch.testing.assert_close(bits.mean, shared_names()["x"].sigmoid())
