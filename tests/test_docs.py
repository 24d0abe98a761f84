# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The reference: every public name once, and the facts of its tables as the code has them."""

import ast
import contextlib
import inspect
import re
from collections import Counter
from math import log
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

import pyro_gumbel
from pyro_gumbel import SelectedComponent
from tests.common import assert_same_mean
from tests.counts import COUNTS, ONE_EACH

pytestmark = pytest.mark.cpu(reason="pages are the same everywhere")

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("reference/*.md"))
PUBLIC = {
    name for name in pyro_gumbel.__all__ if not isinstance(getattr(pyro_gumbel, name), ModuleType)
}
CLASS = r"\.\. autoclass:: pyro_gumbel\.(\w+)"
WITH_PAGES = r"\.\. autosummary::\n   :toctree: generated\n   :nosignatures:\n\n((?:   [\w.]+\n)+)"


def documented():
    """The names that a directive documents, as often as one does."""
    for page in [*DOCS.glob("*.md"), *DOCS.glob("theory/*.md"), *PAGES]:
        text = page.read_text()
        yield from re.findall(CLASS, text)
        for names in re.findall(WITH_PAGES, text):
            yield from names.split()


def test_every_public_name_is_documented_once():
    counts = Counter(documented())
    assert max(counts.values()) == 1
    assert counts.keys() >= PUBLIC
    for name in counts:
        resolve_name(f"pyro_gumbel.{name}")


def test_the_index_lists_every_distribution():
    index = (DOCS / "reference" / "index.md").read_text()
    lists = re.findall(r"\.\. autosummary::\n   :nosignatures:\n\n((?:   \w+\n)+)", index)
    assert sorted("".join(lists).split()) == sorted(TABLES)
    (pages,) = re.findall(r"```\{toctree\}\n:hidden:\n\n(.*?)```", index, re.DOTALL)
    assert sorted(pages.split()) == [page.stem for page in PAGES if page.stem != "index"]


def test_members_that_are_named_have_docstrings():
    for page in PAGES:
        for name, members in re.findall(CLASS + r"\n   :members: (.*)", page.read_text()):
            for member in members.split(", "):
                assert inspect.getattr_static(getattr(pyro_gumbel, name), member).__doc__, member


def test_every_picture_is_on_a_page_and_described():
    (pictures,) = (
        [key.value for key in node.value.keys]
        for node in ast.parse((DOCS / "pictures.py").read_text()).body
        if isinstance(node, ast.AnnAssign) and node.target.id == "PICTURES"
    )
    figure = r":::\{figure\} \.\./_build/pictures/(\w+)\.png\n:alt: \S.*\n\n\S"
    assert sorted(re.findall(figure, "".join(page.read_text() for page in PAGES))) == pictures


# The tables: class -> row -> cell.


def tables():
    for page in PAGES:
        for table, name in re.findall(
            rf"((?:^\|.*\n)+)\n```\{{eval-rst\}}\n{CLASS}", page.read_text(), re.MULTILINE
        ):
            header, _, *rows = table.splitlines()
            assert header == f"| | `{name}` |"
            yield name, dict(re.fullmatch(r"\| (.*?) \| (.*) \|", row).groups() for row in rows)


TABLES = dict(tables())
of_each = pytest.mark.parametrize("name", TABLES)
SELECTED = "SelectedComponent"  # whose support, shapes and density are those of its components
of_each_other = pytest.mark.parametrize("name", [name for name in TABLES if name != SELECTED])
ROWS = """Support, Shapes, Density, Gradient of `rsample`, Sampling, Mean, Variance, Mode, CDF,
Entropy, KL, Enumeration, Temperature τ, τ → 0, τ → ∞, Straight-through, Relaxed,
In Pyro and torch"""

K, M, N = 3, 2, 5
X = torch.tensor([0.5, 0.0, -0.3, 1.0])
LOGITS = torch.tensor([[0.5, 0.0, -0.3], [1.0, 2.0, 0.0]])
OF_COUNTS = {COUNTS[name].cls.__name__: name for name in ONE_EACH}


def make(name, temperature=0.5):
    """A distribution of a table, of 3 categories, subsets and rankings of 2, counts to 5."""
    if name in OF_COUNTS:
        count = COUNTS[OF_COUNTS[name]]
        return count.cls(**values_of(count))
    if name == "SelectedComponent":
        return SelectedComponent(torch.tensor([0, 2]), dist.Normal(torch.zeros(K), 1.0))
    cls = getattr(pyro_gumbel, name)
    return cls(**arguments(cls, temperature, cls.family.event_dim))


def values_of(count):
    """The arguments of a count in the table of them."""
    numbers = {"dtype": torch.float64}
    parameters = {key: torch.tensor(value, **numbers) for key, value in count.parameters.items()}
    return parameters | count.constants


def arguments(cls, temperature, event_dim):
    """Those of its constructor that there are."""
    given = {"temperature": temperature, "size": M, "logits": LOGITS if event_dim else X}
    return {key: given[key] for key in inspect.signature(cls).parameters if key in given}


def has(attempt):
    """Whether a distribution has what is asked of it."""
    with contextlib.suppress(NotImplementedError):
        attempt()
        return True
    return False


@of_each
def test_rows_are_known_and_in_order(name):
    order = re.split(r",\s+", ROWS)
    assert list(TABLES[name]) == sorted(TABLES[name], key=order.index)
    assert set(order[:11]) <= TABLES[name].keys()


def logit(rows):
    return torch.tensor(rows).logit().tolist()


# What is in a support, and what is not.
SUPPORTS = {
    "the interval [0, 1]": ([0.0, 0.3, 1.0], [-0.1, 1.1]),
    "the real line": ([-9.0, 0.0, 9.0], [float("nan")]),
    "0 and 1": ([0.0, 1.0], [0.5, 2.0]),
    "the simplex": ([[0.2, 0.3, 0.5], [1, 0, 0]], [[0.2, 0.3, 0.6], [1.2, -0.2, 0]]),
    "vectors whose exponentials are on the simplex": (
        [[log(0.2), log(0.3), log(0.5)]],
        [[log(0.2), log(0.3), log(0.6)]],
    ),
    "one-hot vectors": ([[1.0, 0, 0], [0, 0, 1]], [[0.5, 0.5, 0], [1, 1, 0]]),
    "the integers 0 to k - 1": ([0, K - 1], [-1, K]),
    "vectors of m ones and otherwise zeros": ([[1.0, 1, 0]], [[1.0, 0, 0], [1, 0.5, 0.5]]),
    "the hypersimplex": ([[0.8, 0.7, 0.5], [1, 1, 0]], [[1.0, 0, 0], [1.2, 0.5, 0.3]]),
    "vectors whose sigmoids are on the hypersimplex": (
        logit([[0.8, 0.7, 0.5]]),
        logit([[0.2, 0.3, 0.5]]),
    ),
    "m one-hot rows, no two alike": (
        [[[1.0, 0, 0], [0, 1, 0]]],
        [[[1.0, 0, 0], [1, 0, 0]], [[0.5, 0.5, 0], [0, 0, 1]]],
    ),
    "m rows on the simplex": (
        [[[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]],
        [[[0.2, 0.3, 0.5], [0.6, 0.2, 0.3]]],
    ),
    "the integers from 0": ([0.0, 7.0], [-1.0, 0.5]),
    "the integers 0 to n": ([0.0, N], [-1.0, N + 1.0]),
    "vectors of integers from 0 with sum n": ([[N, 0.0, 0], [1, 2, 2]], [[N, 1.0, 0], [-1, 3, 3]]),
}


def test_what_a_selected_component_has_from_its_components():
    d, table = make(SELECTED), TABLES[SELECTED]
    assert table["Support"] == "that of the components"
    assert d.support is d.components.support
    assert (d.batch_shape, d.event_shape) == ((2,), d.components.event_shape)
    assert table["Density"] not in MEASURES


@of_each_other
def test_support(name):
    d = make(name)
    kind, what = TABLES[name]["Support"].split(": ")
    assert d.support.is_discrete == (kind == "discrete")
    assert (kind == "discrete") == TABLES[name]["Density"].startswith("none: a pmf")
    inside, outside = (torch.tensor(values) for values in SUPPORTS[what])
    shape = (1,) * len(d.batch_shape)
    for values, is_inside in ((inside, True), (outside, False)):
        values = values.reshape(-1, *shape, *d.event_shape)
        assert (d.support.check(values) == is_inside).all()


def on_interval(d):
    return d.log_prob(torch.rand(MANY, 1)).exp()


def on_line(d):
    proposal = dist.Laplace(0.0, 3.0)
    v = proposal.sample((MANY, 1))
    return (d.log_prob(v) - proposal.log_prob(v)).exp()


def on_simplex(d):
    """The uniform density is 2, that of the rows of a ranking 4."""
    rows = d.event_shape[:-1]
    uniform = dist.Dirichlet(torch.ones(K)).expand((1, *rows)).sample((MANY,))
    return d.log_prob(uniform).exp() / 2 ** rows.numel()


def on_hypersimplex(d):
    """1 - s is on the simplex, for two of three."""
    uniform = dist.Dirichlet(torch.ones(K)).expand((1,)).sample((MANY,))
    return d.log_prob(1 - uniform).exp() / 2


def of_log_ratios(d):
    proposal = dist.Laplace(0.0, 3.0).expand((K - 1,)).to_event(1)
    ratios = proposal.sample((MANY, 1))
    v = torch.nn.functional.pad(ratios, (0, 1)).log_softmax(-1)
    return (d.log_prob(v) - proposal.log_prob(ratios)).exp()


def of_logits(d):
    """Of the transformation alone: the density of values is checked."""
    v = d.sample((MANY,))
    s = v.sigmoid()
    of_values = make("RelaxedSubset", MEASURED_AT).log_prob(s)
    ratios = (d.log_prob(v) - of_values - (s * (1 - s)).log().sum(-1)).exp()
    torch.testing.assert_close(ratios, torch.ones_like(ratios), atol=1e-4, rtol=0)
    return torch.ones_like(ratios)


def of_gates(d):
    """Both: of stretched values that are drawn, and of any others; with more at the ends."""
    d = make("HardConcrete", 1.0)
    low, high = d.low, d.high
    r = low + (high - low) * torch.rand(MANY, 1)
    v = ((r - low) / (high - low)).logit()
    gates = pyro_gumbel.LogitHardConcrete(1.0, 0.5).gate(v)
    drawn = d.log_prob(gates).exp() * (high - low)
    ends = d.log_prob(torch.tensor([[0.0], [1.0]])).exp().sum(0)
    return torch.cat([drawn, ends + on_interval(d)], -1)


MANY, MEASURED_AT = 20_000, 2.0
MEASURES = {
    "with respect to ds on (0, 1)": on_interval,
    "with respect to dv": on_line,
    "with respect to ds₁ … dsₖ₋₁; the uniform one is (k - 1)!": on_simplex,
    "with respect to ds₁ … dsₖ₋₁": on_hypersimplex,
    "with respect to the first k - 1 entries of each row": on_simplex,
    "with respect to the k - 1 log-ratios vᵢ - vₖ": of_log_ratios,
    "that of s times ∏ sᵢ (1 - sᵢ), as for an elementwise transform": of_logits,
    "with respect to dr on (l, h), for a gate that `rsample` returned; for any other, log P(0) and "
    "log P(1) at the ends, and between them with respect to ds": of_gates,
}


CONTINUOUS = [
    name for name, table in TABLES.items()
    if name != SELECTED and not table["Density"].startswith("none: a pmf")
]  # fmt: skip


@pytest.mark.parametrize("name", CONTINUOUS)
def test_measure(name):
    """The density integrates to 1, by importance sampling."""
    torch.manual_seed(0)
    ratios = MEASURES[TABLES[name]["Density"]](make(name, MEASURED_AT))
    assert_same_mean(ratios, torch.ones(ratios.shape[1:]))


@of_each_other
def test_shapes(name):
    d, text = make(name), TABLES[name]["Shapes"]
    (event_shape,) = re.findall(r"event shape `(.*)`", text)
    assert d.event_shape == eval(event_shape, {"k": K, "m": M})
    of_vectors = "without the last dimension" in text
    if name not in OF_COUNTS:
        assert d.batch_shape == (LOGITS.shape[:-1] if of_vectors else X.shape)


@of_each
def test_gradient(name):
    d, text = make(name), TABLES[name]["Gradient of `rsample`"]
    assert d.has_rsample == (not text.startswith("none"))
    if name != "SelectedComponent":
        kind = "surrogate" if d.support.is_discrete else "pathwise"
        assert text.startswith("none") or kind in text
    assert ("third_order" in text) == getattr(d, "has_third_order", False)


ATTEMPTS = {
    "Mean": lambda d: d.mean,
    "Variance": lambda d: d.variance,
    "Mode": lambda d: d.mode,
    "CDF": lambda d: d.cdf(d.sample()),
    "Entropy": lambda d: d.entropy(),
    "KL": lambda d: kl_divergence(d, d),
    "Enumeration": lambda d: d.enumerate_support(),
}


@of_each
@pytest.mark.parametrize("row", ATTEMPTS)
def test_what_it_has(name, row):
    cell = TABLES[name].get(row, "none")
    at_least = re.findall(r"^from temperature `(.*)` on", cell)
    if at_least:
        least = eval(at_least[0], {"k": K})
        assert not has(lambda: ATTEMPTS[row](make(name, 0.99 * least)))
    d = make(name, float(least) if at_least else 0.5)
    assert has(lambda: ATTEMPTS[row](d)) == (not cell.startswith("none"))
    if cell.startswith("NaN"):
        assert ATTEMPTS[row](d).isnan().all()
    assert has(lambda: d.icdf(torch.tensor(0.5))) == ("its inverse too" in TABLES[name]["CDF"])


@of_each
def test_divergences(name):
    """At two temperatures, and to the plain class."""
    cell = TABLES[name]["KL"]
    if "any two temperatures" in cell or "that of the two" in cell:
        assert kl_divergence(make(name, 0.5), make(name, 0.9)).min() > 0
    for both, plain in re.findall(r"Pyro's( and torch's)? `(\w+)`", cell):
        for module in [dist, torch.distributions] if both else [dist]:
            p = plain_distribution(name, getattr(module, plain))
            assert kl_divergence(make(name), p).abs().max() < 1e-6


def plain_distribution(name, cls):
    """The distribution of a table as one of Pyro or torch."""
    if name in OF_COUNTS:
        return cls(**values_of(COUNTS[OF_COUNTS[name]]))
    return cls(**arguments(cls, torch.tensor(0.5), make(name).family.event_dim))


# The limits of the temperature.

NEVER = {"Subset", "PlackettLuce", "SelectedComponent", *OF_COUNTS}


@of_each
def test_rows_of_temperature(name):
    rows = TABLES[name]
    assert ("Temperature τ" in rows) == (name in NEVER)
    assert ("τ → 0" in rows) == ("τ → ∞" in rows) == (name not in NEVER)


AT_0 = {
    "to outcomes": ("values go to 0", "values go to one-hot", "values go to m-hot", "rows go to"),
    "to infinity": ("values go to -∞ and ∞",),
    "of logarithms": ("the largest entry goes to 0, the others to -∞",),
}
AT_INFINITY = ("values go to `", "every entry goes to `")
UNCHANGED = ("the distribution does not change; ", "samples, log_prob and ")


def cells(row, starts):
    return [
        pytest.param(name, rows[row], id=name)
        for name, rows in TABLES.items()
        if rows.get(row, "").startswith(starts)
    ]


def test_every_limit_is_checked():
    for row, starts in (
        ("τ → 0", sum(AT_0.values(), UNCHANGED)),
        ("τ → ∞", AT_INFINITY + UNCHANGED),
    ):
        assert all(rows.get(row, UNCHANGED[0]).startswith(starts) for rows in TABLES.values())


@pytest.mark.parametrize(("name", "cell"), cells("τ → ∞", AT_INFINITY))
def test_high_temperature(name, cell):
    (limit,) = re.findall(r"`(.*?)`", cell.split(",")[0])
    expected = eval(limit, {"k": K, "m": M, "log": log})
    drawn = make(name, 1e5).sample((100,))
    torch.testing.assert_close(drawn, torch.full_like(drawn, expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "cell"), cells("τ → 0", AT_0["to outcomes"]))
def test_low_temperature(name, cell):
    (limit,) = re.findall(r"{name}`(\w+)`", cell)
    torch.manual_seed(0)
    drawn = make(name, 1e-4).sample((20_000,))
    assert ((drawn - drawn.round()).abs() < 1e-3).double().mean() > 0.995
    assert_same_mean(drawn.round(), make(limit).mean)


@pytest.mark.parametrize(("name", "cell"), cells("τ → 0", AT_0["to infinity"]))
def test_low_temperature_of_logits(name, cell):
    torch.manual_seed(0)
    drawn = make(name, 1e-4).sample((1000,))
    assert (drawn.abs() > 100).double().mean() > 0.95
    assert drawn.min() < -100
    assert drawn.max() > 100


@pytest.mark.parametrize(("name", "cell"), cells("τ → 0", AT_0["of logarithms"]))
def test_low_temperature_of_logarithms(name, cell):
    torch.manual_seed(0)
    *others, largest = make(name, 1e-4).sample((1000,)).sort(-1).values.unbind(-1)
    assert (largest.abs() < 1e-3).double().mean() > 0.99
    assert (torch.stack(others) < -100).double().mean() > 0.95


@pytest.mark.parametrize(("name", "cell"), cells("τ → ∞", UNCHANGED))
def test_temperature_of_the_surrogate(name, cell):
    """The distribution does not change, and the gradient of `gumbel_softmax` vanishes."""
    of_index = "table[z]" in cell
    samples, log_probs, gradients = zip(*(drawn_at(name, t) for t in (0.5, 1e5)), strict=True)
    assert torch.equal(*samples)
    assert torch.equal(*log_probs)
    assert torch.equal(*gradients) == of_index
    assert of_index or gradients[1].abs().max() < 1e-3 < gradients[0].abs().max()


def drawn_at(name, temperature):
    """A sample, its log_prob, and the gradient of a loss of it."""
    cls = getattr(pyro_gumbel, name)
    given = arguments(cls, temperature, cls.family.event_dim)
    logits = given["logits"].clone().requires_grad_()
    d = cls(**given | {"logits": logits})
    torch.manual_seed(0)
    z = d.rsample()
    value = torch.tensor([1.0, 4.0, 9.0])[z] if name.startswith("Index") else z.square()
    (gradient,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
    return z.detach(), d.log_prob(z.detach()).detach(), gradient


# Pyro's and torch's classes, and how they differ.

PEER = re.compile(r"`((?:pyro|torch)\.[\w.]+)`(, which is that of torch)?: without ([\w, ]+)\.")
LACKS = {row if row.isupper() else row.lower(): attempt for row, attempt in ATTEMPTS.items()} | {
    "rsample": lambda d: d.rsample()
}


def sentences(name):
    cell = TABLES[name]["In Pyro and torch"]
    return [] if cell == "none" else re.split(r"(?<=\.) ", cell)


@of_each
def test_what_classes_of_pyro_and_torch_lack(name):
    for path, from_torch, lacking in PEER.findall(" ".join(sentences(name))):
        cls = resolve_name(path)
        assert not from_torch or issubclass(cls, getattr(torch.distributions, cls.__name__))
        d = plain_distribution(name, cls)
        for what in lacking.split(", "):
            assert not has(lambda what=what, d=d: LACKS[what](d)), what


def gradient_of(function, at):
    """The gradient at a number or a tensor."""
    leaf = torch.as_tensor(at).detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    return gradient


def gradient_vanishes_at_large_logits():
    for cls, is_zero in ((dist.RelaxedBernoulli, True), (pyro_gumbel.RelaxedBernoulli, False)):
        torch.manual_seed(0)
        drawn = gradient_of(lambda x, cls=cls: cls(torch.tensor(0.5), logits=x).rsample(), 20.0)
        assert (drawn == 0) == is_zero


def log_prob_is_infinite_far_below_0():
    torchs = torch.distributions.relaxed_bernoulli.LogitRelaxedBernoulli
    for cls, is_finite in ((torchs, False), (pyro_gumbel.LogitRelaxedBernoulli, True)):
        d = cls(torch.tensor(0.5), logits=torch.tensor(0.0))
        assert d.log_prob(torch.tensor(-300.0)).isfinite() == is_finite


def log_prob_is_of_a_hidden_value():
    for kind, parameter in (("Bernoulli", X), ("OneHotCategorical", LOGITS)):
        d = getattr(dist, f"Relaxed{kind}StraightThrough")(torch.tensor(0.5), logits=parameter)
        torch.manual_seed(0)
        assert not torch.equal(d.sample(), d.sample().round())
        z = d.rsample()
        hidden = getattr(dist, f"Relaxed{kind}")(torch.tensor(0.5), logits=parameter)
        torch.testing.assert_close(d.log_prob(z), hidden.log_prob(z._unquantize))


def log_prob_of_own_samples_is_not_finite():
    torch.manual_seed(0)
    logits = 2 * torch.randn(100, 10)
    for cls, is_finite in (
        (dist.RelaxedOneHotCategorical, False),
        (pyro_gumbel.RelaxedCategorical, True),
    ):
        d = cls(torch.tensor(0.01), logits=logits, validate_args=False)
        assert (d.log_prob(d.rsample()).isfinite() == is_finite).all()


def log_prob_is_the_same():
    v = make("ExpRelaxedCategorical").sample((5,))
    torchs = torch.distributions.relaxed_categorical.ExpRelaxedCategorical
    plain = torchs(torch.tensor(0.5), logits=LOGITS).log_prob(v)
    torch.testing.assert_close(plain, make("ExpRelaxedCategorical").log_prob(v))


def log_prob_passes_no_gradient():
    value = torch.eye(3)[:2].requires_grad_()
    assert not dist.OneHotCategorical(logits=LOGITS).log_prob(value).requires_grad
    assert make("CategoricalStraightThrough").log_prob(value).requires_grad


def gradient_is_that_of_straight_through():
    assert issubclass(
        dist.OneHotCategoricalStraightThrough, torch.distributions.OneHotCategoricalStraightThrough
    )
    weights = torch.tensor([1.0, 2.0, 4.0])
    how = {"temperature": 1.0, "estimator": "straight_through"}
    plain, ours = (
        gradient_of(lambda x, make=make: (make(logits=x).rsample() * weights).sum(), LOGITS)
        for make in (
            dist.OneHotCategoricalStraightThrough,
            lambda logits: pyro_gumbel.CategoricalStraightThrough(logits=logits, **how),
        )
    )
    torch.testing.assert_close(plain, ours)


def gradient_of_divergence_is_nan():
    uniform, at = dist.Categorical(logits=torch.zeros(3)), torch.tensor([0.0, 1.0, -torch.inf])
    for cls, is_nan in ((dist.Categorical, True), (pyro_gumbel.IndexStraightThrough, False)):
        found = gradient_of(lambda x, cls=cls: kl_divergence(cls(logits=x), uniform), at)
        assert found.isnan().any() == is_nan


def gradient_at_rate_0_is_nan():
    zero = torch.tensor(0.0)
    for cls, is_nan in ((dist.Poisson, True), (pyro_gumbel.PoissonStraightThrough, False)):
        assert gradient_of(lambda rate, cls=cls: cls(rate).log_prob(zero), 0.0).isnan() == is_nan


def log_prob_drops_a_part():
    for name in ("BinomialStraightThrough", "BetaBinomialStraightThrough"):
        ours, plain = make(name), plain_distribution(name, COUNTS[OF_COUNTS[name]].parent)
        at = torch.tensor(2.0).double()
        torch.testing.assert_close(ours.log_prob(at), plain.log_prob(at))
        slopes = [gradient_of(d.log_prob, at) for d in (ours, plain)]
        step = (ours.log_prob(at + 1) - ours.log_prob(at - 1)) / 2
        assert (slopes[0] - step).abs() < 0.1 < (slopes[1] - step).abs()


def divergence_of_large_logits_is_infinite():
    log_prob_drops_a_part()
    half = dist.Binomial(N, logits=torch.tensor(0.0))
    for cls, is_finite in ((dist.Binomial, False), (pyro_gumbel.BinomialStraightThrough, True)):
        found = kl_divergence(cls(N, logits=torch.tensor(17.0)), half)
        assert found.isfinite() == is_finite


def gradient_of_mean_is_0():
    for cls, expected in (
        (dist.NegativeBinomial, 0.0),
        (pyro_gumbel.NegativeBinomialStraightThrough, N),
    ):
        assert gradient_of(lambda p, cls=cls: cls(float(N), p).mean, 0.0) == expected


def mask_has_no_gradient():
    assert not torch.tensor(True).is_floating_point()
    two = [dist.Normal(0.0, 1.0), dist.Normal(1.0, 1.0)]
    chosen = dist.MaskedMixture(torch.tensor(True), *two).log_prob(torch.tensor(0.5))
    assert chosen == two[1].log_prob(torch.tensor(0.5))


def mixture_sums_over_components():
    weights, components = dist.Categorical(torch.ones(3)), dist.Normal(torch.arange(3.0), 1.0)
    found = dist.MixtureSameFamily(weights, components).log_prob(X)
    terms = weights.logits + components.log_prob(X.unsqueeze(-1))
    torch.testing.assert_close(found, terms.logsumexp(-1))


CLAIMS = {
    "Its gradient is exactly 0 for large logits.": gradient_vanishes_at_large_logits,
    "Its log_prob is -inf for values far below 0.": log_prob_is_infinite_far_below_0,
    "It keeps a hidden relaxed value, whose density is its log_prob, and its `sample` is "
    "relaxed.": log_prob_is_of_a_hidden_value,
    "At low temperatures its log_prob of its own samples is not finite.": (
        log_prob_of_own_samples_is_not_finite
    ),
    "Its log_prob is the same for finite logits.": log_prob_is_the_same,
    "Its log_prob passes no gradient to the value.": log_prob_passes_no_gradient,
    "`pyro.distributions.OneHotCategoricalStraightThrough`, which is that of torch, has the "
    "gradient of `straight_through`, and no other.": gradient_is_that_of_straight_through,
    "The gradient of its KL is NaN where a logit is -inf.": gradient_of_divergence_is_nan,
    "The gradient of its log_prob is NaN at rate 0.": gradient_at_rate_0_is_nan,
    "Its log_prob drops a part of the gradient in the value.": log_prob_drops_a_part,
    "Its KL is -inf from logit 17 on, and its log_prob drops a part of the gradient in the "
    "value.": divergence_of_large_logits_is_infinite,
    "The gradient of its mean is 0 at probability 0.": gradient_of_mean_is_0,
    "`pyro.distributions.MaskedMixture` chooses between two distributions by a mask, which has no "
    "gradient.": mask_has_no_gradient,
    "`pyro.distributions.MixtureSameFamily` sums over the components instead.": (
        mixture_sums_over_components
    ),
}


def test_every_sentence_on_pyro_and_torch_is_checked():
    said = {each for name in TABLES for each in sentences(name) if not PEER.fullmatch(each)}
    assert said == set(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_pyro_and_torch_differ_as_it_says(claim):
    CLAIMS[claim]()
