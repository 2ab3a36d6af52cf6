# SPDX-License-Identifier: Apache-2.0
"""The tensors and sizes of one call of an op, by their names in the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import accumulate

import torch
from torch import Tensor

from llsa_gen.ops.pages import made_for
from llsa_gen.spec import Spec


@dataclass(frozen=True)
class Sizes:
    """What follows from a spec and a length; kept, because calls of one length follow each other.

    Attributes:
        length: Tokens of a sequence.
        nodes: Nodes of each level, level 1 first.
        starts: Row of the packed pools where each level begins, level 1 first, and the number of rows at the end;
            rows past the last node of a level are zero.
        numbers: Arguments of attention kernels, with log2 of the weight of the last node of every level, which may
            cover fewer tokens than the others.
    """

    length: int
    nodes: tuple[int, ...]
    starts: tuple[int, ...]
    numbers: Mapping[str, int | float]


@dataclass
class Run:
    """The tensors of one call, by their names in the plan.

    Attributes:
        spec: What is computed.
        tensors: Every tensor produced so far, [B,H,rows,...].
        dtype: The dtype of q, k and v.
        scale: The softmax scale.
        tokens_first: Whether o lies in memory as [B,N,H,D].
    """

    spec: Spec
    dtype: torch.dtype
    scale: float
    tokens_first: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def widened(self) -> bool:
        """Whether tensors of the input dtype are held as fp32, as kernels that are emulated want it."""
        return self.tensors["q"].dtype != self.dtype

    @cached_property
    def sizes(self) -> Sizes:
        """What follows from the spec and the length."""
        return sizes_of(self.spec, self.tensors["q"].shape[2])

    @cached_property
    def counts(self) -> dict[str, int]:
        """The sizes that every kernel takes."""
        q, k = self.tensors["q"], self.tensors["k"]
        return {"batch": q.shape[0], "heads": q.shape[1], "kv_heads": k.shape[1]}

    def let_go(self, name: str) -> None:
        """Forgets a tensor that nobody needs any more; q stays, the sizes are read off it."""
        if name != "q":
            self.tensors.pop(name, None)

    def empty(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """A new [B,H,rows,width] tensor."""
        counts, q = self.counts, self.tensors["q"]
        shape = (counts["batch"], counts["heads"], rows, width)
        make = partial(q.new_empty, shape, dtype=dtype)
        return made_for(q.device, math.prod(shape) * dtype.itemsize, make)()


def nodes(length: int, block: int, level: int) -> int:
    """Nodes of a level."""
    span: int = block**level
    return -(-length // span)


@lru_cache(maxsize=1024)
def sizes_of(spec: Spec, length: int) -> Sizes:
    """The sizes of a length."""
    counts = tuple(nodes(length, spec.block, level) for level in range(1, spec.depth + 1))
    rows = (-(-count // spec.block) * spec.block for count in counts)  # every level takes whole blocks of rows
    starts = tuple(accumulate(rows, initial=0))
    numbers: dict[str, int | float] = {"len_q": length}
    for level, (count, start) in enumerate(zip(counts, starts, strict=False), start=1):
        numbers |= {f"nodes_q_{level}": count, f"nodes_k_{level}": count, f"base_{level}": start}
        tail = length - (count - 1) * spec.block**level
        numbers[f"tail_pull_{level}"] = math.log2(spec.level_weight(level, tail))
    return Sizes(length, counts, starts, numbers)
