"""Videos whose every frame carries its own number in its pixels, and sound whose time can be read from its samples."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, BITS = 96, 64, 8


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture whose left half shows ``number`` as 8 rows of black or white, and whose right half is coloured."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        frame[height * bit // BITS : height * (bit + 1) // BITS, : width // 2] = 255 * (number >> bit & 1)
    frame[:, width // 2 :] = (40 + number % 150, 90, 200 - number % 150)
    return frame


def number_in(frame: np.ndarray) -> int:
    height, width = frame.shape[:2]
    rows = [height * bit // BITS + height // BITS // 2 for bit in range(BITS)]
    return sum(int(frame[row, width // 4].mean() > 127) << bit for bit, row in enumerate(rows))


def encode(
    path: Path,
    frames: list[np.ndarray],
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    options: dict | None = None,
    source: str = "rgb24",
    times: list[int] | None = None,
    container: dict | None = None,
) -> Path:
    """Write a video by other means than the code under test; ``times`` in 1/1000 s."""
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=16, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=source)
            if times:
                picture.pts, picture.time_base = times[number], Fraction(1, 1000)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def tone(path: Path, seconds: float, codec: str = "pcm_s16le", rate: int = 44100) -> Path:
    """A sine that grows louder, so that its time can be read from its samples."""
    samples = np.arange(int(seconds * rate))
    wave = np.sin(2 * np.pi * 440 * samples / rate) * samples / rate / 10
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        for start in range(0, len(wave), 1024):
            part = (wave[start : start + 1024] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(part[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def heard(path: Path) -> tuple[float, float, np.ndarray]:
    """Start and end in seconds of what is heard, and the samples."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    rate = frames[0].sample_rate
    samples = np.concatenate([frame.to_ndarray().astype(np.float64)[0] for frame in frames])
    start = float(frames[0].pts * frames[0].time_base)
    return start, start + len(samples) / rate, samples
