"""Initial noise of the clips."""

from __future__ import annotations

from comfy_api.latest import io

from ..longvie_core.model.noise import NOISE_MODES, UnifiedNoise


class LongVieUnifiedNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieUnifiedNoise",
            display_name="LongVie Unified Noise",
            category="LongVie",
            description="One noise tensor, drawn once, starts every clip: LongVie's first answer to drift. Also works as NOISE "
            "of the host's own samplers, where it equals RandomNoise with the same seed.",
            search_aliases=["seed", "shared noise"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the noise. Changing it renders the whole video again.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(NOISE_MODES),
                    default=NOISE_MODES[0],
                    tooltip="'unified': every clip starts from the same noise (LongVie). 'per clip': every clip draws its own, "
                    "derived from seed and clip number. 'global + alpha * N(0,1)': the shared noise plus a little of its own.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.05,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Weight of a clip's own noise in the third mode; the paper tried 0.05.",
                ),
            ],
            outputs=[io.Noise.Output("noise", tooltip="For the clip loop, Sample Clip or any of the host's samplers.")],
        )

    @classmethod
    def execute(cls, seed, mode, alpha) -> io.NodeOutput:
        return io.NodeOutput(UnifiedNoise(seed, mode, alpha))
