"""Sound of videos: every sample carries its own number, so that a cut is checked to the sample."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from longvie_core.media.concat import concat
from longvie_core.media.sound import cut_sound, has_sound, write_wave
from longvie_core.media.write import VideoWriter

RATE, FPS, SIZE = 8000, 10, 16
SECONDS = 4


def numbers(count: int) -> np.ndarray:
    """Samples [count, 2] that hold their own number: the low 15 bits, and its negative."""
    number = (np.arange(count) % 2**15).astype(np.int16)
    return np.stack([number, -number], axis=1)


def film(path: Path, *, delay: float = 0.0, start: float = 0.0, codec: str = "pcm_s16le", seconds: float = SECONDS) -> Path:
    """A video of ``SECONDS`` that begins at ``start`` on the file's clock, with numbered sound that begins ``delay`` later."""
    samples = numbers(int(seconds * RATE))
    with av.open(str(path), "w") as output:
        pictures = output.add_stream("ffv1" if path.suffix in (".mkv", ".nut") else "libx264", rate=FPS)
        pictures.width = pictures.height = SIZE
        pictures.pix_fmt = "yuv420p"
        sound = output.add_stream(codec, rate=RATE, layout="stereo")
        for number in range(SECONDS * FPS):
            picture = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), number, np.uint8), format="rgb24")
            picture.pts, picture.time_base = number + round(start * FPS), Fraction(1, FPS)
            output.mux(pictures.encode(picture))
        output.mux(pictures.encode(None))
        for first in range(0, len(samples), 1000):
            part = samples[first : first + 1000]
            frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), format="s16", layout="stereo")
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = first + round((start + delay) * RATE)
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def silent(path: Path, frames: int = 8) -> Path:
    with VideoWriter(path, SIZE, SIZE, Fraction(FPS)) as writer:
        for _ in range(frames):
            writer.write(np.zeros((SIZE, SIZE, 3), np.uint8))
    return path


def samples_of(path: Path) -> np.ndarray:
    """All samples [n, channels] of a WAV file, by the standard library."""
    with wave.open(str(path)) as file:
        assert (file.getsampwidth(), file.getframerate()) == (2, RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())


class TestHasSound:
    def test_by_kind_of_file(self, tmp_path: Path) -> None:
        write_wave(tmp_path / "some.wav", RATE, 1, [np.zeros((100, 1), np.int16)])
        write_wave(tmp_path / "none.wav", RATE, 1, [])
        assert has_sound(tmp_path / "some.wav") and not has_sound(tmp_path / "none.wav")
        assert has_sound(film(tmp_path / "film.mkv")) and not has_sound(silent(tmp_path / "silent.mp4"))

    def test_an_audio_stream_without_a_packet_is_silence(self, tmp_path: Path) -> None:
        assert not has_sound(film(tmp_path / "empty.mkv", seconds=0))

    def test_no_media_file(self, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("no video at all")
        with pytest.raises(ValueError, match=r"text.mp4 cannot be opened"):
            has_sound(tmp_path / "text.mp4")
        with pytest.raises(FileNotFoundError, match=r"gone.mp4"):
            has_sound(tmp_path / "gone.mp4")


class TestCutSound:
    @pytest.mark.parametrize("start", [0.0, 1.0])
    @pytest.mark.parametrize("frames", [range(0, 40), range(0, 10), range(15, 25), range(21, 40), range(39, 40)])
    def test_to_the_sample(self, tmp_path: Path, frames: range, start: float) -> None:
        cut_sound(film(tmp_path / "film.mkv", start=start), frames, tmp_path / "cut.wav")
        per_frame = RATE // FPS
        expected = numbers(SECONDS * RATE)[frames.start * per_frame : frames.stop * per_frame]
        np.testing.assert_array_equal(samples_of(tmp_path / "cut.wav"), expected)

    def test_sound_that_begins_later_has_silence_in_front(self, tmp_path: Path) -> None:
        source = film(tmp_path / "film.mkv", delay=1.5, seconds=2)
        cut_sound(source, range(10, 30), tmp_path / "cut.wav")
        got = samples_of(tmp_path / "cut.wav")
        assert not got[: RATE // 2].any()
        np.testing.assert_array_equal(got[RATE // 2 :], numbers(3 * RATE // 2))
        cut_sound(source, range(0, 10), tmp_path / "before.wav")
        assert not has_sound(tmp_path / "before.wav")

    def test_sound_that_ends_earlier_stays_short(self, tmp_path: Path) -> None:
        cut_sound(film(tmp_path / "film.mkv", seconds=2), range(10, 40), tmp_path / "cut.wav")
        np.testing.assert_array_equal(samples_of(tmp_path / "cut.wav"), numbers(2 * RATE)[RATE:])

    def test_sound_that_ends_later_goes_on_behind_the_last_frame(self, tmp_path: Path) -> None:
        """What the video is joined to may be longer than what was filmed: it is cut there."""
        cut_sound(film(tmp_path / "film.mkv", seconds=5), range(30, 40), tmp_path / "cut.wav")
        np.testing.assert_array_equal(samples_of(tmp_path / "cut.wav"), numbers(5 * RATE)[3 * RATE :])

    @pytest.mark.parametrize(("name", "codec"), [("film.mp4", "aac"), ("film.ts", "aac"), ("film.mkv", "flac")])
    def test_compressed_sound_is_in_its_place(self, tmp_path: Path, name: str, codec: str) -> None:
        """A saw tooth of one period in 4.096 s survives AAC; where it is shows to a few milliseconds."""
        cut_sound(film(tmp_path / name, codec=codec), range(15, 35), tmp_path / "cut.wav")
        got = samples_of(tmp_path / "cut.wav")[:, 0].astype(float)
        expected = numbers(SECONDS * RATE)[15 * 800 : 35 * 800, 0].astype(float)
        assert abs(len(got) - len(expected)) <= 1
        middle = slice(2000, 14000)
        assert abs(np.mean(got[middle] - expected[middle])) < 40  # 40 samples are 5 ms
        assert np.abs(got[middle] - expected[middle]).max() < 400

    def test_no_sound_and_damaged_sound_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"silent.mp4 has no audio that can be read: give another file, or none"):
            cut_sound(silent(tmp_path / "silent.mp4"), range(0, 4), tmp_path / "cut.wav")
        broken = film(tmp_path / "film.mkv", codec="flac")
        data = bytearray(broken.read_bytes())
        for place in range(len(data) // 2, len(data) - 600, 97):
            data[place : place + 40] = b"\xff" * 40
        broken.write_bytes(data)
        with pytest.raises(ValueError, match=r"film.mkv"):
            cut_sound(broken, range(0, 40), tmp_path / "cut.wav")
        assert not list(tmp_path.glob("cut.wav*"))


def test_waves_are_what_was_written(tmp_path: Path) -> None:
    blocks = [numbers(300)[:100], numbers(300)[100:101], numbers(300)[101:]]
    write_wave(tmp_path / "a.wav", RATE, 2, iter(blocks))
    np.testing.assert_array_equal(samples_of(tmp_path / "a.wav"), numbers(300))


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_a_wave_under_a_video_becomes_aac_of_its_length(tmp_path: Path, channels: int) -> None:
    clip = silent(tmp_path / "clip.mp4", frames=20)
    loud = (np.sin(np.arange(5 * RATE) / 9) * 9000).astype(np.int16)
    write_wave(tmp_path / "a.wav", RATE, channels, [np.repeat(loud[:, None], channels, axis=1)])
    concat([clip], tmp_path / "all.mp4", fps=Fraction(FPS), audio_from=tmp_path / "a.wav")
    with av.open(str(tmp_path / "all.mp4")) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        assert abs(float(stream.duration * stream.time_base) - 2) < 0.01
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert np.abs(samples[1000:15000]).max() > 0.1


def test_damaged_sound_under_a_video_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    clip, sound, rate = silent(tmp_path / "clip.mp4", frames=20), tmp_path / "sound.mp2", 32000
    with av.open(str(sound), "w") as output:
        stream = output.add_stream("mp2", rate=rate, layout="stereo")
        for first in range(0, 2 * rate, 1152):
            frame = av.AudioFrame.from_ndarray(numbers(1152).reshape(1, -1), format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    concat([clip], tmp_path / "fine.mp4", fps=Fraction(FPS), audio_from=sound)
    data = bytearray(sound.read_bytes())
    for place in range(len(data) // 2, len(data) - 600, 97):
        data[place : place + 40] = b"\xff" * 40
    sound.write_bytes(data)
    with pytest.raises(ValueError, match=r"sound.mp2: its sound is damaged .*: copy the file again, or give another file"):
        concat([clip], tmp_path / "all.mp4", fps=Fraction(FPS), audio_from=sound)
    assert not list(tmp_path.glob("all.mp4*"))
