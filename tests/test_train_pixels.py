# SPDX-License-Identifier: Apache-2.0
"""The training example: laws of its parts, and tiny runs from the command line to the pictures."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llsa_gen.errors import InputError, LlsaError
from llsa_gen.orders import inverse, morton
from tests.strategies import budget
from tests.tree import ROOT
from tools.pixels import checkpoint, experiment, flow, summary
from tools.pixels.arms import ARMS, TITLES, Attention
from tools.pixels.model import PixelTransformer, rotate, rotations
from tools.pixels.options import Options
from tools.pixels.photos import SCALES, Crops, regions, split
from tools.pixels.trial import NOISE_LEVELS, averaged
from tools.train_pixels import main

SCRIPT = ROOT / "tools" / "train_pixels.py"
TINY = ("--size", "8", "--steps", "12", "--seeds", "2", "--width", "32", "--heads", "1", "--depth", "1", "--batch", "2")
MADE = ("curves.png", "heldout.csv", "samples.png", "summary.csv", "summary.json", "train.csv")
SEEDS = st.integers(0, 2**16)


def grid(side: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side))


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# -- the network ----------------------------------------------------------------------------------


@given(seed=SEEDS, head_dim=st.sampled_from([16, 24, 64]))
@budget(20)
def test_a_rotation_keeps_norms(seed: int, head_dim: int) -> None:
    (x,) = tensors(seed, (1, 2, 25, head_dim))
    turned = rotate(x, *rotations(grid(5), head_dim))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=1e-6)


@given(seed=SEEDS, row=st.integers(-50, 50), column=st.integers(-50, 50))
@budget(20)
def test_rotated_scores_depend_on_relative_positions_alone(seed: int, row: int, column: int) -> None:
    q, k = tensors(seed, (1, 1, 16, 32), (1, 1, 16, 32))

    def scores(places: torch.Tensor) -> torch.Tensor:
        cos, sin = rotations(places, 32)
        return rotate(q, cos, sin) @ rotate(k, cos, sin).mT

    torch.testing.assert_close(scores(grid(4)), scores(grid(4) + torch.tensor([row, column])), rtol=1e-3, atol=1e-3)


def test_rotations_tell_all_positions_apart() -> None:
    cos, sin = rotations(grid(12), 16)
    assert len(set(map(tuple, torch.cat([cos, sin], -1).tolist()))) == 144


def network(coordinates: torch.Tensor, attention: Attention) -> PixelTransformer:
    """A network whose zero layers have been filled, so that every part takes part."""
    torch.manual_seed(3)
    made = PixelTransformer(coordinates, width=32, depth=2, heads=2, attention=attention)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def test_a_network_starts_as_the_zero_function() -> None:
    made = PixelTransformer(grid(4), width=32, depth=2, heads=2, attention=F.scaled_dot_product_attention)
    assert not made(torch.randn(2, 16, 3), torch.rand(2)).any()


def test_the_order_of_the_tokens_means_nothing_to_dense_attention() -> None:
    order = morton((6, 6))
    x, t = torch.randn(2, 36, 3), torch.tensor([0.2, 0.9])
    plain = network(grid(6), F.scaled_dot_product_attention)(x, t)
    sorted_by_morton = network(grid(6)[order], F.scaled_dot_product_attention)(x[:, order], t)
    torch.testing.assert_close(sorted_by_morton[:, inverse(order)], plain)


def test_queries_and_keys_have_unit_mean_square_whatever_comes_in() -> None:
    seen: list[torch.Tensor] = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.extend((q, k))
        return v

    made = PixelTransformer(grid(4), width=32, depth=2, heads=2, attention=attention)
    made(1000 * torch.randn(2, 16, 3), torch.rand(2))
    assert len(seen) == 4
    for each in seen:
        assert each.shape == (2, 2, 16, 16)
        torch.testing.assert_close(each.square().mean(-1), torch.ones(2, 2, 16), rtol=1e-3, atol=1e-3)


# -- flow matching --------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "scale"), [(1, 1), (32, 1), (64, 1), (65, 65 / 64), (128, 2), (512, 8)])
def test_noise_grows_with_the_side_from_64_on(side: int, scale: float) -> None:
    assert flow.noise_scale(side) == scale


@given(seed=SEEDS, t=st.floats(0, 1), scale=st.floats(1, 8))
@budget(30)
def test_lines_lead_from_data_to_noise_at_constant_velocity(seed: int, t: float, scale: float) -> None:
    data, noise = tensors(seed, (2, 5, 3), (2, 5, 3))
    at = [flow.interpolate(data, noise, torch.full((2,), time, dtype=torch.float64), scale) for time in (0, t, 1)]
    torch.testing.assert_close(at[0], data)
    torch.testing.assert_close(at[2], scale * noise)
    torch.testing.assert_close(at[1], data + t * flow.velocity(data, noise, scale))


@given(seed=SEEDS, steps=st.integers(1, 20), scale=st.floats(1, 8))
@budget(20)
def test_euler_steps_along_the_true_velocity_end_at_the_data(seed: int, steps: int, scale: float) -> None:
    data, noise = (x.float() for x in tensors(seed, (2, 5, 3), (2, 5, 3)))

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x - data) / t.view(-1, 1, 1)

    torch.testing.assert_close(flow.sample(velocity, noise, scale, steps), data, rtol=1e-3, atol=1e-3)
    times = torch.rand(2)
    assert flow.loss(velocity, data, noise, times.clamp(min=0.1), scale) < 1e-6


# -- photographs ----------------------------------------------------------------------------------


@given(width=st.integers(24, 700), height=st.integers(24, 700))
def test_a_split_shares_no_pixel_and_leaves_none_out(width: int, height: int) -> None:
    covered = torch.zeros(height, width, dtype=torch.int64)
    for left, top, right, bottom in split(width, height):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


def test_every_photograph_has_disjoint_regions() -> None:
    train, held_out = regions()
    assert {region.name for region in train} == {"china", "flower", "grace_hopper"}
    for first, second in zip(train, held_out, strict=True):
        assert first.name == second.name
        assert (first.box, second.box) == split(*first.image.size)


@pytest.mark.parametrize("size", [8, 33, 128])
def test_crops_are_pictures_of_their_region_at_every_scale(size: int) -> None:
    for source in regions():
        crops = Crops(source, size)
        drawn = crops.draw(20, torch.Generator().manual_seed(0))
        assert drawn.shape == (20, size, size, 3)
        assert drawn.min() >= -1 and drawn.max() <= 1 and drawn.std() > 0.1
        assert len({tuple(crop.flatten().tolist()) for crop in drawn}) > 15


def test_no_pixel_outside_of_a_region_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (96, 60), "white")
    image.paste("black", split(*image.size)[1])
    monkeypatch.setattr("tools.pixels.photos.photographs", lambda: {"half": image})
    train, held_out = (Crops(source, 60 // max(SCALES)) for source in regions())
    generator = torch.Generator().manual_seed(0)
    assert (train.draw(50, generator) == 1).all()
    assert (held_out.draw(50, generator) == -1).all()


def test_even_crops_come_from_every_photograph_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {colour: Image.new("RGB", (96, 96), colour) for colour in ("black", "white")}
    monkeypatch.setattr("tools.pixels.photos.photographs", lambda: images)
    drawn = Crops(regions()[0], 16).draw_evenly(5, torch.Generator().manual_seed(0))
    assert drawn.mean((1, 2, 3)).tolist() == [-1, 1, -1, 1, -1]


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Path:
    """A whole tiny run of all arms."""
    out = tmp_path_factory.mktemp("run")
    assert main([*TINY, "--out", str(out), "--device", str(device)]) == 0
    return out


def test_a_run_writes_curves_samples_and_numbers(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir() if path.is_file()) == list(MADE)
    trials = sorted(product(ARMS, "01"))
    train, held_out = lines(finished / "train.csv"), lines(finished / "heldout.csv")
    assert sorted({(line["arm"], line["seed"]) for line in train}) == trials
    assert len(train) == 12 * len(trials) and len(held_out) == len(NOISE_LEVELS) * len(trials)
    assert all(0 < float(line["loss"]) < 10 for line in train + held_out)
    for name in ("curves.png", "samples.png"):
        with Image.open(finished / name) as picture:
            assert min(picture.size) > 200


def test_the_summary_holds_mean_and_spread_over_seeds(finished: Path) -> None:
    told = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert list(told["arms"]) == list(ARMS) and told["tokens"] == 64 and told["coarsest_nodes"] == 4
    for arm, numbers in told["arms"].items():
        for level in map(str, NOISE_LEVELS):
            first, second = (numbers["seeds"][seed][level] for seed in "01")
            estimate = numbers["held_out_loss"][level]
            assert estimate["mean"] == pytest.approx((first + second) / 2)
            assert estimate["spread"] == pytest.approx(abs(first - second) / 2**0.5)
        assert (numbers["against_dense"] is None) == (arm == "dense")
    assert {line["arm"] for line in lines(finished / "summary.csv")} == set(ARMS)


def test_arms_of_a_seed_start_alike_and_then_differ(finished: Path) -> None:
    train = lines(finished / "train.csv")
    first = {(line["seed"], line["loss"]) for line in train if line["step"] == "1"}
    assert len(first) == 2, "one loss per seed: same weights, crops, times and noise in every arm"
    last = {line["loss"] for line in train if line["step"] == "12" and line["seed"] == "0"}
    assert len(last) == len(ARMS)


def test_the_average_of_weights_follows_them() -> None:
    average = torch.zeros(())
    for count in range(500):
        average = averaged(average, torch.ones(()), count)
        assert 0 < average <= 1
        assert averaged(average, average, count).equal(average)
    assert average > 0.999


class Silent:
    """A watcher that remembers nothing."""

    def begin(self, arm: str, seed: int, step: int) -> None: ...

    def advance(self, loss: float) -> None: ...

    def measured(self, arm: str, seed: int, step: int, loss: float) -> None: ...


def after(calls: int) -> Callable[[], bool]:
    """Ctrl-C at a certain step."""
    remaining = iter(range(calls))
    return lambda: next(remaining, None) is None


def tiny(out: Path, device: torch.device, **changes: Any) -> Options:
    """The options that `TINY` stands for."""
    fields = {"size": 8, "steps": 12, "seeds": 2, "width": 32, "heads": 1, "depth": 1, "batch": 2}
    return Options(**{**fields, "out": out, "device": str(device), **changes})


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    finished: Path, tmp_path: Path, device: torch.device
) -> None:
    for calls in (0, 2, 14):  # in the first trial before its first step, in the middle of it, and in the second one
        with pytest.raises(KeyboardInterrupt):
            experiment.run(tiny(tmp_path, device), resume=calls > 0, watcher=Silent(), asked=after(calls))
    assert main([*TINY, "--out", str(tmp_path), "--device", str(device), "--resume"]) == 0
    for name in ("train.csv", "heldout.csv", "summary.csv"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_a_finished_run_can_be_made_longer(tmp_path: Path, device: torch.device) -> None:
    changes = {"arms": ("llsa",), "seeds": 1, "evaluate_every": 5}
    for steps in (7, 12):
        longer = experiment.run(
            tiny(tmp_path / "a", device, steps=steps, **changes),
            resume=steps > 7,
            watcher=Silent(),
            asked=lambda: False,
        )
    at_once = experiment.run(
        tiny(tmp_path / "b", device, **changes), resume=False, watcher=Silent(), asked=lambda: False
    )
    assert longer.curves["llsa", 0].train == at_once.curves["llsa", 0].train
    assert longer.curves["llsa", 0].held_out == at_once.curves["llsa", 0].held_out
    assert [step for step, _ in at_once.curves["llsa", 0].held_out] == [5, 10, 12]
    assert longer.samples["llsa"].equal(at_once.samples["llsa"])


def test_a_checkpoint_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trial.pt"
    checkpoint.save(path, {"identity": {}, "step": 1})

    def failing(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(path, {"identity": {}, "step": 2})
    assert checkpoint.load(path, {})["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_quick_run_can_be_told_as_json(
    tmp_path: Path, device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("--quick", "--steps", "2", "--arms", "dense", "llsa", "--device", str(device), "--json")
    assert main([*line, "--out", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert told["tokens"] == 256 and told["coarsest_nodes"] == 16 and list(told["arms"]) == ["dense", "llsa"]
    assert told["arms"]["llsa"]["held_out_loss_mean"]["spread"] is None


# -- what is refused ------------------------------------------------------------------------------

BAD = {
    "--size 4": "8 to 128",
    "--size 256": "8 to 128",
    "--steps 0": "1 to 1000000",
    "--seeds 0": "1 to 100",
    "--heads 3": "divisor of --width 64",
    "--width 72 --heads 3 --size 8 --block 5": "--block",
    "--width 20 --heads 1": "--width / --heads",
    "--k 0": "--k",
    "--levels 7": "--levels",
    "--arms lsa": "did you mean 'llsa'",
    "--arms llsa llsa": "every arm once",
    "--device tpu": "cpu, cuda",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_options_are_refused_with_what_is_allowed(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert BAD[line] in told and "where:" in told and "value:" in told and "allowed:" in told
    assert not (tmp_path / "out").exists()


def test_a_missing_device_says_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 4
    assert "--device cpu" in capsys.readouterr().err


def test_a_run_is_not_mixed_with_another(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--out", str(finished)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*TINY, "--out", str(finished), "--resume", "--k", "2"]) == 2
    assert "another k" in capsys.readouterr().err
    assert main([*TINY, "--out", str(finished), "--resume", "--steps", "11"]) == 2
    assert "--steps 12" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x02."])
def test_a_broken_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="broken") as refused:
        checkpoint.load(path, {})
    assert f"rm {path}" in str(refused.value)


def test_a_checkpoint_cannot_execute_code(tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    torch.save({"identity": {}, "made": Silent()}, path)
    with pytest.raises(LlsaError, match="broken"):
        checkpoint.load(path, {})


def test_a_folder_that_cannot_be_made_ends_with_the_status_of_the_system(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main([*TINY, "--out", str(tmp_path / "file" / "run")]) == 6
    assert "error:" in capsys.readouterr().err


def test_the_script_runs_by_itself_and_lists_its_options() -> None:
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    names = "size steps seeds arms levels block k width depth heads out resume quick device json"
    assert {f"--{name}" for name in names.split()} <= {word.strip(",[]") for word in shown.split()}


def test_every_arm_has_a_title_and_one_seed_has_no_spread() -> None:
    assert TITLES.keys() == ARMS.keys()
    assert summary.Estimate.of([2.0]).text(1) == "2.0"
    assert summary.Estimate.of([1.0, 3.0]).text(1) == "2.0 ± 1.4"
