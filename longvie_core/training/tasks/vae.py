"""The VAE task: pictures of the procedural world through a small Wan 2.1 VAE, once and several times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from ..data.scenes import SceneSet
from ..loop.muon import Muon
from ..networks.whole_clip_vae import WholeClipVae, fold_statistics
from .pictures import pixels_of, psnr, strip


def picture_loss(pictures: Tensor, truth: Tensor) -> Tensor:
    """How far pictures [B, 3, T, H, W] in -1 .. 1 are apart: values, edges, and colour, fine and coarse.

    Colour has terms of its own: without them training stays with a network that knows only grey.
    """
    error = pictures - truth
    chroma = error - error.mean(dim=1, keepdim=True)
    return (
        error.abs().mean()
        + 0.5 * error.square().mean()
        + 0.5 * (error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean())
        + 2.0 * chroma.abs().mean()
        + 1.5 * _coarse(chroma).abs().mean()
        + 0.5 * _coarse(error).abs().mean()
    )


def _coarse(error: Tensor) -> Tensor:
    return F.avg_pool3d(error, (1, 4, 4))


class Phase(NamedTuple):
    """What batches look like up to a step.

    Args:
        until: first step that is not in it.
        frames: frames a crop, 4n + 1.
        height, width: pixels a crop; multiples of 8.
        batch: crops.
        round_trip_weight: of the loss after another round trip through the VAE; 0 = no such term.
        most_trips: the most round trips that pictures have been through before that loss is taken.
    """

    until: int
    frames: int
    height: int
    width: int
    batch: int
    round_trip_weight: float
    most_trips: int = 1


@dataclass(frozen=True)
class VaeSettings:
    """What the VAE is trained on and for.

    Args:
        phases: one after another: images, then longer and longer clips.
        videos: how many of the training videos are used, from the first; a set may still be growing.
        muon_lr, adam_lr: learning rates of the kernels (Muon) and of all else (Adam).
        latent_noise: standard deviation of the noise on latents before they are decoded.
        small: weight that keeps latents small, on their square.
        kind_shares: of the crops, those from pictures, depth and tracks.
        grey: share of crops whose frames after the first are grey, as first-frame latents have them.
    """

    phases: tuple[Phase, ...]
    videos: int = 200
    muon_lr: float = 3e-3
    adam_lr: float = 2e-3
    latent_noise: float = 0.03
    small: float = 1e-4
    kind_shares: tuple[float, float, float] = (0.55, 0.2, 0.25)
    grey: float = 0.1

    def phase(self, step: int) -> Phase:
        """The phase that a step is in."""
        return next((phase for phase in self.phases if step < phase.until), self.phases[-1])


class Crops(NamedTuple):
    """What a step learns from.

    Args:
        pictures: uint8 [B, T, H, W, 3].
        noise: on their latents [B, 16, f, h, w].
        round_trip_weight: of the loss after another round trip through the VAE; 0 = no such term.
        trips: round trips that the pictures have been through by then, besides the first.
    """

    pictures: Tensor
    noise: Tensor
    round_trip_weight: float
    trips: int


class VaeTask:
    """:class:`~longvie_core.training.loop.trainer.Task`: the VAE on pictures, depth and tracks of the procedural world.

    Args:
        settings: crops, learning rates and the terms' weights.
        scenes: training videos.
        held_out: videos for the sheets.
        vae: where it starts from.

    Raises:
        ValueError: not all of the training videos are rendered.
    """

    def __init__(self, settings: VaeSettings, scenes: SceneSet, held_out: SceneSet, vae: AutoencoderKLWan) -> None:
        missing = settings.videos - int(scenes.done[: settings.videos].sum())
        if missing:
            raise ValueError(f"{missing} of the first {settings.videos} training videos are not rendered: render them first")
        self.settings = settings
        self.scenes = scenes
        self.held_out = held_out
        self.network = WholeClipVae(vae)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        parameters = list(self.network.parameters())
        kernels = [value for value in parameters if value.ndim >= 4 and value[0].numel() >= 16]
        others = [value for value in parameters if not any(value is kernel for kernel in kernels)]
        muon = Muon(kernels, self.settings.muon_lr)
        return [muon, torch.optim.Adam(others, lr=self.settings.adam_lr, betas=(0.9, 0.98))]

    def batch(self, step: int, generator: torch.Generator) -> Crops:
        phase = self.settings.phase(step)
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        pictures = np.stack([self._crop(phase, rng) for _ in range(phase.batch)])
        latents = (phase.batch, 16, 1 + (phase.frames - 1) // 4, phase.height // 8, phase.width // 8)
        noise = self.settings.latent_noise * torch.randn(latents, generator=generator)
        return Crops(torch.from_numpy(pictures), noise, phase.round_trip_weight, int(rng.integers(phase.most_trips)))

    def losses(self, network: WholeClipVae, batch: Crops) -> Mapping[str, Tensor]:
        pixels = pixels_of(batch.pictures).contiguous(memory_format=torch.channels_last_3d)
        latents = network.encode(pixels)
        decoded = network.decode(latents + batch.noise.to(latents))
        terms = {
            "picture": picture_loss(decoded.float(), pixels),
            "small": self.settings.small * latents.float().square().mean(),
        }
        if batch.round_trip_weight:
            later = network.encode(self._round_trips(network, decoded.clamp(-1, 1), batch.trips))
            spread = latents.detach().float().var()
            moved = (later.float() - latents.float().detach()).square().mean() / spread
            terms["round_trip"] = batch.round_trip_weight * (moved + picture_loss(network.decode(later).float(), pixels))
        return terms

    def sheet(self, network: WholeClipVae) -> tuple[np.ndarray, Mapping[str, float]]:
        """Held-out clips, below each what comes out of the VAE; PSNR, also after 12 round trips of single frames."""
        rows, figures = [], {}
        device = next(network.parameters()).device
        for kind, clips in held_out_clips(self.held_out).items():
            clips = clips.to(device)
            decoded = network.decode(network.encode(clips)).float().clamp(-1, 1)
            figures[f"psnr {kind}"] = psnr(decoded, clips)
            rows += [strip(clips), strip(decoded)]
            if kind == "rgb":
                first = still = clips[:, :, :1]
                for _ in range(12):
                    still = network.decode(network.encode(still)).float().clamp(-1, 1)
                figures["psnr 12 round trips"] = psnr(still, first)
                rows.append(strip(still))
        return np.concatenate(rows), figures

    def export(self, network: WholeClipVae, folder: Path) -> None:
        """diffusers' layout, its latents with Wan 2.1's statistics."""
        mean, std = self._statistics(network)
        network.vae.cpu()
        fold_statistics(network.vae, mean, std)
        for parameter in network.vae.parameters():
            parameter.data = parameter.data.contiguous()
        network.vae.save_pretrained(folder)

    @torch.no_grad()
    def _statistics(self, network: WholeClipVae) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [16] of the latents of pictures, depth and tracks, in the shares of training."""
        rng = np.random.default_rng(0)
        frames, height, width = self.scenes.settings.frames, self.scenes.settings.height, self.scenes.settings.width
        phase = Phase(1, frames, height, width, 1, 0.0)
        latents = []
        for _ in range(64):
            pictures = torch.from_numpy(self._crop(phase, rng)[None]).to(next(network.parameters()).device)
            latents.append(network.encode(pixels_of(pictures)).flatten(2)[0])
        values = torch.cat(latents, dim=1).cpu()
        return values.mean(dim=1), values.std(dim=1)

    def _round_trips(self, network: WholeClipVae, pixels: Tensor, trips: int) -> Tensor:
        """Pictures after further round trips, without their gradients, which would need the memory of each trip."""
        if not trips:
            return pixels
        with torch.no_grad():
            for _ in range(trips):
                pixels = network.decode(network.encode(pixels)).clamp(-1, 1)
        return pixels

    def _crop(self, phase: Phase, rng: np.random.Generator) -> np.ndarray:
        """A random crop uint8 [T, H, W, 3] of a random kind."""
        video = rng.integers(self.settings.videos)
        kind = rng.choice(3, p=self.settings.kind_shares)
        if kind == 2:
            source = self.scenes.sparse[video, rng.integers(self.scenes.settings.clips)]
        else:
            source = (self.scenes.rgb, self.scenes.dense)[kind][video]
        start = rng.integers(len(source) - phase.frames + 1)
        y, x = (rng.integers(length - side + 1) for length, side in zip(source.shape[1:3], phase[2:4], strict=True))
        crop = source[start : start + phase.frames, y : y + phase.height, x : x + phase.width]
        crop = np.array(crop if kind != 1 else np.repeat(crop[..., None], 3, axis=-1))
        if rng.random() < 0.5:
            crop = crop[:, :, ::-1]
        if phase.frames > 1 and rng.random() < self.settings.grey:
            crop = crop.copy()
            crop[1:] = 128
        return np.ascontiguousarray(crop)


def held_out_clips(scenes: SceneSet, count: int = 6) -> dict[str, Tensor]:
    """Whole clips of held-out videos, [B, 3, T, H, W] in -1 .. 1, by kind."""
    frames = scenes.settings.frames
    chosen = scenes.finished[:count]
    kinds = {
        "rgb": scenes.rgb[chosen, :frames],
        "dense": np.repeat(scenes.dense[chosen, :frames, ..., None], 3, axis=-1),
        "sparse": scenes.sparse[chosen, 0],
    }
    return {name: pixels_of(torch.from_numpy(clips)) for name, clips in kinds.items()}
