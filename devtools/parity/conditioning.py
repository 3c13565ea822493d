"""What the model is conditioned on, made from pictures, against the reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from devtools.parity.rows import EXACT, VAE_TOLERANCE, Row, Tensors, difference, read_json, read_tensors
from longvie_core.model.conditioning import (
    control_condition,
    encoded_history_frames,
    first_frame_then_grey,
    frames_to_uint8,
    image_condition,
    pixels_from_uint8,
)


class FakeVae:
    """The linear VAE that the golden JSON defines: 8x8 means, a 16x6 matrix, groups of four frames."""

    def __init__(self, tensors: Tensors) -> None:
        self.p, self.c, self.q, self.k = (tensors[f"fakevae.{name}"] for name in "PcQK")

    def encode(self, pixels: Tensor) -> Tensor:
        """[T, H, W, 3] in [-1, 1] -> [1, 16, f, h, w]."""
        frames = pixels.permute(3, 0, 1, 2)
        means = frames.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).mean(dim=(-1, -3))
        groups = torch.cat([means[:, :1].repeat(1, 4, 1, 1), means[:, 1 : encoded_history_frames(means.shape[1])]], dim=1)
        groups = groups.unflatten(1, (-1, 4))
        weighted = torch.einsum("cfjhw,j->cfhw", groups, torch.tensor([0.1, 0.2, 0.3, 0.4]))
        features = torch.cat([weighted, groups[:, :, 3] - groups[:, :, 0]])
        return (torch.einsum("zc,cfhw->zfhw", self.p, features) + self.c[:, None, None, None])[None]

    def decode(self, latents: Tensor) -> Tensor:
        """[1, 16, f, h, w] -> [T, H, W, 3] in [-1, 1]."""
        means = torch.einsum("cz,zfhw->cfhw", self.q, latents[0])
        frames = [means[:, 0]]
        for index in range(1, means.shape[1]):
            for j in range(4):
                past = 0.05 * (3 - j)
                frames.append((1 - past) * means[:, index] + past * means[:, index - 1])
        video = torch.stack(frames, dim=1).repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
        tile = self.k.repeat(1, video.shape[-2] // 8, video.shape[-1] // 8)
        return (video + tile[:, None]).clamp(-1, 1).permute(1, 2, 3, 0)


class HostVae:
    """The tiny official VAE in the host's own VAE class, normalised by the host's Wan latent format."""

    def __init__(self, weights: Tensors) -> None:
        from devtools.inprocess import import_host

        import_host()
        import comfy.latent_formats
        import comfy.sd

        self.vae = comfy.sd.VAE(sd={key: value.float() for key, value in weights.items()})
        self.format = comfy.latent_formats.Wan21()

    def encode(self, pixels: Tensor) -> Tensor:
        return self.format.process_in(self.vae.encode((pixels + 1) / 2).float())

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(self.format.process_out(latents))[0] * 2 - 1


def conditioning_rows(golden: Path) -> Iterator[Row]:
    """Controls, image condition, history and decoding, on the fake VAE and on the tiny official one."""
    config, tensors = read_json(golden / "embed.json"), read_tensors(golden / "embed.safetensors")
    frames = config["config"]["n"]
    given = {name: tensors[f"in.{name}_u8"].numpy() for name in ("dense_frames", "sparse_frames", "image", "history_frames")}
    preprocessed = torch.from_numpy(pixels_from_uint8(given["dense_frames"])).permute(3, 0, 1, 2)[None]
    yield Row("conditioning pixel scaling", difference(preprocessed, tensors["preprocess.dense"]), 1e-6)
    fake, tiny = FakeVae(tensors), HostVae(read_tensors(golden / config["weights"]))
    for name, vae, tolerance in (("fake", fake, 1e-5), ("tiny", tiny, VAE_TOLERANCE)):
        backend = PlainCodec(vae)
        for modality in ("dense", "sparse"):
            pictures = given[f"{modality}_frames"]
            ours = control_condition(backend.encode(pictures), backend.encode_first_frame(pictures[0], frames))
            yield Row(f"conditioning {name} {modality}", difference(ours, tensors[f"{name}.{modality}"]), tolerance)
        y = image_condition(backend.encode_first_frame(given["image"], frames))
        yield Row(f"conditioning {name} image", difference(y, tensors[f"{name}.y"]), tolerance)
        past = given["history_frames"]
        history = backend.encode(past[: encoded_history_frames(len(past))])
        yield Row(f"conditioning {name} history", difference(history, tensors[f"{name}.history_latents"]), tolerance)
        decoded = backend.decode(tensors[f"{name}.history_latents"])
        golden_decoded = tensors[f"{name}.decode_of_history"][0].permute(1, 2, 3, 0)
        yield Row(f"conditioning {name} decode", difference(decoded, golden_decoded), tolerance)
        levels = difference(frames_to_uint8(golden_decoded.numpy()), tensors[f"{name}.decode_of_history_u8"])
        yield Row(f"conditioning {name} 8-bit truncation", levels, EXACT)


class PlainCodec:
    """uint8 frames to normalised latents and back over a VAE on pixels in [-1, 1]."""

    def __init__(self, vae: FakeVae | HostVae) -> None:
        self.vae = vae

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        return self.vae.encode(torch.from_numpy(pixels_from_uint8(np.stack(list(frames)))))

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        return self.vae.encode(torch.from_numpy(first_frame_then_grey(frame, frames)))

    encode_image = encode_first_frame

    def decode(self, latents: Tensor) -> np.ndarray:
        return self.vae.decode(latents).numpy()
