"""Queueing costs the server nothing to speak of, however many clips there are, and opens no file."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from devtools.host import Host, PromptRejected
from tests.helpers.workflow import CLIPS, SCENE, Prompt, failure, tiny_workflow

MANY_CLIPS = 600
LIMIT = 0.3
"""Seconds that a POST may take, in the best of three tries: a test shares its machine with others."""


@pytest.fixture(scope="module")
def many_clips(tiny_host: Host) -> str:
    """A folder of very many clips, which are the shared ones again and again."""
    shared, folder = tiny_host.base / "input" / SCENE, tiny_host.base / "input" / "six hundred"
    folder.mkdir()
    shutil.copy(shared / "first.png", folder)
    entries = []
    for clip in range(MANY_CLIPS):
        entry = {"text": f"clip {clip}", "depth": f"depth_{clip:03d}.mp4", "track": f"track_{clip:03d}.mp4"}
        for kind in ("depth", "track"):
            os.link(shared / f"{kind}_{clip % CLIPS:02d}.mp4", folder / entry[kind])
        entries.append(entry)
    (folder / "cond.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder.name


def seconds_to_queue(host: Host, prompt: Prompt) -> float:
    """Seconds of the POST alone; the prompt is interrupted then."""
    started = time.perf_counter()
    prompt_id = host.submit(prompt)
    seconds = time.perf_counter() - started
    host.interrupt(prompt_id)
    host.wait(prompt_id, timeout=60)
    return seconds


def test_six_hundred_clips_are_queued_at_once(tiny_host: Host, many_clips: str) -> None:
    times = [seconds_to_queue(tiny_host, tiny_workflow("many clips", LoadClips={"folder": many_clips})) for _ in range(3)]
    print(f"POST of {MANY_CLIPS} clips: {', '.join(f'{seconds:.3f}' for seconds in times)} s")
    assert min(times) < LIMIT


def test_what_the_server_is_asked_while_a_folder_is_read(tiny_host: Host, many_clips: str) -> None:
    """Reading the folder takes seconds; the server answers meanwhile, and the reading can be interrupted."""
    prompt_id = tiny_host.submit(tiny_workflow("many clips", LoadClips={"folder": many_clips}))
    waits = []
    for _ in range(10):
        started = time.perf_counter()
        tiny_host.get("/queue")
        waits.append(time.perf_counter() - started)
    started = time.perf_counter()
    tiny_host.interrupt(prompt_id)
    assert tiny_host.wait(prompt_id, timeout=60).status == "interrupted"
    assert max(waits) < 4 and time.perf_counter() - started < 8


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_no_file_is_looked_into_before_the_work(tiny_host: Host) -> None:
    """A folder in which nothing can be read is refused by the node, and not by the server."""
    folder = tiny_host.base / "input" / "unreadable"
    folder.mkdir()
    os.mkfifo(folder / "cond.json")  # opening it to read would wait for ever
    prompt = tiny_workflow("unreadable", LoadClips={"folder": "unreadable"})
    try:
        node, text = failure(tiny_host, prompt)
    except PromptRejected as rejected:
        pytest.fail(f"it was looked into when it was queued: {rejected}")
    assert node == "LongVieLoadClips"
    assert "cond.json is missing" in text
