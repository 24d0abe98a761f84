# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Standard Gumbel and logistic noise as distributions, for sites that are sampled in its place."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_gumbel.ops import noise

__all__ = ["StandardGumbel", "StandardLogistic"]


class _Standard:
    """Location 0 and scale 1, drawn to full precision in both tails."""

    draw: ClassVar[Callable[..., Tensor]]
    loc: Tensor
    _extended_shape: Callable[[Any], torch.Size]

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return self.draw(shape, dtype=self.loc.dtype, device=self.loc.device)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.rsample(sample_shape)


class StandardLogistic(_Standard, dist.Logistic):
    """The noise of a binary variable."""

    draw = staticmethod(noise.logistic)


class StandardGumbel(_Standard, dist.Gumbel):
    """The noise of a category."""

    draw = staticmethod(noise.gumbel)
