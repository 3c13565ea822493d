"""The whole way from a driving video to a generated one, as the shipped CPU workflow goes it in the running host.

On a rendered scene the exact depth and the exact tracks are known; a real video shows that nothing depends on rendered ones.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from devtools.host import Host, RunResult
from devtools.tiny import load_random
from longvie_core.control.tracks.draw import reference_grid
from longvie_core.media.probe import probe
from longvie_core.media.read import read_frames
from longvie_core.media.write import VideoWriter
from longvie_core.world.render import Frame, render_frames
from longvie_core.world.scene import Scene, make_scene
from longvie_core.world.track import track
from tests.helpers.places import ROOT
from tests.helpers.real_videos import real_video
from tests.helpers.workflow import (
    Prompt,
    RunFolder,
    add,
    decode,
    node_id,
    pictures,
    preview,
    rendered_clips,
    report,
    run,
    set_inputs,
    shown,
)

WORKFLOW = ROOT / "workflows" / "api" / "longvie_tiny_from_video.json"

RATE = Fraction(5)
"""Frames a second of scene time; the video has 16: two small clips are so short that the scene has to move faster."""


@dataclass(frozen=True)
class Size:
    """How a test cuts its video."""

    width: int
    height: int
    frames: int
    grid: int


SCENE_SIZE = Size(96, 64, 9, 12)
REAL_SIZE = Size(64, 32, 17, 12)
LENGTH = 2 * SCENE_SIZE.frames - 1


def workflow(file: str, run_name: str, size: Size, steps: int, clips: int) -> Prompt:
    """The shipped workflow on this video with random weights; its control pictures are saved as "dense 1", "sparse 1", ..."""
    prompt: Prompt = load_random(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    set_inputs(prompt, "LoadVideo", file=file)
    set_inputs(prompt, "LongVieClipPlan", width=size.width, height=size.height, frames_per_clip=size.frames)
    set_inputs(prompt, "LongVieTrackControl", grid=size.grid)
    set_inputs(prompt, "LongVieSigmas", steps=steps)
    set_inputs(prompt, "LongVieClipLoop", run_name=run_name)
    loop = prompt[node_id(prompt, "LongVieClipLoop")]["inputs"]
    for clip in range(1, clips + 1):
        for kind in ("dense", "sparse"):
            preview(prompt, loop[kind], loop["plan"], clip, size.frames, key=f"{kind} {clip}")
    add(prompt, "first", "SaveImage", images=loop["first_frame"], filename_prefix="first")
    add(prompt, "depth report", "TestShow", value=[node_id(prompt, "LongVieDepthControl"), 1])
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": [node_id(prompt, "LongVieClipLoop"), 2]}}
    return prompt


def controls(host: Host, result: RunResult, kind: str, clips: int) -> np.ndarray:
    """All pictures of a control: uint8 [clips, frames, H, W, 3]."""
    return np.stack([pictures(host, result, f"{kind} {clip}") for clip in range(1, clips + 1)])


def contact_sheet(path: Path, *rows: np.ndarray) -> None:
    """Pictures [T, H, W, 3] beside each other, a row above the other."""
    sheet = Image.fromarray(np.vstack([np.hstack(list(row)) for row in rows]))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)


# ---- a rendered scene, whose depth and tracks are known


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(21)


@pytest.fixture(scope="module")
def filmed(scene: Scene) -> list[Frame]:
    return list(render_frames(scene, LENGTH, RATE, SCENE_SIZE.width, SCENE_SIZE.height))


@pytest.fixture(scope="module")
def driving_video(tiny_host: Host, filmed: list[Frame]) -> str:
    """The filmed scene in the input folder; returns its name. Its exact disparity lies beside it: filmed.npy."""
    folder = tiny_host.base / "input"
    with VideoWriter(folder / "filmed.mkv", SCENE_SIZE.width, SCENE_SIZE.height, Fraction(16), codec="lossless") as writer:
        for frame in filmed:
            writer.write(frame.rgb)
    np.save(folder / "filmed.npy", np.stack([frame.disparity for frame in filmed]))
    return "filmed.mkv"


@pytest.fixture(scope="module")
def exact_grey(filmed: list[Frame]) -> np.ndarray:
    """The dense control that exact depth gives, by NumPy alone: uint8 [clips, frames, H, W]."""
    disparity = np.stack([frame.disparity for frame in filmed]).astype(np.float64)
    low, high = np.percentile(disparity.astype(np.float32), [5, 95])
    grey = ((high - np.clip(disparity, low, high)) / (high - low) * 255).astype(np.uint8)
    return np.stack([grey[: SCENE_SIZE.frames], grey[SCENE_SIZE.frames - 1 :]])


@pytest.fixture(scope="module")
def without_weights(tiny_host: Host, driving_video: str) -> RunResult:
    """The workflow as it is shipped: parallax and Lucas-Kanade."""
    return run(tiny_host, workflow(driving_video, "full_parallax", SCENE_SIZE, steps=2, clips=2))


def placed(picture: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Where the rectangles of these colours (red, green) are drawn: centres [N, 2], NaN where there is none."""
    same = (np.abs(picture[None, ..., :2] - colours[:, None, None]) <= 1).all(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.stack([np.argwhere(one)[:, ::-1].mean(axis=0) if one.any() else np.full(2, np.nan) for one in same])


def track_errors(scene: Scene, sparse: np.ndarray) -> np.ndarray:
    """Distances in pixels, in the last frames of both clips, from drawn points to exact ones: those that are truly visible."""
    size = (SCENE_SIZE.width, SCENE_SIZE.height)
    grid = reference_grid(*size, SCENE_SIZE.grid)
    found = []
    for clip, drawn in enumerate(sparse):
        start = (SCENE_SIZE.frames - 1) * clip
        times = [float(frame / RATE) for frame in range(start, start + SCENE_SIZE.frames)]
        truth = track(scene, grid, times, *size)
        low, high = grid.min(axis=0), grid.max(axis=0)
        # A point's red and green are its place in the first frame.
        colours = 255 * (grid - low) / (high - low)
        assert np.nanmedian(np.linalg.norm(placed(drawn[0], colours) - grid, axis=-1)) < 1, "the colours are not those drawn"
        errors = np.linalg.norm(placed(drawn[-1], colours) - truth.xy[-1], axis=-1)
        found.append(errors[truth.visible[-1]])
    return np.concatenate(found)


def test_depth_without_weights_against_exact_depth(
    tiny_host: Host, without_weights: RunResult, exact_grey: np.ndarray, filmed: list[Frame], tmp_path: Path
) -> None:
    dense, sparse = (controls(tiny_host, without_weights, kind, 2) for kind in ("dense", "sparse"))
    assert dense.shape == (2, SCENE_SIZE.frames, SCENE_SIZE.height, SCENE_SIZE.width, 3)
    assert spearmanr(dense[..., 0].ravel(), exact_grey.ravel()).statistic > 0.85
    np.testing.assert_array_equal(dense[0, -1], dense[1, 0])  # one signal: clips agree about the frame that they share
    steps = range(0, LENGTH, 4)
    pairs = [divmod(frame, SCENE_SIZE.frames - 1) if frame < LENGTH - 1 else (1, SCENE_SIZE.frames - 1) for frame in steps]
    contact_sheet(
        tmp_path / "filmed.png",
        np.stack([filmed[frame].rgb for frame in steps]),
        np.stack([np.repeat(exact_grey[pair][..., None], 3, axis=-1) for pair in pairs]),
        np.stack([dense[pair] for pair in pairs]),
        np.stack([sparse[pair] for pair in pairs]),
    )


def test_tracks_against_exact_tracks(tiny_host: Host, scene: Scene, without_weights: RunResult) -> None:
    sparse = controls(tiny_host, without_weights, "sparse", 2)
    errors = track_errors(scene, sparse)
    assert np.isfinite(errors).mean() > 0.9  # a rectangle may be covered by another
    assert np.nanmedian(errors) < 1  # drawn at whole pixels
    standing = np.stack([np.repeat(clip[:1], len(clip), axis=0) for clip in sparse])
    assert np.nanmedian(track_errors(scene, standing)) > 2  # so the measure can fail


def test_the_video_gives_the_first_frame_without_being_loaded_whole(
    tiny_host: Host, without_weights: RunResult, filmed: list[Frame]
) -> None:
    loaded = pictures(tiny_host, without_weights, "first")
    assert len(loaded) == 2  # of 17
    np.testing.assert_allclose(loaded[0].astype(int), filmed[0].rgb, atol=2)


def test_a_video_of_the_same_length_comes_out(tiny_host: Host, without_weights: RunResult) -> None:
    info = probe(RunFolder.of(tiny_host, "full_parallax").video)
    assert (info.frames, info.width, info.height, info.fps) == (LENGTH, SCENE_SIZE.width, SCENE_SIZE.height, 16)
    assert f"{LENGTH} frames" in shown(without_weights, "depth report")


def test_exact_depth_from_a_file_in_the_same_workflow(
    tiny_host: Host, scene: Scene, driving_video: str, exact_grey: np.ndarray
) -> None:
    prompt = workflow(driving_video, "full_exact", SCENE_SIZE, steps=2, clips=2)
    engine = {"engine": "depth file", "engine.file": "filmed.npy", "engine.kind": "disparity"}
    set_inputs(prompt, "LongVieDepthControl", **engine)
    result = run(tiny_host, prompt)
    dense = controls(tiny_host, result, "dense", 2)
    np.testing.assert_array_equal(dense, np.repeat(exact_grey[..., None], 3, axis=-1))
    assert np.nanmedian(track_errors(scene, controls(tiny_host, result, "sparse", 2))) < 1
    assert rendered_clips(prompt, result) == 2


def test_the_ablation_normalises_each_clip_by_itself(tiny_host: Host, driving_video: str, filmed: list[Frame]) -> None:
    prompt = workflow(driving_video, "full_ablation", SCENE_SIZE, steps=2, clips=2)
    engine = {"engine": "depth file", "engine.file": "filmed.npy", "engine.kind": "disparity"}
    set_inputs(prompt, "LongVieDepthControl", **engine)
    set_inputs(prompt, "LongVieGlobalNormalize", scope="per clip (ablation)")
    kinds = ("LoadVideo", "LongVieClipPlan", "LongVieDepthControl", "LongVieGlobalNormalize")
    kept = {node_id(prompt, kind) for kind in kinds} | {f"dense {clip}{part}" for clip in (1, 2) for part in ("", " images")}
    result = run(tiny_host, {key: node for key, node in prompt.items() if key in kept})
    dense = controls(tiny_host, result, "dense", 2)
    disparity = np.stack([frame.disparity for frame in filmed])
    for clip, start in enumerate((0, SCENE_SIZE.frames - 1)):
        window = disparity[start : start + SCENE_SIZE.frames]
        low, high = np.percentile(window, [5, 95])
        grey = ((high - np.clip(window.astype(np.float64), low, high)) / (high - low) * 255).astype(np.uint8)
        np.testing.assert_array_equal(dense[clip], np.repeat(grey[..., None], 3, axis=-1))
    assert (dense[0, -1] != dense[1, 0]).any()  # why it is an ablation: the clips disagree about the frame that they share


# ---- a real video


@pytest.mark.slow
def test_a_real_video_from_end_to_end(tiny_host: Host, tmp_path: Path) -> None:
    """250 frames at 25 fps become 160 at 16: ten clips, the last one filled up by a frame and cut again."""
    source = real_video("bikes.mp4")
    shutil.copyfile(source, tiny_host.base / "input" / "bikes.mp4")
    prompt = workflow("bikes.mp4", "full_bikes", REAL_SIZE, steps=1, clips=10)
    result = run(tiny_host, prompt)
    assert "250 frames at 25 fps become 160 at 16 fps" in shown(result, "depth report")
    assert rendered_clips(prompt, result) == 10, report(result)
    video = decode(RunFolder.of(tiny_host, "full_bikes").video)
    assert video.shape == (160, REAL_SIZE.height, REAL_SIZE.width, 3)
    dense, sparse = (controls(tiny_host, result, kind, 10) for kind in ("dense", "sparse"))
    for clip in range(9):
        np.testing.assert_array_equal(dense[clip, -1], dense[clip + 1, 0])
    assert (dense[-1, -1] == dense[-1, -2]).all()  # the frame that fills up
    low, high = np.percentile(dense, [10, 90])
    assert high - low > 60, "the depth is flat"
    drawn = sparse.any(axis=-1)
    assert (drawn.mean(axis=(2, 3)) > 0.05).all()
    moved = np.abs(sparse[:, 0].astype(int) - sparse[:, -1]).mean(axis=(1, 2, 3))
    assert (moved > 1).all(), "the points of a clip stand still"
    shows = [round(frame * 25 / 16) for frame in range(8, 160, 16)]
    contact_sheet(
        tmp_path / "bikes.png",
        np.stack(list(read_frames(source, shows, size=(REAL_SIZE.width, REAL_SIZE.height)))),
        dense[:, 8],
        sparse[:, 0],
        sparse[:, 8],
        sparse[:, -1],
    )
