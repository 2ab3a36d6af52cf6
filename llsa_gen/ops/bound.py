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
from llsa_gen.ops.launch import VECTOR_ALIGNMENT, Launch, Values
from llsa_gen.ops.pages import Memory


def form_of(tensor: Tensor) -> tuple[Any, ...]:
    """The form of a tensor: one bound pass serves all tensors of one form."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() % VECTOR_ALIGNMENT


Places = tuple[tuple[int, int], ...]
"""Where an address goes among the values of a pass, with the bytes behind it that each value points at."""


class Piece(NamedTuple):
    """A piece of memory that a pass makes.

    Attributes:
        slot: Which one it is.
        make: What makes it.
        places: Where its address goes.
    """

    slot: int
    make: Callable[[], Memory]
    places: Places


class Turn(NamedTuple):
    """One launch of a pass, and what happens to memory around it.

    Attributes:
        begins: What is made before it.
        launch: The launch.
        rounded: What is rounded to the input dtype after it: a slot, and what does that.
        ends: Slots that are let go at last.
    """

    begins: tuple[Piece, ...]
    launch: Launch
    rounded: tuple[tuple[int, Callable[[Any], None]], ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Bound:
    """A pass of which everything is decided but addresses; it keeps nothing of a call, so threads may share it.

    Attributes:
        device: The GPU that it runs on, if it does.
        crew: Says who runs it, each time.
        values: What its launches take, one after the other, with 0 for addresses.
        readers: What makes of a given tensor one that kernels can read, by slots of those that are none.
        places: For every given tensor where its address goes.
        turns: Its launches, in order.
        made: None for every piece of memory that it makes; their slots follow those of the given tensors.
        results: The slots of its results, each with the dtype that it is brought to, if it has another one.
    """

    device: torch.device | None
    crew: Callable[[], int]
    values: Values
    readers: tuple[tuple[int, Reader], ...]
    places: tuple[Places, ...]
    turns: tuple[Turn, ...]
    made: tuple[None, ...]
    results: tuple[tuple[int, torch.dtype | None], ...]

    def __call__(self, *given: Tensor) -> list[Tensor]:
        """Runs it on tensors of its form."""
        if self.device is None:
            return self._run(given)
        with torch.cuda.device(self.device):
            return self._run(given)

    def _run(self, given: Sequence[Tensor]) -> list[Tensor]:
        values, crew = self.values[:], self.crew()
        memory: list[Any] = [*given, *self.made]
        for slot, read in self.readers:
            memory[slot] = read(memory[slot])
        for slot, places in enumerate(self.places):  # no name may hold what a slot lets go
            _fill(values, memory[slot].data_ptr(), places)
        for begins, launch, rounded, ends in self.turns:
            for slot, make, places in begins:
                memory[slot] = make()
                _fill(values, memory[slot].data_ptr(), places)
            launch.run(values, crew)
            for slot, bring in rounded:
                bring(memory[slot])
            for slot in ends:
                memory[slot] = None
        return [memory[slot] if dtype is None else memory[slot].to(dtype) for slot, dtype in self.results]


def _fill(values: Values, address: int, places: Places) -> None:
    for place, offset in places:
        values[place] = address + offset
