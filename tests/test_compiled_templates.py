# SPDX-License-Identifier: Apache-2.0
"""Templates that an earlier process compiled change the time of rendering, never what is rendered."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from jinja2.environment import Template

from llsa_gen.codegen.compiled import environment

NAME = "numbers.jinja"


def render(templates: Path, cache: Path) -> str:
    return environment(templates, cache).get_template(NAME).render(n=3)


def write(templates: Path, text: str) -> Path:
    templates.mkdir(exist_ok=True)
    (templates / NAME).write_text(text, encoding="utf-8")
    return templates


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    return write(tmp_path / "templates", "{% for i in range(n) %}\n{{ i }}\n{% endfor %}\n")


def kept(cache: Path) -> list[Path]:
    return list(cache.iterdir())


def test_a_second_environment_compiles_nothing(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert render(templates, tmp_path / "cache") == "0\n1\n2\n"
    monkeypatch.setattr("jinja2.environment.Environment._parse", None)
    assert render(templates, tmp_path / "cache") == "0\n1\n2\n"
    assert isinstance(environment(templates, tmp_path / "cache").get_template(NAME), Template)


def test_another_text_is_compiled_and_takes_the_place_of_the_first(templates: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    render(templates, cache)
    for text in ("{{ n }}!\n", "{{ n }}?\n"):
        assert render(write(tmp_path / "others", text), cache) == text.replace("{{ n }}", "3")
    assert render(templates, cache) == "0\n1\n2\n"
    assert len(kept(cache)) == 1


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def cut_in_the_head(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbled(path: Path) -> None:
    """The checksum is no longer pickled as a string."""
    path.write_bytes(path.read_bytes().replace(b"\x80\x02X", b"\x80\x02c", 1))


def of_another_text(path: Path) -> None:
    data = path.read_bytes()
    checksum = pickle.dumps("0" * 40, 2)
    path.write_bytes(data.replace(pickle.dumps(pickle.loads(data[data.index(b"\x80\x02") :]), 2), checksum))


@pytest.mark.parametrize("fault", [cut_short, cut_in_the_head, emptied, garbled, of_another_text])
def test_a_broken_file_is_a_miss_and_is_mended(fault: Callable[[Path], None], templates: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    render(templates, cache)
    (path,) = kept(cache)
    whole = path.read_bytes()
    fault(path)
    assert path.read_bytes() != whole
    assert render(templates, cache) == "0\n1\n2\n"
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_only_time(templates: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file", encoding="utf-8")
    assert render(templates, cache) == "0\n1\n2\n"
    assert cache.read_text(encoding="utf-8") == "a file"
