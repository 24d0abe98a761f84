# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The relaxed rows of a ranking: distribution, joint density, gradient."""

import math

import pytest
import torch
from scipy import stats

from pyro_gumbel import PlackettLuce, RelaxedCategorical, RelaxedPlackettLuce, m_hot
from pyro_gumbel.ops import noise
from tests.common import ALPHA, first_fast, z_bound

X = torch.tensor([0.5, -0.3, 1.0, 0.0, -0.7], dtype=torch.float64)


def redrawn_rows(d, size, draws):
    """The literal loop, on soft rows: a column whose winner is taken is drawn again."""
    value = torch.zeros(draws, size, d.event_shape[0], dtype=torch.float64)
    drawn = iter(d.sample((20 * draws * size,)))  # twenty times as many as a row takes
    for draw in value:
        taken = set()
        for row in draw:
            while True:
                row.copy_(next(drawn))
                winner = row.argmax().item()
                if winner not in taken:
                    taken.add(winner)
                    break
    return value


def test_the_rows_have_the_distribution_of_the_redraw_loop():
    """Every entry of the last row and the m-hot sum, by two-sample Kolmogorov-Smirnov tests."""
    ours = RelaxedPlackettLuce(0.7, 3, logits=X).sample((20_000,))
    theirs = redrawn_rows(RelaxedCategorical(0.7, logits=X), 3, 2_000)
    features = [ours[:, 2, i] for i in range(5)], [theirs[:, 2, i] for i in range(5)]
    features[0].append(m_hot(ours).sum(-1))
    features[1].append(m_hot(theirs).sum(-1))
    for a, b in zip(*features, strict=True):
        assert stats.ks_2samp(a.numpy(), b.numpy()).pvalue > ALPHA
    free = RelaxedCategorical(0.7, logits=X).sample((20_000,))  # the condition can be seen
    assert stats.ks_2samp(ours[:, 2, 2].numpy(), free[:, 2].numpy()).pvalue < ALPHA


@pytest.mark.parametrize(("size", "temperature"), [(2, 0.5), (3, 1.0), (2, 2.0)])
def test_the_joint_density_integrates_to_one(size, temperature):
    """E_q[p / q] = 1 with independent rows for q, of which some have equal winners."""
    n = 200_000
    rows = RelaxedCategorical(0.9 * temperature, logits=0.5 * X).expand([size])
    value = rows.sample((n,))
    d = RelaxedPlackettLuce(temperature, size, logits=X)
    log_p = d.log_prob(value)
    weights = (log_p - rows.log_prob(value).sum(-1)).exp()
    assert (weights == 0).any()
    error = weights.std() / math.sqrt(n)
    assert abs(weights.mean() - 1) < z_bound() * error
    assert error < 0.05


@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_one_row_is_a_relaxed_categorical(temperature):
    """Draws, densities and gradients, from one seed."""
    found = []
    for build in (RelaxedCategorical, lambda *a, **k: RelaxedPlackettLuce(a[0], 1, **k)):
        raw = X.clone().requires_grad_()
        torch.manual_seed(3)
        d = build(temperature, logits=raw)
        value = d.rsample((7,))
        flat = value.reshape(7, 5)
        score = d.log_prob(value)
        gradients = torch.autograd.grad((flat**2 * X).sum() + score.sum(), raw)
        found.append((flat, score, *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rows_with_equal_winners_have_density_zero():
    d = RelaxedPlackettLuce(0.5, 2, logits=torch.zeros(3))
    row = torch.tensor([0.6, 0.3, 0.1])
    assert d.log_prob(torch.stack([row, row])).item() == -math.inf
    assert d.log_prob(torch.stack([row, row.flip(0)])).isfinite()


@pytest.mark.parametrize("dtype", first_fast([torch.bfloat16, torch.float32, torch.float64]))
def test_own_samples_never_tie_with_a_taken_category(dtype):
    """Where the remaining categories are unlikely, a row's winner beats the taken by a hair."""
    logits = torch.tensor([14.0, 0.0, -1.0], dtype=dtype)
    for temperature in (0.05, 5.0):
        d = RelaxedPlackettLuce(temperature, 2, logits=logits, validate_args=True)
        value = d.sample((200_000,))
        assert d.log_prob(value).isfinite().all()


def test_the_condition_does_not_change_what_it_is_given():
    """The winner of the untaken stays the winner; with nothing taken nothing changes."""
    z = X + noise.gumbel((1000, 5), dtype=torch.float64, device=torch.device("cpu"))
    untaken = torch.tensor([True, False, False, True, True]).expand(1000, 5)
    given = noise.given_untaken_winner(z, X, untaken)
    assert untaken.gather(-1, given.argmax(-1, keepdim=True)).all()
    winner = torch.where(untaken, z, -math.inf).argmax(-1)
    assert torch.equal(given.argmax(-1), winner)
    torch.testing.assert_close(given.amax(-1).mean(), z.amax(-1).mean(), rtol=0, atol=0.2)
    assert torch.equal(noise.given_untaken_winner(z, X, torch.ones_like(untaken)), z)


def test_the_pathwise_gradient_of_later_rows_is_biased_but_close():
    """Its cosine with the score-function gradient of the same expectation, which is unbiased."""
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    n = 100_000
    raw = X.expand(n, 5).clone().requires_grad_()
    d = RelaxedPlackettLuce(0.5, 3, logits=raw)

    def payoff(value):
        return (m_hot(value) @ weight) ** 2

    pathwise = torch.autograd.grad(payoff(d.rsample()).sum(), raw)[0].mean(0)
    value = d.sample()
    baseline = payoff(value).mean()
    score = torch.autograd.grad((d.log_prob(value) * (payoff(value) - baseline)).sum(), raw)[0]
    exact, error = score.mean(0), score.std(0) / math.sqrt(n)
    assert error.norm() < 0.05 * exact.norm()
    assert torch.cosine_similarity(pathwise, exact, dim=0) > 0.95
    assert (pathwise - exact).norm() > 3 * error.norm()  # so that the docstring is right


def test_winners_have_the_probability_of_the_ranking_at_any_temperature():
    d = PlackettLuce(2, logits=X)
    value = RelaxedPlackettLuce(3.0, 2, logits=X).sample((50_000,))
    first = (value[:, 0].argmax(-1) == 2) & (value[:, 1].argmax(-1) == 0)
    outcome = torch.zeros(2, 5, dtype=torch.float64)
    outcome[0, 2] = outcome[1, 0] = 1
    p = d.log_prob(outcome).exp().item()
    assert abs(first.double().mean().item() - p) < z_bound() * math.sqrt(p * (1 - p) / 50_000)
