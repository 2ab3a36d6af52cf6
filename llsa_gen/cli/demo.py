# SPDX-License-Identifier: Apache-2.0
"""``llsa-gen demo``: LLSA over the pixels of a photograph, and a picture of what it looked at."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llsa_gen.cli.options import dry_run_option
from llsa_gen.cli.output import Result, progress, reported

if TYPE_CHECKING:
    from rich.console import Console

    from llsa_gen.demo import DemoReport

_HELP = """Attends over the pixels of a photograph with LLSA and with dense attention, and draws what LLSA looked at.

Needs matplotlib and Pillow: pip install 'llsa-gen[demo]'.

\b
Examples:
  llsa-gen demo
  llsa-gen demo --size 64 --heads 2 --out small.png
  llsa-gen demo --full-dense --json
"""


@click.command("demo", help=_HELP, short_help="Draw what LLSA looks at in a photograph.")
@click.option("--size", type=int, default=256, show_default=True, help="Side of the photograph: 32 to 512 pixels.")
@click.option("--heads", type=int, default=4, show_default=True, help="Heads, 1 to 6.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("llsa_demo.png"),
    show_default=True,
    metavar="FILE.png",
    help="The picture; replaced when it exists.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the rows that are compared.")
@click.option("--full-dense", is_flag=True, help="Time dense attention on all rows: minutes at size 256.")
@dry_run_option
@reported
def command(size: int, heads: int, out: Path, seed: int, full_dense: bool, dry_run: bool) -> Result:
    """Runs the verb."""
    if dry_run:
        data = {"dry_run": True, "path": str(out), "size": size, "heads": heads, "seed": seed}
        return Result(data, partial(_show_dry, data), brief=(str(out),))
    from llsa_gen.demo import run

    with progress() as step:
        report = run(size=size, heads=heads, out=out, seed=seed, progress=step, full_dense=full_dense)
    return Result({"dry_run": False, **report.to_json()}, partial(_show, report), brief=(str(report.path),))


def _show(report: DemoReport, console: Console) -> None:
    from llsa_gen.demo import render_report

    console.print(render_report(report), soft_wrap=True)


def _show_dry(data: dict[str, Any], console: Console) -> None:
    tokens = data["size"] ** 2
    console.print(f"would attend over {tokens:,} pixels in {data['heads']} heads and write {data['path']}")
