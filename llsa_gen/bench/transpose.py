# SPDX-License-Identifier: Apache-2.0
"""Inverted lists against a dense mask: the transpose alone, and the gradient of keys and values that reads it.

Both forms end in the same tables and the same gradient kernels. The dense form marks every selected pair in a mask,
key by row, and reads the rows of every key off it: quadratic in the blocks, in time and in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llsa_gen.bench.request import Request, available_memory
from llsa_gen.cost import measure
from llsa_gen.evidence.passes import Pass, passes
from llsa_gen.ir import names
from llsa_gen.ir.sizes import short_lists
from llsa_gen.lowering import lower
from llsa_gen.ops.execute import Step, run_steps
from llsa_gen.ops.transpose import transpose_indices
from llsa_gen.spec import Spec
from llsa_gen.stages import GradKVStage, InvertIndex
from llsa_gen.timing import CPU, Call, Rounds, in_turns
from llsa_gen.workloads import clustered_qkv

INVERTED, MASKED = "inverted lists", "dense mask"
FORMS = (INVERTED, MASKED)
TRANSPOSE, GRADIENT = "transpose", "key/value gradient"
MOST_OF_MEMORY = 0.25
"""The part of the available memory that a mask may take."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class TransposeRow:
    """One form that was timed at one length.

    Attributes:
        tokens: The length.
        part: The transpose of the finest lists, or the gradient of keys and values.
        form: Inverted lists, or a dense mask.
        seconds: Median.
        p10: 10th percentile.
        p90: 90th percentile.
        lowest: The shortest.
        samples: How often it was timed.
        held: Bytes of the tables, and of the mask where there is one.
        flops: Floating-point operations of the gradient; 0 for the transpose.
    """

    tokens: int
    part: str
    form: str
    seconds: float
    p10: float
    p90: float
    lowest: float
    samples: int
    held: int
    flops: int

    def to_data(self) -> dict[str, Any]:
        """All of it as plain data."""
        per_second = {"tokens_per_second": self.tokens / self.seconds, "flop_per_second": self.flops / self.seconds}
        return {**vars(self), **per_second}


def dense_transpose(idx: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """What `transpose_indices` returns for lists without repetitions, by way of a mask of all pairs."""
    batch, heads, rows, topk = idx.shape
    mask = torch.zeros(batch, heads, num_keys + 1, rows, dtype=torch.bool)
    keys = torch.where(idx < 0, num_keys, idx).long().transpose(2, 3)
    mask.scatter_(2, keys, value=True)
    mask = mask[:, :, :num_keys]
    entry, head, key, row = mask.nonzero(as_tuple=True)
    slot = entry * heads + head
    counts = torch.bincount(slot * num_keys + key, minlength=batch * heads * num_keys).view(batch, heads, num_keys)
    offsets = torch.nn.functional.pad(counts.cumsum(-1), (1, 0))
    begins = torch.nn.functional.pad(offsets[..., -1].flatten().cumsum(0), (1, 0))
    found = torch.full((batch * heads, rows * topk), -1, dtype=torch.int32)
    found[slot, torch.arange(len(row)) - begins[slot]] = row.int()
    return offsets.int(), found.view(batch, heads, -1)


def mask_bytes(idx: Sequence[Tensor]) -> int:
    """Bytes of the masks of some lists, one level after the other: the largest."""
    return max(lists.shape[0] * lists.shape[1] * lists.shape[2] * (lists.shape[2] + 1) for lists in idx)


@torch.inference_mode()
def measure_transpose(request: Request, tokens: int, say: Say) -> dict[str, Any]:
    """Measures one length.

    Returns:
        ``tokens``, ``slug``, ``check``, ``rows`` (of type `TransposeRow`) and ``notes``.
    """
    spec, notes = request.spec_at(tokens), dict[str, str]()
    say(f"{tokens:,} tokens: a backward pass, and both transposes compared")
    backward = list(passes(spec, clustered_qkv(spec, 1, request.heads, tokens), CPU))[-1]
    idx = [backward.run.tensors[names.lists(level)] for level in range(1, spec.depth + 1)]
    allowed = int(available_memory() * MOST_OF_MEMORY)
    masked = mask_bytes(idx) <= allowed
    if not masked:
        notes[MASKED] = f"a mask of {mask_bytes(idx) / 2**30:.1f} GiB is more than {allowed / 2**30:.1f} GiB"
    why = disagreements(idx) if masked else []
    rows: list[TransposeRow] = []
    if not why:
        say(f"{tokens:,} tokens: timing")
        half = request.seconds / 2
        rows = [*_alone(idx[0], tokens, half, masked=masked), *_gradient(spec, backward, half, masked=masked)]
    check = {"right": not why, "why": why, "compared": masked}
    return {"tokens": tokens, "slug": spec.slug, "check": check, "rows": rows, "notes": notes}


def disagreements(idx: Sequence[Tensor]) -> list[str]:
    """The levels at which the two transposes differ; both are integers in one right order."""
    why = []
    for level, lists in enumerate(idx, 1):
        pairs = zip(transpose_indices(lists, lists.shape[2]), dense_transpose(lists, lists.shape[2]), strict=True)
        if not all(torch.equal(mine, theirs) for mine, theirs in pairs):
            why.append(f"level {level}: the mask gives other lists than transpose_indices")
    return why


def _alone(idx: Tensor, tokens: int, seconds: float, *, masked: bool) -> list[TransposeRow]:
    """The finest lists transposed by both forms."""
    keys = idx.shape[2]
    calls: dict[str, Call] = {INVERTED: partial(transpose_indices, idx, keys)}
    if masked:
        calls[MASKED] = partial(dense_transpose, idx, keys)
    return _rows(calls, tokens, TRANSPOSE, seconds, [idx], 0)


def _gradient(spec: Spec, backward: Pass, seconds: float, *, masked: bool) -> list[TransposeRow]:
    """The gradient of keys and values of every level, from lists to the end, by both forms."""
    inverting = tuple(step for step in backward.steps if isinstance(step.stage, InvertIndex))
    kernels = tuple(step for step in backward.steps if isinstance(step.stage, GradKVStage))
    calls: dict[str, Call] = {INVERTED: partial(run_steps, (*inverting, *kernels), backward.run)}
    if masked:
        calls[MASKED] = partial(masked_gradient, spec, backward, kernels)
    batch, heads, tokens, _ = backward.run.tensors["q"].shape
    chosen = {step.stage.name for step in kernels}
    cost = measure(lower(spec, "backward", short_lists(spec, tokens)), tokens, batch, heads)
    flops = sum(int(stage.flops) for stage in cost.stages if stage.name in chosen)
    idx = [backward.run.tensors[names.lists(level)] for level in range(1, spec.depth + 1)]
    return _rows(calls, tokens, GRADIENT, seconds, idx, flops)


def masked_gradient(spec: Spec, backward: Pass, kernels: Sequence[Step]) -> dict[str, Tensor]:
    """The gradient kernels on tables that come from masks; how long lists are cut is given to it."""
    tables: dict[str, Tensor] = {}
    for level in range(1, spec.depth + 1):
        idx = backward.run.tensors[names.lists(level)]
        offsets, rows = dense_transpose(idx, idx.shape[2])
        tables |= {names.offsets(level): offsets, names.rows(level): rows.view(idx.shape)}
    return run_steps(kernels, replace(backward.run, tensors={**backward.run.tensors, **tables}))


def _rows(
    calls: dict[str, Call], tokens: int, part: str, seconds: float, idx: Sequence[Tensor], flops: int
) -> list[TransposeRow]:
    times = in_turns(calls, Rounds(seconds))
    tables = sum(4 * (lists.numel() + lists.shape[0] * lists.shape[1] * (lists.shape[2] + 1)) for lists in idx)
    held = {INVERTED: tables, MASKED: tables + mask_bytes(idx)}
    return [
        TransposeRow(
            tokens=tokens,
            part=part,
            form=form,
            seconds=found["median"],
            p10=found["p10"],
            p90=found["p90"],
            lowest=found["lowest"],
            samples=int(found["samples"]),
            held=held[form],
            flops=flops,
        )
        for form, found in times.items()
    ]
