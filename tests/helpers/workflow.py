"""The tiny workflow, with random weights, in the tests' hands: filled in, changed, queued.

And what a run leaves on disk, read independently.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from devtools.host import Host, PromptRejected, RunResult
from devtools.tiny import load_random
from longvie_core.plan import ClipPlan
from longvie_core.world.clips import TrackGrid, write_scene_clips
from longvie_core.world.scene import make_scene
from tests.helpers.places import ROOT

WORKFLOW = ROOT / "workflows" / "api" / "longvie_tiny_from_control_clips.json"

WIDTH, HEIGHT, FRAMES, CLIPS = 64, 48, 9, 3
STEPS = 8
SCENE = "scene"
"""Folder with the control clips that the tests share; a test that changes them works on a copy (`copy_scene`)."""
REPORT = "report"
"""Node that shows the loop's report."""

REFUSALS = {"ValueError", "FileNotFoundError", "ManifestVersionError"}
"""What a bad input may raise; anything else comes from inside, with a text for programmers."""

Prompt = dict[str, dict[str, Any]]


def film_scene(folder: Path, clips: int = CLIPS, seed: int = 3) -> None:
    """Write control clips of a procedural scene in the authors' layout."""
    plan = ClipPlan(WIDTH, HEIGHT, FRAMES, Fraction(16), source_frames=stitched(clips))
    write_scene_clips(folder, make_scene(seed), plan, TrackGrid(8, 6), time_scale=3.0)


def stitched(clips: int, frames: int = FRAMES) -> int:
    """Frames of a video whose clips share one frame with their neighbours."""
    return 1 + (frames - 1) * clips


def copy_scene(host: Host, name: str) -> Path:
    """A copy of the shared control clips, for a test to change."""
    return Path(shutil.copytree(host.base / "input" / SCENE, host.base / "input" / name))


# ---- prompts


def tiny_workflow(run_name: str, *, previews: bool = False, **changes: dict[str, Any]) -> Prompt:
    """The tiny workflow at the tests' size with random weights, its loop's report shown.

    Args:
        run_name: of the loop.
        previews: keep the nodes that show the controls.
        changes: class type without the prefix "LongVie" -> inputs to set (a node's id and slot make a link; None unlinks).
    """
    prompt: Prompt = load_random(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    if not previews:
        shown = {"LongVieControlPreview", "PreviewImage"}
        prompt = {key: node for key, node in prompt.items() if node["class_type"] not in shown}
    set_inputs(prompt, "LongVieLoadClips", folder=SCENE, width=WIDTH, height=HEIGHT)
    set_inputs(prompt, "LongVieSigmas", steps=STEPS)
    set_inputs(prompt, "LongVieClipLoop", run_name=run_name)
    for node, inputs in changes.items():
        set_inputs(prompt, f"LongVie{node}", **inputs)
    prompt[REPORT] = {"class_type": "PreviewAny", "inputs": {"source": [node_id(prompt, "LongVieClipLoop"), 2]}}
    return prompt


def node_id(prompt: Prompt, class_type: str) -> str:
    """The id of the only node of a class."""
    (found,) = [key for key, node in prompt.items() if node["class_type"] == class_type]
    return found


def set_inputs(prompt: Prompt, class_type: str, **inputs: Any) -> None:
    """Set inputs of the only node of a class; None takes an input away."""
    given = prompt[node_id(prompt, class_type)]["inputs"]
    given.update(inputs)
    for name in [name for name, value in given.items() if value is None]:
        del given[name]


def add(prompt: Prompt, key: str, class_type: str, **inputs: Any) -> list:
    """Add a node; returns the link to its first output."""
    prompt[key] = {"class_type": class_type, "inputs": inputs}
    return [key, 0]


# ---- results


def run(host: Host, prompt: Prompt) -> RunResult:
    """Run a prompt that must succeed."""
    result = host.run(prompt, timeout=120)
    assert result.status == "success", result.error
    return result


def free_memory(host: Host) -> None:
    """Let the host forget its models and results, and wait until it has: it does so between two prompts."""
    host.post("/free", {"unload_models": True, "free_memory": True})
    run(host, {"between": {"class_type": "PreviewAny", "inputs": {"source": "nothing"}}})


def rejection(host: Host, prompt: Prompt) -> str:
    """The text with which the host refuses a prompt before it runs (HTTP 400)."""

    def stop(kind: str, data: Any) -> None:
        if kind == "execution_start":  # a prompt that should not run may be a heavy one
            host.interrupt(data["prompt_id"])

    try:
        result = host.run(prompt, stop, timeout=120)
    except PromptRejected as refusal:
        return str(refusal)
    raise AssertionError(f"the host accepted the prompt: {result.status}, {result.error}")


def preview(prompt: Prompt, control: list, plan: list, clip: int, frames: int = FRAMES, key: str = "preview") -> str:
    """Add a control preview and a node that saves it; returns the id of the latter."""
    link = add(prompt, f"{key} images", "LongVieControlPreview", control=control, plan=plan, clip=clip, frames=frames)
    return add(prompt, key, "SaveImage", images=link, filename_prefix="preview")[0]


def clips_on_disk(host: Host) -> set[Path]:
    """The clips of all runs."""
    return set((host.base / "output" / "longvie").glob("*/clip_*"))


def failure(host: Host, prompt: Prompt) -> tuple[str, str]:
    """Run a prompt that must fail before the loop samples anything; returns the failing node's type and the text."""
    before = clips_on_disk(host)
    result = host.run(prompt, stop_sampling(host), timeout=120)
    assert result.status == "error", result.status
    assert result.messages("progress") == []
    assert clips_on_disk(host) == before
    assert result.error.exception_type.rpartition(".")[2] in REFUSALS, result.error
    return result.error.node_type, result.error.exception_message


def stop_sampling(host: Host) -> Callable[[str, dict], None]:
    """An event handler that interrupts a prompt as soon as it samples: it should not have come so far."""

    def on_event(kind: str, data: dict) -> None:
        if kind == "progress":
            host.interrupt(data["prompt_id"])

    return on_event


def loop_progress(prompt: Prompt, result: RunResult) -> list[tuple[int, int]]:
    """(value, max) of the clip loop's progress messages."""
    loop = node_id(prompt, "LongVieClipLoop")
    return [(data["value"], data["max"]) for data in result.messages("progress") if data["node"] == loop]


def rendered_clips(prompt: Prompt, result: RunResult) -> int:
    """How many clips a finished loop has sampled, by its progress."""
    progress = loop_progress(prompt, result)
    if not progress:
        return 0
    steps = prompt[node_id(prompt, "LongVieSigmas")]["inputs"]["steps"]
    (total,) = {maximum for _, maximum in progress}
    assert progress[-1][0] == total and total % steps == 0, progress
    return total // steps


def report(result: RunResult) -> str:
    """The report of the loop."""
    return result.outputs[REPORT]["text"][0]


def shown(result: RunResult, key: str) -> Any:
    """What a TestShow node was given."""
    return json.loads(result.outputs[key]["text"][0])


def pictures(host: Host, result: RunResult, key: str) -> np.ndarray:
    """What a SaveImage or PreviewImage node was given, uint8 [B, H, W, 3]."""
    frames = []
    for saved in result.outputs[key]["images"]:
        with Image.open(host.base / saved["type"] / saved["subfolder"] / saved["filename"]) as picture:
            frames.append(np.asarray(picture.convert("RGB")))
    return np.stack(frames)


def latent(host: Host, result: RunResult, key: str) -> np.ndarray:
    """What a SaveLatent node was given."""
    (saved,) = result.outputs[key]["latents"]
    return load_file(host.base / saved["type"] / saved["subfolder"] / saved["filename"])["latent_tensor"]


def view(host: Host, saved: dict[str, str]) -> tuple[str, bytes]:
    """Content type and bytes that the host serves for an entry of a node's UI output."""
    query = urllib.parse.urlencode({key: saved[key] for key in ("filename", "subfolder", "type")})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{host.url}/view?{query}", timeout=60) as answer:
        return answer.headers.get_content_type(), answer.read()


# ---- a run on disk


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, read without the pack's own code."""

    path: Path

    @classmethod
    def of(cls, host: Host, run_name: str) -> RunFolder:
        return cls(host.base / "output" / "longvie" / run_name)

    def copy(self, run_name: str) -> RunFolder:
        """The same run under another name."""
        return RunFolder(Path(shutil.copytree(self.path, self.path.parent / run_name)))

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    @property
    def sequence(self) -> list[dict[str, Any]]:
        """The takes that the last queue asked for, clip by clip."""
        manifest = self.manifest
        takes = {(take["clip"], take["fingerprint"]): take for take in manifest["takes"]}
        return [takes[name] for name in enumerate(manifest["sequence"])]

    @property
    def videos(self) -> list[Path]:
        """All videos that were joined, the newest last."""
        return [self.path / video["file"]["name"] for video in self.manifest["videos"]]

    @property
    def video(self) -> Path:
        """The video that was joined last."""
        return self.videos[-1]

    def video_of(self, text: str) -> Path:
        """The video that a report names."""
        (name,) = re.findall(r" frames in (.+?\.mp4)", text)
        return self.path / name

    def clip_files(self, *clips: int) -> list[Path]:
        """Video and latents of clips of the sequence, counted from 1."""
        takes = self.sequence
        return [self.path / takes[clip - 1][kind]["name"] for clip in clips for kind in ("video", "latents")]

    def state(self, *clips: int) -> list[tuple[str, int, str]]:
        """Name, time and hash of the clips' files: equal only while nobody has written them anew."""
        files = self.clip_files(*clips)
        return [(file.name, file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]

    def tensors(self, clip: int) -> dict[str, np.ndarray]:
        """What a clip's safetensors file holds, clips counted from 1."""
        return load_file(self.clip_files(clip)[1])


def assert_same_clip(ours: RunFolder, theirs: RunFolder, clip: int) -> None:
    """Two runs have a clip in common, bit by bit."""
    mine, other = ours.tensors(clip), theirs.tensors(clip)
    assert mine.keys() == other.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], other[name], err_msg=f"clip {clip}: {name}")


def decode(path: Path) -> np.ndarray:
    """All frames of a video, uint8 [T, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def stream_info(path: Path) -> tuple[int, int, Fraction]:
    """Width, height and frame rate of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, Fraction(stream.average_rate)
