# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""What integrals over one variable share: tensors over nodes, in blocks that stay small."""

from collections.abc import Iterator

from torch import Tensor

__all__ = ["in_blocks", "minus_nodes"]


def in_blocks(elements: int, limit: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors over the nodes, their last dimension, into blocks of nodes.

    :param elements: how many elements a temporary tensor has for each node.
    :param limit: how many elements it may have for a block, if a block has more than one node.
    :param tensors: tensors with the same last dimension.
    """
    nodes = max(1, limit // max(1, elements))
    return zip(*(tensor.split(nodes, -1) for tensor in tensors), strict=True)


def minus_nodes(x: Tensor, nodes: Tensor) -> Tensor:
    """x_i - t for each node t in the last dimension but one, and each i in the last."""
    return x.unsqueeze(-2) - nodes.unsqueeze(-1)
