"""LongVie on an unmodified ComfyUI: the only file that imports the host.

A ``DIFFUSION_MODEL`` wrapper puts the history in front of the clip and starts the control streams; a ``double_block`` patch
adds their residuals after each controlled block; a ``SAMPLER_SAMPLE`` wrapper blends the first latent frame. Control latents
travel in the conditioning's ``model_conds``, so that context windows slice them; so do a clip's own strengths, so that one
patched MODEL serves clips of any strength. No state stays on patches or on the model: one
evaluation's streams live in a copy of ``transformer_options``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import comfy.conds
import comfy.ldm.common_dit
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import comfyui_version
import latent_preview
import node_helpers
import numpy as np
import torch
from comfy.ldm.wan.model import WanAttentionBlock, WanModel, sinusoidal_embedding_1d
from torch import Tensor

from ..anchor import AnchorSettings
from ..autoregress import ClipInputs, HistorySettings
from ..checkpoint import read_control, read_overlay
from ..conditioning import history_input
from ..dual_control import DualControl, DualControlConfig, Streams, Strengths
from ..noise import FIRST_FRAME_SIGMA, blend_first_frame
from ..prompts import ClipStrengths

log = logging.getLogger("longvie")

MINIMUM_HOST = (0, 30, 0)
"""First ComfyUI whose Wan model calls post-block ``double_block`` patches."""

KEY = "longvie"
DENSE, SPARSE, HISTORY, STRENGTHS = "longvie_dense", "longvie_sparse", "longvie_history", "longvie_strengths"
CONTROLS = {"dense": DENSE, "sparse": SPARSE, "history": HISTORY}

SIGMA_ROUNDING = 1e-6
"""Sigmas of a run are float32: a step may lie this far beside the range's bound that it is on."""

Conditioning = list


def require_host() -> None:
    """Refuse a host without the hooks that this file stands on.

    Raises:
        RuntimeError: naming the version found and the version needed.
    """
    found = tuple(int(part) for part in comfyui_version.__version__.split(".")[:3])
    if found < MINIMUM_HOST:
        raise RuntimeError(
            f"LongVie needs ComfyUI {'.'.join(map(str, MINIMUM_HOST))} or newer (the Wan post-block hook); "
            f"this is {comfyui_version.__version__}: update ComfyUI"
        )


# Weights


def load_control(path: str | os.PathLike[str]) -> comfy.model_patcher.ModelPatcher:
    """Load a control network as a MODEL_PATCH that the host loads and offloads with the model it is applied to.

    Args:
        path: control file of any known layout (:mod:`longvie_core.checkpoint`).

    Raises:
        FileNotFoundError, ValueError: naming missing, unexpected or wrongly shaped keys.
    """
    config, layout = read_control(path)
    stored = comfy.utils.load_torch_file(str(path), safe_load=True)
    weights = {key: stored[name] for key, name in layout.keys.items()}
    offload_device = comfy.model_management.unet_offload_device()
    net = host_dual_control(config, offload_device, comfy.utils.weight_dtype(weights))
    patcher = comfy.model_patcher.CoreModelPatcher(
        net, load_device=comfy.model_management.get_torch_device(), offload_device=offload_device
    )
    net.load_state_dict(weights, assign=patcher.is_dynamic())
    return patcher


def host_dual_control(config: DualControlConfig, device: torch.device, dtype: torch.dtype) -> DualControl:
    """The control network on the host's own Wan block and ``operations``."""
    operations = comfy.ops.manual_cast
    settings = {"operations": operations, "device": device, "dtype": dtype}
    attention = "i2v_cross_attn" if config.image else "t2v_cross_attn"

    def block() -> WanAttentionBlock:
        return WanAttentionBlock(
            attention,
            config.control_dim,
            config.ffn_dim,
            config.num_heads,
            cross_attn_norm=True,
            eps=config.eps,
            operation_settings=settings,
        )

    def linear(in_features: int, out_features: int) -> torch.nn.Module:
        return operations.Linear(in_features, out_features, device=device, dtype=dtype)

    return DualControl(config, block, linear).requires_grad_(False).eval()


def apply_overlay(model: comfy.model_patcher.ModelPatcher, path: str | os.PathLike[str]) -> comfy.model_patcher.ModelPatcher:
    """MODEL with the self-attention of LongVie's ``dit.safetensors`` set over its own.

    Raises:
        FileNotFoundError, ValueError: the file is missing or does not fit this backbone.
    """
    backbone = wan_backbone(model)
    layout = read_overlay(path, len(backbone.blocks), backbone.dim)
    stored = comfy.utils.load_torch_file(str(path), safe_load=True)
    patched = model.clone()
    patched.add_patches({f"diffusion_model.{key}": ("set", (stored[name],)) for key, name in layout.keys.items()})
    return patched


def wan_backbone(model: comfy.model_patcher.ModelPatcher) -> WanModel:
    """The Wan transformer inside a MODEL.

    Raises:
        ValueError: it is another architecture, or not an image-to-video one.
    """
    backbone = model.get_model_object("diffusion_model")
    if not isinstance(backbone, WanModel):
        raise ValueError(
            f"this MODEL is a {type(backbone).__name__}: LongVie controls Wan 2.1 image-to-video models (Wan2.1-I2V-14B)"
        )
    if backbone.in_dim != 36:
        raise ValueError(
            f"this Wan model takes {backbone.in_dim} input channels: LongVie needs an image-to-video backbone with 36 "
            "(noise 16, mask 4, image 16), such as Wan2.1-I2V-14B-480P"
        )
    return backbone


# Control on a MODEL


@dataclass(frozen=True)
class ModalityRange:
    """Strength of one modality and the part of the sampling in which it acts.

    Args:
        strength: weight in ``Combine_b(s_d * dense + s_s * sparse)``; 0 = off, not even computed.
        start_percent, end_percent: part of the schedule, 0 = first step, 1 = last.

    Raises:
        ValueError: the range is empty or outside 0 .. 1.
    """

    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start_percent <= self.end_percent <= 1:
            raise ValueError(
                f"control range {self.start_percent} .. {self.end_percent} is not within 0 .. 1 with start before end"
            )


@dataclass(frozen=True)
class SigmaRange:
    """:class:`ModalityRange` in sigmas of one model: active while ``end <= sigma <= start``."""

    strength: float
    start: float
    end: float

    @classmethod
    def of(cls, modality: ModalityRange, model: comfy.model_patcher.ModelPatcher) -> SigmaRange:
        sampling = model.get_model_object("model_sampling")
        return cls(
            modality.strength,
            sampling.percent_to_sigma(modality.start_percent),
            sampling.percent_to_sigma(modality.end_percent),
        )

    def at(self, sigma: float | None, strength: float | None = None) -> float:
        """Strength at a sigma; outside a sampling run (``None``) always on. Bounds belong to the range, float32 or not.

        ``strength`` takes the place of the range's own.
        """
        if sigma is None or self.end - SIGMA_ROUNDING <= sigma <= self.start + SIGMA_ROUNDING:
            return self.strength if strength is None else strength
        return 0.0


@dataclass
class Evaluation:
    """One model evaluation on its way through the blocks, parked in a copy of ``transformer_options``."""

    streams: Streams
    history_tokens: int
    blocks_seen: int = 0


class ControlPatch:
    """``double_block`` post-block patch: adds the residual of the control network to the clip's tokens."""

    def __init__(self, control: comfy.model_patcher.ModelPatcher) -> None:
        self.control = control

    @torch.compiler.disable
    def __call__(self, args: dict) -> dict:
        evaluation: Evaluation | None = args["transformer_options"].get(KEY)
        if evaluation is None:
            return args
        evaluation.blocks_seen += 1
        net: DualControl = self.control.model
        if args["block_index"] < net.config.num_layers:
            residual = net.residual(args["block_index"], evaluation.streams)
            start = args["img_offset"] + evaluation.history_tokens
            args["img"][:, start : start + residual.shape[1]] += residual
        return args

    def models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """What the host has to load together with the patched model."""
        return [self.control]

    def to(self, device_or_dtype: object) -> ControlPatch:
        """Part of the host's patch interface; the control network moves by :meth:`models`."""
        return self


class ControlWrapper:
    """``DIFFUSION_MODEL`` wrapper: history in front, control streams started, history cut off the result."""

    def __init__(self, control: comfy.model_patcher.ModelPatcher, dense: SigmaRange, sparse: SigmaRange) -> None:
        self.control = control
        self.dense = dense
        self.sparse = sparse
        self.warned: set[str] = set()

    @torch.compiler.disable(recursive=False)
    def __call__(
        self, executor, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs
    ) -> Tensor:
        dense, sparse, history, own = (kwargs.pop(key, None) for key in (DENSE, SPARSE, HISTORY, STRENGTHS))
        options = dict(transformer_options or {})
        window = options.get("context_window")
        if history is not None and (window is None or window.index_list[0] == 0):
            past = history_input(history[0]).to(x)
        else:
            past = x[:, :, :0]
        evaluation = self._start(
            executor.class_obj, x, timestep, context, clip_fea, dense, sparse, own or ClipStrengths(), past.shape[2], options
        )
        if evaluation is not None:
            options[KEY] = evaluation
        # EasyCache reads the last positional argument, so all of them go on by position.
        out = executor(torch.cat([past, x], dim=2), timestep, context, clip_fea, time_dim_concat, options, **kwargs)
        # EasyCache inside this wrapper skips whole steps, and means to.
        if evaluation is not None and evaluation.blocks_seen == 0 and "easycache" not in options:
            self._warn(
                "the model ran without calling LongVie's control: another node has replaced or skipped its forward "
                "(TeaCache and the like do). Remove it, or use the host's EasyCache"
            )
        return out[:, :, past.shape[2] :]

    @torch.compiler.disable
    def _start(
        self, backbone, x, timestep, context, clip_fea, dense, sparse, own, history_frames, options
    ) -> Evaluation | None:
        if dense is None and sparse is None:
            self._warn("a conditioning without LongVie's control reached the model: wire positive and negative through it")
            return None
        sigma = float(options["sigmas"][0]) if options.get("sigmas") is not None else None
        strengths = Strengths(
            0.0 if dense is None else self.dense.at(sigma, own.dense),
            0.0 if sparse is None else self.sparse.at(sigma, own.sparse),
        )
        if not strengths.active:
            return None

        def tokens(latents: Tensor) -> Tensor:
            padded = comfy.ldm.common_dit.pad_to_patch_size(latents, backbone.patch_size)
            return backbone.patch_embedding(padded.float()).to(x.dtype).flatten(2).transpose(1, 2)

        frequencies = sinusoidal_embedding_1d(backbone.freq_dim, timestep.flatten()).to(x.dtype)
        t = backbone.time_embedding(frequencies).unflatten(0, (timestep.shape[0], -1))
        e0 = backbone.time_projection(t).unflatten(2, (6, backbone.dim))
        context = backbone.text_embedding(context)
        image_tokens = None
        if clip_fea is not None and backbone.img_emb is not None:
            context = torch.cat([backbone.img_emb(clip_fea), context], dim=1)
            image_tokens = clip_fea.shape[-2]
        frames, height, width = x.shape[2:]
        streams = self.control.model.embed(
            tokens(dense) if strengths.dense else None,
            tokens(sparse) if strengths.sparse else None,
            context,
            e0,
            backbone.rope_encode(frames, height, width, device=x.device, dtype=x.dtype, transformer_options=options),
            image_tokens,
            strengths,
            # The backbone's attention patches are not meant for the control blocks.
            {"transformer_options": {key: value for key, value in options.items() if key != "patches"}},
        )
        rows, columns = (-(-size // patch) for size, patch in zip((height, width), backbone.patch_size[1:], strict=True))
        return Evaluation(streams, history_frames * rows * columns)

    def _warn(self, text: str) -> None:
        if text not in self.warned:
            self.warned.add(text)
            log.warning("LongVie: %s", text)


class FirstFrameBlend:
    """``SAMPLER_SAMPLE`` wrapper: blends the noise's first latent frame with the history; the noise given stays as it is."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def __call__(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs) -> Tensor:
        history = _history_of(guider.conds)
        if history is not None and executor.class_obj.max_denoise(guider, sigmas):
            noise = blend_first_frame(noise, history.to(noise), self.sigma)
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


def _budget_history(executor, model, noise_shape, conds, *args, **kwargs):
    """``PREPARE_SAMPLING`` wrapper: the host's memory estimate sees the history frames too."""
    history = _history_of(conds)
    if history is not None:
        noise_shape = [*noise_shape[:2], noise_shape[2] + history.shape[2], *noise_shape[3:]]
    return executor(model, noise_shape, conds, *args, **kwargs)


class BeginSampling:
    """``OUTER_SAMPLE`` wrapper: checks the sizes, and hangs the run's other wrappers behind everybody else's.

    Context windows shuffle the noise and clamp the memory estimate in wrappers of their own; ours have to see the result,
    whatever the order of the nodes.
    """

    def __init__(self, first_frame_sigma: float) -> None:
        self.blend = FirstFrameBlend(first_frame_sigma)

    def __call__(self, executor, noise, *args, **kwargs) -> Tensor:
        guider = executor.class_obj
        check_sizes(guider.conds, noise.shape)
        wrappers = comfy.patcher_extension.WrappersMP
        for kind, wrapper in ((wrappers.SAMPLER_SAMPLE, self.blend), (wrappers.PREPARE_SAMPLING, _budget_history)):
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        return executor(noise, *args, **kwargs)


def check_sizes(conds: dict[str, list[dict]], shape: Sequence[int]) -> None:
    """Refuse control or history of another size than the latent that is sampled.

    Raises:
        ValueError: naming both sizes.
    """
    for cond in (cond for group in conds.values() for cond in group):
        found = {name: cond["model_conds"][key].cond for name, key in CONTROLS.items() if key in cond["model_conds"]}
        for name, latents in found.items():
            ours, theirs = (latents[0].shape[3:], shape[3:]) if name == "history" else (latents.shape[2:], shape[2:])
            if tuple(ours) != tuple(theirs):
                raise ValueError(
                    f"{name} latents of {list(ours)} against a latent of {list(theirs)}: sample the latent that "
                    "'LongVie Apply Control' gives"
                )


def _history_of(conds: dict[str, list[dict]]) -> Tensor | None:
    for cond in conds.get("positive", []):
        if HISTORY in cond["model_conds"]:
            return cond["model_conds"][HISTORY].cond[0]
    return None


def apply_control(
    model: comfy.model_patcher.ModelPatcher,
    control: comfy.model_patcher.ModelPatcher,
    dense: ModalityRange | None = None,
    sparse: ModalityRange | None = None,
    first_frame_sigma: float = FIRST_FRAME_SIGMA,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of MODEL that reads LongVie's control from its conditioning; good for any number of clips.

    Raises:
        ValueError: control network and backbone do not fit, or the model is controlled already.
    """
    require_host()
    if not isinstance(getattr(control, "model", None), DualControl):
        raise ValueError("this MODEL_PATCH is no LongVie control network: load it with 'LongVie Load Control'")
    backbone = wan_backbone(model)
    check_fit(backbone, control.model.config)
    if comfy.patcher_extension.get_wrappers_with_key(
        comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY, {"wrappers": model.wrappers}
    ):
        raise ValueError("this MODEL carries LongVie control already: give the model from before 'LongVie Apply Control'")
    patched = model.clone()
    wrapper = ControlWrapper(
        control, SigmaRange.of(dense or ModalityRange(), model), SigmaRange.of(sparse or ModalityRange(), model)
    )
    wrappers = comfy.patcher_extension.WrappersMP
    patched.set_model_double_block_patch(ControlPatch(control))
    patched.add_wrapper_with_key(wrappers.DIFFUSION_MODEL, KEY, wrapper)
    patched.add_wrapper_with_key(wrappers.OUTER_SAMPLE, KEY, BeginSampling(first_frame_sigma))
    return patched


def check_image_branch(model: comfy.model_patcher.ModelPatcher, clip_vision: object | None) -> None:
    """Refuse to go without CLIP vision where the backbone has an image branch.

    Raises:
        ValueError: saying what to connect.
    """
    if wan_backbone(model).img_emb is not None and clip_vision is None:
        raise ValueError(
            "this backbone has an image branch: connect CLIP vision (clip_vision_h); without it the host would attend to "
            "the text twice"
        )


def check_fit(backbone: WanModel, config: DualControlConfig) -> None:
    """Refuse a control network that was made for another backbone.

    Raises:
        ValueError: naming the numbers that differ.
    """
    pairs = {
        "width": (config.dim, backbone.dim),
        "head width": (config.head_dim, backbone.dim // backbone.num_heads),
        "image branch": (config.image, backbone.img_emb is not None),
    }
    wrong = [f"{name} {ours} against {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if config.num_layers > len(backbone.blocks):
        wrong.append(f"{config.num_layers} controlled blocks against {len(backbone.blocks)} in all")
    if wrong:
        raise ValueError(f"control network and backbone do not fit: {', '.join(wrong)}. Use the pair that belongs together")


# Conditioning


def with_control(
    conditioning: Conditioning,
    dense: Tensor | None,
    sparse: Tensor | None,
    history: Tensor | None,
    strengths: ClipStrengths | None = None,
) -> Conditioning:
    """CONDITIONING that carries control latents [1, 36, f, h, w] and history latents [1, 16, f_h, h, w] (normalised).

    ``strengths`` of this clip take the place of those that the MODEL was patched with.
    """
    extra = {}
    if strengths is not None:
        extra[STRENGTHS] = comfy.conds.CONDConstant(strengths)
    if dense is not None:
        extra[DENSE] = comfy.conds.CONDNoiseShape(dense)
    if sparse is not None:
        extra[SPARSE] = comfy.conds.CONDNoiseShape(sparse)
    if history is not None:
        # A list: context windows slice tensors whose frame count happens to be the clip's.
        extra[HISTORY] = comfy.conds.CONDList([history])
    return [
        [text, {**values, "model_conds": {**values.get("model_conds", {}), **extra}}] for text, values in conditioning
    ]


def with_image(conditioning: Conditioning, image_latents: Tensor, clip_vision_output: object | None) -> Conditioning:
    """CONDITIONING that carries the clip's first frame, as the host's image-to-video nodes do it.

    Args:
        conditioning: the host's.
        image_latents: VAE(first frame, grey, ...) [1, 16, f, h, w] as the VAE gives it, not normalised.
        clip_vision_output: the host's, where the backbone has an image branch.
    """
    mask = torch.ones_like(image_latents[:, :1])
    mask[:, :, 0] = 0
    values = {"concat_latent_image": image_latents, "concat_mask": mask}
    if clip_vision_output is not None:
        values["clip_vision_output"] = clip_vision_output
    return node_helpers.conditioning_set_values(conditioning, values)


def empty_text(model: comfy.model_patcher.ModelPatcher) -> Conditioning:
    """CONDITIONING of no text: one zero token, which attends like any number of them."""
    return [[torch.zeros(1, 1, wan_backbone(model).text_dim), {}]]


def encode_text(clip: object, text: str) -> Conditioning:
    """CONDITIONING of a prompt by the host's CLIP."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def encode_clip_vision(clip_vision: object, frame: np.ndarray) -> object:
    """CLIP vision output of a uint8 frame [H, W, 3], stretched to 224x224 bicubic without crop and without antialias.

    The host crops or smooths by default; the reference's weights saw this.
    """
    pixels = torch.from_numpy(frame).float().div(255).movedim(-1, 0)[None]
    size = clip_vision.image_size
    pixels = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
    return clip_vision.encode_image(pixels.movedim(1, -1), crop=False)


class VaeCodec:
    """Frames to normalised latents and back, by the host's VAE and the model's latent format."""

    def __init__(self, vae: object, model: comfy.model_patcher.ModelPatcher) -> None:
        self.vae = vae
        self.latent_format = model.get_model_object("latent_format")

    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Pixels [T, H, W, 3] in 0 .. 1 -> latents [1, 16, f, h, w] as the VAE gives them.

        Raises:
            ValueError: the VAE's latents do not fit the model.
        """
        latents = self.vae.encode(pixels)
        if latents.ndim != 5 or latents.shape[1] != self.latent_format.latent_channels:
            raise ValueError(
                f"this VAE gives latents of shape {list(latents.shape)}: LongVie needs the Wan 2.1 video VAE "
                f"({self.latent_format.latent_channels} channels, with a time axis)"
            )
        return latents

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> normalised latents [1, 16, f, h, w]."""
        return self.latent_format.process_in(self.encode_raw(torch.from_numpy(np.stack(list(frames))).float().div_(255)))

    def encode_image(self, frame: np.ndarray, frames: int) -> Tensor:
        """VAE(frame, then mid grey up to ``frames``) -> latents [1, 16, f, h, w] as the VAE gives them."""
        pixels = torch.full((frames, *frame.shape), 0.5)
        pixels[0] = torch.from_numpy(frame).float().div_(255)
        return self.encode_raw(pixels)

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        """:meth:`encode_image`, normalised."""
        return self.latent_format.process_in(self.encode_image(frame, frames))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents as the sampler gives them -> float32 frames [T, H, W, 3] in [-1, 1]."""
        frames = self.vae.decode(latents)
        return frames.reshape(-1, *frames.shape[-3:]).float().mul_(2).sub_(1).cpu().numpy()


# Sampling a clip


@dataclass(frozen=True)
class MultimodalSampler:
    """Payload of LONGVIE_SAMPLER: host objects and settings, everything about sampling that is not the clip.

    Args:
        model: MODEL with control applied (:func:`apply_control`).
        vae, clip_vision, sampler: host objects; ``clip_vision`` is ``None`` for a backbone without image branch.
        sigmas: [steps + 1].
        cfg: guidance scale.
        history: what later clips see of the one before.
        anchor: how strongly later clips are held to the first one's colours.
    """

    model: comfy.model_patcher.ModelPatcher
    vae: object
    clip_vision: object | None
    sampler: comfy.samplers.Sampler
    sigmas: Tensor
    cfg: float
    history: HistorySettings = field(default_factory=HistorySettings)
    anchor: AnchorSettings = field(default_factory=AnchorSettings)

    def __post_init__(self) -> None:
        check_image_branch(self.model, self.clip_vision)

    @property
    def steps(self) -> int:
        """Model evaluations of a first-order sampler."""
        return len(self.sigmas) - 1


ProgressHook = Callable[[int, int, Tensor], None]
"""``(clip, step, current estimate of the clean latents)``, called after every step."""


class ComfyBackend:
    """:class:`longvie_core.autoregress.ClipBackend` on the host's sampler and VAE.

    Args:
        sampler: what samples.
        text: ``clip number -> (positive, negative)`` CONDITIONING.
        seed: seed that stochastic host samplers get, by clip number.
        on_step: progress.
        strengths: the clip's own control strengths, by clip number; the sampler's by default.
    """

    def __init__(
        self,
        sampler: MultimodalSampler,
        text: Callable[[int], tuple[Conditioning, Conditioning]],
        seed: Callable[[int], int],
        on_step: ProgressHook | None = None,
        strengths: Callable[[int], ClipStrengths] | None = None,
    ) -> None:
        self.sampler = sampler
        self.text = text
        self.seed = seed
        self.on_step = on_step
        self.strengths = strengths or (lambda _: ClipStrengths())
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
        strengths = self.strengths(inputs.clip)
        positive, negative = (
            with_control(with_image(text, inputs.image, vision), inputs.dense, inputs.sparse, inputs.history, strengths)
            for text in self.text(inputs.clip)
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
            seed=self.seed(inputs.clip),
        )
        return samples.to(comfy.model_management.intermediate_device())


def progress_over_clips(sampler: MultimodalSampler, clips: Sequence[int], preview_node: str) -> ProgressHook:
    """One progress bar over all clips on the running node, and the host's preview of the running clip on ``preview_node``.

    A preview on the running node itself would stay in front of the finished video that the node shows at the end.
    """
    bar = comfy.utils.ProgressBar(len(clips) * sampler.steps)
    preview_bar = comfy.utils.ProgressBar(sampler.steps, node_id=preview_node)
    previewer = latent_preview.get_previewer(sampler.model.load_device, sampler.model.model.latent_format)

    def hook(clip: int, step: int, x0: Tensor) -> None:
        bar.update_absolute((clip - clips[0]) * sampler.steps + step + 1)
        if previewer is not None:
            preview_bar.update_absolute(step + 1, preview=previewer.decode_latent_to_preview_image("JPEG", x0))

    return hook
