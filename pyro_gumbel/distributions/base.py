# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What the distributions of all families share.

A `Family` says what one kind of discrete variable is: what `probs` and `logits` mean, the noise
that is added to the logits, and the link from perturbed logits to a relaxed value. Each
distribution has its family as a class attribute, `family`.

A distribution keeps the tensors that it was given, unexpanded; the batch shape is an attribute of
its own. So `expand` costs nothing, leaves stay leaves (a distribution can be copied and pickled),
and `probs` and `logits` are computed when they are asked for.
"""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import Parameter

from pyro_gumbel._tracing import (
    CPU,
    brief,
    counts_changes,
    ends,
    in_eager_mode,
    in_program,
    is_free_of_nan,
    moved,
)
from pyro_gumbel._validation import (
    Temperature,
    as_float_tensor,
    batch_shape_with_lengths,
    broadcast,
    check_value,
    current,
    joint_batch_shape,
    read_parameter,
    read_row_count,
    read_shape,
    read_validate_args,
    require,
    require_int_size,
)
from pyro_gumbel.distributions.absent import absent
from pyro_gumbel.distributions.sample_cache import CacheKey
from pyro_gumbel.estimators import straight_through_of
from pyro_gumbel.kernels.formulas import FEW, FORMULAS
from pyro_gumbel.links import NEAR, Link
from pyro_gumbel.ops.autograd import square_root
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.ops.second_order import surrogate_of_vector

__all__ = ["Family", "FamilyDistribution", "expanded"]

_PLAIN = (Tensor, Parameter)
_NO_SHAPE = torch.Size()
_numbers: dict[float, Tensor] = {}


class Family:
    """One kind of discrete variable. A family is an object of a subclass.

    :ivar link: the link of its relaxed values; for a family whose link depends on `size`, the
        class of the link, which is called with the size.
    :ivar noise: draws the noise that is added to the logits, called as
        ``noise(shape, dtype=..., device=...)``.
    :ivar noise_distribution: the distribution of that noise, with the arguments (loc, scale); None
        if a relaxed value is not a function of free noise, so that `NoiseReparam` cannot serve it.
    :ivar event_dim: how many dimensions of a parameter are not of the batch: 0 or 1.
    :ivar takes_size: whether the distributions have the argument `size`.
    :ivar default_temperature: of the straight-through distribution that `relax` makes where it is
        given neither a temperature nor an estimator; None for second order.
    :ivar without_relaxed: of a family without relaxed values, why, and the line to write instead.
    :ivar arg_constraints: the constraints of `probs` and `logits`.
    """

    link: ClassVar[Any]
    noise: ClassVar[Callable[..., Tensor]]
    noise_distribution: ClassVar[Any] = None
    event_dim: ClassVar[int]
    takes_size: ClassVar[bool] = False
    default_temperature: ClassVar[float | None] = None
    without_relaxed: ClassVar[str] = ""
    arg_constraints: ClassVar[Mapping[str, constraints.Constraint]]

    def event_shape(self, owner: str, categories: torch.Size, size: Any) -> torch.Size:
        """The event shape.

        :param owner: the name of the class, for errors.
        :param categories: the shape of a parameter without the batch shape.
        :param size: the argument `size`, or its shape, ().
        """
        return categories

    def logits_of(self, probs: Tensor) -> Tensor:
        """The logits of probabilities, infinite where a probability is 0 or 1."""
        raise NotImplementedError

    def normalised_logits(self, logits: Tensor) -> Tensor:
        """The logits as the property `logits` shows them."""
        raise NotImplementedError

    def normalised_probs(self, probs: Tensor) -> Tensor:
        """The probabilities as the property `probs` shows them."""
        raise NotImplementedError

    def probs_of(self, logits: Tensor) -> Tensor:
        """The probabilities of logits."""
        raise NotImplementedError

    def without_extremes(self, logits: Tensor) -> Tensor:
        """Logits of the same probabilities, such that no difference of finite ones overflows."""
        return logits

    def log_probs(self, logits: Tensor) -> Tensor:
        """The log probability of each single outcome, over a last dimension."""
        raise NotImplementedError

    def one_hot(self, value: Tensor) -> Tensor:
        """A value as weights of the outcomes of `log_probs`."""
        raise NotImplementedError

    def from_one_hot(self, weights: Tensor) -> Tensor:
        """The value with these weights of the outcomes: the inverse of `one_hot`."""
        raise NotImplementedError

    def number_of_outcomes(self, probs: Tensor) -> int:
        """How many outcomes `probs` has, of a single draw."""
        raise NotImplementedError

    def with_second_order_gradient(self, value: Tensor, logits: Tensor) -> Tensor:
        """A hard value with the gradient of the second-order surrogate of a vector.

        :param logits: of the shape of the value.
        """
        log_probs = self.log_probs(logits)
        possible = torch.where(log_probs.isneginf(), 0.0, log_probs)
        log_prob = (self.one_hot(value) * possible).sum(-1)
        mean = self.from_one_hot(log_probs.exp())
        surrogate = surrogate_of_vector(value, mean, log_prob, self.event_dim)
        return straight_through_of(value, surrogate)

    def mode(self, logits: Tensor, size: int | None = None) -> Tensor:
        """A most probable value of the discrete distribution; among equals the first."""
        raise NotImplementedError

    def read_size(self, owner: str, size: Any, rows: Any) -> int | Tensor:
        """The argument `size`; of rankings perhaps a tensor of lengths.

        :param rows: the argument `rows` of rankings.
        """
        require_int_size(owner, size)
        return int(size)

    def check_parameter(
        self, owner: str, name: str, value: Tensor, size: int | Tensor | None
    ) -> None:
        """Raise a ValueError unless the values of `probs` or `logits` are legal."""


class FamilyDistribution:
    """A distribution of a family; mixed in before the Distribution class whose interface it has.

    A subclass names its `family` and its `arg_constraints`, and says whether it has a temperature.
    """

    family: ClassVar[Family]
    takes_temperature: ClassVar[bool] = True
    needs_temperature: ClassVar[bool] = True  # or may be given None
    arg_constraints: ClassVar[dict[str, constraints.Constraint]]

    # Both are parts of the error for a value outside of the support.
    _support_text: ClassVar[str]  # what a value must be
    _remedy: ClassVar[str]  # what to write if it is not
    _integers: ClassVar[bool] = False  # whether a value may be a tensor of integers

    _batch_shape: torch.Size
    _event_shape: torch.Size
    _temperature: Any
    _validate_args: bool
    size: Any  # an int; of rankings perhaps a tensor of lengths
    _is_usual: bool = False  # whether `_set_up_usual` has set it up
    _has_number: bool = False  # whether the temperature is a number on the CPU, never changed

    conjugate_update: Any = absent("is for conjugate families", "use SVI or MCMC")
    cdf: Any = absent(
        "is of one number, and a value here is a vector",
        "write (d.sample((1000,)) <= value).double().mean(0) for shares of samples",
    )
    icdf: Any = absent(
        "is of one number, and a value here is a vector",
        "write d.sample((1000,)).quantile(q, 0) for quantiles of samples",
    )

    if TYPE_CHECKING:  # of the Distribution class
        support: Any
        has_rsample: bool

        def log_prob(self, value: Tensor) -> Tensor: ...
        @property
        def mean(self) -> Tensor: ...
        @property
        def variance(self) -> Tensor: ...

    def _set_up(
        self,
        probs: Tensor | float | None,
        logits: Tensor | float | None,
        *,
        temperature: Temperature | None = None,
        size: int | Tensor | None = None,
        rows: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        """Read and check all arguments. The constructors have the signatures that a user sees.

        Not the constructor of torch's Distribution: it cannot validate under vmap, and its errors
        do not say what to write.
        """
        is_usual = type(temperature) is float and 1e-4 < temperature < 1e4  # any dtype holds it
        if is_usual and probs is None and self._set_up_usual(temperature, logits, validate_args):
            return
        owner, family = type(self).__name__, self.family
        if family.takes_size:
            is_int = type(size) is int and rows is None
            self.size = size = size if is_int else family.read_size(owner, size, rows)
        tau = temperature if type(temperature) is float else current(owner, temperature)
        device = tau.device if isinstance(tau, Tensor) else None
        try:
            self._parameter_name, parameter = read_parameter(
                owner, probs, logits, family.event_dim, device
            )
        except ValueError as error:
            raise ValueError(f"{error}{self._line_to_write(tau)}") from None
        self._parameter = parameter
        shape, categories = parameter.shape, torch.Size()
        if family.event_dim:
            shape, categories = shape[:-1], shape[-1:]
        self._batch_shape = shape
        if self.takes_temperature:
            self._set_up_temperature(owner, tau)
        if isinstance(size, Tensor):
            self._set_up_lengths(owner, size, rows, categories[-1])
        else:
            self._event_shape = family.event_shape(owner, categories, size)
        link = family.link
        self.link: Link = link(size) if isinstance(link, type) else link
        if validate_args is not None:
            self._validate_args = (
                validate_args
                if type(validate_args) is bool
                else read_validate_args(owner, validate_args)
            )
        if self.takes_temperature:
            self._cache_key = CacheKey(self._validate_args)
        if self._validate_args:
            self._check_arguments(None if is_usual else tau)

    def _set_up_usual(self, temperature: Any, logits: Any, validate_args: bool | None) -> bool:
        """What `_set_up` does, in fewer steps, if the arguments are the usual ones.

        They are a number, and float32 logits on a CPU or a GPU. Logits to be checked are on a CPU,
        and one look shows that they are legal.
        """
        if type(logits) not in _PLAIN or logits.dtype != torch.float32 or not in_eager_mode():
            return False
        family, shape, categories = self.family, logits.shape, _NO_SHAPE
        if family.takes_size or len(shape) < family.event_dim or not logits.numel():
            return False
        if type(family.link) not in FORMULAS:  # a user's might change the number that others share
            return False
        checks = self._validate_args if validate_args is None else validate_args
        device = logits.device
        has_kernels = device == CPU or (device.type == "cuda" and not checks)
        if type(checks) is not bool or not has_kernels:
            return False
        self._parameter_name, self._parameter = "logits", logits
        self._cache_key = CacheKey(checks)
        if checks and not self._are_seen_usual(logits):
            return False
        if validate_args is not None:
            self._validate_args = checks
        if family.event_dim:
            shape, categories = shape[:-1], shape[-1:]
        self._batch_shape = shape
        self._event_shape = family.event_shape("", categories, None)
        self._temperature = _number(temperature)
        self.link = family.link
        self._is_usual = self._has_number = True
        return True

    def _set_up_temperature(self, owner: str, temperature: float | Tensor | None) -> None:
        """Keep the temperature, and the batch shape with it.

        A number stays on the CPU: a kernel for a GPU takes it from there, and nothing waits for it.
        """
        if temperature is None and not self.needs_temperature:
            self._temperature = None
            self.arg_constraints = dict(self.family.arg_constraints)  # type: ignore[misc]
            return
        dtype, device = self._parameter.dtype, self._parameter.device
        is_number = isinstance(temperature, numbers.Real) and not isinstance(temperature, Tensor)
        stays = is_number and device.type in ("cpu", "cuda") and in_eager_mode()
        tau = as_float_tensor(owner, "temperature", temperature, dtype, CPU if stays else device)
        self._temperature = tau
        if stays:
            self._has_number = type(tau) is Tensor
        if tau.dim():
            self._batch_shape = joint_batch_shape(owner, tau.shape, self._batch_shape)

    def _set_up_lengths(
        self, owner: str, lengths: Tensor, rows: int | None, categories: int
    ) -> None:
        """Keep the lengths of rankings, and the batch shape with them."""
        self.size = lengths.to(self._parameter.device)
        self._batch_shape = batch_shape_with_lengths(owner, lengths.shape, self._batch_shape)
        rows = read_row_count(owner, lengths, rows, categories)
        self._event_shape = torch.Size((rows, categories))
        own = {**self.arg_constraints, "size": constraints.positive_integer}
        self.arg_constraints = own  # type: ignore[misc]
        self._support_text += ", and 0 in rows beyond its length"  # type: ignore[misc]
        mask = f"(torch.arange({rows}) < size.unsqueeze(-1)).unsqueeze(-1)"
        self._remedy += f", or write value * {mask} to cut it"  # type: ignore[misc]

    def _check_arguments(self, temperature: Any) -> None:
        """Raise unless the values of the arguments are legal, if they can be read.

        :param temperature: as it was given; None if it is known to be legal.
        """
        is_eager, on_cpu = in_eager_mode(), self._parameter.device == CPU
        if not is_eager and in_program():
            return
        if isinstance(getattr(self, "size", None), Tensor):
            self._check_lengths()
        on_gpu = not on_cpu and self._parameter.device.type == "cuda"
        if is_eager and on_gpu and self._are_seen_legal(temperature):
            return
        if temperature is not None:
            self._check_temperature()
        x = self._parameter
        may_look = is_eager and on_cpu and self._parameter_name == "logits" and type(x) in _PLAIN
        if not (may_look and x.numel() and self._are_seen_usual(x)):
            size = self.size if self.family.takes_size else None
            owner = type(self).__name__
            self.family.check_parameter(owner, self._parameter_name, x, size)

    def _check_lengths(self) -> None:
        rows = self._event_shape[0]
        require(
            (self.size >= 1) & (self.size <= rows),
            f"{type(self).__name__}: `size` must have lengths from 1 to `rows`, {rows}",
            self.size,
            "write rows=None for as many rows as the largest length, and leave out what has none",
        )

    def _check_temperature(self) -> None:
        tau = self._temperature_to_read
        least, most = ends(tau)
        if not (least > 0 and most < math.inf):
            require(
                (tau > 0) & tau.isfinite(),
                f"{type(self).__name__}: `temperature` must be positive and finite",
                tau,
                "write temperature=0.5, or torch.nn.functional.softplus(raw) for a learnt one",
            )

    def _are_seen_legal(self, temperature: Any) -> bool:
        """Whether one look at a GPU shows all arguments to be legal."""
        x = self._parameter.detach()
        if self._parameter_name == "logits":
            legal = x.sum().isfinite()
        elif self.family.event_dim:
            legal = x.sum().isfinite() & (x > 0).all()
        else:
            legal = ((x >= 0) & (x <= 1)).all()
        if temperature is not None:
            tau = self._temperature_to_read
            legal = legal & ((tau > 0) & (tau < math.inf)).all()
        return bool(legal.item())

    def _are_seen_usual(self, logits: Tensor) -> bool:
        """Whether one look shows logits on a CPU, at least one, to be legal anywhere.

        Those over categories are near 0. The first draw then need not look at them again.
        """
        if not self.family.event_dim:
            return logits.numel() < FEW and is_free_of_nan(logits)
        least, most = logits.detach().aminmax()
        is_near = least.item() >= -NEAR and most.item() <= NEAR
        if is_near and self.takes_temperature and counts_changes(logits):
            self._cache_key.near = logits._version
        return is_near

    @classmethod
    def _line_to_write(cls, temperature: Any) -> str:
        """The end of an error: the line to write, and whether a parameter came first instead."""
        has_temperature = cls.takes_temperature
        may_be_left_out = not (cls.needs_temperature or cls.family.takes_size)
        before = "0.5, " * (has_temperature and not may_be_left_out)
        before += "2, " * cls.family.takes_size
        line = f"; write {cls.__name__}({before}logits=logits)"
        if may_be_left_out:
            line += f", or {cls.__name__}(0.5, logits=logits)"
        shape = getattr(temperature, "shape", None)
        if not has_temperature or not isinstance(shape, tuple) or not shape:
            return f"{line}, `temperature` first" if has_temperature else line
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
            subsets. For rankings of different lengths it is the number of rows.
        :raises ValueError: if the temperature's shape does not fit the batch shape.
        :raises NotImplementedError: for the shape of the size of a ranking.
        """
        owner = f"{cls.__name__}.infer_shapes"
        if (probs is None) == (logits is None):
            raise ValueError(
                f"{owner}: expected the shape of exactly one of `probs` and "
                f"`logits`; write {owner}(temperature=(), logits=logits.shape)"
            )
        name, given = ("probs", probs) if logits is None else ("logits", logits)
        shape = read_shape(owner, name, given)
        cut = len(shape) - cls.family.event_dim
        if cut < 0:
            raise ValueError(
                f"{owner}: `{name}` must have the categories in its last "
                f"dimension, got shape (); write {name}=(3,) for three categories"
            )
        tau_shape = read_shape(owner, "temperature", temperature)
        joint = joint_batch_shape(cls.__name__, tau_shape, shape[:cut])
        return joint, cls.family.event_shape(cls.__name__, shape[cut:], size)

    def expand(self, batch_shape: torch.Size, _instance: Self | None = None) -> Self:
        """The same distribution over a larger batch, without copying a tensor."""
        return expanded(self, batch_shape, _instance)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: all but the weak references that Pyro ties to a parameter.

        As of every tensor, a pickle leaves a graph out and `deepcopy` refuses one.
        """
        state = self.__dict__.copy()
        for name in ("_parameter", "_temperature"):
            if isinstance(state.get(name), Tensor):
                state[name] = _without_parameter_reference(state[name])
        if "_cache_key" in state:
            state["_cache_key"] = CacheKey(self._validate_args)
        return state

    def __copy__(self) -> Self:
        """With the very same tensors."""
        return self.expand(self._batch_shape)

    def __repr__(self) -> str:
        parts: dict[str, Any] = {
            self._parameter_name: tuple(self._parameter.shape),
            "batch_shape": tuple(self._batch_shape),
            "event_shape": tuple(self._event_shape),
        }
        if self.family.takes_size:
            size = self.size
            parts = {"size": brief(size) if isinstance(size, Tensor) else size, **parts}
        parts = {**self._own_arguments, **parts}
        if self.takes_temperature:
            parts = {**self._brief_temperature(), **parts}
        return f"{type(self).__name__}({', '.join(f'{key}: {is_}' for key, is_ in parts.items())})"

    @property
    def _size_arguments(self) -> dict[str, Any]:
        """How many categories a value has, as arguments of the constructor."""
        if not self.family.takes_size:
            return {}
        rows = {"rows": self._event_shape[0]} if isinstance(self.size, Tensor) else {}
        return {"size": self.size, **rows}

    @property
    def _own_arguments(self) -> dict[str, Any]:
        """The arguments of the constructor that only this class has, by name."""
        return {}

    def _brief_temperature(self) -> dict[str, Any]:
        """What `repr` shows of the temperature."""
        return {"temperature": brief(self._temperature_to_read)}

    # Parameters.

    @property
    def temperature(self) -> Any:
        """tau, on the parameter's device and of its dtype; a single element as a scalar.

        None for a straight-through distribution that was given none. A temperature that was given
        as a number becomes a tensor of this distribution alone when it is first asked for. To
        change that in place does not change copies that were made before.
        """
        tau, parameter = self._temperature, self._parameter
        if tau is None:
            return None
        if self._has_number:
            tau = self._own_temperature()
        elif tau.device != parameter.device:
            tau = tau.to(parameter.device)
        if tau.dtype != parameter.dtype:
            tau = cast(tau, parameter.dtype)
        return tau.reshape(()) if tau.dim() and tau.numel() == 1 else tau

    @property
    def _temperature_to_read(self) -> Any:
        """The temperature, where a number is read without waiting."""
        return self._temperature if self._has_number else self.temperature

    @property
    def _temperature64(self) -> Tensor:
        """The temperature in float64, on the device of the parameter."""
        return moved(cast(self._temperature_to_read, torch.float64), self._parameter.device)

    def _own_temperature(self) -> Tensor:
        """The number that is the temperature, as a tensor on the device of the parameter.

        It is kept from now on, so that it may be changed in place. Copies keep the number. The key
        is replaced last: who has read the new one sees that there is no number.
        """
        device = self._parameter.device
        with torch.inference_mode(False):
            tau = self._temperature.clone() if device == CPU else moved(self._temperature, device)
        if in_eager_mode():
            self._temperature, self._has_number, self._is_usual = tau, False, False
            self._cache_key = CacheKey(self._validate_args)
        return tau

    @property
    def logits(self) -> Tensor:
        """The logits, infinite where a probability is 0 or 1; of categories log p, normalised."""
        return self._expanded(self.family.normalised_logits(self._logits))

    @property
    def probs(self) -> Tensor:
        """The probabilities; of categories normalised."""
        if self._parameter_name == "probs":
            given = cast(self._parameter, self._dtype)
            return self._expanded(self.family.normalised_probs(given))
        return self._expanded(self.family.probs_of(self._logits))

    @property
    def stddev(self) -> Tensor:
        """The square root of the variance; an entry that cannot vary passes no gradient."""
        deviation = square_root(cast(self.variance, self._dtype))
        return cast(deviation, self._parameter.dtype)

    # Shapes.

    def _sample_shape(self, given: Any) -> torch.Size:
        """The argument `sample_shape` of a method."""
        if type(given) is torch.Size and not given:  # the default
            return given
        return read_shape(type(self).__name__, "sample_shape", given)

    def _extended_shape(self, sample_shape: Any = torch.Size()) -> torch.Size:
        """The shape of a draw; the name is torch's."""
        return torch.Size(self._sample_shape(sample_shape) + self._batch_shape + self._event_shape)

    def shape(self, sample_shape: Any = torch.Size()) -> torch.Size:
        """The shape of a draw: sample_shape + batch_shape + event_shape."""
        return self._extended_shape(sample_shape)

    def expand_by(self, sample_shape: Any) -> Self:
        """This distribution over the batch shape sample_shape + batch_shape."""
        return self.expand(torch.Size(self._sample_shape(sample_shape) + self._batch_shape))

    @property
    def _parameter_shape(self) -> torch.Size:
        """The shape of `probs` and `logits` over the whole batch."""
        shape = self._parameter.shape
        return self._batch_shape + shape[len(shape) - self.family.event_dim :]

    def _expanded(self, value: Tensor) -> Tensor:
        """`value` in the parameter's dtype and over the whole batch."""
        return cast(value, self._parameter.dtype).expand(self._parameter_shape)

    def _over_batch(self, log_prob: Tensor) -> Tensor:
        """`log_prob` over the whole batch, where value and parameters were smaller."""
        if log_prob.shape == self._batch_shape:
            return log_prob
        return log_prob.expand(broadcast(log_prob.shape, self._batch_shape))  # type: ignore[arg-type]

    # What is computed with: in float32 at least.

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self._parameter.dtype, torch.float32)

    @property
    def _logits(self) -> Tensor:
        """x: unnormalised logits, infinite where a probability is 0 or 1; not expanded."""
        parameter = self._parameter
        if parameter.dtype != torch.float32:
            parameter = cast(parameter, self._dtype)
        if self._parameter_name == "logits":
            return parameter
        return self.family.logits_of(parameter)

    @property
    def _logits64(self) -> Tensor:
        """x in float64, for integrals: no difference of two overflows."""
        exact = cast(self.link.centred(self._logits), torch.float64)
        return self.family.without_extremes(exact)

    @property
    def _tau(self) -> Tensor:
        """The temperature, as it broadcasts with a draw; 1 if there is none."""
        tau, parameter = self._temperature, self._parameter
        if tau is None:
            return torch.ones((), dtype=self._dtype, device=parameter.device)
        if tau.dim() == 0 and tau.dtype == parameter.dtype == torch.float32:
            return tau if tau.device == parameter.device else self._own_temperature()
        tau = cast(self.temperature, self._dtype)
        return tau.reshape(tau.shape + (1,) * len(self._noise_shape)) if tau.dim() else tau

    @property
    def _logits_and_tau(self) -> tuple[Tensor, Tensor]:
        """x and tau for the kernels; tau may be a number on the CPU."""
        tau = self._temperature
        if self._is_usual and tau is not None and self._parameter.dtype == torch.float32:
            return self._parameter, tau  # still of that dtype, which `Module.half` changes
        if not (self._has_number and in_eager_mode()):
            return self._logits, self._tau
        return self._logits, tau.to(self._dtype)

    @property
    def _noise_shape(self) -> torch.Size:
        """The shape of the noise of one draw."""
        return self._event_shape

    def _perturb(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        """The logits x and z = x + noise; z has the full shape of the noise of a draw."""
        x = self.link.centred(self._logits)
        if len(self._noise_shape) > self.family.event_dim:
            x = x.unsqueeze(-2)
        shape = self._sample_shape(sample_shape) + self._batch_shape + self._noise_shape
        return x, x + self.family.noise(shape, dtype=x.dtype, device=x.device)

    # Validation.

    def _validate_sample(self, value: Tensor) -> None:
        """Raise unless `value` has a legal type and shape; with validation, is in the support."""
        owner = type(self).__name__
        check_value(owner, value, self._batch_shape, self._event_shape, integers=self._integers)
        if self._validate_args and not in_program():
            valid = self.support.check(value)
            require(valid, f"{owner}: `value` must be {self._support_text}", value, self._remedy)


def _number(temperature: float) -> Tensor:
    """A number as a tensor. Distributions share it, so that nobody else may have it."""
    number = _numbers.get(temperature)
    if number is None:
        with torch.inference_mode(False):
            number = torch.scalar_tensor(temperature, dtype=torch.float32, device=CPU)
        if type(number) is Tensor and len(_numbers) < 1000:  # a mode of torch makes other ones
            _numbers[temperature] = number
    return number


def expanded(distribution: Any, batch_shape: Any, instance: Any = None) -> Any:
    """A distribution whose batch shape is an attribute of its own, over a larger batch.

    :param instance: the object to fill; None for a new one of the same class.
    """
    owner, shape = type(distribution).__name__, distribution._batch_shape
    if type(batch_shape) is not torch.Size:
        batch_shape = read_shape(f"{owner}.expand", "batch_shape", batch_shape)
    if broadcast(shape, batch_shape) != batch_shape:
        raise ValueError(
            f"{owner}.expand: `batch_shape` must be one that {tuple(shape)} broadcasts to, got "
            f"{tuple(batch_shape)}; write .expand({(2, *shape)}) for this batch twice"
        )
    new = object.__new__(type(distribution)) if instance is None else instance
    new.__dict__.update(distribution.__dict__)
    new._batch_shape = batch_shape
    return new


def _without_parameter_reference(tensor: Tensor) -> Tensor:
    """The tensor, or for a `pyro.param`, which has a weak reference, one like it in the graph."""
    if "unconstrained" not in vars(tensor):
        return tensor
    if tensor.is_leaf:
        return tensor.detach().requires_grad_(tensor.requires_grad)
    with torch.enable_grad():
        return tensor.view_as(tensor)
