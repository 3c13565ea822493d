"""The camera of a procedural world, and where camera and solids are at one time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .motion import Triple
from .scene import Scene

FOCAL_PER_DIAGONAL = 0.75
"""Focal length in picture diagonals: 60 degrees horizontally at 640x352."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion.

    Pixel centres lie at whole numbers (OpenCV's convention): the picture spans -0.5 .. width-0.5.

    Attributes:
        position: ``[3]`` in the world.
        rotation: ``[3, 3]``, rows right, down and forward: ``rotation @ (point - position)`` are camera coordinates, the third
            of which is the z-depth.
        focal: focal length in pixels.
        width, height: size of the picture in pixels.
    """

    position: np.ndarray
    rotation: np.ndarray
    focal: float
    width: int
    height: int

    @property
    def centre(self) -> np.ndarray:
        """Principal point ``[2]`` in pixels."""
        return np.array([(self.width - 1) / 2, (self.height - 1) / 2])

    def normalize(self, xy: np.ndarray) -> np.ndarray:
        """Normalized coordinates of pixels ``[..., 2]``: x and y of the ray ``(x, y, 1)`` in camera coordinates."""
        return (np.asarray(xy, np.float64) - self.centre) / self.focal

    def unproject(self, xy: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """World points ``[..., 3]`` of pixels ``[..., 2]`` at z-depths ``[...]``."""
        rays = self.normalize(xy)
        local = np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1) * np.asarray(depth)[..., None]
        return local @ self.rotation + self.position

    def project(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points *less the camera's position* ``[..., 3]`` to pixels ``[..., 2]`` and z-depths ``[...]``.

        Directions (points at infinity) project by the same formula. Pixels are NaN where the z-depth is not positive.
        """
        local = offsets @ self.rotation.T
        depth = local[..., 2]
        ahead = np.where(depth > 0, depth, np.nan)
        return self.focal * local[..., :2] / ahead[..., None] + self.centre, depth


@dataclass(frozen=True)
class Instant:
    """A scene at one time, ready to cast rays against: camera, solids' centres ``[K, 3]`` and rotations ``[K, 3, 3]``."""

    scene: Scene
    camera: Camera
    centres: np.ndarray
    rotations: np.ndarray


def instant_at(scene: Scene, time: float, width: int, height: int) -> Instant:
    """Where everything is at ``time`` seconds, for a picture of ``width x height`` pixels."""
    return Instant(scene, camera_at(scene, time, width, height), *solid_poses(scene, time))


def camera_at(scene: Scene, time: float, width: int, height: int) -> Camera:
    """The camera at ``time`` seconds for a picture of ``width x height`` pixels."""
    clock = scene.motion * time
    position = scene.camera.at(clock)
    forward = np.array([wave.at(clock) for wave in scene.target]) - position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return Camera(position, rotation, FOCAL_PER_DIAGONAL * math.hypot(width, height), width, height)


def solid_poses(scene: Scene, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres ``[K, 3]`` and rotations ``[K, 3, 3]`` at ``time`` seconds: ``world = rotation @ local + centre``."""
    clock = scene.motion * time
    centres = np.stack([solid.path.at(clock) for solid in scene.solids])
    return centres, np.stack([_rotation(solid.axis, solid.spin.at(clock)) for solid in scene.solids])


def _rotation(axis: Triple, angle: float) -> np.ndarray:
    """Rodrigues' formula: the matrix ``[3, 3]`` that turns by ``angle`` radians about the unit vector ``axis``."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
