# SPDX-License-Identifier: Apache-2.0
"""One generated op by its name: found in the catalogue, in `generated/` or in a package of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from llsa_gen import catalog, manifest, paths
from llsa_gen.codegen import render
from llsa_gen.errors import StaleError, explain
from llsa_gen.ops import registry
from llsa_gen.ops.checks import list_widths, resolve_scale
from llsa_gen.ops.front import call_attention, call_select
from llsa_gen.spec import Spec


@dataclass(frozen=True)
class Op:
    """The op of one spec; making one registers it with torch. Copies and pickles hold no more than the spec.

    Attributes:
        spec: What it computes.
        name: The slug: `torch.ops.llsa_gen.<name>` is its attention op.
        dtype: What its tensors hold.
    """

    spec: Spec
    name: str = field(init=False, repr=False)
    dtype: torch.dtype = field(init=False, repr=False)
    _ops: dict[str, registry.Registered] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = registry.register_spec(self.spec)
        ops = {kind: registry.registered(name + kind) for kind in ("", "_select", "_attend")}
        for field_name, value in {"name": name, "dtype": self.spec.element.torch, "_ops": ops}.items():
            object.__setattr__(self, field_name, value)

    def __reduce__(self) -> tuple[type[Op], tuple[Spec]]:
        return Op, (self.spec,)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        layout: str = "BHND",
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """LLSA of q [B,H,N,D], k and v [B,H,N,Dv]; see `llsa_gen.llsa_attention`."""
        scale = resolve_scale(scale, self.spec.head_dim)
        return call_attention(self._ops[""], (q, k, v), (), scale, layout, return_lse, dtype=self.dtype)

    def select(self, q: Tensor, k: Tensor, *, layout: str = "BHND") -> tuple[Tensor, ...]:
        """The lists of every level; see `llsa_gen.llsa_select`."""
        return call_select(self._ops["_select"], (q, k), (), layout, self.dtype)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        idx: Sequence[Tensor],
        *,
        scale: float | None = None,
        layout: str = "BHND",
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention with given lists; see `llsa_gen.llsa_attend`."""
        list_widths(idx)
        qkv, lists, scale = (q, k, v), list(idx), resolve_scale(scale, self.spec.head_dim)
        return call_attention(self._ops["_attend"], qkv, (), scale, layout, return_lse, lists=lists, dtype=self.dtype)


def load(slug: str) -> Op:
    """One op by its name; registers `torch.ops.llsa_gen.<slug>`.

    Args:
        slug: A slug, such as ``llsa_l2_b16_k8_d64_bf16``, or a name of the catalogue.

    Raises:
        SpecError: No spec has this name; near names are listed.
        StaleError: The generated package of that name is not what would be generated now.
    """
    spec = catalog.find_spec(slug, search=(paths.catalogue_dir(),))
    folder = paths.catalogue_dir() / spec.slug
    return load_package(folder) if folder.is_dir() else Op(spec)


def load_package(directory: Path) -> Op:
    """The op of a generated package; what `import generated.<slug>` runs.

    Raises:
        StaleError: Its manifest is broken, or a file is not what would be generated now.
    """
    spec = Spec.from_fields(manifest.read(directory).spec)
    for name, text in render(spec).files.items():
        path = directory / name
        if not path.is_file() or path.read_bytes() != text.encode("utf-8"):
            what = "a generated file is not what this version of llsa-gen generates"
            hint = f"generate it again: llsa-gen build --spec {spec.slug} --out {directory.parent}"
            value = "other bytes" if path.is_file() else "no such file"
            allowed = "the bytes of this spec, as this version renders it"
            raise StaleError(explain(what, where=str(path), value=value, allowed=allowed, hint=hint))
    return Op(spec)
