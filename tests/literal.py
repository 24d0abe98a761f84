# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Literal slow versions of the matrices of estimators."""

import mpmath
import torch


def jacobian(p):
    """The Jacobian matrix of the softmax: diag(p) - p p'."""
    return torch.diag(p) - torch.outer(p, p)


def mve_matrix(x, tau, drawn):
    """J(p) M_i of minimum variance estimation for i = `drawn`, entry by entry, in 40 digits.

    The multipliers of row k solve A y = e_k (1 + tau p_k) / (1 + 2 tau p_k).
    """
    with mpmath.workdps(40):
        k, i = len(x), drawn
        e = [mpmath.exp(each) for each in x.tolist()]
        p = [each / sum(e) for each in e]
        a = mpmath.zeros(k)
        for j in range(k):
            for other in range(k):
                weight = 1 + tau * (p[j] + p[other])
                if j != other:
                    a[j, other] -= tau * p[j] * p[other] / weight
                    a[j, j] += (1 + tau * p[j]) * p[other] / weight
            a[j, j] += p[j] / (1 + 2 * tau * p[j])
        inverse, m = a**-1, mpmath.zeros(k)
        for row in range(k):
            y = [inverse[j, row] * (1 + tau * p[row]) / (1 + 2 * tau * p[row]) for j in range(k)]
            for j in range(k):
                above = (1 + tau * p[j]) * y[j] - tau * p[j] * y[i]
                m[row, j] = above / (1 + tau * (p[i] + p[j]))
        m[i, i] += tau / (1 + 2 * tau * p[i])
        means = [sum(p[row] * m[row, j] for row in range(k)) for j in range(k)]
        rows = [[float(p[row] * (m[row, j] - means[j])) for j in range(k)] for row in range(k)]
    return torch.tensor(rows, dtype=torch.float64)
