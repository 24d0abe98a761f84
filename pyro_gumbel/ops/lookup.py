# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The entries of a table that indices select, batch by batch."""

import torch
from torch import Tensor

__all__ = ["entry"]


def entry(table: Tensor, index: Tensor) -> Tensor:
    """The entry of the last dimension of a table that an index selects.

    :param index: integers; their shape broadcasts with that of the table without its last
        dimension.
    """
    indices, whole = torch.broadcast_tensors(index.long().unsqueeze(-1), table)
    return whole.gather(-1, indices[..., :1]).squeeze(-1)
