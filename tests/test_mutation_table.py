# SPDX-License-Identifier: Apache-2.0
"""The committed table of mutants lists those that the tests run, with the laws that they break."""

from tests.kernels.test_mutations import LAWS, MUTANTS
from tools import mutation_table


def test_the_table_lists_every_mutant() -> None:
    found = mutation_table.rows_of(mutation_table.TABLE.read_text(encoding="utf-8"))
    assert found == mutation_table.expected_rows(), "run: python tools/mutation_table.py --write"
    assert len(found) == len(MUTANTS) >= 110


def test_every_mutant_of_the_table_died() -> None:
    text = mutation_table.TABLE.read_text(encoding="utf-8")
    assert "LIVES" not in text
    assert all(law in LAWS for line in mutation_table.rows_of(text) for law in [line.split("`")[-2]])
