#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs every mutant against the law that must break, and writes what happened as tests/MUTATIONS.md.

    python tools/mutation_table.py           # run all, compare the table without writing
    python tools/mutation_table.py --write   # run all, write the table

A mutant is a small fault of a template; tests/kernels/test_mutations.py runs the same ones and checks that the table
lists them. Exit status: 0 all die and the table is right, 1 a mutant lives or the table is not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from tests.kernels.mutants import Mutant, templates_of
from tests.kernels.test_mutations import LAWS, MUTANTS
from tests.tree import ROOT

TABLE = ROOT / "tests" / "MUTATIONS.md"
KERNELS = ROOT / ".pytest_cache" / "d" / "llsa_gen_kernels"
TEST = "tests/kernels/test_mutations.py::test_a_fault_breaks_its_law"
HEAD = f"""# Mutants

Small faults of the templates, of GPUs and of CPUs, and the law that each of them breaks. The test of a mutant is
`{TEST}[mutant]`;
`python tools/mutation_table.py --write` runs them all and writes this table; its figures are of one machine.

Three more faults are none of a template, and have tests of their own there: offsets of 32 bits forward and backward
(`test_offsets_of_32_bits_break_their_law`), and heads that read the first one
(`test_heads_that_read_the_first_one_break_their_law`).

| mutant | template | kernels | law that breaks | how |
| --- | --- | --- | --- | --- |
"""


def row(mutant: Mutant, how: str) -> str:
    """A line of the table."""
    where = f"`{mutant.only}`" if mutant.only else "all"
    return f"| {mutant.name} | `{mutant.language}/{mutant.template}` | {where} | `{mutant.killed_by}` | {how} |\n"


def fate(mutant: Mutant) -> str | None:
    """What a law says to a mutant; None if it notices nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with templates_of(mutant, folder / "templates", KERNELS):
            try:
                LAWS[mutant.killed_by](folder, torch.device("cpu"))
            except AssertionError as error:
                first = (str(error).strip().splitlines() or ["the results differ"])[0]
                return re.sub(r"\s*\|\s*", " ", first)[:110]
    return None


def rows_of(text: str) -> list[str]:
    """The rows of a table without how they fail, which differs between machines."""
    return [line.rsplit("|", 2)[0] for line in text.splitlines() if line.startswith("| ")][2:]


def expected_rows() -> list[str]:
    """The rows of all mutants, in the manner of `rows_of`."""
    return rows_of(HEAD + "".join(row(mutant, "") for mutant in MUTANTS))


def main() -> int:
    """Runs all mutants; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write tests/MUTATIONS.md")
    chosen = parser.parse_args()
    text, alive = HEAD, 0
    for number, mutant in enumerate(MUTANTS, start=1):
        how = fate(mutant)
        alive += how is None
        text += row(mutant, how or "IT LIVES")
        print(f"{number} of {len(MUTANTS)}: {mutant.name}: {how or 'it lives'}", file=sys.stderr, flush=True)
    if chosen.write and not alive:
        TABLE.write_text(text, encoding="utf-8")
    is_right = TABLE.is_file() and rows_of(TABLE.read_text(encoding="utf-8")) == expected_rows()
    print(f"{len(MUTANTS) - alive} of {len(MUTANTS)} die; {TABLE.name} is {'' if is_right else 'not '}up to date")
    return 0 if is_right and not alive else 1


if __name__ == "__main__":
    sys.exit(main())
