# SPDX-License-Identifier: Apache-2.0
"""The Jinja environment of the templates, which keeps what it compiled for later processes.

Compiling the templates took a third of the time in which an op is loaded.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

from llsa_gen.digest import digest

_OPTIONS: dict[str, Any] = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
    "autoescape": False,
}


def environment(templates: Path, compiled: Path) -> Environment:
    """The environment of a folder of templates.

    Args:
        templates: Where the templates lie.
        compiled: Where they are kept as Jinja compiled them; the folder need not exist.
    """
    return Environment(  # noqa: S701  (the output is Python, not HTML)
        loader=FileSystemLoader(templates),
        bytecode_cache=CompiledTemplates(compiled),
        undefined=StrictUndefined,
        **_OPTIONS,
    )


_BROKEN = (OSError, EOFError, ValueError, AttributeError, ImportError, IndexError, SystemError, pickle.UnpicklingError)
"""What reading a file raises that is not whole; `pickle` and `marshal` name no fewer."""


class CompiledTemplates(FileSystemBytecodeCache):
    """Compiled templates in a folder: a file per template, for its last text.

    A file that is cut short or garbled, or is of another text, is a miss. A folder that cannot be written
    only costs time.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), "%s.bin")

    def get_cache_key(self, name: str, filename: str | None = None) -> str:
        """One file for a template and a version of Jinja, wherever the folder of templates lies."""
        return digest({"name": name, "options": _OPTIONS, "jinja": version("jinja2")})[:32]

    def load_bytecode(self, bucket: Bucket) -> None:
        """Reads a template, where there is one that can be read."""
        try:
            super().load_bytecode(bucket)
        except _BROKEN:
            bucket.reset()

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Writes a template, where that is possible."""
        with suppress(OSError):
            Path(self.directory).mkdir(parents=True, exist_ok=True)
            super().dump_bytecode(bucket)
