"""Video files: every frame carries its own number in its pixels, so that reading is checked against what was written."""

from __future__ import annotations

import itertools
import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from longvie_core.media.concat import concat
from longvie_core.media.probe import frame_times, probe
from longvie_core.media.read import read_frames, stretch
from longvie_core.media.sound import cut_sound, has_sound
from longvie_core.media.streams import TAG_OPTIONS
from longvie_core.media.write import VideoWriter
from tests.helpers.numbered_video import HEIGHT, WIDTH, encode, heard, number_in, numbered, tone


def write(path: Path, frames: list[np.ndarray], fps: Fraction = Fraction(16), **settings: object) -> Path:
    height, width = frames[0].shape[:2]
    with VideoWriter(path, width, height, fps, **settings) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").copy() for frame in container.decode(video=0)]


TAG = "Tag that is long enough to be found, and then damaged; it ends with g"


def tagged(path: Path) -> Path:
    """8 numbered frames and half a second of sound, with ``TAG`` as a tag of the file and of its streams."""
    with av.open(str(path), "w") as output:
        output.metadata["title"] = TAG
        pictures = output.add_stream("libx264", rate=16, options={"crf": "4"})
        pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = output.add_stream("aac", rate=44100, layout="mono")
        for stream in (pictures, sound):
            stream.metadata.update({"title": TAG, "handler_name": TAG})
        for number in range(8):
            output.mux(pictures.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        output.mux(pictures.encode(None))
        for start in range(0, 22528, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def damage_tags(path: Path) -> Path:
    """Put bytes into every ``TAG`` that are no UTF-8."""
    data, tag = path.read_bytes(), TAG.encode()
    assert tag in data
    path.write_bytes(data.replace(tag, tag.replace(b"damaged", b"dama\xff\xe9d")))
    return path


def noise(count: int, width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


FILES = {
    "b-frames.mp4": ("libx264", {"g": "12", "bf": "3"}),
    "open-gop.mp4": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "intra-refresh.mp4": ("libx264", {"g": "12", "x264-params": "intra-refresh=1"}),
    "all-intra.mp4": ("libx264", {"g": "1"}),
    "b-frames.mkv": ("libx264", {"g": "12", "bf": "3"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12"}),
    "vp8-hidden-frames.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "transport.ts": ("libx264", {"g": "12", "bf": "3"}),
    "old.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "picture.gif": ("gif", {}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    frames = [numbered(number) for number in range(60)]
    for name, (codec, options) in FILES.items():
        encode(folder / name, frames, codec, options=options, pix_fmt="rgb8" if codec == "gif" else "yuv420p")
    return folder


class TestReading:
    @pytest.mark.parametrize("name", FILES)
    def test_numbers_are_exact(self, files: Path, name: str) -> None:
        info = probe(files / name)
        assert (info.width, info.height, info.frames, info.has_audio, info.rotation) == (WIDTH, HEIGHT, 60, False, 0)
        if not name.endswith("gif"):
            assert info.fps == 16
        for frames in (range(60), range(0, 1), range(11, 14), range(30, 45), range(59, 60), range(5, 50, 17), range(0)):
            assert [number_in(frame) for frame in read_frames(files / name, frames)] == list(frames)

    @pytest.mark.parametrize("name", ["b-frames.mp4", "open-gop.mp4", "transport.ts"])
    def test_a_window_has_the_pixels_of_reading_from_the_start(self, files: Path, name: str) -> None:
        whole = decode(files / name)
        for start in (0, 13, 24, 35, 59):
            for frame, expected in zip(read_frames(files / name, range(start, 60)), whole[start:], strict=True):
                np.testing.assert_array_equal(frame, expected)

    def test_past_the_end(self, files: Path) -> None:
        path = files / "b-frames.mp4"
        with pytest.raises(ValueError, match=r"b-frames.mp4 has 60 frames \(0 .. 59\), but frame 61 was asked for"):
            read_frames(path, range(55, 62))
        got = [number_in(frame) for frame in read_frames(path, range(57, 63), repeat_last=True)]
        assert got == [57, 58, 59, 59, 59, 59]
        assert [number_in(frame) for frame in read_frames(path, range(70, 72), repeat_last=True)] == [59, 59]

    @pytest.mark.parametrize("frames", [range(-1, 3), range(5, 0, -1)])
    def test_senseless_numbers(self, files: Path, frames: range) -> None:
        with pytest.raises(ValueError, match="must be ascending and not negative"):
            read_frames(files / "b-frames.mp4", frames)

    def test_size_stretches_with_bicubic_and_does_not_crop(self, files: Path) -> None:
        path = files / "b-frames.mp4"
        (frame,) = read_frames(path, range(21, 22))
        (small,) = read_frames(path, range(21, 22), size=(48, 48))
        np.testing.assert_array_equal(small, Image.fromarray(frame).resize((48, 48), Image.Resampling.BICUBIC))
        assert stretch(frame, (WIDTH, HEIGHT)) is frame

    def test_variable_frame_rate_counts_frames_not_time(self, tmp_path: Path) -> None:
        times = list(itertools.accumulate([0, 10, 500, 3, 40, 900, 41, 40, 2000, 33]))
        path = encode(tmp_path / "vfr.mkv", [numbered(n) for n in range(10)], times=times, options={"g": "4"})
        assert probe(path).frames == 10
        assert [number_in(frame) for frame in read_frames(path, range(2, 9))] == list(range(2, 9))

    def test_frames_that_share_a_timestamp(self, tmp_path: Path) -> None:
        times = [0, 40, 40, 80, 80, 80, 120, 160]
        path = encode(tmp_path / "same.mkv", [numbered(n) for n in range(8)], "ffv1", pix_fmt="bgr0", times=times)
        assert probe(path).frames == 8
        assert [number_in(frame) for frame in read_frames(path, range(2, 7))] == list(range(2, 7))

    @pytest.mark.parametrize("angle", [90, 180, 270])
    def test_display_rotation(self, tmp_path: Path, angle: int) -> None:
        path = encode(tmp_path / "turned.mp4", [numbered(n) for n in range(3)])
        upright = list(read_frames(path, range(3)))
        cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[angle]  # the matrix turns clockwise
        data = bytearray(path.read_bytes())
        matrix = data.index(b"tkhd") + 4 + 40
        data[matrix : matrix + 36] = struct.pack(
            ">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30
        )
        path.write_bytes(data)
        info = probe(path)
        assert info.rotation == 360 - angle
        assert (info.width, info.height) == ((WIDTH, HEIGHT) if angle == 180 else (HEIGHT, WIDTH))
        for frame, expected in zip(read_frames(path, range(3)), upright, strict=True):
            np.testing.assert_array_equal(frame, np.rot90(expected, -angle // 90))

    def test_an_edit_list_hides_frames(self, tmp_path: Path) -> None:
        encode(tmp_path / "whole.mp4", [numbered(n) for n in range(40)], options={"g": "12", "bf": "0"})
        with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "cut.mp4"), "w") as output:
            stream = source.streams.video[0]
            copy = output.add_stream_from_template(stream, opaque=True)
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = copy
                    packet.pts = packet.dts = packet.pts - 7 * packet.duration  # before 0: not shown
                    output.mux(packet)
        path = tmp_path / "cut.mp4"
        with av.open(str(path)) as container:
            assert sum(bool(packet.size) for packet in container.demux(video=0)) == 40
        assert probe(path).frames == 33
        assert [number_in(frame) for frame in read_frames(path, range(33))] == list(range(7, 40))
        assert [number_in(frame) for frame in read_frames(path, range(20, 22))] == [27, 28]

    def test_ten_bits_alpha_and_odd_sizes(self, tmp_path: Path) -> None:
        odd = [numbered(n, 35, 41) for n in range(5)]
        path = encode(tmp_path / "odd.mp4", odd, pix_fmt="yuv444p")
        assert (probe(path).width, probe(path).height) == (35, 41)
        assert [number_in(frame) for frame in read_frames(path, range(5))] == list(range(5))

        deep = [frame.astype(np.uint16) * 257 for frame in odd]
        path = encode(tmp_path / "deep.mkv", deep, "ffv1", pix_fmt="gbrp10le", source="rgb48le")
        for frame, expected in zip(read_frames(path, range(5)), odd, strict=True):
            assert np.abs(frame.astype(int) - expected).max() <= 1

        alpha = np.random.default_rng(1).integers(0, 256, (41, 35, 1), np.uint8)
        clear = [np.concatenate([frame, alpha], axis=-1) for frame in odd]
        path = encode(tmp_path / "alpha.mkv", clear, "ffv1", pix_fmt="bgra", source="rgba")
        for frame, expected in zip(read_frames(path, range(5)), odd, strict=True):
            np.testing.assert_array_equal(frame, expected)

    def test_full_range_video_keeps_black_and_white(self, tmp_path: Path) -> None:
        frames = [np.full((HEIGHT, WIDTH, 3), level, np.uint8) for level in (0, 10, 128, 245, 255)]
        path = tmp_path / "full.webm"
        with av.open(str(path), "w") as output:
            stream = output.add_stream("libvpx-vp9", rate=16, options={"lossless": "1"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.color_range = av.video.reformatter.ColorRange.JPEG
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                output.mux(stream.encode(picture.reformat(format="yuv420p", dst_color_range="JPEG")))
            output.mux(stream.encode(None))
        for frame, expected in zip(read_frames(path, range(5)), frames, strict=True):
            assert np.abs(frame.astype(int) - expected).max() <= 4

    def test_a_changed_file_is_looked_at_again(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.mkv", noise(3), codec="lossless")
        assert probe(path).frames == 3
        write(path, noise(5), codec="lossless")
        assert probe(path).frames == 5

    def test_audio_is_seen(self, tmp_path: Path) -> None:
        path = tmp_path / "sound.mp4"
        silent = write(tmp_path / "silent.mp4", [numbered(n) for n in range(8)])
        concat([silent], path, fps=Fraction(16), audio_from=tone(tmp_path / "tone.wav", 1))
        assert probe(path).has_audio
        assert probe(path).frames == 8


class TestBadFiles:
    def test_missing_and_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "no.mp4", tmp_path):
            with pytest.raises(FileNotFoundError, match=f"{path.name}: there is no such file"):
                probe(path)

    def test_not_a_video(self, tmp_path: Path) -> None:
        path = tmp_path / "text.mp4"
        path.write_text("this is no video")
        with pytest.raises(ValueError, match=r"text.mp4 cannot be opened as a video"):
            probe(path)

    def test_a_playlist_opens_nothing(self, tmp_path: Path) -> None:
        encode(tmp_path / "secret.ts", [numbered(0)] * 5)
        path = tmp_path / "list.mp4"
        for playlist in (
            "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.ts\n#EXT-X-ENDLIST\n",
            "ffconcat version 1.0\nfile secret.ts\n",
        ):
            path.write_text(playlist)
            with pytest.raises(ValueError, match=r"list.mp4 cannot be opened as a video"):
                probe(path)

    def test_audio_only(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"tone.wav holds only audio"):
            probe(tone(tmp_path / "tone.wav", 1))

    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    def test_damaged_tags_are_no_obstacle(self, tmp_path: Path, suffix: str) -> None:
        """Bytes that are not UTF-8 in the tags of the file and of its streams, read by the PyAV that is installed."""
        path = damage_tags(tagged(tmp_path / f"tags{suffix}"))
        info = probe(path)
        assert (info.frames, info.width, info.height, info.has_audio) == (8, WIDTH, HEIGHT, True)
        assert len(frame_times(path).pts) == 8
        assert [number_in(frame) for frame in read_frames(path, range(8))] == list(range(8))
        assert has_sound(path)
        cut_sound(path, range(2, 4), tmp_path / "cut.wav")
        with av.open(str(path), **TAG_OPTIONS) as container:
            tags = [container.metadata, *(stream.metadata for stream in container.streams)]
            damaged = [tag for tag in tags for tag in tag.values() if tag.startswith("Tag")]
            assert len(damaged) >= 2 and all(tag.endswith("g") and tag != TAG for tag in damaged)

        clip = damage_tags(write(tmp_path / "clip.mp4", [numbered(n) for n in range(8)], metadata={"prompt": TAG}))
        concat([clip, clip], tmp_path / "joined.mp4", fps=Fraction(16), audio_from=path)
        assert [number_in(frame) for frame in read_frames(tmp_path / "joined.mp4", range(16))] == [*range(8), *range(8)]

    def test_no_frames(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.y4m"
        path.write_bytes(b"YUV4MPEG2 W96 H64 F16:1 Ip C420jpeg\n")
        with pytest.raises(ValueError, match=r"empty.y4m has a video stream without a single readable frame"):
            probe(path)

    def test_no_readable_frame(self, tmp_path: Path) -> None:
        path = write(tmp_path / "blank.mp4", noise(10))
        data = bytearray(path.read_bytes())
        media = data.index(b"mdat") + 4
        data[media:] = bytes(len(data) - media)
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"blank.mp4 has a video stream without a single readable frame"):
            probe(path)

    @pytest.mark.parametrize("options", [{"g": "12", "bf": "3"}, {"g": "12", "bf": "0"}])
    def test_a_cut_mp4_says_how_much_is_left(self, tmp_path: Path, options: dict) -> None:
        path = encode(tmp_path / "cut.mp4", noise(40), options=options, container={"movflags": "+faststart"})
        with av.open(str(path)) as container:
            packets = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
        path.write_bytes(path.read_bytes()[: packets[24] + 7])
        with pytest.raises(ValueError, match=r"cut.mp4 says it has 40 frames, but only 25 can be read"):
            probe(path)

    def test_a_cut_mp4_without_its_table(self, tmp_path: Path) -> None:
        path = encode(tmp_path / "cut.mp4", noise(10))
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(ValueError, match=r"cut.mp4 cannot be opened as a video .* incomplete"):
            probe(path)

    def test_a_cut_mkv(self, tmp_path: Path) -> None:
        path = write(tmp_path / "cut.mkv", noise(60), codec="lossless")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"cut.mkv says it has 60 frames, but only (29|30) can be read"):
            probe(path)

    def test_damage_inside_names_the_frame(self, tmp_path: Path) -> None:
        path = write(tmp_path / "hole.mp4", noise(40))
        with av.open(str(path)) as container:
            packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
        data = bytearray(path.read_bytes())
        position, size = packets[20]
        data[position + size // 3 : position + size] = bytes(size - size // 3)
        path.write_bytes(data)
        frames = read_frames(path, range(18, 24))
        next(frames), next(frames)
        with pytest.raises(ValueError, match=r"hole.mp4: frame 20 is damaged"):
            next(frames)


class TestWriting:
    @pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (35, 41)])
    def test_lossless_is_bit_equal(self, tmp_path: Path, size: tuple[int, int]) -> None:
        frames = noise(9, *size)
        path = write(tmp_path / "a.mkv", frames, codec="lossless")
        assert probe(path) == probe(path)
        assert (probe(path).fps, probe(path).frames) == (16, 9)
        for frame, expected in zip(read_frames(path, range(9)), frames, strict=True):
            np.testing.assert_array_equal(frame, expected)
        (last,) = read_frames(path, range(8, 9))
        np.testing.assert_array_equal(last, frames[8])

    @pytest.mark.parametrize("codec,suffix", [("h264", ".mp4"), ("lossless", ".mkv")])
    def test_equal_frames_give_equal_bytes(self, tmp_path: Path, codec: str, suffix: str) -> None:
        first = write(tmp_path / f"a{suffix}", noise(20), codec=codec).read_bytes()
        assert write(tmp_path / f"b{suffix}", noise(20), codec=codec).read_bytes() == first
        assert write(tmp_path / f"c{suffix}", noise(20, seed=1), codec=codec).read_bytes() != first

    def test_h264_keeps_colours_and_tags_its_matrix(self, tmp_path: Path) -> None:
        colours = [(250, 5, 5), (5, 250, 5), (5, 5, 250), (255, 255, 255), (0, 0, 0), (127, 127, 127), (200, 100, 50)]
        frames = [np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for colour in colours]
        path = write(tmp_path / "a.mp4", frames, crf=4)
        for frame, expected in zip(read_frames(path, range(len(frames))), frames, strict=True):
            assert np.abs(frame.astype(int) - expected).max() <= 4
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert not stream.codec_context.has_b_frames
            assert (int(stream.codec_context.colorspace), int(stream.codec_context.color_range)) == (
                6,
                1,
            )  # BT.601, MPEG

    def test_metadata_survives(self, tmp_path: Path) -> None:
        metadata = {
            "prompt": json.dumps({"1": {"class_type": "Ünï «x»"}}),
            "workflow": json.dumps({"nodes": [1] * 5000}),
        }
        path = write(tmp_path / "a.mp4", noise(2), metadata=metadata)
        concat([path], tmp_path / "b.mp4", fps=Fraction(16), metadata=metadata)
        for name in ("a.mp4", "b.mp4"):
            with av.open(str(tmp_path / name)) as container:
                assert {key: container.metadata[key] for key in metadata} == metadata
        path = write(tmp_path / "a.mkv", noise(2), codec="lossless", metadata=metadata)
        with av.open(str(path)) as container:
            assert {key: container.metadata[key.upper()] for key in metadata} == metadata

    def test_the_index_comes_first(self, tmp_path: Path) -> None:
        data = write(tmp_path / "a.mp4", noise(2)).read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")

    @pytest.mark.parametrize("codec,suffix", [("h264", ".mp4"), ("lossless", ".mkv")])
    def test_an_error_leaves_the_old_file_and_nothing_else(self, tmp_path: Path, codec: str, suffix: str) -> None:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"old")
        with (
            pytest.raises(RuntimeError, match="stop"),
            VideoWriter(path, WIDTH, HEIGHT, Fraction(16), codec=codec) as writer,
        ):
            for frame in noise(5):
                writer.write(frame)
            assert path.read_bytes() == b"old"
            raise RuntimeError("stop")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_no_frame_is_an_error(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ValueError, match=r"a.mp4: no frame was written"),
            VideoWriter(tmp_path / "a.mp4", 32, 32, 16),
        ):
            pass
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "name,width,settings,message",
        [
            ("a.mp4", 31, {}, "needs even width and height, not 31x32"),
            ("a.mkv", 32, {}, "needs the file name ending .mp4"),
            ("a.mp4", 32, {"codec": "lossless"}, "needs the file name ending .mkv"),
            ("a.mp4", 32, {"codec": "av1"}, "codec 'av1' is not one of h264, lossless"),
            ("a.mp4", 32, {"crf": 52}, "crf 52 is outside 0 .. 51"),
        ],
    )
    def test_bad_settings(self, tmp_path: Path, name: str, width: int, settings: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            VideoWriter(tmp_path / name, width, 32, Fraction(16), **settings)

    @pytest.mark.parametrize("frame", [np.zeros((32, 48, 3), np.uint8), np.zeros((32, 32, 3)), np.zeros((32, 32), np.uint8)])
    def test_bad_frames(self, tmp_path: Path, frame: np.ndarray) -> None:
        message = r"a.mp4: frame 0 is .* expected uint8 \[32, 32, 3\]"
        with pytest.raises(ValueError, match=message), VideoWriter(tmp_path / "a.mp4", 32, 32, Fraction(16)) as writer:
            writer.write(frame)


class TestConcat:
    @pytest.mark.parametrize("fps", [Fraction(16), Fraction(24000, 1001), Fraction(25, 2)])
    def test_frames_are_the_clips_frames_and_time_runs_evenly(self, tmp_path: Path, fps: Fraction) -> None:
        clips = []
        for clip, count in enumerate((17, 1, 40)):
            frames = [numbered(100 * clip + n) for n in range(count - 5)] + noise(min(5, count), seed=clip)
            clips.append(write(tmp_path / f"{clip}.mp4", frames, fps))
        concat(clips, tmp_path / "all.mp4", fps=fps)
        expected = [frame for clip in clips for frame in decode(clip)]
        got = decode(tmp_path / "all.mp4")
        assert len(got) == len(expected) == probe(tmp_path / "all.mp4").frames
        for frame, wanted in zip(got, expected, strict=True):
            np.testing.assert_array_equal(frame, wanted)
        with av.open(str(tmp_path / "all.mp4")) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            assert stream.start_time == 0
            assert [packet.pts * stream.time_base for packet in packets] == [k / fps for k in range(len(expected))]
            assert all(packet.dts == packet.pts and packet.duration * stream.time_base == 1 / fps for packet in packets)
        assert probe(tmp_path / "all.mp4").fps == fps
        # and seeking over the joints works
        for frame, wanted in zip(read_frames(tmp_path / "all.mp4", range(15, 20)), expected[15:20], strict=True):
            np.testing.assert_array_equal(frame, wanted)

    def test_equal_clips_give_equal_bytes(self, tmp_path: Path) -> None:
        clips = [write(tmp_path / f"{clip}.mp4", noise(5, seed=clip)) for clip in range(2)]
        for name in ("a.mp4", "b.mp4"):
            concat(clips, tmp_path / name, fps=Fraction(16), audio_from=tone(tmp_path / "tone.wav", 1))
        assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()

    @pytest.mark.parametrize(
        "name,codec,kept",
        [
            ("t.wav", "pcm_s16le", "aac"),
            ("t.m4a", "aac", "aac"),
            ("t.mka", "ac3", "ac3"),
            ("t.mp3", "libmp3lame", "mp3"),
            ("t.flac", "flac", "flac"),
        ],
    )
    def test_audio_is_cut_to_the_video(self, tmp_path: Path, name: str, codec: str, kept: str) -> None:
        clips = [write(tmp_path / f"{clip}.mp4", [numbered(n) for n in range(20)]) for clip in range(2)]
        sound = tone(tmp_path / name, 6, codec)
        concat(clips, tmp_path / "all.mp4", fps=Fraction(16), audio_from=sound)
        with av.open(str(tmp_path / "all.mp4")) as container:
            assert container.streams.audio[0].codec_context.codec.canonical_name == kept
            assert container.streams.video[0].start_time == 0
            assert abs(container.duration / av.time_base - 2.5) < 0.01
            assert float(container.streams.audio[0].duration * container.streams.audio[0].time_base) <= 2.501
        start, end, samples = heard(tmp_path / "all.mp4")
        assert abs(start) < 0.03
        assert 2.4 < end < 2.65
        # The sine grows in proportion to time: a line through its loudness is 0 where the sound began.
        times = np.array([0.5, 1.0, 1.5])
        places = ((times - start) * 44100).astype(int)
        loudness = [np.sqrt(np.mean(samples[place - 2205 : place + 2205] ** 2)) for place in places]
        slope, height = np.polyfit(times, loudness, 1)
        assert abs(-height / slope) < 0.008
        assert len(decode(tmp_path / "all.mp4")) == 40

    def test_audio_keeps_its_place_against_the_picture(self, tmp_path: Path) -> None:
        """MPEG-TS starts at some time above 0; sound that began with the picture must do so again."""
        clip = write(tmp_path / "0.mp4", [numbered(n) for n in range(32)])
        concat([clip], tmp_path / "both.mp4", fps=Fraction(16), audio_from=tone(tmp_path / "t.wav", 2))
        with av.open(str(tmp_path / "both.mp4")) as source, av.open(str(tmp_path / "both.ts"), "w") as output:
            copies = {s.index: output.add_stream_from_template(s, opaque=True) for s in source.streams}
            for packet in source.demux():
                if packet.size:
                    packet.stream = copies[packet.stream.index]
                    output.mux(packet)
        with av.open(str(tmp_path / "both.ts")) as container:
            assert container.streams.video[0].start_time > 0
        concat([clip], tmp_path / "again.mp4", fps=Fraction(16), audio_from=tmp_path / "both.ts")
        before, after = heard(tmp_path / "both.mp4"), heard(tmp_path / "again.mp4")
        assert abs(before[0] - after[0]) < 0.001
        np.testing.assert_array_equal(before[2][:40000], after[2][:40000])

    def test_short_audio_is_left_short(self, tmp_path: Path) -> None:
        clip = write(tmp_path / "0.mp4", [numbered(n) for n in range(32)])
        concat([clip], tmp_path / "all.mp4", fps=Fraction(16), audio_from=tone(tmp_path / "t.wav", 0.5))
        assert 0.45 < heard(tmp_path / "all.mp4")[1] < 0.6
        assert probe(tmp_path / "all.mp4").frames == 32

    def test_clips_that_do_not_fit(self, tmp_path: Path) -> None:
        first = write(tmp_path / "0.mp4", noise(3))
        cases = {
            "other size": write(tmp_path / "1.mp4", noise(3, 64, 64)),
            "other rate": write(tmp_path / "2.mp4", noise(3), Fraction(30)),
            "other codec": write(tmp_path / "3.mkv", noise(3), codec="lossless"),
        }
        for second in cases.values():
            with pytest.raises(ValueError, match=f"{second.name} .* was not encoded as .*0.mp4 was"):
                concat([first, second], tmp_path / "all.mp4", fps=Fraction(16))
        reordered = encode(tmp_path / "b.mp4", noise(20), options={"bf": "3"})
        with pytest.raises(ValueError, match="b.mp4 has B-frames"):
            concat([reordered], tmp_path / "all.mp4", fps=Fraction(16))
        with pytest.raises(ValueError, match="no clips to join"):
            concat([], tmp_path / "all.mp4", fps=Fraction(16))
        with pytest.raises(ValueError, match="need the file name ending .mp4"):
            concat([first], tmp_path / "all.mkv", fps=Fraction(16))
        with pytest.raises(FileNotFoundError, match="9.mp4"):
            concat([first, tmp_path / "9.mp4"], tmp_path / "all.mp4", fps=Fraction(16))
        with pytest.raises(ValueError, match="0.mp4 has no audio"):
            concat([first], tmp_path / "all.mp4", fps=Fraction(16), audio_from=first)
        assert not (tmp_path / "all.mp4").exists()
        assert not list(tmp_path.glob("*.part"))

    def test_clips_of_different_content_have_equal_headers(self, tmp_path: Path) -> None:
        headers = set()
        for name, frames in {
            "black": [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 30,
            "noise": noise(30),
            "one": noise(1),
        }.items():
            with av.open(str(write(tmp_path / f"{name}.mp4", frames, crf=len(frames)))) as container:
                headers.add(container.streams.video[0].codec_context.extradata)
        assert len(headers) == 1
