# SPDX-License-Identifier: Apache-2.0
"""Every wrong input gets one error: what is wrong, where, the value, what is allowed, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llsa_gen
from llsa_gen import errors
from llsa_gen.codegen import render, write
from llsa_gen.errors import InfeasibleError, InputError, InputTypeError, LlsaError, SpecError, StaleError
from llsa_gen.errors import UnsupportedError as Unsupported
from llsa_gen.ops import load_package
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.spec import Spec, load_spec, parse
from tests.command_line import SMALL, data_of, has_all_parts

# -- the command line --------------------------------------------------------------------------

FLAGS: dict[str, tuple[str, ...]] = {
    "topk 0": ("--k", "0"),
    "topk float": ("--k", "0.5"),
    "topk not a number": ("--k", "nan"),
    "topk 129": ("--k", "129"),
    "topk negative": ("--k=-3",),
    "topk per level, too many": ("--k", "8,4,2"),
    "topk per level, float": ("--k", "8,0.5"),
    "topk per level, unknown depth": ("--k", "8,4", "--levels", "auto", "--seq-len", "4096"),
    "block 0": ("--block", "0"),
    "block 1": ("--block", "1"),
    "block 3": ("--block", "3"),
    "block 256": ("--block", "256"),
    "block word": ("--block", "big"),
    "block float": ("--block", "16.0"),
    "levels 0": ("--levels", "0"),
    "levels 7": ("--levels", "7"),
    "levels word": ("--levels", "x"),
    "auto without a length": ("--levels", "auto"),
    "auto with a word for a length": ("--levels", "auto", "--seq-len", "long"),
    "length without auto": ("--seq-len", "4096"),
    "dtype": ("--dtype", "fp8"),
    "target": ("--target", "sm9"),
    "target by the name of a GPU": ("--target", "h100"),
    "target empty": ("--target", ""),
    "enrichment": ("--enrichment", "all"),
    **{f"head dim {dim}": (f"--head-dim={dim}",) for dim in ("0", "20", "264", "-8", "wide")},
    **{f"value dim {dim}": (f"--value-dim={dim}",) for dim in ("0", "20", "264", "-8", "wide")},
    "expression malformed": ("--k", "max(4,"),
    "expression oversize": ("--k", "+".join(["1"] * 150)),
    "expression empty": ("--k", ""),
    "expression that is code": ("--k", "__import__('os')"),
    "expression negative": ("--k", "l - 9"),
    "expression fractional": ("--k", "b / 3"),
    "expression divided by zero": ("--k", "1 // (l - 1)"),
    "expression nested too deeply": ("--k", "(" * 40 + "1" + ")" * 40),
    "weight malformed": ("--weight", "b**"),
    "weight negative": ("--weight", "-c"),
    "weight zero": ("--weight", "0"),
    "weight infinite": ("--weight", "1e400"),
    "weight overflowing": ("--weight", "c**60 * c**60"),
    "weight complex": ("--weight", "(-c)**0.5"),
    "name of nothing": ("--spec", "nothing"),
    "slug out of bounds": ("--spec", "llsa_l9_b16_k8_d64_fp32"),
    "slug not canonical": ("--spec", "llsa_l2_b16_k8x8_d64_fp32"),
    "digest of nothing": ("--spec", "llsa_l2_b16_k8_d64_fp32_x00000000"),
    "name without a file": ("--name", "x"),
    "file and catalogue": ("--from", "a.toml", "--spec", "pixel_dit"),
    "unknown option": ("--blok", "16"),
    "option without its value": ("--block",),
    "stray word": ("extra",),
}


@pytest.mark.parametrize("args", FLAGS.values(), ids=FLAGS)
def test_wrong_flags(args: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    error = data_of("build", "--out", out, *args, exit_code=2)["error"]
    assert has_all_parts(error["message"]), error["message"]
    assert issubclass(getattr(errors, error["type"], SpecError), LlsaError) and not out.exists()


FILES: dict[str, str] = {
    "malformed": "[specs.a\n",
    "ends too early": '[specs.a]\nweight = """b',
    "not UTF-8": "[specs.a]\nabout = '\udcff'\n",
    "empty": "",
    "nested too deeply": "a = " + "[" * 9999,
    "outside a table": "block = 16\n",
    "not a table": "[specs]\na = 1\n",
    "unknown field": "[specs.a]\nzzz = 16\n",
    "wrong type": '[specs.a]\nblock = "16"\n',
    "wrong value": "[specs.a]\ntopk = inf\n",
    "wrong gradient": "[specs.a]\ngradient = 1\n",
    "expression that is no text": "[specs.a]\nweight = 1\n",
    "two lines about it": '[specs.a]\nabout = "one\\ntwo"\n',
    "targets as a text": '[specs.a]\ntargets = "sm90"\n',
    "no targets": "[specs.a]\ntargets = []\n",
    "another name": "[specs.zzz]\nblock = 16\n",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_wrong_files(text: str, tmp_path: Path) -> None:
    file = tmp_path / "specs.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    error = data_of("plan", "--from", file, "--name", "a", exit_code=2)["error"]
    assert has_all_parts(error["message"]) and str(file) in error["message"], error["message"]
    assert error["type"] == "SpecError"


@pytest.mark.parametrize("name", ["nothing.toml", ".", "below/specs.toml"])
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "below").write_text("a file")
    error = data_of("plan", "--from", tmp_path / name, exit_code=2)["error"]
    assert error["type"] == "SpecError" and has_all_parts(error["message"]), error["message"]


OTHER_VERBS: dict[str, tuple[str, ...]] = {
    "verb": ("biuld",),
    "plan tokens": ("plan", "--tokens", "0"),
    "plan batch": ("plan", "--batch", "many"),
    "plan heads": ("plan", "--heads", "1.5"),
    "check name": ("check", "nothing"),
    "check folder": ("check", "--out", "nowhere"),
    "clean name": ("clean", "--spec", "nothing"),
    "clean folder": ("clean", "--out", "nowhere"),
    "demo size": ("demo", "--size", "3"),
    "demo size, a word": ("demo", "--size", "large"),
    "demo heads": ("demo", "--heads", "99"),
}


@pytest.mark.parametrize("args", OTHER_VERBS.values(), ids=OTHER_VERBS)
def test_wrong_flags_of_other_verbs(args: tuple[str, ...]) -> None:
    message = data_of(*args, exit_code=2)["error"]["message"]
    assert has_all_parts(message), message


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    error = data_of("build", *SMALL, "--out", tmp_path / "out", exit_code=6)["error"]
    assert error["type"] == "OutputError" and has_all_parts(error["message"]), error["message"]


# -- Python ------------------------------------------------------------------------------------

SPEC = Spec(levels=2, block=4, topk=2, head_dim=16, dtype="fp32")
X = torch.zeros(1, 2, 40, 16)
IDX = [torch.zeros(1, 2, -(-40 // 4**level), 2, dtype=torch.int32) for level in (1, 2)]
RAGGED = [torch.zeros(2, length, 16) for length in (5, 7)]


def call(q: Any = X, k: Any = X, v: Any = X, **options: Any) -> Any:
    return llsa_gen.llsa_attention(q, k, v, **{"block_size": 4, "topk": 2, "num_levels": 2, **options})


def attend(idx: Any, **options: Any) -> Any:
    return llsa_gen.llsa_attend(X, X, X, idx, **{"block_size": 4, **options})


def op(*tensors: Any) -> Any:
    loaded: Any = llsa_gen.load(SPEC.slug)
    return loaded.attend(*tensors) if len(tensors) == 4 else loaded.attention(*tensors)


CALLS: dict[str, tuple[Callable[[], Any], type[LlsaError]]] = {
    "spec: topk True": (lambda: Spec(topk=True), SpecError),
    "spec: topk None": (lambda: Spec(topk=None), SpecError),  # type: ignore[arg-type]
    "spec: block text": (lambda: Spec(block="16"), SpecError),  # type: ignore[arg-type]
    "spec: weight None": (lambda: Spec(weight=None), SpecError),  # type: ignore[arg-type]
    "spec: unknown field": (lambda: Spec.from_fields({"zzz": 1}), SpecError),
    "spec: level 3 of 2": (lambda: SPEC.level_weight(3, 1), SpecError),
    "spec: too many tokens": (lambda: SPEC.level_weight(1, 5), SpecError),
    "spec: expression": (lambda: parse(None, ("b",)), SpecError),
    "spec: file": (lambda: load_spec("nowhere.toml", "a"), SpecError),
    "target: shared memory": (
        lambda: render(Spec(block=128, topk=128, head_dim=256, dtype="fp32")).require_feasible("sm80"),
        InfeasibleError,
    ),
    "call: topk 0": (lambda: call(topk=0), SpecError),
    "call: topk float": (lambda: call(topk=0.5), SpecError),
    "call: topk 129": (lambda: call(topk=129), SpecError),
    "call: topk per level": (lambda: call(topk=(2, 2, 2)), SpecError),
    "call: topk per level, auto": (lambda: call(topk=(2, 2), num_levels="auto"), SpecError),
    "call: block": (lambda: call(block_size=3), SpecError),
    "call: levels 0": (lambda: call(num_levels=0), SpecError),
    "call: levels 7": (lambda: call(num_levels=7), SpecError),
    "call: levels x": (lambda: call(num_levels="x"), SpecError),
    "call: enrichment": (lambda: call(enrichment="all"), SpecError),
    "call: weight": (lambda: call(weight="-c"), SpecError),
    "call: layout": (lambda: call(layout="NHD"), InputError),
    "call: scale": (lambda: call(scale=-1.0), InputError),
    "call: scale text": (lambda: call(scale="big"), InputTypeError),
    "call: head dim": (lambda: call(*[torch.zeros(1, 2, 40, 20)] * 3), SpecError),
    "call: wide head dim": (lambda: call(*[torch.zeros(1, 2, 40, 264)] * 3), SpecError),
    "call: value dim": (lambda: call(v=torch.zeros(1, 2, 40, 20)), SpecError),
    "call: no tensor": (lambda: call(q=[1.0]), InputTypeError),
    "call: rank": (lambda: call(q=X[0]), InputError),
    "call: shapes": (lambda: call(v=X[:, :, :8]), InputError),
    "call: batches": (lambda: call(k=X.repeat(2, 1, 1, 1)), InputError),
    "call: lengths": (lambda: call(k=X[:, :, :8], v=X[:, :, :8]), Unsupported),
    "call: grouped heads": (lambda: call(k=X[:, :1], v=X[:, :1]), Unsupported),
    "call: dtypes": (lambda: call(k=X.half()), InputTypeError),
    "call: double": (lambda: call(*[X.double()] * 3), InputTypeError),
    "call: integers": (lambda: call(*[X.int()] * 3), InputTypeError),
    "call: devices": (lambda: call(k=X.to("meta")), InputError),
    "call: sparse": (lambda: call(q=X.to_sparse()), Unsupported),
    "call: nested": (lambda: call(*[torch.nested.nested_tensor(RAGGED)] * 3), Unsupported),
    "call: tangent": (lambda: torch.func.jvp(lambda x: call(q=x), (X,), (X,)), Unsupported),
    "call: nested, jagged": (
        lambda: call(*[torch.nested.nested_tensor([x.mT for x in RAGGED], layout=torch.jagged)] * 3),
        Unsupported,
    ),
    "lists: none": (lambda: attend([]), InputTypeError),
    "lists: one tensor": (lambda: attend(IDX[0]), InputTypeError),
    "lists: numbers": (lambda: attend([1, 2]), InputTypeError),
    "lists: rank": (lambda: attend([IDX[0][0], IDX[1]]), InputError),
    "lists: nested": (lambda: attend([torch.nested.nested_tensor(RAGGED), IDX[1]]), InputTypeError),
    "lists: int64": (lambda: attend([x.long() for x in IDX]), InputTypeError),
    "lists: wrong level": (lambda: attend(IDX[::-1]), InputError),
    "lists: beyond the last node": (lambda: attend([IDX[0], IDX[1] + 3]), InputError),
    "lists: below -1": (lambda: attend([IDX[0] - 2, IDX[1]]), InputError),
    "lists: device": (lambda: attend([IDX[0].to("meta"), IDX[1]]), InputError),
    "op: one list too few": (lambda: op(X, X, X, IDX[:1]), InputError),
    "op: head dim": (lambda: op(*[torch.zeros(1, 2, 40, 24)] * 3), InputError),
    "op: dtype": (lambda: op(*[X.half()] * 3), InputTypeError),
    "op: nested": (lambda: op(*[torch.nested.nested_tensor(RAGGED)] * 3), Unsupported),
}


@pytest.mark.parametrize(("wrong", "kind"), CALLS.values(), ids=CALLS)
def test_wrong_calls(wrong: Callable[[], Any], kind: type[LlsaError]) -> None:
    with pytest.raises(LlsaError) as caught:
        wrong()
    assert type(caught.value) is kind
    assert has_all_parts(str(caught.value)), str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_broken_manifest(text: str, tmp_path: Path) -> None:
    place = write(render(SPEC), tmp_path).path
    (place / "manifest.json").write_text(text)
    with pytest.raises(StaleError) as caught:
        load_package(place)
    assert has_all_parts(str(caught.value)), str(caught.value)
    found = data_of("check", "--out", tmp_path, exit_code=1)["findings"]
    assert [finding["problem"] for finding in found] == ["broken"] and has_all_parts(found[0]["diff"])
