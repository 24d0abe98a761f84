# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The rows of the table: what the soft and the hard law of one kind of variable share.

A distribution keeps the tensors that it was given, unexpanded; the batch shape is an attribute of
its own. So `expand` costs nothing, leaves stay leaves (a distribution can be copied and pickled),
and `probs` and `logits` are derived where they are asked for.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.distributions import OneHotCategorical, constraints
from torch.distributions.utils import probs_to_logits
from torch.nn.functional import logsigmoid

from pyro_gumbel._tracing import brief, ends, in_program
from pyro_gumbel._validation import (
    Temperature,
    broadcast,
    check_value,
    joint_batch_shape,
    read_parameter,
    read_shape,
    read_size,
    read_temperature,
    read_validate_args,
    require,
    require_int_size,
)
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.sample_cache import Parameters
from pyro_gumbel.links import Hypersimplex, Link, interval, log_of_positive, simplex
from pyro_gumbel.ops import noise
from pyro_gumbel.ops.precision import cast

__all__ = ["MOfK", "OneBit", "OneOfK", "Ranking", "Row", "are_derived", "exact_logits"]

FAR = 1e300  # of logits in float64 what is farther apart makes no other probabilities
_NEAR = 64.0


class Row:
    """A perturbed discrete law, of which the leaves take a column each.

    Mixed in before the Distribution class whose interface the leaf has. A row names its link and
    its noise, and says what `probs` and `logits` mean; a column says what a value is.
    """

    link: Link
    noise: ClassVar[Callable[..., Tensor]]
    has_rsample = True

    _parameter_dim: ClassVar[int]  # dimensions of a parameter that are not of the batch
    _has_temperature: ClassVar[bool] = True
    _has_size: ClassVar[bool] = False
    _integers: ClassVar[bool] = False  # whether a value may be of integers
    _support_text: ClassVar[str]  # what a value must be, and what to write if it is not
    _remedy: ClassVar[str]

    _batch_shape: torch.Size
    _event_shape: torch.Size
    _validate_args: bool
    size: int

    conjugate_update: Any = absent("is for conjugate families", "use SVI or MCMC")

    if TYPE_CHECKING:  # of the Distribution class, or of the rows below
        support: Any

        def log_prob(self, value: Tensor) -> Tensor: ...
        @property
        def mean(self) -> Tensor: ...
        @property
        def variance(self) -> Tensor: ...
        @property
        def probs(self) -> Tensor: ...
        @property
        def logits(self) -> Tensor: ...

    def __init__(
        self,
        probs: Tensor | float | None,
        logits: Tensor | float | None,
        *,
        temperature: Temperature | None = None,
        size: int | None = None,
        validate_args: bool | None,
    ) -> None:
        """Read and check everything; the columns have the signatures that a user sees."""
        # Not the constructor of torch's Distribution: it knows no vmap, and its errors no remedy.
        owner = type(self).__name__
        if self._has_size:
            require_int_size(owner, size)
        temperature = temperature() if callable(temperature) else temperature
        device = temperature.device if isinstance(temperature, Tensor) else None
        try:
            self._given, self._raw = read_parameter(
                owner, probs, logits, self._parameter_dim, device
            )
        except ValueError as error:
            raise ValueError(f"{error}{self._order(temperature)}") from None
        shapes: dict[str, Any] = {self._given: self._raw.shape, "size": size}
        if self._has_temperature:
            self._raw_temperature = read_temperature(owner, temperature, self._raw)
            self._parameters = Parameters(self._raw, self._raw_temperature)
            shapes["temperature"] = self._raw_temperature.shape
        self._batch_shape, self._event_shape = self.infer_shapes(**shapes)
        if size is not None:
            self.size = size
        if validate_args is not None:
            self._validate_args = read_validate_args(owner, validate_args)
        if self._checks_values:
            if self._has_temperature:
                self._check_temperature()
            self._check_parameter()

    @classmethod
    def _order(cls, temperature: Any) -> str:
        """The end of an error: the line to write, and whether a parameter came first instead."""
        before = "0.5, " * cls._has_temperature + "2, " * cls._has_size
        line = f"; write {cls.__name__}({before}logits=logits)"
        if not cls._has_temperature:
            return line
        shape = getattr(temperature, "shape", None)
        if not isinstance(shape, tuple) or not shape:
            return f"{line}, `temperature` first"
        return f"{line}, `temperature` first: here it has shape {tuple(shape)}"

    @classmethod
    def infer_shapes(
        cls,
        temperature: torch.Size | tuple[int, ...] = (),
        probs: torch.Size | tuple[int, ...] | None = None,
        logits: torch.Size | tuple[int, ...] | None = None,
        *,
        size: int | tuple[()] | None = None,
    ) -> tuple[torch.Size, torch.Size]:
        """The batch shape and the event shape from the shapes of the arguments.

        :param size: the argument itself, where the class has it; or its shape, (), which does for
            subsets.
        :raises ValueError: where the temperature's shape does not go with the batch shape.
        :raises NotImplementedError: for the shape of the size of a ranking.
        """
        if (probs is None) == (logits is None):
            raise ValueError(
                f"{cls.__name__}.infer_shapes: expected the shape of exactly one of `probs` and "
                f"`logits`; write {cls.__name__}.infer_shapes(temperature=(), logits=logits.shape)"
            )
        name, given = ("probs", probs) if logits is None else ("logits", logits)
        shape = _as_shape(cls, name, given)
        cut = len(shape) - cls._parameter_dim
        if cut < 0:
            raise ValueError(
                f"{cls.__name__}.infer_shapes: `{name}` must have the categories in its last "
                f"dimension, got shape (); write {name}=(3,) for three categories"
            )
        tau_shape = _as_shape(cls, "temperature", temperature)
        joint = joint_batch_shape(cls.__name__, tau_shape, shape[:cut])
        return joint, cls._event_shape_of(shape[cut:], size)

    @classmethod
    def _event_shape_of(cls, categories: torch.Size, size: Any) -> torch.Size:
        """The event shape, from the shape of the categories and the size or its shape."""
        return categories

    def expand(self, batch_shape: torch.Size, _instance: Self | None = None) -> Self:
        """The same law over a larger batch, without copying a tensor."""
        if type(batch_shape) is not torch.Size:
            batch_shape = read_shape(f"{type(self).__name__}.expand", "batch_shape", batch_shape)
        if broadcast(self._batch_shape, batch_shape) != batch_shape:
            raise ValueError(
                f"{type(self).__name__}.expand: `batch_shape` must be one that "
                f"{tuple(self._batch_shape)} broadcasts to, got {tuple(batch_shape)}; "
                f"write .expand({(2, *self._batch_shape)}) for two rows of this batch"
            )
        new = object.__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        new._batch_shape = batch_shape
        return new

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: all but the weak references that Pyro ties to a parameter.

        As of every tensor, a pickle leaves a graph out and `deepcopy` refuses one.
        """
        state = self.__dict__.copy()
        for name in {"_raw", "_raw_temperature"} & state.keys():
            state[name] = _untied(state[name])
        if "_parameters" in state:
            state["_parameters"] = Parameters(state["_raw"], state["_raw_temperature"])
        return state

    def __copy__(self) -> Self:
        """With the very same tensors."""
        return self.expand(self._batch_shape)

    def __repr__(self) -> str:
        parts: dict[str, Any] = {
            self._given: tuple(self._raw.shape),
            "batch_shape": tuple(self._batch_shape),
            "event_shape": tuple(self._event_shape),
        }
        if "size" in self.__dict__:
            parts = {"size": self.size, **parts}
        if self._has_temperature:
            parts = {"temperature": brief(self.temperature), **parts}
        return (
            f"{type(self).__name__}({', '.join(f'{name}: {is_}' for name, is_ in parts.items())})"
        )

    @property
    def temperature(self) -> Tensor:
        """tau, on the parameter's device and of its dtype; a single element as a scalar."""
        tau = cast(self._raw_temperature.to(self._raw.device), self._raw.dtype)
        return tau.reshape(()) if tau.dim() and tau.numel() == 1 else tau

    @property
    def stddev(self) -> Tensor:
        """The square root of the variance; an entry that cannot vary passes no gradient."""
        variance = cast(self.variance, self._dtype)
        sure = variance <= 0
        deviation = torch.where(sure, 0.0, torch.where(sure, 1.0, variance).sqrt())
        return cast(deviation, self._raw.dtype)

    # Shapes.

    def _sample_shape(self, given: Any) -> torch.Size:
        """The argument `sample_shape` of a method."""
        if type(given) is torch.Size and not given:
            return given  # at once: it is most often so
        return read_shape(type(self).__name__, "sample_shape", given)

    def _extended_shape(self, sample_shape: Any = torch.Size()) -> torch.Size:
        """The shape of a draw."""
        return torch.Size(self._sample_shape(sample_shape) + self._batch_shape + self._event_shape)

    def shape(self, sample_shape: Any = torch.Size()) -> torch.Size:
        """The shape of a draw: sample_shape + batch_shape + event_shape."""
        return self._extended_shape(sample_shape)

    def expand_by(self, sample_shape: Any) -> Self:
        """This distribution over the batch shape sample_shape + batch_shape."""
        return self.expand(torch.Size(self._sample_shape(sample_shape) + self._batch_shape))

    # What the columns use: computed in float32 at least.

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self._raw.dtype, torch.float32)

    @property
    def _x(self) -> Tensor:
        """x, unnormalised logits, infinite where a probability is 0 or 1."""
        raw = cast(self._raw, self._dtype)
        return self._moved(raw) if self._given == "logits" else self._location_of(raw)

    @property
    def _wide_x(self) -> Tensor:
        """x in float64, for what is integrated: no difference of two overflows."""
        return self._without_extremes(cast(self._x, torch.float64))

    @property
    def _location(self) -> Tensor:
        """x, as it broadcasts with a draw."""
        return self._x

    @property
    def _tau(self) -> Tensor:
        """The temperature, as it broadcasts with a draw."""
        tau = cast(self.temperature, self._dtype)
        return tau.reshape(tau.shape + (1,) * len(self._event_shape)) if tau.dim() else tau

    def _perturbed(self, sample_shape: torch.Size) -> Tensor:
        """z = x + noise, of the full shape of a draw."""
        shape = self._extended_shape(sample_shape)
        return self._location + self.noise(shape, dtype=self._dtype, device=self._raw.device)

    @property
    def _param(self) -> Tensor:
        """The given parameter over the whole batch; torch's name for it."""
        return self._raw.expand(self._param_shape)

    @property
    def _param_shape(self) -> torch.Size:
        own = len(self._event_shape) - self._parameter_dim
        return self._batch_shape + self._event_shape[own:]

    def _like_param(self, value: Tensor) -> Tensor:
        """`value` in the parameter's dtype and over the whole batch."""
        return cast(value, self._raw.dtype).expand(self._param_shape)

    def _over_batch(self, log_prob: Tensor) -> Tensor:
        """`log_prob` over the whole batch, where value and parameters were smaller."""
        if log_prob.shape == self._batch_shape:
            return log_prob
        return log_prob.expand(broadcast(log_prob.shape, self._batch_shape))  # type: ignore[arg-type]

    # What a row defines.

    @classmethod
    def _location_of(cls, probs: Tensor) -> Tensor:
        """Logits from probabilities."""
        raise NotImplementedError

    @classmethod
    def _without_extremes(cls, logits: Tensor) -> Tensor:
        """Logits of the same outcomes, up to `FAR` apart where they are finite."""
        raise NotImplementedError

    @classmethod
    def _moved(cls, logits: Tensor) -> Tensor:
        """Logits of the same law, near to 0 where there are such."""
        return logits

    @classmethod
    def _log_masses(cls, logits: Tensor) -> Tensor:
        """log P of each single outcome, over a last dimension."""
        raise NotImplementedError

    @classmethod
    def _one_hot(cls, value: Tensor) -> Tensor:
        """A value of the row as weights on the outcomes of `_log_masses`."""
        raise NotImplementedError

    @classmethod
    def _from_one_hot(cls, weights: Tensor) -> Tensor:
        """The inverse."""
        raise NotImplementedError

    def _check_parameter(self) -> None:
        """Raise unless the values of `probs` or `logits` are legal."""
        raise NotImplementedError

    # Validation.

    @property
    def _checks_values(self) -> bool:
        """Whether validation is on, and values are numbers rather than steps of a program."""
        return self._validate_args and not in_program()

    def _check_temperature(self) -> None:
        if all(0 < end < math.inf for end in ends(self.temperature)):
            return
        require(
            (self.temperature > 0) & self.temperature.isfinite(),
            f"{type(self).__name__}: `temperature` must be positive and finite",
            self.temperature,
            "write temperature=0.5, or torch.nn.functional.softplus(raw) for a learnt one",
        )

    def _validate_sample(self, value: Tensor) -> None:
        """Raise unless `value` has a legal type and shape and, if validation is on, lies inside."""
        owner = type(self).__name__
        check_value(owner, value, self._batch_shape, self._event_shape, integers=self._integers)
        if self._checks_values:
            valid = self.support.check(value)
            require(valid, f"{owner}: `value` must be {self._support_text}", value, self._remedy)

    def _require(self, valid: Tensor, what: str, remedy: str) -> None:
        require(valid, f"{type(self).__name__}: `{self._given}` must be {what}", self._raw, remedy)


class OneBit(Row):
    """One bit: `probs` the probability of 1, `logits` its log-odds; infinite log-odds are sure."""

    link = interval
    noise = staticmethod(noise.logistic)
    _parameter_dim = 0
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        "probs": constraints.unit_interval,
        "logits": constraints.real,
    }

    @property
    def logits(self) -> Tensor:
        """The log-odds, unclamped: infinite where a probability is 0 or 1."""
        return self._like_param(self._x)

    @property
    def probs(self) -> Tensor:
        """The probability of 1."""
        return self._like_param(self._raw if self._given == "probs" else self._x.sigmoid())

    @classmethod
    def _location_of(cls, probs: Tensor) -> Tensor:
        zero, one = probs <= 0, probs >= 1
        inside = torch.where(zero | one, 0.5, probs)
        logits = log_of_positive(inside) - torch.log1p(-inside)
        return torch.where(zero, -math.inf, torch.where(one, math.inf, logits))

    @classmethod
    def _without_extremes(cls, logits: Tensor) -> Tensor:
        return torch.where(logits.isinf(), logits, logits.clamp(-FAR, FAR))

    @classmethod
    def _log_masses(cls, logits: Tensor) -> Tensor:
        return torch.stack([logsigmoid(-logits), logsigmoid(logits)], -1)

    @classmethod
    def _one_hot(cls, value: Tensor) -> Tensor:
        return torch.stack([1 - value, value], -1)

    @classmethod
    def _from_one_hot(cls, weights: Tensor) -> Tensor:
        return weights[..., 1]

    def _check_parameter(self) -> None:
        x = self._raw
        least, most = ends(x)
        if self._given == "probs":
            if least >= 0 and most <= 1:
                return
            self._require((x >= 0) & (x <= 1), "in [0, 1]", "write logits=... for log-odds")
        elif math.isnan(least):
            self._require(~x.isnan(), "free of NaN", "write logits=torch.nan_to_num(logits)")


class OneOfK(Row):
    """One of k: `probs` non-negative weights over the last dimension, `logits` their logarithms."""

    cdf: Any = absent(
        "is of one number, and a value here is a vector",
        "write (d.sample((1000,)) <= value).double().mean(0) for shares of samples",
    )
    icdf: Any = absent(
        "is of one number, and a value here is a vector",
        "write d.sample((1000,)).quantile(q, 0) for quantiles of samples",
    )

    link: Link = simplex
    size = 1  # how many are chosen
    noise = staticmethod(noise.gumbel)
    _parameter_dim = 1
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        "probs": constraints.independent(constraints.nonnegative, 1),
        "logits": constraints.real_vector,
    }

    @property
    def logits(self) -> Tensor:
        """log p, normalised and unclamped: -inf where p is 0."""
        return self._like_param(self._log_masses(self._x))

    @property
    def probs(self) -> Tensor:
        """p, normalised."""
        if self._given == "probs":
            weights = cast(self._raw, self._dtype)
            weights = weights / weights.detach().amax(-1, keepdim=True)
            return self._like_param(weights / weights.sum(-1, keepdim=True))
        return self._like_param(self._x.softmax(-1))

    @classmethod
    def _location_of(cls, probs: Tensor) -> Tensor:
        return torch.where(probs <= 0, -math.inf, log_of_positive(probs))

    @classmethod
    def _moved(cls, logits: Tensor) -> Tensor:
        # Noise that is added to numbers far from 0 loses digits. It costs less to see that the
        # largest of each row is near than to take it off.
        on_cpu = logits.device.type == "cpu"
        if on_cpu and _are_near(logits):
            return logits
        largest = logits.detach().amax(-1, keepdim=True)
        if on_cpu and _are_near(largest):
            return logits
        below = logits - largest
        lowest = torch.finfo(logits.dtype).min + (logits - logits.detach())
        beyond = below.isneginf() & ~logits.isneginf()  # as far apart as the floats go
        return torch.where(beyond, lowest, below)

    @classmethod
    def _without_extremes(cls, logits: Tensor) -> Tensor:
        below = logits - logits.detach().amax(-1, keepdim=True)
        return torch.where(logits.isneginf(), logits, below.clamp(min=-FAR))

    @classmethod
    def _log_masses(cls, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)

    @classmethod
    def _one_hot(cls, value: Tensor) -> Tensor:
        return value

    @classmethod
    def _from_one_hot(cls, weights: Tensor) -> Tensor:
        return weights

    def _check_parameter(self) -> None:
        x = self._raw
        least, most = ends(x)
        lowest = 0 if self._given == "probs" else -math.inf
        if lowest < least and most < math.inf:
            return
        if self._given == "probs":
            self._require(
                ((x >= 0) & x.isfinite()).all(-1) & ((x > 0).sum(-1) >= self.size),
                f"non-negative and finite, with {self.size} or more positive in every row",
                "write logits=... for log weights",
            )
        else:
            self._require(
                (x < math.inf).all(-1) & (x.isfinite().sum(-1) >= self.size),
                f"below infinity and not NaN, with {self.size} or more finite in every row",
                "write a logit of -inf only for a category that cannot occur",
            )


class MOfK(OneOfK):
    """m of k, drawn one after the other without replacement; `size` is m."""

    _has_size = True
    _all_of_them: ClassVar[bool] = True  # whether all categories may be chosen

    @property
    def link(self) -> Link:  # type: ignore[override]
        return Hypersimplex(self.size)

    @classmethod
    def _event_shape_of(cls, categories: torch.Size, size: Any) -> torch.Size:
        if not _is_shape_of_int(size):
            read_size(cls.__name__, size, categories[-1], all_of_them=cls._all_of_them)
        return categories


class Ranking(OneOfK):
    """m of k in the order of the draws: a row a draw, each one of those that are left."""

    _has_size = True

    @classmethod
    def _event_shape_of(cls, categories: torch.Size, size: Any) -> torch.Size:
        if _is_shape_of_int(size):
            raise NotImplementedError(
                f"{cls.__name__}.infer_shapes: the event shape has `size` rows, so that it takes "
                "the number itself, and got its shape (); write size=2"
            )
        m = read_size(cls.__name__, size, categories[-1], all_of_them=True)
        return torch.Size((m, int(categories[-1])))

    @property
    def _location(self) -> Tensor:
        return self._x.unsqueeze(-2)

    def _untaken(self, rows: Tensor) -> Tensor:
        """Which categories are left for each row; a row's winner is its largest entry of those."""
        categories = torch.arange(rows.shape[-1], device=rows.device)
        left = [torch.ones_like(rows[..., 0, :], dtype=torch.bool)]
        for row in rows.unbind(-2)[:-1]:
            winner = torch.where(left[-1], row, -math.inf).argmax(-1, keepdim=True)
            left.append(left[-1] & (categories != winner))
        return torch.stack(left, -2)


def _as_shape(cls: type[Row], name: str, given: Any) -> torch.Size:
    """The shape of an argument, that `infer_shapes` has been given."""
    if type(given) is torch.Size:
        return given
    return read_shape(f"{cls.__name__}.infer_shapes", name, given)


def _is_shape_of_int(size: Any) -> bool:
    return isinstance(size, tuple) and not size


def _are_near(logits: Tensor) -> bool:
    """Whether all are near to 0, if they can be read."""
    least, most = ends(logits)
    return least >= -_NEAR and most <= _NEAR


def _untied(tensor: Tensor) -> Tensor:
    """The tensor, or without the weak reference of a `pyro.param` one like it of the same graph."""
    if "unconstrained" not in vars(tensor):
        return tensor
    if tensor.is_leaf:
        return tensor.detach().requires_grad_(tensor.requires_grad)
    with torch.enable_grad():
        return tensor.view_as(tensor)


def exact_logits(law: Any) -> Tensor:
    """The logits of a plain law, infinite at sure outcomes: torch clamps those that it derives."""
    row, plain = (OneOfK, law._categorical) if isinstance(law, OneHotCategorical) else (OneBit, law)
    return torch.where(are_derived(law), row._location_of(plain.probs), plain.logits)


def are_derived(law: Any) -> Tensor:
    """Where the logits of a plain `Bernoulli` or `OneHotCategorical` are those of its probs."""
    plain = getattr(law, "_categorical", law)
    return plain.logits == probs_to_logits(plain.probs, is_binary=plain is law)
