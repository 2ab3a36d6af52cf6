# SPDX-License-Identifier: Apache-2.0
"""What is installed here: compilers, their versions, the GPUs, and what they allow."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from llsa_gen.errors import CompileError, ToolMissingError, explain
from llsa_gen.jit.architecture import architecture_of, linkable_isas
from llsa_gen.jit.isa import ISAS
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.targets import Target, get_target

PINNED_TILELANG, PINNED_TVM = "0.1.15", "0.25.0.post1"
"""The versions of the project's metadata; kernels are looked up under them where a compiler is not installed."""
NVCC_PACKAGES = "nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl"
"""PyPI packages that together make an nvcc."""


_NVCC_VERSION = r"release ([\d.]+)"


@dataclass(frozen=True)
class Tool:
    """One compiler.

    Attributes:
        path: The executable.
        version: What it says of itself, such as ``13.0``.
        source: ``system``, or ``pypi`` for the compiler out of the PyPI packages.
        fault: Its own words where it cannot even say its version; empty for a tool that runs.
    """

    path: str
    version: str
    source: str = "system"
    fault: str = ""


@dataclass(frozen=True)
class Toolchain:
    """Everything a build may need; None where something is missing."""

    python: str
    torch: str | None
    tilelang: str | None
    tvm: str | None
    tvm_ffi: str | None
    cxx: Tool | None
    nvcc: Tool | None
    gpus: tuple[str, ...]
    gpu_targets: tuple[str, ...]

    def can_compile(self, target: Target | str) -> tuple[bool, str]:
        """Whether kernels for a target can be built here, and why not or with what."""
        machine = get_target(target)
        missing = self._missing_language(machine)
        if missing:
            return False, missing
        if self.cxx is None:
            return False, "no C++ compiler: install g++ (Debian, Ubuntu: apt-get install g++)"
        if machine.is_cuda and self.nvcc is None:
            return False, f"no nvcc: install the CUDA toolkit, or pip install {NVCC_PACKAGES}"
        tool = self.nvcc if machine.is_cuda else self.cxx
        assert tool is not None
        if tool.fault:
            return False, f"{tool.path} is broken: {tool.fault.splitlines()[0]}; {_mend(machine)}"
        return True, f"with {Path(tool.path).name} {tool.version}"

    def _missing_language(self, machine: Target) -> str:
        """What lowers the kernels of a target and is missing, or nothing."""
        if self.tilelang is None:
            return f"TileLang is missing: pip install tilelang=={PINNED_TILELANG}"
        if machine.has_isa and self.tvm != PINNED_TVM:
            return f"TVM is missing or of another version: pip install apache-tvm=={PINNED_TVM}"
        if machine.has_isa and architecture_of(machine) not in ISAS:
            return f"there are no CPU kernels for {architecture_of(machine)}: use the target c"
        if machine.has_isa and architecture_of(machine) not in linkable_isas():
            return f"the C++ compiler here links nothing for {architecture_of(machine)}: build on such a machine"
        return ""

    def can_run(self, target: Target | str) -> tuple[bool, str]:
        """Whether kernels for a target run on this machine."""
        machine = get_target(target)
        if not machine.is_cuda:
            return True, architecture_of(machine)
        if machine.name in self.gpu_targets:
            return True, ", ".join(self.gpus)
        return False, "no such GPU here" if self.gpus else "no GPU here"


@cache
def describe() -> Toolchain:
    """Looks at this machine; imports torch only to ask for GPUs."""
    gpus, targets = _gpus()
    return Toolchain(
        python=platform.python_version(),
        torch=version_of("torch"),
        tilelang=version_of("tilelang"),
        tvm=version_of("apache-tvm"),
        tvm_ffi=version_of("apache-tvm-ffi"),
        cxx=find_cxx(),
        nvcc=find_nvcc(),
        gpus=gpus,
        gpu_targets=targets,
    )


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def find_cxx() -> Tool | None:
    """The C++ compiler: ``$CXX``, else g++, else clang++."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return _ask(path, r"(?:version |\) )(\d[\d.]*)")
    return None


@cache
def find_nvcc() -> Tool | None:
    """nvcc: ``$CUDACXX``, else on the path, else under ``$CUDA_HOME`` or /usr/local/cuda, else the PyPI packages."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    for name in (os.environ.get("CUDACXX", ""), "nvcc", f"{home}/bin/nvcc"):
        path = shutil.which(name) if name else None
        if path:
            return _ask(path, _NVCC_VERSION)
    for found in _pypi_nvcc():
        return _ask(str(found), _NVCC_VERSION, source="pypi")
    return None


def require_cxx() -> Tool:
    """The C++ compiler.

    Raises:
        ToolMissingError: There is none.
    """
    found = find_cxx()
    if found is None:
        what, where, value = "a C++ compiler is needed to build kernels", "CXX, PATH", os.environ.get("PATH")
        hint = "install g++ (Debian, Ubuntu: apt-get install g++) or set CXX"
        raise ToolMissingError(explain(what, where=where, value=value, allowed="g++, clang++", hint=hint))
    return found


def require_nvcc() -> Tool:
    """The CUDA compiler.

    Raises:
        ToolMissingError: There is none.
    """
    found = find_nvcc()
    if found is None:
        what, where = "nvcc is needed to build kernels for a GPU", "CUDACXX, PATH, CUDA_HOME"
        value, allowed = os.environ.get("PATH"), "nvcc of CUDA 12 or later, or of the PyPI packages"
        hint = f"install the CUDA toolkit and put nvcc on the path, or: pip install {NVCC_PACKAGES}"
        raise ToolMissingError(explain(what, where=where, value=value, allowed=allowed, hint=hint))
    return found


def require_compiler(target: Target) -> Tool:
    """The compiler of a target, once it is known to run.

    Raises:
        ToolMissingError: There is none, or it serves another architecture.
        CompileError: It cannot even say its version; holds its message.
    """
    _require_linkable(target)
    tool = require_nvcc() if target.is_cuda else require_cxx()
    if tool.fault:
        what = f"{Path(tool.path).name} is broken: it cannot say its version"
        raise CompileError(what, path=tool.path, tool=tool.path, compiler_output=tool.fault, hint=_mend(target))
    return tool


def _require_linkable(target: Target) -> None:
    isa = architecture_of(target)
    if target.has_isa and isa in ISAS and isa not in linkable_isas():
        what = f"the C++ compiler of this machine links nothing for {isa}"
        hint = f"build on such a machine, and copy or share the folder of compiled kernels ({CACHE_VARIABLE})"
        raise ToolMissingError(explain(what, where="isa", value=isa, allowed=linkable_isas(), hint=hint))


def tilelang_folder() -> Path:
    """Where TileLang is installed; does not import it.

    Raises:
        ToolMissingError: It is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("tilelang")
    if spec is None or spec.origin is None:
        raise _without_tilelang(None)
    return Path(spec.origin).parent


def require_tilelang() -> None:
    """Imports TileLang, which checks the installation.

    Raises:
        ToolMissingError: It is not installed, or cannot be imported.
    """
    try:
        import tilelang  # noqa: F401
    except ImportError as error:
        raise _without_tilelang(str(error)) from error


def _without_tilelang(value: str | None) -> ToolMissingError:
    what, where, allowed = "TileLang is needed to build kernels", "installed packages", f"tilelang=={PINNED_TILELANG}"
    hint = f"pip install tilelang=={PINNED_TILELANG}; kernels that are built already still run"
    return ToolMissingError(explain(what, where=where, value=value, allowed=allowed, hint=hint))


def _pypi_nvcc() -> list[Path]:
    from importlib.util import find_spec

    spec = find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return [path for folder in folders for path in sorted(Path(folder).glob("cu*/bin/nvcc"))]


def _ask(path: str, pattern: str, source: str = "system") -> Tool:
    """Asks a compiler for its version; one that cannot answer is broken."""
    try:
        done = subprocess.run(  # noqa: S603  # a compiler that the user named or that is on the path
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Tool(path, "unknown", source, fault=str(error))
    if done.returncode:
        said = (done.stderr + done.stdout).strip() or "it says nothing"
        return Tool(path, "unknown", source, fault=f"{said}\n(status {done.returncode} of --version)")
    found = re.search(pattern, done.stdout)
    return Tool(path, found[1] if found else "unknown", source)


def _mend(target: Target) -> str:
    """What to do about a compiler that does not run."""
    variable = "CUDACXX" if target.is_cuda else "CXX"
    return f"install it again, or name another: {variable}=/path/to/{'nvcc' if target.is_cuda else 'g++'}"


def _gpus() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the GPUs that torch sees, and the targets whose kernels they run."""
    if version_of("torch") is None:
        return (), ()
    import torch

    if not torch.cuda.is_available():
        return (), ()
    count = range(torch.cuda.device_count())
    names = tuple(torch.cuda.get_device_name(index) for index in count)
    found = {target_of_capability(torch.cuda.get_device_capability(index)) for index in count}
    return names, tuple(sorted(name for name in found if name))


def target_of_capability(capability: tuple[int, int]) -> str | None:
    """The target whose kernels a GPU of a compute capability runs, or None.

    sm_80 code runs on every 8.x device; sm_90a and sm_100a code runs on exactly 9.0 and 10.0.
    """
    if capability[0] == 8:
        return "sm80"
    return {(9, 0): "sm90", (10, 0): "sm100"}.get(capability)
