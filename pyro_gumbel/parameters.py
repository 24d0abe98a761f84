# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What a constructor accepts, and the rows of the table: what all the laws of a row share.

A distribution keeps the tensors that it was given, unexpanded; the batch shape is a number of its
own. So `expand` costs nothing, leaves stay leaves (a distribution can be copied and pickled), and
`probs` and `logits` are derived where they are asked for.

Shapes and types are always checked, values when validation is on and they can be read (they
cannot under vmap, compile and trace).
"""

import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_gumbel import noise
from pyro_gumbel.links import Link, interval, simplex

__all__ = ["OneBit", "OneOfK", "Row", "Temperature"]

Temperature = float | Tensor | Callable[[], float | Tensor]


class Row:
    """One row of the table: a perturbed discrete law, of which the leaves take a column each.

    Mixed in before the Distribution class whose interface the leaf has. A row names its link and
    its noise, and says what `probs` and `logits` mean.
    """

    link: ClassVar[Link]
    noise: ClassVar[Callable[..., Tensor]]
    temperature: Tensor
    has_rsample = True

    if TYPE_CHECKING:  # from the Distribution class, or from the two rows below

        @property
        def probs(self) -> Tensor: ...
        @property
        def logits(self) -> Tensor: ...

    _batch_shape: torch.Size
    _event_shape: torch.Size
    _validate_args: bool
    _extended_shape: Callable[[Any], torch.Size]

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        # Not the constructor of torch's Distribution: it knows no vmap, and its errors no remedy.
        if validate_args is not None:
            self._validate_args = validate_args
        self._given, parameter = self._read_parameter(probs, logits)
        self._raw = parameter
        self.temperature = self._read_temperature(temperature)
        self._batch_shape, self._event_shape = self.infer_shapes(
            self.temperature.shape, **{self._given: parameter.shape}
        )
        if self._checks_values:
            self._check_values()

    @classmethod
    def infer_shapes(
        cls,
        temperature: torch.Size | tuple[int, ...],
        probs: torch.Size | tuple[int, ...] | None = None,
        logits: torch.Size | tuple[int, ...] | None = None,
    ) -> tuple[torch.Size, torch.Size]:
        """The batch shape and the event shape from the shapes of the arguments.

        :raises ValueError: where the temperature's shape does not go with the batch shape.
        """
        shape = torch.Size(probs if logits is None else logits)  # type: ignore[arg-type]
        cut = len(shape) - cls.link.event_dim
        batch_shape, temperature = shape[:cut], torch.Size(temperature)
        if math.prod(temperature) == 1:
            return batch_shape, shape[cut:]
        joint = _broadcast(temperature, batch_shape)
        if joint is None or joint not in (batch_shape, temperature):
            raise ValueError(
                f"{cls.__name__}: `temperature` must be one number or broadcast with the batch "
                f"shape {tuple(batch_shape)} to one of the two shapes, got shape "
                f"{tuple(temperature)}; {_temperature_remedy(temperature, batch_shape, joint)}"
            )
        return joint, shape[cut:]

    def expand(self, batch_shape: torch.Size, _instance: Self | None = None) -> Self:
        """The same law over a larger batch, without copying a tensor."""
        batch_shape = torch.Size(batch_shape)
        if _broadcast(self._batch_shape, batch_shape) != batch_shape:
            raise ValueError(
                f"{type(self).__name__}.expand: `batch_shape` must be one that "
                f"{tuple(self._batch_shape)} broadcasts to, got {tuple(batch_shape)}; "
                f"write .expand({(2, *self._batch_shape)}) for two rows of this batch"
            )
        new = object.__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        new._batch_shape = batch_shape
        return new

    def __repr__(self) -> str:
        temperature = self.temperature
        shown = f"{temperature.item():.4g}" if _readable(temperature) else _shape(temperature)
        return (
            f"{type(self).__name__}(temperature: {shown}, {self._given}: {_shape(self._raw)}, "
            f"batch_shape: {tuple(self._batch_shape)}, event_shape: {tuple(self._event_shape)})"
        )

    # What the columns use: computed in float32 at least.

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self._raw.dtype, torch.float32)

    @property
    def _location(self) -> Tensor:
        """x, as it broadcasts: unnormalised logits, infinite where a probability is 0 or 1."""
        raw = self._raw.to(self._dtype)
        return raw if self._given == "logits" else self._location_of(raw)

    @property
    def _tau(self) -> Tensor:
        """The temperature, as it broadcasts with x."""
        tau = self.temperature.to(self._dtype)
        return tau.unsqueeze(-1) if self.link.event_dim and tau.dim() else tau

    def _perturbed(self, sample_shape: torch.Size) -> Tensor:
        """z = x + noise, of the full shape of a draw."""
        shape = self._extended_shape(sample_shape)
        return self._location + self.noise(shape, dtype=self._dtype, device=self._raw.device)

    @property
    def _param(self) -> Tensor:
        """The given parameter over the whole batch; torch's name for it."""
        return self._raw.expand(self._batch_shape + self._event_shape)

    def _like_param(self, value: Tensor) -> Tensor:
        """`value` in the parameter's dtype and over the whole batch."""
        return value.to(self._raw.dtype).expand(self._batch_shape + self._event_shape)

    def _over_batch(self, log_prob: Tensor) -> Tensor:
        """`log_prob` over the whole batch, where value and parameters were smaller."""
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self._batch_shape))

    # What a row defines.

    @classmethod
    def _location_of(cls, probs: Tensor) -> Tensor:
        """Logits from probabilities."""
        raise NotImplementedError

    @classmethod
    def _log_masses(cls, logits: Tensor) -> Tensor:
        """log P of each single outcome, over a last dimension."""
        raise NotImplementedError

    @classmethod
    def _one_hot(cls, value: Tensor) -> Tensor:
        """A value of the row as weights on the outcomes of `_log_masses`."""
        raise NotImplementedError

    @classmethod
    def _harden(cls, perturbed: Tensor) -> Tensor:
        """The vertex that perturbed logits choose."""
        raise NotImplementedError

    # Arguments.

    def _read_parameter(
        self, probs: Tensor | float | None, logits: Tensor | float | None
    ) -> tuple[str, Tensor]:
        if (probs is None) == (logits is None):
            raise ValueError(
                f"{type(self).__name__}: expected exactly one of `probs` and `logits`, got "
                f"{'neither' if probs is None else 'both'}; "
                f"write {type(self).__name__}(temperature, logits=logits)"
            )
        name, given = ("probs", probs) if logits is None else ("logits", logits)
        parameter = _as_float_tensor(given, type(self).__name__, name)
        event_dim = self.link.event_dim
        if parameter.dim() < event_dim or (event_dim and not parameter.shape[-1]):
            raise ValueError(
                f"{type(self).__name__}: `{name}` must have the categories in its last dimension, "
                f"at least one, got shape {_shape(parameter)}; write "
                f"{name}=torch.tensor([0.2, 0.3, 0.5]), or use the Bernoulli class for one bit"
            )
        return name, parameter

    def _read_temperature(self, temperature: Temperature) -> Tensor:
        """One element as a scalar, on the parameter's device and of its dtype."""
        given = temperature() if callable(temperature) else temperature
        name = type(self).__name__
        if isinstance(given, Tensor):
            tensor = _as_float_tensor(given, name, "temperature").to(self._raw)
            return tensor.reshape(()) if tensor.dim() and tensor.numel() == 1 else tensor
        return _as_float_tensor(given, name, "temperature", like=self._raw)

    @property
    def _checks_values(self) -> bool:
        """Whether validation is on, and values are numbers rather than steps of a program."""
        return self._validate_args and not _in_program()

    def _check_values(self) -> None:
        name = type(self).__name__
        require(
            (self.temperature > 0) & self.temperature.isfinite(),
            f"{name}: `temperature` must be positive and finite",
            self.temperature,
            "write temperature=0.5, or torch.nn.functional.softplus(raw) for a learnt one",
        )
        valid, what, remedy = self._check_parameter()
        require(valid, f"{name}: `{self._given}` must be {what}", self._raw, remedy)

    def _check_parameter(self) -> tuple[Tensor, str, str]:
        """Where the parameter is legal, what it must be, and the remedy."""
        raise NotImplementedError

    def _validate_sample(self, value: Tensor) -> None:
        """Raise unless `value` has a legal type, shape and, with validation on, value."""
        raise NotImplementedError

    def _check_shape(self, value: Tensor) -> None:
        shape, event_shape = self._batch_shape + self._event_shape, self._event_shape
        event_fits = value.shape[value.dim() - len(event_shape) :] == event_shape
        if not event_fits or _broadcast(value.shape, shape) is None:
            raise ValueError(
                f"{type(self).__name__}: the shape of `value` must broadcast with batch_shape "
                f"{tuple(self._batch_shape)} and end with event_shape {tuple(event_shape)}, got "
                f"{_shape(value)}; write value.reshape(sample_shape + {tuple(shape)})"
            )


class OneBit(Row):
    """One bit: `probs` the probability of 1, `logits` its log-odds; infinite log-odds are sure."""

    link = interval
    noise = staticmethod(noise.logistic)
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        "probs": constraints.unit_interval,
        "logits": constraints.real,
    }

    @property
    def logits(self) -> Tensor:
        """The log-odds, unclamped: infinite where a probability is 0 or 1."""
        return self._like_param(self._location)

    @property
    def probs(self) -> Tensor:
        """The probability of 1."""
        return self._like_param(self._raw if self._given == "probs" else self._location.sigmoid())

    @classmethod
    def _location_of(cls, probs: Tensor) -> Tensor:
        zero, one = probs <= 0, probs >= 1
        inside = torch.where(zero | one, 0.5, probs)
        logits = inside.log() - torch.log1p(-inside)
        return torch.where(zero, -math.inf, torch.where(one, math.inf, logits))

    @classmethod
    def _log_masses(cls, logits: Tensor) -> Tensor:
        return torch.stack([logsigmoid(-logits), logsigmoid(logits)], -1)

    @classmethod
    def _one_hot(cls, value: Tensor) -> Tensor:
        return torch.stack([1 - value, value], -1)

    @classmethod
    def _harden(cls, perturbed: Tensor) -> Tensor:
        return (perturbed >= 0).to(perturbed.dtype)

    def _check_parameter(self) -> tuple[Tensor, str, str]:
        if self._given == "probs":
            valid = (self._raw >= 0) & (self._raw <= 1)
            return valid, "in [0, 1]", "write logits=... if these are log-odds"
        return ~self._raw.isnan(), "log-odds without NaN", "write logits=torch.nan_to_num(logits)"


class OneOfK(Row):
    """One of k: `probs` non-negative weights over the last dimension, `logits` their logarithms."""

    link = simplex
    noise = staticmethod(noise.gumbel)
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        "probs": constraints.independent(constraints.nonnegative, 1),
        "logits": constraints.real_vector,
    }

    @property
    def logits(self) -> Tensor:
        """log p, normalised and unclamped: -inf where p is 0."""
        return self._like_param(self._log_masses(self._location))

    @property
    def probs(self) -> Tensor:
        """p, normalised."""
        if self._given == "probs":
            weights = self._raw.to(self._dtype)
            return self._like_param(weights / weights.sum(-1, keepdim=True))
        return self._like_param(self._location.softmax(-1))

    @classmethod
    def _location_of(cls, probs: Tensor) -> Tensor:
        zero = probs <= 0
        return torch.where(zero, -math.inf, torch.where(zero, 1.0, probs).log())

    @classmethod
    def _log_masses(cls, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)

    @classmethod
    def _one_hot(cls, value: Tensor) -> Tensor:
        return value

    @classmethod
    def _harden(cls, perturbed: Tensor) -> Tensor:
        winner = perturbed.argmax(-1, keepdim=True)
        return torch.zeros_like(perturbed).scatter(-1, winner, 1.0)

    def _check_parameter(self) -> tuple[Tensor, str, str]:
        if self._given == "probs":
            valid = ((self._raw >= 0) & self._raw.isfinite()).all(-1) & (self._raw.sum(-1) > 0)
            what = "non-negative and finite, not all 0 in a row"
            return valid, what, "write logits=... if these are log weights"
        finite = ~(self._raw.isnan() | self._raw.isposinf())
        valid = finite.all(-1) & self._raw.isfinite().any(-1)
        what = "below infinity and not NaN, with a finite entry in every row"
        return valid, what, "write a logit of -inf only for a category that cannot occur"


def require(valid: Tensor, expected: str, got: Tensor, remedy: str) -> None:
    """Raise a ValueError unless `valid` everywhere; say nothing where values cannot be read."""
    try:
        holds = bool(valid.all())
    except RuntimeError:  # under vmap a tensor has no value
        return
    if not holds:
        wrong = got[~valid.expand(got.shape[: valid.dim()])] if valid.dim() else got
        raise ValueError(f"{expected}, got e.g. {_excerpt(wrong)}; {remedy}")


def _in_program() -> bool:
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def _as_float_tensor(given: Any, owner: str, name: str, like: Tensor | None = None) -> Tensor:
    """`given` as a tensor of floats; a number takes the dtype and device of `like`."""
    if isinstance(given, Tensor):
        if given.is_floating_point():
            return given
        kind = f"a tensor of {given.dtype}"
        remedy = f"write {name}={name}.to(torch.get_default_dtype())"
    elif isinstance(given, numbers.Real) and not isinstance(given, bool):
        if like is None:
            return torch.tensor(float(given), dtype=torch.get_default_dtype())
        return torch.tensor(float(given), dtype=like.dtype, device=like.device)
    else:
        kind = type(given).__name__
        remedy = f"write {name}=torch.as_tensor(..., dtype=torch.get_default_dtype())"
    expected = "a number or a tensor of floats"
    raise TypeError(f"{owner}: `{name}` must be {expected}, got {kind}; {remedy}")


def _broadcast(left: torch.Size, right: torch.Size) -> torch.Size | None:
    """The shape that both broadcast to; None if there is none."""
    try:
        return torch.broadcast_shapes(left, right)
    except RuntimeError:
        return None


def _temperature_remedy(
    temperature: torch.Size, batch_shape: torch.Size, joint: torch.Size | None
) -> str:
    if temperature[-1:] == (1,) and temperature[:-1] == batch_shape:
        return "write temperature.squeeze(-1): it has no dimension for the categories"
    if joint is None:
        return f"write torch.full({tuple(batch_shape)}, 0.5), one number for each batch element"
    return f"for a batch of shape {tuple(joint)} write logits.expand to it"


def _readable(tensor: Tensor) -> bool:
    """Whether this is a scalar that can be read here."""
    if tensor.dim() or _in_program():
        return False
    try:
        tensor.item()
    except RuntimeError:
        return False
    return True


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _excerpt(values: Tensor) -> str:
    """The first few numbers of a tensor, for an error text."""
    flat = values.detach().flatten()[:8].tolist()
    return ", ".join(f"{number:.6g}" for number in flat)
