"""Frames of a video file, streamed as uint8 RGB [H, W, 3] in presentation order, from 0."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .probe import VideoIndex, VideoInfo, video_index
from .streams import displayed_frames, open_video, video_stream


def read_frames(
    path: Path, frames: Sequence[int], *, size: tuple[int, int] | None = None, repeat_last: bool = False
) -> Iterator[np.ndarray]:
    """Yield exactly the frames numbered ``frames``, seeking to the keyframe before the first.

    Display rotation is applied; alpha is dropped; more than 8 bits are rounded to 8.

    Args:
        frames: frame numbers, ascending; a number that comes again gives the same array again.
        size: (width, height) to stretch to, see :func:`stretch`; None keeps the file's size.
        repeat_last: numbers past the end give the last frame again; otherwise they are an error.

    Raises:
        FileNotFoundError, ValueError: as :func:`probe`, at the call; and ValueError for numbers that the file does not
            have (at the call) or a frame that cannot be decoded (when it is reached).
    """
    index = video_index(path)
    count = index.info.frames
    if any(later < number for number, later in itertools.pairwise(frames)) or (len(frames) and frames[0] < 0):
        raise ValueError(f"frame numbers {frames} must be ascending and not negative")
    if len(frames) and frames[-1] >= count and not repeat_last:
        raise ValueError(f"{path} has {count} frames (0 .. {count - 1}), but frame {frames[-1]} was asked for")
    return _read(path, index, frames, size)


def stretch(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 picture [H, W, 3] to ``size`` = (width, height), without cropping, by Pillow's bicubic filter.

    This is the released code's rule, which its weights were used with: 832x480 becomes 640x352 although the aspect
    differs.
    """
    if (frame.shape[1], frame.shape[0]) == tuple(size):
        return frame
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))  # asarray would be read-only


def numbered_frames(path: Path, index: VideoIndex, start: int) -> Iterator[tuple[int | None, av.VideoFrame | None]]:
    """Decoded frames and their numbers, from a keyframe at or before frame ``start`` on.

    A number is None where no displayed frame has that timestamp; a damaged packet gives a frame None and ends them.
    """
    with open_video(path) as container:
        stream = video_stream(path, container)
        if not index.keyframes:
            yield from enumerate(displayed_frames(container, stream))
            return
        # Some containers seek by decoding time and land past the keyframe that was asked for: then from the beginning.
        for keyframe in (index.keyframe_before(start), index.times.pts[0]):
            container.seek(keyframe, stream=stream)
            frames = displayed_frames(container, stream)
            first = next(frames, None)
            number = index.number(first)
            if number is not None and number <= start:
                break
        for frame in itertools.chain([first], frames):
            yield index.number(frame), frame


def _read(path: Path, index: VideoIndex, frames: Sequence[int], size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    last = index.info.frames - 1
    numbers = iter(frames)
    target = next(numbers, None)
    if target is None:
        return
    for number, frame in numbered_frames(path, index, min(target, last)):
        if number is None or frame is None or number > min(target, last):
            break
        if number == min(target, last):
            if frame.is_corrupt:
                break
            picture = _to_rgb(path, index.info, number, frame)
            picture = picture if size is None else stretch(picture, size)
            while target is not None and number == min(target, last):
                yield picture
                target = next(numbers, None)
            if target is None:
                return
    raise ValueError(f"{path}: frame {min(target, last)} is damaged: copy the file again, or export it anew")


def _to_rgb(path: Path, info: VideoInfo, number: int, frame: av.VideoFrame) -> np.ndarray:
    rgb = frame.to_ndarray(format="rgb24", src_color_range=frame.color_range)
    rgb = np.ascontiguousarray(np.rot90(rgb, info.rotation // 90))
    if rgb.shape != (info.height, info.width, 3):
        raise ValueError(
            f"{path}: frame {number} is {rgb.shape[1]}x{rgb.shape[0]}, the first one {info.width}x{info.height}: "
            "convert the video to one size"
        )
    return rgb
