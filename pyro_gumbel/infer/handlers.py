# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The handler that makes the latent discrete sites of a model differentiable."""

import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyro.distributions import ZeroInflatedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_gumbel._validation import Temperature
from pyro_gumbel.distributions.outcome_distribution import (
    evaluated_whole,
    outcome_distributions,
)
from pyro_gumbel.distributions.relaxation import relax, require_settings
from pyro_gumbel.distributions.relaxed import Relaxed
from pyro_gumbel.distributions.sample_cache import share_content
from pyro_gumbel.distributions.wrappers import innermost
from pyro_gumbel.estimators import Estimator
from pyro_gumbel.infer.site_choice import SiteChoice
from pyro_gumbel.temperature import TemperatureSchedule
from pyro_gumbel.tensors.drawn_sample import DrawnSample, without_draw
from pyro_gumbel.tensors.index_tensor import OutcomeTensor, as_derivative

__all__ = ["RelaxedMessenger", "at_site", "relaxed", "require_continuous_log_prob"]


class RelaxedMessenger(Messenger):
    """The handler behind `relaxed`, which documents the arguments."""

    def __init__(
        self,
        temperature: Temperature | None = None,
        *,
        hard: bool = True,
        estimator: str | Estimator | None = None,
        sites: Collection[str] | None = None,
        outcomes: bool | None = None,
    ) -> None:
        super().__init__()
        require_settings("relaxed", temperature, hard, estimator)
        self.temperature = temperature
        self.outcomes = outcomes
        self._contexts: list[ExitStack] = []  # of the runs that are under way
        self.options: dict[str, Any] = {"hard": hard, "estimator": estimator}
        self.choice = SiteChoice("relaxed", sites)

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return functools.update_wrapper(super().__call__(fn), fn, updated=())

    def __enter__(self) -> Any:
        context = ExitStack()
        if self.outcomes is not False:
            context.enter_context(outcome_distributions())
        self._contexts.append(context)
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:
        """What the model reads. The site itself keeps the value that was drawn."""
        value = msg["value"]
        if isinstance(value, OutcomeTensor):
            msg["value"] = as_derivative(value) if self.outcomes is False else value
        elif isinstance(value, Tensor) and not msg["is_observed"]:
            msg["value"] = self._read(value, msg["fn"])

    def _read(self, value: Tensor, distribution: Any) -> Tensor:
        """Drawn floats, whose derivative may end, with outcomes from the start or without any."""
        if isinstance(value, DrawnSample):
            if self.outcomes is None:
                return value
            if self.outcomes:
                return value.draw.with_outcomes(value) if value.draw else value
        elif not isinstance(innermost(distribution), Relaxed):
            return value
        return share_content(value, without_draw(value))

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and isinstance(msg["value"], OutcomeTensor):
            msg["fn"] = evaluated_whole(msg["fn"])
        if site_is_subsample(msg) or not self.choice.chooses(msg):
            return
        with at_site("relaxed", msg["name"]):
            require_continuous_log_prob(msg["fn"])
            new = relax(msg["fn"], self.temperature, **self.options)
        if new is not msg["fn"]:
            self._warn_if_once_observed(msg["name"])
        msg["fn"] = new
        msg["infer"] = {key: each for key, each in msg["infer"].items() if key != "enumerate"}

    def _warn_if_once_observed(self, name: str) -> None:
        """Warn, once, that a site becomes continuous which had data in an earlier call."""
        choice = self.choice
        if self.options["hard"] or choice.names is not None or name not in choice.observed:
            return
        choice.warn_once(
            {name},
            f'relaxed: at pyro.sample("{name}", ...): expected data, as in an earlier call, got '
            "none, so that the site is continuous in this call; to predict write Predictive(model, "
            "guide=guide) of the model that is not relaxed, or name the sites to relax with "
            "relaxed(..., sites=[...])",
            stacklevel=3,
        )

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._contexts.pop().close()
        if exception[0] is None:
            self.choice.check(stacklevel=2)


def relaxed(
    model: Callable[..., Any] | None = None,
    temperature: Temperature | None = None,
    *,
    hard: bool = True,
    estimator: str | Estimator | None = None,
    sites: Collection[str] | None = None,
    outcomes: bool | None = None,
) -> Any:
    """Make the latent discrete sites of a model or guide differentiable.

    In each call, the distribution of every latent discrete site is replaced by its counterpart
    from `relax`: one that draws discrete values and has a surrogate gradient (`hard=True`), or a
    continuous relaxation (`hard=False`), which needs a temperature. Without settings the gradient
    is the second-order one; subsets and rankings have `gumbel_softmax` at temperature 1. Observed
    and continuous sites are left alone.

    What is made of an integer site z has outcomes: its values for every category of z. A
    distribution such as ``Normal(locs[z], scales[z])`` computes its log density for each of them.
    The gradient is then exact on average if the sites of the guide are independent. Put the model
    in `relaxed`, and not only the guide: distributions do this only inside of it.

    >>> @relaxed
    ... def model(x, locs=torch.tensor([-2.0, 2.0]), scales=torch.tensor([0.5, 1.0])):
    ...     z = pyro.sample("z", pyro.distributions.Categorical(torch.ones(2)))
    ...     pyro.sample("x", pyro.distributions.Normal(locs[z], scales[z]), obs=x)

    Sites marked ``infer={"enumerate": ...}``, which `TraceEnum_ELBO` sums over, are left alone too,
    unless `sites` names them. A site that it names loses the mark and is drawn. To draw all,
    write::

        relaxed(poutine.infer_config(model, lambda site: {"enumerate": None}))

    Three ways to write it::

        relaxed(model)

        @relaxed
        def model(): ...

        with relaxed(): ...

    The last two take settings by name, as in ``@relaxed(temperature=0.5)``.

    >>> model = relaxed(lambda: pyro.sample("n", pyro.distributions.Poisson(3.0)))
    >>> pyro.poutine.trace(model).get_trace().nodes["n"]["fn"]
    PoissonStraightThrough(rate: 3.0)

    Apply `condition` first and `relaxed` second: ``relaxed(condition(model, data))``. In the
    other order the site is relaxed before it becomes observed. With `hard=False` its data are then
    evaluated under a continuous density, with a warning if they are discrete.

    A site whose data are an argument of the model is latent in a call without them, and is relaxed
    too. So predict with the model that is not relaxed, ``Predictive(model, guide=guide)``, or name
    the sites to relax. With `hard=False` a warning names, once, each site that becomes continuous
    in this way after an earlier call had data for it.

    Sources: Titsias and Lázaro-Gredilla (2015), https://arxiv.org/abs/1503.01494; Maddison, Mnih
    and Teh (2017), https://arxiv.org/abs/1611.00712; Jang, Gu and Poole (2017),
    https://arxiv.org/abs/1611.01144; Liu, Dong, Liu, Yu and Gao (2023),
    https://arxiv.org/abs/2304.08612.

    :param model: the model or guide; None for a decorator or a context manager.
    :param temperature: as in `relax`, for each site that is relaxed; a function is called at each.
    :param hard: as in `relax`.
    :param estimator: as in `relax`. `"third_order"` is for counts alone: where the model has other
        sites too, write ``relaxed(relaxed(model, estimator="third_order", sites=[...]))``.
    :param sites: the names of the sites to relax, marked or not; None for all that are latent,
        discrete and not marked. With `obs_mask`, Pyro splits a site "y" into an observed and a
        latent part; "y" and "y_unobserved" both name the latent one. A warning names, once, those
        that were observed in every call so far.
    :param outcomes: None for outcomes of what is made of integer sites, and of binary and one-hot
        ones where they become integers or truth values, as in ``table[z.long()]``; True for those
        of all that is made of these, as ``z * a + (1 - z) * b`` and ``z @ table``; False for the
        derivative in the value of every site, with the gradient of the estimator. The setting of
        the model decides what it makes of its sites. A guide that makes other sites of binary or
        one-hot ones needs True.
    :returns: a callable with the signature of `model`, or a handler where `model` is None.
    :raises TypeError: for anything but a model or guide; at a site that cannot be relaxed, which
        the message names.
    :raises ValueError: for settings that do not fit together, as in `relax`; at a site without
        third order, if that is the estimator; and at the end of the first complete run, for a name
        in `sites` that the model does not have.
    """
    _require_model(model)
    settings: dict[str, Any] = {"hard": hard, "estimator": estimator, "sites": sites}
    messenger = RelaxedMessenger(temperature, **settings, outcomes=outcomes)
    return messenger if model is None else messenger(model)


def _require_model(model: Any) -> None:
    """Raise a TypeError unless this is a model, a guide or None."""
    if isinstance(model, TemperatureSchedule) or not (model is None or callable(model)):
        raise TypeError(
            f"relaxed: `model` must be a model or guide, got {model!r}; write relaxed(model), or "
            "relaxed(temperature=0.5) for a decorator or a context manager with a temperature"
        )
    if isinstance(model, Distribution):
        raise TypeError(
            "relaxed: `model` must be a model or guide, got a distribution, "
            f"{type(model).__name__}; write relax(distribution)"
        )


def require_continuous_log_prob(distribution: Any) -> None:
    """Raise for a latent zero-inflated distribution.

    Its probability at 0 is not on the curve through the other probabilities, and the gradient in
    the value follows the curve.
    """
    base = innermost(distribution)
    if isinstance(base, ZeroInflatedDistribution):
        of_count = type(base.base_dist).__name__
        arguments = "rate" if of_count == "Poisson" else "..."
        raise TypeError(
            f"`distribution` must not be zero-inflated, got a {type(base).__name__}, which "
            "has an extra probability at 0 that a gradient in the value does not see; write two "
            'sites, gate = pyro.sample("gate", dist.Bernoulli(1 - zero)) and '
            f'count = pyro.sample("count", dist.{of_count}({arguments})), where zero is the gate '
            "of the zero-inflated one, and gate * count for the value"
        )


@contextmanager
def at_site(owner: str, name: str) -> Iterator[None]:
    """Put `owner` and the name of the site in front of the message of an error."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        kinds = (TypeError, ValueError, NotImplementedError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f'{owner}: at pyro.sample("{name}", ...): {error}') from error
