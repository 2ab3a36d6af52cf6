# SPDX-License-Identifier: Apache-2.0
"""``llsa-gen tune``: finds the fastest schedules of the kernels of a spec on this machine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from llsa_gen.cli.bench import SPEC_DEFAULTS, one_spec
from llsa_gen.cli.options import SpecRequest, dry_run_option, spec_options, whole_number
from llsa_gen.cli.output import Result, progress, reported, table
from llsa_gen.errors import InputError, explain

if TYPE_CHECKING:
    from rich.console import Console

_EXIT_WRONG = 1
_LARGEST = 2**31 - 1

_HELP = """Finds the fastest schedules of the kernels of a spec on this machine; calls and builds then use them.

Schedules that a model of the processor puts far behind, or that its caches cannot hold, are left out. Every other is
built, checked against the reference, and timed in turn with the default on inputs like those of a model. What was found
goes to a record per kernel, after every schedule, so an interrupted run goes on where it was. Records hold for this
processor and this many threads, and are left alone on any other machine; they lie in the cache folder, or in that which
LLSA_GEN_TUNING names. LLSA_GEN_TUNING=0 leaves them alone.

The spec is pixel_dit_fp32 of the catalogue where --spec or --from name no other.

\b
Examples:
  llsa-gen tune --block 16 --k 8 --dry-run
  llsa-gen tune --spec pixel_dit_fp32 --tokens 16384 --minutes 5
  llsa-gen tune --levels 3 --head-dim 128 --threads 4 --json
"""


@click.command("tune", help=_HELP, short_help="Find the fastest schedules for this machine.")
@spec_options(**SPEC_DEFAULTS)
@click.option(
    "--tokens", callback=whole_number(1, _LARGEST), metavar="N", help="Length of the inputs.  [default: 16384]"
)
@click.option("--heads", callback=whole_number(1, _LARGEST), metavar="H", help="Heads of the inputs.  [default: 2]")
@click.option("--minutes", type=float, metavar="M", help="No schedule is begun after this.  [default: 15]")
@click.option("--seconds", type=float, metavar="S", help="Time to measure a schedule for.  [default: 1.5]")
@click.option(
    "--threads", callback=whole_number(1, _LARGEST), metavar="T", help="Threads of the CPU.  [default: as torch takes]"
)
@click.option("--again", is_flag=True, help="Measure anew what is on record.")
@dry_run_option
@reported
def command(
    *,
    request: SpecRequest,
    tokens: int | None,
    heads: int | None,
    minutes: float | None,
    seconds: float | None,
    threads: int | None,
    again: bool,
    dry_run: bool,
) -> Result:
    """Runs the verb."""
    from llsa_gen import tuning
    from llsa_gen.lowering import resolve_depth

    target = _target(request)
    spec = one_spec(replace(request, targets=()), tokens or tuning.DEFAULT_TOKENS)
    given = {"tokens": tokens, "heads": heads, "minutes": minutes, "seconds": seconds, "threads": threads}
    numbers: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    asked = tuning.Request(resolve_depth(spec), target, again=again, **numbers)
    if dry_run:
        return _result(tuning.dry_run(asked))
    with progress() as step:
        return _result(tuning.run(asked, step))


def _target(request: SpecRequest) -> str:
    """The one target that is tuned."""
    from llsa_gen.cli.options import expand_targets

    names = expand_targets(request.targets) or ["cpu"]
    if len(names) == 1:
        return names[0]
    what, hint = "one target is tuned at a time", "run it once for each"
    raise InputError(explain(what, where="--target", value=names, allowed="one name", hint=hint))


def _result(data: dict[str, Any]) -> Result:
    is_wrong = not data["dry_run"] and not data["check"]["right"]
    records = tuple(kernel["record"] for kernel in data["kernels"])
    return Result(data, partial(_show, data), brief=records, exit_code=_EXIT_WRONG if is_wrong else 0)


def _show(data: dict[str, Any], console: Console) -> None:
    numbers = ("work", "tried", "time")
    shown = table("kernel", *numbers, "default", "taken", right=numbers, title=_title(data))
    for kernel in data["kernels"]:
        shown.add_row(kernel["kernel"], *_numbers(kernel), _text(kernel["default"]), _taken(kernel, data["dry_run"]))
    console.print(shown)
    for name, times in data.get("passes", {}).items():
        if not times:
            console.print(f"{name}: every kernel has its default", soft_wrap=True)
            continue
        default, tuned = times["default"]["median"], times["tuned"]["median"]
        said = f"{name}: {default * 1e3:,.2f} ms by default, {tuned * 1e3:,.2f} ms tuned, {tuned / default:.1%} of it"
        console.print(said, soft_wrap=True)
    for name, ratio in data.get("taken_back", ()):
        said = f"{name}: taken back, because all kernels together took {ratio:.1%} of the default's time"
        console.print(said, soft_wrap=True)
    _show_end(data, console)


def _title(data: dict[str, Any]) -> str:
    size = data["size"]
    return f"{data['slug']} for {data['target']}: {size['tokens']:,} tokens, {size['heads']} heads"


def _numbers(kernel: dict[str, Any]) -> tuple[str, str, str]:
    """Share of the work, schedules tried of those worth it, and the time taken over the default's."""
    worth = [one for one in kernel["candidates"] if not one["left_out"] and one["schedule"] != kernel["default"]]
    tried = [one for one in worth if one["tried"]]
    ratio = next((one["ratio"] for one in tried if one["schedule"] == kernel["chosen"]), None)
    return f"{kernel['share']:.1%}", f"{len(tried)} of {len(worth)}", "" if ratio is None else f"{ratio:.1%}"


def _taken(kernel: dict[str, Any], is_dry: bool) -> str:
    if kernel["chosen"] is not None:
        return _text(kernel["chosen"])
    return "default" if kernel["complete"] else "to be tried" if is_dry else "default so far"


def _text(schedule: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in schedule.items() if value)


def _show_end(data: dict[str, Any], console: Console) -> None:
    machine = data["machine"]
    for kernel in data["kernels"]:
        for one in kernel["candidates"]:
            if one.get("why"):
                console.print(f"{kernel['kernel']}, {_text(one['schedule'])}: {one['why']}", soft_wrap=True)
    console.print(f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads", soft_wrap=True)
    if data["idle"]:
        tokens, names = data["size"]["tokens"], ", ".join(data["idle"])
        console.print(f"not launched at {tokens:,} tokens, so left as they are: {names}", soft_wrap=True)
    if data["dry_run"]:
        console.print(f"would write {len(data['kernels'])} records to {data['folder']}", soft_wrap=True)
        return
    for reason in data["check"]["why"]:
        console.print(f"WRONG, so nothing is taken: {reason}", soft_wrap=True)
    console.print(f"{len(data['kernels'])} records in {data['folder']}", soft_wrap=True)
    if not data["complete"]:
        console.print("the time was up before everything was tried: run it again to go on", soft_wrap=True)
