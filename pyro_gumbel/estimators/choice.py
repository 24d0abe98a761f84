# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which estimator a name and a temperature mean, and which ones suit a link."""

import warnings

from torch import Tensor

from pyro_gumbel._tracing import ends
from pyro_gumbel.estimators.curvature import LearnedCurvature
from pyro_gumbel.estimators.functions import (
    Estimator,
    gapped,
    gumbel_rao,
    gumbel_softmax,
    is_one_hot,
    mve,
    reinmax,
    reinmax_rao,
    second_order,
    straight_through,
    third_order,
)
from pyro_gumbel.links import Link
from pyro_gumbel.ops.autograd import zero_with_gradient

__all__ = [
    "NAMES",
    "name_of",
    "named",
    "require_suited",
    "resolved",
    "resolved_for_family",
    "straight_through_of",
    "suited",
    "takes_temperature",
    "warn_of_temperature",
]

_NAMED: dict[str, Estimator] = {
    "gapped": gapped(),
    "gumbel_rao": gumbel_rao(),
    "gumbel_softmax": gumbel_softmax,
    "mve": mve(),
    "reinmax": reinmax,
    "reinmax_rao": reinmax_rao(),
    "second_order": second_order,
    "straight_through": straight_through,
    "third_order": third_order,
}
_ARGUMENTS: dict[type, str] = {LearnedCurvature: "(16, 8)"}  # for 16 variables of 8 categories
#: The names of all estimators of this package.
NAMES = tuple(_NAMED)


def suited(link: Link) -> tuple[str, ...]:
    """The names of the estimators that are defined for the samples of a link.

    :param link: a `Link` of `pyro_gumbel.links`.
    """
    return tuple(name for name, estimator in _NAMED.items() if _is_suited(estimator, link))


def _is_suited(estimator: Estimator, link: Link) -> bool:
    """Whether an estimator is defined for the samples of a link.

    Functions of users always are, and `second_order`, of which each class has its form.
    `third_order` is for counts, which have no link.
    """
    if estimator is third_order:
        return False
    needs_one_hot = estimator is reinmax or type(estimator) in (gapped, mve, reinmax_rao)
    return is_one_hot(link) or not needs_one_hot


def require_suited(owner: str, estimator: Estimator, link: Link) -> None:
    """Raise for an estimator of this package that is not defined for the samples of a link.

    :param owner: the name of the class that the error speaks of.
    :param estimator: an estimator of this package, or any function.
    :param link: a `Link` of `pyro_gumbel.links`.
    :raises ValueError: unless it is suited.
    """
    if not _is_suited(estimator, link):
        raise ValueError(
            f"{owner}: `estimator` must support subsets: one of {list(suited(link))} or a function "
            f"of yours, got {name_of(estimator)}; "
            'write estimator="gumbel_softmax"'
        )


def takes_temperature(estimator: Estimator) -> bool:
    """Whether an estimator is for distributions with a temperature.

    Functions of users are, unless they have an attribute of this name that is False.
    """
    if estimator is second_order or estimator is third_order:
        return False
    return getattr(estimator, "takes_temperature", True)


def name_of(estimator: Estimator) -> str:
    """How an estimator prints: the name of a function, or the line that makes an object."""
    return getattr(estimator, "__name__", repr(estimator))


def named(estimator: str | Estimator) -> Estimator:
    """The estimator of that name; a function is returned as it is.

    :param estimator: one of `NAMES`, or a function.
    :raises ValueError: for an unknown name.
    :raises TypeError: unless `estimator` is a name or a function.
    """
    if isinstance(estimator, type):
        raise TypeError(
            f"`estimator` must be a name or a function, got the class {estimator.__name__}; write "
            f"estimator={estimator.__name__}({_ARGUMENTS.get(estimator, '')})"
        )
    if callable(estimator):
        return estimator
    if not isinstance(estimator, str):
        raise TypeError(
            "`estimator` must be a name or a function (logits, temperature, perturbed, hard, "
            f"link) -> surrogate, got {type(estimator).__name__}; "
            'write estimator="gumbel_softmax"'
        )
    if estimator not in _NAMED:
        raise ValueError(
            f"`estimator` must be one of {list(NAMES)} or a function (logits, temperature, "
            f'perturbed, hard, link) -> surrogate, got "{estimator}"; '
            'write estimator="gumbel_softmax"'
        )
    return _NAMED[estimator]


def resolved(owner: str, temperature: object, estimator: str | Estimator | None) -> Estimator:
    """The estimator that a temperature and an estimator together mean.

    :param owner: the name of the class or function that the error speaks of.
    :param temperature: None, or anything that is a temperature.
    :param estimator: None for `second_order` without a temperature and `gumbel_softmax` with one.
    :raises ValueError: for an estimator without a temperature that is given one, and another one
        that is given none; and as `named` does.
    :raises TypeError: as `named` does.
    """
    if estimator is None:
        return second_order if temperature is None else gumbel_softmax
    function = named(estimator)
    if takes_temperature(function) == (temperature is not None):
        return function
    name = name_of(function)
    if temperature is None:
        raise ValueError(
            f"{owner}: `estimator` {name} must have a temperature, got None; write "
            "temperature=1.0, or leave out `estimator` for second_order, which has none"
        )
    remedy = "leave it out" if function is second_order else f"write estimator={name} without it"
    raise ValueError(
        f"{owner}: `temperature` must be None for estimator={name}, which has none, got "
        f'{type(temperature).__name__}; {remedy}, or write estimator="gumbel_softmax"'
    )


def resolved_for_family(
    owner: str, temperature: object, estimator: str | Estimator | None
) -> Estimator:
    """The same for a class that is none of counts.

    :raises ValueError: as `resolved` does, and for `third_order`.
    :raises TypeError: as `resolved` does.
    """
    function = resolved(owner, temperature, estimator)
    if function is third_order:
        raise ValueError(
            f"{owner}: `estimator` must not be third_order, which is for counts; write "
            'estimator="second_order", and in a model that has counts too give third_order to them '
            'alone: relaxed(relaxed(model, estimator="third_order", sites=[...])), or '
            'AutoRelaxed(model, estimator="third_order", sites=[...]) in an AutoGuideList'
        )
    return function


def warn_of_temperature(estimator: Estimator, temperature: Tensor | float) -> None:
    """Warn where an estimator does not do what it is for at a temperature.

    Of `reinmax` at any but 1, where it is biased for quadratic functions too; of `gapped` where the
    gap is more than 4 temperatures. There the surrogate is flat: the slope between the winner and
    another category is exp(-gap / tau) / tau at most.
    """
    if estimator is reinmax:
        least, most = ends(temperature)
        if least < 1 or most > 1:
            warnings.warn(_REINMAX_IS_BIASED, stacklevel=2)
    elif isinstance(estimator, gapped) and 4 * ends(temperature)[0] < estimator.gap:
        warnings.warn(_GAPPED_IS_FLAT, stacklevel=2)


_REINMAX_IS_BIASED = (
    "reinmax: expected `temperature` 1, where it is unbiased for quadratic functions, got another "
    "one, where its bias can be large; write temperature=1.0, or leave out `temperature` and "
    "`estimator` for second_order, which is the same"
)
_GAPPED_IS_FLAT = (
    "gapped: expected a `gap` of at most 4 temperatures, got a larger one, so that almost no "
    "gradient passes; write temperature=gap / 4 or more"
)


def straight_through_of(hard: Tensor, surrogate: Tensor) -> Tensor:
    """A tensor with the value of the sample and the gradient of the surrogate.

    Where the surrogate is infinite or NaN no gradient passes.

    :param hard: the sample.
    :param surrogate: the surrogate, of the same shape.
    :raises TypeError: unless the surrogate is a tensor.
    :raises ValueError: unless it has the shape of the sample.
    """
    if not isinstance(surrogate, Tensor):
        raise TypeError(
            f"`estimator` must return a tensor, got {type(surrogate).__name__}; "
            "write e.g. return link(perturbed, temperature)"
        )
    if surrogate.shape != hard.shape:
        raise ValueError(
            f"`estimator` must return a surrogate of the sample's shape {tuple(hard.shape)}, "
            f"got {tuple(surrogate.shape)}; write surrogate.expand(hard.shape)"
        )
    return hard + zero_with_gradient(surrogate).nan_to_num(nan=0.0)
