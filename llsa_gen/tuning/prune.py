# SPDX-License-Identifier: Apache-2.0
"""Which schedules are worth timing: a model of a processor's vector unit, its caches and its threads.

What is equal for all schedules of a kernel is left out. The flops and bytes of a stage are those of the cost model and
say which kernels come first. A schedule says how many of its lanes are of use, how often a register tile loads, how
much it holds at once and how many tasks there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from llsa_gen.codegen import KernelInstance, KernelPackage
from llsa_gen.cost import measure
from llsa_gen.evidence.passes import WANTED
from llsa_gen.ir.reach import needed_stages
from llsa_gen.ir.sizes import IntSizes, query_splits, short_lists
from llsa_gen.ir.types import Plan
from llsa_gen.jit import Machine
from llsa_gen.jit.isa import Lanes, Vectors, vectors_of
from llsa_gen.schedule import Schedule, fits, space
from llsa_gen.schedule.lanes import STRIP
from llsa_gen.spec import Spec
from llsa_gen.targets import get_target

SLOWEST = 1.4
"""A schedule whose model takes so many times the best one's is not timed."""
TASKS_PER_THREAD = 4
"""Fewer tasks than that leave threads idle at the end."""
FLOPS_PER_BYTE = 16
"""What moving a byte is worth, to rank kernels: cores do about as many flops in the time of one."""
PART_STEPS = 3
"""What a part costs besides its keys, in keys: the sums so far are scaled and added to."""
L2_UNKNOWN = 256 * 1024
"""Bytes of a second-level cache where the system does not say; every processor with vectors has as much."""
VECTOR_KINDS = ("attend", "attend_grad_q", "attend_grad_kv", "select")


@dataclass(frozen=True)
class Candidate:
    """One schedule of a kernel.

    Attributes:
        schedule: Which.
        model: Time per useful multiply-add in the model, 1 at best; None where there is no model.
        why: Why it is not worth timing; empty where it is.
    """

    schedule: Schedule
    model: float | None
    why: str = ""


@dataclass(frozen=True)
class Choice:
    """One kernel with its schedules.

    Attributes:
        kernel: The kernel, with the default schedule.
        default: That.
        share: Part of the work of both passes in the cost model.
        candidates: All of its space, the default first, then the best of the model.
    """

    kernel: KernelInstance
    default: Schedule
    share: float
    candidates: tuple[Candidate, ...]

    @property
    def kept(self) -> tuple[Schedule, ...]:
        """The schedules to time, each against the default."""
        return tuple(one.schedule for one in self.candidates if not one.why and one.schedule != self.default)


def choices(package: KernelPackage, target: str, machine: Machine, tokens: int, heads: int) -> tuple[Choice, ...]:
    """The kernels of a length that have more than one schedule worth timing, those with the most work first."""
    shares = shares_of(package, target, tokens, heads)
    found = []
    for kernel in package.kernels_for(target):
        if kernel.name not in shares:
            continue
        default = dict(kernel.schedules)[target]
        candidates = _candidates(kernel, package.spec, target, machine, default, tokens, heads)
        found.append(Choice(kernel, default, shares[kernel.name], candidates))
    return tuple(sorted((one for one in found if one.kept), key=lambda one: -one.share))


def idle(package: KernelPackage, target: str, tokens: int) -> tuple[str, ...]:
    """The kernels with more than one schedule that no pass of a length launches: how long lists are chooses others."""
    launched, found = _launched(package, target, tokens), get_target(target)
    return tuple(
        kernel.name
        for kernel in package.kernels_for(target)
        if kernel.name not in launched and len(set(space(kernel.key, package.spec, found))) > 1
    )


def shares_of(package: KernelPackage, target: str, tokens: int, heads: int) -> dict[str, float]:
    """The part of each kernel that passes of a length launch in the flops and bytes of all of them."""
    work = dict.fromkeys(_launched(package, target, tokens), 0.0)
    for plan in _plans(package, target, tokens):
        stages = measure(plan, tokens, 1, heads).stages
        for stage, counted in zip(plan.stages, stages, strict=True):
            name = package.kernel_of(plan, stage).name
            if name in work:
                work[name] += int(counted.flops) + FLOPS_PER_BYTE * int(counted.bytes)
    whole = sum(work.values())
    return {name: part / whole for name, part in work.items()}


def _launched(package: KernelPackage, target: str, tokens: int) -> tuple[str, ...]:
    """The names of the kernels that passes of a length launch."""
    return tuple(
        package.kernel_of(plan, stage).name
        for plan in _plans(package, target, tokens)
        for stage in needed_stages(plan, WANTED[plan.direction])
    )


def _plans(package: KernelPackage, target: str, tokens: int) -> tuple[Plan, ...]:
    """The plans of a length."""
    short = short_lists(package.spec, tokens)
    return tuple(
        package.plan(target, plan.direction, short if plan.direction == "backward" else ())
        for plan in package.plans_for(target)
    )


def _candidates(
    kernel: KernelInstance, spec: Spec, target: str, machine: Machine, default: Schedule, tokens: int, heads: int
) -> tuple[Candidate, ...]:
    found = get_target(target)
    offered = [each for each in dict.fromkeys(space(kernel.key, spec, found)) if fits(kernel.key, spec, found, each)]
    if found.language != "tvm":
        near = sorted(offered, key=lambda each: (abs(each.rows - default.rows), abs(each.keys - default.keys)))
        return tuple(Candidate(each, None) for each in sorted(near, key=lambda each: each != default))
    vectors = vectors_of(machine.isa)
    models = {each: model_of(kernel, spec, each, vectors) for each in offered}
    best = min(models.values())
    ranked = sorted(offered, key=lambda each: (each != default, models[each]))
    return tuple(
        Candidate(
            each,
            models[each],
            "" if each == default else _why(kernel, spec, each, models[each] / best, machine, tokens, heads),
        )
        for each in ranked
    )


def _why(
    kernel: KernelInstance, spec: Spec, schedule: Schedule, slower: float, machine: Machine, tokens: int, heads: int
) -> str:
    """Why a schedule is not worth timing, or nothing."""
    held, cache = held_bytes(kernel, spec, schedule), machine.caches.get("L2", L2_UNKNOWN)
    if held > cache:
        return f"it holds {held:,} bytes at once, and the second-level cache has {cache:,}"
    tasks = tasks_of(kernel, spec, schedule, tokens) * heads
    if tasks < TASKS_PER_THREAD * machine.threads:
        return f"{tasks} tasks are too few for {machine.threads} threads"
    return f"the model takes {slower:.2f} times the best one's time" if slower > SLOWEST else ""


def model_of(kernel: KernelInstance, spec: Spec, schedule: Schedule, vectors: Vectors) -> float:
    """Time of a schedule per useful multiply-add, 1 where multiplying is all there is to it.

    Each product of the kernel goes through the register tile that the kernel takes for it.
    """
    if kernel.key.kind not in VECTOR_KINDS:
        return 1.0
    products = products_of(kernel.key.kind, spec, schedule)
    times = [weight * _time_of(rows, columns, vectors) for rows, columns, weight in products]
    length = schedule.rows if kernel.key.kind == "attend_grad_kv" else schedule.keys
    parts = 1.0 if kernel.key.kind == "select" else 1.0 + PART_STEPS / length
    return parts * sum(times) / sum(weight for _, _, weight in products)


def products_of(kind: str, spec: Spec, schedule: Schedule) -> tuple[tuple[int, int, int], ...]:
    """Rows and columns of the matrices that a kernel sums up in registers, each with its part of the multiply-adds."""
    keys, values, strip = spec.head_dim, spec.dim_v, min(spec.block, STRIP)  # also of candidates
    lanes = schedule.rows
    match kind:
        case "select":
            return ((strip, lanes, keys),)
        case "attend":
            return (strip, lanes, keys), (lanes, values, values)
        case "attend_grad_q":
            return (strip, lanes, keys + values), (lanes, keys, keys)
    lanes = schedule.keys
    return (STRIP, lanes, keys + values), (lanes, values, values), (lanes, keys, keys)


def _time_of(rows: int, columns: int, vectors: Vectors) -> float:
    """Time per useful multiply-add of a product through the register tile of its matrix.

    A tile of m rows by n vectors takes n loads of vectors and m of single numbers for ``m * n`` multiply-adds, and a
    core loads as often as it multiplies. A vector that is shorter than a register leaves the rest of it idle.
    """
    tile = Lanes(vectors.width, vectors.registers).tile(rows, columns)
    across = tile.columns // tile.vector
    return max(1.0, (tile.rows + across) / (tile.rows * across)) * vectors.width / tile.vector


def held_bytes(kernel: KernelInstance, spec: Spec, schedule: Schedule) -> int:
    """Bytes that a task holds from its beginning to its end: operands and sums of its lanes, and scores.

    Rows of half types that are packed are left out: they take the same in every schedule.
    """
    widths = spec.head_dim + spec.dim_v
    match kernel.key.kind:
        case "attend_grad_kv":
            return 4 * schedule.keys * (2 * widths + 2 * schedule.rows)
        case "attend" | "attend_grad_q":
            return 4 * schedule.rows * (2 * widths + schedule.keys)
    return 0


def tasks_of(kernel: KernelInstance, spec: Spec, schedule: Schedule, tokens: int) -> int:
    """Tasks of a head, as the templates count them, less those for parts of long lists, as there may be none.

    A kernel that several levels launch has the tasks of the finest one, which is most of its work.
    """
    kind, is_dense = kernel.key.kind, dict(kernel.key.args).get("part") == "all"
    sizes, level = IntSizes.square(spec, tokens), _level_of(kernel, spec)
    match kind:
        case "attend" | "attend_grad_q" | "delta":
            return _ceil(tokens, schedule.rows)
        case "select":
            return _ceil(sizes.nodes(level, "q"), schedule.rows)
        case "attend_grad_kv" | "merge_grad_kv" if is_dense:
            return _ceil(sizes.nodes(level, "k"), schedule.keys) * (
                query_splits(spec) if kind == "attend_grad_kv" else 1
            )
        case "attend_grad_kv" | "merge_grad_kv":
            lists = sizes.nodes(level + 1, "k") if kind == "attend_grad_kv" else sizes.parts(level + 1)
            return int(lists) * (spec.block // schedule.keys)
    return tokens


def _level_of(kernel: KernelInstance, spec: Spec) -> int:
    """The finest level whose nodes a kernel selects, or computes gradients of."""
    arguments = dict(kernel.key.args)
    if kernel.key.kind == "select":
        pairs = zip(spec.topks, (*spec.topks[1:], 0), strict=True)
        return 1 + list(pairs).index((int(arguments["topk"]), int(arguments["parent_topk"])))
    if arguments.get("part") == "lists":
        return int(arguments.get("level", 1))
    return spec.depth if arguments.get("part") == "all" else 0


def _ceil(count: int, tile: int) -> int:
    return -(-count // tile)
