"""What a procedural world is made of: solids, ground, sky and light, at random.

World coordinates are right-handed with z up and the ground at z = 0; one unit is about a metre. Everything circles the world's
z axis: solids in an inner arena, the camera outside it, one solid that crosses in front of the camera, and large ones
beyond the camera. The rings are disjoint, so nothing can collide by construction.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .motion import Path, Triple, Wave

ARENA_RADIUS = 4.9
"""No inner solid reaches farther from the world's axis."""

CAMERA_RADIUS = (8.0, 14.0)
"""Least and greatest horizontal distance of the camera from the world's axis."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""Step of hue from solid to solid, by the golden ratio: no two get alike."""


@dataclass(frozen=True)
class Texture:
    """A surface's colours as a function of surface coordinates (two on the ground, three on solids).

    Attributes:
        colours: RGB 0 .. 1: two of the pattern, and a third of broad patches.
        cell: size of the largest noise cells in world units; every octave halves it.
        octaves: how many sizes of noise cells.
        pitch: period of the pattern along each axis in world units; inf = no change along that axis.
        origin: shifts pattern and noise.
    """

    colours: tuple[Triple, Triple, Triple]
    cell: float
    octaves: int
    pitch: tuple[float, ...]
    origin: tuple[float, ...]


@dataclass(frozen=True)
class Solid:
    """A moving, spinning sphere or box.

    Attributes:
        shape: ``"sphere"`` or ``"box"``.
        half: a box's half edges, or a sphere's radius three times, in world units.
        path: of its centre.
        axis, spin: unit vector, and the angle about it in radians.
        texture: in the solid's own coordinates.
    """

    shape: str
    half: Triple
    path: Path
    axis: Triple
    spin: Wave
    texture: Texture

    @property
    def bound(self) -> float:
        """Radius of the sphere around the solid."""
        return self.half[0] if self.shape == "sphere" else math.hypot(*self.half)


@dataclass(frozen=True)
class Sky:
    """A sky, infinitely far away: colours (RGB 0 .. 1) of a gradient, clouds and hills; ``origin`` shifts their noise."""

    zenith: Triple
    horizon: Triple
    cloud: Triple
    hills: Triple
    origin: Triple


@dataclass(frozen=True)
class Scene:
    """A world that is a pure function of time; make one with :func:`make_scene`.

    Attributes:
        seed: what it was made from.
        motion: multiplies every speed.
        camera, target: paths of the camera and of the point that it looks at.
        solids: first those of the arena, then the one that crosses the view, then the large one.
        ground, sky: how they look.
        sun: unit vector towards the sun.
        sunlight, ambient: RGB.
    """

    seed: int
    motion: float
    camera: Path
    target: tuple[Wave, Wave, Wave]
    solids: tuple[Solid, ...]
    ground: Texture
    sky: Sky
    sun: Triple
    sunlight: Triple
    ambient: Triple


def make_scene(seed: int, *, motion: float = 1.0) -> Scene:
    """A random world of five or six solids: the same seed gives the same world.

    Args:
        seed: a whole number, 0 or more.
        motion: multiplies every speed, of camera and solids; 0 stops them.

    Raises:
        ValueError: for a negative seed, or a motion that is negative or not finite.
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative: give 0 or more")
    if not (math.isfinite(motion) and motion >= 0):
        raise ValueError(f"motion {motion} is not a finite number >= 0: 1 is normal speed")
    rng = np.random.default_rng(seed)
    hue = float(rng.uniform(0, 1))
    camera, target = _camera(rng)
    inner = _arena(rng, hue)
    passer = _passer(rng, camera, hue + 0.5)
    giant = _giant(rng, hue + 0.25)
    elevation, azimuth = math.radians(rng.uniform(28, 60)), rng.uniform(0, 2 * math.pi)
    flat = math.cos(elevation)
    warmth = rng.uniform(0, 0.15)
    shade = rng.uniform(0.38, 0.5)
    return Scene(
        seed=seed,
        motion=motion,
        camera=camera,
        target=target,
        solids=(*inner, passer, giant),
        ground=_ground(rng),
        sky=_sky(rng),
        sun=(flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)),
        sunlight=(0.8, 0.8 - 0.5 * warmth, 0.8 - warmth),
        ambient=(shade - 0.3 * warmth, shade, shade + 0.5 * warmth),
    )


def _camera(rng: np.random.Generator) -> tuple[Path, tuple[Wave, Wave, Wave]]:
    """Orbit, dolly and height bob; and the point looked at, which strays from the axis (a slight yaw)."""
    side = 1 if rng.random() < 0.5 else -1
    rate = side * math.radians(rng.uniform(0.8, 1.8))
    azimuth = Wave(float(rng.uniform(0, 2 * math.pi)), rate, (_swing(rng, 0.1, 31, 47),))
    middle, reach = sum(CAMERA_RADIUS) / 2, (CAMERA_RADIUS[1] - CAMERA_RADIUS[0]) / 2
    radius = Wave(middle, 0.0, (_swing(rng, 0.8 * reach, 27, 43), _swing(rng, 0.2 * reach, 13, 19)))
    height = Wave(3.3, 0.0, (_swing(rng, 2.1, 29, 51), _swing(rng, 0.3, 13, 19)))
    target = (
        Wave(0.0, 0.0, (_swing(rng, 0.7, 25, 41),)),
        Wave(0.0, 0.0, (_swing(rng, 0.7, 25, 41),)),
        Wave(0.8, 0.0, (_swing(rng, 0.3, 17, 29),)),
    )
    return Path(azimuth, radius, height), target


def _arena(rng: np.random.Generator, hue: float) -> list[Solid]:
    """Three or four solids on disjoint rings around the axis, from the inside out until the arena is full."""
    solids: list[Solid] = []
    edge, count = 0.0, int(rng.integers(3, 5))
    for number in range(count):
        size = float(rng.uniform(0.85, 1.25) if number == 0 else rng.uniform(0.4, 0.75))
        ring = 0.0 if number == 0 else edge + 0.1 + size
        if ring + size > ARENA_RADIUS:
            break
        edge = ring + size
        shape = "box" if rng.random() < 0.5 else "sphere"
        half = _half(rng, shape, size)
        bounce = float(rng.uniform(0.1, 0.8))
        rate = math.radians(rng.uniform(8, 22)) * (1 if rng.random() < 0.5 else -1)
        path = Path(
            Wave(float(rng.uniform(0, 2 * math.pi)), rate, (_swing(rng, 0.35, 7, 13),)),
            Wave(ring),
            Wave(half[2] + bounce, 0.0, (_swing(rng, bounce, 2.5, 5),)),
        )
        solids.append(_solid(rng, shape, half, path, hue + number * GOLDEN, rng.uniform(8, 25)))
    return solids


def _passer(rng: np.random.Generator, camera: Path, hue: float) -> Solid:
    """A solid that keeps ahead of the camera at arm's length and swings right across its view and out of it."""
    shape = "box" if rng.random() < 0.5 else "sphere"
    half = _half(rng, shape, float(rng.uniform(0.3, 0.42)))
    ahead = Wave(-float(rng.uniform(2.1, 2.4)))
    across = Wave(0.0, 0.0, (_swing(rng, 0.45, 21, 35), _swing(rng, 0.25, 37, 53)))
    # On the line of sight to the axis at this distance ahead, the height is about this share of the camera's own.
    height = camera.height.scaled(0.75).plus(Wave(0.3, 0.0, (_swing(rng, 0.3, 5, 9),)))
    path = Path(camera.azimuth.plus(across), camera.radius.plus(ahead), height)
    return _solid(rng, shape, half, path, hue, rng.uniform(15, 30))


def _giant(rng: np.random.Generator, hue: float) -> Solid:
    """A large solid that circles far outside the camera's own ring."""
    shape = "box" if rng.random() < 0.6 else "sphere"
    size = float(rng.uniform(2.0, 3.2))
    half = _half(rng, shape, size)
    rate = math.radians(rng.uniform(4, 9)) * (1 if rng.random() < 0.5 else -1)
    azimuth = Wave(float(rng.uniform(0, 2 * math.pi)), rate)
    path = Path(azimuth, Wave(CAMERA_RADIUS[1] + 3.5 + size), Wave(half[2] + float(rng.uniform(0.0, 1.0))))
    return _solid(rng, shape, half, path, hue, rng.uniform(5, 12))


def _solid(rng: np.random.Generator, shape: str, half: Triple, path: Path, hue: float, degrees: float) -> Solid:
    """A solid that spins by ``degrees`` per second either way: boxes about the vertical, spheres about a tilted axis."""
    axis = np.array([0.0, 0.0, 1.0])
    if shape == "sphere":
        axis += rng.normal(0, 0.5, 3)
        axis /= np.linalg.norm(axis)
    rate = math.radians(degrees) * (1 if rng.random() < 0.5 else -1)
    spin = Wave(float(rng.uniform(0, 2 * math.pi)), rate, (_swing(rng, 0.3, 5, 9),))
    return Solid(shape, half, path, _triple(axis), spin, _texture(rng, max(half), hue))


def _half(rng: np.random.Generator, shape: str, size: float) -> Triple:
    """A sphere's radius three times, or the half edges of a box whose horizontal half diagonal is at most ``size``."""
    if shape == "sphere":
        return size, size, size
    width, depth = rng.uniform(0.5, 1 / math.sqrt(2), 2)
    return float(size * width), float(size * depth), float(size * rng.uniform(0.6, 1.5))


def _texture(rng: np.random.Generator, size: float, hue: float) -> Texture:
    """A vivid texture for a solid whose largest half edge is ``size``."""
    dark = _colour(hue, rng.uniform(0.65, 0.9), rng.uniform(0.45, 0.65))
    light = _colour(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.25, 0.55), rng.uniform(0.85, 1.0))
    patch = _colour(hue + rng.choice([-0.33, 0.33, 0.5]), rng.uniform(0.5, 0.8), rng.uniform(0.55, 0.9))
    pitch = size * rng.uniform(0.75, 1.3)
    stripes = rng.random() < 0.4
    pitches = (math.inf, math.inf, float(pitch)) if stripes else (float(pitch),) * 3
    return Texture((dark, light, patch), 0.9 * size, 6, pitches, _triple(rng.uniform(0, 32, 3)))


def _ground(rng: np.random.Generator) -> Texture:
    """An earthy checkered ground with noise from metres down to centimetres."""
    hue = rng.uniform(0, 1)
    dark = _colour(hue, rng.uniform(0.25, 0.5), rng.uniform(0.3, 0.45))
    light = _colour(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.28), rng.uniform(0.65, 0.85))
    patch = _colour(hue + rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.4), rng.uniform(0.45, 0.7))
    pitch = float(rng.uniform(1.8, 3.2))
    origin = tuple(float(value) for value in rng.uniform(0, 128, 2))
    return Texture((dark, light, patch), 3.1, 8, (pitch, pitch), origin)


def _sky(rng: np.random.Generator) -> Sky:
    """One of five moods of the sky, slightly shifted."""
    moods = ((0.58, 0.65, 0.85, 0.12), (0.62, 0.55, 0.6, 0.06), (0.52, 0.45, 0.8, 0.14), (0.75, 0.4, 0.65, 0.95))
    zenith_hue, saturation, value, horizon_hue = moods[int(rng.integers(len(moods)))]
    shift = rng.uniform(-0.03, 0.03)
    horizon = _colour(horizon_hue + shift, rng.uniform(0.1, 0.35), rng.uniform(0.85, 0.95))
    zenith = _colour(zenith_hue + shift, saturation, value)
    cloud = _colour(horizon_hue, 0.08, rng.uniform(0.92, 1.0))
    hills = _colour(rng.uniform(0.2, 0.75), rng.uniform(0.2, 0.4), rng.uniform(0.35, 0.55))
    return Sky(zenith, horizon, cloud, hills, _triple(rng.uniform(0, 32, 3)))


def _swing(rng: np.random.Generator, size: float, shortest: float, longest: float) -> Triple:
    """A term of a :class:`Wave` with a random period in seconds and a random phase."""
    return size, float(rng.uniform(shortest, longest)), float(rng.uniform(0, 2 * math.pi))


def _colour(hue: float, saturation: float, value: float) -> Triple:
    return _triple(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _triple(values: Sequence[float] | np.ndarray) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
