"""Video files with PyAV: stream frames in, stream frames out, join clips, carry audio over.

Nothing here holds more than a few frames. Frames are counted in presentation order, from 0, and are uint8 RGB
arrays [H, W, 3].
"""

from __future__ import annotations

import heapq
import itertools
import math
import re
import wave
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .files import publish, temporary_name, write_atomically

READ_OPTIONS = {
    # A «video» may be a playlist that names other files or addresses: read only the file given, as a real format.
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mxf,nut,yuv4mpegpipe,"
    "h264,hevc,aac,ac3,aiff,flac,mp3,wav",
}
# A damaged tag must not keep a video from being read. PyAV raises at one unless told otherwise; from 19 on it never does, and
# no longer takes the argument.
TAG_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
ONE_PACKET_ONE_FRAME_FORMATS = frozenset({"mov", "matroska"})
ONE_PACKET_ONE_FRAME_CODECS = frozenset({"h264", "hevc", "vp9", "av1", "ffv1", "prores", "mjpeg"})
"""Where a packet is exactly one displayed picture: counting packets counts frames, and timestamps are dependable."""

NO_TIMESTAMP = -(2**63)
"""FFmpeg's mark for it; None does not fit into an array."""

MP4_AUDIO_CODECS = frozenset({"aac", "mp3", "opus", "flac", "alac", "ac3", "eac3"})
"""Audio that players accept inside mp4; anything else is transcoded to AAC."""

AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})

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
SAMPLE_BYTES = 2
"""16-bit samples in the WAV files that are written here; what is made of them is AAC."""

PREROLL = Fraction(1)
"""Seconds of sound that are decoded before the wanted part: codecs carry something over from packet to packet."""

AVCOL_SPC_SMPTE170M = 6
"""BT.601: what ffmpeg takes where a file does not say, so that readers that ignore the tag are right as well."""
SUFFIXES = {"h264": ".mp4", "lossless": ".mkv"}


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
class _Index:
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
    return _index(path).info


def frame_times(path: Path) -> FrameTimes:
    """When each frame of a video is shown. Edit lists are obeyed; without timestamps the claimed rate counts.

    Raises:
        FileNotFoundError, ValueError: as :func:`probe`; and ValueError where time runs backwards.
    """
    times = _index(path).times
    back = np.flatnonzero(np.diff(np.asarray(times.pts)) < 0)
    if back.size:
        raise ValueError(
            f"{path}: time runs backwards at frame {back[0] + 1}, so the file was probably joined from several: "
            "convert it to one video with even time first"
        )
    return times


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
    index = _index(path)
    have = index.info.frames
    if any(later < number for number, later in itertools.pairwise(frames)) or (len(frames) and frames[0] < 0):
        raise ValueError(f"frame numbers {frames} must be ascending and not negative")
    if len(frames) and frames[-1] >= have and not repeat_last:
        raise ValueError(f"{path} has {have} frames (0 .. {have - 1}), but frame {frames[-1]} was asked for")
    return _read(path, index, frames, size)


def stretch(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 picture [H, W, 3] to ``size`` = (width, height), without cropping, by Pillow's bicubic filter.

    This is the released code's rule, which its weights were used with: 832x480 becomes 640x352 although the aspect
    differs.
    """
    if (frame.shape[1], frame.shape[0]) == tuple(size):
        return frame
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))  # asarray would be read-only


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
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(
                f"{self.path}: frame {self.frames} is {frame.dtype} {list(frame.shape)}, "
                f"expected uint8 {list(self._shape)}"
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


def concat(
    paths: Sequence[Path],
    destination: Path,
    *,
    fps: Fraction,
    audio_from: Path | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Join clips into one mp4 without encoding again: frame k of the result is shown at k / fps.

    The result decodes to exactly the clips' frames, one clip after the other. It appears only when complete.

    Args:
        paths: clips with equal headers and without B-frames, as :class:`VideoWriter` writes them.
        audio_from: file whose first audio stream is laid under the video from its start, copied where mp4 can hold it,
            as AAC elsewhere, and cut to the video's length.
        metadata: as for :class:`VideoWriter`.

    Raises:
        FileNotFoundError, ValueError: naming the clip that is missing, damaged or different, or the file without audio.
    """
    if not paths:
        raise ValueError(f"{destination}: there are no clips to join")
    if destination.suffix.lower() != ".mp4":
        raise ValueError(f"{destination}: joined clips need the file name ending .mp4")
    seconds = sum(probe(path).frames for path in paths) / Fraction(fps)

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4", options=MP4_OPTIONS) as output:
            output.metadata.update(metadata or {})
            sources = [_joined_packets(paths, output, 1 / Fraction(fps))]
            if audio_from is not None:
                sources.append(_audio_packets(audio_from, output, seconds))
            # Interleaved by time, as players that stream expect it. The first packets are drawn before any is written,
            # so that every stream is known when the header is.
            for packet in heapq.merge(*sources, key=lambda packet: packet.dts * packet.time_base):
                output.mux(packet)

    write_atomically(destination, write)


def has_sound(path: Path) -> bool:
    """Whether a file holds sound that can be read: an audio stream with a decoder, and a packet in it.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no media file.
    """
    with _open(path) as container:
        stream = _sound_stream(container)
        return stream is not None and any(packet.size for packet in container.demux(stream))


def cut_sound(path: Path, frames: range, destination: Path) -> None:
    """Write the sound that is heard while some frames of a video are shown, as WAV (16 bit, the rate it has).

    It starts exactly when the first of the frames is shown: sound that begins later has silence in front of it. Up to the last
    frame of the video, it ends when the sound does.

    Args:
        path: a video with sound, see :func:`has_sound`.
        frames: consecutive frame numbers, at least one.
        destination: a ``.wav`` file.

    Raises:
        FileNotFoundError, ValueError: as :func:`probe`; and ValueError where the sound is damaged.
    """
    times = frame_times(path)
    begin = times.pts[frames.start] * times.tick
    end = times.pts[frames.stop] * times.tick if frames.stop < len(times.pts) else None
    with _open(path) as container:
        stream = _required_sound(path, container)
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        container.seek(math.floor(max(begin - PREROLL, Fraction(0)) / stream.time_base), stream=stream)
        window = (round(begin * rate), None if end is None else round(end * rate))
        write_wave(destination, rate, channels, _samples_within(path, container, stream, window))


def write_wave(destination: Path, rate: int, channels: int, blocks: Iterable[np.ndarray]) -> None:
    """Write blocks of int16 samples [n, channels] as a WAV file, which appears only when complete."""

    def write(temporary: Path) -> None:
        with wave.open(str(temporary), "wb") as file:
            file.setparams((channels, SAMPLE_BYTES, rate, 0, "NONE", "not compressed"))
            for block in blocks:
                file.writeframesraw(block.astype("<i2").tobytes())

    write_atomically(destination, write)


# --- reading ----------------------------------------------------------------------------------------------------


@contextmanager
def _open(path: Path, **options: str) -> Iterator[av.container.InputContainer]:
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


def _moving_pictures(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video streams; cover art does not count."""
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """The first stream of moving pictures."""
    streams = _moving_pictures(container)
    if not streams:
        kind = "only audio" if container.streams.audio else "no video"
        raise ValueError(f"{path} holds {kind}: give a file with a video stream")
    if streams[0].codec_context is None:
        raise ValueError(f"{path}: there is no decoder for its video: convert it to H.264 first")
    streams[0].thread_type = "SLICE"  # frame threads lose good frames next to damaged ones, and at times hide the error
    return streams[0]


def _index(path: Path) -> _Index:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    status = path.stat()
    return _index_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _index_of(path: Path, _size: int, _mtime_ns: int) -> _Index:
    with _open(path) as container:
        stream = _video_stream(path, container)
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
    first = _first_frame(path)
    rotation = round(first.rotation / 90) % 4 * 90
    width, height = first.width, first.height
    if rotation % 180:
        width, height, aspect = height, width, 1 / aspect
    info = VideoInfo(width, height, len(pts), fps, has_audio, rotation, aspect)
    keyframes = array("q", sorted(packets.keyframes) if packets.one_to_one else [])
    return _Index(info, FrameTimes(pts, tick, last, rate), keyframes)


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
    with _open(path, **options) as container:
        packets = container.demux(_video_stream(path, container))
        return sum(bool(packet.size) and not packet.is_corrupt for packet in packets)


def _times_by_decoding(path: Path) -> tuple[array[int], int, bool]:
    """Timestamps of the displayed frames up to the end or the first damage, the last one's duration, and whether there
    was damage."""
    pts, last = array("q"), 0
    with _open(path) as container:
        for frame in _displayed(container, _video_stream(path, container)):
            if frame is None:
                return pts, last, True
            pts.append(NO_TIMESTAMP if frame.pts is None else frame.pts)
            last = frame.duration or 0
    return pts, last, False


def _first_frame(path: Path) -> av.VideoFrame:
    with _open(path) as container:
        first = next(_displayed(container, _video_stream(path, container)), None)
    if first is None:
        raise ValueError(f"{path} has a video stream without a single readable frame: give another file")
    return first


def _displayed(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
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


def _numbered(path: Path, index: _Index, start: int) -> Iterator[tuple[int | None, av.VideoFrame | None]]:
    """Decoded frames with their numbers, from a keyframe at or before frame ``start`` on."""
    with _open(path) as container:
        stream = _video_stream(path, container)
        if not index.keyframes:
            yield from enumerate(_displayed(container, stream))
            return
        # Some containers seek by decoding time and land past the keyframe that was asked for: then from the beginning.
        for keyframe in (index.keyframe_before(start), index.times.pts[0]):
            container.seek(keyframe, stream=stream)
            frames = _displayed(container, stream)
            first = next(frames, None)
            number = index.number(first)
            if number is not None and number <= start:
                break
        for frame in itertools.chain([first], frames):
            yield index.number(frame), frame


def _read(path: Path, index: _Index, frames: Sequence[int], size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    last = index.info.frames - 1
    numbers = iter(frames)
    wanted = next(numbers, None)
    if wanted is None:
        return
    for number, frame in _numbered(path, index, min(wanted, last)):
        if number is None or frame is None or number > min(wanted, last):
            break
        if number == min(wanted, last):
            if frame.is_corrupt:
                break
            picture = _to_rgb(path, index.info, number, frame)
            picture = picture if size is None else stretch(picture, size)
            while wanted is not None and number == min(wanted, last):
                yield picture
                wanted = next(numbers, None)
            if wanted is None:
                return
    raise ValueError(f"{path}: frame {min(wanted, last)} is damaged: copy the file again, or export it anew")


def _to_rgb(path: Path, info: VideoInfo, number: int, frame: av.VideoFrame) -> np.ndarray:
    rgb = frame.to_ndarray(format="rgb24", src_color_range=frame.color_range)
    rgb = np.ascontiguousarray(np.rot90(rgb, info.rotation // 90))
    if rgb.shape != (info.height, info.width, 3):
        raise ValueError(
            f"{path}: frame {number} is {rgb.shape[1]}x{rgb.shape[0]}, the first one {info.width}x{info.height}: "
            "convert the video to one size"
        )
    return rgb


# --- joining ----------------------------------------------------------------------------------------------------


def _joined_packets(paths: Sequence[Path], output: av.container.OutputContainer, step: Fraction) -> Iterator[av.Packet]:
    """The clips' packets with frame k at ``k * step`` seconds."""
    number, joined, headers = 0, None, None
    for path in paths:
        with _open(path) as container:
            stream = _video_stream(path, container)
            context = stream.codec_context
            if joined is None:
                joined = output.add_stream_from_template(stream, opaque=True)
                joined.time_base = step
                headers = (context.name, context.width, context.height, context.pix_fmt, context.extradata)
            if (context.name, context.width, context.height, context.pix_fmt, context.extradata) != headers:
                raise ValueError(
                    f"{path} ({context.name}, {context.width}x{context.height}) was not encoded as {paths[0]} was, so "
                    "they cannot be joined without encoding: give clips of one size and rate, written in one way"
                )
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.pts != packet.dts:
                    raise ValueError(f"{path} has B-frames: clips to be joined must be written without them")
                packet.stream, packet.time_base = joined, step
                packet.pts = packet.dts = number
                packet.duration = 1
                number += 1
                yield packet


def _sound_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    """The first audio stream that there is a decoder for."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def _required_sound(path: Path, container: av.container.InputContainer) -> av.AudioStream:
    stream = _sound_stream(container)
    if stream is None:
        raise ValueError(f"{path} has no audio that can be read: give another file, or none")
    return stream


@contextmanager
def _damage_by_name(path: Path) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(
            f"{path}: its sound is damaged ({error.strerror}): copy the file again, or give another file or none as audio"
        ) from error


def _samples_within(
    path: Path, container: av.container.InputContainer, stream: av.AudioStream, window: tuple[int, int | None]
) -> Iterator[np.ndarray]:
    """int16 samples [n, channels] from the first to before the last of ``window``, in samples of the file's clock."""
    position, stop = window
    resampler = av.AudioResampler(format="s16", layout=stream.codec_context.layout, rate=stream.codec_context.sample_rate)
    heard = None
    with _damage_by_name(path):
        for frame in container.decode(stream):
            for part in resampler.resample(frame):
                block = part.to_ndarray().reshape(part.samples, -1)
                if heard is None:
                    heard = 0 if frame.pts is None else round(frame.pts * frame.time_base * part.rate)
                start, heard = heard, heard + len(block)
                if stop is not None and start >= stop:
                    return
                block = block[max(position - start, 0) : None if stop is None else stop - start]
                if not len(block):
                    continue
                if start > position:
                    yield np.zeros((start - position, block.shape[1]), np.int16)
                    position = start
                position += len(block)
                yield block


def _audio_packets(path: Path, output: av.container.OutputContainer, seconds: Fraction) -> Iterator[av.Packet]:
    """The first audio stream's packets for mp4, cut off after ``seconds``."""
    with _open(path) as container, _damage_by_name(path):
        stream = _required_sound(path, container)
        origin = _first_moment(path, container, stream)
        copied = stream.codec_context.codec.canonical_name in MP4_AUDIO_CODECS
        for packet in (_copied if copied else _as_aac)(container, stream, output, origin):
            start = packet.pts * packet.time_base
            if start >= seconds:
                return
            packet.duration = min(packet.duration, math.ceil((seconds - start) / packet.time_base))
            yield packet


def _first_moment(path: Path, container: av.container.InputContainer, sound: av.AudioStream) -> Fraction:
    """Seconds on the file's clock at which its first picture is shown; in one without pictures, where its sound begins.

    That is not where the video stream begins: a recording may start with pictures that cannot be decoded.
    """
    first = _first_frame(path) if _moving_pictures(container) else None
    if first is not None and first.pts is not None:
        return first.pts * first.time_base
    return Fraction((sound.start_time or 0) * sound.time_base)


def _copied(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    output: av.container.OutputContainer,
    origin: Fraction,
) -> Iterator[av.Packet]:
    target = output.add_stream_from_template(stream, opaque=True)
    shift = round(origin / stream.time_base)
    for packet in container.demux(stream):
        if packet.size and packet.pts is not None:
            packet.pts -= shift
            packet.dts = packet.pts
            packet.stream = target
            yield packet


def _as_aac(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    output: av.container.OutputContainer,
    origin: Fraction,
) -> Iterator[av.Packet]:
    rate = stream.codec_context.sample_rate
    rate = rate if rate in AAC_RATES else 48000
    layout = {1: "mono", 6: "5.1"}.get(stream.codec_context.channels, "stereo")
    target = output.add_stream("aac", rate=rate, layout=layout)
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    position = None
    for frame in container.decode(stream):
        if position is None:
            position = round((frame.pts * frame.time_base - origin) * rate)
        for part in resampler.resample(frame):
            part.pts, part.time_base = position, Fraction(1, rate)
            position += part.samples
            yield from target.encode(part)
    yield from target.encode(None)
