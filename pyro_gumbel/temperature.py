# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Temperature schedules, and a temperature that is learnt.

A schedule is a module. When it is called it returns the temperature after the t steps so far. It
can be passed wherever a temperature can: to a distribution, `relax`, `relaxed` and `AutoRelaxed`.
Each of them calls it whenever it makes a distribution. Call `step` once after each update, as for a
learning-rate scheduler::

    temperature = ExponentialTemperature(rate=1e-4, floor=0.5, hold=500)
    model = relaxed(model, temperature)
    for batch in batches:
        svi.step(batch)
        temperature.step()

The number of steps is a buffer. It is part of the `state_dict`, so a run that is resumed from there
continues exactly. Many distributions may share one schedule. A deep copy of a guide has its own
copy of the schedule.
"""

import math

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_gumbel._tracing import brief
from pyro_gumbel._validation import as_float_tensor, read_count, read_number, require

__all__ = [
    "ConstantTemperature",
    "CosineTemperature",
    "ExponentialTemperature",
    "GeometricTemperature",
    "LearnableTemperature",
    "LinearTemperature",
    "TemperatureSchedule",
]


class TemperatureSchedule(nn.Module):
    """A temperature as a function of the number of steps so far. A subclass defines `forward`.

    >>> class Harmonic(TemperatureSchedule):
    ...     def forward(self):
    ...         return 1 / (1 + self.steps)
    >>> temperature = Harmonic()
    >>> temperature.step()
    >>> temperature()
    tensor(0.5000)

    :ivar steps: the number t of steps so far, an integer buffer.
    """

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))

    def step(self) -> None:
        """Count one more step."""
        self.steps += 1

    def forward(self) -> Tensor:
        """The current temperature, in torch's default dtype, on the device of the buffer."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments, the number of steps so far and the current temperature."""
        parts = {
            name: f"{value:g}"
            for name, value in vars(self).items()
            if isinstance(value, (int, float)) and name[0] != "_" and name != "training"
        }
        parts |= {"steps": str(self.steps.item()), "temperature": brief(self().detach())}
        return ", ".join(f"{name}={text}" for name, text in parts.items())


class ConstantTemperature(TemperatureSchedule):
    r"""A schedule whose temperature stays the same.

    .. math:: \tau(t) = \text{value}

    >>> ConstantTemperature(0.5)()
    tensor(0.5000)

    :param value: the temperature, a positive number.
    :raises TypeError: unless `value` is a number.
    :raises ValueError: unless `value` is positive and finite.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = read_number(type(self).__name__, "value", value)

    def forward(self) -> Tensor:
        return 0 * _time(self.steps) + self.value  # infinite if the dtype cannot hold it


class ExponentialTemperature(TemperatureSchedule):
    r"""Exponential decay down to a lowest temperature.

    .. math::

        \tau(t) = \max(\text{floor}, \; \text{initial} \cdot e^{-\text{rate} \cdot t'}),
        \qquad t' = t - (t \bmod \text{hold}).

    This is the annealing of Jang, Gu and Poole, "Categorical reparameterization with
    Gumbel-softmax" (2017), https://arxiv.org/abs/1611.01144. They use max(0.5, exp(-r t)) with
    r = 1e-5 or 1e-4, updated every 500 or 1000 steps.

    >>> temperature = ExponentialTemperature(rate=0.1, floor=0.5)
    >>> for _ in range(5): temperature.step()
    >>> temperature()
    tensor(0.6065)

    :param rate: the rate of decay for one step, a number of at least 0.
    :param floor: the lowest temperature, a positive number.
    :param hold: for how many steps a temperature is held, an int of 1 or more.
    :param initial: the temperature at t = 0, a number not below `floor`.
    :raises TypeError: if an argument is not a number, or `hold` is not an int.
    :raises ValueError: if an argument is out of its range.
    """

    def __init__(
        self, rate: float, floor: float = 0.5, hold: int = 1, initial: float = 1.0
    ) -> None:
        super().__init__()
        self.initial = read_number(type(self).__name__, "initial", initial)
        self.rate = read_number(type(self).__name__, "rate", rate, zero=True)
        self.floor = read_number(type(self).__name__, "floor", floor)
        self.hold = read_count(type(self).__name__, "hold", hold, 1, 500)
        if self.floor > self.initial:
            raise ValueError(
                "ExponentialTemperature: `floor` must not be above `initial`, "
                f"{self.initial:g}, got {self.floor:g}; write initial={self.floor:g}, or a lower "
                "floor"
            )

    def forward(self) -> Tensor:
        held = self.steps - self.steps % self.hold
        return (self.initial * torch.exp(-self.rate * _time(held))).clamp(min=self.floor)


class _Between(TemperatureSchedule):
    """A schedule from `initial` to `final` in `num_steps` steps, and `final` after that."""

    def __init__(self, initial: float, final: float, num_steps: int) -> None:
        super().__init__()
        self.initial = read_number(type(self).__name__, "initial", initial)
        self.final = read_number(type(self).__name__, "final", final)
        self.num_steps = read_count(type(self).__name__, "num_steps", num_steps, 1, 1000)

    def _share(self) -> Tensor:
        """min(t / num_steps, 1)."""
        return _time(self.steps.clamp(max=self.num_steps)) / self.num_steps


class LinearTemperature(_Between):
    r"""A straight line from one temperature to another.

    .. math::

        \tau(t) = \text{initial}
            + (\text{final} - \text{initial}) \min\Bigl(\frac{t}{\text{num\_steps}}, 1\Bigr)

    >>> LinearTemperature(1.0, 0.5, num_steps=1000)
    LinearTemperature(initial=1, final=0.5, num_steps=1000, steps=0, temperature=1)

    :param initial: the temperature at t = 0, a positive number.
    :param final: the temperature from t = num_steps on, a positive number.
    :param num_steps: how many steps the change takes, an int of 1 or more.
    :raises TypeError: if an argument is not a number, or `num_steps` is not an int.
    :raises ValueError: if an argument is out of its range.
    """

    def forward(self) -> Tensor:
        return self.final + (self.initial - self.final) * (1 - self._share())


class GeometricTemperature(_Between):
    r"""A straight line on the log scale from one temperature to another, which may be higher.

    .. math::

        \tau(t) = \text{initial}^{1 - u} \, \text{final}^{u},
        \qquad u = \min\Bigl(\frac{t}{\text{num\_steps}}, 1\Bigr).

    It is also for the parameter `tau` of `mve`, which grows.

    >>> GeometricTemperature(160, 1e5, num_steps=1000)
    GeometricTemperature(initial=160, final=100000, num_steps=1000, steps=0, temperature=160)

    :param initial: the temperature at t = 0, a positive number.
    :param final: the temperature from t = num_steps on, a positive number.
    :param num_steps: how many steps the change takes, an int of 1 or more.
    :raises TypeError: if an argument is not a number, or `num_steps` is not an int.
    :raises ValueError: if an argument is out of its range.
    """

    def forward(self) -> Tensor:
        share = self._share()
        return self.initial ** (1 - share) * self.final**share


class CosineTemperature(_Between):
    r"""Half a period of a cosine from one temperature to another.

    .. math::

        \tau(t) = \text{final}
            + (\text{initial} - \text{final}) \frac{1 + \cos(\pi u)}{2},
        \qquad u = \min\Bigl(\frac{t}{\text{num\_steps}}, 1\Bigr).

    It has the shape of the learning rates of Loshchilov and Hutter, "SGDR: stochastic gradient
    descent with warm restarts" (2017), https://arxiv.org/abs/1608.03983.

    >>> CosineTemperature(1.0, 0.5, num_steps=1000)
    CosineTemperature(initial=1, final=0.5, num_steps=1000, steps=0, temperature=1)

    :param initial: the temperature at t = 0, a positive number.
    :param final: the temperature from t = num_steps on, a positive number.
    :param num_steps: how many steps the change takes, an int of 1 or more.
    :raises TypeError: if an argument is not a number, or `num_steps` is not an int.
    :raises ValueError: if an argument is out of its range.
    """

    def forward(self) -> Tensor:
        height = (1 + torch.cos(math.pi * self._share())) / 2
        return self.final + (self.initial - self.final) * height


class LearnableTemperature(TemperatureSchedule, PyroModule):
    r"""A temperature that is a positive parameter, learnt on the log scale.

    .. math:: \tau = e^{\theta} \text{ with a learnt } \theta

    `step` has no effect on it. There are three ways to train it:

    * SVI trains an attribute of a `PyroModule`, such as a guide;
    * SVI trains a temperature with a `name` of its own;
    * an optimiser of torch trains the parameters of this module.

    Use it for relaxed distributions, whose ELBO depends on the temperature. The ELBO of a
    straight-through distribution does not depend on it. The temperature would follow the surrogate
    gradient, which is the gradient of no loss, and drift.

    >>> LearnableTemperature(0.5)
    LearnableTemperature(steps=0, temperature=0.5)

    :param initial: the positive temperature to begin with: a number, or a tensor that broadcasts
        with the batch shape of the distribution, for one temperature for each element.
    :param name: the name in Pyro's parameter store, for a temperature that is not an attribute of a
        `PyroModule`.
    :raises TypeError: unless `initial` is a real number or a tensor of real numbers.
    :raises ValueError: unless `initial` is positive and finite.
    """

    def __init__(self, initial: float | Tensor = 1.0, name: str = "") -> None:
        super().__init__()
        self._pyro_name = name
        tau = as_float_tensor("LearnableTemperature", "initial", initial).detach()
        require(
            (tau > 0) & tau.isfinite(),
            "LearnableTemperature: `initial` must be positive and finite",
            tau,
            "write LearnableTemperature(0.5)",
        )
        self.value = PyroParam(tau.clone(), constraints.positive)

    def __call__(self) -> Tensor:
        # Without a name Pyro would store it as "value", as it would every other one. So Pyro is not
        # asked.
        return super().__call__() if self._pyro_name else self.forward()

    def forward(self) -> Tensor:
        return self.value


def _time(steps: Tensor) -> Tensor:
    """A number of steps as a float."""
    return steps.to(torch.get_default_dtype())
