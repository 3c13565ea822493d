"""What a video file holds: size, exact frame count, times, rotation, and whether all of it is there.

Frames are counted in presentation order, from 0. At most a few of them are in memory.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from ..disk.fingerprints import file_stamp
from ..interrupt import checkpoint
from .streams import displayed_frames, first_displayed_frame, open_video, video_stream

ONE_PACKET_ONE_FRAME_FORMATS = frozenset({"mov", "matroska"})
ONE_PACKET_ONE_FRAME_CODECS = frozenset({"h264", "hevc", "vp9", "av1", "ffv1", "prores", "mjpeg"})
"""Where a packet is exactly one displayed picture: counting packets counts frames, and timestamps are dependable."""

NO_TIMESTAMP = -(2**63)
"""FFmpeg's number for a missing timestamp; None does not fit into an array."""


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
        last_duration: ticks for which the last frame is shown; 0 where the file does not say.
        rate: frames per second that the file claims or that its timestamps suggest; wrong where the rate varies.
    """

    pts: array[int]
    tick: Fraction
    last_duration: int
    rate: Fraction


@dataclass(frozen=True)
class VideoIndex:
    """All that :mod:`.read` needs to know of a file.

    Attributes:
        info: what :func:`probe` gives.
        times: when the frames are shown.
        keyframes: timestamps of the keyframes, ascending; empty where seeking is not dependable.
    """

    info: VideoInfo
    times: FrameTimes
    keyframes: array[int]

    def keyframe_before(self, frame: int) -> int:
        """Timestamp of the last keyframe at or before a frame."""
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
    (edit lists, MPEG-TS, AVI, GIF ...). The answer is cached as long as the file's size and time stay the same.

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


def video_index(path: Path) -> VideoIndex:
    """Size, times and keyframes of a video file; cached as :func:`probe` is.

    Raises:
        FileNotFoundError, ValueError: as :func:`probe`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    return _index_of(path, file_stamp(path))


@lru_cache(maxsize=64)
def _index_of(path: Path, _stamp: tuple[int, int]) -> VideoIndex:
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
        claim: frames that the container says it has; 0 where it does not say.
        missing: seconds between the end of the last packet and the end that the container claims.
    """

    pts: array[int]
    keyframes: array[int]
    last: int
    one_to_one: bool
    damaged: bool
    claim: int
    missing: Fraction


def _survey(container: av.container.InputContainer, stream: av.VideoStream) -> _Survey:
    pts, keyframes = array("q"), array("q")
    final, end, damaged = (NO_TIMESTAMP, 0), 0, False
    one_to_one = (
        container.format.name.split(",")[0] in ONE_PACKET_ONE_FRAME_FORMATS
        and stream.codec_context.name in ONE_PACKET_ONE_FRAME_CODECS
    )
    for packet in container.demux(stream):
        checkpoint()
        if not packet.size:
            continue
        if packet.is_corrupt:
            damaged = True
        elif packet.pts is None or packet.is_discard:
            one_to_one = False
        else:
            duration = packet.duration or 0
            final, end = max(final, (packet.pts, duration)), max(end, packet.pts + duration)
            pts.append(packet.pts)
            if packet.is_keyframe:
                keyframes.append(packet.pts)
    one_to_one = one_to_one and bool(keyframes) and pts[0] == keyframes[0] == min(pts) and len(set(pts)) == len(pts)
    missing = _declared_end(stream) - end * stream.time_base
    return _Survey(pts, keyframes, final[1], one_to_one, damaged, stream.frames, missing)


def _declared_end(stream: av.VideoStream) -> Fraction:
    """Seconds at which the stream ends, as Matroska says instead of a frame count; 0 elsewhere."""
    duration = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if duration is None:
        return Fraction(0)
    hours, minutes, seconds = (Fraction(part) for part in duration.groups())
    return hours * 3600 + minutes * 60 + seconds


def _check_complete(path: Path, packets: _Survey, frames: int, damaged: bool, fps: Fraction) -> None:
    """Raise ValueError if the file holds less than it says it does."""
    claim = packets.claim
    # Frames that an edit list hides are no damage: then all packets are there.
    cut = 0 < frames < claim and (packets.damaged or _count_packets(path, ignore_editlist="1") < claim)
    if packets.missing > 1:  # one second of grace: the claim need not be exact to the frame
        claim, cut = len(packets.pts) + round(packets.missing * fps), True
    if cut or (damaged and frames):
        claim_text = f"says it has {claim} frames, but only" if claim else "is damaged: only the first"
        raise ValueError(
            f"{path} {claim_text} {len(_times_by_decoding(path)[0])} can be read: copy the file again, or convert it to H.264"
        )


def _count_packets(path: Path, **options: str) -> int:
    with open_video(path, **options) as container:
        count = 0
        for packet in container.demux(video_stream(path, container)):
            checkpoint()
            count += bool(packet.size) and not packet.is_corrupt
        return count


def _times_by_decoding(path: Path) -> tuple[array[int], int, bool]:
    """What can be decoded, up to the end or the first damage: timestamps, the last frame's duration, whether it is damaged."""
    pts, last = array("q"), 0
    with open_video(path) as container:
        for frame in displayed_frames(container, video_stream(path, container)):
            if frame is None:
                return pts, last, True
            pts.append(NO_TIMESTAMP if frame.pts is None else frame.pts)
            last = frame.duration or 0
    return pts, last, False
