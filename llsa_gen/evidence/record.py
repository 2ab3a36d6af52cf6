# SPDX-License-Identifier: Apache-2.0
"""The record of a run: one JSON file, renamed into place after every result, so that it is whole at any moment."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

SCHEMA = 1
FILE = "record.json"


class Record:
    """Results by step, on disk as soon as they are known.

    Attributes:
        path: The file.
        data: What is in it.
    """

    def __init__(self, folder: Path, **head: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self.data: dict[str, Any] = {"schema": SCHEMA, **head, "steps": {}}
        self.write()

    def state(self, step: str, **fields: Any) -> None:
        """Notes something about a step itself: its status, its seconds."""
        self._step(step).update(fields)
        self.write()

    def add(self, step: str, result: dict[str, Any]) -> None:
        """Appends one result of a step."""
        self._step(step)["results"].append(result)
        self.write()

    def results(self, step: str) -> list[dict[str, Any]]:
        """The results of a step so far."""
        found: list[dict[str, Any]] = self._step(step)["results"]
        return found

    def write(self) -> None:
        """Writes the whole record to a new file and renames that onto the old one."""
        text = json.dumps(self.data, indent=1, allow_nan=False, default=str)
        handle, name = tempfile.mkstemp(prefix=f".{FILE}.", dir=self.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _step(self, name: str) -> dict[str, Any]:
        step: dict[str, Any] = self.data["steps"].setdefault(name, {"status": "waiting", "results": []})
        return step


def finite(value: float) -> float | None:
    """A number as JSON can hold it: None for NaN and infinity."""
    return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124  (NaN differs from itself)
