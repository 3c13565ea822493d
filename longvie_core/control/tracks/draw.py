"""Drawing 3-D point tracks as the sparse control video: coloured rectangles on black (P1 section 3.1, P2 section 3.1).

A track point is ``(x, y, z)``: x and y in pixels of the drawn picture, and z of :mod:`.point_depth`, **near = 1, far = 0**.
So a larger z is nearer, and 1/z, which gives the blue channel, is largest far away.

Two styles:

``"reference"``
    What the published weights were trained on, byte for byte, with its three quirks: far points are painted over near
    ones and hidden points are drawn too; the rectangle size of later frames is the one left over from frame 0's last
    drawn point; and when enough points have z = 0 the blue channel is lost for the whole clip.
``"corrected"``
    Near over far, hidden points left out, one rectangle size for the clip, blue always present.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial import KDTree

from .point_depth import clip_points
from .types import Tracks

STYLES = ("reference", "corrected")

TRACKER_WIDTH, TRACKER_HEIGHT, TRACKER_MARGIN = 576, 384, 9
"""Picture in which the reference lays out its grid, and the grid's distance from the edge, in pixels."""


def reference_grid(width: int, height: int, n: int = 50, rows: int | None = None) -> np.ndarray:
    """The reference's regular grid of ``n x n`` points at a clip's first frame.

    In the tracker's 576x384 picture ``x = 9 + i/(n-1) * 558`` and ``y = 9 + j/(n-1) * 366``, scaled by ``width/576``
    and ``height/384``.

    Args:
        width, height: size of the drawn picture in pixels.
        n: points a side, at least 2 (reference 50; P1 and P2 name 4,900 points, which is 70).
        rows: rows of ``n`` points, at least 2; ``None`` = n, as the reference has it.

    Returns:
        float32 ``[rows*n, 2]``, (x, y) in pixels. **x runs fastest**: point ``j*n + i`` is column i of row j.

    Raises:
        ValueError: ``n`` or ``rows`` below 2.
    """
    rows = n if rows is None else rows
    if min(n, rows) < 2:
        raise ValueError(f"a grid of {min(n, rows)} points a side has no spacing: give at least 2")
    across, down = (np.arange(count) / (count - 1) for count in (n, rows))
    xs = (TRACKER_MARGIN + across * (TRACKER_WIDTH - 2 * TRACKER_MARGIN)) * (width / TRACKER_WIDTH)
    ys = (TRACKER_MARGIN + down * (TRACKER_HEIGHT - 2 * TRACKER_MARGIN)) * (height / TRACKER_HEIGHT)
    y, x = np.meshgrid(ys, xs, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


BLUE_PERCENTILES = (2, 98)
"""1/z of these percentiles becomes blue 0 and 255 (Diffusion-as-Shader convention)."""


def point_colours(tracks0: np.ndarray, style: str = "reference") -> np.ndarray:
    """One colour per point for the whole clip, from the clip's **first** frame (Diffusion-as-Shader convention).

    R and G are x and y, min-max normalized; B is 1/z, normalized by its 2nd and 98th percentile.

    ``reference`` does not clip: values are rounded half to even and saturate as OpenCV's scalars do on x86, where NaN
    and infinity become 0. A z of exactly 0 makes 1/z infinite, and when that reaches the percentile, blue is 0
    everywhere. ``corrected`` takes the percentiles over the finite 1/z only, gives z = 0 full blue (it is the
    farthest), and the middle value 128 to a channel without a range.

    Args:
        tracks0: float ``[N, 3]``, (x pixels, y pixels, z) of the points in frame 0; near = 1, far = 0.
        style: ``"reference"`` or ``"corrected"``.

    Returns:
        uint8 ``[N, 3]``, RGB.

    Raises:
        ValueError: unknown ``style``.
    """
    _check_style(style)
    # float32 to the end, as the reference's tracks are: it decides where a colour lies half-way between two bytes.
    x, y, z = np.asarray(tracks0, np.float32).T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = 1 / z
        if style == "reference":
            blue_range = np.percentile(inverse, BLUE_PERCENTILES)
            ranges = ((x, x.min(), x.max()), (y, y.min(), y.max()), (inverse, *blue_range))
            channels = [_normalized(*values_and_range) for values_and_range in ranges]
        else:
            channels = [_in_range(x, (0, 100)), _in_range(y, (0, 100)), _in_range(inverse, BLUE_PERCENTILES)]
        return _opencv_bytes(np.stack(channels, axis=1) * np.float32(255))


def render_tracks(
    tracks: np.ndarray, visible: np.ndarray | None, width: int, height: int, style: str = "reference"
) -> Iterator[np.ndarray]:
    """Draw a clip's tracks frame by frame: filled rectangles on black, in the colours of :func:`point_colours`.

    A rectangle reaches ``r`` to the left and right and ``r/1.5`` up and down of its point, both corners truncated
    towards zero and included, with ``r = int(distance to the nearest other point in frame 0) / 2``.

    ``reference``: the distance is 3-D (x, y and z together). Frame 0 has a size per point; all later frames use that
    of frame 0's last drawn point. Points are painted by descending z, equal ones in index order, so that *far* points
    cover near ones. Points with x or y exactly 0 are left out; ``visible`` is not looked at.

    ``corrected``: by ascending z (near covers far), points that are not visible left out, and one size from the median
    distance in the picture plane.

    Args:
        tracks: float ``[T, N, 3]``, (x pixels, y pixels, z); z: near = 1, far = 0. Points may lie outside the picture.
        visible: bool ``[T, N]``, or None when all are visible.
        width, height: size of the frames in pixels.
        style: ``"reference"`` (what the weights were trained on) or ``"corrected"``.

    Returns:
        Iterator over T frames, uint8 ``[height, width, 3]`` RGB.

    Raises:
        ValueError: at once, before the first frame, if a shape or the style is wrong, there are fewer than 2 points, or
            a coordinate is not a finite number.
    """
    _check_style(style)
    _check_tracks(tracks, visible)
    tracks = np.asarray(tracks, np.float32)
    if style == "reference":
        layers = _reference_layers(tracks)
    else:
        mask = np.ones(tracks.shape[:2], bool) if visible is None else np.asarray(visible, bool)
        layers = _corrected_layers(tracks, mask)
    return _paint(tracks, layers, point_colours(tracks[0], style), width, height)


def draw_clip(tracks: Tracks, z: np.ndarray, style: str = "reference") -> Iterator[np.ndarray]:
    """Draw a clip's tracks with the z of its depth, in the depth's size.

    Args:
        tracks: of the clip, in pixels of ``z``.
        z: float ``[T, H, W]``, near = 1, far = 0, see :func:`.point_depth.depth_to_z`.
        style: ``"reference"`` or ``"corrected"``.

    Returns:
        As :func:`render_tracks`.
    """
    return render_tracks(clip_points(tracks, z), tracks.visible, z.shape[2], z.shape[1], style)


def _check_style(style: str) -> None:
    if style not in STYLES:
        raise ValueError(f"track style {style!r} is not one of {', '.join(STYLES)}")


def _check_tracks(tracks: np.ndarray, visible: np.ndarray | None) -> None:
    if tracks.ndim != 3 or tracks.shape[-1] != 3 or len(tracks) == 0:
        raise ValueError(f"tracks have shape {list(tracks.shape)}: give [frames, points, 3], the last being (x, y, z)")
    if tracks.shape[1] < 2:
        raise ValueError(
            f"{tracks.shape[1]} track points: give at least 2, the drawn rectangles' size comes from their distance"
        )
    if visible is not None and visible.shape != tracks.shape[:2]:
        raise ValueError(
            f"visible has shape {list(visible.shape)}, but the tracks are {list(tracks.shape[:2])} (frames, points): "
            "give one flag for each frame and point"
        )
    broken = np.argwhere(~np.isfinite(tracks).all(axis=-1))
    if len(broken):
        frame, point = broken[0]
        raise ValueError(
            f"track point {point} in frame {frame} is {tracks[frame, point].tolist()}: give finite x, y and z "
            "(mark a lost point as not visible and repeat its last position)"
        )


def _normalized(values: np.ndarray, low: np.floating | float, high: np.floating | float) -> np.ndarray:
    """float32 ``(values - low) / (high - low)``, not clipped; NaN where the range is empty."""
    return ((values - low) / (high - low)).astype(np.float32)


def _in_range(values: np.ndarray, percentiles: tuple[int, int]) -> np.ndarray:
    """float32 in [0, 1]: normalized by percentiles of the finite values; +inf is 1, an empty range gives 0.5."""
    finite = np.isfinite(values)
    low, high = np.percentile(values[finite], percentiles) if finite.any() else (0.0, 0.0)
    scaled = _normalized(values, low, high) if high > low else np.full_like(values, 0.5)
    return np.where(finite, np.clip(scaled, 0, 1), np.float32(1))


def _opencv_bytes(values: np.ndarray) -> np.ndarray:
    """Bytes as OpenCV makes them of a colour on x86: half to even, saturating; what does not fit an int32 becomes 0."""
    rounded = np.rint(values)
    fits = np.abs(rounded) < 2.0**31
    return np.where(fits, np.clip(rounded, 0, 255), 0).astype(np.uint8)


def _half_widths(points: np.ndarray) -> np.ndarray:
    """float32 ``[N]``: half the whole pixels to the nearest other point, for points ``[N, 2 or 3]``."""
    distances, _ = KDTree(points).query(points, k=2)
    return (np.trunc(distances[:, 1]) / 2).astype(np.float32)


def _reference_layers(tracks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per frame: the drawn points' indices in painter's order, and their half-widths."""
    half_widths = _half_widths(tracks[0])
    for frame, (x, y, z) in enumerate(tracks.transpose(0, 2, 1)):
        order = np.argsort(-z, kind="stable")
        order = order[(x[order] != 0) & (y[order] != 0)]
        yield order, half_widths[order]
        if frame == 0:
            # The size is computed while drawing frame 0 only, so the last value stays in use for all frames after it.
            half_widths = np.full_like(half_widths, half_widths[order[-1]] if len(order) else 0)


def _corrected_layers(tracks: np.ndarray, visible: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per frame: the visible points' indices, near ones last, and their half-widths, all equal."""
    spacings = 2 * _half_widths(tracks[0, :, :2])
    half_widths = np.full_like(spacings, np.trunc(np.median(spacings)) / 2)
    for z, mask in zip(tracks[..., 2], visible, strict=True):
        order = np.argsort(z, kind="stable")
        order = order[mask[order]]
        yield order, half_widths[order]


RECTANGLE_ASPECT = 1.5
"""Width over height of the drawn rectangle."""


def _boxes(points: np.ndarray, half_widths: np.ndarray, width: int, height: int) -> np.ndarray:
    """int ``[N, 4]``: top, bottom, left, right of the rectangles inside the picture, bottom and right exclusive.

    The corner is truncated after the half-width was taken off, as the rectangles in the published examples show, and
    truncation is towards zero, so that a rectangle ending at x = -0.5 still fills column 0.
    """
    x, y = points[:, 0], points[:, 1]
    half_heights = half_widths / np.float32(RECTANGLE_ASPECT)
    edges = [
        np.clip(np.trunc(y - half_heights), 0, height),
        np.clip(np.trunc(y + half_heights) + 1, 0, height),
        np.clip(np.trunc(x - half_widths), 0, width),
        np.clip(np.trunc(x + half_widths) + 1, 0, width),
    ]
    return np.stack(edges, axis=1).astype(np.intp)


def _paint(
    tracks: np.ndarray, layers: Iterator[tuple[np.ndarray, np.ndarray]], colours: np.ndarray, width: int, height: int
) -> Iterator[np.ndarray]:
    """Frames uint8 ``[height, width, 3]``; a pixel is written as one 32-bit word, faster than as three bytes."""
    words = np.pad(colours, ((0, 0), (0, 1))).view(np.uint32)[:, 0]
    for points, (order, half_widths) in zip(tracks, layers, strict=True):
        canvas = np.zeros((height, width), np.uint32)
        boxes = _boxes(points[order], half_widths, width, height).tolist()
        for (top, bottom, left, right), word in zip(boxes, words[order].tolist(), strict=True):
            canvas[top:bottom, left:right] = word
        yield np.ascontiguousarray(canvas.view(np.uint8).reshape(height, width, 4)[..., :3])
