# SPDX-License-Identifier: Apache-2.0
"""What single queries attend: how finely LLSA resolves each token for them, and the weight that each token receives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llsa_gen.demo.setting import BLOCK


def resolution(lists: Sequence[Tensor], rows: Tensor, tokens: int) -> Tensor:
    """The finest level at which each query attends each token.

    Args:
        lists: The selection of one head, index 0 = level 1, each [n_l, K_l] with -1 for missing entries.
        rows: Query tokens, [R].
        tokens: Length of the sequence, a whole number of nodes of every level.

    Returns:
        Levels, int8 [R, tokens]: 0 where a token is attended itself, l where only its level-l node is.
    """
    found = torch.full((len(rows), tokens), len(lists), dtype=torch.int8)
    for level in range(len(lists), 0, -1):
        span = BLOCK**level
        chosen = lists[level - 1][rows // span].long()
        nodes = torch.zeros(len(rows), tokens // span + 1, dtype=torch.bool)
        nodes.scatter_(1, chosen.where(chosen >= 0, tokens // span), True)
        found[nodes[:, :-1].repeat_interleave(span, 1)] = level - 1
    return found


def llsa_weights(q: Tensor, k: Tensor, rows: Tensor, found: Tensor, levels: int) -> Tensor:
    """The weight that each token receives from LLSA, directly and through the nodes above it: [R, tokens], sums to one.

    A node of c tokens has the weight c·e^s and shares it evenly, so each of its tokens receives e^s.

    Args:
        q: Queries of one head, [tokens, D].
        k: Keys of one head, [tokens, D].
        rows: Query tokens, [R].
        found: Result of `resolution` for the same rows.
        levels: Depth of the hierarchy.
    """
    scores = []
    for level in range(levels + 1):
        span = BLOCK**level
        nodes = k.double().view(-1, span, k.shape[-1]).mean(1)
        logits = q[rows].double() @ nodes.T * k.shape[-1] ** -0.5
        scores.append(logits.repeat_interleave(span, 1).masked_fill(found > level, -torch.inf))
    totals: Tensor = torch.logsumexp(torch.stack(scores), 0)
    return totals.softmax(-1)


def dense_weights(q: Tensor, k: Tensor, rows: Tensor) -> Tensor:
    """The weight that each token receives from exact dense attention, in fp64: [R, tokens]."""
    logits: Tensor = q[rows].double() @ k.double().T * k.shape[-1] ** -0.5
    return logits.softmax(-1)


def shares(weights: Tensor, found: Tensor, levels: int) -> tuple[float, ...]:
    """The mean share of `weights` on tokens that are resolved at level 0, 1 … `levels`, each token counted once."""
    return tuple(float((weights * (found == level)).sum(-1).mean()) for level in range(levels + 1))
