"""What goes wrong with a run on disk, on the real host: kills, full and read-only disks, damaged files, two hosts at once.

Nothing finished is lost, and every run ends bit-equal to one that nothing happened to.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from devtools.bench.faults import CLIPS, SCENE, SIZE, STEPS, Relay, make_hosts
from devtools.host import Host, HostError, RunResult
from tests.helpers.workflow import (
    REFUSALS,
    RunFolder,
    assert_same_clip,
    decode,
    loop_progress,
    rendered_clips,
    report,
    run,
    tiny_workflow,
)

FAULT_PACK = Path(__file__).with_name("longvie_fault_pack")
EVERY_CLIP = range(1, CLIPS + 1)

# Where each kill comes, and how many clips are finished then: their files must be the same ones ever after. Torn files
# are what a power cut leaves of writes that the disk had not done yet.
KILLS = [
    ("latents half-written", {"file": "clip_0001_*.safetensors", "when": "before", "what": "tear"}, 0),
    ("latents in place, no video", {"file": "clip_0001_*.safetensors", "when": "after", "what": "kill"}, 0),
    ("clip video half-written", {"file": "clip_0002_*.mp4", "when": "before", "what": "tear"}, 1),
    ("clip video in place, not in the manifest", {"file": "clip_0002_*.mp4", "when": "after", "what": "kill"}, 1),
    ("manifest half-written", {"file": "run.json", "when": "before", "what": "tear", "time": 2}, 2),
    ("manifest in place, its copy not", {"file": "run.json", "when": "after", "what": "kill"}, 3),
    ("assembled video half-written", {"file": "*_00001_.mp4", "when": "before", "what": "tear"}, 4),
    ("assembled video in place, not in the manifest", {"file": "*_00001_.mp4", "when": "after", "what": "kill"}, 4),
]


class FaultyHosts:
    """Two hosts on one output folder, one of them at work, whose writing can be made to go wrong."""

    def __init__(self, relay: Relay, request: Path) -> None:
        self.relay = relay
        self.request = request

    def alive(self, which: int = 0) -> Host:
        """A host that runs, with nothing asked to go wrong."""
        self.request.unlink(missing_ok=True)
        return self.relay.host(which)

    def ask(self, file: str, when: str, what: str, time: int = 1) -> None:
        """What is to go wrong next."""
        text = json.dumps({"file": file, "when": when, "what": what, "time": time})
        part = self.request.with_name("asked")
        part.write_text(text, "utf-8")
        part.replace(self.request)


@pytest.fixture(scope="module")
def faulty(comfyui_path: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHosts]:
    base = tmp_path_factory.mktemp("faulty")
    request = base / "fault.json"
    hosts = make_hosts(comfyui_path, base, tiny_models, extra_packs=[FAULT_PACK], env={"LONGVIE_FAULT": str(request)})
    relay = Relay(hosts)
    try:
        yield FaultyHosts(relay, request)
    finally:
        relay.close()


def folder_of(faulty: FaultyHosts, run_name: str) -> RunFolder:
    return RunFolder(faulty.request.parent / "output" / "longvie" / run_name)


def workflow(run_name: str, **changes: dict) -> dict:
    loads = {"LoadClips": {"folder": SCENE, "width": SIZE, "height": SIZE}, "Sigmas": {"steps": STEPS}}
    return tiny_workflow(run_name, **{**loads, **changes})


@pytest.fixture(scope="module")
def reference(faulty: FaultyHosts) -> RunFolder:
    """An uninterrupted run."""
    host = faulty.alive()
    prompt = workflow("reference")
    assert rendered_clips(prompt, run(host, prompt)) == CLIPS
    return folder_of(faulty, "reference")


@pytest.fixture(scope="module")
def half(faulty: FaultyHosts, reference: RunFolder) -> RunFolder:
    """A run with its first two clips finished, to go on from."""
    run(faulty.alive(), workflow("half", ClipLoop={"clips": "1-2"}))
    return folder_of(faulty, "half")


def queue(host: Host, folder: RunFolder) -> tuple[int, str]:
    """Queue a run; how many clips were rendered, and the report."""
    prompt = workflow(folder.path.name)
    result = run(host, prompt)
    return rendered_clips(prompt, result), report(result)


def assert_ends_like(folder: RunFolder, reference: RunFolder, unlisted: Sequence[str] = ()) -> None:
    """Latents, tails, clips and final video are the same bit by bit, and nothing half-written is left."""
    for clip in EVERY_CLIP:
        assert_same_clip(folder, reference, clip)
        assert folder.clip_files(clip)[0].read_bytes() == reference.clip_files(clip)[0].read_bytes()
    np.testing.assert_array_equal(decode(folder.video), decode(reference.video))
    assert_no_leftovers(folder, reference, unlisted)


def assert_no_leftovers(folder: RunFolder, reference: RunFolder, unlisted: Sequence[str] = ()) -> None:
    """Nothing lies there but whole files of the clips, the run's own ones, and the videos that it knows."""
    expected = {"run.json", "run.copy.json", "run.lock", "prompts", *unlisted}
    expected |= {path.name for path in reference.clip_files(*EVERY_CLIP)} | {video.name for video in folder.videos}
    names = {path.name for path in folder.path.iterdir() if ".damaged-" not in path.name}
    assert names <= expected


def fails_in_loop(host: Host, prompt: dict) -> tuple[RunResult, str]:
    """Run a prompt whose loop must fail by name, and its text."""
    result = host.run(prompt, timeout=120)
    assert (result.status, result.error.node_type) == ("error", "LongVieClipLoop")
    assert result.error.exception_type.rpartition(".")[2] in REFUSALS
    return result, result.error.exception_message


def refused(host: Host, prompt: dict) -> str:
    """Run a prompt whose loop must refuse to start, and its text."""
    result, text = fails_in_loop(host, prompt)
    assert loop_progress(prompt, result) == []
    return text


# ---- kills


@pytest.mark.slow
def test_killed_in_each_phase_of_writing_a_run_loses_nothing(faulty: FaultyHosts, reference: RunFolder) -> None:
    folder = folder_of(faulty, "killed")
    finished: dict[int, list] = {}
    for phase, fault, expected in KILLS:
        host = faulty.alive()
        faulty.ask(**fault)
        with pytest.raises(HostError):
            host.run(workflow("killed"), timeout=120)
        faulty.relay.kill()
        entries = folder.manifest["takes"] if (folder.path / "run.json").exists() else []
        assert len(entries) == expected, phase
        for clip, before in finished.items():
            assert folder.state(clip) == before, f"clip {clip} was finished, and was written again after: {phase}"
        finished = {clip: folder.state(clip) for clip in range(1, expected + 1)}
    rendered, text = queue(faulty.alive(), folder)
    assert rendered == 0 and f"kept {CLIPS} of {CLIPS} clips" in text
    assert folder.state(*EVERY_CLIP) == [state for clip in EVERY_CLIP for state in finished[clip]]
    # The video that was joined when the kill came is whole, but nobody knows; it is left where it lies.
    assert_ends_like(folder, reference, unlisted=["killed_00001_.mp4"])
    np.testing.assert_array_equal(decode(folder.path / "killed_00001_.mp4"), decode(reference.video))


# ---- full disks


@pytest.mark.parametrize(
    ("file", "kept"),
    [("clip_0003_*.safetensors", 2), ("clip_0003_*.mp4", 2), ("run.json", 2), ("run.copy.json", 3), ("*_00001_.mp4", 4)],
)
def test_a_disk_that_is_full_at_one_file(
    faulty: FaultyHosts, reference: RunFolder, half: RunFolder, file: str, kept: int
) -> None:
    host = faulty.alive()
    folder = half.copy(f"full at {file.replace('*', 'any')}")
    faulty.ask(file, "before", "full")
    _, text = fails_in_loop(host, workflow(folder.path.name))
    assert text.strip() == (
        f"the disk is full: {kept} of {CLIPS} clips are finished and safe in {folder.path}; free space and queue again"
    )
    assert_no_leftovers(folder, reference)
    before = folder.state(*range(1, kept + 1))
    rendered, _ = queue(faulty.alive(), folder)
    assert rendered == CLIPS - kept
    assert folder.state(*range(1, kept + 1)) == before
    assert_ends_like(folder, reference)


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A tmpfs of that size as a folder; the test is skipped where this process may not mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "longvie-test", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("a tmpfs cannot be mounted here: root in a container with that right can")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill a file system up to so many bytes."""
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free - leave
    ballast.write_bytes(b"\0" * max(free, 0))
    return ballast


@pytest.mark.parametrize("room", ["none", "latents"])
def test_a_real_disk_that_fills_up_meanwhile(faulty: FaultyHosts, reference: RunFolder, half: RunFolder, room: str) -> None:
    """Somebody else fills it while clip 3 is sampled: up to the last byte, or so that only its latents have room."""
    host = faulty.alive()
    folder = folder_of(faulty, f"disk with room for {room}")
    latents = reference.clip_files(3)[1].stat().st_size
    with small_disk(folder.path, 2048):
        shutil.copytree(half.path, folder.path, dirs_exist_ok=True)
        prompt, filled = workflow(folder.path.name), []

        def on_event(kind: str, data: dict) -> None:
            if kind == "progress" and not filled:
                filled.append(fill(folder.path, 0 if room == "none" else latents + 8192))

        result = host.run(prompt, on_event, timeout=120)
        assert (result.status, result.error.exception_type) == ("error", "ValueError"), result.error
        assert result.error.exception_message.startswith(f"the disk is full: 2 of {CLIPS} clips are finished and safe in ")
        (ballast,) = filled
        ballast.unlink()
        assert_no_leftovers(folder, reference)
        before = folder.state(1, 2)
        rendered, _ = queue(host, folder)
        assert (rendered, folder.state(1, 2)) == (2, before)
        assert_ends_like(folder, reference)


def test_too_small_a_disk_is_refused_before_anything_is_sampled(faulty: FaultyHosts, reference: RunFolder) -> None:
    host = faulty.alive()
    folder = folder_of(faulty, "small disk")
    with small_disk(folder.path, 300):
        text = refused(host, workflow(folder.path.name))
        assert "small disk has " in text and "of free disk space, but up to " in text and "are needed: free" in text
        assert [path.name for path in folder.path.iterdir()] == ["run.lock"]


# ---- read-only


def test_a_read_only_file_system_is_refused_before_sampling(faulty: FaultyHosts, reference: RunFolder) -> None:
    host = faulty.alive()
    folder = folder_of(faulty, "read only")
    with small_disk(folder.path, 4096):
        for path in reference.path.iterdir():
            if path.is_file() and path.name != "run.lock":
                shutil.copy2(path, folder.path)
        folder.clip_files(4)[1].unlink()  # so that there is something to render
        subprocess.run(["mount", "-o", "remount,ro", str(folder.path)], check=True)
        text = refused(host, workflow(folder.path.name))
        assert "run 'read only' cannot be written" in text and "Read-only file system" in text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="rights do not bind the root user")
def test_a_folder_without_the_right_to_write_is_refused_before_sampling(faulty: FaultyHosts, reference: RunFolder) -> None:
    folder = reference.copy("no right")
    (folder.path / "run.lock").unlink()
    folder.clip_files(4)[1].unlink()
    folder.path.chmod(0o555)
    try:
        text = refused(faulty.alive(), workflow("no right"))
    finally:
        folder.path.chmod(0o755)
    assert "run 'no right' cannot be written" in text


def test_a_file_in_the_run_folders_place_is_refused_before_sampling(faulty: FaultyHosts, reference: RunFolder) -> None:
    host = faulty.alive()
    place = folder_of(faulty, "a file").path
    place.write_bytes(b"mine")
    text = refused(host, workflow("a file"))
    assert "run 'a file' cannot be written" in text and "use another run name" in text
    assert place.read_bytes() == b"mine"


# ---- damaged files


@pytest.mark.parametrize("size", [0, -1])
def test_a_truncated_latent_is_rendered_again_and_what_follows_stands(
    faulty: FaultyHosts, reference: RunFolder, size: int
) -> None:
    folder = reference.copy(f"truncated to {size}")
    latents = folder.clip_files(3)[1]
    latents.write_bytes(latents.read_bytes()[:size])
    before = folder.state(1, 2, 4)
    rendered, text = queue(faulty.alive(), folder)
    assert (rendered, folder.state(1, 2, 4)) == (1, before)
    assert f"clip 3 is rendered again: {latents.name} was changed or cut off since it was written" in text
    assert_ends_like(folder, reference)


def edit(manifest: dict) -> dict:
    """Another hash, another length and another rate: each would do harm if it were believed."""
    manifest["takes"][1]["latents"]["sha256"] = "0" * 64
    manifest["takes"][2]["frames"] += 1
    return {**manifest, "fps": "24"}


def test_an_edited_manifest_is_not_believed_and_loses_nothing(faulty: FaultyHosts, reference: RunFolder) -> None:
    folder = reference.copy("edited")
    before = folder.state(*EVERY_CLIP)
    (folder.path / "run.json").write_text(json.dumps(edit(folder.manifest)), "utf-8")
    rendered, text = queue(faulty.alive(), folder)
    assert (rendered, folder.state(*EVERY_CLIP)) == (0, before)
    assert "run.json is damaged (ValueError: it was changed since it was written)" in text and "restored from its copy" in text
    assert_ends_like(folder, reference)


def test_a_run_without_a_believable_manifest_is_rendered_again(faulty: FaultyHosts, reference: RunFolder) -> None:
    folder = reference.copy("edited twice")
    text = json.dumps(edit(folder.manifest))
    for name in ("run.json", "run.copy.json"):
        (folder.path / name).write_text(text, "utf-8")
    rendered, said = queue(faulty.alive(), folder)
    assert rendered == CLIPS and "the run starts over" in said
    # The video of before is left where it lies, although nobody knows it any more.
    assert_ends_like(folder, reference, unlisted=[reference.video.name])
    assert (folder.path / reference.video.name).read_bytes() == reference.video.read_bytes()


def test_a_manifest_of_a_future_version_is_refused_and_left_alone(faulty: FaultyHosts, reference: RunFolder) -> None:
    folder = reference.copy("future")
    text = json.dumps({**folder.manifest, "version": 3, "sections": {}})
    (folder.path / "run.json").write_text(text, "utf-8")
    before = folder.state(*EVERY_CLIP)
    said = refused(faulty.alive(), workflow("future"))
    assert "run.json has version 3" in said and "update LongVie or use another run name" in said
    assert (folder.path / "run.json").read_text("utf-8") == text
    assert folder.state(*EVERY_CLIP) == before


# ---- two hosts


@pytest.mark.slow
def test_two_hosts_on_one_run(faulty: FaultyHosts, reference: RunFolder, half: RunFolder) -> None:
    """The second is refused while the first is at work, and takes over as soon as that is killed."""
    first, second = faulty.alive(0), faulty.alive(1)
    folder = half.copy("shared")
    faulty.ask("clip_0003_*.mp4", "before", "wait")
    prompt = workflow("shared")
    first.submit(prompt)
    try:
        wait_until(lambda: bool(list(folder.path.glob("clip_0003_*.safetensors"))))
        before = folder.state(1, 2)
        text = refused(second, prompt)
        assert "run 'shared' is being written by process " in text and "wait until it has finished, stop it, or use" in text
        assert (folder.path / "run.lock").read_text().split(" on ")[0] in text
    finally:
        faulty.relay.kill()
        faulty.request.unlink()  # or the other one would wait at the same place
    result = run(second, prompt)
    assert rendered_clips(prompt, result) == 2 and "kept 2 of 4 clips" in report(result)
    assert "half-written files of a stopped process were removed" in report(result)
    assert folder.state(1, 2) == before
    assert_ends_like(folder, reference)


def wait_until(done: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, f"nothing within {timeout} s"
        time.sleep(0.02)
