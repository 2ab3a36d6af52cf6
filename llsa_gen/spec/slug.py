# SPDX-License-Identifier: Apache-2.0
"""Slugs: one readable name per spec, and the way back from a name to its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llsa_gen.digest import short_digest
from llsa_gen.errors import SpecError, explain

PREFIX = "llsa"

_DEFAULTS = {"enrichment": "overlap", "weight": "c", "gradient": True}
"""Fields that a slug does not spell out; away from these values a digest stands for them."""

_NUMBER = r"[1-9][0-9]{0,3}"
_SLUG = re.compile(
    rf"{PREFIX}_l(?P<levels>{_NUMBER})_b(?P<block>{_NUMBER})_k(?P<topk>{_NUMBER}(?:x{_NUMBER})*)"
    rf"_d(?P<head_dim>{_NUMBER})(?:v(?P<value_dim>{_NUMBER}))?_(?P<dtype>[a-z0-9]+)(?:_x(?P<digest>[0-9a-f]{{8}}))?"
)


def slug_of(identity: Mapping[str, Any]) -> str:
    """The slug of the identity fields of a spec, for example ``llsa_l2_b16_k8_d64_bf16``.

    Args:
        identity: ``Spec.identity()``: canonical fields, so equal meanings give equal names.
    """
    topk = identity["topk"]
    kept = "x".join(map(str, topk)) if isinstance(topk, list) else str(topk)
    dims = f"d{identity['head_dim']}"
    if identity["value_dim"] != identity["head_dim"]:
        dims += f"v{identity['value_dim']}"
    readable = f"{PREFIX}_l{identity['levels']}_b{identity['block']}_k{kept}_{dims}_{identity['dtype']}"
    if all(identity[name] == value for name, value in _DEFAULTS.items()):
        return readable
    return f"{readable}_x{short_digest(dict(identity))}"


def split_slug(slug: object) -> tuple[dict[str, Any], str | None]:
    """The fields that a slug spells out, and its digest or None.

    The fields are unchecked; ``Spec.from_fields`` checks them.

    Raises:
        SpecError: The text does not have the form of a slug.
    """
    match = _SLUG.fullmatch(slug) if isinstance(slug, str) else None
    if match is None:
        form = f"{PREFIX}_l<levels>_b<block>_k<topk>_d<head_dim>_<dtype>, for example {PREFIX}_l2_b16_k8_d64_bf16"
        raise SpecError(explain("this is not the name of a spec", where="slug", value=slug, allowed=form))
    topks = [int(part) for part in match["topk"].split("x")]
    found: dict[str, Any] = {name: int(match[name]) for name in ("levels", "block", "head_dim")}
    found["topk"] = topks[0] if len(topks) == 1 else topks
    found["value_dim"] = int(match["value_dim"] or match["head_dim"])
    found["dtype"] = match["dtype"]
    return found, match["digest"]
