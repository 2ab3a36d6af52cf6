# SPDX-License-Identifier: Apache-2.0
"""How the tensors of a plan are called, and how a stage finds one among its inputs."""

from __future__ import annotations

from collections.abc import Iterable

from llsa_gen.errors import InternalError, explain

OPERANDS = ("q", "k", "v")
CARRY = ("o_carry", "lse_carry")
RESULTS = ("o", "lse")
GIVEN = (*OPERANDS, *RESULTS, "o_grad", "lse_grad")
"""What a backward pass starts from: operands and results of the forward pass, and the gradients of the results."""
GRADIENTS = ("q_grad", "k_grad", "v_grad")
DELTA = "delta"
Q_GRAD_CARRY = "q_grad_carry"


def pool(operand: str, level: int) -> str:
    """The means of one level, before they are packed."""
    return f"{operand}_pool_{level}"


def pools(operand: str) -> str:
    """The means of every level in one tensor, level 1 first."""
    return f"{operand}_pools"


def sums(operand: str, level: int) -> str:
    """The fp32 sums of one level, read by the next pass over the pyramid."""
    return f"{operand}_sums_{level}"


def lists(level: int) -> str:
    """The selected key nodes of one level."""
    return f"idx{level}"


def counts(level: int) -> str:
    """How often every chunk of rows names every node of a level; later the places where its entries go."""
    return f"counts{level}"


def offsets(level: int) -> str:
    """Where the inverted list of every node of a level begins, and their end."""
    return f"offsets{level}"


def rows(level: int) -> str:
    """The rows that selected each node of a level, node after node."""
    return f"rows{level}"


def part_offsets(level: int) -> str:
    """Where the parts of every long inverted list of a level begin, and their end."""
    return f"part_offsets{level}"


def part_nodes(level: int) -> str:
    """The node whose inverted list each part belongs to, -1 behind the last."""
    return f"part_nodes{level}"


def gradient(operand: str, level: int) -> str:
    """The gradient of the rows of a level, what comes from the levels above it included."""
    return f"{operand}_grad_{level}" if level else f"{operand}_grad"


def parts(operand: str, level: int) -> str:
    """What the parts of long lists add to the gradient of the rows of a level."""
    return f"{operand}_parts_{level}"


def side(operand: str) -> str:
    """The side whose length an operand has: ``q`` for queries, ``k`` for keys and values."""
    return "q" if operand == "q" else "k"


def width(operand: str) -> str:
    """The extent of an operand's rows."""
    return "Dv" if operand == "v" else "D"


def nodes(level: int, of_side: str) -> str:
    """The extent of an axis over the nodes of a level; level 0 is the tokens."""
    return f"n{level}{of_side}" if level else f"N{of_side}"


def rows_of(names: Iterable[str], operand: str, level: int) -> str:
    """The tensor among ``names`` that holds the rows of ``operand`` at ``level``.

    Raises:
        InternalError: None of them does.
    """
    wanted = (pools(operand), pool(operand, level)) if level else (operand,)
    for name in names:
        if name in wanted:
            return name
    raise InternalError(
        explain(f"a stage needs level {level} of {operand} but does not read it", value=tuple(names), allowed=wanted)
    )
