# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Surrogate gradients for discrete samples.

A discrete sample has no gradient. An estimator returns a differentiable *surrogate* of the sample.
The sample is used in the forward pass, and the gradient of the surrogate in the backward pass.

An estimator is a pure function::

    estimator(logits, temperature, perturbed, hard, link) -> surrogate

============= ============ ========================================================================
argument      symbol       meaning
============= ============ ========================================================================
`logits`      :math:`x`    the logits: log-odds of Bernoulli variables, otherwise log weights of
                           categories in the last dimension
`temperature` :math:`\tau` a positive tensor that broadcasts with the logits
`perturbed`   :math:`z`    the logits plus the noise that chose the sample: logistic noise for
                           Bernoulli variables, otherwise Gumbel noise
`hard`        :math:`D`    the discrete sample: 0 or 1, a one-hot vector or an m-hot vector
`link`                     the function from perturbed logits and a temperature to relaxed values
============= ============ ========================================================================

The logits, the perturbed logits, the sample and the surrogate have the same shape, that of the
draw. The link is a `Link` of `pyro_gumbel.links`. Its value `link(z, temperature)` depends on the
kind of the sample:

* Bernoulli: :math:`\operatorname{sigmoid}(z / \tau)`;
* one-hot vectors: :math:`\operatorname{softmax}(z / \tau)`;
* m-hot vectors (subsets of size m): :math:`\operatorname{sigmoid}(z / \tau - c)`, with c such that
  the entries sum to m;
* rankings: the rows are one-hot vectors, each with the logits of the categories that the rows
  before it have taken at -inf.

The formulas below are for one-hot vectors. With :math:`p` a vector of probabilities and :math:`u`
the gradient of the loss in the sample, they use the product

.. math:: J(p)\, u = p \odot (u - \langle p, u \rangle),

where :math:`J(p)` is the Jacobian matrix of the softmax. For Bernoulli variables it is
:math:`J(p)\, u = p (1 - p) u`.

`second_order`, `mve` and `reinmax_rao` are for straight-through distributions without a
temperature. They take no notice of the argument `temperature`; the last two have a parameter tau of
their own. Your own estimator is one of these if it has an attribute `takes_temperature` that is
False. `third_order` is for counts alone, whose surrogates are made of their moments.

Where a surrogate is infinite or NaN the sample keeps its value, and no gradient passes. With
validation on that is an error, unless the logit is infinite.
"""

from pyro_gumbel.estimators.choice import (
    NAMES,
    name_of,
    named,
    require_suited,
    resolved,
    resolved_for_family,
    straight_through_of,
    suited,
    takes_temperature,
    warn_of_temperature,
)
from pyro_gumbel.estimators.curvature import LearnedCurvature
from pyro_gumbel.estimators.functions import (
    Estimator,
    gapped,
    gumbel_rao,
    gumbel_softmax,
    mean_relaxed,
    mve,
    reinmax,
    reinmax_rao,
    second_order,
    straight_through,
    third_order,
)

__all__ = [
    "NAMES",
    "Estimator",
    "LearnedCurvature",
    "gapped",
    "gumbel_rao",
    "gumbel_softmax",
    "mean_relaxed",
    "mve",
    "name_of",
    "named",
    "reinmax",
    "reinmax_rao",
    "require_suited",
    "resolved",
    "resolved_for_family",
    "second_order",
    "straight_through",
    "straight_through_of",
    "suited",
    "takes_temperature",
    "third_order",
    "warn_of_temperature",
]
