# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What a distribution does not have, with the reason: torch's own classes raise an empty error."""

from typing import Any

from pyro.distributions import TorchDistribution

__all__ = ["absent"]


def absent(reason: str, remedy: str) -> Any:
    """A property or method that a class does not have: it raises NotImplementedError and says why.

    Written in the body of a class, under the name of what is missing. A method raises when it is
    called, a property when it is read.

    :param reason: follows the name of the class and of the property or method.
    :param remedy: the line to write instead.
    """
    return _Absent(reason, remedy)


class _Absent:
    """The descriptor behind `absent`."""

    def __init__(self, reason: str, remedy: str) -> None:
        self._text = f"{reason}; {remedy}"

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self._is_method = callable(getattr(TorchDistribution, name, None))

    def __get__(self, distribution: Any, owner: type) -> Any:
        if distribution is None:
            return self
        error = NotImplementedError(f"{owner.__name__}: `{self._name}` {self._text}")
        if not self._is_method:
            raise error

        def method(*_: Any, **__: Any) -> Any:
            raise error

        return method
