# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Where the gradient of an index tensor ends: one warning, at the user's line, or silence."""

import copy
import io
import pickle
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import default_collate

from pyro_gumbel import IndexStraightThrough, relaxed
from pyro_gumbel.tensors import linear_operations
from pyro_gumbel.tensors.index_tensor import IndexTensor

from .substitution import Draw, assert_equal

# An expression in z, an index tensor, or s, one of a single number; and a word of the remedy.
WARNS = {
    "x[z == 1]": "torch.where(z == k, x, 0.0)",
    "x[z > 1]": "torch.where(z == k, x, 0.0)",
    "z[z == 1]": "torch.where(z == k, x, 0.0)",
    "T[[s, 1], :]": "write",
    "torch.where(z == 1)": "torch.where(z == k, x, 0.0)",
    "(z == 1).nonzero()": "torch.where(z == k, x, 0.0)",
    "x.masked_select(z == 1)": "torch.where(z == k, x, 0.0)",
    "written(x, z, 1.0)": "one_hot(z, k).bool()",
    "written(x, 0, s)": "one_hot(z, k).bool()",
    "x.scatter(0, z, 1.0)": "one_hot(z, k).bool()",
    "x.clone().index_put_((z,), x)": "one_hot(z, k).bool()",
    "x.index_fill(0, z, 1.0)": "one_hot(z, k).bool()",
    "z.bincount()": "one_hot(z, k).float().sum(0)",
    "torch.bincount(z)": "one_hot(z, k).float().sum(0)",
    "z.unique()": "one_hot(z, k).float().sum(0)",
    "torch.unique(z, return_counts=True)": "one_hot(z, k).float().sum(0)",
    "x.scatter_add(0, z, x)": "one_hot(z, k).float().sum(0)",
    "x.index_add(0, z, x)": "one_hot(z, k).float().sum(0)",
    "z.sum()": "z.float().sum()",
    "torch.sum(z, -1)": "z.float().sum()",
    "(z == 1).sum()": "z.float().sum()",
    "z.cumsum(0)": "z.float().sum()",
    "z.prod()": "z.float().sum()",
    "z.max()": "z.float().sum()",
    "z.max(0)": "z.float().sum()",
    "z.min(0).values": "z.float().sum()",
    "z.argmax()": "z.float().sum()",
    "z.sort()": "z.float().sum()",
    "z @ z": "z.float().sum()",
    "torch.einsum('i,i->', z, z)": "z.float().sum()",
    "(z == 1).all()": "(z == k).float().prod(-1)",
    "(z == 1).any()": "1 - (z != k).float().prod(-1)",
    "int(s)": "table[z]",
    "float(s)": "table[z]",
    "s.item()": "table[z]",
    "z.tolist()": "table[z]",
    "range(s)": "table[z]",
    "[5, 6, 7, 8][s]": "table[z]",
    "z.numpy()": "table[z]",
    "np.asarray(z)": "table[z]",
    "torch.isin(z, torch.arange(2))": "table[z]",
    "torch.bucketize(z, torch.arange(2))": "table[z]",
    "1 if s == 1 else 2": "torch.where(z == k, a, b)",
    "bool(s)": "torch.where(z == k, a, b)",
    "1 in z": "torch.where(z == k, a, b)",
    "torch.equal(z, z)": "z.float()",
    "F.cross_entropy(torch.ones(4, 4), z)": "log_probs.gather",
    "F.nll_loss(torch.ones(4, 4), z)": "log_probs.gather",
    "F.pad(z, (1, 0))": "z.float()",
    "torch.add(x, z, out=torch.empty(4))": "z.float()",
    "x.clone().add_(z)": "z.float()",
    "x.clone().copy_(z)": "z.float()",
    "x.repeat_interleave(z)": "z.float()",
    "z.view(torch.float64)": "z.float()",
    "z.clone().zero_()": "z.float()",
    "z.clone().fill_(1)": "z.float()",
    "z.clone().fill_(1) + x": "z.float()",
    "z + other(x)": "z.float()",
}


class Marked(torch.Tensor):
    """A user's tensors, with operations of their own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def written(t, index, value):
    t = t.clone()
    t[index] = value
    return t


def compared_and_changed(v, change):
    t = torch.full_like(v.detach(), -1.0)
    larger = v > t
    change(t)
    return bool(larger.all())


def evaluated(text, **values):
    known = {
        "compared_and_changed": compared_and_changed,
        "torch": torch,
        "F": F,
        "np": np,
        "written": written,
        "copy": copy,
    }
    known |= {"x": torch.tensor([1.0, -2.0, 3.0, 0.5]), "T": torch.arange(8.0).reshape(4, 2)}
    known |= {"other": lambda x: x.as_subclass(Marked), "N": torch.arange(4)}
    return eval(compile(text, __file__, "eval"), known | values)


def both(text):
    """With index tensors and with plain ones; and the warnings of the former."""
    z, s = Draw(4, dtype=torch.float32), Draw(dtype=torch.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = evaluated(text, z=z.index, s=s.index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return found, evaluated(text, z=z.numbers, s=s.numbers), caught


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert_equal(found, expected)
    elif isinstance(expected, tuple):
        for each in zip(found, expected, strict=True):
            assert_same(*each)
    else:
        assert type(found) is type(expected)
        np.testing.assert_equal(found, expected)


OF_CPU = pytest.mark.cpu(reason="numpy, and products of integers, are on the CPU alone")


def on_a_cpu_alone(text):
    return any(name in text for name in ("np.", "numpy", "z @ z", "einsum"))


@pytest.mark.parametrize(
    "text", [pytest.param(text, marks=OF_CPU if on_a_cpu_alone(text) else ()) for text in WARNS]
)
def test_what_loses_the_gradient_warns_once(text):
    found, expected, caught = both(text)
    assert_same(found, expected)
    assert len(caught) == 1
    (warning,) = caught
    assert warning.category is UserWarning
    assert warning.filename == __file__
    assert WARNS[text] in str(warning.message)
    assert "z.detach()" in str(warning.message)


SILENT = [
    # What torch does not tell of.
    "T.select(0, s)",
    "torch.full((2,), s)",
    "torch.full_like(x, s)",
    "torch.arange(s)",
    "{1: z} and torch.vmap(lambda i: T[i.unsqueeze(0)])(z)",
    # No gradient is asked for.
    "z.detach()",
    "z.detach()[z.detach() == 1].sum()",
    "z.data",
    "z.shape",
    "z.device",
    "z.ndim",
    "z.numel()",
    "len(z)",
    "z.type()",
    "z.requires_grad",
    "z.is_floating_point()",
    "torch.zeros_like(z)",
    "z.new_zeros(3)",
    "x.type_as(x).view_as(z)",
    "x.expand_as(z)",
    "x.to(z)",
    "torch.is_tensor(z)",
    "torch.result_type(z, 1.0)",
    # It prints and copies as a plain tensor.
    "str(z)",
    "repr(z)",
    "repr(z == 1)",
    "f'{z}'",
    "f'{s}'",
    "f'{s:03d}'",
    "copy.copy(z)",
    "copy.deepcopy(z)",
]


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("text", [*SILENT, "torch.tensor(z)", "x.new_tensor(z)"])
def test_what_is_silent(text):
    found, expected, caught = both(text)
    assert not [each for each in caught if "gradient" in str(each.message)]
    assert_same(found, expected)
    assert type(found) is type(expected)


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


COPIES = {
    "pickle": lambda z: pickle.loads(pickle.dumps(z)),
    "file": saved_and_loaded,
    "deepcopy": copy.deepcopy,
    "state dict": lambda z: saved_and_loaded({"z": [z]})["z"][0],
}


@pytest.mark.parametrize("made", COPIES)
def test_copies_are_plain(made):
    z = Draw(3)
    for value, plain in ((z.index, z.numbers), (z.index == 1, z.numbers == 1)):
        found = COPIES[made](value)
        assert type(found) is torch.Tensor
        assert torch.equal(found, plain)


def test_a_key_of_a_dict():
    z = Draw(3).index
    assert {z: 1}[z] == 1
    assert hash(z) == id(z)


def test_a_data_loader_stacks_index_tensors():
    z, w = Draw(3), Draw(3)
    batch = default_collate([{"z": z.index}, {"z": w.index}])["z"]
    assert type(batch) is IndexTensor
    assert torch.equal(batch.plain, torch.stack([z.numbers, w.numbers]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient_all_is_plain_and_silent(mode):
    logits = torch.zeros(3, 4).requires_grad_()
    z = IndexStraightThrough(logits=logits).rsample()
    with mode():
        assert type(IndexStraightThrough(logits=logits).rsample()) is torch.Tensor
        for made in (z + 1, z == 1, z[0], torch.stack([z, z]), z[z == 1]):
            assert type(made) is torch.Tensor
        assert not torch.randn(4, 2)[z].requires_grad
        assert z.sum() >= 0


BRANCHES = {
    "1 if T[s, 0] > 3 else 2": True,
    "1 if T[z].sum() != T[z].sum().item() else 2": True,
    "bool(2 * T[s, 0] + s.float() > 3)": True,
    "(T[z] > 1).any()": True,
    "1 if T[s, 0] else 2": True,
    "1 if T[s].sum().sub(1) else 2": True,
    "1 if T[z].sum().sub(T[z].sum().item()) else 2": True,
    "1 if T[z].sum() + 1 else 2": False,
    "int(T[z].sum() != T[z].sum().item())": True,
    "torch.any(input=T[z].sum() != T[z].sum().item())": True,
    "(T[z] > 3).tolist()": True,
    "(T[z] > 3).nonzero()": False,
    "bool((T[z, 1] / T[z, 1].sum()).sum() < 1.1)": False,
    "compared_and_changed(T[z].sum(), lambda t: t.fill_(20.5))": False,
    "compared_and_changed(T[z].sum() + x[:2], lambda t: setattr(t, 'data', torch.zeros(3)))": False,
    "(T[z].float().repeat(1, 2**18) > 3).all()": False,
    "(T[z] > 100).any()": False,
    "(T[z] >= 0).all()": False,
    "(torch.cat([T[z], T[:1] + 9]) > 2).any()": False,
    "(torch.cat([T[z], -T[1:2]]) > 2).all()": False,
    "bool((T[z] @ torch.rand(2, 3)).sum() > 0)": False,
    "bool(T[z.repeat(9)].sum() >= 0)": False,
    "(T[z].sum(-1).cumsum(0) > 100).all()": False,
    "1 if T[s, 0] > -1 else 2": False,
    "1 if T[z].sum() < 1000 else 2": False,
    "bool(T[z].sum().isnan())": False,
    "T[z].sum().item()": False,
    "dist.Normal(T[s, 0], T[s, 1], validate_args=True)": False,
}


@pytest.mark.parametrize("text", BRANCHES)
def test_a_branch_on_floats_warns_where_another_category_takes_the_other(text):
    """In a Pyro program. Elsewhere a loss may be compared."""

    def model():
        z, s = Draw(4, dtype=torch.float32), Draw(dtype=torch.float32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluated(text, z=z.with_outcomes, s=s.with_outcomes, dist=dist)
        return [each for each in caught if "categorical draw" in str(each.message)]

    caught = pyro.poutine.trace(model)()
    assert len(caught) == BRANCHES[text], caught
    assert {each.filename for each in caught} <= {__file__}
    assert not model()


def summed_often(v):
    for _ in range(100):
        v = v + 1
    return v


# Whether they are in a Pyro program, and what is read.
READ_AT_NO_COST = {
    "checks of distributions": (True, lambda v: dist.transforms.PositivePowerTransform(v + 1)),
    "a loss": (False, lambda v: bool(v < 100)),
    "after a long loop": (True, lambda v: bool(summed_often(v) < 100)),
}


@pytest.mark.parametrize("name", READ_AT_NO_COST)
def test_outcomes_are_not_made_where_a_branch_is_not_looked_at(monkeypatch, name):
    in_program, read = READ_AT_NO_COST[name]
    made = []
    monkeypatch.setattr(linear_operations, "apply", lambda func, *rest: made.append(func))
    total = torch.arange(4.0)[Draw(4, dtype=torch.float32).with_outcomes].sum()
    (pyro.poutine.trace(read) if in_program else read)(total)
    assert not made


PRIORS = {
    "Pyro's": lambda x: dist.Categorical(logits=x, validate_args=True),
    "torch's": lambda x: torch.distributions.Categorical(logits=x, validate_args=True),
    "ours": lambda x: IndexStraightThrough(logits=x, validate_args=True),
    "probs": lambda x: dist.Categorical(x.softmax(-1), validate_args=True),
    "expanded": lambda x: dist.Categorical(logits=x, validate_args=True).expand([2, 3]),
    "independent": lambda x: dist.Categorical(logits=x, validate_args=True).to_event(1),
    "masked": lambda x: dist.Categorical(logits=x).mask(torch.tensor([True, False, True])),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_the_checks_of_distributions_do_not_warn(prior):
    z = Draw(3, dtype=torch.float32)
    x = torch.randn(3, 4).requires_grad_()
    found = PRIORS[prior](x).log_prob(z.index)
    expected = PRIORS[prior](x).log_prob(z.numbers)
    torch.testing.assert_close(found, expected)
    linear = (z.one_hot * x.log_softmax(-1)).sum(-1)
    if prior == "masked":
        linear = linear * torch.tensor([1.0, 0.0, 1.0])
    factor = 2 if prior == "expanded" else 1
    gradients = [
        torch.autograd.grad(each.sum() * n, (z.one_hot, x), retain_graph=True)
        for each, n in ((found, 1), (linear, factor))
    ]
    torch.testing.assert_close(*gradients)


def test_the_checks_still_find_a_wrong_index():
    z = Draw(3, dtype=torch.float32).index
    for module in (dist, torch.distributions):
        with pytest.raises(ValueError, match="within the support"):
            module.Categorical(torch.ones(4), validate_args=True).log_prob(z + 4)


def test_a_change_in_place_by_another_name_warns_where_it_is_used():
    """A view shares the numbers, and cannot know of the tensor that it is a view of."""
    z = Draw(3)
    index = z.index
    index.view(-1).add_(1)
    with pytest.warns(UserWarning, match="a change in place") as caught:
        found = torch.arange(5)[index]
    assert len(caught) == 1
    assert torch.equal(found, z.numbers + 1)


def test_a_warning_inside_of_pyro_names_the_line_of_the_model():
    z = Draw(3, dtype=torch.float32)
    multinomial = dist.Multinomial(1, torch.ones(4), validate_args=True).mask(True)
    with pytest.warns(UserWarning, match="gradient of a categorical draw") as caught:
        found = multinomial.log_prob(F.one_hot(z.index, 4))
    assert {each.filename for each in caught} == {__file__}
    assert torch.equal(found, multinomial.log_prob(F.one_hot(z.numbers, 4)))


@pytest.mark.parametrize("made", [lambda z: z.float(), lambda z: torch.arange(3.0)[z]])
def test_a_hook_that_is_never_called_warns(made):
    z = IndexStraightThrough(logits=torch.zeros(5, 3, requires_grad=True)).rsample()
    with pytest.warns(UserWarning, match="it is never called; put it on the logits") as seen:
        made(z).register_hook(lambda gradient: 3 * gradient)
    assert [each.filename for each in seen] == [__file__]


def test_a_float_has_the_derivative_in_operations_of_other_classes():
    """Without a warning: the gradient is not lost."""
    draw, table = Draw(4, dtype=torch.float32), torch.arange(4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = table[draw.with_outcomes] * torch.ones(4).as_subclass(Marked)
    (gradient,) = torch.autograd.grad(found.sum(), draw.one_hot)
    torch.testing.assert_close(gradient, table.expand(4, 4))


def test_a_distribution_outside_of_a_relaxed_model_warns_of_a_derivative():
    """Of most distributions each operation keeps outcomes. This one solves for several elements."""
    logits = torch.zeros(2, 3, requires_grad=True)
    loc = torch.randn(3)[IndexStraightThrough(logits=logits).rsample()]

    def log_prob():
        return dist.MultivariateNormal(loc, torch.eye(2)).log_prob(torch.zeros(2))

    with pytest.warns(UserWarning, match=r"write relaxed\(model\)") as caught:
        found = log_prob()
    assert caught[0].filename == __file__
    assert found.requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relaxed(log_prob)()
