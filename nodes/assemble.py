"""The video of a run joined again from its finished clips, without rendering; and what a joined video carries."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

from comfy.cli_args import args
from comfy_api.latest import Input, InputImpl, io, ui

from ..longvie_core.run.manifest import Take
from ..longvie_core.run.names import check_run_name
from ..longvie_core.run.store import Run
from . import storage


class LongVieAssemble(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieAssemble",
            display_name="LongVie Assemble",
            category="LongVie",
            description="Joins the finished clips of a run into its video again: in seconds, without a model, after any crash, "
            "and with sound if you like. Nothing is encoded anew but sound that mp4 cannot hold.",
            search_aliases=["concat", "join", "audio", "mux"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "run_name", default="longvie", tooltip="Folder under output/longvie: the run_name of the clip loop."
                ),
                *sound_inputs(),
            ],
            outputs=[
                io.Video.Output("video", tooltip="The stitched video, a file on disk."),
                io.String.Output("report", tooltip="How many clips were joined, and what was left out and why."),
            ],
        )

    @classmethod
    def execute(cls, run_name, driving_video=None, audio=None) -> io.NodeOutput:
        started = time.monotonic()
        if not storage.run_folder(run_name).is_dir():
            raise ValueError(f"there is no run {run_name!r} in output/longvie: use the run_name of the clip loop")
        run = storage.open_run(run_name)
        sound = storage.audio_file(driving_video, audio)
        with run.locked():
            takes, left_out = intact_takes(run)
            if not takes:
                raise ValueError(f"run {run_name!r}: {left_out or 'no clip is finished yet; queue the clip loop'}")
            video = run.assemble(takes, Fraction(run.manifest.fps), host_metadata(cls.hidden), sound)
            report = [*run.notes, *([left_out] if left_out else []), *sound_note(driving_video, audio, sound)]
            frames = sum(take.frames for take in takes)
            report.append(f"{len(takes)} clips, {frames} frames in {video.name}, {time.monotonic() - started:.1f} s")
        return io.NodeOutput(
            InputImpl.VideoFromFile(str(video)),
            "\n".join(report),
            ui=ui.PreviewVideo([ui.SavedResult(video.name, f"longvie/{run_name}", io.FolderType.output)]),
        )

    @classmethod
    def fingerprint_inputs(cls, run_name=None, **_) -> str | float:
        # The run changes without an input of this node changing. A linked name is not known here: then it always runs.
        if run_name is None:
            return float("nan")
        return storage.open_run(run_name).state() if storage.run_folder(run_name).is_dir() else "no such run"

    @classmethod
    def validate_inputs(cls, run_name=None) -> bool | str:
        try:
            if run_name is not None:
                check_run_name(run_name)
        except ValueError as error:
            return str(error)
        return True


def intact_takes(run: Run) -> tuple[list[Take], str]:
    """The leading takes of the run's sequence that can be joined, and in words why not the rest."""
    takes = run.manifest.clips
    for clip, take in enumerate(takes):
        if wrong := run.damage(take.video):
            return list(takes[:clip]), f"clips {clip + 1} .. {len(takes)} are left out: {wrong}; queue the clip loop"
    return list(takes), ""


def sound_inputs() -> list[io.Input]:
    """Where a video takes its sound from."""
    return [
        io.Video.Input(
            "driving_video",
            optional=True,
            tooltip="Its sound is laid under the video, copied as it is, from the same moment on. May be trimmed, or silent.",
        ),
        io.Audio.Input(
            "audio",
            optional=True,
            tooltip="Sound for the video instead of the driving video's. What is longer than the video is cut off.",
        ),
    ]


def sound_note(video: Input.Video | None, audio: dict | None, sound: Path | None) -> list[str]:
    """What a report says about the sound."""
    if video is None and audio is None:
        return []
    source = "the driving video" if audio is None else "audio"
    return [f"sound from {source}" if sound is not None else f"{source} has no sound: the video is silent"]


def host_metadata(hidden: io.HiddenHolder) -> dict[str, str]:
    """Prompt and workflow of an output node, as the host stores them in its own videos."""
    if args.disable_metadata:
        return {}
    # Without the fingerprints that the host notes on the nodes: they change from run to run.
    prompt = {
        key: {name: value for name, value in node.items() if name != "is_changed"}
        for key, node in (hidden.prompt or {}).items()
    }
    values = {**(hidden.extra_pnginfo or {}), "prompt": prompt or None}
    return {key: json.dumps(value) for key, value in values.items() if value is not None}
