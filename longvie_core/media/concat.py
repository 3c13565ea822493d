"""Clips joined into one video by stream copy: no picture is encoded again."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av

from ..disk.atomic import write_atomically
from ..interrupt import checkpoint, result_of
from .probe import probe
from .sound import audio_packets
from .streams import open_video, video_stream
from .write import MP4_OPTIONS


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
        fps: frames per second of the result.
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
        with _written(temporary) as output:
            output.metadata.update(metadata or {})
            sources = [_joined_packets(paths, output, 1 / Fraction(fps))]
            if audio_from is not None:
                sources.append(audio_packets(audio_from, output, seconds))
            # By time, as players that stream expect it. heapq draws a first packet of each before any is written, so that
            # both streams are there when the header is.
            for packet in heapq.merge(*sources, key=lambda packet: packet.dts * packet.time_base):
                checkpoint()
                output.mux(packet)

    write_atomically(destination, write)


@contextmanager
def _written(path: Path) -> Iterator[av.container.OutputContainer]:
    """An mp4 that is open for a ``with`` block, and can be given up at any time.

    Closing it reads all that was written once more, to put the index in front of it: a second and more a gigabyte.
    """
    output = av.open(str(path), "w", format="mp4", options=MP4_OPTIONS)
    try:
        yield output
    except BaseException:
        with suppress(OSError):
            path.unlink()  # without a name it cannot be read again
        with suppress(av.FFmpegError):  # the error that brought us here is the one to show
            output.close()
        raise
    pool = ThreadPoolExecutor(1)
    try:
        result_of(pool.submit(output.close))
    finally:
        # An interrupt does not wait: the file has lost its name by then. Windows keeps the name while it is open.
        pool.shutdown(wait=os.name == "nt")


def _joined_packets(paths: Sequence[Path], output: av.container.OutputContainer, step: Fraction) -> Iterator[av.Packet]:
    """The clips' packets with frame k at ``k * step`` seconds."""
    number, joined, first_header = 0, None, None
    for path in paths:
        with open_video(path) as container:
            stream = video_stream(path, container)
            context = stream.codec_context
            header = (context.name, context.width, context.height, context.pix_fmt, context.extradata)
            if joined is None:
                joined = output.add_stream_from_template(stream, opaque=True)
                joined.time_base = step
                first_header = header
            if header != first_header:
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
