"""Control clips of a procedural scene, read back from the files that they are written to."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longvie_core.control.check import check_controls
from longvie_core.control.clips_folder import ClipsFolder, load_clips_folder
from longvie_core.media.probe import probe
from longvie_core.media.read import read_frames
from longvie_core.plan import ClipPlan
from longvie_core.world.clips import TrackGrid, write_scene_clips
from longvie_core.world.render import render
from longvie_core.world.scene import make_scene

WIDTH, HEIGHT, FRAMES, SPEED = 96, 64, 9, 3.0
PLAN = ClipPlan(width=WIDTH, height=HEIGHT, frames=FRAMES, source_frames=8 * 3 + 1)
GRID = TrackGrid(12, 8)
SCENE = make_scene(7)


def decoded(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path, range(probe(path).frames))))


def write(folder: Path, plan: ClipPlan = PLAN, grid: TrackGrid | None = GRID) -> ClipsFolder:
    return write_scene_clips(folder, SCENE, plan, grid, SPEED)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipsFolder:
    return write(tmp_path_factory.mktemp("scene") / "clips")


@pytest.fixture(scope="module")
def dense(clips: ClipsFolder) -> list[np.ndarray]:
    return [decoded(path) for path in clips.dense.paths]


@pytest.fixture(scope="module")
def sparse(clips: ClipsFolder) -> list[np.ndarray]:
    return [decoded(path) for path in clips.sparse.paths]


class TestFiles:
    def test_layout_is_the_authors(self, clips: ClipsFolder) -> None:
        folder = clips.first_frame.parent
        names = [f"{kind}_{clip:02d}.mp4" for kind in ("depth", "track") for clip in range(3)]
        assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "cond.json", "first.png"])
        assert json.loads((folder / "cond.json").read_text("utf-8")) == [
            {"text": "", "depth": f"depth_{clip:02d}.mp4", "track": f"track_{clip:02d}.mp4"} for clip in range(3)
        ]
        assert load_clips_folder(folder) == clips

    def test_every_video_has_the_plans_frames_size_and_rate(self, clips: ClipsFolder) -> None:
        for path in (*clips.dense.paths, *clips.sparse.paths):
            info = probe(path)
            assert (info.frames, info.width, info.height, info.fps) == (FRAMES, WIDTH, HEIGHT, Fraction(16))

    def test_the_clips_fit_the_plan_that_they_were_made_for(self, clips: ClipsFolder) -> None:
        assert check_controls(PLAN, clips.dense, clips.sparse) == PLAN
        assert clips.clips == PLAN.clips == 3

    def test_first_frame_is_the_scene_at_its_start(self, clips: ClipsFolder) -> None:
        with Image.open(clips.first_frame) as picture:
            np.testing.assert_array_equal(np.asarray(picture), render(SCENE, 0.0, WIDTH, HEIGHT).rgb)

    def test_equal_calls_give_equal_bytes(self, clips: ClipsFolder, tmp_path: Path) -> None:
        write(tmp_path / "again")
        for path in clips.first_frame.parent.iterdir():
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name

    def test_another_scene_gives_other_clips(self, clips: ClipsFolder, tmp_path: Path) -> None:
        plan = ClipPlan(width=WIDTH, height=HEIGHT, frames=5, source_frames=5)
        other = write_scene_clips(tmp_path, make_scene(8), plan, GRID, SPEED)
        assert (np.abs(decoded(other.dense.paths[0])[0].astype(int) - decoded(clips.dense.paths[0])[0]) > 16).any()


def expected_dense(frames: int) -> np.ndarray:
    """P1's rule in numpy, from the scene's exact depth: [frames, H, W] in 0 .. 255, near = black."""
    depth = np.stack([render(SCENE, frame / 16 * SPEED, WIDTH, HEIGHT, 1).depth for frame in range(frames)])
    disparity = 1 / depth.astype(np.float64)
    low, high = np.percentile(disparity, [5, 95])
    return 255 * (high - np.clip(disparity, low, high)) / (high - low)


class TestDense:
    def test_is_the_scenes_depth_over_the_whole_video_near_black(self, dense: list[np.ndarray]) -> None:
        expected = expected_dense(25)
        wanted = np.concatenate([expected[8 * clip : 8 * clip + 9] for clip in range(3)])
        frames = np.concatenate(dense)
        assert np.abs(frames.mean(axis=-1) - wanted).mean(axis=(1, 2)).max() < 3
        assert frames[wanted < 1].mean() < 12 and frames[wanted > 250].mean() > 240

    def test_is_grey(self, dense: list[np.ndarray]) -> None:
        for frames in dense:
            assert np.ptp(frames.astype(int), axis=-1).max() <= 4

    def test_neighbours_share_their_boundary_up_to_codec_noise(self, dense: list[np.ndarray]) -> None:
        for here, there in zip(dense[:-1], dense[1:], strict=True):
            shared = np.abs(here[-1].astype(int) - there[0]).mean()
            assert shared < 2
            assert shared < 0.5 * np.abs(here[-1].astype(int) - there[1]).mean(), "any frame would pass for the shared one"

    def test_frames_that_the_tail_rule_drops_do_not_count(self, tmp_path: Path) -> None:
        """The reference cuts the video first and takes the percentiles of what is left."""
        whole, longer = (
            write(tmp_path / str(length), ClipPlan(width=WIDTH, height=HEIGHT, frames=9, source_frames=length))
            for length in (9, 16)
        )
        assert longer.clips == whole.clips == 1
        assert longer.dense.paths[0].read_bytes() == whole.dense.paths[0].read_bytes()

    def test_padding_repeats_the_last_frame(self, tmp_path: Path) -> None:
        plan = ClipPlan(width=WIDTH, height=HEIGHT, frames=9, source_frames=12, tail="pad")
        found = write(tmp_path, plan)
        assert found.clips == plan.clips == 2
        frames = decoded(found.dense.paths[1]).astype(int)
        expected = expected_dense(12)[[8, 9, 10, *[11] * 6]]
        assert len(frames) == 9
        assert np.abs(frames.mean(axis=-1) - expected).mean() < 3
        tracks = decoded(found.sparse.paths[1]).astype(int)
        assert len(tracks) == 9
        assert np.abs(tracks[3:] - tracks[8]).mean() < 2 < np.abs(tracks[0] - tracks[8]).mean()


class TestSparse:
    def test_tracks_are_drawn_in_every_frame(self, sparse: list[np.ndarray]) -> None:
        for frames in sparse:
            drawn = (frames.max(axis=-1) > 48).mean(axis=(1, 2))
            assert drawn.min() > 0.1

    def test_the_background_is_black(self, clips: ClipsFolder, tmp_path: Path) -> None:
        found = write(tmp_path, ClipPlan(width=WIDTH, height=HEIGHT, frames=5, source_frames=5), TrackGrid(3, 2))
        frames = decoded(found.sparse.paths[0])
        assert (frames.max(axis=-1) < 16).mean() > 0.2  # rectangles are as wide as the points are apart, and 2/3 as high

    def test_red_grows_to_the_right_and_green_downwards_at_a_clips_start(self, sparse: list[np.ndarray]) -> None:
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        for frames in sparse:
            drawn = frames[0].max(axis=-1) > 48
            red, green = (frames[0][..., channel][drawn] for channel in (0, 1))
            assert np.corrcoef(red, x[drawn])[0, 1] > 0.9
            assert np.corrcoef(green, y[drawn])[0, 1] > 0.9

    def test_blue_grows_with_the_distance(self, dense: list[np.ndarray], sparse: list[np.ndarray]) -> None:
        """In the first clip, that is: where 2 % of the points are at the farthest, the reference loses all blue."""
        drawn = sparse[0][0].max(axis=-1) > 48
        far = dense[0][0][..., 0][drawn]
        assert np.corrcoef(sparse[0][0][..., 2][drawn], far)[0, 1] > 0.5

    def test_each_clip_has_tracks_of_its_own(self, sparse: list[np.ndarray]) -> None:
        """Points are laid out anew at each clip's first frame, so the shared frame has two different pictures."""
        for here, there in zip(sparse[:-1], sparse[1:], strict=True):
            assert np.abs(here[-1].astype(int) - there[0]).mean() > 4

    def test_points_move_within_a_clip(self, sparse: list[np.ndarray]) -> None:
        for frames in sparse:
            assert np.abs(frames[-1].astype(int) - frames[0]).mean() > 4

    def test_the_standard_grid_is_the_references(self) -> None:
        assert TrackGrid() == TrackGrid(50, 50)


def test_a_plan_without_a_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source|frame"):
        write(tmp_path, ClipPlan(width=WIDTH, height=HEIGHT, frames=9))
    assert list(tmp_path.iterdir()) == []
