"""What samples a clip, and one clip of the autoregression as a node of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from comfy_api.latest import io

from ..longvie_core.backends import comfy as backend
from ..longvie_core.control.check import check_controls
from ..longvie_core.model.clip import HistorySettings
from ..longvie_core.model.schedule import SHIFT, STEPS, flow_sigmas
from ..longvie_core.run.colour_anchor import ANCHOR_SPACES, AnchorSettings
from ..longvie_core.run.job import Script
from ..longvie_core.run.loop import Carry, generate
from . import storage, types
from .cache import cache_state
from .contents import GraphFingerprint, graph_fingerprint
from .model import FIRST_FRAME_SIGMA_INPUT, modality_inputs, modality_range
from .networks import EncodedTexts, SamplerPayload, host_sampler_text, latent_store, loop_settings, open_backend


@dataclass(frozen=True)
class ClipState:
    """Payload of LONGVIE_STATE: where the previous clip's tail lies, and which clip comes next (from 0)."""

    tail: Path
    next_clip: int


class LongVieSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieSigmas",
            display_name="LongVie Sigmas",
            category="LongVie",
            description="The flow-matching schedule that LongVie uses. The host's 'simple' scheduler equals it only where "
            "1000 is divisible by the steps.",
            search_aliases=["scheduler", "steps", "shift"],
            inputs=[
                io.Int.Input("steps", default=STEPS, min=1, max=1000, tooltip="Model evaluations a clip. LongVie: 50."),
                io.Float.Input("shift", default=SHIFT, min=0.01, max=100.0, step=0.01, tooltip="Time shift. LongVie: 5."),
            ],
            outputs=[io.Sigmas.Output("sigmas", tooltip="For Multimodal Sampler or the host's custom samplers.")],
        )

    @classmethod
    def execute(cls, steps, shift) -> io.NodeOutput:
        return io.NodeOutput(flow_sigmas(steps, shift))


class LongVieMultimodalSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieMultimodalSampler",
            display_name="LongVie Multimodal Sampler",
            category="LongVie",
            description="Everything about sampling that is not the clip: the controlled model, VAE, sampler, guidance, and how "
            "strongly each modality acts when.",
            search_aliases=["sampler", "cfg", "strength"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Wan 2.1 image-to-video model with its LoRAs, overlay, compile and so on, behind ModelSamplingSD3 "
                    "(shift 5): starts and ends of the controls count on the shift that the model has here.",
                ),
                types.ModelPatch.Input("control", tooltip="From LongVie Load Control."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                io.Sampler.Input("sampler", tooltip="From KSamplerSelect; LongVie uses euler."),
                io.Sigmas.Input("sigmas", tooltip="From LongVie Sigmas."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="clip_vision_h; needed by models with an image branch, which all of Wan2.1-I2V-14B have.",
                ),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale. LongVie: 5. At 1 the negative prompt is not evaluated, which is twice as fast.",
                ),
                *modality_inputs("dense"),
                *modality_inputs("sparse"),
                io.Int.Input(
                    "history_frames",
                    default=HistorySettings().frames,
                    min=0,
                    max=17,
                    advanced=True,
                    tooltip="Last frames of the previous clip that the next one sees; 0 = none. 1, 5, 9, 13 and 17 are used "
                    "whole. Of 2-4 the first 1 is used, of 6-8 the first 5, of 10-12 the first 9, of 14-16 the first 13: the "
                    "VAE drops the rest, which are the newest. LongVie passes 8, so 5 are used and 3 dropped.",
                ),
                FIRST_FRAME_SIGMA_INPUT,
                io.Combo.Input(
                    "anchor",
                    options=list(ANCHOR_SPACES),
                    default=AnchorSettings.space,
                    optional=True,
                    advanced=True,
                    tooltip="Against brightness, contrast and tint that creep from clip to clip: draws every later clip to the "
                    "mean and spread of clip 1, of its pixels or of its latents. Needs anchor_strength. LongVie: off.",
                ),
                io.Float.Input(
                    "anchor_strength",
                    default=AnchorSettings.strength,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How much of the difference to clip 1 is taken away by the end of each clip: 0 = off, 1 = all. It "
                    "also flattens changes that are meant, such as a walk from sun into shade.",
                ),
            ],
            outputs=[types.Sampler.Output("sampler", tooltip="For the clip loop or Sample Clip.")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model,
        control,
        vae,
        sampler,
        sigmas,
        cfg,
        dense_strength,
        dense_start,
        dense_end,
        sparse_strength,
        sparse_start,
        sparse_end,
        history_frames,
        first_frame_sigma,
        clip_vision=None,
        anchor=AnchorSettings.space,
        anchor_strength=AnchorSettings.strength,
    ) -> io.NodeOutput:
        history = HistorySettings(history_frames, first_frame_sigma)
        dense = modality_range("dense", dense_strength, dense_start, dense_end)
        sparse = modality_range("sparse", sparse_strength, sparse_start, sparse_end)
        patched = backend.apply_control(model, control, dense, sparse, history.first_frame_sigma)
        graph = partial(graph_fingerprint, cls.hidden.dynprompt, cls.hidden.unique_id)
        networks = {
            "model": graph("model").content,
            "control network": graph("control").content,
            "vae": graph("vae").content,
            "image encoder": graph("clip_vision").content if clip_vision else "none",
            "method": host_sampler_text(sampler, graph("sampler").content),
        }
        multimodal = backend.MultimodalSampler(patched, vae, clip_vision, sampler, sigmas, cfg)
        anchoring = AnchorSettings(anchor, anchor_strength)
        return io.NodeOutput(
            SamplerPayload(multimodal, dense, sparse, history, anchoring, networks, graph().former, cls.hidden.unique_id)
        )


class LongVieSampleClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieSampleClip",
            display_name="LongVie Sample Clip",
            category="LongVie",
            description="One clip: state in, state out. For loops of your own; LongVie Clip Loop does the whole video, with "
            "resume.",
            search_aliases=["autoregressive", "single clip"],
            inputs=[
                types.Sampler.Input("sampler", tooltip="From LongVie Multimodal Sampler."),
                types.Plan.Input("plan", tooltip="From LongVie Clip Plan or Load Clips."),
                types.Prompts.Input("prompts", tooltip="From LongVie Prompt Schedule."),
                io.Noise.Input("noise", tooltip="From LongVie Unified Noise."),
                io.Image.Input("first_frame", tooltip="First frame of the whole video; used while no state is connected."),
                types.Control.Input("dense", optional=True, tooltip="Depth control."),
                types.Control.Input("sparse", optional=True, tooltip="Point-track control."),
                types.State.Input("state", optional=True, tooltip="State after the previous clip; open for the first clip."),
            ],
            outputs=[
                types.State.Output("state", tooltip="For the next clip."),
                io.Image.Output("images", tooltip="All frames of the clip, the shared first one included."),
                io.Latent.Output("latent", tooltip="The clip's latents."),
            ],
        )

    @classmethod
    def execute(cls, sampler, plan, prompts, noise, first_frame, dense=None, sparse=None, state=None) -> io.NodeOutput:
        plan = check_controls(plan, dense, sparse)
        if state is None:
            clip, carry = 0, Carry.before_first(storage.to_frame(first_frame, plan))
        else:
            clip, carry = state.next_clip, storage.read_tail(state.tail)
        plan.control_frames(clip)
        script = Script(plan, dense, sparse, carry.start_frame(plan), prompts)
        texts = EncodedTexts(prompts, sampler.sampler.model, None)
        texts.encode(texts.missing(prompts.distinct([clip])))
        settings = loop_settings(sampler, noise, GraphFingerprint("", ""))
        with latent_store(sampler.sampler) as store:
            (result,) = generate(script, [clip], carry, open_backend(sampler, [clip]), settings, texts.read, store)
        tail = storage.keep_tail(result.carry)
        return io.NodeOutput(ClipState(tail, clip + 1), storage.to_image(result.frames), {"samples": result.latents})

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        return cache_state()
