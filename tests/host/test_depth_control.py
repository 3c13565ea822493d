"""LongVie Depth Control in the running host: depth that is there already, and a real network from a local folder."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from devtools.host import Host
from longvie_core.media.write import VideoWriter
from tests.helpers.tiny_depth import tiny_depth_checkpoint
from tests.helpers.workflow import Prompt, add, failure, free_memory, pictures, preview, run, shown

WIDTH, HEIGHT, FRAMES = 64, 48, 9
LENGTH = 17


@pytest.fixture(scope="module")
def disparity() -> np.ndarray:
    """A near square that moves over a far slope: float32 [LENGTH, HEIGHT, WIDTH]."""
    frames = np.tile(np.linspace(0.1, 0.2, HEIGHT, dtype=np.float32)[None, :, None], (LENGTH, 1, WIDTH))
    for number, frame in enumerate(frames):
        frame[10:30, 2 * number : 2 * number + 20] = 0.9
    return frames


def control(prompt: Prompt, engine: dict, **links: object) -> None:
    """Depth Control -> Global Normalize -> a look at all frames of clip 1."""
    plan = add(
        prompt,
        "plan",
        "LongVieClipPlan",
        width=WIDTH,
        height=HEIGHT,
        frames_per_clip=FRAMES,
        fps=16.0,
        overlap=1,
        tail="drop",
        source_frames=0,
    )
    depth = add(prompt, "depth", "LongVieDepthControl", plan=plan, fit="stretch", **engine, **links)
    given = {"low_percentile": 5.0, "high_percentile": 95.0}
    dense = add(prompt, "dense", "LongVieGlobalNormalize", signal=depth, plan=plan, **given)
    preview(prompt, dense, plan, 1)
    add(prompt, "report", "TestShow", value=[depth[0], 1])


def assert_near_is_black(host: Host, prompt: Prompt) -> str:
    """The square is black, the far end of the slope white; returns the report."""
    result = run(host, prompt)
    seen = pictures(host, result, "preview")[..., 0]
    assert seen.shape == (FRAMES, HEIGHT, WIDTH)
    assert (seen[0, 12:28, 4:16] < 3).all()
    assert (seen[0, :4] > 200).all()
    return shown(result, "report")


def test_a_depth_file_is_used_in_place(tiny_host: Host, disparity: np.ndarray) -> None:
    np.save(tiny_host.base / "input" / "disparity.npy", disparity)
    prompt: Prompt = {}
    control(prompt, {"engine": "depth file", "engine.file": "disparity.npy", "engine.kind": "disparity"})
    assert "used in place" in assert_near_is_black(tiny_host, prompt)


def test_distances_are_turned_into_disparity(tiny_host: Host, disparity: np.ndarray) -> None:
    np.savez(tiny_host.base / "input" / "distance.npz", depth=1 / disparity)
    prompt: Prompt = {}
    control(prompt, {"engine": "depth file", "engine.file": "distance.npz", "engine.kind": "depth"})
    assert_near_is_black(tiny_host, prompt)


@pytest.mark.parametrize("polarity", ["near = white", "near = black"])
def test_ready_made_depth_video(tiny_host: Host, disparity: np.ndarray, polarity: str) -> None:
    name = f"depth {polarity}.mkv"
    with VideoWriter(tiny_host.base / "input" / name, WIDTH, HEIGHT, Fraction(16), codec="lossless") as writer:
        for frame in disparity:
            grey = (frame * 255).astype(np.uint8)
            writer.write(np.repeat((grey if polarity == "near = white" else 255 - grey)[..., None], 3, axis=-1))
    prompt: Prompt = {}
    video = add(prompt, "video", "LoadVideo", file=name)
    control(prompt, {"engine": "ready-made depth", "engine.polarity": polarity}, video=video)
    assert f"{LENGTH} frames" in assert_near_is_black(tiny_host, prompt)


def test_a_transformers_checkpoint_runs_and_is_extracted_once(tiny_host: Host) -> None:
    tiny_depth_checkpoint(tiny_host.base / "models" / "geometry_estimation" / "tiny-depth")
    rng = np.random.default_rng(3)
    with VideoWriter(tiny_host.base / "input" / "drive.mkv", 80, 60, Fraction(25), codec="lossless") as writer:
        for _ in range(30):
            writer.write(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    prompt: Prompt = {}
    video = add(prompt, "video", "LoadVideo", file="drive.mkv")
    control(prompt, {"engine": "transformers", "engine.model": "tiny-depth"}, video=video)
    report = shown(run(tiny_host, prompt), "report")
    assert "30 frames at 25 fps become 20 at 16 fps" in report
    assert "before alignment" in report
    cache = tiny_host.base / "user" / "longvie" / "controls"
    extracted = {path: path.stat().st_mtime_ns for path in cache.glob("depth_*/depth.npy")}
    free_memory(tiny_host)
    assert shown(run(tiny_host, prompt), "report") == report
    assert {path: path.stat().st_mtime_ns for path in cache.glob("depth_*/depth.npy")} == extracted


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"engine": "DA3 geometry"}, ["geometry", "Run Depth Anything 3"]),
        ({"engine": "depth file", "engine.file": "../secret.npy", "engine.kind": "depth"}, ["not inside", "input folder"]),
        ({"engine": "depth file", "engine.file": "nothing.npy", "engine.kind": "depth"}, ["nothing.npy", "does not exist"]),
        ({"engine": "ready-made depth", "engine.polarity": "near = white"}, ["video or images", "not neither"]),
    ],
)
def test_what_is_missing_is_named(tiny_host: Host, engine: dict, words: list[str]) -> None:
    prompt: Prompt = {}
    control(prompt, engine)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieDepthControl"
    assert all(word in text for word in words), text
