# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Gates: the distribution with its atoms, what a draw remembers, moments and divergences."""

import copy
import io
import math
import pickle
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.special import expit
from torch.distributions import kl_divergence
from torch.nn.functional import logsigmoid

from pyro_gumbel import (
    HardConcrete,
    LinearTemperature,
    LogitHardConcrete,
    LogitRelaxedBernoulli,
    RelaxedBernoulli,
    harden,
    links,
)
from pyro_gumbel.distributions.sample_cache import recall
from pyro_gumbel.ops.gate_moments import gate_mean, gate_variance
from tests.common import assert_counts, assert_same_mean, first_fast

STRETCHES = [(-0.1, 1.1), (-1e-6, 3.0)]
TEMPERATURES = [0.05, 0.5, 40.0]
LOGITS = [-4.0, 0.7, 9.0]
CASES = [(x, tau, low, high) for x in LOGITS for tau in TEMPERATURES for low, high in STRETCHES]
of_cases = pytest.mark.parametrize(("x", "tau", "low", "high"), CASES)


def one(x, tau, low=-0.1, high=1.1, dtype=torch.float64, **keywords):
    """A gate whose logit requires a gradient."""
    logits = torch.tensor(x, dtype=dtype, requires_grad=True)
    return HardConcrete(tau, logits=logits, low=low, high=high, validate_args=True, **keywords)


def density_of_gate(x, tau, low, high):
    """The density at s of a gate in (0, 1), written from the definition."""

    def density(s):
        share = (s - low) / (high - low)
        noise = tau * math.log(share / (1 - share)) - x
        slope = tau / (share * (1 - share)) / (high - low)
        return expit(noise) * expit(-noise) * slope

    return density


def over_the_inside(function, x, tau, low, high):
    """The integral of a function of a gate s over (0, 1), in pieces of the noise."""

    def at(v):
        return low + (high - low) * expit(v)

    ends = math.log(-low / high), math.log((1 - low) / (high - 1))
    cuts = sorted({*ends, *np.clip((x + np.array([-37, -9, -3, 0, 3, 9, 37])) / tau, *ends)})

    def in_logit_space(v):
        return function(at(v)) * (high - low) * expit(v) * expit(-v)

    accuracy = {"epsabs": 1e-13, "epsrel": 1e-12}
    return sum(integrate.quad(in_logit_space, a, b, **accuracy)[0] for a, b in pairwise(cuts))


# The distribution of the gate.


@of_cases
def test_the_distribution_integrates_to_one_with_its_atoms(x, tau, low, high):
    d = one(x, tau, low, high)

    def density(s):
        return d.log_prob(torch.tensor(s, dtype=torch.float64)).exp().item()

    atoms = [d.log_prob(torch.tensor(s, dtype=torch.float64)).exp().item() for s in (0.0, 1.0)]
    assert atoms == pytest.approx([d.prob_zero.item(), d.prob_one.item()], rel=1e-12)
    inside = over_the_inside(density, x, tau, low, high)
    assert sum(atoms) + inside == pytest.approx(1, abs=1e-9)
    for s in (0.01, 0.5, 0.99):
        assert density(s) == pytest.approx(density_of_gate(x, tau, low, high)(s), rel=1e-9)


@of_cases
def test_the_atoms_by_counting(x, tau, low, high):
    d = one(x, tau, low, high)
    value = d.sample((20_000,))
    zeros, ones = (value == 0).sum().item(), (value == 1).sum().item()
    probs = [d.prob_zero.item(), d.prob_one.item()]
    counts = [zeros, ones, 20_000 - zeros - ones]
    likely = [(n, p) for n, p in zip(counts, [*probs, 1 - sum(probs)], strict=True) if p > 1e-3]
    if len(likely) > 1:
        assert_counts(*zip(*likely, strict=True))
    assert all(n < 60 for n, p in zip(counts, probs, strict=False) if p <= 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_adds_nothing_to_the_atoms(dtype):
    """A gate between 0 and 1 is not rounded to them."""
    d = HardConcrete(0.5, logits=torch.full((50_000,), 1.0, dtype=dtype))
    value = d.sample()
    stretched = d.link.stretched(recall(value, d.link))
    assert stretched.dtype == torch.float32
    assert (stretched[stretched < 1].to(dtype) == 1).any()
    assert torch.equal(value == 1, stretched >= 1)
    assert torch.equal(value == 0, stretched <= 0)


@pytest.mark.parametrize("x", [-700.0, -60.0, -20.0, 0.0, 20.0, 60.0, 700.0])
def test_the_atoms_have_all_digits_far_out(x):
    """In float32, against 40 digits, where that can hold the number."""
    d = one(x, 2 / 3, dtype=torch.float32)
    tau = float(d.temperature)
    with mpmath.workdps(40):
        zero, at_one = (tau * mpmath.log(r) for r in (mpmath.mpf(1) / 11, mpmath.mpf(11)))
        exact = {
            "prob_zero": 1 / (1 + mpmath.exp(x - zero)),
            "prob_one": 1 / (1 + mpmath.exp(at_one - x)),
            "prob_nonzero": 1 / (1 + mpmath.exp(zero - x)),
        }
    for name, expected in exact.items():
        found = getattr(d, name)
        assert found.item() == pytest.approx(float(expected), rel=3e-5, abs=1e-37)
        assert torch.autograd.grad(found, d._parameter)[0].isfinite()
    for s, name in ((0.0, "prob_zero"), (1.0, "prob_one")):
        log_p = d.log_prob(torch.tensor(s))
        with mpmath.workdps(40):
            assert log_p.item() == pytest.approx(float(mpmath.log(exact[name])), rel=1e-5)


@of_cases
def test_moments_against_quadrature(x, tau, low, high):
    d = one(x, tau, low, high)
    density = density_of_gate(x, tau, low, high)
    one_has = d.prob_one.item()
    mean = over_the_inside(lambda s: s * density(s), x, tau, low, high) + one_has
    variance = over_the_inside(lambda s: (s - mean) ** 2 * density(s), x, tau, low, high)
    variance += mean**2 * d.prob_zero.item() + (1 - mean) ** 2 * one_has
    assert d.mean.item() == pytest.approx(mean, abs=1e-10)
    assert d.variance.item() == pytest.approx(variance, rel=1e-7, abs=1e-12)
    assert d.stddev.item() == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-7)


def test_moments_have_gradients():
    arguments = [torch.tensor([-2.0, 0.3, 40.0], dtype=torch.float64, requires_grad=True)]
    arguments += [torch.tensor([0.05, 0.7, 90.0], dtype=torch.float64, requires_grad=True)]
    for moment in (gate_mean, gate_variance):
        torch.autograd.gradcheck(lambda x, tau, f=moment: f(x, tau, -0.2, 1.1), arguments)


def test_small_moments_keep_their_digits():
    """The mean of a gate that is hardly ever open, and the variance of one hardly ever closed."""
    x = torch.tensor([-80.0, 80.0], dtype=torch.float64)
    d = HardConcrete(0.5, logits=x)
    assert d.mean[0].item() == pytest.approx((1 - d.mean.flip(0)[0]).item(), abs=1e-15)
    assert 0 < d.mean[0] < 1e-33
    torch.testing.assert_close(d.variance[0], d.variance[1], rtol=1e-10, atol=0)


def test_the_mode():
    """An atom of more than 1/2, else the stretched sigmoid of the logit, clipped."""
    d = HardConcrete(0.5, logits=torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]))
    between = (-0.1 + 1.2 * d.logits.sigmoid()).clamp(0, 1)
    assert (d.prob_zero > 0.5).tolist() == [True] + [False] * 5
    expected = torch.where(d.prob_zero > 0.5, 0.0, torch.where(d.prob_one > 0.5, 1.0, between))
    torch.testing.assert_close(d.mode, expected)
    hot = HardConcrete(3.0, logits=torch.tensor([-3.0, 3.0]))
    assert (hot.prob_zero < 0.5).all()
    assert hot.mode.tolist() == [0.0, 1.0]  # clipped


@pytest.mark.parametrize(("low", "high"), STRETCHES)
def test_cdf_and_icdf(low, high):
    d = one(0.4, 0.7, low, high)
    s = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)
    density = density_of_gate(0.4, 0.7, low, high)
    inside = [integrate.quad(density, 0, end)[0] for end in (0.0, 0.2, 0.9)]
    expected = [d.prob_zero.item() + part for part in inside]
    assert d.cdf(s).tolist() == pytest.approx([*expected, 1.0], abs=1e-9)
    p = torch.linspace(0, 1, 201, dtype=torch.float64)
    value = d.icdf(p)
    zero, above = p <= d.prob_zero, p >= 1 - d.prob_one
    assert (value[zero] == 0).all()
    assert (value[above] == 1).all()
    torch.testing.assert_close(d.cdf(value[~zero & ~above]), p[~zero & ~above])


# What a draw remembers.


def test_a_draw_is_evaluated_by_its_stretched_value_and_a_copy_by_the_gate():
    d, other = one(0.3, 0.5), one(-1.0, 0.8)
    for draw in (d.rsample, d.sample, lambda shape: d.icdf(torch.rand(shape, dtype=torch.float64))):
        value = draw((500,))
        v = recall(value, d.link)
        for e in (d, other):
            bits = RelaxedBernoulli(e.temperature, logits=e.logits)
            stretched = bits.log_prob(bits._to_value(v)) - math.log(1.2)
            torch.testing.assert_close(e.log_prob(value), stretched)
            inside = (value > 0) & (value < 1)
            of_gate = e.log_prob(value.detach().clone())
            torch.testing.assert_close(of_gate[inside], stretched[inside])
            for end, prob in ((0, e.prob_zero), (1, e.prob_one)):
                at_end = of_gate[value == end]
                assert len(at_end) > 20
                torch.testing.assert_close(at_end, prob.log().expand(at_end.shape))


def test_the_log_prob_of_a_draw_has_minus_the_entropy_for_its_mean():
    d = one(0.7, 0.3)
    torch.manual_seed(0)
    assert_same_mean(-d.log_prob(d.sample((20_000,))).detach(), d.entropy().item())


def test_a_clipped_gate_passes_no_gradient_to_its_value_and_one_to_its_density():
    logits = torch.zeros(2000, requires_grad=True)
    d = HardConcrete(0.5, logits=logits)
    value = d.rsample()
    (slope,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
    clipped = (value == 0) | (value == 1)
    assert (slope[clipped] == 0).all()
    assert (slope[~clipped] > 0).all()
    p = HardConcrete(0.5, logits=torch.full((), -1.0))
    (of_density,) = torch.autograd.grad(p.log_prob(value).sum(), logits)
    assert (of_density[clipped] != 0).all()


def test_another_stretch_is_refused_with_both_names():
    value = one(0.0, 0.5).rsample()
    other = one(0.0, 0.5, -0.2, 1.3)
    words = r"low=-0\.2 and high=1\.3, got one .* low=-0\.1 and high=1\.1.*; write HardConcrete\("
    with pytest.raises(ValueError, match=words):
        other.log_prob(value)
    assert other.log_prob(value.detach()).isfinite()
    assert one(2.0, 0.1).log_prob(value).isfinite()


def test_a_value_of_the_bits_is_no_draw_of_a_gate():
    value = RelaxedBernoulli(0.5, logits=torch.zeros(50, dtype=torch.float64)).sample()
    d = one(0.0, 0.5)
    torch.testing.assert_close(d.log_prob(value), d.log_prob(value.clone()))


@pytest.mark.parametrize("sure", [-math.inf, math.inf])
def test_a_certain_gate(sure):
    d, end = one(sure, 0.5), float(sure > 0)
    value = d.rsample((5,))
    assert (value == end).all()
    assert (d.log_prob(value) == 0).all()
    assert d.log_prob(value.detach().clone()).tolist() == [0.0] * 5
    assert d.log_prob(torch.tensor(0.5, dtype=torch.float64)) == -math.inf
    assert d.log_prob(torch.tensor(1 - end, dtype=torch.float64)) == -math.inf
    drawn = one(0.0, 0.5).sample((200,))
    assert (d.log_prob(drawn) == -math.inf).all()  # the divergence is infinite too
    assert kl_divergence(one(0.0, 0.5), d) == math.inf
    assert (d.mean, d.variance, d.mode, d.entropy()) == (end, 0, end, 0)
    assert one(0.0, 0.5).log_prob(value).abs().max() < 3  # the density of r at its end
    total = d.log_prob(value.detach()).sum() + value.sum() + d.mean + d.variance
    assert torch.autograd.grad(total, d._parameter)[0].isfinite()


# Divergences.


def own_divergence(x_q, x_p, tau):
    """Of the gates themselves, by quadrature between the ends."""
    q, p = (density_of_gate(x, tau, -0.1, 1.1) for x in (x_q, x_p))
    inside = over_the_inside(lambda s: q(s) * math.log(q(s) / p(s)), x_q, tau, -0.1, 1.1)
    of_q, of_p = one(x_q, tau), one(x_p, tau)
    ends = [(getattr(of_q, n).item(), getattr(of_p, n).item()) for n in ("prob_zero", "prob_one")]
    return inside + sum(a * math.log(a / b) for a, b in ends)


@pytest.mark.parametrize(("tau", "own"), [(0.5, 0.604), (0.1, 0.508)])
def test_the_divergence_is_an_upper_bound_of_that_of_the_gates(tau, own):
    found = kl_divergence(one(1.0, tau), one(-1.0, tau)).item()
    assert found == pytest.approx(0.626, abs=5e-4)
    assert own_divergence(1.0, -1.0, tau) == pytest.approx(own, abs=5e-4)


@pytest.mark.parametrize(("tau_q", "tau_p"), [(0.5, 0.5), (2 / 3, 0.4), (0.2, 1.0)])
def test_the_divergence_is_that_of_the_bits_and_the_mean_over_draws(tau_q, tau_p):
    q, p = one(1.0, tau_q, -0.3, 1.2), one(-0.4, tau_p, -0.3, 1.2)
    found = kl_divergence(q, p)
    bits = [RelaxedBernoulli(d.temperature, logits=d.logits) for d in (q, p)]
    torch.testing.assert_close(found, kl_divergence(*bits))
    torch.manual_seed(0)
    value = q.sample((20_000,))
    assert_same_mean((q.log_prob(value) - p.log_prob(value)).detach(), found.item())


def test_the_divergence_of_other_stretches_is_refused():
    words = r"same `low` and `high`, got low=-0\.1, high=1\.1 and low=-0\.2, high=1\.1; write both"
    with pytest.raises(ValueError, match=words):
        kl_divergence(one(0.0, 0.5), one(0.0, 0.5, -0.2))
    with pytest.raises(NotImplementedError):
        kl_divergence(one(0.0, 0.5), RelaxedBernoulli(0.5, 0.5))


def finite_difference(function, x, step=1e-5):
    return (function(x + step) - function(x - step)) / (2 * step)


LOST = "HardConcrete: `value` must be the tensor that rsample returned .*; write value.detach"


def gradient_of_the_divergence(x, tau, forget):
    """By the pathwise derivative, averaged over the quantiles of the noise."""
    q, p = one(x, tau), one(-1.0, tau)
    levels = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    value = q.icdf(levels)
    value = value.clone() if forget else value
    for d in (q, p):
        d._validate_args = False  # or it would warn
    return torch.autograd.grad((q.log_prob(value) - p.log_prob(value)).mean(), q._parameter)[0]


@pytest.mark.parametrize("tau", [0.5, 0.1])
@pytest.mark.parametrize("x", [-0.5, 1.0])
def test_the_gradient_of_the_divergence_needs_the_stretched_value(x, tau):
    """By the distribution of the gate it is too small: by 30 % and 80 %, of its own divergence."""
    exact = finite_difference(lambda x: kl_divergence(one(x, tau), one(-1.0, tau)).item(), x)
    assert gradient_of_the_divergence(x, tau, forget=False).item() == pytest.approx(exact, rel=1e-3)
    of_gates = finite_difference(lambda x: own_divergence(x, -1.0, tau), x)
    naive = gradient_of_the_divergence(x, tau, forget=True).item()
    assert naive / of_gates == pytest.approx(0.69 if tau == 0.5 else 0.19, abs=0.02)


def test_a_copy_that_carries_a_gradient_is_warned_of():
    d = one(0.3, 0.5)
    value = d.rsample((100,))
    for copied in (value.clone(), value[:50], value + 0):
        with pytest.warns(UserWarning, match=LOST):
            assert d.log_prob(copied).isfinite().all()
    inside = value[(value > 0) & (value < 1)]
    for fine in (value, value.detach(), value.detach().requires_grad_(), inside):
        d.log_prob(fine)


# The form in logit space.


def test_the_form_in_logit_space_is_that_of_the_bits_and_makes_the_same_gates():
    logits = torch.tensor([-1.0, 0.2, 3.0], dtype=torch.float64)
    d = LogitHardConcrete(0.5, logits=logits, low=-0.3, high=1.4)
    gates = HardConcrete(0.5, logits=logits, low=-0.3, high=1.4)
    plain = LogitRelaxedBernoulli(0.5, logits=logits)
    torch.manual_seed(0)
    v = d.rsample((400,))
    torch.testing.assert_close(d.log_prob(v), plain.log_prob(v))
    torch.testing.assert_close(kl_divergence(d, plain.expand([3])), torch.zeros_like(logits))
    torch.manual_seed(0)
    assert torch.equal(d.gate(v), gates.rsample((400,)))
    slope = (1.7 * v.sigmoid() * (-v).sigmoid()).log()
    torch.testing.assert_close(gates.log_prob(d.gate(v)), d.log_prob(v) - slope)
    assert type(d.gates) is HardConcrete
    assert d.gates.link == gates.link
    assert torch.equal(d.gates.prob_zero, gates.prob_zero)


@pytest.mark.parametrize("cls", [HardConcrete, LogitHardConcrete])
@pytest.mark.parametrize(
    ("ends", "error", "words"),
    [
        ({"low": 0.0}, ValueError, "`low` must be a number .* below 0, got 0; write low=-0.1"),
        ({"low": -math.inf}, ValueError, "`low` must be a number above -1000 .*, got -inf"),
        ({"low": math.nan}, ValueError, "`low` must be"),
        ({"high": 1}, ValueError, "`high` must be a number above 1 .*, got 1; write high=1.1"),
        ({"high": math.inf}, ValueError, "`high` must be a number .* below 1000, got inf"),
        ({"low": torch.tensor(-0.1)}, TypeError, "`low` must be a .* got Tensor; write low=-0.1"),
        ({"high": "2"}, TypeError, "`high` must be a .* got str; write high=1.1"),
        ({"high": True}, TypeError, "got bool"),
    ],
)
def test_ends_that_are_refused(cls, ends, error, words):
    with pytest.raises(error, match=f"{cls.__name__}: .*{words}"):
        cls(0.5, logits=torch.zeros(2), validate_args=False, **ends)


@pytest.mark.parametrize("cls", [HardConcrete, LogitHardConcrete])
def test_the_ends_are_kept(cls):
    d = cls(LinearTemperature(1.0, 0.5, 10), torch.tensor([0.3, 0.7]), low=np.float64(-0.2), high=2)
    saved = io.BytesIO()
    torch.save(d, saved)
    saved.seek(0)
    copies = [pickle.loads(pickle.dumps(d)), copy.deepcopy(d), copy.copy(d), d.expand([3, 2])]
    for each in [d, *copies, torch.load(saved, weights_only=False)]:
        assert (each.low, each.high) == (-0.2, 2.0)
        assert "low: -0.2, high: 2.0" in repr(each)
    assert cls.infer_shapes(temperature=(), probs=(2,), low=(), high=()) == ((2,), ())
    assert cls.arg_constraints["low"].check(torch.tensor(d.low))
    assert not cls.arg_constraints["high"].check(torch.tensor(1.0))
    value = HardConcrete(0.5, torch.tensor([0.3, 0.7]), low=-0.2, high=2).rsample()
    if cls is HardConcrete:
        for each in copies:
            assert torch.equal(each.log_prob(value), d.log_prob(value).expand(each.batch_shape))


def test_hardening_rounds_the_gate():
    """At 1/2, which is not v = 0 where the ends are not alike."""
    d = HardConcrete(0.5, logits=torch.zeros(500), low=-0.1, high=2.0)
    value = d.rsample()
    assert torch.equal(harden(value), (value >= 0.5).float())
    link = links.ClippedInterval(-0.1, 2.0)
    assert torch.equal(harden(value.clone(), link), (value >= 0.5).float())
    assert repr(link) == "ClippedInterval(-0.1, 2)"


@pytest.mark.parametrize("how", first_fast(["vmap", "compile"]))
def test_vmap_and_compile_keep_the_memory(how):
    logits = torch.randn(6, 4)

    def draw_and_score(x):
        d = HardConcrete(0.5, logits=x)
        value = d.rsample()
        v = recall(value, d.link)
        of_logits = LogitRelaxedBernoulli(0.5, logits=x).log_prob(v)
        return value, d.log_prob(value), of_logits - logsigmoid(v) - logsigmoid(-v)

    function = torch.vmap(draw_and_score, randomness="different")
    if how == "compile":
        torch.compiler.reset()
        function = torch.compile(draw_and_score, backend="eager", fullgraph=True)
    value, score, expected = function(logits)
    assert ((value == 0) | (value == 1)).any()
    torch.testing.assert_close(score, expected - math.log(1.2))
