"""What is compared, and how its videos are made: controls, networks, the real clip loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from devtools.tiny import BACKBONE_FILE, CONTROL_FILE, LONGVIE_TINY, VAE_FILE
from longvie_core.backends.diffusers.sampler import DiffusersBackend, SamplingSettings
from longvie_core.backends.diffusers.weights import load_backbone, load_control, load_vae
from longvie_core.control.normalize import normalize, to_uint8
from longvie_core.control.percentiles import PERCENTILES
from longvie_core.model.dual_control import DualControl, Strengths
from longvie_core.model.noise import UnifiedNoise
from longvie_core.model.schedule import flow_sigmas
from longvie_core.plan import ClipPlan
from longvie_core.run.colour_anchor import AnchorSettings
from longvie_core.run.job import LoopSettings, Script
from longvie_core.run.loop import Carry, generate
from longvie_core.training.data.codec import WholeClipCodec
from longvie_core.training.data.scenes import SceneSettings
from longvie_core.world.clips import clip_windows, scene_tracks
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene

WITHOUT_DEGRADATION = LONGVIE_TINY.with_name("longvie-tiny-ablation")
"""What the other training gave: a control network, and the backbone's self-attention as LongVie 2's third stage leaves it."""

STEPS = 8
"""Sampling steps of every clip."""


@dataclass(frozen=True)
class Variant:
    """One way to make the videos.

    Args:
        noise: :data:`longvie_core.model.noise.NOISE_MODES`.
        per_clip: normalise depth by each clip's own percentiles; the tracks' z follows, as it is read from the dense control.
        strengths: of the control streams.
        degradation: the network that was trained with it, or the other one.
        anchor: how later clips are held to the first one's colours; neither paper has it.
        papers: their figures, with this answer and without; empty where they have no such row.
        measured: those of our measures that the papers report themselves. For the others we take the direction in which the
            papers' VBench scores move.
    """

    noise: str = "unified"
    per_clip: bool = False
    strengths: Strengths = field(default_factory=Strengths)
    degradation: bool = True
    anchor: AnchorSettings = field(default_factory=AnchorSettings)
    papers: str = ""
    measured: tuple[str, ...] = ()


FULL, UNDEGRADED = "full", "trained without degradation"

VARIANTS = {
    FULL: Variant(),
    "independent noise": Variant(
        noise="per clip",
        papers="P1: S.C. 87.12 -> 86.63, B.C. 91.76 -> 91.59, A.Q. 55.31 -> 54.80, I.Q. 64.91 -> 64.84; "
        "P2: S.C. 91.05 -> 88.73, B.C. 92.45 -> 91.59, A.Q. 58.47 -> 57.80, I.Q. 69.77 -> 69.62",
    ),
    "per-clip normalisation": Variant(
        per_clip=True,
        papers="P1: S.C. 87.12 -> 86.39, B.C. 91.76 -> 91.41, A.Q. 55.31 -> 54.88, I.Q. 64.91 -> 64.81; "
        "P2: S.C. 91.05 -> 88.81, B.C. 92.45 -> 91.41, A.Q. 58.47 -> 57.73, I.Q. 69.77 -> 69.56",
    ),
    "dense only": Variant(
        strengths=Strengths(1, 0),
        papers="P1: SSIM .557 -> .508, LPIPS .290 -> .347, S.C. 87.12 -> 87.09, B.C. 91.76 -> 91.37",
        measured=("ssim",),
    ),
    "sparse only": Variant(strengths=Strengths(0, 1)),
    "no control": Variant(strengths=Strengths(0, 0)),
    "colour anchoring": Variant(anchor=AnchorSettings("pixels", 0.3)),
    UNDEGRADED: Variant(
        degradation=False, papers="P1: S.C. 87.12 -> 86.99, B.C. 91.76 -> 91.50, A.Q. 55.31 -> 53.95, I.Q. 64.91 -> 63.67"
    ),
}


@dataclass(frozen=True)
class Weights:
    """Files of the networks; each also a diffusers folder where it is a backbone or VAE.

    Args:
        backbone, control, vae: the model; its control network was trained with degradation.
        overlay: self-attention that goes in place of the backbone's, if any.
        undegraded_control, undegraded_overlay: those of the training without degradation.
    """

    backbone: Path = LONGVIE_TINY / BACKBONE_FILE
    control: Path = LONGVIE_TINY / CONTROL_FILE
    vae: Path = LONGVIE_TINY / VAE_FILE
    overlay: Path | None = None
    undegraded_control: Path = WITHOUT_DEGRADATION / "control.safetensors"
    undegraded_overlay: Path | None = WITHOUT_DEGRADATION / "dit.safetensors"


class SceneCodec(WholeClipCodec):
    """The VAE on whole clips; equal pictures are encoded once.

    Args:
        vae: a network of its own, its forward is changed.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae)
        self._known: dict[bytes, Tensor] = {}
        if torch.backends.mkldnn.is_available():
            # On one thread torch takes a five times slower convolution for a batch of one.
            for module in vae.modules():
                if isinstance(module, nn.Conv3d):
                    module._conv_forward = partial(_onednn_convolution, module)

    def forget(self) -> None:
        """Drop the encodings that are kept: those of the next scene are others."""
        self._known.clear()

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        key = sha256(pixels.numpy().tobytes()).digest()
        if key not in self._known:
            self._known[key] = super().encode_pixels(pixels)
        return self._known[key]

    def _decode(self, latents: Tensor) -> Tensor:
        return super()._decode(latents.contiguous(memory_format=torch.channels_last_3d))


def _onednn_convolution(conv: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.mkldnn_convolution(x, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups)


@cache
def load_networks(backbone: Path, overlay: Path | None, control: Path) -> tuple[WanTransformer3DModel, DualControl]:
    """Backbone and control network, once a process."""
    return load_backbone(backbone, overlay), load_control(control)


@cache
def load_codec(path: Path) -> SceneCodec:
    """The VAE, once a process."""
    return SceneCodec(load_vae(path))


def make_backend(weights: Weights, strengths: Strengths, degradation: bool = True) -> DiffusersBackend:
    """The model as it was trained: a single zero token for a text, no guidance."""
    networks = (
        load_networks(weights.backbone, weights.overlay, weights.control)
        if degradation
        else load_networks(weights.backbone, weights.undegraded_overlay, weights.undegraded_control)
    )
    settings = SamplingSettings(flow_sigmas(STEPS), cfg=1, strengths=strengths)
    return DiffusersBackend(*networks, load_codec(weights.vae), settings)


@dataclass(frozen=True)
class Pictures:
    """:class:`~longvie_core.run.control_latents.ControlWindow`: control pictures in memory, uint8 [clips, T, H, W, 3]."""

    frames: np.ndarray

    def window(self, _plan: ClipPlan, clip: int) -> Iterable[np.ndarray]:
        return self.frames[clip]


@dataclass(frozen=True)
class Controls:
    """The two controls of a video."""

    dense: Pictures
    sparse: Pictures


def global_controls(plan: ClipPlan, filmed: Mapping[str, np.ndarray]) -> Controls:
    """Controls as :func:`longvie_core.training.data.scenes.film` made them."""
    return Controls(Pictures(np.stack(list(clip_windows(plan, iter(filmed["dense"]))))), Pictures(filmed["sparse"]))


def per_clip_controls(settings: SceneSettings, video: int) -> Controls:
    """The same video's controls by each clip's own percentiles, as a user of the nodes gets them.

    The scene is rendered once more, for its raw depth: :func:`longvie_core.training.data.scenes.film` keeps 8 bits of it.
    """
    plan, scene = settings.plan, make_scene(settings.first_seed + video)
    rate = settings.rate(video)
    rendered = render_frames(scene, plan.source_frames, rate, plan.width, plan.height, supersample=1)
    disparity = np.stack([frame.disparity for frame in rendered])
    windows = (disparity[slice(numbers.start, numbers.stop)] for numbers in map(plan.control_frames, range(plan.clips)))
    dense = [
        np.repeat(to_uint8(normalize(window, *np.percentile(window, PERCENTILES)))[..., None], 3, axis=-1) for window in windows
    ]
    sparse = [list(scene_tracks(scene, plan, clip, window, settings.track_grid, rate)) for clip, window in enumerate(dense)]
    return Controls(Pictures(np.stack(dense)), Pictures(np.array(sparse)))


def make_video(
    plan: ClipPlan,
    clips: int,
    first: np.ndarray,
    controls: Controls,
    noise: UnifiedNoise,
    backend: DiffusersBackend,
    anchor: AnchorSettings | None = None,
) -> np.ndarray:
    """The first ``clips`` clips by the real loop, stitched, each shared frame once: uint8 [T, H, W, 3].

    Args:
        first: the given first frame, uint8 [H, W, 3].
    """
    script = Script(plan, controls.dense, controls.sparse, first)
    settings = LoopSettings(noise, anchor=anchor or AnchorSettings())
    results = generate(script, range(clips), Carry.before_first(first), backend, settings, read_text=lambda _: None)
    return np.concatenate([result.frames[plan.kept_frames(result.clip).start :] for result in results])
