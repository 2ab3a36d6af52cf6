# SPDX-License-Identifier: Apache-2.0
"""Laws that hold for right kernels and that a wrong one breaks, each with a fixed witness.

A law takes a folder for scratch files and a device, and raises AssertionError where it does not hold. Nearly all of
them run on `BASE`, so that few kernels serve them all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llsa_gen.reference import assert_close_by_rule
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv, adversarial_qkv, clustered_qkv, random_qkv
from tests.kernels.calls import (
    assert_identical,
    assert_right,
    assert_selected,
    placed,
    run_attend,
    run_attention,
    run_select,
)
from tests.kernels.layouts import FILLS, far_apart, fenced, tokens_first

BASE = Spec(levels=2, block=4, topk=(3, 2), head_dim=16, value_dim=24, dtype="fp32", enrichment="exclude_refined")
"""Two levels, so that one coarse level is gathered and one is whole; both kernels of a split plan; values wider."""
JOINED = replace(BASE, block=16)
"""A block so large that CPUs have one kernel for pooled keys and tokens."""

Law = Callable[[Path, torch.device], None]


def dense(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Plain softmax attention over all tokens in fp64, with its normaliser."""
    q, k, v = (x.double().cpu() for x in (q, k, v))
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def assert_dense(qkv: Qkv, result: tuple[Tensor, Tensor]) -> None:
    """Judges an fp32 result by the error rule against dense attention."""
    exact, exact_lse = dense(*qkv)
    q, k, v = (x.cpu() for x in qkv)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    logit = 1.0 + float(q.norm(dim=-1).max() * k.norm(dim=-1).max()) / math.sqrt(q.shape[-1])
    size = logit * float(v.abs().max())
    assert_close_by_rule(result[0].cpu(), exact, plain, magnitude=size, label="o")
    assert_close_by_rule(result[1].cpu(), exact_lse, exact_lse, magnitude=logit + exact_lse.abs(), label="lse")


def attention_given_lists(folder: Path, device: torch.device) -> None:
    """Attention of the kernels equals that of the reference for the same lists, for each ragged end."""
    for length in (1, 3, 16, 37, 61, 80):
        q, k, v = placed(clustered_qkv(BASE, 1, 2, length, seed=length), device)
        idx = _lists(q, k)
        assert_right(BASE, (q, k, v), idx, run_attend(BASE, q, k, v, idx))


def joined_attention_given_lists(folder: Path, device: torch.device) -> None:
    """As `attention_given_lists`, where kernels for CPUs attend pooled keys and tokens at once."""
    for length in (1, 17, 300, 850):
        q, k, v = placed(clustered_qkv(JOINED, 1, 2, length, seed=length), device)
        idx = _lists(q, k, JOINED)
        assert_right(JOINED, (q, k, v), idx, run_attend(JOINED, q, k, v, idx))


def values_by_their_own_strides(folder: Path, device: torch.device) -> None:
    """The values of every token are read where the strides of v say."""
    q, k, v = tokens_first(placed(random_qkv(BASE, 1, 1, 37), device))
    idx = _lists(q, k)
    assert_right(BASE, (q, k, v), idx, run_attend(BASE, q, k, v, idx))


def selection_reaches_the_best_scores(folder: Path, device: torch.device) -> None:
    """Every row lists the right number of existing children of its parents, with the best scores."""
    for length in (1, 13, 64, 77, 150):
        q, k, _ = placed(clustered_qkv(BASE, 1, 2, length, seed=length), device)
        assert_selected(BASE, q, k, run_select(BASE, q, k))


def nan_ranks_last(folder: Path, device: torch.device) -> None:
    """A node with a NaN score is listed, behind all others."""
    for case in ("nan_key", "nan_query"):
        q, k, _ = placed(adversarial_qkv(case, BASE, 1, 1, 30), device)
        assert_selected(BASE, q, k, run_select(BASE, q, k))


def ties_go_to_the_lowest_id(folder: Path, device: torch.device) -> None:
    """Among equal scores the lowest ids are listed, in their order."""
    q, k, _ = placed(adversarial_qkv("constant", BASE, 1, 1, 80), device)
    fine, coarse = run_select(BASE, q, k)
    assert coarse.cpu().tolist() == [[[[0, 1]] * 5]]
    assert fine.cpu().tolist() == [[[[0, 1, 2]] * 20]]


def dense_where_coarsest_nodes_are_constant(folder: Path, device: torch.device) -> None:
    """A node of c equal tokens counts like its tokens, for any K: weights, and each token represented once."""
    for length in (5, 32, 39, 75):
        q, k, v = random_qkv(BASE, 1, 2, length, seed=length)
        leaders = torch.arange(length) // BASE.block**2 * BASE.block**2
        qkv = placed((q, k[:, :, leaders], v[:, :, leaders]), device)
        assert_dense(qkv, run_attention(BASE, *qkv))


def constant_values_are_preserved(folder: Path, device: torch.device) -> None:
    """Where all values are equal, so is the output, also for means over a ragged end."""
    for length in (1, 7, 39, 66):
        q, k, v = placed(random_qkv(BASE, 1, 2, length), device)
        o, _ = run_attention(BASE, q, k, torch.full_like(v, 1.75))
        torch.testing.assert_close(o, torch.full_like(o, 1.75), rtol=1e-5, atol=0.0)


def nothing_is_read_behind_the_end(folder: Path, device: torch.device) -> None:
    """Rows behind the last token change nothing, be they NaN or numbers."""
    for length in (1, 6, 37):
        qkv = placed(random_qkv(BASE, 1, 1, length), device)
        one, other = ([fenced(x, 64, fill) for x in qkv] for fill in FILLS)
        assert_identical(run_select(BASE, *one[:2]), run_select(BASE, *other[:2]))
        assert_identical(run_attention(BASE, *one), run_attention(BASE, *other))


def offsets_have_64_bits(folder: Path, device: torch.device) -> None:
    """Rows that lie 2**31 elements apart are read where they are."""
    q, k, v = placed(random_qkv(BASE, 1, 1, 9), device)
    idx = run_select(BASE, q, k)
    far = far_apart(k, folder)
    assert_identical(run_select(BASE, q, far), idx)
    assert_identical(run_attend(BASE, q, far, v, idx), run_attend(BASE, q, k, v, idx))


def one_token_counts_once_per_level(folder: Path, device: torch.device) -> None:
    """At N = 1 every level of the overlap form holds the token: lse = s + ln(L + 1)."""
    spec = replace(BASE, enrichment="overlap")
    q, k, v = placed(random_qkv(spec, 2, 2, 1), device)
    o, lse = run_attention(spec, q, k, v)
    torch.testing.assert_close(o, v, rtol=1e-6, atol=1e-6)
    expected = (q.double() * k.double()).sum(-1) / 4.0 + math.log(spec.depth + 1)
    torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)


def _lists(q: Tensor, k: Tensor, spec: Spec = BASE) -> tuple[Tensor, ...]:
    """The lists that are attended, from the reference: a fault in the selection is not a fault of attention."""
    from llsa_gen import reference

    return tuple(entries.to(q.device) for entries in reference.select(q.cpu(), k.cpu(), spec))


LAWS: Mapping[str, Law] = MappingProxyType(
    {
        law.__name__: law
        for law in (
            attention_given_lists,
            joined_attention_given_lists,
            values_by_their_own_strides,
            selection_reaches_the_best_scores,
            nan_ranks_last,
            ties_go_to_the_lowest_id,
            dense_where_coarsest_nodes_are_constant,
            constant_values_are_preserved,
            nothing_is_read_behind_the_end,
            offsets_have_64_bits,
            one_token_counts_once_per_level,
        )
    }
)
"""The laws by name."""
