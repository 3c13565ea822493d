"""Footage: every source picture carries its number, every file's times are chosen here, and what must be shown when
follows from those times alone."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from longvie_core.media.concat import concat
from longvie_core.media.footage import Footage, crop
from longvie_core.media.probe import probe
from longvie_core.media.read import read_frames
from longvie_core.media.write import VideoWriter
from longvie_core.plan import ClipPlan
from tests.helpers.numbered_video import encode, heard, number_in, numbered, tone
from tests.helpers.real_videos import real_video

WIDTH, HEIGHT = 32, 16
NTSC, FILM = Fraction(30000, 1001), Fraction(24000, 1001)
FINE = Fraction(1, 720_000)
"""A clock that holds milliseconds and the times of all rates used here (25, 30, 29.97 ... fps) to within 1.4 us."""

CODECS = {
    ".mp4": ("libx264", "yuv420p", {"g": "12", "bf": "2"}),
    ".mov": ("libx264", "yuv420p", {"g": "12", "bf": "0"}),
    ".mkv": ("libx264", "yuv420p", {"g": "12", "bf": "2"}),
    ".webm": ("libvpx-vp9", "yuv420p", {"g": "12", "deadline": "realtime"}),
    ".ts": ("libx264", "yuv420p", {"g": "12", "bf": "2"}),
    ".flv": ("libx264", "yuv420p", {"g": "12", "bf": "0"}),
    ".avi": ("mpeg4", "yuv420p", {"g": "12", "q": "2"}),
    ".gif": ("gif", "rgb8", {}),
}


def film(path: Path, times: Sequence[Fraction], frames: Sequence[np.ndarray] | None = None, rate: Fraction = NTSC) -> Path:
    """A video whose picture n is shown at ``times[n]`` seconds, as near as the file's own clock comes to it."""
    frames = frames or [numbered(number, WIDTH, HEIGHT) for number in range(len(times))]
    codec, pix_fmt, options = CODECS[path.suffix]
    clock = 1 / Fraction(rate) if path.suffix == ".avi" else Fraction(1, 100) if path.suffix == ".gif" else FINE
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = clock
        for time, frame in zip(times, frames, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(time / clock), clock
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def film_in_milliseconds(path: Path, times: Sequence[int], last: int) -> Path:
    """A Matroska file of exactly these timestamps, whose last picture lasts for ``last``."""
    tick = Fraction(1, 1000)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        stream.codec_context.time_base = tick
        for number, (time, end) in enumerate(itertools.pairwise([*times, times[-1] + last])):
            picture = av.VideoFrame.from_ndarray(numbered(number, WIDTH, HEIGHT), format="rgb24")
            picture.pts, picture.time_base = time, tick
            for packet in stream.encode(picture):
                packet.duration = end - time
                output.mux(packet)
    return path


def turn(path: Path, angle: int) -> None:
    """Let an mp4 ask to be shown turned clockwise."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[angle]
    matrix = np.array([cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = matrix
    path.write_bytes(data)


def at(rate: Fraction, count: int, start: Fraction = Fraction(0)) -> list[Fraction]:
    return [start + number / Fraction(rate) for number in range(count)]


def shown(footage: Footage, numbers: range | None = None) -> list[int]:
    frames = footage.read(range(footage.frames) if numbers is None else numbers)
    return [number_in(frame) for frame in frames]


def opened(path: Path, fps: Fraction = Fraction(16), **settings: object) -> Footage:
    return Footage.open(path, Fraction(fps), WIDTH, HEIGHT, **settings)


class TestEvenRate:
    @pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".ts", ".flv", ".avi"])
    @pytest.mark.parametrize("rate", [16, FILM, 25, NTSC, 60], ids=lambda rate: f"{float(rate):.5g}")
    def test_a_frame_is_what_the_source_shows_then(self, tmp_path: Path, suffix: str, rate: Fraction | int) -> None:
        """Whatever ticks the container rounds to, and wherever its clock begins."""
        count, start = 50, Fraction(0) if suffix == ".avi" else Fraction(217, 1000) + Fraction(1, 3000)
        path = film(tmp_path / f"even{suffix}", at(rate, count, start), rate=rate)
        for fps in (Fraction(16), FILM, rate):
            footage = opened(path, fps)
            assert footage.frames == math.ceil(count * fps / rate)
            assert shown(footage) == [math.floor(k * rate / fps) for k in range(footage.frames)]

    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
    def test_the_shortest_videos_map_one_to_one(self, tmp_path: Path, suffix: str, count: int) -> None:
        """16 fps in milliseconds lasts 62 or 63 of them a picture: that must not make a further frame."""
        path = film(tmp_path / f"short{suffix}", at(Fraction(16), count), rate=Fraction(16))
        assert shown(opened(path)) == list(range(count))

    def test_a_gif_of_16_fps_maps_one_to_one(self, tmp_path: Path) -> None:
        """Its clock has 10 ms ticks: pictures last 6, 7, 6, 6 ... of them."""
        path = film(tmp_path / "even.gif", [Fraction(t, 100) for t in (0, 6, 13, 19, 25, 31, 38, 44, 50, 56, 63, 69)], rate=16)
        assert shown(opened(path)) == list(range(12))

    def test_one_to_one_over_minutes(self, tmp_path: Path) -> None:
        """Rounded timestamps do not add up to a lost or a doubled frame."""
        frames = [numbered(number % 256, WIDTH, HEIGHT) for number in range(3000)]
        path = film(tmp_path / "long.mkv", at(FILM, 3000), frames, rate=FILM)
        footage = opened(path, FILM)
        assert footage.frames == 3000
        assert shown(footage, range(2900, 3000)) == [number % 256 for number in range(2900, 3000)]
        assert opened(path).frames == math.ceil(3000 * 16 / FILM)

    def test_milliseconds_that_moved_to_a_finer_clock(self, tmp_path: Path) -> None:
        """Matroska copied into mp4: the timestamps stay rounded, but the mp4 no longer tells."""
        for rate, start in itertools.product(
            (Fraction(16), FILM, NTSC), (Fraction(0), Fraction(217, 1000) + Fraction(1, 3000))
        ):
            film(tmp_path / "a.mkv", at(rate, 50, start), rate=rate)
            with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "a.mp4"), "w") as output:
                copy = output.add_stream_from_template(source.streams.video[0], opaque=True)
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = copy
                        output.mux(packet)
            with av.open(str(tmp_path / "a.mp4")) as container:
                assert container.streams.video[0].time_base < Fraction(1, 2000)
            assert shown(opened(tmp_path / "a.mp4", rate)) == list(range(50))

    def test_one_frame_repeats_for_its_time(self, tmp_path: Path) -> None:
        path = film(tmp_path / "one.mp4", [Fraction(0)], [numbered(7, WIDTH, HEIGHT)], rate=Fraction(2))
        assert shown(opened(path)) == [7] * 8


class TestVaryingRate:
    MILLISECONDS = tuple(itertools.accumulate((0, 10, 500, 3, 40, 900, 41, 40, 2000, 33, 100)))

    @pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".ts", ".flv"])
    def test_a_frame_is_what_the_source_shows_then(self, tmp_path: Path, suffix: str) -> None:
        times = [Fraction(time, 1000) for time in self.MILLISECONDS]
        path = film(tmp_path / f"vfr{suffix}", [time + Fraction(3, 10) for time in times])
        footage = opened(path)
        # The end of the last picture is the only thing that the containers do not agree about.
        assert times[-1] * 16 < footage.frames <= (times[-1] + Fraction(1, 8)) * 16
        expected = [sum(time <= Fraction(k, 16) for time in times) - 1 for k in range(footage.frames)]
        assert shown(footage) == expected
        assert len(set(expected)) < len(times)  # some pictures are too short to be seen: that is no error
        assert shown(footage, range(9, 40)) == expected[9:40]

    def test_a_gap_in_an_even_video(self, tmp_path: Path) -> None:
        """Dropped pictures leave the others one to one, although 16 fps is uneven in milliseconds."""
        kept = [n for n in range(60) if n not in (7, 8, 30, 31, 32, 33, 50)]
        frames = [numbered(n, WIDTH, HEIGHT) for n in kept]
        for start in (Fraction(0), Fraction(217, 1000) + Fraction(1, 3000)):
            path = film(tmp_path / "gap.mkv", [start + Fraction(n, 16) for n in kept], frames, rate=Fraction(16))
            assert shown(opened(path)) == [max(n for n in kept if n <= k) for k in range(60)]

    def test_a_held_last_picture(self, tmp_path: Path) -> None:
        path = film_in_milliseconds(tmp_path / "held.mkv", [0, 40, 80, 120, 160], last=2000)
        assert shown(opened(path)) == [0, 1, 3, *[4] * 32]

    def test_an_end_that_is_rounded_up(self, tmp_path: Path) -> None:
        """563 + 63 ms is more than the ten frames' 625, but not one frame more."""
        path = film_in_milliseconds(tmp_path / "gap.mkv", [0, 63, 125, 188, 313, 375, 438, 500, 563], last=63)
        assert shown(opened(path)) == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8]

    def test_pictures_with_one_timestamp_show_the_last(self, tmp_path: Path) -> None:
        times = [0, 40, 40, 200, 200, 200, 300, 400]
        path = encode(tmp_path / "same.mkv", [numbered(n) for n in range(8)], "ffv1", pix_fmt="bgr0", times=times)
        assert shown(opened(path))[:7] == [0, 2, 2, 2, 5, 6, 6]

    def test_a_gif_with_delays_of_its_own(self, tmp_path: Path) -> None:
        delays = (10, 40, 7, 100, 20, 20)
        frames = [Image.fromarray(numbered(number, WIDTH, HEIGHT)) for number in range(len(delays))]
        durations = [10 * delay for delay in delays]
        frames[0].save(tmp_path / "own.gif", save_all=True, append_images=frames[1:], duration=durations, loop=0)
        ends = list(itertools.accumulate(delays))
        expected = [sum(end <= 6.25 * k for end in ends) for k in range(math.ceil(ends[-1] / 6.25))]
        assert shown(opened(tmp_path / "own.gif")) == expected


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("read") / "a.mp4", at(Fraction(25), 100), rate=Fraction(25))


class TestRead:
    def test_windows_are_parts_of_the_whole(self, path: Path) -> None:
        footage = opened(path)
        whole = list(footage.read(range(footage.frames)))
        assert len(whole) == footage.frames == 64
        for numbers in (range(0), range(0, 1), range(13, 40), range(63, 64), range(3, 60, 7)):
            for frame, number in zip(footage.read(numbers), numbers, strict=True):
                np.testing.assert_array_equal(frame, whole[number])

    def test_each_source_picture_is_decoded_once(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        footage = Footage.open(path, Fraction(60), 16, 16)
        converted = []
        whole = av.VideoFrame.to_ndarray
        monkeypatch.setattr(
            "longvie_core.media.read._to_rgb",
            lambda path, info, number, frame: converted.append(number) or whole(frame, format="rgb24"),
        )
        for fit in ("stretch", "crop"):
            converted.clear()
            frames = list(replace(footage, fit=fit).read(range(footage.frames)))
            assert converted == list(range(100))
            assert len({id(frame) for frame in frames}) == 100

    def test_past_the_end(self, path: Path) -> None:
        footage = opened(path)
        with pytest.raises(ValueError, match=r"a.mp4 has 64 frames at 16 fps \(0 .. 63\), but frame 64 was asked for"):
            footage.read(range(60, 65))
        frames = list(footage.read(range(62, 70), repeat_last=True))
        assert [number_in(frame) for frame in frames] == [96, 98, 98, 98, 98, 98, 98, 98]

    @pytest.mark.parametrize("numbers", [range(-1, 3), range(5, 0, -1)])
    def test_senseless_numbers(self, path: Path, numbers: range) -> None:
        with pytest.raises(ValueError, match="must be ascending and not negative"):
            opened(path).read(numbers)

    def test_a_file_that_changes_its_length(self, tmp_path: Path) -> None:
        footage = opened(film(tmp_path / "a.mp4", at(Fraction(16), 10), rate=Fraction(16)))
        film(tmp_path / "a.mp4", at(Fraction(16), 20), rate=Fraction(16))
        with pytest.raises(ValueError, match=r"a.mp4 has changed since it was opened"):
            footage.read(range(3))

    def test_digest(self, path: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy.mp4"
        copy.write_bytes(path.read_bytes())
        first = opened(copy)
        assert first.digest() == opened(path).digest() == first.digest()
        others = [opened(path, Fraction(25)), replace(first, width=64), replace(first, height=64), opened(path, fit="crop")]
        data = bytearray(path.read_bytes())
        data[data.index(b"mdat") + 20] ^= 1
        copy.write_bytes(data)
        digests = {opened(path).digest(), first.digest(), *(other.digest() for other in others)}
        assert len(digests) == 2 + len(others)

    @pytest.mark.parametrize(
        "settings,message",
        [
            ({"fit": "pad"}, "fit 'pad' is not one of stretch, crop"),
            ({"fps": Fraction(0)}, "fps 0 is not positive"),
            ({"width": 0}, "size 0x16 is empty"),
        ],
    )
    def test_bad_settings(self, path: Path, settings: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Footage.open(path, **{"fps": Fraction(16), "width": 32, "height": 16} | settings)


class TestFit:
    def test_stretch_is_the_references_rule(self, tmp_path: Path) -> None:
        source = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
        path = encode(tmp_path / "a.mkv", [source], "ffv1", pix_fmt="bgr0")
        (frame,) = Footage.open(path, Fraction(16), 64, 32).read(range(1))
        np.testing.assert_array_equal(frame, Image.fromarray(source).resize((64, 32), Image.Resampling.BICUBIC))

    @pytest.mark.parametrize("size,covering", [((32, 32), (64, 32)), ((48, 12), (48, 24)), ((80, 20), (80, 40))])
    def test_crop_covers_and_cuts_the_middle(self, size: tuple[int, int], covering: tuple[int, int]) -> None:
        frame = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
        covered = np.asarray(Image.fromarray(frame).resize(covering, Image.Resampling.BICUBIC))
        left, top = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
        expected = covered[top : top + size[1], left : left + size[0]]
        np.testing.assert_array_equal(crop(frame, size), expected)

    @pytest.mark.parametrize("angle", [0, 90, 180])
    @pytest.mark.parametrize("aspect", [Fraction(1), Fraction(16, 11)])
    def test_crop_keeps_a_circle_round(self, tmp_path: Path, aspect: Fraction, angle: int) -> None:
        """Also where pixels are not square, and where such a picture is shown on its side."""
        y, x = np.mgrid[:120, :160] - np.array([60, 80])[:, None, None] + 0.5
        disc = np.repeat(255 * ((x * float(aspect)) ** 2 + y**2 < 41**2)[..., None], 3, -1).astype(np.uint8)
        path = tmp_path / "disc.mp4"
        with av.open(str(path), "w") as output:
            stream = output.add_stream("libx264", rate=16)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            output.mux(stream.encode(av.VideoFrame.from_ndarray(disc, format="rgb24")))
            output.mux(stream.encode(None))
        if angle:
            turn(path, angle)
        assert probe(path).pixel_aspect == (1 / aspect if angle == 90 else aspect)
        (frame,) = Footage.open(path, Fraction(16), 96, 96, "crop").read(range(1))
        for axis in (0, 1):
            inside = np.flatnonzero((frame[..., 0] > 127).any(axis))
            assert abs(np.ptp(inside) - 64.6) <= 1  # 82 of 120 lines become 65.6 of 96
            assert abs(inside.mean() - 47.5) <= 1

    def test_a_picture_that_fits_is_left_alone(self) -> None:
        frame = np.zeros((16, 32, 3), np.uint8)
        assert crop(frame, (32, 16)) is frame


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    return opened(film(tmp_path_factory.mktemp("summary") / "a.mp4", at(Fraction(25), 250), rate=Fraction(25)))


class TestSummary:
    @pytest.mark.parametrize(
        "plan,sentence",
        [
            ({}, "1 clip of 81 (81 frames used, 79 dropped) - choose tail 'pad' to keep them"),
            ({"tail": "pad"}, "2 clips of 81 (160 frames used, 1 added by repeating the last and cut off again)"),
            ({"frames": 17, "overlap": 4}, "12 clips of 17 (160 frames used)"),
            ({"source_frames": 100}, "1 clip of 81 (81 frames used, 79 dropped) - the plan ends there"),
        ],
    )
    def test_says_what_becomes_of_the_frames(self, footage: Footage, plan: dict, sentence: str) -> None:
        assert footage.summary(ClipPlan(**plan)) == f"250 frames at 25 fps become 160 at 16 fps: {sentence}"

    def test_varying_rate(self, tmp_path: Path) -> None:
        path = film(tmp_path / "a.mkv", [Fraction(time, 1000) for time in (0, 10, 900, 1300)])
        assert opened(path).summary(ClipPlan(frames=5)).startswith("4 frames at a varying rate become 22 at 16 fps: 5 clips")

    def test_too_short(self, tmp_path: Path) -> None:
        footage = opened(film(tmp_path / "a.mp4", at(Fraction(25), 1), rate=Fraction(25)))
        with pytest.raises(ValueError, match="has 1 frames, but one clip needs 81: give a longer video"):
            footage.summary(ClipPlan())


# --- sound ------------------------------------------------------------------------------------------------------

FLASHES = (Fraction(1), Fraction(11, 5), Fraction(18, 5))
SECONDS = 5


def lit(time: Fraction) -> bool:
    return any(flash <= time < flash + Fraction(3, 10) for flash in FLASHES)


def film_with_sound(path: Path, times: Sequence[Fraction], delay: Fraction = Fraction(0)) -> Path:
    """Light and sound burst out together at ``FLASHES``; both begin at ``delay`` on the file's clock."""
    rate = 48000
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"g": "12", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = FINE
        sound = output.add_stream("aac", rate=rate, layout="mono")
        for time in times:
            light = np.full((HEIGHT, WIDTH, 3), 255 * lit(time), np.uint8)
            picture = av.VideoFrame.from_ndarray(light, format="rgb24")
            picture.pts, picture.time_base = round((time + delay) / FINE), FINE
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
        samples = np.arange(SECONDS * rate)
        loud = sum((float(flash) * rate <= samples) & (samples < (float(flash) + 0.3) * rate) for flash in FLASHES)
        wave = (0.8 * loud * np.sin(samples * 0.2)).astype(np.float32)
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = start + round(delay * rate)
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def assembled(source: Path, destination: Path) -> Footage:
    """The footage at 16 fps with the source's sound, as a run puts it together."""
    footage = opened(source)
    clip = destination.with_name("clip.mp4")
    with VideoWriter(clip, WIDTH, HEIGHT, footage.fps) as writer:
        for frame in footage.read(range(footage.frames)):
            writer.write(frame)
    concat([clip], destination, fps=footage.fps, audio_from=source)
    return footage


def onsets(path: Path) -> tuple[list[float], list[float]]:
    """Seconds at which light and sound burst out."""
    light = np.array([frame.mean() > 127 for frame in read_frames(path, range(probe(path).frames))])
    start, _, samples = heard(path)
    loudness = np.convolve(np.abs(samples), np.ones(240) / 240, "same") > 0.2
    seen = np.flatnonzero(np.diff(light.astype(int)) == 1) + 1
    return list(seen / 16), list(start + (np.flatnonzero(np.diff(loudness.astype(int)) == 1) + 1) / 48000)


def assert_in_step(path: Path, flashes: Sequence[float]) -> None:
    seen, audible = onsets(path)
    assert len(seen) == len(audible) == len(flashes)
    for light, burst, flash in zip(seen, audible, flashes, strict=True):
        assert abs(burst - flash) < 0.01
        assert -0.01 < light - burst < 1 / 16 + 0.01  # the first output frame at or after the flash


IRREGULAR = sorted({Fraction(n, 30) for n in range(30 * SECONDS) if n % 7 and n % 11} | {Fraction(0), *FLASHES})


class TestSound:
    @pytest.mark.parametrize("times", [at(Fraction(25), 25 * SECONDS), IRREGULAR], ids=["25 fps", "varying"])
    @pytest.mark.parametrize("suffix,delay", [(".mp4", 0), (".mkv", 0), (".mkv", Fraction(7, 3)), (".ts", Fraction(7, 3))])
    def test_light_and_sound_stay_together(self, tmp_path: Path, times: list[Fraction], suffix: str, delay: Fraction) -> None:
        source = film_with_sound(tmp_path / f"flashes{suffix}", times, Fraction(delay))
        footage = assembled(source, tmp_path / "all.mp4")
        assert_in_step(tmp_path / "all.mp4", [float(flash) for flash in FLASHES])
        assert abs(footage.frames - 16 * SECONDS) <= 1
        with av.open(str(tmp_path / "all.mp4")) as container:
            picture, sound = (stream.duration * stream.time_base for stream in container.streams)
        assert abs(picture - sound) <= Fraction(1, 16)

    def test_an_edit_list_that_hides_the_beginning(self, tmp_path: Path) -> None:
        whole = film_with_sound(tmp_path / "whole.mp4", at(Fraction(25), 25 * SECONDS))
        cut = Fraction(17, 25)
        with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as output:
            copies = {stream.index: output.add_stream_from_template(stream, opaque=True) for stream in source.streams}
            for packet in source.demux():
                if packet.size:
                    packet.stream = copies[packet.stream.index]
                    packet.pts -= round(cut / packet.time_base)  # before 0: not shown
                    packet.dts = packet.pts
                    output.mux(packet)
        footage = assembled(tmp_path / "cut.mp4", tmp_path / "all.mp4")
        assert footage.frames == math.ceil((SECONDS - cut) * 16)
        assert_in_step(tmp_path / "all.mp4", [float(flash - cut) for flash in FLASHES])

    def test_a_recording_that_begins_between_keyframes(self, tmp_path: Path) -> None:
        """Its first pictures cannot be decoded; the sound must not run ahead by as much."""
        whole = film_with_sound(tmp_path / "whole.ts", at(Fraction(25), 25 * SECONDS))
        with av.open(str(whole)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        first = next(packet for packet in packets if packet.is_keyframe and packet is not packets[0])
        data = whole.read_bytes()
        (tmp_path / "cut.ts").write_bytes(data[: 3 * 188] + data[packets[2].pos :])  # the tables, and all after frame 1
        footage = assembled(tmp_path / "cut.ts", tmp_path / "all.mp4")
        lost = float((first.pts - packets[0].pts) * first.time_base)
        assert lost > 0.3
        assert abs(footage.frames - (SECONDS - lost) * 16) <= 1
        assert_in_step(tmp_path / "all.mp4", [float(flash) - lost for flash in FLASHES])


# --- what users bring -------------------------------------------------------------------------------------------


class TestOddFiles:
    @pytest.mark.parametrize(
        "name,codec,pix_fmt,source",
        [
            ("alpha.mkv", "ffv1", "bgra", "rgba"),
            ("alpha.mov", "prores_ks", "yuva444p10le", "rgba"),
            ("alpha.webm", "libvpx-vp9", "yuva420p", "rgba"),
            ("qtrle.mov", "qtrle", "argb", "rgba"),
            ("ten.mp4", "libx264", "yuv420p10le", "rgb48le"),
            ("ten.mkv", "libx265", "yuv420p10le", "rgb48le"),
            ("ten.mov", "prores_ks", "yuv422p10le", "rgb48le"),
            ("sixteen.mkv", "ffv1", "gray16le", "rgb48le"),
            ("odd.mp4", "libx264", "yuv444p", "rgb24"),
            ("odd.webm", "libvpx-vp9", "yuv420p", "rgb24"),
            ("odd.gif", "gif", "rgb8", "rgb24"),
        ],
    )
    @pytest.mark.parametrize("fit", ["stretch", "crop"])
    def test_alpha_depth_and_odd_sizes(
        self, tmp_path: Path, name: str, codec: str, pix_fmt: str, source: str, fit: str
    ) -> None:
        size = (35, 41) if name.startswith("odd") else (96, 64)
        frames = [numbered(number, *size) for number in range(12)]
        if source == "rgba":
            clear = np.full((*frames[0].shape[:2], 1), 128, np.uint8)
            frames = [np.concatenate([frame, clear], axis=-1) for frame in frames]
        if source == "rgb48le":
            frames = [frame.astype(np.uint16) * 257 for frame in frames]
        path = encode(tmp_path / name, frames, codec, pix_fmt=pix_fmt, source=source)
        footage = Footage.open(path, Fraction(16), 96, 112, fit)
        got = list(footage.read(range(footage.frames)))
        assert all(frame.shape == (112, 96, 3) and frame.dtype == np.uint8 for frame in got)
        if fit == "stretch":
            assert [number_in(frame) for frame in got] == list(range(12))
        assert len(got) == 12

    @pytest.mark.parametrize("angle", [90, 180, 270])
    def test_rotation(self, tmp_path: Path, angle: int) -> None:
        path = encode(tmp_path / "turned.mp4", [numbered(number) for number in range(3)])
        upright = list(read_frames(path, range(3)))
        turn(path, angle)
        for fit in ("stretch", "crop"):
            footage = Footage.open(path, Fraction(16), 64, 64, fit)
            for frame, expected in zip(footage.read(range(3)), upright, strict=True):
                turned = np.rot90(expected, -angle // 90)
                if fit == "crop":
                    high, wide = (16, 0) if angle % 180 else (0, 16)
                    turned = turned[high : turned.shape[0] - high, wide : turned.shape[1] - wide]
                turned = Image.fromarray(np.ascontiguousarray(turned)).resize((64, 64), Image.Resampling.BICUBIC)
                np.testing.assert_array_equal(frame, turned)

    def test_a_stream_without_a_container(self, tmp_path: Path) -> None:
        """It has no timestamps: the rate in its headers counts."""
        path = film(tmp_path / "a.mp4", at(Fraction(25), 50), rate=Fraction(25))
        with av.open(str(path)) as source, av.open(str(tmp_path / "bare.h264"), "w", format="h264") as output:
            copy = output.add_stream_from_template(source.streams.video[0], opaque=True)
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = copy
                    output.mux(packet)
        footage = opened(tmp_path / "bare.h264")
        assert footage.frames == 32
        assert shown(footage) == [k * 25 // 16 for k in range(32)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    noise = list(np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), np.uint8))
    path = encode(tmp_path_factory.mktemp("good") / "a.mp4", noise, container={"movflags": "+faststart"})
    return path.read_bytes()


class TestRefusedByName:
    def refused(self, path: Path, message: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=f"{re.escape(path.name)}.*{message}"):
            opened(path)

    def test_missing(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "no.mp4", "there is no such file")

    def test_zero_length(self, tmp_path: Path) -> None:
        for suffix in (".mp4", ".mkv", ".gif", ".avi"):
            (path := tmp_path / f"empty{suffix}").touch()
            self.refused(path, "cannot be opened as a video .*another kind of file, or incomplete")

    def test_text(self, tmp_path: Path) -> None:
        (path := tmp_path / "text.mp4").write_text("These are my holidays.\n" * 50)
        self.refused(path, "cannot be opened as a video")

    def test_pictures(self, tmp_path: Path) -> None:
        for kind in ("png", "jpeg", "webp"):
            path = tmp_path / f"{kind}.mp4"
            Image.fromarray(numbered(3)).save(path, kind)
            self.refused(path, "cannot be opened as a video")

    def test_only_sound(self, tmp_path: Path) -> None:
        self.refused(tone(tmp_path / "tone.wav", 1), "holds only audio: give a file with a video stream")
        self.refused(tone(tmp_path / "tone.m4a", 1, "aac"), "holds only audio")

    def test_the_table_is_missing(self, tmp_path: Path, good: bytes) -> None:
        (path := tmp_path / "cut.mp4").write_bytes(good[good.index(b"mdat") - 4 :])
        self.refused(path, "cannot be opened as a video .*incomplete")

    def test_the_pictures_are_cut(self, tmp_path: Path, good: bytes) -> None:
        (path := tmp_path / "cut.mp4").write_bytes(good[: len(good) * 2 // 3])
        self.refused(path, r"says it has 40 frames, but only 2\d can be read: copy the file again")

    def test_no_picture_is_left(self, tmp_path: Path, good: bytes) -> None:
        (path := tmp_path / "cut.mp4").write_bytes(good[: good.index(b"mdat") + 8])
        self.refused(path, "without a single readable frame|says it has 40 frames, but only 0")

    def test_damage_is_named_when_it_is_reached(self, tmp_path: Path, good: bytes) -> None:
        path = tmp_path / "hole.mp4"
        path.write_bytes(good)
        with av.open(str(path)) as container:
            packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
        position, size = packets[30]
        path.write_bytes(good[: position + size // 3] + bytes(size - size // 3) + good[position + size :])
        with pytest.raises(ValueError, match=r"hole.mp4: frame \d+ is damaged"):
            list(opened(path).read(range(40)))

    def test_time_that_runs_backwards(self, tmp_path: Path) -> None:
        """Two recordings joined byte by byte."""
        one = film(tmp_path / "one.ts", at(Fraction(25), 100), rate=Fraction(25)).read_bytes()
        (path := tmp_path / "two.ts").write_bytes(one + one)
        self.refused(path, "time runs backwards at frame 100, .* convert it to one video")


class TestRealVideo:
    def test_bikes(self) -> None:
        """250 frames at 25 fps; frame k at 16 fps is the source's frame 25 k / 16, rounded down."""
        path = real_video("bikes.mp4")
        footage = Footage.open(path, Fraction(16), 320, 176)
        assert (footage.frames, probe(path).frames) == (160, 250)
        wanted = {25 * k // 16: k for k in range(160)}
        assert len(wanted) == 160
        frames = footage.read(range(160))
        with av.open(str(path)) as container:
            for number, source in enumerate(container.decode(video=0)):
                if number in wanted:
                    picture = source.to_image().resize((320, 176), Image.Resampling.BICUBIC)
                    difference = np.abs(np.asarray(picture).astype(int) - next(frames))
                    assert difference.max() <= 2
        assert next(frames, None) is None
        assert footage.summary(ClipPlan()) == (
            "250 frames at 25 fps become 160 at 16 fps: 1 clip of 81 (81 frames used, 79 dropped) - "
            "choose tail 'pad' to keep them"
        )

    def test_a_window_of_bikes_is_part_of_the_whole(self) -> None:
        footage = Footage.open(real_video("bikes.mp4"), Fraction(16), 320, 176, "crop")
        whole = list(footage.read(range(96)))
        for frame, expected in zip(footage.read(range(80, 96)), whole[80:], strict=True):
            np.testing.assert_array_equal(frame, expected)

    def test_ntsc(self) -> None:
        footage = Footage.open(real_video("carphone_pristine.mp4"), Fraction(16), 176, 144)
        sources = list(read_frames(footage.path, range(120)))
        assert footage.frames == math.ceil(120 * 16 / NTSC) == 65
        for k, frame in enumerate(footage.read(range(65))):
            np.testing.assert_array_equal(frame, sources[math.floor(k * NTSC / 16)])

    def test_sound_of_bigbuckbunny(self, tmp_path: Path) -> None:
        source = real_video("bigbuckbunny.mp4")
        footage = assembled(source, tmp_path / "all.mp4")
        assert footage.frames == math.ceil(132 * 16 / 25) == 85
        start, end, samples = heard(tmp_path / "all.mp4")
        before = heard(source)
        assert start == before[0]
        assert abs(end - 85 / 16) <= 1 / 16
        np.testing.assert_array_equal(samples, before[2][: len(samples)])
