# SPDX-License-Identifier: Apache-2.0
"""How the tests of this folder call the public functions and judge what comes back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from llsa_gen import reference
from llsa_gen.evidence.calls import attend as run_attend
from llsa_gen.evidence.calls import attention as run_attention
from llsa_gen.evidence.calls import select as run_select
from llsa_gen.ir import sizes
from llsa_gen.ops.calls import PASSES
from llsa_gen.reference import assert_close_by_rule, assert_same_selection, native, rounding_magnitude
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv

__all__ = [
    "CPU",
    "FORMS",
    "assert_identical",
    "assert_right",
    "assert_selected",
    "home",
    "inverted_in",
    "placed",
    "run_attend",
    "run_attention",
    "run_select",
]

CPU = torch.device("cpu")
FORMS = ("one launch", "three launches")
"""How short lists can be inverted; long ones take three launches."""


@contextmanager
def inverted_in(form: str) -> Iterator[None]:
    """Inverts short lists in one launch as always, or in three like long ones."""
    with pytest.MonkeyPatch.context() as patch:
        if form != FORMS[0]:
            patch.setattr(sizes, "SHORT_ENTRIES", -1)
        _forget_forms()
        yield
    _forget_forms()


def _forget_forms() -> None:
    """Lets the next call choose anew."""
    sizes.short_lists.cache_clear()
    PASSES.clear()


def placed(qkv: Sequence[Tensor], device: torch.device) -> Qkv:
    """The tensors on a device."""
    q, k, v = (x.to(device) for x in qkv)
    return q, k, v


def home(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors where the reference computes: the fp64 of a CPU is the same everywhere."""
    return tuple(x.cpu() for x in tensors)


def assert_right(
    spec: Spec,
    qkv: Sequence[Tensor],
    idx: Sequence[Tensor],
    result: tuple[Tensor, Tensor],
    *,
    scale: float | None = None,
    inf_or_nan: bool = False,
) -> None:
    """Judges `(o, lse)` by the error rule, given the lists that were attended.

    With `inf_or_nan`, o need only be finite where the exact one is: a node that a query leaves out, or whose weight is
    rounded to zero, makes NaN of an infinite value (0 * inf), which is in the sum already through its descendants.
    """
    q, k, v = home(qkv)
    lists, (o, lse) = home(idx), home(result)
    assert o.dtype == q.dtype and lse.dtype == torch.float32
    exact, exact_lse = reference.attend(q, k, v, lists, spec, scale=scale)
    plain, plain_lse = native(q, k, v, lists, spec, scale=scale)
    if inf_or_nan:
        o, exact = (x.masked_fill(x.isinf(), torch.nan) for x in (o, exact))
    size, size_lse = rounding_magnitude(q, k, v, lists, spec, scale=scale)
    assert_close_by_rule(o, exact, plain, magnitude=size, label="o")
    assert_close_by_rule(lse, exact_lse, plain_lse, magnitude=size_lse, label="lse")


def assert_selected(spec: Spec, q: Tensor, k: Tensor, idx: Sequence[Tensor]) -> None:
    """Judges lists by the scores that they reach and the parents that they keep to."""
    assert_same_selection(home(idx), q.cpu(), k.cpu(), spec)


def assert_identical(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Asserts that two results are equal bit by bit; NaN equals NaN."""
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert bool(((one == other) | (one.isnan() & other.isnan())).all())
