"""Degradation operators: how often they strike, over what ranges, and what exactly they compute (numpy and scipy as truth)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from longvie_core.training.degradation.dense import (
    AverageBlur,
    DepthDegradation,
    FeatureDegradation,
    ScaleFusion,
    degrade_depth,
    depth_degradation_begins,
    draw_dense_strength,
    draw_depth_operators,
)
from longvie_core.training.degradation.frames import (
    ColorDrift,
    FrameDegradation,
    Regeneration,
    RoundTrips,
    Tint,
    degrade_frames,
    draw_frame_operators,
    is_degraded,
    milder_more_often,
    noise_then_denoise,
)
from longvie_core.training.degradation.history import HISTORY_LENGTHS, draw_history_length

DRAWS = 8000

REFERENCE_DEPTH = DepthDegradation(probability=0.05, start=0.0)
"""The released training code's second stage."""

REFERENCE_FIRST_FRAME = FrameDegradation(
    probability=0.1,
    round_trip_share=0.4,
    round_trips=tuple(range(5)),
    round_trip_weights=milder_more_often(5),
    noise_levels=(1, 2, 3, 4, 6),
    noise_weights=(6, 4, 3, 2, 1),
    drift=ColorDrift(),
)
"""What the released code does to the first frame, from files made beforehand (their index is taken as K)."""

REFERENCE_HISTORY = FrameDegradation(
    probability=0.05,
    round_trip_share=0.4,
    round_trips=tuple(range(8)),
    round_trip_weights=milder_more_often(8),
    noise_levels=(1, 5, 8),
    noise_weights=(8, 5, 1),
    drift=ColorDrift(probability=0.05, high=0.3),
)
"""What the released code does to the history; P2 degrades it like the first frame."""

REFERENCE_HISTORY_LENGTHS = (0, 4, 8, 12, 16)
"""The released code's: none for 20 %, else 4, 8, 12 or 16, which is a fifth each; the VAE encodes 1, 5, 9 and 13 of them."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def repeat(draw: Callable[[torch.Generator], object], times: int = DRAWS, seed: int = 0) -> list:
    one = generator(seed)
    return [draw(one) for _ in range(times)]


def assert_share(count: int, total: int, probability: float) -> None:
    """The count lies in the central 1 - 1e-6 of the binomial distribution."""
    low, high = stats.binom.interval(1 - 1e-6, total, probability)
    assert low <= count <= high, f"{count} of {total}, expected {total * probability:.0f} ({low:.0f} .. {high:.0f})"


def assert_shares(drawn: list, weights: dict) -> None:
    """Every value is drawn as often as its weight says, and no other."""
    counts, total = Counter(drawn), sum(weights.values())
    assert counts.keys() <= weights.keys()
    for value, weight in weights.items():
        assert_share(counts[value], len(drawn), weight / total)


def pictures(frames: int = 3, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


class TestDenseStrength:
    def test_how_often_and_from_where(self) -> None:
        drawn = np.array(repeat(lambda one: draw_dense_strength(FeatureDegradation(), one)))
        weak = drawn[drawn != 1]
        assert_share(len(weak), DRAWS, 0.15)
        assert weak.min() >= 0.05 and weak.max() < 1
        assert stats.kstest((weak - 0.05) / 0.95, "uniform").pvalue > 1e-3

    @pytest.mark.parametrize(("probability", "expected"), [(0.0, 1.0), (1.0, 0.5)])
    def test_never_and_always(self, probability: float, expected: float) -> None:
        config = FeatureDegradation(probability, low=0.5, high=0.5)
        assert set(repeat(lambda one: draw_dense_strength(config, one), 50)) == {expected}

    @pytest.mark.parametrize(("wrong", "message"), [({"probability": 1.5}, "0 .. 1"), ({"low": 0.0}, "0 < low")])
    def test_out_of_range(self, wrong: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FeatureDegradation(**wrong)


class TestDrawingDepth:
    PAPER = DepthDegradation()

    def draw(self, times: int = DRAWS, **changes: float) -> list:
        config = DepthDegradation(**{"probability": 1.0, "start": 0.0} | changes)
        return repeat(lambda one: draw_depth_operators(config, 0, 1, one), times)

    def test_phases_in_after_two_thirds(self) -> None:
        assert depth_degradation_begins(self.PAPER, 3000) == 2000
        assert [depth_degradation_begins(self.PAPER, steps) for steps in (1, 3, 10, 50)] == [1, 2, 7, 33]
        always = DepthDegradation(probability=1.0)
        assert not any(repeat(lambda one: draw_depth_operators(always, 1999, 3000, one), 50))
        assert all(repeat(lambda one: draw_depth_operators(always, 2000, 3000, one), 50))

    def test_how_often(self) -> None:
        drawn = repeat(lambda one: draw_depth_operators(self.PAPER, 2500, 3000, one))
        assert_share(sum(bool(operators) for operators in drawn), DRAWS, 0.10)
        reference = repeat(lambda one: draw_depth_operators(REFERENCE_DEPTH, 0, 3000, one))
        assert_share(sum(bool(operators) for operators in reference), DRAWS, 0.05)

    def test_one_or_both_in_either_order(self) -> None:
        kinds = [tuple(type(operator) for operator in operators) for operators in self.draw()]
        assert_shares(
            kinds,
            {
                (ScaleFusion,): 1 / 6,
                (AverageBlur,): 1 / 6,
                (ScaleFusion, AverageBlur): 1 / 3,
                (AverageBlur, ScaleFusion): 1 / 3,
            },
        )

    def test_scales_weights_and_kernels(self) -> None:
        operators = [operator for drawn in self.draw() for operator in drawn]
        fusions = [operator for operator in operators if isinstance(operator, ScaleFusion)]
        dropped = [next(iter(set(range(6)) - set(fusion.halvings))) for fusion in fusions]
        assert all(len(fusion.halvings) == len(fusion.weights) == 5 for fusion in fusions)
        assert_shares(dropped, dict.fromkeys(range(6), 1))
        weights = np.array([fusion.weights for fusion in fusions])
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-12)
        assert weights.min() >= 0
        np.testing.assert_allclose(weights.mean(axis=0), 0.2, atol=0.01)
        kernels = [operator.kernel for operator in operators if isinstance(operator, AverageBlur)]
        assert_shares(kernels, dict.fromkeys(range(3, 16, 2), 1))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"kernels": (2, 15)}, "odd"),
            ({"kernels": (5, 3)}, "smaller first"),
            ({"halvings": 0}, "at least 1"),
            ({"start": 2}, "0 .. 1"),
        ],
    )
    def test_out_of_range(self, wrong: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DepthDegradation(**wrong)


def resampling(size: int, to: int) -> np.ndarray:
    """Matrix [to, size] of linear interpolation between pixel centres, the edge pixels extended."""
    position = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size)))


def numpy_fusion(pixels: np.ndarray, fusion: ScaleFusion) -> np.ndarray:
    height, width = pixels.shape[-2:]
    out = np.zeros_like(pixels)
    for k, weight in zip(fusion.halvings, fusion.weights, strict=True):
        small = max(1, height // 2**k), max(1, width // 2**k)
        rows = resampling(small[0], height) @ resampling(height, small[0])
        columns = resampling(small[1], width) @ resampling(width, small[1])
        out += weight * (rows @ pixels @ columns.T)
    return out


class TestDepthAlgebra:
    FUSION = ScaleFusion((0, 1, 3, 4, 5), (0.1, 0.3, 0.05, 0.35, 0.2))

    @pytest.mark.parametrize("size", [(32, 48), (33, 47), (64, 96), (7, 5), (1, 1)])
    def test_fusion_against_numpy(self, size: tuple[int, int]) -> None:
        pixels = np.random.default_rng(1).random((2, 3, *size))
        got = self.FUSION(torch.from_numpy(pixels))
        np.testing.assert_allclose(got.numpy(), numpy_fusion(pixels, self.FUSION), rtol=0, atol=1e-12)

    def test_full_size_alone_is_the_picture_itself(self) -> None:
        pixels = torch.rand(1, 3, 20, 30, generator=generator())
        torch.testing.assert_close(ScaleFusion((0,), (1.0,))(pixels), pixels, rtol=0, atol=1e-7)

    @pytest.mark.parametrize("kernel", [1, 3, 7, 15])
    @pytest.mark.parametrize("size", [(32, 48), (5, 4)])
    def test_blur_is_the_mean_over_what_lies_inside(self, kernel: int, size: tuple[int, int]) -> None:
        pixels = np.random.default_rng(2).random(size)
        inside = ndimage.uniform_filter(np.ones(size), kernel, mode="constant")
        expected = ndimage.uniform_filter(pixels, kernel, mode="constant") / inside
        got = AverageBlur(kernel)(torch.from_numpy(pixels)[None, None])[0, 0]
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("operator", [FUSION, AverageBlur(9)])
    def test_linear_and_inside_the_range(self, operator: ScaleFusion | AverageBlur) -> None:
        a, b = torch.rand(2, 1, 3, 32, 48, generator=generator(3), dtype=torch.float64)
        torch.testing.assert_close(operator(2 * a - 3 * b), 2 * operator(a) - 3 * operator(b), rtol=0, atol=1e-12)
        assert a.min() <= operator(a).min() and operator(a).max() <= a.max()

    @pytest.mark.parametrize("level", [0, 1, 127, 200, 255])
    def test_a_flat_picture_stays_as_it_is(self, level: int) -> None:
        flat = np.full((20, 30, 3), level, dtype=np.uint8)
        (got,) = degrade_depth([flat], (self.FUSION, AverageBlur(15)))
        np.testing.assert_array_equal(got, flat)

    def test_frames_get_the_same_operators_in_order_and_are_rounded(self) -> None:
        frames = pictures()
        operators = (AverageBlur(5), self.FUSION)
        got = degrade_depth(iter(frames), operators)
        assert len(got) == len(frames) and all(frame.dtype == np.uint8 for frame in got)
        for frame, degraded in zip(frames, got, strict=True):
            channels = frame.transpose(2, 0, 1).astype(np.float64)
            inside = ndimage.uniform_filter(np.ones(channels.shape[1:]), 5, mode="constant")
            blurred = np.stack([ndimage.uniform_filter(c, 5, mode="constant") / inside for c in channels])
            expected = numpy_fusion(blurred, self.FUSION).transpose(1, 2, 0)
            assert np.abs(degraded - expected).max() <= 0.5 + 1e-3

    def test_nothing_drawn_changes_nothing(self) -> None:
        frames = list(pictures())
        assert all(got is given for got, given in zip(degrade_depth(frames, ()), frames, strict=True))


class TestDrawingFrames:
    def test_shares_of_the_paper(self) -> None:
        drawn = repeat(lambda one: draw_frame_operators(FrameDegradation(), one), 4 * DRAWS)
        assert all(len(operators) <= 1 for operators in drawn), "the papers have no colour drift"
        hit = [operators[0] for operators in drawn if operators]
        assert_share(len(hit), len(drawn), 0.2)
        trips = [operator.times for operator in hit if isinstance(operator, RoundTrips)]
        levels = [operator.level for operator in hit if isinstance(operator, Regeneration)]
        assert len(trips) + len(levels) == len(hit)
        assert_share(len(trips), len(hit), 0.2)
        assert_shares(trips, {k: 11 - k for k in range(11)})
        assert_shares(levels, {1: 5, 5: 4, 8: 3, 10: 2, 12: 1})

    @pytest.mark.parametrize(
        ("config", "share", "trips", "levels"),
        [
            (REFERENCE_FIRST_FRAME, 0.1, {0: 5, 1: 4, 2: 3, 3: 2, 4: 1}, {1: 6, 2: 4, 3: 3, 4: 2, 6: 1}),
            (REFERENCE_HISTORY, 0.05, {k: 8 - k for k in range(8)}, {1: 8, 5: 5, 8: 1}),
        ],
    )
    def test_shares_of_the_reference(self, config: FrameDegradation, share: float, trips: dict, levels: dict) -> None:
        drawn = [operator for operators in repeat(lambda one: draw_frame_operators(config, one)) for operator in operators]
        tints = [operator for operator in drawn if isinstance(operator, Tint)]
        assert_share(len(tints), DRAWS, share)
        assert_share(len(drawn) - len(tints), DRAWS, share)
        assert_shares([operator.times for operator in drawn if isinstance(operator, RoundTrips)], trips)
        assert_shares([operator.level for operator in drawn if isinstance(operator, Regeneration)], levels)

    def test_quality_and_colour_are_independent(self) -> None:
        config = FrameDegradation(probability=0.5, drift=ColorDrift(probability=0.5))
        kinds = [tuple(isinstance(o, Tint) for o in ops) for ops in repeat(lambda one: draw_frame_operators(config, one))]
        assert_shares(kinds, {(): 1, (False,): 1, (True,): 1, (False, True): 1})

    def test_ranges_of_the_tint(self) -> None:
        config = FrameDegradation(probability=0.0, drift=ColorDrift(probability=1.0, low=0.1, high=0.3))
        tints = [operators[0] for operators in repeat(lambda one: draw_frame_operators(config, one), 2000)]
        strengths, offsets = np.array([t.strength for t in tints]), np.array([t.offset for t in tints]).ravel()
        assert stats.kstest((strengths - 0.1) / 0.2, "uniform").pvalue > 1e-3
        assert stats.kstest((offsets + 0.1) / 0.2, "uniform").pvalue > 1e-3
        assert len({t.seed for t in tints}) == len(tints)

    def test_zero_round_trips_are_not_a_degradation(self) -> None:
        assert not is_degraded(()) and not is_degraded((RoundTrips(0),))
        for operator in (RoundTrips(1), Regeneration(1, 0), Tint(0.1, (0, 0, 0), 0.3, 0.08, 0)):
            assert is_degraded((operator,)) and is_degraded((RoundTrips(0), operator))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"probability": -0.1}, "0 .. 1"),
            ({"round_trips": (0, 1)}, "one weight"),
            ({"noise_levels": (0, 1, 2, 3, 4)}, "1 .. 999"),
            ({"noise_weights": (0, 0, 0, 0, 0)}, "one weight"),
        ],
    )
    def test_out_of_range(self, wrong: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FrameDegradation(**wrong)


class DimmingCodec:
    """Latents are the pixels themselves, padded to 16 channels; decoding takes 2.5 levels away, which truncation makes 3."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, frames) -> Tensor:
        self.encoded += 1
        pixels = torch.from_numpy(np.stack(list(frames))).float() / 127.5 - 1
        return torch.cat([pixels.permute(3, 0, 1, 2), torch.zeros(13, *pixels.shape[:3])])[None]

    def decode(self, latents: Tensor) -> np.ndarray:
        return (latents[0, :3].permute(1, 2, 3, 0) - 2.5 / 127.5).numpy()


def still(noisy: Tensor, timestep: Tensor) -> Tensor:
    return torch.zeros_like(noisy)


class TestRoundTrips:
    @pytest.mark.parametrize("times", [0, 1, 3, 10])
    def test_k_times_through_the_vae_and_to_8_bit_each_time(self, times: int) -> None:
        frames, codec = pictures(1), DimmingCodec()
        got = degrade_frames(frames, (RoundTrips(times),), codec, still)
        assert codec.encoded == times and got.dtype == np.uint8
        np.testing.assert_array_equal(got, np.maximum(frames.astype(int) - 3 * times, 0))

    def test_the_given_frames_are_left_alone(self) -> None:
        frames = pictures(5)
        before = frames.copy()
        degrade_frames(frames, (RoundTrips(2), Tint(0.2, (0.1, 0, 0), 0.3, 0.08, 1)), DimmingCodec(), still)
        np.testing.assert_array_equal(frames, before)

    @pytest.mark.parametrize("count", [0, 2, 4, 8, 16])
    def test_frames_that_the_vae_would_cut_are_refused(self, count: int) -> None:
        with pytest.raises(ValueError, match=f"{count} frames.*1, 5, 9"):
            degrade_frames(pictures(count), (RoundTrips(1),), DimmingCodec(), still)


class TestNoiseThenDenoise:
    LATENTS, NOISE = torch.randn(2, 1, 16, 1, 4, 6, generator=generator(5), dtype=torch.float64)

    @pytest.mark.parametrize("level", [1, 5, 8, 10, 12, 500])
    def test_the_true_velocity_gives_the_latents_back(self, level: int) -> None:
        seen = []

        def true(noisy: Tensor, timestep: Tensor) -> Tensor:
            seen.append((noisy, timestep))
            return self.NOISE - self.LATENTS

        got = noise_then_denoise(self.LATENTS, level, self.NOISE, true)
        torch.testing.assert_close(got, self.LATENTS, rtol=0, atol=1e-12)
        ((noisy, timestep),) = seen
        assert timestep.shape == (1,) and timestep.item() == pytest.approx(level, abs=1e-9)
        sigma = level / 1000
        torch.testing.assert_close(noisy, (1 - sigma) * self.LATENTS + sigma * self.NOISE, rtol=0, atol=1e-12)

    def test_a_denoiser_that_does_nothing_leaves_the_noise_in_proportion_to_t(self) -> None:
        left = {t: noise_then_denoise(self.LATENTS, t, self.NOISE, still) - self.LATENTS for t in (1, 5, 12)}
        for level, rest in left.items():
            torch.testing.assert_close(rest, level * left[1], rtol=0, atol=1e-12)

    def test_as_an_operator_it_depends_on_its_seed_alone(self) -> None:
        frames = pictures(5)
        run = [degrade_frames(frames, (Regeneration(300, seed),), DimmingCodec(), still) for seed in (7, 7, 8)]
        np.testing.assert_array_equal(run[0], run[1])
        assert (run[0] != run[2]).any() and run[0].shape == frames.shape


class TestTint:
    TINT = Tint(strength=0.3, offset=(0.1, -0.1, 0.05), variance=0.3, softness=0.08, seed=9)

    def apply(self, frames: np.ndarray, tint: Tint | None = None) -> np.ndarray:
        return degrade_frames(frames, (tint or self.TINT,), DimmingCodec(), still)

    def test_formula(self) -> None:
        frames = pictures(5)
        mask = self.TINT.mask(32, 48)
        colour = np.clip(frames.reshape(-1, 3).mean(axis=0) / 255 + np.array([0.1, -0.1, 0.05]), 0, 1)
        amount = 0.3 * (1 + 0.3 * (mask - 0.5))
        expected = (1 - amount[None, :, :, None]) * frames / 255 + amount[None, :, :, None] * colour
        assert np.abs(self.apply(frames) - np.floor(255 * expected + 1e-9)).max() <= 1
        assert (self.apply(frames) == np.floor(255 * expected + 1e-9)).mean() > 0.999

    def test_the_mask_is_smooth_and_fills_0_to_1(self) -> None:
        mask = self.TINT.mask(64, 96)
        assert mask.shape == (64, 96) and mask.min() == 0 and mask.max() == 1
        assert np.abs(np.diff(mask, axis=1)).max() < 0.15
        assert np.array_equal(mask, self.TINT.mask(64, 96))

    def test_all_frames_are_tinted_alike(self) -> None:
        frames = np.repeat(pictures(1), 5, axis=0)
        got = self.apply(frames)
        assert all(np.array_equal(got[0], frame) for frame in got) and not np.array_equal(got, frames)

    def test_it_moves_towards_one_colour(self) -> None:
        frames = pictures(1)
        assert self.apply(frames).std() < frames.std()
        full = Tint(1.0, (0, 0, 0), 0.0, 0.08, 0)
        assert np.ptp(self.apply(frames, full).reshape(-1, 3), axis=0).max() == 0

    def test_a_picture_of_one_pixel_has_a_mask(self) -> None:
        assert self.TINT.mask(1, 1).tolist() == [[0.0]]


class TestHistoryLength:
    def test_every_length_of_the_paper_is_alike_likely(self) -> None:
        drawn = repeat(lambda one: draw_history_length(HISTORY_LENGTHS, 100, one))
        assert_shares(drawn, dict.fromkeys(range(17), 1))

    def test_the_reference_has_none_for_a_fifth(self) -> None:
        drawn = repeat(lambda one: draw_history_length(REFERENCE_HISTORY_LENGTHS, 100, one))
        assert_shares(drawn, {0: 0.2, 4: 0.2, 8: 0.2, 12: 0.2, 16: 0.2})

    @pytest.mark.parametrize(
        ("lengths", "available", "longest"),
        [
            (HISTORY_LENGTHS, 0, 0),
            (HISTORY_LENGTHS, 7, 7),
            (REFERENCE_HISTORY_LENGTHS, 7, 4),
            (REFERENCE_HISTORY_LENGTHS, 3, 0),
        ],
    )
    def test_no_more_than_the_video_has(self, lengths: tuple[int, ...], available: int, longest: int) -> None:
        drawn = repeat(lambda one: draw_history_length(lengths, available, one), 300)
        assert max(drawn) == longest and set(drawn) <= set(lengths)

    def test_zero_must_be_among_them(self) -> None:
        with pytest.raises(ValueError, match="lack 0"):
            draw_history_length((4, 8), 2, generator())


def test_equal_generators_give_equal_draws_and_the_global_state_is_left_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (that is the point)
    depth, frame = DepthDegradation(probability=0.5, start=0.0), FrameDegradation(probability=0.5, drift=ColorDrift())

    def draw(one: torch.Generator) -> tuple:
        return (
            draw_dense_strength(FeatureDegradation(), one),
            draw_depth_operators(depth, 0, 1, one),
            draw_frame_operators(frame, one),
            draw_history_length(HISTORY_LENGTHS, 20, one),
        )

    runs = [repeat(draw, 200, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    degrade_frames(pictures(1), (Regeneration(5, 1), Tint(0.2, (0, 0, 0), 0.3, 0.08, 1)), DimmingCodec(), still)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002 (that is the point)
