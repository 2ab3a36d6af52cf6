# SPDX-License-Identifier: Apache-2.0
"""Forward and training passes against dense attention in one process: checked, then timed in turn, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llsa_gen.evidence.calls import attention, leaves, upward_gradients
from llsa_gen.evidence.judge import examine
from llsa_gen.evidence.passes import Pass, passes
from llsa_gen.evidence.prebuilt import main_spec
from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.ops.execute import repeat_steps
from llsa_gen.spec import Spec
from llsa_gen.timing import Call, Rounds, host_seconds, in_turns
from llsa_gen.workloads import Qkv, clustered_qkv

BACKENDS = {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}
ROWS = 64
"""Rows of the dense results that are checked."""

Work = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """One size that is timed."""

    batch: int
    heads: int
    tokens: int


CASES = (Case(1, 6, 65_536), Case(1, 6, 16_384))
TINY = (Case(1, 2, 300),)


@dataclass(frozen=True)
class Contest:
    """The same work, done by LLSA and by dense attention.

    Attributes:
        mine: LLSA.
        dense: Dense attention by whatever backend is allowed.
        error: The distance of some of the dense results to fp64.
    """

    mine: Work
    dense: Work
    error: Callable[[Sequence[Tensor]], float]


def work(setting: Setting) -> Results:
    """Yields a check, times and stage times per size, and the host's share of a call."""
    spec = main_spec()
    cases = TINY if setting.tiny else CASES
    rounds = Rounds(count=2) if setting.tiny else Rounds(setting.limit / (4 * len(cases)))
    for case in cases:
        qkv = clustered_qkv(spec, case.batch, case.heads, case.tokens, device=setting.device)
        said = {"slug": spec.slug, "shape": [case.batch, case.heads, case.tokens]}
        checked = examine(spec, qkv, first_head=True)
        yield said | {"kind": "check", **checked}
        if checked["right"]:
            with torch.inference_mode():
                yield said | {"kind": "forward", **_against(forward(spec, qkv), setting.device, rounds)}
            yield said | {"kind": "training", **_against(training(spec, qkv), setting.device, rounds)}
            with torch.inference_mode():
                for one in passes(spec, qkv, setting.runs):
                    times = _stages(one, setting.device, replace(rounds, seconds=rounds.seconds / 4))
                    yield said | {"kind": "stages", "direction": one.direction, **times}
    yield {"kind": "host", **_host(spec, setting)}


def forward(spec: Spec, qkv: Qkv) -> Contest:
    """Attention alone."""
    return Contest(
        lambda: attention(spec, *qkv),
        lambda: (F.scaled_dot_product_attention(*qkv),),
        lambda results: dense_error(qkv, results[0]),
    )


def training(spec: Spec, qkv: Qkv) -> Contest:
    """Attention and its gradients."""
    given, (o_grad, _) = leaves(qkv), upward_gradients(qkv[2])

    def gradients(o: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(o, given, o_grad)

    return Contest(
        lambda: gradients(attention(spec, *given)[0]),
        lambda: gradients(F.scaled_dot_product_attention(*given)),
        lambda results: dense_gradient_error(qkv, o_grad, results[0]),
    )


def dense_error(qkv: Qkv, o: Tensor) -> float:
    """Largest distance of some rows of a dense result to fp64, over the first head."""
    q, k, v = (x[0, 0].double() for x in qkv)
    rows = _rows(q)
    exact = (q[rows] @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return float((o[0, 0, rows].double() - exact).abs().max())


def dense_gradient_error(qkv: Qkv, o_grad: Tensor, q_grad: Tensor) -> float:
    """Largest distance of some rows of the dense gradient of q to fp64, over the first head."""
    q, k, v = (x[0, 0].double() for x in qkv)
    rows, scale = _rows(q), 1.0 / math.sqrt(q.shape[-1])
    shares = (q[rows] @ k.mT * scale).softmax(-1)
    reached = o_grad[0, 0, rows].double() @ v.mT
    exact = shares * (reached - (shares * reached).sum(-1, keepdim=True)) @ k * scale
    return float((q_grad[0, 0, rows].double() - exact).abs().max())


def _rows(q: Tensor) -> Tensor:
    """Some rows of [N,D], evenly spread."""
    return torch.linspace(0, q.shape[0] - 1, min(ROWS, q.shape[0]), device=q.device).long()


def _against(contest: Contest, device: str, rounds: Rounds) -> dict[str, Any]:
    """Times of LLSA and of every dense backend that runs here, and the speed-up over each."""
    calls: dict[str, Call] = {"llsa": contest.mine}
    notes: dict[str, Any] = {}
    captured = graph_of(contest.mine, device)
    if isinstance(captured, str):
        notes["llsa_graph"] = captured
    else:
        calls["llsa_graph"] = captured
    for name, backend in BACKENDS.items():
        call = partial(_by, backend, contest.dense)
        try:
            notes[name] = {"dense_error": contest.error(call())}
        except RuntimeError as error:
            notes[name] = f"not available: {str(error)[:300]}"
        else:
            calls[name] = call
    times = in_turns(calls, rounds, device)
    faster = {
        f"{mine}_over_{other}": times[other]["median"] / times[mine]["median"]
        for mine in ("llsa", "llsa_graph")
        for other in BACKENDS
        if mine in times and other in times
    }
    return {"seconds": times, "speed_up": faster, "notes": notes}


def _by(backend: SDPBackend, dense: Work) -> Sequence[Tensor]:
    with sdpa_kernel([backend]):
        return dense()


def graph_of(call: Work, device: str) -> Call | str:
    """A call captured as a CUDA graph, which takes the host out of its time, or why it cannot be."""
    if device != "cuda":
        return "graphs need a GPU"
    try:
        expected = call()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = call()
        graph.replay()
    except RuntimeError as error:
        return f"could not be captured: {str(error)[:300]}"
    if not all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True)):
        return "a replay gives other bits than a call"
    return graph.replay


def _stages(one: Pass, device: str, rounds: Rounds) -> dict[str, Any]:
    calls: dict[str, Call] = {name: repeat_steps(steps, one.run) for name, steps in one.repeatables().items()}
    times = in_turns(calls, rounds, device)
    return {"seconds": times, "sum_of_medians": sum(found["median"] for found in times.values())}


def _host(spec: Spec, setting: Setting) -> dict[str, Any]:
    """Time until a call on a short sequence returns, which the host alone decides on a GPU."""
    qkv = clustered_qkv(spec, 1, 1, 64, device=setting.device)
    count = 5 if setting.tiny else 200
    trained = training(spec, qkv).mine
    with torch.inference_mode():
        attention(spec, *qkv)
        seconds = host_seconds(lambda: attention(spec, *qkv), setting.device, count)
    trained()
    return {"seconds": seconds, "training": host_seconds(trained, setting.device, count), "tokens": 64}
