# SPDX-License-Identifier: Apache-2.0
"""``llsa-gen plan``: what would be built for a spec and what it costs, in symbols and in numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from llsa_gen.cli.options import AUTO, SpecRequest, Wanted, spec_options, whole_number
from llsa_gen.cli.output import Result, progress, reported, table

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_TOKENS = 65536

_HELP = """Shows what would be built for a spec and what it costs; nothing is written or compiled.

Stages, tensors, keys per query, flops, bytes, the memory saved for backward, the growth with the length and the choice
of the depth: formulas, and numbers at --tokens, --batch and --heads.

The plan is that of GPUs. --target cpu alone shows that of CPUs: where blocks have 16 tokens or more, one kernel attends
pooled keys and tokens.

\b
Examples:
  llsa-gen plan --block 16 --k 8
  llsa-gen plan --levels auto --tokens 262144 --heads 6
  llsa-gen plan --spec tiny_blocks --trace
  llsa-gen plan --block 16 --k 8 --target cpu
  llsa-gen plan --k 8 --json | jq '.plans[0].totals.flops'
"""

_LARGEST = 2**31 - 1
_COUNT = whole_number(1, _LARGEST)


@click.command("plan", help=_HELP, short_help="Show what would be built and what it costs.")
@spec_options()
@click.option(
    "--tokens",
    callback=_COUNT,
    metavar="N",
    help=f"Sequence length of the numbers.  [default: --seq-len, else {DEFAULT_TOKENS}]",
)
@click.option("--batch", callback=_COUNT, type=str, default="1", show_default=True, metavar="B", help="Batch.")
@click.option("--heads", callback=_COUNT, type=str, default="1", show_default=True, metavar="H", help="Heads.")
@click.option("--trace", "traces", is_flag=True, help="List the plan after every step of lowering.")
@reported
def command(request: SpecRequest, tokens: int | None, batch: int, heads: int, traces: bool) -> Result:
    """Runs the verb."""
    if request.levels == AUTO and request.seq_len is None:
        request = replace(request, seq_len=tokens)
    wanted = request.specs()
    with progress() as step:
        plans = []
        for number, one in enumerate(wanted, 1):
            step("deriving costs and limits", number, len(wanted))
            plans.append(_plan(one, tokens, batch, heads, traces=traces))
    slugs = tuple(plan["slug"] for plan in plans)
    return Result({"plans": plans}, partial(_show, plans), brief=slugs)


def _plan(wanted: Wanted, tokens: int | None, batch: int, heads: int, *, traces: bool) -> dict[str, Any]:
    from llsa_gen.cost import plan_report
    from llsa_gen.schedule import joins
    from llsa_gen.targets import get_target, list_targets

    length = tokens or wanted.spec.seq_len or DEFAULT_TOKENS
    joined = wanted.insists and all(joins(wanted.spec, get_target(name).language) for name in wanted.spec.targets)
    plan_of = [target.name for target in list_targets() if joins(wanted.spec, target.language) == joined]
    report = {"name": wanted.name, "plan_of": plan_of, **plan_report(wanted.spec, length, batch, heads, joined=joined)}
    return report | {"trace": _trace(wanted, length, joined=joined)} if traces else report


def _trace(wanted: Wanted, length: int, *, joined: bool) -> list[dict[str, str]]:
    from llsa_gen.ir.sizes import short_lists
    from llsa_gen.ir.text import format_plan
    from llsa_gen.lowering import directions_of, resolve_depth, trace

    short = short_lists(resolve_depth(wanted.spec), length)
    return [
        {"direction": direction, "pass": name, "plan": format_plan(plan)}
        for direction in directions_of(wanted.spec)
        for name, plan in trace(wanted.spec, direction, short, joined=joined)
    ]


def _show(plans: list[dict[str, Any]], console: Console) -> None:
    for plan in plans:
        size = plan["size"]
        console.rule(f"{plan['slug']}  N={size['N']:,} B={size['B']} H={size['H']}", align="left")
        console.print(f"plan of {', '.join(plan['plan_of'])}", soft_wrap=True)
        for part in plan.get("trace", []):
            console.print(f"{part['direction']}, after {part['pass']}:", style="bold")
            console.print(part["plan"], soft_wrap=True)
        _show_depth(plan["levels"], console)
        for title in ("forward", "backward"):
            _show_pass(title, plan if title == "forward" else plan["backward"], console)
        _show_growth(plan["growth"], console)


def _show_depth(levels: dict[str, Any], console: Console) -> None:
    """Flops of every depth for one batch and head."""
    columns = ("selection Gflop", "attention Gflop", "total Gflop")
    shown = table("levels", *columns, "", right=("levels", *columns), title="depth (one batch and head)")
    for row in levels["flops"]:
        numbers = [f"{row[key] / 1e9:,.4f}" for key in ("selection", "attention", "total")]
        shown.add_row(str(row["levels"]), *numbers, _depth_note(row["levels"], levels))
    console.print(shown)


def _depth_note(depth: int, levels: dict[str, Any]) -> str:
    chosen = "chosen for seq_len" if levels["auto"] else "given"
    notes = [(levels["chosen"], chosen), (levels["best"], "fewest flops at this length")]
    return ", ".join(note for at, note in notes if at == depth)


def _show_pass(title: str, plan: dict[str, Any] | None, console: Console) -> None:
    """Tensors, stages and totals of one direction; nothing where the spec leaves gradients out."""
    if plan is None:
        return
    console.print(f"{title} pass", style="bold")
    _show_tensors(plan, console)
    _show_stages(plan, console)
    _show_totals(plan["totals"], console)


def _show_tensors(plan: dict[str, Any], console: Console) -> None:
    shown = table("tensor", "role, type and shape", title="tensors")
    for tensor in plan["tensors"]:
        shown.add_row(tensor["name"], tensor["type"])
    console.print(shown)


def _show_stages(plan: dict[str, Any], console: Console) -> None:
    numbers = ("Gflop", "MB read", "MB written")
    shown = table("stage", "data flow", *numbers, "flops", right=numbers, title="stages")
    for stage in plan["stages"]:
        flow = f"{', '.join(stage['inputs'])} -> {', '.join(stage['outputs'])}"
        moved = [f"{stage[key]['value'] / 1e6:,.3f}" for key in ("bytes_read", "bytes_written")]
        gflop = f"{stage['flops']['value'] / 1e9:,.3f}"
        shown.add_row(stage["name"], flow, gflop, *moved, stage["flops"]["formula"])
    console.print(shown)
    for kernel in plan["kernels"]:
        stages = ", ".join(kernel["stages"]) or "at other lengths"
        console.print(f"kernel {kernel['kernel']}: {stages}", soft_wrap=True)


def _show_totals(totals: dict[str, Any], console: Console) -> None:
    shown = table("total", "number", "formula", right=("number",))
    for name, pair in totals.items():
        value = pair["value"]
        number = f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
        shown.add_row(name.replace("_", " "), number, pair["formula"])
    console.print(shown)


def _show_growth(found: dict[str, Any], console: Console) -> None:
    envelope, fixed = found["envelope"], found["fixed"]
    dense = f" (dense {fixed['dense_limit']['value']:.4g})"
    console.print("growth with the length", style="bold")
    console.print(f"  levels growing as L = {envelope['levels']}: {_limit(envelope)}", soft_wrap=True)
    console.print(f"  levels fixed at {fixed['levels']}: {_limit(fixed)}{dense}", soft_wrap=True)


def _limit(found: dict[str, Any]) -> str:
    limit = found["limit"]
    return f"{found['order']}, {found['limit_of']} -> {limit['formula']} = {limit['value']:.4g}"
