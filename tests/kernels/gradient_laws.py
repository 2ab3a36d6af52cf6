# SPDX-License-Identifier: Apache-2.0
"""Laws of gradient kernels, as `laws.py` has them for those of the forward pass, each with fixed witnesses.

What a forward pass leaves behind is computed by the reference, so that a law says something of gradients alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llsa_gen.ir import names
from llsa_gen.ir.sizes import part_entries
from llsa_gen.ops import engine
from llsa_gen.spec import Spec
from tests.kernels.calls import FORMS, assert_identical, inverted_in
from tests.kernels.laws import BASE, JOINED, Law
from tests.kernels.layouts import FILLS, far_apart, fenced, mixed
from tools.campaign.cases import Case
from tools.campaign.checks import Lists, Tensors, Truth, judge, lists_are_transposed, truth

LONG = 1603
"""Tokens for which a node that three rows of four select has a list in parts, on both levels."""

CLUSTERED = Case(BASE, 1, 2, 61, "clustered", "selected", 0, 0.25)


def of_kernels(given: Tensors, idx: Lists, device: torch.device, spec: Spec = BASE) -> tuple[Tensor, ...]:
    """The gradients of q, k and v by the kernels."""
    there = {name: x.to(device) for name, x in given.items()}
    lists = [entries.to(device) for entries in idx]
    found = engine.gradients(spec, there, CLUSTERED.scale, names.GRADIENTS, lists)
    return tuple(found[name] for name in names.GRADIENTS)


def assert_gradients(case: Case, device: torch.device) -> Truth:
    """The error rule for a case."""
    found = truth(case)
    judge(case, found, [x.cpu() for x in of_kernels(found.given, found.idx, device, case.spec)])
    return found


def gradients_given_lists(folder: Path, device: torch.device) -> None:
    """Gradients equal those of the reference for the same lists, for each ragged end, also below a block."""
    for length in (1, 3, 16, 37, 61, 80):
        assert_gradients(replace(CLUSTERED, length=length, seed=length), device)


def joined_gradients_given_lists(folder: Path, device: torch.device) -> None:
    """As `gradients_given_lists`, where kernels for CPUs have the gradient of q at once."""
    for length in (1, 17, 300, 850):
        assert_gradients(replace(CLUSTERED, spec=JOINED, length=length, seed=length), device)


def gradients_of_a_block_that_most_select(folder: Path, device: torch.device) -> None:
    """A block gets the gradients of all queries that select it, also where they are so many that they come in parts."""
    for form, lists in zip(FORMS, ("selected", "damaged"), strict=True):
        with inverted_in(form):
            found = assert_gradients(replace(CLUSTERED, heads=1, length=LONG, inputs="skewed", lists=lists), device)
        for level, entries in enumerate(found.idx, start=1):
            assert int((entries + 1).flatten().bincount()[1:].max()) > part_entries(BASE, level)


def gradients_by_their_own_strides(folder: Path, device: torch.device) -> None:
    """How tensors lie in memory changes no bit of the gradients."""
    found = truth(replace(CLUSTERED, batch=2))
    given = dict(found.given)
    moved = mixed((given["q"], given["k"], given["v"]))
    _, o, o_grad = mixed((given["o"], given["o"], given["o_grad"]))
    there = {**given, **dict(zip("qkv", moved, strict=True)), "o": o, "o_grad": o_grad}
    assert_identical(of_kernels(there, found.idx, device), of_kernels(given, found.idx, device))


def lists_are_inverted_in_order(folder: Path, device: torch.device) -> None:
    """Who selected each node is what scipy says, in ascending order; missing entries select nothing."""
    for length, inputs in ((1, "random"), (61, "clustered"), (LONG, "skewed")):
        for lists in ("selected", "damaged"):
            lists_are_transposed(replace(CLUSTERED, length=length, inputs=inputs, lists=lists))


def gradients_of_heads_are_apart(folder: Path, device: torch.device) -> None:
    """A NaN in one head of q, v or the gradient of o is seen in that head alone."""
    found = truth(replace(CLUSTERED, batch=2))
    clean = of_kernels(found.given, found.idx, device)
    for name in ("q", "v", "o_grad"):
        dirty = found.given[name].clone()
        dirty[0, 0, 30, 5] = torch.nan
        spoilt = of_kernels({**found.given, name: dirty}, found.idx, device)
        assert any(bool(x[0, 0].isnan().any()) for x in spoilt)
        assert_identical([x.flatten(0, 1)[1:] for x in spoilt], [x.flatten(0, 1)[1:] for x in clean])


def queries_without_keys_give_nothing(folder: Path, device: torch.device) -> None:
    """A query whose weights sum to zero gets no gradient and gives none, whatever its gradient of o."""
    found = truth(CLUSTERED)
    given = {name: x.clone() for name, x in found.given.items()}
    for name in ("o_grad", "lse_grad"):
        given[name][:, :, 20] = 0.0
    expected = of_kernels(given, found.idx, device)
    given["lse"][:, :, 20] = -torch.inf
    given["lse_grad"][:, :, 20] = 7.0
    found_q, *others = of_kernels(given, found.idx, device)
    assert not bool(found_q[:, :, 20].any())
    silent = torch.arange(CLUSTERED.length) != 20
    assert_identical([found_q[:, :, silent]], [expected[0][:, :, silent]])
    assert all(bool(x.isfinite().all()) for x in others)


def gradients_read_nothing_behind_the_end(folder: Path, device: torch.device) -> None:
    """Rows behind the last token change nothing, be they NaN or numbers."""
    for length in (1, 6, 37):
        found = truth(replace(CLUSTERED, length=length))
        one, other = (
            {**found.given, **{name: fenced(found.given[name], 64, fill) for name in ("q", "k", "v", "o", "o_grad")}}
            for fill in FILLS
        )
        assert_identical(of_kernels(one, found.idx, device), of_kernels(other, found.idx, device))


def gradient_offsets_have_64_bits(folder: Path, device: torch.device) -> None:
    """Rows that lie 2**31 elements apart are read where they are."""
    found = truth(replace(CLUSTERED, heads=1, length=9))
    far = {**found.given, "k": far_apart(found.given["k"].to(device), folder)}
    assert_identical(of_kernels(far, found.idx, device), of_kernels(found.given, found.idx, device))


GRADIENT_LAWS: Mapping[str, Law] = MappingProxyType(
    {
        law.__name__: law
        for law in (
            gradients_given_lists,
            joined_gradients_given_lists,
            gradients_of_a_block_that_most_select,
            gradients_by_their_own_strides,
            lists_are_inverted_in_order,
            gradients_of_heads_are_apart,
            queries_without_keys_give_nothing,
            gradients_read_nothing_behind_the_end,
            gradient_offsets_have_64_bits,
        )
    }
)
"""The laws by name."""
