"""What streams through the clip loop on the real host: control latents that are encoded once, and where the time goes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from devtools.host import Host
from devtools.tiny import RANDOM_VAE
from tests.helpers.workflow import (
    Prompt,
    RunFolder,
    add,
    assert_same_clip,
    decode,
    film_scene,
    latent,
    node_id,
    rendered_clips,
    report,
    run,
    set_inputs,
    stitched,
    tiny_workflow,
)

FOLDER, CLIPS, STEPS = "streamed", 6, 2
COUNTS = re.compile(r"^control latents: (\d+) encoded, (\d+) kept$", re.MULTILINE)


def workflow(run_name: str, **changes: dict) -> Prompt:
    settings = {"LoadClips": {"folder": FOLDER}, "Sigmas": {"steps": STEPS}} | changes
    return tiny_workflow(run_name, **settings)


def counts(text: str) -> tuple[int, int]:
    """Control latents that a loop has encoded, and those that it took from disk."""
    (found,) = COUNTS.findall(text)
    return int(found[0]), int(found[1])


@dataclass(frozen=True)
class Streamed:
    """A run of six clips, rendered when nothing was kept yet."""

    host: Host
    folder: RunFolder
    report: str


@pytest.fixture(scope="module")
def streamed(tiny_host: Host) -> Streamed:
    film_scene(tiny_host.base / "input" / FOLDER, clips=CLIPS, seed=11)
    text = report(run(tiny_host, workflow("streamed")))
    return Streamed(tiny_host, RunFolder.of(tiny_host, "streamed"), text)


def test_each_control_of_each_clip_is_encoded_once(streamed: Streamed) -> None:
    assert counts(streamed.report) == (2 * CLIPS, 0)


def test_another_prompt_for_clip_3_of_6_renders_3_to_6_and_encodes_no_control(streamed: Streamed) -> None:
    folder = streamed.folder.copy("edited")
    before = folder.state(1, 2)
    prompt = workflow("edited", PromptSchedule={"prompts": '["", "", "a fox", ""]'})
    result = run(streamed.host, prompt)
    text = report(result)
    assert rendered_clips(prompt, result) == 4
    assert re.findall(r"^clip (\d) of 6 rendered", text, re.MULTILINE) == ["3", "4", "5", "6"]
    assert "clips 3 .. 6 are rendered again: prompt changed" in text and "kept 2 of 6 clips" in text
    assert counts(text) == (0, 8)
    assert folder.state(1, 2) == before


def test_a_run_from_kept_latents_is_bit_by_bit_the_run_that_encoded_them(streamed: Streamed) -> None:
    text = report(run(streamed.host, workflow("from kept")))
    assert counts(text) == (0, 2 * CLIPS)
    folder = RunFolder.of(streamed.host, "from kept")
    for clip in range(1, CLIPS + 1):
        assert_same_clip(folder, streamed.folder, clip)
    video = decode(folder.video)
    assert len(video) == stitched(CLIPS)
    np.testing.assert_array_equal(video, decode(streamed.folder.video))


@pytest.mark.parametrize(
    "changes",
    [
        {"UnifiedNoise": {"seed": 5}},
        {"MultimodalSampler": {"dense_strength": 0.5, "history_frames": 5}},
        {"PromptSchedule": {"negative": "blurry"}},
    ],
    ids=["seed", "strength and history", "negative prompt"],
)
def test_other_settings_of_the_sampling_encode_nothing(streamed: Streamed, changes: dict, request) -> None:
    prompt = workflow(request.node.name.replace("[", " ").replace("]", ""), ClipLoop={"clips": "1"}, **changes)
    assert counts(report(run(streamed.host, prompt))) == (0, 2)


def test_a_changed_control_file_encodes_that_control_alone(streamed: Streamed) -> None:
    inputs = streamed.host.base / "input"
    folder = Path(shutil.copytree(inputs / FOLDER, inputs / "one changed"))
    shutil.copyfile(folder / "depth_04.mp4", folder / "depth_01.mp4")
    prompt = workflow("one changed", LoadClips={"folder": "one changed"}, ClipLoop={"clips": "-3"})
    # The depth of clip 2 is now that of clip 5, which is known: content counts, not place.
    assert counts(report(run(streamed.host, prompt))) == (0, 6)
    film_scene(inputs / "other", clips=3, seed=12)
    shutil.copyfile(inputs / "other" / "track_01.mp4", folder / "track_01.mp4")
    prompt = workflow("one changed", LoadClips={"folder": "one changed"}, ClipLoop={"clips": "-3"})
    text = report(run(streamed.host, prompt))
    assert "kept 1 of 3 clips" in text and counts(text) == (1, 3)


def test_latents_of_another_size_are_others(streamed: Streamed) -> None:
    prompt = workflow("wider", LoadClips={"folder": FOLDER, "width": 80}, ClipLoop={"clips": "1"})
    assert counts(report(run(streamed.host, prompt))) == (2, 0)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, (0, 2)), (1.01, (2, 0))], ids=["equal weights", "other weights"])
def test_the_weights_of_the_vae_count_and_not_its_name(streamed: Streamed, scale: float, expected: tuple[int, int]) -> None:
    models = streamed.host.base / "models"
    name = f"vae_{scale}.safetensors"
    weights = load_file(models / RANDOM_VAE)
    weights["encoder.conv1.weight"] = (weights["encoder.conv1.weight"] * scale).astype(np.float16)
    save_file(weights, models / "vae" / name)
    prompt = workflow(f"vae {scale}", ClipLoop={"clips": "1"})
    set_inputs(prompt, "VAELoader", vae_name=name)
    assert counts(report(run(streamed.host, prompt))) == expected


def kept_files(host: Host) -> dict[Path, int]:
    """The control latents on disk, and when they were written."""
    return {path: path.stat().st_ino for path in (host.base / "user" / "longvie" / "controls").glob("latents_*.safetensors")}


def test_torn_or_lost_latents_are_encoded_again_to_the_same_bits(streamed: Streamed) -> None:
    files = sorted(kept_files(streamed.host))
    for number, path in enumerate(files):
        if number % 2:
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2)
    text = report(run(streamed.host, workflow("again", ClipLoop={"clips": "-2"})))
    assert counts(text) == (4, 0)
    for clip in (1, 2):
        assert_same_clip(RunFolder.of(streamed.host, "again"), streamed.folder, clip)
    assert counts(report(run(streamed.host, workflow("and again", ClipLoop={"clips": "-2"})))) == (0, 4)


def test_sample_clip_shares_the_latents_with_the_loop(streamed: Streamed) -> None:
    run(streamed.host, workflow("first clip", ClipLoop={"clips": "1"}))
    before = kept_files(streamed.host)
    prompt = workflow("unused")
    loop = prompt.pop(node_id(prompt, "LongVieClipLoop"))["inputs"]
    del prompt["report"]
    given = {name: loop[name] for name in ("sampler", "plan", "prompts", "noise", "first_frame", "dense", "sparse")}
    add(prompt, "clip", "LongVieSampleClip", **given)
    saved = add(prompt, "latent", "SaveLatent", samples=["clip", 2], filename_prefix="latent")[0]
    result = run(streamed.host, prompt)
    np.testing.assert_array_equal(latent(streamed.host, result, saved), streamed.folder.tensors(1)["latent"])
    assert kept_files(streamed.host) == before


def test_a_control_that_is_not_connected_is_neither_encoded_nor_read(streamed: Streamed) -> None:
    prompt = workflow("one control", ClipLoop={"sparse": None, "clips": "1"})
    assert sum(counts(report(run(streamed.host, prompt)))) == 1


def test_the_report_says_how_much_of_the_time_was_sampler_and_vae(streamed: Streamed) -> None:
    (found,) = re.findall(r"^([\d.]+)% of ([\d.]+) s was sampler and VAE$", streamed.report, re.MULTILINE)
    clips = [float(seconds) for seconds in re.findall(r"rendered in ([\d.]+) s", streamed.report)]
    assert len(clips) == CLIPS
    # The clips' own seconds are the model's and little else; with pictures this small saving them counts as well.
    assert float(found[0]) <= 100 and float(found[1]) >= sum(clips) - 0.1 * CLIPS
    assert float(found[0]) / 100 * float(found[1]) <= sum(clips) + 0.1 * CLIPS


@pytest.mark.slow
def test_what_the_loop_holds_survives_a_cache_without_room(
    make_host: Callable[..., Host], stock: Callable[[Host], Host]
) -> None:
    host = stock(make_host(env={"LONGVIE_CACHE_GIB": "0"}))
    settings = {"Sigmas": {"steps": STEPS}, "ClipLoop": {"clips": "-2"}}
    assert counts(report(run(host, tiny_workflow("first", **settings)))) == (4, 0)
    assert len(kept_files(host)) == 4
    assert counts(report(run(host, tiny_workflow("first", **settings, UnifiedNoise={"seed": 1})))) == (0, 4)
    assert len(decode(RunFolder.of(host, "first").video)) == stitched(2)
