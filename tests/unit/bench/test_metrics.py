"""Measures of a video against their formulas, hand-made pictures and known distributions."""

from __future__ import annotations

import numpy as np
import pytest

from longvie_core.bench.metrics import (
    adjacent_differences,
    bootstrap_interval,
    colour_change,
    edge_agreement,
    edge_magnitude,
    seam_score,
    ssim,
)


def textures(seed: int, frames: int = 3) -> np.ndarray:
    """Coarse random pictures, uint8 [T, 32, 48, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (frames, 8, 12, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


class TestSsim:
    @pytest.mark.parametrize("level", [2, 20, 120])
    def test_it_is_the_formula_of_wang_et_al(self, level: int) -> None:
        """Sums over every 11x11 window that lies in the picture, weighted by a Gaussian of sigma 1.5."""
        wanted = textures(1)
        noise = np.random.default_rng(2).normal(0, level, wanted.shape)
        found = np.clip(wanted + noise, 0, 255).astype(np.uint8)
        bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
        weights = np.outer(bell, bell) / bell.sum() ** 2

        def weighted(values: np.ndarray) -> np.ndarray:
            windows = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), (11, 11), axis=(1, 2))
            return (windows * weights).sum(axis=(-2, -1))

        x, y = found.astype(np.float64), wanted.astype(np.float64)
        mean_x, mean_y = weighted(x), weighted(y)
        variance_x, variance_y = weighted(x * x) - mean_x**2, weighted(y * y) - mean_y**2
        covariance = weighted(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        index /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
        assert ssim(found, wanted) == pytest.approx(index.mean(), abs=1e-9)

    def test_equal_videos_have_1(self) -> None:
        assert ssim(textures(1), textures(1)) == pytest.approx(1, abs=1e-12)

    def test_flat_pictures_differ_by_their_brightness_alone(self) -> None:
        a, b, c1 = 100.0, 160.0, (0.01 * 255) ** 2
        shape = (2, 20, 20, 3)
        found = ssim(np.full(shape, a, np.uint8), np.full(shape, b, np.uint8))
        assert found == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-9)

    @pytest.mark.parametrize("shapes", [((2, 32, 48, 3), (3, 32, 48, 3)), ((2, 10, 48, 3), (2, 10, 48, 3))])
    def test_what_cannot_be_compared_is_refused(self, shapes) -> None:
        with pytest.raises(ValueError, match="SSIM needs equal shapes"):
            ssim(*(np.zeros(shape, np.uint8) for shape in shapes))


class TestEdges:
    def test_a_ramp_has_eight_times_its_slope(self) -> None:
        ramp = np.broadcast_to(5 * np.arange(20), (1, 10, 20))
        np.testing.assert_allclose(edge_magnitude(ramp)[:, :, 1:-1], 40)
        np.testing.assert_allclose(edge_magnitude(ramp.transpose(0, 2, 1))[:, 1:-1], 40)

    def test_channels_add_up_as_squares(self) -> None:
        ramp = np.arange(20)[:, None] * np.array([3, 0, 4])
        np.testing.assert_allclose(edge_magnitude(np.broadcast_to(ramp, (1, 10, 20, 3)))[:, :, 1:-1], 40)

    def test_an_edge_between_equally_bright_colours_counts(self) -> None:
        picture = np.zeros((1, 10, 20, 3), np.uint8)
        picture[:, :, :10, 0] = picture[:, :, 10:, 1] = 200
        assert edge_magnitude(picture)[0, 5, 9] > 0

    def test_agreement_is_the_correlation_of_the_edges(self) -> None:
        frames, control = textures(1), textures(2)[..., 0]
        edges = edge_magnitude(frames).ravel(), edge_magnitude(control).ravel()
        assert edge_agreement(frames, control) == pytest.approx(np.corrcoef(*edges)[0, 1], abs=1e-12)

    def test_the_depth_as_a_picture_agrees_whatever_its_polarity(self) -> None:
        depth = textures(1)[..., 0]
        for picture in (depth, 255 - depth):
            assert edge_agreement(np.repeat(picture[..., None], 3, axis=-1), depth) == pytest.approx(1)

    def test_moved_edges_agree_less(self) -> None:
        frames, depth = textures(1), textures(1).mean(axis=-1).astype(np.uint8)
        assert edge_agreement(frames, depth) > 0.6 > 0.1 > edge_agreement(frames, np.roll(depth, 2, axis=(1, 2)))

    def test_a_blank_picture_follows_nothing(self) -> None:
        blank = np.full((3, 32, 48, 3), 90, np.uint8)
        assert edge_agreement(blank, textures(1)[..., 0]) == 0
        assert edge_agreement(textures(1), blank[..., 0]) == 0


class TestSeams:
    def video(self, steps: list[int]) -> np.ndarray:
        """A video whose brightness rises by ``steps``."""
        return np.broadcast_to(np.cumsum([0, *steps])[:, None, None, None], (len(steps) + 1, 4, 6, 3)).astype(np.uint8)

    def test_adjacent_differences_do_not_wrap_around(self) -> None:
        np.testing.assert_allclose(adjacent_differences(self.video([250, -240, 3])), [250, 240, 3])

    def test_the_jump_at_seams_over_the_median_elsewhere(self) -> None:
        video = self.video([2, 2, 9, 2, 10, 2, 2, 20, 2])
        assert seam_score(video, [5, 8]) == pytest.approx((10 + 20) / 2 / 2)
        assert seam_score(video, [4, 7]) == pytest.approx(2 / 2)

    def test_a_video_without_jumps_has_1(self) -> None:
        assert seam_score(self.video([3] * 9), [4, 7]) == 1

    def test_where_nothing_else_moves_it_is_infinite(self) -> None:
        assert seam_score(self.video([0, 0, 5, 0, 0]), [3]) == float("inf")


def test_colour_change_is_that_of_mean_and_deviation() -> None:
    first = np.zeros((2, 4, 4, 3), np.uint8)
    last = first.copy()
    last[..., 0] = 30
    last[:, ::2, :, 1] = 20
    np.testing.assert_allclose(colour_change(first, last), [[30, 10, 0], [0, 10, 0]])


class TestBootstrap:
    def test_95_percent_intervals_hold_the_mean_about_as_often(self) -> None:
        samples = np.random.default_rng(3).normal(3, 2, (400, 40))
        intervals = np.array([bootstrap_interval(sample, resamples=1000) for sample in samples])
        assert 0.915 < np.mean((intervals - 3).prod(axis=1) < 0) < 0.965

    def test_an_interval_is_as_wide_as_the_normal_one(self) -> None:
        sample = np.random.default_rng(4).normal(-1, 2, 500)
        error = sample.std() / np.sqrt(len(sample))
        normal = sample.mean() + 1.96 * error * np.array([-1, 1])
        np.testing.assert_allclose(bootstrap_interval(sample), normal, atol=0.1 * error)
        low, high = bootstrap_interval(sample, level=0.5)
        assert high - low == pytest.approx(2 * 0.6745 * error, rel=0.05)

    def test_the_same_values_give_the_same_interval_and_another_seed_another(self) -> None:
        sample = [0.1, 0.4, -0.2, 0.9, 0.3, 0.77, -0.41, 0.6]
        assert bootstrap_interval(sample) == bootstrap_interval(sample) != bootstrap_interval(sample, seed=1)

    def test_equal_values_have_no_spread(self) -> None:
        assert bootstrap_interval([0.1] * 7) == (0.1, 0.1)

    def test_a_skewed_sample_has_an_interval_that_reaches_farther_to_its_tail(self) -> None:
        """Of 30 exponential numbers the mean's error is skewed: bias correction and acceleration move both bounds that way."""
        sample = np.random.default_rng(5).exponential(1, 30)
        drawn = np.random.default_rng(0).choice(sample, (10_000, 30)).mean(axis=1)
        (low, high), (percentile_low, percentile_high) = bootstrap_interval(sample), np.quantile(drawn, [0.025, 0.975])
        assert low > percentile_low + 0.01 and high > percentile_high + 0.01

    @pytest.mark.parametrize("sample", [[1.0, 2.0], [0.0, 0.0, 1.0], [-1e-9, 1e-9, 0.0], [5.0, 5.0, 5.0, 5.0 + 1e-12]])
    def test_small_samples_with_any_spread_have_finite_bounds_around_the_mean(self, sample: list[float]) -> None:
        low, high = bootstrap_interval(sample)
        assert np.isfinite([low, high]).all() and low <= np.mean(sample) <= high

    def test_one_value_says_nothing_of_its_spread_and_none_nothing_at_all(self) -> None:
        assert bootstrap_interval([2.0]) == (float("-inf"), float("inf"))
        with pytest.raises(ValueError, match="no values"):
            bootstrap_interval([])
