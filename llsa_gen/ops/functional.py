# SPDX-License-Identifier: Apache-2.0
"""The public functions: LLSA as a drop-in for `scaled_dot_product_attention`, and its two halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from llsa_gen.errors import SpecError, explain
from llsa_gen.ops.calls import AUTO_LEVELS
from llsa_gen.ops.checks import list_widths
from llsa_gen.ops.front import call_attention, call_select
from llsa_gen.ops.registry import registered
from llsa_gen.spec import Spec
from llsa_gen.spec import fields as rules

_ATTENTION, _SELECT, _ATTEND = map(registered, ("attention", "select", "attend"))

Layout = Literal["BHND", "BNHD"]
Topk = int | Sequence[int]
Levels = int | Literal["auto"]

_ARGUMENTS = {
    "block": "block_size",
    "levels": "num_levels",
    "topk": "topk",
    "head_dim": "q.shape[3]",
    "value_dim": "v.shape[3]",
    "enrichment": "enrichment",
    "weight": "weight",
}
"""What the fields of a spec are called in calls."""


@overload
def llsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int = ...,
    topk: Topk = ...,
    num_levels: Levels = ...,
    scale: float | None = ...,
    enrichment: str = ...,
    weight: str = ...,
    layout: Layout = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def llsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int = ...,
    topk: Topk = ...,
    num_levels: Levels = ...,
    scale: float | None = ...,
    enrichment: str = ...,
    weight: str = ...,
    layout: Layout = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def llsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int = 16,
    topk: Topk = 8,
    num_levels: Levels = 2,
    scale: float | None = None,
    enrichment: str = "overlap",
    weight: str = "c",
    layout: Layout = "BHND",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-linear sparse attention (arXiv 2512.16615): pools, selects and attends in O(N log N).

    Args:
        q: Queries [B,H,N,D] (or [B,N,H,D], see layout), fp32, fp16 or bf16, any strides. Tensors whose last stride is
            not 1, whose other strides are no multiples of 8 elements or that are not 16-byte aligned are copied once.
        k: Keys, of the shape of q.
        v: Values [B,H,N,Dv].
        block_size: Tokens per block and branching factor, a power of two from 4 to 128.
        topk: Selected blocks per query block, 1 to 128, for all levels or per level (finest first); more than there
            are means all of them.
        num_levels: Depth of the hierarchy, 1 to 6, or "auto": the depth with the fewest flops at this length.
        scale: Factor of the logits; 1 / sqrt(D) when not given.
        enrichment: Which coarse nodes are attended besides the selected tokens: "overlap", "exclude_refined", "none".
        weight: Weight of a coarse node as an expression in b, l, L, c and D; "c" is the number of its tokens.
        layout: "BHND" or "BNHD", for all tensors.
        return_lse: Whether to return (o, lse) instead of o.

    Returns:
        o in the shape of q with Dv features and the dtype of q; lse is fp32 [B,H,N], the natural logarithm of the
        weighted sum of exponentials.

    Raises:
        InputError, InputTypeError, UnsupportedError: The tensors are not served; the message says what is.
        SpecError: block_size, topk, num_levels, enrichment or weight is not allowed.
        NotBuiltError: The kernels are not built, and LLSA_GEN_BUILD=0 forbids building on first use.
    """
    try:
        fields = _fields(block_size, topk, num_levels, enrichment, weight)
        return call_attention(_ATTENTION, (q, k, v), fields, scale, layout, return_lse)
    except SpecError as error:
        raise _in_words_of_the_call(error) from None


def llsa_select(
    q: Tensor,
    k: Tensor,
    *,
    block_size: int = 16,
    topk: Topk = 8,
    num_levels: Levels = 2,
    layout: Layout = "BHND",
) -> tuple[Tensor, ...]:
    """Selects for every query node the key nodes with the largest scores, coarse to fine.

    Args:
        q: Queries [B,H,N,D], see `llsa_attention`.
        k: Keys, of the shape of q.
        block_size: Tokens per block.
        topk: Entries of a list, for all levels or per level.
        num_levels: Depth of the hierarchy, or "auto".
        layout: "BHND" or "BNHD".

    Returns:
        One int32 tensor [B,H,n_l,K_l] per level, level 1 (finest) first; best first, -1 where there are fewer nodes.
        Indices carry no gradient.
    """
    try:
        return call_select(_SELECT, (q, k), _fields(block_size, topk, num_levels, "overlap", "c"), layout)
    except SpecError as error:
        raise _in_words_of_the_call(error) from None


def llsa_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    idx: Sequence[Tensor],
    *,
    block_size: int = 16,
    scale: float | None = None,
    enrichment: str = "overlap",
    weight: str = "c",
    layout: Layout = "BHND",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention with given lists; the depth and the list widths are those of `idx`.

    Args:
        q: Queries [B,H,N,D], see `llsa_attention`.
        k: Keys, of the shape of q.
        v: Values [B,H,N,Dv].
        idx: One int32 tensor [B,H,n_l,K_l] per level, level 1 (finest) first, as `llsa_select` returns. Entries of -1
            are skipped wherever they stand, and a node that is listed twice counts twice. On a CPU entries are
            checked; on a GPU they are clamped, which needs no synchronisation.
        block_size: Tokens per block.
        scale: Factor of the logits.
        enrichment: See `llsa_attention`; "exclude_refined" needs lists whose parents are selected.
        weight: See `llsa_attention`.
        layout: "BHND" or "BNHD".
        return_lse: Whether to return (o, lse) instead of o.

    Returns:
        o, or (o, lse), as `llsa_attention`. A query that attends nothing has o = 0 and lse = -inf.
    """
    topk = list_widths(idx)
    try:
        fields = _fields(block_size, topk, len(topk), enrichment, weight)
        return call_attention(_ATTEND, (q, k, v), fields, scale, layout, return_lse, lists=list(idx))
    except SpecError as error:
        raise _in_words_of_the_call(error) from None


def _fields(
    block_size: int, topk: Topk, num_levels: Levels, enrichment: str, weight: str
) -> tuple[int, int, list[int], str, str]:
    """The spec of a call as the plain values of an op's schema; the op refuses what they must not be."""
    if not (isinstance(enrichment, str) and isinstance(weight, str)):
        Spec(enrichment=enrichment, weight=weight)  # refuses it, in better words than a schema
    levels, widths = _depth_and_widths(num_levels, topk)
    return levels, rules.check_block(block_size), widths, _plain(enrichment), _plain(weight)


def _plain(text: str) -> str:
    """The text itself, where it is of a class of its own, as members of an enumeration are."""
    return text if type(text) is str else str.__str__(text)


def _depth_and_widths(num_levels: Levels, topk: Topk) -> tuple[int, list[int]]:
    """The number of levels, `AUTO_LEVELS` for "auto", and one topk for all levels or one for each."""
    levels = rules.check_levels(num_levels)
    if not isinstance(topk, (list, tuple)):
        return AUTO_LEVELS if isinstance(levels, str) else levels, [rules.check_topk(topk)]
    if isinstance(levels, str):
        what, hint = 'num_levels="auto" needs one topk for all levels', "give num_levels as a number, or one topk"
        raise SpecError(explain(what, where="spec field topk", value=topk, allowed="a whole number", hint=hint))
    if len(topk) != levels:
        what, hint = f"there are {len(topk)} topk for {levels} levels", "give one topk per level, or one for all"
        allowed = f"{levels} numbers, level 1 (the finest) first"
        raise SpecError(explain(what, where="spec field topk", value=topk, allowed=allowed, hint=hint))
    return levels, [rules.check_topk(width, f"topk, level {level}") for level, width in enumerate(topk, 1)]


def _in_words_of_the_call(error: SpecError) -> SpecError:
    """An error about spec fields with the names that the caller used."""
    message = str(error)
    for field, argument in _ARGUMENTS.items():
        message = message.replace(f"spec field {field}", f"argument {argument}")
    message = message.replace(', or "auto" together with seq_len', ', or "auto"')
    return SpecError(message.replace("raise block,", "raise block_size,"))
