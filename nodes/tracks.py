"""Point tracks of a driving video, drawn as the sparse control."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.utils
import torch
from comfy_api.latest import io

from ..longvie_core.control.check import check_controls
from ..longvie_core.control.tracks.draw import STYLES
from ..longvie_core.control.tracks.flow import FlowTracker
from ..longvie_core.control.tracks.lucas_kanade import LucasKanade
from ..longvie_core.control.tracks.types import Tracker
from ..longvie_core.control.tracks.write import clip_file, write_external_tracks, write_tracks
from ..longvie_core.media.footage import FITS
from . import cache, engines, storage, types
from .contents import content_of


class LongVieTrackControl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieTrackControl",
            display_name="LongVie Track Control",
            category="LongVie/control",
            description="Follows a grid of points through each clip, anew from the clip's first frame, and draws them as the "
            "coloured rectangles that LongVie was trained on. Their depth comes from the dense control.",
            search_aliases=["tracks", "optical flow", "spatialtracker", "lucas-kanade", "raft", "cotracker"],
            inputs=[
                types.Plan.Input("plan", tooltip="How the video is cut into clips."),
                types.Control.Input("dense", tooltip="The dense control of the same video: the points' depth comes from it."),
                io.Video.Input("video", optional=True, tooltip="The driving video. The engine 'TRACKS' does not look at it."),
                io.Image.Input("images", optional=True, tooltip="The driving video as images at the plan's rate, instead."),
                io.Tracks.Input(
                    "tracks",
                    optional=True,
                    tooltip="For the engine 'TRACKS': another tracker's points through the whole video, in pixels of the "
                    "plan's size, at the plan's rate.",
                ),
                io.DynamicCombo.Input(
                    "engine",
                    tooltip="What follows the points. 'Lucas-Kanade' needs no weights and always works. 'RAFT' is a flow "
                    "network for blurred pictures and large motion: it needs a file and a GPU. 'TRACKS' takes any other "
                    "tracker's points.",
                    options=[
                        io.DynamicCombo.Option("Lucas-Kanade", []),
                        io.DynamicCombo.Option(
                            "RAFT",
                            [
                                io.Combo.Input(
                                    "model",
                                    options=engines.flow_files(),
                                    tooltip="torchvision's raft_large in models/optical_flow.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option("TRACKS", []),
                    ],
                ),
                io.Int.Input(
                    "grid",
                    default=50,
                    min=2,
                    max=200,
                    tooltip="Points a side of the grid: the reference's code uses 50, the papers 70. 'TRACKS' brings its own "
                    "points.",
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
                    "the same as in Depth Control. 'TRACKS' are taken as they are.",
                ),
            ],
            outputs=[types.Control.Output("sparse", tooltip="Sparse control: one picture set a clip.")],
        )

    @classmethod
    def execute(cls, plan, dense, engine, grid, style, fit, video=None, images=None, tracks=None) -> io.NodeOutput:
        plan = check_controls(plan, dense, None)
        drawing = [style, plan, *(dense.digest(plan, clip) for clip in range(plan.clips))]
        bar = comfy.utils.ProgressBar(plan.clips)
        needed = plan.clips * plan.frames * plan.height * plan.width * storage.PIXEL_BYTES

        @contextmanager
        def writing(folder: Path) -> Iterator[Callable[[int, int], None]]:
            with cache.making(folder, needed) as finished:

                def progress(done: int, _: int) -> None:
                    finished(clip_file(folder, done - 1))
                    bar.update_absolute(done)

                yield progress

        if engine["engine"] == "TRACKS":
            external = engines.socket_tracks(tracks)
            hashes = [storage.tensor_sha256(torch.from_numpy(part)) for part in (external.xy, external.visible)]
            folder = cache.cached("tracks", "TRACKS", *hashes, *drawing, suffix="")
            with writing(folder) as progress:
                return io.NodeOutput(write_external_tracks(external, dense, plan, folder, style=style, progress=progress))
        name, tracker = tracker_of(engine)
        footage = storage.footage(video, images, plan, fit)
        folder = cache.cached("tracks", footage.digest(), name, grid, *drawing, suffix="")
        with writing(folder) as progress:
            return io.NodeOutput(write_tracks(footage, dense, plan, tracker, folder, grid=grid, style=style, progress=progress))

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        return cache.cache_state()


def tracker_of(choice: dict) -> tuple[tuple, Tracker]:
    """What names the tracker that the widgets describe, for the cache, and the tracker itself."""
    if choice["engine"] == "Lucas-Kanade":
        return ("Lucas-Kanade",), LucasKanade()
    path = engines.flow_file(choice["model"])
    return ("RAFT", content_of(path)), FlowTracker(engines.HostRaft(choice["model"]))
