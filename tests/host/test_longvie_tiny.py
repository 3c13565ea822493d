"""The model that comes with the pack: the host lists and opens its files, and the shipped workflows follow their controls."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from devtools.demo import GRID, HEIGHT, SPEED, WIDTH, film_scene, scene_plan
from devtools.host import Host
from devtools.tiny import BACKBONE_FILE, CONTROL_FILE, LONGVIE_TINY, VAE_FILE
from longvie_core.media.write import VideoWriter
from longvie_core.training.data.scenes import SceneSettings
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene
from tests.helpers.workflow import WORKFLOW, Prompt, RunFolder, add, decode, node_id, run, set_inputs

FROM_CLIPS = WORKFLOW
FROM_VIDEO = WORKFLOW.with_name("longvie_tiny_from_video.json")

SCENE, CLIPS = 10_003, 2
FRAMES = scene_plan(CLIPS).output_frames

LOADERS = {
    "UNETLoader": ("unet_name", BACKBONE_FILE),
    "VAELoader": ("vae_name", VAE_FILE),
    "LongVieLoadControl": ("file", CONTROL_FILE),
}


def psnr(video: Path, truth: np.ndarray) -> float:
    """In dB, of all frames but the first, which is given."""
    seen = decode(video)
    assert seen.shape == truth.shape
    return float(10 * np.log10(255**2 / np.mean((seen[1:].astype(float) - truth[1:]) ** 2)))


# ---- files


def test_the_folders_stand_behind_the_users_own(host: Host) -> None:
    known = {entry["name"]: entry["folders"] for entry in host.get("/experiment/models")}
    for kind in ("diffusion_models", "vae", "model_patches"):
        *own, ours = known[kind]
        assert Path(ours) == LONGVIE_TINY / kind
        assert own and all(Path(folder).is_relative_to(host.base) for folder in own)


def test_the_hosts_loaders_list_and_open_the_files(host: Host) -> None:
    prompt: Prompt = {}
    for loader, (name, file) in LOADERS.items():
        kind, *options = host.object_info(loader)["input"]["required"][name]
        offered = kind if isinstance(kind, list) else options[0]["options"]
        assert Path(file).name in offered, loader
        given = {name: Path(file).name} | ({"weight_dtype": "default"} if loader == "UNETLoader" else {})
        add(prompt, f"shown {loader}", "PreviewAny", source=add(prompt, loader, loader, **given))
    run(host, prompt)


def test_nobody_else_has_to_bring_a_file(host: Host) -> None:
    for path in (FROM_CLIPS, FROM_VIDEO):
        prompt: Prompt = json.loads(path.read_text(encoding="utf-8"))
        for loader, (name, file) in LOADERS.items():
            assert prompt[node_id(prompt, loader)]["inputs"][name] == Path(file).name
        assert "CLIPLoader" not in {node["class_type"] for node in prompt.values()}


def test_the_files_are_small() -> None:
    sizes = [(LONGVIE_TINY / file).stat().st_size for file in (BACKBONE_FILE, CONTROL_FILE, VAE_FILE)]
    assert sum(sizes) <= 18_000_000


# ---- pictures


def test_demo_and_workflows_have_the_size_and_the_grid_of_the_training() -> None:
    training, plan = SceneSettings(), scene_plan(12)
    assert plan == training.plan
    assert (GRID.columns, GRID.rows) == (training.grid, training.grid)
    assert training.slowest <= SPEED <= training.fastest
    assert not training.first_seed <= SCENE < training.first_seed + 100_000, "the scene is one of the training's"
    video: Prompt = json.loads(FROM_VIDEO.read_text(encoding="utf-8"))
    cut = video[node_id(video, "LongVieClipPlan")]["inputs"]
    assert (cut["width"], cut["height"], cut["frames_per_clip"], cut["fps"]) == (plan.width, plan.height, plan.frames, plan.fps)
    assert video[node_id(video, "LongVieTrackControl")]["inputs"]["grid"] == training.grid


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """The filmed scene, uint8 [T, H, W, 3]."""
    return np.stack([frame.rgb for frame in render_frames(make_scene(SCENE), FRAMES, Fraction(16, SPEED), WIDTH, HEIGHT)])


@pytest.fixture(scope="module")
def filmed_host(host: Host, truth: np.ndarray) -> Host:
    """The shared host with the scene where the shipped workflows look for theirs: control clips, and a driving video."""
    folder = host.base / "input"
    shutil.rmtree(folder / "longvie_demo", ignore_errors=True)
    film_scene(folder / "longvie_demo", SCENE, CLIPS)
    with VideoWriter(folder / "driving_video.mp4", WIDTH, HEIGHT, Fraction(16), crf=8) as writer:
        for frame in truth:
            writer.write(frame)
    return host


@pytest.mark.slow
@pytest.mark.parametrize(("path", "gain"), [(FROM_CLIPS, 2.0), (FROM_VIDEO, 0.5)], ids=["control clips", "video"])
def test_a_shipped_workflow_follows_its_controls(path: Path, gain: float, filmed_host: Host, truth: np.ndarray) -> None:
    """Its video is nearer to the truth, by ``gain`` dB or more, than one that is made without controls."""
    prompt: Prompt = json.loads(path.read_text(encoding="utf-8"))
    run_name = prompt[node_id(prompt, "LongVieClipLoop")]["inputs"]["run_name"]
    run(filmed_host, prompt)
    set_inputs(prompt, "LongVieMultimodalSampler", dense_strength=0.0, sparse_strength=0.0)
    set_inputs(prompt, "LongVieClipLoop", run_name=f"{run_name} without")
    run(filmed_host, prompt)
    names = (run_name, f"{run_name} without")
    with_controls, without = (psnr(RunFolder.of(filmed_host, name).video, truth) for name in names)
    assert with_controls > without + gain
