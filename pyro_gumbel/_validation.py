# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The checks of arguments, and the texts of their errors.

A function `read_...` returns the argument in the form that the package uses, or raises. Shapes and
types are always checked. Values are checked if validation is on and they can be read, which is not
the case under `torch.vmap`, `torch.compile` and `torch.jit.trace`.

Each error begins with `owner`, the name of a class or function; `name` is that of the argument.
"""

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import is_tensor_like

from pyro_gumbel._tracing import in_program, known

__all__ = [
    "Temperature",
    "as_float_tensor",
    "batch_shape_with_lengths",
    "brief_int",
    "broadcast",
    "check_value",
    "fitted",
    "joint_batch_shape",
    "read_count",
    "read_lengths",
    "read_number",
    "read_number_between",
    "read_parameter",
    "read_row_count",
    "read_seed",
    "read_shape",
    "read_size",
    "read_validate_args",
    "require",
    "require_int_size",
]

Temperature = float | Tensor | Callable[[], float | Tensor]

_END = 2**63  # torch accepts ints below this number
_LARGE = 1e38  # a float32 can hold what is below


def read_parameter(
    owner: str,
    probs: Tensor | float | None,
    logits: Tensor | float | None,
    event_dim: int,
    device: torch.device | None = None,
) -> tuple[str, Tensor]:
    """The name of the one parameter that was given, and the parameter as a floating-point tensor.

    :param event_dim: 1 if the last dimension is over categories, else 0.
    :param device: for a parameter that is a number; None for the default device.
    :raises ValueError: without the line to write instead, which the class adds.
    """
    if (probs is None) == (logits is None):
        raise ValueError(
            f"{owner}: expected exactly one of `probs` and `logits`, got "
            f"{'neither' if probs is None else 'both'}"
        )
    name, given = ("probs", probs) if logits is None else ("logits", logits)
    if isinstance(given, Tensor) and given.is_floating_point():
        parameter = given
    else:
        parameter = as_float_tensor(owner, name, given, device=device)
    if parameter.dim() < event_dim or (event_dim and not parameter.shape[-1]):
        raise ValueError(
            f"{owner}: `{name}` must have the categories in its last dimension, at least one (a "
            f"binary variable takes a Bernoulli class), got shape {tuple(parameter.shape)}"
        )
    return name, parameter


def read_size(owner: str, size: Any, categories: int, *, all_of_them: bool) -> int:
    """The number of categories that are chosen.

    :param categories: the number of categories.
    :param all_of_them: whether all of them may be chosen, or at most all but one.
    """
    require_int_size(owner, size)
    most = categories if all_of_them else categories - 1
    if not 1 <= size <= most:
        limit = "the number of categories" if all_of_them else "one less than there are categories"
        remedy = f"write size={max(1, most)}"
        if size == categories:
            remedy = "use Subset or PlackettLuce, which are discrete, to choose all of them"
        raise ValueError(
            f"{owner}: `size` must be from 1 to {limit}, {most}, got {brief_int(size)}; {remedy}"
        )
    return size


def require_int_size(owner: str, size: Any) -> None:
    """Raise unless `size` is an int."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(
            f"{owner}: `size` must be a Python int, got {type(size).__name__}; write size=2 to "
            "choose two of the categories, right before `probs` and `logits`"
        )


def read_lengths(owner: str, size: Any, rows: Any) -> int | Tensor:
    """The argument `size` of rankings: one number for all, or their lengths in int64.

    A tensor without dimensions is a number, and a number that is less than `rows` is a length.

    :raises TypeError: for a `size` or `rows` of another type.
    :raises ValueError: for a number out of range, or one that cannot be read.
    """
    if rows is not None:
        _require_int_rows(owner, rows)
    _require_integers(owner, size)
    if isinstance(size, Tensor):
        if size.dim() or rows is not None:
            return size.long()
        return int(_read_length(owner, size))
    if rows is None or rows == size:
        return int(size)
    if not 1 <= size <= rows:
        raise ValueError(
            f"{owner}: `size` must be from 1 to `rows`, {brief_int(rows)}, got "
            f"{brief_int(size)}; write rows=None for as many rows as `size`"
        )
    return torch.tensor(size)


def read_row_count(owner: str, lengths: Tensor, rows: int | None, categories: int) -> int:
    """How many rows a ranking has, of these lengths; without `rows` as many as the longest.

    :param categories: the number of categories.
    """
    if rows is None:
        rows = int(_read_length(owner, lengths.amax() if lengths.numel() else lengths))
        if not 1 <= rows <= categories:
            raise ValueError(
                f"{owner}: `size` must have lengths from 1 to the number of categories, "
                f"{categories}, got up to {rows}; write "
                f"size[(size < 1) | (size > {categories})] to see the wrong ones"
            )
    if not 1 <= rows <= categories:
        raise ValueError(
            f"{owner}: `rows` must be from 1 to the number of categories, {categories}, got "
            f"{brief_int(rows)}; write rows={categories}"
        )
    return rows


def _read_length(owner: str, length: Tensor) -> int:
    """A length as a number, where the number of rows depends on it."""
    number: int | None = known(length, otherwise=None) if length.numel() else None
    if number is None:
        raise ValueError(
            f"{owner}: `rows` must be given where lengths cannot be read: for none at all, under "
            "torch.vmap, torch.compile and torch.jit.trace; write rows=3 for values of three rows"
        )
    return number


def _require_int_rows(owner: str, rows: Any) -> None:
    if not isinstance(rows, int) or isinstance(rows, bool):
        raise TypeError(
            f"{owner}: `rows` must be a Python int or None, got {type(rows).__name__}; write "
            "rows=3 for values of three rows"
        )


def _require_integers(owner: str, size: Any) -> None:
    """Raise unless `size` is an int or a tensor of integers."""
    got, lengths = type(size).__name__, "torch.tensor([1, 3, 2])"
    if isinstance(size, Tensor):
        if not (size.is_floating_point() or size.is_complex() or size.dtype == torch.bool):
            return
        got, lengths = f"a tensor of {size.dtype}", "size.long()"
    elif isinstance(size, int) and not isinstance(size, bool):
        return
    raise TypeError(
        f"{owner}: `size` must be a Python int or a tensor of integers, got {got}; write size=2 to "
        f"choose two of the categories, or size={lengths} for rankings of different lengths, right "
        "before `probs` and `logits`"
    )


def read_number(
    owner: str, name: str, given: Any, *, zero: bool = False, example: str = "0.5"
) -> float:
    """A positive finite number as a float.

    :param zero: whether 0 is allowed too.
    :param example: for the line to write instead.
    """
    expected = f"{owner}: `{name}` must be a finite number {'of at least' if zero else 'above'} 0"
    number = _read_real(expected, name, given, example)
    if not (0 < number < math.inf or (zero and number == 0)):
        raise ValueError(f"{expected}, got {number:g}; write {name}={example}")
    return number


def read_number_between(
    owner: str, name: str, given: Any, least: float, most: float, example: str
) -> float:
    """A number above `least` and below `most` as a float.

    :param example: for the line to write instead.
    """
    expected = f"{owner}: `{name}` must be a number above {least:g} and below {most:g}"
    number = _read_real(expected, name, given, example)
    if not least < number < most:
        raise ValueError(f"{expected}, got {number:g}; write {name}={example}")
    return number


def _read_real(expected: str, name: str, given: Any, example: str) -> float:
    given = _unwrapped(given)
    if not isinstance(given, numbers.Real) or isinstance(given, bool):
        raise TypeError(f"{expected}, got {type(given).__name__}; write {name}={example}")
    return _as_float(given)


def read_count(owner: str, name: str, given: Any, least: int, example: int) -> int:
    """An int of at least `least`.

    :param example: a number for the line to write instead.
    """
    expected = f"{owner}: `{name}` must be a Python int of {least} or more"
    if not isinstance(given, int) or isinstance(given, bool):
        raise TypeError(f"{expected}, got {type(given).__name__}; write {name}={example}")
    if not least <= given < _END:
        limit = ", below 2**63" if given >= _END else ""
        raise ValueError(f"{expected}{limit}, got {brief_int(given)}; write {name}={example}")
    return given


def read_seed(owner: str, given: Any) -> int:
    """An int such that torch's generators accept it and the next one as seeds."""
    try:
        seed = operator.index(given)
    except TypeError:
        seed = None
    if seed is None or isinstance(given, bool):
        raise TypeError(
            f"{owner}: `seed` must be a Python int, got {type(given).__name__}; write seed=0"
        )
    if not -_END <= seed < 2 * _END - 1:
        raise ValueError(
            f"{owner}: `seed` must be from -2**63 to 2**64 - 2, got {brief_int(seed)}; write seed=0"
        )
    return seed


def read_shape(owner: str, name: str, given: Any) -> torch.Size:
    """A torch.Size, a tuple or a list of ints as a torch.Size."""
    try:
        if in_program():
            return torch.Size(given)  # the sizes may be symbols
        shape = torch.Size([operator.index(n) for n in given])
    except TypeError:
        got = type(given).__name__
        if isinstance(given, tuple | list):
            got += f" of {', '.join(sorted({type(n).__name__ for n in given}))}"
        raise TypeError(
            f"{owner}: `{name}` must be a torch.Size, or a tuple or list of ints, got {got}; write "
            f"{name}=(3,) for one dimension of 3"
        ) from None
    for n in shape:
        if not 0 <= n < _END:
            sizes = ", ".join(map(brief_int, shape))
            raise ValueError(
                f"{owner}: `{name}` must have sizes from 0 to 2**63 - 1, got ({sizes}); write "
                f"{name}=(3,) for one dimension of 3"
            )
    return shape


def read_validate_args(owner: str, given: Any) -> bool:
    """True or False. An estimator that was passed by position is an error here."""
    given = _unwrapped(given)  # numpy's bool is not an int
    if not isinstance(given, int):
        raise TypeError(
            f"{owner}: `validate_args` must be True, False or None, got {type(given).__name__}; "
            "write estimator=... if this is one"
        )
    return bool(given)


def brief_int(number: int) -> str:
    """The number as text, or its length if it has more than 64 bits.

    Python refuses to print numbers of more than 4300 digits.
    """
    bits = number.bit_length()
    return str(number) if bits <= 64 else f"an int of {bits} bits"


def _as_float(number: Any) -> float:
    """The number as a float; infinite if it is too large for one, as 10**400 is."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _unwrapped(given: Any) -> Any:
    """The Python number of a numpy scalar, and the tensor of a tensor-like object.

    Everything else is returned as it is.
    """
    if isinstance(given, (Tensor, float, int)):
        return given
    if is_tensor_like(given):
        return _tensor_of(given)
    # A numpy scalar or an array without dimensions. numpy may not be installed, so its types are
    # not imported.
    is_scalar = getattr(given, "shape", None) == () and hasattr(given, "item")
    return given.item() if is_scalar else given


def _tensor_of(given: Any) -> Any:
    """The tensor that an object with `__torch_function__` stands for, or else the object."""
    try:
        answer = torch.clone(given)  # by the object's `__torch_function__`, with a gradient
        if isinstance(answer, Tensor) or getattr(given, "requires_grad", False):
            return answer
        return torch.as_tensor(given)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return given


def as_float_tensor(
    owner: str,
    name: str,
    given: Any,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """A number or a tensor as a floating-point tensor.

    :param dtype: of numbers and tensors of integers; None for the default dtype.
    :param device: of numbers; None for the default device.
    """
    if isinstance(given, Tensor) and given.is_floating_point():
        return given
    if type(given) is float and abs(given) < _LARGE:
        return torch.scalar_tensor(given, dtype=dtype, device=device)
    given = _unwrapped(given)
    if isinstance(given, Tensor):
        if given.is_floating_point():
            return given
        if not given.is_complex() and given.dtype != torch.bool:
            return given.to(dtype or torch.get_default_dtype())
        kind = f"a tensor of {given.dtype}"
        remedy = f"write {name}={name}.to(torch.get_default_dtype())"
    elif isinstance(given, numbers.Real) and not isinstance(given, bool):
        number = _as_float(given)
        # `scalar_tensor` takes a fifth of the time, but refuses a number that overflows.
        make = torch.scalar_tensor if abs(number) < _LARGE else torch.tensor
        return make(number, dtype=dtype, device=device)
    else:
        kind = type(given).__name__
        remedy = f"write {name}=torch.as_tensor(..., dtype=torch.get_default_dtype())"
    raise TypeError(
        f"{owner}: `{name}` must be a number or a tensor of floats, got {kind}; {remedy}"
    )


def current(owner: str, temperature: Temperature | None) -> Any:
    """The temperature itself, or what a function without arguments returns.

    :raises TypeError: for a function that returns None.
    """
    if not callable(temperature):
        return temperature
    tau: Any = temperature()
    if tau is None:
        raise TypeError(
            f"{owner}: `temperature` must be a number, a tensor or a function that returns one, "
            "got a function that returns None; write temperature=lambda: 0.5, or temperature=None "
            "for second_order"
        )
    return tau


def fitted(temperature: Temperature | None, batch_shape: torch.Size, event_dim: int = 0) -> Any:
    """The current temperature, of a shape that broadcasts with a distribution's own parameters.

    None is returned as it is.

    :param batch_shape: the batch shape of the distribution, to which the temperature broadcasts.
    :param event_dim: how many dimensions the parameters have besides.
    :raises ValueError: unless the temperature broadcasts to the batch shape.
    """
    tau = _unwrapped(current("relax", temperature))
    if not isinstance(tau, Tensor) or tau.numel() == 1:
        return tau
    if broadcast(tau.shape, batch_shape) != batch_shape:
        raise ValueError(
            "relax: `temperature` must be one number or broadcast to the batch shape "
            f"{tuple(batch_shape)}, got shape {tuple(tau.shape)}; write "
            f"torch.full({tuple(batch_shape)}, 0.5) for one number for each batch element"
        )
    return tau.reshape(tau.shape + (1,) * event_dim)


def joint_batch_shape(owner: str, temperature: torch.Size, batch_shape: torch.Size) -> torch.Size:
    """The batch shape of a distribution, given those of its temperature and its other parameter."""
    if math.prod(temperature) == 1:
        return batch_shape
    joint = broadcast(temperature, batch_shape)
    if joint is None or joint not in (batch_shape, temperature):
        if temperature[-1:] == (1,) and temperature[:-1] == batch_shape:
            remedy = "write temperature.squeeze(-1): it has no dimension for the categories"
        elif joint is None:
            remedy = (
                f"write torch.full({tuple(batch_shape)}, 0.5) for one number for each batch element"
            )
        else:
            remedy = (
                f"for a batch of shape {tuple(joint)} write probs.expand or logits.expand to it"
            )
        raise ValueError(
            f"{owner}: `temperature` must be one number or broadcast with the batch shape "
            f"{tuple(batch_shape)} to one of the two shapes, got shape {tuple(temperature)}; "
            f"{remedy}"
        )
    return joint


def batch_shape_with_lengths(
    owner: str, lengths: torch.Size, batch_shape: torch.Size
) -> torch.Size:
    """The batch shape of rankings, given that of their lengths and that without them.

    Unlike a temperature, lengths of shape (1,) make a batch of one, as the last minibatch may be.
    And shapes such as (judges,) and (particles, 1) may make a batch of (particles, judges).
    """
    joint = broadcast(lengths, batch_shape)
    has_one_more = len(lengths) and lengths[-1] == 1 and lengths[:-1] == batch_shape != ()
    if joint is None or (has_one_more and joint != lengths):
        if has_one_more:
            remedy = "write size.squeeze(-1): it has no dimension for the categories"
        else:
            remedy = f"write torch.full({tuple(batch_shape)}, 2) for a length for each element"
        raise ValueError(
            f"{owner}: `size` must be one number or broadcast with the batch shape "
            f"{tuple(batch_shape)}, got shape {tuple(lengths)}; {remedy}"
        )
    return joint


def check_value(
    owner: str, value: Any, batch_shape: torch.Size, event_shape: torch.Size, *, integers: bool
) -> None:
    """Raise unless `value` is a tensor whose shape fits the distribution.

    :param integers: whether a tensor of integers is allowed too.
    """
    is_tensor = isinstance(value, Tensor)
    if not is_tensor or value.is_complex() or not (integers or value.is_floating_point()):
        kind = f"a tensor of {value.dtype}" if is_tensor else type(value).__name__
        error = TypeError if is_tensor else ValueError  # like torch
        raise error(
            f"{owner}: `value` must be a tensor of floats{' or integers' if integers else ''}, got "
            f"{kind}; write torch.as_tensor(value, dtype=torch.get_default_dtype())"
        )
    shape = batch_shape + event_shape
    event_fits = value.shape[value.dim() - len(event_shape) :] == event_shape
    if not event_fits or broadcast(value.shape, shape) is None:
        raise ValueError(
            f"{owner}: the shape of `value` must broadcast with batch_shape {tuple(batch_shape)} "
            f"and end with event_shape {tuple(event_shape)}, got {tuple(value.shape)}; write "
            f"value.reshape(sample_shape + {tuple(shape)})"
        )


def require(valid: Tensor, expected: str, got: Tensor, remedy: str) -> None:
    """Raise a ValueError unless `valid` is True everywhere; never where values cannot be read.

    :param expected: the beginning of the text, which says what was expected.
    :param got: the values to show, with the dimensions of `valid` and perhaps more.
    :param remedy: the end of the text, which says what to write.
    """
    if not known(valid.all(), otherwise=True):
        wrong = got[~valid.expand(got.shape[: valid.dim()])] if valid.dim() else got
        first = ", ".join(f"{number:.6g}" for number in wrong.detach().flatten()[:8].tolist())
        raise ValueError(f"{expected}, got e.g. {first}; {remedy}")


def broadcast(left: torch.Size, right: torch.Size) -> torch.Size | None:
    """The shape that two shapes broadcast to; None if they do not."""
    if left[len(left) - len(right) :] == right:
        return left  # `torch.broadcast_shapes` would take 40 microseconds
    if right[len(right) - len(left) :] == left:
        return right
    try:
        return torch.broadcast_shapes(left, right)
    except (RuntimeError, ValueError):
        return None
