"""The whole video, clip by clip, on disk."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial

from comfy_api.latest import InputImpl, io, ui
from server import PromptServer

from ..longvie_core.control.check import check_controls
from ..longvie_core.disk.space import check_space
from ..longvie_core.model.clip import ClipStrengths
from ..longvie_core.run.keys import ClipKey, clip_parts
from ..longvie_core.run.loop import Carry
from ..longvie_core.run.names import clip_range
from . import storage, types
from .assemble import host_metadata, sound_inputs, sound_note
from .clip_runner import ClipRunner


class LongVieClipLoop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongVieClipLoop",
            display_name="LongVie Clip Loop",
            category="LongVie",
            description="Generates the whole video clip by clip. Each clip is on disk as soon as it is decoded; queueing the "
            "same run again goes on where it stopped, and renders again only what has changed.",
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
                    tooltip="Folder under output/longvie that keeps this run. The same name resumes it, a new one starts anew.",
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
        wanted = clip_range(clips, plan.clips)
        run = storage.open_run(run_name)
        sound = storage.audio_file(driving_video, audio)
        first = storage.to_frame(first_frame, plan)
        keys = [
            clip_key(cls.hidden.dynprompt, cls.hidden.unique_id, plan, clip, sampler, prompts, noise, dense, sparse, first)
            for clip in range(wanted.stop)
        ]
        with run.locked():
            resume = run.resume(keys, fixed=wanted.start)
            pending = range(resume.kept, min(wanted.stop, resume.kept + (pause_after or wanted.stop)))
            report = [*run.notes, *resume.reasons, f"kept {resume.kept} of {wanted.stop} clips"]
            if pending:
                say = partial(PromptServer.instance.send_progress_text, node_id=cls.hidden.unique_id)
                say("\n".join(report))  # before the long work: what is kept, and why it goes on where it does
                report += render(run, plan, keys, pending, sampler, prompts, noise, dense, sparse, first, say)
            done = max(pending.stop, resume.kept)
            video = run.assemble(done, host_metadata(cls.hidden), sound)
            last = storage.to_image(run.last_frame(done - 1, plan)[None])
            report += [f"{run.frames(done)} frames in {video.name}", *sound_note(driving_video, audio, sound)]
            if done < wanted.stop:
                report.append(f"paused after clip {done} of {wanted.stop}: queue again to go on")
            finished_runs[run_name] = run.state() if done == wanted.stop else PAUSED
        return io.NodeOutput(
            InputImpl.VideoFromFile(str(video)),
            last,
            "\n".join(report),
            ui=ui.PreviewVideo([ui.SavedResult(video.name, f"longvie/{run_name}", io.FolderType.output)]),
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
                storage.check_run_name(run_name)
            if clips is not None:
                clip_range(clips, None)
        except ValueError as error:
            return str(error)
        return True


def render(run, plan, keys, pending, sampler, prompts, noise, dense, sparse, first, say) -> list[str]:
    """Render the clips ``pending`` of a locked run, each on disk before the next begins.

    Returns:
        Lines of the report; ``say`` shows them on the node as they come.
    """
    begun = time.monotonic()
    texts = {text for clip in pending for text in prompts.texts(clip)} if prompts.clip else set()
    check_space(run.folder, run.estimate(plan, pending, len(texts)))
    carry = run.carry(pending.start, plan, sampler.sampler.anchor) if pending.start else Carry(first[None], first=True)
    runner = ClipRunner(sampler, prompts, noise, pending, run.folder / "prompts")
    report = []
    # Closed whatever happens: its thread must not go on reading frames for a run that has failed.
    with closing(runner.generate(plan, carry, dense, sparse)) as results:
        started = time.monotonic()
        for result in results:
            seconds = time.monotonic() - started
            run.save_clip(result.clip, plan, keys[result.clip], result.latents, result.frames, seconds)
            report.append(f"clip {result.clip + 1} of {plan.clips} rendered in {seconds:.1f} s")
            say(report[-1])
            started = time.monotonic()
    return [*report, *runner.report(time.monotonic() - begun)]


PAUSED = "paused"

finished_runs: dict[str, str] = {}
"""State of the runs that this process has finished, by run name: what the host's cache of this node stands for."""


def clip_key(dynprompt, node_id, plan, clip, sampler, prompts, noise, dense, sparse, first_frame) -> ClipKey:
    """What a clip depends on; each part is named in the report when it changes."""
    parts = {
        "sampler": sampler.fingerprint,
        "text encoder": prompts.encoder,
        "noise": storage.graph_fingerprint(dynprompt, node_id, "noise"),
        **own_strengths(prompts.strengths(clip)),
    }
    common = clip_parts(plan, clip, prompts.texts(clip), prompts.seed_offset(clip), dense, sparse, first_frame)
    return ClipKey({**common, **parts})


def own_strengths(strengths: ClipStrengths) -> dict[str, str]:
    """Parts of a clip's key for the strengths that it has of its own; the sampler's are in the sampler's part."""
    return {f"{modality} strength": str(value) for modality, value in vars(strengths).items() if value is not None}
