"""A run of twelve clips remembers every clip that it has rendered: what is changed and changed back is found again.

Nothing is ever overwritten: all takes and videos of before are there after each change, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from devtools.host import Host
from devtools.tiny import LOADERS, RANDOM_VAE
from tests.helpers.workflow import (
    Prompt,
    RunFolder,
    copy_scene,
    decode,
    film_scene,
    free_memory,
    loop_progress,
    node_id,
    rendered_clips,
    report,
    run,
    set_inputs,
    stitched,
    tiny_workflow,
)

CLIPS, SIZE, STEPS = 12, 32, 2
SCENE = "twelve"
EVERY_CLIP = range(1, CLIPS + 1)
KEPT = f"kept {CLIPS} of {CLIPS} clips"

FOX = {"PromptSchedule": {"prompts": '[{"prompt": "a fox", "seed_offset": 1}, ""]'}}
"""With noise of its own: no text encoder is connected, so that the text alone would change no picture."""
SEED = {"UnifiedNoise": {"seed": 1}}
WEAK = {"MultimodalSampler": {"dense_strength": 0.5}}


def workflow(run_name: str, **changes: dict) -> Prompt:
    size = {"folder": SCENE, "width": SIZE, "height": SIZE}
    load = {**size, **changes.pop("LoadClips", {})}
    return tiny_workflow(run_name, LoadClips=load, Sigmas={"steps": STEPS}, **changes)


@pytest.fixture(scope="module")
def first(tiny_host: Host) -> RunFolder:
    """A finished run of twelve clips."""
    film_scene(tiny_host.base / "input" / SCENE, clips=CLIPS, seed=5)
    prompt = workflow("twelve clips")
    result = run(tiny_host, prompt)
    assert rendered_clips(prompt, result) == CLIPS
    return RunFolder.of(tiny_host, "twelve clips")


@pytest.fixture
def folder(first: RunFolder, request: pytest.FixtureRequest) -> RunFolder:
    """A copy of it, named after the test."""
    return first.copy(request.node.name)


def queue(host: Host, folder: RunFolder, **changes: dict) -> tuple[int, str]:
    """Queue a run; how many clips were rendered, and the report."""
    prompt = workflow(folder.path.name, **changes)
    result = run(host, prompt)
    return rendered_clips(prompt, result), report(result)


def kept_all(host: Host, folder: RunFolder, **changes: dict) -> Path:
    """Queue a run that must have every clip; returns the video that it shows, which must be of all of them."""
    rendered, text = queue(host, folder, **changes)
    assert (rendered, KEPT in text) == (0, True), text
    video = folder.video_of(text)
    assert len(decode(video)) == stitched(CLIPS)
    return video


@contextmanager
def nothing_is_lost(folder: RunFolder) -> Iterator[None]:
    """All clips and videos that are there before a ``with`` block are there after it, byte for byte."""

    def files() -> dict[str, str]:
        paths = [*folder.path.glob("*.mp4"), *folder.path.glob("clip_*.safetensors")]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    before = files()
    assert len(before) >= 2 * CLIPS + 1
    yield
    after = files()
    assert {name: after.get(name) for name in before} == before


# ---- change and undo


@pytest.mark.parametrize("changes", [FOX, SEED, WEAK], ids=["prompt", "seed", "strength"])
def test_a_change_and_its_undoing(tiny_host: Host, folder: RunFolder, changes: dict) -> None:
    takes = folder.sequence
    before = kept_all(tiny_host, folder)
    with nothing_is_lost(folder):
        rendered, text = queue(tiny_host, folder, **changes)
        assert rendered == CLIPS
        changed = folder.video_of(text)
        assert changed != before and (decode(changed) != decode(before)).any()
    assert f"{2 * CLIPS} takes of {CLIPS} clips occupy " not in text, "the first ones are those of a video"
    with nothing_is_lost(folder):
        assert kept_all(tiny_host, folder) == before
        assert folder.sequence == takes
        assert kept_all(tiny_host, folder, **changes) == changed
        assert kept_all(tiny_host, folder) == before


def test_changed_controls_and_their_undoing(tiny_host: Host, folder: RunFolder) -> None:
    name = folder.path.name
    controls = Path(shutil.copytree(tiny_host.base / "input" / SCENE, tiny_host.base / "input" / name))
    load = {"LoadClips": {"folder": name}}
    before = kept_all(tiny_host, folder, **load)
    depth = controls / "depth_06.mp4"
    content = depth.read_bytes()
    with nothing_is_lost(folder):
        shutil.copyfile(controls / "depth_00.mp4", depth)
        rendered, text = queue(tiny_host, folder, **load)
        assert rendered == CLIPS - 6 and "clips 7 .. 12 are rendered again: dense control changed" in text
        assert folder.video_of(text) != before
        depth.write_bytes(content)
        assert kept_all(tiny_host, folder, **load) == before


def test_a_model_file_of_another_name(tiny_host: Host, folder: RunFolder) -> None:
    """The weights are the same ones, so the clips are."""
    models = tiny_host.base / "models"
    prompt = workflow(folder.path.name)
    for loader, (field, file) in LOADERS.items():
        path = models / file
        copy = path.with_name(f"another name of {path.name}")
        shutil.copyfile(path, copy)
        set_inputs(prompt, loader, **{field: copy.name})
    with nothing_is_lost(folder):
        result = run(tiny_host, prompt)
        assert (rendered_clips(prompt, result), KEPT in report(result)) == (0, True), report(result)
        kept_all(tiny_host, folder)


def test_a_model_file_of_another_time(tiny_host: Host, folder: RunFolder) -> None:
    vae = tiny_host.base / "models" / RANDOM_VAE
    then = vae.stat().st_mtime_ns
    with nothing_is_lost(folder):
        kept_all(tiny_host, folder)
        try:
            os.utime(vae, ns=(then, then + 10**9))
            free_memory(tiny_host)
            kept_all(tiny_host, folder)
        finally:
            os.utime(vae, ns=(then, then))
            free_memory(tiny_host)
        kept_all(tiny_host, folder)


# ---- half a change


def interrupt_in_clip(host: Host, prompt: Prompt, clip: int) -> Callable[[str, dict], None]:
    """An event handler that interrupts once, as soon as the loop reports a step of a clip, counted from 1."""
    loop, acted = node_id(prompt, "LongVieClipLoop"), []

    def on_event(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == loop and data["value"] > STEPS * (clip - 1) and not acted:
            acted.append(True)
            host.interrupt(data["prompt_id"])

    return on_event


def test_an_interrupt_in_the_middle_of_a_change_and_its_undoing(tiny_host: Host, folder: RunFolder) -> None:
    before = kept_all(tiny_host, folder)
    prompt = workflow(folder.path.name, **SEED)
    with nothing_is_lost(folder):
        result = tiny_host.run(prompt, interrupt_in_clip(tiny_host, prompt, 5), timeout=120)
        assert (result.status, result.error) == ("interrupted", None)
        assert loop_progress(prompt, result)[-1][0] < CLIPS * STEPS
        done = len(folder.manifest["takes"]) - CLIPS
        assert 4 <= done < CLIPS
        assert kept_all(tiny_host, folder) == before
        rendered, text = queue(tiny_host, folder, **SEED)
        assert rendered == CLIPS - done and f"kept {done} of {CLIPS} clips" in text
        assert folder.video_of(text) != before
        assert kept_all(tiny_host, folder) == before


def test_another_prompt_for_clip_1_alone_and_its_undoing(tiny_host: Host, folder: RunFolder) -> None:
    before = kept_all(tiny_host, folder)
    with nothing_is_lost(folder):
        rendered, text = queue(tiny_host, folder, ClipLoop={"clips": "1"}, **FOX)
        assert rendered == 1
        assert len(decode(folder.video_of(text))) == stitched(1)
        assert kept_all(tiny_host, folder) == before
        # The change goes on from its own first clip.
        assert queue(tiny_host, folder, **FOX)[0] == CLIPS - 1
        assert kept_all(tiny_host, folder) == before


# ---- two workflows, one name


def test_two_workflows_of_one_run_name_in_turn(tiny_host: Host, folder: RunFolder) -> None:
    """The second one's controls, prompt and seed are others, and it has fewer clips."""
    name = f"other {SCENE}"
    copy_scene(tiny_host, name)
    other = {"LoadClips": {"folder": name}, **SEED, **FOX}
    ours = kept_all(tiny_host, folder)
    with nothing_is_lost(folder):
        rendered, text = queue(tiny_host, folder, **other)
        assert (rendered, "kept 0 of 3 clips" in text) == (3, True)
        theirs = folder.video_of(text)
        assert theirs != ours
    for _ in range(2):
        with nothing_is_lost(folder):
            assert kept_all(tiny_host, folder) == ours
            rendered, text = queue(tiny_host, folder, **other)
            assert (rendered, "kept 3 of 3 clips" in text, folder.video_of(text)) == (0, True, theirs)


def test_the_video_of_the_first_workflow_comes_back_if_it_is_deleted_while_the_host_remembers_it(
    tiny_host: Host, folder: RunFolder
) -> None:
    ours = kept_all(tiny_host, folder)
    queue(tiny_host, folder, ClipLoop={"clips": "-3"})
    assert kept_all(tiny_host, folder) == ours
    content = decode(ours)
    ours.unlink()
    np.testing.assert_array_equal(decode(kept_all(tiny_host, folder)), content)


# ---- damage


def test_one_lost_video_is_decoded_again_and_nothing_rendered(tiny_host: Host, folder: RunFolder) -> None:
    before = kept_all(tiny_host, folder)
    video = folder.clip_files(5)[0]
    content, others = video.read_bytes(), folder.state(*(clip for clip in EVERY_CLIP if clip != 5))
    latents = folder.state(5)[1]
    video.unlink()
    rendered, text = queue(tiny_host, folder)
    assert (rendered, KEPT in text) == (0, True)
    assert f"clip 5: its video is made again from its latents, since {video.name} is missing" in text
    assert video.read_bytes() == content and folder.state(5)[1] == latents
    assert folder.state(*(clip for clip in EVERY_CLIP if clip != 5)) == others
    assert folder.video_of(text) == before, "its clips are what they were"


def test_lost_latents_cost_their_clip_and_what_follows_stands(tiny_host: Host, folder: RunFolder) -> None:
    before = kept_all(tiny_host, folder)
    files, others = folder.clip_files(5), folder.state(*(clip for clip in EVERY_CLIP if clip != 5))
    content = [path.read_bytes() for path in files]
    files[1].unlink()
    rendered, text = queue(tiny_host, folder)
    assert (rendered, f"kept {CLIPS - 1} of {CLIPS} clips" in text) == (1, True)
    assert f"clip 5 is rendered again: {files[1].name} is missing" in text
    assert [path.read_bytes() for path in files] == content and not list(folder.path.glob("*.damaged-*"))
    assert folder.state(*(clip for clip in EVERY_CLIP if clip != 5)) == others
    assert folder.video_of(text) == before
    assert kept_all(tiny_host, folder) == before


def test_a_lost_clip_that_comes_out_otherwise_says_so_and_goes_on(tiny_host: Host, folder: RunFolder) -> None:
    """As if clip 5 had been rendered by another machine: clip 6 starts on a tail that nobody can make again here."""
    manifest = folder.manifest
    by_clip = {take["clip"] + 1: take for take in manifest["takes"]}
    by_clip[5]["tail"] = by_clip[6]["start"] = "0" * 64
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    signed = json.dumps({**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    for name in ("run.json", "run.copy.json"):
        (folder.path / name).write_text(signed, "utf-8")
    before = kept_all(tiny_host, folder)
    earlier = folder.state(1, 2, 3, 4)
    latents = folder.clip_files(5)[1]
    latents.unlink()
    prompt = workflow(folder.path.name)
    result = run(tiny_host, prompt)
    # Nobody could know before that there would be more than one: the progress grew.
    assert loop_progress(prompt, result)[-1] == (8 * STEPS, 8 * STEPS)
    text = report(result)
    assert text.count(" rendered in ") == CLIPS - 4 and f"clip 5 is rendered again: {latents.name} is missing" in text
    assert "clip 6 is rendered again: the clip before it is not bit by bit what it was" in text
    assert folder.state(1, 2, 3, 4) == earlier and before.exists()
    assert kept_all(tiny_host, folder)
