"""Colour anchoring against plain numpy, and against a backend whose colours drift."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longvie_core.model.conditioning import frames_to_uint8
from longvie_core.run.colour_anchor import (
    MAX_GAIN,
    AnchorSettings,
    anchor_latents,
    anchor_pixels,
    correction,
    latent_statistics,
    pixel_statistics,
)


def random_frames(seed: int, mean: tuple[float, ...], spread: float, count: int = 5) -> np.ndarray:
    """Float32 pixels [count, 24, 32, 3] about the given mean of each channel, well inside [-1, 1]."""
    noise = np.random.default_rng(seed).uniform(-1, 1, (count, 24, 32, 3))
    return (np.array(mean) + spread * noise).astype(np.float32)


class TestStatistics:
    def test_pixels_are_numpys(self) -> None:
        frames = np.random.default_rng(1).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)
        pixels = (frames.astype(np.float64) + 0.5) / 127.5 - 1
        expected = [pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))]
        np.testing.assert_allclose(pixel_statistics(frames), expected, rtol=0, atol=1e-12)

    def test_truncation_does_not_shift_them(self) -> None:
        """What was darkened by half a level on average when it became 8 bit is measured where it was before."""
        pixels = random_frames(2, (0.1, -0.3, 0.5), 0.4, count=20)
        measured = pixel_statistics(frames_to_uint8(pixels))
        np.testing.assert_allclose(measured[0], pixels.mean(axis=(0, 1, 2)), rtol=0, atol=2e-4)
        np.testing.assert_allclose(measured[1], pixels.std(axis=(0, 1, 2)), rtol=0, atol=2e-4)

    def test_latents_are_numpys_over_frames_and_places(self) -> None:
        latents = torch.randn((1, 16, 5, 4, 6), generator=torch.Generator().manual_seed(3)) * 2 + 1
        values = latents.double().numpy()[0]
        expected = [values.mean(axis=(1, 2, 3)), values.std(axis=(1, 2, 3))]
        np.testing.assert_allclose(latent_statistics(latents), expected, rtol=0, atol=1e-12)


class TestCorrection:
    OWN, REFERENCE = np.array([[0.5, -0.2], [0.2, 0.4]]), np.array([[0.3, 0.1], [0.3, 0.3]])

    def test_at_full_strength_the_last_frame_gets_the_firsts_statistics(self) -> None:
        gain, offset = correction(self.OWN, self.REFERENCE, 1.0, 5)
        np.testing.assert_allclose(gain[-1] * self.OWN[0] + offset[-1], self.REFERENCE[0])
        np.testing.assert_allclose(gain[-1] * self.OWN[1], self.REFERENCE[1])

    def test_it_grows_evenly_from_nothing(self) -> None:
        gain, offset = correction(self.OWN, self.REFERENCE, 0.6, 5)
        assert (gain[0] == 1).all() and (offset[0] == 0).all()
        full_gain, full_offset = correction(self.OWN, self.REFERENCE, 1.0, 2)
        for frame, weight in enumerate(0.6 * np.array([0, 0.25, 0.5, 0.75, 1])):
            np.testing.assert_allclose(gain[frame] - 1, weight * (full_gain[-1] - 1))
            np.testing.assert_allclose(offset[frame], weight * full_offset[-1])

    @pytest.mark.parametrize(
        ("own", "reference", "gain"), [(0.01, 0.5, MAX_GAIN), (0.0, 0.5, MAX_GAIN), (0.5, 0.0, 1 / MAX_GAIN)]
    )
    def test_contrast_is_at_most_doubled_or_halved(self, own: float, reference: float, gain: float) -> None:
        got, offset = correction(np.array([[0.2], [own]]), np.array([[0.4], [reference]]), 1.0, 3)
        np.testing.assert_allclose(got[-1], gain)
        np.testing.assert_allclose(got[-1] * 0.2 + offset[-1], 0.4)


class TestAnchoring:
    def test_pixels_end_with_the_reference_and_begin_untouched(self) -> None:
        first = frames_to_uint8(random_frames(4, (0.0, 0.1, -0.1), 0.3))
        # One picture repeated: its statistics are those of each of its frames.
        drifted = np.repeat(random_frames(5, (0.2, 0.05, -0.3), 0.45, count=1), 5, axis=0)
        before = drifted.copy()
        got = anchor_pixels(drifted, pixel_statistics(first), 1.0)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got[0], drifted[0])
        np.testing.assert_array_equal(drifted, before)
        np.testing.assert_allclose(pixel_statistics(frames_to_uint8(got[-1:])), pixel_statistics(first), rtol=0, atol=3e-3)
        assert np.abs(drifted[-1].mean(axis=(0, 1)) - pixel_statistics(first)[0]).max() > 0.15

    def test_latents_end_with_the_reference_and_begin_untouched(self) -> None:
        reference = latent_statistics(torch.randn((1, 16, 4, 8, 8), generator=torch.Generator().manual_seed(6)))
        one = torch.randn((1, 16, 1, 8, 8), generator=torch.Generator().manual_seed(7)) * 1.4 + 0.5
        drifted = one.repeat(1, 1, 6, 1, 1)
        got = anchor_latents(drifted, reference, 1.0)
        assert got.dtype == torch.float32
        assert torch.equal(got[:, :, 0], drifted[:, :, 0])
        np.testing.assert_allclose(latent_statistics(got[:, :, -1:]), reference, rtol=0, atol=1e-5)

    def test_the_clip_itself_as_reference_changes_nothing_to_speak_of(self) -> None:
        pixels = random_frames(8, (0.0, 0.3, -0.2), 0.4)
        same = anchor_pixels(pixels, pixel_statistics(frames_to_uint8(pixels)), 1.0)
        np.testing.assert_allclose(same, pixels, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("settings", [AnchorSettings(), AnchorSettings("pixels", 0.0), AnchorSettings("off", 1.0)])
    def test_off_hands_the_very_same_things_on_and_measures_nothing(self, settings: AnchorSettings) -> None:
        pixels, latents = random_frames(9, (0.0, 0.0, 0.0), 0.2), torch.zeros(1, 16, 2, 4, 4)
        reference = np.zeros((2, 3))
        assert not settings.active
        assert settings.pixels(pixels, reference) is pixels and settings.latents(latents, reference) is latents
        assert settings.statistics(latents, frames_to_uint8(pixels)) is None

    def test_each_space_leaves_the_other_alone(self) -> None:
        pixels, latents = random_frames(9, (0.0, 0.0, 0.0), 0.2), torch.zeros(1, 16, 2, 4, 4)
        assert AnchorSettings("latent", 1.0).pixels(pixels, np.zeros((2, 16))) is pixels
        assert AnchorSettings("pixels", 1.0).latents(latents, np.zeros((2, 3))) is latents

    @pytest.mark.parametrize(
        ("space", "strength", "message"),
        [
            ("rgb", 0.5, "anchor 'rgb' is not one of off, pixels, latent"),
            ("pixels", -0.1, "anchor strength -0.1 is outside 0 .. 1"),
            ("latent", 1.1, "anchor strength 1.1 is outside 0 .. 1"),
            ("latent", float("nan"), "anchor strength nan is outside 0 .. 1"),
        ],
    )
    def test_settings_out_of_range(self, space: str, strength: float, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            AnchorSettings(space, strength)
