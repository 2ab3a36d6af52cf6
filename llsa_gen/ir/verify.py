# SPDX-License-Identifier: Apache-2.0
"""Verify: the rules of a plan, each with a name; checked before and after every lowering pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, cast

from llsa_gen.errors import InternalError, explain
from llsa_gen.ir import names, tensors
from llsa_gen.ir.types import ITEMSIZE, Piece, Plan, Stage, TensorType

if TYPE_CHECKING:
    from llsa_gen.stages import Attend, Coarsen, Segment, Select

Problems = Iterator[str]
"""What is wrong, one sentence each; nothing when the rule holds."""


def verify(plan: Plan) -> None:
    """Checks every rule of ``RULES`` in order.

    Raises:
        InternalError: A rule does not hold; the message starts with its name.
    """
    for name, rule in RULES.items():
        for problem in rule(plan):
            hint = "this is a fault of llsa-gen: please report it with the spec below"
            raise InternalError(explain(f"{name}: {problem}", where="plan", value=plan.spec, hint=hint))


# -- names ----------------------------------------------------------------------------------------


def _unique_names(plan: Plan) -> Problems:
    for what, used in (("tensor", plan.tensors), ("stage", plan.stages)):
        counts = Counter(item.name for item in cast("Iterable[TensorType | Stage]", used))
        yield from (f"there are {count} {what}s named {name!r}" for name, count in counts.items() if count > 1)


def _known_tensors(plan: Plan) -> Problems:
    known = {tensor.name for tensor in plan.tensors}
    for stage in plan.stages:
        used = (*stage.inputs, *stage.outputs)
        yield from (f"{stage.name} uses the unknown tensor {name!r}" for name in used if name not in known)


def _roles(plan: Plan) -> Problems:
    for role, listed in (("input", plan.inputs), ("output", plan.outputs)):
        found = tuple(tensor.name for tensor in plan.tensors if tensor.role == role)
        if found != listed:
            yield f"the {role}s are listed as {listed}, the tensors of that role are {found}"


# -- tensors --------------------------------------------------------------------------------------


def _levels_in_range(plan: Plan) -> Problems:
    depth = plan.spec.depth
    for tensor in plan.tensors:
        levels = tensor.levels
        rising = list(range(levels[0], levels[-1] + 1)) if levels else None
        if list(levels) != rising or not 0 <= levels[0] <= levels[-1] <= depth:
            yield f"{tensor.name} holds the levels {levels}, not a rising run within 0..{depth}"


def _axes(plan: Plan) -> Problems:
    for tensor in plan.tensors:
        extents = tuple(axis.extent for axis in tensor.axes)
        if extents != _extents(tensor):
            yield f"{tensor.name} has the extents {extents} where {_extents(tensor)} is right"


def _dtypes(plan: Plan) -> Problems:
    for tensor in plan.tensors:
        right = _dtype(tensor, plan)
        if tensor.dtype not in ITEMSIZE or tensor.dtype != right:
            yield f"{tensor.name} is {tensor.dtype} where {right} is right"


# -- flow -----------------------------------------------------------------------------------------


def _declared_reads(plan: Plan) -> Problems:
    for stage in plan.stages:
        yield from _undeclared(plan, stage, stage.reads(plan), stage.inputs, "reads")


def _declared_writes(plan: Plan) -> Problems:
    for stage in plan.stages:
        yield from _undeclared(plan, stage, stage.writes(plan), stage.outputs, "writes")


def _single_producer(plan: Plan) -> Problems:
    given = {piece for name in plan.inputs for piece in plan.tensor(name).pieces()}
    counts = Counter(piece for stage in plan.stages for piece in stage.writes(plan))
    for piece, count in counts.items():
        if count + (piece in given) > 1:
            yield f"level {piece.level} of {piece.tensor} is produced more than once"


def _produced_before_use(plan: Plan) -> Problems:
    ready = {piece for name in plan.inputs for piece in plan.tensor(name).pieces()}
    for stage in plan.stages:
        missing = (piece for piece in stage.reads(plan) if piece not in ready)
        yield from (f"{stage.name} reads level {level} of {name} too early" for name, level in missing)
        ready.update(stage.writes(plan))


def _outputs_produced(plan: Plan) -> Problems:
    written = {piece for stage in plan.stages for piece in stage.writes(plan)}
    for tensor in plan.tensors:
        pieces = () if tensor.role == "input" else tensor.pieces()
        yield from (f"nobody writes level {level} of {name}" for name, level in pieces if (name, level) not in written)


def _no_unused_temporaries(plan: Plan) -> Problems:
    read = {piece for stage in plan.stages for piece in stage.reads(plan)}
    for tensor in plan.tensors:
        pieces = tensor.pieces() if tensor.role == "temporary" else ()
        yield from (f"nobody reads level {level} of {name}" for name, level in pieces if (name, level) not in read)


# -- stages ---------------------------------------------------------------------------------------


def _coarsen_levels(plan: Plan) -> Problems:
    for stage in cast("tuple[Coarsen, ...]", plan.of_kind("coarsen")):
        levels = stage.levels
        if not levels or list(levels) != list(range(levels[0], levels[0] + len(levels))) or levels[0] < 1:
            yield f"{stage.name} writes the levels {levels}, not a rising run from 1 or higher"
        elif stage.source_level and stage.source_level != levels[0] - 1:
            yield f"{stage.name} starts at level {levels[0]} but reads sums of level {stage.source_level}"


def _select_order(plan: Plan) -> Problems:
    depth = plan.spec.depth
    selects = cast("tuple[Select, ...]", plan.of_kind("select"))
    found = [(stage.level, stage.candidates) for stage in selects]
    right = [(level, "all" if level == depth else "children") for level in range(depth, 0, -1)]
    if found != right:
        yield f"the selections are {found} where {right} is right"


def _carry_chain(plan: Plan) -> Problems:
    attends = cast("tuple[Attend, ...]", plan.of_kind("attend"))
    for place, stage in enumerate(attends):
        if stage.carry != (place > 0):
            yield f"{stage.name} is number {place} of the attention stages and has carry={stage.carry}"
        if stage.final != (stage is attends[-1]):
            yield f"{stage.name} is number {place} of {len(attends)} attention stages and has final={stage.final}"


def _segments_cover(plan: Plan) -> Problems:
    attends = cast("tuple[Attend, ...]", plan.of_kind("attend"))
    found = [segment for stage in attends for segment in stage.segments]
    right = _segments(plan)
    if Counter(found) != Counter(right):
        yield f"the segments are {found} where {right} is right"


RULES: dict[str, Callable[[Plan], Problems]] = {
    "unique_names": _unique_names,
    "known_tensors": _known_tensors,
    "roles": _roles,
    "levels_in_range": _levels_in_range,
    "axes": _axes,
    "dtypes": _dtypes,
    "coarsen_levels": _coarsen_levels,
    "select_order": _select_order,
    "segments_cover": _segments_cover,
    "carry_chain": _carry_chain,
    "declared_reads": _declared_reads,
    "declared_writes": _declared_writes,
    "single_producer": _single_producer,
    "produced_before_use": _produced_before_use,
    "outputs_produced": _outputs_produced,
    "no_unused_temporaries": _no_unused_temporaries,
}
"""Every rule by name; later rules rely on the earlier ones."""


# -- what is right --------------------------------------------------------------------------------


def _extents(tensor: TensorType) -> tuple[str, ...]:
    """The extents that a tensor of this name and these levels has."""
    name, levels = tensor.name, tensor.levels
    if name in ("lse", "lse_carry"):
        return ("B", "H", "Nq")
    if name in ("o", "o_carry"):
        return ("B", "H", "Nq", "Dv")
    if name.startswith("idx"):
        return ("B", "H", tensors.row_extent(levels, "q"), f"K{levels[0]}")
    side = names.side(name[0])
    return ("B", "H" if side == "q" else "Hk", tensors.row_extent(levels, side), names.width(name[0]))


def _dtype(tensor: TensorType, plan: Plan) -> str:
    """Lists are int32; sums, carries and log-sum-exps fp32; everything else has the dtype of the spec."""
    if tensor.name.startswith("idx"):
        return "int32"
    is_wide = "_sums_" in tensor.name or tensor.name in (*names.CARRY, "lse")
    return "fp32" if is_wide else plan.spec.dtype


def _segments(plan: Plan) -> list[Segment]:
    """The keys that every query attends, by the definition of the enrichment."""
    depth = plan.spec.depth
    coarse = (
        []
        if plan.spec.enrichment == "none"
        else [(depth, "all"), *((level, "lists") for level in range(depth - 1, 0, -1))]
    )
    return cast("list[Segment]", [*coarse, (0, "lists")])


def _undeclared(plan: Plan, stage: Stage, pieces: Iterable[Piece], declared: tuple[str, ...], verb: str) -> Problems:
    """Pieces outside the declared tensors or their levels, and declared tensors without a piece."""
    used = set()
    for name, level in pieces:
        used.add(name)
        if name not in declared:
            yield f"{stage.name} {verb} {name} without declaring it"
        elif level not in plan.tensor(name).levels:
            yield f"{stage.name} {verb} level {level} of {name}, which holds {plan.tensor(name).levels}"
    yield from (f"{stage.name} declares {name} but never {verb} it" for name in declared if name not in used)
