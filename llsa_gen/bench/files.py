# SPDX-License-Identifier: Apache-2.0
"""The files of a benchmark, each written beside its place and renamed."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole or not at all."""
    half = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(half)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row; nothing but an empty file without any."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    replace_file(path, lambda half: half.write_text(text.getvalue(), encoding="utf-8"))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """One JSON document."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda half: half.write_text(text, encoding="utf-8"))
