"""z, the third coordinate of track points: *inverted normalized depth*, **near = 1, far = 0**, read from the dense control."""

from __future__ import annotations

import numpy as np

from .types import Tracks


def depth_to_z(dense: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The z of track points from the 8-bit dense control: ``z = (max - v) / (max - min)``, mean over R, G and B.

    The dense control is black where the scene is near, so **near = 1, far = 0**. Maximum and minimum are taken over all
    given frames and channels; the reference gives one clip at a time.

    Args:
        dense: uint8 ``[T, H, W, 3]``, the dense control's frames, near = black.
        size: (width, height) of the track picture in pixels; see :func:`cover_resize`.

    Returns:
        float32 ``[T, height, width]`` in [0, 1]; 1 everywhere when the depth is constant, which has no near or far.

    Raises:
        ValueError: ``dense`` is not uint8 ``[T, H, W, 3]``.
    """
    if dense.dtype != np.uint8 or dense.ndim != 4 or dense.shape[-1] != 3 or 0 in dense.shape:
        raise ValueError(
            f"the dense control is {dense.dtype} {list(dense.shape)}: give 8-bit RGB frames, uint8 [frames, height, width, 3]"
        )
    low, high = int(dense.min()), int(dense.max())
    if low == high:
        return np.ones((len(dense), size[1], size[0]), np.float32)
    channel_sum = dense[..., 0].astype(np.uint16) + dense[..., 1] + dense[..., 2]
    z = np.subtract(np.float32(3 * high), channel_sum, dtype=np.float32)
    z /= np.float32(3 * (high - low))
    return cover_resize(z[:, None], size)[:, 0]


def cover_resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale pictures until they cover ``size``, then cut out the centre (bilinear, corners aligned).

    Args:
        frames: float32 ``[T, C, H, W]``, any range.
        size: (width, height) of the result in pixels.

    Returns:
        float32 ``[T, C, height, width]``, same range.
    """
    import torch

    width, height = size
    source_height, source_width = frames.shape[-2:]
    scale = max(width / source_width, height / source_height)
    scaled_width, scaled_height = round(source_width * scale), round(source_height * scale)
    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(frames), (scaled_height, scaled_width), mode="bilinear", align_corners=True
    ).numpy()
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    return scaled[..., top : top + height, left : left + width]


def clip_points(tracks: Tracks, z: np.ndarray) -> np.ndarray:
    """Tracks in 3-D, as :func:`.draw.render_tracks` wants them.

    A visible point's z is the depth map's at the nearest pixel: across an edge, a mean of pixels would be a depth at which
    nothing is. A hidden point's z cannot be read: it is interpolated between where the point was last and is next visible.

    Args:
        tracks: T frames, N points.
        z: float ``[T, H, W]``, near = 1, far = 0, see :func:`depth_to_z`.

    Returns:
        float32 ``[T, N, 3]``: x, y in pixels and z.
    """
    at_points = z_at(tracks.xy, z)
    frame = np.arange(len(z))[:, None]
    before = np.maximum.accumulate(np.where(tracks.visible, frame, -1))
    after = np.minimum.accumulate(np.where(tracks.visible, frame, len(z))[::-1])[::-1]
    never = (before < 0) & (after == len(z))
    first, last = np.where(before < 0, after, before), np.where(after == len(z), before, after)
    first, last = np.where(never, frame, first), np.where(never, frame, last)
    share = (frame - first) / np.maximum(last - first, 1)
    own = (1 - share) * np.take_along_axis(at_points, first, 0) + share * np.take_along_axis(at_points, last, 0)
    return np.concatenate([tracks.xy, own[..., None]], axis=-1).astype(np.float32)


NEARER = 0.05
"""Rise of z from one frame to the next by which something must have come in front of a point."""

NEARER_A_FRAME = 0.01
"""Rise of z that is granted for each frame in which a point was not seen: it may have come nearer itself."""


def hide_occluded(tracks: Tracks, z: np.ndarray) -> Tracks:
    """Tracks without those visible points at which the depth is suddenly much nearer than on the point's own course.

    The course is the z at which the point was last seen; the longer ago that was, the more it may have come nearer itself. This
    corrects any tracker: in the picture alone, a point that drifts onto something that passes in front looks steady.

    Args:
        tracks: T frames, N points.
        z: float ``[T, H, W]``, near = 1, far = 0.
    """
    at_points = z_at(tracks.xy, z)
    visible = tracks.visible.copy()
    course, frames_unseen = at_points[0].copy(), np.zeros(visible.shape[1])
    for now, mask in zip(at_points[1:], visible[1:], strict=True):
        mask &= now - course <= NEARER + NEARER_A_FRAME * frames_unseen
        course[mask] = now[mask]
        frames_unseen = np.where(mask, 0, frames_unseen + 1)
    return Tracks(tracks.xy, visible)


def z_at(xy: np.ndarray, z: np.ndarray) -> np.ndarray:
    """z ``[T, N]`` at the pixels nearest to points ``[T, N, 2]``; outside the picture, at its edge.

    Args:
        z: ``[T, H, W]``.

    Raises:
        ValueError: another number of frames in ``xy`` than in ``z``.
    """
    if len(xy) != len(z):
        raise ValueError(f"the tracks have {len(xy)} frames, but the depth has {len(z)}: give both of the same clip")
    column, row = (np.clip(np.rint(xy[..., axis]), 0, z.shape[2 - axis] - 1).astype(np.intp) for axis in (0, 1))
    return z[np.arange(len(z))[:, None], row, column]
