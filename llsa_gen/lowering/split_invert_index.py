# SPDX-License-Identifier: Apache-2.0
"""Split invert index: count, scan and scatter, each a launch over all chunks of rows, unless lists are short."""

from __future__ import annotations

from dataclasses import replace

from llsa_gen.ir import names, tensors
from llsa_gen.ir.types import Plan, Stage
from llsa_gen.stages import InvertIndex
from llsa_gen.stages.invert_index import Phase


def split_invert_index(plan: Plan) -> Plan:
    """Replaces every inversion of long lists by its three phases."""
    long = [stage for stage in plan.stages if isinstance(stage, InvertIndex) and stage.level not in plan.short]
    stages: list[Stage] = []
    for stage in plan.stages:
        stages += _phases(stage) if isinstance(stage, InvertIndex) and stage in long else [stage]
    split = len(plan.tensors) - len(plan.outputs)
    counts = (tensors.counts(stage.level) for stage in long)
    return replace(plan, tensors=(*plan.tensors[:split], *counts, *plan.tensors[split:]), stages=tuple(stages))


def _phases(whole: InvertIndex) -> list[Stage]:
    counts, rows = names.counts(whole.level), names.rows(whole.level)
    tables = tuple(name for name in whole.tables if name != rows)
    return [
        _phase(whole, "count", whole.inputs, (counts,)),
        _phase(whole, "scan", (counts,), (counts, *tables)),
        _phase(whole, "scatter", (*whole.inputs, counts, tables[0]), (rows,)),
    ]


def _phase(whole: InvertIndex, phase: Phase, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Stage:
    name = f"{phase}_entries_{whole.level}"
    return replace(whole, name=name, inputs=inputs, outputs=outputs, phase=phase)
