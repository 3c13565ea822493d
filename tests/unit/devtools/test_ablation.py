"""The ablation benchmark: what it compares, what it concludes, and one small run of all of it on random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import save_file

from devtools.bench import ablation
from devtools.bench.ablation import make, measure, report
from devtools.bench.ablation.make import FULL, Weights
from devtools.bench.ablation.measure import BOTH, DENSE, INVERTED, NONE, OTHER, SPARSE, SceneResult, Task
from devtools.bench.ablation.report import METRICS, Difference
from devtools.tiny import randomize
from longvie_core.backends.diffusers.encoders import VaeCodec
from longvie_core.backends.diffusers.weights import load_vae, original_state
from longvie_core.model.dual_control import DualControlConfig, Strengths, torch_dual_control
from longvie_core.model.noise import UnifiedNoise
from longvie_core.model.wan import WanConfig, WanModel
from longvie_core.training.data.scenes import SceneSettings, film

BACKBONE = WanConfig(dim=48, ffn_dim=64, num_heads=4, num_layers=3, text_dim=16, freq_dim=32, has_image_input=False)
CONTROL = DualControlConfig(dim=48, control_dim=24, ffn_dim=32, num_heads=2, num_layers=2, image=False)
HEADS = {"config": json.dumps({"transformer": {"num_heads": 4}})}
HEAD_DIM = {"config": json.dumps({"head_dim": 12})}
SMALL = SceneSettings(width=48, height=32, clips=2, frames=9, grid=3, first_seed=10_000)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Random networks; the second control network is another one, its overlay other self-attention."""
    folder = tmp_path_factory.mktemp("weights")
    backbone, other = (randomize(WanModel(BACKBONE), seed).state_dict() for seed in (1, 2))
    overlay = {key: value for key, value in other.items() if ".self_attn." in key}
    vae = original_state(randomize(AutoencoderKLWan(base_dim=4), 3))
    files = {
        "backbone": (backbone, HEADS),
        "control": (randomize(torch_dual_control(CONTROL), 4).state_dict(), HEAD_DIM),
        "vae": (vae, None),
        "undegraded_control": (randomize(torch_dual_control(CONTROL), 5).state_dict(), HEAD_DIM),
        "undegraded_overlay": (overlay, None),
    }
    for name, (tensors, metadata) in files.items():
        contiguous = {key: value.contiguous() for key, value in tensors.items()}
        save_file(contiguous, folder / f"{name}.safetensors", metadata)
    return Weights(**{name: folder / f"{name}.safetensors" for name in files})


class TestControls:
    def test_a_video_of_one_clip_is_normalised_the_same_either_way(self) -> None:
        settings = replace(SMALL, clips=1)
        filmed, mine = film(settings, 3), make.per_clip_controls(settings, 3)
        np.testing.assert_array_equal(mine.dense.frames[0, ..., 0], filmed["dense"])
        np.testing.assert_array_equal(mine.sparse.frames, filmed["sparse"])

    def test_each_clip_has_its_own_black_and_white_and_its_tracks_follow(self) -> None:
        settings = replace(SMALL, clips=4, grid=5)
        alike = make.global_controls(settings.plan, film(settings, 0))
        mine = make.per_clip_controls(settings, 0)
        assert mine.dense.frames.shape == alike.dense.frames.shape
        levels = mine.dense.frames.reshape(4, -1)
        assert (levels.min(axis=1) == 0).all() and (levels.max(axis=1) == 255).all()
        assert (mine.dense.frames != alike.dense.frames).any() and (mine.sparse.frames != alike.sparse.frames).any()
        drawn = [(controls.sparse.frames[..., :2] > 0).any(axis=-1) for controls in (mine, alike)]  # of x and y, not of z
        np.testing.assert_array_equal(*drawn)

    def test_the_frame_that_two_clips_share_is_one_frame_of_the_global_control(self) -> None:
        controls = make.global_controls(SMALL.plan, film(SMALL, 0))
        np.testing.assert_array_equal(controls.dense.frames[0, -1], controls.dense.frames[1, 0])


def test_clips_add_every_frame_but_the_given_one_and_seams_lie_between_them() -> None:
    plan = replace(SMALL, clips=3).plan
    numbers = np.arange(plan.output_frames)
    parts = [numbers[measure.new_frames(plan, clip)] for clip in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), numbers[1:])
    assert measure.seams(plan) == [parts[1][0], parts[2][0]] == [9, 17]


class TestCodec:
    def test_it_computes_what_the_chunked_vae_does(self, weights: Weights) -> None:
        plain, mine = VaeCodec(load_vae(weights.vae)), make.SceneCodec(load_vae(weights.vae))
        frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
        torch.testing.assert_close(mine.encode(frames), plain.encode(frames), atol=1e-4, rtol=1e-4)
        first = [codec.encode_first_frame(frames[0], 9) for codec in (mine, plain)]
        torch.testing.assert_close(*first, atol=1e-4, rtol=1e-4)
        latents = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(1))
        np.testing.assert_allclose(mine.decode(latents), plain.decode(latents), atol=1e-4)

    def test_equal_pictures_are_encoded_once_until_it_forgets(self, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
        codec, calls = make.SceneCodec(load_vae(weights.vae)), []
        encode = codec.whole.encode
        monkeypatch.setattr(codec.whole, "encode", lambda pixels: calls.append(1) or encode(pixels))
        frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
        assert torch.equal(codec.encode(frames), codec.encode(frames.copy()))
        assert len(calls) == 1
        codec.encode(255 - frames)
        codec.forget()
        codec.encode(frames)
        assert len(calls) == 3


class TestVideos:
    def video(self, weights: Weights, clips: int, noise: str = "unified", degradation: bool = True) -> np.ndarray:
        filmed = film(SMALL, 0)
        controls = make.global_controls(SMALL.plan, filmed)
        backend = make.make_backend(weights, Strengths(), degradation)
        return make.make_video(SMALL.plan, clips, filmed["rgb"][0], controls, UnifiedNoise(7, noise), backend)

    def test_a_later_clip_adds_its_frames_and_leaves_the_others(self, weights: Weights) -> None:
        one, two = self.video(weights, 1), self.video(weights, 2)
        assert one.shape == (9, 32, 48, 3) and two.shape == (17, 32, 48, 3)
        np.testing.assert_array_equal(two[:9], one)

    def test_noise_and_network_make_a_difference(self, weights: Weights) -> None:
        full = self.video(weights, 1)
        assert (self.video(weights, 1, noise="per clip") != full).any()
        assert (self.video(weights, 1, degradation=False) != full).any()

    def test_a_scene_measures_the_same_whatever_was_measured_before(self, weights: Weights) -> None:
        task = Task(weights, SMALL, (FULL, "no control"))
        alone = measure.measure_scene(task, 1)
        measure.measure_scene(task, 0)
        again = measure.measure_scene(task, 1)
        assert again.variants == alone.variants and again.one_clip == alone.one_clip and again.truth == alone.truth
        assert alone.one_clip[BOTH]["psnr"] == alone.variants[FULL]["psnr"][0], "the first clip of twelve is the one clip"
        assert alone.one_clip[NONE]["psnr"] == alone.variants["no control"]["psnr"][0]
        assert len({scores["psnr"] for scores in alone.one_clip.values()}) == len(alone.one_clip), "each case has its own"


def test_a_perfect_video_has_perfect_scores() -> None:
    filmed, plan = film(SMALL, 0), SMALL.plan
    found = filmed["rgb"].copy()
    found[1:] ^= 1  # else PSNR is infinite
    scores = measure.measure_video(plan, found, filmed["rgb"], filmed["dense"])
    truth = measure.measure_truth(plan, filmed["rgb"], filmed["dense"])
    np.testing.assert_allclose(scores["psnr"], 20 * np.log10(255), atol=1e-3)
    assert scores["drift"] == pytest.approx(0, abs=1e-3) and min(scores["ssim"]) > 0.98
    np.testing.assert_allclose(scores["adherence"], truth["adherence"], atol=0.01)
    assert scores["seam"] == pytest.approx(truth["seam"], rel=0.2)
    assert max(scores["colour_drift"], scores["contrast_drift"]) < 0.5


def test_colour_drift_leaves_out_what_the_truth_does_itself() -> None:
    filmed, plan = film(SMALL, 0), SMALL.plan
    truth = np.minimum(filmed["rgb"], 200)
    found = truth.copy()
    found[measure.new_frames(plan, 1), ..., 0] += 30
    scores = measure.measure_video(plan, found, truth, filmed["dense"])
    assert scores["colour_drift"] == pytest.approx(10) and scores["contrast_drift"] == pytest.approx(0)
    np.testing.assert_allclose(scores["channel_changes"][0], [30, 0, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("metric", "difference", "claimed", "expected"),
    [
        ("psnr", Difference(-1, -2, -0.1), True, "agree"),
        ("psnr", Difference(1, 0.1, 2), True, "disagree"),
        ("psnr", Difference(-1, -2, 0.1), True, "undecided"),
        ("drift", Difference(1, 0.1, 2), True, "agree"),
        ("drift", Difference(-1, -2, -0.1), True, "disagree"),
        ("drift", Difference(-1, -2, -0.1), False, "-"),
    ],
)
def test_verdicts(metric: str, difference: Difference, claimed: bool, expected: str) -> None:
    assert report.verdict(difference, METRICS[metric], claimed) == expected


def results(**changed: float) -> list[SceneResult]:
    """Results of 12 scenes that reach every figure, by a little noise around these means."""
    means = {BOTH: 24.0, DENSE: 23.0, SPARSE: 22.0, NONE: 21.0, INVERTED: 22.0, OTHER: 20.0, "drift": 3.0, "seam": 2.0}
    means |= changed
    chance = np.random.default_rng(0)
    made = []
    for number in range(12):
        one_clip = {
            case: {"psnr": means[case] + chance.normal(0, 0.1), "ssim": 0.7, "adherence": means[case] / 100}
            for case in (BOTH, DENSE, SPARSE, NONE, INVERTED, OTHER)
        }
        late = 100.0 if number >= report.ROLLED_OUT else 0.0
        full = dict.fromkeys(METRICS, 1.0) | {"drift": means["drift"] + late, "seam": means["seam"] + late}
        made.append(SceneResult(10_000 + number, {}, {FULL: full}, one_clip, {}, 1, 1.0))
    return made


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, None),
        ({NONE: 22.5}, 0),
        ({DENSE: 24.5}, 1),
        ({SPARSE: 24.0}, 1),
        ({INVERTED: 24.0}, 3),
        ({"drift": 4.5}, 4),
        ({"seam": 2.6}, 5),
    ],
)
def test_each_required_figure_is_judged_by_itself(changed: dict[str, float], missed: int | None) -> None:
    holds = [one["holds"] for one in report.requirements(results(**changed))]
    assert [number for number, held in enumerate(holds) if not held] == ([] if missed is None else [missed])


def test_depth_adherence_has_to_be_better_in_nine_of_ten_scenes() -> None:
    measured = results()
    for one in measured[:2]:
        one.one_clip[NONE]["adherence"] = 0.9
    share = report.requirements(measured)[2]
    assert share["mean"] == pytest.approx(10 / 12) and not share["holds"]


def test_numbers_that_json_does_not_know_become_null() -> None:
    value = {"a": [float("inf"), 1.23456], "b": float("nan"), "c": None, "d": "text", "e": True}
    assert report.jsonable(value) == {"a": [None, 1.2346], "b": None, "c": None, "d": "text", "e": True}


def test_both_shipped_networks_are_of_one_backbone() -> None:
    shipped = Weights()
    trained = make.load_networks(shipped.backbone, shipped.overlay, shipped.control)
    undegraded = make.load_networks(shipped.backbone, shipped.undegraded_overlay, shipped.undegraded_control)
    for ours, theirs, learnt in zip(trained, undegraded, (".attn1.", ""), strict=True):
        other = theirs.state_dict()
        changed = {name for name, value in ours.state_dict().items() if not torch.equal(value, other[name])}
        assert changed and all(learnt in name for name in changed)


class TestCommand:
    def options(self, weights: Weights) -> list[str]:
        return [part for name, path in vars(weights).items() for part in (f"--{name.replace('_', '-')}", str(path or "none"))]

    def test_a_small_run(self, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out, sheet = tmp_path / "out.json", tmp_path / "sheet.png"
        chosen = ["--seeds", "1", "--clips", "2", "--variants", "dense only,trained without degradation"]
        assert ablation.main([*chosen, "--out", str(out), "--sheet", str(sheet), *self.options(weights)]) == 0
        printed = capsys.readouterr()
        assert "scene 1 of 1 (seed 10000)" in printed.err
        *_, last = printed.out.splitlines()
        shown, written = json.loads(last), json.loads(out.read_text())
        (scene,) = written.pop("by_scene")
        assert shown == written
        assert list(written["variants"]) == [FULL, "dense only", "trained without degradation"]
        for name, row in written["variants"].items():
            assert row["psnr"]["mean"] == pytest.approx(np.mean(scene["variants"][name]["psnr"]), abs=1e-3)
        dense = written["variants"]["dense only"]["psnr"]
        full = written["variants"][FULL]["psnr"]
        assert dense["less_full"]["mean"] == pytest.approx(dense["mean"] - full["mean"], abs=1e-3)
        assert dense["less_full"]["low"] is None and dense["verdict"] == "undecided", "one scene decides nothing"
        assert len(written["must_hold"]) == 6 and not written["must_hold"][0]["holds"]
        rows = 2 + 3
        with Image.open(sheet) as picture:
            assert picture.size == (report.LABEL_WIDTH + 2 * 96, rows * 64)

    def test_a_missing_file_is_named_before_anything_is_made(
        self, weights: Weights, capsys: pytest.CaptureFixture[str]
    ) -> None:
        missing = replace(weights, undegraded_control=Path("nowhere.safetensors"))
        assert ablation.main(["--seeds", "1", *self.options(missing)]) == 1
        printed = capsys.readouterr()
        assert "nowhere.safetensors" in printed.err and "--variants" in printed.err and not printed.out

    @pytest.mark.parametrize("arguments", [["--variants", "fast"], ["--clips", "1"], ["--seeds", "0"], ["--processes", "0"]])
    def test_bad_options_are_refused(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            ablation.main(arguments)
