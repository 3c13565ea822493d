"""LongVie's control on an unmodified MODEL of the host.

A ``DIFFUSION_MODEL`` wrapper puts the history in front of the clip and starts the control streams; a ``double_block`` patch
adds their residuals after each controlled block; a ``SAMPLER_SAMPLE`` wrapper blends the first latent frame. Control latents
travel in the conditioning's ``model_conds``, so that context windows slice them; so do a clip's own strengths, so that one
patched MODEL serves clips of any strength. No state stays on patches or on the model: one evaluation's streams live in a copy
of ``transformer_options``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.ldm.common_dit
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.ldm.wan.model import WanModel, sinusoidal_embedding_1d
from torch import Tensor

from ...model.clip import ClipStrengths, ModalityRange
from ...model.conditioning import history_input
from ...model.dual_control import DualControl, DualControlConfig, Streams, Strengths
from ...model.noise import FIRST_FRAME_SIGMA, blend_first_frame
from .conditioning import DENSE, HISTORY, SPARSE, STRENGTHS
from .host import require_host
from .weights import wan_backbone

log = logging.getLogger("longvie")

KEY = "longvie"
CONTROLS = {"dense": DENSE, "sparse": SPARSE, "history": HISTORY}

SIGMA_ROUNDING = 1e-6
"""Sigmas of a run are float32: a step may lie this far beside the range's bound that it is on."""


# Control on a MODEL


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
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: dict | None = None,
        **kwargs: Any,
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
        self,
        backbone: WanModel,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None,
        dense: Tensor | None,
        sparse: Tensor | None,
        own: ClipStrengths,
        history_frames: int,
        options: dict,
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

    def __call__(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict,
        callback: Any,
        noise: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        history = _history_of(guider.conds)
        if history is not None and executor.class_obj.max_denoise(guider, sigmas):
            noise = blend_first_frame(noise, history.to(noise), self.sigma)
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


def _budget_history(executor: Any, model: Any, noise_shape: Sequence[int], conds: dict, *args: Any, **kwargs: Any) -> Any:
    """``PREPARE_SAMPLING`` wrapper: the host's memory estimate sees the history frames too."""
    history = _history_of(conds)
    if history is not None:
        noise_shape = [*noise_shape[:2], noise_shape[2] + history.shape[2], *noise_shape[3:]]
    return executor(model, noise_shape, conds, *args, **kwargs)


class BeginSampling:
    """``OUTER_SAMPLE`` wrapper: checks the sizes, and registers LongVie's other wrappers after all that are there.

    Context windows shuffle the noise and clamp the memory estimate in wrappers of their own; ours have to see the result,
    whatever the order of the nodes.
    """

    def __init__(self, first_frame_sigma: float) -> None:
        self.blend = FirstFrameBlend(first_frame_sigma)

    def __call__(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
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
    head_dim = backbone.dim // backbone.num_heads
    config.check_backbone(backbone.dim, head_dim, backbone.img_emb is not None, len(backbone.blocks))
