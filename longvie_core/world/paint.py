"""Colours of a procedural world: band-limited noise and patterns, sky, sunlight and shadows. All in float32."""

from __future__ import annotations

import functools

import numpy as np

from .camera import Instant
from .cast import GROUND, SKY, Components, span
from .scene import Scene, Sky, Texture

FARTHEST_DETAIL = 400.0
"""Ground farther than this is painted as if it lay here: haze hides it, and float32 coordinates stay exact enough."""

HAZE_DISTANCE = 70.0
"""Distance at which the horizon's colour has replaced all but 1/e of a surface's own."""

OCTAVE_GAIN = 0.8
"""Contrast of an octave over that of the next broader one: near 1, so that a tracker finds corners at any distance."""


@functools.cache
def _lattice(dimensions: int) -> tuple[np.ndarray, int]:
    """Coefficients ``[period**d, 2**d]`` of multilinear noise on a periodic lattice of values in -1 .. 1, and the period.

    With coefficients instead of corner values, a sample costs one gather and ``2**d - 1`` multiply-adds.
    """
    period = {2: 128, 3: 32}[dimensions]
    values = np.random.default_rng(20_250).uniform(-1, 1, (period,) * dimensions).astype(np.float32)
    table = [values]
    for axis in range(dimensions):
        table = table + [np.roll(entry, -1, axis) - entry for entry in table]
    return np.stack(table, axis=-1).reshape(-1, 2**dimensions), period


def noise(points: Components) -> np.ndarray:
    """Smooth value noise in -1 .. 1 with a lattice spacing of one, in two or three dimensions."""
    table, period = _lattice(len(points))
    cells, weights = [], []
    for point in points:
        floor = np.floor(point)
        fraction = point - floor
        weights.append(fraction * fraction * (3 - 2 * fraction))
        cells.append(floor.astype(np.int32) & (period - 1))
    index = functools.reduce(lambda index, cell: index * period + cell, cells)
    corners = list(table.take(index, axis=0).T)
    for weight in reversed(weights):
        half = len(corners) // 2
        corners = [corners[k] + weight * corners[half + k] for k in range(half)]
    return corners[0]


def _octaves(
    points: Components, cell: float, octaves: int, footprint: np.ndarray, origin: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Noise summed over octaves, and the broadest octave alone.

    Every octave fades out where its cell nears the size of a pixel (``footprint``, in the units of ``points``).
    """
    total = np.zeros_like(points[0])
    broad = total
    for octave in range(octaves):
        size = cell * 0.5**octave
        weight = np.clip(size / footprint - 1.0, 0, 1)
        if not weight.any():
            break
        value = noise([point * (1 / size) + (octave + 1) * shift for point, shift in zip(points, origin, strict=True)])
        if octave == 0:
            broad = value
        total += OCTAVE_GAIN**octave * weight * value
    return total, broad


def _square_wave(phase: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The square wave of period 1 and values -1, 1, averaged over a box of ``width`` periods: no aliasing."""

    def integral(value: np.ndarray) -> np.ndarray:
        return 0.5 - np.abs(value - np.floor(value) - 0.5)

    return (integral(phase + width / 2) - integral(phase - width / 2)) / width


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Colours ``[3, N]`` or ``[3, 1]`` blended by ``share`` ``[N]``."""
    return first + (second - first) * share


def _rgb(colour: tuple[float, ...]) -> np.ndarray:
    return np.array(colour, np.float32)[:, None]


def surface_colour(texture: Texture, points: Components, footprint: np.ndarray) -> np.ndarray:
    """Colour ``[3, N]`` of a surface without light, at surface coordinates ``points`` under pixels of size ``footprint``."""
    total, broad = _octaves(points, texture.cell, texture.octaves, footprint, texture.origin)
    pattern = np.float32(1)
    for point, pitch, shift in zip(points, texture.pitch, texture.origin, strict=True):
        if np.isfinite(pitch):
            pattern = pattern * _square_wave(point * (1 / pitch) + shift, np.maximum(footprint / pitch, 0.01))
    dark, light, patch = (_rgb(colour) for colour in texture.colours)
    colour = _mix(_mix(dark, light, 0.5 + 0.5 * pattern), patch, np.clip(1.4 * broad - 0.1, 0, 0.75))
    return colour * np.clip(1 + 0.4 * total, 0.25, 2.0)


def sky_colour(sky: Sky, directions: Components, focal: float) -> np.ndarray:
    """Colour ``[3, N]`` of the sky in world directions: a gradient, clouds on a plane, and hills on the horizon."""
    flat = np.sqrt(directions[0] ** 2 + directions[1] ** 2)
    east, north, slope = directions[0] / flat, directions[1] / flat, np.maximum(directions[2] / flat, 0)
    lift = 1 / (slope + 0.18)
    clouds, _ = _octaves([east * lift, north * lift], 1.3, 6, lift * lift / focal, sky.origin[:2])
    colour = _mix(_rgb(sky.horizon), _rgb(sky.zenith), np.clip(1.6 * slope, 0, 1) ** 0.7)
    colour = _mix(colour, _rgb(sky.cloud), np.clip(0.55 * clouds + 0.1, 0, 0.9) * np.clip(8 * slope, 0, 1))
    rough, _ = _octaves([east, north, slope], 0.3, 6, np.full_like(east, 1 / focal), sky.origin)
    ridge, _ = _octaves([east, north], 0.45, 5, np.full_like(east, 1 / focal), sky.origin[1:])
    covered = np.clip((0.085 + 0.035 * ridge - slope) * focal + 0.5, 0, 1)
    hills = _mix(_rgb(sky.hills), _rgb(sky.horizon), 0.35) * np.clip(1 + 0.2 * rough, 0.4, 1.6)
    return _mix(colour, hills, covered)


def _shadow(instant: Instant, points: Components, skip: int) -> np.ndarray:
    """Share of sunlight ``[N]`` that solids leave to world points; surface ``skip`` casts none on itself.

    A short way through the solid dims little: soft edges, the softer the larger the solid.
    """
    lit = np.ones_like(points[0])
    sun = np.array(instant.scene.sun)
    for number, solid in enumerate(instant.scene.solids):
        if number + 1 == skip:
            continue
        offset = [float(value) - point for value, point in zip(instant.centres[number], points, strict=True)]
        along = sum(value * float(part) for value, part in zip(offset, sun, strict=True))
        aside = sum(value * value for value in offset) - along * along
        near = np.flatnonzero((aside < solid.bound**2) & (along > -solid.bound))
        if near.size:
            rotation = instant.rotations[number]
            local = [-np.asarray(sum(offset[k][near] * float(rotation[k, axis]) for k in range(3))) for axis in range(3)]
            entry, leave = span(solid, local, list((sun @ rotation).astype(np.float32)))
            lit[near] *= 1 - np.clip((leave - np.maximum(entry, 0)) / (0.5 * min(solid.half)), 0, 1)
    return lit


def _lit(scene: Scene, colour: np.ndarray, cosine: np.ndarray | np.float32, shadow: np.ndarray) -> np.ndarray:
    """Lambert's law for the sun plus ambient light."""
    return colour * (_rgb(scene.ambient) + _rgb(scene.sunlight) * (np.maximum(cosine, 0) * shadow))


def _ground(instant: Instant, directions: Components, depth: np.ndarray) -> np.ndarray:
    """Colour ``[3, N]`` of the ground."""
    camera, scene = instant.camera, instant.scene
    reach = np.minimum(depth, FARTHEST_DETAIL)
    start = [float(value) for value in camera.position]
    points = [start[0] + reach * directions[0], start[1] + reach * directions[1]]
    # A pixel covers z/f across and about z^2/(f*h) along the view; their geometric mean keeps some detail far out.
    footprint = reach * np.sqrt(reach * (1 / start[2])) * (1 / camera.focal)
    colour = surface_colour(scene.ground, points, footprint)
    shadow = _shadow(instant, [*points, np.zeros_like(reach)], GROUND)
    return _lit(scene, colour, np.float32(scene.sun[2]), shadow)


def _solid(instant: Instant, number: int, directions: Components, depth: np.ndarray) -> np.ndarray:
    """Colour ``[3, N]`` of solid ``number``."""
    solid, rotation = instant.scene.solids[number], instant.rotations[number]
    start = [float(value) for value in instant.camera.position]
    points = [start[k] + depth * directions[k] for k in range(3)]
    offset = [points[k] - float(instant.centres[number][k]) for k in range(3)]
    local = [np.asarray(sum(offset[k] * float(rotation[k, axis]) for k in range(3))) for axis in range(3)]
    sun = [float(value) for value in np.array(instant.scene.sun) @ rotation]
    if solid.shape == "sphere":
        cosine = np.asarray(sum(value * part for value, part in zip(local, sun, strict=True))) * (1 / solid.half[0])
    else:
        reach = np.abs(np.stack(local)) * _rgb(tuple(1 / edge for edge in solid.half))
        face = reach.argmax(axis=0)
        cosine = np.sign(np.choose(face, local)) * np.array(sun, np.float32)[face]
    colour = surface_colour(solid.texture, local, depth * (1 / instant.camera.focal))
    return _lit(instant.scene, colour, cosine, _shadow(instant, points, number + 1))


def paint(instant: Instant, x: np.ndarray, y: np.ndarray, depth: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Colours ``[3, H, W]`` (0 .. 1, may exceed 1) of the rays through normalized coordinates ``x [1, W]``, ``y [H, 1]``.

    Args:
        depth, surface: ``[H, W]``, what the rays hit, from the caster; all in float32 but ``surface``.
    """
    scene = instant.scene
    right, down, forward = instant.camera.rotation.astype(np.float32)
    picture = np.empty((3, surface.size), np.float32)
    flat_depth, flat_surface = depth.ravel(), surface.ravel()
    haze = _rgb(scene.sky.horizon)
    for number in range(SKY, len(scene.solids) + 1):
        places = np.flatnonzero(flat_surface == number)
        if not places.size:
            continue
        rows, columns = np.divmod(places, surface.shape[1])
        across, below = x[0].take(columns), y[:, 0].take(rows)
        directions = [forward[k] + across * right[k] + below * down[k] for k in range(3)]
        if number == SKY:
            picture[:, places] = sky_colour(scene.sky, directions, instant.camera.focal)
            continue
        reach = flat_depth.take(places)
        near = _solid(instant, number - 1, directions, reach) if number > GROUND else _ground(instant, directions, reach)
        picture[:, places] = _mix(haze, near, np.exp(reach * (-1 / HAZE_DISTANCE)))
    return picture.reshape(3, *surface.shape)
