# SPDX-License-Identifier: Apache-2.0
"""The Jinja environment of the templates, which keeps what it compiled for later processes.

Compiling the templates took a third of the time in which an op is loaded.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

from llsa_gen.digest import digest, digest_bytes
from llsa_gen.paths import let_others_read

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


class CompiledTemplates(BytecodeCache):
    """Compiled templates in a folder: a file per template, for its last text, which begins with its own digest.

    A file that is cut short or damaged, or is of another text, is a miss: Python would execute whatever it holds. A
    folder that cannot be written only costs time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_cache_key(self, name: str, filename: str | None = None) -> str:
        """One file for a template and a version of Jinja, wherever the folder of templates lies."""
        return digest({"name": name, "options": _OPTIONS, "jinja": version("jinja2")})[:32]

    def load_bytecode(self, bucket: Bucket) -> None:
        """Reads a template, where there is one that can be read."""
        try:
            content = self._file(bucket).read_bytes()
        except OSError:
            return
        head, code = content[:_DIGEST_LENGTH], content[_DIGEST_LENGTH:]
        if head == _digest_of(code):
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Writes a template whole or not at all, where that is possible."""
        code, place = bucket.bytecode_to_string(), self._file(bucket)
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, half = tempfile.mkstemp(prefix=".template.", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_digest_of(code) + code)
                let_others_read(Path(half))
                Path(half).replace(place)
            finally:
                Path(half).unlink(missing_ok=True)

    def _file(self, bucket: Bucket) -> Path:
        return self.folder / f"{bucket.key}.bin"


_DIGEST_LENGTH = 64


def _digest_of(code: bytes) -> bytes:
    return digest_bytes(code).encode("ascii")
