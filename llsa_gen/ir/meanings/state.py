# SPDX-License-Identifier: Apache-2.0
"""The tensors of a plan while it is interpreted, and how to take rows out of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from llsa_gen.ir import names
from llsa_gen.ir.sizes import IntSizes
from llsa_gen.ir.types import Piece, Plan, Stage


@dataclass
class State:
    """The tensors so far and what every stage needs to know."""

    plan: Plan
    sizes: IntSizes
    scale: float
    compute: torch.dtype
    values: dict[str, Tensor] = field(default_factory=dict)

    def read(self, piece: Piece) -> Tensor:
        """The rows of one level."""
        start = self._offset(piece)
        count = int(self.sizes.nodes(piece.level, self.plan.tensor(piece.tensor).side))
        return self.values[piece.tensor][:, :, start : start + count]

    def write(self, piece: Piece, rows: Tensor) -> None:
        """Stores the rows of one level of a tensor that may hold several."""
        tensor = self.plan.tensor(piece.tensor)
        if len(tensor.levels) == 1:
            self.values[piece.tensor] = rows
            return
        if piece.tensor not in self.values:
            shape = [int(self.sizes.extent(axis.extent)) for axis in tensor.axes]
            self.values[piece.tensor] = rows.new_zeros(shape)
        start = self._offset(piece)
        self.values[piece.tensor][:, :, start : start + rows.shape[2]] = rows

    def _offset(self, piece: Piece) -> int:
        tensor = self.plan.tensor(piece.tensor)
        before = tensor.levels[: tensor.levels.index(piece.level)]
        return sum(int(self.sizes.nodes(level, tensor.side)) for level in before)

    def rows(self, stage: Stage, operand: str, level: int) -> Tensor:
        """The rows of an operand that a stage reads, in the compute dtype."""
        return self.read(Piece(names.rows_of(stage.inputs, operand, level), level)).to(self.compute)

    def lists(self, level: int) -> Tensor:
        """The selected nodes of a level."""
        return self.values[names.lists(level)]

    def counts(self, level: int, side: str) -> Tensor:
        """c_l(j): the tokens that each node covers."""
        length, span = int(self.sizes.nodes(0, side)), self.plan.spec.block**level
        nodes = range(int(self.sizes.nodes(level, side)))
        return torch.tensor([min(span, length - node * span) for node in nodes], dtype=self.compute)


def regroup(rows: Tensor, span: int) -> Tensor:
    """``[B, H, n * span, D]`` as ``[B, H, n, span, D]``."""
    return rows.reshape(*rows.shape[:2], -1, span, rows.shape[-1])


def children(parents: Tensor, block: int, nodes: int) -> Tensor:
    """The ids of the children of every parent, -1 for those that do not exist."""
    ids = parents[..., None] * block + torch.arange(block)
    return torch.where((parents[..., None] >= 0) & (ids < nodes), ids, -1).flatten(-2)


def gather(rows: Tensor, ids: Tensor) -> Tensor:
    """Rows by id: ``[B, H, n, D]`` at ``[B, H, R, C]`` gives ``[B, H, R, C, D]``."""
    flat = ids.flatten(2)[..., None].expand(-1, -1, -1, rows.shape[-1])
    return rows.gather(2, flat).reshape(*ids.shape, rows.shape[-1])
