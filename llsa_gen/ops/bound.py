# SPDX-License-Identifier: Apache-2.0
"""Bound passes: what calls of one form do, decided once, so that a call of that form only fills in addresses.

The form of a call is all that is known of its tensors but their values and addresses. Calls of the ops run nothing
else; `execute` runs steps, for whoever looks at what lies between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llsa_gen.ops.execute import Reader
from llsa_gen.ops.launch import VECTOR_ALIGNMENT, Launch
from llsa_gen.ops.pages import Memory


def form_of(tensor: Tensor) -> tuple[Any, ...]:
    """The form of a tensor: one bound pass serves all tensors of one form."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() % VECTOR_ALIGNMENT


class Piece(NamedTuple):
    """A piece of memory that a pass makes.

    Attributes:
        slot: Which one it is.
        make: What makes it.
    """

    slot: int
    make: Callable[[], Memory]


class Turn(NamedTuple):
    """Launches of a pass between which nothing happens on the host, and what happens to memory around them.

    Attributes:
        begins: What is made before them.
        launches: The launches.
        rounded: What is rounded to the input dtype after them: a slot, and what does that.
        ends: Slots that are let go at last.
    """

    begins: tuple[Piece, ...]
    launches: tuple[Launch, ...]
    rounded: tuple[tuple[int, Callable[[Memory], None]], ...]
    ends: tuple[int, ...]

    def then(self, other: Turn) -> Turn | None:
        """This turn and the next as one, where nothing lies between their launches."""
        if other.begins or self.rounded:
            return None
        return Turn(self.begins, (*self.launches, *other.launches), other.rounded, (*self.ends, *other.ends))


@dataclass(frozen=True)
class Bound:
    """A pass of which everything is decided but addresses; it keeps nothing of a call, so threads may share it.

    Attributes:
        device: The GPU that it runs on, if it does.
        crew: Says who runs it, each time.
        readers: What makes of a given tensor one that kernels can read, by slots of those that are none.
        turns: Its launches, in order.
        made: How many pieces of memory it makes; their slots follow those of the given tensors.
        results: The slots of its results, each with the dtype that it is brought to, if it has another one.
    """

    device: torch.device | None
    crew: Callable[[], int]
    readers: tuple[tuple[int, Reader], ...]
    turns: tuple[Turn, ...]
    made: int
    results: tuple[tuple[int, torch.dtype | None], ...]

    def __call__(self, *given: Tensor) -> list[Tensor]:
        """Runs it on tensors of its form."""
        if self.device is None:
            return self._run(given)
        with torch.cuda.device(self.device):
            return self._run(given)

    def _run(self, given: Sequence[Tensor]) -> list[Tensor]:
        crew = self.crew()
        held: list[Any] = [*given, *[None] * self.made]  # no other name may hold what a slot lets go
        for slot, read in self.readers:
            held[slot] = read(held[slot])
        memory = [*map(Tensor.data_ptr, held[: len(given)]), *[0] * self.made]
        for begins, launches, rounded, ends in self.turns:
            for slot, make in begins:
                held[slot] = make()
                memory[slot] = held[slot].data_ptr()
            for launch in launches:
                launch.run(memory, crew)
            for slot, bring in rounded:
                bring(held[slot])
            for slot in ends:
                held[slot] = None
        return [held[slot] if dtype is None else held[slot].to(dtype) for slot, dtype in self.results]
