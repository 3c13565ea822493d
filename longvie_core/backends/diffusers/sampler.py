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

from ...model.clip import ClipInputs, ClipStrengths, HistorySettings
from ...model.conditioning import image_condition
from ...model.dual_control import DualControl, Strengths
from ...model.noise import initial_latents
from ...model.schedule import sample_euler
from .encoders import VaeCodec
from .forward import velocity
from .parallel import token_mesh


def check_fit(backbone: WanTransformer3DModel, control: DualControl) -> None:
    """Refuse a control network that was made for another backbone, and a backbone that takes no image.

    Raises:
        ValueError: naming the numbers that differ.
    """
    ours, theirs = control.config, backbone.config
    if theirs.in_channels != 36:
        raise ValueError(
            f"this backbone takes {theirs.in_channels} input channels: LongVie needs an image-to-video one with 36 (noise 16, "
            "mask 4, image 16), such as Wan2.1-I2V-14B-480P"
        )
    pairs = {
        "width": (ours.dim, theirs.num_attention_heads * theirs.attention_head_dim),
        "head width": (ours.head_dim, theirs.attention_head_dim),
        "image branch": (ours.image, theirs.image_dim is not None),
    }
    wrong = [f"{name} {mine} against {other}" for name, (mine, other) in pairs.items() if mine != other]
    if ours.num_layers > theirs.num_layers:
        wrong.append(f"{ours.num_layers} controlled blocks against {theirs.num_layers} in all")
    if wrong:
        raise ValueError(f"control network and backbone do not fit: {', '.join(wrong)}. Use the pair that belongs together")


# Sampling a clip


@dataclass(frozen=True)
class SamplingSettings:
    """Everything about sampling that is not the clip.

    Args:
        sigmas: [steps + 1] (:func:`longvie_core.model.schedule.flow_sigmas`).
        cfg: guidance scale; 1 leaves the negative prompt out.
        strengths: of the two streams.
        history: what later clips see of the one before.
    """

    sigmas: Tensor
    cfg: float = 5.0
    strengths: Strengths = field(default_factory=Strengths)
    history: HistorySettings = field(default_factory=HistorySettings)


def own_strengths(default: Strengths, own: ClipStrengths) -> Strengths:
    """A clip's own strengths, those of the settings where it has none."""
    return Strengths(default.dense if own.dense is None else own.dense, default.sparse if own.sparse is None else own.sparse)


class DiffusersBackend:
    """:class:`longvie_core.model.clip.ClipBackend` on diffusers' classes, sampled with Euler steps in float32.

    Args:
        backbone, control: on one device.
        codec: encodes and decodes.
        settings: of the sampling.
        text: ``clip number -> (positive, negative)`` embeddings [1, L, text_dim].
        vision: CLIP vision features [1, 257, 1280] of the start frame, where the backbone has an image branch.
        strengths: the clip's own control strengths, by clip number; those of the settings by default.

    Raises:
        ValueError: backbone and control network do not fit, or the backbone needs ``vision``.
    """

    def __init__(
        self,
        backbone: WanTransformer3DModel,
        control: DualControl,
        codec: VaeCodec,
        settings: SamplingSettings,
        text: Callable[[int], tuple[Tensor, Tensor]],
        vision: Callable[[np.ndarray], Tensor] | None = None,
        strengths: Callable[[int], ClipStrengths] | None = None,
    ) -> None:
        check_fit(backbone, control)
        if backbone.config.image_dim is not None and vision is None:
            raise ValueError("this backbone has an image branch: give a CLIP vision model (clip_vision_h) too")
        self.backbone, self.control, self.codec, self.settings = backbone, control, codec, settings
        self.text, self.vision, self.strengths = text, vision, strengths or (lambda _: ClipStrengths())
        self.encode = codec.encode
        self.encode_first_frame = self.encode_image = codec.encode_first_frame
        self.decode = codec.decode

    @torch.no_grad()
    def sample(self, inputs: ClipInputs) -> Tensor:
        """Latents [1, 16, f, h, w] of a clip, in the space that the VAE decodes."""
        vision = None if self.vision is None else self.vision(inputs.start_frame)
        positive, negative = self.text(inputs.clip)
        given = (image_condition(inputs.image), inputs.dense, inputs.sparse, inputs.history, vision, positive, negative)
        condition, dense, sparse, history, vision, positive, negative = (self._ready(value) for value in given)
        strengths = own_strengths(self.settings.strengths, self.strengths(inputs.clip))

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
        start = initial_latents(inputs.noise.to(condition.device), past, self.settings.history.first_frame_sigma)
        steps = sample_euler(model, start, self.settings.sigmas, self.settings.cfg)
        return self.codec.denormalised(deque(steps, maxlen=1).pop())

    def _ready(self, value: Tensor | None) -> Tensor | None:
        """On the backbone's device and in its dtype; under context parallelism the first process's, so that all are alike."""
        if value is None:
            return None
        weight = self.backbone.patch_embedding.weight
        value = value.to(weight.device, weight.dtype).contiguous()
        if token_mesh(self.backbone) is not None:
            dist.broadcast(value, 0)
        return value
