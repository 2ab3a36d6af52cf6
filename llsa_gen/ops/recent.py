# SPDX-License-Identifier: Apache-2.0
"""A bounded table of what was made for a key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """What was made last, by key; the oldest goes first.

    There is no lock that a fork could inherit held: every change is one step of the interpreter, as long as keys
    compare without code of their own.

    Args:
        most: How many keys it holds.

    Attributes:
        get: The value of a key, or None.
        clear: Forgets everything.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._made: OrderedDict[Hashable, V] = OrderedDict()
        self.get = self._made.get
        self.clear = self._made.clear

    def __len__(self) -> int:
        return len(self._made)

    def keep(self, key: Hashable, value: V) -> V:
        """Keeps a value, and returns it."""
        self._made[key] = value
        if len(self._made) > self.most:
            self._made.popitem(last=False)
        return value
