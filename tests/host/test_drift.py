"""Drift controls and per-clip strengths on the real host: what they say, what they change, and that resuming loses nothing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from devtools.host import Host
from tests.helpers.workflow import (
    CLIPS,
    Prompt,
    RunFolder,
    add,
    assert_same_clip,
    decode,
    node_id,
    pictures,
    rendered_clips,
    report,
    run,
    tiny_workflow,
)

STEPS = 2
QUICK = {"Sigmas": {"steps": STEPS}}

USED = {
    0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 5, 6: 5, 7: 5, 8: 5, 9: 9, 10: 9, 11: 9, 12: 9, 13: 13, 14: 13, 15: 13, 16: 13, 17: 17,
}  # fmt: skip
"""History frames -> those that the Wan VAE encodes: one alone, then fours."""


@pytest.fixture(scope="module")
def plain(tiny_host: Host) -> RunFolder:
    """A run without anchoring, all strengths the sampler's."""
    run(tiny_host, tiny_workflow("drift plain", **QUICK))
    return RunFolder.of(tiny_host, "drift plain")


def differ(ours: RunFolder, theirs: RunFolder, clip: int, name: str = "latent") -> bool:
    return bool(np.abs(ours.tensors(clip)[name].astype(float) - theirs.tensors(clip)[name]).max() > 1e-3)


# ---- what the node says


def test_every_history_length_says_what_is_used_and_what_is_dropped(host: Host) -> None:
    _, options = host.object_info("LongVieMultimodalSampler")["input"]["required"]["history_frames"]
    text = options["tooltip"]
    assert (options["min"], options["max"], options["default"]) == (0, 17, 8)
    whole = {int(number) for number in re.findall(r"\d+", re.search(r"([\d, and]+) are used whole", text)[1])}
    said = {0: 0} | {number: number for number in whole}
    for first, last, used in re.findall(r"of (\d+)-(\d+) the first (\d+)", text, re.IGNORECASE):
        said |= dict.fromkeys(range(int(first), int(last) + 1), int(used))
    assert said == USED
    assert "0 = none" in text and "passes 8, so 5 are used and 3 dropped" in text


def test_the_model_input_asks_for_the_shift(host: Host) -> None:
    _, options = host.object_info("LongVieMultimodalSampler")["input"]["required"]["model"]
    assert "ModelSamplingSD3 (shift 5)" in options["tooltip"]


def test_anchoring_is_off_unless_asked_for(host: Host) -> None:
    inputs = host.object_info("LongVieMultimodalSampler")["input"]["optional"]
    (_, space), (_, strength) = inputs["anchor"], inputs["anchor_strength"]
    assert (space["default"], space["options"]) == ("off", ["off", "pixels", "latent"])
    assert (strength["default"], strength["min"], strength["max"]) == (0.0, 0.0, 1.0)


# ---- anchoring


@pytest.mark.parametrize("space", ["pixels", "latent"])
def test_an_anchored_run_goes_on_bit_by_bit(tiny_host: Host, plain: RunFolder, space: str) -> None:
    anchored = {"MultimodalSampler": {"anchor": space, "anchor_strength": 0.8}, **QUICK}
    run(tiny_host, tiny_workflow(f"whole {space}", **anchored))
    whole = RunFolder.of(tiny_host, f"whole {space}")
    for clips in ("1", "2", "3"):
        run(tiny_host, tiny_workflow(f"parts {space}", ClipLoop={"clips": clips}, **anchored))
    parts = RunFolder.of(tiny_host, f"parts {space}")
    for clip in range(1, CLIPS + 1):
        assert_same_clip(parts, whole, clip)
    np.testing.assert_array_equal(decode(parts.video), decode(whole.video))
    assert_same_clip(whole, plain, 1)
    # The latents that are kept are those that the frames were decoded from.
    assert differ(whole, plain, 2, "tail") and differ(whole, plain, 2) is (space == "latent")
    # A clip's first frame is the last one of the clip before, as without anchoring.
    if space == "pixels":
        np.testing.assert_array_equal(whole.tensors(2)["tail"][0], plain.tensors(2)["tail"][0])


def test_at_strength_0_it_is_as_if_it_were_not_there(tiny_host: Host, plain: RunFolder) -> None:
    anchored = {"MultimodalSampler": {"anchor": "pixels", "anchor_strength": 0.0}, **QUICK}
    run(tiny_host, tiny_workflow("strength 0", **anchored))
    for clip in range(1, CLIPS + 1):
        assert_same_clip(RunFolder.of(tiny_host, "strength 0"), plain, clip)


def test_it_can_be_turned_on_for_the_clips_to_come(tiny_host: Host, plain: RunFolder) -> None:
    folder = plain.copy("turned on later")
    anchored = {"MultimodalSampler": {"anchor": "pixels", "anchor_strength": 1.0}, **QUICK}
    before = folder.state(1, 2)
    result = run(tiny_host, tiny_workflow("turned on later", ClipLoop={"clips": "3"}, **anchored))
    assert "clip 2 is kept although it was made with another sampler" in report(result)
    assert folder.state(1, 2) == before and differ(folder, plain, 3, "tail")


def test_sample_clip_hands_the_reference_on(tiny_host: Host) -> None:
    anchored = {"MultimodalSampler": {"anchor": "pixels", "anchor_strength": 1.0}, **QUICK}
    run(tiny_host, tiny_workflow("anchored loop", **anchored))
    prompt = tiny_workflow("anchored loop", **anchored)
    loop = prompt.pop(node_id(prompt, "LongVieClipLoop"))
    del prompt["report"]
    given = {name: value for name, value in loop["inputs"].items() if name not in ("run_name", "clips")}
    state = {}
    for clip in range(1, CLIPS + 1):
        add(prompt, f"clip {clip}", "LongVieSampleClip", **given, **state)
        add(prompt, f"images {clip}", "SaveImage", images=[f"clip {clip}", 1], filename_prefix="anchored")
        state = {"state": [f"clip {clip}", 0]}
    result = run(tiny_host, prompt)
    folder = RunFolder.of(tiny_host, "anchored loop")
    for clip in range(1, CLIPS + 1):
        np.testing.assert_array_equal(pictures(tiny_host, result, f"images {clip}"), folder.tensors(clip)["tail"])


# ---- strengths of a clip's own


def scheduled(name: str, entries: list, **changes: dict) -> Prompt:
    return tiny_workflow(name, PromptSchedule={"prompts": json.dumps(entries)}, **QUICK, **changes)


def test_a_clips_strengths_are_those_that_the_sampler_would_give_it(tiny_host: Host, plain: RunFolder) -> None:
    own = {"prompt": "", "dense_strength": 0.4, "sparse_strength": 1.7}
    run(tiny_host, scheduled("own strengths", ["", own, ""]))
    ours = RunFolder.of(tiny_host, "own strengths")
    assert_same_clip(ours, plain, 1)
    theirs = plain.copy("sampler strengths")
    sampler = {"MultimodalSampler": {"dense_strength": 0.4, "sparse_strength": 1.7}, **QUICK}
    run(tiny_host, tiny_workflow("sampler strengths", ClipLoop={"clips": "2"}, **sampler))
    assert_same_clip(ours, theirs, 2)
    assert differ(ours, plain, 2)


def test_changed_strengths_render_from_their_clip_on_and_are_named(tiny_host: Host, plain: RunFolder) -> None:
    folder = plain.copy("changed strengths")
    before = folder.state(1)
    prompt = scheduled("changed strengths", ["", {"prompt": "", "sparse_strength": 0}, ""])
    result = run(tiny_host, prompt)
    assert rendered_clips(prompt, result) == 2 and folder.state(1) == before
    assert "clips 2 .. 3 are rendered again: sparse strength changed" in report(result)
    # The sampler's own strength written out is another way to say the same, but nobody can know: it is rendered again.
    prompt = scheduled("changed strengths", ["", {"prompt": "", "sparse_strength": 0}, {"prompt": "", "dense_strength": 1}])
    assert rendered_clips(prompt, run(tiny_host, prompt)) == 1
