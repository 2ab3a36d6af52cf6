# SPDX-License-Identifier: Apache-2.0
"""The forward pass against dense attention in one process: checked, then timed in turn, then stage by stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llsa_gen.evidence import timing
from llsa_gen.evidence.compare import attention, judge, select
from llsa_gen.evidence.prebuilt import main_spec
from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.evidence.timing import Call, Rounds
from llsa_gen.ir import names
from llsa_gen.ops.engine import kernels_of
from llsa_gen.ops.execute import Step, run_steps, widen
from llsa_gen.ops.state import Run
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv, clustered_qkv

BACKENDS = {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}
BASELINE = "sdpa_flash"
ROWS = 64
"""Rows of the dense result that are checked."""


@dataclass(frozen=True)
class Case:
    """One size that is timed."""

    batch: int
    heads: int
    tokens: int


CASES = (Case(1, 6, 65_536), Case(1, 6, 16_384))
TINY = (Case(1, 2, 300),)


def work(setting: Setting) -> Results:
    """Yields a check, times and stage times per size, and the host's share of a call."""
    spec = main_spec()
    cases = TINY if setting.tiny else CASES
    rounds = Rounds(2, 1) if setting.tiny else Rounds(seconds=setting.limit / (3 * len(cases)))
    for case in cases:
        qkv = clustered_qkv(spec, case.batch, case.heads, case.tokens, device=setting.device)
        said = {"slug": spec.slug, "shape": [case.batch, case.heads, case.tokens]}
        with torch.inference_mode():
            checked = check(spec, qkv)
            yield said | {"kind": "check", **checked}
            if checked["right"]:
                yield said | {"kind": "forward", **_forward(spec, qkv, setting.device, rounds)}
                yield said | {
                    "kind": "stages",
                    **_stages(spec, qkv, setting, replace(rounds, seconds=rounds.seconds / 4)),
                }
    yield {"kind": "host", **_host(spec, setting)}


def check(spec: Spec, qkv: Qkv) -> dict[str, Any]:
    """Judges the first head of the whole problem by the error rule; its other heads run the same code."""
    q, k, v = qkv
    o, lse = attention(spec, q, k, v)
    idx = select(spec, q, k)
    first = (q[:1, :1], k[:1, :1], v[:1, :1])
    return judge(spec, first, tuple(entries[:1, :1] for entries in idx), (o[:1, :1], lse[:1, :1]))


def dense_error(qkv: Qkv, o: Tensor) -> float:
    """Largest distance of some rows of a dense result to fp64, over the first head."""
    q, k, v = (x[0, 0].double() for x in qkv)
    rows = torch.linspace(0, q.shape[0] - 1, min(ROWS, q.shape[0]), device=q.device).long()
    exact = (q[rows] @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return float((o[0, 0, rows].double() - exact).abs().max())


def _forward(spec: Spec, qkv: Qkv, device: str, rounds: Rounds) -> dict[str, Any]:
    """Times of LLSA and of every dense backend that runs here, and the speed-up over each."""
    q, k, v = qkv
    calls: dict[str, Call] = {"llsa": lambda: attention(spec, q, k, v)}
    notes: dict[str, Any] = {}
    captured = graph_of(calls["llsa"], device)
    if isinstance(captured, str):
        notes["llsa_graph"] = captured
    else:
        calls["llsa_graph"] = captured
    for name, backend in BACKENDS.items():
        call = _dense(qkv, backend)
        try:
            notes[name] = {"dense_error": dense_error(qkv, call())}
        except RuntimeError as error:
            notes[name] = f"not available: {str(error)[:300]}"
        else:
            calls[name] = call
    times = timing.interleaved(calls, device, rounds)
    faster = {
        f"{mine}_over_{other}": times[other]["median"] / times[mine]["median"]
        for mine in ("llsa", "llsa_graph")
        for other in BACKENDS
        if mine in times and other in times
    }
    return {"seconds": times, "speed_up": faster, "notes": notes}


def _dense(qkv: Qkv, backend: SDPBackend) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(*qkv)

    return call


def graph_of(call: Call, device: str) -> Call | str:
    """A call captured as a CUDA graph, which takes the host out of its time, or why it cannot be."""
    if device != "cuda":
        return "graphs need a GPU"
    try:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        return f"could not be captured: {str(error)[:300]}"
    return graph.replay


def prepared(spec: Spec, qkv: Qkv, setting: Setting) -> tuple[tuple[Step, ...], Run]:
    """The steps of a forward pass and their tensors after one pass, so that each can be run again by itself."""
    steps = tuple(Step(step.stage, step.kernel) for step in kernels_of(spec, setting.runs, names.RESULTS))
    tensors = {name: widen(x) for name, x in zip("qkv", qkv, strict=True)}
    run = Run(spec, qkv[0].dtype, 1.0 / math.sqrt(spec.head_dim), tokens_first=False, tensors=tensors)
    run_steps(steps, run)
    return steps, run


def _stages(spec: Spec, qkv: Qkv, setting: Setting, rounds: Rounds) -> dict[str, Any]:
    steps, run = prepared(spec, qkv, setting)
    calls: dict[str, Call] = {step.stage.name: lambda step=step: run_steps((step,), run) for step in steps}  # type: ignore[misc]
    times = timing.interleaved(calls, setting.device, rounds)
    return {"seconds": times, "sum_of_medians": sum(found["median"] for found in times.values())}


def _host(spec: Spec, setting: Setting) -> dict[str, Any]:
    """Time until a call on a short sequence returns, which the host alone decides on a GPU."""
    q, k, v = clustered_qkv(spec, 1, 1, 64, device=setting.device)
    with torch.inference_mode():
        attention(spec, q, k, v)
        seconds = timing.host_seconds(lambda: attention(spec, q, k, v), setting.device, 5 if setting.tiny else 200)
    return {"seconds": seconds, "tokens": 64}
