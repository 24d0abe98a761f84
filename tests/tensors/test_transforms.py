# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Index tensors under the transforms and compilers of torch, and derivatives of second order."""

import pyro.distributions as dist
import pytest
import torch
from torch.autograd import forward_ad

from pyro_gumbel import CategoricalStraightThrough, IndexStraightThrough
from pyro_gumbel.tensors import subclass
from pyro_gumbel.tensors.index_tensor import as_derivative, drawn_index
from pyro_gumbel.tensors.lookups import _within

K = 4
TABLE = torch.arange(12.0, dtype=torch.float64).reshape(K, 3).sin()


def of_index(logits, table):
    """Lookups, questions, codes, two draws and a plain prior."""
    z = as_derivative(IndexStraightThrough(0.5, logits=logits, validate_args=False).rsample())
    w = as_derivative(IndexStraightThrough(0.5, logits=logits + 1, validate_args=False).rsample())
    chosen = torch.where((w == 1) | (z == 2), 2.0, 3.0).to(table.dtype)
    prior = dist.Categorical(logits=table.sum(-1), validate_args=False).log_prob(z)
    return (table[z].sum(-1) * chosen).sum() + table[:, 0][(z + w) // 2].sum() + prior.sum()


def of_one_hot(logits, table):
    """The same, as polynomials of the one-hot vectors."""
    d = CategoricalStraightThrough(0.5, logits=logits, validate_args=False).rsample() * 1
    e = CategoricalStraightThrough(0.5, logits=logits + 1, validate_args=False).rsample() * 1
    either = e[..., 1] + d[..., 2] - e[..., 1] * d[..., 2]
    codes = (torch.arange(K).unsqueeze(-1) + torch.arange(K)) // 2
    looked_up = (d.unsqueeze(-1) * e.unsqueeze(-2) * table[:, 0][codes]).sum()
    prior = (d * table.sum(-1).log_softmax(-1)).sum()
    return ((d @ table).sum(-1) * (3.0 - either)).sum() + looked_up + prior


def seeded(function, *arguments):
    torch.manual_seed(1)
    return function(*arguments)


def gradients(function, logits, table):
    leaves = [logits.clone().requires_grad_(), table.clone().requires_grad_()]
    return torch.autograd.grad(seeded(function, *leaves), leaves)


@pytest.fixture
def logits():
    return torch.randn(5, K, dtype=torch.float64)


def test_the_two_are_one(logits):
    found, expected = seeded(of_index, logits, TABLE), seeded(of_one_hot, logits, TABLE)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        gradients(of_index, logits, TABLE), gradients(of_one_hot, logits, TABLE)
    )


def in_a_dual_level(function, logits):
    """The derivative along each entry."""
    found = torch.zeros_like(logits)
    for i in range(logits.numel()):
        along = torch.zeros(logits.numel(), dtype=logits.dtype)
        along[i] = 1
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(logits, along.view_as(logits))
            found.view(-1)[i] = forward_ad.unpack_dual(seeded(function, dual)).tangent
    return found


OF_FUNC = {
    "grad": lambda f, x: seeded(torch.func.grad(f), x),
    "jacrev": lambda f, x: seeded(torch.func.jacrev(f), x),
    "jacfwd": lambda f, x: seeded(torch.func.jacfwd(f, randomness="same"), x),
    "dual": in_a_dual_level,
    "vmap of grad": lambda f, x: seeded(
        torch.vmap(torch.func.grad(f), randomness="same"), torch.stack([x, x])
    )[1],
}


@pytest.mark.parametrize("transform", OF_FUNC)
def test_transforms_of_func(transform, logits):
    found = OF_FUNC[transform](lambda x: of_index(x, TABLE), logits)
    torch.testing.assert_close(found, gradients(of_one_hot, logits, TABLE)[0])


def test_second_derivatives_in_torch_func(logits):
    """Of operations on one draw each; one on two draws holds the other draw constant."""

    def looked_up(d):
        z, w = (drawn_index(each, each.argmax(-1)) for each in d)
        return (TABLE[z] * TABLE[w]).exp().sum()

    def linear(d):
        return ((d[0] @ TABLE) * (d[1] @ TABLE)).exp().sum()

    one_hots = torch.nn.functional.one_hot(logits.long() % K, K).to(logits)[:2]
    found, expected = (torch.func.hessian(each)(one_hots) for each in (looked_up, linear))
    torch.testing.assert_close(found, expected)


def test_vmap_over_logits():
    """The draw is inside, and the gradient is that of backward through the transform."""
    logits = torch.randn(6, 5, K, dtype=torch.float64).requires_grad_()
    found = []
    for function in (of_index, of_one_hot):
        of_rows = torch.vmap(lambda x, function=function: function(x, TABLE), randomness="same")
        (gradient,) = torch.autograd.grad(seeded(of_rows, logits).sum(), logits)
        found.append(gradient)
    torch.testing.assert_close(*found)


def test_a_second_derivative_is_an_error(logits):
    """In each parameter, also by a way that does not lead through the logits."""
    logits.requires_grad_()
    table = TABLE.clone().requires_grad_()
    z = as_derivative(IndexStraightThrough(0.5, logits=logits).rsample())
    (first,) = torch.autograd.grad(table[z].sum(), logits, create_graph=True)
    for leaf in (logits, table):
        with pytest.raises(RuntimeError, match="write one_hot @ table for table"):
            torch.autograd.grad(first.square().sum(), leaf, retain_graph=True)


def test_a_first_derivative_may_make_a_graph(logits):
    logits.requires_grad_()
    z = as_derivative(IndexStraightThrough(0.5, logits=logits).rsample())
    total = TABLE[z].sum()
    found = [
        torch.autograd.grad(total, logits, create_graph=create, retain_graph=True)[0].detach()
        for create in (True, False)
    ]
    torch.testing.assert_close(*found)


def test_functional_call(logits):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(K, 3, dtype=torch.float64)

        def forward(self, logits):
            z = as_derivative(
                IndexStraightThrough(0.5, logits=logits, validate_args=False).rsample()
            )
            return self.embedding(z).sum()

    def of_table(logits, table):
        return torch.func.functional_call(module, {"embedding.weight": table}, (logits,))

    def linear(logits, table):
        d = CategoricalStraightThrough(0.5, logits=logits, validate_args=False).rsample()
        return (d @ table).sum()

    module = Module()
    torch.testing.assert_close(gradients(of_table, logits, TABLE), gradients(linear, logits, TABLE))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace(logits):
    """Of other arguments than it was traced with."""
    traced = torch.jit.trace(
        of_index, (logits.clone().requires_grad_(), TABLE.clone()), check_trace=False
    )
    other, table = logits.flip(0) + 1, TABLE.flip(0)
    torch.testing.assert_close(seeded(traced, other, table), seeded(of_one_hot, other, table))
    torch.testing.assert_close(gradients(traced, other, table), gradients(of_one_hot, other, table))


def test_the_sizes_of_a_trace_are_on_the_cpu():
    """A lookup clamps its indices by them, which wants all of its arguments on one device."""
    codes, size = torch.tensor([-9, 1, 9]), torch.tensor(4, device="cpu")
    assert _within(codes, size).tolist() == _within(codes, 4).tolist() == [-4, 1, 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile asks plain results too
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_may_draw(backend, logits):
    torch.compiler.reset()
    compiled = torch.compile(of_index, backend=backend)
    for _ in range(2):
        torch.testing.assert_close(
            gradients(compiled, logits, TABLE), gradients(of_one_hot, logits, TABLE)
        )


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_takes_an_index_tensor(backend, logits):
    def total(z, table):
        return (table[z] * (z == 1).unsqueeze(-1)).sum()

    torch.compiler.reset()
    compiled = torch.compile(total, backend=backend)
    logits.requires_grad_()
    for _ in range(2):
        z = as_derivative(IndexStraightThrough(0.5, logits=logits).rsample())
        found, expected = compiled(z, TABLE), total(z, TABLE)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            *[torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (found, expected)]
        )


def test_a_full_graph_is_an_error(logits):
    torch.compiler.reset()
    compiled = torch.compile(of_index, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(logits.requires_grad_(), TABLE)


def test_without_the_private_names_of_dynamo(monkeypatch):
    """A torch that lacks one: the compiler is kept out in torch's own way."""
    seen = []

    def function(x):
        seen.append(torch.compiler.is_compiling())
        return x + 1

    with monkeypatch.context() as patches:
        patches.delattr(subclass.eval_frame, "_FrameExecStrategy")
        function = subclass.uncompiled(function)
    x = torch.ones(2)
    compiled = torch.compile(lambda x: 2 * function(2 * x), backend="eager")
    assert compiled(x).tolist() == [6.0, 6.0]
    assert function(x).tolist() == [2.0, 2.0]
    assert seen == [False, False]
