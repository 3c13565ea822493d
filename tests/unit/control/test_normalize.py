"""Global normalization against NumPy on whole arrays, and against the released code's recorded results."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longvie_core.control.normalize import normalize, normalized_frames, to_uint8, write_control, write_control_per_clip
from longvie_core.control.percentiles import global_percentiles
from longvie_core.control.raw_depth import RawDepth, RawDepthWriter
from longvie_core.media.read import read_frames
from longvie_core.plan import ClipPlan
from tests.helpers.places import RECORDED

GOLDEN = RECORDED / "depth_track.npz"
LENGTHS = (1, 80, 81, 82, 100, 161, 250)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """Depth videos of several lengths and what the released code makes of them."""
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def raw_depth_of(path: Path, frames: np.ndarray, kind: str = "disparity") -> RawDepth:
    with RawDepthWriter(path, kind, Fraction(16)) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.raw_depth()


def percentiles_of(values: np.ndarray, percentiles: tuple[float, float] = (5.0, 95.0)) -> tuple[float, float]:
    """Through the streaming code, in uneven pieces."""
    pieces = np.array_split(values.reshape(-1), min(values.size, 7))
    return global_percentiles(lambda: iter(pieces), percentiles)


def assert_equals_numpy(values: np.ndarray, percentiles: tuple[float, float] = (5.0, 95.0)) -> None:
    with np.errstate(all="ignore"):
        expected = np.percentile(values, list(percentiles))
        got = np.array(percentiles_of(values, percentiles))
    assert expected.dtype == np.float64
    np.testing.assert_array_equal(got, expected)


class TestPercentiles:
    @settings(max_examples=300, deadline=None)
    @given(
        values=hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
        percentiles=st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted).filter(lambda pair: pair[0] < pair[1]),
    )
    def test_any_values_and_percentiles(self, values: np.ndarray, percentiles: list[float]) -> None:
        assert_equals_numpy(values, tuple(percentiles))

    @settings(max_examples=100, deadline=None)
    @given(values=hnp.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0, -0.0, 1, -1, 1e-45, 3.5])))
    def test_duplicates(self, values: np.ndarray) -> None:
        assert_equals_numpy(values)

    @pytest.mark.parametrize("seed", range(5))
    def test_large_random(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        assert_equals_numpy(random.standard_normal(100_003).astype(np.float32))
        assert_equals_numpy(np.exp(random.normal(0, 12, 50_000)).astype(np.float32))
        assert_equals_numpy(random.integers(0, 9, 10_000).astype(np.float32) - 4)
        assert_equals_numpy(np.float32(6) + random.random(40_000, np.float32) * np.float32(1e-4))  # one upper half

    def test_subnormals_and_the_largest(self) -> None:
        tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
        assert_equals_numpy(np.arange(-200, 300, dtype=np.float32) * tiny)
        assert_equals_numpy(np.array([-huge, -tiny, 0, tiny, huge, huge], np.float32))

    @pytest.mark.parametrize("size", range(1, 45))
    def test_every_small_size(self, size: int) -> None:
        assert_equals_numpy(np.random.default_rng(size).standard_normal(size).astype(np.float32))

    @pytest.mark.parametrize("dtype", [np.uint8, np.float16])
    def test_narrower_dtypes(self, dtype: type) -> None:
        for size in (1, 7, 1000):
            assert_equals_numpy((np.random.default_rng(size).random(size) * 255).astype(dtype))

    def test_more_values_than_float32_can_count(self) -> None:
        """Ranks above 2**24 must not be rounded."""
        frame = np.arange(1 << 16, dtype=np.float32)
        pieces = 300  # 19,660,800 values
        got = global_percentiles(lambda: iter([frame] * pieces), (5.0, 95.0))
        np.testing.assert_array_equal(got, np.percentile(np.repeat(frame, pieces), [5.0, 95.0]))

    def test_errors(self) -> None:
        one = np.ones((2, 3), np.float32)
        with pytest.raises(ValueError, match="there are no values"):
            global_percentiles(lambda: iter([]))
        with pytest.raises(ValueError, match=r"percentiles \(95, 5\) must ascend within 0 .. 100"):
            global_percentiles(lambda: iter([one]), (95, 5))
        with pytest.raises(ValueError, match=r"percentiles \(5, 101\)"):
            global_percentiles(lambda: iter([one]), (5, 101))
        with pytest.raises(ValueError, match="frame 1 is float64"):
            global_percentiles(lambda: iter([one, one.astype(np.float64)]))
        with pytest.raises(ValueError, match="frame 1 is uint8"):
            global_percentiles(lambda: iter([one, one.astype(np.uint8)]))
        for bad in (np.nan, np.inf, -np.inf):
            broken = one.copy()
            broken[1, 1:] = bad
            with pytest.raises(ValueError, match="frame 1 has 2 of 6 values that are not finite"):
                global_percentiles(lambda broken=broken: iter([one, broken]))
        once = iter([one])
        with pytest.raises(ValueError, match="the values changed between the two readings"):
            global_percentiles(lambda: once)


class TestFormula:
    def test_near_is_black_and_far_is_white(self) -> None:
        disparity = np.array([0, 2, 3, 4, 9], np.float32)  # the last is nearest
        np.testing.assert_array_equal(normalize(disparity, 2.0, 4.0), [1, 1, 0.5, 0, 0])

    def test_it_is_float64(self) -> None:
        assert normalize(np.ones(3, np.float32), 0.1, 2.3).dtype == np.float64

    def test_constant_depth_is_neutral(self) -> None:
        np.testing.assert_array_equal(normalize(np.full((2, 2), 7, np.float32), 7.0, 7.0), np.full((2, 2), 0.5))

    def test_percentiles_in_the_wrong_order(self) -> None:
        with pytest.raises(ValueError, match="lower percentile 3.0 is above the upper one 2.0"):
            normalize(np.ones(2), 3.0, 2.0)

    def test_eight_bits_by_truncation(self) -> None:
        levels = np.array([0, 0.999, 1, 127.5, 254.9, 255]) / 255
        np.testing.assert_array_equal(to_uint8(levels), [0, 0, 1, 127, 254, 255])


class TestReleasedCode:
    @pytest.mark.parametrize("length", LENGTHS)
    def test_values(self, golden: dict[str, np.ndarray], length: int) -> None:
        expected = golden[f"depth{length}.out"]
        cut = golden[f"depth{length}.in"][: len(expected)]
        low, high = percentiles_of(cut)
        case = json.loads(GOLDEN.with_suffix(".json").read_text())["cases"][str(length)]
        assert (low, high) == (case["p5"], case["p95"])
        np.testing.assert_array_equal(normalize(cut, low, high), expected)

    @pytest.mark.parametrize("length", LENGTHS)
    def test_pictures(self, golden: dict[str, np.ndarray], length: int, tmp_path: Path) -> None:
        expected = golden[f"depth{length}.out"]
        raw_depth = raw_depth_of(tmp_path / "depth.npy", golden[f"depth{length}.in"])
        got = np.stack(list(normalized_frames(raw_depth, len(expected))))
        np.testing.assert_array_equal(got, (expected * 255).astype(np.uint8))

    @pytest.mark.parametrize("length", [length for length in LENGTHS if length >= 81])
    def test_clips_read_back_from_the_control_video(self, golden: dict[str, np.ndarray], length: int, tmp_path: Path) -> None:
        raw_depth = raw_depth_of(tmp_path / "depth.npy", golden[f"depth{length}.in"])
        control = write_control(raw_depth, ClipPlan(), tmp_path / "dense.mkv")
        plan = ClipPlan(source_frames=length)
        assert control.frames == plan.output_frames == len(golden[f"depth{length}.out"])
        assert (control.modality, control.near_is_black) == ("dense", True)
        for clip in range(plan.clips):
            frames = read_frames(control.paths[0], plan.control_frames(clip))
            expected = golden[f"depth{length}.chunk{clip}_u8"]
            for frame, grey in zip(frames, expected, strict=True):
                np.testing.assert_array_equal(frame, np.repeat(grey[..., None], 3, axis=-1))

    def test_every_recorded_clip_was_compared(self, golden: dict[str, np.ndarray]) -> None:
        recorded = sum(".chunk" in key for key in golden)
        assert recorded == sum(ClipPlan(source_frames=length).clips for length in LENGTHS if length >= 81) == 8


class TestWriteControl:
    def test_the_tail_rule_decides_what_counts(self, tmp_path: Path) -> None:
        frames = np.random.default_rng(0).random((22, 16, 16)).astype(np.float32)
        frames[17:] += 100  # dropped with «drop», counted with «pad»
        raw_depth = raw_depth_of(tmp_path / "depth.npy", frames)
        for tail, length in (("drop", 17), ("pad", 22)):
            plan = ClipPlan(width=16, height=16, frames=17, tail=tail)
            control = write_control(raw_depth, plan, tmp_path / f"{tail}.mkv")
            assert control.frames == length
            low, high = np.percentile(frames[:length], [5, 95])
            expected = ((high - np.clip(frames[:length].astype(np.float64), low, high)) / (high - low) * 255).astype(np.uint8)
            got = np.stack(list(read_frames(control.paths[0], range(length))))
            np.testing.assert_array_equal(got, np.repeat(expected[..., None], 3, axis=-1))

    def test_depth_and_its_inverse_give_the_same_control(self, tmp_path: Path) -> None:
        z = np.exp2(np.random.default_rng(0).integers(-8, 8, (17, 16, 16))).astype(np.float32)  # 1/z is exact
        z[0, 0, 0] = np.inf
        plan = ClipPlan(width=16, height=16, frames=17)
        depth = write_control(raw_depth_of(tmp_path / "z.npy", z, "depth"), plan, tmp_path / "a.mkv")
        disparity = write_control(raw_depth_of(tmp_path / "d.npy", 1 / z), plan, tmp_path / "b.mkv")
        assert depth.paths[0].read_bytes() == disparity.paths[0].read_bytes()
        first = next(read_frames(depth.paths[0], range(1)))
        assert first[0, 0, 0] == 255  # the sky is white
        assert first[np.unravel_index(z[0].argmin(), z[0].shape)][0] == 0  # the nearest point is black

    def test_other_percentiles(self, tmp_path: Path) -> None:
        frames = np.random.default_rng(0).random((17, 16, 16)).astype(np.float32)
        raw_depth = raw_depth_of(tmp_path / "depth.npy", frames)
        got = np.stack(list(normalized_frames(raw_depth, 17, (0.0, 100.0))))
        low, high = frames.min().astype(np.float64), frames.max().astype(np.float64)
        np.testing.assert_array_equal(got, ((high - frames.astype(np.float64)) / (high - low) * 255).astype(np.uint8))

    def test_too_short(self, tmp_path: Path) -> None:
        raw_depth = raw_depth_of(tmp_path / "depth.npy", np.ones((5, 16, 16), np.float32))
        with pytest.raises(ValueError, match="has 5 frames, but one clip needs 17"):
            write_control(raw_depth, ClipPlan(16, 16, frames=17), tmp_path / "a.mkv")
        assert not (tmp_path / "a.mkv").exists()


class TestWriteControlPerClip:
    def test_what_is_there_is_kept_and_what_is_missing_is_made(self, tmp_path: Path) -> None:
        frames = np.random.default_rng(0).random((17, 16, 16)).astype(np.float32)
        raw_depth = raw_depth_of(tmp_path / "depth.npy", frames)
        plan = ClipPlan(width=16, height=16, frames=9)
        control = write_control_per_clip(raw_depth, plan, tmp_path / "clips")
        assert [path.name for path in control.paths] == ["dense_00.mkv", "dense_01.mkv"]
        first, second = (path.read_bytes() for path in control.paths)
        written = control.paths[0].stat().st_mtime_ns
        control.paths[1].unlink()
        assert write_control_per_clip(raw_depth, plan, tmp_path / "clips") == control
        assert control.paths[0].stat().st_mtime_ns == written
        assert (control.paths[0].read_bytes(), control.paths[1].read_bytes()) == (first, second)

    def test_broken_raw_depth_leaves_no_clip_behind(self, tmp_path: Path) -> None:
        frames = np.random.default_rng(0).random((17, 16, 16)).astype(np.float32)
        frames[12, 3, 4] = np.nan
        raw_depth = raw_depth_of(tmp_path / "depth.npy", frames)
        with pytest.raises(ValueError, match="frame 12 has 1 of 256 disparity values that mean nothing"):
            write_control_per_clip(raw_depth, ClipPlan(width=16, height=16, frames=9), tmp_path / "clips")
        assert [path.name for path in (tmp_path / "clips").iterdir()] == ["dense_00.mkv"]
