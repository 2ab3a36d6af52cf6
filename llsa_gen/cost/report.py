# SPDX-License-Identifier: Apache-2.0
"""Report: everything that is known about a spec before it is built, as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llsa_gen.cost.growth import Growth, growth
from llsa_gen.cost.model import Cost, StageCost, cost, measure
from llsa_gen.ir.sizes import short_lists
from llsa_gen.ir.text import format_tensor
from llsa_gen.lowering import choose_depth, resolve_depth, trace, variants_of

if TYPE_CHECKING:
    from llsa_gen.ir.types import Direction, Plan
    from llsa_gen.spec import Spec


def plan_report(spec: Spec, N: int, B: int = 1, H: int = 1, *, joined: bool = False) -> dict[str, Any]:
    """What would be built for a spec, and what it costs at one size.

    Args:
        spec: With ``levels="auto"`` the depth is chosen for its own ``seq_len``.
        N: Sequence length of the numbers.
        B: Batch size of the numbers.
        H: Heads of the numbers.
        joined: Whether one kernel attends pooled keys and tokens; `llsa_gen.schedule.joins` says where it does.

    Returns:
        JSON-able data; every cost is ``{"formula": text, "value": number}``. Stages are those of this length; kernels
        that only other lengths need are listed without stages.

    Raises:
        SpecError: ``levels="auto"`` and no depth is possible.
    """
    resolved = resolve_depth(spec)
    backward = _pass(resolved, "backward", N, B, H, joined) if resolved.gradient else None
    return {
        "slug": resolved.slug,
        "spec": resolved.to_fields(),
        "levels": _levels(spec, resolved, N),
        "size": {"N": N, "B": B, "H": H},
        **_pass(resolved, "forward", N, B, H, joined),
        "backward": backward,
        "growth": _growth(growth(resolved)),
    }


def _pass(spec: Spec, direction: Direction, N: int, B: int, H: int, joined: bool) -> dict[str, Any]:
    """The plan of attention or of its gradients, and its cost."""
    steps = trace(spec, direction, short_lists(spec, N), joined=joined)
    plan = steps[-1][1]
    kernels = {key: () for variant in variants_of(plan) for key in variant.kernels()} | plan.kernels()
    symbols, numbers = cost(plan), measure(plan, N, B, H)
    return {
        "passes": [name for name, _ in steps],
        "tensors": [{"name": tensor.name, "type": format_tensor(tensor)} for tensor in plan.tensors],
        "stages": _stages(plan, symbols, numbers),
        "kernels": [{"kernel": key.label, "stages": list(used)} for key, used in kernels.items()],
        "totals": _totals(symbols, numbers),
    }


def _levels(spec: Spec, resolved: Spec, length: int) -> dict[str, Any]:
    """The depth, and the flops of every possible one at this length."""
    choice = choose_depth(spec, length)
    table = [
        {"levels": row.levels, "selection": row.selection, "attention": row.attention, "total": row.total}
        for row in choice.rows
    ]
    return {"chosen": resolved.depth, "auto": spec.is_auto, "best": choice.levels, "flops": table}


def _stages(plan: Plan, symbols: Cost, numbers: Cost) -> list[dict[str, Any]]:
    rows = zip(plan.stages, symbols.stages, numbers.stages, strict=True)
    return [
        {
            "name": stage.name,
            "kind": stage.kind,
            "inputs": list(stage.inputs),
            "outputs": list(stage.outputs),
            "kernel": stage.kernel(plan).label,
            **_stage_costs(symbol, number),
        }
        for stage, symbol, number in rows
    ]


def _stage_costs(symbols: StageCost, numbers: StageCost) -> dict[str, Any]:
    return {
        "flops": _pair(symbols.flops, numbers.flops),
        "bytes_read": _pair(symbols.bytes_read, numbers.bytes_read),
        "bytes_written": _pair(symbols.bytes_written, numbers.bytes_written),
    }


def _totals(symbols: Cost, numbers: Cost) -> dict[str, Any]:
    attributes = ("keys_per_query", "flops", "dense_flops", "bytes", "saved_memory", "workspace")
    return {name: _pair(getattr(symbols, name), getattr(numbers, name)) for name in attributes} | {
        "dense_ratio": {"formula": "dense_flops / flops", "value": numbers.dense_flops / numbers.flops}
    }


def _growth(found: Growth) -> dict[str, Any]:
    is_linear = found.order == "N"
    limit = found.per_n if is_linear else found.per_n_log_n
    return {
        "envelope": {
            "levels": str(found.depth_envelope),
            "keys_per_query": str(found.keys_envelope),
            "order": found.order,
            "limit_of": "flops / N" if is_linear else "flops / (N log N)",
            "limit": _pair(limit, found.value(limit)),
        },
        "fixed": {
            "levels": found.fixed_depth,
            "flops": str(found.fixed_cost),
            "order": found.fixed_order,
            "limit_of": "flops / N**2",
            "limit": _pair(found.per_n_squared, found.value(found.per_n_squared)),
            "dense_limit": _pair(found.dense_per_n_squared, found.value(found.dense_per_n_squared)),
        },
    }


def _pair(formula: Any, value: float) -> dict[str, Any]:
    return {"formula": str(formula), "value": value}
