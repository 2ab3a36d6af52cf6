# SPDX-License-Identifier: Apache-2.0
"""Pack pools: the means of all levels of an operand in one tensor, so that kernels of any depth take one pointer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from llsa_gen.ir import names, tensors
from llsa_gen.ir.types import Plan, TensorType


def pack_pools(plan: Plan) -> Plan:
    """Replaces ``q_pool_1``, ``q_pool_2``, … by the rows of ``q_pools``, level 1 first; likewise for k and v."""
    levels = range(1, plan.spec.depth + 1)
    renamed = {names.pool(operand, level): operand for operand in names.OPERANDS for level in levels}
    return replace(
        plan,
        tensors=_pack(plan.tensors, renamed, tuple(levels)),
        stages=tuple(
            replace(stage, inputs=_rename(stage.inputs, renamed), outputs=_rename(stage.outputs, renamed))
            for stage in plan.stages
        ),
    )


def _pack(old: Iterable[TensorType], renamed: Mapping[str, str], levels: tuple[int, ...]) -> tuple[TensorType, ...]:
    """The tensors with each packed one in the place of its first level."""
    packed: dict[str, TensorType] = {}
    for tensor in old:
        operand = renamed.get(tensor.name)
        new = tensor if operand is None else tensors.pools(operand, levels, tensor.dtype)
        packed.setdefault(new.name, new)
    return tuple(packed.values())


def _rename(old: Iterable[str], renamed: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names.pools(renamed[name]) if name in renamed else name for name in old))
