# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""One of several distributions, chosen by a one-hot vector or by an index.

A straight-through sample passes the derivative of the log likelihood back to the probabilities.
That is accurate where the log likelihood is linear or quadratic in the one-hot vector z, and wrong
where it is more curved, as that of ``Normal(z @ means, z @ scales)`` is. On one-hot vectors every
log likelihood has a linear form:

.. math::

    \log p(x \mid z) = \sum_k z_k \log p_k(x), \qquad
    \frac{\partial \log p(x \mid z)}{\partial z_k} = \log p_k(x).

Its gradient in z is the table of the log probabilities under all components. With this gradient the
second-order estimators are unbiased. An `IndexTensor` has the same gradient, in the one-hot vector
of its draw.

**Impossible values.** Where :math:`\log p_k(x) = -\infty`, the sum leaves the component out unless
:math:`z_k > 0`, and is :math:`-\infty` if so. The gradient in z needs a finite number there. With 0
an impossible component would seem more likely than a possible one, whose log probability may be far
below 0. With -1e30 the gradients of all other components would be lost. So it is 100 nats below the
lowest finite entry of the table.
"""

import copy
from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_gumbel._tracing import in_program
from pyro_gumbel._validation import brief_int, broadcast, check_value, read_validate_args, require
from pyro_gumbel.constraints import simplex
from pyro_gumbel.distributions.base import expanded
from pyro_gumbel.ops.autograd import zero_with_gradient
from pyro_gumbel.ops.precision import cast
from pyro_gumbel.tensors.index_tensor import OutcomeTensor
from pyro_gumbel.tensors.lookups import entries
from pyro_gumbel.tensors.subclass import plain

__all__ = ["SelectedComponent"]

BELOW_THE_LOWEST = 100.0  # nats, where a log probability is not finite


class SelectedComponent(TorchDistribution):
    r"""The distribution of x given which of K components it comes from.

    .. math:: \log p(x \mid z) = \sum_k z_k \log p_k(x)

    for a one-hot vector z, and :math:`\log p_z(x)` for an index z. It is linear in z, so a
    straight-through sample z gets the log probabilities under all components as its gradient: one
    of a `CategoricalStraightThrough`, or an index of an `IndexStraightThrough`. With the
    second-order estimators that gradient is unbiased, however the components differ.
    ``Normal(z @ means, z @ scales)`` has the same values and a biased gradient. For an index in a
    model in `relaxed` this class is not needed: there ``Normal(means[z], scales[z])`` has the same
    gradient.

    >>> z = torch.tensor([0, 2, 2, 1])
    >>> one_hot = torch.nn.functional.one_hot(z).float()
    >>> components = pyro.distributions.Normal(torch.tensor([-2.0, 0.0, 2.0]), 0.5)
    >>> [SelectedComponent(each, components).mean.tolist() for each in (z, one_hot)]
    [[-2.0, 2.0, 2.0, 0.0], [-2.0, 2.0, 2.0, 0.0]]

    Components of vectors need an event dimension, so that their last batch dimension is K: with
    means of the shape (K, D), ``Normal(means, scales).to_event(1)``.

    A value that is impossible under a component has `log_prob` -inf if z selects that component.
    The gradient in z counts it as 100 nats less likely than under the worst possible component.

    For a relaxed z, with entries between 0 and 1, `log_prob`, `mean` and `variance` are the same
    sums, and `sample` takes the component of the largest entry. The weighted sum of log
    probabilities is then not normalised.

    :param z: one-hot vectors, floats of the shape (..., K); or indices from 0 to K - 1, integers of
        the shape (...), which have a gradient if an `IndexStraightThrough` drew them. Floats are
        always one-hot vectors, and integers always indices.
    :param components: a distribution with the components in its last batch dimension, of the batch
        shape (..., K). The batch shape without K broadcasts with that of z.
    :param validate_args: whether to check the values of z, and of the argument of `log_prob`; None
        for the default of `torch.distributions`. Shapes and types are always checked.
    :raises ValueError: for a wrong value or shape.
    :raises TypeError: for an argument of another type.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # the constructor checks
    has_enumerate_support = False
    has_rsample = False  # in an instance that of the components

    linear_in = ("z",)  # whose outcomes its log_prob passes on

    def __init__(
        self, z: Tensor | int, components: Distribution, validate_args: bool | None = None
    ) -> None:
        owner = type(self).__name__
        self.components: Any = _read_components(owner, components)
        self.z = _read_selection(owner, z, self._number)
        self.has_rsample = bool(components.has_rsample)
        if validate_args is not None:
            validate_args = read_validate_args(owner, validate_args)
        super().__init__(self._joint_batch_shape(), components.event_shape, validate_args)
        if self._validate_args and not in_program():
            self._check_values()

    @property
    def _number(self) -> int:
        """K."""
        return int(self.components.batch_shape[-1])

    @property
    def _is_index(self) -> bool:
        return not self.z.is_floating_point()

    def _joint_batch_shape(self) -> torch.Size:
        selections = self.z.shape if self._is_index else self.z.shape[:-1]
        theirs = self.components.batch_shape[:-1]
        joint = broadcast(selections, theirs)
        if joint is None:
            raise ValueError(
                f"{type(self).__name__}: the batch shape of `z` must broadcast with that of "
                f"`components` without its last dimension, {tuple(theirs)}, got "
                f"{tuple(selections)}; write .to_event(1) after components whose last dimension is "
                "that of vectors"
            )
        return joint

    def _check_values(self) -> None:
        """Raise a ValueError unless z selects components."""
        owner, last, z = type(self).__name__, self._number - 1, plain(self.z)
        if self._is_index:
            require(
                (z >= 0) & (z <= last),
                f"{owner}: an index `z` must be from 0 to {last}",
                z,
                "write a float one-hot vector, z.float(), if these integers are one",
            )
        else:
            require(
                simplex.check(z),
                f"{owner}: `z` must be one-hot over its last dimension, or not below 0 with sum 1",
                z,
                "write z.softmax(-1) if these are logits",
            )

    def expand(self, batch_shape: torch.Size, _instance: Self | None = None) -> Self:
        """The same distribution over a larger batch, without copying a tensor."""
        return expanded(self, batch_shape, _instance)

    def __repr__(self) -> str:
        name, shape = type(self).__name__, tuple(self.z.shape)
        return f"{name}(z: {shape}, components: {self.components})"

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of the components; if theirs differ, all values that one of them can have."""
        theirs = self.components.support
        return _OfAComponent(theirs) if _has_parameters(theirs) else theirs

    def log_prob(self, value: Tensor) -> Tensor:
        """<z, log p(value)>, linear in z and differentiable in it."""
        self._validate_sample(value)
        log_probs = self._log_probs(value)
        log_prob = _weighted_sum(self.z, log_probs, _floor(log_probs.detach()))
        return log_prob.expand(broadcast(log_prob.shape, self._batch_shape))  # type: ignore[arg-type]

    def _log_probs(self, value: Tensor) -> Tensor:
        """The log probabilities under all components, which are the last dimension."""
        value = value.unsqueeze(-1 - self.event_dim)
        log_probs = _without_validation(self.components).log_prob(value)
        support = self.components.support
        if not _has_parameters(support):
            return log_probs
        return torch.where(support.check(value), log_probs, -torch.inf)

    def _validate_sample(self, value: Tensor) -> None:
        """Raise unless `value` has a legal type and shape; with validation, is in the support."""
        owner = type(self).__name__
        check_value(owner, value, self._batch_shape, self._event_shape, integers=True)
        if self._validate_args and not in_program():
            require(
                self.support.check(plain(value)),
                f"{owner}: `value` must be in the support of a component",
                value,
                f"{owner}(..., validate_args=False) gives it the log_prob of the components",
            )

    @property
    def mean(self) -> Tensor:
        """The mean of the selected component, linear in z."""
        return self._moment(self.components.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of the selected component, linear in z."""
        return self._moment(self.components.variance)

    def _moment(self, moments: Tensor) -> Tensor:
        selected = _weighted_sum(self._over_event(self.z), self._components_last(moments), 0.0)
        return selected.expand(self._batch_shape + self._event_shape)

    def _components_last(self, values: Tensor) -> Tensor:
        """Values of all components, with those as the last dimension, after the event."""
        return values.movedim(-1 - self.event_dim, -1)

    def _over_event(self, z: Tensor) -> Tensor:
        """z with dimensions of size 1 for the event."""
        categories = () if self._is_index else (self._number,)
        batch = z.shape[: z.dim() - len(categories)]
        return z.reshape(batch + (1,) * self.event_dim + categories)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw of the selected component. Draws all of them."""
        with torch.no_grad():
            return self._selected(self._wide_components().sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw with the gradient of the component; that in z is linear in the draws of all.

        A draw that is not finite passes no gradient to z.
        """
        draws = self._wide_components().rsample(torch.Size(sample_shape))
        finite = torch.where(draws.isfinite(), draws, 0.0).detach()
        linear = _weighted(self._over_event(self.z), self._components_last(finite))
        return self._selected(draws) + zero_with_gradient(linear)

    def _wide_components(self) -> Any:
        """The components over the whole batch, so that every element has its own draw."""
        return self.components.expand(torch.Size((*self._batch_shape, self._number)))

    def _selected(self, draws: Tensor) -> Tensor:
        """The draw of one component, of those of all of them."""
        z = self.z.detach()
        index = z if self._is_index else z.argmax(-1)
        index = index.reshape(index.shape + (1,) * self.event_dim)
        return entries(self._components_last(draws), index)


class _OfAComponent(constraints.Constraint):
    """The values that one component or another can have.

    :param of_components: the support of the components, which are the last batch dimension of its
        parameters.
    """

    def __init__(self, of_components: constraints.Constraint) -> None:
        self.of_components = of_components
        self.is_discrete = of_components.is_discrete
        self.event_dim = of_components.event_dim

    def check(self, value: Tensor) -> Tensor:
        return self.of_components.check(value.unsqueeze(-1 - self.event_dim)).any(-1)

    def __repr__(self) -> str:
        return f"of a component: {self.of_components}"


def _has_parameters(constraint: Any) -> bool:
    """Whether a constraint depends on a tensor, as that of a uniform distribution does."""
    parts = list(vars(constraint).values())
    while parts:
        part = parts.pop()
        if isinstance(part, Tensor):
            return True
        parts += vars(part).values() if isinstance(part, constraints.Constraint) else ()
    return False


def _without_validation(distribution: Distribution) -> Any:
    """A copy that scores every value: one component may not exclude what another one draws."""
    copied = copy.copy(distribution)
    for name, part in vars(copied).items():
        if isinstance(part, Distribution):
            setattr(copied, name, _without_validation(part))
    copied._validate_args = False
    return copied


def _floor(log_probs: Tensor) -> Tensor:
    """What stands for log probabilities that are not finite: 100 nats below the lowest finite."""
    finite = log_probs.isfinite()
    lowest = torch.where(finite, log_probs, torch.inf).amin(-1, keepdim=True)
    return torch.where(lowest.isfinite(), lowest, 0.0) - BELOW_THE_LOWEST


def _weighted_sum(z: Tensor, table: Tensor, floor: Tensor | float) -> Tensor:
    """The sum of z * table over the last dimension, where 0 times infinity is 0.

    :param z: one-hot vectors or indices.
    :param floor: what stands for entries that are not finite, in the gradient of z.
    """
    finite = table.isfinite()
    total = _weighted(z, torch.where(finite, table, floor))
    infinite = torch.where(finite, 0.0, table.detach())
    if not z.is_floating_point():
        return total + entries(infinite, plain(z))
    return total + torch.where(z == 0, 0.0, infinite).sum(-1)


def _weighted(z: Tensor, table: Tensor) -> Tensor:
    """The sum of z * table over the last dimension of a finite table, for an index its entry."""
    if not z.is_floating_point():
        return entries(table, z)
    return (cast(z, torch.promote_types(z.dtype, table.dtype)) * table).sum(-1)


def _read_components(owner: str, components: Any) -> Distribution:
    expected = f"{owner}: `components` must be a distribution with the components in its last batch"
    line = "write pyro.distributions.Normal(means, scales) with means of the shape (K,)"
    if not isinstance(components, Distribution):
        raise TypeError(f"{expected} dimension, got {type(components).__name__}; {line}")
    if not components.batch_shape or not components.batch_shape[-1]:
        shapes = f"batch_shape {tuple(components.batch_shape)}"
        raise ValueError(f"{expected} dimension, at least one, got {shapes}; {line}")
    return components


def _read_selection(owner: str, z: Any, number: int) -> Tensor:
    """One-hot vectors over `number` components, or indices."""
    if isinstance(z, int) and not isinstance(z, bool):
        if not 0 <= z < number:
            raise ValueError(
                f"{owner}: an index `z` must be from 0 to {number - 1}, got {brief_int(z)}; write "
                f"z={number - 1} for the last component"
            )
        z = torch.tensor(z, device="cpu")  # indexes components on every device
    expected = f"{owner}: `z` must be a tensor of one-hot vectors, of floats, or of integer indices"
    if not isinstance(z, Tensor):
        raise TypeError(f"{expected}, got {type(z).__name__}; write torch.as_tensor(z)")
    if z.is_complex() or z.dtype == torch.bool:
        raise TypeError(
            f"{expected}, got a tensor of {z.dtype}; write z.float() for one-hot vectors, or "
            "z.long() for indices"
        )
    if z.is_floating_point() and z.shape[-1:] != (number,):
        raise ValueError(
            f"{owner}: one-hot `z` must have the {number} components of `components` in its last "
            f"dimension, got shape {tuple(z.shape)}; write z.long() if it is an index, or "
            ".to_event(1) after components whose last dimension is that of vectors"
        )
    return z if isinstance(z, OutcomeTensor) else plain(z)
