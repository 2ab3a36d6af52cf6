# SPDX-License-Identifier: Apache-2.0
"""From a generated CPU kernel to an object file: TVM's passes and LLVM, in a process of their own.

TVM and TileLang bring the same library under other versions and cannot share a process. The request comes as JSON on
standard input, the answer leaves as JSON on standard output: ``python -m llsa_gen.jit.lower_lanes``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llsa_gen.errors import CompileError, ToolMissingError, explain
from llsa_gen.jit.compile import SCRIPT
from llsa_gen.jit.isa import vectors_of
from llsa_gen.jit.toolchain import PINNED_TVM, version_of

TASKS = "tasks"
"""The attribute of a kernel that says how many calls a head takes: a C expression over its int32 parameters."""


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


def compile_object(request: LanesRequest) -> str:
    """Compiles a kernel in another process and returns how many calls a head takes, as a C expression.

    Raises:
        ToolMissingError: TVM is not installed, or not in the pinned version.
        CompileError: TVM refused the kernel; holds its message.
    """
    _require_tvm()
    vectors_of(request.isa)  # refuses what there are no kernels for
    command, spoken = [sys.executable, "-m", __name__], json.dumps(asdict(request))
    done = subprocess.run(  # noqa: S603  # our own interpreter and our own module
        command, input=spoken, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        source = Path(request.source)
        script = f"#!/bin/sh\necho {shlex.quote(spoken)} | exec {shlex.join(command)}\n"
        (source.parent / SCRIPT).write_text(script, encoding="utf-8")
        arguments = ", ".join(f"{name}={value!r}" for name, value in request.arguments.items())
        what = f"TVM could not compile {request.factory}({arguments}) for {request.isa}"
        raise CompileError(what, path=source, compiler_output=done.stderr)
    return str(json.loads(done.stdout.splitlines()[-1])[TASKS])


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
    """Serves one request."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # TVM would import it, which takes longer than compiling
    try:
        found = _compile(LanesRequest(**json.load(sys.stdin)))
    except Exception as error:  # TVM hides its messages from a process that ends with them
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    sys.stdout.write(json.dumps({TASKS: found}) + "\n")


def _compile(request: LanesRequest) -> str:
    import tvm

    from llsa_gen.jit.lanes import Lanes

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
    build(_lowered(program, target), target).write_to_file(request.output, "o")
    return str(program.attrs[TASKS])


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
