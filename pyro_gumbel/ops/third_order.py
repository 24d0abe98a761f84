# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

r"""Surrogates of counts that are unbiased for cubic losses.

Let D be a count with mean :math:`\mu` and variance V, and let primes be derivatives in a parameter.
Let f be a loss. The estimate w(D) f'(D) of (E f(D))' is unbiased for all polynomials f up to degree
m if

.. math:: E[w(D) D^j] = \frac{(E D^{j+1})'}{j + 1}, \qquad j = 0, \ldots, m - 1.

The w of least :math:`E w^2` is a polynomial of degree m - 1. These are the weights of He and Wu
(2026). For m = 2 they are those of the surrogate of a number in `pyro_gumbel.ops.second_order`.

**Third order** is m = 3. It needs the first four central moments only. Let :math:`\mu_3` and
:math:`\mu_4` be the third and fourth, and r = D - :math:`\mu`. The polynomial
:math:`q = r^2 - (\mu_3 / V) \, r - V` is orthogonal to 1 and r, and
:math:`E q^2 = \mu_4 - V^2 - \mu_3^2 / V`. The losses :math:`r^3/3`, :math:`r^2/2` and r, with
:math:`\mu` held constant in them, have the derivatives :math:`\mu_3'/3 + V \mu'`, :math:`V'/2` and
:math:`\mu'` of their means. So

.. math::
    w = \mu' + \frac{V'}{2 V} \, r
        + \Bigl( \frac{\mu_3'}{3} - \frac{\mu_3 V'}{2 V} \Bigr) \frac{q}{E q^2}.

**Families with** :math:`V = \mu + a \mu^2`. Here a = 0 for Poisson counts, -1/n for binomial counts
of n trials, 1/r for negative binomial counts of total count r, and 1 for geometric ones. They have

.. math::
    \mu_3 = V (1 + 2 a \mu), \qquad \mu_4 = 3 V^2 + V \bigl( (1 + 2 a \mu)^2 + 2 a V \bigr),

and so :math:`E q^2 = 2 (1 + a) V^2`. With :math:`(1 + 2 a \mu)^2 = 1 + 4 a V`,

.. math::
    w = \mu' + \frac{V'}{2 V} \, r
        - e \, \bigl( \mu' - \mu^2 (3 + 2 a \mu) \, a' \bigr), \qquad
    e = \frac{q}{12 (1 + a) V^2}
        = \frac{1}{12 V^2} \Bigl( \frac{D (D - 1)}{1 + a} - 2 \mu D + \mu^2 \Bigr).

For negative binomial counts with the odds o, :math:`\mu = r o`, the last bracket is
:math:`\mu' + o^2 (3 + 2 o) \, r'`. In the others a is not learnt, and it is :math:`\mu'`.

**One trial.** For n = 1 the polynomial q is 0 at both values, D = 0 and D = 1, and no weights are
unbiased for all cubic losses: z^2 asks for :math:`w(1) = p' / (2 p)`, and z^3 for
:math:`p' / (3 p)`. There e is set to 0, which is second order.

**Poisson counts** have :math:`E[D g(D)] = \mu E[g(D + 1)]`. So E[w f'(D)] is
:math:`E[5 f'(D) + 8 f'(D + 1) - f'(D + 2)] / 12`, and by second order
:math:`E[f'(D) + f'(D + 1)] / 2`: the Adams-Moulton rules for the exact E[f(D + 1) - f(D)]. The
variance of w is :math:`1 + 1 / (18 \mu)` times that of second order.
"""

from torch import Tensor

__all__ = ["curvature_weight", "finite_or_zero"]


def curvature_weight(
    value: Tensor, mean: Tensor, variance: Tensor, share: Tensor | float
) -> Tensor:
    """e, a constant; 0 where the variance is 0, or so small that e overflows.

    All arguments broadcast with each other.

    :param share: 1 / (1 + a).
    """
    inverse = variance.detach().reciprocal()
    d, mu = value.detach() * inverse, mean.detach() * inverse
    e = share * d * (d - inverse) + mu * (mu - 2 * d)
    return finite_or_zero(e / 12)


def finite_or_zero(weight: Tensor) -> Tensor:
    """A weight; 0 where it overflows, which leaves second order."""
    return weight.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
