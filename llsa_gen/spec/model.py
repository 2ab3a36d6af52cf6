# SPDX-License-Identifier: Apache-2.0
"""The specification: what attention is to be built, checked and in canonical form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from llsa_gen.dtypes import DType, get_dtype
from llsa_gen.errors import SpecError, did_you_mean, explain
from llsa_gen.spec import fields as rules
from llsa_gen.spec.expr import TOPK_SYMBOLS, WEIGHT_SYMBOLS, Expression, parse
from llsa_gen.spec.slug import slug_of

DEFAULT_WEIGHT = "c"
"""The true token count of a node: the paper's ``b**l`` on complete nodes."""


@dataclass(frozen=True)
class Spec:
    """What to build. Two specs that mean the same are equal: construction brings every field to canonical form.

    Attributes:
        levels: Depth of the hierarchy, or ``"auto"``: chosen for ``seq_len`` by the cost model.
        block: Branching factor and tokens per finest block.
        topk: Selected blocks: one number, one per level (level 1, the finest, first), or an expression in
            ``b, l, L, D``. With a fixed depth it is stored as a number, or a tuple where levels differ.
        head_dim: Last dimension of q and k.
        value_dim: Last dimension of v and o; ``head_dim`` when not given.
        dtype: Short name of the element type.
        enrichment: Which coarse nodes are attended besides the selected blocks.
        weight: Weight of a level-l node as an expression in ``b, l, L, c, D``; stored in canonical text.
        targets: Machines to build for; not part of the identity.
        gradient: Whether backward kernels are built too.
        seq_len: Length to choose the depth for, only with ``levels="auto"``; not part of the identity.

    Raises:
        SpecError: A field, or a combination of fields, is not allowed.
    """

    levels: int | str = 2
    block: int = 16
    topk: int | tuple[int, ...] | str = 8
    head_dim: int = 64
    value_dim: int | None = None
    dtype: str = "bf16"
    enrichment: str = "overlap"
    weight: str = DEFAULT_WEIGHT
    targets: tuple[str, ...] = ("cpu",)
    gradient: bool = True
    seq_len: int | None = None

    def __post_init__(self) -> None:
        value_dim = self.head_dim if self.value_dim is None else self.value_dim
        self._set("levels", rules.check_levels(self.levels))
        self._set("block", rules.check_block(self.block))
        self._set("head_dim", rules.check_dim(self.head_dim, "head_dim"))
        self._set("value_dim", rules.check_dim(value_dim, "value_dim"))
        self._set("dtype", get_dtype(self.dtype).name)
        self._set("enrichment", rules.check_choice(self.enrichment, "enrichment", rules.ENRICHMENTS))
        self._set("targets", rules.check_targets(self.targets))
        self._set("gradient", rules.check_gradient(self.gradient))
        self._set("seq_len", rules.check_seq_len(self.seq_len, self.levels))
        self._set("topk", self._canonical_topk())
        self._set("weight", self._canonical_weight())

    def _set(self, field: str, value: object) -> None:
        """Stores a canonical value during construction."""
        object.__setattr__(self, field, value)

    # -- derived values -------------------------------------------------------------------------

    @property
    def is_auto(self) -> bool:
        """Whether the depth is still to be chosen."""
        return self.levels == rules.AUTO

    @property
    def depth(self) -> int:
        """The number of levels.

        Raises:
            SpecError: The depth is still ``"auto"``.
        """
        if isinstance(self.levels, int):
            return self.levels
        hint = "choose a depth with spec.with_depth(levels), or let `llsa-gen plan` choose it"
        rules.fail('the depth is still "auto" here', "levels", self.levels, f"1 to {rules.MAX_LEVELS}", hint)

    @property
    def topks(self) -> tuple[int, ...]:
        """Selected blocks per level; index 0 is level 1, the finest."""
        depth = self.depth
        if isinstance(self.topk, tuple):
            return self.topk
        assert isinstance(self.topk, int), "with a fixed depth topk is stored as numbers"
        return (self.topk,) * depth

    @property
    def dim_v(self) -> int:
        """``value_dim`` as a plain int (it is always set after construction)."""
        assert self.value_dim is not None
        return self.value_dim

    @property
    def element(self) -> DType:
        """The row of the element type."""
        return get_dtype(self.dtype)

    @property
    def slug(self) -> str:
        """The readable name of what is built: folder, cache key and Python identifier."""
        return slug_of(self.identity())

    def level_weight(self, level: int, count: int) -> float:
        """The weight of a level-``level`` node that covers ``count`` tokens.

        Raises:
            SpecError: The level or the count is out of range, or the weight is not positive and finite.
        """
        depth = self.depth
        if not 1 <= level <= depth:
            rules.fail("there is no such level", "levels", level, f"1 to {depth}", "level 1 is the finest")
        if not 1 <= count <= self.block**level:
            allowed = f"1 to {self.block}**{level} = {self.block**level}"
            hint = "the last node of a level covers fewer tokens, never more"
            rules.fail(f"a level-{level} node cannot cover that many tokens", "block", count, allowed, hint)
        return self._weight_at(depth, level, count)

    def with_depth(self, levels: int) -> Spec:
        """The same spec at a fixed depth; ``seq_len`` is dropped.

        Raises:
            SpecError: The depth is not allowed, or a tuple of topk does not fit it.
        """
        return replace(self, levels=levels, seq_len=None)

    # -- plain data -----------------------------------------------------------------------------

    def to_fields(self) -> dict[str, Any]:
        """All fields as JSON-able data in canonical form; ``Spec.from_fields`` is its inverse."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        data["targets"] = list(self.targets)
        if isinstance(self.topk, tuple):
            data["topk"] = list(self.topk)
        return data

    def identity(self) -> dict[str, Any]:
        """The fields that decide what is computed: all but ``targets`` and ``seq_len``.

        Raises:
            SpecError: The depth is still ``"auto"``, so there is no identity yet.
        """
        data = self.to_fields()
        data["levels"] = self.depth
        return {name: value for name, value in data.items() if name not in ("targets", "seq_len")}

    @classmethod
    def from_fields(cls, mapping: Mapping[str, Any]) -> Spec:
        """A spec from plain data, such as a TOML table, a manifest or keyword flags.

        Raises:
            SpecError: A field is unknown or its value is not allowed.
        """
        known = [field.name for field in fields(cls)]
        for name in mapping:
            if name not in known:
                what = f"there is no spec field {name!r}"
                hint = did_you_mean(name, known) or "write one of the names above, or leave the field out"
                raise SpecError(explain(what, where="spec fields", value=name, allowed=known, hint=hint))
        return cls(**mapping)

    # -- canonical forms ------------------------------------------------------------------------

    def _canonical_topk(self) -> int | tuple[int, ...] | str:
        """Topk as a number, a tuple of differing numbers, or (depth unknown) the text of an expression."""
        if isinstance(self.topk, str):
            return self._evaluated_topk(parse(self.topk, TOPK_SYMBOLS, field="topk"))
        if isinstance(self.topk, (list, tuple)):
            return self._listed_topk(self.topk)
        return rules.check_topk(self.topk)

    def _listed_topk(self, given: list[Any] | tuple[Any, ...]) -> int | tuple[int, ...]:
        if not isinstance(self.levels, int):
            hint = 'give one number or an expression such as "max(4, 16 // 2**l)"'
            what = 'levels="auto" cannot be combined with one topk per level'
            rules.fail(what, "topk", given, f"{rules.TOPK_RANGE}, or an expression", hint)
        if len(given) != self.levels:
            allowed = f"{self.levels} numbers, level 1 (the finest) first"
            hint = "give as many numbers as there are levels, or one number for all of them"
            rules.fail(f"there are {len(given)} topk for {self.levels} levels", "topk", given, allowed, hint)
        return _collapse([rules.check_topk(topk, f"topk, level {level}") for level, topk in enumerate(given, 1)])

    def _evaluated_topk(self, expression: Expression) -> int | tuple[int, ...] | str:
        if not isinstance(self.levels, int):
            return expression.text
        found = []
        for level in range(1, self.levels + 1):
            topk = expression.evaluate(b=self.block, l=level, L=self.levels, D=self.head_dim)
            if isinstance(topk, float):
                hint = "use // or floor(...) to get whole numbers"
                where = f"topk = {expression.text!r} at level {level}"
                rules.fail("the expression does not give a whole number", where, topk, rules.TOPK_RANGE, hint)
            found.append(rules.check_topk(topk, f"topk = {expression.text!r} at level {level}"))
        return _collapse(found)

    def _canonical_weight(self) -> str:
        """The weight in canonical text, once it is known to be positive on every level."""
        if isinstance(self.weight, str) and self.weight.strip() == DEFAULT_WEIGHT:
            return DEFAULT_WEIGHT
        expression = parse(self.weight, WEIGHT_SYMBOLS, field="weight")
        if isinstance(self.levels, int):
            for level in range(1, self.levels + 1):
                for count in _sample_counts(self.block**level):
                    self._weight_at(self.levels, level, count, expression)
        return expression.canonical

    def _weight_at(self, depth: int, level: int, count: int, expression: Expression | None = None) -> float:
        if expression is None:
            if self.weight == DEFAULT_WEIGHT:
                return float(count)
            expression = parse(self.weight, WEIGHT_SYMBOLS, field="weight")
        weight = float(expression.evaluate(b=self.block, l=level, L=depth, c=count, D=self.head_dim))
        if not (weight > 0 and math.isfinite(weight)):
            where = f"weight = {expression.text!r} at l={level}, c={count}"
            hint = 'the default "c" is the true token count, "1" weighs all nodes alike'
            rules.fail("a level weight must be positive and finite", where, weight, "numbers > 0", hint)
        return weight


def _collapse(topks: list[int]) -> int | tuple[int, ...]:
    """One number where all levels agree."""
    return topks[0] if len(set(topks)) == 1 else tuple(topks)


def _sample_counts(largest: int) -> list[int]:
    """Token counts from 1 to ``largest`` to try a weight at: all of a small node, else powers of two and neighbours."""
    if largest <= 16:
        return list(range(1, largest + 1))
    near = [count for e in range(largest.bit_length()) for count in (2**e - 1, 2**e, 2**e + 1)]
    return sorted({count for count in (*near, largest - 1, largest) if 1 <= count <= largest})
