# SPDX-License-Identifier: Apache-2.0
"""How tests of the command line run it, and what they expect of an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from click.testing import CliRunner, Result

from llsa_gen.cli.app import VERBS, program
from llsa_gen.jit import toolchain
from tests.tree import ROOT

SMALL = ("--levels", "1", "--block", "4", "--k", "1", "--head-dim", "16", "--dtype", "fp32")
SMALL_SLUG = "llsa_l1_b4_k1_d16_fp32"
SLUG = "llsa_l2_b16_k8_d64_bf16"
NAMES = tuple(verb.command.name or "" for verb in VERBS)
PARTS = ("  where:   ", "  value:   ", "  allowed: ", "  next:    ")
"""How the lines of an error begin, after the first one."""
AUTO_TABLE = '[specs.long]\nlevels = "auto"\nseq_len = 65536\ntopk = "max(4, 16 // 2**l)"\nhead_dim = 32\n'


def invoke(*args: object, stdin: str | None = None) -> Result:
    """Runs a command line in this process."""
    return CliRunner().invoke(program, [str(arg) for arg in args], input=stdin)


def data_of(*args: object, exit_code: int = 0) -> Any:
    """The one JSON document of a command line."""
    result = invoke(*args, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def shell(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command line in a process of its own."""
    command = [sys.executable, "-m", "llsa_gen", *map(str, args)]
    return subprocess.run(command, text=True, cwd=ROOT, check=False, **{"capture_output": True, **options})


def expect_error(result: Result, exit_code: int, *words: str) -> None:
    """One message on stderr, no traceback, nothing on stdout."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def has_all_parts(message: str) -> bool:
    """Whether an error says what is wrong in its first line, and each of the other parts once."""
    return not message.startswith(" ") and all(message.count(f"\n{part}") == 1 for part in PARTS)


def raises(error: BaseException) -> Callable[..., Any]:
    def raiser(*args: object, **kwargs: object) -> Any:
        raise error

    return raiser


def machine(*, cxx: bool, nvcc: bool) -> toolchain.Toolchain:
    """A machine with TileLang, without a GPU, and with the compilers that are named."""
    tool = toolchain.Tool("/usr/bin/tool", "1.0")
    versions = {"torch": "1.0", "tilelang": "1.0", "tvm": toolchain.PINNED_TVM, "tvm_ffi": "1.0"}
    return toolchain.Toolchain(
        python="3.11.0", cxx=tool if cxx else None, nvcc=tool if nvcc else None, gpus=(), gpu_targets=(), **versions
    )
