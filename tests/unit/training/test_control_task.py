"""LongVie's own training at toy size: what is shown, what is learnt, exact resume, files that open."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file

from longvie_core.backends.diffusers.blocks import adapt_backbone
from longvie_core.backends.diffusers.forward import velocity
from longvie_core.backends.diffusers.weights import load_backbone, load_control, original_state
from longvie_core.model.dual_control import DualControlConfig, Strengths
from longvie_core.model.wan import WanConfig
from longvie_core.training.__main__ import main
from longvie_core.training.data.codec import TrainingCodec
from longvie_core.training.data.latents import ClipLatents
from longvie_core.training.data.scene_clips import SceneClips
from longvie_core.training.data.scenes import SceneSet, SceneSettings, open_set
from longvie_core.training.data.spec import LatentSpec
from longvie_core.training.degradation.dense import DepthDegradation
from longvie_core.training.degradation.frames import FrameDegradation, is_degraded
from longvie_core.training.draws import generator_for
from longvie_core.training.loop.settings import TrainSettings
from longvie_core.training.loop.trainer import train
from longvie_core.training.losses import flow_matching
from longvie_core.training.networks.controlled_backbone import (
    Conditions,
    ControlledBackbone,
    control_from_backbone,
    require_gradients,
    tiny_network,
)
from longvie_core.training.networks.whole_clip_vae import tiny_vae
from longvie_core.training.stages import CONTROL, CONTROL_ONLY, EVERYTHING, TINY_JOINT, WITH_SELF_ATTENTION, Stage
from longvie_core.training.tasks.batches import SampleView, read_views
from longvie_core.training.tasks.control import ControlTask, sheet_rows
from longvie_core.weights.backbone import diffusers_backbone_config, read_backbone
from longvie_core.weights.control import read_control
from longvie_core.weights.overlay import read_overlay

SETTINGS = SceneSettings(width=32, height=32, clips=4, frames=5, grid=4)
BACKBONE = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=3, text_dim=16, freq_dim=16, has_image_input=False)
STREAMS = DualControlConfig(dim=32, control_dim=16, ffn_dim=24, num_heads=1, num_layers=2, image=False)

STAGE = Stage(
    trainable=EVERYTHING,
    training=TrainSettings(steps=50, ema=0.9, checkpoint_every=20, sheet_every=50, log_every=10),
    batch_size=4,
    optimizer=replace(TINY_JOINT.optimizer, lr=5e-3),
    timesteps=TINY_JOINT.timesteps,
    streams=TINY_JOINT.streams,
    depth=DepthDegradation(probability=0.5, kernels=(3, 5)),
    first_frame=FrameDegradation(probability=0.5, round_trip_share=1.0, round_trips=(0, 1), round_trip_weights=(1.0, 3.0)),
    histories=(0, 5),
    variants=2,
    checkpointing=False,
    sheet_clips=2,
    sheet_history=5,
)


def no_text(caption: str) -> torch.Tensor:
    return torch.zeros(1, 1, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def codec() -> TrainingCodec:
    torch.manual_seed(0)
    return TrainingCodec(tiny_vae(4), precision=torch.float32)


@pytest.fixture(scope="module")
def latents(folder: Path, codec: TrainingCodec) -> ClipLatents:
    scenes: SceneSet = open_set(folder / "scenes", SETTINGS, 2)
    list(scenes.render(range(2)))
    spec = LatentSpec(STAGE.histories, STAGE.variants, STAGE.first_frame, STAGE.depth)
    found = ClipLatents(SceneClips(scenes), spec, folder / "cache", "vae")
    found.reserve()
    list(found.fill(range(8), codec))
    return found


def shaken(network: ControlledBackbone) -> ControlledBackbone:
    """Every weight matters, so that the control reaches the output."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return network


def task_of(latents: ClipLatents, codec: TrainingCodec, stage: Stage = STAGE, **weights: object) -> ControlTask:
    torch.manual_seed(0)
    network = weights.pop("network", None) or tiny_network(BACKBONE, STREAMS)
    return ControlTask(stage, network, latents, latents, codec, no_text, **weights)


# ---- the network


def conditions(batch: int, dense: list[float], sparse: list[float]) -> Conditions:
    generator = torch.Generator().manual_seed(1)
    image, controls, history = (torch.randn(batch, *shape, 2, 4, 4, generator=generator) for shape in ((20,), (72,), (16,)))
    return Conditions(
        image=image,
        dense=controls[:, :36],
        sparse=controls[:, 36:],
        dense_strength=torch.tensor(dense),
        sparse_strength=torch.tensor(sparse),
        history=history,
        text=torch.zeros(batch, 1, 16),
        vision=None,
    )


@torch.no_grad()
def test_streams_are_weighed_clip_by_clip() -> None:
    torch.manual_seed(0)
    network = shaken(tiny_network(BACKBONE, STREAMS))
    dense, sparse = [1.0, 0.3, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0]
    given = conditions(5, dense, sparse)
    latents, timestep = torch.randn(5, 16, 2, 4, 4), torch.tensor([900.0, 500.0, 10.0, 700.0, 300.0])
    together = network(latents, timestep, given)
    for clip in range(5):
        one = slice(clip, clip + 1)
        alone = velocity(
            network.backbone,
            network.control,
            latents[one],
            timestep[one],
            given.text[one],
            given.image[one],
            given.dense[one],
            given.sparse[one],
            given.history[one],
            strengths=Strengths(dense[clip], sparse[clip]),
        )
        torch.testing.assert_close(together[one], alone, atol=2e-5, rtol=1e-4)
    without = velocity(network.backbone, None, latents, timestep, given.text, given.image, history=given.history)
    torch.testing.assert_close(together[4], without[4], atol=2e-5, rtol=1e-4)
    assert (together[3] - without[3]).abs().max() > 1e-3


@torch.no_grad()
def test_a_new_network_begins_as_its_backbone() -> None:
    torch.manual_seed(0)
    network = tiny_network(BACKBONE, STREAMS)
    given = conditions(1, [1.0], [1.0])
    latents, timestep = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0])
    without = velocity(network.backbone, None, latents, timestep, given.text, given.image, history=given.history)
    assert torch.equal(network(latents, timestep, given), without)
    halves = ControlledBackbone(network.backbone, control_from_backbone(network.backbone, STREAMS))
    assert torch.equal(halves(latents, timestep, given), without)
    rows = original_state(network.backbone)["blocks.1.ffn.0.weight"]
    blocks = halves.control.control_blocks_dense, halves.control.control_blocks_sparse
    for parity, stream in enumerate(blocks):  # P1: even to dense, odd to sparse
        assert torch.equal(stream[1].ffn[0].weight, rows[parity::2, parity::2])


def test_one_token_of_no_text_need_not_be_asked_for() -> None:
    torch.manual_seed(0)
    network = shaken(tiny_network(BACKBONE, STREAMS))
    given = conditions(2, [1.0, 0.4], [1.0, 1.0])
    latents, timestep = torch.randn(2, 16, 2, 4, 4), torch.tensor([500.0, 20.0])
    asked = network(latents, timestep, given)
    gradients = torch.autograd.grad(asked.square().sum(), list(network.parameters()))
    asked_for = dict(zip((name for name, _ in network.named_parameters()), gradients, strict=True))
    network.bypass_text_attention()
    torch.testing.assert_close(network(latents, timestep, given), asked)
    require_gradients(network, EVERYTHING)
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert len(frozen) == 3 * 8 + 2 * 2 * 8
    learnt = {name: value for name, value in network.named_parameters() if value.requires_grad}
    found = torch.autograd.grad(network(latents, timestep, given).square().sum(), list(learnt.values()))
    for name, gradient in zip(learnt, found, strict=True):
        torch.testing.assert_close(gradient, asked_for[name], rtol=1e-3, atol=1e-3)
    assert max(asked_for[name].abs().max() for name in frozen) < 1e-3 * max(value.abs().max() for value in found)


# ---- what is shown


def test_clips_have_the_history_of_their_step(latents: ClipLatents, codec: TrainingCodec) -> None:
    task = task_of(latents, codec)
    lengths, rows = Counter(), Counter()
    for step in range(400):
        chosen, length = task.choose_clips(step, generator_for(9, step))
        lengths[length] += 1
        rows.update((length, row) for row in chosen)
        assert task.choose_clips(step, generator_for(10, step))[1] == length  # another process: its own clips, the same work
    assert abs(lengths[5] - 200) < 4 * 10
    assert {row for length, row in rows if length == 5} == {1, 2, 3, 5, 6, 7}
    assert {row for length, row in rows if length == 0} == set(range(8))


def test_clips_are_degraded_as_often_as_the_stage_says(latents: ClipLatents, codec: TrainingCodec) -> None:
    task = task_of(latents, codec)
    count = 2000
    late = [task.draw_view(3, 49, generator_for(1, number)) for number in range(count)]
    sigma = (0.25 / count) ** 0.5
    assert abs(sum(clip.start is not None for clip in late) / count - 0.5) < 4 * sigma
    assert abs(sum(clip.depth is not None for clip in late) / count - 0.5) < 4 * sigma
    assert {clip.start for clip in late} == {None, 0, 1}
    shares = Counter((clip.dense > 0, clip.sparse > 0) for clip in late)
    for streams, share in {(True, True): 0.5, (True, False): 0.2, (False, True): 0.2, (False, False): 0.1}.items():
        assert abs(shares[streams] / count - share) < 4 * sigma
    weakened = [clip.dense for clip in late if 0 < clip.dense < 1]
    assert abs(len(weakened) / (0.7 * count) - 0.15) < 4 * sigma and min(weakened) >= 0.05
    for clip in late:  # no round trip at all is no degradation
        drawn = clip.start is not None and is_degraded(latents.spec.frame_operators(3, clip.start))
        assert clip.degraded == drawn
    early = [task.draw_view(3, 32, generator_for(1, number)) for number in range(200)]
    assert all(clip.depth is None for clip in early)
    assert any(task.draw_view(3, 33, generator_for(1, number)).depth is not None for number in range(50))  # 2/3 of 50 steps


def test_conditions_come_from_the_drawn_variants(latents: ClipLatents) -> None:
    shown = [SampleView(2), SampleView(3, start=1, depth=0, dense=0.5, sparse=0.0)]
    given = read_views(latents, shown, 5, no_text).conditions()
    clean, weak, other = latents.clean, latents.table(1), latents.table(0)
    assert torch.equal(given.image[:, 4:], torch.cat([clean.read("image", [2]), weak.read("image", [3])]))
    assert torch.equal(given.image[:, :4, 0], torch.ones(2, 4, 4, 4)) and not given.image[:, :4, 1].any()
    assert torch.equal(given.history, torch.cat([clean.read("history_5", [2]), weak.read("history_5", [3])]))
    assert torch.equal(given.dense[:, :16], torch.cat([clean.read("dense", [2]), other.read("dense", [3])]))
    assert torch.equal(given.dense[1, 20:], other.read("dense_first", [3])[0])
    assert torch.equal(given.sparse[:, :16], clean.read("sparse", [2, 3]))
    assert given.dense_strength.tolist() == [1.0, 0.5] and given.sparse_strength.tolist() == [1.0, 0.0]
    assert read_views(latents, shown, 0, no_text).history is None


def test_the_loss_is_that_of_the_noise_that_was_added(latents: ClipLatents, codec: TrainingCodec) -> None:
    stage = replace(STAGE, first_frame=None, depth=None)
    task = task_of(latents, codec, stage)
    seen = {}

    def network(noisy: torch.Tensor, timestep: torch.Tensor, given: Conditions) -> torch.Tensor:
        seen.update(noisy=noisy, timestep=timestep)
        return torch.zeros_like(noisy)

    terms = task.losses(network, task.batch(3, generator_for(4)))
    rows, _ = task.choose_clips(3, generator_for(4))
    data = latents.clean.read("video", rows)
    sigma = (seen["timestep"] / 1000)[:, None, None, None, None]
    noise = (seen["noisy"] - (1 - sigma) * data) / sigma
    assert 0.9 < noise.std() < 1.1
    expected = flow_matching(torch.zeros_like(data), noise - data, torch.ones(2)).mean()
    assert set(terms) == {"flow"}
    torch.testing.assert_close(terms["flow"], expected, rtol=1e-3, atol=0)


# ---- training


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    with safe_open(folder / "export" / name, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


@torch.no_grad()
def mean_flow(task: ControlTask) -> float:
    """The loss over many fixed draws."""
    seen = []
    for step in range(30):
        seen.append(task.losses(task.network, task.batch(step, generator_for(77, step)))["flow"].item())
    return float(np.mean(seen))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(latents: ClipLatents, codec: TrainingCodec, folder: Path) -> None:
    task = task_of(latents, codec)
    before = mean_flow(task)
    train(task, STAGE.training, folder / "whole")
    assert mean_flow(task) < 0.85 * before
    train(task_of(latents, codec), STAGE.training, folder / "parts", 27)
    # Killed in the middle of the checkpoint at step 27: it goes on from the one at step 20.
    (folder / "parts" / "checkpoint_0000027" / "step.json").unlink()
    train(task_of(latents, codec), STAGE.training, folder / "parts")
    for name in ("backbone.safetensors", "control.safetensors"):
        whole, parts = weights(folder / "whole", name), weights(folder / "parts", name)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    lines = [json.loads(line) for line in (folder / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "flow" in line] == [10, 20, 30, 40, 50]
    figures = next(line for line in lines if "psnr both" in line)
    assert set(figures) == {"step", *(f"psnr {name}" for name in ("both", "dense", "sparse", "none", "dense inverted", "vae"))}
    assert (folder / "whole" / "sheets" / "0000050.png").is_file()


def test_exports_open_and_give_the_same_velocity(latents: ClipLatents, codec: TrainingCodec, tmp_path: Path) -> None:
    task = task_of(latents, codec, replace(STAGE, weights="float32"), network=shaken(tiny_network(BACKBONE, STREAMS)))
    task.export(task.network, tmp_path)
    assert read_backbone(tmp_path / "backbone.safetensors")[0] == BACKBONE
    assert read_control(tmp_path / "control.safetensors")[0] == STREAMS
    again = ControlledBackbone(load_backbone(tmp_path / "backbone.safetensors"), load_control(tmp_path / "control.safetensors"))
    given = conditions(1, [1.0], [1.0])
    latent, timestep = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0])
    with torch.no_grad():
        torch.testing.assert_close(again(latent, timestep, given), task.network(latent, timestep, given))


def test_sheets_compare_clips_with_their_truth(latents: ClipLatents, codec: TrainingCodec) -> None:
    task = task_of(latents, codec, network=shaken(tiny_network(BACKBONE, STREAMS)))
    rows = sheet_rows(latents, STAGE)
    assert rows == [1, 5]  # spread over those with a past
    with torch.no_grad():
        picture, figures = task.sheet(task.network)
    assert picture.shape == (2 * 2 * 32, 5 * 32, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[32:64, :32], latents.source[1].frames[-1])
    np.testing.assert_array_equal(picture[64:96, 32:64], latents.source[5].dense[2])
    assert len({round(value, 4) for value in figures.values()}) == 6  # every way of sampling gives other pictures


def test_the_control_stage_leaves_the_backbone_as_it_is(latents: ClipLatents, codec: TrainingCodec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = adapt_backbone(WanTransformer3DModel(**diffusers_backbone_config(BACKBONE)))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    training = TrainSettings(steps=6, checkpoint_every=3, sheet_every=6, log_every=1)
    stage = replace(STAGE, trainable=CONTROL_ONLY, training=training, checkpointing=True)

    def network() -> ControlledBackbone:
        return ControlledBackbone(backbone, control_from_backbone(backbone, STREAMS))

    for name, stops in (("whole", [None]), ("parts", [3, None])):
        for stop in stops:
            train(task_of(latents, codec, stage, network=network()), training, tmp_path / name, stop)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    whole, parts = weights(tmp_path / "whole", "control.safetensors"), weights(tmp_path / "parts", "control.safetensors")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(value.any() for key, value in whole.items() if key.startswith("control_combine_linears"))
    with safe_open(tmp_path / "whole" / "checkpoint_0000006" / "model.safetensors", framework="pt") as file:
        assert all(key.startswith("control.") for key in file.keys())  # noqa: SIM118 (not a dict)


def test_the_history_stage_exports_an_overlay(latents: ClipLatents, codec: TrainingCodec, tmp_path: Path) -> None:
    training = TrainSettings(steps=2, sheet_every=9, checkpoint_every=9)
    stage = replace(STAGE, trainable=WITH_SELF_ATTENTION, training=training)
    task = task_of(latents, codec, stage, network=shaken(tiny_network(BACKBONE, STREAMS)))
    before = {key: value.clone() for key, value in original_state(task.network.backbone).items()}
    train(task, training, tmp_path)
    read_overlay(tmp_path / "export" / "dit.safetensors", 3, 32)
    changed = {key for key, value in original_state(task.network.backbone).items() if not torch.equal(value, before[key])}
    assert changed and all(".self_attn." in key for key in changed)


def test_muon_learns_the_matrices_of_the_blocks(latents: ClipLatents, codec: TrainingCodec) -> None:
    task = task_of(latents, codec, replace(STAGE, optimizer=replace(STAGE.optimizer, muon_lr=0.01)))
    adam, muon = task.optimizers()
    count = sum(value.numel() for value in task.network.parameters())
    assert sum(value.numel() for optimizer in (adam, muon) for value in optimizer.param_groups[0]["params"]) == count
    assert (
        len(muon.param_groups[0]["params"]) == 3 * 10 + 2 * 2 * 10
    )  # eight of attention, two of the feed-forward; not the time modulation


def test_missing_latents_are_named(latents: ClipLatents, codec: TrainingCodec, folder: Path) -> None:
    fewer = ClipLatents(latents.source, latents.spec, folder / "empty", "vae")
    with pytest.raises(ValueError, match="8 of 8 training clips are not encoded: run 'prepare' first"):
        task_of(fewer, codec)


# ---- the command line


def test_from_scenes_to_a_trained_network(folder: Path, latents: ClipLatents, tmp_path: Path, capsys, monkeypatch) -> None:
    torch.manual_seed(0)
    tiny_vae(4).save_pretrained(tmp_path / "vae")
    scenes = str(folder / "scenes")
    common = ["--clips", scenes, "--held-out", scenes, "--cache", str(tmp_path / "cache"), "--vae", str(tmp_path / "vae")]
    common += ["--videos", "1", "--set", "histories=[0,5]", "--set", "sheet_history=5", "--set", "sheet_clips=1"]
    common += ["--set", "training.steps=2", "--set", "batch_size=2", "--set", "training.precision=no"]
    monkeypatch.setattr("longvie_core.training.train.TINY_BACKBONE", BACKBONE)
    monkeypatch.setattr("longvie_core.training.train.TINY_CONTROL", STREAMS)
    run = ["train", "tiny-joint", str(tmp_path / "run")]
    assert main([*run, *common]) == 1
    assert "run 'prepare' first" in capsys.readouterr().err
    assert main(["prepare", "tiny-joint", *common, "--batch", "5", "--workers", "1"]) == 0
    assert main([*run, *common]) == 0
    assert read_backbone(tmp_path / "run" / "export" / "backbone.safetensors")[0] == BACKBONE
    assert main(["train", "control", str(tmp_path / "other"), *common]) == 1
    assert "give the pretrained backbone with --backbone" in capsys.readouterr().err
    assert main(["prepare", "tiny-joint", *common, "--set", "nothing=1"]) == 1
    assert "no setting 'nothing'" in capsys.readouterr().err
    assert CONTROL.trainable == CONTROL_ONLY


def test_a_training_that_diverges_says_so(capsys, monkeypatch) -> None:
    def diverged(*_: object) -> None:
        raise FloatingPointError("step 7: the loss is nan")

    monkeypatch.setattr("longvie_core.training.__main__.train_stage", diverged)
    folders = [text for name in ("clips", "held-out", "cache", "vae") for text in (f"--{name}", "nowhere")]
    assert main(["train", "tiny-joint", "run", *folders]) == 1
    assert capsys.readouterr().err == "train failed: step 7: the loss is nan\n"


def test_only_rendered_scenes_are_mirrored(tmp_path: Path, capsys) -> None:
    common = ["--clips", str(tmp_path), "--held-out", str(tmp_path), "--cache", str(tmp_path), "--vae", str(tmp_path)]
    assert main(["prepare", "tiny-joint", *common, "--mirrored"]) == 1
    assert "only these can be mirrored: leave out --mirrored" in capsys.readouterr().err


def test_the_papers_stages_follow_one_another(folder: Path, latents: ClipLatents, tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    tiny_vae(4).save_pretrained(tmp_path / "vae")
    scenes = str(folder / "scenes")
    common = ["--clips", scenes, "--held-out", scenes, "--cache", str(tmp_path / "cache"), "--vae", str(tmp_path / "vae")]
    common += ["--videos", "1", "--set", "sheet_clips=1", "--set", "training.steps=2", "--set", "training.grad_accum_steps=1"]
    common += ["--set", "training.precision=no", "--precision", "float32"]
    whole = replace(STAGE, weights="float32")
    base = ControlTask(whole, shaken(tiny_network(BACKBONE, STREAMS)), latents, latents, None, no_text)
    base.export(base.network, tmp_path / "base")
    backbone = tmp_path / "base" / "backbone.safetensors"
    control = tmp_path / "base" / "control.safetensors"
    for stage, own in (
        ("degradation", ["--set", "first_frame.probability=1.0", "--set", "first_frame.round_trip_share=0.0"]),
        ("history", ["--set", "histories=[0,5]", "--set", "sheet_history=5", "--set", "first_frame.probability=1.0"]),
    ):
        given = [*common, *own, "--backbone", str(backbone), "--control", str(control)]
        before = load_file(control)
        assert main(["prepare", stage, *given]) == 0
        assert main(["train", stage, str(tmp_path / stage), *given]) == 0
        control = tmp_path / stage / "export" / "control.safetensors"
        after = load_file(control)
        assert before.keys() == after.keys() and any((before[key] != after[key]).any() for key in before)
    overlay = load_file(tmp_path / "history" / "export" / "dit.safetensors")
    assert overlay and all(".self_attn." in key for key in overlay)
