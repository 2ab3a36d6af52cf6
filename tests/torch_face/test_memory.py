# SPDX-License-Identifier: Apache-2.0
"""Memory of a training step on a CPU: as much as the plan says, linear in N, nothing between all pairs of blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from llsa_gen import llsa_attention
from llsa_gen.codegen import render
from llsa_gen.cost import measure
from llsa_gen.cost.model import live_temporaries
from llsa_gen.ir.sizes import IntSizes, short_lists
from llsa_gen.ir.types import ITEMSIZE, Direction, Plan
from llsa_gen.ops import launch
from llsa_gen.ops.pages import LARGE_BYTES, made_for
from llsa_gen.spec import Spec
from tests.torch_face.calls import KEYWORDS, SMALL, inputs

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
LENGTHS = (1024, 2048, 4096, 8192)
Events = tuple[list[int], list[int]]
"""What a forward pass and its backward pass allocate and let go."""
NEAR = 1.05
"""How far from the model a peak may be: allocations are rounded up, and so are rows of pools to whole blocks."""


def memory_events(call: Callable[[], object]) -> list[int]:
    """The sizes of what is allocated (positive) and let go (negative) during a call, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak(events: list[int]) -> int:
    """The most bytes alive at a time, beyond those alive before."""
    return max(accumulate(events))


def step(spec: Spec, length: int) -> Events:
    """The events of a forward pass and of its backward pass, at one head of one sequence."""
    dtype = spec.element.torch
    q, k, v = (x.requires_grad_() for x in inputs(length=length, batch=1, heads=1, dtype=dtype))
    results: list[Tensor] = []
    chosen = KEYWORDS | {"block_size": spec.block}
    forward = memory_events(lambda: results.extend(llsa_attention(q, k, v, **chosen, return_lse=True)))
    upward = [torch.ones_like(x) for x in results]
    kept: list[Tensor] = []
    backward = memory_events(lambda: kept.extend(torch.autograd.grad(results, (q, k, v), upward)))
    return forward, backward


def plan_of(spec: Spec, direction: Direction, length: int) -> Plan:
    """The plan of a pass on a CPU."""
    return render(spec).plan("cpu", direction, short_lists(spec, length))


def expected(spec: Spec, direction: Direction, length: int) -> int:
    """The peak by the plan: during every stage its temporaries are alive, and the results until then."""
    plan, sizes = plan_of(spec, direction, length), IntSizes.square(spec, length)
    found, results = [], dict.fromkeys(plan.outputs, 0)
    for stage, alive in zip(plan.stages, live_temporaries(plan), strict=True):
        results |= {name: int(plan.tensor(name).bytes(sizes)) for name in stage.outputs if name in results}
        found.append(sum(int(tensor.bytes(sizes)) for tensor in alive) + sum(results.values()))
    return max(found)


def operands(spec: Spec, length: int) -> int:
    """Bytes of q, k and v, which are those of their gradients."""
    return ITEMSIZE[spec.dtype] * length * (2 * spec.head_dim + spec.dim_v)


@pytest.fixture(scope="module", params=[("fp32", 4), ("bf16", 4), ("fp32", 16)], ids=["fp32", "bf16", "joined"])
def spec(request: pytest.FixtureRequest) -> Spec:
    """What is computed; a large block has one kernel for pooled keys and tokens, which needs no carry."""
    dtype, block = request.param
    return replace(SMALL, dtype=dtype, block=block)


@pytest.fixture(scope="module")
def steps(spec: Spec) -> Iterator[dict[int, Events]]:
    """Training steps of every length by kernels for CPUs; the first one builds and loads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "CPU_TARGET", "cpu")  # as C code, kernels of a GPU would hold half types as fp32
        step(spec, 64)
        yield {length: step(spec, length) for length in LENGTHS}


@pytest.mark.parametrize("length", LENGTHS)
def test_the_peak_is_what_the_plan_says(length: int, spec: Spec, steps: dict[int, Events]) -> None:
    for events, direction in zip(steps[length], DIRECTIONS, strict=True):
        model = expected(spec, direction, length)
        assert model / NEAR <= peak(events) <= model * NEAR, (direction, peak(events), model)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_reported_workspace_is_enough(length: int, spec: Spec, steps: dict[int, Events]) -> None:
    """The report says the most that temporaries need; results come on top of it."""
    forward, backward = (measure(plan_of(spec, direction, length), length) for direction in DIRECTIONS)
    results = forward.saved_memory - operands(spec, length)
    assert peak(steps[length][0]) <= (forward.workspace + results) * NEAR
    assert peak(steps[length][1]) <= (backward.workspace + operands(spec, length)) * NEAR


def test_memory_grows_linearly(steps: dict[int, Events]) -> None:
    for direction in (0, 1):
        peaks = [peak(steps[length][direction]) for length in LENGTHS]
        assert all(1.9 <= longer / shorter <= 2.05 for shorter, longer in pairwise(peaks))


def test_nothing_is_as_large_as_all_pairs_of_blocks(steps: dict[int, Events]) -> None:
    length = LENGTHS[-1]
    pairs = (length // SMALL.block) ** 2  # one byte each
    assert max(max(events) for events in steps[length]) < pairs
    assert max(peak(events) for events in steps[length]) < 2 * pairs


def test_what_is_kept_for_the_backward_pass_is_what_the_plan_says(spec: Spec, steps: dict[int, Events]) -> None:
    for length in LENGTHS:
        model = measure(plan_of(spec, "forward", length), length).saved_memory - operands(spec, length)
        assert model <= sum(steps[length][0]) <= model * NEAR


def advice_of(tensor: Tensor) -> set[str]:
    """The flags that Linux keeps of the pages in the middle of a tensor."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= middle < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("the tensor lies nowhere")


def test_huge_pages_are_asked_for_where_the_system_has_them() -> None:
    result = llsa_attention(*inputs(length=LARGE_BYTES // (4 * SMALL.dim_v) + 1, batch=1, heads=1), **KEYWORDS)
    assert ("hg" in advice_of(result)) == Path("/sys/kernel/mm/transparent_hugepage").exists()


@pytest.mark.parametrize(("device", "size"), [("cpu", LARGE_BYTES - 1), ("meta", LARGE_BYTES)])
def test_other_memory_is_made_as_it_is(device: str, size: int) -> None:
    make = partial(torch.empty, size, dtype=torch.uint8, device=device)
    assert made_for(torch.device(device), size, make) is make
