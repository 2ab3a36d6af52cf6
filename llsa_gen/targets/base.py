# SPDX-License-Identifier: Apache-2.0
"""What a target machine offers: limits that kernels must keep, and rates to rank schedules by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llsa_gen.errors import InternalError, explain

KIB = 1024

NATIVE = "native"
"""The architecture of a CPU target: whatever the machine at hand executes."""

Kind = Literal["cpu", "c", "cuda"]
Language = Literal["tilelang", "tvm"]
TensorCore = Literal["none", "mma", "wgmma", "tcgen05"]


@dataclass(frozen=True)
class Rate:
    """A peak rate of one product built on a target.

    Attributes:
        name: What is counted: ``fp32``, ``fp16_matmul``, ``bf16_matmul`` (dense, fp32 accumulation) or ``memory``.
        per_second: Floating-point operations, or bytes, per second.
        product: The product that the number holds for.
        source: The public document that states it.
    """

    name: str
    per_second: float
    product: str
    source: str


@dataclass(frozen=True)
class Target:
    """One kind of machine. Sizes are 0 where the machine has no such limit (all GPU limits on a CPU).

    Attributes:
        name: Name in specs.
        kind: ``"cpu"``, ``"c"`` (a GPU's kernels as C code on a CPU) or ``"cuda"``.
        arch: Architecture for the compiler, such as ``"sm_90a"``; `NATIVE` or an instruction set for CPUs.
        registers_per_thread: Most 32-bit registers that one thread can have.
        registers_per_sm: Size of the register file of a multiprocessor in 32-bit registers.
        shared_per_block: Most shared memory of one block, in bytes (opted in to, static and dynamic together).
        shared_per_sm: Shared memory of a multiprocessor, in bytes.
        shared_reserved: Bytes of ``shared_per_sm`` that the system takes for every resident block.
        threads_per_block: Most threads of one block.
        threads_per_sm: Most resident threads of a multiprocessor.
        blocks_per_sm: Most resident blocks of a multiprocessor.
        warp: Threads that run in step; 1 on a CPU.
        tensor_core: The widest matrix instruction.
        features: Further abilities: ``cp_async``, ``mbarrier``, ``tma``, ``wgmma``, ``clusters``, ``tcgen05``.
        rates: Peak rates with their sources.
    """

    name: str
    kind: Kind
    arch: str
    registers_per_thread: int = 0
    registers_per_sm: int = 0
    shared_per_block: int = 0
    shared_per_sm: int = 0
    shared_reserved: int = 0
    threads_per_block: int = 0
    threads_per_sm: int = 0
    blocks_per_sm: int = 0
    warp: int = 1
    tensor_core: TensorCore = "none"
    features: frozenset[str] = frozenset()
    rates: tuple[Rate, ...] = ()

    @property
    def is_cuda(self) -> bool:
        """Whether kernels for it run on a GPU."""
        return self.kind == "cuda"

    @property
    def has_isa(self) -> bool:
        """Whether its kernels are for an instruction set of CPUs, which can be chosen."""
        return self.kind == "cpu"

    @property
    def label(self) -> str:
        """Its name, and the instruction set where one was chosen."""
        return f"{self.name} {self.arch}" if self.has_isa and self.arch != NATIVE else self.name

    @property
    def language(self) -> Language:
        """What kernels for it are written in: TileLang for GPUs and their emulation, TVM's TIR for CPUs."""
        return "tvm" if self.kind == "cpu" else "tilelang"

    def has(self, feature: str) -> bool:
        """Whether the machine has an ability, see ``features``."""
        return feature in self.features

    def rate(self, name: str) -> Rate:
        """A peak rate by name.

        Raises:
            InternalError: No number with a source is known; ask ``rate_names`` first.
        """
        for rate in self.rates:
            if rate.name == name:
                return rate
        what = f"no peak rate {name!r} is known for target {self.name}"
        raise InternalError(explain(what, allowed=self.rate_names or "none"))

    @property
    def rate_names(self) -> tuple[str, ...]:
        """Names of the rates that are known."""
        return tuple(rate.name for rate in self.rates)


CPU_VARIABLE = "LLSA_GEN_CPU_TARGET"
"""Environment variable: which kernels serve tensors on a CPU; a process reads it once, when it imports the ops."""
CPU_TARGETS = ("cpu", "c")
"""Its values: kernels for CPUs, or the kernels of a GPU as C code, which tests run where there is no GPU."""
