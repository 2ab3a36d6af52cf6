# SPDX-License-Identifier: Apache-2.0
"""Binding: the steps of a plan and the form of a call become a pass that only fills in addresses.

The binders of the stages run on tensors without memory, those of torch's meta device; what they ask for becomes rooms,
results and launches. `execute` says what else runs steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from llsa_gen.ir import names
from llsa_gen.ops.binders import BINDERS
from llsa_gen.ops.binders.coarsen import pools_name
from llsa_gen.ops.bound import Bound, Piece, Turn
from llsa_gen.ops.execute import Reader, Step, reader_of
from llsa_gen.ops.launch import Arguments, Launch, crew_of, joined, launch_of
from llsa_gen.ops.pages import LARGE_BYTES, Memory, made_for, storage_of
from llsa_gen.ops.rooms import Room, Tenant, share
from llsa_gen.ops.state import Run
from llsa_gen.spec import Spec
from llsa_gen.stages import Coarsen

_OF_INPUT_DTYPE = (names.RESULTS[0], *names.GRADIENTS)
"""Results that have the dtype of q; the kernels of a GPU as C code write them as fp32."""


class Task(NamedTuple):
    """What a pass computes, apart from its tensors.

    Attributes:
        spec: The spec.
        wanted: The names of its results in the plan.
        scale: The softmax scale.
        tokens_first: Whether results lie in memory as [B,N,H,D].
    """

    spec: Spec
    wanted: tuple[str, ...]
    scale: float = 1.0
    tokens_first: bool = False


def bind(steps: Sequence[Step], task: Task, given: Mapping[str, Tensor], target: str) -> Bound:
    """Binds the steps of a pass to the form of its tensors.

    Args:
        steps: The stages with their kernels.
        task: What they compute.
        given: The tensors of a call by their names in the plan; what they hold does not matter.
        target: Where the kernels run.
    """
    return _Binding(steps, task, given, target).bound()


class _Binding:
    """A pass that is being bound.

    Args:
        steps: Its stages with their kernels.
        task: What they compute.
        given: Tensors of the form that it is bound to.
        target: Where the kernels run.
    """

    def __init__(self, steps: Sequence[Step], task: Task, given: Mapping[str, Tensor], target: str) -> None:
        self.steps, self.task = steps, task
        self.device, self.dtype = given["q"].device, given["q"].dtype
        self.readers = {name: reader_of(tensor, target) for name, tensor in given.items()}
        read = {name: _as_read(tensor, self.readers[name]) for name, tensor in given.items()}
        self.run = Run(task.spec, self.dtype, task.scale, task.tokens_first, read)
        self.firsts = dict.fromkeys(given, -1)
        self.lasts = {name: at for at, step in enumerate(steps) for name in step.last_uses}
        asked = [self._asked(at, step) for at, step in enumerate(steps)]
        self.names = {_identity(tensor): name for name, tensor in self.run.tensors.items()}
        self.rooms = [*(Room.of(self._tenant(name)) for name in given), *self._shared()]
        self.slots = {name: slot for slot, room in enumerate(self.rooms) for name in room.offsets}
        self.launches = [self._launch(*both) for both in zip(steps, asked, strict=True)]

    def bound(self) -> Bound:
        """The bound pass."""
        given, narrow = len(self.readers), self.dtype if self.run.widened else None
        return Bound(
            device=self.device if self.device.type == "cuda" else None,
            crew=crew_of(self.device),
            readers=tuple((slot, read) for slot, read in enumerate(self.readers.values()) if read is not None),
            turns=tuple(self._turns()),
            made=len(self.rooms) - given,
            results=tuple((self.slots[name], narrow if name in _OF_INPUT_DTYPE else None) for name in self.task.wanted),
        )

    def _asked(self, at: int, step: Step) -> Arguments:
        """What a binder asks a launch with; notes which tensors it makes."""
        arguments = BINDERS[step.stage.kind](step.stage, self.run)
        self.firsts |= {name: at for name in self.run.tensors if name not in self.firsts}
        return arguments

    def _tenant(self, name: str) -> Tenant:
        """What a tensor needs of memory."""
        size = self.run.tensors[name].untyped_storage().nbytes()
        return Tenant(name, size, self.firsts[name], self.lasts.get(name, len(self.steps)))

    def _shared(self) -> tuple[Room, ...]:
        """Rooms for what is made."""
        made = [name for name, first in self.firsts.items() if first >= 0 and name not in self.task.wanted]
        copies = [name for name, reader in self.readers.items() if reader is not None]
        results, others, copied = ([*map(self._tenant, some)] for some in (self.task.wanted, made, copies))
        return share(results, others, len(self.steps), copied)

    def _launch(self, step: Step, asked: Arguments) -> Launch:
        return launch_of(step.kernel, asked, self._place, self.device)

    def _place(self, tensor: Tensor) -> tuple[int, int]:
        """The slot of a tensor that a binder asked with, and the byte at which it begins there."""
        name = self.names[_identity(tensor)]
        slot = self.slots[name]
        return slot, self.rooms[slot].offsets[name] + int(tensor.storage_offset()) * tensor.element_size()

    def _turns(self) -> list[Turn]:
        """The turns of the pass, as few as there can be.

        Launches of a CPU become one call, which Ctrl-C waits for; not so where memory is large and launches take long.
        """
        turns: list[Turn] = []
        for at in range(len(self.steps)):
            turn = self._turn(at)
            both = turns[-1].then(turn) if turns else None
            turns[-1:] = [both] if both is not None else [*turns[-1:], turn]
        if any(room.size >= LARGE_BYTES for room in self.rooms):
            return turns
        return [turn._replace(launches=joined(turn.launches)) for turn in turns]

    def _turn(self, at: int) -> Turn:
        stage = self.steps[at].stage
        begins = [slot for slot, room in enumerate(self.rooms) if room.first == at]
        pools = [pools_name(cast(Coarsen, stage))] if stage.kind == "coarsen" and self.run.widened else []
        return Turn(
            begins=tuple(Piece(slot, self._maker(self.rooms[slot])) for slot in begins),
            launches=(self.launches[at],),
            rounded=tuple(self._rounding(name) for name in pools),
            ends=tuple(slot for slot, room in enumerate(self.rooms) if room.last == at),
        )

    def _maker(self, room: Room) -> Callable[[], Memory]:
        """What makes the memory of a room: a result as a binder asked for it, if one begins there."""
        name, *_ = room.offsets
        make: Callable[[], Memory]
        if name in self.task.wanted:
            like = self.run.tensors[name]
            make = partial(torch.empty_strided, like.shape, like.stride(), dtype=like.dtype, device=self.device)
        elif self.device.type == "cpu":
            make = partial(torch.UntypedStorage, room.size)  # half of the time that it takes with a device
        else:
            make = partial(torch.UntypedStorage, room.size, device=self.device)
        return made_for(self.device, room.size, make)

    def _rounding(self, name: str) -> tuple[int, Callable[[Memory], None]]:
        """What rounds a tensor in a room to the input dtype."""
        like, dtype = self.run.tensors[name], self.dtype
        slot, offset = self._place(like)

        def bring(memory: Memory) -> None:
            tensor = torch.empty(0, dtype=like.dtype, device=memory.device)
            tensor.set_(storage_of(memory), offset // like.element_size(), like.shape, like.stride())
            tensor.copy_(tensor.to(dtype))

        return slot, bring


def _as_read(tensor: Tensor, reader: Reader | None) -> Tensor:
    """A tensor without memory, of the shape, strides and dtype with which a given one is read."""
    found = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return found if reader is None else reader(found)


def _identity(tensor: Tensor) -> int:
    """What tensors of one storage have in common, as long as one of them is there."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  (without memory, addresses are all 0)
