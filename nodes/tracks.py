"""Point tracks of a driving video, drawn as the sparse control."""

from __future__ import annotations

import comfy.utils
from comfy_api.latest import io

from ..longvie_core.control.check import check_controls
from ..longvie_core.control.render import STYLES
from ..longvie_core.control.tracks import LucasKanade, write_tracks
from ..longvie_core.framing import FITS
from . import storage, types

ENGINES = {"Lucas-Kanade": LucasKanade}


class LongVieTrackControl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieTrackControl",
            display_name="LongVie Track Control",
            category="LongVie/control",
            description="Follows a grid of points through each clip, anew from the clip's first frame, and draws them as the "
            "coloured rectangles that LongVie was trained on. Their depth comes from the dense control.",
            search_aliases=["tracks", "optical flow", "spatialtracker", "lucas-kanade"],
            inputs=[
                types.Plan.Input("plan", tooltip="How the video is cut into clips."),
                types.Control.Input("dense", tooltip="The dense control of the same video: the points' depth comes from it."),
                io.Video.Input("video", optional=True, tooltip="The driving video."),
                io.Image.Input("images", optional=True, tooltip="The driving video as images at the plan's rate, instead."),
                io.Combo.Input(
                    "engine",
                    options=list(ENGINES),
                    tooltip="What follows the points. 'Lucas-Kanade' needs no weights and always works.",
                ),
                io.Int.Input(
                    "grid",
                    default=50,
                    min=2,
                    max=200,
                    tooltip="Points a side of the grid: the reference's code uses 50, the papers 70.",
                ),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    advanced=True,
                    tooltip="'reference' draws as the weights saw it, quirks included. 'corrected' draws near over far and "
                    "leaves hidden points out.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    tooltip="'stretch' to the plan's size without crop, as the reference does, or 'crop' to keep proportions; "
                    "the same as in Depth Control.",
                ),
            ],
            outputs=[types.Control.Output("sparse", tooltip="Sparse control: one picture set a clip.")],
        )

    @classmethod
    def execute(cls, plan, dense, engine, grid, style, fit, video=None, images=None) -> io.NodeOutput:
        plan = check_controls(plan, dense, None)
        footage = storage.footage(video, images, plan, fit)
        digests = [dense.digest(plan, clip) for clip in range(plan.clips)]
        folder = storage.cached("tracks", footage.digest(), engine, grid, style, plan, digests, suffix="")
        bar = comfy.utils.ProgressBar(plan.clips)
        sparse = write_tracks(
            footage,
            dense,
            plan,
            ENGINES[engine](),
            folder,
            grid=grid,
            style=style,
            progress=lambda done, _: bar.update_absolute(done),
        )
        return io.NodeOutput(sparse)

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        return storage.cache_state()
