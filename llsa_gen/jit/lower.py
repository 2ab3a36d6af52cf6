# SPDX-License-Identifier: Apache-2.0
"""From a generated kernel file to C or CUDA source: the one place that runs TileLang's compiler."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llsa_gen.errors import CompileError, InternalError, explain
from llsa_gen.jit.toolchain import PINNED_TILELANG, require_tilelang
from llsa_gen.targets import Target

CPU_PASSES = {"tirx.disable_vectorize": True}
CUDA_PASSES = {"tl.disable_warp_specialized": True, "tl.disable_tma_lower": True}
"""Copies become cp.async and every warp multiplies; which of the two pays is for a measurement to decide."""


@dataclass(frozen=True)
class LoweredKernel:
    """Source of one kernel, complete with its host entry ``call``.

    Attributes:
        source: C++ or CUDA text.
        shared_bytes: Dynamic shared memory of a block, 0 on a CPU.
    """

    source: str
    shared_bytes: int


def lower_kernel(path: Path, factory: str, arguments: dict[str, Any], target: Target, *, exact: bool) -> LoweredKernel:
    """Runs the factory of a generated file and lowers what it returns.

    Args:
        path: The generated file.
        factory: The function in it.
        arguments: Its structural and schedule arguments.
        target: The machine to lower for.
        exact: Whether products must be exact in fp32.

    Raises:
        ToolMissingError: TileLang is not installed.
        CompileError: TileLang refused the kernel; holds its message.
    """
    require_tilelang()
    try:
        from llsa_gen.jit.flavour import Flavour

        module = _import_file(path)
        program = getattr(module, factory)(Flavour(cpu=not target.is_cuda, exact=exact), **arguments)
        return _lower(program, target)
    except Exception as error:  # TileLang raises its own and TVM's error types, and plain ones, without a common base
        what = f"TileLang could not lower {factory}({_spoken(arguments)}) for {target.name}"
        raise CompileError(what, path=path, compiler_output=f"{type(error).__name__}: {error}") from error


def _lower(program: Any, target: Target) -> LoweredKernel:
    from tilelang import tvm
    from tilelang.backend.module import create_backend_context
    from tilelang.engine.lower import lower_with_context

    machine = {"kind": "cuda", "arch": target.arch} if target.is_cuda else "c"
    context = create_backend_context(machine, None, "cython")
    passes = CUDA_PASSES if target.is_cuda else CPU_PASSES
    with tvm.transform.PassContext(opt_level=3, config=passes), context.target:
        artifact = lower_with_context(program, context, enable_host_codegen=False, enable_device_compile=False)
    if not target.is_cuda:
        declared = {str(parameter.name): str(parameter.dtype) for parameter in program.params}
        return LoweredKernel(artifact.kernel_source + _cpu_entry(artifact.kernel_source, declared), 0)
    source = _cuda_source(program, context, artifact)
    shared = re.search(r"dynamicSmemBytes = (\d+)", source)
    return LoweredKernel(source, int(shared[1]) if shared else 0)


def _cpu_entry(source: str, declared: dict[str, str]) -> str:
    """The host entry of a C kernel: its arguments in the order of the program, those it does not use included."""
    prototype = re.search(r"int32_t (\w+_kernel)\((.*?)\);", source)
    assert prototype is not None, "the C target declares the kernel before it defines it"
    arguments = [argument.rsplit(" ", 1) for argument in prototype[2].split(", ")]
    types = {name.removesuffix("_view"): kind for kind, name in arguments}
    unused = {"handle": "void*", "int32": "int32_t", "float32": "float"}
    taken = ", ".join(f"{types.get(name, unused[dtype])} {name}" for name, dtype in declared.items())
    passed = ", ".join(name.removesuffix("_view") for _, name in arguments)
    return (
        f'\nextern "C" const char* get_last_error() {{ return ""; }}\n'
        f'extern "C" int32_t init() {{ return 0; }}\n'
        f'extern "C" int32_t call({taken}) {{ return {prototype[1]}({passed}); }}\n'
    )


def _cuda_source(program: Any, context: Any, artifact: Any) -> str:
    """The kernel with TileLang's host entry, which also makes the descriptors of bulk copies."""
    from tilelang import tvm
    from tilelang.jit.adapter.wrapper import TLWrapper

    wrapper = TLWrapper(context.target)
    wrapper.assign_optimized_module(tvm.IRModule({program.attrs["global_symbol"]: program}))
    wrapper.assign_pass_configs({})
    wrapper.assign_host_module(artifact.host_mod)
    wrapper.assign_device_module(artifact.device_mod)
    return _ordered_launches(wrapper.wrap(artifact.kernel_source))


def _ordered_launches(source: str) -> str:
    """Takes programmatic launch overlap off: these kernels do not wait for the grid before them, so it would race.

    Raises:
        InternalError: TileLang's host code is not worded as expected, so the overlap would stay on.
    """
    ordered, found = re.subn(r"config\.numAttrs = 1;", "config.numAttrs = 0;", source)
    if found != 1:
        what = "TileLang's host code does not launch one kernel in the expected words"
        hint = f"pip install tilelang=={PINNED_TILELANG}"
        raise InternalError(explain(what, where="config.numAttrs", value=found, allowed=1, hint=hint))
    return ordered


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"llsa_gen_kernel_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _spoken(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
