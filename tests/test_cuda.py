# SPDX-License-Identifier: Apache-2.0
"""GPU code without a GPU: it compiles, keeps the limits, takes what the snapshot says, and its text is as it must be.

The ordinary run compiles one spec for one target, the deep one the whole catalogue for all. Where nvcc is missing, the
tests that compile assert that the build says so; those of the text lower the kernels and need no nvcc.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from llsa_gen.catalog import catalogue
from llsa_gen.codegen import KernelInstance, render
from llsa_gen.errors import ToolMissingError
from llsa_gen.jit import build, toolchain
from llsa_gen.jit.lower import lower_kernel
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.targets import get_target
from tests import resources

REPRESENTATIVE = ("pixel_dit",)
HALF = ("bf16", "fp16")
WRITTEN = {
    "coarsen": {"pools", "sums"},
    "select": {"idx"},
    "attend": {"o", "lse"},
    "delta": {"delta"},
    "attend_grad_q": {"q_grad"},
    "attend_grad_kv": {"k_grad", "v_grad", "k_parts", "v_parts"},
    "merge_grad_kv": {"k_grad", "v_grad"},
}
"""The tensors that a kernel writes, by its kind, as far as it has them."""
COPIED = {
    "select": {"k_pools"},
    "attend": {"k", "v"},
    "attend_grad_q": {"k", "v"},
    "attend_grad_kv": {"q", "o_grad"},
}
"""The tensors that move past a tile that stays, by the kind of kernel; those kernels are the ones that multiply."""
OF_PHASE = {
    "count": ({"idx"}, {"counts"}),
    "scan": (set(), {"counts", "offsets", "part_offsets", "part_nodes"}),
    "scatter": ({"idx", "offsets"}, {"counts", "rows"}),
    "whole": ({"idx"}, {"offsets", "rows", "part_offsets", "part_nodes"}),
}
"""What each phase of `invert_index` reads and what it writes; all phases have one signature."""
COUNTED = {"count": {"counts_view"}, "whole": {"cursors"}}
"""What a phase adds to atomically: a tensor of the device or of shared memory."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"name", "target"} <= set(metafunc.fixturenames):
        full = metafunc.config.getoption("--full")
        names = tuple(catalogue()) if full else REPRESENTATIVE
        targets = resources.GPU_TARGETS if full else ("sm90",)
        metafunc.parametrize(("name", "target"), [(name, target) for target in targets for name in names])


@pytest.fixture
def compiles(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether kernels can be compiled here; if not, asserts that a build says what is missing."""
    can, reason = toolchain.describe().can_compile(target)
    if not can:
        assert "install" in reason
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
        with pytest.raises(ToolMissingError, match="install"):
            build(catalogue()[REPRESENTATIVE[0]].spec, target)
    return can


def test_kernels_keep_the_limits_and_do_not_spill(name: str, target: str, compiles: bool) -> None:
    machine = get_target(target)
    for kernel in resources.compiled(name, target) if compiles else ():
        assert kernel.resources is not None
        assert kernel.resources.spill_bytes == 0, kernel
        assert 0 < kernel.resources.registers <= machine.registers_per_thread, kernel
        assert kernel.resources.shared_bytes <= machine.shared_per_block, kernel


def test_kernels_take_what_the_snapshot_says(name: str, target: str, compiles: bool) -> None:
    found = resources.measure([name], [target]) if compiles else {}
    committed = {key: taken for key, taken in resources.read().items() if key in found}
    changes = resources.differences(committed, found, registers_apart=resources.REGISTERS_APART)
    assert not changes, "\n".join([*changes, f"if that is meant: {resources.COMMAND} --write"])


def test_without_nvcc_a_build_says_what_to_install(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    package = render(catalogue()[REPRESENTATIVE[0]].spec)
    with pytest.raises(ToolMissingError, match="nvcc is needed") as caught:
        build(package.spec, "sm90", only={package.kernels[0].name})
    assert f"pip install {toolchain.NVCC_PACKAGES}" in str(caught.value)
    assert not list(empty_cache.rglob("kernel.so"))


# The snapshot itself: laws that hold for all of it, on any machine.


def test_the_snapshot_is_of_the_kernels_and_schedules_of_today() -> None:
    today = dict(resources.expected(catalogue(), resources.GPU_TARGETS))
    committed = {key: taken["arguments"] for key, taken in resources.read().items()}
    assert committed == today, f"run {resources.COMMAND} --write where nvcc is"


def test_no_kernel_of_the_snapshot_spills_or_breaks_a_limit() -> None:
    for key, taken in resources.read().items():
        machine = get_target(key[0])
        assert taken["spill_bytes"] == 0, key
        assert 0 < taken["registers"] <= machine.registers_per_thread, key
        assert taken["registers"] * taken["arguments"]["threads"] <= machine.registers_per_sm, key
        assert taken["shared_bytes"] <= machine.shared_per_block, key


def test_half_precision_multiplies_on_tensor_cores_and_fp32_never_does() -> None:
    dtypes = {entry.spec.slug: entry.spec.dtype for entry in catalogue().values()}
    for key, taken in resources.read().items():
        multiplies = key[2].startswith(tuple(COPIED))
        on_tensor_cores = taken["instructions"]["mma"] + taken["instructions"]["wgmma"] > 0
        assert on_tensor_cores == (multiplies and dtypes[key[1]] in HALF), key
        assert (taken["instructions"]["cp_async"] > 0) == multiplies, key
        assert taken["instructions"]["tma"] == 0, key


def test_differences_are_lines_that_name_the_kernel_and_both_numbers() -> None:
    taken = {
        "arguments": {"rows": 16},
        "registers": 62,
        "spill_bytes": 0,
        "shared_bytes": 9,
        "instructions": {"mma": 4},
    }
    before = {("sm90", "slug", "fine"): taken, ("sm90", "slug", "old"): taken}
    after = {("sm90", "slug", "fine"): {**taken, "registers": 70, "instructions": {"mma": 0}}}
    gone = "sm90 slug old: gone"
    assert resources.differences(before, after, registers_apart=8) == ["sm90 slug fine: mma 4 -> 0", gone]
    assert "sm90 slug fine: registers 62 -> 70" in resources.differences(before, after)
    assert resources.differences(after, before)[-1] == "sm90 slug old: not in the snapshot"


# The text that nvcc compiles.


@pytest.fixture(scope="session")
def lowering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for kernels that are lowered and not compiled."""
    return tmp_path_factory.mktemp("lowered")


@cache
def cuda_texts(name: str, target: str, folder: Path) -> dict[KernelInstance, str]:
    """The CUDA text of every kernel of a spec: of the build where nvcc is, else lowered here."""
    package, machine = render(catalogue()[name].spec), get_target(target)
    if toolchain.describe().can_compile(target)[0]:
        paths = {kernel.name: kernel.path for kernel in resources.compiled(name, target)}
        return {
            kernel: (paths[kernel.name].parent / "kernel.cu").read_text("utf-8")
            for kernel in package.kernels_for(target)
        }
    texts = {}
    for kernel in package.kernels_for(target):
        source = folder / f"{kernel.factory}.py"
        source.write_text(package.files[source.name], encoding="utf-8")
        exact = package.spec.dtype == "fp32"
        texts[kernel] = lower_kernel(source, kernel.factory, kernel.arguments(target), machine, exact=exact).source
    return texts


def device_function(text: str) -> tuple[set[str], set[str], str]:
    """Names of the tensors that a kernel reads and of those that it writes, and its body."""
    found = re.search(r"__global__ void __launch_bounds__\(.*?\) \w+\((.*?)\) \{\n(.*?)\n\}\n", text, re.DOTALL)
    assert found is not None
    tensors = re.findall(r"(const )?\w+\* __restrict__ (\w+)_view", found[1])
    return {name for const, name in tensors if const}, {name for const, name in tensors if not const}, found[2]


def tensors_of(kernel: KernelInstance) -> tuple[set[str], set[str]]:
    """The tensors that a kernel must read and those that it must write; some of its signature may be for others."""
    handles = {parameter.name for parameter in kernel.parameters if parameter.type == "handle"}
    arguments = dict(kernel.key.args)
    if kernel.key.kind == "invert_index":
        return OF_PHASE[str(arguments["phase"])]
    idle = {"parents": arguments.get("parent_topk") == 0, "sums": arguments.get("emit_sums") == 0}
    used = {name for name in handles if not idle.get(name)}
    return used - WRITTEN[kernel.key.kind], used & WRITTEN[kernel.key.kind]


def test_no_load_and_no_store_was_dropped(name: str, target: str, lowering: Path) -> None:
    for kernel, text in cuda_texts(name, target, lowering).items():
        reads, writes, body = device_function(text)
        assert (reads, writes) == tensors_of(kernel), kernel.name
        for tensor in reads | writes:
            assert re.search(rf"\b{tensor}_view\b", body), f"{kernel.name} never touches {tensor}"


def test_what_moves_past_a_tile_is_copied_asynchronously(name: str, target: str, lowering: Path) -> None:
    for kernel, text in cuda_texts(name, target, lowering).items():
        copied = set(re.findall(r"cp_async_gs\w*<\d+>\(.*?(\w+)_view", device_function(text)[2]))
        numbers = {"lse", "delta", "idx"} if kernel.key.kind == "attend_grad_kv" else set()  # beside rows of queries
        assert copied - numbers == COPIED.get(kernel.key.kind, set()), kernel.name


def test_nothing_but_counting_is_atomic_and_that_on_integers(name: str, target: str, lowering: Path) -> None:
    for kernel, text in cuda_texts(name, target, lowering).items():
        atomics = re.findall(r"\w*[aA]tomic\w*\(+&?\(*(?:int\*\))?(\w+)", device_function(text)[2])
        counted = COUNTED.get(str(dict(kernel.key.args).get("phase")), set())
        assert set(atomics) == counted, kernel.name
        assert not re.search(r"\b(atom|red)\.", text), kernel.name
        assert all(re.search(rf"\bint\* __restrict__ {name}\b|\(int\*\){name}\)", text) for name in counted)


def test_addresses_are_computed_in_64_bits(name: str, target: str, lowering: Path) -> None:
    for kernel, text in cuda_texts(name, target, lowering).items():
        lines = [line for line in device_function(text)[2].splitlines() if re.search(r"_view\b", line)]
        narrow = [line.strip() for line in lines if "int64_t" not in line]
        assert lines and not narrow, f"{kernel.name}: {narrow[:3]}"


def test_launches_do_not_overlap(name: str, target: str, lowering: Path) -> None:
    for kernel, text in cuda_texts(name, target, lowering).items():
        assert re.findall(r"numAttrs = (\d+);", text) == ["0"], kernel.name
