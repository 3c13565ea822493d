"""Colour anchoring in the clip loop: a backend whose brightness and contrast creep, with and without it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from longvie_core.model.clip import ClipInputs
from longvie_core.plan import ClipPlan
from longvie_core.run.colour_anchor import AnchorSettings
from longvie_core.run.loop import Carry, ClipResult
from tests.helpers.loops import generated

CLIPS, SIZE = 8, 16
PLAN = ClipPlan(width=SIZE, height=SIZE, frames=17, source_frames=17 + 16 * (CLIPS - 1))
CREEP, GROWTH = 0.06, 1.10
"""What a clip adds to the brightness and multiplies the contrast by, from its start frame to its last."""

SCENE = np.random.default_rng(0).uniform(-0.3, 0.3, (SIZE, SIZE, 3)).astype(np.float32)


class DriftingBackend:
    """Continues its start frame: brighter and harder frame by frame. A latent channel is a colour channel of a frame."""

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        return torch.zeros(1, 16, 1, 2, 2)

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        return torch.zeros(1, 16, 1, 2, 2)

    encode_image = encode_first_frame

    def sample(self, inputs: ClipInputs) -> Tensor:
        start = (inputs.start_frame.astype(np.float32) + 0.5) / 127.5 - 1
        growing = np.linspace(0, 1, PLAN.frames)[:, None, None, None]
        frames = start * (1 + (GROWTH - 1) * growing) + CREEP * growing
        return torch.from_numpy(frames.astype(np.float32).transpose(3, 0, 1, 2))[None]

    def decode(self, latents: Tensor) -> np.ndarray:
        return latents.numpy()[0].transpose(1, 2, 3, 0)


def first_carry() -> Carry:
    return Carry(((SCENE + 1) * 127.5).astype(np.uint8)[None], first=True)


def render(anchor: AnchorSettings | None, clips: range = range(CLIPS), carry: Carry | None = None) -> list[ClipResult]:
    return list(
        generated(PLAN, clips, carry or first_carry(), None, None, lambda *_: torch.zeros(1), DriftingBackend(), anchor=anchor)
    )


def last_brightness(result: ClipResult) -> float:
    return float(result.frames[-1].mean() / 127.5 - 1)


def seam(earlier: ClipResult, later: ClipResult) -> float:
    """Change between the last frame of a clip and the one that is shown after it, in levels."""
    return float(np.abs(later.frames[1].astype(float) - earlier.frames[-1]).mean())


@pytest.mark.parametrize("space", ["pixels", "latent"])
def test_drift_stays_within_what_one_clip_adds(space: str) -> None:
    free, held = render(None), render(AnchorSettings(space, 1.0))
    # Without it the brightness runs away to white; with it, it settles at about half of what a clip adds.
    assert last_brightness(free[-1]) > 0.4
    assert abs(last_brightness(held[-1]) - last_brightness(held[0])) < CREEP
    assert np.std(held[-1].frames[-1]) < np.std(held[0].frames[-1]) * GROWTH
    assert np.std(free[-1].frames[-1]) > np.std(held[-1].frames[-1]) * 1.2
    weak = render(AnchorSettings(space, 0.3))
    assert last_brightness(held[-1]) < last_brightness(weak[-1]) < last_brightness(free[-1])


@pytest.mark.parametrize("space", ["pixels", "latent"])
def test_the_first_clip_is_untouched_and_no_seam_jumps(space: str) -> None:
    free, held = render(None), render(AnchorSettings(space, 1.0))
    np.testing.assert_array_equal(held[0].frames, free[0].frames)
    assert torch.equal(held[0].latents, free[0].latents)
    for earlier, later in zip(held, held[1:], strict=False):
        inside = np.abs(np.diff(later.frames.astype(float), axis=0)).mean(axis=(1, 2, 3))
        assert seam(earlier, later) <= inside.max() + 1


@pytest.mark.parametrize("space", ["pixels", "latent"])
def test_going_on_from_a_carry_gives_the_same_bits(space: str) -> None:
    anchor = AnchorSettings(space, 0.7)
    whole = render(anchor)
    for stop in (1, 4):
        rest = render(anchor, range(stop, CLIPS), whole[stop - 1].carry)
        for ours, theirs in zip(rest, whole[stop:], strict=True):
            np.testing.assert_array_equal(ours.frames, theirs.frames)
            assert torch.equal(ours.latents, theirs.latents)


def test_the_saved_latents_are_the_anchored_ones_in_latent_space_alone() -> None:
    for space, anchored in (("latent", True), ("pixels", False)):
        result = render(AnchorSettings(space, 1.0), range(2))[1]
        decoded = ((DriftingBackend().decode(result.latents) + 1) * 127.5).astype(np.uint8)
        assert np.array_equal(decoded, result.frames) is anchored


def test_off_is_what_it_was() -> None:
    plain, off = render(None), render(AnchorSettings("pixels", 0.0))
    for ours, theirs in zip(off, plain, strict=True):
        assert np.array_equal(ours.frames, theirs.frames) and ours.carry.anchor_statistics is None


def test_without_the_first_clips_colours_it_is_refused_before_anything_is_sampled() -> None:
    carry = Carry.after(PLAN, render(None, range(1))[0].frames)
    assert render(None, range(1, 2), carry)
    with pytest.raises(ValueError, match="first clip's colours are not known"):
        render(AnchorSettings("pixels", 0.5), range(1, 2), carry)
