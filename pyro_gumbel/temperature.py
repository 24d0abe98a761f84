# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Temperatures that move: functions of the number t of steps so far, and one that is learnt.

A schedule is a module that returns its temperature when it is called, and so goes wherever a
temperature goes: to a distribution, to `relax`, `relaxed` and `AutoRelaxed`, each of which calls it
as often as it makes a law. `step` moves it, once an update, like a learning-rate scheduler::

    temperature = ExponentialTemperature(rate=1e-4, floor=0.5, hold=500)
    model = relaxed(model, temperature)
    for batch in batches:
        svi.step(batch)
        temperature.step()

The number of steps is a buffer: `state_dict` has it, and a run that is resumed from there goes on
exactly. One schedule may serve many laws; a deep copy of a guide has a schedule of its own.
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
    "LearnableTemperature",
    "LinearTemperature",
    "TemperatureSchedule",
]


class TemperatureSchedule(nn.Module):
    """A temperature as a function of the steps so far; a subclass defines `forward`.

    `steps` is their number, an integer buffer.
    """

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))

    def step(self) -> None:
        """Move on by one step."""
        self.steps += 1

    def forward(self) -> Tensor:
        """The temperature now, of torch's default dtype, on the device of the buffer."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments, the steps so far and the temperature now."""
        parts = {
            name: f"{value:g}"
            for name, value in vars(self).items()
            if isinstance(value, (int, float)) and name[0] != "_" and name != "training"
        }
        parts |= {"steps": str(self.steps.item()), "temperature": brief(self().detach())}
        return ", ".join(f"{name}={is_}" for name, is_ in parts.items())


class ConstantTemperature(TemperatureSchedule):
    """tau(t) = value, for a place that wants a schedule.

    >>> ConstantTemperature(0.5)()
    tensor(0.5000)

    :param value: tau > 0.
    :raises TypeError: for anything but a number.
    :raises ValueError: unless it is positive and finite.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = read_number(type(self).__name__, "value", value)

    def forward(self) -> Tensor:
        return torch.full_like(_time(self.steps), self.value)


class ExponentialTemperature(TemperatureSchedule):
    r"""tau(t) = max(floor, initial exp(-rate t')), with t' = t - t mod hold.

    The annealing of Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax"
    (2017), https://arxiv.org/abs/1611.01144, who have max(0.5, exp(-r t)), updated every 500 or
    1000 steps, with r = 1e-5 or 1e-4.

    >>> temperature = ExponentialTemperature(rate=0.1, floor=0.5)
    >>> for _ in range(5): temperature.step()
    >>> temperature()
    tensor(0.6065)

    :param rate: r >= 0, for one step.
    :param floor: the lowest temperature, > 0.
    :param hold: for how many steps a temperature is held, 1 or more.
    :param initial: the temperature at t = 0, not below the floor.
    :raises TypeError: for anything but numbers, and a `hold` that is no int.
    :raises ValueError: for numbers out of these ranges.
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
    """From `initial` to `final` in `num_steps` steps, and `final` from then on."""

    def __init__(self, initial: float, final: float, num_steps: int) -> None:
        super().__init__()
        self.initial = read_number(type(self).__name__, "initial", initial)
        self.final = read_number(type(self).__name__, "final", final)
        self.num_steps = read_count(type(self).__name__, "num_steps", num_steps, 1, 1000)

    def _share(self) -> Tensor:
        """Which part of the way is done."""
        return _time(self.steps.clamp(max=self.num_steps)) / self.num_steps


class LinearTemperature(_Between):
    """tau(t) = initial + (final - initial) t / num_steps, and final from t = num_steps on.

    >>> LinearTemperature(1.0, 0.5, num_steps=1000)
    LinearTemperature(initial=1, final=0.5, num_steps=1000, steps=0, temperature=1)

    :param initial: the temperature at t = 0, > 0.
    :param final: the temperature in the end, > 0.
    :param num_steps: how many steps it takes, 1 or more.
    :raises TypeError: for anything but numbers, and a `num_steps` that is no int.
    :raises ValueError: for numbers out of these ranges.
    """

    def forward(self) -> Tensor:
        return self.final + (self.initial - self.final) * (1 - self._share())


class CosineTemperature(_Between):
    """tau(t) = final + (initial - final) (1 + cos(pi t / num_steps)) / 2, and then final.

    The shape of Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts"
    (2017), https://arxiv.org/abs/1608.03983.

    >>> CosineTemperature(1.0, 0.5, num_steps=1000)
    CosineTemperature(initial=1, final=0.5, num_steps=1000, steps=0, temperature=1)

    :param initial: the temperature at t = 0, > 0.
    :param final: the temperature in the end, > 0.
    :param num_steps: how many steps it takes, 1 or more.
    :raises TypeError: for anything but numbers, and a `num_steps` that is no int.
    :raises ValueError: for numbers out of these ranges.
    """

    def forward(self) -> Tensor:
        height = (1 + torch.cos(math.pi * self._share())) / 2
        return self.final + (self.initial - self.final) * height


class LearnableTemperature(TemperatureSchedule, PyroModule):
    r"""tau = `value`, a positive parameter, learnt on the log scale; `step` does not move it.

    SVI trains it as an attribute of a `PyroModule`, such as a guide, or under a `name` of its own;
    without either it is the parameter of a plain module, for an optimiser of torch. One of a batch
    shape has a temperature for each element. The ELBO of a soft law depends on tau. That of a hard
    law does not: the gradient in tau is then that of the surrogate, which no loss has, and tau
    drifts to where the surrogate likes it.

    >>> LearnableTemperature(0.5)
    LearnableTemperature(steps=0, temperature=0.5)

    :param initial: the temperature to begin with, > 0; a number, or a tensor that broadcasts
        with the batch shape of the law.
    :param name: for the parameter store, of one that is no attribute of a `PyroModule`.
    :raises TypeError: for anything but a real number or a tensor of them.
    :raises ValueError: unless it is positive and finite.
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
        # A nameless one would be "value" in the store, as any other: Pyro is left out of it.
        return super().__call__() if self._pyro_name else self.forward()

    def forward(self) -> Tensor:
        return self.value


def _time(steps: Tensor) -> Tensor:
    """A number of steps as a float."""
    return steps.to(torch.get_default_dtype())
