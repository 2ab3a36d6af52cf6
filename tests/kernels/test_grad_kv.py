# SPDX-License-Identifier: Apache-2.0
"""The kernels of the gradients of keys and values alone: what comes before them is computed by torch here.

The inverted lists are made by a model in loops, so that a fault of the kernels that invert cannot hide one of these.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llsa_gen import reference
from llsa_gen.ir import names
from llsa_gen.ir.sizes import IntSizes, part_entries
from llsa_gen.ops import engine
from llsa_gen.ops.execute import held, run_steps
from llsa_gen.ops.launch import target_of
from llsa_gen.ops.state import Run, sizes_of
from llsa_gen.reference import GRADIENT_FACTOR, assert_close_by_rule, node_count
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv, random_qkv
from tests.kernels.calls import assert_identical
from tests.kernels.gradient_specs import ONE_LEVEL, THREE_LEVELS, TOKENS_ONLY, TWO_LEVELS, WIDE
from tests.kernels.layouts import tokens_first
from tests.strategies import budget, given_lists, leaves, problems

SPECS = {spec.slug: spec for spec in (ONE_LEVEL, TWO_LEVELS, THREE_LEVELS, TOKENS_ONLY, WIDE)}
EACH_SPEC = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
KINDS = ("attend_grad_kv", "merge_grad_kv")
GRADIENTS = ("k_grad", "v_grad")
TABLES = (names.offsets, names.rows, names.part_offsets, names.part_nodes)


# -- what comes before these kernels ------------------------------------------------------------------


def inverted(entries: Tensor, nodes: int, limit: int, places: int) -> tuple[list[int], ...]:
    """`offsets`, `rows`, `part_offsets` and `part_nodes` of the lists [n,K] of one head."""
    takers: list[list[int]] = [[] for _ in range(nodes)]
    for row, selected in enumerate(entries.tolist()):
        for node in sorted(selected):
            if node >= 0:
                takers[node].append(row)
    rows = [row for each in takers for row in each]
    parts = [-(-len(each) // limit) if len(each) > limit else 0 for each in takers]
    part_nodes = [node for node, count in enumerate(parts) for _ in range(count)]
    assert len(part_nodes) <= places
    return (
        [sum(len(each) for each in takers[:node]) for node in range(nodes + 1)],
        rows + [-1] * (entries.numel() - len(rows)),
        [sum(parts[:node]) for node in range(nodes + 1)],
        part_nodes + [-1] * (places - len(part_nodes)),
    )


def tables_of(spec: Spec, level: int, entries: Tensor, length: int) -> dict[str, Tensor]:
    """The tables of a level for lists [B,H,n,K], by their names in the plan."""
    batch, heads, rows, topk = entries.shape
    limit, places = part_entries(spec, level), IntSizes.square(spec, length).parts(level)
    each = [inverted(one, rows, limit, places) for one in entries.flatten(0, 1)]
    found = {}
    for name, columns in zip(TABLES, zip(*each, strict=True), strict=True):
        table = torch.tensor(columns, dtype=torch.int32, device=entries.device)
        own = (rows, topk) if name is names.rows else table.shape[1:]
        found[name(level)] = table.reshape(batch, heads, *own)
    return found


def packed(spec: Spec, x: Tensor) -> Tensor:
    """The pools of x behind each other, every level in whole blocks of rows."""
    sizes = sizes_of(spec, x.shape[2])
    whole = x.new_zeros(*x.shape[:2], sizes.starts[-1], x.shape[3])
    for start, count, means in zip(sizes.starts, sizes.nodes, reference.pool(x, spec), strict=False):
        whole[:, :, start : start + count] = means
    return whole


def kernel_gradients(
    spec: Spec, qkv: Qkv, idx: Sequence[Tensor], given: dict[str, Tensor], scale: float, *, tokens_first: bool = False
) -> tuple[Tensor, Tensor]:
    """`(k_grad, v_grad)` of the kernels for `o`, `lse`, `o_grad` and `lse_grad`, in the memory order of the kernels."""
    q, k, v = qkv
    length = q.shape[2]
    known = {**dict(zip("qkv", qkv, strict=True)), "o_grad": given["o_grad"]}
    known |= {"k_pools": packed(spec, k), "v_pools": packed(spec, v)} if spec.enrichment != "none" else {}
    target = target_of(q.device)
    tensors = {name: held(x, target) for name, x in known.items()} | {"lse": given["lse"]}
    tensors[names.DELTA] = (given["o"].float() * given["o_grad"].float()).sum(-1) - given["lse_grad"]
    for level, entries in enumerate(idx, start=1):
        tensors |= {names.lists(level): entries.contiguous(), **tables_of(spec, level, entries, length)}
    steps = engine.kernels_of(spec, target, GRADIENTS, given=tuple(sorted(tensors)), direction="backward")
    assert {step.stage.kind for step in steps} == set(KINDS)
    found = run_steps(steps, Run(spec, q.dtype, scale, tokens_first, tensors))
    return found["k_grad"], found["v_grad"]


# -- what they are compared with --------------------------------------------------------------------------


def autograd(
    spec: Spec, qkv: Qkv, idx: Sequence[Tensor], o_grad: Tensor, lse_grad: Tensor, scale: float, *, exact: bool
) -> tuple[Tensor, ...]:
    """`(o, lse, k_grad, v_grad)` of the reference, in fp64 or in the dtype of the inputs."""
    q, k, v = leaves(tuple(x.double() for x in qkv) if exact else qkv)  # type: ignore[arg-type]  # three of them
    options: dict[str, Any] = {"pool_dtype": qkv[0].dtype} if exact else {"compute_dtype": q.dtype}
    o, lse = reference.attend(q, k, v, idx, spec, scale=scale, **options)
    finite_lse = torch.where(lse == -math.inf, 0.0, lse)
    total = (o * o_grad.to(o.dtype)).sum() + (finite_lse * lse_grad.to(lse.dtype)).sum()
    total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert k.grad is not None and v.grad is not None
    return o.detach(), lse.detach(), k.grad, v.grad


def magnitudes(
    spec: Spec, qkv: Sequence[Tensor], idx: Sequence[Tensor], o_grad: Tensor, lse_grad: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """What was rounded on the way to `k_grad` and `v_grad`: sums over the queries of `p` times absolute values."""
    q, k, v = (x.double() for x in qkv)

    def gathered(x: Tensor) -> Tensor:
        """Every key's share of x [B,H,N,E]: what reaches values of that width as their gradient."""
        values = torch.zeros_like(x).requires_grad_()
        o, _ = reference.attend(q, k, values, idx, spec, scale=scale, pool_dtype=qkv[0].dtype)
        o.backward(x)  # type: ignore[no-untyped-call]
        assert values.grad is not None
        return values.grad

    logit = 1.0 + scale * q.norm(dim=-1, keepdim=True) * k.norm(dim=-1).amax(-1)[..., None, None]
    weight = 2.0 * o_grad.double().abs().sum(-1, keepdim=True) * v.abs().amax() + lse_grad.double().abs()[..., None]
    return gathered(scale * weight * logit * q.abs()), gathered(logit * o_grad.double().abs())


def cotangents(spec: Spec, v: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Random `(o_grad, lse_grad)`."""
    generator = torch.Generator().manual_seed(seed)
    o_grad = torch.randn(v.shape, generator=generator).to(v.dtype)
    return o_grad.to(v.device), torch.randn(v.shape[:3], generator=generator).to(v.device)


def forward(spec: Spec, qkv: Qkv, idx: Sequence[Tensor], scale: float) -> dict[str, Tensor]:
    """`o` and `lse` as a forward pass stores them."""
    q, k, v = (x.double().cpu() for x in qkv)
    lists = [entries.cpu() for entries in idx]
    o, lse = reference.attend(q, k, v, lists, spec, scale=scale, pool_dtype=qkv[0].dtype)
    return {"o": o.to(qkv[0]), "lse": lse.float().to(q.device if qkv[0].is_cpu else qkv[0].device)}


def judge(spec: Spec, qkv: Qkv, idx: Sequence[Tensor], *, seed: int = 0, scale: float = 0.3) -> None:
    """The kernels follow the error rule."""
    o_grad, lse_grad = cotangents(spec, qkv[2], seed)
    given = forward(spec, qkv, idx, scale) | {"o_grad": o_grad, "lse_grad": lse_grad}
    actual = kernel_gradients(spec, qkv, idx, given, scale)
    home = [x.cpu() for x in qkv], [entries.cpu() for entries in idx], o_grad.cpu(), lse_grad.cpu()
    exact, native = (autograd(spec, *home, scale, exact=exact)[2:] for exact in (True, False))  # type: ignore[arg-type]
    sizes = magnitudes(spec, *home, scale)
    for name, mine, truth, plain, size in zip(GRADIENTS, actual, exact, native, sizes, strict=True):
        rounded = mine.cpu().to(qkv[0].dtype)
        assert_close_by_rule(rounded, truth, plain, GRADIENT_FACTOR, magnitude=size, label=name)


def skewed(spec: Spec, length: int, *, batch: int = 1, heads: int = 1) -> tuple[Tensor, ...]:
    """Lists in which every row of every level selects node 0 and, now and then, others."""
    generator = torch.Generator().manual_seed(length)
    found = []
    for level, topk in enumerate(spec.topks, start=1):
        nodes = node_count(length, spec.block, level)
        entries = torch.randint(-1, nodes, (batch, heads, nodes, topk), generator=generator)
        entries[..., 0] = 0
        found.append(entries.int())
    return tuple(found)


# -- right --------------------------------------------------------------------------------------------------


@EACH_SPEC
@given(data=st.data())
@budget(6)
def test_gradients_equal_the_reference(spec: Spec, data: st.DataObject, device: torch.device) -> None:
    problem = data.draw(problems(spec=st.just(spec), high=600))
    q, k, v = (x.to(device) for x in problem.qkv(None))
    idx = tuple(entries.to(device) for entries in data.draw(given_lists(problem)))
    judge(spec, (q, k, v), idx, seed=problem.seed)


@EACH_SPEC
@pytest.mark.parametrize("length", [1, 3])
def test_a_sequence_shorter_than_a_block(spec: Spec, length: int, device: torch.device) -> None:
    q, k, v = (x.to(device) for x in random_qkv(spec, 1, 2, length, dtype=None))
    judge(spec, (q, k, v), [entries.to(device) for entries in reference.select(q.cpu(), k.cpu(), spec)])


@EACH_SPEC
def test_a_node_that_every_row_selects(spec: Spec, device: torch.device) -> None:
    length = 1400 if spec.block > 4 else 1111
    idx = [entries.to(device) for entries in skewed(spec, length)]
    if spec.depth <= 2:
        finest = tables_of(spec, 1, idx[0], length)
        assert int((finest[names.part_nodes(1)] == 0).sum()) > 1  # its list comes in parts
    q, k, v = (x.to(device) for x in random_qkv(spec, 1, 1, length, dtype=None))
    judge(spec, (q, k, v), idx)


def test_a_query_that_attends_nothing_gives_nothing(device: torch.device) -> None:
    q, k, v = (x.to(device) for x in random_qkv(TOKENS_ONLY, 1, 1, 100, dtype=None))
    idx = [torch.full((1, 1, 4, 2), -1, dtype=torch.int32, device=device)]
    idx[0][0, 0, 1] = 2
    judge(TOKENS_ONLY, (q, k, v), idx)


# -- the same ---------------------------------------------------------------------------------------------


def prepared(spec: Spec, length: int, device: torch.device) -> tuple[Qkv, tuple[Tensor, ...], dict[str, Tensor]]:
    """Tensors and skewed lists of 2 x 2 heads, with what the forward pass made of them."""
    q, k, v = (x.to(device) for x in random_qkv(spec, 2, 2, length, dtype=None))
    idx = tuple(entries.to(device) for entries in skewed(spec, length, batch=2, heads=2))
    o_grad, lse_grad = cotangents(spec, v, 5)
    return (q, k, v), idx, forward(spec, (q, k, v), idx, 0.3) | {"o_grad": o_grad, "lse_grad": lse_grad}


@pytest.mark.parametrize("spec", [TWO_LEVELS, THREE_LEVELS], ids=lambda spec: spec.slug)
def test_batches_and_heads_may_change_places(spec: Spec, device: torch.device) -> None:
    qkv, idx, given = prepared(spec, 700, device)
    result = kernel_gradients(spec, qkv, idx, given, 0.3)
    q, k, v = (x.flip(0, 1) for x in qkv)
    there = {name: x.flip(0, 1) for name, x in given.items()}
    again = kernel_gradients(spec, (q, k, v), [entries.flip(0, 1) for entries in idx], there, 0.3)
    assert_identical([x.flip(0, 1) for x in again], result)


@pytest.mark.parametrize("spec", [ONE_LEVEL, TWO_LEVELS], ids=lambda spec: spec.slug)
def test_memory_order_changes_nothing(spec: Spec, device: torch.device) -> None:
    qkv, idx, given = prepared(spec, 333, device)
    given["o_grad"] = given["o_grad"][:, :, :1].expand(-1, -1, 333, -1)
    result = kernel_gradients(spec, qkv, idx, {**given, "o_grad": given["o_grad"].contiguous()}, 0.3)
    turned = kernel_gradients(spec, tokens_first(qkv), idx, given, 0.3, tokens_first=True)
    assert all(x.transpose(1, 2).is_contiguous() for x in turned)
    assert_identical(turned, result)


def test_a_nan_stays_in_its_head(device: torch.device) -> None:
    qkv, idx, given = prepared(TWO_LEVELS, 500, device)
    clean = kernel_gradients(TWO_LEVELS, qkv, idx, given, 0.3)
    qkv[0][0, 0, 7, 3] = torch.nan
    given["o_grad"][0, 0, 9] = torch.inf
    dirty = kernel_gradients(TWO_LEVELS, qkv, idx, given, 0.3)
    assert all(not x[0, 0].isfinite().all() for x in dirty)
    assert_identical([x.flatten(0, 1)[1:] for x in dirty], [x.flatten(0, 1)[1:] for x in clean])
