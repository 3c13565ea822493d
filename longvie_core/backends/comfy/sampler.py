"""One clip sampled by the host's guider and sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...finite import finite
from ...model.clip import ClipInputs
from ...model.schedule import check_sigmas
from .conditioning import VaeCodec, encode_clip_vision, with_control, with_image
from .patch import check_image_branch


@dataclass(frozen=True)
class MultimodalSampler:
    """Payload of LONGVIE_SAMPLER: host objects and settings, everything about sampling that is not the clip.

    Args:
        model: MODEL with control applied (:func:`apply_control`).
        vae, clip_vision, sampler: host objects; ``clip_vision`` is ``None`` for a backbone without image branch.
        sigmas: [steps + 1].
        cfg: guidance scale.

    Raises:
        ValueError: a number that is not finite, or no schedule; the backbone wants CLIP vision and has none.
    """

    model: comfy.model_patcher.ModelPatcher
    vae: object
    clip_vision: object | None
    sampler: comfy.samplers.Sampler
    sigmas: Tensor
    cfg: float

    def __post_init__(self) -> None:
        finite(cfg=self.cfg)
        check_sigmas(self.sigmas)
        check_image_branch(self.model, self.clip_vision)

    @property
    def steps(self) -> int:
        """Model evaluations of a first-order sampler."""
        return len(self.sigmas) - 1


ProgressHook = Callable[[int, int, Tensor], None]
"""``(clip, step, current estimate of the clean latents)``, called after every step."""


class ComfyBackend:
    """:class:`longvie_core.model.clip.ClipBackend` on the host's sampler and VAE; texts are CONDITIONING.

    Args:
        sampler: what samples.
        on_step: progress.
    """

    def __init__(self, sampler: MultimodalSampler, on_step: ProgressHook | None = None) -> None:
        self.sampler = sampler
        self.on_step = on_step
        self.codec = VaeCodec(sampler.vae, sampler.model)
        self.encode = self.codec.encode
        self.encode_first_frame = self.codec.encode_first_frame
        self.encode_image = self.codec.encode_image
        self.decode = self.codec.decode

    def sample(self, inputs: ClipInputs) -> Tensor:
        """Latents [1, 16, f, h, w] of a clip, in the space that the host's VAE decodes."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        vision = None
        if self.sampler.clip_vision is not None:
            vision = encode_clip_vision(self.sampler.clip_vision, inputs.start_frame)
        positive, negative = (
            with_control(with_image(text, inputs.image, vision), inputs.dense, inputs.sparse, inputs.history, inputs.strengths)
            for text in inputs.text
        )
        guider = comfy.samplers.CFGGuider(self.sampler.model)
        guider.set_conds(positive, negative)
        guider.set_cfg(self.sampler.cfg)

        def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if self.on_step is not None:
                self.on_step(inputs.clip, step, x0)

        samples = guider.sample(
            inputs.noise,
            torch.zeros_like(inputs.noise),
            self.sampler.sampler,
            self.sampler.sigmas,
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=inputs.seed,
        )
        return samples.to(comfy.model_management.intermediate_device())


def progress_over_clips(sampler: MultimodalSampler, clips: Sequence[int], preview_node: str) -> ProgressHook:
    """One progress bar over all clips on the running node, and the host's preview of the running clip on ``preview_node``.

    A preview on the running node itself would stay in front of the finished video that the node shows at the end.
    """
    bar = comfy.utils.ProgressBar(len(clips) * sampler.steps)
    preview_bar = comfy.utils.ProgressBar(sampler.steps, node_id=preview_node)
    previewer = latent_preview.get_previewer(sampler.model.load_device, sampler.model.model.latent_format)

    started: list[int] = []

    def hook(clip: int, step: int, x0: Tensor) -> None:
        if clip not in started:
            started.append(clip)
        clips_in_all = max(len(clips), len(started))
        bar.update_absolute((len(started) - 1) * sampler.steps + step + 1, clips_in_all * sampler.steps)
        if previewer is not None:
            preview_bar.update_absolute(step + 1, preview=previewer.decode_latent_to_preview_image("JPEG", x0))

    return hook
