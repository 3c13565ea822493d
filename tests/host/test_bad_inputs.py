"""Bad inputs on the real host: refused before any sampling, with a text that names the input and the mend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from devtools.host import Host, PromptRejected
from devtools.tiny import RANDOM_BACKBONE, RANDOM_CONTROL, randomize
from longvie_core.media.write import VideoWriter
from longvie_core.model.dual_control import DualControlConfig, torch_dual_control
from longvie_core.model.wan import WanConfig, WanModel
from tests.helpers.workflow import (
    FRAMES,
    HEIGHT,
    SCENE,
    WIDTH,
    Prompt,
    RunFolder,
    add,
    copy_scene,
    failure,
    film_scene,
    node_id,
    rejection,
    rendered_clips,
    report,
    run,
    set_inputs,
    stitched,
    tiny_workflow,
)

RUN = "bad input"


def refusal(host: Host, prompt: Prompt) -> str:
    """The text with which a prompt is refused, before it runs or before the loop samples anything."""
    try:
        node, text = failure(host, prompt)
    except PromptRejected as rejected:
        return str(rejected)
    return f"{node}: {text}"


def assert_says(text: str, *words: str) -> None:
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"


# ---- refused before the prompt runs: names, ranges, sizes, prompts


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/b", ("'/'", "use letters")),
        ("a\\b", ("use letters",)),
        ("..", ("starts or ends with a dot", "plain folder name")),
        (".", ("starts or ends with a dot",)),
        ("../../outside", ("'/'",)),
        ("/absolute", ("'/'",)),
        ("C:drive", ("':'",)),
        ("", ("0 characters", "use 1 to 100")),
        ("x" * 101, ("101 characters", "use 1 to 100")),
        ("a\0b", ("'\\x00'", "use letters")),
        ("line\nbreak", ("'\\n'",)),
        ("half \ud800", ("use letters",)),
        ("trailing.", ("ends with a dot",)),
        ("trailing ", ("space",)),
        ("CON", ("device name", "choose another")),
        ("nul.txt", ("device name",)),
        ("com1", ("device name",)),
        ("a*?", ("'*'", "'?'")),
    ],
    ids=ascii,
)
def test_a_run_name_that_is_no_folder_name(tiny_host: Host, name: str, words: tuple[str, ...]) -> None:
    before = set((tiny_host.base / "output").rglob("*"))
    assert_says(rejection(tiny_host, tiny_workflow(name)), "LongVieClipLoop", "run_name", "run name", *words)
    assert set((tiny_host.base / "output").rglob("*")) == before


def test_a_run_name_that_is_longer_in_bytes_than_in_characters(tiny_host: Host) -> None:
    # 100 characters, but 300 bytes, where most file systems end at 255.
    assert_says(refusal(tiny_host, tiny_workflow("長" * 100)), "run name", "bytes")


@pytest.mark.parametrize("name", ["a/b", "..", "NUL"])
def test_a_linked_run_name_is_checked_when_it_comes(tiny_host: Host, name: str) -> None:
    prompt = tiny_workflow(RUN)
    set_inputs(prompt, "LongVieClipLoop", run_name=add(prompt, "name", "PrimitiveString", value=name))
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieClipLoop"
    assert_says(text, "run name")


def test_a_run_folder_that_is_a_link_to_elsewhere(tiny_host: Host, tmp_path: Path) -> None:
    runs = tiny_host.base / "output" / "longvie"
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    _, text = failure(tiny_host, tiny_workflow("elsewhere"))
    assert_says(text, "run 'elsewhere' is a link", "use another run name")
    assert list(tmp_path.iterdir()) == []


def test_a_run_made_by_another_version(tiny_host: Host) -> None:
    folder = RunFolder.of(tiny_host, "newer")
    folder.path.mkdir(parents=True)
    (folder.path / "run.json").write_text('{"version": 99}', encoding="utf-8")
    _, text = failure(tiny_host, tiny_workflow("newer"))
    assert_says(text, "run.json", "version 99", "update LongVie or use another run name")
    assert (folder.path / "run.json").read_text(encoding="utf-8") == '{"version": 99}'


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        ("first", ("is no range", "3-5")),
        ("1,2", ("is no range",)),
        ("0", ("count from 1",)),
        ("3-2", ("the smaller number first",)),
        ("1" * 50, ("is no range",)),
    ],
)
def test_a_range_of_clips_that_is_none(tiny_host: Host, clips: str, words: tuple[str, ...]) -> None:
    text = rejection(tiny_host, tiny_workflow(RUN, ClipLoop={"clips": clips}))
    assert_says(text, "LongVieClipLoop", f"clips '{clips}'", *words)


@pytest.mark.parametrize("clips", ["4", "2-4", "4-"])
def test_a_range_past_the_last_clip(tiny_host: Host, clips: str) -> None:
    node, text = failure(tiny_host, tiny_workflow(RUN, ClipLoop={"clips": clips}))
    assert node == "LongVieClipLoop"
    assert_says(text, f"clips '{clips}'", "outside the 3 clips")


def test_a_range_that_leaves_out_unfinished_clips(tiny_host: Host) -> None:
    _, text = failure(tiny_host, tiny_workflow(RUN, ClipLoop={"clips": "2-"}))
    assert_says(text, "clip 1 is not finished", "start the range at clip 1")


@pytest.mark.parametrize(
    ("node", "change", "words"),
    [
        ("LongVieLoadClips", {"width": 100}, ("width 100 is not a multiple of 16", "use 96 or 112")),
        ("LongVieLoadClips", {"height": 1}, ("height",)),
        ("LongVieLoadClips", {"width": -16}, ("width",)),
        ("LongVieLoadClips", {"fps": 0.0}, ("fps",)),
        ("LongVieClipPlan", {"width": 100}, ("width 100 is not a multiple of 16", "use 96 or 112")),
        ("LongVieClipPlan", {"frames_per_clip": 80}, ("frames per clip 80 is not 4n+1", "use 77 or 81")),
        ("LongVieClipPlan", {"frames_per_clip": 1}, ("frames per clip 1",)),
        ("LongVieClipPlan", {"overlap": 0}, ("overlap",)),
        ("LongVieClipPlan", {"tail": "loop"}, ("tail", "drop")),
        ("LongVieMultimodalSampler", {"history_frames": 18}, ("history_frames", "17")),
        ("LongVieSigmas", {"steps": 0}, ("steps",)),
    ],
    ids=str,
)
def test_a_size_or_length_that_cannot_be(tiny_host: Host, node: str, change: dict, words: tuple[str, ...]) -> None:
    prompt = tiny_workflow(RUN)
    if node == "LongVieClipPlan":
        set_inputs(prompt, "LongVieClipLoop", plan=add_plan(prompt))
    set_inputs(prompt, node, **change)
    assert_says(refusal(tiny_host, prompt), node, *words)


@pytest.mark.parametrize(
    ("node", "change", "words"),
    [
        ("LongVieLoadClips", {"width": 8192 + 16}, ("width", "8192")),
        ("LongVieClipPlan", {"height": 8192 + 16}, ("height", "8192")),
        ("LongVieClipPlan", {"frames_per_clip": 1025 + 4}, ("frames", "1025")),
    ],
    ids=str,
)
def test_a_size_past_the_largest(tiny_host: Host, node: str, change: dict, words: tuple[str, ...]) -> None:
    # The host checks the limits of an input itself, but not of one that the node's validate_inputs asks for.
    prompt = tiny_workflow(RUN)
    if node == "LongVieClipPlan":
        set_inputs(prompt, "LongVieClipLoop", plan=add_plan(prompt))
    set_inputs(prompt, node, **change)
    assert_says(rejection(tiny_host, prompt), node, *words)


def add_plan(prompt: Prompt, **changes: object) -> list:
    """Add a LongVie Clip Plan at the tests' size."""
    inputs = {"width": WIDTH, "height": HEIGHT, "frames_per_clip": FRAMES, "fps": 16.0, "overlap": 1, "tail": "drop"}
    return add(prompt, "plan", "LongVieClipPlan", **{**inputs, "source_frames": 0, **changes})


def test_a_refusal_marks_the_input_that_is_wrong(tiny_host: Host) -> None:
    # The page paints these inputs red and prints their texts.
    text = rejection(tiny_host, tiny_workflow(RUN, LoadClips={"folder": "missing"}))
    assert "folder - folder 'missing'" in text
    assert "width - folder" not in text and "height - folder" not in text


def test_an_overlap_as_long_as_the_clip(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN)
    set_inputs(prompt, "LongVieClipLoop", plan=add_plan(prompt, overlap=FRAMES))
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieClipPlan"
    assert_says(text, "overlap 9 is outside 1 .. 8")


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ('["open', ("no JSON list", "one prompt a line")),
        ("[]", ("empty JSON list",)),
        ("[1]", ("prompt 1 is a int", "give a string or an object")),
        ('["a", {"text": "b"}]', ("prompt 2 has an unknown key 'text'", "use prompt")),
        ('[{"prompt": "a", "seed_offset": 0.5}]', ("prompt 1", "'seed_offset' must be a whole number")),
    ],
)
def test_prompts_that_cannot_be_read(tiny_host: Host, prompts: str, words: tuple[str, ...]) -> None:
    text = rejection(tiny_host, tiny_workflow(RUN, PromptSchedule={"prompts": prompts}))
    assert_says(text, "LongViePromptSchedule", *words)


@pytest.mark.parametrize(("widget", "name"), [("prompts", "prompt 1"), ("negative", "the negative prompt")])
def test_half_a_character(tiny_host: Host, widget: str, name: str) -> None:
    text = rejection(tiny_host, tiny_workflow(RUN, PromptSchedule={widget: "a fox \ud83e"}))
    assert_says(text, "LongViePromptSchedule", f"{name} holds half of a surrogate pair")


# ---- the folder of control clips


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("missing", ("folder 'missing' does not exist", "copy the clips there")),
        ("", ("folder ''",)),
        (".", ("folder '.' is not inside",)),
        ("..", ("folder '..' is not inside", "copy the clips into a folder there")),
        ("../output", ("folder '../output' is not inside",)),
        (f"{SCENE}/../../output", ("is not inside",)),
        ("/etc", ("folder '/etc' is not inside",)),
        ("a\0b", ("folder 'a\\x00b'",)),
        ("x" * 5000, ("folder 'xxx",)),
        (f"{SCENE}/first.png", ("does not exist",)),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_folder_that_is_no_folder_of_the_input_folder(tiny_host: Host, folder: str, words: tuple[str, ...]) -> None:
    text = rejection(tiny_host, tiny_workflow(RUN, LoadClips={"folder": folder}))
    assert_says(text, "LongVieLoadClips", *words)


def test_an_absolute_path_or_a_link_to_good_clips_outside(tiny_host: Host, tmp_path: Path) -> None:
    film_scene(tmp_path / "good", clips=1)
    (tiny_host.base / "input" / "linked").symlink_to(tmp_path / "good", target_is_directory=True)
    for folder in (str(tmp_path / "good"), "linked"):
        text = rejection(tiny_host, tiny_workflow(RUN, LoadClips={"folder": folder}))
        assert_says(text, f"folder '{folder}' is not inside ComfyUI's input folder")


def entries_of(folder: Path) -> list[dict]:
    return json.loads((folder / "cond.json").read_text(encoding="utf-8"))


def write_entries(folder: Path, entries: object) -> None:
    (folder / "cond.json").write_text(json.dumps(entries), encoding="utf-8")


def without(key: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        entries = entries_of(folder)
        del entries[1][key]
        write_entries(folder, entries)

    return change


def naming(key: str, name: object) -> Callable[[Path], object]:
    return lambda folder: write_entries(folder, [{**entry, key: name} for entry in entries_of(folder)])


def writing(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def removing(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def shorter_tracks(folder: Path) -> None:
    for clip in range(3):
        write_video(folder / f"track_{clip:02d}.mp4", FRAMES - 4)


def write_video(path: Path, frames: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    """A plain grey video."""
    codec = "h264" if path.suffix == ".mp4" else "lossless"
    with VideoWriter(path, width, height, Fraction(16), codec=codec) as writer:
        for _ in range(frames):
            writer.write(np.full((height, width, 3), 128, np.uint8))


def link_out(folder: Path) -> None:
    outside = folder.parent.parent / "outside.mp4"
    outside.write_bytes((folder / "depth_01.mp4").read_bytes())
    (folder / "depth_01.mp4").unlink()
    (folder / "depth_01.mp4").symlink_to(outside)


def cut_in_half(folder: Path) -> None:
    path = folder / "track_02.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FOLDERS = {
    "no cond.json": (removing("cond.json"), ("cond.json is missing",)),
    "cond.json cut off": (writing("cond.json", b'[{"text": "a'), ("cond.json is not valid JSON",)),
    "cond.json of bytes": (writing("cond.json", b"\xff\xfe\x00"), ("cond.json is not valid JSON",)),
    "cond.json nested": (writing("cond.json", b"[" * 100_000), ("cond.json is not valid JSON",)),
    "cond.json too large": (
        writing("cond.json", b" " * ((64 << 20) + 1)),
        ("cond.json has 64.1 MiB, but at most 64.0 MiB are read", "list less"),
    ),
    "cond.json of too many clips": (
        writing("cond.json", b"[" + b"1," * 10_000 + b"1]"),
        ("cond.json lists 10001 clips, but at most 10000 are read", "divide the folder"),
    ),
    "cond.json empty list": (writing("cond.json", b"[]"), ("cond.json must hold a list with an entry for each clip",)),
    "cond.json an object": (writing("cond.json", b"{}"), ("cond.json must hold a list",)),
    "entry a number": (writing("cond.json", b"[1]"), ("cond.json: entry 0 has no text under the key 'text'",)),
    "entry without depth": (without("depth"), ("entry 1 has no text under the key 'depth'",)),
    "entry with null track": (naming("track", None), ("no text under the key 'track'",)),
    "entry names dots": (naming("depth", "../.."), ("'../..'", "is not a file name")),
    "entry names NUL": (naming("depth", "a\0b"), ("is not a file name",)),
    "entry names nothing": (naming("track", "nowhere.mp4"), ("nowhere.mp4 is missing", "'track' of entry 0")),
    "no depth file": (removing("depth_02.mp4"), ("depth_02.mp4 is missing", "'depth' of entry 2 in cond.json")),
    "no first.png": (removing("first.png"), ("first.png is missing",)),
    "first.png a text": (writing("first.png", b"not a picture"), ("first.png is not a readable picture",)),
    "video a text": (writing("depth_01.mp4", b"<html>" * 99), ("depth_01.mp4 cannot be opened as a video",)),
    "video empty": (writing("depth_01.mp4", b""), ("depth_01.mp4",)),
    "video cut in half": (cut_in_half, ("track_02.mp4",)),
    "one clip of another length": (
        lambda folder: write_video(folder / "depth_01.mp4", FRAMES - 1),
        ("depth_01.mp4 has 8 frames of 64x48", "depth_00.mp4 has 9", "must be alike"),
    ),
    "one clip of another size": (
        lambda folder: write_video(folder / "depth_01.mp4", FRAMES, 32, 32),
        ("depth_01.mp4 has 9 frames of 32x32", "must be alike"),
    ),
    "tracks shorter than depth": (shorter_tracks, ("has 9 frames", "has 5", "depth and tracks")),
    "a link that leads out": (link_out, ("depth_01.mp4", "is a link that leads out", "copy the file into it")),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_of_clips_with_something_wrong(tiny_host: Host, case: str) -> None:
    spoil, words = BAD_FOLDERS[case]
    spoil(copy_scene(tiny_host, case))
    node, text = failure(tiny_host, tiny_workflow(RUN, LoadClips={"folder": case}))
    assert node == "LongVieLoadClips"
    assert_says(text, *words)


def test_a_folder_whose_frames_are_not_4n_plus_1(tiny_host: Host) -> None:
    folder = copy_scene(tiny_host, "ten frames")
    for name in ("depth", "track"):
        for clip in range(3):
            write_video(folder / f"{name}_{clip:02d}.mp4", 10)
    node, text = failure(tiny_host, tiny_workflow(RUN, LoadClips={"folder": "ten frames"}))
    assert node == "LongVieLoadClips"
    assert_says(text, "frames per clip 10 is not 4n+1")


def test_a_first_picture_too_large_to_open(tiny_host: Host) -> None:
    folder = copy_scene(tiny_host, "bomb")
    Image.new("1", (13_400, 13_400)).save(folder / "first.png")
    prompt = tiny_workflow(RUN, LoadClips={"folder": "bomb"})
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieLoadClips"
    assert_says(text, "first.png")


# ---- controls that do not fit


def given_controls(host: Host, *, dense: int | None, sparse: int | None, **plan: object) -> Prompt:
    """The workflow on continuous control videos of these lengths, with a plan of its own."""
    prompt = tiny_workflow(RUN)
    links = {"dense": None, "sparse": None}
    for modality, frames in (("dense", dense), ("sparse", sparse)):
        if frames is not None:
            write_video(host.base / "input" / f"grey_{frames}.mkv", frames)
            links[modality] = add_control(prompt, modality, f"grey_{frames}.mkv")
    set_inputs(prompt, "LongVieClipLoop", plan=add_plan(prompt, **plan), **links)
    return prompt


def add_control(prompt: Prompt, modality: str, file: str) -> list:
    video = add(prompt, f"{modality} video", "LoadVideo", file=file)
    settings = {"modality": modality, "polarity": "near = black"}
    return add(prompt, f"{modality} control", "LongVieControlFromVideo", **settings, video=video)


def test_a_control_one_frame_too_short_for_a_clip(tiny_host: Host) -> None:
    prompt = given_controls(tiny_host, dense=80, sparse=80, frames_per_clip=81)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieClipLoop"
    assert_says(text, "80 frames", "one clip needs 81", "give a longer video")


def test_a_control_one_frame_too_short_for_the_plan(tiny_host: Host) -> None:
    _, text = failure(tiny_host, given_controls(tiny_host, dense=80, sparse=None, source_frames=81))
    assert_says(text, "81 source frames", "control has only 80")


def test_controls_of_different_lengths(tiny_host: Host) -> None:
    _, text = failure(tiny_host, given_controls(tiny_host, dense=17, sparse=25))
    assert_says(text, "dense has 17 frames", "sparse has 25", "the same video")


def test_clips_of_another_length_than_the_plans(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN)
    set_inputs(prompt, "LongVieClipLoop", plan=add_plan(prompt, frames_per_clip=17))
    _, text = failure(tiny_host, prompt)
    assert_says(text, "has 9 frames", "the plan's clips have 17", "set frames per clip to 9")


def test_fewer_control_clips_than_the_plan_has(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN)
    set_inputs(prompt, "LongVieClipLoop", plan=add_plan(prompt, source_frames=stitched(4)))
    _, text = failure(tiny_host, prompt)
    assert_says(text, "33", "25")


@pytest.mark.parametrize(("dense", "sparse", "word"), [(2, 1, "sparse"), (1, 1, "dense"), (2, 2, "sparse")])
def test_a_control_in_the_others_place(tiny_host: Host, dense: int, sparse: int, word: str) -> None:
    prompt = tiny_workflow(RUN)
    clips = node_id(prompt, "LongVieLoadClips")
    set_inputs(prompt, "LongVieClipLoop", dense=[clips, dense], sparse=[clips, sparse])
    _, text = failure(tiny_host, prompt)
    assert_says(text, f"a {word} control is connected to the input '{'dense' if word == 'sparse' else 'sparse'}'", "swap")


def test_no_control_at_all(tiny_host: Host) -> None:
    _, text = failure(tiny_host, tiny_workflow(RUN, ClipLoop={"dense": None, "sparse": None}))
    assert_says(text, "no control is connected", "connect dense")


def test_control_from_video_wants_exactly_one_source(tiny_host: Host) -> None:
    write_video(tiny_host.base / "input" / "grey_17.mkv", 17)
    for both in (False, True):
        prompt = tiny_workflow(RUN, ClipLoop={"sparse": None})
        set_inputs(prompt, "LongVieClipLoop", plan=add_plan(prompt), dense=add_control(prompt, "dense", "grey_17.mkv"))
        inputs = prompt["dense control"]["inputs"]
        inputs["images"] = add(prompt, "components", "GetVideoComponents", video=inputs["video"])
        if not both:
            inputs.pop("video"), inputs.pop("images")
        node, text = failure(tiny_host, prompt)
        assert node == "LongVieControlFromVideo"
        assert_says(text, "connect either video or images")


@pytest.mark.parametrize("name", ["page.mp4", "song.wav"])
def test_a_control_that_is_no_video(tiny_host: Host, name: str) -> None:
    (tiny_host.base / "input" / name).write_bytes(b"<html>not found</html>" * 50)
    prompt = tiny_workflow(RUN, ClipLoop={"sparse": None})
    set_inputs(prompt, "LongVieClipLoop", plan=add_plan(prompt), dense=add_control(prompt, "dense", name))
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieControlFromVideo"
    assert_says(text, name, "cannot be opened as a video")


def test_a_plan_whose_clips_are_too_short_for_the_history(tiny_host: Host) -> None:
    # The second clip would find out, after the first was made for nothing.
    for plan in ({"frames_per_clip": 5}, {"overlap": 3}):
        node, text = failure(tiny_host, given_controls(tiny_host, dense=17, sparse=None, **plan))
        assert node == "LongVieClipLoop"
        assert_says(text, "history", "8")


# ---- clip numbers, counted from 1 as the widgets do


def without_loop(prompt: Prompt) -> Prompt:
    """The prompt without the loop and what shows it."""
    return {key: node for key, node in prompt.items() if node["class_type"] not in ("LongVieClipLoop", "PreviewAny")}


@pytest.mark.parametrize("clip", [4, 100_000])
def test_a_preview_of_a_clip_past_the_last(tiny_host: Host, clip: int) -> None:
    prompt = without_loop(tiny_workflow(RUN, previews=True))
    for node in prompt.values():
        if node["class_type"] == "LongVieControlPreview":
            node["inputs"]["clip"] = clip
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieControlPreview"
    assert_says(text, f"clip {clip} ", "3")


def apply_control(prompt: Prompt, **changes: object) -> str:
    """Add a LongVie Apply Control to the workflow, its latents saved; returns its id."""
    loop, sampler = (prompt[node_id(prompt, name)]["inputs"] for name in ("LongVieClipLoop", "LongVieMultimodalSampler"))
    encoder = add(prompt, "encoder", "TestTextEncoder", log="bad.txt")
    text = add(prompt, "text", "CLIPTextEncode", text="", clip=encoder)
    given = {name: loop[name] for name in ("plan", "dense", "sparse")} | {"start_image": loop["first_frame"]}
    given |= {name: sampler[name] for name in ("model", "control", "vae", "first_frame_sigma")}
    given |= {name: value for name, value in sampler.items() if name.startswith(("dense_", "sparse_"))}
    given |= {"positive": text, "negative": text, "clip": 1, **changes}
    apply = add(prompt, "apply", "LongVieApplyControl", **given)[0]
    add(prompt, "saved", "SaveLatent", samples=[apply, 3], filename_prefix="latents/bad")
    return apply


def test_apply_control_on_a_clip_past_the_last(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN)
    apply_control(prompt, clip=4)
    node, text = failure(tiny_host, without_loop(prompt))
    assert node == "LongVieApplyControl"
    assert_says(text, "clip 4 ", "3")


def test_sample_clip_after_the_last(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN, LoadClips={"max_clips": 1}, Sigmas={"steps": 1})
    loop = prompt[node_id(prompt, "LongVieClipLoop")]["inputs"]
    given = {name: value for name, value in loop.items() if isinstance(value, list)}
    first = add(prompt, "first", "LongVieSampleClip", **given)
    second = add(prompt, "second", "LongVieSampleClip", **given, state=first)
    add(prompt, "saved", "SaveLatent", samples=[second[0], 2], filename_prefix="latents/bad")
    result = tiny_host.run(without_loop(prompt), timeout=120)
    assert result.status == "error"
    assert result.error.node_id == "second"
    assert_says(result.error.exception_message, "clip 2 ", "1")


# ---- weights


def control_file(host: Host, name: str, change: Callable[[dict], object]) -> str:
    """The tiny control weights, changed, under another name; returns that name."""
    tensors = load_file(host.base / "models" / RANDOM_CONTROL)
    change(tensors)
    save_file(tensors, host.base / "models" / "model_patches" / name)
    return name


def rejected_control(host: Host, name: str) -> str:
    node, text = failure(host, tiny_workflow(RUN, LoadControl={"file": name}))
    assert node == "LongVieLoadControl"
    return text


def test_a_text_in_place_of_the_control_weights(tiny_host: Host) -> None:
    path = tiny_host.base / "models" / "model_patches" / "page.safetensors"
    path.write_text("<html>login required</html>" * 20, encoding="utf-8")
    text = rejected_control(tiny_host, path.name)
    assert_says(text, "page.safetensors is not a readable safetensors file", "text page", "fetch it again")


def test_control_weights_cut_off(tiny_host: Host) -> None:
    weights = tiny_host.base / "models" / RANDOM_CONTROL
    (weights.parent / "half.safetensors").write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert_says(rejected_control(tiny_host, "half.safetensors"), "half.safetensors", "broken download")


def test_control_weights_that_are_a_pickle(tiny_host: Host) -> None:
    (tiny_host.base / "models" / "model_patches" / "control.pt").write_bytes(b"\x80\x02}q\x00.")
    assert_says(rejected_control(tiny_host, "control.pt"), "control.pt is not a .safetensors file", "only safetensors")


def test_control_weights_with_a_key_missing_renamed_or_of_another_shape(tiny_host: Host) -> None:
    key = "control_blocks_sparse.1.self_attn.q.weight"
    text = rejected_control(tiny_host, control_file(tiny_host, "missing.safetensors", lambda found: found.pop(key)))
    assert_says(text, "missing.safetensors does not fit", f"missing (1): {key}", "completely downloaded")

    def rename(found: dict) -> None:
        found["surplus.weight"] = found[key]

    text = rejected_control(tiny_host, control_file(tiny_host, "surplus.safetensors", rename))
    assert_says(text, "unexpected (1): surplus.weight")

    def reshape(found: dict) -> None:
        found[key] = found[key][:64]

    text = rejected_control(tiny_host, control_file(tiny_host, "shape.safetensors", reshape))
    assert_says(text, f"wrong shape (1): {key} [64, 128] instead of [128, 128]")


def test_other_weights_in_place_of_the_control(tiny_host: Host) -> None:
    models = tiny_host.base / "models"
    shutil.copyfile(models / RANDOM_BACKBONE, models / "model_patches" / "backbone.safetensors")
    text = rejected_control(tiny_host, "backbone.safetensors")
    assert_says(text, "holds no LongVie control network", "give control.safetensors of LongVie 2")


def test_a_control_file_that_is_not_there(tiny_host: Host) -> None:
    text = rejection(tiny_host, tiny_workflow(RUN, LoadControl={"file": "nowhere.safetensors"}))
    assert_says(text, "LongVieLoadControl", "file: 'nowhere.safetensors' not in")


def test_an_overlay_that_does_not_fit_the_backbone(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN)
    unet = node_id(prompt, "UNETLoader")
    laid = add(prompt, "overlay", "LongVieAttentionOverlay", model=[unet, 0], file=Path(RANDOM_BACKBONE).name)
    set_inputs(prompt, "ModelSamplingSD3", model=laid)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieAttentionOverlay"
    assert_says(text, f"{Path(RANDOM_BACKBONE).name} does not fit", "unexpected", "Is it the right file")


def test_a_vae_of_another_kind(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN)
    set_inputs(prompt, "VAELoader", vae_name="pixel_space")
    _, text = failure(tiny_host, prompt)
    assert_says(text, "this VAE gives latents", "LongVie needs the Wan 2.1 video VAE")


@pytest.fixture(scope="module")
def other_models(tiny_host: Host) -> None:
    """Backbones of other kinds: text to video; with an image branch, and a control network that goes with it."""
    small = {"dim": 128, "ffn_dim": 64, "num_heads": 1, "num_layers": 1}
    nets = {
        "diffusion_models/text_to_video": WanModel(WanConfig(**small, in_dim=16, has_image_input=False)),
        "diffusion_models/with_image_branch": WanModel(WanConfig(**small)),
        "model_patches/with_image_branch": torch_dual_control(
            DualControlConfig(dim=128, control_dim=128, ffn_dim=64, num_heads=1, num_layers=1)
        ),
    }
    for seed, (name, net) in enumerate(nets.items()):
        weights = {key: value.half().contiguous() for key, value in randomize(net, seed).state_dict().items()}
        save_torch_file(weights, tiny_host.base / "models" / f"{name}.safetensors")


def test_a_backbone_of_another_kind(tiny_host: Host, other_models: None) -> None:
    prompt = tiny_workflow(RUN)
    set_inputs(prompt, "UNETLoader", unet_name="text_to_video.safetensors")
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieMultimodalSampler"
    assert_says(text, "takes 16 input channels", "image-to-video backbone with 36")


def test_a_control_network_of_another_backbone(tiny_host: Host, other_models: None) -> None:
    prompt = tiny_workflow(RUN)
    set_inputs(prompt, "UNETLoader", unet_name="with_image_branch.safetensors")
    _, text = failure(tiny_host, prompt)
    assert_says(text, "do not fit", "width 256 against 128", "image branch False against True", "belongs together")


def test_a_backbone_with_an_image_branch_wants_clip_vision_and_works_with_it(tiny_host: Host, other_models: None) -> None:
    prompt = tiny_workflow(RUN, LoadControl={"file": "with_image_branch.safetensors"}, Sigmas={"steps": 1})
    set_inputs(prompt, "UNETLoader", unet_name="with_image_branch.safetensors")
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieMultimodalSampler"
    assert_says(text, "image branch", "connect CLIP vision")
    vision = add(prompt, "vision", "TestClipVision")
    set_inputs(prompt, "LongVieMultimodalSampler", clip_vision=vision)
    set_inputs(prompt, "LongVieClipLoop", run_name="with image branch", clips="1-2")
    assert rendered_clips(prompt, run(tiny_host, prompt)) == 2


# ---- settings that contradict each other


def test_a_model_that_is_controlled_already(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN)
    apply = apply_control(prompt)
    del prompt["saved"]
    set_inputs(prompt, "LongVieMultimodalSampler", model=[apply, 0])
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieMultimodalSampler"
    assert_says(text, "carries LongVie control already", "from before 'LongVie Apply Control'")


@pytest.mark.parametrize("modality", ["dense", "sparse"])
def test_a_range_that_ends_before_it_starts(tiny_host: Host, modality: str) -> None:
    prompt = tiny_workflow(RUN, MultimodalSampler={f"{modality}_start": 0.8, f"{modality}_end": 0.2})
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieMultimodalSampler"
    assert_says(text, modality, "0.8", "0.2")


def raw_depth(host: Host, prompt: Prompt, values: np.ndarray, **percentiles: float) -> None:
    """Feed the loop with raw depth by way of Global Normalize."""
    np.save(host.base / "input" / "raw.npy", values.astype("<f4"))
    frames, height, width = values.shape
    signal = add(prompt, "raw", "TestSignal", file="raw.npy", kind="depth", frames=frames, height=height, width=width)
    given = {"low_percentile": 5.0, "high_percentile": 95.0, **percentiles}
    plan = add_plan(prompt)
    dense = add(prompt, "normalize", "LongVieGlobalNormalize", signal=signal, plan=plan, **given)
    set_inputs(prompt, "LongVieClipLoop", plan=plan, dense=dense, sparse=None)


def test_percentiles_the_wrong_way_round(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN)
    raw_depth(tiny_host, prompt, np.ones((FRAMES, HEIGHT, WIDTH)), low_percentile=95.0, high_percentile=5.0)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieGlobalNormalize"
    assert_says(text, "percentiles", "95.0, 5.0", "must ascend")


def test_raw_depth_with_values_that_mean_nothing(tiny_host: Host) -> None:
    values = np.ones((FRAMES, HEIGHT, WIDTH))
    values[3, 5, 5:7] = np.nan, -1
    prompt = tiny_workflow(RUN)
    raw_depth(tiny_host, prompt, values)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieGlobalNormalize"
    assert_says(text, "raw.npy", "frame 3 has 2 of 3072 depth values that mean nothing", "must be positive")


def test_raw_depth_shorter_than_a_clip(tiny_host: Host) -> None:
    prompt = tiny_workflow(RUN)
    raw_depth(tiny_host, prompt, np.ones((FRAMES - 1, HEIGHT, WIDTH)))
    _, text = failure(tiny_host, prompt)
    assert_says(text, "8 frames", "one clip needs 9", "give a longer video")


# ---- a run that cannot go on


def test_a_run_of_another_size(tiny_host: Host) -> None:
    name = "another size"
    run(tiny_host, tiny_workflow(name, Sigmas={"steps": 1}, ClipLoop={"clips": "1"}))
    prompt = tiny_workflow(name, Sigmas={"steps": 1}, LoadClips={"width": 96, "height": 64}, ClipLoop={"clips": "2-"})
    result = tiny_host.run(prompt, timeout=120)
    assert (result.status, result.messages("progress")) == ("error", [])
    assert_says(result.error.exception_message, "rendered at 64x48", "the plan says 96x64", "another run name")


def test_a_kept_clip_that_is_damaged(tiny_host: Host) -> None:
    name = "damaged and kept"
    prompt = tiny_workflow(name, Sigmas={"steps": 1}, ClipLoop={"clips": "1"})
    assert "clip 1 of 3 rendered" in report(run(tiny_host, prompt))
    latents = RunFolder.of(tiny_host, name).clip_files(1)[1]
    latents.write_bytes(b"")
    result = tiny_host.run(tiny_workflow(name, Sigmas={"steps": 1}, ClipLoop={"clips": "2"}), timeout=120)
    assert (result.status, result.messages("progress")) == ("error", [])
    assert_says(result.error.exception_message, "clip 1 must be kept", latents.name, "start the range at clip 1")
