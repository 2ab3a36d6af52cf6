# SPDX-License-Identifier: Apache-2.0
"""The catalogue, the way back from slugs, the target registry and the folders."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llsa_gen import paths
from llsa_gen.catalog import MANIFEST_NAME, catalogue, catalogue_specs, find_spec, spec_from_slug
from llsa_gen.errors import InternalError, SpecError
from llsa_gen.spec import TARGET_NAMES, Spec
from llsa_gen.targets import Target, get_target, list_targets

ALL_TARGETS = ("cpu", "sm80", "sm90", "sm100")
NAMES = ("pixel_dit", "pixel_dit_fp32", "deep_video", "shallow", "tiny_blocks", "wide_value", "ablation")


# -- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_found_by_name_and_by_slug(name: str) -> None:
    entry = catalogue()[name]
    assert entry.name == name and entry.about
    assert entry.spec.targets == ALL_TARGETS
    assert find_spec(name) == entry.spec
    assert spec_from_slug(entry.spec.slug).identity() == entry.spec.identity()


@settings(deadline=None)
@given(st.text(max_size=30) | st.sampled_from(sorted(catalogue_specs())).flatmap(lambda s: st.just(s + "_x0")))
def test_any_text_is_a_name_or_a_spec_error_with_a_next_step(text: str) -> None:
    try:
        assert find_spec(text)
    except SpecError as error:
        assert "llsa-gen list" in str(error) or "near names" in str(error)


@given(st.sampled_from(sorted(catalogue_specs())), st.integers(0, 60), st.sampled_from("0123456789xkdblv_"))
def test_a_slug_with_one_character_changed_never_leads_to_another_slug(slug: str, at: int, new: str) -> None:
    changed = slug[:at] + new + slug[at + 1 :]
    try:
        assert spec_from_slug(changed).slug == changed
    except SpecError:
        assert changed != slug


# -- catalogue --------------------------------------------------------------------------------------


def test_catalogue_is_complete_and_has_distinct_slugs() -> None:
    assert tuple(catalogue()) == NAMES
    assert len(catalogue_specs()) == len(NAMES)
    assert catalogue()["pixel_dit"].spec.identity() == Spec().identity()
    assert catalogue()["tiny_blocks"].spec.topks == (8, 4, 4, 4)
    assert catalogue()["wide_value"].spec.slug == "llsa_l1_b32_k5_d48v80_bf16"


@pytest.mark.parametrize(
    ("slug", "message"),
    [
        ("llsa_l2_b16_k8x8_d64_bf16", "write 'llsa_l2_b16_k8_d64_bf16'"),
        ("llsa_l2_b16_k8_d64v64_bf16", "write 'llsa_l2_b16_k8_d64_bf16'"),
        ("llsa_l2_b16_k8_d64_bf61", "unknown dtype"),
        ("llsa_l9_b16_k8_d64_bf16", "1 to 6"),
        ("llsa_l2_b16_k8x4x2_d64_bf16", "3 topk for 2 levels"),
        ("llsa_l02_b16_k8_d64_bf16", "not the name of a spec"),
        ("llsa_l2_b16_k8_d64_bf16_x00000000", "near names: llsa_l2_b16_k8_d64"),
        ("pixel_dti", "near names: pixel_dit"),
        ("", "llsa-gen list"),
        ("../llsa_l2_b16_k8_d64_bf16", "not the name of a spec"),
        ("llsa_l2_b16_k8_d64_bf16\n", "not the name of a spec"),
        (None, "not the name of a spec"),
    ],
)
def test_bad_slugs(slug: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_from_slug(slug)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"spec": 3}', '{"spec": {"block": 3}}', '{"spec": {}}'])
def test_a_broken_or_foreign_manifest_is_a_miss(tmp_path: Path, text: str) -> None:
    slug = Spec(weight="b**l").slug
    (tmp_path / slug).mkdir()
    (tmp_path / slug / MANIFEST_NAME).write_text(text)
    with pytest.raises(SpecError, match=f"near names: (.*, )?{slug}"):
        spec_from_slug(slug, search=[tmp_path / "nowhere", tmp_path])
    good = tmp_path / "good"
    (good / slug).mkdir(parents=True)
    (good / slug / MANIFEST_NAME).write_text(json.dumps({"spec": Spec(weight="b**l").to_fields()}))
    assert spec_from_slug(slug, search=[tmp_path, good]) == Spec(weight="b**l")


# -- targets ----------------------------------------------------------------------------------------


def test_registry_and_modules_are_the_same_list() -> None:
    import llsa_gen.targets

    folder = Path(llsa_gen.targets.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert modules == set(TARGET_NAMES) == {target.name for target in list_targets()}
    assert [target.name for target in list_targets()] == list(TARGET_NAMES) == ["cpu", "c", *ALL_TARGETS[1:]]


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
def test_limits_are_consistent(target: Target) -> None:
    assert get_target(target.name) is target
    assert target.shared_per_block + target.shared_reserved <= target.shared_per_sm or not target.is_cuda
    assert target.is_cuda == (target.kind == "cuda") == bool(target.registers_per_sm)
    for rate in target.rates:
        assert rate.per_second > 0 and rate.source and rate.product
        assert target.rate(rate.name) is rate
    with pytest.raises(InternalError):
        target.rate("wishes")


def test_numbers_of_the_machines() -> None:
    rows = {t.name: (t.arch, t.shared_per_block, t.registers_per_thread, t.tensor_core) for t in list_targets()}
    assert rows == {
        "cpu": ("native", 0, 0, "none"),
        "c": ("native", 0, 0, "none"),
        "sm80": ("sm_80", 166912, 255, "mma"),
        "sm90": ("sm_90a", 232448, 255, "wgmma"),
        "sm100": ("sm_100a", 232448, 255, "tcgen05"),
    }
    assert get_target("sm90").has("tma") and not get_target("sm80").has("tma")
    assert not get_target("sm100").has("wgmma")


def test_unknown_target() -> None:
    with pytest.raises(SpecError, match="did you mean 'sm90'"):
        get_target("sm_90")


# -- paths ------------------------------------------------------------------------------------------


def test_checkout_and_installed_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llsa_gen"
    package.mkdir()
    monkeypatch.setattr(paths, "_PACKAGE", package)
    paths.checkout_root.cache_clear()
    try:
        assert not paths.is_checkout()
        assert paths.templates_dir() == package / "_templates"
        assert paths.catalogue_dir() == package / "_generated"
        (tmp_path / "pyproject.toml").touch()
        (tmp_path / "templates").mkdir()
        paths.checkout_root.cache_clear()
        assert paths.is_checkout()
        assert paths.templates_dir() == tmp_path / "templates"
        assert paths.catalogue_dir() == tmp_path / "generated"
    finally:
        paths.checkout_root.cache_clear()


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.CACHE_VARIABLE, str(tmp_path / "cache"))
    assert paths.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv(paths.CACHE_VARIABLE, "")
    assert paths.cache_dir().is_absolute()
    assert "llsa-gen" in paths.cache_dir().parts
    assert not (tmp_path / "cache").exists()


def test_typing_marker_is_there() -> None:
    package = importlib.import_module("llsa_gen")
    assert package.__file__ is not None
    assert (Path(package.__file__).parent / "py.typed").is_file()
