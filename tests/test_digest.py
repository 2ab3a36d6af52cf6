# SPDX-License-Identifier: Apache-2.0
"""Digests: a function of the meaning of plain data and of nothing else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen import digest as digests
from llsa_gen.digest import canonical_json, digest, digest_bytes, short_digest
from llsa_gen.errors import InternalError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def shuffled(data: Any) -> Any:
    """The same data with every mapping in reverse order and every list as a tuple."""
    if isinstance(data, dict):
        return {key: shuffled(data[key]) for key in reversed(list(data))}
    return tuple(map(shuffled, data)) if isinstance(data, list) else data


@given(DATA)
def test_canonical_json_is_json_and_keeps_the_data(data: Any) -> None:
    assert json.loads(canonical_json(data)) == data
    assert canonical_json(data).isascii()


@given(DATA)
def test_order_of_keys_and_kind_of_sequence_do_not_count(data: Any) -> None:
    assert digest(shuffled(data)) == digest(data)


@given(DATA, DATA)
def test_digests_differ_where_texts_differ(left: Any, right: Any) -> None:
    assert (digest(left) == digest(right)) == (canonical_json(left) == canonical_json(right))


@given(DATA, st.integers(1, 64))
def test_short_digest_is_a_prefix(data: Any, length: int) -> None:
    assert digest(data).startswith(short_digest(data, length))
    assert len(short_digest(data, length)) == length
    assert len(short_digest(data)) == digests.SHORT_LENGTH


def test_digest_is_sha256_of_the_canonical_text_with_the_schema() -> None:
    assert digest({"b": [1, 2.5], "a": None}) == digest_bytes(b'{"data":{"a":null,"b":[1,2.5]},"schema":1}')
    assert digest_bytes(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_the_schema_number_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest("x")
    monkeypatch.setattr(digests, "SCHEMA", digests.SCHEMA + 1)
    assert digest("x") != before


def test_hash_seed_does_not_count() -> None:
    program = "from llsa_gen.digest import digest; print(digest({'x': [1, {'z': 'y', 'a': None}]}))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == digest({"x": [1, {"z": "y", "a": None}]}) + "\n"


@pytest.mark.parametrize("data", [{1: 2}, {"a": {1, 2}}, [float("nan")], [float("inf")], object(), b"x", {"a": [1j]}])
def test_anything_but_plain_data_is_refused_with_its_place(data: Any) -> None:
    with pytest.raises(InternalError, match="where:   data"):
        digest(data)
