# SPDX-License-Identifier: Apache-2.0
"""The torch ops: `torch.ops.llsa_gen.attention`, `.select`, `.attend` and `.backward`, and the same for every spec.

Their schemas hold the spec as plain values, so that torch.compile sees one node, shapes stay symbolic and nothing is
rebuilt for another length. The ops of one spec are `<slug>`, `<slug>_select`, `<slug>_attend` and `<slug>_backward`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from llsa_gen.ops.autograd import Differentiation, refuse_second_derivatives
from llsa_gen.ops.calls import FIELDS, Calls
from llsa_gen.spec import Spec

NAMESPACE = "llsa_gen"
_LIBRARY: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_DEFINING = threading.Lock()

_GIVEN = "Tensor o_grad, Tensor? lse_grad, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse"
_OPTIONS = "float? scale=None, bool tokens_first=False"

Implementation = Callable[..., Any]


class Registered(NamedTuple):
    """An op that is defined.

    Attributes:
        overload: What torch calls it by.
        real: What it does with tensors on a CPU or on a GPU.
    """

    overload: Any
    real: Implementation


_REGISTERED: dict[str, Registered] = {}


def register(
    name: str,
    schema: str,
    real: Implementation,
    fake: Implementation,
    backward: Implementation | None = None,
    setup: Implementation | None = None,
) -> None:
    """Defines one op for CPU and CUDA tensors.

    Args:
        name: Its name.
        schema: What it takes and returns.
        real: What it does.
        fake: What it does with tensors that have no memory.
        backward: Its backward formula, if it has one.
        setup: What keeps things for that.
    """
    _LIBRARY.define(f"{name}{schema}")
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, real, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=_LIBRARY)
    _REGISTERED[name] = Registered(getattr(torch.ops.llsa_gen, name).default, real)


def registered(name: str) -> Registered:
    """An op that is defined, by its name."""
    return _REGISTERED[name]


def register_spec(spec: Spec) -> str:
    """Defines the ops of one spec, once, and returns the name of its attention op: the slug."""
    slug = spec.slug
    with _DEFINING:
        if slug not in _REGISTERED:
            _define(Calls(spec), {kind: f"{slug}_{kind}" for kind in ("select", "attend", "backward")}, slug)
    return slug


def _define(calls: Calls, names: dict[str, str], attention: str) -> None:
    """Defines the ops of a spec, or the general ones; attention comes last, so that where it is all of them are."""
    fields = f", {FIELDS}" if calls.spec is None else ""
    rest = f"{fields}, {_OPTIONS}) -> (Tensor, Tensor"
    schema = f"({_GIVEN}, Tensor[] idx, bool[] needed{rest}, Tensor)"
    register(names["backward"], schema, calls.backward, calls.backward_fake, refuse_second_derivatives)
    register(names["select"], f"(Tensor q, Tensor k{fields}) -> Tensor[]", calls.select, calls.select_fake)
    schema, formula = f"(Tensor q, Tensor k, Tensor v, Tensor[] idx{rest})", Differentiation(names["backward"], True)
    register(names["attend"], schema, calls.attend, calls.attend_fake, formula.backward, formula.setup)
    schema, formula = f"(Tensor q, Tensor k, Tensor v{rest})", Differentiation(names["backward"], False)
    register(attention, schema, calls.attention, calls.attention_fake, formula.backward, formula.setup)


_define(Calls(), {kind: kind for kind in ("select", "attend", "backward")}, "attention")
