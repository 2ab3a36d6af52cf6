# SPDX-License-Identifier: Apache-2.0
"""Growth: how the cost grows with the length, derived by limits.

A fixed depth keeps every node of level L as a key of every query, ``n_L = N / b**L`` of them: quadratic in N, divided
by ``b**L``. A depth that grows with N, ``L = log_b(N / (K b))``, keeps ``n_L = K b`` fixed: then every level adds
``K b`` keys and the cost is of order N log N. That L is not a whole number: it is the continuous envelope of the
depths that ``levels="auto"`` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llsa_gen.cost.symbols import SmoothSizes, positive
from llsa_gen.stages.attend import key_flops
from llsa_gen.stages.select import score_flops

if TYPE_CHECKING:
    from llsa_gen.spec import Spec


@dataclass(frozen=True, slots=True)
class Growth:
    """Selection and attention of one batch and head for long sequences; all values are sympy expressions.

    Attributes:
        depth_envelope: L as a function of N, from ``n_L = K b``.
        keys_envelope: Keys per query at that depth.
        cost_envelope: Flops at that depth.
        per_n_log_n: Limit of the flops over ``N log N`` (natural logarithm) at that depth; 0 when the growth is linear.
        per_n: Limit of the flops over ``N`` at that depth; infinite unless the growth is linear.
        fixed_depth: The depth of the spec.
        fixed_cost: Flops at the depth of the spec, without ragged ends.
        per_n_squared: Limit of those over ``N**2``.
        dense_per_n_squared: The same limit for dense attention.
        known: The symbols that the spec fixes, with their values; the envelope takes the largest K of all levels.
    """

    depth_envelope: Any
    keys_envelope: Any
    cost_envelope: Any
    per_n_log_n: Any
    per_n: Any
    fixed_depth: int
    fixed_cost: Any
    per_n_squared: Any
    dense_per_n_squared: Any
    known: tuple[tuple[Any, int], ...]

    @property
    def order(self) -> str:
        """The growth at the depth of ``levels="auto"``: ``N log N``, or ``N`` without coarse keys."""
        return "N" if self.per_n_log_n == 0 else "N log N"

    @property
    def fixed_order(self) -> str:
        """The growth at the fixed depth."""
        return f"N**2 / b**{self.fixed_depth}" if self.order != "N" else f"N**2 / b**{2 * self.fixed_depth}"

    def value(self, expression: Any) -> float:
        """The number behind one of the limits for this spec."""
        return float(expression.subs(dict(self.known)))


def growth(spec: Spec) -> Growth:
    """Derives the growth of a spec of known depth.

    Raises:
        SpecError: The depth is still ``"auto"``.
    """
    import sympy

    length = positive("N")
    depth, keys, total = _envelope(spec)
    fixed, sizes = _fixed(spec)
    dense = key_flops(length, length, sizes.symbol("D"), sizes.symbol("Dv"))
    return Growth(
        depth_envelope=depth,
        keys_envelope=sympy.expand(keys),
        cost_envelope=total,
        per_n_log_n=_limit(total / (length * sympy.log(length))),
        per_n=_limit(total / length),
        fixed_depth=spec.depth,
        fixed_cost=fixed,
        per_n_squared=_limit(fixed / length**2),
        dense_per_n_squared=dense / length**2,
        known=tuple({**sizes.known, positive("K"): max(spec.topks)}.items()),
    )


def _envelope(spec: Spec) -> tuple[Any, Any, Any]:
    """Depth, keys per query and flops when ``n_L = K b``; every full list has K entries and K b candidates below."""
    import sympy

    length, block, topk, head_dim = (positive(name) for name in ("N", "b", "K", "D"))
    value_dim = head_dim if spec.dim_v == spec.head_dim else positive("Dv")
    # The sum over levels below the top is taken for a whole number of levels and continued to real ones.
    levels, level = positive("L"), positive("l")
    candidates = topk * block
    depth = sympy.log(length / candidates) / sympy.log(block)
    below = sympy.summation(1, (level, 1, levels - 1))
    keys = candidates + (below + 1) * candidates if spec.enrichment != "none" else candidates
    inner = sympy.summation(score_flops(length / block**level, candidates, head_dim), (level, 1, levels - 1))
    inner = inner.replace(sympy.Piecewise, lambda *cases: cases[-1][0])  # the other case is b = 1
    selection = inner + score_flops(candidates, candidates, head_dim)
    total = selection + key_flops(length, keys, head_dim, value_dim)
    return depth, keys.subs(levels, depth), total.subs(levels, depth)


def _fixed(spec: Spec) -> tuple[Any, SmoothSizes]:
    """Flops of selection and attention at the depth of the spec, from the formulas of the stages."""
    import sympy

    from llsa_gen.lowering.build import build

    sizes = SmoothSizes(spec)
    stages = [stage for stage in build(spec).stages if stage.kind != "coarsen"]
    one_head = {positive("B"): 1, positive("H"): 1}
    return sympy.expand(sum(stage.flops(sizes) for stage in stages).subs(one_head)), sizes


def _limit(ratio: Any) -> Any:
    """The limit for long sequences.

    Lengths and bases are continued to real numbers above 1, or sympy cannot tell the signs of their logarithms.
    """
    import sympy

    length, block = positive("N"), positive("b")
    base, real = sympy.Symbol("beta", positive=True), sympy.Symbol("x", positive=True)
    smooth = ratio.subs({length: real, block: base + 1})
    found = sympy.limit(sympy.expand(sympy.expand_log(smooth, force=True)), real, sympy.oo)
    return sympy.simplify(found.subs(base, block - 1))
