"""Drawing of point tracks: byte equality with the reference's frames and with a slow painter written from its rule."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longvie_core.control.tracks.draw import point_colours, reference_grid, render_tracks
from longvie_core.control.tracks.point_depth import cover_resize, depth_to_z
from tests.helpers.places import RECORDED


@pytest.fixture(scope="module")
def golden():
    with np.load(RECORDED / "depth_track.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def example():
    """Edges of the grid's columns and rows, measured in the first picture of the authors' track_00.mp4."""
    with np.load(RECORDED / "example_grid.npz") as arrays:
        return dict(arrays)


def draw(tracks, visible=None, size=(96, 64), style="reference"):
    return np.stack(list(render_tracks(np.asarray(tracks, np.float32), visible, *size, style)))


# ---- the slow painter: one point, one pixel at a time ----


def percentile(values, percent):
    ordered = sorted(values)
    position = percent / 100 * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def byte(value):
    """OpenCV's colour byte: round half to even, saturate; NaN and infinity are 0."""
    return min(max(round(float(value)), 0), 255) if math.isfinite(value) else 0


def slow_colours(points):
    with np.errstate(all="ignore"):
        xs, ys = points[:, 0], points[:, 1]
        inverse = [float(np.float32(1) / z) for z in points[:, 2]]
        low, high = percentile(inverse, 2), percentile(inverse, 98)
        return [
            (
                byte((x - min(xs)) / (max(xs) - min(xs)) * np.float32(255)),
                byte((y - min(ys)) / (max(ys) - min(ys)) * np.float32(255)),
                byte((inv - low) / (high - low) * 255 if high != low else math.nan),
            )
            for x, y, inv in zip(xs, ys, inverse, strict=True)
        ]


def slow_frames(tracks, width, height):
    colours = slow_colours(tracks[0])
    start = [[float(v) for v in point] for point in tracks[0]]
    frames = np.zeros((len(tracks), height, width, 3), np.uint8)
    radius = 0.0
    for t, points in enumerate(tracks):
        for i in sorted(range(len(points)), key=lambda i: points[i][2], reverse=True):
            x, y = points[i][:2]
            if x == 0 or y == 0:
                continue
            if t == 0:
                nearest = min(math.dist(start[i], other) for k, other in enumerate(start) if k != i)
                radius = int(nearest) / 2
            for row in range(int(y - radius / 1.5), int(y + radius / 1.5) + 1):
                for column in range(int(x - radius), int(x + radius) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        frames[t, row, column] = colours[i]
    return frames


def random_tracks(seed):
    """Tracks with what is awkward: half pixels, exact zeros, equal z, z = 0, positions outside, uneven spacing."""
    rng = np.random.default_rng(seed)
    width, height = (int(v) for v in rng.integers(20, 90, 2))
    count = int(rng.integers(2, 60))
    tracks = np.empty((4, count, 3), np.float32)
    tracks[..., 0] = rng.uniform(-0.3, 1.3, (4, count)) * width
    tracks[..., 1] = rng.uniform(-0.3, 1.3, (4, count)) * height
    tracks[..., 2] = rng.uniform(0.02, 1, (4, count))
    if seed % 2:
        tracks[..., :2] = np.round(tracks[..., :2] * 2) / 2
        tracks[..., 2] = np.round(tracks[..., 2] * 4 + 0.5) / 8
    if seed % 3 == 0:
        tracks[..., 2][rng.random((4, count)) < 0.1] = 0
    tracks[..., :2][rng.random((4, count, 2)) < 0.03] = 0
    return tracks, width, height


# ---- style "reference" ----


@pytest.mark.parametrize(
    ("frames", "visibility"),
    [("vis.frames_u8", True), ("vis.frames_all_visible_u8", False), ("vis_z0.frames_u8", False)],
)
def test_reference_frames_are_the_golden_bytes(golden, frames, visibility):
    tracks = golden[frames.split(".")[0] + ".tracks"]
    drawn = draw(tracks, golden["vis.visibility"] if visibility else None)
    np.testing.assert_array_equal(drawn, golden[frames])


@pytest.mark.parametrize("seed", range(24))
def test_reference_equals_a_slow_painter(seed):
    tracks, width, height = random_tracks(seed)
    np.testing.assert_array_equal(draw(tracks, None, (width, height)), slow_frames(tracks, width, height))


def test_blue_is_lost_in_reference_when_z_reaches_zero(golden):
    assert point_colours(golden["vis.tracks"][0])[:, 2].max() == 255
    assert point_colours(golden["vis_z0.tracks"][0])[:, 2].max() == 0


def test_one_point_at_zero_loses_only_its_own_blue_in_reference():
    """Infinity does not reach the 98th percentile of 100 points, and OpenCV makes 0 of the infinite colour."""
    points = np.stack([np.arange(100), np.arange(100), np.linspace(0, 1, 100)], axis=1)
    blue = point_colours(points)[:, 2]
    assert blue[0] == 0
    assert (blue[1:20] > 20).all()


def test_reference_paints_far_over_near():
    tracks = [[[20, 20, 0.9], [23, 20, 0.1], [40, 40, 0.5]]]
    colours = point_colours(np.array(tracks[0], np.float32))
    np.testing.assert_array_equal(draw(tracks)[0, 20, 22], colours[1])


def test_colours_stay_those_of_the_first_frame(golden):
    tracks = golden["vis.tracks"].copy()
    tracks[1:, :, 2] = tracks[1:, ::-1, 2]
    seen = {tuple(colour) for colour in draw(tracks)[1:].reshape(-1, 3)}
    assert seen <= {tuple(colour) for colour in point_colours(tracks[0])} | {(0, 0, 0)}


def test_frames_do_not_share_memory():
    first, second = render_tracks(np.array([[[5, 5, 1], [9, 9, 0.5]]] * 2, np.float32), None, 16, 16)
    first[:] = 7
    assert not (second == 7).any()


# ---- style "corrected" ----


def test_corrected_paints_near_over_far():
    tracks = [[[20, 20, 0.9], [23, 20, 0.1], [40, 40, 0.5]]]
    colours = point_colours(np.array(tracks[0], np.float32), "corrected")
    np.testing.assert_array_equal(draw(tracks, style="corrected")[0, 20, 21], colours[0])


def test_corrected_leaves_hidden_points_out_and_nothing_else():
    points = [[10, 10, 0.9], [30, 10, 0.1], [50, 40, 0.5], [70, 50, 0.3]]
    visible = np.array([[True, True, True, True], [True, False, True, True]])
    frames = draw([points, points], visible, style="corrected")
    changed = (frames[0] != frames[1]).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert changed[10, 30]
    assert (frames[1][changed] == 0).all()
    assert abs(rows - 10).max() <= 10 and abs(columns - 30).max() <= 10


def test_corrected_keeps_blue_and_far_is_bluer(golden):
    points = golden["vis_z0.tracks"][0]
    blue = point_colours(points, "corrected")[:, 2]
    assert (blue[points[:, 2] == 0] == 255).all()
    far_first = blue[np.argsort(points[:, 2])].astype(int)
    assert (np.diff(far_first) <= 0).all()
    assert len(np.unique(blue)) > 15
    assert draw(golden["vis_z0.tracks"], style="corrected")[..., 2].max() == 255


def test_corrected_gives_a_channel_without_range_the_middle():
    points = np.array([[5, 8, 0.5], [5, 20, 0.5]], np.float32)
    np.testing.assert_array_equal(point_colours(points, "corrected"), [[128, 0, 128], [128, 255, 128]])
    points[:, 2] = 0, 0.5
    np.testing.assert_array_equal(point_colours(points, "corrected")[:, 2], [255, 128])
    np.testing.assert_array_equal(point_colours(points, "reference")[:, ::2], 0)


def test_corrected_uses_one_size_for_all_points_and_frames():
    points = [[10, 10, 0.9], [18, 10, 0.8], [26, 10, 0.7], [34, 10, 0.6], [80, 50, 0.2]]  # the last stands alone
    frames = draw([points, points], style="corrected")
    np.testing.assert_array_equal(frames[0], frames[1])
    lone = np.argwhere(frames[0, 30:].any(axis=-1)) + (30, 0)
    # Half the median spacing of 8 pixels is 4, and 4/1.5 = 2.67.
    assert (lone.min(axis=0).tolist(), lone.max(axis=0).tolist()) == ([47, 76], [52, 84])


def test_corrected_draws_points_on_the_zero_line():
    tracks = [[[0, 10, 0.5], [20, 10, 0.2], [40, 30, 0.9]]]
    assert draw(tracks, style="corrected")[0, 10, 0].any()
    assert not draw(tracks)[0, 10, 0].any()


# ---- grid, depth, errors ----


def test_grid_runs_along_x_first_and_scales_with_the_picture():
    grid = reference_grid(1152, 384)
    assert grid.shape == (2500, 2) and grid.dtype == np.float32
    np.testing.assert_allclose(grid[[0, 1, 50, 2499]], [[18, 9], [18 + 1116 / 49, 9], [18, 9 + 366 / 49], [1134, 375]])
    np.testing.assert_allclose(reference_grid(576, 384, 3)[:, 0], [9, 288, 567] * 3)


def test_grid_rectangles_lie_where_the_published_example_has_them(example):
    """First frame of a published 832x480 track clip: measured first and last pixels of its 50 columns and 50 rows."""
    grid = reference_grid(832, 480)
    z = np.random.default_rng(0).uniform(0.1, 1, (len(grid), 1)).astype(np.float32)
    inside = draw([np.concatenate([grid, z], axis=1)], size=(832, 480))[0].any(axis=-1)
    for axis, name in ((0, "columns"), (1, "rows")):
        edges = np.diff(np.pad(inside.any(axis=axis).astype(int), 1))
        np.testing.assert_array_equal(np.flatnonzero(edges == 1), example[name][:, 0])
        np.testing.assert_array_equal(np.flatnonzero(edges == -1) - 1, example[name][:, 1])


@pytest.mark.parametrize("name", ["track_depth", "track_depth_rgbdiff"])
def test_z_of_the_dense_control_is_the_golden_one(golden, name):
    z = depth_to_z(golden[f"{name}.in_u8"], (48, 32))
    np.testing.assert_allclose(z, golden[f"{name}.out"][:, 0], rtol=0, atol=1e-6)


def test_cover_resize_is_the_golden_one(golden):
    frames = golden["track_video.in_u8"].transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(cover_resize(frames, (48, 32)), golden["track_video.out"][0], rtol=0, atol=1e-4)


def test_black_depth_is_near_and_constant_depth_is_defined():
    dense = np.zeros((2, 4, 6, 3), np.uint8)
    assert (depth_to_z(dense, (6, 4)) == 1).all()
    dense[1] = 200
    z = depth_to_z(dense, (6, 4))
    assert (z[0] == 1).all() and (z[1] == 0).all()


@pytest.mark.parametrize(
    ("tracks", "visible", "style", "message"),
    [
        (np.ones((3, 4)), None, "reference", r"shape \[3, 4\]"),
        (np.ones((2, 1, 3)), None, "reference", "at least 2"),
        (np.ones((2, 4, 3)), np.ones((2, 5), bool), "corrected", r"\[2, 5\].*\[2, 4\]"),
        (np.ones((2, 4, 3)), None, "rainbow", "rainbow"),
        (np.where(np.arange(24).reshape(2, 4, 3) == 19, np.nan, 1), None, "reference", "point 2 in frame 1"),
    ],
)
def test_wrong_tracks_are_named_before_the_first_frame(tracks, visible, style, message):
    with pytest.raises(ValueError, match=message):
        render_tracks(tracks, visible, 16, 16, style)


def test_wrong_depth_and_grid_are_named():
    with pytest.raises(ValueError, match="float32"):
        depth_to_z(np.ones((1, 4, 4, 3), np.float32), (4, 4))
    with pytest.raises(ValueError, match="at least 2"):
        reference_grid(64, 64, 1)
