"""Clips whose numbers broke are refused by name, before they are handed on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from longvie_core.control.control import Control
from longvie_core.disk.cache import ControlCache
from longvie_core.media.write import VideoWriter
from longvie_core.model.clip import ClipInputs
from longvie_core.plan import ClipPlan
from longvie_core.run.broken_clips import check_pictures, check_pixels
from longvie_core.run.control_latents import LatentStore
from longvie_core.run.job import LoopSettings, Script
from longvie_core.run.loop import Carry, generate

PLAN = ClipPlan(32, 32, 9, Fraction(16), source_frames=17)
LATENTS = (1, 16, PLAN.latent_frames, *PLAN.latent_size)
START = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class Backend:
    """A model that costs nothing, with one number broken in one step of one clip.

    Args:
        step: which method breaks.
        clip: in which clip; the steps before sampling count for the clip that comes next.
        value: the broken number.
    """

    def __init__(self, step: str = "", clip: int = 0, value: float = float("nan")) -> None:
        self.step, self.clip, self.value = step, clip, value
        self.now = 0

    def _maybe(self, step: str, numbers: torch.Tensor) -> torch.Tensor:
        if (step, self.now) == (self.step, self.clip):
            numbers.view(-1)[5] = self.value
        return numbers

    def encode(self, frames) -> torch.Tensor:
        frames = list(frames)
        step = "history" if len(frames) < PLAN.frames else "encode"
        return self._maybe(step, torch.ones(1, 16, 1 + (len(frames) - 1) // 4, *PLAN.latent_size))

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> torch.Tensor:
        return self._maybe("encode_first_frame", torch.ones(LATENTS))

    def encode_image(self, frame: np.ndarray, frames: int) -> torch.Tensor:
        return self._maybe("encode_image", torch.ones(LATENTS))

    def sample(self, inputs: ClipInputs) -> torch.Tensor:
        return self._maybe("sample", inputs.noise.clone())

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        pixels = np.random.default_rng(1).uniform(-1, 1, (PLAN.frames, 32, 32, 3)).astype(np.float32)
        pixels = self._maybe("decode", torch.from_numpy(pixels)).numpy()
        self.now += 1
        return pixels


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Control:
    path = tmp_path_factory.mktemp("dense") / "dense.mkv"
    with VideoWriter(path, 32, 32, Fraction(16), codec="lossless") as writer:
        for number in range(17):
            writer.write(np.full((32, 32, 3), number, np.uint8))
    return Control.from_video(path, "dense")


def clips_until_error(backend: Backend, dense: Control, store: LatentStore | None = None) -> tuple[list[int], str]:
    """The clips that were handed on, and the error that came then."""
    done = []
    with pytest.raises(ValueError) as error:
        for result in generate(
            Script(PLAN, dense, None, START), range(2), Carry.before_first(START), backend, LoopSettings(), store=store
        ):
            done.append(result.clip)
    return done, str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize(
    ("step", "words", "cause"),
    [
        ("encode", "encoding its dense control", "VAE"),
        ("encode_first_frame", "encoding its dense control", "VAE"),
        ("encode_image", "encoding its start frame", "VAE"),
        ("sample", "sampling gave 1 of", "cfg"),
        ("decode", "decoding gave 1 of", "VAE"),
    ],
)
def test_one_broken_number(step: str, words: str, cause: str, clip: int, value: float, dense: Control) -> None:
    done, text = clips_until_error(Backend(step, clip, value), dense)
    assert done == list(range(clip))
    assert text.startswith(f"clip {clip + 1}: {words}")
    assert "float16" in text and "damaged" in text and cause in text


def test_a_broken_history(dense: Control) -> None:
    done, text = clips_until_error(Backend("history", 1), dense)
    assert done == [0] and text.startswith("clip 2: encoding its history")


def test_broken_control_latents_are_not_kept(dense: Control, tmp_path) -> None:
    with LatentStore(ControlCache(tmp_path, 1 << 30), "vae") as store:
        clips_until_error(Backend("encode"), dense, store)
    assert list(tmp_path.iterdir()) == []


def test_broken_control_latents_that_an_earlier_version_kept_are_made_again(dense: Control, tmp_path) -> None:
    cache = ControlCache(tmp_path, 1 << 30)
    with LatentStore(cache, "vae") as store:
        store.write(dense.digest(PLAN, 0), torch.full(LATENTS, torch.nan), torch.zeros(LATENTS))
    with LatentStore(cache, "vae") as store:
        script = Script(PLAN, dense, None, START)
        results = list(generate(script, range(1), Carry.before_first(START), Backend(), LoopSettings(), store=store))
        assert [result.clip for result in results] == [0]
        (video, _) = store.read(dense.digest(PLAN, 0), LATENTS)
        assert video.isfinite().all()


def test_finite_pixels_pass() -> None:
    check_pixels(np.array([-3e38, 3e38], np.float32), 0)


BLACK = np.zeros_like(START)
STRIPES = np.zeros_like(START)
STRIPES[::2] = 255


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (12, 200, 7)])
def test_a_clip_of_one_flat_colour(colour: tuple[int, int, int]) -> None:
    frames = np.broadcast_to(np.array(colour, np.uint8), (9, 32, 32, 3))
    with pytest.raises(ValueError, match="clip 4: decoding gave pictures of one flat colour. Likely causes: the VAE"):
        check_pictures(frames, START, 3)
    check_pictures(frames, np.full_like(START, 80), 3)


def test_a_clip_of_nothing_but_black_and_white() -> None:
    frames = np.stack([STRIPES] * 9)
    with pytest.raises(ValueError, match="clip 1: decoding gave pictures of nothing but extreme values"):
        check_pictures(frames, START, 0)
    check_pictures(frames, STRIPES, 0)


def test_a_fade_to_black_is_no_damage() -> None:
    check_pictures(np.stack([START, *[BLACK] * 8]), START, 0)
    check_pictures(np.stack([*[BLACK] * 8, START]), START, 0)
