"""The whole video, clip by clip, on disk."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import InputImpl, io, ui
from server import PromptServer

from ..longvie_core.control.check import check_controls
from ..longvie_core.run.job import Job, Script
from ..longvie_core.run.names import check_run_name, clip_range
from ..longvie_core.run.render import render
from . import storage, types
from .assemble import host_metadata, sound_inputs, sound_note
from .contents import graph_fingerprint
from .networks import ComfyNetworks, loop_settings


class LongVieClipLoop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieClipLoop",
            display_name="LongVie Clip Loop",
            category="LongVie",
            description="Generates the whole video clip by clip. Each clip is on disk as soon as it is decoded; queueing the "
            "same run again goes on where it stopped, and renders only what was never rendered: an earlier clip comes back "
            "when the inputs are set back. No clip and no video is ever overwritten.",
            search_aliases=["long video", "autoregressive", "resume"],
            is_output_node=True,
            inputs=[
                types.Sampler.Input("sampler", tooltip="From LongVie Multimodal Sampler."),
                types.Plan.Input("plan", tooltip="From LongVie Clip Plan or Load Clips."),
                types.Prompts.Input("prompts", tooltip="From LongVie Prompt Schedule."),
                io.Noise.Input("noise", tooltip="From LongVie Unified Noise."),
                io.Image.Input("first_frame", tooltip="First frame: it sets the look. Stretched to the plan's size."),
                types.Control.Input("dense", optional=True, tooltip="Depth control."),
                types.Control.Input("sparse", optional=True, tooltip="Point-track control."),
                io.String.Input(
                    "run_name",
                    default="longvie",
                    tooltip="Folder under output/longvie that keeps every clip ever rendered under this name, and every video. "
                    "The same name goes on and finds them all again; a new one starts with none.",
                ),
                io.String.Input(
                    "clips",
                    default="",
                    tooltip="Which clips to render, counted from 1: empty = all, '3' = only clip 3, '3-5', '4-' = from 4 on. "
                    "Clips before them are kept even if they were made with other settings; the video ends with the last.",
                ),
                io.Int.Input(
                    "pause_after",
                    default=0,
                    min=0,
                    max=9999,
                    tooltip="Render at most so many clips, then stop with the video so far, to look at it; queueing again goes "
                    "on. Change the prompt of a clip before that, and it is rendered again from there. 0 = do not pause.",
                ),
                *sound_inputs(),
            ],
            outputs=[
                io.Video.Output("video", tooltip="The stitched video, a file on disk."),
                io.Image.Output("last_frame", tooltip="Last frame of the video."),
                io.String.Output("report", tooltip="What was kept, what was rendered and why, how long it took."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        sampler,
        plan,
        prompts,
        noise,
        first_frame,
        run_name,
        clips,
        pause_after,
        dense=None,
        sparse=None,
        driving_video=None,
        audio=None,
    ) -> io.NodeOutput:
        plan = check_controls(plan, dense, sparse)
        run = storage.open_run(run_name)
        sound = storage.audio_file(driving_video, audio)
        noise_fingerprint = graph_fingerprint(cls.hidden.dynprompt, cls.hidden.unique_id, "noise")
        script = Script(plan, dense, sparse, storage.to_frame(first_frame, plan), prompts)
        loop = loop_settings(sampler, noise, noise_fingerprint)
        job = Job(script, loop, clips, pause_after, sound, host_metadata(cls.hidden))
        networks = ComfyNetworks(sampler, prompts, noise_fingerprint)
        tell = partial(PromptServer.instance.send_progress_text, node_id=cls.hidden.unique_id)
        rendered = render(run, job, networks, tell)
        finished_runs[run_name] = PAUSED if rendered.paused else run.state()
        return io.NodeOutput(
            InputImpl.VideoFromFile(str(rendered.video)),
            storage.to_image(rendered.last_frame[None]),
            "\n".join([*rendered.report, *sound_note(driving_video, audio, sound)]),
            ui=ui.PreviewVideo([ui.SavedResult(rendered.video.name, f"longvie/{run_name}", io.FolderType.output)]),
        )

    @classmethod
    def fingerprint_inputs(cls, run_name=None, **_) -> str | float:
        # The host's cache may answer only while the files of the run that it remembers are untouched. A linked name is not
        # known here, and a paused run goes on each time that it is queued: then it never answers.
        if run_name is None or finished_runs.get(run_name) == PAUSED:
            return float("nan")
        if run_name not in finished_runs:
            return "not rendered by this process"
        return finished_runs[run_name] if storage.open_run(run_name).state() == finished_runs[run_name] else "changed on disk"

    @classmethod
    def validate_inputs(cls, run_name=None, clips=None) -> bool | str:
        try:
            if run_name is not None:
                check_run_name(run_name)
            if clips is not None:
                clip_range(clips, None)
        except ValueError as error:
            return str(error)
        return True


PAUSED = "paused"

finished_runs: dict[str, str] = {}
"""State of the runs that this process has finished, by run name: what the host's cache of this node stands for."""
