"""A driving video through the whole chain in the running host: depth, normalisation, tracks, clips."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import rankdata
from workflow import FRAMES, HEIGHT, WIDTH, Prompt, add, failure, node_id, pictures, preview, run, set_inputs, tiny_workflow

from devtools.host import Host
from longvie_core.video import VideoWriter, probe
from longvie_core.world import make_scene, render_frames

LENGTH = 2 * FRAMES - 1


@pytest.fixture(scope="module")
def drive(tiny_host: Host) -> str:
    """A filmed scene in the input folder: drive.mkv and its exact disparity, drive.npy; returns the video's name."""
    frames = list(render_frames(make_scene(4), LENGTH, Fraction(8), WIDTH, HEIGHT))
    with VideoWriter(tiny_host.base / "input" / "drive.mkv", WIDTH, HEIGHT, Fraction(16), codec="lossless") as writer:
        for frame in frames:
            writer.write(frame.rgb)
    np.save(tiny_host.base / "input" / "drive.npy", np.stack([frame.disparity for frame in frames]))
    return "drive.mkv"


def controls(prompt: Prompt, video: str, **track: object) -> tuple[list, list, list]:
    """Video and exact depth -> (plan, dense, sparse)."""
    size = {"width": WIDTH, "height": HEIGHT, "frames_per_clip": FRAMES, "fps": 16.0}
    plan = add(prompt, "plan", "LongVieClipPlan", **size, overlap=1, tail="drop", source_frames=0)
    source = add(prompt, "video", "LoadVideo", file=video)
    given = {"engine": "depth file", "engine.file": "drive.npy", "engine.kind": "disparity"}
    depth = add(prompt, "depth", "LongVieDepthControl", plan=plan, video=source, fit="stretch", **given)
    percentiles = {"low_percentile": 5.0, "high_percentile": 95.0}
    dense = add(prompt, "dense", "LongVieGlobalNormalize", signal=depth, plan=plan, **percentiles)
    settings = {"engine": "Lucas-Kanade", "grid": 12, "style": "reference", "fit": "stretch", **track}
    sparse = add(prompt, "sparse", "LongVieTrackControl", plan=plan, dense=dense, video=source, **settings)
    return plan, dense, sparse


def test_tracks_of_a_video(tiny_host: Host, drive: str) -> None:
    prompt: Prompt = {}
    plan, _, sparse = controls(prompt, drive)
    for clip in (1, 2):
        preview(prompt, sparse, plan, clip, key=f"clip {clip}")
    result = run(tiny_host, prompt)
    first, second = (pictures(tiny_host, result, f"clip {clip}") for clip in (1, 2))
    for clip in (first, second):
        drawn = clip.any(axis=-1)
        assert 0.05 < drawn[0].mean() < 1
        # Red grows from left to right and green from top to bottom in the clip's first frame.
        rows, columns = np.nonzero(drawn[0])
        assert np.corrcoef(columns, clip[0][rows, columns, 0])[0, 1] > 0.95
        assert np.corrcoef(rows, clip[0][rows, columns, 1])[0, 1] > 0.95
        assert (clip[-1] != clip[0]).any()
    # Each clip has a grid of its own: the frame that both share is drawn anew.
    assert (first[-1] != second[0]).any()


def test_tracks_are_followed_once(tiny_host: Host, drive: str) -> None:
    prompt: Prompt = {}
    plan, _, sparse = controls(prompt, drive, grid=10)
    preview(prompt, sparse, plan, 1)
    run(tiny_host, prompt)
    folder = tiny_host.base / "user" / "longvie" / "controls"
    followed = {path: path.stat().st_mtime_ns for path in folder.glob("tracks_*/*.mkv")}
    tiny_host.post("/free", {"unload_models": True, "free_memory": True})
    run(tiny_host, prompt)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("tracks_*/*.mkv")} == followed


def test_a_driving_video_becomes_a_generated_one(tiny_host: Host, drive: str) -> None:
    prompt = tiny_workflow("driven")
    plan, dense, sparse = controls(prompt, drive)
    set_inputs(prompt, "LongVieClipLoop", plan=plan, dense=dense, sparse=sparse)
    result = run(tiny_host, prompt)
    assert node_id(prompt, "LongVieClipLoop") in result.outputs
    info = probe(tiny_host.base / "output" / "longvie" / "driven" / "video.mp4")
    assert (info.frames, info.width, info.height) == (LENGTH, WIDTH, HEIGHT)


def test_depth_without_weights_makes_near_things_darker(tiny_host: Host, drive: str) -> None:
    prompt: Prompt = {}
    plan, dense, _ = controls(prompt, drive)
    del prompt["sparse"]
    prompt["depth"]["inputs"] = {
        "plan": plan,
        "video": prompt["depth"]["inputs"]["video"],
        "fit": "stretch",
        "engine": "parallax (no weights)",
    }
    preview(prompt, dense, plan, 1)
    grey = pictures(tiny_host, run(tiny_host, prompt), "preview")[..., 0]
    disparity = np.load(tiny_host.base / "input" / "drive.npy")[:FRAMES]
    # It is rough: the order of near and far must come out, not more.
    assert np.corrcoef(rankdata(grey), rankdata(disparity))[0, 1] < -0.5


def test_the_video_must_be_connected(tiny_host: Host, drive: str) -> None:
    prompt: Prompt = {}
    plan, _, sparse = controls(prompt, drive)
    del prompt[sparse[0]]["inputs"]["video"]
    preview(prompt, sparse, plan, 1)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieTrackControl"
    assert "video or images" in text
