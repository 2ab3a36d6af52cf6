# SPDX-License-Identifier: Apache-2.0
"""From a spec and tensors to results: finds or builds the kernels, then runs the stages that were asked for."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from llsa_gen import jit, paths
from llsa_gen.codegen import KernelPackage, render
from llsa_gen.environment import BUILD_VARIABLE, is_off
from llsa_gen.errors import NotBuiltError, explain
from llsa_gen.ir import names
from llsa_gen.ir.reach import needed_stages
from llsa_gen.ir.sizes import short_lists
from llsa_gen.ir.types import Direction
from llsa_gen.ops.bind import Task, bind
from llsa_gen.ops.execute import Step, steps_of
from llsa_gen.ops.launch import target_of
from llsa_gen.ops.state import nodes
from llsa_gen.spec import Spec
from llsa_gen.targets import Target, get_target

BoundPass = Callable[..., Sequence[Tensor]]
"""What computes the results of tensors of one form, again and again."""

_log = logging.getLogger("llsa_gen")


def attention(
    spec: Spec, q: Tensor, k: Tensor, v: Tensor, scale: float, *, tokens_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Pools, selects and attends.

    Args:
        spec: What to compute; its head dims and dtype are those of the tensors.
        q: [B,H,N,D], any strides; so are k and v.
        k: [B,H,N,D].
        v: [B,H,N,Dv].
        scale: The softmax scale.
        tokens_first: Whether o lies in memory as [B,N,H,Dv].

    Returns:
        o [B,H,N,Dv] in the input dtype and lse [B,H,N] in fp32.
    """
    o, lse = attention_pass(spec, q, k, v, scale, tokens_first=tokens_first)(q, k, v)
    return o, lse


def attention_pass(
    spec: Spec, q: Tensor, k: Tensor, v: Tensor, scale: float, *, tokens_first: bool = False
) -> BoundPass:
    """`attention`, bound to the form of q, k and v."""
    if empty(q):
        return lambda q, k, v: empty_output(q, v, tokens_first)
    task = Task(spec, names.RESULTS, scale, tokens_first)
    return _bound(task, {"q": q, "k": k, "v": v})


def select(spec: Spec, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """The lists of every level, idx[0] for level 1 (finest), int32 [B,H,n_l,K_l]."""
    return tuple(select_pass(spec, q, k)(q, k))


def select_pass(spec: Spec, q: Tensor, k: Tensor) -> BoundPass:
    """`select`, bound to the form of q and k."""
    if empty(q):
        return lambda q, k: empty_lists(spec, q)
    return _bound(Task(spec, list_names(spec)), {"q": q, "k": k})


def attend(
    spec: Spec, q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], scale: float, *, tokens_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention with given lists: o [B,H,N,Dv] in the input dtype and lse [B,H,N] in fp32."""
    o, lse = attend_pass(spec, q, k, v, idx, scale, tokens_first=tokens_first)(q, k, v, *idx)
    return o, lse


def attend_pass(
    spec: Spec, q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], scale: float, *, tokens_first: bool = False
) -> BoundPass:
    """`attend`, bound to the form of q, k, v and the lists."""
    if empty(q):
        return lambda q, k, v, *_: empty_output(q, v, tokens_first)
    task = Task(spec, names.RESULTS, scale, tokens_first)
    return _bound(task, {"q": q, "k": k, "v": v}, idx)


def gradients(
    spec: Spec,
    given: Mapping[str, Tensor],
    scale: float,
    wanted: tuple[str, ...] = names.GRADIENTS,
    idx: Sequence[Tensor] = (),
    *,
    tokens_first: bool = False,
) -> dict[str, Tensor]:
    """The gradients of q, k and v of a call that had given lists, or selected them itself.

    Args:
        spec: What the call computed.
        given: `q`, `k`, `v`, `o`, `lse`, `o_grad` and `lse_grad` (fp32), [B,H,N,...]; q must not be empty.
        scale: The softmax scale.
        wanted: Which gradients; what only others need is not run.
        idx: The lists, when they were given.
        tokens_first: Whether gradients lie in memory as [B,N,H,D].

    Returns:
        The wanted gradients by name, in the input dtype.
    """
    bound = gradients_pass(spec, given, scale, wanted, idx, tokens_first=tokens_first)
    return dict(zip(wanted, bound(*given.values(), *idx), strict=True))


def gradients_pass(
    spec: Spec,
    given: Mapping[str, Tensor],
    scale: float,
    wanted: tuple[str, ...],
    idx: Sequence[Tensor],
    *,
    tokens_first: bool,
) -> BoundPass:
    """`gradients`, bound to the form of the tensors; called with those given, in their order, and the lists."""
    return _bound(Task(spec, wanted, scale, tokens_first), given, idx, direction="backward")


def _bound(
    task: Task, given: Mapping[str, Tensor], idx: Sequence[Tensor] = (), *, direction: Direction = "forward"
) -> BoundPass:
    """The pass that finds the results of a task, bound to the form of given tensors and lists."""
    lists = dict(zip(list_names(task.spec), idx, strict=False))
    q = given["q"]
    short = short_lists(task.spec, q.shape[2]) if direction == "backward" else ()
    target = target_of(q.device)
    steps = kernels_of(task.spec, target, task.wanted, tuple(lists), direction, short)
    return bind(steps, task, {**given, **lists}, target)


def list_names(spec: Spec) -> tuple[str, ...]:
    """The names of the lists, level 1 first."""
    return tuple(names.lists(level) for level in range(1, spec.depth + 1))


def empty(q: Tensor) -> bool:
    """Whether there is nothing to compute."""
    return q.shape[0] * q.shape[1] * q.shape[2] == 0


def empty_output(q: Tensor, v: Tensor, tokens_first: bool) -> tuple[Tensor, Tensor]:
    """New tensors like o and lse, not filled."""
    o = empty_rows(q, q.shape[2], v.shape[-1], tokens_first)
    return o, q.new_empty(q.shape[:3], dtype=torch.float32)


def empty_rows(q: Tensor, rows: int, width: int, tokens_first: bool) -> Tensor:
    """A new [B,H,rows,width] tensor of the dtype of q, not filled; in memory [B,rows,H,width] if tokens come first."""
    batch, heads = q.shape[:2]
    if tokens_first:
        return q.new_empty((batch, rows, heads, width)).transpose(1, 2)
    return q.new_empty((batch, heads, rows, width))


def empty_lists(spec: Spec, q: Tensor) -> tuple[Tensor, ...]:
    """New tensors like the lists of every level, not filled."""
    shape = (q.shape[0], q.shape[1])
    rows = [nodes(q.shape[2], spec.block, level) for level in range(1, spec.depth + 1)]
    return tuple(
        q.new_empty((*shape, row, topk), dtype=torch.int32) for row, topk in zip(rows, spec.topks, strict=True)
    )


def kernels_of(
    spec: Spec,
    target: str,
    wanted: tuple[str, ...],
    given: tuple[str, ...] = (),
    direction: Direction = "forward",
    short: tuple[int, ...] = (),
    *,
    records: bool = True,
) -> tuple[Step, ...]:
    """The stages that some tensors of a plan need, each with its loaded kernel, built now when it is not yet.

    What was found is kept for the number of threads that torch takes now: tuning records hold for one such number.

    Args:
        spec: What is computed.
        target: Where.
        wanted: Names of tensors of the plan.
        given: Names of tensors that the caller has, besides the inputs of the plan.
        direction: Which plan.
        short: Levels whose lists are short.
        records: Whether kernels have the schedules of their tuning records, and for CPUs the widest instruction set
            that is built; or the default schedules and the widest one that is executed, which a tuner begins with.

    Raises:
        NotBuiltError: They are not built, and building on first use is switched off.
        UnsupportedError: Gradients are wanted of a spec that leaves them out.
        InfeasibleError: No schedule of a kernel fits the target.
        ToolMissingError: A compiler is missing.
        CompileError: A compiler refused.
    """
    return _kernels_of(spec, target, wanted, given, direction, short, records, torch.get_num_threads())


def serving(spec: Spec, target: str) -> Target | None:
    """Whose kernels serve a spec on a target in this process; None before the first call."""
    return _SERVED_BY.get((spec, target))


def forget_kernels() -> None:
    """Forgets what kernels were found."""
    _kernels_of.cache_clear()
    _SERVED_BY.clear()


_SERVED_BY: dict[tuple[Spec, str], Target] = {}
"""Whose kernels serve a spec on a target in this process: the backward pass must find the lists of the forward one."""


@lru_cache(maxsize=256)
def _kernels_of(
    spec: Spec,
    target: str,
    wanted: tuple[str, ...],
    given: tuple[str, ...],
    direction: Direction,
    short: tuple[int, ...],
    records: bool,
    _threads: int,
) -> tuple[Step, ...]:
    package = render(spec)
    plan = package.plan(target, direction, short)
    package.require_feasible(target)
    stages = {stage: package.kernel_of(plan, stage).name for stage in needed_stages(plan, wanted, given)}
    needed, machine = frozenset(stages.values()), get_target(target)
    if records:
        machine = serving(spec, target) or jit.widest_built(spec, target, needed)
        package = jit.tuned(package, machine)
    kernels = jit.load_kernels(package, machine, needed)
    if kernels is None:
        _build_now(package, machine, needed, records=records)
        kernels = jit.load_kernels(package, machine, needed)
        assert kernels is not None, "a build fills the cache"
    if records:
        _stay_with(spec, target, machine)
    return steps_of([(stage, kernels[name]) for stage, name in stages.items()], wanted)


def _stay_with(spec: Spec, target: str, machine: Target) -> None:
    """Lets later calls have the kernels of the same instruction set; one line of the log where it is not the widest."""
    if (spec, target) in _SERVED_BY:
        return
    _SERVED_BY[spec, target] = machine
    widest = get_target(target)
    if jit.architecture_of(machine) != jit.architecture_of(widest):
        why = f"those for {jit.architecture_of(widest)}, which this processor executes, are not all built"
        command = build_command(spec, widest)
        _log.warning("%s takes the kernels for %s: %s (build them: %s)", spec.slug, machine.arch, why, command)


def build_command(spec: Spec, target: str | Target) -> str:
    """The command line that builds a spec for a target; on any machine of the architecture, the same kernels."""
    machine = get_target(target)
    fields = {
        "levels": spec.levels,
        "block": spec.block,
        "k": ",".join(str(topk) for topk in spec.topks) if isinstance(spec.topk, tuple) else spec.topks[0],
        "head-dim": spec.head_dim,
        "value-dim": spec.dim_v,
        "dtype": spec.dtype,
    }
    words = [f"--{name} {value}" for name, value in fields.items()]
    if spec.enrichment != "overlap":
        words.append(f"--enrichment {spec.enrichment}")
    if spec.weight != "c":
        words.append(f"--weight {shlex.quote(spec.weight)}")
    if not spec.gradient:
        words.append("--no-gradient")
    words.append(f"--target {machine.name}")
    if machine.has_isa:
        words.append(f"--isa {jit.architecture_of(machine)}")
    where = [] if paths.is_checkout() else ["--out ./kernels"]
    return " ".join(["llsa-gen build", *words, *where])


def _build_now(package: KernelPackage, target: Target, needed: frozenset[str], *, records: bool) -> None:
    command = build_command(package.spec, target)
    if is_off(BUILD_VARIABLE):
        what = f"the kernels of {package.slug} are not built for {_missing(package.spec, target, needed)}"
        what += f", and {BUILD_VARIABLE} forbids building now"
        raise NotBuiltError(explain(what, hint=f"run: {command}"), command=command)
    started = time.perf_counter()
    jit.build(package.spec, target, only=needed, records=records)
    _log.warning(
        "built %s for %s in %.1f s (ahead of time: %s)",
        package.slug,
        target.label,
        time.perf_counter() - started,
        command,
    )


def _missing(spec: Spec, target: Target, needed: frozenset[str]) -> str:
    """What kernels are missing for, in words, with the instruction sets that they are built for instead."""
    others = [isa for isa in jit.built_isas(spec, needed) if isa != target.arch] if target.has_isa else []
    return f"{target.label} (only for {', '.join(others)})" if others else target.label
