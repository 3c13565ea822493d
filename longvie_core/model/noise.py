"""Unified noise initialisation (P1 section 3.2) and the first-frame blend of later clips (P2, reference code)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..finite import finite

NOISE_MODES = ("unified", "per clip", "global + alpha * N(0,1)")

FIRST_FRAME_SIGMA = 25 / 27
"""The reference's constant 0.925926: how much of the noise stays in the first latent frame of clips after the first."""


def gaussian(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 noise from a CPU generator of its own: the same on every machine, global state untouched."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def clip_seed(seed: int, clip: int) -> int:
    """A 63-bit seed that depends on (seed, clip) alone, so that any clip can be drawn without the ones before it."""
    return int.from_bytes(hashlib.sha256(f"longvie:{seed}:{clip}".encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class UnifiedNoise:
    """Initial noise of every clip; works as a NOISE of the host's samplers as well.

    Args:
        seed: seed of the shared noise.
        mode: ``"unified"``: one tensor starts every clip (LongVie). ``"per clip"``: every clip its own (the ablation of P1
            table 4). ``"global + alpha * N(0,1)"``: the shared tensor plus ``alpha`` times a clip's own, not rescaled (P1
            appendix uses alpha 0.05).
        alpha: weight of the clip's own noise in the third mode.

    Raises:
        ValueError: unknown mode or negative alpha.
    """

    seed: int = 0
    mode: str = "unified"
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.mode not in NOISE_MODES:
            raise ValueError(f"noise mode {self.mode!r} is not one of: {', '.join(NOISE_MODES)}")
        finite(alpha=self.alpha)
        if self.alpha < 0:
            raise ValueError(f"noise alpha {self.alpha} is negative: use 0 or more (P1 used 0.05)")

    @property
    def description(self) -> str:
        """The settings that change the noise, in words."""
        return f"seed {self.seed}, {self.mode}" + (f", alpha {self.alpha}" if self.mode == NOISE_MODES[2] else "")

    def for_clip(self, clip: int, shape: tuple[int, ...], seed_offset: int = 0) -> Tensor:
        """A fresh float32 CPU tensor of ``shape`` [B, 16, f, h, w] for clip ``clip``; equal calls give equal bits.

        ``seed_offset`` moves this clip away from the shared noise (0 = stay with it).
        """
        seed = (self.seed + seed_offset) % 2**64  # the range of torch's seeds, which is also the host's
        if self.mode == "per clip":
            return gaussian(clip_seed(seed, clip), shape)
        shared = gaussian(seed, shape)
        if self.mode == "unified":
            return shared
        return shared + self.alpha * gaussian(clip_seed(seed, clip), shape)

    def generate_noise(self, latent: dict) -> Tensor:
        """The host's NOISE interface: noise of the first clip in the shape of ``latent["samples"]``."""
        return self.for_clip(0, tuple(latent["samples"].shape))


def blend_first_frame(noise: Tensor, history_latents: Tensor, sigma: float = FIRST_FRAME_SIGMA) -> Tensor:
    """Noise of a later clip whose first latent frame leans on the history: ``(1 - s) * history[last] + s * noise[0]``.

    The shared noise itself is left as it is; the reference overwrites it in place.

    Args:
        noise: [B, 16, f, h, w].
        history_latents: normalised latents [B, 16, f_h, h, w], f_h >= 1.
        sigma: s, 25/27 in the reference whatever the number of steps.

    Returns:
        A new tensor [B, 16, f, h, w].
    """
    first = (1 - sigma) * history_latents[:, :, -1:].to(noise) + sigma * noise[:, :, :1]
    return torch.cat([first, noise[:, :, 1:]], dim=2)


def initial_latents(noise: Tensor, history_latents: Tensor | None, sigma: float = FIRST_FRAME_SIGMA) -> Tensor:
    """What sampling starts from: the noise, its first frame blended with the history where there is one."""
    return noise if history_latents is None else blend_first_frame(noise, history_latents, sigma)
