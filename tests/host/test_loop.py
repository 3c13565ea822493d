"""The clip loop on the real host: the video it makes, and that nothing finished is lost or rendered twice."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from devtools.host import Host, HostError, RunResult
from devtools.tiny import RANDOM_VAE
from longvie_core.media.write import VideoWriter
from tests.helpers.workflow import (
    CLIPS,
    FRAMES,
    HEIGHT,
    REPORT,
    STEPS,
    WIDTH,
    Prompt,
    RunFolder,
    add,
    assert_same_clip,
    copy_scene,
    decode,
    free_memory,
    loop_progress,
    node_id,
    pictures,
    rendered_clips,
    report,
    run,
    set_inputs,
    shown,
    stitched,
    stream_info,
    tiny_workflow,
    view,
)

EVERY_CLIP = range(1, CLIPS + 1)
# A name that is awkward in paths and addresses.
REFERENCE = "reference ü & 長い"


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run of the tiny workflow as it is shipped, and what the host said about it."""

    host: Host
    prompt: Prompt
    result: RunResult
    folder: RunFolder


@pytest.fixture(scope="module")
def reference(tiny_host: Host) -> Reference:
    prompt = tiny_workflow(REFERENCE, previews=True)
    loop = node_id(prompt, "LongVieClipLoop")
    components = add(prompt, "components", "GetVideoComponents", video=[loop, 0])
    add(prompt, "fps", "TestShow", value=[components[0], 2])
    add(prompt, "frames", "TestShow", value=components)
    add(prompt, "last", "SaveImage", images=[loop, 1], filename_prefix="last")
    return Reference(tiny_host, prompt, run(tiny_host, prompt), RunFolder.of(tiny_host, REFERENCE))


@pytest.fixture
def finished(reference: Reference, request: pytest.FixtureRequest) -> RunFolder:
    """A finished run of the test's own, named after the test."""
    return reference.folder.copy(request.node.name)


def queue_again(host: Host, folder: RunFolder, **changes: dict) -> tuple[int, str]:
    """Queue a run that exists, with changes; returns how many clips were rendered, and the report."""
    prompt = tiny_workflow(folder.path.name, **changes)
    result = run(host, prompt)
    return rendered_clips(prompt, result), report(result)


# ---- a whole run


def test_the_video_has_every_frame_once(reference: Reference) -> None:
    video = decode(reference.folder.video)
    assert len(video) == stitched(CLIPS) == 25
    assert stream_info(reference.folder.video) == (WIDTH, HEIGHT, Fraction(16))
    clips = [decode(reference.folder.clip_files(clip)[0]) for clip in EVERY_CLIP]
    assert [len(clip) for clip in clips] == [FRAMES, FRAMES - 1, FRAMES - 1]
    np.testing.assert_array_equal(video, np.concatenate(clips))


def test_a_clip_file_shows_what_was_decoded_less_the_frame_of_the_clip_before(reference: Reference) -> None:
    # The tail is lossless and, with clips this short, the whole clip. Frame by frame the mp4 must be the nearest to it.
    for clip in EVERY_CLIP:
        tail = reference.folder.tensors(clip)["tail"].astype(float)
        assert tail.shape == (FRAMES, HEIGHT, WIDTH, 3)
        coded = decode(reference.folder.clip_files(clip)[0]).astype(float)
        distance = np.abs(coded[:, None] - tail[None]).mean(axis=(2, 3, 4))
        assert distance.argmin(axis=1).tolist() == list(range(FRAMES - len(coded), FRAMES))


def test_the_run_folder_holds_video_latents_and_manifest_and_nothing_half_written(reference: Reference) -> None:
    prints = [take["fingerprint"][:12] for take in reference.folder.sequence]
    clips = {f"clip_{clip:04d}_{prints[clip - 1]}.{ending}" for clip in EVERY_CLIP for ending in ("mp4", "safetensors")}
    names = {path.name for path in reference.folder.path.iterdir()}
    assert {f"{REFERENCE}_00001_.mp4", "run.json", *clips} <= names
    assert not [name for name in names if name.endswith(".part")]
    for clip in EVERY_CLIP:
        tensors = reference.folder.tensors(clip)
        assert tensors.keys() == {"latent", "tail"} | ({"colours"} if clip == 1 else set())
        assert (tensors["latent"].shape, tensors["latent"].dtype) == ((1, 16, 3, HEIGHT // 8, WIDTH // 8), np.float32)
        assert np.isfinite(tensors["latent"]).all() and tensors["latent"].std() > 0
    assert [take["frames"] for take in reference.folder.manifest["takes"]] == [FRAMES, FRAMES - 1, FRAMES - 1]


def test_progress_runs_over_all_clips_with_previews_of_the_running_one(reference: Reference) -> None:
    values = loop_progress(reference.prompt, reference.result)
    assert {maximum for _, maximum in values} == {CLIPS * STEPS}
    assert [value for value, _ in values] == sorted(value for value, _ in values)
    assert (values[0][0] <= STEPS, values[-1][0]) == (True, CLIPS * STEPS)
    previews = reference.result.messages("preview")
    assert len(previews) >= CLIPS
    for preview in previews:
        with Image.open(io.BytesIO(preview)) as picture:
            picture.load()
            assert picture.format == "JPEG" and picture.width > picture.height


def test_the_loop_shows_its_video_and_the_host_serves_it(reference: Reference) -> None:
    output = reference.result.outputs[node_id(reference.prompt, "LongVieClipLoop")]
    (saved,) = output["images"]
    assert saved == {"filename": f"{REFERENCE}_00001_.mp4", "subfolder": f"longvie/{REFERENCE}", "type": "output"}
    assert output["animated"] == [True]  # what makes the page show a player in place of a picture
    assert view(reference.host, saved) == ("video/mp4", reference.folder.video.read_bytes())


def test_the_video_carries_the_prompt_that_made_it(reference: Reference) -> None:
    with av.open(str(reference.folder.video)) as container:
        stored = json.loads(container.metadata["prompt"])
    assert stored == reference.prompt


def test_the_loop_gives_video_last_frame_and_report(reference: Reference) -> None:
    assert shown(reference.result, "frames") == {"shape": [stitched(CLIPS), HEIGHT, WIDTH, 3]}
    assert shown(reference.result, "fps") == 16
    last = pictures(reference.host, reference.result, "last")
    np.testing.assert_array_equal(last[0], reference.folder.tensors(CLIPS)["tail"][-1])
    text = report(reference.result)
    assert "kept 0 of 3 clips" in text and f"25 frames in {REFERENCE}_00001_.mp4" in text
    assert [line.partition(" rendered in ")[0] for line in text.splitlines() if " rendered in " in line] == [
        "clip 1 of 3",
        "clip 2 of 3",
        "clip 3 of 3",
    ]


def test_the_clips_differ_and_follow_their_controls(reference: Reference) -> None:
    # Noise, prompt and text are those of the reference run: only the order of the controls is another one.
    folder = copy_scene(reference.host, "turned_round")
    for kind in ("depth", "track"):
        shutil.copyfile(folder / f"{kind}_02.mp4", folder / f"{kind}_00.mp4")
    prompt = tiny_workflow("turned_round", LoadClips={"folder": "turned_round"}, ClipLoop={"clips": "1"})
    run(reference.host, prompt)
    ours = RunFolder.of(reference.host, "turned_round").tensors(1)["latent"]
    theirs = [reference.folder.tensors(clip)["latent"] for clip in EVERY_CLIP]
    for one, other in itertools.combinations([ours, *theirs], 2):
        assert np.abs(one - other).max() > 1e-3


# ---- a run that stops, and goes on


def first_step_of_clip_2(prompt: Prompt, act: Callable[[dict], None]) -> Callable[[str, dict], None]:
    """An event handler that acts once, as soon as the loop reports a step of its second clip."""
    loop, acted = node_id(prompt, "LongVieClipLoop"), []

    def on_event(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == loop and data["value"] > STEPS and not acted:
            acted.append(True)
            act(data)

    return on_event


def assert_only_clip_1_is_there(folder: RunFolder) -> None:
    assert sorted(folder.path.glob("clip_*")) == sorted(folder.clip_files(1))
    assert len(folder.manifest["takes"]) == len(folder.manifest["sequence"]) == 1
    assert not folder.videos and set(folder.path.glob("*.mp4")) <= set(folder.clip_files(1))


def assert_resumes_to(reference: Reference, host: Host, prompt: Prompt) -> None:
    """Queue a run with one finished clip again: clip 1 stays, 2 and 3 are rendered, and nobody can tell the difference."""
    folder = RunFolder.of(host, prompt[node_id(prompt, "LongVieClipLoop")]["inputs"]["run_name"])
    before = folder.state(1)
    result = run(host, prompt)
    assert rendered_clips(prompt, result) == 2
    assert "kept 1 of 3 clips" in report(result)
    assert folder.state(1) == before
    for clip in EVERY_CLIP:
        assert_same_clip(folder, reference.folder, clip)
    np.testing.assert_array_equal(decode(folder.video), decode(reference.folder.video))


def test_an_interrupted_run_goes_on_after_its_last_finished_clip(reference: Reference) -> None:
    host = reference.host
    prompt = tiny_workflow("interrupted")
    stop = first_step_of_clip_2(prompt, lambda data: host.interrupt(data["prompt_id"]))
    result = host.run(prompt, stop, timeout=120)
    assert (result.status, result.error) == ("interrupted", None)
    assert loop_progress(prompt, result)[-1][0] < 2 * STEPS
    folder = RunFolder.of(host, "interrupted")
    assert_only_clip_1_is_there(folder)
    assert not list(folder.path.glob("*.part"))
    assert_resumes_to(reference, host, prompt)


@pytest.mark.slow
def test_a_run_whose_host_was_killed_goes_on_in_the_next_host(
    reference: Reference, make_host: Callable[..., Host], stock: Callable[[Host], Host]
) -> None:
    host = stock(make_host())
    prompt = tiny_workflow("killed")
    with pytest.raises(HostError):
        host.run(prompt, first_step_of_clip_2(prompt, lambda data: host.kill()), timeout=120)
    assert_only_clip_1_is_there(RunFolder.of(host, "killed"))
    host.start()
    assert_resumes_to(reference, host, prompt)


# ---- a finished run, queued again


def test_an_unchanged_run_renders_nothing(reference: Reference, finished: RunFolder) -> None:
    before = finished.state(*EVERY_CLIP)
    for _ in range(2):
        rendered, text = queue_again(reference.host, finished)
        assert (rendered, "kept 3 of 3 clips" in text) == (0, True)
    assert finished.state(*EVERY_CLIP) == before


def test_an_unchanged_run_is_answered_from_the_hosts_cache(reference: Reference, finished: RunFolder) -> None:
    # The first time it is new to this process, the second time known; from then on nothing at all needs to run.
    prompt = tiny_workflow(finished.path.name)
    for _ in range(2):
        run(reference.host, prompt)
    before = {path: path.stat().st_mtime_ns for path in finished.path.glob("*.mp4")}
    result = run(reference.host, prompt)
    assert node_id(prompt, "LongVieClipLoop") in result.messages("execution_cached")[0]["nodes"]
    assert {path: path.stat().st_mtime_ns for path in finished.path.glob("*.mp4")} == before


@pytest.mark.parametrize("linked_name", [False, True])
def test_a_deleted_video_comes_back_without_rendering(reference: Reference, linked_name: bool) -> None:
    finished = reference.folder.copy(f"deleted {linked_name}")
    prompt = tiny_workflow(finished.path.name)
    if linked_name:
        name = add(prompt, "name", "PrimitiveString", value=finished.path.name)
        set_inputs(prompt, "LongVieClipLoop", run_name=name)
    for _ in range(2):  # so that the host's cache knows the prompt
        run(reference.host, prompt)
    clips = finished.state(*EVERY_CLIP)
    finished.video.unlink()
    result = run(reference.host, prompt)
    assert rendered_clips(prompt, result) == 0
    assert finished.state(*EVERY_CLIP) == clips
    np.testing.assert_array_equal(decode(finished.video), decode(reference.folder.video))


def test_a_deleted_run_is_rendered_again_although_the_host_has_it_in_its_cache(reference: Reference) -> None:
    folder = RunFolder.of(reference.host, "deleted run")
    changes = {"ClipLoop": {"clips": "1"}}
    assert queue_again(reference.host, folder, **changes)[0] == 1
    assert queue_again(reference.host, folder, **changes)[0] == 0
    shutil.rmtree(folder.path)
    assert queue_again(reference.host, folder, **changes)[0] == 1
    assert_same_clip(folder, reference.folder, 1)


def test_another_seed_renders_everything(reference: Reference, finished: RunFolder) -> None:
    rendered, text = queue_again(reference.host, finished, UnifiedNoise={"seed": 1})
    assert rendered == CLIPS and "noise changed" in text
    for clip in EVERY_CLIP:
        assert np.abs(finished.tensors(clip)["latent"] - reference.folder.tensors(clip)["latent"]).max() > 0.01


def test_other_steps_render_everything(reference: Reference, finished: RunFolder) -> None:
    rendered, text = queue_again(reference.host, finished, Sigmas={"steps": 2})
    assert rendered == CLIPS and "sampler changed" in text


def test_a_changed_prompt_renders_its_clip_only(reference: Reference, finished: RunFolder) -> None:
    assert queue_again(reference.host, finished, PromptSchedule={"prompts": '["", "", ""]'})[0] == 0
    before = finished.state(1, 2)
    rendered, text = queue_again(reference.host, finished, PromptSchedule={"prompts": '["", "", {"prompt": "a fox"}]'})
    assert rendered == 1
    assert "clips 3 .. 3 are rendered again: prompt changed" in text and "kept 2 of 3 clips" in text
    assert finished.state(1, 2) == before


@pytest.mark.parametrize(("changed", "kept"), [("track_02.mp4", 2), ("depth_01.mp4", 1)])
def test_a_changed_control_file_renders_from_its_clip_on(reference: Reference, changed: str, kept: int) -> None:
    name = f"changed {changed}"
    finished, folder = reference.folder.copy(name), copy_scene(reference.host, name)
    assert queue_again(reference.host, finished, LoadClips={"folder": name})[0] == 0
    before = finished.state(*range(1, kept + 1))
    shutil.copyfile(folder / f"{changed[:5]}_00.mp4", folder / changed)
    rendered, text = queue_again(reference.host, finished, LoadClips={"folder": name})
    assert rendered == CLIPS - kept
    assert f"{'dense' if changed.startswith('depth') else 'sparse'} control changed" in text
    assert finished.state(*range(1, kept + 1)) == before
    assert_same_clip(finished, reference.folder, kept)


def test_a_touched_model_file_is_the_same_model(reference: Reference, finished: RunFolder) -> None:
    vae = reference.host.base / "models" / RANDOM_VAE
    then = vae.stat().st_mtime_ns
    try:
        os.utime(vae, ns=(then, then + 10**9))
        free_memory(reference.host)
        rendered, text = queue_again(reference.host, finished)
    finally:
        os.utime(vae, ns=(then, then))
        free_memory(reference.host)
    assert rendered == 0 and "kept 3 of 3 clips" in text


def test_a_replaced_model_file_renders_everything(reference: Reference, finished: RunFolder) -> None:
    vae = reference.host.base / "models" / RANDOM_VAE
    kept = vae.with_name("kept.part")
    changed = bytearray(vae.read_bytes())
    changed[-2] ^= 1  # the last bit of a weight; size and name stay
    assert queue_again(reference.host, finished)[0] == 0  # and the host has loaded the weights
    try:
        vae.rename(kept)
        vae.write_bytes(changed)
        # While the host keeps the weights that it has loaded, they are what a clip would be rendered with.
        assert queue_again(reference.host, finished)[0] == 0
        free_memory(reference.host)
        rendered, text = queue_again(reference.host, finished, ClipLoop={"clips": "1"})
    finally:
        kept.replace(vae)
        free_memory(reference.host)
    assert rendered == 1 and "sampler changed" in text


def test_new_node_numbers_change_nothing(reference: Reference, finished: RunFolder) -> None:
    # The page numbers nodes anew when a workflow is pasted or rebuilt.
    def renumbered(**changes: dict) -> Prompt:
        prompt = tiny_workflow(finished.path.name, **changes)
        text = json.dumps(prompt)
        for key in prompt:
            text = text.replace(f'"{key}": {{"', f'"new {key}": {{"').replace(f'["{key}", ', f'["new {key}", ')
        prompt = json.loads(text)
        assert all(key.startswith("new ") for key in prompt)
        prompt[REPORT] = prompt.pop(f"new {REPORT}")
        return prompt

    assert queue_again(reference.host, finished)[0] == 0
    prompt = renumbered()
    result = run(reference.host, prompt)
    assert (rendered_clips(prompt, result), "kept 3 of 3 clips" in report(result)) == (0, True)
    # Where the host still has the nodes' results under their old numbers, rendering works all the same.
    prompt = renumbered(UnifiedNoise={"seed": 1}, ClipLoop={"clips": "1"})
    assert rendered_clips(prompt, run(reference.host, prompt)) == 1


def test_another_first_frame_renders_everything(reference: Reference) -> None:
    finished, folder = reference.folder.copy("first frame"), copy_scene(reference.host, "first frame")
    with Image.open(folder / "first.png") as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "first.png")
    rendered, text = queue_again(reference.host, finished, LoadClips={"folder": "first frame"})
    assert rendered == CLIPS and "first frame changed" in text


def test_more_control_clips_make_the_video_longer(reference: Reference) -> None:
    folder = RunFolder.of(reference.host, "longer")
    assert queue_again(reference.host, folder, LoadClips={"max_clips": 1})[0] == 1
    assert len(decode(folder.video)) == FRAMES
    assert queue_again(reference.host, folder, LoadClips={"max_clips": 2})[0] == 1
    np.testing.assert_array_equal(decode(folder.video), decode(reference.folder.video)[: stitched(2)])


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("clip", "ending", "damage", "words"),
    [
        (2, "safetensors", cut_off, "changed or cut off"),
        (3, "mp4", cut_off, "changed or cut off"),
        (2, "mp4", Path.unlink, "is missing"),
        (3, "safetensors", Path.unlink, "is missing"),
    ],
)
def test_damage_to_a_clip_costs_what_was_damaged(
    reference: Reference, clip: int, ending: str, damage: Callable[[Path], object], words: str
) -> None:
    finished = reference.folder.copy(f"{damage.__name__} {clip} {ending}")
    run(reference.host, tiny_workflow(finished.path.name))  # so that the host's cache knows it
    (file,) = [path for path in finished.clip_files(clip) if path.suffix == f".{ending}"]
    content, others = file.read_bytes(), [other for other in EVERY_CLIP if other != clip]
    before = finished.state(*others)
    damage(file)
    rendered, text = queue_again(reference.host, finished)
    assert rendered == (1 if ending == "safetensors" else 0)
    (line,) = [line for line in text.splitlines() if file.name in line]
    said = "is rendered again" if ending == "safetensors" else "its video is made again from its latents"
    assert f"clip {clip}" in line and said in line and words in line
    assert file.read_bytes() == content and finished.state(*others) == before
    for again in EVERY_CLIP:
        assert_same_clip(finished, reference.folder, again)


def test_a_damaged_manifest_is_set_aside_and_said_so(reference: Reference, finished: RunFolder) -> None:
    before = finished.state(*EVERY_CLIP)
    (finished.path / "run.json").write_text("{", encoding="utf-8")
    rendered, text = queue_again(reference.host, finished)
    assert (rendered, finished.state(*EVERY_CLIP)) == (0, before)
    assert "run.json is damaged" in text and "set aside" in text and "restored from its copy" in text
    assert [path.read_text() for path in finished.path.glob("run.json.damaged-*")] == ["{"]


def test_a_run_whose_manifest_and_copy_are_damaged_starts_over(reference: Reference, finished: RunFolder) -> None:
    for name in ("run.json", "run.copy.json"):
        (finished.path / name).write_text("{", encoding="utf-8")
    rendered, text = queue_again(reference.host, finished, ClipLoop={"clips": "1"})
    assert rendered == 1
    assert "run.json is damaged" in text and "starts over" in text


# ---- the range of clips


def test_a_run_can_be_made_in_parts(reference: Reference) -> None:
    folder = RunFolder.of(reference.host, "parts")
    assert queue_again(reference.host, folder, ClipLoop={"clips": "1-2"})[0] == 2
    assert len(decode(folder.video)) == stitched(2)
    assert queue_again(reference.host, folder, ClipLoop={"clips": "3-"})[0] == 1
    np.testing.assert_array_equal(decode(folder.video), decode(reference.folder.video))
    assert_same_clip(folder, reference.folder, CLIPS)


def test_a_single_clip_is_rendered_with_new_settings_and_those_before_it_are_kept(
    reference: Reference, finished: RunFolder
) -> None:
    before = finished.state(1)
    rendered, text = queue_again(reference.host, finished, UnifiedNoise={"seed": 1}, ClipLoop={"clips": "2"})
    assert rendered == 1
    assert "clip 1 is kept although it was made with another noise" in text
    assert finished.state(1) == before
    assert np.abs(finished.tensors(2)["latent"] - reference.folder.tensors(2)["latent"]).max() > 0.01
    # The video ends with the last clip of the range, and is whole again when the rest is rendered.
    assert len(decode(finished.video)) == stitched(2)
    rendered, _ = queue_again(reference.host, finished, UnifiedNoise={"seed": 1}, ClipLoop={"clips": "3-"})
    assert (rendered, len(decode(finished.video))) == (1, stitched(3))


def test_a_range_of_finished_clips_renders_nothing_and_loses_nothing(reference: Reference, finished: RunFolder) -> None:
    assert queue_again(reference.host, finished, ClipLoop={"clips": "-2"})[0] == 0
    assert len(decode(finished.video)) == stitched(2)
    rendered, text = queue_again(reference.host, finished)
    assert rendered == 0
    np.testing.assert_array_equal(decode(finished.video_of(text)), decode(reference.folder.video))


# ---- pausing for review


def test_a_run_pauses_after_so_many_clips_and_goes_on_each_time_it_is_queued(reference: Reference) -> None:
    folder = RunFolder.of(reference.host, "paused")
    for finished in EVERY_CLIP:
        # The very same prompt: the host's cache must not answer for a run that is not finished.
        rendered, text = queue_again(reference.host, folder, ClipLoop={"pause_after": 1})
        assert rendered == 1
        assert len(decode(folder.video)) == stitched(finished)
        assert ("queue again to go on" in text) is (finished < CLIPS)
    assert queue_again(reference.host, folder, ClipLoop={"pause_after": 1})[0] == 0
    assert len(folder.videos) == CLIPS and all(video.exists() for video in folder.videos)
    np.testing.assert_array_equal(decode(folder.video), decode(reference.folder.video))


def test_a_clip_that_displeases_in_review_is_rendered_again(reference: Reference) -> None:
    folder = RunFolder.of(reference.host, "reviewed")
    queue_again(reference.host, folder, ClipLoop={"pause_after": 2})
    before = folder.state(1)
    prompts = json.dumps([{"prompt": ""}, {"prompt": "", "seed_offset": 5}])
    rendered, text = queue_again(reference.host, folder, ClipLoop={"pause_after": 1}, PromptSchedule={"prompts": prompts})
    assert rendered == 1
    assert "clips 2 .. 3 are rendered again: seed offset changed" in text and "paused after clip 2 of 3" in text
    assert folder.state(1) == before


# ---- what the node says while it works


def test_it_says_what_is_kept_and_why_before_it_starts(reference: Reference, finished: RunFolder) -> None:
    prompt = tiny_workflow(finished.path.name, PromptSchedule={"prompts": json.dumps(["", {"prompt": "", "seed_offset": 1}])})
    loop = node_id(prompt, "LongVieClipLoop")
    seen: list[tuple[str, str]] = []

    def on_event(kind: str, data: object) -> None:
        if kind == "progress_text" and data["node"] == loop:
            seen.append(("text", data["text"]))
        elif kind == "progress" and data["node"] == loop:
            seen.append(("step", ""))

    reference.host.run(prompt, on_event, timeout=120)
    assert seen[0][0] == "text"
    assert "clips 2 .. 3 are rendered again: seed offset changed" in seen[0][1] and "kept 1 of 3 clips" in seen[0][1]
    texts = [text for kind, text in seen if kind == "text"]
    assert [text.rpartition(" rendered in ")[0] for text in texts[1:]] == ["clip 2 of 3", "clip 3 of 3"]


# ---- other ways to feed the loop


def test_the_hosts_own_noise_makes_the_same_clip(reference: Reference) -> None:
    prompt = tiny_workflow("host noise", ClipLoop={"clips": "1"})
    set_inputs(prompt, "LongVieClipLoop", noise=add(prompt, "noise", "RandomNoise", noise_seed=0))
    run(reference.host, prompt)
    assert_same_clip(RunFolder.of(reference.host, "host noise"), reference.folder, 1)


@pytest.mark.parametrize(
    ("tail", "overlap", "clips", "frames"), [("pad", 1, 3, 20), ("drop", 1, 2, 17), ("pad", 2, 3, 20), ("drop", 2, 2, 16)]
)
def test_one_continuous_control_video_is_cut_by_the_plan(
    reference: Reference, tail: str, overlap: int, clips: int, frames: int
) -> None:
    ramp = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None] * 12, (20, HEIGHT, WIDTH, 3))
    path = reference.host.base / "input" / "ramp.mkv"
    with VideoWriter(path, WIDTH, HEIGHT, Fraction(12), codec="lossless") as writer:
        for frame in ramp:
            writer.write(frame)
    name = f"continuous {tail} {overlap}"
    prompt = tiny_workflow(name, Sigmas={"steps": 1})
    plan = add(
        prompt, "plan", "LongVieClipPlan",
        width=WIDTH, height=HEIGHT, frames_per_clip=FRAMES, fps=12.0, overlap=overlap, tail=tail, source_frames=0,
    )  # fmt: skip
    video = add(prompt, "video", "LoadVideo", file="ramp.mkv")
    dense = add(prompt, "dense", "LongVieControlFromVideo", modality="dense", polarity="near = black", video=video)
    set_inputs(prompt, "LongVieClipLoop", plan=plan, dense=dense, sparse=None)
    last = add(prompt, "last", "SaveImage", images=[node_id(prompt, "LongVieClipLoop"), 1], filename_prefix="last")[0]
    result = run(reference.host, prompt)
    folder = RunFolder.of(reference.host, name)
    assert rendered_clips(prompt, result) == clips
    assert len(decode(folder.video)) == frames
    assert stream_info(folder.video) == (WIDTH, HEIGHT, Fraction(12))
    # The last frame is the video's, not the padding's: 3 clips of 9 hold 25 or 23 frames, of which 20 are shown.
    shown_of_last = FRAMES - ((clips * (FRAMES - overlap) + overlap) - frames)
    tensors = folder.tensors(clips)
    expected = tensors["tail"][shown_of_last - 1] if len(tensors["tail"]) == FRAMES else tensors["last"]
    np.testing.assert_array_equal(pictures(reference.host, result, last)[0], expected)


def test_controls_are_stretched_to_the_size_of_the_plan(reference: Reference) -> None:
    prompt = tiny_workflow("stretched", previews=True, LoadClips={"width": 96, "height": 64, "max_clips": 1})
    result = run(reference.host, prompt)
    assert rendered_clips(prompt, result) == 1
    assert stream_info(RunFolder.of(reference.host, "stretched").video) == (96, 64, Fraction(16))
    previews = [key for key, node in prompt.items() if node["class_type"] == "PreviewImage"]
    for key in previews:
        assert pictures(reference.host, result, key).shape == (5, 64, 96, 3)
