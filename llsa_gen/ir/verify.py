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
    from llsa_gen.stages import AttendGradKV, Coarsen, InvertIndex, MergeGradKV, Segment, SegmentStage, Select

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
    counts = Counter(piece for stage in plan.stages for piece in set(stage.writes(plan)) - set(stage.reads(plan)))
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
    attends = _walks(plan)
    for place, stage in enumerate(attends):
        if stage.carry != (place > 0):
            yield f"{stage.name} is number {place} of the attention stages and has carry={stage.carry}"
        if stage.final != (stage is attends[-1]):
            yield f"{stage.name} is number {place} of {len(attends)} attention stages and has final={stage.final}"


def _joined_walk(plan: Plan) -> Problems:
    if plan.joined and len(_walks(plan)) != 1:
        yield f"a joined plan has {len(_walks(plan))} attention stages"


def _segments_cover(plan: Plan) -> Problems:
    found = [segment for stage in _walks(plan) for segment in stage.segments]
    right = _segments(plan)
    if Counter(found) != Counter(right):
        yield f"the segments are {found} where {right} is right"


def _inversions(plan: Plan) -> Problems:
    stages = cast("tuple[InvertIndex, ...]", plan.of_kind("invert_index"))
    lists = {level + 1 for level, keys in _segments(plan) if keys == "lists"}
    right = lists if _is_backward(plan) else set()
    for level in {stage.level for stage in stages} | right:
        phases = [stage.phase for stage in stages if stage.level == level]
        split = [] if level in plan.short else [["count", "scan", "scatter"]]
        if level not in right or phases not in (["whole"], *split):
            yield f"the lists of level {level} are inverted in the phases {phases}; the levels to invert are {right}"


def _gradients_descend(plan: Plan) -> Problems:
    right = _segments(plan) if _is_backward(plan) else []
    for kind in ("attend_grad_kv", "merge_grad_kv"):
        stages = cast("tuple[AttendGradKV | MergeGradKV, ...]", plan.of_kind(kind))
        found = [stage.segment for stage in stages]
        if found != right and not (kind == "merge_grad_kv" and not found):
            yield f"the stages of {kind} are for {found} where {right} is right"
        for place, stage in enumerate(stages):
            if stage.has_above != (place > 0):
                yield f"{stage.name} is number {place} from the top and has has_above={stage.has_above}"


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
    "joined_walk": _joined_walk,
    "inversions": _inversions,
    "gradients_descend": _gradients_descend,
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
    name, level = tensor.name, tensor.levels[0]
    if name in _PER_QUERY:
        return ("B", "H", "Nq", *_PER_QUERY[name])
    stem = name.rstrip("0123456789")
    if stem in _TABLES:
        return ("B", "H", *(text.format(level=level) for text in _TABLES[stem]))
    if "_parts_" in name:
        return ("B", "Hk", *(axis.extent for axis in tensor.axes[2:4]), names.width(name[0]))
    side = names.side(name[0])
    return ("B", "H" if side == "q" else "Hk", tensors.row_extent(tensor.levels, side), names.width(name[0]))


_PER_QUERY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lse", "lse_carry", "lse_grad", names.DELTA), ()),
    **dict.fromkeys(("o", "o_carry", "o_grad"), ("Dv",)),
    names.Q_GRAD_CARRY: ("D",),
}
"""Tensors with a row for every query, and what follows that axis."""

_TABLES: dict[str, tuple[str, ...]] = {
    "idx": ("n{level}q", "K{level}"),
    "rows": ("n{level}q", "K{level}"),
    "counts": ("n{level}k", str(tensors.CHUNKS)),
    "offsets": ("n{level}k+1",),
    "part_offsets": ("n{level}k+1",),
    "part_nodes": ("P{level}",),
}
"""Tables of one level by the stem of their name; they hold int32."""


def _dtype(tensor: TensorType, plan: Plan) -> str:
    """Tables are int32, everything that is summed up is fp32, the rest has the dtype of the spec."""
    name, level = tensor.name, tensor.levels[0]
    if name.rstrip("0123456789") in _TABLES:
        return "int32"
    pooled = level > 0 and ("_grad_" in name or "_sums_" in name or "_parts_" in name)
    sums = (*names.CARRY, "lse", "lse_grad", names.DELTA, names.Q_GRAD_CARRY)
    is_wide = pooled or "_parts_" in name or name in sums
    return "fp32" if is_wide else plan.spec.dtype


def _is_backward(plan: Plan) -> bool:
    return plan.direction == "backward"


def _walks(plan: Plan) -> tuple[SegmentStage, ...]:
    """The stages that walk the keys of every query."""
    return cast("tuple[SegmentStage, ...]", plan.of_kind("attend_grad_q" if _is_backward(plan) else "attend"))


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
