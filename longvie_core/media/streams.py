"""Opening a media file with PyAV, and decoding what is shown of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av

from ..interrupt import checkpoint

READ_OPTIONS = {
    # A «video» may be a playlist that names other files or addresses: read only the file itself, as a real format.
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mxf,nut,yuv4mpegpipe,"
    "h264,hevc,aac,ac3,aiff,flac,mp3,wav",
}
# A damaged tag must not keep a video from being read. PyAV raises at one unless told otherwise; from 19 on it never does, and
# no longer takes the argument.
TAG_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


@contextmanager
def open_video(path: Path, **options: str) -> Iterator[av.container.InputContainer]:
    """The container of a media file, open for the length of a ``with`` block.

    Args:
        options: FFmpeg's, beside ``READ_OPTIONS``.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no media file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        # Not as `options`, which are the streams' too: PyAV 16 crashes where the streams are found late (FLV).
        container = av.open(str(path), container_options=READ_OPTIONS | options, **TAG_OPTIONS)
    except av.FFmpegError as error:
        raise ValueError(
            f"{path} cannot be opened as a video ({error.strerror}): it is another kind of file, or incomplete"
        ) from error
    with container:
        yield container


def moving_pictures(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video streams; cover art does not count."""
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """The first stream of moving pictures, set to decode on one thread a slice.

    Raises:
        ValueError: there is none, or no decoder for it.
    """
    streams = moving_pictures(container)
    if not streams:
        kind = "only audio" if container.streams.audio else "no video"
        raise ValueError(f"{path} holds {kind}: give a file with a video stream")
    if streams[0].codec_context is None:
        raise ValueError(f"{path}: there is no decoder for its video: convert it to H.264 first")
    streams[0].thread_type = "SLICE"  # frame threads lose good frames next to damaged ones, and at times hide the error
    return streams[0]


def displayed_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
    """Decoded frames in presentation order; a damaged packet gives None and ends them.

    What cannot be decoded before the first frame is skipped: a recording may start between two keyframes.
    """
    any_shown = False
    for packet in container.demux(stream):
        checkpoint()
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if any_shown:
                break
            continue
        any_shown = any_shown or bool(frames)
        yield from frames
    else:
        return
    with suppress(av.FFmpegError):
        yield from stream.decode(None)  # what the decoder still holds
    yield None


def first_displayed_frame(path: Path) -> av.VideoFrame:
    """The first frame that can be decoded.

    Raises:
        FileNotFoundError, ValueError: as :func:`open_video` and :func:`video_stream`; and ValueError where there is none.
    """
    with open_video(path) as container:
        first = next(displayed_frames(container, video_stream(path, container)), None)
    if first is None:
        raise ValueError(f"{path} has a video stream without a single readable frame: give another file")
    return first
