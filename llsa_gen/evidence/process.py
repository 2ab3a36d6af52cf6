# SPDX-License-Identifier: Apache-2.0
"""Running a command with a time limit while its output is read line by line."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

GRACE = 20.0
"""Seconds that a command may take from its last output to its end."""
TAIL = 30
"""Last lines of output that are kept for a failure."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: ``done``, ``failed`` (it ended with an error) or ``stopped`` (its time was over).
        code: Its exit status; None where it was stopped.
        seconds: How long it ran.
        tail: Its last lines.
    """

    status: Literal["done", "failed", "stopped"]
    code: int | None
    seconds: float
    tail: str


def run(
    command: Sequence[str], limit: float, listen: Callable[[str], None], env: Mapping[str, str] | None = None
) -> Outcome:
    """Runs a command, hands every line to ``listen``, and ends it with all that it started when its time is over."""
    started = time.monotonic()
    process = subprocess.Popen(  # noqa: S603  (commands of this package only)
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env=None if env is None else dict(env),
    )
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    tail: deque[str] = deque(maxlen=TAIL)
    in_time = False
    try:
        in_time = _listen(lines, started + limit, listen, tail)
    finally:
        _end(process, GRACE if in_time else 0.0)
    status: Literal["done", "failed", "stopped"] = "done" if process.returncode == 0 else "failed"
    seconds = round(time.monotonic() - started, 3)
    return Outcome(status if in_time else "stopped", process.returncode if in_time else None, seconds, "\n".join(tail))


def _listen(lines: queue.Queue[str | None], end: float, listen: Callable[[str], None], tail: deque[str]) -> bool:
    """Hands lines on until the output ends (True) or the time is over (False)."""
    while (left := end - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return False
        if line is None:
            return True
        tail.append(line[:400])
        listen(line)
    return False


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def _end(process: subprocess.Popen[str], grace: float) -> None:
    """Waits for a process; one that does not end in time is killed together with its children."""
    try:
        process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
