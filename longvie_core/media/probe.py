"""What a video file holds: size, exact frame count, times, rotation, and whether all of it is there.

Frames are counted in presentation order, from 0. Nothing here holds more than a few frames.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

READ_OPTIONS = {
    # A «video» may be a playlist that names other files or addresses: read only the file given, as a real format.
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mxf,nut,yuv4mpegpipe,"
    "h264,hevc,aac,ac3,aiff,flac,mp3,wav",
}
ONE_PACKET_ONE_FRAME_FORMATS = frozenset({"mov", "matroska"})
ONE_PACKET_ONE_FRAME_CODECS = frozenset({"h264", "hevc", "vp9", "av1", "ffv1", "prores", "mjpeg"})
"""Where a packet is exactly one displayed picture: counting packets counts frames, and timestamps are dependable."""

NO_TIMESTAMP = -(2**63)
"""FFmpeg's mark for it; None does not fit into an array."""


@dataclass(frozen=True)
class VideoInfo:
    """What :func:`probe` finds out.

    Attributes:
        width, height: size in pixels as displayed, that is, after ``rotation``.
        frames: exact number of displayed frames.
        fps: average frames per second.
        has_audio: whether there is an audio stream.
        rotation: degrees counter-clockwise by which :func:`read_frames` turns the stored pictures (0, 90, 180 or 270).
        pixel_aspect: width of a displayed pixel divided by its height; 1 but for anamorphic video (DV, DVD, some TV).
    """

    width: int
    height: int
    frames: int
    fps: Fraction
    has_audio: bool
    rotation: int
    pixel_aspect: Fraction


@dataclass(frozen=True)
class FrameTimes:
    """When the frames of a file are shown, on the file's own clock.

    Attributes:
        pts: timestamp of each displayed frame in ticks, ascending; frames may share one.
        tick: seconds a tick. Containers round timestamps to it (Matroska, FLV: 1/1000 s, GIF: 1/100 s).
        last: ticks for which the last frame is shown; 0 where the file does not say.
        rate: frames per second that the file claims or that its timestamps suggest; wrong where the rate varies.
    """

    pts: array[int]
    tick: Fraction
    last: int
    rate: Fraction


@dataclass(frozen=True)
class VideoIndex:
    """``VideoInfo``, the times of the frames and, where seeking is dependable, the keyframes' timestamps, ascending."""

    info: VideoInfo
    times: FrameTimes
    keyframes: array[int]

    def keyframe_before(self, frame: int) -> int:
        return self.keyframes[bisect_right(self.keyframes, self.times.pts[frame]) - 1]

    def number(self, frame: av.VideoFrame | None) -> int | None:
        """Number of a decoded frame by its timestamp; None where no frame has it."""
        if frame is None or frame.pts is None:
            return None
        pts = self.times.pts
        place = bisect_left(pts, frame.pts)
        return place if place < len(pts) and pts[place] == frame.pts else None


def probe(path: Path) -> VideoInfo:
    """Size, exact frame count, rate, audio and rotation of a video file.

    Frames are counted by reading the packets where a packet is a frame, and by decoding the whole file elsewhere
    (edit lists, MPEG-TS, AVI, GIF ...). The answer is remembered as long as the file's size and time stay the same.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, audio only, no frames, or fewer readable frames than the file says it has.
    """
    return video_index(path).info


def frame_times(path: Path) -> FrameTimes:
    """When each frame of a video is shown. Edit lists are obeyed; without timestamps the claimed rate counts.

    Raises:
        FileNotFoundError, ValueError: as :func:`probe`; and ValueError where time runs backwards.
    """
    times = video_index(path).times
    back = np.flatnonzero(np.diff(np.asarray(times.pts)) < 0)
    if back.size:
        raise ValueError(
            f"{path}: time runs backwards at frame {back[0] + 1}, so the file was probably joined from several: "
            "convert it to one video with even time first"
        )
    return times


# --- reading ----------------------------------------------------------------------------------------------------


@contextmanager
def open_video(path: Path, **options: str) -> Iterator[av.container.InputContainer]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        container = av.open(str(path), options=READ_OPTIONS | options, metadata_errors="replace")
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
    """The first stream of moving pictures."""
    streams = moving_pictures(container)
    if not streams:
        kind = "only audio" if container.streams.audio else "no video"
        raise ValueError(f"{path} holds {kind}: give a file with a video stream")
    if streams[0].codec_context is None:
        raise ValueError(f"{path}: there is no decoder for its video: convert it to H.264 first")
    streams[0].thread_type = "SLICE"  # frame threads lose good frames next to damaged ones, and at times hide the error
    return streams[0]


def video_index(path: Path) -> VideoIndex:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    status = path.stat()
    return _index_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _index_of(path: Path, _size: int, _mtime_ns: int) -> VideoIndex:
    with open_video(path) as container:
        stream = video_stream(path, container)
        rate = Fraction(stream.guessed_rate or stream.average_rate or 1)
        fps = Fraction(stream.average_rate or rate)
        tick = stream.time_base
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        has_audio = bool(container.streams.audio)
        packets = _survey(container, stream)
    if packets.one_to_one:
        pts, last, damaged = array("q", sorted(packets.pts)), packets.last, False
    else:
        pts, last, damaged = _times_by_decoding(path)
    _check_complete(path, packets, len(pts), damaged, fps)
    if NO_TIMESTAMP in pts:  # a bare stream without a container; the average that is found for it means nothing
        pts, last, tick, fps = array("q", range(len(pts))), 1, 1 / rate, rate
    first = first_displayed_frame(path)
    rotation = round(first.rotation / 90) % 4 * 90
    width, height = first.width, first.height
    if rotation % 180:
        width, height, aspect = height, width, 1 / aspect
    info = VideoInfo(width, height, len(pts), fps, has_audio, rotation, aspect)
    keyframes = array("q", sorted(packets.keyframes) if packets.one_to_one else [])
    return VideoIndex(info, FrameTimes(pts, tick, last, rate), keyframes)


@dataclass(frozen=True)
class _Survey:
    """What one pass over a video stream's packets shows, without decoding.

    Attributes:
        pts, keyframes: timestamps of whole packets and of those that start a group of pictures, in file order.
        last: duration of the packet that is shown last, in ticks; 0 where the container does not say.
        one_to_one: each packet is one displayed frame, and the first is a keyframe.
        damaged: a packet is broken off.
        says: frames that the container claims; 0 where it does not say.
        missing: seconds between the end of the last packet and the end that the container claims.
    """

    pts: array[int]
    keyframes: array[int]
    last: int
    one_to_one: bool
    damaged: bool
    says: int
    missing: Fraction


def _survey(container: av.container.InputContainer, stream: av.VideoStream) -> _Survey:
    pts, keyframes = array("q"), array("q")
    final, end, damaged = (NO_TIMESTAMP, 0), 0, False
    one_to_one = (
        container.format.name.split(",")[0] in ONE_PACKET_ONE_FRAME_FORMATS
        and stream.codec_context.name in ONE_PACKET_ONE_FRAME_CODECS
    )
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.is_corrupt:
            damaged = True
        elif packet.pts is None or packet.is_discard:
            one_to_one = False
        else:
            shown = packet.duration or 0
            final, end = max(final, (packet.pts, shown)), max(end, packet.pts + shown)
            pts.append(packet.pts)
            if packet.is_keyframe:
                keyframes.append(packet.pts)
    one_to_one = one_to_one and bool(keyframes) and pts[0] == keyframes[0] == min(pts) and len(set(pts)) == len(pts)
    missing = _declared_end(stream) - end * stream.time_base
    return _Survey(pts, keyframes, final[1], one_to_one, damaged, stream.frames, missing)


def _declared_end(stream: av.VideoStream) -> Fraction:
    """Seconds at which Matroska says that the stream ends: it has no frame count. 0 where nothing is said."""
    written = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if written is None:
        return Fraction(0)
    hours, minutes, seconds = (Fraction(part) for part in written.groups())
    return hours * 3600 + minutes * 60 + seconds


def _check_complete(path: Path, packets: _Survey, frames: int, damaged: bool, fps: Fraction) -> None:
    """Raise ValueError if the file holds less than it says it does."""
    says = packets.says
    # Frames that an edit list hides are no damage: then all packets are there.
    cut = 0 < frames < says and (packets.damaged or _count_packets(path, ignore_editlist="1") < says)
    if packets.missing > 1:  # one second of grace: the claim need not be exact to the frame
        says, cut = len(packets.pts) + round(packets.missing * fps), True
    if cut or (damaged and frames):
        claim = f"says it has {says} frames, but only" if says else "is damaged: only the first"
        raise ValueError(
            f"{path} {claim} {len(_times_by_decoding(path)[0])} can be read: copy the file again, or convert it to H.264"
        )


def _count_packets(path: Path, **options: str) -> int:
    with open_video(path, **options) as container:
        packets = container.demux(video_stream(path, container))
        return sum(bool(packet.size) and not packet.is_corrupt for packet in packets)


def _times_by_decoding(path: Path) -> tuple[array[int], int, bool]:
    """Timestamps of the displayed frames up to the end or the first damage, the last one's duration, and whether there
    was damage."""
    pts, last = array("q"), 0
    with open_video(path) as container:
        for frame in displayed_frames(container, video_stream(path, container)):
            if frame is None:
                return pts, last, True
            pts.append(NO_TIMESTAMP if frame.pts is None else frame.pts)
            last = frame.duration or 0
    return pts, last, False


def first_displayed_frame(path: Path) -> av.VideoFrame:
    with open_video(path) as container:
        first = next(displayed_frames(container, video_stream(path, container)), None)
    if first is None:
        raise ValueError(f"{path} has a video stream without a single readable frame: give another file")
    return first


def displayed_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
    """Decoded frames in presentation order; after the first damaged packet None, and nothing more.

    What cannot be decoded before the first frame is skipped: a recording may start between two keyframes.
    """
    shown = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if shown:
                break
            continue
        shown = shown or bool(frames)
        yield from frames
    else:
        return
    with suppress(av.FFmpegError):
        yield from stream.decode(None)  # what the decoder still holds
    yield None
