"""Wan 2.1's video VAE, a whole clip at a time.

diffusers, like the host, runs the network in chunks of one and then four frames with a cache, so that memory stays flat. For
training the whole clip goes through in one piece, which gives the same numbers several times faster (the tests compare them).
"""

from __future__ import annotations

from functools import partial
from math import sqrt

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample
from torch import Tensor, nn

from ..tiny import TINY_VAE_WIDTH

MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class WholeClipVae(nn.Module):
    """Wan 2.1's VAE without chunks and caches.

    Args:
        vae: diffusers' network; its convolutions are made to run on whole clips, so use another copy to encode in chunks.
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
        """Latents [B, 16, f, h, w] -> pixels [B, 3, 1 + 4 (f-1), 8h, 8w], not clamped."""
        return self.vae.decoder(self.vae.post_quant_conv(latents))


def tiny_vae(width: int = TINY_VAE_WIDTH) -> AutoencoderKLWan:
    """Wan 2.1's VAE with ``width`` channels in its first layer and new weights, by :func:`start_as_image_autoencoder`."""
    vae = AutoencoderKLWan(base_dim=width)
    start_as_image_autoencoder(vae)
    return vae


@torch.no_grad()
def start_as_image_autoencoder(vae: AutoencoderKLWan) -> None:
    """Random weights with which every frame is treated alike and activations keep one variance all the way.

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
