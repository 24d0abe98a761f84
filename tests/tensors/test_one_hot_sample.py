# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""A plain prior passes its gradient to a one-hot sample, whatever Pyro does on the way."""

import copy
import io
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.autograd import forward_ad

from pyro_gumbel import CategoricalStraightThrough
from pyro_gumbel.tensors.index_tensor import IndexTensor
from pyro_gumbel.tensors.one_hot_sample import OneHotSample, as_one_hot_sample

K = 4


def drawn(batch=(3,), dtype=torch.float32):
    """A sample with a gradient, and the logits that have it."""
    logits = torch.randn((*batch, K), dtype=dtype).requires_grad_()
    return CategoricalStraightThrough(0.5, logits=logits).rsample(), logits


def without_index(value):
    """The same sample as a plain tensor, with its graph."""
    return value * 1


PRIORS = {
    "Pyro's": lambda x: dist.OneHotCategorical(logits=x),
    "torch's": lambda x: torch.distributions.OneHotCategorical(logits=x),
    "by probs": lambda x: dist.OneHotCategorical(probs=x.softmax(-1)),
    "unchecked": lambda x: dist.OneHotCategorical(logits=x, validate_args=False),
    "expanded": lambda x: dist.OneHotCategorical(logits=x).expand([2, 3]),
    "independent": lambda x: dist.OneHotCategorical(logits=x).to_event(1),
    "masked": lambda x: dist.OneHotCategorical(logits=x).mask(torch.tensor([True, False, True])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prior", PRIORS)
def test_a_plain_prior_is_linear_in_a_sample(prior, dtype):
    value, logits = drawn(dtype=dtype)
    x = torch.randn(3, K, dtype=dtype).requires_grad_()
    plain = PRIORS[prior](x)
    log_prob = plain.log_prob(value)
    torch.testing.assert_close(log_prob, plain.log_prob(value.detach()), rtol=0, atol=0)
    found = torch.autograd.grad(log_prob.sum(), (logits, x), retain_graph=True)

    table = plain.base_dist if hasattr(plain, "base_dist") else plain
    terms = (without_index(value) * table.logits).sum(-1)
    if prior == "masked":
        terms = terms * torch.tensor([1.0, 0.0, 1.0], dtype=dtype)
    expected = torch.autograd.grad(terms.sum(), (logits, x))
    torch.testing.assert_close(found, expected)
    assert (found[0] != 0).any()


@pytest.mark.parametrize(
    ("value_shape", "prior_shape"),
    [((), ()), ((), (5,)), ((5,), ()), ((2, 1), (3,)), ((2, 1, 3), (4, 1)), ((0,), ())],
)
def test_shapes_broadcast(value_shape, prior_shape):
    value, logits = drawn(value_shape, torch.float64)
    x = torch.randn(*prior_shape, K, dtype=torch.float64)
    log_prob = dist.OneHotCategorical(logits=x).log_prob(value)
    expected = (without_index(value) * x.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(log_prob, expected)
    found, wanted = (
        torch.autograd.grad(terms.sum(), logits, retain_graph=True)
        for terms in (log_prob, expected)
    )
    torch.testing.assert_close(found, wanted)


def test_an_impossible_category_passes_no_gradient():
    value, logits = drawn((100,))
    x = torch.tensor([0.0, 1.0, -torch.inf, 0.5])
    log_prob = dist.OneHotCategorical(logits=x).log_prob(value)
    impossible = value[:, 2] == 1
    assert impossible.any()
    assert log_prob[impossible].isneginf().all()
    assert log_prob[~impossible].isfinite().all()
    (found,) = torch.autograd.grad(log_prob.sum(), logits)
    assert found.isfinite().all()
    assert (found != 0).any()


def test_a_second_derivative_is_an_error():
    value, logits = drawn(dtype=torch.float64)
    x = torch.randn(3, K, dtype=torch.float64).requires_grad_()
    log_prob = dist.OneHotCategorical(logits=x).log_prob(value)
    (first,) = torch.autograd.grad(log_prob.sum(), logits, create_graph=True)
    for wanted in (x, logits):
        with pytest.raises(RuntimeError, match="expected a first derivative"):
            torch.autograd.grad((first**2).sum(), wanted, retain_graph=True)


def test_second_derivatives_in_torch_func_are_those_of_the_sum():
    x, logits = torch.randn(2, 3, K, dtype=torch.float64)
    mixed = []
    for function in (of_logits, linear_of):
        torch.manual_seed(1)
        first = torch.func.grad(function, argnums=1)
        mixed.append(torch.func.jacrev(first, argnums=(0, 1))(x, logits))
    torch.testing.assert_close(*mixed)


OPERATIONS = {
    "product": lambda z: z @ torch.ones(K),
    "arithmetic": lambda z: 2 * z + 1,
    "clone": torch.clone,
    "detach": torch.detach,
    "slice": lambda z: z[..., :2],
    "index": lambda z: z[0],
    "all": lambda z: z[...],
    "view": lambda z: z.view(-1),
    "dtype": lambda z: z.double(),
    "long": lambda z: z.long(),
    "the largest": lambda z: z.max(),
    "largest over the batch": lambda z: z.max(0).indices,
    "maximum": lambda z: torch.max(z, torch.zeros(K)),
    "values": lambda z: z.max(-1).values,
    "stack": lambda z: torch.stack([z, z]),
    "cat": lambda z: torch.cat([z, z]),
    "comparison": lambda z: z == 1,
    "linear": lambda z: torch.nn.functional.linear(z, torch.ones(2, K)),
    "largest over the batch, by name": lambda z: z.max(dim=0).indices,
    "largest of a named argument": lambda z: torch.max(input=z, dim=-1).indices,
    "maximum, by name": lambda z: torch.max(z, other=torch.zeros(K)),
    "sample, changed in place": lambda z: TABLE.gather(-1, column(z.mul_(2))),
    "cut off in place": lambda z: z.detach_() + 0,
}

TABLE = torch.arange(3.0 * K).reshape(3, K)


def column(z):
    """The index as `Categorical.log_prob` computes it."""
    return z.max(-1)[1].unsqueeze(-1)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_other_operation_is_that_of_a_plain_tensor(operation):
    value, _ = drawn()
    assert type(value) is OneHotSample
    found = OPERATIONS[operation](value)
    expected = OPERATIONS[operation](without_index(value))
    assert type(found) is type(expected) is torch.Tensor
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found.requires_grad == expected.requires_grad


def test_an_infinite_entry_elsewhere_does_not_matter():
    value, _ = drawn()
    table = torch.where(value == 1, 1.0, torch.tensor([torch.inf, torch.nan, -torch.inf, 2.0]))
    found = table.detach().gather(-1, column(value))
    torch.testing.assert_close(found, torch.ones(3, 1))


def test_a_log_prob_has_the_dtype_of_the_prior():
    value, _ = drawn()
    prior = dist.OneHotCategorical(logits=torch.zeros(K, dtype=torch.bfloat16))
    assert prior.log_prob(value).requires_grad
    assert prior.log_prob(value).dtype == prior.log_prob(value.detach()).dtype


class Marked(torch.Tensor):
    """A user's tensors, which marks what is computed from them."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {})).as_subclass(cls)


class Symbol:
    """An object that is not a tensor, with a `__torch_function__` of its own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func.__name__


@pytest.mark.parametrize("operation", [torch.add, torch.matmul, lambda *each: torch.stack(each)])
def test_other_types_have_their_own_way(operation):
    value, _ = drawn((K,))
    for other in (torch.ones(K, K).as_subclass(Marked), Symbol()):
        assert type(operation(value, other)) is type(operation(without_index(value), other))


@pytest.mark.parametrize("function", [torch.max, torch.Tensor.max])
@pytest.mark.parametrize("dim", [-1, 1])
def test_the_index_is_one_of_integers(function, dim):
    value, _ = drawn()
    largest = function(value, dim)
    assert type(largest.indices) is IndexTensor
    assert type(largest.values) is torch.Tensor
    assert largest.indices.dtype == torch.int64
    assert not largest.indices.requires_grad
    assert torch.equal(largest[1].plain, value.plain.argmax(-1))


def test_argmax_is_an_index_tensor():
    value, _ = drawn()
    assert type(value.argmax(-1)) is type(torch.argmax(value, 1)) is IndexTensor
    assert type(value.argmax()) is type(value.argmax(0)) is torch.Tensor
    assert type(value.argmax(dim=-1)) is type(value.max(axis=-1).indices) is IndexTensor
    assert torch.equal(value.argmax(-1).plain, value.plain.argmax(-1))


@pytest.mark.parametrize(
    "function",
    [
        lambda z: z.argmax(-1, keepdim=True),
        lambda z: z.argmax(dim=-1, keepdim=True),
        lambda z: z.max(-1, True)[1],
        lambda z: z.max(axis=-1, keepdim=True).indices,
    ],
)
def test_an_index_that_keeps_the_dimension_is_an_index_tensor(function):
    value, logits = drawn()
    index = function(value)
    assert type(index) is IndexTensor
    assert torch.equal(index.plain, value.plain.argmax(-1, keepdim=True))
    (found,) = torch.autograd.grad(TABLE.gather(-1, index).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((value * TABLE).sum(), logits)
    torch.testing.assert_close(found, expected)


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("copied", [saved_and_loaded, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_on_disk_are_plain(copied):
    value, _ = drawn()
    for each in (value, value.max(-1).indices):
        assert type(copied(each)) is torch.Tensor
        torch.testing.assert_close(copied(each), each.plain)


def test_copies_are_what_those_of_a_plain_tensor_are():
    value, _ = drawn()
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy.deepcopy(value)
    index = value.max(-1).indices
    assert type(copy.deepcopy(index)) is torch.Tensor
    assert repr(value).startswith("tensor([[")
    assert str(index).startswith("tensor([")


def test_a_value_without_a_gradient_is_plain():
    distribution = CategoricalStraightThrough(0.5, logits=torch.zeros(3, K))
    assert type(distribution.sample()) is torch.Tensor
    assert type(distribution.rsample()) is torch.Tensor
    with torch.no_grad():
        assert type(as_one_hot_sample(drawn()[0].detach())) is torch.Tensor


def of_logits(x, logits):
    value = CategoricalStraightThrough(0.5, logits=logits).rsample()
    return dist.OneHotCategorical(logits=x, validate_args=False).log_prob(value).sum()


def linear_of(x, logits):
    value = without_index(CategoricalStraightThrough(0.5, logits=logits).rsample())
    return (value * x.log_softmax(-1)).sum()


def expected_gradient(x, logits):
    return torch.autograd.grad(linear_of(x, logits), logits)[0]


@pytest.mark.usefixtures("equal_draws")
def test_func_grad():
    x, logits = torch.randn(3, K), torch.randn(3, K)
    torch.manual_seed(1)
    found = torch.func.grad(of_logits, argnums=1)(x, logits)
    torch.manual_seed(1)
    torch.testing.assert_close(found, expected_gradient(x, logits.requires_grad_()))


def forward_gradient(function, logits):
    return torch.func.jacfwd(function, randomness="same")(logits)


def in_a_dual_level(function, logits):
    """The derivative along each entry."""
    found = torch.zeros_like(logits)
    for i in range(logits.numel()):
        along = torch.zeros(logits.numel(), dtype=logits.dtype)
        along[i] = 1
        torch.manual_seed(1)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(logits, along.view_as(logits))
            found.view(-1)[i] = forward_ad.unpack_dual(function(dual)).tangent
    return found


def within(inner):
    """The gradient of an outer transform, through one that wants another gradient."""
    one = torch.ones(1, dtype=torch.float64)

    def gradient(function, logits):
        return torch.func.grad(lambda x: inner(lambda c: (c * function(x)).sum(), one).sum())(
            logits
        )

    return gradient


OF_FUNC = {
    "forward": forward_gradient,
    "dual": in_a_dual_level,
    "within grad": within(lambda function, one: torch.func.grad(function)(one)),
    "within jvp": within(lambda function, one: torch.func.jvp(function, (one,), (one,))[1]),
    "within vmap": within(lambda function, one: torch.vmap(function, randomness="same")(one)),
}


@pytest.mark.parametrize("transform", OF_FUNC)
def test_no_transform_of_func_loses_the_gradient(transform):
    x, logits = torch.randn(2, 3, K, dtype=torch.float64)
    torch.manual_seed(1)
    found = OF_FUNC[transform](lambda logits: of_logits(x, logits), logits)
    torch.manual_seed(1)
    torch.testing.assert_close(found, expected_gradient(x, logits.requires_grad_()))


def test_a_transform_over_the_rows_of_logits():
    x, logits = torch.randn(2, 3, K, dtype=torch.float64)
    logits.requires_grad_()
    gradients = []
    for function in (of_logits, lambda x, logits: linear_of(x, logits)):
        torch.manual_seed(1)
        total = torch.vmap(function, randomness="same")(x, logits).sum()
        gradients.append(torch.autograd.grad(total, logits)[0])
    torch.testing.assert_close(*gradients)


def test_vmap():
    """Over samples: the mean gradient is that of samples drawn at once."""
    x, logits = torch.randn(K), torch.randn(K)

    def gradient(_):
        return torch.func.grad(of_logits, argnums=1)(x, logits)

    found = torch.vmap(gradient, randomness="different")(torch.arange(2000))
    logits.requires_grad_()
    expected = torch.stack([expected_gradient(x, logits) for _ in range(2000)])
    error = (found.var(0) / 2000 + expected.var(0) / 2000).sqrt()
    assert ((found.mean(0) - expected.mean(0)) / error).abs().max() < 5
    assert (found != 0).any()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile asks plain results too
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_takes_a_sample(backend):
    """In its first call too."""
    value, logits = drawn()
    weights = torch.randn(K)
    torch.compiler.reset()
    compiled = torch.compile(lambda z: (z @ weights).exp().sum(), fullgraph=True, backend=backend)
    (found,) = torch.autograd.grad(compiled(value), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((value @ weights).exp().sum(), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile asks plain results too
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_prior_has_the_right_gradient_or_none(backend):
    value, logits = drawn()
    prior = dist.OneHotCategorical(logits=torch.randn(K), validate_args=False)
    torch.compiler.reset()
    log_prob = torch.compile(prior.log_prob, backend=backend)(value)
    torch.testing.assert_close(log_prob, prior.log_prob(value))
    (expected,) = torch.autograd.grad(prior.log_prob(value).sum(), logits, retain_graph=True)
    if log_prob.requires_grad:
        (found,) = torch.autograd.grad(log_prob.sum(), logits)
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_may_check_a_sample(backend):
    """Its checks run step by step, and each is itself."""

    def total(value, x):
        log_prob = dist.OneHotCategorical(logits=x).log_prob(value).sum()
        torch._dynamo.graph_break()
        return log_prob + (value @ x).sum()

    torch.compiler.reset()
    compiled = torch.compile(total, backend=backend)
    for _ in range(2):
        value, x = drawn()[0], torch.randn(K)
        torch.testing.assert_close(compiled(value, x), total(value, x))


def test_a_compiled_draw_is_plain():
    def draw(logits):
        return CategoricalStraightThrough(0.5, logits=logits, validate_args=False).rsample()

    value = torch.compile(draw, fullgraph=True, backend="eager")(torch.zeros(3, K).requires_grad_())
    assert type(value) is torch.Tensor


def test_a_sample_may_be_the_logits_of_a_draw():
    """Also by the kernels, which take plain tensors only."""
    value, logits = drawn()
    torch.manual_seed(1)
    found = CategoricalStraightThrough(0.5, logits=value).rsample() @ torch.arange(K).float()
    torch.manual_seed(1)
    expected = CategoricalStraightThrough(0.5, logits=without_index(value)).rsample()
    expected = expected @ torch.arange(K).float()
    for each in (found, expected):
        assert each.requires_grad
    gradients = [
        torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (found, expected)
    ]
    torch.testing.assert_close(*gradients)
