"""Raw depth to the dense control that LongVie was trained on."""

from __future__ import annotations

from comfy_api.latest import io

from ..longvie_core.control.control import Control
from ..longvie_core.control.normalize import write_control, write_control_per_clip
from . import cache, storage, types
from .contents import content_of

WHOLE_VIDEO, PER_CLIP = "whole video", "per clip (ablation)"


class LongVieGlobalNormalize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieGlobalNormalize",
            display_name="LongVie Global Normalize",
            category="LongVie/control",
            description="Turns raw depth into the dense control: the 5th and 95th percentile of the whole video become white "
            "and black, near = black. Never per frame: that flickers, and measures worse than no control.",
            search_aliases=["depth", "percentile"],
            inputs=[
                types.RawDepth.Input("signal", tooltip="Raw, unnormalized depth of the whole video."),
                types.Plan.Input("plan", tooltip="Says how many frames the clips use; the percentiles are taken over those."),
                io.Float.Input(
                    "low_percentile",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Everything farther becomes white. LongVie: 5.",
                ),
                io.Float.Input(
                    "high_percentile",
                    default=95.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Everything nearer becomes black. LongVie: 95.",
                ),
                io.Combo.Input(
                    "scope",
                    options=[WHOLE_VIDEO, PER_CLIP],
                    default=WHOLE_VIDEO,
                    optional=True,
                    advanced=True,
                    tooltip="What the percentiles are taken over. 'per clip' is the papers' ablation, for comparison only: it "
                    "measures worse (LongVie 2: subject consistency 88.81, not 91.05), as the clips disagree about depth.",
                ),
            ],
            outputs=[types.Control.Output("dense", tooltip="Dense control, near = black.")],
        )

    @classmethod
    def execute(cls, signal, plan, low_percentile, high_percentile, scope=WHOLE_VIDEO) -> io.NodeOutput:
        plan = plan.resolved(signal.frames)
        percentiles = (low_percentile, high_percentile)
        made_from = (signal, content_of(signal.path), plan, percentiles)
        needed = signal.height * signal.width * storage.PIXEL_BYTES
        if scope == PER_CLIP:
            folder = cache.cached("dense_per_clip", *made_from, suffix="")
            with cache.making(folder, plan.clips * plan.frames * needed):
                return io.NodeOutput(write_control_per_clip(signal, plan, folder, percentiles))
        destination = cache.cached("dense", *made_from)
        if cache.is_intact(destination):
            return io.NodeOutput(Control.from_video(destination, "dense"))
        with cache.making(destination, plan.output_frames * needed):
            return io.NodeOutput(write_control(signal, plan, destination, percentiles))

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        return cache.cache_state()
