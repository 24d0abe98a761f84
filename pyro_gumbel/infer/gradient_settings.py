# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What the user passes to `gradient_report`, read and checked."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_gumbel._validation import read_count, read_number, read_seed
from pyro_gumbel.distributions.counts import NamedCount
from pyro_gumbel.distributions.straight_through import FamilyStraightThrough, StraightThrough
from pyro_gumbel.distributions.wrappers import innermost
from pyro_gumbel.estimators import (
    NAMES,
    Estimator,
    name_of,
    named,
    second_order,
    suited,
    takes_temperature,
    third_order,
)
from pyro_gumbel.infer.exact_gradient import DRAWS
from pyro_gumbel.infer.objective import Objective
from pyro_gumbel.infer.report import read_steps

__all__ = [
    "Params",
    "RowSettings",
    "Settings",
    "choose_parameters",
    "read_arguments",
    "read_rows",
    "read_settings",
]

OWNER = "gradient_report"

#: How parameters are chosen: by a name, some names, or a function of a name.
Params = str | Sequence[str] | Callable[[str], bool]


@dataclass(frozen=True)
class Settings:
    """How the gradients are measured."""

    elbo: Trace_ELBO
    num_samples: int
    num_exact_samples: int
    steps: float
    seed: int
    progress: bool


@dataclass(frozen=True)
class RowSettings:
    """What a row of the report measures.

    :ivar of_counts: whether all sites are counts, and have this estimator.
    """

    label: str
    estimator: Estimator
    temperature: float | None
    of_counts: bool = False


def read_settings(
    elbo: Any, num_samples: Any, num_exact_samples: Any, steps: Any, seed: Any, progress: bool
) -> Settings:
    """All that does not depend on the model and the guide."""
    elbo = _read_elbo(elbo)
    read_count(OWNER, "num_samples", num_samples, 2, 200)
    if num_exact_samples is None:
        num_exact_samples = 50 * num_samples
    read_count(OWNER, "num_exact_samples", num_exact_samples, 2 * DRAWS, 10_000)
    steps, seed = read_steps(OWNER, steps), read_seed(OWNER, seed)
    return Settings(elbo, num_samples, num_exact_samples, steps, seed, progress)


def _read_elbo(elbo: Any) -> Trace_ELBO:
    """The loss, if its value is the ELBO."""
    if elbo is None:
        return Trace_ELBO()
    if type(elbo) not in (Trace_ELBO, TraceMeanField_ELBO):
        kind = f"the class {elbo.__name__}" if isinstance(elbo, type) else type(elbo).__name__
        raise TypeError(
            f"{OWNER}: `elbo` must be a Trace_ELBO or TraceMeanField_ELBO, got {kind}; write "
            "elbo=TraceMeanField_ELBO()"
        )
    return elbo


def read_arguments(args: Any, kwargs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments of the model and the guide."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(
            f"{OWNER}: `args` must be a tuple or list of arguments, got {type(args).__name__}; "
            "write (x,) for the argument x"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(
            f"{OWNER}: `kwargs` must be a dictionary, got {type(kwargs).__name__}; write "
            'kwargs={"x": x}'
        )
    return args, kwargs or {}


# The rows.


def read_rows(
    objective: Objective, estimators: Sequence[str | Estimator] | None, temperatures: Any
) -> list[RowSettings]:
    """The rows, for the straight-through sites of a guide."""
    if hasattr(temperatures, "tolist"):  # a tensor or an array
        temperatures = temperatures.tolist()
    _require_list("temperatures", temperatures, "[0.5]")
    taus = [read_number(OWNER, "temperatures", each, example="[0.5]") for each in temperatures]
    sites = _straight_through_sites(objective)
    if estimators is None:
        estimators = _names_for(sites)
    _require_list("estimators", estimators, '["reinmax"]')
    functions = list(zip(_labels(estimators), map(_as_it_is, estimators), strict=True))
    of_counts = not any(isinstance(site, FamilyStraightThrough) for site in sites)
    _require_choice(sites, estimators, of_counts)
    return [
        RowSettings(label, function, tau, of_counts)
        for label, function in functions
        for tau in (taus if takes_temperature(function) else [None])
    ]


def _as_it_is(estimator: str | Estimator) -> Estimator:
    """The estimator of a row; of one that learns a copy that does not."""
    function = named(estimator)
    return copy.deepcopy(function).eval() if isinstance(function, nn.Module) else function


def _straight_through_sites(objective: Objective) -> list[Any]:
    """Their distributions, without wrappers: of families and of counts."""
    bases = {name: innermost(distribution) for name, distribution in objective.sites.items()}
    kinds = (FamilyStraightThrough, StraightThrough)
    found = [base for base in bases.values() if isinstance(base, kinds)]
    if not found:
        names = {name: type(base).__name__ for name, base in bases.items()}
        raise ValueError(
            f"{OWNER}: `guide` must have a latent site with a straight-through distribution, got "
            f"{names}; write AutoRelaxed(model), or a straight-through class such as "
            "CategoricalStraightThrough in the guide"
        )
    return found


def _names_for(sites: Sequence[Any]) -> list[str]:
    """The estimators that suit all sites."""
    links = [site.link for site in sites if isinstance(site, FamilyStraightThrough)]
    others = [name for name in NAMES if all(name in suited(link) for link in links)]
    others.remove("second_order")
    if not links:
        others = ["third_order"] if _have_third_order(sites) else []
    return ["second_order", *others]


def _have_third_order(sites: Sequence[Any]) -> bool:
    return all(isinstance(site, NamedCount) and site.has_third_order for site in sites)


def _require_choice(sites: Sequence[Any], estimators: Sequence[Any], of_counts: bool) -> None:
    """Raise for an estimator that the counts of the sites do not have, or the others."""
    functions = [named(each) for each in estimators]
    without = [site for site in sites if not _have_third_order([site])]
    if third_order in functions and without:
        raise ValueError(
            f"{OWNER}: `estimators` must not have third_order unless all discrete sites are "
            f"counts that have it, got a {type(without[0]).__name__}; write "
            'estimators=["second_order"], and give third_order to the counts in the guide'
        )
    others = [each for each in functions if each is not second_order and each is not third_order]
    if of_counts and others:
        raise ValueError(
            f"{OWNER}: `estimators` must be second_order or third_order where all discrete sites "
            f"are counts, which have no other, got {name_of(others[0])!r}; write "
            'estimators=["second_order"]'
        )


def _require_list(name: str, given: Any, example: str) -> None:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise TypeError(
            f"{OWNER}: `{name}` must be a list of one or more, got {given!r}; write "
            f"{name}={example}"
        )


def _labels(estimators: Sequence[str | Estimator]) -> list[str]:
    """How the estimators print, numbered where two print alike."""
    labels = [each if isinstance(each, str) else name_of(each) for each in estimators]
    if len(set(labels)) < len(labels):
        return [f"{i}: {label}" for i, label in enumerate(labels)]
    return labels


# The parameters.


def choose_parameters(parameters: dict[str, Tensor], params: Params | None) -> dict[str, Tensor]:
    """The parameters that `params` names, of those that the guide has."""
    if not parameters:
        raise ValueError(
            f"{OWNER}: `guide` must have parameters, got none with a gradient; write "
            'pyro.param("logits", torch.zeros(3)) inside the guide, or pyro.module("net", net) '
            "for a network"
        )
    if params is None:
        return parameters
    if not callable(params):
        params = _function_of(params, parameters)
    chosen = {name: leaf for name, leaf in parameters.items() if params(name)}
    if not chosen:
        raise _no_such_parameter("a function that is true of none", parameters)
    return chosen


def _function_of(params: Any, parameters: dict[str, Tensor]) -> Callable[[str], bool]:
    """Whether a name is one of `params`, or is in a module of that name."""
    wanted = [params] if isinstance(params, str) else params
    if not isinstance(wanted, Sequence) or not all(isinstance(each, str) for each in wanted):
        raise TypeError(
            f"{OWNER}: `params` must be a name, a list of names or a function of a name, got "
            f"{params!r}; write params={list(parameters)[:1]}"
        )
    for each in wanted:
        if not any(_is_in(name, each) for name in parameters):
            raise _no_such_parameter(repr(each), parameters)
    return lambda name: any(_is_in(name, each) for each in wanted)


def _is_in(name: str, wanted: str) -> bool:
    """Pyro names a parameter by a path of dots, after the name of its module and "$$$"."""
    return name == wanted or name.startswith((f"{wanted}.", f"{wanted}$$$"))


def _no_such_parameter(got: str, parameters: dict[str, Tensor]) -> ValueError:
    names = list(parameters)
    return ValueError(
        f"{OWNER}: `params` must choose from the parameters of the guide, {names}, got {got}; "
        f"write params={names[:1]}"
    )
