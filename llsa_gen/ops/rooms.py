# SPDX-License-Identifier: Apache-2.0
"""Rooms: memory that several tensors of a pass share, side by side or one after the other.

To allocate a tensor takes the host longer than to launch a kernel. So tensors share memory, results lend theirs to what
is gone before they are written, and memory is there before it is needed: all as long as the peak of the pass does not
rise by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

ROOM_ALIGNMENT = 256
"""Bytes that a tensor in a room begins at a multiple of. It is a choice of this module, where a GPU reads whole lines;
kernels need no more than `launch.VECTOR_ALIGNMENT`."""


class Tenant(NamedTuple):
    """A tensor that needs memory.

    Attributes:
        name: Its name.
        size: Its bytes.
        first: Index of the first step of the pass that needs it.
        last: Index of the last one.
    """

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Tenant) -> bool:
        """Whether a step needs both."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Room:
    """Memory that is there from before one step of a pass until after another.

    Attributes:
        first: Index of the first step that finds it there.
        last: Index of the last one.
        size: Its bytes.
        tenants: Its tensors, each with the byte at which it begins.
        grows: Whether its size follows its tensors, up to whole `ROOM_ALIGNMENT`; that of a result does not.
    """

    first: int
    last: int
    size: int
    tenants: tuple[tuple[Tenant, int], ...]
    grows: bool = True

    @classmethod
    def of(cls, tenant: Tenant, *, grows: bool = True) -> Room:
        """A room for one tensor."""
        size = _aligned(tenant.size) if grows else tenant.size
        return cls(tenant.first, tenant.last, size, ((tenant, 0),), grows)

    @property
    def offsets(self) -> dict[str, int]:
        """Where each of its tensors begins, by name."""
        return {tenant.name: offset for tenant, offset in self.tenants}

    def taking(self, new: Tenant) -> Room | None:
        """The room with one more tensor, as far at its front as meets no other; None where there is no place."""
        met = [(offset, offset + tenant.size) for tenant, offset in self.tenants if tenant.meets(new)]
        starts = sorted({0, *(_aligned(end) for _, end in met)})
        free = (at for at in starts if all(at + new.size <= begin or end <= at for begin, end in met))
        offset = next(free)  # behind the last one there is nobody
        if offset + new.size > self.size and not self.grows:
            return None
        size = max(self.size, _aligned(offset + new.size)) if self.grows else self.size
        first, last = min(self.first, new.first), max(self.last, new.last)
        return replace(self, first=first, last=last, size=size, tenants=(*self.tenants, (new, offset)))

    def held(self, step: int) -> int:
        """Its bytes at a step."""
        return self.size if self.first <= step <= self.last else 0


def share(
    results: Sequence[Tenant], others: Sequence[Tenant], steps: int, copies: Sequence[Tenant] = ()
) -> tuple[Room, ...]:
    """Few rooms, and early ones, that together never hold more than the tensors alone do at their peak.

    Args:
        results: Tensors that outlast the pass: each has a room of its size, which it begins.
        others: What else a pass makes, in the order of first steps.
        steps: How many steps the pass has.
        copies: What a pass holds besides, which counts for the peak but has no room here.
    """

    def peak(rooms: Iterable[Room]) -> int:
        every = [*rooms, *map(Room.of, copies)]
        return max((sum(room.held(step) for room in every) for step in range(steps)), default=0)

    rooms = [*(Room.of(tenant, grows=False) for tenant in results), *map(Room.of, others)]
    most = peak(rooms)
    for tenant in others:
        own = next(at for at, room in enumerate(rooms) if room.tenants[0][0] is tenant)
        for at, room in enumerate(rooms[:own]):
            both = room.taking(tenant)
            if both is not None and peak(then := [*rooms[:at], both, *rooms[at + 1 : own], *rooms[own + 1 :]]) <= most:
                rooms = then
                break
    for at, room in enumerate(rooms):
        if peak(then := [*rooms[:at], replace(room, first=0), *rooms[at + 1 :]]) <= most:
            rooms = then
    return tuple(rooms)


def _aligned(size: int) -> int:
    return -(-size // ROOM_ALIGNMENT) * ROOM_ALIGNMENT
