# SPDX-License-Identifier: Apache-2.0
"""The schedule of one kernel: what may change without changing numbers beyond rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from llsa_gen.targets import Language

TAKEN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "coarsen": ("threads",),
        "delta": ("rows", "threads"),
        "invert_index": ("threads",),
        "merge_grad_kv": ("keys", "threads"),
    }
)
"""What the factories of some kinds of kernel take of a schedule; all others take everything."""


TILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"coarsen": (), "invert_index": (), "select": ("rows",), "delta": ("rows",), "merge_grad_kv": ("keys",)}
)
"""What the factories of some kinds of CPU kernel take; all others take rows and keys."""


@dataclass(frozen=True, order=True)
class Schedule:
    """Tile sizes and resources of one kernel.

    Attributes:
        rows: Queries, or query nodes, of a tile; 0 where the kernel has no such choice.
        keys: Keys, or candidates, of a tile; 0 where the kernel has no such choice.
        threads: Threads of a GPU block.
        stages: Tiles in flight in a pipelined loop; 0 for a plain loop, as on a CPU.
    """

    rows: int = 0
    keys: int = 0
    threads: int = 128
    stages: int = 0

    def arguments(self, kind: str, language: Language = "tilelang") -> dict[str, int]:
        """The keyword arguments that the factory of a kernel kind takes, in the language that it is written in."""
        fields = asdict(self)
        taken = TILES.get(kind, ("rows", "keys")) if language == "tvm" else TAKEN.get(kind, tuple(fields))
        return {name: fields[name] for name in taken}
