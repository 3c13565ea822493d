"""A driving video through the whole chain in the running host: depth, normalization, tracks, clips."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import rankdata

from devtools.host import Host
from longvie_core.media.probe import probe
from longvie_core.media.write import VideoWriter
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene
from longvie_core.world.track import grid_points, track
from tests.helpers.workflow import (
    FRAMES,
    HEIGHT,
    WIDTH,
    Prompt,
    RunFolder,
    add,
    failure,
    free_memory,
    node_id,
    pictures,
    preview,
    rejection,
    run,
    set_inputs,
    tiny_workflow,
)

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
    free_memory(tiny_host)
    run(tiny_host, prompt)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("tracks_*/*.mkv")} == followed


def test_a_driving_video_becomes_a_generated_one(tiny_host: Host, drive: str) -> None:
    prompt = tiny_workflow("driven")
    plan, dense, sparse = controls(prompt, drive)
    set_inputs(prompt, "LongVieClipLoop", plan=plan, dense=dense, sparse=sparse)
    result = run(tiny_host, prompt)
    assert node_id(prompt, "LongVieClipLoop") in result.outputs
    info = probe(RunFolder.of(tiny_host, "driven").video)
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


def coordinates(tracks: np.ndarray) -> str:
    """Tracks [T, N, 2] in the text that the host's WanMoveTracksFromCoords reads."""
    return json.dumps([[{"x": x, "y": y} for x, y in path] for path in tracks.transpose(1, 0, 2).tolist()])


def given(prompt: Prompt, video: str, tracks: np.ndarray, **track_inputs: object) -> tuple[list, list]:
    """Tracks through the host's own node and its TRACKS socket -> (plan, sparse)."""
    source = add(prompt, "tracks", "WanMoveTracksFromCoords", track_coords=coordinates(tracks))
    plan, _, sparse = controls(prompt, video, engine="TRACKS", tracks=source, **track_inputs)
    del prompt[sparse[0]]["inputs"]["video"]
    return plan, sparse


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """Exact tracks of the driving video, started in both clips' first frames: [LENGTH, N, 2]."""
    points, scene = grid_points(12, 9, WIDTH, HEIGHT), make_scene(4)
    times = [frame / 8 for frame in range(LENGTH)]
    first = track(scene, points, times, WIDTH, HEIGHT).xy
    there = track(scene, points, times[FRAMES - 1 :], WIDTH, HEIGHT).xy
    # Before they are started they lie outside the picture, where they do not count.
    second = np.concatenate([np.full((FRAMES - 1, *points.shape), -100.0), there])
    return np.clip(np.concatenate([first, second], axis=1), -1000, 1000)


def test_another_trackers_points_through_the_hosts_socket(tiny_host: Host, drive: str, exact: np.ndarray) -> None:
    prompt: Prompt = {}
    plan, sparse = given(prompt, drive, exact)
    _, _, followed = controls(other := {}, drive)
    prompt["own"] = other[followed[0]]
    for clip in (1, 2):
        preview(prompt, sparse, plan, clip, key=f"clip {clip}")
    preview(prompt, ["own", 0], plan, 1, key="own 1")
    result = run(tiny_host, prompt)
    for clip in (1, 2):
        drawn = pictures(tiny_host, result, f"clip {clip}")
        rows, columns = np.nonzero(drawn[0].any(axis=-1))
        assert len(rows) > 0.05 * WIDTH * HEIGHT
        assert np.corrcoef(columns, drawn[0][rows, columns, 0])[0, 1] > 0.9
        assert np.corrcoef(rows, drawn[0][rows, columns, 1])[0, 1] > 0.9
        assert (drawn[-1] != drawn[0]).any()
    # Depth colours both engines alike: blue of the exact points and of the pack's own at the same pixels.
    mine, own = (pictures(tiny_host, result, key)[0].astype(int) for key in ("clip 1", "own 1"))
    both = mine.any(axis=-1) & own.any(axis=-1)
    assert np.median(np.abs(mine - own)[both]) < 24


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tracks: tracks[:9], ["tracks have 9 frames", "2 clips need 17"]),
        (lambda tracks: tracks[:, :108] + np.where(np.arange(LENGTH) > 7, 500, 0)[:, None, None], ["frame 8", "clip 2 starts"]),
        (lambda tracks: tracks / 1000, ["pixels of the plan's size"]),
        (
            lambda tracks: np.where(np.arange(LENGTH)[:, None, None] == 3, np.nan, tracks),
            ["track 0", "nan", "frame 3", "finite"],
        ),
    ],
    ids=["short", "none in clip 2", "normalized", "nan"],
)
def test_given_tracks_that_cannot_be_drawn(tiny_host: Host, drive: str, exact: np.ndarray, change, words: list[str]) -> None:
    prompt: Prompt = {}
    plan, sparse = given(prompt, drive, change(exact))
    preview(prompt, sparse, plan, 1)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieTrackControl"
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "TRACKS"}, ["input tracks", "connect a tracker"]),
        ({"engine": "RAFT", "engine.model": "(none found)"}, ["models/optical_flow", "put torchvision's raft_large"]),
    ],
    ids=["TRACKS", "RAFT"],
)
def test_what_an_engine_lacks_is_named(tiny_host: Host, drive: str, settings: dict, words: list[str]) -> None:
    prompt: Prompt = {}
    plan, _, sparse = controls(prompt, drive, **settings)
    preview(prompt, sparse, plan, 1)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieTrackControl"
    assert all(word in text for word in words), text


def test_a_flow_file_that_is_gone_is_refused_at_once(tiny_host: Host, drive: str) -> None:
    prompt: Prompt = {}
    plan, _, sparse = controls(prompt, drive, engine="RAFT", **{"engine.model": "gone.pth"})
    preview(prompt, sparse, plan, 1)
    assert "gone.pth" in rejection(tiny_host, prompt)


def test_constant_depth_draws_tracks_all_the_same(tiny_host: Host, drive: str) -> None:
    np.save(tiny_host.base / "input" / "flat.npy", np.ones((LENGTH, HEIGHT, WIDTH), np.float32))
    prompt: Prompt = {}
    plan, _, sparse = controls(prompt, drive)
    prompt["depth"]["inputs"]["engine.file"] = "flat.npy"
    preview(prompt, sparse, plan, 1)
    drawn = pictures(tiny_host, run(tiny_host, prompt), "preview")
    rows, columns = np.nonzero(drawn[0].any(axis=-1))
    assert len(rows) > 0.05 * WIDTH * HEIGHT
    assert np.corrcoef(columns, drawn[0][rows, columns, 0])[0, 1] > 0.95
    assert len(np.unique(drawn[0][rows, columns, 2])) == 1
    assert (drawn[-1] != drawn[0]).any()


def test_depth_shorter_than_the_plan(tiny_host: Host, drive: str) -> None:
    np.save(tiny_host.base / "input" / "short.npy", np.load(tiny_host.base / "input" / "drive.npy")[:FRAMES])
    prompt: Prompt = {}
    plan, _, sparse = controls(prompt, drive)
    prompt["depth"]["inputs"]["engine.file"] = "short.npy"
    prompt["plan"]["inputs"]["source_frames"] = LENGTH
    preview(prompt, sparse, plan, 1)
    _, text = failure(tiny_host, prompt)
    assert all(word in text for word in ("17 source frames", "only 9")), text


@pytest.mark.parametrize(
    ("frames", "words"),
    [(1, ["driving video has 1 frames", "have 17"]), (LENGTH - 3, ["driving video has 14 frames", "have 17"])],
    ids=["one frame", "shorter than depth"],
)
def test_a_video_shorter_than_the_depth(tiny_host: Host, drive: str, frames: int, words: list[str]) -> None:
    name = f"short {frames}.mkv"
    with VideoWriter(tiny_host.base / "input" / name, WIDTH, HEIGHT, Fraction(16), codec="lossless") as writer:
        for frame in render_frames(make_scene(4), frames, Fraction(8), WIDTH, HEIGHT):
            writer.write(frame.rgb)
    prompt: Prompt = {}
    plan, _, sparse = controls(prompt, name)
    preview(prompt, sparse, plan, 1)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieTrackControl"
    assert all(word in text for word in words), text


def test_depth_with_nan_is_refused_before_tracks(tiny_host: Host, drive: str) -> None:
    disparity = np.load(tiny_host.base / "input" / "drive.npy")
    disparity[5, 4, 3] = np.nan
    np.save(tiny_host.base / "input" / "nan.npy", disparity)
    prompt: Prompt = {}
    plan, _, sparse = controls(prompt, drive)
    prompt["depth"]["inputs"]["engine.file"] = "nan.npy"
    preview(prompt, sparse, plan, 1)
    node, text = failure(tiny_host, prompt)
    assert node != "LongVieTrackControl"
    assert "frame 5" in text or "nan" in text.lower()
