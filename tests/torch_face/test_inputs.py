# SPDX-License-Identifier: Apache-2.0
"""What calls accept, and how they refuse the rest: in eager mode, by name, and with fake tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import llsa_gen
from llsa_gen import reference
from llsa_gen.errors import InputError, InputTypeError, LlsaError, SpecError, UnsupportedError
from llsa_gen.ops import engine, execute
from llsa_gen.ops.bound import Bound
from llsa_gen.spec import Spec
from tests.torch_face.calls import KEYWORDS, MEMORY, SMALL, SPEC, Inputs, inputs, lists_of, refused

OP: Any = llsa_gen.load(SMALL.slug)  # called with wrong types too


def call(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return llsa_gen.llsa_attention(q, k, v, **{**KEYWORDS, **options})


def attend(*tensors: Any, **options: Any) -> Any:
    q, k, v, idx = tensors
    return llsa_gen.llsa_attend(q, k, v, idx, block_size=SMALL.block, **options)


CALLS: dict[str, Callable[..., Any]] = {"function": call, "op": OP.attention}


# What is accepted


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 16, 17, 63, 64, 65, 300])
def test_any_length(length: int, device: torch.device) -> None:
    q, k, v = inputs(device, length=length)
    o, lse = call(q, k, v, return_lse=True)
    assert o.shape == (2, 2, length, 24) and lse.shape == (2, 2, length) and lse.dtype == torch.float32
    idx = lists_of(q, k)
    assert [tuple(x.shape) for x in idx] == [(2, 2, -(-length // 4**level), 2) for level in (1, 2)]
    assert torch.equal(attend(q, k, v, idx), o)
    if length:
        expected, lse_expected = reference.attend(q.cpu(), k.cpu(), v.cpu(), tuple(x.cpu() for x in idx), SMALL)
        torch.testing.assert_close(o.cpu(), expected.float())
        torch.testing.assert_close(lse.cpu(), lse_expected.float())


@pytest.mark.parametrize("empty", [{"batch": 0}, {"heads": 0}, {"batch": 0, "length": 0}], ids=str)
def test_nothing_to_do(empty: dict[str, Any], device: torch.device) -> None:
    q, k, v = inputs(device, **empty)
    o, lse = call(q, k, v, return_lse=True)
    assert o.shape == v.shape and lse.shape == q.shape[:3]
    assert attend(q, k, v, lists_of(q, k)).shape == v.shape


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_memory_layouts_change_nothing(memory: str, dtype: torch.dtype, device: torch.device) -> None:
    q, k, v = (MEMORY[memory](x) for x in inputs(device, dtype=dtype))
    before = [x.clone() for x in (q, k, v)]
    o = call(q, k, v)
    assert torch.equal(o, call(*(x.contiguous() for x in (q, k, v)))) and o.dtype == dtype
    assert all(map(torch.equal, before, (q, k, v)))


def test_tokens_may_come_first(device: torch.device) -> None:
    q, k, v = inputs(device)
    o, lse = call(q, k, v, return_lse=True)
    turned = [x.transpose(1, 2) for x in (q, k, v)]
    for attention in CALLS.values():
        found, same = attention(*turned, layout="BNHD", return_lse=True)
        assert torch.equal(found, o.transpose(1, 2)) and torch.equal(same, lse)
        assert found.is_contiguous()
    idx = llsa_gen.llsa_select(*turned[:2], layout="BNHD", **KEYWORDS)
    assert all(map(torch.equal, idx, lists_of(q, k)))
    assert torch.equal(attend(*turned, idx, layout="BNHD"), o.transpose(1, 2))


@pytest.mark.parametrize("scale", [1, 0.3, 1e-3, 30.0])
def test_scale(scale: float, device: torch.device) -> None:
    q, k, v = inputs(device)
    default = 1 / math.sqrt(SMALL.head_dim)
    torch.testing.assert_close(call(q, k, v, scale=scale), call(q * (scale / default), k, v), atol=1e-4, rtol=1e-4)
    assert torch.equal(call(q, k, v), call(q, k, v, scale=default))


def test_depth_by_length(device: torch.device) -> None:
    q, k, v = inputs(device, length=300)
    idx = llsa_gen.llsa_select(q, k, block_size=4, topk=2, num_levels="auto")
    assert torch.equal(attend(q, k, v, idx), call(q, k, v, num_levels="auto"))


def test_lists_may_have_holes_and_doubles(device: torch.device) -> None:
    q, k, v = inputs(device)
    fine, coarse = lists_of(q, k)
    fine[:, :, 0, 0], fine[:, :, 1] = -1, fine[:, :, 1, :1]
    o = attend(q, k, v, (fine, coarse))
    expected, _ = reference.attend(q.cpu(), k.cpu(), v.cpu(), (fine.cpu(), coarse.cpu()), SMALL)
    torch.testing.assert_close(o.cpu(), expected.float())


def test_nothing_attended_gives_zero(device: torch.device) -> None:
    q, k, v = inputs(device)
    empty = [torch.full_like(x, -1) for x in lists_of(q, k)]
    o, lse = attend(q, k, v, empty, enrichment="none", return_lse=True)
    assert not o.any() and bool((lse == -math.inf).all())


# Copies


@pytest.mark.parametrize(
    ("memory", "copied"),
    [(name, name in ("features_apart", "unaligned")) for name in MEMORY],
)
def test_only_what_kernels_cannot_read_is_copied(memory: str, copied: bool, device: torch.device) -> None:
    q, k, v = (MEMORY[memory](x) for x in inputs(device))
    bound = engine.attention_pass(SMALL, q, k, v, 1.0)
    assert isinstance(bound, Bound) and len(bound.readers) == (3 if copied else 0)


def test_strides_that_are_no_multiple_of_eight_are_copied() -> None:
    x = torch.randn(2, 2, 10, 20)[..., :16]
    assert execute.held(x, "cpu").data_ptr() != x.data_ptr() and torch.equal(execute.held(x, "cpu"), x)
    one = torch.randn(1, 1, 1, 20)[..., :16]
    assert execute.held(one, "cpu") is one


# Tensors that are refused


def changed(which: int, change: Callable[[Tensor], Any]) -> Callable[[Inputs], tuple[Any, Any, Any]]:
    def apply(qkv: Inputs) -> tuple[Any, Any, Any]:
        q, k, v = (change(x) if place == which else x for place, x in enumerate(qkv))
        return q, k, v

    return apply


def all_changed(change: Callable[[Tensor], Any]) -> Callable[[Inputs], tuple[Any, Any, Any]]:
    return lambda qkv: (change(qkv[0]), change(qkv[1]), change(qkv[2]))


def complex_of(x: Tensor) -> Tensor:
    return x.to(torch.complex64)


Case = tuple[Callable[[Inputs], tuple[Any, Any, Any]], type[LlsaError], tuple[str, ...]]

REFUSED: dict[str, Case] = {
    "rank": (changed(0, lambda x: x[0]), InputError, ("four axes", "q", "[B, H, N, D]")),
    "rank of all": (all_changed(lambda x: x[0]), InputError, ("four axes", "(2, 70, 16)")),
    "rank 5": (changed(2, lambda x: x[None]), InputError, ("four axes", "v")),
    "batch": (changed(1, lambda x: x[:1]), InputError, ("do not fit", "k (1, 2, 70, 16)")),
    "head dim": (changed(1, lambda x: x[..., :8]), InputError, ("do not fit", "k (2, 2, 70, 8)")),
    "value length": (changed(2, lambda x: x[:, :, 1:]), InputError, ("do not fit", "where:   v", "v (2, 2, 69, 24)")),
    "value heads": (changed(2, lambda x: x[:, :1]), InputError, ("do not fit", "where:   v")),
    "dtype of k": (changed(1, Tensor.half), InputTypeError, ("one dtype", "where:   k", "torch.float16")),
    "device of v": (changed(2, lambda x: x.to("meta")), InputError, ("one device", "where:   v", "meta")),
    "fp64": (all_changed(Tensor.double), InputTypeError, ("no kernels for this dtype", "torch.float64", ".to(")),
    "int": (all_changed(Tensor.int), InputTypeError, ("no kernels for this dtype", "torch.int32")),
    "bool": (all_changed(Tensor.bool), InputTypeError, ("no kernels for this dtype", "torch.bool")),
    "complex": (
        all_changed(complex_of),
        InputTypeError,
        ("no kernels for this dtype", "complex64"),
    ),
    "grouped heads": (lambda x: (x[0], x[1][:, :1], x[2][:, :1]), UnsupportedError, ("grouped heads", "repeat")),
    "query length": (lambda x: (x[0][:, :, 1:], x[1], x[2]), UnsupportedError, ("different lengths", "69 queries")),
}
NO_TENSORS: dict[str, Case] = {
    "numpy": (changed(0, lambda x: x.cpu().numpy()), InputTypeError, ("tensor is needed", "ndarray", "as_tensor")),
    "numpy keys": (changed(1, lambda x: x.cpu().numpy()), InputTypeError, ("tensor is needed", "where:   k")),
    "None": (changed(2, lambda x: None), InputTypeError, ("tensor is needed", "NoneType")),
    "list": (changed(2, lambda x: [x]), InputTypeError, ("tensor is needed", "'list'")),
    "sparse": (changed(0, Tensor.to_sparse), UnsupportedError, ("sparse", ".to_dense()")),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("case", REFUSED | NO_TENSORS)
def test_tensors_that_are_refused(case: str, name: str, device: torch.device) -> None:
    change, error, words = (REFUSED | NO_TENSORS)[case]
    q, k, v = change(inputs(device))
    refused(error, lambda: CALLS[name](q, k, v), *words)


@pytest.mark.parametrize("case", REFUSED | NO_TENSORS)
def test_tensors_that_selection_and_given_lists_refuse(case: str, device: torch.device) -> None:
    change, error, words = (REFUSED | NO_TENSORS)[case]
    qkv = inputs(device)
    q, k, v = change(qkv)
    refused(error, lambda: attend(q, k, v, lists_of(*qkv[:2])), *words)
    if v is qkv[2] and case != "dtype of k":
        refused(error, lambda: llsa_gen.llsa_select(q, k, **KEYWORDS))
        refused(error, lambda: OP.select(q, k))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("case", REFUSED)
def test_fake_tensors_are_refused_alike(case: str, name: str) -> None:
    change, error, words = REFUSED[case]
    q, k, v = change(inputs())
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (q, k, v)]
        refused(error, lambda: CALLS[name](*fakes), *words)


@pytest.mark.parametrize("case", REFUSED)
def test_registered_ops_refuse_alike(case: str) -> None:
    """Whoever calls `torch.ops.llsa_gen` past the public functions gets the same words."""
    change, error, words = REFUSED[case]
    q, k, v = change(inputs())
    refused(error, lambda: getattr(torch.ops.llsa_gen, SMALL.slug)(q, k, v), *words)


@pytest.mark.parametrize("name", CALLS)
def test_meta_tensors_get_shapes(name: str) -> None:
    q, k, v = (x.to("meta") for x in inputs())
    o, lse = CALLS[name](q, k, v, return_lse=True)
    assert o.device.type == "meta" and o.shape == v.shape and lse.shape == q.shape[:3]


@pytest.mark.parametrize("dim", [0, 8, 12, 20, 264])
def test_head_dims(dim: int, device: torch.device) -> None:
    x = torch.ones(1, 1, 10, dim, device=device)
    good = torch.ones(1, 1, 10, 16, device=device)
    refused(SpecError, lambda: call(x, x, good), "head_dim", "q.shape[3]", str(dim), "16 to 256")
    refused(SpecError, lambda: call(good, good, x), "value_dim", "v.shape[3]", str(dim))


def test_an_op_refuses_what_it_was_not_built_for(device: torch.device) -> None:
    q, k, v = inputs(device, spec=SPEC)
    refused(InputError, lambda: OP.attention(q, k, v), SMALL.slug, "head_dim 16", "64", "--head-dim 64")
    empty = q[..., :0]
    refused(InputError, lambda: OP.attention(empty, empty, v), SMALL.slug, "head_dim 16", "value:   0")
    q, k, v = inputs(device)
    refused(InputError, lambda: OP.attention(q, k, q), "value_dim 24", "--value-dim 16")
    half = [x.half() for x in (q, k, v)]
    refused(InputTypeError, lambda: OP.attention(*half), "torch.float32", "torch.float16", "--dtype fp16")
    refused(InputTypeError, lambda: OP.select(*half[:2]), "torch.float32")


# Arguments that are refused

SCALES = (0, 0.0, -1, -0.5, math.nan, math.inf, 10**400, 1e39)
NO_SCALES = (True, "1", 1j, [1.0], np.float32(0.5), torch.tensor(0.5))


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: str(scale)[:5])
def test_scales_out_of_range(scale: Any, device: torch.device) -> None:
    _scale_is_refused(InputError, scale, device)


@pytest.mark.parametrize("scale", NO_SCALES, ids=lambda scale: type(scale).__name__)
def test_scales_that_are_no_numbers(scale: Any, device: torch.device) -> None:
    _scale_is_refused(InputTypeError, scale, device)


def _scale_is_refused(error: type[LlsaError], scale: Any, device: torch.device) -> None:
    q, k, v = inputs(device, length=9)
    words = ("scale must be a positive finite number", "where:   scale", "1 / sqrt(head_dim)")
    refused(error, lambda: call(q, k, v, scale=scale), *words)
    refused(error, lambda: attend(q, k, v, lists_of(q, k), scale=scale), *words)
    refused(error, lambda: OP.attention(q, k, v, scale=scale), *words)
    refused(error, lambda: OP.attend(q, k, v, lists_of(q, k), scale=scale), *words)


ARGUMENTS: dict[str, tuple[dict[str, Any], type[LlsaError], tuple[str, ...]]] = {
    "topk 0": ({"topk": 0}, SpecError, ("argument topk", "1 to 128")),
    "topk -1": ({"topk": -1}, SpecError, ("argument topk",)),
    "topk 129": ({"topk": 129}, SpecError, ("argument topk", "raise block_size")),
    "topk ratio": ({"topk": 0.1}, SpecError, ("argument topk", "sparsity=")),
    "topk float": ({"topk": 8.0}, SpecError, ("argument topk", "sparsity=")),
    "topk bool": ({"topk": True}, SpecError, ("argument topk", "True")),
    "topk None": ({"topk": None}, SpecError, ("argument topk",)),
    "topk text": ({"topk": "16 // 2**l"}, SpecError, ("argument topk",)),
    "topk too few": ({"topk": (8,)}, SpecError, ("1 topk for 2 levels", "finest")),
    "topk too many": ({"topk": (8, 8, 8)}, SpecError, ("3 topk for 2 levels",)),
    "topk empty": ({"topk": ()}, SpecError, ("0 topk for 2 levels",)),
    "topk of a level": ({"topk": (8, 0)}, SpecError, ("argument topk, level 2",)),
    "topk ratio of a level": ({"topk": (0.5, 8)}, SpecError, ("argument topk, level 1", "sparsity=")),
    "levels 0": ({"num_levels": 0}, SpecError, ("argument num_levels", '1 to 6, or "auto"')),
    "levels 7": ({"num_levels": 7}, SpecError, ("argument num_levels",)),
    "levels bool": ({"num_levels": True}, SpecError, ("argument num_levels",)),
    "levels float": ({"num_levels": 2.0}, SpecError, ("argument num_levels",)),
    "levels text": ({"num_levels": "many"}, SpecError, ("argument num_levels",)),
    "auto with a tuple": ({"num_levels": "auto", "topk": (8, 8)}, SpecError, ("one topk for all levels",)),
    "block 0": ({"block_size": 0}, SpecError, ("argument block_size", "4, 8, 16, 32, 64, 128")),
    "block 15": ({"block_size": 15}, SpecError, ("argument block_size", "nearest allowed block is 16")),
    "block text": ({"block_size": "16"}, SpecError, ("argument block_size",)),
    "block bool": ({"block_size": True}, SpecError, ("argument block_size",)),
    "enrichment": ({"enrichment": "overlapp"}, SpecError, ("argument enrichment", "did you mean 'overlap'")),
    "enrichment None": ({"enrichment": None}, SpecError, ("argument enrichment",)),
    "weight name": ({"weight": "x"}, SpecError, ("argument weight", "unknown name")),
    "weight sign": ({"weight": "-c"}, SpecError, ("argument weight", "positive and finite")),
    "weight number": ({"weight": 3}, SpecError, ("argument weight", '"3"')),
    "layout": ({"layout": "BNDH"}, InputError, ("layout", "BHND, BNHD")),
    "layout case": ({"layout": "bhnd"}, InputError, ("layout", "BHND, BNHD")),
    "layout None": ({"layout": None}, InputError, ("layout",)),
    "layout list": ({"layout": ["BHND"]}, InputError, ("layout",)),
}
OF_SELECT = {"topk", "num_levels", "block_size", "layout"}
OF_OPS = {"layout"}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_are_refused(case: str, device: torch.device) -> None:
    wrong, error, words = ARGUMENTS[case]
    q, k, v = inputs(device, length=9)
    refused(error, lambda: call(q, k, v, **wrong), *words)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (q, k, v)]
        refused(error, lambda: call(*fakes, **wrong), *words)
    if set(wrong) <= OF_SELECT:
        refused(error, lambda: llsa_gen.llsa_select(q, k, **{**KEYWORDS, **wrong}), *words)
    if set(wrong) <= OF_OPS:
        refused(error, lambda: OP.attention(q, k, v, **wrong), *words)
        refused(error, lambda: OP.select(q, k, **wrong), *words)


@pytest.mark.parametrize("topk", [[], [8, 8, 8], [0]])
def test_registered_ops_check_the_spec(topk: list[int], device: torch.device) -> None:
    with pytest.raises(SpecError, match="topk"):
        torch.ops.llsa_gen.attention(*inputs(device), 2, 4, topk, "overlap", "c")


def test_integer_like_numbers_are_numbers(device: torch.device) -> None:
    qkv = inputs(device)
    assert torch.equal(call(*qkv, topk=np.int64(2), num_levels=np.int32(2)), call(*qkv))
    assert torch.equal(call(*qkv, topk=[2, 2]), call(*qkv))


# Given lists that are refused

ListCase = tuple[Callable[[tuple[Tensor, ...]], Any], type[LlsaError], tuple[str, ...]]
LISTS: dict[str, ListCase] = {
    "levels": (lambda idx: idx[::-1], InputError, ("wrong shape", "idx[0] (level 1)", "n_1")),
    "int64": (lambda idx: [x.long() for x in idx], InputTypeError, ("int32", "torch.int64", "idx[0].int()")),
    "float": (lambda idx: [idx[0], idx[1].float()], InputTypeError, ("int32", "idx[1] (level 2)", "torch.float32")),
    "rows": (lambda idx: (idx[0][:, :, 1:], idx[1]), InputError, ("wrong shape", "(2, 2, 17, 2)", "(2, 2, 18, 2)")),
    "heads": (lambda idx: (idx[0][:, :1], idx[1]), InputError, ("wrong shape",)),
    "meta": (lambda idx: [x.to("meta") for x in idx], InputError, ("another device", "meta", ".to(q.device)")),
    "None": (lambda idx: None, InputTypeError, ("one per level", "NoneType", "llsa_select")),
    "one tensor": (lambda idx: idx[0], InputTypeError, ("one per level", "Tensor", "llsa_select")),
    "none": (lambda idx: (), InputTypeError, ("one per level", "()")),
    "numpy": (lambda idx: [x.cpu().numpy() for x in idx], InputTypeError, ("must be a tensor", "idx[0]", "ndarray")),
    "sparse": (lambda idx: [x.to_sparse() for x in idx], InputTypeError, ("nor sparse", "idx[0]", "torch.sparse_coo")),
    "rank": (lambda idx: [x[0] for x in idx], InputError, ("four axes", "idx[0]", "(2, 18, 2)")),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_are_refused(case: str, device: torch.device) -> None:
    change, error, words = LISTS[case]
    q, k, v = inputs(device)
    idx = change(lists_of(q, k))
    refused(error, lambda: attend(q, k, v, idx), *words)
    refused(error, lambda: OP.attend(q, k, v, idx), *words)


@pytest.mark.parametrize("case", ["levels", "int64", "rows", "rank"])
def test_fake_lists_are_refused_alike(case: str) -> None:
    change, error, words = LISTS[case]
    q, k, v = inputs()
    idx = change(lists_of(q, k))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (q, k, v)]
        lists = [mode.from_tensor(x) for x in idx]
        refused(error, lambda: attend(*fakes, lists), *words)
        refused(error, lambda: OP.attend(*fakes, lists), *words)


def test_an_op_wants_its_own_lists(device: torch.device) -> None:
    q, k, v = inputs(device)
    idx = lists_of(q, k)
    refused(InputError, lambda: OP.attend(q, k, v, [x[..., :1] for x in idx]), "wrong shape", "(2, 2, 18, 2)")
    refused(InputError, lambda: OP.attend(q, k, v, idx[:1]), "one list per level", "1 tensors", "2 tensors")


@pytest.mark.parametrize("entry", [18, 2**31 - 1, -2, -(2**31)])
def test_entries_out_of_range_are_refused_on_a_cpu(entry: int) -> None:
    q, k, v = inputs()
    fine, coarse = lists_of(q, k)
    fine[1, 1, 3, 1] = entry
    words = ("does not exist", "idx[0] (level 1)", str(entry), "0..17")
    refused(InputError, lambda: attend(q, k, v, (fine, coarse)), *words)
    refused(InputError, lambda: OP.attend(q, k, v, (fine, coarse)), *words)


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_brings_dtypes_together(dtype: torch.dtype, device: torch.device) -> None:
    """QK-norm gives fp32 queries and keys under autocast, beside values in half precision."""
    q, k, v = inputs(device)
    with torch.autocast(device.type, dtype=dtype):
        mixed = call(q, k, v.to(dtype))
        idx = lists_of(q, k)
        given = attend(q, k, v.to(dtype), idx)
    expected = call(*(x.to(dtype) for x in (q, k, v)))
    assert mixed.dtype == dtype and torch.equal(mixed, expected) and torch.equal(given, expected)


def test_an_op_keeps_its_dtype_under_autocast(device: torch.device) -> None:
    q, k, v = inputs(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        o = OP.attention(q, k.bfloat16(), v)
    assert o.dtype == torch.float32 and torch.equal(o, OP.attention(q, k.bfloat16().float(), v))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        refused(InputTypeError, lambda: call(q.double(), k.double(), v.double()), "torch.float64")


def test_specs_differ_in_their_dims(device: torch.device) -> None:
    """A small value dim beside a larger head dim, and the other way round."""
    for head_dim, value_dim in ((24, 16), (16, 40)):
        spec = Spec(levels=1, block=4, topk=2, head_dim=head_dim, value_dim=value_dim, dtype="fp32")
        q, k, v = inputs(device, spec=spec, length=19)
        o = llsa_gen.llsa_attention(q, k, v, block_size=4, topk=2, num_levels=1)
        idx = llsa_gen.llsa_select(q, k, block_size=4, topk=2, num_levels=1)
        expected, _ = reference.attend(q.cpu(), k.cpu(), v.cpu(), tuple(x.cpu() for x in idx), spec)
        torch.testing.assert_close(o.cpu(), expected.float())
