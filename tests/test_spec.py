# SPDX-License-Identifier: Apache-2.0
"""Specs: canonical at construction, equal in meaning means equal, and every bad input is a SpecError."""

from __future__ import annotations

import dataclasses
import json
import keyword
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llsa_gen import errors
from llsa_gen.catalog import MANIFEST_NAME, spec_from_slug
from llsa_gen.dtypes import DTYPE_NAMES, DTYPES, from_torch, get_dtype
from llsa_gen.errors import InputTypeError, LlsaError, SpecError
from llsa_gen.spec import ENRICHMENTS, TARGET_NAMES, Spec, load_entries, load_spec, load_specs, split_slug
from tests.strategies import budget

DIMS = st.integers(2, 32).map(lambda eighths: 8 * eighths)
WEIGHTS = ["c", "1", "b**l", "c*1", "c/b**l", "c + 0.5", "max(1, c // 2)", "c**0.5", "1 + L - l", "1/(1 + l)"]


@st.composite
def specs(draw: st.DrawFn, weights: list[str] = WEIGHTS) -> Spec:
    """Specs of a fixed depth over all fields."""
    levels = draw(st.integers(1, 6))
    topks = st.integers(1, 128)
    per_level = st.lists(topks, min_size=levels, max_size=levels)
    expressions = st.sampled_from(["max(4, 16 // 2**l)", "b", "l + 1", "ceil(D / 64)", "1 + L - l", "8"])
    return Spec(
        levels=levels,
        block=draw(st.sampled_from([4, 8, 16, 32, 64, 128])),
        topk=draw(topks | per_level.map(tuple) | expressions),
        head_dim=draw(DIMS),
        value_dim=draw(st.none() | DIMS),
        dtype=draw(st.sampled_from(DTYPE_NAMES)),
        enrichment=draw(st.sampled_from(ENRICHMENTS)),
        weight=draw(st.sampled_from(weights)),
        targets=tuple(draw(st.lists(st.sampled_from(TARGET_NAMES), min_size=1, unique=True))),
        gradient=draw(st.booleans()),
    )


# -- laws -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(specs())
def test_fields_round_trip_through_json(spec: Spec) -> None:
    again = Spec.from_fields(json.loads(json.dumps(spec.to_fields())))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.to_fields() == spec.to_fields()
    assert again.slug == spec.slug


@settings(deadline=None)
@given(specs())
def test_slug_is_an_identifier_and_says_the_readable_fields(spec: Spec) -> None:
    assert spec.slug.isidentifier() and not keyword.iskeyword(spec.slug)
    assert spec.slug == spec.slug.lower()
    readable, digest = split_slug(spec.slug)
    known = spec.to_fields()
    assert readable == {name: known[name] for name in readable}
    is_default = spec.enrichment == "overlap" and spec.weight == "c" and spec.gradient
    assert (digest is None) == is_default


@settings(deadline=None)
@given(specs(), specs())
def test_slug_tells_specs_apart_by_what_they_compute(left: Spec, right: Spec) -> None:
    assert (left.slug == right.slug) == (left.identity() == right.identity())


@settings(deadline=None)
@given(specs(), st.lists(st.sampled_from(TARGET_NAMES), min_size=1, unique=True))
def test_targets_are_not_identity(spec: Spec, targets: list[str]) -> None:
    other = dataclasses.replace(spec, targets=tuple(targets))
    assert other.slug == spec.slug
    assert other.identity() == spec.identity()


@settings(deadline=None)
@given(specs())
def test_topk_given_as_number_tuple_or_expression_is_the_same(spec: Spec) -> None:
    assert len(spec.topks) == spec.depth == spec.levels
    assert dataclasses.replace(spec, topk=spec.topks) == spec
    assert Spec.from_fields({**spec.to_fields(), "topk": list(spec.topks)}) == spec
    if len(set(spec.topks)) == 1:
        assert spec.topk == spec.topks[0]
        assert dataclasses.replace(spec, topk=str(spec.topks[0])) == spec


@settings(deadline=None)
@given(specs(weights=["c"]))
def test_slug_of_default_fields_leads_back_to_the_spec(spec: Spec) -> None:
    plain = dataclasses.replace(spec, enrichment="overlap", gradient=True, targets=("cpu",))
    assert spec_from_slug(plain.slug) == plain


@budget(40)
@given(specs())
def test_slug_with_digest_leads_back_through_a_manifest(tmp_path_factory: pytest.TempPathFactory, spec: Spec) -> None:
    folder = tmp_path_factory.mktemp("generated")
    (folder / spec.slug).mkdir()
    (folder / spec.slug / MANIFEST_NAME).write_text(json.dumps({"spec": spec.to_fields()}))
    assert spec_from_slug(spec.slug, search=[folder]).identity() == spec.identity()


@settings(deadline=None)
@given(specs(), st.data())
def test_level_weight_is_positive_or_refused(spec: Spec, data: st.DataObject) -> None:
    level = data.draw(st.integers(1, spec.depth))
    count = data.draw(st.integers(1, spec.block**level))
    weight = spec.level_weight(level, count)
    assert isinstance(weight, float) and weight > 0
    if spec.weight == "c":
        assert weight == count


@settings(deadline=None)
@given(specs(), st.sampled_from([field.name for field in dataclasses.fields(Spec)]), st.data())
def test_any_value_in_any_field_is_a_spec_or_a_spec_error(spec: Spec, field: str, data: st.DataObject) -> None:
    junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3)
    value = data.draw(junk | st.lists(junk, max_size=3) | st.dictionaries(st.text(max_size=2), junk, max_size=2))
    try:
        changed = Spec.from_fields({**spec.to_fields(), field: value})
    except SpecError as error:
        assert field in str(error) or "topk" in str(error)
    else:
        assert Spec.from_fields(changed.to_fields()) == changed


@given(st.integers(1, 6), st.integers(1, 2**31 - 1))
def test_auto_becomes_any_depth(levels: int, length: int) -> None:
    spec = Spec(levels="auto", seq_len=length, topk="max(4, 16 // 2**l)")
    fixed = spec.with_depth(levels)
    assert fixed == Spec(levels=levels, topk="max(4, 16 // 2**l)")
    assert fixed.seq_len is None and not fixed.is_auto
    assert Spec.from_fields(spec.to_fields()) == spec


# -- examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "slug"),
    [
        ({}, "llsa_l2_b16_k8_d64_bf16"),
        ({"levels": 3, "topk": (8, 4, 2)}, "llsa_l3_b16_k8x4x2_d64_bf16"),
        ({"topk": (8, 8)}, "llsa_l2_b16_k8_d64_bf16"),
        ({"topk": "16 // 2"}, "llsa_l2_b16_k8_d64_bf16"),
        ({"head_dim": 48, "value_dim": 80}, "llsa_l2_b16_k8_d48v80_bf16"),
        ({"value_dim": 64}, "llsa_l2_b16_k8_d64_bf16"),
        ({"weight": " 1 * c "}, "llsa_l2_b16_k8_d64_bf16"),
        ({"targets": ["sm90", "cpu"]}, "llsa_l2_b16_k8_d64_bf16"),
        # These digests are part of the format: folders and caches are named by them.
        ({"enrichment": "none"}, "llsa_l2_b16_k8_d64_bf16_x1d114c68"),
        ({"weight": "b**l"}, "llsa_l2_b16_k8_d64_bf16_x0ed504db"),
        ({"gradient": False}, "llsa_l2_b16_k8_d64_bf16_xb42c02dc"),
    ],
)
def test_slugs(fields: dict[str, Any], slug: str) -> None:
    assert Spec(**fields).slug == slug


def test_defaults_and_derived_values() -> None:
    spec = Spec()
    assert (spec.depth, spec.topks, spec.value_dim, spec.dim_v) == (2, (8, 8), 64, 64)
    assert spec.element.itemsize == 2
    assert spec.level_weight(2, 256) == 256.0
    assert Spec(levels=4, block=4, topk="max(4, 16 // 2**l)").topks == (8, 4, 4, 4)
    assert Spec(targets=["sm90", "cpu"]).targets == ("cpu", "sm90")  # type: ignore[arg-type]


def test_equal_weights_in_different_words_are_equal() -> None:
    assert Spec(weight="(b**2)**l / b**l") == Spec(weight="b ** l") != Spec(weight="c")
    assert Spec(weight="1") != Spec()
    assert Spec(weight="b**l").level_weight(2, 3) == 256.0


def test_numpy_integers_become_ints() -> None:
    spec = Spec(levels=np.int64(2), topk=np.int32(8), block=np.int64(16))  # type: ignore[arg-type]
    assert spec == Spec()
    assert type(spec.levels) is type(spec.topk) is type(spec.block) is int


def test_specs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spec().block = 8  # type: ignore[misc]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"topk": 0}, "1 to 128"),
    ({"topk": -3}, "1 to 128"),
    ({"topk": 129}, "raise block"),
    ({"topk": 0.5}, "sparsity="),
    ({"topk": 8.0}, "sparsity="),
    ({"topk": True}, "1 to 128"),
    ({"topk": None}, "1 to 128"),
    ({"topk": (8,)}, "2 numbers"),
    ({"topk": (8, 8, 8)}, "there are 3 topk for 2 levels"),
    ({"topk": ()}, "2 numbers"),
    ({"topk": (8, 0)}, "topk, level 2"),
    ({"topk": (8, 0.5)}, "sparsity="),
    ({"topk": "16 / 3"}, "// or floor"),
    ({"topk": "8 - 4*l"}, "at level 2"),
    ({"topk": "b*b"}, "1 to 128"),
    ({"topk": "c"}, "unknown name 'c'"),
    ({"topk": "8 // (l - 1)"}, "division by zero"),
    ({"block": 0}, "nearest allowed block is 4"),
    ({"block": 1}, "nearest allowed block is 4"),
    ({"block": 3}, "nearest allowed block is 4"),
    ({"block": 48}, "power of two"),
    ({"block": 256}, "nearest allowed block is 128"),
    ({"block": 16.0}, "power of two"),
    ({"block": True}, "power of two"),
    ({"block": "16"}, "power of two"),
    ({"levels": 0}, "1 to 6"),
    ({"levels": 7}, "1 to 6"),
    ({"levels": -1}, "1 to 6"),
    ({"levels": "2"}, "without quotes"),
    ({"levels": True}, "1 to 6"),
    ({"levels": 2.0}, "1 to 6"),
    ({"levels": "Auto"}, "1 to 6"),
    ({"levels": None}, "1 to 6"),
    ({"dtype": "float32"}, "did you mean 'fp32'"),
    ({"dtype": "bfloat16"}, "did you mean 'bf16'"),
    ({"dtype": "torch.float16"}, "did you mean 'fp16'"),
    ({"dtype": "half"}, "did you mean 'fp16'"),
    ({"dtype": "fp8"}, "fp32, fp16, bf16"),
    ({"dtype": "BF16"}, "did you mean 'bf16'"),
    ({"dtype": 16}, "fp32, fp16, bf16"),
    ({"targets": ("sm70",)}, "cpu, c, sm80, sm90, sm100"),
    ({"targets": ("sm90", "sm90")}, "twice"),
    ({"targets": ()}, "at least one"),
    ({"targets": "sm90"}, r'targets = \["sm90"\]'),
    ({"targets": ("auto",)}, "unknown targets"),
    ({"targets": (90,)}, "unknown targets"),
    ({"targets": None}, "list of names"),
    ({"enrichment": "overlaps"}, "did you mean 'overlap'"),
    ({"enrichment": None}, "overlap, exclude_refined, none"),
    ({"head_dim": 12}, "pad the last dimension with zeros to 16"),
    ({"head_dim": 8}, "to 16"),
    ({"head_dim": 100}, "to 104"),
    ({"head_dim": 264}, "multiples of 8 from 16 to 256"),
    ({"head_dim": 0}, "multiples of 8"),
    ({"head_dim": 64.0}, "multiples of 8"),
    ({"value_dim": 12}, "set value_dim=16"),
    ({"value_dim": 0}, "value_dim"),
    ({"value_dim": 264}, "value_dim"),
    ({"value_dim": "64"}, "value_dim"),
    ({"weight": "0"}, "positive and finite"),
    ({"weight": "-c"}, "positive and finite"),
    ({"weight": "c/0"}, "division by zero"),
    ({"weight": "1e400"}, "not finite"),
    ({"weight": "c - 1"}, "l=1, c=1"),
    ({"weight": "100 - c"}, "positive and finite"),
    ({"weight": "3 - 2*l"}, "l=2"),
    ({"weight": "(c - 9)**2"}, "c=9"),
    ({"weight": "(c*b)**64*c**21"}, "overflow"),
    ({"weight": "b**(64**l)"}, "exponent"),
    ({"weight": ""}, "empty"),
    ({"weight": 1}, 'weight = "1"'),
    ({"weight": None}, "text of an expression"),
    ({"weight": "w"}, "unknown name 'w'"),
    ({"gradient": 1}, "true, false"),
    ({"gradient": "yes"}, "true, false"),
    ({"seq_len": 4096}, "drop seq_len"),
    ({"levels": "auto"}, "needs the length"),
    ({"levels": "auto", "seq_len": 0}, "needs the length"),
    ({"levels": "auto", "seq_len": 2**31}, "1 to 2147483647"),
    ({"levels": "auto", "seq_len": 1.5}, "needs the length"),
    ({"levels": "auto", "seq_len": 64, "topk": (8, 8)}, "cannot be combined"),
    ({"levels": "auto", "seq_len": 64, "topk": 0}, "1 to 128"),
    ({"levels": "auto", "seq_len": 64, "weight": "c +"}, "cannot be read"),
    ({"blok": 16}, "did you mean 'block'"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_fields_are_spec_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Spec.from_fields(fields)


@pytest.mark.parametrize("name", ["depth", "topks", "slug"])
def test_auto_has_no_derived_values_yet(name: str) -> None:
    spec = Spec(levels="auto", seq_len=4096)
    with pytest.raises(SpecError, match="with_depth"):
        getattr(spec, name)
    with pytest.raises(SpecError, match="with_depth"):
        spec.level_weight(1, 1)


@pytest.mark.parametrize(("level", "count"), [(0, 1), (3, 1), (1, 0), (1, 17), (2, 257), (-1, 4)])
def test_level_weight_refuses_nodes_that_do_not_exist(level: int, count: int) -> None:
    with pytest.raises(SpecError):
        Spec().level_weight(level, count)


def test_level_weight_checks_again_at_the_call() -> None:
    spec = Spec(levels=1, block=128, weight="(c - 77)**2")
    with pytest.raises(SpecError, match="l=1, c=77"):
        spec.level_weight(1, 77)


def test_with_depth_refuses_a_tuple_of_another_length() -> None:
    with pytest.raises(SpecError, match="2 topk for 3 levels"):
        Spec(topk=(8, 4)).with_depth(3)
    assert Spec().with_depth(3).topks == (8, 8, 8)


# -- files -----------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


@budget(40)
@given(specs())
def test_specs_round_trip_through_toml(tmp_path_factory: pytest.TempPathFactory, spec: Spec) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in spec.to_fields().items() if value is not None]
    path = write(tmp_path_factory.mktemp("toml"), "[specs.one]\nabout = 'x'\n" + "\n".join(lines))
    assert load_specs(path) == {"one": spec}
    assert load_spec(path, "one") == spec
    assert load_entries(path)["one"].about == "x"


def test_order_of_a_file_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, '[specs.zeta]\n[specs.alpha]\nlevels = "auto"\nseq_len = 65536\n')
    assert list(load_specs(path)) == ["zeta", "alpha"]
    assert load_specs(path)["alpha"].is_auto


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[specs.a]\nblock = \n", "line 2"),
        ("[specs.a]\nblok = 16\n", "did you mean 'block'"),
        ("[specs.a]\nblock = 3\n", r"table \[specs.a\]:\n.*power of two(.|\n)*spec field block"),
        ("[specs.a]\ntopk = [8, 0.5]\n", "topk, level 2"),
        ("[specs.a]\nweight = 1.0\n", 'weight = "1.0"'),
        ("[specs.a]\nabout = 3\n", "about must be one line"),
        ("[specs.a]\nblock = 2020-01-01\n", "power of two"),
        ("[spec.a]\n", "did you mean 'specs'"),
        ("block = 16\n", "into a table"),
        ("[specs]\nblock = 16\n", "must be a table"),
        ("[[specs]]\nblock = 16\n", "holds no specs"),
        ("[specs.a]\n[specs.a]\n", "not valid TOML"),
        ("", "holds no specs"),
        ("specs = " + "[" * 100000, "nested too deeply|not valid TOML"),
    ],
    ids=lambda text: text[:24],
)
def test_bad_files_name_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError, match=message) as caught:
        load_specs(path)
    assert str(path) in str(caught.value)


WRONG_ONES = "[specs.good]\n[specs.odd]\nblock = 3\n[specs.typo]\nblok = 16\n"


def test_a_good_spec_is_read_from_a_file_with_wrong_ones(tmp_path: Path) -> None:
    path = write(tmp_path, WRONG_ONES)
    assert load_spec(path, "good") == Spec()
    assert list(load_entries(path, "good")) == ["good"]
    with pytest.raises(SpecError, match=r"table \[specs.odd\]:\n.*power of two") as caught:
        load_spec(path, "odd")
    assert "typo" not in str(caught.value)


def test_a_whole_file_names_all_wrong_specs_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, WRONG_ONES)
    with pytest.raises(SpecError, match=r"(?s)^2 of 3 specs.*\[specs.odd\].*power of two.*\[specs.typo\].*'block'"):
        load_specs(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        load_specs(tmp_path / "missing.toml")
    with pytest.raises(SpecError, match="cannot be read"):
        load_specs(tmp_path)
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# \xe9\n")
    with pytest.raises(SpecError, match="not UTF-8"):
        load_specs(path)


def test_a_missing_name_lists_the_names_there_are(tmp_path: Path) -> None:
    path = write(tmp_path, "[specs.first]\n[specs.second]\n")
    with pytest.raises(SpecError, match=r"first, second(.|\n)*did you mean 'second'"):
        load_spec(path, "secnd")


# -- dtypes and errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_dtype_rows_agree_with_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    row = DTYPES[name]
    assert row.torch is getattr(torch, row.torch_name)
    assert row.itemsize == row.torch.itemsize
    assert row.unit_roundoff == torch.finfo(row.torch).eps / 2
    assert from_torch(row.torch) is get_dtype(name) is row
    with pytest.raises(InputTypeError, match="no kernels"):
        from_torch(torch.float64)


def test_every_error_has_a_base_an_exit_code_and_survives_pickling() -> None:
    import pickle

    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LlsaError)]
    assert len(classes) == 13
    for kind in classes:
        assert kind.exit_code in (2, 3, 4, 5, 6, 70)
        assert kind.__doc__
        assert str(pickle.loads(pickle.dumps(kind("what")))) == "what"
    assert issubclass(SpecError, ValueError)
    assert issubclass(InputTypeError, TypeError)
    assert issubclass(errors.UnsupportedError, NotImplementedError)


def test_a_compile_error_shows_the_file_and_the_compilers_own_words() -> None:
    error = errors.CompileError("compilation failed", path="a/b.cu", compiler_output="b.cu(3): error: no")
    assert str(error) == "compilation failed\n  where:   file a/b.cu\nb.cu(3): error: no"
    error = errors.CompileError("failed", path="b.cu", tool="/bin/nvcc", compiler_output="no\n", hint="do this")
    assert str(error).endswith("see `llsa-gen doctor`\n  next:    do this\nno\n") and "'/bin/nvcc'" in str(error)


def test_explain_has_all_parts_and_cuts_long_values() -> None:
    text = errors.explain("what", where="here", value="x" * 1000, allowed=("a", "b"), hint="do this")
    assert text.splitlines()[0] == "what"
    assert "where:   here" in text and "allowed: a, b" in text and "next:    do this" in text
    assert "1002 characters" in text and len(text) < 500
    assert errors.explain("what") == "what"
    assert "value:   None" in errors.explain("what", value=None)


# -- imports ----------------------------------------------------------------------------------------


def test_specs_need_no_heavy_imports() -> None:
    program = (
        "import sys, llsa_gen\n"
        "from llsa_gen.catalog import catalogue_specs\n"
        "catalogue_specs()\n"
        "llsa_gen.Spec(levels=3, topk=(8, 4, 2))\n"
        "print([name for name in ('torch', 'sympy', 'tilelang', 'numpy') if name in sys.modules])"
    )
    path = ":".join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def test_public_module_is_lazy_and_complete() -> None:
    import llsa_gen

    assert llsa_gen.Spec is Spec
    assert llsa_gen.errors is errors
    assert set(llsa_gen.__all__) <= set(dir(llsa_gen))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llsa_gen.nothing
