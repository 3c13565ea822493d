"""Raw depth of a driving video."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import comfy.utils
from comfy_api.latest import io
from comfy_extras.nodes_depth_anything_3 import DA3Geometry

from ..longvie_core.control.depth.arrays import DepthArray
from ..longvie_core.control.depth.engine import extract_depth
from ..longvie_core.control.depth.meter import DepthMeter, temporal_flicker
from ..longvie_core.control.depth.networks import AUX_NETWORKS
from ..longvie_core.control.depth.pictures import ReadyDepthVideo
from ..longvie_core.control.depth.ready import DepthSource, copy_depth
from ..longvie_core.control.raw_depth import KINDS, RawDepth
from ..longvie_core.disk.atomic import write_atomically
from ..longvie_core.disk.fingerprints import file_stamp
from ..longvie_core.disk.npy import FLOAT32
from ..longvie_core.media.footage import FITS, Footage
from ..longvie_core.plan import ClipPlan
from . import cache, engines, storage, types
from .contents import content_of

DEPTH, RECORD = "depth.npy", "signal.json"
"""Files of an entry of the cache."""

POLARITIES = {"near = white": "white", "near = black": "black"}


class LongVieDepthControl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieDepthControl",
            display_name="LongVie Depth Control",
            category="LongVie/control",
            description="Raw depth of a driving video, streamed to disk and in one consistent scale. Give it to LongVie Global "
            "Normalize. Nothing is downloaded: a missing model says which file to put where.",
            search_aliases=["depth", "preprocessor", "depth anything", "midas", "zoe", "leres"],
            inputs=[
                types.Plan.Input("plan", tooltip="Size and rate: the video is resampled to the plan's frame rate."),
                io.Video.Input("video", optional=True, tooltip="The driving video; for ready-made depth, the depth video."),
                io.Image.Input(
                    "images", optional=True, tooltip="The driving video (or ready-made depth) as images at the plan's rate."
                ),
                DA3Geometry.Input(
                    "geometry", optional=True, tooltip="From the host's Run Depth Anything 3, for the engine 'DA3 geometry'."
                ),
                io.DynamicCombo.Input(
                    "engine",
                    tooltip="What sees the depth. 'parallax' needs no weights and is rough; a depth network is far better and "
                    "needs its weights in models/geometry_estimation.",
                    options=[
                        io.DynamicCombo.Option(engines.PARALLAX, []),
                        io.DynamicCombo.Option(
                            "Depth Anything 3",
                            [
                                model_input(engines.depth_files(), "Depth Anything 3 file in models/geometry_estimation."),
                                io.Int.Input(
                                    "resolution",
                                    default=504,
                                    min=140,
                                    max=2520,
                                    step=14,
                                    tooltip="Longest side that the network sees, a multiple of 14.",
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option("DA3 geometry", []),
                        io.DynamicCombo.Option(
                            "transformers",
                            [
                                model_input(
                                    engines.transformers_folders(),
                                    "Folder in models/geometry_estimation with a depth-estimation checkpoint of transformers.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "controlnet-aux",
                            [
                                io.Combo.Input("network", options=list(AUX_NETWORKS), tooltip="Which network the file is of."),
                                model_input(engines.depth_files(), "Its weights in models/geometry_estimation."),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "ready-made depth",
                            [
                                io.Combo.Input(
                                    "polarity",
                                    options=list(POLARITIES),
                                    tooltip="Which end of your pictures is near. Wrong polarity is worse than no control.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "depth file",
                            [
                                io.String.Input(
                                    "file",
                                    default="depth.npy",
                                    tooltip=".npy, .npz or .safetensors of [frames, height, width] in ComfyUI's input folder.",
                                ),
                                io.Combo.Input(
                                    "kind",
                                    options=list(KINDS),
                                    tooltip="'disparity': larger = nearer. 'depth': distance, larger = farther.",
                                ),
                            ],
                        ),
                    ],
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    tooltip="'stretch' to the plan's size without crop, as the reference does, or 'crop' to keep proportions.",
                ),
            ],
            outputs=[
                types.RawDepth.Output("signal", tooltip="Raw depth for LongVie Global Normalize."),
                io.String.Output("report", tooltip="What resampling made of the video, and how steady the depth is."),
            ],
        )

    @classmethod
    def execute(cls, plan, engine, fit, video=None, images=None, geometry=None) -> io.NodeOutput:
        match engine["engine"]:
            case "DA3 geometry":
                if geometry is None:
                    raise ValueError("the engine 'DA3 geometry' needs the input geometry: connect Run Depth Anything 3")
                return copied(engines.GeometryDepth(geometry), plan, storage.tensor_sha256(geometry["depth"]))
            case "depth file":
                path = storage.input_file(engine["file"])
                array = DepthArray(path, engine["kind"])
                raw_depth = array.raw_depth(plan.fps)
                if raw_depth is not None:
                    size = f"{raw_depth.width}x{raw_depth.height}"
                    return io.NodeOutput(raw_depth, f"{raw_depth.frames} frames of {size}, used in place")
                return copied(array, plan, path, file_stamp(path))
            case "ready-made depth" if images is not None:
                near = POLARITIES[engine["polarity"]]
                return copied(engines.ImageDepth(images, near), plan, storage.tensor_sha256(images), near)
        footage = storage.footage(video, images, plan, fit)
        if engine["engine"] == "ready-made depth":
            near = POLARITIES[engine["polarity"]]
            numbers = footage.source_frames(range(footage.frames))
            return copied(ReadyDepthVideo(footage.path, near), plan, footage.digest(), near, numbers=numbers)
        return extracted(footage, engine, plan)

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        return cache.cache_state()


def model_input(files: list[str], tooltip: str) -> io.Input:
    """Choice of a weight file."""
    return io.Combo.Input("model", options=files, tooltip=tooltip)


def extracted(footage: Footage, choice: dict, plan: ClipPlan) -> io.NodeOutput:
    """Depth by an engine, from the cache where it was extracted before."""

    def extract(path: Path) -> tuple[RawDepth, list[str]]:
        engine = engines.depth_engine(choice)
        bar = comfy.utils.ProgressBar(footage.frames)
        before = DepthMeter()
        raw_depth = extract_depth(
            footage,
            engine,
            path,
            lambda done, _: bar.update_absolute(done),
            # Metric depth has one scale already. All else is relative, also that of Depth Anything 3's other models.
            align=engine.kind == "disparity" or "metric" not in engine.name.lower(),
            before_alignment=before.add,
        )
        return raw_depth, [*before.notes, f"{engine.name}: flicker {before.flicker:.4f} before alignment"]

    weights = engines.depth_weights(choice)
    made_from = (footage.digest(), sorted(choice.items()), None if weights is None else content_of(weights))
    needed = footage.frames * plan.height * plan.width * FLOAT32.itemsize
    return cached_depth(extract, [footage.summary(plan)], *made_from, needed=needed)


def copied(source: DepthSource, plan: ClipPlan, *made_from: object, numbers: Sequence[int] | None = None) -> io.NodeOutput:
    """Depth that the user already has, as raw depth in the cache."""

    def copy(path: Path) -> tuple[RawDepth, list[str]]:
        return copy_depth(source, path, plan.fps, numbers), []

    needed = (source.frames if numbers is None else len(numbers)) * plan.height * plan.width * FLOAT32.itemsize
    return cached_depth(copy, [], source.name, source.kind, plan.fps, made_from, needed=needed)


def cached_depth(
    make: Callable[[Path], tuple[RawDepth, list[str]]], notes: list[str], *made_from: object, needed: int
) -> io.NodeOutput:
    """Raw depth and a report, made unless the cache has them.

    Args:
        make: writes the depth to a path, and gives it with lines for the report, which are kept with it.
        notes: lines that come first in the report and are not kept.
        made_from: values that name the entry.
        needed: bytes that it may take.
    """
    folder = cache.cached("depth", *made_from, suffix="")
    stored = _stored_depth(folder)
    if stored is None:
        with cache.making(folder, needed):
            folder.mkdir(exist_ok=True)
            raw_depth, kept_notes = make(folder / DEPTH)
            size, flicker = f"{raw_depth.width}x{raw_depth.height}", temporal_flicker(raw_depth)
            kept_notes.append(f"{raw_depth.frames} frames of {size}, flicker {flicker:.4f}")
            fields = {**asdict(raw_depth), "path": DEPTH, "fps": str(raw_depth.fps)}
            text = json.dumps({"signal": fields, "notes": kept_notes})
            write_atomically(folder / RECORD, lambda part: part.write_text(text, encoding="utf-8"))
        stored = raw_depth, kept_notes
    raw_depth, kept_notes = stored
    return io.NodeOutput(raw_depth, "\n".join([*notes, *kept_notes]))


def _stored_depth(folder: Path) -> tuple[RawDepth, list[str]] | None:
    """Raw depth and lines of the report that are kept in a folder of the cache; ``None`` where they are not whole."""
    if not (cache.is_intact(folder / RECORD) and cache.is_intact(folder / DEPTH)):
        return None
    stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    fields = stored["signal"]
    return RawDepth(**{**fields, "path": folder / DEPTH, "fps": Fraction(fields["fps"])}), stored["notes"]
