# SPDX-License-Identifier: Apache-2.0
"""What a run is made of, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llsa_gen.errors import InputError, SpecError, ToolMissingError, did_you_mean, explain
from llsa_gen.spec import Spec
from tools.pixels.arms import ARMS, fields_of

BOUNDS = {
    "size": (8, 128),
    "steps": (1, 1_000_000),
    "seeds": (1, 100),
    "batch": (1, 1024),
    "width": (16, 4096),
    "depth": (1, 64),
    "heads": (1, 64),
}
"""Least and most of the plain numbers; the photographs have no more pixels than the largest size needs."""

_NAMES = {"block": "--block", "topk": "--k", "levels": "--levels", "head_dim": "--width / --heads"}
"""What the fields of a spec are called on the command line."""

_PER_RUN = ("steps", "seeds", "arms", "out", "device", "sample_count")
"""Fields that may change when a run is resumed: they choose trials and where they run, not what a trial computes."""


@dataclass(frozen=True)
class Options:
    """One run: every arm is trained from every seed.

    Attributes:
        size: Side of a crop; every pixel is a token.
        steps: Training steps of a trial.
        seeds: How many seeds: 0, 1, ….
        arms: Names of the kinds of attention to compare.
        levels: Depth of the LLSA hierarchy.
        block: Tokens per block and branching factor.
        k: Selected blocks of a query block on each level.
        batch: Crops per training step.
        width: Features of a token.
        depth: Transformer blocks.
        heads: Attention heads.
        out: Folder of everything that is written.
        device: "cpu" or "cuda".
        sample_count: Pictures to draw with every arm.
        held_out_count: Crops of the held-out regions that the loss is measured on.
        evaluate_every: Steps between two measurements on held-out crops, which also write a checkpoint.
        learning_rate: Of AdamW, after a linear warm-up.
    """

    size: int = 32
    steps: int = 300
    seeds: int = 3
    arms: tuple[str, ...] = tuple(ARMS)
    levels: int = 2
    block: int = 4
    k: int = 4
    batch: int = 4
    width: int = 64
    depth: int = 3
    heads: int = 2
    out: Path = Path("pixels")
    device: str = "cpu"
    sample_count: int = 8
    held_out_count: int = 27
    evaluate_every: int = 50
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            _check_number(name, getattr(self, name), least, most)
        _check_arms(self.arms)
        _check_heads(self.width, self.heads)
        for arm in self.arms:
            if fields_of(arm) is not None:
                _check_spec(self.spec_fields, fields_of(arm) or {})
        _check_device(self.device)

    @property
    def tokens(self) -> int:
        return self.size**2

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def spec_fields(self) -> dict[str, int]:
        """The fields of the LLSA spec that all arms share."""
        return {"levels": self.levels, "block": self.block, "topk": self.k, "head_dim": self.head_dim}

    @property
    def coarsest_nodes(self) -> int:
        """Nodes of the coarsest level; selection has a choice only when they are more than K."""
        return -(-self.tokens // self.block**self.levels)

    def identity(self) -> dict[str, int | float]:
        """What must agree for a trial to be continued: everything that its numbers depend on."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _PER_RUN}


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        what = f"a run cannot have this {name}"
        hint = f"--{name} {max(least, min(most, value))}" if type(value) is int else None
        raise InputError(explain(what, where=f"--{name}", value=value, allowed=f"{least} to {most}", hint=hint))


def _check_arms(arms: tuple[str, ...]) -> None:
    for arm in arms:
        if arm not in ARMS:
            what, hint = "there is no such arm", did_you_mean(arm, ARMS) or f"--arms {' '.join(ARMS)}"
            raise InputError(explain(what, where="--arms", value=arm, allowed=ARMS, hint=hint))
    if not arms or len(set(arms)) < len(arms):
        hint = f"--arms {' '.join(dict.fromkeys(arms) if arms else ARMS)}"
        raise InputError(explain("name every arm once", where="--arms", value=arms, allowed=ARMS, hint=hint))


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        what, hint = "the heads do not share the width evenly", f"--width {-(-width // heads) * heads}"
        raise InputError(
            explain(what, where="--heads", value=heads, allowed=f"a divisor of --width {width}", hint=hint)
        )


def _check_spec(shared: dict[str, int], own: dict[str, str]) -> None:
    try:
        Spec(dtype="fp32", **shared, **own)  # type: ignore[arg-type]
    except SpecError as error:
        message = str(error)
        for field, option in _NAMES.items():
            message = message.replace(f"spec field {field}", option)
        raise SpecError(message) from None


def _check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise InputError(explain("no such device", where="--device", value=device, allowed=("cpu", "cuda")))
    if device == "cuda" and not torch.cuda.is_available():
        what = f"torch {torch.__version__} sees no CUDA device here"
        raise ToolMissingError(explain(what, where="--device", value=device, hint="--device cpu"))
