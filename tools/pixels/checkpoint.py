# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one file per trial, replaced in one step, that holds tensors and plain values only."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from llsa_gen.errors import InputError, explain


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint; whoever reads finds the old one or the new one, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Reads a checkpoint of a trial with the given identity.

    Raises:
        InputError: The file is broken, or another run wrote it.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        written = dict(content["identity"])
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        what, hint = "the checkpoint is broken", f"rm {path}, and its trial starts again"
        raise InputError(explain(what, where=str(path), hint=hint)) from error
    if written != identity:
        names = sorted(name for name in {*written, *identity} if written.get(name) != identity.get(name))
        before = {name: written.get(name) for name in names}
        what = f"this checkpoint was trained with another {', '.join(names)}"
        hint = "resume with the same options, or choose another --out"
        now = f"{', '.join(f'{name} {identity.get(name)}' for name in names)} as asked for now"
        raise InputError(explain(what, where=str(path), value=before, allowed=now, hint=hint))
    return content
