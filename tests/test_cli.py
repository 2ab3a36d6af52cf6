# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: help, mistakes, errors, pipes and signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from llsa_gen import cost
from llsa_gen.catalog import catalogue
from llsa_gen.cli.app import program
from llsa_gen.cli.bench import DEFAULT_SPEC
from llsa_gen.cli.failure import EXIT_CODES, failure_of
from llsa_gen.environment import DEBUG_VARIABLE, OFF_WORDS, is_off, is_on
from llsa_gen.errors import LlsaError
from tests.command_line import AUTO_TABLE, NAMES, SLUG, expect_error, invoke, raises, shell
from tests.tree import ROOT

# -- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["bench", "tune"])
def test_the_help_shows_the_defaults_of_the_spec_that_is_taken(verb: str) -> None:
    shown = " ".join(invoke(verb, "--help").stdout.partition("Options:")[2].split())
    spec = catalogue()[DEFAULT_SPEC].spec
    plain = {"--levels": spec.levels, "--block": spec.block, "--k": spec.topk, "--head-dim": spec.head_dim}
    for flag, default in {**plain, "--dtype": spec.dtype, "--spec": DEFAULT_SPEC}.items():
        found = re.search(rf"(?:^| ){flag}\b.*?\[default: (\S+)\]", shown)
        assert found is not None and found[1] == str(default), flag


def test_the_help_lists_verbs_and_exit_codes() -> None:
    said = invoke("--help").stdout
    assert all(name in said for name in NAMES)
    assert all(re.search(rf"^ +{code} +{re.escape(meaning)}$", said, re.MULTILINE) for code, meaning in EXIT_CODES)
    assert "..." not in said.partition("Commands:")[2], "a one-line help is cut"


def test_nothing_at_all_gets_the_help_and_the_status_of_a_mistake() -> None:
    result = invoke()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage:") and "error" not in result.stderr.partition("Exit codes")[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_has_examples_that_it_can_parse(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    examples = re.findall(rf"^ +llsa-gen {name}(.*?)(?: \|.*)?$", result.stdout, re.MULTILINE)
    assert examples
    command = program.commands[name]
    for example in examples:
        words = re.findall(r'"[^"]*"|\S+', example)
        command.make_context(name, [word.strip('"') for word in words])


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_speaks_json_and_can_be_quiet(name: str) -> None:
    options = {text for option in program.commands[name].params for text in option.opts}
    assert {"--json", "--quiet"} <= options


@pytest.mark.parametrize("name", ["bench", "build", "clean", "demo", "tune"])
def test_verbs_that_write_have_a_dry_run(name: str) -> None:
    assert any("--dry-run" in option.opts for option in program.commands[name].params)


def test_python_m_and_the_entry_point_are_the_same() -> None:
    code = "import sys; sys.argv = ['llsa-gen', 'list', '-q']; from llsa_gen.cli import main; main()"
    entry = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert entry.stdout == shell("list", "-q").stdout


# -- bad input ---------------------------------------------------------------------------------

BAD_FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "topk 0": (("--k", "0"), ("topk", "0", "1 to 128")),
    "topk negative": (("--k=-3",), ("topk", "-3", "1 to 128")),
    "topk float": (("--k", "0.5"), ("topk", "0.5", "sparsity=")),
    "topk huge": (("--k", "1000"), ("topk", "1000", "raise block")),
    "topk list too long": (("--k", "8,4,2"), ("3 topk for 2 levels",)),
    "topk list with auto": (("--k", "8,4", "--levels", "auto", "--seq-len", "4096"), ("auto", "topk")),
    "block 0": (("--block", "0"), ("power of two", "nearest allowed block is 4")),
    "block 1": (("--block", "1"), ("power of two", "nearest allowed block is 4")),
    "block 3": (("--block", "3"), ("power of two", "nearest allowed block is 4")),
    "block word": (("--block", "big"), ("spec field block", "big", "power of two")),
    "levels 0": (("--levels", "0"), ("levels", "0", "1 to 6")),
    "levels 7": (("--levels", "7"), ("levels", "7", "1 to 6")),
    "levels word": (("--levels", "deep"), ("levels", "deep", "1 to 6")),
    "auto without a length": (("--levels", "auto"), ("seq_len", "auto")),
    "length without auto": (("--seq-len", "4096"), ("seq_len", "auto")),
    "head dim": (("--head-dim", "65"), ("head_dim", "65", "pad", "72")),
    "value dim": (("--value-dim", "300"), ("value_dim", "300", "16 to 256")),
    "dtype": (("--dtype", "bf61"), ("bf61", "did you mean 'bf16'")),
    "target": (("--target", "sm9"), ("sm9", "did you mean 'sm90'")),
    "second target": (("--target", "cpu,smm80"), ("smm80", "did you mean 'sm80'")),
    "enrichment": (("--enrichment", "overlapp"), ("overlapp", "did you mean 'overlap'")),
    "malformed topk": (("--k", "max(4,"), ("topk", "max(4,")),
    "code as topk": (("--k", "__import__('os').system('ls')"), ("topk",)),
    "unknown symbol": (("--k", "n // 2"), ("topk", "'n'")),
    "malformed weight": (("--weight", "b**"), ("weight", "b**")),
    "negative weight": (("--weight", "-c"), ("weight", "positive")),
    "name of nothing": (("--spec", "pixel_dot"), ("pixel_dot", "pixel_dit")),
    "slug of nothing": (("--spec", f"{SLUG}_x00000000"), ("digest", "--from")),
    "name without a file": (("--name", "x"), ("--name", "--from")),
    "file and catalogue": (("--from", "a.toml", "--spec", "pixel_dit"), ("--from", "--spec")),
    "missing file": (("--from", "nowhere.toml"), ("no such file", "nowhere.toml")),
    "unknown option": (("--blok", "16"), ("--blok", "--block")),
    "stray word": (("extra",), ("extra",)),
}


@pytest.mark.parametrize("verb", ["build", "plan"])
@pytest.mark.parametrize(("args", "words"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags_get_one_clear_error(
    verb: str, args: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    place = ("--out", tmp_path / "out") if verb == "build" else ()
    result = invoke(verb, *args, *place)
    expect_error(result, 2, *words)
    assert not list(tmp_path.iterdir()), "nothing may be written"


BAD_FILES = {
    "malformed": ("[specs.a\n", ("not valid TOML",)),
    "not UTF-8": ("[specs.a]\nabout = '\udcff'\n", ("UTF-8",)),
    "empty": ("", ("holds no specs",)),
    "unknown field": ("[specs.a]\nblok = 16\n", ("blok", "did you mean 'block'", "[specs.a]")),
    "outside a table": ("block = 16\n", ("block", "[specs.my_model]")),
    "wrong type": ('[specs.a]\nblock = "16"\n', ("block", "'16'", "[specs.a]")),
    "wrong value": ("[specs.a]\ntopk = 0\n", ("topk", "[specs.a]")),
    "not a table": ("[specs]\na = 1\n", ("must be a table",)),
}


@pytest.mark.parametrize(("text", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_get_one_clear_error(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "specs.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    expect_error(invoke("plan", "--from", file), 2, "specs.toml", *words)


def test_an_unknown_name_of_a_file_gets_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "specs.toml"
    file.write_text(AUTO_TABLE)
    expect_error(invoke("plan", "--from", file, "--name", "lung"), 2, "lung", "did you mean 'long'")


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    expect_error(invoke("plan", "--from", tmp_path), 2, str(tmp_path))


def test_an_unknown_verb_gets_the_nearest() -> None:
    expect_error(invoke("biuld"), 2, "biuld", "did you mean 'build'")
    expect_error(invoke("quux"), 2, "quux", *NAMES)


def test_numbers_of_plan_have_ranges() -> None:
    for option in ("--tokens", "--batch", "--heads"):
        expect_error(invoke("plan", option, "0"), 2, option, "0")


# -- errors in JSON, and errors that should not happen -----------------------------------------


@pytest.mark.parametrize("args", [("plan", "--k", "0"), ("plan", "--blok", "1"), ("biuld",), ("plan", "--block", "x")])
def test_errors_are_json_where_json_is_asked_for(args: tuple[str, ...]) -> None:
    result = invoke(*args, "--json")
    assert result.exit_code == 2 and result.stderr == ""
    error = json.loads(result.stdout)
    assert list(error) == ["error"] and set(error["error"]) == {"type", "message"}
    assert error["error"]["type"] in ("SpecError", "UsageError", "NoSuchOption", "BadParameter")
    assert error["error"]["message"]


def test_an_unexpected_error_is_one_line_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    monkeypatch.setattr(cost, "plan_report", raises(RuntimeError("first line\nsecond line")))
    result = invoke("plan", "--quiet")
    assert result.exit_code == 70
    assert result.stderr.splitlines() == [
        f"internal error: RuntimeError: first line second line; run with {DEBUG_VARIABLE}=1 for the traceback"
    ]


def test_the_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    monkeypatch.setattr(cost, "plan_report", raises(RuntimeError("broken")))
    result = invoke("plan", "--json")
    assert "Traceback" in result.stderr and "plan_report" in result.stderr
    assert json.loads(result.stdout)["error"]["type"] == "RuntimeError"


@pytest.mark.parametrize("word", ["", " ", "1", "yes", "a_folder", *OFF_WORDS, *map(str.upper, OFF_WORDS), " off "])
def test_a_variable_is_on_off_or_not_set(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, word)
    plain = word.strip().lower()
    assert (is_on(DEBUG_VARIABLE), is_off(DEBUG_VARIABLE)) == (plain not in ("", *OFF_WORDS), plain in OFF_WORDS)
    monkeypatch.delenv(DEBUG_VARIABLE)
    assert not is_on(DEBUG_VARIABLE) and not is_off(DEBUG_VARIABLE)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_is_not_an_error(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "plan_report", raises(error))
    result = invoke("plan")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted: what is finished is kept"


def test_every_error_class_has_a_documented_status() -> None:
    def below(kind: type[LlsaError]) -> Iterator[type[LlsaError]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    codes = {code for code, _ in EXIT_CODES}
    assert {kind.exit_code for kind in below(LlsaError)} <= codes
    assert failure_of(PermissionError(13, "Permission denied", "there")).exit_code == 6
    assert failure_of(MemoryError()).exit_code == 70


# -- processes, pipes and signals --------------------------------------------------------------


def test_a_full_disk_below_stdout_is_said() -> None:
    with Path("/dev/full").open("w") as full_disk:
        result = shell("list", stdout=full_disk, stderr=subprocess.PIPE, capture_output=False)
    assert result.returncode == 6
    assert "No space left" in result.stderr and "Traceback" not in result.stderr


def test_a_closed_pipe_is_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = shell("list", stdout=writer, stderr=subprocess.PIPE, capture_output=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (6, "")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_is_not_a_crash(closed: int) -> None:
    command = f"{sys.executable} -m llsa_gen list -q {closed}>&-"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    said = result.stderr if closed == 1 else result.stdout
    assert result.returncode == (6 if closed == 1 else 0)
    assert said == "error: stdout is closed\n" if closed == 1 else SLUG in said


def test_a_terminal_without_unicode_is_served() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = shell("list", env=env)
    assert result.returncode == 0, result.stderr


def test_ctrl_c_ends_without_a_traceback() -> None:
    command = [sys.executable, "-m", "llsa_gen", "plan", "--levels", "6"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, first + rest
    assert "Traceback" not in rest and rest.splitlines()[-1] == "interrupted: what is finished is kept"
