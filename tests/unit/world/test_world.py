"""The procedural world against ray intersections and projections written separately here, in plain scalar Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longvie_core.world.camera import camera_at, solid_poses
from longvie_core.world.cast import hit
from longvie_core.world.render import render, render_frames
from longvie_core.world.scene import Scene, make_scene
from longvie_core.world.track import grid_points, track

WIDTH, HEIGHT = 97, 61
TIMES = (0.0, 3.7, 41.2, 300.0)
SEEDS = (0, 1, 2, 3, 4, 5)


def scalar_ray(camera, x: float, y: float) -> list[float]:
    """World direction of a pixel's ray, with a z-depth of one."""
    a = (x - (camera.width - 1) / 2) / camera.focal
    b = (y - (camera.height - 1) / 2) / camera.focal
    right, down, forward = camera.rotation.tolist()
    return [forward[k] + a * right[k] + b * down[k] for k in range(3)]


def scalar_project(camera, point) -> tuple[float, float, float]:
    """Pixel and z-depth of a world point."""
    offset = [float(point[k]) - float(camera.position[k]) for k in range(3)]
    a, b, c = (sum(row[k] * offset[k] for k in range(3)) for row in camera.rotation.tolist())
    return camera.focal * a / c + (camera.width - 1) / 2, camera.focal * b / c + (camera.height - 1) / 2, c


def scalar_sphere(origin: list[float], ray: list[float], radius: float) -> float:
    """Geometric solution: foot of the perpendicular, then half the chord."""
    length = math.sqrt(sum(v * v for v in ray))
    unit = [v / length for v in ray]
    foot = -sum(o * u for o, u in zip(origin, unit, strict=True))
    gap = sum((o + foot * u) ** 2 for o, u in zip(origin, unit, strict=True))
    return (foot - math.sqrt(radius**2 - gap)) / length if foot > 0 and gap <= radius**2 else math.inf


def scalar_box(origin: list[float], ray: list[float], half: tuple[float, float, float]) -> float:
    """Each of the six faces as a plane, and whether the point on it lies in the rectangle."""
    best = math.inf
    for axis in range(3):
        for side in (-1, 1):
            if ray[axis] == 0:
                continue
            s = (side * half[axis] - origin[axis]) / ray[axis]
            others = [k for k in range(3) if k != axis]
            if 0 < s < best and all(abs(origin[k] + s * ray[k]) <= half[k] for k in others):
                best = s
    return best


def scalar_cast(scene: Scene, time: float, x: float, y: float, width: int = WIDTH, height: int = HEIGHT) -> tuple[float, int]:
    """z-depth and surface number of what a pixel's ray meets first."""
    camera = camera_at(scene, time, width, height)
    ray = scalar_ray(camera, x, y)
    best, surface = (-camera.position[2] / ray[2], 0) if ray[2] < 0 else (math.inf, -1)
    for k, (solid, centre, rotation) in enumerate(zip(scene.solids, *solid_poses(scene, time), strict=True)):
        columns = rotation.T.tolist()
        offset = (camera.position - centre).tolist()
        origin = [sum(a * b for a, b in zip(column, offset, strict=True)) for column in columns]
        local = [sum(a * b for a, b in zip(column, ray, strict=True)) for column in columns]
        sphere = solid.shape == "sphere"
        found = scalar_sphere(origin, local, solid.half[0]) if sphere else scalar_box(origin, local, solid.half)
        if found < best:
            best, surface = found, k + 1
    return float(best), surface


def neighbourhood(depth: np.ndarray, x: float, y: float) -> np.ndarray:
    """The 3x3 depths around a position, fewer at the border."""
    column, row = round(x), round(y)
    return depth[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]


def test_same_seed_same_bits_and_other_seed_differs():
    first, again, other = make_scene(7), make_scene(7), make_scene(8)
    assert first == again and first != other
    one, two, three = (render(scene, 2.5, WIDTH, HEIGHT) for scene in (first, again, other))
    assert np.array_equal(one.rgb, two.rgb) and np.array_equal(one.depth, two.depth)
    assert not np.array_equal(one.rgb, three.rgb) and not np.array_equal(one.depth, three.depth)


def test_frame_depends_on_its_time_alone():
    scene = make_scene(3)
    ahead = list(render_frames(scene, 4, 16, 48, 32))
    for number, frame in zip((3, 1), render_frames(scene, (3, 1), 16, 48, 32), strict=True):
        assert np.array_equal(frame.rgb, ahead[number].rgb) and np.array_equal(frame.depth, ahead[number].depth)
    assert np.array_equal(render(scene, 3 / 16, 48, 32).rgb, ahead[3].rgb)


def test_motion_multiplies_time():
    assert np.array_equal(render(make_scene(2, motion=2.0), 5.0, 48, 32).rgb, render(make_scene(2), 10.0, 48, 32).rgb)
    still = make_scene(2, motion=0.0)
    assert np.array_equal(render(still, 5.0, 48, 32).rgb, render(still, 0.0, 48, 32).rgb)


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_map_is_the_exact_depth_at_pixel_centres(seed):
    scene, rng = make_scene(seed), np.random.default_rng(seed)
    for time in TIMES:
        depth = render(scene, time, WIDTH, HEIGHT, supersample=1).depth
        for x, y in zip(rng.integers(0, WIDTH, 60).tolist(), rng.integers(0, HEIGHT, 60).tolist(), strict=True):
            truth, _ = scalar_cast(scene, time, x, y)
            assert depth[y, x] == pytest.approx(truth, rel=1e-6), (time, x, y)


def test_supersampling_leaves_depth_alone_and_textures_do_not_alias():
    scene = make_scene(4)
    coarse, fine = (render(scene, 1.0, 96, 64, supersample) for supersample in (2, 6))
    assert np.array_equal(coarse.depth, fine.depth)
    assert np.abs(coarse.rgb.astype(int) - fine.rgb).mean() < 2.0


@pytest.mark.parametrize("seed", SEEDS)
def test_tracks_start_on_the_grid_and_are_visible_there(seed):
    scene = make_scene(seed)
    grid = grid_points(12, 8, WIDTH, HEIGHT)
    tracks = track(scene, grid, [12.5], WIDTH, HEIGHT)
    assert tracks.visible.all()
    np.testing.assert_allclose(tracks.xy[0], grid, atol=1e-9)
    for (x, y), depth in zip(grid.tolist(), tracks.depth[0], strict=True):
        assert depth == pytest.approx(scalar_cast(scene, 12.5, x, y)[0], rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_visible_tracks_are_what_the_ray_meets_and_hidden_ones_lie_behind(seed):
    scene = make_scene(seed)
    times = [0.0, 1.5, 5.0]
    tracks = track(scene, grid_points(16, 10, WIDTH, HEIGHT), times, WIDTH, HEIGHT)
    _, surface = hit(scene, times[0], grid_points(16, 10, WIDTH, HEIGHT), WIDTH, HEIGHT)
    hidden = 0
    for step, time in enumerate(times):
        for point in range(len(surface)):
            (x, y), depth = tracks.xy[step, point].tolist(), tracks.depth[step, point]
            if not (-0.5 <= x < WIDTH - 0.5 and -0.5 <= y < HEIGHT - 0.5):
                assert not tracks.visible[step, point]
                continue
            truth, met = scalar_cast(scene, time, x, y)
            if tracks.visible[step, point]:
                assert truth == pytest.approx(depth, rel=1e-6) and met == surface[point]
            else:
                assert truth < depth * (1 - 1e-6)
                hidden += 1
    assert hidden > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_tracks_agree_with_the_depth_map(seed):
    """The same without exact rays, as a user would check: against the pixels around each point."""
    width, height, times = 320, 176, [0.0, 2.0, 5.0]
    scene = make_scene(seed)
    tracks = track(scene, grid_points(24, 14, width, height), times, width, height)
    checked = 0
    for step, time in enumerate(times):
        depth = render(scene, time, width, height, supersample=1).depth
        for (x, y), z, visible in zip(tracks.xy[step], tracks.depth[step], tracks.visible[step], strict=True):
            if not (1 <= x < width - 2 and 1 <= y < height - 2):
                continue
            around = neighbourhood(depth, x, y)
            if visible and np.isfinite(z) and np.isfinite(around).all():
                assert around.min() * 0.98 <= z <= around.max() * 1.02
                checked += 1
            elif not visible:
                assert z > around.min()
    assert checked > 300


@pytest.mark.parametrize("seed", SEEDS)
def test_reprojection_to_the_first_time(seed):
    """Picture and depth at a later time, carried back by the surface's own motion, return to the grid."""
    scene, times = make_scene(seed), [2.0, 3.0, 7.0, 20.0]
    grid = grid_points(12, 8, WIDTH, HEIGHT)
    tracks = track(scene, grid, times, WIDTH, HEIGHT)
    _, surface = hit(scene, times[0], grid, WIDTH, HEIGHT)
    first = camera_at(scene, times[0], WIDTH, HEIGHT)
    centres, rotations = solid_poses(scene, times[0])
    checked = 0
    for step in range(1, len(times)):
        camera = camera_at(scene, times[step], WIDTH, HEIGHT)
        later_centres, later_rotations = solid_poses(scene, times[step])
        for point, number in enumerate(surface):
            (x, y), z = tracks.xy[step, point].tolist(), tracks.depth[step, point]
            if not math.isfinite(x):
                continue
            ray = np.array(scalar_ray(camera, x, y))
            world = first.position + ray if number < 0 else camera.position + z * ray
            if number > 0:
                local = later_rotations[number - 1].T @ (world - later_centres[number - 1])
                world = rotations[number - 1] @ local + centres[number - 1]
            back_x, back_y, _ = scalar_project(first, world)
            assert math.hypot(back_x - grid[point, 0], back_y - grid[point, 1]) < 0.01
            checked += 1
    assert checked > 100


def test_points_behind_the_camera_have_no_place_in_the_picture():
    tracks = track(make_scene(0), grid_points(12, 8, WIDTH, HEIGHT), np.arange(0, 240, 10.0), WIDTH, HEIGHT)
    behind = np.isnan(tracks.xy).any(axis=-1)
    assert behind.any() and not tracks.visible[behind].any()
    finite = np.isfinite(tracks.depth)
    assert np.array_equal(behind[finite], tracks.depth[finite] <= 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_texture_and_light_stay_on_the_tracked_surface(seed):
    """Colours sampled along the tracks change far less than colours sampled at places that do not move."""
    width, height, times = 320, 176, [0.0, 1.0]
    scene = make_scene(seed)
    grid = grid_points(64, 36, width, height)
    tracks = track(scene, grid, times, width, height)
    _, surface = hit(scene, 0.0, grid, width, height)
    pictures = [render(scene, time, width, height).rgb.astype(float) for time in times]

    def colours(picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
        column, row = np.rint(xy).astype(int).T
        return picture[row.clip(0, height - 1), column.clip(0, width - 1)]

    moved = np.linalg.norm(tracks.xy[1] - tracks.xy[0], axis=-1) > 4
    for kind in (surface == 0, surface > 0):
        chosen = kind & moved & tracks.visible[1]
        start = colours(pictures[0], grid[chosen])
        followed = np.abs(colours(pictures[1], tracks.xy[1, chosen]) - start).mean()
        fixed = np.abs(colours(pictures[1], grid[chosen]) - start).mean()
        assert chosen.sum() >= 10 and followed < 0.6 * fixed


def test_depth_range_changes_between_clips():
    """p95 of disparity varies by a factor over the clips of a minute, and the sky leaves and enters the picture."""
    grid = grid_points(24, 14, WIDTH, HEIGHT)
    factors, skies = [], []
    for seed in SEEDS:
        scene = make_scene(seed)
        clips = [np.stack([1 / hit(scene, 5.0 * clip + k, grid, WIDTH, HEIGHT)[0] for k in range(5)]) for clip in range(12)]
        near = [np.percentile(clip, 95) for clip in clips]
        factors.append(max(near) / min(near))
        skies.append([float((clip == 0).mean()) for clip in clips])
    assert min(factors) > 2
    assert sum(min(sky) < 0.05 and max(sky) > 0.25 for sky in skies) >= 4


def test_solids_enter_and_leave():
    grid = grid_points(32, 18, WIDTH, HEIGHT)
    for seed in SEEDS:
        scene = make_scene(seed)
        surfaces = [hit(scene, time, grid, WIDTH, HEIGHT)[1] for time in np.arange(0, 60, 1.0)]
        seen = np.array([[np.any(surface == k + 1) for k in range(len(scene.solids))] for surface in surfaces])
        changes = np.abs(np.diff(seen.astype(int), axis=0)).sum(axis=0)
        assert (changes >= 2).sum() >= 3, seed
        assert seen.any(axis=1).mean() > 0.9, seed


def test_content_moves_by_tens_of_pixels_a_clip():
    """81 frames at 16 fps and 640x352: median displacement from first to last frame of what is then still visible."""
    grid = grid_points(12, 8, 640, 352)
    medians = []
    for seed in SEEDS:
        for start in (0.0, 20.0, 40.0):
            tracks = track(make_scene(seed), grid, [start, start + 5.0], 640, 352)
            moved = np.linalg.norm(tracks.xy[1] - tracks.xy[0], axis=-1)
            medians.append(np.median(moved[tracks.visible[1]]))
            assert tracks.visible[1].mean() > 0.15
    assert 20 < np.median(medians) < 80 and min(medians) > 5


def test_neighbouring_frames_are_close():
    """No jump in the paths: a sixteenth of a second moves nothing far."""
    scene = make_scene(5)
    for start in (0.0, 77.7, 299.0):
        tracks = track(scene, grid_points(12, 8, 96, 64), [start, start + 1 / 16], 96, 64)
        assert np.nanmax(np.linalg.norm(tracks.xy[1] - tracks.xy[0], axis=-1)) < 6


def test_camera_stays_clear_of_solids_and_everything_above_ground():
    for seed in range(8):
        scene = make_scene(seed)
        reach = np.array([solid.half[0] if solid.shape == "sphere" else math.hypot(*solid.half) for solid in scene.solids])
        bottom = np.array([solid.half[2] for solid in scene.solids])
        for time in np.arange(0, 400, 1.0):
            position = camera_at(scene, time, 96, 64).position
            centres, _ = solid_poses(scene, time)
            assert position[2] > 0.8
            assert (np.linalg.norm(centres - position, axis=1) - reach).min() > 1.0
            assert (centres[:, 2] - bottom).min() > -1e-9


def test_solids_do_not_meet():
    for seed in range(8):
        scene = make_scene(seed)
        flat = np.array([s.half[0] if s.shape == "sphere" else math.hypot(*s.half[:2]) for s in scene.solids])
        apart = flat[:, None] + flat[None]
        np.fill_diagonal(apart, -1)
        for time in np.arange(0, 400, 1.0):
            centres = solid_poses(scene, time)[0][:, :2]
            assert (np.linalg.norm(centres[:, None] - centres[None], axis=-1) > apart).all()


def test_camera_rotation_is_a_rotation_and_level():
    for time in TIMES:
        rotation = camera_at(make_scene(1), time, 64, 64).rotation
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert rotation[0, 2] == pytest.approx(0) and rotation[1, 2] < 0


def test_pictures_have_texture_at_every_scale():
    """Contrast as a whole, and of detail finer than 2, 4 and 8 pixels, in grey levels of 255."""
    for seed in SEEDS:
        grey = render(make_scene(seed), 3.0, 320, 176).rgb.mean(axis=2)
        assert grey.std() > 20
        for size, least in ((2, 2.0), (4, 4.0), (8, 7.0)):
            tiles = grey[: 176 // size * size].reshape(-1, size, 320 // size, size)
            assert (grey - np.kron(tiles.mean(axis=(1, 3)), np.ones((size, size)))).std() > least


@pytest.mark.parametrize(("width", "height"), [(1, 1), (37, 5), (5, 37), (97, 61), (641, 3)])
def test_any_size(width, height):
    frame = render(make_scene(6), 300.0, width, height)
    assert frame.rgb.shape == (height, width, 3) and frame.rgb.dtype == np.uint8
    assert frame.depth.shape == (height, width) and frame.depth.dtype == np.float32
    assert (frame.depth > 0).all()
    assert np.array_equal(frame.disparity == 0, np.isinf(frame.depth)) and np.isfinite(frame.disparity).all()


def test_picture_in_strips_is_the_same_picture():
    """A wide picture is rendered in strips of rows; each pixel's depth is what its own ray meets all the same."""
    width, height, scene = 640, 97, make_scene(9)
    depth = render(scene, 4.0, width, height).depth
    every = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    exact, _ = hit(scene, 4.0, every, width, height)
    np.testing.assert_allclose(depth.ravel(), exact, rtol=1e-6)


def test_grid_points():
    grid = grid_points(3, 2, 12, 8)
    assert grid.tolist() == [[1.5, 1.5], [5.5, 1.5], [9.5, 1.5], [1.5, 5.5], [5.5, 5.5], [9.5, 5.5]]
    inner = grid_points(3, 2, 14, 10, margin=1)
    np.testing.assert_allclose(inner, grid + 1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: make_scene(-1), "seed -1"),
        (lambda: make_scene(0, motion=-0.5), "motion -0.5"),
        (lambda: make_scene(0, motion=math.nan), "motion nan"),
        (lambda: render(make_scene(0), 0.0, 0, 4), "size 0x4"),
        (lambda: render(make_scene(0), 0.0, 4, 4, supersample=0), "supersample 0"),
        (lambda: render(make_scene(0), math.inf, 4, 4), "time inf"),
        (lambda: next(render_frames(make_scene(0), 3, 0, 4, 4)), "fps 0"),
        (lambda: grid_points(0, 3, 9, 9), "grid 0x3"),
        (lambda: grid_points(3, 3, 9, 8, margin=4), "margin 4"),
        (lambda: track(make_scene(0), np.zeros((2, 3)), [0.0], 9, 9), r"shape \[2, 3\]"),
        (lambda: track(make_scene(0), np.zeros((2, 2)), [], 9, 9), "times is empty"),
    ],
)
def test_errors_name_what_is_wrong(call, text):
    with pytest.raises(ValueError, match=text):
        call()
