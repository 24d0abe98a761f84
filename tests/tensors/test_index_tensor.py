# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What is made of an index tensor has the numbers of a plain one, and the gradient of the draw."""

import inspect

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pyro_gumbel import CategoricalStraightThrough, IndexStraightThrough
from pyro_gumbel.tensors.one_hot_sample import OneHotSample

from .substitution import Draw, Expression, assert_equal, centred, substituted

# In these expressions z, w and v are different draws; s is one of a single element.
LOOKUPS = """
T(4)[z]
T(4, 5)[z]
T(4, 5, 2)[z]
T(4, 5, 2, 3)[z]
T(7, 2)[z]
T(4)[s]
T(4, 5)[s]
T(4, 5, 2)[s]
T(4)[s.unsqueeze(0)]
T(4, 5)[v]
T(4, 5, 2)[v]
T(5, 4)[:, z]
T(5, 4)[..., z]
T(5, 4, 2)[:, z]
T(5, 2, 4)[:, :, z]
T(5, 2, 4)[..., z]
T(5, 2, 4)[1:4:2, :, z]
T(5, 4, 2)[::2, z, 1:]
T(5, 4, 2)[::2, v, 1:]
T(5, 4, 2)[3, z]
T(5, 4, 2)[3, v]
T(5, 4, 2)[-1, z, 0]
T(5, 4, 2)[:, z, 0]
T(5, 4, 2)[:, v, 0]
T(5, 4, 2)[1, s]
T(5, 4, 2)[:, s]
T(5, 4, 2)[..., s, :]
T(5, 4, 2)[None, 1:, s]
T(4, 5)[None, z]
T(4, 5)[z, None]
T(4, 5)[z, :, None]
T(4, 5)[v, None, :2]
T(4, 5)[None, v, ..., None]
T(4, 5)[..., None, z, :]
T(5, 4)[None, ..., z]
T(4, 5)[z, 1]
T(4, 5)[z, -1]
T(4, 5)[z, t(2)]
T(4, 5)[z, t([2])]
T(4, 5)[z, t([2, 0, 1])]
T(4, 5)[z[:, None], t([2, 0])]
T(4, 5)[z, [2, 0, 1]]
T(4, 5)[[0, 2, 1], :][:, :4][:, z]
T(4, 5)[z[:, None], [[2, 0]]]
T(5, 4)[[1, 0, 2], z]
T(5, 4)[[1], z]
T(3, 4)[range(3), z]
T(5, 4)[t([True, False, True, True, False]), z]
T(5, 2, 4)[t([True, False, True, True, False]), :, z]
T(5, 2, 4)[t([[True, False]] * 3 + [[False, False]] * 2), z]
T(4, 5, 2)[z, t([[True, False]] * 3 + [[False, False]] * 2)]
T(4, 5)[v, t([False, True, True, False, True])]
T(5, 4, 2)[t([1, 0, 2]), z]
T(5, 4, 2)[t([1, 0, 2]), :, t([0, 1, 1])][:, z]
T(3, 4, 2)[t([1, 0, 2]), z, t([0, 1, 1])]
T(2, 4, 3, 5)[:, z, :, t([0, 1, 1])]
T(2, 4, 3, 5)[:, z, None, t([0, 1, 1])]
T(2, 4, 3, 5)[1, z, :, t([0, 1, 1])]
T(2, 4, 3, 5)[:, z, 1, t([0, 1, 1])]
T(2, 4, 3, 5)[:, s, :, t([0, 1, 1])]
T(2, 4, 3, 5)[:, t(1), :, z]
T(4, 4)[z, w]
T(4, 4)[z, w[:, None]]
T(4, 4, 2)[z, w]
T(2, 4, 4)[:, z, w]
T(4, 2, 4)[z, :, w]
T(4, 2, 4)[z, 1, w]
T(4, 2, 4)[z, t([1, 0, 1]), w]
T(4, 3)[z, v]
T(4, 5, 3)[z, :, v]
T(4, 5, 3)[z, ..., v]
T(4, 3, 4)[z, v, w]
T(4, 3, 4, 2)[z, v, w, 1]
T(4, 2, 3, 4)[z[:2], :, v, w[:2]]
T(4, 4)[s, z]
T(4, 4)[z, s]
T(4, 4, 2)[s, z]
T(2, 4, 4)[:, z, s]
T(4, 2, 4)[s, :, z]
T(4, 4, 3)[s, z, v]
T(4, 4)[z[0], w]
T(4, 4)[z[0], w[1]]
T(4, 4)[z[:-1], z[1:]]
T(4, 4)[z, z]
T(4, 4)[z, z[...]]
T(4, 4)[z, z.clone()]
T(4, 4)[z[[0, 2, 1]], z[[0, 2, 1]]]
T(4, 4)[z[:, None], z]
T(4, 4)[z[:, None], z[None, :]]
T(4, 4)[z, z.flip(0)]
T(4, 4)[s, s]
T(4, 4)[z[0], z]
T(4, 4, 4)[z, w, z]
T(4, 4, 4)[z[:, None], z, w]
T(4, 2, 4)[z, :, z]
T(10)[2 * z + w]
T(16)[4 * z + w]
T(12)[3 * z + v]
T(5)[z + 1]
T(5)[-z]
T(5)[-1 - z]
T(5)[4 - z]
T(16)[4 * z + z]
T(4, 2)[N(4)[z]]
T(4, 2)[N(4, 5)[z]]
T(4, 2)[N(4, 4)[z, w]]
T(4, 4)[N(4)[z], z]
T(4, 4)[N(4)[z], w]
T(4, 4)[N(4, 3)[z[0]], w]
T(4)[N(4)[N(4)[z]]]
T(2, 4)[:, N(4)[z]]
T(4, 4)[z, z // 2]
T(4)[z.bool().long()]
T(2)[(z == 1).long()]
T(2)[(z == w).long()]
T(2, 4)[(z > 1).long(), w]
T(4)[torch.where(z == 1, w, 3)]
T(4)[torch.where(z > w, z, w)]
T(4)[torch.maximum(z, w)]
T(4)[z.clamp(1, 2)]
T(4, 5)[torch.stack([z, w])]
T(4, 5)[torch.stack([z, w], -1)]
T(4, 5)[torch.cat([z, w])]
T(4, 5)[torch.cat([z, N(2)])]
T(4, 5)[torch.cat([z, v[:, 0]])]
T(4, 4)[torch.stack([z, w]), torch.stack([w, z])]
T(4, 4)[torch.stack([z, w]), z]
T(7)[torch.stack([z + w, w + 2])]
T(7)[torch.stack([z + v[0], w])]
T(4)[torch.stack([z[0], s, w[2]])]
T(4)[torch.hstack([z, w])]
T(4)[torch.stack((z, w), dim=1)]
T(4)[torch.cat(tensors=[z, w])]
T(4)[torch.stack([z, z + 0])]
T(4, 4).gather(1, z[None].expand(4, 3))
T(3, 4).gather(1, z[:, None])
T(3, 4).gather(-1, z[:, None])
torch.gather(T(3, 4), 1, z[:, None])
torch.gather(input=T(3, 4), dim=-1, index=z[:, None])
T(5, 4).gather(1, z[:, None])
T(4, 3).gather(0, z[None])
T(5, 4).gather(1, torch.stack([z, w], -1))
T(4).gather(0, z)
T(4).gather(0, s)
T(5).gather(0, z + 1)
T(3, 5).gather(1, z[:, None] + 1)
T(3, 5).gather(1, N(4)[z][:, None])
T(4).take(z)
T(4, 4).take(z)
torch.take(T(4, 4), z[:, None] + 4 * w)
T(4).take(s)
torch.take_along_dim(T(3, 4), z[:, None], 1)
torch.take_along_dim(T(1, 4), z[:, None], -1)
torch.take_along_dim(T(3, 4), z[:, None])
T(3, 4).take_along_dim(z[:, None], dim=1)
T(2, 1, 4).take_along_dim(z[None, :, None], 2)
T(4, 5).index_select(0, z)
T(5, 4).index_select(1, z)
T(5, 4).index_select(-1, z)
T(5, 4).index_select(dim=1, index=z)
torch.index_select(T(4, 5), 0, s)
torch.index_select(input=T(4, 5), dim=0, index=z)
F.embedding(z, T(4, 5))
F.embedding(input=z, weight=T(4, 5))
F.embedding(v, T(4, 5))
torch.embedding(T(4, 5), z)
torch.nn.Embedding(4, 5, _weight=T(4, 5), _freeze=False)(z)
F.one_hot(z, 4).to(T(4).dtype) @ T(4)
F.one_hot(z, 4).to(FLOAT)
F.one_hot(z, num_classes=4).to(FLOAT)
F.one_hot(s, 4).to(FLOAT)
F.one_hot(v, 3).to(FLOAT)
F.one_hot(N(4)[z], 4).to(FLOAT)
F.one_hot(z, 4).bool().logical_not().to(FLOAT)
Vindex(T(4, 5))[z]
Vindex(T(4, 5))[z, :]
Vindex(T(4, 4))[z, w]
Vindex(T(4, 4, 2))[z, w]
Vindex(T(4, 5, 2))[z, :]
Vindex(T(5, 3, 4))[..., z]
Vindex(T(5, 4))[:, z]
Vindex(T(3, 4))[..., z]
Vindex(T(3, 4, 5))[..., z, :]
Vindex(T(2, 3, 4, 5))[..., z, :]
Vindex(T(2, 1, 4, 4))[..., z, w]
Vindex(T(4, 5))[z, t([0, 1, 2])]
Vindex(T(4, 4))[z.unsqueeze(-1), t([0, 1, 2, 3])]
Vindex(T(4, 3, 5))[z, v, :]
Vindex(T(4, 3))[s, v]
""".strip().splitlines()

ELEMENTWISE = """
(z == 1).to(FLOAT)
(z != 1).to(FLOAT)
(1 == z).to(FLOAT)
(z == w).to(FLOAT)
(z == z).to(FLOAT)
(z == z.flip(0)).to(FLOAT)
(z[:, None] == z).to(FLOAT)
(z == v).to(FLOAT)
(z == t([0, 1, 2])).to(FLOAT)
(z == s).to(FLOAT)
(z < 2).to(FLOAT)
(z >= w).to(FLOAT)
torch.eq(z, w).to(FLOAT)
(~(z == 1)).to(FLOAT)
((z == 1) & (w == 2)).to(FLOAT)
((z == 1) | (w == 2)).to(FLOAT)
((z == 1) ^ (w == 2)).to(FLOAT)
((z == 1) & (z < 3)).to(FLOAT)
((z == 1) & t([True, False, True])).to(FLOAT)
((z == 1) | ~(w < v)).to(FLOAT)
(z == 1).logical_and(w == 2).to(FLOAT)
torch.where(z == 1, 2.0, 3.0).to(FLOAT)
torch.where(z == 1, T(3), T(1))
torch.where(z == w, T(3), 0.0)
torch.where(s == 1, T(3), 0.0)
torch.where(s == 1, T(2)[0], T(3)[1])
torch.where((z == 1) & (w > 0), T(2, 3), 0.0)
torch.where(z[:, None] == t([0, 1, 2, 3]), T(3, 4), 0.0)
torch.where(condition=z == 1, input=T(3), other=0.0)
T(3).where(z == 1, 0.5)
T(3).masked_fill(z == 1, 0.5)
T(2, 3).masked_fill(z == w, 0.5)
T(3).clamp(0.0, 0.5).lerp(T(1), z / 4)
(z == 1) * T(3)
T(3) * (z == 1)
(z == 1) * 2.5 + 0 * T(3)
z * T(3)
T(3) * z
T(3) / (z + 1)
T(3) - z
z - T(3)
T(3) ** z
T(3).abs() ** (z - 1)
T(1)[0] * s
s * T(1)[0]
s * t(0.1, dtype=FLOAT)
t(0.1, dtype=FLOAT) / (s + 1)
s.to(FLOAT) * 1.1
z.to(FLOAT)
z.to(FLOAT)
z.to(T(1))
z.type_as(T(1))
z.type(FLOAT)
z.to(dtype=FLOAT)
(1.5 * z).to(FLOAT)
(z / 2).to(FLOAT)
(3 / (z + 1)).to(FLOAT)
torch.true_divide(z, 2).to(FLOAT)
(z // 2).to(FLOAT)
(z % 3).to(FLOAT)
(z + 1).to(FLOAT)
(1 - z).to(FLOAT)
(-z).to(FLOAT)
(z + w).to(FLOAT)
(z * w).to(FLOAT)
(z * z).to(FLOAT)
(z - z.flip(0)).to(FLOAT)
(z[:, None] * z).to(FLOAT)
(z[:, None] * z * w).to(FLOAT)
(z[:, None] + z == 3).to(FLOAT)
(4 * z + w).to(FLOAT)
(z ** 2).to(FLOAT)
(z ** w).to(FLOAT)
(2 ** z).to(FLOAT)
(z << 1).to(FLOAT)
(z & 1).to(FLOAT)
(w | z).to(FLOAT)
z.pow(2).to(FLOAT)
torch.add(z, w, alpha=3).to(FLOAT)
z.add(w, alpha=3).to(FLOAT)
z.sub(1).mul(w).to(FLOAT)
z.minimum(w).to(FLOAT)
torch.abs(z - 2).to(FLOAT)
z.sqrt().to(FLOAT)
z.exp()
z.sigmoid()
z.clamp(max=2).to(FLOAT)
z.sign().to(FLOAT)
z.square().to(FLOAT)
z.isclose(w).to(FLOAT)
z.bool().to(FLOAT)
z.bool().long().to(FLOAT)
z.logical_not().to(FLOAT)
z.int().to(FLOAT)
z.byte().to(FLOAT)
z.short().long().to(FLOAT)
T(4)[z.int()]
T(4)[z.short().long()]
z.eq(1).mul(T(3))
z.masked_fill(w == 1, 3).to(FLOAT)
torch.where(w == 1, z, 3).to(FLOAT)
torch.where(t([True, False, True]), z, w).to(FLOAT)
torch.lerp(T(3), T(1), z.to(FLOAT) / 4)
""".strip().splitlines()

MOVING = """
T(4)[z[0]]
T(4)[z[-1]]
T(4)[z[1:]]
T(4)[z[::2]]
T(4)[z[[0, 0, 2]]]
T(4)[z[t([0, 0, 2])]]
T(4)[z[t([True, False, True])]]
T(4)[z[None]]
T(4)[z[..., None]]
T(4)[v[1]]
T(4)[v[:, 0]]
T(4)[v[1, 0]]
T(4)[z.reshape(3, 1)]
T(4)[z.view(1, 3)]
T(4)[z.view(-1)]
T(4)[torch.reshape(input=z, shape=(3, 1))]
T(4)[z.expand(2, 3)]
T(4)[z.expand(2, 3).reshape(-1)]
T(4)[z.expand(2, 3).contiguous().view(-1)]
T(4)[z.expand_as(N(2, 3))]
T(4)[z.view_as(N(3, 1))]
T(4)[v.expand(2, 3)]
T(4)[v.expand(2, 3).t()]
T(4)[v.T]
T(4)[v.mT]
T(4)[v.transpose(0, 1)]
T(4)[v.permute(1, 0)]
T(4)[v.flatten()]
T(4)[v.ravel()]
T(4)[v.squeeze(-1)]
T(4)[v.squeeze()]
T(4)[z.unsqueeze(-1)]
T(4)[z.unsqueeze(0).unsqueeze(-1)]
T(4)[torch.unsqueeze(input=z, dim=-1)]
T(4)[v.movedim(0, 1)]
T(4)[v.swapaxes(0, 1)]
T(4)[z.unflatten(0, (3, 1))]
T(4)[z.flip(0)]
T(4)[z.roll(1)]
T(4)[z.repeat(2)]
T(4)[z.repeat(2, 2)]
T(4)[z.tile(2)]
T(4)[z.repeat_interleave(2)]
T(4)[z.repeat_interleave(t([2, 0, 1]))]
T(4)[z.broadcast_to(2, 3)]
T(4)[torch.broadcast_to(z, (2, 3))]
T(4)[torch.broadcast_tensors(z, N(2, 1))[0]]
T(4, 3)[torch.broadcast_tensors(z, v)]
T(4, 4)[torch.broadcast_tensors(z, w[:, None])]
T(4)[z.narrow(0, 1, 2)]
T(4)[z.select(0, 1)]
T(4)[z.index_select(0, t([1, 1]))]
T(4)[z.gather(0, t([2, 1]))]
T(4)[z.take(t([[2, 1]]))]
T(4)[z.take_along_dim(t([2, 1]), 0)]
T(4)[z.clone()]
T(4)[z.contiguous()]
T(4)[z.to("cpu")]
T(4)[z.to(torch.int64)]
T(4)[z.long()]
T(4)[z.cpu()]
T(4)[z.real]
T(4)[z[N(3).clamp(max=2)]]
T(4)[z.diagonal() if z.dim() > 1 else z[None].diagonal()]
T(4)[z.chunk(2)[1]]
T(4)[z.split(2)[0]]
T(4)[z.split([1, 2])[1]]
T(4)[z.tensor_split(2)[1]]
T(4)[z.unbind()[1]]
T(4)[torch.unbind(z)[2]]
torch.stack([T(4)[each] for each in z])
T(4)[list(z)[1]]
T(4)[N(4, 3)[z].reshape(-1)]
T(4)[N(4, 3)[z].T]
T(4)[N(4, 3)[z][:, 1]]
T(4)[N(4, 3)[z].unsqueeze(0).expand(2, 3, 3)]
T(4)[N(4, 3)[z].expand(2, 3, 3).reshape(2, 9)]
T(4)[N(4, 3)[z].view(-1)]
T(4)[N(4, 3)[z].chunk(2, -1)[1]]
T(4)[N(4, 3)[z].repeat_interleave(t([1, 2, 0]), 0)]
T(7)[(z + w).reshape(3, 1)]
T(7)[(z[:, None] + w).reshape(-1)]
T(7)[(z[:, None] + z).reshape(-1)]
T(7)[(z[:, None] + w).T]
T(7)[(z[:, None] + w)[0]]
T(7)[(z[:, None] + w).unbind(1)[1]]
T(4, 4)[z, w].reshape(-1)
T(4, 4)[tuple(torch.stack([z, w]))]
T(4)[z[w.clamp(max=2)]]
T(4)[z[N(4)[w].clamp(max=2)]]
(z == 1)[1:].to(FLOAT)
(z == 1).expand(2, 3).to(FLOAT)
torch.stack([z == 1, w == 2]).to(FLOAT)
torch.cat([z == 1, w == 2, N(3) == 1]).to(FLOAT)
""".strip().splitlines()


def drawn(dtype=torch.float64):
    return {
        "z": Draw(3, dtype=dtype),
        "w": Draw(3, dtype=dtype),
        "v": Draw(2, 1, k=3, dtype=dtype),
        "s": Draw(dtype=dtype),
    }


def assert_gradient(expression, rtol=1e-12):
    """The value of a plain index, the gradient of literal substitution, and the tables' own."""
    found = expression(*[draw.index for draw in expression.draws])
    expected = expression(*[draw.numbers for draw in expression.draws])
    assert_equal(found, expected)
    assert type(found) is torch.Tensor
    weights = torch.randn(found.shape, dtype=found.dtype)
    one_hots = [draw.one_hot for draw in expression.draws]
    tables = [table for table in expression.tables.made.values() if expected.requires_grad]
    gradients = torch.autograd.grad(
        (found * weights).sum(), [*one_hots, *tables], allow_unused=True, materialize_grads=True
    )
    literal = substituted(expression, expression.draws, weights)
    for own, other in zip(gradients, literal, strict=False):
        error = (centred(own.double()) - centred(other)).abs()
        assert (error <= rtol * max([1.0, *other.abs().flatten().tolist()])).all()
    if tables:
        plain = torch.autograd.grad(
            (expected * weights).sum(), tables, allow_unused=True, materialize_grads=True
        )
        torch.testing.assert_close(gradients[len(one_hots) :], plain, rtol=rtol, atol=rtol)


DTYPES = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(params=DTYPES, autouse=True)
def dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("text", LOOKUPS + ELEMENTWISE + MOVING)
def test_the_gradient_is_that_of_literal_substitution(text, dtype):
    assert_gradient(Expression(text, drawn(dtype), dtype), DTYPES[dtype])


# The same as products with the one-hot vectors.

EINSUMS = {
    "T(4)[z]": ("za,a->z", "z"),
    "T(4, 5)[z]": ("za,ab->zb", "z"),
    "T(4, 5, 2)[z]": ("za,abc->zbc", "z"),
    "T(4, 5, 2, 3)[z]": ("za,abcd->zbcd", "z"),
    "T(5, 4)[:, z]": ("za,ba->bz", "z"),
    "T(5, 4, 2)[..., z, :]": ("za,bac->bzc", "z"),
    "T(4, 4, 2)[z, w]": ("za,zb,abc->zc", "zw"),
    "T(4, 2, 4)[z, :, w]": ("za,zc,abc->zb", "zw"),
    "T(4, 4)[z[:, None], w]": ("za,yb,ab->zy", "zw"),
    "T(3, 4).gather(-1, z[:, None])[:, 0]": ("za,za->z", "z"),
    "F.one_hot(z, 4).to(FLOAT) @ T(4)": ("za,a->z", "z"),
    "Vindex(T(3, 4, 5))[..., z, :]": ("za,zab->zb", "z"),
    "Vindex(T(2, 1, 4, 4))[..., z, w]": ("za,zb,piab->pz", "zw"),
}


@pytest.mark.parametrize("text", EINSUMS)
def test_a_lookup_is_a_product_with_one_hot_vectors(text, dtype):
    formula, names = EINSUMS[text]
    draws = drawn(dtype)
    expression = Expression(text, draws, dtype)
    found = expression(*[draw.index for draw in expression.draws])
    (table,) = expression.tables.made.values()
    one_hots = [draws[name].one_hot for name in names]
    expected = torch.einsum(formula, *one_hots, table)
    weights, rtol = torch.randn_like(found), DTYPES[dtype]
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)
    gradients = [
        torch.autograd.grad((value * weights).sum(), [*one_hots, table])
        for value in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=rtol, atol=4 * rtol)


# Sizes and places of the draw.

SHAPES = [(), (1,), (0,), (2, 0), (3, 1), (2, 3), (5, 1, 2, 1)]


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_draws_of_any_shape(shape, k, dtype):
    """Among them empty ones, those of one category, plates and particles on the left."""
    draws = {"z": Draw(*shape, k=k, dtype=dtype), "w": Draw(*shape[1:], k=k, dtype=dtype)}
    texts = [
        f"T({k})[z]",
        f"T({k}, 2)[z]",
        f"T(3, {k}, 2)[:, z]",
        f"T({k}, {k})[z, w]",
        f"Vindex(T({k}, 2))[z.unsqueeze(-1), t([0, 1])]",
        f"F.one_hot(z, {k}).to(FLOAT)",
        f"T({k}).expand({shape} + ({k},)).gather(-1, z.unsqueeze(-1))",
        "torch.where(z == w, 2.0, 3.0)",
        f"T({2 * k})[z + w]",
        f"T({k})[torch.stack([z, z])]",
        "(z * 1.5).sum(-1)" if shape else "z * 1.5",
    ]
    for text in texts:
        assert_gradient(Expression(text, draws, dtype), DTYPES[dtype])


def test_a_draw_of_many_categories_reads_few_rows(dtype):
    draws = {"z": Draw(3, k=50, dtype=dtype)}
    assert_gradient(Expression("T(60, 2)[z]", draws, dtype), DTYPES[dtype])
    assert_gradient(Expression("T(60, 2)[z + 5]", draws, dtype), DTYPES[dtype])


# Infinite outcomes.


def test_an_infinite_outcome_counts_as_beyond_the_finite_ones(dtype):
    """As 100 less than the least of them, or more than the greatest; 0 where there are none."""
    z = Draw(4, dtype=dtype)
    inf = torch.inf
    table = torch.tensor([[0.5, -inf, inf], [-2.0, torch.nan, inf], [-inf, 1.0, inf], [1.0, 2, 3]])
    found = table[z.index]
    assert torch.equal(found.nan_to_num(7.0), table[z.numbers].nan_to_num(7.0))
    (gradient,) = torch.autograd.grad(found, z.one_hot, torch.ones_like(found))
    finite = torch.tensor([[0.5, -99, 103], [-2.0, -99, 103], [-102, 1.0, 103], [1.0, 2, 3]])
    torch.testing.assert_close(gradient, finite.sum(-1).expand(4, 4))

    nowhere = torch.full((4,), -inf)[z.index]
    (gradient,) = torch.autograd.grad(nowhere.sum(), z.one_hot)
    assert (gradient == 0).all()


def test_the_numbers_with_an_infinite_one_elsewhere_are_finite(dtype):
    z = Draw(200, dtype=dtype)
    table = torch.tensor([0.5, -torch.inf, 1.0, 2.0])
    found = table[z.index][z.numbers != 1].exp()
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), z.one_hot)
    assert gradient.isfinite().all()
    drawn_rows = z.numbers != 1
    assert (gradient[drawn_rows, 1] < gradient[drawn_rows, 0] - 50).all()


# Changes in place.

IN_PLACE = ["z += 1", "z *= 2", "z -= w", "z.add_(1)", "z.clamp_(min=1)", "z.mul_(2).add_(w)"]


@pytest.mark.parametrize("line", IN_PLACE)
def test_an_elementwise_change_in_place_keeps_the_gradient(line, dtype):
    def changed(z, w):
        known = {"z": z.clone(), "w": w}
        exec(line, known)
        return table[known["z"]]

    draws = [Draw(3, dtype=dtype), Draw(3, dtype=dtype)]
    table = torch.randn(11)
    found = changed(*[draw.index for draw in draws])
    assert_equal(found, changed(*[draw.numbers for draw in draws]))
    weights = torch.randn(3)
    gradients = torch.autograd.grad(
        (found * weights).sum(),
        [draw.one_hot for draw in draws],
        materialize_grads=True,
        allow_unused=True,
    )
    literal = substituted(changed, draws, weights)
    for own, other in zip(gradients, literal, strict=True):
        torch.testing.assert_close(centred(own).double(), centred(other), atol=1e-5, rtol=1e-5)


# Tables of other classes.


def test_a_parameter_and_a_one_hot_sample_are_tables(dtype):
    z = Draw(3, dtype=dtype)
    parameter = torch.nn.Parameter(torch.randn(4, 2))
    logits = torch.zeros(4, 2).requires_grad_()
    sample = CategoricalStraightThrough(0.5, logits=logits).rsample()
    assert type(sample) is OneHotSample
    for table, leaf in ((parameter, parameter), (sample, logits)):
        found = table[z.index]
        assert torch.equal(found, table[z.numbers])
        gradients = torch.autograd.grad(found[:, 0].sum(), (z.one_hot, leaf), retain_graph=True)
        torch.testing.assert_close(gradients[0], table.detach()[:, 0].expand(3, 4))
        plain = torch.autograd.grad(table[z.numbers][:, 0].sum(), leaf, retain_graph=True)
        torch.testing.assert_close(gradients[1:], plain)


def test_the_order_of_arguments_does_not_matter(dtype):
    """Also in functions of torch that are written in Python, which look the classes up."""
    z = Draw(3, dtype=dtype)
    x = torch.ones(3).requires_grad_()
    assert_gradient(Expression("T(3).abs() ** z", {"z": z}, dtype), DTYPES[dtype])
    with pytest.warns(UserWarning, match="got cross_entropy"):
        torch.nn.functional.cross_entropy(x.expand(3, 3), z.index.clamp(max=2))


# Numbers of other precision.


def test_a_single_number_takes_the_precision_of_another():
    """torch gives tensors without dimensions less weight in the dtype of a result."""
    z = Draw()
    found = z.index.short() * torch.tensor(100_000)
    assert_equal(found, z.numbers.short() * torch.tensor(100_000))
    (gradient,) = torch.autograd.grad(found.double(), z.one_hot)
    assert gradient.tolist() == [0.0, 1e5, 2e5, 3e5]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_sums_over_a_table_of_half_precision_are_precise(half):
    """The gradient is that of single precision, rounded once."""
    z = Draw(2, dtype=torch.float32)
    table = torch.randn(4, 3000).to(half)
    weights = torch.randn(2, 3000).to(half)
    (found,) = torch.autograd.grad(table[z.index], z.one_hot, weights)
    torch.testing.assert_close(found, weights.float() @ table.float().T, rtol=1e-5, atol=1e-4)


def test_a_draw_has_numbers_of_its_own():
    """Not even another draw of the same one-hot vectors has them."""
    z = Draw(3)
    first, second = z.index, z.index
    assert first.kept[0].elements.ne(second.kept[0].elements).all()


TABLE = torch.tensor([0.3, -1.0, 2.0, 0.7])


def checkpointed(function, use_reentrant):
    return lambda x: checkpoint(function, x, use_reentrant=use_reentrant)


def of_elements(x):
    return (TABLE[IndexStraightThrough(logits=x).rsample()] - 1).square().sum() + 0 * x.sum()


def of_a_sum(x):
    return (TABLE[IndexStraightThrough(logits=x).rsample()].sum() - 1).tanh()


# A reentrant checkpoint calls `torch.autograd.backward`, which torch 2.8 does not let us override.
REENTRANT = pytest.param(
    True,
    marks=pytest.mark.skipif(
        "handle_torch_function" not in inspect.getsource(torch.autograd.backward),
        reason="raises an error with this torch",
    ),
)


@pytest.mark.parametrize("beside", [0.0, 1.0])
@pytest.mark.parametrize("use_reentrant", [REENTRANT, False])
@pytest.mark.parametrize("function", [of_elements, of_a_sum])
def test_a_draw_in_a_checkpoint_has_its_gradient(function, use_reentrant, beside):
    """The backward pass, which draws again, has the rules. So has that of another loss."""

    def gradient(run):
        torch.manual_seed(1)
        x = torch.linspace(-1, 1, 20).reshape(5, 4).requires_grad_()
        z = IndexStraightThrough(logits=x).rsample()
        (run(x) + beside * TABLE[z].sum()).backward()
        return x.grad

    expected = gradient(function)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(gradient(checkpointed(function, use_reentrant)), expected)


def test_a_backward_pass_under_no_grad():
    x = torch.zeros(5, 4, requires_grad=True)
    loss = TABLE[IndexStraightThrough(logits=x).rsample()].sum()
    with torch.no_grad():
        loss.backward()
    assert x.grad.abs().max() > 0.01


def test_a_backward_pass_under_autocast_is_exact():
    """A draw of which each element is used several times."""

    def gradient(enabled):
        torch.manual_seed(0)
        x = torch.zeros(5, 4, requires_grad=True)
        z = IndexStraightThrough(logits=x).rsample()
        loss = (TABLE[z] * torch.linspace(0.1, 1.7, 35).reshape(7, 5)).exp().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss.backward()
        return x.grad

    torch.testing.assert_close(gradient(True), gradient(False))
