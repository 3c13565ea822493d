"""Video files written frame by frame, so that equal frames give equal bytes on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..disk.atomic import publish, temporary_name
from ..interrupt import checkpoint

# bf=0: without B-frames pts equals dts, so that clips join by stream copy with no reordering delay.
# stitchable: headers do not depend on the pictures, so that all clips of one size and rate have the same ones.
# One thread: the bits do not depend on the machine's cores. No mbtree: its SIMD code reads past rows whose number of
# macroblocks is no multiple of 8 (width 832, 96 ...), and what lies there changes the bits now and then.
H264_OPTIONS = {
    "preset": "medium",
    "bf": "0",
    "g": "16",
    "threads": "1",
    "x264-params": "stitchable=1:open-gop=0:mbtree=0",
}
# g=1: every frame stands alone, so that seeking is exact. The number of slices is fixed because it changes the bits.
FFV1_OPTIONS = {"level": "3", "g": "1", "slices": "4", "slicecrc": "1", "threads": "1"}
MP4_OPTIONS = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
MATROSKA_OPTIONS = {"fflags": "+bitexact"}

AVCOL_SPC_SMPTE170M = 6
"""FFmpeg's number for BT.601, its default where a file has no tag: readers that ignore the tag are right as well."""

SUFFIXES = {"h264": ".mp4", "lossless": ".mkv"}


class VideoWriter:
    """Write frames to a video file that appears, complete, only when the ``with`` block ends without an error.

    Equal frames and settings give equal bytes, run after run. ``h264`` clips of one size and rate can be joined by
    :func:`concat`: no B-frames, closed groups of pictures, the same headers.

    Args:
        path: ``.mp4`` for ``h264``, ``.mkv`` for ``lossless``.
        width, height: pixels; even for ``h264``.
        fps: frames per second.
        codec: ``"h264"`` (4:2:0, BT.601, for viewing) or ``"lossless"`` (FFV1: RGB bit by bit, each frame a keyframe).
        crf: quality of ``h264``: 0 is best, 18 looks like the original, 51 is worst.
        metadata: tags of the container; mp4 keeps any key (ComfyUI stores ``prompt`` and ``workflow`` so), mkv
            turns keys to upper case.

    Raises:
        ValueError: a setting out of range, a frame of another size or type, or no frame at all.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: Fraction,
        *,
        codec: str = "h264",
        crf: int = 18,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if codec not in SUFFIXES:
            raise ValueError(f"codec {codec!r} is not one of {', '.join(SUFFIXES)}")
        if path.suffix.lower() != SUFFIXES[codec]:
            raise ValueError(f"{path}: a {codec} video needs the file name ending {SUFFIXES[codec]}")
        if codec == "h264" and (width % 2 or height % 2):
            raise ValueError(f"{path}: h264 needs even width and height, not {width}x{height}")
        if codec == "h264" and not 0 <= crf <= 51:
            raise ValueError(f"{path}: crf {crf} is outside 0 .. 51")
        self.path = path
        self.frames = 0
        self._shape = (height, width, 3)
        self._h264 = codec == "h264"
        self._time_base = 1 / Fraction(fps)
        self._temporary = temporary_name(path)
        self._container = av.open(
            str(self._temporary),
            "w",
            format="mp4" if self._h264 else "matroska",
            options=MP4_OPTIONS if self._h264 else MATROSKA_OPTIONS,
        )
        self._container.metadata.update(metadata or {})
        options = {**H264_OPTIONS, "crf": str(crf)} if self._h264 else FFV1_OPTIONS
        encoder = "libx264" if self._h264 else "ffv1"
        self._stream = self._container.add_stream(encoder, rate=Fraction(fps), options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p" if self._h264 else "bgr0"
        if self._h264:
            self._stream.codec_context.colorspace = AVCOL_SPC_SMPTE170M
            self._stream.codec_context.color_range = av.video.reformatter.ColorRange.MPEG

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one frame, uint8 RGB [H, W, 3]."""
        checkpoint()
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(
                f"{self.path}: frame {self.frames} is {frame.dtype} {list(frame.shape)}, expected uint8 {list(self._shape)}"
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        if self._h264:
            picture = picture.reformat(
                format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG", interpolation="BICUBIC"
            )
        picture.pts, picture.time_base = self.frames, self._time_base
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None:
                with suppress(av.FFmpegError):  # the error that brought us here is the one to show
                    self._container.close()
                return
            if self.frames == 0:
                raise ValueError(f"{self.path}: no frame was written, so there is no video to keep")
            self._container.mux(self._stream.encode(None))
            self._container.close()
            publish(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
