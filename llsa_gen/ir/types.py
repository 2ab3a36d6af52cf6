# SPDX-License-Identifier: Apache-2.0
"""What a plan is made of: axes, tensors, stages.

A plan is pure data. A pass returns another plan; nothing here is ever changed in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeVar

from llsa_gen.errors import InternalError, explain

if TYPE_CHECKING:
    from llsa_gen.ir.sizes import Number, Sizes
    from llsa_gen.spec import Spec

Role = Literal["input", "temporary", "output"]
Direction = Literal["forward", "backward"]
ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4, "int32": 4}
"""Bytes per element of every type a tensor of a plan may have."""


class Piece(NamedTuple):
    """The rows of one level of a tensor: the unit that stages write and read."""

    tensor: str
    level: int


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor.

    Attributes:
        name: What the axis counts: ``batch``, ``head``, ``row``, ``feature``, ``entry`` or ``chunk``.
        extent: Symbols joined by ``+``: ``B``, ``H``, ``Hk``, ``Nq``, ``Nk``, ``D``, ``Dv``, ``b``, ``K1``.. (entries
            of a list of level 1..), ``n1q``.. and ``n1k``.. (nodes of level 1.. on the query and the key side),
            ``P1``.. (parts of the long inverted lists of level 1..) or a number.
    """

    name: str
    extent: str


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor of a plan.

    Attributes:
        name: Unique in the plan.
        axes: Batch, head, row, and for all but the log-sum-exps a last axis.
        dtype: ``bf16``, ``fp16``, ``fp32`` or ``int32``.
        role: Whether it comes from the caller, lives inside, or is returned.
        levels: The pyramid levels whose rows it holds, one after the other; ``(0,)`` holds tokens.
    """

    name: str
    axes: tuple[Axis, ...]
    dtype: str
    role: Role
    levels: tuple[int, ...]

    def pieces(self) -> tuple[Piece, ...]:
        """One piece per level."""
        return tuple(Piece(self.name, level) for level in self.levels)

    @property
    def side(self) -> str:
        """``q`` or ``k``: the side of the sequence that the rows belong to."""
        return "q" if "q" in self.axes[2].extent else "k"

    def bytes(self, sizes: Sizes, levels: Iterable[int] | None = None) -> Number:
        """Bytes of the rows of ``levels``, of all rows without it."""
        if levels is None or len(self.levels) == 1:
            total = sizes.extent(self.axes[2].extent)
        else:
            total = sum(sizes.nodes(level, self.side) for level in levels)
        for axis in (*self.axes[:2], *self.axes[3:]):
            total = total * sizes.extent(axis.extent)
        return total * ITEMSIZE[self.dtype]


@dataclass(frozen=True, slots=True)
class KernelKey:
    """What a stage needs from the compiler; stages of one plan with equal keys share a compiled kernel.

    Attributes:
        kind: The kind of stage.
        args: Structural arguments by name, in a fixed order.
    """

    kind: str
    args: tuple[tuple[str, int | str], ...]

    def arg(self, name: str) -> int | str:
        """The value of one argument.

        Raises:
            InternalError: The kernel has no such argument.
        """
        for key, value in self.args:
            if key == name:
                return value
        raise InternalError(explain("a kernel has no such argument", where=self.label, value=name))

    @property
    def label(self) -> str:
        """A readable name, unique within a plan."""
        return "_".join([self.kind, *(f"{key}_{value}" for key, value in self.args)])


@dataclass(frozen=True, slots=True)
class Stage(ABC):
    """One launch of one kernel.

    Attributes:
        name: Unique in the plan.
        inputs: Names of the tensors read.
        outputs: Names of the tensors written.
        kind: The kind of stage, one per module of ``llsa_gen.stages``.
        template: Stem of the template that the kernel is rendered from.
    """

    kind: ClassVar[str]
    template: ClassVar[str]

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def factory(self) -> str:
        """The generated file that holds its kernel, and the function in it."""
        return self.kind

    @abstractmethod
    def reads(self, plan: Plan) -> tuple[Piece, ...]:
        """The pieces it reads, each once; a piece of a tensor that is not an input is an error of the plan."""

    @abstractmethod
    def writes(self, plan: Plan) -> tuple[Piece, ...]:
        """The pieces it writes, each once."""

    @abstractmethod
    def flops(self, sizes: Sizes) -> Number:
        """Arithmetic of the stage, one per addition and multiplication, over all batches and heads."""

    @abstractmethod
    def kernel(self, plan: Plan) -> KernelKey:
        """The kernel that it launches."""

    def bytes_read(self, plan: Plan, sizes: Sizes) -> Number:
        """Compulsory reads: every piece once."""
        return _traffic(plan, self.reads(plan), sizes)

    def bytes_written(self, plan: Plan, sizes: Sizes) -> Number:
        """Compulsory writes: every piece once."""
        return _traffic(plan, self.writes(plan), sizes)


@dataclass(frozen=True, slots=True)
class Plan:
    """The kernels of one pass of a spec and the tensors between them, in the order of execution.

    Attributes:
        spec: What is computed; its depth is a number.
        tensors: All tensors: inputs, temporaries in the order of production, outputs.
        stages: The launches, in order.
        inputs: Names of the tensors of the caller.
        outputs: Names of the tensors returned.
        direction: Whether it computes attention or its gradients.
        short: Levels whose lists are short enough to be inverted in one launch.
        joined: Whether attention, or the gradient of q, stays one stage over pooled keys and tokens.
    """

    spec: Spec
    tensors: tuple[TensorType, ...]
    stages: tuple[Stage, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    direction: Direction = "forward"
    short: tuple[int, ...] = ()
    joined: bool = False

    def tensor(self, name: str) -> TensorType:
        """The tensor of that name.

        Raises:
            InternalError: The plan has none.
        """
        return _named("tensor", name, self.tensors)

    def stage(self, name: str) -> Stage:
        """The stage of that name.

        Raises:
            InternalError: The plan has none.
        """
        return _named("stage", name, self.stages)

    def producer(self, name: str, level: int | None = None) -> Stage | None:
        """The stage that writes a tensor, None for an input.

        Args:
            name: The tensor.
            level: Which of its levels; the first one it holds without it. Only tensors of several levels can have
                several producers.
        """
        piece = Piece(name, self.tensor(name).levels[0] if level is None else level)
        return next((stage for stage in self.stages if piece in stage.writes(self)), None)

    def readers(self, name: str) -> tuple[Stage, ...]:
        """The stages that read a tensor."""
        return tuple(stage for stage in self.stages if name in stage.inputs)

    def of_kind(self, kind: str) -> tuple[Stage, ...]:
        """The stages of one kind, in order."""
        return tuple(stage for stage in self.stages if stage.kind == kind)

    def kernels(self) -> dict[KernelKey, tuple[str, ...]]:
        """The distinct kernels in the order of their first launch, with the names of the stages that launch them."""
        found: dict[KernelKey, tuple[str, ...]] = {}
        for stage in self.stages:
            key = stage.kernel(self)
            found[key] = (*found.get(key, ()), stage.name)
        return found


def _traffic(plan: Plan, pieces: Iterable[Piece], sizes: Sizes) -> Number:
    total: Number = 0
    for piece in pieces:
        total = total + plan.tensor(piece.tensor).bytes(sizes, (piece.level,))
    return total


Named = TypeVar("Named", TensorType, Stage)


def _named(what: str, name: str, known: Sequence[Named]) -> Named:
    """The one of some tensors or stages that has a name."""
    for one in known:
        if one.name == name:
            return one
    raise InternalError(explain(f"the plan has no such {what}", value=name, allowed=[one.name for one in known]))
