"""The command ``prepare``: controls, texts and latents, made once."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from ..backends.diffusers.encoders import ImageEncoder
from ..backends.diffusers.forward import velocity
from ..backends.diffusers.weights import load_backbone
from ..backends.processes import DTYPES, this_process
from ..model.conditioning import first_frame_mask
from .data.source import Clip
from .data.video_folder import VideoFolder
from .degradation.frames import Velocity
from .inputs import batch_of, codec_of, held_out_source, latents_of, needs_backbone, texts_of, training_source
from .stages import Stage
from .tasks.control import sheet_rows


def prepare(options: argparse.Namespace, stage: Stage) -> None:
    """Make controls, texts and latents; several processes share the clips."""
    state = this_process()
    source, held_out = training_source(options), held_out_source(options)
    codec = codec_of(options, source)
    vision = None if options.image_encoder is None else ImageEncoder(options.image_encoder, device=options.device)
    regenerator = None
    if needs_backbone(stage):
        if options.backbone is None:
            raise ValueError("noise-then-denoise needs the pretrained backbone: give --backbone, or set round_trip_share to 1")
        regenerator = Regenerator(options, vision)
    latents, sheets = latents_of(options, stage, source), latents_of(options, stage, held_out)
    with state.main_process_first():
        if state.is_main_process:
            for folder in (source, held_out):
                if isinstance(folder, VideoFolder):
                    for path in folder.prepare():
                        print(f"controls of {path.name}", flush=True)
            texts_of(options, [source, held_out])
            latents.reserve()
            sheets.reserve()
    for name, table, rows in (("held-out", sheets, sheet_rows(sheets, stage)), ("training", latents, range(len(source)))):
        own = list(rows)[state.process_index :: state.num_processes]
        missing = table.missing(own)
        encoded = table.fill(own, codec, regenerator, vision, batch_of(options, source), options.workers)
        for number, _ in enumerate(encoded, start=1):
            if number % 500 == 0 or number == missing:
                print(f"{name} clips: {number} of {missing} encoded by process {state.process_index}", flush=True)
    state.wait_for_everyone()


class Regenerator:
    """The pretrained backbone for noise-then-denoise (P2 section 3.3): one clip -> its velocity, without controls."""

    def __init__(self, options: argparse.Namespace, vision: ImageEncoder | None) -> None:
        self.vision = vision
        self.dtype = DTYPES[options.precision]
        self.backbone = load_backbone(options.backbone, dtype=self.dtype, device=options.device).requires_grad_(False)
        self.text = torch.zeros(1, 1, self.backbone.config.text_dim)

    def __call__(self, clip: Clip) -> Velocity:
        """The velocity of latents that begin with ``clip``'s start frame or history."""
        features = None if self.vision is None else self.vision(clip.frames[0])

        @torch.no_grad()
        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            # Its first frame is known as in generation. What stands for the others hardly matters so near to sigma 0.
            image = torch.cat([noisy[:, :, :1], torch.zeros_like(noisy[:, :, 1:])], dim=2)
            condition = torch.cat([first_frame_mask(noisy), image], dim=1)
            latents, text, condition, vision = map(self._moved, (noisy, self.text, condition, features))
            timestep = timestep.to(self.backbone.device)
            return velocity(self.backbone, None, latents, timestep, text, condition, clip_features=vision).to(noisy)

        return predict

    def _moved(self, value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(self.backbone.device, self.dtype)
