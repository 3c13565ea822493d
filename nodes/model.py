"""Weights, and one controlled clip with the host's own samplers."""

from __future__ import annotations

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

from ..longvie_core.backends import comfy as backend
from ..longvie_core.control.check import check_controls
from ..longvie_core.model.clip import HistorySettings
from ..longvie_core.model.conditioning import encoded_history_frames
from ..longvie_core.model.noise import FIRST_FRAME_SIGMA
from ..longvie_core.run.broken_clips import checked_latents
from ..longvie_core.run.control_latents import control_latents
from ..longvie_core.run.prompts import MAX_STRENGTH
from . import storage, types


def modality_inputs(modality: str) -> list[io.Input]:
    """Strength and range widgets of one modality."""
    return [
        io.Float.Input(
            f"{modality}_strength",
            default=1.0,
            min=0.0,
            max=MAX_STRENGTH,
            step=0.01,
            tooltip=f"Weight of the {modality} control; 1 = as trained, 0 = off and not computed.",
        ),
        io.Float.Input(
            f"{modality}_start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip=f"Part of the sampling from which the {modality} control acts: 0 = first step.",
        ),
        io.Float.Input(
            f"{modality}_end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip=f"Part of the sampling up to which the {modality} control acts: 1 = last step.",
        ),
    ]


def modality_range(modality: str, strength: float, start: float, end: float) -> backend.ModalityRange:
    """The range of one modality's widgets.

    Raises:
        ValueError: naming the modality.
    """
    if start > end:
        raise ValueError(f"{modality}_start {start} is after {modality}_end {end}: swap them")
    return backend.ModalityRange(strength, start, end)


FIRST_FRAME_SIGMA_INPUT = io.Float.Input(
    "first_frame_sigma",
    default=round(FIRST_FRAME_SIGMA, 6),
    min=0.0,
    max=1.0,
    step=0.000001,
    round=0.000001,
    advanced=True,
    tooltip="Noise that stays in the first latent frame of later clips, the rest is history: LongVie 0.925926; 1 = no blend.",
)


class LongVieLoadControl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieLoadControl",
            display_name="LongVie Load Control",
            category="LongVie/model",
            description="Loads LongVie's dual-control network: control.safetensors of LongVie 2, or Kijai's repack of it. A "
            "file that does not fit is refused with the keys that are missing or too many.",
            search_aliases=["controlnet", "control.safetensors"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list("model_patches"),
                    tooltip="File in ComfyUI's models/model_patches folder.",
                )
            ],
            outputs=[types.ModelPatch.Output("control", tooltip="For Multimodal Sampler or Apply Control.")],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(backend.load_control(folder_paths.get_full_path_or_raise("model_patches", file)))


class LongVieAttentionOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieAttentionOverlay",
            display_name="LongVie Attention Overlay",
            category="LongVie/model",
            description="Sets LongVie 2's own self-attention (dit.safetensors) over that of Wan2.1-I2V-14B. It holds 8.4 GB of "
            "weights in memory; 'python -m longvie_core.checkpoint merge' makes a merged checkpoint once instead.",
            search_aliases=["dit.safetensors"],
            inputs=[
                io.Model.Input("model", tooltip="Wan2.1-I2V-14B from the host's Load Diffusion Model."),
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="dit.safetensors of LongVie 2, or Kijai's LongVie2_attn_layers, in models/diffusion_models.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with LongVie's self-attention.")],
        )

    @classmethod
    def execute(cls, model, file) -> io.NodeOutput:
        return io.NodeOutput(backend.apply_overlay(model, folder_paths.get_full_path_or_raise("diffusion_models", file)))


class LongVieApplyControl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieApplyControl",
            display_name="LongVie Apply Control",
            category="LongVie/model",
            description="One controlled clip with the host's own KSampler, context windows, EasyCache and so on. Wire all four "
            "outputs on. Connect it after Model Sampling SD3 (shift 5).",
            search_aliases=["controlnet", "ksampler"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Wan 2.1 image-to-video model with LoRAs and ModelSamplingSD3 (shift 5) already on it: starts and "
                    "ends of the controls count on the shift that the model has here.",
                ),
                types.ModelPatch.Input("control", tooltip="From LongVie Load Control."),
                io.Conditioning.Input("positive", tooltip="Prompt of this clip."),
                io.Conditioning.Input("negative", tooltip="Negative prompt."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                types.Plan.Input("plan", tooltip="Size and length of the clip."),
                io.Image.Input("start_image", tooltip="The clip's first frame; for later clips the last of the one before."),
                io.Int.Input(
                    "clip",
                    default=1,
                    min=1,
                    max=100_000,
                    tooltip="Which clip of the controls, counted from 1.",
                ),
                types.Control.Input("dense", optional=True, tooltip="Depth control."),
                types.Control.Input("sparse", optional=True, tooltip="Point-track control."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="CLIP vision of the start image, needed by models with an image branch (all of Wan2.1-I2V-14B).",
                ),
                io.Image.Input(
                    "history",
                    optional=True,
                    tooltip="Last frames of the previous clip, as many as are given: 5, 8 (of which 5 count, as in LongVie), "
                    "9, 13 or 17. Open for the first clip.",
                ),
                *modality_inputs("dense"),
                *modality_inputs("sparse"),
                FIRST_FRAME_SIGMA_INPUT,
            ],
            outputs=[
                io.Model.Output("model", tooltip="For KSampler."),
                io.Conditioning.Output("positive", tooltip="For KSampler."),
                io.Conditioning.Output("negative", tooltip="For KSampler."),
                io.Latent.Output("latent", tooltip="Empty latent of the right size, for KSampler."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        control,
        positive,
        negative,
        vae,
        plan,
        start_image,
        clip,
        dense=None,
        sparse=None,
        clip_vision_output=None,
        history=None,
        dense_strength=1.0,
        dense_start=0.0,
        dense_end=1.0,
        sparse_strength=1.0,
        sparse_start=0.0,
        sparse_end=1.0,
        first_frame_sigma=FIRST_FRAME_SIGMA,
    ) -> io.NodeOutput:
        HistorySettings(first_frame_sigma=first_frame_sigma)
        plan = check_controls(plan, dense, sparse)
        patched = backend.apply_control(
            model,
            control,
            modality_range("dense", dense_strength, dense_start, dense_end),
            modality_range("sparse", sparse_strength, sparse_start, sparse_end),
            first_frame_sigma,
        )
        backend.check_image_branch(patched, clip_vision_output)
        codec = backend.VaeCodec(vae, model)
        image = checked_latents(
            codec.encode_image(storage.to_frame(start_image, plan), plan.frames), clip - 1, "encoding its start frame"
        )
        dense_latents, sparse_latents = (
            None if signal is None else control_latents(signal, plan, clip - 1, codec) for signal in (dense, sparse)
        )
        past = None
        if history is not None:
            frames = storage.to_frames(history, plan)
            HistorySettings(len(frames))
            past = codec.encode(frames[: encoded_history_frames(len(frames))])
            checked_latents(past, clip - 1, "encoding its history")
        positive, negative = (
            backend.with_control(backend.with_image(text, image, clip_vision_output), dense_latents, sparse_latents, past)
            for text in (positive, negative)
        )
        latent = torch.zeros(1, 16, plan.latent_frames, *plan.latent_size, device=comfy.model_management.intermediate_device())
        return io.NodeOutput(patched, positive, negative, {"samples": latent})
