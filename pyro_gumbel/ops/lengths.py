# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Which rows of a ranking count, where rankings of different lengths share a batch."""

import torch
from torch import Tensor

__all__ = ["rows_within"]


def rows_within(lengths: Tensor, rows: int) -> Tensor:
    """Which of `rows` rows are among the first `lengths`; the last dimension is over the rows.

    :param lengths: a tensor of integers.
    """
    return torch.arange(rows, device=lengths.device) < lengths.unsqueeze(-1)
