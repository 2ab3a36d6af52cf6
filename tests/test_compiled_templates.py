# SPDX-License-Identifier: Apache-2.0
"""Templates that an earlier process compiled change the time of rendering, never what is rendered."""

from __future__ import annotations

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


def without_its_head(path: Path) -> None:
    path.write_bytes(path.read_bytes()[64:])


def with_other_code(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\t"))


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


FAULTS = (cut_short, cut_in_the_head, emptied, without_its_head, with_other_code, noise)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_a_miss_and_is_mended(fault: Callable[[Path], None], templates: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    render(templates, cache)
    (path,) = kept(cache)
    whole = path.read_bytes()
    fault(path)
    assert path.read_bytes() != whole
    assert render(templates, cache) == "0\n1\n2\n"
    assert path.read_bytes() == whole


@pytest.mark.parametrize("bit", range(8))
def test_no_flipped_bit_changes_what_is_rendered(bit: int, templates: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    render(templates, cache)
    (path,) = kept(cache)
    whole = path.read_bytes()
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        assert render(templates, cache) == "0\n1\n2\n", place
        assert path.read_bytes() == whole


def test_a_compiled_template_can_be_read_by_whoever_can_read_the_folder(templates: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o750)
    render(templates, cache)
    assert [path.stat().st_mode & 0o777 for path in kept(cache)] == [0o640]


def test_a_folder_that_cannot_be_written_costs_only_time(templates: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file", encoding="utf-8")
    assert render(templates, cache) == "0\n1\n2\n"
    assert cache.read_text(encoding="utf-8") == "a file"
