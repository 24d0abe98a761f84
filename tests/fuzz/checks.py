# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What holds of every call: a finite answer, a documented infinity, or an error with a name."""

import contextlib
import re
import resource
import signal
import warnings

import torch

ERRORS = (ValueError, TypeError, NotImplementedError)
SECONDS = 60  # of processor time, after which a case counts as one that hangs
KILOBYTES = 2**20  # of memory, more than which no case may take

# Warnings that say what a value or an estimator is not good for.
TOLD = (
    r"(reinmax|gapped). expected|.*has no cached logits|.*`value` must be the tensor that rsample"
)


def assert_named(error, names=()):
    """An error has a name in backticks, or one of these."""
    assert isinstance(error, ERRORS), repr(error)
    text = str(error)
    named = re.search(r"`\w+`", text) or any(re.search(rf"\b{name}\b", text) for name in names)
    assert named, repr(error)


@contextlib.contextmanager
def bounded():
    """A case that must stay within bounds of time and memory, and may warn of what it is told."""
    before = peak()
    earlier = signal.signal(signal.SIGVTALRM, _hangs)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=TOLD)
            yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)
    assert peak() - before < KILOBYTES


def _hangs(*_):
    raise TimeoutError(f"no answer after {SECONDS} s")


def peak():
    """The most memory that the process has had, in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def unchanged(*tensors):
    """The tensors of a caller must be as they were."""
    before = [(t, t._version, t.detach().clone()) for t in tensors]
    yield
    for t, version, copy in before:
        assert t._version == version
        torch.testing.assert_close(t.detach(), copy, rtol=0, atol=0, equal_nan=True)


def largest(*tensors):
    """The largest finite size of a number, at least 1."""
    sizes = [torch.as_tensor(t).detach().double().abs().flatten() for t in tensors]
    sizes = torch.cat([torch.ones(1).double(), *sizes])
    return sizes[sizes.isfinite()].max().item()


def assert_close(found, exact, scale):
    """`found` is `exact`, in float64, but for rounding.

    A number that the dtype cannot hold may be an infinity, and one near to it the largest number.

    :param scale: how large the terms were of which it was computed, in float32 at least.
    """
    assert found.shape == exact.shape
    if not found.is_floating_point():
        assert torch.equal(found, exact)
        return
    own = torch.finfo(found.dtype)
    terms = torch.finfo(torch.promote_types(found.dtype, torch.float32))
    found, exact = found.detach().double(), exact.detach()
    assert not exact.isnan().any(), "NaN in float64"
    assert not found.isnan().any(), f"NaN for {exact[found.isnan()][:4]}"
    tolerance = (4 * own.eps + 128 * terms.eps) * exact.abs() + own.tiny
    tolerance += max(own.eps, 64 * terms.eps) * scale
    wrong = (found - exact).abs() > tolerance
    overflows = exact.abs() > own.max / 4
    at_the_end = (found.sign() == exact.sign()) & (found.abs() > own.max / 64)
    wrong = torch.where(overflows, ~at_the_end, wrong)
    assert not wrong.any(), f"{found[wrong][:4]} for {exact[wrong][:4]}, {scale=:.3g}"


def representable(exact, dtype):
    """Whether the dtype can hold all numbers, of which -inf is one."""
    numbers = exact[~exact.isneginf()]
    return bool((numbers.abs() <= torch.finfo(dtype).max / 4).all())


def gradients(result, leaves):
    """Of a weighted sum of the finite entries, 0 where there is none."""
    if not result.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    finite = result[result.isfinite()]
    weights = (1 + torch.arange(finite.numel()) % 3).to(finite.dtype)
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    return torch.autograd.grad((weights * finite).sum(), leaves, **options)
