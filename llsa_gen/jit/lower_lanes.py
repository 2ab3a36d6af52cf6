# SPDX-License-Identifier: Apache-2.0
"""From a generated CPU kernel to an object file: TVM's passes and LLVM, in processes of their own.

TVM and TileLang bring the same library under other versions and cannot share a process. A process of TVM serves one
request after another, each a line of JSON on standard input that is answered by one on standard output:
``python -m llsa_gen.jit.lower_lanes``. What it cannot serve ends it, with the reason on standard error.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import linecache
import os
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from llsa_gen.errors import CompileError, ToolMissingError, explain
from llsa_gen.jit.compile import SCRIPT
from llsa_gen.jit.isa import LINE_BYTES, vectors_of
from llsa_gen.jit.toolchain import PINNED_TVM, version_of

TASKS = "tasks"
"""The attribute of a kernel that says how many calls a head takes: a C expression over its int32 parameters."""

COMMAND = [sys.executable, "-m", "llsa_gen.jit.lower_lanes"]
"""The process that serves requests."""


@dataclass(frozen=True)
class LanesRequest:
    """What to compile.

    Attributes:
        source: The generated file.
        factory: The function in it.
        arguments: Its structural and schedule arguments.
        isa: The instruction set.
        output: Where the object file shall be.
    """

    source: str
    factory: str
    arguments: dict[str, Any]
    isa: str
    output: str


def symbol_of(factory: str) -> str:
    """The C name of a kernel; a bare one may be a function of the system, as ``select`` is."""
    return f"llsa_gen_{factory}"


class LanesCompiler:
    """Compiles kernels in other processes: as many as there are callers at a time, kept for later calls until the end.

    Leaving its ``with`` statement ends the processes.
    """

    def __init__(self) -> None:
        self._idle: list[_Worker] = []

    def __enter__(self) -> LanesCompiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            self._idle.pop().end()

    def compile_object(self, request: LanesRequest) -> str:
        """Compiles a kernel and returns how many calls a head takes, as a C expression; any thread may call.

        Raises:
            ToolMissingError: TVM is not installed, or not in the pinned version.
            CompileError: TVM refused the kernel; holds its message.
        """
        _require_tvm()
        vectors_of(request.isa)  # refuses what there are no kernels for
        worker = self._take()
        answer = worker.ask(request)
        if answer is None:
            source = Path(request.source)
            (source.parent / SCRIPT).write_text(_script(request), encoding="utf-8")
            arguments = ", ".join(f"{name}={value!r}" for name, value in request.arguments.items())
            what = f"TVM could not compile {request.factory}({arguments}) for {request.isa}"
            raise CompileError(what, path=source, compiler_output=worker.last_words())
        self._idle.append(worker)
        return str(answer[TASKS])

    def _take(self) -> _Worker:
        try:
            return self._idle.pop()
        except IndexError:
            return _Worker()


class _Worker:
    """A process of TVM."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # not a pipe, which would block once it is full
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and our own module
            COMMAND,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, request: LanesRequest) -> dict[str, Any] | None:
        """The answer to a request, or None where the process ended instead."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            requests.write(json.dumps(asdict(request)) + "\n")
            requests.flush()
        except BrokenPipeError:
            return None
        line = answers.readline()
        return dict(json.loads(line)) if line.endswith("\n") else None

    def last_words(self) -> str:
        """Waits for the end; what the process wrote on standard error, and the signal that ended it, if one did."""
        with suppress(BrokenPipeError), self._process:
            pass  # closes the pipes, then waits
        with self._log:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")
        signal = -self._process.returncode
        return said + f"ended by signal {signal}\n" if signal > 0 else said

    def end(self) -> None:
        """Ends the process; one that waits for requests has nothing to lose."""
        self._process.kill()
        self.last_words()


def _script(request: LanesRequest) -> str:
    """A shell script that compiles a kernel again."""
    return f"#!/bin/sh\necho {shlex.quote(json.dumps(asdict(request)))} | exec {shlex.join(COMMAND)}\n"


def _environment() -> dict[str, str]:
    """The environment of the process: this package first, and no trace of TileLang.

    Once TileLang is imported, the environment leads children to the TVM that it brings.
    """
    found = {name: value for name, value in os.environ.items() if name != "TVM_LIBRARY_PATH"}
    paths = [
        path for path in found.get("PYTHONPATH", "").split(os.pathsep) if path and "tilelang" not in Path(path).parts
    ]
    found["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *paths])
    return found


def _require_tvm() -> None:
    found = version_of("apache-tvm")
    if found != PINNED_TVM:
        what = "TVM is needed to build CPU kernels"
        hint = f"pip install apache-tvm=={PINNED_TVM}; kernels that are built already still run"
        allowed = f"apache-tvm=={PINNED_TVM}"
        raise ToolMissingError(explain(what, where="installed packages", value=found, allowed=allowed, hint=hint))


def main() -> None:
    """Serves requests until there are no more."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # TVM would import it, which takes longer than compiling
    _find_parsers_fast()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what TVM prints is no answer
        for line in sys.stdin:
            linecache.clearcache()  # TVM reads sources through it; a file may have another text than it had
            answers.write(json.dumps({TASKS: _served(LanesRequest(**json.loads(line)))}) + "\n")
            answers.flush()


def _find_parsers_fast() -> None:
    """Lets calls of macros find their parser by the frames alone.

    TVM reads the source of every frame of the stack at every call: half of the time that a kernel took to compile.
    """
    from tvm.script.parser.core.parser import ScriptMacro

    name = ScriptMacro.parser_object_name

    def parser_of(_: ScriptMacro) -> Any:
        frame = inspect.currentframe()
        while frame is not None and frame.f_globals.get(name) is None:
            frame = frame.f_back
        if frame is None:
            raise RuntimeError(f"{name} not available")
        return frame.f_globals[name]

    ScriptMacro._find_parser_def = parser_of  # noqa: SLF001  # the version of TVM is pinned


def _served(request: LanesRequest) -> str:
    try:
        return _compile(request)
    except Exception as error:  # TVM hides its messages from a process that ends with them
        raise SystemExit(f"{type(error).__name__}: {error}") from error


def _compile(request: LanesRequest) -> str:
    import tvm

    from llsa_gen.jit.isa import Lanes

    vectors = vectors_of(request.isa)
    spec = importlib.util.spec_from_file_location("llsa_gen_kernel", request.source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program = getattr(module, request.factory)(Lanes(vectors.width, vectors.registers), **request.arguments)
    target = tvm.target.Target(
        {"kind": "llvm", "mtriple": vectors.triple, "mcpu": vectors.cpu, "mattr": list(vectors.attributes)}
    )
    build = tvm.get_global_func("target.build.llvm")
    program = program.with_attr("global_symbol", symbol_of(request.factory))
    text = Path(request.output).with_suffix(".ll")
    text.write_text(_aligned(build(_lowered(program, target), target).inspect_source("ll")), encoding="utf-8")
    tvm.runtime.load_module(str(text)).write_to_file(request.output, "o")
    text.unlink()
    return str(program.attrs[TASKS])


def _aligned(text: str) -> str:
    """LLVM's text with every array on the stack at the start of a cache line.

    TVM asks for no more than 16 bytes. A vector of 64 may lie across two lines then, which takes twice as long to move;
    that cost whole kernels up to 12 % of their time.
    """
    return re.sub(r"(= alloca \[.*\], align) \d+", rf"\1 {LINE_BYTES}", text)


def _lowered(program: Any, target: Any) -> Any:
    """The program as LLVM takes it: a plain C function of its parameters, whose arrays lie on the stack."""
    import tvm
    from tvm import s_tir, tirx

    passes = [
        s_tir.transform.LowerInitBlock(),
        tirx.transform.StmtSimplify(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(enable_vectorize=True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.BF16StorageLegalize(),
        tirx.transform.LowerIntrin(),
    ]
    name = str(program.attrs["global_symbol"])
    with target:
        return tvm.transform.Sequential(passes)(tvm.IRModule({name: program.with_attr("target", target)}))


if __name__ == "__main__":
    main()
