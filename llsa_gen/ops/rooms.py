# SPDX-License-Identifier: Apache-2.0
"""Rooms: memory that several tensors of a pass share, side by side.

To allocate a tensor takes the host longer than to launch a kernel. Tensors that come and go at nearly the same time can
be allocated at once, and they are as long as the peak of the pass does not rise by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

ROOM_ALIGNMENT = 256
"""Bytes that a tensor in a room begins at a multiple of. It is a choice of this module, where a GPU reads whole lines;
kernels need no more than `launch.VECTOR_ALIGNMENT`."""


@dataclass(frozen=True)
class Room:
    """Memory that is there from before one step of a pass until after another.

    Attributes:
        first: Index of the first step that needs it.
        last: Index of the last one.
        size: Its bytes.
        offsets: Where each of its tensors begins, by name.
    """

    first: int
    last: int
    size: int = 0
    offsets: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, size: int, first: int, last: int) -> Room:
        """A room of one tensor."""
        return cls(first, last, -(-size // ROOM_ALIGNMENT) * ROOM_ALIGNMENT, {name: 0})

    def joined(self, other: Room) -> Room:
        """A room for the tensors of both."""
        offsets = {name: self.size + offset for name, offset in other.offsets.items()}
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Room(first, last, self.size + other.size, {**self.offsets, **offsets})

    def held(self, step: int) -> int:
        """Its bytes at a step."""
        return self.size if self.first <= step <= self.last else 0


def share(single: Sequence[Room], others: Iterable[Room], steps: int) -> tuple[Room, ...]:
    """Fewer rooms: every one joins the first other that it can join without raising the peak.

    Args:
        single: Rooms of one tensor each, in the order of their first steps.
        others: What else the pass holds, which counts for the peak.
        steps: How many steps the pass has.
    """
    held = [sum(room.held(step) for room in (*single, *others)) for step in range(steps)]
    peak = max(held, default=0)
    rooms: list[Room] = []
    for own in single:
        for index, room in enumerate(rooms):
            both = room.joined(own)
            then = [now + both.held(at) - room.held(at) - own.held(at) for at, now in enumerate(held)]
            if max(then) <= peak:
                rooms[index], held = both, then
                break
        else:
            rooms.append(own)
    return tuple(rooms)
