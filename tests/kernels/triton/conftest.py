# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The kernels run in Triton's interpreter, by `make test-kernels`, or on a GPU (`--device cuda`).

In other test runs there is nothing here.
"""

import gc
import importlib.util

import pytest

from tests.kernels.triton import INTERPRETED

HAS_TRITON = importlib.util.find_spec("triton") is not None
ON_GPU_ALONE = "test_on_gpu.py"


def pytest_ignore_collect(collection_path, config):
    """True to leave a file out, None to let others decide."""
    on_gpu = config.getoption("device") == "cuda"
    runs = on_gpu or (INTERPRETED and collection_path.name != ON_GPU_ALONE)
    is_left_out = collection_path.name.startswith("test_") and not (runs and HAS_TRITON)
    return True if is_left_out else None


def pytest_collection_modifyitems(config, items):
    """What a compiled kernel cannot do is left out on a GPU."""
    if not INTERPRETED:
        items[:] = [item for item in items if not item.get_closest_marker("interpreter")]


@pytest.fixture(autouse=True, scope="session")
def _faster_interpreter():
    """Triton's interpreter without work that it does again and again.

    It replaces the functions of `triton.language` for a kernel, and again for every function that a
    kernel calls, which takes longer than all else. Once for each module of such functions is
    enough. For each number it makes a table of NumPy's dtypes, and it makes so many small objects
    that Python looks for garbage all the time.
    """
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction

    call, seen = InterpretedFunction.__call__, set()
    numpy_dtype, dtypes = interpreter._get_np_dtype, {}

    def call_again(self, *arguments, **options):
        module = self.fn.__module__
        if module in seen:
            return self.rewrite()(*arguments, **options)
        seen.add(module)
        return call(self, *arguments, **options)

    def known_dtype(kind):
        key = type(kind), kind.name
        if key not in dtypes:
            dtypes[key] = numpy_dtype(kind)
        return dtypes[key]

    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", call_again)
        patch.setattr(interpreter, "_get_np_dtype", known_dtype)
        yield
    gc.set_threshold(*thresholds)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Memory that a kernel does not write to holds NaN. In the interpreter tiles are large."""
    from pyro_gumbel.kernels import cuda

    new = cuda._new
    monkeypatch.setattr(cuda, "_new", lambda *given: new(*given).fill_(float("nan")))
    if INTERPRETED:
        monkeypatch.setattr(cuda, "TILE", 2**14)


@pytest.fixture
def short_blocks(monkeypatch):
    """Rows longer than 8 are taken 8 columns at a time; few rows, which large tiles would pad."""
    from pyro_gumbel.kernels import cuda, triton_functions

    monkeypatch.setattr(triton_functions, "LONGEST", 8)
    monkeypatch.setattr(cuda, "TILE", 2**9)


@pytest.fixture
def on_the_kernels(monkeypatch):
    """The distributions find them, also for tensors of a CPU."""
    from pyro_gumbel.kernels import cuda, dispatch

    monkeypatch.setitem(dispatch.BY_DEVICE, "cpu" if INTERPRETED else "cuda", cuda)
