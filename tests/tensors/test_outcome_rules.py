# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Operations over the dimensions of an event, and products, keep outcomes."""

import pyro.distributions as dist
import pytest
import torch
from pyro.ops.special import safe_log
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from pyro_gumbel import BernoulliStraightThrough, CategoricalStraightThrough, SelectedComponent
from tests.common import seeded
from tests.states import drawn, gradient_of_draw, relative_error

SITES, K = 3, 3


def normal(*shape, seed=0):
    return seeded(torch.randn, seed, shape, dtype=torch.float64)


V, W, A, S = normal(K, 4), normal(4, 2, seed=1), normal(6, seed=2), normal(K, seed=3).exp()
SQUARES = normal(K, 2, 2, seed=7)
X, LOGITS = normal(SITES, seed=4), normal(SITES, K, seed=5)


def one_hot(z):
    return F.one_hot(z, K).double()


def covariances(z):
    """A symmetric positive definite matrix for each element."""
    return SQUARES[z] @ SQUARES[z].mT + torch.eye(2)


def loss(function, *targets, **options):
    """The exponential of a loss with each reduction."""

    def total(z):
        reductions = ("none", "mean", "sum")
        each = [function(A[z], *targets, reduction=name, **options) for name in reductions]
        return sum(value.exp().sum() for value in each)

    return total


CLASSES = torch.tensor([0, 3, 1])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 1.5], dtype=torch.float64)

FUNCTIONS = {
    "product of matrices": lambda z: (SQUARES[z] @ SQUARES[z].mT).exp().sum(),
    "product with a batch": lambda z: (SQUARES[z] @ SQUARES).exp().sum(),
    "product of a plain batch": lambda z: (SQUARES @ SQUARES[z]).exp().sum(),
    "product of a plain matrix": lambda z: torch.bmm(SQUARES, mat2=SQUARES[z]).exp().sum(),
    "cholesky": lambda z: torch.linalg.cholesky(covariances(z)).exp().sum(),
    "solve": lambda z: torch.linalg.solve(covariances(z), SQUARES[z]).exp().sum(),
    "solve, triangular": lambda z: (
        torch.linalg.solve_triangular(SQUARES[z], SQUARES, upper=False).exp().sum()
    ),
    "tril": lambda z: SQUARES[z].tril(-1).exp().sum(),
    "triu": lambda z: torch.triu(SQUARES[z], diagonal=1).exp().sum(),
    "inverse": lambda z: covariances(z).inverse().exp().sum(),
    "logdet": lambda z: covariances(z).logdet().exp().sum(),
    "mse_loss": loss(F.mse_loss, X),
    "l1_loss": loss(F.l1_loss, X),
    "huber_loss": loss(F.huber_loss, X, delta=0.5),
    "smooth_l1_loss": loss(F.smooth_l1_loss, X),
    "gaussian_nll_loss": loss(F.gaussian_nll_loss, X, X.exp()),
    "poisson_nll_loss": loss(F.poisson_nll_loss, X.exp().round()),
    "soft_margin_loss": loss(F.soft_margin_loss, X.sign()),
    "mse_loss of a number": lambda z: F.mse_loss(A[z].sum(), X[0]).exp(),
    "kl_div by batch": lambda z: F.kl_div(A[z], X.softmax(-1), reduction="batchmean").exp(),
    "cross_entropy": lambda z: F.cross_entropy(V[z], CLASSES, label_smoothing=0.1).exp(),
    "cross_entropy of each": lambda z: (
        F.cross_entropy(V[z], CLASSES, weight=WEIGHTS, reduction="none").exp().sum()
    ),
    "cross_entropy, summed": lambda z: F.cross_entropy(
        V[z], CLASSES, weight=WEIGHTS, reduction="sum"
    ).exp(),
    "nll_loss": lambda z: F.nll_loss(V[z].log_softmax(-1), CLASSES).exp(),
    "second names": lambda z: (
        torch.multiply(A[z], 2.0).absolute().divide(3.0).subtract(1.0).negative().exp().sum()
    ),
    "second names of inverses": lambda z: (
        torch.arctan(A[z]).exp() + torch.special.expit(S[z]) + torch.arcsinh(A[z]).exp()
    ).sum(),
    "second names of comparisons": lambda z: (
        torch.where(torch.greater(A[z], 0) & A[z].not_equal(S[z]), A[z], 0.3).exp().sum()
    ),
    "matrix product": lambda z: (V[z] @ W).exp().sum(),
    "vector product": lambda z: (V[z] @ W[:, 0]).exp().sum(),
    "logsigmoid": lambda z: F.logsigmoid(V[z]).exp().sum(),
    "amax": lambda z: V[z].amax(-1).exp().sum(),
    "max": lambda z: V[z].max(-1).values.exp().sum(),
    "the index of max": lambda z: A[V[z].max(-1)[1]].exp().sum(),
    "argmax": lambda z: A[V[z].argmax(-1)].exp().sum(),
    "max of two": lambda z: torch.max(A[z], S[z]).exp().sum(),
    "prod": lambda z: V[z].prod(-1, keepdim=True).exp().sum(),
    "cumsum": lambda z: V[z].cumsum(-1).exp().sum(),
    "mean over rows": lambda z: V[z].mean(dim=1).exp().sum(),
    "one-hot prior": lambda z: dist.OneHotCategorical(logits=LOGITS).log_prob(one_hot(z)).sum(),
    "our one-hot prior": lambda z: (
        CategoricalStraightThrough(logits=LOGITS).log_prob(one_hot(z)).sum()
    ),
    "our binary prior": lambda z: (
        BernoulliStraightThrough(logits=X).log_prob((z == 1).double()).sum()
    ),
    "our binary prior, of integers": lambda z: (
        BernoulliStraightThrough(logits=X).log_prob((z == 1).long()).sum()
    ),
    "a function of our one-hot prior": lambda z: (
        CategoricalStraightThrough(logits=LOGITS).log_prob(one_hot(z)).exp().sum()
    ),
    "a function of our binary prior": lambda z: (
        BernoulliStraightThrough(logits=X).log_prob((z == 1).double()).sum().exp()
    ),
    "binary prior": lambda z: dist.Bernoulli(logits=X).log_prob((z == 1).double()).sum(),
    "binary likelihood": lambda z: dist.Bernoulli(logits=A[z]).log_prob((X > 0).double()).sum(),
    "selected component": lambda z: SelectedComponent(z, dist.Normal(A[:K], S)).log_prob(X).sum(),
    "selected component, one-hot": lambda z: (
        SelectedComponent(one_hot(z), dist.Normal(A[:K], S)).log_prob(X).sum()
    ),
    "sum of what is the same along it": lambda z: (
        A[z].unsqueeze(-1).expand(-1, 4).sum(-1).exp().sum()
    ),
    "einsum over an event": lambda z: torch.einsum("ab,bc->ac", V[z], W).exp().sum(),
    "einsum of two": lambda z: torch.einsum("iab,ibc->ica", SQUARES[z], SQUARES[z]).exp().sum(),
    "a function with its own gradient": lambda z: safe_log(S[z]).exp().square().sum(),
    "a single matrix": lambda z: covariances(z[0]).logdet().exp(),
    "a single element, normalised": lambda z: F.normalize(V[z[0]], dim=-1)[0] * V[z[1], 0],
    "a single element, sorted": lambda z: V[z[0]].sort(descending=True).values[1].exp(),
    "a single element, taken": lambda z: V[z[0]].take(torch.tensor([1, 0])).prod(),
    "single elements, outer": lambda z: torch.outer(V[z[0]], W[:, 0] * A[z[1]]).exp().sum(),
    "single elements, var": lambda z: (V[z[0]].var() * A[z[1]]).exp(),
    "single elements, padded": lambda z: F.pad(V[z[0]], (1, 1), value=1.0).prod(),
    "count": lambda z: dist.Poisson(2.0).log_prob(z).sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_mean_gradient_is_exact(name):
    logits = normal(SITES, K, seed=6).requires_grad_()
    assert relative_error(FUNCTIONS[name], logits) < 1e-7


def test_the_mean_of_classes_with_weights_is_that_of_torch():
    """It has no outcomes: its gradient is a derivative."""
    state = torch.tensor([2, 0, 1])
    value = drawn(state, normal(SITES, K, seed=6).requires_grad_())
    for options in ({"weight": WEIGHTS}, {"ignore_index": 3}):
        found = F.cross_entropy(V[value], CLASSES, **options)
        assert found.requires_grad
        torch.testing.assert_close(found.detach(), F.cross_entropy(V[state], CLASSES, **options))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_reduced_loss_is_linear_in_its_terms(reduction):
    """So the gradient does not depend on the draw, whatever the number of elements."""
    logits, x = normal(20, K, seed=6).requires_grad_(), normal(20)

    def loss(z):
        return F.mse_loss(A[z], x, reduction=reduction)

    gradients = [gradient_of_draw(loss, torch.full((20,), k), logits) for k in range(K)]
    terms = (x[:, None] - A[:K]) ** 2
    total = (logits.softmax(-1) * terms).sum() / (20 if reduction == "mean" else 1)
    (exact,) = torch.autograd.grad(total, logits)
    for gradient in gradients:
        torch.testing.assert_close(gradient, exact)


def test_a_random_function_draws_once():
    value = drawn(torch.tensor([2, 0, 1]), normal(SITES, K, seed=6).requires_grad_())
    torch.manual_seed(0)
    found = F.dropout(V[value[0]])
    torch.manual_seed(0)
    torch.testing.assert_close(found.detach(), F.dropout(V[1 + 1]))


def size_of(floats):
    """A user's own function, which other classes of tensors may override."""
    if has_torch_function_unary(floats):
        return handle_torch_function(size_of, (floats,), floats)
    return floats.numel() / 2


def test_a_function_of_a_single_element_may_return_anything():
    value = drawn(torch.tensor([2, 0, 1]), normal(SITES, K, seed=6).requires_grad_())
    assert size_of(V[value[0]]) == 2.0
    assert size_of(V[value]) == 6.0


@pytest.mark.parametrize("name", ["binary_cross_entropy_with_logits", "kl_div"])
def test_losses_of_torch_itself_have_the_derivative(name):
    """Their reduction is a number."""
    state, function = torch.tensor([2, 0, 1]), getattr(torch, name)
    value = drawn(state, normal(SITES, K, seed=6).requires_grad_())
    found = function(A[value], X.sigmoid())
    assert found.requires_grad
    torch.testing.assert_close(found.detach(), function(A[state], X.sigmoid()))


@pytest.mark.parametrize("function", [F.softplus, F.celu, torch.logit])
def test_a_number_may_be_a_tensor(function):
    """Where the parameter of a function is a number, torch takes a tensor of one."""
    state, number = torch.tensor([2, 0, 1]), torch.tensor(0.25, dtype=torch.float64)
    value = drawn(state, normal(SITES, K, seed=6).requires_grad_())
    found = function(S[value][0], number)
    torch.testing.assert_close(found.detach(), function(S[state][0], number))


def test_a_loss_raises_the_errors_of_torch():
    value = drawn(torch.tensor([2, 0, 1]), normal(SITES, K, seed=6).requires_grad_())
    for reduction in ("batchmean", "middle"):
        with pytest.raises(ValueError, match="not a valid value for reduction"):
            F.mse_loss(A[value], X, reduction=reduction)
    assert F.mse_loss(A[value][:0], X[:0]).isnan()
