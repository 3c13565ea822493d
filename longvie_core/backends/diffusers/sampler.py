"""One clip sampled by Euler steps on diffusers' classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch import Tensor

from ...finite import finite
from ...model.clip import ClipInputs, ClipStrengths
from ...model.conditioning import image_condition
from ...model.dual_control import DualControl, Strengths
from ...model.noise import FIRST_FRAME_SIGMA, initial_latents
from ...model.schedule import check_sigmas, sample_euler
from .encoders import VaeCodec
from .forward import velocity
from .parallel import token_mesh


def check_fit(backbone: WanTransformer3DModel, control: DualControl) -> None:
    """Refuse a control network that was made for another backbone, and a backbone that takes no image.

    Raises:
        ValueError: naming the numbers that differ.
    """
    config = backbone.config
    if config.in_channels != 36:
        raise ValueError(
            f"this backbone takes {config.in_channels} input channels: LongVie needs an image-to-video one with 36 (noise 16, "
            "mask 4, image 16), such as Wan2.1-I2V-14B-480P"
        )
    width = config.num_attention_heads * config.attention_head_dim
    control.config.check_backbone(width, config.attention_head_dim, config.image_dim is not None, config.num_layers)


@dataclass(frozen=True)
class SamplingSettings:
    """Everything about sampling that is not the clip.

    Args:
        sigmas: [steps + 1] (:func:`longvie_core.model.schedule.flow_sigmas`).
        cfg: guidance scale; 1 leaves the negative prompt out.
        strengths: of the two streams.
        first_frame_sigma: noise that stays in the first latent frame of later clips.
    """

    sigmas: Tensor
    cfg: float = 5.0
    strengths: Strengths = field(default_factory=Strengths)
    first_frame_sigma: float = FIRST_FRAME_SIGMA

    def __post_init__(self) -> None:
        finite(cfg=self.cfg, first_frame_sigma=self.first_frame_sigma)
        check_sigmas(self.sigmas)


def own_strengths(default: Strengths, own: ClipStrengths) -> Strengths:
    """A clip's own strengths, those of the settings where it has none."""
    return Strengths(default.dense if own.dense is None else own.dense, default.sparse if own.sparse is None else own.sparse)


class DiffusersBackend:
    """:class:`longvie_core.model.clip.ClipBackend` on diffusers' classes, sampled with Euler steps in float32.

    Texts are embeddings [1, L, text_dim], or ``None`` for no text: one zero token, which attends like any number of them.

    Args:
        backbone, control: on one device.
        codec: encodes and decodes.
        settings: of the sampling.
        vision: CLIP vision features [1, 257, 1280] of the start frame, where the backbone has an image branch.

    Raises:
        ValueError: backbone and control network do not fit, or the backbone needs ``vision``.
    """

    def __init__(
        self,
        backbone: WanTransformer3DModel,
        control: DualControl,
        codec: VaeCodec,
        settings: SamplingSettings,
        vision: Callable[[np.ndarray], Tensor] | None = None,
    ) -> None:
        check_fit(backbone, control)
        if backbone.config.image_dim is not None and vision is None:
            raise ValueError("this backbone has an image branch: give a CLIP vision model (clip_vision_h) too")
        self.backbone, self.control, self.codec, self.settings = backbone, control, codec, settings
        self.vision = vision
        self.encode = codec.encode
        self.encode_first_frame = self.encode_image = codec.encode_first_frame
        self.decode = codec.decode

    @torch.no_grad()
    def sample(self, inputs: ClipInputs) -> Tensor:
        """Latents [1, 16, f, h, w] of a clip, in the space that the VAE decodes."""
        vision = None if self.vision is None else self.vision(inputs.start_frame)
        empty = torch.zeros(1, 1, self.backbone.config.text_dim)
        positive, negative = (empty if text is None else text for text in inputs.text)
        condition, positive, negative = (self._ready(value) for value in (image_condition(inputs.image), positive, negative))
        dense, sparse, history, vision = (
            None if value is None else self._ready(value) for value in (inputs.dense, inputs.sparse, inputs.history, vision)
        )
        strengths = own_strengths(self.settings.strengths, inputs.strengths)

        def model(latents: Tensor, timestep: Tensor, is_positive: bool) -> Tensor:
            return velocity(
                self.backbone,
                self.control,
                latents.to(condition),
                timestep.to(condition.device),
                positive if is_positive else negative,
                condition,
                dense,
                sparse,
                history,
                vision,
                strengths,
            ).float()

        past = None if inputs.history is None else inputs.history.to(condition.device)
        start = initial_latents(inputs.noise.to(condition.device), past, self.settings.first_frame_sigma)
        steps = sample_euler(model, start, self.settings.sigmas, self.settings.cfg)
        return self.codec.denormalised(deque(steps, maxlen=1).pop())

    def _ready(self, value: Tensor) -> Tensor:
        """On the backbone's device and in its dtype; under context parallelism the first process's, so that all are alike."""
        weight = self.backbone.patch_embedding.weight
        value = value.to(weight.device, weight.dtype).contiguous()
        if token_mesh(self.backbone) is not None:
            dist.broadcast(value, 0)
        return value
