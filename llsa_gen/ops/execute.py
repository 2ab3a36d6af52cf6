# SPDX-License-Identifier: Apache-2.0
"""Running a plan with built kernels: one binder per kind of stage says what its kernel is called with.

On a CPU the kernels compute in fp32. Half-precision tensors are widened once; what a plan stores in the input dtype is
rounded to it between stages, so that every stage reads the same values as on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from llsa_gen.ir.types import Stage
from llsa_gen.jit import Kernel
from llsa_gen.ops.checks import MAX_LENGTH
from llsa_gen.ops.launch import Arguments, launch, readable, strides
from llsa_gen.spec import Spec
from llsa_gen.stages import Attend, Coarsen, Select
from llsa_gen.stages.attend import list_levels

Step = tuple[Stage, Kernel]
"""A stage of a plan with the kernel that it launches."""


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
        """Whether tensors of the input dtype are held as fp32."""
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

    def empty(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """A new [B,H,rows,width] tensor."""
        counts = self.counts
        return self.tensors["q"].new_empty((counts["batch"], counts["heads"], rows, width), dtype=dtype)


def run_steps(steps: Sequence[Step], run: Run) -> dict[str, Tensor]:
    """Runs some stages of a plan in order and returns all tensors by name."""
    for stage, kernel in steps:
        bind = {"coarsen": _coarsen, "select": _select, "attend": _attend}[stage.kind]
        arguments = bind(stage, run)  # type: ignore[operator]  # each binder takes the stage of its own kind
        launch(kernel, arguments)
        if stage.kind == "coarsen" and run.widened:
            pools = run.tensors[_pools_name(stage)]
            pools.copy_(pools.to(run.dtype))
    return run.tensors


def widen(tensor: Tensor) -> Tensor:
    """A tensor as the kernels of its device read it."""
    if tensor.device.type == "cpu" and tensor.dtype != torch.float32:
        return tensor.to(torch.float32, memory_format=torch.contiguous_format)
    return readable(tensor)


def source_span(block: int, source_level: int, levels: int) -> int:
    """Tokens below a row that a coarsening pass reads, kept so small that its top level's span fits 32 bits.

    No sequence is longer than `MAX_LENGTH`, so a node of at least that span covers all tokens whatever its exact span.
    """
    return int(min(block**source_level, MAX_LENGTH // block**levels))


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


def _coarsen(stage: Coarsen, run: Run) -> Arguments:
    spec, sizes = run.spec, run.sizes
    source = run.tensors[stage.source]
    width = source.shape[-1]
    name = _pools_name(stage)
    if name not in run.tensors:
        run.tensors[name] = run.empty(sizes.starts[-1], width, run.tensors["q"].dtype)
    sums = run.tensors[name]
    if stage.emit_sums:
        sums = run.empty(sizes.nodes[stage.levels[-1] - 1], width, torch.float32)
        run.tensors[stage.outputs[-1]] = sums
    return {
        **run.counts,
        **strides("x", source),
        "x": source,
        "pools": run.tensors[name],
        "sums": sums,
        "length": source.shape[2],
        "tokens": sizes.length,
        "span": source_span(spec.block, stage.source_level, len(stage.levels)),
        "first": sizes.starts[stage.levels[0] - 1],
        "pool_rows": sizes.starts[-1],
    }


def _select(stage: Select, run: Run) -> Arguments:
    sizes, level = run.sizes, stage.level
    found = run.empty(sizes.nodes[level - 1], run.spec.topks[level - 1], torch.int32)
    run.tensors[f"idx{level}"] = found
    return {
        **run.counts,
        "q_pools": run.tensors["q_pools"],
        "k_pools": run.tensors["k_pools"],
        "parents": run.tensors[f"idx{level + 1}"] if stage.candidates == "children" else found,
        "idx": found,
        "nodes_q": found.shape[2],
        "nodes_k": found.shape[2],
        "q_rows": sizes.starts[-1],
        "k_rows": sizes.starts[-1],
        "first_q": sizes.starts[level - 1],
        "first_k": sizes.starts[level - 1],
    }


def _attend(stage: Attend, run: Run) -> Arguments:
    pooled = stage.part == "coarse"
    keys, values = (run.tensors[name] for name in (("k_pools", "v_pools") if pooled else ("k", "v")))
    o = _output(stage, run, values.shape[-1])
    lse = torch.empty(o.shape[:3], dtype=torch.float32, device=o.device)
    levels = list_levels(stage.segments, run.spec.enrichment)
    carried = {name: run.tensors[name] for name in ("o_carry", "lse_carry") if stage.carry}
    run.tensors.update(dict(zip(stage.outputs, (o, lse), strict=True)))
    q = run.tensors["q"]
    return {
        **run.counts,
        **strides("q", q),
        **strides("k", keys),
        **strides("v", values),
        **strides("o", o),
        **carried,
        **{f"idx_{level}": run.tensors[f"idx{level}"] for level in levels},
        **run.sizes.numbers,
        "q": q,
        "k": keys,
        "v": values,
        "o": o,
        "lse": lse,
        "places": keys.shape[2],
        "scale": run.scale,
    }


def _output(stage: Attend, run: Run, width: int) -> Tensor:
    """A new tensor for o, in the memory order that the caller wants, or for the carried fp32 one."""
    q = run.tensors["q"]
    if not stage.final or not run.tokens_first:
        return run.empty(q.shape[2], width, q.dtype if stage.final else torch.float32)
    shape = (q.shape[0], q.shape[2], q.shape[1], width)
    return torch.empty(shape, dtype=q.dtype, device=q.device).transpose(1, 2)


def _pools_name(stage: Stage) -> str:
    assert isinstance(stage, Coarsen)
    return f"{stage.operand}_pools"
