"""Roll-outs: the videos that generation would make, many at once, and what their clips start from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from longvie_core.autoregress import Carry, ClipInputs, HistorySettings, generate, initial_latents, sample_euler
from longvie_core.backends.diffusers import VaeCodec, velocity
from longvie_core.clips import ClipPlan
from longvie_core.conditioning import encoded_history_frames, image_condition
from longvie_core.dual_control import DualControlConfig
from longvie_core.noise import UnifiedNoise, clip_seed
from longvie_core.schedule import flow_sigmas
from longvie_core.training.__main__ import main
from longvie_core.training.control_task import Conditions, ControlledBackbone, ControlTask, tiny_network
from longvie_core.training.data import SceneClips
from longvie_core.training.latents import ClipLatents, TrainingCodec, Wanted
from longvie_core.training.rollouts import RollOut, begin, groups_of, roll_out, videos_of
from longvie_core.training.scenes import SceneSet, SceneSettings, open_set
from longvie_core.training.stages import TINY_JOINT, TINY_ROBUST
from longvie_core.training.trainer import generator_for
from longvie_core.training.vae import tiny_vae
from longvie_core.wan import WanConfig

SETTINGS = SceneSettings(width=32, height=32, clips=3, frames=9, grid=4)
BACKBONE = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=3, text_dim=16, freq_dim=16, has_image_input=False)
STREAMS = DualControlConfig(dim=32, control_dim=16, ffn_dim=24, num_heads=1, num_layers=2, image=False)
HISTORIES = (0, 5, 8, 9)
SEED = 5


def no_text(caption: str) -> Tensor:
    return torch.zeros(1, 1, 16)


def network() -> ControlledBackbone:
    """Every weight matters, so that controls, start frame and history reach the output."""
    torch.manual_seed(0)
    made = tiny_network(BACKBONE, STREAMS)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return made.requires_grad_(False).eval()


def vae() -> torch.nn.Module:
    torch.manual_seed(0)
    return tiny_vae(4).requires_grad_(False)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    found = open_set(tmp_path_factory.mktemp("scenes"), SETTINGS, 3)
    list(found.render(range(3)))
    return found


@pytest.fixture(scope="module")
def model() -> RollOut:
    return RollOut(network(), TrainingCodec(vae(), precision=torch.float32), no_text, history=8, seed=SEED)


@pytest.fixture(scope="module")
def cache(scenes: SceneSet, model: RollOut, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    found = ClipLatents(SceneClips(scenes), Wanted(HISTORIES), folder, "vae")
    found.reserve()
    list(found.fill(range(9), model.codec, batch=9))
    return folder


@pytest.fixture
def latents(scenes: SceneSet, cache: Path) -> ClipLatents:
    found = ClipLatents(SceneClips(scenes), Wanted(HISTORIES), cache, "vae")
    begin(found, {"model": "nobody's"})
    begin(found, {"model": "ours"})
    return found


# ---- which clips follow one another


def source_with(pasts: list[int]) -> SimpleNamespace:
    class Source(SimpleNamespace):
        def __len__(self) -> int:
            return len(pasts)

    return Source(past=pasts.__getitem__)


def test_videos_are_what_lies_between_first_clips() -> None:
    videos = videos_of(source_with([0, 8, 16, 0, 0, 8, 0, 8]))
    assert [list(video) for video in videos] == [[0, 1, 2], [3], [4, 5], [6, 7]]
    assert list(groups_of(videos, [0, 1, 2, 3], 2)) == [[0], [1], [2, 3]]
    assert list(groups_of([range(2)] * 5, [0, 2, 3, 4], 3)) == [[0, 2, 3], [4]]


# ---- what is generated


class Generation:
    """The loop's own backend, one clip at a time, on diffusers' chunked VAE: what roll-outs are held against."""

    def __init__(self, network: ControlledBackbone) -> None:
        self.network, self.codec = network, VaeCodec(vae())
        self.encode, self.encode_first_frame = self.codec.encode, self.codec.encode_first_frame
        self.encode_image = self.codec.encode_first_frame

    def decode(self, latents: Tensor) -> np.ndarray:
        return self.codec.decode(self.codec.denormalised(latents))

    @torch.no_grad()
    def sample(self, inputs: ClipInputs) -> Tensor:
        def predicted(latents: Tensor, timestep: Tensor, _positive: bool) -> Tensor:
            image = image_condition(inputs.image)
            given = (no_text(""), image, inputs.dense, inputs.sparse, inputs.history)
            return velocity(self.network.backbone, self.network.control, latents, timestep, *given)

        *_, latents = sample_euler(predicted, initial_latents(inputs.noise, inputs.history), flow_sigmas(8), cfg=1)
        return latents


class Shown:
    """Control pictures of a rendered video, clip by clip."""

    def __init__(self, source: SceneClips, video: int, name: str) -> None:
        self.clips = [getattr(source[row], name) for row in range(3 * video, 3 * video + 3)]

    def window(self, plan: ClipPlan, clip: int) -> list[np.ndarray]:
        return list(self.clips[clip])

    def digest(self, plan: ClipPlan, clip: int) -> str:
        return str(clip)


def test_a_roll_out_is_what_generation_makes(latents: ClipLatents, model: RollOut, scenes: SceneSet) -> None:
    assert list(roll_out(latents, model, range(3), batch=2)) == [0, 1, 2]
    source, plan = latents.source, SETTINGS.plan
    backend = Generation(model.network)
    for video in (0, 2):
        results = generate(
            plan,
            range(3),
            Carry(scenes.rgb[video, :1], first=True),
            Shown(source, video, "dense"),
            Shown(source, video, "sparse"),
            UnifiedNoise(clip_seed(SEED, video)).for_clip,
            backend,
            HistorySettings(8),
        )
        frames = np.zeros((0, 32, 32, 3), np.uint8)
        for result in results:
            frames = np.concatenate([frames[:-1], result.frames])
            row = 3 * video + result.clip + 1
            if result.clip == 2:
                break
            wanted = {"image": backend.encode_first_frame(frames[-1], 9)}
            for length in (5, 8, 9):
                wanted[f"history_{length}"] = backend.encode(frames[-length:][: encoded_history_frames(length)])
            for name, value in wanted.items():
                found = latents.table("rolled").read(name, [row])
                # Latents have a spread of about 1, and a clip's start is kept in 16 bits: a few pixels fall to a neighbour.
                assert (found - value).abs().mean() < 0.005 * value.std(), (video, result.clip, name)
                clean = latents.clean.read(name, [row])
                assert (found - clean).abs().mean() > 0.2 * value.std()


def test_videos_do_not_depend_on_what_is_generated_beside_them(latents: ClipLatents, model: RollOut) -> None:
    list(roll_out(latents, model, [1], batch=1))
    alone = latents.rolled.read("history_8", [4, 5])
    begin(latents, {"model": "ours, again"})
    assert latents.missing_rolled(range(9)) == 6
    list(roll_out(latents, model, range(3), batch=3))
    together = latents.rolled.read("history_8", [4, 5])
    assert (alone - together).abs().mean() < 0.02 * alone.std()
    others = latents.rolled.read("history_8", [1, 2])
    assert (others - together).abs().mean() > 0.2 * alone.std()


def test_clips_get_their_videos_noise_and_what_was_made_before_them(latents: ClipLatents, model: RollOut, monkeypatch) -> None:
    seen, told = [], []

    def sampled(network: ControlledBackbone, noise: Tensor, given: Conditions) -> Tensor:
        seen.append(noise)
        told.append(given)
        return len(seen) * noise

    monkeypatch.setattr("longvie_core.training.rollouts.sampled", sampled)
    list(roll_out(latents, model, range(3), batch=3))
    assert len(seen) == 3 and all(torch.equal(noise, seen[0]) for noise in seen)
    assert (seen[0][0] - seen[0][1]).abs().mean() > 0.5
    assert not latents.missing_rolled(range(9))
    assert told[0].history is None and torch.equal(told[0].image[:, 4:], latents.clean.read("image", [0, 3, 6]))
    for clip in (1, 2):
        rows = [clip, 3 + clip, 6 + clip]
        assert torch.equal(told[clip].image[:, 4:], latents.rolled.read("image", rows))
        assert torch.equal(told[clip].history, latents.rolled.read("history_8", rows))
        assert torch.equal(told[clip].dense[:, :16], latents.clean.read("dense", rows))
        assert torch.equal(told[clip].sparse[:, 20:], latents.clean.read("sparse_first", rows))
        assert told[clip].dense_strength.tolist() == told[clip].sparse_strength.tolist() == [1, 1, 1]


def test_training_shows_a_rolled_out_start_with_the_noise_that_it_came_from(
    latents: ClipLatents, model: RollOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr("longvie_core.training.rollouts.sampled", lambda _network, noise, _given: used.append(noise) or noise)
    list(roll_out(latents, model, range(3), batch=3))
    training = replace(TINY_ROBUST.training, seed=SEED)
    stage = replace(TINY_ROBUST, clips=60, histories=HISTORIES, rolled_out=0.5, training=training)
    task = ControlTask(stage, network(), latents, latents, model.codec, no_text)
    rolled = other = 0
    for step in range(4):
        batch = task.batch(step, generator_for(1, step))
        rows, _ = task.chosen(step, generator_for(1, step))
        for row, noise, is_rolled in zip(rows, batch.noise, batch.degraded.tolist(), strict=True):
            assert torch.equal(noise, used[0][row // 3]) == is_rolled
            rolled, other = rolled + is_rolled, other + (not is_rolled)
    assert rolled > 40 and other > 40


def test_what_is_generated_already_is_left_as_it_is(latents: ClipLatents, model: RollOut) -> None:
    list(roll_out(latents, model, [1], batch=1))
    again = ClipLatents(latents.source, latents.wanted, latents.folder.parent, "vae")
    begin(again, {"model": "ours"})
    assert list(roll_out(again, model, range(3), batch=2)) == [0, 2]
    assert not again.rolled.done("image", [0, 3, 6]).any()  # videos begin with the picture that is given
    again.require_rolled()
    begin(again, {"model": "another"})
    with pytest.raises(ValueError, match="6 training clips are not rolled out: run 'roll-out' first"):
        again.require_rolled()
    assert json.loads((again.rolled.folder / "model.json").read_text()) == {"model": "another"}
    assert not again.missing(range(9))  # what was encoded is still there


def test_clips_shorter_than_the_history_are_refused(latents: ClipLatents, model: RollOut) -> None:
    with pytest.raises(ValueError, match="a history of 12 frames is asked for, but clips have 9"):
        list(roll_out(latents, replace(model, history=12), [0], batch=1))


# ---- the command line


def test_roll_outs_are_what_the_robust_stage_learns_from(scenes: SceneSet, tmp_path: Path, capsys) -> None:
    folder = str(Path(scenes.rgb.filename).parent)
    vae().save_pretrained(tmp_path / "vae")
    common = ["--clips", folder, "--held-out", folder, "--cache", str(tmp_path / "cache"), "--vae", str(tmp_path / "vae")]
    common += ["--videos", "2", "--mirrored", "--precision", "float32", "--set", "training.precision=no"]
    common += ["--set", "training.steps=2", "--set", "clips=2", "--set", "sheet_clips=1"]
    codec = TrainingCodec(vae(), precision=torch.float32)
    held = ClipLatents(SceneClips(scenes), Wanted(HISTORIES), tmp_path / "unused", "vae")
    held.missing = lambda rows: 0
    stage = replace(TINY_JOINT, weights="float32")
    ControlTask(stage, network(), held, held, codec, no_text).export(network(), tmp_path / "model")
    given = ["--backbone", str(tmp_path / "model" / "backbone.safetensors")]
    given += ["--control", str(tmp_path / "model" / "control.safetensors")]
    run = ["tiny-robust", *common, *given]
    assert main(["roll-out", *run]) == 1
    assert "12 of 12 training clips are not encoded: run 'prepare' first" in capsys.readouterr().err
    assert main(["prepare", *run, "--batch", "5", "--workers", "1"]) == 0
    train = ["train", "tiny-robust", str(tmp_path / "run"), *common, *given]
    assert main(train) == 1
    assert "8 training clips are not rolled out: run 'roll-out' first" in capsys.readouterr().err
    assert main(["roll-out", *run[:-2]]) == 1
    assert "give the model that generates the videos, with --backbone and --control" in capsys.readouterr().err
    assert main(["roll-out", *run, "--batch", "3"]) == 0
    assert "4 videos generated" in capsys.readouterr().out
    assert main(train) == 0
    overlay = tmp_path / "run" / "export" / "dit.safetensors"
    assert main(["roll-out", *run, "--overlay", str(overlay)]) == 0  # another model: all of it anew
    assert "4 videos generated" in capsys.readouterr().out
    assert main(["roll-out", *run, "--overlay", str(overlay)]) == 0
    assert "generated" not in capsys.readouterr().out


def test_only_rendered_scenes_are_mirrored(tmp_path: Path, capsys) -> None:
    common = ["--clips", str(tmp_path), "--held-out", str(tmp_path), "--cache", str(tmp_path), "--vae", str(tmp_path)]
    assert main(["prepare", "tiny-joint", *common, "--mirrored"]) == 1
    assert "only these can be mirrored: leave out --mirrored" in capsys.readouterr().err
