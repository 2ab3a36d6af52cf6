# SPDX-License-Identifier: Apache-2.0
"""Half types in the CPU kernels: numbers become fp32 where they are read and are rounded once where they are stored."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from llsa_gen.codegen import KernelInstance, render
from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import Stage
from llsa_gen.jit.isa import executable_isas
from llsa_gen.ops import engine, execute, launch
from llsa_gen.ops.execute import run_steps, steps_of
from llsa_gen.ops.state import Run
from llsa_gen.spec import Spec
from llsa_gen.stages import Coarsen
from llsa_gen.workloads import clustered_qkv
from tests.kernels.small_kernels import mapped

HALVES = ("bf16", "fp16")
EXPLICIT_BITS = {"bf16": 7, "fp16": 10}
SPECS = (
    Spec(levels=2, block=16, topk=(3, 2), head_dim=24, value_dim=40, dtype="bf16"),
    Spec(levels=6, block=4, topk=2, head_dim=16, dtype="fp16", enrichment="exclude_refined"),
    Spec(levels=1, block=4, topk=2, head_dim=16, dtype="fp32", enrichment="none"),
)


def tiny(dtype: str) -> Spec:
    """What is quickly built."""
    return Spec(levels=1, block=4, topk=2, head_dim=16, dtype=dtype, enrichment="none")


# -- single numbers ----------------------------------------------------------------------------------------


def all_of(dtype: str) -> Tensor:
    """Every number of a half type, every NaN and both zeros among them."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(get_dtype(dtype).torch)


def telling(dtype: str) -> Tensor:
    """Numbers in fp32 that are, or nearly are, in a half type or midway between two of them; and any bits."""
    whole = all_of(dtype).float().view(torch.int32)
    midway = 1 << (22 - EXPLICIT_BITS[dtype])
    near = [whole + step + shift for step in (0, midway) for shift in (-1, 0, 1)]
    tiny = (torch.arange(2**12) + 0.5) * 2.0**-24  # midway between subnormal numbers of fp16
    anything = torch.randint(-(2**31), 2**31, (2**18,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return torch.cat([*near, tiny.view(torch.int32), anything]).view(torch.float32)


def bits(x: Tensor) -> Tensor:
    """Numbers by their bits, with one NaN for all."""
    plain = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return plain.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("isa", executable_isas())
@pytest.mark.parametrize("dtype", HALVES)
def test_every_number_is_converted_as_torch_does(dtype: str, isa: str, tmp_path: Path) -> None:
    half, numbers = all_of(dtype), telling(dtype)
    converted = mapped(tmp_path, isa, "narrow, wide", "narrow(wide(x_view[i, d]), y_view)")
    assert torch.equal(bits(converted(half, torch.float32)), bits(half.float()))
    assert torch.equal(bits(converted(numbers, half.dtype)), bits(numbers.to(half.dtype)))


# -- tensors -----------------------------------------------------------------------------------------------


def bound(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Stage, KernelInstance, dict[str, Any]]]:
    """Every launch of a training step with its arguments; nothing is computed."""
    package, found = render(spec), []
    launches: list[dict[str, Any]] = []
    monkeypatch.setattr(execute, "launcher", lambda kernel, arguments: lambda: launches.append(arguments))
    q, k, v = clustered_qkv(spec, 1, 2, 150)
    upward = {"o": v, "o_grad": v, "lse": v[..., 0].float(), "lse_grad": v[..., 0].float()}
    for plan in chain.from_iterable(package.plans.values()):
        steps = steps_of([(stage, cast(Any, package.kernel_of(plan, stage))) for stage in plan.stages], plan.outputs)
        given = {"q": q, "k": k, "v": v, **(upward if plan.direction == "backward" else {})}
        run_steps(steps, Run(package.spec, q.dtype, 1.0, tokens_first=False, tensors=given))
        found += [(stage, package.kernel_of(plan, stage)) for stage in plan.stages]
    return [(stage, kernel, arguments) for (stage, kernel), arguments in zip(found, launches, strict=True)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.slug)
def test_a_pointer_has_the_type_of_its_tensor(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    own = get_dtype(spec.dtype).torch
    for stage, kernel, arguments in bound(spec, monkeypatch):
        known = {
            "DTYPE": own,
            "OUT_DTYPE": own if getattr(stage, "final", True) else torch.float32,
            "source_dtype": own if getattr(stage, "source_level", 0) == 0 else torch.float32,
            '"float32"': torch.float32,
            '"int32"': torch.int32,
        }
        unused = {"sums"} if isinstance(stage, Coarsen) and not stage.emit_sums else set()
        found = {p.name: known[p.element] for p in kernel.parameters if p.type == "handle" and p.name not in unused}
        assert found == {name: arguments[name].dtype for name in found}, stage.name


@pytest.mark.parametrize("dtype", HALVES)
def test_no_tensor_is_copied(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for CPUs read what the caller holds; those of a GPU as C code hold half types as fp32."""
    monkeypatch.setattr(launch, "CPU_TARGET", "cpu")
    x = torch.zeros(1, 2, 32, 16, dtype=get_dtype(dtype).torch)
    assert execute.held(x, "cpu") is x
    assert execute.held(x, "c").dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_large_numbers_and_nan_are_attended(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that sum up to 1 leave a value as it is; sums of eight values have room in fp32. NaN stays NaN."""
    monkeypatch.setattr(launch, "CPU_TARGET", "cpu")
    spec = tiny(dtype)
    q, k, v = clustered_qkv(spec, 1, 1, 64)
    largest = min(torch.finfo(v.dtype).max, 2.0**120)
    o, _ = engine.attention(spec, q, k, torch.full_like(v, largest), 1.0)
    assert o.dtype == v.dtype and (o == largest).all()
    o, _ = engine.attention(spec, q, k, torch.full_like(v, torch.nan), 1.0)
    assert o.isnan().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_threads_change_no_bit(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CPU_TARGET", "cpu")
    spec, before = tiny(dtype), torch.get_num_threads()
    q, k, v = clustered_qkv(spec, 2, 3, 777)
    found: list[list[Tensor]] = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            o, lse = engine.attention(spec, q, k, v, 0.25)
            given = {"q": q, "k": k, "v": v, "o": o, "lse": lse, "o_grad": v, "lse_grad": torch.ones_like(lse)}
            found.append([o, lse, *engine.gradients(spec, given, 0.25).values()])
    finally:
        torch.set_num_threads(before)
    assert all(x.dtype == q.dtype for x in found[0] if x is not found[0][1])
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))
