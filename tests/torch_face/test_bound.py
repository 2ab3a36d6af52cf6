# SPDX-License-Identifier: Apache-2.0
"""Bound passes: a call that finds one computes what the first one of its form computed, and refuses what that did.

And repeated stages.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

import llsa_gen
from llsa_gen.codegen import KernelInstance, render
from llsa_gen.dtypes import from_torch
from llsa_gen.errors import InputError, InputTypeError, LlsaError, UnsupportedError
from llsa_gen.evidence.calls import train, upward_gradients
from llsa_gen.evidence.passes import passes
from llsa_gen.ir import names
from llsa_gen.ir.sizes import short_lists
from llsa_gen.ir.types import Direction
from llsa_gen.jit.tasks import layout_of
from llsa_gen.ops import calls
from llsa_gen.ops.bind import Task, bind
from llsa_gen.ops.bound import Bound
from llsa_gen.ops.execute import repeat_steps, steps_of
from llsa_gen.ops.launch import target_of
from llsa_gen.ops.recent import Recent
from llsa_gen.ops.rooms import ROOM_ALIGNMENT, Room, Tenant, share
from llsa_gen.spec import Spec
from tests.strategies import budget
from tests.torch_face.calls import FIELDS, KEYWORDS, MEMORY, SMALL, SPEC, Inputs, inputs, lists_of, refused

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Results = tuple[Tensor, ...]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def everything(qkv: Inputs, layout: str = "BHND") -> Results:
    """Results, lists and gradients of one problem, by every op."""
    lists = lists_of(*qkv[:2])
    attended = llsa_gen.llsa_attend(*qkv, lists, block_size=KEYWORDS["block_size"], return_lse=True)
    turned = [x.transpose(1, 2) if layout == "BNHD" else x for x in qkv]
    leaves = [x.detach().requires_grad_() for x in turned]
    o, lse = llsa_gen.llsa_attention(*leaves, **KEYWORDS, layout=layout, return_lse=True)  # type: ignore[call-overload]
    gradients = torch.autograd.grad((o, lse), leaves, (torch.ones_like(o), torch.ones_like(lse)))
    rows = (x.detach().transpose(1, 2) if layout == "BNHD" else x.detach() for x in (o, *gradients))
    return *rows, lse.detach(), *lists, *attended


def for_the_first_time(qkv: Inputs) -> Results:
    """What is computed where nothing is bound, on tensors in their plainest order."""
    q, k, v = (x.contiguous() for x in qkv)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "PASSES", Recent(calls.PASSES.most))
        return everything((q, k, v))


def same(mine: Results, theirs: Results) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@budget(10)
@given(data=st.data())
@pytest.mark.usefixtures("_threads")
def test_calls_in_any_order_compute_what_the_first_one_does(data: st.DataObject, device: torch.device) -> None:
    """Forms come and go: lengths, dtypes, memory orders, threads, and inputs that are overwritten in place."""
    for _ in range(data.draw(st.integers(1, 3), label="problems")):
        memory = data.draw(st.sampled_from(sorted(MEMORY)), label="memory")
        length, dtype = data.draw(st.sampled_from((1, 18, 70))), data.draw(st.sampled_from(DTYPES))
        q, k, v = (MEMORY[memory](x) for x in inputs(device, length=length, dtype=dtype))
        for layout in ("BHND", "BNHD", "BHND"):
            torch.set_num_threads(data.draw(st.integers(1, 3), label="threads"))
            assert same(everything((q, k, v), layout), for_the_first_time((q, k, v)))
            if memory != "broadcast":
                k.neg_()  # others cannot be overwritten


def test_threads_share_what_is_bound(device: torch.device) -> None:
    problems = [inputs(device, length=length) for length in (9, 33, 70)] * 4
    expected = [for_the_first_time(problem) for problem in problems[:3]] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(everything, problems))
    assert all(same(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_a_form_has_one_pass_with_and_without_gradients(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    table: Recent[Any] = Recent(9)
    monkeypatch.setattr(calls, "PASSES", table)
    q, k, v = inputs(device)
    for layout in ("BHND", "BNHD"):
        x = [x.transpose(1, 2) if layout == "BNHD" else x for x in (q, k, v)]
        llsa_gen.llsa_attention(*x, **KEYWORDS, layout=layout)
        llsa_gen.llsa_attention(x[0].requires_grad_(), *x[1:], **KEYWORDS, layout=layout)
    assert len(table) == 2


def test_few_passes_are_kept_and_a_forgotten_one_is_bound_again(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    table: Recent[Any] = Recent(3)
    monkeypatch.setattr(calls, "PASSES", table)
    for length in (*range(1, 9), *range(1, 9)):
        qkv = inputs(device, length=length)
        assert same(everything(qkv), for_the_first_time(qkv))
        assert len(table) == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bound_pass_computes_what_its_steps_do(dtype: torch.dtype, device: torch.device) -> None:
    spec = replace(SMALL, dtype=from_torch(dtype).name)
    qkv = inputs(device, spec=spec, dtype=dtype)
    forward, backward = (one.run.tensors for one in passes(spec, qkv, target_of(device)))
    trained = train(spec, qkv, upward_gradients(qkv[2]))
    stepped = [forward["o"], forward["lse"], *(backward[name] for name in names.GRADIENTS)]
    assert same(trained.tensors, tuple(x.to(y.dtype) for x, y in zip(stepped, trained.tensors, strict=True)))


@pytest.mark.parametrize("short", [None, ()], ids=["one_launch", "three_phases"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeated_stages_write_the_same_into_the_same_memory(
    dtype: torch.dtype, short: tuple[int, ...] | None, device: torch.device
) -> None:
    """Also phases of an inversion, which change counts in place."""
    spec = replace(SMALL, dtype=from_torch(dtype).name)
    for one in passes(spec, inputs(device, spec=spec, dtype=dtype), target_of(device), short=short):
        written = [name for unit in one.units for name in unit.results]
        expected = tuple(one.run.tensors[name].clone() for name in written)
        repeats = [repeat_steps(steps, one.run) for steps in one.repeatables().values()]
        made = tuple(one.run.tensors[name].zero_() for name in written)
        for repeat in repeats:
            repeat()
        assert same(made, expected)
        assert all(one.run.tensors[name] is mine for name, mine in zip(written, made, strict=True))


# -- turns ----------------------------------------------------------------------------------------


def idle(instance: KernelInstance, target: str) -> Any:
    """A kernel that is not built: it can be bound to and launched, and does nothing."""
    return SimpleNamespace(
        name=instance.name,
        parameters=tuple(parameter.name for parameter in instance.parameters),
        arguments=layout_of(instance.parameters) if target == "cpu" else None,
        entry=1,
        run=lambda *_: None,
    )


def bound_idly(spec: Spec, target: str, direction: Direction, length: int, *, tokens_first: bool) -> tuple[Bound, int]:
    """A pass of kernels that do nothing, bound to the form of random inputs, and how many they are."""
    package = render(spec)
    plan = package.plan(target, direction, short_lists(spec, length))
    wanted = names.RESULTS if direction == "forward" else names.GRADIENTS
    steps = steps_of([(stage, idle(package.kernel_of(plan, stage), target)) for stage in plan.stages], wanted)
    task, tensors = Task(spec, wanted, tokens_first=tokens_first), given_of(spec, direction, length)
    return bind(steps, task, tensors, target), len(steps)


def given_of(spec: Spec, direction: Direction, length: int) -> dict[str, Tensor]:
    """What a pass starts from."""
    q, k, v = inputs(length=length, spec=spec, dtype=spec.element.torch)
    by_row = v[..., 0].float().contiguous()
    upward = {"o": v, "lse": by_row, "o_grad": v, "lse_grad": by_row}
    return {"q": q, "k": k, "v": v, **(upward if direction == "backward" else {})}


DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")


@pytest.mark.parametrize("length", [1, 70, 4096])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_cpu_is_called_as_seldom_as_memory_allows(direction: Direction, levels: int, length: int) -> None:
    one, kernels = bound_idly(replace(SMALL, levels=levels), "cpu", direction, length, tokens_first=False)
    assert all(turn.begins for turn in one.turns) and all(len(turn.launches) == 1 for turn in one.turns)
    assert sum(len(launch.kernels) for turn in one.turns for launch in turn.launches) == kernels


@pytest.mark.parametrize(("direction", "pieces"), [("forward", 3), ("backward", 6)])
def test_a_pass_of_the_default_spec_is_one_call(direction: Direction, pieces: int) -> None:
    """Forward it makes o, the log-sum-exps, and what they cannot lend room to."""
    one, _ = bound_idly(SPEC, "cpu", direction, 4096, tokens_first=False)
    assert [len(turn.launches) for turn in one.turns] == [1] and one.made <= pieces


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_long_pass_can_be_interrupted_between_kernels(direction: Direction) -> None:
    one, kernels = bound_idly(SPEC, "cpu", direction, 16384, tokens_first=False)
    assert sum(len(turn.launches) for turn in one.turns) == kernels


@pytest.mark.parametrize("length", [1, 70, 300])
@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pools_are_rounded_wherever_they_lie(direction: Direction, dtype: str, tokens_first: bool, length: int) -> None:
    """Kernels of a GPU as C code hold half types as fp32, and a result may lend its room to pools."""
    spec = replace(SMALL, dtype=dtype)
    one, kernels = bound_idly(spec, "c", direction, length, tokens_first=tokens_first)
    assert sum(len(turn.launches) for turn in one.turns) == kernels
    assert sum(len(turn.rounded) for turn in one.turns) > 0
    found = one(*given_of(spec, direction, length).values())
    assert all(x.dtype == spec.element.torch for x in found if x.ndim == 4)


# -- what is kept ---------------------------------------------------------------------------------


def attended(q: Tensor, k: Tensor, v: Tensor) -> Results:
    """Lists, and attention with them."""
    lists = lists_of(q, k)
    return *lists, *llsa_gen.llsa_attend(q, k, v, lists, block_size=SMALL.block, return_lse=True)


def transposed(q: Tensor, k: Tensor, _: Tensor) -> Results:
    """Lists, and who selected each node."""
    lists = lists_of(q, k)
    return *lists, *llsa_gen.transpose_indices(lists[0], -(-k.shape[2] // SMALL.block))


def differentiated(call: Callable[[Tensor, Tensor, Tensor], Results]) -> Callable[[Tensor, Tensor, Tensor], Results]:
    """A call with its backward pass: results and gradients."""

    def whole(*qkv: Tensor) -> Results:
        leaves = [x.requires_grad_() for x in qkv]
        found = call(*leaves)
        sum(x.sum() for x in found if x.requires_grad).backward()  # type: ignore[union-attr]
        return *found, *(x.grad for x in leaves if x.grad is not None)

    return whole


USES: dict[str, Callable[[Tensor, Tensor, Tensor], Results]] = {
    "attention": lambda q, k, v: llsa_gen.llsa_attention(q, k, v, **KEYWORDS, return_lse=True),
    "select": lambda q, k, v: lists_of(q, k),
    "attend": attended,
    "transpose": transposed,
}
USES |= {f"{name} and backward": differentiated(USES[name]) for name in ("attention", "attend")}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_of_a_call_is_kept(dtype: torch.dtype, use: str, device: torch.device) -> None:
    qkv = inputs(device, dtype=dtype)
    tensors = [*qkv, *USES[use](*qkv)]
    left = [weakref.ref(x) for x in chain(tensors, (x.untyped_storage() for x in tensors))]
    del qkv, tensors
    gc.collect()
    assert not [x for x in left if x() is not None]


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], type[LlsaError], str]] = {
    "length": (lambda x: x[:, :, 1:], InputError, "do not fit"),
    "heads": (lambda x: x[:, :1], InputError, "do not fit"),
    "dtype": (Tensor.half, InputTypeError, "one dtype"),
    "another dtype": (Tensor.double, InputTypeError, "no kernels for this dtype"),
    "device": (lambda x: x.to("meta"), InputError, "one device"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_form_is_checked_anew(wrong: str, device: torch.device) -> None:
    change, error, words = WRONG[wrong]
    q, k, v = inputs(device)
    torch.ops.llsa_gen.attention(q, k, v, *FIELDS)
    refused(error, lambda: torch.ops.llsa_gen.attention(q, k, change(v), *FIELDS), words)
    refused(error, lambda: llsa_gen.llsa_attention(q, k, change(v), **KEYWORDS), words)


def test_a_tangent_is_refused_though_the_form_is_known(device: torch.device) -> None:
    q, k, v = inputs(device)
    torch.ops.llsa_gen.attention(q, k, v, *FIELDS)
    with forward_ad.dual_level():
        torch.ops.llsa_gen.attention(q, k, v, *FIELDS)
        dual = forward_ad.make_dual(k, torch.ones_like(k))  # type: ignore[no-untyped-call]
        refused(UnsupportedError, lambda: torch.ops.llsa_gen.attention(q, dual, v, *FIELDS), "where:   k", "tangent")


def test_values_of_lists_are_checked_in_every_call() -> None:
    q, k, v = inputs()
    fine, coarse = lists_of(q, k)
    block = KEYWORDS["block_size"]
    llsa_gen.llsa_attend(q, k, v, (fine, coarse), block_size=block)
    fine[0, 0, 0, 0] = 1000
    refused(InputError, lambda: llsa_gen.llsa_attend(q, k, v, (fine, coarse), block_size=block), "does not exist")


# -- the table ------------------------------------------------------------------------------------


@given(most=st.integers(1, 4), keys=st.lists(st.integers(0, 6)))
def test_the_oldest_goes_first(most: int, keys: list[int]) -> None:
    table: Recent[int] = Recent(most)
    held: list[int] = []
    for key in keys:
        assert table.get(key) == (key if key in held else None)
        if key not in held:
            assert table.keep(key, key) == key
            held = [*held, key][-most:]
        assert len(table) == len(held)
    table.clear()
    assert len(table) == 0 and not any(table.get(key) for key in keys)


# -- rooms ----------------------------------------------------------------------------------------

STEPS = 6


@st.composite
def tenants(draw: st.DrawFn, letter: str) -> list[Tenant]:
    """Tensors in the order of their first steps."""
    sizes = draw(st.lists(st.integers(0, 5 * ROOM_ALIGNMENT), max_size=7))
    spans = sorted(sorted(draw(st.tuples(st.integers(0, STEPS - 1), st.integers(0, STEPS - 1)))) for _ in sizes)
    return [Tenant(f"{letter}{at}", size, *span) for at, (size, span) in enumerate(zip(sizes, spans, strict=True))]


def peak(rooms: Iterable[Room]) -> int:
    every = list(rooms)
    return max(sum(room.held(step) for room in every) for step in range(STEPS))


@given(others=tenants("x"), results=tenants("y"), copies=tenants("z"))
def test_rooms_hold_their_tensors_apart_and_raise_no_peak(
    others: list[Tenant], results: list[Tenant], copies: list[Tenant]
) -> None:
    results = [result._replace(last=STEPS) for result in results]
    alone = [*map(Room.of, (*others, *copies)), *(Room.of(result, grows=False) for result in results)]
    rooms = share(results, others, STEPS, copies)
    assert sorted(chain(*(room.offsets for room in rooms))) == sorted(tenant.name for tenant in (*others, *results))
    assert peak([*rooms, *map(Room.of, copies)]) <= peak(alone)
    for room, result in zip(rooms, results, strict=False):
        assert room.tenants[0] == (result, 0) and room.size == result.size
    for room in rooms:
        for tenant, offset in room.tenants:
            assert offset % ROOM_ALIGNMENT == 0 and offset + tenant.size <= room.size
            assert room.first <= tenant.first and tenant.last <= room.last
        for (one, begin), (other, behind) in combinations(room.tenants, 2):
            together = range(max(one.first, other.first), min(one.last, other.last) + 1)
            assert not together or begin + one.size <= behind or behind + other.size <= begin


def test_tensors_of_one_time_share_a_room() -> None:
    together = [Tenant(str(at), 1000, 0, STEPS - 1) for at in range(5)]
    assert len(share((), together, STEPS)) == 1


def test_a_result_lends_its_room_to_what_is_gone_before_it_is_written() -> None:
    result, before, at_once = Tenant("o", 1000, 3, STEPS), Tenant("a", 900, 0, 2), Tenant("b", 900, 0, 3)
    (room,) = share([result], [before], STEPS)
    assert room.offsets == {"o": 0, "a": 0} and room.first == 0
    assert [*share([result], [at_once], STEPS)[0].offsets] == ["o"]
    assert [*share([result], [before._replace(size=1001)], STEPS)[0].offsets] == ["o"]
