"""Depth that the user already has as grey pictures or a grey video."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange

from ...media.probe import video_index
from ...media.read import numbered_frames, read_frames

NEAR = ("black", "white")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".webp", ".bmp")

COLOURED = 0.05
"""Mean difference between the channels, of full scale, from which a picture counts as coloured: a grey one that was compressed
as colour stays far below."""


def grey_disparity(picture: np.ndarray, near: str, what: str = "picture") -> np.ndarray:
    """A grey depth picture as disparity (larger = nearer), float32 [H, W]; nothing is rounded.

    Args:
        picture: uint8, uint16 (0 .. full scale becomes 0 .. 1) or float (taken as it is), [H, W] or [H, W, C]; of more channels
            the mean, and alpha does not count.
        near: which end is near: ``"white"`` (ComfyUI's depth nodes, most tools) or ``"black"`` (LongVie's own controls).
        what: names the picture in messages.

    Raises:
        ValueError: colours (a colour map has no order that could be read back), another type or shape.
    """
    _check_near(near)
    if picture.dtype not in (np.uint8, np.uint16) and picture.dtype.kind != "f":
        raise ValueError(f"{what} is {picture.dtype}: give 8 or 16 bits, or floats")
    if picture.ndim not in (2, 3) or picture.size == 0:
        raise ValueError(f"{what} is {list(picture.shape)}: expected [H, W] or [H, W, channels]")
    full = 1 if picture.dtype.kind == "f" else np.iinfo(picture.dtype).max
    channels = picture.reshape(*picture.shape[:2], -1).astype(np.float32) / np.float32(full)
    channels = channels[..., :1] if channels.shape[-1] < 3 else channels[..., :3]
    if np.ptp(channels, axis=-1).mean() > COLOURED:
        raise ValueError(f"{what} is coloured: a depth video that went through a colour map cannot be used, give the grey one")
    grey = channels.mean(axis=-1, dtype=np.float32)
    return grey if near == "white" else 1 - grey


class ReadyDepthVideo:
    """Grey depth in a video file or in pictures, with all of its bits (8, 10, 12 or 16); see :func:`grey_disparity`.

    A :class:`.ready.DepthSource`. The grey values are taken as disparity on one scale for the whole video: depth that was
    normalized picture by picture flickers, and nothing here can mend that.

    Args:
        path: a video, a picture, or a folder of pictures, which count in the order of the numbers in their names.
        near: ``"white"`` or ``"black"``.

    Attributes:
        name: the path, for messages.
        frames: number of pictures.

    Raises:
        FileNotFoundError, ValueError: no such file, not a video, or a folder without pictures.
    """

    kind = "disparity"

    def __init__(self, path: Path, near: str) -> None:
        _check_near(near)
        self.name = str(path)
        self._path, self._near = path, near
        self._pictures = _picture_files(path)
        self.frames = len(self._pictures) or video_index(path).info.frames

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """Disparity float32 [H, W] of the frames ``numbers``, ascending; a number may come again.

        Raises:
            ValueError: when it is reached: a coloured or damaged picture.
        """
        if self._pictures:
            return (_read_picture(self._pictures[number], self._near) for number in numbers)
        return self._read_video(list(numbers))

    def _read_video(self, numbers: list[int]) -> Iterator[np.ndarray]:
        if not numbers:
            return
        for picture in read_frames(self._path, range(1)):
            grey_disparity(picture, self._near, f"{self._path}: frame 0")  # refuses colours, which are lost below
        index = video_index(self._path)
        queue = deque(numbers)
        for number, frame in numbered_frames(self._path, index, queue[0]):
            if frame is None or number is None or number > queue[0]:
                break
            if number < queue[0]:
                continue
            upright = np.rot90(_grey(frame), index.info.rotation // 90)
            disparity = grey_disparity(upright, self._near, f"{self._path}: frame {number}")
            while queue and queue[0] == number:
                yield disparity
                queue.popleft()
            if not queue:
                return
        raise ValueError(f"{self._path}: frame {queue[0]} is damaged: copy the file again, or export it anew")


def _grey(frame: av.VideoFrame) -> np.ndarray:
    """A decoded picture without rounding: uint16 grey [H, W] of grey and YUV pictures, uint8 or uint16 RGB [H, W, 3] of RGB.

    FFmpeg's conversion of YUV to grey is exact: the luma, brought to full range. That of RGB is not: it weighs the channels and
    rounds, and makes 16 bits of 8-bit RGB that end below full scale.
    """
    rgb = "rgb48le" if frame.format.components[0].bits > 8 else "rgb24"
    if frame.format.is_rgb:
        return frame.to_ndarray(format=rgb, src_color_range=frame.color_range)
    # By FFmpeg's filter: PyAV 16 itself cannot be told that the result's range is full.
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    source_range = "full" if frame.color_range == ColorRange.JPEG else "limited"
    scale, grey = graph.add("scale", f"in_range={source_range}:out_range=full"), graph.add("format", "gray16le")
    source.link_to(scale)
    scale.link_to(grey)
    grey.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def _picture_files(path: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names; a single picture; none for anything else."""
    if path.is_file():
        return [path] if path.suffix.lower() in PICTURES else []
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    pictures = [file for file in path.iterdir() if file.suffix.lower() in PICTURES]
    if not pictures:
        raise ValueError(f"{path} holds no pictures: give a folder of {', '.join(PICTURES)}")

    def order(file: Path) -> list[tuple[bool, int, str]]:
        return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"([0-9]+)", file.name)]

    return sorted(pictures, key=order)


def _read_picture(path: Path, near: str) -> np.ndarray:
    import cv2

    # «Unchanged» keeps 16 bits. NumPy reads the file, since OpenCV on Windows does not open every file name.
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError(f"{path} is not a readable picture: export it again as PNG")
    return grey_disparity(picture, near, str(path))


def _check_near(near: str) -> None:
    if near not in NEAR:
        raise ValueError(f"near {near!r} is not one of {', '.join(NEAR)}")
