"""Streaming extraction: engines that disagree about scale and shift, on the exact depth of a procedural world."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvie_core.control.depth.align import REACH, Affine, fit_affine, steadied
from longvie_core.control.depth.engine import extract_depth
from longvie_core.control.depth.meter import DepthMeter, temporal_flicker
from longvie_core.control.depth.ready import copy_depth
from longvie_core.control.normalize import write_control, write_control_per_clip
from longvie_core.control.raw_depth import RawDepth
from longvie_core.media.read import read_frames
from longvie_core.plan import ClipPlan
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene

LENGTH, WIDTH, HEIGHT = 240, 80, 48
FPS = Fraction(16)


class Numbered:
    """A video whose pictures carry their number, so that an engine can know the truth about them."""

    fps = FPS

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def read(self, numbers: range) -> Iterator[np.ndarray]:
        for number in numbers:
            yield np.full((4, 4, 3), [number // 256, number % 256, 0], np.uint8)


def numbers_in(pictures: np.ndarray) -> list[int]:
    return [int(picture[0, 0, 0]) * 256 + int(picture[0, 0, 1]) for picture in pictures]


@dataclass
class Engine:
    """An engine that answers with the truth, as ``spoil`` changes it for each call."""

    truth: np.ndarray
    kind: str = "disparity"
    window: int = 1
    overlap: int = 0
    spoil: Callable[[np.ndarray], np.ndarray] = lambda depth: depth
    name: str = "stand-in"
    calls: list[list[int]] = field(default_factory=list)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        assert frames.dtype == np.uint8 and frames.ndim == 4
        self.calls.append(numbers_in(frames))
        return self.spoil(self.truth[self.calls[-1]].astype(np.float32))


def jitter(amount: float, noise: float, spread: float, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Scale and shift drawn anew for every call, and noise for every pixel; the latter two as shares of ``spread``."""
    random = np.random.default_rng(seed)

    def spoil(depth: np.ndarray) -> np.ndarray:
        noisy = depth + noise * spread * random.standard_normal(depth.shape)
        return np.exp(random.normal(0, amount)) * noisy + random.normal(0, amount) * spread

    return spoil


@pytest.fixture(scope="module", params=[0, 1])
def world(request: pytest.FixtureRequest) -> np.ndarray:
    """15 seconds of exact disparity [LENGTH, HEIGHT, WIDTH]: moving camera, moving solids, sky."""
    scene = make_scene(request.param)
    return np.stack([frame.disparity for frame in render_frames(scene, LENGTH, 16, WIDTH, HEIGHT, supersample=1)])


def spread_of(truth: np.ndarray) -> float:
    return float(np.subtract(*np.percentile(truth, (95, 5))))


def read(raw_depth: RawDepth) -> np.ndarray:
    return np.stack(list(raw_depth.disparity(range(raw_depth.frames))))


def agreement(got: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Correlation with the truth, and what one global scale and shift leave over, as a share of the truth's spread."""
    got, truth = got.reshape(-1).astype(np.float64), truth.reshape(-1).astype(np.float64)
    correlation = np.corrcoef(got, truth)[0, 1]
    return float(correlation), float(truth.std() * np.sqrt(1 - correlation**2) / spread_of(truth))


class TestWindows:
    def test_random_scales_become_one(self, world: np.ndarray, tmp_path: Path) -> None:
        """Every window with its own scale (+-30 %), shift (+-30 % of the range) and 1 % noise."""
        spread = spread_of(world)
        results = {}
        for align in (True, False):
            engine = Engine(world, window=16, overlap=4, spoil=jitter(0.3, 0.01, spread))
            path = tmp_path / f"{align}.npy"
            results[align] = read(extract_depth(Numbered(LENGTH), engine, path, align=align))
        correlation, rest = agreement(results[True], world)
        assert correlation > 0.9994
        assert rest < 0.012  # the noise alone is 0.010
        assert agreement(results[False], world)[1] > 15 * rest
        # The scale of the last second is that of the first.
        first, last = (np.polyfit(world[k].ravel(), results[True][k].ravel(), 1)[0] for k in (slice(16), slice(-16, None)))
        assert last == pytest.approx(first, rel=0.02)

    def test_flicker_falls_to_that_of_the_truth(self, world: np.ndarray, tmp_path: Path) -> None:
        meter = DepthMeter()
        engine = Engine(world, window=4, overlap=2, spoil=jitter(0.3, 0, spread_of(world)))
        raw_depth = extract_depth(Numbered(LENGTH), engine, tmp_path / "d.npy", before_alignment=meter.add)
        assert meter.frames == LENGTH
        assert meter.flicker > 5 * temporal_flicker(world)
        assert temporal_flicker(raw_depth) == pytest.approx(temporal_flicker(world), rel=0.01)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_length_window_and_overlap(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        length, window = data.draw(st.integers(1, 30)), data.draw(st.integers(2, 9))
        overlap = data.draw(st.integers(1, window - 1))
        truth = np.random.default_rng(0).random((length, 5, 6)).astype(np.float32)
        engine = Engine(truth, window=window, overlap=overlap)
        raw_depth = extract_depth(Numbered(length), engine, tmp_path_factory.mktemp("w") / "d.npy")
        np.testing.assert_allclose(read(raw_depth), truth, atol=1e-5)
        assert {len(call) for call in engine.calls} == {min(window, length)}  # the last one too
        assert all(call == list(range(call[0], call[-1] + 1)) for call in engine.calls)
        shared = [len(set(one) & set(other)) for one, other in itertools.pairwise(engine.calls)]
        assert all(count == overlap for count in shared[:-1]) and all(count >= overlap for count in shared[-1:])

    def test_cross_fade(self, tmp_path: Path) -> None:
        """Without alignment: from the old window's values to the new one's in even steps."""
        answers = iter([0.0, 4.0])
        engine = Engine(np.zeros((7, 2, 2)), window=5, overlap=3, spoil=lambda depth: np.full_like(depth, next(answers)))
        got = read(extract_depth(Numbered(7), engine, tmp_path / "d.npy", align=False))
        np.testing.assert_allclose(got[:, 0, 0], [0, 0, 1, 2, 3, 4, 4])

    def test_distances_are_blended_as_disparity(self, tmp_path: Path) -> None:
        z = np.array([[1, 4], [2, np.inf]], np.float32)
        engine = Engine(np.stack([z] * 9), kind="depth", window=4, overlap=1)
        raw_depth = extract_depth(Numbered(9), engine, tmp_path / "d.npy")
        assert raw_depth.kind == "disparity"
        np.testing.assert_array_equal(read(raw_depth), np.stack([1 / z] * 9))


class TestPerFrame:
    def test_jitter_is_taken_out(self, world: np.ndarray, tmp_path: Path) -> None:
        """Every frame with its own scale (+-5 %), shift (+-5 % of the range) and 1 % noise."""
        spread = spread_of(world)
        noisy = world + 0.01 * spread * np.random.default_rng(1).standard_normal(world.shape).astype(np.float32)
        meter = DepthMeter()
        raw = []
        engine = Engine(world, spoil=jitter(0.05, 0.01, spread))
        raw_depth = extract_depth(
            Numbered(LENGTH), engine, tmp_path / "d.npy", before_alignment=lambda frame: (meter.add(frame), raw.append(frame))
        )
        got = read(raw_depth)
        correlation, rest = agreement(got, world)
        assert correlation > 0.9985
        assert rest < 0.017  # the noise alone is 0.010
        assert agreement(np.stack(raw), world)[1] > 3 * rest
        floor = temporal_flicker(noisy)
        assert meter.flicker > 2.5 * floor
        assert temporal_flicker(raw_depth) == pytest.approx(floor, rel=0.02)

    def test_strong_jitter(self, world: np.ndarray, tmp_path: Path) -> None:
        """30 %: the flicker is gone, a slow wandering of the scale stays."""
        spread = spread_of(world)
        engine = Engine(world, spoil=jitter(0.3, 0, spread))
        meter = DepthMeter()
        raw_depth = extract_depth(Numbered(LENGTH), engine, tmp_path / "d.npy", before_alignment=meter.add)
        assert agreement(read(raw_depth), world)[0] > 0.985
        assert meter.flicker > 20 * temporal_flicker(raw_depth)
        assert temporal_flicker(raw_depth) < 1.15 * temporal_flicker(world)

    def test_what_is_consistent_stays_so(self, world: np.ndarray) -> None:
        """A moving camera must not be mistaken for a change of scale, however long it goes on."""
        got = np.stack(list(steadied(world)))
        assert agreement(got, world)[0] > 0.9995

    def test_each_frame_alone_when_nothing_moves(self) -> None:
        """The mean of the neighbours' scales and shifts, from first principles: no motion, no noise."""
        random = np.random.default_rng(0)
        scene, reach, length = random.random((12, 16)), 3, 11
        scales, shifts = np.exp(random.normal(0, 0.2, length)), random.normal(0, 1, length)
        raw = (scales[:, None, None] * scene + shifts[:, None, None]).astype(np.float32)
        got = np.stack(list(steadied(raw, reach)))
        for centre in range(length):
            near = np.arange(max(0, centre - reach), min(length, centre + reach + 1))
            weights = 1 + np.cos(np.pi * (near - centre) / (reach + 1))
            scale, shift = np.average(scales[near], weights=weights), np.average(shifts[near], weights=weights)
            np.testing.assert_allclose(got[centre], scale * scene + shift, atol=1e-4)

    def test_a_cut_ends_the_neighbourhood(self) -> None:
        random = np.random.default_rng(0)
        shots = [random.random((12, 16)) * 5, random.random((12, 16))]
        raw = [np.float32(np.exp(random.normal(0, 0.2)) * shot) for shot in shots for _ in range(9)]
        together = list(steadied(raw))
        apart = [*steadied(raw[:9]), *steadied(raw[9:])]
        np.testing.assert_array_equal(np.stack(together), np.stack(apart))
        assert np.std([frame.mean() for frame in together[:9]]) < 0.05 * np.std([frame.mean() for frame in raw[:9]])

    def test_few_frames_are_held(self) -> None:
        taken = 0

        def frames() -> Iterator[np.ndarray]:
            nonlocal taken
            for taken in range(1, 201):
                yield np.arange(20, dtype=np.float32).reshape(4, 5) * (1 + taken % 3)

        for given_back, _ in enumerate(steadied(frames())):
            assert taken - given_back <= REACH + 1
        assert given_back == 199

    def test_metres_are_left_alone(self, tmp_path: Path) -> None:
        z = np.random.default_rng(0).uniform(1, 9, (20, 6, 8)).astype(np.float32)
        z[:, 0] = np.inf
        raw_depth = extract_depth(Numbered(20), Engine(z, kind="depth"), tmp_path / "z.npy")
        assert raw_depth == RawDepth(tmp_path / "z.npy", "depth", 20, 6, 8, FPS)
        np.testing.assert_array_equal(np.load(raw_depth.path), z)
        aligned = extract_depth(Numbered(20), Engine(z, kind="depth"), tmp_path / "a.npy", align=True)
        assert aligned.kind == "disparity"

    def test_the_same_bytes_again(self, world: np.ndarray, tmp_path: Path) -> None:
        for name in ("a", "b"):
            extract_depth(Numbered(50), Engine(world, spoil=jitter(0.1, 0.01, 1)), tmp_path / f"{name}.npy")
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


class TestFit:
    def test_outliers(self) -> None:
        """A third of the picture shows something else."""
        random = np.random.default_rng(0)
        old = random.random((40, 60))
        new = (old - 3) / 1.7 + 0.002 * random.standard_normal(old.shape)
        new[:, :20] = random.uniform(-1.8, -1.1, (40, 20))
        fit = fit_affine(new, old)
        assert fit == pytest.approx((1.7, 3), rel=0.01)
        assert abs(np.polyfit(new.ravel(), old.ravel(), 1)[0] - 1.7) > 0.5  # what plain least squares makes of it

    def test_most_of_the_picture_is_sky(self) -> None:
        old = np.zeros((40, 60))
        old[25:] = np.linspace(0.1, 1, 15)[:, None]
        new = old / 2 + 5
        new[35:38, :30] = 5  # something hides part of the ground
        assert fit_affine(new, old) == pytest.approx((2, -10), rel=1e-3)

    def test_noise_does_not_shrink_a_chain(self) -> None:
        """300 fits one after the other at 10 % noise; the slope of plain least squares vanishes."""
        random = np.random.default_rng(0)
        truth = random.random((40, 48))
        noisy = truth + 0.1 * truth.std() * random.standard_normal((301, 40, 48))
        scale = slope = 1.0
        for old, new in itertools.pairwise(noisy):
            scale *= fit_affine(new, old).scale
            slope *= np.cov(new.ravel(), old.ravel())[0, 1] / new.var()
        assert scale == pytest.approx(1, abs=0.05)
        assert slope < 0.1

    def test_nothing_to_align(self) -> None:
        random = np.random.default_rng(0)
        one, other, flat = random.random((20, 30)), random.random((20, 30)), np.full((20, 30), 3.0)
        assert fit_affine(one, other) is None
        assert fit_affine(one, -one) is None
        assert fit_affine(one, flat) is None
        assert fit_affine(flat, one) is None

    def test_affine(self) -> None:
        one, other = Affine(2.0, 3.0), Affine(5.0, -1.0)
        x = np.array([-1, 0, 2], np.float32)
        np.testing.assert_allclose(one(x), [1, 3, 7])
        np.testing.assert_allclose(one.after(other)(x), one(other(x)))
        np.testing.assert_allclose(one.inverse()(one(x)), x)


class TestFlicker:
    def test_by_hand(self) -> None:
        ramp = np.arange(101, dtype=np.float32).reshape(1, 101)  # 5th percentile 5, 95th 95
        assert temporal_flicker([ramp, ramp + 9, ramp]) == pytest.approx(0.1)
        assert temporal_flicker([7 * ramp - 2, 7 * (ramp + 9) - 2]) == pytest.approx(0.1)

    def test_edges(self) -> None:
        flat = np.ones((2, 3), np.float32)
        assert temporal_flicker([flat]) == temporal_flicker([flat, flat]) == temporal_flicker([]) == 0
        assert temporal_flicker([flat, 2 * flat]) == float("inf")

    def test_notes(self) -> None:
        def notes(*frames: np.ndarray) -> tuple[str, ...]:
            meter = DepthMeter()
            for frame in frames:
                meter.add(frame)
            return meter.notes

        flat, ramp = np.ones((2, 3), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
        assert notes(ramp, ramp) == ()
        assert "all 2 frames have one and the same depth" in notes(flat, flat)[0]
        assert "2 of 3 frames are flat" in notes(flat, ramp, 2 * flat)[0]


class TestBadDepth:
    @pytest.mark.parametrize(
        ("kind", "value", "message"),
        [
            ("disparity", np.nan, "frame 6 has 2 of 12 disparity values that mean nothing: they must be finite"),
            ("disparity", np.inf, "frame 6 has 2 of 12 disparity"),
            ("depth", np.nan, "frame 6 has 2 of 12 depth values that mean nothing: they must be positive"),
            ("depth", 0.0, "frame 6 has 2 of 12 depth"),
            ("depth", -1.0, "frame 6 has 2 of 12 depth"),
            ("depth", 1e-42, "frame 6 has 2 of 12 depth"),
        ],
    )
    @pytest.mark.parametrize(("window", "overlap"), [(1, 0), (5, 2)])
    def test_values_that_mean_nothing(
        self, tmp_path: Path, kind: str, value: float, message: str, window: int, overlap: int
    ) -> None:
        truth = np.random.default_rng(0).uniform(1, 2, (9, 3, 4))
        truth[6, 1, :2] = value
        with pytest.raises(ValueError, match=f"stand-in: {message}"):
            extract_depth(Numbered(9), Engine(truth, kind, window, overlap), tmp_path / "d.npy")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("window", "overlap"), [(1, 0), (5, 2)])
    def test_constant_depth_makes_a_grey_control(self, tmp_path: Path, window: int, overlap: int) -> None:
        engine = Engine(np.full((9, 16, 16), 3.0), window=window, overlap=overlap)
        raw_depth = extract_depth(Numbered(9), engine, tmp_path / "d.npy")
        control = write_control(raw_depth, ClipPlan(16, 16, frames=9), tmp_path / "d.mkv")
        assert {int(value) for frame in read_frames(control.paths[0], range(9)) for value in np.unique(frame)} == {127}

    def test_a_fade_to_black_does_not_break_the_scale(self, world: np.ndarray, tmp_path: Path) -> None:
        """Where nothing can be aligned, the scale that was found last goes on."""
        truth = world[:60].copy()
        truth[18:22] = 0
        scales = itertools.chain([1], itertools.repeat(3))
        engine = Engine(truth, window=8, overlap=2, spoil=lambda depth: next(scales) * depth)
        got = read(extract_depth(Numbered(60), engine, tmp_path / "d.npy"))
        np.testing.assert_allclose(got, truth, atol=1e-3)

    def test_shapes(self, tmp_path: Path) -> None:
        def run(spoil: Callable[[np.ndarray], np.ndarray], **window: int) -> None:
            extract_depth(Numbered(9), Engine(np.zeros((9, 3, 4)), spoil=spoil, **window), tmp_path / "d.npy")

        with pytest.raises(ValueError, match=r"stand-in answered \[3, 4\] to 1 pictures: expected \[T, h, w\]"):
            run(lambda depth: depth[0])
        with pytest.raises(ValueError, match=r"stand-in answered \[4, 3, 4\] to 5 pictures"):
            run(lambda depth: depth[1:], window=5, overlap=1)

    @pytest.mark.parametrize(("window", "overlap"), [(0, 0), (1, 1), (4, 0), (4, 4)])
    def test_settings_of_an_engine(self, tmp_path: Path, window: int, overlap: int) -> None:
        with pytest.raises(ValueError, match=f"stand-in: windows of {window} frames cannot overlap by {overlap}"):
            extract_depth(Numbered(9), Engine(np.zeros((9, 3, 4)), "disparity", window, overlap), tmp_path / "d.npy")

    def test_kind_of_an_engine(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="stand-in: kind 'inverse' is not one of disparity, depth"):
            extract_depth(Numbered(9), Engine(np.zeros((9, 3, 4)), "inverse"), tmp_path / "d.npy")

    def test_a_video_without_frames(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no frame was written"):
            extract_depth(Numbered(0), Engine(np.zeros((0, 3, 4))), tmp_path / "d.npy")


class TestProgress:
    @pytest.mark.parametrize(("window", "overlap", "expected"), [(1, 0, [1, 2, 3, 4, 5, 6, 7]), (4, 1, [4, 7])])
    def test_counts(self, tmp_path: Path, window: int, overlap: int, expected: list[int]) -> None:
        seen = []
        engine = Engine(np.random.default_rng(0).random((7, 3, 4)), window=window, overlap=overlap)
        extract_depth(Numbered(7), engine, tmp_path / "d.npy", lambda done, total: seen.append((done, total)))
        assert seen == [(done, 7) for done in expected]

    def test_stopping_leaves_nothing(self, tmp_path: Path) -> None:
        def stop(done: int, _: int) -> None:
            if done == 5:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            extract_depth(Numbered(7), Engine(np.random.default_rng(0).random((7, 3, 4))), tmp_path / "d.npy", stop)
        assert list(tmp_path.iterdir()) == []

    def test_an_engine_may_use_its_array_again(self, tmp_path: Path) -> None:
        truth = np.random.default_rng(0).random((40, 3, 4)).astype(np.float32)
        buffer = np.empty((1, 3, 4), np.float32)

        def spoil(depth: np.ndarray) -> np.ndarray:
            buffer[:] = depth
            return buffer

        got = [read(extract_depth(Numbered(40), Engine(truth, spoil=how), tmp_path / "d.npy")) for how in (spoil, np.copy)]
        np.testing.assert_array_equal(*got)


@dataclass
class Source:
    values: np.ndarray
    kind: str = "disparity"
    name: str = "mine.npy"

    @property
    def frames(self) -> int:
        return len(self.values)

    def read(self, numbers: list[int]) -> Iterator[np.ndarray]:
        return (self.values[number] for number in numbers)


class TestCopy:
    def test_frames_are_taken_as_they_are(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).random((9, 4, 6)).astype(np.float32)
        seen = []
        raw_depth = copy_depth(Source(values), tmp_path / "a.npy", FPS, progress=lambda *done: seen.append(done))
        assert raw_depth == RawDepth(tmp_path / "a.npy", "disparity", 9, 4, 6, FPS)
        np.testing.assert_array_equal(read(raw_depth), values)
        assert seen == [(done, 9) for done in range(1, 10)]
        resampled = copy_depth(Source(values, "depth"), tmp_path / "b.npy", FPS, [0, 0, 3, 8, 8])
        np.testing.assert_array_equal(np.load(resampled.path), values[[0, 0, 3, 8, 8]])
        assert resampled.kind == "depth"

    def test_errors(self, tmp_path: Path) -> None:
        values = np.ones((9, 4, 6), np.float32)
        with pytest.raises(ValueError, match=r"mine.npy has 9 frames \(0 .. 8\), but frame 9 was asked for"):
            copy_depth(Source(values), tmp_path / "a.npy", FPS, [5, 9])
        values[5, 2] = np.nan
        with pytest.raises(ValueError, match="mine.npy: frame 5 has 6 of 24 disparity values that mean nothing"):
            copy_depth(Source(values), tmp_path / "a.npy", FPS, [2, 5])
        assert list(tmp_path.iterdir()) == []


class TestPerClipAblation:
    def test_each_clip_by_its_own_percentiles(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        values = (random.random((23, 16, 16)) * np.linspace(1, 3, 23)[:, None, None]).astype(np.float32)
        raw_depth = copy_depth(Source(values), tmp_path / "d.npy", FPS)
        plan = ClipPlan(16, 16, frames=9, tail="pad")
        control = write_control_per_clip(raw_depth, plan, tmp_path / "clips", (10.0, 90.0))
        assert control.per_clip and control.near_is_black and control.length(9, 1) == 25
        plan = plan.resolved(23)
        for clip, (start, stop) in enumerate([(0, 9), (8, 17), (16, 23)]):
            window = values[start:stop].astype(np.float64)
            low, high = np.percentile(values[start:stop], (10, 90))
            expected = ((high - np.clip(window, low, high)) / (high - low) * 255).astype(np.uint8)
            expected = np.concatenate([expected, expected[-1:].repeat(9 - len(expected), axis=0)])
            got = np.stack(list(control.window(plan, clip)))
            np.testing.assert_array_equal(got, expected[..., None].repeat(3, axis=-1))
        assert (control.first_frame(plan, 1) != list(control.window(plan, 0))[-1]).any()  # the shared frame

    def test_too_short(self, tmp_path: Path) -> None:
        raw_depth = copy_depth(Source(np.ones((5, 16, 16), np.float32)), tmp_path / "d.npy", FPS)
        with pytest.raises(ValueError, match="has 5 frames, but one clip needs 9"):
            write_control_per_clip(raw_depth, ClipPlan(16, 16, frames=9), tmp_path / "clips")
