"""Depth without weights: analytic scenes, the exact depth of procedural worlds, and what it falls back on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from longvie_core.control.depth.camera_motion import FOCAL_PER_DIAGONAL, ground, rays
from longvie_core.control.depth.engine import extract_depth
from longvie_core.control.depth.parallax import NEAREST, ParallaxDepth
from longvie_core.control.normalize import write_control
from longvie_core.media.read import read_frames
from longvie_core.plan import ClipPlan
from longvie_core.world.motion import Path as SolidPath
from longvie_core.world.motion import Wave
from longvie_core.world.render import render_frames
from longvie_core.world.scene import Scene, make_scene

cv2 = pytest.importorskip("cv2")

WIDTH, HEIGHT, FRAMES = 192, 112, 17
ENGINE = ParallaxDepth()


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth noise on two scales, uint8 RGB."""
    random = np.random.default_rng(seed)
    coarse, fine = (cv2.GaussianBlur(random.standard_normal((height, width, 3)), (0, 0), sigma) for sigma in (5, 1.5))
    noise = coarse / coarse.std() + fine / fine.std()
    return np.clip(128 + 35 * noise, 0, 255).astype(np.uint8)


def sliding(picture: np.ndarray, shift: float, height: int, width: int) -> np.ndarray:
    """The part of a wide picture that a camera sees that has moved by ``shift`` pixels."""
    matrix = np.array([[1, 0, shift], [0, 1, 0]], np.float32)
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def two_planes(direction: int) -> tuple[np.ndarray, np.ndarray]:
    """A camera moving sideways by a far wall, with a board three times as near; where the board is, bool [T, H, W]."""
    far, near = texture(HEIGHT, 3 * WIDTH, 0), texture(HEIGHT, 3 * WIDTH, 1)
    board = np.zeros((HEIGHT, 3 * WIDTH, 1), np.uint8)
    board[25:75, WIDTH + 70 : WIDTH + 130] = 1
    frames, where = [], []
    for number in range(-(FRAMES // 2), FRAMES // 2 + 1):
        moved = direction * number
        seen = sliding(board, WIDTH + 1.5 * moved, HEIGHT, WIDTH) > 0
        wall = sliding(far, WIDTH + 0.5 * moved, HEIGHT, WIDTH)
        frames.append(np.where(seen[..., None], sliding(near, WIDTH + 1.5 * moved, HEIGHT, WIDTH), wall))
        where.append(seen)
    return np.stack(frames), np.stack(where)


def turning(degrees: float) -> np.ndarray:
    """A camera that turns about all three axes before a textured wall, and does not move; ``degrees`` a frame."""
    focal = FOCAL_PER_DIAGONAL * math.hypot(WIDTH, HEIGHT)
    wall = texture(3 * HEIGHT, 3 * WIDTH, 2)
    inner = np.array([[focal, 0, (WIDTH - 1) / 2], [0, focal, (HEIGHT - 1) / 2], [0, 0, 1]])
    outer = inner + np.array([[0, 0, WIDTH], [0, 0, HEIGHT], [0, 0, 0]])
    frames = []
    for number in range(FRAMES):
        rotation, _ = cv2.Rodrigues(np.radians(degrees * (number - FRAMES // 2)) * np.array([0.4, 0.8, 0.4]))
        onto = outer @ rotation @ np.linalg.inv(inner)
        frames.append(cv2.warpPerspective(wall, onto, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))
    return np.stack(frames)


def frozen(scene: Scene, time: float) -> Scene:
    """The scene with its solids as they are at ``time``: only the camera moves."""

    def held(path: SolidPath) -> SolidPath:
        return SolidPath(*(Wave(wave.at(time)) for wave in (path.azimuth, path.radius, path.height)))

    solids = (replace(solid, path=held(solid.path), spin=Wave(solid.spin.at(time))) for solid in scene.solids)
    return replace(scene, solids=tuple(solids))


def rank_correlation(disparity: np.ndarray, truth: np.ndarray) -> float:
    """Median over some frames."""
    return float(np.median([spearmanr(disparity[k].ravel(), truth[k].ravel()).statistic for k in range(0, len(truth), 4)]))


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_the_flow_of_a_small_motion_is_that_of_projected_points() -> None:
    height, width = 9, 16
    focal = FOCAL_PER_DIAGONAL * math.hypot(width, height)
    random = np.random.default_rng(0)
    motion = 1e-4 * random.standard_normal(6)
    disparity = random.uniform(0.1, 1, (height, width))
    y, x = np.mgrid[:height, :width]
    centre = (width - 1) / 2, (height - 1) / 2
    points = np.stack([(x - centre[0]) / focal, (y - centre[1]) / focal, np.ones(x.shape)], axis=-1) / disparity[..., None]
    rotation, _ = cv2.Rodrigues(motion[3:])
    moved = (points - motion[:3]) @ rotation
    expected = focal * moved[..., :2] / moved[..., 2:] + centre - np.stack([x, y], axis=-1)
    terms = rays(height, width)
    found = disparity[..., None] * (terms.translation @ motion[:3]) + terms.rotation @ motion[3:]
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_ground_is_level_below_the_horizon_and_far_above() -> None:
    disparity = ground(100, 3, 0.4)
    assert not disparity[:40].any()
    np.testing.assert_allclose(np.diff(disparity[40:, 0]), 1 / 60, rtol=1e-4)
    assert disparity[-1, 0] == pytest.approx(59.5 / 60)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_near_board_before_a_far_wall_is_nearer(direction: int) -> None:
    frames, board = two_planes(direction)
    disparity = ENGINE(frames)
    for depth, where in zip(disparity, board, strict=True):
        rows = slice(35, 65)
        assert np.median(depth[rows][where[rows]]) > np.median(depth[rows][~where[rows]]) + 0.1
        assert np.mean(depth[rows][where[rows]] > np.median(depth[rows][~where[rows]])) > 0.9


def test_still_pictures_and_a_turning_camera_fall_back_on_lower_is_nearer() -> None:
    prior = ground(HEIGHT, WIDTH, 0.0)
    still = np.repeat(texture(HEIGHT, WIDTH, 3)[None], FRAMES, axis=0)
    for frames in (still, turning(0.4)):
        disparity = ENGINE(frames)
        assert np.isfinite(disparity).all()
        assert np.abs(disparity - prior).mean() < 0.02


# --- procedural worlds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "start"),
    [(make_scene(22), 3), (make_scene(23), 18), (frozen(make_scene(34), 5), 5)],
    ids=["seed 22", "seed 23", "seed 34, solids stand still"],
)
def test_worlds_are_ordered_better_than_by_height_in_the_picture(scene: Scene, start: int) -> None:
    frames = list(render_frames(scene, range(16 * start, 16 * start + FRAMES), 16, WIDTH, HEIGHT))
    truth = np.stack([frame.disparity for frame in frames])
    found = rank_correlation(ENGINE(np.stack([frame.rgb for frame in frames])), truth)
    by_height = rank_correlation(np.repeat(ground(HEIGHT, WIDTH, 0.0)[None], FRAMES, axis=0), truth)
    assert found > max(0.85, by_height + 0.04)


def test_the_horizon_of_a_world_is_found_roughly() -> None:
    frames = list(render_frames(make_scene(21), range(48, 48 + FRAMES), 16, WIDTH, HEIGHT))
    disparity = ENGINE(np.stack([frame.rgb for frame in frames]))
    found, truth = (
        np.mean(np.median(rows, axis=-1) == 0, axis=-1) for rows in (disparity, np.stack([frame.disparity for frame in frames]))
    )
    assert 0.3 < truth.mean() < 0.5
    assert np.abs(found - truth).max() < 0.12


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (17, 300), (301, 17), (61, 97), (400, 711)])
def test_any_size_has_a_depth(height: int, width: int) -> None:
    frames = np.stack([sliding(texture(height, width + 8, 4), shift, height, width) for shift in range(4)])
    disparity = ENGINE(frames)
    assert disparity.shape == (4, height, width) and disparity.dtype == np.float32
    assert np.isfinite(disparity).all() and disparity.min() >= 0 and disparity.max() <= NEAREST


@pytest.mark.parametrize("frames", [1, 2, 3, FRAMES])
def test_constant_pictures_get_the_prior(frames: int) -> None:
    disparity = ENGINE(np.full((frames, 60, 90, 3), 77, np.uint8))
    np.testing.assert_allclose(disparity, np.repeat(ground(60, 90, 0.0)[None], frames, axis=0), atol=1e-6)


def test_the_same_pictures_give_the_same_bits_whatever_the_number_of_threads() -> None:
    frames, _ = two_planes(1)
    first, threads = ENGINE(frames[:9]), cv2.getNumThreads()
    try:
        cv2.setNumThreads(threads + 3)
        assert np.array_equal(ENGINE(frames[:9]), first)
        assert cv2.getNumThreads() == threads + 3
    finally:
        cv2.setNumThreads(threads)


def test_a_cut_divides_a_window() -> None:
    frames, _ = two_planes(1)
    other = np.ascontiguousarray(np.flip(turning(0.2), axis=2))
    both = ENGINE(np.concatenate([frames[:8], other[:9]]))
    assert np.array_equal(both[:8], ENGINE(frames[:8]))
    assert np.array_equal(both[8:], ENGINE(other[:9]))


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_other_arrays_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="give pictures as uint8 RGB"):
        ENGINE(frames)


class Pictures:
    fps = Fraction(16)

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures = pictures
        self.frames = len(pictures)

    def read(self, numbers: range) -> Iterator[np.ndarray]:
        return iter(self.pictures[numbers.start : numbers.stop])


def test_near_comes_out_black_through_the_control(tmp_path: Path) -> None:
    frames, board = two_planes(1)
    raw_depth = extract_depth(Pictures(frames), ENGINE, tmp_path / "depth.npy")
    plan = ClipPlan(frames=FRAMES, width=WIDTH, height=HEIGHT)
    write_control(raw_depth, plan, tmp_path / "dense.mkv")
    for picture, where in zip(read_frames(tmp_path / "dense.mkv", range(FRAMES)), board, strict=True):
        grey, rows = picture[..., 0].astype(float), slice(35, 65)
        assert grey[rows][where[rows]].mean() < grey[rows][~where[rows]].mean() - 20
        assert grey[-5:].mean() < 30 and grey[:5].mean() > 225
