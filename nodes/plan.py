"""How the video is cut into clips."""

from __future__ import annotations

from fractions import Fraction

from comfy_api.latest import io

from ..longvie_core.plan import TAIL_RULES, ClipPlan
from . import types

MOST_FRAMES = 1025
"""A clip may have more than LongVie was trained on, but the slider must end somewhere."""


class LongVieClipPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieClipPlan",
            display_name="LongVie Clip Plan",
            category="LongVie",
            description="How the video is cut into overlapping clips. LongVie 2 was trained on 81 frames, 640x352, 16 fps, "
            "one shared frame between clips.",
            search_aliases=["long video", "clip length", "segments"],
            inputs=[
                io.Int.Input("width", default=640, min=16, max=8192, step=16, tooltip="Width, a multiple of 16."),
                io.Int.Input("height", default=352, min=16, max=8192, step=16, tooltip="Height, a multiple of 16."),
                io.Int.Input(
                    "frames_per_clip",
                    default=81,
                    min=5,
                    max=MOST_FRAMES,
                    step=4,
                    tooltip="Frames a clip, 4n+1. LongVie 2 was trained on 81; the tiny demo model on 17.",
                ),
                io.Float.Input(
                    "fps", default=16.0, min=1.0, max=120.0, step=0.01, tooltip="Frames per second of controls and result."
                ),
                io.Int.Input(
                    "overlap",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Frames that neighbouring clips share; the result shows them once. LongVie shares 1.",
                ),
                io.Combo.Input(
                    "tail",
                    options=list(TAIL_RULES),
                    default="drop",
                    tooltip="What to do with frames that do not fill a clip: 'drop' them as the reference does, or 'pad' the "
                    "controls with their last frame and cut the result to length, so that nothing is lost.",
                ),
                io.Int.Input(
                    "source_frames",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Length of the driving video in frames; 0 = as long as the controls.",
                ),
            ],
            outputs=[types.Plan.Output("plan", tooltip="For the loop and the control nodes.")],
        )

    @classmethod
    def execute(cls, width, height, frames_per_clip, fps, overlap, tail, source_frames) -> io.NodeOutput:
        return io.NodeOutput(
            ClipPlan(
                width=width,
                height=height,
                frames=frames_per_clip,
                fps=Fraction(fps).limit_denominator(1001),
                overlap=overlap,
                tail=tail,
                source_frames=source_frames,
            )
        )

    @classmethod
    def validate_inputs(cls, frames_per_clip=None) -> bool | str:
        try:
            if frames_per_clip is not None:
                if frames_per_clip > MOST_FRAMES:
                    return f"frames_per_clip {frames_per_clip} is more than {MOST_FRAMES}"
                ClipPlan(frames=frames_per_clip)
        except ValueError as error:
            return str(error)
        return True
