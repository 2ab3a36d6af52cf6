# SPDX-License-Identifier: Apache-2.0
"""The demo: its numbers agree with the public functions, its picture appears whole, its refusals come early."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llsa_gen.demo import DemoReport, measure, photo, render_report, run, runner
from llsa_gen.demo.attended import dense_weights, llsa_weights, resolution, shares
from llsa_gen.demo.features import build_qkv
from llsa_gen.demo.recipes import RECIPES
from llsa_gen.demo.setting import BLOCK, HEAD_DIM, LEVELS, SIZES, TOPK, patch_side
from llsa_gen.errors import InputError, ToolMissingError
from llsa_gen.orders import morton

SIZE = 64
TOKENS = SIZE * SIZE

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> DemoReport:
    out = tmp_path_factory.mktemp("demo") / "picture.png"
    return run(size=SIZE, heads=2, out=out, progress=said.append)


@pytest.fixture(scope="module")
def qkv() -> Qkv:
    pixels = torch.from_numpy(photo.load_photo(SIZE))
    return build_qkv(pixels, 2, morton((SIZE, SIZE)))


# -- the report -----------------------------------------------------------------------------------


def test_the_picture_is_a_png_and_nothing_lies_beside_it(report: DemoReport) -> None:
    with Image.open(report.path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 1000
    assert list(report.path.parent.iterdir()) == [report.path]


def test_the_report_holds_what_was_run(report: DemoReport) -> None:
    assert (report.tokens, report.head_dim, report.sampled_rows) == (TOKENS, HEAD_DIM, 256)
    assert [head.name for head in report.heads] == [recipe.name for recipe in RECIPES[:2]]
    assert report.keys_per_query == TOKENS // BLOCK**LEVELS + LEVELS * TOPK * BLOCK
    assert min(report.llsa_seconds, report.select_seconds, report.dense_seconds) > 0


def test_shares_of_the_dense_attention_sum_to_one(report: DemoReport) -> None:
    for head in report.heads:
        assert len(head.dense_mass) == LEVELS + 1
        assert sum(head.dense_mass) == pytest.approx(1.0, abs=1e-6)


def test_llsa_is_near_dense_attention_on_the_photograph(report: DemoReport) -> None:
    for head in report.heads:
        assert 0 < head.relative_error < 0.15


def test_json_and_text_say_the_same(report: DemoReport) -> None:
    data = json.loads(json.dumps(report.to_json()))
    assert data["path"] == str(report.path)
    assert data["speedup"] == pytest.approx(report.dense_seconds / report.llsa_seconds)
    assert data["heads"][0]["relative_error"] == report.heads[0].relative_error
    text = render_report(report)
    assert str(report.path) in text
    assert all(head.name in text for head in report.heads)


def test_a_scaled_dense_time_is_called_an_estimate(report: DemoReport) -> None:
    assert report.dense_is_scaled
    assert "ESTIMATE: 1,024 query rows against all keys measured, times 4" in render_report(report)
    measured = dataclasses.replace(report, dense_rows=TOKENS)
    assert "ESTIMATE" not in render_report(measured) and "all rows measured" in render_report(measured)


def test_progress_is_told_before_each_step(report: DemoReport, said: list[str]) -> None:
    assert len(said) == 5
    assert str(report.path) in said[-1]


def test_full_dense_measures_every_row_and_a_seed_repeats_the_comparison(tmp_path: Path, report: DemoReport) -> None:
    again = run(size=SIZE, heads=1, out=tmp_path / "full.png", full_dense=True)
    assert again.dense_rows == TOKENS and not again.dense_is_scaled
    assert again.heads == report.heads[:1]
    assert run(size=SIZE, heads=1, out=tmp_path / "other.png", seed=1).heads != again.heads


def test_the_smallest_photograph_with_every_head(tmp_path: Path) -> None:
    found = run(size=SIZES[0], heads=len(RECIPES), out=tmp_path / "small.PNG")
    assert len(found.heads) == len(RECIPES)
    assert found.path.is_file() and not found.dense_is_scaled


# -- what a query attends -------------------------------------------------------------------------


def test_the_drawn_weights_reproduce_the_output_of_llsa(qkv: Qkv) -> None:
    q, k, v = qkv
    o, idx = measure.attention(q, k, v), measure.select(q, k)
    rows = torch.arange(0, TOKENS, 37)
    for head in range(2):
        found = resolution([lists[0, head] for lists in idx], rows, TOKENS)
        weights = llsa_weights(q[0, head], k[0, head], rows, found, LEVELS)
        torch.testing.assert_close(weights @ v[0, head].double(), o[0, head, rows].double(), atol=1e-4, rtol=1e-4)


def test_resolution_counts_the_listed_nodes(qkv: Qkv) -> None:
    idx = measure.select(*qkv[:2])
    rows = torch.arange(0, TOKENS, 101)
    found = resolution([lists[0, 0] for lists in idx], rows, TOKENS)
    for level, lists in enumerate(idx, start=1):
        listed = (lists[0, 0, rows // BLOCK**level] >= 0).sum(-1)
        assert (found < level).sum(-1).equal(listed * BLOCK**level)


def test_resolution_of_empty_lists_is_the_coarsest_level() -> None:
    lists = [torch.full((4, 2), -1), torch.full((1, 2), -1)]
    assert bool((resolution(lists, torch.tensor([0, 63]), 256) == 2).all())


def test_dense_weights_are_those_of_torch(qkv: Qkv) -> None:
    q, k, v = (x[:, :1].double() for x in qkv)
    rows = torch.tensor([0, 1000, TOKENS - 1])
    expected = torch.nn.functional.scaled_dot_product_attention(q[:, :, rows], k, v)[0, 0]
    torch.testing.assert_close(dense_weights(q[0, 0], k[0, 0], rows) @ v[0, 0], expected)


def test_shares_put_every_token_in_one_level() -> None:
    weights, found = torch.tensor([[0.5, 0.25, 0.25, 0.0]]), torch.tensor([[0, 1, 2, 2]])
    assert shares(weights, found, 2) == (0.5, 0.25, 0.25)


# -- features -------------------------------------------------------------------------------------


def test_a_pixel_attends_itself_with_the_logit_of_its_recipe(qkv: Qkv) -> None:
    q, k, _ = qkv
    for head, recipe in enumerate(RECIPES[:2]):
        logits = (q[0, head] * k[0, head]).sum(-1) * HEAD_DIM**-0.5
        torch.testing.assert_close(logits, torch.full_like(logits, recipe.look + recipe.near))


def test_on_a_plain_picture_attention_falls_with_distance_alone() -> None:
    q, k, v = build_qkv(torch.full((32, 32, 3), 0.5), 1, torch.arange(32 * 32))
    weights = dense_weights(q[0, 0], k[0, 0], torch.tensor([16 * 32 + 16]))[0].view(32, 32)
    line = weights[16, 16:24]
    assert bool((line[1:] < line[:-1]).all())
    torch.testing.assert_close(weights[16, 10:16].flip(0), weights[16, 17:23], rtol=1e-3, atol=1e-9)
    assert bool(torch.isfinite(v).all())


def test_landmarks_are_different_pixels_at_every_size() -> None:
    for size in SIZES:
        pixels = [landmark.pixel(size) for landmark in photo.LANDMARKS]
        assert len(set(pixels)) == len(pixels)
        assert all(0 <= place < size for pixel in pixels for place in pixel)


def test_a_node_is_a_square_patch() -> None:
    assert [patch_side(level) ** 2 for level in range(4)] == [BLOCK**level for level in range(4)]


# -- refusals -------------------------------------------------------------------------------------


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the computation began")

    monkeypatch.setattr(runner, "_run", refuse)


WRONG: list[dict[str, Any]] = [
    *({"size": size} for size in (16, 31, 48, 1024, 64.0, True, "64")),
    *({"heads": heads} for heads in (0, len(RECIPES) + 1, 1.0, True)),
    *({"seed": seed} for seed in (-1, 2**63, 0.5)),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any], tmp_path: Path, nothing_runs: None) -> None:
    with pytest.raises(InputError, match=rf"where: +{next(iter(wrong))}"):
        run(out=tmp_path / "picture.png", **wrong)


def test_an_output_that_is_no_png_in_a_folder_is_refused(tmp_path: Path, nothing_runs: None) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("picture.jpg", "picture", "folder.png"):
        with pytest.raises(InputError, match="one PNG file"):
            run(out=tmp_path / name)
    with pytest.raises(InputError, match="mkdir -p"):
        run(out=tmp_path / "missing" / "picture.png")


def test_an_unwritable_folder_is_found_before_anything_runs(
    tmp_path: Path, nothing_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", deny)
    with pytest.raises(PermissionError, match="cannot write into the folder of the picture: Permission denied"):
        run(out=tmp_path / "picture.png")


@pytest.mark.parametrize("module", ["matplotlib", "PIL"])
def test_a_missing_library_is_named_with_the_command(
    module: str, tmp_path: Path, nothing_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(ToolMissingError, match=r"pip install 'llsa-gen\[demo\]'"):
        run(out=tmp_path / "picture.png")


def test_matplotlib_without_its_sample_data_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.cbook.get_sample_data", lambda *_, **__: str(tmp_path / "none.jpg"))
    with pytest.raises(ToolMissingError, match="sample data"):
        photo.load_photo(32)


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "picture.png"
    out.write_bytes(b"old")

    def fail(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="No space left"):
        run(size=32, heads=1, out=out)
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"old"


def test_importing_the_demo_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, llsa_gen.demo; sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
