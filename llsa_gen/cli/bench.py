# SPDX-License-Identifier: Apache-2.0
"""``llsa-gen bench``: attention against dense attention over the length, and inverted lists against a dense mask."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from llsa_gen.cli.options import AUTO, SpecRequest, dry_run_option, out_option, spec_options
from llsa_gen.cli.output import Result, format_bytes, progress, reported, table
from llsa_gen.errors import InputError, explain
from llsa_gen.spec import Spec

if TYPE_CHECKING:
    from rich.console import Console

    from llsa_gen.bench import Request

DEFAULT_SPEC = "pixel_dit_fp32"
SPEC_DEFAULTS = {"spec_name": DEFAULT_SPEC, "dtype": "fp32"}
"""What the help says of verbs whose spec is that one of the catalogue where none is named."""
DEFAULT_OUT = Path("llsa_bench")
_EXIT_WRONG = 1

_HELP = """Measures on this machine's CPU how long attention takes over the length of the sequence, against SDPA.

Forward, and forward with backward. LLSA, SDPA, FlexAttention where it runs, a matrix product and a copy take turns in
one process, so that they see the same threads and the same load; results are checked against the reference first. Above
--dense-limit SDPA is measured on 1,024 query rows and scaled up. Stages are timed alone, beside the model's
prediction. `transpose` instead measures the gradient of keys and values, and the transpose of the lists alone, by
inverted lists and by a dense mask. Writes CSV, JSON and PNG; needs matplotlib: pip install 'llsa-gen[bench]'.

The spec is pixel_dit_fp32 of the catalogue where --spec or --from name no other. torch's dense backward pass runs one
head per thread, so take at least as many heads as threads.

\b
Examples:
  llsa-gen bench
  llsa-gen bench --tokens 1k,4k,16k --heads 4 --levels auto --out results
  llsa-gen bench transpose --tokens 16k,64k --json
"""

_LENGTH = re.compile(r"(\d{1,12})(k?)", re.IGNORECASE)


def _lengths(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers, with a k for times 1,024."""
    if text is None:
        return None
    found = [_LENGTH.fullmatch(word.strip()) for word in text.split(",")]
    if not all(found):
        allowed = "whole numbers with commas between; 4k means 4,096"
        hint = "write for example --tokens 1k,4k,16k"
        raise InputError(explain("these are no lengths", where="--tokens", value=text, allowed=allowed, hint=hint))
    return tuple(int(match[1]) * (1024 if match[2] else 1) for match in found if match)


@click.command("bench", help=_HELP, short_help="Measure speed against dense attention.")
@click.argument("what", type=click.Choice(["attention", "transpose"]), default="attention")
@spec_options(**SPEC_DEFAULTS)
@click.option("--tokens", callback=_lengths, metavar="N,N,…", help="Lengths, ascending.  [default: 1k,2k,4k … 256k]")
@click.option("--heads", type=int, default=2, show_default=True, metavar="H", help="Heads.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Time to measure one length for.")
@click.option(
    "--dense-limit", type=int, metavar="N", help="Longest length at which SDPA has all rows.  [default: 16384]"
)
@click.option("--flex/--no-flex", default=True, help="Try FlexAttention, which compiles for half a minute.")
@out_option(f"Folder of the files; those of an earlier run are replaced.  [default: {DEFAULT_OUT}]")
@dry_run_option
@reported
def command(
    *,
    what: str,
    request: SpecRequest,
    tokens: tuple[int, ...] | None,
    heads: int,
    seconds: float,
    dense_limit: int | None,
    flex: bool,
    out: Path | None,
    dry_run: bool,
) -> Result:
    """Runs the verb."""
    from llsa_gen.bench import request as asked

    lengths = asked.DEFAULT_TOKENS if tokens is None else tokens
    wanted = asked.Request(
        spec=_spec(request, max(lengths)),
        tokens=lengths,
        heads=heads,
        seconds=seconds,
        out=out or DEFAULT_OUT,
        what=cast(asked.What, what),
        dense_limit=asked.DENSE_LIMIT if dense_limit is None else dense_limit,
        flex=flex,
    )
    return _dry(wanted) if dry_run else _run(wanted)


def _spec(request: SpecRequest, longest: int) -> Spec:
    """The one spec that is measured."""
    if request.targets not in ((), ("cpu",)):
        hint, what = "measure GPUs with tools/gpu_evidence.py", "the benchmark runs on the CPU of this machine"
        raise InputError(explain(what, where="--target", value=request.targets, allowed="cpu", hint=hint))
    return one_spec(request, longest)


def one_spec(request: SpecRequest, longest: int) -> Spec:
    """The spec of a verb that takes one, `DEFAULT_SPEC` where no other is named."""
    if request.file is None and request.spec_name is None:
        request = replace(request, spec_name=DEFAULT_SPEC)
    if request.levels == AUTO and request.seq_len is None:
        request = replace(request, seq_len=longest)
    found = request.specs()
    if len(found) != 1:
        names, hint = [one.name for one in found], "choose one with --name"
        raise InputError(explain("one spec is measured at a time", where="--from", value=names, allowed=1, hint=hint))
    return found[0].spec


def _dry(wanted: Request) -> Result:
    from llsa_gen.bench.request import check_numbers, memory_of

    check_numbers(wanted)
    lengths = [
        {"tokens": tokens, "slug": wanted.spec_at(tokens).slug, "memory": memory_of(wanted, tokens)}
        for tokens in wanted.tokens
    ]
    files = [str(path) for path in wanted.files()]
    data = {"dry_run": True, "what": wanted.what, "heads": wanted.heads, "lengths": lengths, "files": files}
    return Result(data, partial(_show_dry, data), brief=tuple(files))


def _show_dry(data: dict[str, Any], console: Console) -> None:
    for one in data["lengths"]:
        memory = format_bytes(one["memory"])
        console.print(f"would measure {one['slug']} at {one['tokens']:,} tokens, about {memory}", soft_wrap=True)
    for path in data["files"]:
        console.print(f"would write {path}", soft_wrap=True)


def _run(wanted: Request) -> Result:
    from llsa_gen.bench import run

    with progress() as step:
        data = run(wanted, step)
    wrong = any(not point["check"]["right"] for point in data["points"])
    show = _show_attention if wanted.what == "attention" else _show_transpose
    data = {"dry_run": False, **data}
    return Result(data, partial(show, data), brief=tuple(data["files"]), exit_code=_EXIT_WRONG if wrong else 0)


def _show_attention(data: dict[str, Any], console: Console) -> None:
    numbers = ("tokens", "median ms", "p10 – p90", "model ms", "GFLOP/s", "of matmul", "of copy", "over SDPA")
    for part in ("forward", "forward+backward", "stages of forward", "stages of backward"):
        columns = numbers[:-1] if part.startswith("stages") else numbers
        shown = table("", *columns, "", right=numbers, title=part)
        for point in data["points"]:
            rows = [row for row in point["rows"] if row["part"] == part]
            dense = next((row["seconds"] for row in rows if row["name"] == "sdpa"), None)
            for row in rows:
                shown.add_row(row["name"], *_cells(row, dense)[: len(columns)], _remark(row))
        if shown.row_count:
            console.print(shown)
    for part, found in data["summary"].items():
        _show_growth(part, found, console)
    _show_end(data, console)


def _cells(row: dict[str, Any], dense: float | None) -> list[str]:
    """The numbers of a row as text."""
    model, copied = row["predicted"], row["copy_share"]
    return [
        f"{row['tokens']:,}",
        f"{row['seconds'] * 1e3:,.3f}",
        f"{row['p10'] * 1e3:,.3f} – {row['p90'] * 1e3:,.3f}",
        "" if model is None else f"{model * 1e3:,.3f}",
        f"{row['gflop_per_second']:,.1f}",
        f"{row['matmul_share']:.1%}",
        "" if copied is None else f"{copied:.1%}",
        "" if dense is None else f"{dense / row['seconds']:.2f} ×",
    ]


def _remark(row: dict[str, Any]) -> str:
    if row["factor"] == 1.0:
        return "lists, pools and mask given" if row["name"] == "flex" else ""
    return f"ESTIMATE: {round(row['tokens'] / row['factor']):,} query rows, times {row['factor']:g}"


def _show_growth(part: str, found: dict[str, Any], console: Console) -> None:
    """Exponents between lengths, and the crossover."""
    shown = table("between", "LLSA", "model", "SDPA", right=("LLSA", "model", "SDPA"), title=f"{part}: time ~ N**e")
    growth = found["growth"]
    for mine, model, dense in zip(growth["llsa"], growth["model"], growth["sdpa"], strict=True):
        cells = [f"{one['exponent']:.2f}" for one in (mine, model, dense)]
        shown.add_row(f"{mine['from']:,} – {mine['to']:,}", *cells)
    if shown.row_count:
        console.print(shown)
    crossing = found["crossover"]
    tokens = "no length" if crossing["tokens"] is None else f"{crossing['tokens']:,.0f} tokens"
    console.print(f"{part}: not slower than SDPA from {tokens} on ({crossing['note']})", soft_wrap=True)


def _show_transpose(data: dict[str, Any], console: Console) -> None:
    numbers = ("tokens", "median ms", "p10 – p90", "tokens/s", "held")
    for part in data["summary"]:
        shown = table("form", *numbers, right=numbers, title=part)
        for row in (row for point in data["points"] for row in point["rows"] if row["part"] == part):
            spread = f"{row['p10'] * 1e3:,.3f} – {row['p90'] * 1e3:,.3f}"
            cells = (f"{row['tokens']:,}", f"{row['seconds'] * 1e3:,.3f}", spread, f"{row['tokens_per_second']:,.0f}")
            shown.add_row(row["form"], *cells, format_bytes(row["held"]))
        console.print(shown)
        for one in data["summary"][part]["speed_up"]:
            console.print(f"{part} at {one['tokens']:,} tokens: inverted lists {one['times']:.2f} × faster")
    _show_end(data, console)


def _show_end(data: dict[str, Any], console: Console) -> None:
    """Notes, wrong results and files."""
    for point in data["points"]:
        for name, note in point["notes"].items():
            console.print(f"{point['tokens']:,} tokens: no {name}: {note}", soft_wrap=True)
        for reason in point["check"]["why"]:
            console.print(f"{point['tokens']:,} tokens: WRONG and not timed: {reason}", soft_wrap=True)
    machine = data["machine"]
    what = f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads, torch {machine['torch']}"
    console.print(what, soft_wrap=True)
    for path in data["files"]:
        console.print(path, soft_wrap=True)
