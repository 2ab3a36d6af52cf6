# SPDX-License-Identifier: Apache-2.0
"""Lists transposed: laws, an oracle of another library, the tables of parts, and the op as torch sees it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor
from torch.library import opcheck

import llsa_gen
from llsa_gen import transpose_indices
from llsa_gen.errors import InputError, InputTypeError, InternalError, LlsaError, UnsupportedError
from llsa_gen.ir.sizes import SHORT_ENTRIES, SHORT_NODES, IntSizes, part_entries, short_lists
from llsa_gen.ops import engine
from llsa_gen.ops.binders.invert_index import MAX_ENTRIES, Cut, arguments
from llsa_gen.ops.execute import run_steps
from llsa_gen.ops.launch import launch, target_of
from llsa_gen.ops.state import Run
from llsa_gen.spec import Spec
from llsa_gen.stages import InvertIndex
from tests.kernels.calls import FORMS, inverted_in
from tests.strategies import budget
from tests.torch_face.calls import refused

OP: Any = torch.ops.llsa_gen.transpose_indices.default
TABLES = ("offsets1", "rows1", "part_offsets1", "part_nodes1")
PHASES = {FORMS[0]: ("whole",), FORMS[1]: ("count", "scan", "scatter")}
KINDS = ("any", "gaps", "one key", "few keys", "none", "permutation")


EVERY_FORM = pytest.mark.parametrize("form", FORMS)


def transposed(idx: Tensor, keys: int, form: str) -> tuple[Tensor, Tensor]:
    """The public op, in one launch where that is possible or in three."""
    with inverted_in(form):
        return transpose_indices(idx, keys)


@dataclass(frozen=True)
class Lists:
    """A recipe of lists; small enough to read when a property fails."""

    batch: int
    heads: int
    rows: int
    topk: int
    keys: int
    kind: str
    seed: int

    def tensor(self, device: torch.device) -> Tensor:
        """int32 [B,H,rows,K]."""
        shape = (self.batch, self.heads, self.rows, self.topk)
        return entries(shape, self.keys, self.kind, self.seed).to(device)


def entries(shape: tuple[int, ...], keys: int, kind: str, seed: int) -> Tensor:
    """Lists of one kind: any keys with duplicates, with -1 anywhere, skewed to few keys, or each key in its turn."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, max(keys, 1), shape, generator=generator)
    if kind in ("one key", "few keys"):
        found = found % 1 + keys // 2 if kind == "one key" else found % 3
    if kind == "permutation":
        found = torch.arange(found.numel()).view(shape).flip(-1)
    missing = torch.rand(shape, generator=generator) < {"gaps": 0.5, "none": 2.0}.get(kind, 0.0)
    return (found % max(keys, 1)).masked_fill(missing | torch.tensor(keys == 0), -1).int()


@st.composite
def lists(draw: st.DrawFn, max_rows: int = 150, max_heads: int = 3) -> Lists:
    sizes = (draw(st.integers(1, 2)), draw(st.integers(1, max_heads)), draw(st.integers(0, max_rows)))
    topk = draw(st.one_of(st.integers(1, 9), st.sampled_from((16, 31, 128))))
    keys = draw(st.one_of(st.integers(0, 5), st.integers(0, 200)))
    return Lists(*sizes, topk, keys, draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**16)))


def heads_of(tensor: Tensor) -> Iterator[Any]:
    """The slices of all heads, as numpy arrays."""
    yield from tensor.cpu().flatten(0, 1).numpy()


def by_scipy(idx: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """The transpose as scipy's CSR to CSC makes it, which keeps duplicates; -1 entries are left out first."""
    offsets, rows = [], []
    for head in heads_of(idx):
        named = head >= 0
        ends = np.concatenate([[0], np.cumsum(named.sum(1))])
        ones = np.ones(int(ends[-1]), dtype=np.int8)
        columns = sparse.csr_matrix((ones, head[named], ends), shape=(head.shape[0], keys)).tocsc()
        offsets.append(columns.indptr)
        rows.append(np.pad(columns.indices, (0, head.size - columns.nnz), constant_values=-1))
    shape = idx.shape[:2]
    return tuple(torch.from_numpy(np.stack(each)).int().view(*shape, -1) for each in (offsets, rows))  # type: ignore[return-value]


def as_lists(offsets: Tensor, rows: Tensor) -> Tensor:
    """The transposed lists as lists again, padded with -1 to the longest."""
    width = max(int((offsets[..., 1:] - offsets[..., :-1]).max()), 1)
    padded = torch.full((*offsets.shape[:2], offsets.shape[2] - 1, width), -1, dtype=torch.int32)
    for place, (ends, found) in enumerate(zip(heads_of(offsets), heads_of(rows), strict=True)):
        for key, (first, end) in enumerate(pairwise(ends)):
            padded.flatten(0, 1)[place, key, : end - first] = torch.from_numpy(found[first:end])
    return padded.to(offsets.device)


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.int32 and mine.is_contiguous()
        assert torch.equal(mine.cpu(), theirs.cpu())


@EVERY_FORM
@budget(60)
@given(lists())
def test_it_is_the_transpose_of_scipy(form: str, device: torch.device, drawn: Lists) -> None:
    idx = drawn.tensor(device)
    assert_equal(transposed(idx, drawn.keys, form), by_scipy(idx, drawn.keys))


@EVERY_FORM
@budget(30)
@given(lists())
def test_no_entry_is_lost_and_lists_ascend(form: str, device: torch.device, drawn: Lists) -> None:
    idx = drawn.tensor(device)
    offsets, rows = transposed(idx, drawn.keys, form)
    assert offsets.shape == (drawn.batch, drawn.heads, drawn.keys + 1)
    assert rows.shape == (drawn.batch, drawn.heads, drawn.rows * drawn.topk)
    for lists_of_head, ends, found in zip(heads_of(idx), heads_of(offsets), heads_of(rows), strict=True):
        named = lists_of_head[lists_of_head >= 0]
        assert ends[0] == 0 and ends[-1] == named.size
        assert np.array_equal(np.diff(ends), np.bincount(named, minlength=drawn.keys))
        assert (found[named.size :] == -1).all() and (found[: named.size] >= 0).all()
        falls = np.flatnonzero(np.diff(found[: named.size]) < 0) + 1
        assert set(falls.tolist()) <= set(ends.tolist()), "rows descend within a list"


@EVERY_FORM
@budget(30)
@given(lists(max_rows=60))
def test_transposing_twice_sorts_the_lists(form: str, device: torch.device, drawn: Lists) -> None:
    idx = drawn.tensor(device)
    if not drawn.keys:
        return
    there = as_lists(*transposed(idx, drawn.keys, form))
    offsets, keys = transposed(there, drawn.rows, form)
    for lists_of_head, ends, found in zip(heads_of(idx), heads_of(offsets), heads_of(keys), strict=True):
        for row, first, end in zip(lists_of_head, ends[:-1], ends[1:], strict=True):
            assert np.array_equal(np.sort(row[row >= 0]), found[first:end])


@EVERY_FORM
@budget(20)
@given(lists(max_heads=2), st.randoms(use_true_random=False))
def test_heads_are_apart_and_runs_are_equal(form: str, device: torch.device, drawn: Lists, shuffle: Any) -> None:
    idx = torch.cat([drawn.tensor(device), drawn.tensor(device).flip(2)])
    order = torch.tensor(shuffle.sample(range(len(idx)), len(idx)))
    plain = transposed(idx, drawn.keys, form)
    assert_equal(transposed(idx, drawn.keys, form), plain)
    assert_equal(transposed(idx[order.to(device)], drawn.keys, form), tuple(each[order] for each in plain))


@EVERY_FORM
def test_any_strides(form: str, device: torch.device) -> None:
    idx = entries((2, 3, 50, 4), 20, "gaps", 1).to(device)
    plain = transposed(idx, 20, form)
    apart = torch.full((2, 50, 3, 9), 99, dtype=torch.int32, device=device)[..., 2:6].transpose(1, 2).copy_(idx)
    for view in (apart, idx.transpose(2, 3).contiguous().transpose(2, 3)):
        assert not view.is_contiguous()
        assert_equal(transposed(view, 20, form), plain)
    same = idx[:1, :1].expand(2, 3, 50, 4)
    assert_equal(transposed(same, 20, form), tuple(each[:1, :1].expand(2, 3, -1) for each in plain))


@pytest.mark.parametrize("kind", ["any", "one key", "gaps"])
@pytest.mark.parametrize(
    ("rows", "topk", "keys", "form"),
    [
        (SHORT_ENTRIES // 16, 16, SHORT_NODES, FORMS[0]),
        (SHORT_ENTRIES // 16, 16, SHORT_NODES + 1, FORMS[1]),
        (SHORT_ENTRIES // 16 + 1, 16, SHORT_NODES, FORMS[1]),
        (SHORT_ENTRIES, 1, 1, FORMS[0]),
    ],
)
def test_short_lists_take_one_launch(
    rows: int, topk: int, keys: int, form: str, kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []
    kernels = engine.kernels_of

    def seen(*given: Any, **more: Any) -> Any:
        found = kernels(*given, **more)
        launched.extend(step.stage.phase for step in found)  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(engine, "kernels_of", seen)
    idx = entries((1, 2, rows, topk), keys, kind, 7).to(device)
    assert_equal(transpose_indices(idx, keys), by_scipy(idx, keys))
    assert tuple(launched) == PHASES[form]


@pytest.mark.parametrize("kind", ["any", "one key", "permutation"])
def test_a_long_sequence(kind: str, device: torch.device) -> None:
    keys = 2**17
    idx = entries((1, 1, keys, 8), keys, kind, 3).to(device)
    assert_equal(transpose_indices(idx, keys), by_scipy(idx, keys))


@EVERY_FORM
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (1, 1, 5, 0), (1, 2, 5, 4)], ids=str)
@pytest.mark.parametrize("keys", [0, 3])
def test_nothing_to_do(shape: tuple[int, int, int, int], keys: int, form: str, device: torch.device) -> None:
    idx = torch.full(shape, -1, dtype=torch.int32, device=device)
    offsets, rows = transposed(idx, keys, form)
    assert_equal(
        (offsets, rows), (torch.zeros(*shape[:2], keys + 1), torch.full((*shape[:2], shape[2] * shape[3]), -1))
    )
    assert set(opcheck(OP, (idx, keys)).values()) == {"SUCCESS"}


def cut_by_numpy(offsets: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """The tables of the parts of lists that are longer than a part may be."""
    bounds, owners = [], []
    for ends in heads_of(offsets):
        counts = np.diff(ends)
        parts = np.where(counts > cut.entries, -(-counts // cut.entries), 0)
        bounds.append(np.concatenate([[0], np.cumsum(parts)]))
        named = np.repeat(np.arange(len(counts)), parts)
        owners.append(np.pad(named, (0, cut.places - named.size), constant_values=-1))
    shape = offsets.shape[:2]
    return tuple(torch.from_numpy(np.stack(each)).int().view(*shape, -1) for each in (bounds, owners))  # type: ignore[return-value]


def phases(device: torch.device, spec: Spec, form: str = FORMS[1]) -> tuple[Any, ...]:
    """The steps that invert the lists of level 1."""
    given_lists = tuple(f"idx{level}" for level in range(1, spec.depth + 1))
    short = (1,) if form == FORMS[0] else ()
    return engine.kernels_of(spec, target_of(device), TABLES, given_lists, direction="backward", short=short)


@EVERY_FORM
@budget(40)
@given(drawn=lists(), entries_of_part=st.one_of(st.integers(1, 6), st.integers(1, 100)))
def test_long_lists_are_cut_into_parts(device: torch.device, form: str, drawn: Lists, entries_of_part: int) -> None:
    idx = drawn.tensor(device)
    cut = Cut(entries_of_part, 2 * -(-drawn.rows * drawn.topk // entries_of_part))
    tables: dict[str, Tensor] = {}
    for step in phases(device, Spec(levels=1), form):
        assert isinstance(step.stage, InvertIndex)
        launch(step.kernel, arguments(step.stage.phase, idx, drawn.keys, cut, tables))
    assert_equal((tables["offsets"], tables["rows"].flatten(2)), by_scipy(idx, drawn.keys))
    assert_equal((tables["part_offsets"], tables["part_nodes"]), cut_by_numpy(tables["offsets"], cut))


@pytest.mark.parametrize("kind", ["any", "one key", "gaps"])
@pytest.mark.parametrize(("length", "form"), [(1, FORMS[0]), (16, FORMS[1]), (1500, FORMS[0]), (5000, FORMS[1])])
def test_as_stages_of_a_plan(kind: str, length: int, form: str, device: torch.device) -> None:
    spec = Spec(levels=2, block=4, topk=(5, 3), head_dim=16, dtype="fp32")
    nodes = -(-length // 4)
    idx = entries((2, 2, nodes, 5), nodes, kind, length).to(device)
    x = torch.zeros(2, 2, length, 16, device=device)
    run = Run(spec, x.dtype, 1.0, False, {"q": x, "k": x, "v": x, "idx1": idx})
    assert 1 in short_lists(spec, length) or form != FORMS[0]
    found = run_steps(phases(device, spec, form), run)
    cut = Cut(part_entries(spec, 1), IntSizes.square(spec, length).parts(1))
    offsets, rows = by_scipy(idx, nodes)
    assert found["rows1"].shape == idx.shape
    parts = cut_by_numpy(offsets, cut)
    assert_equal(tuple(found[name].flatten(2) for name in TABLES), (offsets, rows, *parts))
    assert kind != "one key" or length < 1500 or int(parts[0].max()) > 1


def test_all_specs_share_their_kernels() -> None:
    one, other = (
        {step.kernel for form in FORMS for step in phases(torch.device("cpu"), spec, form)}
        for spec in (Spec(levels=1), Spec(levels=2, block=4, topk=3, dtype="fp32", gradient=True))
    )
    assert {kernel._library._name for kernel in one} == {kernel._library._name for kernel in other}


WRONG: dict[str, tuple[Any, Any, type[LlsaError], tuple[str, ...]]] = {
    "no tensor": ([[0]], 3, InputTypeError, ("a torch tensor is needed", "list")),
    "rank": (torch.zeros(3, 4).int(), 3, InputError, ("four axes", "(3, 4)")),
    "dtype": (torch.zeros(1, 1, 3, 4).long(), 3, InputTypeError, ("int32", "torch.int64")),
    "nested": (torch.nested.nested_tensor([torch.zeros(1, 3, 4)] * 2).int(), 3, UnsupportedError, ("nested",)),
    "sparse": (torch.zeros(1, 1, 3, 4).int().to_sparse(), 3, UnsupportedError, ("sparse",)),
    "negative number": (torch.zeros(1, 1, 3, 4).int(), -1, InputError, ("num_keys", "-1")),
    "number too large": (torch.zeros(1, 1, 3, 4).int(), 2**30 + 1, InputError, ("num_keys", "1073741825")),
    "float": (torch.zeros(1, 1, 3, 4).int(), 3.0, InputTypeError, ("num_keys", "float")),
    "bool": (torch.zeros(1, 1, 3, 4).int(), True, InputTypeError, ("num_keys", "bool")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input(wrong: str) -> None:
    idx, keys, error, words = WRONG[wrong]
    message = refused(error, lambda: transpose_indices(idx, keys), *words)
    assert all(part in message for part in ("  value:   ", "  allowed: ", "  next:    ")), message


@pytest.mark.parametrize(("entry", "keys"), [(3, 3), (-2, 3), (0, 0), (2**31 - 1, 3), (-(2**31), 3)])
def test_entries_out_of_range(entry: int, keys: int, device: torch.device) -> None:
    """An error where looking costs nothing, and no entry where it would make the host wait."""
    idx = torch.full((2, 2, 40, 3), -1, dtype=torch.int32, device=device)
    nothing = transpose_indices(idx, keys)
    idx[1, 0, 7, 1] = entry
    if device.type == "cpu":
        refused(InputError, lambda: transpose_indices(idx, keys), "does not exist", str(entry))
    else:
        assert_equal(transpose_indices(idx, keys), nothing)


@EVERY_FORM
def test_kernels_skip_entries_out_of_range(form: str, device: torch.device) -> None:
    idx = entries((1, 2, 60, 4), 9, "gaps", 5)
    wild = torch.where(idx < 0, torch.tensor([9, -7, 2**31 - 1, -(2**31)]).int(), idx)
    tables: dict[str, Tensor] = {}
    for step in phases(device, Spec(levels=1), form):
        launch(step.kernel, arguments(step.stage.phase, wild.to(device), 9, Cut(4, 120), tables))
    assert_equal((tables["offsets"], tables["rows"].flatten(2)), by_scipy(idx, 9))


def test_too_many_entries_are_refused() -> None:
    idx = torch.empty((1, 1, MAX_ENTRIES // 64 + 1, 64), dtype=torch.int32, device="meta")
    refused(UnsupportedError, lambda: arguments("count", idx, 5, Cut(1, 0), {}), "too long to invert", "lower topk")


def test_one_launch_refuses_more_nodes_than_it_has_room_for() -> None:
    idx = torch.zeros((1, 1, 2, 3), dtype=torch.int32)
    refused(InternalError, lambda: arguments("whole", idx, SHORT_NODES + 1, Cut(1, 0), {}), "too many nodes")


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, device: torch.device) -> None:
    idx = entries((2, 2, 21, 3), 10, kind, 0).to(device)
    for view in (idx, idx.transpose(0, 1), idx[:, :1].expand(2, 2, 21, 3)):
        assert set(opcheck(OP, (view, 10)).values()) == {"SUCCESS"}


def call(idx: Tensor, k: Tensor) -> Any:
    return llsa_gen.transpose_indices(idx, k.shape[2])


def selected(idx: Tensor, k: Tensor) -> Any:
    found = llsa_gen.llsa_select(k, k, block_size=4, topk=3, num_levels=1)
    return llsa_gen.transpose_indices(found[0], found[0].shape[2])


@pytest.mark.parametrize("function", [call, selected], ids=lambda function: function.__name__)
def test_one_graph_serves_every_length(function: Callable[..., Any], device: torch.device) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for length in (70, 33, 64, 257):
        idx = entries((2, 2, length + 3, 5), length, "gaps", length).to(device)
        k = torch.randn(2, 2, length, 16, device=device)
        assert_equal(compiled(idx, k), function(idx, k))
    assert len(graphs) == 1
    torch.compiler.reset()


def test_errors_come_when_the_graph_is_made(device: torch.device) -> None:
    compiled = torch.compile(transpose_indices, fullgraph=True, dynamic=True, backend="eager")
    with pytest.raises(Exception, match="must hold int32"):
        compiled(torch.zeros(1, 1, 3, 4, device=device), 3)
