"""Channel layouts of the conditions, by channel number, and the 8-bit arithmetic, by Python's own integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from longvie_core.model.conditioning import (
    control_condition,
    encoded_history_frames,
    first_frame_mask,
    first_frame_then_grey,
    frames_to_uint8,
    history_input,
    image_condition,
    pixels_from_uint8,
)


def latents(start: float, frames: int = 3, batch: int = 2) -> torch.Tensor:
    """Latents [B, 16, f, 2, 3] whose every value is different."""
    count = batch * 16 * frames * 2 * 3
    return (start + torch.arange(count, dtype=torch.float64)).view(batch, 16, frames, 2, 3)


def assert_is_mask(mask: torch.Tensor) -> None:
    assert mask.shape[1] == 4
    assert (mask[:, :, 0] == 1).all() and (mask[:, :, 1:] == 0).all()


class TestLayouts:
    def test_mask(self) -> None:
        mask = first_frame_mask(latents(1))
        assert mask.shape == (2, 4, 3, 2, 3) and mask.dtype == torch.float64
        assert_is_mask(mask)

    def test_image_condition_is_mask_then_image(self) -> None:
        image = latents(1)
        got = image_condition(image)
        assert got.shape == (2, 20, 3, 2, 3)
        assert_is_mask(got[:, :4])
        assert torch.equal(got[:, 4:], image)

    def test_control_condition_is_video_then_mask_then_first_frame(self) -> None:
        video, first = latents(1), latents(10_000)
        got = control_condition(video, first)
        assert got.shape == (2, 36, 3, 2, 3)
        assert torch.equal(got[:, :16], video)
        assert_is_mask(got[:, 16:20])
        assert torch.equal(got[:, 20:], first)

    @pytest.mark.parametrize("frames", [1, 2])
    def test_history_is_ones_then_latents(self, frames: int) -> None:
        past = latents(5, frames)
        got = history_input(past)
        assert got.shape == (2, 36, frames, 2, 3) and got.dtype == past.dtype
        assert (got[:, :20] == 1).all()
        assert torch.equal(got[:, 20:], past)

    def test_inputs_stay_as_they_are(self) -> None:
        video, first = latents(1), latents(2)
        control_condition(video, first).zero_()
        history_input(video).zero_()
        assert torch.equal(video, latents(1)) and torch.equal(first, latents(2))


@pytest.mark.parametrize(
    ("given", "encoded"),
    [(0, 0), (1, 1), (2, 1), (4, 1), (5, 5), (7, 5), (8, 5), (9, 9), (12, 9), (13, 13), (16, 13), (17, 17)],
)
def test_history_frames_that_count(given: int, encoded: int) -> None:
    assert encoded_history_frames(given) == encoded


class TestPixels:
    def test_uint8_to_pixels(self) -> None:
        values = np.arange(256, dtype=np.uint8)
        exact = np.array([float(Fraction(2 * value, 255) - 1) for value in range(256)])
        got = pixels_from_uint8(values)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, exact, rtol=0, atol=2e-7)
        assert got[0] == -1 and got[255] == pytest.approx(1, abs=2e-7)

    def test_truncates_and_never_rounds(self) -> None:
        # (v + 1) * 127.5 of these is exact in float32: 0, 63.75, 127.5, 191.25, 255
        pixels = np.array([-1, -0.5, 0, 0.5, 1], np.float32)
        assert frames_to_uint8(pixels).tolist() == [0, 63, 127, 191, 255]

    def test_just_below_a_level_is_the_level_below(self) -> None:
        levels = np.arange(256)
        middle = ((levels + 0.5) / 127.5 - 1).astype(np.float32)
        almost = ((levels + 0.999) / 127.5 - 1).astype(np.float32)
        assert frames_to_uint8(middle[:255]).tolist() == levels[:255].tolist()
        assert frames_to_uint8(almost[:255]).tolist() == levels[:255].tolist()

    def test_clips_what_is_out_of_range(self) -> None:
        pixels = np.array([-1.0001, -5, -np.inf, 1.0001, 3, np.inf], np.float32)
        got = frames_to_uint8(pixels)
        assert got.dtype == np.uint8 and got.tolist() == [0, 0, 0, 255, 255, 255]

    def test_a_round_trip_loses_at_most_one_level_and_gains_none(self) -> None:
        values = np.arange(256, dtype=np.uint8)
        lost = values.astype(int) - frames_to_uint8(pixels_from_uint8(values))
        assert set(lost.tolist()) <= {0, 1}

    def test_inputs_stay_as_they_are(self) -> None:
        pixels = np.array([-2, 0.25, 2], np.float32)
        frames_to_uint8(pixels)
        assert pixels.tolist() == [-2, 0.25, 2]


def test_first_frame_then_mid_grey() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    got = first_frame_then_grey(frame, 5)
    assert got.shape == (5, 4, 6, 3) and got.dtype == np.float32
    np.testing.assert_allclose(got[0], frame / 127.5 - 1, rtol=0, atol=2e-7)
    assert (got[1:] == 0).all()
