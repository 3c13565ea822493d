"""Sound of video files: whether there is any, a part of it as WAV, and packets to lay under a joined video."""

from __future__ import annotations

import math
import wave
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..disk.atomic import write_atomically
from ..interrupt import checkpoint
from .probe import frame_times
from .streams import first_displayed_frame, moving_pictures, open_video

MP4_AUDIO_CODECS = frozenset({"aac", "mp3", "opus", "flac", "alac", "ac3", "eac3"})
"""Audio that players accept inside mp4; anything else is transcoded to AAC."""

AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})
"""Samples per second that AAC can have; anything else is resampled."""

SAMPLE_BYTES = 2
"""Bytes a sample of the WAV files written here: enough, since AAC is made of them in the end."""

PREROLL = Fraction(1)
"""Seconds of sound that are decoded before the part to be cut out: a packet depends on those before it."""


def has_sound(path: Path) -> bool:
    """Whether a file holds sound that can be read: an audio stream with a decoder, and a packet in it.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no media file.
    """
    with open_video(path) as container:
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
    with open_video(path) as container:
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
                checkpoint()
                file.writeframesraw(block.astype("<i2").tobytes())

    write_atomically(destination, write)


def audio_packets(path: Path, output: av.container.OutputContainer, seconds: Fraction) -> Iterator[av.Packet]:
    """Packets of a file's first audio stream for an mp4, from the file's first picture on, cut off after ``seconds``.

    Raises:
        FileNotFoundError, ValueError: no such file, none with sound, or damaged sound.
    """
    with open_video(path) as container, _damage_by_name(path):
        stream = _required_sound(path, container)
        origin = _first_moment(path, container, stream)
        packets = _copied if stream.codec_context.codec.canonical_name in MP4_AUDIO_CODECS else _as_aac
        for packet in packets(container, stream, output, origin):
            start = packet.pts * packet.time_base
            if start >= seconds:
                return
            packet.duration = min(packet.duration, math.ceil((seconds - start) / packet.time_base))
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
    """Decoding errors become ones that name the file."""
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
    decoded = None
    with _damage_by_name(path):
        for frame in container.decode(stream):
            for part in resampler.resample(frame):
                block = part.to_ndarray().reshape(part.samples, -1)
                if decoded is None:
                    decoded = 0 if frame.pts is None else round(frame.pts * frame.time_base * part.rate)
                start, decoded = decoded, decoded + len(block)
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


def _first_moment(path: Path, container: av.container.InputContainer, sound: av.AudioStream) -> Fraction:
    """Seconds on the file's clock at which its first picture is shown; in one without pictures, where its sound begins.

    That is not where the video stream begins: a recording may start with pictures that cannot be decoded.
    """
    first = first_displayed_frame(path) if moving_pictures(container) else None
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
