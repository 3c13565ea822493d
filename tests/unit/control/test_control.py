"""Controls and raw depth on disk: windows, polarity, lengths, digests, and the authors' folder layout."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longvie_core.control.clips_folder import load_clips_folder, write_clips_folder
from longvie_core.control.control import Control
from longvie_core.control.raw_depth import RawDepth, RawDepthWriter
from longvie_core.media.write import VideoWriter
from longvie_core.plan import ClipPlan

WIDTH, HEIGHT = 32, 16
PLAN = ClipPlan(width=WIDTH, height=HEIGHT, frames=9)


def pictures(count: int, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def video(path: Path, frames: np.ndarray) -> Path:
    with VideoWriter(path, frames.shape[2], frames.shape[1], Fraction(16), codec="lossless") as writer:
        for frame in frames:
            writer.write(frame)
    return path


class TestContinuousControl:
    def test_windows_share_their_boundary_frame(self, tmp_path: Path) -> None:
        frames = pictures(25)
        control = Control.from_video(video(tmp_path / "d.mkv", frames), "dense")
        assert (control.frames, control.width, control.height, control.per_clip) == (25, WIDTH, HEIGHT, False)
        assert control.length(9, 1) == 25
        plan = PLAN.resolved(control.length(9, 1))
        for clip in range(3):
            np.testing.assert_array_equal(np.stack(list(control.window(plan, clip))), frames[8 * clip : 8 * clip + 9])
            np.testing.assert_array_equal(control.first_frame(plan, clip), frames[8 * clip])

    def test_near_white_depth_is_turned_round_before_it_is_stretched(self, tmp_path: Path) -> None:
        frames = pictures(9, width=40, height=24)
        as_is = Control.from_video(video(tmp_path / "white.mkv", frames), "dense", near_is_black=False)
        turned = Control.from_video(video(tmp_path / "black.mkv", 255 - frames), "dense")
        plan = PLAN.resolved(9)
        got = np.stack(list(as_is.window(plan, 0)))
        np.testing.assert_array_equal(got, np.stack(list(turned.window(plan, 0))))
        expected = Image.fromarray(255 - frames[3]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(got[3], expected)

    def test_tracks_are_never_turned_round(self, tmp_path: Path) -> None:
        frames = pictures(9)
        control = Control.from_video(video(tmp_path / "t.mkv", frames), "sparse", near_is_black=False)
        np.testing.assert_array_equal(np.stack(list(control.window(PLAN.resolved(9), 0))), frames)

    @pytest.mark.parametrize("have", [20, 30])
    def test_padding_repeats_the_last_frame_of_the_plan(self, tmp_path: Path, have: int) -> None:
        frames = pictures(have)
        control = Control.from_video(video(tmp_path / "d.mkv", frames), "dense")
        plan = ClipPlan(WIDTH, HEIGHT, 9, tail="pad", source_frames=20)
        assert plan.clips == 3
        got = np.stack(list(control.window(plan, 2)))
        np.testing.assert_array_equal(got, frames[[16, 17, 18, 19, 19, 19, 19, 19, 19]])

    def test_too_short_says_what_is_needed(self, tmp_path: Path) -> None:
        control = Control.from_video(video(tmp_path / "d.mkv", pictures(15)), "dense")
        plan = PLAN.resolved(25)
        assert len(list(control.window(plan, 0))) == 9
        with pytest.raises(ValueError, match=r"d.mkv has 15 frames, but clip 2 needs 17"):
            control.window(plan, 1)

    def test_digest(self, tmp_path: Path) -> None:
        frames = pictures(25)
        control = Control.from_video(video(tmp_path / "a.mkv", frames), "dense")
        plan = PLAN.resolved(25)
        digests = [control.digest(plan, clip) for clip in range(3)]
        assert len(set(digests)) == 3

        longer = Control.from_video(video(tmp_path / "b.mkv", np.concatenate([frames, pictures(8, seed=1)])), "dense")
        assert [longer.digest(PLAN.resolved(33), clip) for clip in range(3)] == digests  # appended frames change nothing

        frames[20] ^= 1
        changed = Control.from_video(video(tmp_path / "c.mkv", frames), "dense")
        assert [changed.digest(plan, clip) == digests[clip] for clip in range(3)] == [True, True, False]

        others = [
            Control.from_video(tmp_path / "a.mkv", "dense", near_is_black=False).digest(plan, 0),
            Control.from_video(tmp_path / "a.mkv", "sparse").digest(plan, 0),
            control.digest(ClipPlan(48, HEIGHT, 9, source_frames=25), 0),
        ]
        assert len({digests[0], *others}) == 4

    def test_digest_sees_a_file_that_was_replaced(self, tmp_path: Path) -> None:
        path, plan = tmp_path / "a.mkv", PLAN.resolved(9)
        before = Control.from_video(video(path, pictures(9)), "dense").digest(plan, 0)
        assert Control.from_video(video(path, pictures(9, seed=1)), "dense").digest(plan, 0) != before

    def test_bad_settings(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="modality 'depth' is not one of dense, sparse"):
            Control("depth", True, (tmp_path / "a.mkv",), False, 9, 8, 8)
        with pytest.raises(ValueError, match="control of 2 videos"):
            Control("dense", True, (tmp_path / "a.mkv", tmp_path / "b.mkv"), False, 9, 8, 8)
        with pytest.raises(ValueError, match="needs at least one video"):
            Control.from_clips([], "dense")


class TestControlPerClip:
    def test_the_boundary_frame_has_two_pictures(self, tmp_path: Path) -> None:
        clips = [pictures(9, seed=seed) for seed in range(3)]
        control = Control.from_clips([video(tmp_path / f"t{n}.mkv", clip) for n, clip in enumerate(clips)], "sparse")
        assert control.length(9, 1) == 25
        assert control.length(9, 2) == 23
        plan = PLAN.resolved(25)
        for clip in range(3):
            np.testing.assert_array_equal(np.stack(list(control.window(plan, clip))), clips[clip])
        assert (control.first_frame(plan, 1) != clips[0][-1]).any()

    def test_digest_of_the_files_bytes(self, tmp_path: Path) -> None:
        paths = [video(tmp_path / f"t{n}.mkv", pictures(9, seed=n)) for n in (0, 1, 0 + 2)]
        plan = PLAN.resolved(25)
        before = [Control.from_clips(paths, "sparse").digest(plan, clip) for clip in range(3)]
        video(paths[1], pictures(9, seed=9))
        after = [Control.from_clips(paths, "sparse").digest(plan, clip) for clip in range(3)]
        assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
        moved = paths[0].rename(tmp_path / "elsewhere.mkv")
        assert Control.from_clips([moved], "sparse").digest(PLAN.resolved(9), 0) == before[0]

    def test_files_must_be_alike(self, tmp_path: Path) -> None:
        first = video(tmp_path / "t0.mkv", pictures(9))
        for name, frames in {"t1.mkv": pictures(8), "t2.mkv": pictures(9, width=48)}.items():
            with pytest.raises(ValueError, match=rf"{name} has .* but .*t0.mkv has 9 of 32x16"):
                Control.from_clips([first, video(tmp_path / name, frames)], "sparse")

    def test_the_plan_must_fit_the_files(self, tmp_path: Path) -> None:
        control = Control.from_clips([video(tmp_path / "t0.mkv", pictures(9))], "sparse")
        with pytest.raises(ValueError, match=r"t0.mkv has 9 frames, but the plan's clips have 17.* set frames per clip to 9"):
            control.window(ClipPlan(WIDTH, HEIGHT, 17, source_frames=17), 0)
        with pytest.raises(ValueError, match="the plan's clips have 17"):
            control.length(17, 1)
        with pytest.raises(ValueError, match=r"sparse control has 1 clips \(t0.mkv .. t0.mkv\), but the plan has 2"):
            control.window(PLAN.resolved(17), 1)


class TestRawDepth:
    def test_round_trip_without_knowing_the_length(self, tmp_path: Path) -> None:
        frames = np.random.default_rng(0).standard_normal((123, 6, 8)).astype(np.float32)
        with RawDepthWriter(tmp_path / "d.npy", "disparity", Fraction(24)) as writer:
            for frame in frames:
                writer.write(frame)
            assert not (tmp_path / "d.npy").exists()
        raw_depth = writer.raw_depth()
        assert raw_depth == RawDepth(tmp_path / "d.npy", "disparity", 123, 6, 8, Fraction(24))
        np.testing.assert_array_equal(np.load(tmp_path / "d.npy", mmap_mode="r"), frames)  # a plain .npy
        np.testing.assert_array_equal(np.stack(list(raw_depth.disparity(range(123)))), frames)
        np.testing.assert_array_equal(np.stack(list(raw_depth.disparity(range(100, 120, 5)))), frames[100:120:5])
        assert list(raw_depth.disparity(range(0))) == []

    def test_depth_becomes_its_inverse(self, tmp_path: Path) -> None:
        z = np.array([[0.5, 2, np.inf, 1e30]], np.float32)
        with RawDepthWriter(tmp_path / "z.npy", "depth", Fraction(16)) as writer:
            writer.write(z)
        (disparity,) = writer.raw_depth().disparity(range(1))
        assert disparity.dtype == np.float32
        np.testing.assert_array_equal(disparity, np.array([[2, 0.5, 0, 1e-30]], np.float32))

    @pytest.mark.parametrize("value", [np.nan, -1.0, -np.inf, 0.0, 1e-45])
    def test_depth_that_means_nothing(self, tmp_path: Path, value: float) -> None:
        frames = np.ones((3, 2, 4), np.float32)
        frames[1, 0, :3] = value
        with RawDepthWriter(tmp_path / "z.npy", "depth", Fraction(16)) as writer:
            for frame in frames:
                writer.write(frame)
        with pytest.raises(ValueError, match=r"z.npy: frame 1 has 3 of 8 depth values .* positive, or infinite"):
            list(writer.raw_depth().disparity(range(3)))

    @pytest.mark.parametrize("value,ok", [(np.nan, False), (np.inf, False), (-1.0, True), (0.0, True)])
    def test_disparity_must_be_finite(self, tmp_path: Path, value: float, ok: bool) -> None:
        with RawDepthWriter(tmp_path / "d.npy", "disparity", Fraction(16)) as writer:
            writer.write(np.array([[1, value]], np.float32))
        if ok:
            assert len(list(writer.raw_depth().disparity(range(1)))) == 1
        else:
            with pytest.raises(ValueError, match=r"frame 0 has 1 of 2 disparity values .* finite"):
                list(writer.raw_depth().disparity(range(1)))

    def test_an_error_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), RawDepthWriter(tmp_path / "d.npy", "depth", Fraction(16)) as writer:
            writer.write(np.ones((2, 2), np.float32))
            raise RuntimeError
        with (
            pytest.raises(ValueError, match="no frame was written"),
            RawDepthWriter(tmp_path / "d.npy", "depth", Fraction(16)),
        ):
            pass
        assert not list(tmp_path.iterdir())

    def test_bad_writes(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="kind 'metric' is not one of disparity, depth"):
            RawDepthWriter(tmp_path / "d.npy", "metric", Fraction(16))
        with pytest.raises(ValueError, match="needs the file name ending .npy"):
            RawDepthWriter(tmp_path / "d.bin", "depth", Fraction(16))
        message = r"frame 1 is \[3, 2\], expected \[2, 2\]"
        with (
            pytest.raises(ValueError, match=message),
            RawDepthWriter(tmp_path / "d.npy", "depth", Fraction(16)) as writer,
        ):
            writer.write(np.ones((2, 2), np.float32))
            writer.write(np.ones((3, 2), np.float32))
        message = r"frame 0 is \[2, 2, 1\], expected \[H, W\]"
        with (
            pytest.raises(ValueError, match=message),
            RawDepthWriter(tmp_path / "d.npy", "depth", Fraction(16)) as writer,
        ):
            writer.write(np.ones((2, 2, 1), np.float32))

    def test_numbers_outside(self, tmp_path: Path) -> None:
        raw_depth = RawDepth(tmp_path / "d.npy", "depth", 5, 2, 2, Fraction(16))
        for numbers in (range(3, 6), range(-1, 2), range(4, 1, -1)):
            with pytest.raises(ValueError, match=r"d.npy has frames 0 .. 4"):
                raw_depth.disparity(numbers)

    def test_files_that_are_not_the_raw_depth(self, tmp_path: Path) -> None:
        with RawDepthWriter(tmp_path / "d.npy", "disparity", Fraction(16)) as writer:
            for _ in range(5):
                writer.write(np.ones((2, 3), np.float32))
        raw_depth, path = writer.raw_depth(), tmp_path / "d.npy"
        whole = path.read_bytes()

        def assert_refused(message: str) -> None:
            with pytest.raises(ValueError, match=message):
                list(raw_depth.disparity(range(5)))

        path.write_bytes(whole[:-1])
        assert_refused("bytes instead of .* incomplete or damaged")
        path.write_bytes(b"something else")
        assert_refused("d.npy is not a signal")
        np.save(path, np.ones((5, 2, 3)))
        assert_refused(r"holds float64 \[5, 2, 3\], expected float32")
        np.save(path, np.ones((4, 2, 3), np.float32))
        assert_refused(r"holds float32 \[4, 2, 3\], expected float32 \[5, 2, 3\]")
        path.unlink()
        with pytest.raises(FileNotFoundError):
            list(raw_depth.disparity(range(5)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips in the authors' layout, whose paths start at the authors' root."""
    path = tmp_path / "example"
    smooth = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None] * 20, (9, HEIGHT, WIDTH, 3))
    write_clips_folder(path, ["one", "two"], [smooth, 255 - smooth], [pictures(9), pictures(9)], pictures(1)[0])
    entries = json.loads((path / "cond.json").read_text())
    for entry in entries:
        entry["depth"] = "./assets/example/" + entry["depth"]
        entry["track"] = "C:\\assets\\" + entry["track"]
    (path / "cond.json").write_text(json.dumps(entries))
    return path


def edit(folder: Path, clip: int, key: str, value: object) -> None:
    entries = json.loads((folder / "cond.json").read_text())
    if value is None:
        del entries[clip][key]
    else:
        entries[clip][key] = value
    (folder / "cond.json").write_text(json.dumps(entries))


class TestClipsFolder:
    def test_it_loads(self, folder: Path) -> None:
        clips = load_clips_folder(folder)
        assert (clips.clips, clips.prompts, clips.first_frame) == (2, ("one", "two"), folder / "first.png")
        assert clips.dense.paths == (folder / "depth_00.mp4", folder / "depth_01.mp4")
        assert clips.sparse.paths == (folder / "track_00.mp4", folder / "track_01.mp4")
        assert clips.dense.near_is_black
        assert clips.dense.length(9, 1) == clips.sparse.length(9, 1) == 17
        plan = PLAN.resolved(17)
        grey = [int(frame.mean()) for frame in clips.dense.window(plan, 0)]
        assert np.abs(np.array(grey) - np.arange(9) * 20).max() <= 2
        np.testing.assert_array_equal(np.asarray(Image.open(clips.first_frame)), pictures(1)[0])

    def test_written_colours_survive(self, tmp_path: Path) -> None:
        """Rectangles of pure colour, as tracks are drawn, two chroma samples wide."""
        tracks = np.zeros((9, HEIGHT, WIDTH, 3), np.uint8)
        tracks[:, 4:8, 4:12] = (255, 0, 0)
        tracks[:, 8:14, 16:28] = (30, 200, 90)
        clips = write_clips_folder(tmp_path / "c", ["x"], [tracks], [tracks], tracks[0])
        for frame in clips.sparse.window(PLAN.resolved(9), 0):
            for place in ((5, 8), (11, 22), (2, 25)):
                assert np.abs(frame[place].astype(int) - tracks[0][place]).max() <= 12

    def test_uneven_parts(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="clip 2 has no prompt and no tracks"):
            write_clips_folder(tmp_path / "c", ["a"], [pictures(9)] * 2, [pictures(9)], pictures(1)[0])
        assert not (tmp_path / "c" / "cond.json").exists()
        with pytest.raises(ValueError, match=r"depth_00.mp4: there are no frames to write"):
            write_clips_folder(tmp_path / "c", ["a"], [[]], [pictures(9)], pictures(1)[0])

    def test_missing_things(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
            load_clips_folder(tmp_path / "nowhere")
        (folder / "first.png").rename(folder / "other.png")
        with pytest.raises(FileNotFoundError, match="first.png is missing"):
            load_clips_folder(folder)
        (folder / "track_01.mp4").unlink()
        with pytest.raises(FileNotFoundError, match="track_01.mp4 is missing: 'track' of entry 1 in cond.json"):
            load_clips_folder(folder)
        (folder / "cond.json").unlink()
        with pytest.raises(FileNotFoundError, match="cond.json is missing"):
            load_clips_folder(folder)

    @pytest.mark.parametrize("text,message", [
        ("[{", "cond.json is not valid JSON"),
        (b"\xff\xfe[", "cond.json is not valid JSON"),
        ("{}", "must hold a list"),
        ("[]", "must hold a list"),
        ("[3]", "entry 0 has no text under the key 'text'"),
    ])  # fmt: skip
    def test_bad_list(self, folder: Path, text: str | bytes, message: str) -> None:
        (folder / "cond.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=message):
            load_clips_folder(folder)

    @pytest.mark.parametrize("key", ["text", "depth", "track"])
    @pytest.mark.parametrize("value", [None, 7, ["a"]])
    def test_bad_entry(self, folder: Path, key: str, value: object) -> None:
        edit(folder, 1, key, value)
        with pytest.raises(ValueError, match=f"entry 1 has no text under the key '{key}'"):
            load_clips_folder(folder)

    @pytest.mark.parametrize("name", ["", "..", "a/..", "clips/", "x\\..", "a\0b"])
    def test_names_that_are_none(self, folder: Path, name: str) -> None:
        edit(folder, 0, "depth", name)
        with pytest.raises(ValueError, match=r"\('depth' of entry 0 in cond.json\) is not a file name"):
            load_clips_folder(folder)

    def test_only_the_folder_is_read(self, folder: Path, tmp_path: Path) -> None:
        secret = video(tmp_path / "secret.mkv", pictures(9))
        for name in (str(secret), "../secret.mkv"):
            edit(folder, 0, "depth", name)
            with pytest.raises(FileNotFoundError, match=r"example.secret.mkv is missing"):
                load_clips_folder(folder)
        (folder / "secret.mkv").symlink_to(secret)
        with pytest.raises(ValueError, match="secret.mkv .* is a link that leads out of the folder"):
            load_clips_folder(folder)

    def test_a_linked_folder_is_fine(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        assert load_clips_folder(tmp_path / "link").clips == 2

    def test_depth_and_tracks_of_different_length(self, folder: Path) -> None:
        frames = pictures(5)
        for clip in range(2):
            with VideoWriter(folder / f"track_{clip:02d}.mp4", WIDTH, HEIGHT, Fraction(16)) as writer:
                for frame in frames:
                    writer.write(frame)
        with pytest.raises(ValueError, match=r"depth_00.mp4 has 9 frames, but .*track_00.mp4 has 5"):
            load_clips_folder(folder)

    def test_a_broken_first_frame(self, folder: Path) -> None:
        (folder / "first.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match="first.png is not a readable picture"):
            load_clips_folder(folder)
