"""Point tracks: Lucas-Kanade against motion that is known by construction, and what is made of tracks and depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from longvie_core.control.control import Control
from longvie_core.control.tracks.draw import draw_clip, reference_grid, render_tracks
from longvie_core.control.tracks.flow import FlowTracker
from longvie_core.control.tracks.lucas_kanade import LucasKanade
from longvie_core.control.tracks.point_depth import clip_points, hide_occluded
from longvie_core.control.tracks.types import Tracks, external_tracks
from longvie_core.control.tracks.write import write_external_tracks, write_tracks
from longvie_core.media.read import read_frames
from longvie_core.media.write import VideoWriter
from longvie_core.plan import ClipPlan
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene
from longvie_core.world.track import grid_points, track

WIDTH, HEIGHT = 96, 64
CENTRE = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])


def texture(seed: int, blur: float = 1.5, side: int = 256) -> np.ndarray:
    """Blurred noise, float [side, side], grey levels about 128; it goes on periodically."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), blur, mode="wrap")
    return 128 + 45 * noise / noise.std()


def view(
    surface: np.ndarray, linear: np.ndarray, shift: tuple[float, float], size: tuple[int, int] = (WIDTH, HEIGHT)
) -> np.ndarray:
    """Grey picture, float, of a surface turned and stretched about the picture's centre by ``linear``, then shifted."""
    centre = (np.array(size) - 1) / 2
    pixels = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), axis=-1) - centre - np.asarray(shift)
    x, y = np.moveaxis(pixels @ np.linalg.inv(linear).T + 128, -1, 0)
    return ndimage.map_coordinates(surface, [y, x], order=3, mode="grid-wrap")


def rgb(pictures: list[np.ndarray]) -> np.ndarray:
    grey = np.clip(np.rint(np.stack(pictures)), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def turn(degrees: float, zoom: float = 1.0) -> np.ndarray:
    angle = math.radians(degrees)
    return zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def inner_grid(columns: int = 12, rows: int = 8, margin: float = 20) -> np.ndarray:
    return grid_points(columns, rows, WIDTH, HEIGHT, margin)


def moved(points: np.ndarray, linear: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    return (points - CENTRE) @ linear.T + CENTRE + np.asarray(shift)


def film(motion: Callable[[int], tuple[np.ndarray, tuple[float, float]]], frames: int, points: np.ndarray, seed: int = 0):
    """A moving surface: uint8 frames and the true places [T, N, 2] of the points."""
    surface = texture(seed)
    moves = [motion(frame) for frame in range(frames)]
    return rgb([view(surface, *move) for move in moves]), np.stack([moved(points, *move) for move in moves])


def errors(tracks: Tracks, truth: np.ndarray) -> np.ndarray:
    return np.linalg.norm(tracks.xy - truth, axis=-1)


@pytest.fixture(scope="module")
def scene():
    """A clip of the procedural world with its exact tracks and depth."""
    width, height, frames = 192, 112, 25
    scene, points = make_scene(0), grid_points(20, 12, width, height)
    filmed = list(render_frames(scene, frames, 16, width, height))
    truth = track(scene, points, [number / 16 for number in range(frames)], width, height)
    return np.stack([one.rgb for one in filmed]), np.stack([one.depth for one in filmed]), points, truth


class TestAccuracy:
    def test_world_with_exact_tracks(self, scene) -> None:
        frames, _, points, truth = scene
        tracks = LucasKanade().track(frames, points)
        assert (tracks.xy.dtype, tracks.visible.dtype) == (np.float32, bool)
        assert tracks.xy.shape == truth.xy.shape and np.isfinite(tracks.xy).all()
        np.testing.assert_array_equal(tracks.xy[0], points.astype(np.float32))
        late = np.linalg.norm(tracks.xy - truth.xy, axis=-1)[-1][truth.visible[-1]]
        assert np.median(late) < 0.3
        assert np.percentile(late, 90) < 5
        hits = (tracks.visible & truth.visible)[1:].sum()
        assert 2 * hits / (tracks.visible[1:].sum() + truth.visible[1:].sum()) > 0.975

    @pytest.mark.parametrize("step", [(0.4, -0.3), (5.5, 2.25), (-1.0, 0.0)])
    def test_translation(self, step: tuple[float, float]) -> None:
        points = grid_points(6, 4, 34, 24) + (31, 20)
        frames, truth = film(lambda frame: (np.eye(2), (step[0] * frame, step[1] * frame)), 5, points)
        tracks = LucasKanade().track(frames, points)
        assert tracks.visible.all()
        assert errors(tracks, truth).max() < 0.1

    def test_rotation_and_zoom(self) -> None:
        points = inner_grid()
        frames, truth = film(lambda frame: (turn(2.5 * frame, 1.015**frame), (0.5 * frame, 0.3 * frame)), 17, points)
        tracks = LucasKanade().track(frames, points)
        seen = np.all((truth > 7) & (truth < (WIDTH - 8, HEIGHT - 8)), axis=-1)
        assert tracks.visible[seen].all()
        assert errors(tracks, truth)[seen].max() < 0.35

    def test_errors_do_not_add_up(self) -> None:
        points = inner_grid()
        frames, truth = film(lambda frame: (turn(0.7 * math.sin(0.9 * frame)), (3 * math.sin(1.3 * frame), 0.0)), 41, points)
        wrong = errors(LucasKanade().track(frames, points), truth)
        assert np.median(wrong[-1]) < 0.04
        assert wrong[-1].max() < 0.15

    def test_surface_that_changes_its_looks_slowly_is_kept(self) -> None:
        points = inner_grid(margin=24)
        one, other = texture(1), texture(2)
        places = [(0.3 * frame, -0.2 * frame) for frame in range(41)]
        mixed = [
            view(
                128 + (one - 128) * math.cos(k / 40 * math.pi / 2) + (other - 128) * math.sin(k / 40 * math.pi / 2),
                np.eye(2),
                place,
            )
            for k, place in enumerate(places)
        ]
        tracks = LucasKanade().track(rgb(mixed), points)
        assert tracks.visible[-1].mean() > 0.95
        assert np.median(errors(tracks, points + np.array(places)[:, None])[-1]) < 1.5

    def test_light_may_change(self) -> None:
        points = inner_grid()
        frames, truth = film(lambda frame: (np.eye(2), (0.8 * frame, 0.0)), 9, points)
        dimmed = np.stack([np.rint(picture * (1 - 0.05 * frame)) for frame, picture in enumerate(frames)]).astype(np.uint8)
        tracks = LucasKanade().track(dimmed, points)
        assert tracks.visible.all()
        assert errors(tracks, truth).max() < 0.35

    def test_texture_in_one_colour_is_enough(self) -> None:
        points = inner_grid()
        frames, truth = film(lambda frame: (np.eye(2), (0.8 * frame, 0.4 * frame)), 9, points)
        frames[..., 0], frames[..., 2] = 90, 200
        tracks = LucasKanade().track(frames, points)
        assert tracks.visible.all()
        assert errors(tracks, truth).max() < 0.15

    @pytest.mark.parametrize("noise", [0, 3])
    def test_flat_part_moves_with_what_surrounds_it(self, noise: float) -> None:
        generator, surface = np.random.default_rng(5), texture(5)
        surface[108:149, 108:149] = 128
        points = grid_points(16, 10, WIDTH, HEIGHT, 4)
        moves = [(turn(0.5 * frame), (0.6 * frame, 0.5 * frame)) for frame in range(21)]
        truth = np.stack([moved(points, *move) for move in moves])
        pictures = [view(surface, *move) + generator.normal(0, noise, (HEIGHT, WIDTH)) for move in moves]
        tracks = LucasKanade().track(rgb(pictures), points)
        flat = np.all(np.abs(points - CENTRE) < 16, axis=1)
        assert flat.sum() >= 24
        assert tracks.visible[:, flat].mean() > 0.8
        assert np.percentile(errors(tracks, truth)[-1, flat], 90) < 2
        assert np.median(errors(tracks, truth)[-1, flat]) < 0.8

    def test_along_stripes_the_neighbours_decide(self) -> None:
        generator, surface = np.random.default_rng(9), texture(3)
        surface[114:142, 114:142] = 128 + 45 * np.sin(np.arange(28) / 2)
        points = grid_points(16, 10, WIDTH, HEIGHT, 4)
        places = [(0.3 * frame, 0.8 * frame) for frame in range(11)]
        pictures = [view(surface, np.eye(2), place) + generator.normal(0, 2, (HEIGHT, WIDTH)) for place in places]
        tracks = LucasKanade().track(rgb(pictures), points)
        striped = np.all(np.abs(points - CENTRE) < 11, axis=1)
        assert striped.sum() >= 16
        assert np.percentile(errors(tracks, points + np.array(places)[:, None])[-1, striped], 75) < 1


class TestVisibility:
    @staticmethod
    def passing(frames: int = 33) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A textured square that crosses a moving background: pictures, points, their true places and visibility."""
        points = grid_points(14, 9, WIDTH, HEIGHT, 14)
        ground, thing = texture(4), texture(5)
        places = [(0.25 * frame, 0.1 * frame) for frame in range(frames)]
        columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        pictures, seen = [], []
        for frame, place in enumerate(places):
            left, top = 5 * frame - 40, 16
            covered = (columns >= left) & (columns < left + 26) & (rows >= top) & (rows < top + 32)
            pictures.append(np.where(covered, view(thing, np.eye(2), (left, 0)), view(ground, np.eye(2), place)))
            x, y = (points + place).T
            seen.append(~((x > left - 0.5) & (x < left + 25.5) & (y > top - 0.5) & (y < top + 31.5)))
        return rgb(pictures), points, points + np.array(places)[:, None], np.stack(seen)

    def test_what_is_covered_is_hidden_and_found_again(self) -> None:
        frames, points, truth, seen = self.passing()
        tracks = LucasKanade().track(frames, points)
        assert seen[0].all() and seen[-1].all() and (~seen).any(axis=0).sum() > 30
        # A window's half to each side of the edge, where a patch is half covered, may be called either way.
        deep = ndimage.minimum_filter(~seen, (3, 1)) & (np.abs(truth[..., 1] - 31.5) < 10)
        assert deep.sum() > 60
        assert (~tracks.visible[deep]).mean() > 0.97
        clear = ndimage.minimum_filter(seen, (7, 1))
        assert tracks.visible[clear].mean() > 0.97
        assert tracks.visible[-1].mean() > 0.98
        assert np.percentile(errors(tracks, truth)[-1], 95) < 0.2

    def test_hidden_points_move_on_with_their_surroundings(self) -> None:
        frames, points, truth, seen = self.passing()
        wrong = errors(LucasKanade().track(frames, points), truth)
        assert np.percentile(wrong[~seen], 90) < 2

    def test_hidden_points_follow_what_moved_as_they_did(self) -> None:
        """A pole moves over the ground; then a plate hides the middle of it, to which the ground at its sides is nearer."""
        points = grid_points(24, 16, WIDTH, HEIGHT)
        ground, pole, plate = texture(4), texture(5), view(texture(6), np.eye(2), (0, 0))
        columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        pictures, lefts = [], [24 + 0.9 * frame for frame in range(25)]
        for frame, left in enumerate(lefts):
            on_pole = (columns >= left) & (columns < left + 22)
            on_plate = (columns >= lefts[16] - 1) & (columns < lefts[24] + 23) & (rows >= 20) & (rows < 44) & (frame >= 16)
            picture = np.where(on_pole, view(pole, np.eye(2), (left, 0)), view(ground, np.eye(2), (-0.6 * frame, 0)))
            pictures.append(np.where(on_plate, plate, picture))
        hidden = (points[:, 0] > 25) & (points[:, 0] < 45) & (points[:, 1] > 22) & (points[:, 1] < 42)
        assert hidden.sum() >= 20
        tracks = LucasKanade().track(rgb(pictures), points)
        assert tracks.visible[17:, hidden].mean() < 0.15
        off = tracks.xy[-1, hidden] - (points[hidden] + (lefts[-1] - lefts[0], 0))
        assert np.percentile(np.linalg.norm(off, axis=1), 75) < 2

    def test_lost_points_are_looked_for_widely(self) -> None:
        points = inner_grid()
        still, aside = (view(texture(0, blur=5), np.eye(2), (shift, 0)) for shift in (0, 9))
        tracks = LucasKanade().track(rgb([still, still, 0 * still, aside]), points)
        assert not tracks.visible[2].any()
        found = tracks.visible[3]
        assert found.mean() > 0.8
        assert np.median(errors(tracks, points + (9, 0))[3, found]) < 0.6

    def test_points_leave_the_picture_and_come_back(self) -> None:
        points = grid_points(16, 8, WIDTH, HEIGHT, 3)
        away = [40 * math.sin(math.pi * frame / 20) for frame in range(21)]
        frames, truth = film(lambda frame: (np.eye(2), (-away[frame], 0.0)), 21, points)
        tracks = LucasKanade().track(frames, points)
        outside = (truth[..., 0] < -0.5).nonzero()
        assert len(outside[0]) > 100
        assert not tracks.visible[outside].any()
        assert np.percentile(errors(tracks, truth)[outside], 90) < 1
        assert tracks.visible[-1].all()
        assert errors(tracks, truth)[-1].max() < 0.2

    def test_points_at_the_border_are_as_exact_as_others(self) -> None:
        points = grid_points(20, 12, WIDTH, HEIGHT)
        frames, truth = film(lambda frame: (np.eye(2), (1.1 * frame, 0.7 * frame)), 13, points)
        tracks = LucasKanade().track(frames, points)
        seen = np.all(truth < (WIDTH - 2, HEIGHT - 2), axis=-1)
        border = np.any((points < 5) | (points > (WIDTH - 6, HEIGHT - 6)), axis=1)
        assert (seen[-1] & border).sum() > 20
        assert tracks.visible[seen].mean() > 0.99
        assert np.percentile(errors(tracks, truth)[:, border][seen[:, border]], 95) < 0.25

    def test_a_cut_hides_what_was_there(self) -> None:
        points = inner_grid()
        frames = rgb([view(texture(seed), np.eye(2), (0, 0)) for seed in (6, 6, 7, 7)])
        tracks = LucasKanade().track(frames, points)
        assert tracks.visible[:2].all()
        assert tracks.visible[2:].mean() < 0.1
        assert np.isfinite(tracks.xy).all()
        assert np.all(np.abs(tracks.xy - CENTRE) <= 3 * np.array([WIDTH, HEIGHT]))


class TestUnusualInput:
    @pytest.mark.parametrize("level", [0, 128, 255])
    def test_constant_pictures(self, level: int) -> None:
        points = inner_grid()
        tracks = LucasKanade().track(np.full((6, HEIGHT, WIDTH, 3), level, np.uint8), points)
        assert tracks.visible.all()
        assert errors(tracks, points).max() < 1e-3

    @pytest.mark.parametrize("contrast", [0, 1])
    def test_picture_that_turns_dark_hides_all(self, contrast: int) -> None:
        points = inner_grid()
        before = view(128 + contrast * (texture(0) - 128), np.eye(2), (0, 0))
        frames = rgb([before, before, 0 * before, 0 * before, 0 * before])
        tracks = LucasKanade().track(frames, points)
        assert not tracks.visible[2:].any()
        np.testing.assert_allclose(tracks.xy, np.broadcast_to(points, tracks.xy.shape), atol=0.1)

    def test_same_input_gives_same_bits(self, scene) -> None:
        frames, _, points, _ = scene
        first, second = (LucasKanade().track(given, points) for given in (frames[:9], list(frames[:9])))
        np.testing.assert_array_equal(first.xy, second.xy)
        np.testing.assert_array_equal(first.visible, second.visible)

    def test_no_points(self) -> None:
        tracks = LucasKanade().track(np.zeros((4, 32, 48, 3), np.uint8), np.empty((0, 2), np.float32))
        assert (tracks.xy.shape, tracks.visible.shape) == ((4, 0, 2), (4, 0))

    @pytest.mark.parametrize("points", [[[47.5, 31.0]], [[47.5, 31.0], [47.5, 31.0]], [[40.0, 30.0], [60.25, 33.5]]])
    def test_few_points(self, points: list[list[float]]) -> None:
        points = np.array(points)
        frames, truth = film(lambda frame: (np.eye(2), (0.6 * frame, 0.9 * frame)), 7, points)
        tracks = LucasKanade().track(frames, points)
        assert tracks.visible.all()
        assert errors(tracks, truth).max() < 0.15

    def test_more_points_than_are_searched_for_at_once(self) -> None:
        points = np.tile(inner_grid(), (12, 1))
        frames, truth = film(lambda frame: (np.eye(2), (0.6 * frame, 0.9 * frame)), 3, points)
        tracks = LucasKanade().track(frames, points)
        assert len(points) > 1000 and tracks.visible.all()
        assert errors(tracks, truth).max() < 0.15

    def test_one_frame(self) -> None:
        points = np.array([[3.0, 4.0], [200.0, 4.0], [-0.6, 4.0], [-0.4, 4.0], [47.4, 31.4], [47.4, 31.6]])
        tracks = LucasKanade().track(np.zeros((1, 32, 48, 3), np.uint8), points)
        np.testing.assert_array_equal(tracks.xy[0], points.astype(np.float32))
        assert tracks.visible.tolist() == [[True, False, False, True, True, False]]

    def test_points_outside_the_first_picture_go_along_unseen(self) -> None:
        points = np.concatenate([grid_points(10, 6, WIDTH, HEIGHT, 4), [[-6.0, 30.0], [1e6, -1e6]]])
        frames, truth = film(lambda frame: (np.eye(2), (1.5 * frame, 0.0)), 11, points)
        tracks = LucasKanade().track(frames, points)
        assert not tracks.visible[:, -2:].any()
        assert errors(tracks, truth)[:, -2].max() < 0.5
        assert np.isfinite(tracks.xy).all()

    @pytest.mark.parametrize("size", [(33, 17), (97, 61), (20, 5), (7, 40), (1, 1)])
    def test_odd_and_tiny_pictures(self, size: tuple[int, int]) -> None:
        surface = texture(8)
        frames = rgb([view(surface, np.eye(2), (0.5 * frame, 0.0), size) for frame in range(5)])
        points = grid_points(5, 3, *size)
        tracks = LucasKanade().track(frames, points)
        assert tracks.xy.shape == (5, 15, 2) and np.isfinite(tracks.xy).all()
        if min(size) > 15:
            truth = points + np.arange(5)[:, None, None] * (0.5, 0)
            assert np.median(errors(tracks, truth)[-1][tracks.visible[-1]]) < 0.1

    @pytest.mark.parametrize(
        ("frames", "points", "message"),
        [
            (np.zeros((0, 8, 8, 3), np.uint8), [[1, 1]], "no frames"),
            (np.zeros((2, 8, 8, 3), np.float32), [[1, 1]], "frame 0 is float32"),
            (np.zeros((2, 8, 8), np.uint8), [[1, 1]], r"frame 0 is uint8 \[8, 8\]: give uint8 RGB"),
            (np.zeros((2, 8, 0, 3), np.uint8), [[1, 1]], r"\[8, 0, 3\]"),
            ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], [[1, 1]], "frame 1 is .* give one size"),
            (np.zeros((2, 8, 8, 3), np.uint8), [1, 1], r"points have the shape \[2\]"),
            (np.zeros((2, 8, 8, 3), np.uint8), [[1, 1, 1]], r"\[1, 3\]"),
            (np.zeros((2, 8, 8, 3), np.uint8), [[1, 1], [np.nan, 2]], "point 1 is .* give finite"),
        ],
    )
    def test_errors_name_what_is_wrong(self, frames, points, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LucasKanade().track(frames, np.array(points, np.float32))

    @pytest.mark.parametrize(
        "setting",
        [{"window": 12}, {"window": 3}, {"levels": -1}, {"iterations": 0}, {"neighbours": 2}, {"forward_backward": 0.0}],
    )
    def test_settings_out_of_range(self, setting: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(setting))} .*give"):
            LucasKanade(**setting)


class ExactFlow:
    """Flow that is known: of the pictures of ``film``, by their numbers; notes which it was asked for."""

    def __init__(self, frames: np.ndarray, places: Callable[[int, int], np.ndarray]) -> None:
        self.number = {frame.tobytes(): number for number, frame in enumerate(frames)}
        assert len(self.number) == len(frames)
        self.places, self.asked = places, []

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pair = self.number[first.tobytes()], self.number[second.tobytes()]
        self.asked.append(pair)
        return (self.places(*pair) - PIXELS[: first.shape[0], : first.shape[1]]).astype(np.float32)


PIXELS = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1).astype(float)


def numbered(count: int) -> np.ndarray:
    """Pictures that a known flow tells apart."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, HEIGHT, WIDTH, 3))


def shifting(step: tuple[float, float], count: int = 12) -> ExactFlow:
    """All goes ``step`` pixels a frame."""
    return ExactFlow(numbered(count), lambda a, b: PIXELS[:HEIGHT, :WIDTH] + (b - a) * np.array(step))


def passing_square(a: int, b: int) -> np.ndarray:
    """A square 20 pixels wide that goes 5 pixels a frame over a picture that stands still."""
    places = PIXELS[:HEIGHT, :WIDTH].copy()
    places[20:40, max(0, 5 * a - 20) : 5 * a] += (5 * (b - a), 0)
    return places


class TestFlowTracker:
    def test_world_with_exact_flow(self) -> None:
        width, height, count = 128, 80, 17
        scene, points = make_scene(0), grid_points(16, 10, width, height)
        times = [number / 16 for number in range(count)]
        pixels = PIXELS[:height, :width].reshape(-1, 2)
        frames = np.stack([np.full((height, width, 3), number, np.uint8) for number in range(count)])
        flow = ExactFlow(
            frames, lambda a, b: track(scene, pixels, [times[a], times[b]], width, height).xy[1].reshape(height, width, 2)
        )
        truth, tracks = track(scene, points, times, width, height), FlowTracker(flow).track(frames, points)
        wrong = errors(tracks, truth.xy)[1:][truth.visible[1:]]
        assert np.median(wrong) < 0.02
        assert np.percentile(wrong, 95) < 1
        hits = (tracks.visible & truth.visible)[1:].sum()
        assert 2 * hits / (tracks.visible[1:].sum() + truth.visible[1:].sum()) > 0.97

    def test_flow_is_read_between_pixels(self) -> None:
        bent = ExactFlow(numbered(2), lambda a, b: PIXELS[:HEIGHT, :WIDTH] * (1.02 if b > a else 1 / 1.02))
        points = np.array([[30.25, 20.5], [10.75, 40.125]])
        tracks = FlowTracker(bent).track(numbered(2), points)
        np.testing.assert_allclose(tracks.xy[1], points * 1.02, atol=1e-4)
        assert tracks.visible.all()

    def test_errors_of_the_flow_do_not_add_up(self) -> None:
        exact = shifting((1.0, 0.5))

        def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return exact(first, second) + np.float32(0.2 if second.max() > first.max() else -0.2)

        points = grid_points(4, 3, 40, 30) + 5
        tracks = FlowTracker(flow).track(numbered(12), points)
        assert tracks.visible.all()
        off = errors(tracks, points + np.arange(12)[:, None, None] * (1.0, 0.5))
        np.testing.assert_allclose(off[1:], 0.2 * math.sqrt(2), atol=1e-3)

    def test_chain_goes_on_where_the_first_frame_is_forgotten(self) -> None:
        exact = shifting((1.5, 0.0))

        def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            near = abs(int(first.max()) - int(second.max())) < 4
            return exact(first, second) if near else np.full((HEIGHT, WIDTH, 2), 20, np.float32)

        points = inner_grid()
        tracks = FlowTracker(flow).track(numbered(12), points)
        truth = points + np.arange(12)[:, None, None] * (1.5, 0)
        assert tracks.visible.all()
        assert errors(tracks, truth).max() < 1e-3

    def test_a_look_alike_elsewhere_is_not_taken(self) -> None:
        exact = shifting((0.5, 0.0))

        def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            far = int(second.max()) - int(first.max())
            return exact(first, second) + np.float32([12 * np.sign(far) * (abs(far) > 3), 0])

        points = inner_grid()
        tracks = FlowTracker(flow).track(numbered(12), points)
        assert errors(tracks, points + np.arange(12)[:, None, None] * (0.5, 0)).max() < 1e-3

    def test_what_passes_in_front_hides_and_points_are_found_again(self) -> None:
        frames = numbered(19)
        points = np.array([[x, y] for y in (8.0, 26.0, 33.0, 52.0) for x in (12.0, 33.0, 44.0, 57.0)])
        tracks = FlowTracker(ExactFlow(frames, passing_square)).track(frames, points)
        for frame in range(1, 19):
            behind = (points[:, 0] > 5 * frame - 20) & (points[:, 0] < 5 * frame) & (abs(points[:, 1] - 29.5) < 10)
            np.testing.assert_array_equal(tracks.visible[frame], ~behind, err_msg=f"frame {frame}")
        assert errors(tracks, points).max() < 0.1

    def test_lost_points_go_with_their_neighbours(self) -> None:
        # The picture goes right behind a post that stands still.
        def places(a: int, b: int) -> np.ndarray:
            moved = PIXELS[:HEIGHT, :WIDTH] + ((b - a) * 2.0, 0)
            moved[:, 50:58] = PIXELS[:HEIGHT, 50:58]
            return moved

        frames, points = numbered(10), grid_points(16, 12, 50, HEIGHT)
        tracks = FlowTracker(ExactFlow(frames, places)).track(frames, points)
        truth = points + np.arange(10)[:, None, None] * (2.0, 0)
        behind = (truth[..., 0] > 51) & (truth[..., 0] < 56)
        assert behind.sum() > 50 and not tracks.visible[behind].any()
        assert errors(tracks, truth).max() < 0.5

    def test_points_that_leave_are_not_visible(self) -> None:
        flow = shifting((6.0, 0.0))
        points = np.array([[80.0, 20.0], [20.0, 30.0], [-5.0, 30.0]])
        tracks = FlowTracker(flow).track(numbered(12), points)
        assert tracks.visible[:, 0].tolist() == [80 + 6 * frame < WIDTH - 0.5 for frame in range(12)]
        assert not tracks.visible[:, 2].any()
        assert tracks.visible[:, 1].all()

    def test_one_frame_and_no_points_ask_for_no_flow(self) -> None:
        flow = shifting((1, 1))
        one = FlowTracker(flow).track(numbered(1), inner_grid())
        assert one.xy.shape == (1, 96, 2) and one.visible.all()
        none = FlowTracker(flow).track(numbered(3), np.empty((0, 2)))
        assert (none.xy.shape, none.visible.shape, flow.asked) == ((3, 0, 2), (3, 0), [])

    @pytest.mark.parametrize(
        ("flow", "message"),
        [
            (np.zeros((2, HEIGHT, WIDTH), np.float32), r"flow from frame 0 to 1 is \[2, 64, 96\]: it must be \[64, 96, 2\]"),
            (np.full((HEIGHT, WIDTH, 2), np.nan, np.float32), "flow from frame 0 to 1 has values that are not finite"),
        ],
    )
    def test_errors_name_what_is_wrong(self, flow: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FlowTracker(lambda first, second: flow).track(numbered(2), inner_grid())
        with pytest.raises(ValueError, match="no frames"):
            FlowTracker(lambda first, second: flow).track(numbered(0), inner_grid())
        with pytest.raises(ValueError, match="point 0 is .* give finite"):
            FlowTracker(lambda first, second: flow).track(numbered(2), np.full((1, 2), np.inf))


class TestDepth:
    @staticmethod
    def one(z: list[float], visible: list[int] | None = None) -> tuple[Tracks, np.ndarray]:
        """One point that stands still in a picture of 3x2, and the depth there; elsewhere it is -9."""
        volume = np.full((len(z), 2, 3), -9.0, np.float32)
        volume[:, 1, 2] = z
        seen = np.ones(len(z), bool) if visible is None else np.array(visible, bool)
        return Tracks(np.full((len(z), 1, 2), (1.6, 0.8), np.float32), seen[:, None]), volume

    @pytest.mark.parametrize(
        ("z", "visible", "expected"),
        [
            ([0.2, 0.2, 0.6, 0.6, 0.2], None, [1, 1, 0, 0, 1]),  # something passes in front
            ([0.2, 0.24, 0.28, 0.32, 0.36], None, [1, 1, 1, 1, 1]),  # comes nearer itself
            ([0.6, 0.2, 0.2, 0.2, 0.6], None, [1, 1, 1, 1, 0]),  # what falls back is not hidden, what returns then is
            ([0.2, 0.26, 0.2, 0.2, 0.2], None, [1, 0, 1, 1, 1]),
            ([0.2] + 7 * [0.31], [1] + 6 * [0] + [1], [1] + 6 * [0] + [1]),  # came nearer while it was not seen
            ([0.2] + 7 * [0.45], [1] + 6 * [0] + [1], [1] + 7 * [0]),
        ],
    )
    def test_sudden_nearness_hides(self, z: list[float], visible: list[int] | None, expected: list[int]) -> None:
        tracks, volume = self.one(z, visible)
        checked = hide_occluded(tracks, volume)
        assert checked.visible[:, 0].astype(int).tolist() == expected
        np.testing.assert_array_equal(checked.xy, tracks.xy)
        assert tracks.visible.sum() == (len(z) if visible is None else sum(visible))  # the given tracks stay as they are

    def test_it_catches_what_drifts_onto_a_thing_in_front(self, scene) -> None:
        frames, depth, points, truth = scene
        fooled = Tracks(np.nan_to_num(truth.xy).astype(np.float32), np.ones_like(truth.visible))
        near = (1 / depth - (1 / depth).min()) / np.ptp(1 / depth)
        inside = np.all((truth.xy >= 0) & (truth.xy <= (frames.shape[2] - 1, frames.shape[1] - 1)), axis=-1)
        hidden = inside & ~truth.visible
        assert hidden.sum() > 20
        checked = hide_occluded(fooled, near).visible
        assert (~checked[hidden]).mean() > 0.7
        assert checked[inside & truth.visible].mean() > 0.98

    def test_z_comes_from_the_nearest_pixel(self) -> None:
        volume = np.arange(12, dtype=np.float32).reshape(1, 3, 4) / 12
        xy = np.array([[[0.4, 0.4], [0.6, 0.4], [2.9, 1.6], [-5.0, 0.0], [9.0, 9.0]]], np.float32)
        points = clip_points(Tracks(xy, np.ones((1, 5), bool)), volume)
        assert points.dtype == np.float32
        np.testing.assert_array_equal(points[..., :2], xy)
        np.testing.assert_allclose(points[0, :, 2] * 12, [0, 1, 11, 0, 11], rtol=1e-6)

    @pytest.mark.parametrize(
        ("visible", "expected"),
        [
            ([1, 1, 1, 1, 1], [0.0, 0.1, 0.9, 0.3, 0.4]),
            ([1, 1, 0, 0, 1], [0.0, 0.1, 0.2, 0.3, 0.4]),
            ([1, 0, 0, 0, 1], [0.0, 0.1, 0.2, 0.3, 0.4]),
            ([0, 1, 1, 0, 0], [0.1, 0.1, 0.9, 0.9, 0.9]),
            ([0, 0, 0, 0, 0], [0.0, 0.1, 0.9, 0.3, 0.4]),
        ],
    )
    def test_hidden_points_have_the_z_between_their_sightings(self, visible: list[int], expected: list[float]) -> None:
        tracks, volume = self.one([0.0, 0.1, 0.9, 0.3, 0.4], visible)
        np.testing.assert_allclose(clip_points(tracks, volume)[:, 0, 2], expected, atol=1e-6)

    @pytest.mark.parametrize("use", [hide_occluded, clip_points])
    def test_depth_of_another_length(self, use: Callable) -> None:
        tracks, volume = self.one([0.1, 0.2, 0.3])
        with pytest.raises(ValueError, match="tracks have 3 frames, but the depth has 2"):
            use(tracks, volume[:2])

    def test_drawn_clip(self) -> None:
        points = np.array([[10.0, 10.0], [30.0, 10.0], [10.0, 30.0], [30.0, 30.0]], np.float32)
        tracks = Tracks(np.stack([points, points + (8, 0)]), np.array([[True] * 4, [True, True, True, False]]))
        z = np.full((2, 48, 64), 0.5, np.float32)
        first, second = draw_clip(tracks, z, "corrected")
        assert first.shape == (48, 64, 3)
        assert first[10, 10].tolist() == [0, 0, 128] and first[30, 30].tolist() == [255, 255, 128]
        assert second[10, 18].tolist() == [0, 0, 128] and second[30, 38].tolist() == [0, 0, 0]
        reference = list(draw_clip(tracks, z))
        assert reference[1][30, 38].any()  # the reference draws hidden points too


SIDE = 6
PLAN = ClipPlan(width=64, height=48, frames=9)


class Footage:
    """Pictures of the procedural world as a driving video, which notes what is read."""

    def __init__(self, frames: int, width: int = PLAN.width, height: int = PLAN.height) -> None:
        self.frames, self.reads = frames, []
        self._pictures = [one.rgb for one in render_frames(make_scene(1), frames, 16, width, height, 1)]

    def read(self, numbers: range) -> Iterator[np.ndarray]:
        self.reads.append(numbers)
        assert numbers[-1] < self.frames
        return (self._pictures[number] for number in numbers)


class Drifter:
    """A tracker whose answer is known: every point goes a pixel right and half a pixel up a frame; the first is never seen."""

    def __init__(self) -> None:
        self.calls = []

    def track(self, frames: np.ndarray, points: np.ndarray) -> Tracks:
        self.calls.append(frames)
        visible = np.ones((len(frames), len(points)), bool)
        visible[:, 0] = False
        return Tracks(points + np.arange(len(frames))[:, None, None] * np.array([1, -0.5], np.float32), visible)


def dense_control(folder: Path, frames: int) -> tuple[Control, np.ndarray]:
    """A ramp, nearest (black) at the left, whose lower part gets nearer: the control and its grey frames."""
    nearing = np.arange(frames)[:, None, None] * np.linspace(0, 3, PLAN.height)[:, None]
    grey = np.rint(np.linspace(90, 250, PLAN.width) - nearing).astype(np.uint8)
    return Control.from_video(dense_video(folder, grey), "dense"), grey


def dense_video(folder: Path, grey: np.ndarray) -> Path:
    path = folder / "dense.mkv"
    with VideoWriter(path, PLAN.width, PLAN.height, Fraction(16), codec="lossless") as writer:
        for picture in grey:
            writer.write(np.repeat(picture[..., None], 3, axis=-1))
    return path


def expected_clip(grey: np.ndarray, style: str) -> np.ndarray:
    """What the clip of :class:`Drifter`'s tracks looks like, by a loop over points."""
    start = reference_grid(PLAN.width, PLAN.height, SIDE)
    low, high = int(grey.min()), int(grey.max())
    tracks = np.zeros((len(grey), len(start), 3), np.float32)
    for frame, picture in enumerate(grey):
        for point, (x, y) in enumerate(start + frame * np.array([1, -0.5], np.float32)):
            column, row = min(max(round(float(x)), 0), PLAN.width - 1), min(max(round(float(y)), 0), PLAN.height - 1)
            tracks[frame, point] = x, y, (high - int(picture[row, column])) / (high - low)
    visible = np.ones(tracks.shape[:2], bool)
    visible[:, 0] = False
    return np.stack(list(render_tracks(tracks, visible, PLAN.width, PLAN.height, style)))


class TestWriteTracks:
    @pytest.mark.parametrize("style", ["reference", "corrected"])
    def test_every_clip_has_its_own_grid(self, tmp_path: Path, style: str) -> None:
        dense, grey = dense_control(tmp_path, 20)
        footage, tracker, done = Footage(20), Drifter(), []
        sparse = write_tracks(
            footage,
            dense,
            PLAN,
            tracker,
            tmp_path / "a" / "b",
            grid=SIDE,
            style=style,
            progress=lambda *given: done.append(given),
        )
        assert [path.name for path in sparse.paths] == ["track_000.mkv", "track_001.mkv"]
        assert (sparse.modality, sparse.per_clip, sparse.frames, sparse.width, sparse.height) == ("sparse", True, 9, 64, 48)
        assert footage.reads == [range(0, 9), range(8, 17)]
        assert done == [(1, 2), (2, 2)]
        np.testing.assert_array_equal(tracker.calls[1], np.stack(list(Footage(20).read(range(8, 17)))))
        for clip, path in enumerate(sparse.paths):
            drawn = np.stack(list(read_frames(path, range(9))))
            np.testing.assert_array_equal(drawn, expected_clip(grey[8 * clip : 8 * clip + 9], style))

    def test_padded_tail_repeats_the_last_picture(self, tmp_path: Path) -> None:
        dense, grey = dense_control(tmp_path, 12)
        tracker, footage = Drifter(), Footage(12)
        sparse = write_tracks(footage, dense, ClipPlan(64, 48, 9, tail="pad"), tracker, tmp_path / "t", grid=SIDE)
        assert len(sparse.paths) == 2 and footage.reads[-1] == range(8, 12)
        last = tracker.calls[1]
        assert len(last) == 9
        for picture in last[4:]:
            np.testing.assert_array_equal(picture, last[3])
        held = np.concatenate([grey[8:12], np.repeat(grey[11:12], 5, axis=0)])
        drawn = np.stack(list(read_frames(sparse.paths[1], range(9))))
        np.testing.assert_array_equal(drawn, expected_clip(held, "reference"))

    def test_depth_hides_what_the_tracker_missed(self, tmp_path: Path) -> None:
        grey = np.full((9, PLAN.height, PLAN.width), 200, np.uint8)
        grey[:, :, :8] = 250
        grey[4:, 20:, 20:] = 50
        dense = Control.from_video(dense_video(tmp_path, grey), "dense")

        class Standing:
            def track(self, frames: np.ndarray, points: np.ndarray) -> Tracks:
                return Tracks(np.repeat(points[None], len(frames), 0), np.ones((len(frames), len(points)), bool))

        sparse = write_tracks(Footage(9), dense, PLAN, Standing(), tmp_path / "t", grid=SIDE, style="corrected")
        drawn = np.stack(list(read_frames(sparse.paths[0], range(9))))
        for x, y in np.rint(reference_grid(PLAN.width, PLAN.height, SIDE)).astype(int):
            shown = drawn[:, y, x].any(axis=-1)
            np.testing.assert_array_equal(shown, (np.arange(9) < 4) | (x < 20) | (y < 20))

    def test_finished_clips_are_kept(self, tmp_path: Path) -> None:
        dense, _ = dense_control(tmp_path, 25)
        first = write_tracks(Footage(25), dense, PLAN, Drifter(), tmp_path / "t", grid=SIDE)
        before = [path.read_bytes() for path in first.paths]
        first.paths[1].unlink()
        tracker = Drifter()
        again = write_tracks(Footage(25), dense, PLAN, tracker, tmp_path / "t", grid=SIDE)
        assert len(tracker.calls) == 1
        assert [path.read_bytes() for path in again.paths] == before

    def test_points_on_the_world_with_lucas_kanade(self, tmp_path: Path) -> None:
        dense, grey = dense_control(tmp_path, 9)
        footage = Footage(9)
        sparse = write_tracks(footage, dense, PLAN, LucasKanade(), tmp_path / "t", grid=SIDE)
        start = reference_grid(PLAN.width, PLAN.height, SIDE)
        truth = track(make_scene(1), start, [frame / 16 for frame in range(9)], PLAN.width, PLAN.height)
        low, high = int(grey.min()), int(grey.max())
        column, row = (np.rint(truth.xy[..., axis]).astype(int).clip(0, (PLAN.width, PLAN.height)[axis] - 1) for axis in (0, 1))
        z = (high - grey[np.arange(9)[:, None], row, column].astype(np.float32)) / (high - low)
        exact = render_tracks(np.dstack([truth.xy, z]).astype(np.float32), None, PLAN.width, PLAN.height)
        drawn = np.stack(list(read_frames(sparse.paths[0], range(9))))
        assert np.abs(drawn.astype(int) - np.stack(list(exact))).mean() < 8

    def test_errors_name_what_is_wrong(self, tmp_path: Path) -> None:
        dense, _ = dense_control(tmp_path, 12)
        folder, tracker = tmp_path / "t", Drifter()
        with pytest.raises(ValueError, match="dense.mkv is a sparse control"):
            write_tracks(Footage(12), Control.from_video(dense.paths[0], "sparse"), PLAN, tracker, folder)
        with pytest.raises(ValueError, match="has 12 frames, but clip 2 needs 17"):
            write_tracks(Footage(20), dense, PLAN, tracker, folder)
        with pytest.raises(ValueError, match=r"pictures are \[32, 64, 3\], but the plan wants 64x48"):
            write_tracks(Footage(9, height=32), dense, PLAN, tracker, folder)
        with pytest.raises(
            ValueError, match="the driving video has 11 frames at 16 a second, but the plan and its depth have 12"
        ):
            write_tracks(Footage(11), dense, ClipPlan(64, 48, 9, source_frames=12), tracker, folder)
        with pytest.raises(ValueError, match="control video has 5 frames, but one clip needs 9"):
            write_tracks(Footage(5), dense, PLAN, tracker, folder)
        with pytest.raises(ValueError, match="style"):
            write_tracks(Footage(9), dense, PLAN, tracker, folder, grid=SIDE, style="pretty")
        assert list(folder.glob("*.mkv*")) == []

    @pytest.mark.parametrize("cut", [(slice(0, 8), slice(None)), (slice(None), slice(0, 30))])
    def test_tracker_that_leaves_something_out(self, tmp_path: Path, cut: tuple[slice, slice]) -> None:
        dense, _ = dense_control(tmp_path, 9)

        class Short(Drifter):
            def track(self, frames: np.ndarray, points: np.ndarray) -> Tracks:
                whole = super().track(frames, points)
                return Tracks(whole.xy[cut], whole.visible[cut])

        with pytest.raises(ValueError, match="the tracker gave positions .* for 36 points in 9 frames"):
            write_tracks(Footage(9), dense, PLAN, Short(), tmp_path / "t", grid=SIDE)


def whole_video_tracks(frames: int) -> Tracks:
    """The grid of :class:`Drifter`, followed to the video's end and started anew every 4 frames."""
    start = reference_grid(PLAN.width, PLAN.height, SIDE)
    paths, seen = [], []
    for first in range(0, frames, 4):
        paths.append(start + (np.arange(frames)[:, None, None] - first) * np.array([1, -0.5], np.float32))
        seen.append(np.repeat(np.arange(frames)[:, None] >= first, len(start), axis=1))
    return Tracks(np.concatenate(paths, axis=1), np.concatenate(seen, axis=1))


class TestGivenTracks:
    @pytest.mark.parametrize(("frames", "tail"), [(17, "drop"), (20, "drop"), (13, "pad")])
    def test_a_clip_draws_the_points_of_its_first_frame(self, tmp_path: Path, frames: int, tail: str) -> None:
        dense, grey = dense_control(tmp_path, frames)
        tracks, plan = whole_video_tracks(frames + 3), ClipPlan(64, 48, 9, tail=tail, source_frames=frames)
        sparse = write_external_tracks(tracks, dense, plan, tmp_path / "t", style="corrected")
        assert [path.name for path in sparse.paths] == ["track_000.mkv", "track_001.mkv"]
        for clip, path in enumerate(sparse.paths):
            numbers = np.minimum(np.arange(8 * clip, 8 * clip + 9), frames - 1)
            low, high = int(grey[numbers].min()), int(grey[numbers].max())
            points, shown = [], []
            for point in range(tracks.xy.shape[1]):
                inside = [0 <= round(x) < 64 and 0 <= round(y) < 48 for x, y in tracks.xy[numbers, point].tolist()]
                if inside[0] and tracks.visible[numbers[0], point]:
                    seen, last = [], 0.0
                    for number, here in zip(numbers, inside, strict=True):
                        x, y = tracks.xy[number, point].tolist()
                        last = (high - int(grey[number, round(y), round(x)])) / (high - low) if here else last
                        seen.append((x, y, last))
                    points.append(seen)
                    shown.append(inside)
            expected = render_tracks(
                np.array(points, np.float32).transpose(1, 0, 2), np.array(shown).T, PLAN.width, PLAN.height, "corrected"
            )
            np.testing.assert_array_equal(np.stack(list(read_frames(path, range(9)))), np.stack(list(expected)))

    def test_depth_hides_given_points_too(self, tmp_path: Path) -> None:
        grey = np.full((9, PLAN.height, PLAN.width), 200, np.uint8)
        grey[:, :, :8] = 250
        grey[4:, 20:, 20:] = 50
        dense = Control.from_video(dense_video(tmp_path, grey), "dense")
        path = np.repeat(reference_grid(PLAN.width, PLAN.height, SIDE)[None], 9, 0)
        sparse = write_external_tracks(external_tracks(path, None), dense, PLAN, tmp_path / "t", style="corrected")
        drawn = np.stack(list(read_frames(sparse.paths[0], range(9))))
        for x, y in np.rint(path[0]).astype(int):
            np.testing.assert_array_equal(drawn[:, y, x].any(axis=-1), (np.arange(9) < 4) | (x < 20) | (y < 20))

    def test_too_few_frames(self, tmp_path: Path) -> None:
        dense, _ = dense_control(tmp_path, 20)
        plan = ClipPlan(64, 48, 9, source_frames=20)
        with pytest.raises(ValueError, match="tracks have 16 frames, but the plan's 2 clips need 17"):
            write_external_tracks(whole_video_tracks(16), dense, plan, tmp_path / "t")
        assert len(write_external_tracks(whole_video_tracks(17), dense, plan, tmp_path / "t").paths) == 2

    def test_a_clip_without_points(self, tmp_path: Path) -> None:
        dense, _ = dense_control(tmp_path, 17)
        tracks = whole_video_tracks(17)
        tracks.visible[8, 1:] = False
        with pytest.raises(ValueError, match="of the .* tracks are visible inside 64x48 in frame 8, where clip 2 starts"):
            write_external_tracks(tracks, dense, PLAN, tmp_path / "t")
        assert not (tmp_path / "t").exists()

    @pytest.mark.parametrize(
        ("visibility", "expected"),
        [
            (None, [[1, 1], [1, 1], [1, 1]]),
            (np.array([[True], [False], [True]]), [[1, 1], [0, 0], [1, 1]]),
            (np.array([[True, False]]), [[1, 0], [1, 0], [1, 0]]),
            (np.array([[0.4, 0.6], [0.5, 1], [0, np.nan]]), [[0, 1], [0, 1], [0, 0]]),
        ],
    )
    def test_visibility(self, visibility: np.ndarray | None, expected: list) -> None:
        tracks = external_tracks(np.full((3, 2, 2), 7.5), visibility)
        assert (tracks.xy.dtype, tracks.visible.dtype) == (np.float32, bool)
        np.testing.assert_array_equal(tracks.visible, np.array(expected, bool))

    @pytest.mark.parametrize(
        ("path", "visibility", "message"),
        [
            (np.ones((1, 3, 4, 2)), None, r"track_path has the shape \[1, 3, 4, 2\]: give"),
            (np.ones((3, 4, 3)), None, r"track_path has the shape \[3, 4, 3\]"),
            (np.ones((3, 0, 2)), None, "0 tracks of 3 frames"),
            (np.ones((0, 3, 2)), None, "3 tracks of 0 frames"),
            (np.where(np.arange(12).reshape(3, 2, 2) == 7, np.nan, 5.0), None, r"track 1 is \[5.0, nan\] in frame 1"),
            (np.linspace(0, 1, 12).reshape(3, 2, 2), None, "in pixels of the plan's size"),
            (np.full((3, 2, 2), 5.0), np.ones((3, 3)), r"track_visibility has the shape \[3, 3\].* give \[3, 2\]"),
            (np.full((3, 2, 2), 5.0), np.ones(3), r"track_visibility has the shape \[3\]"),
        ],
    )
    def test_errors_name_what_is_wrong(self, path: np.ndarray, visibility: np.ndarray | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            external_tracks(path, visibility)
