# SPDX-License-Identifier: Apache-2.0
"""Digests of canonical data: the one place that turns data into identity."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from llsa_gen.errors import InternalError, explain

SCHEMA = 1
"""Part of every digest; raised when the meaning of digested data changes."""

SHORT_LENGTH = 8
"""Hexadecimal digits of a short digest."""


def canonical_json(data: object) -> str:
    """The one JSON text of plain data: sorted keys, no spaces, ASCII, finite numbers.

    Args:
        data: None, bool, int, finite float, str, or lists, tuples and str-keyed mappings of those.

    Raises:
        InternalError: The data holds anything else, so its text would not be canonical.
    """
    return json.dumps(_plain(data, "data"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(data: object) -> str:
    """The sha256 (64 hexadecimal digits) of plain data together with the schema number."""
    return digest_bytes(canonical_json({"data": data, "schema": SCHEMA}).encode("ascii"))


def short_digest(data: object, length: int = SHORT_LENGTH) -> str:
    """The first ``length`` hexadecimal digits of :func:`digest`, for names that people read."""
    return digest(data)[:length]


def digest_bytes(content: bytes) -> str:
    """The sha256 (64 hexadecimal digits) of raw bytes, for files."""
    return hashlib.sha256(content).hexdigest()


def _plain(data: object, where: str) -> Any:
    """Copies ``data`` into exactly what JSON can hold, or says where it cannot."""
    if data is None or type(data) in (bool, int, str):
        return data
    if type(data) is float and math.isfinite(data):
        return data
    if isinstance(data, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(data)]
    if isinstance(data, dict) and all(type(key) is str for key in data):
        return {key: _plain(item, f"{where}.{key}") for key, item in data.items()}
    raise InternalError(
        explain(
            "only plain data has a digest",
            where=where,
            value=data,
            allowed="None, bool, int, finite float, str, lists, tuples and dicts with str keys",
            hint="convert the value to a text or a number before it is digested",
        )
    )
