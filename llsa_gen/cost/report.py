# SPDX-License-Identifier: Apache-2.0
"""Report: everything that is known about a spec before it is built, as plain data and as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llsa_gen.cost.growth import Growth, growth
from llsa_gen.cost.model import Cost, StageCost, cost, measure
from llsa_gen.ir.text import format_tensor
from llsa_gen.lowering import choose_depth, resolve_depth, trace

if TYPE_CHECKING:
    from llsa_gen.ir.types import Plan
    from llsa_gen.spec import Spec


def plan_report(spec: Spec, N: int, B: int = 1, H: int = 1) -> dict[str, Any]:
    """What would be built for a spec, and what it costs at one size.

    Args:
        spec: With ``levels="auto"`` the depth is chosen for its own ``seq_len``.
        N: Sequence length of the numbers.
        B: Batch size of the numbers.
        H: Heads of the numbers.

    Returns:
        JSON-able data; every cost is ``{"formula": text, "value": number}``.

    Raises:
        SpecError: ``levels="auto"`` and no depth is possible.
    """
    resolved = resolve_depth(spec)
    steps = trace(resolved)
    plan = steps[-1][1]
    symbols, numbers = cost(plan), measure(plan, N, B, H)
    return {
        "slug": resolved.slug,
        "spec": resolved.to_fields(),
        "levels": _levels(spec, resolved, N),
        "size": {"N": N, "B": B, "H": H},
        "passes": [name for name, _ in steps],
        "tensors": [{"name": tensor.name, "type": format_tensor(tensor)} for tensor in plan.tensors],
        "stages": _stages(plan, symbols, numbers),
        "kernels": [{"kernel": key.label, "stages": list(used)} for key, used in plan.kernels().items()],
        "totals": _totals(symbols, numbers),
        "growth": _growth(growth(resolved)),
    }


def render_report(report: dict[str, Any]) -> str:
    """A report as text of one screen."""
    size, totals, levels = report["size"], report["totals"], report["levels"]
    width = max(len(stage["kernel"]) for stage in report["stages"])
    origin = "chosen for its seq_len" if levels["auto"] else "given"
    lines = [
        f"{report['slug']} at N={size['N']:,} B={size['B']} H={size['H']}",
        f"  levels {levels['chosen']} ({origin}); at this length the fewest flops are at {levels['best']}",
        "",
        f"  {'stage':<16} {'kernel':<{width}} {'Gflop':>12} {'MB':>12}",
        *(_stage_line(stage, width) for stage in report["stages"]),
        "",
        *(_total_line(name, totals[name]) for name in totals),
        "",
        *_growth_lines(report["growth"]),
    ]
    return "\n".join(lines)


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


def _stage_line(stage: dict[str, Any], width: int) -> str:
    moved = stage["bytes_read"]["value"] + stage["bytes_written"]["value"]
    gflop = stage["flops"]["value"] / 1e9
    return f"  {stage['name']:<16} {stage['kernel']:<{width}} {gflop:>12,.3f} {moved / 1e6:>12,.3f}"


def _total_line(name: str, pair: dict[str, Any]) -> str:
    value, formula = pair["value"], pair["formula"]
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
    return f"  {name.replace('_', ' '):<16} {shown:>22}" + (f"   {formula}" if len(formula) <= 100 else "")


def _growth_lines(found: dict[str, Any]) -> list[str]:
    envelope, fixed = found["envelope"], found["fixed"]
    dense = f" (dense {fixed['dense_limit']['value']:.4g})"
    return [
        f"  levels growing as L = {envelope['levels']}: {_limit_text(envelope)}",
        f"  levels fixed at {fixed['levels']}: {_limit_text(fixed)}{dense}",
    ]


def _limit_text(found: dict[str, Any]) -> str:
    limit = found["limit"]
    return f"{found['order']}, {found['limit_of']} -> {limit['formula']} = {limit['value']:.4g}"
