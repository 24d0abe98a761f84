# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The examples of which each is a tutorial of one use: labels, experts, and NUTS."""

import argparse
import itertools
import math
import re
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

from tests import test_examples as examples
from tests.common import seeded
from tests.test_examples import SLOW, assert_picture, load, number

pytestmark = examples.pytestmark
run, _ctrl_c = examples.run, examples._ctrl_c  # fixtures


def after_seed(function, *arguments):
    """Its result, with random numbers that are always the same."""
    pyro.set_rng_seed(0)
    return function(*arguments)


# Labels for some of the images.


def test_a_few_steps_of_semi_supervised(tmp_path, run):
    done = run("semi_supervised", "--steps", 2, "--labels", 20, "--out", "x.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 of 1347 images with a label\n")
    for way in ("labels alone", "relaxed", "sum over the digits"):
        assert 0 <= number(rf"held-out accuracy, {way}: (\S+)%$", done.stdout) <= 100
    assert_picture(tmp_path / "x.png")


def some_images(number=5):
    """Of which every other one has a label."""
    pixels = seeded(torch.randint, 0, 17, (number, 64)) / 16
    digit = torch.eye(10)[torch.arange(number)]
    return load("semi_supervised").Images(pixels, digit, torch.arange(number) % 2 == 0)


def loss_by_sum(m2, images):
    pyro.clear_param_store()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    return after_seed(elbo.loss, m2.model, config_enumerate(m2.guide), images)


def test_the_labels_of_semi_supervised():
    """As many as wanted, of each digit alike; the others are not there."""
    images, held_out = load("semi_supervised").digits(seed=1, labels=50)
    assert images.digit[images.known].sum(0).tolist() == [5] * 10
    assert images.digit[~images.known].argmax(-1).eq(0).all()
    assert held_out.known.all()


def test_digits_without_a_label_are_not_used():
    m2, images = after_seed(load("semi_supervised").M2), some_images()
    others = torch.where(images.known.unsqueeze(-1), images.digit, images.digit.roll(3, -1))
    changed = images._replace(digit=others)
    assert loss_by_sum(m2, changed) == loss_by_sum(m2, images)


@torch.no_grad()
def test_the_loss_of_semi_supervised():
    """Against a literal sum over the digits, with the same noise."""
    example = load("semi_supervised")
    m2, images = after_seed(example.M2), some_images()
    noise = after_seed(torch.randn, 10, 5, 8)
    normal, binomial = torch.distributions.Normal, torch.distributions.Binomial
    log_q = m2.classifier(images.pixels).log_softmax(-1)
    log_labels = (log_q * images.digit).sum(-1)[images.known].sum()
    loss = -example.WEIGHT * log_labels
    for image, term in itertools.product(range(5), range(10)):
        # The digit of an image with a label is the same in all ten terms.
        known, pixels = images.known[image], images.pixels[image]
        digit = images.digit[image] if known else torch.eye(10)[term]
        mean, log_scale = m2.encoder(torch.cat([digit, pixels])).chunk(2)
        style = mean + log_scale.exp() * noise[term, image]
        logits = m2.decoder(torch.cat([digit, style]))
        elbo = normal(0.0, 1.0).log_prob(style).sum() - math.log(10)
        elbo -= normal(mean, log_scale.exp()).log_prob(style).sum()
        elbo += binomial(16, logits=logits).log_prob(16 * pixels).sum()
        elbo -= 0 if known else log_q[image, term]
        loss -= log_q[image, term].exp() * elbo
    assert loss_by_sum(m2, images) == pytest.approx(loss.item(), rel=1e-5)


# Two of eight experts.


def test_a_few_steps_of_experts(tmp_path, run):
    done = run("experts", "--steps", 2, "--experts", 4, "--out", "x.png")
    assert done.returncode == 0, done.stderr
    rows = {
        name: re.search(rf"^{name} +(\S+) +(\d)", done.stdout, re.MULTILINE).groups()
        for name in load("experts").GATES
    }
    assert all(0 < float(error) < 2 for error, _ in rows.values())
    assert [number for _, number in rows.values()] == ["4", "2", "2", "2"]
    assert number(r"one for all +(\S+)$", done.stdout) == pytest.approx(0.516, abs=0.001)
    assert_picture(tmp_path / "x.png")


@pytest.mark.parametrize("training", [True, False])
def test_gates_of_experts(training):
    """Weights that sum to 1, and two experts by all gates but one."""
    logits = seeded(torch.randn, 0, 20, 8)
    for name, (gate, _) in load("experts").GATES.items():
        weights = gate(logits, training)
        torch.testing.assert_close(weights.sum(-1), torch.ones(20))
        assert (weights > 0).sum(-1).eq(8 if name == "softmax of all" else 2).all()
        if not training:
            assert weights.argmax(-1).eq(logits.argmax(-1)).all() or "subset" in name
            assert (weights.gather(-1, logits.topk(2).indices) > 0).all()


def test_the_divergence_of_experts():
    """Against the probabilities of both orders of each pair."""
    logits = seeded(torch.randn, 0, 5, 4).double()
    p = logits.softmax(-1)
    expected = torch.zeros(5, dtype=torch.float64)
    for i, j in itertools.combinations(range(4), 2):
        pair = p[:, i] * p[:, j] * (1 / (1 - p[:, i]) + 1 / (1 - p[:, j]))
        expected += torch.xlogy(pair, 6 * pair)
    found = load("experts").from_uniform(logits)
    torch.testing.assert_close(found, expected.mean())


def test_experts_go_on_from_a_checkpoint(tmp_path, monkeypatch):
    """With the parameters of a training without a break."""
    example, path = load("experts"), tmp_path / "x.pt"
    images = seeded(torch.randn, 0, 30, 64)
    gate = example.subset

    def trained(stop_after, resume=False):
        trainings = example.Trainings(argparse.Namespace(checkpoint=path, resume=resume))
        calls = itertools.count(1)

        def stopping(logits, training):
            if next(calls) == stop_after:
                trainings.stop.set()
            return gate(logits, training)

        monkeypatch.setitem(example.GATES, "subset", (stopping, False))
        experts = after_seed(example.train, trainings, "subset", images, 4, 6)
        return list(experts.state_dict().values()), next(calls) - 1

    pyro.clear_param_store()
    whole, steps = trained(stop_after=None)
    path.unlink()
    part, first = trained(stop_after=3)
    rest, second = trained(stop_after=None, resume=True)
    assert (steps, first, second) == (6, 3, 3)
    assert not torch.equal(part[0], whole[0])
    torch.testing.assert_close(rest, whole, rtol=0, atol=0)


# NUTS.


def test_exact_probabilities_of_nuts():
    """Against a sum over a grid of levels; and the relaxed ones are near at a low temperature."""
    example = load("nuts")
    level = torch.linspace(-8, 8, 2001)
    log_joint = torch.distributions.Normal(0.0, 1.0).log_prob(level).unsqueeze(-1)
    mean = level.unsqueeze(-1) + example.OFFSETS
    likelihood = torch.distributions.Normal(mean, example.NOISE).log_prob(example.MEASURED)
    joint = (log_joint + likelihood + example.PROBS.log()).exp()
    expected = joint.sum(0) / joint.sum()
    torch.testing.assert_close(example.exact(), expected)
    weights = joint.sum(-1, keepdim=True) / joint.sum()
    torch.testing.assert_close((weights * example.given(level)).sum(0), expected)
    relaxed = after_seed(example.exact_relaxed, 1e-3)
    torch.testing.assert_close(relaxed, expected, rtol=0, atol=0.01)
    assert (after_seed(example.exact_relaxed, 1.0) - expected).abs().max() > 0.05


@SLOW
def test_a_few_draws_of_nuts(tmp_path):
    run = partial(examples.run_as_a_user, tmp_path)
    options = ["--steps", 20, "--out", "x.png", "--checkpoint", "x.pt"]
    done = run("nuts", *options)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^NUTS, .*? +(\d\.\d{3}) +(\d\.\d{3}) +(\d\.\d{3}) ", done.stdout, re.M)
    assert len(rows) == 7
    assert all(sum(map(float, row)) == pytest.approx(1, abs=0.002) for row in rows)
    assert_picture(tmp_path / "x.png")
    again = run("nuts", *options, "--resume")
    assert again.stdout[: again.stdout.index("wrote")] == done.stdout[: done.stdout.index("wrote")]


@SLOW
def test_equal_seeds_give_equal_results(tmp_path):
    script, options = "semi_supervised", ["--steps", 2, "--seed", 3]
    runs = [examples.run_as_a_user(tmp_path, script, *options) for _ in range(2)]
    first, again = (done.stdout[: done.stdout.index("wrote ")] for done in runs)
    assert first == again
    assert_picture(tmp_path / f"{script}.png")
