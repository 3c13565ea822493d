"""A small Wan 2.1 video VAE, trained: diffusers' network, whole clips at once.

diffusers, like the host, runs the network in chunks of one and then four frames with a cache, so that memory stays flat. For
training the whole clip goes through in one piece, which gives the same numbers several times faster (``tests`` compare them).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample
from torch import Tensor, nn

from ..data.scenes import SceneSet
from ..loop.muon import MatrixMuon
from ..loop.trainer import TrainSettings, train

TINY_DIM = 8
"""Channels of the first layer; 96 in Wan 2.1. Everything else of the architecture is fixed by the host."""

MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


# ---- the network, a whole clip at a time


class WholeClipVae(nn.Module):
    """Wan 2.1's VAE without chunks and caches; ``vae`` is diffusers' network, whose forward is left as it is elsewhere.

    Args:
        vae: its convolutions are made to run on whole clips; use another copy to encode in chunks.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae
        for parameter in vae.parameters():  # channels innermost: two to three times faster on a CPU
            if parameter.ndim in MEMORY_FORMATS:
                parameter.data = parameter.data.contiguous(memory_format=MEMORY_FORMATS[parameter.ndim])
        for module in vae.modules():
            if isinstance(module, WanResample):
                module.forward = partial(_resample, module)
            elif isinstance(module, WanCausalConv3d):
                module.forward = partial(_causal_conv, module)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] in -1 .. 1 -> means of the latents [B, 16, 1 + (T-1)/4, H/8, W/8]."""
        return self.vae.quant_conv(self.vae.encoder(pixels))[:, : self.vae.config.z_dim]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pixels, not clamped."""
        return self.vae.decoder(self.vae.post_quant_conv(latents))


def tiny_vae(dim: int = TINY_DIM) -> AutoencoderKLWan:
    """Wan 2.1's VAE with ``dim`` channels, initialised so that it learns: see :func:`initialise`."""
    vae = AutoencoderKLWan(base_dim=dim)
    initialise(vae)
    return vae


@torch.no_grad()
def initialise(vae: AutoencoderKLWan) -> None:
    """Start from an image autoencoder that treats every frame alike, with activations of one variance all the way.

    Kernels see only the newest frame (their taps on older ones are zero), halving the frame rate takes the mean, and doubling
    it repeats: then four times fewer frames is something to improve on, not to discover. Each residual branch starts small.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Conv3d)):
            continue
        nn.init.zeros_(module.bias)
        weight = module.weight if module.weight.ndim == 4 else module.weight[:, :, -1]
        module.weight.zero_()
        weight.normal_(std=1 / sqrt(weight[0].numel()))
        if name.endswith("conv2") or name.endswith("proj"):
            weight.mul_(0.1)
        if name.endswith("time_conv"):
            module.weight.zero_()
            rows = torch.eye(module.in_channels).repeat(module.out_channels // module.in_channels, 1)
            if module.stride[0] == 2:
                module.weight.copy_(rows[:, :, None, None, None] / 3)
            else:
                module.weight[:, :, -1, 0, 0] = rows


def _causal_conv(conv: WanCausalConv3d, x: Tensor, cache_x: None = None) -> Tensor:
    """A convolution over a whole clip; in a single frame the taps on older frames would see only the padding."""
    if x.shape[2] == 1 and conv._padding[4] == conv.kernel_size[0] - 1:
        frame, kernel = (part.contiguous(memory_format=torch.channels_last) for part in (x[:, :, 0], conv.weight[:, :, -1]))
        return F.conv2d(frame, kernel, conv.bias, padding=(conv._padding[2], conv._padding[0]))[:, :, None]
    return nn.Conv3d.forward(conv, F.pad(x, conv._padding))


def _resample(layer: WanResample, x: Tensor, feat_cache: None = None, feat_idx: None = None) -> Tensor:
    """Space, and time but for the first frame, which stays a frame of its own."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        rest = layer.time_conv(x[:, :, 1:])
        batch, channels, frames, height, width = rest.shape
        rest = rest.view(batch, 2, channels // 2, frames, height, width).movedim(1, 3)
        x = torch.cat([x[:, :, :1], rest.reshape(batch, channels // 2, 2 * frames, height, width)], dim=2)
    batch, frames = x.shape[0], x.shape[2]
    x = layer.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
    if layer.mode == "downsample3d" and frames > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x


@torch.no_grad()
def fold_statistics(vae: AutoencoderKLWan, mean: Tensor, std: Tensor) -> None:
    """Move the latents' statistics to Wan 2.1's, which the host's latent format has fixed; decoded pictures stay the same.

    An affine map, folded into the 1x1x1 convolutions behind the encoder and before the decoder.

    Args:
        vae: changed in place.
        mean, std: [16], of its latents over the training pictures.
    """
    scale = torch.tensor(vae.config.latents_std) / std
    shift = torch.tensor(vae.config.latents_mean) - mean * scale
    channels = vae.config.z_dim
    vae.quant_conv.weight[:channels] *= scale[:, None, None, None, None]
    vae.quant_conv.bias[:channels] = vae.quant_conv.bias[:channels] * scale + shift
    inner = vae.post_quant_conv.weight[:, :, 0, 0, 0]
    vae.post_quant_conv.bias -= inner @ (shift / scale)
    vae.post_quant_conv.weight.div_(scale[None, :, None, None, None])


# ---- losses


def picture_loss(seen: Tensor, wanted: Tensor) -> Tensor:
    """How far pictures [B, 3, T, H, W] in -1 .. 1 are apart: values, edges, and colour, fine and coarse.

    Colour has terms of its own because a network that knows only grey is a minimum that training does not leave otherwise.
    """
    error = seen - wanted
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


def psnr(seen: Tensor, wanted: Tensor) -> float:
    """Peak signal to noise ratio in dB of pictures in -1 .. 1."""
    return float(10 * torch.log10(4 / (seen.detach().clamp(-1, 1) - wanted).square().mean()))


# ---- training


class Phase(NamedTuple):
    """What batches look like up to a step.

    Args:
        until: first step that is not in it.
        frames: frames a crop, 4n + 1.
        height, width: pixels a crop; multiples of 8.
        batch: crops.
        again: weight of the round-trip term.
        trips: at most so many trips lie between the pictures and the one that the term is of.
    """

    until: int
    frames: int
    height: int
    width: int
    batch: int
    again: float
    trips: int = 1


@dataclass(frozen=True)
class VaeSettings:
    """What the VAE is trained on and for.

    Args:
        phases: one after another: images, then longer and longer clips.
        videos: how many of the training videos are used, from the first; a set may still be growing.
        matrix_rate, other_rate: learning rates of the kernels (Muon) and of all else (Adam).
        latent_noise: standard deviation of the noise on latents before they are decoded.
        small: weight that keeps latents small, on their square.
        drive: shares of crops from pictures, depth and tracks.
        grey: share of crops whose frames after the first are grey, as first-frame latents have them.
    """

    phases: tuple[Phase, ...]
    videos: int = 200
    matrix_rate: float = 3e-3
    other_rate: float = 2e-3
    latent_noise: float = 0.03
    small: float = 1e-4
    drive: tuple[float, float, float] = (0.55, 0.2, 0.25)
    grey: float = 0.1

    def phase(self, step: int) -> Phase:
        """The phase that a step is in."""
        return next((phase for phase in self.phases if step < phase.until), self.phases[-1])


class Crops(NamedTuple):
    """What a step learns from.

    Args:
        pictures: uint8 [B, T, H, W, 3].
        noise: on their latents [B, 16, f, h, w].
        again: weight of the round-trip term.
        trips: round trips before the one that the term is of.
    """

    pictures: Tensor
    noise: Tensor
    again: float
    trips: int


class VaeTask:
    """:class:`~longvie_core.training.loop.trainer.Task`: the VAE on pictures, depth and tracks of the procedural world.

    Args:
        settings: what is learnt.
        scenes: training videos.
        held_out: videos for the sheets.
        vae: where it starts from.

    Raises:
        ValueError: not all the videos are there that it is to learn from.
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
        muon = MatrixMuon(kernels, self.settings.matrix_rate)
        return [muon, torch.optim.Adam(others, lr=self.settings.other_rate, betas=(0.9, 0.98))]

    def batch(self, step: int, generator: torch.Generator) -> Crops:
        phase = self.settings.phase(step)
        chance = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        pictures = np.stack([self._crop(phase, chance) for _ in range(phase.batch)])
        latents = (phase.batch, 16, 1 + (phase.frames - 1) // 4, phase.height // 8, phase.width // 8)
        noise = self.settings.latent_noise * torch.randn(latents, generator=generator)
        return Crops(torch.from_numpy(pictures), noise, phase.again, int(chance.integers(phase.trips)))

    def losses(self, network: WholeClipVae, batch: Crops) -> Mapping[str, Tensor]:
        pixels = pixels_of(batch.pictures).contiguous(memory_format=torch.channels_last_3d)
        latents = network.encode(pixels)
        seen = network.decode(latents + batch.noise.to(latents))
        terms = {
            "picture": picture_loss(seen.float(), pixels),
            "small": self.settings.small * latents.float().square().mean(),
        }
        if batch.again:
            once_more = network.encode(self._worn(network, seen.clamp(-1, 1), batch.trips))
            spread = latents.detach().float().var()
            again = (once_more.float() - latents.float().detach()).square().mean() / spread
            terms["again"] = batch.again * (again + picture_loss(network.decode(once_more).float(), pixels))
        return terms

    def sheet(self, network: WholeClipVae) -> tuple[np.ndarray, Mapping[str, float]]:
        """Held-out clips above what is left of them; PSNR, also after 12 round trips of single frames."""
        rows, figures = [], {}
        device = next(network.parameters()).device
        for kind, clips in held_out_clips(self.held_out).items():
            clips = clips.to(device)
            seen = network.decode(network.encode(clips)).float().clamp(-1, 1)
            figures[f"psnr {kind}"] = psnr(seen, clips)
            rows += [_strip(clips), _strip(seen)]
            if kind == "rgb":
                first = still = clips[:, :, :1]
                for _ in range(12):
                    still = network.decode(network.encode(still)).float().clamp(-1, 1)
                figures["psnr 12 round trips"] = psnr(still, first)
                rows.append(_strip(still))
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
        chance = np.random.default_rng(0)
        frames, height, width = self.scenes.settings.frames, self.scenes.settings.height, self.scenes.settings.width
        phase = Phase(1, frames, height, width, 1, 0.0)
        latents = []
        for _ in range(64):
            pictures = torch.from_numpy(self._crop(phase, chance)[None]).to(next(network.parameters()).device)
            latents.append(network.encode(pixels_of(pictures)).flatten(2)[0])
        values = torch.cat(latents, dim=1).cpu()
        return values.mean(dim=1), values.std(dim=1)

    def _worn(self, network: WholeClipVae, seen: Tensor, trips: int) -> Tensor:
        """Pictures after further round trips; gradients go no farther back than the last."""
        if not trips:
            return seen
        with torch.no_grad():
            for _ in range(trips):
                seen = network.decode(network.encode(seen)).clamp(-1, 1)
        return seen

    def _crop(self, phase: Phase, chance: np.random.Generator) -> np.ndarray:
        """A random crop uint8 [T, H, W, 3] of a random kind."""
        video = chance.integers(self.settings.videos)
        kind = chance.choice(3, p=self.settings.drive)
        if kind == 2:
            source = self.scenes.sparse[video, chance.integers(self.scenes.settings.clips)]
        else:
            source = (self.scenes.rgb, self.scenes.dense)[kind][video]
        start = chance.integers(len(source) - phase.frames + 1)
        y, x = (chance.integers(length - side + 1) for length, side in zip(source.shape[1:3], phase[2:4], strict=True))
        crop = source[start : start + phase.frames, y : y + phase.height, x : x + phase.width]
        crop = np.array(crop if kind != 1 else np.repeat(crop[..., None], 3, axis=-1))
        if chance.random() < 0.5:
            crop = crop[:, :, ::-1]
        if phase.frames > 1 and chance.random() < self.settings.grey:
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


def pixels_of(clips: Tensor) -> Tensor:
    """uint8 clips [B, T, H, W, 3] -> [B, 3, T, H, W] in -1 .. 1."""
    return clips.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def picture_of(pixels: Tensor) -> np.ndarray:
    """Pixels [3, H, W] in -1 .. 1 -> uint8 [H, W, 3], for looking at."""
    return pixels.add(1).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def _strip(clips: Tensor) -> np.ndarray:
    """Two frames of each clip, side by side, uint8."""
    frames = [clip[:, number] for clip in clips for number in (0, clip.shape[1] - 1)]
    return picture_of(torch.cat(frames, dim=-1))


TINY_TRAINING = TrainSettings(
    steps=2_900,
    warmup=50,
    decay="cosine",
    average=0.995,
    precision="bf16",
    checkpoint_every=500,
    sheet_every=500,
    log_every=50,
    workers=8,
    graphs=True,
)

TINY_STAGES = {
    "pictures": (
        VaeSettings(
            (
                Phase(1_200, 1, 64, 96, 256, 0.0),
                Phase(2_000, 5, 64, 96, 64, 0.0),
                Phase(2_900, 17, 64, 96, 48, 0.1),
            )
        ),
        TINY_TRAINING,
    ),
    "round-trips": (
        VaeSettings(
            (Phase(150, 1, 64, 96, 128, 1.0, 6), Phase(350, 17, 64, 96, 24, 0.5, 2)), matrix_rate=1e-3, other_rate=5e-4
        ),
        replace(TINY_TRAINING, steps=350, checkpoint_every=400, sheet_every=150),
    ),
}
"""First what a VAE learns; then that frames survive being handed from clip to clip. Sized for a GPU."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train LongVie-Tiny's VAE."""
    parser = argparse.ArgumentParser(description="Train the VAE of LongVie-Tiny; goes on from the newest checkpoint.")
    parser.add_argument("stage", choices=list(TINY_STAGES))
    parser.add_argument("scenes", type=Path, help="training videos: python -m longvie_core.training.data.scenes")
    parser.add_argument("held_out", type=Path, help="videos for the sheets")
    parser.add_argument("folder", type=Path, help="checkpoints, log, sheets and the result")
    parser.add_argument("--start", type=Path, help="result to start from; without it from nothing")
    parser.add_argument("--stop-after", type=int, help="leave off after so many steps")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    settings, training = TINY_STAGES[given.stage]
    vae = tiny_vae() if given.start is None else AutoencoderKLWan.from_pretrained(given.start)
    train(VaeTask(settings, SceneSet(given.scenes), SceneSet(given.held_out), vae), training, given.folder, given.stop_after)


if __name__ == "__main__":
    main()
