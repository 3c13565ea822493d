"""Controls that the user already has: the authors' clip folders and ready-made control videos; and a look at a control."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from itertools import islice

import numpy as np
from comfy_api.latest import io
from PIL import Image

from ..longvie_core.control.check import check_controls
from ..longvie_core.control.clips_folder import load_clips_folder
from ..longvie_core.control.control import MODALITIES, Control
from ..longvie_core.disk.fingerprints import file_stamp
from ..longvie_core.plan import ClipPlan
from . import storage, types
from .cache import cache_state


class LongVieLoadClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieLoadClips",
            display_name="LongVie Load Clips",
            category="LongVie/control",
            description="Loads a folder in the layout of the LongVie authors' examples: cond.json, depth_XX.mp4, "
            "track_XX.mp4 and first.png. Put it into ComfyUI's input folder.",
            search_aliases=["cond.json", "example", "folder"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=storage.clip_folders(),
                    tooltip="Folder inside ComfyUI's input folder that holds cond.json.",
                ),
                io.Int.Input("width", default=640, min=16, max=8192, step=16, tooltip="Width, a multiple of 16."),
                io.Int.Input("height", default=352, min=16, max=8192, step=16, tooltip="Height, a multiple of 16."),
                io.Float.Input(
                    "fps", default=16.0, min=1.0, max=120.0, step=0.01, tooltip="Frames per second of the result. LongVie: 16."
                ),
                io.Int.Input(
                    "max_clips",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Use only the first clips; 0 = all.",
                ),
            ],
            outputs=[
                types.Plan.Output("plan", tooltip="Frames a clip as in the files, one frame shared."),
                types.Control.Output("dense", tooltip="Depth control."),
                types.Control.Output("sparse", tooltip="Point-track control."),
                io.String.Output("prompts", tooltip="The clips' texts as a JSON list, for LongVie Prompt Schedule."),
                io.Image.Output("first_frame", tooltip="first.png"),
            ],
        )

    @classmethod
    def execute(cls, folder, width, height, fps, max_clips) -> io.NodeOutput:
        clips = load_clips_folder(storage.input_folder(folder))
        plan = ClipPlan(width=width, height=height, frames=clips.dense.frames, fps=Fraction(fps).limit_denominator(1001))
        plan = plan.resolved(plan.stitched_frames(min(clips.clips, max_clips or clips.clips)))
        with Image.open(clips.first_frame) as picture:
            first = storage.to_image(np.asarray(picture.convert("RGB"))[None])
        prompts = json.dumps(clips.prompts[: plan.clips], ensure_ascii=False)
        return io.NodeOutput(check_controls(plan, clips.dense, clips.sparse), clips.dense, clips.sparse, prompts, first)

    @classmethod
    def fingerprint_inputs(cls, folder, **_) -> str:
        files = sorted(storage.input_folder(folder).iterdir())
        return hashlib.sha256(repr([(path.name, *file_stamp(path)) for path in files]).encode()).hexdigest()

    @classmethod
    def validate_inputs(cls, folder=None) -> bool | str:
        try:
            if folder is not None:
                storage.input_folder(folder)
        except ValueError as error:
            return str(error)
        return True


class LongVieControlFromVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieControlFromVideo",
            display_name="LongVie Control From Video",
            category="LongVie/control",
            description="Uses a ready-made control video: depth that is normalized over the whole video, or drawn point "
            "tracks. Connect a VIDEO (read from disk frame by frame) or an IMAGE batch.",
            search_aliases=["depth video", "track video"],
            inputs=[
                io.Combo.Input(
                    "modality",
                    options=list(MODALITIES),
                    tooltip="'dense': depth in grey. 'sparse': coloured point tracks on black.",
                ),
                io.Combo.Input(
                    "polarity",
                    options=["near = black", "near = white"],
                    tooltip="Which end of a depth picture is near. LongVie wants near = black; most depth nodes give "
                    "near = white, which is turned round for you when you say so. Wrong polarity is worse than no control.",
                ),
                io.Video.Input("video", optional=True, tooltip="The control video; its frames are used as they are."),
                io.Image.Input("images", optional=True, tooltip="The control as an image batch, instead of a video."),
            ],
            outputs=[types.Control.Output("control", tooltip="For the clip loop, Sample Clip or Apply Control.")],
        )

    @classmethod
    def execute(cls, modality, polarity, video=None, images=None) -> io.NodeOutput:
        if (video is None) == (images is None):
            raise ValueError("connect either video or images to LongVie Control From Video: exactly one of the two")
        path = storage.image_file(images) if video is None else storage.video_file(video)
        return io.NodeOutput(Control.from_video(path, modality, near_is_black=polarity == "near = black"))

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        return cache_state()


class LongVieControlPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieControlPreview",
            display_name="LongVie Control Preview",
            category="LongVie/control",
            description="Shows what the network sees of a control: a few frames of one clip, after polarity and resizing.",
            search_aliases=["look", "debug"],
            inputs=[
                types.Control.Input("control", tooltip="Dense or sparse control."),
                types.Plan.Input("plan", tooltip="How the video is cut."),
                io.Int.Input("clip", default=1, min=1, max=100_000, tooltip="Which clip, counted from 1."),
                io.Int.Input("frames", default=9, min=1, max=1025, tooltip="How many frames, spread over the clip."),
            ],
            outputs=[io.Image.Output("images", tooltip="The frames, at the plan's size.")],
        )

    @classmethod
    def execute(cls, control, plan, clip, frames) -> io.NodeOutput:
        plan = check_controls(plan, **{"dense": None, "sparse": None, control.modality: control})
        numbers = set(np.linspace(0, plan.frames - 1, min(frames, plan.frames)).round().astype(int).tolist())
        window = islice(control.window(plan, clip - 1), plan.frames)
        return io.NodeOutput(storage.to_image(np.stack([frame for number, frame in enumerate(window) if number in numbers])))
